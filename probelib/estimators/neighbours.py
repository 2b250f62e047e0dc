"""The most correlated samples of each row, and which of them are more than chance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The most correlated samples of each row, best first.

    Of many candidates the best look better than they are: the largest of n independent
    correlations is about sqrt(2 log n / ESS). So read ``q_value`` before ``correlation``.

    Attributes:
        index: positions along ``sample``, shape (rows, k); (k,) where one row was asked for.
        correlation: their R over all draws, shape (rows, k), which also chose them: those that
            are near what chance leaves are too large.
        q_value: Benjamini and Hochberg's, shape (rows, k): among the neighbours below 0.05, over
            all rows of the call, at most 5 % are expected to be independent of their row. Small
            only for those that one half of the chains (of a single chain: its first half of
            draws) chooses and the other confirms. NaN where no error is known: a matrix alone, or
            too few draws.
        rows: positions of the rows, shape (rows,).
        coords: ``sample_id`` and ``label`` of the samples, shape (sample,), where known.
        errors: gives ``mcse``, where the kernel has draws or independent walks.
    """

    index: np.ndarray
    correlation: np.ndarray
    q_value: np.ndarray
    rows: np.ndarray
    coords: Mapping[str, Any] = field(default_factory=dict, repr=False)
    errors: Callable[[], np.ndarray] | None = field(default=None, repr=False)

    @cached_property
    def mcse(self) -> np.ndarray:
        """Monte-Carlo standard errors of the correlations, (rows, k), made at the first use.

        They do not know that the neighbours were chosen. NaN for a kernel without draws or walks.
        """
        return np.full(self.index.shape, np.nan) if self.errors is None else self.errors()

    def __iter__(self) -> Iterator[np.ndarray]:
        """``index, correlation = neighbours``, as it was before there were q-values."""
        return iter((self.index, self.correlation))

    def take(self, at: int, axis: int) -> Neighbours:
        """Those of the row ``at`` alone, its axis (0) taken away."""
        every = (self.index, self.correlation, self.q_value, self.rows)
        index, correlation, q_value, rows = (part.take(at, axis) for part in every)
        errors = None if self.errors is None else lambda: self.mcse.take(at, axis)
        return Neighbours(index, correlation, q_value, rows, self.coords, errors)

    def to_dataframe(self) -> pd.DataFrame:
        """A line a neighbour: row, rank (from 1), index, correlation, mcse, q_value.

        With ``sample_id`` and ``label`` of the neighbour, and ``row_sample_id`` and ``row_label``
        of its row, where the kernel has them.
        """
        import pandas as pd  # slow to import, so where it is used

        rows, k = np.atleast_2d(self.index).shape
        columns = {
            "row": np.repeat(self.rows, k),
            "rank": np.tile(np.arange(1, k + 1), rows),
            "index": self.index.ravel(),
            "correlation": self.correlation.ravel(),
            "mcse": self.mcse.ravel(),
            "q_value": self.q_value.ravel(),
        }
        for name, of_all in self.coords.items():
            columns[name] = np.asarray(of_all)[columns["index"]]
        for name, of_all in self.coords.items():
            columns[f"row_{name}"] = np.asarray(of_all)[columns["row"]]
        return pd.DataFrame(columns)


def require_fewer(k: int, candidates: int) -> None:
    """k neighbours among so many candidates, of which a row may be one itself (ValueError)."""
    if not 1 <= k < candidates:
        raise ValueError(f"k is {k}; choose from 1 to {candidates - 1}, the candidates less one")


def nearest(
    blocks: Iterable[tuple[np.ndarray, Tensor]], rows: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Positions and correlations of the best k candidates of some rows, sorted, (rows, k).

    Args:
        blocks: of candidates, sorted, each with its R, (rows, block), which is overwritten.
        rows: positions, (rows,); a row is no neighbour of itself.
        k: how many.
    """
    value, index = None, torch.full((len(rows), k), -1)
    for here, scores in blocks:
        row = np.flatnonzero((rows >= here[0]) & (rows <= here[-1]))
        col = np.searchsorted(here, rows[row])
        itself = here[col] == rows[row]
        scores[torch.from_numpy(row[itself]), torch.from_numpy(col[itself])] = -torch.inf
        if value is None:
            value = scores.new_full((len(rows), k), -torch.inf)
        better = (scores.amax(1) > value[:, -1]).nonzero()[:, 0]  # ever fewer, block by block
        found, place = scores[better].topk(min(k, len(here)), dim=1)
        both = torch.cat([value[better], found], 1)
        names = torch.cat([index[better], torch.from_numpy(here)[place]], 1)
        value[better], order = both.topk(k, dim=1)
        index[better] = names.gather(1, order)
    assert value is not None  # there is at least one candidate
    return index.numpy(), value.clamp(-1, 1).numpy()


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """q-values of p-values of any shape (Benjamini and Hochberg, 1995); NaN counts as 1 and stays.

    q of the r-th smallest of m is the least of m p_(s) / s over s >= r.
    """
    flat = np.where(np.isnan(p), 1, p).ravel()
    order = flat.argsort()
    scaled = flat[order] * flat.size / np.arange(1, flat.size + 1)
    q = np.empty(flat.size)
    q[order] = np.minimum.accumulate(scaled[::-1])[::-1]
    return np.where(np.isnan(p), np.nan, q.reshape(p.shape))


def of_found(index: np.ndarray, tested: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The q of each neighbour in ``index`` (rows, k), given those of ``tested`` (rows, m).

    1 for a neighbour that was not chosen, so not tested.
    """
    out = np.ones(index.shape)
    for column in range(tested.shape[1]):
        same = index == tested[:, column, None]
        out[same] = np.broadcast_to(q[:, column, None], same.shape)[same]
    return out


__all__ = ["Neighbours", "benjamini_hochberg", "nearest", "of_found", "require_fewer"]
