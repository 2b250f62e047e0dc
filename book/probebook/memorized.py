"""Which canaries were memorized: scores of each, and how well they tell planted from held out."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import xarray as xr
from scipy.optimize import brentq
from scipy.stats import rankdata

import probelib
from probebook.language_data import IGNORED, Windows
from probebook.memorization import detection

__all__ = [
    "SCORES",
    "auroc_interval",
    "canary_scores",
    "detection_table",
    "exposure",
    "over_networks",
    "paired_difference",
    "recall_at",
    "require_windows",
    "wilson",
]

SCORES: Mapping[str, str] = {
    "gain": "loss gain",
    "variance": "variance of the loss, K_ii",
    "mean_loss": "posterior mean loss, low",
    "loss": "loss, low",
    "loss_over_zlib": "loss over compressed length, low",
}
"""The scores that are compared, and their names in a table. A high one says: memorized."""

_Z = 1.959963984540054  # half of a 95 % interval of a standard normal


def canary_scores(
    trace: xr.Dataset, windows: Windows, loss: np.ndarray | None = None
) -> pd.DataFrame:
    """All :data:`SCORES` of every observed window, each turned so that high means memorized.

    The losses are of a whole window: the mean over the tokens of it that count, nats.

    Args:
        trace: that observes ``windows.data``, with losses per token or without.
        windows: what was observed.
        loss: l(w*) of each window, computed apart from the trace
            (:func:`probebook.gpt.window_losses`), shape (n,), nats. A trace without tokens cannot
            say otherwise which windows it has.

    Returns:
        A row a window: ``repetitions``, then the scores. ``gain`` and ``variance`` as they are
        (nats, nats squared); of ``mean_loss``, ``loss`` (nats) and ``loss_over_zlib`` (bits of the
        network a bit of the text compressed by zlib) the negative.

    Raises:
        ValueError: the trace observes other tokens than those of ``windows``, or has a loss that
            is not finite.
    """
    require_windows(trace, windows, loss)
    over: Literal["sample"] | None = "sample" if "token_id" in trace.coords else None
    gain = probelib.loss_gain(trace, over=over).values
    if over is None:
        of_windows = trace.init_loss.values.astype(np.float64)
    else:
        of_windows = np.nanmean(trace.init_loss.values.astype(np.float64), 1)
    counted = (windows.targets.numpy() != IGNORED).sum(1)
    bits = of_windows * counted / math.log(2)
    packed = np.array([8 * len(zlib.compress(text.encode(), 9)) for text in windows.texts])
    scores = pd.DataFrame(
        {
            "repetitions": windows.repetitions,
            "gain": gain,
            "variance": probelib.loss_kernel(trace, over=over).diagonal().values,
            "mean_loss": -(of_windows + gain),
            "loss": -of_windows,
            "loss_over_zlib": -bits / packed,
        }
    )
    bad = ~np.isfinite(scores).all(axis=1)
    if bad.any():
        raise ValueError(f"{int(bad.sum())} windows have a score that is not finite")
    return scores


def require_windows(trace: xr.Dataset, windows: Windows, loss: np.ndarray | None = None) -> None:
    """That a trace observes just these windows, in this order.

    Raises:
        ValueError: it does not, or it has no tokens and ``loss`` is not there to tell.
    """
    if "token_id" in trace.coords:
        tokens, wanted = trace.token_id.values, windows.targets.numpy()
        if tokens.shape != wanted.shape or (tokens != wanted).any():
            raise ValueError(
                "trace observes other tokens than windows has; sample with observe=windows.data"
            )
        return
    if loss is None:
        raise ValueError(
            "loss is None, and a trace without tokens cannot say which windows it observes; give "
            "probebook.gpt.window_losses(model, windows)"
        )
    found = trace.init_loss.values
    if found.shape != (len(windows),) or np.shape(loss) != found.shape:
        raise ValueError(
            f"trace observes {found.shape} samples, and there are {len(windows)} windows and "
            f"{np.shape(loss)} losses; give those that were observed"
        )
    if not np.allclose(found, loss, rtol=1e-3, atol=1e-4):
        raise ValueError(
            "trace has other losses at w* than these windows; sample with observe=windows.data"
        )


def detection_table(scores: pd.DataFrame, at: float = 0.01) -> pd.DataFrame:
    """Each score against the held-out canaries, for every number of repetitions and for all.

    Args:
        scores: of :func:`canary_scores`, canaries only.
        at: false positives that are allowed, as a share of those held out.

    Returns:
        A row a score and number of repetitions (0: all planted ones): ``score``, ``repetitions``,
        ``canaries``, ``auroc`` with its 95 % interval ``low`` to ``high``, ``recall`` with
        ``recall_low`` to ``recall_high``. The intervals are over canaries, as if others had been
        drawn; those of the recall hold the threshold fixed, which so few held out do not.

    Raises:
        ValueError: there are windows that are no canaries, or too few held out for ``at``.
    """
    repetitions = scores.repetitions.to_numpy()
    if (repetitions < 0).any():
        raise ValueError(f"{int((repetitions < 0).sum())} rows are no canaries; leave them out")
    held = repetitions == 0
    rows = []
    for name in SCORES:
        score = scores[name].to_numpy()
        for times in (0, *np.unique(repetitions[~held])):
            planted = ~held if times == 0 else repetitions == times
            both = held | planted
            auroc = detection(score[both], planted[both]).auroc
            low, high = auroc_interval(auroc, int(planted.sum()), int(held.sum()))
            recall = recall_at(score[planted], score[held], at)
            recall_low, recall_high = wilson(recall, int(planted.sum()))
            rows.append((name, int(times), int(planted.sum()), auroc, low, high, recall,
                         recall_low, recall_high))  # fmt: skip
    columns = ["score", "repetitions", "canaries", "auroc", "low", "high", "recall", "recall_low",
               "recall_high"]  # fmt: skip
    table = pd.DataFrame(rows, columns=columns)
    table.attrs["held_out"] = int(held.sum())
    return table


def over_networks(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables of several networks that memorized the same canaries, as one: means over networks.

    Args:
        tables: of :func:`detection_table`, one a network, with equal rows.

    Returns:
        As :func:`detection_table`, with ``auroc_lowest`` and ``auroc_highest`` over networks. The
        intervals are those that one network would have at the mean: the canaries are the same, so
        that several networks do not make them more.

    Raises:
        ValueError: there is no table, or two have different rows.
    """
    if not tables:
        raise ValueError("tables is empty; give one a network")
    keys = ["score", "repetitions", "canaries"]
    first = tables[0]
    if any(not table[keys].equals(first[keys]) for table in tables):
        raise ValueError("tables have different rows; give those of the same canaries")
    held = first.attrs["held_out"]
    mean = first.copy()
    for name in ("auroc", "recall"):
        every = np.stack([table[name] for table in tables])
        mean[name] = every.mean(0)
        if name == "auroc":
            mean["auroc_lowest"], mean["auroc_highest"] = every.min(0), every.max(0)
    for row in mean.index:
        canaries = int(mean.canaries[row])
        mean.loc[row, ["low", "high"]] = auroc_interval(mean.auroc[row], canaries, held)
        mean.loc[row, ["recall_low", "recall_high"]] = wilson(mean.recall[row], canaries)
    return mean


def paired_difference(
    scores: Sequence[pd.DataFrame], one: str, other: str, resamples: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """How much better one score tells planted from held out than another, and a 95 % interval.

    Args:
        scores: of :func:`canary_scores`, one a network, of the same canaries in the same order.
        one, other: names of :data:`SCORES`.
        resamples: of the bootstrap over canaries, planted and held out apart; all networks and
            both scores see the same canaries, so that what they share cancels.
        seed: of these.

    Returns:
        Difference of the AUROCs, mean over networks; its 2.5 and 97.5 % quantiles.

    Raises:
        ValueError: the networks have different canaries.
    """
    repetitions = scores[0].repetitions.to_numpy()
    if any(not np.array_equal(table.repetitions, repetitions) for table in scores):
        raise ValueError("scores are of different canaries; give the same for each network")
    planted, held = np.flatnonzero(repetitions > 0), np.flatnonzero(repetitions == 0)

    def difference(high: np.ndarray, low: np.ndarray) -> float:
        return float(np.mean([
            _auroc(table[one].to_numpy()[high], table[one].to_numpy()[low])
            - _auroc(table[other].to_numpy()[high], table[other].to_numpy()[low])
            for table in scores
        ]))  # fmt: skip

    rng = np.random.default_rng(seed)
    again = [difference(rng.choice(planted, len(planted)), rng.choice(held, len(held)))
             for _ in range(resamples)]  # fmt: skip
    low, high = np.quantile(again, [0.025, 0.975])
    return difference(planted, held), float(low), float(high)


def _auroc(high: np.ndarray, low: np.ndarray) -> float:
    """The share of pairs in which the high one is higher; equal ones count half."""
    return float(((high[:, None] > low).mean() + (high[:, None] >= low).mean()) / 2)


def auroc_interval(auroc: float, positives: int, negatives: int) -> tuple[float, float]:
    """A 95 % interval of an AUROC that is not empty where the AUROC is 0 or 1.

    Newcombe, *Confidence intervals for an effect size measure based on the Mann-Whitney statistic,
    part 2*, Statistics in Medicine 2006, method 5: all theta from which the estimate is within 1.96
    of Hanley and McNeil's standard errors, both sample sizes there replaced by their mean.

    Args:
        auroc: the estimate, in [0, 1].
        positives, negatives: how many of each it is from.

    Raises:
        ValueError: it is not in [0, 1], or there are none of one kind.
    """
    if not 0 <= auroc <= 1:
        raise ValueError(f"auroc must be in [0, 1], got {auroc}")
    if min(positives, negatives) < 1:
        raise ValueError(f"there are {positives} positives and {negatives} negatives; give both")
    more = (positives + negatives) / 2 - 1

    def beyond(theta: float) -> float:
        variance = theta * (1 - theta) / (positives * negatives)
        variance *= 1 + more * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (auroc - theta) ** 2 - _Z**2 * variance

    low = 0.0 if auroc == 0 else _root(beyond, 0.0, auroc)
    high = 1.0 if auroc == 1 else _root(beyond, auroc, 1.0)
    return low, high


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where it changes its sign; at an end where it is zero, the other one is looked for."""
    inset = 1e-12
    return float(brentq(function, low + inset, high - inset))


def recall_at(planted: np.ndarray, held_out: np.ndarray, share: float) -> float:
    """The share of planted ones found when at most ``share`` of those held out are called, too.

    What is called scores above a threshold; of equal scores all are called, or none.

    Raises:
        ValueError: there are too few held out for one false positive to be that rare.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be in (0, 1), got {share}")
    allowed = math.floor(share * len(held_out) + 1e-9)
    if allowed < 1:
        raise ValueError(
            f"{len(held_out)} held out cannot show {share:.2g} false positives; give at least "
            f"{math.ceil(1 / share)}"
        )
    if not (np.isfinite(planted).all() and np.isfinite(held_out).all()):
        raise ValueError("a score is not finite")
    threshold = np.sort(held_out)[::-1][allowed]  # the highest that must not be called
    return float((planted > threshold).mean())


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of n (JASA 1927)."""
    middle = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n * n))
    # At 0 and 1 one end is the share itself, but for rounding.
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


def exposure(loss: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Exposure of each canary among those held out, bits (Carlini et al., 2019).

    log2 of how many there are, less log2 of the rank of its loss; it ends at log2(held out + 1),
    where it is lower than all of them, and is about 1.44 on average for what was not memorized.

    Args:
        loss: of planted canaries, shape (n,).
        held_out: losses of those that were not, shape (m,).
    """
    every = len(held_out) + 1
    # Its rank among the held out and itself, equal ones counted half.
    below = np.array([rankdata(np.r_[value, held_out])[0] for value in np.ravel(loss)])
    return np.log2(every) - np.log2(below)
