"""Results that are a handful of arrays, kept in a directory under what they depend on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from probelib.store.integrity import appearing_whole
from probelib.store.matching import has_unseen
from probelib.store.paths import local_path


def place_of(cache: str | os.PathLike, identity: dict[str, Any], ending: str) -> Path:
    """Where a directory keeps the result of an identity: a hash of it, and ``ending``."""
    named = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return local_path("cache", cache) / f"{named}{ending}"


def keep_arrays(path: Path, identity: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write a result whole, or not at all (OSError: the directory is read-only, or full)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}  # no copies
    with appearing_whole(path) as file:
        file.touch()
        mode = file.stat().st_mode
        try:
            save_file(whole, file, metadata={"identity": json.dumps(identity)})
        except SafetensorError as error:
            raise OSError(f"{str(path)!r} cannot be written: {error}") from error
        file.chmod(mode)  # some versions leave a file that its owner alone can read


def kept_arrays(
    path: Path,
    identity: dict[str, Any],
    shapes: Mapping[str, Sequence[int]],
    center: Mapping[str, np.ndarray],
    like_center: Mapping[str, str] | None = None,
) -> dict[str, np.ndarray] | None:
    """A kept result, or None where there is none, or a damaged one or one of another run.

    Args:
        path: from :func:`place_of`.
        identity: what it must have been made of.
        shapes: of the arrays that it must have; all finite, but where one of ``center`` is NaN.
        center: losses at w* now, which must be those of its arrays of these names, NaN where they
            are. They tell what a fingerprint cannot see: a function that a loss looks up when it
            runs.
        like_center: arrays whose rows are NaN where that array of ``center`` is.
    """
    if has_unseen(identity):
        return None
    try:
        with safe_open(path, framework="np") as file:
            if json.loads(file.metadata()["identity"]) != identity:
                return None
            found = {name: file.get_tensor(name) for name in shapes}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    if not all(found[name].shape == tuple(shape) for name, shape in shapes.items()):
        return None
    of = {name: name for name in center} | dict(like_center or {})
    there = {name: ~np.isnan(center[at]) for name, at in of.items()}
    if not all(_is_finite(array, there.get(name)) for name, array in found.items()):
        return None
    return found if all(_same(found[name], now) for name, now in center.items()) else None


def _is_finite(array: np.ndarray, there: np.ndarray | None) -> bool:
    """Whether all numbers are, or those that are ``there`` in each row, and the others NaN."""
    if there is None:
        return bool(np.isfinite(array).all())
    rows = array.reshape(-1, *there.shape)
    return all((np.isfinite(r) == there).all() and (np.isnan(r) != there).all() for r in rows)


def _same(kept: np.ndarray, now: np.ndarray) -> bool:
    """Whether losses are the same up to rounding."""
    atol = 1e-6 * np.nan_to_num(np.abs(now)).max(initial=0)
    return np.allclose(kept, now, rtol=1e-4, atol=atol, equal_nan=True)


__all__ = ["keep_arrays", "kept_arrays", "place_of"]
