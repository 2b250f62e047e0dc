"""Does a similarity of documents know their genres? One measure for the kernel and its rivals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import normalized_mutual_info_score

import probelib
from probebook.alignment import clusters, cosine, top
from probebook.language_data import Windows

__all__ = [
    "Statistic",
    "centred_cosine",
    "clusters",
    "document_gradients",
    "group_means",
    "recovery",
    "recovery_table",
    "tf_idf",
]

_GROUPS = 10  # parts of the documents that the jackknife leaves out in turn


@dataclass(frozen=True)
class Statistic:
    """A number beside what chance gives.

    Attributes:
        value: of the documents' own labels.
        error: its standard error over documents, by a jackknife.
        chance: its mean over permutations of the labels.
        low, high: 95 % of the permutations lie between.
        p: share of permutations that are as high, this one counted among them.
    """

    value: float
    error: float
    chance: float
    low: float
    high: float
    p: float


def recovery(
    similarity: np.ndarray,
    labels: np.ndarray,
    *,
    k: int = 5,
    permutations: int = 1000,
    seed: int = 0,
) -> dict[str, Statistic]:
    """How well a similarity of documents recovers their labels, in three ways.

    Only the order of similarities counts, so that kernels, cosines and distances turned round can
    stand in one table.

    Args:
        similarity: of all pairs, symmetric, shape (n, n); its diagonal is not read.
        labels: of the documents, shape (n,).
        k: neighbours looked at, also by the clustering.
        permutations: of the labels, for chance.
        seed: of these.

    Returns:
        ``purity``, the share of the k nearest that have a document's label, mean over documents;
        ``auroc``, the chance that a pair of one label is more similar than a pair of two; ``nmi``,
        the mutual information with as many clusters as there are labels (:func:`clusters`), over
        the mean of both entropies.

    Raises:
        ValueError: shapes do not fit, a similarity is not finite or not symmetric, or no two
            documents have one label, or all have.
    """
    matrix, at = _checked(similarity, labels)
    measures = _Measures(matrix, k, int(at.max()) + 1)
    value = measures(at)
    rng = np.random.default_rng(seed)
    null = np.array([measures(rng.permutation(at)) for _ in range(permutations)])
    error = _jackknife(matrix, at, k)
    found = {}
    for i, name in enumerate(("purity", "auroc", "nmi")):
        low, high = np.quantile(null[:, i], [0.025, 0.975])
        as_high = (1 + (null[:, i] >= value[i] - 1e-12).sum()) / (1 + permutations)
        found[name] = Statistic(
            float(value[i]), float(error[i]), float(null[:, i].mean()), float(low), float(high),
            float(as_high),
        )  # fmt: skip
    return found


def recovery_table(
    similarities: Mapping[str, np.ndarray], labels: np.ndarray, **options: int
) -> pd.DataFrame:
    """:func:`recovery` of several similarities: a row a similarity and statistic.

    Args:
        similarities: by name, each of the same documents.
        labels: of the documents.
        options: of :func:`recovery`.
    """
    rows = [
        {"similarity": name, "statistic": statistic, **vars(found)}
        for name, matrix in similarities.items()
        for statistic, found in recovery(matrix, labels, **options).items()
    ]
    return pd.DataFrame(rows)


class _Measures:
    """Purity, AUROC and NMI of labels; what depends on the similarity alone is computed once."""

    def __init__(self, matrix: np.ndarray, k: int, count: int) -> None:
        self.near = top(matrix, k)
        self.one, self.other = np.triu_indices(len(matrix), 1)
        self.ranks = rankdata(matrix[self.one, self.other])
        self.cluster = clusters(matrix, count, k)

    def __call__(self, at: np.ndarray) -> tuple[float, float, float]:
        purity = (at[self.near] == at[:, None]).mean()
        same = at[self.one] == at[self.other]
        pairs, others = int(same.sum()), int((~same).sum())
        above = self.ranks[same].sum() - pairs * (pairs + 1) / 2
        return purity, above / (pairs * others), normalized_mutual_info_score(at, self.cluster)


def _jackknife(matrix: np.ndarray, at: np.ndarray, k: int) -> np.ndarray:
    """Standard errors over documents; each part takes from every label as evenly as it can."""
    part = np.empty(len(at), int)
    part[np.argsort(at, kind="stable")] = np.arange(len(at)) % _GROUPS
    found = []
    for out in range(_GROUPS):
        rest = np.flatnonzero(part != out)
        labels = np.unique(at[rest], return_inverse=True)[1]
        found.append(_Measures(matrix[np.ix_(rest, rest)], k, int(labels.max()) + 1)(labels))
    return np.sqrt((_GROUPS - 1) * np.var(found, axis=0))


def _checked(similarity: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    matrix = np.array(similarity, np.float64)
    n = len(labels)
    if matrix.shape != (n, n):
        raise ValueError(f"similarity has shape {matrix.shape} for {n} labels; give ({n}, {n})")
    np.fill_diagonal(matrix, 0)
    if not np.isfinite(matrix).all():
        raise ValueError(
            f"similarity has {int((~np.isfinite(matrix)).sum())} values that are not finite; leave "
            "out documents whose loss does not vary"
        )
    if not np.allclose(matrix, matrix.T, rtol=1e-6, atol=1e-6 * np.abs(matrix).max()):
        raise ValueError("similarity is not symmetric; give the mean of it and its transpose")
    at = np.unique(labels, return_inverse=True)[1]
    if not 1 < len(np.unique(at)) < n:
        raise ValueError(f"labels has {len(np.unique(at))} different ones in {n}; give several")
    return (matrix + matrix.T) / 2, at


# -- the kernel of documents and its rivals ---------------------------------------------------


def group_means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Means of the rows of each group, in the order of ``np.unique(groups)``.

    Of a kernel's features (``Kernel.features()``, centred loss traces) they are those of the
    kernel of documents, for a document's loss is the mean of its windows'.

    Args:
        values: shape (n, coordinates).
        groups: of each row, integers, shape (n,).
    """
    if len(values) != len(groups):
        raise ValueError(f"values has {len(values)} rows and groups {len(groups)}; give one each")
    _, at, count = np.unique(groups, return_inverse=True, return_counts=True)
    total = np.zeros((len(count), values.shape[1]))
    np.add.at(total, at, values)
    return total / count[:, None]


def centred_cosine(features: np.ndarray) -> np.ndarray:
    """Cosines of all pairs of rows after the mean of all rows is taken off: (n, n).

    What all documents share makes them all alike, and tells none from another.
    """
    return cosine(features - features.mean(0))


def tf_idf(texts: Sequence[str]) -> np.ndarray:
    """Cosines of words, weighted by how rare they are (scikit-learn), shape (n, n)."""
    found = TfidfVectorizer(sublinear_tf=True).fit_transform(texts)
    return (found @ found.T).toarray()


def document_gradients(model: torch.nn.Module, windows: Windows) -> np.ndarray:
    """Gradients at w* of each document's loss, the mean over its windows: float32 (documents, d).

    In the order of ``np.unique(windows.document)``. The model is left as it was.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for document in np.unique(windows.document):
        inputs, targets = windows[windows.document == document].data
        loss = probelib.sequence_cross_entropy(model(inputs), targets).mean()
        gradient = torch.autograd.grad(loss, parameters)
        rows.append(torch.cat([g.flatten() for g in gradient]).numpy())
    return np.stack(rows)
