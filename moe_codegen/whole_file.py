"""Files that are written whole or not at all, and what is said where they cannot be written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from moe_codegen.errors import OutputError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that has the old content or the new, whenever the process is killed."""
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


@contextmanager
def writing(path: Path, advice: str = "Free some space, or give a folder that you may write to") -> Iterator[None]:
    """A context in which what cannot be written is an `OutputError` about `path`, with what to do about it."""
    try:
        yield
    except Exception as error:
        # Of a full disk safetensors has an error of its own, and tokenizers one of no kind.
        is_of_disk = isinstance(error, OSError | SafetensorError) or type(error) is Exception
        if isinstance(error, OutputError) or not is_of_disk:
            raise
        raise OutputError(f"{path} cannot be written: {error}. {advice}") from error
