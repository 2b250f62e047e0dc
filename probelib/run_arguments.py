"""What the arguments of a run must be, as far as no plan and no posterior checks them."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import Executor
from typing import Any

import numpy as np

from probelib.arguments import require_kind, require_whole
from probelib.store.paths import local_path
from probelib.tokens import Places


def check_place(store: Any, cache: Any, overwrite: bool) -> None:
    for name, path in (("store", store), ("cache", cache)):
        if path is not None:
            require_kind(name, path, _is_path, "a path, or None")
            local_path(name, path)
    if cache is not None and (store is not None or overwrite):
        raise ValueError(
            f"cache is {os.fspath(cache)!r} beside store or overwrite; a cache names its stores "
            "itself and keeps them all, so give one or the other"
        )


def _is_path(value: Any) -> bool:
    return isinstance(value, str | bytes | os.PathLike) and os.fspath(value) not in ("", b"")


def check_executor(
    executor: Any,
    chains_per_task: Any,
    store: Any,
    until: float | None,
    places: str = "store or cache",
) -> None:
    chains_per_task = require_whole("chains_per_task", chains_per_task)
    if executor is None:
        if chains_per_task != 1:
            raise ValueError(
                f"chains_per_task is {chains_per_task} without an executor; give one, or leave it "
                "out"
            )
        return
    require_kind(
        "executor",
        executor,
        Executor,
        "a concurrent.futures.Executor (for a client of Dask, client.get_executor())",
    )
    if store is None:
        raise ValueError(
            f"executor runs chains in processes that meet in a store; give {places} as well"
        )
    if until is not None:
        raise ValueError(
            "until looks at all chains at once, but an executor runs each on its own; give draws"
        )


def check_init_loss(init_loss: np.ndarray, loss_dtype: str, places: Places | None) -> None:
    if not np.isfinite(init_loss).all():
        bad, where = int(np.flatnonzero(~np.isfinite(init_loss))[0]), ""
        if places is not None and bad < len(places):
            where, bad = f" at position {places.token[bad]}", int(places.sample[bad])
        elif places is not None:
            bad -= len(places)
        raise ValueError(
            f"observe has a non-finite loss at w*, first in sample {bad}{where}; remove or repair "
            "it"
        )
    if init_loss.max() > np.finfo(loss_dtype).max:
        raise ValueError(
            f"loss_dtype is {loss_dtype!r}, which cannot hold a loss of {init_loss.max():.3g}; use "
            "loss_dtype='float32'"
        )


def warn_of_rounding(init_loss: np.ndarray, loss_dtype: str, n_beta: float) -> None:
    """Say that what l_i(w*) is rounded by would be seen in a learning coefficient, at least 1/2."""
    kept = np.abs(init_loss).astype(min(np.dtype(loss_dtype), init_loss.dtype))
    digit = np.spacing(kept).astype(np.float64)
    error = n_beta * float(np.linalg.norm(digit)) / 12**0.5 / len(digit)
    if error > 0.05:
        chosen = kept.dtype < init_loss.dtype
        what = f"loss_dtype is {loss_dtype!r}" if chosen else f"model is {kept.dtype}"
        remedy = f"loss_dtype={str(init_loss.dtype)!r}" if chosen else "model.double()"
        warnings.warn(
            f"{what}, in which losses of up to {kept.max():.3g} are rounded so far that the local "
            f"learning coefficient may be off by {error:.2g}; use {remedy}",
            UserWarning,
            stacklevel=4,
        )


__all__ = ["check_executor", "check_init_loss", "check_place", "warn_of_rounding"]
