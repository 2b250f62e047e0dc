r"""A network that learns in stages, at times that are known (chapter 11).

:math:`f(x) = W_2 W_1 x` learns a map T with singular values :math:`s_1 > s_2 > \dots` along the
gradient of :math:`\frac12 \lVert W_2 W_1 - T \rVert^2`, the loss on white inputs. From balanced
weights that have the singular vectors of T, each at the same small strength :math:`a_0`, the
strengths go their own ways (Saxe et al., 2014):

.. math::

   a_k(t) = \frac{s_k e^{2 s_k t}}{e^{2 s_k t} - 1 + s_k / a_0}, \qquad
   a_k(t) = s_k / 2 \ \text{ at } \ t_k = \frac{\ln(s_k / a_0 - 1)}{2 s_k},

so that the largest is learned first, and its rank is known at any time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probebook.deep_linear import DeepLinear, deep_linear_law
from probelib.arguments import require_positive, require_whole

__all__ = [
    "Stages",
    "follow",
    "half_times",
    "strengths",
    "teacher",
]


def strengths(s: Sequence[float], start: float, t: np.ndarray) -> np.ndarray:
    """Strength of each mode in the closed form, shape (times, modes).

    Args:
        s: singular values of the map.
        start: a_0, the strength of every mode at t = 0, below all of them.
        t: times, shape (times,).
    """
    s = np.asarray(s, np.float64)
    decay = np.exp(-2 * s * np.asarray(t, np.float64)[:, None])
    return s / (1 + (s / start - 1) * decay)


def half_times(s: Sequence[float], start: float) -> np.ndarray:
    """When each mode has half of its strength.

    Args:
        s: singular values of the map.
        start: a_0, below half of each.

    Raises:
        ValueError: ``start`` is not.
    """
    s = np.asarray(s, np.float64)
    require_positive("start", start)
    if (s <= 2 * start).any():
        raise ValueError(f"start is {start}; give less than half of each of {s.tolist()}")
    return np.log(s / start - 1) / (2 * s)


def teacher(
    widths: tuple[int, int, int], s: Sequence[float], start: float, seed: int, noise: float = 0.0
) -> tuple[Tensor, DeepLinear]:
    """A map with these singular values in random directions, and a network that starts to learn it.

    Args:
        widths: of the input, the hidden layer and the output.
        s: the singular values, no more than the smallest width.
        start: a_0 of each mode.
        seed: of the directions.
        noise: standard deviation of Gaussian noise on every weight at the start; with 0 the closed
            form is exact for the gradient flow.

    Returns:
        T, shape (outputs, inputs), and the network, both float64.
    """
    rng = np.random.default_rng(seed)
    right, middle, left = (np.linalg.qr(rng.normal(size=(n, n)))[0][:, : len(s)] for n in widths)
    model = DeepLinear(widths, 0, torch.float64)
    first, second = (start**0.5 * a @ b.T for a, b in ((middle, right), (left, middle)))
    with torch.no_grad():
        for layer, value in zip(model.layers, (first, second), strict=True):
            layer.copy_(torch.from_numpy(value + noise * rng.normal(size=value.shape)))
    return torch.from_numpy(left * np.asarray(s) @ right.T), model


def follow(
    model: DeepLinear, target: Tensor, times: Sequence[float], step: float = 1e-3
) -> Iterator[tuple[float, DeepLinear]]:
    """The network along the gradient flow, by the midpoint rule.

    Args:
        model: at time 0; left as it is.
        target: T, shape (outputs, inputs).
        times: ascending, whole multiples of ``step``; others are rounded to one.
        step: of time.

    Yields:
        The time, and the network then, a new one each.
    """
    require_positive("step", step)
    first, second = (layer.detach().clone() for layer in model.layers)

    def slope(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        off = target - b @ a
        return b.T @ off, off @ a.T

    done = 0
    for time in times:
        for _ in range(round(time / step) - done):
            da, db = slope(first, second)
            da, db = slope(first + step / 2 * da, second + step / 2 * db)
            first, second = first + step * da, second + step * db
        done = round(time / step)
        found = DeepLinear(model.widths, 0, first.dtype)
        with torch.no_grad():
            found.layers[0].copy_(first)
            found.layers[1].copy_(second)
        yield done * step, found


@dataclass(frozen=True, eq=False)
class Stages:
    """What Eq. 1 says at every checkpoint, where L asks for the checkpoint's own outputs.

    The training loss has a slope at a checkpoint, and falls beside it. Against its own outputs the
    checkpoint is a minimum, with the LLC of the map that it makes.

    Attributes:
        times: of the checkpoints.
        singular: singular values of the product at each, the largest first, shape (times, k).
        llc, llc_se: of Eq. 1, by Gibbs sampling, without a step size.
        rhat: the largest.
    """

    times: np.ndarray
    singular: np.ndarray
    llc: np.ndarray
    llc_se: np.ndarray
    rhat: float

    @classmethod
    def measure(
        cls,
        checkpoints: Sequence[tuple[float, DeepLinear]],
        *,
        n_beta: float,
        localization: float,
        chains: int,
        sweeps: int,
        seed: int,
    ) -> Stages:
        """Of two-layer networks.

        Args:
            checkpoints: of :func:`follow`.
            n_beta, localization: nb and gamma.
            chains, sweeps: of :func:`probebook.deep_linear.deep_linear_law`; as many sweeps again
                come before those that count.
            seed: of the draws.
        """
        sweeps = require_whole("sweeps", sweeps)
        laws, singular = [], []
        for at, (_, model) in enumerate(checkpoints):
            laws.append(
                deep_linear_law(
                    model, n_beta, localization,
                    chains=chains, sweeps=sweeps, burn_in=sweeps, seed=seed + at,
                )
            )  # fmt: skip
            with torch.no_grad():
                product = model.layers[1] @ model.layers[0]
            singular.append(torch.linalg.svdvals(product).numpy())
        return cls(
            np.array([time for time, _ in checkpoints]),
            np.array(singular),
            np.array([law.llc for law in laws]),
            np.array([law.llc_se for law in laws]),
            max(law.rhat for law in laws),
        )

    def singular_at(self, time: float, mode: int) -> float:
        """A singular value at a time between checkpoints, on a straight line of logarithms."""
        return float(np.exp(np.interp(time, self.times, np.log(self.singular[:, mode]))))
