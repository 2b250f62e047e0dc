"""From a chapter's source to a notebook that papermill can run, and from its output to a page.

The source of a chapter is `notebooks/NN_topic.py` (py:percent). What lands in the book is the
executed notebook with papermill's injected cell hidden, the parameters cell showing the values
that were used, a run card after it, and the provenance of the run in the notebook's metadata.
No path of the machine that ran it stays in the copy.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbformat import NotebookNode

from probebook.ledger import duration
from probebook.profiles import NOT_A_RESULT, spell

KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
PROVENANCE = "probelib"  # the key of the provenance in the notebook's metadata
RUN_CARD = "application/vnd.probebook.run-card+json"  # of rows that a chapter adds to its run card
BAR = re.compile(r"^.*?\d+%\|[^|]*\|[^\[]*\[[^\]]*\]")  # of tqdm: `a: 40%|##  | 2/5 [00:01<00:02]`


@dataclass(frozen=True)
class Provenance:
    """What produced an executed chapter; stored in its metadata and shown on its run card."""

    source: str
    source_sha256: str
    profile: str
    parameters: dict[str, Any]
    commit: str
    device: str
    versions: dict[str, str]
    started: str
    duration_seconds: float
    identity: str = ""  # of the chapter and all that it depends on (unchanged.py)
    written: dict[str, str] = field(default_factory=dict)  # SHA-256 of what it wrote, by name


# -- sources ---------------------------------------------------------------------------------


def stable_ids(nb: NotebookNode) -> NotebookNode:
    """Give every cell an id made of its content, so that a diff shows only what changed."""
    seen: dict[str, int] = {}
    for cell in nb.cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[digest] = seen.get(digest, 0) + 1
        cell["id"] = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    return nb


def read_source(path: Path) -> NotebookNode:
    """Read a chapter's source as a notebook without outputs, with stable cell ids."""
    nb = jupytext.read(path, fmt="py:percent")
    nb.metadata.pop("jupytext", None)
    nb.metadata["kernelspec"] = dict(KERNELSPEC)
    nb.nbformat, nb.nbformat_minor = 4, 5
    return stable_ids(nb)


def source_hash(nb: NotebookNode) -> str:
    """SHA-256 of the cells of a source notebook: their type, text, tags and figure metadata."""
    cells = [
        [c.cell_type, c.source, c.metadata.get("tags", []), c.metadata.get("mystnb", {})]
        for c in nb.cells
    ]
    return hashlib.sha256(json.dumps(cells, sort_keys=True).encode()).hexdigest()


def tags(cell: NotebookNode) -> list[str]:
    """The tags of a cell."""
    return list(cell.metadata.get("tags", []))


def tagged(nb: NotebookNode, tag: str) -> int | None:
    """The position of the first cell with `tag`, or None."""
    return next((i for i, cell in enumerate(nb.cells) if tag in tags(cell)), None)


def defaults(source: NotebookNode) -> dict[str, Any]:
    """The parameters of a chapter with the values that its own cell gives them."""
    position = tagged(source, "parameters")
    if position is None:
        return {}
    found = {}
    for node in ast.parse(source.cells[position].source).body:
        if isinstance(node, ast.AnnAssign | ast.Assign) and node.value is not None:
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if isinstance(target, ast.Name):
                with contextlib.suppress(ValueError):
                    found[target.id] = ast.literal_eval(node.value)
    return found


# -- the run -----------------------------------------------------------------------------------


def commit(root: Path) -> str:
    """Short hash of the checked-out commit, with `-dirty` when tracked files differ from it.

    `results/` is left out of the comparison: a run that is published rewrites it.
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        short = git("rev-parse", "--short", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{short}-dirty" if changed else short


def device() -> str:
    """The device that torch would use here, in words."""
    try:
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name(0)
    except ImportError:
        pass
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return f"CPU ({platform.machine()}, {cores} core{'s' if cores != 1 else ''})"


def versions() -> dict[str, str]:
    """The versions of Python, torch and probelib in this environment."""
    found = {"python": platform.python_version()}
    for name in ("torch", "probelib"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def shown_results(results: Path, profile: str) -> str:
    """The results folder of a profile as a reader sees it, without the path of this machine.

    Args:
        results: the folder of all profiles: `.../results`, or `.../results/own`.
        profile: which of them.
    """
    return f"results/own/{profile}" if results.name == "own" else f"results/{profile}"


# -- the page ----------------------------------------------------------------------------------


def literal(node: ast.expr) -> str | None:
    """The `repr` of a literal in the source; None for any other expression."""
    try:
        return repr(ast.literal_eval(node))
    except ValueError:
        return None


def with_values(source: str, values: dict[str, Any]) -> str:
    """Rewrite `name: type = default` in `source` where `values` has another value for the name."""
    spans: list[tuple[int, int, int, int, str]] = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign):
            target, value = node.target, node.value
        elif isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
        else:
            continue
        if isinstance(target, ast.Name) and target.id in values and value is not None:
            if literal(value) == repr(values[target.id]):
                continue  # as written: 5e-3 stays 5e-3
            spans.append(
                (
                    value.lineno - 1,
                    value.col_offset,
                    value.end_lineno - 1,
                    value.end_col_offset,
                    spell(values[target.id]),
                )
            )
    lines = [line.encode() for line in source.split("\n")]  # ast counts columns in UTF-8 bytes
    for first, start, last, end, text in sorted(spans, reverse=True):
        joined = lines[first][:start] + text.encode() + lines[last][end:]
        lines[first : last + 1] = [joined]
    return b"\n".join(lines).decode()


def said_of_the_run(nb: NotebookNode) -> list[list[str]]:
    """Take out of an executed chapter the rows that it adds to its run card."""
    rows: list[list[str]] = []
    for cell in nb.cells:
        for output in [o for o in cell.get("outputs", []) if RUN_CARD in o.get("data", {})]:
            rows += output.data[RUN_CARD]
            cell.outputs.remove(output)
    return rows


def run_card(provenance: Provenance, said: Sequence[Sequence[str]] = ()) -> str:
    """The run card in MyST Markdown: one line that is always seen, the details folded.

    Args:
        provenance: of the run.
        said: rows that the chapter adds: what it sampled, and what came from the cache.
    """
    values = provenance.parameters
    title = f"Run card: profile {provenance.profile}"
    if "seed" in values:
        title += f", seed {values['seed']}"
    title += f", commit {provenance.commit}, {duration(provenance.duration_seconds)}"
    software = ", ".join(f"{name} {version}" for name, version in provenance.versions.items())
    rows = [
        ("Source", f"`{provenance.source}`"),
        ("Device", provenance.device),
        ("Software", software),
        ("Started", provenance.started),
        ("Duration", duration(provenance.duration_seconds)),
        *said,
    ]
    rows += [(f"`{name}`", f"`{spell(value)}`") for name, value in values.items()]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        f":::{{admonition}} {title}\n:class: note dropdown run-card\n\n"
        f"| What | Value |\n| --- | --- |\n{table}\n:::\n"
    )


SMOKE_NOTE = """:::{admonition} A smoke run: not a result
:class: warning not-a-result

This page was made with the `smoke` profile, which only checks that every step runs. Its networks
and chains are far too small: no number or figure on it means anything. `make book` makes the real
one.
:::
"""


def is_glue(output: NotebookNode) -> bool:
    """Whether an output is a recorded number, which pages refer to and nobody sees."""
    return any(kind.startswith("application/papermill.record") for kind in output.get("data", {}))


def fold(nb: NotebookNode) -> None:
    """Fold what a reader may want to look up: what the chapter is about, and its parameters."""
    about, parameters = tagged(nb, "about"), tagged(nb, "parameters")
    if about is not None:
        cell = nb.cells[about]
        cell.source = (
            ":::{admonition} The paper, the profiles, the cost\n:class: note dropdown\n\n"
            f"{cell.source}\n:::"
        )
    if parameters is not None:
        cell = nb.cells[parameters]
        cell.metadata["tags"] = sorted({*tags(cell), "hide-input"})
        cell.metadata["mystnb"] = {"code_prompt_show": "Show the parameters"}
    for cell in nb.cells:
        if "hide-input" in tags(cell) and cell.source.startswith(("import ", "from ")):
            cell.metadata["mystnb"] = {"code_prompt_show": "Show the imports"}


def first_screen(nb: NotebookNode) -> list[NotebookNode]:
    """Take out of an executed chapter what its page begins with: its answer, its key figure.

    Both are made at the end of a run, or in the middle; a reader wants them first. The cell that
    draws the figure stays where it is, with a reference in place of its output.
    """
    opening = []
    answer, figure = tagged(nb, "answer"), tagged(nb, "key-figure")
    for position in (answer, figure):
        if position is None:
            continue
        cell = nb.cells[position]
        # A page leaves out the outputs of a cell without code, though the code is hidden.
        moved = nbformat.v4.new_code_cell(
            cell.source, outputs=cell.outputs, execution_count=cell.execution_count
        )
        moved.metadata["tags"] = sorted({*tags(cell), "remove-input"})
        moved.metadata["mystnb"] = cell.metadata.pop("mystnb", {})
        name = moved.metadata["mystnb"].get("figure", {}).get("name")
        text = (
            f"{{numref}}`{name}`, at the top of this page, is what this cell draws." if name else ""
        )
        cell.outputs = [
            nbformat.v4.new_output("display_data", {"text/markdown": text, "text/plain": text})
        ]
        opening.append(moved)
    if answer is not None:
        del nb.cells[answer]
    return opening


def without_bars(output: NotebookNode) -> NotebookNode | None:
    """An output without progress bars; None if no letter is left, or if it is what stderr got.

    A bar writes its line again and again, each time after a carriage return. Of such a line stays
    what would be seen at its end, bars and blanks left out; lines without one stay as they are.
    """
    if output.get("output_type") != "stream" or output.get("name") == "stderr":
        return None if output.get("name") == "stderr" else output
    kept = []
    for line, end in re.findall(r"([^\n]*)(\n|$)", output.text.replace("\r\n", "\n")):
        seen = [part for part in line.split("\r") if BAR.sub("", part).strip()]
        if "\r" not in line:
            kept.append(line + end)
        elif seen:
            kept.append(BAR.sub("", seen[-1]).rstrip() + end)
    output.text = "".join(kept)
    return output if output.text.strip() else None


def executed_copy(
    executed: NotebookNode, provenance: Provenance, shown: dict[str, Any]
) -> NotebookNode:
    """The copy of an executed chapter that goes into the book.

    Args:
        executed: what papermill wrote.
        provenance: what produced it.
        shown: values to show instead of the ones in the injected cell (paths of this machine).
    """
    nb = copy.deepcopy(executed)
    values = provenance.parameters | shown
    for key in ("jupytext", "papermill", "widgets"):
        nb.metadata.pop(key, None)
    nb.metadata["kernelspec"] = dict(KERNELSPEC)
    for cell in nb.cells:
        cell.metadata.pop("papermill", None)
        if cell.cell_type == "code":  # progress bars and warnings were in the live log
            cell.outputs = [o for o in map(without_bars, cell.outputs) if o is not None]
    position = tagged(nb, "parameters")
    injected = tagged(nb, "injected-parameters")
    if position is not None:
        nb.cells[position].source = with_values(nb.cells[position].source, values)
    if injected is not None:
        cell = nb.cells[injected]
        cell.source = with_values(cell.source, values)
        cell.metadata["tags"] = sorted({*tags(cell), "remove-cell"})
    card = nbformat.v4.new_markdown_cell(run_card(provenance, said_of_the_run(nb)))
    card.metadata["tags"] = ["run-card"]
    after = max((i for i in (position, injected) if i is not None), default=0)
    nb.cells.insert(after + 1, card)
    fold(nb)
    opening = first_screen(nb)
    if provenance.profile in NOT_A_RESULT:
        note = nbformat.v4.new_markdown_cell(SMOKE_NOTE)
        note.metadata["tags"] = ["not-a-result"]
        for cell in opening:
            if "answer" in tags(cell):  # what it recorded for other pages stays
                cell.outputs = [output for output in cell.outputs if is_glue(output)]
        opening = [note, *opening]
    nb.cells[1:1] = opening
    nb.metadata[PROVENANCE] = asdict(provenance)
    return stable_ids(nb)


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
