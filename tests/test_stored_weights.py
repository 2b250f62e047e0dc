"""Rounded noise against its exact law, and a plain chain against the library's posterior."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

import probelib
from probebook.language_data import Windows
from probebook.stored_weights import noise_kept, stored, stored_chain

pytestmark = pytest.mark.usefixtures("one_thread")


class Constant(nn.Module):
    """Many weights of one size; of Gaussian logits it is told nothing."""

    def __init__(self, size, n=40_000):
        super().__init__()
        self.weight = nn.Parameter(torch.full((n,), size))


@pytest.mark.parametrize("size", [1.5, 0.75, 0.1875])
def test_rounded_noise_has_its_exact_law(size):
    """w is a multiple of h, the spacing of bfloat16 there, far from where that changes:
    a move of k h has the chance of noise in (k - 1/2) h to (k + 1/2) h."""
    step, h = 5e-6, 2.0 ** (math.floor(math.log2(size)) - 7)
    scale, k = math.sqrt(step), np.arange(-60, 61)
    p = norm.cdf((k + 0.5) * h / scale) - norm.cdf((k - 0.5) * h / scale)
    variance = (p * k**2).sum() * h**2 / step
    fourth = (p * k**4).sum() * h**4 / step**2
    table = noise_kept(Constant(size), step).set_index("parameter")
    n = 40_000
    # Four standard errors of a share and of a mean square.
    assert abs(table.unmoved["all"] - p[60]) < 4 * math.sqrt(p[60] * (1 - p[60]) / n)
    assert abs(table.variance["all"] - variance) < 4 * math.sqrt((fourth - variance**2) / n)


def test_float32_keeps_all_of_it():
    table = noise_kept(Constant(1.5), 5e-6, torch.float32)
    assert (table.unmoved < 0.001).all()
    # Four standard errors of a mean of 40,000 squares of normals, sqrt(2 / 40,000).
    assert (abs(table.variance - 1) < 4 * math.sqrt(2 / 40_000)).all()


def test_larger_weights_lose_more():
    unmoved = [noise_kept(Constant(s, 4000), 5e-6).unmoved.iloc[-1] for s in (0.1, 0.5, 1.0, 4.0)]
    assert unmoved == sorted(unmoved)
    assert unmoved[-1] > 0.999
    with pytest.raises(ValueError, match="step_size must be positive"):
        noise_kept(Constant(1.0), 0.0)


def test_storing_is_rounding_to_the_nearest():
    x = torch.tensor([1.0, 1 + 2**-7, 1 + 2**-9, 1 + 2**-8 + 2**-12])
    assert stored(x, torch.bfloat16).tolist() == [1, 1 + 2**-7, 1, 1 + 2**-7]
    assert torch.equal(stored(x, torch.float32), x)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(6, 8), nn.LayerNorm(8), nn.Linear(8, 6))


@pytest.fixture(scope="module")
def windows():
    ids = torch.randint(0, 6, (20, 6), generator=torch.Generator().manual_seed(0))
    none = np.full(20, -1)
    return Windows(ids[:, :-1].clone(), ids[:, 1:].clone(), none, none, none, ("",) * 20)


RUN = {"n_beta": 10.0, "localization": 1e3, "batch_size": 20}


def test_the_plain_chain_has_the_gains_of_weighted_draws(model, windows):
    """Two ways to Eq. 1 that share no code: the mean gain, to four joint standard errors."""
    run = {"step_size": 1e-4, "burn_in": 100, "thin": 20, "draws": 200}
    chain = stored_chain(model, windows, windows, torch.float32, **RUN, **run)
    posterior = probelib.LocalPosterior(
        model, probelib.sequence_cross_entropy, windows.data, n_beta=10.0, localization=1e3
    )
    trace = probelib.importance_sample(posterior, draws=400, progress=False)
    np.testing.assert_allclose(chain.init_loss, trace.init_loss, rtol=1e-5)
    exact = probelib.mean_loss_change(trace)
    mine = (chain.loss - chain.init_loss).mean(1)
    error = math.hypot(mine.std() / math.sqrt(200), float(exact.std()) / math.sqrt(400))
    truth = float(probelib.loss_gain(trace).mean())
    # SGLD's own bias is a quarter of eps times the precision, 2.5 %.
    assert abs(mine.mean() - truth) < 4 * error + 0.025 * abs(truth)
    assert chain.spread.mean() == pytest.approx(1.025, abs=0.02)


def test_a_chain_in_bfloat16_is_another_and_the_same_each_time(model, windows):
    run = {"step_size": 5e-6, "burn_in": 0, "thin": 10, "draws": 5}
    full, half = (
        stored_chain(model, windows, windows, dtype, **RUN, **run)
        for dtype in (torch.float32, torch.bfloat16)
    )
    again = stored_chain(model, windows, windows, torch.bfloat16, **RUN, **run)
    np.testing.assert_array_equal(half.loss, again.loss)
    assert np.abs(half.loss - full.loss).max() > 0
    assert half.gain.shape == (20,)


def test_the_model_is_left_alone_and_divergence_is_said(model, windows):
    before = [p.clone() for p in model.parameters()]
    stored_chain(model, windows, windows, torch.bfloat16, **RUN, step_size=1e-4, draws=2)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    with pytest.raises(FloatingPointError, match="diverged at step_size 1e"):
        stored_chain(model, windows, windows, torch.float32, **RUN, step_size=1e6, draws=9)
