"""Figures of odd inputs told from others, and of labels that were inspected and repaired."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probebook.outlier_scores import PROBE, SCORES
from probebook.outliers import PAIRS
from probebook.relabelling import IDEAL, NOTHING, RANDOM
from probelib.plotting import BLUE, GREEN, PURPLE, VERMILION, figure

_SERIES = (
    (VERMILION, "-", "D"), (BLUE, "-", "o"), (GREEN, "--", "s"), (PURPLE, "-.", "^"),
    ("#8a5f00", (0, (5, 1, 1, 1)), "v"),
)  # fmt: skip
_CHANCE = {"auroc": 0.5, "fpr": 0.95}
_LABEL = {"auroc": "AUROC", "fpr": "FPR at 95 % TPR"}


def odd_scores(table: pd.DataFrame, measure: str = "auroc") -> Figure:
    """How well each score tells odd inputs: one panel a pair, a point with its interval a score.

    Args:
        table: from :func:`probebook.outliers.ood_table`.
        measure: ``"auroc"`` or ``"fpr"``, whose chance is a dotted line.
    """
    pairs, scores = list(table.pair.unique()), list(table.score.unique())
    fig, axes = figure(
        1, len(pairs), size=(2.2 + 1.8 * len(pairs), 0.3 * len(scores) + 1.5), sharex=True,
        sharey=True,
    )  # fmt: skip
    at = dict(zip(scores, np.arange(len(scores))[::-1], strict=True))
    for ax, pair in zip(axes[0], pairs, strict=True):
        own = table[table.pair == pair]
        for row in own.to_dict("records"):
            probe = row["score"] in PROBE
            color, place = VERMILION if probe else BLUE, at[row["score"]]
            ends = row[f"{measure}_low"], row[f"{measure}_high"]
            if np.isfinite(ends).all():
                ax.plot(ends, [place, place], color=color, lw=2.2)
            ax.plot(row[measure], place, "D" if probe else "o", color=color, ms=5.5)
        ax.axvline(_CHANCE[measure], color="0.35", ls=":", lw=1.3)
        ax.set_title(_title(pair), fontsize=9)
        ax.set_xlabel(_LABEL[measure], fontsize=9)
        ax.tick_params(axis="x", labelsize=8)
        ax.margins(x=0.1, y=0.05)
    axes[0, 0].set_yticks(list(at.values()), [SCORES[name] for name in at], fontsize=9)
    return fig


def odd_sweep(table: pd.DataFrame) -> Figure:
    """The probe's AUROC along the localization: one panel a pair, the one that was chosen marked.

    Args:
        table: from :func:`probebook.outliers.ood_sweep`. Where its weights are not to be trusted,
            markers are hollow.
    """
    pairs = list(table.pair.unique())
    fig, axes = figure(1, len(pairs), size=(1.0 + 2.1 * len(pairs), 3.3), sharey=True)
    for ax, pair in zip(axes[0], pairs, strict=True):
        own = table[table.pair == pair]
        for score, (color, ls, marker) in zip(own.score.unique(), _SERIES, strict=False):
            line = own[own.score == score]
            gamma, value = line.localization.to_numpy(), line.auroc.to_numpy()
            ax.fill_between(gamma, line.auroc_low, line.auroc_high, color=color, alpha=0.15, lw=0)
            look = {"color": color, "marker": marker, "ms": 4.5}
            ax.plot(gamma, value, ls=ls, lw=1.3, label=SCORES[score], **look)
            bad = line.khat.to_numpy() > 0.7
            ax.plot(gamma[bad], value[bad], ls="none", mfc="white", **look)
        ax.axvline(own.chosen.iloc[0], color="0.35", ls=":", lw=1.3)
        ax.set(xscale="log", xlabel=r"localization $\gamma$")
        ax.set_title(_title(pair), fontsize=9)
        ax.tick_params(labelsize=8)
    axes[0, 0].set_ylabel("AUROC")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(
        handles, labels, fontsize=8, loc="outside lower center", ncols=2, handlelength=3,
        frameon=False,
    )  # fmt: skip
    return fig


def _title(pair: str) -> str:
    """Of a panel: what the network knows and what it is shown."""
    trained, shown = PAIRS[pair]
    return f"trained: {trained}\nshown: {shown}"


def relabelling_curves(
    table: pd.DataFrame,
    share: float,
    highlight: Sequence[str],
    names: Mapping[str, str] | None = None,
) -> Figure:
    """What inspection brings: accuracy along the share inspected, and per label at one share.

    Args:
        table: from :func:`probebook.relabelling.accuracy_gained`.
        share: of the right panel, which shows how much more each score gains than chance.
        highlight: at most five scores that get colours; the others are grey.
        names: words for scores; default: as they are.

    Raises:
        ValueError: too many are highlighted, one is not in the table, or the share is not.
    """
    scores = [name for name in table.score.unique() if name not in (NOTHING, RANDOM, IDEAL)]
    unknown = [name for name in highlight if name not in scores]
    if unknown or len(highlight) > len(_SERIES):
        raise ValueError(f"highlight is {list(highlight)}; choose up to five of {scores}")
    if not np.isclose(table.share, share).any():
        raise ValueError(f"share is {share}, which the table does not have")
    words = {RANDOM: "random", IDEAL: "ideal"} | dict(names or {})
    looks = dict(zip(highlight, _SERIES, strict=False))
    size = 9.2, max(3.6, 0.22 * len(scores) + 2.2)
    fig, axes = figure(1, 2, size=size, width_ratios=(1.15, 1))
    left, right = axes[0]
    start = table[table.score == NOTHING].accuracy.iloc[0]
    grey = [name for name in scores if name not in looks]
    for name in [*grey, *looks, RANDOM, IDEAL]:
        shift = 0.0 if name not in looks else list(looks).index(name) - (len(looks) - 1) / 2
        _accuracy_curve(left, table[table.score == name], start, looks.get(name), words, shift)
    left.set(xlabel="labels inspected (%)", ylabel="test accuracy (%)")
    low, high = left.get_ylim()
    left.set_ylim(low - 0.4 * (high - low), high)  # room for the legend
    left.legend(fontsize=8, loc="lower right", ncols=2)
    _gains(right, table[np.isclose(table.share, share)], looks, words)
    right.set_xlabel(
        "points of accuracy per 100 labels,\n"
        f"over random inspection ({100 * share:g} % inspected)", fontsize=9,
    )  # fmt: skip
    return fig


def _accuracy_curve(
    ax: Axes,
    own: pd.DataFrame,
    start: float,
    look: tuple | None,
    words: Mapping[str, str],
    shift: float,
) -> None:
    """The accuracy of one score from no inspection on, with its interval where it has a colour.

    Intervals stand a little beside each other: ``shift`` says where, 1 being the next place.
    """
    name = own.score.iloc[0]
    x, y = np.r_[0, 100 * own.share], 100 * np.r_[start, own.accuracy]
    if name in (RANDOM, IDEAL):
        style = {"color": "0.2", "ls": ":" if name == RANDOM else "--", "lw": 1.6}
    elif look is None:
        ax.plot(x, y, color="0.72", lw=1.0, zorder=1)
        return
    else:
        color, ls, marker = look
        style = {"color": color, "ls": ls, "lw": 1.6, "marker": marker, "ms": 4.5}
        if own.accuracy_low.notna().all():
            low, high = 100 * own.accuracy_low, 100 * own.accuracy_high
            ax.vlines(x[1:] + 0.012 * x[-1] * shift, low, high, color=color, lw=1.3)
    ax.plot(x, y, label=words.get(name, name), **style)


def _gains(
    ax: Axes, own: pd.DataFrame, looks: Mapping[str, tuple], words: Mapping[str, str]
) -> None:
    """Gains over chance with intervals, the largest on top; the ideal stands above all."""
    own = own[~own.score.isin([NOTHING, RANDOM])]
    own = own.sort_values("over_random", kind="stable")
    own = pd.concat([own[own.score != IDEAL], own[own.score == IDEAL]])
    for place, row in enumerate(own.to_dict("records")):
        color, _, marker = looks.get(row["score"], ("0.45", "-", "o"))
        ends = row["over_random_low"], row["over_random_high"]
        if np.isfinite(ends).all():
            ax.plot(ends, [place, place], color=color, lw=2.2)
        ax.plot(row["over_random"], place, marker, color=color, ms=5.5)
    ax.axvline(0, color="0.35", ls=":", lw=1.3)
    ax.set_yticks(np.arange(len(own)), [words.get(n, n) for n in own.score], fontsize=9)


__all__ = ["odd_scores", "odd_sweep", "relabelling_curves"]
