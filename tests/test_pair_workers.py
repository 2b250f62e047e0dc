"""Walks of gradient pairs in the workers of executors: process pools, threads, a Dask cluster."""

import logging
import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import probelib

pytestmark = pytest.mark.usefixtures("one_thread")


def posterior_of(loss=probelib.cross_entropy, layer=nn.Tanh):
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(9, 3, generator=generator), torch.arange(9) % 4
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), layer(), nn.Linear(5, 4))
    return probelib.LocalPosterior(model, loss, data, n_beta=2.0, localization=50.0)


def run(executor, cache, posterior=None, **kwargs):
    settings = {"chains": 3, "pairs": 2, "progress": False} | kwargs
    return probelib.gradient_pairs(
        posterior or posterior_of(), cache=cache, executor=executor, **settings
    )


def assert_same(a, b):
    for name in a.variables:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert a.attrs["fingerprint"] == b.attrs["fingerprint"]


def pool(workers=2):
    # Spawned workers know nothing of this process but what they are sent.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


@pytest.fixture(scope="module")
def workers():
    with pool() as executor:
        yield executor


@pytest.fixture
def logged(caplog):
    caplog.set_level(logging.INFO, "probelib")

    def runs():
        found = [r.probelib_run["cached"] for r in caplog.records if hasattr(r, "probelib_run")]
        caplog.clear()
        return found

    return runs


def whole_norm():
    """A layer that is differentiated whole, by torch.func."""
    return nn.LayerNorm(5)


@pytest.mark.parametrize("layer", [nn.Tanh, whole_norm], ids=["by layer", "whole"])
def test_workers_change_no_number_and_fill_the_same_cache(layer, workers, tmp_path, logged):
    posterior = posterior_of(layer=layer)
    alone = run(None, None, posterior)
    assert logged() == [False] * 3
    assert_same(run(workers, tmp_path / "pool", posterior), alone)
    assert logged() == [False] * 3
    with ThreadPoolExecutor(2) as threads:
        assert_same(run(threads, tmp_path / "threads", posterior), alone)
    logged()
    for cache in ("pool", "threads"):
        (folder,) = (tmp_path / cache).iterdir()
        assert sorted(p.name for p in folder.iterdir()) == [
            f"chain-{chain}.safetensors" for chain in range(3)
        ]
    assert_same(run(None, tmp_path / "pool", posterior), alone)  # found, whoever made it
    assert logged() == [True] * 3
    more = run(workers, tmp_path / "pool", posterior, chains=4)
    assert logged() == [True] * 3 + [False]
    np.testing.assert_array_equal(more.kernel[:3], alone.kernel)
    run(None, tmp_path / "here", posterior)
    logged()
    assert_same(run(workers, tmp_path / "here", posterior), alone)
    assert logged() == [True] * 3


def test_layers_and_other_samples_in_workers(workers, tmp_path, monkeypatch):
    posterior = posterior_of()
    x, y = posterior.data.batch(slice(0, 9))
    options = {"observe": (x[2:6], y[2:6]), "by_layer": True, "memory": 100}
    alone = run(None, None, posterior, **options)
    assert_same(run(workers, tmp_path / "pool", posterior, **options), alone)
    monkeypatch.chdir(tmp_path)  # where the workers are not
    assert_same(run(workers, "relative", posterior, **options), alone)
    assert len(list((tmp_path / "relative").rglob("chain-*.safetensors"))) == 3


def test_a_dask_cluster_runs_walks(tmp_path):
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as here,
        Client(here) as client,
    ):
        assert_same(run(client.get_executor(), tmp_path / "dask"), run(None, None))


def test_losses_and_models_of_a_notebook_travel(workers, tmp_path):
    scale = 2.0

    def loss(output, target):
        return scale * probelib.cross_entropy(output, target)

    posterior = posterior_of(loss)
    assert_same(run(workers, tmp_path, posterior), run(None, None, posterior))


def fails(output, target):
    if os.getpid() != int(os.environ["CALLER_OF_WALKS"]):
        raise ZeroDivisionError("mine")
    return probelib.cross_entropy(output, target)


def dies(output, target):
    if os.getpid() != int(os.environ["CALLER_OF_WALKS"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return probelib.cross_entropy(output, target)


def test_an_error_comes_back_with_its_chain_and_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.setenv("CALLER_OF_WALKS", str(os.getpid()))
    with pool() as executor, pytest.raises(ZeroDivisionError, match="mine") as info:
        run(executor, tmp_path, posterior_of(fails))
    (note,) = info.value.__notes__
    assert note.startswith("in chain ")
    assert 'raise ZeroDivisionError("mine")' in note
    with pool() as executor, pytest.raises(BrokenProcessPool) as info:
        run(executor, tmp_path, posterior_of(dies))
    assert "what its chains had is kept" in info.value.__notes__[0]
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_walks_stop_where_their_call_has_gone(tmp_path):
    posterior = posterior_of()
    with ThreadPoolExecutor(1) as executor:

        class Gone(ThreadPoolExecutor):
            def submit(self, work, job, chain):
                Path(job.call).unlink(missing_ok=True)
                return executor.submit(work, job, chain)

        with Gone(1) as gone, pytest.raises(RuntimeError, match="were removed while it ran"):
            run(gone, tmp_path, posterior, chains=2)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_what_does_not_fit(tmp_path):
    with ThreadPoolExecutor(1) as threads:
        with pytest.raises(ValueError, match="meet in a store; give cache as well"):
            run(threads, None)
        with pytest.raises(TypeError, match="executor is 'dask'; give a concurrent"):
            run("dask", tmp_path)
    assert not list(tmp_path.iterdir())
