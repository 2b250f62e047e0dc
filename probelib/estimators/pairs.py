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
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from probelib.arguments import shown
from probelib.contract import PAIRS, canonical
from probelib.estimators.blocks import sample_coords
from probelib.estimators.matrix_kernel import MatrixKernel
from probelib.estimators.pair_sums import (
    DataTerm,
    Sums,
    bear_an_error,
    diagonal_of,
    kernel_and_left_out,
    sums_of_chain,
    total_of,
)
from probelib.estimators.positions import Positions, place

if TYPE_CHECKING:
    import xarray as xr


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
    pairs = _of_chains(pairs, chains, limit, layer)
    count, coords = pairs.sizes["chain"], sample_coords(pairs)
    entries = pairs["kernel" if limit else "products"].values
    term = None
    if not limit:
        term = DataTerm(pairs.log_weight.values, pairs.loss.values, pairs.cross.values)
    believed = term is None or bear_an_error(term.log_weight)
    own = [sums_of_chain(term, chain, np.diagonal(entries[chain])) for chain in range(count)]

    def sums(chain: int) -> Sums:  # one at a time: a chain's is as large as the kernel
        return sums_of_chain(term, chain, entries[chain])

    if count == 1:
        return MatrixKernel(sums(0).kernel(), coords)
    if not believed:
        covariance = total_of(sums, count).kernel()
        return MatrixKernel(covariance, coords, np.full(len(covariance), np.inf))
    diagonal = diagonal_of(own)
    covariance, left_out = kernel_and_left_out(sums, diagonal)
    return MatrixKernel(covariance, coords, diagonal.mcse, left_out)


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


__all__ = ["pair_kernel"]
