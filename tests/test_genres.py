"""Recovery of labels by hand, at its limits and against chance; rivals by their definitions."""

import numpy as np
import pytest
import torch
import xarray as xr
from sklearn.metrics import roc_auc_score
from torch import nn

import probelib
from probebook.genres import (
    centred_cosine,
    clusters,
    document_gradients,
    group_means,
    recovery,
    recovery_table,
    tf_idf,
)
from probebook.language_data import Windows

LABELS = np.repeat(np.arange(4), [12, 9, 8, 7])
FEW = {"permutations": 200, "k": 3}


def similarity(strength, seed=0):
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(len(LABELS), len(LABELS)))
    return (noise + noise.T) / 2 + strength * (LABELS[:, None] == LABELS)


def test_blocks_are_recovered_whole():
    found = recovery(similarity(100), LABELS, **FEW)
    for statistic in found.values():
        assert statistic.value == pytest.approx(1)
        assert statistic.error == pytest.approx(0, abs=1e-9)
        assert statistic.p == pytest.approx(1 / 201)
        assert statistic.high < 1


def test_statistics_are_those_counted_by_hand():
    matrix = similarity(1.0)
    found = recovery(matrix, LABELS, **FEW)
    one, other = np.triu_indices(len(LABELS), 1)
    auroc = roc_auc_score(LABELS[one] == LABELS[other], matrix[one, other])
    assert found["auroc"].value == pytest.approx(auroc, abs=1e-12)
    shares = []
    for i in range(len(LABELS)):
        near = sorted((j for j in range(len(LABELS)) if j != i), key=lambda j: -matrix[i, j])[:3]
        shares.append(np.mean([LABELS[j] == LABELS[i] for j in near]))
    assert found["purity"].value == pytest.approx(np.mean(shares))


def test_chance_is_that_of_the_labels():
    """Purity: sum of n_c (n_c - 1) / (n (n - 1)); AUROC: a half; both exact means."""
    n, counts = len(LABELS), np.bincount(LABELS)
    exact = (counts * (counts - 1)).sum() / (n * (n - 1))
    found = recovery(similarity(0), LABELS, permutations=600, k=3)
    # 600 permutations: four standard errors of the mean of the null.
    for name, truth in (("purity", exact), ("auroc", 0.5)):
        spread = (found[name].high - found[name].low) / 4
        assert abs(found[name].chance - truth) < 4 * spread / np.sqrt(600)


def test_nothing_is_found_where_there_is_nothing():
    """p-values of 20 similarities without labels: more than 4 below 0.05 have a chance of 0.3 %."""
    options = {"permutations": 99, "k": 3}
    found = [recovery(similarity(0, seed), LABELS, **options) for seed in range(20)]
    p = np.array([[statistic.p for statistic in one.values()] for one in found])
    assert ((p <= 0.05).sum(0) <= 4).all()


def test_only_the_order_counts():
    matrix = similarity(0.7)
    one, other = (recovery(m, LABELS, **FEW) for m in (matrix, np.exp(3 * matrix) - 5))
    assert one == other


def test_the_order_of_documents_does_not_matter():
    matrix, order = similarity(0.7), np.random.default_rng(1).permutation(len(LABELS))
    one = recovery(matrix, LABELS, **FEW)
    other = recovery(matrix[np.ix_(order, order)], LABELS[order], **FEW)
    for name in ("purity", "auroc"):
        assert one[name].value == pytest.approx(other[name].value)


def test_names_of_labels_are_labels():
    names = np.array(["news", "lore", "humor", "fiction"])[LABELS]
    one, other = recovery(similarity(0.7), LABELS, **FEW), recovery(similarity(0.7), names, **FEW)
    assert one["auroc"].value == other["auroc"].value


def test_the_table_names_everything():
    table = recovery_table({"a": similarity(100), "b": similarity(0)}, LABELS, **FEW)
    assert list(table.similarity) == ["a"] * 3 + ["b"] * 3
    assert list(table.statistic) == ["purity", "auroc", "nmi"] * 2
    assert (table.value[:3] > table.value[3:].to_numpy()).all()


@pytest.mark.parametrize(
    ("matrix", "labels", "message"),
    [
        (np.eye(3), LABELS, r"similarity has shape \(3, 3\) for 36"),
        (np.full((36, 36), np.nan), LABELS, "values that are not finite"),
        (np.arange(36.0**2).reshape(36, 36), LABELS, "not symmetric"),
        (similarity(0), np.zeros(36), "labels has 1 different"),
        (similarity(0), np.arange(36), "labels has 36 different"),
        (similarity(0), np.arange(30), r"similarity has shape \(36, 36\) for 30"),
    ],
)
def test_what_does_not_fit_is_refused(matrix, labels, message):
    with pytest.raises(ValueError, match=message):
        recovery(matrix, labels)


def test_clusters_are_the_blocks():
    found = clusters(similarity(100), 4, 5)
    assert len({(a, b) for a, b in zip(LABELS, found, strict=True)}) == 4


# -- the rivals -------------------------------------------------------------------------------


def test_features_of_documents_are_means_of_their_windows():
    values, groups = np.random.default_rng(0).normal(size=(7, 3)), np.array([5, 2, 5, 5, 2, 9, 9])
    expected = np.stack([values[groups == g].mean(0) for g in (2, 5, 9)])
    np.testing.assert_allclose(group_means(values, groups), expected)
    with pytest.raises(ValueError, match="values has 7 rows and groups 2"):
        group_means(values, groups[:2])


def test_the_kernel_of_documents_is_that_of_mean_losses():
    loss = np.random.default_rng(0).normal(size=(2, 8, 6)) + 3
    groups = np.array([0, 0, 1, 1, 2, 2])
    trace = xr.Dataset(
        {"loss": (("chain", "draw", "sample"), loss), "init_loss": ("sample", loss[0, 0])}
    )
    features = group_means(probelib.loss_kernel(trace).features(), groups)
    of_documents = np.cov(loss.reshape(16, 3, 2).mean(2).T)
    np.testing.assert_allclose(features @ features.T, of_documents, rtol=1e-5, atol=1e-6)


def test_centred_cosines():
    x = np.random.default_rng(0).normal(size=(6, 9)) + 50
    y = x - x.mean(0)
    expected = y @ y.T / np.outer(np.linalg.norm(y, axis=1), np.linalg.norm(y, axis=1))
    np.testing.assert_allclose(centred_cosine(x), expected, atol=1e-10)


def test_words_that_two_texts_share_make_them_alike():
    found = tf_idf(["the cat sat", "the cat ran", "a dog barked loudly"])
    np.testing.assert_allclose(np.diag(found), 1)
    assert found[0, 1] > 0.3
    assert found[0, 2] == 0


def test_gradients_of_documents_are_sums_of_their_windows():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5))
    ids = torch.randint(0, 5, (4, 7))
    document = np.array([1, 0, 1, 0])
    none = np.full(4, -1)
    windows = Windows(ids[:, :-1], ids[:, 1:], document, none, none, ("",) * 4)
    found = document_gradients(model, windows)
    each = []
    for row in range(4):
        model.zero_grad()
        nn.functional.cross_entropy(model(ids[row, :-1]), ids[row, 1:]).backward()
        each.append(torch.cat([p.grad.flatten() for p in model.parameters()]).numpy())
    each = np.array(each)
    np.testing.assert_allclose(found, [each[[1, 3]].mean(0), each[[0, 2]].mean(0)], atol=1e-6)
    model.zero_grad()
    document_gradients(model, windows)
    assert all(p.grad is None for p in model.parameters())
