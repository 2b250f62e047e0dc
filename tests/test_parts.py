"""Parts of a network: which weights move, against closed forms and models rewritten by hand."""

import copy
import hashlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import cloudpickle
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import probelib
from probebook import toys
from probelib import SGLD, ControlVariate, LeimkuhlerMatthews, LocalPosterior, cross_entropy
from probelib.fingerprint import hash_array
from probelib.gradient_pairs import SampleGradients

pytestmark = pytest.mark.usefixtures("one_thread")

N_BETA, GAMMA = 10.0, 30.0


def data(n=24, width=4, classes=3):
    rng = torch.Generator().manual_seed(1)
    return torch.randn(n, width, generator=rng), torch.arange(n) % classes


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def part(parameters=None, model=None, given=None, loss=cross_entropy, **kwargs):
    settings = {"n_beta": N_BETA, "localization": GAMMA, "parameters": parameters} | kwargs
    model, given = net() if model is None else model, data() if given is None else given
    return LocalPosterior(model, loss, given, **settings)


def draw(posterior, chains=2, **kwargs):
    settings = {"sampler": SGLD(1e-3, 8), "draws": 4, "progress": False} | kwargs
    return probelib.sample(posterior, chains=chains, **settings)


def assert_same(a, b, names=("loss", "init_loss", "sampling_loss", "distance")):
    for name in names:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def some(shape, seed=0):
    """A mask with a half of the weights."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


# --- which weights move ---------------------------------------------------------------------------

ALL = {"0.weight": 24, "0.bias": 6, "2.weight": 18, "2.bias": 3}


@pytest.mark.parametrize(
    ("parameters", "moving"),
    [
        (None, ALL),
        ("*", ALL),
        ("2.weight", {"2.weight": 18}),
        ("2.*", {"2.weight": 18, "2.bias": 3}),
        ("*.bias", {"0.bias": 6, "2.bias": 3}),
        (["2.bias", "0.weight"], {"0.weight": 24, "2.bias": 3}),
        (("2.*", "*.bias"), {"0.bias": 6, "2.weight": 18, "2.bias": 3}),
        (lambda name, p: p.ndim == 1, {"0.bias": 6, "2.bias": 3}),
        (lambda name, p: name == "0.bias" and p > p.median(), {"0.bias": 3}),
        ({"2.*": True}, {"2.weight": 18, "2.bias": 3}),
        ({"2.weight": torch.tensor([[True], [False], [True]])}, {"2.weight": 12}),
        ({"2.weight": np.array([[True, False, False, False, False, True]])}, {"2.weight": 6}),
        ({"*.bias": torch.tensor([True])}, {"0.bias": 6, "2.bias": 3}),
    ],
)  # fmt: skip
def test_what_is_named_moves_in_the_order_of_the_model(parameters, moving):
    posterior = part(parameters)
    assert posterior.parameters == moving
    assert list(posterior.parameters) == [n for n in ALL if n in moving]
    assert posterior.n_parameters == posterior.center.numel() == sum(moving.values())
    model, whole = net(), posterior.whole(posterior.center)
    for name, parameter in whole.items():
        assert torch.equal(parameter, model.get_parameter(name))
    assert posterior.losses(posterior.center, *data()).equal(
        cross_entropy(model(data()[0]), data()[1])
    )


def test_requires_grad_has_no_say_where_parameters_are_named():
    frozen = net().requires_grad_(False)
    named = part("2.*", frozen)
    assert_same(draw(named), draw(part("2.*")))
    assert not any(p.requires_grad for p in frozen.parameters())  # the caller's stays as it was
    half = net()
    half[0].requires_grad_(False)
    assert part(None, half).parameters == {"2.weight": 18, "2.bias": 3}
    assert part("0.*", half).parameters == {"0.weight": 24, "0.bias": 6}
    seen = []
    part(lambda name, p: seen.append((name, p.requires_grad)) or name == "0.bias", half)
    assert seen == [(name, name.startswith("2")) for name in ALL]


def test_a_frozen_model_and_a_named_part_are_one_posterior():
    frozen = net()
    frozen[0].requires_grad_(False)
    for how in ({}, {"chains": 1}, {"sampler": SGLD(1e-3, gradient=ControlVariate(8))}):
        assert_same(draw(part(None, frozen), **how), draw(part("2.*"), **how))


def test_the_function_may_do_what_it_likes_to_its_parameter():
    def choose(name, parameter):
        parameter.data.zero_()
        return name == "2.bias"

    posterior = part(choose)
    assert_same(draw(posterior), draw(part("2.bias")))


def test_a_mask_is_nobody_elses():
    mask = some((3, 6))
    posterior, kept = part({"2.weight": mask}), mask.clone()
    mask.fill_(True)
    assert_same(draw(posterior), draw(part({"2.weight": kept})))


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ("2.wieght", ValueError, r"'2.wieght', which matches no parameter .* names are '2.weight'"),
        (["2.bias", "3.*"], ValueError, r"'3\.\*', which matches no parameter of model; the near"),
        ("2", ValueError, r"'2', which .*; it is a module, whose parameters are '2\.\*'"),
        ({"2.bais": True}, ValueError, "'2.bais', which matches no parameter .*'2.bias'"),
        ([], ValueError, r"parameters is \[\], for which no weight moves; name at least one"),
        ({}, ValueError, r"parameters is \{\}, for which no weight moves"),
        (lambda n, p: False, ValueError, "for which no weight moves"),
        (lambda n, p: p > 100, ValueError, "for which no weight moves"),
        (lambda n, p: None, TypeError, "parameters is None for '0.weight'; give a boolean tensor"),
        (lambda n, p: 1, TypeError, "parameters is 1 for '0.weight'; give a boolean tensor"),
        (3, TypeError, "parameters is 3; give a name or glob, a list of these, a function"),
        ([3], TypeError, "parameters has 3, which is no name; give text"),
        ({"2.bias": torch.ones(3)}, ValueError, r"\['2.bias'\] is a mask of type torch.float32"),
        ({"2.bias": torch.ones(4) > 0}, ValueError, r"mask of shape \(4,\) for '2.bias'.* \(3,\)"),
        ({"2.weight": torch.ones(6) > 0}, ValueError, r"\(6,\) .* \(3, 6\); give it as many dim"),
        ({"*": torch.ones(3, 6) > 0}, ValueError, r"of shape \(3, 6\) for '0.weight'"),
        ({"2.bias": torch.zeros(3) > 0}, ValueError, "all is False for '2.bias', so that nothing"),
        ({"2.bias": False}, ValueError, "all is False for '2.bias'.*; leave the name out"),
        ({"2.bias": [True] * 3}, TypeError, r"parameters\['2.bias'\] is \[True, True, True\] for"),
    ],
)  # fmt: skip
def test_what_names_nothing_or_does_not_fit_is_refused(parameters, error, message):
    with pytest.raises(error, match=message):
        part(parameters)


def test_buffers_and_whole_numbers_do_not_move():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match=r"'1.running_mean', .* it is a buffer, and only"):
        part("1.running_mean", model)
    model[0].steps = nn.Parameter(torch.tensor(3), requires_grad=False)
    with pytest.raises(ValueError, match=r"asks for '0.steps', which is of type torch.int64"):
        part("0.*", model)
    assert part(lambda n, p: p.is_floating_point(), model).n_parameters == 21


# --- closed forms ---------------------------------------------------------------------------------


@pytest.mark.parametrize("moving", [[0], [1, 3]])
def test_regression_of_which_some_weights_move(moving):
    r"""lambda = (nb / 2) tr(H_S (nb H_S + gamma)^-1), and the kernel and gains of the same S."""
    toy = toys.linear_regression(n=30, scales=(1.5, 0.7, 1.1, 0.4), noise=0.8, seed=3)
    mask = torch.zeros(1, 4, dtype=torch.bool)
    mask[0, moving] = True
    posterior = part({"weight": mask}, toy.model, toy.data, probelib.squared_error)
    h = toy.hessian[np.ix_(moving, moving)]
    s = np.linalg.inv(N_BETA * h + GAMMA * np.eye(len(h)))
    np.testing.assert_allclose(probelib.influence.hessian(posterior), h, rtol=1e-12)
    np.testing.assert_allclose(probelib.influence.laplace_covariance(posterior), s, rtol=1e-10)
    x = toy.x[:, moving]
    np.testing.assert_allclose(
        probelib.influence.per_sample_gradients(posterior), toy.residuals[:, None] * x, atol=1e-12
    )
    expected = N_BETA / 2 * np.trace(h @ s)
    # This sampler's stationary law is exact with the full gradient; four standard errors.
    sampler = LeimkuhlerMatthews(0.02)
    chains = draw(posterior, 4, sampler=sampler, draws=800, burn_in=50)
    for trace in (chains, probelib.importance_sample(posterior, 2000, progress=False)):
        llc = probelib.local_learning_coefficient(trace)
        assert abs(llc.value - expected) < 4 * llc.mcse
        assert llc.mcse < 0.2 * expected
        gain = probelib.loss_gain(trace)
        exact = 0.5 * np.einsum("ni,ij,nj->n", x, s, x)
        assert (abs(gain - exact) < 5 * gain.mcse).all()


def test_the_pairs_kernel_of_a_part_of_a_regression():
    toy = toys.linear_regression(n=8, scales=(1.5, 0.7, 1.1), noise=0.8, seed=3)
    mask = torch.tensor([[True, False, True]])
    posterior = part({"weight": mask}, toy.model, toy.data, probelib.squared_error)
    x = toy.x[:, [0, 2]]
    g = x @ x.T / GAMMA
    exact = np.outer(toy.residuals, toy.residuals) * g + g * g / 2
    pairs = probelib.gradient_pairs(posterior, chains=8, pairs=40, progress=False)
    found = pairs["kernel"].values
    error = found.std(0, ddof=1) / 8**0.5
    assert (abs(found.mean(0) - exact) < 5 * error + 1e-12).all()
    assert error.max() < 0.2 * abs(exact).max()


# --- against the same model, written with a smaller parameter -------------------------------------


class Rows(nn.Module):
    """A linear layer of which the first rows are a parameter."""

    def __init__(self, layer, rows):
        super().__init__()
        weight = layer.weight.detach()
        self.moving = nn.Parameter(weight[:rows].clone())
        self.register_buffer("rest", weight[rows:].clone())
        self.register_buffer("bias", layer.bias.detach().clone())

    def forward(self, x):
        return F.linear(x, torch.cat([self.moving, self.rest]), self.bias)


@pytest.mark.parametrize(
    "how",
    [
        {"chains": 1},
        {"chains": 3},
        {"sampler": SGLD(1e-3)},
        {"sampler": SGLD(1e-3, gradient=ControlVariate(8))},
        {"sampler": LeimkuhlerMatthews(1e-3, 8)},
        {"sampler": probelib.RMSpropSGLD(1e-3, 8)},
        {"observe_dtype": "bfloat16"},
        {"thin": "auto", "burn_in": 100},
    ],
)
@pytest.mark.filterwarnings("ignore:observe_dtype is 'bfloat16'", "ignore:burn_in is short")
def test_some_rows_of_a_layer_are_a_smaller_parameter(how):
    model = net()
    mask = (torch.arange(6) < 2)[:, None]
    rewritten = nn.Sequential(Rows(model[0], 2), model[1], model[2].requires_grad_(False))
    ours = draw(part({"0.weight": mask}, model), **how)
    assert_same(ours, draw(part(None, rewritten), **how))
    assert ours.attrs["config"]["n_parameters"] == 8
    assert ours.attrs["config"]["parameters"] == {"0.weight": 8}


class Attention(nn.Module):
    """Self-attention of which the projections of one head may be parameters of their own."""

    def __init__(self, width=8, heads=4):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))

    def projections(self):
        return self.q.weight, self.k.weight, self.v.weight, self.o.weight

    def forward(self, x):
        q, k, v, o = self.projections()
        a, b, c = (
            F.linear(x, w).unflatten(-1, (self.heads, -1)).transpose(1, 2) for w in (q, k, v)
        )
        mixed = (a @ b.mT / a.shape[-1] ** 0.5).softmax(-1) @ c
        return F.linear(mixed.transpose(1, 2).flatten(2), o).mean(1)


class OneHead(Attention):
    def __init__(self, given, head):
        super().__init__(given.q.in_features, given.heads)
        self.load_state_dict(given.state_dict())
        self.requires_grad_(False)
        d = given.q.in_features // given.heads
        self.at = slice(head * d, (head + 1) * d)
        own = (p.weight.detach()[self.at].clone() for p in (given.q, given.k, given.v))
        self.hq, self.hk, self.hv = map(nn.Parameter, own)
        self.ho = nn.Parameter(given.o.weight.detach()[:, self.at].clone())

    def projections(self):
        a, b = self.at.start, self.at.stop
        rows = [
            torch.cat([whole.weight[:a], own, whole.weight[b:]])
            for whole, own in ((self.q, self.hq), (self.k, self.hk), (self.v, self.hv))
        ]
        return *rows, torch.cat([self.o.weight[:, :a], self.ho, self.o.weight[:, b:]], 1)


@pytest.mark.parametrize("head", [0, 2])
@pytest.mark.parametrize("chains", [1, 3])
def test_one_head_of_an_attention_layer(head, chains):
    torch.manual_seed(0)
    model = Attention()
    x = torch.randn(20, 5, 8, generator=torch.Generator().manual_seed(1))
    rows = (torch.arange(8) // 2 == head)[:, None]
    parameters = {"[qkv].weight": rows, "o.weight": rows.T}
    given = (x, torch.arange(20) % 8)
    ours = part(parameters, model, given)
    assert ours.parameters == dict.fromkeys(["q.weight", "k.weight", "v.weight", "o.weight"], 16)
    assert_same(draw(ours, chains), draw(part(None, OneHead(model, head), given), chains))


# --- any mask at all ------------------------------------------------------------------------------


@st.composite
def masks(draw):
    """Masks of some parameters of net(), at least one weight among them."""
    found = {}
    for name, parameter in net().named_parameters():
        if draw(st.booleans()) or (name == "2.bias" and not found):
            flat = draw(st.lists(st.booleans(), min_size=(n := parameter.numel()), max_size=n))
            flat[draw(st.integers(0, n - 1))] = True
            found[name] = torch.tensor(flat).reshape(parameter.shape)
    return found


@settings(max_examples=40, deadline=None)
@given(masks())
def test_any_mask_moves_its_weights_and_no_others(mask):
    posterior, every, model = part(mask), part(), net()
    at = torch.cat([
        mask.get(name, torch.zeros(p.shape, dtype=torch.bool)).reshape(-1)
        for name, p in model.named_parameters()
    ])  # fmt: skip
    assert posterior.n_parameters == int(at.sum())
    assert torch.equal(posterior.center, every.center[at])
    moved = posterior.center + torch.linspace(-1, 1, posterior.n_parameters)
    flat = every.center.clone()
    flat[at] = moved
    for name, parameter in posterior.whole(moved).items():
        assert torch.equal(parameter, every.whole(flat)[name])
    batch = data()
    assert torch.equal(posterior.losses(moved, *batch), every.losses(flat, *batch))
    slope = torch.func.grad(posterior.mean_loss)(moved)
    assert torch.equal(slope, torch.func.grad(every.mean_loss)(flat)[at])
    together = torch.func.vmap(lambda w: posterior.losses(w, *batch))(torch.stack([moved] * 2))
    torch.testing.assert_close(together[1], posterior.losses(moved, *batch))


@settings(max_examples=40, deadline=None)
@given(masks(), masks())
def test_fingerprints_differ_exactly_where_masks_do(a, b):
    same = a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert (part(a).fingerprint() == part(b).fingerprint()) == same


# --- fingerprints ---------------------------------------------------------------------------------


def test_fingerprints_tell_parts_apart():
    base = part().fingerprint()
    assert "parameters" not in base
    for same in ("*", lambda n, p: True, {"*": True}, {n: torch.ones(()) > 0 for n in ALL}):
        assert part(same).fingerprint() == base
    zeros = net()
    for parameter in zeros.parameters():  # nothing but the names and the masks differs then
        nn.init.zeros_(parameter)
    square = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    for parameter in square.parameters():
        nn.init.zeros_(parameter)
    masked = [{"0.weight": torch.eye(4) > 0}, {"1.weight": torch.eye(4) > 0}]
    masked += [{"0.weight": torch.eye(4).flip(0) > 0}, {"0.weight": torch.arange(4)[None] < 1}]
    names = ["0.weight", "1.weight", "0.bias", "1.bias", "0.*", "1.*", "*.bias", "*.weight"]
    prints = [part(p, square).fingerprint() for p in (None, *names, *masked)]
    assert len({str(sorted(f.items())) for f in prints}) == len(prints)
    assert len({f["parameters"] for f in prints[1:]}) == len(prints) - 1


def test_weights_that_stand_still_count_in_the_fingerprint():
    mask, other = {"0.weight": some((6, 4))}, net()
    with torch.no_grad():
        other[0].weight[~mask["0.weight"]] += 1
    a, b = part(mask).fingerprint(), part(mask, other).fingerprint()
    assert [k for k in a if a[k] != b[k]] == ["weights"]


def test_the_fingerprint_of_whole_models_is_that_of_before():
    model = net()
    model[0].requires_grad_(False)
    digest, constants = hashlib.sha256(b"w*"), ("0.bias", "0.weight")
    hash_array(digest, torch.cat([p.detach().reshape(-1) for p in model[2].parameters()]))
    for name in constants:
        digest.update(name.encode())
        hash_array(digest, model.get_parameter(name))
    found = part(None, model).fingerprint()
    assert found["weights"] == digest.hexdigest()
    assert "parameters" not in found


def test_a_store_of_another_part_is_refused(tmp_path):
    first, second = ({"2.bias": torch.arange(3) == k} for k in (0, 1))
    draw(part(first), store=tmp_path / "a.zarr")
    with pytest.raises(probelib.TraceMismatch, match=r"parameters is .* there and .* here"):
        draw(part(second), store=tmp_path / "a.zarr")
    with pytest.raises(probelib.TraceMismatch, match=r"parameters is None there|parameters is .* "):
        draw(part(), store=tmp_path / "a.zarr")


# --- tied weights ---------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(self.first(x).tanh())


class Untied(nn.Module):
    """The same with one parameter and no second name for it."""

    def __init__(self):
        super().__init__()
        tied = Tied()
        self.both, self.bias = nn.Parameter(tied.first.weight.detach()), tied.last.bias

    def forward(self, x):
        return F.linear(F.linear(x, self.both).tanh(), self.both, self.bias)


@pytest.mark.parametrize(
    "parameters",
    ["first.weight", "last.weight", "*.weight", ["first.*"], lambda n, p: n == "last.weight"],
)
def test_either_name_of_tied_weights_moves_both_places(parameters):
    posterior = part(parameters, Tied())
    assert posterior.parameters == {"first.weight": 16}
    assert_same(draw(posterior), draw(part("both", Untied())))


def test_masks_by_both_names_of_tied_weights_add_up():
    a, b = some((4, 4), 1), some((4, 4), 2)
    both = part({"first.weight": a, "last.weight": b}, Tied())
    assert_same(draw(both), draw(part({"both": a | b}, Untied())))
    assert both.fingerprint() == part({"last.weight": a | b}, Tied()).fingerprint()
    assert part({"first.weight": a, "last.weight": True}, Tied()).n_parameters == 16


# --- what else takes a posterior ------------------------------------------------------------------


def test_gradients_layer_by_layer_of_whole_parameters():
    x, y = data()
    every, at = part(), {"0.weight": slice(24), "2.weight": slice(30, 48), "2.bias": slice(48, 51)}
    rows = probelib.influence.per_sample_gradients(every)
    for names in (["2.*"], ["0.weight", "2.bias"]):
        posterior = part(names)
        gradients = SampleGradients(posterior)
        assert gradients.by_layer
        assert sum(gradients.sizes) == posterior.n_parameters
        gradients.dtype = torch.float32
        out = torch.empty(24, posterior.n_parameters)
        losses = gradients.write(out, posterior.center, x, y, list(range(len(gradients.layers))))
        wanted = np.concatenate([rows[:, at[name]] for name in posterior.parameters], 1)
        np.testing.assert_allclose(out * losses[:, None], wanted, rtol=1e-4, atol=1e-6)


def test_gradients_and_hessians_of_a_mask():
    mask, every = {"0.weight": some((6, 4)), "2.bias": True}, part()
    posterior = part(mask)
    at = torch.cat([mask["0.weight"].reshape(-1), torch.zeros(24) > 0, torch.ones(3) > 0]).numpy()
    pairs = np.ix_(at, at)
    influence = probelib.influence
    np.testing.assert_allclose(
        influence.hessian(posterior), influence.hessian(every)[pairs], atol=1e-6
    )
    np.testing.assert_allclose(
        influence.per_sample_gradients(posterior),
        influence.per_sample_gradients(every)[:, at],
        atol=1e-7,
    )
    along = np.random.default_rng(0).normal(size=posterior.n_parameters)
    np.testing.assert_allclose(
        influence.hessian_operator(posterior) @ along,
        influence.hessian(every)[pairs] @ along,
        atol=1e-6,
    )
    gradients, out = SampleGradients(posterior), torch.empty(24, posterior.n_parameters)
    assert not gradients.by_layer
    losses = gradients.write(out, posterior.center, *data(), [0])
    found = (out * losses[:, None]).numpy()
    np.testing.assert_allclose(found, influence.per_sample_gradients(every)[:, at], atol=1e-6)


def test_a_part_travels_to_workers(tmp_path):
    mask = {"0.weight": some((6, 4)), "2.bias": True}
    posterior = part(mask)
    again = cloudpickle.loads(cloudpickle.dumps(posterior))
    assert again.fingerprint() == posterior.fingerprint()
    assert torch.equal(again.losses(again.center + 1, *data()),
                       posterior.losses(posterior.center + 1, *data()))  # fmt: skip
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        there = draw(posterior, store=tmp_path / "a.zarr", executor=executor)
    np.testing.assert_allclose(there.loss, draw(posterior).loss, rtol=1e-5)


class Clamped(nn.Module):
    """Writes its own weights, in sight of torch or not."""

    def __init__(self, unseen):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.unseen = nn.Linear(4, 3), unseen

    def forward(self, x):
        with torch.no_grad():
            weight = self.inner.weight
            (weight.data if self.unseen else weight).clamp_(-0.5, 0.5)
        return self.inner(x)


@pytest.mark.parametrize("unseen", [True, False])
@pytest.mark.parametrize("parameters", ["inner.weight", {"inner.weight": some((3, 4))}])
def test_a_forward_that_writes_weights_of_a_part_is_refused(unseen, parameters):
    with pytest.raises(ValueError, match="model writes its own weights in its forward"):
        part(parameters, Clamped(unseen))


def test_the_callers_model_is_left_as_it_is():
    model = net()
    model[0].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    draw(part({"0.weight": some((6, 4))}, model))
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
