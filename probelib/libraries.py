"""What is installed: code that is known by the name and the version of its library."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

_INSTALLED = {"site-packages", "dist-packages"}
_STDLIB = os.path.dirname(os.__file__) + os.sep
# Of this library too, where it is not installed: what only imports, checks arguments or hashes.
_NO_NUMBERS = {
    "probelib",
    "probelib.arguments",
    "probelib.bytecode",
    "probelib.fingerprint",
    __name__,
}


def library_of(space: dict[str, Any]) -> str | None:
    """Name and version of the library that a module's globals belong to; None: it is none.

    Libraries are Python's own and what lies in ``site-packages``. Anything else (a script, a
    notebook, a project that is being worked on) is followed.
    """
    name = space.get("__name__")
    if not isinstance(name, str) or name == "__main__":
        return None
    root = name.partition(".")[0]
    if name in _NO_NUMBERS:
        return root
    file, origin = space.get("__file__"), getattr(space.get("__spec__"), "origin", None)
    if isinstance(file, str):
        return _version(root) if _is_installed(file) else None
    if origin in ("built-in", "frozen"):
        return _version(root)
    above = sys.modules.get(root)  # a part of a library that is compiled into another
    return library_of(vars(above)) if above is not None and root != name else None


def library_of_module(name: Any) -> str | None:
    """The same, by the name that a class or a function gives for its module."""
    if not isinstance(name, str):
        return None
    module = sys.modules.get(name) or sys.modules.get(name.partition(".")[0])
    return library_of(vars(module)) if isinstance(module, ModuleType) else None


def library_to_import(name: str) -> str | None:
    """The library of a module that is not imported yet, or "" where there is no such module."""
    root = name.partition(".")[0]
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(root)
        if spec is None:
            return ""
        if spec.origin in ("built-in", "frozen") or (spec.origin and _is_installed(spec.origin)):
            return _version(root)
    return None


@functools.cache
def _is_installed(file: str) -> bool:
    return file.startswith(_STDLIB) or not _INSTALLED.isdisjoint(Path(file).parts)


@functools.cache
def _version(root: str) -> str:
    """Of a library; the part after a plus names only how it was built."""
    if root in sys.stdlib_module_names:
        return "python {}.{}".format(*sys.version_info)
    module, found = sys.modules.get(root), None
    with suppress(importlib.metadata.PackageNotFoundError):
        found = importlib.metadata.version(root)
    if not found and isinstance(getattr(module, "__version__", None), str):
        found = module.__version__  # type: ignore[union-attr]
    if not found:  # it was installed under another name, which is slow to find
        with suppress(Exception):
            named = importlib.metadata.packages_distributions().get(root, ())
            found = " ".join(importlib.metadata.version(name) for name in sorted(set(named)))
    if not found:
        with suppress(OSError, TypeError):
            found = hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()  # type: ignore
    return f"{root} {str(found).partition('+')[0]}"


__all__ = ["library_of", "library_of_module", "library_to_import"]
