"""What every sampler must do: its exact law on a Gaussian; init, step and identity.

A new sampler is a line in SAMPLERS.
"""

import dataclasses
import json
import textwrap
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import probelib
from probelib import (
    BAOAB,
    HMC,
    MALA,
    SGLD,
    ControlVariate,
    CorrectedRMSpropSGLD,
    ExponentialEuler,
    LeimkuhlerMatthews,
    LocalPosterior,
    RMSpropSGLD,
    Sampler,
    TraceMismatch,
    cross_entropy,
    squared_error,
)
from probelib.chains import Chains
from probelib.data import Samples
from probelib.fingerprint import describe
from probelib.samplers import Target

pytestmark = pytest.mark.usefixtures("one_thread")


def sgld_law(sampler, a, localization):
    return 1 / (a * (1 - sampler.step_size * a / 4))


def exact_law(sampler, a, localization):
    return 1 / a


def exponential_law(sampler, a, localization):
    long = 2 * (1 - np.exp(-localization * sampler.step_size / 2)) / localization
    return (1 - long * localization / 4) / (a * (1 - long * a / 4))


def rmsprop_law(sampler, a, localization):
    """SGLD's law at the step that a weight has once its running mean has settled.

    A fixed point: V = E U'² = a² Var(w), and Var(w) is SGLD's at the step eps sqrt(gamma / V). The
    running mean moves with w², which biases the variance by about (1 - decay) r² / (1 - r²),
    r = 1 - eps G a / 2: here by less than 0.3 %.
    """
    v = a
    for _ in range(200):
        scale = np.sqrt(localization / v)
        v = a / (1 - sampler.step_size * scale * a / 4)
    return v / a**2


SAMPLERS = {
    # A sampler, its variance on a quadratic of precision a when it is stationary, and the steps
    # that it takes to be so.
    "sgld": (SGLD(0.12), sgld_law, 200),
    "leimkuhler-matthews": (LeimkuhlerMatthews(0.12), exact_law, 200),
    "baoab": (BAOAB(0.12, friction=1.0), exact_law, 200),
    "exponential-euler": (ExponentialEuler(0.15), exponential_law, 200),
    "hmc": (HMC(0.05, leapfrog_steps=4), exact_law, 60),
    "mala": (MALA(0.03), exact_law, 400),
    "corrected-rmsprop": (CorrectedRMSpropSGLD(0.3, decay=0.999), rmsprop_law, 5000),
    "rmsprop": (RMSpropSGLD(0.3, decay=0.999), rmsprop_law, 5000),
}


def test_every_sampler_of_the_library_is_tested():
    exported = {getattr(probelib, name) for name in probelib.__all__}
    kinds = {k for k in exported if isinstance(k, type) and issubclass(k, Sampler)} - {Sampler}
    assert {type(sampler) for sampler, *_ in SAMPLERS.values()} == kinds


minibatch_sampler = pytest.mark.parametrize(
    "sampler",
    [pytest.param(s, id=k) for k, (s, *_) in SAMPLERS.items() if not isinstance(s, HMC | MALA)],
)
every_sampler = pytest.mark.parametrize("sampler", [s for s, *_ in SAMPLERS.values()], ids=SAMPLERS)


class Quadratic:
    """The gradient of scale * 0.15 |w|², as a step is given one."""

    def __init__(self, scale=1.0):
        self.scale = scale

    def __call__(self, weights):
        return self.scale * 0.3 * weights

    def with_loss(self, weights):
        return self(weights), self.scale * 0.15 * weights.square().sum(1)


class Weights(nn.Module):
    """f(x) = x * w, one weight a dimension, w* = 0: curvatures without correlations."""

    def __init__(self, d):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(d))

    def forward(self, x):
        return x * self.w


@pytest.mark.parametrize(("sampler", "law", "burn_in"), SAMPLERS.values(), ids=SAMPLERS)
def test_stationary_variance_on_a_gaussian(sampler, law, burn_in):
    # Six precisions from 2, the localization alone, to 20; 16 chains of 8 weights each are 128
    # independent series of w² a precision, whose spread gives a standard error of their mean. A
    # t-test with 127 degrees of freedom passes 6 with probability 2e-8.
    n_beta, localization, copies, chains, draws = 4.0, 2.0, 8, 16, 400
    precision = np.geomspace(2, 20, 6)
    a = precision.repeat(copies)
    d = len(a)
    h = (a - localization) / n_beta
    x = torch.diag(torch.from_numpy(np.sqrt(d * h)).float())  # H = x'x / d = diag(h)
    posterior = LocalPosterior(
        Weights(d), squared_error, (x, torch.zeros(d, d)), n_beta=n_beta, localization=localization
    )
    trace = probelib.sample(
        posterior, observe=(torch.eye(d), torch.zeros(d, d)), sampler=sampler,
        chains=chains, draws=draws, burn_in=burn_in, thin=4, progress=False,
    )  # fmt: skip
    squares = 2 * trace.loss.values.astype(np.float64).mean(1)  # (chains, d)
    series = squares.reshape(chains, 6, copies).transpose(1, 0, 2).reshape(6, -1)
    error = series.std(1, ddof=1) / np.sqrt(series.shape[1])
    exact = law(sampler, precision, localization)
    np.testing.assert_array_less(np.abs(series.mean(1) - exact) / error, 6)
    assert (error / exact).max() < 0.025  # a variance off by a sixth is seen


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))


def toy(n=40, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=rng), torch.randint(0, 4, (n,), generator=rng)


def posterior_of(data=None):
    return LocalPosterior(mlp(), cross_entropy, data or toy(), n_beta=10.0, localization=5.0)


def run(sampler, data=None, **kwargs):
    settings = {"chains": 2, "draws": 60, "progress": False} | kwargs
    return probelib.sample(posterior_of(data), sampler=sampler, **settings)


def small(sampler):
    """The same sampler with a step and minibatches, where it takes them, for the small network."""
    if isinstance(sampler, HMC | MALA):
        return dataclasses.replace(sampler, step_size=1e-2)
    return dataclasses.replace(sampler, step_size=1e-2, batch_size=8, gradient=None)


def assert_same(a, b):
    for name in a.variables:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@every_sampler
def test_an_interrupted_run_goes_on_bit_for_bit(sampler, tmp_path, monkeypatch):
    sampler = small(sampler)
    whole, advance = run(sampler, draws=130), Chains.advance

    def interrupted(self):
        if self.step == 77:
            raise KeyboardInterrupt
        return advance(self)

    with monkeypatch.context() as patched:
        patched.setattr(Chains, "advance", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(sampler, draws=130, store=tmp_path / "trace")
    assert probelib.open_trace(tmp_path / "trace").sizes["draw"] == 77
    assert_same(run(sampler, draws=130, store=tmp_path / "trace"), whole)
    run(sampler, draws=40, store=tmp_path / "longer")
    assert_same(run(sampler, draws=130, store=tmp_path / "longer"), whole)


@every_sampler
def test_a_step_leaves_the_old_state_and_all_of_the_new_belongs_to_a_chain(sampler):
    torch.manual_seed(0)
    weights, center = torch.randn(3, 7), torch.randn(7)
    state = sampler.init(weights.clone())
    target = Target(center, 4.0, 2.0)
    for _ in range(3):
        before = {name: tensor.clone() for name, tensor in state.items()}
        new = sampler.step(state, Quadratic(), lambda: torch.randn(3, 7), target)
        assert set(new) == set(state)
        for name in state:
            assert torch.equal(state[name], before[name])
            assert len(new[name]) == 3
        state = new
    assert state["weights"].shape == weights.shape


@every_sampler
def test_scaling_the_loss_against_n_beta_changes_no_step(sampler):
    torch.manual_seed(0)
    weights, center = torch.randn(3, 7).double(), torch.randn(7).double()
    normals = torch.randn(5, 3, 7).double()

    def steps(scale):
        state = sampler.init(weights)
        for xi in normals:
            target = Target(center, 4.0 / scale, 2.0)
            state = sampler.step(state, Quadratic(scale), lambda: xi, target)  # noqa: B023
        return state["weights"]

    torch.testing.assert_close(steps(8.0), steps(1.0))


@every_sampler
def test_the_identity_is_plain_and_names_every_setting(sampler, tmp_path):
    identity = sampler.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert identity["name"] == type(sampler).__name__
    settings = {f.name for f in dataclasses.fields(sampler)} - {"batch_size"}
    assert settings <= set(identity)
    sampler = small(sampler)
    config = run(sampler, draws=2, store=tmp_path / "trace").attrs["config"]
    assert config["sampler"] == type(sampler).__name__
    assert (config["step_size"], config["batch_size"]) == (1e-2, sampler.batch_size)
    assert config["gradients_per_step"] == getattr(sampler, "gradients_per_step", 1)
    other = dataclasses.replace(sampler, step_size=2e-2)
    with pytest.raises(TraceMismatch, match=r"sampler\.step_size is 0\.01 there and 0\.02 here"):
        run(other, draws=2, store=tmp_path / "trace")


@minibatch_sampler
def test_a_control_variate_is_for_every_sampler(sampler):
    sampler = dataclasses.replace(
        sampler, step_size=1e-2, batch_size=None, gradient=ControlVariate(8)
    )
    together = run(sampler, draws=20)
    assert together.attrs["config"]["gradient"] == "ControlVariate"
    assert np.isfinite(together.loss).all()
    assert (together.loss.values != run(small(sampler), draws=20).loss.values).any()


@every_sampler
def test_thin_auto_changes_no_draw(sampler):
    sampler = small(sampler)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "burn_in is short")
        chosen = run(sampler, thin="auto", burn_in=100, draws=10)
    by_hand = run(sampler, thin=chosen.attrs["config"]["thin"], burn_in=100, draws=10)
    assert_same(chosen, by_hand)


@pytest.mark.parametrize("decay", [0, 1, -0.5, 1.5, float("nan"), None, "0.9", True])
def test_a_decay_lies_between_0_and_1(decay):
    with pytest.raises(
        ValueError, match=r"decay is .*; it must lie between 0 and 1, as 0\.999 does"
    ):
        RMSpropSGLD(1e-2, decay=decay)


# --- samplers of somebody's own ------------------------------------------------------------------


class Momentum(Sampler):
    """A sampler with a state of its own, and two gradients and two normals a step."""

    def init(self, weights):
        return {"weights": weights, "momentum": torch.zeros_like(weights)}

    def step(self, state, gradient, noise, target):
        w, p = state["weights"], state["momentum"]
        p = 0.9 * p - self.step_size / 4 * target.drift(w, gradient(w)) + 0.01 * noise()
        w = w + p
        p = p - self.step_size / 4 * target.drift(w, gradient(w)) + 0.01 * noise()
        return {"weights": w, "momentum": p}


class Slower(SGLD):
    """SGLD's settings with a step of its own."""

    def step(self, state, gradient, noise, target):
        new = super().step(state, gradient, noise, target)
        return {"weights": (state["weights"] + new["weights"]) / 2}


def test_a_state_of_ones_own_resumes_bit_for_bit(tmp_path, monkeypatch):
    sampler = Momentum(1e-2, 8)
    whole = run(sampler, draws=130)
    store = tmp_path / "trace"
    run(sampler, draws=70, store=store)
    assert_same(run(sampler, draws=130, store=store), whole)
    for chain in range(2):  # a chain's numbers are its own, whatever is drawn in a step
        alone = run(sampler, draws=130, chains=1, first_chain=chain)
        np.testing.assert_allclose(alone.loss[0], whole.loss[chain], rtol=1e-3, atol=1e-5)


def test_a_step_that_failed_is_taken_again_with_the_same_numbers():
    calls = []

    class Failing(Momentum):
        def step(self, state, gradient, noise, target):
            def failing(weights):
                calls.append(1)
                if len(calls) == 42:  # the second gradient of a step, after a normal was drawn
                    raise ZeroDivisionError
                return gradient(weights)

            return super().step(state, failing, noise, target)

    plan = probelib.plan.Plan(chains=2, draws=40)
    chains = Chains(probelib.plan.Run.of(posterior_of(), None, Failing(1e-2, 8), plan))
    whole = Chains(probelib.plan.Run.of(posterior_of(), None, Momentum(1e-2, 8), plan))
    for _ in range(40):
        try:
            chains.advance()
        except ZeroDivisionError:
            assert chains.step == 20
            chains.advance()
        whole.advance()
    assert len(calls) > 80
    assert torch.equal(chains.weights, whole.weights)


def test_another_step_is_another_trace(tmp_path):
    plain = run(SGLD(1e-2, 8), cache=tmp_path)
    slower = run(Slower(1e-2, 8), cache=tmp_path)
    assert (slower.loss.values != plain.loss.values).any()
    assert len(list(tmp_path.glob("*.zarr"))) == 2

    def sampler(code):
        space = {"Sampler": Sampler, "SGLD": SGLD}
        exec(textwrap.dedent(code), space)
        return space["Mine"](1e-2, 8)

    # The same name and settings; no source to be found; a base and a helper method that differ.
    template = """
        class Base(SGLD):
            def factor(self):
                return {}
        class Mine(Base):
            def step(self, state, gradient, noise, target):
                new = super().step(state, gradient, noise, target)
                return {{k: state[k] + self.factor() * (new[k] - state[k]) for k in new}}
        """
    for factor in (1.0, 0.5):
        run(sampler(template.format(factor)), cache=tmp_path)
    assert len(list(tmp_path.glob("*.zarr"))) == 4
    again = run(sampler(template.format(0.5)), cache=tmp_path)
    np.testing.assert_array_equal(again.loss, run(sampler(template.format(0.5))).loss)
    assert len(list(tmp_path.glob("*.zarr"))) == 4


def test_a_method_that_was_replaced_is_another_trace(tmp_path, monkeypatch):
    run(SGLD(1e-2, 8), store=tmp_path / "trace")
    monkeypatch.setattr(SGLD, "step", Slower.step)
    with pytest.raises(TraceMismatch, match="sampler_code is "):
        run(SGLD(1e-2, 8), store=tmp_path / "trace")


class Counting(SGLD):
    """Keeps on itself what belongs into the state."""

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "count", 0)

    def step(self, state, gradient, noise, target):
        object.__setattr__(self, "count", self.count + 1)
        return super().step(state, gradient, noise, target)


class CountingInState(SGLD):
    """A schedule kept in the state: the step size falls after 150 steps."""

    def init(self, weights):
        return {"weights": weights, "count": torch.zeros(len(weights), dtype=torch.int64)}

    def step(self, state, gradient, noise, target):
        slow = dataclasses.replace(self, step_size=self.step_size / 4)
        sampler = self if int(state["count"][0]) < 150 else slow
        new = SGLD.step(sampler, state, gradient, noise, target)
        return new | {"count": state["count"] + 1}


def test_what_changes_along_a_chain_belongs_into_the_state(tmp_path):
    mine = Counting(1e-2, 8)
    with pytest.raises(ValueError, match=r"sampler .Counting. changes an attribute .* keep what"):
        run(mine)
    assert mine.count == 0  # the caller's own was not touched
    sampler = CountingInState(1e-2, 8)
    # A rehearsal takes 100 steps of its own, which are none of the run's.
    with pytest.warns(UserWarning, match="burn_in is short"):
        chosen = run(sampler, thin="auto", burn_in=100, draws=60)
    thin = chosen.attrs["config"]["thin"]
    assert_same(chosen, run(sampler, thin=thin, burn_in=100, draws=60))
    run(sampler, thin=thin, burn_in=100, draws=20, store=tmp_path / "trace")
    assert_same(run(sampler, thin=thin, burn_in=100, draws=60, store=tmp_path / "trace"), chosen)


class Forgetful(SGLD):
    """An identity that leaves a setting out."""

    def identity(self):
        return {"name": "Forgetful"}


def test_a_setting_that_an_identity_leaves_out_is_seen(tmp_path):
    run(Forgetful(1e-2, 8), store=tmp_path / "trace")
    with pytest.raises(TraceMismatch, match="sampler_code is "):
        run(Forgetful(2e-2, 8), store=tmp_path / "trace")


@dataclasses.dataclass(frozen=True, repr=False)
class Namesakes(SGLD):
    """Settings with the names of the posterior's."""

    n_beta: float = 5.0
    beta: tuple = (0.9, 0.999)
    chains: str = "many"


def test_what_a_sampler_calls_its_own_never_hides_what_the_run_was():
    plain, trace = run(SGLD(1e-2, 8)), run(Namesakes(1e-2, 8))
    np.testing.assert_array_equal(trace.loss, plain.loss)
    changed = {k for k, v in plain.attrs["config"].items() if trace.attrs["config"][k] != v}
    assert changed == {"sampler"}
    estimate = probelib.local_learning_coefficient
    assert estimate(trace).value == estimate(plain).value
    assert trace.attrs["fingerprint"]["sampler"]["n_beta"] == 5.0


def test_the_verdict_on_a_step_is_that_of_its_sampler():
    wide = {"chains": 4, "draws": 300, "burn_in": 100}
    steps = {
        sampler: probelib.diagnostics(run(sampler, **wide))
        for sampler in (SGLD(0.3, 8), LeimkuhlerMatthews(0.3, 8), Slower(0.3, 8))
    }
    sgld, lm, slower = steps.values()
    for verdict in (sgld, lm):  # minibatches of 8 at so long a step
        assert not verdict["step"].good
        assert "too long for the noise of the minibatches; try 0.0" in verdict["step"].sentence
    assert lm["spread"].limit == slower["spread"].limit == pytest.approx(1.1)
    assert sgld["spread"].limit == pytest.approx(1.1 / (1 - 0.3 * 5 / 4))  # gamma is 5
    with pytest.raises(KeyError):  # nothing is known of its law
        slower["step"]


def plain_class(code, name):
    space = {"SGLD": SGLD, "torch": torch, "__name__": "elsewhere"}
    exec(textwrap.dedent(code), space)
    return space[name]


@pytest.mark.parametrize("slots", ["", "__slots__ = ()"])
def test_the_code_of_an_object_without_attributes_is_seen(tmp_path, slots):
    template = """
        class Mine:
            {}
            def init(self, weights):
                return {{"weights": weights}}
            def step(self, state, gradient, noise, target):
                return SGLD({}).step(state, gradient, noise, target)
            def identity(self):
                return {{"name": "Mine", "betas": (0.9, 0.99)}}
        """
    for step in (1e-3, 1e-2):
        sampler = plain_class(template.format(slots, step), "Mine")()
        trace = run(sampler, cache=tmp_path)
        np.testing.assert_array_equal(trace.loss, run(SGLD(step)).loss)
    assert_same(run(sampler, cache=tmp_path), trace)
    assert len(list(tmp_path.glob("*.zarr"))) == 2


def test_the_code_of_a_loss_without_attributes_is_seen():
    template = "class Loss:\n    def __call__(self, output, target):\n        return {} * output"
    one, two = (describe(plain_class(template.format(k), "Loss")()) for k in (1, 2))
    assert one != two
    assert one == describe(plain_class(template.format(1), "Loss")())


class InPlace(SGLD):
    def step(self, state, gradient, noise, target):
        return super().step(state, gradient, lambda: noise().mul_(1.0), target)


class StateInPlace(SGLD):
    def step(self, state, gradient, noise, target):
        state["weights"].mul_(1.0)
        return super().step(state, gradient, noise, target)


class Growing(SGLD):
    def step(self, state, gradient, noise, target):
        new = super().step(state, gradient, noise, target)
        return new | {"extra": new["weights"]}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (InPlace, r"sampler .InPlace. changed noise in place, .*; return new tensors"),
        (StateInPlace, r"sampler .StateInPlace. changed weights in place"),
        (Growing, r"holds extra, weights, but the one before weights; give init"),
    ],
)
def test_what_no_retry_or_checkpoint_could_bear_is_refused(kind, message):
    with pytest.raises(ValueError, match=message):
        run(kind(1e-2, 8))


class Twins(SGLD):
    """Two names for one tensor."""

    def init(self, weights):
        return {"weights": weights, "same": weights}

    def step(self, state, gradient, noise, target):
        new = super().step(state, gradient, noise, target)
        return new | {"same": new["weights"]}


def test_a_state_may_share_memory(tmp_path):
    run(Twins(1e-2, 8), draws=20, store=tmp_path / "trace")
    assert_same(run(Twins(1e-2, 8), store=tmp_path / "trace"), run(Twins(1e-2, 8)))


def test_a_control_variate_with_dropout_is_the_runs_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5), nn.Linear(5, 4))
    posterior = LocalPosterior(
        model, cross_entropy, toy(), n_beta=10.0, localization=5.0, train_mode=True
    )
    settings = {"chains": 2, "draws": 10, "progress": False}
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        sampler = SGLD(1e-2, gradient=ControlVariate(8))
        losses.append(probelib.sample(posterior, sampler=sampler, **settings).loss)
        assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(*losses)


class Duck:
    """A sampler without the base class."""

    batch_size = 8

    def init(self, weights):
        return {"weights": weights}

    def step(self, state, gradient, noise, target):
        return SGLD(1e-2).step(state, gradient, noise, target)

    def identity(self):
        return {"name": "Duck", "step": 1e-2}


def test_anything_with_the_three_methods_is_a_sampler(tmp_path):
    trace = run(Duck(), store=tmp_path / "trace")
    np.testing.assert_array_equal(trace.loss, run(SGLD(1e-2, 8)).loss)
    assert trace.attrs["config"]["sampler"] == "Duck"
    assert_same(run(Duck(), store=tmp_path / "trace"), trace)


@pytest.mark.parametrize("sampler", ["sgld", SGLD, object(), {"step_size": 1e-2}])
def test_what_is_no_sampler_is_refused(sampler):
    with pytest.raises(TypeError, match=r"sampler is .*; give a sampler, such as probelib\.SGLD"):
        run(sampler)


@pytest.mark.parametrize(
    ("returns", "message"),
    [
        (lambda s: None, "the state that sampler returned is a NoneType without a tensor"),
        (lambda s: {"w": s["weights"]}, "without a tensor 'weights'"),
        (lambda s: {"weights": s["weights"][:1]}, r"has \(1, 44\) as 'weights'; its first dim"),
        (lambda s: {"weights": s["weights"][:, :3]}, r"weights of shape \(2, 3\) and type"),
        (lambda s: {"weights": s["weights"].double()}, "and type torch.float64; keep"),
        (lambda s: s | {"mean": 3.0}, "has float as 'mean'; its first dimension must count the 2"),
        (lambda s: s | {"mean": torch.zeros(5)}, r"has \(5,\) as 'mean'"),
    ],
)  # fmt: skip
def test_a_state_that_is_none_is_refused(returns, message):
    class Wrong(SGLD):
        def step(self, state, gradient, noise, target):
            return returns(super().step(state, gradient, noise, target))

    with pytest.raises((TypeError, ValueError), match=message):
        run(Wrong(1e-2, 8))


# --- data sets that name themselves --------------------------------------------------------------


class Named(torch.utils.data.Dataset):
    """A data set that carries its own fingerprint."""

    probelib_fingerprint = "version 1"

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i], int(self.y[i])


def test_a_data_set_with_a_fingerprint_keeps_its_labels():
    x, y = toy()
    trace = run(SGLD(1e-2, 8), data=Named(x, y), draws=5)
    np.testing.assert_array_equal(trace.label, y)
    np.testing.assert_array_equal(trace.loss, run(SGLD(1e-2, 8), draws=5).loss)
    np.testing.assert_array_equal(Samples(Named(x, y), torch.device("cpu")).labels(), y)
    assert Samples(Named(x, y), torch.device("cpu")).fingerprint() == "version 1 (40 samples)"


@pytest.mark.parametrize("which", ["data", "observe"])
def test_a_data_set_with_a_fingerprint_has_its_labels_checked(which, tmp_path):
    x, y = toy()
    y[35] = 4
    settings = {"data": toy(), "store": tmp_path / "trace"} | {which: Named(x, y)}
    with pytest.raises(ValueError, match=f"{which} has labels from 0 to 4, but the model has 4"):
        run(SGLD(1e-2, 8), **settings)
    assert not (tmp_path / "trace").exists()
