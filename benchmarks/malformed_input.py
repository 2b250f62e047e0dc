"""Malformed input by the thousand, through hypothesis: every one is refused by its name.

One call has one argument of the wrong type, sign, size or kind. It must raise a ValueError or a
TypeError of one sentence that names the argument, and write nothing.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st
from torch import nn

import probelib

_X, _Y = torch.zeros(6, 3), torch.arange(6) % 4
_MODEL = nn.Linear(3, 4)
_POSTERIOR = probelib.LocalPosterior(
    _MODEL, probelib.cross_entropy, (_X, _Y), n_beta=10.0, localization=5.0
)
_SAMPLER = probelib.SGLD(1e-2, 4)
_TRACE = probelib.sample(_POSTERIOR, sampler=_SAMPLER, chains=2, draws=4, progress=False).load()

# Values of no number's type; strings and lists have the look of user's slips.
_JUNK = st.one_of(
    st.text(max_size=8),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
    st.complex_numbers(allow_nan=False),
    st.sampled_from([object(), b"3", {1, 2}, np.zeros(2), np.array(["a"]), torch.zeros(2), max]),
)
_NOT_POSITIVE = st.one_of(
    _JUNK,
    st.none(),
    st.floats(max_value=0.0),
    st.sampled_from([math.nan, math.inf, np.float32("nan"), Fraction(-1, 2), np.int8(0)]),
    st.integers(max_value=0),
)
_NOT_COUNT = st.one_of(
    _JUNK,
    st.none(),
    st.integers(max_value=0),
    st.floats(),
    st.booleans(),
    st.sampled_from([np.int64(-3), np.float64(3), Fraction(1, 2)]),
)
_NEGATIVE = st.one_of(
    _JUNK,
    st.none(),
    st.integers(max_value=-1),
    st.floats(),
    st.booleans(),
)


def _sample(**wrong: Any) -> Callable[[Path], Any]:
    def call(store: Path) -> Any:
        asked = {"sampler": _SAMPLER, "store": store, "progress": False, "draws": 2, "burn_in": 100}
        return probelib.sample(**{"posterior": _POSTERIOR} | asked | wrong)

    return call


def _posterior(**wrong: Any) -> Callable[[Path], Any]:
    def call(store: Path) -> Any:
        asked = {"model": _MODEL, "per_sample_loss": probelib.cross_entropy, "data": (_X, _Y)}
        return probelib.LocalPosterior(**asked | {"n_beta": 1.0, "localization": 1.0} | wrong)

    return call


def _named(
    values: st.SearchStrategy, make: Callable[..., Callable[[Path], Any]], *names: str
) -> st.SearchStrategy:
    """One of some arguments with one of some values: the call, and the name it must be told by."""
    return st.tuples(st.sampled_from(names), values).map(
        lambda pair: (pair[0], make(**{pair[0]: pair[1]}), pair[1])
    )


def _but(values: st.SearchStrategy, *allowed: Any) -> st.SearchStrategy:
    def is_wrong(value: Any) -> bool:
        return not any(value is a or (type(value) is type(a) and value == a) for a in allowed)

    return values.filter(is_wrong)


def _sgld(**wrong: Any) -> Callable[[Path], Any]:
    return lambda store: probelib.SGLD(**{"step_size": 1e-2, "batch_size": 4} | wrong)


def _bad_data(kind: str, at: int, name: str) -> tuple[str, Callable[[Path], Any], Any]:
    x, y = _X.clone(), _Y.clone()
    if kind in ("nan", "inf"):
        x[at, at % 3] = float(kind)
    elif kind == "label":
        y[at] = 4 + at
    elif kind == "negative":
        y[at] = -1 - at
    elif kind == "short":
        y = y[:at]
    elif kind == "empty":
        x, y = x[:0], y[:0]
    elif kind == "width":
        x = torch.zeros(6, 4 + at)
    data = {"generator": iter([1]), "number": at, "one": (x,), "none": None}.get(kind, (x, y))
    if name == "data":
        return name, _posterior(data=data), kind
    return name, _sample(observe=data), kind


_DATA = ["nan", "inf", "label", "negative", "short", "empty", "width", "generator", "number", "one"]

_CALLS = st.one_of(
    _named(_but(_NOT_COUNT), _sample, "chains", "chains_per_task"),
    _named(_but(_NOT_COUNT, None), _sample, "draws"),
    _named(_but(_NOT_COUNT, None), _sample, "observe_batch_size"),
    _named(_but(_NOT_COUNT, "auto", None), _sample, "thin"),
    _named(_NEGATIVE, _sample, "seed", "first_chain"),
    _named(_but(_NEGATIVE, None), _sample, "burn_in"),
    _named(_but(_NOT_POSITIVE, None), _sample, "until"),
    _named(_but(_NOT_COUNT, "float32", "float16"), _sample, "loss_dtype"),
    _named(_but(_NOT_COUNT, "float32", "bfloat16", "auto"), _sample, "observe_dtype"),
    _named(_but(_NOT_COUNT, None), _sample, "executor"),
    _named(_but(_NOT_COUNT), _sample, "posterior"),
    _named(_but(_NOT_COUNT, None), _sample, "sampler"),
    _named(
        _but(st.one_of(st.integers(), st.floats(), st.lists(st.integers(), max_size=2)), None),
        _sample, "store",
    ),
    _named(_NOT_POSITIVE, _sgld, "step_size"),
    _named(_but(_NOT_COUNT, None), _sgld, "batch_size", "gradient"),
    _named(st.integers(7, 10**6), lambda batch_size: _sample(
        sampler=probelib.SGLD(1e-2, batch_size)), "batch_size"),
    _named(_NOT_POSITIVE, _posterior, "n_beta"),
    _named(_but(_NOT_POSITIVE, None), _posterior, "localization"),
    _named(_but(_NOT_COUNT), _posterior, "model", "per_sample_loss"),
    st.builds(_bad_data, st.sampled_from(_DATA), st.integers(0, 5), st.just("data")),
    st.builds(_bad_data, st.sampled_from(_DATA), st.integers(0, 5), st.just("observe")),
    st.sampled_from([math.nan, math.inf, -math.inf]).flatmap(
        lambda bad: st.tuples(st.integers(0, 1), st.integers(0, 3), st.integers(0, 5)).map(
            lambda at: ("trace", lambda store: probelib.loss_gain(_spoilt(at, bad)), at)
        )
    ),
)  # fmt: skip


def _spoilt(at: tuple[int, int, int], bad: float) -> Any:
    trace = _TRACE.copy(deep=True)
    trace.loss.values[at] = bad
    return trace


def run(times: int) -> dict[str, int]:
    """Make so many calls; raises AssertionError, with a small example, for one that is not refused.

    Returns:
        How many were refused, of each kind of error, and by how many names.
    """
    found: Counter[str] = Counter(times=times)
    names: set[str] = set()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as folder:

        @settings(
            max_examples=times,
            deadline=None,
            database=None,
            derandomize=True,
            verbosity=Verbosity.quiet,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        )
        @given(_CALLS)
        def refused(case: tuple[str, Callable[[Path], Any], Any]) -> None:
            name, call, value = case
            try:
                call(Path(folder) / "trace")
            except (ValueError, TypeError) as error:
                text = str(error)
                assert name in text, f"{name}={value!r}: {text!r} does not name it"
                assert "\n" not in text.strip(), f"{name}={value!r}: {text!r} is not one sentence"
                found["refused"] += 1
                found[type(error).__name__] += 1
                names.add(name)
            else:
                raise AssertionError(f"{name}={value!r} is taken")
            assert not list(Path(folder).iterdir()), f"{name}={value!r} has written something"

        refused()
    return dict(found) | {"arguments": len(names)}


__all__ = ["run"]
