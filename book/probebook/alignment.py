"""Whether a kernel's neighbours mean anything: WordNet, permutations, agreement of kernels.

Everything here takes similarity matrices of the same n images, shape (n, n), and looks at the
pairs i < j or at each image's most similar others.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr
from scipy.stats import t as student_t
from sklearn.cluster import SpectralClustering

from probelib import split_half_reliability
from probelib.estimators.neighbours import benjamini_hochberg, of_found


@dataclass(frozen=True, eq=False)
class Alignment:
    """Mean WordNet similarity of cross-label neighbours, beside what chance gives.

    Attributes:
        value: mean similarity of each image's class to those of its neighbours.
        null: the same with the classes dealt out anew, shape (permutations,).
        low, high: the central 95 % of ``null``.
    """

    value: float
    null: np.ndarray
    low: float
    high: float

    @property
    def chance(self) -> float:
        """The mean of ``null``."""
        return float(self.null.mean())


Meaning = Callable[[np.ndarray, np.ndarray], Alignment]  # similarities (n, n) and labels (n,)


def off_diagonal(matrix: np.ndarray) -> np.ndarray:
    """The entries i < j, shape (n (n - 1) / 2,)."""
    return matrix[np.triu_indices(len(matrix), 1)]


def top(matrix: np.ndarray, k: int, allowed: np.ndarray | None = None) -> np.ndarray:
    """The k most similar others of each image, best first.

    Args:
        matrix: similarities, shape (n, n).
        k: how many.
        allowed: boolean (n, n), which pairs count; default: all but an image with itself.

    Returns:
        Positions, shape (n, k).

    Raises:
        ValueError: an image has fewer than k candidates.
    """
    allowed = np.ones(matrix.shape, bool) if allowed is None else allowed.copy()
    np.fill_diagonal(allowed, False)
    fewest = int(allowed.sum(1).min())
    if not 1 <= k <= fewest:
        raise ValueError(f"k is {k}; choose from 1 to {fewest}, the candidates of every image")
    return np.argsort(np.where(allowed, -matrix, np.inf), axis=1, kind="stable")[:, :k]


def cross_label_top(matrix: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """The k most similar images of another label, shape (n, k): those of the same are skipped."""
    return top(matrix, k, allowed=labels[:, None] != labels)


def alignment(
    neighbours: np.ndarray,
    labels: np.ndarray,
    similarity: np.ndarray,
    *,
    permutations: int = 1000,
    seed: int = 0,
) -> Alignment:
    """WordNet similarity of neighbours against chance.

    Chance keeps the neighbours, how often each image is one, and which images share a label; it
    deals out the labels that occur anew. So hubs and the uneven tree of WordNet cancel. Pairs that
    a permutation could not tell apart (of one label) are not there: the neighbours are of another
    label.

    Args:
        neighbours: of each image, shape (n, k), none of its own label.
        labels: class of every image, shape (n,).
        similarity: of the classes, shape (classes, classes).
        permutations: how often the labels are dealt out.
        seed: of that.
    """
    present, at = np.unique(labels, return_inverse=True)
    among = similarity[np.ix_(present, present)]
    rng = np.random.default_rng(seed)
    null = np.empty(permutations)
    for p in range(permutations):
        dealt = rng.permutation(len(present))[at]
        null[p] = among[dealt[:, None], dealt[neighbours]].mean()
    low, high = np.quantile(null, [0.025, 0.975])
    return Alignment(
        float(among[at[:, None], at[neighbours]].mean()), null, float(low), float(high)
    )


def meaning_of(similarity: np.ndarray, permutations: int, seed: int, k: int = 5) -> Meaning:
    """A function of R and labels: WordNet similarity of cross-label neighbours, against chance.

    Args:
        similarity: of the classes, shape (classes, classes).
        permutations, seed: of :func:`alignment`.
        k: neighbours of each photograph.
    """

    def meaning(r: np.ndarray, labels: np.ndarray) -> Alignment:
        nearest = cross_label_top(r, labels, k)
        return alignment(nearest, labels, similarity, permutations=permutations, seed=seed)

    return meaning


def apart(order: np.ndarray, neighbours: np.ndarray, most: int) -> np.ndarray:
    """The first references in an order none of which is a neighbour of an earlier one.

    Args:
        order: positions, best first, shape (n,).
        neighbours: of each, shape (n, k).
        most: how many to take.
    """
    chosen: list[int] = []
    taken: set[int] = set()
    for i in map(int, order):
        if i not in taken and len(chosen) < most:
            chosen.append(i)
            taken |= {i, *map(int, neighbours[i])}
    return np.array(chosen)


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rank correlation of two arrays of the same shape, flattened."""
    return float(spearmanr(np.ravel(one), np.ravel(other)).statistic)


def spearman_of_pairs(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rank correlation of two similarities over all pairs of images."""
    return spearman(off_diagonal(one), off_diagonal(other))


def clusters(similarity: np.ndarray, count: int, k: int = 5) -> np.ndarray:
    """Spectral clusters of the graph of k nearest neighbours, shape (n,): no start, no seed.

    An edge weighs 1 where both are neighbours of each other and a half where one is; all others a
    thousandth, so that the graph hangs together.

    Args:
        similarity: of all pairs, shape (n, n).
        count: clusters wanted.
        k: neighbours.
    """
    n = len(similarity)
    if count < 2:
        return np.zeros(n, int)
    count = min(count, n - 1)
    graph = np.full((n, n), 1e-3)
    np.put_along_axis(graph, top(similarity, min(k, n - 1)), 1.0, 1)
    graph = (graph + graph.T) / 2
    method = SpectralClustering(count, affinity="precomputed", assign_labels="cluster_qr",
                                eigen_solver="arpack", random_state=0)  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return method.fit_predict(graph)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Mean share of common neighbours: both (n, k), in [0, 1]; chance is about k / n."""
    k = one.shape[1]
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(one, other, strict=True)]))


def cosine(features: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
    """Cosines of every row of one array with every row of another, 0 for a row of zeros.

    Args:
        features: shape (m, d).
        others: shape (n, d); default: the same rows.

    Returns:
        Shape (m, n).
    """

    def unit(x: np.ndarray) -> np.ndarray:
        length = np.linalg.norm(x, axis=1, keepdims=True)
        return x / np.where(length > 0, length, 1)

    own = unit(features)
    return own @ (own if others is None else unit(others)).T


def equivalent_draws(first: np.ndarray, second: np.ndarray) -> float:
    """How many independent draws would estimate R as well as the mean of these two halves.

    The correlation of two series of S independent draws has a standard error of about 1 / sqrt(S)
    where it is near 0, and the halves' difference tells the error of their mean.

    Args:
        first, second: independent estimates of R, shape (n, n).
    """
    error = (off_diagonal(first) - off_diagonal(second)) / 2
    return float(1 / max(np.mean(np.square(error)), 1e-12))


def q_values(index: np.ndarray, choosing: np.ndarray, testing: np.ndarray) -> np.ndarray:
    """Which neighbours are more than chance, where R is known from two independent halves.

    One half chooses four times as many candidates as there are neighbours; in the other each is
    tested against R = 0, and Benjamini and Hochberg's procedure accounts for their number. The
    error of R comes from the difference of the halves, pair by pair as the product of what its two
    images have: some are far noisier than others.

    Args:
        index: neighbours of each image, shape (n, k).
        choosing, testing: independent estimates of R, shape (n, n).

    Returns:
        q of each neighbour, shape (n, k); 1 for one that the first half did not choose.
    """
    tested = top(choosing, min(4 * index.shape[1], len(index) - 1))
    difference = choosing - testing
    np.fill_diagonal(difference, 0)
    of_image = np.square(difference).sum(1) / (2 * (len(index) - 1))  # of one half
    error = np.sqrt(of_image[:, None] * of_image[tested] / max(of_image.mean(), 1e-30))
    z = np.take_along_axis(testing, tested, 1) / np.maximum(error, 1e-15)
    p = student_t.sf(z, (len(index) - 1) / 2)  # the error is made of two that are estimated
    return of_found(index, tested, benjamini_hochberg(p))


def reliability_error(first: np.ndarray, second: np.ndarray, groups: int = 10) -> float:
    """Standard error of the split-half reliability over photographs: a jackknife over groups.

    Args:
        first, second: R from two halves of the walks, shape (n, n).
        groups: parts of the photographs that are left out in turn.
    """
    group = np.arange(len(first)) % groups
    found = []
    for k in range(groups):
        rest = np.ix_(group != k, group != k)
        found.append(split_half_reliability(first[rest], second[rest]))
    return float(np.sqrt((groups - 1) * np.var(found)))


def similarity_error(neighbours: np.ndarray, labels: np.ndarray, similarity: np.ndarray) -> float:
    """Standard error, over references, of the mean similarity of their neighbours' classes.

    Args:
        neighbours: of each photograph, shape (n, k).
        labels: of the photographs, shape (n,).
        similarity: of the classes, shape (classes, classes).
    """
    each = similarity[labels[:, None], labels[neighbours]].mean(1)
    return float(each.std(ddof=1) / np.sqrt(len(each)))


def noise_free_slope(one: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """Whether ``one`` estimates the same R as two independent halves do: then it is 1.

    The covariance over pairs of ``one`` with the halves' mean, over that of the halves with each
    other. Noise that the three do not share adds to neither, however much of it there is.

    Args:
        one, first, second: estimates of R with independent noise, shape (n, n).

    Returns:
        The slope; 0 where the halves have no signal to compare.
    """
    a, b, c = map(off_diagonal, (one, first, second))
    signal = np.cov(b, c)[0, 1]
    return float(np.cov(a, (b + c) / 2)[0, 1] / signal) if signal > 0 else 0.0


def noise_free_correlation(
    one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]
) -> float:
    """Correlation over pairs of two kernels that are each known in two independent halves.

    Spearman's correction for attenuation, from covariances: what is noise in each half adds to
    none of them.

    Args:
        one, other: two halves each, shape (n, n).

    Returns:
        1 where both are the same but for noise; 0 where either has no signal to compare.
    """
    (a, b), (c, d) = ([off_diagonal(half) for half in halves] for halves in (one, other))
    signal = np.cov(a, b)[0, 1], np.cov(c, d)[0, 1]
    if min(signal) <= 0:
        return 0.0
    return float(np.cov((a + b) / 2, (c + d) / 2)[0, 1] / np.sqrt(signal[0] * signal[1]))


def without_common_part(covariance: np.ndarray) -> np.ndarray:
    r"""The kernel after each draw's mean over the samples is taken off every loss.

    With :math:`P = I - 11^\top / n`, the covariance of :math:`P \Delta\ell` is :math:`P K P`:
    what moves all images at once no longer counts.
    """
    by_row = covariance.mean(0)
    return covariance - by_row[:, None] - by_row + by_row.mean()


__all__ = [
    "Alignment",
    "Meaning",
    "alignment",
    "apart",
    "clusters",
    "cosine",
    "cross_label_top",
    "equivalent_draws",
    "meaning_of",
    "noise_free_correlation",
    "noise_free_slope",
    "off_diagonal",
    "overlap",
    "q_values",
    "reliability_error",
    "similarity_error",
    "spearman",
    "spearman_of_pairs",
    "top",
    "without_common_part",
]
