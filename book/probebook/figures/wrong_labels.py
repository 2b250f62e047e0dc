"""Figures of scores of wrong labels: where each is good, over epochs and over tasks."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from probelib.plotting import BLUE, VERMILION, figure

_STAGES = {"underfitted": ("o", "0.45"), "between": ("s", BLUE), "memorized": ("D", VERMILION)}
_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))


def scores_by_stage(table: pd.DataFrame, kinds: Mapping[str, Mapping[str, str]]) -> Figure:
    """Every score's mean AUROC while wrong labels are not fitted, half fitted, and memorized.

    Args:
        table: of :func:`probebook.labels.summaries.by_stage`.
        kinds: titles of two panels or more, and in each the scores from the top, and their names.
    """
    most = max(map(len, kinds.values()))
    fig, axes = figure(1, len(kinds), size=(4.7 * len(kinds), 0.27 * most + 1.6), sharex=True)
    for ax, (title, names) in zip(axes[0], kinds.items(), strict=True):
        at = np.arange(len(names))[::-1]
        for place, score in zip(at, names, strict=True):
            _stages(ax, place, table[table.score == score])
        ax.axvline(0.5, color="0.3", lw=0.9, ls=":")
        ax.set_yticks(at, list(names.values()), fontsize=8.5)
        ax.set(title=title, ylim=(-0.6, len(names) - 0.4), xlabel="AUROC of the wrong labels")
        ax.grid(axis="x", color="0.88", lw=0.7)
        ax.set_axisbelow(True)
    handles = [
        Line2D([], [], ls="", marker=marker, color=color, ms=5)
        for marker, color in _STAGES.values()
    ]
    axes[0, -1].legend(handles, list(_STAGES), loc="lower left", fontsize=8)
    return fig


def _stages(ax: Axes, place: float, own: pd.DataFrame) -> None:
    """One score: a marker with its interval for each stage, a little below each other."""
    for offset, (stage, (marker, color)) in zip((0.2, 0, -0.2), _STAGES.items(), strict=True):
        for row in own[own.stage == stage].itertuples():
            y = place + offset
            ax.plot([row.low, row.high], [y, y], color=color, lw=1.6)
            ax.plot(row.mean, y, marker, color=color, ms=5)


def scores_over_epochs(
    table: pd.DataFrame,
    fitted: pd.DataFrame,
    names: Mapping[str, str],
    tasks: Mapping[str, str],
) -> Figure:
    """AUROC over the epochs of training, one panel a task, beside the share of labels memorized.

    Args:
        table: of :func:`probebook.labels.summaries.means`, by score, task and epoch.
        fitted: the same of ``fitted_wrong``.
        names: the scores to draw, and what they are called.
        tasks: the panels, and what they are called.
    """
    fig, axes = figure(1, len(tasks), size=(2.5 * len(tasks) + 0.6, 3.4), sharey=True)
    colors = _colors(len(names))
    for ax, (task, title) in zip(axes[0], tasks.items(), strict=True):
        share = fitted[fitted.task == task].sort_values("epoch")
        ax.fill_between(share.epoch, 0, share["mean"], color="0.85", lw=0, zorder=0)
        for place, (score, label) in enumerate(names.items()):
            own = table[(table.task == task) & (table.score == score)].sort_values("epoch")
            style = _STYLES[place % len(_STYLES)]
            ax.fill_between(own.epoch, own.low, own.high, color=colors[place], alpha=0.15, lw=0)
            ax.plot(own.epoch, own["mean"], ls=style, color=colors[place], lw=1.8, label=label)
        ax.axhline(0.5, color="0.3", lw=0.8, ls=":")
        ax.set(xscale="log", title=title, xlabel="epochs", ylim=(0, 1.02))
    axes[0, 0].set_ylabel("AUROC of the wrong labels")
    axes[0, -1].legend(loc="lower right", fontsize=7.5)
    return fig


def suspicious_digits(
    images: np.ndarray, given: Sequence[str], predicted: Sequence[str], columns: int = 10
) -> Figure:
    """Images with the label that they have and the one that the network would give.

    Args:
        images: shape (n, height, width), 0 to 255.
        given: labels of the data set.
        predicted: what is read without the label.
        columns: images in a row.
    """
    rows = -(-len(images) // columns)
    fig, axes = figure(rows, columns, size=(0.95 * columns, 1.25 * rows))
    for at, ax in enumerate(axes.ravel()):
        ax.axis("off")
        if at < len(images):
            ax.imshow(images[at], cmap="gray_r", vmin=0, vmax=255)
            ax.set_title(f"{given[at]}, read {predicted[at]}", fontsize=8, pad=2)
    return fig


def _colors(count: int) -> list:
    """Colours that the colour-blind tell apart; line styles tell them apart in print."""
    every = [VERMILION, BLUE, "#009e73", "#cc79a7", "0.25", "#e69f00"]
    return [every[at % len(every)] for at in range(count)]


__all__ = ["scores_by_stage", "scores_over_epochs", "suspicious_digits"]
