"""Positions in a kernel: what NumPy takes, by number, list, mask or slice; else one sentence."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import probelib

N = 8
RNG = np.random.default_rng(0)
LOSS = RNG.normal(size=(2, 12, N)).astype(np.float32)
KERNELS = {
    "trace": probelib.loss_kernel(xr.Dataset({"loss": (("chain", "draw", "sample"), LOSS)})),
    "matrix": probelib.MatrixKernel(np.cov(LOSS.reshape(-1, N).T)),
}
MASK = np.arange(N) % 3 == 0
PLACES = {
    "a number": 3,
    "a negative number": -2,
    "NumPy's": np.int64(3),
    "of no dimension": np.array(5),
    "a list": [4, 0],
    "negative ones": [-1, 2],
    "repeated": [2, 2, 5],
    "none of them": [],
    "unsigned": np.array([3, 1], np.uint8),
    "a mask": MASK,
    "a list of bools": MASK.tolist(),
    "xarray's mask": xr.DataArray(MASK, dims="sample"),
    "xarray's number": xr.DataArray(6),
    "an index": pd.Index([1, 7]),
    "a series": pd.Series(MASK, index=range(10, 10 + N)),
    "torch's": torch.tensor([6, 2]),
    "a slice": slice(1, 6, 2),
    "a slice beyond": slice(5, 99),
    "a range": range(2, 5),
    "all": None,
}


def of_numpy(place):
    """The index that NumPy has for it."""
    if place is None or isinstance(place, slice):
        return slice(None) if place is None else place
    index = np.asarray(place)
    return index if index.size else index.astype(int)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", PLACES)
def test_positions_are_those_of_numpy(kernel, kind):
    place, kernel = PLACES[kind], KERNELS[kernel]
    rows = of_numpy(place)
    for f in (kernel.covariance, kernel.correlation):
        whole = f()
        for found, expected in (
            (f(place), whole[rows]),
            (f(cols=place), whole[:, rows]),
            (f(place, [1, 4]), whole[rows][..., [1, 4]]),
            (f(place, 2), whole[rows][..., 2]),
            (f(place, place), whole[rows][..., rows]),
        ):
            assert np.shape(found) == np.shape(expected)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    if kernel is KERNELS["trace"]:
        np.testing.assert_allclose(
            kernel.features(rows=place), kernel.features()[rows], rtol=1e-5, atol=1e-6
        )
        for f in (kernel.correlation_mcse, kernel.covariance_mcse):
            np.testing.assert_allclose(f(place, 1), f(None, None)[rows][..., 1], rtol=1e-4)
    for found, expected in zip(
        kernel.top_correlated(3, rows=place), kernel.top_correlated(3), strict=True
    ):
        np.testing.assert_allclose(found, expected[rows], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["a mask", "a slice", "xarray's mask", "a list of bools"])
def test_neighbours_are_among_those_named(kind):
    among = np.arange(N)[of_numpy(PLACES[kind])]
    found = KERNELS["trace"].top_correlated(2, among=PLACES[kind]).index
    assert np.isin(found, among).all()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("place", "error", "sentence"),
    [
        (True, ValueError, "rows is True; give positions as a number, a list"),
        (np.False_, ValueError, "rows is np.False_; give positions as a number, a list"),
        (2.0, ValueError, "rows is 2.0; give positions as"),
        ("3", ValueError, "rows is '3'; give positions as"),
        ([[1, 2]], ValueError, r"rows is \[\[1, 2\]\]; give positions as"),
        ([1.0, 2.0], IndexError, "rows holds .*1.0.*, which is no whole number"),
        ([1, np.nan], IndexError, "rows holds .*1.0.*, which is no whole number"),
        (["a"], IndexError, "rows holds .*a.*, which is no whole number"),
        (N, IndexError, "rows holds 8, but there are 8; choose from 0 to 7"),
        (-N - 1, IndexError, "rows holds -9, but there are 8"),
        ([0, 99], IndexError, "rows holds 99, but there are 8"),
        ([True, False], IndexError, "rows is a mask of 2; give one of 8, or positions"),
        (np.ones(N + 1, bool), IndexError, "rows is a mask of 9; give one of 8"),
        (np.ones((N, 1), bool), ValueError, "give positions as a number"),
        (slice("a", "b"), IndexError, "give whole numbers"),
    ],
)
def test_what_is_no_position_is_one_sentence(kernel, place, error, sentence):
    kernel = KERNELS[kernel]
    calls = [kernel.covariance, kernel.correlation, lambda rows: kernel.features(rows=rows)]
    for call in (*calls, lambda rows: kernel.top_correlated(2, rows=rows)):
        with pytest.raises(error, match=sentence):
            call(place)
    with pytest.raises(error, match=sentence.replace("rows", "cols")):
        kernel.covariance([0], place)
    with pytest.raises(error, match=sentence.replace("rows", "among")):
        kernel.top_correlated(2, among=place)


def test_chains_of_pairs():
    x = RNG.normal(size=(3, 5, 4))
    pairs = xr.Dataset({"kernel": (("chain", "sample", "other"), x @ x.transpose(0, 2, 1))})
    one = probelib.pair_kernel(pairs, chains=1, limit=True)
    np.testing.assert_array_equal(one.covariance(), pairs.kernel.values[1])
    two = probelib.pair_kernel(pairs, chains=[True, False, True], limit=True)
    np.testing.assert_allclose(two.covariance(), pairs.kernel.values[[0, 2]].mean(0))
    for none in ([], slice(0), [False] * 3):
        with pytest.raises(ValueError, match=r"chains is .*, which is none of them"):
            probelib.pair_kernel(pairs, chains=none, limit=True)
    with pytest.raises(IndexError, match="chains holds 3, but there are 3; choose from 0 to 2"):
        probelib.pair_kernel(pairs, chains=3, limit=True)
