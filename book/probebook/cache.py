"""Where the experiments keep what they download and train."""

from __future__ import annotations

import os
from pathlib import Path

from probelib.store import write_atomically

__all__ = ["cache_dir", "write_atomically"]


def cache_dir(*parts: str) -> Path:
    """The cache directory, or a directory inside it; created if it does not exist.

    The root is ``$PROBELIB_CACHE`` if that is set and not empty, else ``probelib`` in the
    platform's user cache: ``$XDG_CACHE_HOME``, or ``~/.cache``.

    Args:
        parts: names of nested directories, for example ``cache_dir("networks")``.

    Raises:
        OSError: the directory cannot be created.
    """
    own = os.environ.get("PROBELIB_CACHE")
    if own:
        root = Path(own).expanduser()
    else:
        user = os.environ.get("XDG_CACHE_HOME")
        # The XDG specification: a relative path is invalid and to be ignored.
        base = Path(user) if user and Path(user).is_absolute() else Path.home() / ".cache"
        root = base / "probelib"
    path = root.joinpath(*parts)
    path.mkdir(parents=True, exist_ok=True)
    return path
