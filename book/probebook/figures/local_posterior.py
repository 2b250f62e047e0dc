"""Figures of the local posterior: the sampler against closed forms, and its settings."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from probelib.plotting import BLUE, GREEN, ORANGE, PURPLE, SKY, STYLE, VERMILION, figure


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
        thin: steps per draw.
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


__all__ = ["chain_gallery", "closed_forms", "stationary_variance", "sweeps", "three_errata"]
