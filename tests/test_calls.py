"""What is computed belongs to the call: the caller's things stay, what surrounds it has no say."""

import copy
import logging
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from torch import nn
from torch.utils.data import Subset, TensorDataset

import probelib
from probelib import (
    SGLD,
    ControlVariate,
    GradientEstimator,
    LocalPosterior,
    cross_entropy,
    influence,
    sample,
)
from probelib.ambient import undisturbed
from probelib.data import Samples

pytestmark = pytest.mark.usefixtures("one_thread")

N = 24


def data(classes=3, width=4):
    rng = torch.Generator().manual_seed(1)
    return torch.randn(N, width, generator=rng), torch.arange(N) % classes


def net(*more, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), *more, nn.Linear(6, 3))


def posterior(model=None, loss=cross_entropy, given=None, **kwargs):
    model, given = net() if model is None else model, data() if given is None else given
    return LocalPosterior(model, loss, given, **{"n_beta": 10.0, "localization": 30.0} | kwargs)


def draw(of, chains=2, batch_size=8, **kwargs):
    settings = {"draws": 3, "progress": False} | kwargs
    sampler = settings.pop("sampler", SGLD(1e-3, batch_size))
    return sample(of, sampler=sampler, chains=chains, **settings)


def same(a, b, rtol=1e-5):
    for name in ("loss", "init_loss", "sampling_loss"):
        np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=1e-6)


# --- data, weights and loss are the caller's ------------------------------------------------------


class Writes(nn.Module):
    """Normalises its input, in place or not."""

    def __init__(self, how):
        super().__init__()
        self.inner, self.how = net(), how

    def forward(self, x):
        if self.how == "in place":
            x.sub_(0.5).div_(0.5)
        elif self.how == "through a view":
            x.detach()[:].sub_(0.5).div_(0.5)
        else:
            x = (x - 0.5) / 0.5
        return self.inner(x)


def ignoring(in_place):
    def loss(output, target):
        left_out = target == 255
        if in_place:
            target[left_out] = 0
        else:
            target = target.masked_fill(left_out, 0)
        return F.cross_entropy(output, target, reduction="none") * ~left_out

    return loss


@pytest.mark.parametrize("how", ["in place", "through a view"])
@pytest.mark.parametrize(("chains", "batch_size"), [(1, 8), (2, 8), (2, None)])
def test_a_model_that_writes_into_its_input(how, chains, batch_size):
    x, y = data()
    kept = x.clone()
    runs = [
        draw(posterior(Writes(h), given=(x, y)), chains, batch_size) for h in (how, "out of place")
    ]
    same(*runs)
    assert torch.equal(x, kept)


@pytest.mark.parametrize(
    "sampler", [SGLD(1e-3, 8), SGLD(1e-3), SGLD(1e-3, gradient=ControlVariate(8))]
)
@pytest.mark.parametrize("chains", [1, 2])
def test_a_loss_that_writes_into_its_targets(sampler, chains):
    x, y = data()
    y[::4] = 255
    kept = y.clone()
    ours, right = (
        draw(posterior(loss=ignoring(writes), given=(x, y)), chains, sampler=sampler)
        for writes in (True, False)
    )
    same(ours, right)
    assert torch.equal(y, kept)
    np.testing.assert_array_equal(ours.label, kept)
    assert not ours.loss[..., ::4].any()


def test_what_writes_into_rare_batches_only_is_refused():
    class Rare(Writes):
        def forward(self, x):
            return self.inner(x.clamp_(max=1e3) if bool((x > 1e3).any()) else x)

    def clamped(output, target):
        return cross_entropy(output, target.clamp_(max=2) if int(target.max()) > 2 else target)

    x, y = data()
    with pytest.raises(ValueError, match=r"model writes into its inputs .*\.clone\(\)"):
        draw(posterior(Rare("")), observe=(torch.where(torch.arange(N) == 20, 1e4, x.T).T, y))
    loose = posterior(loss=clamped)
    with pytest.raises(ValueError, match=r"per_sample_loss writes into its targets"):
        loose.losses(loose.center, x, y + 1)


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_a_model_of_torch_jit_is_refused():
    with pytest.raises(ValueError, match=r"made by torch\.jit, .*; give the module"):
        posterior(torch.jit.trace(net(), torch.randn(3, 4)))


def test_other_paths_see_the_targets_as_they_were():
    x, y = data()
    y[::4] = 255
    ours, right = (posterior(loss=ignoring(w), given=(x, y)) for w in (True, False))
    for f in (
        influence.per_sample_gradients,
        influence.hessian,
        lambda p: influence.gradient_gram(p)[0],
        lambda p: probelib.gradient_pairs(p, pairs=2, progress=False).kernel,
    ):
        np.testing.assert_allclose(f(ours), f(right), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(f(ours), f(right), rtol=1e-5, atol=1e-6)  # and once more


class Scaled(TensorDataset):
    """What it gives is not what it holds."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return (x - 0.5) / 0.1, y


def test_items_of_a_data_set_are_what_it_gives():
    x = torch.rand(12, 4)
    data = Samples(Scaled(x, torch.arange(12) % 3), torch.device("cpu"))
    torch.testing.assert_close(data.batch(np.arange(12))[0], (x - 0.5) / 0.1)


@pytest.mark.parametrize("kind", ["tensors", "numpy", "TensorDataset", "Subset", "list"])
def test_labels_that_the_caller_flips_later(kind):
    x, y = data()
    holders = {
        "tensors": (x, y),
        "numpy": (x.numpy(), y.numpy()),
        "TensorDataset": TensorDataset(x, y),
        "Subset": Subset(TensorDataset(x, y), range(N)),
        "list": list(zip(x, y, strict=True)),
    }
    right = draw(posterior(given=(x.clone(), y.clone())))
    ours = posterior(given=holders[kind])
    x.zero_()
    y.copy_(y.flip(0))
    trace = draw(ours)
    same(trace, right)
    np.testing.assert_array_equal(trace.label, right.label)


def test_a_loss_that_the_caller_changes_later():
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 3]), reduction="none")
    right = draw(posterior(loss=copy.deepcopy(loss)))
    ours = posterior(loss=loss)
    loss.weight.zero_()
    same(draw(ours), right)


class Constrained(nn.Module):
    """Limits its own weights in its forward."""

    def __init__(self, how, frozen=False):
        super().__init__()
        self.inner, self.how = net(), how
        self.inner[0].requires_grad_(not frozen)

    def forward(self, x):
        weight = self.inner[0].weight
        if self.how == "clamp":
            with torch.no_grad():
                weight.clamp_(-0.1, 0.1)
        elif self.how == "data":
            weight.data.clamp_(-1e2, 1e2)  # which nothing at w* reaches
        elif self.how == "normalise":
            with torch.no_grad():
                weight.div_(weight.norm(dim=1, keepdim=True))
        return self.inner(x)


class Words(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.words, self.out = nn.Embedding(10, 6, **settings), nn.Linear(6, 3)

    def forward(self, t):
        return self.out(self.words(t).mean(1))


WORDS = torch.randint(0, 10, (N, 5), generator=torch.Generator().manual_seed(2)), data()[1]


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (lambda: Words(max_norm=1.0), WORDS),
        (lambda: Constrained("clamp"), None),
        (lambda: Constrained("data"), None),
        (lambda: Constrained("normalise"), None),
        (lambda: Constrained("normalise", frozen=True), None),
    ],
)
def test_a_forward_that_writes_its_weights_is_refused(make, given):
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"model writes its own weights in its forward, .*; take"):
        posterior(model, given=given)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_weights_handed_in_are_not_written():
    ours = posterior()
    ours.model.forward = lambda x: (ours.model[0].weight.data.zero_(), nn.Sequential.forward(
        ours.model, x))[1]  # fmt: skip
    weights = ours.center.clone()
    ours.losses(weights, *ours.data.batch(slice(0, 4)))
    assert torch.equal(weights, ours.center)


@pytest.mark.parametrize(
    "wrap", [nn.utils.parametrizations.spectral_norm, nn.utils.parametrizations.weight_norm]
)
@pytest.mark.parametrize("train_mode", [False, True])
def test_parametrised_weights_are_a_function_of_theirs(wrap, train_mode):
    model = net()
    wrap(model[0])
    before = copy.deepcopy(model.state_dict())
    ours = posterior(model, train_mode=train_mode)
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    assert torch.equal(ours.center, flat)
    draw(ours)
    assert torch.equal(ours.center, flat)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


# --- what surrounds a call ------------------------------------------------------------------------


@contextmanager
def shortened(precision):
    """As torch is told on a machine whose units take bfloat16 for float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    yield
    assert torch.get_float32_matmul_precision() == precision
    torch.set_float32_matmul_precision(before)


def test_a_precision_set_for_one_kind_of_device_is_no_error():
    """Torch then refuses to say the one for all."""
    code = """if True:
        import torch
        from torch import nn
        import probelib
        products = torch.backends.mkldnn.matmul
        products.fp32_precision = "bf16"
        seen = []
        def loss(output, target):
            seen.append(products.fp32_precision)
            return probelib.squared_error(output, target)
        posterior = probelib.LocalPosterior(
            nn.Linear(2, 1), loss, (torch.ones(4, 2), torch.ones(4, 1)), n_beta=1, localization=1
        )
        probelib.sample(posterior, sampler=probelib.SGLD(1e-3, 2), draws=2, progress=False)
        assert set(seen) == {"ieee"}, seen
        assert products.fp32_precision == "bf16"
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_thread_that_ends_first_leaves_the_switches_to_the_other():
    began, ended, seen = threading.Event(), threading.Event(), []

    @undisturbed
    def first():
        began.wait(20)

    @undisturbed
    def second():
        began.set()
        ended.wait(20)
        seen.append(torch.get_float32_matmul_precision())

    with shortened("medium"), ThreadPoolExecutor(2) as pool:
        one = pool.submit(first)
        other = pool.submit(second)
        one.result()
        ended.set()
        other.result()
        assert torch.get_float32_matmul_precision() == "medium"
    assert seen == ["highest"]


@pytest.mark.parametrize("precision", ["medium", "high"])
def test_products_are_not_shortened(precision):
    seen = []

    def loss(output, target):
        seen.append(torch.get_float32_matmul_precision())
        return cross_entropy(output, target)

    with shortened(precision):
        draw(posterior(loss=loss))
    assert set(seen) == {"highest"}


@pytest.mark.parametrize(
    "around",
    [
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        torch.inference_mode,
        torch.no_grad,
        lambda: torch.set_grad_enabled(False),
        lambda: torch.device("meta"),
        nn.utils.parametrize.cached,
        lambda: shortened("medium"),
    ],
)
@pytest.mark.parametrize("chains", [1, 2])
def test_what_surrounds_a_call_changes_no_number(around, chains):
    x, y = data()
    given = x.numpy(), y.numpy()
    model = net()
    nn.utils.parametrize.register_parametrization(model[0], "weight", nn.Tanh())
    right = posterior(model, given=given)
    wanted = draw(right, chains)
    gradients = influence.per_sample_gradients(right)
    curvature = influence.hessian(right)
    with around():
        ours = posterior(model, given=given)
        same(draw(ours, chains), wanted, rtol=0)
        np.testing.assert_array_equal(influence.per_sample_gradients(ours), gradients)
        np.testing.assert_array_equal(influence.hessian(ours), curvature)
    same(draw(ours, chains), wanted, rtol=0)  # what was made there serves elsewhere


def test_inference_tensors_as_data_and_weights():
    wanted = draw(posterior())
    with torch.inference_mode():
        model, given = net(), tuple(t.clone() for t in data())
    same(draw(posterior(model, given=given)), wanted, rtol=0)


def test_a_kernel_read_under_autocast():
    kernel = probelib.loss_kernel(draw(posterior(), draws=8))
    wanted = kernel.top_correlated(k=3).correlation
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(kernel.top_correlated(k=3).correlation, wanted)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(12, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.layers, self.out = nn.TransformerEncoder(layer, 1), nn.Linear(8, 3)

    def forward(self, t):
        return self.out(self.layers(self.words(t), src_key_padding_mask=t == 0).mean(1))


@pytest.mark.filterwarnings("ignore:.*nested")
@pytest.mark.parametrize("chains", [1, 2])
def test_steps_and_observations_see_one_function(chains):
    torch.manual_seed(0)
    t = torch.randint(1, 12, (N, 6))
    t[::2, 3:] = 0
    trace = draw(posterior(Encoder(), given=(t, data()[1])), chains, batch_size=None)
    # A transformer's fast path, without gradients, would be off by 2 %.
    np.testing.assert_allclose(trace.sampling_loss[:, 0], float(trace.init_loss.mean()), rtol=1e-5)
    assert torch.backends.mha.get_fastpath_enabled()


class Branch(nn.Module):
    def __init__(self, asks):
        super().__init__()
        self.inner, self.asks = net(), asks

    def forward(self, x):
        return self.inner(x) * (1.02 if self.asks(self.inner[0].weight) else 1.0)


@pytest.mark.parametrize("asks", [lambda w: torch.is_grad_enabled(), lambda w: w.requires_grad])
def test_a_model_that_asks_for_gradients_is_refused(asks):
    with pytest.raises(ValueError, match="where gradients are taken; steps and observations must"):
        posterior(Branch(asks))


class Restless(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = net()

    def forward(self, x):
        Restless.calls = getattr(Restless, "calls", 0) + 1
        return self.inner(x) * Restless.calls


def test_a_model_that_changes_from_call_to_call_is_refused():
    with pytest.raises(ValueError, match="at the next call; steps and observations must see one"):
        posterior(Restless())


class Drifts:
    """A loss that moves by little from call to call."""

    def __init__(self, by):
        self.by, self.scale = by, 1.0

    def __call__(self, output, target):
        self.scale *= 1 + self.by
        return self.scale * cross_entropy(output, target)


@pytest.mark.parametrize("double", [False, True])
def test_a_loss_that_drifts_is_refused(double):
    model, (x, y) = net(), data()
    given = (x.double(), y) if double else (x, y)
    with pytest.raises(ValueError, match="at the next call; steps and observations must see one"):
        posterior(model.double() if double else model, Drifts(1e-9 if double else 1e-4), given)
    posterior(model, Drifts(0.0), given)


class Holding(nn.Module):
    """Holds what no copy can be made of."""

    def __init__(self, part):
        super().__init__()
        self.inner, self.part = net(), part

    def forward(self, x):
        return self.inner(x)


def test_models_that_hold_locks_and_modules():
    wanted = draw(posterior())
    for part in (np, threading.Lock(), threading.RLock(), logging.getLogger("probe")):
        same(draw(posterior(Holding(part))), wanted, rtol=0)
    with open(__file__) as file:  # noqa: SIM117
        with pytest.raises(TypeError, match=r"model cannot be copied .*open file"):
            posterior(Holding(file))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = net()

    def forward(self, x):
        return self.inner(x), {"length": x.square().sum(1), "n": torch.arange(len(x))}


def test_outputs_of_several_parts_are_observed_in_bfloat16():
    def loss(output, target):
        assert output[0].dtype == output[1]["length"].dtype == torch.float32
        return cross_entropy(output[0], target) + output[1]["length"] + 0 * output[1]["n"]

    half = draw(posterior(Pair(), loss), observe_dtype="bfloat16")
    assert half.attrs["observe_dtype"] == "bfloat16"
    same(half, draw(posterior(Pair(), loss)), rtol=0.02)


class Noise(nn.Module):
    """Draws from a generator of whichever library."""

    def __init__(self, normal):
        super().__init__()
        self.inner, self.normal = net(), normal

    def forward(self, x):
        return self.inner(x + 0.1 * self.normal())


@pytest.mark.parametrize(
    "normal",
    [lambda: float(torch.randn(())), lambda: np.random.randn(), lambda: random.gauss(0, 1)],  # noqa: NPY002
)
@pytest.mark.parametrize("gradient", [None, ControlVariate(8)])
def test_no_generator_of_the_callers_moves(normal, gradient):
    model = Noise(normal)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    ours = posterior(model, train_mode=True)
    traces = [draw(ours, sampler=SGLD(1e-3, None if gradient else 8, gradient)) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert random.getstate() == before[2]
    same(*traces, rtol=0)  # and the seed fixes what it draws
    assert traces[0].sampling_loss.values.std() > 0


@pytest.fixture(scope="module")
def at_the_centre(tmp_path_factory):
    """Chains of a model with dropout that stay at w*, and the same call again on their store."""
    of, store = posterior(net(nn.Dropout(0.5)), train_mode=True), tmp_path_factory.mktemp("centre")
    run = {"chains": 8, "draws": 100, "sampler": SGLD(1e-14, 8), "seed": 3}
    return [draw(of, **run, store=store / "a.zarr") for _ in range(2)]


@pytest.mark.parametrize("part", [slice(None), slice(6)])
def test_losses_at_the_centre_of_a_random_model_have_an_error(part, at_the_centre, tmp_path):
    whole, again = at_the_centre
    trace = whole.isel(sample=part)
    gain, llc = probelib.loss_gain(trace), probelib.local_learning_coefficient(trace)
    z = gain.values / gain.mcse.values  # all gains are 0, but for chance
    assert 0.4 < np.sqrt(np.mean(np.square(z))) < 1.4
    assert abs(llc.value) < 2 * llc.mcse
    without = trace.drop_vars("init_loss_mcse")
    too_small = gain.values / probelib.loss_gain(without).mcse.values
    assert np.sqrt(np.mean(np.square(too_small))) > 2
    whole.to_netcdf(tmp_path / "a.nc")
    copied = xr.open_dataset(tmp_path / "a.nc").isel(sample=part)
    assert probelib.local_learning_coefficient(copied).mcse == pytest.approx(llc.mcse, rel=1e-5)
    np.testing.assert_array_equal(again.init_loss_mcse, whole.init_loss_mcse)


def test_losses_at_the_centre_are_exact_else():
    batch_norm = posterior(net(nn.BatchNorm1d(6)), train_mode=True)
    for of in (posterior(), batch_norm):
        assert "init_loss_mcse" not in draw(of).coords


def test_a_control_variates_anchor_has_the_masks_of_its_step():
    torch.manual_seed(0)
    ours = posterior(net(nn.Dropout(0.5)), train_mode=True)
    run = probelib.plan.Run.of(
        ours, None, SGLD(1e-3, gradient=ControlVariate(8)), probelib.plan.Plan()
    )
    chains = probelib.chains.Chains(run)
    seen = chains.estimator(chains.weights, chains._batch(), chains)[0]
    # At w* the step's gradient and the anchor cancel exactly.
    for row in seen:
        assert torch.equal(row, chains.of_all_at_center())


# --- precision ------------------------------------------------------------------------------------


def large_residuals(dtype):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 3))
    y = 1e4 * (x @ rng.standard_normal(3) + rng.standard_normal(100))
    model = nn.Linear(3, 1, bias=False).to(dtype)
    model.weight.data = torch.tensor(np.linalg.lstsq(x, y, rcond=None)[0][None]).to(dtype)
    return LocalPosterior(
        model,
        lambda output, target: 0.5 * (output[:, 0] - target) ** 2,
        (torch.tensor(x).to(dtype), torch.tensor(y).to(dtype)),
        n_beta=100.0,
        localization=1e-3,
    )


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_a_float64_model_keeps_its_differences(where, tmp_path):
    store = None if where == "memory" else tmp_path / "trace.zarr"
    settings = {"draws": 100, "burn_in": 300, "thin": 10, "store": store}
    ours = large_residuals(torch.float64)
    trace = draw(ours, 4, sampler=SGLD(5e-4), **settings)
    assert {trace[k].dtype for k in ("loss", "init_loss", "sampling_loss")} == {np.dtype("f8")}
    # Exact: (nb/2) tr(H S) = 1.5, up to gamma; the step adds about a hundredth. The error of 400
    # draws with a standard deviation of sqrt(1.5) each is 0.06, times the autocorrelation.
    assert abs(float(probelib.local_learning_coefficient(trace)) - 1.5) < 0.4
    if where == "disk":
        again = draw(ours, 4, sampler=SGLD(5e-4), **settings | {"draws": 102})
        np.testing.assert_array_equal(again.loss[:, :100], trace.loss)


def test_losses_that_round_away_are_said():
    with pytest.warns(UserWarning, match=r"loss_dtype is 'float32', in which .* rounded .*float64"):
        draw(large_residuals(torch.float64), sampler=SGLD(5e-4), loss_dtype="float32")
    with pytest.warns(
        UserWarning, match=r"model is float32, in which .* rounded .*model\.double\(\)"
    ):
        draw(large_residuals(torch.float32), sampler=SGLD(5e-4))


def test_a_loss_in_float64_over_a_float32_model_is_kept_so():
    trace = draw(posterior(loss=lambda o, t: cross_entropy(o.double(), t)), until=1e-9, draws=25)
    assert trace.loss.dtype == trace.init_loss.dtype == np.float64
    assert draw(posterior()).loss.dtype == np.float32


# --- samples that mix -----------------------------------------------------------------------------


def squares(output, target):
    return ((output - target) ** 2).mean(-1)


@pytest.mark.parametrize("odd", [0, N // 2, N - 1])
@pytest.mark.parametrize("integers", [False, True])
def test_a_broadcast_that_equal_targets_hide(odd, integers):
    y = torch.zeros(N)
    y[odd] = 1
    with pytest.raises(ValueError, match="it must depend on this sample alone"):
        posterior(nn.Linear(4, 1), squares, (data()[0], y.long() if integers else y))
    right = posterior(nn.Linear(4, 1), squares, (data()[0], y[:, None]))
    assert right.n_samples == N


class Mixing(nn.Module):
    """Its samples see each other."""

    def __init__(self, how):
        super().__init__()
        self.inner, self.how = net(), how

    def forward(self, x):
        out = self.inner(x)
        if self.how == "mean":
            return out - out.mean(0)
        if self.how == "cumulative":
            return out.cumsum(0)
        if self.how == "softmax over the batch":
            return out.log_softmax(0)
        return out + out.amax(0)


@pytest.mark.parametrize("how", ["mean", "cumulative", "softmax over the batch", "largest"])
def test_a_model_that_mixes_samples(how):
    with pytest.raises(ValueError, match="it must depend on this sample alone"):
        posterior(Mixing(how))


def test_samples_that_mix_are_found_where_the_output_is_0():
    model = Mixing("largest")
    nn.init.zeros_(model.inner[-1].weight)
    with pytest.raises(ValueError, match="it must depend on this sample alone"):
        posterior(model)


def test_a_recurrent_layer_that_takes_the_batch_for_time():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.r, self.out = nn.GRU(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.out(self.r(x)[0])

    with pytest.raises(ValueError, match="it must depend on this sample alone"):
        posterior(Net())


@pytest.mark.parametrize(
    ("loss", "advice"),
    [
        (F.cross_entropy, r"\(\): |leave out the mean or sum over the batch"),
        (lambda o, t: o, r"sum or average the rest, with loss.flatten\(1\).sum\(1\)$"),
        (lambda o, t: cross_entropy(o, t)[:, None], r"flatten it, with loss.flatten\(\)$"),
        (lambda o, t: o.flatten(), r"belongs to a sample, with loss.reshape\(3, -1\).sum\(1\)$"),
        (lambda o, t: (o.argmax(1) != t).long(), "returned torch.int64, which has no gradient"),
    ],
)
def test_the_advice_fits_the_shape(loss, advice):
    with pytest.raises(ValueError, match=advice):
        posterior(loss=loss)


# --- what models are like -------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, kind, packed=False, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.r = kind(3, 5, batch_first=True, **settings)
        self.out = nn.Linear(10 if self.r.bidirectional else 5, 2)
        self.packed = packed

    def forward(self, x):
        if self.packed:
            lengths = torch.full((len(x),), x.shape[1])
            x = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            out = nn.utils.rnn.pad_packed_sequence(self.r(x)[0], batch_first=True)[0]
        else:
            out = self.r(x)[0]
        return self.out(out[:, -1])


@pytest.mark.filterwarnings("ignore:.*performance drop")
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (nn.GRU, {}),
        (nn.LSTM, {}),
        (nn.RNN, {}),
        (nn.GRU, {"bidirectional": True}),
        (nn.LSTM, {"packed": True}),
    ],
)
def test_recurrent_layers(kind, settings):
    rng = torch.Generator().manual_seed(0)
    given = torch.randn(8, 4, 3, generator=rng), torch.arange(8) % 2
    model = Recurrent(kind, **settings)
    ours = posterior(model, given=given)
    trace = draw(ours, 2, batch_size=4, draws=2)
    same(trace.isel(chain=[0]), draw(ours, 1, batch_size=4, draws=2))
    losses = F.cross_entropy(model(given[0]), given[1], reduction="none")
    np.testing.assert_allclose(trace.init_loss, losses.detach(), rtol=1e-5)
    rows = []
    for loss in losses:
        gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        rows.append(torch.cat([g.reshape(-1) for g in gradients]))
    found = influence.per_sample_gradients(ours)
    np.testing.assert_allclose(found, torch.stack(rows), rtol=1e-4, atol=1e-6)
    assert np.isfinite(influence.hessian(ours)).all()


class Keeps(nn.Module):
    """Leaves things behind on itself."""

    def __init__(self):
        super().__init__()
        self.inner, self.all, self.seen, self.calls = net(), [], {"x": []}, 0

    def forward(self, x):
        self.features = self.inner[0](x)
        self.all.append(self.features)
        self.seen["x"].append(len(x))
        self.calls += 1
        return self.inner[2](torch.tanh(self.features)) * (1 + 0.1 * len(self.all))


@pytest.mark.parametrize("ran_before", [False, True])
@pytest.mark.parametrize("chains", [1, 2])
def test_models_that_keep_what_they_computed(ran_before, chains, tmp_path):
    model = Keeps()
    if ran_before:
        model(data()[0])
    held = len(model.all), model.calls
    ours = posterior(model)
    trace = draw(ours, chains)
    with ThreadPoolExecutor(1) as pool:
        elsewhere = draw(ours, chains, executor=pool, store=tmp_path / "t.zarr")
    same(trace, elsewhere)
    assert (len(model.all), model.calls) == held
    assert len(ours.model.all) == held[0]  # each call sees the model as it was given
    copy.deepcopy(ours)
    losses = cross_entropy(net()(data()[0]) * (1.1 + 0.1 * held[0]), data()[1])
    np.testing.assert_allclose(trace.init_loss, losses.detach(), rtol=1e-5)


def test_a_hook_that_keeps_activations_on_its_module():
    model = net()
    model[1].register_forward_hook(lambda module, inputs, out: setattr(module, "kept", out))
    model(data()[0])
    same(draw(posterior(model)), draw(posterior()))


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_modules_are_run_first():
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"model has no 0\.weight yet, .*; run it once on a batch"):
        posterior(model)
    model(data()[0])
    posterior(model)


def test_a_layer_made_in_the_forward_is_refused():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, x):
            if not hasattr(self, "late"):
                self.late = nn.Linear(3, 3)
            return self.late(self.inner(x))

    with pytest.raises(ValueError, match=r"model makes late\.\w+ in its forward"):
        posterior(Late())


# --- masked logits --------------------------------------------------------------------------------


class Shared(nn.Module):
    """One block, reached by two names."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 4)
        self.again = self.first
        self.norm = self.also = nn.BatchNorm1d(4)
        self.blocks = nn.ModuleList([self.first, nn.Linear(4, 3), self.first])

    def forward(self, x):
        x = self.also(self.norm(self.again(self.first(x))))
        return self.blocks[1](self.blocks[2](x))


@pytest.mark.parametrize("train_mode", [False, True])
def test_a_module_under_two_names_has_one_set_of_weights(train_mode):
    of, model = posterior(Shared(), train_mode=train_mode), Shared().train(train_mode)
    assert of.n_parameters == sum(p.numel() for p in model.parameters()) == 43
    moved = of.center + 0.1
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    x, y = of.data.batch(slice(8))
    expected = cross_entropy(model(x), y).detach()
    for _ in range(2):  # and the next call finds the model as it was
        torch.testing.assert_close(of.losses(moved, x, y), expected)
    assert np.isfinite(draw(of).loss).all()


class Tempered(nn.Module):
    """A loss with a weight of its own."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(2.0))

    def forward(self, output, target):
        return cross_entropy(output / self.temperature, target)


def test_a_losss_own_weights_stand_still():
    loss = Tempered()
    trace = draw(posterior(loss=loss))
    same(trace, draw(posterior(loss=lambda o, t: cross_entropy(o / 2, t))))
    assert loss.temperature.requires_grad


def reads_the_callers(model):
    def decayed(output, target):
        return cross_entropy(output, target) + sum(p.square().sum() for p in model.parameters())

    return model, decayed


def reads_a_list(model):
    model.weights = list(model.parameters())
    model.register_forward_hook(lambda m, _, out: out * m.weights[0].square().mean())
    return model, cross_entropy


def reads_a_global(model):
    return nn.Sequential(model, Calls(nn.Linear(3, 3))), cross_entropy


class Calls(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = [layer]  # so that it is no part of the model

    def forward(self, x):
        return self.layer[0](x)


@pytest.mark.parametrize("reads", [reads_the_callers, reads_a_list, reads_a_global])
def test_weights_that_no_chain_would_move_are_refused(reads):
    model, loss = reads(net())
    with pytest.raises(ValueError, match=r"would stand still .* requires_grad_"):
        posterior(model, loss)


class Masked(nn.Module):
    def __init__(self, fill):
        super().__init__()
        torch.manual_seed(0)
        self.out, self.fill = nn.Linear(4, 3), fill

    def forward(self, x):
        return self.out(x[:, :4]).masked_fill(x[:, 4:] == 0, self.fill)


@pytest.mark.parametrize("loss", [cross_entropy, nn.CrossEntropyLoss(reduction="none")])
def test_masked_logits_have_the_derivatives_of_their_limit(loss):
    x, y = data()
    valid = torch.ones(N, 3)
    valid[7] = 0
    valid[7, y[7]] = 1  # its own class is all that is left
    valid[3, (y[3] + 1) % 3] = 0
    given = torch.cat([x, valid], 1), y
    ours, limit = (posterior(Masked(fill), loss, given) for fill in (float("-inf"), -1e9))
    for f in (
        influence.per_sample_gradients,
        influence.hessian,
        lambda p: influence.gradient_gram(p)[0],
        lambda p: influence.per_sample_hessians(p),
        lambda p: influence.classical_influence(p, 0.1),
        lambda p: influence.laplace_kernel(p).covariance(),
    ):
        np.testing.assert_allclose(f(ours), f(limit), rtol=1e-4, atol=1e-6)
    same(draw(ours), draw(limit))


def test_one_class_has_no_loss():
    trace = draw(posterior(nn.Linear(4, 1), given=data(classes=1)))
    assert not trace.loss.any()


def test_a_loss_whose_derivatives_are_no_numbers_is_refused():
    def root(output, target):  # at 0, where its own derivative is infinite
        return (output - output.detach()).square().sum(1).sqrt()

    ours = posterior(loss=root)
    for f in (influence.per_sample_gradients, influence.hessian, influence.gradient_gram):
        with pytest.raises(ValueError, match=r"per_sample_loss has a .* at w\* that is not finite"):
            f(ours)


class Counting(GradientEstimator):
    """A mean gradient that keeps a number on itself."""

    def __init__(self):
        self.batch_size, self.calls = 8, 0

    def __call__(self, weights, batch, gradients):
        self.calls += 1
        gradient, loss = gradients.of_batch(weights, batch)
        return gradient * self.calls, loss


def test_an_estimator_that_keeps_a_state_of_its_own_is_refused():
    with pytest.raises(ValueError, match="changes an attribute of its own"):
        draw(posterior(), sampler=SGLD(1e-3, gradient=Counting()))


def test_a_hessian_of_a_random_loss_is_refused():
    of = posterior(net(nn.Dropout(0.5)), train_mode=True)
    generator = torch.get_rng_state()
    for curvature in (influence.hessian, lambda p: influence.hessian_operator(p) @ np.ones(51)):
        with pytest.raises(ValueError, match="a Hessian needs train_mode=False"):
            curvature(of)
        with pytest.raises(ValueError, match=r"draws at random .* no Hessian"):
            curvature(posterior(Noise(lambda: float(torch.randn(())))))
    assert torch.equal(torch.get_rng_state(), generator)


def test_targets_that_a_loss_leaves_out():
    x, y = data()
    given = x, torch.where(torch.arange(N) % 5 == 0, 255, y)
    loss = nn.CrossEntropyLoss(reduction="none", ignore_index=255)
    trace = draw(posterior(loss=loss, given=given))
    assert (trace.loss[..., ::5] == 0).all()
    assert (trace.loss[..., 1:5] > 0).all()
    with pytest.raises(ValueError, match="labels from 0 to 255"):
        posterior(given=given)
