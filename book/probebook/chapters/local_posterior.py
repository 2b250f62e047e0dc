"""Chapter 01: experiments on models with a known law, what is recorded of them, and the claims."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy.stats import chi2

import probelib
from probebook.chapter import Chapter, Claim
from probebook.samplers import estimate_cells
from probebook.toys import (
    LinearRegression,
    exact_claim,
    mean_and_error,
    path,
    printed_update,
    trace_by_chain,
    with_error,
)
from probelib import Diagnostics, Estimate, Kernel

VERDICTS = ("sound", "not mixed", "step too long")
_SYMBOLS = {"epsilon": "ε", "n beta": "nβ", "gamma": "γ"}


# -- known laws --------------------------------------------------------------------------------


def squared_moves(
    posterior: probelib.LocalPosterior,
    step_size: float,
    batch_size: int | None = None,
    basis: np.ndarray | None = None,
    *,
    chains: int,
    steps: int,
    burn_in: int,
    seed: int,
) -> np.ndarray:
    """(w - w*)² at every step of SGLD, along the columns of a basis: shape (chains, steps, d)."""
    sampler = probelib.SGLD(step_size=step_size, batch_size=batch_size)
    weights = path(posterior, sampler, chains=chains, steps=burn_in + steps, seed=seed)
    moves = weights[:, burn_in:] - posterior.center.numpy()
    return np.square(moves if basis is None else moves @ basis)


def stationary_claims(
    chapter: Chapter,
    far: float,
    far_error: float,
    predicted: np.ndarray,
    by_batch: np.ndarray,
) -> list[Claim]:
    """That the variances by step size and by batch size are those of the chain's own law.

    Args:
        chapter: with ``step_largest`` and the variances recorded.
        far: epsilon A of the largest step.
        far_error: standard error of the variance there, times A.
        predicted: variance at each batch size, shape (k,).
        by_batch: the measured variance and its standard error, shape (k, 2).
    """
    return [
        exact_claim(
            chapter, f"variance over Eq. 1's at εA = {far:g}", "step_variance_ratio",
            1 / (1 - far / 4), far_error, why="the discretised chain's own law",
        ),
        exact_claim(
            chapter, "variance with batch size 1", "batch_1_variance", predicted[0],
            by_batch[0, 1],
        ),
        exact_claim(
            chapter, "variance with batch size 16 of 32", "batch_16_variance", predicted[-2],
            by_batch[-2, 1], why="without replacement",
        ),
    ]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Regression:
    """Linear regression: what chains gave, and the laws that they are held to.

    Attributes:
        model: the regression.
        n_beta: of its posterior.
        gain, kernel, llc, trace_k: measured with the full gradient.
        llc_minibatch: measured with minibatches of ``batch_size``.
        batch_size: of these.
        eq1, chain, noisy_chain: covariance of the weights under Eq. 1, under the chain with the
            full gradient, and under that with minibatches, shape (d, d) each.
    """

    model: LinearRegression
    n_beta: float
    gain: xr.DataArray
    kernel: Kernel
    llc: Estimate
    trace_k: Estimate
    llc_minibatch: Estimate
    batch_size: int
    eq1: np.ndarray
    chain: np.ndarray
    noisy_chain: np.ndarray

    def claims(self, chapter: Chapter) -> list[Claim]:
        """Record everything, and claim that the measured values are the chain's exact ones."""
        exact_gain, exact_kernel = self.model.gain(self.chain), self.model.kernel(self.chain)
        off = np.abs(np.triu(exact_kernel, 1))
        i, j = (int(v) for v in np.unravel_index(off.argmax(), off.shape))
        chapter.record(
            regression_gain_mean=self.gain.values.mean(),
            regression_gain_z_max=np.abs(
                (self.gain.values - exact_gain) / self.gain.mcse.values
            ).max(),
            regression_llc=self.llc.value,
            regression_llc_mcse=self.llc.mcse,
            regression_llc_eq1=self.model.llc(self.n_beta, self.eq1),
            regression_llc_minibatch=self.llc_minibatch.value,
            regression_llc_minibatch_mcse=self.llc_minibatch.mcse,
            regression_llc_minibatch_eq1=self.model.llc(self.n_beta, self.eq1),
            regression_trace_k=self.trace_k.value,
            regression_trace_k_mcse=self.trace_k.mcse,
            regression_trace_k_eq1=np.trace(self.model.kernel(self.eq1)),
            regression_k_pair=self.kernel.covariance([i], [j])[0, 0],
            regression_k_pair_mcse=self.kernel.covariance_mcse([i], [j])[0, 0],
            regression_k_pair_eq1=self.model.kernel(self.eq1)[i, j],
        )
        return [
            exact_claim(
                chapter, "regression: LLC", "regression_llc",
                self.model.llc(self.n_beta, self.chain), self.llc.mcse,
            ),
            exact_claim(
                chapter, f"regression: LLC, minibatches of {self.batch_size}",
                "regression_llc_minibatch", self.model.llc(self.n_beta, self.noisy_chain),
                self.llc_minibatch.mcse,
            ),
            exact_claim(
                chapter, "regression: tr K (nats²)", "regression_trace_k", np.trace(exact_kernel),
                self.trace_k.mcse,
            ),
            exact_claim(
                chapter, "regression: largest off-diagonal K (nats²)", "regression_k_pair",
                exact_kernel[i, j], chapter.numbers["regression_k_pair_mcse"],
            ),
        ]  # fmt: skip


def bias_rows(chapter: Chapter, claims: Sequence[Claim]) -> list[dict[str, str]]:
    """One line of a table per claim of :class:`Regression`; records the bias of the chain."""
    rows = []
    for claim in claims:
        value, error, truth, zero = (
            chapter.numbers[name.format(claim.key)]
            for name in ("{}", "{}_mcse", "exact_{}", "{}_eq1")
        )
        chapter.record(**{f"{claim.key}_bias": truth / zero - 1})
        rows.append(
            {
                "quantity": claim.what.removeprefix("regression: "),
                "measured": with_error(value, error),
                "exact, this chain": f"{truth:.4f}",
                "exact, Eq. 1": f"{zero:.4f}",
                "bias of the chain": f"{truth / zero - 1:+.1%}",
            }
        )
    return rows


def sampler_rows(
    chapter: Chapter,
    traces: Mapping[str, tuple[str, xr.Dataset]],
    eq1: tuple[float, np.ndarray, float],
) -> list[dict[str, str]]:
    """Record what each sampler says of the regression, and give a line of a table each.

    Args:
        chapter: where to.
        traces: ending of the recorded names -> (the sampler in words, its trace).
        eq1: LLC, loss gains and tr K under Eq. 1.
    """
    exact_llc, exact_gain, exact_trace = eq1
    rows = []
    for end, (described, trace) in traces.items():
        gain = float(probelib.loss_gain(trace).values.mean() / exact_gain.mean())
        chapter.record(**{f"regression_gain_over_eq1{end}": gain})
        of_llc = probelib.local_learning_coefficient(trace)
        of_trace = probelib.empirical_variance(trace)
        rows.append(
            {"settings": described}
            | estimate_cells(chapter, f"regression_llc{end}", "LLC", of_llc, ".3f")
            | estimate_cells(chapter, f"regression_trace_k{end}", "tr K", of_trace, ".3f")
            | {"mean gain over Eq. 1's": f"{gain:.3f}"}
        )
    exact = {"settings": "Eq. 1, exact", "LLC": f"{exact_llc:.4f}", "tr K": f"{exact_trace:.4f}"}
    blank = dict.fromkeys(rows[0], "–")
    return [*rows, blank | exact | {"mean gain over Eq. 1's": "1"}]


def unbiased_claims(
    chapter: Chapter, eq1: tuple[float, np.ndarray, float], traces: xr.Dataset
) -> list[Claim]:
    """That Leimkuhler and Matthews' sampler with the full gradient finds Eq. 1's own values.

    Args:
        chapter: where :func:`sampler_rows` recorded its numbers, under the ending ``_unbiased``.
        eq1: LLC, loss gains and tr K under Eq. 1.
        traces: its draws.
    """
    exact_llc, exact_gain, exact_trace = eq1
    gain = probelib.loss_gain(traces)
    chapter.record(
        regression_gain_z_max_unbiased=np.abs((gain.values - exact_gain) / gain.mcse.values).max()
    )
    why = "Eq. 1 itself, at the step size at which SGLD is biased"
    return [
        exact_claim(
            chapter, f"regression, unbiased sampler: {what}", key, truth,
            chapter.numbers[f"{key}_mcse"], why=why,
        )
        for what, key, truth in (
            ("LLC", "regression_llc_unbiased", exact_llc),
            ("tr K (nats²)", "regression_trace_k_unbiased", exact_trace),
        )
    ]  # fmt: skip


def step_rows(
    chapter: Chapter, runs: Mapping[str, Mapping[float, xr.Dataset]]
) -> list[dict[str, str]]:
    """Record the network's LLC by step size and sampler, and give a line of a table per step size.

    Args:
        chapter: where to.
        runs: sampler in words -> step size -> trace; of two samplers, the paper's first.
    """
    rows = []
    for step_size in next(iter(runs.values())):
        row, key = {"ε": f"{step_size:g}"}, f"{step_size:g}".replace(".", "p").replace("-", "m")
        for end, (sampler, by_step) in zip(("", "_unbiased"), runs.items(), strict=True):
            found = probelib.local_learning_coefficient(by_step[step_size])
            row |= estimate_cells(chapter, f"step_{key}_llc{end}", f"LLC, {sampler}", found, ".3g")
        rows.append(row)
    return rows


def gain_claim(weights: int) -> Claim:
    """That no loss gain of the regression lies too far from its exact value."""
    dof = weights * (weights + 1) // 2  # a gain is linear in so many second moments
    limit = float(np.sqrt(chi2.isf(1e-4, dof)))
    return Claim(
        "regression: farthest loss gain, in standard errors", "regression_gain_z_max",
        "no bias", 0, float(f"{limit:.3g}"), ".2f",
        f"root of the chi-squared quantile with {dof} degrees of freedom at 1 in 10,000",
        must=True,
    )  # fmt: skip


# -- the errata --------------------------------------------------------------------------------


def localization_claims(
    chapter: Chapter, gamma: float, error: float
) -> tuple[list[Claim], list[Claim]]:
    """Erratum 1: what the variance of a weight without data must be, and what is printed.

    Args:
        chapter: with ``erratum1_variance`` recorded.
        gamma: of the run that it is from.
        error: standard error of the variance.
    """
    exact = exact_claim(
        chapter, "variance × γ without data", "erratum1_variance_times_gamma", 1 / 0.95,
        error * gamma,
    )  # fmt: skip
    printed = Claim(
        f"erratum 1: variance of a weight at γ = {gamma:g}", "erratum1_variance", "γ = 30",
        28.4, 31.6, ".4f", "30 ± 5 %, the bias of the step; measured is 1/γ: γ is a precision",
    )  # fmt: skip
    return [exact], [printed]


@dataclass(frozen=True, eq=False)
class Temperatures:
    """Erratum 2: total variance of the weights at several nb, by both updates.

    Attributes:
        n_beta: shape (k,).
        step_size: epsilon of each.
        ours: measured with :class:`probelib.SGLD`, shape (k,).
        printed, printed_error: measured with the update as printed, and its standard error.
        eq1: under Eq. 1.
    """

    n_beta: np.ndarray
    step_size: np.ndarray
    ours: np.ndarray
    printed: np.ndarray
    printed_error: np.ndarray
    eq1: np.ndarray

    def record(self, chapter: Chapter, at: int = 1) -> None:
        """Record the variances at one nb, over that of Eq. 1."""
        chapter.record(
            erratum2_n_beta=self.n_beta[at],
            erratum2_ours_over_eq1=self.ours[at] / self.eq1[at],
            erratum2_printed_over_eq1=self.printed[at] / self.eq1[at],
            erratum2_printed_over_eq1_error=self.printed_error[at] / self.eq1[at],
        )

    def claims(
        self, chapter: Chapter, printed_law: float, at: int = 1
    ) -> tuple[list[Claim], list[Claim]]:
        """What the printed update's variance must be, and what it should be if it were right.

        Args:
            chapter: where ``printed_variance_ratio`` is recorded.
            printed_law: exact variance of the printed update.
            at: position of the nb that is looked at.
        """
        error = self.printed_error[at] / self.eq1[at]
        exact = exact_claim(
            chapter, f"printed update: variance over Eq. 1's at nβ = {self.n_beta[at]:g}",
            "printed_variance_ratio", printed_law / self.eq1[at], error,
            why="exact law of Eq. 7 as printed: the experiment is right",
        )  # fmt: skip
        room = 4 * error + 0.081
        printed = Claim(
            f"erratum 2: variance of the printed update over Eq. 1's at nβ = {self.n_beta[at]:g}",
            "erratum2_printed_over_eq1", "1",
            float(f"{1 - room:.3g}"), float(f"{1 + room:.3g}"), ".3f",
            "within 4 standard errors and 8 %, the bias of the step; the rest is the missing β",
        )  # fmt: skip
        return [exact], [printed]


def both_updates(
    regression: LinearRegression,
    temperatures: np.ndarray,
    localization: float,
    *,
    chains: int,
    steps: int,
    burn_in: int,
    seed: int,
) -> Temperatures:
    """Run SGLD and the update as Eq. 7 prints it, at each nb, with steps that suit both.

    Args:
        regression: the model.
        temperatures: nb, shape (k,).
        localization: gamma.
        chains, steps, burn_in, seed: of both.
    """
    largest = np.linalg.eigh(regression.hessian)[0][-1]
    n = len(regression.y)
    step_sizes = 0.3 / (np.maximum(temperatures, n) * largest + localization)
    settings = {"chains": chains, "burn_in": burn_in}
    ours, printed, errors = (np.empty(len(temperatures)) for _ in range(3))
    for k, (n_beta, step_size) in enumerate(zip(temperatures, step_sizes, strict=True)):
        posterior = probelib.LocalPosterior(
            regression.model, probelib.squared_error, regression.data, n_beta=n_beta,
            localization=localization,
        )  # fmt: skip
        squares = squared_moves(posterior, step_size, steps=steps, seed=seed, **settings)
        ours[k], _ = mean_and_error(squares.sum(-1))
        path = printed_update(
            posterior, step_size=step_size, chains=chains, steps=burn_in + steps, seed=seed + 1
        )
        moves = path[:, burn_in:] - regression.center
        printed[k], errors[k] = mean_and_error(np.square(moves).sum(-1))
    eq1 = [np.trace(regression.covariance(t, localization)) for t in temperatures]
    return Temperatures(temperatures, step_sizes, ours, printed, errors, np.array(eq1))


@dataclass(frozen=True, eq=False)
class ShortChains:
    """Erratum 6: the estimate of tr K from single short chains, over the exact one.

    Attributes:
        draws: of each chain, shape (k,).
        ratio, error: mean over the chains, and its standard error.
        expected, ess: what theory gives for both.
    """

    draws: np.ndarray
    ratio: np.ndarray
    error: np.ndarray
    expected: np.ndarray
    ess: np.ndarray

    def record(self, chapter: Chapter, pooled: Estimate, truth: float, at: int = 2) -> None:
        """Record one length, and what all chains give together.

        Args:
            chapter: where to.
            pooled: tr K from all chains at once.
            truth: the exact tr K.
            at: position of the length.
        """
        chapter.record(
            erratum6_draws=int(self.draws[at]),
            erratum6_ess=self.ess[at],
            erratum6_ratio=self.ratio[at],
            erratum6_ratio_error=self.error[at],
            erratum6_z_max=np.abs((self.ratio - self.expected) / self.error).max(),
            erratum6_pooled_ratio=pooled.value / truth,
            erratum6_pooled_ratio_mcse=pooled.mcse / truth,
        )

    def claim(self, at: int = 2) -> Claim:
        """That the estimate is unbiased, as printed."""
        return Claim(
            f"erratum 6: mean of tr K̂ / tr K from {self.draws[at]} draws", "erratum6_ratio",
            "1 (unbiased)", float(f"{1 - 4 * self.error[at]:.3g}"),
            float(f"{1 + 4 * self.error[at]:.3g}"), ".3f",
            f"within 4 standard errors; exact expectation {self.expected[at]:.3f}",
        )  # fmt: skip


def short_chains(
    trace: xr.Dataset, draws: np.ndarray, truth: float, theory: Callable
) -> ShortChains:
    """Estimate tr K from the first draws of each chain alone.

    Args:
        trace: of stationary chains.
        draws: how many, shape (k,).
        truth: the exact tr K.
        theory: draws -> (expected ratio, ESS), as
            :meth:`probebook.toys.LinearRegression.expected_trace_ratio`.
    """
    ratios = np.array([trace_by_chain(trace, int(t)) for t in draws]) / truth
    expected, ess = np.array([theory(int(t)) for t in draws]).T
    error = ratios.std(1, ddof=1) / np.sqrt(trace.sizes["chain"])
    return ShortChains(draws, ratios.mean(1), error, expected, ess)


# -- the small network -------------------------------------------------------------------------


def network_rows(
    chapter: Chapter,
    runs: Mapping[str, xr.Dataset],
    looks: Mapping[str, Diagnostics],
    stiffness: Mapping[str, float],
    keys: Sequence[str],
    thin: int,
) -> list[dict[str, str]]:
    """Record runs on the network, and give a line of a table each.

    Args:
        chapter: where to.
        runs, looks, stiffness: settings -> trace, its diagnostics, epsilon A_max.
        keys: of the settings in what is recorded, in the same order.
        thin: steps per draw.
    """
    rows = []
    for key, name in zip(keys, runs, strict=True):
        look, estimate = looks[name], probelib.local_learning_coefficient(runs[name])
        chapter.record(
            **{
                f"network_{key}_rhat_max": look.rhat_max,
                f"network_{key}_ess_min": look.ess_min,
                f"network_{key}_loss": look.loss_along_chains,
                f"network_{key}_loss_at_center": look.loss_at_center,
                f"network_{key}_autocorrelation_steps": look.autocorrelation_time * thin,
                f"network_{key}_distance": look.distance,
                f"network_{key}_stiffness": stiffness[name],
            }
        )
        rows.append(
            {
                "settings": name,
                "largest R-hat": f"{look.rhat_max:.3f}",
                "least ESS": f"{look.ess_min:.0f}",
                "autocorrelation time (steps)": f"{look.autocorrelation_time * thin:.0f}",
                "ε A_max": f"{stiffness[name]:.2f}",
                "loss at w*": f"{look.loss_at_center:.3f}",
                "along the chains": f"{look.loss_along_chains:.3f}",
                "distance": f"{look.distance:.2f}",
            }
            | estimate_cells(chapter, f"network_{key}_llc", "LLC", estimate, ".3g")
        )
    return rows


@dataclass(frozen=True, eq=False)
class Setting:
    """A run with one setting changed.

    Attributes:
        knob, value: the setting, and what it is now.
        llc: estimated.
        look: diagnostics.
        stiffness: epsilon A_max.
        forgetting: 2 / (epsilon gamma), relaxation time of a flat direction in steps.
    """

    knob: str
    value: float
    llc: Estimate
    look: Diagnostics
    stiffness: float
    forgetting: float

    @property
    def verdict(self) -> str:
        """One of :data:`VERDICTS`."""
        if self.stiffness > 1:
            return "step too long"
        return "not mixed" if self.look.rhat_max > 1.1 else "sound"

    def row(self, chapter: Chapter) -> dict[str, str]:
        """Record everything under the name of knob and value, and give a line of a table."""
        name = f"{self.knob.replace(' ', '_')}_{self.value:g}".replace(".", "p").replace("-", "m")
        chapter.record(
            **{
                f"sweep_{name}_rhat_max": self.look.rhat_max,
                f"sweep_{name}_ess_min": self.look.ess_min,
                f"sweep_{name}_distance": self.look.distance,
                f"sweep_{name}_stiffness": self.stiffness,
                f"sweep_{name}_forgetting": self.forgetting,
                f"sweep_{name}_verdict": self.verdict,
            }
        )
        cells = estimate_cells(chapter, f"sweep_{name}_llc", "LLC", self.llc, ".3g")
        return {
            "changed": _SYMBOLS[self.knob],
            "to": f"{self.value:g}",
            "ε A_max": f"{self.stiffness:.2f}",
            "2 / (ε γ)": f"{self.forgetting:.0f}",
            "largest R-hat": f"{self.look.rhat_max:.3f}",
            "least ESS": f"{self.look.ess_min:.0f}",
            **cells,
            "distance": f"{self.look.distance:.2f}",
            "verdict": self.verdict,
        }


def sweep_panels(points: Sequence[Setting]) -> dict[str, list[np.ndarray]]:
    """What :func:`probebook.figures.sweeps` draws: knob -> values, LLC, error, ESS, verdict."""
    labels = {"epsilon": r"$\epsilon$", "n beta": r"$n\beta$", "gamma": r"$\gamma$"}
    panels = {}
    for knob, label in labels.items():
        columns = [
            (p.value, p.llc.value, p.llc.mcse, p.look.ess_min, p.verdict)
            for p in points
            if p.knob == knob
        ]
        panels[label] = [np.array(column) for column in zip(*columns, strict=True)]
    return panels


__all__ = [
    "VERDICTS",
    "Regression",
    "Setting",
    "ShortChains",
    "Temperatures",
    "bias_rows",
    "both_updates",
    "gain_claim",
    "localization_claims",
    "network_rows",
    "sampler_rows",
    "short_chains",
    "squared_moves",
    "stationary_claims",
    "step_rows",
    "sweep_panels",
    "unbiased_claims",
]
