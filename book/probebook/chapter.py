"""What every chapter of the book does: record its numbers, say them, hold them to the paper."""

import contextlib
import html
import json
import logging
import math
import os
import string
import time
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from probebook import captions
from probebook import published as publication
from probebook.cache import write_atomically
from probebook.figures import narrow
from probebook.ledger import Ledger, duration
from probebook.profiles import NOT_A_RESULT, Settled, settle
from probelib import Diagnostics

EDITED = "Edited parameters, not a result."
SMOKE = "A smoke run: not a result."
RUN_CARD = "application/vnd.probebook.run-card+json"  # rows for the driver's run card


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

    A profile that is named has its values: those that still are the chapter's defaults are set
    here, and a line says so. Where others differ from the profile's, the numbers are not the
    profile's: all that is shown says so, and what is written goes to a folder ``edited``.

    Args:
        name: the chapter's file stem, ``NN_topic``.
        profile: ``smoke``, ``laptop`` or ``paper``.
        results_dir: where ``<name>.json`` goes, and the figures that are kept.
        published: the file of published numbers; default: found from the other arguments
            (:func:`probebook.published.find_published`).
        parameters: the notebook's names, ``globals()``; None leaves the profile unchecked.

    Raises:
        ValueError: the chapter has no such profile.
    """

    def __init__(
        self,
        name: str,
        *,
        profile: str,
        results_dir: str | os.PathLike,
        published: str | os.PathLike | None = None,
        parameters: MutableMapping[str, Any] | None = None,
    ):
        self.name, self.profile = name, profile
        self.settled = Settled() if parameters is None else settle(name, profile, parameters)
        if published is None:
            published = publication.find_published(name, profile, results_dir)
        self.published = publication.read_published(published)
        self.path = Path(results_dir) / ("edited" if self.edited else "") / f"{name}.json"
        self.numbers: dict[str, float | int | str] = {}
        self._started = time.perf_counter()
        # ArviZ logs a line for each series it thinks too short; the diagnostics say it better.
        logging.getLogger("arviz").setLevel(logging.ERROR)
        captions.switch_on(name, EDITED if self.edited else "")
        if captions.in_a_kernel() and not captions.opened_by_hand():  # it becomes a page
            narrow.switch_on()
        self.ledger = Ledger()
        self.ledger.listen()
        self._say_what_runs()

    @property
    def edited(self) -> bool:
        """Whether values differ from the profile's, so that the numbers are no result of it."""
        return bool(self.settled.edited)

    def _say_what_runs(self) -> None:
        """Say which values were set to the profile's, and that an edited or a small run is one."""
        if taken := self.settled.taken:
            print(f"The {self.profile} profile sets {', '.join(taken)}.")
        if self.edited:
            _show_markdown(f"**{EDITED}** {self._edits()}")
        elif self.profile in NOT_A_RESULT and captions.opened_by_hand():
            _show_markdown(f"**{SMOKE}** Its networks and chains are far too small.")

    def _edits(self) -> str:
        return f"Other than in the {self.profile} profile: `{self.settled.words()}`."

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
        said = captions.readable(template.format(**self.numbers), self.name)
        numbers = any(name for _, name, _, _ in string.Formatter().parse(template))
        if self.edited and numbers:
            said += ("\n\n" if "\n" in said else " ") + f"*{EDITED}*"
        _show_markdown(said)

    def answer(self, template: str, trust: str) -> None:
        """Show the chapter's answer, with which its page begins, and how far it can be trusted.

        A run that is no result says that instead.

        Args:
            template: two sentences with recorded numbers, like :meth:`say`'s.
            trust: one line: verdict, errors, bias.

        Raises:
            KeyError: a sentence names a number that was never recorded.
        """
        text = f"**Answer.** {template}\n\n**How far to trust it.** {trust}"
        text.format(**self.numbers)  # in every run, or a small one would hide a missing number
        if self.edited:
            _show_markdown(f"**{EDITED}** In place of an answer: {self._edits()}")
        elif self.profile in NOT_A_RESULT:
            _show_markdown(f"**{SMOKE}** The chapter gives its answer in the other profiles.")
        else:
            self.say(text)

    def record_verdict(self, found: Diagnostics, name: str = "verdict") -> None:
        """Record in words what :func:`probelib.diagnostics` says of a trace."""
        against = [finding.sentence for finding in found.findings if not finding.good]
        word = "sound" if found.good else "wrong" if found.wrong else "wide"
        self.record(**{name: "; ".join([word, *against])})

    def table(self, rows: Sequence[dict[str, Any]], caption: str) -> None:
        """Show rows (equal keys, in order) as a table."""
        if self.edited:
            caption = f"{EDITED} {caption}"
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
            open_or_new = "open" if claim.paper else "new"
            verdict = {True: "✓ agrees", False: "✗ differs", None: open_or_new}[holds]
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
        unheld = [bool(claim.paper) for claim in claims if claim.holds(0.0) is None]
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
            + _counts(agree, differ, unheld.count(True), unheld.count(False), against),
        )

    def finish(self, headline: str) -> None:
        """Write ``<results_dir>/<name>.json``; ``headline`` is a template like :meth:`say`'s."""
        headline = headline.format(**self.numbers)
        flat = {
            "chapter": self.name,
            "profile": self.profile,
            **({"edited": self.settled.words()} if self.edited else {}),
            "headline": f"{EDITED} {headline}" if self.edited else headline,
            **self.numbers,
            "seconds": round(time.perf_counter() - self._started, 1),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, (json.dumps(flat, indent=2) + "\n").encode())
        self._show_run_card()

    def _show_run_card(self) -> None:
        """What ran: a table for a reader, rows of the page's run card for the driver."""
        rows = self.ledger.rows()
        if self.edited:
            rows = [("Edited, not the profile's", self.settled.words()), *rows]
        if captions.opened_by_hand():
            took = duration(time.perf_counter() - self._started)
            rows = [("Profile", self.profile), *rows, ("Duration", took)]
            self.table([{"what": what, "value": value} for what, value in rows], "Run card.")
        elif captions.in_a_kernel():
            _show({RUN_CARD: rows}, raw=True)


def _counts(agree: int, differ: int, left_open: int, new: int, against: str) -> str:
    """How a table of claims came out, as one says it."""
    said = [
        f"{count or 'none'} {verb}{'' if count > 1 else 's'}"
        for count, verb in ((agree, "agree"), (differ, "differ"))
    ]
    rest = [f"{left_open} {'are' if left_open > 1 else 'is'} left open"] * (left_open > 0)
    without = "the paper gives no number" if against == "paper" else f"there is no {against}"
    rest += [f"for {new} {without}"] * (new > 0)
    return "; ".join([", ".join(said), *rest]) + "."


def _range(claim: Claim) -> str:
    low, high = (None if v is None else format(v, "g") for v in (claim.low, claim.high))
    if low is None and high is None:
        return "–"
    if low is None:
        return f"≤ {high}"
    return f"≥ {low}" if high is None else f"{low} to {high}"


def _show_html(text: str) -> None:
    from IPython.display import HTML

    _show(HTML(text))


def _show_markdown(text: str) -> None:
    from IPython.display import Markdown

    _show(Markdown(text))


def _show(content: Any, **options: Any) -> None:
    from IPython.display import display  # slow to import, and a test may put its own in its place

    display(content, **options)


__all__ = ["Chapter", "Claim"]
