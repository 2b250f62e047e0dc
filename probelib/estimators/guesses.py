"""What guessing each label costs, from what a trace knows: its labels and its guessing loss."""

from __future__ import annotations

import numpy as np


def guess_costs(labels: np.ndarray | None, guess: float, n: int | None = None) -> np.ndarray:
    """The loss of each sample for somebody who has not seen its input, nats.

    Args:
        labels: shape (n,), where known.
        guess: the mean of what is wanted, the trace's ``guessing_loss``.
        n: samples; default: as many as labels.

    Returns:
        -log of the label's frequency, where these make ``guess`` their mean to a tenth (a cross
        entropy, of these labels and not of others); else ``guess`` for all. Shape (n,).
    """
    if labels is None:
        return np.full(n or 0, guess)
    _, place, count = np.unique(labels, return_inverse=True, return_counts=True)
    cost = -np.log(count / len(labels))
    entropy = float(count @ cost / len(labels))
    is_cross_entropy = abs(guess - entropy) <= 0.1 * entropy
    return cost[place] if is_cross_entropy else np.full(len(labels), guess)


__all__ = ["guess_costs"]
