"""One smoke run of every chapter with a build of the book, shared by the tests that look at it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Book:
    """A rendered book and where it came from."""

    into: Path
    log: str

    @property
    def html(self) -> Path:
        return self.into / "book" / "_build" / "html"

    def pages(self) -> list[Path]:
        """Every page that a reader opens."""
        generated = {"genindex.html", "search.html", "py-modindex.html", "index.html"}
        return sorted(p for p in self.html.rglob("*.html") if p.name not in generated | unread())


def unread() -> set[str]:
    """Templates that the theme leaves among its static files."""
    return {"webpack-macros.html", "sbt-webpack-macros.html"}


class Running:
    """The one smoke run of a session, as `make book PROFILE=smoke`, into a folder of its own."""

    def __init__(self, into: Path):
        self.into, self.log = into, into / "log.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "book/driver.py", "--profile", "smoke", "--into", str(into)],
                cwd=ROOT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )


running: list[Running] = []  # at most one a session


def start(factory: pytest.TempPathFactory) -> Running:
    """Begin the smoke run, once a session: it goes on beside the other tests."""
    if not running:
        running.append(Running(factory.mktemp("book")))
    return running[0]


def smoke_book(factory: pytest.TempPathFactory) -> Book:
    """The book of the smoke run, when it has ended."""
    run = start(factory)
    status, log = run.process.wait(), run.log.read_text(encoding="utf-8")
    if status != 0:
        pytest.fail(f"the smoke run failed:\n{log[-6000:]}", pytrace=False)
    return Book(run.into, log)


def stop() -> None:
    """End a run that nobody waits for any more."""
    for run in running:
        run.process.terminate()
        run.process.wait()
