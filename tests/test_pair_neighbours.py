"""Neighbours without a matrix of all samples: those that the matrix gives."""

import dataclasses
import importlib
import multiprocessing
import tracemalloc
import warnings
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from regressions import Exact
from torch import nn

import probelib
from probelib import pair_walks
from probelib.pair_rows import Cut

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:pairs has"),
]
module = importlib.import_module("probelib.pair_neighbours")


def network(dtype=torch.float64, n=60, normed=False, **kwargs):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 4, generator=generator, dtype=dtype)
    torch.manual_seed(0)
    layers = [nn.Linear(4, 6), nn.LayerNorm(6) if normed else nn.Identity(), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(6, 3)).to(dtype)
    settings = {"n_beta": 2.0, "localization": 60.0} | kwargs
    data = x, torch.arange(n) % 3
    return probelib.LocalPosterior(model, probelib.cross_entropy, data, **settings)


def regression(n=60):
    return Exact(n=n, d=8, gamma=60.0, n_beta=10.0, seed=4).posterior


@pytest.fixture
def blocks_of(monkeypatch):
    """Blocks of so many rows, which some samples at a time stream past."""

    def of(rows, streamed=7, memory=None):
        def cut(walks, chains):
            groups = list(walks.gradients.groups(4, memory))
            return Cut(groups, rows, min(streamed, len(walks.observed)))

        monkeypatch.setattr(module.Cut, "of", cut)

    return of


WALKS = {"chains": 5, "pairs": 2, "seed": 5}


def by_matrix(posterior, observe=None, k=5, rows=None, limit=False):
    pairs = probelib.gradient_pairs(posterior, observe, progress=False, **WALKS)
    return probelib.pair_kernel(pairs, limit=limit).top_correlated(k, rows=rows)


def by_rows(posterior, observe=None, k=5, **kwargs):
    settings = WALKS | kwargs
    return probelib.pair_neighbours(posterior, observe, k=k, progress=False, **settings)


def assert_same(found, wanted, rtol=1e-9):
    np.testing.assert_array_equal(found.index, wanted.index)
    np.testing.assert_array_equal(found.rows, wanted.rows)
    np.testing.assert_allclose(found.correlation, wanted.correlation, rtol=rtol)
    # Changes are kept in float32.
    np.testing.assert_allclose(found.mcse, wanted.mcse, rtol=max(rtol, 1e-4))
    np.testing.assert_array_equal(found.q_value, wanted.q_value)
    assert found.coords.keys() == wanted.coords.keys()
    for name, values in wanted.coords.items():
        np.testing.assert_array_equal(found.coords[name], values)


@pytest.mark.parametrize("limit", [False, True], ids=["Eq. 1", "limit"])
@pytest.mark.parametrize("rows", [1, 7, 60])
@pytest.mark.parametrize("make", [network, regression])
def test_neighbours_are_those_of_the_matrix(make, rows, limit, blocks_of):
    blocks_of(rows, streamed=60 if rows == 1 else 17)
    posterior = make()
    wanted = by_matrix(posterior, limit=limit)
    assert_same(by_rows(posterior, limit=limit), wanted)
    assert np.isfinite(wanted.mcse).sum() > 50  # so that errors are compared at all
    assert len(np.unique(wanted.index)) > 20


@pytest.mark.parametrize("memory", [None, 300], ids=["whole", "by layer"])
def test_layers_may_be_taken_in_groups(memory, blocks_of):
    blocks_of(13, memory=memory)
    posterior = network()
    assert len(list(module.Cut.of(walks_of(posterior), 6).groups)) == (1 if memory is None else 2)
    assert_same(by_rows(posterior), by_matrix(posterior))


def walks_of(posterior):
    return pair_walks.walks_of(posterior, None, 5, 2, 5, 16, None)


def test_a_model_that_is_differentiated_whole(blocks_of):
    blocks_of(9)
    posterior = network(n=20, normed=True)
    assert not walks_of(posterior).gradients.by_layer
    assert_same(by_rows(posterior), by_matrix(posterior))


@pytest.mark.parametrize("limit", [False, True])
def test_rows_in_any_order_and_samples_of_others(limit, blocks_of):
    blocks_of(4)
    posterior = network()
    other = network(n=23)
    x, y = other.data.batch(slice(0, 23))
    observe = x.flip(0), y.flip(0)
    for rows in ([20, 3, 3, -1, 7], slice(15, None, -4), np.arange(23) % 5 == 1, 7, [], None):
        wanted = by_matrix(posterior, observe, rows=rows, limit=limit)
        found = by_rows(posterior, observe, rows=rows, limit=limit)
        assert_same(found, wanted)
        assert found.index.shape == wanted.index.shape
    frame = by_rows(posterior, observe, rows=[20, 3], limit=limit).to_dataframe()
    np.testing.assert_array_equal(frame.row_label, np.repeat(y.flip(0)[[20, 3]].numpy(), 5))


def test_float32_agrees_as_far_as_rows_in_bfloat16_do(blocks_of):
    """Products of bfloat16 rows are rounded to 2^-9 each, those of a sample with itself are not."""
    blocks_of(20)
    posterior = network(torch.float32)
    pairs = probelib.gradient_pairs(posterior, progress=False, **WALKS)
    kernel = probelib.pair_kernel(pairs)
    found = by_rows(posterior, k=59)
    every = np.take_along_axis(kernel.correlation(), found.index, 1)
    assert np.abs(found.correlation - every).max() < 2**-7
    np.testing.assert_array_equal(np.sort(found.index, 1)[0], np.arange(1, 60))


def test_weights_that_bear_no_error_leave_none(blocks_of):
    blocks_of(25)
    posterior = network(n_beta=400.0)
    with pytest.warns(UserWarning, match="worth only") as caught:
        found = by_rows(posterior)
    assert caught[0].filename == __file__
    assert np.isinf(found.mcse).all()
    assert_same(found, by_matrix(posterior))


@pytest.mark.parametrize(
    ("name", "value", "error", "match"),
    [
        ("k", 60, ValueError, "k is 60; choose from 1 to 59"),
        ("k", 2.5, ValueError, "k is 2.5"),
        ("k", 0, ValueError, "k is 0"),
        ("chains", 1, ValueError, "chains is 1"),
        ("memory", 0, ValueError, "memory is 0"),
        ("limit", 1, TypeError, "limit is 1"),
        ("rows", [60], IndexError, "rows holds 60"),
        ("rows", [0.5], IndexError, r"rows holds .*0.5"),
        ("executor", "dask", TypeError, "executor is 'dask'"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_computed(
    name, value, error, match, monkeypatch
):
    monkeypatch.setattr(pair_walks.Walks, "write", None)
    with pytest.raises(error, match=match):
        by_rows(network(), **{name: value})


def test_the_default_block_is_what_memory_allows():
    walks = walks_of(network(n=40))
    assert Cut.of(walks, 6).rows == 40
    row = 40 * (12 * 6 + 64)
    for memory in (100_000, 30_000, 10_000, 10):
        small = dataclasses.replace(walks, memory=memory)
        cut = Cut.of(small, 6)
        widest = max(sum(walks.gradients.sizes[at] for at in group) for group in cut.groups)
        used = cut.rows * (3 * 8 * widest + row) + cut.streamed * 8 * widest
        assert used <= memory or cut.rows == 1
        assert cut.rows == 40 or used > memory / 2
    assert len(cut.groups) == 2


def test_no_array_grows_as_the_square_of_the_samples():
    """Peaks of NumPy and torch: arrays are seen by tracemalloc, tensors by a mode of torch."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for leaf in tree_leaves(out):
                if isinstance(leaf, torch.Tensor):
                    self.numbers = max(self.numbers, leaf.numel())
            return out

    peaks = {}
    for n in (1000, 2000):
        rng = np.random.default_rng(0)
        model = nn.Sequential(nn.Linear(3, 1, bias=False), nn.Flatten(0)).double()
        posterior = probelib.LocalPosterior(
            model,
            probelib.squared_error,
            (torch.tensor(rng.normal(size=(n, 3))), torch.tensor(rng.normal(size=n))),
            n_beta=1.0,
            localization=10.0,
        )
        memory = 20 * n * (12 * 2 + 64) + 512 * 8 * 3 * 4
        options = {"chains": 2, "pairs": 1, "batch_size": 500, "k": 3, "progress": False}
        tracemalloc.start()
        with Largest() as largest, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            probelib.pair_neighbours(posterior, rows=np.arange(60), memory=memory, **options)
        peaks[n] = tracemalloc.get_traced_memory()[1], largest.numbers
        tracemalloc.stop()
    assert peaks[2000][0] < min(2.5 * peaks[1000][0], 8 * 2000 * 2000 / 2)
    assert peaks[2000][1] <= 30 * 2000  # a block and some more, 2,000 rows would be 4 million


class Stopped(Exception):
    pass


@pytest.mark.parametrize("after", [2, 5, 9])
def test_a_call_that_was_stopped_goes_on(after, blocks_of, tmp_path, monkeypatch):
    """Three looks of three chains, then blocks of twenty rows in three chains each."""
    blocks_of(20)
    posterior = network()
    whole = by_rows(posterior, chains=3)
    done = []
    for name in ("of_samples", "of_rows"):
        original = getattr(module, name)

        def counted(walks, chain, *args, original=original, name=name):
            if len(done) == after:
                raise Stopped
            found = original(walks, chain, *args)
            done.append(name)
            return found

        monkeypatch.setattr(module, name, counted)
    with pytest.raises(Stopped):
        by_rows(posterior, chains=3, cache=tmp_path)
    kept = len(list(tmp_path.rglob("*.safetensors")))
    assert kept == min(after, 3) + max(after - 3, 0) // 3
    after = -1  # never again
    done.clear()
    again = by_rows(posterior, chains=3, cache=tmp_path)
    assert len(done) == 12 - min(kept, 3) - 3 * max(kept - 3, 0)
    for name in ("index", "correlation", "mcse"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    done.clear()
    once_more = by_rows(posterior, chains=3, cache=tmp_path)
    some = by_rows(posterior, chains=3, cache=tmp_path, rows=[41, 2])
    assert not done
    np.testing.assert_array_equal(once_more.mcse, whole.mcse)
    np.testing.assert_array_equal(some.correlation, whole.correlation[[41, 2]])


def test_the_cache_gives_nothing_of_another_call(blocks_of, tmp_path):
    blocks_of(10)
    x, y = network(n=21).data.batch(slice(0, 21))
    calls = [
        ({}, {}),
        ({}, {"limit": True}),
        ({}, {"k": 4}),
        ({}, {"chains": 4}),
        ({}, {"pairs": 3}),
        ({}, {"seed": 6}),
        ({}, {"observe": (x, y)}),
        ({"n_beta": 3.0}, {}),
        ({"localization": 70.0}, {}),
        ({"n": 19}, {}),
    ]
    for of_posterior, of_call in calls:
        alone = by_rows(network(**{"n": 20} | of_posterior), **of_call)
        for _ in range(2):
            found = by_rows(network(**{"n": 20} | of_posterior), cache=tmp_path, **of_call)
            assert_same(found, alone, rtol=1e-14)


def test_a_damaged_file_is_made_again(blocks_of, tmp_path):
    blocks_of(30)
    posterior = network()
    whole = by_rows(posterior, cache=tmp_path)
    for file in tmp_path.rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-9])
    assert_same(by_rows(posterior, cache=tmp_path), whole, rtol=1e-14)


def test_what_no_fingerprint_sees_is_noticed(blocks_of, tmp_path, monkeypatch):
    """Losses at w* are looked at again, and blocks belong to what was found of each sample."""
    blocks_of(15)
    base = network(n=30)
    data, same = base.data.batch(slice(0, 30)), base.fingerprint()

    def posterior(factor):
        def loss(output, target):
            return factor * probelib.cross_entropy(output, target)

        return probelib.LocalPosterior(base.model, loss, data, n_beta=2.0, localization=60.0)

    alone = {factor: by_rows(posterior(factor)) for factor in (1.0, 3.0)}
    monkeypatch.setattr(probelib.LocalPosterior, "fingerprint", lambda self: same)
    for factor in (1.0, 3.0, 1.0):
        found = by_rows(posterior(factor), cache=tmp_path)
        assert_same(found, alone[factor], rtol=1e-14)
    assert not np.allclose(alone[1.0].correlation, alone[3.0].correlation)


def test_workers_change_no_number(tmp_path):
    """Spawned ones know nothing of this process but what they are sent."""
    posterior = network(n=30)
    memory = 12 * 30 * (12 * 3 + 64)  # a few rows
    options = {"chains": 3, "memory": memory}
    assert 1 < Cut.of(dataclasses.replace(walks_of(posterior), memory=memory), 3).rows < 15
    alone = by_rows(posterior, **options)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        found = by_rows(posterior, cache=tmp_path, executor=executor, **options)
    assert_same(found, alone, rtol=1e-14)
    files = sorted(file.name[:5] for file in tmp_path.rglob("*") if file.is_file())
    assert files.count("chain") == 3
    assert files.count("rows-") == len(files) - 3 > 1
    assert_same(by_rows(posterior, cache=tmp_path, **options), alone, rtol=1e-14)
    with pytest.raises(ValueError, match="give cache as well"):
        by_rows(posterior, executor=executor)
