"""What tests of several files share."""

import pytest
import torch


@pytest.fixture
def two_threads():
    """A caller who lets torch use two threads, also where tests run with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
