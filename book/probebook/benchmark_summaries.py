r"""What the rows of :mod:`probebook.sampler_benchmark` say: pure functions of a table (chapter 09).

The error of a row is its LLC over that of a truth, less one. Two truths are told apart, and every
function takes the one that is meant: ``"eq1"``, the LLC of Eq. 1, which a perfect sampler would
report; ``"limit"``, the learning coefficient, which no sampler aims at.

A run that diverged has no LLC. It is counted as an infinite error, never left out.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

__all__ = [
    "CLOSE",
    "best_steps",
    "by_step",
    "error_of",
    "kendall",
    "of_choices",
    "outside",
    "perfect_order",
    "rank_agreement",
    "regret",
    "relative_errors",
    "verdicts",
    "winner",
]

_VERDICTS = {"good": "approved", "wide": "wide", "wrong": "refused"}
CLOSE = 0.1  # a relative error up to which an LLC counts as right, as in the library's verdict


def error_of(rows: pd.DataFrame, truth: str = "eq1") -> pd.Series:
    """The relative error of each row in absolute value; infinite where there is no LLC.

    Raises:
        ValueError: ``truth`` is neither "eq1" nor "limit", or not known for some row.
    """
    if truth not in ("eq1", "limit"):
        raise ValueError(f"truth is {truth!r}; choose 'eq1' or 'limit'")
    if rows[truth].isna().any():
        unknown = rows.loc[rows[truth].isna(), "problem"].iloc[0]
        raise ValueError(f"truth is {truth!r}, which is not known for {unknown!r}; leave it out")
    return rows[f"relative_error_to_{truth}"].abs().fillna(np.inf)


# -- how far off -----------------------------------------------------------------------------------


def best_steps(rows: pd.DataFrame, truth: str = "eq1") -> pd.Series:
    """Of each sampler the one step at which its median error over all problems is least."""
    errors = rows.assign(error=error_of(rows, truth))
    medians = errors.groupby(["sampler", "step"], sort=True)["error"].median()
    return medians.groupby("sampler").idxmin().map(lambda at: at[1]).rename("step")


def by_step(rows: pd.DataFrame, truth: str = "eq1") -> pd.DataFrame:
    """Each sampler at each step over all problems: what the chapter's figures draw.

    Returns:
        One line per sampler and step, in the order of the steps: ``error``, the median relative
        error, and its quartiles ``low`` and ``high`` over problems; ``effective_per_gradient``,
        the median of runs that did not diverge; and the shares of the verdicts ``good``,
        ``wide`` and ``wrong``.
    """
    table = rows.assign(error=error_of(rows, truth))
    lines = []
    for name in dict.fromkeys(rows["sampler"]):
        for step, own in table[table["sampler"] == name].groupby("step", sort=True):
            # Quartiles are errors of a run: between a finite and an infinite one is nothing.
            low, high = np.quantile(own["error"], (0.25, 0.75), method="higher")
            said = {verdict: (own["verdict"] == verdict).mean() for verdict in _VERDICTS}
            lines.append(
                {
                    "sampler": name,
                    "step": step,
                    "error": float(np.median(own["error"])),
                    "low": low,
                    "high": high,
                    "effective_per_gradient": own["effective_per_gradient"].median(),
                    **said,
                }
            )
    return pd.DataFrame(lines)


def relative_errors(
    rows: pd.DataFrame, truth: str = "eq1", resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """How far off each sampler is: at one step for all problems, at each one's own, and anywhere.

    Args:
        rows: of :func:`probebook.sampler_benchmark.grid`.
        truth: "eq1" or "limit".
        resamples: of the problems, for the standard errors. Each resample chooses its step anew.
        seed: of these.

    Returns:
        One line per sampler: ``step``, the best one for all; ``error``, the median error over
        problems there, and ``error_se``; ``own_step_error``, the median over problems of the
        error at the step that suits each best, which nobody knows who does not know the truth;
        ``range_error``, the median over all problems and steps; ``range_close``, the share of all
        runs that are within a tenth, and ``range_close_se``.
    """
    table = rows.assign(error=error_of(rows, truth))
    steps, lines = best_steps(rows, truth), []
    for name, own in table.groupby("sampler", sort=False):
        errors = _by_problem(own, ["step"]).to_numpy()
        close = (errors <= CLOSE).mean(1)
        lines.append(
            {
                "sampler": name,
                "step": steps[name],
                "error": _least_median(errors),
                "error_se": _bootstrap(errors, _least_median, resamples, seed),
                "own_step_error": float(np.median(errors.min(1))),
                "range_error": float(np.median(errors)),
                "range_close": float(close.mean()),
                "range_close_se": _bootstrap(close, np.mean, resamples, seed),
            }
        )
    return pd.DataFrame(lines)


def _by_problem(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Errors with a row per problem; every problem must have been run at all settings."""
    wide = table.set_index(["group", "problem", *columns])["error"].unstack(columns)
    if wide.isna().any(axis=None):
        raise ValueError(
            f"rows lack some {' and '.join(columns)} of {wide.isna().any(axis=1).idxmax()}"
        )
    return wide


def _least_median(errors: np.ndarray) -> float:
    return float(np.median(errors, axis=0).min())


def _bootstrap(
    values: np.ndarray, statistic: Callable[[np.ndarray], float], resamples: int, seed: int
) -> float:
    """Standard error of a statistic over problems, which are the rows."""
    rng = np.random.default_rng(seed)
    found = np.array(
        [statistic(values[rng.integers(0, len(values), len(values))]) for _ in range(resamples)]
    )
    return float(found.std(ddof=1)) if np.isfinite(found).all() else float("inf")


def winner(
    rows: pd.DataFrame, truth: str = "eq1", resamples: int = 1000, seed: int = 0
) -> dict[str, str | float]:
    """The sampler of the least median error at its best step, and how sure that is.

    Returns:
        ``winner``, ``runner_up``, ``lead`` (how much less its error is) and ``share``: in how many
        resamples of the problems it wins.
    """
    table = rows.assign(error=error_of(rows, truth))
    names = list(dict.fromkeys(rows["sampler"]))
    wide = _by_problem(table, ["sampler", "step"])
    errors = np.stack([wide[name].to_numpy() for name in names])  # sampler, problem, step
    by_sampler = np.median(errors, axis=1).min(-1)
    order = np.argsort(by_sampler, kind="stable")
    rng, wins = np.random.default_rng(seed), 0
    for _ in range(resamples):
        chosen = rng.integers(0, errors.shape[1], errors.shape[1])
        wins += int(np.median(errors[:, chosen], axis=1).min(-1).argmin() == order[0])
    return {
        "winner": names[order[0]],
        "runner_up": names[order[1]] if len(names) > 1 else "",
        "lead": float(by_sampler[order[1]] - by_sampler[order[0]]) if len(names) > 1 else 0.0,
        "share": wins / resamples,
    }


# -- are models told apart -------------------------------------------------------------------------


def kendall(rows: pd.DataFrame, truth: str = "limit") -> pd.DataFrame:
    r"""Whether the estimates order the problems as the truth does, at each step of each sampler.

    Only pairs within a group count, as models of different sizes are told apart by any method.
    :math:`\tau = (C - D) / P` of P pairs with different truths, C in the right and D in the wrong
    order. A pair of which one has no estimate is in no order.

    Returns:
        One line per sampler and step: ``tau``, its jackknife error over problems ``tau_se``
        (infinite where it cannot tell: below three problems, or where all agree), and
        ``preserved``, the share C / P.
    """
    lines = []
    for (name, step), own in rows.groupby(["sampler", "step"], sort=False):
        tau, preserved = _tau(own, truth)
        without = np.array([_tau(own.drop(index=at), truth)[0] for at in own.index])
        n, known = len(own), np.isfinite(without).all() and np.ptp(without) > 0
        se = float(np.sqrt((n - 1) / n * np.square(without - without.mean()).sum()))
        lines.append(
            {
                "sampler": name,
                "step": step,
                "tau": tau,
                "tau_se": se if known else np.inf,
                "preserved": preserved,
            }
        )
    return pd.DataFrame(lines)


def perfect_order(rows: pd.DataFrame) -> float:
    """Kendall's tau of a perfect sampler: that of the LLCs of Eq. 1 with the coefficients.

    Below 1 where Eq. 1 orders two problems otherwise than their limits.
    """
    problems = rows.drop_duplicates(["group", "problem"])
    return _tau(problems.assign(llc=problems["eq1"]), "limit")[0]


def _tau(rows: pd.DataFrame, truth: str) -> tuple[float, float]:
    concordant = discordant = pairs = 0
    for _, group in rows.groupby("group"):
        for one, other in combinations(group.itertuples(), 2):
            apart = getattr(one, truth) - getattr(other, truth)
            if apart == 0 or np.isnan(apart):  # alike, or nobody knows which is larger
                continue
            pairs += 1
            agreement = np.sign(apart) * np.sign(one.llc - other.llc)  # NaN where one is missing
            concordant += int(agreement > 0)
            discordant += int(agreement < 0)
    if not pairs:
        return float("nan"), float("nan")
    return (concordant - discordant) / pairs, concordant / pairs


# -- is the verdict right --------------------------------------------------------------------------


def verdicts(rows: pd.DataFrame, truth: str = "eq1") -> pd.DataFrame:
    """What the library's verdict says of runs that are right, and of runs that are wrong.

    Returns:
        One line per sampler, shares of all its runs: ``approved_close`` and ``approved_off``
        (verdict "good"; the second is the worst fault), ``wide_close`` and ``wide_off``,
        ``refused_close`` (needlessly) and ``refused_off``; and ``right``, all that is approved
        and close, or not approved and off.
    """
    close = error_of(rows, truth) <= CLOSE
    said = rows["verdict"].map(_VERDICTS)
    if said.isna().any():
        raise ValueError(f"verdict is {rows['verdict'][said.isna()].iloc[0]!r}")
    kind = said + np.where(close, "_close", "_off")
    kinds = [f"{a}_{b}" for a in ("approved", "wide", "refused") for b in ("close", "off")]
    found = pd.crosstab(rows["sampler"], kind, normalize="index").reindex(columns=kinds)
    found = found.fillna(0.0).loc[list(dict.fromkeys(rows["sampler"]))]
    found["right"] = found["approved_close"] + found["wide_off"] + found["refused_off"]
    return found.rename_axis(columns=None).reset_index()


def outside(rows: pd.DataFrame) -> float:
    """Share of the approved runs whose truth is beyond what they state: two errors, and the bias.

    Chance alone makes it about a twentieth. NaN where nothing was approved.
    """
    approved = rows[rows["verdict"] == "good"]
    bias = approved["step_bias"].fillna(0.0)
    low, high = np.minimum(bias, 0), np.maximum(bias, 0)
    error = 2 * np.hypot(approved["mcse"], approved["eq1_se"])
    off = approved["llc"] - approved["eq1"]
    return float(((off > high + error) | (off < low - error)).mean())


# -- what a choice costs ---------------------------------------------------------------------------


def regret(rows: pd.DataFrame, chosen: pd.DataFrame, truth: str = "eq1") -> pd.DataFrame:
    """What a chosen setting loses against the best of the grid.

    The best setting of a problem is the one of most effective draws per gradient among those
    within a tenth of the truth: the one that someone would take who knew the truth.

    Args:
        rows: the grid.
        chosen: one row per problem, with the same columns; not necessarily of the grid.
        truth: "eq1" or "limit".

    Returns:
        One line per chosen row: ``problem``, ``close`` (whether the choice is within a tenth),
        ``best`` (effective draws per gradient of the best setting), ``regret`` (1 less the choice's
        efficiency over the best; 1 where the choice is off, below 0 where it beats the grid, NaN
        where nothing of the grid is close), and ``error_regret`` (its relative error less the
        least in the grid).
    """
    table = rows.assign(error=error_of(rows, truth))
    lines = []
    for row, error in zip(chosen.itertuples(), error_of(chosen, truth), strict=True):
        own = table[(table["group"] == row.group) & (table["problem"] == row.problem)]
        if own.empty:
            raise ValueError(f"problem is {row.problem!r}, of which rows has none")
        best = own.loc[own["error"] <= CLOSE, "effective_per_gradient"].max()  # NaN of none
        close = bool(error <= CLOSE)
        lost = 1 - row.effective_per_gradient / best if close else 1.0
        lines.append(
            {
                "problem": row.problem,
                "close": close,
                "best": best,
                "regret": lost if np.isfinite(best) else np.nan,
                "error_regret": error - own["error"].min(),
            }
        )
    return pd.DataFrame(lines)


def of_choices(rows: pd.DataFrame, chosen: pd.DataFrame, truth: str = "eq1") -> dict[str, float]:
    """How good a rule is that chooses settings, or refuses to.

    Args:
        rows: the grid.
        chosen: of :func:`probebook.sampler_benchmark.measure_choice`, one row per problem.
        truth: "eq1" or "limit".

    Returns:
        Shares of all problems: ``refused``; ``within_5pct``; ``wrong``, approved by the verdict
        and off by more than a tenth, the worst fault; and ``regret_median`` over those that were
        not refused, NaN where there are none.
    """
    refused = chosen["refused"] != ""
    error = error_of(chosen, truth)
    wrong = ~refused & (chosen["verdict"] == "good") & (error > CLOSE)
    lost = regret(rows, chosen[~refused], truth)["regret"] if (~refused).any() else pd.Series([])
    return {
        "refused": float(refused.mean()),
        "within_5pct": float((error <= CLOSE / 2).mean()),
        "wrong": float(wrong.mean()),
        "regret_median": float(lost.median()),
    }


# -- ranks where values do not survive -------------------------------------------------------------


def rank_agreement(reference: np.ndarray, gains: np.ndarray) -> tuple[float, float]:
    """Spearman's correlation of loss gains with those of a reference, and its error.

    Args:
        reference: gains of the samples, shape (n,).
        gains: of the same samples by each chain, shape (chains, n).

    Returns:
        The correlation of the mean over chains, and its jackknife error over chains: infinite for
        one chain. It says how far chance in these chains may have moved it, and nothing of what
        noise in either set of gains takes off.

    Raises:
        ValueError: shapes that do not fit, or gains that are not finite.
    """
    gains = np.atleast_2d(gains)
    if gains.ndim != 2 or gains.shape[1:] != np.shape(reference):
        raise ValueError(
            f"gains has shape {gains.shape} and reference {np.shape(reference)}; give (chains, n) "
            "and (n,)"
        )
    if not (np.isfinite(gains).all() and np.isfinite(reference).all()):
        raise ValueError("gains or reference is not finite; leave out chains that diverged")
    value, chains = float(spearmanr(reference, gains.mean(0)).statistic), len(gains)
    if chains < 2:
        return value, float("inf")
    without = np.array(
        [spearmanr(reference, np.delete(gains, c, 0).mean(0)).statistic for c in range(chains)]
    )
    spread = np.square(without - without.mean()).sum()
    return value, float(np.sqrt((chains - 1) / chains * spread))
