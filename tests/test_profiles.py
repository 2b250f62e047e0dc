"""A profile that a reader names has its values, and values of a reader's own are no result."""

from __future__ import annotations

import json
from pathlib import Path

import nbclient
import nbformat
import papermill
import pytest

import driver
import gate
import pair
import prepare
from probebook import profiles
from probebook.chapter import EDITED, Chapter, Claim
from probebook.published import find_published, read_published

ROOT = Path(__file__).parents[1]
STEM = "00_introduction"
SMOKE = profiles.read_profiles(STEM)["smoke"]


def test_the_profiles_are_those_of_the_chapters_and_params() -> None:
    content = pair.all_profiles(ROOT / "notebooks", ROOT / "params")
    assert profiles.FILE.read_text(encoding="utf-8") == content
    layout = driver.Layout.of()
    for chapter in driver.plan(layout, "smoke", driver.chapters(layout.notebooks)):
        ran = prepare.defaults(prepare.read_source(chapter.path)) | chapter.parameters
        known = profiles.read_profiles(chapter.stem)["smoke"]
        assert known == {k: v for k, v in ran.items() if k not in profiles.APART}


def test_a_run_with_profiles_that_are_out_of_step_is_refused(tmp_path, monkeypatch) -> None:
    content = json.loads(profiles.FILE.read_text(encoding="utf-8"))
    content[STEM]["smoke"]["draws"] = 101
    old = tmp_path / "profiles.json"
    old.write_text(json.dumps(content))
    monkeypatch.setattr(profiles.read_profiles, "__defaults__", (old,))
    layout = driver.Layout.of()
    paths = driver.select(driver.chapters(layout.notebooks), only=STEM)
    with pytest.raises(
        driver.DriverError, match=r"profiles.json .* of 00_introduction .*make sync"
    ):
        driver.plan(layout, "smoke", paths)
    driver.plan(layout, "laptop", paths)


# -- what becomes of the values ----------------------------------------------------------------


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "profiles.json"
    own = {"default": {"a": 10, "b": [1.0], "c": "x"}, "laptop": {}, "smoke": {"a": 1, "b": []}}
    path.write_text(json.dumps({"09_test": own}))
    return path


def test_values_of_the_profile_are_nothing_to_speak_of(file) -> None:
    values = {"a": 1.0, "b": [], "c": "x", "profile": "smoke", "results_dir": "elsewhere"}
    before = dict(values)
    assert profiles.settle("09_test", "smoke", values, file) == profiles.Settled()
    assert values == before


def test_defaults_give_way_to_the_profile(file) -> None:
    values = {"a": 10, "b": [1.0], "c": "x", "other": 5}
    settled = profiles.settle("09_test", "smoke", values, file)
    assert settled.taken == {"a": 1, "b": []}
    assert settled.edited == {}
    assert values == {"a": 1, "b": [], "c": "x", "other": 5}


def test_what_somebody_wrote_stays_and_is_edited(file) -> None:
    values = {"a": 5, "b": [1.0], "c": "y"}
    settled = profiles.settle("09_test", "smoke", values, file)
    assert settled.taken == {"b": []}
    assert settled.words() == 'a: 1 -> 5; c: "x" -> "y"'
    assert values == {"a": 5, "b": [], "c": "y"}


def test_a_profile_that_is_not_there_is_refused(file) -> None:
    for profile in ("default", "smok"):
        with pytest.raises(ValueError, match=rf"profile is '{profile}'; take one of laptop, smoke"):
            profiles.settle("09_test", profile, {}, file)


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_where_the_profiles_are_not_known_nothing_is_said(tmp_path, content) -> None:
    file = tmp_path / "profiles.json"
    if content is not None:
        file.write_text(content)
    values = {"a": 5}
    assert profiles.settle("09_test", "any", values, file) == profiles.Settled()
    assert values == {"a": 5}


# -- what is shown and written -----------------------------------------------------------------


@pytest.fixture
def shown(monkeypatch) -> list[str]:
    """What has been displayed, glued numbers left out."""
    shown: list[str] = []

    def display(output, **_) -> None:
        if hasattr(output, "data"):
            shown.append(output.data)

    monkeypatch.setattr("IPython.display.display", display)
    return shown


def test_numbers_of_edited_parameters_say_so_wherever_they_are(tmp_path, shown) -> None:
    results = tmp_path / "results" / "laptop"
    mine = profiles.read_profiles(STEM)["laptop"] | {"draws": 7}
    chapter = Chapter(STEM, profile="laptop", results_dir=results, parameters=mine)
    assert chapter.edited
    chapter.record(llc=1.0)
    chapter.say("The LLC is {llc}.")
    chapter.answer("It is {llc}.", "Well.")
    chapter.compare([Claim("LLC", "llc", "1", 0, 2, why="why")])
    banner, said, answer, table = shown
    for text in (banner, answer):
        assert text.startswith(f"**{EDITED}**")
        assert "`draws: 1000 -> 7`" in text
    assert "It is 1.0" not in answer
    assert said == f"The LLC is 1.0. *{EDITED}*"
    assert f"<caption>{EDITED} Paper says" in table
    chapter.finish("LLC {llc}")
    assert not (results / f"{STEM}.json").exists()
    [written] = results.rglob("*.json")
    numbers = json.loads(written.read_text())
    assert numbers["edited"] == "draws: 1000 -> 7"
    assert numbers["headline"] == f"{EDITED} LLC 1.0"


def test_numbers_of_edited_parameters_cannot_be_published(tmp_path) -> None:
    folder = tmp_path / "results" / "laptop"
    folder.mkdir(parents=True)
    file = folder / f"{STEM}.json"
    file.write_text('{"llc": 1.0, "edited": "draws: 1000 -> 7"}')
    assert gate.results_findings(file) == ["made with edited parameters (draws: 1000 -> 7)"]
    assert find_published(STEM, "laptop", folder.parent / "own" / "laptop") == file
    assert read_published(file) == {}


def test_a_smoke_run_gives_no_answer_and_needs_its_numbers(tmp_path, shown) -> None:
    chapter = Chapter("00_test", profile="smoke", results_dir=tmp_path)
    with pytest.raises(KeyError, match="llc"):
        chapter.answer("It is {llc}.", "Well.")
    chapter.record(llc=1.0)
    chapter.answer("It is {llc}.", "Well.")
    assert "not a result" in shown[-1]
    assert "It is" not in shown[-1]


# -- in a notebook -----------------------------------------------------------------------------


def opened(folder: Path, cells: int | None = None, **edits: object) -> nbformat.NotebookNode:
    """The introduction run from top to bottom, after a reader has edited its parameters."""
    nb = nbformat.read(ROOT / "notebooks" / f"{STEM}.ipynb", as_version=4)
    at = prepare.tagged(nb, "parameters")
    edits = {"results_dir": str(folder / "live")} | edits
    nb.cells[at].source = prepare.with_values(nb.cells[at].source, edits)
    nb.cells = nb.cells[: at + 2 if cells is None else None]
    with driver.own_kernel():
        client = nbclient.NotebookClient(nb, kernel_name="python3", timeout=300)
        return client.execute(cwd=str(folder))


def texts(nb: nbformat.NotebookNode) -> list[str]:
    """What the cells have put out: Markdown, HTML, and what they printed."""
    outputs = [output for cell in nb.cells for output in cell.get("outputs", [])]
    data = [o["data"] for o in outputs if "data" in o]
    shown = [d.get("text/markdown") or d.get("text/html") or "" for d in data]
    return shown + [o["text"] for o in outputs if o["output_type"] == "stream"]


def test_an_opened_chapter_takes_the_profile_that_it_names(tmp_path) -> None:
    nb = opened(tmp_path, cells=-1, profile="smoke")
    said = "\n".join(texts(nb))
    assert "The smoke profile sets chains, draws, burn_in." in said
    assert "**A smoke run: not a result.**" in said
    assert "**Answer.**" not in said
    assert EDITED not in said
    numbers = json.loads((tmp_path / "live" / f"{STEM}.json").read_text())
    assert (numbers["chains"], numbers["draws"]) == (SMOKE["chains"], SMOKE["draws"])
    card = next(text for text in texts(nb) if "<caption>Run card." in text)
    assert "<td>Profile</td><td>smoke</td>" in card
    assert "<td>Made in this run</td><td>" in card


def test_an_opened_chapter_says_that_its_values_are_edited(tmp_path) -> None:
    nb = opened(tmp_path, cells=-1, profile="smoke", draws=60)
    said = texts(nb)
    assert any("The smoke profile sets chains, burn_in." in text for text in said)
    for text in said:
        if "<caption>" in text or "<figcaption" in text:
            assert EDITED in text
    assert sum("<figcaption" in text for text in said) >= 2
    assert any(f"<b>Figure 0.1.</b> {EDITED}" in text for text in said)
    answers = [cell for cell in nb.cells if "answer" in cell.metadata.get("tags", [])]
    assert answers[0].outputs[-1].data["text/markdown"].startswith(f"**{EDITED}**")
    card = next(text for text in said if "Run card." in text)
    assert "<td>draws: 100 -&gt; 60</td>" in card
    assert [path.parent.name for path in tmp_path.rglob("*.json")] == ["edited"]


def test_an_opened_chapter_refuses_a_profile_that_it_does_not_have(tmp_path) -> None:
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="take one of laptop, paper"):
        opened(tmp_path, profile="small")


def test_what_papermill_injects_is_the_profile_where_it_is_equal(tmp_path) -> None:
    nb = nbformat.read(ROOT / "notebooks" / f"{STEM}.ipynb", as_version=4)
    nb.cells = nb.cells[: prepare.tagged(nb, "parameters") + 2]
    given = {"profile": "smoke", "results_dir": str(tmp_path), "live": False}
    for name, edits in (("same", {}), ("other", {"draws": 60})):
        source, output = tmp_path / f"{name}.ipynb", tmp_path / f"{name}-ran.ipynb"
        nbformat.write(nb, source)
        with driver.own_kernel():
            papermill.execute_notebook(
                source, output, given | SMOKE | edits, progress_bar=False, cwd=tmp_path
            )
        said = texts(nbformat.read(output, as_version=4))
        assert any(EDITED in text for text in said) == bool(edits)
        assert not any("profile sets" in text for text in said)
