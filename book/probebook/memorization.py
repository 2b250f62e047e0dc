"""How well a score, or an embedding, tells memorized samples from the others."""

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


__all__ = ["Detection", "detection", "neighbour_auroc", "unit_traces"]
