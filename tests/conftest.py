"""Fixtures that several test files share."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Tiny networks run several times faster without a second thread to wait for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
