"""`corpus`: real code from public source packages, so that a figure measured on one can be measured again.

Packages are fetched, cleaned and deduplicated in `OUT/.work`; then a random part of each language is taken, in which no
package has more than its share.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from moe_codegen.data.deduplication.dedup import dedup
from moe_codegen.data.filtering.clean import clean
from moe_codegen.data.passes.output import UnitOutput
from moe_codegen.data.passes.progress import advance
from moe_codegen.data.passes.stage import OUTPUT, WORK, Record, Stage, run_stage
from moe_codegen.data.passes.tally import merged
from moe_codegen.data.pipeline.fetch import KINDS, fetch_packages
from moe_codegen.data.reading.settings import SourceSettings
from moe_codegen.data.reading.sources import CHECKOUTS, Source, open_source
from moe_codegen.data.rows.batch import Dropped
from moe_codegen.data.rows.schema import SCHEMA
from moe_codegen.errors import ConfigError, SourceError
from moe_codegen.settings import check_between, read_toml, setting, settings_from


@dataclass(frozen=True)
class CorpusSettings:
    """What a corpus is made of, how much of each language, and how much of that from one package."""

    pypi: tuple[str, ...] = setting((), "packages of PyPI, such as django or django==5.2")
    npm: tuple[str, ...] = setting((), "packages of npm, such as eslint or eslint@9.1")
    debian: tuple[str, ...] = setting((), "source packages of Debian, such as zlib or zlib=1:1.3")
    folders: tuple[str, ...] = setting((), "checkouts that are there already", is_path=True)
    megabytes: float = setting(50.0, "MB of text a language")
    package_share: float = setting(0.2, "most of it from one package")

    def __post_init__(self) -> None:
        check_between(self, 0, 1, "package_share")
        check_between(self, 0, math.inf, "megabytes", open_ended=True)
        names = [Path(folder).resolve().name for folder in self.folders]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigError(f"`folders` has two called {min(twice)}, which is the repository's name; rename one")


def read_corpus_settings(path: str | Path) -> CorpusSettings:
    """The settings in a TOML file, to which `folders` are relative.

    Raises `ConfigError` for what is unknown, of another type, or no TOML.
    """
    settings = settings_from(CorpusSettings, read_toml(Path(path)), str(path))
    return replace(settings, folders=tuple(str(Path(path).parent / folder) for folder in settings.folders))


def build_corpus(settings: CorpusSettings, out: str | Path, *, num_proc: int = 1, quiet: bool = True) -> Record:
    """Write `LANGUAGE.parquet`, a file a language, to `out`; returns the manifest.

    Raises `SourceError` for all packages that their clients do not give, once each has been tried; run again, it goes
    on with those.
    """
    made_of = Source(str(Path(out, WORK, "dedup")), (), SCHEMA, has_licenses=True)  # not there yet
    return run_stage("corpus", made_of, out, settings, corpus_body, num_proc=num_proc, quiet=quiet)


def corpus_body(stage: Stage) -> tuple[Record, list[Record]]:
    """Fetch, `clean`, `dedup`, and take of each language its part."""
    settings, packages = stage.settings, stage.work / "packages"
    fetch_packages({kind: getattr(settings, kind) for kind in KINDS}, packages, quiet=stage.quiet)
    for folder in map(Path, settings.folders):
        if not folder.is_dir():
            raise SourceError(f"{folder} is no folder; `folders` names checkouts")
        link = packages / folder.resolve().name
        link.unlink(missing_ok=True)
        link.symlink_to(folder.resolve(), target_is_directory=True)
    checkouts = open_source(packages, SourceSettings(layout=CHECKOUTS))  # some packages hold tables for their tests
    clean(checkouts, stage.work / "clean", num_proc=stage.num_proc, quiet=stage.quiet)
    dedup(open_source(stage.work / "clean"), stage.work / "dedup", num_proc=stage.num_proc, quiet=stage.quiet)
    left = open_source(stage.source.name)
    records = stage.map(OUTPUT, take_unit, settings, over=[left], total=left.nbytes)
    return {"tally": merged(records).record()}, records


def take_unit(source: Source, number: int, folder: Path, settings: CorpusSettings) -> Record:
    """Write what is taken of `source` to a file for each language."""
    taken = dict(_take(Path(source.name), settings))
    files = {language: f"{language}.parquet" for language in sorted(set(taken.values()))}
    output = UnitOutput(folder, number, source.schema, files)
    for batch in (batch for unit in source.units for batch in unit.batches()):
        is_taken = np.array([file in taken for file in batch.rows.column("hexsha").to_pylist()], bool)
        kept = batch.rows.filter(pa.array(is_taken))
        for language in kept.column("language").unique().to_pylist():
            output.keep(kept.filter(pc.equal(kept.column("language"), language)), language)
        left = np.flatnonzero(~is_taken).tolist()
        output.drop(Dropped.of(batch, dict.fromkeys(left, "beyond_share")))
        advance(batch.rows.num_rows, batch.rows.column("content").nbytes, kept.num_rows)
    return output.close()


def _take(folder: Path, settings: CorpusSettings) -> Iterator[tuple[str, str]]:
    """Hash and language of each file taken, in an order as random as hashes, until a package or language is full."""
    budget = settings.megabytes * 1e6
    columns = ["hexsha", "language", "repo", "size"]
    files = pa.concat_tables([pq.read_table(path, columns=columns) for path in sorted(folder.glob("*.parquet"))])
    of_language: dict[str, int] = defaultdict(int)
    of_package: dict[tuple[str, str], int] = defaultdict(int)
    for file in files.sort_by("hexsha").to_pylist():
        language, size = file["language"], file["size"]
        package = (language, file["repo"])
        if of_package[package] + size <= settings.package_share * budget and of_language[language] + size <= budget:
            of_package[package] += size
            of_language[language] += size
            yield file["hexsha"], language
