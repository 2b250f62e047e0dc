"""What the runs of a chapter cost, and which of them came from the cache.

:func:`probelib.sample`, :func:`probelib.gradient_pairs` and :func:`probelib.importance_sample` say
on the logger `probelib` what they have made or found, and
:func:`probebook.training.trained_network` does the same. A chapter listens, and its run card shows
the sums.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Sequence
from typing import Any

_LOGGER = logging.getLogger("probelib")


class Ledger(logging.Handler):
    """Takes down every run that is reported while it listens.

    Attributes:
        runs: what :func:`probelib.progress.report_run` was told of each.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.runs: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Take down a run; other messages are not for us."""
        if (run := getattr(record, "probelib_run", None)) is not None:
            self.runs.append(run)

    def listen(self) -> None:
        """Listen from here on, instead of any ledger before: a setup cell can run twice."""
        for other in [h for h in _LOGGER.handlers if isinstance(h, Ledger)]:
            _LOGGER.removeHandler(other)
        _LOGGER.addHandler(self)
        _LOGGER.setLevel(logging.INFO)

    def rows(self) -> list[tuple[str, str]]:
        """Rows of a run card: what was made in this run, and what came from the cache."""
        return [
            ("Made in this run", summary([run for run in self.runs if not run["cached"]])),
            ("From the cache", summary([run for run in self.runs if run["cached"]])),
        ]


def summary(runs: Sequence[dict[str, Any]]) -> str:
    """How many runs of each kind, their draws, their seconds, and when kept ones were made."""
    parts = []
    for kind in dict.fromkeys(run["kind"] for run in runs):
        of_kind = [run for run in runs if run["kind"] == kind]
        draws = sum(run["draws"] or 0 for run in of_kind)
        text = f"{len(of_kind)} {kind}{'s' if len(of_kind) > 1 else ''}"
        text += f", {draws:,} draws" if draws else ""
        parts.append(f"{text}, {duration(sum(run['seconds'] for run in of_kind))}")
    if not parts:
        return "nothing"
    made = sorted(run["made"] for run in runs if run["made"] is not None)
    days = dict.fromkeys(_day(at) for at in (made[:1] + made[-1:]))
    return "; ".join(parts) + (f"; made {' to '.join(days)}" if days else "")


def _day(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d")


def duration(seconds: float) -> str:
    """A duration in words: `42 s`, `3 min 20 s`, `1 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if whole >= 10 else f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


__all__ = ["Ledger", "duration", "summary"]
