import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_codegen.data.reading.sources import open_source
from moe_codegen.data.sampling.sample import SampleSettings, _draw_language, sample
from moe_codegen.data.sampling.sample_size import cluster_interval, intra_correlation, mean_errors, sample_size
from moe_codegen.errors import ConfigError
from tests.data.inputs import code, read, row, tree, write


def test_the_textbook_size():
    """Variation 1 and 5% at 95% ask for 1537 of endless files; for 606 of 1,000 (Cochran: n0 / (1 + n0 / N))."""
    size = sample_size(mean_errors(np.arange(1000), 0.0), 1.0, 0.05, 0.95)
    assert size.unlimited == pytest.approx(1536.6, abs=0.1)
    assert size.files == 606 == np.ceil(size.finite)


REPOSITORIES = st.lists(st.integers(0, 6), min_size=1, max_size=25).map(np.array)


@given(REPOSITORIES, st.floats(0, 1))
def test_the_error_is_that_of_the_weights_written_out(repos, rho):
    """The variance of a sum over all files of (weight in the sample - 1 / N) y, file by file and pair by pair."""
    covariance = np.where(repos[:, None] == repos, rho, 0.0) + np.eye(len(repos)) * (1 - rho)
    for count, error in enumerate(mean_errors(repos, rho), 1):
        drawn = repos[:count]
        weight = np.array([np.sum(repos == repo) / np.sum(drawn == repo) for repo in drawn])
        off = np.concatenate([weight / weight.sum(), np.zeros(len(repos) - count)]) - 1 / len(repos)
        assert error == pytest.approx(off @ covariance @ off, abs=1e-9)


@given(REPOSITORIES, st.floats(0, 5), st.floats(0.01, 0.5), st.floats(0.5, 0.99), st.floats(0, 1))
def test_never_more_than_there_is(repos, variation, precision, confidence, rho):
    assert 1 <= sample_size(mean_errors(repos, rho), variation, precision, confidence).files <= len(repos)


def test_intra_correlation_of_known_data():
    generator = np.random.default_rng(0)
    repos = np.repeat(np.arange(400), 10)
    values = generator.normal(size=400)[repos] * np.sqrt(0.4) + generator.normal(size=4000) * np.sqrt(0.6)
    assert intra_correlation(values, repos) == pytest.approx(0.4, abs=0.05)
    assert intra_correlation(generator.normal(size=4000), repos) < 0.03
    assert intra_correlation(np.ones(3), np.arange(3)) == 0


def test_intervals_of_other_repositories_cover_the_mean():
    """Close to 95% of 400 samples of 40 repositories with four alike files each."""
    generator = np.random.default_rng(1)
    repos = np.repeat(np.arange(40), 4)
    covered = 0
    for _ in range(400):
        values = 10 + generator.normal(size=40)[repos] + 0.5 * generator.normal(size=160)
        said = cluster_interval(values, repos, repos, 0.95)
        assert (said.mean, said.half_width) == (pytest.approx(np.mean(values)), 0)
        covered += abs(said.mean - 10) <= said.half_width_elsewhere
    assert 0.91 < covered / 400 < 0.975


@pytest.mark.parametrize("files", [60, 150, 400])
def test_a_sample_says_the_mean_over_files_and_how_surely(files):
    """120 repositories of 1 to 100 files, larger ones of larger files: fewer files than repositories, and more."""
    generator = np.random.default_rng(files)
    counts = np.minimum(generator.geometric(0.1, 120), 100)
    repos = np.repeat(np.arange(120), counts)
    values = (500 + 20 * counts + 100 * generator.normal(size=120))[repos] + 200 * generator.normal(size=len(repos))
    covered, means = 0, []
    for _ in range(300):
        order = generator.integers(0, 2**63, len(repos)).astype(np.uint64)
        columns = {"size": values, "repo": generator.permutation(120).astype(np.uint64)[repos], "order": order}
        account = _draw_language(columns, SampleSettings(files=files))[1]
        means.append(account["mean"])
        covered += abs(account["mean"] - np.mean(values)) <= account["half_width"]
    assert np.mean(means) == pytest.approx(np.mean(values), rel=0.01)  # the plain mean is a fifth off
    assert 0.9 < covered / 300 < 0.99


def test_a_sample_takes_every_repository_before_a_second_file(tmp_path):
    rows = [row(seed, repo=f"repo{seed % 20}" if seed < 100 else "huge") for seed in range(200)]
    manifest = sample(open_source(write(tmp_path / "in", rows)), tmp_path / "out", SampleSettings(files=42))
    repos = [one["repo"] for one in read(tmp_path / "out")]
    assert sorted(repos.count(name) for name in set(repos)) == [2] * 21
    assert manifest["samples"]["python"]["files_a_repository"] == 2
    assert manifest["tally"]["not_sampled"]["python"][0] == 158


def test_the_size_comes_from_the_precision(tmp_path):
    rows = [row(seed, repo=f"repo{seed}", content=code(seed, 5 + seed % 60)) for seed in range(300)]
    source = open_source(write(tmp_path / "in", rows))
    account = sample(source, tmp_path / "out", SampleSettings(precision=0.1))["samples"]["python"]
    expected = sample_size(mean_errors(np.arange(300), 0.0), account["variation"], 0.1, 0.95).files
    assert account["files"] == expected == len(read(tmp_path / "out"))
    assert abs(account["mean"] / account["population_mean"] - 1) < 0.2
    assert account["half_width"] / account["mean"] == pytest.approx(0.1, rel=0.2)


def test_a_file_without_repository_is_its_own_by_its_content(tmp_path):
    rows = [row(seed, repo=None, path="setup.py") for seed in range(30)]
    manifest = sample(open_source(write(tmp_path / "in", rows)), tmp_path / "out", SampleSettings(files=10))
    assert manifest["samples"]["python"]["repositories"] == 30


def test_languages_seed_and_workers(tmp_path):
    rows = [row(seed, language=("python", "java", "c")[seed % 3]) for seed in range(90)]
    source = open_source(write(tmp_path / "in", rows), unit_bytes=3000)
    settings = SampleSettings(languages=("python", "java"), files=10)
    sample(source, tmp_path / "one", settings)
    sample(source, tmp_path / "two", settings, num_proc=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert {one["language"] for one in read(tmp_path / "one")} == {"python", "java"}
    sample(source, tmp_path / "three", SampleSettings(languages=("python", "java"), files=10, seed=1))
    assert read(tmp_path / "one") != read(tmp_path / "three")
    with pytest.raises(ConfigError, match="no file in cobol; found c, java, python"):
        sample(source, tmp_path / "four", SampleSettings(languages=("cobol",)))
    sample(source, tmp_path / "four", settings)  # the corrected command is not refused as another run's
    assert tree(tmp_path / "four") == tree(tmp_path / "one")
    with pytest.raises(ConfigError, match=r"precision=1\.5 should lie between 0 and 1"):
        SampleSettings(precision=1.5)
    with pytest.raises(ConfigError, match="files=-5 should be at least 1"):
        SampleSettings(files=-5)
    with pytest.raises(ConfigError, match=r"variation=-1\.0 should lie between 0 and inf"):
        SampleSettings(variation=-1.0)


def test_a_precision_out_of_reach_is_said_with_what_was_reached(tmp_path):
    rows = [row(seed, repo=f"repo{seed % 3}", content=code(seed, 5 + seed % 60)) for seed in range(60)]
    with pytest.warns(UserWarning, match=r"too few files for precision 0\.001.*within: python [1-9]\d*%"):
        manifest = sample(
            open_source(write(tmp_path / "in", rows)), tmp_path / "out", SampleSettings(precision=0.001, rho=0.5)
        )
    account = manifest["samples"]["python"]
    assert account["files"] == account["population"] == 60
    assert account["half_width"] == 0 < account["half_width_elsewhere"]
