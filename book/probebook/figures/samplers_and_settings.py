"""Figures of chapter 09: error, efficiency and verdict of samplers over step sizes, and ranks."""

from collections.abc import Iterator
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probelib.plotting import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, figure

_COLORS = (VERMILION, BLUE, GREEN, PURPLE, ORANGE, SKY)
_LINES = ("-", "--", "-.", ":", (0, (8, 2)), (0, (5, 1, 1, 1, 1, 1)))
_MARKERS = "osD^vP"
_STEP = r"step size $\epsilon$, in units of $1 / n\beta$"
_CLOSE = 0.1
# A verdict has a colour and a hatch, so that it is also read without colour.
_VERDICTS = {
    "good": ("approved", GREEN, ""),
    "wide": ("uncertain", SKY, "///"),
    "wrong": ("refused", ORANGE, "xx"),
}


def error_and_verdict(table: pd.DataFrame) -> Figure:
    """How far off each sampler's LLC is at each step, and what the verdict says there.

    Args:
        table: of :func:`probebook.benchmark_summaries.by_step`.
    """
    names = list(dict.fromkeys(table["sampler"]))
    fig, axes = figure(
        2, 1, size=(7.2, 4.6 + 0.32 * len(names)), sharex=True,
        gridspec_kw={"height_ratios": (3.4, 0.35 + 0.45 * len(names))},
    )  # fmt: skip
    errors, said = axes[:, 0]
    _errors(errors, table)
    _verdicts(said, table, names)
    said.set_xlabel(_STEP)
    return fig


def _errors(ax: Axes, table: pd.DataFrame) -> None:
    """Median relative errors with their quartiles; diverged runs in the margin at the top."""
    known = table.loc[np.isfinite(table["error"]), "error"]
    top = 2.5 * max(1.0, known.max())
    ax.axhspan(1e-4, _CLOSE, color=GREEN, alpha=0.12, lw=0)
    for (name, own), color, ls, marker in _styled(table):
        off = own["error"].clip(upper=top)  # infinite ones leave through the top
        ax.plot(own["step"], off, color=color, ls=ls, marker=marker, ms=5, lw=1.7, label=name)
        ax.fill_between(
            own["step"], own["low"].clip(upper=top), own["high"].clip(upper=top),
            color=color, alpha=0.13, lw=0,
        )  # fmt: skip
    least = max(1e-3, 0.5 * min(known.min(), table["low"].min()))
    ax.set(
        xscale="log", yscale="log", ylim=(min(least, 0.02), top),
        ylabel="relative error of the LLC",
    )  # fmt: skip
    ax.text(
        0.01, _CLOSE, "within 10 %", transform=ax.get_yaxis_transform(), va="top", fontsize=9,
    )  # fmt: skip
    ax.legend(fontsize=9, loc="upper left")


def _verdicts(ax: Axes, table: pd.DataFrame, names: list[str]) -> None:
    """A bar for each sampler and step, in as many parts as there are verdicts."""
    rows = {name: len(names) - 1 - k for k, name in enumerate(names)}
    steps = np.sort(table["step"].unique())
    ratio = (steps[1] / steps[0]) ** 0.42 if len(steps) > 1 else 1.4
    for line in table.itertuples():
        low, high = line.step / ratio, line.step * ratio
        at = low
        for verdict, (_, color, hatch) in _VERDICTS.items():
            share = getattr(line, verdict)
            if share > 0:
                to = at * (high / low) ** share
                ax.barh(
                    rows[line.sampler], to - at, 0.72, at, color=color, alpha=0.75, hatch=hatch,
                    ec="white", lw=0.4,
                )  # fmt: skip
                at = to
    for words, color, hatch in _VERDICTS.values():
        ax.bar(np.nan, 0, color=color, alpha=0.75, hatch=hatch, ec="white", label=words)
    ax.set_yticks(list(rows.values()), list(rows), fontsize=9)
    ax.set(ylim=(-0.6, len(names) - 0.4), title="share of the runs by verdict")
    ax.title.set_fontsize(10)
    ax.grid(visible=False)
    ax.figure.legend(
        *ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9
    )


def efficiency(table: pd.DataFrame) -> Figure:
    """Effective draws per thousand gradients at each step; filled where the LLC is right.

    Args:
        table: of :func:`probebook.benchmark_summaries.by_step`.
    """
    fig, axes = figure(size=(7.2, 4.0))
    ax = axes[0, 0]
    for (name, own), color, ls, marker in _styled(table):
        each = 1000 * own["effective_per_gradient"]
        ax.plot(own["step"], each, color=color, ls=ls, lw=1.5, label=name)
        right = own["error"] <= _CLOSE
        for which, face in ((right, color), (~right, "white")):
            ax.plot(own["step"][which], each[which], marker, ms=6.5, color=color, mfc=face, mew=1.3)
    ax.set(xscale="log", yscale="log", xlabel=_STEP, ylabel="effective draws per 1000 gradients")
    ax.legend(fontsize=9)
    return fig


def ranks_and_errors(table: pd.DataFrame, ceiling: float) -> Figure:
    """Whether gains are still ranked right where the LLC is wrong: one point a setting.

    Args:
        table: ``sampler``, ``error`` (of the LLC, relative, absolute), ``spearman`` and
            ``spearman_se`` of the gains with those of a reference.
        ceiling: the correlation of two halves of the reference.
    """
    fig, axes = figure(size=(7.2, 4.0))
    ax = axes[0, 0]
    known = table[np.isfinite(table["error"])]
    least = max(1e-3, 0.6 * known["error"].min())
    ax.axvspan(least, _CLOSE, color=GREEN, alpha=0.12, lw=0)
    ax.axhline(ceiling, color="0.4", ls=":", lw=1.2, label="two halves of the reference")
    for (name, own), color, _, marker in _styled(known):
        bars = np.where(np.isfinite(own["spearman_se"]), 2 * own["spearman_se"], np.nan)
        ax.errorbar(
            own["error"].clip(lower=least), own["spearman"], bars, fmt=marker, ms=6, capsize=2,
            color=color, label=name,
        )  # fmt: skip
    ax.set(
        xscale="log", xlim=(least, None), xlabel="relative error of the LLC",
        ylabel="rank correlation of the gains",
    )  # fmt: skip
    ax.legend(fontsize=9, loc="lower left")
    return fig


def _styled(table: pd.DataFrame) -> Iterator[tuple]:
    """Each sampler's rows by step, with a colour, a line and a marker of its own."""
    names = list(dict.fromkeys(table["sampler"]))
    groups = [(name, table[table["sampler"] == name]) for name in names]
    return zip(groups, cycle(_COLORS), cycle(_LINES), cycle(_MARKERS), strict=False)


__all__ = ["efficiency", "error_and_verdict", "ranks_and_errors"]
