"""The introduction's figures: a probe of two weights, its kernel, and the data under both."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probelib.plotting import BLUE, GREEN, ORANGE, SKY, STYLE, VERMILION, figure


def probe_picture(
    x: np.ndarray,
    y: np.ndarray,
    named: Mapping[str, int],
    surface: tuple[np.ndarray, np.ndarray, np.ndarray],
    center: np.ndarray,
    cloud: np.ndarray,
    changes: Mapping[str, np.ndarray],
    gains: Mapping[str, float],
) -> Figure:
    """A probe of two weights: the data with the sampled lines, the cloud, two loss changes.

    Args:
        x: inputs, shape (n, 2); y: classes 0 and 1, shape (n,).
        named: name -> position of the samples with a label.
        surface: first weights (p,), second weights (p,), L on their grid (p, p).
        center: w*, shape (2,).
        cloud: sampled weights, shape (S, 2); the first 60 are drawn as lines.
        changes: name -> loss changes, shape (S,), nats: the histograms, from left to right.
        gains: name -> their mean.
    """
    with plt.rc_context(STYLE):
        fig = plt.figure(figsize=(9, 6.6))
        plt.close(fig)
        grid = fig.add_gridspec(2, 2 * len(changes), height_ratios=(1.9, 1))
        left = fig.add_subplot(grid[0, : len(changes)])
        middle = fig.add_subplot(grid[0, len(changes) :])
        below = [fig.add_subplot(grid[1, 2 * k : 2 * k + 2]) for k in range(len(changes))]
    _plane(left, x, named)
    ends = np.array([-10.0, 10.0])
    for w in cloud[:60]:
        left.plot(ends, -w[0] / w[1] * ends, color="0.45", lw=0.6, alpha=0.35, zorder=1)
    left.plot(ends, -center[0] / center[1] * ends, color="black", lw=1.8, zorder=2)
    for k, (color, marker) in enumerate(((ORANGE, "s"), (BLUE, "o"))):
        left.scatter(*x[y == k].T, s=26, marker=marker, color=color, ec="white", lw=0.5, zorder=3)
    left.set_title("1. Every draw of the weights is a line")

    first, second, loss = surface
    lines = middle.contour(first, second, loss, levels=12, colors="0.55", linewidths=0.7, zorder=1)
    middle.clabel(lines, lines.levels[::3], fontsize=8, fmt="%.2g")
    middle.scatter(*cloud.T, s=5, lw=0, alpha=0.3, color=SKY, zorder=2, rasterized=True)
    middle.plot(*center, marker="*", ms=15, color=VERMILION, mec="white", zorder=3)
    middle.annotate(
        "$w^*$", center, (7, 7), textcoords="offset points", fontsize=12, color="black", zorder=4,
        bbox={"fc": "white", "ec": "none", "alpha": 0.8, "pad": 1},
    )  # fmt: skip
    middle.set(
        xlim=(first[0], first[-1]), ylim=(second[0], second[-1]),
        xlabel="first weight", ylabel="second weight", title="2. The cloud around $w^*$",
    )  # fmt: skip
    middle.grid(False)

    low = min(np.quantile(v, 0.002) for v in changes.values())
    high = max(np.quantile(v, 0.998) for v in changes.values())
    edges = np.linspace(low, high, 56)
    for ax, (name, v), color in zip(below, changes.items(), (GREEN, VERMILION), strict=False):
        share = np.histogram(v, edges)[0] / len(v)
        ax.stairs(share, edges, fill=True, color=color, alpha=0.45)
        ax.axvline(0, color="0.5", lw=0.8)
        ax.axvline(gains[name], color="black", ls="--", lw=1.4)
        ax.text(
            0.97, 0.9, f"loss gain {gains[name]:.2g} nats\n(dashed)", transform=ax.transAxes,
            ha="right", va="top",
        )  # fmt: skip
        ax.set(ylabel="share of draws", xlim=(low, high), xlabel=f"loss change of “{name}” (nats)")
    below[0].set_title("3. What it does to an easy sample ...", loc="left")
    below[-1].set_title("... and to a hard one", loc="left")
    return fig


def kernel_picture(
    changes: Mapping[str, np.ndarray],
    pairs: Sequence[tuple[str, str]],
    correlation: np.ndarray,
) -> Figure:
    """Loss changes of pairs of samples against each other, and the correlation kernel.

    Args:
        changes: name -> loss changes, shape (S,), nats.
        pairs: which to draw against each other, one panel a pair.
        correlation: R in the order of ``changes``.
    """
    fig, axes = figure(
        1, len(pairs) + 1, size=(3.1 * (len(pairs) + 1), 3),
        gridspec_kw={"width_ratios": [1] * len(pairs) + [1.1]},
    )  # fmt: skip
    names = list(changes)
    for ax, (a, b), color in zip(axes[0], pairs, (BLUE, VERMILION, GREEN), strict=False):
        ax.scatter(changes[a], changes[b], s=5, lw=0, alpha=0.3, color=color, rasterized=True)
        ax.axhline(0, color="0.5", lw=0.8)
        ax.axvline(0, color="0.5", lw=0.8)
        r = correlation[names.index(a), names.index(b)]
        ax.set(
            xlabel=f"loss change of “{a}”", ylabel=f"loss change of “{b}”",
            title=f"{a} and {b}: R = {r:+.2f}".replace("-", "−"),
        )  # fmt: skip
    ax = axes[0, -1]
    ax.imshow(correlation, cmap="RdBu_r", vmin=-1, vmax=1)
    for i in range(len(names)):
        for j in range(len(names)):
            r = correlation[i, j]
            ax.text(
                j, i, f"{r:+.2f}".replace("-", "−"), ha="center", va="center",
                color="white" if abs(r) > 0.6 else "black",
            )  # fmt: skip
    ax.set(xticks=range(len(names)), yticks=range(len(names)), title="correlation kernel R")
    ax.set_xticklabels(names)
    ax.set_yticklabels(names)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return fig


def data_maps(
    x: np.ndarray,
    y: np.ndarray,
    named: Mapping[str, int],
    center: np.ndarray,
    gain: np.ndarray,
    correlation: np.ndarray,
    anchor: str,
) -> Figure:
    """All samples in the input plane, coloured by loss gain and by correlation with one of them.

    Args:
        x: inputs, shape (n, 2); y: classes 0 and 1, shape (n,).
        named: name -> position of the samples with a label.
        center: w*, shape (2,), whose line is drawn.
        gain: mu, shape (n,), nats.
        correlation: R with the sample ``anchor``, shape (n,).
        anchor: one of ``named``.
    """
    fig, axes = figure(1, 2, size=(9, 3.5))
    ends = np.array([-10.0, 10.0])
    shown = (
        (gain, "viridis", 0, np.quantile(gain, 0.98), "loss gain (nats)"),
        (correlation, "RdBu_r", -1, 1, f"R with {anchor}"),
    )
    for ax, (values, cmap, low, high, label) in zip(axes[0], shown, strict=True):
        _plane(ax, x, named)
        ax.plot(ends, -center[0] / center[1] * ends, color="black", lw=1.4, zorder=1)
        for k, marker in enumerate("so"):
            image = ax.scatter(
                *x[y == k].T, c=values[y == k], cmap=cmap, vmin=low, vmax=high, s=46,
                marker=marker, ec="0.25", lw=0.6, zorder=3,
            )  # fmt: skip
        fig.colorbar(
            image, ax=ax, shrink=0.85, label=label, extend="max" if cmap == "viridis" else "neither"
        )
    axes[0, 0].set_title("loss gain: who is fragile")
    axes[0, 1].set_title(f"kernel: who moves with “{anchor}”")
    return fig


def _plane(ax: Axes, x: np.ndarray, named: Mapping[str, int]) -> None:
    """The input plane, with names beside the named samples."""
    reach = 1.12 * np.abs(x).max(0)
    ax.set(xlim=(-reach[0], reach[0]), ylim=(-reach[1], reach[1]), xlabel="$x_1$", ylabel="$x_2$")
    ax.set_aspect("equal")
    for name, i in named.items():
        ax.annotate(
            name, x[i], (0, 9), textcoords="offset points", fontsize=9, weight="bold", zorder=5,
            ha="center", bbox={"fc": "white", "ec": "none", "alpha": 0.75, "pad": 0.8},
        )  # fmt: skip
        ax.scatter(*x[i], s=110, fc="none", ec="black", lw=1.3, zorder=4)


__all__ = ["data_maps", "kernel_picture", "probe_picture"]
