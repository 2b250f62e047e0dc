"""Series of draws: effective sample size, Monte-Carlo standard error, R-hat, autocorrelation."""

import functools
import importlib
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import numpy as np

#: Half of the normal 95 % interval, in standard errors.
NORMAL = 1.96
# Autocorrelation times that a batch of draws has at least, and the most batches that are of use.
_LENGTH, _BATCHES = 5, 64
# Series whose autocovariances are found together.
_AT_ONCE = 64


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
        mcse: its Monte-Carlo standard error, in the same unit: half of the 95 % interval over 1.96,
            so that few draws are wider by Student's t; infinite where they cannot tell.
        ess: effective number of draws behind it (ArviZ, bulk).
        rhat: rank-normalised split R-hat of the series behind it (ArviZ).
        step_bias: by how much the sampler's step has moved it, to first order, in the same unit:
            the value less this is the better estimate; of minibatches whose noise hides the
            gradient it is the most that it may be. NaN where the trace does not tell; 0 for draws
            that no chain made.
    """

    value: float
    mcse: float
    ess: float
    rhat: float
    step_bias: float = math.nan

    def __float__(self) -> float:
        return self.value

    def interval(self) -> tuple[float, float]:
        """The 95 % interval of chance: value -+ 1.96 mcse. The step bias is not in it."""
        return self.value - NORMAL * self.mcse, self.value + NORMAL * self.mcse

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
    """The mean of a series, shape (chain, draw), with its error, and ESS and R-hat by ArviZ."""
    ess, rhat = ess_and_rhat(series)
    return Estimate(float(series.mean()), float(mcse_of_mean(series)), ess, rhat)


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

    Student's t is in it: 1.96 of it are half of the 95 % interval, however few the draws. It comes
    from the means of :func:`batches` that are long against the autocorrelation time. Infinite where
    nothing is known: a single chain of less than ten such times. 0 for a series that never moves.
    """
    flat = x.reshape(*x.shape[:2], -1)
    error = np.full(flat.shape[2], np.inf)
    for parts, at in groups(batches(flat)):
        means = batch_means(chosen(flat, at), parts)
        error[at] = widening(len(means)) * np.sqrt(means.var(0, ddof=1) / len(means))
    error[is_still(flat)] = 0
    return error.reshape(x.shape[2:])


def batches(x: np.ndarray) -> np.ndarray:
    """Into how many parts each chain is cut, for every series in x (chain, draw, k): shape (k,).

    As many powers of two as leave parts of five autocorrelation times or more, and no more than 64
    parts in all: their means are nearly independent. 1 where the chains are that short, or differ
    by more than parts of one chain do (an F-test at 1 %): then the chains alone tell how sure the
    mean is. 0 for a single chain that is that short, which cannot tell.
    """
    from scipy.special import fdtri  # slow to import, so where it is used

    chains, draws, k = x.shape
    parts = np.full(k, int(chains > 1))
    if draws < 2 * _LENGTH:
        return parts
    # Few at a time, whose spectra stay in the cache.
    ess = [ess_of_mean(x[..., at : at + _AT_ONCE]) for at in range(0, max(k, 1), _AT_ONCE)]
    longest = draws / (_LENGTH * chains * draws / np.concatenate(ess))
    for cut in cuts(chains, draws):
        parts[cut <= longest] = cut
    for cut, at in groups(parts):
        if chains == 1 or cut == 1:
            continue
        means = batch_means(chosen(x, at), cut).reshape(chains, cut, -1)
        within, between = means.var(1, ddof=1).mean(0) / cut, means.mean(1).var(0, ddof=1)
        limit = fdtri(chains - 1, chains * (cut - 1), 0.99)
        parts[at] = np.where(between > limit * within, 1, cut)
    return parts


def cuts(chains: int, draws: int) -> list[int]:
    """The numbers of parts that :func:`batches` chooses from."""
    found, cut = [1] * (chains > 1), 2
    while chains * cut <= max(_BATCHES, 2 * chains) and cut <= draws // _LENGTH:
        found.append(cut)
        cut *= 2
    return found


def batch_means(x: np.ndarray, parts: int) -> np.ndarray:
    """Means of x (chain, draw, ...) over the parts of each chain: shape (chain x parts, ...).

    Where the draws do not divide, the first few are left out.
    """
    length = x.shape[1] // parts
    cut = x[:, x.shape[1] - parts * length :]
    return cut.reshape(len(x) * parts, length, *x.shape[2:]).mean(1)


def groups(parts: np.ndarray) -> Iterator[tuple[int, slice | np.ndarray]]:
    """The numbers above 0 among ``parts`` (k,), each with its places: all of them, or an index."""
    for cut in np.unique(parts[parts > 0]):
        at = np.flatnonzero(parts == cut)
        yield int(cut), slice(None) if len(at) == len(parts) else at  # all: no copy is made


def chosen(x: np.ndarray, at: slice | np.ndarray) -> np.ndarray:
    """Some series of x (chain, draw, k), draw by draw in memory, which ``x[..., at]`` is not."""
    return x if isinstance(at, slice) else x.take(at, -1)


def is_still(x: np.ndarray) -> np.ndarray:
    """Whether a series never moves, for every series in x (chain, draw, k): shape (k,)."""
    still = x[0, 0] == x[-1, -1]  # most do not pass even this
    still[still] = (x[..., still] == x[:1, :1, still]).all((0, 1))
    return still


def widening(count: int) -> float:
    """By how much Student's t interval from ``count`` means is wider than the normal one."""
    from scipy.special import stdtrit  # slow to import, so where it is used

    return float(stdtrit(count - 1, 0.975)) / NORMAL


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
    "NORMAL",
    "Estimate",
    "autocorrelation",
    "batch_means",
    "batches",
    "chosen",
    "cuts",
    "ess_and_rhat",
    "ess_of_mean",
    "estimate_mean",
    "groups",
    "import_arviz",
    "is_still",
    "mcse_of_mean",
    "widening",
]
