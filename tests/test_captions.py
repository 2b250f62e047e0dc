"""In a chapter opened by hand, captions follow their figures and references are words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from IPython.core.interactiveshell import InteractiveShell

from probebook import captions
from probebook.chapter import Chapter

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
ROLE = re.compile(r"\{[a-z:]+\}`")


def cell(source: str, label: str = "", *, key: bool = False) -> dict:
    shown = {"figure": {"caption": f"Of {label}, `a < b`.", "name": label}, "image": {"alt": "A."}}
    metadata = {"mystnb": shown} if label else {}
    metadata |= {"tags": ["key-figure"]} if key else {}
    lines = source.splitlines(keepends=True)
    return {"id": f"id-{source[:4]}", "source": lines, "metadata": metadata, "cell_type": "code"}


@pytest.fixture
def notebook(tmp_path, monkeypatch) -> Path:
    """A chapter of two figures; the second is the one that its page begins with."""
    monkeypatch.chdir(tmp_path)
    cells = [cell("a = 1"), cell("draw(\n    a\n)", "fig-a"), cell("show(a)", "fig-b", key=True)]
    path = tmp_path / "00_test.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    return path


@pytest.fixture
def shell(monkeypatch) -> InteractiveShell:
    """The shell of a kernel, in which ``draw`` and ``show`` print and ``fail`` fails."""
    shell = InteractiveShell()
    shell.kernel = object()
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    shell.user_ns |= {"live": True, "draw": print, "show": print, "fail": lambda _: 1 / 0}
    return shell


@pytest.fixture
def shown(monkeypatch) -> list[str]:
    """What has been displayed."""
    shown: list[str] = []
    monkeypatch.setattr("IPython.display.display", lambda output: shown.append(output.data))
    return shown


def begin(tmp_path: Path) -> Chapter:
    return Chapter("00_test", profile="smoke", results_dir=tmp_path)


def test_the_caption_of_a_figure_follows_it(notebook, shell, shown, tmp_path):
    begin(tmp_path)
    begin(tmp_path)  # the setup cell ran twice: still one caption
    shown.clear()
    shell.run_cell("a = 1")
    assert shown == []
    shell.run_cell("draw(\n    a\n)\n")
    shell.run_cell("show(a)")
    second, first = shown
    assert "<b>Figure 0.2.</b> Of fig-a, <code>a &lt; b</code>.</figcaption>" in second
    assert 'data-alt="A."' in second
    assert "<b>Figure 0.1.</b> Of fig-b" in first


def test_a_figure_that_a_reader_changed_keeps_its_caption(notebook, shell, shown, tmp_path):
    begin(tmp_path)
    shown.clear()
    shell.run_cell("a = 1")
    shell.run_cell("show(a + 1)", cell_id="another")
    assert shown == []
    shell.run_cell("show(a + 1)", cell_id="id-show")
    assert "<b>Figure 0.1.</b>" in shown[0]


def test_a_figure_that_failed_has_no_caption(notebook, shell, shown, tmp_path):
    begin(tmp_path)
    shown.clear()
    shell.user_ns |= {"a": 1, "show": shell.user_ns["fail"]}
    shell.run_cell("show(a)")
    assert shown == []


@pytest.mark.parametrize("live", [False, None])
def test_nothing_happens_when_the_driver_runs_it(notebook, shell, shown, tmp_path, live):
    shell.user_ns |= {"a": 1, "live": live}
    begin(tmp_path).say("See {{numref}}`fig-a`.")
    shell.run_cell("show(a)")
    assert shown == ["See {numref}`fig-a`."]


def test_what_a_chapter_says_reads_without_the_book(notebook, shell, shown, tmp_path):
    begin(tmp_path).say("{{numref}}`fig-a` is {{doc}}`here <../errata>`.")
    assert shown[-1] == "Figure 0.2 is here."


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{numref}`fig-b`, {numref}`fig-a`", "Figure 0.1, Figure 0.2"),
        ("{numref}`fig-elsewhere`", "fig-elsewhere"),
        ("{doc}`Chapter 3 <03_memorization>`", "Chapter 3"),
        ("({doc}`chapter\n2 <02_loss_gain>`)", "(chapter\n2)"),
        ("{doc}`../errata`", "Errata of the paper"),
        ("{ref}`erratum 3 <erratum-3>`", "erratum 3"),
        ("{cite:t}`lau2025llc`", "Lau et al. (2025)"),
        ("{cite:p}`iba2024wkernel,anonymous2025bif`", "(Iba, 2024; Anonymous et al., 2025)"),
        ("{cite:t}`koh2017understanding`", "Koh and Liang (2017)"),
        ("{cite:t}`houdre1998interpolation`", "Houdré et al. (1998)"),
        ("{cite:t}`nobody1900`", "nobody1900"),
        ("$\\hat{R}$ `{doc}` {a}", "$\\hat{R}$ `{doc}` {a}"),
    ],
)
def test_references_become_words(notebook, text, words):
    assert captions.plain(text, captions.figure_cells(notebook)) == words


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_chapter_has_a_reference_that_cannot_be_read(path):
    figures = captions.figure_cells(path)
    numbers = [f"{int(path.name[:2])}.{k}" for k in range(1, len(figures) + 1)]
    assert [figure.number for figure in figures] == numbers
    keys = [*captions.sources(), *(figure.label for figure in figures)]
    for cell in json.loads(path.read_text())["cells"]:
        text = captions.plain("".join(cell["source"]), figures)
        if cell["cell_type"] == "markdown":
            assert not ROLE.search(text)
            assert not [key for key in keys if re.search(rf"\b{key}\b", text)]


def test_without_a_notebook_file_there_are_no_captions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert captions.figure_cells(captions.notebook_of("99_nothing")) == []
    (tmp_path / "00_test.ipynb").write_text("half writ")
    assert captions.figure_cells(captions.notebook_of("00_test")) == []


def test_a_terminal_is_no_notebook(notebook, shell, monkeypatch):
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(user_ns={"live": True}))
    assert captions.readable("{numref}`fig-a`", "00_test") == "{numref}`fig-a`"
