"""Settings that were found for a run, found again with its trace instead of searched for anew."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from probelib._version import __version__
from probelib.calibration.calibrate import calibrate
from probelib.calibration.localization import losses_at
from probelib.calibration.result import Calibration, Evidence
from probelib.data import Data
from probelib.observed_sets import read_observed
from probelib.posterior import LocalPosterior
from probelib.samplers import LeimkuhlerMatthews
from probelib.store import DiskStore, StoreError, TraceMismatch
from probelib.store.arrays import place_of
from probelib.store.integrity import appearing_whole
from probelib.store.matching import has_unseen

_FORMAT = 1  # raised when calibrate would find other settings for the same posterior
_COUNTS = ("draws", "burn_in", "thin")
_NUMBERS = ("error", "llc", "llc_error", "step_bias", "seconds", "seconds_of_run")


def calibration_of(
    posterior: LocalPosterior,
    observe: Data | Mapping[str, Data] | None,
    *,
    chains: int,
    seed: int,
    store: str | os.PathLike | None,
    cache: str | os.PathLike | None,
) -> tuple[Calibration, dict[str, Any]]:
    """The settings of a call of :func:`probelib.sample` without a sampler, found or found again.

    Args:
        posterior, observe, chains, seed: of the call.
        store: where its trace may lie already, with what was found for it.
        cache: a directory in which what is found is kept.

    Returns:
        The calibration, and what the trace says of it.
    """
    observed, _ = read_observed(posterior, observe)
    identity = posterior.fingerprint() | {
        "observed": len(observed),
        "chains": chains,
        "seed": seed,
        "calibration": _FORMAT,
        "version": __version__,
    }
    n = posterior.n_samples  # from all over: data may lie in the order of their labels
    some = posterior.data.batch(np.unique(np.linspace(0, n - 1, min(n, 256), dtype=int)))
    center = float(losses_at(posterior, posterior.center, some).mean())
    file = None if cache is None else place_of(cache, identity, "-calibration.json")
    for kept in (_in_store(store), _in_file(file)):
        if kept and _is_of(kept, identity, center):
            return _rebuilt(kept, posterior, chains), kept
    found = calibrate(posterior, observe, chains=chains, seed=seed)
    described = _described(found) | {"identity": _hash(identity), "center_loss": center}
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with appearing_whole(file) as new:
            new.write_text(json.dumps(described), encoding="utf-8")
    return found, described


def _hash(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _is_of(kept: dict[str, Any], identity: dict[str, Any], center: float) -> bool:
    """Whether kept settings are of this posterior, as far as its losses at w* tell as well."""
    if has_unseen(identity) or kept.get("identity") != _hash(identity):
        return False
    return bool(np.isclose(kept["center_loss"], center, rtol=1e-4, atol=1e-9))


def _in_store(store: str | os.PathLike | None) -> dict[str, Any] | None:
    if store is None:
        return None
    place = DiskStore(store)
    try:
        if not place.exists():
            return None
        place.open()
    except (TraceMismatch, StoreError, OSError):  # the call itself will say what is wrong
        return None
    return place.attrs.get("calibration")


def _in_file(file: Path | None) -> dict[str, Any] | None:
    if file is None or not file.exists():
        return None
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _described(found: Calibration) -> dict[str, Any]:
    """All of it as JSON can say it; numbers that are not known are None."""
    numbers = {name: _finite(getattr(found, name)) for name in _NUMBERS}
    return (
        {name: getattr(found, name) for name in _COUNTS}
        | numbers
        | {
            "localization": found.posterior.localization,
            "step_size": found.sampler.step_size,
            "batch_size": found.sampler.batch_size,
            "evidence": [
                {"name": e.name, "value": _finite(e.value), "sentence": e.sentence}
                for e in found.evidence
            ],
        }
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _rebuilt(kept: dict[str, Any], posterior: LocalPosterior, chains: int) -> Calibration:
    def known(value: float | None) -> float:
        return math.nan if value is None else value

    return Calibration(
        posterior=posterior.at(localization=kept["localization"]),
        sampler=LeimkuhlerMatthews(kept["step_size"], kept["batch_size"]),
        chains=chains,
        draws=kept["draws"],
        burn_in=kept["burn_in"],
        thin=kept["thin"],
        **{name: known(kept[name]) for name in _NUMBERS},
        evidence=tuple(
            Evidence(e["name"], known(e["value"]), e["sentence"]) for e in kept["evidence"]
        ),
    )


__all__ = ["calibration_of"]
