"""`pack`: tokens in sequences of one length, documents whole where they fit, shuffled, in the proportions asked for.

A row holds `input_ids` (S of them, padded at the end) and, for each document in it, its tokens in `lengths` and its
language in `languages`, a place in the manifest's list of names; `collate` makes a model's input of them. Three passes:
every document to tokens (parallel), one plan of all sequences (one process, some fifty bytes a document), the sequences
themselves (parallel).
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from moe_codegen.data.packing.best_fit import best_fit, cut
from moe_codegen.data.packing.fim import Part, Sentinels, find_sentinels, rearrange
from moe_codegen.data.packing.mixture import mixture_weights, passes, repeated
from moe_codegen.data.packing.tokenizer import Encoder, files_digest, load_encoder, vocabulary_hash
from moe_codegen.data.passes.output import ShardWriter, UnitOutput
from moe_codegen.data.passes.progress import advance
from moe_codegen.data.passes.stage import OUTPUT, Record, Stage, run_stage
from moe_codegen.data.passes.tally import KEPT, UNKNOWN, merged
from moe_codegen.data.reading.sources import Source, Unit
from moe_codegen.data.rows.batch import Dropped, split_sound
from moe_codegen.errors import ConfigError
from moe_codegen.settings import check_between, setting

WINDOW = 1 << 17  # documents packed together: the plan's memory, and how far a best fit may look
ROWS = 2048  # sequences a shard
PACKED = pa.schema([pa.field(name, pa.list_(pa.int32())) for name in ("input_ids", "lengths", "languages")])


@dataclass(frozen=True)
class PackSettings:
    """How documents become sequences."""

    tokenizer: str = setting("", "folder with tokenizer.json", is_path=True)
    sequence_length: int = setting(2048, "tokens a sequence")
    fim_rate: float = setting(0.5, "share of the documents rearranged for fill-in-the-middle")
    spm_rate: float = setting(0.5, "share of those in the order suffix, prefix, middle")
    weights: tuple[str, ...] = setting((), "LANGUAGE=WEIGHT; none: by temperature")
    temperature: float = setting(1.0, "1 keeps the proportions of the data, more nears equal parts")
    tokens: int | None = setting(None, "tokens in all, documents repeated as needed; not given: none is repeated")
    seed: int = setting(0, "order, fill-in-the-middle and choice of documents")

    def __post_init__(self) -> None:
        if self.sequence_length < 2:
            raise ConfigError(f"sequence_length={self.sequence_length} should be at least 2 tokens")
        if self.tokens is not None and self.tokens < 1:
            raise ConfigError(f"tokens={self.tokens} should be positive")
        check_between(self, 0, 1, "fim_rate", "spm_rate")
        self.weight_of  # noqa: B018 (raises)

    @property
    def weight_of(self) -> dict[str, float]:
        """Language -> weight, as `weights` says."""
        found = {}
        for pair in self.weights:
            name, _, value = pair.partition("=")
            try:
                found[name] = float(value)
            except ValueError:
                raise ConfigError(f"weights: {pair} should be LANGUAGE=WEIGHT, such as python=2") from None
        return found


def pack(source: Source, out: str | Path, settings: PackSettings, *, num_proc: int = 1, quiet: bool = True) -> Record:
    """Write packed sequences of `source` to `out`; the manifest says how much is padding and what the mixture is.

    Raises `TokenizerError` for a tokenizer that is missing or lacks sentinels, `ConfigError` for impossible settings.
    """
    check_tokenizer(settings)
    contents = {"tokenizer": files_digest(settings.tokenizer)}
    return run_stage("pack", source, out, settings, _pack, contents=contents, num_proc=num_proc, quiet=quiet)


def check_tokenizer(settings: PackSettings) -> None:
    """Raises `TokenizerError` for a tokenizer that is missing, or that lacks the sentinels that are asked for."""
    encoder = load_encoder(settings.tokenizer)
    if settings.fim_rate:
        find_sentinels(encoder.vocabulary)


def _pack(stage: Stage) -> tuple[Record, list[Record]]:
    settings: PackSettings = stage.settings
    records = stage.map("tokens", tokenize_unit, settings)
    tokens, plan = stage.work / "tokens", stage.work / "plan.npz"
    summary = make_plan(tokens, [record["languages"] for record in records], settings, plan)
    parts = range(-(-summary["sequences"] // ROWS) or 1)
    nbytes = summary["sequences"] * settings.sequence_length * 4
    written = stage.map(OUTPUT, write_sequences, tokens, plan, settings, over=parts, total=nbytes)
    logs = stage.work / OUTPUT / "dropped"
    for path in sorted((tokens / "dropped").glob("*")):
        logs.mkdir(exist_ok=True)
        path.rename(logs / path.name)
    vocabulary = vocabulary_hash(load_encoder(settings.tokenizer).vocabulary)
    return {"tally": merged(records).record(), "vocabulary": vocabulary, **summary}, written


def tokenize_unit(unit: Unit, number: int, folder: Path, settings: PackSettings) -> Record:
    """Every document of a unit as tokens ending in end-of-text: a file of numbers, and length and language of each."""
    encoder = load_encoder(settings.tokenizer)
    sentinels = find_sentinels(encoder.vocabulary) if settings.fim_rate else None
    lengths: list[int] = []
    languages: list[int] = []
    order: list[int] = []
    names: dict[str, int] = {}
    output = UnitOutput(folder, number, unit.layout.schema, {})
    with _token_path(folder, number).open("wb") as file:
        for batch in unit.batches():
            sound, _, dropped = split_sound(batch)
            contents, spoken = (sound.rows.column(name).to_pylist() for name in ("content", "language"))
            encoded = _encode([content.decode() for content in contents], encoder, sentinels, settings)
            failed = [row for row, ids in enumerate(encoded) if ids is None]
            for content, language, ids in zip(contents, spoken, encoded, strict=True):
                if ids is None:
                    continue
                np.array(ids, np.uint32).tofile(file)
                lengths.append(len(ids))
                languages.append(names.setdefault(language or UNKNOWN, len(names)))
                order.append(xxhash.xxh64_intdigest(content, seed=settings.seed))
                output.tally.add(KEPT, language, 1, len(content))
            output.drop([*dropped, *Dropped.of(sound, dict.fromkeys(failed, "tokenizer_failed"))])
            advance(batch.rows.num_rows, batch.rows.column("content").nbytes, len(encoded) - len(failed))
    np.savez(
        folder / f"{number:05d}.npz",
        lengths=np.array(lengths, np.int64),
        languages=np.array(languages, np.int64),
        order=np.array(order, np.uint64),
    )
    return {**output.close(), "languages": list(names)}


def _encode(
    texts: list[str], encoder: Encoder, sentinels: Sentinels | None, settings: PackSettings
) -> list[list[int] | None]:
    """Each document's tokens, rearranged where its turn comes and ended; None where the tokenizer fails."""
    documents = [
        rearrange(text, sentinels, settings.fim_rate, settings.spm_rate, settings.seed) if sentinels else [Part(text)]
        for text in texts
    ]
    encoded = iter(encoder.encode([part.text for parts in documents for part in parts if not part.is_sentinel]))
    joined: list[list[int] | None] = []
    for parts in documents:
        ids: list[list[int] | None] = [
            [sentinels.ids[p.text]] if sentinels and p.is_sentinel else next(encoded) for p in parts
        ]
        whole = None if None in ids else [*(token for some in ids for token in some or ()), encoder.end]
        joined.append(whole)
    return joined


def make_plan(tokens: Path, languages: list[list[str]], settings: PackSettings, path: Path) -> Record:
    """Decide which documents go where, in what order; written to `path`. Returns the account for the manifest."""
    names = sorted({name for some in languages for name in some})
    columns: dict[str, list[np.ndarray]] = {key: [] for key in ("unit", "start", "length", "language", "order")}
    for number, some in enumerate(languages):
        with np.load(tokens / f"{number:05d}.npz") as arrays:
            lengths = arrays["lengths"]
            codes = np.array([names.index(name) for name in some] or [0])
            columns["language"].append(codes[arrays["languages"]])
            columns["order"].append(arrays["order"])
        columns["unit"].append(np.full(len(lengths), number))
        columns["start"].append(np.cumsum(lengths) - lengths)
        columns["length"].append(lengths)
    documents = {key: np.concatenate(some) for key, some in columns.items()}
    shuffled = np.argsort(documents["order"], kind="stable")
    available = np.bincount(documents["language"], weights=documents["length"], minlength=len(names))
    counts = {name: int(count) for name, count in zip(names, available, strict=True)}
    shares = mixture_weights(counts, settings.weight_of, settings.temperature)
    chosen = [np.zeros(0, np.int64)]
    for name, times in passes(counts, shares, settings.tokens).items():
        mine = shuffled[documents["language"][shuffled] == names.index(name)]
        chosen.append(repeated(mine, documents["length"][mine], times))
    generator = np.random.Generator(np.random.PCG64(settings.seed))
    taken = generator.permutation(np.concatenate(chosen))
    pieces: dict[str, Any] = _place(documents, taken, settings.sequence_length, generator)
    np.savez(path, **pieces)
    sequences = len(pieces["ends"])
    used = int(pieces["length"].sum())
    mixture = np.bincount(documents["language"][taken], weights=documents["length"][taken], minlength=len(names))
    return {
        "sequences": sequences,
        "languages": names,
        "tokens": used,
        "padding_fraction": 1 - used / (sequences * settings.sequence_length) if sequences else 0.0,
        "documents": len(taken),
        "documents_cut": int(np.sum(documents["length"][taken] > settings.sequence_length)),
        "tokens_by_language": {name: int(count) for name, count in zip(names, mixture, strict=True)},
    }


def _place(
    documents: dict[str, np.ndarray], taken: np.ndarray, capacity: int, generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """The pieces in the order of their sequences, which are shuffled; `ends` is where each sequence's pieces end."""
    parts: dict[str, list[np.ndarray]] = {key: [] for key in ("unit", "start", "length", "language", "sequence")}
    made = 0
    for first in range(0, len(taken), WINDOW):
        window = taken[first : first + WINDOW]
        document, start, length = cut(documents["length"][window], capacity)
        sequence = best_fit(length, capacity) + made
        made = int(sequence.max(initial=made - 1)) + 1
        parts["unit"].append(documents["unit"][window][document])
        parts["start"].append(documents["start"][window][document] + start)
        parts["length"].append(length)
        parts["language"].append(documents["language"][window][document])
        parts["sequence"].append(sequence)
    pieces = {key: np.concatenate([np.zeros(0, np.int64), *some]) for key, some in parts.items()}
    sequence = generator.permutation(made)[pieces.pop("sequence")]
    order = np.argsort(sequence, kind="stable")
    ends = np.cumsum(np.bincount(sequence, minlength=made))
    return {**{key: some[order] for key, some in pieces.items()}, "ends": ends}


def write_sequences(part: int, number: int, folder: Path, tokens: Path, plan: Path, settings: PackSettings) -> Record:
    """Write one shard of sequences from the tokens of the units."""
    padding = load_encoder(settings.tokenizer).padding
    with np.load(plan) as arrays:
        unit, start, length, language, ends = (arrays[key] for key in ("unit", "start", "length", "language", "ends"))
    opened = lru_cache(maxsize=64)(lambda index: _token_path(tokens, index).open("rb"))
    writer = ShardWriter(folder, f"part-{number:05d}.parquet", PACKED)
    for sequence in range(part * ROWS, min((part + 1) * ROWS, len(ends))):
        row = np.full(settings.sequence_length, padding, np.int32)
        mine = range(int(ends[sequence - 1]) if sequence else 0, int(ends[sequence]))
        filled = 0
        for piece in mine:
            file = opened(int(unit[piece]))
            file.seek(int(start[piece]) * 4)
            row[filled : filled + length[piece]] = np.fromfile(file, np.uint32, int(length[piece]))
            filled += int(length[piece])
        columns = [row, *(some[mine.start : mine.stop].astype(np.int32) for some in (length, language))]
        writer.write(pa.RecordBatch.from_arrays([pa.array([column]) for column in columns], schema=PACKED))
        advance(len(mine), settings.sequence_length * 4, len(mine))
    return {"shards": [writer.close()]}


def _token_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.tokens"
