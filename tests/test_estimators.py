"""Estimators against NumPy, ArviZ and closed forms, on traces built by hand."""

import os
import re
import subprocess
import sys

import arviz as az
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import probelib
from probelib.guessing import guessing_loss

N_BETA = 10.0
_FINITE = st.floats(-100, 100, width=32)


def make_trace(loss, init_loss=None, label=None, n_beta=N_BETA):
    """A trace with the schema of the store; loss (chain, draw, sample)."""
    loss = np.asarray(loss)
    chains, draws, n = loss.shape
    init_loss = np.zeros(n, np.float32) if init_loss is None else np.asarray(init_loss, np.float32)
    coords = {"sample_id": ("sample", np.arange(n))}
    if label is not None:
        coords["label"] = ("sample", label)
    return xr.Dataset(
        {
            "loss": (("chain", "draw", "sample"), loss.astype(np.float32)),
            "init_loss": ("sample", init_loss),
            "distance": (("chain", "draw"), np.ones((chains, draws), np.float32)),
            "sampling_loss": (("chain", "step"), np.ones((chains, draws), np.float32)),
        },
        coords,
        {"config": {"n_beta": n_beta}},
    )


def random_trace(seed=0, chains=3, draws=40, n=12, **kwargs):
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(chains, draws, 5)) @ rng.normal(size=(5, n))
    return make_trace(mixed + rng.normal(size=n) ** 2, rng.random(n), **kwargs)


def ar1(rng, rho, shape):
    """A stationary AR(1) of unit variance along the second axis."""
    x = rng.normal(size=shape)
    for t in range(1, shape[1]):
        x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * x[:, t]
    return x


@st.composite
def traces(draw):
    shape = draw(st.tuples(st.integers(1, 3), st.integers(2, 9), st.integers(1, 6)))
    loss = draw(hnp.arrays(np.float32, shape, elements=_FINITE))
    init = draw(hnp.arrays(np.float32, shape[-1:], elements=_FINITE))
    return make_trace(loss, init)


def changes(trace):
    """dl pooled over chains and draws, (S, sample), float64."""
    change = trace.loss.values.astype(np.float64) - trace.init_loss.values.astype(np.float64)
    return change.reshape(-1, change.shape[-1])


@settings(max_examples=100, deadline=None)
@given(traces())
def test_estimators_against_numpy(trace):
    dl, n = changes(trace), trace.sizes["sample"]
    covariance = np.cov(dl.T, ddof=1).reshape(n, n)
    variance = np.diag(covariance)
    kernel = probelib.loss_kernel(trace)
    # float64 sums; the kernel holds unit vectors in float32.
    np.testing.assert_allclose(probelib.loss_gain(trace), dl.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(kernel.diagonal(), variance, rtol=1e-10, atol=1e-12)
    atol = 1e-6 * np.sqrt(np.outer(variance, variance)) + 1e-12
    assert (np.abs(kernel.covariance() - covariance) <= atol).all()
    moving = variance > 1e-9
    if moving.sum() > 1:
        expected = np.corrcoef(dl[:, moving].T)
        at = np.flatnonzero(moving)
        np.testing.assert_allclose(kernel.correlation(at, at), expected, atol=2e-6)
    assert np.abs(kernel.correlation()).max() <= 1
    features = kernel.features()
    assert features.shape == (n, len(dl))
    assert (np.abs(features @ features.T - covariance) <= 3 * atol).all()

    llc = probelib.local_learning_coefficient(trace)
    np.testing.assert_allclose(llc.value, N_BETA * dl.mean(), rtol=1e-9, atol=1e-9)
    v, nu = probelib.empirical_variance(trace), probelib.singular_fluctuation(trace)
    shape = trace.sizes["chain"], trace.sizes["draw"], n
    expected = np.trace(covariance)
    if shape[0] > 1:  # the variance of the mean, as chains of less than ten draws tell it
        of_mean = dl.reshape(shape).mean(1).var(0, ddof=1).sum() / shape[0]
        expected = expected * (1 - 1 / len(dl)) + of_mean
    np.testing.assert_allclose(v.value, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(nu.value, N_BETA / n / 2 * v.value, rtol=1e-9, atol=1e-9)


def test_identities_of_the_learning_coefficient_and_of_the_trace():
    trace = random_trace()
    gain, kernel = probelib.loss_gain(trace), probelib.loss_kernel(trace)
    assert float(probelib.local_learning_coefficient(trace)) == pytest.approx(
        N_BETA * float(gain.mean()), rel=1e-12
    )
    # Of 120 independent draws, V less the pooled tr K is what chance makes of 1 / 120.
    trace_of_kernel = float(kernel.diagonal().sum())
    assert float(probelib.empirical_variance(trace)) == pytest.approx(trace_of_kernel, rel=0.02)
    one = trace.isel(chain=[0], draw=slice(9))  # too short to know the bias
    assert float(probelib.empirical_variance(one)) == pytest.approx(
        float(probelib.loss_kernel(one).diagonal().sum()), rel=1e-12
    )
    along = probelib.mean_loss_change(trace)
    assert along.shape == (3, 40)
    np.testing.assert_allclose(along, changes(trace).mean(1).reshape(3, 40), rtol=1e-12)


def test_more_samples_than_a_block(monkeypatch):
    trace = random_trace(n=23)
    whole = [probelib.loss_gain(trace), probelib.loss_kernel(trace).covariance()]
    whole.append(float(probelib.singular_fluctuation(trace)))
    monkeypatch.setattr(probelib.estimators.blocks, "BLOCK", 5)
    for a, b in zip(
        whole,
        [
            probelib.loss_gain(trace),
            probelib.loss_kernel(trace).covariance(),
            float(probelib.singular_fluctuation(trace)),
        ],
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("block", [5, 64])
def test_a_kernel_too_large_for_memory_is_the_same(monkeypatch, tmp_path, on_disk, block):
    trace = random_trace(n=23)
    if on_disk:
        trace.drop_attrs().to_zarr(tmp_path / "trace.zarr", consolidated=False)
        opened = xr.open_zarr(tmp_path / "trace.zarr", consolidated=False, chunks=None)
        trace = opened.assign_attrs(trace.attrs)
    rows, cols, among = np.array([22, 3, 4, 3]), np.array([0, 20, 9]), np.arange(2, 20)

    def everything():
        kernel = probelib.loss_kernel(trace)
        yield kernel.covariance()
        yield kernel.correlation(rows, cols)
        yield kernel.covariance_mcse(rows, cols)
        yield kernel.correlation_mcse(rows, cols)
        yield kernel.diagonal()
        yield kernel.features()
        yield kernel.features(rows=rows)
        yield np.abs(kernel.features(3, rows=np.unique(rows)))  # axes have no sign
        yield kernel.top_correlated(4).index
        yield kernel.top_correlated(4).correlation
        yield kernel.top_correlated(4).q_value
        yield kernel.top_correlated(4, rows, among, block=2).index

    whole = list(everything())
    monkeypatch.setattr(probelib.estimators.kernel, "_IN_MEMORY", 0)
    monkeypatch.setattr(probelib.estimators.blocks, "BLOCK", block)
    for a, b in zip(whole, everything(), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)


def test_a_kernel_too_large_for_memory_is_not_kept(monkeypatch):
    monkeypatch.setattr(probelib.estimators.kernel, "_IN_MEMORY", 0)
    kernel = probelib.loss_kernel(random_trace())
    kernel.top_correlated(3)
    kernel.covariance()
    assert "_unit_and_scale" not in vars(kernel)


def test_estimates_keep_sample_ids_labels_and_errors():
    trace = random_trace(label=np.arange(12) % 3)
    for estimate in (probelib.loss_gain(trace), probelib.loss_kernel(trace).diagonal()):
        assert estimate.dims == ("sample",)
        np.testing.assert_array_equal(estimate.label, np.arange(12) % 3)
        np.testing.assert_array_equal(estimate.sample_id, np.arange(12))
        assert (estimate.mcse > 0).all()


# The constants make losses and changes that no float64 sum over 7 draws holds exactly.
@pytest.mark.parametrize("constant", [0.0, 1.1, 1e-3, 3e7])
def test_a_sample_without_variance_correlates_with_nothing(constant):
    rng = np.random.default_rng(0)
    loss = rng.normal(size=(1, 7, 4))
    loss[..., 1] = loss[..., 3] = constant
    kernel = probelib.loss_kernel(make_trace(loss, [1e-9, 1e-9, 0.3, 7e-12]))
    r = kernel.correlation()
    assert (r[[1, 3]] == 0).all()
    assert (r[:, [1, 3]] == 0).all()
    assert (kernel.diagonal()[[1, 3]] == 0).all()
    assert np.isfinite(kernel.covariance()).all()
    assert (kernel.features()[[1, 3]] == 0).all()


@pytest.mark.parametrize("scale", [1e-6, 1e-18, 1e-30])
def test_tiny_losses_have_exact_correlations(scale):
    rng = np.random.default_rng(1)
    loss = rng.random((2, 30, 5)).astype(np.float32)
    small = loss.copy()
    small[..., :3] *= np.float32(scale)
    expected = np.corrcoef(small.astype(np.float64).reshape(60, 5).T)
    kernel = probelib.loss_kernel(make_trace(small))
    np.testing.assert_allclose(kernel.correlation(), expected, atol=1e-6)
    # Tiny beside what the sample lost at w*: the change rounds it away, the kernel must not.
    kernel = probelib.loss_kernel(make_trace(small, np.full(5, 2.0)))
    np.testing.assert_allclose(kernel.correlation(), expected, atol=1e-6)
    np.testing.assert_allclose(
        kernel.diagonal(), small.astype(np.float64).reshape(60, 5).var(0, ddof=1), rtol=1e-10
    )


def test_a_constant_added_to_a_samples_loss_changes_nothing():
    rng = np.random.default_rng(2)
    # Multiples of 2^-10 below 8 plus whole numbers: float32 holds every sum exactly.
    loss = rng.integers(0, 2**13, (2, 25, 6)) / 2**10
    init, shift = rng.integers(0, 2**13, 6) / 2**10, np.array([0, 1, 2, 30, 400, 5000])
    a, b = make_trace(loss, init), make_trace(loss + shift, init + shift)
    np.testing.assert_array_equal(probelib.loss_gain(a), probelib.loss_gain(b))
    np.testing.assert_allclose(
        probelib.loss_kernel(a).covariance(), probelib.loss_kernel(b).covariance(), rtol=2e-5
    )
    for f in (probelib.local_learning_coefficient, probelib.singular_fluctuation):
        assert f(a).value == pytest.approx(f(b).value, rel=1e-9)


def test_rows_and_columns_are_positions_in_the_whole():
    kernel = probelib.loss_kernel(random_trace())
    rows, cols = np.array([7, 2, 2]), np.array([11, 0])
    np.testing.assert_allclose(
        kernel.correlation(rows, cols), kernel.correlation()[np.ix_(rows, cols)], atol=1e-6
    )
    np.testing.assert_allclose(
        kernel.covariance(rows, cols), kernel.covariance()[np.ix_(rows, cols)], rtol=1e-5
    )
    np.testing.assert_allclose(kernel.features(rows=rows), kernel.features()[rows])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), data=st.data())
def test_top_correlated_against_brute_force(seed, data):
    n = 12
    kernel = probelib.loss_kernel(random_trace(seed, n=n))
    subset = st.lists(st.integers(0, n - 1), min_size=1, max_size=n, unique=True).map(np.array)
    rows = data.draw(st.none() | subset)
    among = data.draw(st.none() | subset.filter(lambda a: len(a) > 1))
    k = data.draw(st.integers(1, (n if among is None else len(among)) - 1))
    block = data.draw(st.integers(1, n))
    with pytest.MonkeyPatch.context() as patch:  # candidates in several blocks, from disk or not
        patch.setattr(probelib.estimators.blocks, "BLOCK", data.draw(st.integers(1, n)))
        patch.setattr(
            probelib.estimators.kernel, "_IN_MEMORY", data.draw(st.sampled_from([0, 2**31]))
        )
        found = kernel.top_correlated(k, rows, among, block)
    r = kernel.correlation()
    rows = np.arange(n) if rows is None else rows
    among = np.arange(n) if among is None else among
    assert found.index.shape == found.correlation.shape == (len(rows), k)
    for row, index, value in zip(rows, found.index, found.correlation, strict=True):
        others = among[among != row]
        best = np.sort(r[row, others])[::-1][:k]
        np.testing.assert_allclose(value, best, atol=2e-6)  # ties may swap, values may not
        np.testing.assert_allclose(r[row, index], value, atol=2e-6)
        assert row not in index
        assert len(set(index)) == k
        assert set(index) <= set(among)


def test_top_correlated_takes_masks_and_negative_positions():
    kernel = probelib.loss_kernel(random_trace())
    mask = np.arange(12) % 2 == 0
    a, b = (
        kernel.top_correlated(2, [-1], mask),
        kernel.top_correlated(2, [11], np.flatnonzero(mask)),
    )
    np.testing.assert_array_equal(a.index, b.index)
    assert 11 not in kernel.top_correlated(11, [-1]).index


@pytest.mark.parametrize("k", [0, -1, 12])
def test_top_correlated_refuses_a_k_that_is_not_there(k):
    with pytest.raises(ValueError, match=f"k is {k}; choose from 1 to 11"):
        probelib.loss_kernel(random_trace()).top_correlated(k)


def test_principal_features_are_those_of_the_kernel():
    kernel = probelib.loss_kernel(random_trace())
    covariance = kernel.covariance()
    values = np.linalg.eigvalsh(covariance)[::-1]
    for k in (1, 3, 12):
        features = kernel.features(k)
        assert features.shape == (12, k)
        gram = features.astype(np.float64).T @ features
        np.testing.assert_allclose(gram, np.diag(values[:k]), atol=1e-5 * values[0])
    # Five factors made this kernel: five axes hold all of it.
    five = kernel.features(5)
    np.testing.assert_allclose(five @ five.T, covariance, atol=1e-5 * values[0])
    with pytest.raises(ValueError, match="n_components is 13; choose from 1 to 12"):
        kernel.features(13)


def kernel_of(kind, trace):
    kernel = probelib.loss_kernel(trace)
    if kind == "losses":
        return kernel
    diagonal = kernel.diagonal()
    coords = {name: diagonal[name] for name in ("sample_id", "label")}
    return probelib.MatrixKernel(kernel.covariance(), coords, diagonal.mcse.values)


@pytest.mark.parametrize("kind", ["losses", "matrix"])
def test_every_kernel_answers_the_same_calls(kind):
    trace = random_trace(seed=3, label=np.arange(12) % 3)
    kernel, truth = kernel_of(kind, trace), np.cov(changes(trace).T, ddof=1)
    scale = np.sqrt(np.diag(truth))
    r = truth / np.outer(scale, scale)
    assert isinstance(kernel, probelib.Kernel)
    assert kernel.shape == (12, 12)
    diagonal = kernel.diagonal()
    assert (type(diagonal), diagonal.dims, diagonal.name) == (
        xr.DataArray, ("sample",), "loss_variance"
    )  # fmt: skip
    # The unit columns of a loss kernel are float32, and so are the entries of its matrix.
    np.testing.assert_allclose(diagonal, scale**2, rtol=1e-6)
    expected = probelib.loss_kernel(trace).diagonal()
    for name in ("sample_id", "label", "mcse"):
        np.testing.assert_array_equal(diagonal[name], expected[name])
    mask = np.arange(12) % 2 == 0
    for rows in (None, [7, 2, 2], np.array([-1, 0]), slice(3, 9), mask):
        for cols in (None, [11, 0], mask):
            at = np.ix_(*(np.arange(12)[slice(None) if i is None else i] for i in (rows, cols)))
            covariance, correlation = kernel.covariance(rows, cols), kernel.correlation(rows, cols)
            assert type(covariance) is type(correlation) is np.ndarray
            np.testing.assert_allclose(covariance, truth[at], atol=1e-6 * scale.max() ** 2)
            np.testing.assert_allclose(correlation, r[at], atol=2e-6)
        positions = np.arange(12)[slice(None) if rows is None else rows]
        features = kernel.features(rows=rows)
        assert (type(features), len(features)) == (np.ndarray, len(positions))
        block = truth[np.ix_(positions, positions)]
        np.testing.assert_allclose(features @ features.T, block, atol=1e-5 * scale.max() ** 2)
        two = kernel.features(2, rows)
        values, vectors = np.linalg.eigh(block)
        best = (vectors[:, -2:] * values[-2:]) @ vectors[:, -2:].T
        assert two.shape == (len(positions), 2)
        np.testing.assert_allclose(two @ two.T, best, atol=1e-5 * scale.max() ** 2)
        found = kernel.top_correlated(3, rows, slice(2, 10))
        assert type(found) is probelib.Neighbours
        for row, index, value in zip(positions, found.index, found.correlation, strict=True):
            others = np.setdiff1d(np.arange(2, 10), row)
            best = others[np.argsort(-r[row, others])[:3]]
            np.testing.assert_array_equal(index, best)
            np.testing.assert_allclose(value, r[row, best], atol=2e-6)
    for bad in (0, 12):
        with pytest.raises(ValueError, match=f"k is {bad}; choose from 1 to 11"):
            kernel.top_correlated(bad)
    with pytest.raises(ValueError, match="n_components is 13; choose from 1 to 12"):
        kernel.features(13)
    assert kernel.top_correlated(2, []).index.shape == (0, 2)


def test_a_matrix_that_is_searched_in_blocks(monkeypatch):
    kernel = kernel_of("matrix", random_trace(label=np.arange(12)))
    whole = kernel.top_correlated(4)
    monkeypatch.setattr(probelib.estimators.blocks, "BLOCK", 5)
    for block in (None, 1, 7):
        found = kernel.top_correlated(4, block=block)
        np.testing.assert_array_equal(found.index, whole.index)
        np.testing.assert_array_equal(found.correlation, whole.correlation)


def test_a_candidate_that_is_named_twice_counts_once():
    kernel = probelib.loss_kernel(random_trace())
    twice, once = (kernel.top_correlated(2, [0], a) for a in ([3, 1, 3, 2], [1, 2, 3]))
    np.testing.assert_array_equal(twice.index, once.index)


def test_features_of_an_indefinite_matrix_are_those_of_the_nearest_semidefinite_one():
    rng = np.random.default_rng(9)
    basis = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    values = np.array([3.0, 1.0, 0.5, -0.2, -1e-17])
    kernel = probelib.MatrixKernel((basis * values) @ basis.T)
    features = kernel.features()
    nearest = (basis * np.maximum(values, 0)) @ basis.T
    np.testing.assert_allclose(features @ features.T, nearest, atol=1e-14)
    assert np.abs(features[:, 3:]).max() < 1e-7
    np.testing.assert_allclose(kernel.features(2), features[:, :2])


def test_a_matrix_that_is_not_symmetric_is_refused():
    with pytest.raises(ValueError, match=r"covariance is not symmetric at \(0, 1\); give "):
        probelib.MatrixKernel(np.array([[1.0, 0.9], [0.1, 1.0]]))


def test_a_matrix_alone_has_no_error():
    diagonal = probelib.MatrixKernel(np.eye(3)).diagonal()
    assert np.isnan(diagonal.mcse).all()
    np.testing.assert_array_equal(diagonal, 1)


@pytest.mark.parametrize("shape", [(4, 500), (1, 500), (5, 121), (3, 8), (2, 9), (1, 11)])
@pytest.mark.parametrize("rho", [0.0, 0.6, 0.97])
def test_effective_sample_sizes_are_those_of_arviz(shape, rho):
    rng = np.random.default_rng(3)
    x = ar1(rng, rho, (*shape, 30)) + 0.3 * rng.normal(size=(shape[0], 1, 30))
    expected = [az.ess(x[..., i], method="mean") for i in range(30)]
    np.testing.assert_allclose(probelib.estimators.ess_of_mean(x), expected, rtol=1e-9)


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9])
def test_standard_errors_agree_with_the_truth(rho):
    # AR(1) of unit variance: T Var(mean) = (1 + rho) / (1 - rho) but for 2 rho / (T (1 - rho)²),
    # under 0.1 % of it. The estimate's own error is that of a sum of about 2 tau autocorrelations
    # from S draws, sd of mcse² near sqrt(8 tau / S) <= 0.13 at S = 10,000; 60 of them averaged,
    # times six: 0.1, and batches of five autocorrelation times are biased by a few per cent more.
    draws, n = 2500, 60
    trace = make_trace(ar1(np.random.default_rng(3), rho, (4, draws, n)))
    mcse = probelib.loss_gain(trace).mcse.values
    truth = np.sqrt((1 + rho) / (1 - rho) / (4 * draws))
    assert np.mean((mcse / truth) ** 2) == pytest.approx(1, abs=0.13)


def test_chains_that_have_not_met_have_a_large_error():
    # Four chains stuck at levels of unit spread: the mean is known to about 1 / sqrt(4), however
    # many draws each has, and four means are worth Student's t, 3.18 / 1.96.
    rng = np.random.default_rng(8)
    levels = rng.normal(size=(4, 1, 200))
    mcse = probelib.loss_gain(make_trace(levels + 0.1 * rng.normal(size=(4, 500, 200)))).mcse
    true = levels.std(0, ddof=1)[0] / 2
    assert np.median(mcse / true) == pytest.approx(3.18 / 1.96, rel=0.01)


def test_errors_of_kernel_entries_are_calibrated():
    # 400 replicas of 2 chains x 900 independent draws of two Gaussians with correlation 0.8:
    # Var(K_12) = (1 + r²) / S, Var(R_12) = (1 - r²)² / S. One mcse² carries the sample variance
    # of the products (relative sd sqrt(kurtosis / S) < 0.1) and an autocorrelation time (relative
    # sd near sqrt(8 / S) = 0.07), so the mean of 400 is known to 0.6 %, of 40 to 2 %.
    r, replicas = 0.8, 400
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(2, 2, 900, replicas))
    loss = np.empty((2, 900, 2 * replicas))
    loss[..., ::2], loss[..., 1::2] = a, r * a + np.sqrt(1 - r**2) * b
    kernel = probelib.loss_kernel(make_trace(loss))
    i, j = np.arange(0, 2 * replicas, 2), np.arange(1, 2 * replicas, 2)
    of_k = np.array(
        [kernel.covariance_mcse([p], [q])[0, 0] for p, q in zip(i[:40], j[:40], strict=True)]
    )
    of_r = np.array(
        [kernel.correlation_mcse([p], [q])[0, 0] for p, q in zip(i[:40], j[:40], strict=True)]
    )
    # 64 batches make Student's t 2 % wider than the normal quantile; the longer arm is another 4 %
    # to 5 % (3 h / 4, h = 1.96 x sqrt(2 / 1800)): 1.02² x 1.045² = 1.13.
    # The median: of one pair of chains in a hundred the difference looks too large for chance, and
    # then both chains alone have to do, at one degree of freedom.
    assert np.median(of_k**2) * 1800 == pytest.approx(1.13 * (1 + r**2), rel=0.12)
    assert np.median(of_r**2) * 1800 == pytest.approx(1.13 * (1 - r**2) ** 2, rel=0.12)
    diagonal = kernel.diagonal()
    assert np.median(diagonal.mcse.values**2) * 1800 == pytest.approx(1.13 * 2, rel=0.08)
    # And the estimates scatter by as much: chi²_400 / 400 within 6 x 0.071.
    covariance = np.array([kernel.covariance([p], [q])[0, 0] for p, q in zip(i, j, strict=True)])
    assert np.var(covariance) * 1800 == pytest.approx(1 + r**2, rel=0.45)
    assert (np.diag(kernel.correlation_mcse(i[:3], i[:3])) == 0).all()


def test_few_draws_are_refused_by_name():
    one = random_trace(chains=1, draws=1)
    for estimate in (
        probelib.loss_gain,
        probelib.loss_kernel,
        probelib.local_learning_coefficient,
        probelib.empirical_variance,
        probelib.singular_fluctuation,
        probelib.diagnostics,
    ):
        with pytest.raises(ValueError, match="trace has 1 draws; an estimate needs at least two"):
            estimate(one)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_losses_are_refused_by_name(bad):
    trace = random_trace()
    trace.loss[2, 17, 5] = bad
    for estimate in (
        probelib.loss_gain,
        lambda t: probelib.loss_kernel(t).correlation(),
        lambda t: probelib.loss_kernel(t).diagonal(),
        probelib.local_learning_coefficient,
        probelib.empirical_variance,
        probelib.singular_fluctuation,
        probelib.diagnostics,
    ):
        with pytest.raises(ValueError, match="non-finite loss in chain 2, draw 17, sample 5"):
            estimate(trace)
    assert np.isfinite(probelib.loss_gain(trace.isel(draw=slice(17)))).all()


@pytest.mark.parametrize(("chains", "draws"), [(2, 1), (1, 2), (1, 3), (3, 5), (1, 9)])
def test_short_traces_have_estimates_and_say_what_they_know(chains, draws):
    trace = random_trace(chains=chains, draws=draws)
    gain, llc = probelib.loss_gain(trace), probelib.local_learning_coefficient(trace)
    assert np.isfinite(gain).all()
    assert np.isfinite(llc.value)
    # Several chains know their error; one chain of less than ten draws does not.
    assert (np.isfinite(gain.mcse) == (chains > 1)).all()
    assert np.isfinite(llc.mcse) == (chains > 1)
    assert not np.isnan(probelib.loss_kernel(trace).diagonal().mcse).any()
    probelib.diagnostics(trace)


def test_diagnostics_against_arviz():
    trace = random_trace(draws=60)
    found = probelib.diagnostics(trace)
    series = [changes(trace).mean(1).reshape(3, 60)]
    series += [trace.loss.values[..., i].astype(np.float64) for i in range(12)]
    np.testing.assert_allclose(found.ess, [az.ess(s) for s in series], rtol=1e-9)
    np.testing.assert_allclose(found.rhat, [az.rhat(s) for s in series], rtol=1e-9)
    assert found.rhat_max == found.rhat.max()
    assert found.ess_min == found.ess.min()
    assert found.autocorrelation_time == pytest.approx(180 / found.ess[0])
    assert found.loss_at_center == pytest.approx(float(trace.init_loss.mean()), rel=1e-6)
    assert found.loss_along_chains == pytest.approx(float(trace.loss.mean()), rel=1e-5)
    llc = probelib.local_learning_coefficient(trace)
    expected = probelib.estimators.mcse_of_mean(series[0])
    assert llc.mcse == pytest.approx(N_BETA * float(expected), rel=1e-9)
    assert (llc.ess, llc.rhat) == pytest.approx((found.ess[0], found.rhat[0]), rel=1e-3)
    few = probelib.diagnostics(trace, n_samples=4)
    assert len(few.samples) == 4
    assert len(few.rhat) == 5


def test_diagnostics_see_chains_apart_and_a_single_chain_that_drifts():
    rng = np.random.default_rng(5)
    noise = rng.normal(size=(2, 200, 3))
    assert probelib.diagnostics(make_trace(noise)).rhat_max < 1.1
    apart = noise + np.array([0.0, 5.0])[:, None, None]
    assert probelib.diagnostics(make_trace(apart)).rhat_max > 1.5
    drift = noise[:1] + np.linspace(0, 5, 200)[:, None]
    assert probelib.diagnostics(make_trace(drift)).rhat_max > 1.5
    found = probelib.diagnostics(make_trace(drift))
    halves = drift.mean(-1).reshape(2, 100)
    assert found.rhat[0] == pytest.approx(float(az.rhat(halves)), rel=1e-3)
    assert found.ess[0] == pytest.approx(float(az.ess(halves)), rel=1e-3)


def test_diagnostics_of_losses_that_never_move():
    found = probelib.diagnostics(make_trace(np.ones((2, 20, 3))))
    assert found.rhat_max == np.inf
    assert found.ess_min == 0
    noise = np.random.default_rng(6).normal(size=(2, 50, 3))
    noise[..., 1] = 1
    found = probelib.diagnostics(make_trace(noise))
    assert np.isnan(found.rhat[2])
    assert found.rhat_max < 1.2


def test_autocorrelation_against_numpy_chain_by_chain():
    series = ar1(np.random.default_rng(3), 0.7, (2, 60))
    found = probelib.autocorrelation(series, 20)
    centred = series - series.mean(1, keepdims=True)
    for chain, x in enumerate(centred):
        full = np.correlate(x, x, "full")[len(x) - 1 :]
        np.testing.assert_allclose(found[chain], full[:20] / full[0], atol=1e-12)
    with pytest.raises(ValueError, match="lags is 61; choose from 1 to 60"):
        probelib.autocorrelation(series, 61)


def test_the_library_imports_what_few_need_only_where_it_is_used_and_says_nothing(tmp_path):
    code = """if True:
        import sys
        import numpy as np
        import probelib
        late = {"arviz", "matplotlib", "scipy.stats", "scipy.linalg", "probelib.interop"}
        assert not late & set(sys.modules), late & set(sys.modules)
        probelib.estimators.share(np.random.rand(2, 9), np.random.rand(2, 9))
        assert "arviz" in sys.modules
        assert callable(probelib.influence.hessian)
        assert callable(probelib.interop.to_devinterp)
        assert {"influence", "interop"} <= set(dir(probelib))
        assert not hasattr(probelib, "nothing")
    """
    command = [sys.executable, "-W", "default", "-c", code]
    # ArviZ announces its next version once a day, by a note in the cache.
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "ArviZ" not in done.stderr


def quadratic_trace(
    step_size=0.01,
    localization=20.0,
    n_beta=10.0,
    draws=400,
    data=None,
    noise=0.0,
    shift=0.0,
    **kwargs,
):
    """A linear regression, whose spread and LLC are known, sampled for real."""
    rng = np.random.default_rng(7)
    x = torch.tensor(rng.normal(size=(50, 4)), dtype=torch.float32)
    y = x.sum(1, keepdim=True) + noise * torch.tensor(rng.normal(size=(50, 1))).float()
    model = torch.nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T + shift)
    posterior = probelib.LocalPosterior(
        model,
        probelib.squared_error,
        (x, y) if data is None else data,
        n_beta=n_beta,
        localization=localization,
    )
    settings = {"sampler": probelib.SGLD(step_size), "chains": 4, "draws": draws, "burn_in": 100}
    trace = probelib.sample(posterior, progress=False, **settings | {"thin": 4} | kwargs)
    return trace, x.numpy().astype(np.float64)


def test_a_sound_trace_has_nothing_against_it_and_the_numbers_are_those_of_theory():
    trace, x = quadratic_trace(noise=1.0)
    found = probelib.diagnostics(trace)
    assert found.good, str(found)
    assert not found.wrong
    assert str(found).startswith("Nothing here speaks against this trace.\n")
    assert [f.name for f in found.findings] == [
        "diverged", "trained", "minimum", "step", "mixed", "draws", "spread", "arrived", "basin",
        "digits",
    ]  # fmt: skip
    # Eq. 7's stationary variance in every direction, against 1 / gamma and against Eq. 1.
    curvature = 10 * np.linalg.eigvalsh(x.T @ x / 50) + 20
    exact, biased = 1 / curvature, 1 / (curvature * (1 - 0.01 * curvature / 4))
    assert found["spread"].value == pytest.approx(20 * np.mean(biased), rel=0.1)
    of_step = 1 - ((curvature - 20) * exact).sum() / ((curvature - 20) * biased).sum()
    assert found["step"].value == pytest.approx(of_step, rel=0.1)


def test_a_step_that_is_too_long_is_told_and_what_to_take():
    found = probelib.diagnostics(quadratic_trace(step_size=0.08, noise=1.0)[0])
    assert found.wrong
    assert not found["step"].good
    assert "of the LLC, more than 10%: it is too long for the curvature" in str(found)
    advised = float(re.search(r"try ([0-9.e-]+), or LeimkuhlerMatthews", str(found))[1])
    assert probelib.diagnostics(quadratic_trace(step_size=advised, noise=1.0)[0])["step"].good
    assert str(found).startswith("Do not trust this trace: 1 of 10 points speak against it.")


def test_few_draws_are_called_wide_and_not_wrong():
    few = probelib.diagnostics(quadratic_trace(draws=8, noise=1.0)[0])
    assert (few.good, few.wrong, few["draws"].good) == (False, False, False)
    assert str(few).startswith("Not wrong, as far as this can tell, but uncertain: ")
    slow = quadratic_trace(step_size=1e-4, draws=40, burn_in=0, noise=1.0)[0]
    unmixed = probelib.diagnostics(slow)
    assert unmixed.wrong
    assert f"the largest R-hat is {unmixed.rhat_max:.3f}, above 1.1" in str(unmixed)


def hill(x):
    """A maximum of the loss, held by the localization alone."""
    model = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    return probelib.LocalPosterior(
        model, lambda o, t: 4 - o[:, 0] ** 2 / 2, (x, x), n_beta=10.0, localization=25.0
    )


def test_a_loss_that_falls_away_from_the_center_is_told():
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    away = probelib.sample(
        hill(x), sampler=probelib.SGLD(1e-3), chains=4, draws=400, burn_in=200, thin=5,
        progress=False,
    )  # fmt: skip
    found = probelib.diagnostics(away)
    assert not found["spread"].good
    assert "the loss falls away from w*" in found["spread"].sentence
    assert not found["minimum"].good
    assert "below 0: w* is no minimum of L" in found["minimum"].sentence


def test_a_slope_at_the_center_is_told_where_the_llc_is_positive():
    trace = quadratic_trace(noise=1.0, shift=0.05, n_beta=100.0, sampler=probelib.SGLD(2e-3))[0]
    llc = probelib.local_learning_coefficient(trace)
    found = probelib.diagnostics(trace)
    assert llc.value > 3 * llc.mcse
    assert not found["minimum"].good
    assert "or less: w* is no minimum of L" in found["minimum"].sentence


def test_a_network_that_knows_no_more_than_guessing_is_told():
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    y = (torch.arange(60) < 6).long()  # a tenth: a guess costs 0.33 nats, not 0.69
    model = torch.nn.Linear(3, 2)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    posterior = probelib.LocalPosterior(
        model, probelib.cross_entropy, (x, y), n_beta=1.0, localization=100.0
    )
    trace = probelib.sample(
        posterior, sampler=probelib.LeimkuhlerMatthews(1e-3), chains=2, draws=30, progress=False
    )
    entropy = -(0.1 * np.log(0.1) + 0.9 * np.log(0.9))
    assert trace.attrs["guessing_loss"] == pytest.approx(entropy, abs=1e-3)
    found = probelib.diagnostics(trace)["trained"]
    assert not found.good
    assert "guessing costs 0.325: nothing was learned" in found.sentence


def test_a_network_that_nothing_could_improve_has_learned_all_there_is():
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(1))
    model = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    posterior = probelib.LocalPosterior(
        model, probelib.squared_error, (x, torch.zeros(20, 1)), n_beta=50.0, localization=5.0
    )
    trace = probelib.sample(
        posterior, sampler=probelib.LeimkuhlerMatthews(1e-2), draws=100, thin=4, progress=False
    )
    found = probelib.diagnostics(trace)["trained"]
    assert (found.value, found.limit, found.good) == (0, 0, True)


def narrow_valley(step_size, share_held):
    """RMSprop-SGLD on L = (product of two weights)² / 2, and on as many regular directions."""
    torch.manual_seed(0)

    class Valley(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(10, dtype=torch.float64))

        def forward(self, x):
            held, free = self.w[:share_held], self.w[share_held:]
            return torch.cat([x[:, :1] * held, x[:, :1] * free[:1] * free[1:2]], 1)

    x = torch.ones(4, 1, dtype=torch.float64)
    y = torch.zeros(4, share_held + 1, dtype=torch.float64)
    posterior = probelib.LocalPosterior(
        Valley(), probelib.squared_error, (x, y), n_beta=1000.0, localization=10.0
    )
    return probelib.sample(
        posterior, sampler=probelib.RMSpropSGLD(step_size), draws=200, burn_in=1000, thin=10,
        progress=False,
    )  # fmt: skip


def test_a_preconditioner_is_slow_against_the_slowest_weights_not_against_the_mean_loss():
    # A direction of the localization forgets in 2 / (eps gamma) = 1000 steps, as many as V.
    found = probelib.diagnostics(narrow_valley(2e-4, 2))["preconditioner"]
    assert found.value == pytest.approx(0.8, rel=0.25)  # eight of ten directions are so
    assert not found.good
    assert "try decay" in found.sentence
    # Where the data hold nearly all, what few others do counts by their share.
    held = probelib.diagnostics(narrow_valley(2e-4, 8))["preconditioner"]
    assert held.value < 0.35
    # A longer step forgets sooner.
    assert probelib.diagnostics(narrow_valley(2e-3, 2))["preconditioner"].good


def test_guessing_is_the_best_constant_output_of_any_loss():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(2))
    for loss, target, expected in (
        (probelib.squared_error, x[:, :1], float(x[:, 0].var(unbiased=False)) / 2),
        (lambda o, t: o[:, 0], x[:, :1], None),  # no output is the best
        (lambda o, t: (o[:, 0] - t[:, 0]).abs() - 5, x[:, :1],
         float((x[:, 0] - x[:, 0].median()).abs().mean()) - 5),
    ):  # fmt: skip
        posterior = probelib.LocalPosterior(
            torch.nn.Linear(3, 1), loss, (x, target), n_beta=1.0, localization=1.0
        )
        found = guessing_loss(posterior, posterior.data)
        if expected is None:
            assert found is None
        else:
            assert found == pytest.approx(expected, abs=0.02)


def test_a_probe_that_left_the_basin_is_told_so():
    noise = np.random.default_rng(8).normal(size=(2, 200, 6)) * 0.1
    near, far = (
        make_trace(level + noise, np.full(6, 0.2), np.arange(6) % 3) for level in (0.5, 1.2)
    )
    for trace in (near, far):
        trace.attrs["guessing_loss"] = float(np.log(3))
        trace.attrs["config"]["n_parameters"] = 1000
    assert probelib.diagnostics(near)["basin"].good
    found = probelib.diagnostics(far)["basin"]
    assert not found.good
    assert "guessing costs 1.1 nats" in found.sentence
    assert "have left w*'s basin; raise localization" in found.sentence
    # Without labels: more than a regular model of so many weights can have.
    trace = make_trace(3.0 + noise, np.zeros(6))
    trace.attrs["config"]["n_parameters"] = 10
    assert not probelib.diagnostics(trace)["basin"].good
    assert probelib.diagnostics(trace)["basin"].value == pytest.approx(N_BETA * 3, rel=1e-2)
    trace.attrs["config"]["n_parameters"] = 1000
    assert probelib.diagnostics(trace)["basin"].good


def test_losses_with_too_few_digits_are_told():
    noise = np.random.default_rng(8).normal(size=(2, 200, 6)).astype(np.float32)
    trace = make_trace((1e8 + noise).astype(np.float32), np.full(6, 1e8, np.float32))
    found = probelib.diagnostics(trace)["digits"]
    assert not found.good
    assert "too few digits; use a float64 model" in found.sentence
    assert probelib.diagnostics(make_trace(noise, np.zeros(6)))["digits"].good


def test_a_point_that_a_trace_does_not_tell_is_left_out():
    trace = random_trace()  # no step size or n_parameters
    found = probelib.diagnostics(trace)
    assert [f.name for f in found.findings] == ["diverged", "minimum", "mixed", "draws", "digits"]
    with pytest.raises(KeyError, match="name is 'basin'; choose one of 'diverged', 'minimum'"):
        found["basin"]


def test_no_chain_left_to_look_at():
    trace = make_trace(np.full((2, 20, 3), np.nan))
    trace.attrs["diverged"] = {"0": {"step": 3, "draws": 2}, "1": {"step": 5, "draws": 4}}
    with pytest.raises(ValueError, match="has no chain that did not diverge, the first at step 3"):
        probelib.diagnostics(trace)


@pytest.mark.parametrize("positions", [True, np.True_, 1.0, "a", [[1, 2], [0, 1]]])
def test_what_is_no_position_is_named(positions):
    covariance = np.diag([1.0, 2.0, 3.0, 4.0])
    kernel = probelib.MatrixKernel(covariance)
    for call in (kernel.covariance, kernel.correlation):
        with pytest.raises(ValueError, match=r"cols is .*; give positions as a number, a list, a "):
            call([0, 1], positions)
    with pytest.raises(ValueError, match="rows is "):
        kernel.top_correlated(k=1, rows=positions)


def test_a_matrix_kernel_checks_what_it_is_given():
    covariance = np.array([[1, 0, 0], [0, 1e-8, 9e-9], [0, -9e-9, 1e-8]])
    with pytest.raises(ValueError, match="covariance is not symmetric at"):
        probelib.MatrixKernel(covariance)
    with pytest.raises(ValueError, match=r"mcse has shape \(2,\); give one value per sample"):
        probelib.MatrixKernel(np.eye(3), mcse=np.ones(2))
    with pytest.raises(ValueError, match=r"coords\['label'\] has shape \(4,\)"):
        probelib.MatrixKernel(np.eye(3), {"label": ("sample", np.arange(4))})


def test_the_verdict_on_weighted_draws_is_that_of_their_weights():
    x = torch.tensor(np.random.default_rng(7).normal(size=(50, 4)), dtype=torch.float32)
    model = torch.nn.Linear(4, 1, bias=False)
    y = model(x).detach() + torch.randn(50, 1, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    posterior = probelib.LocalPosterior(
        model, probelib.squared_error, (x, y), n_beta=10.0, localization=10.0
    )
    trace = probelib.importance_sample(posterior, 1000, progress=False)
    found = probelib.diagnostics(trace)
    assert found.good, str(found)
    assert found["weights"].value == pytest.approx(probelib.khat(trace))
    with pytest.raises(KeyError, match="name is 'mixed'"):
        found["mixed"]
    cold = probelib.diagnostics(probelib.reweight(trace, 1000.0))
    assert cold.wrong
    assert "a few draws decide everything" in cold["weights"].sentence


def test_a_slope_is_only_read_where_the_steps_begin_at_the_center():
    kwargs = {"noise": 1.0, "shift": 0.05, "n_beta": 100.0, "sampler": probelib.SGLD(2e-3)}
    trace = quadratic_trace(**kwargs)[0]
    assert not probelib.diagnostics(trace)["minimum"].good
    later = trace.isel(step=slice(50, None))  # these steps tell nothing of w*
    assert probelib.diagnostics(later)["minimum"].good
