"""The search for settings, stage by stage: localization, step, length."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from probelib.calibration.curvature import largest_curvature
from probelib.calibration.localization import choose_localization, losses_at
from probelib.calibration.result import Calibration, CalibrationRefused, Evidence
from probelib.chains import Chains
from probelib.data import Samples
from probelib.estimators.diagnostics import Diagnostics, Finding, diagnostics
from probelib.estimators.llc import local_learning_coefficient, mean_loss_change
from probelib.estimators.series import ess_of_mean
from probelib.estimators.step_bias import relative_step_bias, step_bias
from probelib.gradients import Batch
from probelib.guessing import guessing_loss
from probelib.plan import Plan, Run
from probelib.posterior import LocalPosterior
from probelib.randomness import around
from probelib.samplers import LeimkuhlerMatthews
from probelib.schedule import cost_of_pass, step_cost

if TYPE_CHECKING:
    import xarray as xr

#: Samples that the localization and the pilot runs look at, and that a curvature is taken of.
_LOOKED_AT, _CURVED = 1000, 256
#: Of the step size: its product with the largest precision; the part of the LLC that it may make
#: (at most, as the diagnostics count it), and the part that is aimed at.
_STABLE, _BIAS, _AIM = 1.0, 0.05, 0.02
#: Chains of each short run, however many the run will have: fewer show too little.
_CHAINS = 4
#: Rounds in which a step size has to be found, and steps of each, burn-in included.
_ROUNDS, _STEPS = 10, 150
#: How often the step is made shorter where L bends within it.
_SHORTER = 6
#: Relaxation times of burn-in; steps of the last pilot run in autocorrelation times of the mean
#: loss, and at least.
_BURN_IN, _PILOT, FEWEST_STEPS = 4, 30, 300
#: Independent draws of the mean loss, and of the slowest of the samples looked at.
_DRAWS, _DRAWS_OF_WORST = 400, 200
# What a step costs beside its gradient: operations per weight, and what calls cost, as many as a
# core does in about a millisecond.
_FLOPS_A_WEIGHT, _FLOPS_A_STEP = 600.0, 5e7


class Search:
    """The search for settings, stage by stage; ``evidence`` is what was found so far."""

    def __init__(
        self,
        posterior: LocalPosterior,
        observed: int,
        error: float,
        kept: float,
        chains: int,
        max_steps: int,
        seed: int,
    ):
        self.posterior, self.n_observed, self.error, self.kept = posterior, observed, error, kept
        self.chains, self.max_steps, self.seed = chains, max_steps, seed
        self.evidence: list[Evidence] = []
        n = posterior.n_samples
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(3,)))
        index = np.sort(rng.choice(n, min(n, _LOOKED_AT), replace=False))
        self.some: Batch = posterior.data.batch(index)
        few = posterior.data.batch(index[:4])
        self.cost = cost_of_pass(lambda x, y: posterior.losses(posterior.center, x, y), *few)

    def run(self) -> Calibration:
        self._require_trained()
        step_size, batch_size = self._step()
        return self._sized(step_size, batch_size)

    def note(self, name: str, value: float, sentence: str) -> None:
        self.evidence = [one for one in self.evidence if one.name != name]
        self.evidence.append(Evidence(name, float(value), sentence))

    def refuse(self, message: str) -> CalibrationRefused:
        return CalibrationRefused(message, tuple(self.evidence))

    # --- the localization ---

    def _require_trained(self) -> None:
        """Refuse a network that knows nothing, and find a localization where there is none."""
        posterior = self.posterior
        at_center = float(losses_at(posterior, posterior.center, self.some).mean())
        guess = guessing_loss(posterior, _samples(posterior, self.some))
        if guess is not None:
            self.note(
                "trained",
                at_center,
                f"the mean loss at w* is {at_center:.3g} nats, and guessing costs {guess:.3g}",
            )
            if at_center >= guess and at_center != 0:
                raise self.refuse(
                    f"posterior has a mean loss of {at_center:.3g} nats at w*, and guessing costs "
                    f"{guess:.3g}: nothing was learned that could be probed; train the model first"
                )
        if posterior.is_localized:
            return
        if guess is None or guess <= at_center:
            raise self.refuse(
                "posterior has localization None, and none can be found: it is not known what "
                "guessing costs with this loss, so nor what draws keep of what was learned; give "
                "a localization"
            )
        try:
            best, *others = choose_localization(posterior, self.some, guess, self.kept, self.seed)
        except ValueError as error:
            raise self.refuse(str(error)) from error
        gamma = best.localization
        smaller = any(one.localization < gamma for one in others)
        below = f"the next smaller keeps less than {self.kept:g}" if smaller else "none was smaller"
        self.posterior = posterior.at(localization=gamma)
        self.note(
            "localization",
            gamma,
            f"localization {gamma:g}: draws of its Gaussian have a mean loss of {best.loss:.3g} "
            f"nats, and keep {best.share:.3f} ± {best.error:.3f} of what was learned; {below}",
        )

    # --- the step ---

    def _step(self) -> tuple[float, int | None]:
        """The longest step whose bias is small enough, and the batch size that goes with it."""
        gamma, nb = self.posterior.localization, self.posterior.n_beta
        batch_size, looked = self._free_batch(), ""
        weights = next(around(self.posterior.center, gamma, 1, self.seed))
        curvature = self._curvature(Chains(self._run_of(1.0, batch_size, _STEPS, 1)), weights)
        step_size = _two_digits(_STABLE / (nb * curvature + gamma))
        for _ in range(_ROUNDS):
            found = self._pilot(step_size, batch_size, burn_in=_STEPS // 3, draws=_STEPS * 2 // 3)
            if found is None:
                looked = f"at step_size {step_size:g} chains diverge"
                step_size = _two_digits(step_size / 4)
                continue
            trace, chains = found
            curvature = max(self._curvature(chains, w) for w in chains.weights[:2])
            part = self._bias_of_step(trace, batch_size)
            stable = _STABLE / (nb * curvature + gamma)
            by_noise = step_size * _AIM / part if part > 0 else math.inf
            longest, size = self._best(stable, by_noise, batch_size)
            if part <= _BIAS and size == batch_size and 0.6 <= longest / step_size <= 1.7:
                self._note_step(step_size, nb * curvature + gamma, curvature)
                return step_size, batch_size
            looked = (
                f"step_size {step_size:g} makes {part:.1%} of the LLC, where at most {_BIAS:.0%}"
            )
            looked += f" may be, and {longest:.2g} would suit what was seen there"
            step_size, batch_size = _two_digits(min(longest, 4 * step_size)), size
        raise self.refuse(
            f"posterior lets no step settle in {_ROUNDS} short runs: {looked}; raise localization, "
            "or lower n_beta"
        )

    def _bias_of_step(self, trace: xr.Dataset, batch_size: int | None) -> float:
        """The part of the LLC that the step may have made; 1 where there is no LLC to speak of."""
        part = relative_step_bias(trace, local_learning_coefficient(trace).value, limit=True)
        if math.isfinite(part):
            return part
        self._require_sound(diagnostics(trace))  # w* may be no minimum
        return 1.0 if batch_size is not None else 0.0

    def _note_step(self, step_size: float, largest: float, curvature: float) -> None:
        self.note(
            "curvature",
            curvature,
            f"step_size {step_size:g}: the largest curvature along the chains is {curvature:.3g}, "
            f"and the largest precision {largest:.3g}, of which the localization is "
            f"{self.posterior.localization:g}; their product is {step_size * largest:.2g}, and "
            "below 4 the step is stable",
        )

    def _free_batch(self) -> int | None:
        """The batch whose gradient costs what the rest of a step does; None for all samples."""
        n, flops = self.posterior.n_samples, max(self.cost.flops, 2.0)
        free = (_FLOPS_A_WEIGHT * self.posterior.n_parameters + _FLOPS_A_STEP) / (3 * flops)
        if free >= n / 2:
            return None
        return int(2 ** round(math.log2(max(free, 16))))

    def _best(
        self, stable: float, by_noise: float, batch_size: int | None
    ) -> tuple[float, int | None]:
        """The step and the batch that get furthest for the operations of a step."""
        if batch_size is None:
            return min(stable, by_noise), None
        n, flops = self.posterior.n_samples, max(self.cost.flops, 2.0)
        rest = _FLOPS_A_WEIGHT * self.posterior.n_parameters + _FLOPS_A_STEP
        sizes = [2**k for k in range(4, 20) if 2**k <= n / 2] + [n]

        def step(size: int) -> float:
            return min(stable, by_noise * size / batch_size) if size < n else stable

        def pace(size: int) -> float:
            return step(size) / (3 * size * flops + rest)

        best = max(sizes, key=pace)
        if pace(best) < 2 * pace(batch_size):  # little to gain, and noise in what was measured
            best = batch_size
        return step(best), None if best == n else best

    def _curvature(self, chains: Chains, weights: Any) -> float:
        n = len(chains.data)
        batch = chains.data.batch(np.unique(np.linspace(0, n - 1, min(n, _CURVED), dtype=int)))
        return largest_curvature(
            lambda w: chains.gradient_at(w, *batch)[0],
            weights,
            reach=self.posterior.localization**-0.5,
            seed=self.seed,
        )

    # --- short runs ---

    def _run_of(
        self, step_size: float, batch_size: int | None, burn_in: int, draws: int, thin: int = 1
    ) -> Run:
        sampler = LeimkuhlerMatthews(step_size, batch_size)
        plan = Plan(chains=_CHAINS, draws=draws, burn_in=burn_in, thin=thin, seed=self.seed)
        return Run.of(self.posterior, self.some, sampler, plan)

    def _pilot(
        self, step_size: float, batch_size: int | None, burn_in: int, draws: int, thin: int = 1
    ) -> tuple[xr.Dataset, Chains] | None:
        """A short run and its chains; None if one of them diverged."""
        from probelib.run import DivergenceError, rehearsed  # which calls this module

        try:
            found = rehearsed(self._run_of(step_size, batch_size, burn_in, draws, thin))
        except DivergenceError:
            return None
        return None if found[0].attrs["diverged"] else found

    # --- how long ---

    def _sized(self, step_size: float, batch_size: int | None, shorter: int = 0) -> Calibration:
        """Burn-in, thinning and draws, by a longer run at that step, or at one that is shorter."""
        gamma = self.posterior.localization
        relaxation = 2 / (step_size * gamma)
        burn_in = max(_STEPS // 3, math.ceil(_BURN_IN * relaxation))
        if burn_in > self.max_steps / 2:
            raise self.refuse(
                f"max_steps is {self.max_steps}, but burn-in alone takes {burn_in} steps, as the "
                f"localization relaxes in {relaxation:.3g}; raise localization (now {gamma:g}), "
                "lower n_beta, or raise max_steps"
            )
        self.note(
            "relaxation",
            relaxation,
            f"burn_in {burn_in}: a direction that only the localization holds relaxes in "
            f"{relaxation:.3g} steps",
        )
        trace, chains, tau, slowest = self._long_pilot(step_size, batch_size, burn_in, relaxation)
        bent = _finding(diagnostics(trace), "curvature")
        if bent is not None and not bent.good and shorter < _SHORTER:
            part = min(0.5, bent.limit / bent.value / 2)
            return self._sized(_two_digits(step_size * part), batch_size, shorter + 1)
        if shorter and bent is not None:
            self.note(
                "bending",
                bent.value,
                f"step_size {step_size:g} after all: L is no quadratic, and only in so short a "
                f"step its gradient changes by no more than {bent.value:.2g} of itself",
            )
        self._require_sound(diagnostics(trace))
        self._note_tilt(trace)
        return self._counted(trace, chains, step_size, batch_size, burn_in, tau, slowest)

    def _long_pilot(
        self, step_size: float, batch_size: int | None, burn_in: int, relaxation: float
    ) -> tuple[xr.Dataset, Chains, float, float]:
        """A run until its chains agree, and the times of its mean loss and slowest sample."""
        steps = min(max(FEWEST_STEPS, math.ceil(10 * relaxation)), 2000)
        while True:
            thin = max(1, steps // 400)
            draws = steps // thin
            found = self._pilot(step_size, batch_size, burn_in, draws, thin)
            if found is None:
                raise self.refuse(
                    f"posterior has chains that diverge at step_size {step_size:.3g} after a while;"
                    " raise localization"
                )
            trace, chains = found
            tau, slowest = _times(trace, thin)
            mixed = _finding(diagnostics(trace), "mixed")
            assert mixed is not None  # chains always have one
            if steps >= _PILOT * tau and mixed.good:
                break
            if steps * 2 + burn_in > self.max_steps / 2:
                break
            steps *= 2
        if not mixed.good:
            raise self.refuse(
                f"max_steps is {self.max_steps}, but after {burn_in + steps} steps chains from the "
                f"same w* still differ, with an R-hat of {mixed.value:.2f}; raise localization "
                f"(now {self.posterior.localization:g}), lower n_beta, or raise max_steps"
            )
        self.note(
            "mixed",
            mixed.value,
            f"chains of {steps} steps agree: their largest R-hat is {mixed.value:.3f}",
        )
        return trace, chains, tau, slowest

    def _note_tilt(self, trace: xr.Dataset) -> None:
        """How far the data tilt the Gaussian that the localization alone would give."""
        held, d = 2 * step_bias(trace).virial, self.posterior.n_parameters
        self.note(
            "tilt",
            held,
            f"the data hold {held:.3g} of {d:,} directions, and the localization the others",
        )

    def _require_sound(self, found: Diagnostics) -> None:
        """Refuse what speaks against the numbers of a run, other than that it was short."""
        for one in found.findings:
            if not one.good and one.kind == "wrong" and one.name not in ("mixed", "draws"):
                raise self.refuse(f"posterior cannot be sampled as it is: {one.sentence}")

    def _draws(
        self, spread: float, batch_size: int | None, tau: float, slowest: float
    ) -> tuple[int, int, float]:
        """Thinning, draws of each chain, and what a step costs of an observation.

        Args:
            spread: standard deviation of the LLC from draw to draw, as a part of it.
            batch_size: of the steps.
            tau, slowest: autocorrelation times, in steps.
        """
        posterior = self.posterior
        cost = step_cost(
            self.cost,
            observed=self.n_observed,
            batch=batch_size or posterior.n_samples,
            gradients=1,
            weights=posterior.n_parameters,
        )
        thin = _best_thin(tau, cost)
        of_mean = max((spread / self.error) ** 2, _DRAWS) * _thinned(tau, thin)
        of_worst = _DRAWS_OF_WORST * _thinned(slowest, thin)
        return thin, math.ceil(max(of_mean, of_worst) / self.chains), cost

    def _counted(
        self,
        trace: xr.Dataset,
        chains: Chains,
        step_size: float,
        batch_size: int | None,
        burn_in: int,
        tau: float,
        slowest: float,
    ) -> Calibration:
        posterior, n = self.posterior, self.n_observed
        llc = local_learning_coefficient(trace)
        series = posterior.n_beta * mean_loss_change(trace)
        spread = float(series.std())
        if not llc.value > 0:
            raise self.refuse(
                f"posterior has an LLC of {llc.value:.3g} ± {llc.mcse:.2g} in a short run, and no "
                "error is a part of that; train the model further, or raise localization"
            )
        thin, draws, cost = self._draws(spread / llc.value, batch_size, tau, slowest)
        steps = burn_in + draws * thin
        if steps > self.max_steps:
            raise self.refuse(
                f"max_steps is {self.max_steps}, but a relative error of {self.error:g} takes "
                f"{steps} steps a chain: losses decorrelate in {tau:.3g} to {slowest:.3g}; raise "
                "error, localization or max_steps"
            )
        part = self._bias_of_step(trace, batch_size)
        if part > _BIAS:
            raise self.refuse(
                f"posterior has a step bias of {part:.1%} of its LLC at step_size {step_size:.3g}, "
                "more than short runs had told; raise localization, or lower n_beta"
            )
        self.note("step_bias", part, f"the step makes {part:.1%} of the LLC or less")
        if batch_size is not None:
            noise = step_bias(trace).noise / llc.value
            self.note(
                "gradient_noise",
                noise,
                f"of that, {noise:.1%} come from the noise of batches of {batch_size}",
            )
        self.note(
            "autocorrelation_time",
            tau,
            f"thin {thin}: the mean loss decorrelates in {tau:.3g} steps, the slowest sample in "
            f"{slowest:.3g}, and a step costs {cost:.2g} of an observation",
        )
        self.note(
            "draws",
            draws,
            f"draws {draws} in each of {self.chains} chains: the LLC is {llc.value:.3g} ± "
            f"{llc.mcse:.2g} in a short run, and varies by {spread:.2g} from draw to draw",
        )
        a_step, a_draw = _speeds(chains)
        per_draw = a_draw * n / len(chains.observed)
        return Calibration(
            posterior,
            LeimkuhlerMatthews(step_size, batch_size),
            self.chains,
            draws,
            burn_in,
            thin,
            self.error,
            llc.value,
            llc.mcse,
            part,
            tuple(self.evidence),
            seconds_of_run=steps * a_step + draws * per_draw,
        )


def _finding(found: Diagnostics, name: str) -> Finding | None:
    return next((one for one in found.findings if one.name == name), None)


def _samples(posterior: LocalPosterior, some: Batch) -> Samples:
    return Samples(some, posterior.device, "posterior")


def _two_digits(value: float) -> float:
    """Rounded down to two digits: nobody needs more, and rounding errors do not show."""
    digits = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.floor(value / digits * (1 + 1e-9)) * digits:.2g}")


def _times(trace: xr.Dataset, thin: int) -> tuple[float, float]:
    """Autocorrelation times in steps: of the mean loss, and of the slowest of the samples."""
    losses = trace.loss.values[..., :256].astype(np.float64)
    series = np.concatenate([mean_loss_change(trace)[..., None], losses], -1)
    count = series.shape[0] * series.shape[1]
    moving = np.ptp(series, axis=(0, 1)) > 0
    times = np.where(moving, count / ess_of_mean(series), 1.0) * thin
    return float(max(times[0], 1.0)), float(np.quantile(times, 0.99))


def _thinned(tau: float, thin: int) -> float:
    """The autocorrelation time in draws, of every so many steps, as of a series of order one."""
    rho = max((tau - 1) / (tau + 1), 0.0) ** thin
    return (1 + rho) / (1 - rho)


def _best_thin(tau: float, cost: float) -> int:
    """The thinning that takes the least time to an error; a step costs ``cost`` of a draw."""
    thins = np.unique(np.geomspace(1, max(2 * tau, 2), 40).astype(int))
    return int(min(thins, key=lambda k: (1 + cost * k) * _thinned(tau, int(k))))


def _speeds(chains: Chains) -> tuple[float, float]:
    """Seconds of a step, and of an observation, of all chains."""
    started = time.perf_counter()
    for _ in range(5):
        chains.advance()
    between = time.perf_counter()
    chains.observe()
    return (between - started) / 5, time.perf_counter() - between


__all__ = ["FEWEST_STEPS", "Search"]
