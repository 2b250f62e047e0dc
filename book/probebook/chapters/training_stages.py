"""Chapter 11: the stages of a linear network, by closed form, singular values and LLC."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from probebook.chapter import Chapter, Claim
from probebook.chapters.training_time import record_finite
from probebook.curves import crossing_interval, passes
from probebook.stages import Stages


def record_stages(
    chapter: Chapter,
    stages: Stages,
    closed: np.ndarray,
    known: np.ndarray,
    s: Sequence[float],
    coefficients: Sequence[float],
    seed: int = 0,
) -> list[dict[str, str]]:
    """Record when each stage is, by three clocks, and give a line of a table each.

    Args:
        chapter: where to: ``stage_<k>_known``, ``stage_<k>_llc`` with its interval of chance, and
            both for all stages as text.
        stages: measured.
        closed: strengths in the closed form at the same times, shape (times, modes).
        known: times of the stages.
        s: singular values of the map.
        coefficients: of rank 0, 1, ...: one more than there are stages.
        seed: of the intervals.
    """
    chapter.record(
        stage_closed_form_error=float(np.abs(stages.singular[:, : len(s)] - closed).max()),
        stage_rhat=stages.rhat,
    )
    rows, texts = [], []
    for k, (time, size) in enumerate(zip(known, s, strict=True)):
        middle = (coefficients[k] + coefficients[k + 1]) / 2
        own = passes(stages.times, stages.singular[:, k], size / 2)
        at, low, high = crossing_interval(
            stages.times, stages.llc, stages.llc_se, middle, seed=seed + k
        )
        record_finite(
            chapter,
            "known",
            **{
                f"stage_{k + 1}": float(time),
                f"stage_{k + 1}_size": float(size),
                f"stage_{k + 1}_half": own,
                f"stage_{k + 1}_coefficient_before": float(coefficients[k]),
                f"stage_{k + 1}_coefficient_after": float(coefficients[k + 1]),
            },
        )
        name, text, then = f"stage_{k + 1}_llc", "never", "–"
        if math.isfinite(at):
            strength = stages.singular_at(at, k) / size
            chapter.record(**{name: at, f"stage_{k + 1}_strength": strength})
            text, then = f"{at:.2f}", f"{strength:.1%}"
            if math.isfinite(low) and math.isfinite(high):
                chapter.record(**{f"{name}_low": low, f"{name}_high": high})
                text += f" [{low:.2f}, {high:.2f}]"
        texts.append(text)
        chapter.record(**{f"{name}_text": text})
        rows.append(
            {
                "stage": f"{k + 1}",
                "singular value": f"{size:g}",
                "known time": f"{time:.2f}",
                "singular value passes one half": "never" if math.isinf(own) else f"{own:.2f}",
                "coefficients": f"{coefficients[k]:g} to {coefficients[k + 1]:g}",
                "LLC passes their middle": text,
                "part of the singular value then": then,
            }
        )
    count_plateaus(chapter, stages, len(s))
    chapter.record(
        stage_times_known=", ".join(f"{time:.2f}" for time in known),
        stage_times_llc=", ".join(texts),
    )
    return rows


def count_plateaus(chapter: Chapter, stages: Stages, count: int) -> None:
    """Record between how many stages the LLC rises less, so that each has a rise of its own.

    That a rising curve passes levels in their order says nothing. So between two crossings its
    slope must be surely below half of what it is at either.

    Args:
        chapter: where ``stage_<k>_llc`` is: ``stages_parted``, of ``count`` - 1.
        stages: measured.
        count: of stages.
    """
    t, llc, error = stages.times, stages.llc, stages.llc_se
    apart = t[2:] - t[:-2]
    slope = (llc[2:] - llc[:-2]) / apart
    slope_se = np.hypot(error[2:], error[:-2]) / apart
    parted = 0
    for k in range(1, count):
        ends = [chapter.numbers.get(f"stage_{n}_llc", math.inf) for n in (k, k + 1)]
        between = (t[1:-1] > ends[0]) & (t[1:-1] < ends[1])
        if not np.isfinite(ends).all() or not between.any():
            continue
        steep = min(np.interp(ends, t[1:-1], slope))
        parted += bool((slope + 1.96 * slope_se)[between].min() < steep / 2)
    chapter.record(stages_parted=parted)


def stages_in_words(chapter: Chapter, count: int) -> str:
    """Whether the LLC marks the stages, and when."""
    numbers = chapter.numbers
    ends = ("known", "llc", "llc_low", "llc_high")
    found = [
        [numbers[f"stage_{k}_{end}"] for end in ends]
        for k in range(1, count + 1)
        if f"stage_{k}_llc_high" in numbers
    ]
    said = "Known times: {stage_times_known}. The LLC passes the middle at {stage_times_llc}. "
    early = sum(high < time for time, _, _, high in found)
    late = sum(low > time for time, _, low, _ in found)
    chapter.record(stages_found=len(found), stages_early=early, stages_late=late)
    if len(found) < count:
        said += "It passes {stages_found} of " + f"{count} stages. "
    said += "Between {stages_parted} of " + f"{count - 1} pairs of neighbouring stages "
    said += "its slope surely falls below half, so that each of the two has a rise of its own. "
    if early or late:
        said += (
            "{stages_early} are surely earlier than the time at which half of the singular value "
            "is learned, {stages_late} surely later. "
        )
    if "stage_1_strength" in numbers:
        said += (
            "When the LLC passes the first middle, the singular value has {stage_1_strength:.0%} "
            "of its size."
        )
    return said


def record_checks(
    chapter: Chapter, stages: Stages, check: np.ndarray, of_loss: pd.DataFrame
) -> None:
    """Record what chains say: of the checkpoints' own maps, and of the training loss.

    Args:
        chapter: where to.
        stages: by Gibbs sampling.
        check: times, LLCs and standard errors of chains on the same posteriors, shape (k, 3).
        of_loss: :func:`probelib.checkpoint_table` of the training loss.
    """
    times, llc, error = check.T
    at = np.abs(stages.times[:, None] - times).argmin(0)
    z = np.abs(llc - stages.llc[at]) / np.hypot(error, stages.llc_se[at])
    wrong = of_loss["verdict"] == "wrong"
    chapter.record(
        stage_check_z=float(z.max()),
        stage_check_relative=float(np.abs(llc / stages.llc[at] - 1).max()),
        loss_llc_checkpoints=len(of_loss),
        loss_llc_wrong=int(wrong.sum()),
        loss_llc_negative=int((of_loss["llc"] < 0).sum()),
        loss_llc_lowest=float(of_loss["llc"].min()),
    )
    said = "It can be read nowhere."
    if not wrong.all():
        first = of_loss.index[~wrong][0]
        chapter.record(loss_llc_first_time=float(first))
        said = f"The first that it does not refuse is at time {first:.2f}."
    chapter.record(loss_llc_readable=said)


def resolution_rows(
    chapter: Chapter,
    found: Mapping[tuple[float, float], Stages],
    s: Sequence[float],
    known: np.ndarray,
    coefficients: Sequence[float],
) -> list[dict[str, str]]:
    """When the LLC passes the middles at other n beta and gamma, and what it is at both ends.

    Args:
        chapter: where to: how many of the stages are passed early, at most and at least.
        found: by n beta and gamma.
        s: singular values.
        known: times of the stages.
        coefficients: of rank 0, 1, ...
    """
    rows = []
    for (n_beta, localization), stages in found.items():
        cells = []
        key = f"nb_{n_beta:g}_gamma_{localization:g}".replace(".", "p")
        for k, time in enumerate(known):
            middle = (coefficients[k] + coefficients[k + 1]) / 2
            at = crossing_interval(stages.times, stages.llc, stages.llc_se, middle, 2)[0]
            part = f"{'never' if math.isinf(at) else format(at, '.2f')} ({time:.2f})"
            if math.isfinite(at):
                share = stages.singular_at(at, k) / s[k]
                part += f", at {share:.0%}"
                record_finite(
                    chapter, key, **{f"stage_{k + 1}_llc": at, f"stage_{k + 1}_share": share}
                )
            cells.append(part)
        rows.append(
            {
                "nβ": f"{n_beta:g}",
                "γ": f"{localization:g}",
                f"LLC at rank 0 ({coefficients[0]:g})": f"{stages.llc[0]:.1f}",
                f"LLC at rank {len(s)} ({coefficients[len(s)]:g})": f"{stages.llc[-1]:.1f}",
            }
            | {f"stage {k + 1} (known)": cell for k, cell in enumerate(cells)}
        )
        record_finite(chapter, key, stage_llc_first=stages.llc[0], stage_llc_last=stages.llc[-1])
    return rows


def claims(
    chapter: Chapter, known: np.ndarray, s: Sequence[float], times: np.ndarray
) -> list[Claim]:
    """The closed forms, and whether the LLC's clock agrees with them.

    Args:
        chapter: where the numbers are.
        known: times of the stages.
        s: singular values.
        times: of the checkpoints, evenly spaced.
    """
    apart = float(times[1] - times[0])
    rows = [
        Claim(
            "singular values: distance from the closed form", "stage_closed_form_error", "0",
            0.0, 1e-3 * min(s), ".1g",
            "the closed form is exact for the gradient flow; a thousandth of the smallest is far "
            "above what the integration leaves",
            must=True,
        )
    ]  # fmt: skip
    for k, time in enumerate(known, start=1):
        if f"stage_{k}_llc" in chapter.numbers:
            rows.append(
                Claim(
                    f"stage {k}: time at which the LLC passes the middle", f"stage_{k}_llc",
                    f"{time:.2f}, half of the singular value",
                    round(float(time) - apart, 3), round(float(time) + apart, 3), ".2f",
                    "within the distance of two checkpoints; a miss is no fault of the sampler: "
                    "the two clocks ask for another strength",
                )
            )  # fmt: skip
    return rows


__all__ = ["claims", "record_checks", "record_stages", "resolution_rows", "stages_in_words"]
