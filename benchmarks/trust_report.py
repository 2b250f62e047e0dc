"""From what ``make trust`` measured to the tables of ``book/trust.md``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from report import _table as table
from trust_cases import FAULTS, SOUND, WIDE, WRONG

TITLES = {
    SOUND: "Sound: right within 5 %, draws enough",
    WRONG: "Wrong",
    WIDE: "Wide: unbiased, too few draws",
}


def write_report(found: dict[str, Any], into: Path) -> None:
    """Write the page's blocks, between marks that ``book/trust.md`` cuts at."""
    cases = found["cases"]
    blocks = {"kinds": kinds(cases), "mistaken": mistaken(cases), "cases": all_cases(cases)}
    blocks |= {name: numbers(found[name]) for name in SECTIONS if found.get(name)}
    marked = [f"<!-- {name} -->\n\n{text}\n\n<!-- /{name} -->" for name, text in blocks.items()]
    into.write_text("\n\n".join(marked) + "\n")


#: What ``benchmarks/intervals.py`` measures: a list of rows, or a dict of them by name.
SECTIONS = ("coverage", "stopping", "neighbours")


def numbers(rows: Any) -> str:
    """Rows as a table; a dict's keys are its first column."""
    if isinstance(rows, dict):
        rows = [
            {"": key, **(value if isinstance(value, dict) else {"value": value})}
            for key, value in rows.items()
        ]
    head = list(dict.fromkeys(key for row in rows for key in row))
    body = [[_shown(row.get(key)) for key in head] for row in rows]
    return table([str(key).replace("_", " ") for key in head], body)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text.replace("_", " ")


def kinds(cases: list[dict[str, Any]]) -> str:
    """How many of each kind were called what."""
    rows = []
    for expected in (SOUND, WRONG, WIDE):
        of = [case for case in cases if case["expected"] == expected]
        rows.append(_counts(f"**{TITLES[expected]}**", of))
        rows += [
            _counts(kind, [case for case in of if case["kind"] == kind])
            for kind in dict.fromkeys(case["kind"] for case in of)
            if expected != WIDE
        ]
    return table(["", "cases", "called sound", "called wide", "called wrong"], rows)


def _counts(title: str, cases: list[dict[str, Any]]) -> list[str]:
    verdicts = [verdict for case in cases for verdict in case["verdicts"]]
    return [title, str(len(cases)), *(str(verdicts.count(word)) for word in (SOUND, WIDE, WRONG))]


def is_mistaken(case: dict[str, Any]) -> bool:
    """A sound case that is not approved, or another that is, with any seed."""
    approved = [verdict == SOUND for verdict in case["verdicts"]]
    return not all(approved) if case["expected"] == SOUND else any(approved)


def mistaken(cases: list[dict[str, Any]]) -> str:
    """The cases that the verdict gets wrong."""
    wrong = [case for case in cases if is_mistaken(case)]
    if not wrong:
        return "None."
    return _list(wrong)


def all_cases(cases: list[dict[str, Any]]) -> str:
    """Every case."""
    return _list(cases)


def _list(cases: list[dict[str, Any]]) -> str:
    rows = []
    for case in cases:
        bias = case["bias"]
        rows.append(
            [
                f"{case['kind']}: {case['name']}",
                case["expected"],
                "" if case["truth"] is None else f"{case['truth']:.3g}",
                ", ".join("-" if llc is None else f"{llc:.3g}" for llc in case["llc"]),
                _percent(bias) if case["fault"] in BIASED else "",
                ", ".join(dict.fromkeys(case["verdicts"])),
                ", ".join(dict.fromkeys(reason for of in case["reasons"] for reason in of)),
            ]
        )
    head = ["case", "is", "LLC, true", "LLC, seeds", "bias", "called", "for"]
    return table(head, rows)


#: Faults whose bias is the point; others are wrong whatever the LLC is.
BIASED = {"", "step", "noise", "preconditioner", "relaxation", "precision"} & {"", *FAULTS}


def _percent(bias: float | None) -> str:
    if bias is None or not math.isfinite(bias):
        return ""
    return f"{bias:+.0%}" if abs(bias) >= 0.1 else f"{bias:+.1%}"
