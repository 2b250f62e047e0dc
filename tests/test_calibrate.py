"""Settings that are found: against closed forms, and what is refused."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import probelib
from probelib import CalibrationRefused, LocalPosterior, cross_entropy, squared_error
from probelib.calibration import search
from probelib.calibration.curvature import largest_curvature
from probelib.calibration.localization import choose_localization

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:the settings that calibrate found"),
]


def regression(n=120, d=5, seed=0, **changed):
    """Linear regression at its least squares, with unlike curvatures; and its Hessian."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * np.geomspace(0.5, 2, d)
    y = x @ rng.normal(size=d) + 0.5 * rng.normal(size=n)
    w = np.linalg.lstsq(x, y, rcond=None)[0]
    model = nn.Linear(d, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(w)[None])
    data = torch.from_numpy(x), torch.from_numpy(y)[:, None]
    given = {"n_beta": 50.0, "localization": 5.0} | changed
    return LocalPosterior(model, squared_error, data, **given), x.T @ x / n


def exact_llc(posterior, hessian):
    """lambda = (nb / 2) tr(H S), S = (nb H + gamma)^-1 (design, section 2)."""
    d = len(hessian)
    s = np.linalg.inv(posterior.n_beta * hessian + posterior.localization * np.eye(d))
    return posterior.n_beta / 2 * np.trace(hessian @ s)


# --- what settings follow from -------------------------------------------------------------------


def test_the_largest_curvature_of_a_quadratic_is_its_largest_eigenvalue():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    values = np.linspace(0.1, 3, 30)
    values[-1] = 5.0
    matrix = torch.from_numpy(basis * values @ basis.T)
    found = largest_curvature(lambda w: matrix @ w, torch.ones(30).double(), 0.3, seed=0)
    assert found == pytest.approx(5.0, rel=0.03)
    sunk = largest_curvature(lambda w: -matrix @ w, torch.ones(30).double(), 0.3, seed=0)
    assert sunk == pytest.approx(5.0, rel=0.03)  # its size: a step notices either
    assert largest_curvature(torch.zeros_like, torch.ones(30), 0.3, seed=0) == 0
    assert largest_curvature(lambda w: w * torch.nan, torch.ones(30), 0.3, seed=0) == math.inf


@pytest.mark.parametrize("kept", [0.5, 0.9, 0.99])
def test_the_localization_keeps_what_was_asked_for(kept):
    # Of a quadratic the Gaussian adds tr H / (2 gamma) to the loss.
    posterior, hessian = regression(localization=None)
    x, y = posterior.data.batch(slice(0, posterior.n_samples))
    trained = float(posterior.mean_loss(posterior.center))
    guess = float(((y - y.mean()) ** 2 / 2).mean())
    best, *others = choose_localization(posterior, (x, y), guess, kept, seed=0)
    for one in (best, *others):
        exact = 1 - np.trace(hessian) / (2 * one.localization) / (guess - trained)
        assert abs(one.share - exact) <= 6 * one.error + 1e-9
    assert best.share - 2 * best.error >= kept
    smaller = max(o.localization for o in others if o.localization < best.localization)
    assert best.localization / smaller < 4  # the grid's next
    [below] = [o for o in others if o.localization == smaller]
    assert below.share - 2 * below.error < kept


@given(st.floats(1e-12, 1e12))
def test_a_step_is_rounded_down_to_two_digits(value):
    found = search._two_digits(value)
    assert value / 1.1 <= found * (1 + 1e-9)
    assert found <= value * (1 + 1e-8)
    assert float(f"{found:.1e}") == found


@settings(max_examples=20, deadline=None)
@given(st.floats(1.0, 200.0), st.integers(1, 30))
def test_thinned_draws_of_a_series_of_order_one(tau, thin):
    rho = (tau - 1) / (tau + 1)
    exact = 1 + 2 * sum(rho ** (thin * k) for k in range(1, 20_000))
    assert search._thinned(tau, thin) == pytest.approx(exact, rel=1e-6)


# --- the whole -----------------------------------------------------------------------------------


@pytest.mark.parametrize("localization", [5.0, None])
def test_a_regression_is_sampled_right_without_a_setting(localization):
    posterior, hessian = regression(localization=localization)
    found = probelib.calibrate(posterior, error=0.02)
    assert posterior.is_localized == (localization is not None)  # the caller's own is as it was
    largest = (
        found.posterior.n_beta * np.linalg.eigvalsh(hessian)[-1] + found.posterior.localization
    )
    assert 0.5 < found.sampler.step_size * largest <= 1.05
    assert found.burn_in >= 4 * 2 / (found.sampler.step_size * found.posterior.localization)
    trace = probelib.sample(found.posterior, **found.settings, progress=False)
    llc = probelib.local_learning_coefficient(trace)
    assert llc.value == pytest.approx(exact_llc(found.posterior, hessian), rel=0.08)
    assert 0.01 < llc.mcse / llc.value < 0.03  # the error that was asked for
    assert probelib.diagnostics(trace).good
    text = str(found)
    for name, value in found.settings.items():
        assert f"{name}={value!r}" in text
    assert all(one.sentence in text for one in found.evidence)
    assert found["draws"].value == found.draws
    # The directions that data hold are tr(nb H S), twice the LLC of a quadratic.
    held = 2 * exact_llc(found.posterior, hessian)
    assert found["tilt"].value == pytest.approx(held, rel=0.2)
    assert found["mixed"].value < 1.1
    with pytest.raises(KeyError, match="choose one of 'trained'"):
        found["nothing"]


def test_a_minibatch_is_as_large_as_its_noise_asks_for(monkeypatch):
    # Were a call to cost nothing, small minibatches would always be the cheapest.
    posterior, hessian = regression(n=1000, n_beta=50.0, localization=100.0)
    monkeypatch.setattr(search, "_FLOPS_A_STEP", 0.0)
    monkeypatch.setattr(search, "_FLOPS_A_WEIGHT", 10.0)
    found = probelib.calibrate(posterior, error=0.05)
    assert found.sampler.batch_size is not None
    assert 0 < found["gradient_noise"].value <= found.step_bias <= 0.05
    trace = probelib.sample(found.posterior, **found.settings, progress=False)
    llc = probelib.local_learning_coefficient(trace)
    assert llc.value == pytest.approx(exact_llc(posterior, hessian), rel=0.05 + 4 * 0.05)


def test_the_same_call_finds_the_same():
    posterior, _ = regression()
    first, second = (probelib.calibrate(posterior, error=0.1, seed=3) for _ in range(2))
    assert first.settings == second.settings
    assert first.evidence == second.evidence


def test_more_draws_for_a_smaller_error():
    posterior, _ = regression()
    few, many = (probelib.calibrate(posterior, error=e) for e in (0.04, 0.01))
    assert 8 < many.draws * many.thin / (few.draws * few.thin) < 32 or few.draws * 4 >= 400


def test_a_step_within_which_l_bends_is_made_shorter(monkeypatch):
    monkeypatch.setattr(search, "_STABLE", 3.0)
    model, data = classifier()
    model.double()
    data = data[0].double(), data[1]
    posterior = LocalPosterior(model, cross_entropy, data, n_beta=90.0, localization=1.0)
    found = probelib.calibrate(posterior, error=0.2)
    assert found["bending"].value < 0.6
    assert f"step_size {found.sampler.step_size:g} after all" in str(found)
    assert found["relaxation"].value == pytest.approx(2 / found.sampler.step_size)
    assert len({one.name for one in found.evidence}) == len(found.evidence)


# --- refusals ------------------------------------------------------------------------------------


def classifier(trained=200, seed=0):
    torch.manual_seed(seed)
    x, y = torch.randn(90, 3), torch.arange(90) % 3
    x = x + 2 * torch.eye(3)[y]
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(trained):
        optimizer.zero_grad()
        cross_entropy(model(x), y).mean().backward()
        optimizer.step()
    return model, (x, y)


def test_a_network_that_knows_nothing_is_refused():
    model, data = classifier(trained=0)
    with torch.no_grad():
        model[2].weight.mul_(3)  # worse than a guess
    posterior = LocalPosterior(model, cross_entropy, data, n_beta=10.0)
    with pytest.raises(CalibrationRefused, match="train the model first") as refused:
        probelib.calibrate(posterior)
    assert refused.value.evidence[0].name == "trained"


def test_a_network_that_is_in_no_minimum_is_refused():
    model, data = classifier(trained=5)
    posterior = LocalPosterior(model, cross_entropy, data, n_beta=2000.0, localization=100.0)
    with pytest.raises(CalibrationRefused, match=r"w\* is no minimum of L.*train the model"):
        probelib.calibrate(posterior)


def test_a_run_that_would_never_end_is_refused():
    posterior, _ = regression(n_beta=1e6, localization=1.0)
    with pytest.raises(CalibrationRefused, match=r"max_steps is 200000, but burn-in .* raise"):
        probelib.calibrate(posterior)
    posterior, _ = regression()
    with pytest.raises(CalibrationRefused, match=r"max_steps is 1000, but a relative error"):
        probelib.calibrate(posterior, error=1e-3, max_steps=1000)


class Basins(nn.Module):
    """A weight with two basins, at 0.5 and at -0.5; samples differ in which they like."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.full((1,), 0.5, dtype=torch.float64))

    def forward(self, x):
        return self.w.expand(len(x), 1)


def test_chains_that_hardly_ever_cross_are_refused():
    def loss(w, liked):
        return (16 * (w.square() - 0.25).square() + liked * w).sum(-1)

    likes = torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64).T
    posterior = LocalPosterior(Basins(), loss, (likes, likes), n_beta=5.0, localization=2.0)
    with pytest.raises(CalibrationRefused, match=r"chains from the same w\* still differ.*raise"):
        probelib.calibrate(posterior, max_steps=8000)


def test_a_loss_that_nobody_can_guess_needs_a_localization():
    def bare(output, target):  # falls without end as the output grows
        return -(output * target).sum(-1)

    x = torch.randn(20, 2)
    posterior = LocalPosterior(nn.Linear(2, 1), bare, (x, torch.ones(20, 1)), n_beta=1.0)
    with pytest.raises(CalibrationRefused, match="give a localization"):
        probelib.calibrate(posterior)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"error": 0}, "error is 0; it must be a positive"),
        ({"error": 2.0}, r"error is 2\.0; it is a part of a whole"),
        ({"kept": 1.0}, r"kept is 1\.0; it is a part"),
        ({"chains": 0}, "chains is 0"),
        ({"max_steps": 10}, "max_steps is 10; it must be a whole number, 300 or more"),
    ],
)
def test_arguments_are_checked(wrong, message):
    posterior, _ = regression()
    with pytest.raises(ValueError, match=message):
        probelib.calibrate(posterior, **wrong)


def test_a_posterior_in_train_mode_is_refused():
    posterior, _ = regression(train_mode=True)
    with pytest.raises(ValueError, match="train mode"):
        probelib.calibrate(posterior)


# --- sample without a setting --------------------------------------------------------------------


def forbidden(*args, **kwargs):
    raise AssertionError("calibrated again")


def test_sample_without_a_sampler_finds_its_settings():
    posterior, hessian = regression(localization=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing speaks against it
        trace = probelib.sample(posterior, progress=False)
    kept, config = trace.attrs["calibration"], trace.attrs["config"]
    for name in ("localization", "step_size", "batch_size", "draws", "burn_in", "thin"):
        assert kept[name] == config[name]
    assert config["sampler"] == "LeimkuhlerMatthews"
    llc = probelib.local_learning_coefficient(trace)
    exact = exact_llc(posterior.at(localization=kept["localization"]), hessian)
    assert llc.value == pytest.approx(exact, rel=0.04)
    assert all({"name", "value", "sentence"} == set(one) for one in kept["evidence"])


def test_settings_that_are_given_count():
    posterior, _ = regression(localization=None)
    trace = probelib.sample(posterior, draws=120, thin=3, chains=3, progress=False)
    config = trace.attrs["config"]
    assert (config["draws"], config["thin"], config["chains"]) == (120, 3, 3)
    assert config["burn_in"] == trace.attrs["calibration"]["burn_in"] > 0


@pytest.mark.parametrize("where", ["store", "cache"])
def test_settings_are_found_again_with_the_trace(where, tmp_path, monkeypatch):
    posterior, _ = regression(localization=None)
    place = {where: tmp_path / "place"}
    first = probelib.sample(posterior, draws=40, progress=False, **place)
    with monkeypatch.context() as patched:
        patched.setattr("probelib.calibration.kept.calibrate", forbidden)
        again = probelib.sample(posterior, draws=40, progress=False, **place)
        more = probelib.sample(posterior, draws=60, progress=False, **place)
        np.testing.assert_array_equal(again.loss, first.loss)
        np.testing.assert_array_equal(more.loss[:, :40], first.loss)
        if where == "cache":  # other data: nothing of the old is served
            with pytest.raises(AssertionError, match="calibrated again"):
                probelib.sample(regression(seed=1, localization=None)[0], draws=40, **place)
    if where == "store":
        with pytest.raises(probelib.TraceMismatch):
            probelib.sample(regression(seed=1)[0], draws=40, progress=False, **place)


def test_a_loss_that_looks_something_up_is_calibrated_anew(tmp_path, monkeypatch):
    scale = {"by": 1.0}

    def scaled(output, target):
        return scale["by"] * squared_error(output, target)

    base, _ = regression()
    data = base.data.batch(slice(0, base.n_samples))
    posterior = LocalPosterior(base.model, scaled, data, n_beta=50.0)
    probelib.sample(posterior, draws=40, progress=False, cache=tmp_path)
    scale["by"] = 3.0
    monkeypatch.setattr("probelib.calibration.kept.calibrate", forbidden)
    with pytest.raises(AssertionError, match="calibrated again"):
        probelib.sample(posterior, draws=40, progress=False, cache=tmp_path)


def test_doubts_about_a_trace_are_said():
    posterior, _ = regression()
    with pytest.warns(UserWarning, match=r"gave a trace that is \w+: .*take more draws"):
        probelib.sample(posterior, draws=30, progress=False)


def test_a_posterior_without_localization_is_for_calibrate_alone():
    posterior, _ = regression(localization=None)
    message = r"posterior has localization None, .* probelib\.calibrate\(posterior\)\.posterior"
    with pytest.raises(ValueError, match=message):
        probelib.sample(posterior, sampler=probelib.SGLD(1e-3), draws=2, progress=False)
    with pytest.raises(ValueError, match=message):
        probelib.importance_sample(posterior, 10, progress=False)
    with pytest.raises(ValueError, match=message):
        probelib.gradient_pairs(posterior, posterior.data.batch(slice(0, 5)))


def test_the_same_posterior_at_other_settings():
    posterior, _ = regression()
    other = posterior.at(n_beta=7.0)
    assert (other.n_beta, other.localization) == (7.0, posterior.localization)
    assert (posterior.n_beta, posterior.localization) == (50.0, 5.0)
    assert posterior.at(localization=9).localization == 9.0
    same = posterior.at()
    assert same.fingerprint() == posterior.fingerprint()
    fresh, _ = regression(n_beta=7.0, localization=9.0)
    assert posterior.at(n_beta=7, localization=9).fingerprint() == fresh.fingerprint()
    with pytest.raises(ValueError, match="n_beta is 0"):
        posterior.at(n_beta=0)
