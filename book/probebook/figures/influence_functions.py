"""Figures of influence: expansions of the kernel, singular Hessians, retraining."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from probelib.plotting import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, figure


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
    fig, axes = figure(1, 3, size=(9.2, 3.3))
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
    fig, axes = figure(1, 3, size=(9.2, 3.3))
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


__all__ = ["expansion_errors", "kernel_and_gradients", "retraining_scatter", "singular_influence"]
