"""What rows of gradients in bfloat16 do to a kernel of gradient pairs, against rows in float32."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import probelib
from probelib.sample_gradients import SampleGradients

pytestmark = pytest.mark.usefixtures("one_thread")

# Eight digits: rounding moves a number by 2^-8 of it at most. Its root mean square for numbers
# whose logarithm is uniform: of an error uniform in a step of 2^-7, over 1 to 2.
MOST = 2.0**-8
TYPICAL = 2.0**-7 / 12**0.5 * (3 / 8 / np.log(2)) ** 0.5


def correlations(k):
    scale = np.sqrt(np.diag(k))
    return k / scale[:, None] / scale


@pytest.fixture
def kernels(monkeypatch):
    """The limit's kernel from rows in float32 and in bfloat16, of the same walks."""
    original = SampleGradients.__init__

    def of(posterior, **kwargs):
        found = []
        for dtype in (torch.float32, torch.bfloat16):

            def init(self, *args, dtype=dtype):
                original(self, *args)
                self.dtype = dtype

            monkeypatch.setattr(SampleGradients, "__init__", init)
            pairs = probelib.gradient_pairs(posterior, progress=False, **kwargs)
            assert pairs.attrs["fingerprint"]["gradients"] == str(dtype).removeprefix("torch.")
            found.append(pairs.kernel.values.mean(0))
        return found

    return of


def test_the_rounding_of_a_layer_is_that_of_its_factors_entries_and_products(kernels):
    """Signs of roundings are as if by chance, so that of d of them a part of 1 / sqrt(d) is left.

    A linear layer's gradient is b a', and an inner product (b_i'b_j)(a_i'a_j). Rounded are a, b,
    the entries b a', and the inner product: each by ``TYPICAL``, of which the last is once for all
    weights and so the largest part where R is not small.
    """
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(40, 512, generator=generator) + 0.5
    torch.manual_seed(1)
    posterior = probelib.LocalPosterior(
        nn.Linear(512, 16, bias=False),
        probelib.cross_entropy,
        (a, torch.arange(40) % 16),
        n_beta=1.0,
        localization=1e8,
    )
    exact, rounded = kernels(posterior, chains=2, pairs=1)
    b = torch.softmax(a @ posterior.center.reshape(16, 512).T, 1)
    b = (b - nn.functional.one_hot(torch.arange(40) % 16)).double().numpy()
    a = a.double().numpy()
    of_a, of_b = a @ a.T, b @ b.T
    squares_a, squares_b = (2 * np.square(v) @ np.square(v).T for v in (a, b))
    variance = of_b**2 * squares_a + of_a**2 * squares_b
    variance += squares_a * squares_b / 2
    variance += (of_a * of_b) ** 2  # at most: two ends of a pair may round alike
    predicted = TYPICAL * np.sqrt(variance) / posterior.localization
    np.testing.assert_allclose(exact * 1e8, of_a * of_b, rtol=0.02, atol=0.02 * (of_a * of_b).max())
    above = np.triu_indices(40, 1)
    ratio = np.sqrt(np.square(rounded - exact)[above].mean() / np.square(predicted)[above].mean())
    assert 0.4 < ratio < 1.3


def test_rounding_is_far_below_what_a_correlation_is_read_at(kernels):
    """Of a network as in the book: 784 inputs, three layers."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    data = torch.rand(60, 784, generator=generator), torch.arange(60) % 10
    posterior = probelib.LocalPosterior(
        model, probelib.cross_entropy, data, n_beta=10.0, localization=1e5
    )
    exact, rounded = kernels(posterior, chains=2, pairs=1)
    size = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    error = (rounded - exact) / size
    # By Cauchy and Schwarz: six roundings of two rows, and one of their product.
    assert np.abs(error).max() < 7 * MOST
    # As if by chance: at most the three products' own for R = 1, and for others far less.
    assert np.sqrt(np.mean(np.diag(error) ** 2)) < TYPICAL
    above = np.triu_indices(60, 1)
    change = (correlations(rounded) - correlations(exact))[above]
    assert np.sqrt(np.mean(change**2)) < TYPICAL / 5
    assert np.abs(change).max() < MOST
    assert np.abs(change).max() > 0  # rows were rounded at all


@pytest.mark.parametrize(("rows", "size"), [(8, 196_608), (24, 65_536), (32, 49_152)])
def test_products_of_few_rows_do_not_end_the_process(rows, size):
    """Of these sizes oneDNN's own product divides by zero on one thread, which no test survives."""
    code = (
        "import torch\n"
        "from probelib.pair_walks import products_of\n"
        "torch.set_num_threads(1)\n"
        f"a = torch.ones({rows}, {size}, dtype=torch.bfloat16)\n"
        f"b = torch.full(({rows}, {size}), 0.5, dtype=torch.bfloat16)\n"
        f"found = products_of(a, b, [{size}])\n"
        f"assert found.shape == ({rows}, {rows})\n"
        f"assert (found == {size} / 2).all()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
