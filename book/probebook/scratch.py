"""Temporary folders that do not outlast a process which was killed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_LOCK = ".lock"


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """A temporary folder, gone at the end; those of the same purpose that nobody holds go first.

    Its holder keeps a file in it locked, and the system lets go of that however the holder ends.

    Args:
        purpose: a word in the folder's name.

    Raises:
        OSError: the folder cannot be made.
    """
    place = Path(tempfile.gettempdir())
    _sweep(place, purpose)
    # Locked before it has the name that a sweep looks for.
    new = Path(tempfile.mkdtemp(prefix=f"probelib-new-{purpose}-", dir=place))
    folder = new.with_name(new.name.replace("-new-", "-", 1))
    descriptor = os.open(new / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if fcntl is not None:
            with suppress(OSError):  # no locks here: then no sweep removes it either
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new.rename(folder)
        yield folder
    finally:
        os.close(descriptor)
        for path in (new, folder):
            shutil.rmtree(path, ignore_errors=True)


def _sweep(place: Path, purpose: str) -> None:
    """Remove this user's folders whose holders have ended."""
    if fcntl is None:
        return
    for folder in place.glob(f"probelib-{purpose}-*"):
        with suppress(OSError):  # somebody holds it, or it is another user's, or it has just gone
            descriptor = os.open(folder / _LOCK, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
