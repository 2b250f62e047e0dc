"""Uses of a kernel's neighbours: leaks that are known, removals by hand, small real runs."""

import numpy as np
import pytest
import torch

from probebook import leaks, removals
from probebook.leaks import (
    CHANGES,
    LeakSize,
    changed,
    leak_problem,
    leak_scores,
    leak_similarities,
    load_images,
    search_leaks,
)
from probebook.mnist import Mnist
from probebook.removals import (
    METHODS,
    RemovalSize,
    named,
    over_training_sets,
    pooled,
    remove_and_retrain,
)
from probebook.similarities import mean_interval

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = LeakSize(train=150, honest=40, leaks=12, hidden=(16,), epochs=8, draws=60)
FEW = RemovalSize(
    train=200, pool=200, queries=5, budgets=(8,), networks=2, hidden=12, epochs=15, draws=60
)


@pytest.fixture(scope="module")
def images():
    """Ten blurred patterns and noise: training and test set in the form of MNIST's."""
    rng = np.random.default_rng(0)
    patterns = rng.random((10, 28, 28)) * 255

    def some(n):
        labels = rng.integers(10, size=n)
        pixels = 0.2 * patterns[labels] + 0.8 * 255 * rng.random((n, 28, 28))
        return Mnist(torch.from_numpy(pixels).to(torch.uint8), torch.from_numpy(labels), "made")

    return some(600), some(500)


@pytest.fixture
def made(images, monkeypatch):
    """The uses read these images."""
    for module in (leaks, removals):
        monkeypatch.setattr(module, "load_images", lambda name: images)


# -- leaks ---------------------------------------------------------------------------------------


def test_the_nearest_is_the_source_or_is_not():
    similarity = np.array([[1, 5, 2], [3, 3, 0], [0, 1, 4.0], [2, 0, 1]])
    source = np.array([1, 0, 0, -1])
    found, auroc = leak_scores(similarity, source)
    np.testing.assert_array_equal(found, [True, True, False])
    assert auroc == 1  # the honest one has the lowest, 2
    allowed = np.array([[1, 0, 1], [1, 1, 1], [1, 0, 0], [1, 1, 1]], bool)
    found, auroc = leak_scores(similarity, source, allowed)
    np.testing.assert_array_equal(found, [False, True, True])
    assert auroc == pytest.approx((0.5 + 1 + 0) / 3)  # 2, 3 and 0 against 2


def test_exact_copies_are_found_by_pixels_and_by_features(images, monkeypatch):
    monkeypatch.setattr(leaks, "changed", lambda images, kind, rng: images)
    problem = leak_problem(images, SMALL, seed=0)
    similarities, draws, _ = leak_similarities(problem, SMALL, seed=0)
    for method in ("pixels", "inputs", "kernel", "gradients", "features_centred"):
        found, auroc = leak_scores(similarities[method], problem.source)
        assert found.all(), method
        assert auroc > 0.9, method
    own = similarities["kernel"][np.arange(12), problem.source[:12]]
    np.testing.assert_allclose(own, 1, atol=1e-4)  # the same loss at every draw
    assert draws.count == SMALL.draws


def test_problem_keeps_apart_what_is_copied_and_what_is_honest(images):
    problem = leak_problem(images, SMALL, seed=3)
    assert len(set(problem.source[:12])) == 12
    assert (problem.source[12:] == -1).all()
    assert (problem.test_at[:12] == -1).all()
    torch.testing.assert_close(
        problem.test[12:], images[1].images[problem.test_at[12:]].float() / 255
    )
    torch.testing.assert_close(problem.train, images[0].images[problem.train_at].float() / 255)
    torch.testing.assert_close(problem.test_labels[:12], problem.train_labels[problem.source[:12]])
    assert sorted(set(problem.change[:12])) == [0, 1, 2, 3]
    moved = (problem.test[:12] - problem.train[problem.source[:12]]).abs().amax((1, 2))
    assert (moved > 0.01).all()


def test_changes_do_what_they_are_called():
    image = torch.zeros(40, 28, 28)
    image[:, 10, 14] = 1.0
    at = changed(image, "shift", np.random.default_rng(0)).flatten(1).argmax(1)
    down, right = at // 28 - 10, at % 28 - 14
    assert set(down.abs().tolist()) == set(right.abs().tolist()) == {1, 2}
    assert {*down.sign().tolist()} == {-1, 1}
    brightness = changed(image, "brightness", np.random.default_rng(0))
    assert ((brightness[:, 10, 14] >= 0.6) & (brightness[:, 10, 14] <= 0.9)).all()
    noisy = changed(image * 0 + 0.5, "noise", np.random.default_rng(0))
    assert float((noisy - 0.5).std()) == pytest.approx(0.1, rel=0.02)
    disc = ((torch.arange(28) - 13.5)[:, None] ** 2 + (torch.arange(28) - 13.5) ** 2) < 80
    turned = changed(disc.float().expand(5, 28, 28), "rotation", np.random.default_rng(0))
    assert float((turned - disc.float()).abs().mean()) < 0.03  # a disc stays one
    bar = torch.zeros(5, 28, 28)
    bar[:, 4:24, 13:15] = 1
    turned = changed(bar, "rotation", np.random.default_rng(0))
    assert (turned - bar).abs().amax((1, 2)).min() > 0.5  # and a bar does not
    torch.testing.assert_close(turned.sum((1, 2)), bar.sum((1, 2)), rtol=0.05, atol=0)
    with pytest.raises(ValueError, match="kind must be one of"):
        changed(image, "mirror", np.random.default_rng(0))


def test_shifts_bring_in_nothing():
    ones = torch.ones(20, 28, 28)
    moved = changed(ones, "shift", np.random.default_rng(1))
    lost = 784 - moved.sum((1, 2))
    assert set(lost.tolist()) == {28 + 27, 28 + 2 * 27, 2 * 28 + 2 * 26}  # one row or column, two
    assert set(moved.unique().tolist()) == {0.0, 1.0}


@pytest.mark.usefixtures("made")
def test_search_is_decided_by_its_seeds():
    found, again = (search_leaks(SMALL, seeds=(0, 1)) for _ in range(2))
    assert found.rows == again.rows
    assert found.draws == again.draws
    row = found.row("kernel")
    assert row.recall.value == pytest.approx(np.mean(row.recalls))
    assert set(row.by_change) == set(CHANGES)
    assert np.mean(list(row.by_change.values())) == pytest.approx(row.recall.value)
    numbers = found.numbers()
    assert numbers["use_leaks_kernel"] == row.recall.value
    assert numbers["use_leaks_pixels_label"] == found.row("pixels", True).recall.value
    assert numbers["use_leaks_auroc_features_low"] == found.row("features").auroc.low
    assert all(np.isfinite(value) for value in numbers.values())
    assert found.difference("kernel").value == 0
    assert found.difference("pixels").value == pytest.approx(
        row.recall.value - found.row("pixels").recall.value
    )
    with pytest.raises(KeyError):
        found.row("nothing")
    pairs = found.closest("pixels", 5)
    assert pairs.shape == (5, 2)
    assert (found.problem.source[pairs[:, 0]] == -1).all()
    best = found.similarities["pixels"][12:].max()
    assert found.similarities["pixels"][tuple(pairs[0])] == best
    assert len(set(pairs[:, 0])) == len(set(pairs[:, 1])) == 5
    with pytest.raises(ValueError, match="seeds is empty"):
        search_leaks(SMALL, seeds=())


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"leaks": 3000}, "leaks is 3000"), ({"draws": 0}, "draws"), ({"train": -1}, "train")],
)
def test_leak_sizes_that_cannot_be_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        LeakSize(**settings)


def test_more_images_than_there_are_are_refused(images):
    with pytest.raises(ValueError, match="train is 700, but there are 600"):
        leak_problem(images, LeakSize(train=700), seed=0)
    with pytest.raises(ValueError, match='"fashion" or "mnist"'):
        load_images("letters")


# -- wrong predictions ---------------------------------------------------------------------------


def test_a_kernel_made_by_hand_names_its_most_negative_first():
    covariance = np.array([[0.3, -2.0, 0.1, -0.5], [-1.0, -0.1, -3.0, 5.0]])
    np.testing.assert_array_equal(named(-covariance, 2), [[1, 3], [2, 0]])
    only = np.where(np.array([[1, 0, 1, 1], [1, 1, 0, 0]], bool), -covariance, -np.inf)
    np.testing.assert_array_equal(named(only, 2), [[3, 2], [0, 1]])
    with pytest.raises(ValueError, match="budget is 3; choose from 1 to 2"):
        named(only, 3)


@pytest.fixture(scope="module")
def wrong(images):
    patch = pytest.MonkeyPatch()
    patch.setattr(removals, "load_images", lambda name: images)
    yield removals._problem("made", FEW, seed=0)
    patch.undo()


def test_queries_are_predicted_wrongly_by_the_mean_of_the_networks(wrong):
    x, label = wrong.asked
    logits = torch.stack([network(x) for network in wrong.trained])
    predicted = logits.softmax(-1).mean(0).argmax(-1)
    np.testing.assert_array_equal(predicted, wrong.predicted)
    assert (predicted != label).all()
    assert len(set(wrong.queries)) == FEW.queries


def test_scores_look_where_they_say(wrong):
    scores, draws = removals.removal_scores(wrong, FEW, seed=0)
    assert set(scores) == set(METHODS)
    of_class = wrong.predicted[:, None] == wrong.train[1].numpy()
    for method in ("kernel_class", "features", "pixels", "class"):
        np.testing.assert_array_equal(np.isfinite(scores[method]), of_class)
    for method in ("kernel", "correlation", "gradients", "gradient_cosines", "chance"):
        assert np.isfinite(scores[method]).all()
    np.testing.assert_array_equal(scores["kernel_class"][of_class], scores["kernel"][of_class])
    assert len(draws) == FEW.networks
    distance = torch.cdist(wrong.asked[0], wrong.train[0]).numpy()
    np.testing.assert_allclose(-scores["pixels"][of_class], distance[of_class])
    # To leading order K is g'g / localization, so both must name the same side.
    agree = np.corrcoef(scores["kernel"].ravel(), scores["gradients"].ravel())[0, 1]
    assert agree > 0.5


def test_removing_nothing_changes_nothing(wrong):
    nothing = np.zeros((FEW.queries, 0), int)
    logits, accuracy = removals._retrained(wrong, FEW, nothing)
    x, _ = wrong.asked
    for at, network in enumerate(wrong.trained):
        np.testing.assert_allclose(logits[at], network(x).detach().numpy(), rtol=1e-3, atol=1e-3)
        right = (network(wrong.pool[0]).argmax(1) == wrong.pool[1]).float().mean()
        np.testing.assert_allclose(accuracy[at], float(right), atol=0.011)


def test_a_label_that_is_removed_is_no_longer_predicted(wrong):
    """As many images of the predicted label removed as there are for every query."""
    of_class = wrong.predicted[:, None] == wrong.train[1].numpy()
    most = int(of_class.sum(1).min())
    assert most > 8
    removed = named(np.where(of_class, 1.0, -np.inf), most)
    logits, _ = removals._retrained(wrong, FEW, removed)
    before = np.stack([net(wrong.asked[0]).softmax(-1).detach().numpy() for net in wrong.trained])
    after = torch.from_numpy(logits).softmax(-1).numpy()
    gone = of_class.sum(1) == most
    each = np.arange(FEW.queries)[gone]
    left, was = (p[:, each, wrong.predicted[gone]].mean(0) for p in (after, before))
    assert (left < was / 2).all()


@pytest.mark.usefixtures("made")
def test_removals_are_decided_by_their_seed():
    found, again = (remove_and_retrain(FEW, data="made", seed=1) for _ in range(2))
    assert found.rows == again.rows
    assert found.draws == again.draws
    assert {(row.method, row.budget) for row in found.rows} == {
        (method, budget) for method in METHODS for budget in FEW.budgets
    }
    row = found.row("kernel", 8)
    assert row.drop.value == pytest.approx(np.mean(row.drops))
    assert row.corrected.value == pytest.approx(np.mean(row.flips))
    numbers = found.numbers()
    assert numbers["use_wrong_kernel_8"] == row.corrected.value
    assert numbers["use_wrong_drop_kernel_8_low"] == row.drop.low
    rival = found.row("features", 8)
    assert numbers["use_wrong_over_features_8"] == pytest.approx(row.drop.value - rival.drop.value)
    assert numbers["use_wrong_correlation_over_features_8"] == pytest.approx(
        found.row("correlation", 8).drop.value - rival.drop.value
    )
    assert found.difference("kernel", 8).value == 0
    assert found.flip_difference("features", 8).value == pytest.approx(
        row.corrected.value - rival.corrected.value
    )
    assert found.overlap("kernel", "kernel", 8) == 1
    assert 0 <= found.overlap("kernel", "chance", 8) < 0.5
    assert found.removed["kernel"].shape == (FEW.queries, 8)
    assert found.queries.shape == (FEW.queries, 28, 28)
    assert (found.labels != found.predicted).all()
    assert all(np.isfinite(value) for value in numbers.values())
    with pytest.raises(KeyError):
        found.row("kernel", 9)


@pytest.mark.usefixtures("made")
def test_several_training_sets_give_one_interval_over_all_queries(monkeypatch):
    monkeypatch.setattr(removals, "METHODS", ("kernel", "chance"))
    runs = [remove_and_retrain(FEW, data="made", seed=seed) for seed in (0, 1)]
    found = over_training_sets(FEW, data="made", seeds=(0, 1))
    assert found.rows == pooled(runs).rows
    for method in ("kernel", "chance"):
        row, (first, second) = found.row(method, 8), (run.row(method, 8) for run in runs)
        assert row.drops == first.drops + second.drops
        assert row.flips == first.flips + second.flips
        assert row.drop == mean_interval(first.drops + second.drops)
    assert found.numbers()["use_wrong_queries"] == 2 * FEW.queries
    assert found.numbers()["use_wrong_networks"] == 2 * FEW.networks
    assert pooled(runs[:1]).rows == runs[0].rows
    with pytest.raises(ValueError, match="runs is empty"):
        pooled([])


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"budgets": ()}, "budgets is"),
        ({"budgets": (0,)}, "budgets is"),
        ({"budgets": (1000,)}, "budgets is"),
        ({"networks": 0}, "networks"),
    ],
)
def test_removal_sizes_that_cannot_be_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        RemovalSize(**settings)


@pytest.mark.usefixtures("made")
def test_too_few_wrong_predictions_are_refused():
    with pytest.raises(ValueError, match="queries is 190"):
        remove_and_retrain(
            RemovalSize(train=200, pool=200, queries=190, budgets=(2,), networks=1, epochs=5)
        )
