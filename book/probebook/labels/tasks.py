"""Four small classification tasks: digits, clothes, tumours and the genres of texts.

Each seed draws its own samples, so that an interval over seeds is one over data, noise and
networks together.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from probebook.brown import brown_or_stand_in
from probebook.fashion import KINDS, fashion_or_mnist
from probebook.mnist import Mnist, load_mnist
from probelib.arguments import require_choice, require_whole

__all__ = ["TASKS", "Task", "load_task", "source_of"]

TASKS = ("mnist", "fashion", "tumours", "genres")
"""The tasks' names: MNIST, Fashion-MNIST, scikit-learn's breast cancer table, Brown's 15 genres."""

_PASSAGE = 400  # words of a text that make a sample
_TERMS = 1000  # words that are counted


@dataclass(frozen=True, eq=False)
class Task:
    """Inputs and true labels.

    Attributes:
        name: of :data:`TASKS`.
        x: training inputs, float32, shape (n, features).
        y: their true labels, shape (n,).
        test_x, test_y: as these, of samples that no network is trained on.
        classes: the names of the labels.
        source: where the data came from.
    """

    name: str
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]
    source: str


def load_task(name: str, n: int, seed: int, test: int = 2000) -> Task:
    """A task with ``n`` training samples that the seed draws without replacement.

    Args:
        name: of :data:`TASKS`.
        n: training samples; ``"tumours"`` has 569 samples and ``"genres"`` some 2,900 passages,
            for training and test together, and no more than two thirds are trained on.
        seed: which samples.
        test: test samples, at most.

    Raises:
        ValueError: another name.
    """
    name = require_choice("name", name, *TASKS)
    n, test = require_whole("n", n), require_whole("test", test)
    rng = np.random.default_rng([TASKS.index(name), seed])
    if name in ("mnist", "fashion"):
        return _images(name, n, test, rng)
    if name == "tumours":
        table = load_breast_cancer()
        features = (table.data - table.data.mean(0)) / table.data.std(0)
        parts = _split(features, table.target, n, test, rng)
        return Task(name, *parts, tuple(map(str, table.target_names)), "scikit-learn")
    features, labels, genres, source = _passages()
    return Task(name, *_split(features, labels, n, test, rng), genres, source)


def source_of(name: str) -> str:
    """Where a task's data come from here; a stand-in has another source than the data themselves.

    Raises:
        ValueError: another name.
    """
    return load_task(name, 2, 0, 2).source


def _images(name: str, n: int, test: int, rng: np.random.Generator) -> Task:
    """Images of the training set and of the test set, flat, in [0, 1]."""
    train, held = _image_sets(name)

    def some(data: Mnist, count: int) -> tuple[Tensor, Tensor]:
        at = torch.from_numpy(rng.choice(len(data.labels), min(count, len(data.labels)), False))
        return data.images[at].flatten(1).float() / 255, data.labels[at]

    classes = KINDS if train.source == "Fashion-MNIST" else tuple(map(str, range(10)))
    return Task(name, *some(train, n), *some(held, test), classes, train.source)


@functools.cache
def _image_sets(name: str) -> tuple[Mnist, Mnist]:
    if name == "fashion":
        return fashion_or_mnist()
    return load_mnist("train"), load_mnist("test")


@functools.cache
def _passages() -> tuple[np.ndarray, np.ndarray, tuple[str, ...], str]:
    """TF-IDF of passages of Brown, their genre's number, the genres, and the source.

    The vocabulary is that of all passages, test ones included; no label enters it. Rows are scaled
    to a mean square of 1 per word counted: as they come their norm is 1, and a network with weights
    of the usual size would not feel them.
    """
    brown = brown_or_stand_in()
    genres = tuple(sorted({document.genre for document in brown.documents}))
    texts, labels = [], []
    for document in brown.documents:
        words = document.text.split()
        for start in range(0, max(len(words) - _PASSAGE // 2, 1), _PASSAGE):
            texts.append(" ".join(words[start : start + _PASSAGE]))
            labels.append(genres.index(document.genre))
    counted = TfidfVectorizer(max_features=_TERMS, sublinear_tf=True).fit_transform(texts)
    features = np.asarray(counted.todense())
    return features * np.sqrt(features.shape[1]), np.array(labels), genres, brown.source


def _split(
    features: np.ndarray, labels: np.ndarray, n: int, test: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test samples of one table, at random."""
    order = rng.permutation(len(labels))
    n = min(n, 2 * len(labels) // 3)
    parts = order[:n], order[n : n + test]
    found: list[Tensor] = []
    for part in parts:
        found += [torch.from_numpy(features[part]).float(), torch.from_numpy(labels[part]).long()]
    return found[0], found[1], found[2], found[3]
