"""How well a score, or an embedding, tells memorized samples from the others."""

import math
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)
from sklearn.neighbors import NearestNeighbors

from probelib import Kernel


@dataclass(frozen=True, eq=False)
class Detection:
    """A score as a detector of flagged samples (scikit-learn).

    Attributes:
        auroc: area under the ROC curve; the chance that a flagged sample scores above another.
        average_precision: mean precision over the recall.
        roc: (false positive rate, true positive rate).
        precision_recall: (recall, precision).
    """

    auroc: float
    average_precision: float
    roc: tuple[np.ndarray, np.ndarray]
    precision_recall: tuple[np.ndarray, np.ndarray]


def detection(score: np.ndarray, flagged: np.ndarray) -> Detection:
    """How well a high score marks the flagged samples.

    Args:
        score: shape (n,), any unit.
        flagged: boolean, shape (n,), with both values in it.

    Raises:
        ValueError: all samples are flagged, or none.
    """
    if flagged.all() or not flagged.any():
        raise ValueError(
            f"flagged marks {int(flagged.sum())} of {len(flagged)} samples; "
            "a detector needs both kinds"
        )
    false_positive, true_positive, _ = roc_curve(flagged, score)
    precision, recall, _ = precision_recall_curve(flagged, score)
    return Detection(
        float(roc_auc_score(flagged, score)),
        float(average_precision_score(flagged, score)),
        (false_positive, true_positive),
        (recall, precision),
    )


def neighbour_auroc(features: np.ndarray, flagged: np.ndarray, k: int = 15) -> float:
    """Whether flagged samples lie among their own kind: 0.5 is mixed, 1 is apart.

    Each sample is scored by the share of flagged ones among its k nearest neighbours, itself left
    out; the result is the AUROC of that score.

    Args:
        features: coordinates, shape (n, dimensions); distances are Euclidean.
        flagged: boolean, shape (n,).
        k: neighbours looked at.
    """
    search = NearestNeighbors(n_neighbors=k).fit(features)
    near = search.kneighbors(return_distance=False)  # without a query, a point is not its own
    return detection(flagged[near].mean(1), flagged).auroc


def unit_traces(kernel: Kernel, rows: np.ndarray) -> np.ndarray:
    """Centred loss traces at length one: their inner products are the correlation kernel R.

    Args:
        kernel: of n samples; a loss kernel of S draws gives S coordinates, a matrix one a row.
        rows: positions of the samples wanted.

    Returns:
        Shape (rows, coordinates), without unit; a trace that never moves stays 0.
    """
    traces = kernel.features(rows=rows)
    length = np.linalg.norm(traces, axis=1, keepdims=True)
    return traces / np.where(length > 0, length, 1)


def principal(vectors: np.ndarray, n_components: int) -> np.ndarray:
    """The vectors on their principal axes about the origin: inner products nearest theirs.

    Args:
        vectors: shape (n, coordinates).
        n_components: axes, the longest first; at most as many as there are.

    Returns:
        Shape (n, n_components).
    """
    square = vectors.T.astype(np.float64) @ vectors
    axes = np.linalg.eigh(square)[1][:, ::-1][:, :n_components]
    return vectors @ axes


@dataclass(frozen=True)
class Unfitted:
    """Samples whose label the network does not give more than half of its probability.

    Attributes:
        share: of all samples.
        gain, gain_fitted: mean loss gain of them and of the others, nats; NaN where there is none.
    """

    share: float
    gain: float
    gain_fitted: float

    @property
    def reversed(self) -> bool:
        """Whether a high gain no longer marks what is hard: the unfitted have the lower gains."""
        return self.share > 0 and not self.gain > self.gain_fitted

    def __str__(self) -> str:
        if self.share == 0:
            return "All labels are fitted, so the gain can be read as a score of memorization."
        found = f"{self.share:.1%} of the labels are not fitted; their mean gain is {self.gain:.2g}"
        if not self.reversed:
            return f"{found} nats, above the {self.gain_fitted:.2g} of the others, as it should be."
        return (
            f"Warning: {found} nats, below the {self.gain_fitted:.2g} of the others. The gain is "
            "reversed: moving the weights lowers a high loss as often as it raises it. Rank by the "
            "loss along the chains, or train until the labels are fitted."
        )


def unfitted(loss: np.ndarray, gain: np.ndarray) -> Unfitted:
    """Whether the gain can be read as a score of memorization: only of labels that are fitted.

    It needs no true label. A wrong label that is not fitted yet has a high loss, which falls as
    often as it rises when the weights move: its gain is low, and ranks it among the easiest.

    Args:
        loss: at w*, shape (n,), nats; log 2 is where the label has half of the probability.
        gain: mu, shape (n,), nats.
    """
    off = loss > math.log(2)
    mean_of = [float(gain[part].mean()) if part.any() else math.nan for part in (off, ~off)]
    return Unfitted(float(off.mean()), *mean_of)


__all__ = [
    "Detection",
    "Unfitted",
    "detection",
    "neighbour_auroc",
    "principal",
    "unfitted",
    "unit_traces",
]
