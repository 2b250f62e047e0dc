"""The losses: right where the usual ones are, and still right where those underflow."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, vmap

from probelib import cross_entropy, squared_error


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 7),
    classes=st.integers(2, 12),
    scale=st.floats(0.01, 15),
)
def test_cross_entropy_is_torchs_where_that_is_exact(seed, batch, classes, scale):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, scale, (batch, classes))).requires_grad_()
    target = torch.from_numpy(rng.integers(0, classes, batch))
    ours, torchs = cross_entropy(logits, target), F.cross_entropy(logits, target, reduction="none")
    # softplus turns linear above 20, which costs e^-20 = 2e-9 nats.
    torch.testing.assert_close(ours, torchs, rtol=1e-9, atol=1e-12)
    (g,), (expected,) = (torch.autograd.grad(loss.sum(), logits) for loss in (ours, torchs))
    torch.testing.assert_close(g, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("margin", [20.0, 30.0, 50.0, 80.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_confident_sample_keeps_its_loss_and_gradient(margin, dtype):
    # Against class 0 with logit m, two others at 0: l = log(1 + 2 e^-m) = 2 e^-m to 1e-9;
    # dl/dz_0 = -2 e^-m, dl/dz_k = e^-m.
    logits = torch.tensor([[margin, 0, 0]], dtype=dtype, requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([0]))
    (g,) = torch.autograd.grad(loss.sum(), logits)
    exact = np.exp(-margin)
    np.testing.assert_allclose(loss.detach(), 2 * exact, rtol=2e-5)
    np.testing.assert_allclose(g[0], [-2 * exact, exact, exact], rtol=2e-5)
    if dtype == torch.float32:
        assert F.cross_entropy(logits, torch.tensor([0])) == 0  # what this loss is for


def test_a_confident_mistake_costs_its_margin():
    loss = cross_entropy(torch.tensor([[0.0, 500.0]]), torch.tensor([0]))
    assert float(loss) == 500


def test_cross_entropy_runs_under_vmap_and_grad():
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(0, 5, (4, 6, 3)))
    target = torch.from_numpy(rng.integers(0, 3, (4, 6)))
    together = vmap(cross_entropy)(logits, target)
    torch.testing.assert_close(
        together, torch.stack([cross_entropy(*a) for a in zip(logits, target, strict=True)])
    )
    gradients = vmap(grad(lambda z, y: cross_entropy(z, y).mean()))(logits, target)
    expected = (logits.softmax(-1) - F.one_hot(target, 3)) / 6
    torch.testing.assert_close(gradients, expected)
    shared = vmap(cross_entropy, in_dims=(0, None))(logits, target[0])
    torch.testing.assert_close(shared[1], cross_entropy(logits[1], target[0]))


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 3), (5, 2, 3)])
def test_squared_error_against_numpy(shape):
    rng = np.random.default_rng(0)
    output, target = rng.normal(size=shape), rng.normal(size=shape)
    loss = squared_error(torch.from_numpy(output), torch.from_numpy(target))
    expected = 0.5 * ((output - target) ** 2).reshape(5, -1).sum(1)
    np.testing.assert_allclose(loss, expected, rtol=1e-14)


def test_squared_error_does_not_broadcast():
    with pytest.raises(ValueError, match=r"shape \(5, 1\) and target of shape \(5,\)"):
        squared_error(torch.zeros(5, 1), torch.zeros(5))
