"""Odd inputs against inputs like the training data: does the probe tell them apart, and how fast?

A small network is trained on digits, or on photographs of clothes. It is shown test images of the
same kind and inputs of another, and every score of :mod:`probebook.outlier_scores` ranks them.
Several seeds, each with another network, other training images and other test images.

The settings of the local posterior are chosen by :func:`probebook.similarities.settled` from the
training data alone: the smallest localization at which n_beta L spreads by half a nat over the
draws. No odd input and no AUROC is looked at. :func:`ood_sweep` shows what other settings give.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import probelib
from probebook.fashion import FashionUnavailable, load_fashion
from probebook.mnist import Mnist, load_mnist
from probebook.models import MLP
from probebook.odd_inputs import corrupted_in_turn, rendered_letters
from probebook.outlier_scores import (
    PROBE,
    SCORES,
    class_losses,
    energy,
    ensemble_scores,
    fpr_at,
    mahalanobis,
    nearest_distance,
    probe_scores,
    require_scores,
    softmax_doubt,
)
from probebook.planted import auroc
from probebook.similarities import (
    Draws,
    Interval,
    drawn,
    hidden_features,
    mean_interval,
    settled,
)
from probebook.small_networks import initial_network, train_stack
from probelib.arguments import require_positive, require_whole

__all__ = [
    "PAIRS",
    "OddInputs",
    "OddRun",
    "OddSize",
    "odd_data",
    "odd_inputs",
    "odd_run",
    "odd_runs",
    "ood_by_kind",
    "ood_difference",
    "ood_numbers",
    "ood_sweep",
    "ood_table",
]

PAIRS: Mapping[str, tuple[str, str]] = {
    "mnist_fashion": ("MNIST", "Fashion-MNIST"),
    "mnist_letters": ("MNIST", "rendered letters"),
    "mnist_corrupted": ("MNIST", "corrupted digits"),
    "fashion_mnist": ("Fashion-MNIST", "MNIST"),
}
"""What the network was trained on, and what the odd inputs are, by the name of the pair."""

Images = Mapping[str, tuple[Mnist, Mnist]]


@dataclass(frozen=True)
class OddSize:
    """How much of it.

    Attributes:
        train: training images.
        inputs: test images, and odd inputs of each kind.
        hidden: units of the hidden layer.
        epochs: of training.
        members: networks of the ensemble; the first is the network that all scores are of.
        draws: weighted draws of the local posterior.
        neighbour: which nearest training image counts.
        gammas: localizations of the sweep.
        sweep_draws: weighted draws at each of them.
        sweep_seeds: how many of the seeds are swept, the first.
    """

    train: int = 5000
    inputs: int = 1000
    hidden: int = 256
    epochs: int = 10
    members: int = 5
    draws: int = 100
    neighbour: int = 5
    gammas: tuple[float, ...] = (30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0)
    sweep_draws: int = 50
    sweep_seeds: int = 2

    def __post_init__(self) -> None:
        for name in ("train", "inputs", "hidden", "epochs", "neighbour"):
            require_whole(name, getattr(self, name))
        for name in ("members", "draws", "sweep_draws"):
            require_whole(name, getattr(self, name), 2)
        require_whole("sweep_seeds", self.sweep_seeds, 0)
        for gamma in self.gammas:
            require_positive("gammas", gamma)


# -- inputs --------------------------------------------------------------------------------------


def odd_data() -> dict[str, tuple[Mnist, Mnist]]:
    """Training and test set of ``"mnist"`` and, where it can be had, of ``"fashion"``.

    Warns:
        UserWarning: Fashion-MNIST cannot be had, and its pairs are left out.
    """
    found = {"mnist": (load_mnist("train"), load_mnist("test"))}
    try:
        found["fashion"] = load_fashion("train"), load_fashion("test")
    except FashionUnavailable as error:
        warnings.warn(f"The pairs with Fashion-MNIST are left out: {error}", stacklevel=2)
    return found


@dataclass(frozen=True, eq=False)
class OddInputs:
    """What a network is trained on and what it is shown.

    Attributes:
        data: ``"mnist"`` or ``"fashion"``, what it is trained on.
        train: inputs in [0, 1], shape (n, 784), and labels.
        sets: images in [0, 1], shape (inputs, 28, 28): ``"test"``, and the odd ones of each pair.
        kinds: of pairs whose odd inputs are of several kinds, that of each: the letter, or what was
            done to a digit.
    """

    data: str
    train: tuple[Tensor, Tensor]
    sets: Mapping[str, Tensor]
    kinds: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def shown(self) -> Tensor:
        """All of ``sets`` in their order, shape (n, 784)."""
        return torch.cat([images.flatten(1) for images in self.sets.values()])

    @property
    def places(self) -> dict[str, slice]:
        """Where each of ``sets`` is among ``shown``."""
        ends = np.cumsum([len(images) for images in self.sets.values()])
        return {
            name: slice(int(end) - len(images), int(end))
            for end, (name, images) in zip(ends, self.sets.items(), strict=True)
        }


def odd_inputs(images: Images, data: str, size: OddSize, seed: int) -> OddInputs:
    """Choose training and test images at random, and the odd inputs of every pair.

    Corrupted digits are made of other test images than those that are shown as they are.

    Args:
        images: from :func:`odd_data`.
        data: what the network is trained on, ``"mnist"`` or ``"fashion"``.
        size: how many.
        seed: of all choices.

    Raises:
        ValueError: there is no such data set, too few images, or no pair for it.
    """
    if data not in images:
        raise ValueError(f"data is {data!r}; choose from {', '.join(images)}")
    rng = np.random.default_rng([require_whole("seed", seed, 0), *b"odd", *data.encode()])
    train, test = images[data]
    at = _chosen(rng, train, size.train, "train")
    labels = train.labels[at]
    if len(labels.unique()) < 2:
        raise ValueError(f"train is {size.train}, images of one class only; give more")
    shown = _chosen(rng, test, 2 * size.inputs, "inputs")
    sets = {"test": _floats(test, shown[: size.inputs])}
    kinds = {}
    other = "fashion" if data == "mnist" else "mnist"
    if other in images:
        away = images[other][1]
        sets[f"{data}_{other}"] = _floats(away, _chosen(rng, away, size.inputs, "inputs"))
    if data == "mnist":
        sets["mnist_letters"], kinds["mnist_letters"] = rendered_letters(size.inputs, seed)
        sets["mnist_corrupted"], kinds["mnist_corrupted"] = corrupted_in_turn(
            _floats(test, shown[size.inputs :]), seed
        )
    if len(sets) == 1:
        raise ValueError(f"data is {data!r}, and images has no other set; give {other!r}, too")
    return OddInputs(data, (_floats(train, at).flatten(1), labels), sets, kinds)


def _chosen(rng: np.random.Generator, images: Mnist, count: int, name: str) -> np.ndarray:
    """Positions of ``count`` different images (ValueError: there are fewer)."""
    if count > len(images):
        raise ValueError(f"{name} asks for {count} images, but there are {len(images)}; lower it")
    return rng.choice(len(images), count, replace=False)


def _floats(images: Mnist, at: np.ndarray) -> Tensor:
    """Some of the images, in [0, 1]."""
    return images.images[at].float() / 255


# -- a run ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class OddRun:
    """All scores of everything that one network was shown.

    Attributes:
        data: what the network was trained on.
        seed: of network, data and draws.
        scores: by name of :data:`probebook.outlier_scores.SCORES`, shape (inputs shown,).
        places: where ``"test"`` and each pair's odd inputs are among these.
        kinds: see :class:`OddInputs`.
        seconds: that each score took for all inputs shown, beyond training the network: the draws
            for all of the probe's, the other members' training for those of the ensemble.
        draws: what the draws say of themselves.
        khat: how far their weights can be trusted (:func:`probelib.khat`); below 0.7.
        accuracy, train_accuracy: of the network on its test and training images.
        sweep: see :func:`ood_sweep`; empty where there was none.
    """

    data: str
    seed: int
    scores: Mapping[str, np.ndarray]
    places: Mapping[str, slice]
    kinds: Mapping[str, np.ndarray]
    seconds: Mapping[str, float]
    draws: Draws
    khat: float
    accuracy: float
    train_accuracy: float
    sweep: pd.DataFrame

    @property
    def pairs(self) -> list[str]:
        """Names of :data:`PAIRS`."""
        return [name for name in self.places if name != "test"]

    def ranked(self, pair: str, score: str, kind: str | None = None) -> Ranked:
        """One score of the test images and of a pair's odd inputs, or of one kind of these.

        Raises:
            ValueError: there is no such pair, score or kind.
        """
        for name, given, there in (("pair", pair, self.pairs), ("score", score, self.scores)):
            if given not in there:
                raise ValueError(f"{name} is {given!r}; choose from {', '.join(there)}")
        return _ranked(self.scores[score], self.places, pair, self.kinds.get(pair), kind)


Ranked = tuple[np.ndarray, np.ndarray]


def _ranked(
    score: np.ndarray,
    places: Mapping[str, slice],
    pair: str,
    kinds: np.ndarray | None = None,
    kind: str | None = None,
) -> Ranked:
    """A score of test images and odd inputs, and which are odd."""
    test, odd = score[places["test"]], score[places[pair]]
    if kind is not None:
        if kinds is None or kind not in kinds:
            raise ValueError(f"kind is {kind!r}, which {pair} does not have; leave it out")
        odd = odd[kinds == kind]
    flagged = np.r_[np.zeros(len(test), bool), np.ones(len(odd), bool)]
    return require_scores(np.r_[test, odd], flagged)


def odd_run(
    images: Images,
    data: str = "mnist",
    size: OddSize = OddSize(),
    seed: int = 0,
    *,
    sweep: bool = False,
) -> OddRun:
    """Train networks, show them test images and odd inputs, and take all scores.

    Args:
        images: from :func:`odd_data`.
        data: what the networks are trained on.
        size: of everything.
        seed: of everything.
        sweep: whether to take the probe's scores at all of ``size.gammas``, too.
    """
    inputs = odd_inputs(images, data, size, seed)
    seeds = np.random.SeedSequence(seed).generate_state(size.members)
    start = [initial_network((size.hidden,), 784, 10, int(each)) for each in seeds]
    keep = torch.ones(size.members, size.train, dtype=torch.bool)
    began = time.perf_counter()
    stack = train_stack(start, inputs.train, keep, epochs=size.epochs)
    others = (time.perf_counter() - began) * (size.members - 1) / size.members
    network, shown = stack.network(0), inputs.shown
    with torch.no_grad():
        predicted = network(shown).argmax(1)
        right = [
            float((network(x).argmax(1) == y).float().mean())
            for x, y in (_labeled(images[data][1]), inputs.train)
        ]
    began = time.perf_counter()
    posterior = settled(network, inputs.train, seed=seed)
    probe, verdict, khat = _probed(posterior, shown, predicted, size.draws, seed)
    seconds = dict.fromkeys(PROBE, time.perf_counter() - began)
    scores: dict[str, np.ndarray] = dict(probe)
    for names, score in _rivals(network, stack, inputs, size):
        began = time.perf_counter()
        found = score()
        took = time.perf_counter() - began
        scores |= dict(zip(names, found, strict=True))
        of_ensemble = names[0].startswith("ensemble")
        seconds |= dict.fromkeys(names, took + (others if of_ensemble else 0.0))
    table = pd.DataFrame()
    if sweep:
        table = _swept(posterior, shown, predicted, inputs.places, size, seed)
    return OddRun(
        data, seed, {name: scores[name] for name in SCORES}, inputs.places, inputs.kinds, seconds,
        verdict, khat, *right, table,
    )  # fmt: skip


def _labeled(images: Mnist) -> tuple[Tensor, Tensor]:
    """All inputs in [0, 1], shape (n, 784), and labels."""
    return images.images.flatten(1).float() / 255, images.labels


def _probed(
    posterior: probelib.LocalPosterior, shown: Tensor, predicted: Tensor, draws: int, seed: int
) -> tuple[dict[str, np.ndarray], Draws, float]:
    """The probe's scores, what the draws say of themselves, and their k-hat."""
    trace = probelib.importance_sample(
        posterior,
        draws,
        observe=(shown, predicted),
        observe_loss=class_losses,
        seed=seed,
        progress=False,
    )
    return probe_scores(trace), drawn(posterior, trace), float(probelib.khat(trace))


def _rivals(
    network: MLP, stack: Callable[[Tensor], Tensor], inputs: OddInputs, size: OddSize
) -> Iterator[tuple[tuple[str, ...], Callable[[], tuple[np.ndarray, ...]]]]:
    """What the probe is compared with: names, and what computes their scores from nothing."""
    (x, y), shown = inputs.train, inputs.shown
    labels = y.numpy()

    def logits(model: Callable[[Tensor], Tensor]) -> np.ndarray:
        with torch.no_grad():
            return model(shown).numpy()

    def features() -> tuple[np.ndarray, np.ndarray]:
        return hidden_features(network, x)[-1], hidden_features(network, shown)[-1]

    def of_features() -> tuple[np.ndarray]:
        train, own = features()
        return (mahalanobis(train, labels, own),)

    yield ("softmax",), lambda: (softmax_doubt(logits(network)),)
    yield ("energy",), lambda: (energy(logits(network)),)
    yield ("mahalanobis",), of_features
    yield ("neighbours",), lambda: (nearest_distance(*features(), size.neighbour),)
    yield (
        ("pixels",),
        lambda: (nearest_distance(x.numpy(), shown.numpy(), size.neighbour, unit=False),),
    )
    yield ("ensemble_variance", "ensemble_entropy"), lambda: ensemble_scores(logits(stack))


def _swept(
    posterior: probelib.LocalPosterior,
    shown: Tensor,
    predicted: Tensor,
    places: Mapping[str, slice],
    size: OddSize,
    seed: int,
) -> pd.DataFrame:
    """AUROCs of the probe's scores at each localization, a row a pair, score and localization."""
    rows = []
    for gamma in size.gammas:
        other = posterior.at(localization=gamma)
        scores, draws, khat = _probed(other, shown, predicted, size.sweep_draws, seed)
        for pair in (name for name in places if name != "test"):
            for name, score in scores.items():
                value = auroc(*_ranked(score, places, pair))
                rows.append((pair, name, gamma, value, draws.loss, draws.share, khat))
    columns = ["pair", "score", "localization", "auroc", "loss", "share", "khat"]
    return pd.DataFrame(rows, columns=columns)


def odd_runs(
    size: OddSize = OddSize(), *, seeds: Sequence[int] = range(5), images: Images | None = None
) -> list[OddRun]:
    """:func:`odd_run` for every data set that can be had, and several seeds.

    Args:
        size: of each.
        seeds: one per network; the first ``size.sweep_seeds`` are swept.
        images: default: from :func:`odd_data`.

    Raises:
        ValueError: no seed is given, or one twice.
    """
    if not len(seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds is {list(seeds)}; give one or more, each once")
    images = odd_data() if images is None else images
    return [
        odd_run(images, data, size, seed, sweep=at < size.sweep_seeds)
        for data in images
        if data == "mnist" or len(images) > 1
        for at, seed in enumerate(seeds)
    ]


# -- results -------------------------------------------------------------------------------------


def ood_table(runs: Sequence[OddRun]) -> pd.DataFrame:
    """How well each score tells odd inputs from test images: means over seeds, 95 % t-intervals.

    Args:
        runs: from :func:`odd_runs`.

    Returns:
        A row a pair and score: ``pair``, ``score``, ``auroc`` with ``auroc_low`` and
        ``auroc_high``, ``fpr`` (of odd inputs let in, where 95 % of the test images are) with
        ``fpr_low`` and ``fpr_high``, ``seconds`` (mean over seeds, for all inputs that a network
        was shown) and ``seeds``. The intervals end at 0 and 1, and are NaN for one seed.

    Raises:
        ValueError: there are no runs.
    """
    rows = []
    for pair, own in _by_pair(runs).items():
        for score in own[0].scores:
            each = [run.ranked(pair, score) for run in own]
            of = [
                mean_interval([measure(*ranked) for ranked in each]) for measure in (auroc, fpr_at)
            ]
            seconds = float(np.mean([run.seconds[score] for run in own]))
            rows.append((pair, score, *_ends(of[0]), *_ends(of[1]), seconds, len(own)))
    columns = ["pair", "score", "auroc", "auroc_low", "auroc_high", "fpr", "fpr_low", "fpr_high",
               "seconds", "seeds"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def ood_by_kind(runs: Sequence[OddRun], pair: str = "mnist_corrupted") -> pd.DataFrame:
    """AUROC of every score for each kind of a pair's odd inputs.

    Args:
        runs: from :func:`odd_runs`.
        pair: one whose odd inputs are of several kinds.

    Returns:
        A row a kind and score: ``kind``, ``score``, ``auroc`` with ``auroc_low`` and
        ``auroc_high``, over seeds.

    Raises:
        ValueError: no run has the pair, or its odd inputs are all of one kind.
    """
    own = _by_pair(runs).get(pair, [])
    if not own or pair not in own[0].kinds:
        there = sorted({name for run in runs for name in run.kinds})
        raise ValueError(f"pair is {pair!r}; choose from {', '.join(there)}")
    kinds = list(dict.fromkeys(map(str, own[0].kinds[pair])))
    rows = [
        (kind, score, *_ends(mean_interval([auroc(*run.ranked(pair, score, kind)) for run in own])))
        for kind in kinds
        for score in own[0].scores
    ]
    return pd.DataFrame(rows, columns=["kind", "score", "auroc", "auroc_low", "auroc_high"])


def ood_difference(runs: Sequence[OddRun], score: str, rival: str) -> dict[str, Interval]:
    """AUROC of a score less that of a rival by pair, paired by seed, with 95 % t-intervals."""
    return {
        pair: mean_interval(
            [auroc(*run.ranked(pair, score)) - auroc(*run.ranked(pair, rival)) for run in own]
        )
        for pair, own in _by_pair(runs).items()
    }


def ood_sweep(runs: Sequence[OddRun]) -> pd.DataFrame:
    """What the probe's scores give at other localizations.

    Args:
        runs: from :func:`odd_runs`, of which some were swept.

    Returns:
        A row a pair, score and localization, means over the seeds that were swept: ``auroc`` with
        ``auroc_low`` and ``auroc_high`` (the lowest and highest of the seeds), ``loss`` (of the
        training data over the draws, nats), ``share`` (effective, of the draws) and ``khat`` (the
        largest: above 0.7 the weights are not to be trusted), and ``chosen`` (the median
        localization that the rule took).

    Raises:
        ValueError: none was swept.
    """
    swept = [run.sweep for run in runs if len(run.sweep)]
    if not swept:
        raise ValueError("runs has none with a sweep; call odd_run with sweep=True")
    groups = pd.concat(swept).groupby(["pair", "score", "localization"], sort=False)
    table = groups[["auroc", "loss", "share"]].mean()
    table["auroc_low"], table["auroc_high"] = groups.auroc.min(), groups.auroc.max()
    table["khat"] = groups.khat.max()
    table = table.reset_index()
    chosen = {
        pair: float(np.median([run.draws.localization for run in own]))
        for pair, own in _by_pair(runs).items()
    }
    return table.assign(chosen=table.pair.map(chosen))


def ood_numbers(table: pd.DataFrame, prefix: str = "ood") -> dict[str, float]:
    """All numbers of :func:`ood_table`, by the names under which a chapter records them.

    ``<prefix>_auroc_<score>_<pair>`` and ``<prefix>_fpr_<score>_<pair>``, each with its interval,
    and ``<prefix>_seconds_<score>``, the mean over pairs.
    """
    found: dict[str, float] = {}
    for row in table.itertuples():
        name = f"{row.score}_{row.pair}"
        found |= Interval(row.auroc, row.auroc_low, row.auroc_high).numbers(
            f"{prefix}_auroc_{name}"
        )
        found |= Interval(row.fpr, row.fpr_low, row.fpr_high).numbers(f"{prefix}_fpr_{name}")
    for score, seconds in table.groupby("score", sort=False).seconds.mean().items():
        found[f"{prefix}_seconds_{score}"] = float(seconds)
    return found


def _by_pair(runs: Sequence[OddRun]) -> dict[str, list[OddRun]]:
    """The runs of each pair, in the order of :data:`PAIRS` (ValueError: none)."""
    if not runs:
        raise ValueError("runs is empty; give at least one, from odd_runs")
    found = {pair: [run for run in runs if pair in run.places] for pair in PAIRS}
    return {pair: own for pair, own in found.items() if own}


def _ends(interval: Interval) -> tuple[float, float, float]:
    """A share and its interval, which cannot leave [0, 1]."""
    low, high = np.clip((interval.low, interval.high), 0, 1)
    return interval.value, float(low), float(high)
