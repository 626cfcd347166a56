"""From losses, curves and counts to the rows of the table and the sentences below it."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import AutoConfig

from benchmarks.registry import Row
from benchmarks.study.curves import Curve, crossing, mean_curve
from benchmarks.study.measure import EXPERTS
from benchmarks.study.models import StudyModels
from benchmarks.study.protocol import BASE, LANGUAGES, MIXTURES, RIVALS
from moe_codegen.metrics import DocumentLosses
from moe_codegen.modeling.parameters import count_parameters

TITLES = {
    BASE: "what everything starts from",
    **{language: f"dense {language} expert" for language in LANGUAGES},
    **{name: f"{mixture.title}, untrained" for name, mixture in MIXTURES.items() if mixture.of_experts},
    **{name: rival.title for name, rival in RIVALS.items()},
    "own-expert": "each file under the dense expert of its language",
    "joined-oracle": "each file under its language's expert alone of the joined ones",
    "mixture-oracle": "the same of the mixed ones",
}
APART = {EXPERTS: "dense experts", "mixture": "mixed experts"}
UNITS = {"tokens": (1e6, "M tokens"), "flops": (1e12, "TFLOP")}


def cost(name: str, models: StudyModels) -> Row:
    """What was spent on a model since the base, and its parameters, total and active."""
    tokens, flops = models.spent_on_experts() if _is_of_experts(name) else (0.0, 0.0)
    if (run := models.summaries.get(name)) and name != BASE:
        tokens, flops = tokens + run["tokens"], flops + run["training_flops"]
    parameters = count_parameters(AutoConfig.from_pretrained(models.path(name)))
    return {
        "M tokens": round(tokens / 1e6, 2),
        "TFLOP": round(flops / 1e12, 2),
        "k active": round(parameters.active / 1e3),
        "k total": round(parameters.total / 1e3),
    }


def _is_of_experts(name: str) -> bool:
    made = RIVALS.get(name) or MIXTURES.get(name)
    return made is not None and made.of_experts


def counted(losses: DocumentLosses) -> str:
    """How many test files, repositories and tokens there are of each language."""
    files = Counter(losses.languages)
    repositories, tokens = defaultdict(set), Counter[str]()
    for language, repository, count in zip(losses.languages, losses.repositories, losses.tokens, strict=True):
        repositories[language].add(repository)
        tokens[language] += int(count)
    return ", ".join(
        f"{files[name]} of {name} from {len(repositories[name])} repositories ({tokens[name] / 1e3:.0f}k tokens)"
        for name in LANGUAGES
    )


def where_it_pays(one: str, other: str, curves: Mapping[str, Sequence[Curve]]) -> str:
    """From which tokens and which training FLOPs on `one` is below `other`, at the peak learning rate."""
    parts = []
    for unit, (scale, name) in UNITS.items():
        whole = _pays_from(mean_curve(curves[one]), mean_curve(curves[other]), unit, scale)
        by_seed = [_pays_from(*pair, unit, scale) for pair in zip(curves[one], curves[other], strict=True)]
        said = f"below from {whole} {name} on" if whole != NEVER else f"not yet below in {name}"
        parts.append(f"{said} (by seed {', '.join(by_seed)})")
    return f"{one}, beside dense, mean of {len(curves[one])} seeds: {'; '.join(parts)}"


NEVER = "never"


def _pays_from(one: Curve, other: Curve, unit: str, scale: float) -> str:
    x_one, x_other = (getattr(curve, unit)[: curve.stable] for curve in (one, other))
    x = crossing(x_one, one.losses[: one.stable], x_other, other.losses[: other.stable])
    return NEVER if x is None else f"{x / scale:.2f}"


def agreement(title: str, summaries: Sequence[Mapping[str, Any]]) -> str:
    """How far routing follows language, by layer, mean over seeds."""
    parts = []
    for layers in zip(*(summary["layers"] for summary in summaries), strict=True):
        accuracy, information, busiest = (
            np.mean([layer[name] for layer in layers])
            for name in ("assignment_accuracy", "normalised_mutual_information", "max_over_mean")
        )
        parts.append(
            f"layer {layers[0]['layer']}: accuracy {accuracy:.2f}, information {information:.3f}, "
            f"busiest {busiest:.2f}x"
        )
    chance = 1 / len(summaries[0]["layers"][0]["share"])  # of the experts, the base's own included
    return f"routing by language, {title} (chance {chance:.2f}): {'; '.join(parts)}"


def distances(title: str, by_seed: Sequence[tuple[float, float]]) -> str:
    """How far experts lie from one another and from the base's FFN, mean over seeds."""
    apart, moved = np.mean(by_seed, axis=0)
    return f"expert weights, {title}: {apart:.3f} apart and {moved:.3f} from the base, of the base's norm"
