"""One function a figure: takes estimates, computes nothing, returns a matplotlib Figure.

Colours are Okabe and Ito's, which stay apart for every common colour blindness and in grey.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
)
STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 130,
    "figure.facecolor": "white",
    "font.size": 10,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "image.cmap": "gray_r",
    "legend.frameon": False,
    "savefig.facecolor": "white",
}


def figure(
    rows: int = 1, cols: int = 1, size: tuple[float, float] | None = None, **kwargs: object
) -> tuple[Figure, np.ndarray]:
    """A figure in the book's style and its axes, shape (rows, cols).

    The figure is already taken off pyplot's list, so a notebook shows it once, as a cell's value.
    """
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(
            rows, cols, figsize=size or (4.2 * cols, 3.2 * rows), squeeze=False, **kwargs
        )
        plt.close(fig)
    return fig, axes


def digit_grid(
    groups: Mapping[str, np.ndarray],
    titles: Mapping[str, Sequence[str]] | None = None,
    cols: int = 8,
) -> Figure:
    """Images in one block a group, side by side.

    Args:
        groups: name of each block -> images, shape (k, height, width).
        titles: name of each block -> a short line above each of its images.
        cols: images a row within a block.
    """
    k = max(len(images) for images in groups.values())
    rows = -(-k // cols)
    line = 0.16 if titles else 0.02
    with plt.rc_context(STYLE):
        fig = plt.figure(figsize=(0.47 * cols * len(groups) + 0.4, (0.5 + line) * rows + 0.35))
        plt.close(fig)
        blocks = fig.subfigures(1, len(groups), squeeze=False, wspace=0.06)[0]
        for block, (name, images) in zip(blocks, groups.items(), strict=True):
            block.suptitle(name, fontsize=9)
            axes = block.subplots(rows, cols, squeeze=False).ravel()
            for ax in axes:
                ax.axis("off")
            for i, image in enumerate(images):
                axes[i].imshow(image, interpolation="nearest")
                if titles:
                    axes[i].set_title(titles[name][i], fontsize=6, pad=1.5)
    return fig


def loss_against_gain(
    loss: np.ndarray, gain: np.ndarray, note: str = "", floor: float = 1e-8
) -> Figure:
    """Loss at w* against loss gain, both on a log scale (Fig. 1, left).

    Args:
        loss: l_i(w*), shape (n,), nats; drawn at ``floor`` where it is smaller.
        gain: mu_i, shape (n,), nats; samples with a negative gain are left out and counted.
        note: a line in the corner.
    """
    fig, axes = figure(size=(5.6, 4))
    ax = axes[0, 0]
    seen = gain > 0
    ax.scatter(
        np.maximum(loss, floor)[seen],
        gain[seen],
        s=3,
        alpha=0.35,
        lw=0,
        color=BLUE,
        rasterized=True,
    )
    ax.set(xscale="log", yscale="log", xlabel="loss at $w^*$ (nats)", ylabel="loss gain (nats)")
    left_out = "" if seen.all() else f"\n{int((~seen).sum())} negative gains not drawn"
    ax.text(0.02, 0.98, note + left_out, transform=ax.transAxes, va="top", fontsize=8)
    return fig


def populations(
    values: Mapping[str, np.ndarray], xlabel: str, bins: int = 80, low: float | None = None
) -> Figure:
    """Histograms of populations on a common log axis, each as a share of its own population.

    Args:
        values: name -> values, any lengths; those below ``low`` are counted in the first bin.
        xlabel: quantity and unit.
        low: left end of the axis; default: the 0.1 % quantile of the positive values.
    """
    positive = np.concatenate([v[v > 0] for v in values.values()])
    low = np.quantile(positive, 0.001) if low is None else low
    edges = np.geomspace(low, positive.max() * 1.01, bins + 1)
    fig, axes = figure(size=(6, 3.4))
    ax = axes[0, 0]
    for (name, v), color in zip(values.items(), (BLUE, VERMILION, GREEN), strict=False):
        share = np.histogram(np.maximum(v, low), edges)[0] / len(v)
        ax.stairs(share, edges, fill=True, alpha=0.35, color=color)
        ax.stairs(share, edges, color=color, lw=1.3, label=f"{name} (n = {len(v):,})")
        ax.axvline(np.mean(v), color=color, ls="--", lw=1)
    ax.set(xscale="log", xlabel=f"{xlabel}; dashed: means", ylabel="share of the population")
    ax.legend()
    return fig


def detection_curves(
    roc: Mapping[str, tuple[np.ndarray, np.ndarray, float]],
    precision_recall: Mapping[str, tuple[np.ndarray, np.ndarray, float]],
    base_rate: float,
) -> Figure:
    """ROC and precision-recall curves of several scores.

    Args:
        roc: score -> (false positive rate, true positive rate, area).
        precision_recall: score -> (recall, precision, average precision).
        base_rate: share of positives, the precision of guessing.
    """
    fig, axes = figure(1, 2, size=(9, 3.7))
    styles = zip((BLUE, VERMILION, GREEN, PURPLE), ("-", "--", "-.", ":"), strict=True)
    for name, (color, ls) in zip(roc, styles, strict=False):
        x, y, area = roc[name]
        axes[0, 0].plot(x, y, color=color, ls=ls, label=f"{name}: {area:.3f}")
        x, y, area = precision_recall[name]
        axes[0, 1].plot(x, y, color=color, ls=ls, label=f"{name}: {area:.3f}")
    axes[0, 0].plot([0, 1], [0, 1], color="0.6", lw=0.8)
    axes[0, 1].axhline(base_rate, color="0.6", lw=0.8)
    axes[0, 0].set(xlabel="false positive rate", ylabel="true positive rate", title="ROC (area)")
    axes[0, 1].set(xlabel="recall", ylabel="precision", title="precision-recall (mean precision)")
    axes[0, 0].legend(loc="lower right")
    axes[0, 1].legend(loc="lower left")
    return fig


def embedding(xy: np.ndarray, groups: Mapping[str, np.ndarray]) -> Figure:
    """A two-dimensional embedding, later groups drawn over earlier ones.

    Args:
        xy: coordinates, shape (n, 2).
        groups: name -> boolean mask of shape (n,).
    """
    fig, axes = figure(size=(5.6, 5))
    ax = axes[0, 0]
    for (name, mask), color, marker in zip(
        groups.items(), (SKY, VERMILION, GREEN), "o^s", strict=False
    ):
        ax.scatter(
            *xy[mask].T, s=5, marker=marker, alpha=0.6, lw=0, color=color, rasterized=True,
            label=f"{name} (n = {int(mask.sum()):,})",
        )  # fmt: skip
    ax.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
    ax.grid(False)
    ax.legend(markerscale=3, loc="upper right")
    return fig


def chain_traces(
    series: np.ndarray,
    ylabel: str,
    autocorrelation: np.ndarray | None = None,
    reference: float | None = None,
) -> Figure:
    """One line a chain along the draws and, beside it, the autocorrelation.

    Args:
        series: shape (chain, draw).
        ylabel: quantity and unit.
        autocorrelation: shape (chain, lag), from lag 0.
        reference: a horizontal line: the truth, or the value at w*.
    """
    fig, axes = figure(1, 1 if autocorrelation is None else 2, size=(9, 3))
    _lines(axes[0, 0], series)
    if reference is not None:
        axes[0, 0].axhline(reference, color="0.3", ls=":", lw=1)
    axes[0, 0].set(xlabel="draw", ylabel=ylabel)
    if autocorrelation is not None:
        _lines(axes[0, 1], autocorrelation)
        axes[0, 1].axhline(0, color="0.6", lw=0.8)
        axes[0, 1].set(xlabel="lag (draws)", ylabel="autocorrelation")
    return fig


def _lines(ax: Axes, rows: np.ndarray) -> None:
    for row, color in zip(rows, (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY) * 20, strict=False):
        ax.plot(row, lw=0.9, color=color)


__all__ = [
    "STYLE",
    "chain_traces",
    "detection_curves",
    "digit_grid",
    "embedding",
    "figure",
    "loss_against_gain",
    "populations",
]
