"""The chains: Eq. 7 step by step, its exact stationary law, and what sampling must not touch."""

import copy
import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import probelib
from probelib import (
    SGLD,
    ControlVariate,
    DivergenceError,
    LocalPosterior,
    cross_entropy,
    squared_error,
)
from probelib.samplers import Target

pytestmark = pytest.mark.usefixtures("one_thread")

# --- exact laws --------------------------------------------------------------------------------


class Weights(nn.Module):
    """f(x) = x * w, one weight a dimension, w* = 0: curvatures without correlations."""

    def __init__(self, d):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(d))

    def forward(self, x):
        return x * self.w


def relative_error_of_variance(rho, draws, chains):
    """Exact sd of mean(w²) / sigma² over independent stationary Gaussian AR(1) chains.

    Var(w_t²) = 2 sigma⁴ and Corr(w_t², w_s²) = rho^(2 |t - s|).
    """
    lag = np.arange(1, draws)
    tau = 1 + 2 * ((1 - lag / draws) * rho ** (2 * lag)).sum()
    return np.sqrt(2 * tau / (draws * chains))


@pytest.mark.parametrize("step_size", [0.04, 0.19])
def test_stationary_variance_on_a_quadratic(step_size):
    # 8 curvatures, 8 independent weights each; A = nb h + gamma goes from 2 to 20, so that
    # eps A / 4 goes from 0.02 to 0.95. Every weight is an AR(1) with rho = 1 - eps A / 2, observed
    # one by one through l_j = w_j² / 2. Bound: 6 exact standard errors; the smallest effective
    # number of squares is 2 / error² > 2000, whose chi² tail at 6 is below 2e-8; 16 are tested.
    n_beta, localization, copies, chains, draws, burn_in = 4.0, 1.5, 8, 8, 800, 400
    precision = np.geomspace(2, 20, 8).repeat(copies)
    d = len(precision)
    h = (precision - localization) / n_beta
    x = torch.diag(torch.from_numpy(np.sqrt(d * h)).float())  # H = x'x / d = diag(h)
    posterior = LocalPosterior(
        Weights(d), squared_error, (x, torch.zeros(d, d)), n_beta=n_beta, localization=localization
    )
    trace = probelib.sample(
        posterior, observe=(torch.eye(d), torch.zeros(d, d)), sampler=SGLD(step_size),
        chains=chains, draws=draws, burn_in=burn_in, progress=False,
    )  # fmt: skip
    found = 2 * trace.loss.values.astype(np.float64).mean((0, 1)).reshape(8, copies).mean(1)
    a = precision[::copies]
    exact = 1 / (a * (1 - step_size * a / 4))
    rho = 1 - step_size * a / 2
    assert (rho ** (2 * burn_in) < 1e-12).all()
    error = np.array([relative_error_of_variance(r, draws, chains * copies) for r in rho])
    assert (2 / error**2 > 2000).all()
    np.testing.assert_array_less(np.abs(found / exact - 1) / error, 6)
    assert error.min() < 0.015  # six of these see a factor 1 / (1 - eps A / 4) of 1.1


def test_stationary_variance_with_minibatch_noise():
    # f = w, so the gradient of a minibatch is w - mean(y): noise of variance
    # s² = Var(y) / m * (n - m) / (n - 1) for m drawn without replacement. Noise this size doubles
    # the variance; without the finite-population factor it would be 12 % larger. Non-Gaussian
    # noise lowers the kurtosis of w here, so the Gaussian error bounds the true one.
    n, m, n_beta, localization, step_size = 20, 4, 20.0, 5.0, 0.05
    chains, draws, burn_in = 64, 800, 60
    y = torch.tensor([-1.0, 1.0]).repeat(n // 2)
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    posterior = LocalPosterior(
        model, squared_error, (torch.ones(n, 1), y[:, None]),
        n_beta=n_beta, localization=localization,
    )  # fmt: skip
    trace = probelib.sample(
        posterior, observe=(torch.ones(1, 1), torch.zeros(1, 1)), sampler=SGLD(step_size, m),
        chains=chains, draws=draws, burn_in=burn_in, progress=False,
    )  # fmt: skip
    a = n_beta + localization
    s2 = 1 / m * (n - m) / (n - 1)
    exact = (1 + step_size * n_beta**2 * s2 / 4) / (a * (1 - step_size * a / 4))
    error = relative_error_of_variance(1 - step_size * a / 2, draws, chains)
    found = 2 * trace.loss.values.astype(np.float64).mean()
    assert error < 0.01
    assert abs(found / exact - 1) < 6 * error
    # The minibatch loss before each step: E = (E w² + 1) / 2, as the pair is independent.
    assert trace.sampling_loss.shape == (chains, burn_in + draws)
    later = trace.sampling_loss.values[:, burn_in:].mean()
    assert later == pytest.approx((exact + 1) / 2, rel=0.05)


@pytest.fixture(scope="module")
def regression():
    """Linear regression at OLS with 24 long chains, and the exact law of the discretised chain.

    The chain is linear with Gaussian noise, so its draws are N(w*, S) with
    S = [A (I - eps A / 4)]^-1, A = nb H + gamma I, and the closed forms hold with this S.
    """
    rng = np.random.default_rng(7)
    n, d, n_beta, localization, step_size = 24, 3, 8.0, 4.0, 0.06
    x = rng.normal(size=(n, d)) * [0.5, 1, 1.5]
    y = x @ rng.normal(size=d) + rng.normal(size=n)
    w, *_ = np.linalg.lstsq(x, y, rcond=None)
    model = nn.Linear(d, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(w)[None])
    data = torch.from_numpy(x), torch.from_numpy(y)[:, None]
    posterior = LocalPosterior(model, squared_error, data, n_beta=n_beta, localization=localization)
    trace = probelib.sample(
        posterior, sampler=SGLD(step_size), chains=24, draws=1000, burn_in=150, progress=False
    )
    hessian = x.T @ x / n
    a = n_beta * hessian + localization * np.eye(d)
    assert step_size * np.linalg.eigvalsh(a).max() < 3
    s = np.linalg.inv(a @ (np.eye(d) - step_size * a / 4))
    residual = y - x @ w
    g = x @ s @ x.T
    truth = {
        "gain": np.diag(g) / 2,
        "kernel": np.outer(residual, residual) * g + g * g / 2,
        "llc": n_beta / 2 * np.trace(hessian @ s),
        "nu_per_trace": n_beta / n / 2,
    }
    truth["nu"] = truth["nu_per_trace"] * np.trace(truth["kernel"])
    # With the continuous S instead, the answers lie this far off: the bias that eps makes.
    truth["llc_continuous"] = n_beta / 2 * np.trace(hessian @ np.linalg.inv(a))
    return trace, truth


def test_linear_regression_against_closed_forms(regression):
    # About 24 x 1000 / 5 = 4800 effective draws, and errors from 24 x 32 batches of length 31:
    # z-scores are standard normal, widened by under 10 % as batches of 31 still correlate. 600
    # numbers below 7 / 1.1 = 6.3: a correct sampler misses with probability 600 x 3e-10.
    trace, truth = regression
    gain, kernel = probelib.loss_gain(trace), probelib.loss_kernel(trace)
    assert np.abs((gain - truth["gain"]) / gain.mcse).max() < 7
    every = np.arange(24)
    z = (kernel.covariance() - truth["kernel"]) / kernel.covariance_mcse(every, every)
    assert np.abs(z).max() < 7
    diagonal = kernel.diagonal()
    assert np.abs((diagonal - np.diag(truth["kernel"])) / diagonal.mcse).max() < 7
    scale = np.sqrt(np.diag(truth["kernel"]))
    r = truth["kernel"] / np.outer(scale, scale)
    off = ~np.eye(24, dtype=bool)
    z = (kernel.correlation() - r)[off] / kernel.correlation_mcse(every, every)[off]
    assert np.abs(z).max() < 7
    llc, nu = probelib.local_learning_coefficient(trace), probelib.singular_fluctuation(trace)
    assert abs(llc.value - truth["llc"]) / llc.mcse < 6
    assert abs(nu.value - truth["nu"]) / nu.mcse < 6
    # The test can see the discretisation, so it can see errors of that size.
    assert abs(truth["llc_continuous"] - truth["llc"]) / llc.mcse > 10
    np.testing.assert_allclose(
        llc.value, trace.attrs["config"]["n_beta"] * float(gain.mean()), rtol=1e-9
    )


def test_standard_errors_are_calibrated_over_repeated_runs(regression):
    # Each chain alone is a run of its own: 24 independent z-scores an estimate, whose mean square
    # is chi²_24 / 24, within [0.13, 3.4] but for 1e-6 over all four. One chain's batch means are
    # off by a few percent more, which these bounds cover; an error off by a factor 2 is caught.
    trace, truth = regression
    squares = {"gain": [], "variance": [], "llc": [], "nu": []}
    for c in range(24):
        chain = trace.isel(chain=[c])
        gain, diagonal = probelib.loss_gain(chain), probelib.loss_kernel(chain).diagonal()
        squares["gain"].append(((gain - truth["gain"]) / gain.mcse)[0])
        squares["variance"].append(((diagonal - np.diag(truth["kernel"])) / diagonal.mcse)[0])
        llc, nu = probelib.local_learning_coefficient(chain), probelib.singular_fluctuation(chain)
        squares["llc"].append((llc.value - truth["llc"]) / llc.mcse)
        squares["nu"].append((nu.value - truth["nu"]) / nu.mcse)
    for name, z in squares.items():
        assert 0.13 < np.mean(np.square(np.asarray(z, float))) < 3.4, name


# --- the update --------------------------------------------------------------------------------


def test_one_step_is_equation_7():
    rng = np.random.default_rng(0)
    w, g, xi = rng.normal(size=(3, 4, 6))
    center, n_beta, localization, eps = rng.normal(size=6), 13.0, 2.5, 0.07
    before = {"weights": torch.from_numpy(w.copy())}
    after = SGLD(eps).step(
        before, lambda weights: torch.from_numpy(g.copy()), lambda: torch.from_numpy(xi.copy()),
        Target(torch.from_numpy(center), n_beta, localization),
    )  # fmt: skip
    expected = w - eps / 2 * (n_beta * g + localization * (w - center)) + np.sqrt(eps) * xi
    np.testing.assert_allclose(after["weights"], expected, rtol=1e-13)
    np.testing.assert_array_equal(before["weights"], w)


def mlp(seed=0, classes=4, hidden=8):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, classes))


def toy(n=60, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=rng), torch.randint(0, 4, (n,), generator=rng)


def posterior_of(model, data=None, loss=cross_entropy, **kwargs):
    settings = {"n_beta": 10.0, "localization": 5.0} | kwargs
    return LocalPosterior(model, loss, toy() if data is None else data, **settings)


def run(posterior, observe=None, **kwargs):
    settings = {"sampler": SGLD(1e-2, 8), "chains": 2, "draws": 6, "progress": False} | kwargs
    return probelib.sample(posterior, observe, **settings)


def by_hand(
    model,
    data,
    observe,
    loss,
    *,
    step_size,
    m,
    chains,
    steps,
    seed,
    nb=10.0,
    gamma=5.0,
    anchored=False,
):
    """Eq. 7 by plain autograd, from the same generators: losses and distances at every step.

    ``anchored``: less the minibatch's gradient at w*, plus that of all samples there.
    """
    x, y = data
    start = list(model.parameters())
    out, away, before = [], [], []
    for child in np.random.SeedSequence(seed).spawn(chains):
        for_batch, for_noise = child.spawn(2)
        batches, noise = np.random.default_rng(for_batch), torch.Generator()
        noise.manual_seed(int(for_noise.generate_state(1, np.uint64)[0]))
        moving = copy.deepcopy(model).eval()
        center = [p.detach().clone() for p in moving.parameters()]
        size = sum(p.numel() for p in center)
        for _ in range(steps):
            at = slice(None)
            if m is not None:
                at = batches.choice(len(x), m, replace=False, shuffle=False)
            value = loss(moving(x[at]), y[at]).mean()
            gradients = torch.autograd.grad(value, list(moving.parameters()))
            if anchored:
                there = torch.autograd.grad(loss(model(x[at]), y[at]).mean(), start)
                whole = torch.autograd.grad(loss(model(x), y).mean(), start)
                gradients = [g - a + f for g, a, f in zip(gradients, there, whole, strict=True)]
            xi = torch.empty(size, dtype=center[0].dtype).normal_(generator=noise)
            with torch.no_grad():
                parts = xi.split([p.numel() for p in center])
                for p, g, c, z in zip(moving.parameters(), gradients, center, parts, strict=True):
                    p += -step_size / 2 * (nb * g + gamma * (p - c))
                    p += step_size**0.5 * z.view_as(p)
                out.append(loss(moving(observe[0]), observe[1]).numpy())
                spread = [
                    (p - c).square().sum() for p, c in zip(moving.parameters(), center, strict=True)
                ]
                away.append(float(torch.stack(spread).sum().sqrt()))
            before.append(value.item())
    shape = chains, steps
    return np.reshape(out, (*shape, -1)), np.reshape(away, shape), np.reshape(before, shape)


@pytest.mark.parametrize("chains", [1, 2])
@pytest.mark.parametrize(("m", "anchored"), [(8, False), (None, False), (8, True)])
def test_chains_against_a_loop_written_by_hand(m, anchored, chains):
    model, (x, y), other = mlp().double(), toy(), toy(9, seed=2)
    data, observe = (x.double(), y), (other[0].double(), other[1])
    sampler = SGLD(1e-2, gradient=ControlVariate(m)) if anchored else SGLD(1e-2, m)
    trace = run(
        posterior_of(model, data), observe, sampler=sampler, chains=chains, draws=20, seed=3
    )
    assert trace.attrs["advance"] == ("together" if chains > 1 else "one by one")
    losses, away, before = by_hand(
        model, data, observe, cross_entropy, step_size=1e-2, m=m, chains=chains, steps=20, seed=3,
        anchored=anchored,
    )  # fmt: skip
    # Chains in float64, stored in float32.
    np.testing.assert_allclose(trace.loss, losses, rtol=2e-6)
    np.testing.assert_allclose(trace.distance, away, rtol=2e-6)
    np.testing.assert_allclose(trace.sampling_loss, before, rtol=2e-6)
    start = cross_entropy(model(observe[0]), observe[1]).detach()
    np.testing.assert_allclose(trace.init_loss, start, rtol=2e-6)


def test_draw_d_comes_after_burn_in_and_d_plus_1_thinned_steps():
    every = run(posterior_of(mlp()), draws=30)
    some = run(posterior_of(mlp()), draws=7, burn_in=5, thin=3)
    at = 5 + 3 * (np.arange(7) + 1) - 1  # every's draw d is after step d + 1
    np.testing.assert_array_equal(some.loss, every.loss[:, at])
    np.testing.assert_array_equal(some.distance, every.distance[:, at])
    np.testing.assert_array_equal(some.sampling_loss, every.sampling_loss[:, : 5 + 21])


def test_seeds():
    a, b, c = (run(posterior_of(mlp()), seed=s) for s in (0, 0, 1))
    for name in ("loss", "distance", "sampling_loss", "init_loss"):
        np.testing.assert_array_equal(a[name], b[name])
    assert (a.loss.values != c.loss.values).any((1, 2)).all()
    assert (a.loss.values[0] != a.loss.values[1]).any()  # chains differ from each other
    more = run(posterior_of(mlp()), chains=3)
    np.testing.assert_allclose(more.loss[:2], a.loss, rtol=1e-5)  # a chain's seed is its own


def test_some_chains_of_a_call_are_those_of_the_whole(tmp_path):
    whole = run(posterior_of(mlp()), chains=4)
    parts = [
        run(posterior_of(mlp()), chains=2, first_chain=first, cache=tmp_path) for first in (0, 2)
    ]
    for name in ("loss", "distance", "sampling_loss"):
        both = np.concatenate([part[name] for part in parts])
        np.testing.assert_allclose(both, whole[name], rtol=1e-5)
    assert len(list(tmp_path.glob("*.zarr"))) == 2  # neither was taken for the other


def test_observing_in_bfloat16_leaves_the_chains_alone(tmp_path):
    full = run(posterior_of(mlp()), cache=tmp_path)
    half = run(posterior_of(mlp()), observe_dtype="bfloat16", cache=tmp_path)
    for name in ("distance", "sampling_loss"):
        np.testing.assert_array_equal(half[name], full[name])
    assert (half.loss.values != full.loss.values).any()
    assert (half.init_loss.values != full.init_loss.values).any()
    # 8 bits: logits of about 1 are off by up to 2^-8, a loss by twice that and a little.
    np.testing.assert_allclose(half.loss, full.loss, atol=0.03)
    assert len(list(tmp_path.glob("*.zarr"))) == 2
    again = run(posterior_of(mlp()), observe_dtype="bfloat16", cache=tmp_path)
    np.testing.assert_array_equal(again.loss, half.loss)
    assert len(list(tmp_path.glob("*.zarr"))) == 2


def test_observed_samples_do_not_disturb_the_chains():
    own = run(posterior_of(mlp()))
    x, y = toy(9, seed=5)
    other = run(posterior_of(mlp()), (x, y))
    assert other.loss.shape == (2, 6, 9)
    np.testing.assert_array_equal(other.distance, own.distance)
    np.testing.assert_array_equal(other.label, y)
    subset = run(posterior_of(mlp()), tuple(a[10:20] for a in toy()))
    np.testing.assert_allclose(subset.loss, own.loss[..., 10:20], rtol=1e-5)
    np.testing.assert_allclose(
        run(posterior_of(mlp()), observe_batch_size=7).loss, own.loss, rtol=1e-5
    )


def test_scaling_the_loss_against_n_beta_changes_no_draw():
    base = run(posterior_of(mlp()))
    scaled = run(posterior_of(mlp(), loss=lambda o, t: 4 * cross_entropy(o, t), n_beta=2.5))
    np.testing.assert_array_equal(scaled.distance, base.distance)  # a power of 2 rounds nothing
    np.testing.assert_array_equal(scaled.loss, 4 * base.loss)


def test_a_constant_added_to_the_loss_changes_no_draw():
    base = run(posterior_of(mlp()))
    shifted = run(posterior_of(mlp(), loss=lambda o, t: cross_entropy(o, t) + t))
    np.testing.assert_array_equal(shifted.distance, base.distance)
    np.testing.assert_allclose(shifted.loss - shifted.label, base.loss, atol=2e-6)


def test_a_whole_batch_is_the_full_gradient():
    n = 60
    a, b = (run(posterior_of(mlp()), sampler=SGLD(1e-2, m)) for m in (n, None))
    np.testing.assert_array_equal(a.loss, b.loss)


# --- any model, untouched ------------------------------------------------------------------------


class Branches(nn.Module):
    """Control flow of a kind that vmap cannot run; on the weights, as a batch must not mix."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.layer = kind, nn.Linear(3, 4)

    def forward(self, x):
        h = self.layer(x)
        weight = self.layer.weight.detach()
        if self.kind == "branch":
            return h if weight.sum() > 0 else -h
        if self.kind == "loop":
            return sum(h for row in weight if row.sum() > 0)
        return h * max(1.0, weight.abs().max().item())


class Twice(torch.autograd.Function):
    """Without setup_context, which torch.func asks for."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g


class Custom(Branches):
    def forward(self, x):
        return Twice.apply(self.layer(x))


@pytest.mark.parametrize("m", [8, None])
@pytest.mark.parametrize("kind", ["branch", "loop", "item", "autograd function"])
def test_models_that_vmap_cannot_run_go_one_by_one(kind, m):
    model = (Custom if kind == "autograd function" else Branches)(kind).double()
    data = toy()[0].double(), toy()[1]
    trace = run(posterior_of(model, data), sampler=SGLD(1e-2, m), draws=10)
    assert m is None or trace.attrs["advance"] == "one by one"
    losses, away, _ = by_hand(
        model, data, data, cross_entropy, step_size=1e-2, m=m, chains=2, steps=10, seed=0
    )
    np.testing.assert_allclose(trace.loss, losses, rtol=2e-6)
    np.testing.assert_allclose(trace.distance, away, rtol=2e-6)


def test_one_by_one_gives_the_same_trace(monkeypatch):
    together = run(posterior_of(mlp()))
    monkeypatch.setattr("probelib.chains._vmap_agrees", lambda *_: False)
    alone = run(posterior_of(mlp()))
    assert (together.attrs["advance"], alone.attrs["advance"]) == ("together", "one by one")
    np.testing.assert_allclose(together.loss, alone.loss, rtol=1e-4, atol=1e-6)


def test_a_wide_model_is_observed_one_by_one_with_the_same_result(monkeypatch):
    base = run(posterior_of(mlp()))
    monkeypatch.setattr(probelib.chains, "_SMALL", 10)
    np.testing.assert_allclose(run(posterior_of(mlp())).loss, base.loss, rtol=1e-5, atol=1e-7)


def normalised():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4)
    )
    model(torch.randn(50, 3))  # running statistics of its own
    return model


@pytest.mark.parametrize("train_mode", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_nothing_of_the_callers_is_touched(train_mode, training):
    model = normalised().train(training)
    model[3].train(not training)
    model[0].bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    x, y = toy()
    kept = x.clone(), y.clone()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)  # noqa: NPY002
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002

    run(posterior_of(model, (x, y), train_mode=train_mode))

    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == [True, False, *[True] * 4]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])


def test_eval_mode_and_train_mode():
    model = normalised().train()
    evaluated = run(posterior_of(model))
    exact = cross_entropy(copy.deepcopy(model).eval()(toy()[0]), toy()[1]).detach()
    np.testing.assert_allclose(evaluated.init_loss, exact, rtol=1e-5, atol=1e-6)
    assert evaluated.attrs["advance"] == "together"
    a, b = (run(posterior_of(model, train_mode=True)) for _ in range(2))
    torch.manual_seed(99)
    posterior = posterior_of(model, train_mode=True)
    for again in (b, run(posterior), run(posterior)):
        np.testing.assert_array_equal(a.loss, again.loss)
    assert (a.init_loss.values != evaluated.init_loss.values).any()
    x, y = toy()
    live = model.train()(x)  # dropout was at work: other masks give other losses
    assert not np.allclose(a.init_loss, cross_entropy(live, y).detach())


def test_randomness_inside_an_eval_model_is_seeded_too():
    class Noisy(Branches):
        def forward(self, x):
            return nn.functional.dropout(self.layer(x), 0.5, training=True)

    model = Noisy("")
    state = torch.get_rng_state()
    a = run(posterior_of(model))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(77)
    np.testing.assert_array_equal(run(posterior_of(model)).loss, a.loss)


def test_frozen_parameters_stay():
    model = mlp()
    model[0].requires_grad_(False)
    trace = run(posterior_of(model), draws=10)
    features = model[:2](toy()[0]).detach()
    head = run(posterior_of(model[2:], (features, toy()[1])), draws=10)
    np.testing.assert_allclose(trace.loss, head.loss, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(trace.distance, head.distance, rtol=1e-5)


def test_a_map_style_data_set_gives_the_same_trace():
    x, y = toy()
    items = [(x[i], int(y[i])) for i in range(60)]
    a, b = run(posterior_of(mlp())), run(posterior_of(mlp(), items))
    assert set(a.variables) == set(b.variables)
    for name in a.variables:
        np.testing.assert_array_equal(a[name], b[name])
    assert a.attrs["fingerprint"] == b.attrs["fingerprint"]
    c = run(posterior_of(mlp()), items[:7])
    np.testing.assert_array_equal(c.label, y[:7])


def test_sampling_under_no_grad_works():
    with torch.no_grad():
        a = run(posterior_of(Branches("branch")))
    np.testing.assert_array_equal(a.loss, run(posterior_of(Branches("branch"))).loss)


# --- bad input: a clear sentence, and nothing written --------------------------------------------


@pytest.mark.parametrize("value", [0, -1e-3, float("nan"), float("inf"), None, "5e-3"])
def test_step_size_must_be_positive(value):
    with pytest.raises(ValueError, match=f"step_size is .*{value}.*; it must be a positive"):
        SGLD(value)


@pytest.mark.parametrize("value", [0, -3, 2.5, True])
def test_counts_must_be_whole_and_positive(value, tmp_path):
    store = tmp_path / "trace"
    with pytest.raises(ValueError, match=f"batch_size is {value}; it must be a whole number"):
        SGLD(1e-3, value)
    for name in ("chains", "draws", "thin", "observe_batch_size"):
        with pytest.raises(ValueError, match=f"{name} is {value}; it must be a whole number"):
            run(posterior_of(mlp()), store=store, **{name: value})
    assert not store.exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"burn_in": -1}, "burn_in is -1; it must be a whole number, 0 or more"),
        ({"burn_in": 1.0}, r"burn_in is 1\.0"),
        ({"seed": -1}, "seed is -1; it must be a whole number, 0 or more"),
        ({"first_chain": -1}, "first_chain is -1; it must be a whole number, 0 or more"),
        ({"observe_dtype": "float16"}, "observe_dtype is 'float16'; choose 'float32', 'bfloa"),
        ({"loss_dtype": "int8"}, "loss_dtype is 'int8'; choose 'auto', 'float64', 'float32' or"),
        ({"sampler": SGLD(1e-3, 61)}, "batch_size is 61, more than the 60 samples"),
        ({"observe": (toy()[0], toy()[1] + 1)}, "observe has labels from 1 to 4"),
        ({"observe": (toy()[0] * float("nan"), toy()[1])}, "observe has non-finite inputs, first"),
        ({"observe": (toy()[0][:5], toy()[1])}, "observe has 5 inputs and 60 targets"),
        ({"observe": (toy()[0][:0], toy()[1][:0])}, "observe is empty"),
        ({"observe": (toy()[0].double(), toy()[1])}, r"failed on observe at w\*"),
        ({"observe": [(x, 9 * (i > 50)) for i, x in enumerate(toy()[0])]}, "observe has labels"),
    ],
)  # fmt: skip
def test_bad_settings(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(posterior_of(mlp()), store=tmp_path / "trace", **settings)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("what", ["label", "value"])
def test_a_data_set_with_a_bad_sample_deep_inside(what, tmp_path):
    items = [[x, int(y)] for x, y in zip(*toy(), strict=True)]
    if what == "label":
        items[50][1], message = 4, "data has labels from 0 to 4, but the model has 4 outputs"
    else:
        items[50][0], message = items[50][0] / 0, "data has non-finite inputs, first in sample 50"
    posterior = posterior_of(mlp(), [tuple(i) for i in items])
    with pytest.raises(ValueError, match=message):
        run(posterior, toy(), store=tmp_path / "trace")
    assert not (tmp_path / "trace").exists()


def test_a_loss_without_a_gradient(tmp_path):
    posterior = posterior_of(mlp(), loss=lambda o, t: cross_entropy(o, t).detach())
    with pytest.raises(ValueError, match="per_sample_loss has no gradient with respect to the w"):
        run(posterior, store=tmp_path / "trace")
    assert not (tmp_path / "trace").exists()


def test_numpy_numbers_are_numbers(tmp_path):
    sampler = SGLD(np.float64(1e-2), np.int64(8))
    assert sampler == SGLD(1e-2, 8)
    assert repr(sampler) == "SGLD(step_size=0.01, batch_size=8)"
    trace = run(
        posterior_of(mlp(), n_beta=np.float64(10)), sampler=sampler, store=tmp_path / "trace",
        chains=np.int64(2), draws=np.int32(6), burn_in=np.int64(0), seed=np.int64(0),
    )  # fmt: skip
    np.testing.assert_array_equal(trace.loss, run(posterior_of(mlp())).loss)


# --- divergence ----------------------------------------------------------------------------------


def unstable():
    """eps (nb h + gamma) = 6 with h = 1: weights double at each step, in alternating signs."""
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    data = torch.ones(4, 1), torch.zeros(4, 1)
    return LocalPosterior(model, squared_error, data, n_beta=1.0, localization=1.0)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("settings", [{}, {"burn_in": 7, "thin": 4}, {"burn_in": 500}])
def test_divergence_names_chain_step_and_step_size(tmp_path, stored, settings):
    # |w| grows as 2^t, so w² / 2 passes float32's 3.4e38 near step 64.
    store = tmp_path / "trace" if stored else None
    kwargs = {"sampler": SGLD(3.0), "chains": 3, "draws": 200, "store": store} | settings
    burn_in, thin = settings.get("burn_in", 0), settings.get("thin", 1)
    with pytest.raises(DivergenceError) as first:
        run(unstable(), **kwargs)
    error, trace = first.value, first.value.trace
    assert f"chain {error.chain} diverged at step {error.step} with step_size 3" in str(error)
    assert "lower step_size" in str(error)
    assert 55 < error.step < 70
    assert 0 <= error.chain < 3
    assert trace.attrs["complete"] is False
    kept = max(0, (error.step - 1 - burn_in) // thin)
    assert trace.sizes["draw"] == kept == trace.attrs["draws_done"]
    assert f"the {kept} draws before it are kept" in str(error)
    assert trace.sizes["step"] == error.step
    for name in ("loss", "distance", "sampling_loss"):
        assert np.isfinite(trace[name]).all()
    if not stored:
        return
    for _ in range(2):  # no bogus trace the next time either
        opened = probelib.open_trace(store)
        assert opened.attrs["complete"] is False
        np.testing.assert_array_equal(opened.loss, trace.loss)
        with pytest.raises(DivergenceError) as again:
            run(unstable(), **kwargs)
        assert str(again.value) == str(error)


def test_divergence_between_observed_losses():
    # The observed sample is far larger than those of the posterior: its loss overflows first.
    far = torch.full((1, 1), 1e12), torch.zeros(1, 1)
    with pytest.raises(DivergenceError) as info:
        run(unstable(), far, sampler=SGLD(3.0), draws=100)
    assert info.value.step < 30
    assert info.value.trace.sizes["draw"] == info.value.step - 1


def test_divergence_at_the_last_draw():
    settings = {"sampler": SGLD(3.0), "chains": 1}
    with pytest.raises(DivergenceError) as info:
        run(unstable(), draws=200, **settings)
    step = info.value.step
    with pytest.raises(DivergenceError) as info:
        run(unstable(), draws=step, **settings)
    assert info.value.step == step
    assert info.value.trace.attrs["complete"] is False
    assert run(unstable(), draws=step - 1, **settings).attrs["complete"] is True


def one_that_diverges(chains=3, raises=False):
    """With noise of this size some chains climb over the edge of a well, and others do not."""

    def loss(output, target):
        far = output.abs() > 3.3
        if raises and far.any():
            raise ZeroDivisionError("over the edge")
        return torch.where(far[:, 0], torch.nan, 0.5 * output[:, 0] ** 2)

    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    return LocalPosterior(
        model, loss, (torch.ones(4, 1), torch.zeros(4, 1)), n_beta=1.0, localization=0.1
    )


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("thin", [1, 3])
def test_a_chain_that_diverges_leaves_the_others_alone(tmp_path, stored, thin):
    store = tmp_path / "trace" if stored else None
    settings = {"sampler": SGLD(1.2), "chains": 6, "draws": 120, "thin": thin, "burn_in": 2}
    with pytest.warns(UserWarning, match=r"chain \d diverged at step \d+ with step_size 1.2: its "):
        trace = run(one_that_diverges(), store=store, **settings)
    lost = {int(c): at for c, at in trace.attrs["diverged"].items()}
    assert 0 < len(lost) < 6, "the seed no longer shows the case"
    assert trace.attrs["complete"] is True
    assert trace.sizes["draw"] == 120
    np.testing.assert_array_equal(trace.chain, np.arange(6))
    for chain in range(6):
        at = lost.get(chain, {"draws": 120, "step": 2 + 120 * thin})
        assert np.isfinite(trace.loss[chain, : at["draws"]]).all()
        assert np.isnan(trace.loss[chain, at["draws"] :]).all()
        assert np.isnan(trace.distance[chain, at["draws"] :]).all()
        assert np.isfinite(trace.sampling_loss[chain, : at["step"]]).all()
        assert np.isnan(trace.sampling_loss[chain, at["step"] :]).all()
        assert at["draws"] == max(0, at["step"] - (chain in lost) - 2) // thin
        # A chain alone, where there is nobody to be left alone by.
        if chain not in lost:
            alone = run(one_that_diverges(), first_chain=chain, **settings | {"chains": 1})
            np.testing.assert_allclose(alone.loss[0], trace.loss[chain], rtol=1e-5, atol=1e-6)
    names = ", ".join(map(str, lost))
    with pytest.raises(ValueError, match=r"trace has chain \d, which diverged at step \d+") as info:
        probelib.loss_gain(trace)
    assert f"trace.drop_sel(chain=[{names}])" in str(info.value)
    for estimate in (probelib.loss_kernel, probelib.local_learning_coefficient):
        with pytest.raises(ValueError, match="which diverged"):
            estimate(trace)
    sound = trace.drop_sel(chain=list(lost))
    assert np.isfinite(probelib.loss_gain(sound)).all()
    verdict = probelib.diagnostics(trace)
    assert not verdict["diverged"].good
    assert verdict["diverged"].value == len(lost)
    assert f"{len(lost)} of 6 chains diverged" in str(verdict)
    assert verdict.rhat_max == probelib.diagnostics(sound).rhat_max
    # Up to where they all were sound there is nothing to refuse.
    early = min(at["draws"] for at in lost.values())
    if early >= 2:
        probelib.loss_gain(trace.isel(draw=slice(early)))
    if stored:
        with pytest.warns(UserWarning, match="diverged at step"):
            again = run(one_that_diverges(), store=store, **settings)
        np.testing.assert_array_equal(again.loss, trace.loss)
        assert again.attrs["diverged"] == trace.attrs["diverged"]
        with pytest.warns(UserWarning, match="diverged at step"):
            longer = run(one_that_diverges(), store=store, **settings | {"draws": 150})
        with pytest.warns(UserWarning, match="diverged at step"):
            whole = run(one_that_diverges(), **settings | {"draws": 150})
        np.testing.assert_array_equal(longer.loss, whole.loss)


def test_a_model_that_raises_for_one_chain_leaves_the_others_alone(tmp_path):
    settings = {"sampler": SGLD(1.2), "chains": 6, "draws": 120}
    with pytest.warns(UserWarning, match="diverged at step"):
        quiet = run(one_that_diverges(), **settings)

    class Edge(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            return torch.where(out.abs() > 3.3, torch.inf, out)

    def loss(output, target):
        if not output.isfinite().all():
            raise ZeroDivisionError("over the edge")
        return 0.5 * output[:, 0] ** 2

    model = Edge(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    posterior = LocalPosterior(
        model, loss, (torch.ones(4, 1), torch.zeros(4, 1)), n_beta=1.0, localization=0.1
    )
    with pytest.warns(UserWarning, match="diverged at step"):
        raised = run(posterior, **settings)
    assert set(raised.attrs["diverged"]) == set(quiet.attrs["diverged"])
    np.testing.assert_allclose(raised.loss, quiet.loss, rtol=1e-5, atol=1e-6)


def test_a_diverged_run_keeps_what_a_shorter_one_draws():
    with pytest.raises(DivergenceError) as info:
        run(unstable(), sampler=SGLD(3.0), draws=200)
    sound = run(unstable(), sampler=SGLD(3.0), draws=20)
    np.testing.assert_array_equal(info.value.trace.loss[:, :20], sound.loss)


def test_weights_that_overflow_behind_ordinary_losses():
    # tanh bounds the loss; |w| grows as 2^t, and its square passes 3.4e38 near step 64.
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh())
    posterior = LocalPosterior(
        model, squared_error, (torch.ones(4, 1), torch.zeros(4, 1)), n_beta=1e-6, localization=1.0
    )
    with pytest.raises(DivergenceError, match="loss or its weights are no longer finite") as info:
        run(posterior, sampler=SGLD(6.0), draws=200)
    trace = info.value.trace
    assert trace.attrs["complete"] is False
    assert np.isfinite(trace.distance).all()
    assert trace.sizes["draw"] == info.value.step - 1


@pytest.mark.parametrize("m", [None, 8])
def test_a_model_that_raises_when_it_diverges(tmp_path, m):
    def loss(output, target):  # it checks its logits, and raises where ours gives NaN
        return -torch.distributions.Categorical(logits=output).log_prob(target)

    def diverge(per_sample_loss):
        store = tmp_path / per_sample_loss.__name__
        with pytest.raises(DivergenceError, match=r"chain \d diverged at step \d+ with ") as info:
            run(
                posterior_of(mlp(), loss=per_sample_loss),
                sampler=SGLD(8.0, m),
                draws=500,
                store=store,
            )
        assert probelib.open_trace(store).sizes["draw"] == info.value.trace.sizes["draw"]
        assert np.isfinite(info.value.trace.loss).all()
        return info.value

    theirs, ours = diverge(loss), diverge(cross_entropy)
    assert abs(theirs.step - ours.step) <= 2
    assert abs(theirs.trace.sizes["draw"] - ours.trace.sizes["draw"]) <= 2


def test_another_error_is_passed_on_and_the_draws_before_it_are_kept(
    tmp_path, python_in_every_step, monkeypatch
):
    calls = []

    def loss(output, target):
        calls.append(1)
        if len(calls) == 35:
            raise ZeroDivisionError("mine")
        return cross_entropy(output, target)

    begin = probelib.record.Recorder.run

    def from_here(recorder):
        calls.clear()
        begin(recorder)

    posterior = posterior_of(mlp(), loss=loss)
    monkeypatch.setattr(probelib.record.Recorder, "run", from_here)
    calls += [0] * 1000  # what is looked at before the chains begin does not count
    with pytest.raises(ZeroDivisionError, match="mine"):
        run(posterior, draws=100, store=tmp_path / "trace")
    kept = probelib.open_trace(tmp_path / "trace")
    assert kept.attrs["complete"] is False
    assert kept.sizes["draw"] == (35 - 1) // 2
    np.testing.assert_array_equal(
        kept.loss, run(posterior_of(mlp()), draws=kept.sizes["draw"]).loss
    )


def test_the_bar_shows_rate_loss_and_time_to_go(capsys):
    run(posterior_of(mlp()), progress=True, draws=3)
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "draw/s" in shown


def test_in_a_kernel_the_bar_is_no_error(capsys, monkeypatch):
    notebook = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    run(posterior_of(mlp()), progress=True, draws=3)
    shown = capsys.readouterr()
    assert "3/3" in shown.out
    assert shown.err == ""


class Halved(probelib.GradientEstimator):
    """Half of the gradient of all samples, or of a batch."""

    def __init__(self, batch_size=None):
        self.batch_size = batch_size

    def __call__(self, weights, batch, gradients):
        gradient, loss = gradients.of_batch(weights, batch)
        return gradient / 2, loss


@pytest.mark.parametrize("of_all", [None, 60])
def test_an_estimator_of_somebodys_is_asked_also_for_the_full_gradient(of_all):
    sampler = SGLD(1e-2, gradient=Halved(of_all))
    halved = run(posterior_of(mlp()), sampler=sampler)
    weaker = run(posterior_of(mlp(), n_beta=5.0), sampler=SGLD(1e-2))
    np.testing.assert_allclose(halved.loss, weaker.loss, rtol=1e-5)
