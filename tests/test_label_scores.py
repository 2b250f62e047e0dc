"""Scores of wrong labels against their definitions: by hand, or by autograd sample by sample."""

import numpy as np
import pytest
import torch
import xarray as xr
from torch.nn import functional

from probebook.labels import noise, probe, scores
from probebook.labels.training import train, train_out_of_sample
from probebook.small_networks import initial_network

pytestmark = pytest.mark.usefixtures("one_thread")
N, FEATURES, CLASSES = 30, 5, 3


@pytest.fixture(scope="module")
def problem():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, FEATURES, generator=generator)
    y = torch.arange(N) % CLASSES
    return initial_network((7,), FEATURES, CLASSES, 0), x, y


# --- of one network ---


def test_loss_and_margin_by_hand():
    logits = np.array([[2.0, 0.0, 1.0], [0.0, 0.0, 3.0]], np.float32)
    labels = np.array([0, 1])
    expected = np.log(np.exp(logits.astype(float)).sum(1)) - [2.0, 0.0]
    np.testing.assert_allclose(scores.loss(logits, labels), expected, rtol=1e-6)
    np.testing.assert_array_equal(scores.label_margin(logits, labels), [-1.0, 3.0])
    assert logits[0, 0] == 2.0  # the caller's array is as it was


def test_gradient_norm_is_that_of_autograd(problem):
    model, x, y = problem
    expected = []
    for at in range(N):
        own = functional.cross_entropy(model(x[at : at + 1]), y[at : at + 1])
        parts = torch.autograd.grad(own, list(model.parameters()))
        expected.append(sum(float(part.double().square().sum()) for part in parts))
    np.testing.assert_allclose(scores.gradient_norm(model, x, y), expected, rtol=1e-5)


def test_curvature_is_the_squared_norm_of_the_hessian_in_the_input(problem):
    model, x, y = problem
    exact = initial_network((7,), FEATURES, CLASSES, 0).double()

    def hessian(at):
        return torch.autograd.functional.hessian(
            lambda z: functional.cross_entropy(exact(z[None]), y[at : at + 1]), x[at].double()
        )

    expected = [float(hessian(at).square().sum()) for at in range(N)]
    found = scores.curvature(model, x, y, directions=4000, step=1e-5)
    # The mean of 4,000 squares of a sum of random signs is off by sqrt(2 / 4000) = 2 % or less.
    np.testing.assert_allclose(found, expected, rtol=0.1)
    assert model.layers[0].weight.dtype == torch.float32


def test_influence_in_the_last_layer_is_that_of_autograd(problem):
    model, x, y = problem
    a = torch.cat([scores.penultimate(model, x).double(), torch.ones(N, 1).double()], 1)
    last = model.layers[-1]
    weights = torch.cat([last.weight, last.bias[:, None]], 1).detach().double().flatten()

    def mean_loss(w, at=slice(None)):
        return functional.cross_entropy(a[at] @ w.view(CLASSES, -1).T, y[at])

    hessian = torch.autograd.functional.hessian(mean_loss, weights)
    inverse = torch.linalg.inv(hessian + 0.01 * torch.eye(len(weights)))
    expected = []
    for at in range(N):
        w = weights.clone().requires_grad_()
        [g] = torch.autograd.grad(mean_loss(w, slice(at, at + 1)), w)
        expected.append(float(g @ inverse @ g))
    found = scores.last_layer_influence(model, x, y, damping=0.01)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="damping is 0; give more"):
        scores.last_layer_influence(model, x, y, damping=0)


def test_influence_predicts_what_leaving_one_out_does():
    # A convex model of the last layer alone: a network whose first layer keeps its inputs.
    generator = torch.Generator().manual_seed(1)
    n = 600
    x = torch.randn(n, FEATURES, generator=generator).abs()
    y = (x[:, 0] + 0.5 * torch.randn(n, generator=generator) > 0.7).long()
    model, damping = initial_network((FEATURES,), FEATURES, 2, 0), 0.05
    a = torch.cat([x.double(), torch.ones(n, 1).double()], 1)

    def fitted(keep):
        w = torch.zeros(2, FEATURES + 1, dtype=torch.float64, requires_grad=True)
        search = torch.optim.LBFGS([w], max_iter=200, tolerance_grad=1e-12)

        def closure():
            search.zero_grad()
            losses = functional.cross_entropy(a @ w.T, y, reduction="none")
            total = losses[keep].sum() / n + damping / 2 * w.square().sum()
            total.backward()
            return total

        search.step(closure)
        return w.detach()

    whole = fitted(torch.ones(n, dtype=bool))
    with torch.no_grad():
        model.layers[0].weight.copy_(torch.eye(FEATURES))
        model.layers[0].bias.zero_()
        model.layers[2].weight.copy_(whole[:, :-1])
        model.layers[2].bias.copy_(whole[:, -1])
    found = scores.last_layer_influence(model, x, y, damping=damping) / n
    rises = []
    for at in range(0, n, 60):
        keep = torch.ones(n, dtype=bool)
        keep[at] = False
        before, after = (
            float(functional.cross_entropy(a[[at]] @ w.T, y[[at]])) for w in (whole, fitted(keep))
        )
        rises.append(after - before)
    np.testing.assert_allclose(found[::60], rises, rtol=0.04)  # first order in 1 / n


def test_neighbours_by_hand():
    features = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    labels = np.array([0, 1, 1, 1])
    found = scores.neighbour_disagreement(features, labels, k=1)
    np.testing.assert_array_equal(found, [1.0, 1.0, 0.0, 0.0])
    similarity = np.array([[0.6, 0.2], [-0.5, -0.1]])
    theirs = np.array([[0, 1], [0, 0]])
    np.testing.assert_allclose(
        scores.disagreement(similarity, theirs, np.array([1, 0])), [0.75, 0.5]
    )


# --- of a training ---


def test_aum_and_forgetting_by_hand():
    labels = np.array([0, 1])
    logits = np.array([
        [[3.0, 1.0], [1.0, 0.0]],  # right, wrong
        [[0.0, 1.0], [2.0, 0.0]],  # forgotten, wrong
        [[2.0, 0.0], [5.0, 1.0]],  # right, wrong
    ])  # fmt: skip
    np.testing.assert_allclose(scores.aum(logits, labels), [-(2 - 1 + 2) / 3, (1 + 2 + 4) / 3])
    np.testing.assert_array_equal(scores.forgetting(logits, labels), [1.0, 4.0])


def test_el2n_by_hand():
    even, sure = np.zeros((1, 2)), np.array([[100.0, 0.0]])
    found = scores.el2n([even, sure], np.array([1]))
    np.testing.assert_allclose(found, [(np.sqrt(0.5) + np.sqrt(2)) / 2])


def test_tracin_adds_kept_networks_up(problem):
    _, x, y = problem
    training = train(x, y, classes=CLASSES, epochs=(1, 2, 4), seed=0, hidden=7, rate=0.1)
    expected = sum(0.1 * scores.gradient_norm(training.networks[at], x, y) for at in (1, 2))
    np.testing.assert_allclose(scores.tracin(training, x, y, 3), expected)
    with pytest.raises(ValueError, match="until is 0, before"):
        scores.tracin(training, x, y, 0)


def test_confident_learning_ranks_and_flags_a_planted_label_first():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 50)
    p = np.clip(0.9 - 0.1 * rng.random(100), 0, 1)
    probabilities = np.where(labels[:, None] == [0, 1], p[:, None], 1 - p[:, None])
    labels[:5] = 1
    assert set(np.argsort(-scores.confident_learning(probabilities, labels))[:5]) == {*range(5)}
    flagged = np.flatnonzero(scores.flagged_by_confident_learning(probabilities, labels))
    assert len(flagged) >= 3
    assert {*flagged} <= {*range(5)}


# --- trainings ---


def test_a_kept_network_is_that_of_a_shorter_training(problem):
    _, x, y = problem
    settings = {"classes": CLASSES, "seed": 3, "hidden": 7, "batch_size": 8}
    long = train(x, y, epochs=(2, 6), **settings)
    short = train(x, y, epochs=(2,), **settings)
    for one, other in zip(
        long.networks[2].parameters(), short.networks[2].parameters(), strict=True
    ):
        assert torch.equal(one, other)
    with torch.no_grad():
        np.testing.assert_array_equal(long.logits[5], long.networks[6](x).numpy())
    assert not any(torch.equal(a, b) for a, b in zip(
        long.networks[2].parameters(), long.networks[6].parameters(), strict=True))  # fmt: skip
    with pytest.raises(ValueError, match="epochs is empty"):
        train(x, y, epochs=(), **settings)
    with pytest.raises(FloatingPointError, match=r"diverged by epoch 6 at rate 1e\+30"):
        train(x, y, epochs=(6,), rate=1e30, **settings)


def test_out_of_sample_means_out_of_sample():
    # Labels at random: a network knows those that it was trained on, and no others.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 40, generator=generator)
    y = torch.randint(0, 2, (60,), generator=generator)
    found, seconds = train_out_of_sample(
        x, y, classes=2, epochs=(1, 60), seed=0, hidden=16, rate=0.1
    )
    assert seconds > 0
    np.testing.assert_allclose(found[60].sum(1), 1)
    inside = train(x, y, classes=2, epochs=(60,), seed=0, hidden=16, rate=0.1).logits[-1]
    assert (inside.argmax(1) == y.numpy()).all()
    assert 0.25 < (found[60].argmax(1) == y.numpy()).mean() < 0.75


# --- noise ---


@pytest.fixture(scope="module")
def predictions():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 4, 400)
    p = rng.dirichlet(np.ones(4), 400)
    p[labels == 0, 3] += 1.0  # class 0 is taken for class 3
    return labels, p / p.sum(1, keepdims=True)


@pytest.mark.parametrize("kind", noise.NOISES)
@pytest.mark.parametrize("rate", [0.02, 0.4])
def test_exactly_the_rate_is_wrong(predictions, kind, rate):
    labels, p = predictions
    given = noise.wrong_labels(labels, kind, rate, 0, p)
    assert (given != labels).sum() == round(rate * 400)
    assert set(given) <= {0, 1, 2, 3}
    np.testing.assert_array_equal(given, noise.wrong_labels(labels, kind, rate, 0, p))
    assert (given != noise.wrong_labels(labels, kind, rate, 1, p)).any()


def test_what_labels_become(predictions):
    labels, p = predictions
    pairs = noise.wrong_labels(labels, "asymmetric", 0.4, 0, p)
    assert set(pairs[(labels == 0) & (pairs != labels)]) == {3}
    for label in range(4):
        assert len(set(pairs[(labels == label) & (pairs != labels)])) == 1
    uniform = noise.wrong_labels(labels, "uniform", 0.4, 0, p)
    assert set(uniform[(labels == 0) & (uniform != labels)]) == {1, 2, 3}
    alike = noise.wrong_labels(labels, "instance", 0.2, 0, p)
    wrong, others = alike != labels, p.copy()
    others[np.arange(400), labels] = 0
    np.testing.assert_array_equal(alike[wrong], others.argmax(1)[wrong])
    assert others.max(1)[wrong].mean() > others.max(1)[~wrong].mean() + 0.03


def test_noise_that_cannot_be_is_refused(predictions):
    labels, p = predictions
    with pytest.raises(ValueError, match="makes 0 of 400 labels wrong"):
        noise.wrong_labels(labels, "uniform", 0.001, 0, p)
    with pytest.raises(ValueError, match="kind"):
        noise.wrong_labels(labels, "symmetric", 0.1, 0, p)
    with pytest.raises(ValueError, match="predicted must be finite"):
        noise.wrong_labels(labels, "uniform", 0.1, 0, p * np.nan)


# --- the probe ---


def test_third_cumulant_of_a_gamma_law():
    rng = np.random.default_rng(0)
    loss = rng.gamma(2.0, 1.5, (4, 5000, 3))  # third cumulant 2 k theta^3
    trace = xr.Dataset({"loss": (("chain", "draw", "sample"), loss)}, attrs={"config": {}})
    found, error = probe.third_cumulant(trace)
    assert (np.abs(found - 2 * 2.0 * 1.5**3) < 4 * error).all()
    assert (error < 2).all()
    alone, unknown = probe.third_cumulant(trace.isel(chain=[0]))
    assert np.isfinite(alone).all()
    assert np.isnan(unknown).all()
    with pytest.raises(ValueError, match="not finite"):
        probe.third_cumulant(trace.assign(loss=trace.loss.where(trace.loss > 1)))


def test_weights_count_in_the_third_cumulant():
    rng = np.random.default_rng(1)
    loss = rng.normal(size=(1, 40, 2))
    twice = rng.random(40) < 0.5
    log_weight = np.log(np.where(twice, 2.0, 1.0))[None]
    weighted = xr.Dataset(
        {
            "loss": (("chain", "draw", "sample"), loss),
            "log_weight": (("chain", "draw"), log_weight),
        },
        attrs={"config": {"sampler": "importance"}},
    )
    repeated = np.concatenate([loss, loss[:, twice]], 1)[0]
    expected = ((repeated - repeated.mean(0)) ** 3).mean(0)
    np.testing.assert_allclose(probe.third_cumulant(weighted)[0], expected)


def test_the_local_gamma_is_that_of_the_library(problem):
    _, x, y = problem
    model = train(x, y, classes=CLASSES, epochs=(200,), seed=0, hidden=16, rate=0.1).networks[200]
    gamma = probe.local_gamma(model, x, y)
    kept = []
    guess = np.log(3)
    trained = float(functional.cross_entropy(model(x), y).detach())
    for at in (gamma, gamma / 10):
        trace = probe.weighted_draws(model, x, y, at, 400, 0)
        kept.append((guess - float(trace.mean_loss.mean())) / (guess - trained))
    assert kept[0] > 0.88
    assert kept[1] < 0.9
    ignorant = initial_network((7,), FEATURES, CLASSES, 0)
    with torch.no_grad():
        ignorant.layers[-1].weight.mul_(30)
    assert probe.local_gamma(ignorant, x, y) == 1000.0
