r"""Two traces against each other: what changed, with the error of the change.

Two runs of one seed use the same minibatches and the same noise (common random numbers): their
losses go up and down together, and much of the sampling error is not in the difference

.. math::

   \hat\delta_i = \frac1S \sum_t \big[ \Delta\ell_i^{(b)}(w_t^{(b)})
   - \Delta\ell_i^{(a)}(w_t^{(a)}) \big],

whose error is that of the mean of this one series, draw by draw and chain by chain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from probelib.contract import canonical, fingerprint, init_mcse, settings
from probelib.estimators.blocks import (
    blocks_of_changes,
    per_sample,
    sample_coords,
    with_step_bias,
)
from probelib.estimators.gain import loss_gain
from probelib.estimators.llc import local_learning_coefficient, mean_loss_change
from probelib.estimators.series import Estimate, estimate_mean
from probelib.estimators.weighted import estimate, mcse, mean, weights_of

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


@dataclass(frozen=True, eq=False)
class Comparison:
    """What is other in the second of two traces: always the second less the first.

    Attributes:
        gain: differences of the loss gains, shape (sample,), nats, with the coordinates ``mcse``
            and ``step_bias`` (the difference of both) beside those of the samples.
        mean_gain: difference of the mean gains, nats.
        llc: difference of the LLCs; None where a trace does not say its n_beta.
        paired: whether the errors are those of the differences draw by draw. Else the traces are
            independent (or weighted), and the errors of both add up in squares.
    """

    gain: xr.DataArray
    mean_gain: Estimate
    llc: Estimate | None
    paired: bool

    def __str__(self) -> str:
        how = "paired, draw by draw" if self.paired else "not paired: two independent runs"
        llc = [] if self.llc is None else [f"  LLC        {self.llc}"]
        return "\n".join(
            [f"second less first ({how})", *llc, f"  mean gain  {self.mean_gain} nats"]
        )

    def to_dataframe(self) -> pd.DataFrame:
        """A row a sample, by ``sample_id``: gain_difference, mcse, step_bias, label where known."""
        table = self.gain.rename("gain_difference").to_dataframe().reset_index(drop=True)
        if "sample_id" in table:
            table = table.set_index("sample_id")
        return table


def compare(a: xr.Dataset, b: xr.Dataset) -> Comparison:
    """By how much the gains and the LLC of one trace are other than those of another.

    The same samples and loss at another n_beta, of another checkpoint, with another sampler; of
    traces of losses per token whole samples are compared, by the posterior's loss. Sample both
    with one seed, and the errors of the differences are those of paired draws, mostly several times
    smaller than two independent runs would leave.

    Args:
        a, b: from :func:`probelib.sample` or :func:`probelib.open_trace`, of the same observed
            samples, with as many chains and draws; leave a chain that diverged out of both.

    Returns:
        b less a, with Monte-Carlo errors.

    Raises:
        ValueError: the traces observe other samples, are of different losses, as far as their
            fingerprints tell, or have other chains or draws; and as for
            :func:`probelib.loss_gain`.
    """
    a = canonical(a, "loss", "init_loss", argument="a")
    b = canonical(b, "loss", "init_loss", argument="b")
    _require_alike(a, b)
    paired = _are_paired(a, b)
    gains, changes = [loss_gain(trace) for trace in (a, b)], [mean_loss_change(t) for t in (a, b)]
    bias = gains[1]["step_bias"].values - gains[0]["step_bias"].values
    at_center = _init_error(a, b)
    if paired:
        difference, error = _paired_gains(a, b)
        error = np.hypot(error, at_center[0])
    else:
        difference = gains[1].values - gains[0].values
        error = np.hypot(gains[0]["mcse"].values, gains[1]["mcse"].values)
    gain = per_sample(sample_coords(a), difference, error, "loss_gain_difference")
    gain = with_step_bias(gain.drop_vars("init_loss_mcse", errors="ignore"), bias)
    mean_gain = _difference(a, b, changes, (1.0, 1.0), paired, at_center[1])
    return Comparison(
        gain.assign_attrs(paired=paired),
        replace(mean_gain, step_bias=float(bias.mean())),
        _llc(a, b, changes, paired, at_center[2]),
        paired,
    )


def _require_alike(a: xr.Dataset, b: xr.Dataset) -> None:
    for dim in ("sample", "chain", "draw"):
        if a.sizes[dim] != b.sizes[dim]:
            raise ValueError(
                f"a has {a.sizes[dim]} along {dim} and b {b.sizes[dim]}; compare traces of the "
                f"same: select those that both have, with isel({dim}=...)"
            )
    for name in ("sample_id", "label"):
        known = [t[name].values for t in (a, b) if name in t.coords]
        if known and (len(known) == 1 or not np.array_equal(known[0], known[1])):
            raise ValueError(
                f"a and b observe other samples (their {name} differs); select the same samples, "
                "in the same order"
            )
    known_of = fingerprint(a, "a"), fingerprint(b, "b")
    seen = [of.get("observed_data") for of in known_of]
    if None not in seen and seen[0] != seen[1]:
        raise ValueError(
            "a and b observe other data (its fingerprint differs); sample both with the same "
            "observe"
        )
    losses = [of.get("per_sample_loss") for of in known_of]
    if None not in losses and losses[0] != losses[1]:
        raise ValueError(
            "a and b are of different losses (the fingerprint of per_sample_loss differs), which "
            "have no difference; sample both with one loss (where it is one, under another Python "
            "or torch, give both the same attrs['fingerprint']['per_sample_loss'])"
        )


def _are_paired(a: xr.Dataset, b: xr.Dataset) -> bool:
    """Whether chains of one number had the same minibatches and the same noise."""
    if weights_of(a) is not None or weights_of(b) is not None:
        return False
    seeds = [t.attrs.get("seed") for t in (a, b)]
    return seeds[0] is not None and seeds[0] == seeds[1] and bool((a.chain == b.chain).all())


def _init_error(a: xr.Dataset, b: xr.Dataset) -> tuple[np.ndarray, float, float]:
    """Errors of l_i(w*) in the differences of gains, mean gains and LLCs; 0 but for chance.

    What both traces have of one evaluation cancels.
    """
    (each_a, mean_a), (each_b, mean_b) = init_mcse(a), init_mcse(b)
    same = a.init_loss.values == b.init_loss.values
    scale_a, scale_b = (settings(t).n_beta or 0.0 for t in (a, b))
    of_llc = math.hypot(scale_a * mean_a, scale_b * mean_b)
    if same.all():
        return np.zeros(len(same)), 0.0, abs(scale_a - scale_b) * mean_a
    return np.where(same, 0, np.hypot(each_a, each_b)), math.hypot(mean_a, mean_b), of_llc


def _paired_gains(a: xr.Dataset, b: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    difference, error = np.empty(a.sizes["sample"]), np.empty(a.sizes["sample"])
    for (at, first), (_, second) in zip(blocks_of_changes(a), blocks_of_changes(b), strict=True):
        series = second - first
        difference[at], error[at] = mean(series, None), mcse(series, None)
    if error.any():  # as of a gain: what has not moved apart yet may do so
        error[error == 0] = np.inf
    return difference, error


def _difference(
    a: xr.Dataset,
    b: xr.Dataset,
    changes: list[np.ndarray],
    scale: tuple[float, float],
    paired: bool,
    at_center: float,
) -> Estimate:
    """Of the mean loss changes, each times its own scale."""
    first, second = (s * x for s, x in zip(scale, changes, strict=True))
    if paired:
        found = estimate_mean(second - first)
    else:
        one, other = estimate(first, weights_of(a)), estimate(second, weights_of(b))
        found = Estimate(
            other.value - one.value,
            math.hypot(one.mcse, other.mcse),
            float(np.fmin(one.ess, other.ess)),
            float(np.fmax(one.rhat, other.rhat)),
        )
    return replace(found, mcse=math.hypot(found.mcse, at_center))


def _llc(
    a: xr.Dataset, b: xr.Dataset, changes: list[np.ndarray], paired: bool, at_center: float
) -> Estimate | None:
    n_beta = settings(a).n_beta, settings(b).n_beta
    if n_beta[0] is None or n_beta[1] is None:
        return None
    found = _difference(a, b, changes, (n_beta[0], n_beta[1]), paired, at_center)
    bias = local_learning_coefficient(b).step_bias - local_learning_coefficient(a).step_bias
    return replace(found, step_bias=bias)


__all__ = ["Comparison", "compare"]
