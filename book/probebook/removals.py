r"""A use of the kernel's neighbours: which training images hold a wrong prediction.

A test image is classified wrongly. Some training images are removed, the network is trained again
from the same initial weights, and we see whether the prediction is right then. Which images to
remove is what methods differ in; how many is the same for all.

To first order, removing training image j changes the query's mean loss under Eq. 1 by
:math:`+\beta K_{qj}`. So the kernel names the images with the most negative :math:`K_{qj}`, with
the loss of the query taken at its *true* label. Inner products of gradients at w* do the same to
leading order. Features and pixels know no sign: they name the nearest images that carry the label
that was wrongly predicted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import probelib
from probebook import alignment as al
from probebook.leaks import load_images
from probebook.models import MLP
from probebook.similarities import (
    Draws,
    Interval,
    drawn,
    gradient_products,
    hidden_features,
    mean_interval,
    numbers_of,
    settled,
    share_interval,
)
from probebook.small_networks import initial_network, train_stack
from probelib.arguments import require_whole

__all__ = [
    "METHODS",
    "RemovalRow",
    "RemovalSize",
    "Removals",
    "named",
    "over_training_sets",
    "pooled",
    "removal_scores",
    "remove_and_retrain",
]

METHODS = (
    "kernel", "correlation", "gradients", "gradient_cosines",
    "kernel_class", "features", "pixels", "class", "chance",
)  # fmt: skip
"""Who names the images to remove: the most negative K, R, inner products and cosines of gradients;
among those that carry the wrongly predicted label alone, the most negative K, the nearest by
features or pixels, and any; and chance, among all."""


@dataclass(frozen=True)
class RemovalSize:
    """How much of it.

    Attributes:
        train: training images.
        pool: test images among which the queries are found.
        queries: wrongly classified ones, for each training set.
        budgets: how many training images are removed.
        networks: initial weights; predictions and scores are means over them.
        hidden: units of the hidden layer.
        epochs: of training.
        draws: weighted draws per network that estimate the kernel.
        together: networks that are trained side by side.
    """

    train: int = 1000
    pool: int = 1000
    queries: int = 8
    budgets: tuple[int, ...] = (20, 50)
    networks: int = 3
    hidden: int = 32
    epochs: int = 20
    draws: int = 600
    together: int = 72

    def __post_init__(self) -> None:
        for name in ("train", "pool", "queries", "networks", "hidden", "epochs", "draws"):
            require_whole(name, getattr(self, name))
        require_whole("together", self.together)
        if not self.budgets or min(self.budgets) < 1 or max(self.budgets) >= self.train:
            raise ValueError(
                f"budgets is {self.budgets}; give numbers from 1 to {self.train - 1}, fewer than "
                "the training images"
            )


@dataclass(frozen=True, eq=False)
class _Problem:
    """Data and networks before anything is removed.

    Attributes:
        train, pool: inputs (n, 784) and labels.
        start: initial networks.
        trained: the same, trained on everything.
        queries: positions in the pool, shape (queries,).
        predicted: the label that is wrongly predicted for each.
    """

    train: tuple[Tensor, Tensor]
    pool: tuple[Tensor, Tensor]
    start: tuple[MLP, ...]
    trained: tuple[MLP, ...]
    queries: np.ndarray
    predicted: np.ndarray

    @property
    def asked(self) -> tuple[Tensor, Tensor]:
        """The queries with their true labels."""
        return self.pool[0][self.queries], self.pool[1][self.queries]


def _problem(data: str, size: RemovalSize, seed: int) -> _Problem:
    """Choose images, train on all of them, and find the queries.

    Raises:
        ValueError: fewer test images are classified wrongly than there are to be queries, or fewer
            training images carry a wrong label than are to be removed.
    """
    rng = np.random.default_rng([seed, *b"removals"])
    sets = []
    for images, count in zip(load_images(data), (size.train, size.pool), strict=True):
        at = rng.choice(len(images), count, replace=False)
        sets.append((images.images[at].flatten(1).float() / 255, images.labels[at]))
    train, pool = sets
    seeds = np.random.SeedSequence(seed).generate_state(size.networks)
    start = tuple(initial_network((size.hidden,), train[0].shape[1], 10, int(s)) for s in seeds)
    keep = torch.ones(size.networks, size.train, dtype=torch.bool)
    stack = train_stack(start, train, keep, epochs=size.epochs)
    predicted = _mean_prediction(stack(pool[0]).detach()).numpy()
    often = np.bincount(train[1].numpy(), minlength=10)
    wrong = np.flatnonzero((predicted != pool[1].numpy()) & (often[predicted] >= max(size.budgets)))
    if len(wrong) < size.queries:
        raise ValueError(
            f"queries is {size.queries}, but {len(wrong)} test images of {size.pool} are predicted "
            "wrongly, as a label of which enough training images could be removed; take a larger "
            "pool, or smaller budgets"
        )
    chosen = np.sort(rng.choice(wrong, size.queries, replace=False))
    trained = tuple(stack.network(at) for at in range(size.networks))
    return _Problem(train, pool, start, trained, chosen, predicted[chosen])


def _mean_prediction(logits: Tensor) -> Tensor:
    """The label with the largest mean probability: (n,) from logits (networks, n, classes)."""
    return logits.softmax(-1).mean(0).argmax(-1)


def removal_scores(
    problem: _Problem, size: RemovalSize, seed: int
) -> tuple[dict[str, np.ndarray], tuple[Draws, ...]]:
    """How urgently each method would remove each training image, for each query.

    Args:
        problem: data and networks.
        size: of the estimate of the kernel.
        seed: of its draws, and of chance.

    Returns:
        Arrays (queries, train) by method, the largest is removed first and -inf never; and what
        the draws of each network say of themselves.
    """
    asked, train, networks = problem.asked, problem.train, problem.trained
    rows, cols = np.arange(len(asked[1])), np.arange(len(asked[1]), len(asked[1]) + len(train[1]))
    both = tuple(torch.cat(pair) for pair in zip(asked, train, strict=True))
    total = np.zeros((5, len(rows), len(cols)))
    draws = []
    for network in networks:
        posterior = settled(network, train, seed=seed)
        trace = probelib.importance_sample(
            posterior, size.draws, observe=both, seed=seed, progress=False
        )
        draws.append(drawn(posterior, trace))
        kernel = probelib.loss_kernel(trace)
        features, queries = (hidden_features(network, x)[-1] for x in (train[0], asked[0]))
        mean = features.mean(0)
        total += (
            kernel.covariance(rows, cols),
            kernel.correlation(rows, cols),
            *gradient_products(posterior, asked, train),
            al.cosine(queries - mean, features - mean),
        )
    covariance, correlation, inner, cosine, alike = total / len(networks)
    rng = np.random.default_rng([seed, *b"chance"])
    of_class = problem.predicted[:, None] == train[1].numpy()
    scores = {
        "kernel": -covariance,
        "correlation": -correlation,
        "gradients": -inner,
        "gradient_cosines": -cosine,
        "kernel_class": np.where(of_class, -covariance, -np.inf),
        "features": np.where(of_class, alike, -np.inf),
        "pixels": np.where(of_class, -torch.cdist(asked[0], train[0]).numpy(), -np.inf),
        "class": np.where(of_class, rng.random(of_class.shape), -np.inf),
        "chance": rng.random(of_class.shape),
    }
    return scores, tuple(draws)


def named(scores: np.ndarray, budget: int) -> np.ndarray:
    """The training images that a method removes for each query, the most urgent first.

    Args:
        scores: shape (queries, train); -inf never.
        budget: how many.

    Returns:
        Positions, shape (queries, budget).

    Raises:
        ValueError: a query has fewer candidates.
    """
    fewest = int(np.isfinite(scores).sum(1).min())
    if not 1 <= budget <= fewest:
        raise ValueError(f"budget is {budget}; choose from 1 to {fewest}, the candidates there are")
    return np.argsort(-scores, axis=1, kind="stable")[:, :budget]


def _retrained(
    problem: _Problem, size: RemovalSize, removed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Train all networks again, once for each query without what was named for it.

    Args:
        removed: positions, shape (queries, budget).

    Returns:
        Logits of each query by the networks trained for it, shape (networks, queries, 10); and the
        accuracy of each network on the pool, shape (networks, queries).
    """
    logits = np.empty((size.networks, size.queries, 10), np.float32)
    accuracy = np.empty((size.networks, size.queries))
    for part in _chunks(size.networks * size.queries, size.together):
        which, query = np.divmod(part, size.queries)
        keep = torch.ones(len(part), size.train, dtype=torch.bool)
        keep[np.arange(len(part))[:, None], removed[query]] = False
        start = [problem.start[at] for at in which]
        stack = train_stack(start, problem.train, keep, epochs=size.epochs)
        with torch.no_grad():
            asked = stack(problem.asked[0]).numpy()
            right = stack(problem.pool[0]).argmax(-1) == problem.pool[1]
        logits[which, query] = asked[np.arange(len(part)), query]
        accuracy[which, query] = right.float().mean(1).numpy()
    return logits, accuracy


def _chunks(count: int, most: int) -> Iterator[np.ndarray]:
    """0 to ``count``, in parts of at most ``most``."""
    for start in range(0, count, most):
        yield np.arange(start, min(start + most, count))


@dataclass(frozen=True)
class RemovalRow:
    """What removing the images that one method names does.

    Attributes:
        method: one of :data:`METHODS`.
        budget: images removed.
        drop: by how much the query's loss falls, nats; mean over the networks and the queries.
        corrected: share of the queries whose mean prediction is right afterwards.
        accuracy_change: by how much the accuracy on the pool changes.
        drops: of each query, mean over the networks.
        flips: whether the mean prediction of each query is right afterwards.
    """

    method: str
    budget: int
    drop: Interval
    corrected: Interval
    accuracy_change: float
    drops: tuple[float, ...]
    flips: tuple[bool, ...]


@dataclass(frozen=True, eq=False)
class Removals:
    """Which method names the training images that hold wrong predictions.

    Attributes:
        rows: a row per method and budget.
        draws: what the draws of each network say of themselves; :func:`pooled` ones have those of
            all runs, and the images below of the first alone.
        accuracy: on the pool, before anything is removed; mean over the networks.
        queries: the query images, shape (queries, 28, 28).
        labels, predicted: their true labels and what was predicted, shape (queries,).
        train: the training images, shape (train, 28, 28).
        train_labels: shape (train,).
        removed: what each method names, shape (queries, largest budget), most urgent first.
    """

    rows: tuple[RemovalRow, ...]
    draws: tuple[Draws, ...]
    accuracy: float
    queries: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    train: np.ndarray
    train_labels: np.ndarray
    removed: Mapping[str, np.ndarray]

    def row(self, method: str, budget: int) -> RemovalRow:
        """One of the rows.

        Raises:
            KeyError: there is none.
        """
        for row in self.rows:
            if (row.method, row.budget) == (method, budget):
                return row
        raise KeyError((method, budget))

    def difference(self, rival: str, budget: int, method: str = "kernel") -> Interval:
        """By how much more a method lowers the loss than a rival does, paired by query, nats."""
        one, other = (self.row(name, budget).drops for name in (method, rival))
        return mean_interval(np.subtract(one, other))

    def flip_difference(self, rival: str, budget: int, method: str = "kernel") -> Interval:
        """How many more predictions a method corrects than a rival does, a share, paired."""
        one, other = (self.row(name, budget).flips for name in (method, rival))
        return mean_interval(np.subtract(one, other, dtype=np.float64))

    def overlap(self, method: str, rival: str, budget: int) -> float:
        """Share of the removed images that two methods have in common."""
        pairs = zip(self.removed[method], self.removed[rival], strict=True)
        return float(
            np.mean([len(np.intersect1d(a[:budget], b[:budget])) / budget for a, b in pairs])
        )

    def numbers(self, prefix: str = "use_wrong") -> dict[str, float]:
        """All numbers, by the names under which a chapter records them.

        ``<prefix>_<method>_<budget>`` is the share of the predictions that become right,
        ``<prefix>_drop_<method>_<budget>`` the fall of the loss. ``<prefix>_over_<rival>_<budget>``
        is the fall by K less that by a rival, ``<prefix>_correlation_over_...`` the same for R.
        """
        found: dict[str, float] = {
            f"{prefix}_accuracy": self.accuracy,
            f"{prefix}_queries": len(self.rows[0].drops),
            f"{prefix}_networks": len(self.draws),
            **numbers_of(self.draws, prefix),
        }
        measured = {(row.method, row.budget) for row in self.rows}
        for row in self.rows:
            name = f"{row.method}_{row.budget}"
            found |= row.corrected.numbers(f"{prefix}_{name}")
            found |= row.drop.numbers(f"{prefix}_drop_{name}")
            found[f"{prefix}_accuracy_change_{name}"] = row.accuracy_change
            if row.method != "kernel":
                found |= self.difference(row.method, row.budget).numbers(f"{prefix}_over_{name}")
            if row.method != "correlation" and ("correlation", row.budget) in measured:
                gap = self.difference(row.method, row.budget, "correlation")
                found |= gap.numbers(f"{prefix}_correlation_over_{name}")
        return found


def remove_and_retrain(
    size: RemovalSize = RemovalSize(), *, data: str = "fashion", seed: int = 0
) -> Removals:
    """Remove what each method names, train again, and see whether wrong predictions become right.

    Args:
        size: of the problem.
        data: see :func:`probebook.leaks.load_images`.
        seed: of the images, the networks, the draws and of chance.

    Raises:
        ValueError: too few test images are predicted wrongly.
    """
    problem = _problem(data, size, seed)
    scores, draws = removal_scores(problem, size, seed)
    label = problem.asked[1]
    with torch.no_grad():
        before = torch.stack([network(problem.asked[0]) for network in problem.trained])
        right = [network(problem.pool[0]).argmax(-1) == problem.pool[1] for network in
                 problem.trained]  # fmt: skip
    accuracy = float(torch.stack(right).float().mean())
    loss_before = _losses(before, label)
    rows = []
    for method in METHODS:
        for budget in size.budgets:
            logits, after = _retrained(problem, size, named(scores[method], budget))
            drops = loss_before - _losses(torch.from_numpy(logits), label)
            flips = (_mean_prediction(torch.from_numpy(logits)) == label).numpy()
            rows.append(
                RemovalRow(
                    method, budget, mean_interval(drops), share_interval(flips),
                    float(after.mean()) - accuracy, tuple(map(float, drops)),
                    tuple(map(bool, flips)),
                )
            )  # fmt: skip
    return Removals(
        tuple(rows), draws, accuracy,
        problem.asked[0].view(-1, 28, 28).numpy(), label.numpy(), problem.predicted,
        problem.train[0].view(-1, 28, 28).numpy(), problem.train[1].numpy(),
        {method: named(scores[method], max(size.budgets)) for method in METHODS},
    )  # fmt: skip


def pooled(runs: Sequence[Removals]) -> Removals:
    """Several runs as one: the intervals are over the queries of all.

    Args:
        runs: of the same size, with different seeds.

    Returns:
        Rows and draws of all runs; the images and what was removed are those of the first.

    Raises:
        ValueError: there are none.
    """
    if not runs:
        raise ValueError("runs is empty; give at least one")
    rows = []
    for row in runs[0].rows:
        every = [run.row(row.method, row.budget) for run in runs]
        drops = tuple(drop for each in every for drop in each.drops)
        flips = tuple(flip for each in every for flip in each.flips)
        change = float(np.mean([each.accuracy_change for each in every]))
        intervals = mean_interval(drops), share_interval(np.array(flips))
        rows.append(RemovalRow(row.method, row.budget, *intervals, change, drops, flips))
    accuracy = float(np.mean([run.accuracy for run in runs]))
    draws = tuple(draw for run in runs for draw in run.draws)
    return replace(runs[0], rows=tuple(rows), draws=draws, accuracy=accuracy)


def over_training_sets(
    size: RemovalSize = RemovalSize(), *, data: str = "fashion", seeds: Sequence[int] = range(3)
) -> Removals:
    """:func:`remove_and_retrain` for several training sets, :func:`pooled`.

    Args:
        size: of each.
        data: see :func:`probebook.leaks.load_images`.
        seeds: one per training set.
    """
    return pooled([remove_and_retrain(size, data=data, seed=seed) for seed in seeds])


def _losses(logits: Tensor, label: Tensor) -> np.ndarray:
    """Cross entropy of each query, mean over the networks: (queries,) from (networks, ...)."""
    losses = [functional.cross_entropy(each, label, reduction="none") for each in logits]
    return torch.stack(losses).mean(0).double().numpy()
