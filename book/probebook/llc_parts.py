"""The LLC of a trace computed another way, and taken apart by groups of samples (chapter 05)."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor, nn

import probelib
from probebook.toys import with_error
from probelib import Estimate
from probelib.contract import required
from probelib.estimators import share


def streamed_llc(trace: xr.Dataset) -> float:
    """nb (E[L] - L(w*)) draw by draw: first over the samples, then over the draws, in float64.

    It shares no arithmetic with :func:`probelib.loss_gain`, which goes sample by sample and
    subtracts the losses at w* first.

    Args:
        trace: from :func:`probelib.sample`.
    """
    along = [
        np.add.reduce(draw, dtype=np.float64) / trace.sizes["sample"]
        for rows in _draws(trace)
        for draw in rows
    ]
    at_center = trace.init_loss.values.astype(np.float64).mean()
    return required(trace, "n_beta") * float(np.mean(along) - at_center)


def partial_llc(trace: xr.Dataset, groups: np.ndarray) -> np.ndarray:
    r"""The part of the LLC that lies in each group of samples, at every draw.

    :math:`\beta \sum_{i \in G} \Delta\ell_i(w)`, whose mean over the draws is
    :math:`\beta \sum_{i \in G} \mu_i`; the parts of a partition add up to the LLC.

    Args:
        trace: from :func:`probelib.sample`.
        groups: membership, shape (sample, group), 0 and 1.

    Returns:
        Shape (chain, draw, group), dimensionless.

    Raises:
        ValueError: as many rows as there are samples are needed.
    """
    n = trace.sizes["sample"]
    if len(groups) != n:
        raise ValueError(f"groups has {len(groups)} rows; give one for each of the {n} samples")
    groups = np.asarray(groups, np.float64)
    at_center = trace.init_loss.values.astype(np.float64) @ groups
    parts = np.concatenate([rows.astype(np.float64) @ groups for rows in _draws(trace)])
    beta = required(trace, "n_beta") / n
    shape = trace.sizes["chain"], trace.sizes["draw"], -1
    return beta * (parts - at_center).reshape(shape)


@dataclass(frozen=True)
class Split:
    """The LLC of one trace, split among its samples.

    Attributes:
        lorenz: curve of :func:`lorenz`, by the gains' own order.
        gini: coefficient of the gains.
        classes: share of each class.
        class_samples: share of the samples in each class.
        deciles: share of each tenth of the samples, lowest gain first.
        hardest: share of the hardest hundredth of the samples.
        hardest_held_out: the same with the order from the first half of each chain and the share
            from the second.
        marked: share of the marked samples.
        marked_samples: their share of the samples.
    """

    lorenz: tuple[np.ndarray, np.ndarray]
    gini: float
    classes: Sequence[Estimate]
    class_samples: np.ndarray
    deciles: Sequence[Estimate]
    hardest: Estimate
    hardest_held_out: Estimate
    marked: Estimate | None
    marked_samples: float

    def numbers(self) -> dict[str, float]:
        """Everything by name, errors as ``<name>_mcse`` where one is known."""
        shares = {
            "share_hardest_1pct": self.hardest,
            "share_hardest_1pct_held_out": self.hardest_held_out,
            **{f"share_class_{k}": e for k, e in enumerate(self.classes)},
            **{f"share_decile_{k + 1}": e for k, e in enumerate(self.deciles)},
        }
        out: dict[str, float] = {"gini": self.gini}
        out |= {f"samples_class_{k}": float(v) for k, v in enumerate(self.class_samples)}
        if self.marked is not None:
            shares["share_wrong_labels"] = self.marked
            out["samples_wrong_labels"] = self.marked_samples
        for name, estimate in shares.items():
            out[name] = estimate.value
            if np.isfinite(estimate.mcse):  # a single chain may be too short to know
                out[f"{name}_mcse"] = estimate.mcse
        return out


def split_llc(trace: xr.Dataset, labels: np.ndarray, marked: np.ndarray | None = None) -> Split:
    """Split the LLC of a trace by class, by loss gain and by a mark.

    Args:
        trace: from :func:`probelib.sample`, with four draws per chain or more.
        labels: class of each sample, from 0, shape (sample,).
        marked: a further group, bool, shape (sample,).

    Raises:
        ValueError: fewer than eight draws per chain, too few to be halved.
    """
    draws, n = trace.sizes["draw"], trace.sizes["sample"]
    if draws < 8:
        raise ValueError(f"trace has {draws} draws per chain; give 8 or more")
    gain, top = probelib.loss_gain(trace).values, max(1, n // 100)
    order = np.argsort(gain)
    rank = np.empty(n, int)
    rank[order] = np.arange(n)
    tenths, of_class = rank * 10 // n, np.eye(int(labels.max()) + 1)[labels]
    groups = [np.eye(10)[tenths], of_class, (rank >= n - top)[:, None], np.ones((n, 1))]
    if marked is not None:
        groups.insert(0, marked[:, None])
    parts = partial_llc(trace, np.concatenate(groups, 1))
    total = parts[..., -1]
    shares = [share(parts[..., k], total) for k in range(parts.shape[-1] - 1)]
    mark = shares.pop(0) if marked is not None else None
    first = probelib.loss_gain(trace.isel(draw=slice(draws // 2))).values
    hardest = np.zeros((n, 2))
    hardest[np.argsort(first)[-top:], 0] = 1
    hardest[:, 1] = 1
    held_out = partial_llc(trace.isel(draw=slice(draws // 2, None)), hardest)
    return Split(
        lorenz=lorenz(gain),
        gini=gini(gain),
        classes=shares[10:-1],
        class_samples=of_class.mean(0),
        deciles=shares[:10],
        hardest=shares[-1],
        hardest_held_out=share(held_out[..., 0], held_out[..., 1]),
        marked=mark,
        marked_samples=0.0 if marked is None else float(marked.mean()),
    )


def percent(numbers: Mapping[str, float], name: str) -> str:
    """A recorded share with its error, in per cent; a dash where it was not recorded."""
    if name not in numbers:
        return "–"
    error = numbers.get(f"{name}_mcse")
    return with_error(100 * numbers[name], None if error is None else 100 * error, "%")


def fresh_mean_loss(model: nn.Module, inputs: Tensor, labels: Tensor, batch: int = 5000) -> float:
    """Mean cross-entropy of a classifier in float64, by PyTorch's own loss.

    Args:
        model: a classifier; a copy of it is evaluated.
        inputs: shape (n, ...).
        labels: shape (n,).
        batch: samples at a time.
    """
    model = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        total = sum(
            float(F.cross_entropy(model(x.double()), y, reduction="sum"))
            for x, y in zip(inputs.split(batch), labels.split(batch), strict=True)
        )
    return total / len(labels)


def lorenz(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lorenz curve: share of the sum in the lowest values, against their share of the samples.

    Args:
        values: shape (n,), with a positive sum.

    Returns:
        Share of samples and share of the sum, from 0 to 1, shape (n + 1,) each.
    """
    total = np.concatenate([[0.0], np.cumsum(np.sort(values), dtype=np.float64)])
    return np.linspace(0, 1, len(total)), total / total[-1]


def gini(values: np.ndarray) -> float:
    """Gini coefficient: twice the area between the Lorenz curve and the diagonal."""
    samples, part = lorenz(values)
    return float(1 - 2 * np.trapezoid(part, samples))


def _draws(trace: xr.Dataset, block: int = 25) -> Iterator[np.ndarray]:
    """Losses in blocks of draws, shape (<= block, sample), chain after chain."""
    for chain in range(trace.sizes["chain"]):
        for start in range(0, trace.sizes["draw"], block):
            yield trace.loss[chain, start : start + block].values


__all__ = [
    "Split",
    "fresh_mean_loss",
    "gini",
    "lorenz",
    "partial_llc",
    "percent",
    "split_llc",
    "streamed_llc",
]
