"""A corpus of real code from public source packages, so that a figure measured on one can be measured again.

Packages are fetched with their registries' own clients (`pip download`, `npm pack`, `apt-get source`) as they are set
up on this machine, unpacked and never built or run; then cleaned, deduplicated, and capped by package and language.
"""

import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
import zlib
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
from moe_codegen.data.reading.settings import SourceSettings
from moe_codegen.data.reading.sources import CHECKOUTS, open_source
from moe_codegen.errors import ConfigError, OutputError, SourceError

COLUMNS = ("repo", "path", "content")
_FETCH = {  # commands that end in the name of a package
    # A wheel is unpacked and not built: no code of the package runs.
    "pypi": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest=."],
    "npm": ["npm", "pack", "--silent", "--ignore-scripts"],
    "debian": ["apt-get", "source", "--download-only", "--tar-only", "--quiet"],
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

    Packages already in `out/packages` are not fetched again. Raises `SourceError` for all those that their clients do
    not give, once each has been tried.
    """
    out = Path(out)
    checkouts = out / "packages"
    checkouts.mkdir(parents=True, exist_ok=True)
    for folder in packages.get("folders", ()):
        if not (checkouts / Path(folder).name).exists():
            (checkouts / Path(folder).name).symlink_to(Path(folder).resolve(), target_is_directory=True)
    failed = []
    wanted = [(kind, name) for kind in _FETCH for name in packages.get(kind, ())]
    for kind, name in wanted:
        try:
            _fetch(kind, name, checkouts)
        except SourceError as error:
            failed.append(str(error))
    if failed:
        advice = (
            f"{len(failed)} of {len(wanted)} packages could not be fetched; run again, or take them out of the list"
        )
        raise SourceError("\n".join([advice, *dict.fromkeys(failed)]))
    repositories = open_source(checkouts, SourceSettings(layout=CHECKOUTS))  # some packages hold tables for their tests
    clean(repositories, out / "clean", CleanSettings(), num_proc=num_proc, quiet=quiet)
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
    command = [*_FETCH[kind], name]
    try:
        subprocess.run(command, cwd=partial, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise SourceError(f"{command[0]} is not installed, which fetches {kind} packages") from error
    except subprocess.CalledProcessError as error:
        raise SourceError(f"`{' '.join(command)}` failed: {error.stderr.strip()[-300:]}") from error
    for archive in [path for path in sorted(partial.iterdir()) if path.name.endswith(_ARCHIVES)]:
        _unpack(archive, partial)
        archive.unlink()
    partial.rename(target)


def _unpack(archive: Path, into: Path) -> None:
    """The plain files of an archive; raises `SourceError` where it is damaged."""
    try:
        if archive.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(archive) as zipped:
                zipped.extractall(into)
        else:
            with tarfile.open(archive) as tarred:
                tarred.extractall(into, filter=_without_links)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise SourceError(f"{archive.name} cannot be unpacked: {error}") from error


def _without_links(member: tarfile.TarInfo, into: str) -> tarfile.TarInfo | None:
    """Links are not read later, and some that packages hold lead out of the archive."""
    return tarfile.data_filter(member, into) if member.isreg() or member.isdir() else None


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
