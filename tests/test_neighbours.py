"""The table of neighbours is what its CSV and its page say, and the page works when clicked."""

import base64
import csv
import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from probebook.neighbours import NeighbourTable, neighbours_html

N, K, SIZE = 60, 16, 16
EVIL = "</script><b>evil</b> & “co”"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    labels = np.arange(N) // 2
    labels[-1] = N  # the last two are alone in their class
    class_names = {c: f"class {c}, Latinum {c}" for c in range(N + 1)} | {3: EVIL, 4: "crane, Ä"}
    index = np.stack([rng.permutation(np.delete(np.arange(N), i))[:K] for i in range(N)])
    partner = np.arange(N) ^ 1
    with_partner = np.arange(0, N, 3)
    for i in range(N):  # every third image has its partner among its neighbours, once
        row = index[i][index[i] != partner[i]]
        index[i] = np.resize(row, K)
        if len(row) < K:
            index[i, -1] = np.setdiff1d(np.arange(N), [*row, i, partner[i]])[0]
    index[with_partner, 2] = partner[with_partner]
    correlation = np.sort(rng.uniform(-0.3, 1, (N, K)))[:, ::-1]
    similarity = rng.uniform(0, 1, (N, K))
    similarity[0, 0] = np.nan
    return NeighbourTable(
        names=[class_names[c] for c in labels],
        labels=labels,
        index=index,
        correlation=correlation,
        files=[f"n{i:08d}.jpg" for i in range(N)],
        similarity=similarity,
    )


@pytest.fixture(scope="module")
def thumbnails():
    """Every tile has one colour, its own."""
    levels = np.linspace(0, 255, N).astype(np.uint8)
    colors = np.stack([levels, levels[::-1], np.full(N, 90, np.uint8)], 1)
    return np.broadcast_to(colors[:, :, None, None], (N, 3, SIZE, SIZE)).copy()


def payload(page):
    return json.loads(re.search(r'application/json">(.*?)</script>', page, re.S)[1])


def test_csv_read_back_is_the_table(table):
    content = table.to_csv()
    assert b"\r" not in content
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8"), newline="")))
    assert len(rows) == N * K
    assert list(rows[0]) == [
        *("file", "class", "rank", "neighbour_file", "neighbour_class"),
        *("correlation", "same_label", "wordnet_similarity"),
    ]
    same = table.same_label()
    for at, row in enumerate(rows):
        i, k = divmod(at, K)
        j = table.index[i, k]
        assert int(row["rank"]) == k + 1
        assert (row["file"], row["neighbour_file"]) == (table.files[i], table.files[j])
        assert (row["class"], row["neighbour_class"]) == (table.names[i], table.names[j])
        assert float(row["correlation"]) == pytest.approx(table.correlation[i, k], abs=5.1e-4)
        assert row["same_label"] == str(int(same[i, k]))
    assert rows[0]["wordnet_similarity"] == ""
    assert float(rows[1]["wordnet_similarity"]) == pytest.approx(table.similarity[0, 1], abs=5.1e-4)


def test_csv_without_similarity_has_an_empty_column(table):
    rows = csv.DictReader(io.StringIO(replace(table, similarity=None).to_csv().decode()))
    assert {row["wordnet_similarity"] for row in rows} == {""}


def test_q_values_are_in_the_csv_and_on_the_page(table):
    q = np.full((N, K), 0.5)
    q[:, 0], q[0, 1] = 0.0012, np.nan
    table = replace(table, q_value=q)
    rows = list(csv.DictReader(io.StringIO(table.to_csv().decode())))
    assert [row["q_value"] for row in rows[:3]] == ["0.0012", "", "0.5"]
    assert payload(neighbours_html(table, None))["q"][0][:3] == ["0.0012", "", "0.5"]
    assert payload(neighbours_html(replace(table, q_value=None), None))["q"] is None
    with pytest.raises(ValueError, match="q_value has shape"):
        replace(table, q_value=q[:, :1])


def test_same_label_compares_with_the_reference(table):
    same = table.same_label()
    assert same.shape == (N, K)
    assert same[::3, 2][:-1].all()
    assert same.sum() == len(range(0, N, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.arange(N - 1)}, r"labels has shape \(59,\): give one label"),
        ({"labels": np.arange(N) / 2}, "labels is float64: give an array of integers"),
        ({"index": np.zeros((N - 1, K), int)}, r"index has shape \(59, 16\): give one row"),
        ({"index": np.zeros(N, int)}, r"index has shape \(60,\): give one row"),
        ({"index": np.zeros((N, K))}, "index is float64: give an array of integers"),
        ({"index": np.full((N, K), N)}, "index has the neighbour 60: give positions from 0 to 59"),
        ({"correlation": np.zeros((N, K - 1))}, r"correlation has shape \(60, 15\): give one"),
        ({"correlation": np.full((N, K), np.nan)}, "correlation has a value that is not finite"),
        ({"similarity": np.zeros(N)}, r"similarity has shape \(60,\): give one value"),
        ({"files": ["a.jpg"]}, "files has 1 entries: give one file name"),
        ({"files": ["folder/a.jpg"] * N}, "give the file name without its folder"),
        ({"labels": np.zeros(N, int)}, "give every label one name"),
    ],
)
def test_tables_that_do_not_fit_are_refused(table, change, message):
    with pytest.raises(ValueError, match=message):
        replace(table, **change)


@pytest.mark.parametrize(
    ("shape", "kind", "message"),
    [
        ((N, SIZE, SIZE, 3), np.uint8, "thumbnails is uint8 of shape"),
        ((N - 1, 3, SIZE, SIZE), np.uint8, "one for each image of the table"),
        ((N, 3, SIZE, SIZE), float, "thumbnails is float64"),
        ((N, 3, SIZE, SIZE + 1), np.uint8, "crop them to squares"),
    ],
)
def test_thumbnails_that_do_not_fit_are_refused(table, shape, kind, message):
    with pytest.raises(ValueError, match=message):
        neighbours_html(table, np.zeros(shape, kind))


def test_a_name_that_is_no_id_is_refused(table):
    with pytest.raises(ValueError, match="name is 'a b': give letters"):
        neighbours_html(table, None, name="a b")


def test_page_holds_the_table(table, thumbnails):
    data = payload(neighbours_html(table, thumbnails))
    assert [data["names"][c] for c in data["kind"]] == table.names
    assert data["near"] == table.index.tolist()
    assert data["files"] == table.files
    np.testing.assert_allclose(data["r"], table.correlation, atol=0.0051)
    assert data["alike"][0][0] is None
    np.testing.assert_allclose(data["alike"][1:], table.similarity[1:], atol=0.0051)


def test_a_class_name_cannot_leave_its_script(table):
    page = neighbours_html(table, None, note=EVIL)
    assert "<b>" not in page
    assert page.count("</script>") == 2
    assert "&lt;/script&gt;&lt;b&gt;evil" in page


def test_page_needs_nothing_from_outside(table, thumbnails):
    page = neighbours_html(table, thumbnails)
    assert not re.search(r"https?://|src=|@import|\bfetch\(", page)
    assert "<noscript>" in page


def sheets(page):
    found = re.findall(r"jpeg;base64,([^)]*)\)", page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet)))) for sheet in found]


def test_sprite_holds_every_thumbnail_in_its_place(table, thumbnails):
    (sheet,) = sheets(neighbours_html(table, thumbnails))
    assert sheet.shape == (2 * SIZE, 32 * SIZE, 3)
    for i in range(N):
        r, c = divmod(i, 32)
        tile = sheet[SIZE * r : SIZE * (r + 1), SIZE * c : SIZE * (c + 1)]
        # JPEG at quality 70 keeps the colour of a flat tile to a few levels of 255
        np.testing.assert_allclose(tile.mean((0, 1)), thumbnails[i, :, 0, 0], atol=8)


def test_many_images_are_spread_over_several_sheets():
    n = 1030
    table = NeighbourTable(
        ["x"] * n, np.zeros(n, int), np.zeros((n, 1), int), np.zeros((n, 1)), ["x.jpg"] * n
    )
    first, second = sheets(neighbours_html(table, np.zeros((n, 3, 16, 16), np.uint8)))
    assert (first.shape, second.shape) == ((512, 512, 3), (16, 512, 3))


def test_page_without_photographs_has_none(table):
    page = neighbours_html(table, None)
    assert sheets(page) == []
    assert payload(page)["pictures"] is False


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (chromium, chromium-browser, google-chrome)")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--no-first-run"],
        )
        yield browser
        browser.close()


@pytest.fixture
def show(browser, tmp_path):
    """Opens a page around the table; afterwards nothing has gone wrong in it."""
    wrong, tabs = [], []

    def note(message):
        if message.type == "error":
            wrong.append(message.text)

    def opened(piece, width=1280, theme="light"):
        page = tmp_path / "page.html"
        page.write_text(
            f'<!doctype html><html data-theme="{theme}"><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width"><body>{piece}</body></html>',
            encoding="utf-8",
        )
        tab = browser.new_page(viewport={"width": width, "height": 900})
        tab.on("console", note)
        tab.on("pageerror", lambda e: wrong.append(str(e)))
        tab.goto(page.as_uri())
        tabs.append(tab)
        return tab

    yield opened
    for tab in tabs:
        tab.close()
    assert wrong == []


def test_search_and_choice_filter(table, thumbnails, show):
    tab = show(neighbours_html(table, thumbnails))
    count, rows = tab.locator(".count"), tab.locator(".row")
    assert count.inner_text() == "60 images, page 1 of 8"
    assert rows.count() == 8
    tab.locator(".wanted").fill("CRANE, ä")
    assert count.inner_text() == "2 images, page 1 of 1"
    assert set(tab.locator(".reference").all_inner_texts()) == {"crane, Ä"}
    tab.locator(".wanted").fill("</script><b>")
    assert set(tab.locator(".reference").all_inner_texts()) == {EVIL}
    tab.locator(".wanted").fill("no such class")
    assert count.inner_text() == "no images, page 1 of 1"
    tab.locator(".wanted").fill("")
    tab.locator(".which").select_option("same")
    assert count.inner_text() == "20 images, page 1 of 3"
    assert all("same" in text for text in rows.all_inner_texts())
    tab.locator(".which").select_option("cross")
    assert count.inner_text() == "40 images, page 1 of 5"
    assert tab.locator(".row .tag").count() == 0
    assert tab.locator("datalist option").count() == len(set(table.names))


def test_pages_turn_and_stop_at_the_ends(table, thumbnails, show):
    tab = show(neighbours_html(table, thumbnails))
    back, on = (
        tab.get_by_label("previous page", exact=True),
        tab.get_by_label("next page", exact=True),
    )
    assert back.is_disabled()
    on.focus()
    for _ in range(7):
        tab.keyboard.press("Enter")
    assert tab.locator(".count").inner_text() == "60 images, page 8 of 8"
    assert tab.locator(".row").count() == 4
    assert on.is_disabled()
    back.click()
    assert tab.locator(".count").inner_text() == "60 images, page 7 of 8"


def test_rows_show_the_neighbours_and_their_marks(table, thumbnails, show):
    tab = show(neighbours_html(table, thumbnails))
    same = table.same_label()
    for i in (0, 1):
        cells = tab.locator(".row").nth(i).locator(".cell button")
        assert cells.count() == K
        for k in range(K):
            cell, j = cells.nth(k), table.index[i, k]
            r = f"R {table.correlation[i, k]:.2f}".replace("-", "−")
            about = f"{'same' if same[i, k] else 'another'} label, {r}"
            spoken = cell.get_attribute("aria-label")
            assert spoken.startswith(f"neighbour {k + 1}: {table.names[j]}, {about}")
            assert cell.get_attribute("title").startswith(f"{table.names[j]} ({table.files[j]})")
            style = cell.evaluate("e => getComputedStyle(e).borderTopStyle")
            assert style == ("solid" if same[i, k] else "dashed")
            assert ("same" in cell.inner_text()) == same[i, k]
    pictures = tab.locator(".reference [role=img]")
    assert pictures.first.get_attribute("aria-label") == f"photograph: {table.names[0]}"


def test_a_neighbour_becomes_the_reference_and_one_comes_back(table, thumbnails, show):
    tab = show(neighbours_html(table, thumbnails))
    tab.get_by_label("next page", exact=True).click()
    tab.locator(".row").nth(2).locator(".cell button").nth(5).click()
    j = table.index[10, 5]
    assert tab.locator(".count").inner_text() == "1 image, page 1 of 1"
    assert (
        tab.locator(".reference").get_attribute("title") == f"{table.names[j]} ({table.files[j]})"
    )
    assert tab.evaluate("document.activeElement.className") == "row"
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")  # its best neighbour, by keyboard alone
    best = table.index[j, 0]
    assert table.files[best] in tab.locator(".reference").get_attribute("title")
    tab.locator(".whole").click()
    assert tab.locator(".count").inner_text() == "60 images, page 2 of 8"


def test_tiles_show_their_own_photograph(table, thumbnails, show):
    tab = show(neighbours_html(table, thumbnails))
    tab.get_by_label("next page", exact=True).click()
    for box, i in (
        (tab.locator(".reference .picture").nth(3), 11),
        (tab.locator(".row").nth(3).locator(".cell .picture").nth(4), table.index[11, 4]),
    ):
        shot = np.asarray(Image.open(io.BytesIO(box.screenshot())).convert("RGB"))
        middle = shot[shot.shape[0] // 2, shot.shape[1] // 2]
        np.testing.assert_allclose(middle.astype(int), thumbnails[i, :, 0, 0], atol=8)


@pytest.mark.parametrize("pictures", [True, False])
@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
def test_the_page_is_no_wider_than_the_screen(table, thumbnails, show, pictures, width, theme):
    tab = show(neighbours_html(table, thumbnails if pictures else None), width, theme)
    excess = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert tab.evaluate(excess) == 0
    strip = tab.locator(".near").first
    scrolls = strip.evaluate("e => e.scrollWidth > e.clientWidth")
    assert scrolls == (width == 390)
    assert tab.locator(".picture").count() == (8 * (K + 1) if pictures else 0)


def test_two_tables_on_a_page_keep_apart(table, show):
    tab = show(neighbours_html(table, None, name="one") + neighbours_html(table, None, name="two"))
    tab.locator("#one .wanted").fill("crane")
    assert tab.locator("#one .row").count() == 2
    assert tab.locator("#two .row").count() == 8
