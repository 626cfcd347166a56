import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_codegen.data.reading.sources import open_source
from moe_codegen.data.sampling.sample import SampleSettings, sample
from moe_codegen.data.sampling.sample_size import cluster_interval, intra_correlation, sample_size
from moe_codegen.errors import ConfigError
from tests.data.inputs import code, read, row, tree, write


def test_the_textbook_size():
    """p = 0.5 (variation 1), 5% at 95%: 384 becomes 1537 for a relative precision; finite population 1,000: 606."""
    size = sample_size(10**9, 1.0, 0.05, 0.95, 1, 0.0)
    assert size.unlimited == pytest.approx(1536.6, abs=0.1)
    assert sample_size(1000, 1.0, 0.05, 0.95, 1, 0.0).files == 607
    assert sample_size(10**9, 1.0, 0.05, 0.95, 3, 0.4).files == pytest.approx(1536.6 * 1.8, abs=2)


@given(
    st.integers(1, 10**6),
    st.floats(0, 5),
    st.floats(0.01, 0.5),
    st.floats(0.5, 0.99),
    st.floats(1, 50),
    st.floats(0, 1),
)
def test_never_more_than_there_is(population, variation, precision, confidence, a_repo, rho):
    assert 0 <= sample_size(population, variation, precision, confidence, a_repo, rho).files <= population


def test_intra_correlation_of_known_data():
    generator = np.random.default_rng(0)
    repos = np.repeat(np.arange(400), 10)
    values = generator.normal(size=400)[repos] * np.sqrt(0.4) + generator.normal(size=4000) * np.sqrt(0.6)
    assert intra_correlation(values, repos) == pytest.approx(0.4, abs=0.05)
    assert intra_correlation(generator.normal(size=4000), repos) < 0.03
    assert intra_correlation(np.ones(3), np.arange(3)) == 0


def test_cluster_intervals_cover_the_mean():
    """Close to 95% of 400 samples of 40 repositories with four alike files each."""
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        repos = np.repeat(np.arange(40), 4)
        values = 10 + generator.normal(size=40)[repos] + 0.5 * generator.normal(size=160)
        mean, half = cluster_interval(values, repos, 0.95)
        covered += abs(mean - 10) <= half
    assert 0.91 < covered / 400 < 0.975


def test_an_interval_is_for_the_mean_of_the_files_that_were_drawn_from():
    """Three quarters of 200 files: were they taken for an endless population's, practically all of 400 would cover."""
    generator = np.random.default_rng(2)
    files = 10 + generator.normal(size=200)
    covered = 0
    for _ in range(400):
        drawn = generator.choice(files, 150, replace=False)
        mean, half = cluster_interval(drawn, np.arange(150), 0.95, population=200)
        covered += abs(mean - np.mean(files)) <= half
    assert 0.91 < covered / 400 < 0.98
    assert cluster_interval(files, np.zeros(200), 0.95, population=200) == (np.mean(files), 0)


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
    expected = sample_size(300, account["variation"], 0.1, 0.95, 1, 0).files
    assert account["files"] == expected == len(read(tmp_path / "out"))
    assert abs(account["mean"] / account["population_mean"] - 1) < 0.2
    assert account["half_width"] / account["mean"] == pytest.approx(0.1, rel=0.2)


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


def test_a_precision_out_of_reach_is_said_with_what_was_reached(tmp_path):
    rows = [row(seed, repo=f"repo{seed % 3}", content=code(seed, 5 + seed % 60)) for seed in range(60)]
    with pytest.warns(UserWarning, match=r"too few files for precision 0\.001.*within: python [1-9]\d*%"):
        manifest = sample(
            open_source(write(tmp_path / "in", rows)), tmp_path / "out", SampleSettings(precision=0.001, rho=0.5)
        )
    account = manifest["samples"]["python"]
    assert account["files"] == account["population"] == 60 < account["wanted"]
    assert account["half_width"] == 0 < account["half_width_elsewhere"]
