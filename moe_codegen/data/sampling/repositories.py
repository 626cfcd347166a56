"""Repositories by a hash of their name, which orders them at random; and which of them are held out."""

import numpy as np
import xxhash

from moe_codegen.data.rows.batch import Batch


def repository_hashes(batch: Batch, seed: int) -> np.ndarray:
    """The repository of each row, (F,) uint64; a file without one is its own, known by its content."""
    content = batch.rows.column("content")
    names = (
        repo.encode() if repo else content[row].as_py()
        for row, repo in enumerate(batch.rows.column("repo").to_pylist())
    )
    return np.array([xxhash.xxh64_intdigest(name, seed=seed) for name in names], np.uint64)


def held_out_repositories(repos: np.ndarray, languages: np.ndarray, share: float) -> np.ndarray:
    """The hashes of the repositories that go to validation, sorted; `repos` hold `languages`, each pair once.

    The first ones in the order of their hashes, until `share` of all is reached. Of a language that training then lacks
    one repository goes back; of one that validation lacks it gets the first that training can spare. So a language of
    two repositories or more is on both sides, unless training needs them for their other languages.
    """
    names, repo_P = np.unique(repos, return_inverse=True)
    _, language_P = np.unique(languages, return_inverse=True)
    is_held = np.arange(len(names)) < round(share * len(names))
    rarest_first = np.argsort(np.bincount(language_P), kind="stable")
    for mine in (repo_P[language_P == language] for language in rarest_first):
        if is_held[mine].all():
            is_held[mine.max()] = False
    for mine in (repo_P[language_P == language] for language in rarest_first):
        if not is_held[mine].any():
            left = np.bincount(language_P, weights=~is_held[repo_P])
            needed = repo_P[(left[language_P] == 1) & ~is_held[repo_P]]
            spare = np.setdiff1d(mine, needed)
            is_held[spare[:1]] = True
    return names[is_held]


def are_in(hashes: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Which of the hashes are among those of `held`, which are sorted and may be very many."""
    return np.searchsorted(held, hashes, side="right") > np.searchsorted(held, hashes, side="left")
