r"""How far the step size has moved an estimate, from what every step recorded.

Euler steps of a Langevin equation sample another law than Eq. 1, off in proportion to the step
:math:`\epsilon`. For the LLC the first order of that bias is

.. math::

   \frac\epsilon8\, n\beta \operatorname{E}\big[\nabla L^\top G\,(n\beta \nabla L
   + \gamma (w - w^*))\big] + \frac\epsilon8\, (n\beta)^2 \operatorname{tr}(G C),

the first term for samplers of order one with the full gradient (G is 1 for SGLD; the term is exact
on quadratics, taken over the draws as they are), the second for the noise of minibatches, with
covariance C, and any sampler. In a direction of curvature h the second counts in full what counts
by :math:`n\beta h / (n\beta h + \gamma)`, so it is a limit. Where C has the shape of the Hessian,
as near a minimum of a log-likelihood, what counts of it is

.. math::

   \frac{n\beta \operatorname{E}[\nabla L^\top G \nabla L]}{n\beta \operatorname{E}[\nabla L^\top G
   \nabla L] + \gamma \operatorname{E}[\nabla L^\top G (w - w^*)]},

and that is the estimate. C is what the gradients of two steps that follow each other do not share.
They share less than :math:`|\nabla L|^2`, by what the step itself changed, and by what the next
step takes back of its noise; both are put right by their lower bounds (Cauchy-Schwarz). Where the
second is large, a lower bound is not enough, and a verdict counts noise in full.

Other samplers say by which :math:`\epsilon` each part counts, and how far a kick reaches within a
step (:class:`probelib.samplers.base.Lengths`).

Where L is homogeneous of degree :math:`\alpha` around w* and the data hold the weights, the first
term counts :math:`2/\alpha` times, which is the LLC over the virial: twice for an absolute value,
half for a quartic. Where the localization holds them, it counts once. In between, the share of
the curvature-weighted precision that is the data's (the ratio above) tells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from probelib.contract import STEP_VARIABLES, settings
from probelib.estimators.series import NORMAL, mcse_of_mean

if TYPE_CHECKING:
    import xarray as xr


#: Part of the gradient's change along w - w* that the next step takes back of the noise, at least.
#: On MNIST with batches of 64 the data's share came out right at 0.1 of it, as less than half at
#: 0.3 and a tenth at 0.5, and the limit makes up for no more than a factor of two.
_TAKEN_BACK = 0.25


@dataclass(frozen=True)
class StepBias:
    """The step bias of the LLC of the sampling data: NaN each where the trace does not tell.

    Attributes:
        gradient: of the steps themselves; the full gradient would leave it.
        noise: of minibatches whose gradients' covariance has the shape of the Hessian.
        noise_limit: of any minibatches, at most.
        virial: half of nb E[L'(w)'(w - w*)], the LLC itself where L is quadratic around w*; NaN of
            a preconditioned sampler, which weighs the directions in another way.
        turning: by how much of itself the gradient changes in a step, about half of the step times
            the curvature; with minibatches it is their noise as well.
        bending: the same without their noise, at least.
        held: the part of the curvature-weighted precision that is the data's, not gamma's.
        blurred: whether steps take back so much of minibatches' noise that this part, and with it
            ``noise``, may be several times as large; the limit then counts noise in full.
    """

    gradient: float = math.nan
    noise: float = math.nan
    noise_limit: float = math.nan
    virial: float = math.nan
    turning: float = math.nan
    bending: float = math.nan
    held: float = math.nan
    blurred: bool = False

    def total(self, llc: float) -> float:
        """Both parts together, for an LLC of the sampling data that came out as ``llc``."""
        return self.gradient * (1 + self.held * (self._shape(llc) - 1)) + self.noise

    def limit(self, llc: float) -> float:
        """The same, at most: a verdict should not depend on the shape of L or of the noise."""
        noise = self.noise_limit if self.blurred else min(self.noise_limit, 2 * self.noise)
        return self.gradient * max(1, self._shape(llc)) + noise

    def _shape(self, llc: float) -> float:
        """2 / alpha; 1 where that is not known."""
        known = self.virial > 0 and llc > 0
        return float(np.clip(llc / self.virial, 0.25, 4)) if known else 1.0


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
    nb, gamma, order = (float(value) for value in needed[1:] if value is not None)
    eps, kick, of_localization = run.lengths()
    # The burn-in is left out, as of the draws; of a run without one, only the first step.
    recorded = trace[list(names)].isel(step=slice(max(1, run.burn_in or 0), None))
    square, along, repeat = (recorded[name].values.astype(np.float64) for name in names)
    if not square.size or not np.isfinite([square, along, repeat]).all():
        return unknown
    is_full = run.batch_size is None or run.batch_size == run.n_samples
    # The square of the gradient without its noise, but for a sampling error: without minibatches
    # there is none.
    of_mean = square.mean()
    changed = kick / (1 if order == 1 else 2)
    slope = nb / along.mean() if along.mean() > 0 else 0.0
    if not is_full:
        of_mean = _of_mean(repeat.mean(), of_mean, changed, slope, gamma)
    by_localization = gamma * along.mean() * (of_localization / eps)
    gradient = eps / 8 * nb * (nb * of_mean + by_localization) if order == 1 else 0.0
    noise = eps / 8 * nb**2 * (square.mean() - of_mean)
    at_once = kick / 4 * nb**2 * (square.mean() - of_mean)
    taken_back = 2 * at_once / (nb * along.mean() / 2) if along.mean() > 0 else 1.0
    by_data = nb * (of_mean + _uncertainty(repeat)) / max(1 - taken_back, 1e-9)
    held = _held(min(by_data, nb * square.mean()), gamma * along.mean())
    # A lower bound, so that where it is large the gradients of two steps do not tell ``held``.
    blurred = not is_full and bool(taken_back > _TAKEN_BACK)
    turning = 1 - float(repeat.mean() / square.mean()) if square.any() else 0.0
    bending = turning if is_full else changed * max(gamma + slope * of_mean, 0.0)
    virial = math.nan if trace.attrs.get("preconditioned") else nb * float(along.mean()) / 2
    return StepBias(
        gradient=float(gradient),
        noise=float(noise * held),
        noise_limit=float(noise),
        virial=float(virial),
        turning=float(turning),
        bending=float(bending),
        held=float(held),
        blurred=blurred,
    )


def _of_mean(repeat: float, most: float, changed: float, slope: float, gamma: float) -> float:
    """E |∇L|², of which a step changed at least ``changed`` (gamma + slope E |∇L|²) parts."""
    found = least = float(np.clip(repeat, 0, most))
    for _ in range(50):
        found = min(least + changed * found * max(gamma + slope * found, 0), most)
    return found


def _held(by_data: float, by_localization: float) -> float:
    """The part of the curvature-weighted precision that is the data's; 1 where nothing is known."""
    if not math.isfinite(by_data) or by_localization <= 0 or by_data <= 0:
        return 1.0
    return float(by_data / (by_data + by_localization))


def _uncertainty(series: np.ndarray) -> float:
    """How much larger the mean of a series (chain, step) may well be; infinite if unknown."""
    return NORMAL * float(mcse_of_mean(series[..., None])[0])


def _llc_of_steps(trace: xr.Dataset) -> float:
    """The LLC of the sampling data by the losses of the steps; NaN where their noise hides it.

    The first step begins at w*.
    """
    run, loss = settings(trace), trace.get("sampling_loss")
    along = trace.get("gradient_along")
    if loss is None or along is None or run.n_beta is None or along[:, 0].values.any():
        return math.nan
    series = loss.values.astype(np.float64)
    first, later = series[:, 0].mean(), series[:, max(1, run.burn_in or 0) :]
    value = run.n_beta * (later.mean() - first)
    is_full = run.batch_size is None or run.batch_size == run.n_samples
    noise = 0.0 if is_full else run.n_beta * later.std() / math.sqrt(len(series))
    return float(value) if value > 3 * noise else math.nan


def relative_step_bias(trace: xr.Dataset, llc: float, limit: bool = False) -> float:
    """The step bias as a part of an LLC: that of the loss gains, on the average.

    Args:
        trace: as for :func:`step_bias`.
        llc: of the trace. Where it observes other samples than those that were sampled from, the
            losses of the steps tell it, or the virial stands for it.
        limit: count the noise of minibatches at its most.

    Returns:
        The part; NaN where the trace does not tell, or where there is no LLC to speak of.
    """
    if "log_weight" in trace:  # draws that no step made
        return 0.0
    found, of = step_bias(trace), trace.attrs.get("fingerprint", {})
    same = "sampling_data" in of and of["sampling_data"] == of.get("observed_data")
    same &= trace.sizes["sample"] == settings(trace).n_samples  # else some were selected since
    whole = llc
    if not same:
        whole = _llc_of_steps(trace)
        whole = found.virial if math.isnan(whole) else whole
    return (found.limit if limit else found.total)(whole) / whole if whole > 0 else math.nan


__all__ = ["StepBias", "relative_step_bias", "step_bias"]
