"""The local posterior of a model with few weights, integrated on a lattice (chapters 00 and 07)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.func import vmap

from probelib import LocalPosterior
from probelib.influence import laplace_covariance


@dataclass(frozen=True)
class Exact:
    """What a lattice over few weights says, without sampling error.

    Attributes:
        gain: mu under Eq. 1, shape (n,), nats.
        kernel: K under Eq. 1, shape (n, n), nats squared.
        llc: nb (E[L] - L(w*)).
        gaussian_kernel: K under the Laplace approximation N(w*, S).
        covariance: of the weights under Eq. 1, shape (d, d).
        total_variation: distance of the two laws, in [0, 1].
        kernel_of_losses: K from the losses themselves, not from their changes.
    """

    gain: np.ndarray
    kernel: np.ndarray
    llc: float
    gaussian_kernel: np.ndarray
    covariance: np.ndarray
    total_variation: float
    kernel_of_losses: np.ndarray


def integrate(posterior: LocalPosterior, points: int = 41, reach: float = 8.0) -> Exact:
    """Moments of Eq. 1 and of its Laplace approximation by the trapezoid rule.

    The lattice is a cube in the coordinates in which the approximation is a standard normal. For
    densities that are smooth and vanish at its faces the rule is exact to rounding.

    Args:
        posterior: of a model with few weights, around a minimum.
        points: nodes along each axis.
        reach: half the cube's side, in standard deviations.

    Raises:
        ValueError: more than three weights.
    """
    d = posterior.n_parameters
    if d > 3:
        raise ValueError(f"posterior has {d} weights; give a model of three at most.")
    axis = np.linspace(-reach, reach, points)
    nodes = np.stack(np.meshgrid(*[axis] * d, indexing="ij"), -1).reshape(-1, d)
    moves = nodes @ np.linalg.cholesky(laplace_covariance(posterior)).T
    losses, at_center = losses_around(posterior, moves)
    change = losses - at_center
    log = -posterior.n_beta * change.mean(1) - posterior.localization / 2 * (moves**2).sum(1)
    true, gauss = (np.exp(v - v.max()) for v in (log, -0.5 * (nodes**2).sum(1)))
    true, gauss = true / true.sum(), gauss / gauss.sum()
    gain = true @ change
    return Exact(
        gain,
        weighted_covariance(change, true),
        float(posterior.n_beta * gain.mean()),
        weighted_covariance(change, gauss),
        weighted_covariance(moves, true),
        0.5 * float(np.abs(true - gauss).sum()),
        weighted_covariance(losses, true),
    )


def losses_around(posterior: LocalPosterior, moves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every sample's loss at w* + each of ``moves``, and at w*, in nats.

    Args:
        posterior: of a model with few weights.
        moves: shape (s, d).

    Returns:
        Losses, shape (s, n), and losses at w*, shape (n,), both float64.
    """
    x, y = posterior.data.batch(slice(0, posterior.n_samples))
    with torch.no_grad():
        every = vmap(lambda w: posterior.losses(w, x, y), chunk_size=10_000)
        weights = (torch.from_numpy(moves) + posterior.center).to(posterior.dtype)
        return (
            every(weights).double().numpy(),
            posterior.losses(posterior.center, x, y).double().numpy(),
        )


def weighted_covariance(values: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Covariance of the columns of ``values``, shape (s, k), whose rows have ``mass``, sum 1."""
    centred = values - mass @ values
    return centred.T @ (centred * mass[:, None])


__all__ = ["Exact", "integrate", "losses_around", "weighted_covariance"]
