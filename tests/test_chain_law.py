"""The discretised chain's law on a grid, against a Gaussian chain's closed forms."""

import numpy as np
import pytest

from probebook.chain_law import ChainLaw

STEP_SIZE = 0.01


def gaussian_chain(dimensions: int = 1) -> ChainLaw:
    precision = np.array([20.0, 50.0])[:dimensions, None]
    return ChainLaw(lambda w: precision * w, 2.5, dimensions, STEP_SIZE)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_a_gaussian_chain_has_its_closed_form(dimensions):
    chain = gaussian_chain(dimensions)
    start = np.exp(-10 * (chain.weights**2).sum(0))
    mass, relaxation = chain.stationary(start)
    for precision, w in zip((20.0, 50.0), chain.weights, strict=False):
        variance = 1 / (precision * (1 - STEP_SIZE * precision / 4))
        # Sums over a grid of 0.75 standard deviations of the noise are integrals to 1e-7.
        assert mass @ w**2 == pytest.approx(variance, rel=1e-6)
    # The slowest even function is the square of the first weight.
    assert relaxation == pytest.approx(-0.5 / np.log(1 - STEP_SIZE * 20 / 2), rel=1e-5)


def test_a_gaussian_chain_on_its_way():
    chain, steps = gaussian_chain(), np.arange(1, 31)
    shrink = 1 - STEP_SIZE * 20 / 2
    expected = STEP_SIZE * (1 - shrink ** (2 * steps)) / (1 - shrink**2)
    np.testing.assert_allclose(chain.along(chain.weights[0] ** 2, 30), expected, rtol=1e-6)


def test_a_chain_of_three_weights_is_refused():
    with pytest.raises(ValueError, match="dimensions is 3; a grid is laid over 1 or 2 weights"):
        ChainLaw(lambda w: w, 1.0, 3, 0.1)
