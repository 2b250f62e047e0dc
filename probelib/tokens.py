"""Losses per token: which sample has which positions, and both as one axis for the estimators.

A loss per token has the shape (sample, token), and is NaN where a sample has no such position. What
reads it sees one axis instead, of the tokens that there are: each is to the estimators what a
sample is elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True, eq=False)
class Places:
    """Where the tokens of observed samples are.

    Attributes:
        there: whether a sample has a loss at a position, shape (sample, token).
    """

    there: np.ndarray

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.there)

    @property
    def positions(self) -> int:
        """Number of positions, those of the longest sample."""
        return self.there.shape[1]

    @cached_property
    def sample(self) -> np.ndarray:
        """Of each token the position of its sample, shape (n_tokens,)."""
        return np.nonzero(self.there)[0]

    @cached_property
    def token(self) -> np.ndarray:
        """Of each token its position in the sample, shape (n_tokens,)."""
        return np.nonzero(self.there)[1]

    @cached_property
    def first(self) -> np.ndarray:
        """Of each sample the place of its first token, and the number of all: (samples + 1,)."""
        return np.append(0, self.there.sum(1).cumsum())

    def __len__(self) -> int:
        return int(self.first[-1])

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Values (..., n_tokens) as (..., sample, token), NaN where there is no token."""
        whole = np.full((*values.shape[:-1], *self.there.shape), np.nan, values.dtype)
        whole[..., self.there] = values
        return whole


def flat(loss: xr.Variable, places: Places) -> xr.Variable:
    """Losses (chain, draw, sample, token) as (chain, draw, n_tokens), read when used."""
    import xarray as xr  # slow to import, so where it is used
    from xarray.backends import BackendArray
    from xarray.core import indexing

    class Tokens(BackendArray):
        """What is asked for of the losses, read for the samples that it belongs to."""

        shape = (*loss.shape[:2], len(places))
        dtype = loss.dtype

        def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
            return indexing.explicit_indexing_adapter(
                key, self.shape, indexing.IndexingSupport.OUTER, self._read
            )

        def _read(self, key: tuple[Any, ...]) -> np.ndarray:
            chains, draws, tokens = key
            sample, token = places.sample[tokens], places.token[tokens]
            rows: Any
            rows, back = np.unique(sample, return_inverse=True)
            if len(rows) and rows[-1] - rows[0] + 1 == len(rows):
                rows = slice(rows[0], rows[-1] + 1)  # which is read, or viewed, at once
            part = loss[chains, draws, rows].values
            return part[..., back.reshape(np.shape(sample)), token]

    dims = (*loss.dims[:2], "sample")
    return xr.Variable(dims, indexing.LazilyIndexedArray(Tokens()), loss.attrs)


__all__ = ["Places", "flat"]
