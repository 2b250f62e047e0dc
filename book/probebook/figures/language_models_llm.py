"""Figures of chapter 08's real language model."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from probelib.plotting import BLUE, VERMILION, figure

_LOOKS = {"pattern": (BLUE, "-", "o"), "control": (VERMILION, "--", "s")}


def kept_by_localization(table: pd.DataFrame, keep: float, chosen: float) -> Figure:
    """The share of what was learned that draws keep, at each gamma, and what the rule chose.

    Args:
        table: of ``probebook.localization_rule.Choice``.
        keep: the share that the rule asks for.
        chosen: the gamma that it chose.
    """
    fig, axes = figure(size=(6.4, 3.4))
    ax = axes[0, 0]
    error = 1.96 * table.kept_error
    ax.errorbar(table.gamma, table.kept, error, color=BLUE, marker="o", ms=5, lw=1.4, capsize=3)
    ax.axhline(keep, color="0.35", ls=":", lw=1.4)
    ax.annotate(
        f"the rule: {keep:g}", (table.gamma.iloc[0], keep), (0, 4), textcoords="offset points",
        fontsize=9, color="0.35",
    )  # fmt: skip
    at = table[table.gamma == chosen]
    ax.plot(at.gamma, at.kept, "o", ms=12, mfc="none", mec=VERMILION, mew=1.8)
    ax.annotate(
        "chosen", (chosen, float(at.kept.iloc[0])), (10, -14), textcoords="offset points",
        fontsize=9, color=VERMILION,
    )  # fmt: skip
    ax.set(
        xscale="log", xlabel=r"localization $\gamma$",
        ylabel="kept of what was learned\nbeyond token frequencies",
    )  # fmt: skip
    ax.set_xticks(table.gamma, [f"{g:,.0f}" for g in table.gamma])
    ax.minorticks_off()
    ax.margins(x=0.08, y=0.12)
    return fig


def induction_positions(table: pd.DataFrame) -> Figure:
    """Loss at w* and loss gain along a passage: patterns, and their controls.

    Args:
        table: of ``probebook.induction.by_position``.
    """
    fig, axes = figure(2, 1, size=(7, 4.6), sharex=True)
    half = int(table.position.max()) // 2
    for ax, name, label in zip(
        axes[:, 0], ("loss", "gain"), ("loss at $w^*$ (nats)", "loss gain (nats)"), strict=True
    ):
        for kind, rows in table.groupby("kind", sort=False):
            color, ls, marker = _LOOKS[str(kind)]
            ax.plot(
                rows.position, rows[name], color=color, ls=ls, marker=marker, ms=3.5, lw=1.2,
                label=f"{kind}s",
            )  # fmt: skip
        ax.axvline(half + 0.5, color="0.35", ls=":", lw=1.4)
        ax.set_ylabel(label)
    axes[1, 0].axhline(0, color="0.5", lw=0.9)
    axes[1, 0].set_xlabel("position in the passage (the second half begins at the dotted line)")
    axes[0, 0].legend(frameon=False, fontsize=9, loc="lower left")
    fig.align_ylabels(axes[:, 0])
    return fig


def induction_kernels(matrices: Mapping[str, np.ndarray]) -> Figure:
    """The correlation kernels of whole passages beside each other.

    Args:
        matrices: title -> R between all tokens of a passage, (length, length).
    """
    fig, axes = figure(1, len(matrices), size=(4.1 * len(matrices) + 0.6, 4.4), sharey=True)
    image = None
    for ax, (title, r) in zip(axes[0], matrices.items(), strict=True):
        m = len(r)
        image = ax.imshow(
            r, cmap="RdBu_r", vmin=-1, vmax=1, extent=(0.5, m + 0.5, m + 0.5, 0.5),
            interpolation="nearest",
        )  # fmt: skip
        ax.axvline(m / 2 + 0.5, color="black", lw=0.9)
        ax.axhline(m / 2 + 0.5, color="black", lw=0.9)
        ax.set(title=title, xlabel="position")
        ax.grid(False)
    axes[0, 0].set_ylabel("position")
    bar = fig.colorbar(image, ax=axes[0].tolist(), shrink=0.8)
    bar.set_label("R")
    return fig
