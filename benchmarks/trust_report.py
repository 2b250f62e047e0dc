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
    tables = {"coverage": coverage, "stopping": stopping, "neighbours": neighbours}
    blocks |= {name: table_of(found[name]) for name, table_of in tables.items() if found.get(name)}
    marked = [f"<!-- {name} -->\n\n{text}\n\n<!-- /{name} -->" for name, text in blocks.items()]
    into.write_text("\n\n".join(marked) + "\n")


def coverage(rows: list[dict[str, Any]]) -> str:
    """Share of intervals that hold the truth, per cent: the mean over all simulations of a size,
    the least, and how many errors are infinite.
    """
    names = list(dict.fromkeys(row["estimator"].partition(" near")[0] for row in rows))
    body = []
    for size in dict.fromkeys((row["chains"], row["draws"]) for row in rows):
        line = ["{} x {:,}".format(*size)]
        for name in names:
            of = [
                row
                for row in rows
                if (row["chains"], row["draws"]) == size
                and row["estimator"].partition(" near")[0] == name
            ]
            held, lost = ([100 * row[key] for row in of] for key in ("coverage", "infinite"))
            infinite = f"; {sum(lost) / len(lost):.0f}" if sum(lost) else ""
            line.append(f"{sum(held) / len(held):.1f} ({min(held):.0f}{infinite})")
        body.append(line)
    return table(["chains x draws", *(name.replace("_", " ") for name in names)], body)


def stopping(rows: list[dict[str, Any]]) -> str:
    """The true error over the one asked for, and the draws that it took over those needed."""
    targets = list(dict.fromkeys(row["until"] for row in rows))
    body = []
    for key in dict.fromkeys((row["weights"], row["chains"], row["tau"]) for row in rows):
        of = {r["until"]: r for r in rows if (r["weights"], r["chains"], r["tau"]) == key}
        cells = [f"{of[u]['ratio']:.2f} ({of[u]['draws'] / of[u]['needed']:.1f})" for u in targets]
        body.append([*map(str, key), *cells])
    head = ["weights", "chains", "autocorrelation time", *(f"until {until:g}" for until in targets)]
    return table(head, body)


def neighbours(rows: list[dict[str, Any]]) -> str:
    """Neighbours called in a null kernel; the false among those called, and the power, else."""
    planted = list(dict.fromkeys(row["planted"] for row in rows))
    body = []
    for key in dict.fromkeys((r["tails"], r["chains"], r["draws"], r["tau"]) for r in rows):
        tails, chains, draws, tau = key
        of = {
            r["planted"]: r for r in rows if (r["tails"], r["chains"], r["draws"], r["tau"]) == key
        }
        cells = [f"{of[r]['called']:.2%}" if not r else f"{of[r]['power']:.0%}" for r in planted]
        worst = max((of[r]["false"] for r in planted if r), default=0.0)
        body.append([tails, f"{chains} x {draws:,}", str(tau), *cells, f"{worst:.1%}"])
    found = [f"found, R = {r:g}" if r else "called, nothing planted" for r in planted]
    head = ["tails", "chains x draws", "autocorrelation time", *found, "false, at most"]
    return table(head, body)


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
