"""Neighbours and chance: against counts by hand, loops, and kernels that are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

import probelib
from probebook.alignment import (
    alignment,
    apart,
    cosine,
    cross_label_top,
    equivalent_draws,
    meaning_of,
    noise_free_correlation,
    noise_free_slope,
    off_diagonal,
    overlap,
    q_values,
    spearman,
    spearman_of_pairs,
    top,
    without_common_part,
)
from probebook.wordnet import imagenet_classes, wu_palmer


def test_top_leaves_an_image_itself_out():
    matrix = np.array([[9.0, 1, 2, 3], [1, 9, 5, 4], [2, 5, 9, 0], [3, 4, 0, 9]])
    np.testing.assert_array_equal(top(matrix, 2), [[3, 2], [2, 3], [1, 0], [1, 0]])
    labels = np.array([0, 1, 1, 0])
    np.testing.assert_array_equal(cross_label_top(matrix, labels, 1), [[2], [3], [0], [1]])
    with pytest.raises(ValueError, match="k is 3; choose from 1 to 2"):
        cross_label_top(matrix, labels, 3)


def test_a_planted_hierarchy_is_found_and_noise_is_not():
    """Kernel = WordNet similarity itself: neighbours far above chance; noise: within it."""
    similarity = wu_palmer([c.path for c in imagenet_classes()])
    labels = np.arange(0, 1000, 5)
    among = similarity[np.ix_(labels, labels)]
    found = alignment(cross_label_top(among, labels, 5), labels, similarity, seed=1)
    assert found.value > found.high + 0.2
    assert found.chance == pytest.approx(off_diagonal(among).mean(), abs=0.01)
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(20):
        noise = rng.normal(size=(200, 200))
        null = alignment(
            cross_label_top(noise + noise.T, labels, 5), labels, similarity, permutations=200
        )
        inside += null.low <= null.value <= null.high
    assert inside >= 15  # of 20 at 95 %: fewer than 15 once in 30,000


def test_hubs_do_not_pass_for_meaning():
    """An image that is everybody's neighbour, of a class near all others, is no signal."""
    similarity = wu_palmer([c.path for c in imagenet_classes()])
    labels = np.arange(0, 1000, 10)
    among = similarity[np.ix_(labels, labels)]
    central = int(among.mean(0).argmax())
    neighbours = np.full((100, 1), central)
    neighbours[central] = (central + 1) % 100
    found = alignment(neighbours, labels, similarity, permutations=500)
    assert found.value > off_diagonal(among).mean()  # looks like signal
    assert found.high > found.value * 0.95  # and is not much above what dealing anew gives


def test_images_of_one_label_stay_together_when_labels_are_dealt():
    labels = np.array([3, 3, 7, 7, 9, 9])
    similarity = np.zeros((10, 10))
    similarity[np.ix_([3, 7, 9], [3, 7, 9])] = [[1, 0.5, 0.25], [0.5, 1, 0.125], [0.25, 0.125, 1]]
    neighbours = np.array([[2], [3], [0], [1], [0], [1]])
    found = alignment(neighbours, labels, similarity, permutations=300)
    assert found.value == pytest.approx((4 * 0.5 + 2 * 0.25) / 6)
    # Six ways to deal three labels; none gives a similarity of 1, that of one label with itself.
    ways = {
        (4 * s[0] + 2 * s[1]) / 6
        for s in [
            (0.5, 0.25),
            (0.5, 0.125),
            (0.25, 0.5),
            (0.25, 0.125),
            (0.125, 0.5),
            (0.125, 0.25),
        ]
    }
    assert {round(v, 9) for v in found.null} <= {round(v, 9) for v in ways}


def test_meaning_is_the_alignment_of_cross_label_neighbours():
    rng = np.random.default_rng(0)
    r, labels = rng.normal(size=(8, 8)), np.arange(8) % 4
    similarity = rng.random((4, 4))
    found = meaning_of(similarity, permutations=20, seed=3, k=2)(r, labels)
    expected = alignment(cross_label_top(r, labels, 2), labels, similarity, permutations=20, seed=3)
    assert found.value == expected.value
    np.testing.assert_array_equal(found.null, expected.null)


def test_references_are_not_neighbours_of_each_other():
    neighbours = np.array([[1], [0], [3], [4], [0]])
    chosen = apart(np.array([2, 3, 1, 0, 4]), neighbours, most=3)
    np.testing.assert_array_equal(chosen, [2, 1, 4])
    assert len(apart(np.arange(5), neighbours, most=1)) == 1


def test_overlap_and_spearman():
    assert overlap(np.array([[1, 2], [0, 2]]), np.array([[2, 3], [0, 2]])) == pytest.approx(0.75)
    rng = np.random.default_rng(0)
    a = rng.normal(size=(20, 20))
    assert spearman(a, np.exp(a)) == pytest.approx(1)
    assert spearman(a, -a) == pytest.approx(-1)
    assert spearman(a, a.T) == pytest.approx(spearmanr(a.ravel(), a.T.ravel()).statistic)
    assert spearman_of_pairs(a, np.tril(-a) + np.triu(a)) == pytest.approx(1)  # i < j alone


@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(3, 30))
def test_the_common_part_is_that_of_the_draws(seed, n, draws):
    rng = np.random.default_rng(seed)
    losses = rng.normal(size=(draws, n)) + 5 * rng.normal(size=(draws, 1))
    kept = losses - losses.mean(1, keepdims=True)
    np.testing.assert_allclose(
        without_common_part(np.cov(losses.T)), np.cov(kept.T), atol=1e-10 * draws
    )


def test_cosine_of_a_vector_of_zeros_is_zero():
    found = cosine(np.array([[3.0, 4.0], [0.0, 0.0], [-6.0, -8.0]]))
    np.testing.assert_allclose(found, [[1, 0, -1], [0, 0, 0], [-1, 0, 1]])


def test_the_neighbours_of_a_planted_duplicate_come_back_first():
    """A photograph that is there twice is its own nearest neighbour, by draws and by gradients."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    x, y = torch.randn(30, 12), torch.randint(0, 4, (30,))
    x[17], y[17] = x[4], y[4]
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
    posterior = probelib.LocalPosterior(
        model, probelib.cross_entropy, (x, y), n_beta=1.0, localization=100.0
    )
    trace = probelib.sample(
        posterior, sampler=probelib.SGLD(step_size=1e-3), chains=2, draws=200, progress=False
    )
    pairs = probelib.gradient_pairs(posterior, progress=False)
    for kernel in (probelib.loss_kernel(trace), probelib.pair_kernel(pairs, limit=True)):
        r = kernel.correlation()
        assert r[4, 17] > 0.99
        np.testing.assert_array_equal(top(r, 1)[[4, 17], 0], [17, 4])


def test_equivalent_draws_of_independent_draws_are_their_number():
    draws = np.random.default_rng(0).normal(size=(800, 200))
    halves = np.corrcoef(draws[::2].T), np.corrcoef(draws[1::2].T)
    # 19,900 pairs, nearly independent: the mean square of as many normals is within 5 %.
    assert equivalent_draws(*halves) == pytest.approx(800, rel=0.05)


def test_noise_does_not_bend_the_slope_between_estimates():
    rng = np.random.default_rng(0)

    def symmetric(scale):
        a = rng.normal(0, scale, (300, 300))
        return np.triu(a, 1) + np.triu(a, 1).T

    truth = symmetric(0.01)
    noisy = [truth + symmetric(s) for s in (0.05, 0.01, 0.01)]
    # 44,850 pairs: the noise of the first alone has a slope of 0.05 / 0.01 / sqrt(44,850) = 0.024.
    assert noise_free_slope(*noisy) == pytest.approx(1, abs=0.08)
    assert noise_free_slope(0.5 * truth, *noisy[1:]) == pytest.approx(0.5, abs=0.04)
    assert noise_free_slope(symmetric(0.05), *noisy[1:]) == pytest.approx(0, abs=0.08)


def test_noise_does_not_lower_the_correlation_of_kernels():
    rng = np.random.default_rng(0)
    n = 300

    def symmetric(scale):
        a = rng.normal(0, scale, (n, n))
        return np.triu(a, 1) + np.triu(a, 1).T

    shared, own = symmetric(0.01), symmetric(0.01)
    one = tuple(shared + symmetric(0.02) for _ in range(2))
    same = tuple(shared + symmetric(0.01) for _ in range(2))
    half = tuple((shared + own) * 3 + symmetric(0.01) for _ in range(2))
    assert noise_free_correlation(one, same) == pytest.approx(1, abs=0.05)
    assert noise_free_correlation(one, half) == pytest.approx(np.sqrt(0.5), abs=0.05)
    assert noise_free_correlation(one, (np.eye(n), np.eye(n))) == 0


def noisy_half(rng, truth, of_image):
    """An estimate of R with an error of which each image has its share."""
    noise = rng.normal(size=truth.shape) * np.sqrt(np.outer(of_image, of_image))
    return truth + np.triu(noise, 1) + np.triu(noise, 1).T


def test_neighbours_of_noise_are_called_chance_and_planted_ones_are_not():
    n, k, rng = 120, 5, np.random.default_rng(0)
    of_image = np.repeat([0.02, 0.1], n // 2)  # half of the images are far noisier
    group = np.arange(n) % 20
    planted = 0.4 * (group[:, None] == group)
    false, found, wrong = [], [], 0
    for _ in range(40):
        halves = [noisy_half(rng, np.zeros((n, n)), of_image) for _ in range(2)]
        q = q_values(top(np.mean(halves, 0), k), *halves)
        false.append((q < 0.05).any())
        halves = [noisy_half(rng, planted, of_image) for _ in range(2)]
        near = top(np.mean(halves, 0), k)
        related, sure = group[near] == group[:, None], q_values(near, *halves) < 0.05
        found.append(sure[related].mean())
        wrong += (sure & ~related).sum() / max(sure.sum(), 1)
    assert sum(false) <= 7  # of 40: at 5 %, more than 7 once in 600
    assert np.mean(found) > 0.95
    assert wrong / 40 < 0.05
