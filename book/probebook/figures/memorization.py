"""Figures of the memorization chapter: embeddings beside each other."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from probelib.plotting import SKY, VERMILION, figure


def embeddings(panels: Mapping[str, np.ndarray], noisy: np.ndarray) -> Figure:
    """Two-dimensional embeddings of the same samples, mislabeled ones drawn on top.

    Args:
        panels: title -> coordinates, shape (n, 2).
        noisy: whether a sample is mislabeled, bool, shape (n,).
    """
    fig, axes = figure(1, len(panels), size=(4 * len(panels), 4))
    for ax, (title, xy) in zip(axes[0], panels.items(), strict=True):
        for name, mask, color, marker in (
            ("clean", ~noisy, SKY, "o"),
            ("mislabeled", noisy, VERMILION, "^"),
        ):
            ax.scatter(
                *xy[mask].T, s=5, marker=marker, alpha=0.6, lw=0, color=color, rasterized=True,
                label=f"{name} (n = {int(mask.sum()):,})",
            )  # fmt: skip
        ax.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2", title=title)
        ax.grid(False)
    axes[0, 0].legend(markerscale=3, loc="upper right")
    return fig


__all__ = ["embeddings"]
