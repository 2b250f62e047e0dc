"""The closed forms that chapters 00 and 01 hold the sampler to, against slower ways to the same."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import sem

import probelib
from probebook import toys
from probebook.chapter import Chapter

N_BETA, LOCALIZATION, STEP_SIZE = 6.0, 2.0, 0.05


@pytest.fixture(scope="module")
def two() -> toys.LinearRegression:
    """Two weights, few samples: small enough to enumerate."""
    return toys.linear_regression(n=6, scales=(1.5, 0.7), noise=0.8, seed=3)


@pytest.fixture(scope="module")
def one() -> toys.LinearRegression:
    return toys.linear_regression(n=5, scales=(1.2,), noise=0.8, seed=4)


def local(regression: toys.LinearRegression, n_beta: float = N_BETA) -> probelib.LocalPosterior:
    return probelib.LocalPosterior(
        regression.model,
        probelib.squared_error,
        regression.data,
        n_beta=n_beta,
        localization=LOCALIZATION,
    )


def gaussian(covariance: np.ndarray, order: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Nodes (k, d) and weights (k,) of N(0, covariance), exact for polynomials up to degree 11."""
    d = len(covariance)
    node, weight = np.polynomial.hermite_e.hermegauss(order)
    nodes = np.array(list(itertools.product(node, repeat=d)))
    weights = np.array([np.prod(w) for w in itertools.product(weight, repeat=d)])
    return nodes @ np.linalg.cholesky(covariance).T, weights / weights.sum()


def loss_changes(regression: toys.LinearRegression, moves: np.ndarray) -> np.ndarray:
    """l_i(w* + move) - l_i(w*), shape (moves, n), from the definition of the loss."""
    predicted = (regression.center + moves) @ regression.x.T
    return ((predicted - regression.y) ** 2 - regression.residuals**2) / 2


# -- the path of a run ---------------------------------------------------------------------------


def test_the_path_is_that_of_the_trace(two):
    settings = {"chains": 3, "draws": 12, "burn_in": 4, "thin": 2, "seed": 7, "progress": False}
    sampler = probelib.SGLD(STEP_SIZE, 2)
    plain = probelib.sample(local(two), sampler=sampler, **settings)
    weights = toys.path(local(two), sampler, chains=3, steps=28, seed=7)
    assert weights.shape == (3, 28, 2)
    moves = np.linalg.norm(weights[:, 5::2] - two.center, axis=-1)
    np.testing.assert_allclose(plain.distance, moves, rtol=1e-5)
    weights = weights[:, 4:]
    # A draw is every second step, and its losses are those of the weights that were kept.
    changes = loss_changes(two, weights[:, 1::2].reshape(-1, 2) - two.center)
    loss = plain.loss.values.reshape(-1, 6) - two.residuals**2 / 2
    np.testing.assert_allclose(loss, changes, atol=1e-5)


def test_mean_and_error_are_those_of_the_chains():
    series = np.random.default_rng(0).normal(size=(5, 7, 3))
    mean, error = toys.mean_and_error(series)
    np.testing.assert_allclose(mean, series.mean((0, 1)))
    np.testing.assert_allclose(error, sem(series.mean(1), axis=0))


# -- linear regression -------------------------------------------------------------------------


def test_the_center_is_the_least_squares_solution(two):
    np.testing.assert_allclose(two.x.T @ two.residuals, 0, atol=1e-12)
    x, y = two.data
    with torch.no_grad():
        np.testing.assert_allclose(two.model(x).numpy(), (y.numpy()[:, 0] + two.residuals)[:, None])


def test_covariance_without_minibatches(two):
    a = N_BETA * two.x.T @ two.x / 6 + LOCALIZATION * np.eye(2)
    np.testing.assert_allclose(two.covariance(N_BETA, LOCALIZATION), np.linalg.inv(a))
    of_chain = np.linalg.inv(a @ (np.eye(2) - STEP_SIZE / 4 * a))
    for batch_size in (None, 6):
        found = two.covariance(N_BETA, LOCALIZATION, STEP_SIZE, batch_size)
        np.testing.assert_allclose(found, of_chain, rtol=1e-10)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_covariance_with_minibatches_against_all_of_them(two, batch_size):
    """The second moment after a step, averaged over every minibatch there is, until it rests."""
    steps = []
    for batch in itertools.combinations(range(6), batch_size):
        x, r = two.x[list(batch)], two.residuals[list(batch)]
        hessian, pull = x.T @ x / batch_size, x.T @ r / batch_size
        contraction = np.eye(2) - STEP_SIZE / 2 * (N_BETA * hessian + LOCALIZATION * np.eye(2))
        steps.append((contraction, -STEP_SIZE / 2 * N_BETA * pull))
    # The mean of w - w* stays 0, because the pulls of all minibatches cancel.
    np.testing.assert_allclose(np.mean([v for _, v in steps], 0), 0, atol=1e-14)
    moment = np.zeros((2, 2))
    for _ in range(2000):  # contracts by at least 1 - epsilon gamma / 2 = 0.95 a step
        after = [m @ moment @ m.T + np.outer(v, v) for m, v in steps]
        moment = np.mean(after, 0) + STEP_SIZE * np.eye(2)
    found = two.covariance(N_BETA, LOCALIZATION, STEP_SIZE, batch_size)
    np.testing.assert_allclose(found, moment, rtol=1e-9)


@pytest.mark.parametrize("name", ["one", "two"])
def test_gain_kernel_and_llc_against_quadrature(name, request):
    regression = request.getfixturevalue(name)
    covariance = regression.covariance(N_BETA, LOCALIZATION, STEP_SIZE)
    moves, weights = gaussian(covariance)
    changes = loss_changes(regression, moves)
    gain = weights @ changes
    kernel = (changes - gain).T @ ((changes - gain) * weights[:, None])
    np.testing.assert_allclose(regression.gain(covariance), gain, rtol=1e-10)
    np.testing.assert_allclose(regression.kernel(covariance), kernel, rtol=1e-9, atol=1e-12)
    assert regression.llc(N_BETA, covariance) == pytest.approx(N_BETA * gain.mean(), rel=1e-10)


def test_expected_trace_ratio_against_the_double_sum(one):
    """E of sum_t (l_t - mean)² / (T - 1), from the covariance of the losses at every two times."""
    draws = 6
    variance = one.covariance(N_BETA, LOCALIZATION, STEP_SIZE)[0, 0]
    shrink = 1 - STEP_SIZE / 2 * one.precision(N_BETA, LOCALIZATION)[0, 0]
    total, diagonal = 0.0, 0.0
    for s in range(draws):
        for t in range(draws):
            if s == t:
                moves, weights = gaussian(np.array([[variance]]))
                first = second = loss_changes(one, moves)
            else:
                between = shrink ** abs(s - t) * variance
                moves, weights = gaussian(np.array([[variance, between], [between, variance]]))
                first, second = (loss_changes(one, moves[:, [k]]) for k in (0, 1))
            together = weights @ (first * second) - (weights @ first) * (weights @ second)
            total += together.sum()
            diagonal += together.sum() if s == t else 0.0
    expected = (diagonal - total / draws) / (draws - 1) / (diagonal / draws)
    ratio, ess = one.expected_trace_ratio(N_BETA, LOCALIZATION, STEP_SIZE, draws)
    assert ratio == pytest.approx(expected, rel=1e-9)
    assert ess == pytest.approx(draws * diagonal / total, rel=1e-9)


def test_trace_by_chain_is_the_sum_of_each_chains_variances(two):
    trace = probelib.sample(
        local(two), sampler=probelib.SGLD(STEP_SIZE), chains=3, draws=10, progress=False
    )
    expected = trace.loss.values[:, :8].astype(float).var(1, ddof=1).sum(-1)
    np.testing.assert_allclose(toys.trace_by_chain(trace, 8), expected, rtol=1e-5)


def test_the_printed_update_does_not_know_beta(two):
    run = {"step_size": 0.01, "chains": 2, "steps": 5, "seed": 0}
    paths = [toys.printed_update(local(two, n_beta), **run) for n_beta in (3.0, 6.0)]
    assert paths[0].shape == (2, 5, 2)
    np.testing.assert_array_equal(*paths)
    # Its first step from w*, where both drifts vanish, is the noise alone.
    noise = torch.randn(2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    np.testing.assert_allclose(paths[0][:, 0] - two.center, 0.1 * noise.numpy(), rtol=1e-12)


# -- models of a few weights -------------------------------------------------------------------


def test_the_loss_surface_is_the_mean_loss():
    toy = toys.two_classes(n=20)
    posterior = probelib.LocalPosterior(
        toy.model, probelib.cross_entropy, (toy.x, toy.y), n_beta=10, localization=1
    )
    first, second, loss = toys.loss_surface(posterior, reach=1.0, points=5)
    at = torch.tensor([first[4], second[1]])
    assert loss[1, 4] == pytest.approx(float(posterior.mean_loss(at)), rel=1e-5)
    assert np.unravel_index(loss.argmin(), loss.shape) == (2, 2)  # w* is the minimum


def test_largest_curvature_is_that_of_the_mean_loss(two):
    expected = np.linalg.eigvalsh(two.hessian)[-1]
    assert toys.largest_curvature(local(two)) == pytest.approx(expected, rel=1e-10)


def test_constant_data_have_unit_variance():
    x, y = toys.constant_data(9, 4, seed=0)
    assert (x.shape, y.shape) == ((9, 1), (9, 4))
    np.testing.assert_allclose(y.numpy().mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(y.numpy().var(0), 1)
    assert torch.equal(toys.Constant(y.mean(0))(x), y.mean(0).expand(9, -1))


def test_the_named_samples_are_who_the_text_says():
    toy = toys.two_classes(n=12)
    margin = (toy.x @ toy.model.weight.detach()).abs().numpy()
    label = {name: int(toy.y[i]) for name, i in toy.named.items()}
    assert label["hard"] == label["rival"] != label["friend"]
    assert margin[toy.named["easy"]] > 2 * max(margin[toy.named[n]] for n in ("hard", "friend"))


def test_the_moons_network_leaves_the_random_state_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    model, (x, y) = toys.moons_network(n=20, hidden=3, steps=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model(x).shape == (len(y), 2)
    assert not model.training


# -- what the chapters print -------------------------------------------------------------------


def test_an_exact_claim_must_hold_unless_said_otherwise(tmp_path):
    chapter = Chapter("01_test", profile="smoke", results_dir=tmp_path)
    claim = toys.exact_claim(chapter, "λ", "llc", 2.0, np.float64(0.1), allowed=np.float64(0.2))
    assert chapter.numbers["exact_llc"] == 2.0
    assert claim.must
    assert (claim.low, claim.high) == (1.4, 2.6)
    assert claim.why == "within 4 standard errors and 0.2 for a known bias"
    assert not toys.exact_claim(chapter, "λ", "llc", 2.0, 0.1, must=False).must


@pytest.mark.parametrize(
    ("error", "scale", "held"),
    [(0.1, 0, True), (0.6, 0, False), (0.6, 3, True), (float("inf"), 3, False)],
)
def test_a_number_that_could_hardly_miss_is_held_to_nothing(tmp_path, error, scale, held):
    chapter = Chapter("01_test", profile="smoke", results_dir=tmp_path)
    claim = toys.exact_claim(chapter, "λ", "llc", 2.0, error, why="known", scale=scale)
    assert claim.holds(2.0) is (True if held else None)
    assert claim.why.startswith("known; ")
    assert ("too large to tell" in claim.why) != held


def test_source_is_shown_without_its_docstring():
    text = toys.source(probelib.LocalPosterior.potential)
    assert text.startswith("```python\ndef potential(")
    assert "Minus the log density" not in text
    assert "self.n_beta * self.mean_loss(weights)" in text


def test_a_number_has_as_many_digits_as_its_error():
    assert toys.with_error(16.5930, 0.0408) == "16.593 ± 0.041"
    assert toys.with_error(17.733, 2.234) == "17.7 ± 2.2"
    assert toys.with_error(43.38, 5.654, "%") == "43.4% ± 5.7%"
    assert toys.with_error(1234.5, 56.0) == "1234 ± 56"
    assert toys.with_error(0.25, None) == "0.25 ± not known"
    assert toys.with_error(0.25, float("inf")) == "0.25 ± not known"
