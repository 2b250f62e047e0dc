"""One function per figure. Each takes estimates, computes nothing, and returns a matplotlib Figure.

These figures fit any data set. The only module of the library that needs matplotlib.

Colours are Okabe and Ito's, which stay apart for every common colour blindness and in grey.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

if TYPE_CHECKING:
    import pandas as pd

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
)
STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 130,
    "figure.facecolor": "white",
    "font.size": 10,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "savefig.facecolor": "white",
}
_COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)


def figure(
    rows: int = 1, cols: int = 1, size: tuple[float, float] | None = None, **kwargs: Any
) -> tuple[Figure, np.ndarray]:
    """A figure in this module's style and its axes, shape (rows, cols).

    The figure is already taken off pyplot's list, so a notebook shows it once, as a cell's value.

    Args:
        rows, cols: of axes.
        size: width and height, inches; default: 4.2 by 3.2 per axes.
        kwargs: for :func:`matplotlib.pyplot.subplots`.
    """
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(
            rows, cols, figsize=size or (4.2 * cols, 3.2 * rows), squeeze=False, **kwargs
        )
        plt.close(fig)
    return fig, axes


# -- samples -----------------------------------------------------------------------------------


def image_grid(
    groups: Mapping[str, np.ndarray],
    titles: Mapping[str, Sequence[str]] | None = None,
    cols: int = 8,
    *,
    size: float = 0.47,
    cmap: str = "gray",
) -> Figure:
    """Images one block of images per group, side by side: samples ranked by an estimate, say.

    Args:
        groups: name of each block -> its images, shape (k, height, width) for grey, or
            (k, height, width, 3) or (k, 3, height, width) for RGB; 0 to 255 where they are
            integers, 0 to 1 where they are floats. Floats outside that are scaled to fit.
        titles: name of each block -> a few words above each of its images, in two lines where one
            is wider than the image.
        cols: images per row within a block.
        size: width of an image, inches.
        cmap: of grey images; "gray_r" draws bright pixels dark.

    Raises:
        ValueError: images of another shape.
    """
    pictures = {name: _pictures(images, f"groups[{name!r}]") for name, images in groups.items()}
    k = max(len(images) for images in pictures.values())
    rows = -(-k // cols)
    above = {
        name: [_wrapped(text, size - 0.05, 7.5, "normal", 2) for text in texts]
        for name, texts in (titles or {}).items()
    }
    deepest = max((text.count("\n") + 1 for texts in above.values() for text in texts), default=0)
    line = 0.05 + 0.13 * deepest if titles else 0.02
    tall = max(images.shape[1] / images.shape[2] for images in pictures.values())
    with plt.rc_context(STYLE):
        fig = plt.figure(
            figsize=(size * cols * len(groups) + 0.4, (size * tall + 0.03 + line) * rows + 0.35)
        )
        plt.close(fig)
        blocks = fig.subfigures(1, len(groups), squeeze=False, wspace=0.06)[0]
        for block, (name, images) in zip(blocks, pictures.items(), strict=True):
            block.suptitle(name, fontsize=9)
            axes = block.subplots(rows, cols, squeeze=False).ravel()
            for ax in axes:
                ax.axis("off")
            for i, image in enumerate(images):
                axes[i].imshow(image, interpolation="nearest", cmap=cmap)
                if titles:
                    axes[i].set_title(above[name][i], fontsize=7.5, pad=1.5)
    return fig


def _pictures(images: np.ndarray, name: str) -> np.ndarray:
    """Images as ``imshow`` takes them, shape (n, height, width) or (n, height, width, 3)."""
    images = np.asarray(images)
    if images.ndim == 4 and images.shape[-1] not in (1, 3) and images.shape[1] in (1, 3):
        images = np.moveaxis(images, 1, -1)
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.ndim != 3 and not (images.ndim == 4 and images.shape[-1] == 3):
        raise ValueError(
            f"{name} has shape {images.shape}; give images of shape (n, height, width), "
            "(n, height, width, 3) or (n, 3, height, width)."
        )
    if images.ndim == 4 and images.dtype.kind == "f" and images.size:
        low, high = min(images.min(), 0), max(images.max(), 1)
        images = (images - low) / (high - low)
    return images


def neighbour_grid(
    images: np.ndarray,
    references: np.ndarray,
    neighbours: np.ndarray,
    *,
    correlation: np.ndarray,
    names: Sequence[str] | None = None,
    same: np.ndarray | None = None,
    q_value: np.ndarray | None = None,
    blocks: int = 1,
    row_titles: Sequence[str] | None = None,
    cmap: str = "gray",
) -> Figure:
    """Reference images, each followed by its most correlated neighbours (Figure 2 of the paper).

    With ``same``, a solid frame with "=" marks a neighbour with the label of its reference, a
    dashed one with "≠" any other.

    Args:
        images: all n of them, in a shape that :func:`image_grid` takes.
        references: positions of the reference images, shape (r,).
        neighbours: positions of their neighbours, best first, shape (r, k).
        correlation: R of each neighbour with its reference, shape (r, k).
        names: of the n images, or of their classes; default: their positions.
        same: whether a neighbour has the label of its reference, bool, shape (r, k).
        q_value: of each neighbour, shape (r, k); one that is not below 0.05 may be chance, and is
            pale.
        blocks: the references stand in so many blocks, side by side, filled from the left.
        row_titles: what stands under each reference; default: its name.
        cmap: of grey images.

    Raises:
        ValueError: images of another shape, or ``neighbours``, ``same``, ``q_value`` and
            ``correlation`` that are not of one shape (r, k).
    """
    pictures = _pictures(images, "images")
    names = [str(i) for i in range(len(pictures))] if names is None else names
    given = {"neighbours": neighbours, "same": same, "correlation": correlation}
    given["q_value"] = q_value
    rows, k = len(references), np.shape(neighbours)[-1]
    for name, values in given.items():
        if values is not None and np.shape(values) != (rows, k):
            raise ValueError(
                f"{name} has shape {np.shape(values)}; give one row for each of the {rows} "
                "references and one column for each neighbour."
            )
    deep = -(-rows // blocks)
    # Everything in inches, in one axes: hundreds of axes take minutes to lay out.
    apart, between, edge, foot = 0.13, 0.22, 0.04, 0.3
    cell = min(0.8, (9 - 2 * edge - blocks * apart - (blocks - 1) * between) / (blocks * (k + 1)))
    side = cell - 0.1
    tall = side * pictures.shape[1] / pictures.shape[2]
    size = 7.5
    line = 1.22 * size / 72
    height = tall + 0.1 + 3 * line + 0.08
    block_width = (k + 1) * cell + apart
    width = blocks * block_width + (blocks - 1) * between + 2 * edge
    total = deep * height + foot + edge
    with plt.rc_context(STYLE | {"figure.constrained_layout.use": False}):
        fig = plt.figure(figsize=(width, total))
        plt.close(fig)
        ax = fig.add_axes((0, 0, 1, 1))
    ax.axis("off")
    ax.set(xlim=(0, width), ylim=(total, 0))

    def tile(
        i: int, x: float, y: float, color: str, ls: object, lw: float, alpha: float = 1
    ) -> None:
        ax.imshow(
            pictures[i], extent=(x, x + side, y + tall, y), aspect="auto", cmap=cmap,
            interpolation="antialiased", alpha=alpha,
        )  # fmt: skip
        out = 0.018  # the frame stands on white, so that its dashes show on any photograph
        frame = (x - out, y - out), side + 2 * out, tall + 2 * out
        ax.add_patch(plt.Rectangle(*frame, fill=False, ec=color, ls=ls, lw=lw, zorder=3))

    def words(text: str, x: float, y: float, lines: int, weight: str, color: str) -> None:
        wrapped = _wrapped(str(text), cell - 0.05, size, weight, lines)
        ax.text(
            x + side / 2, y, wrapped, fontsize=size, weight=weight, color=color, ha="center",
            va="top", linespacing=1.1, parse_math=False,
        )  # fmt: skip

    titles = [names[i] for i in references] if row_titles is None else row_titles
    for row in range(rows):
        block, deep_in = divmod(row, deep)
        left = edge + block * (block_width + between) + 0.05
        top = edge + deep_in * height + 0.05
        below = top + tall + 0.045
        tile(references[row], left, top, "black", "-", 2.2)
        words(titles[row], left, below, 3, "bold", "black")
        for j in range(k):
            x = left + (j + 1) * cell + apart
            color, ls, sign = _NEIGHBOUR[None if same is None else bool(same[row, j])]
            chance = q_value is not None and q_value[row, j] >= 0.05
            tile(neighbours[row, j], x, top, color, ls, 1.3, 0.3 if chance else 1)
            r = f"{round(float(correlation[row, j]), 2) + 0:.2f}".replace("-", "−")  # no −0.00
            words(f"{sign} {r}".lstrip(), x, below, 1, "bold", color)
            words(names[neighbours[row, j]], x, below + line, 2, "normal", "black")
    note = "numbers: correlation R" + ("" if q_value is None else "; pale: may be chance")
    _neighbour_key(ax, edge + 0.1, total - foot / 2, note, labeled=same is not None)
    return fig


_NEIGHBOUR: dict[
    bool | None, tuple[str, Any, str]
] = {  # same label as its reference -> colour, line, sign
    True: (BLUE, "-", "="),
    False: (VERMILION, (0, (2.2, 1.3)), "≠"),
    None: (BLUE, "-", ""),
}


def _neighbour_key(ax: Axes, x: float, y: float, note: str, labeled: bool) -> None:
    """What frames mean, and a note, in one line from ``x``, inches."""
    keys: list[tuple[str, Any, float, str]] = [("black", "-", 2.2, "reference")]
    if labeled:
        keys.append((*_NEIGHBOUR[True][:2], 1.3, "=  same label"))
        keys.append((*_NEIGHBOUR[False][:2], 1.3, "≠  another label"))
    for color, ls, lw, text in keys:
        ax.add_patch(plt.Rectangle((x, y - 0.06), 0.2, 0.12, fill=False, ec=color, ls=ls, lw=lw))
        ax.text(x + 0.27, y, text, fontsize=7.5, va="center", color=color)
        x += 0.27 + _text_width(text, 7.5) + 0.25
    ax.text(x, y, note, fontsize=7.5, va="center")


def _text_width(text: str, size: float, weight: str = "normal") -> float:
    """Width of a line in inches."""
    font = FontProperties(size=size, weight=weight)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72


def _wrapped(text: str, width: float, size: float, weight: str, lines: int) -> str:
    """``text`` in at most ``lines`` lines of ``width`` inches, with an ellipsis if cut."""

    def fits(part: str) -> bool:
        return _text_width(part, size, weight) <= width

    done: list[str] = []
    words = text.split()
    while words:
        line = words.pop(0)
        while words and fits(f"{line} {words[0]}"):
            line += f" {words.pop(0)}"
        if not fits(line) or (words and len(done) == lines - 1):
            while line and not fits(f"{line}…"):
                line = line[:-1]
            return "\n".join([*done, line.rstrip(" ,") + "…"])
        done.append(line)
    return "\n".join(done)


def embedding(xy: np.ndarray, groups: Mapping[str, np.ndarray], name: str = "dimension") -> Figure:
    """A two-dimensional embedding, later groups drawn over earlier ones.

    Args:
        xy: coordinates, shape (n, 2).
        groups: name -> boolean mask of shape (n,).
        name: of the axes, which get a 1 and a 2 behind it.
    """
    fig, axes = figure(size=(5.6, 5))
    ax = axes[0, 0]
    colors = cycle((SKY, VERMILION, GREEN, PURPLE, ORANGE, BLUE))
    for (group, mask), color, marker in zip(groups.items(), colors, cycle("o^sDv"), strict=False):
        ax.scatter(
            *xy[mask].T, s=5, marker=marker, alpha=0.6, lw=0, color=color, rasterized=True,
            label=f"{group} (n = {int(mask.sum()):,})",
        )  # fmt: skip
    ax.set(xticks=[], yticks=[], xlabel=f"{name} 1", ylabel=f"{name} 2")
    ax.grid(False)
    ax.legend(markerscale=3, loc="upper right")
    return fig


# -- estimates ---------------------------------------------------------------------------------


def gain_against_loss(
    loss: np.ndarray, gain: np.ndarray, note: str = "", floor: float = 1e-8
) -> Figure:
    """Loss gain against the loss at w*, both on a log scale (Fig. 1, left).

    Args:
        loss: l_i(w*), of samples (n,) or of tokens (n, token), nats; drawn at ``floor`` where it
            is smaller.
        gain: mu_i of the same, nats; those that are negative are left out and counted. NaN is none.
        note: a line in the corner.
        floor: left end of the axis, nats.

    Raises:
        ValueError: they are of different shapes.
    """
    fig, axes = figure(size=(5.6, 4))
    ax = axes[0, 0]
    loss, gain = np.asarray(loss), np.asarray(gain)
    if loss.shape != gain.shape:
        raise ValueError(
            f"loss has shape {loss.shape} and gain {gain.shape}; give the same of both"
        )
    drawn, negative = gain > 0, int((gain <= 0).sum())
    ax.scatter(
        np.maximum(loss, floor)[drawn], gain[drawn], s=3, alpha=0.35, lw=0, color=BLUE,
        rasterized=True,
    )  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="loss at $w^*$ (nats)", ylabel="loss gain (nats)")
    left_out = f"\n{negative} negative gains not drawn" if negative else ""
    ax.text(0.02, 0.98, note + left_out, transform=ax.transAxes, va="top", fontsize=8)
    return fig


def populations(
    values: Mapping[str, np.ndarray], xlabel: str, bins: int = 80, low: float | None = None
) -> Figure:
    """Histograms of populations on a common log axis, each as a share of its own population.

    Args:
        values: name -> values of any shape; those below ``low`` are counted in the first bin, and
            NaN, as of positions that a sample does not have, is left out.
        xlabel: quantity and unit.
        bins: of the histogram.
        low: left end of the axis; default: the 0.1 % quantile of the positive values.

    Raises:
        ValueError: no value is positive.
    """
    values = {name: np.ravel(v)[~np.isnan(np.ravel(v))] for name, v in values.items()}
    positive = np.concatenate([v[v > 0] for v in values.values()])
    if not len(positive):
        raise ValueError("values holds no positive number; a log axis needs one.")
    low = np.quantile(positive, 0.001) if low is None else low
    edges = np.geomspace(low, positive.max() * 1.01, bins + 1)
    fig, axes = figure(size=(6, 3.4))
    ax = axes[0, 0]
    for (name, v), color in zip(values.items(), cycle(_COLORS), strict=False):
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
    looks = zip(cycle(_COLORS), cycle(("-", "--", "-.", ":")), strict=False)
    for name, (color, ls) in zip(roc, looks, strict=False):
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


def kernel_heatmap(
    matrix: np.ndarray,
    groups: Sequence[object] | None = None,
    *,
    quantity: str = "correlation R",
    limit: float | None = None,
) -> Figure:
    """A kernel as a matrix of colours: red where two samples' losses rise together, blue where not.

    Args:
        matrix: R or K, or a block of it, shape (n, n).
        groups: group of each sample, shape (n,): rows and columns are sorted by it, and groups
            are set apart by lines; default: the order of ``matrix``.
        quantity: what the colours mean, with its unit.
        limit: value of the strongest colour, on either side of 0; default: the largest size of an
            entry.

    Raises:
        ValueError: ``matrix`` is not square, or ``groups`` of another length.
    """
    matrix = np.asarray(matrix)
    n = len(matrix)
    if matrix.shape != (n, n):
        raise ValueError(f"matrix has shape {matrix.shape}; give as many columns as rows.")
    if groups is not None and len(groups) != n:
        raise ValueError(f"groups has {len(groups)} entries; give one for each of the {n} rows.")
    fig, axes = figure(size=(5.6, 4.8))
    ax = axes[0, 0]
    if groups is not None:
        names, member = np.unique(np.asarray(groups), return_inverse=True)
        order = np.argsort(member, kind="stable")
        matrix = matrix[np.ix_(order, order)]
        ends = np.r_[0, np.cumsum(np.bincount(member))] - 0.5
        for end in ends[1:-1]:
            ax.axhline(end, color="0.3", lw=0.6)
            ax.axvline(end, color="0.3", lw=0.6)
        middles = (ends[1:] + ends[:-1]) / 2
        ax.set_xticks(middles, names, rotation=90 if len(names) > 10 else 0)
        ax.set_yticks(middles, names)
        ax.tick_params(length=0)
    limit = np.nanmax(np.abs(matrix)) if limit is None else limit
    image = ax.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    ax.grid(False)
    fig.colorbar(image, ax=ax, shrink=0.85, label=quantity)
    return fig


def over_training(table: pd.DataFrame, xlabel: str = "checkpoint", log: bool = False) -> Figure:
    """LLC and loss gains along a training, checkpoint by checkpoint.

    Bars are 95 % intervals of chance; a cross has an error that is not known. A checkpoint whose
    trace speaks for wrong numbers has an open marker in both panels, and a legend says so.

    Args:
        table: from :func:`probelib.checkpoint_table`: its index is the horizontal axis, in place
            where it holds numbers, else evenly spaced.
        xlabel: what the checkpoints are: "training step", "epoch".
        log: whether that axis is logarithmic; a step 0 stays, on a piece that is linear.

    Raises:
        ValueError: ``table`` has no rows, or lacks a column of that table.
    """
    needed = ("llc", "llc_mcse", "mean_gain", "mean_gain_mcse", "verdict")
    missing = [name for name in needed if name not in table]
    if missing or not len(table):
        what = f"has no column {missing[0]}" if missing else "has no rows"
        raise ValueError(f"table {what}; give that of probelib.checkpoint_table.")
    named = table.index.dtype.kind not in "iuf"
    x = np.arange(len(table)) if named else np.asarray(table.index)
    wrong = (table["verdict"] == "wrong").to_numpy()
    fig, axes = figure(1, 2, size=(9, 3.4))
    order = np.argsort(x, kind="stable")
    quantiles = sorted((c for c in table if c.startswith("gain_q")), key=lambda c: float(c[6:]))
    for below, above in zip(quantiles, reversed(quantiles), strict=True):
        if float(below[6:]) < float(above[6:]):
            axes[0, 1].fill_between(
                x[order], table[below].to_numpy()[order], table[above].to_numpy()[order],
                color=SKY, alpha=0.3, lw=0,
                label=f"samples from {below[6:]} to {above[6:]} %",
            )  # fmt: skip
        elif below == above:
            axes[0, 1].plot(
                x[order], table[below].to_numpy()[order], color=VERMILION, ls="--", lw=1.2,
                label="median" if below == "gain_q50" else f"{below[6:]} % quantile",
            )  # fmt: skip
    for ax, name in ((axes[0, 0], "llc"), (axes[0, 1], "mean_gain")):
        _along_training(ax, x[order], table.iloc[order], name, wrong[order])
        ax.set_xlabel(xlabel)
        if named:
            ax.set_xticks(x, [str(name) for name in table.index])
        elif log:
            positive = x[x > 0]
            ax.set_xscale("symlog", linthresh=float(positive.min()) if len(positive) else 1.0)
    axes[0, 0].set_ylabel("local learning coefficient")
    axes[0, 1].set_ylabel("loss gain (nats)")
    axes[0, 1].legend(fontsize=8)
    if wrong.any() or not np.isfinite(table["llc_mcse"]).all():
        axes[0, 0].legend(fontsize=8)
    return fig


def _along_training(ax: Axes, x: np.ndarray, table: Any, name: str, wrong: np.ndarray) -> None:
    """A quantity with its intervals, open markers where it is not to be trusted."""
    value, error = table[name].to_numpy(), 1.96 * table[f"{name}_mcse"].to_numpy()
    ax.plot(x, value, color=BLUE, lw=1.2)
    known = np.isfinite(error)
    looks = (
        (~wrong & known, "o", BLUE, "mean"),
        (~wrong & ~known, "X", BLUE, "mean, error unknown"),
        (wrong, "o", "white", "do not trust"),
    )
    for which, marker, face, label in looks:
        if which.any():
            bars = np.where(known, error, 0)[which]
            ax.errorbar(
                x[which], value[which], bars, fmt=marker, ms=5, color=BLUE, mfc=face,
                capsize=2, lw=1.2, label=label,
            )  # fmt: skip


# -- chains ------------------------------------------------------------------------------------


def chain_traces(
    series: np.ndarray,
    ylabel: str,
    autocorrelation: np.ndarray | None = None,
    reference: float | None = None,
) -> Figure:
    """One line per chain along the draws and, beside it, the autocorrelation.

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
    colors = cycle((BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY))
    for row, color in zip(rows, colors, strict=False):
        ax.plot(row, lw=0.9, color=color)


def rhat_and_ess(
    rhat: np.ndarray, ess: np.ndarray, rhat_limit: float = 1.1, ess_limit: float = 100.0
) -> Figure:
    """Histograms of R-hat and effective sample size over many series, with the limits to keep.

    The first series, the mean loss in :class:`probelib.Diagnostics`, is marked by a line
    of its own. Each title counts the series beyond the limit.

    Args:
        rhat, ess: one entry per series, shape (s,); series whose entry is not finite (they never
            move) are not drawn.
        rhat_limit: the largest R-hat to accept.
        ess_limit: the smallest effective sample size to accept.
    """
    fig, axes = figure(1, 2, size=(9, 3.2))
    for ax, values, limit, sign, xlabel in (
        (axes[0, 0], np.asarray(rhat), rhat_limit, 1, r"$\hat R$"),
        (axes[0, 1], np.asarray(ess), ess_limit, -1, "effective sample size"),
    ):
        drawn = values[np.isfinite(values)]
        beyond = int((sign * drawn > sign * limit).sum())
        ax.hist(drawn, bins=40, color=SKY, zorder=2)
        ax.axvline(limit, color=VERMILION, ls="--", lw=1.3, zorder=3, label=f"limit {limit:g}")
        if np.isfinite(values[0]):
            ax.axvline(values[0], color="black", lw=1.3, zorder=3, label="mean loss")
        side = "above" if sign > 0 else "below"
        ax.set(
            xlabel=xlabel, ylabel="series", title=f"{beyond:,} of {len(drawn):,} {side} the limit"
        )
        ax.legend(fontsize=8)
    return fig


def sweep(table: pd.DataFrame) -> Figure:
    """The LLC against n beta, a line a localization, with errors, weighted draws and verdicts.

    Full marks are chains that nothing speaks against, hollow ones ask for more draws, crosses are
    wrong; black diamonds are weighted draws, where their weights can be trusted.

    Args:
        table: from :func:`probelib.sweep`.
    """
    fig, axes = figure(size=(6.4, 4))
    ax, marks = axes[0, 0], {"good": ("o", None), "wide": ("o", "white"), "wrong": ("x", None)}
    for (gamma, rows), color in zip(table.groupby("localization"), cycle(_COLORS), strict=False):
        rows = rows[np.isfinite(rows.llc)]
        ax.plot(rows.n_beta, rows.llc, color=color, lw=1, label=rf"$\gamma$ = {gamma:g}")
        for verdict, (mark, face) in marks.items():
            part = rows[rows.verdict == verdict]
            ax.errorbar(
                part.n_beta, part.llc, 1.96 * part.llc_mcse.where(np.isfinite(part.llc_mcse)),
                fmt=mark, color=color, mfc=face or color, capsize=2, zorder=3,
            )  # fmt: skip
    weighted = table[np.isfinite(table.weighted_llc)]
    if len(weighted):
        ax.errorbar(
            weighted.n_beta, weighted.weighted_llc, 1.96 * weighted.weighted_llc_mcse,
            fmt="D", ms=4, color="black", lw=0.8, label="weighted draws", zorder=4,
        )  # fmt: skip
    below = bool((table.llc <= 0).any())  # nothing is left out of the picture
    scale = "linear" if below else "log"
    ax.set(xscale="log", yscale=scale, xlabel=r"$n\beta$", ylabel="LLC")
    ax.legend(fontsize=8)
    return fig


__all__ = [
    "BLUE",
    "GREEN",
    "ORANGE",
    "PURPLE",
    "SKY",
    "STYLE",
    "VERMILION",
    "chain_traces",
    "detection_curves",
    "embedding",
    "figure",
    "gain_against_loss",
    "image_grid",
    "kernel_heatmap",
    "neighbour_grid",
    "over_training",
    "populations",
    "rhat_and_ess",
    "sweep",
]
