"""Chapter 05: the table of shares, the claims, and the curves against kappa."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

import probelib
from probebook.chapter import Chapter, Claim
from probebook.known_llc import Known, monomial_law
from probebook.llc_parts import Split, percent
from probebook.samplers import estimate_cells
from probebook.toys import exact_claim, with_error
from probelib import Estimate

# name -> (exponents, volumes) for :func:`probebook.known_llc.monomial_law`, and a model's key
Shown = Mapping[str, tuple[Sequence[int], Sequence[int] | None, str]]


def stated(numbers: Mapping[str, float], name: str, share: bool = False) -> str:
    """A recorded number with its error, where one is known, for a sentence.

    Args:
        numbers: recorded.
        name: of the number; its error is ``<name>_mcse``.
        share: write both in per cent.
    """
    if share:
        return percent(numbers, name)
    return with_error(numbers[name], numbers.get(f"{name}_mcse"))


def extreme_classes(split: Split) -> dict[str, float]:
    """The classes that hold the most and the least of the LLC per sample, over the average."""
    per_sample = np.array([e.value for e in split.classes]) / split.class_samples
    most, least = int(per_sample.argmax()), int(per_sample.argmin())
    return {
        "class_most": most,
        "class_most_ratio": float(per_sample[most]),
        "class_least": least,
        "class_least_ratio": float(per_sample[least]),
    }


def share_rows(numbers: Mapping[str, float], prefixes: Mapping[str, str]) -> list[dict[str, str]]:
    """One line of a table per part of the LLC: its share in every trace.

    Args:
        numbers: recorded.
        prefixes: trace -> what stands before the names of its numbers.
    """
    parts = {
        "hardest 1 %": "share_hardest_1pct",
        "hardest 1 %, order from other draws": "share_hardest_1pct_held_out",
        **{f"decile {k} by gain": f"share_decile_{k}" for k in range(1, 11)},
        **{f"class {k}": f"share_class_{k}" for k in range(10)},
        "wrongly labeled samples": "share_wrong_labels",
    }
    return [
        {"part": what}
        | {
            f"share of the LLC, {name}": percent(numbers, prefix + key)
            for name, prefix in prefixes.items()
        }
        for what, key in parts.items()
    ]


def sampler_row(
    chapter: Chapter, before: str, behind: str, described: str, trace: xr.Dataset, split: Split
) -> dict[str, str]:
    """Record the LLC and two shares of it under one sampler, and give a line of a table.

    Args:
        chapter: where to.
        before, behind: what stands around the names of the numbers.
        described: labels and sampler in words.
        trace: the draws.
        split: their LLC in parts.
    """
    llc = probelib.local_learning_coefficient(trace)
    row = {"trace": described} | estimate_cells(chapter, f"{before}llc{behind}", "LLC", llc)
    for title, name, found in (
        ("share of the hardest 1 %", "share_hardest_1pct_held_out", split.hardest_held_out),
        ("share of wrong labels", "share_wrong_labels", split.marked),
    ):
        row[title] = "–"
        if found is not None:
            key = f"{before}{name}{behind}"
            chapter.record(**{key: found.value})
            if np.isfinite(found.mcse):
                chapter.record(**{f"{key}_mcse": found.mcse})
            row[title] = percent(chapter.numbers, key)
    return row


def unbiased_row(
    chapter: Chapter, model: Known, paper: Estimate, unbiased: Estimate
) -> dict[str, str]:
    """Record a known model's LLC by the unbiased sampler, and give a line of a table.

    Args:
        chapter: where to.
        model: with its exact value under Eq. 1.
        paper, unbiased: measured at one step size.
    """
    key = model.key
    chapter.record(
        **{f"{key}_llc_unbiased": unbiased.value, f"{key}_llc_unbiased_mcse": unbiased.mcse}
    )

    def off(estimate: Estimate, end: str) -> str:
        name = f"{key}_off_eq1{end}"
        value, error = estimate.value / model.law - 1, estimate.mcse / model.law
        chapter.record(**{name: value, f"{name}_mcse": error})
        return f"{value:+.1%} ± {error:.1%}"

    return {
        "model": model.what,
        "exact, Eq. 1": f"{model.law:.4f}",
        "SGLD": with_error(paper.value, paper.mcse),
        "off by": off(paper, ""),
        "Leimkuhler-Matthews": with_error(unbiased.value, unbiased.mcse),
        "off by ": off(unbiased, "_unbiased"),
    }


def record_unbiased(
    chapter: Chapter, models: Sequence[Known], paper: Sequence[Estimate], other: Sequence[Estimate]
) -> None:
    """Record how far from Eq. 1 the two samplers are over all known models, root mean square."""
    law = np.array([model.law for model in models])
    for end, found in (("", paper), ("_unbiased", other)):
        off = np.array([estimate.value for estimate in found]) / law - 1
        noise = np.array([estimate.mcse for estimate in found]) / law
        z = np.abs(off / noise)
        chapter.record(
            **{
                f"known_off_eq1{end}": float(np.sqrt(np.mean(np.square(off)))),
                f"known_off_eq1{end}_by_chance": float(np.sqrt(np.mean(np.square(noise)))),
                f"known_eq1_beyond_2_mcse{end}": int((z > 2).sum()),
            }
        )


def known_claim(chapter: Chapter, model: Known, estimate: Estimate) -> Claim:
    """Record the LLC of a known model, and claim that it is the exact one of its chain."""
    chapter.record(**model.numbers(estimate))
    bias = "; the next order may be three times the square of the first" if model.allowed else ""
    return exact_claim(
        chapter, f"LLC: {model.what}", f"{model.key}_llc", model.truth,
        total_error(model, estimate), model.allowed, ".3g",
        f"exact value by {model.by}{bias}",
    )  # fmt: skip


def total_error(model: Known, estimate: Estimate) -> float:
    """Standard error of estimate less truth, where the truth has an error, too."""
    return float(np.hypot(estimate.mcse, model.truth_se))


def approach_to_limit(
    models: Sequence[Known], measured: Sequence[Estimate], shown: Shown, kappa: np.ndarray
) -> tuple[dict, dict]:
    """Curves and points for :func:`probebook.figures.approach`.

    Args:
        models: the known models.
        measured: their LLCs.
        shown: those that are drawn.
        kappa: where the curves are computed.
    """
    by_key = {model.key: pair for model, *pair in zip(models, models, measured, strict=True)}
    curves, points = {}, {}
    for name, (exponents, volumes, key) in shown.items():
        model, estimate = by_key[key]
        exact = [monomial_law(exponents, x, 1.0, volumes).llc for x in kappa]
        leading = np.full(len(kappa), np.nan)
        if model.multiplicity > 1:
            far = kappa > 1e3
            leading[far] = 1 - (model.multiplicity - 1) / np.log(kappa[far]) / model.limit
        curves[name] = kappa, np.array(exact) / model.limit, leading
        at = model.posterior.n_beta / model.posterior.localization ** sum(exponents)
        points[name] = at, estimate.value / model.limit, estimate.mcse / model.limit
    return curves, points


def record_shares_of_limit(chapter: Chapter, models: Sequence[Known], shown: Shown) -> None:
    """Record what share of its limit the LLC of Eq. 1 has reached at kappa = 10⁶."""
    limits = {model.key: model.limit for model in models}
    for exponents, volumes, key in shown.values():
        at_1e6 = monomial_law(exponents, 1e6, 1.0, volumes).llc
        chapter.record(**{f"{key}_share_of_limit_at_1e6": at_1e6 / limits[key]})


def identity_claims() -> list[Claim]:
    """What B.1 says, and how the sum is distributed."""
    return [
        Claim(
            "relative difference: LLC and sum of the gains times β", "identity_relative_error",
            "equal", None, 1e-10, ".1e",
            "rounding: float64 sums of the same float32 losses, in two orders", must=True,
        ),
        Claim(
            "nβ Σμ over the LLC: relative distance from n", "identity_n_factor_relative_error",
            "", None, 1e-10, ".1e", "the factor is n, whatever the trace", must=True,
        ),
        Claim(
            "nβ Σμ over the LLC", "identity_n_factor", "1", 0.99, 1.01, ",.0f",
            "erratum 3: the printed formula is n times too large; the range is 1 %",
        ),
        Claim(
            "share of the LLC in the hardest 1 %", "share_hardest_1pct_held_out", digits=".3f",
            why="the order is from other draws",
        ),
        Claim(
            "the same with 10 % wrong labels", "noisy_share_hardest_1pct_held_out", digits=".3f",
        ),
        Claim("share of the LLC in wrong labels", "noisy_share_wrong_labels", digits=".3f"),
    ]  # fmt: skip


__all__ = [
    "approach_to_limit",
    "extreme_classes",
    "identity_claims",
    "known_claim",
    "record_shares_of_limit",
    "record_unbiased",
    "sampler_row",
    "share_rows",
    "stated",
    "total_error",
    "unbiased_row",
]
