"""The largest curvature of L: what limits a step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_ITERATIONS, _SETTLED = 40, 0.02


def largest_curvature(
    gradient: Callable[[Tensor], Tensor], weights: Tensor, reach: float, seed: int
) -> float:
    """The eigenvalue of the Hessian of a mean loss that is largest in size.

    By power iteration, the Hessian times a vector from gradients on both sides: of a loss with
    kinks, such as a network's with ReLU, the second derivatives at a point do not tell how the
    gradient changes over the distance that a chain moves.

    Args:
        gradient: of the mean loss, at weights (n_parameters,) and of that shape.
        weights: where, shape (n_parameters,).
        reach: how far to both sides, in units of weight.
        seed: of the first direction.

    Returns:
        Its size, in nats per squared unit of weight; 0 where the gradient does not change.
    """
    generator = torch.Generator().manual_seed(seed)
    direction = torch.empty_like(weights, device="cpu").normal_(generator=generator)
    direction = (direction / direction.norm()).to(weights.device)
    found = 0.0
    for _ in range(_ITERATIONS):
        ahead, behind = (gradient(weights + side * direction) for side in (reach, -reach))
        product = (ahead - behind) / (2 * reach)
        size = float(product.norm())
        if not size > 0:  # flat, or no longer a number
            return size if size == size else float("inf")
        settled = abs(size - found) <= _SETTLED * size
        found, direction = size, product / size
        if settled:
            break
    return found


__all__ = ["largest_curvature"]
