"""Stages of a linear network: closed forms against each other, and the LLC of each rank."""

import numpy as np
import pytest
import torch

from probebook.deep_linear import deep_linear_coefficient, deep_linear_law
from probebook.stages import Stages, follow, half_times, strengths, teacher

S, START = (4.0, 2.0, 1.0), 1e-3


def test_half_is_learned_at_the_known_times():
    times = half_times(S, START)
    found = strengths(S, START, times)
    np.testing.assert_allclose(np.diag(found), np.array(S) / 2, rtol=1e-12)
    assert times[0] == pytest.approx(np.log(3999) / 8)  # by hand
    np.testing.assert_allclose(strengths(S, START, np.array([0.0])), [[START] * 3])
    with pytest.raises(ValueError, match=r"start is 0\.6"):
        half_times(S, 0.6)


def test_the_closed_form_solves_its_equation():
    """da/dt = 2 a (s - a), by differences."""
    t, h = np.linspace(0.1, 3, 7), 1e-5
    slope = (strengths(S, START, t + h) - strengths(S, START, t - h)) / (2 * h)
    a = strengths(S, START, t)
    np.testing.assert_allclose(slope, 2 * a * (np.array(S) - a), rtol=1e-6, atol=1e-9)


def test_the_flow_is_that_of_the_closed_form_in_any_directions():
    target, model = teacher((7, 4, 6), S, START, seed=3)
    np.testing.assert_allclose(torch.linalg.svdvals(target)[:3], S)
    before = [layer.detach().clone() for layer in model.layers]
    times = [0.0, 0.7, 1.5, 4.0]
    path = list(follow(model, target, times, step=1e-3))
    assert [t for t, _ in path] == pytest.approx(times)
    for row, (_, found) in zip(strengths(S, START, np.array(times)), path, strict=True):
        product = (found.layers[1] @ found.layers[0]).detach()
        np.testing.assert_allclose(torch.linalg.svdvals(product)[:3], row, rtol=2e-4)
    assert all(torch.equal(a, b) for a, b in zip(before, model.layers, strict=True))
    # And its map is on its way to T.
    assert float((product - target).norm()) < 0.3


def test_the_integration_is_of_second_order():
    target, model = teacher((5, 3, 5), S, START, seed=0)
    errors = []
    for step in (0.02, 0.01):
        [(_, found)] = follow(model, target, [1.0], step=step)
        sizes = torch.linalg.svdvals((found.layers[1] @ found.layers[0]).detach()).numpy()
        errors.append(np.abs(sizes[:3] - strengths(S, START, np.array([1.0]))[0]).max())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.25)


def test_noise_leaves_the_aligned_start():
    _, plain = teacher((5, 3, 5), S, START, seed=0)
    _, noisy = teacher((5, 3, 5), S, START, seed=0, noise=0.01)
    off = noisy.layers[0].detach() - plain.layers[0].detach()
    assert 0.003 < float(off.std()) < 0.03


def test_the_llc_of_each_rank_comes_to_its_coefficient():
    """At large n beta: at rank r the map's LLC is near lambda_r, and the order is right."""
    widths, s = (8, 3, 8), (4.0, 2.0)
    target, model = teacher(widths, s, 1e-12, seed=1)
    times = half_times(s, 1e-12)
    # Before the first stage, between the two, and after both.
    path = list(follow(model, target, [0.0, 1.15 * times[0], 1.4 * times[1]]))
    found = Stages.measure(path, n_beta=1e6, localization=10.0, chains=16, sweeps=60, seed=0)
    known = [deep_linear_coefficient(widths, rank)[0] for rank in range(3)]
    assert known == [11.0, 14.0, 17.0]
    np.testing.assert_allclose(found.singular[1, :3], [4, 0, 0], atol=0.06)
    gaps = np.array(known) - found.llc
    # What is left is a logarithm over n beta; a quarter of a step between ranks is 0.75.
    assert (np.abs(gaps) < 0.75 + 3 * found.llc_se).all()
    law = deep_linear_law(path[2][1], 1e6, 10.0, chains=16, sweeps=60, burn_in=60, seed=2)
    assert (found.llc[2], found.llc_se[2]) == (law.llc, law.llc_se)
    assert found.singular_at(float(found.times[1]), 0) == pytest.approx(found.singular[1, 0])
