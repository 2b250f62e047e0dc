"""Curves over a training: where they pass a level, moments of the loss, kernels side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy.stats import kstat
from scipy.stats import t as student_t
from sklearn.isotonic import isotonic_regression

import probelib
from probebook.alignment import off_diagonal
from probelib.arguments import require_whole

__all__ = ["Cumulants", "KernelPhases", "crossing_interval", "cumulants", "kernel_phases", "passes"]

# -- levels ------------------------------------------------------------------------------------


def passes(x: np.ndarray, y: np.ndarray, level: float, log: bool = False) -> float:
    """Where a curve first comes from below to a level: between two points, on the line.

    Args:
        x: ascending, positive where ``log``.
        y: the curve there.
        level: to be reached.
        log: whether the line is straight in log x.

    Returns:
        A place on x: its first value where the curve begins at the level or above it; infinite
        where it never comes to it.

    Raises:
        ValueError: a point of the curve is not a number.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if not np.isfinite(y).all():
        raise ValueError("y has a value that is not finite; leave such points out")
    reached = np.flatnonzero(y >= level)
    if not len(reached):
        return math.inf
    at = int(reached[0])
    if at == 0:
        return float(x[0])
    place = np.log(x) if log else x
    share = (level - y[at - 1]) / (y[at] - y[at - 1])
    found = place[at - 1] + share * (place[at] - place[at - 1])
    return float(np.exp(found) if log else found)


def crossing_interval(
    x: np.ndarray,
    y: np.ndarray,
    error: np.ndarray,
    level: float,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Where a measured curve passes a level for the first time, and a 95 % interval of chance.

    Every point is drawn anew from a normal distribution of its error, the curve is made monotone by
    the least squares that does so, as for the curve itself, and the crossing found again.

    Args:
        x: ascending.
        y, error: the curve and its standard errors, independent of each other.
        level: to be passed from below.
        resamples: of the curve.
        seed: of these.

    Returns:
        The crossing and its interval; infinite where the curve does not come to the level, and the
        first x where it begins above.
    """
    rng = np.random.default_rng(seed)

    def crossing(values: np.ndarray) -> float:
        return passes(x, isotonic_regression(values), level)

    again = [crossing(rng.normal(y, error)) for _ in range(resamples)]
    low, high = np.quantile(again, [0.025, 0.975], method="nearest")
    return crossing(np.asarray(y, np.float64)), float(low), float(high)


# -- moments of the loss -----------------------------------------------------------------------


@dataclass(frozen=True)
class Cumulants:
    r"""Cumulants of :math:`n\beta L` along the draws, without unit, each with its standard error.

    Where :math:`n\beta (L - L(w^*))` has a Gamma law of shape lambda, as in the limit of large
    n beta, they are lambda, lambda and 2 lambda.

    Attributes:
        second, third: k-statistics of all draws.
        second_se, third_se: of the jackknife, with Student's t in it: 1.96 of them are half of a
            95 % interval.
        skewness, skewness_se: third / second^1.5.
    """

    second: float
    second_se: float
    third: float
    third_se: float
    skewness: float
    skewness_se: float


def cumulants(series: np.ndarray, parts: int = 4) -> Cumulants:
    """Second and third cumulant of a series, with errors over chains and their parts.

    Args:
        series: n beta times the mean loss change, shape (chain, draw).
        parts: into how many each chain is cut for the jackknife, which leaves out one at a time;
            each must be long against the autocorrelation time.

    Raises:
        ValueError: fewer than three draws in a part, or fewer than three parts in all.
    """
    chains, draws = series.shape
    length = draws // require_whole("parts", parts)
    if length < 3 or chains * parts < 3:
        raise ValueError(f"series is {chains} x {draws}; {parts} parts need three draws each")
    cut = series[:, draws - parts * length :].reshape(chains * parts, length)

    def found(rows: np.ndarray) -> np.ndarray:
        second, third = kstat(rows.ravel(), 2), kstat(rows.ravel(), 3)
        return np.array([second, third, third / second**1.5 if second > 0 else 0.0])

    count = len(cut)
    left_out = np.array([found(np.delete(cut, at, 0)) for at in range(count)])
    spread = np.sqrt((count - 1) / count * np.square(left_out - left_out.mean(0)).sum(0))
    error = student_t.ppf(0.975, count - 1) / 1.96 * spread
    value = found(series)
    return Cumulants(*(float(x) for pair in zip(value, error, strict=True) for x in pair))


# -- kernels -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class KernelPhases:
    """How alike the correlation kernels of checkpoints are, over the same samples.

    Attributes:
        names: of the checkpoints.
        cross: correlation over all pairs of samples of R at one checkpoint, from half of the
            chains, with R at another from the other half; both ways, averaged; shape (c, c). On the
            diagonal the reliability of a half, below which noise keeps all others.
        corrected: the same over the square root of both reliabilities, which is what noiseless R
            would have; NaN where one is not positive.
        corrected_se: of these, a jackknife over groups of samples.
        naive: correlation of R from all chains, which share their noise between checkpoints.
    """

    names: np.ndarray
    cross: np.ndarray
    corrected: np.ndarray
    corrected_se: np.ndarray
    naive: np.ndarray


def kernel_phases(series: xr.Dataset, samples: np.ndarray, groups: int = 10) -> KernelPhases:
    """Compare R between the checkpoints of a series.

    Chains of one number had the same noise at every checkpoint, which makes errors of R alike that
    are in the same chains. So two halves that share no chain are compared.

    Args:
        series: from :func:`probelib.over_checkpoints`, with two chains or more.
        samples: positions of the samples.
        groups: of samples for the jackknife, which leaves out one at a time.

    Raises:
        ValueError: a single chain, or fewer than three samples without a group.
    """
    if series.sizes["chain"] < 2:
        raise ValueError("series has one chain; two are needed, of which neither has the other's")
    if len(samples) < 3 * groups:
        raise ValueError(
            f"samples has {len(samples)}; give three or more in each of {groups} groups"
        )
    names = series["checkpoint"].values
    chosen = [series.isel(checkpoint=c, sample=samples) for c in range(len(names))]
    halves = [
        [probelib.loss_kernel(t.isel(chain=slice(k, None, 2))).correlation() for t in chosen]
        for k in (0, 1)
    ]
    whole = [probelib.loss_kernel(trace).correlation() for trace in chosen]
    cross, corrected = _agreement(*halves)
    group = np.arange(len(samples)) % groups
    left_out = []
    for at in range(groups):
        stay = np.ix_(group != at, group != at)
        left_out.append(_agreement(*[[r[stay] for r in half] for half in halves])[1])
    spread = np.square(np.array(left_out) - np.mean(left_out, 0)).sum(0)
    error = np.sqrt((groups - 1) / groups * spread)
    return KernelPhases(
        names, cross, corrected, error, np.corrcoef([off_diagonal(r) for r in whole])
    )


def _agreement(first: list[np.ndarray], second: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Correlations between halves, and the same freed of noise."""
    rows = [off_diagonal(r) for r in (*first, *second)]
    count = len(first)
    between = np.corrcoef(rows)[:count, count:]
    cross = (between + between.T) / 2
    reliable = np.where(np.diag(cross) > 0, np.diag(cross), math.nan)
    return cross, cross / np.sqrt(np.outer(reliable, reliable))
