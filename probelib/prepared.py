"""A model as it is run: a copy, without what is wrapped around it, and in float32 or float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from probelib.copies import copy_of

#: Types whose rounding swallows the noise of a step: next to 1, bfloat16 knows steps of 0.008.
HALF = (torch.bfloat16, torch.float16)
_HOOKS = "_forward_hooks", "_forward_pre_hooks"


def prepared(model: nn.Module) -> nn.Module:
    """A copy of a model, of its parts too, without wrappers that only say how it is run.

    Those of ``torch.compile``, ``nn.DataParallel`` and ``DistributedDataParallel``: gradients of
    weights that are passed as arguments go through none of them. Names are those of the plain
    model.

    Raises:
        ValueError: such a wrapper has hooks of its own, which would be lost.
        TypeError: it holds what nobody can copy.
    """
    try:
        own = copy_of(model, inside)
    except TypeError as error:
        raise TypeError(
            f"model cannot be copied ({error}); take out what it holds beside weights and "
            "settings, such as an open file or a connection"
        ) from error
    for module in own.modules():
        vars(module).pop("_is_torch_compile", None)  # a mark that torch.compile leaves behind
    return own


def inside(module: nn.Module) -> nn.Module | None:
    """What a wrapper wraps; None where a module is none."""
    kind = type(module)
    if kind in (nn.DataParallel, nn.parallel.DistributedDataParallel):
        found = module._modules["module"]
    elif kind.__module__ == "torch._dynamo.eval_frame" and "_orig_mod" in module._modules:
        found = module._modules["_orig_mod"]
    else:
        return None
    if any(getattr(module, hooks) for hooks in _HOOKS):
        raise ValueError(
            f"model is, or holds, a {kind.__name__} with hooks of its own, which is run without "
            "this wrapper; register them on the module inside"
        )
    return found


def in_half(model: nn.Module) -> bool:
    """Whether a model has parameters in half precision, and none in float64."""
    kinds = {p.dtype for p in model.parameters()}
    return not kinds.isdisjoint(HALF) and torch.float64 not in kinds


def widen(module: nn.Module) -> None:
    """Make what is in half precision float32, in place: every number stays what it is."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}  # a buffer at two places stays one

    def in_full(tensor: Tensor) -> Tensor:
        if tensor.dtype not in HALF:
            return tensor
        return seen.setdefault(id(tensor), (tensor, tensor.float()))[1]

    module._apply(in_full)


__all__ = ["in_half", "inside", "prepared", "widen"]
