"""Errors of a kernel's entries from walks: closed forms, leaving out by hand, the unknown."""

import numpy as np
import pytest
import torch
from regressions import Exact
from scipy.stats import t as student

import probelib

pytestmark = pytest.mark.usefixtures("one_thread")
WALKS = 8


@pytest.fixture(scope="module")
def walks():
    """Sixty times eight walks of a regression at its minimum."""
    exact = Exact(n=6, d=5, gamma=100.0, n_beta=10.0, seed=1)
    pairs = probelib.gradient_pairs(exact.posterior, chains=60 * WALKS, pairs=5, progress=False)
    return exact, pairs


def correlations(k):
    scale = np.sqrt(np.diag(k))
    return k / scale[:, None] / scale


@pytest.mark.parametrize("limit", [False, True], ids=["Eq. 1", "limit"])
def test_errors_of_entries_cover_the_closed_form(walks, limit):
    """And would not if they were half as large."""
    exact, pairs = walks
    truth = exact.at(0.0 if limit else 10.0)[1]
    entries, others = np.triu_indices(6), np.triu_indices(6, 1)
    covariance, correlation = [], []
    for first in range(0, 60 * WALKS, WALKS):
        kernel = probelib.pair_kernel(pairs, slice(first, first + WALKS), limit=limit)
        error = np.abs(kernel.covariance() - truth) / kernel.covariance_mcse(None, None)
        covariance.append(error[entries])
        off = np.abs(kernel.correlation() - correlations(truth))[others]
        correlation.append(off / kernel.correlation_mcse(None, None)[others])
    for ratio in (covariance, correlation):
        assert 0.9 <= np.mean(np.array(ratio) <= 1.96) <= 1
        assert np.mean(np.array(ratio) <= 1.96 / 2) < 0.9
    assert np.isfinite(kernel.covariance_mcse(None, None)).all()


@pytest.mark.filterwarnings("ignore:pairs has")  # walks without one of them
@pytest.mark.parametrize(("limit", "count"), [(False, WALKS), (True, 5), (True, 2)])
def test_errors_are_those_of_leaving_out_one_walk_after_the_other(walks, limit, count):
    _, pairs = walks
    kernel = probelib.pair_kernel(pairs, slice(count), limit=limit)
    every = np.arange(count)
    without = np.stack(
        [probelib.pair_kernel(pairs, every[every != c], limit=limit).covariance() for c in every]
    )
    factor = (count - 1) * student.ppf(0.975, count - 1) ** 2
    spread = np.sqrt(factor * without.var(0)) / 1.96
    np.testing.assert_allclose(kernel.covariance_mcse(None, None), spread, rtol=1e-5)
    np.testing.assert_allclose(np.diag(spread), kernel.diagonal().mcse, rtol=1e-9)

    k = kernel.covariance()
    root = np.sqrt(np.outer(np.diag(k), np.diag(k)))
    relative = np.einsum("cii->ci", without) / np.diag(k)
    bottom = root * (relative[:, :, None] + relative[:, None, :]) / 2  # linear in K_ii and K_jj
    rho = np.linspace(-6, 6, 120_001)
    found = kernel.correlation_mcse(None, None)
    finite = 0
    for i, j in zip(*np.triu_indices(6, 1), strict=True):
        gap = without[:, i, j] - k[i, j] / root[i, j] * bottom[:, i, j]
        gap = gap - gap.mean()
        t = student.ppf(0.975, count - 1)
        skewness = np.abs(np.mean(gap**3)) / np.mean(gap**2) ** 1.5
        t += skewness * (2 * t**2 + 1) / (6 * np.sqrt(count))
        inside = np.abs(k[i, j] - rho * root[i, j]) <= t * np.sqrt(count - 1) * (
            without[:, i, j] - rho[:, None] * bottom[:, i, j]
        ).std(1)
        if inside[0] or inside[-1]:  # no correlation is excluded
            assert found[i, j] == np.inf or found[i, j] * 1.96 > 0.99
            continue
        r, finite = k[i, j] / root[i, j], finite + 1
        arm = np.abs(rho[inside] - r).max(initial=0)
        near = np.clip(r, -1, 1)
        wanted = min(arm + abs(r - near), 1 + abs(near))
        assert found[i, j] * 1.96 == pytest.approx(wanted, abs=2e-4)
    assert finite >= (1 if count == 2 else 8)
    np.testing.assert_array_equal(np.diag(found), 0)
    np.testing.assert_array_equal(found, found.T)


def test_neighbours_have_the_errors_of_their_correlations(walks):
    kernel = probelib.pair_kernel(walks[1], slice(WALKS))
    found = kernel.top_correlated(k=3, rows=[4, 0], among=[0, 1, 2, 4, 5])
    errors = kernel.correlation_mcse(None, None)
    for row, index, mcse in zip(found.rows, found.index, found.mcse, strict=True):
        np.testing.assert_array_equal(mcse, errors[row, index])
    assert np.isfinite(found.mcse).sum() > 3
    np.testing.assert_array_equal(found.to_dataframe().mcse, found.mcse.ravel())
    np.testing.assert_array_equal(kernel.top_correlated(k=3, rows=4).mcse.shape, (3,))


def test_errors_take_positions_as_the_kernel_does(walks, monkeypatch):
    kernel = probelib.pair_kernel(walks[1], slice(WALKS))
    for method in (kernel.covariance_mcse, kernel.correlation_mcse):
        whole = method(None, None)
        np.testing.assert_array_equal(method([4, 1], slice(2, 5)), whole[[4, 1], 2:5])
        np.testing.assert_array_equal(method(-1, None), whole[5])
        assert method(2, 3) == whole[2, 3]
        assert method([], [1]).shape == (0, 1)
        with pytest.raises(IndexError, match="rows holds 6"):
            method([6], None)
        monkeypatch.setattr("probelib.estimators.left_out._BYTES", 1)  # row by row
        np.testing.assert_array_equal(method(None, None), whole)
        monkeypatch.undo()


def test_what_no_walk_tells_has_no_error(walks):
    _, pairs = walks
    one = probelib.pair_kernel(pairs, 0, limit=True)
    off = ~np.eye(6, dtype=bool)
    for kernel in (one, probelib.MatrixKernel(one.covariance())):
        assert np.isnan(kernel.covariance_mcse(None, None)).all()
        assert np.isnan(kernel.correlation_mcse(None, None)[off]).all()
        assert np.isnan(kernel.top_correlated(k=2).mcse).all()
    heavy = pairs.copy(deep=True)
    heavy.log_weight[1, 0] += 50
    with pytest.warns(UserWarning, match="worth only"):
        lame = probelib.pair_kernel(heavy)
    assert np.isinf(lame.covariance_mcse(None, None)).all()
    assert np.isinf(lame.correlation_mcse(None, None)[off]).all()
    assert np.isinf(lame.top_correlated(k=2).mcse).all()


def test_a_sample_that_never_moves_has_no_error(walks):
    _, pairs = walks
    still = pairs.isel(chain=slice(WALKS)).copy(deep=True)
    still.kernel[:, 2, :] = still.kernel[:, :, 2] = 0
    kernel = probelib.pair_kernel(still, limit=True)
    for error in (kernel.covariance_mcse(None, None), kernel.correlation_mcse(None, None)):
        assert np.isinf(error[2, [0, 1, 3, 4, 5]]).all()
        assert np.isinf(error[[0, 1, 3, 4, 5], 2]).all()
    assert kernel.diagonal().mcse[2] == np.inf
    assert np.isfinite(np.delete(kernel.diagonal().mcse.values, 2)).all()


def test_an_unresolved_variance_leaves_the_correlation_unknown(walks):
    _, pairs = walks
    lost = pairs.isel(chain=slice(WALKS)).copy(deep=True)
    lost.kernel[:, 3, 3] = torch.linspace(-3, 2, WALKS).numpy()  # its mean is not positive
    kernel = probelib.pair_kernel(lost, limit=True)
    assert kernel.correlation()[3, 0] == 0
    assert np.isinf(kernel.correlation_mcse(3, [0, 1])).all()
    assert np.isfinite(kernel.covariance_mcse(3, [0, 1])).all()


def test_errors_are_those_of_the_pairs_as_they_were(walks):
    """The caller may go on to change the arrays, and samples of 1e-25 nats have errors too."""
    _, pairs = walks
    small = pairs.isel(chain=slice(WALKS)).copy(deep=True)
    scale = np.array([1, 1e-25, 1, 1, 1e-25, 1])
    small["kernel"] = small.kernel * scale[:, None] * scale
    kernel = probelib.pair_kernel(small, limit=True)
    plain = probelib.pair_kernel(pairs, slice(WALKS), limit=True)
    small.kernel[:] = 0
    np.testing.assert_allclose(
        kernel.covariance_mcse(None, None),
        plain.covariance_mcse(None, None) * scale[:, None] * scale,
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        kernel.correlation_mcse(None, None), plain.correlation_mcse(None, None), rtol=1e-3
    )
