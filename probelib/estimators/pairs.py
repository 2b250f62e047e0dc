r"""The loss kernel from pairs of gradients, as :mod:`probelib.gradient_pairs` recorded them.

With a walk's weights w, its next ones w_theta, and v = exp[-n beta L(w)]:

.. math::

   K_{ij} = \frac1{\gamma Z} \int_0^1 \operatorname{E}\big[ v(w)\, (\nabla\ell_i(w)
   - n\beta\, (\ell_i(w) - \mu_i)\, \nabla L(w))^\top \nabla\ell_j(w_\theta) \big]\, d\theta

symmetrised, with mu the weighted mean loss and Z the mean of v. All of it is inner products over
the weights, the data term too, so that K is the sum of what the parameters add.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from probelib.arguments import shown
from probelib.contract import PAIRS, canonical
from probelib.estimators.blocks import sample_coords
from probelib.estimators.left_out import LeftOut
from probelib.estimators.matrix_kernel import MatrixKernel
from probelib.estimators.positions import Positions, place
from probelib.estimators.weighted import Weights, khat_limit

if TYPE_CHECKING:
    import xarray as xr

# So many independent draws tell the tail of their weights.
_KNOWS_ITS_TAIL = 25


def pair_kernel(
    pairs: xr.Dataset,
    chains: Positions = None,
    *,
    limit: bool = False,
    layer: str | Sequence[str] | None = None,
) -> MatrixKernel:
    r"""The loss kernel that pairs of gradients estimate, over all chains or some.

    Args:
        pairs: from :func:`probelib.gradient_pairs`.
        chains: positions of the chains to use, or one; default: all.
        limit: leave the data term of Eq. 1 out: the kernel of N(w*, I / gamma), for n beta -> 0.
            Every draw counts alike there, so that few are enough; a share of Eq. 1's draws near 1
            does not make it that of Eq. 1.
        layer: a name or glob of parameters, or several, such as ``"head.*"``: the part of K that
            goes through their weights, of pairs made with ``by_layer=True``. The parts of all add
            up to K, and all weights move in each; it is not the kernel of a posterior in which
            only these do (``LocalPosterior(parameters=...)``), and K_ii may come out negative.
            Default: all.

    Returns:
        The kernel under Eq. 1. Its errors, of the diagonal, of any entry (``covariance_mcse``), of
        correlations (``correlation_mcse``) and of neighbours, come from leaving out one chain after
        the other (jackknife), widened by Student's t for so few, so that 1.96 of them cover; NaN
        for a single chain, and infinite where the weights do not bear an error, or a sample did
        not move.

    Raises:
        ValueError: pairs without what the data term needs, from an older version; a layer that they
            do not have, or pairs without layers.

    Warns:
        UserWarning: the weights exp[-n beta L] may leave so few of the draws that the kernel is
            not to be believed, or there are too few draws to know.
    """
    from scipy.special import stdtrit  # slow to import, so where it is used

    pairs = _of_chains(pairs, chains, limit, layer)
    count = pairs.sizes["chain"]
    believed = limit or _bear_an_error(pairs)
    sums = partial(_sums_in_the_limit if limit else _sums_of_chain, pairs)
    total = sums(0)
    own = [total.of_diagonal()]
    for chain in range(1, count):  # one at a time: a chain's is as large as the kernel
        part = sums(chain)
        total, own = total.plus(part), [*own, part.of_diagonal()]
    covariance = total.kernel()
    if count == 1 or not believed:
        unknown = None if count == 1 else np.full(len(covariance), np.inf)
        return MatrixKernel(covariance, sample_coords(pairs), unknown)
    diagonal = total.of_diagonal()
    without = np.stack([diagonal.less(part).variances() for part in own])
    mcse = np.std(without, 0) * np.sqrt(count - 1) * stdtrit(count - 1, 0.975) / 1.96
    variance = np.diag(covariance)
    size = np.maximum(np.abs(variance), np.abs(without - variance).max(0))
    mcse[~(size > 0)] = np.inf  # it has not moved, and no walk tells how far it may
    changes = (total.less(sums(chain)).kernel() - covariance for chain in range(count))
    left_out = LeftOut(changes, count, size)
    return MatrixKernel(covariance, sample_coords(pairs), mcse, left_out)


def _of_chains(
    pairs: xr.Dataset, chains: Positions, limit: bool, layer: str | Sequence[str] | None
) -> xr.Dataset:
    """What :func:`pair_kernel` needs of these chains and layers, checked."""
    names = () if limit else ("loss", "products", "cross", "log_weight")
    if missing := [name for name in names if name not in pairs]:
        raise ValueError(
            f"pairs has no {missing[0]}, which the data term of Eq. 1 needs; make them anew, or "
            "give limit=True for the kernel without it"
        )
    pairs = _of_layers(pairs, layer)
    pairs = canonical(pairs, "kernel", *names, argument="pairs", variables=PAIRS)
    at = np.unique(np.arange(pairs.sizes["chain"])[place("chains", chains, pairs.sizes["chain"])])
    if not at.size:
        raise ValueError(f"chains is {shown(chains)}, which is none of them; choose one at least")
    pairs = pairs.isel(chain=at)
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
    return pairs


def _of_layers(pairs: xr.Dataset, layer: str | Sequence[str] | None) -> xr.Dataset:
    """Pairs without the dimension ``layer``: the sum over some layers, or over all there are."""
    split = [name for name in ("kernel", "products", "cross") if name in pairs]
    along = [name for name in split if "layer" in pairs[name].dims]
    if not along and layer is None:
        return pairs
    if along != split:
        lack = next(name for name in split if name not in along)
        raise ValueError(
            f"pairs has {lack} without layers; make them with gradient_pairs(..., by_layer=True), "
            "and keep the layers of all variables"
        )
    if not pairs.sizes["layer"]:
        raise ValueError("pairs has no layer left; keep at least one")
    if layer is not None:
        pairs = pairs.isel(layer=_places_of_layers(pairs, layer))
    total = {name: pairs[name].sum("layer", skipna=False) for name in split}
    return pairs.drop_dims("layer").assign(total)


def _places_of_layers(pairs: xr.Dataset, layer: str | Sequence[str]) -> list[int]:
    """Positions of the layers that names or globs stand for, each once."""
    patterns = [layer] if isinstance(layer, str) else layer
    if not isinstance(patterns, list | tuple | set | frozenset) or not all(
        isinstance(pattern, str) for pattern in patterns
    ):
        raise TypeError(f"layer is {shown(layer)}; give a name or glob, or a list of these")
    if "layer" not in pairs.coords:
        raise ValueError("pairs has no names of its layers; keep the coordinate layer")
    names, found = [str(name) for name in pairs["layer"].values], set()
    for pattern in patterns:
        same = {at for at, name in enumerate(names) if name == pattern}
        same = same or {at for at, name in enumerate(names) if fnmatchcase(name, pattern)}
        if not same:
            near = difflib.get_close_matches(pattern, names, 3, 0.5) or names[:3]
            if any(name.startswith(f"{pattern}.") for name in names):
                near = [f"{pattern}.*"]
            raise ValueError(
                f"layer has {pattern!r}, which matches no layer of pairs; the nearest are "
                f"{', '.join(map(repr, near))} (pairs.layer has all)"
            )
        found |= same
    if not found:
        raise ValueError("layer is empty; name at least one")
    return sorted(found)


class _Sums(NamedTuple):
    """Sums over pairs, of which K = (matrix + excess cross' / norm) / norm, symmetrised.

    Attributes:
        matrix: of v [g_i'g_j / gamma - c (l_i - mu_i) L'(w)'g_j(w_theta)], (n, n), with c = n beta
            / gamma and a rough mu that all chains share; or its diagonal, (n,).
        norm: of v.
        excess: of v (l_i - mu_i), (n,).
        cross: c times that of v L'(w)'g_j(w_theta), (n,).
    """

    matrix: np.ndarray
    norm: float
    excess: np.ndarray
    cross: np.ndarray

    def plus(self, other: _Sums) -> _Sums:
        return _Sums(
            self.matrix + other.matrix,
            self.norm + other.norm,
            self.excess + other.excess,
            self.cross + other.cross,
        )

    def less(self, other: _Sums) -> _Sums:
        return _Sums(
            self.matrix - other.matrix,
            self.norm - other.norm,
            self.excess - other.excess,
            self.cross - other.cross,
        )

    def of_diagonal(self) -> _Sums:
        return self._replace(matrix=np.diag(self.matrix).copy())

    def kernel(self) -> np.ndarray:
        """K, (n, n)."""
        covariance = (self.matrix + np.outer(self.excess / self.norm, self.cross)) / self.norm
        return (covariance + covariance.T) / 2

    def variances(self) -> np.ndarray:
        """K_ii, (n,), from :meth:`of_diagonal`."""
        return (self.matrix + self.excess / self.norm * self.cross) / self.norm


def _sums_in_the_limit(pairs: xr.Dataset, chain: int) -> _Sums:
    """As :func:`_sums_of_chain`, for n beta -> 0."""
    kernel = pairs.kernel.values[chain].astype(np.float64)
    return _Sums(kernel, 1.0, np.zeros(len(kernel)), np.zeros(len(kernel)))


def _sums_of_chain(pairs: xr.Dataset, chain: int) -> _Sums:
    """Those of one chain. A pair is counted from both its ends, each by half."""
    log_weight = pairs.log_weight.values
    weight = np.exp(log_weight[chain] - log_weight.max())
    loss = pairs.loss.values[chain] - pairs.loss.values.mean((0, 1), dtype=np.float64)
    ends = np.stack([np.arange(len(weight) - 1), np.arange(1, len(weight))], 1)  # of each pair
    weighted = weight[ends][..., None] / 2 * loss[ends]  # (pair, side, n)
    cross = pairs.cross.values[chain]
    matrix = pairs.products.values[chain] * np.exp(log_weight[chain].max() - log_weight.max())
    matrix = matrix - np.tensordot(weighted, cross, ((0, 1), (0, 1)))
    along = (weight[ends][..., None] / 2 * cross).sum((0, 1))
    return _Sums(matrix, float(weight[ends].sum() / 2), weighted.sum((0, 1)), along)


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
