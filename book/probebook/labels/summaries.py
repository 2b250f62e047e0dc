"""What the studies say, in tables: means over seeds with intervals, by score.

The unit of repetition is the seed: it has its own samples, noise, networks and draws. A mean over
tasks, kinds and rates of noise is taken within each seed, and its interval is over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from probebook.labels.probe import PROBE
from probebook.labels.scores import POST_HOC
from probebook.labels.study import SCORES
from probebook.similarities import Interval, mean_interval

__all__ = [
    "POSTERIOR",
    "best_post_hoc",
    "by_epoch",
    "by_stage",
    "difference",
    "flags",
    "means",
    "noise_name",
    "stages",
]

POSTERIOR = tuple(PROBE)
"""The probe's scores at the local gamma: those of one network, with draws around it."""

_STAGES = ("underfitted", "between", "memorized")


def noise_name(kind: str, rate: float) -> str:
    """As in ``uniform10``."""
    return f"{kind}{100 * rate:g}"


def of_scores(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of scores alone, without flags and numbers about the network."""
    return rows[rows.score.isin(list(SCORES))]


def means(rows: pd.DataFrame, by: Sequence[str], value: str = "auroc") -> pd.DataFrame:
    """Means over everything that ``by`` does not name, with 95 % intervals over seeds.

    Args:
        rows: of :func:`probebook.labels.study.run_studies`.
        by: columns to keep, such as ``["score", "epoch"]``.
        value: what is averaged.

    Returns:
        A row a combination: those columns, ``mean``, ``low`` and ``high`` (shares, so that they end
        at 0 and 1; NaN of a single seed), ``seeds``.

    Raises:
        ValueError: a seed has fewer studies than another, so that they are not repetitions.
    """
    by = list(by)
    cells = rows.groupby([*by, "seed"])[value].agg(["mean", "size"]).reset_index()
    uneven = cells.groupby(by)["size"].nunique() > 1
    if uneven.any():
        raise ValueError(
            f"rows has more of {uneven.index[uneven.argmax()]} for some seeds than for others; "
            "give the same studies for each"
        )
    found = []
    for keys, part in cells.groupby(by, sort=False):
        own = mean_interval(part["mean"])
        found.append((*keys, own.value, *np.clip((own.low, own.high), 0, 1), len(part)))
    return pd.DataFrame(found, columns=[*by, "mean", "low", "high", "seeds"])


def by_epoch(rows: pd.DataFrame) -> pd.DataFrame:
    """:func:`means` of each score at each epoch, over all studies."""
    return means(of_scores(rows), ["score", "epoch"])


def stages(rows: pd.DataFrame) -> pd.DataFrame:
    """How far each network has memorized: ``stage`` of every study and epoch.

    ``underfitted`` where it predicts a fifth of the wrong labels or fewer, ``memorized`` where it
    predicts more than nine tenths of them, ``between`` else.
    """
    fitted = rows[rows.score == "fitted_wrong"].copy()
    fitted["stage"] = pd.cut(fitted.auroc, [-1, 0.2, 0.9, 2], labels=list(_STAGES)).astype(str)
    return fitted.drop(columns=["score", "auroc", "average_precision", "seconds"])


def by_stage(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean of each score in each stage of memorization, with intervals over seeds.

    Seeds may have different networks in a stage, which the intervals contain.

    Raises:
        ValueError: some scores are missing in some studies, so that means would be over different
            ones.
    """
    keys = ["task", "noise", "rate", "seed", "epoch"]
    own = of_scores(rows)
    counts = own.groupby("score").size()
    if counts.nunique() > 1:
        raise ValueError(
            f"rows has {counts.min()} of {counts.idxmin()!r} and {counts.max()} of "
            f"{counts.idxmax()!r}; give studies that have every score, such as those of one rate"
        )
    staged = own.merge(stages(rows), on=keys)
    cells = staged.groupby(["score", "stage", "seed"])["auroc"].mean().reset_index()
    found = []
    for (score, stage), part in cells.groupby(["score", "stage"]):
        own = mean_interval(part["auroc"])
        found.append((score, stage, own.value, *np.clip((own.low, own.high), 0, 1), len(part)))
    return pd.DataFrame(found, columns=["score", "stage", "mean", "low", "high", "seeds"])


def best_post_hoc(rows: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Of the scores of one finished network the one whose worst epoch is best.

    Returns:
        Its name; and a row a score: ``score``, ``worst`` (lowest mean AUROC over epochs), its
        ``low`` and ``high``, ``epoch`` where that is, ``mean`` over epochs; best first.
    """
    table = by_epoch(rows[rows.score.isin([*POST_HOC, *POSTERIOR])])
    found = []
    for score, part in table.groupby("score"):
        worst = part.loc[part["mean"].idxmin()]
        found.append(
            (score, worst["mean"], worst["low"], worst["high"], worst["epoch"], part["mean"].mean())
        )
    columns = ["score", "worst", "low", "high", "epoch", "mean"]
    ranked = pd.DataFrame(found, columns=columns).sort_values("worst", ascending=False)
    return str(ranked.score.iloc[0]), ranked.reset_index(drop=True)


def difference(rows: pd.DataFrame, one: str, other: str, epoch: int | None = None) -> Interval:
    """Mean AUROC of one score less that of another, paired within each study.

    Args:
        rows: of the studies.
        one, other: names of scores.
        epoch: at which; None: over all.
    """
    if epoch is not None:
        rows = rows[rows.epoch == epoch]
    keys = ["task", "noise", "rate", "seed", "epoch"]
    first, second = (rows[rows.score == name].set_index(keys)["auroc"] for name in (one, other))
    pairs = (first - second).dropna()
    if not len(pairs):
        raise ValueError(f"rows has no study with both {one!r} and {other!r}")
    return mean_interval(pairs.groupby("seed").mean())


def flags(rows: pd.DataFrame) -> pd.DataFrame:
    """Recall and precision of what is flagged, by rate and epoch: means and intervals over seeds.

    Returns:
        A row a detector, rate and epoch: ``detector``, ``rate``, ``epoch``, ``recall`` and
        ``precision`` with ``_low`` and ``_high``.
    """
    called = rows[rows.score.str.startswith("flags_")]
    by = ["score", "rate", "epoch"]
    recall = means(called, by).drop(columns="seeds")
    precision = means(called, by, "average_precision").drop(columns="seeds")
    recall.columns = [*by, "recall", "recall_low", "recall_high"]
    precision.columns = [*by, "precision", "precision_low", "precision_high"]
    both = recall.merge(precision, on=by)
    both["detector"] = both.score.str.removeprefix("flags_")
    return both.drop(columns="score")
