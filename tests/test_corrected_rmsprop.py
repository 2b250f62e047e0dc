"""The correction of a preconditioner that moves: on laws that are known."""

import numpy as np
import pytest
import torch

from probelib import CorrectedRMSpropSGLD, RMSpropSGLD
from probelib.samplers import Target

pytestmark = pytest.mark.usefixtures("one_thread")

N_BETA, GAMMA = 8.0, 1.0
#: L of one weight and its gradient; E[L] under Eq. 1 by quadrature.
LOSSES = {
    "quadratic": (lambda w: w**2 / 4, lambda w: w / 2),
    "quartic": (lambda w: w**4, lambda w: 4 * w**3),
}


def relative_error(sampler, name, chains=200, weights=20, steps=1500):
    """Of E[L], over chains of many equal weights that do not know of each other."""
    loss, gradient = LOSSES[name]
    w = np.linspace(-8, 8, 200_001)
    p = np.exp(-N_BETA * loss(w) - GAMMA / 2 * w**2)
    truth = float((loss(w) * p).sum() / p.sum())
    rng = torch.Generator().manual_seed(0)
    target = Target(torch.zeros(weights), N_BETA, GAMMA)
    state, found = sampler.init(torch.zeros(chains, weights)), []
    for step in range(steps):
        state = sampler.step(
            state, gradient, lambda: torch.randn(chains, weights, generator=rng), target
        )
        if step >= steps // 3 and step % 5 == 0:
            found.append(float(loss(state["weights"].double()).mean()))
    return np.mean(found) / truth - 1


@pytest.mark.parametrize("name", LOSSES)
def test_a_short_memory_is_put_right(name):
    plain = relative_error(RMSpropSGLD(0.02, decay=0.9), name)
    corrected = relative_error(CorrectedRMSpropSGLD(0.02, decay=0.9), name)
    assert plain > 0.4
    assert abs(corrected) < 0.3
    assert abs(corrected) < plain / 4


def test_the_derivative_is_that_of_the_running_mean():
    """All places moved alike: V's derivative by finite differences, of a quadratic that couples."""
    torch.manual_seed(0)
    hessian = torch.diag(torch.tensor([3.0, 1.0, 0.5])).double()
    target, sampler = (
        Target(torch.zeros(3).double(), 2.0, GAMMA),
        CorrectedRMSpropSGLD(0.1, decay=0.7),
    )
    normals = torch.randn(20, 4, 3).double()

    def run(shift):
        state = sampler.init(torch.zeros(4, 3).double())
        path = []
        draws = iter(normals)
        for _ in range(10):
            path.append(state["weights"])
            state = sampler.step(state, lambda w: w @ hessian, lambda: next(draws), target)
        v = torch.zeros(4, 3).double()
        for weights in path:
            drift = target.drift(weights + shift, (weights + shift) @ hessian)
            v = 0.7 * v + 0.3 * drift.square()
        return v, state["derivative"]

    up, derivative = run(1e-4)
    down, _ = run(-1e-4)
    torch.testing.assert_close(derivative, (up - down) / 2e-4, rtol=1e-6, atol=1e-8)
    assert CorrectedRMSpropSGLD.gradients_per_step == 2
    assert CorrectedRMSpropSGLD.order == 1
