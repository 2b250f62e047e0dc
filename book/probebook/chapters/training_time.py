"""Chapter 11: trainings with and without wrong labels, epoch by epoch."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy.stats import spearmanr

import probelib
from probebook.chapter import Chapter
from probebook.curves import passes
from probebook.memorization import detection
from probebook.memorized import auroc_interval
from probebook.mnist import corrupt_labels
from probebook.similarities import Interval, mean_interval
from probebook.training import Recipe
from probebook.trajectories import Trajectory, learned_from, trained_trajectory
from probelib.estimators.series import estimate_mean

ACCURACY, DETECTED = 0.5, 0.9
"""The levels of the question: of the accuracy on wrong labels, and of an AUROC."""


@dataclass(frozen=True, eq=False)
class Run:
    """A training, and the labels that it was given.

    Attributes:
        trajectory: its checkpoints.
        labels: that it was trained on, shape (n,).
        noisy: whether a label is wrong, boolean, shape (n,).
    """

    trajectory: Trajectory
    labels: torch.Tensor
    noisy: np.ndarray


def trained_runs(
    recipe: Recipe,
    images: torch.Tensor,
    true_labels: torch.Tensor,
    noise: float,
    *,
    epochs: Sequence[int],
    seeds: int,
    seed: int,
) -> dict[tuple[str, int], Run]:
    """Networks with the true labels, and with some wrong ones, by ("clean" or "noisy", number).

    Args:
        recipe: of all.
        images: uint8 ``(n, 28, 28)``.
        true_labels: int64 ``(n,)``.
        noise: share of wrong labels.
        epochs: after which weights are kept.
        seeds: networks of each kind; each noisy one has wrong labels of its own.
        seed: of the first; the next have the next.
    """
    runs = {}
    for number in range(seeds):
        for kind in ("noisy", "clean"):
            labels, wrong = true_labels, torch.zeros(len(true_labels), dtype=torch.bool)
            if kind == "noisy":
                labels, wrong = corrupt_labels(true_labels, noise, seed=seed + number)
            found = trained_trajectory(recipe, images, labels, epochs=epochs, seed=seed + number)
            runs[kind, number] = Run(found, labels, wrong.numpy())
    return runs


# -- wrong labels ------------------------------------------------------------------------------


def scores(series: xr.Dataset) -> dict[str, np.ndarray]:
    """What marks a wrong label at each checkpoint: shape (checkpoints, samples) each, nats."""
    traces = [series.isel(checkpoint=c) for c in range(series.sizes["checkpoint"])]
    gain = np.array([probelib.loss_gain(trace).values for trace in traces])
    loss = series.init_loss.values.astype(np.float64)
    return {"loss gain": gain, "loss": loss, "loss along the chains": loss + gain}


def aurocs(series: xr.Dataset, noisy: np.ndarray) -> dict[str, np.ndarray]:
    """AUROC for wrong labels of each score at each checkpoint, shape (checkpoints,) each.

    Args:
        series: of the observed samples.
        noisy: whether their labels are wrong, boolean, shape (samples,).
    """
    return {
        name: np.array([detection(row, noisy).auroc for row in rows])
        for name, rows in scores(series).items()
    }


_SCALES: Mapping[str, tuple[Callable, Callable]] = {
    "plain": (lambda x: x, lambda x: x),
    "log": (np.log, np.exp),
    "correlation": (np.arctanh, np.tanh),
    "auroc": (lambda x: np.arctanh(2 * x - 1), lambda x: (1 + np.tanh(x)) / 2),
}


def over_seeds(values: Sequence[float], scale: str = "plain") -> Interval:
    """Mean and 95 % t-interval over networks; infinite where one of them is.

    Args:
        values: one a network.
        scale: on which the mean is taken: "plain", "log", "correlation" (Fisher's z) or "auroc"
            (the same of 2 AUROC - 1), so that no interval leaves what is possible.
    """
    found = np.asarray(values, np.float64)
    if not np.isfinite(found).all():
        return Interval(math.inf, math.nan, math.nan)
    there, back = _SCALES[scale]
    with np.errstate(divide="ignore"):
        moved = there(found)
    if not np.isfinite(moved).all():  # an end of the scale was reached
        return mean_interval(found)
    got = mean_interval(moved)
    return Interval(*(float(back(end)) for end in (got.value, got.low, got.high)))


def record_interval(chapter: Chapter, key: str, found: Interval, digits: str = ".3g") -> None:
    """Record a number, its ``_low`` and ``_high``, and ``_text``, which says what is unknown."""
    if not math.isfinite(found.value):
        chapter.record(**{f"{key}_text": "not reached in every network"})
        return
    chapter.record(**{key: found.value})
    text = f"{found.value:{digits}}"
    if math.isfinite(found.low):
        chapter.record(**{f"{key}_low": found.low, f"{key}_high": found.high})
        text += f" [{found.low:{digits}}, {found.high:{digits}}]"
    chapter.record(**{f"{key}_text": text})


def against_unseen(
    series: xr.Dataset, noisy: np.ndarray, unseen: xr.Dataset
) -> dict[str, np.ndarray]:
    """AUROCs that tell what was memorized from what is only wrong, shape (checkpoints,) each.

    Args:
        series: of the observed samples.
        noisy: whether their labels are wrong, boolean, shape (samples,).
        unseen: of samples with wrong labels that the network was not trained on.

    Returns:
        ``loss gain`` and ``low loss``: of wrong labels in the training set against unseen ones.
        ``unseen gain``: of the gain for unseen wrong labels against right ones.
    """
    seen, other = scores(series), scores(unseen)
    count = other["loss"].shape[1]
    memorized = np.arange(count + noisy.sum()) >= count
    wrong = np.arange(count + (~noisy).sum()) < count
    rows = [
        (
            detection(np.r_[far, gain[noisy]], memorized).auroc,
            detection(-np.r_[far_loss, loss[noisy]], memorized).auroc,
            detection(np.r_[far, gain[~noisy]], wrong).auroc,
        )
        for gain, loss, far, far_loss in zip(
            seen["loss gain"], seen["loss"], other["loss gain"], other["loss"], strict=True
        )
    ]
    return dict(zip(("loss gain", "low loss", "unseen gain"), np.transpose(rows), strict=True))


def record_unseen(
    chapter: Chapter, kept: Sequence[int], found: Sequence[Mapping[str, np.ndarray]]
) -> None:
    """Record what :func:`against_unseen` says of the noisy networks.

    Args:
        chapter: where to.
        kept: epochs of the checkpoints.
        found: one a network.
    """
    for name, key in (("loss gain", "seen_gain"), ("low loss", "seen_loss")):
        at = [passes(np.array(kept, float), one[name], DETECTED, log=True) for one in found]
        record_interval(chapter, f"{key}_epoch", over_seeds(at, "log"))
        for place, when in ((0, "first"), (-1, "last")):
            ends = over_seeds([one[name][place] for one in found], "auroc")
            record_interval(chapter, f"auroc_{key}_{when}", ends, ".2f")
    first = over_seeds([one["unseen gain"][0] for one in found], "auroc")
    record_interval(chapter, "auroc_gain_unseen_first", first, ".2f")


def unseen_in_words(chapter: Chapter) -> str:
    """Whether the early AUROC of the gain is memorization."""
    numbers = chapter.numbers
    low, high = (numbers.get(f"auroc_seen_gain_first_{end}", 0.5) for end in ("low", "high"))
    said = (
        "At the first checkpoint, wrong labels that the network was never given have an AUROC of "
        "{auroc_gain_unseen_first_text} against right ones, and those of its training set "
        "{auroc_gain_first_text}. "
    )
    if low > 0.5:
        said += "Gains tell the two kinds of wrong label apart already there: "
    elif high < 0.5:
        said += "Between the two kinds of wrong label the unseen have the higher gains there: "
    else:
        said += "Gains do not tell the two kinds of wrong label apart there: "
    return said + (
        "an AUROC of **{auroc_seen_gain_first_text}** for having been in the training set, and "
        "{auroc_seen_gain_last_text} at the last checkpoint. By this measure the gain passes 0.9 "
        "at epoch: **{seen_gain_epoch_text}**; a low loss at epoch: **{seen_loss_epoch_text}**."
    )


def record_race(
    chapter: Chapter,
    runs: Sequence[Run],
    found: Sequence[Mapping[str, np.ndarray]],
    observed: np.ndarray,
) -> None:
    """Record when wrong labels are memorized, and when each score tells them.

    Args:
        chapter: where to.
        runs: the noisy networks.
        found: :func:`aurocs` of each, at the kept epochs.
        observed: positions of the observed samples.
    """
    kept = np.array(list(runs[0].trajectory.states), np.float64)
    fitted, gain, overtakes = [], [], []
    for run, scored in zip(runs, found, strict=True):
        every = np.arange(1, len(run.trajectory.correct) + 1)
        fitted.append(passes(every, run.trajectory.accuracy(run.noisy), ACCURACY, log=True))
        gain.append(passes(kept, scored["loss gain"], DETECTED, log=True))
        overtakes.append(passes(kept, scored["loss gain"] - scored["loss"], 0.0, log=True))
    record_interval(chapter, "memorization_epoch_accuracy", over_seeds(fitted, "log"))
    record_interval(chapter, "memorization_epoch_gain", over_seeds(gain, "log"))
    record_interval(chapter, "gain_overtakes_loss_epoch", over_seeds(overtakes, "log"))
    lead = np.array(fitted) / np.array(gain) if np.isfinite([*fitted, *gain]).all() else [math.inf]
    record_interval(chapter, "gain_lead", over_seeds(lead, "log"))
    for name, key in (("loss gain", "gain"), ("loss", "loss")):
        for at, when in ((0, "first"), (-1, "last")):
            ends = over_seeds([scored[name][at] for scored in found], "auroc")
            record_interval(chapter, f"auroc_{key}_{when}", ends, ".3f")
    wrong = [int(run.noisy[observed].sum()) for run in runs]
    chapter.record(gain_above_chance_epoch=_above_chance(kept, wrong, len(observed), found))


def _above_chance(
    kept: np.ndarray, wrong: Sequence[int], count: int, found: Sequence[Mapping[str, np.ndarray]]
) -> str:
    """The first checkpoint at which the gain's AUROC is surely above 0.5 in every network."""
    lows = [
        [auroc_interval(value, few, count - few)[0] for value in scored["loss gain"]]
        for few, scored in zip(wrong, found, strict=True)
    ]
    above = np.flatnonzero((np.array(lows) > 0.5).all(0))
    return f"epoch {kept[above[0]]:g}" if len(above) else "no checkpoint"


def race_in_words(chapter: Chapter) -> str:
    """What came of the question whether the gain sees memorization before the accuracy does."""
    numbers = chapter.numbers
    if "gain_lead" not in numbers:
        return (
            "Accuracy on wrong labels passes one half: {memorization_epoch_accuracy_text}; the "
            "gain's AUROC passes 0.9: {memorization_epoch_gain_text}."
        )
    said = (
        "Half of the wrong labels are memorized at epoch **{memorization_epoch_accuracy_text}**, "
        "and the gain's AUROC for them passes 0.9 at epoch **{memorization_epoch_gain_text}**. "
    )
    if numbers.get("gain_lead_low", -math.inf) > 1:
        said += "The gain is at its level earlier, by a factor of {gain_lead_text} in epochs. "
    elif numbers.get("gain_lead_high", math.inf) < 1:
        said += "The gain is at its level later: the ratio of the epochs is {gain_lead_text}. "
    else:
        said += "Which is first is not known: the ratio of the epochs is {gain_lead_text}. "
    if numbers["auroc_loss_first"] > numbers["auroc_gain_first"]:
        said += (
            "But the loss needs no memorization: at the first checkpoint its AUROC is "
            "**{auroc_loss_first_text}**, that of the gain {auroc_gain_first_text}. "
        )
    if "gain_overtakes_loss_epoch" in numbers:
        said += "The gain is the better of the two from epoch {gain_overtakes_loss_epoch_text} on."
    return said


def race_rows(
    chapter: Chapter, runs: Sequence[Run], series: Sequence[xr.Dataset], observed: np.ndarray
) -> list[dict[str, str]]:
    """A line a checkpoint: accuracy, AUROCs, and gains of wrong labels that are fitted or not yet.

    Means over networks, ± the standard deviation between them; recorded, too.

    Args:
        chapter: where to.
        runs: the noisy networks.
        series: of each.
        observed: positions of the observed samples.
    """
    found = [scores(one) for one in series]
    rows = []
    for at, epoch in enumerate(runs[0].trajectory.states):
        columns: dict[str, list[float]] = {}
        for run, scored in zip(runs, found, strict=True):
            noisy = run.noisy[observed]
            right = run.trajectory.correct[epoch - 1][observed]
            early = detection_or_nan(scored["loss gain"][at], noisy & ~right, ~noisy)
            for name, value in (
                ("accuracy, wrong labels", run.trajectory.accuracy(run.noisy)[epoch - 1]),
                ("AUROC gain", detection(scored["loss gain"][at], noisy).auroc),
                ("AUROC loss", detection(scored["loss"][at], noisy).auroc),
                ("AUROC gain, wrong labels not yet fitted", early),
                ("gain, right labels", scored["loss gain"][at][~noisy].mean()),
                ("gain, wrong labels", scored["loss gain"][at][noisy].mean()),
            ):
                columns.setdefault(name, []).append(value)
        rows.append({"epoch": str(epoch)} | {k: mean_and_spread(v) for k, v in columns.items()})
        for name, values in columns.items():
            mean, spread = known_moments(values)
            word = "_".join(re.findall(r"[a-z]+", name.lower()))
            record_finite(chapter, f"{word}_{epoch}", race=mean, race_spread=spread)
    return rows


def detection_or_nan(score: np.ndarray, one: np.ndarray, other: np.ndarray) -> float:
    """AUROC of a score for one part against another; NaN where either has fewer than five."""
    if min(one.sum(), other.sum()) < 5:
        return math.nan
    both = one | other
    return detection(score[both], one[both]).auroc


def known_moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of what is known; NaN of none, and of a single one."""
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    mean = float(known.mean()) if len(known) else math.nan
    return mean, float(known.std(ddof=1)) if len(known) > 1 else math.nan


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation of what is known, as text."""
    mean, spread = known_moments(values)
    if math.isnan(mean):
        return "–"
    return f"{mean:.2f}" + ("" if math.isnan(spread) else f" ± {spread:.2f}")


# -- gains and LLCs ----------------------------------------------------------------------------


def gain_curves(series: xr.Dataset, parts: Mapping[str, np.ndarray]) -> dict[str, tuple]:
    """Mean gains of parts of the samples, for :func:`probebook.figures.gains_in_training`.

    Args:
        series: of the observed samples.
        parts: name -> which, boolean, shape (samples,).
    """
    x = series["checkpoint"].values.astype(float)
    curves = {}
    for name, part in parts.items():
        mean, error, low, high = [], [], [], []
        for at in range(len(x)):
            trace = series.isel(checkpoint=at, sample=np.flatnonzero(part))
            found = estimate_mean(probelib.mean_loss_change(trace))
            gain = probelib.loss_gain(trace).values
            mean.append(found.value)
            error.append(found.mcse)
            low.append(np.quantile(gain, 0.1))
            high.append(np.quantile(gain, 0.9))
        curves[name] = (x, *map(np.array, (mean, error, low, high)))
    return curves


def change_rows(chapter: Chapter, series: xr.Dataset) -> list[dict[str, str]]:
    """Record how LLC and mean gain change from one checkpoint to the next, with paired errors."""
    names = series["checkpoint"].values
    rows = []
    for before, after in pairwise(names):
        pair = series.sel(checkpoint=before), series.sel(checkpoint=after)
        found = probelib.compare(*pair)
        alone = [probelib.local_learning_coefficient(trace).mcse for trace in pair]
        record_finite(
            chapter,
            f"{before}_to_{after}",
            change_llc=found.llc.value,
            change_llc_mcse=found.llc.mcse,
            change_llc_step_bias=found.llc.step_bias,
            change_llc_unpaired_mcse=math.hypot(*alone),
            change_gain=found.mean_gain.value,
            change_gain_mcse=found.mean_gain.mcse,
        )
        rows.append(
            {
                "epochs": f"{before} to {after}",
                "change of the LLC": f"{found.llc.value:+.3f} ± {found.llc.mcse:.3f}",
                "step bias of the change": f"{found.llc.step_bias:+.2f}",
                "error, if it were not paired": f"{math.hypot(*alone):.2f}",
                "change of the mean gain": f"{found.mean_gain.value:+.4f} ± "
                f"{found.mean_gain.mcse:.4f}",
            }
        )
    return rows


def record_finite(chapter: Chapter, key: str, **numbers: float) -> None:
    """Record those numbers that are known, each as ``<its name>_<key>``."""
    chapter.record(**{f"{k}_{key}": float(v) for k, v in numbers.items() if np.isfinite(v)})


def table_rows(chapter: Chapter, tables: Mapping[str, pd.DataFrame]) -> list[dict[str, str]]:
    """Record LLC, step bias, quantiles of the gains of each checkpoint; a line of a table each."""
    for name, table in tables.items():
        for epoch, row in table.drop(columns="verdict").iterrows():
            record_finite(chapter, f"{name}_{epoch}", **{f"at_{k}": v for k, v in row.items()})
    return [
        {
            "labels": name,
            "epoch": str(epoch),
            "LLC": f"{row.llc:.2f} ± {row.llc_mcse:.2f}",
            "step bias": "–" if math.isnan(row.llc_step_bias) else f"{row.llc_step_bias:+.2f}",
            "gains: 10, 50, 90 %": f"{row.gain_q10:.2f}, {row.gain_q50:.2f}, {row.gain_q90:.2f}",
            "not fitted": f"{row.not_fitted:.1%}",
            "verdict": row.verdict,
        }
        for name, table in tables.items()
        for epoch, row in table.iterrows()
    ]


def record_tables(chapter: Chapter, tables: Mapping[str, pd.DataFrame]) -> None:
    """Record the LLC of the first, the lowest and the last checkpoint, and the verdicts.

    Args:
        chapter: where to.
        tables: "right" and "wrong" labels -> :func:`probelib.checkpoint_table`.
    """
    for name, table in tables.items():
        lowest = table["llc"].idxmin()
        for when, epoch in (
            ("first", table.index[0]),
            ("lowest", lowest),
            ("last", table.index[-1]),
        ):
            row = table.loc[epoch]
            chapter.record(**{f"llc_{name}_{when}": row.llc})
            if math.isfinite(row.llc_mcse):
                chapter.record(**{f"llc_{name}_{when}_mcse": row.llc_mcse})
            if math.isfinite(row.llc_step_bias):
                chapter.record(**{f"llc_{name}_{when}_step_bias": row.llc_step_bias})
            error = f"{row.llc_mcse:.2f}" if math.isfinite(row.llc_mcse) else "not known"
            bias = f"{row.llc_step_bias:+.2f}" if math.isfinite(row.llc_step_bias) else "not known"
            chapter.record(
                **{
                    f"llc_{name}_{when}_text": f"{row.llc:.2f} ± {error}",
                    f"llc_{name}_{when}_bias_text": bias,
                }
            )
        bad = [str(epoch) for epoch in table.index[table["verdict"] == "wrong"]]
        chapter.record(
            **{
                f"llc_{name}_lowest_epoch": int(lowest),
                f"verdicts_{name}_good": int((table["verdict"] == "good").sum()),
                f"verdicts_{name}_wrong": len(bad),
                f"verdicts_{name}_wrong_epochs": ", ".join(bad) or "none",
            }
        )
    chapter.record(checkpoints=len(tables[name]))


# -- the order of learning ---------------------------------------------------------------------


def record_order(
    chapter: Chapter,
    runs: Mapping[tuple[str, int], Run],
    series: Mapping[tuple[str, int], xr.Dataset],
    observed: np.ndarray,
) -> list[dict[str, str]]:
    """Record how well the order of learning predicts gains and losses at the end; rows of a table.

    Spearman's correlation in each network, over the observed samples; mean and 95 % t-interval over
    networks.

    Args:
        chapter: where to: ``spearman_learning_order_gain`` for the networks with right labels.
        runs, series: by ("clean" or "noisy", number).
        observed: positions of the observed samples.
    """
    rows = []
    for kind, which, end, words in (
        ("clean", "all", "", "right labels only: all digits"),
        ("noisy", "all", "_noisy", "with wrong labels: all digits"),
        ("noisy", "right", "_noisy_right", "with wrong labels: digits whose label is right"),
        ("noisy", "wrong", "_noisy_wrong", "with wrong labels: digits whose label is wrong"),
    ):
        found: dict[str, list[float]] = {"gain": [], "loss": []}
        for (of, number), run in runs.items():
            if of != kind:
                continue
            noisy = run.noisy[observed]
            part = {"all": np.ones_like(noisy), "right": ~noisy, "wrong": noisy}[which]
            order = learned_from(run.trajectory.correct)[observed][part]
            scored = scores(series[of, number])
            for name, key in (("loss gain", "gain"), ("loss", "loss")):
                found[key].append(float(spearmanr(order, scored[name][-1][part]).statistic))
        row = {"networks": words}
        for key, values in found.items():
            name = f"spearman_learning_order_{key}{end}"
            record_interval(chapter, name, over_seeds(np.nan_to_num(values), "correlation"), ".2f")
            row[f"order of learning with the final {key}"] = chapter.numbers[f"{name}_text"]
        rows.append(row)
    return rows


def order_in_words(chapter: Chapter) -> str:
    """What the order of learning says of the final gain, and whether the loss is told better."""
    numbers = chapter.numbers
    key = "spearman_learning_order"
    low, high = (numbers.get(f"{key}_gain_{end}", math.nan) for end in ("low", "high"))
    said = (
        "With true labels, the order of learning and the final gain have a rank correlation of "
        "**{spearman_learning_order_gain_text}**: "
    )
    if low > 0:
        said += "what is learned later has the higher gain. "
    elif high < 0:
        said += "what is learned later has the lower gain. "
    else:
        said += "its sign is not known. "
    said += "With the final loss it is {spearman_learning_order_loss_text}. "
    said += (
        "With wrong labels, that of the gain is {spearman_learning_order_gain_noisy_text} "
        "over all digits, {spearman_learning_order_gain_noisy_right_text} among right and "
        "{spearman_learning_order_gain_noisy_wrong_text} among wrong labels."
    )
    return said


def record_next(
    chapter: Chapter,
    runs: Sequence[Run],
    series: Sequence[xr.Dataset],
    observed: np.ndarray,
    at: int,
) -> None:
    """Record whether gain and loss of wrong labels that are not fitted tell which are learned next.

    Args:
        chapter: where to: ``exercise_next_gain`` and ``exercise_next_loss``, Spearman's correlation
            with the epoch from which a sample stays right.
        runs, series: the noisy networks.
        observed: positions of the observed samples.
        at: number of the checkpoint.
    """
    epoch = list(runs[0].trajectory.states)[at]
    found: dict[str, list[float]] = {"gain": [], "loss": []}
    for run, one in zip(runs, series, strict=True):
        right = run.trajectory.correct[epoch - 1][observed]
        early = run.noisy[observed] & ~right
        learned = learned_from(run.trajectory.correct)[observed][early]
        scored = scores(one)
        for name, key in (("loss gain", "gain"), ("loss", "loss")):
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # where all are learned at once, there is no order
                rank = float(spearmanr(learned, scored[name][at][early]).statistic)
            found[key].append(rank)
    chapter.record(exercise_next_epoch=epoch)
    for key, values in found.items():
        name = f"exercise_next_{key}"
        if np.isfinite(values).all():
            record_interval(chapter, name, over_seeds(values, "correlation"), ".2f")
        else:
            chapter.record(**{f"{name}_text": "not known"})


def answer_in_words(chapter: Chapter) -> str:
    """The answer of the chapter in few sentences, as the run was."""
    numbers = chapter.numbers
    said = (
        "Half of the wrong labels are memorized at epoch **{memorization_epoch_accuracy_text}**; "
        "the gain's AUROC for them passes 0.9 at **{memorization_epoch_gain_text}**"
    )
    if numbers.get("auroc_seen_gain_first_low", 0.0) <= 0.5:
        said += (
            ". What it sees early is that a label is wrong, not that it is memorized: wrong labels "
            "that were never trained on score as high (AUROC between both: "
            "{auroc_seen_gain_first_text} at first, {auroc_seen_gain_last_text} at the end)"
        )
    if "gain_overtakes_loss_epoch" in numbers:
        said += ". Up to epoch {gain_overtakes_loss_epoch_text} the loss is the better detector"
    return said + (
        ". The LLC of a linear network's own map passes the middles of its known coefficients at "
        "**{stage_times_llc}**; the stages are at {stage_times_known}, and the times of the LLC "
        "move with $n\\beta$ and $\\gamma$."
    )


def record_front(chapter: Chapter) -> None:
    """Record what the front page says of the chapter, whatever a run could know."""
    chapter.record(
        front_race="accuracy {memorization_epoch_accuracy_text}; gain "
        "{memorization_epoch_gain_text}".format(**chapter.numbers),
        front_stages="known {stage_times_known}; LLC {stage_times_llc}".format(**chapter.numbers),
        front_order=chapter.numbers["spearman_learning_order_gain_text"],
    )


def show_page(chapter: Chapter, page: str) -> None:
    """Show a view that needs no kernel, and record its size."""
    from IPython.display import HTML, display

    chapter.record(view_kilobytes=round(len(page.encode()) / 1000))
    display(HTML(page))
