"""The driver and the gate on small notebooks that papermill really runs."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import get_kernel_spec
from small_book import CHAPTER, add, empty

import driver
import gate
import prepare
import render

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def layout(tmp_path: Path) -> driver.Layout:
    """A project with no chapters yet."""
    return empty(tmp_path)


def go(layout: driver.Layout, profile: str = "laptop", **options: str | None) -> None:
    """Run without a render."""
    driver.run(layout, profile, rendering=False, **options)


def executed(layout: driver.Layout, stem: str) -> nbformat.NotebookNode:
    """The executed copy of a chapter."""
    return nbformat.read(layout.executed / f"{stem}.ipynb", as_version=4)


def findings(layout: driver.Layout) -> list[str]:
    """What the gate says."""
    return gate.check(layout.executed, layout.results, layout.notebooks)


# -- running -----------------------------------------------------------------------------------


def test_chapters_run_in_order_with_their_parameters(layout, capsys) -> None:
    add(layout, "01_second")
    add(layout, "00_first", body="print('from', profile, live, n, seed)")
    (layout.params / "laptop.yaml").write_text("00_first: {n: 3, seed: 7}\n01_second:\n")
    go(layout)
    said = capsys.readouterr().out
    assert said.index("[00_first] starts") < said.index("[01_second] starts")
    assert "[00_first]   from laptop False 3 7" in said  # live, line by line
    assert "[00_first] cell 3/5" in said
    assert "00_first " in said[said.index("what it measured") :]
    assert "n is 3" in said
    assert json.loads((layout.results / "laptop" / "00_first.json").read_text())["n"] == 3
    assert findings(layout) == []


def test_a_chapter_older_than_its_parameters_is_refused(layout) -> None:
    add(layout, "00_first")
    (layout.params / "laptop.yaml").write_text("00_first: {n: 3}\n")
    go(layout)
    assert findings(layout) == []
    (layout.params / "laptop.yaml").write_text("00_first: {n: 4}\n")
    assert findings(layout) == [
        "00_first.ipynb: older than params/laptop.yaml: n was 3 and is 4; run it again"
    ]
    (layout.params / "laptop.yaml").write_text("{}\n")  # now the chapter's own value counts
    (finding,) = findings(layout)
    assert "older than params/laptop.yaml: n was 3 and is" in finding
    go(layout)
    assert findings(layout) == []
    (layout.params / "laptop.yaml").unlink()
    (finding,) = findings(layout)
    assert "params/laptop.yaml cannot be read" in finding


def test_the_kernel_is_this_interpreter_whatever_is_installed(
    layout, tmp_path, monkeypatch
) -> None:
    other = tmp_path / "jupyter" / "kernels" / "python3"
    other.mkdir(parents=True)
    wrong = {"argv": ["/nonexistent/python"], "display_name": "x", "language": "python"}
    (other / "kernel.json").write_text(json.dumps(wrong))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    add(layout, "00_first", body=f"import sys\nassert sys.executable == {sys.executable!r}")
    go(layout)


@pytest.mark.parametrize(("given", "policy"), [(None, "passive"), ("active", "active")])
def test_the_kernels_threads_wait_passively_by_default(given, policy, monkeypatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    with driver.own_kernel() as name:
        assert get_kernel_spec(name).env["OMP_WAIT_POLICY"] == policy


def test_chapters_run_in_the_notebooks_folder(layout) -> None:
    add(layout, "00_first", body="from pathlib import Path\nassert Path('00_first.py').exists()")
    go(layout)


def test_only_and_from(layout) -> None:
    for stem in ("00_a", "01_b", "02_c"):
        add(layout, stem)
    names = [p.stem for p in driver.select(driver.chapters(layout.notebooks), start="01")]
    assert names == ["01_b", "02_c"]
    go(layout, only="01")
    assert sorted(p.name for p in layout.executed.iterdir()) == ["01_b.ipynb"]
    with pytest.raises(driver.DriverError, match=r"no chapter '07'; there are: 00_a, 01_b, 02_c"):
        go(layout, only="07")


def test_without_all_chapters_there_is_no_render(layout, capsys) -> None:
    add(layout, "00_a")
    add(layout, "01_b")
    assert driver.run(layout, "laptop", only="01") is None
    assert "not rendered: 00_a did not run yet" in capsys.readouterr().out


def test_into_touches_nothing_else(tmp_path) -> None:
    layout = driver.Layout.of(ROOT, tmp_path / "elsewhere")
    assert layout.notebooks == ROOT / "notebooks"
    for path in (layout.book, layout.results, layout.executed):
        assert tmp_path in path.parents
    driver.copy_pages(layout)
    assert (layout.book / "_config.yml").is_file()
    assert not (layout.book / "driver.py").exists()
    assert not (layout.book / "notebooks").exists()


def test_a_readers_run_leaves_the_published_results_alone(layout, capsys) -> None:
    add(layout, "00_first")
    root = layout.notebooks.parent
    published = driver.Layout.of(root, publish=True)
    go(published)
    file = root / "results" / "laptop" / "00_first.json"
    assert json.loads(file.read_text())["n"] == 10
    before = file.read_bytes(), file.stat().st_mtime_ns
    (layout.params / "laptop.yaml").write_text("00_first: {n: 3}\n")
    go(layout)
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before
    own = root / "results" / "own" / "laptop" / "00_first.json"
    assert json.loads(own.read_text())["n"] == 3
    assert findings(layout) == []


def test_a_change_of_the_published_numbers_changes_the_readers_page_only(layout) -> None:
    add(layout, "00_first")
    root = layout.notebooks.parent
    both = [layout, driver.Layout.of(root, publish=True)]

    def identities() -> list[str]:
        plans = [driver.plan(at, "laptop", driver.chapters(at.notebooks))[0] for at in both]
        pairs = zip(plans, both, strict=True)
        return [driver.chapter_identity(plan, at, "CPU") for plan, at in pairs]

    own, public = identities()
    file = root / "results" / "laptop" / "00_first.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"n": 4}')
    assert identities()[0] != own
    assert identities()[1] == public


def test_a_smoke_run_is_not_published(capsys) -> None:
    assert driver.main(["--profile", "smoke", "--publish", "--no-render"]) == 1
    assert capsys.readouterr().err == "error: the smoke profile is not a result to be published\n"


# -- refusals: one sentence, nothing written -----------------------------------------------------


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("00_first: {epochs: 3}", r"00_first.py has no parameter 'epochs' \(set by params/laptop"),
        ("07_typo: {n: 3}", "params/laptop.yaml names '07_typo', which is not a chapter"),
        ("00_first: 3", "00_first must map parameter names to values"),
        ("00_first: {live: true}", "sets 'live' of 00_first, which the driver sets"),
        ("- 00_first", "params/laptop.yaml holds a list; it must map chapters to their parameters"),
        ("n is 3", "params/laptop.yaml holds a str; it must map chapters to their parameters"),
        ("a: 1\n00_first: {n: 3", r"params/laptop.yaml is not YAML \(line 2\); write one `chapter"),
        ("00_first: {n: \x00}", "params/laptop.yaml is not YAML"),
    ],
)
def test_bad_parameters_are_refused_before_anything_runs(layout, params, message) -> None:
    add(layout, "00_first")
    (layout.params / "laptop.yaml").write_text(params)
    with pytest.raises(driver.DriverError, match=message):
        go(layout)
    assert not layout.executed.exists()
    assert not layout.results.exists()


def test_a_chapter_without_the_drivers_parameters_is_refused(layout) -> None:
    add(layout, "00_first", text="# %% tags=['parameters']\nseed: int = 0\n")
    with pytest.raises(driver.DriverError, match=r"no parameter 'profile' \(set by the driver\)"):
        go(layout)


def test_an_unknown_profile_is_refused(layout) -> None:
    add(layout, "00_first")
    with pytest.raises(driver.DriverError, match="no profile 'papper'; params/ has: laptop"):
        go(layout, "papper")


def test_the_command_line_says_what_is_wrong_and_exits_with_1() -> None:
    done = subprocess.run(
        [sys.executable, "book/driver.py", "--profile", "papper"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: there is no")


# -- failures ------------------------------------------------------------------------------------


def test_a_failure_keeps_the_notebook_and_stops_the_run(layout) -> None:
    add(layout, "00_first")
    go(layout)
    good = (layout.executed / "00_first.ipynb").read_bytes()
    add(layout, "00_first", body="print('so far')\nraise ValueError('too hot')")
    add(layout, "01_second")
    kept = layout.executed / "00_first.failed.ipynb"
    with pytest.raises(driver.DriverError) as caught:
        go(layout)
    assert str(caught.value) == (
        f"00_first failed: ValueError: too hot; the notebook is kept at {kept}"
    )
    outputs = [o for c in nbformat.read(kept, as_version=4).cells for o in c.get("outputs", [])]
    assert {o.output_type for o in outputs} == {"stream", "error"}
    # The good copy is what it was, the later chapter did not run, nothing else is left behind.
    assert (layout.executed / "00_first.ipynb").read_bytes() == good
    assert sorted(p.name for p in layout.executed.iterdir()) == [
        "00_first.failed.ipynb",
        "00_first.ipynb",
    ]
    add(layout, "00_first")
    go(layout)
    assert not kept.exists()


def test_main_returns_1_on_a_failure(layout, monkeypatch, capsys) -> None:
    add(layout, "00_first", body="1 / 0")
    monkeypatch.setattr(driver.Layout, "of", classmethod(lambda cls, **_: layout))
    assert driver.main(["--no-render"]) == 1
    assert "error: 00_first failed: ZeroDivisionError" in capsys.readouterr().err


def test_a_dead_kernel_is_a_failure(layout) -> None:
    add(layout, "00_first", body="import os\nos._exit(3)")
    with pytest.raises(driver.DriverError, match="00_first failed: DeadKernelError"):
        go(layout)
    assert not (layout.executed / "00_first.ipynb").exists()


def test_a_chapter_must_write_its_results(layout) -> None:
    path = add(layout, "00_first")
    go(layout)
    path.write_text(path.read_text().split("import json")[0])
    with pytest.raises(driver.DriverError, match=r"00_first\.json: this run did not write it"):
        go(layout)
    (layout.results / "laptop" / "00_first.json").unlink()
    with pytest.raises(driver.DriverError, match="the results file is missing"):
        go(layout)


# -- the copy for the book -----------------------------------------------------------------------


def test_the_executed_copy_shows_what_was_used(layout) -> None:
    add(layout, "00_first")
    (layout.params / "smoke.yaml").write_text("00_first: {n: 2}\n")
    go(layout, "smoke")
    nb = executed(layout, "00_first")
    first = [cell.source.splitlines()[0] for cell in nb.cells]
    assert first[0] == "# Chapter 00_first"
    assert first[1] == ":::{admonition} A smoke run: not a result"
    assert first[4].startswith(":::{admonition} Run card: profile smoke, seed 0, commit ")
    parameters, injected, card = nb.cells[2:5]
    assert parameters.source.splitlines() == [
        'profile: str = "smoke"  # which set of parameters',
        "seed: int = 0  # where the randomness starts",
        'results_dir: str = "results/own/smoke"  # the number\'s home',
        "live: bool = False  # opened by hand",
        "n: int = 2  # µ, not ASCII",
    ]
    assert injected.metadata["tags"] == ["injected-parameters", "remove-cell"]
    for name in ("seed", "n", "Device", "Duration", "torch", "probelib"):
        assert name in card.source
    assert "jupytext" not in nb.metadata
    assert "papermill" not in nb.metadata
    assert str(layout.notebooks.parent) not in nbformat.writes(nb)
    nbformat.validate(nb)


def test_a_real_run_is_not_marked(layout) -> None:
    add(layout, "00_first")
    go(layout)
    text = nbformat.writes(executed(layout, "00_first"))
    assert "not a result" not in text
    assert executed(layout, "00_first").metadata["probelib"]["profile"] == "laptop"


def test_values_are_rewritten_in_place() -> None:
    source = 'a: int = 1  # one\nname = "µ"; b = (\n    2,\n)  # two\nc: float\nd = 5e-3'
    assert prepare.with_values(source, {"a": 5, "b": (3,), "name": "x", "c": 1, "d": 0.005}) == (
        'a: int = 5  # one\nname = "x"; b = (3,)  # two\nc: float\nd = 5e-3'
    )


def test_durations_are_readable() -> None:
    given = (1.25, 42, 59.7, 200, 3900)
    assert [prepare.duration(s) for s in given] == [
        "1.2 s",
        "42 s",
        "1 min 00 s",
        "3 min 20 s",
        "1 h 05 min",
    ]


def test_the_log_shows_lines_and_thins_out_progress_bars() -> None:
    stream = io.StringIO()
    log = driver.LiveLog("00_a", 9, stream, every=3600)
    log.write("half a ")
    log.write("line\nnext\n")
    for percent in range(100):
        log.write(f"\r{percent} %")
    log.write("\rdone\n")
    log.handle(logging.makeLogRecord({"msg": "Executing Cell 4-----"}))
    assert stream.getvalue().splitlines() == [
        "[00_a]   half a line",
        "[00_a]   next",
        "[00_a]   done",
        "[00_a] cell 4/9",
    ]


# -- the gate ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> driver.Layout:
    """Two chapters that ran; the second has a figure with alt text."""
    layout = empty(tmp_path_factory.mktemp("good"))
    add(layout, "00_first")
    picture = (
        "from IPython.display import Image, display\n"
        "display(Image(data=b'\\x89PNG', format='png'), metadata={})"
    )
    second = CHAPTER.replace("# %%\n{body}", '# %% mystnb={{"image": {{"alt": "a"}}}}\n{body}')
    add(layout, "01_second", body=picture, text=second)
    go(layout)
    return layout


@pytest.fixture
def change(good, tmp_path):
    """A copy of the good project with one executed notebook changed; returns the findings."""
    import shutil

    shutil.copytree(good.notebooks.parent, tmp_path, dirs_exist_ok=True)
    layout = driver.Layout.of(tmp_path)

    def apply(stem: str, edit) -> list[str]:
        nb = executed(layout, stem)
        edit(nb)
        nbformat.write(nb, layout.executed / f"{stem}.ipynb")
        return findings(layout)

    apply.layout = layout
    return apply


def test_the_gate_finds_nothing_in_a_good_book(good) -> None:
    assert findings(good) == []


def test_the_gate_finds_an_error_output(change) -> None:
    def edit(nb):
        error = nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
        nb.cells[4].outputs.append(error)

    assert change("00_first", edit) == [
        "00_first.ipynb: cell 5 (\"print('n =', n)\"): error output ValueError: no"
    ]


def test_the_gate_finds_a_cell_that_did_not_run(change) -> None:
    def edit(nb):
        nb.cells[4].execution_count = None

    assert change("00_first", edit) == ["00_first.ipynb: cell 5 (\"print('n =', n)\"): did not run"]


def test_the_gate_finds_a_figure_without_alt_text(change) -> None:
    def edit(nb):
        nb.cells[4].metadata["mystnb"]["image"]["alt"] = " "

    (finding,) = change("01_second", edit)
    assert finding.startswith("01_second.ipynb: cell 5 (")
    assert finding.endswith("image without alt text (metadata mystnb.image.alt)")


def test_the_gate_finds_a_chapter_older_than_its_source(change) -> None:
    add(change.layout, "00_first", body="print('changed')")
    assert findings(change.layout) == [
        "00_first.ipynb: older than its source notebooks/00_first.py; run it again"
    ]


def test_the_gate_finds_mixed_profiles(change) -> None:
    layout = change.layout
    (layout.params / "smoke.yaml").write_text("{}\n")
    (layout.results / "smoke").mkdir()
    (layout.results / "laptop" / "00_first.json").rename(layout.results / "smoke/00_first.json")

    def edit(nb):
        nb.metadata["probelib"]["profile"] = "smoke"
        nb.metadata["probelib"]["parameters"]["results_dir"] = "results/own/smoke"

    assert change("00_first", edit) == [
        "chapters of different profiles in one book (smoke: 00_first; laptop: 01_second)"
    ]


def test_the_gate_finds_a_chapter_whose_numbers_went_elsewhere(change) -> None:
    def edit(nb):
        nb.metadata["probelib"]["parameters"]["results_dir"] = "results/laptop"

    assert change("00_first", edit) == [
        "00_first.ipynb: its numbers went to results/laptop, not to results/own/laptop; "
        "run it again"
    ]


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        (None, "the results file is missing"),
        ("{", "not JSON"),
        ("[1]", "must be an object"),
        ("{}", "must be an object with at least one entry"),
        ('{"a": [1]}', "'a' is neither a number nor a string (list)"),
        ('{"a": true}', "'a' is neither a number nor a string (bool)"),
        ('{"a": NaN}', "'a' is not finite"),
    ],
)
def test_the_gate_finds_missing_and_invalid_results(change, text, finding) -> None:
    path = change.layout.results / "laptop" / "00_first.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    (found,) = findings(change.layout)
    assert found.startswith("00_first.ipynb: results/own/laptop/00_first.json: ")
    assert finding in found


def test_the_gate_finds_a_chapter_that_never_ran(change) -> None:
    (change.layout.executed / "01_second.ipynb").unlink()
    assert findings(change.layout) == ["01_second.ipynb: did not run"]


def test_the_gate_refuses_a_broken_claim_that_must_hold(change) -> None:
    path = change.layout.results / "laptop" / "00_first.json"
    numbers = {"n": 10, "claims_broken": 2, "claims_broken_names": "LLC; tr K"}
    path.write_text(json.dumps(numbers))
    assert findings(change.layout) == [
        "00_first.ipynb: 2 of the claims that must hold do not (LLC; tr K)"
    ]
    path.write_text(json.dumps(numbers | {"claims_broken": 0, "claims_broken_names": ""}))
    assert findings(change.layout) == []
    assert gate.claim_findings("smoke", numbers) == []  # its numbers mean nothing
    assert gate.claim_findings("paper", {"claims_broken": 1}) == [
        "1 of the claims that must hold does not (it does not say which)"
    ]


def test_the_summary_counts_the_claims() -> None:
    rows = [
        ("00_a", {"duration_seconds": 3.0, "claims_agree": 4, "claims_differ": 1, "headline": "x"}),
        ("01_b", {"duration_seconds": 3.0, "n": 1}),
    ]
    head, first, second = driver.summary(rows).splitlines()
    assert head.split() == ["chapter", "time", "claims", "what", "it", "measured"]
    assert "4 agree, 1 differs  " in first
    assert first.index("x") == second.index("1 numbers") == head.index("what")
    assert " none " in second


@pytest.mark.parametrize(
    ("name", "text", "finding"),
    [
        ("00_n", "10", None),
        ("00_n", "11", "'00_n' is glued as 11, but the results file says 10"),
        ("00_n", "np.int64(10)", "glue a plain int or float"),
        ("00_m", "10", "'00_m' is glued, but the results file has no 'm'"),
        ("00_headline", "'n is 10'", None),
        ("figure", "<Figure>", None),
    ],
)
def test_the_gate_holds_quoted_numbers_against_the_results(change, name, text, finding) -> None:
    def edit(nb):
        output = nbformat.v4.new_output(
            "display_data",
            data={"application/papermill.record/text/plain": text},
            metadata={"scrapbook": {"name": name, "mime_prefix": "application/papermill.record/"}},
        )
        nb.cells[4].outputs.append(output)

    found = change("00_first", edit)
    if finding is None:
        assert found == []
    else:
        assert len(found) == 1
        assert finding in found[0]


def test_the_driver_refuses_to_render_what_the_gate_refuses(layout) -> None:
    body = "from IPython.display import Image, display\ndisplay(Image(data=b'x', format='png'))"
    add(layout, "00_first", body=body)
    with pytest.raises(driver.DriverError, match=r"the gate refuses the book:\n  00_first\.ipynb"):
        driver.run(layout, "laptop")
    assert not (layout.book / "_build").exists()


# -- the render ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("git@github.com:someone/book.git", "https://github.com/someone/book"),
        ("https://github.com/someone/book", "https://github.com/someone/book"),
        ("ssh://git@github.com/someone/book.git", "https://github.com/someone/book"),
        ("https://example.org/someone/book.git", None),
        ("/srv/git/book", None),
    ],
)
def test_only_a_public_address_becomes_a_link(remote, address, monkeypatch) -> None:
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    monkeypatch.setattr(
        render.subprocess,
        "run",
        lambda *a, **k: subprocess.CompletedProcess(a, 0, stdout=f"{remote}\n"),
    )
    found = render.repository()
    assert (found and found[0]) == address


def test_the_configured_address_comes_first(monkeypatch) -> None:
    monkeypatch.setenv("GITHUB_REPOSITORY", "another/place")
    assert render.repository()[0] == "https://github.com/another/place"
    assert render.repository("https://github.com/a/b")[0] == "https://github.com/a/b"
    with pytest.raises(render.RenderError, match="OWNER/NAME"):
        render.repository("https://example.org/a/b")


def test_launch_buttons_appear_with_an_address_only(monkeypatch) -> None:
    monkeypatch.setattr(render, "repository", lambda configured: None)
    without = render.configuration(ROOT / "book", "laptop")
    assert without["launch_buttons"] == {}
    assert "book_image" not in without["sphinx"]["config"]
    assert "announcement" not in without["html"]
    monkeypatch.setattr(render, "repository", lambda configured: ("https://github.com/a/b", "main"))
    with_address = render.configuration(ROOT / "book", "smoke")
    assert with_address["repository"]["url"] == "https://github.com/a/b"
    image = with_address["sphinx"]["config"]["book_image"]
    before, path = image.split("/main/")
    assert before == "https://raw.githubusercontent.com/a/b"
    assert (ROOT / path).is_file()
    assert "binderhub_url" in with_address["launch_buttons"]
    assert "colab_url" not in with_address["launch_buttons"]  # it could not import probelib
    assert "not a result" in with_address["html"]["announcement"]
