"""Chains in the workers of executors: process pools, threads, a real Dask cluster."""

import json
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import faults
import numpy as np
import pytest
import torch
from torch import nn

import probelib
from probelib import SGLD, LocalPosterior, StoreBusy, cross_entropy

pytestmark = pytest.mark.usefixtures("one_thread")


def posterior_of(loss=cross_entropy):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 3, generator=generator), torch.arange(30) % 4
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))
    return LocalPosterior(model, loss, (x, y), n_beta=10.0, localization=5.0)


def run(executor, store, posterior=None, **kwargs):
    settings = {"sampler": SGLD(1e-2, 8), "chains": 3, "draws": 120, "burn_in": 4, "thin": 2}
    settings |= {"progress": False, "executor": executor} | kwargs
    return probelib.sample(posterior or posterior_of(), store=store, **settings)


def assert_same(a, b):
    for name in a.variables:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def pool(workers=2):
    # Spawned workers know nothing of this process but what they are sent.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


@pytest.fixture(scope="module")
def workers():
    with pool() as executor:
        yield executor


@pytest.fixture(scope="module")
def cluster():
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as here,
        Client(here) as client,
    ):
        yield client


def test_which_worker_and_how_many_changes_no_number(workers, cluster, tmp_path):
    trace = run(workers, tmp_path / "two")
    assert trace.sizes["draw"] == 120
    assert trace.attrs["complete"] is True
    with pool(1) as one:
        assert_same(run(one, tmp_path / "one"), trace)
    with ThreadPoolExecutor(3) as threads:
        assert_same(run(threads, tmp_path / "threads"), trace)
    assert_same(run(cluster.get_executor(), tmp_path / "dask"), trace)
    # Chains that advance together share their arithmetic, so that it is rounded otherwise.
    together = run(None, None)
    np.testing.assert_allclose(trace.loss, together.loss, rtol=1e-4, atol=1e-5)
    assert_same(run(workers, tmp_path / "groups", chains_per_task=3), together)
    # Each chain alone, in this process.
    for chain in range(3):
        alone = run(None, None, chains=1, first_chain=chain)
        np.testing.assert_array_equal(trace.loss[chain], alone.loss[0])


def test_a_trace_goes_on_wherever_it_was_begun(workers, tmp_path):
    whole = run(workers, tmp_path / "whole")
    store = tmp_path / "trace"
    run(workers, store, draws=40)
    run(None, store, draws=80)  # here, but as it was begun: a chain at a time
    assert_same(run(workers, store), whole)
    assert_same(run(None, store), whole)
    assert_same(probelib.open_trace(store), whole)
    assert {p.name for p in (store / "checkpoint").iterdir()} == {
        "zarr.json",
        *(f"chains-{c}.json" for c in range(3)),
        *(f"chains-{c}-step-244.safetensors" for c in range(3)),
    }


def test_a_cache_takes_an_executor(workers, tmp_path):
    trace = run(workers, None, cache=tmp_path)
    assert_same(run(workers, None, cache=tmp_path), trace)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_first_of_several_chains_may_be_any(workers, tmp_path):
    trace = run(workers, tmp_path / "all")
    some = run(workers, tmp_path / "some", chains=2, first_chain=1)
    np.testing.assert_array_equal(some.loss, trace.loss[1:])
    np.testing.assert_array_equal(some.chain, [1, 2])


def test_thin_auto_and_divergence_in_workers(workers, tmp_path):
    with pytest.warns(UserWarning, match="burn_in is short"):
        trace = run(workers, tmp_path / "auto", thin="auto", burn_in=100, draws=10)
    assert trace.attrs["thinning"]["thin"] == trace.attrs["config"]["thin"]
    with pytest.raises(probelib.DivergenceError, match=r"chain \d diverged at step \d+ with"):
        run(workers, tmp_path / "lost", sampler=SGLD(30.0))


def test_progress_of_workers_reaches_the_bar(workers, tmp_path, capsys):
    run(workers, tmp_path / "trace", progress=True)
    assert "360/360" in capsys.readouterr().err


def fails(output, target):
    if (output.detach().abs() > 2.5).any():
        raise ZeroDivisionError("mine")
    return cross_entropy(output, target)


class Odd(Exception):
    def __init__(self, a, b):
        super().__init__("odd")


def odd(output, target):
    if (output.detach().abs() > 2.5).any():
        raise Odd(1, 2)
    return cross_entropy(output, target)


@pytest.mark.parametrize("kind", ["workers", "cluster"])
def test_an_error_comes_back_with_its_chain_and_its_traceback(kind, request, tmp_path):
    executor = request.getfixturevalue(kind)
    executor = executor.get_executor() if kind == "cluster" else executor
    with pytest.raises(ZeroDivisionError, match="mine") as info:
        run(executor, tmp_path / "trace", posterior_of(fails), draws=3000)
    (note,) = info.value.__notes__
    assert note.startswith("in chain ")
    assert 'raise ZeroDivisionError("mine")' in note
    assert __file__ in note
    kept = probelib.open_trace(tmp_path / "trace")
    assert kept.attrs["complete"] is False
    with pytest.raises(Exception, match="odd") as info:  # one that cannot be pickled
        run(executor, tmp_path / "odd", posterior_of(odd), draws=3000)
    assert "in chain " in info.value.__notes__[0]


def test_losses_and_models_of_a_notebook_travel(workers, tmp_path):
    scale = 2.0

    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 4)

        def forward(self, x):
            return self.inner(x)

    def loss(output, target):
        return scale * cross_entropy(output, target)

    torch.manual_seed(0)
    x, y = torch.randn(30, 3), torch.arange(30) % 4
    posterior = LocalPosterior(Mine(), loss, (x, y), n_beta=10.0, localization=5.0)
    trace = run(workers, tmp_path / "trace", posterior)
    np.testing.assert_allclose(trace.loss, run(None, None, posterior).loss, rtol=1e-4, atol=1e-5)


def waits(output, target):
    time.sleep(0.01)
    return cross_entropy(output, target)


def holder_of(store):
    for _ in range(600):
        for lock in Path(store).glob("checkpoint/chains-*.lock"):
            try:
                return json.loads(lock.read_text())["process"]
            except (OSError, ValueError):
                pass
        time.sleep(0.05)
    raise AssertionError("no worker ever began")


def test_a_worker_of_a_pool_that_is_killed(tmp_path):
    whole = run(None, tmp_path / "whole", posterior_of(waits), draws=80)
    store, died = tmp_path / "trace", []

    def kill():
        pid = holder_of(store)
        time.sleep(1.0)
        os.kill(pid, signal.SIGKILL)
        died.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    with pool() as executor, pytest.raises(BrokenProcessPool) as info:
        run(executor, store, posterior_of(waits), draws=80)
    killer.join()
    assert died
    assert "what its chains had is kept" in info.value.__notes__[0]
    with pool() as executor:
        trace = run(executor, store, posterior_of(waits), draws=80)
    np.testing.assert_allclose(trace.loss, whole.loss, rtol=1e-4, atol=1e-5)


def test_workers_of_a_cluster_that_are_killed_are_replaced():
    found = faults.worker_losses(2)
    assert found["killed"] == found["times"] == 2
    assert found["identical"] == found["traces"]


def test_a_pool_whose_caller_is_gone_stops_for_the_next_one(workers, tmp_path):
    store = tmp_path / "trace"
    seen = []

    def first():
        try:
            run(workers, store, posterior_of(waits), draws=2000)
        except Exception as error:
            seen.append(error)

    caller = threading.Thread(target=first)
    caller.start()
    holder_of(store)
    with pytest.raises(StoreBusy, match="is being written by this process"):
        run(None, store, posterior_of(waits), draws=2000)
    (store / "checkpoint" / "call").write_text("another's")  # as a new caller would leave it
    caller.join(60)
    assert not caller.is_alive()
    (error,) = seen  # and it did not take for finished what was not
    assert isinstance(error, StoreBusy)
    assert "stopped for another call, which writes the store now" in str(error)
    kept = probelib.open_trace(store)
    assert kept.attrs["complete"] is False
    draws = kept.sizes["draw"] + 5
    trace = run(None, store, posterior_of(waits), draws=draws)
    assert_same(trace, run(workers, tmp_path / "whole", posterior_of(waits), draws=draws))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"executor": "dask"}, r"executor is 'dask'; give a concurrent.futures.Executor \(for"),
        ({"store": None}, "executor runs chains in processes that meet in a store; give store"),
        ({"until": 0.1}, "until looks at all chains at once, but an executor runs each on its own"),
        ({"chains_per_task": 0}, "chains_per_task is 0; it must be a whole number, 1 or more"),
        ({"executor": None, "chains_per_task": 2}, "chains_per_task is 2 without an executor"),
    ],
)
def test_what_does_not_fit(settings, message, tmp_path):
    with ThreadPoolExecutor(1) as threads, pytest.raises((ValueError, TypeError), match=message):
        run(**{"executor": threads, "store": tmp_path / "trace"} | settings)
    assert not list(tmp_path.iterdir())
