r"""How far from w* draws may go: the localization by what they keep of what was learned.

Let :math:`L_0` be what guessing costs (the best constant output), :math:`L^* = L(w^*)`, and

.. math::

   \text{kept}(\gamma) = \frac{L_0 - E[L(w)]}{L_0 - L^*}, \qquad w \sim \mathcal N(w^*, I/\gamma).

The rule: of 1, 3, 10, 30, ... the smallest :math:`\gamma` whose draws keep nine tenths. The data
term of Eq. 1 only holds its draws closer, so that they keep as much or more. A smaller
:math:`\gamma` asks about a network that has forgotten more than that; a larger one about a smaller
neighbourhood than needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probelib.ambient import undisturbed
from probelib.batches import count, rows
from probelib.gradients import Batch
from probelib.posterior import LocalPosterior
from probelib.randomness import around, keep_random_state
from probelib.schedule import cost_of_pass, observe_batch

_DRAWS = 8  # of the Gaussian, the same directions at every gamma
# Decades of gamma that are searched, from a Gaussian ten times as wide as the weights are large.
_DECADES = 12


@dataclass(frozen=True)
class Kept:
    """What draws from N(w*, I / gamma) keep of what was learned.

    Attributes:
        localization: gamma.
        loss: E[L(w)], nats, over the samples looked at.
        share: (L0 - E[L(w)]) / (L0 - L*), 1 at w* and 0 at a guess.
        error: standard error of the share.
    """

    localization: float
    loss: float
    share: float
    error: float


@undisturbed
def choose_localization(
    posterior: LocalPosterior, some: Batch, guess: float, kept: float, seed: int
) -> list[Kept]:
    """The smallest gamma of 1, 3, 10, 30, ... at which enough is kept, found by bisection.

    Args:
        posterior: its own localization counts for nothing.
        some: samples that L is taken over.
        guess: L0 on them, nats, above L(w*).
        kept: the share that is enough, below 1.
        seed: of the draws.

    Returns:
        What was looked at, by gamma; the last that was enough is the choice, and comes first.

    Raises:
        ValueError: no gamma is enough.
    """
    trained = float(losses_at(posterior, posterior.center, some).mean())
    looked: dict[int, Kept] = {}

    def enough(at: int) -> bool:
        found = looked[at] = _kept(posterior, some, _gamma(at), guess, trained, seed)
        return found.share - 2 * found.error >= kept

    size = float(posterior.center.square().mean())  # of a weight, squared
    low = 2 * int(np.floor(np.log10(0.1 / size))) if size > 0 else -4
    high = low + 2 * _DECADES
    if not enough(high):
        raise ValueError(
            f"kept is {kept:g}, but draws with the localization {_gamma(high):g} keep "
            f"{looked[high].share:.2g} of what was learned; give a localization"
        )
    if enough(low):
        high = low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    others = [looked[at] for at in sorted(looked) if at != high]
    return [looked[high], *others]


def _gamma(at: int) -> float:
    """1, 3, 10, 30, ..."""
    return float(10.0 ** (at // 2) * (3 if at % 2 else 1))


def _kept(
    posterior: LocalPosterior, some: Batch, gamma: float, guess: float, trained: float, seed: int
) -> Kept:
    found = np.array(
        [
            losses_at(posterior, w, some).mean()
            for w in around(posterior.center, gamma, _DRAWS, seed)
        ]
    )
    found = np.where(np.isfinite(found), found, np.inf)
    if not np.isfinite(found).all():
        return Kept(gamma, np.inf, -np.inf, 0.0)
    error = float(found.std(ddof=1)) / _DRAWS**0.5 / (guess - trained)
    loss = float(found.mean())
    return Kept(gamma, loss, (guess - loss) / (guess - trained), error)


@torch.no_grad()
def losses_at(posterior: LocalPosterior, weights: Tensor, some: Batch) -> np.ndarray:
    """Losses of samples at weights (n_parameters,), batch by batch: shape (n,), float64."""
    n = count(some[1])
    with keep_random_state(posterior.device):
        few = rows(some, slice(min(4, n)))
        cost = cost_of_pass(lambda x, y: posterior.losses(posterior.center, x, y), *few)
        size = observe_batch(cost.bytes, posterior.device)
        parts = [
            posterior.losses(weights, *rows(some, slice(at, at + size))).double()
            for at in range(0, n, size)
        ]
    return torch.cat(parts).cpu().numpy()


__all__ = ["Kept", "choose_localization", "losses_at"]
