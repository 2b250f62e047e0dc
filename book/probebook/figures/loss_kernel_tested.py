"""Figures of similarities compared: intervals by method, and matrices of planted structure."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from probebook.similarities import Interval
from probelib.plotting import BLUE, VERMILION, figure


def interval_panels(
    panels: Mapping[str, Mapping[str, Interval]],
    chance: Mapping[str, Mapping[str, float]] | None = None,
) -> Figure:
    """One panel a quantity: a point with its interval for each method, one below the other.

    Args:
        panels: label of the x axis -> method -> value and interval. The first method is the one
            that the others are compared with.
        chance: label -> method -> what chance gives, drawn as open markers.
    """
    methods = list(next(iter(panels.values())))
    height = 0.34 * len(methods) + 1.2
    fig, axes = figure(1, len(panels), size=(9.2, height), sharey=True)
    at = np.arange(len(methods))[::-1]
    for ax, (label, found) in zip(axes[0], panels.items(), strict=True):
        for place, method in zip(at, methods, strict=True):
            own = found[method]
            first = method == methods[0]
            color = VERMILION if first else BLUE
            if np.isfinite(own.low) and np.isfinite(own.high):
                ax.plot([own.low, own.high], [place, place], color=color, lw=2.2)
            ax.plot(own.value, place, "D" if first else "o", color=color, ms=6.5 if first else 5.5)
            if chance is not None:
                ax.plot(chance[label][method], place, "s", mfc="white", mec="0.35", ms=5, zorder=1)
        ax.set_xlabel(label, fontsize=9)
        ax.tick_params(axis="x", labelsize=8)
        ax.margins(x=0.08, y=0.08)
        ax.grid(axis="x", color="0.88", lw=0.7)
        ax.set_axisbelow(True)
    axes[0, 0].set_yticks(at, methods, fontsize=9)
    return fig


def planted_matrices(matrices: Mapping[str, np.ndarray], mechanism: np.ndarray) -> Figure:
    """Similarities of samples that are sorted by mechanism, side by side.

    Args:
        matrices: title -> similarities, shape (n, n), in the order of ``mechanism``.
        mechanism: of each row, sorted, shape (n,).
    """
    fig, axes = figure(1, len(matrices), size=(3.1 * len(matrices), 3.3))
    edges = np.flatnonzero(np.diff(mechanism)) + 0.5
    for ax, (title, matrix) in zip(axes[0], matrices.items(), strict=True):
        off = matrix[~np.eye(len(matrix), dtype=bool)]
        reach = float(np.quantile(np.abs(off), 0.98)) or 1.0
        ax.imshow(matrix, cmap="PuOr_r", vmin=-reach, vmax=reach, interpolation="nearest")
        for edge in edges:
            ax.axhline(edge, color="white", lw=1.6)
            ax.axvline(edge, color="white", lw=1.6)
        ax.set_title(f"{title} (±{reach:.2g})", fontsize=9)
        ax.set(xticks=[], yticks=[])
    axes[0, 0].set_ylabel("samples, by mechanism", fontsize=9)
    return fig


__all__ = ["interval_panels", "planted_matrices"]
