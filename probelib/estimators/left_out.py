r"""Errors of a kernel's entries, from how each changes as one independent walk is left out.

With :math:`K_{(c)}` the kernel without walk c of C, the jackknife's variance of an entry is
:math:`\frac{C-1}{C} \sum_c (K_{(c)} - \bar K)^2`, with C - 1 degrees of freedom (Efron and
Tibshirani, 1993, chapter 11). A correlation :math:`R = N / D` of few walks is a ratio whose
:math:`D = \sqrt{K_{ii} K_{jj}}` is hardly known itself. So its interval is that of all
:math:`\rho` for which :math:`N - \rho D` may be 0 (Fieller, 1954), its quantile raised by what the
skewness of this difference adds to one of its ends (Johnson, 1978), and the longer arm is the
error. In linear regressions of three to twelve weights 1.96 of the errors cover 0.91 to 0.96 of the
:math:`K_{ij}` and 0.89 (three weights, without the data term) to 0.99 of the :math:`R_{ij}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from probelib.estimators.jackknife import half_width
from probelib.estimators.series import NORMAL, widening

# What the changes of the entries that are looked at together may take.
_BYTES = 2**27


class _OfSamples(NamedTuple):
    """What the errors of R need of some samples.

    Attributes:
        resolved: whether K_ii is positive, (n,).
        unit: of the changes, (n,), nats.
        size: root of K_ii in this unit, (n,); infinite where it is not resolved.
        relative: changes of K_ii over K_ii, (walk, n).
    """

    resolved: np.ndarray
    unit: np.ndarray
    size: np.ndarray
    relative: np.ndarray


class LeftOut:
    """How a kernel, or some rows of it, changes as each of its walks is left out.

    It is a copy of its own, in float32 relative to the samples' sizes, so that a sample of 1e-25
    nats has an error as well: 4 bytes a walk and entry.

    Args:
        changes: of each walk, K without it less K, (n, n), symmetric, nats squared, or the rows of
            it; read once.
        diagonal: of each walk, K_ii without it less K_ii, (walk, n), of at least two walks.
        size: about the largest of a sample's K_ii and of its changes, nats squared, shape (n,). 0:
            the sample did not move in any walk, which tells nothing of its errors.
        rows: positions of the rows that ``changes`` have, sorted, each once; default: all.
    """

    def __init__(
        self,
        changes: Iterable[np.ndarray],
        diagonal: np.ndarray,
        size: np.ndarray,
        rows: np.ndarray | None = None,
    ):
        self._scale = np.sqrt(size)
        unit = np.where(self._scale > 0, self._scale, 1.0)
        self._diagonal = diagonal / unit / unit
        self._rows = np.arange(len(size)) if rows is None else rows
        self._changes = np.empty((len(diagonal), len(self._rows), len(size)), np.float32)
        for kept, change in zip(self._changes, changes, strict=True):
            kept[:] = change / unit[self._rows, None] / unit

    def covariance_mcse(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """Standard error of K at positions ``rows`` and ``cols``, nats squared."""
        error = np.full((len(rows), len(cols)), np.inf)
        scale = self._scale[rows][:, None] * self._scale[cols]
        for part, changes in self._blocks(rows, cols):
            error[part] = half_width(changes) / NORMAL * scale[part]
        return np.where((scale > 0) & np.isfinite(error), error, np.inf)

    def correlation_mcse(
        self, rows: np.ndarray, cols: np.ndarray, covariance: np.ndarray, variance: np.ndarray
    ) -> np.ndarray:
        """Standard error of R at positions ``rows`` and ``cols``.

        Args:
            covariance: K there, (rows, cols), nats squared.
            variance: K_ii of all samples, (n,), nats squared. Where it is not positive R has no
                meaning, and an infinite error.
        """
        own, other = (self._of_samples(at, variance) for at in (rows, cols))
        error = np.full(covariance.shape, np.inf)
        with np.errstate(invalid="ignore", over="ignore"):
            for part, changes in self._blocks(rows, cols):
                both = own.size[part][:, None] * other.size
                units = both * own.unit[part][:, None] * other.unit
                root = (own.relative[:, part, None] + other.relative[:, None]) / 2
                error[part] = _error_of_ratio(covariance[part] / units, changes / both, root)
        known = own.resolved[:, None] & other.resolved & np.isfinite(error)
        return np.where(known, error, np.inf)

    def _of_samples(self, at: np.ndarray, variance: np.ndarray) -> _OfSamples:
        resolved = (variance[at] > 0) & (self._scale[at] > 0)
        unit = np.where(resolved, self._scale[at], 1.0)
        size = np.sqrt(np.where(resolved, variance[at], np.inf)) / unit
        return _OfSamples(resolved, unit, size, self._diagonal[:, at] / np.square(size))

    def _blocks(self, rows: np.ndarray, cols: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Parts of the rows, each with its changes in float64, (walk, part, cols)."""
        step = max(1, _BYTES // (8 * len(self._changes) * max(1, len(cols))))
        place = np.searchsorted(self._rows, rows)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            yield part, self._changes[:, place[part]][:, :, cols].astype(np.float64)


def _error_of_ratio(ratio: np.ndarray, top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Standard error of R = N / D, clipped to [-1, 1]; infinite where D may be 0.

    Args:
        ratio: R, shape (...), not clipped.
        top, bottom: the changes of N and D as each walk is left out, over D: (walk, ...).
    """
    count = len(top)
    bottom = bottom - bottom.mean(0)
    difference = top - ratio * bottom  # of N - R D
    difference -= difference.mean(0)
    squares = np.square(difference).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        skewness = np.abs(np.power(difference, 3).mean(0)) / (squares / count) ** 1.5
        skewness = np.where(squares > 0, skewness, 0.0)
        t = NORMAL * widening(count)
        t = t + skewness * (2 * t * t + 1) / (6 * np.sqrt(count))
        each = (count - 1) / count * np.square(t)
        # The ends R + x solve x² = t² Var[N - (R + x) D] / D².
        own, along = each * squares, each * (difference * bottom).sum(0)
        left = 1 - each * np.square(bottom).sum(0)
        arm = (np.abs(along) + np.sqrt(np.square(along) + np.maximum(left, 0) * own)) / left
        clipped = np.clip(ratio, -1, 1)
        arm = np.minimum(arm + np.abs(ratio - clipped), 1 + np.abs(clipped))
    return np.where(left > 0, arm, np.inf) / NORMAL


__all__ = ["LeftOut"]
