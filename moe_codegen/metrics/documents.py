"""Held-out documents as they stream by; a choice of them is made in the memory of what is chosen."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from moe_codegen.data import open_source
from moe_codegen.data.passes.tally import UNKNOWN
from moe_codegen.data.rows.batch import split_sound
from moe_codegen.errors import ConfigError
from moe_codegen.metrics.windows import Document


def stream_documents(source: str | Path) -> Iterator[Document]:
    """Every document that is more than white space, in the order of the source: anything `moe-codegen data` reads.

    A file without a repository and a path is called by its content, and is a repository of its own. Raises
    `SourceError` where there is nothing to read, `ConfigError` for a folder with a training half beside the validation.
    """
    if (Path(source) / "train").is_dir() and (Path(source) / "validation").is_dir():
        raise ConfigError(f"{source} holds training files too; give {Path(source) / 'validation'}")
    for unit in open_source(source).units:
        for batch in unit.batches():
            rows = split_sound(batch)[0].rows
            columns = (rows.column(name).to_pylist() for name in ("repo", "path", "language", "content"))
            for repository, path, language, content in zip(*columns, strict=True):
                if content.strip():
                    digest = hashlib.sha256(content).hexdigest()
                    name = f"{repository}/{path}" if repository and path else digest[:16]
                    yield Document(name, repository or name, language or UNKNOWN, content.decode())
