"""Odd inputs: how they are made, scores worked out by hand, and a small run of everything."""

import itertools
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance

import probelib
from probebook import outliers
from probebook.fashion import FashionUnavailable
from probebook.mnist import Mnist
from probebook.models import MLP
from probebook.odd_inputs import (
    CORRUPTIONS,
    FONTS,
    LETTERS,
    centred,
    corrupted,
    corrupted_in_turn,
    letter,
    rendered_letters,
)
from probebook.outlier_scores import (
    PROBE,
    SCORES,
    class_losses,
    energy,
    ensemble_scores,
    fpr_at,
    mahalanobis,
    nearest_distance,
    prediction_scores,
    probe_scores,
    softmax_doubt,
)
from probebook.outliers import (
    PAIRS,
    OddSize,
    odd_data,
    odd_run,
    odd_runs,
    ood_by_kind,
    ood_difference,
    ood_numbers,
    ood_sweep,
    ood_table,
)

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = OddSize(
    train=200, inputs=40, hidden=16, epochs=8, members=3, draws=60, gammas=(300.0, 3000.0),
    sweep_draws=30, sweep_seeds=1,
)  # fmt: skip


# -- letters --------------------------------------------------------------------------------------


def test_letters_have_the_size_and_the_place_of_digits():
    images, letters = rendered_letters(3 * len(LETTERS), seed=0)
    assert images.shape == (len(letters), 28, 28)
    assert images.dtype == torch.float32
    assert images.min() == 0
    assert (images.amax((1, 2)) == 1).all()
    ink = images > 0
    tall, wide = (ink.any(axis).sum(1) for axis in (2, 1))
    longest = torch.maximum(tall, wide)
    assert set(longest.tolist()) <= set(range(16, 21))
    assert len(set(longest.tolist())) > 2
    at = torch.arange(28) + 0.5
    total = images.sum((1, 2))
    for axis in (1, 2):
        middle = (images.sum(3 - axis) * at).sum(1) / total
        # By whole pixels; a letter whose ink lies off the middle of its box stops at the edge.
        assert ((middle - 14).abs() <= 0.51).float().mean() > 0.9
    assert sorted(np.unique(letters, return_counts=True)[1]) == [3] * len(LETTERS)


def test_letters_and_fonts_are_distinct():
    upright = torch.stack([letter(each) for each in LETTERS]).flatten(1)
    assert torch.cdist(upright, upright)[~torch.eye(len(LETTERS), dtype=torch.bool)].min() > 2
    fonts = torch.stack([letter("R", font) for font in FONTS]).flatten(1)
    assert torch.cdist(fonts, fonts)[~torch.eye(len(FONTS), dtype=torch.bool)].min() > 1


def test_letters_lean_to_the_right():
    def lean(image):
        rows = image.sum(1) > 0
        middle = ((image * torch.arange(28)).sum(1) / image.sum(1))[rows]
        return float(middle[:4].mean() - middle[-4:].mean())

    upright, right, left = (lean(letter("H", slant=slant)) for slant in (0.0, 0.25, -0.25))
    assert upright == pytest.approx(0, abs=0.2)
    # H is 20 pixels high: its top quarter lies 16 rows over its bottom one.
    assert right == pytest.approx(0.25 * 16, rel=0.15)
    assert left == pytest.approx(-right, rel=0.05)


def test_letters_are_decided_by_their_seed():
    one, again, other = (rendered_letters(30, seed)[0] for seed in (0, 0, 1))
    torch.testing.assert_close(one, again, rtol=0, atol=0)
    assert not torch.equal(one, other)


def test_a_glyph_is_centred_by_its_mass():
    glyph = np.zeros((40, 40))
    glyph[5:25, 3:13] = 1  # 20 high, 10 wide
    image = centred(glyph)
    assert image[4:24, 9:19].min() == 1
    assert image.sum() == 200


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: letter("AB"), "character is 'AB'"),
        (lambda: letter("A", "Nothing"), "font is 'Nothing'"),
        (lambda: letter("A", slant=np.nan), "slant is nan"),
        (lambda: letter("A", size=40), "longest is 40"),
        (lambda: letter(" "), "some ink"),
        (lambda: centred(np.full((3, 3), np.nan)), "finite values"),
        (lambda: rendered_letters(5, 0, letters=""), "letters is empty"),
        (lambda: rendered_letters(5, 0, fonts=()), "fonts is empty"),
        (
            lambda: corrupted(torch.full((2, 28, 28), np.nan), "blur", None),
            "outside .0, 1., or NaN",
        ),
        (lambda: corrupted(torch.ones(2, 28, 28) * 255, "blur", None), "divide bytes by 255"),
        (lambda: corrupted(torch.ones(2, 784), "blur", None), "floats of shape"),
        (lambda: corrupted(torch.ones(2, 28, 28), "fog", None), "kind must be one of"),
        (lambda: corrupted(torch.ones(2, 8, 9), "quarter_turn", None), "needs square ones"),
    ],
)
def test_inputs_that_cannot_be_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


# -- corruptions ----------------------------------------------------------------------------------


def test_corruptions_do_what_they_are_called():
    rng = np.random.default_rng(0)
    grey = torch.full((40, 28, 28), 0.5)
    noisy = corrupted(grey, "noise", rng)
    inside = (noisy > 0) & (noisy < 1)
    # 0.4 on either side of a half is 1.25 standard deviations: 21 % are clamped.
    assert float(inside.float().mean()) == pytest.approx(0.789, abs=0.01)
    point = torch.zeros(3, 28, 28)
    point[:, 14, 14] = 1
    blurred = corrupted(point, "blur", rng)
    torch.testing.assert_close(blurred.sum((1, 2)), torch.ones(3), rtol=1e-3, atol=0)
    spread = (blurred[0].sum(0) * (torch.arange(28) - 14.0) ** 2).sum()
    assert float(spread) == pytest.approx(4, rel=0.02)
    full = torch.ones(20, 28, 28)
    covered = corrupted(full, "occlusion", rng)
    torch.testing.assert_close(784 - covered.sum((1, 2)), torch.full((20,), 144.0))
    bar = torch.zeros(40, 28, 28)
    bar[:, 2, 5:20] = 1
    turned = corrupted(bar, "quarter_turn", rng)
    sides = {tuple(map(int, image.nonzero()[0])) for image in turned}
    assert sides == {(8, 2), (5, 25)}  # to the left, and to the right
    assert (full == 1).all()
    assert (grey == 0.5).all()


def test_corruptions_are_decided_by_their_seed_and_come_in_turn():
    images = torch.from_numpy(np.random.default_rng(0).random((22, 28, 28))).float()
    kept = images.clone()
    one, kinds = corrupted_in_turn(images, 0)
    again, _ = corrupted_in_turn(images, 0)
    other, _ = corrupted_in_turn(images, 1)
    torch.testing.assert_close(images, kept, rtol=0, atol=0)
    torch.testing.assert_close(one, again, rtol=0, atol=0)
    assert not torch.equal(one, other)
    assert kinds[:5].tolist() == [*CORRUPTIONS, CORRUPTIONS[0]]
    assert ((one - images).abs().amax((1, 2)) > 0.1).all()
    assert ((one >= 0) & (one <= 1)).all()


# -- scores, by hand ------------------------------------------------------------------------------


def test_softmax_and_energy_by_hand():
    logits = np.log([[1.0, 3.0], [2.0, 2.0], [8.0, 2.0]])
    np.testing.assert_allclose(softmax_doubt(logits), [-np.log(0.75), np.log(2), -np.log(0.8)])
    np.testing.assert_allclose(energy(logits), [-np.log(4), -np.log(4), -np.log(10)])
    # What softmax cannot see: a constant added to all logits.
    np.testing.assert_allclose(softmax_doubt(logits + 3), softmax_doubt(logits))
    np.testing.assert_allclose(energy(logits + 3), energy(logits) - 3)


def test_confident_predictions_stay_apart():
    logits = np.array([[30.0, 0.0], [25.0, 0.0]], np.float32)
    sure, less = softmax_doubt(logits)
    assert 0 < sure < less


def test_mahalanobis_by_hand():
    # Two classes, about (0, 0) and (10, 0), that vary by 1 along x and 2 along y.
    around = np.array([[1, 0], [-1, 0], [0, 2], [0, -2.0]])
    train = np.vstack([around, around + np.array([10, 0])])
    labels = np.repeat([3, 7], 4)
    # The tied covariance: x² sums to 2 in four samples, y² to 8.
    asked = np.array([[0, 0], [10, 2], [4, 0], [6, 0]])
    np.testing.assert_allclose(
        mahalanobis(train, labels, asked), [0, 4 / 2, 16 / 0.5, 16 / 0.5], atol=1e-12
    )


def test_mahalanobis_takes_one_covariance_for_all_classes():
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    train = rng.normal(size=(300, 4)) * (1 + labels[:, None]) + 5 * labels[:, None]
    asked = rng.normal(size=(20, 4))
    moved = np.vstack([train[labels == c] - train[labels == c].mean(0) for c in range(3)])
    inverse = np.linalg.inv(moved.T @ moved / 300)
    away = np.stack([asked - train[labels == c].mean(0) for c in range(3)])
    expected = np.einsum("cni,ij,cnj->cn", away, inverse, away).min(0)
    np.testing.assert_allclose(mahalanobis(train, labels, asked), expected)
    own = EmpiricalCovariance().fit(train).mahalanobis(asked)
    assert not np.allclose(own, expected)


def test_mahalanobis_of_a_unit_that_is_never_active():
    rng = np.random.default_rng(0)
    labels, train = np.arange(40) % 2, rng.normal(size=(40, 2))
    asked = rng.normal(size=(5, 2))
    wide = mahalanobis(np.c_[train, np.zeros(40)], labels, np.c_[asked, np.zeros(5)])
    np.testing.assert_allclose(wide, mahalanobis(train, labels, asked))


def test_nearest_distance_by_hand():
    train = np.array([[1, 0], [2, 0], [0, 5.0]])
    asked = np.array([[3, 0], [0, 1.0]])
    np.testing.assert_allclose(nearest_distance(train, asked, 2, unit=False), [2, 5**0.5])
    # At length 1 the first two are one point.
    np.testing.assert_allclose(nearest_distance(train, asked, 1), [0, 0], atol=1e-12)
    np.testing.assert_allclose(nearest_distance(train, asked, 2), [0, 2**0.5], atol=1e-12)


def test_ensemble_by_hand():
    logits = np.log([[[1, 1], [9, 1.0]], [[3, 1], [9, 1.0]]])
    variance, entropy = ensemble_scores(logits)
    # Probabilities 0.5 and 0.75 of either class: variance (0.125² + 0.125²) / 1, twice.
    np.testing.assert_allclose(variance, [4 * 0.125**2, 0], atol=1e-15)
    expected = [-(p * np.log(p) + (1 - p) * np.log(1 - p)) for p in (0.625, 0.9)]
    np.testing.assert_allclose(entropy, expected)


def test_draws_predict_by_their_weights():
    losses = -np.log([[[0.5, 0.5]], [[0.9, 0.1]]])
    entropy_of = lambda p: -(p * np.log(p) + (1 - p) * np.log(1 - p))  # noqa: E731
    total, shared = prediction_scores(losses, np.array([3.0, 1.0]))
    assert total == pytest.approx(entropy_of(0.6))
    assert shared == pytest.approx(entropy_of(0.6) - 0.75 * np.log(2) - 0.25 * entropy_of(0.9))
    alike, none = prediction_scores(losses[[0, 0]])
    assert alike == pytest.approx(np.log(2))
    assert none == pytest.approx(0, abs=1e-15)


def test_fpr_by_hand():
    # Twenty inputs like the training data, with scores 1 to 20: 19 of them are let in up to 19.
    score = np.r_[np.arange(1, 21), [0.5, 18, 19, 19.5, 30]]
    odd = np.arange(25) >= 20
    assert fpr_at(score, odd) == pytest.approx(3 / 5)  # 19 itself is let in
    assert fpr_at(score, odd, 1.0) == pytest.approx(4 / 5)
    assert fpr_at(score, odd, 0.05) == pytest.approx(1 / 5)
    assert fpr_at(np.zeros(25), odd) == 1  # all alike: all are let in
    assert fpr_at(odd.astype(float), odd) == 0


def test_fpr_is_that_of_counting():
    rng = np.random.default_rng(0)
    for _ in range(20):
        score = rng.integers(0, 12, 60).astype(float)
        odd = rng.random(60) < 0.4
        own = score[~odd]
        cut = min(each for each in own if (own <= each).mean() >= 0.95)
        assert fpr_at(score, odd) == pytest.approx((score[odd] <= cut).mean())


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: energy(np.array([[0, np.nan]])), "logits has values that are not finite"),
        (lambda: softmax_doubt(np.array([[0, np.inf]])), "logits has values"),
        (lambda: ensemble_scores(np.zeros((1, 3, 2))), "two networks or more"),
        (lambda: mahalanobis(np.ones((3, 2)), np.zeros(2), np.ones((1, 2))), "labels has 2"),
        (lambda: mahalanobis(np.ones((3, 2)), np.zeros(3), np.ones((1, 5))), "same layer"),
        (lambda: nearest_distance(np.ones((3, 2)), np.ones((1, 2)), 4), "k is 4"),
        (lambda: nearest_distance(np.full((3, 2), np.nan), np.ones((1, 2)), 1), "train has shape"),
        (lambda: fpr_at(np.array([1, np.nan]), np.array([True, False])), "score 1 is nan"),
        (lambda: fpr_at(np.ones(2), np.array([True, True])), "both kinds are needed"),
        (lambda: fpr_at(np.ones(2), np.array([True, False]), 0), "share must be"),
        (lambda: fpr_at(np.ones(3), np.array([True, False])), r"give \(n,\) of both"),
    ],
)
def test_scores_that_cannot_be_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


# -- the probe ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def probed():
    """A posterior, inputs with predicted classes, and a trace of all their classes' losses."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MLP((6,), 4, 3)
        x = torch.randn(30, 4)
        y = torch.randint(3, (30,))
        shown = 2 * torch.randn(12, 4)
    posterior = probelib.LocalPosterior(
        model, probelib.cross_entropy, (x, y), n_beta=10, localization=5
    )
    with torch.no_grad():
        predicted = model(shown).argmax(1)
    trace = probelib.importance_sample(
        posterior, 80, observe=(shown, predicted), observe_loss=class_losses, progress=False
    )
    return posterior, shown, predicted, trace


def test_probe_scores_are_those_of_the_predicted_class(probed):
    posterior, shown, predicted, trace = probed
    plain = probelib.importance_sample(posterior, 80, observe=(shown, predicted), progress=False)
    scores = probe_scores(trace)
    assert set(scores) == set(PROBE)
    weight = np.exp(plain.log_weight.values[0])
    weight /= weight.sum()
    assert weight.max() > 2 / 80  # they differ
    loss = plain.loss.values[0].astype(np.float64)
    mean = weight @ loss
    np.testing.assert_allclose(scores["mean_loss"], mean, rtol=1e-4)
    np.testing.assert_allclose(scores["gain"], mean - plain.init_loss.values, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        scores["variance"], probelib.loss_kernel(plain).diagonal().values, rtol=1e-4
    )
    probability = np.exp(-trace.loss.values[0].astype(np.float64))
    np.testing.assert_allclose(probability.sum(-1), 1, rtol=1e-5)
    together = np.einsum("t,tnc->nc", weight, probability)
    np.testing.assert_allclose(
        scores["draws_entropy"], -(together * np.log(together)).sum(1), rtol=1e-4
    )
    assert (scores["draws_information"] > 0).all()
    assert (scores["draws_information"] < scores["draws_entropy"]).all()


def test_probe_scores_need_predicted_classes_and_all_losses(probed):
    posterior, shown, predicted, _ = probed
    with pytest.raises(ValueError, match="trace has no losses per class"):
        probe_scores(
            probelib.importance_sample(posterior, 4, observe=(shown, predicted), progress=False)
        )
    other = (predicted + 1) % 3
    with pytest.raises(ValueError, match="observes 12 inputs with another class"):
        probe_scores(
            probelib.importance_sample(
                posterior, 4, observe=(shown, other), observe_loss=class_losses, progress=False
            )
        )


# -- a run ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images():
    """Two sets of ten patterns each, in the form of MNIST's; their pixels are never alike."""
    rng = np.random.default_rng(0)

    def some(half):
        patterns = rng.random((10, 28, 28)) * 255
        patterns[:, :14] *= half
        patterns[:, 14:] *= 1 - half

        def split(n):
            labels = rng.integers(10, size=n)
            pixels = 0.7 * patterns[labels] + 0.3 * rng.random((n, 28, 28)) * patterns[labels]
            return Mnist(torch.from_numpy(pixels).to(torch.uint8), torch.from_numpy(labels), "made")

        return split(300), split(120)

    return {"mnist": some(1), "fashion": some(0)}


@pytest.fixture(scope="module")
def runs(images):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = odd_runs(SMALL, seeds=(0, 1), images=images)
    torch.set_num_threads(threads)
    return found


def test_every_pair_has_every_score(runs):
    table = ood_table(runs)
    assert set(zip(table.pair, table.score, strict=True)) == {
        (pair, score) for pair in PAIRS for score in SCORES
    }
    assert (table.seeds == 2).all()
    assert (table.seconds > 0).all()
    assert table[["auroc", "fpr"]].to_numpy().min() >= 0
    assert table[["auroc_high", "fpr_high"]].to_numpy().max() <= 1
    assert (table.auroc_low <= table.auroc).all()
    assert (table.auroc <= table.auroc_high).all()


def test_what_is_plainly_odd_is_found(runs):
    # The patterns of one set are black where those of the other are bright.
    table = ood_table(runs).set_index(["pair", "score"])
    for pair in ("mnist_fashion", "fashion_mnist"):
        for score in ("pixels", "neighbours", "draws_entropy", "mean_loss"):
            assert table.auroc[pair, score] > 0.9, (pair, score)
        assert table.fpr[pair, "pixels"] == 0


def test_table_is_what_the_runs_say(runs):
    own = [run for run in runs if run.data == "mnist"]
    values = [outliers.auroc(*run.ranked("mnist_letters", "energy")) for run in own]
    row = ood_table(runs).set_index(["pair", "score"]).loc[("mnist_letters", "energy")]
    assert row.auroc == pytest.approx(np.mean(values))
    score, odd = own[0].ranked("mnist_letters", "energy")
    assert odd.sum() == (~odd).sum() == 40
    np.testing.assert_array_equal(score[~odd], own[0].scores["energy"][:40])
    np.testing.assert_array_equal(score[odd], own[0].scores["energy"][80:120])
    gap = ood_difference(runs, "mean_loss", "softmax")["mnist_letters"]
    each = [
        outliers.auroc(*run.ranked("mnist_letters", "mean_loss"))
        - outliers.auroc(*run.ranked("mnist_letters", "softmax"))
        for run in own
    ]
    assert gap.value == pytest.approx(np.mean(each))
    numbers = ood_numbers(ood_table(runs))
    assert numbers["ood_auroc_energy_mnist_letters"] == row.auroc
    assert numbers["ood_seconds_gain"] > 0
    assert all(np.isfinite(value) for value in numbers.values())


def test_kinds_make_up_their_pair(runs):
    table = ood_by_kind(runs)
    assert set(table.kind) == set(CORRUPTIONS)
    whole = ood_table(runs).set_index(["pair", "score"])
    for score in ("gain", "energy"):
        # Equally many of each kind, so the AUROC of all is the mean of theirs.
        mean = table[table.score == score].auroc.mean()
        assert mean == pytest.approx(whole.auroc["mnist_corrupted", score])
    assert set(ood_by_kind(runs, "mnist_letters").kind) == set(LETTERS)
    with pytest.raises(ValueError, match="pair is 'mnist_fashion'"):
        ood_by_kind(runs, "mnist_fashion")


def test_sweep_has_the_seeds_that_were_swept(runs):
    assert [len(run.sweep) > 0 for run in runs] == [True, False, True, False]
    table = ood_sweep(runs)
    assert len(table) == len(PAIRS) * len(PROBE) * 2
    assert (table.groupby("pair").localization.nunique() == 2).all()
    loss = table.drop_duplicates(["pair", "localization"]).pivot(
        index="pair", columns="localization", values="loss"
    )
    assert (loss[300.0] > loss[3000.0]).all()  # a tighter cloud leaves more of what was learned
    assert (table.auroc_low <= table.auroc).all()
    with pytest.raises(ValueError, match="sweep=True"):
        ood_sweep([runs[1]])


def test_a_run_is_decided_by_its_seed(runs, images):
    again = odd_run(images, "mnist", SMALL, 0)
    for name, score in runs[0].scores.items():
        np.testing.assert_array_equal(again.scores[name], score)
    other = odd_run(images, "mnist", SMALL, 1)
    assert not np.array_equal(other.scores["softmax"], runs[0].scores["softmax"])
    assert again.draws == runs[0].draws


def test_seconds_count_what_a_score_needs(images, monkeypatch):
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)))  # a second at every look
    monkeypatch.setattr(outliers, "time", clock)
    seconds = odd_run(images, "mnist", SMALL, 0).seconds
    assert set(seconds) == set(SCORES)
    # One second for everything, and for the ensemble two thirds of one that trained three networks.
    ensemble = {"ensemble_variance", "ensemble_entropy"}
    for name, value in seconds.items():
        assert value == pytest.approx(5 / 3 if name in ensemble else 1), name


def test_corrupted_digits_are_others_than_those_shown_whole(images, monkeypatch):
    monkeypatch.setattr(outliers, "corrupted_in_turn", lambda images, seed: (images, None))
    sets = outliers.odd_inputs(images, "mnist", SMALL, 0).sets
    assert torch.cdist(sets["test"].flatten(1), sets["mnist_corrupted"].flatten(1)).min() > 0


def test_network_learns_what_it_is_given_and_settings_need_no_odd_input(runs, images):
    assert all(run.train_accuracy > 0.95 for run in runs)
    assert all(run.draws.spread <= 0.8 for run in runs)
    changed = dict(images, fashion=images["mnist"])
    other = odd_run(changed, "mnist", SMALL, 0)
    assert other.draws.localization == runs[0].draws.localization
    np.testing.assert_array_equal(other.scores["gain"][:40], runs[0].scores["gain"][:40])


def test_without_fashion_its_pairs_are_left_out(images, monkeypatch):
    def missing(split):
        raise FashionUnavailable("it is not here")

    monkeypatch.setattr(outliers, "load_fashion", missing)
    monkeypatch.setattr(outliers, "load_mnist", lambda split: images["mnist"][split == "test"])
    with pytest.warns(UserWarning, match="pairs with Fashion-MNIST are left out: it is not here"):
        there = odd_data()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = odd_runs(SMALL, seeds=(0,), images=there)
    table = ood_table(found)
    assert set(table.pair) == {"mnist_letters", "mnist_corrupted"}
    assert table.auroc_low.isna().all()  # one seed has no interval
    assert "ood_auroc_gain_mnist_letters_low" not in ood_numbers(table)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda images: odd_run(images, "letters", SMALL), "data is 'letters'"),
        (lambda images: odd_runs(SMALL, seeds=(), images=images), "seeds is"),
        (lambda images: odd_runs(SMALL, seeds=(1, 1), images=images), "each once"),
        (lambda images: odd_run(images, "mnist", OddSize(train=400)), "train asks for 400"),
        (lambda images: odd_run(images, "mnist", OddSize(train=99, inputs=99)), "asks for 198"),
        (lambda images: odd_run({"fashion": images["fashion"]}, "fashion", SMALL), "give 'mnist'"),
        (lambda images: ood_table([]), "runs is empty"),
        (lambda images: OddSize(members=1), "members"),
        (lambda images: OddSize(gammas=(0.0,)), "gammas"),
    ],
)
def test_runs_that_cannot_be_are_refused(images, call, match):
    with pytest.raises(ValueError, match=match):
        call(images)


def test_unknown_scores_and_kinds_are_named(runs):
    with pytest.raises(ValueError, match="score is 'luck'"):
        runs[0].ranked("mnist_letters", "luck")
    with pytest.raises(ValueError, match="pair is 'fashion_mnist'"):
        runs[0].ranked("fashion_mnist", "gain")
    with pytest.raises(ValueError, match="kind is 'fog'"):
        runs[0].ranked("mnist_corrupted", "gain", "fog")
