"""Which chapters need not run again, because nothing that they depend on has changed.

A chapter's identity is one SHA-256 over its source, its parameters, the code of `probelib` and
`probebook`, the versions of what runs them, and the data that it would read. The run stores it in
the executed copy, with the hashes of what it wrote. A chapter is kept where the identity is the
same and those files still are what the run wrote.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

import prepare
from probebook import profiles

FORMAT = 1  # raise it when the same identity would stand for another page
PACKAGES = ("probelib", "probebook")


def digest(value: Any) -> str:
    """SHA-256 of a value, by its JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=repr).encode()).hexdigest()


def file_hash(path: Path) -> str | None:
    """SHA-256 of a file's content; None where there is no such file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def tree_hash(folders: Iterable[Path]) -> str:
    """SHA-256 of all files in some folders, by name and content; what Python compiled is no file.

    Every edit counts, whether or not a chapter uses the code: simple, and safe. But the parameters
    of all chapters stand in a file there, and each chapter has its own in its identity.
    """
    found = []
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not {"__pycache__", profiles.FILE.name} & {*path.parts}:
                name = f"{folder.name}/{path.relative_to(folder).as_posix()}"
                found.append((name, file_hash(path)))
    return digest(found)


def code_folders() -> list[Path]:
    """Where this interpreter, which is the chapters' own, imports the packages from."""
    specs = [importlib.util.find_spec(name) for name in PACKAGES]
    return [Path(spec.origin).parent for spec in specs if spec is not None and spec.origin]


def data_identities() -> dict[str, str]:
    """What the modules of data would read now, without reading it."""
    from probebook import brown, classifiers, fashion, imagenet, mnist

    modules = {
        "mnist": mnist,
        "fashion": fashion,
        "imagenet": imagenet,
        "classifiers": classifiers,
        "brown": brown,
    }
    return {name: module.data_identity() for name, module in modules.items()}


def surroundings(device: str, kept_runs: Path) -> dict[str, Any]:
    """What all chapters of a run depend on.

    Args:
        device: on which they run, in words.
        kept_runs: the folder of long runs that chapters read (`results/prerun`).
    """
    return {
        "format": FORMAT,
        "code": tree_hash(code_folders()),
        "page": file_hash(Path(prepare.__file__)),
        "kept_runs": tree_hash([kept_runs]),
        "versions": prepare.versions(),
        "device": device.split(" (")[0],  # not the number of cores: it changes no number
        "data": data_identities(),
    }


def identity(
    source: NotebookNode,
    parameters: dict[str, Any],
    around: dict[str, Any],
    published: str | None = None,
) -> str:
    """The identity of a chapter, SHA-256.

    Args:
        source: its cells.
        parameters: all of them, with the values that it would run with.
        around: see :func:`surroundings`.
        published: hash of the published results that its table shows, if any.
    """
    return digest([prepare.source_hash(source), parameters, around, published])


def written(results: Path) -> dict[str, str]:
    """SHA-256 of what a chapter left in its results folder, by name.

    Args:
        results: its results file; the others are named `<chapter>-...` beside it.
    """
    paths = [results, *results.parent.glob(f"{results.stem}-*")]
    return {path.name: file_hash(path) for path in sorted(paths) if path.is_file()}


def copy_hash(executed: NotebookNode) -> str:
    """SHA-256 of an executed copy; where it keeps that hash itself is left out."""
    content = json.loads(nbformat.writes(executed))
    content["metadata"].get(prepare.PROVENANCE, {}).pop("copy_sha256", None)
    return digest(content)


def seal(executed: NotebookNode) -> NotebookNode:
    """Write into an executed copy what its own hash is."""
    executed.metadata[prepare.PROVENANCE]["copy_sha256"] = copy_hash(executed)
    return executed


@dataclass(frozen=True)
class Kept:
    """A chapter that need not run again: when it ran, and what its results file holds."""

    started: str
    numbers: dict[str, Any]


def find_kept(executed: Path, results: Path, wanted: str) -> Kept | None:
    """What an earlier run left of a chapter, if nothing has changed since; else None.

    Args:
        executed: where its executed copy is.
        results: its results file.
        wanted: its identity now.
    """
    try:
        nb = nbformat.read(executed, as_version=4)
        found = nb.metadata[prepare.PROVENANCE]
        if found["identity"] != wanted or found["copy_sha256"] != copy_hash(nb):
            return None
        wrote = found["written"]
        if results.name not in wrote or written(results) != wrote:
            return None
        numbers = json.loads(results.read_text(encoding="utf-8"))
        return Kept(
            found["started"], numbers | {"duration_seconds": float(found["duration_seconds"])}
        )
    except Exception:  # whatever is wrong with them, running the chapter is right
        return None
