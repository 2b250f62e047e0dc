"""What arguments must be, in sentences that name them."""

from collections.abc import Callable
from numbers import Rational, Real
from typing import Any

import numpy as np


def shown(value: Any) -> str:
    """A value for a message: on one line, and not long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; True and False are not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def require_whole(name: str, value: Any, least: int = 1) -> int:
    """A whole number, ``least`` or more (ValueError)."""
    if not is_whole(value) or value < least:
        raise ValueError(f"{name} is {shown(value)}; it must be a whole number, {least} or more")
    return int(value)


def require_positive(name: str, value: Any) -> float:
    """A positive, finite number (ValueError)."""
    real = isinstance(value, Real | Rational) and not isinstance(value, bool | np.bool_)
    if not real or not 0 < float(value) < float("inf"):
        raise ValueError(f"{name} is {shown(value)}; it must be a positive, finite number")
    return float(value)


def require_choice(name: str, value: Any, *choices: str) -> str:
    """One of some words (ValueError)."""
    if not isinstance(value, str) or value not in choices:
        words = f"{', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}"
        raise ValueError(f"{name} is {shown(value)}; choose {words}")
    return value


def require_kind(name: str, value: Any, kind: type | Callable[[Any], bool], what: str) -> None:
    """An instance of a type, or what a test accepts (TypeError); ``what`` to give instead."""
    if not (isinstance(value, kind) if isinstance(kind, type) else kind(value)):
        raise TypeError(f"{name} is {shown(value)}; give {what}")


__all__ = [
    "is_whole",
    "require_choice",
    "require_kind",
    "require_positive",
    "require_whole",
    "shown",
]
