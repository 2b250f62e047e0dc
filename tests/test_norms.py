"""Distances of networks with many weights."""

import numpy as np
import torch
from torch import nn

import probelib
from probelib.norms import norms


def test_a_long_vector_has_its_length():
    x = torch.full((2, 1 << 24), 0.01)
    x[1] *= 2
    np.testing.assert_allclose(norms(x), [0.01 * 2**12, 0.02 * 2**12], rtol=1e-6)
    assert norms(torch.tensor([3.0, 4.0])) == 5
    assert norms(torch.zeros(0)) == 0


def test_draws_of_a_large_network_are_as_far_away_as_they_are(one_thread):
    model = nn.Linear(1 << 12, 1 << 11, bias=False)
    data = torch.randn(4, 1 << 12), torch.arange(4)
    posterior = probelib.LocalPosterior(
        model, probelib.cross_entropy, data, n_beta=1, localization=1e8
    )
    d = posterior.n_parameters
    trace = probelib.importance_sample(posterior, draws=2, seed=1, progress=False)
    state = np.random.SeedSequence(1, spawn_key=(0,)).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state >> 1))
    wanted = [float(torch.empty(d).normal_(generator=generator).double().norm()) for _ in range(2)]
    np.testing.assert_allclose(trace.distance.values[0], np.array(wanted) / 1e4, rtol=1e-6)
    sampler = probelib.SGLD(step_size=1e-8, batch_size=4)
    chain = probelib.sample(posterior, sampler=sampler, chains=1, draws=1, seed=0, progress=False)
    # After one step of noise, sqrt(eps) a weight: the gradient's part is 1e-4 of it.
    assert abs(chain.distance.item() / (1e-4 * d**0.5) - 1) < 1e-3
