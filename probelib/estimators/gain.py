r"""The posterior loss gain (Eq. 4): :math:`\mu_i = \operatorname{E}[\ell_i(w) - \ell_i(w^*)]`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from probelib.contract import (
    Over,
    canonical,
    has_tokens,
    init_mcse,
    settings,
    unstacked,
)
from probelib.estimators.blocks import (
    blocks_of_changes,
    by_token,
    per_sample,
    sample_coords,
    with_step_bias,
)
from probelib.estimators.llc import mean_loss_change
from probelib.estimators.sets import each_set
from probelib.estimators.step_bias import relative_step_bias
from probelib.estimators.weighted import mcse, mean, weights_of

if TYPE_CHECKING:
    import xarray as xr


@each_set
def loss_gain(trace: xr.Dataset, over: Over = None) -> xr.DataArray:
    """The posterior loss gain of every observed sample, or token (Eq. 4).

    Args:
        trace: from :func:`probelib.sample` or :func:`probelib.open_trace`.
        over: of a trace of losses per token, "token" (the default) or "sample".

    Returns:
        mu, shape (sample,) or (sample, token), nats, NaN where a sample has no such position; its
        coordinate ``mcse`` is the Monte-Carlo standard error, half
        of the 95 % interval over 1.96: Student's t is in it, and infinite for a loss that has not
        moved while others have; ``step_bias`` is by how much the step
        size has moved it, nats, where it moved each gain in the same proportion as their mean (NaN
        where the trace does not tell). ``.to_dataframe()`` is a table of a row a sample: loss_gain,
        mcse, step_bias, sample_id, and label where there is one.

    Raises:
        ValueError: fewer than two draws, or losses that are not finite.
    """
    whole = unstacked(trace)
    trace = canonical(whole, "loss", "init_loss", over=over)
    gain, error = np.empty(trace.sizes["sample"]), np.empty(trace.sizes["sample"])
    weights = weights_of(trace)
    for block, change in blocks_of_changes(trace):
        gain[block] = mean(change, weights)
        error[block] = mcse(change, weights)
    if error.any():  # a hinge may yet open: no draw tells how far
        error[error == 0] = np.inf
    error = np.hypot(error, init_mcse(trace)[0])
    found = per_sample(sample_coords(trace), gain, error, "loss_gain")
    of_mean = _relative_step_bias(whole, trace, gain, over)
    return by_token(with_step_bias(found, of_mean * gain), whole, over)


def _relative_step_bias(
    whole: xr.Dataset, trace: xr.Dataset, gain: np.ndarray, over: Over
) -> float:
    """That of the mean gain of the samples, whether these or their tokens are read."""
    n_beta = settings(trace).n_beta or math.nan
    if over == "sample" or not has_tokens(whole):
        return relative_step_bias(trace, n_beta * gain.mean())
    if "sample_loss" not in whole:  # made elsewhere
        return math.nan
    samples = canonical(whole, "loss", "init_loss")
    of_mean = float(mean(mean_loss_change(samples), weights_of(samples)))
    return relative_step_bias(samples, n_beta * of_mean)


__all__ = ["loss_gain"]
