"""Small networks whose LLC is known from long Hamiltonian Monte Carlo runs (chapter 09).

No closed form tells the LLC of a network with a nonlinearity. HMC with the full gradient is exact
up to Monte-Carlo error at every step size, and these networks are small enough to make that small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from sklearn.datasets import load_iris
from torch import Tensor, nn

import probelib
from probebook.calibrated_networks import fitted

__all__ = ["NETWORKS", "SmallNetwork", "curve", "flowers", "hmc_llc"]


def curve() -> probelib.LocalPosterior:
    """A network 1–8–1 on 40 noisy points of a sine, at its minimum."""
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-2, 2, 40, dtype=torch.float64)[:, None]
    y = torch.sin(2 * x) + 0.1 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return _posterior((1, 8, 1), probelib.squared_error, (x, y), 100.0, 100.0)


def flowers() -> probelib.LocalPosterior:
    """A network 4–5–3 on the 150 flowers of iris, where L-BFGS ends."""
    found = load_iris()
    x = torch.from_numpy((found.data - found.data.mean(0)) / found.data.std(0))
    y = torch.from_numpy(found.target).long()
    return _posterior((4, 5, 3), probelib.cross_entropy, (x, y), 150.0, 10.0)


@dataclass(frozen=True)
class SmallNetwork:
    """A posterior, and the HMC run that tells its LLC.

    Attributes:
        make: gives the posterior.
        step_size, leapfrog_steps: of :class:`probelib.HMC`.
    """

    make: Callable[[], probelib.LocalPosterior]
    step_size: float
    leapfrog_steps: int = 30


#: By name.
NETWORKS: dict[str, SmallNetwork] = {
    "tanh network 1–8–1 on a curve": SmallNetwork(curve, 1.5e-4),
    "tanh network 4–5–3 on iris": SmallNetwork(flowers, 1e-3),
}


def _posterior(
    sizes: tuple[int, ...],
    loss: Callable[[Tensor, Tensor], Tensor],
    data: tuple[Tensor, Tensor],
    n_beta: float,
    localization: float,
) -> probelib.LocalPosterior:
    """A tanh network, fitted by L-BFGS from a fixed seed, in double precision."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.Tanh()]
    model = nn.Sequential(*layers[:-1]).double()
    fitted(model, loss, data, steps=2000)
    return probelib.LocalPosterior(model, loss, data, n_beta=n_beta, localization=localization)


def hmc_llc(name: str, draws: int = 4000, seed: int = 0) -> probelib.Estimate:
    """The LLC of Eq. 1 by four HMC chains of so many draws.

    Raises:
        RuntimeError: the chains have not mixed, so that this is no truth.
    """
    network = NETWORKS[name]
    trace = probelib.sample(
        network.make(),
        sampler=probelib.HMC(network.step_size, leapfrog_steps=network.leapfrog_steps),
        chains=4,
        draws=draws,
        burn_in=draws // 10,
        seed=seed,
        progress=False,
    )
    found = probelib.diagnostics(trace)
    if not found.good:
        raise RuntimeError(f"these HMC chains are no truth; take more draws. {found}")
    return probelib.local_learning_coefficient(trace)
