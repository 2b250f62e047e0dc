"""Copies that share nothing with the caller's objects, and what a call leaves on a model undone."""

from __future__ import annotations

import copy
import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Kind = TypeVar("Kind")
_WITHOUT_STATE = ModuleType, type(threading.Lock()), type(threading.RLock()), logging.Logger
# What torch itself keeps on a module, its tensors and its parts, which a call is given anew.
# The last are weak references of recurrent layers to their weights, which nothing could pickle.
_OF_TORCH = ("_parameters", "_buffers", "_modules", "_flat_weight_refs")


class _Detached(TorchFunctionMode):
    """Copies a tensor that was computed as its value, where torch refuses to copy it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def copy_of(value: Kind, inside: Callable[[nn.Module], Any] = lambda module: None) -> Kind:
    """A deep copy, of modules that keep activations of theirs too.

    Args:
        value: anything.
        inside: what is to be copied in place of a module, wherever it is held; None for itself.

    Raises:
        TypeError: it holds what nobody can copy, such as an open file.
    """
    memo, modules = _shared(value), value.modules() if isinstance(value, nn.Module) else ()
    with _Detached():
        for module in reversed(list(modules)):  # those within others first
            if (instead := inside(module)) is not None:
                memo[id(module)] = copy.deepcopy(instead, memo)
        return copy.deepcopy(value, memo)


def sharing_tensors(value: Kind, model: nn.Module) -> Kind:
    """A deep copy but for the parameters and buffers of ``model``: these it shares."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(value, _shared(model) | tensors)


def _shared(value: Any) -> dict[int, Any]:
    """What modules hold that has no state to copy: Python's modules, locks, loggers."""
    modules = value.modules() if isinstance(value, nn.Module) else [value]
    held = [part for module in modules for part in getattr(module, "__dict__", {}).values()]
    return {id(part): part for part in held if isinstance(part, _WITHOUT_STATE)}


def version(tensor: Tensor) -> int:
    """How often a tensor was changed in place."""
    return 0 if tensor.is_inference() else tensor._version


class Restored:
    """Undoes what a forward leaves behind on its modules: activations, counters, lists that grow.

    So a loss does not depend on the calls before, and no tensor of one call reaches the next.

    Args:
        model: as it is to be at each call.
        run: a call, on the model, that shows what a forward changes.
    """

    def __init__(self, model: nn.Module, run: Callable[[], object]):
        before, kept = _state_of(model), sharing_tensors(_held(model), model)
        self.changed: dict[tuple[str, str], list[Any]] = {}
        try:
            run()
        finally:
            after = _state_of(model)
            changed = [at for at in {**before, **after} if before.get(at) != after.get(at)]
            #: By module and name, what it held: one value, or none where the name is new.
            self.changed = {
                (module, name): [kept[module][name]] if name in kept.get(module, {}) else []
                for module, name in changed
            }
            self(model)

    def __call__(self, model: nn.Module) -> None:
        """Put back what was there."""
        for (module, name), value in sharing_tensors(self.changed, model).items():
            held = vars(model.get_submodule(module))
            held.pop(name, None)
            for one in value:
                held[name] = one


def _held(model: nn.Module) -> dict[str, dict[str, Any]]:
    return {
        name: {k: v for k, v in vars(module).items() if k not in _OF_TORCH}
        for name, module in model.named_modules()
    }


def _state_of(model: nn.Module) -> dict[tuple[str, str], Any]:
    """What each module holds, to be compared: contents of containers, versions of tensors."""
    return {
        (name, key): _state(value, set())
        for name, held in _held(model).items()
        for key, value in held.items()
    }


def _state(value: Any, above: set[int]) -> Any:
    if isinstance(value, Tensor):
        return id(value), version(value)
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return type(value), repr(value)
    if isinstance(value, np.ndarray):
        return id(value), value.tobytes()
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, random.Random):
        return value.getstate()
    if id(value) in above:
        return id(value)
    above = {*above, id(value)}
    if isinstance(value, Mapping):
        return [(repr(key), _state(part, above)) for key, part in value.items()]
    if isinstance(value, list | tuple | set | frozenset | deque):
        return [_state(part, above) for part in value]
    if isinstance(value, nn.Module | type | FunctionType | MethodType | ModuleType):
        return id(value)  # modules are visited one by one
    if hasattr(value, "__dict__"):
        return id(value), _state(vars(value), above)
    return id(value)


__all__ = ["Restored", "copy_of", "sharing_tensors", "version"]
