"""Figures of the singular fluctuation: shares of it, the Gibbs training error, WAIC."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from probelib.plotting import BLUE, GREEN, PURPLE, VERMILION, figure


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


__all__ = ["gibbs_levels", "group_shares", "one_data_set", "waic_picture"]
