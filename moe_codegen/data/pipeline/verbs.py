"""The verbs that make one folder of another, in the order in which they are meant to run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_codegen.data.deduplication.dedup import DedupSettings, dedup
from moe_codegen.data.filtering.clean import clean
from moe_codegen.data.filtering.decontaminate import DecontaminateSettings, benchmark_patterns, decontaminate
from moe_codegen.data.filtering.filters import CleanSettings
from moe_codegen.data.packing.pack import check_tokenizer, pack
from moe_codegen.data.packing.settings import PackSettings
from moe_codegen.data.packing.tokenizer import TokenizerSettings, load_base, make_tokenizer
from moe_codegen.data.passes.stage import Record
from moe_codegen.data.reading.sources import Source
from moe_codegen.data.sampling.sample import SampleSettings, sample
from moe_codegen.data.sampling.split import SplitSettings, split


@dataclass(frozen=True)
class Verb:
    """A verb: what it does, its settings, and the function `run(source, out, settings, *, num_proc, quiet)`.

    `check` raises for what the settings name and cannot be used, before any work.
    """

    summary: str
    settings: type
    run: Callable[..., Record]
    check: Callable[[Any], object] = lambda settings: None


def _make_tokenizer(
    source: Source, out: str | Path, settings: TokenizerSettings, *, num_proc: int, quiet: bool
) -> Record:
    """`make_tokenizer`, which is trained in the library's own threads."""
    return make_tokenizer(source, out, settings, quiet=quiet)


VERBS = {
    "clean": Verb(
        "Drop files for their licence, size, encoding, line lengths, letters, comments, encoded data, or because they "
        "are generated or configuration.",
        CleanSettings,
        clean,
    ),
    "dedup": Verb(
        "Drop files that are equal or near-duplicates of another; the best of each cluster is kept.",
        DedupSettings,
        dedup,
    ),
    "decontaminate": Verb(
        "Drop files that hold the prompt or the solution of a benchmark's problem.",
        DecontaminateSettings,
        decontaminate,
        lambda settings: benchmark_patterns(settings.benchmarks),
    ),
    "sample": Verb(
        "Draw as many files of each language as a stated precision needs, spread over its repositories.",
        SampleSettings,
        sample,
    ),
    "split": Verb(
        "Divide the repositories into training and validation; drop near-duplicates of validation files from training.",
        SplitSettings,
        split,
    ),
    "tokenizer": Verb(
        "Take over the tokenizer of a base model, or train a byte-level BPE on the data.",
        TokenizerSettings,
        _make_tokenizer,
        lambda settings: settings.base and load_base(settings.base),
    ),
    "pack": Verb(
        "Tokenize, rearrange for fill-in-the-middle, mix the languages, and pack into sequences of one length.",
        PackSettings,
        pack,
        check_tokenizer,
    ),
}
