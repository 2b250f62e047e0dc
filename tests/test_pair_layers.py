"""What each parameter adds to the kernel of gradient pairs."""

import importlib

import numpy as np
import pytest
import torch
from torch import nn

import probelib
from probelib.pair_walks import Walks
from probelib.sample_gradients import SampleGradients

pytestmark = pytest.mark.usefixtures("one_thread")


class Normed(nn.Sequential):
    """Differentiated whole: a layer norm has no rows of its own."""

    def __init__(self):
        super().__init__(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3, bias=False))


class Bare(nn.Module):
    """A parameter that hangs on the model itself, and comes before its layers."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(0.1 * torch.ones(4))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(x + self.shift))


def layered():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


MODELS = {"by layer": layered, "whole": Normed, "bare": Bare}


def posterior_of(model, n=7, dtype=torch.float64, **kwargs):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 4, generator=generator, dtype=dtype)
    settings = {"n_beta": 8.0, "localization": 30.0} | kwargs
    data = x, torch.arange(n) % 3
    return probelib.LocalPosterior(model.to(dtype), probelib.cross_entropy, data, **settings)


def seeded(make):
    torch.manual_seed(0)
    return make()


def both(posterior, **kwargs):
    settings = {"chains": 3, "pairs": 3, "progress": False} | kwargs
    return [
        probelib.gradient_pairs(posterior, by_layer=by_layer, **settings)
        for by_layer in (False, True)
    ]


@pytest.mark.filterwarnings("ignore:pairs has")
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("memory", [None, 300])
def test_layers_add_up_to_the_kernel(make, memory):
    posterior = posterior_of(seeded(make))
    assert SampleGradients(posterior).by_layer == (make is layered)
    total, apart = both(posterior, memory=memory)
    assert apart.layer.values.tolist() == list(posterior.parameters)
    assert apart.kernel.dims == ("chain", "layer", "sample", "other")
    assert apart.cross.dims == ("chain", "layer", "pair", "side", "sample")
    for name in ("kernel", "products", "cross"):
        summed, whole = apart[name].sum("layer"), total[name]
        scale = float(np.abs(whole).max())
        np.testing.assert_allclose(summed, whole, rtol=1e-9, atol=1e-12 * scale, err_msg=name)
    for name in ("loss", "log_weight", "init_loss"):
        np.testing.assert_array_equal(apart[name], total[name])
    for limit in (False, True):
        whole = probelib.pair_kernel(total, limit=limit)
        again = probelib.pair_kernel(apart, limit=limit)
        np.testing.assert_allclose(again.covariance(), whole.covariance(), rtol=1e-8, atol=1e-13)
        if limit:
            np.testing.assert_allclose(again.diagonal().mcse, whole.diagonal().mcse, rtol=1e-6)
        parts = [
            probelib.pair_kernel(apart, limit=limit, layer=str(name)).covariance()
            for name in apart.layer.values
        ]
        np.testing.assert_allclose(sum(parts), whole.covariance(), rtol=1e-8, atol=1e-13)
        assert all(np.abs(part).max() > 1e-6 for part in parts)


def walks_by_hand(posterior, pairs, x, y):
    """Losses, gradients of all samples and of L at the weights that chain 0 visits."""
    walks = Walks(SampleGradients(posterior), posterior.data, pairs, 0, 16, None, None)
    losses, rows = [], []
    for weights, _ in walks.weights(0):
        w = weights.clone().requires_grad_()
        each = posterior.losses(w, x, y)
        rows.append(
            torch.stack([torch.autograd.grad(one, w, retain_graph=True)[0] for one in each])
        )
        losses.append(each.detach())
    return torch.stack(losses).numpy(), torch.stack(rows).numpy()


@pytest.mark.filterwarnings("ignore:pairs has")
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_layer_has_what_its_weights_add_by_autograd(make):
    """Eq. 1's data term too, over the weights of one parameter alone, from plain gradients."""
    posterior = posterior_of(seeded(make))
    apart = both(posterior, chains=2)[1]
    x, y = posterior.data.batch(slice(0, 7))
    loss, gradient = walks_by_hand(posterior, 3, x, y)
    v = np.exp(-posterior.n_beta * (loss.mean(1) - loss.mean()))
    ends = [(a, b) for t in range(3) for a, b in ((t, t + 1), (t + 1, t))]
    norm = sum(v[a] for a, _ in ends)
    mu = sum(v[a] * loss[a] for a, _ in ends) / norm
    start = 0
    for name, size in posterior.parameters.items():
        g = gradient[:, :, start : start + size]
        start += size
        wanted = 0
        for a, b in ends:
            slope = posterior.n_beta * np.outer(loss[a] - mu, g[a].mean(0))
            wanted = wanted + v[a] * (g[a] - slope) @ g[b].T / posterior.localization / norm
        found = probelib.pair_kernel(apart, 0, layer=name).covariance()
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(found, (wanted + wanted.T) / 2, rtol=1e-7, atol=1e-9 * scale)
        limit = sum(g[a] @ g[b].T for a, b in ends) / len(ends) / posterior.localization
        found = probelib.pair_kernel(apart, 0, layer=name, limit=True).covariance()
        np.testing.assert_allclose(found, limit, rtol=1e-7, atol=1e-9 * np.abs(limit).max())


def test_what_does_not_move_is_no_layer():
    model = seeded(layered)
    model[0].requires_grad_(False)
    frozen = both(posterior_of(model))[1]
    assert frozen.layer.values.tolist() == ["2.weight", "2.bias"]
    named = both(posterior_of(seeded(Normed), parameters=["1.*", "3.weight"]))
    assert named[1].layer.values.tolist() == ["1.weight", "1.bias", "3.weight"]
    np.testing.assert_allclose(named[1].kernel.sum("layer"), named[0].kernel, rtol=1e-9, atol=1e-14)
    mask = torch.zeros(5, 4, dtype=torch.bool)
    mask[1] = True
    masked = both(posterior_of(seeded(Normed), parameters={"0.weight": mask, "3.weight": True}))
    assert masked[1].layer.values.tolist() == ["0.weight", "3.weight"]
    total = masked[1].kernel.sum("layer")
    np.testing.assert_allclose(total, masked[0].kernel, rtol=1e-9, atol=1e-14)


def test_layers_are_chosen_by_name_as_parameters_are():
    posterior = posterior_of(seeded(layered))
    total, apart = both(posterior)

    def of(**kwargs):
        return probelib.pair_kernel(apart, limit=True, **kwargs).covariance()

    first = of(layer="0.weight") + of(layer="0.bias")
    np.testing.assert_allclose(of(layer="0.*"), first, rtol=1e-9)
    np.testing.assert_array_equal(of(layer=["0.bias", "0.weight", "0.*"]), of(layer="0.*"))
    np.testing.assert_array_equal(of(layer=["*"]), of())
    selected = probelib.pair_kernel(apart.sel(layer=["0.weight", "0.bias"]), limit=True)
    np.testing.assert_array_equal(selected.covariance(), of(layer="0.*"))
    turned = apart.transpose("other", "layer", ...).isel(layer=[3, 1, 0, 2])
    for name in ("0.bias", "2.*"):
        found = probelib.pair_kernel(turned, limit=True, layer=name).covariance()
        np.testing.assert_allclose(found, of(layer=name), rtol=1e-12)
    for bad, error, match in (
        ("0", ValueError, r"layer has '0', which matches no layer of pairs; .* '0.\*'"),
        ("2.weigth", ValueError, "the nearest are '2.weight'"),
        ([], ValueError, "layer is empty; name at least one"),
        (0, TypeError, "layer is 0; give a name or glob"),
        ([0], TypeError, r"layer is \[0\]; give"),
    ):
        with pytest.raises(error, match=match):
            of(layer=bad)
    with pytest.raises(ValueError, match="kernel without layers; make them with gradient_pairs"):
        probelib.pair_kernel(total, limit=True, layer="0.weight")
    mixed = apart.assign(kernel=apart.kernel.sum("layer"))
    with pytest.raises(ValueError, match="pairs has kernel without layers"):
        probelib.pair_kernel(mixed, limit=True, layer="0.weight")
    with pytest.raises(ValueError, match="no names of its layers"):
        probelib.pair_kernel(apart.drop_vars("layer"), limit=True, layer="0.weight")
    with pytest.raises(ValueError, match="no layer left"):
        probelib.pair_kernel(apart.isel(layer=[]), limit=True)


def test_by_layer_is_yes_or_no():
    with pytest.raises(TypeError, match=r"by_layer is '0.\*'; give True or False"):
        probelib.gradient_pairs(posterior_of(seeded(layered)), by_layer="0.*")


def test_layers_in_bfloat16_add_up_as_well():
    """The precision of rows where the machine has it: sums of products round, no part drifts."""
    total, apart = both(posterior_of(seeded(layered), dtype=torch.float32))
    scale = float(np.abs(total.kernel).max())
    np.testing.assert_allclose(apart.kernel.sum("layer"), total.kernel, rtol=0, atol=0.01 * scale)


def test_a_cache_keeps_layers_apart_from_the_whole(tmp_path, monkeypatch):
    posterior = posterior_of(seeded(layered))
    total, apart = both(posterior, cache=tmp_path)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 6
    module = importlib.import_module("probelib.gradient_pairs")
    monkeypatch.setattr(module, "_walk", None)  # nothing is made anew
    for before, now in zip((total, apart), both(posterior, cache=tmp_path), strict=True):
        for name in before.variables:
            np.testing.assert_array_equal(before[name], now[name])
        assert before.attrs["fingerprint"] == now.attrs["fingerprint"]


def test_layers_are_kept_in_a_file(tmp_path):
    apart = both(posterior_of(seeded(layered)))[1]
    probelib.save(apart, tmp_path / "pairs.nc")
    again = probelib.open(tmp_path / "pairs.nc")
    assert again.layer.values.tolist() == apart.layer.values.tolist()
    np.testing.assert_array_equal(
        probelib.pair_kernel(again, limit=True, layer="0.*").covariance(),
        probelib.pair_kernel(apart, limit=True, layer="0.*").covariance(),
    )


def test_two_linear_layers_share_the_kernel_as_their_gradients_do():
    """Two linear layers near w*, where the split of the inner product is known."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False), nn.Flatten(0))
    model[0].weight.data, model[1].weight.data = torch.eye(2), torch.tensor([[1.0, 0.0]])
    x, y = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([0.0, 0.0])
    posterior = probelib.LocalPosterior(
        model.double(), probelib.squared_error, (x.double(), y.double()), n_beta=1.0,
        localization=1e8,
    )  # fmt: skip
    apart = both(posterior)[1]
    # At w* l_i' = r_i (u x_i', x_i), with r = (1, 1): products of u u' x_i'x_j and of x_i'x_j.
    for name in ("0.weight", "1.weight"):
        found = probelib.pair_kernel(apart, limit=True, layer=name).covariance() * 1e8
        np.testing.assert_allclose(found, [[1, 1], [1, 2]], rtol=1e-3)


def test_the_data_of_others_have_layers_too():
    posterior = posterior_of(seeded(Normed))
    x, y = posterior.data.batch(slice(0, 7))
    whole = both(posterior)[1]
    some = [1, 4, 5]
    part = both(posterior, observe=(x[some], y[some]))[1]
    np.testing.assert_allclose(part.cross, whole.cross[..., some], rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(
        part.products, whole.products[:, :, some][..., some], rtol=1e-9, atol=1e-13
    )
