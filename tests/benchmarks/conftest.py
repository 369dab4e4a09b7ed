"""What benchmarks share."""

import pytest
import torch


@pytest.fixture
def two_threads():
    """Ratios of two implementations depend on it; a machine's number of cores must not."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
