"""Paths as people write them: ``~`` is expanded, what lies on another machine is refused."""

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

# A drive has one letter; pathlib turns the two slashes of a URL into one.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]+:/")


def local_path(name: str, path: str | bytes | os.PathLike, instead: str = "") -> Path:
    """A path on this machine.

    Args:
        name: of the argument, for the message.
        path: as it was given; ``~`` and ``file://`` are expanded.
        instead: what to do with a URL; default: keep the trace here, and copy it.

    Raises:
        ValueError: it is a URL, or in the home of nobody.
    """
    text = os.fsdecode(path)
    if _URL.match(text):
        parts = urlsplit(text)
        if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
            remedy = "give a local path, and copy what is there when the call is done"
            raise ValueError(f"{name} is {text!r}, which is no local path; {instead or remedy}")
        text = unquote(parts.path)
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{name} is {text!r}, but that home is not known; write it out") from error


__all__ = ["local_path"]
