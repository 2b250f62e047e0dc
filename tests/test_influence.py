"""Curvature, the Laplace regime and influence, against closed forms and slower ways to the same."""

import numpy as np
import pytest
import torch
from torch import nn

import probelib
from probebook import toys

N_BETA, LOCALIZATION = 6.0, 2.0


def around(model, data, loss=probelib.cross_entropy, n_beta=N_BETA, localization=LOCALIZATION):
    return probelib.LocalPosterior(model, loss, data, n_beta=n_beta, localization=localization)


@pytest.fixture(scope="module")
def regression() -> toys.LinearRegression:
    return toys.linear_regression(n=9, scales=(1.5, 0.7, 1.1), noise=0.8, seed=3)


@pytest.fixture(scope="module")
def linear(regression) -> probelib.LocalPosterior:
    return around(regression.model, regression.data, probelib.squared_error)


@pytest.fixture(scope="module")
def network() -> probelib.LocalPosterior:
    """A tanh network in float64, anywhere: what is tested on it holds at any weights."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(11, 2, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (11,), generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    return around(model, (x, y))


@pytest.fixture(scope="module")
def neuron() -> probelib.LocalPosterior:
    """One neuron in float64 at the minimum of its mean loss."""
    two = toys.two_classes(n=30, seed=1)
    model, x = toys.Neuron(two.model.weight.detach().double()), two.x.double()
    plain = around(model, (x, two.y))
    w = plain.center
    for _ in range(8):  # Newton's method, from a point that is right to five digits
        h = torch.from_numpy(probelib.influence.hessian(around(toys.Neuron(w), (x, two.y))))
        w = w - torch.linalg.solve(h, torch.func.grad(plain.mean_loss)(w))
    return around(toys.Neuron(w), (x, two.y))


def central_difference(function, at: torch.Tensor, h: float) -> np.ndarray:
    """Derivative of ``function`` along each weight: error of order h² plus rounding / h."""
    steps = torch.eye(len(at), dtype=at.dtype) * h
    return np.stack([(function(at + s) - function(at - s)) / (2 * h) for s in steps], -1)


def lattice(posterior, gaussian: bool = False) -> np.ndarray:
    """K of Eq. 1, or of its Laplace approximation, by the trapezoid rule in two weights."""
    s = probelib.influence.laplace_covariance(posterior)
    z = np.linspace(-9, 9, 73)
    grid = np.stack(np.meshgrid(z, z, indexing="ij"), -1).reshape(-1, 2)
    moves = torch.from_numpy(grid @ np.linalg.cholesky(s).T)
    x, y = posterior.data.batch(slice(0, posterior.n_samples))
    change = torch.func.vmap(lambda w: posterior.losses(w, x, y))(moves + posterior.center)
    change = (change - posterior.losses(posterior.center, x, y)).numpy()
    log = -0.5 * (grid**2).sum(1)
    if not gaussian:
        log = -posterior.n_beta * change.mean(1) - posterior.localization / 2 * (
            moves.numpy() ** 2
        ).sum(1)
    mass = np.exp(log - log.max())
    mass /= mass.sum()
    centred = change - mass @ change
    return centred.T @ (centred * mass[:, None])


# -- gradients and Hessians --------------------------------------------------------------------


def test_gradients_of_regression_are_residuals_times_inputs(linear, regression):
    expected = regression.residuals[:, None] * regression.x
    for batch_size in (1, 4, 100):
        found = probelib.influence.per_sample_gradients(linear, batch_size=batch_size)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
    some = tuple(t[[5, 2]] for t in regression.data)
    np.testing.assert_allclose(
        probelib.influence.per_sample_gradients(linear, some), expected[[5, 2]]
    )


def test_hessians_of_regression_are_outer_products(linear, regression):
    outer = np.einsum("ni,nj->nij", regression.x, regression.x)
    np.testing.assert_allclose(probelib.influence.per_sample_hessians(linear, batch_size=4), outer)
    for batch_size in (2, 1000):
        found = probelib.influence.hessian(linear, batch_size)
        np.testing.assert_allclose(found, regression.hessian, rtol=1e-12)


def test_derivatives_against_finite_differences(network):
    x, y = network.data.batch(slice(0, 11))
    losses = lambda w: network.losses(w, x, y).detach().numpy()  # noqa: E731
    # With h = 1e-5 the truncation h² / 6 times a third derivative of order 1 is below 1e-10, and
    # rounding is 1e-16 / 1e-5 = 1e-11; second derivatives difference a gradient that is exact.
    g = probelib.influence.per_sample_gradients(network)
    np.testing.assert_allclose(g, central_difference(losses, network.center, 1e-5), atol=1e-9)
    slope = lambda w: torch.func.grad(network.mean_loss)(w).numpy()  # noqa: E731
    h = probelib.influence.hessian(network)
    np.testing.assert_allclose(h, central_difference(slope, network.center, 1e-5), atol=1e-9)
    np.testing.assert_allclose(
        probelib.influence.per_sample_hessians(network).mean(0), h, atol=1e-14
    )


def test_the_operator_is_the_matrix(network):
    matrix, product = (
        probelib.influence.hessian(network),
        probelib.influence.hessian_operator(network, batch_size=3),
    )
    assert product.shape == matrix.shape
    np.testing.assert_allclose(product @ np.eye(len(matrix)), matrix, atol=1e-14)
    vector = np.random.default_rng(0).normal(size=len(matrix))
    np.testing.assert_allclose(product.H @ vector, matrix @ vector, atol=1e-13)


def test_gram_is_the_product_of_the_gradients(network):
    g = probelib.influence.per_sample_gradients(network)
    for batch_size in (3, 64):
        cosine, length = probelib.influence.gradient_gram(network, batch_size=batch_size)
        np.testing.assert_allclose(np.outer(length, length) * cosine, g @ g.T, atol=1e-13)
        np.testing.assert_allclose(np.diag(cosine), 1)


def test_gram_of_gradients_whose_squares_underflow():
    """A float32 model with gradients of 1e-30: their squares are no float32 numbers."""
    model = nn.Linear(2, 1, bias=False)
    x = torch.tensor([[3.0, 4.0], [4.0, 3.0], [0.0, 0.0]]) * 1e-30
    with torch.no_grad():
        model.weight.zero_()
    tiny = around(model, (x, torch.ones(3, 1)), probelib.squared_error)
    cosine, length = probelib.influence.gradient_gram(tiny)
    np.testing.assert_allclose(cosine, [[1, 0.96, 0], [0.96, 1, 0], [0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(length, [5e-30, 5e-30, 0], rtol=1e-6)


# -- the Laplace regime ------------------------------------------------------------------------


def test_regression_is_exact_at_second_order(linear, regression):
    s = regression.covariance(N_BETA, LOCALIZATION)
    np.testing.assert_allclose(probelib.influence.laplace_covariance(linear), s, rtol=1e-12)
    g = regression.x @ s @ regression.x.T
    first = np.outer(regression.residuals, regression.residuals) * g
    np.testing.assert_allclose(
        probelib.influence.laplace_kernel(linear).covariance(), first, rtol=1e-11, atol=1e-14
    )
    whole = regression.kernel(s)
    np.testing.assert_allclose(
        probelib.influence.laplace_kernel(linear, order=2).covariance(), whole, rtol=1e-11
    )
    for law in ("posterior", "gaussian"):  # no third derivative, nothing to add
        np.testing.assert_allclose(
            probelib.influence.next_order_kernel(linear, law=law).covariance(), whole, rtol=1e-11
        )


def test_kernels_keep_labels(neuron):
    kernel = probelib.influence.laplace_kernel(neuron)
    assert isinstance(kernel, probelib.MatrixKernel)
    diagonal = kernel.diagonal()
    np.testing.assert_array_equal(diagonal.label, neuron.data.labels())
    np.testing.assert_array_equal(diagonal.sample_id, np.arange(neuron.n_samples))


def test_kernel_of_other_samples(linear, regression):
    some = tuple(t[[5, 2]] for t in regression.data)
    for kernel in (probelib.influence.laplace_kernel, probelib.influence.next_order_kernel):
        whole, found = kernel(linear).covariance(), kernel(linear, some).covariance()
        np.testing.assert_allclose(found, whole[np.ix_([5, 2], [5, 2])], rtol=1e-10)


@pytest.mark.parametrize("law", ["posterior", "gaussian"])
def test_next_order_leaves_an_error_of_the_third(neuron, law):
    """The remainder is c3 / nb³ (1 + O(1 / nb)): ten times nb leaves a thousandth of it.

    With gamma in proportion to nb the series is one in 1 / nb alone. At nb = 1000 and 10,000 the
    next term is a few per cent of the leading one, so the measured factor lies within a tenth.
    """
    model, data = toys.Neuron(neuron.center), neuron.data.batch(slice(0, neuron.n_samples))
    left, second = [], []
    for n_beta in (1e3, 1e4):
        at = around(model, data, n_beta=n_beta, localization=n_beta / 100)
        truth = lattice(at, gaussian=law == "gaussian")
        left.append(
            np.linalg.norm(probelib.influence.next_order_kernel(at, law=law).covariance() - truth)
        )
        second.append(
            np.linalg.norm(probelib.influence.laplace_kernel(at, order=2).covariance() - truth)
        )
    assert left[0] / left[1] == pytest.approx(1e3, rel=0.1)
    # Whereas the two terms of the paper leave one of the second order.
    assert second[0] / second[1] == pytest.approx(1e2, rel=0.1)


# -- classical influence -----------------------------------------------------------------------


def test_removing_a_sample_follows_sherman_morrison(linear, regression):
    """Exactly: w_-i - w* = (X'X)^-1 x_i r_i / (1 - h_i), which is 1 / (1 - h_i) times influence."""
    inverse = np.linalg.inv(regression.x.T @ regression.x)
    leverage = np.einsum("ni,ij,nj->n", regression.x, inverse, regression.x)
    found = -probelib.influence.classical_influence(linear) / 9  # the effect of removal
    for i in range(9):
        keep = np.arange(9) != i
        refit = np.linalg.lstsq(regression.x[keep], regression.y[keep], rcond=None)[0]
        moved = regression.x @ (refit - regression.center)
        # The influence is the linear part of the loss change: r_q times the move of the output.
        expected = regression.residuals * moved * (1 - leverage[i])
        np.testing.assert_allclose(found[:, i], expected, rtol=1e-9, atol=1e-12)


def test_influence_is_minus_the_kernel_at_first_order(linear, regression):
    """K = -I / nb with the damping gamma / nb; so the sign of a variance is not the influence's."""
    influence = probelib.influence.classical_influence(linear, LOCALIZATION / N_BETA)
    np.testing.assert_allclose(
        -influence / N_BETA, probelib.influence.laplace_kernel(linear).covariance(), rtol=1e-10
    )
    assert (np.diag(influence) <= 0).all()


def test_influence_is_the_derivative_that_it_says(neuron):
    """Against a model retrained with one sample's weight up and down a little."""
    x, y = neuron.data.batch(slice(0, neuron.n_samples))
    influence = probelib.influence.classical_influence(neuron)
    step, i = 1e-4, 3

    def retrained(epsilon: float) -> torch.Tensor:
        tilted = lambda w: neuron.mean_loss(w) + epsilon * neuron.losses(w, x, y)[i]  # noqa: E731
        w = neuron.center
        for _ in range(20):
            h = torch.func.hessian(tilted)(w)
            w = w - torch.linalg.solve(h, torch.func.grad(tilted)(w))
        return neuron.losses(w, x, y)

    slope = (retrained(step) - retrained(-step)) / (2 * step)
    # The truncation is step² = 1e-8 times a third derivative of order 10 to 100.
    np.testing.assert_allclose(influence[:, i], slope.numpy(), atol=1e-5)


def test_queries_and_conjugate_gradients(network):
    damping = 1.0 - np.linalg.eigvalsh(probelib.influence.hessian(network))[0]  # positive definite
    exact = probelib.influence.classical_influence(network, damping)
    np.testing.assert_allclose(
        probelib.influence.classical_influence(network, damping, solver="cg"),
        exact,
        rtol=1e-7,
        atol=1e-9,
    )
    x, y = network.data.batch(slice(2, 4))
    asked = probelib.influence.classical_influence(network, damping, query=(x, y))
    np.testing.assert_allclose(asked, exact[2:4], rtol=1e-10, atol=1e-12)


def test_float32_and_a_float_damping():
    two = toys.two_classes(n=20, seed=1)
    found = probelib.influence.classical_influence(around(two.model, (two.x, two.y)), 0.1)
    exact = probelib.influence.classical_influence(
        around(toys.Neuron(two.model.weight.detach().double()), (two.x.double(), two.y)), 0.1
    )
    np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-5)


# -- what is refused ---------------------------------------------------------------------------


def test_bad_input(linear, network):
    wide = around(nn.Linear(200, 51), (torch.zeros(3, 200), torch.tensor([0, 1, 50])))
    for call, message in (
        (lambda: probelib.influence.per_sample_gradients(linear, batch_size=0), "batch_size is 0"),
        (lambda: probelib.influence.hessian_operator(linear, batch_size=2.5), "batch_size is 2.5"),
        (lambda: probelib.influence.laplace_kernel(linear, order=3), "order is 3"),
        (lambda: probelib.influence.next_order_kernel(linear, law="student"), "law is 'student'"),
        (lambda: probelib.influence.classical_influence(linear, -1.0), "damping is -1.0"),
        (lambda: probelib.influence.classical_influence(linear, solver="lu"), "solver is 'lu'"),
        (lambda: probelib.influence.hessian(wide), "10,251 parameters.*use hessian_operator"),
        (lambda: probelib.influence.classical_influence(wide), 'use solver="cg"'),
        (lambda: probelib.influence.next_order_kernel(wide), "use laplace_kernel"),
        (lambda: probelib.influence.per_sample_hessians(wide), "fewer samples"),
        (lambda: probelib.influence.per_sample_gradients(linear, (torch.zeros(2, 3),)), None),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            call()


def test_what_is_no_minimum_has_no_gaussian(network):
    lowest = np.linalg.eigvalsh(probelib.influence.hessian(network))[0]
    assert lowest < 0  # random weights
    x, y = network.data.batch(slice(0, 11))
    sharp = around(network.model, (x, y), n_beta=10.0, localization=-5 * lowest)
    with pytest.raises(ValueError, match="no minimum"):
        probelib.influence.laplace_covariance(sharp)


def test_a_singular_hessian_needs_damping():
    x = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]], dtype=torch.float64)
    model = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    flat = around(model, (x, torch.ones(3, 1, dtype=torch.float64)), probelib.squared_error)
    with pytest.raises(np.linalg.LinAlgError, match="damping is 0"):
        probelib.influence.classical_influence(flat)
    assert np.isfinite(probelib.influence.classical_influence(flat, 1e-6)).all()
