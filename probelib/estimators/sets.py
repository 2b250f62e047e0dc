"""Estimates of several observed sets: of each by its name, and a kernel of all together."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")


def sets_of(trace: Any) -> dict[str, Any] | None:
    """The traces in a tree of several observed sets, by name; None: it is no such tree."""
    import xarray as xr  # slow to import, so where it is used

    if not isinstance(trace, xr.DataTree) or trace.data_vars or not trace.children:
        return None
    found = {name: child.to_dataset() for name, child in trace.children.items()}
    return found if all("loss" in part for part in found.values()) else None


def each_set(estimator: Callable[P, R]) -> Callable[P, R]:
    """An estimator that gives a dict, by the names of the sets, of a tree of several traces."""

    @functools.wraps(estimator)
    def of_all(*args: P.args, **kwargs: P.kwargs) -> R:
        trace, *rest = args or (kwargs.pop("trace", None),)
        if (sets := sets_of(trace)) is None:
            return estimator(trace, *rest, **kwargs)  # type: ignore[arg-type]
        every = {name: of_all(part, *rest, **kwargs) for name, part in sets.items()}  # type: ignore[arg-type]
        return cast(R, every)

    return of_all


def together(trace: Any) -> Any:
    """A tree of several observed sets as one trace, with their names along ``sample``; in memory.

    Any other trace as it is.

    Raises:
        ValueError: a tree that somebody made of traces with other chains or draws.
    """
    if (sets := sets_of(trace)) is None:
        return trace
    import xarray as xr  # slow to import, so where it is used

    first, one = next(iter(sets.items()))
    named = []
    for name, part in sets.items():
        for dim in ("chain", "draw"):
            ours, own = (t[dim].values for t in (one, part))  # numbers from 0 where it has none
            if not np.array_equal(ours, own) or {*one.variables} != {*part.variables}:
                raise ValueError(
                    f"trace is a tree whose sets {first!r} and {name!r} have other chains, draws "
                    "or variables; observe all sets in one run, sample(observe={...})"
                )
        along = {"observed_set": name} | ({"run": float(part["run"])} if "run" in part else {})
        n = part.sizes["sample"]
        # The run too, so that samples of several are refused as they are elsewhere.
        named.append(part.assign_coords({k: ("sample", [v] * n) for k, v in along.items()}))
    return xr.concat(
        named, "sample", data_vars="minimal", coords="minimal", compat="override",
        join="override", combine_attrs="override",
    )  # fmt: skip


__all__ = ["each_set", "sets_of", "together"]
