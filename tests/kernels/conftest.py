import pytest
import torch


@pytest.fixture
def poisoned_memory():
    """Uninitialised memory is NaN, or the largest integer: whoever reads it is found out."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
