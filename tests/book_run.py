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


done: list[tuple[Path, subprocess.CompletedProcess[str]]] = []  # at most one run a session


def smoke_book(factory: pytest.TempPathFactory) -> Book:
    """Run the driver as `make book PROFILE=smoke` does, into a temporary folder, once a session."""
    if not done:
        into = factory.mktemp("book")
        run = subprocess.run(
            [sys.executable, "book/driver.py", "--profile", "smoke", "--into", str(into)],
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        done.append((into, run))
    into, run = done[0]
    if run.returncode != 0:
        pytest.fail(f"the smoke run failed:\n{run.stdout[-6000:]}", pytrace=False)
    return Book(into, run.stdout)
