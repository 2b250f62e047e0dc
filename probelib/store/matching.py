"""Never another trace: whether what lies in a store is what a call asks for."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from probelib.fingerprint import not_followed
from probelib.store.integrity import TraceMismatch


def refuse_unseen(fingerprint: dict[str, Any], path: Path | None, remedy: str) -> None:
    """Refuse to serve a trace of code or values that may have changed unseen.

    Args:
        fingerprint: of the call, or of the store.
        path: of the store.
        remedy: what to do beside giving these values otherwise.

    Raises:
        TraceMismatch: saying what could not be followed.
    """
    if (reason := _unseen(fingerprint)) is not None:
        raise TraceMismatch(f"store {str(path)!r} is not served: {reason}, {remedy}")


def warn_of_unseen(fingerprint: dict[str, Any], store: Any) -> None:
    """Say before a trace is made that no later call will be served it (UserWarning)."""
    if store is not None and (reason := _unseen(fingerprint)) is not None:
        warnings.warn(
            f"no later call will be served, or go on with, the trace in {str(store)!r}: {reason}",
            UserWarning,
            stacklevel=3,
        )


def has_unseen(fingerprint: dict[str, Any]) -> bool:
    """Whether something of it could not be followed, so that a change would not be seen."""
    return _unseen(fingerprint) is not None


def _unseen(fingerprint: dict[str, Any]) -> str | None:
    for field, value in _flat(fingerprint).items():
        if (what := not_followed(value)) is not None:
            return (
                f"{field} uses {what}, which cannot be followed, so that a change of it would not "
                "be seen; give what it takes from there as an attribute or by functools.partial"
            )
    return None


def check_fingerprint(stored: dict[str, Any], wanted: dict[str, Any], path: Path | None) -> None:
    """Refuse to serve a trace of something else.

    Raises:
        TraceMismatch: naming every field that differs, with both values, or what of either could
            not be followed.
    """
    for fingerprint in (wanted, stored):
        refuse_unseen(fingerprint, path, "choose another store, or pass overwrite=True")
    there, here = _flat(stored), _flat(wanted)
    fields = [k for k in {**there, **here} if there.get(k) != here.get(k)]
    if fields:
        found = "; ".join(
            f"{k} is {_short(there.get(k))} there and {_short(here.get(k))} here"
            for k in sorted(fields)
        )
        raise TraceMismatch(
            f"store {str(path)!r} holds another trace: {found}. Choose another store, or pass "
            "overwrite=True to replace it"
        )


def check_losses(
    stored: np.ndarray, now: np.ndarray, index: np.ndarray, same_device: bool, path: Path | None
) -> None:
    """Refuse a trace whose losses at w* are not those of this model and loss.

    It sees what a fingerprint cannot: what is not in the code, such as the version of a driver.

    Args:
        stored: the trace's l_i(w*), shape (k,).
        now: the same samples' losses now, shape (k,).
        index: which samples these are, shape (k,).
        same_device: only rounding can differ; else another device's arithmetic.
        path: of the store, for the message.

    Raises:
        TraceMismatch: naming the first sample that differs.
    """
    # A confident sample's loss, exp(-margin), has the relative error that its margin has absolute.
    rtol, atol = (1e-4, 1e-6) if same_device else (1e-2, 1e-3)
    differ = ~np.isclose(now, stored, rtol=rtol, atol=atol * np.abs(stored).max())
    if differ.any():
        at = int(np.flatnonzero(differ)[0])
        raise TraceMismatch(
            f"store {str(path)!r} holds another trace: the loss of sample {index[at]} at w* is "
            f"{stored[at]:.6g} there and {now[at]:.6g} here. Choose another store, or pass "
            "overwrite=True to replace it"
        )


def _flat(fields: dict[str, Any], under: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{under}{name}.")
        else:
            flat[under + name] = value
    return flat


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text


__all__ = [
    "check_fingerprint",
    "check_losses",
    "has_unseen",
    "refuse_unseen",
    "warn_of_unseen",
]
