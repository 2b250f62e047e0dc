r"""Wrong labels of three kinds, of which it is known which they are.

Every kind changes exactly round(rate n) labels, so that a rate means the same for all. The two
kinds that depend on how alike classes or samples are take it from predictions of a linear
classifier for samples that it was not fitted on (:func:`out_of_sample`), made with the true labels:

- ``uniform``: any sample, any other class (the paper, A.4, but never the true class again);
- ``asymmetric``: any sample of a class becomes the class that it is most often taken for
  (Patrini et al., 2017, have such pairs by hand);
- ``instance``: samples that look like another class get that class: drawn with odds in proportion
  to the probability that the classifier gives to its best wrong class (Xia et al., 2020, have such
  noise by random projections).
"""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from probelib.arguments import require_choice

__all__ = ["NOISES", "out_of_sample", "wrong_labels"]

NOISES = ("uniform", "asymmetric", "instance")
"""The kinds of noise."""


def out_of_sample(x: np.ndarray, y: np.ndarray, seed: int = 0) -> np.ndarray:
    """Class probabilities of a linear classifier for samples that it was not fitted on, (n, c).

    Five folds of logistic regression. A class with fewer than five samples stays in one fold, and
    has the probability 0 in the others.

    Args:
        x: inputs, shape (n, features).
        y: labels, shape (n,).
        seed: of the folds.
    """
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    linear = LogisticRegression(C=0.1, max_iter=200)
    with warnings.catch_warnings():  # where it stands after 200 steps says what looks alike
        warnings.simplefilter("ignore", ConvergenceWarning)
        return cross_val_predict(linear, x, y, cv=folds, method="predict_proba")


def wrong_labels(
    labels: np.ndarray, kind: str, rate: float, seed: int, predicted: np.ndarray
) -> np.ndarray:
    """The labels with exactly round(rate n) of them wrong.

    Args:
        labels: the true ones, 0 to c - 1, shape (n,).
        kind: of :data:`NOISES`.
        rate: share of wrong labels, more than 0 and less than 1.
        seed: which, and what they become.
        predicted: probabilities for samples out of sample, shape (n, c); the uniform kind takes
            only the number of classes from it.

    Returns:
        The labels given to the network; where they differ from ``labels`` they are wrong.

    Raises:
        ValueError: another kind, a rate that makes no label or all labels wrong, predictions of
            another shape or not finite.
    """
    kind = require_choice("kind", kind, *NOISES)
    labels, predicted = np.asarray(labels), np.asarray(predicted, float)
    n, count = len(labels), round(rate * len(labels))
    if not 0 < count < n:
        raise ValueError(
            f"rate is {rate}, which makes {count} of {n} labels wrong; give one at least, and "
            "leave one right"
        )
    if predicted.ndim != 2 or len(predicted) != n or not np.isfinite(predicted).all():
        raise ValueError(
            f"predicted must be finite, of shape ({n}, classes), got shape {predicted.shape}"
        )
    rng = np.random.default_rng([NOISES.index(kind), seed])
    classes = predicted.shape[1]
    wrong = predicted.copy()
    wrong[np.arange(n), labels] = -1.0  # never the true one
    if kind == "instance":
        odds = np.maximum(wrong.max(1), 1e-12)
        chosen = rng.choice(n, count, replace=False, p=odds / odds.sum())
        becomes = wrong.argmax(1)
    else:
        chosen = rng.choice(n, count, replace=False)
        becomes = (labels + rng.integers(1, classes, n)) % classes
        if kind == "asymmetric":
            becomes = _confused_with(wrong, labels)[labels]
    given = labels.copy()
    given[chosen] = becomes[chosen]
    return given


def _confused_with(wrong: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each class the one to which its samples' probability goes, on average."""
    classes = wrong.shape[1]
    found = np.arange(classes)
    for label in np.unique(labels):
        found[label] = wrong[labels == label].mean(0).argmax()
    return found
