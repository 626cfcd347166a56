"""Source packages of public registries, fetched with the registries' own clients, as folders side by side.

The clients (`pip download`, `npm pack`, `apt-get source`) run as they are set up on this machine; what they bring is
unpacked and never built or run.
"""

import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from moe_codegen.errors import SourceError

_FETCH = {  # commands that end in the name of a package
    # A wheel is unpacked and not built: no code of the package runs.
    "pypi": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest=."],
    "npm": ["npm", "pack", "--silent", "--ignore-scripts"],
    "debian": ["apt-get", "source", "--download-only", "--tar-only", "--quiet"],
}
KINDS = tuple(_FETCH)
_ARCHIVES = (".whl", ".zip", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2")


def fetch_packages(packages: Mapping[str, Sequence[str]], folder: Path, *, quiet: bool = True) -> None:
    """Fetch packages, named by their kind, into folders `KIND-NAME` of `folder`; those that are there stay.

    Raises `SourceError` for all those that their clients do not give, once each has been tried.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(kind, name) for kind, names in packages.items() for name in names]
    failed: list[str] = []
    for kind, name in track(wanted, "corpus: packages", console=Console(stderr=True), disable=quiet):
        try:
            _fetch(kind, name, folder)
        except SourceError as error:
            failed.append(str(error))
    if failed:
        advice = (
            f"{len(failed)} of {len(wanted)} packages could not be fetched; run again (what was fetched is kept), or "
            "take them out of the list"
        )
        raise SourceError("\n".join([advice, *dict.fromkeys(failed)]))


def _fetch(kind: str, name: str, folder: Path) -> None:
    """Fetch and unpack one package into a folder of its name, which exists only once it is whole."""
    unversioned = re.split("(?<=.)[=@]", name)[0]  # django==5.2, zlib=1:1.3, eslint@9.1, @types/node@20
    target = folder / f"{kind}-{unversioned.removeprefix('@').replace('/', '-')}"
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
        raise SourceError(f"`{' '.join(command)}` failed: {_what_it_said(error)}") from error
    for archive in [path for path in sorted(partial.iterdir()) if path.name.endswith(_ARCHIVES)]:
        _unpack(archive, partial)
        archive.unlink()
    partial.rename(target)


def _what_it_said(error: subprocess.CalledProcessError) -> str:
    """The end of what a client wrote, where it wrote errors; its exit status where it said nothing."""
    return (error.stderr or error.stdout or "").strip()[-300:] or f"exit status {error.returncode}"


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
