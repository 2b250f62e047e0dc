"""Every chapter runs small, and the whole becomes a book with warnings as errors."""

from __future__ import annotations

import html
import html.parser
import json
import re
import sys

import nbformat
import pytest
import yaml
from book_run import ROOT, Book, smoke_book

import driver
import gate
import prepare

pytestmark = pytest.mark.book

CHAPTERS = [path.stem for path in driver.chapters(ROOT / "notebooks")]


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Book:
    return smoke_book(tmp_path_factory)


def test_every_chapter_ran_and_wrote_its_results(book: Book) -> None:
    assert CHAPTERS
    for stem in CHAPTERS:
        assert (book.into / "book" / "notebooks" / f"{stem}.ipynb").is_file()
        assert gate.results_findings(book.into / "results" / "own" / "smoke" / f"{stem}.json") == []


def test_the_gate_finds_nothing(book: Book) -> None:
    executed, results = book.into / "book" / "notebooks", book.into / "results" / "own"
    assert gate.check(executed, results, ROOT / "notebooks") == []


def test_the_summary_names_every_chapter_and_the_book(book: Book) -> None:
    end = book.log[book.log.index("what it measured") :]
    for stem in CHAPTERS:
        assert stem in end
    assert str(book.html / "index.html") in end


def test_provenance_is_stored(book: Book) -> None:
    for stem in CHAPTERS:
        nb = nbformat.read(book.into / "book" / "notebooks" / f"{stem}.ipynb", as_version=4)
        provenance = nb.metadata[prepare.PROVENANCE]
        assert provenance["profile"] == "smoke"
        assert provenance["parameters"]["live"] is False
        assert provenance["duration_seconds"] > 0
        assert "seed" in provenance["parameters"]


# What a table's columns hold beside measurements: names, settings, tolerances, words.
WORDS = {
    "quantity",
    "paper",
    "literature",
    "agrees if",
    "verdict",
    "published run",
    "difference",
    "note",
    "settings",
    "changed",
    "to",
    "recipe",
    "digit",
    "network",
    "what moves",
    "similarity",
    "part",
    "model",
    "prediction",
    "n",
    "nβ",
    "γ",
    "γ / nβ",
    "λ",
}
NUMBER = re.compile(r"[-+]?\d+(?:\.(?P<decimals>\d+))?(?:e(?P<power>[-+]\d+))?(?P<percent>\s?%)?")


def shown_numbers(table: str) -> list[tuple[float, float, str]]:
    """Every number in a table: its value, half a unit of its last digit, and where it stands."""
    heads = [html.unescape(text) for text in re.findall(r"<th(?: [^>]*)?>(.*?)</th>", table)]
    found = []
    for row in re.findall(r"<tr>(.*?)</tr>", table)[1:]:
        cells = [html.unescape(text) for text in re.findall(r"<td>(.*?)</td>", row)]
        for head, text in zip(heads, cells, strict=True):
            for match in NUMBER.finditer(text.replace(",", "")) if head not in WORDS else ():
                scale = 0.01 if match["percent"] else 1
                last = 10.0 ** (int(match["power"] or 0) - len(match["decimals"] or ""))
                value = float(match[0].rstrip(" %"))
                found.append((value * scale, 0.5001 * last * scale, f"{head}: {text}"))
    return found


def test_every_number_in_a_table_is_in_the_results_file(book: Book) -> None:
    for stem in CHAPTERS:
        nb = nbformat.read(book.into / "book" / "notebooks" / f"{stem}.ipynb", as_version=4)
        results = json.loads((book.into / "results" / "own" / "smoke" / f"{stem}.json").read_text())
        recorded = [v for v in results.values() if not isinstance(v, str)]
        pages = [
            o.get("data", {}).get("text/html", "") for c in nb.cells for o in c.get("outputs", [])
        ]
        shown = [n for page in pages if "probe-table" in page for n in shown_numbers(page)]
        assert len(shown) >= 10
        missing = [
            where
            for value, slack, where in shown
            if not any(abs(number - value) <= slack for number in recorded)
        ]
        assert missing == [], f"{stem} shows what {stem}.json does not hold"


def test_every_chapter_is_in_the_table_of_contents() -> None:
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))
    files = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    assert [f for f in files if f.startswith("notebooks/")] == [f"notebooks/{s}" for s in CHAPTERS]


def test_every_page_says_that_it_is_not_a_result(book: Book) -> None:
    pages = book.pages()
    assert len(pages) >= len(CHAPTERS) + 6
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "A smoke run: not a result" in text, page.name
        if page.stem in CHAPTERS:
            assert "not-a-result" in text
            assert "run-card" in text


def test_no_path_of_this_machine_is_published(book: Book) -> None:
    secrets = {str(ROOT), str(book.into), sys.prefix} - {"/", "/usr"}
    for path in book.html.rglob("*"):
        if path.suffix in {".html", ".ipynb", ".md", ".json"} or path.name == "searchindex.js":
            text = path.read_text(encoding="utf-8")
            found = [secret for secret in secrets if secret in text]
            assert not found, f"{path.relative_to(book.html)} contains {found}"


class Resources(html.parser.HTMLParser):
    """Collects what a page loads by itself, and its images."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.images: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "img":
            self.images.append(values)
        if tag in {"script", "img", "iframe", "source", "video"}:
            self.loads.append(values.get("src") or "")
        elif tag == "link" and values.get("rel") not in {"canonical", "next", "prev", "search"}:
            self.loads.append(values.get("href") or "")


def test_pages_load_nothing_from_elsewhere_and_images_have_alt_text(book: Book) -> None:
    for page in book.pages():
        parser = Resources()
        parser.feed(page.read_text(encoding="utf-8"))
        assert [u for u in parser.loads if u.startswith(("http:", "https:", "//"))] == []
        assert [i.get("src") for i in parser.images if not (i.get("alt") or "").strip()] == []


def test_mathjax_comes_with_the_book_and_is_trimmed(book: Book) -> None:
    folder = book.html / "_static" / "mathjax"
    assert (folder / "tex-chtml.js").is_file()
    assert list((folder / "output/chtml/fonts/woff-v2").glob("*.woff"))
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 4e6


def test_the_errata_can_be_linked_to(book: Book) -> None:
    text = (book.html / "errata.html").read_text(encoding="utf-8")
    for number in range(1, 8):
        assert f'id="erratum-{number}"' in text


def test_the_front_page_quotes_this_run(book: Book) -> None:
    text = (book.html / "intro.html").read_text(encoding="utf-8")
    two = json.loads((book.into / "results/own/smoke/02_loss_gain.json").read_text())
    three = json.loads((book.into / "results/own/smoke/03_memorization.json").read_text())
    for value in (
        f"{two['pearson_loss_gain']:.4f}",
        f"{two['llc']:.1f}",
        f"{three['clean_accuracy']:.2%}",
        f"{three['auroc_gain']:.3f}",
    ):
        assert f">{value}</span>" in text, value
