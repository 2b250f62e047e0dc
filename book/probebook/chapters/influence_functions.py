"""Chapter 07: what is recorded of expansions, singular models, retraining and MNIST; the claims."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

import probelib
from probebook import retraining
from probebook.alignment import spearman
from probebook.chapter import Chapter, Claim
from probelib import Kernel

Rows = list[dict[str, object]]
# Names of the predictions of retraining -> names of their numbers.
PREDICTIONS = {
    "βK, SGLD, nβ = 12": "bayesian_nb_12",
    "βK, SGLD, nβ = 120": "bayesian_nb_120",
    "βK, SGLD, nβ = 1200": "bayesian",
    "βK, unbiased sampler, nβ = 1200": "unbiased",
    "R, SGLD, nβ = 1200": "normalised",
    "βK, weighted draws, nβ = 12000": "weighted_nb_12000",
    "−I/n, δ = 0": "classical",
    "−I/n, δ = 0.001": "classical_0p001",
    "−I/n, δ = 0.01": "classical_0p01",
    "−I/n, δ = 0.1": "classical_0p1",
    "−I/n, δ = 1": "classical_1",
    "inner product of gradients": "inner",
    "cosine of gradients": "cosine",
}


def halves_agreement(trace: xr.Dataset) -> float:
    """Spearman's rank correlation between the kernels of two halves of the chains."""
    half = trace.sizes["chain"] // 2
    halves = trace.isel(chain=slice(half)), trace.isel(chain=slice(half, None))
    return spearman(*(probelib.loss_kernel(part).covariance() for part in halves))


def word(found: probelib.Diagnostics) -> str:
    """The verdict on a trace in one word: sound, wide or wrong."""
    return "sound" if found.good else "wrong" if found.wrong else "wide"


# -- the Laplace regime ------------------------------------------------------------------------


def error_budget(
    posterior: probelib.LocalPosterior,
    first: np.ndarray,
    truth: np.ndarray,
    kernel: Kernel,
    step_size: float,
) -> tuple[float, float, float, float]:
    """Relative errors of the first-order kernel, and of a sampled one, by cause.

    Args:
        posterior: of the chain.
        first: the first-order kernel g'Sg.
        truth: the kernel by quadrature.
        kernel: the sampled one.
        step_size: of the chain.

    Returns:
        Error of the expansion; of the step size, to leading order: the first-order kernel with the
        chain's own covariance [A (1 - epsilon A / 4)]^-1; Monte-Carlo error; and the distance of
        the first-order kernel from the sampled one.
    """
    gradients = probelib.influence.per_sample_gradients(posterior)
    precision = np.linalg.inv(probelib.influence.laplace_covariance(posterior))
    of_chain = np.linalg.inv(precision @ (np.eye(len(precision)) - step_size / 4 * precision))
    everyone, size = np.arange(len(first)), np.linalg.norm(truth)
    return (
        retraining.relative_error(first, truth),
        np.linalg.norm(gradients @ of_chain @ gradients.T - first) / size,
        np.linalg.norm(kernel.covariance_mcse(everyone, everyone)) / size,
        retraining.relative_error(first, kernel.covariance()),
    )


def order_rows(
    chapter: Chapter,
    n_beta: np.ndarray,
    errors: Mapping[str, Mapping[str, np.ndarray]],
    distance: np.ndarray,
) -> Rows:
    """Record the orders in which errors fall with nb, and give a line of a table an expansion.

    Args:
        chapter: where to.
        n_beta: shape (k,).
        errors: law -> expansion -> relative error, shape (data sets, k): the posterior first, then
            the Gaussian; first order, with the trace term, all of the next order.
        distance: total variation of the two laws, shape (data sets, k).
    """
    tail = slice(3, None)  # the upper half of the n beta: closer to the limit
    rows = []
    for (law, by_kind), suffix in zip(errors.items(), ("", "_gaussian"), strict=True):
        for (kind, error), key in zip(by_kind.items(), ("first", "second", "next"), strict=True):
            slope, half = retraining.order(n_beta[tail], error[:, tail])
            name = f"laplace_order_{key}{suffix}"
            chapter.record(
                **{name: slope, f"{name}_low": slope - half, f"{name}_high": slope + half},
                **{f"{name}_half": half, f"{name}_error_largest": error[:, -1].mean()},
            )
            rows.append(
                {
                    "law": law,
                    "expansion": kind,
                    "order in 1/nβ": f"{slope:.3f} ± {half:.3f}",
                    "theory": 2 if key == "next" else 1,
                    "relative error at the largest nβ": f"{error[:, -1].mean():.2e}",
                }
            )
    first = next(iter(next(iter(errors.values())).values()))
    tv_order, tv_half = retraining.order(n_beta[tail], distance[:, tail])
    chapter.record(
        laplace_n_beta_largest=n_beta[-1],
        laplace_relative_error=first[:, -1].mean(),
        laplace_relative_error_low=first[:, -1].min(),
        laplace_relative_error_high=first[:, -1].max(),
        laplace_relative_error_smallest=first[:, 0].mean(),
        tv_order=tv_order,
        tv_order_low=tv_order - tv_half,
        tv_order_high=tv_order + tv_half,
        tv_largest=distance[:, -1].mean(),
    )
    return rows


def budget_rows(
    chapter: Chapter, n_beta: np.ndarray, budget: Sequence[tuple[float, float, float, float]]
) -> Rows:
    """Record the results of :func:`error_budget` at each nb, and give a line of a table each."""
    rows = []
    for at, (expansion, step, mcse, total) in zip(n_beta, budget, strict=True):
        chapter.record(
            **{
                f"budget_{at:.0f}_expansion": expansion,
                f"budget_{at:.0f}_step": step,
                f"budget_{at:.0f}_mcse": mcse,
                f"budget_{at:.0f}_total": total,
            }
        )
        rows.append(
            {
                "nβ": f"{at:,.0f}",
                "expansion": f"{expansion:.4f}",
                "step size": f"{step:.4f}",
                "Monte Carlo": f"{mcse:.4f}",
                "first order against SGLD": f"{total:.4f}",
            }
        )
    return rows


# -- a singular network ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SampledKernel:
    """The kernel of the ReLU network at one localization.

    Attributes:
        localization: gamma.
        covariance: K, shape (n, n), nats squared.
        trust: what is to be said of its chains.
        halves: rank correlation between halves of the chains.
    """

    localization: float
    covariance: np.ndarray
    trust: probelib.Diagnostics
    halves: float

    @classmethod
    def of(cls, trace: xr.Dataset, localization: float) -> "SampledKernel":
        """From the trace of its chains."""
        return cls(
            localization,
            probelib.loss_kernel(trace).covariance(),
            probelib.diagnostics(trace, trace.sizes["sample"]),
            halves_agreement(trace),
        )


def relu_rows(
    chapter: Chapter,
    kernels: Sequence[SampledKernel],
    kernel_agree: Sequence[float],
    n_beta: float,
    damping: np.ndarray,
    agree: np.ndarray,
) -> Rows:
    """Record the kernels of the ReLU network, and give a line of a table each.

    Args:
        chapter: where to.
        kernels: at each localization.
        kernel_agree: rank correlation of each with the reference.
        n_beta: of the posterior.
        damping, agree: of the classical influence, and its rank correlation with the reference.
    """
    rows = []
    for k, (kernel, own) in enumerate(zip(kernels, kernel_agree, strict=True)):
        gamma = kernel.localization
        nearest = int(np.abs(damping - gamma / n_beta).argmin())
        numbers = {
            "trace": np.trace(kernel.covariance),
            "agreement": own,
            "halves": kernel.halves,
            "rhat": kernel.trust.rhat_max,
            "classical": agree[nearest],
        }
        chapter.record(**{f"relu_kernel_{k}_{key}": value for key, value in numbers.items()})
        chapter.record_verdict(kernel.trust, f"relu_kernel_{k}_verdict")
        rows.append(
            {
                "γ": f"{gamma:g}",
                "γ / nβ": f"{gamma / n_beta:.3g}",
                "tr K (nats²)": f"{numbers['trace']:.3g}",
                "kernel: Spearman with the reference": f"{numbers['agreement']:.3f}",
                "between halves of the chains": f"{numbers['halves']:.3f}",
                "classical: Spearman with its reference": f"{numbers['classical']:.3f}",
                "largest R-hat": f"{numbers['rhat']:.3f}",
                "verdict on the chains": word(kernel.trust),
            }
        )
    return rows


def relu_in_words(chapter: Chapter, kernels: Sequence[SampledKernel]) -> str:
    """A sentence on the kernels whose chains cannot be trusted; :func:`relu_rows` comes first."""
    against = [
        f"at γ = {kernel.localization:g}: {chapter.numbers[f'relu_kernel_{k}_verdict']}"
        for k, kernel in enumerate(kernels)
        if not kernel.trust.good
    ]
    if not against:
        return "Nothing speaks against the chains of these kernels."
    return (
        "Not every kernel can be trusted ("
        + "; ".join(against)
        + "). What the table says of these is no more certain than their chains."
    )


def record_spectrum(
    chapter: Chapter, eigenvalues: np.ndarray, largest: np.ndarray, agree: np.ndarray
) -> None:
    """Record the spectrum of a Hessian, and what damping does to the classical influence.

    Args:
        chapter: where to.
        eigenvalues: in ascending order, shape (d,).
        largest: largest influence at each damping, over that at the reference.
        agree: rank correlation with the reference at each damping.
    """
    tiny = np.abs(eigenvalues) < 1e-12
    chapter.record(
        relu_parameters=len(eigenvalues),
        relu_zero_eigenvalues=int(tiny.sum()),
        relu_negative_eigenvalues=int((eigenvalues < -1e-12).sum()),
        relu_lowest_eigenvalue=eigenvalues[0],
        relu_condition=eigenvalues[-1] / np.abs(eigenvalues[~tiny]).min(),
        relu_influence_spike=largest.max(),
        relu_agreement_lowest=agree.min(),
        relu_agreement_small_damping=agree[0],
    )


# -- retraining --------------------------------------------------------------------------------


def agreement_rows(
    chapter: Chapter,
    agreements: Mapping[str, retraining.Agreement],
    predictions: Mapping[str, np.ndarray],
    truth: np.ndarray,
) -> Rows:
    """Record how each prediction agrees with retraining, and give a line of a table each.

    Args:
        chapter: where to.
        agreements: of the predictions.
        predictions: name -> predicted loss changes, shape (removed, query).
        truth: the loss changes after retraining, same shape.
    """
    rows = []
    for name, key in PREDICTIONS.items():
        a = agreements[name]
        chapter.record(
            **{
                f"loo_spearman_{key}": a.pairs,
                f"loo_spearman_{key}_low": a.pairs_interval[0],
                f"loo_spearman_{key}_high": a.pairs_interval[1],
                f"loo_half_{key}": (a.pairs_interval[1] - a.pairs_interval[0]) / 2,
                f"loo_query_{key}": a.query,
                f"loo_query_{key}_low": a.query_interval[0],
                f"loo_query_{key}_high": a.query_interval[1],
            }
        )
        row = {
            "prediction": name,
            "Spearman, all pairs": f"{a.pairs:.3f}",
            "95 % interval": f"{a.pairs_interval[0]:.3f} to {a.pairs_interval[1]:.3f}",
            "mean over queries": f"{a.query:.3f}",
            "its 95 % interval": f"{a.query_interval[0]:.3f} to {a.query_interval[1]:.3f}",
            "slope": "–",
        }
        if "I/n" in name or "βK" in name:
            found = predictions[name]
            scale = (found * truth).sum() / (found * found).sum()
            chapter.record(**{f"loo_slope_{key}": scale})
            row["slope"] = f"{scale:.2f}"
        rows.append(row)
    return rows


def chain_rows(chapter: Chapter, traces: Mapping[float, xr.Dataset]) -> Rows:
    """Record what is to be said of chains, nb -> trace, and give a line of a table each."""
    rows = []
    for n_beta, trace in traces.items():
        trust = probelib.diagnostics(trace, trace.sizes["sample"])
        halves, name = halves_agreement(trace), f"loo_chain_{n_beta:.0f}"
        chapter.record(
            **{
                f"{name}_rhat": trust.rhat_max,
                f"{name}_ess": trust.ess_min,
                f"{name}_halves": halves,
                f"{name}_word": word(trust),
            }
        )
        chapter.record_verdict(trust, f"{name}_verdict")
        rows.append(
            {
                "nβ": f"{n_beta:g}",
                "largest R-hat": f"{trust.rhat_max:.3f}",
                "least ESS": f"{trust.ess_min:.0f}",
                "Spearman of K between halves of the chains": f"{halves:.3f}",
                "verdict": word(trust),
            }
        )
    return rows


def chains_in_words(chapter: Chapter) -> str:
    """What speaks against the chains of the kernels, and what their steps did."""
    against = [
        f"**nβ = {n_beta}:** {{loo_chain_{n_beta}_verdict}}."
        for n_beta in (12, 120, 1200)
        if chapter.numbers[f"loo_chain_{n_beta}_word"] != "sound"
    ]
    chains = " ".join(against) if against else "Nothing speaks against the chains."
    return (
        f"{chains} With the unbiased sampler the rank correlation at nβ = 1,200 is "
        "{loo_spearman_unbiased:.3f} instead of {loo_spearman_bayesian:.3f} "
        "(verdict on its chains: {loo_unbiased_verdict})."
    )


def answer(chapter: Chapter) -> tuple[str, str]:
    """The chapter's answer and the line on trust, as templates for :meth:`Chapter.answer`."""
    numbers = chapter.numbers
    below = numbers["loo_spearman_bayesian_high"] < numbers["loo_spearman_classical_low"]
    above = numbers["loo_spearman_bayesian_low"] > numbers["loo_spearman_classical_high"]
    better = "better than" if below else "less well than" if above else "as well as, within errors,"
    what = (
        "On a regular network the undamped **classical influence** predicts what leaving a sample "
        f"out does {better} the loss kernel at nβ = 1,200: the rank correlation with retraining is "
        "**{loo_spearman_classical:.3f}**. The **loss kernel**'s depends on the temperature: "
        "**{loo_spearman_bayesian_nb_12:.2f}**, **{loo_spearman_bayesian_nb_120:.2f}** and "
        "**{loo_spearman_bayesian:.2f}** at nβ = 12, 120 and 1,200; the inner product of gradients "
        "has {loo_spearman_inner:.2f}."
    )
    intervals = ", ".join(
        f"{{loo_spearman_{key}_low:.{digits}f}} to {{loo_spearman_{key}_high:.{digits}f}}"
        for key, digits in (
            ("classical", 3), ("bayesian_nb_12", 2), ("bayesian_nb_120", 2), ("bayesian", 2),
        )
    )  # fmt: skip
    trust = (
        f"95 % intervals, in the same order: {intervals}; they are over queries, for one "
        "data set and one network, whose regularity favours the classical influence. Step bias: at "
        "nβ = 1,200 an unbiased sampler gives {loo_spearman_unbiased:.2f}. Verdicts on the chains "
        "at nβ = 12, 120, 1,200: {loo_chain_12_word}, {loo_chain_120_word}, {loo_chain_1200_word} "
        "(the text has the reasons)."
    )
    return what, trust


# -- MNIST -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Digits:
    """Some digits, by their gradients at w* and by the kernel.

    Attributes:
        labels: shape (n,).
        cosine: of the gradients, shape (n, n).
        length: of the gradients, shape (n,).
        correlation: the kernel R, shape (n, n).
        deviation: standard deviation of each loss, nats, shape (n,).
        purities: name -> share of each digit's neighbours of its class, shape (n,).
    """

    labels: np.ndarray
    cosine: np.ndarray
    length: np.ndarray
    correlation: np.ndarray
    deviation: np.ndarray
    purities: Mapping[str, np.ndarray]

    @property
    def fifth(self) -> np.ndarray:
        """Fifth by length of gradient, 1 the shortest, shape (n,)."""
        return np.argsort(np.argsort(self.length)) * 5 // len(self.length) + 1

    @property
    def chance(self) -> float:
        """Purity of neighbours at random."""
        return float(((np.bincount(self.labels) / len(self.labels)) ** 2).sum())

    @property
    def positive(self) -> np.ndarray:
        """Digits with a gradient and a loss that moves, shape (n,)."""
        return (self.length > 0) & (self.deviation > 0)

    def record(self, chapter: Chapter, resamples: int = 100, seed: int = 0) -> None:
        """Record how kernel and gradients go together, and how digits spread by either.

        Args:
            chapter: where to.
            resamples, seed: of the bootstrap over digits that gives the intervals.
        """
        n = len(self.labels)
        rng = np.random.default_rng(seed)
        found = np.array([self._agree(rng.integers(n, size=n)) for _ in range(resamples)])
        (low, low_across), (high, high_across) = np.quantile(found, (0.025, 0.975), axis=0)
        overall, across = self._agree(np.arange(n))
        short = self.fifth == 1
        chapter.record(
            mnist_spearman=overall,
            mnist_spearman_low=low,
            mnist_spearman_high=high,
            mnist_spearman_across=across,
            mnist_spearman_across_low=low_across,
            mnist_spearman_across_high=high_across,
            mnist_spearman_sizes=spearman(self.length, self.deviation),
            mnist_purity_kernel=self.purities["kernel"].mean(),
            mnist_purity_gradients=self.purities["gradients"].mean(),
            mnist_purity_kernel_short=self.purities["kernel"][short].mean(),
            mnist_purity_gradients_short=self.purities["gradients"][short].mean(),
            mnist_chance=self.chance,
            mnist_spread_gradient=self._spread(self.length),
            mnist_spread_deviation=self._spread(self.deviation),
            mnist_longest_share=_top_share(self.length),
            mnist_deviation_share=_top_share(self.deviation),
        )

    def _agree(self, chosen: np.ndarray) -> tuple[float, float]:
        """Spearman of cosine and correlation over pairs of these digits, and across classes."""
        one, other = (chosen[side] for side in np.triu_indices(len(chosen), 1))
        pair = one != other  # a digit that was drawn twice is no pair
        cosine = self.cosine[one[pair], other[pair]]
        correlation = self.correlation[one[pair], other[pair]]
        across = self.labels[one[pair]] != self.labels[other[pair]]
        return spearman(cosine, correlation), spearman(cosine[across], correlation[across])

    def _spread(self, sizes: np.ndarray) -> float:
        low, high = (np.quantile(sizes[self.positive], q) for q in (0.01, 0.99))
        return high / low


def _top_share(sizes: np.ndarray) -> float:
    """Share of the sum of squares in the largest twentieth."""
    return np.sort(sizes**2)[-len(sizes) // 20 :].sum() / (sizes**2).sum()


# -- claims ------------------------------------------------------------------------------------


def claims(chapter: Chapter) -> list[Claim]:
    """Every statement of Appendix C, held to what was recorded."""
    numbers = chapter.numbers
    chapter.record(
        relu_flat_eigenvalues=numbers["relu_zero_eigenvalues"]
        + numbers["relu_negative_eigenvalues"]
    )
    return [
        Claim(
            "Eq. 16: kernels of losses and of loss changes, relative difference",
            "translation_error", "0", None, 1e-10, ".1e",
            "a covariance does not change with constants; the room is for rounding",
            must=True,
        ),
        Claim(
            "Eq. 18, as printed: tr H⁻¹ over the true trace", "erratum4_printed_ratio", "1", 0.95,
            1.05, ".2f", "erratum 4: temperature and localization are missing; room as below",
        ),
        Claim(
            "Eq. 18, corrected: tr S over the true trace", "erratum4_needed_ratio", "1", 0.95, 1.05,
            ".4f", "S = (nβ H + γ I)⁻¹; the room is for terms of relative order 1/nβ", must=True,
        ),
        Claim(
            "total variation of posterior and Laplace: order in 1/nβ", "tv_order",
            "tends to 0", 0.45, 0.55, ".3f",
            "theory 1/2, a tenth of room for higher orders; here nβ grows on fixed data, not n",
            must=True,
        ),
        Claim(
            "Eq. 21, as printed: slope of K on +gᵀSg", "erratum5_slope", "−1", -1.05, -0.95, "+.4f",
            "erratum 5: K is a covariance; 5 % of room, as for the traces",
        ),
        Claim(
            "Eq. 21: error of the leading term, order in 1/nβ", "laplace_order_first",
            "leading order", 0.95, 1.05, ".3f",
            "relative error; theory 1, with room for higher orders", must=True,
        ),
        Claim(
            "relative error of the leading term at the largest nβ", "laplace_relative_error",
            "tends to 0", None, None, ".2g",
            "of the expansion alone: no sampling error; the order above is the test",
        ),
        Claim(
            "the second-order correction in products of Hessians: order with it",
            "laplace_order_second", "the next term", 1.9, 2.1, ".3f",
            "2 if nothing else of its order were left; but other terms remain, so theory says 1",
        ),
        Claim(
            "all terms of that order: order of the error", "laplace_order_next", "", 1.9, 2.1,
            ".3f", "theory 2, with room for higher orders", must=True,
        ),
        Claim(
            "regularity fails: zero or negative eigenvalues of a ReLU network",
            "relu_flat_eigenvalues", "does not hold", 1, None, "d",
            "at the end of training; a single one is enough",
        ),
        Claim(
            "the kernel where g = 0 and H = 0: Spearman with leaving out",
            "product_kernel_spearman", "no truncation", 0.9, None, ".3f",
            "the classical influence is 0 there at any damping; 0.9 is high for a rank "
            "correlation, and 1 is not expected, since leaving out is more than a first order",
        ),
        Claim(
            "the redundant line's kernel is the plain one at γ/2: relative difference",
            "redundant_identity_error", "", None, 1e-9, ".1e", "exact; the room is for rounding",
            must=True,
        ),
        *(
            Claim(
                f"retraining: Spearman of βK at nβ = {n_beta}", key, digits=".2f",
                why=f"95 % interval over queries: {numbers[f'{key}_low']:.2f} to "
                f"{numbers[f'{key}_high']:.2f}; chains: {numbers[f'loo_chain_{n_beta}_word']}",
            )
            for n_beta, key in (
                (12, "loo_spearman_bayesian_nb_12"), (120, "loo_spearman_bayesian_nb_120"),
                (1200, "loo_spearman_bayesian"),
            )
        ),
        Claim(
            "retraining: Spearman of the undamped classical influence", "loo_spearman_classical",
            digits=".3f", why="at a strict minimum, with the exact Hessian; "
            f"{numbers['loo_spearman_classical_low']:.3f} to "
            f"{numbers['loo_spearman_classical_high']:.3f}",
        ),
        Claim(
            "retraining: Spearman of the inner product", "loo_spearman_inner", digits=".2f",
            why=f"{numbers['loo_spearman_inner_low']:.2f} to "
            f"{numbers['loo_spearman_inner_high']:.2f}",
        ),
        Claim(
            "MNIST: Spearman of kernel and gradient cosine", "mnist_spearman", digits=".2f",
            why=f"95 % interval over digits: {numbers['mnist_spearman_low']:.2f} to "
            f"{numbers['mnist_spearman_high']:.2f}",
        ),
    ]  # fmt: skip


__all__ = [
    "PREDICTIONS",
    "Digits",
    "SampledKernel",
    "agreement_rows",
    "answer",
    "budget_rows",
    "chain_rows",
    "chains_in_words",
    "claims",
    "error_budget",
    "halves_agreement",
    "order_rows",
    "record_spectrum",
    "relu_in_words",
    "relu_rows",
    "word",
]
