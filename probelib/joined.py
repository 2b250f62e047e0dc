"""Traces that were joined: which chains, samples and draws may be read as those of one run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr


def run_number(fingerprint: Mapping[str, Any], thin: int) -> float:
    """The scalar coordinate ``run`` of a trace, from its fingerprint.

    Its upper half is another for another posterior, its lower half for other paths of the chains.
    Where traces are joined it becomes an array, and tells what attributes no longer do. A whole
    number of 52 bits, as a float: so every kind of file holds it.
    """
    posterior = {name: fingerprint.get(name) for name in _OF_POSTERIOR}
    posterior |= {name: fingerprint[name] for name in _WHERE_GIVEN if name in fingerprint}
    others = fingerprint.keys() - {*_OF_POSTERIOR, *_WHERE_GIVEN, *_OF_NO_PATH}
    path = posterior | {name: fingerprint[name] for name in others} | {"thin": thin}
    upper, lower = (
        int.from_bytes(hashlib.sha256(json.dumps(of, sort_keys=True).encode()).digest()[:4]) >> 6
        for of in (posterior, path)
    )
    return float(upper << 26 | lower)


_OF_POSTERIOR = (
    "weights", "model", "per_sample_loss", "sampling_data", "n_beta", "localization", "train_mode",
    "precision",
)  # fmt: skip
_WHERE_GIVEN = ("forward", "parameters")
# What says which chains there are and what is kept of them, not where they go.
_OF_NO_PATH = (
    "observed_data", "observe_loss", "chains", "first_chain", "loss_dtype", "observe_dtype",
    "format", "thin",
)  # fmt: skip


def require_one_run(data: xr.Dataset, argument: str) -> None:
    """Refuse chains of several posteriors, and samples of several runs, read as those of one."""
    if "run" not in data.coords:
        return
    runs = np.unique(data["run"].values)
    runs = runs[np.isfinite(runs)]  # a part from elsewhere has no number
    if len(np.unique(runs // 2**26)) > 1:
        raise ValueError(
            f"{argument} joins traces of several posteriors (other weights, model, loss, data, "
            "n_beta or localization, or another Python or torch under model and loss); read each "
            "on its own"
        )
    if len(runs) > 1 and "sample" in data["run"].dims:
        raise ValueError(
            f"{argument} joins samples of several runs, whose draws have nothing to do with each "
            "other; observe all samples in one run, or in runs of one seed and sampler"
        )


def require_no_copies(data: xr.Dataset, argument: str) -> None:
    """No chain may be there twice, whatever its number, and no weighted draw: both would count."""
    if "loss" not in data or data.sizes["draw"] * data.sizes["chain"] < 2:
        return
    if "log_weight" in data:
        each = [
            data[name].values[..., np.newaxis]
            for name in ("log_weight", "distance")
            if name in data
        ]
        draws = np.concatenate([_losses(data), *each], -1, dtype=np.float64)
        draws = draws.reshape(-1, draws.shape[-1])
        if (draws != draws[:1]).any() and (found := _twice(draws)) is not None:
            raise ValueError(
                f"{argument} has weighted draws twice, those at {found[0]} and {found[1]} for "
                "instance; leave the copies out"
                + ("" if "distance" in data else ", or, if they only look alike, keep distance")
            )
        return
    begin, whole = _losses(data, _BEGIN), None
    moves = (begin != begin[:, :1]).any((1, 2))  # chains that stay are alike without being copies
    if _twice(begin[moves]) is not None:  # only then are they read to the end
        whole = _losses(data)[moves]
    if whole is not None and (found := _twice(whole)) is not None:
        first, other = data["chain"].values[moves][list(found)]
        if first == other or data.sizes["draw"] >= _BEGIN:  # a few may be the same by chance
            raise ValueError(
                f"{argument} has chain {first} twice, with the same draws (as chain {other}); "
                f"leave one out: {argument}.isel(chain=[...])"
            )


_BEGIN = 8  # draws


def _losses(data: xr.Dataset, draws: int | None = None) -> np.ndarray:
    """Of the first four samples (chain, draw, sample); NaN where they cannot be read."""
    first = data["loss"][:, :draws, :4]
    try:
        return first.values
    except (OSError, RuntimeError, ValueError):  # an estimator will meet it, and say so
        return np.full(first.shape, np.nan)


def _twice(rows: np.ndarray) -> tuple[int, int] | None:
    """Positions of two equal rows, of those that are all numbers."""
    if len(rows) < 2:
        return None
    rows = rows.reshape(len(rows), -1)
    at = np.flatnonzero(np.isfinite(rows).all(1))
    _, first, back = np.unique(rows[at], axis=0, return_index=True, return_inverse=True)
    original = first[back.ravel()]
    copies = np.flatnonzero(original != np.arange(len(at)))
    return (int(at[original[copies[0]]]), int(at[copies[0]])) if len(copies) else None


__all__ = ["require_no_copies", "require_one_run", "run_number"]
