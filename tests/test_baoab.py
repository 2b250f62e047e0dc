"""Underdamped Langevin: its exact law, its limit of high friction, and what is said of its bias."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import probelib
from probelib import BAOAB, LeimkuhlerMatthews, LocalPosterior
from probelib.estimators.step_bias import step_bias
from probelib.samplers import Target

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def posteriors():
    """The library, which warns when it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import posteriors
    return posteriors


def chain(sampler, gradient, normals, target, start):
    """Where a sampler goes with these normals: (steps, chains, d)."""
    state, found = sampler.init(start), []
    for xi in normals:
        state = sampler.step(state, gradient, lambda xi=xi: xi, target)
        found.append(state["weights"])
    return torch.stack(found)


def setting(steps=20):
    torch.manual_seed(0)
    center, start = torch.randn(7).double(), torch.randn(3, 7).double()
    target, normals = Target(center, 4.0, 2.0), torch.randn(steps, 3, 7).double()
    return target, start, normals, lambda w: torch.tanh(w) + 0.3 * w**3


def test_high_friction_is_leimkuhler_matthews_normal_by_normal():
    target, start, normals, gradient = setting()
    slow = chain(BAOAB(0.05, friction=1e9), gradient, normals, target, start)
    limit = chain(LeimkuhlerMatthews(0.05), gradient, normals, target, start)
    torch.testing.assert_close(slow, limit, rtol=1e-12, atol=1e-12)
    # From c = 1e-7 on the difference is c's.
    nearly = chain(
        BAOAB(0.05, friction=-math.log(1e-7) / 0.05**0.5), gradient, normals, target, start
    )
    assert 0 < (nearly - limit).abs().max() < 1e-5


def log_posterior_of(target, gradient_potential):
    def log_posterior(weights, batch):
        shift = weights - target.center
        value = (
            -target.n_beta * gradient_potential(weights) - target.localization / 2 * shift @ shift
        )
        return value, torch.tensor([])

    return log_posterior


def potential(w):
    """Whose gradient is that of :func:`setting`."""
    return torch.log(torch.cosh(w)).sum() + 0.3 * (w**4).sum() / 4


def theirs(monkeypatch, transform, start, normals, **init):
    """Where a sampler of ``posteriors`` goes with these normals, from one chain's weights."""
    given = iter(normals)
    state = transform.init(start, **init)
    monkeypatch.setattr(torch, "randn_like", lambda like, **_: next(given).to(like))
    found = []
    for _ in normals:
        state, _ = transform.update(state, None)
        found.append(state.params)
    return torch.stack(found)


def test_the_numbers_are_those_of_posteriors(posteriors, monkeypatch):
    # Theirs: lr is h = sqrt(step_size) here, alpha the friction, with sigma and temperature 1.
    target, start, normals, gradient = setting()
    log_posterior = log_posterior_of(target, potential)
    transform = posteriors.sgmcmc.baoa.build(log_posterior, lr=0.05**0.5, alpha=1.7, momenta=0.0)
    expected = theirs(monkeypatch, transform, start[1], normals[:, 1])
    ours = chain(BAOAB(0.05, friction=1.7), gradient, normals, target, start)
    torch.testing.assert_close(ours[:, 1], expected, rtol=1e-6, atol=1e-6)  # their c is float32
    # Theirs: w + lr grad log p + sqrt(2 lr) xi, so lr is step_size / 2; beta 0, temperature 1.
    transform = posteriors.sgmcmc.sgld.build(log_posterior, lr=0.05 / 2)
    expected = theirs(monkeypatch, transform, start[1], normals[:, 1])
    ours = chain(probelib.SGLD(0.05), gradient, normals, target, start)
    torch.testing.assert_close(ours[:, 1], expected, rtol=1e-12, atol=1e-12)


def law(sampler, a, noise=0.0):
    """Stationary covariance of (weights, momentum) at precision a, of the recursion as it is run.

    The columns of the recursion are read off the sampler itself. ``noise``: nb s, of the gradient.
    """
    target = Target(torch.zeros(1).double(), 1.0, a)

    def image(weights, momentum, push=0.0, xi=0.0):
        state = {"weights": torch.tensor([[weights]]), "momentum": torch.tensor([[momentum]])}
        state = {name: tensor.double() for name, tensor in state.items()}
        new = sampler.step(
            state,
            lambda w: torch.full_like(w, push),
            lambda: torch.full((1, 1), xi).double(),
            target,
        )
        return np.array([float(new["weights"]), float(new["momentum"])])

    matrix = np.stack([image(1.0, 0.0), image(0.0, 1.0)], 1)
    shocks = [image(0.0, 0.0, xi=1.0), image(0.0, 0.0, push=noise)]
    every = sum(np.outer(shock, shock) for shock in shocks)
    return np.linalg.solve(np.eye(4) - np.kron(matrix, matrix), every.ravel()).reshape(2, 2)


@pytest.mark.parametrize("friction", [0.3, 2.0, 30.0])
@pytest.mark.parametrize("eps_a", [0.01, 1.0, 3.8])
def test_the_law_on_a_quadratic_is_exact_with_and_without_noise(friction, eps_a):
    eps, a, s = 0.09, eps_a / 0.09, 1.3
    sampler = BAOAB(eps, friction=friction)
    assert law(sampler, a)[0, 0] == pytest.approx(1 / a, rel=1e-10)
    c = math.exp(-friction * eps**0.5)
    by_noise = eps / 4 * (1 + c) / (1 - c) * s**2 / (1 - eps_a / 4)
    assert law(sampler, a, s)[0, 0] == pytest.approx((1 + by_noise) / a, rel=1e-9)
    lengths = sampler.lengths(Target(torch.zeros(1), 1.0, a))
    assert lengths.noise_step == pytest.approx(eps * (1 + c) / (1 - c))


@pytest.mark.parametrize("friction", [0, -1.0, math.nan, math.inf, None, "2"])
def test_a_friction_is_positive(friction):
    with pytest.raises(ValueError, match=r"friction is .*; it must be a positive, finite number"):
        BAOAB(1e-2, friction=friction)


def test_a_friction_that_rounds_to_none_is_refused():
    with pytest.raises(ValueError, match="friction is 1e-17, of which nothing is left in a step"):
        BAOAB(1e-2, friction=1e-17)
    with pytest.raises(TypeError, match="friction"):
        BAOAB(1e-2)


# --- what is said of its bias --------------------------------------------------------------------

D, N_BETA, GAMMA = 6, 40.0, 2.0
CURVATURE = torch.tensor([4.0, 2.0, 1.0, 0.3, 0.1, 0.0])
A = N_BETA * CURVATURE + GAMMA
LLC = float((N_BETA * CURVATURE / A).sum() / 2)


class Weights(nn.Module):
    """w itself, for each sample."""

    def __init__(self, d=D):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(d))

    def forward(self, x):
        return self.w.expand(len(x), -1)


def quadratic(noise=0.0, n=100):
    """h'w²/2 for every sample, and gradients at w* of their own whose mean is 0."""
    own = noise * torch.randn(n, D, generator=torch.Generator().manual_seed(1))
    own -= own.mean(0)

    def loss(w, own):
        return 0.5 * (CURVATURE * w**2).sum(-1) + (own * w).sum(-1)

    data = torch.zeros(n, 1), own
    return LocalPosterior(Weights(), loss, data, n_beta=N_BETA, localization=GAMMA)


def kinked(d=20, n_beta=200.0, gamma=10.0):
    """log cosh (3 w) / 3, a quadratic at 0 and nearly |w| beyond; and its LLC, by quadrature."""

    def loss(w, _):
        return (torch.logaddexp(3 * w, -3 * w) - math.log(2)).mean(-1) / 3

    w = np.linspace(-4, 4, 400_001)
    each = (np.logaddexp(3 * w, -3 * w) - math.log(2)) / 3
    p = np.exp(-n_beta / d * each - gamma / 2 * w**2)
    data = torch.zeros(4, 1), torch.zeros(4)
    posterior = LocalPosterior(Weights(d), loss, data, n_beta=n_beta, localization=gamma)
    return posterior, n_beta * float((each * p).sum() / p.sum())


def trace_of(posterior, sampler, **kwargs):
    plan = {"chains": 4, "draws": 600, "burn_in": 200, "thin": 6, "progress": False} | kwargs
    return probelib.sample(posterior, sampler=sampler, **plan)


def objections(trace):
    """What speaks against a trace, but that a model of weights alone has learned nothing."""
    return {f.name for f in probelib.diagnostics(trace).findings if not f.good} - {"trained"}


@pytest.mark.parametrize("friction", [4.0, 30.0])
def test_with_the_full_gradient_it_is_approved_and_right(friction):
    # eps A is up to 3 where SGLD would be off by a factor of four.
    eps = 3 / float(A.max())
    trace = trace_of(quadratic(), BAOAB(eps, friction=friction), thin=10)
    found = probelib.local_learning_coefficient(trace)
    assert found.value == pytest.approx(LLC, abs=4 * found.mcse)
    assert found.mcse < 0.05 * LLC
    assert found.step_bias == 0
    bias = step_bias(trace)
    assert bias.virial == pytest.approx(LLC, rel=0.1)  # it is no preconditioned sampler's
    assert not trace.attrs["preconditioned"]
    assert bias.turning == pytest.approx(
        (1 + math.exp(-friction * eps**0.5)) / 4 * eps * float((A * CURVATURE**2 / A).sum())
        / float((CURVATURE**2 / A).sum()), rel=0.1,
    )  # fmt: skip
    assert not objections(trace), str(probelib.diagnostics(trace))


@pytest.mark.parametrize(("noise", "eps", "approved"), [(0.2, 4e-4, True), (1.0, 4e-3, False)])
def test_the_noise_of_minibatches_is_said(noise, eps, approved):
    batch, n, friction = 10, 100, 8.0
    posterior = quadratic(noise, n)
    own = posterior.data.batch(slice(0, n))[1].double()
    covariance = own.var(0) / batch * (1 - batch / n)  # drawn without replacement
    trace = trace_of(posterior, BAOAB(eps, batch, friction=friction), thin=20, draws=400)
    found, bias = probelib.local_learning_coefficient(trace), step_bias(trace)
    c = math.exp(-friction * eps**0.5)
    each = eps / 8 * (1 + c) / (1 - c) * N_BETA**2 * covariance
    # From above: the next step takes back a part of the noise, which looks like more of it.
    assert 0.9 < bias.noise_limit / float(each.sum()) < 1.5
    truth = float((each / (1 - eps * A / 4) * N_BETA * CURVATURE / A).sum())
    assert found.value - LLC == pytest.approx(truth, abs=4 * found.mcse)
    assert (truth < 0.1 * LLC) == approved
    assert ("step" not in objections(trace)) == approved
    if approved:
        assert not objections(trace)


@pytest.mark.parametrize(("eps", "friction"), [(0.15, 2.0), (0.1, 1.5)])
@pytest.mark.parametrize("batch", [None, 2])
def test_a_long_step_over_kinks_is_not_approved(eps, friction, batch):
    posterior, truth = kinked()
    trace = trace_of(posterior, BAOAB(eps, batch, friction=friction), draws=200, thin=6)
    found = probelib.local_learning_coefficient(trace)
    assert found.value > 1.1 * truth + 3 * found.mcse
    found_wrong = objections(trace) & {"curvature", "step"}
    assert found_wrong, f"{found} of {truth}\n{probelib.diagnostics(trace)}"


@pytest.mark.parametrize(("eps", "friction"), [(0.02, 4.0), (0.003, 1.0)])
def test_a_short_step_over_kinks_is_approved(eps, friction):
    posterior, truth = kinked()
    trace = trace_of(posterior, BAOAB(eps, friction=friction), draws=400, thin=12)
    found = probelib.local_learning_coefficient(trace)
    assert found.value == pytest.approx(truth, rel=0.05)
    assert not objections(trace), str(probelib.diagnostics(trace))
