"""What every verb that writes a checkpoint writes: weights, what travels with them, a record, a card, `config.json`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moe_codegen.checkpoint import CheckpointReader, Shard, StagedFolder, read_json, write_index
from moe_codegen.reporting import Progress
from moe_codegen.upcycle.execute import write_shards
from moe_codegen.upcycle.provenance import PROVENANCE_FILE, Files, origin_of, record_of, version_of
from moe_codegen.upcycle.sidecars import copy_sidecars


def write_checkpoint(
    staged: StagedFolder,
    shards: list[Shard],
    source: Path,
    *,
    record: Callable[[Files], dict[str, Any]],
    card: Callable[[dict[str, Any]], str],
    write_config: Callable[[Path], Any],
    step: str,
    progress: Progress,
    workers: int = 1,
) -> Files:
    """Write a whole checkpoint into `staged` and give it its name.

    Args:
        staged: where; shards that it has already are not written again.
        shards: the weights.
        source: the folder whose tokenizer, generation settings and licence go along.
        record: the weight files -> what `upcycle.json` says.
        card: that record -> the README.
        write_config: called with the folder, last, for without `config.json` nothing loads.
        step, progress, workers: as for `write_shards`.
    """
    with staged:
        write_shards(shards, staged, workers, progress, step)
        files = dict(sorted(staged.done.items()))
        written = record(files)
        copy_sidecars(source, staged.path)
        write_index(staged.path, shards)
        (staged.path / PROVENANCE_FILE).write_text(json.dumps(written, indent=1) + "\n")
        (staged.path / "README.md").write_text(card(written))
        write_config(staged.path)
        staged.finish()
    return files


def write_from_mixture(
    given: str | Path,
    reader: CheckpointReader,
    out: Path,
    shards: list[Shard],
    options: dict[str, Any],
    *,
    card: Callable[[dict[str, Any]], str],
    write_config: Callable[[Path], Any],
    step: str,
    progress: Progress,
) -> Files:
    """`write_checkpoint` of what is made from the one mixture in `reader`, which the user called `given`.

    Its record has that mixture's own, and a run with other `options` does not go on from a killed one.
    """
    staged = StagedFolder(out, {"source": reader.stamps(), **options, "version": version_of("moe-codegen")})
    staged.check_space(sum(shard.nbytes for shard in shards))
    own_record = reader.folder / PROVENANCE_FILE

    def record(files: Files) -> dict[str, Any]:
        before = {"source_record": read_json(own_record)} if own_record.exists() else {}
        return record_of(origin_of(given, reader.folder), options, files, **before)

    return write_checkpoint(
        staged,
        shards,
        reader.folder,
        record=record,
        card=card,
        write_config=write_config,
        step=step,
        progress=progress,
    )
