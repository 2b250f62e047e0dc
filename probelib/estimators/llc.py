r"""Numbers of the whole data set: LLC, empirical variance, singular fluctuation (App. B).

.. math::

   \hat\lambda = n\beta\,(\operatorname{E}[L(w)] - L(w^*)), \qquad
   V = \sum_i K_{ii}, \qquad \hat\nu = \tfrac{\beta}{2} V
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from probelib.contract import canonical, init_mcse, required, settings
from probelib.estimators.blocks import blocks_of_changes, blocks_of_deviations
from probelib.estimators.jackknife import FEWEST, error_of_variance, without_each
from probelib.estimators.series import (
    Estimate,
    batch_means,
    batches,
    cuts,
    ess_and_rhat,
)
from probelib.estimators.sets import each_set
from probelib.estimators.step_bias import relative_step_bias
from probelib.estimators.weighted import Weights, estimate, mean, weights_of

if TYPE_CHECKING:
    import xarray as xr


@each_set
def local_learning_coefficient(trace: xr.Dataset) -> Estimate:
    r"""The local learning coefficient (B.1): :math:`\hat\lambda = n\beta\,(E[L(w)] - L(w^*))`.

    L is the mean over the *observed* samples: observe the sampling data for the LLC as defined.
    The paper prints n beta times the sum of the gains, which is n times larger.

    Args:
        trace: from :func:`probelib.sample` or :func:`probelib.open_trace`.

    Returns:
        The LLC, dimensionless, with its Monte-Carlo error and the bias of the step size, to first
        order. Of minibatches that is what noise in the shape of the Hessian does, which may be
        too much or too little elsewhere; :func:`probelib.diagnostics` judges by twice that, or by
        the most that it can be where this is less.

    Raises:
        ValueError: fewer than two draws, losses that are not finite, or no n_beta.
    """
    trace = canonical(trace, "loss", "init_loss")
    n_beta = required(trace, "n_beta")
    found = estimate(n_beta * mean_loss_change(trace), weights_of(trace))
    error = math.hypot(found.mcse, n_beta * init_mcse(trace)[1])
    return replace(
        found, mcse=error, step_bias=found.value * relative_step_bias(trace, found.value)
    )


@each_set
def mean_loss_change(trace: xr.Dataset) -> np.ndarray:
    """L(w) - L(w*) over the observed samples at every draw: shape (chain, draw), nats.

    One number a draw, whatever its weight: the mean of a weighted trace's needs
    :func:`probelib.contract.draw_weights`.

    Args:
        trace: from :func:`probelib.sample` or :func:`probelib.open_trace`.

    Raises:
        ValueError: fewer than two draws, or losses that are not finite.
    """
    trace = canonical(trace, "loss", "init_loss")
    total = np.zeros((trace.sizes["chain"], trace.sizes["draw"]))
    for _, change in blocks_of_changes(trace):
        total += change.sum(-1)
    return total / trace.sizes["sample"]


@each_set
def empirical_variance(trace: xr.Dataset) -> Estimate:
    """The empirical variance V, the sum of the observed samples' loss variances (Eq. 13).

    Args:
        trace: from :func:`probelib.sample` or :func:`probelib.open_trace`.

    Returns:
        V, nats squared, with its jackknife error: tr K of :func:`probelib.loss_kernel` less the
        bias that autocorrelated draws give it, about -V / ESS; both are the same number for one
        chain that is too short to know. For its step bias see :func:`singular_fluctuation`.

    Raises:
        ValueError: fewer than two draws, or losses that are not finite.
    """
    trace = canonical(trace, "loss")
    return _with_step_bias(_variance(trace), trace)


@each_set
def singular_fluctuation(trace: xr.Dataset) -> Estimate:
    r"""The singular fluctuation (Eq. 14): :math:`\hat\nu = \frac{\beta}{2} V`, on this data set.

    Computed as n beta / 2 times the mean variance, so that an observed random subset estimates
    the same quantity as the whole.

    Args:
        trace: from :func:`probelib.sample` or :func:`probelib.open_trace`.

    Returns:
        nu, dimensionless, with its standard error. Its step bias is that of the LLC, in
        proportion: right where single losses are linear in w, up to half of it where they are
        quadratic.

    Raises:
        ValueError: fewer than two draws, losses that are not finite, or no n_beta.
    """
    trace = canonical(trace, "loss")
    n_beta = required(trace, "n_beta")
    v, scale = _variance(trace), n_beta / 2 / trace.sizes["sample"]
    return _with_step_bias(replace(v, value=scale * v.value, mcse=scale * v.mcse), trace)


def _with_step_bias(of_variance: Estimate, trace: xr.Dataset) -> Estimate:
    n_beta, relative = settings(trace).n_beta, math.nan
    at_center = trace.get("init_loss")
    if n_beta is not None and at_center is not None and bool(np.isfinite(at_center).all()):
        relative = relative_step_bias(trace, n_beta * float(mean_loss_change(trace).mean()))
    part = np.minimum(relative, 1)  # beyond 1, the step has made all of it
    return replace(of_variance, step_bias=float(of_variance.value * part))


def _variance(trace: xr.Dataset) -> Estimate:
    """The sum of the losses' variances, with its error.

    Draws vary about their own mean by less than about the true one, by the variance of that mean:
    what is added here. For independent draws it is what the divisor S - 1 stands for.
    """
    shape = trace.sizes["chain"], trace.sizes["draw"]
    squares, along, weights = np.zeros(shape), np.zeros(shape), weights_of(trace)
    if weights is not None:
        for _, deviation in blocks_of_deviations(trace):
            squares += np.square(deviation).sum(-1)
        return estimate(weights.unbiased * squares, weights)
    noise, left_out = dict.fromkeys(cuts(*shape), 0.0), dict.fromkeys(cuts(*shape), 0.0)
    for _, deviation in blocks_of_deviations(trace):
        squares += np.square(deviation).sum(-1)
        along += deviation.sum(-1)
        for cut in noise:
            means = batch_means(deviation, cut)
            noise[cut] += float(means.var(0, ddof=1).sum() / len(means))
            left_out[cut] = left_out[cut] + np.square(without_each(means)).sum(-1)
    parts = int(batches(np.stack([squares, along], -1)).min())
    ess, rhat = ess_and_rhat(squares)
    if parts == 0:  # a single short chain does not know how far its mean is from the true one
        pooled = float(squares.sum() / (squares.size - 1))
        return Estimate(pooled, math.inf if pooled else 0.0, ess, rhat)
    value = float(squares.mean()) + noise[parts]
    without = without_each(batch_means(squares, parts)) - left_out[parts]
    error = float(error_of_variance(without, np.array(value)))
    if 0 < squares.mean() < FEWEST * noise[parts]:  # chains that hardly moved apart from each other
        error = math.inf
    return Estimate(value, error, ess, rhat)


def share(part: np.ndarray, total: np.ndarray, weights: Weights | None = None) -> Estimate:
    r"""The ratio of two means over the same draws, with its Monte-Carlo error to first order.

    The error of :math:`r = \bar a / \bar b` is that of the mean of
    :math:`(a_t - r b_t) / \bar b`: what moves both at once cancels.

    Args:
        part, total: series a and b, shape (chain, draw).
        weights: of the draws, from :func:`probelib.estimators.weighted.weights_of`.
    """
    whole = mean(total, weights)
    ratio = mean(part, weights) / whole
    return replace(estimate((part - ratio * total) / whole, weights), value=float(ratio))


__all__ = [
    "empirical_variance",
    "local_learning_coefficient",
    "mean_loss_change",
    "share",
    "singular_fluctuation",
]
