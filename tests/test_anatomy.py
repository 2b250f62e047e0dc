"""The anatomy of a chapter: the answer first, the method in sight, the plumbing out of it."""

from __future__ import annotations

import ast
import builtins
from pathlib import Path

import jupytext
import nbformat
import pytest

import prepare

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.py"))
FOLDED = {"hide-input", "hide-cell", "parameters"}
OUT_OF_SIGHT = {"remove-input", "remove-cell", "answer"}
WIDTH = 76


def cells(path: Path, kind: str = "code") -> list[tuple[set[str], str]]:
    """Tags and source of a chapter's cells."""
    found = [cell for cell in jupytext.read(path).cells if cell.cell_type == kind]
    return [(set(cell.metadata.get("tags", [])), cell.source) for cell in found]


def visible(path: Path) -> list[str]:
    """The code that a reader of the page sees."""
    return [source for tags, source in cells(path) if not tags & (FOLDED | OUT_OF_SIGHT)]


def names(source: str, context: type[ast.expr_context]) -> set[str]:
    """Names that code takes or makes, imports, functions and their arguments included."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, context):
            found.add(node.id)
        elif context is ast.Store and isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(name.asname or name.name).partition(".")[0] for name in node.names}
        elif context is ast.Store and isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif context is ast.Store and isinstance(node, ast.arg):
            found.add(node.arg)
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_code_in_sight_is_the_method(path: Path) -> None:
    """No bookkeeping, nothing cut at the page's width, and nothing that hidden code has made."""
    given = set(dir(builtins))
    for tags, source in cells(path):
        if not tags & OUT_OF_SIGHT:
            given |= names(source, ast.Store)
    for source in visible(path):
        assert "chapter" not in names(source, ast.Load), source
        assert names(source, ast.Load) <= given, names(source, ast.Load) - given
        wide = [line for line in source.splitlines() if len(line) > WIDTH]
        assert wide == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_chapter_begins_with_its_answer_and_ends_with_exercises(path: Path) -> None:
    code, prose = cells(path), cells(path, "markdown")
    for tag in ("answer", "key-figure", "parameters"):
        assert sum(tag in tags for tags, _ in code) == 1, tag
    title, about = prose[0][1], prose[1]
    assert title.startswith("# ")
    assert "**Claim.**" in title
    assert len(title.split()) < 80
    assert about[0] == {"about"}
    assert "| `smoke` |" in about[1]
    [exercises] = [source for _, source in prose if source.startswith("## Exercises")]
    assert "**1.**" in exercises
    assert any(source.startswith("**2.**") for _, source in prose)
    answers = [source for tags, source in code if "hide-cell" in tags]
    assert len(answers) >= 2


def executed() -> nbformat.NotebookNode:
    """A chapter as papermill leaves it."""
    v4 = nbformat.v4
    image = v4.new_output("display_data", {"image/png": "", "text/plain": "Figure"})
    said = v4.new_output("display_data", {"text/markdown": "**Answer.** 42", "text/plain": ""})
    glued = v4.new_output("display_data", {"application/papermill.record/text/plain": "42"})
    nb = v4.new_notebook(
        cells=[
            v4.new_markdown_cell("# Title"),
            v4.new_markdown_cell("What it costs.", metadata={"tags": ["about"]}),
            v4.new_code_cell("n: int = 1", metadata={"tags": ["parameters"]}),
            v4.new_code_cell(
                "draw()",
                outputs=[image],
                execution_count=3,
                metadata={"tags": ["key-figure"], "mystnb": {"figure": {"name": "fig-it"}}},
            ),
            v4.new_code_cell(
                "chapter.answer()", outputs=[glued, said], metadata={"tags": ["answer"]}
            ),
            v4.new_markdown_cell("## Summary"),
        ]
    )
    return nb


def copied_from(profile: str) -> prepare.Provenance:
    return prepare.Provenance(
        "notebooks/00.py", "0", profile, {"n": 1}, "abc", "CPU", {}, "now", 1.0
    )


def copy_of(profile: str) -> nbformat.NotebookNode:
    copy = prepare.executed_copy(executed(), copied_from(profile), {})
    nbformat.validate(copy)
    return copy


def test_the_page_begins_with_answer_and_key_figure() -> None:
    title, answer, figure, about, parameters, card, drawing, summary = copy_of("laptop").cells
    assert title.source == "# Title"
    assert answer.outputs[1].data["text/markdown"] == "**Answer.** 42"
    assert answer.metadata["tags"] == ["answer", "remove-input"]
    assert "image/png" in figure.outputs[0].data
    assert figure.execution_count == 3  # or the gate takes it for a cell that did not run
    assert figure.metadata["mystnb"]["figure"]["name"] == "fig-it"
    assert about.source.startswith(":::{admonition}")
    assert "dropdown" in about.source
    assert parameters.metadata["tags"] == ["hide-input", "parameters"]
    assert "run-card" in card.metadata["tags"]
    assert drawing.source == "draw()"
    assert "mystnb" not in drawing.metadata
    assert drawing.outputs[0].data["text/markdown"].startswith("{numref}`fig-it`")
    assert summary.source == "## Summary"


def test_a_smoke_run_has_a_banner_in_place_of_its_answer() -> None:
    _, note, answer, figure, *_ = copy_of("smoke").cells
    assert "not a result" in note.source
    assert [list(output.data) for output in answer.outputs] == [
        ["application/papermill.record/text/plain"]
    ]
    assert "image/png" in figure.outputs[0].data


BARS = "\r  0%|          | 0/2 [00:00<?, ?epoch/s]\ra: 100%|██████| 2/2 [00:01<00:00,  1.5epoch/s]"


@pytest.mark.parametrize(
    ("printed", "kept"),
    [
        (BARS + "\n", None),
        (BARS, None),
        (BARS + "\n\n", None),
        ("\n" + BARS + "\n \n", None),
        ("before\n" + BARS + "\nafter\n", "before\nafter\n"),
        (BARS + "\r" + 60 * " " + "\rwritten above the bar\n" + BARS, "written above the bar\n"),
        ("no line break" + BARS + "\n", "no line break\n"),
        (BARS + "beside it\n", "beside it\n"),
        ("10 %\r20 %\rdone\n", "done\n"),
        ("from Windows\r\n", "from Windows\n"),
        ("a table\n 50%| of | it [all]\n\n", "a table\n 50%| of | it [all]\n\n"),
    ],
)
def test_bars_are_left_out_and_what_was_printed_stays(printed: str, kept: str | None) -> None:
    output = prepare.without_bars(nbformat.v4.new_output("stream", name="stdout", text=printed))
    assert (output and output.text) == kept


def test_a_page_has_neither_bars_nor_warnings() -> None:
    nb = executed()
    cell = nb.cells[3]
    for name, text in (("stdout", BARS), ("stderr", "a warning"), ("stdout", "a result\n")):
        cell.outputs.insert(0, nbformat.v4.new_output("stream", name=name, text=text))
    nb.cells[3].metadata["tags"] = []  # so that its outputs stay where they are
    page = prepare.executed_copy(nb, copied_from("laptop"), {})
    [drawing] = [cell for cell in page.cells if cell.source == "draw()"]
    assert [output.get("text") for output in drawing.outputs] == ["a result\n", None]
