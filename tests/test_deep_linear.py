"""Deep linear networks: coefficients and Eq. 1, against independent ways to the same."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probebook import known_llc
from probebook.deep_linear import (
    DeepLinear,
    deep_linear_coefficient,
    deep_linear_law,
    deep_linear_posterior,
    random_teacher,
)

WIDTHS = st.lists(st.integers(1, 9), min_size=3, max_size=6)


def codimension(widths, rank):
    """Of the set of weights that make one map of this rank: the least over ranks of the products.

    With r_k the rank of the first k layers' product, layer k, which is H_{k+1} x H_k, maps an
    image of dimension r_{k-1} to one of r_k. That costs (H_{k+1} - r_k)(r_{k-1} - r_k), and one
    map of rank r among all of that rank costs r (H_1 + H_{L+1} - r).
    """
    costs = {widths[0]: 0}
    for width in widths[1:]:
        after = {}
        for before, cost in costs.items():
            for r in range(min(before, width) + 1):
                more = cost + (width - r) * (before - r)
                after[r] = min(after.get(r, math.inf), more)
        costs = after
    return costs[rank] + rank * (widths[0] + widths[-1] - rank)


@given(WIDTHS, st.data())
@settings(max_examples=300, deadline=None)
def test_the_coefficient_is_half_the_codimension_of_the_true_set(widths, data):
    """Of these sets that is a theorem of its own (arXiv 2411.19920), with no sum in common."""
    rank = data.draw(st.integers(0, min(widths)))
    assert deep_linear_coefficient(widths, rank)[0] == codimension(widths, rank) / 2


@given(WIDTHS, st.data())
@settings(max_examples=100, deadline=None)
def test_beyond_the_regular_part_the_order_of_the_widths_does_not_matter(widths, data):
    shuffled = data.draw(st.permutations(widths))
    assert deep_linear_coefficient(widths, 0) == deep_linear_coefficient(shuffled, 0)


@given(st.tuples(*[st.integers(1, 12)] * 3), st.data())
@settings(max_examples=300, deadline=None)
def test_two_layers_are_reduced_rank_regression(widths, data):
    rank = data.draw(st.integers(0, min(widths)))
    expected = known_llc.reduced_rank_coefficient(*widths, rank)
    assert deep_linear_coefficient(widths, rank) == expected


@pytest.mark.parametrize("depth", [2, 3, 5, 9])
def test_one_unit_a_layer_is_a_product_of_weights(depth):
    expected = known_llc.monomial_coefficient([1] * depth)
    assert deep_linear_coefficient([1] * (depth + 1), 0) == expected == (0.5, depth)


def test_three_layers_by_hand():
    # Full rank everywhere: the true set is smooth, and the map has 3 x 3 free entries.
    assert deep_linear_coefficient([3, 3, 3, 3], 3) == (4.5, 1)
    # A narrow layer at its rank: maps 4 -> 5 of rank 2 have 2 (4 + 5 - 2) dimensions.
    assert deep_linear_coefficient([4, 2, 6, 5], 2) == (7.0, 1)
    # |a|² b² |c|², a in R^3, c in R^2: the poles are 3/2, 1/2 and 2/2.
    assert deep_linear_coefficient([3, 1, 1, 2], 0) == (0.5, 1)
    # Wide hidden layers: as good as the free 2 x 2 matrix.
    assert deep_linear_coefficient([2, 30, 40, 2], 0) == (2.0, 1)


def test_a_million_weights_lose_no_digit():
    widths = [500, 501, 499, 500, 502]
    value = deep_linear_coefficient(widths, 50)[0]
    assert value == codimension(widths, 50) / 2


@pytest.mark.parametrize(
    ("widths", "rank", "says"),
    [([3, 3], 1, "hidden"), ([3, 2, 3], 3, "0 to 2"), ([3, 2.5, 3], 1, "widths")],
)
def test_networks_that_cannot_be_are_refused(widths, rank, says):
    with pytest.raises((ValueError, TypeError), match=says):
        deep_linear_coefficient(widths, rank)


def test_the_network_makes_its_map_and_the_data_show_the_population_loss():
    model = DeepLinear([4, 5, 3], 2, torch.float64)
    expected = torch.zeros(3, 4, dtype=torch.float64)
    expected[0, 0] = expected[1, 1] = 1
    torch.testing.assert_close(model(torch.eye(4, dtype=torch.float64)).T, expected)
    moved = torch.arange(35, dtype=torch.float64) / 20
    after = (moved[20:].reshape(3, 5) @ moved[:20].reshape(5, 4) - expected).square().sum() / 2
    for samples in (None, 4, 50):
        posterior = deep_linear_posterior(model, 10.0, 1.0, samples=samples)
        assert float(posterior.mean_loss(posterior.center)) == pytest.approx(0, abs=1e-20)
        assert float(posterior.mean_loss(moved)) == pytest.approx(float(after), rel=1e-10)
    with pytest.raises(ValueError, match="samples is 3"):
        deep_linear_posterior(model, 10.0, 1.0, samples=3)


def agrees(law, truth, truth_se=0.0):
    # Four standard errors: by chance in one of 16,000.
    assert law.llc == pytest.approx(truth, abs=4 * math.hypot(law.llc_se, truth_se))
    assert law.llc_se < 0.02 * truth  # or it could hardly be missed


def test_gibbs_finds_eq_1_of_three_weights():
    model = DeepLinear([1, 1, 1, 1], 0)
    law = deep_linear_law(model, 40.0, 3.0, chains=200, sweeps=100, burn_in=50)
    agrees(law, known_llc.monomial_law([1, 1, 1], 40.0, 3.0).llc)


def test_gibbs_finds_eq_1_of_three_layers():
    model = DeepLinear([3, 1, 1, 2], 0)
    law = deep_linear_law(model, 200.0, 2.0, chains=400, sweeps=100, burn_in=100)
    agrees(law, known_llc.monomial_law([1, 1, 1], 200.0, 2.0, volumes=[3, 1, 2]).llc)


def test_gibbs_finds_eq_1_of_reduced_rank_regression():
    law = deep_linear_law(DeepLinear([3, 2, 4], 1), 200.0, 20.0, chains=100, sweeps=100, burn_in=50)
    truth = known_llc.reduced_rank_law(known_llc.ReducedRank(3, 2, 4, 1), 200.0, 20.0, 200_000)
    agrees(law, truth.llc, truth.llc_se)


def test_eq_1_comes_to_the_coefficient_of_three_layers():
    """Of multiplicity 1, so that no logarithm stands between: the gap falls by 3 or more in 100."""
    model, settings = DeepLinear([4, 4, 4, 4], 1), {"chains": 64, "sweeps": 100, "burn_in": 100}
    assert deep_linear_coefficient(model.widths, 1) == (6.5, 1)
    gaps = [6.5 - deep_linear_law(model, n_beta, 4.0, **settings).llc for n_beta in (1e2, 1e4, 1e8)]
    assert 0 < gaps[1] < gaps[0] / 3
    # A ninth of that gap is left, and four standard errors of 0.03.
    assert abs(gaps[2]) < gaps[1] / 9 + 0.12


def test_gibbs_chains_of_one_seed_are_the_same():
    model = DeepLinear([3, 2, 2, 3], 1)
    first, again = (deep_linear_law(model, 50.0, 5.0, sweeps=20, seed=3) for _ in range(2))
    assert first == again
    assert deep_linear_law(model, 50.0, 5.0, sweeps=20, seed=4) != first


def test_a_generic_point_has_a_larger_local_coefficient():
    """Between two invertible layers, one layer of rank 1 is determined by the map: 16 equations.

    The learning coefficient is that of another point, where all layers have rank 1.
    """
    model = random_teacher([4, 4, 4, 4], [4, 1, 4], seed=1, dtype=torch.float64)
    with torch.no_grad():
        model.layers[0].copy_(2 * torch.eye(4))
        model.layers[2].copy_(2 * torch.eye(4))
    made = model(torch.eye(4, dtype=torch.float64)).detach()
    assert np.linalg.matrix_rank(made.numpy()) == 1
    coefficient = deep_linear_coefficient(model.widths, 1)[0]
    assert coefficient == 6.5
    law = deep_linear_law(model, 1e6, 100.0, chains=40, sweeps=50, burn_in=50)
    # Each of the 16 directions holds half, less what gamma takes: of curvature 16, 4e-6.
    agrees(law, 8.0)


def test_a_layer_has_the_rank_it_can_have():
    with pytest.raises(ValueError, match="ranks has 5"):
        random_teacher([4, 4, 4], [4, 5], seed=0)
