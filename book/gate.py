"""What must be true of the executed chapters before they may become a book.

    python book/gate.py [DIR]

DIR is the folder given to the driver's `--into`; the repository itself by default. jupyter-book
renders a failed notebook without complaint, so everything is checked here first. Every finding
is one line that names the notebook and the cell.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbformat import NotebookNode

import prepare


def results_findings(path: Path) -> list[str]:
    """What is wrong with a results file: it must be a flat object of numbers and strings."""
    if not path.is_file():
        return ["the results file is missing"]
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return [f"not JSON ({error})"]
    if not isinstance(content, dict) or not content:
        return ["must be an object with at least one entry"]
    findings = []
    if "edited" in content:
        findings.append(f"made with edited parameters ({content['edited']})")
    for key, value in content.items():
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            kind = type(value).__name__
            findings.append(f"{key!r} is neither a number nor a string ({kind})")
        elif isinstance(value, float) and not math.isfinite(value):
            findings.append(f"{key!r} is not finite")
    return findings


def claim_findings(profile: str, results: dict[str, Any]) -> list[str]:
    """Claims that are mathematics and failed; a profile whose numbers mean nothing may fail."""
    broken = results.get("claims_broken", 0)
    if not broken or profile in prepare.NOT_A_RESULT:
        return []
    names = results.get("claims_broken_names") or "it does not say which"
    return [f"{broken} of the claims that must hold {'do' if broken > 1 else 'does'} not ({names})"]


def cell_findings(nb: NotebookNode) -> list[str]:
    """Errors, cells that did not run, and figures without alt text."""
    findings = []
    for number, cell in enumerate(nb.cells, start=1):
        if cell.cell_type != "code":
            continue
        first = next((line for line in cell.source.splitlines() if line.strip()), "")
        where = f"cell {number} ({first.strip()[:40]!r})"
        outputs = cell.get("outputs", [])
        for output in outputs:
            if output.output_type == "error":
                findings.append(f"{where}: error output {output.ename}: {output.evalue}"[:200])
        if cell.source.strip() and cell.get("execution_count") is None:
            findings.append(f"{where}: did not run")
        # What `glue` stores without showing is not an image of this page.
        shown = [
            o for o in outputs if not any(m.startswith("application/papermill") for m in data(o))
        ]
        if any(mime.startswith("image/") for output in shown for mime in data(output)):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            if not str(alt).strip():
                findings.append(f"{where}: image without alt text (metadata mystnb.image.alt)")
    return findings


def data(output: NotebookNode) -> dict[str, Any]:
    """The MIME bundle of an output; empty where it has none."""
    return output.get("data", {})


def glued(nb: NotebookNode) -> dict[str, str]:
    """Every glued name of a notebook with its plain text."""
    found = {}
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            name = output.get("metadata", {}).get("scrapbook", {}).get("name")
            if name:
                bundle = data(output)
                prefix = "application/papermill.record/"
                found[name] = bundle.get(f"{prefix}text/plain", bundle.get("text/plain", ""))
    return found


def glue_findings(stem: str, nb: NotebookNode, results: dict[str, Any]) -> list[str]:
    """A glued `NN_name` must be the `name` of the chapter's results file, with its value."""
    findings = []
    for key, text in glued(nb).items():
        if not key.startswith(stem[:2] + "_"):
            continue
        name = key[3:]
        if name not in results:
            findings.append(f"{key!r} is glued, but the results file has no {name!r}")
            continue
        value = results[name]
        if isinstance(value, str):
            same = text.strip("'\"") == value or text == repr(value)
        else:
            try:
                same = math.isclose(float(text), value, rel_tol=1e-3, abs_tol=1e-12)
            except ValueError:
                findings.append(f"{key!r} is glued as {text!r}: glue a plain int or float")
                continue
        if not same:
            findings.append(f"{key!r} is glued as {text}, but the results file says {value}")
    return findings


def parameter_findings(
    provenance: dict[str, Any], source: NotebookNode, stem: str, params: Path
) -> list[str]:
    """Parameters that the chapter would run with now and that it did not run with."""
    file = params / f"{provenance['profile']}.yaml"
    try:
        own = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get(stem) or {}
    except (OSError, yaml.YAMLError) as error:
        return [f"its profile's params/{file.name} cannot be read ({type(error).__name__})"]
    ran = provenance["parameters"]
    set_by_the_driver = {"profile", "results_dir", "live"}
    return [
        f"older than params/{file.name}: {name} was {ran.get(name)!r} and is {value!r}; run it "
        "again"
        for name, value in (prepare.defaults(source) | own).items()
        if name not in set_by_the_driver and ran.get(name) != value
    ]


def check(executed: Path, results: Path, sources: Path, params: Path | None = None) -> list[str]:
    """Every finding about the executed chapters; an empty list lets the book be built.

    Args:
        executed: the folder of executed copies.
        results: the folder that holds one folder of results files a profile.
        sources: the folder of the chapters' sources.
        params: the folder of the profiles; default: beside the sources.
    """
    params = sources.parent / "params" if params is None else params
    findings: list[str] = []
    profiles: dict[str, list[str]] = {}
    for source in sorted(sources.glob("[0-9][0-9]_*.py")):
        name = f"{source.stem}.ipynb"
        path = executed / name
        if not path.is_file():
            findings.append(f"{name}: did not run")
            continue
        nb = nbformat.read(path, as_version=4)
        findings += [f"{name}: {finding}" for finding in cell_findings(nb)]
        provenance = nb.metadata.get(prepare.PROVENANCE)
        if not provenance:
            findings.append(f"{name}: no provenance; run it with book/driver.py")
            continue
        now = prepare.read_source(source)
        if provenance["source_sha256"] != prepare.source_hash(now):
            findings.append(f"{name}: older than its source notebooks/{source.name}; run it again")
        else:
            stale = parameter_findings(provenance, now, source.stem, params)
            findings += [f"{name}: {finding}" for finding in stale]
        profile = provenance["profile"]
        profiles.setdefault(profile, []).append(source.stem)
        shown = prepare.shown_results(results, profile)
        ran = provenance["parameters"]["results_dir"]
        if ran != shown:
            findings.append(f"{name}: its numbers went to {ran}, not to {shown}; run it again")
        file = results / profile / f"{source.stem}.json"
        wrong = results_findings(file)
        findings += [f"{name}: {shown}/{file.name}: {finding}" for finding in wrong]
        if not wrong:
            content = json.loads(file.read_text(encoding="utf-8"))
            findings += [f"{name}: {f}" for f in glue_findings(source.stem, nb, content)]
            findings += [f"{name}: {f}" for f in claim_findings(profile, content)]
    if len(profiles) > 1:
        mixed = "; ".join(f"{name}: {', '.join(stems)}" for name, stems in profiles.items())
        findings.append(f"chapters of different profiles in one book ({mixed})")
    return findings


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status."""
    root = Path(__file__).resolve().parent.parent
    base = Path(arguments[0]) if arguments else root
    own = base / "results" / "own"  # there is none where every run was published
    results = own if own.is_dir() else own.parent
    findings = check(base / "book" / "notebooks", results, root / "notebooks")
    print("\n".join(findings) or "The gate finds nothing.")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
