"""What a sampler's own gradients tell of its bias: candidates for a verdict, per run.

``watched(sampler)`` is a sampler that draws the same numbers and writes down, at every step, three
inner products of g, the gradient of L that the step used:

- a = E|g|²
- b = E[g · (w - w*)]
- c = E[g_t · g_{t-1}], of consecutive steps: a - c is the variance of the minibatch gradient, and
  what one step moves it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import probelib

_SEEN: list[Tensor] = []  # here, since a sampler that changes itself is refused


def watched(sampler: probelib.Sampler) -> probelib.Sampler:
    """The same sampler, watched; what was seen before is forgotten."""
    base: Any = type(sampler)
    last: list[Tensor] = []
    _SEEN.clear()

    class Watched(base):
        def step(self, state: Any, gradient: Callable, noise: Callable, target: Any) -> Any:
            weights = state["weights"]

            def seen(w: Tensor) -> Tensor:
                g = gradient(w)
                before = last.pop() if last else g
                last.append(g)
                products = g * g, g * (weights - target.center), g * before
                _SEEN.append(torch.stack([p.sum(1).mean() for p in products]))
                return g

            return super().step(state, seen, noise, target)

    Watched.__name__, Watched.__qualname__ = base.__name__, base.__qualname__
    new = object.__new__(Watched)
    new.__dict__.update(copy.copy(vars(sampler)))
    return new


def features(
    sampler: probelib.Sampler, posterior: Any, plan: dict[str, Any], llc: float
) -> dict[str, float]:
    """The means after burn-in, and the relative biases of the LLC that they predict.

    ``rel_sgld`` = (eps/8) nb (nb c + gamma b) / LLC, of SGLD's step; ``noise`` = (eps/8) nb² (a - c)
    / LLC, an upper bound for what the minibatches add.
    """
    seen = torch.stack(_SEEN)[plan["burn_in"] + 1 :].double()
    seen = seen[seen.isfinite().all(1)]
    a, b, c = seen.mean(0).tolist()
    eps, nb, gamma = sampler.step_size, posterior.n_beta, posterior.localization
    return {
        **{"a": a, "b": b, "c": c, "eps": eps, "nb": nb, "gamma": gamma},
        "half_b": nb * b / 2,
        "rel_sgld": eps / 8 * nb * (nb * c + gamma * b) / llc,
        "noise": eps / 8 * nb**2 * (a - c) / llc,
    }
