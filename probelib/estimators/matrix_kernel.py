"""A loss kernel that is a matrix in memory: one that was estimated otherwise than from a trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probelib.estimators import blocks
from probelib.estimators.blocks import per_sample
from probelib.estimators.kernel import Kernel, index_of
from probelib.estimators.left_out import LeftOut
from probelib.estimators.positions import Positions, by_position

if TYPE_CHECKING:
    import xarray as xr


class MatrixKernel(Kernel):
    """A loss kernel that is stored as a full matrix, (n, n), in float64.

    Args:
        covariance: K, shape (n, n), symmetric, nats squared. A sample whose K_ii is not positive,
            because it never moves or is not resolved, has R_ij = 0.
        coords: coordinates along ``sample``, such as ``sample_id`` and ``label``.
        mcse: Monte-Carlo standard errors of the diagonal, shape (n,), nats squared. A matrix alone
            does not contain them: by default they are NaN.
        left_out: how K changes as each of its independent walks is left out, from which the errors
            of its entries and of neighbours follow; None: they are NaN, and infinite where the
            diagonal's are.

    Raises:
        ValueError: not a symmetric matrix of finite numbers.
    """

    def __init__(
        self,
        covariance: np.ndarray,
        coords: Mapping[str, Any] | None = None,
        mcse: np.ndarray | None = None,
        left_out: LeftOut | None = None,
    ):
        covariance = np.asarray(covariance)
        if covariance.ndim != 2 or len(set(covariance.shape)) != 1:
            raise ValueError(f"covariance has shape {covariance.shape}; it must be square")
        if not np.isfinite(covariance).all():
            bad = int(np.argwhere(~np.isfinite(covariance))[0, 0])
            raise ValueError(f"covariance is not finite in row {bad}; remove this sample")
        self._covariance = covariance.astype(np.float64)
        n = len(covariance)
        # Beside the two variances: a small entry of the other sign is another correlation.
        scale = np.sqrt(np.abs(np.diag(self._covariance)))
        uneven = np.abs(self._covariance - self._covariance.T)
        uneven -= 1e-4 * np.maximum(np.outer(scale, scale), np.abs(self._covariance))
        if n and uneven.max() > 0:
            row, col = np.unravel_index(uneven.argmax(), uneven.shape)
            raise ValueError(
                f"covariance is not symmetric at ({row}, {col}); give (covariance + covariance.T) "
                "/ 2 where it should be"
            )
        self._covariance = (self._covariance + self._covariance.T) / 2
        self.shape = (n, n)
        self._coords = dict(coords or {})
        self._mcse = np.full(n, np.nan) if mcse is None else np.asarray(mcse, np.float64)
        self._left_out = left_out
        lengths = {"mcse": self._mcse.shape} | {
            f"coords[{name!r}]": np.shape(value[1] if isinstance(value, tuple) else value)
            for name, value in self._coords.items()
        }
        for name, shape in lengths.items():
            if shape != (n,):
                raise ValueError(f"{name} has shape {shape}; give one value per sample, ({n},)")

    def diagonal(self) -> xr.DataArray:
        variance = np.diag(self._covariance).copy()
        return per_sample(self._coords, variance, self._mcse, "loss_variance")

    @by_position
    def covariance(self, rows: Positions = None, cols: Positions = None) -> np.ndarray:
        return self._covariance[index_of(rows)][:, index_of(cols)].copy()

    @by_position
    def correlation(self, rows: Positions = None, cols: Positions = None) -> np.ndarray:
        variance = np.diag(self._covariance)
        part = self.covariance(rows, cols)
        return correlations(part, variance[index_of(rows)], variance[index_of(cols)])

    @by_position
    def covariance_mcse(self, rows: Positions, cols: Positions) -> np.ndarray:
        every = np.arange(self.shape[0])
        row_at, col_at = every[index_of(rows)], every[index_of(cols)]
        if self._left_out is None:
            return self._unknown(row_at, col_at)
        return self._left_out.covariance_mcse(row_at, col_at)

    @by_position
    def correlation_mcse(self, rows: Positions, cols: Positions) -> np.ndarray:
        every = np.arange(self.shape[0])
        row_at, col_at = every[index_of(rows)], every[index_of(cols)]
        if self._left_out is None:
            error = self._unknown(row_at, col_at)
        else:
            part = self.covariance(row_at, col_at)
            error = self._left_out.correlation_mcse(row_at, col_at, part, np.diag(self._covariance))
        return np.where(np.equal.outer(row_at, col_at), 0, error)

    def _unknown(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """Errors of entries that no walk tells: NaN, and infinite where the diagonal's are."""
        infinite = np.isinf(self._mcse)
        return np.where(infinite[rows][:, None] | infinite[cols], np.inf, np.nan)

    def _coordinates(self) -> Mapping[str, Any]:
        return {
            name: np.asarray(value[1] if isinstance(value, tuple) else value)
            for name, value in self._coords.items()
        }

    @by_position
    def features(self, n_components: int | None = None, rows: Positions = None) -> np.ndarray:
        """Coordinates of the samples: their inner products are K, or its best approximation.

        Eigenvectors of K among ``rows``, each times the root of its eigenvalue. Negative
        eigenvalues, which rounding makes and an unbiased estimate such as that of
        :func:`probelib.pair_kernel` may have, are cut off at 0: the inner products of all
        components are then the positive semidefinite matrix nearest to K (Higham, 1988).

        Args:
            n_components: keep this many, the largest eigenvalues first; default: all n of the rows.
            rows: positions of the samples wanted; default: all.

        Returns:
            Features, shape (rows, components), nats.

        Raises:
            ValueError: more components than samples.
        """
        part = self.covariance(rows, rows)
        n = len(part)
        if n_components is not None and not 1 <= n_components <= n:
            raise ValueError(f"n_components is {n_components}; choose from 1 to {n}, the samples")
        values, vectors = np.linalg.eigh((part + part.T) / 2)
        size = np.sqrt(np.maximum(values, 0))
        return (vectors * size)[:, ::-1][:, :n_components]

    def _correlation_blocks(
        self, rows: np.ndarray, among: np.ndarray
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        for start in range(0, len(among), blocks.BLOCK):
            here = among[start : start + blocks.BLOCK]
            yield here, torch.from_numpy(self.correlation(rows, here))

    def _bytes_per_row(self) -> int:
        return 3 * 8 * min(self.shape[0], blocks.BLOCK)  # the part of K, scaled twice

    def __repr__(self) -> str:
        return f"MatrixKernel({self.shape[0]} samples)"


def correlations(covariance: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """R from a part of K, (rows, cols), and the K_ii of its rows and columns.

    0 where one of these is not positive.
    """
    row, col = (np.sqrt(np.where(variance > 0, variance, np.inf)) for variance in (rows, cols))
    return np.clip(covariance / row[:, None] / col, -1, 1)


__all__ = ["MatrixKernel", "correlations"]
