"""A chapter's source and its notebook hold the same cells, and the notebook nothing of a run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import jupytext
import nbformat
import pytest

import driver
import pair
import prepare

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
SOURCES = driver.chapters(NOTEBOOKS)

SOURCE = """# %% [markdown]
# # A title

# %% tags=["parameters"]
seed: int = 0  # the seed

# %% mystnb={"image": {"alt": "a line"}}
print(seed)

# %%
print(seed)
"""


@pytest.fixture
def chapter(tmp_path: Path) -> Path:
    path = tmp_path / "00_topic.py"
    path.write_text(SOURCE, encoding="utf-8")
    return path


def test_chapters_are_numbered_without_gaps() -> None:
    """A second part has the number of the first, and its name with more to it."""
    first: list[str] = []
    for path in sorted(SOURCES):
        if not (first and path.stem.startswith(f"{first[-1]}_")):
            first.append(path.stem)
    assert [int(stem[:2]) for stem in first] == list(range(len(first)))


def test_every_notebook_has_a_source() -> None:
    assert {p.stem for p in NOTEBOOKS.glob("*.ipynb")} == {p.stem for p in SOURCES}


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_the_pair_agrees(source: Path) -> None:
    assert pair.drift(source) == []
    # The same with jupytext alone, independent of this project's code.
    one, other = jupytext.read(source), jupytext.read(source.with_suffix(".ipynb"))
    keep = ("tags", "mystnb")
    assert [
        (c.cell_type, c.source, {k: c.metadata[k] for k in keep if k in c.metadata})
        for c in one.cells
    ] == [
        (c.cell_type, c.source, {k: c.metadata[k] for k in keep if k in c.metadata})
        for c in other.cells
    ]


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_the_notebook_is_valid_and_clean(source: Path) -> None:
    nb = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(nb)
    ids = [cell["id"] for cell in nb.cells]
    assert len(ids) == len(set(ids))
    for cell in nb.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_the_parameters_that_the_driver_sets_exist(source: Path) -> None:
    nb = prepare.read_source(source)
    position = prepare.tagged(nb, "parameters")
    assert position is not None
    names = prepare.defaults(nb)
    assert {"profile", "seed", "results_dir", "live"} <= names.keys()
    assert names["live"] is True
    assert names["profile"] == "laptop"


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_a_chapter_that_is_opened_leaves_the_committed_results_alone(source: Path) -> None:
    results = prepare.defaults(prepare.read_source(source))["results_dir"]
    assert (NOTEBOOKS / results).resolve() == NOTEBOOKS.parent / "results" / "live"
    if not (NOTEBOOKS.parent / ".git").exists():
        pytest.skip("not a git checkout")
    git = ["git", "-C", str(NOTEBOOKS.parent), "check-ignore", "-q", "results/live/x.json"]
    assert subprocess.run(git, check=False).returncode == 0


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_the_prose_refers_to_every_figure(source: Path) -> None:
    nb = prepare.read_source(source)
    figures = [c.metadata.get("mystnb", {}).get("figure") for c in nb.cells]
    names = [figure["name"] for figure in figures if figure]
    prose = "\n".join(c.source for c in nb.cells if c.cell_type == "markdown")
    assert names
    assert len(names) == len(set(names))
    assert set(names) == set(re.findall(r"\{numref}`(fig-[^`]+)`", prose))


def test_no_two_chapters_share_the_name_of_a_figure() -> None:
    metadata = [c.metadata.get("mystnb", {}) for p in SOURCES for c in prepare.read_source(p).cells]
    names = [m["figure"]["name"] for m in metadata if "figure" in m]
    assert len(names) == len(set(names))


def test_the_bibliography_lists_what_is_cited() -> None:
    book = NOTEBOOKS.parent / "book"
    listed = re.findall(r"^@\w+\{([^,]+),", (book / "references.bib").read_text("utf-8"), re.M)
    pages = [p.read_text("utf-8") for p in (*SOURCES, *book.glob("*.md"))]
    roles = re.findall(r"\{cite:[a-z]+\}`([^`]+)`", "\n".join(pages))
    cited = {key.strip() for role in roles for key in role.split(",")}
    assert set(listed) == cited


def test_writing_is_deterministic(chapter: Path) -> None:
    pair.write(chapter)
    first = chapter.with_suffix(".ipynb").read_bytes()
    pair.write(chapter)
    assert chapter.with_suffix(".ipynb").read_bytes() == first
    assert pair.drift(chapter) == []


def test_an_inserted_cell_leaves_the_other_ids_alone(chapter: Path) -> None:
    before = {cell["id"] for cell in prepare.read_source(chapter).cells}
    extra = SOURCE.replace("# %% tags", "# %%\nnew = 1\n\n# %% tags")
    chapter.write_text(extra, encoding="utf-8")
    after = {cell["id"] for cell in prepare.read_source(chapter).cells}
    assert before < after
    assert len(after - before) == 1


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_code_that_no_page_shows_is_collapsed_when_a_chapter_is_opened(source: Path) -> None:
    for cell in nbformat.read(source.with_suffix(".ipynb"), as_version=4).cells:
        hidden = cell.metadata.get("jupyter", {}).get("source_hidden", False)
        assert hidden == bool({"remove-input", "remove-cell", "answer"} & {*prepare.tags(cell)})


def test_what_jupyterlab_saves_is_still_a_pair(chapter: Path) -> None:
    """jupytext, as JupyterLab has it, reads the pair and writes both files again."""
    tagged = '# %% tags=["remove-input"] mystnb={"code_prompt_show": "Show"}\nprint'
    text = SOURCE.replace("# %%\nprint", tagged)
    chapter.write_text(text, encoding="utf-8")
    os.utime(chapter, (0, 0))
    pair.write(chapter)
    pair.date_back(chapter)  # or jupytext refuses what is newer than its source, and other
    shutil.copy2(NOTEBOOKS / "jupytext.toml", chapter.parent)
    manager = jupytext.TextFileContentsManager(root_dir=str(chapter.parent))
    model = manager.get("00_topic.ipynb")
    assert model["content"].cells[3].metadata["jupyter"] == {"source_hidden": True}
    manager.save(model, "00_topic.ipynb")
    assert "source_hidden" in chapter.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert "source_hidden" not in chapter.read_text(encoding="utf-8")
    assert pair.drift(chapter) == []


def test_drift_is_named(chapter: Path) -> None:
    assert pair.drift(chapter) == ["00_topic.ipynb is missing"]
    pair.write(chapter)
    path = chapter.with_suffix(".ipynb")
    nb = nbformat.read(path, as_version=4)
    nb.cells[1].metadata["tags"] = []
    nb.cells[3].execution_count = 4
    nbformat.write(nb, path)
    assert pair.drift(chapter) == [
        "00_topic.ipynb, cell 2: tags differ",
        "00_topic.ipynb, cell 4: holds outputs of a run",
    ]
