"""Figures of chapter 09: samplers over step sizes, what a gradient buys, and ranks."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from probelib.plotting import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, figure

_COLORS = (VERMILION, BLUE, GREEN, PURPLE, ORANGE, SKY)
_MARKERS = "osD^vP"
_STEP = r"step size $\epsilon$, in units of $1 / n\beta$"
_CLOSE = 0.1
# A verdict has a colour and a hatch, so that it is also read without colour.
_VERDICTS = {
    "good": ("approved", GREEN, ""),
    "wide": ("uncertain", SKY, "///"),
    "wrong": ("refused", ORANGE, "xx"),
}


def sampler_map(table: pd.DataFrame) -> Figure:
    """How far off each sampler's LLC is at each step; below, the shares of the verdicts there.

    Args:
        table: of :func:`probebook.benchmark_summaries.by_step`.
    """
    groups = list(table.groupby("sampler", sort=False))
    cols = min(4, len(groups))
    rows = -(-len(groups) // cols)
    size = (2.5 * cols + 0.4, 2.6 * rows + 0.8)
    fig, axes = figure(rows, cols, size=size, sharex=True, sharey=True)
    known = table.loc[np.isfinite(table["error"]), "error"]
    top = 2.5 * max(1.0, known.max())
    least = min(max(1e-3, 0.5 * min(known.min(), table["low"].min())), 0.01)
    for ax, (name, own) in zip(axes.flat, groups, strict=False):
        ax.set_title(name, fontsize=10)
        ax.set(xscale="log", yscale="log", ylim=(least / 3, top))
        _errors(ax, own, top)
        _verdicts(ax, own)
    for ax in axes.flat[len(groups) :]:
        ax.remove()
    fig.supxlabel(_STEP, fontsize=10)
    fig.supylabel("relative error of the LLC", fontsize=10)
    parts = [Patch(fc=color, hatch=hatch, ec="white") for _, color, hatch in _VERDICTS.values()]
    words = [words for words, _, _ in _VERDICTS.values()]
    fig.legend(parts, words, loc="outside upper center", ncols=3, fontsize=9)
    return fig


def _errors(ax: Axes, own: pd.DataFrame, top: float) -> None:
    """A sampler's median errors with their quartiles; diverged runs are at the top."""
    ax.axhspan(1e-6, _CLOSE, color=GREEN, alpha=0.12, lw=0)
    low, high = (own[name].clip(upper=top) for name in ("low", "high"))
    ax.fill_between(own["step"], low, high, color=BLUE, alpha=0.18, lw=0)
    ax.plot(own["step"], own["error"].clip(upper=top), "o-", color=BLUE, lw=1.6, ms=4.5)


def _verdicts(ax: Axes, own: pd.DataFrame) -> None:
    """At the bottom a bar for each step, in as many parts as there are verdicts."""
    steps = np.sort(own["step"].unique())
    ratio = (steps[1] / steps[0]) ** 0.42 if len(steps) > 1 else 1.4
    for line in own.itertuples():
        at, high = line.step / ratio, line.step * ratio
        whole = high / at
        for verdict, (_, color, hatch) in _VERDICTS.items():
            if (share := getattr(line, verdict)) > 0:
                ax.barh(
                    0.055, at * whole**share - at, 0.075, at, color=color, hatch=hatch,
                    ec="white", lw=0.4, transform=ax.get_xaxis_transform(),
                )  # fmt: skip
                at *= whole**share


def efficiency(table: pd.DataFrame) -> Figure:
    """Effective draws per thousand gradients, at the step that gives most among the right ones.

    Args:
        table: of :func:`probebook.benchmark_summaries.by_step`.
    """
    groups = list(table.groupby("sampler", sort=False))[::-1]
    fig, axes = figure(size=(7.2, 0.42 * len(groups) + 1.1))
    ax = axes[0, 0]
    for row, (_, own) in enumerate(groups):
        each = 1000 * own["effective_per_gradient"].where(own["error"] <= _CLOSE)
        if not each.notna().any():
            ax.text(0, row, " right at no step", va="center", fontsize=9)
            continue
        best = each.idxmax()
        ax.barh(row, each[best], 0.62, color=BLUE)
        ax.text(each[best], row, f" at {own['step'][best]:.3g}", va="center", fontsize=9)
    ax.set_yticks(range(len(groups)), [name for name, _ in groups])
    ax.set(xlabel="effective draws per 1000 gradients", xmargin=0.12)
    ax.grid(visible=False, axis="y")
    return fig


def ranks_and_errors(networks: Mapping[str, tuple[pd.DataFrame, float]]) -> Figure:
    """Whether gains are still ranked right where the LLC is wrong: one point a setting.

    Args:
        networks: by name, a panel each: a table with ``sampler``, ``error`` (of the LLC, relative,
            absolute), ``spearman`` and ``spearman_se`` of the gains with those of a reference; and
            the correlation of two halves of the reference.
    """
    fig, axes = figure(1, len(networks), size=(3.9 * len(networks) + 1.2, 4.0))
    names = dict.fromkeys(name for table, _ in networks.values() for name in table["sampler"])
    # A sampler looks the same in all panels, whichever others are there.
    looks = dict(zip(names, zip(_COLORS, _MARKERS, strict=True), strict=False))
    legend = {}
    for ax, (title, (table, ceiling)) in zip(axes.flat, networks.items(), strict=True):
        legend |= _ranks(ax, table[np.isfinite(table["error"])], ceiling, looks)
        ax.set_title(title)
    axes[0, 0].set_ylabel("rank correlation of the gains")
    fig.legend(legend.values(), legend, loc="outside lower center", ncols=3, fontsize=9)
    return fig


def _ranks(
    ax: Axes, known: pd.DataFrame, ceiling: float, looks: dict[str, tuple[str, str]]
) -> dict[str, Artist]:
    """One network's points; what is drawn, by its name in the legend."""
    least = max(1e-3, 0.6 * known["error"].min())
    ax.axvspan(least, _CLOSE, color=GREEN, alpha=0.12, lw=0)
    drawn: dict[str, Artist] = {
        "two halves of the reference": ax.axhline(ceiling, color="0.4", ls=":", lw=1.2)
    }
    for name, (color, marker) in looks.items():
        own = known[known["sampler"] == name]
        if own.empty:
            continue
        bars = np.where(np.isfinite(own["spearman_se"]), 2 * own["spearman_se"], np.nan)
        drawn[name] = ax.errorbar(
            own["error"].clip(lower=least), own["spearman"], bars, fmt=marker, ms=6, capsize=2,
            color=color, label=name,
        )  # fmt: skip
    ax.set(xscale="log", xlim=(least, None), xlabel="relative error of the LLC")
    return drawn


__all__ = ["efficiency", "ranks_and_errors", "sampler_map"]
