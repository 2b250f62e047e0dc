r"""How often to observe, for how long, in which batches and at which precision.

None of it changes what a trace estimates: it decides where the time of :func:`probelib.sample`
goes. Every choice follows from the posterior, the data and the seed, never from a clock, so that
the same call still gives the same trace.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from probelib import batches as trees
from probelib.estimators.series import batches, mcse_of_mean

#: Samples that thin="auto" and until= look at, spread evenly over those observed.
WATCHED = 256
#: Steps of burn-in that thin="auto" needs to see an autocorrelation.
BURN_IN = 100
#: Batches of draws, all chains together, from which until= believes an error.
_BATCHES = 16
#: Draws per chain before until= first looks: fewer say little about their own error.
FIRST_LOOK = 20

# A step draws d normals and updates d weights, which costs about as much as this many floating
# point operations per weight in a matrix product: 570 measured on a two-core CPU.
_FLOPS_A_WEIGHT = 600
# What the operands and the result of a batch's widest operation may take. On a CPU a pass is
# fastest while they stay in the cache; an accelerator wants large batches, and has the memory.
_CPU_BYTES, _SHARE_OF_DEVICE, _LARGEST_BATCH = 6 * 2**20, 1 / 16, 8192


@dataclass(frozen=True)
class Pass:
    """What one observed sample costs: floating point operations, bytes of the widest operation."""

    flops: float
    bytes: float


class _Costs(TorchDispatchMode):
    """Floating point operations, and what operands and result of each operation take together.

    torch's own FlopCounterMode hooks into every module of the process, those of other threads too:
    a fingerprint taken meanwhile would hold that hook.
    """

    def __init__(self) -> None:
        super().__init__()
        from torch.utils.flop_counter import flop_registry  # imports a compiler

        self.formulas = flop_registry
        self.seen: list[int] = []
        self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if formula := self.formulas.get(func._overloadpacket):
            self.flops += formula(*args, **kwargs, out_val=out)
        if func is torch.ops.aten.clone.default:  # keeps data and weights from being written to
            return out
        tensors = {id(t): t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)}
        self.seen.append(sum(t.numel() * t.element_size() for t in tensors.values()))
        return out


def cost_of_pass(losses: Callable[[Any, Any], Tensor], x: trees.Tree, y: trees.Tree) -> Pass:
    """Count one forward pass, as the difference between all samples of a batch and half of them.

    Args:
        losses: of a batch, at fixed weights.
        x, y: at least two samples; with one, what the weights cost counts too.
    """
    n = trees.count(y)
    half = n // 2
    try:
        flops, size = _count(losses, x, y)
        if half:  # what is left is what the samples cost, without the weights
            fewer, smaller = _count(losses, *trees.rows((x, y), slice(half)))
            flops -= fewer
            size = size - smaller if len(size) == len(smaller) else size
    except Exception:  # what cannot be counted runs all the same
        return Pass(0.0, float(sum(t[:1].nbytes for t in trees.tree_leaves(x))))
    return Pass(flops / (n - half), float(size.max(initial=0)) / (n - half))


def _count(
    losses: Callable[[Any, Any], Tensor], x: trees.Tree, y: trees.Tree
) -> tuple[int, np.ndarray]:
    """Floating point operations of a batch, and the bytes of each of its operations."""
    with torch.no_grad(), _Costs() as costs:
        losses(x, y)
    return costs.flops, np.array(costs.seen)


def observe_batch(size: float, device: torch.device, at_once: int = 1) -> int:
    """Samples per observation pass: as many as fit.

    Args:
        size: bytes of the widest operation for one sample, :attr:`Pass.bytes`.
        device: where it runs.
        at_once: chains that are observed in one pass.
    """
    room: float = _CPU_BYTES
    if device.type == "cuda":
        room = torch.cuda.get_device_properties(device).total_memory * _SHARE_OF_DEVICE
    elif device.type != "cpu":
        room = 2**30
    return int(np.clip(round(room / max(size, 1) / at_once), 1, _LARGEST_BATCH))


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 run on units of their own there."""
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return False


def watched(n: int) -> np.ndarray:
    """Positions of the samples that schedules look at, among n observed ones."""
    return np.unique(np.linspace(0, n - 1, min(n, WATCHED), dtype=int))


@dataclass(frozen=True)
class Thinning:
    """What ``thin="auto"`` chose, and from what.

    Attributes:
        thin: steps per draw.
        autocorrelation_time: steps that one independent value of a loss takes, from the mean
            autocorrelation of the samples looked at.
        step_cost: of one step, as a share of one observation of everything.
        cost: time to a given standard error, as a share of that with an observation a step.
    """

    thin: int
    autocorrelation_time: float
    step_cost: float
    cost: float

    def __str__(self) -> str:
        return (
            f"thin='auto' chose {self.thin}: losses decorrelate in "
            f"{self.autocorrelation_time:.1f} steps, and a step costs {self.step_cost:.2g} of an "
            f"observation. Expected time to a given error: {self.cost:.2f} of that with thin=1"
        )


def step_cost(one: Pass, *, observed: int, batch: int, gradients: int, weights: int) -> float:
    """Cost of a step as a share of one observation of everything.

    A gradient costs three forward passes, and every weight its normal and its update.

    Args:
        one: cost of a sample's forward pass.
        observed: number of observed samples.
        batch: samples a gradient.
        gradients: of a batch in a step: 1 for SGLD, 2 with a control variate, more for others.
        weights: number of weights that move.
    """
    flops = max(one.flops, 2.0)
    step = gradients * 3 * batch * flops + _FLOPS_A_WEIGHT * weights
    return step / (observed * flops)


def choose_thin(losses: np.ndarray, cost: float) -> Thinning:
    r"""The thinning that reaches a given standard error soonest.

    k steps per draw cost 1 + c k (an observation and k steps), and a draw is worth
    :math:`1 / \tau_k` independent ones, :math:`\tau_k = 1 + 2 \sum_{j \ge 1} \rho_{jk}`. The k with
    the smallest :math:`(1 + c k)\,\tau_k` wins. The autocorrelation :math:`\rho_t` is the mean over
    the watched samples, taken as falling and as 0 from where it first is; a window of few
    autocorrelation times sees it too small.

    Args:
        losses: watched samples' losses at consecutive steps, shape (chain, step, sample).
        cost: c, from :func:`step_cost`.

    Warns:
        UserWarning: the window is shorter than ten autocorrelation times.
    """
    x = losses[..., np.ptp(losses, axis=(0, 1)) > 0].astype(np.float64)
    if not x.size:
        return Thinning(1, 1.0, cost, 1.0)
    x -= x.mean((0, 1))
    steps = x.shape[1]
    products = [(x[:, : steps - t] * x[:, t:]).mean((0, 1)) for t in range(steps // 2)]
    rho = np.minimum.accumulate((np.array(products) / products[0]).mean(1))
    gone = int(np.argmax(rho <= 0)) if rho[-1] <= 0 else len(rho)
    tau = np.array([1 + 2 * rho[k:gone:k].sum() for k in range(1, gone + 1)])
    if tau[0] > steps / 10:
        warnings.warn(
            f"burn_in is short for thin='auto': over its last {steps} steps losses decorrelate in "
            f"{tau[0]:.0f}; raise burn_in to {int(30 * tau[0])} or more, or give thin",
            UserWarning,
            stacklevel=5,  # rehearse, _begin, sample: the caller's line
        )
    total = (1 + cost * np.arange(1, gone + 1)) * tau
    best = int(total.argmin())
    return Thinning(best + 1, float(tau[0]), cost, float(total[best] / total[0]))


def looks(draws: int) -> Iterator[int]:
    """The draws after which ``until`` looks: each a tenth later than the one before."""
    at = FIRST_LOOK
    while at < draws:
        yield at
        at += -(-at // 10)


def median_mcse(losses: np.ndarray) -> float:
    """Median Monte-Carlo standard error of the loss gains, nats; losses (chain, draw, sample).

    That of :func:`probelib.loss_gain`: wider for few batches of draws, and infinite where there are
    fewer than 16 of them. An error that is looked at again and again is small by chance at one of
    the looks, and where few directions move all losses their median does not help; from 16 batches
    on that is rare. Chains that have diverged, NaN from some draw on, count for nothing.
    """
    losses = losses[~np.isnan(losses).any((1, 2))].astype(np.float64)
    if not len(losses) or np.median(batches(losses)) * len(losses) < _BATCHES:
        return float("inf")
    return float(np.median(mcse_of_mean(losses)))


def good_enough(losses: np.ndarray, until: float, draws: int) -> int | None:
    """The first look at which the losses reach ``until``, or None; always the same for a trace.

    Args:
        losses: watched samples' losses so far, shape (chain, draw, sample).
        until: target for :func:`median_mcse`.
        draws: the cap, at which nothing needs to be decided.
    """
    for at in looks(draws):
        if at > losses.shape[1]:
            return None
        if median_mcse(losses[:, :at]) <= until:
            return at
    return None


__all__ = [
    "BURN_IN",
    "FIRST_LOOK",
    "WATCHED",
    "Pass",
    "Thinning",
    "choose_thin",
    "cost_of_pass",
    "good_enough",
    "has_fast_bfloat16",
    "looks",
    "median_mcse",
    "observe_batch",
    "step_cost",
    "watched",
]
