r"""Sums over pairs of gradients, of which the loss kernel or some rows of it are made.

With v the weights of the draws, v̄ their sum over pairs and μ the weighted mean losses,

.. math::

   K_{ij} = \frac1{\bar v} \sum v\, \Big[ \frac1\gamma g_i^\top g_j - \frac{n\beta}\gamma
   (\ell_i - \mu_i)\, L'(w)^\top g_j(w_\theta) \Big]

symmetrised (:mod:`probelib.estimators.pairs`). Each chain has sums of its own; that of all but one
gives the kernel without it, and so the errors (:mod:`probelib.estimators.left_out`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import NamedTuple

import numpy as np

from probelib.estimators.left_out import LeftOut
from probelib.estimators.weighted import Weights, khat_limit

# So many independent draws tell the tail of their weights.
_KNOWS_ITS_TAIL = 25


class Sums(NamedTuple):
    """Sums over pairs, of which K = (matrix + excess cross' / norm, symmetrised) / norm.

    Args:
        matrix: of v [g_i'g_j / gamma - c (l_i - mu_i) L'(w)'g_j(w_theta)], symmetrised, with c = n
            beta / gamma and a rough mu that all chains share: (n, n), or rows of it; or its
            diagonal, (n,).
        norm: of v.
        excess: of v (l_i - mu_i), (n,).
        cross: c times that of v L'(w)'g_j(w_theta), (n,).
    """

    matrix: np.ndarray
    norm: float
    excess: np.ndarray
    cross: np.ndarray

    def plus(self, other: Sums) -> Sums:
        return Sums(
            self.matrix + other.matrix,
            self.norm + other.norm,
            self.excess + other.excess,
            self.cross + other.cross,
        )

    def less(self, other: Sums) -> Sums:
        return Sums(
            self.matrix - other.matrix,
            self.norm - other.norm,
            self.excess - other.excess,
            self.cross - other.cross,
        )

    def kernel(self, rows: np.ndarray | None = None) -> np.ndarray:
        """K, (n, n), or the rows at these positions, which ``matrix`` has."""
        at = slice(None) if rows is None else rows
        excess = self.excess / self.norm
        mixed = np.outer(excess[at], self.cross) + np.outer(self.cross[at], excess)
        return (self.matrix + mixed / 2) / self.norm

    def variances(self) -> np.ndarray:
        """K_ii, (n,), from a diagonal."""
        return (self.matrix + self.excess / self.norm * self.cross) / self.norm


@dataclass(frozen=True, eq=False)
class DataTerm:
    """What walks recorded for the data term of Eq. 1: see :func:`probelib.gradient_pairs`.

    Attributes:
        log_weight: -n beta L at the weights of each walk, (chain, draw).
        loss: there, nats, (chain, draw, n).
        cross: n beta / gamma times the inner products of the gradient of L at one end of a pair
            with the gradients at the other, (chain, pair, side, n).
    """

    log_weight: np.ndarray
    loss: np.ndarray
    cross: np.ndarray

    @cached_property
    def rough_mean(self) -> np.ndarray:
        """Mean losses of all draws, (n,)."""
        return self.loss.mean((0, 1), dtype=np.float64)


def sums_of_chain(
    term: DataTerm | None, chain: int, products: np.ndarray, rows: np.ndarray | None = None
) -> Sums:
    """Those of one chain. A pair is counted from both its ends, each by half.

    Args:
        term: of all chains; None: without the data term, n beta -> 0.
        chain: which.
        products: the chain's sum over pairs of v g_i'g_j / gamma, v over its largest (without the
            data term the mean): (n, n), or the rows of it, or its diagonal (n,).
        rows: positions of the rows; default: all.
    """
    n = products.shape[-1]
    if term is None:
        return Sums(products.astype(np.float64), 1.0, np.zeros(n), np.zeros(n))
    own, largest = term.log_weight[chain], term.log_weight.max()
    weight = np.exp(own - largest)
    loss = term.loss[chain] - term.rough_mean
    ends = np.stack([np.arange(len(weight) - 1), np.arange(1, len(weight))], 1)  # of each pair
    weighted = weight[ends][..., None] / 2 * loss[ends]  # (pair, side, n)
    cross = term.cross[chain]
    matrix = products * np.exp(own.max() - largest)
    if products.ndim == 1:
        matrix = matrix - (weighted * cross).sum((0, 1))
    else:
        at = slice(None) if rows is None else rows
        mixed = np.tensordot(weighted[..., at], cross, ((0, 1), (0, 1)))
        mixed += np.tensordot(cross[..., at], weighted, ((0, 1), (0, 1)))
        matrix = matrix - mixed / 2
    along = (weight[ends][..., None] / 2 * cross).sum((0, 1))
    return Sums(matrix, float(weight[ends].sum() / 2), weighted.sum((0, 1)), along)


def total_of(sums: Callable[[int], Sums], count: int) -> Sums:
    """Those of all chains."""
    return reduce(Sums.plus, map(sums, range(count)))


@dataclass(frozen=True, eq=False)
class Diagonal:
    """K_ii of all samples, with what leaving out each walk does to it.

    Attributes:
        variance: K_ii, (n,), nats squared.
        changes: of each walk, K_ii without it less K_ii, (walk, n).
        size: about the largest of K_ii and its changes, (n,).
        mcse: standard errors of K_ii by the jackknife, (n,); infinite for a sample that did not
            move, since no walk tells how far it may.
    """

    variance: np.ndarray
    changes: np.ndarray
    size: np.ndarray
    mcse: np.ndarray


def diagonal_of(own: Sequence[Sums]) -> Diagonal:
    """Of the diagonals of two chains or more, in order."""
    from scipy.special import stdtrit  # slow to import, so where it is used

    count, total = len(own), total_of(own.__getitem__, len(own))
    variance = total.variances()
    without = np.stack([total.less(part).variances() for part in own])
    mcse = np.std(without, 0) * np.sqrt(count - 1) * stdtrit(count - 1, 0.975) / 1.96
    changes = without - variance
    size = np.maximum(np.abs(variance), np.abs(changes).max(0))
    mcse[~(size > 0)] = np.inf
    return Diagonal(variance, changes, size, mcse)


def kernel_and_left_out(
    sums: Callable[[int], Sums], diagonal: Diagonal, rows: np.ndarray | None = None
) -> tuple[np.ndarray, LeftOut]:
    """K, or some rows of it, with what its errors are made of.

    Args:
        sums: of each chain, of all samples or of the rows; asked for twice each.
        diagonal: of all samples.
        rows: positions, sorted, each once; default: all.
    """
    count = len(diagonal.changes)
    total = total_of(sums, count)
    covariance = total.kernel(rows)
    changes = (total.less(sums(chain)).kernel(rows) - covariance for chain in range(count))
    return covariance, LeftOut(changes, diagonal.changes, diagonal.size, rows)


def bear_an_error(log_weight: np.ndarray, stacklevel: int = 3, needed: float = 5.0) -> bool:
    """Whether the draws of walks are worth ``needed`` ones under Eq. 1, as far as they can tell.

    A third of them is independent: neighbours in a walk are alike. Where these are too few to know
    the tail of their weights, it is taken to be that of a normal law of the log weights, which
    leaves a share of exp(-s²), with s² at the upper end of its 95 % interval: the share of those
    draws that are there is biased up.

    Warns:
        UserWarning: they are not.
    """
    from scipy.special import chdtri  # slow to import, so where it is used

    log_weight = log_weight.reshape(1, -1)
    weight = np.exp(log_weight - log_weight.max())
    weights = Weights(weight / weight.sum(), log_weight, 0.0)
    independent = log_weight.size / 3
    worth = weights.ess / 3
    if independent < _KNOWS_ITS_TAIL:
        freedom = max(independent - 1, 1.0)
        variance = log_weight.var(ddof=1) * freedom / chdtri(freedom, 0.95)
        worth = min(weights.ess, log_weight.size * np.exp(-variance))
        good = worth >= needed
    else:
        good = worth >= needed and weights.khat <= khat_limit(int(independent))
    if good:
        return True
    warnings.warn(
        f"pairs has {log_weight.size} draws whose log weights -n_beta L spread by "
        f"{log_weight.std(ddof=1):.2g} and may be worth only {worth:.1g} draws of Eq. 1; take "
        "more chains, raise localization, or give limit=True for the kernel without the data term",
        UserWarning,
        stacklevel=stacklevel,
    )
    return False


__all__ = [
    "DataTerm",
    "Diagonal",
    "Sums",
    "bear_an_error",
    "diagonal_of",
    "kernel_and_left_out",
    "sums_of_chain",
    "total_of",
]
