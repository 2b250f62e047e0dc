"""What is recorded of each sample beside its loss: a loss per token, or whatever its parts are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from probelib.batches import anew, count, tree_leaves
from probelib.calling import given_to
from probelib.copies import version
from probelib.data import Samples
from probelib.posterior import LocalPosterior
from probelib.soundness import check_samples, check_tokens

ObserveLoss = Callable[[Any, Any], Tensor]
_LEFT_OUT = -100  # the target that torch's losses leave out, with a loss of 0


def losses_of_tokens(observe_loss: ObserveLoss, output: Any, target: Any) -> Tensor:
    """Losses (batch, positions) of a batch's outputs, NaN where there is no token.

    Raises:
        ValueError: they are of another shape, or the function writes into what it is given.
    """
    output = given_to(observe_loss, output)
    given = [t for t in tree_leaves((output, target)) if isinstance(t, Tensor)]
    before = [version(t) for t in given]
    losses = observe_loss(output, anew(target))
    batch = count(target)
    if not isinstance(losses, Tensor) or losses.ndim < 2 or batch != len(losses):
        got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(
            f"observe_loss returned {got} for a batch of {batch}; it must return one loss per "
            f"position of each sample, shape ({batch}, positions...), such as "
            "probelib.token_cross_entropy does; for one per sample leave observe_loss out"
        )
    if not losses.is_floating_point():
        raise ValueError(f"observe_loss returned {losses.dtype}; return floating-point numbers")
    if [version(t) for t in given] != before:
        raise ValueError(
            "observe_loss writes into what it is given; let it write into a copy, made with "
            ".clone()"
        )
    return losses.flatten(1)


def require_none_left_out(losses: Tensor, target: Any, first: int) -> None:
    """Refuse losses of 0 at positions that torch's losses leave out (ValueError).

    Args:
        losses: at w*, shape (batch, positions).
        target: of the batch.
        first: position of its first sample.
    """
    y, *others = tree_leaves(target)
    if others or y.is_floating_point() or y.is_complex() or y.numel() != losses.numel():
        return
    left_out = y.reshape(losses.shape) == _LEFT_OUT
    if left_out.any() and not losses[left_out].any():  # NaN counts as true
        sample, token = left_out.nonzero()[0].tolist()
        raise ValueError(
            f"observe_loss is 0 where the target is {_LEFT_OUT}, first at position {token} of "
            f"sample {first + sample}, which would count as a token of no loss; return NaN there, "
            f"with torch.where(target == {_LEFT_OUT}, torch.nan, losses), as "
            "probelib.token_cross_entropy does"
        )


class _Summed:
    """One number of all positions: it changes with each of them, and not with what is none."""

    def __init__(self, observe_loss: ObserveLoss):
        self.observe_loss = observe_loss

    def __call__(self, output: Any, target: Any) -> Tensor:
        losses = losses_of_tokens(self.observe_loss, output, target)
        there = ~losses.isnan()
        weight = 1 + torch.linspace(0, 1, losses.shape[1], device=losses.device)
        # Also what is none counts, so that it must be none at all weights and in all batches.
        each = torch.where(there, losses, 0) * weight.to(losses.dtype)
        return each.sum(1) / losses.shape[1] + (~there * weight.to(losses.dtype)).sum(1)


def check_observe_loss(
    posterior: LocalPosterior, samples: Samples, observe_loss: ObserveLoss
) -> None:
    """Evaluate some samples at w* and nearby, and name what is wrong.

    Raises:
        ValueError: it does not return finite losses of shape (batch, positions...), or they depend
            on what else is in the batch, or on whether gradients are taken.
    """
    summed = copy.copy(posterior)
    summed.per_sample_loss = _Summed(observe_loss)
    try:
        check_samples(summed, samples)
    except ValueError as error:
        raise ValueError(str(error).replace("per_sample_loss", "observe_loss")) from error
    check_tokens(observe_loss, samples)


__all__ = ["ObserveLoss", "check_observe_loss", "losses_of_tokens", "require_none_left_out"]
