"""Whether a trace can be trusted: what speaks for a wrong number, and what for a wide error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from probelib.contract import STEP_VARIABLES, Over, RunSettings, canonical, diverged, settings
from probelib.estimators import weighted
from probelib.estimators.guesses import guess_costs
from probelib.estimators.llc import local_learning_coefficient, mean_loss_change
from probelib.estimators.series import Estimate, ess_and_rhat, estimate_mean
from probelib.estimators.sets import each_set
from probelib.estimators.step_bias import StepBias, relative_step_bias, step_bias
from probelib.estimators.weighted import Weights, weights_of

if TYPE_CHECKING:
    import xarray as xr

#: Of an LLC: the part that the step size may have made, and that a slope at w* may have.
_BIAS = 0.1
#: R-hat from which chains have not mixed, and from which they say different things.
_MIXED, _APART = 1.1, 1.2
#: Draws per chain, and independent draws of all, below which R-hat does not tell; independent draws
#: that are wanted of the mean loss, and of the slowest sample.
_FEW, _DRAWS, _DRAWS_OF_WORST = 20, 100, 40
#: Change of the gradient in a step at which one sees that L is no quadratic.
_TURNING = 0.6
#: Autocorrelation time over the memory of a preconditioner.
_METRIC = {"RMSpropSGLD": 0.2, "CorrectedRMSpropSGLD": 1.0}
#: Mean probabilities of proposals: below the first a chain hardly moves, above the other slowly.
_ACCEPTED = 0.1, 0.9995
#: Samples that are not fitted, as a share of all, from which the gain misranks enough to be said.
_UNFITTED = 0.01
#: Rounding of the losses over their change.
_ROUNDING = 0.1


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at in a trace.

    Attributes:
        name: "diverged", "trained", "minimum", "step", "curvature", "acceptance", "preconditioner",
            "mixed", "draws", "weights", "spread", "arrived", "basin" or "digits".
        good: whether it is as it should be.
        value, limit: the number behind it, and how large (for "draws": how small) it may be.
        sentence: both in words, with what to try.
        kind: what it speaks for where it is not good: "wrong" numbers, or numbers that are right
            but have a "wide" error, which more draws narrow.
    """

    name: str
    good: bool
    value: float
    limit: float
    sentence: str
    kind: Literal["wrong", "wide"] = "wrong"


@dataclass(frozen=True)
class Diagnostics:
    """Whether a trace can be trusted: printed, a verdict with the number behind each point.

    Attributes:
        findings: what was looked at, a :class:`Finding` each.
        rhat_max: largest split R-hat over the mean loss and the samples looked at.
        ess_min: smallest bulk effective sample size over the same.
        rhat, ess: both for each series: the mean loss first, then the samples.
        samples: positions of the samples looked at.
        autocorrelation_time: integrated autocorrelation time of the mean loss, in draws.
        loss_at_center: L(w*), nats, over the observed samples.
        loss_along_chains: E[L(w)], nats, over the observed samples.
        distance: mean |w - w*| over the draws; NaN where the trace does not have it.
        not_fitted: share of the observed samples whose loss at w* is above what guessing their
            label costs; NaN where the trace has no guessing loss.
        notes: what one should know when reading the estimates, whatever the verdict; printed below
            the findings.
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
    not_fitted: float = math.nan
    notes: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether nothing speaks against the trace."""
        return all(finding.good for finding in self.findings)

    @property
    def wrong(self) -> bool:
        """Whether something says that its numbers are wrong, not only uncertain."""
        return any(not finding.good and finding.kind == "wrong" for finding in self.findings)

    def __getitem__(self, name: str) -> Finding:
        """The finding of a name (KeyError where it was not looked at)."""
        named = {finding.name: finding for finding in self.findings}
        if name not in named:
            raise KeyError(f"name is {name!r}; choose one of {', '.join(map(repr, named))}")
        return named[name]

    def __str__(self) -> str:
        bad = sum(not finding.good for finding in self.findings)
        of = f"{bad} of {len(self.findings)} points"
        verdict = "Nothing here speaks against this trace."
        if self.wrong:
            verdict = f"Do not trust this trace: {of} speak against it."
        elif bad:
            verdict = f"Not wrong, as far as this can tell, but uncertain: {of} ask for more draws."
        marks = {True: "ok ", False: "NO "}
        lines = [f"  {marks[f.good]} {f.sentence}" for f in self.findings]
        return "\n".join([verdict, *lines, *(f"  !   {note}" for note in self.notes)])


@each_set
def diagnostics(
    trace: xr.Dataset, n_samples: int = 500, seed: int = 0, over: Over = None
) -> Diagnostics:
    """Whether a trace can be trusted, with the numbers behind the verdict.

    It looks at what biases the LLC, and with it gains and kernel: whether w* is a minimum of
    something learned, whether the chains have mixed, the step (see
    :mod:`probelib.estimators.step_bias`), the basin, the digits of the losses; and at how many
    draws there are. R-hat and ESS (ArviZ) are of the mean loss and of randomly chosen samples'
    losses. Chains that diverged are named and left out. A single chain is cut into two halves, so
    that R-hat can see a drift. Where an error is infinite, only the number of draws is objected to.
    That many samples are not fitted is a note, not part of the verdict: the estimates are right,
    but gains rank such samples last.

    Args:
        trace: from :func:`probelib.sample` or :func:`probelib.open_trace`.
        n_samples: how many samples to look at (all, if there are fewer).
        seed: of that choice.
        over: of a trace of losses per token, whether it looks at so many of them ("token", the
            default) or of the samples; the LLC is that of the samples all the same.

    Returns:
        The verdict, and its numbers.

    Raises:
        ValueError: fewer than two draws, no chain that did not diverge, or losses that are not
            finite.
    """
    has_distance = isinstance(trace, Mapping) and "distance" in trace  # else canonical says why
    each = canonical(trace, "loss", over=over)  # in whose R-hat and ESS there is interest
    trace = canonical(trace, "loss", "init_loss", *["distance"] * has_distance)
    lost = diverged(trace)
    if lost and len(lost) == trace.sizes["chain"]:
        at = next(iter(lost.values()))
        raise ValueError(
            f"trace has no chain that did not diverge, the first at step {at['step']}; sample "
            "again with a smaller step_size"
        )
    all_chains = trace
    if lost:
        trace, each = (t.drop_sel(chain=[int(chain) for chain in lost]) for t in (trace, each))
    mean = mean_loss_change(trace)
    n = each.sizes["sample"]
    samples = np.sort(np.random.default_rng(seed).choice(n, min(n, n_samples), replace=False))
    series = np.concatenate(
        [mean[..., None], each.loss[:, :, samples].values.astype(np.float64)], -1
    )
    ess, rhat = np.array([ess_and_rhat(series[..., i]) for i in range(series.shape[-1])]).T
    at_center = float(trace.init_loss.values.astype(np.float64).mean())
    # A sample that never moves has no R-hat to speak of; it cannot be the worst.
    rhat_max = float(np.nanmax(rhat)) if np.isfinite(rhat).any() else float("inf")
    ess_min = float(np.nanmin(ess)) if np.isfinite(ess).any() else 0.0
    tau = mean.size / float(ess[0])
    unfitted = _not_fitted(trace)
    along = at_center + float(weighted.mean(mean, weights_of(trace)))
    return Diagnostics(
        findings=(
            _check_divergence(lost, all_chains.sizes["chain"]),
            *_check_training(trace, at_center),
            *_check_llc(trace, tau),
            *_check_acceptance(trace),
            *_check_draws(trace, rhat_max, ess_min, float(ess[0])),
            *_check_spread(trace),
            *_check_arrival(trace),
            *_check_basin(trace, at_center, along),
            _check_digits(trace, mean),
        ),
        rhat_max=rhat_max,
        ess_min=ess_min,
        rhat=rhat,
        ess=ess,
        samples=samples,
        autocorrelation_time=tau,
        loss_at_center=at_center,
        loss_along_chains=along,
        distance=float(trace.distance.mean()) if "distance" in trace else math.nan,
        not_fitted=unfitted,
        notes=_note_unfitted(unfitted, n),
    )


def _not_fitted(trace: xr.Dataset) -> float:
    """The share of samples of which the network knows less at w* than a guess does."""
    guess = trace.attrs.get("guessing_loss")
    if guess is None:
        return math.nan
    labels = trace["label"].values if "label" in trace.coords else None
    return float(
        (trace.init_loss.values > guess_costs(labels, guess, trace.sizes["sample"])).mean()
    )


def _note_unfitted(share: float, n: int) -> tuple[str, ...]:
    if not share > _UNFITTED:
        return ()
    return (
        f"{share:.1%} of {n} samples are not fitted: their loss at w* is above what guessing "
        "costs. Gains rank such samples last, however wrong their labels; probelib.label_issues "
        "ranks by the posterior mean loss",
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


def _check_training(trace: xr.Dataset, at_center: float) -> list[Finding]:
    """Whether the network knows more at w* than the best constant output does."""
    guess = trace.attrs.get("guessing_loss")
    if guess is None:
        return []
    good = at_center < guess or at_center == guess == 0  # nothing is better than no loss
    sentence = f"the mean loss at w* is {at_center:.3g} nats, and guessing costs {guess:.3g}"
    remedy = "" if good else ": nothing was learned that could be probed; train the model first"
    return [Finding("trained", good, at_center, guess, sentence + remedy)]


def _check_llc(trace: xr.Dataset, tau: float) -> list[Finding]:
    """What the LLC itself tells: w* is a minimum, and the step did not make it."""
    run = settings(trace)
    if run.n_beta is None:
        return []
    llc, found = local_learning_coefficient(trace), step_bias(trace)
    minimum = _check_minimum(trace, llc, found.virial)
    relative = relative_step_bias(trace, llc.value, limit=True)
    if not minimum.good:
        return [minimum]
    if not math.isfinite(relative):
        return [minimum, *_check_widening(run)]
    return [
        minimum,
        _check_step(found, relative, run),
        *_check_curvature(trace, llc.value, found),
        *_check_metric(trace, tau),
    ]


def _check_minimum(trace: xr.Dataset, llc: Estimate, virial: float) -> Finding:
    """Whether L falls away from w*: an LLC below 0, or a slope that makes a part of it."""
    sentence = f"the LLC is {llc.value:.3g} ± {llc.mcse:.2g}"
    remedy = "; train the model further, or raise localization"
    if llc.value + 3 * llc.mcse < 0:
        sentence += f", below 0: w* is no minimum of L, and the chains find a lower loss{remedy}"
        return Finding("minimum", False, llc.value, 0.0, sentence)
    size = max(abs(llc.value), 3 * llc.mcse)
    slope = _slope(trace) / size if size else 0.0
    # On a quadratic the virial is above the LLC by what the slope at w* gives away.
    good = not (slope > _BIAS and virial > llc.value + _BIAS * size)
    if not good:
        sentence += (
            f", to which the slope at w* gives {slope:.1%} or less: w* is no minimum of L{remedy}"
        )
    return Finding("minimum", good, llc.value, 0.0, sentence)


def _slope(trace: xr.Dataset) -> float:
    """At most what the gradient at w* takes off the LLC: (nb)² |L'(w*)|² / (2 gamma).

    The first step begins at w*. The gradients of minibatches count as far as those of two steps
    agree, in all chains.
    """
    run = settings(trace)
    if not set(STEP_VARIABLES[1:]) <= set(trace) or run.localization is None:
        return 0.0
    if trace.sizes["step"] < 2 or trace.gradient_along[:, 0].values.any():  # not from w*
        return 0.0
    square = trace.gradient_square.values[:, :1].astype(np.float64)
    if run.batch_size not in (None, run.n_samples):
        square = trace.gradient_repeat.values[:, 1:2].astype(np.float64)
        chains = len(square)
        error = square.std(ddof=1) / chains**0.5 if chains > 2 else math.inf
        square = np.maximum(square.mean() - 4 * error, 0)
    return float((run.n_beta or 0.0) ** 2 * np.mean(square) / (2 * run.localization))


def _check_step(found: StepBias, relative: float, run: RunSettings) -> Finding:
    """The part of the LLC that the step size made."""
    step_size, noise_step = run.step_size or math.nan, run.lengths()[0]
    good = relative <= _BIAS
    part = f"{relative:.1%}" if relative < 1 else "all"
    most = "up to " if found.noise_limit > 0 and relative < 1 else ""
    sentence = f"step_size {step_size:g} makes {most}{part} of the LLC"
    if not good:
        noisy = found.noise_limit > found.gradient
        part_of_it = _BIAS / 2 / relative
        if noise_step > step_size:  # with momentum, noise may fall like the root of the step
            part_of_it **= 2
        cause = "the noise of the minibatches" if noisy else "the curvature"
        sentence += (
            f", more than {_BIAS:.0%}: it is too long for {cause}; try "
            f"{min(step_size, noise_step) * part_of_it:.2g}"
        )
        if noisy:
            sentence += ", a larger batch_size or a ControlVariate"
        elif found.gradient:
            sentence += ", or LeimkuhlerMatthews"
    return Finding("step", good, relative, _BIAS, sentence)


def _widening(run: RunSettings) -> float:
    """How much wider than 1 / gamma a law of order one is where only gamma holds a weight."""
    if run.order != 1 or run.step_size is None or run.localization is None:
        return 0.0
    _, _, step = run.lengths()
    relative = step * run.localization / 4  # Eq. 7: 1 / (gamma (1 - eps gamma / 4))
    return 1 / (1 - relative) - 1 if relative < 1 else math.inf


def _check_widening(run: RunSettings) -> list[Finding]:
    """What the step size alone tells, where the steps have recorded nothing."""
    if run.order != 1 or run.step_size is None or run.localization is None:
        return []
    more = _widening(run)
    good = more <= _BIAS
    sentence = f"step_size {run.step_size:g} widens the posterior by {more:.1%} where only the "
    sentence += f"localization of {run.localization:g} holds it"
    sentence += "" if good else f", more than {_BIAS:.0%}; lower step_size"
    return [Finding("step", good, more, _BIAS, sentence)]


def _check_curvature(trace: xr.Dataset, llc: float, found: StepBias) -> list[Finding]:
    """Where a sampler is exact only on quadratics: whether L looks like one to its steps."""
    run = settings(trace)
    is_full = run.batch_size is None or run.batch_size == run.n_samples
    if not (run.order and run.order > 1 and math.isfinite(found.turning)):
        return []
    step = run.step_size or math.nan
    noise_step, kick, _ = run.lengths()
    # Momentum that lasts carries a chain past a bend before it feels it. The root is measured: at a
    # kink, the step that makes a tenth of the LLC falls so as friction falls.
    stretch, reach = noise_step / step, 2 * kick / step
    if not is_full and stretch == 1:
        return []
    turning = found.turning if is_full else found.bending
    limit = _TURNING * reach / math.sqrt(stretch)
    tolerance = max(0.25 / stretch, 0.03)
    straight = llc > 0 and 1 / (1 + tolerance) <= found.virial / llc <= 1 + tolerance
    # On a quadratic it is a quarter of eps A for each step that momentum goes on, and a stable step
    # has eps A < 4.
    good = turning <= (reach if straight else limit)
    sentence = f"the gradient changes by {turning:.2g} of itself in a step"
    if not good:
        sentence += (
            f", more than {limit:.2g}, and L is no quadratic, on which alone such steps are exact; "
            f"try step_size {step * limit / 2 / turning:.2g}"
        )
        sentence += " or more friction" if stretch > 1 else ""
    return [Finding("curvature", good, turning, limit, sentence)]


def _check_acceptance(trace: xr.Dataset) -> list[Finding]:
    """Whether a sampler with an accept test takes its proposals: in each chain, after burn-in."""
    if "acceptance" not in trace:
        return []
    run = settings(trace)
    each = trace["acceptance"].isel(step=slice(run.burn_in or 0, None)).values.mean(1)
    worst = float(each.min()) if each.size else math.nan
    low, high = _ACCEPTED
    good = worst >= low
    sentence = f"at least {worst:.3f} of a chain's proposals are accepted"
    step = run.step_size or math.nan
    if not good:
        sentence += f", fewer than {low}: the chains stand still; try step_size {step / 4:.2g}"
    elif worst > high:
        sentence += f": its steps are short, and a step_size of {2 * step:.2g} would move faster"
    return [Finding("acceptance", good, worst, low, sentence)]


def _check_metric(trace: xr.Dataset, tau: float) -> list[Finding]:
    """Whether a running preconditioner changes slowly against the chain.

    The mean loss may forget sooner than the weights do, whose widths it depends on all the same. A
    direction that the localization alone holds forgets in 2 / (epsilon gamma) steps; it counts by
    the share of such directions.
    """
    run = settings(trace)
    decay = trace.attrs.get("config", {}).get("decay")
    limit = _METRIC.get(run.sampler or "")
    if limit is None or run.thin is None or not isinstance(decay, float):
        return []
    memory = 1 / (1 - decay)
    slow = max(tau * run.thin, _relaxation(trace) if run.sampler == "RMSpropSGLD" else 0.0)
    good = not slow > limit * memory
    sentence = f"the preconditioner remembers {memory:.3g} steps, and the chain {slow:.3g}"
    if not good:
        longer = max(decay, 1 - limit / 2 / slow)
        sentence += f": it changes too fast; try decay {longer:.6g}"
    return [Finding("preconditioner", good, slow / memory, limit, sentence)]


def _relaxation(trace: xr.Dataset) -> float:
    """Steps in which directions of the localization forget, times the share of them; 0 unknown."""
    run = settings(trace)
    known = run.step_size, run.localization, run.n_parameters
    if "distance" not in trace or None in known:
        return 0.0
    step, gamma, d = (float(value) for value in known if value is not None)
    share = gamma * float(np.square(trace.distance.values, dtype=np.float64).mean()) / d
    return 2 / (step * gamma) * min(share, 1.0)


def _check_draws(
    trace: xr.Dataset, rhat: float, worst: float, of_mean: float
) -> tuple[Finding, ...]:
    """Whether there are enough draws, of chains that agree; or of weights that leave some."""
    if (weights := weights_of(trace)) is not None:
        return (_check_weights(weights), _check_weighted_draws(weights))
    draws, apiece = trace.sizes["chain"] * trace.sizes["draw"], trace.sizes["draw"]
    mixed, enough = rhat <= _MIXED, of_mean >= _DRAWS and worst >= _DRAWS_OF_WORST
    sentence = f"the largest R-hat is {rhat:.3f}"
    sentence = (
        f"the chains have mixed: {sentence}"
        if mixed
        else (
            f"the chains have not mixed: {sentence}, above {_MIXED}; take more draws or a longer "
            "burn_in"
        )
    )
    wrong = (rhat > _APART or worst < _FEW) and apiece >= _FEW
    worth = (
        f"{draws} draws are worth {of_mean:.0f} independent ones for the mean loss and {worst:.0f} "
        "for the slowest sample"
    )
    if not enough:
        worth += f", fewer than {_DRAWS} or {_DRAWS_OF_WORST}; take more draws, or a larger thin"
    return (
        Finding("mixed", mixed, rhat, _MIXED, sentence, "wrong" if wrong else "wide"),
        Finding("draws", enough, worst, _DRAWS_OF_WORST, worth, "wide"),
    )


def _check_weights(weights: Weights) -> Finding:
    """Whether a few of the weighted draws decide everything."""
    good = weights.khat <= weights.limit
    sentence = f"the weights of the draws have a k-hat of {weights.khat:.2f}"
    if not good:
        sentence += (
            f", above {weights.limit:.2f}: a few draws decide everything; raise localization, "
            "lower n_beta, or use probelib.sample"
        )
    return Finding("weights", good, weights.khat, weights.limit, sentence)


def _check_weighted_draws(weights: Weights) -> Finding:
    good = weights.ess >= _DRAWS
    sentence = f"{weights.values.size} draws are worth {weights.ess:.0f} of equal weight"
    sentence += "" if good else f", fewer than {_DRAWS}; take more draws"
    return Finding("draws", good, weights.ess, _DRAWS, sentence, "wide")


def _check_spread(trace: xr.Dataset) -> list[Finding]:
    """Whether the chains are further from w* than the localization lets them."""
    run = settings(trace)
    if "distance" not in trace or run.localization is None or run.n_parameters is None:
        return []
    series = np.square(trace.distance.values, dtype=np.float64)
    relative = series * run.localization / run.n_parameters
    of_expected = weighted.estimate(relative, weights_of(trace))
    limit = 1.1 * (1 + _widening(run))
    good = of_expected.value - 3 * of_expected.mcse <= limit
    sentence = f"|w - w*|² is {of_expected.value:.3g} of what the localization alone would leave"
    if not good:
        sentence += (
            f", above {limit:.3g}: step_size is too large for the curvature or the gradient noise, "
            "or the loss falls away from w*"
        )
    return [Finding("spread", good, of_expected.value, limit, sentence)]


def _check_arrival(trace: xr.Dataset) -> list[Finding]:
    """Whether the chains, which begin at w*, have reached Eq. 1 in the directions that are slow.

    Under Eq. 1 E[(w - w*)' U'(w)] is the number of weights. Each direction falls short of its part
    by as much as its variance does, and the slowest are those that the data hold least, so that the
    LLC falls short by no more. R-hat does not see it: all chains are equally late.
    """
    run = settings(trace)
    known = run.n_beta, run.localization, run.n_parameters
    if "distance" not in trace or "gradient_along" not in trace or None in known:
        return []
    if trace.attrs.get("preconditioned") or weights_of(trace) is not None:
        return []
    nb, gamma, d = (float(value) for value in known if value is not None)
    along = trace.gradient_along.isel(step=slice(max(1, run.burn_in or 0), None))
    if not along.size:
        return []
    of_gamma = estimate_mean(gamma / d * np.square(trace.distance.values, dtype=np.float64))
    of_data = estimate_mean(nb / d * along.values.astype(np.float64))
    arrived = of_gamma.value + of_data.value
    # Had they arrived, the chains alone would fix a sum of d squares to this.
    error = min(math.hypot(of_gamma.mcse, of_data.mcse), math.sqrt(2 / d / len(trace["chain"])))
    good = not arrived + 3 * error < 1 - _BIAS
    sentence = (
        f"localization and data hold {arrived:.3g} of {d:.0f} directions, of which Eq. 1 has all"
    )
    if not good:
        sentence += ": the chains are still on their way from w*; take a longer burn_in"
        if run.step_size is not None and run.order in (1, 2) and run.noise_step is None:
            sentence += f", {math.ceil(3 / (run.step_size * gamma))} steps or more"
    return [Finding("arrived", good, arrived, 1 - _BIAS, sentence)]


def _check_basin(trace: xr.Dataset, at_center: float, along: float) -> list[Finding]:
    """Whether the losses along the chains still belong to what was trained.

    An LLC above d / 2, that of a regular model, or a network that became worse than guessing on a
    loss that is no quadratic there: a wide Gaussian may do so, and is sampled rightly.
    """
    run = settings(trace)
    if run.n_beta is None or run.n_parameters is None:
        return []
    llc, half = local_learning_coefficient(trace), run.n_parameters / 2
    bias = llc.step_bias if math.isfinite(llc.step_bias) else 0.0
    least = llc.value - bias - 3 * llc.mcse
    guess, virial = trace.attrs.get("guessing_loss"), step_bias(trace).virial
    straight = llc.value > 0 and 0.9 <= virial / llc.value <= 1.1
    forgotten = guess is not None and at_center < guess <= along and not straight
    sentence = f"the mean loss is {at_center:.3g} nats at w* and {along:.3g} along the chains, an "
    sentence += f"LLC of {llc.value:.3g}; a regular model has {half:g}"
    if guess is not None:
        sentence += f", and guessing costs {guess:.3g} nats"
    # A loss that grows like |w| or slower has more: d / alpha, where alpha / 2 is virial over LLC.
    slower = min(1.0, virial / llc.value) if virial > 0 and llc.value > 0 else 1.0
    most = 1.25 * half / max(slower, 0.5)
    good = least <= most and not forgotten
    remedy = "" if good else ": the chains have left w*'s basin; raise localization"
    return [Finding("basin", good, llc.value, most, sentence + remedy)]


def _check_digits(trace: xr.Dataset, mean: np.ndarray) -> Finding:
    """Whether the losses have the digits that their changes need."""
    init = np.abs(trace.init_loss.values).astype(trace.loss.dtype)
    rounding = 4 * float(np.spacing(init).astype(np.float64).mean())
    size = max(abs(float(mean.mean())), float(mean.std()))
    ratio = rounding / size if size else math.inf
    sentence = f"losses of {float(init.mean()):.3g} nats change by {size:.2g}, and are kept to "
    sentence += f"{rounding:.1g}"
    if ratio > _ROUNDING:
        sentence += ": too few digits; use a float64 model, or take a constant off the loss"
    return Finding("digits", ratio <= _ROUNDING, ratio, _ROUNDING, sentence)


__all__ = ["Diagnostics", "Finding", "diagnostics"]
