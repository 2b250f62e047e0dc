"""Sketches of gradients against the closed form, and their own variance."""

import numpy as np
import pytest
import torch
from torch import nn

import probelib

pytestmark = pytest.mark.usefixtures("one_thread")


def regression(n=5, d=30, gamma=2.0):
    """Least squares, its gradients at w*, and its kernel for n beta -> 0."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, d)), rng.normal(size=n)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(d, 1, bias=False), nn.Flatten(0)).double()
    posterior = probelib.LocalPosterior(
        model, probelib.squared_error, (torch.tensor(x), torch.tensor(y)), n_beta=1e-6,
        localization=gamma,
    )  # fmt: skip
    residual = x @ model[0].weight.detach().numpy()[0] - y
    gram = x @ x.T
    truth = np.outer(residual, residual) * gram / gamma + gram**2 / (2 * gamma**2)
    return posterior, residual[:, None] * x, truth


def kernels(found):
    """K by each chain."""
    each = np.einsum("cif,cjf->cij", found.left.values, found.right.values)
    np.testing.assert_allclose(each, each.transpose(0, 2, 1), rtol=1e-9, atol=1e-12)
    return each


@pytest.mark.parametrize("pairs", [1, 3])
def test_inner_products_are_the_kernel_over_walks_and_sketches(pairs):
    posterior, _, truth = regression()
    found = probelib.pair_features(posterior, size=48, chains=600, pairs=pairs, progress=False)
    assert found.left.shape == (600, 5, 48)
    each = kernels(found)
    error = each.std(0, ddof=1) / np.sqrt(len(each))
    # 15 distinct entries: the largest of as many normals exceeds 4 once in 1,000 runs.
    assert np.abs((each.mean(0) - truth) / error).max() < 4
    assert (error < 0.3 * np.sqrt(np.outer(np.diag(truth), np.diag(truth)))).all()


def test_a_sketch_has_the_error_that_is_stated():
    """So near w* that the gradients are those of w*, and only the sketch differs by chain."""
    posterior, g, _ = regression(gamma=1e12)
    found = probelib.pair_features(posterior, size=40, chains=1000, progress=False)
    assert found.attrs["sketch"] == 20
    each = kernels(found) * 1e12
    square, squares = np.square(g).sum(1), np.square(g) @ np.square(g).T
    variance = (np.outer(square, square) + (g @ g.T) ** 2 - 2 * squares) / 20
    # A variance of 1,000 has a relative error of 4.5 % for a normal law, and here of some more.
    np.testing.assert_allclose(each.var(0, ddof=1), variance, rtol=0.3)
    np.testing.assert_allclose(each.mean(0), g @ g.T, atol=4 * np.sqrt(variance.max() / 1000))
    size = found["norm"].values * 1e6
    np.testing.assert_allclose(size**2, np.tile(square, (1000, 1)), rtol=2e-3)
    stated = np.outer(size[0], size[0]) * np.sqrt(2 / 20)
    assert (each.std(0) < 1.2 * stated).all()


def network(n=12, normed=False):
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    middle = nn.LayerNorm(6) if normed else nn.Tanh()
    model = nn.Sequential(nn.Linear(4, 6), middle, nn.Linear(6, 3)).double()
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    data = x, torch.arange(n) % 3
    return probelib.LocalPosterior(
        model, probelib.cross_entropy, data, n_beta=2.0, localization=60.0
    )


def test_walks_are_those_of_the_pairs_and_memory_changes_nothing():
    posterior = network()
    options = {"chains": 2, "pairs": 2, "seed": 3, "progress": False}
    found = probelib.pair_features(posterior, size=4 * 20_000, **options)
    wanted = probelib.gradient_pairs(posterior, **options).kernel.values
    scale = np.sqrt(np.abs(np.diagonal(wanted, 0, 1, 2)))
    # 20,000 places for 51 weights: few share one.
    gap = (kernels(found) - wanted) / scale[:, :, None] / scale[:, None]
    assert np.abs(gap).max() < 0.2
    assert np.median(np.abs(gap)) < 0.02
    apart = probelib.pair_features(posterior, size=4 * 20_000, memory=400, **options)
    for name in ("left", "right", "norm"):
        np.testing.assert_allclose(apart[name], found[name], rtol=1e-9, atol=1e-13)
    np.testing.assert_array_equal(found.label, np.arange(12) % 3)
    again = probelib.pair_features(posterior, size=4 * 20_000, **options | {"chains": 3})
    np.testing.assert_array_equal(again.left[:2], found.left)
    x, y = posterior.data.batch(slice(0, 12))
    some = [7, 2]
    part = probelib.pair_features(posterior, (x[some], y[some]), size=4 * 20_000, **options)
    np.testing.assert_allclose(part.left, found.left[:, some], rtol=1e-9, atol=1e-13)


def test_any_model_has_features():
    posterior = network(normed=True)
    found = probelib.pair_features(posterior, size=20_000, progress=False)
    wanted = probelib.gradient_pairs(posterior, pairs=1, progress=False).kernel.values
    size = found["norm"].values
    gap = (kernels(found) - wanted) / size[:, :, None] / size[:, None]
    assert np.abs(gap).max() < 0.15


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("size", 1, "size is 1"),
        ("size", 30, "size is 30; give a multiple of 4, twice the pairs"),
        ("chains", 1, "chains is 1"),
        ("memory", 0, "memory is 0"),
    ],
)
def test_bad_arguments_are_named(name, value, match):
    options = {"size": 40, "pairs": 2, "progress": False} | {name: value}
    with pytest.raises(ValueError, match=match):
        probelib.pair_features(network(), **options)
