"""Figures of the loss kernel: chains, localization, reliability, and what chance would give."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probelib.plotting import BLUE, GREEN, PURPLE, VERMILION, figure

_LINES = ("-", "--", "-.", (0, (8, 2)), (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)))
_SERIES = tuple(  # colour, line, marker; past six the lines shift, so that no two series look alike
    ((BLUE, VERMILION, GREEN, PURPLE, "#8a5f00", "black")[k % 6], _LINES[(k + k // 6) % 6],
     "oDs^vP"[k % 6])
    for k in range(18)
)  # fmt: skip


def chain_losses(
    series: Mapping[str, np.ndarray],
    at_center: float,
    guessing: float,
    steps: Mapping[str, np.ndarray] | None = None,
) -> Figure:
    """Mean loss along the chains of several settings: the mean of the chains and their range.

    Args:
        series: setting -> mean loss, shape (chain, draw), nats.
        at_center: L(w*), nats.
        guessing: loss of a network that knows nothing, log(classes), nats.
        steps: setting -> step of each draw, shape (draw,); default: draws count from 1.
    """
    fig, axes = figure(size=(7.2, 3.8))
    ax = axes[0, 0]
    ends = [("$L(w^*)$", at_center, "black"), ("guessing", guessing, "0.35")]
    for (name, rows), (color, ls, _) in zip(series.items(), _SERIES, strict=False):
        at = np.arange(1, rows.shape[1] + 1) if steps is None else steps[name]
        ax.fill_between(at, rows.min(0), rows.max(0), color=color, alpha=0.18, lw=0)
        ax.plot(at, rows.mean(0), color=color, ls=ls, lw=1.5)
        ends.append((name, float(rows.mean(0)[-1]), color))
    ax.axhline(at_center, color="black", ls="--", lw=1.1)
    ax.axhline(guessing, color="0.35", ls=":", lw=1.4)
    ax.set(
        yscale="log", ylabel="mean loss (nats)", xlabel="draw" if steps is None else "step",
    )  # fmt: skip
    ax.set_xlim(0, max(line.get_xdata()[-1] for line in ax.lines[: len(series)]))
    ax.yaxis.set_major_formatter(_plain)
    ax.yaxis.set_minor_formatter(_plain_minor)
    ax.tick_params(axis="y", which="minor", labelsize=7)
    _label_ends(ax, ends)
    return fig


def localization_sweep(
    gammas: np.ndarray,
    panels: Mapping[str, Mapping[str, np.ndarray]],
    levels: Mapping[str, tuple[str, float]] | None = None,
    mark: float | None = None,
    log: Collection[str] = (),
) -> Figure:
    """What the localization does: one panel a quantity, one below the other.

    Args:
        gammas: the values of gamma, shape (g,).
        panels: label of the y axis -> name -> values, shape (g,), or (3, g): value, lower and
            upper end of its interval, drawn as a band.
        levels: label of the y axis -> (name, value) of a horizontal line.
        mark: a gamma to mark: the paper's.
        log: labels of the panels with a log scale.
    """
    gammas = np.asarray(gammas, dtype=float)
    fig, axes = figure(len(panels), 1, size=(6.8, 1.85 * len(panels) + 0.6), sharex=True)
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    looks = dict(zip(names, _SERIES, strict=False))
    for k, (ax, (label, series)) in enumerate(zip(axes[:, 0], panels.items(), strict=True)):
        ends = []
        for name, values in series.items():
            color, ls, marker = looks[name]
            if np.ndim(values) == 2:
                values, lower, upper = values
                ax.fill_between(gammas, lower, upper, color=color, alpha=0.2, lw=0)
            ax.plot(gammas, values, color=color, ls=ls, marker=marker, ms=4.5, lw=1.3)
            ends.append((name, float(values[-1]), color))
        ax.set(xscale="log", yscale="log" if label in log else "linear")
        if label in log:
            ax.yaxis.set_major_formatter(_plain)
            ax.yaxis.set_minor_formatter(_plain_minor)
            ax.tick_params(axis="y", which="minor", labelsize=7)
        if label in (levels or {}):
            name, value = levels[label]
            ax.axhline(value, color="0.35", ls=":", lw=1.4)
            ends.append((name, value, "0.35"))
        if mark is not None:
            ax.axvline(mark, color="0.5", ls=(0, (4, 2)), lw=1.1, zorder=1)
            if k == 0:
                ax.text(
                    mark, 1.03, r"the paper's $\gamma$", transform=ax.get_xaxis_transform(),
                    ha="center", va="bottom", fontsize=8, color="0.35",
                )  # fmt: skip
        ax.set_ylabel(label, fontsize=9)
        ax.margins(y=0.12)
        _label_ends(ax, ends)
    axes[-1, 0].set_xticks(gammas, [f"{g:,.10g}" for g in gammas], fontsize=8)
    axes[-1, 0].minorticks_off()
    axes[-1, 0].set_xlabel(r"localization $\gamma$")
    fig.align_ylabels(axes[:, 0])
    return fig


def reliability_curves(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    expected: Mapping[str, np.ndarray] | None = None,
) -> Figure:
    """Split-half reliability of the kernel against nominal draws and against effective ones.

    Args:
        curves: setting -> (draws, effective draws, reliability), shape (m,) each.
        expected: setting -> reliability to expect at the same points, shape (m,); drawn dotted.
    """
    fig, axes = figure(1, 2, size=(9, 3.7), sharey=True)
    low = -0.08
    for (name, (draws, effective, value)), (color, ls, marker) in zip(
        curves.items(), _SERIES, strict=False
    ):
        low = min(low, 1.1 * np.min(value))
        for ax, at in zip(axes[0], (draws, effective), strict=True):
            ax.plot(at, value, color=color, ls=ls, marker=marker, ms=4.5, lw=1.3, label=name)
            if expected is not None and name in expected:
                ax.plot(at, expected[name], color=color, ls=":", lw=1.8)
    if expected:
        axes[0, 0].plot([], [], color="0.4", ls=":", lw=1.8, label="expected")
    for ax, xlabel in zip(axes[0], ("draws", "effective draws"), strict=True):
        ax.axhline(0, color="0.5", lw=0.9)
        ax.set(xscale="log", xlabel=xlabel, ylim=(low, 1.03))
    axes[0, 0].set_ylabel("split-half reliability")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(
        handles, labels, fontsize=8, loc="outside lower center", ncols=min(len(labels), 5),
        handlelength=3.2, frameon=False,
    )  # fmt: skip
    return fig


def permutation_picture(null: np.ndarray, observed: Mapping[str, float], xlabel: str) -> Figure:
    """Values under random relabelling as a histogram, and the observed ones beside it.

    Args:
        null: value of each permutation, shape (p,).
        observed: name -> observed value, a line each.
        xlabel: quantity and unit.
    """
    fig, axes = figure(size=(6.6, 3.4))
    ax = axes[0, 0]
    edges = np.histogram_bin_edges(null, min(40, max(8, len(null) // 20)))
    share = np.histogram(null, edges)[0] / len(null)
    ax.stairs(share, edges, fill=True, color="0.78")
    ax.stairs(share, edges, color="0.4", lw=1.1)
    everything = np.r_[edges, list(observed.values())]
    low, high = everything.min(), everything.max()
    reach = 0.06 * (high - low)
    top = (1.12 + 0.11 * len(observed)) * share.max()
    ax.set(
        xlim=(low - reach, high + reach), ylim=(0, top), xlabel=xlabel,
        ylabel=f"share of {len(null):,} permutations",
    )  # fmt: skip
    # A name goes to the side that has room; the outer lines are the higher ones, so that no line
    # runs through the name of another.
    middle = (low + high) / 2
    outward = sorted(observed, key=lambda name: -abs(observed[name] - middle))
    for (name, value), (color, ls, _) in zip(observed.items(), _SERIES, strict=False):
        left = value < middle
        end = top - (0.07 + 0.11 * outward.index(name)) * share.max()
        ax.plot([value, value], [0, end], color=color, ls=ls, lw=1.7)
        number = f"{value:#.3g}".rstrip(".").replace("-", "−")
        ax.annotate(
            f"{name}: {number}", (value, end), (5 if left else -5, 0),
            textcoords="offset points", ha="left" if left else "right", va="center", fontsize=9,
            color=color, bbox={"fc": "white", "ec": "none", "pad": 0.8},
        )  # fmt: skip
    return fig


def _label_ends(ax: Axes, ends: Sequence[tuple[str, float, str]], size: float = 8) -> None:
    """Names at the right edge of ``ax``, beside where their lines end: (name, y, colour)."""
    fig = ax.get_figure()
    y = ax.transAxes.inverted().transform(
        ax.transData.transform([(ax.get_xlim()[1], value) for _, value, _ in ends])
    )[:, 1]
    height = ax.get_position().height * fig.get_size_inches()[1]
    places = _spread(np.clip(y, 0, 1), 1.35 * size / 72 / height)
    for (name, _, color), place in zip(ends, places, strict=True):
        ax.text(
            1.015, place, name, transform=ax.transAxes, va="center", fontsize=size, color=color,
            clip_on=False,
        )  # fmt: skip


def _spread(at: np.ndarray, gap: float) -> np.ndarray:
    """Places near ``at`` that are ``gap`` apart at least, in the same order."""
    order = np.argsort(at, kind="stable")
    groups: list[list[float]] = []  # centre and number of the labels that touch
    for value in np.asarray(at, dtype=float)[order]:
        groups.append([value, 1])
        while len(groups) > 1:
            (a, m), (b, n) = groups[-2:]
            if b - a >= gap * (m + n) / 2:
                break
            groups[-2:] = [[(m * a + n * b) / (m + n), m + n]]
    placed = [c + gap * (i - (m - 1) / 2) for c, m in groups for i in range(int(m))]
    out = np.empty(len(order))
    out[order] = placed
    return out


def _plain(value: float, _: object = None) -> str:
    """A tick of a log axis as a plain number."""
    return f"{value:g}"


def _plain_minor(value: float, _: object = None) -> str:
    """The same for minor ticks: 2, 3 and 5 only, which stay apart."""
    return f"{value:g}" if f"{value:.4e}"[:6] in ("2.0000", "3.0000", "5.0000") else ""


__all__ = ["chain_losses", "localization_sweep", "permutation_picture", "reliability_curves"]
