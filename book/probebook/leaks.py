"""A use of the kernel's neighbours: test images that are copies of training images.

Some test images are replaced by copies of training images, each a little changed. Whoever looks
for leaks takes the nearest training image of every test image, by some similarity. Two numbers
say how good the similarity is: how often the nearest one of a copy is the image that it was made
from, and how well the similarity of the nearest one tells copies from honest test images.

The loss kernel knows the test images' labels, which features and pixels do not need. So every
method also looks among the training images of the test image's label only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import probelib
from probebook import alignment as al
from probebook.fashion import fashion_or_mnist
from probebook.mnist import Mnist, load_mnist
from probebook.planted import auroc
from probebook.similarities import (
    Draws,
    Interval,
    drawn,
    gradient_products,
    mean_interval,
    numbers_of,
    rival_features,
    settled,
)
from probebook.small_networks import train_network
from probelib.arguments import require_whole

__all__ = [
    "CHANGES",
    "LeakProblem",
    "LeakSearch",
    "LeakSize",
    "changed",
    "leak_problem",
    "leak_scores",
    "leak_similarities",
    "load_images",
    "search_leaks",
]

CHANGES = ("shift", "rotation", "brightness", "noise")
"""What is done to a copy, in turn."""


def load_images(name: str = "fashion") -> tuple[Mnist, Mnist]:
    """Training and test set: ``"fashion"`` (MNIST where it cannot be had) or ``"mnist"``.

    Raises:
        ValueError: another name.
    """
    if name == "fashion":
        return fashion_or_mnist()
    if name == "mnist":
        return load_mnist("train"), load_mnist("test")
    raise ValueError(f'name must be "fashion" or "mnist", got {name!r}')


@dataclass(frozen=True)
class LeakSize:
    """How much of it.

    Attributes:
        train: training images.
        honest: test images that are no copies.
        leaks: test images that are copies, of different training images.
        hidden: width of each hidden layer of the network.
        epochs: of its training.
        draws: weighted draws that estimate the kernel.
    """

    train: int = 2000
    honest: int = 400
    leaks: int = 100
    hidden: tuple[int, ...] = (64,)
    epochs: int = 40
    draws: int = 600

    def __post_init__(self) -> None:
        for name in ("train", "honest", "leaks", "epochs", "draws"):
            require_whole(name, getattr(self, name))
        if self.leaks > self.train:
            raise ValueError(
                f"leaks is {self.leaks}, more than the {self.train} training images; each is a "
                "copy of another one"
            )


def changed(images: Tensor, kind: str, rng: np.random.Generator) -> Tensor:
    """Copies of images, a little changed.

    Args:
        images: in [0, 1], shape (n, height, width).
        kind: one of :data:`CHANGES`: a shift by one or two pixels along either axis, a rotation by
            5 to 15 degrees, a brightness of 0.6 to 0.9, or noise of 0.1 on every pixel.
        rng: how much, and which way, for each image.

    Raises:
        ValueError: another kind.
    """
    n = len(images)
    sign = lambda *shape: rng.choice([-1, 1], shape)  # noqa: E731
    if kind == "shift":
        steps = sign(n, 2) * rng.integers(1, 3, size=(n, 2))
        return torch.stack(
            [_shifted(image, *map(int, by)) for image, by in zip(images, steps, strict=True)]
        )
    if kind == "rotation":
        angle = torch.from_numpy(np.deg2rad(rng.uniform(5, 15, n) * sign(n))).float()
        turn = torch.zeros(n, 2, 3)
        turn[:, 0, 0] = turn[:, 1, 1] = angle.cos()
        turn[:, 0, 1], turn[:, 1, 0] = -angle.sin(), angle.sin()
        grid = functional.affine_grid(turn, [n, 1, *images.shape[1:]], align_corners=False)
        return functional.grid_sample(images[:, None], grid, align_corners=False)[:, 0]
    if kind == "brightness":
        return images * torch.from_numpy(rng.uniform(0.6, 0.9, (n, 1, 1))).float()
    if kind == "noise":
        noise = torch.from_numpy(rng.normal(0, 0.1, images.shape)).float()
        return (images + noise).clamp(0, 1)
    raise ValueError(f"kind must be one of {', '.join(CHANGES)}; got {kind!r}")


def _shifted(image: Tensor, down: int, right: int) -> Tensor:
    """An image moved by whole pixels; what comes in is 0."""
    height, width = image.shape
    margin = max(abs(down), abs(right))
    wide = functional.pad(image, [margin] * 4)
    top, left = margin - down, margin - right
    return wide[top : top + height, left : left + width]


@dataclass(frozen=True, eq=False)
class LeakProblem:
    """Training images, and test images of which some are copies.

    Attributes:
        train, test: inputs in [0, 1], shape (n, height, width).
        train_labels, test_labels: shape (n,).
        source: the training image that a test image is a copy of, -1 for none, shape (n_test,).
        change: place in :data:`CHANGES` of what was done to it, -1 for honest ones.
        train_at, test_at: positions in the data sets; -1 for copies.
    """

    train: Tensor
    test: Tensor
    train_labels: Tensor
    test_labels: Tensor
    source: np.ndarray
    change: np.ndarray
    train_at: np.ndarray
    test_at: np.ndarray


def leak_problem(images: tuple[Mnist, Mnist], size: LeakSize, seed: int) -> LeakProblem:
    """Choose images at random, and plant the copies, which come first among the test images.

    Args:
        images: training and test set.
        size: how many.
        seed: of the choice and of the changes.

    Raises:
        ValueError: the sets have fewer images.
    """
    whole, others = images
    for name, wanted, there in (("train", size.train, whole), ("honest", size.honest, others)):
        if wanted > len(there):
            raise ValueError(f"{name} is {wanted}, but there are {len(there)} images")
    rng = np.random.default_rng([seed, *b"leaks"])
    train_at = rng.choice(len(whole), size.train, replace=False)
    honest_at = rng.choice(len(others), size.honest, replace=False)
    source = rng.choice(size.train, size.leaks, replace=False)
    change = np.arange(size.leaks) % len(CHANGES)
    train = whole.images[train_at].float() / 255
    copies = torch.empty(size.leaks, *train.shape[1:])
    for at, kind in enumerate(CHANGES):
        copies[change == at] = changed(train[source[change == at]], kind, rng)
    none = np.full(size.honest, -1)
    train_labels = whole.labels[train_at]
    return LeakProblem(
        train,
        torch.cat([copies, others.images[honest_at].float() / 255]),
        train_labels,
        torch.cat([train_labels[source], others.labels[honest_at]]),
        np.concatenate([source, none]),
        np.concatenate([change, none]),
        train_at,
        np.concatenate([np.full(size.leaks, -1), honest_at]),
    )


def leak_similarities(
    problem: LeakProblem, size: LeakSize, seed: int
) -> tuple[dict[str, np.ndarray], Draws, float]:
    """Train a network, and compare every test image with every training image.

    Args:
        problem: the images.
        size: of the network and the kernel.
        seed: of the network and the draws.

    Returns:
        Arrays (n_test, n_train) by method: ``kernel`` (R), ``covariance`` (K), cosines of
        ``gradients`` at w* and of :func:`probebook.similarities.rival_features`, and ``pixels``
        (minus the distance); what the draws say of themselves; and the share of the honest test
        images that the network gets right.
    """
    train = problem.train.flatten(1), problem.train_labels
    test = problem.test.flatten(1), problem.test_labels
    network = train_network(size.hidden, train, classes=10, seed=seed, epochs=size.epochs)
    posterior = settled(network, train, seed=seed)
    both = tuple(torch.cat(pair) for pair in zip(train, test, strict=True))
    trace = probelib.importance_sample(
        posterior, size.draws, observe=both, seed=seed, progress=False
    )
    kernel, n = probelib.loss_kernel(trace), size.train
    rows, cols = np.arange(n, len(both[1])), np.arange(n)
    found = {
        "kernel": kernel.correlation(rows, cols),
        "covariance": kernel.covariance(rows, cols),
        "gradients": gradient_products(posterior, test, train)[1],
        "pixels": -torch.cdist(test[0], train[0]).numpy(),
    }
    for name, rows_of in rival_features(network, both[0], n).items():
        found[name] = al.cosine(rows_of[n:], rows_of[:n])
    with torch.no_grad():
        right = (network(test[0]).argmax(1) == test[1]).numpy()
    return found, drawn(posterior, trace), float(right[problem.source < 0].mean())


def leak_scores(
    similarity: np.ndarray, source: np.ndarray, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """Whether the nearest training image is the source, and how well its similarity tells copies.

    Args:
        similarity: shape (n_test, n_train).
        source: the training image each test image is a copy of, -1 for none, shape (n_test,).
        allowed: which training images are looked at, boolean (n_test, n_train); default: all.

    Returns:
        For every copy whether its source is the nearest (of several equally near ones the first
        counts), boolean; and the AUROC of the largest similarity, copies against others.
    """
    scores = similarity if allowed is None else np.where(allowed, similarity, -np.inf)
    copies = source >= 0
    found = scores[copies].argmax(1) == source[copies]
    return found, auroc(scores.max(1), copies)


@dataclass(frozen=True)
class LeakRow:
    """How well one method finds the copies.

    Attributes:
        method: such as ``kernel``.
        same_label: whether only training images of the test image's label are looked at.
        recall: share of the copies whose source is found first; mean over the seeds.
        auroc: of the nearest one's similarity, copies against honest test images.
        by_change: the recall by what was done to the copy, mean over the seeds.
        recalls, aurocs: of each seed.
    """

    method: str
    same_label: bool
    recall: Interval
    auroc: Interval
    by_change: Mapping[str, float]
    recalls: tuple[float, ...]
    aurocs: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class LeakSearch:
    """How well the kernel and its rivals find copies of training images among test images.

    Attributes:
        rows: a row per method, and with or without labels.
        draws: what the draws of each seed say of themselves.
        accuracy: share of honest test images that the networks get right, mean over the seeds.
        problem: that of the first seed.
        similarities: of the first seed by method, shape (n_test, n_train).
    """

    rows: tuple[LeakRow, ...]
    draws: tuple[Draws, ...]
    accuracy: float
    problem: LeakProblem
    similarities: Mapping[str, np.ndarray]

    def row(self, method: str, same_label: bool = False) -> LeakRow:
        """One of the rows.

        Raises:
            KeyError: there is none.
        """
        for row in self.rows:
            if (row.method, row.same_label) == (method, same_label):
                return row
        raise KeyError((method, same_label))

    def difference(self, rival: str, same_label: bool = False, method: str = "kernel") -> Interval:
        """Recall of a method less that of a rival, paired by seed; both with labels or without."""
        one, other = (self.row(name, same_label).recalls for name in (method, rival))
        return mean_interval(np.subtract(one, other))

    def closest(self, method: str = "kernel", k: int = 6) -> np.ndarray:
        """The pairs (test, train) of real images that a method finds nearest, best first.

        Copies are left out, and no test or training image comes twice.

        Returns:
            Positions in ``problem.test`` and ``problem.train``, shape (at most k, 2).
        """
        scores = self.similarities[method].copy()
        scores[self.problem.source >= 0] = -np.inf
        pairs: list[tuple[int, int]] = []
        while len(pairs) < k and np.isfinite(scores.max()):
            at = np.unravel_index(scores.argmax(), scores.shape)
            pairs.append((int(at[0]), int(at[1])))
            scores[at[0]], scores[:, at[1]] = -np.inf, -np.inf
        return np.array(pairs).reshape(-1, 2)

    def numbers(self, prefix: str = "use_leaks") -> dict[str, float]:
        """All numbers, by the names under which a chapter records them.

        ``<prefix>_<method>`` is the recall, ``<prefix>_auroc_<method>`` the AUROC; ``_label`` is
        appended where only training images of the same label are looked at.
        """
        found: dict[str, float] = {
            f"{prefix}_accuracy": self.accuracy,
            f"{prefix}_seeds": len(self.draws),
            **numbers_of(self.draws, prefix),
        }
        for row in self.rows:
            name = row.method + ("_label" if row.same_label else "")
            found |= row.recall.numbers(f"{prefix}_{name}")
            found |= row.auroc.numbers(f"{prefix}_auroc_{name}")
            for change, share in row.by_change.items():
                found[f"{prefix}_{name}_{change}"] = share
        return found


def search_leaks(
    size: LeakSize = LeakSize(),
    *,
    data: str = "fashion",
    seeds: Sequence[int] = range(5),
) -> LeakSearch:
    """Plant copies and look for them, for several seeds.

    Args:
        size: of the problem, the network and the kernel.
        data: see :func:`load_images`.
        seeds: of the images, the copies, the network and the draws.

    Raises:
        ValueError: no seed is given.
    """
    if not len(seeds):
        raise ValueError("seeds is empty; give at least one")
    images = load_images(data)
    kept: dict[tuple[str, bool], list[tuple[np.ndarray, float]]] = {}
    draws, accuracies, first, change = [], [], None, None
    for seed in seeds:
        problem = leak_problem(images, size, seed)
        similarities, verdict, accuracy = leak_similarities(problem, size, seed)
        allowed = (problem.test_labels[:, None] == problem.train_labels).numpy()
        for method, matrix in similarities.items():
            for same_label in (False, True):
                scores = leak_scores(matrix, problem.source, allowed if same_label else None)
                kept.setdefault((method, same_label), []).append(scores)
        draws.append(verdict)
        accuracies.append(accuracy)
        first = first or (problem, similarities)
        change = problem.change[problem.source >= 0]  # the same for every seed
    rows = tuple(_row(*key, found, change) for key, found in kept.items())
    return LeakSearch(rows, tuple(draws), float(np.mean(accuracies)), *first)


def _row(
    method: str, same_label: bool, found: list[tuple[np.ndarray, float]], change: np.ndarray
) -> LeakRow:
    """A row from the scores of all seeds."""
    hits = np.stack([hit for hit, _ in found])
    recalls, aurocs = hits.mean(1), [value for _, value in found]
    by_change = {
        kind: float(hits[:, change == at].mean())
        for at, kind in enumerate(CHANGES)
        if (change == at).any()
    }
    return LeakRow(
        method, same_label, mean_interval(recalls), mean_interval(aurocs), by_change,
        tuple(map(float, recalls)), tuple(aurocs),
    )  # fmt: skip
