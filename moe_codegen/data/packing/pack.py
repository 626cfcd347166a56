"""`pack`: tokens in sequences of one length, documents whole where they fit, shuffled, in the proportions asked for.

A row holds `input_ids` (S of them, padded at the end) and, for each document or piece of one in it, its tokens in
`lengths` and its language in `languages`, a place in the manifest's list of names; `collate` makes a model's input of
them. Four passes: every document to tokens (parallel), one plan of all sequences (`plan.py`), the account of what it
takes and leaves (parallel), the sequences themselves (parallel).
"""

import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from moe_codegen.data.packing.pieces import Cutter
from moe_codegen.data.packing.plan import make_plan
from moe_codegen.data.packing.settings import PackSettings
from moe_codegen.data.packing.tokenizer import files_digest, load_encoder, vocabulary_hash
from moe_codegen.data.passes.output import ShardWriter, UnitOutput
from moe_codegen.data.passes.progress import advance
from moe_codegen.data.passes.stage import OUTPUT, Record, Stage, run_stage
from moe_codegen.data.passes.tally import KEPT, UNKNOWN, merged
from moe_codegen.data.reading.sources import Source, Unit
from moe_codegen.data.rows.batch import Dropped, split_sound

ROWS = 2048  # sequences a shard
PACKED = pa.schema([pa.field(name, pa.list_(pa.int32())) for name in ("input_ids", "lengths", "languages")])


def pack(source: Source, out: str | Path, settings: PackSettings, *, num_proc: int = 1, quiet: bool = True) -> Record:
    """Write packed sequences of `source` to `out`; the manifest says how much is padding and what the mixture is.

    Raises `TokenizerError` for a tokenizer that is missing or lacks sentinels, `ConfigError` for impossible settings.
    """
    check_tokenizer(settings)
    contents = {"tokenizer": files_digest(settings.tokenizer)}
    return run_stage("pack", source, out, settings, _pack, contents=contents, num_proc=num_proc, quiet=quiet)


def check_tokenizer(settings: PackSettings) -> None:
    """Raises `TokenizerError` for a tokenizer that is missing, or that lacks the sentinels that are asked for."""
    Cutter.of(load_encoder(settings.tokenizer), settings)


def _pack(stage: Stage) -> tuple[Record, list[Record]]:
    settings: PackSettings = stage.settings
    tokens, plan = stage.work / "tokens", stage.work / "plan"
    languages = [record["languages"] for record in stage.map("tokens", tokenize_unit, settings)]
    summary = make_plan(tokens, languages, settings, plan)
    _warn_of_unused(summary, settings)
    tally = merged(stage.map("account", account_unit, tokens, plan)).record()
    parts = range(-(-summary["sequences"] // ROWS) or 1)
    nbytes = summary["sequences"] * settings.sequence_length * 4
    written = stage.map(OUTPUT, write_sequences, tokens, plan, settings, over=parts, total=nbytes)
    logs = stage.work / OUTPUT / "dropped"
    for path in sorted((stage.work / "account" / "dropped").glob("*")):
        logs.mkdir(exist_ok=True)
        path.rename(logs / path.name)
    vocabulary = vocabulary_hash(load_encoder(settings.tokenizer).vocabulary)
    return {"tally": tally, "vocabulary": vocabulary, **summary}, written


def _warn_of_unused(summary: Record, settings: PackSettings) -> None:
    """Say how much of a mixture's languages is left out for the sake of its proportions, and not on request."""
    asked = set(settings.weight_of) or set(summary["languages"])
    unused = {name: count for name, count in summary["unused_tokens"].items() if name in asked}
    if settings.tokens is not None or not unused:
        return
    available = {name: summary["tokens_by_language"][name] + unused.get(name, 0) for name in asked}
    shares = ", ".join(f"{name} {count / available[name]:.0%}" for name, count in sorted(unused.items()))
    warnings.warn(
        f"{sum(unused.values()) / sum(available.values()):.0%} of the tokens are left out ({shares}): in these "
        f"proportions {', '.join(sorted(asked - set(unused)))} would have to be repeated; give tokens to repeat "
        "documents, or other weights or temperature",
        stacklevel=2,
    )


def tokenize_unit(unit: Unit, number: int, folder: Path, settings: PackSettings) -> Record:
    """Every document of a unit as pieces of tokens, in a file of numbers.

    Beside it the length of each piece, and of each document how many pieces it has, its row, its language and its
    place in a random order.
    """
    cutter = Cutter.of(load_encoder(settings.tokenizer), settings)
    columns: dict[str, list[int]] = {name: [] for name in ("lengths", "pieces", "rows", "languages", "order")}
    names: dict[str, int] = {}
    first = 0
    with _token_path(folder, number).open("wb") as file:
        for batch in unit.batches():
            sound, numbers, _ = split_sound(batch)
            contents, spoken = (sound.rows.column(name).to_pylist() for name in ("content", "language"))
            texts = [content.decode() for content in contents]
            encoded = cutter.encoder.encode(texts)
            rows = zip((first + numbers).tolist(), contents, texts, spoken, encoded, strict=True)
            for row, content, text, language, ids in rows:
                if ids is None:
                    continue
                pieces = cutter.pieces(text, ids)
                np.array([token for piece in pieces for token in piece], np.uint32).tofile(file)
                columns["lengths"] += map(len, pieces)
                columns["pieces"].append(len(pieces))
                columns["rows"].append(row)
                columns["languages"].append(names.setdefault(language or UNKNOWN, len(names)))
                columns["order"].append(xxhash.xxh64_intdigest(content, seed=settings.seed))
            first += batch.rows.num_rows
            advance(batch.rows.num_rows, batch.rows.column("content").nbytes, len(encoded) - encoded.count(None))
    arrays: dict[str, Any] = {
        name: np.array(some, np.uint64 if name == "order" else np.int64) for name, some in columns.items()
    }
    np.savez(folder / f"{number:05d}.npz", **arrays)
    return {"languages": list(names)}


def account_unit(unit: Unit, number: int, folder: Path, tokens: Path, plan: Path) -> Record:
    """Count a unit's documents that the plan takes, once each; count and log the others, and for what."""
    with np.load(tokens / f"{number:05d}.npz") as arrays:
        encoded = arrays["rows"]
    taken = encoded[np.load(plan / f"taken-{number:05d}.npy")]
    output = UnitOutput(folder, number, unit.layout.schema, {})
    first = 0
    for batch in unit.batches():
        sound, numbers, dropped = split_sound(batch)
        rows = first + numbers
        is_taken, is_encoded = np.isin(rows, taken), np.isin(rows, encoded)
        kept = sound.rows.filter(pa.array(is_taken))
        for language, content in zip(kept.column("language").to_pylist(), kept.column("content"), strict=True):
            output.tally.add(KEPT, language, 1, len(content.as_py()))
        reasons = {
            **dict.fromkeys(np.flatnonzero(is_encoded & ~is_taken).tolist(), "beyond_mixture"),
            **dict.fromkeys(np.flatnonzero(~is_encoded).tolist(), "tokenizer_failed"),
        }
        output.drop([*dropped, *Dropped.of(sound, reasons)])
        first += batch.rows.num_rows
        advance(batch.rows.num_rows, batch.rows.column("content").nbytes, kept.num_rows)
    return output.close()


def write_sequences(part: int, number: int, folder: Path, tokens: Path, plan: Path, settings: PackSettings) -> Record:
    """Write one shard of sequences from the tokens of the units."""
    padding = load_encoder(settings.tokenizer).padding
    unit, start, length, language, ends = (
        np.load(plan / f"{name}.npy", mmap_mode="r") for name in ("unit", "start", "length", "language", "ends")
    )
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
