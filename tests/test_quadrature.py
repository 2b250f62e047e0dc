"""The lattice over few weights, against Gaussian closed forms."""

import numpy as np
import pytest
import torch

import probelib
from probebook import quadrature, toys

N_BETA, LOCALIZATION = 6.0, 2.0


def around(model, data, loss=probelib.squared_error):
    return probelib.LocalPosterior(model, loss, data, n_beta=N_BETA, localization=LOCALIZATION)


@pytest.mark.parametrize("scales", [(1.2,), (1.5, 0.7)], ids=["one weight", "two weights"])
def test_the_lattice_knows_regression(scales):
    """A Gaussian law: everything is exact to the rule's tail, e^-32."""
    regression = toys.linear_regression(n=10, scales=scales, noise=0.8, seed=3)
    s = regression.covariance(N_BETA, LOCALIZATION)
    exact = quadrature.integrate(around(regression.model, regression.data))
    np.testing.assert_allclose(exact.gain, regression.gain(s), rtol=1e-9)
    np.testing.assert_allclose(exact.kernel, regression.kernel(s), rtol=1e-9)
    assert exact.llc == pytest.approx(regression.llc(N_BETA, s), rel=1e-9)
    np.testing.assert_allclose(exact.gaussian_kernel, regression.kernel(s), rtol=1e-9)
    np.testing.assert_allclose(exact.kernel_of_losses, exact.kernel, rtol=1e-9)
    np.testing.assert_allclose(exact.covariance, s, rtol=1e-9)
    assert exact.total_variation < 1e-9


def test_a_finer_lattice_of_a_float32_model_says_the_same():
    """Not Gaussian, so there is no closed form; losses near 1 are rounded by 1e-7."""
    toy = toys.two_classes(n=60)
    posterior = around(toy.model, (toy.x, toy.y), probelib.cross_entropy)
    coarse, fine = (quadrature.integrate(posterior, points) for points in (41, 81))
    assert coarse.total_variation > 0.01
    np.testing.assert_allclose(coarse.gain, fine.gain, atol=1e-6)
    np.testing.assert_allclose(coarse.kernel, fine.kernel, atol=1e-6)


def test_the_lattice_refuses_four_weights():
    x = torch.eye(4, dtype=torch.float64)
    model = torch.nn.Linear(4, 1, bias=False, dtype=torch.float64)
    with pytest.raises(ValueError, match="posterior has 4 weights; give a model of three at most"):
        quadrature.integrate(around(model, (x, x[:, :1])))


def test_losses_are_those_of_moved_weights():
    regression = toys.linear_regression(n=4, scales=(1.5, 0.7), noise=0.8, seed=3)
    moves = np.array([[0.0, 0.0], [0.3, -0.1]])
    losses, at_center = quadrature.losses_around(around(regression.model, regression.data), moves)
    residuals = regression.residuals + moves @ regression.x.T
    np.testing.assert_allclose(losses, residuals**2 / 2, rtol=1e-12)
    np.testing.assert_allclose(at_center, regression.residuals**2 / 2, rtol=1e-12)


def test_weighted_covariance_counts_rows_by_their_mass():
    values = np.array([[1.0, 2.0], [3.0, -1.0], [0.0, 5.0]])
    repeated = np.repeat(values, [1, 2, 3], axis=0)
    found = quadrature.weighted_covariance(values, np.array([1, 2, 3]) / 6)
    np.testing.assert_allclose(found, np.cov(repeated, rowvar=False, ddof=0), rtol=1e-12)
