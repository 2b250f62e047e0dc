"""Tests that any similarity of photographs can take: meaning, clusters, what others do not know.

A loss kernel, the cosine of features and the cosine of pixels all say how alike two photographs
are. Here each is held against WordNet in the same way, with an interval, so that they can be
compared. Everything takes matrices of the same n photographs, shape (n, n).

An interval has two sources. *Photographs*: the statistic's spread over random halves of them, which
for a mean or a rank correlation over pairs is its standard error over photographs. *Walks*, for a
similarity that is itself estimated: the jackknife over independent parts of the walks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata
from scipy.stats import t as student_t
from sklearn.metrics import normalized_mutual_info_score

from probebook import alignment as al
from probebook.similarities import Interval

Numbers = dict[str, float]
# Similarities and positions of photographs -> numbers by name.
Statistic = Callable[[np.ndarray, np.ndarray], Numbers]

_HALVES = 20
_NEAREST = 10  # edges of a photograph in the graph that is clustered
_DEALS = 20  # random deals of the labels behind the chance of a clustering


@dataclass(frozen=True, eq=False)
class Meaning:
    """What similarities are held against.

    Attributes:
        labels: class of every photograph, shape (n,).
        wordnet: similarity of the classes, shape (classes, classes).
        groups: depth in WordNet -> group of every class at that depth, shape (classes,).
    """

    labels: np.ndarray
    wordnet: np.ndarray
    groups: Mapping[int, np.ndarray]

    def measure(self, similarity: np.ndarray, at: np.ndarray) -> Numbers:
        """All numbers of one similarity; see :func:`measured` for their names.

        Args:
            similarity: of the photographs ``at``, shape (m, m).
            at: positions of these photographs, shape (m,).
        """
        labels = self.labels[at]
        wordnet = self.wordnet[np.ix_(labels, labels)]
        pair = np.triu_indices(len(at), 1)
        other = (labels[:, None] != labels)[pair]
        ours, theirs = similarity[pair], wordnet[pair]
        nearest = al.cross_label_top(similarity, labels, min(5, len(at) - 2))
        found = {
            "spearman_wordnet": al.spearman(ours, theirs),
            "spearman_wordnet_cross": al.spearman(ours[other], theirs[other]),
            "top5_wordnet": float(np.take_along_axis(wordnet, nearest, 1).mean()),
        }
        for depth, group in self.groups.items():
            true = group[labels]
            clusters = al.clusters(similarity, len(np.unique(true)), _NEAREST)
            found[f"nmi_{depth}"] = float(normalized_mutual_info_score(true, clusters))
            found[f"purity_{depth}"] = purity(true, clusters)
        return found

    def chance(self, similarity: np.ndarray, seed: int = 0) -> Numbers:
        """The same numbers where the labels are dealt out at random: the mean over deals.

        The neighbours and the clusters stay, so that hubs and sizes of clusters cancel.
        """
        labels, rng = self.labels, np.random.default_rng(seed)
        nearest = al.cross_label_top(similarity, labels, min(5, len(labels) - 2))
        dealt = al.alignment(nearest, labels, self.wordnet, permutations=200, seed=seed)
        found = {"spearman_wordnet": 0.0, "spearman_wordnet_cross": 0.0}
        found["top5_wordnet"] = dealt.chance
        for depth, group in self.groups.items():
            true = group[labels]
            clusters = al.clusters(similarity, len(np.unique(true)), _NEAREST)
            deals = [rng.permutation(true) for _ in range(_DEALS)]
            found[f"nmi_{depth}"] = float(
                np.mean([normalized_mutual_info_score(deal, clusters) for deal in deals])
            )
            found[f"purity_{depth}"] = float(np.mean([purity(deal, clusters) for deal in deals]))
        return found


def groups_at(paths: Sequence[Sequence[str]], depth: int) -> np.ndarray:
    """The ancestor of every class at a depth of the tree, as whole numbers, shape (classes,).

    Args:
        paths: from the root down to each class; the root's depth is 1.
        depth: counted in nodes. A class that is higher up is a group of its own.
    """
    if depth < 1:
        raise ValueError(f"depth is {depth}; the root's is 1")
    ancestors = [path[min(depth, len(path)) - 1] for path in paths]
    return np.unique(ancestors, return_inverse=True)[1]


def purity(true: np.ndarray, clusters: np.ndarray) -> float:
    """The share of samples that belong to the largest true group of their cluster."""
    table = np.zeros((clusters.max() + 1, true.max() + 1), int)
    np.add.at(table, (clusters, true), 1)
    return float(table.max(1).sum() / len(true))


def measured(
    statistic: Statistic,
    similarity: np.ndarray,
    parts: Sequence[np.ndarray] = (),
    seed: int = 0,
) -> dict[str, Interval]:
    """Numbers of a similarity, each with its 95 % interval.

    Args:
        statistic: of similarities and the positions of their photographs.
        similarity: shape (n, n), or (k, n, n) for a statistic of k similarities at once.
        parts: the similarity without each of some independent parts of what it was made of.
        seed: of the halves.
    """
    n = similarity.shape[-1]
    every, rng = np.arange(n), np.random.default_rng(seed)
    value = statistic(similarity, every)
    halves = [np.sort(rng.choice(n, n // 2, replace=False)) for _ in range(_HALVES)]
    over = [statistic(similarity[..., half[:, None], half], half) for half in halves]
    left_out = [statistic(part, every) for part in parts]
    found = {}
    for name, middle in value.items():
        spread = np.std([numbers[name] for numbers in over], ddof=1)
        arm = student_t.ppf(0.975, _HALVES - 1) * spread
        if left_out:
            arm = np.hypot(arm, jackknife_arm([numbers[name] for numbers in left_out]))
        found[name] = Interval(middle, middle - arm, middle + arm)
    return found


def jackknife_arm(left_out: Sequence[float]) -> float:
    """Half of the 95 % interval of an estimate, from its values without each independent part.

    The jackknife's standard error times Student's t; infinite for fewer than two parts.
    """
    if (count := len(left_out)) < 2:
        return np.inf
    return float(student_t.ppf(0.975, count - 1) * np.sqrt((count - 1) * np.var(left_out)))


def partial_rank_correlation(
    one: np.ndarray, other: np.ndarray, given: Sequence[np.ndarray], strata: int = 50
) -> float:
    """Spearman's rank correlation of two arrays, with what others explain taken off both.

    Each of the others is cut into strata of equal size. From the ranks of the two arrays the part
    is taken off that a sum of steps, one for every stratum of every other, can explain by least
    squares; what is left is correlated. Steps rather than lines: a curved relation to the others
    would otherwise be left over, and look like knowledge of one's own.

    Args:
        one, other: shape (m,).
        given: arrays of shape (m,).
        strata: of each of them; fewer where one would have less than ten values for each array.
    """
    strata = max(2, min(strata, len(one) // (10 * len(given))))
    ranks = np.stack([rankdata(one), rankdata(other)])
    ranks -= ranks.mean(1, keepdims=True)
    count = len(given) * strata
    stratum = [
        k * strata + (rankdata(values, "ordinal") - 1) * strata // len(values)
        for k, values in enumerate(given)
    ]
    products, sums = np.zeros((count, count)), np.zeros((count, 2))
    for a in stratum:
        sums += np.stack([np.bincount(a, row, count) for row in ranks], 1)
        for b in stratum:
            products += np.bincount(a * count + b, minlength=count**2).reshape(count, count)
    left = ranks @ ranks.T - sums.T @ np.linalg.pinv(products, hermitian=True) @ sums
    return float(left[0, 1] / np.sqrt(left[0, 0] * left[1, 1]))


def partial_wordnet(meaning: Meaning, given: int) -> Statistic:
    """A statistic of ``1 + given`` similarities: what the first knows of WordNet beyond the others.

    Its numbers are ``partial``, the rank correlation of the first with WordNet given the others,
    and ``reverse``, that of the second given the first.
    """

    def statistic(similarities: np.ndarray, at: np.ndarray) -> Numbers:
        pair = np.triu_indices(len(at), 1)
        labels = meaning.labels[at]
        wordnet = meaning.wordnet[np.ix_(labels, labels)][pair]
        first, *others = (similarity[pair] for similarity in similarities)
        return {
            "partial": partial_rank_correlation(first, wordnet, others),
            "reverse": partial_rank_correlation(others[0], wordnet, [first]),
        }

    if given < 1:
        raise ValueError(f"given is {given}; give at least one other similarity")
    return statistic


__all__ = [
    "Meaning",
    "Statistic",
    "groups_at",
    "jackknife_arm",
    "measured",
    "partial_rank_correlation",
    "partial_wordnet",
    "purity",
]
