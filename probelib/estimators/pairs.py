r"""The loss kernel from pairs of gradients, as :mod:`probelib.gradient_pairs` recorded them.

With a walk's weights w, its next ones w_theta, and v = exp[-n beta L(w)]:

.. math::

   K_{ij} = \frac1{\gamma Z} \int_0^1 \operatorname{E}\big[ v(w)\, (\nabla\ell_i(w)
   - n\beta\, (\ell_i(w) - \mu_i)\, \nabla L(w))^\top \nabla\ell_j(w_\theta) \big]\, d\theta

symmetrised, with mu the weighted mean loss and Z the mean of v.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from probelib.arguments import shown
from probelib.contract import PAIRS, canonical
from probelib.estimators.blocks import sample_coords
from probelib.estimators.matrix_kernel import MatrixKernel
from probelib.estimators.positions import Positions, place
from probelib.estimators.weighted import Weights, khat_limit

if TYPE_CHECKING:
    import xarray as xr

# So many independent draws tell the tail of their weights.
_KNOWS_ITS_TAIL = 25


def pair_kernel(
    pairs: xr.Dataset, chains: Positions = None, *, limit: bool = False
) -> MatrixKernel:
    r"""The loss kernel that pairs of gradients estimate, over all chains or some.

    Args:
        pairs: from :func:`probelib.gradient_pairs`.
        chains: positions of the chains to use, or one; default: all.
        limit: leave the data term of Eq. 1 out: the kernel of N(w*, I / gamma), for n beta -> 0.
            Every draw counts alike there, so that few are enough; a share of Eq. 1's draws near 1
            does not make it that of Eq. 1.

    Returns:
        The kernel under Eq. 1. The errors of its diagonal come from leaving out one chain after
        the other (jackknife), widened by Student's t for so few, so that 1.96 of them cover; NaN
        for a single chain, and infinite where the weights do not bear an error.

    Raises:
        ValueError: pairs without what the data term needs, from an older version.

    Warns:
        UserWarning: the weights exp[-n beta L] may leave so few of the draws that the kernel is
            not to be believed, or there are too few draws to know.
    """
    from scipy.special import stdtrit  # slow to import, so where it is used

    names = () if limit else ("loss", "products", "cross", "log_weight")
    if missing := [name for name in names if name not in pairs]:
        raise ValueError(
            f"pairs has no {missing[0]}, which the data term of Eq. 1 needs; make them anew, or "
            "give limit=True for the kernel without it"
        )
    pairs = canonical(pairs, "kernel", *names, argument="pairs", variables=PAIRS)
    at = np.unique(np.arange(pairs.sizes["chain"])[place("chains", chains, pairs.sizes["chain"])])
    if not at.size:
        raise ValueError(f"chains is {shown(chains)}, which is none of them; choose one at least")
    pairs, count, n = pairs.isel(chain=at), len(at), pairs.sizes["sample"]
    each = pairs.kernel.values
    even = each.shape[1] == each.shape[2]
    if not even or not np.allclose(each, each.transpose(0, 2, 1), 1e-3, 1e-3 * np.abs(each).max()):
        raise ValueError(
            "pairs has a kernel whose samples are not its others; select both alike: "
            "pairs.isel(sample=some, other=some)"
        )
    if not limit and pairs.sizes["draw"] != pairs.sizes["pair"] + 1:
        raise ValueError(
            f"pairs has {pairs.sizes['draw']} draws in walks of {pairs.sizes['pair']} pairs; keep "
            "all of both, since a pair belongs to two draws"
        )
    believed = limit or _bear_an_error(pairs)
    parts = [(_sums_in_the_limit if limit else _sums_of_chain)(pairs, c) for c in range(count)]
    total = [np.sum(each, 0) for each in zip(*parts, strict=True)]
    matrix, norm, excess, cross = total
    covariance = (matrix + np.outer(excess / norm, cross)) / norm
    mcse = None if count == 1 else np.full(n, np.inf)
    if count > 1 and believed:
        without = []
        for part in parts:  # the diagonal, one chain left out
            matrix, norm, excess, cross = (a - b for a, b in zip(total, part, strict=True))
            without.append((np.diag(matrix) + excess / norm * cross) / norm)
        spread = np.std(without, 0) * np.sqrt(count - 1)
        mcse = spread * stdtrit(count - 1, 0.975) / 1.96
    return MatrixKernel((covariance + covariance.T) / 2, sample_coords(pairs), mcse)


def _sums_in_the_limit(
    pairs: xr.Dataset, chain: int
) -> tuple[np.ndarray, float, np.ndarray, np.ndarray]:
    """As :func:`_sums_of_chain`, for n beta -> 0."""
    kernel = pairs.kernel.values[chain].astype(np.float64)
    return kernel, 1.0, np.zeros(len(kernel)), np.zeros(len(kernel))


def _sums_of_chain(
    pairs: xr.Dataset, chain: int
) -> tuple[np.ndarray, float, np.ndarray, np.ndarray]:
    """What a chain adds to K = (matrix + excess cross' / norm) / norm.

    With c = n beta / gamma, and losses relative to a rough mu that all chains share:

    Returns:
        Sum over pairs of v [g_i'g_j / gamma - c (l_i - mu_i) L'(w)'g_j(w_theta)], (n, n); sum of v;
        sum of v (l_i - mu_i), (n,); c times the sum of v L'(w)'g_j(w_theta), (n,). A pair is
        counted from both its ends, each by half.
    """
    log_weight = pairs.log_weight.values
    weight = np.exp(log_weight[chain] - log_weight.max())
    loss = pairs.loss.values[chain] - pairs.loss.values.mean((0, 1), dtype=np.float64)
    ends = np.stack([np.arange(len(weight) - 1), np.arange(1, len(weight))], 1)  # of each pair
    weighted = weight[ends][..., None] / 2 * loss[ends]  # (pair, side, n)
    cross = pairs.cross.values[chain]
    matrix = pairs.products.values[chain] * np.exp(log_weight[chain].max() - log_weight.max())
    matrix = matrix - np.tensordot(weighted, cross, ((0, 1), (0, 1)))
    along = (weight[ends][..., None] / 2 * cross).sum((0, 1))
    return matrix, float(weight[ends].sum() / 2), weighted.sum((0, 1)), along


def _bear_an_error(pairs: xr.Dataset, needed: float = 5.0) -> bool:
    """Whether the draws of walks are worth ``needed`` ones under Eq. 1, as far as they can tell.

    A third of them is independent: neighbours in a walk are alike. Where these are too few to know
    the tail of their weights, it is taken to be that of a normal law of the log weights, which
    leaves a share of exp(-s²), with s² at the upper end of its 95 % interval: the share of those
    draws that are there is biased up.
    """
    from scipy.special import chdtri  # slow to import, so where it is used

    log_weight = pairs.log_weight.values.reshape(1, -1)
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
        stacklevel=3,
    )
    return False


__all__ = ["pair_kernel"]
