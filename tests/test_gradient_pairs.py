"""Pairs of gradients against closed forms, quadrature and plain autograd."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from regressions import Exact
from torch import nn

import probelib
from probelib.gradient_pairs import SampleGradients

pytestmark = pytest.mark.usefixtures("one_thread")


def regression(n=6, d=3, gamma=2.0, seed=0, dtype=torch.float64):
    """Least squares at some w*, with its Gaussian kernel in closed form."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.normal(size=n)
    model = nn.Sequential(nn.Linear(d, 1, bias=False), nn.Flatten(0)).to(dtype)
    posterior = probelib.LocalPosterior(
        model,
        probelib.squared_error,
        (torch.tensor(x, dtype=dtype), torch.tensor(y, dtype=dtype)),
        n_beta=1e-6,
        localization=gamma,
    )
    residual = x @ model[0].weight.detach().double().numpy()[0] - y
    gram = x @ x.T
    truth = np.outer(residual, residual) * gram / gamma + gram**2 / (2 * gamma**2)
    return posterior, truth


def test_linear_regression_has_the_kernel_of_its_closed_form():
    posterior, truth = regression()
    found = probelib.gradient_pairs(posterior, chains=600, pairs=4, progress=False)
    each = found.kernel.values.astype(np.float64)
    error = each.std(0, ddof=1) / np.sqrt(len(each))
    # 21 distinct entries: the largest of as many standard normals exceeds 4 once in 750 runs.
    assert np.abs((each.mean(0) - truth) / error).max() < 4
    assert error.max() < 0.1 * truth.max()
    limit, weighted = (probelib.pair_kernel(found, limit=limit) for limit in (True, False))
    np.testing.assert_allclose(weighted.covariance(), limit.covariance(), rtol=1e-3, atol=1e-5)


# As many chains as give each the same standard error, 4 % of the largest entry.
@pytest.mark.parametrize(("pairs", "chains"), [(1, 1500), (2, 1000), (7, 500)])
def test_the_kernel_is_unbiased_however_few_the_pairs(pairs, chains):
    posterior, truth = regression(n=3, d=2, gamma=0.7, seed=3)
    found = probelib.gradient_pairs(posterior, chains=chains, pairs=pairs, progress=False)
    each = found.kernel.values.astype(np.float64)
    error = each.std(0, ddof=1) / np.sqrt(len(each))
    assert np.abs((each.mean(0) - truth) / error).max() < 4


def test_far_from_linear_losses_have_the_kernel_that_quadrature_finds():
    """One weight, a tanh and a saturated logit: no Taylor expansion holds at this gamma."""

    class Curved(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(1, 1, bias=False)
            self.linear.weight.data.fill_(0.4)

        def forward(self, x):
            return torch.tanh(3 * self.linear(x)).flatten()

    x, y = torch.tensor([[1.0], [-0.5], [2.0]]), torch.tensor([0.9, 0.3, -1.0])
    posterior = probelib.LocalPosterior(
        Curved().double(),
        probelib.squared_error,
        (x.double(), y.double()),
        n_beta=1.0,
        localization=1.0,
    )
    nodes, mass = np.polynomial.hermite_e.hermegauss(200)
    w = 0.4 + nodes
    loss = 0.5 * (np.tanh(3 * np.outer(x.numpy().ravel(), w)) - y.numpy()[:, None]) ** 2
    mass = mass / mass.sum()
    centred = loss - loss @ mass[:, None]
    truth = (centred * mass) @ centred.T
    found = probelib.gradient_pairs(posterior, chains=4000, pairs=3, progress=False)
    each = found.kernel.values.astype(np.float64)
    error = each.std(0, ddof=1) / np.sqrt(len(each))
    assert np.abs((each.mean(0) - truth) / error).max() < 4
    assert (error < 0.1 * np.abs(truth).max()).all()


class ConvNet(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(2, 4, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 3, 1),
            nn.ReLU(),
            nn.Conv2d(3, 5, (2, 3), padding=(0, 1), dilation=(1, 1)),
            nn.Flatten(),
            nn.Linear(5 * 3 * 4, 7),
            nn.ReLU(),
            nn.Linear(7, 3, bias=False),
        )


class Separable(nn.Sequential):
    """Depthwise and grouped convolutions with batch normalisation, as in efficient networks."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(2, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU6(),
            nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU6(),
            nn.Conv2d(4, 6, 1, groups=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 3),
        )
        generator = torch.Generator().manual_seed(5)
        for module in self:
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)


def posterior_of(model, x, y, **kwargs):
    return probelib.LocalPosterior(
        model, probelib.cross_entropy, (x, y), n_beta=10.0, localization=100.0, **kwargs
    )


def images(n=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, 8, 8, generator=generator), torch.arange(n) % 3


def gram_by_autograd(posterior, x, y):
    rows = []
    for xi, yi in zip(x, y, strict=True):
        w = posterior.center.clone().requires_grad_()
        rows.append(torch.autograd.grad(posterior.losses(w, xi[None], yi[None])[0], w)[0])
    rows = torch.stack(rows).double()
    return (rows @ rows.T).numpy()


def gram_by_layers(posterior, x, y):
    gradients = SampleGradients(posterior)
    gradients.dtype = torch.float32
    out = torch.empty(len(y), sum(gradients.sizes))
    group = list(range(len(gradients.sizes)))
    losses = gradients.write(out, posterior.center, x, y, group)
    rows = (out * losses[:, None]).double()
    return (rows @ rows.T).numpy(), gradients


@pytest.mark.parametrize("model", [ConvNet, Separable])
def test_layers_know_the_gradients_of_their_samples(model):
    torch.manual_seed(0)
    x, y = images()
    posterior = posterior_of(model(), x, y)
    gram, gradients = gram_by_layers(posterior, x, y)
    assert gradients.by_layer
    np.testing.assert_allclose(gram, gram_by_autograd(posterior, x, y), rtol=1e-4, atol=1e-7)


def test_frozen_layers_have_no_gradient():
    torch.manual_seed(0)
    x, y = images()
    model = ConvNet()
    for parameter in nn.ModuleList(list(model)[:6]).parameters():
        parameter.requires_grad_(False)
    model[6].bias.requires_grad_(False)
    posterior = posterior_of(model, x, y)
    gram, gradients = gram_by_layers(posterior, x, y)
    assert gradients.by_layer
    assert len(gradients.layers) == 2
    np.testing.assert_allclose(gram, gram_by_autograd(posterior, x, y), rtol=1e-4, atol=1e-7)


class Shared(nn.Module):
    """One layer used twice: an outer product of the last call would be wrong."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))


@pytest.mark.parametrize(
    "model",
    [
        Shared(),
        nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)),
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4)),
    ],
    ids=["shared", "layer norm", "in place"],
)
def test_other_models_are_differentiated_sample_by_sample(model):
    x, y = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), torch.arange(5) % 4
    posterior = posterior_of(model, x, y)
    gram, _ = gram_by_layers(posterior, x, y)
    np.testing.assert_allclose(gram, gram_by_autograd(posterior, x, y), rtol=1e-4, atol=1e-7)


def test_groups_of_layers_give_the_kernel_of_all_at_once():
    torch.manual_seed(0)
    x, y = images()
    posterior = posterior_of(ConvNet(), x, y)
    together, apart = (
        probelib.gradient_pairs(posterior, chains=2, pairs=3, memory=memory, progress=False)
        for memory in (None, 500)
    )
    assert len(list(SampleGradients(posterior).groups(9, 500))) > 2
    np.testing.assert_array_equal(together.loss, apart.loss)
    # bfloat16 products, summed in another order.
    scale = np.abs(together.kernel.values).max()
    np.testing.assert_allclose(together.kernel, apart.kernel, rtol=0, atol=0.01 * scale)


def test_a_subset_has_the_block_of_the_whole():
    """The walk knows nothing of what is observed: the basis for recomputing a part of a kernel."""
    torch.manual_seed(0)
    x, y = images()
    posterior = posterior_of(ConvNet(), x, y)
    whole = probelib.gradient_pairs(posterior, chains=2, pairs=2, progress=False)
    some = np.array([1, 4, 7])
    part = probelib.gradient_pairs(posterior, (x[some], y[some]), chains=2, pairs=2, progress=False)
    np.testing.assert_allclose(part.loss, whole.loss[:, :, some], rtol=1e-5)
    block = whole.kernel.values[:, some][:, :, some]
    np.testing.assert_allclose(part.kernel, block, rtol=0, atol=0.01 * np.abs(block).max())


def test_a_chain_depends_on_its_number_and_the_seed_alone():
    posterior, _ = regression()
    two, five = (
        probelib.gradient_pairs(posterior, chains=c, pairs=2, seed=7, progress=False)
        for c in (2, 5)
    )
    np.testing.assert_array_equal(two.kernel, five.kernel[:2])
    other = probelib.gradient_pairs(posterior, chains=2, pairs=2, seed=8, progress=False)
    assert not np.allclose(other.kernel, two.kernel)
    assert not np.allclose(two.kernel[0], two.kernel[1])


def test_confident_samples_keep_their_correlations():
    """Losses of 1e-25 nats and gradients alike: their products underflow in float32."""
    model = nn.Linear(2, 2, bias=False)
    model.weight.data = torch.tensor([[29.0, 0.0], [-29.0, 0.0]])
    x = torch.tensor([[1.0, 0.2], [1.0, -0.2], [0.1, 1.0]])
    posterior = probelib.LocalPosterior(
        model,
        probelib.cross_entropy,
        (x, torch.zeros(3, dtype=torch.int64)),
        n_beta=1.0,
        localization=1e4,
    )
    found = probelib.gradient_pairs(posterior, chains=2, pairs=2, progress=False)
    correlation = probelib.pair_kernel(found).correlation()
    assert found.init_loss.values[0] < 1e-24
    # So near w* the correlation is the cosine of the gradients, (x_i'x_j) / |x_i||x_j|.
    assert correlation[0, 1] == pytest.approx(0.96 / 1.04, abs=0.02)
    assert correlation[0, 2] == pytest.approx(0.3 / np.sqrt(1.04 * 1.01), abs=0.03)


def test_chains_are_kept_and_found_again(tmp_path, monkeypatch):
    posterior, _ = regression()
    first = probelib.gradient_pairs(posterior, chains=2, pairs=2, cache=tmp_path, progress=False)
    kept = sorted(tmp_path.rglob("*.safetensors"))
    assert len(kept) == 2
    written = []
    original = SampleGradients.write
    monkeypatch.setattr(SampleGradients, "write", lambda *a: written.append(1) or original(*a))
    again = probelib.gradient_pairs(posterior, chains=2, pairs=2, cache=tmp_path, progress=False)
    np.testing.assert_array_equal(first.kernel, again.kernel)
    assert len(written) <= 2  # the look at whether layers account for the gradient
    kept[0].write_bytes(kept[0].read_bytes()[:-9])  # damaged: made again
    more = probelib.gradient_pairs(posterior, chains=3, pairs=2, cache=tmp_path, progress=False)
    np.testing.assert_array_equal(more.kernel[:2], first.kernel)
    other, _ = regression(seed=5)
    fresh = probelib.gradient_pairs(other, chains=2, pairs=2, cache=tmp_path, progress=False)
    assert not np.allclose(fresh.kernel, first.kernel)


@pytest.mark.parametrize(
    ("name", "value"),
    [("chains", 1), ("pairs", 0), ("batch_size", 0), ("seed", -1), ("pairs", 2.5)],
)
def test_bad_arguments_are_named(name, value):
    posterior, _ = regression()
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        probelib.gradient_pairs(posterior, progress=False, **{name: value})


def test_train_mode_is_refused():
    x, y = images()
    with pytest.raises(ValueError, match="train mode"):
        probelib.gradient_pairs(posterior_of(ConvNet(), x, y, train_mode=True), progress=False)


def test_losses_that_overflow_are_named():
    class Explodes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1, bias=False)
            self.layer.weight.data.zero_()

        def forward(self, x):
            return torch.exp(1e4 * self.layer(x) ** 2).flatten()

    data = torch.ones(3, 1), torch.ones(3)
    posterior = probelib.LocalPosterior(
        Explodes(), probelib.squared_error, data, n_beta=1.0, localization=1e-2
    )
    with pytest.raises(ValueError, match=r"localization is 0.01, at which sample 0"):
        probelib.gradient_pairs(posterior, progress=False)


def test_matrix_kernel_has_the_conventions_of_eq_6():
    covariance = np.array([[4.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    kernel = probelib.MatrixKernel(covariance)
    np.testing.assert_allclose(
        kernel.correlation(), [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 0]], atol=1e-12
    )
    np.testing.assert_array_equal(kernel.diagonal(), [4, 1, 0])
    np.testing.assert_array_equal(kernel.covariance(np.array([1]), np.array([0, 1])), [[1.0, 1.0]])
    with pytest.raises(ValueError, match="square"):
        probelib.MatrixKernel(np.ones((2, 3)))
    with pytest.raises(ValueError, match="row 1"):
        probelib.MatrixKernel(np.array([[1.0, 0.0], [np.nan, 1.0]]))


def test_the_kernel_of_pairs_knows_labels_and_the_spread_between_chains():
    torch.manual_seed(0)
    x, y = images()
    found = probelib.gradient_pairs(posterior_of(ConvNet(), x, y), chains=3, progress=False)
    diagonal = probelib.pair_kernel(found, limit=True).diagonal()
    np.testing.assert_array_equal(diagonal.label, y)
    np.testing.assert_array_equal(diagonal.sample_id, np.arange(9))
    each = np.stack([np.diag(k) for k in found.kernel.values])
    student = 4.3027 / 1.96  # of two degrees of freedom, at 97.5 %
    spread = each.std(0, ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(diagonal.mcse, student * spread, rtol=1e-4)
    np.testing.assert_allclose(diagonal, each.mean(0))
    assert np.isnan(probelib.pair_kernel(found, slice(1), limit=True).diagonal().mcse).all()


def test_the_data_term_needs_what_the_walks_kept():
    pairs = probelib.gradient_pairs(regression()[0], chains=2, pairs=2, progress=False)
    with pytest.raises(ValueError, match=r"pairs has no cross, .* limit=True"):
        probelib.pair_kernel(pairs.drop_vars("cross"))
    probelib.pair_kernel(pairs.drop_vars(["cross", "products", "log_weight"]), limit=True)
    stripped = probelib.pair_kernel(pairs.drop_attrs()).covariance()
    np.testing.assert_array_equal(stripped, probelib.pair_kernel(pairs).covariance())
    turned = pairs.transpose("sample", "other", "draw", "side", "pair", "chain")
    np.testing.assert_allclose(probelib.pair_kernel(turned).covariance(), stripped)
    some = pairs.isel(sample=[4, 1], other=[4, 1])
    np.testing.assert_allclose(
        probelib.pair_kernel(some).covariance(), stripped[np.ix_([4, 1], [4, 1])]
    )
    with pytest.raises(ValueError, match="pairs has 2 draws in walks of 2 pairs"):
        probelib.pair_kernel(pairs.isel(draw=[0, 1]))


def test_split_half_reliability_is_the_share_of_signal():
    rng = np.random.default_rng(0)
    n, signal, noise = 400, 0.02, 0.01

    def symmetric(scale):
        a = rng.normal(0, scale, (n, n))
        return np.triu(a, 1) + np.triu(a, 1).T + np.eye(n)

    truth = symmetric(signal)
    found = probelib.split_half_reliability(truth + symmetric(noise), truth + symmetric(noise))
    # Of 79,800 pairs, r has a standard error of about (1 - r²) / sqrt(79,800) = 0.0013.
    assert found == pytest.approx(signal**2 / (signal**2 + noise**2), abs=0.006)
    assert probelib.split_half_reliability(truth, truth) == pytest.approx(1)
    assert probelib.split_half_reliability(np.eye(5), np.eye(5)) == 0
    with pytest.raises(ValueError, match="shape"):
        probelib.split_half_reliability(np.eye(4), np.eye(5))


@pytest.fixture(scope="module")
def tilted():
    """Regression at its minimum, where half of the draws of N(w*, I / gamma) count under Eq. 1."""
    exact = Exact(n=6, d=3, gamma=20.0, n_beta=10.0, seed=2)
    pairs = probelib.gradient_pairs(exact.posterior, chains=600, pairs=3, progress=False)
    return exact, pairs


def test_weighted_pairs_have_the_kernel_of_eq_1(tilted):
    """Closed form, where the limit without the data term is far off."""
    exact, pairs = tilted
    _, truth, _ = exact.at(10.0)
    found = probelib.pair_kernel(pairs)
    blocks = np.stack(
        [probelib.pair_kernel(pairs, slice(c, c + 60)).covariance() for c in range(0, 600, 60)]
    )
    error = blocks.std(0, ddof=1) / np.sqrt(10)
    # 21 entries of 9 degrees of freedom: the largest exceeds 5.5 once in 120 runs.
    assert np.abs((found.covariance() - truth) / error).max() < 5.5
    assert error.max() < 0.05 * truth.max()
    diagonal = found.diagonal()
    assert np.abs((diagonal - np.diag(truth)) / diagonal.mcse).max() < 4
    np.testing.assert_allclose(diagonal.mcse, np.diag(error), rtol=1.0)
    limit = probelib.pair_kernel(pairs, limit=True).covariance()
    assert np.abs(limit - truth).max() > 0.3 * truth.max()


def test_errors_of_few_walks_cover(tilted):
    """100 times six walks of three pairs: t-quantiles, where the weights bear an error at all."""
    exact, pairs = tilted
    truth = np.diag(exact.at(10.0)[1])
    hits = []
    for chain in range(0, 600, 6):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            diagonal = probelib.pair_kernel(pairs, slice(chain, chain + 6)).diagonal()
        hits.append(np.abs(diagonal - truth) < 1.96 * diagonal.mcse)
    assert np.mean(hits) > 0.9
    limit = [probelib.pair_kernel(pairs, slice(c, c + 6), limit=True) for c in range(0, 600, 6)]
    truth = np.diag(np.mean([k.covariance() for k in limit], 0))
    hits = [np.abs(k.diagonal() - truth) < 1.96 * k.diagonal().mcse for k in limit]
    assert 0.88 < np.mean(hits) < 0.99


def test_few_draws_of_unlike_weights_bear_no_error(tilted):
    _, pairs = tilted
    with pytest.warns(UserWarning, match=r"worth only .* draws of Eq. 1; take more chains"):
        diagonal = probelib.pair_kernel(pairs, slice(2)).diagonal()
    assert np.isinf(diagonal.mcse).all()
    for heavy in (1, 2):  # one draw outweighs the rest, however many there are
        lame = pairs.copy(deep=True)
        lame.log_weight[heavy, 0] += 50
        with pytest.warns(UserWarning, match=r"worth only 0.\d+ draws"):
            assert np.isinf(probelib.pair_kernel(lame).diagonal().mcse).all()


def test_l_is_that_of_the_posterior_whatever_pairs_observe(tilted):
    exact, _ = tilted
    some = np.array([1, 5])
    whole = probelib.gradient_pairs(exact.posterior, chains=2, pairs=3, progress=False)
    part = probelib.gradient_pairs(
        exact.posterior, tuple(t[some] for t in exact.data), chains=2, pairs=3, progress=False
    )
    np.testing.assert_allclose(part.log_weight, whole.log_weight, rtol=1e-12)
    np.testing.assert_allclose(part.cross, whole.cross[..., some], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        part.products, whole.products[:, some][..., some], rtol=1e-9, atol=1e-12
    )


def test_a_constant_in_the_loss_leaves_the_weighted_kernel():
    """Of 1e4 nats, beside changes of 0.1."""
    found = []
    for offset in (0.0, 1e4):
        exact = Exact(n=6, d=3, gamma=20.0, n_beta=10.0, seed=2, offset=offset)
        pairs = probelib.gradient_pairs(exact.posterior, chains=40, pairs=2, progress=False)
        found.append(probelib.pair_kernel(pairs).covariance())
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-7)


class Scaled(nn.Linear):
    def forward(self, x):
        return F.linear(x, 3 * self.weight, self.bias)


class SequenceFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x):
        return self.layer(x.reshape(len(x), 2, 2).transpose(0, 1)).sum(0)


class UsedAgain(nn.Module):
    """The weight of a layer, once more by hand: nothing at w*, where the gate is shut."""

    def __init__(self, gate):
        super().__init__()
        self.layer, self.gate = nn.Linear(4, 3), nn.Linear(4, 1, bias=False)
        self.gate.weight.data.fill_(gate)

    def forward(self, x):
        return self.layer(x) + self.gate(x) * F.linear(x**2, self.layer.weight)


def hooked(change_input=False):
    layer = nn.Linear(4, 3)
    if change_input:
        layer.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    else:
        layer.register_forward_hook(lambda module, args, output: 2 * output)
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(3, 3))


def own_forward():
    model = nn.Sequential(nn.Linear(4, 3))
    layer = model[0]
    layer.forward = lambda x: F.linear(2 * x, layer.weight, layer.bias)
    return model


def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


class Backwards(nn.Module):
    def __init__(self):
        super().__init__()
        self.last, self.first = nn.Linear(5, 3), nn.Linear(4, 5)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


class Casting(nn.Linear):
    """A layer that only sees to its type, as many libraries have."""

    def forward(self, x):
        return super().forward(x.to(self.weight.dtype))


class Moody(nn.Linear):
    """Plain for nearly all inputs, so that a look at a few of them finds nothing."""

    def forward(self, x):
        return super().forward(x) * torch.where(x[:, :1] > 5, x[:, 1:2], 1.0)


class Detached(nn.Linear):
    """Right values, but not all of them depend on the weight as they seem to."""

    def forward(self, x):
        out = super().forward(x)
        return torch.where(x[:, :1] > 5, out.detach(), out)


class Adapted(nn.Linear):
    """A weight more than its class has."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.adapter = nn.Parameter(torch.randn(outputs, inputs) / 10)

    def forward(self, x):
        return F.linear(x, self.weight + self.adapter, self.bias)


KINDS = {
    "subclass that casts": (
        lambda: nn.Sequential(Casting(4, 5), nn.Tanh(), Casting(5, 3)),
        True,
    ),
    "subclass with another weight": (
        lambda: nn.Sequential(Adapted(4, 5), nn.Tanh(), nn.Linear(5, 3)),
        False,
    ),
    "subclass": (lambda: nn.Sequential(Scaled(4, 5), nn.Tanh(), nn.Linear(5, 3)), False),
    "positions first": (SequenceFirst, False),
    "weight used again": (lambda: UsedAgain(0.5), False),
    "weight used again, not at w*": (lambda: UsedAgain(0.0), False),
    "hook on the output": (hooked, False),
    "hook on the input": (lambda: hooked(change_input=True), False),
    "parametrized": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))),
        False,
    ),
    "tied": (tied, False),
    "made in another order": (Backwards, True),
}


@pytest.mark.parametrize(("model", "layers"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("ignored", ["first", "last", "none"])
def test_only_layers_that_are_what_they_seem_are_taken(model, layers, ignored):
    """The first samples may have no gradient at all, which agrees with anything."""
    torch.manual_seed(0)
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    if ignored != "none":
        y[:5] = -100
    if ignored == "last":
        x, y = x.flip(0), y.flip(0)
    posterior = probelib.LocalPosterior(
        model(),
        lambda output, target: F.cross_entropy(output, target, reduction="none"),
        (x, y),
        n_beta=1.0,
        localization=100.0,
    )
    gradients = SampleGradients(posterior)
    assert gradients.by_layer == layers
    gradients.dtype = torch.float32
    rows = torch.empty(12, posterior.n_parameters)
    weights = posterior.center + 0.1 * torch.randn(posterior.n_parameters)
    losses = gradients.write(rows, weights, x, y, list(range(len(gradients.sizes))))
    for at in range(12):
        w = weights.clone().requires_grad_()
        (wanted,) = torch.autograd.grad(posterior.losses(w, x[[at]], y[[at]])[0], w)
        scale = losses[at] if losses[at] else 1.0
        torch.testing.assert_close(rows[at] * scale, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [Moody, Detached])
@pytest.mark.parametrize("groups", [[[0, 1, 2]], [[0], [1, 2]]])
def test_a_batch_for_which_a_subclass_is_not_plain_is_differentiated_by_autograd(groups, kind):
    torch.manual_seed(1)
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    x[5] = torch.tensor([6.0, 3.0, 0.1, 0.2])  # not among those that are tried beforehand
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), kind(4, 3)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4))
        model[0].bias.zero_()
        model[2].weight.copy_(5.005 * torch.eye(4))  # beyond 5 where the input is beyond 3.8
        model[2].bias.zero_()
    loss = lambda output, target: F.cross_entropy(output, target, reduction="none")  # noqa: E731
    posterior = probelib.LocalPosterior(model, loss, (x, y), n_beta=1.0, localization=1e4)
    gradients = SampleGradients(posterior)
    assert gradients.by_layer
    gradients.dtype = torch.float32
    weights = posterior.center + 0.01 * torch.randn(posterior.n_parameters)
    parts = []
    for group in groups:
        rows = torch.empty(12, sum(gradients.sizes[at] for at in group))
        losses = gradients.write(rows, weights, x, y, group)
        parts.append(rows)
    rows = torch.cat(parts, 1)
    for at in range(12):
        w = weights.clone().requires_grad_()
        (wanted,) = torch.autograd.grad(posterior.losses(w, x[[at]], y[[at]])[0], w)
        torch.testing.assert_close(rows[at] * losses[at], wanted, rtol=1e-4, atol=1e-6)


def test_layers_are_not_taken_where_no_sample_has_a_gradient_to_compare():
    model = nn.Sequential(nn.Linear(4, 3))
    loss = lambda output, target: 0 * output.sum(-1)  # noqa: E731
    posterior = probelib.LocalPosterior(
        model, loss, (torch.randn(5, 4), torch.zeros(5)), n_beta=1.0, localization=1.0
    )
    assert not SampleGradients(posterior).by_layer


def test_the_mean_of_two_halves_is_more_reliable():
    assert probelib.spearman_brown(0.5) == pytest.approx(2 / 3)
    assert probelib.spearman_brown(1.0) == 1
    assert probelib.spearman_brown(-0.2) == 0


FACTOR = 1.0


def looks_up(output, target):
    """A loss whose factor is a global."""
    return FACTOR * probelib.squared_error(output, target)


def test_a_kept_chain_of_another_loss_is_not_served(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
    data = torch.randn(5, 2), torch.randn(5)
    posterior = probelib.LocalPosterior(model, looks_up, data, n_beta=1.0, localization=5.0)
    options = {"chains": 2, "pairs": 1, "cache": tmp_path, "progress": False}
    once = probelib.gradient_pairs(posterior, **options).kernel.values
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    thrice = probelib.gradient_pairs(posterior, **options).kernel.values
    # Rows in bfloat16, whose rounding depends on the scale.
    np.testing.assert_allclose(thrice, 9 * once, rtol=0, atol=0.02 * 9 * np.abs(once).max())
