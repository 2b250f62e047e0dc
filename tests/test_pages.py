"""The rendered pages in a real browser, with the network cut."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from book_run import Book, smoke_book
from drawn import PAGE, PHONE

import render

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
UNWRITTEN = ("genindex", "index", "py-modindex", "search")  # pages that nobody wrote
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
    visitor.errors.clear()
    tab = visitor.open(visitor.book.html / "search.html")
    tab.goto((visitor.book.html / "search.html").as_uri() + "?q=localization")
    tab.locator("#search-results li a").first.wait_for(timeout=15_000)
    tab.wait_for_timeout(500)
    assert tab.locator("#search-results p.context").count() == 0  # from disk, no page is fetched
    assert visitor.errors == []
    tab.context.close()


def test_chapters_have_the_number_that_the_prose_uses(visitor: Visitor) -> None:
    front = visitor.open(visitor.book.html / "intro.html")
    links = front.locator(".bd-sidebar-primary nav li a").all_inner_texts()
    numbered = [text.strip() for text in links if text.strip()[:2].isdigit()]
    chapters = sorted(p.stem[:2] for p in visitor.book.pages() if p.parent.name == "notebooks")
    assert [text.split(" · ")[0] for text in numbered] == chapters
    said = front.locator("article").inner_text()
    assert not re.search(r"[Cc]hapters? \d\b", said)
    listed = front.locator("#a-map-of-the-book li a").evaluate_all(
        "links => links.map(a => a.href)"
    )
    assert sorted(listed) == sorted(
        page.as_uri() for page in visitor.book.pages() if page.stem != "intro"
    )
    mapped = front.locator("#a-map-of-the-book p:has(strong)").all_inner_texts()
    groups = front.locator(".bd-sidebar-primary p.caption").all_inner_texts()
    assert [text.strip() for text in mapped] == [text.strip() for text in groups]
    for page in visitor.book.pages():
        if page.parent.name == "notebooks":
            title = re.search(r"<h1>(.*?)<", page.read_text(encoding="utf-8"))[1]
            assert title.startswith(f"{page.stem[:2]} · ")
            assert any(text == title for text in numbered)
    front.context.close()


def test_links_to_the_sources_need_an_address(visitor: Visitor) -> None:
    found = render.repository()
    for page in visitor.book.pages():
        text = page.read_text(encoding="utf-8")
        buttons = re.findall(r'<a href="([^"]*)"[^>]*class="btn[^>]*>', text)
        assert all(target.strip("#") for target in buttons), page.name
        if found is None:
            assert "mybinder.org" not in text
            assert "source-repository-button" not in text
            assert "og:image" not in text
        else:
            assert f'href="{found[0]}"' in text


def test_every_page_says_what_it_is(visitor: Visitor) -> None:
    said = {}
    for page in [*visitor.book.pages(), *(visitor.book.html / f"{n}.html" for n in UNWRITTEN)]:
        text = page.read_text(encoding="utf-8")
        tags = dict(re.findall(r'<meta (?:name|property)="((?:og:)?\w+)" content="([^"]*)"', text))
        assert len(re.findall(r'<meta name="description"', text)) == 1, page.name
        assert 30 < len(tags["description"]) < 700, page.name
        assert not re.search(r"[\\{}<>$]", tags["description"]), page.name
        assert tags["og:description"], page.name
        assert tags["og:title"], page.name
        assert tags["og:type"] == ("website" if page.stem in ("intro", "index") else "article")
        said[page.stem] = tags["description"]
    said.pop("index")  # the front page's
    assert len(set(said.values())) == len(said)


def test_figures_are_legible_and_enlarge(visitor: Visitor) -> None:
    wrong, shown = [], 0
    for page in visitor.book.pages():
        tab = visitor.open(page, 1280, "dark")
        figures = tab.locator("a.enlarge img")
        wide = tab.evaluate("document.querySelector('article > section').clientWidth")
        for i in range(figures.count()):
            natural, drawn, ground = figures.nth(i).evaluate(
                "i => [i.naturalWidth, i.clientWidth, getComputedStyle(i).backgroundColor]"
            )
            shown += 1
            # What tests/drawn.py takes for granted when it asks for text of 9 px.
            if drawn < min(natural, PAGE) - 1 or wide < PAGE:
                wrong.append(f"{page.name}: a figure of {natural} px is shown {drawn} px wide")
            if ground != "rgb(255, 255, 255)":
                wrong.append(f"{page.name}: a figure stands on {ground}")
        tab.context.close()
    assert wrong == []
    assert shown > 10


def test_a_phone_shows_the_drawings_that_are_made_for_it(visitor: Visitor) -> None:
    page = visitor.book.html / "notebooks" / "00_introduction.html"
    shown = {}
    for width in (390, 1280):
        tab = visitor.open(page, width)
        figures = tab.locator("figure picture img")
        shown[width] = figures.evaluate_all(
            "all => all.map(i => [i.currentSrc.endsWith('-narrow.png'), i.clientWidth, i.alt])"
        )
        if width == 1280:
            tab.emulate_media(media="print")
            assert not any(figures.evaluate_all("all => all.map(i => /narrow/.test(i.currentSrc))"))
        tab.context.close()
    assert len(shown[390]) >= 3
    for narrow, width, _ in shown[390]:
        assert narrow
        assert PHONE - 1 <= width < 390  # what tests/drawn.py takes for granted
    assert not any(narrow for narrow, _, _ in shown[1280])
    assert [alt for *_, alt in shown[390]] == [alt for *_, alt in shown[1280]]


def test_the_front_page_begins_with_figures(visitor: Visitor) -> None:
    tab = visitor.open(visitor.book.html / "intro.html", 390)
    order = tab.evaluate(
        "[...document.querySelectorAll('article :is(figure, table)')].map(e => e.localName)"
    )
    assert order[:3] == ["figure", "figure", "table"]
    tab.context.close()


def test_a_figure_enlarges_by_keyboard(visitor: Visitor) -> None:
    tab = visitor.open(visitor.book.html / "notebooks" / "00_introduction.html", 390)
    figure, dialog = tab.locator("a.enlarge").first, tab.locator("dialog.enlarged")
    figure.focus()
    tab.keyboard.press("Enter")
    dialog.wait_for(state="visible")
    large = dialog.locator("img")
    assert large.get_attribute("alt") == figure.locator("img").get_attribute("alt")
    assert large.evaluate("i => i.clientWidth === i.naturalWidth && i.naturalWidth > 390")
    assert tab.url.endswith("00_introduction.html")
    tab.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    assert figure.evaluate("link => link === document.activeElement")
    tab.context.close()


def test_what_is_wide_scrolls_in_its_own_box(visitor: Visitor) -> None:
    wrong, tables, formulas = [], 0, 0
    for page in visitor.book.pages():
        tab = visitor.open(page, 390)
        tab.wait_for_timeout(200)  # the boxes are measured when they are laid out
        for kind, name, over, role, focus, hint in tab.evaluate(
            "[...document.querySelectorAll('article .pst-scrollable-table-container, "
            "article mjx-container[display=true]')].filter(b => b.checkVisibility()).map(b => "
            "[b.localName, b.ariaLabel, b.scrollWidth - b.clientWidth, b.getAttribute('role'), "
            "b.tabIndex, b.classList.contains('more-right')])"
        ):
            tables += kind == "div" and over > 1
            formulas += kind != "div" and over > 1
            role_meant = "region" if kind == "div" else "group"
            meant = (role_meant, 0, True) if over > 1 else (None, -1, False)
            if (role, focus, hint) != meant or (over > 1 and not name):
                wrong.append(f"{page.name}: {kind}, {over} px over: {role}, {focus}, {hint}")
        bare = tab.evaluate(
            "[...document.querySelectorAll('article th:not([scope])')].map(h => h.outerHTML)"
        )
        wrong += [f"{page.name}: {head} heads nothing" for head in bare]
        tab.context.close()
    assert wrong == []
    assert tables
    assert formulas


def test_arrows_scroll_a_wide_table_and_do_not_turn_the_page(visitor: Visitor) -> None:
    tab = visitor.open(visitor.book.html / "errata.html", 390)
    box = tab.locator(".pst-scrollable-table-container.more-right").first
    box.focus()
    tab.keyboard.press("ArrowRight")
    tab.wait_for_function(
        "b => b.scrollLeft > 0 && b.matches('.more-left')", arg=box.element_handle()
    )
    assert tab.url.endswith("errata.html")
    tab.context.close()


def test_print_cuts_nothing(visitor: Visitor) -> None:
    wrong = []
    for page in visitor.book.pages():
        tab = visitor.open(page, 718)  # A4 at 96 px an inch, with margins of a centimetre
        tab.emulate_media(media="print")
        cut = tab.evaluate(
            "[...document.querySelectorAll('article pre, article img, article table, "
            "article mjx-container')].filter(e => e.checkVisibility() && (e.scrollWidth > "
            "e.clientWidth + 1 && e.localName === 'pre' || e.getBoundingClientRect().right > 719))"
            ".map(e => e.localName + ': ' + e.textContent.slice(0, 60))"
        )
        wrong += [f"{page.name}: {what}" for what in cut]
        tab.context.close()
    assert wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(visitor: Visitor, scheme: str) -> None:
    package = importlib.util.find_spec("axe_core_python")
    axe = (Path(package.origin).parent / "axe.min.js").read_text(encoding="utf-8")
    wrong = []
    unwritten = [visitor.book.html / f"{name}.html" for name in UNWRITTEN if name != "index"]
    for page in visitor.book.pages() + unwritten:
        tab = visitor.open(page, 1280, scheme)
        # A colour on its way from the theme of the load to the reader's is nobody's to read.
        tab.evaluate("Promise.allSettled(document.getAnimations().map(a => a.finished))")
        tab.evaluate(axe)
        found = tab.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        wrong += [
            f"{page.name}: {finding['id']}: {node['html'][:120]}"
            for finding in found
            if finding["impact"] in ("serious", "critical")
            for node in finding["nodes"]
        ]
        tab.context.close()
    assert wrong == []


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
