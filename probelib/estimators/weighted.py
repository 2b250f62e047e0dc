r"""Means and their errors over the draws of a trace, which may carry weights.

Draws w_t from another law than Eq. 1 count by self-normalised weights v_t:

.. math::

   \hat\mu = \sum_t v_t f(w_t), \qquad \sum_t v_t = 1, \qquad
   \mathrm{se}^2 = \frac{\sum_t v_t^2 (f(w_t) - \hat\mu)^2}{1 - \sum_t v_t^2}

to first order (the delta method; Owen, 2013, section 9.2). Without weights all is as in
``series``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from probelib.contract import draw_weights, log_weights
from probelib.estimators.series import Estimate, estimate_mean, import_arviz, mcse_of_mean
from probelib.estimators.sets import each_set

if TYPE_CHECKING:
    import xarray as xr


_MOST_ERROR = 0.5  # of the log weights, up to which its effect is known to first order


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of a trace's draws, and how far to believe them.

    Attributes:
        values: v, shape (chain, draw), of sum 1.
        log_values: their logarithms, up to a constant.
        error: standard error of these, where L came from a subset of the data.
    """

    values: np.ndarray
    log_values: np.ndarray
    error: float

    @cached_property
    def khat(self) -> float:
        """Pareto's k of their tail, see :func:`khat`."""
        if np.ptp(self.log_values) == 0:  # no tail
            return 0.0 if self.log_values.size > 1 else math.inf
        return float(import_arviz().psislw(self.log_values.ravel())[1])

    @property
    def ess(self) -> float:
        """Effective number of draws, 1 / sum v²."""
        return float(1 / np.square(self.values).sum())

    @property
    def limit(self) -> float:
        """The largest k-hat that so many draws can bear: min(1 - 1 / log10 S, 0.7)."""
        return khat_limit(self.values.size)

    @property
    def unbiased(self) -> float:
        """The factor 1 / (1 - sum v²) that makes a variance about its own mean unbiased.

        Raises:
            ValueError: one draw has all the weight.
        """
        left = 1 - float(np.square(self.values).sum())
        if left < 1e-9:
            raise ValueError(
                "trace has one draw that outweighs all others, from which no variance follows; "
                "raise localization, or lower n_beta (probelib.reweight)"
            )
        return 1 / left

    def mean(self, x: np.ndarray) -> np.ndarray:
        """Over the draws of x (chain, draw, ...): exactly c for a series that is always c."""
        first = x[0, 0]
        return first + np.tensordot(self.values, x - first, 2)

    def mcse(self, x: np.ndarray) -> np.ndarray:
        """Standard error of that mean, for every series in x (chain, draw, ...).

        Infinite where k-hat says that the largest weights have not been seen, or L is too unsure
        (an error of the log weights above 0.5). Else the error of
        the module's formula, widened by Student's t where few draws carry it, so that 1.96 of it
        cover; and by what the error of L may do, at most its size times the spread of x.
        """
        weight = self.values.reshape(*self.values.shape, *[1] * (x.ndim - 2))
        square = np.square(x - self.mean(x))
        terms = square * weight**2
        total, fourth = terms.sum((0, 1)), np.square(terms).sum((0, 1))
        if not self.khat <= self.limit or self.ess < 2 or not self.error <= _MOST_ERROR:
            return np.full_like(total, np.inf)
        variance = total * self.unbiased * _widened(total, fourth) ** 2
        return np.sqrt(variance + self.error**2 * self.mean(square))


def weights_of(trace: xr.Dataset) -> Weights | None:
    """The weights of a trace's draws, or None where all count alike."""
    values, log_values = draw_weights(trace), log_weights(trace)
    if values is None or log_values is None:
        return None
    error = trace["log_weight_error"].values if "log_weight_error" in trace else np.zeros(1)
    return Weights(values, log_values, float(np.sqrt(np.mean(np.square(error)))))


def mean(x: np.ndarray, weights: Weights | None) -> np.ndarray:
    """The mean over the draws of x (chain, draw, ...)."""
    return x.mean((0, 1)) if weights is None else weights.mean(x)


def mcse(x: np.ndarray, weights: Weights | None) -> np.ndarray:
    """Standard error of :func:`mean`."""
    return mcse_of_mean(x) if weights is None else weights.mcse(x)


def estimate(series: np.ndarray, weights: Weights | None) -> Estimate:
    """The mean of a series (chain, draw), with its error; weighted draws have no R-hat, no step."""
    if weights is None:
        return estimate_mean(series)
    value, error = float(weights.mean(series)), float(weights.mcse(series))
    return Estimate(value, error, weights.ess, math.nan, step_bias=0.0)


@each_set
def khat(trace: xr.Dataset) -> float:
    r"""How heavy the tail of a trace's weights is: Pareto's k, by ArviZ (Vehtari et al., 2024).

    Below 0.5 weighted means behave as means do; up to :func:`khat_limit` their errors hold; above
    it the draws that count most have probably not been drawn, and no error is known.

    Args:
        trace: from :func:`probelib.importance_sample`, or any part of one.

    Returns:
        k-hat of the draws that are there; infinite for fewer than about 25, which cannot tell;
        NaN for a trace without weights.
    """
    weights = weights_of(trace)
    return math.nan if weights is None else weights.khat


def khat_limit(draws: int) -> float:
    """The largest k-hat at which so many draws have a known error: min(1 - 1 / log10 S, 0.7)."""
    return min(1 - 1 / math.log10(draws), 0.7) if draws > 10 else 0.0


def _widened(total: np.ndarray, fourth: np.ndarray) -> np.ndarray:
    """Student's t over the normal quantile, by Satterthwaite's degrees of freedom.

    Args:
        total, fourth: sums of the squares that an error is made of, and of the squares of these.
    """
    from scipy.special import stdtrit  # slow to import, so where it is used

    moving = fourth > 0
    freedom = 2 * total**2 / np.where(moving, fourth, 1) - 1
    return np.where(moving, stdtrit(np.maximum(freedom, 1), 0.975) / 1.96, 1)


__all__ = ["Weights", "estimate", "khat", "khat_limit", "mcse", "mean", "weights_of"]
