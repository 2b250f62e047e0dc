"""The localization solved exactly: the law of the step, and what is said of its bias."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import probelib
from probelib import ExponentialEuler, LocalPosterior
from probelib.estimators.step_bias import step_bias
from probelib.samplers import Target

pytestmark = pytest.mark.usefixtures("one_thread")

D, GAMMA = 6, 20.0
CURVATURE = torch.tensor([4.0, 2.0, 1.0, 0.3, 0.1, 0.0]).double()


class Weights(nn.Module):
    """w itself, for each sample."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(D))

    def forward(self, x):
        return self.w.expand(len(x), -1)


def quadratic(n_beta, noise=0.0, n=100):
    """h'w²/2 for every sample, and gradients at w* of their own whose mean is 0."""
    own = noise * torch.randn(n, D, generator=torch.Generator().manual_seed(1))
    own -= own.mean(0)

    def loss(w, own):
        return 0.5 * (CURVATURE.float() * w**2).sum(-1) + (own * w).sum(-1)

    data = torch.zeros(n, 1), own
    return LocalPosterior(Weights(), loss, data, n_beta=n_beta, localization=GAMMA)


def law(eps, precision, noise=0.0):
    """Stationary variance at a precision, with minibatch noise of variance noise² (of nb L')."""
    a = math.exp(-GAMMA * eps / 2)
    long = 2 * (1 - a) / GAMMA
    bias = (1 - long * GAMMA / 4) / (1 - long * precision / 4)
    return bias / precision * (1 + math.tanh(GAMMA * eps / 4) / GAMMA * noise**2)


def trace_of(posterior, sampler, **kwargs):
    plan = {"chains": 4, "draws": 1500, "burn_in": 60, "thin": 1, "progress": False} | kwargs
    return probelib.sample(posterior, sampler=sampler, **plan)


def objections(trace):
    """What speaks against a trace, but that a model of weights alone has learned nothing."""
    return {f.name for f in probelib.diagnostics(trace).findings if not f.good} - {"trained"}


@pytest.mark.parametrize("eps", [1e-4, 0.05, 0.3, 5.0])
@pytest.mark.parametrize("curvature", [0.0, 3.0, 15.0])
def test_the_law_is_that_of_the_recursion(eps, curvature):
    target, sampler = Target(torch.zeros(1).double(), 1.0, GAMMA), ExponentialEuler(eps)

    def image(weights, push=0.0, xi=0.0):
        state = sampler.init(torch.tensor([[weights]]).double())
        new = sampler.step(
            state, lambda w: curvature * w + push, lambda: torch.full((1, 1), xi).double(), target
        )
        return float(new["weights"])

    kept, shock, push = image(1.0), image(0.0, xi=1.0), image(0.0, push=2.0)
    assert abs(kept) < 1
    found = (shock**2 + push**2) / (1 - kept**2)
    assert found == pytest.approx(law(eps, curvature + GAMMA, 2.0), rel=1e-9)
    if curvature == 0:
        assert shock**2 / (1 - kept**2) == pytest.approx(1 / GAMMA, rel=1e-9)
    # Where L is linear the mean is right at every step.
    assert push / (1 - math.exp(-GAMMA * eps / 2)) == pytest.approx(-2.0 / GAMMA, rel=1e-9)


@pytest.mark.parametrize(("eps", "n_beta", "approved"), [(1.0, 0.5, True), (0.3, 3.0, False)])
def test_the_bias_is_what_it_says_it_is(eps, n_beta, approved):
    trace = trace_of(quadratic(n_beta), ExponentialEuler(eps))
    a = (n_beta * CURVATURE + GAMMA).numpy()
    exact = n_beta / 2 * float((CURVATURE.numpy() / a).sum())
    biased = sum(n_beta / 2 * h * law(eps, p) for h, p in zip(CURVATURE.numpy(), a, strict=True))
    found = probelib.local_learning_coefficient(trace)
    assert found.value == pytest.approx(biased, abs=4 * found.mcse)
    assert step_bias(trace).gradient == pytest.approx(biased - exact, rel=0.12)
    assert found.step_bias == pytest.approx(biased - exact, rel=0.25)
    assert (biased < 1.1 * exact) == approved
    assert ("step" not in objections(trace)) == approved, str(probelib.diagnostics(trace))
    if approved:  # SGLD of this step runs away, at eps gamma = 20
        assert not objections(trace)
        verdict = probelib.diagnostics(trace)
        assert verdict["spread"].limit == pytest.approx(1.1)  # nothing widens it where L is flat


def test_a_step_that_is_suggested_is_short_enough():
    posterior = quadratic(3.0)
    sentence = probelib.diagnostics(trace_of(posterior, ExponentialEuler(2.0)))["step"].sentence
    step = float(sentence.partition("try ")[2].partition(",")[0])
    assert not objections(trace_of(posterior, ExponentialEuler(step), thin=10, draws=600))


@pytest.mark.parametrize("eps", [0.02, 0.15])
def test_the_noise_of_minibatches_is_said(eps):
    n_beta, batch, n = 3.0, 5, 100
    posterior = quadratic(n_beta, 6.0, n)
    own = posterior.data.batch(slice(0, n))[1].double()
    covariance = (own.var(0) / batch * (1 - batch / n)).numpy()
    trace = trace_of(posterior, ExponentialEuler(eps, batch), thin=2)
    a, h = (n_beta * CURVATURE + GAMMA).numpy(), CURVATURE.numpy()
    s = n_beta * np.sqrt(covariance)
    biased = n_beta / 2 * sum(c * law(eps, p, of) for c, p, of in zip(h, a, s, strict=True))
    found, bias = probelib.local_learning_coefficient(trace), step_bias(trace)
    assert found.value == pytest.approx(biased, abs=4 * found.mcse)
    each = math.tanh(GAMMA * eps / 4) / (2 * GAMMA) * float((s**2).sum())
    assert bias.noise_limit == pytest.approx(each, rel=0.4)
    assert biased > 1.1 * n_beta / 2 * float((h / a).sum())
    assert "step" in objections(trace)
