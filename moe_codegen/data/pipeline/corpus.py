"""A corpus of real code from public source packages, so that a figure measured on one can be measured again.

Packages are fetched with their registries' own clients (`pip download`, `npm pack`, `apt-get source`) as they are set
up on this machine, unpacked and never built or run; then cleaned, deduplicated, and capped by package and language.
"""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from moe_codegen.data.deduplication.dedup import dedup
from moe_codegen.data.filtering.clean import clean
from moe_codegen.data.filtering.filters import CleanSettings
from moe_codegen.data.passes.stage import Record
from moe_codegen.data.reading.sources import open_source
from moe_codegen.errors import ConfigError, OutputError, SourceError

COLUMNS = ("repo", "path", "content")
_FETCH = {
    # A wheel is unpacked and not built: no code of the package runs.
    "pypi": [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--dest",
        ".",
        "{}",
    ],
    "npm": ["npm", "pack", "--silent", "--ignore-scripts", "{}"],
    "debian": ["apt-get", "source", "--download-only", "--quiet", "{}"],
}
_ARCHIVES = (".whl", ".zip", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2")


@dataclass(frozen=True)
class CorpusSettings:
    """How much of each language, and how much of that from one package."""

    megabytes: float = 50.0
    package_share: float = 0.2


def read_packages(path: str | Path) -> dict[str, list[str]]:
    """Packages by kind, from TOML: `pypi = ["django==5.2"]`, `npm = [...]`, `debian = [...]`, `folders = [...]`.

    `folders` are checkouts that are there already. Raises `ConfigError` for an unknown kind or an unreadable file.
    """
    try:
        named = tomllib.loads(Path(path).read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}") from error
    unknown = sorted(set(named) - set(_FETCH) - {"folders"})
    if unknown:
        raise ConfigError(f"unknown kind `{unknown[0]}` in {path}; the kinds are {', '.join(_FETCH)}, folders")
    return named


def build_corpus(
    packages: dict[str, list[str]], out: str | Path, settings: CorpusSettings, *, num_proc: int = 1, quiet: bool = True
) -> dict[str, Record]:
    """Write `LANGUAGE.parquet` with the columns repo, path and content to `out`; returns files and bytes by language.

    Packages already in `out/packages` are not fetched again. Raises `SourceError` where a client fails.
    """
    out = Path(out)
    checkouts = out / "packages"
    checkouts.mkdir(parents=True, exist_ok=True)
    for folder in packages.get("folders", ()):
        if not (checkouts / Path(folder).name).exists():
            (checkouts / Path(folder).name).symlink_to(Path(folder).resolve(), target_is_directory=True)
    for kind, names in packages.items():
        for name in names if kind in _FETCH else ():
            _fetch(kind, name, checkouts)
    clean(open_source(checkouts), out / "clean", CleanSettings(), num_proc=num_proc, quiet=quiet)
    dedup(open_source(out / "clean"), out / "dedup", num_proc=num_proc, quiet=quiet)
    return _cap(out / "dedup", out, settings)


def _fetch(kind: str, name: str, checkouts: Path) -> None:
    """Fetch and unpack one package into a folder of its name, which exists only once it is whole."""
    unversioned = re.split("(?<=.)[=@]", name)[0]  # django==5.2, zlib=1:1.3, eslint@9.1, @types/node@20
    target = checkouts / f"{kind}-{unversioned.removeprefix('@').replace('/', '-')}"
    if target.exists():
        return
    partial = target.with_name(f".{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    command = [part.format(name) for part in _FETCH[kind]]
    try:
        subprocess.run(command, cwd=partial, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise SourceError(f"{command[0]} is not installed, which fetches {kind} packages") from error
    except subprocess.CalledProcessError as error:
        raise SourceError(f"`{' '.join(command)}` failed: {error.stderr.strip()[-500:]}") from error
    for archive in [path for path in sorted(partial.iterdir()) if path.name.endswith(_ARCHIVES)]:
        _unpack(archive, partial)
        archive.unlink()
    partial.rename(target)


def _unpack(archive: Path, into: Path) -> None:
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as zipped:
            zipped.extractall(into)
    else:
        with tarfile.open(archive) as tarred:
            tarred.extractall(into, filter="data")


def _cap(source: Path, out: Path, settings: CorpusSettings) -> dict[str, Record]:
    """Take files in a random order that their contents fix, until a package or the language has its share."""
    budget = settings.megabytes * 1e6
    rows: dict[str, list[tuple[int, str, str, str]]] = defaultdict(list)
    for path in sorted(source.glob("*.parquet")):
        table = pq.read_table(path, columns=["language", *COLUMNS])
        for row in table.to_pylist():
            order = xxhash.xxh64_intdigest(row["content"].encode())
            rows[row["language"]].append((order, row["repo"], row["path"], row["content"]))
    if not rows:
        raise OutputError(f"nothing of the packages was left in {source}; its dropped rows say why")
    accounts: dict[str, Record] = {}
    for language, files in sorted(rows.items()):
        taken: list[tuple[str, str, str]] = []
        used: dict[str, int] = defaultdict(int)
        for _, repo, path_in_repo, content in sorted(files):
            size = len(content.encode())
            if used[repo] + size <= settings.package_share * budget and sum(used.values()) + size <= budget:
                used[repo] += size
                taken.append((repo, path_in_repo, content))
        columns = dict(zip(COLUMNS, map(list, zip(*taken, strict=True)), strict=True)) if taken else {}
        if columns:
            pq.write_table(pa.table(columns), out / f"{language}.parquet", compression="zstd", row_group_size=1024)
            accounts[language] = {"files": len(taken), "bytes": sum(used.values())}
    return accounts
