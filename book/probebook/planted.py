r"""Networks whose mechanisms were planted, so that it is known which samples rely on the same one.

A sample names a *task* in some of its inputs. The task tells the network which *block* of two
other inputs decides the label: on which side of a line :math:`t_m^\top z_m = 0` the block lies.
Several tasks share a block, the *mechanism*. All blocks are noise of equal size, so two samples of
different tasks are no closer in input space if they share their mechanism. A *style* shifts other
inputs, which decide nothing, and is most of what makes two inputs similar. Labels are balanced
within every mechanism.

The question is whether a similarity of samples, taken from the trained network, finds the pairs
that share a mechanism.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score
from torch import Tensor

import probelib
from probebook import alignment as al
from probebook.models import MLP
from probebook.similarities import (
    Draws,
    Interval,
    drawn,
    mean_interval,
    numbers_of,
    rival_features,
    settled,
)
from probebook.small_networks import train_network
from probelib.arguments import require_whole
from probelib.influence import gradient_gram

__all__ = [
    "DEEP",
    "PAIRS",
    "WIDE",
    "Design",
    "Planted",
    "Recovery",
    "auroc",
    "measure",
    "planted_network",
    "recovered",
    "similarity_matrices",
]

PAIRS = ("all", "other_task", "same_label", "other_label")
"""Pairs that are scored: all; those of different tasks; of these, by whether labels are equal."""


@dataclass(frozen=True)
class Design:
    """A planted problem and the network that learns it.

    Attributes:
        hidden: width of each hidden layer.
        tasks: how many, a multiple of ``mechanisms``.
        mechanisms: blocks of inputs that decide labels.
        cue: size of the input that names the task.
        style: size of the shift that a style gives.
        noise: standard deviation of the noise of cues and styles.
        flipped: share of the labels that are wrong.
        samples: in the training set.
        observed: of them, the first, whose similarities are taken.
        epochs: of training.
    """

    hidden: tuple[int, ...] = (64,)
    tasks: int = 6
    mechanisms: int = 3
    cue: float = 2.0
    style: float = 3.0
    noise: float = 0.3
    flipped: float = 0.02
    samples: int = 3000
    observed: int = 300
    epochs: int = 30

    def __post_init__(self) -> None:
        for name in ("tasks", "mechanisms", "samples", "observed", "epochs"):
            require_whole(name, getattr(self, name))
        if self.mechanisms < 2 or self.tasks % self.mechanisms or self.tasks == self.mechanisms:
            raise ValueError(
                f"tasks is {self.tasks} and mechanisms {self.mechanisms}; give two mechanisms or "
                "more, and twice as many tasks, three times as many, ..."
            )
        if not 4 * self.tasks <= self.observed <= self.samples:
            raise ValueError(
                f"observed is {self.observed}; choose from {4 * self.tasks} to {self.samples}"
            )


WIDE = Design(hidden=(64,))
"""One hidden layer: the mechanism shows in the last hidden layer, for it is the only one."""

DEEP = Design(hidden=(32, 32, 32))
"""Three hidden layers, the last of which knows little but the label."""


@dataclass(frozen=True, eq=False)
class Planted:
    """A trained network and what was planted in its data.

    Attributes:
        inputs: shape (n, features).
        labels: 0 or 1, shape (n,).
        task, mechanism, style: of each sample, shape (n,).
        network: trained on them.
        accuracy, test_accuracy: on them, and on as many new samples.
    """

    inputs: Tensor
    labels: Tensor
    task: np.ndarray
    mechanism: np.ndarray
    style: np.ndarray
    network: MLP
    accuracy: float
    test_accuracy: float


def planted_network(design: Design = WIDE, seed: int = 0) -> Planted:
    """Make a planted problem and train a network on it.

    Args:
        design: of the problem and the network.
        seed: of the teacher, the samples, the initial weights and the order of training.
    """
    require_whole("seed", seed, 0)
    rng = np.random.default_rng([seed, *b"planted"])
    count, block, directions, styles = design.mechanisms, 2, 10, 5
    lines = rng.normal(size=(count, block))
    lines /= np.linalg.norm(lines, axis=1, keepdims=True)
    shifts = rng.normal(size=(styles, directions))
    shifts *= design.style / np.linalg.norm(shifts, axis=1, keepdims=True)

    def samples(n: int) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
        each, task = np.arange(n), rng.permutation(np.arange(n) % design.tasks)
        style = rng.integers(styles, size=n)
        cue = design.noise * rng.normal(size=(n, design.tasks))
        cue[each, task] += design.cue
        blocks = rng.normal(size=(n, count, block))
        score = (blocks[each, task % count] * lines[task % count]).sum(1)
        label = (score > 0) ^ (rng.random(n) < design.flipped)
        shift = shifts[style] + design.noise * rng.normal(size=(n, directions))
        x = np.c_[cue, blocks.reshape(n, -1), shift]
        return torch.from_numpy(x).float(), torch.from_numpy(label.astype(int)), task, style

    x, y, task, style = samples(design.samples)
    network = train_network(design.hidden, (x, y), classes=2, seed=seed, epochs=design.epochs)
    with torch.no_grad():
        right = [
            float((network(a).argmax(1) == b).float().mean())
            for a, b in ((x, y), samples(design.samples)[:2])
        ]
    return Planted(x, y, task, task % count, style, network, *right)


def similarity_matrices(
    planted: Planted, observed: int, *, chains: int = 32, seed: int = 0
) -> tuple[dict[str, np.ndarray], Draws]:
    """The kernel and its rivals over the first samples, by the name of the method.

    Args:
        planted: the network and its data.
        observed: how many samples.
        chains: walks of :func:`probelib.gradient_pairs`, each of two pairs.
        seed: of them.

    Returns:
        Matrices (observed, observed): ``kernel`` (R), ``covariance`` (K), cosines of
        ``gradients`` at w* and of :func:`probebook.similarities.rival_features`; and what the draws
        say of themselves.
    """
    data = planted.inputs, planted.labels
    some = tuple(part[:observed] for part in data)
    # So few draws bear an error only where their weights are nearly equal.
    posterior = settled(planted.network, data, spread=0.3, seed=seed)
    pairs = probelib.gradient_pairs(
        posterior, some, chains=chains, pairs=2, batch_size=256, seed=seed, progress=False
    )
    kernel = probelib.pair_kernel(pairs)
    found = {"kernel": kernel.correlation(), "covariance": kernel.covariance()}
    found["gradients"] = gradient_gram(posterior, some)[0]
    rivals = rival_features(planted.network, some[0], observed)
    found |= {name: al.cosine(rows) for name, rows in rivals.items()}
    return found, drawn(posterior, pairs)


def auroc(score: np.ndarray, flagged: np.ndarray) -> float:
    """The chance that a flagged entry scores above another, ties counted half.

    Args:
        score, flagged: shape (n,).

    Raises:
        ValueError: all are flagged, or none.
    """
    flagged = np.asarray(flagged, bool)
    ones, zeros = int(flagged.sum()), int((~flagged).sum())
    if not ones or not zeros:
        raise ValueError(f"flagged marks {ones} of {len(flagged)}; both kinds are needed")
    return float(roc_auc_score(flagged, rankdata(score)))  # of ranks: a score may be infinite


def recovered(
    similarity: np.ndarray, mechanism: np.ndarray, task: np.ndarray, label: np.ndarray
) -> dict[tuple[str, bool], float]:
    """How well a similarity finds the pairs i < j that share a mechanism.

    Args:
        similarity: shape (n, n), symmetric.
        mechanism, task, label: of each sample, shape (n,).

    Returns:
        AUROC by (one of :data:`PAIRS`, whether the size alone counts and not the sign).
    """
    at = np.triu_indices(len(similarity), 1)
    other_task = task[at[0]] != task[at[1]]
    same_label = label[at[0]] == label[at[1]]
    chosen = {
        "all": np.ones(len(at[0]), bool),
        "other_task": other_task,
        "same_label": other_task & same_label,
        "other_label": other_task & ~same_label,
    }
    same, score = mechanism[at[0]] == mechanism[at[1]], similarity[at]
    return {
        (pairs, size): auroc((np.abs(score) if size else score)[part], same[part])
        for pairs, part in chosen.items()
        for size in (False, True)
    }


@dataclass(frozen=True)
class Row:
    """How well one method finds shared mechanisms.

    Attributes:
        method: such as ``kernel``.
        pairs: which pairs are scored, one of :data:`PAIRS`.
        size: whether pairs are scored by the size of the similarity, without its sign.
        auroc: mean over the seeds, and its interval.
        by_seed: that of each seed.
    """

    method: str
    pairs: str
    size: bool
    auroc: Interval
    by_seed: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Recovery:
    """How well the kernel and its rivals find planted mechanisms.

    Attributes:
        design: what was planted.
        rows: a row per method, kind of pairs, and with or without sign.
        accuracy, test_accuracy: mean over the seeds.
        draws: what the draws of each seed say of themselves.
        matrices: similarities of the first seed by method, rows and columns by mechanism, then
            task, then label.
        mechanism, task, label: of these rows, shape (observed,).
    """

    design: Design
    rows: tuple[Row, ...]
    accuracy: float
    test_accuracy: float
    draws: tuple[Draws, ...]
    matrices: Mapping[str, np.ndarray]
    mechanism: np.ndarray
    task: np.ndarray
    label: np.ndarray

    def row(self, method: str, pairs: str = "other_task", size: bool = False) -> Row:
        """One of the rows.

        Raises:
            KeyError: there is none.
        """
        for row in self.rows:
            if (row.method, row.pairs, row.size) == (method, pairs, size):
                return row
        raise KeyError((method, pairs, size))

    def numbers(self, prefix: str = "planted_recovery") -> dict[str, float]:
        """All numbers, by the names under which a chapter records them.

        ``<prefix>_auroc`` is the kernel's, over pairs of different tasks and with its sign; other
        methods, kinds of pairs and ``size`` (without sign) are appended, in this order.
        """
        found = {
            f"{prefix}_accuracy": self.accuracy,
            f"{prefix}_test_accuracy": self.test_accuracy,
            f"{prefix}_seeds": len(self.draws),
            **numbers_of(self.draws, prefix),
        }
        for row in self.rows:
            name = f"{prefix}_auroc"
            name += "" if row.method == "kernel" else f"_{row.method}"
            name += "" if row.pairs == "other_task" else f"_{row.pairs}"
            found |= row.auroc.numbers(name + ("_size" if row.size else ""))
        return found


def measure(
    design: Design = WIDE, *, seeds: Sequence[int] = range(5), chains: int = 32
) -> Recovery:
    """Plant, train and score, for several seeds.

    Args:
        design: what is planted.
        seeds: of the problem, the network and the walks.
        chains: walks of :func:`probelib.gradient_pairs` per seed.

    Raises:
        ValueError: no seed is given.
    """
    if not len(seeds):
        raise ValueError("seeds is empty; give at least one")
    scores: dict[tuple[str, str, bool], list[float]] = {}
    trained, draws, first = [], [], None
    for seed in seeds:
        planted = planted_network(design, seed)
        matrices, verdict = similarity_matrices(planted, design.observed, chains=chains, seed=seed)
        label = planted.labels.numpy()[: design.observed]
        task, mechanism = (v[: design.observed] for v in (planted.task, planted.mechanism))
        for method, matrix in matrices.items():
            for (pairs, size), value in recovered(matrix, mechanism, task, label).items():
                scores.setdefault((method, pairs, size), []).append(value)
        trained.append((planted.accuracy, planted.test_accuracy))
        draws.append(verdict)
        if first is None:
            order = np.lexsort((label, task, mechanism))
            ordered = {name: matrix[np.ix_(order, order)] for name, matrix in matrices.items()}
            first = ordered, mechanism[order], task[order], label[order]
    rows = tuple(Row(*key, mean_interval(values), tuple(values)) for key, values in scores.items())
    accuracy, test_accuracy = map(float, np.mean(trained, 0))
    return Recovery(design, rows, accuracy, test_accuracy, tuple(draws), *first)
