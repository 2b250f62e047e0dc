"""Keep each chapter's notebook in step with its source.

    python book/pair.py            write notebooks/NN_topic.ipynb from notebooks/NN_topic.py
    python book/pair.py --check    say where the two differ, change nothing

The .py file is the edited source. The notebook holds the same cells without outputs; the ids of
its cells come from their content, so a diff shows only what changed. Code that the pages leave out
is collapsed in it.

It keeps `book/probebook/data/profiles.json` in step as well: the chapters' parameters by profile,
for whoever opens a chapter and names one.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import yaml
from nbformat import NotebookNode

import prepare
from probebook import profiles

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
PROFILES = Path(__file__).resolve().parent / "probebook" / "data" / profiles.FILE.name


BOOKKEEPING = {"remove-input", "remove-cell", "answer"}  # cells whose code no page shows


def collapse(nb: NotebookNode) -> NotebookNode:
    """Have JupyterLab collapse the code that no page shows; what it puts out stays in sight."""
    for cell in nb.cells:
        if cell.cell_type == "code" and BOOKKEEPING & {*prepare.tags(cell)}:
            cell.metadata["jupyter"] = {"source_hidden": True}
    return nb


def essence(nb: NotebookNode) -> list[dict[str, Any]]:
    """What must agree between the two: cell type, text, tags, figure metadata, what is collapsed.

    The last stands in the notebook alone: jupytext leaves it there and takes it from there.
    """
    return [
        {
            "type": cell.cell_type,
            "source": cell.source,
            "tags": list(cell.metadata.get("tags", [])),
            "mystnb": dict(cell.metadata.get("mystnb", {})),
            "jupyter": dict(cell.metadata.get("jupyter", {})),
        }
        for cell in nb.cells
    ]


def drift(source: Path) -> list[str]:
    """Where a notebook differs from its source, or holds what only a run produces."""
    notebook = source.with_suffix(".ipynb")
    if not notebook.is_file():
        return [f"{notebook.name} is missing"]
    nb = jupytext.read(notebook)
    found = []
    theirs, ours = essence(nb), essence(collapse(prepare.read_source(source)))
    if len(theirs) != len(ours):
        found.append(f"{notebook.name} has {len(theirs)} cells, {source.name} has {len(ours)}")
    for number, (one, other) in enumerate(zip(theirs, ours, strict=False), start=1):
        keys = [key for key in one if one[key] != other[key]]
        if keys:
            found.append(f"{notebook.name}, cell {number}: {', '.join(keys)} differ")
    for number, cell in enumerate(nb.cells, start=1):
        if cell.get("outputs") or cell.get("execution_count") is not None:
            found.append(f"{notebook.name}, cell {number}: holds outputs of a run")
    return found


def write(source: Path) -> None:
    """Write the notebook of a source."""
    text = nbformat.writes(collapse(prepare.read_source(source)), version=4)
    source.with_suffix(".ipynb").write_text(text + "\n", encoding="utf-8")


def date_back(source: Path) -> None:
    """Give a notebook the time of its source: JupyterLab opens no pair whose notebook is newer."""
    notebook, time = source.with_suffix(".ipynb"), source.stat()
    if notebook.stat().st_mtime_ns > time.st_mtime_ns:
        os.utime(notebook, ns=(time.st_atime_ns, time.st_mtime_ns))


def all_profiles(notebooks: Path, params: Path) -> str:
    """The content of `profiles.json`: default values of each chapter, and its profiles'."""
    by_profile = {
        path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        for path in sorted(params.glob("*.yaml"))
    }
    found = {}
    for source in sorted(notebooks.glob("[0-9][0-9]_*.py")):
        default = prepare.defaults(prepare.read_source(source))
        own = {name: values.get(source.stem) or {} for name, values in by_profile.items()}
        left_out = profiles.APART & default.keys()
        found[source.stem] = {
            "default": {name: default[name] for name in default if name not in left_out}
        } | own
    return json.dumps(found, indent=1) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Pair the chapters' notebooks with their sources.")
    parser.add_argument("--check", action="store_true", help="change nothing, say what differs")
    options = parser.parse_args(arguments)
    sources = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.py"))
    found = [line for source in sources for line in drift(source)]
    content = all_profiles(NOTEBOOKS, NOTEBOOKS.parent / "params")
    in_step = PROFILES.is_file() and PROFILES.read_text(encoding="utf-8") == content
    if options.check:
        orphans = {p.stem for p in NOTEBOOKS.glob("*.ipynb")} - {p.stem for p in sources}
        found += [f"{stem}.ipynb has no source {stem}.py" for stem in sorted(orphans)]
        found += [] if in_step else [f"{PROFILES.name} is not what params/ and the chapters say"]
        if found:
            print("\n".join(found), file=sys.stderr)
            print("`make sync` writes both from the sources and params/.", file=sys.stderr)
        return 1 if found else 0
    for source in sources:
        if drift(source):
            write(source)
            print(f"wrote {source.with_suffix('.ipynb').name}")
        date_back(source)
    if not in_step:
        PROFILES.write_text(content, encoding="utf-8")
        print(f"wrote {PROFILES.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
