r"""Scores that say how odd an input is to a network: high is odd.

The inputs have no labels. The probe takes each with the class :math:`\hat y` that the network
predicts at w*, and reads the loss of that class over draws of the local posterior. So the negative
log of the softmax is the loss at w*, and the posterior mean loss is that plus
the loss gain.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import xarray as xr
from scipy.special import log_softmax, logsumexp, softmax
from scipy.stats import entropy
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import roc_curve
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

import probelib
from probelib.arguments import require_whole

__all__ = [
    "PROBE",
    "SCORES",
    "class_losses",
    "energy",
    "ensemble_scores",
    "fpr_at",
    "mahalanobis",
    "nearest_distance",
    "prediction_scores",
    "probe_scores",
    "require_scores",
    "softmax_doubt",
]

SCORES: Mapping[str, str] = {
    "gain": "loss gain",
    "mean_loss": "posterior mean loss",
    "variance": "variance of loss, K_ii",
    "draws_entropy": "entropy, draws",
    "draws_information": "disagreement, draws",
    "softmax": "softmax",
    "energy": "energy",
    "mahalanobis": "Mahalanobis",
    "neighbours": "k-NN, features",
    "pixels": "k-NN, pixels",
    "ensemble_variance": "variance, ensemble",
    "ensemble_entropy": "entropy, ensemble",
}
"""The scores, and their names in tables and figures."""

PROBE = ("gain", "mean_loss", "variance", "draws_entropy", "draws_information")
"""Those that the draws of one local posterior give."""


# -- of one network ------------------------------------------------------------------------------


def softmax_doubt(logits: np.ndarray) -> np.ndarray:
    """Minus the log of the softmax, nats (Hendrycks and Gimpel, ICLR 2017).

    In float64, and a logarithm: probabilities near 1 are all equal in float32.

    Args:
        logits: shape (n, classes).
    """
    return -log_softmax(_logits(logits), axis=-1).max(-1)


def energy(logits: np.ndarray) -> np.ndarray:
    """Minus the log of the sum of exp(logits), at temperature 1 (Liu et al., NeurIPS 2020).

    Args:
        logits: shape (n, classes).
    """
    return -logsumexp(_logits(logits), axis=-1)


def mahalanobis(train: np.ndarray, labels: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Squared Mahalanobis distance to the nearest class mean (Lee et al., NeurIPS 2018).

    All classes share one covariance, that of the training features about their class means, with
    1/n. Where it is singular, as with units that are never active, its pseudo-inverse takes the
    place of its inverse.

    Args:
        train: penultimate features of the training samples, shape (n, d).
        labels: of these, shape (n,).
        features: of the inputs that are scored, shape (m, d).
    """
    train, features = _features(train, features)
    classes, place = np.unique(labels, return_inverse=True)
    if len(place) != len(train):
        raise ValueError(f"labels has {len(place)} entries, and train {len(train)} rows; give both")
    means = np.stack([train[place == at].mean(0) for at in range(len(classes))])
    tied = EmpiricalCovariance(assume_centered=True).fit(train - means[place])
    return np.min([tied.mahalanobis(features - mean) for mean in means], axis=0)


def nearest_distance(
    train: np.ndarray, features: np.ndarray, k: int = 5, *, unit: bool = True
) -> np.ndarray:
    """Distance to the k-th nearest training sample (Sun et al., ICML 2022).

    Their k is 50 of 50,000 training images; 5 of 5,000 is the same share.

    Args:
        train: features of the training samples, shape (n, d).
        features: of the inputs that are scored, shape (m, d).
        k: which neighbour.
        unit: scale all features to length 1 first, as they do; a vector of zeros stays.
    """
    train, features = _features(train, features)
    if require_whole("k", k) > len(train):
        raise ValueError(f"k is {k}, more than the {len(train)} training samples; lower it")
    if unit:
        train, features = (
            rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
            for rows in (train, features)
        )
    search = NearestNeighbors(n_neighbors=k).fit(train)
    return search.kneighbors(features)[0][:, -1]


# -- of several predictions -----------------------------------------------------------------------


def ensemble_scores(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much networks disagree, and how unsure they are together (Lakshminarayanan et al., 2017).

    Args:
        logits: of each network, shape (networks, n, classes).

    Returns:
        The variance of the probabilities over the networks (1/(networks - 1)), summed over the
        classes; and the entropy of the mean prediction, nats: shape (n,) each.
    """
    found = _logits(logits)
    if found.ndim != 3 or len(found) < 2:
        raise ValueError(
            f"logits has shape {found.shape}; give (networks, n, classes) of two networks or more"
        )
    probability = softmax(found, axis=-1)
    return probability.var(0, ddof=1).sum(-1), entropy(probability.mean(0), axis=-1)


def prediction_scores(
    losses: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Entropy of the mean prediction, and what of it is disagreement (Houlsby et al., 2011).

    Args:
        losses: minus the log of each class's probability at each draw, (draws, n, classes).
        weights: of the draws, shape (draws,); default: all alike.

    Returns:
        Entropy of the weighted mean prediction; and this less the weighted mean of the entropies,
        the mutual information of prediction and weights: nats, shape (n,) each.
    """
    share = np.full(len(losses), 1 / len(losses)) if weights is None else weights / weights.sum()
    mean, within = np.zeros(losses.shape[1:]), np.zeros(losses.shape[1])
    for loss, part in zip(losses, share, strict=True):  # one draw at a time: there are many
        probability = np.exp(-loss.astype(np.float64))
        mean += part * probability
        within += part * entropy(probability, axis=-1)
    total = entropy(mean, axis=-1)
    return total, np.maximum(total - within, 0)


def class_losses(output: Tensor, target: Tensor) -> Tensor:
    """The loss that each class would have as the label: an ``observe_loss`` that keeps all of them.

    Args:
        output: logits, shape (n, classes).
        target: not used.

    Returns:
        Minus the log probabilities, nats, shape (n, classes).
    """
    return -torch.log_softmax(output, -1)


def probe_scores(trace: xr.Dataset) -> dict[str, np.ndarray]:
    """The scores :data:`PROBE` of every observed input.

    Args:
        trace: that observes (inputs, predicted classes), with the posterior's loss cross entropy
            and ``observe_loss=class_losses``.

    Returns:
        Gain (nats), posterior mean loss (nats), variance of the loss (nats squared), entropy and
        disagreement of the draws' predictions (nats), shape (n,) each.

    Raises:
        ValueError: the trace has no losses per class, or observes other than predicted classes.
    """
    if "sample_loss" not in trace or "token" not in trace.dims:
        raise ValueError(
            "trace has no losses per class; sample with observe_loss="
            "probebook.outlier_scores.class_losses"
        )
    at_rest = trace.init_sample_loss.values.astype(np.float64)
    least = trace.init_loss.values.min(1)
    if not np.allclose(at_rest, least, rtol=1e-3, atol=1e-4):
        off = int((~np.isclose(at_rest, least, rtol=1e-3, atol=1e-4)).sum())
        raise ValueError(
            f"trace observes {off} inputs with another class than the predicted one; observe "
            "(inputs, model(inputs).argmax(1))"
        )
    gain = probelib.loss_gain(trace, over="sample").values
    weights = None
    if "log_weight" in trace:
        log_weight = trace.log_weight.values.ravel()
        weights = np.exp(log_weight - log_weight.max())
    losses = trace.loss.values.reshape(-1, *trace.loss.shape[2:])
    scores = dict(zip(PROBE[-2:], prediction_scores(losses, weights), strict=True))
    return {
        "gain": gain,
        "mean_loss": at_rest + gain,
        "variance": probelib.loss_kernel(trace, over="sample").diagonal().values,
        **scores,
    }


# -- of a score ----------------------------------------------------------------------------------


def fpr_at(score: np.ndarray, odd: np.ndarray, share: float = 0.95) -> float:
    """The share of odd inputs that are let in where 95 % of the others are (FPR at 95 % TPR).

    The field's convention: inputs like the training data are the positives. The threshold is the
    lowest that lets in at least ``share`` of them; what scores at most the threshold is let in.

    Args:
        score: high is odd, shape (n,).
        odd: which inputs are, boolean, shape (n,).
        share: of the others, in (0, 1].

    Raises:
        ValueError: a score that is not finite, one kind only, or another share.
    """
    score, odd = require_scores(score, odd)
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    false, true, _ = roc_curve(~odd, -score, drop_intermediate=False)
    return float(false[np.argmax(true >= share - 1e-12)])


def require_scores(score: np.ndarray, odd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finite scores, and both kinds of inputs (ValueError)."""
    score, odd = np.asarray(score, np.float64), np.asarray(odd, bool)
    if score.ndim != 1 or score.shape != odd.shape:
        raise ValueError(f"score has shape {score.shape} and odd {odd.shape}; give (n,) of both")
    if not np.isfinite(score).all():
        at = int(np.argmin(np.isfinite(score)))
        raise ValueError(f"score {at} is {score[at]}; leave out or repair what is not finite")
    if odd.all() or not odd.any():
        raise ValueError(f"odd marks {int(odd.sum())} of {len(odd)} inputs; both kinds are needed")
    return score, odd


def _logits(logits: np.ndarray) -> np.ndarray:
    """Finite logits in float64 (ValueError)."""
    found = np.asarray(logits, np.float64)
    if not np.isfinite(found).all():
        raise ValueError("logits has values that are not finite; repair the network or its inputs")
    return found


def _features(train: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finite features of equal width in float64 (ValueError)."""
    found = []
    for name, rows in (("train", train), ("features", features)):
        rows = np.asarray(rows, np.float64)
        if rows.ndim != 2 or not len(rows) or not np.isfinite(rows).all():
            raise ValueError(f"{name} has shape {rows.shape}; give finite features, shape (n, d)")
        found.append(rows)
    if found[0].shape[1] != found[1].shape[1]:
        raise ValueError(
            f"train has {found[0].shape[1]} features and features {found[1].shape[1]}; take both "
            "from the same layer"
        )
    return found[0], found[1]
