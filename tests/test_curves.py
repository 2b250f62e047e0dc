"""Crossings, cumulants and kernels of checkpoints, against closed forms and made-up traces."""

import math

import numpy as np
import pytest
import xarray as xr
from scipy.stats import kstat

from probebook.curves import crossing_interval, cumulants, kernel_phases, passes


def test_crossings_by_hand():
    x, y = np.array([1.0, 2.0, 4.0, 8.0]), np.array([0.0, 0.2, 0.8, 0.6])
    assert passes(x, y, 0.5) == pytest.approx(3.0)
    assert passes(x, y, 0.5, log=True) == pytest.approx(2 * math.sqrt(2))
    assert passes(x, y, 0.8) == 4.0
    assert passes(x, y, 0.0) == 1.0  # it begins there
    assert passes(x, y, 0.9) == math.inf
    with pytest.raises(ValueError, match="not finite"):
        passes(x, np.array([0, np.nan, 1, 1]), 0.5)


def test_the_interval_of_a_crossing_covers_as_often_as_it_says():
    x, rng, hits = np.linspace(0, 1, 21), np.random.default_rng(0), 0
    truth, error = 10 * x, np.full(21, 1.0)  # a straight line passes 5 at 0.5
    for seed in range(60):
        _, low, high = crossing_interval(x, rng.normal(truth, error), error, 5.0, 200, seed)
        hits += low <= 0.5 <= high
    assert hits / 60 > 0.85  # three standard errors below 0.95
    at, low, high = crossing_interval(x, truth, 1e-6 * error, 5.0, 50)
    assert at == pytest.approx(0.5)
    assert high - low < 1e-5
    assert crossing_interval(x, truth, error, 30.0, 50)[0] == math.inf


def test_cumulants_are_k_statistics_and_those_of_a_gamma_law():
    rng = np.random.default_rng(1)
    series = rng.gamma(3.0, size=(4, 4000))  # cumulants 3, 3 and 6
    found = cumulants(series)
    assert found.second == pytest.approx(kstat(series.ravel(), 2))
    assert found.third == pytest.approx(kstat(series.ravel(), 3))
    assert abs(found.second - 3) < 3 * found.second_se < 0.6
    assert abs(found.third - 6) < 3 * found.third_se < 3
    assert found.skewness == pytest.approx(found.third / found.second**1.5)
    turned = cumulants(-series)
    assert turned.third == pytest.approx(-found.third)
    shifted = cumulants(2 * series + 5)
    assert shifted.third == pytest.approx(8 * found.third)


def test_errors_of_cumulants_are_how_far_repetitions_scatter():
    rng = np.random.default_rng(2)
    every = [cumulants(rng.gamma(3.0, size=(4, 100))) for _ in range(150)]
    for name in ("second", "third", "skewness"):
        spread = np.std([getattr(one, name) for one in every])
        error = np.median([getattr(one, f"{name}_se") for one in every])
        assert error == pytest.approx(spread, rel=0.35)
    with pytest.raises(ValueError, match="three draws"):
        cumulants(np.zeros((2, 8)), parts=4)


def series_of(kernels, draws, seed, shared=True):
    """Checkpoints whose losses are Gaussian with these covariances; the noise may be shared."""
    rng, n = np.random.default_rng(seed), len(kernels[0])
    noise = rng.normal(size=(4, draws, n))
    rows = []
    for kernel in kernels:
        rows.append(noise @ np.linalg.cholesky(kernel).T)
        if not shared:
            noise = rng.normal(size=noise.shape)
    return xr.Dataset(
        {
            "loss": (("checkpoint", "chain", "draw", "sample"), np.array(rows)),
            "init_loss": (("checkpoint", "sample"), np.zeros((len(kernels), n))),
        },
        coords={"checkpoint": np.arange(len(kernels))},
    )


def kernel(seed, n=60):
    x = np.random.default_rng(seed).normal(size=(n, 6))
    return x @ x.T + 2 * np.eye(n)


def of_pairs(matrix):
    d = np.sqrt(np.diag(matrix))
    return (matrix / np.outer(d, d))[np.triu_indices(len(matrix), 1)]


def test_kernels_are_as_alike_as_they_are_without_noise():
    one, other = kernel(1), kernel(2)
    half = 0.6 * one + 0.4 * other
    truth = np.corrcoef([of_pairs(k) for k in (one, half, other)])
    trace = series_of((one, half, other), draws=40, seed=0)
    found = kernel_phases(trace, np.arange(60))
    assert np.abs(found.cross[0, 1]) < truth[0, 1] - 0.1  # noise makes them less alike
    np.testing.assert_allclose(found.corrected, truth, atol=0.1)
    np.testing.assert_allclose(np.diag(found.corrected), 1)
    assert (np.abs(found.corrected - truth) < 4 * found.corrected_se + 1e-9).all()
    np.testing.assert_array_equal(found.names, [0, 1, 2])


def test_shared_noise_makes_the_naive_comparison_too_high():
    one = kernel(1) * 0 + np.eye(60)  # R is 0 off the diagonal, all that is seen is noise
    other = np.diag(np.linspace(1, 2, 60))
    found = kernel_phases(series_of((one, other), draws=30, seed=3), np.arange(60))
    assert found.naive[0, 1] > 0.9
    assert abs(found.cross[0, 1]) < 0.1
    apart = kernel_phases(series_of((one, other), 30, seed=3, shared=False), np.arange(60))
    assert abs(apart.naive[0, 1]) < 0.1


def test_what_cannot_be_halved_is_refused():
    trace = series_of((kernel(1), kernel(2)), draws=10, seed=0)
    with pytest.raises(ValueError, match="one chain"):
        kernel_phases(trace.isel(chain=[0]), np.arange(60))
    with pytest.raises(ValueError, match="samples has 8"):
        kernel_phases(trace, np.arange(8))
