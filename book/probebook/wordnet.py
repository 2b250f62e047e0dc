"""The 1,000 classes of ILSVRC-2012, and how near two of them are in WordNet.

The table comes with the package: the standard order of the classes, their labels, and each one's
path of hypernyms in WordNet 3.0 (Copyright 2006 by Princeton University; see ``data/NOTICE``).
WordNet lets a synset have several hypernyms. The table holds the first of each, which makes the
hierarchy a tree.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np

__all__ = ["ImageNetClass", "imagenet_classes", "wu_palmer"]


@dataclass(frozen=True)
class ImageNetClass:
    """One class of ILSVRC-2012.

    Attributes:
        index: 0..999, the output of a network that was trained in the standard order.
        wnid: the WordNet identifier, for example ``"n01440764"``.
        label: all synonyms, for example ``"tench, Tinca tinca"``.
        path: nodes ``"nOFFSET:lemma"`` from ``entity`` down to the class itself.
    """

    index: int
    wnid: str
    label: str
    path: tuple[str, ...]

    @property
    def name(self) -> str:
        """The first synonym; not unique, for a crane is a bird and a machine."""
        return self.label.split(",")[0].strip()


def imagenet_classes() -> list[ImageNetClass]:
    """The 1,000 classes in the standard order, so that ``[i].index == i``."""
    return list(_classes())


@cache
def _classes() -> tuple[ImageNetClass, ...]:
    table = files("probebook") / "data" / "imagenet_classes.csv"
    with table.open(encoding="utf-8", newline="") as file:
        return tuple(
            ImageNetClass(
                int(row["index"]),
                row["wnid"],
                row["label"],
                tuple(row["hypernym_path"].split(" > ")),
            )
            for row in csv.DictReader(file)
        )


def wu_palmer(paths: Sequence[Sequence[str]]) -> np.ndarray:
    """Wu and Palmer's similarity of all pairs of nodes of one tree.

    With the depth counted in nodes, so that the root's is 1, and the lowest common ancestor the
    end of the longest common prefix of two paths,

        s(a, b) = 2 depth(ancestor(a, b)) / (depth(a) + depth(b)).

    Wu and Palmer, *Verb semantics and lexical selection*, ACL 1994.

    Args:
        paths: k sequences of node names, each from the root down to the node.

    Returns:
        float64 ``(k, k)``, symmetric, in (0, 1], with 1 on the diagonal.

    Raises:
        ValueError: there is no path, a path is empty or a string, or not all begin at one root.
    """
    if len(paths) == 0:
        raise ValueError("paths is empty; give at least one path")
    for i, path in enumerate(paths):
        if isinstance(path, str):
            raise ValueError(f"paths[{i}] is the string {path!r}; give a sequence of node names")
        if len(path) == 0:
            raise ValueError(f"paths[{i}] is empty; a path holds at least the root")
        if path[0] != paths[0][0]:
            raise ValueError(
                f"paths[{i}] begins at {path[0]!r} and paths[0] at {paths[0][0]!r}; "
                "give paths of one tree, each from its root down"
            )
    depth = np.array([len(path) for path in paths])
    common = np.zeros((len(paths), len(paths)))
    prefixes = [0] * len(paths)
    for level in range(depth.max()):
        # Two paths agree down to this level where the numbers of their prefixes are equal. A path
        # that has ended gets a number of its own.
        numbers: dict[tuple[int, str], int] = {}
        for i, path in enumerate(paths):
            if level < len(path):
                prefixes[i] = numbers.setdefault((prefixes[i], path[level]), len(numbers))
            else:
                prefixes[i] = -1 - i
        number = np.array(prefixes)
        common += (number[:, None] == number) & (number >= 0)
    return 2 * common / (depth[:, None] + depth)
