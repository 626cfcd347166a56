"""From losses, curves and counts to the rows of the table and the sentences below it."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig

from benchmarks.registry import Row
from benchmarks.study.measure import EXPERTS
from benchmarks.study.models import BASE, StudyModels
from benchmarks.study.protocol import LANGUAGES, MIXTURES, RIVALS, Curve, crossing
from moe_codegen.metrics import DocumentLosses, Interval
from moe_codegen.metrics.intervals import too_few
from moe_codegen.modeling.parameters import count_parameters

TITLES = {
    BASE: "base",
    **{language: f"dense {language} expert" for language in LANGUAGES},
    **{name: mixture.title for name, mixture in MIXTURES.items()},
    **{name: rival.title for name, rival in RIVALS.items()},
    "own-expert": "each file under the dense expert of its language",
    "joined-oracle": "each file under its language's expert alone of the joined ones",
    "mixture-oracle": "the same of the trained mixture",
}
APART = {EXPERTS: "dense experts", "mixture": TITLES["mixture"]}


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


def cells(intervals: Mapping[str, Interval]) -> Row:
    """By language and for all: the value and the bounds of its interval, nats a token, or why there are none."""
    return {name: [round(one.value, 3), *_bounds(one)] for name, one in intervals.items()}


def _bounds(interval: Interval) -> list[float | str]:
    if interval.low is None or interval.high is None:
        return [too_few(interval.clusters)]
    return [round(interval.low, 3), round(interval.high, 3)]


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


def where_it_pays(one: str, other: str, curves: Mapping[str, Curve]) -> str:
    """From which tokens and which training FLOPs on `one` is below `other`, at the peak learning rate."""
    parts = []
    for unit, scale, name in (("tokens", 1e6, "M tokens"), ("flops", 1e12, "TFLOP")):
        a, b = curves[one], curves[other]
        x_one, x_other = (getattr(curve, unit)[: curve.stable] for curve in (a, b))
        x = crossing(x_one, a.losses[: a.stable], x_other, b.losses[: b.stable])
        parts.append(f"below from {x / scale:.2f} {name} on" if x is not None else f"not yet below in {name}")
    return f"{one}, beside {other}: {', '.join(parts)}"


def agreement(title: str, summary: Mapping[str, Any]) -> str:
    """How far routing follows language, by layer."""
    layers = "; ".join(
        f"layer {layer['layer']}: accuracy {layer['assignment_accuracy']:.2f}, "
        f"information {layer['normalised_mutual_information']:.3f}, busiest {layer['max_over_mean']:.2f}x"
        for layer in summary["layers"]
    )
    return f"routing by language, {title} (chance {1 / len(LANGUAGES):.2f}): {layers}"


def distances(title: str, apart: float, moved: float) -> str:
    """How far experts lie from one another and from the base's FFN."""
    return f"expert weights, {title}: {apart:.3f} apart and {moved:.3f} from the base, of the base's norm"
