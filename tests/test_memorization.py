"""Detection and separation against hand-computed values and closed forms."""

import numpy as np
import pytest
import xarray as xr

import probelib
from probebook.memorization import detection, neighbour_auroc, unit_traces


def test_auroc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    score, flagged = rng.integers(0, 20, 200).astype(float), rng.random(200) < 0.3
    a, b = score[flagged][:, None], score[~flagged][None]
    pairs = (a > b).mean() + 0.5 * (a == b).mean()
    found = detection(score, flagged)
    assert found.auroc == pytest.approx(pairs, abs=1e-12)
    x, y = found.roc
    assert np.trapezoid(y, x) == pytest.approx(pairs, abs=1e-12)


def test_average_precision_of_a_perfect_score_is_one():
    flagged = np.array([0, 0, 1, 0, 1], bool)
    assert detection(flagged.astype(float), flagged).average_precision == 1


def test_one_population_is_refused():
    with pytest.raises(ValueError, match="flagged marks 0 of 3"):
        detection(np.arange(3.0), np.zeros(3, bool))


def test_separated_clouds_score_one_and_mixed_ones_a_half():
    rng = np.random.default_rng(1)
    flagged = np.arange(2000) % 4 == 0
    cloud = rng.normal(size=(2000, 2))
    assert neighbour_auroc(cloud + 50 * flagged[:, None], flagged) == 1
    # Mixed: the AUROC of 500 against 1,500 has a standard error of
    # sqrt((500 + 1500 + 1) / (12 * 500 * 1500)) = 0.015 for independent scores; neighbouring
    # scores share neighbours, so allow ten of them.
    assert abs(neighbour_auroc(cloud, flagged) - 0.5) < 0.15


def test_a_sample_does_not_count_itself():
    # Pairs of one kind each, far apart: with k = 1 each sample's neighbour is its twin.
    x = np.repeat(np.arange(10.0) * 10, 2)[:, None] + np.tile([0, 0.1], 10)[:, None]
    twins = np.repeat(np.arange(10) % 2 == 0, 2)
    assert neighbour_auroc(x, twins, k=1) == 1
    strangers = np.tile([True, False], 10)
    assert neighbour_auroc(x, strangers, k=1) == 0


def test_unit_traces_have_the_correlation_kernel_as_inner_products():
    loss = np.random.default_rng(0).normal(size=(2, 6, 9)) * np.geomspace(1e-4, 10, 9)
    loss[..., 4] = 0.25  # a loss that never moves
    trace = xr.Dataset(
        {"loss": (("chain", "draw", "sample"), loss), "init_loss": ("sample", loss[0, 0])}
    )
    kernel = probelib.loss_kernel(trace)
    rows = np.array([8, 4, 0, 2])
    unit = unit_traces(kernel, rows)
    assert unit.shape == (4, 12)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), [1, 0, 1, 1], atol=1e-6)
    expected = kernel.correlation(rows, rows)
    np.testing.assert_allclose(unit @ unit.T, expected, atol=1e-6)
    off = ~np.isin(rows, 4)
    whole = loss.reshape(12, 9)[:, rows[off]]
    np.testing.assert_allclose(expected[np.ix_(off, off)], np.corrcoef(whole.T), atol=1e-5)
