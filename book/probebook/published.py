"""The published numbers of a chapter, beside those of a run of the reader's own."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NONE = "–"


def find_published(name: str, profile: str, results_dir: str | Path) -> Path | None:
    """The file of a chapter's published numbers, or None where there is none but this run's own.

    It is `results/<profile>/<name>.json`, in the nearest folder `results` that `results_dir` lies
    in, or beside the folder in which the chapter runs.

    Args:
        name: the chapter's file stem.
        profile: whose numbers.
        results_dir: where this run writes.
    """
    own = (Path(results_dir) / f"{name}.json").resolve()
    places = [folder for folder in own.parents if folder.name == "results"][:1]
    for place in (*places, Path("../results").resolve()):
        file = place / profile / f"{name}.json"
        if file == own:
            return None  # this run is the published one
        if file.is_file():
            return file
    return None


def read_published(file: Path | None) -> dict[str, Any]:
    """The numbers in a results file; none where there is no file, or it cannot be read.

    Numbers of edited parameters are nobody's published ones.
    """
    if file is None:
        return {}
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and "edited" not in content else {}


def difference(key: str, published: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Own less published, in standard errors of the difference; a dash where one is not known.

    The errors are those recorded as `<key>_mcse`, taken as independent.
    """
    errors = [numbers.get(f"{key}_mcse") for numbers in (published, own)]
    values = [numbers.get(key) for numbers in (published, own)]
    if any(isinstance(v, str | None) for v in (*errors, *values)) or not any(errors):
        return NONE
    return f"{(values[1] - values[0]) / math.hypot(*errors):+.1f} s.e."


def show(value: Any, digits: str) -> str:
    """A published number as the chapter writes its own; a dash where there is none."""
    return NONE if value is None or isinstance(value, str) else format(value, digits)
