"""Closing the loop: inspect the labels that a score suspects, repair them, train again, and test.

An oracle is shown the k most suspicious samples by each score. Where the label is wrong, it gives
the true one (or the sample is dropped). A network is then trained from scratch, from the same
initial weights and in the same order for every score, so that scores are compared in pairs. Beside
the scores stand random inspection, and the ideal that knows which labels are wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probebook.similarities import Interval, mean_interval
from probebook.small_networks import initial_network, train_stack
from probelib.arguments import require_kind, require_whole

__all__ = [
    "FIXES",
    "IDEAL",
    "NOTHING",
    "RANDOM",
    "SHARES",
    "LabelProblem",
    "Train",
    "accuracy_gained",
    "close_the_loop",
    "gained_difference",
    "gained_numbers",
    "inspection_order",
    "repaired",
    "side_by_side",
]

SHARES = (0.025, 0.05, 0.1, 0.2)
"""Shares of the training samples that are inspected."""

FIXES = ("relabel", "drop")
"""What happens to a label that the oracle finds wrong: it is replaced, or its sample left out."""

NOTHING, RANDOM, IDEAL = "nothing", "random", "ideal"
"""Names that stand beside the scores: no inspection; by chance; the wrong ones first."""

Train = Callable[[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]], np.ndarray]
"""Trains a network from scratch for every row of labels: given inputs (n, ...), labels (rows, n),
which samples are kept (rows, n), and a test set, the test accuracy of each row, shape (rows,)."""


@dataclass(frozen=True, eq=False)
class LabelProblem:
    """Training samples with some wrong labels, and a clean test set.

    Attributes:
        inputs: of the training samples, shape (n, features).
        given: the labels that they came with, shape (n,).
        true: those that the oracle knows, shape (n,).
        test: inputs and true labels.
    """

    inputs: Tensor
    given: Tensor
    true: Tensor
    test: tuple[Tensor, Tensor]

    def __post_init__(self) -> None:
        tensors = {"inputs": self.inputs, "given": self.given, "true": self.true}
        tensors |= {f"test[{at}]": part for at, part in enumerate(self.test)}
        for name, value in tensors.items():
            require_kind(name, value, Tensor, "a tensor")
        n = len(self.inputs)
        for name in ("given", "true"):
            labels = getattr(self, name)
            if labels.shape != (n,) or labels.is_floating_point():
                raise ValueError(
                    f"{name} has shape {tuple(labels.shape)} and type {labels.dtype}; give whole "
                    f"numbers, shape ({n},), one per input"
                )
            if bool((labels < 0).any()):
                raise ValueError(
                    f"{name} has the label {int(labels.min())}; a label is 0 or more (torch's loss "
                    "passes over -100)"
                )
        if not len(self.test[1]) or len(self.test[0]) != len(self.test[1]):
            raise ValueError(
                f"test has {len(self.test[0])} inputs and {len(self.test[1])} labels; give one "
                "label per input, and some of them"
            )
        for name, inputs in (("inputs", self.inputs), ("test", self.test[0])):
            if not bool(inputs.isfinite().all()):
                raise ValueError(f"{name} has inputs that are not finite; repair or remove them")

    @property
    def wrong(self) -> np.ndarray:
        """Which of the given labels are wrong, boolean, shape (n,)."""
        return (self.given != self.true).numpy()


def side_by_side(
    *,
    hidden: int = 128,
    classes: int = 10,
    epochs: int = 20,
    networks: int = 1,
    seed: int = 0,
    together: int = 40,
) -> Train:
    """A training function: small networks in stacks (:func:`probebook.small_networks.train_stack`).

    Args:
        hidden: units of the hidden layer.
        classes: outputs.
        epochs: of training.
        networks: initial weights; the accuracy of a row is the mean over them.
        seed: of the initial weights, which are the same for all rows.
        together: networks that are trained side by side.
    """
    for name, value in (("networks", networks), ("together", together)):
        require_whole(name, value)
    seeds = np.random.SeedSequence(require_whole("seed", seed, 0)).generate_state(networks)

    def train(
        inputs: Tensor, labels: Tensor, keep: Tensor, test: tuple[Tensor, Tensor]
    ) -> np.ndarray:
        x, features = inputs.flatten(1), inputs[0].numel()
        if int(labels.max()) >= classes:
            raise ValueError(
                f"classes is {classes}, but there is the label {int(labels.max())}; raise it"
            )
        start = [initial_network((hidden,), features, classes, int(each)) for each in seeds]
        every = np.arange(len(labels) * networks)
        accuracy = np.empty(len(every))
        for first in range(0, len(every), together):
            row, own = np.divmod(every[first : first + together], networks)
            stack = train_stack([start[at] for at in own], (x, labels[row]), keep[row],
                                epochs=epochs)  # fmt: skip
            accuracy[first : first + together] = _accuracies(stack, test)
        return accuracy.reshape(-1, networks).mean(1)

    return train


@torch.no_grad()
def _accuracies(stack: Callable[[Tensor], Tensor], test: tuple[Tensor, Tensor]) -> np.ndarray:
    """The share of the test set that each network gets right."""
    parts = zip(test[0].flatten(1).split(1000), test[1].split(1000), strict=True)
    right = sum((stack(x).argmax(-1) == y).sum(1) for x, y in parts)
    return right.double().numpy() / len(test[1])


def inspection_order(score: np.ndarray, seed: int = 0) -> np.ndarray:
    """Samples by falling suspicion; equal ones in an order that the seed alone decides.

    Args:
        score: high is suspicious, shape (n,); it may be infinite.
        seed: of the order among equal ones, the same for all scores.

    Raises:
        ValueError: a score is NaN.
    """
    score = np.asarray(score, np.float64)
    if score.ndim != 1 or np.isnan(score).any():
        raise ValueError(
            f"score has shape {score.shape} and {int(np.isnan(score).sum())} NaN; give one number "
            "per training sample"
        )
    chance = np.random.default_rng([seed, *b"ties"]).permutation(len(score))
    return np.lexsort((chance, -score))


def repaired(
    problem: LabelProblem, inspected: np.ndarray, fix: str = "relabel"
) -> tuple[np.ndarray, np.ndarray]:
    """The labels after an inspection, and which samples are kept.

    Args:
        problem: the samples.
        inspected: positions of those that the oracle is shown.
        fix: one of :data:`FIXES`. Right labels stay, and stay in, whichever it is.

    Returns:
        Labels and booleans, shape (n,) each.

    Raises:
        ValueError: another fix.
    """
    if fix not in FIXES:
        raise ValueError(f"fix must be one of {', '.join(FIXES)}; got {fix!r}")
    labels, keep = problem.given.numpy().copy(), np.ones(len(problem.given), bool)
    if fix == "relabel":
        labels[inspected] = problem.true.numpy()[inspected]
    else:
        keep[inspected] = ~problem.wrong[inspected]
    return labels, keep


def close_the_loop(
    problem: LabelProblem,
    scores: Mapping[str, np.ndarray],
    *,
    shares: Sequence[float] = SHARES,
    fix: str = "relabel",
    train: Train | None = None,
    chances: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Inspect, repair and train again, by every score and at every share.

    Args:
        problem: the samples.
        scores: suspicion of each training sample by the name of the score, high is suspicious,
            shape (n,).
        shares: of the training samples that are inspected, each in (0, 1].
        fix: one of :data:`FIXES`.
        train: trains and tests; default: ``side_by_side(seed=seed)``. Equal labels are trained
            once.
        chances: orders of random inspection, whose results are averaged.
        seed: of chance, of ties, and of the default training.

    Returns:
        A row a score and share, ``random`` and ``ideal`` among the scores, and first a row
        ``nothing`` at share 0: ``score``, ``share``, ``inspected`` (k), ``found`` (wrong ones among
        these) and ``accuracy`` on the test set.

    Raises:
        ValueError: a score of another length or with NaN, a name that is taken, a share outside
            (0, 1] or of less than one sample, no wrong label, or an accuracy that is not finite.
    """
    counts = _counts(shares, len(problem.given))
    chances = require_whole("chances", chances)
    if not problem.wrong.any():
        raise ValueError("given equals true everywhere; there is no wrong label to be found")
    order = _orders(problem, scores, chances, require_whole("seed", seed, 0))
    cells = [(NOTHING, 0.0, np.arange(0))]
    for name, ordered in order:
        cells += [(name, share, ordered[:k]) for share, k in counts.items()]
    labels, keep = (
        np.stack(each)
        for each in zip(*(repaired(problem, at, fix) for *_, at in cells), strict=True)
    )
    accuracy = _trained_once(problem, labels, keep, train or side_by_side(seed=seed))
    table = pd.DataFrame(
        [(name, share, len(at), int(problem.wrong[at].sum())) for name, share, at in cells],
        columns=["score", "share", "inspected", "found"],
    ).assign(accuracy=accuracy)
    # The orders of random inspection become one row.
    mean = table.groupby(["score", "share"], sort=False, as_index=False).mean()
    mean = mean.astype({"inspected": int, "found": float})
    mean.attrs = {"wrong": int(problem.wrong.sum()), "samples": len(problem.given), "fix": fix}
    return mean


def _counts(shares: Sequence[float], n: int) -> dict[float, int]:
    """How many samples each share is (ValueError: none, more than all, or equally many)."""
    if not len(shares):
        raise ValueError("shares is empty; give at least one")
    counts = {}
    for share in shares:
        if not 0 < share <= 1 or round(share * n) < 1:
            raise ValueError(
                f"shares has {share}, {share * n:g} of {n} samples; choose from {1 / n:.2g} to 1"
            )
        counts[float(share)] = round(share * n)
    if len(set(counts.values())) < len(shares):
        raise ValueError(f"shares is {list(shares)}, of which two are equally many of {n} samples")
    return counts


def _orders(
    problem: LabelProblem, scores: Mapping[str, np.ndarray], chances: int, seed: int
) -> list[tuple[str, np.ndarray]]:
    """In which order each score, chance and the ideal inspect, shape (n,) each."""
    n, rng = len(problem.given), np.random.default_rng([seed, *b"chance"])
    found = []
    for name, score in scores.items():
        if name in (NOTHING, RANDOM, IDEAL):
            raise ValueError(f"scores has {name!r}, a name that is taken; give it another")
        if np.shape(score) != (n,):
            raise ValueError(f"scores has {name!r} of shape {np.shape(score)}; give ({n},)")
        try:
            found.append((name, inspection_order(score, seed)))
        except ValueError as error:
            raise ValueError(f"scores has {name!r}, of which the {error}") from None
    found += [(RANDOM, rng.permutation(n)) for _ in range(chances)]
    return [*found, (IDEAL, inspection_order(problem.wrong, seed))]


def _trained_once(
    problem: LabelProblem, labels: np.ndarray, keep: np.ndarray, train: Train
) -> np.ndarray:
    """The test accuracy of each row; rows that are equal are trained once.

    Scores that find the same wrong labels give the same training set, so this saves much.
    """
    rows, place = np.unique(np.hstack([labels, keep]), axis=0, return_inverse=True)
    n = labels.shape[1]
    accuracy = np.asarray(
        train(
            problem.inputs,
            torch.from_numpy(rows[:, :n].copy()),
            torch.from_numpy(rows[:, n:].astype(bool)),
            problem.test,
        )
    )
    if accuracy.shape != (len(rows),) or not np.isfinite(accuracy).all():
        raise ValueError(
            f"train returned {accuracy.shape} for {len(rows)} rows of labels, "
            f"{int((~np.isfinite(accuracy)).sum())} of them not finite; return one accuracy per row"
        )
    return accuracy[place.ravel()]


# -- over seeds -----------------------------------------------------------------------------------


def accuracy_gained(runs: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """What each score gains per label inspected, and how much more than chance, over seeds.

    Args:
        runs: from :func:`close_the_loop`, one per seed, with equal scores and shares.

    Returns:
        A row a score and share: ``score``, ``share``, ``inspected`` (k), ``precision`` (share of
        those that are wrong), ``accuracy``, ``gained`` (percentage points of test accuracy per 100
        labels inspected, over no inspection) and ``over_random`` (the same over random inspection),
        the last three with 95 % t-intervals over seeds, ``..._low`` and ``..._high``, NaN for one
        seed. Differences are paired by seed.

    Raises:
        ValueError: there are no runs, or two have different rows.
    """
    if not runs:
        raise ValueError("runs is empty; give at least one, from close_the_loop")
    keys = ["score", "share", "inspected"]
    if any(not run[keys].equals(runs[0][keys]) for run in runs):
        raise ValueError("runs have different scores or shares; give those of equal settings")
    whole = pd.concat([run.assign(seed=at) for at, run in enumerate(runs)])
    accuracy = whole.pivot(index="seed", columns=["score", "share"], values="accuracy")
    rows = []
    for score, share, inspected in runs[0][keys].itertuples(index=False):
        own = accuracy[score, share].to_numpy()
        found = whole[(whole.score == score) & (whole.share == share)].found.mean()
        measures = [mean_interval(own)]
        for other in ((NOTHING, 0.0), (RANDOM, share)):
            change = own - accuracy[other].to_numpy() if inspected else np.zeros(len(runs))
            measures.append(mean_interval(1e4 * change / max(inspected, 1)))
        ends = [value for each in measures for value in (each.value, each.low, each.high)]
        rows.append((score, share, inspected, found / max(inspected, 1), *ends))
    names = [f"{name}{end}" for name in ("accuracy", "gained", "over_random")
             for end in ("", "_low", "_high")]  # fmt: skip
    table = pd.DataFrame(rows, columns=[*keys, "precision", *names])
    table.attrs = dict(runs[0].attrs) | {"seeds": len(runs)}
    return table


def gained_difference(
    runs: Sequence[pd.DataFrame], score: str, rival: str, share: float
) -> Interval:
    """What a score gains per 100 labels inspected less what a rival does, paired by seed.

    Args:
        runs: from :func:`close_the_loop`, one per seed.
        score, rival: names in them.
        share: of the samples that are inspected.

    Returns:
        Percentage points of test accuracy per 100 labels, with a 95 % t-interval over seeds.

    Raises:
        ValueError: there are no runs, or no such score or share.
    """
    if not runs:
        raise ValueError("runs is empty; give at least one, from close_the_loop")
    changes = []
    for run in runs:
        found = []
        for name in (score, rival):
            row = run[(run.score == name) & np.isclose(run.share, share)]
            if len(row) != 1:
                raise ValueError(
                    f"runs have no {name!r} at share {share}; choose from "
                    f"{', '.join(run.score.unique())} at "
                    f"{', '.join(f'{each:g}' for each in run.share.unique() if each)}"
                )
            found.append(row.iloc[0])
        one, other = found
        changes.append(1e4 * (one.accuracy - other.accuracy) / one.inspected)
    return mean_interval(changes)


def gained_numbers(
    table: pd.DataFrame, share: float, prefix: str = "accuracy_gained"
) -> dict[str, float]:
    """The numbers of :func:`accuracy_gained` at one share, by the names a chapter records.

    ``<prefix>_<score>`` (percentage points per 100 labels inspected), ``<prefix>_over_random_
    <score>``, and ``<prefix>_test_<score>`` (the accuracy), each with ``_low`` and ``_high`` where
    there are several seeds.

    Raises:
        ValueError: another share.
    """
    own = table[np.isclose(table.share, share) & (table.score != NOTHING)]
    if not len(own):
        there = ", ".join(f"{each:g}" for each in table.share.unique() if each)
        raise ValueError(f"share is {share}; choose from {there}")
    found = {}
    for row in own.to_dict("records"):
        for part, name in (("gained", ""), ("over_random", "over_random_"), ("accuracy", "test_")):
            for end in ("", "_low", "_high"):
                if np.isfinite(row[part + end]):
                    found[f"{prefix}_{name}{row['score']}{end}"] = float(row[part + end])
    return found
