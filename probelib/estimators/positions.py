"""Positions along ``sample``, as NumPy takes them, and sentences where it would not."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np

from probelib.arguments import shown

P = ParamSpec("P")
R = TypeVar("R")

#: Positions along ``sample``: whole numbers, negative ones from the end; one number; a mask; a
#: slice; or None, which is all.
Positions = np.ndarray | Sequence[int] | int | slice | None


def place(name: str, positions: Any, n: int) -> Any:
    """Positions among n as an index of NumPy's that keeps the axis; None stays None.

    Args:
        name: of the argument, for the message.
        positions: whole numbers, or one; a mask; a slice.
        n: how many there are.

    Raises:
        IndexError: numbers beyond n, or that are no whole ones; a mask of another length.
        ValueError: several dimensions, or what is no position at all.
    """
    if positions is None:
        return None
    if isinstance(positions, slice):
        try:
            positions.indices(n)
        except (TypeError, ValueError) as error:
            raise IndexError(f"{name} is {positions}: {error}; give whole numbers") from error
        return positions
    index = np.asarray(positions)
    if index.ndim == 0 and index.dtype.kind in "iu":
        index = index[None]
    if index.ndim != 1:
        raise ValueError(
            f"{name} is {shown(positions)}; give positions as a number, a list, a mask or a slice"
        )
    if index.dtype == bool:
        if len(index) != n:
            raise IndexError(f"{name} is a mask of {len(index)}; give one of {n}, or positions")
        return np.flatnonzero(index)
    if not index.size:
        return index.astype(np.int64)  # an empty list has no kind
    if index.dtype.kind not in "iu":
        raise IndexError(f"{name} holds {shown(index[0])}, which is no whole number; round it")
    beyond = (index >= n) | (index < -n)
    if beyond.any():
        raise IndexError(
            f"{name} holds {index[beyond][0]}, but there are {n}; choose from 0 to {n - 1}"
        )
    return np.arange(n)[index]


def by_position(method: Callable[P, R]) -> Callable[P, R]:
    """A method of a kernel whose ``rows``, ``cols`` and ``among`` are any positions.

    It gets them as :func:`place` gives them, and the axis of a single number is taken from what
    it returns: an array, or a tuple of arrays, with rows first.
    """
    signature = inspect.signature(method)

    @functools.wraps(method)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs)
        given, n = bound.arguments, bound.args[0].shape[0]
        asked = {name: given[name] for name in ("rows", "cols", "among") if name in given}
        for name, positions in asked.items():
            if name == "cols" and "rows" in asked and positions is asked["rows"]:
                given[name] = given["rows"]  # still the same, which halves the work
            else:
                given[name] = place(name, positions, n)
        found: Any = method(*bound.args, **bound.kwargs)
        for axis, name in ((1, "cols"), (0, "rows")):
            asked_for = asked.get(name)
            if asked_for is None or isinstance(asked_for, slice) or np.ndim(asked_for):
                continue
            if isinstance(found, tuple):
                found = type(found)(*(part.take(0, axis) for part in found))
            else:
                found = found.take(0, axis)
        return cast(R, found)

    return called


__all__ = ["Positions", "by_position", "place"]
