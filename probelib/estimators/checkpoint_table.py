"""What every checkpoint of a series says, in one table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from probelib.arguments import shown
from probelib.contract import diverged, of_one_checkpoint, settings
from probelib.estimators.diagnostics import Diagnostics, diagnostics
from probelib.estimators.gain import loss_gain
from probelib.estimators.llc import local_learning_coefficient, mean_loss_change
from probelib.estimators.weighted import estimate, weights_of

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


def checkpoint_table(
    series: xr.Dataset, quantiles: Sequence[float] = (0.1, 0.5, 0.9)
) -> pd.DataFrame:
    """LLC, gains and verdict of every checkpoint.

    Args:
        series: from :func:`probelib.over_checkpoints`.
        quantiles: of the gains over the observed samples, each from 0 to 1. Sampling error widens
            what they span.

    Returns:
        A row a checkpoint: ``llc``, ``llc_mcse``, ``llc_step_bias`` (1); ``mean_gain``,
        ``mean_gain_mcse`` and ``gain_q10``, ``gain_q50``, ... (nats); ``loss_at_center`` (nats);
        ``not_fitted`` (a share, NaN where unknown); ``diverged``, chains that are left out; and
        ``verdict``: "good", "uncertain" or "wrong", of :func:`probelib.diagnostics`.

    Raises:
        ValueError: no dimension ``checkpoint``, quantiles beyond 0 and 1; and as for the
            estimators.
    """
    import pandas as pd  # slow to import, so where it is used

    if "checkpoint" not in getattr(series, "dims", ()):
        raise ValueError(
            "series has no dimension checkpoint; give what probelib.over_checkpoints returns"
        )
    if not all(0 <= q <= 1 for q in quantiles):
        raise ValueError(f"quantiles is {shown(quantiles)}; choose from 0 to 1")
    rows = [
        _row(of_one_checkpoint(series.isel(checkpoint=at)), quantiles)
        for at in range(series.sizes["checkpoint"])
    ]
    return pd.DataFrame(rows, index=pd.Index(series["checkpoint"].values, name="checkpoint"))


def _row(trace: xr.Dataset, quantiles: Sequence[float]) -> dict[str, Any]:
    found = diagnostics(trace)
    lost = diverged(trace)
    trace = trace.drop_sel(chain=[int(chain) for chain in lost]) if lost else trace
    gain = loss_gain(trace, over="sample").values
    mean = estimate(mean_loss_change(trace), weights_of(trace))
    row: dict[str, Any] = dict.fromkeys(("llc", "llc_mcse", "llc_step_bias"), math.nan)
    if settings(trace).n_beta is not None:
        llc = local_learning_coefficient(trace)
        row = {"llc": llc.value, "llc_mcse": llc.mcse, "llc_step_bias": llc.step_bias}
    at = {f"gain_q{100 * q:g}": float(np.quantile(gain, q)) for q in quantiles}
    return (
        row
        | {"mean_gain": mean.value, "mean_gain_mcse": mean.mcse}
        | at
        | {
            "loss_at_center": found.loss_at_center,
            "not_fitted": found.not_fitted,
            "diverged": len(lost),
            "verdict": _verdict(found),
        }
    )


def _verdict(found: Diagnostics) -> str:
    return "good" if found.good else "wrong" if found.wrong else "uncertain"


__all__ = ["checkpoint_table"]
