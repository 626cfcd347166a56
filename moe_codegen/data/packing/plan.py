"""Which documents are taken and in which sequence each of their pieces lies: one process, some fifty bytes a piece."""

from pathlib import Path

import numpy as np

from moe_codegen.data.packing.best_fit import best_fit
from moe_codegen.data.packing.mixture import mixture_weights, passes, repeated
from moe_codegen.data.packing.settings import PackSettings
from moe_codegen.data.passes.tally import Record

WINDOW = 1 << 17  # documents packed together: the plan's memory, and how far a best fit may look
Columns = dict[str, np.ndarray]


def make_plan(tokens: Path, languages: list[list[str]], settings: PackSettings, folder: Path) -> Record:
    """Decide which documents go where, in what order; returns the account for the manifest.

    `folder` holds a file for each column of the plan, so that a worker maps what it needs of them and reads no more;
    and for each unit which of its documents are taken.
    """
    names = sorted({name for some in languages for name in some})
    documents, pieces = _load(tokens, languages, names)
    generator = np.random.Generator(np.random.PCG64(settings.seed))
    taken = generator.permutation(_chosen(documents, names, settings))
    placed = _place(documents, pieces, taken, settings.sequence_length, generator)
    folder.mkdir(exist_ok=True)
    for name, column in placed.items():
        np.save(folder / f"{name}.npy", column)
    is_taken = np.zeros(len(documents["unit"]), bool)
    is_taken[taken] = True
    ends = np.cumsum(np.bincount(documents["unit"], minlength=len(languages)))
    for number, of_unit in enumerate(np.split(is_taken, ends[:-1])):
        np.save(folder / f"taken-{number:05d}.npy", of_unit)
    mixture, unused = (
        np.bincount(documents["language"][some], weights=documents["length"][some], minlength=len(names))
        for some in (taken, ~is_taken)
    )
    sequences, used = len(placed["ends"]), int(placed["length"].sum())
    return {
        "sequences": sequences,
        "languages": names,
        "tokens": used,
        "padding_fraction": 1 - used / (sequences * settings.sequence_length) if sequences else 0.0,
        "documents": len(taken),
        "documents_cut": int(np.sum(documents["pieces"][taken] > 1)),
        "tokens_by_language": {name: int(count) for name, count in zip(names, mixture, strict=True)},
        "unused_tokens": {name: int(count) for name, count in zip(names, unused, strict=True) if count},
    }


def _chosen(documents: Columns, names: list[str], settings: PackSettings) -> np.ndarray:
    """The documents of the mixture, one after the other as often as each is taken."""
    shuffled = np.argsort(documents["order"], kind="stable")
    available = np.bincount(documents["language"], weights=documents["length"], minlength=len(names))
    counts = {name: int(count) for name, count in zip(names, available, strict=True)}
    shares = mixture_weights(counts, settings.weight_of, settings.temperature)
    chosen = [np.zeros(0, np.int64)]
    for name, times in passes(counts, shares, settings.tokens).items():
        mine = shuffled[documents["language"][shuffled] == names.index(name)]
        chosen.append(repeated(mine, documents["length"][mine], times))
    return np.concatenate(chosen)


def _load(tokens: Path, languages: list[list[str]], names: list[str]) -> tuple[Columns, Columns]:
    """What the units' documents and their pieces are; a document's pieces lie one after the other from `first` on."""
    documents: dict[str, list[np.ndarray]] = {key: [] for key in ("unit", "pieces", "language", "order")}
    pieces: dict[str, list[np.ndarray]] = {key: [] for key in ("start", "length")}
    for number, some in enumerate(languages):
        with np.load(tokens / f"{number:05d}.npz") as arrays:
            codes = np.array([names.index(name) for name in some] or [0])
            documents["unit"].append(np.full(len(arrays["pieces"]), number))
            documents["pieces"].append(arrays["pieces"])
            documents["language"].append(codes[arrays["languages"]])
            documents["order"].append(arrays["order"])
            pieces["start"].append(np.cumsum(arrays["lengths"]) - arrays["lengths"])
            pieces["length"].append(arrays["lengths"])
    of_documents = {key: np.concatenate(some) for key, some in documents.items()}
    of_pieces = {key: np.concatenate(some) for key, some in pieces.items()}
    ends = np.cumsum(of_documents["pieces"])
    of_documents["first"] = ends - of_documents["pieces"]
    before = np.concatenate([[0], np.cumsum(of_pieces["length"])])
    of_documents["length"] = before[ends] - before[of_documents["first"]]
    return of_documents, of_pieces


def _place(
    documents: Columns, pieces: Columns, taken: np.ndarray, capacity: int, generator: np.random.Generator
) -> Columns:
    """The pieces in the order of their sequences, which are shuffled; `ends` is where each sequence's pieces end."""
    parts: dict[str, list[np.ndarray]] = {key: [] for key in ("unit", "start", "length", "language", "sequence")}
    made = 0
    for begin in range(0, len(taken), WINDOW):
        window = taken[begin : begin + WINDOW]
        counts = documents["pieces"][window]
        document = np.repeat(window, counts)
        piece = np.arange(len(document)) + np.repeat(documents["first"][window] - np.cumsum(counts) + counts, counts)
        length = pieces["length"][piece]
        sequence = best_fit(length, capacity) + made
        made = int(sequence.max(initial=made - 1)) + 1
        parts["unit"].append(documents["unit"][document])
        parts["start"].append(pieces["start"][piece])
        parts["length"].append(length)
        parts["language"].append(documents["language"][document])
        parts["sequence"].append(sequence)
    columns = {key: np.concatenate([np.zeros(0, np.int64), *some]) for key, some in parts.items()}
    sequence = generator.permutation(made)[columns.pop("sequence")]
    order = np.argsort(sequence, kind="stable")
    ends = np.cumsum(np.bincount(sequence))
    return {**{key: some[order] for key, some in columns.items()}, "ends": ends}
