"""Figures of the loss gain: what n beta and gamma change of it."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from probelib.plotting import BLUE, GREEN, VERMILION, figure


def by_settings(
    n_betas: np.ndarray,
    gains: Mapping[str, tuple[np.ndarray, np.ndarray]],
    llcs: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> Figure:
    """Mean gain and LLC against n beta, a line for each localization.

    Args:
        n_betas: shape (k,).
        gains: localization -> mean gain and its standard error, shape (k,) each, nats; NaN where
            the draws cannot tell.
        llcs: the same of the LLC.
    """
    fig, axes = figure(1, 2, size=(7.4, 3.4))
    looks = list(zip((BLUE, VERMILION, GREEN), "oDs", strict=True))
    for ax, series, quantity in zip(
        axes[0], (gains, llcs), ("mean loss gain (nats)", "LLC"), strict=True
    ):
        for (name, (value, error)), (color, marker) in zip(series.items(), looks, strict=False):
            ax.errorbar(
                n_betas, value, 2 * error, fmt=f"{marker}-", ms=4.5, capsize=2, lw=1, color=color,
                label=name,
            )  # fmt: skip
        ax.set(xscale="log", yscale="log", xlabel=r"inverse temperature $n\beta$", ylabel=quantity)
    axes[0, 0].legend(fontsize=8)
    return fig


__all__ = ["by_settings"]
