"""What the router's weights are before any training.

Copied experts need no more than random rows: whichever are chosen, the result is the same, and training tells them
apart. Experts that already differ can be routed from the first token on, by what their texts look like at the input
of each FFN (`hidden`, `centroid`, `ridge`).

Dimensions: N tokens of text, D model, E experts, G granularity.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from moe_codegen.architectures import DenseCheckpoint
from moe_codegen.checkpoint import load_tokenizer
from moe_codegen.errors import CheckpointError, ConfigError
from moe_codegen.modeling import MoEConfig
from moe_codegen.upcycle.mapped import computing_in_fp32, mapped_dense, observing
from moe_codegen.upcycle.options import FROM_TEXT, RouterInit, UpcycleOptions
from moe_codegen.upcycle.weights import generator_for

# Tokens of one text that are looked at; beyond it a language looks no different.
WINDOW = 512
# Ridge regression's penalty, as a share of the mean square of the inputs.
RIDGE = 1e-2


@dataclass
class InputStatistics:
    """Sums over the FFN inputs x of one layer, for each label: all that the three text methods need.

    Attributes:
        count_E: tokens seen.
        sum_ED: sum of x.
        sum_unit_ED: sum of x / |x|.
        square_D: sum of x^2 over all labels.
        gram_DD: sum of x x^T over all labels; kept only for `ridge`.
    """

    count_E: torch.Tensor
    sum_ED: torch.Tensor
    sum_unit_ED: torch.Tensor
    square_D: torch.Tensor
    gram_DD: torch.Tensor | None

    @classmethod
    def empty(cls, num_labels: int, width: int, with_gram: bool) -> "InputStatistics":
        """Nothing seen yet."""
        return cls(
            torch.zeros(num_labels),
            torch.zeros(num_labels, width),
            torch.zeros(num_labels, width),
            torch.zeros(width),
            torch.zeros(width, width) if with_gram else None,
        )

    def add(self, x_ND: torch.Tensor, label: int) -> None:
        """Count the tokens `x_ND` under `label`."""
        self.count_E[label] += len(x_ND)
        self.sum_ED[label] += x_ND.sum(dim=0)
        self.sum_unit_ED[label] += nn.functional.normalize(x_ND, dim=-1).sum(dim=0)
        self.square_D += x_ND.square().sum(dim=0)
        if self.gram_DD is not None:
            self.gram_DD += x_ND.t() @ x_ND


def make_routers(
    base: DenseCheckpoint, config: MoEConfig, options: UpcycleOptions, texts: Mapping[str, list[str]] | None
) -> dict[int, torch.Tensor]:
    """Layer -> router rows (E, D). The G pieces of one FFN get equal rows, so that they are chosen together."""
    layers, rows = config.sparse_layers, options.num_experts // options.granularity
    if options.router in FROM_TEXT:
        assert texts is not None
        ordered = {name: texts[name] for name in config.expert_names or []}
        statistics = ffn_input_statistics(base, layers, ordered, with_gram=options.router == "ridge")
        routers = {layer: router_from_text(options.router, statistics[layer]) for layer in layers}
    else:
        routers = {
            layer: random_router(options.router, rows, config.hidden_size, options.router_std, options.seed, layer)
            for layer in layers
        }
    return {layer: router.repeat_interleave(options.granularity, dim=0) for layer, router in routers.items()}


def random_router(init: RouterInit, num_rows: int, width: int, std: float, seed: int, layer: int) -> torch.Tensor:
    """`normal`: each weight from N(0, std^2). `orthogonal`: orthogonal rows of the same expected length.

    Returns:
        (num_rows, width) fp32.
    """
    generator = generator_for(seed, "router", layer)
    if init == "normal":
        return torch.randn(num_rows, width, generator=generator) * std
    return nn.init.orthogonal_(torch.empty(num_rows, width), gain=std * width**0.5, generator=generator)


def router_from_text(init: RouterInit, statistics: InputStatistics) -> torch.Tensor:
    """Router rows from what each expert's texts look like at the layer's FFN input.

    `hidden`: the mean direction of the expert's inputs, as mergekit's `hidden` mode but on the normed inputs the
    router really sees, and on every token. `centroid`: linear discriminant analysis with a shared diagonal
    covariance, `(mean_e - mean) / variance`. `ridge`: the least-squares fit of one-hot labels, `(X^T X + r I)^-1 X^T Y`
    (DUME, arXiv 2603.29765), the labels' sums brought to one count so that more text is no advantage.

    Returns:
        (E, D) fp32, scaled so that the logits of the expert means differ by about 1.
    """
    mean_ED = statistics.sum_ED / statistics.count_E[:, None]
    if init == "hidden":
        direction_ED = statistics.sum_unit_ED / statistics.count_E[:, None]
        rows_ED = direction_ED - direction_ED.mean(dim=0)
    elif init == "centroid":
        grand_D = statistics.sum_ED.sum(dim=0) / statistics.count_E.sum()
        variance_D = statistics.square_D / statistics.count_E.sum() - grand_D.square()
        rows_ED = (mean_ED - mean_ED.mean(dim=0)) / variance_D.clamp(min=1e-6)
    else:
        assert statistics.gram_DD is not None
        penalty = RIDGE * statistics.gram_DD.diagonal().mean()
        system_DD = statistics.gram_DD + penalty * torch.eye(len(statistics.gram_DD))
        rows_ED = torch.linalg.solve(system_DD, mean_ED.t() * statistics.count_E.mean()).t()
        rows_ED = rows_ED - rows_ED.mean(dim=0)
    # Routers have no bias: what all tokens have in common must favour no expert.
    common_D = nn.functional.normalize(mean_ED.mean(dim=0), dim=0)
    rows_ED = rows_ED - (rows_ED @ common_D)[:, None] * common_D
    # Logits at each expert's own mean, against the average over the others.
    logits_EE = mean_ED @ rows_ED.t()
    others = (logits_EE.sum(dim=1) - logits_EE.diagonal()) / max(1, len(logits_EE) - 1)
    margin = (logits_EE.diagonal() - others).mean()
    return rows_ED / margin.abs().clamp(min=1e-6)


def ffn_input_statistics(
    dense: DenseCheckpoint, layers: list[int], texts: Mapping[str, list[str]], with_gram: bool
) -> dict[int, InputStatistics]:
    """Run the dense model over each expert's texts and sum up what enters the FFN of each layer.

    `texts` maps the experts' names, in their order, to pieces of code; the model runs from its mapped files.
    """
    tokenizer = load_tokenizer(dense.reader.folder, dense.config)
    if tokenizer is None:
        raise CheckpointError(f"{dense.reader.folder} has no tokenizer, which a router from text needs")
    model = mapped_dense(dense)
    window = min(WINDOW, dense.config.max_position_embeddings)
    statistics = {layer: InputStatistics.empty(len(texts), dense.config.hidden_size, with_gram) for layer in layers}
    norms = {
        str(layer): model.get_submodule(f"{dense.architecture.layer(layer)}.{dense.architecture.norm}")
        for layer in layers
    }

    def add(label: int, name: str, module: nn.Module, inputs: object, output: object) -> None:
        assert isinstance(output, torch.Tensor)
        statistics[int(name)].add(output.flatten(0, -2).float(), label)

    with torch.inference_mode(), computing_in_fp32(model):
        for label, pieces in enumerate(texts.values()):
            with observing(norms, partial(add, label)):
                for piece in pieces:
                    ids = tokenizer(piece, return_tensors="pt").input_ids[:, :window]
                    if ids.numel():
                        model.base_model(input_ids=ids, use_cache=False)
    return statistics


def check_router_texts(router: RouterInit, texts: Mapping[str, list[str]] | None, experts: list[str] | None) -> None:
    """Refuse texts that are missing, not wanted, or not one set for each expert.

    Raises:
        ConfigError: any of these.
    """
    if router not in FROM_TEXT:
        if texts is not None:
            raise ConfigError(f"router={router!r} looks at no text; leave out router_data or use 'ridge'")
        return
    if experts is None:
        raise ConfigError(f"router={router!r} tells experts apart by their texts, and copies have none; use 'normal'")
    if not texts:
        raise ConfigError(f"router={router!r} needs router_data: texts for each of {', '.join(experts)}")
    for name, pieces in texts.items():
        if isinstance(pieces, str):
            raise ConfigError(f"router_data[{name!r}] is one string; give a list of texts")
    wrong = sorted(set(texts) ^ set(experts)) or [name for name in experts if not any(texts[name])]
    if wrong:
        raise ConfigError(
            f"router_data must hold texts for exactly the experts {', '.join(experts)}; see {', '.join(wrong)}"
        )
