r"""Each sample as a short vector, whose inner products are the kernel of gradient pairs.

A count sketch S adds each of a vector's numbers, with a sign by chance, to one of m places by
chance (Charikar, Chen and Farach-Colton, 2002), so that

.. math::

   \operatorname{E}[(S a)^\top S b] = a^\top b, \qquad
   \operatorname{Var} = \tfrac1m \Big[ |a|^2 |b|^2 + (a^\top b)^2 - 2 \sum_k a_k^2 b_k^2 \Big]

Each walk has one of its own, which the gradients at all of its weights share.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probelib.ambient import undisturbed
from probelib.arguments import require_whole
from probelib.contract import sample_coordinates
from probelib.data import Data
from probelib.pair_rows import Cut, buffers_of, groups_of, written
from probelib.pair_walks import Walks, products_of_same, walks_of
from probelib.posterior import LocalPosterior
from probelib.progress import progress_bar, report_run

if TYPE_CHECKING:
    import xarray as xr

_SKETCH = 1  # that a seed is of a sketch, and not of a walk
_ROWS = 8  # that are added up at once


@undisturbed
def pair_features(
    posterior: LocalPosterior,
    observe: Data | None = None,
    *,
    size: int = 512,
    chains: int = 2,
    pairs: int = 1,
    seed: int = 0,
    batch_size: int = 16,
    memory: int | None = None,
    progress: bool = True,
) -> xr.Dataset:
    r"""Vectors of samples whose inner products estimate K without the data term of Eq. 1.

    That is the kernel of N(w*, I / gamma), for n beta -> 0, as ``pair_kernel(..., limit=True)``
    has it: unbiased, over walks and sketches, where one sample has its ``left`` vector and the
    other its ``right``, since the two gradients of a product come from two ends of a pair. They are
    for maps and for libraries that look for large inner products among many samples; what they find
    is to be confirmed by :func:`probelib.pair_neighbours`, which has errors.

    Args:
        posterior: Eq. 1.
        observe: samples that are wanted; default: those of the posterior.
        size: numbers of a sample in each chain: a sketch of ``size / (2 pairs)`` for both ends of
            each pair.
        chains: walks, each with a sketch of its own; two at least, which are independent. How alike
            two of them are says how far to trust inner products.
        pairs, seed, batch_size: of the walks, which are those of :func:`probelib.gradient_pairs`.
        memory: bytes that gradients may take. Default: 4 GiB, and a third of what is free on an
            accelerator.
        progress: show a bar.

    Returns:
        ``left`` and ``right`` (chain, sample, feature), float64, nats: for each chain
        ``left[i] @ right[j]``, which is ``right[i] @ left[j]``, estimates K_ij, and the mean over
        chains does so best. ``norm`` (chain, sample), nats, root mean square of the gradients over
        root gamma: beside what the walk itself is off by, the sketch of a chain adds a standard
        error of at most ``norm[i] * norm[j] * sqrt(2 / m)`` to K_ij, m = ``size / (2 pairs)``
        (about that without the 2 for samples that are not alike). Attributes: ``sketch``, m;
        ``wall_time``, in seconds.

    Raises:
        ValueError: a bad argument, a posterior in train mode, losses or gradients that are not
            finite.
    """
    started = time.perf_counter()
    size = require_whole("size", size, 2)
    if memory is not None:
        memory = require_whole("memory", memory)
    walks = walks_of(posterior, observe, chains, pairs, seed, batch_size, memory)
    if size % (2 * walks.pairs):
        raise ValueError(
            f"size is {size}; give a multiple of {2 * walks.pairs}, twice the pairs of a walk"
        )
    m, n = size // (2 * walks.pairs), len(walks.observed)
    with progress_bar(total=chains, disable=not progress) as bar:
        found = [_of_chain(walks, chain, m, bar.update) for chain in range(chains)]
    ends = np.stack([sketches for sketches, _ in found])  # (chain, draw, sample, m)
    both = np.stack([ends[:, :-1], ends[:, 1:]], 3)  # (chain, pair, sample, side, m)
    both = both.transpose(0, 2, 1, 3, 4) / np.sqrt(2 * walks.pairs)
    shape = chains, n, size
    from probelib.trace import Trace  # slow to import, so where it is used

    seconds = time.perf_counter() - started
    report_run("features of gradient pairs", seconds, cached=False)
    return Trace(
        {
            "left": (("chain", "sample", "feature"), both.reshape(shape)),
            "right": (("chain", "sample", "feature"), both[:, :, :, ::-1].reshape(shape)),
            "norm": (("chain", "sample"), np.stack([norms for _, norms in found])),
        },
        coords=sample_coordinates(n, walks.observed.labels()),
        attrs={"sketch": m, "wall_time": seconds},
    )


def _of_chain(
    walks: Walks, chain: int, m: int, tick: Callable[[float], Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Sketches of g_i / sqrt(gamma) along a chain, (draw, n, m), and root mean square norms."""
    n, cut = len(walks.observed), Cut.of(walks, 1)
    trail = [weights for weights, _ in walks.weights(chain)]
    sketches = torch.zeros(len(trail), n, m, dtype=torch.float64)
    squares = torch.zeros(n, dtype=torch.float64)
    for group, columns in groups_of(walks, cut):
        (out,) = buffers_of(walks, cut.streamed, columns, 1)
        places, signs = _sketch(walks, chain, group, m)
        for samples in np.array_split(np.arange(n), -(-n // cut.streamed)):
            for step, weights in enumerate(trail):
                here = written(walks, out, weights, group, samples)
                part = _sketched(here.rows, places, signs, m) * here.scale[:, None]
                sketches[step, samples] += part.cpu()
                squares[samples] += (products_of_same(here.rows, here.rows) * here.scale**2).cpu()
                tick(len(samples) / n / len(trail) / len(cut.groups))
    if not (finite := squares.isfinite()).all():
        raise walks.not_finite(int((~finite).nonzero()[0, 0]))
    gamma = walks.posterior.localization
    norms = (squares / len(trail) / gamma).sqrt()
    return (sketches / gamma**0.5).numpy(), norms.numpy()


def _sketch(walks: Walks, chain: int, group: list[int], m: int) -> tuple[Tensor, Tensor]:
    """Places and signs of the weights in a group of layers, drawn layer by layer on the host."""
    places, signs = [], []
    for layer in group:
        seeds = np.random.SeedSequence(walks.seed, spawn_key=(chain, _SKETCH, layer))
        generator = torch.Generator()
        generator.manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> 1))
        shape = (walks.gradients.sizes[layer],)
        places.append(torch.randint(m, shape, generator=generator))
        signs.append(torch.randint(2, shape, generator=generator, dtype=torch.int8))
    device = walks.posterior.device
    return torch.cat(places).to(device), (2 * torch.cat(signs) - 1).to(device)


def _sketched(rows: Tensor, places: Tensor, signs: Tensor, m: int) -> Tensor:
    """(n, m), float64."""
    dtype, parts = torch.promote_types(rows.dtype, torch.float32), []
    for part in rows.split(_ROWS):
        empty = torch.zeros(len(part), m, dtype=dtype, device=rows.device)
        parts.append(empty.index_add_(1, places, part.to(dtype) * signs))
    return torch.cat(parts).double()


__all__ = ["pair_features"]
