"""What a trace depends on, as hashes: equal in every process for equal things."""

import functools
import hashlib
import inspect
import re
import threading
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Python 3.11 fails where two threads parse source at once (python/cpython#106905).
_ONE_AT_A_TIME = threading.Lock()
_DEPTH = 6  # how far into captured values, arguments and attributes


def hash_array(digest: Any, a: Tensor, header: bool = True) -> None:
    """Feed an array's bytes to a hash; with ``header`` also its type and the shape of a row."""
    if header:
        digest.update(f"{a.dtype}{tuple(a.shape[1:])}".encode())
    digest.update(_on_host(a))


def describe(code: Any, tensors: bool = True) -> str:
    """SHA-256 of what a model, a loss or a value is, the same in every process.

    Sees the source of functions and classes, what functions captured and took as defaults, the
    arguments of partials, the attributes of objects, the kinds of a model's layers. It does not
    follow the names that a function looks up when it runs.

    Args:
        code: a callable, a module, a value.
        tensors: also hash the parameters and buffers of modules.
    """
    digest = hashlib.sha256()
    seen: dict[int, Any] = {}  # by id; holding the values keeps an id from being used again

    def put(part: Any) -> None:
        digest.update(f"{part}\n".encode())

    def source(of: Any) -> None:
        try:
            with _ONE_AT_A_TIME:
                put(inspect.getsource(of))
        except (OSError, TypeError):
            put("no source")

    def visit(value: Any, depth: int = 0) -> None:
        put(type(value).__qualname__)
        if depth > _DEPTH or id(value) in seen:
            return
        if hasattr(value, "__dict__"):  # such values may hold each other
            seen[id(value)] = value
        if isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype != object):
            put((value.dtype, tuple(value.shape)))
            digest.update(_on_host(value).tobytes())
        elif isinstance(value, nn.Module):
            put(_without_addresses(repr(value)))
            for kind in dict.fromkeys(type(m) for m in value.modules()):
                source(kind)
            for module in value.modules():
                visit(_plain_attributes(module), depth + 1)
            if tensors:
                visit(dict(value.state_dict()), depth + 1)
        elif isinstance(value, functools.partial):
            for part in (value.func, value.args, value.keywords):
                visit(part, depth + 1)
        elif inspect.ismethod(value):
            visit(value.__func__, depth + 1)
            visit(value.__self__, depth + 1)
        elif inspect.isfunction(value):
            put(f"{value.__module__}.{value.__qualname__}")
            source(value)
            visit(value.__defaults__, depth + 1)
            visit(value.__kwdefaults__, depth + 1)
            for cell in value.__closure__ or ():
                with suppress(ValueError):  # a cell that is still empty
                    visit(cell.cell_contents, depth + 1)
        elif isinstance(value, dict):
            for k in sorted(value, key=str):
                put(k)
                visit(value[k], depth + 1)
        elif isinstance(value, tuple | list):
            for part in value:
                visit(part, depth + 1)
        elif inspect.isclass(value) or inspect.isbuiltin(value) or inspect.ismodule(value):
            put(_without_addresses(repr(value)))
            if inspect.isclass(value):
                source(value)
        elif hasattr(value, "__dict__") and vars(value):
            source(type(value))
            visit(vars(value), depth + 1)
        else:
            put(_without_addresses(repr(value)))

    visit(code)
    return digest.hexdigest()


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    """What a module was configured with: its attributes that are plain values."""
    plain = bool | int | float | complex | str | bytes | tuple | list | None
    return {
        k: v
        for k, v in vars(module).items()
        if k[0] != "_" and k != "training" and isinstance(v, plain)
    }


def _on_host(a: Tensor | np.ndarray) -> np.ndarray:
    if isinstance(a, np.ndarray):
        return np.ascontiguousarray(a)
    if a.numel() == 0:
        return np.empty(0, np.uint8)
    return a.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _without_addresses(text: str) -> str:
    """Leaves out what differs from one process to the next."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


__all__ = ["describe", "hash_array"]
