"""How alike two samples are to a network: by the loss kernel, and by what is cheaper.

The loss kernel K, its correlation R, and its rivals: cosines of features, gradients, logits and
inputs. All are (rows, columns) or (n, n) arrays in which more means more alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from scipy.stats import binomtest
from scipy.stats import t as student_t
from torch import Tensor, nn

import probelib
from probebook import alignment as al
from probebook.models import MLP
from probelib.influence import per_sample_gradients

__all__ = [
    "GAMMAS",
    "Draws",
    "Interval",
    "drawn",
    "gradient_products",
    "hidden_features",
    "mean_interval",
    "numbers_of",
    "rival_features",
    "settled",
    "share_interval",
]

GAMMAS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0)
"""Localizations that :func:`settled` tries, smallest first."""


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval.

    Attributes:
        value: the number, such as a mean over repetitions.
        low, high: ends of the interval; not finite where there is one repetition only.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isfinite(self.low) and np.isfinite(self.high):
            return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}"

    def numbers(self, name: str) -> dict[str, float]:
        """The three by the names ``name``, ``name_low`` and ``name_high``, where they are known."""
        if not np.isfinite(self.low):
            return {name: self.value}
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def mean_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """The mean of independent repetitions and its 95 % t-interval.

    Raises:
        ValueError: there are none.
    """
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or not len(found):
        raise ValueError(f"values has shape {found.shape}; give one number per repetition")
    mean, count = float(found.mean()), len(found)
    if count == 1:
        return Interval(mean, np.nan, np.nan)
    half = student_t.ppf(0.975, count - 1) * found.std(ddof=1) / np.sqrt(count)
    return Interval(mean, mean - float(half), mean + float(half))


def share_interval(hits: np.ndarray) -> Interval:
    """The share of true values and its 95 % interval (Wilson, 1927).

    Args:
        hits: boolean, shape (n,).

    Raises:
        ValueError: there are none.
    """
    found = np.asarray(hits, bool)
    if found.ndim != 1 or not len(found):
        raise ValueError(f"hits has shape {found.shape}; give one per query")
    ends = binomtest(int(found.sum()), len(found)).proportion_ci(method="wilson")
    return Interval(float(found.mean()), float(ends.low), float(ends.high))


@dataclass(frozen=True)
class Draws:
    """Whether the draws of a local posterior are a neighbourhood in which the network works.

    Attributes:
        n_beta, localization: of Eq. 1.
        spread: standard deviation of n_beta L over draws of N(w*, I / localization), nats. It is
            that of the log weights which make them draws of Eq. 1.
        share: the effective share of the draws under these weights, in (0, 1].
        trained_loss: L(w*), nats.
        loss: the mean of L over the draws, nats.
        count: draws.
    """

    n_beta: float
    localization: float
    spread: float
    share: float
    trained_loss: float
    loss: float
    count: int


def drawn(posterior: probelib.LocalPosterior, trace: xr.Dataset) -> Draws:
    """What weighted draws say of themselves.

    Args:
        posterior: Eq. 1.
        trace: from :func:`probelib.importance_sample` or :func:`probelib.gradient_pairs`.
    """
    log_weight = trace.log_weight.values.ravel()
    weight = np.exp(log_weight - log_weight.max())
    with torch.no_grad():
        at_rest = float(posterior.mean_loss(posterior.center))
    return Draws(
        posterior.n_beta,
        posterior.localization,
        float(log_weight.std(ddof=1)),
        float(weight.sum() ** 2 / np.square(weight).sum() / len(weight)),
        at_rest,
        float(-log_weight.mean() / posterior.n_beta),
        len(log_weight),
    )


def numbers_of(draws: Sequence[Draws], prefix: str) -> dict[str, float]:
    """What the draws of several networks say, by the names under which a chapter records them.

    The largest spread, the smallest share, the median localization, and mean losses.
    """
    return {
        f"{prefix}_spread": max(each.spread for each in draws),
        f"{prefix}_share": min(each.share for each in draws),
        f"{prefix}_localization": float(np.median([each.localization for each in draws])),
        f"{prefix}_trained_loss": float(np.mean([each.trained_loss for each in draws])),
        f"{prefix}_drawn_loss": float(np.mean([each.loss for each in draws])),
    }


def settled(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    *,
    n_beta: float = 10.0,
    spread: float = 0.5,
    gammas: Sequence[float] = GAMMAS,
    draws: int = 24,
    seed: int = 0,
) -> probelib.LocalPosterior:
    """The local posterior at the smallest localization at which the draws' weights are alike.

    With n_beta L spread by at most ``spread`` over draws of N(w*, I / gamma), nearly all of these
    count under Eq. 1, and the network keeps most of what it has learned.

    Args:
        model: the trained network, with cross entropy as its loss.
        data: what it was trained on: inputs and labels.
        n_beta: of Eq. 1.
        spread: the largest standard deviation of n_beta L, nats.
        gammas: localizations to try, smallest first.
        draws: to measure it from.
        seed: of these draws.

    Raises:
        ValueError: none of the localizations is enough.
    """
    first = probelib.LocalPosterior(
        model, probelib.cross_entropy, data, n_beta=n_beta, localization=gammas[0]
    )
    some = tuple(part[:2] for part in data)
    for gamma in gammas:
        posterior = first.at(localization=gamma)
        trace = probelib.importance_sample(
            posterior, draws, observe=some, seed=seed, progress=False
        )
        if trace.log_weight.values.std(ddof=1) <= spread:
            return posterior
    raise ValueError(
        f"gammas ends at {gammas[-1]:g}, where n_beta L still spreads by more than {spread:g}; "
        "give larger ones"
    )


def hidden_features(model: MLP, x: Tensor) -> list[np.ndarray]:
    """What each hidden layer gives, after its ReLU: arrays (n, width), the first layer first."""
    found, value = [], x.flatten(1)
    with torch.no_grad():
        for layer in model.layers[:-1]:
            value = layer(value)
            if isinstance(layer, nn.ReLU):
                found.append(value.numpy())
    return found


def rival_features(model: MLP, x: Tensor, centre: int) -> dict[str, np.ndarray]:
    """What some rivals of the kernel take the cosine of, by the name of the rival.

    Args:
        model: the network.
        x: inputs (n, ...).
        centre: the means that are taken off come from so many samples, the first.

    Returns:
        ``features`` and ``features_centred`` (the last hidden layer), ``logits``, ``inputs``, and
        where there are several hidden layers ``layers`` (all of them, each centred and at the
        same size): arrays (n, d).
    """
    layers = hidden_features(model, x)
    moved = [layer - layer[:centre].mean(0) for layer in layers]
    with torch.no_grad():
        logits = model(x).numpy()
    found = {
        "features": layers[-1],
        "features_centred": moved[-1],
        "logits": logits,
        "inputs": x.flatten(1).numpy(),
    }
    if len(layers) > 1:
        size = [float(np.square(layer[:centre]).sum(1).mean()) ** 0.5 for layer in moved]
        sizes = zip(moved, size, strict=True)
        found["layers"] = np.hstack([layer / max(of, 1e-12) for layer, of in sizes])
    return found


def gradient_products(
    posterior: probelib.LocalPosterior,
    rows: tuple[Tensor, Tensor],
    cols: tuple[Tensor, Tensor],
    batch_size: int = 200,
) -> tuple[np.ndarray, np.ndarray]:
    """Inner products and cosines of the gradients at w* of some samples with those of others.

    Args:
        posterior: around the network; the gradients are those of its loss.
        rows, cols: samples, m and n of them; the gradients of the rows are all held at once.
        batch_size: columns at a time.

    Returns:
        Two arrays, shape (m, n) each; the cosine is 0 where a gradient is.
    """
    left = per_sample_gradients(posterior, rows)
    inner, cosine = np.empty((2, len(left), len(cols[1])))
    for start in range(0, len(cols[1]), batch_size):
        part = slice(start, start + batch_size)
        right = per_sample_gradients(posterior, (cols[0][part], cols[1][part]))
        inner[:, part] = left @ right.T
        cosine[:, part] = al.cosine(left, right)
    return inner, cosine
