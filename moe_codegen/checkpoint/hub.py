"""What the Hugging Face Hub is asked for: files, and the headers of weights that are not here."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from moe_codegen.errors import CheckpointError

SUBFOLDERS = "*/*"  # the same weights for other engines, or checkpoints of training


@dataclass(frozen=True)
class Snapshot:
    """A folder of the hub's cache: those files of one commit that have been downloaded so far."""

    folder: Path
    name: str
    commit: str

    @classmethod
    def at(cls, folder: Path) -> "Snapshot | None":
        """The snapshot that `folder` is; None for any other folder."""
        folder = folder.absolute()
        repository = folder.parent.parent.name
        if folder.parent.name != "snapshots" or not repository.startswith("models--"):
            return None
        return cls(folder, repository.removeprefix("models--").replace("--", "/"), folder.name)

    def header(self, file: str) -> dict[str, tuple[str, list[int]]] | None:
        """Tensor -> (dtype, shape) of a safetensors file at the hub; None where it has no such file.

        Raises:
            CheckpointError: the hub does not answer, or the header is damaged.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import EntryNotFoundError

        with _asking(f"{self.folder} lacks {file}"):
            try:
                tensors = HfApi().parse_safetensors_file_metadata(self.name, file, revision=self.commit).tensors
            except EntryNotFoundError:
                return None
        return {tensor: (info.dtype, info.shape) for tensor, info in tensors.items()}

    def fetch(self, files: list[str]) -> None:
        """Download `files`; CheckpointError where the hub does not give them."""
        fetch(self.name, self.commit, files, cache=self.folder.parents[2])


def fetch(name: str, revision: str | None, patterns: list[str], cache: Path | None = None) -> Path:
    """The snapshot of a hub id with the files that fit `patterns`; those that are not here are downloaded.

    Raises:
        CheckpointError: the hub does not give them.
    """
    from huggingface_hub import snapshot_download

    with _asking(f"{name}{f'@{revision}' if revision else ''} is not a folder here"):
        folder = snapshot_download(
            name, revision=revision, allow_patterns=patterns, ignore_patterns=SUBFOLDERS, cache_dir=cache
        )
    return Path(folder)


def commit_of(folder: Path) -> str | None:
    """The commit that a folder of the hub's cache is a snapshot of; None for any other folder."""
    snapshot = Snapshot.at(folder)
    return snapshot.commit if snapshot else None


@contextmanager
def _asking(lack: str) -> Iterator[None]:
    """Any error in here as ours, which says that for `lack` the hub was asked."""
    try:
        yield
    except Exception as error:  # the hub client's errors have no common base: network, access, spelling
        told = str(error).rstrip(".")
        raise CheckpointError(
            f"{lack}, and the hub did not give it: {told}. "
            "Check the spelling and the network; a gated model needs `hf auth login`"
        ) from error
