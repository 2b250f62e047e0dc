r"""The same probe at several n beta and localizations, with the checks that a sweep gives for free.

Under Eq. 1 :math:`d E[L] / d(n\beta) = -\operatorname{Var} L \le 0`: the mean gain of the sampling
data falls as n beta grows, and where it rises a step was too long or a chain too short. And draws
from the localizing Gaussian, weighted, are draws from Eq. 1 at every n beta at once
(:func:`probelib.importance_sample`): where their weights can be trusted, chains must agree.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from probelib.arguments import require_kind, require_positive, require_whole, shown
from probelib.calibration import CalibrationRefused
from probelib.data import Data
from probelib.estimators.diagnostics import Diagnostics, diagnostics
from probelib.estimators.llc import local_learning_coefficient
from probelib.estimators.series import Estimate
from probelib.estimators.weighted import weights_of
from probelib.importance import importance_sample, khat, reweight
from probelib.observed_sets import are_sets
from probelib.posterior import LocalPosterior
from probelib.progress import progress_bar
from probelib.run import DivergenceError, sample
from probelib.samplers import Sampler

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

#: Standard errors by which two numbers differ before it is called a contradiction.
_APART = 4.0


def sweep(
    posterior: LocalPosterior,
    observe: Data | None = None,
    *,
    n_beta: float | Iterable[float] | None = None,
    localization: float | Iterable[float] | None = None,
    sampler: Sampler | None = None,
    weighted_draws: int = 200,
    seed: int = 0,
    cache: str | os.PathLike | None = None,
    progress: bool = True,
    **settings: Any,
) -> pd.DataFrame:
    """The LLC and the mean loss gain at every pair of n beta and localization, with verdicts.

    Args:
        posterior: of which network, which loss and which data.
        observe: the samples whose losses are recorded; default: those of the posterior. One set.
        n_beta, localization: the values, one or several; default: those of the posterior.
        sampler: the same at all of them; default: what :func:`probelib.calibrate` finds for each.
        weighted_draws: independent draws for each localization, which check the chains at all n
            beta; 0 for none.
        seed: of all runs.
        cache: a directory in which every run is kept: the same call again, after an interruption
            or with more values, samples what is missing.
        progress: show a bar.
        settings: any other argument of :func:`probelib.sample`, such as ``draws``.

    Returns:
        A row for each pair, by localization and then n beta: ``n_beta``, ``localization``; ``llc``
        with ``llc_mcse`` and ``llc_step_bias``; ``gain``, the mean loss gain of the observed
        samples (nats), with ``gain_mcse`` and ``gain_step_bias``; ``step_size``, ``draws`` (of all
        chains), ``ess`` of the mean loss; ``khat`` of the weighted draws and, where that is good,
        ``weighted_llc`` with ``weighted_llc_mcse``; ``verdict``: "good", "wide" or "wrong" as
        :func:`probelib.diagnostics` has it, "refused" where calibrate or all chains gave up;
        and ``why``, in words. A row is "wrong" also where its gain rises from the n beta below, or
        where chains and weighted draws differ by more than four standard errors.

    Raises:
        ValueError, TypeError: a bad argument.
    """
    require_kind("posterior", posterior, LocalPosterior, "a probelib.LocalPosterior")
    weighted_draws = require_whole("weighted_draws", weighted_draws, 0)
    for name in ("store", "overwrite", "executor", "chains_per_task"):
        if name in settings:
            raise TypeError(f"sweep has no argument {name!r}; give cache, which keeps every run")
    if are_sets(observe):
        raise ValueError("observe has several sets; call sweep once for each of them")
    betas = _values("n_beta", n_beta, posterior.n_beta)
    own = posterior.localization if localization is None else None
    gammas = _values("localization", localization, own)
    given = {"seed": seed, "cache": cache, "progress": False}
    rows: list[dict[str, Any]] = []
    with progress_bar(total=len(betas) * len(gammas), unit="run", disable=not progress) as bar:
        for gamma in gammas:
            weighted = _weighted(posterior.at(localization=gamma), weighted_draws, observe, given)
            below = None
            for beta in betas:
                at = posterior.at(n_beta=beta, localization=gamma)
                row = _row(at, observe, sampler, given | settings)
                _compare_with_weighted(row, weighted, beta)
                if observe is None:  # of other samples the gain may rise
                    _compare_with_below(row, below)
                below = row if math.isfinite(row["gain"]) else below
                rows.append(row)
                bar.update()
    return _table(rows)


def _values(name: str, values: Any, default: float | None) -> list[float]:
    """The values of a setting, each once, from small to large."""
    if values is None:
        values = [default]
    elif isinstance(values, str | bytes) or not isinstance(values, Iterable):
        values = [values]
    found = sorted({require_positive(name, value) for value in values})
    if not found:
        raise ValueError(f"{name} is {shown(values)}; give one value at least")
    return found


def _row(
    posterior: LocalPosterior,
    observe: Data | None,
    sampler: Sampler | None,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """What one run says, or why there is none."""
    row: dict[str, Any] = {"n_beta": posterior.n_beta, "localization": posterior.localization}
    try:
        with warnings.catch_warnings():  # the row says what speaks against it
            warnings.filterwarnings("ignore", "the settings that calibrate found")
            trace = sample(posterior, observe, sampler=sampler, **settings)
    except (CalibrationRefused, DivergenceError) as error:
        return row | {"gain": math.nan, "verdict": "refused", "why": str(error)}
    llc, found = local_learning_coefficient(trace), diagnostics(trace)
    return row | {
        **_named("llc", llc),
        **_named("gain", llc, 1 / posterior.n_beta),
        "step_size": trace.attrs["config"]["step_size"],
        "draws": trace.sizes["chain"] * trace.sizes["draw"],
        "ess": llc.ess,
        "verdict": _verdict(found),
        "why": "; ".join(one.sentence for one in found.findings if not one.good),
    }


def _named(name: str, found: Estimate, scale: float = 1.0) -> dict[str, float]:
    return {
        name: found.value * scale,
        f"{name}_mcse": found.mcse * scale,
        f"{name}_step_bias": found.step_bias * scale,
    }


def _verdict(found: Diagnostics) -> str:
    return "good" if found.good else "wrong" if found.wrong else "wide"


def _weighted(
    posterior: LocalPosterior, draws: int, observe: Data | None, settings: Mapping[str, Any]
) -> xr.Dataset | None:
    """Weighted draws at a localization, or None: they are not wanted, or not to be had."""
    if draws < 2:
        return None
    try:
        return importance_sample(posterior, draws, observe=observe, **settings)
    except ValueError:  # losses that are not finite so far from w*, or that depend on chance
        return None


def _compare_with_weighted(row: dict[str, Any], weighted: xr.Dataset | None, n_beta: float) -> None:
    """Put what the weighted draws say into a row, and what speaks against it into its verdict."""
    if weighted is None:
        return
    at = reweight(weighted, n_beta)
    row["khat"] = khat(at)
    weights = weights_of(at)
    if weights is None or not row["khat"] <= weights.limit:
        return
    llc = local_learning_coefficient(at)
    row |= {"weighted_llc": llc.value, "weighted_llc_mcse": llc.mcse}
    if "llc" not in row:
        return
    off = row["llc"] - llc.value
    error = math.hypot(llc.mcse, row["llc_mcse"])
    if abs(off) > _APART * error + abs(_known(row["llc_step_bias"])):
        _object(
            row,
            f"weighted draws, whose weights have a k-hat of {row['khat']:.2f}, give an LLC of "
            f"{llc.value:.3g} ± {llc.mcse:.2g}, which the chains' {row['llc']:.3g} ± "
            f"{row['llc_mcse']:.2g} is not",
        )


def _compare_with_below(row: dict[str, Any], below: dict[str, Any] | None) -> None:
    """Object to a gain above that of a smaller n beta."""
    if below is None or not math.isfinite(row["gain"]):
        return
    error = math.hypot(row["gain_mcse"], below["gain_mcse"])
    if row["gain"] - below["gain"] > _APART * error:
        _object(
            row,
            f"the mean gain rises from {below['gain']:.3g} ± {below['gain_mcse']:.2g} nats at "
            f"n_beta {below['n_beta']:g} to {row['gain']:.3g} ± {row['gain_mcse']:.2g} at "
            f"{row['n_beta']:g}, which under Eq. 1 it cannot: a step is too long",
        )


def _known(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _object(row: dict[str, Any], why: str) -> None:
    row["why"] = "; ".join(part for part in (row["why"], why) if part)
    row["verdict"] = "wrong"


_COLUMNS = (
    *("n_beta", "localization", "llc", "llc_mcse", "llc_step_bias"),
    *("gain", "gain_mcse", "gain_step_bias", "step_size", "draws", "ess"),
    *("khat", "weighted_llc", "weighted_llc_mcse", "verdict", "why"),
)


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd  # slow to import, so where it is used

    table = pd.DataFrame(rows, columns=list(_COLUMNS))
    numbers = [name for name in _COLUMNS if name not in ("verdict", "why")]
    return table.assign(**{name: table[name].astype(np.float64) for name in numbers})


__all__ = ["sweep"]
