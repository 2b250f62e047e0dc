"""Figures of the LLC as a sum: its parts, its known values, and when to believe it."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from probelib.plotting import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, figure


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
        known = np.where(np.isfinite(error), 2 * error / samples, np.nan)  # else no bar
        right.errorbar(
            at + 0.16 * (k - (len(parts) - 1) / 2), part / samples, known,
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


__all__ = ["approach", "known_answers", "llc_in_parts", "when_to_believe"]
