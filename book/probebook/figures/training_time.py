"""Figures of chapter 11: what a probe says checkpoint by checkpoint."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probelib.plotting import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, figure

_COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
_MARKERS = "osD^vP"
_STYLES = ("-", "--", "-.", ":")

Curve = tuple[np.ndarray, np.ndarray]


def memorization_curves(
    accuracy: Mapping[str, Curve],
    auroc: Mapping[str, Curve],
    seen: Mapping[str, Curve],
    marks: Mapping[str, float],
) -> Figure:
    """When wrong labels are fitted, and when a score tells them apart.

    Args:
        accuracy: part of the samples -> epochs (k,), and accuracy in each network, (networks, k).
        auroc: score -> epochs (c,) and its AUROC in each network, (networks, c).
        seen: score -> the same of its AUROC for having been in the training set, over wrong labels.
        marks: words -> an epoch, as a vertical line in all panels; left out where it is infinite.
    """
    fig, axes = figure(1, 3, size=(10.5, 3.7), sharex=True)
    for ax, curves, level, title in (
        (axes[0, 0], accuracy, 0.5, "accuracy on the given labels"),
        (axes[0, 1], auroc, 0.9, "AUROC for wrong labels"),
        (axes[0, 2], seen, 0.9, "AUROC for trained-on wrong labels"),
    ):
        for number, (name, (x, rows)) in enumerate(curves.items()):
            looks = {"color": _COLORS[number], "ls": _STYLES[number]}
            ax.plot(x, np.transpose(rows), lw=0.7, alpha=0.5, **looks)
            marker = _MARKERS[number] if len(x) < 30 else ""
            ax.plot(x, np.mean(rows, 0), lw=1.8, marker=marker, ms=5, label=name, **looks)
        ax.axhline(level, color="0.5", lw=1, ls=":")
        ax.set(xscale="log", xlabel="epoch", ylabel=title, ylim=(None, 1.03))
        ax.legend(fontsize=9, loc="lower right")
    for number, (words, epoch) in enumerate(marks.items()):
        for ax in axes[0]:
            if np.isfinite(epoch):
                ax.axvline(epoch, color="0.35", lw=1, ls=_STYLES[number])
        if np.isfinite(epoch):
            axes[0, 0].text(
                epoch, 0.9 - 0.32 * number, f" {words}", fontsize=9, va="top", rotation=90,
                ha="right",
                transform=axes[0, 0].get_xaxis_transform(),
            )  # fmt: skip
    return fig


def gains_in_training(
    tables: Mapping[str, pd.DataFrame], gains: Mapping[str, tuple[np.ndarray, ...]]
) -> Figure:
    """LLC of several networks, and the gains of parts of the samples, by epoch.

    Args:
        tables: network -> :func:`probelib.checkpoint_table`. Bars are 95 % intervals of chance;
            what the verdict calls wrong has an open marker.
        gains: part of the samples -> epochs, mean gains, their standard errors of chance, and the
            10 and 90 % quantiles over samples, shape (checkpoints,) each, nats.
    """
    fig, axes = figure(1, 2, size=(9, 3.5))
    for number, (name, table) in enumerate(tables.items()):
        x, llc = table.index.to_numpy(float), table["llc"].to_numpy()
        error = np.nan_to_num(1.96 * table["llc_mcse"].to_numpy(), posinf=0.0)
        wrong = (table["verdict"] == "wrong").to_numpy()
        color, marker = _COLORS[number], _MARKERS[number]
        axes[0, 0].plot(x, llc, color=color, ls=_STYLES[number], lw=1.3)
        for which, face in ((~wrong, color), (wrong, "white")):
            if which.any():
                axes[0, 0].errorbar(
                    x[which], llc[which], error[which], fmt=marker, ms=5, color=color, mfc=face,
                    capsize=2, label=name + (", do not trust" if face == "white" else ""),
                )  # fmt: skip
    for number, (name, (x, mean, error, low, high)) in enumerate(gains.items()):
        looks = {"color": _COLORS[number], "label": name}
        axes[0, 1].fill_between(x, low, high, color=_COLORS[number], alpha=0.15, lw=0)
        axes[0, 1].errorbar(
            x, mean, 1.96 * error, fmt=_MARKERS[number] + _STYLES[number], ms=5, capsize=2, lw=1.3,
            **looks,
        )  # fmt: skip
    axes[0, 0].set_ylabel("local learning coefficient")
    axes[0, 1].set_ylabel("loss gain (nats)")
    for ax in axes[0]:
        ax.set(xscale="log", xlabel="epoch")
        ax.legend(fontsize=9)
    return fig


def stage_picture(
    modes: tuple[np.ndarray, np.ndarray, np.ndarray],
    llc: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    levels: Sequence[float],
    marks: Sequence[float],
    training: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> Figure:
    """Singular values and LLCs of a network that learns in stages.

    Args:
        modes: times (c,), measured singular values (c, k), and those of the closed form (c, k).
        llc: words -> times, LLC and standard error, of the checkpoints' own maps.
        levels: known coefficient of each rank.
        marks: known time of each stage.
        training: times, LLC of the training loss, and whether the verdict calls it wrong.
    """
    fig, axes = figure(1, 3, size=(10.5, 3.6), sharex=True)
    own, of_map, of_loss = axes[0]
    times, measured, closed = modes
    for number in range(measured.shape[1]):
        color = _COLORS[number]
        own.plot(times, closed[:, number], color=color, lw=1.3)
        own.plot(times[::2], measured[::2, number], _MARKERS[number], color=color, ms=4,
                 label=f"number {number + 1}")  # fmt: skip
    for level in levels:
        of_map.axhline(level, color="0.6", lw=0.9, ls=":")
    for number, (words, (x, value, error)) in enumerate(llc.items()):
        looks = {"color": _COLORS[number + 2], "label": words}
        if len(x) > 8:
            of_map.fill_between(x, value - 1.96 * error, value + 1.96 * error, alpha=0.3, lw=0,
                                color=looks["color"])  # fmt: skip
            of_map.plot(x, value, lw=1.3, ls=_STYLES[number], **looks)
        else:
            of_map.errorbar(x, value, 1.96 * error, fmt="X", ms=6, capsize=2, **looks)
    _training_loss(of_loss, *training)
    for ax in axes[0]:
        for mark in marks:
            ax.axvline(mark, color="0.35", lw=0.9, ls="--")
        ax.set_xlabel("time")
    own.set_ylabel("singular value of the map")
    of_map.set_ylabel("LLC of the checkpoint's own map")
    own.legend(fontsize=9)
    of_map.legend(fontsize=9)
    return fig


def _training_loss(ax: Axes, x: np.ndarray, llc: np.ndarray, wrong: np.ndarray) -> None:
    """The LLC of the loss that is trained, on an axis that shows thousands below 0."""
    ax.plot(x, llc, color=VERMILION, lw=1.2)
    for which, face, words in ((~wrong, VERMILION, "approved"), (wrong, "white", "do not trust")):
        if which.any():
            ax.plot(x[which], llc[which], "s", ms=5, color=VERMILION, mfc=face, label=words)
    ax.set_yscale("symlog", linthresh=100)
    ax.set_ylabel("LLC of the training loss")
    ax.legend(fontsize=9, loc="lower right")


def phase_picture(
    names: Sequence[int],
    corrected: np.ndarray,
    skewness: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> Figure:
    """How alike kernels of checkpoints are, and the skewness of the loss along the draws.

    Args:
        names: of the checkpoints.
        corrected: correlation of R between them, freed of noise, shape (c, c).
        skewness: network -> epochs, skewness and standard error, shape (c,) each.
    """
    fig, axes = figure(1, 2, size=(9.6, 4.3), width_ratios=(1.15, 1))
    heat, right = axes[0]
    heat.imshow(corrected, cmap="viridis", vmin=0, vmax=1)
    for (row, col), value in np.ndenumerate(corrected):
        if np.isfinite(value):
            heat.text(col, row, f"{value:.2f}".removeprefix("0"), ha="center", va="center",
                      fontsize=8.5, color="white" if value < 0.6 else "black")  # fmt: skip
    heat.set_xticks(range(len(names)), names)
    heat.set_yticks(range(len(names)), names)
    heat.set(xlabel="epoch", ylabel="epoch")
    heat.grid(visible=False)
    for number, (name, (x, value, error)) in enumerate(skewness.items()):
        right.errorbar(
            x, value, 1.96 * error, fmt=_MARKERS[number] + _STYLES[number], ms=5, capsize=2, lw=1.2,
            color=_COLORS[number], label=name,
        )  # fmt: skip
    right.axhline(0, color="0.5", lw=1, ls=":")
    right.set(xscale="log", xlabel="epoch", ylabel="skewness of the mean loss along the draws")
    right.legend(fontsize=9)
    return fig


__all__ = ["gains_in_training", "memorization_curves", "phase_picture", "stage_picture"]
