"""How a model is called with a batch of inputs, and what of its result goes to the loss."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from probelib import losses
from probelib.batches import Tree, anew, is_named_tuple, parts_of

#: How a model is called: (model, inputs) -> what the loss is given.
Forward = Callable[[nn.Module, Any], Any]

_ONE = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
_NAMED = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY


class Call:
    """Calls a model at given weights.

    Without a function of the caller's, a mapping or a named tuple is passed by keyword where the
    model's ``forward`` takes these names, a tuple or a list by position where it takes several
    arguments, and anything else, as a tensor, a data class, or what does not fit, as one argument.
    A ``forward`` with ``**kwargs`` takes all keys, mistyped ones too: see
    :func:`probelib.soundness.warn_of_unread`.

    Args:
        model: whose ``forward`` says what it takes.
        forward: the caller's function of (model, inputs), or None.
    """

    def __init__(self, model: nn.Module, forward: Forward | None):
        self.forward = forward
        try:
            parameters = list(inspect.signature(model.forward).parameters.values())
        except (TypeError, ValueError):  # it does not say
            parameters = []
        self._taken = [p.name for p in parameters if p.kind in _NAMED]
        self._any_name = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self._required = any(p.default is p.empty for p in parameters if p.kind in (*_ONE, *_NAMED))
        self._several = sum(p.kind in _ONE for p in parameters) > 1 or any(
            p.kind is p.VAR_POSITIONAL for p in parameters
        )

    def __call__(self, model: nn.Module, tensors: dict[str, Tensor], inputs: Tree) -> Any:
        """What the model makes of inputs, with these tensors for its parameters and buffers."""
        inputs = anew(inputs)
        if self.forward is None:
            args, named = self.arguments(inputs)
            return functional_call(model, tensors, args, named, tie_weights=False)
        tensors = {f"model.{name}": tensor for name, tensor in tensors.items()}
        held = _Held(model, self.forward)
        return functional_call(held, tensors, (inputs,), tie_weights=False)

    def arguments(self, inputs: Tree) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments that inputs stand for.

        Raises:
            ValueError: some of their keys are arguments of the model, and others are not.
        """
        if isinstance(inputs, Mapping) or is_named_tuple(inputs):
            parts = parts_of(inputs) or {}
            taken = [key for key in parts if key in self._taken]
            rest = self._any_name and all(isinstance(key, str) for key in parts)
            if len(taken) == len(parts) or (rest and (taken or not self._required)):
                return (), parts
            if taken:
                strange = next(key for key in parts if key not in taken)
                raise ValueError(
                    f"inputs have {strange!r}, which the model's forward does not take beside "
                    f"{', '.join(map(repr, taken))}; leave it out, or say how the model is called "
                    "with forward=lambda model, inputs: ..."
                )
        elif isinstance(inputs, tuple | list) and self._several:
            return tuple(inputs), {}
        return (inputs,), {}

    def by_any_name(self, inputs: Tree) -> list[str]:
        """Keys of inputs that the model takes with its ``**kwargs`` alone, and may leave unread."""
        if self.forward is not None or not self._any_name:
            return []
        return [key for key in self.arguments(inputs)[1] if key not in self._taken]


class _Held(nn.Module):
    """A model in the hands of a function that calls it, so that torch swaps its weights there."""

    def __init__(self, model: nn.Module, function: Forward):
        super().__init__()
        self.model = model
        self.function = [function]  # in a list: no part of the model, if it is a module itself

    def forward(self, inputs: Tree) -> Any:
        return self.function[0](self.model, inputs)


def given_to(loss: Any, output: Any) -> Any:
    """What a loss is given: the model's output; of an object, to a known loss, its logits.

    Losses of this library and of torch are known, and take tensors.
    """
    logits = None if isinstance(output, Tensor) else getattr(output, "logits", None)
    return logits if isinstance(logits, Tensor) and _is_known(loss) else output


def _is_known(loss: Any) -> bool:
    while isinstance(loss, functools.partial):
        loss = loss.func
    where = getattr(loss if inspect.isroutine(loss) else type(loss), "__module__", None)
    return where in (losses.__name__, "torch.nn.functional", "torch.nn.modules.loss")


__all__ = ["Call", "Forward", "given_to"]
