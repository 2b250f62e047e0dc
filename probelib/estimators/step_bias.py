r"""How far the step size has moved an estimate, from what every step recorded.

Euler steps of a Langevin equation sample another law than Eq. 1, off in proportion to the step
:math:`\epsilon`. For the LLC the first order of that bias is

.. math::

   \frac\epsilon8\, n\beta \operatorname{E}\big[\nabla L^\top G\,(n\beta \nabla L
   + \gamma (w - w^*))\big] + \frac\epsilon8\, (n\beta)^2 \operatorname{tr}(G C),

the first term for samplers of order one with the full gradient (G is 1 for SGLD; the term is exact
on quadratics, taken over the draws as they are), the second for the noise of minibatches, with
covariance C, and any sampler. The second is an upper estimate: in a direction of curvature h it
counts in full what counts by :math:`n\beta h / (n\beta h + \gamma)`. C is what the gradients of
two steps that follow each other do not share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from probelib.contract import STEP_VARIABLES, settings

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class StepBias:
    """The step bias of the LLC of the sampling data: NaN each where the trace does not tell.

    Attributes:
        gradient: of the steps themselves; the full gradient would leave it.
        noise: of minibatches, at most.
        virial: half of nb E[L'(w)'(w - w*)], the LLC itself where L is quadratic around w*; NaN of
            a preconditioned sampler, which weighs the directions in another way.
        turning: by how much of itself the gradient changes in a step, about half of the step times
            the curvature; with minibatches it is their noise as well.
    """

    gradient: float = math.nan
    noise: float = math.nan
    virial: float = math.nan
    turning: float = math.nan

    @property
    def total(self) -> float:
        """Both parts together."""
        return self.gradient + self.noise


def step_bias(trace: xr.Dataset) -> StepBias:
    """The step bias of a trace's LLC: see the module's text.

    Args:
        trace: from :func:`probelib.sample`, with what its steps recorded.

    Returns:
        Both parts; NaN for traces that were made elsewhere, and for samplers of unknown order.
    """
    run, unknown = settings(trace), StepBias()
    names = STEP_VARIABLES[1:]
    needed = run.step_size, run.n_beta, run.localization, run.order
    if None in needed or any(name not in trace for name in names):
        return unknown
    eps, nb, gamma, order = (float(value) for value in needed if value is not None)
    # The burn-in is left out, as of the draws; of a run without one, only the first step.
    recorded = trace[list(names)].isel(step=slice(max(1, run.burn_in or 0), None))
    square, along, repeat = (recorded[name].values.astype(np.float64) for name in names)
    if not square.size or not np.isfinite([square, along, repeat]).all():
        return unknown
    is_full = run.batch_size is None or run.batch_size == run.n_samples
    # The square of the gradient without its noise, but for a sampling error.
    of_mean = square.mean() if is_full else np.clip(repeat.mean(), 0, square.mean())
    gradient = eps / 8 * nb * (nb * of_mean + gamma * along.mean()) if order == 1 else 0.0
    noise = eps / 8 * nb**2 * (square.mean() - of_mean)
    turning = 1 - float(repeat.mean() / square.mean()) if square.any() else 0.0
    virial = math.nan if trace.attrs.get("preconditioned") else nb * float(along.mean()) / 2
    return StepBias(float(gradient), float(noise), virial, turning)


def relative_step_bias(trace: xr.Dataset, llc: float) -> float:
    """The step bias as a part of an LLC: that of the loss gains, on the average.

    Args:
        trace: as for :func:`step_bias`.
        llc: of the trace. Where it observes other samples than those that were sampled from, the
            virial stands for it.

    Returns:
        The part; NaN where the trace does not tell, or where there is no LLC to speak of.
    """
    if "log_weight" in trace:  # draws that no step made
        return 0.0
    found, of = step_bias(trace), trace.attrs.get("fingerprint", {})
    same = "sampling_data" in of and of["sampling_data"] == of.get("observed_data")
    same &= trace.sizes["sample"] == settings(trace).n_samples  # else some were selected since
    whole = llc if same else found.virial
    return found.total / whole if whole > 0 else math.nan


__all__ = ["StepBias", "relative_step_bias", "step_bias"]
