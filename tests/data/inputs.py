"""Small made-up inputs: source text that is never twice the same, and tables of it."""

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

WORDS = [
    f"{verb}_{noun}" for verb in ("load", "save", "make", "find", "drop") for noun in ("row", "node", "key", "path")
]


def code(seed: int, lines: int = 30) -> str:
    """A Python file of its own for each seed, a tenth of it comments."""
    generator = random.Random(seed)
    body = ["# " + " ".join(generator.choices(WORDS, k=5)) for _ in range(lines // 10 + 1)]
    for _ in range(lines):
        left, right = generator.choices(WORDS, k=2)
        body.append(f"    {left}_{generator.randrange(999)} = {right}({generator.randrange(9999)}, {seed})")
    return "\n".join(body) + "\n"


def edited(text: str, share: float, seed: int) -> str:
    """`text` with that share of its lines replaced."""
    generator = random.Random(seed)
    other = code(seed + 10_000).split("\n")
    return "\n".join(generator.choice(other) if generator.random() < share else line for line in text.split("\n"))


def row(seed: int, **values: object) -> dict:
    """A row that passes every filter."""
    return {
        "repo": f"owner/repo{seed % 7}",
        "path": f"src/file{seed}.py",
        "language": "python",
        "licenses": ["MIT"],
        "stars": seed % 5,
        "content": code(seed),
    } | values


def write(
    folder: Path, rows: list[dict], name: str = "data.parquet", row_group: int = 10, **types: pa.DataType
) -> Path:
    """A Parquet file of the rows in `folder`, in small row groups; `types` overrides what Arrow infers."""
    folder.mkdir(parents=True, exist_ok=True)
    names = dict.fromkeys(name for one in rows for name in one)
    columns = {name: pa.array([one.get(name) for one in rows], types.get(name)) for name in names}
    pq.write_table(pa.table(columns), folder / name, row_group_size=row_group)
    return folder


def read(folder: Path, pattern: str = "*.parquet") -> list[dict]:
    """All rows of the shards of a folder."""
    return [one for path in sorted(folder.glob(pattern)) for one in pq.ParquetFile(path).read().to_pylist()]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, by its path there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
