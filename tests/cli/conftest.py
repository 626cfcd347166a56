import pytest

from moe_codegen import upcycle
from tests.cli.checkpoints import save_named_mixture
from tests.tiny import save_dense


@pytest.fixture(scope="session")
def dense(tmp_path_factory):
    """A SantaCoder in its first layout, three layers."""
    folder = tmp_path_factory.mktemp("dense")
    save_dense(folder, "santacoder")
    return folder


@pytest.fixture(scope="session")
def moe(dense, tmp_path_factory):
    """Four copied experts of it in every layer."""
    folder = tmp_path_factory.mktemp("moe") / "moe"
    upcycle(dense, folder, num_experts=4)
    return folder


@pytest.fixture(scope="session")
def named(tmp_path_factory):
    """A mixture of two named experts, split in two."""
    return save_named_mixture(tmp_path_factory.mktemp("named"))
