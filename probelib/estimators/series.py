"""Series of draws: effective sample size, Monte-Carlo standard error, R-hat, autocorrelation."""

import functools
import importlib
import math
import warnings
from dataclasses import dataclass
from types import ModuleType

import numpy as np


@functools.cache
def import_arviz() -> ModuleType:
    """ArviZ, imported at the first use: it takes longer to import than the rest of the library."""
    with warnings.catch_warnings():  # ArviZ announces its next version when it is imported
        warnings.simplefilter("ignore", FutureWarning)
        return importlib.import_module("arviz")


@dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty: how far chance may have moved it, and the step size.

    ``f"{estimate:.2f}"`` formats the value and both errors alike.

    Attributes:
        value: the estimate.
        mcse: its Monte-Carlo standard error, in the same unit.
        ess: effective number of draws behind it (ArviZ, bulk).
        rhat: rank-normalised split R-hat of the series behind it (ArviZ).
        step_bias: by how much the sampler's step has moved it, to first order, in the same unit:
            the value less this is the better estimate. NaN where the trace does not tell; 0 for
            draws that no chain made.
    """

    value: float
    mcse: float
    ess: float
    rhat: float
    step_bias: float = math.nan

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return self._text(".4g", ".2g")

    def __format__(self, spec: str) -> str:
        return self._text(spec, spec) if spec else str(self)

    def _text(self, spec: str, of_errors: str) -> str:
        text = f"{self.value:{spec}} ± {self.mcse:{of_errors}}"
        if math.isfinite(self.step_bias):
            sign = "-" if self.step_bias < 0 else "+"
            text += f", step bias {sign}{abs(self.step_bias):{of_errors}}"
        return text


def estimate_mean(series: np.ndarray) -> Estimate:
    """The mean of a series, shape (chain, draw), with what ArviZ says of it."""
    ess, rhat = ess_and_rhat(series)
    if series.shape[1] >= 4:
        mcse = float(import_arviz().mcse(series))
    else:
        mcse = float(mcse_of_mean(series))
    return Estimate(float(series.mean()), mcse, ess, rhat)


def ess_and_rhat(series: np.ndarray) -> tuple[float, float]:
    """Bulk ESS and split R-hat (ArviZ) of a series, shape (chain, draw).

    A single chain is cut into two halves. Both are NaN for fewer than four draws per chain, and for
    a series that never moves.
    """
    if len(series) == 1:
        half = series.shape[1] // 2
        series = series[:, : 2 * half].reshape(2, half)
    if series.shape[1] < 4 or np.ptp(series) == 0:
        return float("nan"), float("nan")
    az = import_arviz()
    return float(az.ess(series)), float(az.rhat(series))


def autocorrelation(series: np.ndarray, lags: int) -> np.ndarray:
    """Autocorrelation of each chain (ArviZ), from lag 0.

    Args:
        series: shape (chain, draw).
        lags: how many.

    Returns:
        Shape (chain, lags), 1 at lag 0.

    Raises:
        ValueError: fewer draws than lags.
    """
    if not 1 <= lags <= series.shape[1]:
        raise ValueError(f"lags is {lags}; choose from 1 to {series.shape[1]}, the draws")
    az = import_arviz()
    return np.stack([az.autocorr(chain)[:lags] for chain in series])


def mcse_of_mean(x: np.ndarray) -> np.ndarray:
    """Standard error of the mean over (chain, draw) of every series in x (chain, draw, ...).

    ArviZ's ``mcse`` for many series at once: the standard deviation over the square root of the
    effective sample size of the mean, with chains cut in halves. Fewer than 8 draws per chain say
    nothing about their correlation and count as independent.
    """
    spread = x.std((0, 1), ddof=1)
    if x.shape[1] < 8:
        return spread / np.sqrt(x.shape[0] * x.shape[1])
    return spread / np.sqrt(ess_of_mean(x))


def ess_of_mean(x: np.ndarray) -> np.ndarray:
    """Effective sample size of the mean of every series in x (chain, draw, ...).

    Autocovariances within chains and the variance between them, summed up to where they fade into
    noise (Geyer's initial monotone sequence): Vehtari et al. (2021), section 3.2.
    """
    from scipy.fft import irfft, next_fast_len, rfft  # slow to import, so where it is used

    half = x.shape[1] // 2
    x = np.concatenate([x[:, :half], x[:, -half:]])
    chains, draws = x.shape[:2]
    means = x.mean(1, keepdims=True)
    length = next_fast_len(2 * draws, real=True)
    spectrum = rfft(x - means, length, axis=1)
    power = (spectrum.real**2 + spectrum.imag**2).mean(0)
    within = irfft(power, length, axis=0)
    within = within[:draws] / draws
    total = within[0] + means[:, 0].var(0, ddof=1)
    moving = total > 0
    rho = 1 - (within[0] * draws / (draws - 1) - within) / np.where(moving, total, 1)
    rho[0] = 1
    last = max(0, (draws - 3) // 2)  # the pairs (rho_0, rho_1), (rho_2, rho_3), ... looked at
    pairs = rho[: 2 * last + 2].reshape(last + 1, 2, *rho.shape[1:]).sum(1)
    faded = pairs <= 0
    faded[last] = True  # if none before it has faded, the sum ends there
    end = faded.argmax(0)
    falling = np.minimum.accumulate(pairs, axis=0)
    counted = np.arange(last + 1).reshape(-1, *[1] * end.ndim) < end
    even, pair = (np.take_along_axis(a, at[None], 0)[0] for a, at in ((rho, 2 * end), (pairs, end)))
    tau = 2 * (falling * counted).sum(0) - 1 + np.where(pair < 0, np.maximum(even, 0), even)
    ess = chains * draws / np.maximum(tau, 1 / np.log10(chains * draws))
    return np.where(moving, ess, chains * draws)


__all__ = [
    "Estimate",
    "autocorrelation",
    "ess_and_rhat",
    "ess_of_mean",
    "estimate_mean",
    "import_arviz",
    "mcse_of_mean",
]
