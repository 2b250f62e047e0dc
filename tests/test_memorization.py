"""Detection and separation against hand-computed values and closed forms."""

import numpy as np
import pytest

from probelib.experiments.memorization import detection, neighbour_auroc


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
