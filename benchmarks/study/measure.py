"""What the models of the study are asked: their loss on the test files, what their experts took, how these differ.

Dimensions: E experts, G languages.
"""

import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.study.models import BASE, StudyModels
from benchmarks.study.protocol import LANGUAGES
from moe_codegen.evaluation.held_out.expert_use import encode_kinds, expert_use, expert_use_record
from moe_codegen.metrics import DocumentLosses, document_losses, encode_documents, start_token
from moe_codegen.modeling import MoEConfig
from moe_codegen.moe import Experts
from moe_codegen.upcycle import extract
from moe_codegen.whole_file import write_whole

EXPERTS = "experts"  # the dense ones, one a language


class Measures:
    """Losses of the models of `models` on its test files, each measured once and kept beside the model."""

    def __init__(self, models: StudyModels) -> None:
        self.models = models
        self.documents = models.data.test_documents()
        self.encoded = encode_documents(models.tokenizer, self.documents)
        self.start_id = start_token(models.tokenizer)

    def losses(self, name: str) -> DocumentLosses:
        """Of a model on all test files."""
        return self._kept(f"{name}.npy", lambda: self._measure(self.models.path(name)))

    def own_experts(self) -> DocumentLosses:
        """Each file under the dense expert of its language: what no router can beat by choosing."""
        return self._by_language({language: self.losses(language).nats for language in LANGUAGES})

    def oracle(self, name: str) -> DocumentLosses:
        """Hard routing by language: each file under its language's expert alone, and what the mixture `name` shares."""

        def measure() -> DocumentLosses:
            nats = {}
            for language in LANGUAGES:
                with TemporaryDirectory() as folder:
                    dense = Path(folder, language)
                    extract(self.models.path(name), dense, expert=language)
                    nats[language] = self._measure(dense).nats
            return self._by_language(nats)

        return self._kept(f"{name}-oracle.npy", measure)

    def routing(self, name: str) -> dict[str, Any]:
        """Which expert took which language on the test files, as `load_summary` says it."""
        counts = expert_use(load(self.models.path(name)), self._kinded, self.start_id)
        summary: dict[str, Any] = expert_use_record(counts)["by_language"]
        return summary

    def expert_distances(self, name: str) -> tuple[float, float]:
        """How far the experts lie apart: the mean over pairs, and the mean distance from the base.

        Both are norms over all expert weights of all layers, relative to the base's. `name` is a mixture of four
        experts, or `EXPERTS` for the dense ones.
        """
        if name == EXPERTS:
            experts = [ffn_weights(load(self.models.path(language)))[0] for language in LANGUAGES]
        else:
            experts = ffn_weights(load(self.models.path(name)))
        base = ffn_weights(load(self.models.path(BASE)))[0]
        pairs = [(one - other).norm() for place, one in enumerate(experts) for other in experts[:place]]
        moved = [(one - base).norm() for one in experts]
        return float(sum(pairs) / len(pairs) / base.norm()), float(sum(moved) / len(moved) / base.norm())

    @property
    def _kinded(self) -> Any:
        return encode_kinds(self.models.tokenizer, self.documents)

    def _measure(self, folder: Path) -> DocumentLosses:
        return document_losses(load(folder), self.encoded, self.start_id)

    def _kept(self, file: str, measure: Any) -> DocumentLosses:
        path = self.models.folder / "losses" / file
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            content = io.BytesIO()
            np.save(content, measure().nats)
            write_whole(path, content.getvalue())
        return DocumentLosses.of_documents(self.encoded, np.load(path))

    def _by_language(self, nats: dict[str, np.ndarray]) -> DocumentLosses:
        """Losses whose files of each language are taken from that language's array."""
        chosen = np.array([nats[one.language][place] for place, one in enumerate(self.encoded)])
        return DocumentLosses.of_documents(self.encoded, chosen)


def load(folder: Path) -> PreTrainedModel:
    """A dense model or a mixture, on the GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return AutoModelForCausalLM.from_pretrained(folder).to(device)


def ffn_weights(model: PreTrainedModel) -> list[torch.Tensor]:
    """All FFN matrices as one vector for each expert; a dense model has one."""
    if isinstance(model.config, MoEConfig):
        matrices = [p for module in model.modules() if isinstance(module, Experts) for p in module.parameters()]
        return [torch.cat([matrix[e].detach().flatten() for matrix in matrices]) for e in range(len(matrices[0]))]
    state = model.state_dict()
    return [torch.cat([tensor.flatten() for name, tensor in state.items() if ".mlp." in name])]
