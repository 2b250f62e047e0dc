"""What a trace depends on, as hashes: equal in every process for equal things."""

import dataclasses
import functools
import hashlib
import inspect
import re
import sys
import threading
from contextlib import suppress
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Python 3.11 fails where two threads parse source at once (python/cpython#106905).
_ONE_AT_A_TIME = threading.Lock()
_DEPTH = 6  # how far into captured values, arguments and attributes
# Libraries whose classes are known by their version and their name.
_LIBRARIES = ("torch", "abc", "typing", "functools", "collections", "enum")
_WRITTEN_IN_PYTHON = 1 << 9  # Py_TPFLAGS_HEAPTYPE
# What every class has, or what @dataclass writes into one.
_NOT_CODE = {
    "__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__qualname__",
    "__dataclass_fields__", "__dataclass_params__", "__match_args__", "__abstractmethods__",
    "_abc_impl", "__parameters__", "__orig_bases__", "__firstlineno__", "__static_attributes__",
}  # fmt: skip
_OF_DATACLASS = {
    "__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__", "__replace__",
}  # fmt: skip


def hash_array(digest: Any, a: Tensor, header: bool = True) -> None:
    """Feed an array's bytes to a hash; with ``header`` also its type and the shape of a row."""
    if header:
        digest.update(f"{a.dtype}{tuple(a.shape[1:])}".encode())
    digest.update(_on_host(a))


def describe(value: Any, tensors: bool = True) -> str:
    """SHA-256 of what a model, a loss, a class or a value is, the same in every process.

    Sees the source of functions and of the methods of classes and of their bases, what functions
    captured and took as defaults, the arguments of partials, the attributes of objects, the kinds
    of a model's layers. It does not follow the names that a function looks up when it runs.

    Args:
        value: a callable, a class, a module, a value.
        tensors: also hash the parameters and buffers of modules.
    """
    description = _Description(tensors)
    description.visit(value)
    return description.digest.hexdigest()


def plain(value: Any) -> Any:
    """A setting as JSON can say it: as it is, by its ``identity()``, or by its hash."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return repr(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain(part) for key, part in value.items()}
    identity = getattr(value, "identity", None)
    if callable(identity) and not isinstance(value, type):
        return plain(identity())
    return describe(value)


def attributes(value: Any) -> dict[str, Any]:
    """What an object holds, in its ``__dict__`` and in slots."""
    slots = [name for base in type(value).__mro__ for name in _slots(base)]
    return {n: getattr(value, n) for n in slots if hasattr(value, n)} | getattr(
        value, "__dict__", {}
    )


def _slots(kind: type) -> tuple[str, ...]:
    named = vars(kind).get("__slots__", ())
    named = (named,) if isinstance(named, str) else tuple(named)
    return tuple(name for name in named if name not in ("__dict__", "__weakref__"))


class _Description:
    """A hash that grows while values are visited."""

    def __init__(self, tensors: bool):
        self.digest = hashlib.sha256()
        self._tensors = tensors
        # By id, with the depth; holding the values keeps an id from being used again.
        self._visited: dict[int, tuple[int, Any]] = {}

    def put(self, part: Any) -> None:
        self.digest.update(f"{part}\n".encode())

    def visit(self, value: Any, depth: int = 0) -> None:
        self.put(type(value).__qualname__)
        if depth > _DEPTH or self._visited.get(id(value), (depth + 1,))[0] <= depth:
            return
        if hasattr(value, "__dict__"):  # such values may hold each other
            self._visited[id(value)] = depth, value
        below = depth + 1
        if isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype != object):
            self.put((value.dtype, tuple(value.shape)))
            self.digest.update(_on_host(value).tobytes())
        elif isinstance(value, nn.Module):
            self._visit_module(value, below)
        elif isinstance(value, functools.partial):
            for part in (value.func, value.args, value.keywords):
                self.visit(part, below)
        elif inspect.ismethod(value):
            self.visit(value.__func__, below)
            self.visit(value.__self__, below)
        elif inspect.isfunction(value):
            self._visit_function(value, below)
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                self.put(key)
                self.visit(value[key], below)
        elif isinstance(value, tuple | list):
            for part in value:
                self.visit(part, below)
        elif inspect.isclass(value):
            self._visit_class(value, below)
        elif inspect.isbuiltin(value) or inspect.ismodule(value):
            self.put(_without_addresses(repr(value)))
        elif _has_code_or_attributes(value):
            self.visit(type(value), below)
            self.visit(attributes(value), below)
        else:
            self.put(_without_addresses(repr(value)))

    def _visit_module(self, module: nn.Module, depth: int) -> None:
        self.put(_without_addresses(repr(module)))
        for kind in dict.fromkeys(type(m) for m in module.modules()):
            self.visit(kind, depth)
        for part in module.modules():
            self.visit(_plain_attributes(part), depth)
        if self._tensors:
            self.visit(dict(module.state_dict()), depth)

    def _visit_function(self, function: Any, depth: int) -> None:
        self.put(f"{function.__module__}.{function.__qualname__}")
        try:
            with _ONE_AT_A_TIME:
                self.put(inspect.getsource(function))
        except (OSError, TypeError):  # typed at a prompt, or made by exec
            self._visit_code(function.__code__)
        self.visit(function.__defaults__, depth)
        self.visit(function.__kwdefaults__, depth)
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # a cell that is still empty
                self.visit(cell.cell_contents, depth)

    def _visit_code(self, code: CodeType) -> None:
        self.put((code.co_code.hex(), code.co_names, code.co_varnames))
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self._visit_code(constant)
            else:
                self.put(repr(constant))

    def _visit_class(self, kind: type, depth: int) -> None:
        """Its methods and plain attributes, and those of its bases."""
        for base in kind.__mro__:
            self.put(f"{base.__module__}.{base.__qualname__}")
            library = base.__module__.split(".")[0] in _LIBRARIES
            if library or not base.__flags__ & _WRITTEN_IN_PYTHON:
                continue
            for name, member in sorted(vars(base).items()):
                written = name in _OF_DATACLASS and dataclasses.is_dataclass(base)
                if name in _NOT_CODE or (written and not _has_source(member)):
                    continue
                self.put(name)
                if isinstance(member, property):
                    self.visit([member.fget, member.fset], depth)
                else:
                    self.visit(getattr(member, "__func__", member), depth)


def _has_code_or_attributes(value: Any) -> bool:
    """Whether an object is more than its text says."""
    kind = type(value)
    if hasattr(value, "__dict__") and vars(value):
        return True
    of_library = kind.__module__.split(".")[0] in (*_LIBRARIES, "numpy", *sys.stdlib_module_names)
    return bool(kind.__flags__ & _WRITTEN_IN_PYTHON) and (
        not of_library or kind.__module__ == "__main__"
    )


def _has_source(member: Any) -> bool:
    return inspect.isfunction(member) and member.__code__.co_filename != "<string>"


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


__all__ = ["attributes", "describe", "hash_array", "plain"]
