"""What is computed belongs to the call: the caller's things stay, what surrounds it has no say."""

import copy
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Subset, TensorDataset

import probelib
from probelib import SGLD, ControlVariate, LocalPosterior, cross_entropy, influence, sample
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


@pytest.mark.parametrize(
    "around",
    [
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        torch.inference_mode,
        torch.no_grad,
        lambda: torch.set_grad_enabled(False),
        lambda: torch.device("meta"),
    ],
)
@pytest.mark.parametrize("chains", [1, 2])
def test_what_surrounds_a_call_changes_no_number(around, chains):
    x, y = data()
    given = x.numpy(), y.numpy()
    right, model = posterior(given=given), net()
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
