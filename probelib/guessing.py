"""What guessing costs: the loss of the best constant output, whatever the loss is.

A network whose loss is not below it has learned nothing, or has forgotten it. For class labels it
is the entropy of their frequencies, not the logarithm of their number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from probelib.ambient import undisturbed
from probelib.batches import Tree, count, rows
from probelib.calling import given_to
from probelib.data import Samples
from probelib.posterior import LocalPosterior
from probelib.randomness import keep_host_random_state, keep_random_state

if TYPE_CHECKING:
    from probelib.plan import Observation

_SAMPLES, _LARGEST = 1000, 10_000  # looked at; numbers in an output


@undisturbed
def guessing_loss(posterior: LocalPosterior, observed: Samples) -> float | None:
    """The mean loss of the observed samples, if the model's output were always the same.

    The output that is best for (up to 1,000 of) the sampling data, found by L-BFGS.

    Args:
        posterior: gives the loss, the data and the shape of an output.
        observed: samples that are guessed.

    Returns:
        Nats per sample; None where an output is no tensor, or where no output is the best.
    """
    with keep_random_state(posterior.device), keep_host_random_state():
        try:
            return _guess(posterior, observed)
        except Exception:  # somebody's own loss may need what only a network's output has
            return None


def guessing_losses(observation: Observation) -> float | dict[str, float | None] | None:
    """What guessing costs on the observed samples, or on each set of them, nats per sample."""
    posterior, sets = observation.posterior, observation.sets
    if sets is None:
        return guessing_loss(posterior, observation.observed)
    return {name: guessing_loss(posterior, samples) for name, samples in sets.items()}


def _guess(posterior: LocalPosterior, observed: Samples) -> float | None:
    x, y = _some(posterior.data)
    with torch.no_grad():
        outputs = posterior.outputs(posterior.center, rows(x, slice(64)))
        outputs = given_to(posterior.per_sample_loss, outputs)
    if not isinstance(outputs, Tensor) or outputs[0].numel() > _LARGEST:
        return None
    output = outputs.mean(0).detach().requires_grad_()
    costs: list[float] = []

    def mean_loss(targets: Tree) -> Tensor:
        every = output.expand(count(targets), *output.shape).clone()
        return posterior.loss_of(every, targets).mean()

    def closure() -> float:
        search.zero_grad()
        loss = mean_loss(y)
        loss.backward()
        return float(loss.detach())

    for _ in range(2):
        search = torch.optim.LBFGS([output], max_iter=40, line_search_fn="strong_wolfe")
        with torch.enable_grad():
            search.step(closure)
        costs.append(closure())
    first, last = costs
    settled = np.isfinite(last) and abs(first - last) <= 1e-2 * max(1.0, abs(first))
    if not settled or not output.isfinite().all():  # a loss without a lowest value
        return None
    with torch.no_grad():
        found = float(mean_loss(_some(observed)[1]))
    return found if np.isfinite(found) else None


def _some(samples: Samples) -> tuple[Tree, Tree]:
    return samples.batch(np.unique(np.linspace(0, len(samples) - 1, _SAMPLES, dtype=int)))


__all__ = ["guessing_loss", "guessing_losses"]
