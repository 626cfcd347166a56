import pytest

from tests.training.runs import make_base, make_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def base(corpus, tmp_path_factory):
    return make_base(corpus, tmp_path_factory.mktemp("base") / "out")
