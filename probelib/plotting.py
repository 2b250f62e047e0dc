"""One function a figure: takes estimates, computes nothing, returns a matplotlib Figure.

Colours are Okabe and Ito's, which stay apart for every common colour blindness and in grey.
"""

from collections.abc import Collection, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

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
    middle.clabel(lines, lines.levels[::3], fontsize=7, fmt="%.2g")
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


def stationary_variance(
    by_step: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    step_curve: tuple[np.ndarray, np.ndarray],
    by_batch: tuple[np.ndarray, np.ndarray, np.ndarray],
    batch_curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    posterior_variance: float,
) -> Figure:
    """Measured variance of the chain against its closed form, by step size and by batch size.

    Args:
        by_step: a series a direction: (eps A, variance times A, standard error).
        step_curve: (eps A, variance times A) in theory.
        by_batch: (m, variance, standard error).
        batch_curves: name -> (m, variance) in theory, the true one first.
        posterior_variance: 1 / A of the second panel.
    """
    fig, axes = figure(1, 2, size=(9, 3.6))
    left, right = axes[0]
    left.plot(*step_curve, color="black", lw=1.3, label=r"theory: $1 / (1 - \epsilon A / 4)$")
    left.axhline(1, color="0.5", ls=":", lw=1.2, label="Eq. 1")
    for k, (at, value, error) in enumerate(by_step):
        left.errorbar(
            at, value, 2 * error, fmt="osD^v"[k % 5], ms=5, capsize=2, lw=1,
            color=(BLUE, ORANGE, GREEN, VERMILION, PURPLE)[k % 5], label=f"direction {k + 1}",
        )  # fmt: skip
    left.set(
        xlabel=r"$\epsilon A$: step size times precision", ylabel="variance × A",
        title="full gradient: by step size", yscale="log",
    )  # fmt: skip
    left.set_yticks([1, 1.5, 2, 3, 4], ["1", "1.5", "2", "3", "4"])
    left.minorticks_off()
    left.legend(fontsize=8)
    for (name, curve), ls, color in zip(
        batch_curves.items(), ("-", "--", ":"), ("black", VERMILION, PURPLE), strict=False
    ):
        right.plot(*curve, color=color, ls=ls, lw=1.3, label=name)
    right.axhline(posterior_variance, color="0.5", ls=":", lw=1.2, label="Eq. 1")
    at, value, error = by_batch
    right.errorbar(at, value, 2 * error, fmt="o", ms=5, capsize=2, lw=1, color=BLUE)
    right.set(
        xscale="log", yscale="log", xlabel="batch size $m$", ylabel="variance",
        title="minibatch: by batch size",
    )  # fmt: skip
    right.set_xticks(at, [f"{m:g}" for m in at])
    right.set_yticks([0.03, 0.05, 0.1, 0.2], ["0.03", "0.05", "0.1", "0.2"])
    right.minorticks_off()
    right.legend(fontsize=8)
    return fig


def closed_forms(
    gain: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    kernel: tuple[np.ndarray, np.ndarray],
) -> Figure:
    """Loss gains and kernel of linear regression, measured against exact.

    Args:
        gain: mu of the chain's exact law, mu of Eq. 1, measured mu, its standard error: (n,) each.
        kernel: K of the chain's exact law and measured K, any equal shapes.
    """
    fig, axes = figure(1, 2, size=(9, 3.6), gridspec_kw={"width_ratios": (1.35, 1)})
    exact, limit, measured, error = gain
    order = np.argsort(exact)
    ranks = np.arange(len(order))
    left, right = axes[0]
    left.axhline(1, color="black", lw=1.1)
    left.plot(
        ranks, (measured / limit)[order], "D", ms=4, color=ORANGE, mfc="none",
        label="measured / Eq. 1",
    )  # fmt: skip
    left.errorbar(
        ranks, (measured / exact)[order], 2 * (error / exact)[order], fmt="o", ms=4, lw=1,
        color=BLUE, label="measured / exact law of the chain",
    )  # fmt: skip
    left.set(
        xlabel="sample, from lowest to highest loss gain", ylabel="ratio of loss gains",
        title=r"loss gain $\mu_i$",
    )  # fmt: skip
    left.set_ylim(0.5, 2.0)
    left.legend(fontsize=8, loc="upper left", ncols=2)
    k, k_hat = (np.asarray(v).ravel() for v in kernel)
    ends = [min(k.min(), k_hat.min()), max(k.max(), k_hat.max())]
    right.plot(ends, ends, color="black", lw=1.1)
    right.scatter(k, k_hat, s=9, lw=0, alpha=0.5, color=BLUE, rasterized=True)
    right.set(
        xlabel="exact $K_{ij}$ (nats²)", ylabel="measured $K_{ij}$ (nats²)",
        title="loss kernel $K_{ij}$",
    )  # fmt: skip
    return fig


def three_errata(
    localization: tuple[np.ndarray, np.ndarray, np.ndarray],
    temperature: tuple[
        np.ndarray, Mapping[str, np.ndarray], np.ndarray, Mapping[str, np.ndarray], float
    ],
    bias: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> Figure:
    """Errata 1, 2 and 6: what the paper prints beside what is measured.

    Args:
        localization: gamma, measured variance of a weight, its standard error.
        temperature: nb; name -> curve of variances; nb; name -> measured variances; n.
        bias: ESS, measured ratio of the estimated kernel to the exact one, its standard error;
            then a finer ESS and the ratio in theory.
    """
    with plt.rc_context(STYLE):
        fig = plt.figure(figsize=(9, 6.4))
        plt.close(fig)
        grid = fig.add_gridspec(2, 2)
        one, two = fig.add_subplot(grid[0, 0]), fig.add_subplot(grid[0, 1])
        six = fig.add_subplot(grid[1, :])
    gamma, variance, error = localization
    span = np.geomspace(gamma.min() / 1.5, gamma.max() * 1.5, 50)
    one.plot(span, 1 / span, color="black", lw=1.3, label=r"needed: $1/\gamma$")
    one.plot(span, span, color=VERMILION, ls="--", lw=1.3, label=r"printed: $\gamma$")
    one.errorbar(gamma, variance, 2 * error, fmt="o", ms=6, color=BLUE, label="measured")
    one.set(
        xscale="log", yscale="log", xlabel=r"$\gamma$", ylabel="variance of a weight",
        title=r"1: is $\gamma$ a variance or a precision?",
    )  # fmt: skip
    one.legend(fontsize=8)
    n_beta, curves, measured_at, points, n = temperature
    looks = ((BLUE, "-", "o"), (VERMILION, "--", "s"))
    for (name, curve), (color, ls, _) in zip(curves.items(), looks, strict=True):
        two.plot(n_beta, curve, color="black" if ls == "-" else color, ls=ls, lw=1.3, label=name)
    for (name, values), (color, _, marker) in zip(points.items(), looks, strict=True):
        two.plot(
            measured_at, values, marker, ms=6, color=color, label=name,
            mfc=color if marker == "o" else "none",
        )  # fmt: skip
    two.axvline(n, color="0.5", ls=":", lw=1.2)
    two.text(n, 0.03, r" $\beta = 1$", transform=two.get_xaxis_transform(), color="0.3")
    two.set(
        xscale="log", yscale="log", xlabel=r"$n\beta$", ylabel="total variance of the weights",
        title=r"2: does the update know $\beta$?",
    )  # fmt: skip
    two.set_xticks(measured_at, [f"{v:g}" for v in measured_at])
    two.set_yticks([0.02, 0.05, 0.1, 0.2], ["0.02", "0.05", "0.1", "0.2"])
    two.minorticks_off()
    two.legend(fontsize=8, loc="lower left")
    ess, ratio, error, fine, theory = bias
    six.axhline(1, color=VERMILION, ls="--", lw=1.3, label="printed: unbiased")
    six.plot(fine, theory, color="black", lw=1.3, label="exact expectation")
    six.plot(fine, 1 - 1 / fine, color="0.5", ls=":", lw=1.5, label=r"$1 - 1/\mathrm{ESS}$")
    six.errorbar(ess, ratio, 2 * error, fmt="o", ms=6, color=BLUE, label="measured")
    six.set(
        xscale="log", xlabel="effective draws of one chain", ylabel=r"mean of tr $\hat K$ / tr $K$",
        title=r"6: is $\hat K$ unbiased?", ylim=(0, 1.15),
    )  # fmt: skip
    six.set_xticks([1, 2, 3, 4, 6], ["1", "2", "3", "4", "6"])
    six.minorticks_off()
    six.legend(fontsize=8, loc="lower right")
    return fig


def chain_gallery(
    runs: Mapping[str, tuple[np.ndarray, np.ndarray]], ylabel: str, reference: float, thin: int = 1
) -> Figure:
    """Chains of several runs, one row a run, each with its autocorrelation.

    Args:
        runs: name -> (series (chain, draw), autocorrelation (chain, lag) from lag 0).
        ylabel: quantity and unit of the series.
        reference: the value at w*, drawn dotted.
        thin: steps a draw.
    """
    fig, axes = figure(
        len(runs), 2, size=(9, 1.9 * len(runs)), sharex="col", sharey="col",
        gridspec_kw={"width_ratios": (1.7, 1)},
    )  # fmt: skip
    for (left, right), (name, (series, autocorrelation)) in zip(axes, runs.items(), strict=True):
        steps, lags = thin * np.arange(1, series.shape[1] + 1), np.arange(autocorrelation.shape[1])
        colors = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY)
        for row, rho, color in zip(series, autocorrelation, colors, strict=False):
            left.plot(steps, row, lw=0.9, color=color)
            right.plot(thin * lags, rho, lw=0.9, color=color)
        left.axhline(reference, color="0.3", ls=":", lw=1.2)
        right.axhline(0, color="0.6", lw=0.8)
        left.set(ylabel=ylabel, yscale="log")
        left.set_yticks([0.2, 0.5, 1, 2], ["0.2", "0.5", "1", "2"])
        left.minorticks_off()
        left.set_title(name, loc="left", fontsize=10)
        right.set(ylabel="autocorrelation", ylim=(-0.5, 1.05))
    axes[-1, 0].set_xlabel("step")
    axes[-1, 1].set_xlabel("lag (steps)")
    return fig


def sweeps(
    knobs: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Sequence[str]]],
    chosen: Mapping[str, float],
    verdicts: Sequence[str],
) -> Figure:
    """One column a knob: the LLC with its error above, the effective draws below.

    Args:
        knobs: label -> (values, LLC, its standard error, ESS, verdict), length k each.
        chosen: label -> the value that the other columns use.
        verdicts: the possible verdicts, the good one first.
    """
    fig, axes = figure(2, len(knobs), size=(3 * len(knobs), 5), sharex="col", sharey="row")
    looks = list(zip(verdicts, "oXv", (BLUE, VERMILION, ORANGE), strict=False))
    for (top, bottom), (label, (at, llc, error, ess, verdict)) in zip(
        axes.T, knobs.items(), strict=True
    ):
        for ax, values, bars in ((top, llc, 2 * error), (bottom, ess, None)):
            ax.axvline(chosen[label], color="0.6", ls=":", lw=1.4)
            for name, marker, color in looks:
                mask = np.asarray(verdict) == name
                ax.errorbar(
                    at[mask], values[mask], None if bars is None else bars[mask], fmt=marker,
                    ms=8, capsize=2, lw=1, color=color, label=name,
                )  # fmt: skip
            ax.set(xscale="log", yscale="log")
        bottom.set(xlabel=label)
        bottom.set_xticks(at, [f"{v:g}" for v in at], fontsize=8)
        bottom.minorticks_off()
    axes[0, 0].set_ylabel("local learning coefficient")
    axes[1, 0].set_ylabel("least effective draws")
    axes[0, 0].legend(fontsize=8, loc="upper left")
    return fig


def group_shares(
    names: Sequence[str],
    size: np.ndarray,
    shares: Mapping[str, tuple[np.ndarray, np.ndarray]],
    xlabel: str,
) -> Figure:
    """What each group holds of several sums, beside its share of the samples.

    Args:
        names: of the groups, g of them.
        size: share of the samples, shape (g,), drawn as grey bars.
        shares: sum -> (share, standard error), shape (g,) each; bars of two standard errors.
        xlabel: what the groups are.
    """
    fig, axes = figure(size=(7, 3.4))
    ax = axes[0, 0]
    at = np.arange(len(names))
    ax.bar(at, size, width=0.75, color="0.88", label="samples", zorder=1)
    offsets = np.linspace(-0.17, 0.17, len(shares))
    for (name, (share, error)), color, marker, offset in zip(
        shares.items(), (BLUE, VERMILION, GREEN), "oDs", offsets, strict=False
    ):
        ax.errorbar(
            at + offset, share, 2 * error, fmt=marker, ms=5.5, capsize=2, lw=1, color=color,
            label=name, zorder=3,
        )  # fmt: skip
    ax.set(xlabel=xlabel, ylabel="share of the whole", ylim=(0, None))
    ax.set_xticks(at, names)
    ax.grid(axis="x", visible=False)
    ax.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.14))
    return fig


def gibbs_levels(
    panels: Mapping[
        str, Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]]
    ],
) -> Figure:
    """n times the mean Gibbs training error against n: measured, exact, and its limit.

    Args:
        panels: model -> temperature -> (n, mean of n G_n, its standard error; finer n, exact
            n E[G_n]; the limit that Eq. 12 predicts).
    """
    fig, axes = figure(1, len(panels), size=(3 * len(panels), 3.5), sharey=True)
    looks = list(zip((BLUE, VERMILION, GREEN, PURPLE), "oDsv", strict=True))
    for ax, (title, series) in zip(axes[0], panels.items(), strict=True):
        for (name, (n, value, error, fine, exact, limit)), (color, marker) in zip(
            series.items(), looks, strict=False
        ):
            ax.axhline(limit, color=color, ls="--", lw=1.1)
            ax.plot(fine, exact, color=color, lw=1)
            ax.errorbar(
                n, value, 2 * error, fmt=marker, ms=4.5, capsize=2, lw=1, color=color, label=name
            )
        ax.set(xscale="log", xlabel="samples $n$", title=title)
    axes[0, 0].set_ylabel(r"$n\,\mathrm{E}_\mathcal{D}[G_n]$ (nats)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=len(labels))
    return fig


def one_data_set(
    histograms: Mapping[str, Mapping[str, np.ndarray]],
    limits: Mapping[str, float],
    deviations: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]],
    guides: Sequence[tuple[str, float]],
) -> Figure:
    """The singular fluctuation from single data sets: its distribution, and its error against n.

    Args:
        histograms: model -> size -> estimates from single data sets, shape (D,); a panel a model.
        limits: model -> nu.
        deviations: model -> (n, measured root mean square of estimate - nu; finer n, exact).
        guides: (label, exponent): lines from the first measured point of the first model.
    """
    fig, axes = figure(
        1, len(histograms) + 1, size=(3 * (len(histograms) + 1), 3.3),
        gridspec_kw={"width_ratios": [1] * len(histograms) + [1.25]},
    )  # fmt: skip
    looks = dict(zip(deviations, zip((BLUE, VERMILION, GREEN), "oDs", strict=True), strict=False))
    for ax, (model, by_size) in zip(axes[0], histograms.items(), strict=False):
        everything = np.concatenate(list(by_size.values()))
        low, high = np.quantile(everything, [0.001, 0.999])
        edges = np.linspace(low, high, 70)
        for (name, values), (color, fill) in zip(
            by_size.items(), (("0.45", False), (looks[model][0], True)), strict=False
        ):
            share = np.histogram(values, edges)[0] / len(values)
            if fill:
                ax.stairs(share, edges, fill=True, color=color, alpha=0.35)
            ax.stairs(share, edges, color=color, lw=1.3, label=name)
        ax.axvline(limits[model], color="black", ls="--", lw=1.2, label=r"$\nu$")
        ax.set(
            xlabel=r"$(\beta/2)\, V$ of one data set", title=model, ylabel="share of the data sets"
        )
        ax.legend(fontsize=8)
    ax = axes[0, -1]
    for model, (n, measured, fine, exact) in deviations.items():
        color, marker = looks[model]
        ax.plot(fine, exact, color=color, lw=1)
        ax.plot(n, measured, marker, ms=5, color=color, label=model)
    n, measured = next(iter(deviations.values()))[:2]
    for (label, exponent), ls in zip(guides, (":", "--"), strict=False):
        ax.plot(n, measured[0] * (n / n[0]) ** exponent, color="0.5", ls=ls, lw=1.2, label=label)
    ax.set(
        xscale="log", yscale="log", xlabel="samples $n$", title="error of one data set",
        ylabel=r"root mean square of $(\beta/2) V - \nu$",
    )  # fmt: skip
    ax.set_ylim(measured.min() / 6, None)
    ax.legend(fontsize=8, loc="lower left")
    return fig


def waic_picture(
    clouds: Mapping[str, tuple[np.ndarray, np.ndarray, float]],
    bias: Mapping[str, tuple[np.ndarray, np.ndarray]],
    guide: tuple[str, float],
) -> Figure:
    """WAIC against the generalization loss, data set by data set, and the error of its mean.

    Args:
        clouds: model -> (n times WAIC, n times generalization loss, both less those of the truth,
            shape (D,); the sum that theory gives, drawn as a line); a panel a model.
        bias: model -> (n, difference of the means, nats).
        guide: label and exponent of a line through the first point of the first model.
    """
    fig, axes = figure(1, len(clouds) + 1, size=(3 * (len(clouds) + 1), 3.3))
    colors = dict(zip(bias, (BLUE, VERMILION, GREEN), strict=False))
    for ax, (model, (waic, generalization, total)) in zip(axes[0], clouds.items(), strict=False):
        low, high = min(waic.min(), 0), max(generalization.max(), total)
        ax.plot(
            [low, total - low], [total - low, low], color="black", ls="--", lw=1.1,
            label=r"sum $2\lambda$",
        )  # fmt: skip
        ax.scatter(
            waic, generalization, s=6, lw=0, alpha=0.35, color=colors[model], rasterized=True
        )
        ax.plot(
            waic.mean(), generalization.mean(), "P", ms=9, color="black", mec="white",
            label="mean", zorder=4,
        )  # fmt: skip
        ax.set(
            xlabel=r"$n\,$(WAIC $-\,S_n$)", ylabel=r"$n\,$(generalization loss $-\,S$)",
            title=model, ylim=(-0.08 * high, 1.05 * high), xlim=(low - 0.05, total + 0.15),
        )  # fmt: skip
        ax.legend(fontsize=8, loc="upper right")
    ax = axes[0, -1]
    for (model, (n, difference)), marker in zip(bias.items(), "oDs", strict=False):
        ax.plot(n, np.abs(difference), marker + "-", ms=5, lw=1, color=colors[model], label=model)
    n, difference = next(iter(bias.values()))
    ax.plot(
        n, np.abs(difference[0]) * (n / n[0]) ** guide[1], color="0.5", ls="--", lw=1.2,
        label=guide[0],
    )  # fmt: skip
    ax.set(
        xscale="log", yscale="log", xlabel="samples $n$", title="error of the mean",
        ylabel="E[WAIC] − E[generalization loss] (nats)",
    )  # fmt: skip
    ax.legend(fontsize=8, loc="lower left")
    return fig


def expansion_errors(
    n_beta: np.ndarray,
    panels: Mapping[str, Mapping[str, np.ndarray]],
    sampled: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
    powers: Sequence[int] = (1, 2),
) -> Figure:
    """Relative errors of expansions of the kernel against nb, one panel a law.

    Args:
        n_beta: shape (k,).
        panels: title -> name of the expansion -> errors over data sets, shape (m, k); the line is
            their median, the band reaches from the least to the largest.
        sampled: title -> name of the sampler -> (nb, error of a measured kernel).
        powers: slopes of the grey guides.
    """
    fig, axes = figure(1, len(panels), size=(4.6 * len(panels), 3.9), sharey=True)
    looks = tuple(zip((BLUE, VERMILION, GREEN), ("-", "--", "-."), "os^", strict=True))
    for ax, (title, lines) in zip(axes[0], panels.items(), strict=True):
        top = max(float(np.median(e, 0)[0]) for e in lines.values())
        for power in powers:
            ax.plot(n_beta, 2 * top * (n_beta / n_beta[0]) ** -power, color="0.75", lw=1, zorder=0)
            ax.annotate(
                f"slope {power}", (n_beta[2], 2 * top * (n_beta[2] / n_beta[0]) ** -power), (3, 3),
                textcoords="offset points", color="0.4", fontsize=8,
            )  # fmt: skip
        for (name, errors), (color, ls, marker) in zip(lines.items(), looks, strict=False):
            ax.fill_between(n_beta, errors.min(0), errors.max(0), color=color, alpha=0.15, lw=0)
            ax.plot(
                n_beta, np.median(errors, 0), ls=ls, marker=marker, ms=4, color=color, label=name
            )
        for (name, (at, error)), marker in zip(sampled[title].items(), "DX", strict=False):
            ax.plot(at, error, marker, ms=7, color="black", mfc="none", label=name, zorder=4, lw=0)
        ax.set(xscale="log", yscale="log", xlabel=r"$n\beta$", title=title)
        ax.legend(fontsize=8, loc="lower left")
    axes[0, 0].set_ylabel("relative error of $K$")
    return fig


def singular_influence(
    eigenvalues: np.ndarray,
    damping: np.ndarray,
    size: Mapping[str, np.ndarray],
    agreement: Mapping[str, tuple[np.ndarray, np.ndarray]],
    reference: float,
) -> Figure:
    """Spectrum of a singular Hessian, and what damping does to influence and to the kernel.

    Args:
        eigenvalues: of H, shape (d,); exact zeros are drawn as crosses below all others.
        damping: shape (k,).
        size: name -> largest influence at each damping, shape (k,).
        agreement: name -> (damping, rank correlation with the same at ``reference``).
        reference: a damping, drawn dotted.
    """
    fig, axes = figure(1, 3, size=(11, 3.5))
    left, middle, right = axes[0]
    values = eigenvalues[np.argsort(-np.abs(eigenvalues))]
    ranks, sizes = np.arange(1, len(values) + 1), np.abs(values)
    sizes[values == 0] = sizes[values != 0].min() / 100
    for mask, marker, color, name in (
        (values > 0, "o", BLUE, "positive"),
        (values < 0, "v", VERMILION, "negative"),
        (values == 0, "x", "0.4", "zero"),
    ):
        left.plot(ranks[mask], sizes[mask], marker, ms=4, color=color, label=name)
    left.set(yscale="log", xlabel="rank", ylabel="size", title="eigenvalues of $H$")
    left.legend(fontsize=8)
    for (name, values), ls, color in zip(
        size.items(), ("-", "--", ":"), (VERMILION, BLUE, GREEN), strict=False
    ):
        middle.plot(damping, values, ls=ls, lw=1.3, color=color, label=name)
    middle.set(
        xscale="log", yscale="log", xlabel=r"damping $\delta$", ylabel="relative to the reference",
        title="largest influence",
    )  # fmt: skip
    for (name, (at, rho)), ls, marker, color in zip(
        agreement.items(), ("-", "", "-."), (None, "D", "s"), (VERMILION, "black", PURPLE),
        strict=False,
    ):  # fmt: skip
        right.plot(at, rho, ls=ls, marker=marker, ms=6, lw=1.2, color=color, label=name)
    right.set(
        xscale="log", xlabel=r"damping $\delta$ or $\gamma / n\beta$", title="does the order stay?",
        ylabel="Spearman with the reference", ylim=(-0.05, 1.05),
    )  # fmt: skip
    for ax in (middle, right):
        ax.axvline(reference, color="0.5", ls=":", lw=1.2)
        ax.legend(fontsize=8)
    return fig


def retraining_scatter(
    truth: np.ndarray, predictions: Mapping[str, tuple[np.ndarray, str]]
) -> Figure:
    """Loss changes after retraining against what was predicted, one panel a prediction.

    Args:
        truth: shape (k,), nats.
        predictions: name -> (predicted, shape (k,); a note).
    """
    fig, axes = figure(1, len(predictions), size=(2.9 * len(predictions), 3.2), sharey=True)
    colors = (BLUE, GREEN, VERMILION, PURPLE)
    for ax, (name, (found, note)), color in zip(axes[0], predictions.items(), colors, strict=False):
        ax.scatter(found, truth, s=3, lw=0, alpha=0.25, color=color, rasterized=True)
        ax.axhline(0, color="0.6", lw=0.8)
        ax.axvline(0, color="0.6", lw=0.8)
        for axis, values in (("x", found), ("y", truth)):
            linear = float(np.quantile(np.abs(values), 0.5))
            getattr(ax, f"set_{axis}scale")("symlog", linthresh=linear)
            ticks = float(10 ** np.floor(np.log10(np.abs(values).max())))
            getattr(ax, f"set_{axis}ticks")([-ticks, 0, ticks])
            getattr(ax, f"{axis}axis").set_minor_locator(plt.NullLocator())
        ax.set_title(name, fontsize=9)
        ax.set_xlabel("predicted")
        ax.text(0.03, 0.97, note, transform=ax.transAxes, va="top", fontsize=8)
    axes[0, 0].set_ylabel("loss change after retraining (nats)")
    return fig


def kernel_and_gradients(
    cosine: np.ndarray,
    correlation: np.ndarray,
    same: np.ndarray,
    spreads: Mapping[str, np.ndarray],
    purity: Mapping[str, tuple[np.ndarray, np.ndarray]],
    chance: float,
) -> Figure:
    """The correlation kernel beside the cosines of gradients, pair by pair and sample by sample.

    Args:
        cosine, correlation: of pairs, shape (p,).
        same: whether a pair shares its class, shape (p,).
        spreads: name -> a positive size a sample, shape (n,), each drawn over its median.
        purity: name -> (quantile group, share of neighbours of the same class).
        chance: that share without any knowledge.
    """
    fig, axes = figure(1, 3, size=(11, 3.5))
    left, middle, right = axes[0]
    for mask, color, name in ((~same, SKY, "different classes"), (same, VERMILION, "same class")):
        left.scatter(
            cosine[mask], correlation[mask], s=3, lw=0, alpha=0.3, color=color, label=name,
            rasterized=True,
        )  # fmt: skip
    left.set(xlabel="cosine of gradients", ylabel="correlation kernel $R$", title="pairs")
    left.legend(fontsize=8, markerscale=3)
    looks = tuple(zip((BLUE, ORANGE, GREEN), ("-", "--", "-."), "os^", strict=True))
    for (name, values), (color, ls, _) in zip(spreads.items(), looks, strict=False):
        share = np.arange(1, len(values) + 1) / len(values)
        middle.plot(np.sort(values) / np.median(values), share, color=color, ls=ls, label=name)
    middle.set(
        xscale="log", xlabel="size over its median", ylabel="share of samples",
        title="how far samples spread",
    )  # fmt: skip
    middle.legend(fontsize=8)
    for (name, (group, share)), (color, ls, marker) in zip(purity.items(), looks, strict=False):
        right.plot(group, share, color=color, ls=ls, marker=marker, label=name)
    right.axhline(chance, color="0.5", ls=":", lw=1.2)
    right.set(
        ylim=(0, 1.05), xlabel="fifth by length of gradient, shortest first",
        ylabel="neighbours of the same class", title="ten nearest neighbours",
    )  # fmt: skip
    right.legend(fontsize=8)
    return fig


def llc_in_parts(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    groups: Sequence[str],
    parts: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> Figure:
    """Lorenz curves of the loss gain, and what groups of samples hold of the LLC.

    Args:
        curves: name -> (share of the samples, share of the LLC), lowest gain first.
        groups: names of the groups.
        parts: name -> (share of the samples, share of the LLC, its standard error), one a group.
    """
    fig, axes = figure(1, 2, size=(9, 3.9), gridspec_kw={"width_ratios": (1, 1.25)})
    left, right = axes[0]
    left.plot([0, 1], [0, 1], color="0.6", lw=0.9)
    left.axhline(0, color="0.6", lw=0.9)
    styles = list(zip((BLUE, VERMILION, GREEN), ("-", "--", "-."), "osD", strict=True))
    for (name, (samples, part)), (color, ls, _) in zip(curves.items(), styles, strict=False):
        left.plot(samples, part, color=color, ls=ls, lw=1.6, label=name)
    left.set(
        xlabel="share of the samples, lowest gain first", ylabel="share of the LLC", xlim=(0, 1),
        title="Lorenz curve",
    )  # fmt: skip
    left.legend(fontsize=8, loc="upper left")
    at = np.arange(len(groups))
    right.axhline(1, color="0.5", ls=":", lw=1.2)
    for k, ((name, (samples, part, error)), (color, _, marker)) in enumerate(
        zip(parts.items(), styles, strict=False)
    ):
        right.errorbar(
            at + 0.16 * (k - (len(parts) - 1) / 2), part / samples, 2 * error / samples,
            fmt=marker, ms=5, capsize=2, lw=1, color=color, label=name,
        )  # fmt: skip
    right.set_xticks(at, groups)
    right.set(
        xlabel="class (as labeled)", ylabel="share of the LLC / share of the samples",
        title="LLC by class", ylim=(0, None),
    )  # fmt: skip
    right.legend(fontsize=8)
    return fig


def known_answers(
    names: Sequence[str],
    measured: np.ndarray,
    error: np.ndarray,
    posterior: np.ndarray,
    limit: np.ndarray,
) -> Figure:
    """Measured LLCs over the exact ones, one row a model.

    Args:
        names: of the models.
        measured: measured over exact, shape (k,).
        error: its standard error.
        posterior: Eq. 1's value over that of the chain.
        limit: the learning coefficient over the chain's value.
    """
    fig, axes = figure(1, 2, size=(9, 0.34 * len(names) + 1.5), sharey=True)
    near, far = axes[0]
    rows = np.arange(len(names))[::-1]
    for ax in (near, far):
        ax.axvline(1, color="black", lw=1.1)
        ax.plot(posterior, rows, "D", ms=5, color=ORANGE, mfc="none", label="Eq. 1, exact")
        ax.errorbar(
            measured, rows, xerr=2 * error, fmt="o", ms=4.5, capsize=2, lw=1, color=BLUE,
            label="measured",
        )  # fmt: skip
    far.plot(limit, rows, "x", ms=7, mew=1.6, color=VERMILION, label=r"limit $\lambda$")
    reach = 1.25 * max(np.abs(measured - 1).max() + 2 * error.max(), np.abs(posterior - 1).max())
    near.set(xlim=(1 - reach, 1 + reach), title="near")
    far.set(xscale="log", title="and with the limit")
    low, high = min(posterior.min(), limit.min(), 0.9), max(limit.max(), 1.1)
    ticks = [t for t in (0.5, 0.7, 1, 1.5, 2, 3, 4) if low / 1.2 < t < high * 1.2]
    far.set_xticks(ticks, [f"{t:g}" for t in ticks])
    far.minorticks_off()
    near.set_yticks(rows, names, fontsize=9)
    for ax in (near, far):
        ax.set_xlabel("LLC / exact value of the chain")
    fig.legend(*far.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return fig


def approach(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    points: Mapping[str, tuple[float, float, float]],
    xlabel: str,
) -> Figure:
    """How the exact LLC of Eq. 1 comes to its limit, as a share of it.

    Args:
        curves: name -> (x, share of the limit, the same to leading order: dotted, NaN for none).
        points: name -> (x, measured share, its standard error), for some of the names.
        xlabel: what x is.
    """
    fig, axes = figure(size=(7.2, 4.2))
    ax = axes[0, 0]
    ax.axhline(1, color="0.4", lw=1)
    colors = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
    styles = ("-", "--", "-.", (0, (8, 2)), (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)))
    for (name, (x, exact, leading)), color, ls, marker in zip(
        curves.items(), colors, styles, "osD^vP", strict=False
    ):
        ax.plot(x, exact, color=color, ls=ls, lw=1.7, label=name)
        ax.plot(x, leading, color=color, ls=":", lw=1.0)
        if name in points:
            at, value, error = points[name]
            ax.errorbar(at, value, 2 * error, fmt=marker, ms=6, capsize=2, color=color, mec="black")
    ax.set(xscale="log", xlabel=xlabel, ylabel=r"LLC / limit $\lambda$", ylim=(0, 1.12))
    ax.legend(fontsize=8, loc="lower right")
    return fig


def when_to_believe(
    panels: Mapping[
        str,
        tuple[
            Mapping[str, tuple[np.ndarray, np.ndarray]],
            tuple[np.ndarray, np.ndarray, np.ndarray],
            Mapping[str, tuple[float, float]],
        ],
    ],
    limit: float,
) -> Figure:
    """The LLC against each setting, exact and measured, with the regions of bias shaded.

    Args:
        panels: label of the x axis -> (name -> exact curve (x, LLC); measured (x, LLC, standard
            error); reason -> (from, to), the region in which not to believe the estimate).
        limit: the learning coefficient.
    """
    cols = 2
    fig, axes = figure(-(-len(panels) // cols), cols, size=(9, 6.6), sharey=True)
    shades = {}
    hatches = ("//", "\\\\", "..")
    for ax, (label, (curves, points, regions)) in zip(axes.ravel(), panels.items(), strict=False):
        x = np.concatenate([np.ravel(points[0]), *[np.ravel(c[0]) for c in curves.values()]])
        ends = x.min() / 1.15, x.max() * 1.15
        for reason, (low, high) in regions.items():
            k = shades.setdefault(reason, len(shades))
            low, high = max(low, ends[0]), min(high, ends[1])
            if low < high:
                ax.axvspan(
                    low, high, fc=(SKY, ORANGE, PURPLE)[k % 3], alpha=0.25, lw=0,
                    hatch=hatches[k % 3], ec="white",
                )  # fmt: skip
                ax.text(
                    np.sqrt(low * high), 0.97, reason, transform=ax.get_xaxis_transform(),
                    ha="center", va="top", fontsize=8,
                    bbox={"fc": "white", "ec": "none", "alpha": 0.8, "pad": 1},
                )  # fmt: skip
        ax.axhline(limit, color="0.4", lw=1, ls="--")
        for (name, curve), ls, color in zip(
            curves.items(), ("-", ":"), ("black", "0.45"), strict=False
        ):
            ax.plot(*curve, ls=ls, color=color, lw=1.5, label=name)
        at, value, error = points
        ax.errorbar(at, value, 2 * error, fmt="o", ms=5, capsize=2, color=BLUE, label="measured")
        ax.set(xscale="log", xlabel=label, xlim=ends)
    for ax in axes[:, 0]:
        ax.set(ylabel="LLC", ylim=(0, None))
    axes[0, 0].legend(fontsize=8, loc="lower right")
    return fig


def neighbour_grid(
    images: np.ndarray,
    references: np.ndarray,
    neighbours: np.ndarray,
    *,
    names: Sequence[str],
    same: np.ndarray,
    correlation: np.ndarray,
    blocks: int = 1,
    row_titles: Sequence[str] | None = None,
) -> Figure:
    """Reference images, each followed by its most correlated neighbours (Figure 2 of the paper).

    A solid frame with "=" marks a neighbour with the label of its reference, a dashed one with
    "≠" any other.

    Args:
        images: uint8, shape (n, 3, s, s), RGB.
        references: positions of the reference images, shape (r,).
        neighbours: positions of their neighbours, best first, shape (r, k).
        names: class name of each of the n images.
        same: whether a neighbour has the label of its reference, bool, shape (r, k).
        correlation: R of each neighbour with its reference, shape (r, k).
        blocks: the references stand in so many blocks, side by side, filled from the left.
        row_titles: what stands under each reference; default: its class name.

    Raises:
        ValueError: if ``neighbours``, ``same`` and ``correlation`` are not of one shape (r, k).
    """
    rows = len(references)
    for name, values in (("neighbours", neighbours), ("same", same), ("correlation", correlation)):
        if np.ndim(values) != 2 or np.shape(values) != (rows, np.shape(neighbours)[-1]):
            raise ValueError(
                f"{name} has shape {np.shape(values)}: give one row for each of the {rows} "
                "references and one column for each neighbour."
            )
    k = neighbours.shape[1]
    deep = -(-rows // blocks)
    # Everything in inches, in one axes: hundreds of axes take minutes to lay out.
    apart, between, edge = 0.13, 0.22, 0.04
    cell = min(0.8, (9 - 2 * edge - blocks * apart - (blocks - 1) * between) / (blocks * (k + 1)))
    side = cell - 0.1
    size = 6 if cell > 0.6 else 5.2
    line = 1.22 * size / 72
    height = cell + 3 * line + 0.08
    foot = 0.3
    block_width = (k + 1) * cell + apart
    width = blocks * block_width + (blocks - 1) * between + 2 * edge
    total = deep * height + foot + edge
    with plt.rc_context(STYLE | {"figure.constrained_layout.use": False}):
        fig = plt.figure(figsize=(width, total))
        plt.close(fig)
        ax = fig.add_axes((0, 0, 1, 1))
    ax.axis("off")
    ax.set(xlim=(0, width), ylim=(total, 0))

    def tile(i: int, x: float, y: float, color: str, ls: object, lw: float) -> None:
        ax.imshow(
            images[i].transpose(1, 2, 0), extent=(x, x + side, y + side, y), aspect="auto",
            interpolation="antialiased",
        )  # fmt: skip
        out = 0.018  # the frame stands on white, so that its dashes show on any photograph
        frame = (x - out, y - out), side + 2 * out, side + 2 * out
        ax.add_patch(plt.Rectangle(*frame, fill=False, ec=color, ls=ls, lw=lw, zorder=3))

    def words(text: str, x: float, y: float, lines: int, weight: str, color: str) -> None:
        wrapped = _wrapped(text, cell - 0.05, size, weight, lines)
        ax.text(
            x + side / 2, y, wrapped, fontsize=size, weight=weight, color=color, ha="center",
            va="top", linespacing=1.1, parse_math=False,
        )  # fmt: skip

    looks = {True: (BLUE, "-", "="), False: (VERMILION, (0, (2.2, 1.3)), "≠")}
    titles = [names[i] for i in references] if row_titles is None else row_titles
    for row in range(rows):
        block, deep_in = divmod(row, deep)
        left = edge + block * (block_width + between) + 0.05
        top = edge + deep_in * height + 0.05
        below = top + side + 0.045
        tile(references[row], left, top, "black", "-", 2.2)
        words(titles[row], left, below, 3, "bold", "black")
        for j in range(k):
            x = left + (j + 1) * cell + apart
            color, ls, sign = looks[bool(same[row, j])]
            tile(neighbours[row, j], x, top, color, ls, 1.3)
            r = f"{round(float(correlation[row, j]), 2) + 0:.2f}".replace("-", "−")  # no −0.00
            words(f"{sign} {r}", x, below, 1, "bold", color)
            words(names[neighbours[row, j]], x, below + line, 2, "normal", "black")
    y, x = total - foot / 2, edge + 0.1
    keys = (
        ("black", "-", 2.2, "reference"),
        (*looks[True][:2], 1.3, "=  same label"),
        (*looks[False][:2], 1.3, "≠  another label"),
    )
    for color, ls, lw, text in keys:
        ax.add_patch(plt.Rectangle((x, y - 0.06), 0.2, 0.12, fill=False, ec=color, ls=ls, lw=lw))
        ax.text(x + 0.27, y, text, fontsize=7, va="center", color=color)
        x += 0.27 + _text_width(text, 7) + 0.25
    ax.text(x, y, "numbers: correlation R", fontsize=7, va="center")
    return fig


def _text_width(text: str, size: float, weight: str = "normal") -> float:
    """Width of a line in inches."""
    font = FontProperties(size=size, weight=weight)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72


def _wrapped(text: str, width: float, size: float, weight: str, lines: int) -> str:
    """``text`` in at most ``lines`` lines of ``width`` inches, with an ellipsis if cut."""

    def fits(part: str) -> bool:
        return _text_width(part, size, weight) <= width

    done, words = [], text.split()
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


def agreement_bars(
    values: Mapping[str, Mapping[str, float]],
    errors: Mapping[str, Mapping[str, float]] | None = None,
    xlabel: str = "agreement",
) -> Figure:
    """Horizontal bars in groups, one group a measure, one bar a setting, read from the top.

    Args:
        values: measure -> setting -> value; a setting may be missing from a measure.
        errors: the same of standard errors, for some of the bars; drawn twice as long.
        xlabel: quantity and unit.
    """
    settings = list(dict.fromkeys(name for group in values.values() for name in group))
    thick = 0.8 / len(settings)
    fig, axes = figure(size=(7, 0.24 * len(settings) * len(values) + 0.3 * len(values) + 1.1))
    ax = axes[0, 0]
    looks = zip((BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION), ("", "///", "..", "xx", "--", "++"),
                strict=True)  # fmt: skip
    for k, (setting, (color, hatch)) in enumerate(zip(settings, looks, strict=False)):
        rows = [i for i, group in enumerate(values.values()) if setting in group]
        at = np.array(rows) - 0.4 + thick * (k + 0.5)
        shown = np.array([group[setting] for group in values.values() if setting in group])
        measures = [list(values)[i] for i in rows]
        error = np.array([2 * (errors or {}).get(m, {}).get(setting, 0.0) for m in measures])
        ax.barh(
            at, shown, 0.88 * thick, color=color, hatch=hatch, ec="white", lw=0, label=setting,
            zorder=2,
        )  # fmt: skip
        bars = error > 0
        ax.errorbar(
            shown[bars], at[bars], xerr=error[bars], fmt="none", ecolor="black", lw=1, capsize=2,
            zorder=3,
        )  # fmt: skip
        for x, y, e in zip(shown, at, error, strict=True):
            ax.annotate(
                f"{x:.2f}".replace("-", "−"), (x + e if x >= 0 else x - e, y),
                (4 if x >= 0 else -4, 0), textcoords="offset points", va="center",
                ha="left" if x >= 0 else "right", fontsize=8,
            )  # fmt: skip
    ax.axvline(0, color="black", lw=0.9, zorder=3)
    ax.set_yticks(range(len(values)), list(values))
    ax.set_ylim(len(values) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    ax.margins(x=0.12)
    ax.set_xlabel(xlabel)
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(
        handles, labels, fontsize=8, loc="outside upper center", ncols=min(len(labels), 4),
        frameon=False,
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


def _plain(value: float, _: object = None) -> str:
    """A tick of a log axis as a plain number."""
    return f"{value:g}"


def _plain_minor(value: float, _: object = None) -> str:
    """The same for minor ticks: 2, 3 and 5 only, which stay apart."""
    return f"{value:g}" if f"{value:.4e}"[:6] in ("2.0000", "3.0000", "5.0000") else ""


__all__ = [
    "STYLE",
    "agreement_bars",
    "approach",
    "chain_gallery",
    "chain_losses",
    "chain_traces",
    "closed_forms",
    "data_maps",
    "detection_curves",
    "digit_grid",
    "embedding",
    "expansion_errors",
    "figure",
    "gibbs_levels",
    "group_shares",
    "kernel_and_gradients",
    "kernel_picture",
    "known_answers",
    "llc_in_parts",
    "localization_sweep",
    "loss_against_gain",
    "neighbour_grid",
    "one_data_set",
    "permutation_picture",
    "populations",
    "probe_picture",
    "reliability_curves",
    "retraining_scatter",
    "singular_influence",
    "stationary_variance",
    "sweeps",
    "three_errata",
    "waic_picture",
    "when_to_believe",
]
