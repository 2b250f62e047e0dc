"""Chapter 09: which rows it shows, numbers to record, tables and sentences."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from probebook import benchmark_summaries as summaries
from probebook import toys
from probebook.chapter import Chapter, Claim

#: Heading of what the earlier benchmark found.
EARLIER = "earlier benchmark"


def key_of(name: str) -> str:
    """A name as a part of a number's name: "RMSprop-SGLD" -> "rmsprop_sgld"."""
    return "_".join(re.findall(r"[a-z0-9]+", name.lower()))


def record_known(chapter: Chapter, rows: pd.DataFrame) -> None:
    """Record what the problems are, and how far Eq. 1 is from the learning coefficient."""
    problems = rows.drop_duplicates(["group", "problem"])
    share = (problems["eq1"] / problems["limit"]).dropna()
    approved = summaries.error_of(rows)[rows["verdict"] == "good"]
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
        verdict_worst=float(approved.max()) if len(approved) else 0.0,
    )
    record(chapter, verdict_outside=summaries.outside(rows))


def problem_rows(chapter: Chapter, rows: pd.DataFrame) -> list[dict[str, str]]:
    """One line of a table per problem: its coefficient, and the LLC of Eq. 1."""
    table = []
    for k, problem in enumerate(rows.drop_duplicates(["group", "problem"]).itertuples()):
        key = f"problem_{k + 1}"
        chapter.record(
            **{
                f"{key}_what": problem.problem,
                f"{key}_weights": problem.weights,
                f"{key}_eq1": problem.eq1,
                f"{key}_eq1_se": problem.eq1_se,
            }
        )
        record(chapter, **{f"{key}_limit": problem.limit})
        table.append(
            {
                "problem": problem.problem,
                "weights": f"{problem.weights:,}",
                "learning coefficient λ": (
                    "not known" if math.isnan(problem.limit) else f"{problem.limit:.4g}"
                ),
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
    chapter: Chapter, to_limit: pd.DataFrame, to_eq1: pd.DataFrame, steps: Mapping[str, float]
) -> list[dict[str, str]]:
    """Record how well each sampler orders the problems at its best step, a line of a table each.

    Args:
        chapter: where to.
        to_limit, to_eq1: of :func:`probebook.benchmark_summaries.kendall`, by both truths.
        steps: sampler -> its best step.
    """
    table = []
    for name, step in steps.items():
        key = key_of(name)
        own = to_limit[to_limit["sampler"] == name]
        at = own[own["step"] == step].iloc[0]
        same = to_eq1[(to_eq1["sampler"] == name) & (to_eq1["step"] == step)].iloc[0]
        record(
            chapter,
            **{
                f"kendall_{key}": at["tau"],
                f"kendall_{key}_se": at["tau_se"],
                f"order_preserved_{key}": at["preserved"],
                f"kendall_{key}_range": own["tau"].median(),
                f"kendall_eq1_{key}": same["tau"],
                f"kendall_eq1_{key}_se": same["tau_se"],
            },
        )
        table.append(
            {
                "sampler": name,
                "τ with λ, at its best step": with_error(at["tau"], at["tau_se"]),
                "pairs in the right order": percent(at["preserved"]),
                "τ with λ, median over all steps": f"{own['tau'].median():.2f}",
                "τ with Eq. 1, at its best step": with_error(same["tau"], same["tau_se"]),
            }
        )
    return table


def size_rows(chapter: Chapter, rows: pd.DataFrame) -> list[dict[str, str]]:
    """Record each sampler's least median error by group of problems, a line of a table each.

    Args:
        chapter: where to.
        rows: of the grid, and of larger networks that were run at some steps and samplers only.
    """
    groups = list(dict.fromkeys(rows["group"]))
    table = []
    for name, own in rows.groupby("sampler", sort=False):
        line = {"sampler": name}
        for group in groups:
            here = own[own["group"] == group]
            if here.empty:
                line[group] = "–"
                continue
            errors = summaries.error_of(here).groupby(here["step"]).median()
            step = errors.idxmin()
            key = f"{key_of(str(name))}_{key_of(group)}"
            record(chapter, **{f"error_{key}": errors[step], f"step_{key}": step})
            line[group] = f"{percent(errors[step])} ({step:.3g})"
        table.append(line)
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
        "right": "right",
    }
    table = []
    for line in found.to_dict("records"):
        key = key_of(line["sampler"])
        chapter.record(**{f"verdict_{v}_{key}": line[v] for v in columns.values()})
        cells = {title: percent(line[column]) for title, column in columns.items()}
        table.append({"sampler": line["sampler"]} | cells)
    off = found[[name for name in columns.values() if name.endswith("off")]].sum(axis=1)
    chapter.record(
        verdict_missed=float(found["approved_off"].sum() / off.sum()) if off.sum() else 0.0,
        verdict_right=float(found["right"].mean()),
        verdict_needless=float((found["refused_close"] + found["wide_close"]).mean()),
    )
    return table


def verdicts_in_words(chapter: Chapter) -> str:
    """How often the verdict is right, and which way it errs."""
    said = (
        "The verdict is right for **{verdict_right:.0%}** of all runs. It approves "
        "{verdict_missed:.1%} of the runs that are off by more than 10 %, the worst by "
        "{verdict_worst:.0%}; {verdict_needless:.0%} of all are right and not approved."
    )
    if "verdict_outside" in chapter.numbers:  # something was approved
        said += (
            " An approved LLC states an error, and a step bias of up to 10 %: the truth is beyond "
            "two errors and that bias for {verdict_outside:.1%} of the approved runs, and chance "
            "alone gives 5 %."
        )
    return said


def record_choices(chapter: Chapter, found: Mapping[str, float], chosen: pd.DataFrame) -> None:
    """Record how good calibrate's settings are on problems whose LLC is known.

    Args:
        chapter: where to.
        found: of :func:`probebook.benchmark_summaries.of_choices`.
        chosen: of :func:`probebook.sampler_benchmark.measure_choice`, a row a problem.
    """
    chapter.record(
        choices=len(chosen),
        choices_within_5pct=found["within_5pct"],
        choices_refused=found["refused"],
        choices_wrong=found["wrong"],
    )
    record(chapter, regret_calibrate_median=found["regret_median"])


def calibration_rows(chapter: Chapter, found: pd.DataFrame) -> list[dict[str, str]]:
    """Record what calibrate found for each network, and give a line of a table each.

    Args:
        chapter: where to.
        found: of :func:`probebook.calibrated_networks.measure`, a row a network.
    """
    table = []
    for k, row in enumerate(found.to_dict("records")):
        key = f"calibrated_{k + 1}"
        chapter.record(**{f"{key}_network": row["network"], f"{key}_weights": row["weights"]})
        line = {"network": row["network"], "weights": f"{row['weights']:,}"}
        if row["refused"]:
            chapter.record(**{f"{key}_refused": row["refused"]})
            columns = ("γ", "step size", "burn-in, draws, thin", "LLC", "reference", "off by")
            nothing = dict.fromkeys(columns, "–")
            table.append(line | nothing | {"verdict": "refused", "seconds": seconds_of(row)})
            continue
        names = ("localization", "step_size", "burn_in", "draws", "thin", "llc", "mcse")
        names += ("reference", "reference_mcse", "off")
        record(chapter, **{f"{key}_{name}": row[name] for name in names})
        table.append(
            line
            | {
                "γ": f"{row['localization']:g}",
                "step size": f"{row['step_size']:.2g}",
                "burn-in, draws, thin": ", ".join(f"{row[k]:.0f}" for k in names[2:5]),
                "LLC": toys.with_error(row["llc"], row["mcse"]),
                "reference": toys.with_error(row["reference"], row["reference_mcse"]),
                "off by": f"{row['off']:+.1%}",
                "verdict": row["verdict"],
                "seconds": seconds_of(row),
            }
        )
    return table


def seconds_of(row: Mapping[str, Any]) -> str:
    """How long a calibration took."""
    return f"{row['seconds']:.1f}"


def calibration_in_words(chapter: Chapter) -> str:
    """How often calibrate was right, as this run has it."""
    said = (
        "Of **{calibrated_networks}** networks {calibrated_within_5pct} are within 5 % of their "
        "reference, {calibrated_refused} were refused ({calibrated_refused_sound} of them with "
        "something to be probed), and **{calibrated_wrong}** are approved and wrong. Finding the "
        "settings takes {calibrated_seconds_median:.0f} seconds at the median. "
        "Of the {choices} problems of known LLC {choices_within_5pct:.0%} are within 5 %, "
        "{choices_refused:.0%} are refused, and {choices_wrong:.0%} are approved and off by more "
        "than 10 %."
    )
    if "regret_calibrate_median" in chapter.numbers:
        said += " The median regret is **{regret_calibrate_median:.2f}**."
    return said


def agreement_rows(chapter: Chapter, found: pd.DataFrame, of: str) -> list[dict[str, str]]:
    """Record each run beside the reference, and give a line of a table each.

    Args:
        chapter: where to.
        found: of :func:`probebook.sampler_agreement.agreement`.
        of: which network: the first word of the numbers' names.
    """
    words = {"good": "approved", "wide": "uncertain", "wrong": "refused"}
    table = []
    for k, line in enumerate(found.itertuples()):
        key = f"{of}_{key_of(line.sampler)}_{k + 1}"
        names = ("step_size", "llc", "mcse", "error", "spearman", "spearman_se", "kernel")
        record(chapter, **{f"{key}_{name}": getattr(line, name) for name in names})
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


def record_agreement(
    chapter: Chapter, found: pd.DataFrame, ceiling: Mapping[str, float], of: str
) -> None:
    """Record where ranks survive and values do not.

    Args:
        chapter: where to.
        found: of :func:`probebook.sampler_agreement.agreement`.
        ceiling: of :func:`probebook.sampler_agreement.halves`.
        of: which network: the first word of the numbers' names.
    """
    close = found["error"] <= summaries.CLOSE
    off = found[~close & np.isfinite(found["error"])]
    numbers = {
        "runs": len(found),
        "close": int(close.sum()),
        "off": len(off),
        "ceiling_spearman": ceiling["spearman"],
        "ceiling_kernel": ceiling["kernel"],
        "spearman_least_close": found.loc[close, "spearman"].min(),
        "spearman_least_off": off["spearman"].min(),
        "error_largest": off["error"].max(),
    }
    record(chapter, **{f"{of}_{name}": value for name, value in numbers.items()})


def record_gpt(chapter: Chapter, kept: Mapping[str, Any]) -> None:
    """Record what is known of the small GPT: its reference, and where ranks survive.

    Args:
        chapter: where to.
        kept: of :func:`probebook.gpt_agreement.kept_agreement`.
    """
    about = kept["about"]
    chapter.record(**{f"gpt_{name}": about[name] for name in ("weights", "llc", "mcse", "khat")})
    record_agreement(chapter, kept["rows"], kept["ceiling"], "gpt")


def agreement_in_words(chapter: Chapter, of: str) -> str:
    """What the runs say, as far as there are such runs.

    Args:
        chapter: where they are recorded.
        of: which network: the first word of the numbers' names.
    """
    said = [
        "Of {digits_runs} runs **{digits_close}** have an LLC within 10 % of the reference's. Two "
        "halves of the reference rank the gains alike with a correlation of "
        "{digits_ceiling_spearman:.4f}."
    ]
    if of == "gpt":
        said.insert(
            0, "The reference has an LLC of {gpt_llc:.2f} ± {gpt_mcse:.2f} (k-hat {gpt_khat:.2f})."
        )
    if f"{of}_spearman_least_close" in chapter.numbers:
        said.append(
            "Where the LLC is right, the least correlation of the gains with the reference's is "
            "{digits_spearman_least_close:.4f}."
        )
    if f"{of}_spearman_least_off" in chapter.numbers:
        said.append(
            "Where it is off, by up to {digits_error_largest:.0%}, the least correlation is "
            "**{digits_spearman_least_off:.4f}**."
        )
    return " ".join(said).replace("{digits_", f"{{{of}_")


def answer_in_words(chapter: Chapter) -> str:
    """The winner of the earlier benchmark, the order of networks, and what calibrate does."""
    key = key_of(str(chapter.numbers["winner"]))
    said = (
        "RMSprop-SGLD, which won an earlier benchmark, has {relative_error_rmsprop_sgld_text}. The "
        f"winner orders the problems with $\\tau$ = {{kendall_{key}:.2f}}; a perfect sampler has "
        "{kendall_perfect:.2f}. "
    )
    return said + (
        "`calibrate` is within 5 % on {calibrated_within_5pct} of {calibrated_networks} networks, "
        "refuses {calibrated_refused}, and is wrong on **{calibrated_wrong}**."
    )


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


def record_front(chapter: Chapter) -> None:
    """Record what the front page shows, as text."""
    numbers = chapter.numbers
    names = dict.fromkeys([str(numbers["winner"]), "SGLD", "Leimkuhler-Matthews", "RMSprop-SGLD"])
    errors = [f"{name}: {numbers[f'relative_error_{key_of(name)}_text']}" for name in names]
    chapter.record(
        front_errors="; ".join(errors),
        front_calibrated="{calibrated_within_5pct} of {calibrated_networks} within 5 % of a longer "
        "run, {calibrated_refused} refused, {calibrated_wrong} wrong".format(**numbers),
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
    "agreement_in_words",
    "agreement_rows",
    "answer_in_words",
    "calibration_in_words",
    "calibration_rows",
    "claims",
    "error_rows",
    "kendall_rows",
    "key_of",
    "problem_rows",
    "record_again",
    "record_agreement",
    "record_choices",
    "record_front",
    "record_gpt",
    "record_known",
    "record_winner",
    "size_rows",
    "verdict_rows",
    "verdicts_in_words",
    "winner_in_words",
]
