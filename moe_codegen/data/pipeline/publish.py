"""`publish`: the shards that a folder's dataset card names, and the card, as a dataset on the Hub."""

import glob
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from moe_codegen.data.passes.card import CARD
from moe_codegen.errors import ConfigError, OutputError, SourceError


@dataclass(frozen=True)
class Publication:
    """What goes where: `files` of `folder`, relative to it, their bytes in all, and the card's `patterns` of shards."""

    folder: Path
    repo_id: str
    private: bool
    files: tuple[str, ...]
    nbytes: int
    patterns: tuple[str, ...]

    def names(self, path: str) -> bool:
        """Whether the card names a file; `*` stands for no folder."""
        where = PurePosixPath(path)
        parts = [PurePosixPath(pattern) for pattern in self.patterns]
        return any(where.parent == pattern.parent and where.match(pattern.name) for pattern in parts)


def plan_publication(folder: str | Path, repo_id: str, *, private: bool = True) -> Publication:
    """What `publish` would upload: nothing is asked of the Hub.

    Raises `SourceError` for a folder without card or shards, `ConfigError` for a name that the Hub would refuse.
    """
    from huggingface_hub import DatasetCard
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    folder = Path(folder)
    if not (folder / CARD).is_file():
        raise SourceError(f"{folder} has no {CARD}; give the OUT of a verb that writes shards, or of `data prepare`")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConfigError(f"{repo_id} is no name of a dataset: {error}") from error
    if "/" not in repo_id:
        raise ConfigError(f"{repo_id} should be of the form owner/name, with your account or organisation as owner")
    configs = DatasetCard.load(folder / CARD).data.to_dict().get("configs", [])
    patterns = [part["path"] for config in configs for part in config["data_files"]]
    shards = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    if not shards:
        raise SourceError(f"{folder} has none of the shards that its {CARD} names: {', '.join(patterns) or 'none'}")
    files = [folder / CARD, *shards]
    names = tuple(path.relative_to(folder).as_posix() for path in files)
    nbytes = sum(path.stat().st_size for path in files)
    return Publication(folder, repo_id, private, names, nbytes, tuple(patterns))


def publish(publication: Publication) -> str:
    """Upload in one commit, into a repository that is made where there is none; returns the commit's address.

    Shards there that the card names and that are not uploaded, an earlier publication's, are deleted.

    Raises `OutputError` where the Hub refuses or is not reached, or a private upload would go to a public repository.
    """
    from huggingface_hub import HfApi

    api, repo_id = HfApi(), publication.repo_id
    try:
        api.create_repo(repo_id, repo_type="dataset", private=publication.private, exist_ok=True)
        if publication.private and not api.dataset_info(repo_id).private:
            raise OutputError(f"{repo_id} is public already; give --public to publish there, or another name")
        there = api.list_repo_files(repo_id, repo_type="dataset")
        commit = api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=publication.folder,
            allow_patterns=list(publication.files),
            delete_patterns=[glob.escape(path) for path in there if publication.names(path)],
            commit_message="Upload with moe-codegen data publish",
        )
    except OutputError:
        raise
    except Exception as error:  # the hub client's errors have no common base: network, access, spelling
        advice = "check the network, and sign in with `hf auth login` or set HF_TOKEN to a token that may write to it"
        raise OutputError(f"the Hub does not take {repo_id}: {error}; {advice}") from error
    return commit.commit_url
