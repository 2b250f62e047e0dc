"""Similarities held against meaning: closed forms, known groups, and intervals that cover."""

import numpy as np
import pytest
from scipy.stats import rankdata

from probebook import similarity_tests as st
from probebook.alignment import clusters

PATHS = [
    ("entity", "living", "animal", "dog"),
    ("entity", "living", "animal", "cat"),
    ("entity", "living", "plant"),
    ("entity", "thing", "car"),
    ("entity", "thing", "car", "bus"),
]


def test_groups_are_the_ancestors_at_a_depth():
    same = lambda depth: st.groups_at(PATHS, depth)  # noqa: E731
    assert len(set(same(1))) == 1
    assert same(2)[0] == same(2)[1] == same(2)[2] != same(2)[3]
    assert same(2)[3] == same(2)[4]
    assert len(set(same(3))) == 3
    assert len(set(same(4))) == 5  # a class higher up is a group of its own
    with pytest.raises(ValueError, match="depth is 0"):
        st.groups_at(PATHS, 0)


def test_purity_by_hand():
    true = np.array([0, 0, 0, 1, 1, 2])
    clusters = np.array([0, 0, 1, 1, 1, 1])
    assert st.purity(true, clusters) == pytest.approx((2 + 2) / 6)


def groups_of(n=60, k=3):
    return np.arange(n) % k


def similar(groups, seed=0, noise=0.3):
    rng = np.random.default_rng(seed)
    rows = np.eye(groups.max() + 1)[groups] + noise * rng.normal(size=(len(groups), 3))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def test_clusters_find_groups():
    groups = groups_of()
    found = clusters(similar(groups, noise=0.1), 3, 10)
    assert st.purity(groups, found) > 0.95
    assert st.purity(found, groups) > 0.95
    assert set(clusters(similar(groups), 1)) == {0}


def test_parts_that_no_edge_joins_are_clustered_without_a_warning(recwarn):
    blocks = np.kron(np.eye(3), np.ones((20, 20))) + 1e-3 * similar(groups_of())
    found = clusters(blocks, 3, 10)
    assert st.purity(np.repeat(range(3), 20), found) == 1
    assert not recwarn.list


@pytest.fixture
def meaning():
    """Sixty photographs of sixty classes in three groups."""
    groups = groups_of()
    wordnet = np.where(groups[:, None] == groups, 0.9, 0.3)
    np.fill_diagonal(wordnet, 1)
    return st.Meaning(np.arange(60), wordnet, {2: groups})


def test_a_similarity_of_meaning_is_told_from_one_of_nothing(meaning):
    groups = groups_of()
    for similarity, knows in ((similar(groups), True), (similar(np.arange(60) // 20), False)):
        found = st.measured(meaning.measure, similarity)
        chance = meaning.chance(similarity)
        for name in ("spearman_wordnet", "top5_wordnet", "nmi_2", "purity_2"):
            assert (found[name].low > chance[name]) == knows, name
            assert found[name].low <= found[name].value <= found[name].high
        assert found["spearman_wordnet"] == found["spearman_wordnet_cross"]  # one of each class


def test_pairs_of_one_label_are_left_out_of_the_cross_label_correlation():
    labels = np.repeat(np.arange(20), 3)
    wordnet = np.full((20, 20), 0.5)
    wordnet[:10, :10] = 0.7
    np.fill_diagonal(wordnet, 1)
    similarity = (labels[:, None] == labels) + np.random.default_rng(0).normal(0, 0.01, (60, 60))
    similarity = (similarity + similarity.T) / 2
    found = st.Meaning(labels, wordnet, {}).measure(similarity, np.arange(60))
    assert found["spearman_wordnet"] > 0.1
    assert abs(found["spearman_wordnet_cross"]) < 0.1


def test_partial_rank_correlation_is_that_of_residuals():
    rng = np.random.default_rng(0)
    common = rng.normal(size=400)
    one, other = common + rng.normal(size=400), common + rng.normal(size=400)
    given = [common, rng.normal(size=400)]
    design = [(rankdata(v) - 1).astype(int) * 8 // 400 == step for v in given for step in range(8)]
    design = np.stack(design, 1).astype(float)
    left = [
        (r := rankdata(v)) - design @ np.linalg.lstsq(design, r, rcond=None)[0]
        for v in (one, other)
    ]
    wanted = np.corrcoef(*left)[0, 1]
    assert st.partial_rank_correlation(one, other, given, 8) == pytest.approx(wanted, abs=1e-9)
    assert abs(wanted) < 0.2 < np.corrcoef(one, other)[0, 1]


def test_a_curved_relation_to_the_others_leaves_nothing_over():
    rng = np.random.default_rng(1)
    common = rng.normal(size=20_000)
    one, other = common**2 + 0.3 * rng.normal(size=20_000), common > 1
    ranks = [rankdata(v) for v in (one, other, common)]
    line = np.linalg.pinv(np.corrcoef(ranks))
    assert -line[0, 1] / np.sqrt(line[0, 0] * line[1, 1]) > 0.2  # by lines it would be
    assert abs(st.partial_rank_correlation(one, other, [common])) < 0.03


def test_what_features_know_is_taken_off(meaning):
    groups = groups_of()
    features, kernel = similar(groups, 1), similar(groups, 2)
    noise = np.random.default_rng(3).normal(size=(60, 60))
    only_features = features + 0.3 * (noise + noise.T) / 2
    statistic = st.partial_wordnet(meaning, 1)
    both = st.measured(statistic, np.stack([kernel, features]))
    same = st.measured(statistic, np.stack([only_features, features]))
    assert both["partial"].low > 0
    assert abs(same["partial"].value) < 0.1
    with pytest.raises(ValueError, match="given is 0"):
        st.partial_wordnet(meaning, 0)


def test_the_jackknife_of_a_mean_is_its_t_interval():
    values = np.array([1.0, 2.0, 4.0, 7.0, 11.0])
    left_out = [np.delete(values, k).mean() for k in range(5)]
    t = 2.7764451
    assert st.jackknife_arm(left_out) == pytest.approx(t * values.std(ddof=1) / 5**0.5)
    assert st.jackknife_arm([1.0]) == np.inf


def test_intervals_over_samples_and_parts_cover():
    """The mean of a noisy sample: its truth lies in the interval in nearly 95 % of all trials."""
    rng = np.random.default_rng(0)
    inside = {"samples": 0, "both": 0}
    for trial in range(200):
        values = rng.normal(size=40)
        noise = 0.5 * rng.normal(size=(4, 1))
        parts = values + noise  # each part of the walks is off by its own error
        statistic = lambda matrix, at: {"mean": float(np.diag(matrix).mean())}  # noqa: E731
        whole = np.diag(parts.mean(0))
        without = [np.diag(np.delete(parts, k, 0).mean(0)) for k in range(4)]
        alone = st.measured(statistic, np.diag(values), seed=trial)["mean"]
        both = st.measured(statistic, whole, without, seed=trial)["mean"]
        inside["samples"] += alone.low <= 0 <= alone.high
        inside["both"] += both.low <= 0 <= both.high
    assert 0.88 <= inside["samples"] / 200 <= 0.99
    assert 0.90 <= inside["both"] / 200 <= 1.0
