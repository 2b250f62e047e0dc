"""Intervals hold what they promise, and neighbours that are called are there: by simulation."""

import numpy as np
import pytest
import xarray as xr

import probelib
from probelib import schedule
from probelib.estimators import llc, series
from probelib.estimators.jackknife import mcse_of_pairs
from probelib.estimators.neighbours import benjamini_hochberg
from probelib.estimators.series import batches, mcse_of_mean


def chains(rng, shape, tau):
    """Stationary AR(1) series of unit variance along axis 1, autocorrelation time tau."""
    rho = (tau - 1) / (tau + 1)
    x = rng.normal(size=shape)
    for t in range(1, shape[1]):
        x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * x[:, t]
    return x


def make_trace(loss, **coords):
    loss = np.asarray(loss, np.float32)
    return xr.Dataset(
        {
            "loss": (("chain", "draw", "sample"), loss),
            "init_loss": ("sample", np.zeros(loss.shape[2], np.float32)),
        },
        {"chain": np.arange(len(loss)), "sample_id": ("sample", np.arange(loss.shape[2]) + 100)}
        | {name: ("sample", value) for name, value in coords.items()},
        {"config": {"n_beta": 10.0}},
    )


def assert_covers(off, mcse, low, high=1.0):
    """Coverage of -+ 1.96 mcse is between two limits; an error that is NaN covers nothing."""
    covered = np.abs(off) <= 1.96 * mcse
    assert low <= covered.mean() <= high, covered.mean()


# 1000 independent series each: coverage is known to 0.007 (one standard error), so that the limits
# are 0.93 and 0.97 with two of them, and a little more for batches of few autocorrelation times.
@pytest.mark.parametrize(
    ("shape", "tau"),
    [((2, 8), 1), ((2, 8), 10), ((5, 10), 3), ((4, 20), 3), ((2, 100), 10), ((1, 100), 1)],
)
def test_intervals_of_gains_and_variances_cover(shape, tau):
    trace = make_trace(chains(np.random.default_rng(1), (*shape, 1000), tau))
    gain, diagonal = probelib.loss_gain(trace), probelib.loss_kernel(trace).diagonal()
    assert_covers(gain, gain.mcse, 0.915, 0.985)
    if shape[1] >= 2 * tau:  # else next to nothing is known of a spread
        assert_covers(diagonal - 1, diagonal.mcse, 0.915, 0.99)


@pytest.mark.parametrize(("shape", "tau"), [((1, 100), 50), ((1, 20), 10), ((1, 9), 1)])
def test_a_single_chain_that_is_too_short_is_not_sure(shape, tau):
    trace = make_trace(chains(np.random.default_rng(2), (*shape, 500), tau))
    gain, diagonal = probelib.loss_gain(trace), probelib.loss_kernel(trace).diagonal()
    assert_covers(gain, gain.mcse, 0.92)
    assert_covers(diagonal - 1, diagonal.mcse, 0.9)
    assert np.isinf(gain.mcse).mean() > 0.5


@pytest.mark.parametrize("r", [0.0, 0.5, 0.95])
@pytest.mark.parametrize(("shape", "tau"), [((4, 20), 1), ((2, 60), 3)])
def test_intervals_of_pairs_cover(shape, tau, r):
    rng, found = np.random.default_rng(3), []
    for _ in range(160):  # of 160, coverage is known to 0.017
        u, v = chains(rng, (2, *shape), tau)[..., None]
        v = r * u + np.sqrt(1 - r**2) * v
        u, v = u - u.mean(), v - v.mean()
        k, s = (u * v).mean(), np.sqrt((u * u).mean() * (v * v).mean())
        errors = [float(mcse_of_pairs(u, v, of_r)[0, 0]) for of_r in (False, True)]
        found.append((k - r, errors[0], k / s - r, errors[1]))
    k, k_error, of_r, r_error = np.transpose(found)
    assert_covers(k, k_error, 0.89)
    assert_covers(of_r, r_error, 0.89)


def test_intervals_of_the_learning_coefficient_and_of_v_cover(monkeypatch):
    for module in (series, llc):  # ArviZ is slow, and not what is tested
        monkeypatch.setattr(module, "ess_and_rhat", lambda series: (np.nan, np.nan))
    # tr K of 2 x 8 draws is 13 % low at an autocorrelation time of 3; 100 weights make it precise
    # to 6 %, so that its mean over 60 traces is known to 0.8 %.
    rng, off, values = np.random.default_rng(4), [], []
    for _ in range(60):
        trace = make_trace(chains(rng, (2, 8, 100), 3))
        lam, v = probelib.local_learning_coefficient(trace), probelib.empirical_variance(trace)
        off.append((lam.value, lam.mcse, v.value - 100, v.mcse))
        values.append(v.value)
        low, high = v.interval()
        assert (low + high) / 2 == pytest.approx(v.value) or np.isinf(high)
    lam, lam_error, v, v_error = np.transpose(off)
    assert np.mean(values) == pytest.approx(100, rel=0.03)
    assert_covers(lam, lam_error, 0.88)
    assert_covers(v, v_error, 0.88)


def test_what_has_not_moved_is_not_sure_while_others_move_and_no_error_is_nan():
    x = np.zeros((1, 5, 3))
    x[..., 1] = 7.3
    x[0, 2, 2] = 1.0
    np.testing.assert_array_equal(mcse_of_mean(x), [0, 0, np.inf])
    trace = make_trace(np.concatenate([x, 0.5 * x + 3.65 * (x == 7.3)]))
    kernel, all_of_it = probelib.loss_kernel(trace), np.arange(3)
    for found in (
        probelib.loss_gain(trace).mcse.values,
        kernel.diagonal().mcse.values,
        kernel.covariance_mcse(all_of_it, all_of_it),
        kernel.correlation_mcse(all_of_it, all_of_it),
    ):
        assert not np.isnan(found).any()
        off_diagonal = ~np.eye(3, dtype=bool)[: len(found)] if found.ndim > 1 else True
        assert np.isinf(found[..., :2][np.broadcast_to(off_diagonal, found.shape)[..., :2]]).all()
    still = make_trace(np.full((3, 40, 2), 2.5))
    assert (probelib.loss_gain(still).mcse == 0).all()
    assert probelib.empirical_variance(still).mcse == 0
    assert probelib.local_learning_coefficient(still).mcse == 0


def test_chains_that_hardly_moved_do_not_know_their_variance():
    # Eight draws of chains that decorrelate in 50: each has seen a sixth of the spread at most.
    trace = make_trace(chains(np.random.default_rng(12), (2, 8, 100), 50))
    assert np.isinf(probelib.empirical_variance(trace).mcse)
    assert np.isinf(probelib.loss_kernel(trace).diagonal().mcse).mean() > 0.9
    two_draws = trace.isel(draw=slice(1))
    assert np.isinf(probelib.empirical_variance(two_draws).mcse)
    assert np.isinf(probelib.loss_kernel(two_draws).diagonal().mcse).all()


def test_chains_that_disagree_are_not_cut():
    # The means of four chains differ by three standard errors of one: parts of a chain do not tell.
    x = np.random.default_rng(5).normal(size=(4, 400, 200))
    assert (batches(x) == 16).mean() > 0.9
    apart = x + 0.3 * np.random.default_rng(6).normal(size=(4, 1, 200))
    truth = np.sqrt(0.3**2 / 4 + 1 / 1600)
    assert_covers(apart.mean((0, 1)), mcse_of_mean(apart), 0.88)
    assert np.median(mcse_of_mean(apart)) > truth


def test_a_single_sudden_jump_is_no_small_error():
    x = np.zeros((1, 100, 1))
    x[:, 50:] = 1
    assert np.isinf(mcse_of_mean(x)).all()


@pytest.mark.parametrize(("count", "tau", "until"), [(1, 10, 0.15), (2, 3, 0.2), (4, 10, 0.12)])
def test_a_run_that_until_ends_has_the_error_that_was_asked_for(count, tau, until):
    # Root mean squares over 60 runs of 6 independent losses: known to 4 %.
    rng, cap, off, stops = np.random.default_rng(11), 2000, [], []
    for _ in range(60):
        losses = chains(rng, (count, cap, 6), tau)
        stops.append(schedule.good_enough(losses, until, cap) or cap)
        off.append(losses[:, : stops[-1]].mean((0, 1)))
    assert np.median(stops) < cap
    assert np.sqrt(np.mean(np.square(off))) < 1.1 * until


# --- neighbours ----------------------------------------------------------------------------------


def test_q_values_of_benjamini_and_hochberg():
    p = np.array([[0.01, 0.04, np.nan], [0.03, 0.005, 0.5]])
    # Ordered 0.005 0.01 0.03 0.04 0.5 1, times 6 / rank: 0.03 0.03 0.06 0.06 0.6 1.
    expected = [[0.03, 0.06, np.nan], [0.06, 0.03, 0.6]]
    np.testing.assert_allclose(benjamini_hochberg(p), expected)


def groups_of(rng, shape, n, r, tau=1, heavy=False):
    """n samples; the first 40 in groups of ten with correlation r."""
    x = chains(rng, (*shape, n), tau)
    common = np.repeat(chains(rng, (*shape, 4), tau), 10, axis=2)
    x[..., :40] = np.sqrt(1 - r) * x[..., :40] + np.sqrt(r) * common
    if heavy:
        x /= np.sqrt(rng.chisquare(2.5, x.shape))
    return x


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize(
    ("shape", "tau"), [((1, 400), 1), ((4, 100), 5), ((2, 50), 1), ((5, 10), 1), ((2, 8), 1)]
)
def test_of_a_null_kernel_at_most_five_per_cent_are_called(shape, tau, heavy):
    rng = np.random.default_rng(7)
    kernel = probelib.loss_kernel(make_trace(groups_of(rng, shape, 400, 0.0, tau, heavy)))
    near = kernel.top_correlated(16, rows=np.arange(80))
    assert (near.q_value < 0.05).mean() <= 0.05
    assert near.correlation[:, 0].mean() > 0.1  # and yet they look like neighbours


@pytest.mark.parametrize("shape", [(4, 100), (30, 40)])
def test_a_few_draws_in_which_all_losses_swing_call_no_neighbours(shape):
    """All R are 0, but 2 % of the draws are thirty times as wide, for all samples at once."""
    rng, any_called = np.random.default_rng(3), 0
    for _ in range(10):
        wide = np.where(rng.random((*shape, 1)) < 0.02, 30.0, 1.0)
        kernel = probelib.loss_kernel(make_trace(rng.normal(size=(*shape, 300)) * wide))
        any_called += (kernel.top_correlated(8, rows=np.arange(40)).q_value < 0.05).any()
    assert any_called <= 5  # of 10; without these degrees of freedom 9


@pytest.mark.parametrize(("shape", "tau"), [((1, 600), 1), ((4, 150), 3)])
def test_planted_neighbours_are_found_and_few_others(shape, tau):
    trace = make_trace(groups_of(np.random.default_rng(8), shape, 400, 0.6, tau))
    near = probelib.loss_kernel(trace).top_correlated(16, rows=np.arange(80))
    called = near.q_value < 0.05
    same = (near.rows[:, None] < 40) & (near.index // 10 == near.rows[:, None] // 10)
    assert (called & same).sum() / (40 * 9) > 0.9
    assert (called & ~same).sum() / called.sum() <= 0.05
    among = probelib.loss_kernel(trace).top_correlated(3, [0], [1, 2, 3, 4, 200])
    assert (among.q_value < 0.05).all()


def test_neighbours_as_a_table():
    trace = make_trace(
        groups_of(np.random.default_rng(9), (4, 50), 60, 0.9), label=np.arange(60) % 7
    )
    near = probelib.loss_kernel(trace).top_correlated(2, rows=[5, 50])
    table = near.to_dataframe()
    names = ["row", "rank", "index", "correlation", "mcse", "q_value", "sample_id", "label"]
    names += ["row_sample_id", "row_label"]
    assert list(table.columns) == names
    assert table["row"].tolist() == [5, 5, 50, 50]
    assert table["rank"].tolist() == [1, 2, 1, 2]
    np.testing.assert_array_equal(table["sample_id"], table["index"] + 100)
    np.testing.assert_array_equal(table["label"], table["index"] % 7)
    np.testing.assert_array_equal(table["row_sample_id"], table["row"] + 100)
    np.testing.assert_array_equal(table["row_label"], table["row"] % 7)
    kernel = probelib.loss_kernel(trace)
    for _, line in table.iterrows():
        error = kernel.correlation_mcse([int(line.row)], [int(line["index"])])[0, 0]
        assert line.mcse == pytest.approx(error)
        assert error > 0
    assert (table["q_value"][:2] < 0.05).all()
    one = probelib.loss_kernel(trace).top_correlated(2, rows=5).to_dataframe()
    assert one["row"].tolist() == [5, 5]
    np.testing.assert_array_equal(one["index"], table["index"][:2])
    np.testing.assert_array_equal(one["mcse"], table["mcse"][:2])
    index, correlation = near
    assert index is near.index
    assert correlation is near.correlation
    matrix = probelib.MatrixKernel(np.eye(3) + 0.5).top_correlated(2)  # has no draws
    assert np.isnan(matrix.q_value).all()
    assert np.isnan(matrix.mcse).all()
    assert "label" not in matrix.to_dataframe()


def test_too_few_draws_to_tell_are_said():
    x = np.random.default_rng(10).normal(size=(1, 12, 30))
    near = probelib.loss_kernel(make_trace(x)).top_correlated(3)
    assert np.isnan(near.q_value).all()
    two = probelib.loss_kernel(make_trace(x.reshape(2, 6, 30))).top_correlated(3)
    assert not (two.q_value < 0.05).any()
