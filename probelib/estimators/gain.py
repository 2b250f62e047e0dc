r"""The posterior loss gain (Eq. 4): :math:`\mu_i = \operatorname{E}[\ell_i(w) - \ell_i(w^*)]`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from probelib.contract import canonical, init_mcse, settings
from probelib.estimators.blocks import blocks_of_changes, per_sample, sample_coords
from probelib.estimators.step_bias import relative_step_bias
from probelib.estimators.weighted import mcse, mean, weights_of

if TYPE_CHECKING:
    import xarray as xr


def loss_gain(trace: xr.Dataset) -> xr.DataArray:
    """The posterior loss gain of every observed sample (Eq. 4).

    Args:
        trace: from :func:`probelib.sample` or :func:`probelib.open_trace`.

    Returns:
        mu, shape (sample,), nats; its coordinate ``mcse`` is the Monte-Carlo standard error, half
        of the 95 % interval over 1.96: Student's t is in it, and infinite for a loss that has not
        moved while others have; ``step_bias`` is by how much the step
        size has moved it, nats, where it moved each gain in the same proportion as their mean (NaN
        where the trace does not tell).

    Raises:
        ValueError: fewer than two draws, or losses that are not finite.
    """
    trace = canonical(trace, "loss", "init_loss")
    gain, error = np.empty(trace.sizes["sample"]), np.empty(trace.sizes["sample"])
    weights = weights_of(trace)
    for block, change in blocks_of_changes(trace):
        gain[block] = mean(change, weights)
        error[block] = mcse(change, weights)
    if error.any():  # a hinge may yet open: no draw tells how far
        error[error == 0] = np.inf
    error = np.hypot(error, init_mcse(trace)[0])
    of_mean = relative_step_bias(trace, (settings(trace).n_beta or math.nan) * gain.mean())
    found = per_sample(sample_coords(trace), gain, error, "loss_gain")
    return found.assign_coords(step_bias=("sample", of_mean * gain))


__all__ = ["loss_gain"]
