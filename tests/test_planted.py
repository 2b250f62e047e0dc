"""Planted mechanisms: the measure on matrices made by hand, and small networks."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import probelib
from probebook import alignment as al
from probebook.planted import (
    PAIRS,
    Design,
    auroc,
    measure,
    planted_network,
    recovered,
    similarity_matrices,
)
from probebook.similarities import (
    drawn,
    gradient_products,
    hidden_features,
    mean_interval,
    rival_features,
    settled,
    share_interval,
)
from probebook.small_networks import initial_network, train_network, train_stack
from probelib.influence import per_sample_gradients

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = Design(hidden=(16,), samples=600, observed=60, epochs=8)


def four_kinds(n=48):
    """Tasks, mechanisms and labels of n samples in which every pair of them occurs."""
    task = np.arange(n) % 4
    return task % 2, task, np.arange(n) // 4 % 2


def test_auroc_is_that_of_scikit_learn_with_ties():
    rng = np.random.default_rng(0)
    score, flagged = rng.integers(5, size=200), rng.random(200) < 0.3
    assert auroc(score, flagged) == pytest.approx(roc_auc_score(flagged, score))
    with pytest.raises(ValueError, match="both kinds"):
        auroc(score, np.zeros(200, bool))


def test_a_matrix_of_the_mechanism_scores_one_and_its_opposite_zero():
    mechanism, task, label = four_kinds()
    same = (mechanism[:, None] == mechanism).astype(float)
    for similarity, with_sign, size in ((same, 1.0, 1.0), (-same, 0.0, 1.0), (0 * same, 0.5, 0.5)):
        found = recovered(similarity, mechanism, task, label)
        assert set(found) == {(pairs, flag) for pairs in PAIRS for flag in (False, True)}
        for pairs in PAIRS:
            assert found[pairs, False] == with_sign
            assert found[pairs, True] == size


def test_a_sign_that_follows_the_label_shows_only_within_labels():
    """Within a mechanism +1 for equal labels, -1 for others: the sign alone says nothing of it."""
    mechanism, task, label = four_kinds()
    same = mechanism[:, None] == mechanism
    found = recovered(same * np.where(label[:, None] == label, 1.0, -1.0), mechanism, task, label)
    assert found["same_label", False] == 1
    assert found["other_label", False] == 0
    assert found["other_task", True] == 1
    assert 0.4 < found["other_task", False] < 0.6


def test_the_task_alone_is_worth_nothing_between_tasks():
    mechanism, task, label = four_kinds()
    found = recovered((task[:, None] == task) * 1.0, mechanism, task, label)
    assert found["all", False] > 0.5
    assert found["other_task", False] == 0.5


def test_labels_are_balanced_within_mechanisms_and_inputs_hide_them():
    planted = planted_network(Design(hidden=(4,), samples=3000, observed=600, epochs=1), seed=1)
    x, y = planted.inputs.numpy()[:600], planted.labels.numpy()
    for mechanism in range(3):
        share = y[planted.mechanism == mechanism].mean()
        assert abs(share - 0.5) < 4 * 0.5 / 1000**0.5
    found = recovered(al.cosine(x), planted.mechanism[:600], planted.task[:600], y[:600])
    assert abs(found["other_task", False] - 0.5) < 0.03  # of 0.01 from seed to seed
    assert (planted.mechanism == planted.task % 3).all()


def test_the_network_learns_what_was_planted():
    planted = planted_network(Design(samples=2000, observed=60, epochs=15), seed=0)
    assert planted.test_accuracy > 0.8  # one line for all blocks, or none, could not
    assert planted.accuracy >= planted.test_accuracy - 0.02


def test_matrices_are_what_they_are_called():
    planted = planted_network(TINY, seed=2)
    found, draws = similarity_matrices(planted, 60, chains=8, seed=0)
    x, y = planted.inputs[:60], planted.labels[:60]
    scale = np.sqrt(np.diag(found["covariance"]))
    np.testing.assert_allclose(
        found["kernel"], np.clip(found["covariance"] / np.outer(scale, scale), -1, 1), atol=1e-6
    )
    features = hidden_features(planted.network, x)
    assert len(features) == 1
    logits = planted.network.layers[2](torch.from_numpy(features[0])).detach()
    torch.testing.assert_close(logits, planted.network(x).detach())
    np.testing.assert_allclose(
        found["features_centred"], al.cosine(features[0] - features[0].mean(0)), atol=1e-5
    )
    posterior = probelib.LocalPosterior(
        planted.network, probelib.cross_entropy, (x, y), n_beta=10.0, localization=1.0
    )
    np.testing.assert_allclose(
        found["gradients"], al.cosine(per_sample_gradients(posterior)), atol=1e-4
    )
    assert 0 < draws.share <= 1
    assert draws.n_beta == 10
    assert draws.count == 8 * 3
    for matrix in found.values():
        assert matrix.shape == (60, 60)


def test_measure_gives_intervals_numbers_and_the_same_again():
    found, again = (measure(TINY, seeds=(0, 1), chains=8) for _ in range(2))
    assert found.rows == again.rows
    assert found.draws == again.draws
    row = found.row("kernel")
    assert row.auroc == mean_interval(row.by_seed)
    numbers = found.numbers("planted")
    assert numbers["planted_auroc"] == row.auroc.value
    assert numbers["planted_auroc_low"] <= row.auroc.value <= numbers["planted_auroc_high"]
    assert (
        numbers["planted_auroc_features_other_label_size"]
        == found.row("features", "other_label", True).auroc.value
    )
    assert all(np.isfinite(value) for value in numbers.values())
    assert (np.diff(found.mechanism) >= 0).all()
    assert found.matrices["kernel"].shape == (60, 60)
    np.testing.assert_allclose(np.diag(found.matrices["kernel"]), 1)
    assert measure(TINY, seeds=(1, 0), chains=8).row("kernel").by_seed == row.by_seed[::-1]
    with pytest.raises(KeyError):
        found.row("nothing")
    with pytest.raises(ValueError, match="seeds is empty"):
        measure(TINY, seeds=())


def test_one_seed_has_no_interval():
    assert "planted_auroc_low" not in measure(TINY, seeds=(0,), chains=8).numbers("planted")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"tasks": 5}, "tasks is 5"),
        ({"tasks": 3, "mechanisms": 3}, "tasks is 3"),
        ({"tasks": 2, "mechanisms": 1}, "mechanisms 1"),
        ({"observed": 10}, "observed is 10"),
        ({"observed": 4000}, "observed is 4000"),
        ({"samples": 0}, "samples"),
    ],
)
def test_designs_that_cannot_be_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        Design(**settings)


# -- what the uses share -------------------------------------------------------------------------


def test_intervals_are_those_of_the_textbook():
    found = mean_interval([1.0, 2.0, 3.0, 4.0])
    half = 3.182446 * np.std([1, 2, 3, 4], ddof=1) / 2  # t of three degrees of freedom
    assert found.value == 2.5
    assert (found.low, found.high) == pytest.approx((2.5 - half, 2.5 + half))
    assert np.isnan(mean_interval([2.0]).low)
    share = share_interval(np.array([True] * 3 + [False] * 7))
    assert (share.low, share.high) == pytest.approx((0.1078, 0.6032), abs=1e-4)  # Wilson
    for wrong in (mean_interval, share_interval):
        with pytest.raises(ValueError, match="shape"):
            wrong(np.array([]))


def test_settled_finds_a_neighbourhood_whose_draws_count():
    planted = planted_network(TINY, seed=0)
    data = planted.inputs, planted.labels
    wide, narrow = (settled(planted.network, data, spread=s) for s in (2.0, 0.1))
    assert wide.localization < narrow.localization
    trace = probelib.importance_sample(narrow, 200, seed=1, progress=False)
    draws = drawn(narrow, trace)
    assert draws.spread < 0.15
    assert draws.share > 0.95
    assert draws.trained_loss == pytest.approx(float(trace.init_loss.mean()), rel=1e-4)
    assert draws.loss > draws.trained_loss
    with pytest.raises(ValueError, match="gammas ends at 1"):
        settled(planted.network, data, spread=1e-4, gammas=(1.0,))


def test_gradient_products_are_those_of_single_samples():
    planted = planted_network(TINY, seed=0)
    rows, cols = ((planted.inputs[a:b], planted.labels[a:b]) for a, b in ((0, 7), (7, 60)))
    posterior = settled(planted.network, (planted.inputs, planted.labels))
    inner, cosine = gradient_products(posterior, rows, cols, batch_size=20)
    left, right = (per_sample_gradients(posterior, part) for part in (rows, cols))
    np.testing.assert_allclose(inner, left @ right.T, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(cosine, al.cosine(left, right), atol=1e-5)


def test_rival_features_take_off_the_means_of_the_first_samples():
    network = initial_network((5, 4), 3, 2, seed=0)
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    found = rival_features(network, x, 8)
    np.testing.assert_allclose(found["features_centred"][:8].mean(0), 0, atol=1e-6)
    sizes = [np.square(found["layers"][:8, part]).sum(1).mean() for part in (slice(5), slice(5, 9))]
    np.testing.assert_allclose(sizes, 1, rtol=1e-5)  # every layer counts alike
    np.testing.assert_array_equal(found["inputs"], x)


def test_networks_trained_side_by_side_are_those_trained_alone():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(120, 6))).float()
    y = (x[:, 0] * x[:, 1] > 0).long()
    start = [initial_network((8,), 6, 2, seed=s) for s in (0, 1)]
    before = start[0].layers[0].weight.clone()
    keep = torch.ones(2, 120, dtype=torch.bool)
    keep[1, :30] = False
    stack = train_stack(start, (x, y), keep, epochs=5)
    for at in range(2):
        alone = train_stack(start[at : at + 1], (x, y), keep[at : at + 1], epochs=5)
        torch.testing.assert_close(stack(x)[at], alone(x)[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(stack.network(at)(x), stack(x)[at])
    other = y.clone()
    other[:30] = 1 - y[:30]  # what a network does not keep cannot matter to it
    changed = train_stack(start, (x, other), keep, epochs=5)
    torch.testing.assert_close(changed(x)[1], stack(x)[1])
    assert not torch.allclose(changed(x)[0], stack(x)[0], atol=1e-3)
    torch.testing.assert_close(start[0].layers[0].weight, before)
    with pytest.raises(ValueError, match="keep has shape"):
        train_stack(start, (x, y), keep[:, :5])


def test_training_is_decided_by_its_seed_and_leaves_the_global_one_alone():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (train_network((4,), (x, y), classes=2, seed=s, epochs=2) for s in (0, 0, 1))
    torch.testing.assert_close(torch.rand(3), expected)
    torch.testing.assert_close(one(x), same(x), rtol=0, atol=0)
    assert not torch.allclose(one(x), other(x))
