"""`dedup`: one file of each content, and one of each cluster of near-duplicates.

Three passes: `sign_unit` hashes every file (parallel), `find_duplicates` decides (one process, some seventy bytes a
file), `drop_unit` writes what is left (parallel). Candidates come from MinHash bands and are verified by the exact
Jaccard similarity of their shingles. A cluster keeps its best file; another of its files is dropped if it is a
near-duplicate of a kept one, so that no two kept files of a cluster are near-duplicates, and none is dropped for a
distant one.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from moe_codegen.data.deduplication.minhash import algorithm, bands, best_banding
from moe_codegen.data.deduplication.shingles import shingles
from moe_codegen.data.deduplication.signatures import ShingleFile, ShingleStore, Signatures
from moe_codegen.data.passes.output import UnitOutput
from moe_codegen.data.passes.progress import advance
from moe_codegen.data.passes.stage import OUTPUT, Record, Stage, run_stage
from moe_codegen.data.passes.tally import merged
from moe_codegen.data.reading.sources import Source, Unit
from moe_codegen.data.rows.batch import Dropped, each_text, split_sound, text_buffer
from moe_codegen.errors import ConfigError
from moe_codegen.settings import check_between, check_least, setting


@dataclass(frozen=True)
class DedupSettings:
    """What counts as the same file, and how it is looked for."""

    near: bool = setting(True, "look for near-duplicates too, not only for equal contents")
    similarity: float = setting(0.7, "Jaccard similarity of 5-grams of words from which files are near-duplicates")
    permutations: int = setting(256, "MinHash permutations")
    bands: int | None = setting(None, "bands of the signature; not given: as suits the similarity")
    rows: int | None = setting(None, "rows of a band; not given: as suits the similarity")
    min_words: int = setting(10, "files of fewer words are compared as a whole only")

    def __post_init__(self) -> None:
        check_between(self, 0, 1, "similarity")
        check_least(self, 1, "permutations", "bands", "rows")
        if (self.bands is None) != (self.rows is None):
            raise ConfigError(f"bands={self.bands}, rows={self.rows}: give both or neither")
        count, rows = self.banding
        if count * rows > self.permutations:
            asked = f"{count} bands of {rows} rows need {count * rows} permutations"
            raise ConfigError(f"{asked}, and there are {self.permutations}; raise permutations or lower bands or rows")

    @property
    def banding(self) -> tuple[int, int]:
        """Bands of the signature and rows of a band."""
        if self.bands is None or self.rows is None:
            return best_banding(self.similarity, self.permutations)
        return self.bands, self.rows


def dedup(
    source: Source, out: str | Path, settings: DedupSettings | None = None, *, num_proc: int = 1, quiet: bool = True
) -> Record:
    """Write `source` without duplicates to `out`; returns the manifest.

    Of the files that are alike the one with most stars is kept, then the longest, then the first by content hash.
    """
    return run_stage("dedup", source, out, settings or DedupSettings(), dedup_body, num_proc=num_proc, quiet=quiet)


def dedup_body(stage: Stage) -> tuple[Record, list[Record]]:
    """The three passes of `dedup`."""
    stage.map("signatures", sign_unit, stage.settings)
    signatures, verdicts = stage.work / "signatures", stage.work / "verdicts"
    names = [unit.name for unit in stage.source.units]
    clusters = find_duplicates(signatures, verdicts, names, stage.settings)
    records = stage.map(OUTPUT, drop_unit, verdicts)
    minhash = "{}, {} bands of {} rows".format(algorithm(), *stage.settings.banding)
    sizes = {str(size): count for size, count in sorted(clusters.items())}
    return {"tally": merged(records).record(), "cluster_sizes": sizes, "minhash": minhash}, records


def sign_unit(unit: Unit, number: int, folder: Path, settings: DedupSettings) -> Record:
    """Content hash, rank, MinHash bands and shingles of every file of a unit, into `folder`."""
    parts: list[Signatures] = []
    with ShingleFile(folder, number) as store:
        row = 0
        for batch in unit.batches():
            sound, numbers, _ = split_sound(batch)
            content = sound.rows.column("content")
            if sound.rows.num_rows:
                parts.append(
                    Signatures(
                        rows=row + numbers,
                        content=_content_hashes(content),
                        stars=sound.rows.column("stars").to_numpy(),
                        size=np.diff(text_buffer(content)[1]),
                        **_near_keys(content, settings, store),
                    )
                )
            row += batch.rows.num_rows
            advance(batch.rows.num_rows, content.nbytes, batch.rows.num_rows)
    Signatures.joined(parts, settings.banding[0]).save(folder, number)
    return {}


def _content_hashes(content: pa.Array) -> np.ndarray:
    """(F, 2) uint64: the 128-bit hash of each content."""
    return np.frombuffer(b"".join(map(xxhash.xxh3_128_digest, each_text(content))), np.uint64).reshape(-1, 2)


def _near_keys(content: pa.Array, settings: DedupSettings, store: ShingleFile) -> dict[str, np.ndarray]:
    if not settings.near:
        empty = np.zeros(len(content), np.int64)
        return {"bands": np.zeros((len(content), settings.banding[0]), np.uint64), "shingles": empty}
    made = shingles(content)
    counts = np.diff(made.offsets)
    store.append(made.hashes_G)
    keys = bands(made, settings.permutations, *settings.banding)
    return {"bands": keys, "shingles": np.where(made.words >= settings.min_words, counts, -counts)}


def find_duplicates(signatures: Path, verdicts: Path, names: list[str], settings: DedupSettings) -> Counter[int]:
    """Write for each unit which rows to drop and for what; returns how many clusters there are of each size.

    Files are numbered through all units; a lower rank is a better file.
    """
    loaded = [Signatures.load(signatures, number) for number in range(len(names))]
    starts = np.cumsum([0] + [len(one.rows) for one in loaded])
    everything = Signatures.joined(loaded, 0)
    order = np.lexsort(
        (everything.content[:, 1], everything.content[:, 0], -everything.size, -everything.stars)
    )  # stable: files that are equal in all of these rank in the order of the source
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    duplicate_of = _exact(everything.content, rank)
    similarity = np.full(len(rank), np.nan)  # of near-duplicates only
    if settings.near:
        store = ShingleStore(signatures, starts, everything.shingles)
        clusters = _Clusters(len(rank))
        eligible = np.flatnonzero((duplicate_of < 0) & (everything.shingles > 0))
        for band in range(settings.banding[0]):
            _join_band(
                Signatures.band(signatures, len(names), band), eligible, rank, clusters, store, settings.similarity
            )
        _settle(clusters, rank, store, settings.similarity, duplicate_of, similarity)
    representative = np.where(duplicate_of < 0, np.arange(len(rank)), duplicate_of)
    while (representative != representative[representative]).any():  # an equal file of one that was dropped in turn
        representative = representative[representative]
    _write_verdicts(verdicts, names, loaded, starts, duplicate_of, similarity)
    return Counter(np.bincount(representative, minlength=1)[np.unique(representative)].tolist())


def _exact(content: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """For each file the best one of the same content; -1 for the best one itself."""
    order = np.lexsort((rank, content[:, 1], content[:, 0]))
    ordered = content[order]
    begins = np.ones(len(order), bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    best = order[np.flatnonzero(begins)][np.cumsum(begins) - 1] if len(order) else order
    duplicate_of = np.full(len(order), -1, np.int64)
    duplicate_of[order[~begins]] = best[~begins]
    return duplicate_of


class _Clusters:
    """Disjoint sets of files; the root of a set is its lowest number."""

    def __init__(self, files: int) -> None:
        self.parent = np.arange(files)

    def root(self, file: int) -> int:
        while (above := int(self.parent[file])) != file:
            self.parent[file] = self.parent[above]
            file = above
        return file

    def join(self, one: int, two: int) -> None:
        low, high = sorted((self.root(one), self.root(two)))
        self.parent[high] = low

    def members(self) -> dict[int, list[int]]:
        """The sets of more than one file, by root."""
        found: dict[int, list[int]] = defaultdict(list)
        for file in np.flatnonzero(self.parent != np.arange(len(self.parent))).tolist():
            root = self.root(file)
            found[root] = found[root] or [root]
            found[root].append(file)
        return found


def _join_band(
    keys: np.ndarray,
    eligible: np.ndarray,
    rank: np.ndarray,
    clusters: _Clusters,
    store: ShingleStore,
    threshold: float,
) -> None:
    """Compare every file with the best one of its bucket: linear in its size, and other bands see the rest."""
    order = eligible[np.lexsort((rank[eligible], keys[eligible]))]
    begins = np.ones(len(order), bool)
    begins[1:] = keys[order[1:]] != keys[order[:-1]]
    leaders = order[np.flatnonzero(begins)][np.cumsum(begins) - 1] if len(order) else order
    for leader, file in zip(leaders[~begins].tolist(), order[~begins].tolist(), strict=True):
        if clusters.root(leader) != clusters.root(file) and store.jaccard(leader, file) >= threshold:
            clusters.join(leader, file)


def _settle(
    clusters: _Clusters,
    rank: np.ndarray,
    store: ShingleStore,
    threshold: float,
    duplicate_of: np.ndarray,
    similarity: np.ndarray,
) -> None:
    """In each cluster, from the best file on: dropped for the first kept one that is near, else kept."""
    for members in clusters.members().values():
        kept: list[int] = []
        for file in sorted(members, key=lambda member: rank[member]):
            for best in kept:
                if (near := store.jaccard(best, file)) >= threshold:
                    duplicate_of[file], similarity[file] = best, near
                    break
            else:
                kept.append(file)


def _write_verdicts(
    verdicts: Path,
    names: list[str],
    loaded: list[Signatures],
    starts: np.ndarray,
    duplicate_of: np.ndarray,
    similarity: np.ndarray,
) -> None:
    verdicts.mkdir(exist_ok=True)
    rows = np.concatenate([one.rows for one in loaded])
    for number, one in enumerate(loaded):
        mine = np.arange(starts[number], starts[number + 1])
        dropped = mine[duplicate_of[mine] >= 0]
        best = duplicate_of[dropped]
        np.savez(
            verdicts / f"{number:05d}.npz",
            rows=one.rows[dropped - starts[number]],
            similarity=similarity[dropped],
            of_unit=np.array(names)[np.searchsorted(starts, best, side="right") - 1],
            of_row=rows[best],
        )


def drop_unit(unit: Unit, number: int, folder: Path, verdicts: Path) -> Record:
    """Write the rows of a unit that `find_duplicates` did not drop."""
    with np.load(verdicts / f"{number:05d}.npz") as verdict:
        doomed = {
            int(row): {"duplicate_of": f"{unit_name} row {of_row}"}
            | ({} if np.isnan(near) else {"similarity": float(near)})
            for row, near, unit_name, of_row in zip(
                verdict["rows"], verdict["similarity"], verdict["of_unit"], verdict["of_row"], strict=True
            )
        }
    output = UnitOutput(folder, number, unit.layout.schema)
    first = 0
    for batch in unit.batches():
        sound, numbers, dropped = split_sound(batch)
        details = {place: doomed[row] for place, row in enumerate((first + numbers).tolist()) if row in doomed}
        reasons = {
            place: "near_duplicate" if "similarity" in detail else "exact_duplicate"
            for place, detail in details.items()
        }
        kept = sound.rows.filter(~np.isin(np.arange(sound.rows.num_rows), list(reasons)))
        output.keep(kept)
        output.drop([*dropped, *Dropped.of(sound, reasons, details)])
        first += batch.rows.num_rows
        advance(batch.rows.num_rows, batch.rows.column("content").nbytes, kept.num_rows)
    return output.close()
