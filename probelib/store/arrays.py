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
from safetensors.numpy import save

from probelib.fingerprint import not_followed
from probelib.store.integrity import write_atomically
from probelib.store.paths import local_path


def place_of(cache: str | os.PathLike, identity: dict[str, Any], ending: str) -> Path:
    """Where a directory keeps the result of an identity: a hash of it, and ``ending``."""
    named = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return local_path("cache", cache) / f"{named}{ending}"


def keep_arrays(path: Path, identity: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write a result whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {name: np.array(array, order="C") for name, array in arrays.items()}
    write_atomically(path, save(whole, metadata={"identity": json.dumps(identity)}))


def kept_arrays(
    path: Path, identity: dict[str, Any], shapes: Mapping[str, Sequence[int]], center: np.ndarray
) -> dict[str, np.ndarray] | None:
    """A kept result, or None where there is none, or a damaged one or one of another run.

    Args:
        path: from :func:`place_of`.
        identity: what it must have been made of.
        shapes: of the arrays that it must have; all finite.
        center: l_i(w*) now, which must be those of its ``init_loss``. They tell what a fingerprint
            cannot see: a function that a loss looks up when it runs.
    """
    if any(not_followed(value) is not None for value in identity.values()):
        return None  # a change of it would not be seen
    try:
        with safe_open(path, framework="np") as file:
            if json.loads(file.metadata()["identity"]) != identity:
                return None
            found = {name: file.get_tensor(name) for name in shapes}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    whole = all(found[name].shape == tuple(shape) for name, shape in shapes.items())
    if not whole or not all(np.isfinite(array).all() for array in found.values()):
        return None
    same = np.allclose(
        found["init_loss"], center, rtol=1e-4, atol=1e-6 * np.abs(center).max(initial=0)
    )
    return found if same else None


__all__ = ["keep_arrays", "kept_arrays", "place_of"]
