"""Figures of chapter 08's small GPT: canaries and genres."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from probebook.memorized import SCORES
from probelib.plotting import BLUE, GREEN, ORANGE, PURPLE, VERMILION, figure

__all__ = ["detection", "genres"]

_LOOKS = dict(
    zip(
        SCORES,
        zip((VERMILION, PURPLE, BLUE, GREEN, ORANGE), "oDs^v", ("-", ":", "--", "-.", (0, (5, 1))),
            strict=True),
        strict=True,
    )
)  # fmt: skip


def detection(table: pd.DataFrame) -> Figure:
    """How well each score tells planted canaries from held-out ones, by how often they were read.

    Args:
        table: of :func:`probebook.memorized.over_networks`.
    """
    fig, axes = figure(1, 2, size=(9.2, 4.1))
    some = table[table.repetitions > 0]
    times = np.unique(some.repetitions)
    for ax, (value, low, high, title) in zip(
        axes[0],
        (
            ("auroc", "low", "high", "AUROC against held-out canaries"),
            ("recall", "recall_low", "recall_high", "found at 1 % false positives"),
        ),
        strict=True,
    ):
        for place, (score, of) in enumerate(some.groupby("score", sort=False)):
            color, marker, line = _LOOKS[score]
            at = np.searchsorted(times, of.repetitions) + 0.09 * (place - 2)
            ax.errorbar(
                at, of[value], (of[value] - of[low], of[high] - of[value]), color=color,
                marker=marker, ls=line, ms=5, lw=1.2, elinewidth=0.8, label=SCORES[score],
            )  # fmt: skip
        ax.set(xticks=range(len(times)), xticklabels=times, xlabel="times planted", title=title)
        ax.set_ylim(-0.03, 1.03)
    axes[0, 0].axhline(0.5, color="0.5", lw=0.8, ls=":")
    axes[0, 1].legend(fontsize=8, loc="upper left")
    return fig


def genres(table: pd.DataFrame) -> Figure:
    """How well each similarity of documents knows their genres, beside what chance gives.

    Args:
        table: of :func:`probebook.genres.recovery_table`.
    """
    titles = {
        "purity": "neighbours of the same genre",
        "auroc": "AUROC of pairs of one genre",
        "nmi": "NMI of clusters and genres",
    }
    names = list(dict.fromkeys(table.similarity))
    fig, axes = figure(1, 3, size=(10.2, 0.7 + 0.45 * len(names) + 0.6), sharey=True)
    for ax, (statistic, title) in zip(axes[0], titles.items(), strict=True):
        of = table[table.statistic == statistic].set_index("similarity").loc[names]
        at = np.arange(len(names))[::-1]
        ax.barh(at, of.high - of.low, left=of.low, height=0.55, color="0.75", label="chance, 95 %")
        ax.errorbar(of.value, at, xerr=1.96 * of.error, fmt="o", color=BLUE, ms=5, lw=0,
                    elinewidth=1.2, label="measured, 95 %")  # fmt: skip
        ax.set(yticks=at, yticklabels=names, xlabel=title)
        ax.set_ylim(-1.5, len(names) - 0.3)
    axes[0, 0].legend(fontsize=8, loc="lower right", ncols=2)
    return fig
