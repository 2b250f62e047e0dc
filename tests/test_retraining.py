"""The truths that chapter 07 holds influence to, against slower ways to the same."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import probelib
from probebook import retraining, toys


@pytest.fixture(scope="module")
def regression() -> toys.LinearRegression:
    return toys.linear_regression(n=10, scales=(1.5, 0.7), noise=0.8, seed=3)


def around(model, data, loss=probelib.squared_error, n_beta=6.0, localization=2.0):
    return probelib.LocalPosterior(model, loss, data, n_beta=n_beta, localization=localization)


def test_training_rests_at_least_squares(regression):
    away = retraining.with_weights(regression.model, torch.tensor([3.0, -2.0]))
    w, slope = retraining.train_to_rest(away, probelib.squared_error, regression.data)
    np.testing.assert_allclose(w.numpy(), regression.center, atol=1e-12)
    assert slope < 1e-12
    keep = np.arange(10) != 4
    refit = np.linalg.lstsq(regression.x[keep], regression.y[keep], rcond=None)[0]
    w, _ = retraining.train_to_rest(away, probelib.squared_error, regression.data, left_out=4)
    np.testing.assert_allclose(w.numpy(), refit, atol=1e-12)
    np.testing.assert_array_equal(next(away.parameters()).detach()[0], [3.0, -2.0])  # left alone


def test_removal_is_that_of_sherman_morrison(regression):
    found = retraining.retrain_without(
        regression.model, probelib.squared_error, regression.data, [2, 7]
    )
    inverse = np.linalg.inv(regression.x.T @ regression.x)
    for row, away, i in zip(found.changes, found.distance, (2, 7), strict=True):
        x, r = regression.x[i], regression.residuals[i]
        move = inverse @ x * r / (1 - x @ inverse @ x)
        after = regression.residuals + regression.x @ move
        np.testing.assert_allclose(row, (after**2 - regression.residuals**2) / 2, atol=1e-12)
        assert away == pytest.approx(np.linalg.norm(move))
    start = lambda i: torch.full((2,), float(i), dtype=torch.float64)  # noqa: E731
    cold = retraining.retrain_without(
        regression.model, probelib.squared_error, regression.data, [2, 7], starts=start
    )
    np.testing.assert_allclose(cold.changes, found.changes, atol=1e-12)  # there is one minimum


def test_draws_and_weights_are_unbiased(regression):
    """Against the exact K of a Gaussian law.

    Entries of K are means of products of quadratics; with 40,000 draws each has a relative error
    of about sqrt(2 / 40,000) = 0.7 % to sqrt(60 / 40,000) = 4 % where it is all second order, and
    the norm is led by few entries: 8 % is two of the largest of these.
    """
    posterior = around(regression.model, regression.data)
    truth = regression.kernel(regression.covariance(6.0, 2.0))
    assert retraining.relative_error(retraining.gaussian_draws(posterior, 40_000, 1), truth) < 0.08
    found, share = retraining.importance_kernel(posterior, 40_000, 1)
    assert retraining.relative_error(found, truth) < 0.08
    # In one dimension the weight is sqrt(v) e^{-(1 - 1/v) x² / 2} under N(0, v), v = 1.3, whose
    # second moment is v / sqrt(2 v - 1); two dimensions square it. The share's own error is
    # about 1 / sqrt(40,000), half a per cent.
    second_moment = 1.3 / np.sqrt(2 * 1.3 - 1)
    assert share == pytest.approx(1 / second_moment**2, rel=0.02)


def test_common_random_numbers(regression):
    """In a Gaussian law of a quadratic loss the draws scale: K at first order by 1 / nb."""
    large = [
        retraining.gaussian_draws(
            around(regression.model, regression.data, n_beta=v, localization=v / 10), 500, 3
        )
        for v in (1e8, 1e9)
    ]
    np.testing.assert_allclose(large[0], 10 * large[1], rtol=1e-2)


def test_logistic_regression_is_at_rest():
    neuron, data = retraining.overlapping_classes(n=40, seed=2)
    posterior = around(neuron, data, probelib.cross_entropy)
    assert np.abs(probelib.influence.per_sample_gradients(posterior).mean(0)).max() < 1e-12
    assert np.linalg.eigvalsh(probelib.influence.hessian(posterior))[0] > 0.01


def test_order_is_that_of_a_power_law():
    n_beta = np.array([10.0, 100.0, 1000.0])
    errors = np.outer([1.0, 3.0], n_beta**-1.5)
    assert retraining.order(n_beta, errors) == pytest.approx((1.5, 0.0), abs=1e-12)
    slopes = np.array([1.0, 1.2])
    errors = n_beta ** -slopes[:, None]
    # Student's t with one degree of freedom at 97.5 %: 12.706; standard error 0.1.
    assert retraining.order(n_beta, errors) == pytest.approx((1.1, 1.2706), abs=1e-4)


def test_a_redundant_line_halves_the_localization(regression):
    x, y = regression.data
    double = retraining.Redundant(torch.from_numpy(regression.center))
    found = probelib.influence.laplace_kernel(around(double, (x, y)), order=2).covariance()
    s = regression.covariance(6.0, 1.0)
    np.testing.assert_allclose(found, regression.kernel(s), rtol=1e-9)


def test_a_level_line_is_level():
    x, y = retraining.level_line(n=15, slope=0.7, seed=4)
    assert float(x @ y / (x @ x)) == pytest.approx(0.7, abs=1e-14)
    changes = retraining.line_without_each((x, y))
    keep = np.arange(15) != 6
    slope = float(x[keep] @ y[keep] / (x[keep] @ x[keep]))
    expected = ((slope * x - y) ** 2 - (0.7 * x - y) ** 2) / 2
    np.testing.assert_allclose(changes[6], expected.numpy(), atol=1e-14)


@pytest.mark.parametrize(("a", "b"), [(1.1, 0.8), (0.0, 0.0)])
def test_the_product_kernel_against_single_losses(a, b):
    """Brute force: every loss on a coarser grid, K from its definition.

    Both rules are exact to rounding once the grid is finer than the density; 801 points on 16
    localization lengths are.
    """
    data = retraining.level_line(n=6, slope=a * b, seed=1)
    x, y = (v.numpy() for v in data)
    axis = np.linspace(-8, 8, 401) / 2.0  # gamma = 4
    first, second = np.meshgrid(a + axis, b + axis, indexing="ij")
    losses = (np.multiply.outer(first * second, x) - y) ** 2 / 2
    log = -9.0 * losses.mean(-1) - 2.0 * ((first - a) ** 2 + (second - b) ** 2)
    mass = np.exp(log - log.max()).ravel()
    truth = np.cov(losses.reshape(-1, 6), rowvar=False, aweights=mass, ddof=0)
    found = retraining.product_kernel(data, a, b, 9.0, 4.0, points=801)
    np.testing.assert_allclose(found, truth, rtol=1e-8, atol=1e-12)


def test_nothing_has_a_gradient_where_both_weights_vanish():
    line = retraining.level_line(n=6, seed=1)
    posterior = around(retraining.Product(0.0, 0.0), line)
    assert not probelib.influence.per_sample_gradients(posterior).any()
    assert not probelib.influence.classical_influence(posterior, 1e-6).any()
    np.testing.assert_allclose(probelib.influence.hessian(posterior), 0, atol=1e-14)


def test_the_path_is_the_influence_at_each_damping(regression):
    posterior = around(regression.model, regression.data)
    dampings = np.array([0.0, 0.1, 3.0])
    path = list(retraining.influence_path(posterior, dampings))
    for damping, influence in zip(dampings, path, strict=True):
        expected = probelib.influence.classical_influence(posterior, float(damping))
        np.testing.assert_allclose(influence, expected, rtol=1e-10)


def test_agreement_is_spearman_and_its_bootstrap_brackets_it():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(12, 30))
    near = truth + rng.normal(size=truth.shape)
    found = retraining.agreement(truth, {"near": near, "same": truth**3}, resamples=100)
    a = found["near"]
    assert a.pairs == pytest.approx(spearmanr(truth.ravel(), near.ravel()).statistic)
    by_query = [spearmanr(t, p).statistic for t, p in zip(truth.T, near.T, strict=True)]
    assert a.query == pytest.approx(np.mean(by_query))
    assert a.pairs_interval[0] < a.pairs < a.pairs_interval[1]
    # The bootstrap's spread of a mean over queries is their standard error: within a third of it,
    # three times the relative error 1 / sqrt(2 * 100) of a spread from 100 resamples, and more.
    spread = (a.query_interval[1] - a.query_interval[0]) / (2 * 1.96)
    assert spread == pytest.approx(np.std(by_query) / np.sqrt(30), rel=0.33)
    assert found["same"].pairs == pytest.approx(1)
    assert found["same"].query_interval == pytest.approx((1, 1))


def test_purity_counts_neighbours_of_the_same_label():
    similarity = np.array(
        [[9, 3, 2, 1], [3, 9, 1, 2], [1, 2, 9, 3], [3, 2, 1, 9]], dtype=np.float64
    )
    labels = np.array([0, 0, 1, 1])
    np.testing.assert_array_equal(
        retraining.neighbour_purity(similarity, labels, k=1), [1, 1, 1, 0]
    )
    np.testing.assert_array_equal(retraining.neighbour_purity(similarity, labels, k=3), [1 / 3] * 4)


def test_the_teacher_is_left_at_its_weights_and_the_global_state_too():
    state = torch.get_rng_state()
    teacher, (x, y) = retraining.taught_surface(n=50, noise=0.0)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        assert torch.equal(teacher(x), y)
