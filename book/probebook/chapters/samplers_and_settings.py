"""Chapter 09: which rows it shows, numbers to record, tables and sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from probebook import benchmark_summaries as summaries
from probebook.chapter import Chapter, Claim

#: Heading of what the earlier benchmark found.
EARLIER = "earlier benchmark"


def key_of(name: str) -> str:
    """A sampler's name as a part of a number's name: "RMSprop-SGLD" -> "rmsprop_sgld"."""
    return name.lower().replace("-", "_").replace(" ", "_")


def record_known(chapter: Chapter, rows: pd.DataFrame) -> None:
    """Record what the problems are, and how far Eq. 1 is from the learning coefficient."""
    problems = rows.drop_duplicates(["group", "problem"])
    share = problems["eq1"] / problems["limit"]
    chapter.record(
        n_problems=len(problems),
        n_runs=len(rows),
        n_diverged=int(rows["llc"].isna().sum()),
        min_weights=int(problems["weights"].min()),
        max_weights=int(problems["weights"].max()),
        max_depth=int(problems["depth"].max()),
        share_of_limit_least=float(share.min()),
        share_of_limit_most=float(share.max()),
        eq1_se_largest=float((problems["eq1_se"] / problems["eq1"]).max()),
    )


def problem_rows(chapter: Chapter, rows: pd.DataFrame) -> list[dict[str, str]]:
    """One line of a table per problem: its coefficient, and the LLC of Eq. 1."""
    table = []
    for k, problem in enumerate(rows.drop_duplicates(["group", "problem"]).itertuples()):
        key = f"problem_{k + 1}"
        chapter.record(
            **{
                f"{key}_what": problem.problem,
                f"{key}_weights": problem.weights,
                f"{key}_limit": problem.limit,
                f"{key}_eq1": problem.eq1,
                f"{key}_eq1_se": problem.eq1_se,
            }
        )
        table.append(
            {
                "problem": problem.problem,
                "weights": f"{problem.weights:,}",
                "learning coefficient λ": f"{problem.limit:.4g}",
                "LLC of Eq. 1": f"{problem.eq1:.4g}",
                "its standard error": f"{problem.eq1_se:.2g}",
            }
        )
    return table


def error_rows(chapter: Chapter, found: pd.DataFrame) -> list[dict[str, str]]:
    """Record how far off each sampler is, and give a line of a table each.

    Args:
        chapter: where to.
        found: of :func:`probebook.benchmark_summaries.relative_errors`.
    """
    table = []
    for line in found.itertuples():
        key = key_of(line.sampler)
        record(
            chapter,
            **{
                f"best_step_{key}": line.step,
                f"relative_error_{key}": line.error,
                f"relative_error_{key}_se": line.error_se,
                f"own_step_error_{key}": line.own_step_error,
                f"range_error_{key}": line.range_error,
                f"range_close_{key}": line.range_close,
                f"range_close_{key}_se": line.range_close_se,
            },
        )
        chapter.record(
            **{f"relative_error_{key}_text": percent_with_error(line.error, line.error_se)}
        )
        table.append(
            {
                "sampler": line.sampler,
                "best ε nβ for all": f"{line.step:.3g}",
                "median error there": percent_with_error(line.error, line.error_se),
                "at each problem's own best step": percent(line.own_step_error),
                "over all steps": percent(line.range_error),
                "runs within 10 %": percent_with_error(line.range_close, line.range_close_se),
            }
        )
    return table


def kendall_rows(
    chapter: Chapter, found: pd.DataFrame, steps: Mapping[str, float]
) -> list[dict[str, str]]:
    """Record how well each sampler orders the problems at its best step, a line of a table each.

    Args:
        chapter: where to.
        found: of :func:`probebook.benchmark_summaries.kendall`.
        steps: sampler -> its best step.
    """
    table = []
    for name, step in steps.items():
        own = found[found["sampler"] == name]
        at = own[own["step"] == step].iloc[0]
        key = key_of(name)
        record(
            chapter,
            **{
                f"kendall_{key}": at["tau"],
                f"kendall_{key}_se": at["tau_se"],
                f"order_preserved_{key}": at["preserved"],
                f"kendall_{key}_range": own["tau"].median(),
            },
        )
        table.append(
            {
                "sampler": name,
                "Kendall's τ at its best step": with_error(at["tau"], at["tau_se"]),
                "pairs in the right order": percent(at["preserved"]),
                "τ, median over all steps": f"{own['tau'].median():.2f}",
            }
        )
    return table


def verdict_rows(chapter: Chapter, found: pd.DataFrame) -> list[dict[str, str]]:
    """Record how often the verdict is right, and give a line of a table per sampler.

    Args:
        chapter: where to.
        found: of :func:`probebook.benchmark_summaries.verdicts`.
    """
    columns = {
        "approved, within 10 %": "approved_close",
        "approved, off": "approved_off",
        "uncertain, within 10 %": "wide_close",
        "uncertain, off": "wide_off",
        "refused, within 10 %": "refused_close",
        "refused, off": "refused_off",
    }
    table = []
    for line in found.to_dict("records"):
        key = key_of(line["sampler"])
        chapter.record(**{f"verdict_{v}_{key}": line[v] for v in (*columns.values(), "right")})
        cells = {title: percent(line[column]) for title, column in columns.items()}
        table.append({"sampler": line["sampler"]} | cells)
    return table


def agreement_rows(chapter: Chapter, found: pd.DataFrame) -> list[dict[str, str]]:
    """Record each run on the digits beside the reference, and give a line of a table each.

    Args:
        chapter: where to.
        found: of :func:`probebook.sampler_agreement.agreement`.
    """
    words = {"good": "approved", "wide": "uncertain", "wrong": "refused"}
    table = []
    for k, line in enumerate(found.itertuples()):
        key = f"digits_{key_of(line.sampler)}_{k + 1}"
        record(
            chapter,
            **{
                f"{key}_step_size": line.step_size,
                f"{key}_llc": line.llc,
                f"{key}_mcse": line.mcse,
                f"{key}_error": line.error,
                f"{key}_spearman": line.spearman,
                f"{key}_spearman_se": line.spearman_se,
                f"{key}_kernel": line.kernel,
            },
        )
        table.append(
            {
                "sampler": line.sampler,
                "ε": f"{line.step_size:.3g}",
                "LLC": with_error(line.llc, line.mcse),
                "off by": percent(line.error),
                "ranks of the gains": with_error(line.spearman, line.spearman_se, 4),
                "kernel": number(line.kernel),
                "verdict": words[line.verdict],
            }
        )
    return table


def record_digits(chapter: Chapter, found: pd.DataFrame, ceiling: Mapping[str, float]) -> None:
    """Record where ranks survive and values do not.

    Args:
        chapter: where to.
        found: of :func:`probebook.sampler_agreement.agreement`.
        ceiling: of :func:`probebook.sampler_agreement.halves`.
    """
    close = found["error"] <= summaries.CLOSE
    off = found[~close & np.isfinite(found["error"])]
    record(
        chapter,
        digits_runs=len(found),
        digits_close=int(close.sum()),
        digits_off=len(off),
        digits_ceiling_spearman=ceiling["spearman"],
        digits_ceiling_kernel=ceiling["kernel"],
        digits_spearman_least_close=found.loc[close, "spearman"].min(),
        digits_spearman_least_off=off["spearman"].min(),
        digits_error_largest=off["error"].max(),
    )


def digits_in_words(chapter: Chapter) -> str:
    """What the runs on the digits say, as far as there are such runs."""
    said = [
        "Of {digits_runs} runs **{digits_close}** have an LLC within 10 % of the reference's. Two "
        "halves of the reference rank the gains alike with a correlation of "
        "{digits_ceiling_spearman:.4f}."
    ]
    if "digits_spearman_least_close" in chapter.numbers:
        said.append(
            "Where the LLC is right, the least correlation of the gains with the reference's is "
            "{digits_spearman_least_close:.4f}."
        )
    if "digits_spearman_least_off" in chapter.numbers:
        said.append(
            "Where it is off, by up to {digits_error_largest:.0%}, the least correlation is "
            "**{digits_spearman_least_off:.4f}**."
        )
    return " ".join(said)


def record_winner(chapter: Chapter, rows: pd.DataFrame, found: Mapping[str, Any]) -> None:
    """Record which sampler has the least error, and the two results of the earlier benchmark."""
    chapter.record(
        winner=found["winner"],
        winner_runner_up=found["runner_up"],
        winner_share=found["share"],
        rmsprop_wins=int(found["winner"] == "RMSprop-SGLD"),
    )
    record(chapter, winner_lead=found["lead"])


def winner_in_words(chapter: Chapter) -> str:
    """Which sampler wins, and how sure that is."""
    sure = chapter.numbers["winner_share"] >= 0.95
    verdict = "so the order is sure" if sure else "so the order is not sure"
    key = key_of(str(chapter.numbers["winner"]))
    return (
        f"The least median error at one step for all is that of **{{winner}}**: "
        f"{{relative_error_{key}_text}}. It wins in {{winner_share:.0%}} of resampled sets of "
        f"problems, {verdict}."
    )


def claims() -> list[Claim]:
    """What the earlier benchmark found."""
    return [
        Claim(
            "RMSprop-SGLD has the least relative error (1: yes)", "rmsprop_wins", "1", 1, 1, "d",
            "there: random teachers, λ as the truth, minibatches; here: w* at the deepest point, "
            "Eq. 1 as the truth, full gradients",
        ),
        Claim(
            "Kendall's τ of RMSprop-SGLD at its best step", "kendall_rmsprop_sgld",
            "not as τ", digits=".2f",
            why="their measure is the share of pairs in the right order, (1 + τ) / 2",
        ),
    ]  # fmt: skip


def record_again(chapter: Chapter, kept: pd.DataFrame, again: pd.DataFrame) -> str:
    """Record how far rows computed again are from kept ones, and say it.

    Args:
        chapter: where to.
        kept: rows of a kept run.
        again: some of them, computed here.
    """
    both = again.merge(kept, on=["group", "problem", "sampler", "step"], suffixes=("", "_kept"))
    apart = (both["llc"] - both["llc_kept"]).abs() / np.hypot(both["mcse"], both["mcse_kept"])
    chapter.record(
        n_again=len(both), again_z_max=float(apart.max()) if apart.notna().any() else 0.0
    )
    return (
        "**{n_again}** of the kept runs were made again here: none differs by more than "
        "{again_z_max:.2f} of its standard errors."
    )


# -- numbers in words ------------------------------------------------------------------------------


def record(chapter: Chapter, **numbers: float) -> None:
    """Record those numbers that are known."""
    chapter.record(**{k: v for k, v in numbers.items() if np.isfinite(v)})


def number(value: float) -> str:
    """A correlation, or a dash."""
    return f"{value:.3f}" if math.isfinite(value) else "–"


def percent(value: float) -> str:
    """A share or an error in per cent; "diverged" where it is infinite."""
    return f"{value:.1%}" if math.isfinite(value) else "diverged"


def percent_with_error(value: float, error: float) -> str:
    """The same with its standard error."""
    return percent(value) + (f" ± {error:.1%}" if math.isfinite(error) else " ± not known")


def with_error(value: float, error: float, places: int = 2) -> str:
    """A number with its standard error."""
    if not math.isfinite(value):
        return "diverged"
    return f"{value:.{places}f} ± " + (
        f"{error:.{places}f}" if math.isfinite(error) else "not known"
    )


__all__ = [
    "EARLIER",
    "agreement_rows",
    "claims",
    "digits_in_words",
    "error_rows",
    "kendall_rows",
    "key_of",
    "problem_rows",
    "record_again",
    "record_digits",
    "record_known",
    "record_winner",
    "verdict_rows",
    "winner_in_words",
]
