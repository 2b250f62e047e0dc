"""Where the experiments keep what they download and train."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

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


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that no reader ever sees a part of it.

    The bytes go to a temporary file in the same directory, which then takes the final name in
    one step (``os.replace``); two processes that write at once leave one whole file.

    Raises:
        OSError: the directory is missing, read-only or full; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid4().hex[:8]}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
