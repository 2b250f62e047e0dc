"""Samplers with an accept test: exact where others are off, and never approved where they stand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import probelib
from probelib import HMC, MALA, ControlVariate, LocalPosterior, Minibatch
from probelib.estimators.step_bias import relative_step_bias, step_bias
from probelib.samplers import Target

pytestmark = pytest.mark.usefixtures("one_thread")

D, N_BETA, GAMMA = 8, 60.0, 3.0


class Weights(nn.Module):
    """w itself, for each sample."""

    def __init__(self, dtype):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(D, dtype=dtype))

    def forward(self, x):
        return self.w.expand(len(x), -1)


def quartic(dtype=torch.float32, loss=lambda w, _: (w**4).sum(-1)):
    """Sum of w⁴, and its LLC, by quadrature."""
    data = torch.zeros(5, 1, dtype=dtype), torch.zeros(5)
    posterior = LocalPosterior(Weights(dtype), loss, data, n_beta=N_BETA, localization=GAMMA)
    w = np.linspace(-3, 3, 200_001)
    p = np.exp(-N_BETA * w**4 - GAMMA / 2 * w**2)
    return posterior, D * N_BETA * float((w**4 * p).sum() / p.sum())


def trace_of(sampler, posterior=None, **kwargs):
    plan = {"chains": 4, "draws": 500, "burn_in": 50, "thin": 2, "progress": False} | kwargs
    return probelib.sample(posterior or quartic()[0], sampler=sampler, **plan)


def objections(trace):
    """What speaks against a trace, but that a model of weights alone has learned nothing."""
    return {f.name for f in probelib.diagnostics(trace).findings if not f.good} - {"trained"}


@pytest.mark.parametrize(
    ("sampler", "thin"), [(MALA(0.06), 4), (HMC(0.02, leapfrog_steps=6), 1), (HMC(0.015), 1)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_exact_where_no_quadratic_is_near(sampler, thin, dtype):
    posterior, truth = quartic(dtype)
    trace = trace_of(sampler, posterior, thin=thin)
    found = probelib.local_learning_coefficient(trace)
    assert found.value == pytest.approx(truth, abs=4 * found.mcse)
    assert found.mcse < 0.04 * truth
    assert found.step_bias == 0
    assert relative_step_bias(trace, found.value, limit=True) == 0
    bias = step_bias(trace)
    assert (bias.gradient, bias.noise, bias.noise_limit) == (0, 0, 0)
    assert trace.attrs["config"]["order"] == 0
    assert (probelib.loss_gain(trace).step_bias == 0).all()
    verdict = probelib.diagnostics(trace)
    assert not objections(trace), str(verdict)
    with pytest.raises(KeyError):  # exact on every L, so nothing to be said of its curvature
        verdict["curvature"]
    accepted = trace.acceptance.values
    assert accepted.shape == trace.sampling_loss.shape
    assert 0.3 < accepted.mean() < 0.999
    assert ((accepted >= 0) & (accepted <= 1)).all()


def test_the_steps_that_are_refused_are_as_many_as_it_says():
    posterior, _ = quartic()
    trace = trace_of(MALA(0.2), posterior, thin=1, burn_in=0, draws=2000)
    moved = np.diff(trace.distance.values, axis=1) != 0
    accepted = trace.acceptance.values[:, 1:]
    error = np.sqrt((accepted * (1 - accepted)).sum()) / accepted.size
    assert abs(moved.mean() - accepted.mean()) < 5 * error
    # What is recorded of a step is of the place before it: the loss there is that of its draw.
    before = trace.loss.mean("sample").values[:, :-1]
    np.testing.assert_allclose(trace.sampling_loss.values[:, 1:], before, rtol=1e-5, atol=1e-9)


class Given:
    """L(w) = sum of w⁴ as a step is given its gradient; where it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, weights):
        return self.with_loss(weights)[0]

    def with_loss(self, weights):
        self.asked.append(weights)
        return 4 * weights**3, (weights**4).sum(1)


def test_mala_is_that_of_metropolis_and_hastings():
    torch.manual_seed(0)
    eps, chains = 0.3, 400
    center, weights = torch.randn(D).double() / 3, torch.randn(chains, D).double() / 2
    normals = [torch.randn(chains, D).double() for _ in range(2)]
    target, given, sampler = Target(center, N_BETA / 20, GAMMA), Given(), MALA(eps)
    given_noise = iter(normals)
    new = sampler.step(sampler.init(weights), given, lambda: next(given_noise), target)

    def drift(w):
        return N_BETA / 20 * 4 * w**3 + GAMMA * (w - center)

    def potential(w):
        return N_BETA / 20 * (w**4).sum(1) + GAMMA / 2 * ((w - center) ** 2).sum(1)

    def log_q(to, of):
        return -((to - of + eps / 2 * drift(of)) ** 2).sum(1) / (2 * eps)

    proposal = weights - eps / 2 * drift(weights) + eps**0.5 * normals[0]
    log_ratio = potential(weights) - potential(proposal)
    log_ratio = log_ratio + log_q(weights, proposal) - log_q(proposal, weights)
    uniform = torch.special.ndtr(normals[1][:, 0])
    taken = uniform < log_ratio.exp()
    assert 0.1 < taken.double().mean() < 0.9
    torch.testing.assert_close(new["weights"], torch.where(taken[:, None], proposal, weights))
    torch.testing.assert_close(new["acceptance"], log_ratio.exp().clamp(max=1))
    assert given.asked[0] is weights
    assert len(given.asked) == sampler.gradients_per_step


def test_hmc_asks_for_one_gradient_more_than_it_leaps_and_keeps_its_energy():
    torch.manual_seed(0)
    weights, target, given = (
        torch.randn(50, D).double() / 3,
        Target(torch.zeros(D).double(), 3.0, 2.0),
        Given(),
    )
    sampler = HMC(1e-6, leapfrog_steps=7)
    new = sampler.step(sampler.init(weights), given, lambda: torch.randn(50, D).double(), target)
    assert len(given.asked) == sampler.gradients_per_step == 8
    assert given.asked[0] is weights
    assert (new["acceptance"] > 1 - 1e-3).all()
    # Each chain has a step of its own, within a fifth of the one given.
    speed = (given.asked[1] - weights).std(1) / 1e-3
    assert 0.3 < speed.min() < speed.max() < 2.5


@pytest.mark.parametrize("sampler", [MALA(40.0), HMC(40.0, leapfrog_steps=3)])
def test_a_chain_that_never_moves_is_never_approved(sampler):
    trace = trace_of(sampler, draws=60)
    verdict = probelib.diagnostics(trace)
    assert verdict.wrong
    assert not verdict["acceptance"].good
    assert "the chains stand still; try step_size 10" in verdict["acceptance"].sentence
    assert trace.acceptance.values.max() < 1e-3


def test_one_chain_that_stands_among_others_is_seen():
    trace = trace_of(MALA(0.06), draws=200)
    trace.acceptance.load()[1] = 0.0
    assert not probelib.diagnostics(trace)["acceptance"].good


def test_steps_that_are_too_short_are_named():
    verdict = probelib.diagnostics(trace_of(MALA(1e-5), draws=50))
    assert not verdict.good
    assert "a step_size of 2e-05 would move faster" in verdict["acceptance"].sentence
    assert verdict["acceptance"].good


@pytest.mark.parametrize("kind", [MALA, HMC])
def test_minibatches_are_refused(kind):
    with pytest.raises(
        ValueError, match=r"batch_size is 8, but .* by the loss of all samples; lea"
    ):
        kind(1e-2, 8)
    for gradient in (ControlVariate(8), Minibatch(8)):
        with pytest.raises(
            ValueError, match=r"is .*8.*, but .* tests its steps by the loss of all"
        ):
            kind(1e-2, gradient=gradient)


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, None])
def test_leapfrog_steps_are_counted(steps):
    with pytest.raises(ValueError, match=r"leapfrog_steps is .*; it must be a whole number, 1 or"):
        HMC(1e-2, leapfrog_steps=steps)


def test_what_draws_at_random_is_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    data = torch.randn(20, 3), torch.randint(0, 2, (20,))
    settings = {"n_beta": 10.0, "localization": 5.0}
    train = LocalPosterior(model, probelib.cross_entropy, data, train_mode=True, **settings)
    with pytest.raises(
        ValueError, match=r"train mode.*; MALA, which tests a step by it, needs tra"
    ):
        probelib.sample(train, sampler=MALA(1e-2), draws=2, progress=False)

    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x) + torch.randn(2)

    noisy = LocalPosterior(Noisy(3, 2), probelib.cross_entropy, data, **settings)
    with pytest.raises(ValueError, match=r"model draws at random .* loss by which HMC could test"):
        probelib.sample(noisy, sampler=HMC(1e-2), draws=2, progress=False)
    sound = LocalPosterior(model, probelib.cross_entropy, data, **settings)  # in eval mode
    trace = probelib.sample(sound, sampler=MALA(1e-2), draws=5, progress=False)
    assert np.isfinite(trace.loss).all()


def test_a_proposal_without_a_finite_loss_is_refused():
    posterior, _ = quartic(loss=lambda w, _: torch.where(w.abs() > 0.5, math.nan, w**2).sum(-1))
    trace = trace_of(MALA(0.01), posterior, draws=200)
    assert np.isfinite(trace.loss).all()
    assert not trace.attrs["diverged"]
    assert 0.1 < trace.acceptance.values.mean() < 0.99


def test_acceptance_is_kept_on_disk_and_in_a_copy(tmp_path):
    trace = trace_of(MALA(0.06), draws=30, store=tmp_path / "trace")
    opened = probelib.open_trace(tmp_path / "trace")
    np.testing.assert_array_equal(opened.acceptance, trace.acceptance)
    assert opened.acceptance.attrs["units"] == "1"
    longer = trace_of(MALA(0.06), draws=60, store=tmp_path / "trace")
    np.testing.assert_array_equal(longer.acceptance, trace_of(MALA(0.06), draws=60).acceptance)
    probelib.save(trace, tmp_path / "kept.nc")
    np.testing.assert_array_equal(probelib.open(tmp_path / "kept.nc").acceptance, trace.acceptance)
    assert "acceptance" not in trace_of(probelib.SGLD(1e-3), draws=3)
