"""Models as users have them: half precision, wrappers, weights that are computed from others."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import probelib
from probelib import SGLD, LocalPosterior, cross_entropy, squared_error

pytestmark = pytest.mark.usefixtures("one_thread")


def data(n=24, width=4, classes=3):
    rng = torch.Generator().manual_seed(1)
    return torch.randn(n, width, generator=rng), torch.arange(n) % classes


def net(*more, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), *more, nn.Linear(6, 3))


def around(model, given=None, loss=cross_entropy, **kwargs):
    given = data() if given is None else given
    return LocalPosterior(model, loss, given, **{"n_beta": 10.0, "localization": 30.0} | kwargs)


def draw(posterior, chains=2, **kwargs):
    settings = {"sampler": SGLD(1e-3, 8), "draws": 4, "progress": False} | kwargs
    return probelib.sample(posterior, chains=chains, **settings)


def assert_same(a, b, rtol=0.0):
    for name in ("loss", "init_loss", "sampling_loss", "distance"):
        np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=rtol, err_msg=name)
    assert a.attrs["config"] == b.attrs["config"]


def assert_same_losses(a, b):
    """Of one function that is computed in two ways."""
    np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(a["distance"], b["distance"], rtol=1e-5)


def assert_one_posterior(a, b):
    """The same traces and estimates bit for bit, and one cache for both."""
    assert a.fingerprint() == b.fingerprint()
    assert_same(draw(a, 1), draw(b, 1))
    ours, theirs = draw(a), draw(b)
    assert_same(ours, theirs)
    np.testing.assert_array_equal(probelib.loss_gain(ours), probelib.loss_gain(theirs))
    llc = probelib.local_learning_coefficient
    assert llc(ours).value == llc(theirs).value


def assert_is_the_model(posterior, model, given=None, rtol=0.0):
    """Losses and gradients, near w*, of the model itself with these weights written into it."""
    x, y = data() if given is None else given
    plain = copy.deepcopy(model).eval()
    moved = posterior.center + 0.1 * torch.linspace(-1, 1, posterior.n_parameters)
    with torch.no_grad():
        for name, tensor in posterior.whole(moved).items():
            plain.get_parameter(name).copy_(tensor)
    for weights in (moved, moved.clone().requires_grad_()):
        losses = posterior.losses(weights, x, y)
        expected = posterior.per_sample_loss(plain(x), y)
        torch.testing.assert_close(losses, expected, rtol=rtol, atol=rtol)
    (slope,) = torch.autograd.grad(losses.mean(), weights)
    free = [plain.get_parameter(name) for name in posterior.parameters]
    with torch.enable_grad():
        wanted = torch.autograd.grad(expected.mean(), [p.requires_grad_() for p in free])
    torch.testing.assert_close(slope, torch.cat([g.reshape(-1) for g in wanted]))


# --- half precision -------------------------------------------------------------------------------

HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALF)
def test_a_model_in_half_precision_is_its_float32_self(dtype):
    model = net().to(dtype)
    posterior = around(model)
    assert posterior.dtype == posterior.center.dtype == torch.float32
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    assert torch.equal(posterior.center.to(dtype), flat)
    assert torch.equal(posterior.center, flat.float())
    assert_one_posterior(posterior, around(copy.deepcopy(model).float()))
    assert {p.dtype for p in model.parameters()} == {dtype}  # the caller's stays as it was
    with torch.no_grad():
        own = cross_entropy(model(data()[0].to(dtype)), data()[1])
    loss = posterior.losses(posterior.center, *data())
    # Three layers, each rounded to 8 or 11 bits of numbers up to 4.
    assert 0 < float((loss - own).abs().max()) < 32 * torch.finfo(dtype).eps


def test_steps_that_half_precision_would_round_away_are_taken():
    r"""Noise alone: |w - w*|² of so few steps is that of a random walk, d eps t."""
    step, steps = 5e-8, 40
    posterior = around(net().bfloat16(), n_beta=1e-6)
    d, center = posterior.n_parameters, posterior.center
    trace = draw(posterior, 4, sampler=SGLD(step, 8), draws=steps)
    walked = float((trace["distance"].isel(draw=-1) ** 2).mean())
    # A chi-squared of 4 d degrees of freedom; four standard deviations.
    assert abs(walked / (d * step * steps) - 1) < 4 * math.sqrt(2 / (4 * d))
    noise = torch.randn(d, generator=torch.Generator().manual_seed(0)) * step**0.5
    assert ((center + noise).bfloat16() == center.bfloat16()).float().mean() > 0.5


class Normed(nn.Module):
    """Linear layers in half precision, a norm in float32, as large models are kept."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.n, self.b = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)
        self.a.bfloat16(), self.b.bfloat16()

    def forward(self, x):
        return self.b(self.n(self.a(x)).to(self.b.weight.dtype))


@pytest.mark.parametrize("parameters", [None, "n.*", "b.weight", {"a.weight": torch.eye(6, 4) > 0}])
def test_models_of_several_types_are_float32(parameters):
    posterior = around(Normed(), parameters=parameters)
    assert posterior.dtype == torch.float32
    assert_one_posterior(posterior, around(Normed().float(), parameters=parameters))


def test_a_frozen_base_in_half_precision_is_widened_too():
    model = Normed()
    for layer in (model.a, model.b):
        layer.requires_grad_(False)
    assert_one_posterior(around(model), around(copy.deepcopy(model).float()))


@pytest.mark.parametrize("dtype", HALF)
def test_samples_in_half_precision(dtype):
    x, y = data()[0].to(dtype), torch.randn(24, 3, generator=torch.Generator().manual_seed(2))
    for target, loss in ((data()[1], cross_entropy), (y.to(dtype), squared_error)):
        full = target if target.dtype == torch.int64 else target.float()
        ours = around(net().to(dtype), (x, target), loss)
        theirs = around(net().to(dtype).float(), (x.float(), full), loss)
        for how in ({}, {"sampler": SGLD(1e-3)}, {"chains": 1}):
            assert_same(draw(ours, **how), draw(theirs, **how))
        hessian = probelib.influence.hessian
        np.testing.assert_array_equal(hessian(ours), hessian(theirs))
        pairs = (probelib.gradient_pairs(p, progress=False) for p in (ours, theirs))
        np.testing.assert_array_equal(*(p["kernel"] for p in pairs))


def test_losses_per_position_see_the_same_targets():
    y = torch.randn(24, 3, generator=torch.Generator().manual_seed(2)).bfloat16()

    def squares(output, target):
        return F.mse_loss(output, target, reduction="none")

    ours = around(net().bfloat16(), (data()[0], y), squared_error)
    theirs = around(net().bfloat16().float(), (data()[0], y.float()), squared_error)
    a, b = (draw(p, observe_loss=squares) for p in (ours, theirs))
    assert "token" in a.dims
    np.testing.assert_array_equal(a["loss"], b["loss"])
    assert a["loss"].dtype == np.float32


def test_a_losss_own_weights_follow():
    def loss():
        return nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 3]), reduction="none")

    ours = around(net().bfloat16(), loss=loss().bfloat16())
    assert_one_posterior(ours, around(net().bfloat16().float(), loss=loss()))


def test_ties_survive_the_change_of_type():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
            self.b.weight = self.a.weight
            self.register_buffer("scale", torch.tensor([1.5]))
            self.b.register_buffer("scale", torch.zeros(1))

        def forward(self, x):
            return self.b(self.a(x).tanh() * self.scale) * self.b.scale

    model = Tied().bfloat16()
    model.b.register_buffer("scale", model.scale)
    posterior = around(model)
    assert posterior.parameters == {"a.weight": 16, "b.bias": 4}
    assert posterior.model.a.weight is posterior.model.b.weight
    assert posterior.model.scale is posterior.model.b.scale
    assert_same(draw(posterior), draw(around(copy.deepcopy(model).float())))


def test_float64_stays_float64():
    given = (data()[0].double(), data()[1])
    posterior = around(net().double(), given)
    assert posterior.dtype == posterior.center.dtype == torch.float64
    assert not posterior.widened
    assert_is_the_model(posterior, net().double(), given)


def test_a_model_that_asks_for_its_type_is_refused_with_the_reason():
    class Casts(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net().bfloat16()

        def forward(self, x):
            return self.inner(x.to(torch.bfloat16))

    with pytest.raises(ValueError, match=r"failed on data .* came in half precision and is run in"):
        around(Casts())


# --- wrappers -------------------------------------------------------------------------------------


def parallel(model):
    return nn.DataParallel(model)


def inner(model):
    return nn.Sequential(torch.compile(model[0]), *model[1:])


def itself(model):
    model.compile()
    return model


@pytest.mark.parametrize(
    "wrap", [torch.compile, parallel, inner, itself, lambda m: torch.compile(parallel(m))]
)
def test_what_is_wrapped_is_the_plain_model(wrap):
    posterior = around(wrap(net()), parameters="2.*")
    assert posterior.parameters == {"2.weight": 18, "2.bias": 3}
    assert_one_posterior(posterior, around(net(), parameters="2.*"))
    assert around(wrap(net().train())).fingerprint() == around(net()).fingerprint()


@pytest.fixture
def one_process(tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    group = torch.distributed
    group.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    group.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_distributed_models_are_the_plain_model():
    wrapped = nn.parallel.DistributedDataParallel(net())
    for model in (wrapped, torch.compile(wrapped), nn.Sequential(*wrapped.module)):
        assert_one_posterior(around(model, parameters="0.weight"), around(net(), parameters="0.*t"))
    assert next(n for n, _ in wrapped.named_parameters()) == "module.0.weight"


def test_a_wrapper_with_hooks_is_refused():
    model = nn.DataParallel(net())
    model.register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(ValueError, match=r"holds, a DataParallel with hooks of its own, .* inside"):
        around(model)


def test_a_wrappers_subclass_may_do_anything():
    class Doubled(nn.DataParallel):
        def forward(self, x):
            return 2 * self.module(x)

    with pytest.raises(ValueError, match="failed on data"):  # torch takes no weights through it
        around(Doubled(net()))


def test_scripted_models_are_refused():
    for model in (torch.jit.trace(net(), data()[0]), nn.Sequential(torch.jit.script(net()))):
        with pytest.raises(ValueError, match=r"model is made by torch.jit, .*; give the module"):
            around(model)


# --- weights that are computed from others --------------------------------------------------------


class LoRALinear(nn.Module):
    """A linear layer with a low-rank addition, by the names of PEFT."""

    def __init__(self, base, rank=2, alpha=4.0, dropout=0.1):
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_dropout = nn.ModuleDict({"default": nn.Dropout(dropout)})
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})
        nn.init.normal_(self.lora_B["default"].weight, std=0.1)
        self.scaling = {"default": alpha / rank}

    def forward(self, x):
        result, dtype = self.base_layer(x), x.dtype
        for name in self.lora_A:
            a, b = self.lora_A[name], self.lora_B[name]
            x = x.to(a.weight.dtype)
            result = result + b(a(self.lora_dropout[name](x))) * self.scaling[name]
        return result.to(dtype)


class Merged(nn.Module):
    """The same layer as one product: W + s B A."""

    def __init__(self, lora):
        super().__init__()
        self.a = nn.Parameter(lora.lora_A["default"].weight.detach().clone())
        self.b = nn.Parameter(lora.lora_B["default"].weight.detach().clone())
        self.register_buffer("weight", lora.base_layer.weight.detach().clone())
        self.register_buffer("bias", lora.base_layer.bias.detach().clone())
        self.scaling = lora.scaling["default"]

    def forward(self, x):
        return F.linear(x, self.weight + self.scaling * self.b @ self.a, self.bias)


def lora():
    model = net()
    return nn.Sequential(LoRALinear(model[0]), model[1], model[2].requires_grad_(False))


def test_low_rank_adapters_move_and_their_base_does_not():
    model = lora()
    posterior = around(model)
    adapter = ["0.lora_A.default.weight", "0.lora_B.default.weight"]
    assert posterior.parameters == dict(zip(adapter, [8, 12], strict=True))
    assert_is_the_model(posterior, model)
    merged = nn.Sequential(Merged(model[0]), model[1], model[2])
    assert_same(draw(posterior), draw(around(merged)), rtol=1e-5)
    named = copy.deepcopy(model).requires_grad_(True)
    assert_same(draw(posterior), draw(around(model, parameters="*.lora_*")))
    ours, theirs = draw(around(named, parameters="*.lora_*")), draw(posterior)
    for name in ("loss", "distance"):
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_adapters_of_a_base_in_half_precision():
    model = lora()
    model[0].base_layer.bfloat16()
    posterior = around(model)
    assert_one_posterior(posterior, around(copy.deepcopy(model).float()))
    assert posterior.model[0].base_layer.weight.dtype == torch.float32


class Symmetric(nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).mT


class Computed(nn.Module):
    """A network, the first layer with a weight that a function makes of parameters."""

    def __init__(self, model, make, **given):
        super().__init__()
        self.free = nn.ParameterDict({k: nn.Parameter(t.detach()) for k, t in given.items()})
        self.make, self.rest, self.bias = make, copy.deepcopy(model[1:]), model[0].bias

    def forward(self, x):
        return self.rest(F.linear(x, self.make(**self.free), self.bias))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated", "ignore:.*performance drop")
def test_weight_norm_is_a_function_of_length_and_direction():
    model = net()
    parametrizations.weight_norm(model[0])
    free = model[0].parametrizations.weight
    right = Computed(
        model, lambda g, v: g * v / v.norm(dim=1, keepdim=True), g=free.original0, v=free.original1
    )
    g = "0.parametrizations.weight.original0"
    posterior = around(model, parameters=g)
    assert posterior.parameters == {g: 6}
    assert_is_the_model(posterior, model, rtol=1e-6)
    assert_same_losses(draw(posterior), draw(around(right, parameters="free.g")))
    both = around(model, parameters="0.parametrizations.*")
    assert_same_losses(draw(both), draw(around(right, parameters="free.*")))
    old = net()
    nn.utils.weight_norm(old[0])  # torch's older form, a hook; deprecated, and in many models
    assert_same_losses(draw(around(old, parameters="0.weight_*")), draw(both))


def test_spectral_norm_in_eval_divides_by_a_fixed_direction():
    model = net()
    parametrizations.spectral_norm(model[0])
    model.eval()
    norm = model[0].parametrizations.weight[0]
    u, v = norm._u.clone(), norm._v.clone()
    right = Computed(
        model,
        lambda w: w / torch.dot(u, torch.mv(w, v)),
        w=model[0].parametrizations.weight.original,
    )
    posterior = around(model, parameters="0.parametrizations.*")
    assert_is_the_model(posterior, model)
    assert_same_losses(draw(posterior), draw(around(right, parameters="free.*")))


def test_a_parametrisation_of_ones_own():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    parametrize.register_parametrization(model[0], "weight", Symmetric())
    posterior = around(model)
    assert_is_the_model(posterior, model)
    # What the function never reads feels the prior alone: it moves, and changes no loss.
    below = torch.ones(4, 4).tril(-1) > 0
    idle = around(model, parameters={"0.parametrizations.weight.original": below})
    assert (draw(idle)["loss"] == draw(idle)["init_loss"]).all()


# --- layers with a state --------------------------------------------------------------------------


def normed(**settings):
    model = net(nn.BatchNorm1d(6, **settings))
    with torch.no_grad():
        for _ in range(5):
            model.train()(data(64)[0] + 0.5)
    return model


def test_batch_normalisation_is_a_fixed_scale_in_eval():
    model = normed()
    posterior = around(model)
    assert_is_the_model(posterior, model)

    class Affine(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.weight, self.bias = norm.weight, norm.bias
            self.scale = torch.rsqrt(norm.running_var + norm.eps)
            self.mean = norm.running_mean.clone()

        def forward(self, x):
            return (x - self.mean) * self.scale * self.weight + self.bias

    right = nn.Sequential(*model[:2], Affine(model[2]), model[3])
    assert_same_losses(draw(posterior), draw(around(right)))


def test_batch_normalisation_that_mixes_samples_is_refused_or_asked_for():
    with pytest.raises(ValueError, match=r"per_sample_loss is .* in a batch of .* must depend on"):
        around(normed(track_running_stats=False))
    model = normed()
    posterior, (x, y) = around(model, train_mode=True), data()  # somebody asked for it
    expected = cross_entropy(copy.deepcopy(model).train()(x), y)
    torch.testing.assert_close(posterior.losses(posterior.center, x, y), expected.detach())
    for single in (
        lambda: probelib.influence.per_sample_gradients(posterior),
        lambda: probelib.gradient_pairs(posterior, progress=False),
        lambda: probelib.importance_sample(posterior, 4, progress=False),
    ):
        with pytest.raises(ValueError, match="posterior is in train mode, where a loss may depend"):
            single()


class Recurrent(nn.Module):
    def __init__(self, kind, flatten, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.r, self.flatten = kind(4, 5, batch_first=True, **settings), flatten
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        if self.flatten:
            self.r.flatten_parameters()
        return self.out(self.r(x)[0][:, -1])


class Gated(nn.Module):
    """A GRU by its equations (Cho et al., 2014), in which any operation may be run together."""

    def __init__(self, given):
        super().__init__()
        self.r, self.out = nn.ParameterDict(given.r.named_parameters()), given.out

    def forward(self, x):
        h = x.new_zeros(len(x), 5)
        for t in range(x.shape[1]):
            a = F.linear(x[:, t], self.r["weight_ih_l0"], self.r["bias_ih_l0"]).chunk(3, 1)
            b = F.linear(h, self.r["weight_hh_l0"], self.r["bias_hh_l0"]).chunk(3, 1)
            r, z = (a[0] + b[0]).sigmoid(), (a[1] + b[1]).sigmoid()
            h = (1 - z) * (a[2] + r * b[2]).tanh() + z * h
        return self.out(h)


SEQUENCES = torch.randn(24, 6, 4, generator=torch.Generator().manual_seed(3)), data()[1]


@pytest.mark.filterwarnings("ignore:.*performance drop", "ignore:RNN module weights")
@pytest.mark.parametrize(
    ("flatten", "parameters"), [(False, None), (True, "r.weight_hh_l0"), (False, "r.*")]
)
def test_recurrent_layers_and_parts_of_them(flatten, parameters):
    for kind, settings in ((nn.LSTM, {"num_layers": 2}), (nn.GRU, {})):
        model = Recurrent(kind, flatten, **settings)
        posterior = around(model, SEQUENCES, parameters=parameters)
        assert_is_the_model(posterior, model, SEQUENCES, rtol=1e-6)
        half = around(model.bfloat16(), SEQUENCES, parameters=parameters)
        assert_one_posterior(
            half, around(copy.deepcopy(model).float(), SEQUENCES, parameters=parameters)
        )
    model = Recurrent(nn.GRU, flatten)
    trace = draw(around(model, SEQUENCES, parameters=parameters), 3)
    right = draw(around(Gated(model), SEQUENCES, parameters=parameters), 3)
    assert_same_losses(trace, right)
