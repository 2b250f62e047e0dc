r"""Errors of variances, covariances and correlations: one batch of draws left out at a time.

With :math:`\hat\theta_{(g)}` the estimate without the g-th of B batches of draws
(``series.batches``), the jackknife error is

.. math::

   \mathrm{se}^2 = \frac{B-1}{B} \sum_g (\hat\theta_{(g)} - \bar\theta)^2

with B - 1 degrees of freedom (Efron and Tibshirani, 1993, chapter 11). A variance that comes out
too small comes with too small an error. So the error is taken on a scale that spreads it evenly:
:math:`K^{-1/2}` for a variance, Fisher's :math:`\operatorname{artanh} R` for a correlation; and the
longer arm of the interval, taken back, is the error that is given.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from probelib.estimators.series import (
    NORMAL,
    batch_means,
    batches,
    chosen,
    groups,
    is_still,
    widening,
)

#: Below so many independent draws even the spread of a series is unknown.
FEWEST = 3


class Batches:
    """Moments of centred series x (chain, draw, k), each batch of draws left out in turn.

    Attributes:
        parts: batches a chain.
        count: batches in all, B.
        mean, variance: without each batch, shape (B, k).
        size: standard deviations over all draws, shape (k,).
        independent: draws that the mean is worth, shape (k,).
    """

    def __init__(self, x: np.ndarray, parts: int):
        means = batch_means(x, parts)
        self.parts, self.count = parts, len(means)
        self.mean = without_each(means)
        square = np.square(x)
        self.variance = without_each(batch_means(square, parts)) - np.square(self.mean)
        spread = square.mean((0, 1))
        self.size = np.sqrt(spread)
        noise = means.var(0, ddof=1) / self.count
        with np.errstate(divide="ignore", invalid="ignore"):
            self.independent = np.where(noise > 0, spread / noise, np.inf)
        self._x = x

    @cached_property
    def draws(self) -> np.ndarray:
        """The draws by batch, shape (B, length, k)."""
        length = self._x.shape[1] // self.parts
        cut = self._x[:, self._x.shape[1] - self.parts * length :]
        return cut.reshape(self.count, length, -1)

    def covariance(self, row: int, other: Batches) -> np.ndarray:
        """Of one series with every series of ``other``, without each batch: shape (B, k)."""
        product = (self.draws[:, None, :, row] @ other.draws)[:, 0] / self.draws.shape[1]
        return without_each(product) - self.mean[:, row, None] * other.mean

    def covariances(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Of the pairs i, j of series, (m,) each, without each batch: shape (B, m)."""
        draws = np.ascontiguousarray(np.moveaxis(self.draws, 2, 0))  # those of a series together
        product = np.empty((self.count, len(i)))
        for row in np.unique(i):
            at = i == row
            product[:, at] = np.einsum("mgl,gl->gm", draws[j[at]], draws[row])
        return without_each(product / draws.shape[2]) - self.mean[:, i] * self.mean[:, j]


def without_each(values: np.ndarray) -> np.ndarray:
    """The mean over all batches but one, for each that is left out: (B, ...) as ``values``."""
    return (values.sum(0) - values) / (len(values) - 1)


def half_width(left_out: np.ndarray) -> np.ndarray:
    """Half of the 95 % interval, by Student's t, from estimates (B, ...) without each batch."""
    count = len(left_out)
    spread = np.square(left_out - left_out.mean(0)).sum(0)
    return NORMAL * widening(count) * np.sqrt((count - 1) / count * spread)


def mcse_of_variance(x: np.ndarray) -> np.ndarray:
    """Standard error of the variance of each centred series x (chain, draw, k): shape (k,)."""
    error = np.full(x.shape[2], np.inf)
    for parts, at in groups(batches(x)):
        of = Batches(chosen(x, at), parts)
        known = error_of_variance(of.variance, of.size**2)
        error[at] = np.where(of.independent < FEWEST, np.inf, known)
    error[is_still(x)] = 0
    return error


def error_of_variance(left_out: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Standard error of variances (...,), given ``left_out`` (B, ...), those without each batch."""
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = half_width(np.sqrt(variance / left_out))
        error = half_width(left_out) * _longer_arm(scale) / NORMAL
    return np.where(variance > 0, np.where(np.isnan(error), np.inf, error), 0)


def mcse_of_pairs(u: np.ndarray, v: np.ndarray, correlation: bool) -> np.ndarray:
    """Standard error of the correlation, or of the covariance, of each u with each v: (k, m).

    Args:
        u, v: centred series, shapes (chain, draw, k) and (chain, draw, m).
        correlation: of R (inside [-1, 1]), not of the covariance.

    Infinite for a series that has not moved: what it has in common with others is not known.
    """
    every = np.minimum.outer(batches(u), batches(v))
    error = np.full(every.shape, np.inf)
    for parts in np.unique(every[every > 0]).tolist():
        a, b = Batches(u, parts), Batches(v, parts)
        for row in np.flatnonzero((every == parts).any(1)).tolist():
            few = np.minimum(a.independent[row], b.independent) < FEWEST
            found = np.where(few, np.inf, _error_of_pairs(a, row, b, correlation))
            error[row] = np.where(every[row] == parts, found, error[row])
    still = np.logical_or.outer(is_still(u), is_still(v))
    return np.where(still | np.isnan(error), np.inf, error)


def _error_of_pairs(a: Batches, row: int, b: Batches, correlation: bool) -> np.ndarray:
    covariance, variances = a.covariance(row, b), a.variance[:, row, None] * b.variance
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.clip(covariance / np.sqrt(variances), -1 + 1e-12, 1 - 1e-12)
        z, size = np.arctanh(r), a.size[row] * b.size
        middle = np.tanh(np.abs(z.mean(0)))
        if correlation:
            arm = middle - np.tanh(np.abs(z.mean(0)) - half_width(z))
            return np.minimum(np.maximum(half_width(r), arm), 1 + middle) / NORMAL
        scale = half_width(np.sqrt(size) / variances**0.25)
        return half_width(covariance) * _longer_arm(scale * np.sqrt(middle)) / NORMAL


def p_values_of_pairs(x: np.ndarray, parts: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """p-values of R = 0 against R > 0, twice the one-sided, for pairs of centred series: (m,).

    Student's t of the jackknife of artanh R, which holds for autocorrelated draws, and for losses
    with few large values: where one batch makes the correlation, its error is as large. Twice,
    because errors from batches are a few per cent small, which counts in the tail.

    Args:
        x: the series, shape (chain, draw, k).
        parts: their :func:`batches`, shape (k,).
        i, j: the pairs, shape (m,).

    Returns:
        p; NaN where the draws cannot tell, 1 for a series that never moves.
    """
    from scipy.special import stdtr  # slow to import, so where it is used

    p = np.full(len(i), np.nan)
    for cut, at in groups(np.minimum(parts[i], parts[j])):
        of, a, b = Batches(x, cut), i[at], j[at]
        with np.errstate(divide="ignore", invalid="ignore"):
            r = of.covariances(a, b) / np.sqrt(of.variance[:, a] * of.variance[:, b])
            z = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
            t = NORMAL * widening(of.count) * z.mean(0) / half_width(z)
            squares = np.square(z - z.mean(0))  # a few of them may make the error: Satterthwaite
            freedom = 2 * np.square(squares.sum(0)) / np.square(squares).sum(0) - 1
        few = np.minimum(of.independent[a], of.independent[b]) < FEWEST
        freedom = np.clip(np.where(np.isnan(freedom), 1, freedom), 1, of.count - 1)
        p[at] = np.where(few, np.nan, np.minimum(1, 2 * stdtr(freedom, -t)))
    still = is_still(x)
    p[still[i] | still[j]] = 1
    return p


def _longer_arm(scale: np.ndarray) -> np.ndarray:
    """How much longer than 2s the upper arm of a variance is, whose size^-1 is sure to s.

    1 / (1 - s)² - 1 over 2s; infinite where 1 - s may be 0.
    """
    known = scale < 1
    return np.where(known, (1 - scale / 2) / np.where(known, 1 - scale, 1) ** 2, np.inf)


__all__ = [
    "FEWEST",
    "Batches",
    "error_of_variance",
    "half_width",
    "mcse_of_pairs",
    "mcse_of_variance",
    "p_values_of_pairs",
    "without_each",
]
