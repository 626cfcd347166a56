"""The data of the study: cleaned, deduplicated, split by repository, tokenised and packed by `moe_codegen.data`."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from benchmarks.study.protocol import LANGUAGES, Scale
from moe_codegen.data import (
    CleanSettings,
    DedupSettings,
    PackSettings,
    Plan,
    SourceSettings,
    SplitSettings,
    TokenizerSettings,
    open_source,
    pack,
    prepare,
)
from moe_codegen.errors import SourceError
from moe_codegen.metrics import Document

HELD_OUT = 0.5  # of the repositories: a language of the corpus has only some twenty, and intervals need ten
BEGINNING = 2048  # characters of a test file, so that one long file is not a language's result
COLUMNS = ["repo", "path", "language", "content"]


class StudyData:
    """Folders below `folder`: the tokenizer, packed sequences of each language, and the test files.

    Attributes:
        tokenizer: folder of the tokenizer.
        packed: language -> folder of packed sequences; there are about as many of each.
        test: the file of test files.

    Raises:
        SourceError: `corpus` lacks a language.
    """

    def __init__(self, corpus: Path, folder: Path, scale: Scale, num_proc: int) -> None:
        if missing := [name for name in LANGUAGES if not (corpus / f"{name}.parquet").is_file()]:
            raise SourceError(
                f"{corpus} holds no {', '.join(f'{name}.parquet' for name in missing)}; the study compares "
                f"{', '.join(LANGUAGES)}, and needs a file of each, as `moe-codegen data corpus` writes them"
            )
        steps = {
            "clean": CleanSettings(languages=LANGUAGES),
            "dedup": DedupSettings(),
            "split": SplitSettings(validation=HELD_OUT),
            "tokenizer": TokenizerSettings(vocabulary=scale.vocabulary, sentinels="santacoder", max_bytes=20_000_000),
        }
        prepare(Plan(str(corpus), SourceSettings(), steps, report=False), folder, num_proc=num_proc)
        self.tokenizer = folder / "4-tokenizer"
        self._train = {language: folder / "train" / f"{language}.parquet" for language in LANGUAGES}
        self.packed = {language: folder / "packed" / language for language in LANGUAGES}
        # Left to right only, as the loss is measured.
        settings = PackSettings(str(self.tokenizer), sequence_length=scale.sequence_length, fim_rate=0.0)
        for language, file in self._train.items():
            if not file.exists():
                rows = in_turn(rows_by_language(folder / "3-split" / "train")[language])
                write_rows(_up_to(rows, scale.train_bytes), file)
            pack(open_source(file), self.packed[language], settings, num_proc=num_proc)
        self.test = folder / "test" / "files.parquet"
        if not self.test.exists():
            held_out = rows_by_language(folder / "3-split" / "validation")
            chosen = [row for language in LANGUAGES for row in in_turn(held_out[language])[: scale.test_files]]
            write_rows([_beginning(row) for row in chosen], self.test)

    def test_documents(self) -> list[Document]:
        """The test files, those of a language together."""
        rows = pq.read_table(self.test).to_pylist()
        names = [f"{number}: {row['repo']}/{row['path']}" for number, row in enumerate(rows)]
        return [
            Document(name, row["repo"], row["language"], row["content"]) for name, row in zip(names, rows, strict=True)
        ]

    def router_texts(self, experts: Sequence[str], files: int = 64) -> dict[str, list[str]]:
        """Expert -> the beginnings of some training files it is good at, for a router to tell the experts apart by.

        A language's expert is good at its language, and the base at all alike.
        """
        texts = {
            language: [_beginning(row)["content"] for row in in_turn(rows_by_language(file)[language])[:files]]
            for language, file in self._train.items()
        }
        of_all = [text for some in zip(*texts.values(), strict=False) for text in some][:files]
        return {expert: texts.get(expert, of_all) for expert in experts}


def rows_by_language(source: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of a folder or file that `data split` wrote, in its order."""
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in pq.read_table(source, columns=COLUMNS).to_pylist():
        rows[row["language"]].append(row)
    return rows


def in_turn(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One file of each repository, then a second of each that has one, and so on, in an order the contents fix."""
    seen: dict[str, int] = defaultdict(int)
    turns = []
    for order, row in sorted(
        ((xxhash.xxh64_intdigest(row["content"].encode()), row) for row in rows), key=lambda one: one[0]
    ):
        seen[row["repo"]] += 1
        turns.append((seen[row["repo"]], order, row))
    return [row for *_, row in sorted(turns, key=lambda one: one[:2])]


def write_rows(rows: list[dict[str, Any]], file: Path) -> None:
    """Write rows to `file`, which is there only when it is whole."""
    file.parent.mkdir(exist_ok=True)
    part = file.with_suffix(".part")
    pq.write_table(pa.Table.from_pylist(rows), part)
    part.replace(file)


def _up_to(rows: list[dict[str, Any]], nbytes: int) -> list[dict[str, Any]]:
    ends = itertools.accumulate(len(row["content"].encode()) for row in rows)
    return [row for row, end in zip(rows, ends, strict=True) if end <= nbytes]


def _beginning(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "content": row["content"][:BEGINNING]}
