"""Whether a trace can be trusted: convergence, number of draws, step size, basin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from probelib.contract import canonical, diverged, settings
from probelib.estimators.llc import mean_loss_change
from probelib.estimators.series import ess_and_rhat

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at in a trace.

    Attributes:
        name: "diverged", "mixed", "draws", "step", "spread" or "basin".
        good: whether it is as it should be.
        value, limit: the number behind it, and how large (for "draws": how small) it may be.
        sentence: both in words, with what to try.
    """

    name: str
    good: bool
    value: float
    limit: float
    sentence: str


@dataclass(frozen=True)
class Diagnostics:
    """Whether the chains can be trusted: printed, a verdict with the number behind each point.

    Attributes:
        findings: what was looked at, a :class:`Finding` each.
        rhat_max: largest split R-hat over the mean loss and the samples looked at.
        ess_min: smallest bulk effective sample size over the same.
        rhat, ess: both for each series: the mean loss first, then the samples.
        samples: positions of the samples looked at.
        autocorrelation_time: integrated autocorrelation time of the mean loss, in draws.
        loss_at_center: L(w*), nats, over the observed samples.
        loss_along_chains: E[L(w)], nats, over the observed samples.
        distance: mean |w - w*| over the draws.
    """

    rhat_max: float
    ess_min: float
    rhat: np.ndarray
    ess: np.ndarray
    samples: np.ndarray
    autocorrelation_time: float
    loss_at_center: float
    loss_along_chains: float
    distance: float
    findings: tuple[Finding, ...] = ()

    @property
    def good(self) -> bool:
        """Whether nothing speaks against the trace."""
        return all(finding.good for finding in self.findings)

    def __getitem__(self, name: str) -> Finding:
        """The finding of a name (KeyError where it was not looked at)."""
        named = {finding.name: finding for finding in self.findings}
        if name not in named:
            raise KeyError(f"name is {name!r}; choose one of {', '.join(map(repr, named))}")
        return named[name]

    def __str__(self) -> str:
        bad = sum(not finding.good for finding in self.findings)
        verdict = (
            f"Do not trust this trace yet: {bad} of {len(self.findings)} points speak against it."
            if bad
            else "Nothing here speaks against this trace."
        )
        marks = {True: "ok ", False: "NO "}
        return "\n".join([verdict, *(f"  {marks[f.good]} {f.sentence}" for f in self.findings)])


def diagnostics(trace: xr.Dataset, n_samples: int = 500, seed: int = 0) -> Diagnostics:
    """Whether a trace can be trusted, with the numbers behind the verdict.

    R-hat and ESS (ArviZ) of the mean loss and of randomly chosen samples' losses; how far the
    chains are from w*, and how high their loss. Chains that diverged are named and left out. A
    single chain is cut into two halves, so that R-hat can see a drift.

    Args:
        trace: from :func:`probelib.sample` or :func:`probelib.open_trace`.
        n_samples: how many samples to look at (all, if there are fewer).
        seed: of that choice.

    Returns:
        The verdict, and its numbers. It asks for an R-hat below 1.1 and an ESS above 100 of the
        worst series; stricter rules are 1.01 and 400.

    Raises:
        ValueError: fewer than two draws, no chain that did not diverge, or losses that are not
            finite.
    """
    trace = canonical(trace, "loss", "init_loss", "distance")
    lost = diverged(trace)
    if lost and len(lost) == trace.sizes["chain"]:
        at = next(iter(lost.values()))
        raise ValueError(
            f"trace has no chain that did not diverge, the first at step {at['step']}; sample "
            "again with a smaller step_size"
        )
    all_chains, trace = trace, trace.drop_sel(chain=[int(c) for c in lost]) if lost else trace
    mean = mean_loss_change(trace)
    n = trace.sizes["sample"]
    samples = np.sort(np.random.default_rng(seed).choice(n, min(n, n_samples), replace=False))
    series = np.concatenate(
        [mean[..., None], trace.loss[:, :, samples].values.astype(np.float64)], -1
    )
    ess, rhat = np.array([ess_and_rhat(series[..., i]) for i in range(series.shape[-1])]).T
    at_center = float(trace.init_loss.values.astype(np.float64).mean())
    # A sample that never moves has no R-hat to speak of; it cannot be the worst.
    rhat_max = float(np.nanmax(rhat)) if np.isfinite(rhat).any() else float("inf")
    ess_min = float(np.nanmin(ess)) if np.isfinite(ess).any() else 0.0
    return Diagnostics(
        findings=(
            _check_divergence(lost, all_chains.sizes["chain"]),
            _check_mixing(rhat_max),
            _check_draws(ess_min, mean.size),
            *_check_step(trace),
            *_check_basin(trace, at_center, float(mean.mean())),
        ),
        rhat_max=rhat_max,
        ess_min=ess_min,
        rhat=rhat,
        ess=ess,
        samples=samples,
        autocorrelation_time=mean.size / float(ess[0]),
        loss_at_center=at_center,
        loss_along_chains=at_center + float(mean.mean()),
        distance=float(trace.distance.mean()),
    )


def _check_divergence(lost: dict[str, dict[str, int]], chains: int) -> Finding:
    steps = ", ".join(f"{chain} at step {at['step']}" for chain, at in lost.items())
    return Finding(
        "diverged",
        not lost,
        len(lost),
        0,
        f"{len(lost)} of {chains} chains diverged ({steps}) and are left out of what follows; "
        "lower step_size"
        if lost
        else f"none of {chains} chains diverged",
    )


def _check_mixing(rhat: float, limit: float = 1.1) -> Finding:
    good = rhat <= limit
    return Finding(
        "mixed",
        good,
        rhat,
        limit,
        f"the chains have mixed: the largest R-hat is {rhat:.3f}"
        if good
        else f"the chains have not mixed: the largest R-hat is {rhat:.3f}, above {limit}; take "
        "more draws or a longer burn_in",
    )


def _check_draws(ess: float, draws: int, limit: float = 100) -> Finding:
    good = ess >= limit
    return Finding(
        "draws",
        good,
        ess,
        limit,
        f"{draws} draws are worth {ess:.0f} independent ones for the slowest loss"
        + ("" if good else f", fewer than {limit:.0f}; take more draws, or a larger thin"),
    )


def _check_step(trace: xr.Dataset, widened: float = 0.1, spread: float = 1.1) -> list[Finding]:
    """What the step size alone tells, and how far the chains are; nothing where it is unknown."""
    run = settings(trace)
    if run.step_size is None or run.localization is None or run.n_parameters is None:
        return []
    step, gamma, d = run.step_size, run.localization, run.n_parameters
    more, findings = _widening(run.sampler, step * gamma), []
    if more is not None:
        findings.append(
            Finding(
                "step",
                more <= widened,
                more,
                widened,
                f"step_size {step:g} widens the posterior by {more:.1%} where only the "
                f"localization of {gamma:g} holds it"
                + ("" if more <= widened else f", more than {widened:.0%}; lower step_size"),
            )
        )
    ratio = float(np.square(trace.distance.values, dtype=np.float64).mean()) * gamma / d
    limit = spread * (1 + (more or 0.0))
    sentence = f"|w - w*|² is {ratio:.3g} of what the localization alone would leave"
    if ratio > limit:
        sentence += (
            f", above {limit:.3g}: step_size is too large for the curvature or the gradient noise, "
            "or the loss falls away from w*"
        )
    findings.append(Finding("spread", ratio <= limit, ratio, limit, sentence))
    return findings


def _widening(sampler: str | None, relative_step: float) -> float | None:
    """How much wider a sampler's law is than 1 / gamma where only the localization holds a weight.

    SGLD (Eq. 7) has the variance 1 / (gamma (1 - eps gamma / 4)), Leimkuhler-Matthews 1 / gamma.

    Args:
        sampler: its name; None in traces that do not say, which SGLD made.
        relative_step: eps gamma; the step is stable below 4.

    Returns:
        The relative excess; None for a sampler whose law is not known here.
    """
    if sampler in (None, "SGLD", "RMSpropSGLD", "devinterp"):  # RMSprop: G is 1 there
        return 1 / (1 - relative_step / 4) - 1 if relative_step < 4 else float("inf")
    if sampler == "LeimkuhlerMatthews":
        return 0.0 if relative_step < 4 else float("inf")
    return None


def _check_basin(trace: xr.Dataset, at_center: float, change: float) -> list[Finding]:
    """Whether the losses along the chains still belong to what was trained.

    Held to guessing, where the samples have labels and the network does better at w*; else to the
    LLC of a regular model, d / 2, where the trace says what that needs.
    """
    where = f"the mean loss is {at_center:.3g} nats at w* and {at_center + change:.3g} along the"
    labels = np.unique(trace.label.values) if "label" in trace.coords else np.empty(0)
    guess = float(np.log(len(labels))) if len(labels) > 1 else 0.0
    run = settings(trace)
    if at_center < guess:
        value, limit = at_center + change, guess
        good = value < limit
        sentence = f"{where} chains; guessing among {len(labels)} labels costs {guess:.3g}"
    elif run.n_beta is not None and run.n_parameters is not None:
        value, limit = run.n_beta * change, run.n_parameters / 2
        good = value <= limit
        sentence = f"{where} chains, an LLC of {value:.3g}; a regular model has {limit:g}"
    else:
        return []
    remedy = "" if good else ": they have left w*'s basin; raise localization or n_beta"
    return [Finding("basin", good, float(value), float(limit), sentence + remedy)]


__all__ = ["Diagnostics", "Finding", "diagnostics"]
