"""How often and how long to observe: against known laws, and the same at every call."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import probelib
from probelib import (
    SGLD,
    ControlVariate,
    LocalPosterior,
    Minibatch,
    cross_entropy,
    schedule,
    squared_error,
)
from probelib.chains import Chains
from probelib.data import Samples

pytestmark = pytest.mark.usefixtures("one_thread")


def ar1(rho, chains, steps, series, seed=0):
    """Stationary Gaussian AR(1) series, shape (chains, steps, series)."""
    rng = np.random.default_rng(seed)
    x = np.empty((chains, steps, series))
    x[:, 0] = rng.normal(size=(chains, series))
    for t in range(1, steps):
        x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * rng.normal(size=(chains, series))
    return x


@pytest.mark.parametrize(("rho", "cost"), [(0.5, 0.01), (0.8, 0.01), (0.8, 0.3), (0.9, 3.0)])
def test_the_chosen_thinning_is_near_the_exact_optimum(rho, cost):
    # tau_k of an AR(1) is (1 + rho^k) / (1 - rho^k). 4 x 3000 x 64 steps of the slowest series hold
    # 40,000 independent values, so that each rho_t is known to 0.005 and tau, a sum of some thirty
    # that matter and lean on each other, to 5 %. The curve is flat at its end: 3 % more at most.
    k = np.arange(1, 400)
    exact = (1 + cost * k) * (1 + rho**k) / (1 - rho**k)
    chosen = schedule.choose_thin(ar1(rho, 4, 3000, 64), cost)
    assert exact[chosen.thin - 1] < 1.03 * exact.min()
    assert chosen.autocorrelation_time == pytest.approx((1 + rho) / (1 - rho), rel=0.05)
    assert chosen.cost == pytest.approx(exact.min() / exact[0], rel=0.06)


def test_thinning_of_what_never_moves_or_forgets_at_once():
    assert schedule.choose_thin(np.ones((2, 100, 5)), 0.1).thin == 1
    at_once = schedule.choose_thin(ar1(0.0, 4, 2000, 64), 0.1)
    assert at_once.thin == 1
    assert at_once.autocorrelation_time == pytest.approx(1, abs=0.1)


def test_a_window_too_short_warns():
    with pytest.warns(UserWarning, match="burn_in is short for thin='auto'"):
        schedule.choose_thin(ar1(0.95, 4, 80, 64), 0.01)


def test_cost_of_a_pass_counts_products_and_activations():
    model = nn.Sequential(nn.Linear(30, 50), nn.ReLU(), nn.Linear(50, 10))
    x, y = torch.randn(4, 30), torch.zeros(4, dtype=torch.long)
    one = schedule.cost_of_pass(lambda a, b: cross_entropy(model(a), b), x, y)
    assert one.flops == 2 * (30 * 50 + 50 * 10)
    assert one.bytes == 4 * (50 + 50)  # the ReLU: its operand and its result

    def uncountable(a, b):
        raise RuntimeError("no")

    assert schedule.cost_of_pass(uncountable, x, y).flops == 0


def test_operations_are_counted_as_torch_counts_them_and_nothing_global_is_hooked():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 6), nn.Unflatten(1, (2, 3))
    )
    attention = nn.MultiheadAttention(3, 1, batch_first=True)
    hooks = torch.nn.modules.module._global_forward_pre_hooks

    def losses(a, b):
        assert not hooks  # of all threads: a fingerprint taken in another one would see it
        out = model(a)
        return attention(out, out, out)[0].mean((1, 2)) - b

    x, y = torch.randn(4, 3, 8, 8), torch.zeros(4)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        out = model(x)
        attention(out, out, out)
    assert schedule.cost_of_pass(losses, x, y).flops == counted.get_total_flops() / 4 > 0


def test_batches_follow_from_what_an_operation_takes():
    cpu = torch.device("cpu")
    assert schedule.observe_batch(6 * 2**20, cpu) == 1
    assert schedule.observe_batch(2**40, cpu) == 1
    assert schedule.observe_batch(2**14, cpu) == 384
    assert schedule.observe_batch(2**14, cpu, at_once=4) == 96
    assert schedule.observe_batch(1, cpu) == 8192


def test_the_share_of_a_step():
    one = schedule.Pass(flops=1000.0, bytes=0.0)
    cost = schedule.step_cost(one, observed=600, batch=8, gradients=2, weights=100)
    assert cost == pytest.approx((2 * 3 * 8 * 1000 + 600 * 100) / (600 * 1000))


@pytest.mark.parametrize("draws", [1, 20, 21, 137, 5000])
def test_looks_are_the_same_for_every_cap(draws):
    assert list(schedule.looks(draws)) == [at for at in schedule.looks(10_000) if at < draws]
    gaps = np.diff(list(schedule.looks(10_000)))
    assert (gaps >= 2).all()
    assert (gaps[1:] >= gaps[:-1]).all()


@pytest.mark.parametrize("tau", [1, 10])
def test_until_does_not_stop_early_where_one_direction_moves_all_losses(tau):
    """Their median is no better than one of them, and looked at again and again."""
    rng, until, off = np.random.default_rng(2), 0.15, []
    for _ in range(60):
        one = ar1((tau - 1) / (tau + 1), 1, 3000, 1, seed=int(rng.integers(2**31)))
        losses = np.repeat(one, 8, axis=2)
        at = schedule.good_enough(losses, until, 3000) or 3000
        off.append(losses[0, :at, 0].mean())
    # 1.1 times the error asked for, and two standard errors of a root mean square of 60.
    assert np.sqrt(np.mean(np.square(off))) < 1.1 * until * (1 + 2 / np.sqrt(2 * 60))


def test_good_enough_is_the_first_look_that_is():
    losses = ar1(0.3, 3, 400, 21)
    errors = {at: schedule.median_mcse(losses[:, :at]) for at in schedule.looks(400)}
    known = [error for error in errors.values() if np.isfinite(error)]
    until = known[4] * 1.0001
    first = next(at for at, error in errors.items() if error <= until)
    assert schedule.good_enough(losses, until, 400) == first
    assert schedule.good_enough(losses[:, : first - 1], until, 400) is None
    assert schedule.good_enough(losses, 1e-9, 400) is None


# --- in a run ------------------------------------------------------------------------------------


def posterior_of(n=400, **kwargs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))
    x, y = torch.randn(n, 3), torch.randint(0, 4, (n,))
    return LocalPosterior(
        model, cross_entropy, (x, y), **{"n_beta": 10.0, "localization": 5.0} | kwargs
    )


def run(posterior=None, **kwargs):
    settings = {"sampler": SGLD(2e-2, 8), "chains": 2, "draws": 40, "burn_in": 100}
    return probelib.sample(posterior or posterior_of(), **settings | {"progress": False} | kwargs)


def assert_same(a, b):
    for name in a.variables:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    for key in ("config", "draws_done", "steps_done", "complete"):
        assert a.attrs[key] == b.attrs[key], key


def test_thin_auto_is_that_thinning_and_is_found_again(tmp_path, monkeypatch):
    chosen = run(thin="auto", store=tmp_path / "a.zarr")
    thin = chosen.attrs["config"]["thin"]
    assert thin > 1
    assert chosen.attrs["thinning"]["thin"] == thin
    by_hand = run(thin=thin)
    for name in ("loss", "distance", "sampling_loss"):
        np.testing.assert_array_equal(chosen[name], by_hand[name])
    monkeypatch.setattr(Chains, "advance", None)  # nothing is sampled or measured a second time
    assert_same(run(thin="auto", store=tmp_path / "a.zarr"), chosen)


def test_calls_that_share_out_the_chains_choose_alike():
    whole = run(thin="auto", chains=6, draws=5)
    for first in (0, 2, 4):
        part = run(thin="auto", chains=2, first_chain=first, draws=5)
        assert part.attrs["thinning"] == whole.attrs["thinning"]
        np.testing.assert_allclose(part.loss, whole.loss[first : first + 2], rtol=1e-4, atol=1e-6)


def test_thin_auto_says_what_it_chose(capsys):
    trace = run(thin="auto", progress=True)
    said = capsys.readouterr()
    assert f"chose {trace.attrs['config']['thin']}" in said.out + said.err


def test_thin_auto_goes_on_after_an_interruption(tmp_path, monkeypatch):
    store, calls, advance = tmp_path / "a.zarr", [0], Chains.advance
    whole = run(thin="auto", draws=120)

    def interrupted(self):
        calls[0] += 1
        if calls[0] == 100 + 100 + 60 * whole.attrs["config"]["thin"]:
            raise KeyboardInterrupt
        return advance(self)

    monkeypatch.setattr(Chains, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(thin="auto", draws=120, store=store)
    assert 50 <= probelib.open_trace(store).sizes["draw"] < 120
    assert_same(run(thin="auto", draws=120, store=store), whole)


def test_until_stops_at_its_target_and_no_sooner(tmp_path):
    capped = run(draws=600, thin=6)
    until = 1.3 * schedule.median_mcse(capped.loss.values[..., schedule.watched(400)])
    store = tmp_path / "a.zarr"
    trace = run(draws=600, thin=6, until=until, store=store)
    at = trace.sizes["draw"]
    assert schedule.FIRST_LOOK <= at < 600
    assert trace.attrs["complete"] is True
    assert trace.attrs["config"]["draws"] == at
    np.testing.assert_array_equal(trace.loss, capped.loss[:, :at])
    watched = trace.loss.values[..., schedule.watched(400)]
    assert schedule.median_mcse(watched) <= until
    earlier = max(k for k in schedule.looks(at))
    assert schedule.median_mcse(watched[:, :earlier]) > until
    # The same call again, a stricter one, none at all, and the first once more.
    assert_same(run(draws=600, thin=6, until=until, store=store), trace)
    stricter = run(draws=600, thin=6, until=until / 1.2, store=store)
    assert stricter.sizes["draw"] > at
    assert_same(run(draws=600, thin=6, store=store), capped)
    assert_same(run(draws=600, thin=6, until=until, store=store), trace)


@pytest.mark.parametrize("stop", [25, 70, 110])
def test_until_decides_alike_after_an_interruption(tmp_path, monkeypatch, stop):
    store, observe, seen = tmp_path / "a.zarr", Chains.observe, [0]
    cap = {"draws": 600, "thin": 6}
    losses = run(**cap).loss.values[..., schedule.watched(400)]
    # Below every look that comes before 115 draws, some of which have too few batches to tell.
    errors = [schedule.median_mcse(losses[:, :at]) for at in schedule.looks(115)]
    until = min(0.99 * min(errors), 1.05 * schedule.median_mcse(losses))
    whole = run(**cap, until=until)
    assert whole.sizes["draw"] > stop

    def interrupted(self):
        seen[0] += 1
        if seen[0] == stop:
            raise KeyboardInterrupt
        return observe(self)

    monkeypatch.setattr(Chains, "observe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(**cap, until=until, store=store)
    assert_same(run(**cap, until=until, store=store), whole)


def test_until_decides_by_what_is_kept_in_half_precision(tmp_path):
    store, options = tmp_path / "a.zarr", {"draws": 300, "thin": 6, "loss_dtype": "float16"}
    losses = run(**options).loss.values[..., schedule.watched(400)]
    until = 1.2 * schedule.median_mcse(losses)
    whole = run(until=until, **options)
    assert whole.sizes["draw"] == schedule.good_enough(losses, until, 300)
    run(**options | {"draws": 30}, store=store)
    assert_same(run(until=until, **options, store=store), whole)
    assert_same(run(until=until, **options, store=store), whole)


def test_until_that_is_never_reached_ends_at_the_cap():
    assert_same(run(until=1e-9), run())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"thin": "often"}, "thin is 'often'; it must be a whole number, 1 or more, or 'auto'"),
        ({"thin": "auto", "burn_in": 10}, "burn_in is 10; make it 100 or more"),
        ({"thin": 0}, "thin is 0; it must be a whole number"),
        ({"until": 0.0}, "until is 0.0; it must be a positive, finite number"),
        ({"until": float("nan")}, "until is nan; it must be a positive, finite number"),
    ],
)
def test_bad_schedules(settings, message):
    with pytest.raises(ValueError, match=message):
        run(**settings)


def test_precision_follows_the_device(monkeypatch):
    full = run()
    monkeypatch.setattr(schedule, "has_fast_bfloat16", lambda device: False)
    assert_same(run(observe_dtype="auto"), full)
    with pytest.warns(UserWarning, match="observe_dtype is 'bfloat16', for which this cpu"):
        half = run(observe_dtype="bfloat16")
    monkeypatch.setattr(schedule, "has_fast_bfloat16", lambda device: True)
    fast = run(observe_dtype="auto")
    assert_same(fast, half)
    assert fast.attrs["observe_dtype"] == "bfloat16"


def test_recorded_gradients_are_those_of_the_model(monkeypatch):
    recorded = run()
    monkeypatch.setattr(probelib.chains, "_recorded", lambda function, *args: function)
    np.testing.assert_array_equal(run().loss, recorded.loss)


def test_an_operation_that_vmap_runs_one_by_one_is_run_one_by_one():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Linear(4, 12)

        def forward(self, x):
            q, k, v = self.w(x[:, None].expand(-1, 3, -1)).chunk(3, -1)
            return nn.functional.scaled_dot_product_attention(q, k, v).mean(1)

    torch.manual_seed(0)
    data = torch.randn(40, 4), torch.randint(0, 4, (40,))
    posterior = LocalPosterior(Attention(), cross_entropy, data, n_beta=10, localization=5)
    assert run(posterior, draws=4).attrs["advance"] == "one by one"


def test_a_batch_that_does_not_fit_is_halved_until_it_does():
    largest = []

    def small_memory(output, target):
        largest.append(len(target))
        if len(target) > 100:
            raise torch.OutOfMemoryError("full")
        return cross_entropy(output, target)

    base = posterior_of()
    posterior = LocalPosterior(
        base.model, small_memory, base.data.batch(slice(0, 400)), n_beta=10.0, localization=5.0
    )
    np.testing.assert_allclose(run(posterior).loss, run(base).loss, rtol=1e-5)
    assert max(largest) == 400
    with pytest.raises(torch.OutOfMemoryError):  # what the caller chose is not changed
        run(posterior, observe_batch_size=200)


class Counted(torch.utils.data.Dataset):
    """A data set that counts how often its items are read."""

    def __init__(self, x, y):
        self.x, self.y, self.reads = x, y, 0

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        self.reads += 1
        return self.x[i], int(self.y[i])


def test_a_data_set_is_read_once_a_run_not_once_a_draw(monkeypatch):
    torch.manual_seed(0)
    x, y = torch.randn(60, 3), torch.randint(0, 4, (60,))
    model = nn.Linear(3, 4)
    posterior = lambda data: LocalPosterior(  # noqa: E731
        model, cross_entropy, data, n_beta=10, localization=5
    )
    counted = Counted(x, y)
    trace = run(posterior(counted), draws=30)
    np.testing.assert_array_equal(trace.loss, run(posterior((x, y)), draws=30).loss)
    assert counted.reads < 5 * 60
    few = Counted(x, y)
    monkeypatch.setattr(probelib.chains, "_STAGED", 100)  # too large to keep
    monkeypatch.setattr(probelib.data, "_SMALL", 100)
    np.testing.assert_array_equal(run(posterior(few), draws=30).loss, trace.loss)
    assert few.reads > 30 * 60


def test_staged_samples_are_the_samples(monkeypatch):
    monkeypatch.setattr(probelib.data, "_SMALL", 100)  # too large to keep from the beginning
    x, y = torch.randn(130, 3), torch.randint(0, 4, (130,))
    samples = Samples(Counted(x, y), torch.device("cpu"))
    staged = samples.staged(2**20)
    assert staged.in_memory
    assert not samples.in_memory
    np.testing.assert_array_equal(staged.batch(slice(0, 130))[0], x)
    np.testing.assert_array_equal(staged.labels(), y)
    assert samples.staged(10) is samples
    assert staged.staged(10) is staged


# --- control variate -----------------------------------------------------------------------------


def noisy_mean(step_size, n_beta, localization, control_variate):
    """Chains for f = w, targets ±1, sixteen to a batch of two; second moment of w about w* = 0."""
    y = torch.tensor([-1.0, 1.0]).repeat(8)
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    posterior = LocalPosterior(
        model, squared_error, (torch.ones(16, 1), y[:, None]),
        n_beta=n_beta, localization=localization,
    )  # fmt: skip
    trace = probelib.sample(
        posterior, observe=(torch.ones(1, 1), torch.zeros(1, 1)),
        sampler=SGLD(step_size, gradient=ControlVariate(2) if control_variate else Minibatch(2)),
        chains=64, draws=600, burn_in=100, progress=False,
    )  # fmt: skip
    return 2 * float(trace.loss.values.astype(np.float64).mean())


def test_a_control_variate_takes_the_minibatch_noise_out_of_the_stationary_law():
    # Exact: 1 / (A (1 - eps A / 4)), times 1 + eps nb² s² / 4 with the noise of a plain minibatch,
    # here a factor of 3.3. With rho = 0.375 a step, 64 x 600 draws know w² to
    # sqrt(2 (1 + rho²) / (1 - rho²) / 38,400) = 0.8 %: 6 % is seven standard errors.
    n_beta, localization, step_size = 20.0, 5.0, 0.05
    a = n_beta + localization
    s2 = 1 / 2 * (16 - 2) / (16 - 1)
    exact = 1 / (a * (1 - step_size * a / 4))
    plain = noisy_mean(step_size, n_beta, localization, False)
    assert plain == pytest.approx(exact * (1 + step_size * n_beta**2 * s2 / 4), rel=0.06)
    assert noisy_mean(step_size, n_beta, localization, True) == pytest.approx(exact, rel=0.06)


def test_a_control_variate_away_from_a_shared_curvature():
    # Curvatures x_i² differ, so that some noise is left: at w a batch of one adds a variance of
    # v w², v = Var(x²). E w² (1 - r² - eps² nb² v / 4) = eps with r = 1 - eps A / 2: here a factor
    # of 1.28. Var(w²) follows from the recursion of E w⁴ and its autocorrelation is 0.38 a step:
    # 64 x 800 draws know w² to 1.1 %, and 6.5 % is six standard errors.
    x = torch.tensor([0.3, 0.3, 1.7, 1.7]).repeat(10)
    n_beta, localization, step_size, m = 6.0, 2.0, 0.1, 1
    h, v = float(x.square().mean()), float(x.square().var(correction=0))
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    y = 3.0 * (-1) ** torch.arange(40) / x  # sum x y = 0, so that w* = 0 is the minimum
    posterior = LocalPosterior(
        model, squared_error, (x[:, None], y[:, None]),
        n_beta=n_beta, localization=localization,
    )  # fmt: skip
    trace = probelib.sample(
        posterior, observe=(torch.ones(1, 1), torch.zeros(1, 1)),
        sampler=SGLD(step_size, gradient=ControlVariate(m)),
        chains=64, draws=800, burn_in=100, progress=False,
    )  # fmt: skip
    a = n_beta * h + localization
    exact = step_size / (1 - (1 - step_size * a / 2) ** 2 - step_size**2 * n_beta**2 * v / 4)
    found = 2 * float(trace.loss.values.astype(np.float64).mean())
    assert found == pytest.approx(exact, rel=0.065)


def test_a_control_variate_is_part_of_what_a_trace_is_of(tmp_path):
    plain, anchored = SGLD(2e-2, 8), SGLD(2e-2, gradient=ControlVariate(8))
    assert repr(plain) == "SGLD(step_size=0.02, batch_size=8)"
    run(sampler=plain, store=tmp_path / "a.zarr")
    there = r"sampler.gradient.name is Minibatch there and ControlVariate here"
    with pytest.raises(probelib.TraceMismatch, match=there):
        run(sampler=anchored, store=tmp_path / "a.zarr")
    with pytest.raises(ValueError, match="batch_size is None; it must be a whole number"):
        ControlVariate(None)
    with pytest.raises(ValueError, match="batch_size is 4, but gradient has 8; give one of the"):
        SGLD(2e-2, 4, gradient=ControlVariate(8))


def test_a_control_variate_one_by_one_gives_the_same_trace(monkeypatch):
    sampler = SGLD(2e-2, gradient=ControlVariate(8))
    together = run(sampler=sampler)
    monkeypatch.setattr("probelib.chains._vmap_agrees", lambda *_: False)
    np.testing.assert_allclose(run(sampler=sampler).loss, together.loss, rtol=1e-3, atol=1e-5)
