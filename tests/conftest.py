"""Fixtures that several test files share."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported, and inherited

import pytest
import torch

import probelib


@pytest.fixture(scope="module")
def one_thread():
    """Tiny networks run several times faster without a second thread to wait for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def python_in_every_step(monkeypatch):
    """Gradients of several chains by the model's own code, as an interruption of it needs."""
    monkeypatch.setattr(probelib.chains, "_recorded", lambda function, *args: function)
