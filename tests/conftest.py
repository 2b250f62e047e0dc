"""Fixtures that several test files share."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported, and inherited

import book_run
import pytest
import torch

import probelib


def pytest_collection_modifyitems(items):
    """The tests that need the smoke run of the book come last: it takes as long as the others."""
    items.sort(key=lambda item: item.get_closest_marker("book") is not None)


@pytest.fixture(scope="session", autouse=True)
def _smoke_run(request, tmp_path_factory):
    """Begin that run beside the other tests, on the core that they leave."""
    if any(item.get_closest_marker("book") for item in request.session.items):
        book_run.start(tmp_path_factory)
    yield
    book_run.stop()


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
