"""The means of chapter 06: quadrature against closed forms and against slower ways to the same."""

import arviz as az
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import torch
import xarray as xr

import probelib
from probebook import gibbs
from probebook.gibbs import PRODUCT, REGULAR, SQUARE

pytestmark = pytest.mark.usefixtures("one_thread")

GAMMA = 1.3
RNG = np.random.default_rng(0)


def precision(n, beta):
    return n * beta + GAMMA


# -- the posterior of one data set -------------------------------------------------------------


@pytest.mark.parametrize(("n", "beta"), [(5, 0.5), (60, 2.0), (3200, 1.0)])
def test_regular_moments_are_those_of_a_normal(n, beta):
    y = RNG.normal(size=(20, n))
    data = gibbs.summarise(y)
    found = gibbs.moments(REGULAR, data, beta, GAMMA)
    a = precision(n, beta)
    m = n * beta * y.mean(1) / a
    np.testing.assert_allclose(found.mean, m, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(found.variance, 1 / a, rtol=1e-9)
    # Eqs. 10, 11 and 13 from their definitions, with w = m + z / sqrt(A).
    k_n = (m**2 + 1 / a) / 2 - m * y.mean(1)
    np.testing.assert_allclose(found.gibbs(data), k_n, rtol=1e-8, atol=1e-14)
    v = ((y - m[:, None]) ** 2).sum(1) / a + n / (2 * a**2)
    np.testing.assert_allclose(found.empirical_variance(data), v, rtol=1e-8)


@pytest.mark.parametrize("mean", [-0.4, 0.0, 0.9])
def test_square_moments_by_adaptive_quadrature_over_the_weight(mean):
    n, beta = 30, 0.7

    def moment(k):
        def density(w):
            u = w**2
            return u**k * np.exp(-n * beta * (u**2 / 2 - u * mean) - GAMMA * w**2 / 2)

        return scipy.integrate.quad(density, 0, 3, epsabs=0, epsrel=1e-12, limit=200)[0]

    e1, e2, e3, e4 = (moment(k) / moment(0) for k in (1, 2, 3, 4))
    data = gibbs.DataSets(n, np.array([mean]), np.array([n * mean**2 + n]))
    found = gibbs.moments(SQUARE, data, beta, GAMMA)
    expected = (e1, e2, e2 - e1**2, e3 - e1 * e2, e4 - e2**2)
    got = (
        found.mean, found.square, found.variance, found.covariance, found.variance_of_square,
    )  # fmt: skip
    np.testing.assert_allclose(np.ravel(got), expected, rtol=1e-9)


@pytest.mark.parametrize("mean", [-0.3, 0.0, 1.1])
def test_product_moments_on_a_grid_of_both_weights(mean):
    # Gaussian decay of both weights: at 9 standard deviations exp(-81/2). The narrowest ridge,
    # at the end of the grid, has a width of 1 / sqrt(n beta a²) = 0.07, seven steps.
    n, beta = 4, 0.7
    axis = np.linspace(-9, 9, 1801) / np.sqrt(GAMMA)
    a, b = axis[:, None], axis[None, :]
    u = a * b
    mass = np.exp(-n * beta * (u**2 / 2 - u * mean) - GAMMA * (a**2 + b**2) / 2)
    e = [(mass * u**k).sum() / mass.sum() for k in (1, 2, 3, 4)]
    data = gibbs.DataSets(n, np.array([mean]), np.array([n * mean**2 + n]))
    found = gibbs.moments(PRODUCT, data, beta, GAMMA)
    np.testing.assert_allclose(found.mean, e[0], rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(found.square, e[1], rtol=1e-8)
    np.testing.assert_allclose(found.variance_of_square, e[3] - e[1] ** 2, rtol=1e-8)


def test_a_nonsensical_rule_is_refused():
    with pytest.raises(ValueError, match=r"beta 0\.0.*must be at least 1, beta positive"):
        REGULAR.nodes(10, 0.0, 1.0)
    with pytest.raises(ValueError, match="localization is 0; a product"):
        PRODUCT.nodes(10, 1.0, 0.0)


# -- the limit ---------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_the_limiting_square_is_a_parabolic_cylinder_function(beta):
    # int v^(a - 1) exp(-beta v² / 2 + beta xi v) dv over v > 0 is
    # Gamma(a) beta^(-a/2) exp(beta xi² / 4) D_(-a)(-sqrt(beta) xi), here a = 1/2, 3/2, 5/2.
    xi = np.linspace(-4, 4, 9)
    d = [scipy.special.pbdv(-a, -np.sqrt(beta) * xi)[0] for a in (0.5, 1.5, 2.5)]
    mean = 0.5 * beta**-0.5 * d[1] / d[0]
    square = 0.75 / beta * d[2] / d[0]
    found = gibbs.moments(SQUARE, gibbs.DataSets(1, xi, xi**2), beta, 0.0)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-8)
    np.testing.assert_allclose(found.variance, square - mean**2, rtol=1e-7)
    # Integration by parts: beta E[v² - v xi] = 2 lambda for every data set.
    np.testing.assert_allclose(beta * (found.square - xi * found.mean), 0.5, rtol=1e-8)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_eq_12_holds_in_the_limit_of_the_square(beta):
    # The left side is an average of G, the right side of a variance; only Eq. 12 relates them.
    xi = np.linspace(-9, 9, 361)
    weight = np.exp(-(xi**2) / 2)
    data = gibbs.DataSets(1, xi, xi**2)
    mean = np.average(gibbs.moments(SQUARE, data, beta, 0.0).gibbs(data), weights=weight)
    assert mean == pytest.approx(gibbs.limiting_gibbs(SQUARE, beta), rel=1e-9)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_the_product_approaches_its_limit_like_the_logarithm(beta):
    # 1 / (limit - n E[G_n]) grows by beta (1 + beta) times log n; the next order is 1 / log² n,
    # which is 1e-3 at the smaller size.
    limit = 0.5 * (1 / beta - 1)
    assert gibbs.limiting_gibbs(PRODUCT, beta) == limit
    sizes = (10**10, 10**16)
    missing = [limit - n * gibbs.expected(PRODUCT, n, beta, 1.0).gibbs for n in sizes]
    slope = (1 / missing[1] - 1 / missing[0]) / np.log(10**6)
    assert slope == pytest.approx(beta * (1 + beta), rel=5e-3)


# -- expectations over data sets ---------------------------------------------------------------


@pytest.mark.parametrize(("n", "beta"), [(10, 0.5), (100, 1.0), (1000, 2.0)])
def test_regular_expectations_by_hand(n, beta):
    a = precision(n, beta)
    r = n * beta / a
    found = gibbs.expected(REGULAR, n, beta, GAMMA)
    gibbs_error = (n * beta**2 / a**2 + 1 / a - 2 * beta / a) / 2
    assert found.gibbs == pytest.approx(gibbs_error, rel=1e-9, abs=1e-14)
    # V = [chi² + n mean² (1 - r)²] / A + n / 2A², chi² with n - 1 degrees of freedom.
    mean = beta / 2 * ((n - 1 + (1 - r) ** 2) / a + n / (2 * a**2))
    variance = (beta / 2 / a) ** 2 * (2 * (n - 1) + 2 * (1 - r) ** 4)
    assert found.fluctuation == pytest.approx(mean, rel=1e-9)
    assert found.deviation == pytest.approx(np.sqrt((mean - 0.5) ** 2 + variance), rel=1e-8)


def test_without_a_prior_the_regular_model_is_eq_12_exactly():
    n, beta = 40, 0.7
    found = gibbs.expected(REGULAR, n, beta, 0.0)
    assert n * found.gibbs == pytest.approx((0.5 - 0.5 * beta) / beta, rel=1e-10)


@pytest.mark.parametrize("model", [REGULAR, SQUARE, PRODUCT], ids=lambda m: m.name)
def test_expectations_are_the_means_over_data_sets(model):
    # Raw data, so that this also checks the sufficient statistics. Five standard errors; the mean
    # of 4000 is normal to good accuracy.
    n, beta = 20, 1.0
    data = gibbs.summarise(np.random.default_rng(1).normal(size=(4000, n)))
    m = gibbs.moments(model, data, beta, GAMMA)
    exact = gibbs.expected(model, n, beta, GAMMA)
    nu_hat = beta / 2 * m.empirical_variance(data)
    off = (nu_hat - gibbs.limiting_fluctuation(model, beta)) ** 2
    for values, truth in (
        (m.gibbs(data), exact.gibbs),
        (nu_hat, exact.fluctuation),
        (off, exact.deviation**2),
    ):
        assert abs(values.mean() - truth) < 5 * values.std() / np.sqrt(len(values))


def test_drawn_statistics_have_the_moments_of_data():
    # Mean N(0, 1/n); sum of squares chi² with n degrees of freedom: mean n, variance 2n. Standard
    # errors of mean and variance from the known fourth moments, five of them allowed.
    n, count = 30, 200_000
    data = gibbs.draw_data_sets(n, count, np.random.default_rng(2))
    assert abs(data.mean.var() * n - 1) < 5 * np.sqrt(2 / count)
    assert abs(data.square.mean() - n) < 5 * np.sqrt(2 * n / count)
    fourth = 12 * n * (n + 4)  # of chi² about its mean
    assert abs(data.square.var() - 2 * n) < 5 * np.sqrt((fourth - 4 * n**2) / count)
    # Cov(sum of squares, n mean²) = Var(n mean²) = 2.
    own = n * data.mean**2
    assert np.cov(data.square, own)[0, 1] == pytest.approx(2, abs=5 * np.sqrt(60 * n / count))


def test_fit_finds_coefficients_and_their_errors():
    n = np.array([50, 100, 400, 1600])
    errors = np.array([0.1, 0.2, 0.1, 0.3])
    found, _ = gibbs.fit_orders(n, 0.3 - 2 / np.sqrt(n) + 5 / n, errors, (0, -0.5, -1))
    np.testing.assert_allclose(found, [0.3, -2, 5], rtol=1e-9)
    _, of_mean = gibbs.fit_orders(n, np.ones(4), errors, (0,))
    assert of_mean[0] == pytest.approx(1 / np.sqrt(np.sum(errors**-2.0)))


@pytest.mark.parametrize("model", [REGULAR, SQUARE], ids=lambda m: m.name)
def test_the_slope_of_exact_means_is_eq_12_and_its_bias(model):
    n, beta = np.array([50, 100, 400, 1600, 3200]), 0.5
    exact = np.array([size * gibbs.expected(model, int(size), beta, GAMMA).gibbs for size in n])
    slope = gibbs.gibbs_slope(model, n, exact, np.full(5, 0.01), beta, GAMMA)
    assert slope.value == pytest.approx(slope.predicted + slope.bias, rel=1e-12)
    assert slope.predicted == pytest.approx((model.learning_coefficient - slope.nu * beta) / beta)
    # The first order left out is n^-2 or n^-3/2, at n = 50 with coefficients of order 10.
    assert abs(slope.bias) < 0.01
    # A shift of all points is a shift of the slope: the fit does not know the theory.
    shifted = gibbs.gibbs_slope(model, n, exact + 0.3, np.full(5, 0.01), beta, GAMMA)
    assert shifted.value == pytest.approx(slope.value + 0.3, rel=1e-9)


def test_a_slope_without_powers_is_refused():
    with pytest.raises(ValueError, match="model is 'product', whose remainder"):
        gibbs.gibbs_slope(PRODUCT, np.array([50, 100]), np.ones(2), np.ones(2), 1.0, 1.0)


def test_decay_of_errors_is_an_exponent_with_an_error():
    # Squares of normals with standard deviation 3 / n^0.7. With D each, log of the root mean
    # square has the error 1 / sqrt(2 D); the slope's follows from the spread of log n.
    n, count = np.array([10, 40, 160, 640]), 20_000
    squares = np.random.default_rng(6).normal(size=(4, count)) ** 2 * (3 / n[:, None] ** 0.7) ** 2
    exponent, error = gibbs.decay_exponent(n, squares)
    known = 1 / np.sqrt(2 * count) / np.sqrt(np.square(np.log(n) - np.log(n).mean()).sum())
    assert error == pytest.approx(known, rel=0.05)
    assert abs(exponent + 0.7) < 5 * known


# -- WAIC --------------------------------------------------------------------------------------


def test_regular_prediction_is_that_of_a_wider_normal():
    n, beta = 50, 0.8
    y = RNG.normal(size=(6, n))
    a = precision(n, beta)
    c = 1 / a
    m = n * beta * y.mean(1) / a
    found = gibbs.predict(REGULAR, y, beta, GAMMA)
    wider = (y - m[:, None]) ** 2 / (1 + c)
    training = (np.log1p(c) + wider - y**2).mean(1) / 2
    generalization = (np.log1p(c) + (1 + m**2) / (1 + c) - 1) / 2
    v = ((y - m[:, None]) ** 2).sum(1) / a + n / (2 * a**2)
    np.testing.assert_allclose(found.training, training, rtol=1e-8, atol=1e-13)
    np.testing.assert_allclose(found.generalization, generalization, rtol=1e-8, atol=1e-13)
    np.testing.assert_allclose(found.waic, training + beta * v / n, rtol=1e-8, atol=1e-13)


def test_expected_regular_prediction_by_hand():
    n, beta = 50, 0.8
    a = precision(n, beta)
    c, r = 1 / a, n * beta / a
    found = gibbs.expected_prediction(REGULAR, n, beta, GAMMA)
    training = (np.log1p(c) + (1 - 2 * r / n + r**2 / n) / (1 + c) - 1) / 2
    generalization = (np.log1p(c) + (1 + r**2 / n) / (1 + c) - 1) / 2
    v = (n - 1 + (1 - r) ** 2) / a + n / (2 * a**2)
    assert float(found.training) == pytest.approx(training, rel=1e-8)
    assert float(found.generalization) == pytest.approx(generalization, rel=1e-8)
    assert float(found.correction) == pytest.approx(beta * v / n, rel=1e-8)


@pytest.mark.parametrize("model", [SQUARE, PRODUCT], ids=lambda m: m.name)
def test_expected_prediction_is_the_mean_over_data_sets(model):
    n, beta = 25, 1.0
    p = gibbs.predict(model, np.random.default_rng(3).normal(size=(1500, n)), beta, GAMMA)
    exact = gibbs.expected_prediction(model, n, beta, GAMMA)
    for name in ("training", "generalization", "waic"):
        values = getattr(p, name)
        error = values.std() / np.sqrt(len(values))
        assert abs(values.mean() - getattr(exact, name)) < 5 * error


# -- SGLD --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "power"), [(REGULAR, 1), (SQUARE, 2)], ids=["one", "two"])
def test_one_posterior_is_that_of_all_data_sets(model, power):
    n, beta = 7, 0.9
    y = RNG.normal(size=(3, n))
    posterior, (x, target) = gibbs.local_posteriors(model, y, beta, GAMMA)
    w = torch.tensor([0.4, -0.7, 1.2], dtype=torch.float64)
    u = w.numpy() ** power
    potential = beta * ((u[:, None] - y) ** 2).sum() / 2 + GAMMA / 2 * (w**2).sum()
    assert float(posterior.potential(w)) == pytest.approx(float(potential), rel=1e-12)
    losses = posterior.losses(w, x, target).reshape(3, n)
    np.testing.assert_allclose(losses, (u[:, None] - y) ** 2 / 2, rtol=1e-12)


def test_the_discretised_regular_chain_is_known_in_closed_form():
    n, beta, step = 50, 1.0, 0.02  # epsilon A = 1.03: the variance is a third too large
    data = gibbs.summarise(RNG.normal(size=(3, n)))
    a = precision(n, beta)
    found = gibbs.chain_moments(REGULAR, data, beta, GAMMA, step)
    np.testing.assert_allclose(found.mean, n * beta * data.mean / a, rtol=1e-8)
    np.testing.assert_allclose(found.variance, 1 / (a * (1 - step * a / 4)), rtol=1e-8)


def test_the_discretised_square_tends_to_eq_1():
    # The bias is of first order in the step: halving the step halves it, up to the next order,
    # which is as large as the bias is: a few per cent.
    data = gibbs.summarise(RNG.normal(size=(3, 50)))
    exact = gibbs.moments(SQUARE, data, 1.0, GAMMA).square
    bias = [
        gibbs.chain_moments(SQUARE, data, 1.0, GAMMA, step).square / exact - 1
        for step in (2e-3, 1e-3)
    ]
    assert np.abs(bias[1]).max() < 0.05
    np.testing.assert_allclose(bias[0] / bias[1], 2, rtol=0.05)


@pytest.mark.parametrize("model", [REGULAR, SQUARE], ids=lambda m: m.name)
def test_sgld_meets_the_law_of_its_chain_on_every_data_set(model):
    # Eight comparisons, five Monte-Carlo standard errors each. V is low by 1/ESS, which is below
    # half a standard error: a squared deviation's relative error is at least sqrt(2 / ESS).
    n, beta, step = 30, 1.0, 4e-3
    y = np.random.default_rng(4).normal(size=(4, n))
    posterior, observed = gibbs.local_posteriors(model, y, beta, GAMMA)
    trace = probelib.sample(
        posterior, observed, sampler=probelib.SGLD(step), chains=16, draws=100, thin=5,
        burn_in=300, progress=False,
    )  # fmt: skip
    data = gibbs.summarise(y)
    law = gibbs.chain_moments(model, data, beta, GAMMA, step)
    parts = gibbs.by_data_set(trace, 4)
    assert [part.sizes["sample"] for part in parts] == [n] * 4
    for d, part in enumerate(parts):
        llc = probelib.local_learning_coefficient(part)
        nu = probelib.singular_fluctuation(part)
        assert abs(llc.value - n * beta * law.gibbs(data)[d]) < 5 * llc.mcse
        assert abs(nu.value - beta / 2 * law.empirical_variance(data)[d]) < 5 * nu.mcse


def test_two_weights_a_mean_are_refused():
    y = np.zeros((2, 3))
    with pytest.raises(ValueError, match="model is 'product'; choose"):
        gibbs.local_posteriors(PRODUCT, y, 1.0, 1.0)
    with pytest.raises(ValueError, match="model is 'product'; choose"):
        gibbs.chain_moments(PRODUCT, gibbs.summarise(y), 1.0, 1.0, 0.1)


# -- what a trace says -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trace():
    """Independent draws of 60 losses, in float64, with a trend by sample."""
    rng = np.random.default_rng(5)
    scale = np.linspace(0.1, 2, 60)
    return xr.Dataset(
        {
            "loss": (("chain", "draw", "sample"), scale * rng.gamma(2, size=(4, 250, 60))),
            "init_loss": ("sample", scale / 2),
        },
        attrs={"config": {"n_beta": 60.0}},
    )


@pytest.mark.filterwarnings("ignore:For one or more samples the posterior variance")
def test_waic_is_that_of_arviz(trace):
    theirs = az.waic(
        az.InferenceData(log_likelihood=xr.Dataset({"y": -trace.loss})), pointwise=True, scale="log"
    )
    ours = gibbs.trace_waic(trace, beta=1.0)
    p_waic = 60 * float(ours.correction)
    assert p_waic == pytest.approx(theirs.p_waic * 1000 / 999, rel=1e-12)  # ArviZ has ddof 0
    training = theirs.elpd_waic + theirs.p_waic
    assert -60 * float(ours.training) == pytest.approx(training, rel=1e-12)
    half = gibbs.trace_waic(trace, beta=0.5)
    assert float(half.correction) == pytest.approx(float(ours.correction) / 2)


def test_shares_are_ratios_of_sums_with_errors_by_the_delta_method(trace):
    group = np.arange(60) // 25 + 3  # 25, 25 and 10 samples
    found = gibbs.shares(trace, group)
    change = (trace.loss - trace.init_loss).values
    square = (trace.loss - trace.loss.mean(("chain", "draw"))).values ** 2
    np.testing.assert_array_equal(found.groups, [3, 4, 5])
    np.testing.assert_allclose(found.size, [25 / 60, 25 / 60, 10 / 60])
    for values, share, mcse in (
        (change, found.llc, found.llc_mcse),
        (square, found.variance, found.variance_mcse),
    ):
        part = np.stack([values[..., group == g].sum(-1) for g in (3, 4, 5)], -1)
        total = part.sum(-1)
        np.testing.assert_allclose(share, part.mean((0, 1)) / total.mean(), rtol=1e-12)
        # Independent draws: the error is the spread of the ratio over non-overlapping batches of
        # 25 draws, over the square root of their number, known to 1 / sqrt(2 x 39) = 11 %.
        batches = part.reshape(40, 25, 3).mean(1)
        of_batches = (batches / batches.sum(-1, keepdims=True)).std(0, ddof=1) / np.sqrt(40)
        np.testing.assert_allclose(mcse, of_batches, rtol=0.45)


def test_a_label_a_sample(trace):
    with pytest.raises(ValueError, match=r"group has shape \(3,\), the trace 60 samples"):
        gibbs.shares(trace, np.arange(3))
