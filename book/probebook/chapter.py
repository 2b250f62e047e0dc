"""What every chapter of the book does: record its numbers, say them, hold them to the paper."""

import contextlib
import html
import json
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from probebook import captions
from probebook import published as publication
from probebook.cache import write_atomically
from probelib import Diagnostics


@dataclass(frozen=True)
class Claim:
    """A line of a chapter's "paper says / this run" table.

    Attributes:
        what: the quantity, in words.
        key: the recorded number that is held against the paper.
        paper: what the paper says, as text; "" where it gives nothing.
        low, high: the range in which this run agrees with the paper; None where it is open.
        digits: format of the recorded number.
        why: why this range, or what to make of a miss.
        must: the claim is mathematics, not an observation: a book in which it fails is not built.
    """

    what: str
    key: str
    paper: str = ""
    low: float | None = None
    high: float | None = None
    digits: str = ".3g"
    why: str = ""
    must: bool = False

    def holds(self, value: float) -> bool | None:
        """Whether ``value`` lies in the range; None if the paper gives nothing to hold it to."""
        if self.low is None and self.high is None:
            return None
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        return low <= value <= high


class Chapter:
    """The numbers of one chapter and one profile.

    Numbers are recorded once, by name; prose, tables, the front page and the tests read what was
    recorded and nothing else.

    Args:
        name: the chapter's file stem, ``NN_topic``.
        profile: ``smoke``, ``laptop`` or ``paper``.
        results_dir: where ``<name>.json`` goes, and the figures that are kept.
        published: the file of published numbers; default: found from the other arguments
            (:func:`probebook.published.find_published`).
    """

    def __init__(
        self,
        name: str,
        *,
        profile: str,
        results_dir: str | os.PathLike,
        published: str | os.PathLike | None = None,
    ):
        self.name, self.profile = name, profile
        if published is None:
            published = publication.find_published(name, profile, results_dir)
        self.published = publication.read_published(published)
        self.path = Path(results_dir) / f"{name}.json"
        self.numbers: dict[str, float | int | str] = {}
        self._started = time.perf_counter()
        # ArviZ logs a line for each series it thinks too short; the diagnostics say it better.
        logging.getLogger("arviz").setLevel(logging.ERROR)
        captions.switch_on(name)

    def record(self, **numbers: Any) -> None:
        """Record numbers or strings under their names, and glue them for the book's pages.

        Raises:
            ValueError: a number is NaN or infinite.
        """
        for key, value in numbers.items():
            value = value.item() if hasattr(value, "item") else value
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{key} is {value}; a result must be a finite number")
            if key in self.numbers and self.numbers[key] == value:
                continue  # a page takes each name once
            self.numbers[key] = value
            with contextlib.suppress(ImportError):  # outside the book there is nothing to glue to
                from myst_nb import glue

                glue(f"{self.name.split('_')[0]}_{key}", value, display=False)

    def say(self, template: str) -> None:
        """Show a sentence (Markdown) whose ``{name}`` fields are recorded numbers.

        Raises:
            KeyError: the sentence names a number that was never recorded.
        """
        from IPython.display import Markdown, display

        display(Markdown(captions.readable(template.format(**self.numbers), self.name)))

    def answer(self, template: str, trust: str) -> None:
        """Show the chapter's answer, with which its page begins, and how far it can be trusted.

        Args:
            template: two sentences with recorded numbers, like :meth:`say`'s.
            trust: one line: verdict, errors, bias.
        """
        self.say(f"**Answer.** {template}\n\n**How far to trust it.** {trust}")

    def record_verdict(self, found: Diagnostics, name: str = "verdict") -> None:
        """Record in words what :func:`probelib.diagnostics` says of a trace."""
        against = [finding.sentence for finding in found.findings if not finding.good]
        word = "sound" if found.good else "wrong" if found.wrong else "wide"
        self.record(**{name: "; ".join([word, *against])})

    def table(self, rows: Sequence[dict[str, Any]], caption: str) -> None:
        """Show rows (equal keys, in order) as a table."""
        head = "".join(f'<th scope="col">{html.escape(str(k))}</th>' for k in rows[0])
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(str(v))}</td>" for v in row.values()) + "</tr>"
            for row in rows
        )
        _show_html(
            f'<div class="probe-table"><table class="table"><caption>{html.escape(caption)}'
            f"</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def keep(self, fig: Figure, name: str) -> Figure:
        """Save a figure beside the results, as ``<chapter>-<name>.png``, and hand it back."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fig.savefig(self.path.with_name(f"{self.name}-{name}.png"), dpi=110)
        return fig

    def compare(self, claims: Sequence[Claim], against: str = "paper") -> None:
        """Show what the paper says beside the published run and this one; record what holds.

        The last two are compared in standard errors where both are recorded (``<key>_mcse``).
        ``claims_broken`` counts those that must hold and do not, ``claims_broken_names`` names
        them: the gate of the book (``book/gate.py``) reads both.

        Args:
            claims: one a row.
            against: the heading of what this run is held to, where that is not the paper.

        Raises:
            KeyError: a claim names a number that was never recorded.
        """
        rows, verdicts, broken = [], [], []
        for claim in claims:
            value = self.numbers[claim.key]
            holds = claim.holds(value)
            verdicts.append(holds)
            verdict = {True: "✓ agrees", False: "✗ differs", None: "new"}[holds]
            if claim.must and holds is False:
                broken.append(claim.what)
                verdict += ", but must agree"
            rows.append(
                {
                    "quantity": claim.what,
                    against: claim.paper or "not given",
                    "published run": publication.show(self.published.get(claim.key), claim.digits),
                    "this run": format(value, claim.digits),
                    "difference": publication.difference(claim.key, self.published, self.numbers),
                    "agrees if": _range(claim),
                    "verdict": verdict,
                    "note": claim.why,
                }
            )
        agree, differ = verdicts.count(True), verdicts.count(False)
        self.record(
            claims_agree=agree,
            claims_differ=differ,
            claims_broken=len(broken),
            claims_broken_names="; ".join(broken),
        )
        self.table(
            rows,
            f"{against[0].upper()}{against[1:]} says / published run / this run "
            f"({self.profile} profile): "
            f"{agree} agree, {differ} differ, {verdicts.count(None)} have nothing to be held to.",
        )

    def finish(self, headline: str) -> None:
        """Write ``<results_dir>/<name>.json``; ``headline`` is a template like :meth:`say`'s."""
        flat = {
            "chapter": self.name,
            "profile": self.profile,
            "headline": headline.format(**self.numbers),
            **self.numbers,
            "seconds": round(time.perf_counter() - self._started, 1),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, (json.dumps(flat, indent=2) + "\n").encode())


def _range(claim: Claim) -> str:
    low, high = (None if v is None else format(v, "g") for v in (claim.low, claim.high))
    if low is None and high is None:
        return "–"
    if low is None:
        return f"≤ {high}"
    return f"≥ {low}" if high is None else f"{low} to {high}"


def _show_html(text: str) -> None:
    from IPython.display import HTML, display

    display(HTML(text))


__all__ = ["Chapter", "Claim"]
