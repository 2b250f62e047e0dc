"""Pairs of gradients without a matrix of all samples: its diagonal, and some rows at a time.

The walks are those of :func:`probelib.gradient_pairs`. One pass over the samples, at the weights of
all walks, gives what belongs to a single sample: :math:`K_{ii}`, losses, and inner products with
the gradient of L. Then gradients of a block of rows are kept at three neighbouring weights while
those of all samples stream past, some at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from probelib.pair_walks import Walks, inner_products, products_of, products_of_same
from probelib.sample_gradients import or_one

_STREAMED = 512  # samples whose gradients meet a block at once, at most
_FEWEST = 64  # rows of a block for which layers are taken in groups
# Bytes that the reduction of a block takes for each entry: for each walk, and beside that.
_ENTRY_OF_WALK, _ENTRY = 12, 64


class Cut(NamedTuple):
    """How gradients are cut to fit into memory.

    Args:
        groups: of positions of layers, each with its own backward passes.
        rows: of a block.
        streamed: samples whose gradients meet it at once.
    """

    groups: list[list[int]]
    rows: int
    streamed: int

    @classmethod
    def of(cls, walks: Walks, chains: int) -> Cut:
        """One that takes ``walks.memory`` bytes, as far as a row and a layer fit into them."""
        gradients, n = walks.gradients, len(walks.observed)
        room = gradients.room(walks.memory)
        groups = list(gradients.groups(4 * min(n, _FEWEST), room // 2))
        widest = max(sum(gradients.sizes[at] for at in group) for group in groups)
        gradient = widest * gradients.dtype.itemsize
        streamed = int(np.clip(room // (8 * gradient), 1, min(n, _STREAMED)))
        row = 3 * gradient + n * (_ENTRY_OF_WALK * chains + _ENTRY)
        rows = int(np.clip((room - streamed * gradient) // row, 1, n))
        return cls(groups, rows, streamed)


def of_samples(
    walks: Walks, chain: int, cut: Cut, tick: Callable[[float], Any]
) -> dict[str, np.ndarray]:
    """What one chain gives of each sample, by the names of :func:`probelib.gradient_pairs`.

    Of its ``kernel`` and ``products`` these are the diagonals, (n,). The gradient of L is one pass
    of automatic differentiation at each weights, and none of rows.
    """
    posterior, n = walks.posterior, len(walks.observed)
    trail = [weights for weights, _ in walks.weights(chain)]
    means = [walks.mean_loss(weights) for weights in trail]
    slopes = [slope for _, slope in means]
    log_weight = -posterior.n_beta * np.array([mean for mean, _ in means])
    share = pair_weights(log_weight)
    kernel, products = torch.zeros(2, n, dtype=torch.float64)
    cross = torch.zeros(walks.pairs, 2, n, dtype=torch.float64)
    loss = torch.empty(len(trail), n, dtype=posterior.dtype)
    for group, columns in groups_of(walks, cut):
        buffers = buffers_of(walks, cut.streamed, columns, 2)
        for samples in np.array_split(np.arange(n), -(-n // cut.streamed)):
            before: Held | None = None
            for step, weights in enumerate(trail):
                here = written(walks, buffers[step % 2], weights, group, samples)
                loss[step, samples] = here.losses.cpu()
                if before is not None:
                    both = here.scale * before.scale
                    product = (products_of_same(before.rows, here.rows) * both).cpu()
                    kernel[samples] += product / walks.pairs
                    products[samples] += product * share[step - 1]
                    ends = (here, slopes[step - 1]), (before, slopes[step])
                    for side, (end, slope) in enumerate(ends):
                        along = inner_products(end.rows, slope[columns]) * end.scale
                        cross[step - 1, side, samples] += along.cpu()
                before = here
                tick(len(samples) / n / len(trail) / len(cut.groups))
    gamma = posterior.localization
    finite = kernel.isfinite() & cross.isfinite().flatten(0, 1).all(0)
    if not finite.all():
        raise walks.not_finite(int((~finite).nonzero()[0, 0]))
    found = {"kernel": kernel / gamma, "products": products / gamma, "loss": loss}
    found |= {"cross": cross * (posterior.n_beta / gamma)}
    return {name: tensor.numpy() for name, tensor in found.items()} | {"log_weight": log_weight}


def of_rows(
    walks: Walks,
    chain: int,
    rows: np.ndarray,
    share: np.ndarray,
    cut: Cut,
    tick: Callable[[float], Any],
) -> np.ndarray:
    """Some rows of a chain's ``products``, or of its ``kernel``: (rows, n), symmetrised.

    Args:
        rows: positions.
        share: what each pair counts, (pairs,): its weight, or 1 / pairs for the ``kernel``.
    """
    n, steps = len(walks.observed), walks.pairs + 1
    trail = [weights for weights, _ in walks.weights(chain)]
    total = torch.zeros(len(rows), n, dtype=torch.float64, device=walks.posterior.device)
    parts = np.array_split(np.arange(n), -(-n // cut.streamed))
    for group, columns in groups_of(walks, cut):
        sizes = [walks.gradients.sizes[at] for at in group]
        buffers = buffers_of(walks, len(rows), columns, 3)
        (passing,) = buffers_of(walks, cut.streamed, columns, 1)
        held: dict[int, Held] = {}  # the rows, by their place along the walk
        for step in range(steps):
            for at in (step, step + 1):
                if at < steps and at not in held:
                    held[at] = written(walks, buffers[at % 3], trail[at], group, rows)
            pairs = [
                (at, pair) for at, pair in ((step - 1, step - 1), (step + 1, step)) if at in held
            ]
            for samples in parts:
                here = written(walks, passing, trail[step], group, samples)
                where = slice(int(samples[0]), int(samples[-1]) + 1)
                for at, pair in pairs:
                    product = products_of(held[at].rows, here.rows, sizes).double()
                    product *= held[at].scale[:, None] * here.scale
                    total[:, where] += product * share[pair]
                tick(len(samples) / n / steps / len(cut.groups))
            held.pop(step - 1, None)
    total /= 2 * walks.posterior.localization
    if not total.isfinite().all():
        raise walks.not_finite(int(rows[int((~total.isfinite()).any(1).nonzero()[0, 0])]))
    return total.cpu().numpy()


def pair_weights(log_weight: np.ndarray) -> np.ndarray:
    """Weights of the pairs of a chain, (pairs,): the mean of their ends', over its largest."""
    weight = np.exp(log_weight - log_weight.max())
    return (weight[:-1] + weight[1:]) / 2


class Held(NamedTuple):
    """Gradients of some samples over their losses' sizes, these sizes, and the losses."""

    rows: Tensor
    scale: Tensor
    losses: Tensor


def written(
    walks: Walks, out: Tensor, weights: Tensor, group: list[int], samples: np.ndarray
) -> Held:
    """The gradients of some samples with respect to a group of layers, in the rows of ``out``."""
    rows = out[: len(samples)]
    losses = torch.empty(len(samples), dtype=walks.posterior.dtype, device=out.device)
    walks.write(rows, losses, weights, group, samples)
    return Held(rows, or_one(losses).double(), losses)


def groups_of(walks: Walks, cut: Cut) -> list[tuple[list[int], slice]]:
    """The groups of layers, each with its columns among all weights."""
    sizes, found, start = walks.gradients.sizes, [], 0
    for group in cut.groups:
        width = sum(sizes[at] for at in group)
        found.append((group, slice(start, start + width)))
        start += width
    return found


def buffers_of(walks: Walks, rows: int, columns: slice, count: int) -> list[Tensor]:
    """Room for gradients with respect to these columns."""
    shape = rows, columns.stop - columns.start
    dtype, device = walks.gradients.dtype, walks.posterior.device
    return [torch.empty(shape, dtype=dtype, device=device) for _ in range(count)]


__all__ = [
    "Cut",
    "Held",
    "buffers_of",
    "groups_of",
    "of_rows",
    "of_samples",
    "pair_weights",
    "written",
]
