"""Chapters record numbers once, say only what was recorded, and show a miss as a miss."""

import json
import re

import numpy as np
import pytest

from probebook.chapter import Chapter, Claim
from probelib import plotting


@pytest.fixture
def chapter(tmp_path):
    return Chapter("02_test", profile="smoke", results_dir=tmp_path)


def test_results_are_a_flat_object_of_numbers_and_strings(chapter, tmp_path):
    chapter.record(llc=np.float64(1.5), n=np.int64(3), word="yes")
    chapter.finish("LLC {llc:.1f}")
    numbers = json.loads((tmp_path / "02_test.json").read_text())
    assert numbers.pop("seconds") >= 0
    assert numbers == {
        "chapter": "02_test",
        "profile": "smoke",
        "headline": "LLC 1.5",
        "llc": 1.5,
        "n": 3,
        "word": "yes",
    }


@pytest.mark.parametrize("value", [float("nan"), np.float32("inf")])
def test_a_result_that_is_not_finite_is_refused_by_name(chapter, value):
    with pytest.raises(ValueError, match=r"gain is (nan|inf)"):
        chapter.record(gain=value)


def test_prose_cannot_quote_what_was_never_recorded(chapter):
    with pytest.raises(KeyError, match="llc"):
        chapter.say("The LLC is {llc}.")
    with pytest.raises(KeyError, match="llc"):
        chapter.compare([Claim("LLC", "llc")])


@pytest.mark.parametrize(
    ("low", "high", "value", "holds"),
    [
        (1, 2, 1.5, True),
        (1, 2, 2.5, False),
        (1, None, 0.5, False),
        (None, 2, 0.5, True),
        (None, None, 7, None),
    ],
)
def test_a_claim_holds_inside_its_range(low, high, value, holds):
    assert Claim("x", "x", low=low, high=high).holds(value) is holds


def test_a_miss_is_counted_and_shown(chapter, monkeypatch):
    pages = []
    monkeypatch.setattr("probebook.chapter._show_html", pages.append)
    chapter.record(a=1.0, b=5.0, c=0.1)
    chapter.compare([Claim("A", "a", "1", 0, 2), Claim("B", "b", "1", 0, 2), Claim("C", "c")])
    assert (chapter.numbers["claims_agree"], chapter.numbers["claims_differ"]) == (1, 1)
    assert "✗ differs" in pages[0]
    assert "1 agrees, 1 differs; for 1 the paper gives no number." in pages[0]


@pytest.mark.parametrize(
    ("values", "against", "said"),
    [
        ("aab", "paper", "2 agree, 1 differs."),
        ("abbcc", "paper", "1 agrees, 2 differ; for 2 the paper gives no number."),
        (
            "ddc",
            "paper",
            "none agrees, none differs; 2 are left open; for 1 the paper gives no number.",
        ),
        ("ad", "exact value", "1 agrees, none differs; 1 is left open."),
        ("ac", "exact value", "1 agrees, none differs; for 1 there is no exact value."),
    ],
)
def test_the_counts_are_said_as_one_says_them(chapter, monkeypatch, values, against, said):
    pages = []
    monkeypatch.setattr("probebook.chapter._show_html", pages.append)
    chapter.record(a=1.0, b=5.0, c=0.1)
    known = {
        "a": Claim("A", "a", "1", 0, 2, why="why"),
        "b": Claim("B", "b", "1", 0, 2, why="why"),
        "c": Claim("C", "c"),
        "d": Claim("D", "c", "large"),
    }
    chapter.compare([known[name] for name in values], against)
    assert f"(smoke profile): {said}</caption>" in pages[0]
    assert pages[0].count("<td>open</td>") == values.count("d")
    assert pages[0].count("<td>new</td>") == values.count("c")


def test_a_broken_claim_is_recorded_by_name_if_it_must_hold(chapter, monkeypatch):
    pages = []
    monkeypatch.setattr("probebook.chapter._show_html", pages.append)
    chapter.record(a=1.0, b=5.0)
    held = [Claim("A", "a", "1", 0, 2, must=True), Claim("B", "b", "1", 0, 2)]
    chapter.compare(held)
    assert chapter.numbers["claims_broken"] == 0
    assert chapter.numbers["claims_broken_names"] == ""
    chapter.compare([*held, Claim("C", "b", "1", 0, 2, must=True), Claim("D", "b", must=True)])
    assert (chapter.numbers["claims_differ"], chapter.numbers["claims_broken"]) == (2, 1)
    assert chapter.numbers["claims_broken_names"] == "C"
    assert pages[1].count("differs, but must agree") == 1


def test_tables_escape_what_they_show(chapter, monkeypatch):
    pages = []
    monkeypatch.setattr("probebook.chapter._show_html", pages.append)
    chapter.table([{"a<b": "<script>"}], "x & y")
    assert "<script>" not in pages[0]
    assert "a&lt;b" in pages[0]
    assert "x &amp; y" in pages[0]


def test_a_kept_figure_lies_beside_the_results(chapter, tmp_path):
    fig, _ = plotting.figure()
    assert chapter.keep(fig, "digits") is fig
    assert (tmp_path / "02_test-digits.png").read_bytes().startswith(b"\x89PNG")


# -- the published run -------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path):
    """Published numbers of two chapters' profile, in a repository's place."""
    folder = tmp_path / "results" / "laptop"
    folder.mkdir(parents=True)
    numbers = {"a": 1.0, "a_mcse": 0.3, "b": 2.0, "word": "yes"}
    (folder / "02_test.json").write_text(json.dumps(numbers))
    return folder


def cells(page):
    """The rows of a table, by its heads."""
    heads = re.findall("<th(?: [^>]*)?>(.*?)</th>", page)
    rows = [re.findall("<td>(.*?)</td>", row) for row in re.findall("<tr>(.*?)</tr>", page)[1:]]
    return [dict(zip(heads, row, strict=True)) for row in rows]


@pytest.mark.parametrize("results_dir", ["own/laptop", "live"])
def test_the_published_run_stands_beside_this_one(published, monkeypatch, results_dir):
    pages = []
    monkeypatch.setattr("probebook.chapter._show_html", pages.append)
    own = Chapter("02_test", profile="laptop", results_dir=published.parent / results_dir)
    own.record(a=2.0, a_mcse=0.4, b=3.0, b_mcse=0.1, c=4.0)
    own.compare([Claim("A", "a", "7", digits=".2f"), Claim("B", "b"), Claim("C", "c")])
    a, b, c = cells(pages[0])
    assert list(a)[1:5] == ["paper", "published run", "this run", "difference"]
    assert list(a.values())[1:5] == ["7", "1.00", "2.00", "+2.0 s.e."]  # 1 / hypot(0.3, 0.4)
    assert (b["published run"], b["difference"]) == ("2", "–")  # its error was not recorded
    assert (c["published run"], c["difference"]) == ("–", "–")


@pytest.mark.parametrize(("profile", "folder"), [("laptop", "laptop"), ("paper", "own/paper")])
def test_a_dash_where_this_is_the_published_run_or_there_is_none(
    published, monkeypatch, profile, folder
):
    pages = []
    monkeypatch.setattr("probebook.chapter._show_html", pages.append)
    own = Chapter("02_test", profile=profile, results_dir=published.parent / folder)
    own.record(a=2.0, a_mcse=0.4)
    own.compare([Claim("A", "a")])
    (row,) = cells(pages[0])
    assert (row["published run"], row["this run"], row["difference"]) == ("–", "2", "–")


def test_a_run_elsewhere_finds_the_published_numbers_beside_the_notebooks(
    published, tmp_path, monkeypatch
):
    notebooks = published.parents[1] / "notebooks"
    notebooks.mkdir()
    monkeypatch.chdir(notebooks)
    elsewhere = tmp_path / "elsewhere" / "results" / "own" / "laptop"
    assert Chapter("02_test", profile="laptop", results_dir=elsewhere).published["a"] == 1.0
    other = tmp_path / "other.json"
    other.write_text('{"a": 5}')
    given = Chapter("02_test", profile="laptop", results_dir=elsewhere, published=other)
    assert given.published == {"a": 5}


def test_published_numbers_that_cannot_be_read_are_none(published):
    (published / "02_test.json").write_text("{")
    own = Chapter("02_test", profile="laptop", results_dir=published.parent / "live")
    assert own.published == {}
