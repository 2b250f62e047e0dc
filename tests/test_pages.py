"""The rendered pages in a real browser, with the network cut."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from book_run import Book, smoke_book

pytestmark = pytest.mark.book

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
MATH = ("errata", "glossary", "intro")  # pages that have formulas whatever the chapters hold


class Visitor:
    """A browser that may only read files; keeps what went wrong on each page."""

    def __init__(self, browser, book: Book) -> None:
        self.browser, self.book = browser, book
        self.errors: list[str] = []
        self.outside: list[str] = []

    def open(self, page: Path, width: int = 1280, scheme: str = "light"):
        """Open a page in a fresh context and wait until its formulas are typeset."""
        context = self.browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        context.route("**/*", self.filter)
        tab = context.new_page()
        name = page.name
        tab.on(
            "console",
            lambda m: self.errors.append(f"{name}: {m.text}") if m.type == "error" else None,
        )
        tab.on("pageerror", lambda e: self.errors.append(f"{name}: {e}"))
        tab.goto(page.as_uri(), wait_until="load")
        tab.wait_for_function(
            "!document.querySelector('.math') || (window.MathJax && MathJax.startup && "
            "MathJax.startup.promise && MathJax.startup.promise.then(() => true))"
        )
        return tab

    def filter(self, route) -> None:
        if route.request.url.startswith(("file:", "data:", "blob:")):
            route.continue_()
        else:
            self.outside.append(route.request.url)
            route.abort()


@pytest.fixture(scope="module")
def visitor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (chromium, chromium-browser, google-chrome)")
    playwright = pytest.importorskip("playwright.sync_api")
    book = smoke_book(tmp_path_factory)
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield Visitor(browser, book)
        browser.close()


def test_every_page_reads_offline_on_a_desktop_and_on_a_phone(visitor: Visitor) -> None:
    wrong = []
    for page in visitor.book.pages():
        for width, scheme in ((1280, "light"), (390, "dark")):
            tab = visitor.open(page, width, scheme)
            name = f"{page.name} at {width} px"
            if page.stem in MATH and tab.locator("mjx-container").count() == 0:
                wrong.append(f"{name}: no formula is typeset")
            if tab.locator("mjx-merror").count():
                wrong.append(f"{name}: a formula has an error")
            excess = tab.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            if excess > 0:
                wrong.append(f"{name}: {excess} px wider than the screen")
            bare = tab.evaluate(
                "[...document.images].filter(i => !i.alt.trim()).map(i => i.src.slice(-60))"
            )
            wrong += [f"{name}: no alt text on {src}" for src in bare]
            broken = tab.evaluate(
                "[...document.images].filter(i => i.complete && !i.naturalWidth && "
                "getComputedStyle(i).display !== 'none').map(i => i.src.slice(-60))"
            )
            wrong += [f"{name}: image does not load: {src}" for src in broken]
            theme = tab.evaluate("document.documentElement.dataset.theme")
            if theme != scheme:
                wrong.append(f"{name}: the theme is {theme}, the reader's system is {scheme}")
            tab.context.close()
    assert wrong == []
    assert visitor.errors == []
    assert visitor.outside == []


def test_the_switch_turns_the_page_dark_and_light(visitor: Visitor) -> None:
    tab = visitor.open(visitor.book.html / "intro.html")
    ground = "getComputedStyle(document.body).backgroundColor"
    seen = {}
    for _ in range(3):  # automatic, light, dark, in some order
        theme = tab.evaluate("document.documentElement.dataset.theme")
        seen[theme] = tab.evaluate(ground)
        tab.locator("button.theme-switch-button:visible").first.click()
    assert set(seen) == {"light", "dark"}
    assert seen["light"] != seen["dark"]
    tab.context.close()


def test_the_run_card_opens(visitor: Visitor) -> None:
    chapter = next(p for p in visitor.book.pages() if p.parent.name == "notebooks")
    tab = visitor.open(chapter)
    card = tab.locator(".admonition.run-card")
    assert card.count() == 1
    table = card.locator("table")
    assert not table.is_visible()
    card.locator(".admonition-title").click()
    table.wait_for(state="visible")
    assert "results/own/smoke" in table.inner_text()
    tab.context.close()


def test_the_search_finds_a_term(visitor: Visitor) -> None:
    tab = visitor.open(visitor.book.html / "search.html")
    tab.goto((visitor.book.html / "search.html").as_uri() + "?q=localization")
    tab.locator("#search-results li a").first.wait_for(timeout=15_000)
    tab.context.close()


@pytest.mark.parametrize("stem", ["02_loss_gain", "03_memorization"])
def test_the_explorer_works_without_a_kernel(visitor: Visitor, stem: str) -> None:
    tab = visitor.open(visitor.book.html / "notebooks" / f"{stem}.html")
    explorer = tab.locator(".probe-explorer")
    tiles, about = explorer.locator(".list .tile"), explorer.locator(".about")
    assert tiles.count() == 40
    assert "rank 1 of 1500 from the hardest" in about.inner_text()
    tiles.nth(3).click()
    assert "rank 4 of 1500" in about.inner_text()
    tab.keyboard.press("ArrowRight")  # in the explorer, not to the next chapter
    tab.keyboard.press("Enter")
    assert "rank 5 of 1500" in about.inner_text()
    tab.go_back()
    assert "rank 4 of 1500" in about.inner_text()
    near = explorer.locator(".near .tile").all_inner_texts()[1:]
    r = [float(re.search(r"R (\S+)", text)[1].replace("−", "-")) for text in near]
    assert len(r) == 10
    assert r == sorted(r, reverse=True)
    assert all(re.search(r"\bq\b", text) for text in near)
    explorer.locator("[name=order]").select_option(label="easiest first")
    explorer.locator("[name=label]").fill("7")
    labels = explorer.locator(".list .what").all_inner_texts()
    assert labels
    assert {text[0] for text in labels} == {"7"}
    if stem == "03_memorization":
        explorer.locator("[name=labels]").select_option("wrong only")
        wrong = explorer.locator(".list .what").all_inner_texts()
        assert wrong
        assert all("(is " in text for text in wrong)
    tab.context.close()
