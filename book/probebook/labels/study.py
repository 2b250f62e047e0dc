"""The shoot-out: every score on every task, kind of noise, rate, epoch and seed.

    python -m probebook.labels.study --into results/prerun/10_labels.safetensors

A study is one task with one kind and rate of noise and one seed: one training, at several epochs of
which every score is computed. Studies are kept one by one in the cache, so that a stopped run goes
on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sklearn
import torch
from torch import Tensor

from probebook import prerun
from probebook.cache import cache_dir, write_atomically
from probebook.labels import noise, probe, scores
from probebook.labels.tasks import TASKS, Task, load_task, source_of
from probebook.labels.training import Training, train, train_out_of_sample
from probebook.memorization import detection
from probelib.arguments import require_whole
from probelib.estimators.weighted import weights_of
from probelib.progress import progress_bar

__all__ = [
    "SCORES",
    "Prepared",
    "Study",
    "StudySize",
    "all_scores",
    "grid",
    "keep_studies",
    "kept_studies",
    "prepare",
    "run_studies",
    "run_study",
]

SCORES: Mapping[str, str] = {
    **{name: f"{label}, local" for name, label in probe.PROBE.items()},
    **{f"{name}_table1": f"{label}, Table 1" for name, label in probe.PROBE.items()},
    **scores.POST_HOC,
    **scores.OF_TRAINING,
}
"""All scores, and their names in a table."""

_RATE = {"mnist": 0.05, "fashion": 0.05, "tumours": 0.05, "genres": 0.01}
_FORMAT = 1


@dataclass(frozen=True)
class Study:
    """One training on wrong labels.

    Attributes:
        task: of :data:`probebook.labels.tasks.TASKS`.
        noise: of :data:`probebook.labels.noise.NOISES`.
        rate: share of wrong labels.
        seed: of the samples, the noise, the network and the draws.
    """

    task: str
    noise: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """As in ``mnist_uniform10_seed0``."""
        return f"{self.task}_{self.noise}{100 * self.rate:g}_seed{self.seed}"


@dataclass(frozen=True)
class StudySize:
    """How much of it.

    Attributes:
        n: training samples, where the task has so many.
        epochs: at which the scores are computed.
        hidden: width of the hidden layer.
        draws: weighted draws of the probe at the local gamma.
        chains, chain_draws: of the probe at Table 1's gamma.
        chain_rates: rates of wrong labels at which there are such chains, which cost more than all
            other scores together.
        early: epochs that the early networks of EL2N and GraNd train for.
        early_networks: how many of these.
    """

    n: int = 1000
    epochs: tuple[int, ...] = (1, 3, 10, 30, 100)
    hidden: int = 128
    draws: int = 200
    chains: int = 4
    chain_draws: int = 50
    chain_rates: tuple[float, ...] = (0.1,)
    early: int = 3
    early_networks: int = 5


def grid(
    tasks: Sequence[str] = TASKS,
    noises: Sequence[str] = noise.NOISES,
    rates: Sequence[float] = (0.02, 0.1, 0.4),
    seeds: int = 5,
) -> list[Study]:
    """All combinations, seed by seed, so that a stopped run has whole seeds."""
    return [
        Study(task, kind, rate, seed)
        for seed in range(require_whole("seeds", seeds))
        for task in tasks
        for kind in noises
        for rate in rates
    ]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A study's network, before any score.

    Attributes:
        study, size: what it is of.
        task: with the true labels.
        given: the labels that the network was trained on, shape (n,).
        training: of the network, kept at all epochs.
        how: what :func:`probebook.labels.training.train` needs to train another one alike.
    """

    study: Study
    size: StudySize
    task: Task
    given: np.ndarray
    training: Training
    how: Mapping[str, Any]

    @property
    def wrong(self) -> np.ndarray:
        """Which of the given labels are wrong, boolean (n,)."""
        return self.given != self.task.y.numpy()


def prepare(study: Study, size: StudySize) -> Prepared:
    """The task, its wrong labels, and a network trained on them."""
    task = load_task(study.task, size.n, study.seed)
    predicted = noise.out_of_sample(task.x.numpy(), task.y.numpy())
    given = noise.wrong_labels(task.y.numpy(), study.noise, study.rate, study.seed, predicted)
    how = {"classes": len(task.classes), "hidden": size.hidden, "rate": _RATE[study.task]}
    training = train(task.x, torch.from_numpy(given), epochs=size.epochs, seed=study.seed, **how)
    return Prepared(study, size, task, given, training, how)


def run_study(study: Study, size: StudySize) -> pd.DataFrame:
    """Every score at every epoch of one training.

    Seconds are those that a score costs whoever has the trained network and the data: networks
    that only it needs are trained in them, and what a training must record is counted.

    Returns:
        A row an epoch and score: ``epoch``, ``score``, ``auroc`` and ``average_precision`` of the
        wrong labels, ``seconds``. Beside the scores: ``flags_label_issues`` and
        ``flags_confident_learning``, with their recall as ``auroc`` and their precision as
        ``average_precision``; and, as ``auroc``, what one should know of the network and the
        probe: ``fitted_right`` and ``fitted_wrong`` (shares of the right and wrong labels that it
        predicts), ``test_accuracy``, ``gamma``, ``draws_that_count`` and ``third_cumulant_known``
        (share of samples whose third cumulant is beyond twice its error).
    """
    prepared = prepare(study, size)
    task, given, wrong = prepared.task, prepared.given, prepared.wrong
    rows: list[tuple[int, str, float, float, float]] = []
    for epoch, found in all_scores(prepared):
        for name, (score, seconds) in found.items():
            if score.dtype == bool:
                hit = float((score & wrong).sum())
                recall, precision = hit / wrong.sum(), hit / max(score.sum(), 1)
                rows.append((epoch, name, recall, precision, seconds))
            elif score.ndim == 0:
                rows.append((epoch, name, float(score), np.nan, seconds))
            else:
                how_well = detection(score, wrong)
                rows.append((epoch, name, how_well.auroc, how_well.average_precision, seconds))
        right = prepared.training.logits[epoch - 1].argmax(-1) == given
        with torch.no_grad():
            tested = prepared.training.networks[epoch](task.test_x).argmax(1) == task.test_y
        rows += [
            (epoch, "fitted_right", float(right[~wrong].mean()), np.nan, 0.0),
            (epoch, "fitted_wrong", float(right[wrong].mean()), np.nan, 0.0),
            (epoch, "test_accuracy", float(tested.float().mean()), np.nan, 0.0),
        ]
    columns = ["epoch", "score", "auroc", "average_precision", "seconds"]
    return pd.DataFrame(rows, columns=columns)


_Scores = dict[str, tuple[np.ndarray, float]]


def all_scores(
    prepared: Prepared, epochs: Sequence[int] | None = None
) -> Iterator[tuple[int, _Scores]]:
    """Every score, (n,), and its seconds, epoch by epoch; some or all epochs of the training."""
    size, seed, training, how = prepared.size, prepared.study.seed, prepared.training, prepared.how
    x, labels = prepared.task.x, prepared.given
    y = torch.from_numpy(labels)
    outside, cross = train_out_of_sample(x, y, epochs=size.epochs, seed=seed + 1000, **how)
    early, warm = _timed(partial(_early_networks, x, y, size, seed, how))
    el2n = _plus(warm, lambda: scores.el2n([_logits(net, x) for net in early], labels))
    grand = _plus(
        warm,
        lambda: np.mean([np.sqrt(scores.gradient_norm(net, x, y)) for net in early], 0),
    )
    for epoch in size.epochs if epochs is None else epochs:
        so_far = training.logits[:epoch]
        record = training.recording * epoch / len(training.logits)
        probabilities, model = outside[epoch], training.networks[epoch]
        flagged = partial(scores.flagged_by_confident_learning, probabilities, labels)
        yield (
            epoch,
            {
                "out_of_sample": _plus(cross, partial(_doubt, probabilities, labels)),
                "confident_learning": _plus(
                    cross, partial(scores.confident_learning, probabilities, labels)
                ),
                "flags_confident_learning": _plus(cross, flagged),
                "aum": _plus(record, partial(scores.aum, so_far, labels)),
                "forgetting": _plus(record, partial(scores.forgetting, so_far, labels)),
                "tracin": _timed(partial(scores.tracin, training, x, y, epoch)),
                "el2n": el2n,
                "grand": grand,
                **_post_hoc(model, x, y),
                **_probe_scores(model, x, y, size, prepared.study),
            },
        )


def _early_networks(
    x: Tensor, y: Tensor, size: StudySize, seed: int, how: Mapping[str, Any]
) -> list[Any]:
    """Networks that have trained for a few epochs, from other initial weights."""
    kept = {"epochs": (size.early,), "record": False}
    return [
        train(x, y, seed=seed + 2000 + at, **kept, **how).networks[size.early]
        for at in range(size.early_networks)
    ]


def _post_hoc(model: Any, x: Tensor, y: Tensor) -> _Scores:
    """The scores of one network that need no draws."""
    labels, own = y.numpy(), _logits(model, x)
    return {
        "loss": _timed(partial(scores.loss, own, labels)),
        "margin": _timed(partial(scores.label_margin, own, labels)),
        "curvature": _timed(partial(scores.curvature, model, x, y)),
        "gradient_norm": _timed(partial(scores.gradient_norm, model, x, y)),
        "last_layer_influence": _timed(partial(scores.last_layer_influence, model, x, y)),
        "knn_features": _timed(
            lambda: scores.neighbour_disagreement(scores.penultimate(model, x).numpy(), labels)
        ),
        "knn_inputs": _timed(partial(scores.neighbour_disagreement, x.numpy(), labels)),
    }


def _probe_scores(model: Any, x: Tensor, y: Tensor, size: StudySize, study: Study) -> _Scores:
    """The probe's scores at the local gamma and at Table 1's, and what makes them believable."""
    labels, seed = y.numpy(), study.seed
    gamma, ruled = _timed(lambda: probe.local_gamma(model, x, y, seed))
    trace, drawn = _timed(
        partial(probe.weighted_draws, model, x, y, float(gamma), size.draws, seed)
    )
    found = {
        name: (score, ruled + drawn) for name, score in probe.probe_scores(trace, labels).items()
    }
    weights = weights_of(trace)
    assert weights is not None
    found["gamma"] = (np.array(gamma), ruled)
    found["draws_that_count"] = (np.array(weights.ess / size.draws), 0.0)
    third, error = probe.third_cumulant(trace)
    found["third_cumulant_known"] = (np.array((np.abs(third) > 2 * error).mean()), 0.0)
    if study.rate in size.chain_rates:
        settings = probe.ChainSettings(chains=size.chains, draws=size.chain_draws)
        chains, sampled = _timed(partial(probe.chains_around, model, x, y, settings, seed))
        of_chains = probe.probe_scores(chains, labels)
        del of_chains["flags_label_issues"]  # those of the local draws are judged
        found |= {f"{name}_table1": (score, sampled) for name, score in of_chains.items()}
    return found


def _logits(model: Any, x: Tensor) -> np.ndarray:
    with torch.no_grad():
        return model(x).numpy()


def _doubt(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """One minus the probability of the label."""
    return 1 - probabilities[np.arange(len(labels)), labels]


def _timed(compute: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    found = compute()
    return found, time.perf_counter() - started


def _plus(before: float, compute: Callable[[], Any]) -> tuple[Any, float]:
    """What it computes, and the seconds with those that were needed before."""
    found, seconds = _timed(compute)
    return found, before + seconds


# --- many studies ---


def run_studies(
    studies: Sequence[Study],
    size: StudySize,
    *,
    workers: int = 1,
    progress: bool = True,
    cached: bool = True,
) -> pd.DataFrame:
    """Studies side by side, each on one thread.

    Args:
        studies: what to run.
        size: of each.
        workers: processes.
        progress: show a bar.
        cached: take those that the cache has from there, and keep what is run.

    Returns:
        As :func:`run_study`, with ``task``, ``noise``, ``rate`` and ``seed``.
    """
    bar = progress_bar(total=len(studies), desc="studies", disable=not progress)
    one = partial(_kept_or_run if cached else _run_alone, size=size)
    found: list[pd.DataFrame] = []
    with bar:
        if workers == 1:
            for study in studies:
                found.append(one(study))
                bar.update()
        else:
            with ProcessPoolExecutor(workers) as pool:
                for table in pool.map(one, studies):
                    found.append(table)
                    bar.update()
    return pd.concat(found, ignore_index=True)


def _kept_or_run(study: Study, size: StudySize) -> pd.DataFrame:
    """One study, from the cache where it has it."""
    about = {
        "format": _FORMAT,
        "study": asdict(study),
        "size": asdict(size),
        "source": source_of(study.task),  # a stand-in for the data must not pass for them
        "versions": [".".join(v.split(".")[:2]) for v in (torch.__version__, sklearn.__version__)],
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_dir("labels") / f"{study.name}_{key}.json"
    if path.is_file():
        kept = json.loads(path.read_text())
        if kept["about"] == json.loads(json.dumps(about)):
            return pd.DataFrame(kept["table"])
    table = _run_alone(study, size)
    kept = {"about": about, "table": table.to_dict("list")}
    write_atomically(path, json.dumps(kept).encode())
    return table


def _run_alone(study: Study, size: StudySize) -> pd.DataFrame:
    """One study on one thread, with what it is of."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        table = run_study(study, size)
    finally:
        torch.set_num_threads(threads)
    for at, (name, value) in enumerate(asdict(study).items()):
        table.insert(at, name, value)
    return table


def keep_studies(path: Path, table: pd.DataFrame, size: StudySize) -> None:
    """Write the table of many studies into one file, with what made it."""
    axes = {
        name: sorted(table[name].unique().tolist())
        for name in ("task", "noise", "rate", "seed", "epoch", "score")
    }
    columns = {
        name: np.array([axes[name].index(value) for value in table[name]], np.uint8)
        for name in axes
    }
    for name in ("auroc", "average_precision", "seconds"):
        columns[name] = table[name].to_numpy(np.float32)
    about = {
        "axes": axes,
        "size": asdict(size),
        "sources": {task: source_of(task) for task in axes["task"]},
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "scikit-learn", "cleanlab")},
    }
    prerun.write(path, columns, about)


def kept_studies(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table that :func:`keep_studies` wrote, and what made it."""
    arrays, about = prerun.read(path)
    columns = {
        name: np.array(values)[arrays[name].astype(int)] for name, values in about["axes"].items()
    }
    for name in ("auroc", "average_precision", "seconds"):
        columns[name] = arrays[name].astype(float)
    return pd.DataFrame(columns), about


def main(argv: Sequence[str] | None = None) -> None:
    """Run the whole grid, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args(argv)
    size = StudySize()
    keep_studies(
        given.into, run_studies(grid(seeds=given.seeds), size, workers=given.workers), size
    )


if __name__ == "__main__":
    main()
