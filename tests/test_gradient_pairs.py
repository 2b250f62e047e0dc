"""Pairs of gradients against closed forms, quadrature and plain autograd."""

import numpy as np
import pytest
import torch
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
    assert probelib.tilt(found) > 0.999  # n_beta is nothing here


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
    assert len(written) <= 1  # the look at whether layers account for the gradient
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
    diagonal = probelib.pair_kernel(found).diagonal()
    np.testing.assert_array_equal(diagonal.label, y)
    np.testing.assert_array_equal(diagonal.sample_id, np.arange(9))
    each = np.stack([np.diag(k) for k in found.kernel.values])
    np.testing.assert_allclose(diagonal.mcse, each.std(0, ddof=1) / np.sqrt(3))
    np.testing.assert_allclose(diagonal, each.mean(0))
    assert np.isnan(probelib.pair_kernel(found, slice(1)).diagonal().mcse).all()


def test_tilt_needs_n_beta():
    pairs = probelib.gradient_pairs(regression()[0], chains=2, pairs=1, progress=False)
    del pairs.attrs["config"]["n_beta"]
    with pytest.raises(ValueError, match="pairs has no n_beta in its attributes; "):
        probelib.tilt(pairs)


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


def test_tilt_is_the_effective_share_of_the_draws():
    posterior, _ = regression()
    pairs = probelib.gradient_pairs(posterior, chains=2, pairs=1, progress=False)
    pairs["loss"] = pairs.loss.copy(data=np.zeros(pairs.loss.shape, np.float32))
    pairs.attrs["config"]["n_beta"] = 10.0
    assert probelib.tilt(pairs) == pytest.approx(1)
    pairs["loss"][0, 0] = -100.0  # one draw outweighs the other three
    assert probelib.tilt(pairs) == pytest.approx(1 / 4)


def test_the_mean_of_two_halves_is_more_reliable():
    assert probelib.spearman_brown(0.5) == pytest.approx(2 / 3)
    assert probelib.spearman_brown(1.0) == 1
    assert probelib.spearman_brown(-0.2) == 0


FACTOR = 1.0


def looks_up(output, target):
    """A loss whose factor no fingerprint sees."""
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
