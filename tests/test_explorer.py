"""The explorer carries what it shows, needs nothing else, and works by mouse, keys and address."""

import base64
import csv
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import probelib
from probebook.chapter import Chapter
from probebook.explorer import (
    Samples,
    explorer,
    explorer_html,
    explorer_widget,
    gain_text,
    neighbours_csv,
    spread,
)

N, K, SIZE = 60, 16, 16
EVIL = "</script><b>evil</b> <!-- & “co”\u2028\u2029"
FORMULA = '=HYPERLINK("http://x","y")'


@pytest.fixture(scope="module")
def probe():
    """Digits of noise, some with a wrong label, and their loss kernel."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (N, 28, 28), dtype=np.uint8)
    given = rng.integers(0, 10, N)
    true = given.copy()
    true[:7] = (true[:7] + 1) % 10
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    data = (torch.from_numpy(images).float() / 255, torch.from_numpy(given))
    posterior = probelib.LocalPosterior(
        model, probelib.cross_entropy, data, n_beta=10, localization=30
    )
    trace = probelib.sample(
        posterior, sampler=probelib.SGLD(5e-3), chains=2, draws=20, progress=False
    )
    gain = probelib.loss_gain(trace).values
    digits = Samples(given, images, true=true, loss=trace.init_loss.values, gain=gain)
    return digits, probelib.loss_kernel(trace)


@pytest.fixture(scope="module")
def photographs():
    """Pairs of one class, a hostile name, a name that two classes share; tiles of one colour."""
    labels = np.arange(N) // 2
    names = {c: f"class {c}, Latinum {c}" for c in range(N // 2)}
    names |= {3: EVIL, 4: FORMULA, 5: "crane, Ä", 6: "crane, Ä"}
    levels = np.linspace(0, 255, N).astype(np.uint8)
    colors = np.stack([levels, levels[::-1], np.full(N, 90, np.uint8)], 1)
    images = np.broadcast_to(colors[:, :, None, None], (N, 3, SIZE, SIZE)).copy()
    gain = np.linspace(3, -0.1, N)  # so that the hardest come first, as they are numbered
    ids = [f"n{i:08d}.jpg" for i in range(N)]
    return Samples(labels, images, ids=ids, names=names, loss=gain / 2, gain=gain)


@pytest.fixture(scope="module")
def near():
    """Sixteen neighbours each; every third sample has its partner among them, third."""
    rng = np.random.default_rng(0)
    index = np.stack([rng.permutation(np.delete(np.arange(N), [i, i ^ 1]))[:K] for i in range(N)])
    index[::3, 2] = np.arange(0, N, 3) ^ 1
    correlation = np.sort(rng.uniform(-0.3, 1, (N, K)))[:, ::-1]
    q_value = np.full((N, K), 0.5)
    q_value[:, 0], q_value[0, 1] = 0.0012, np.nan
    return probelib.Neighbours(index, correlation, q_value, np.arange(N))


@pytest.fixture(scope="module")
def wordnet():
    alike = np.random.default_rng(1).uniform(0, 1, (N, K))
    alike[0, 0] = np.nan
    return alike


def payload(page):
    return json.loads(re.search(r'application/json">(.*?)</script>', page, re.S)[1])


# -- what the page holds ------------------------------------------------------------------------


def test_the_choice_holds_the_ends_of_the_ranking():
    gain = np.random.default_rng(0).normal(size=1000)
    rows, order = spread(gain, 40, seed=1), np.argsort(gain)
    assert len(np.unique(rows)) == 40
    assert set(order[:10]) | set(order[-10:]) <= set(rows)
    np.testing.assert_array_equal(rows, np.sort(rows))
    assert set(rows) != set(spread(gain, 40, seed=2))
    np.testing.assert_array_equal(spread(gain[:30], 40), np.arange(30))


def test_the_page_of_a_chapter_counts_neighbours_that_are_more_than_chance(probe, tmp_path):
    digits, kernel = probe
    chapter = Chapter("00_test", profile="smoke", results_dir=tmp_path)
    page = explorer(digits, kernel, live=False, chapter=chapter).data
    best = kernel.top_correlated(10)
    significant = int((best.q_value < 0.05).sum())
    assert chapter.numbers == {"neighbours_listed": 600, "neighbours_significant": significant}
    assert f"{significant} of the 600 neighbours" in page
    data = payload(page)
    np.testing.assert_array_equal(data["near"], best.index)
    np.testing.assert_allclose(
        np.array(data["pairs"]["correlation"], float), best.correlation, atol=5.1e-4
    )
    assert data["columns"]["true_label"] == [str(v) for v in digits.true]
    assert data["wrong"] == [True] * 7 + [False] * (N - 7)


def test_samples_that_are_only_neighbours_come_after_the_rows(photographs, near):
    some = replace(
        near,
        index=near.index[5:8],
        correlation=near.correlation[5:8],
        q_value=near.q_value[5:8],
        rows=near.rows[5:8],
    )
    data = payload(explorer_html(photographs, some, start=6))
    assert data["columns"]["id"][:3] == photographs.ids[5:8]
    assert data["start"] == 1
    assert len(data["near"]) == 3
    found = [[data["columns"]["id"][j] for j in row] for row in data["near"]]
    assert found == [[photographs.ids[j] for j in row] for row in some.index]


def test_q_values_that_are_not_known_at_all_are_not_shown(photographs, near):
    page = explorer_html(photographs, replace(near, q_value=np.full((N, K), np.nan)))
    assert "q_value" not in payload(page)["pairs"]
    assert "more than chance" not in page


def test_no_name_can_leave_its_script(photographs, near):
    page = explorer_html(photographs, near, note=EVIL)
    assert "<b>" not in page
    assert "<!--" not in page
    assert page.count("</script>") == 2
    assert "&lt;/script&gt;&lt;b&gt;evil" in page
    body = re.search(r'application/json">(.*?)</script>', page, re.S)[1]
    assert not set(body) & set("<>&\u2028\u2029")
    assert payload(page)["columns"]["label"][6] == EVIL
    braces = replace(photographs, names=photographs.names | {0: "{{data}}"})
    assert payload(explorer_html(braces, near))["columns"]["label"][0] == "{{data}}"


def test_the_page_needs_nothing_from_outside(photographs, near):
    plain = replace(photographs, names=None)
    assert not re.search(r"https?://|src=|@import|\bfetch\(", explorer_html(plain, near))


def sheets(page):
    found = re.findall(r"url\(data:image/(?:png|jpeg);base64,([^)]*)\)", page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet)))) for sheet in found]


def test_a_sheet_holds_every_image_in_its_place(probe, photographs, near):
    digits, kernel = probe
    (sheet,) = sheets(explorer(digits, kernel, live=True).data)
    for i in range(N):
        r, c = divmod(i, 32)
        tile = sheet[28 * r : 28 * r + 28, 28 * c : 28 * c + 28]
        np.testing.assert_array_equal(tile, digits.images[i])
    (sheet,) = sheets(explorer_html(photographs, near))
    assert sheet.shape == (2 * SIZE, 32 * SIZE, 3)
    for i in range(N):
        r, c = divmod(i, 32)
        tile = sheet[SIZE * r : SIZE * (r + 1), SIZE * c : SIZE * (c + 1)]
        # JPEG at quality 70 keeps the colour of a flat tile to a few levels of 255
        np.testing.assert_allclose(tile.mean((0, 1)), photographs.images[i, :, 0, 0], atol=8)


def test_many_images_are_spread_over_several_sheets():
    n = 1030
    samples = Samples(np.zeros(n, int), np.zeros((n, 3, 16, 16), np.uint8))
    one = np.zeros((n, 1))
    near = probelib.Neighbours(one.astype(int), one, one, np.arange(n))
    first, second = sheets(explorer_html(samples, near))
    assert (first.shape, second.shape) == ((512, 512, 3), (16, 512, 3))
    assert sheets(explorer_html(replace(samples, images=None), near)) == []


@pytest.mark.parametrize(
    ("gain", "text"),
    [
        (1234.56, "1234.6"),
        (23.04, "23.0"),
        (9.96, "10.0"),
        (1, "1.0"),
        (0.996, "1.0"),
        (0.5, "0.50"),
        (0.0123, "0.012"),
        (0.0099, "<0.01"),
        (0, "<0.01"),
        (-3e-5, "<0.01"),
        (-0.25, "-0.25"),
        (np.float32(17.26), "17.3"),
    ],
)
def test_gains_are_written_without_powers_of_ten(gain, text):
    assert gain_text(gain) == text


# -- CSV ----------------------------------------------------------------------------------------


def read_csv(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_csv_read_back_is_the_table(photographs, near, wordnet):
    content = neighbours_csv(photographs, near, wordnet).decode()
    assert "\r" not in content
    rows = read_csv(content)
    assert len(rows) == N * K
    assert list(rows[0]) == [
        *("id", "label", "loss", "gain", "rank", "neighbour_id", "neighbour_label"),
        *("same_label", "correlation", "q_value", "wordnet_similarity"),
    ]
    names = [photographs.names[c] for c in photographs.label]
    names = ["'" + name if name == FORMULA else name for name in names]
    for at, row in enumerate(rows):
        i, k = divmod(at, K)
        j = near.index[i, k]
        assert int(row["rank"]) == k + 1
        assert (row["id"], row["neighbour_id"]) == (photographs.ids[i], photographs.ids[j])
        assert (row["label"], row["neighbour_label"]) == (names[i], names[j])
        assert float(row["gain"]) == pytest.approx(photographs.gain[i], rel=1e-3)
        assert float(row["correlation"]) == pytest.approx(near.correlation[i, k], abs=5.1e-4)
        assert row["same_label"] == str(int(j == i ^ 1))
    assert [row["q_value"] for row in rows[:3]] == ["0.0012", "", "0.5"]
    assert rows[0]["wordnet_similarity"] == ""
    assert float(rows[1]["wordnet_similarity"]) == pytest.approx(wordnet[0, 1], abs=5.1e-4)


@pytest.mark.parametrize(
    ("label", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd", "'+cmd"),
        ("-1+1", "'-1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("-1.5e-3", "-1.5e-3"),
        ("+7", "+7"),
        ('tench, "Tinca"\n2', 'tench, "Tinca"\n2'),
        ("a=b", "a=b"),
    ],
)
def test_no_cell_is_a_formula(label, cell, photographs, near):
    (first, *_) = read_csv(
        neighbours_csv(replace(photographs, names=photographs.names | {0: label}), near).decode()
    )
    assert first["label"] == cell


# -- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": np.arange(N) / 2}, "label is float64: give an array of integers"),
        ({"gain": np.zeros(N - 1)}, r"gain has shape \(59,\): give one value"),
        ({"true": np.full(N, 99)}, "names has no 99: give every label of true a name"),
        ({"ids": ["a.jpg"]}, "ids has 1 entries: give one for each"),
        ({"ids": ["folder/a.jpg"] * N}, "give the file name without its folder"),
        ({"images": np.zeros((N, SIZE, SIZE, 3), np.uint8)}, "images is uint8 of shape"),
        ({"images": np.zeros((N - 1, SIZE, SIZE), np.uint8)}, r"of shape \(60, s, s\) or"),
        ({"images": np.zeros((N, SIZE, SIZE))}, "images is float64"),
        ({"images": np.zeros((N, 3, SIZE, SIZE + 1), np.uint8)}, "crop them to squares"),
    ],
)
def test_samples_that_do_not_fit_are_refused(photographs, change, message):
    with pytest.raises(ValueError, match=message):
        replace(photographs, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": np.zeros((N - 1, K), int)}, r"near.index has shape \(59, 16\): give one row"),
        ({"index": np.zeros(N, int)}, r"near.index has shape \(60,\): give one row"),
        ({"index": np.zeros((N, K))}, "near.index is float64: give an array of integers"),
        ({"index": np.full((N, K), N)}, "near has the position 60: give positions from 0 to 59"),
        ({"correlation": np.zeros((N, K - 1))}, r"correlation has shape \(60, 15\): give one"),
        ({"correlation": np.full((N, K), np.nan)}, "correlation has a value that is not finite"),
        ({"q_value": np.zeros(N)}, r"q_value has shape \(60,\): give one value"),
    ],
)
@pytest.mark.parametrize("made", [explorer_html, neighbours_csv])
def test_neighbours_that_do_not_fit_are_refused(photographs, near, made, change, message):
    with pytest.raises(ValueError, match=message):
        made(photographs, replace(near, **change))


def test_other_arguments_that_do_not_fit_are_refused(probe, photographs, near):
    with pytest.raises(ValueError, match="name is 'a b': give letters"):
        explorer_html(photographs, near, name="a b")
    with pytest.raises(ValueError, match="wordnet has shape"):
        neighbours_csv(photographs, near, np.zeros(K))
    digits, kernel = probe
    with pytest.raises(ValueError, match="samples has gain None: give one for each sample"):
        explorer(replace(digits, gain=None), kernel, live=False)


# -- the running notebook -----------------------------------------------------------------------


def test_a_widget_fetches_any_part_from_the_kernel(probe, monkeypatch, capsys):
    digits, kernel = probe
    monkeypatch.setattr("probebook.explorer._AT_ONCE", 20)
    pages = []
    monkeypatch.setattr("IPython.display.display", lambda page: pages.append(payload(page.data)))
    explorer(digits, kernel, live=True)
    assert len(pages[-1]["near"]) == N  # less than what it fetches at once
    by_gain = [str(i) for i in np.argsort(digits.gain)[::-1]]
    rank, wanted = explorer_widget(digits, kernel, at_once=5).children[0].children
    assert pages[-1]["columns"]["id"][:5] == by_gain[:5]
    rank.value = 11
    assert pages[-1]["columns"]["id"][:5] == by_gain[10:15]
    best = kernel.top_correlated(10, rows=np.argsort(digits.gain)[::-1][10:15])
    found = [[int(pages[-1]["columns"]["id"][j]) for j in row] for row in pages[-1]["near"]]
    np.testing.assert_array_equal(found, best.index)  # among all samples, not those listed
    wanted.value = "7"
    start = pages[-1]["start"]
    assert pages[-1]["columns"]["id"][start] == "7"
    assert set(pages[-1]["near"][start]) <= set(range(len(pages[-1]["near"])))  # all listed
    count = len(pages)
    wanted.value = "none"
    assert len(pages) == count
    assert "No sample has the id 'none'." in capsys.readouterr().out


# -- in a browser -------------------------------------------------------------------------------


def of_focus(tab):
    """Which sample has the focus, and in which of the two grids."""
    return tab.evaluate(
        "(e => [Number(e.dataset.i), e.parentElement.classList[1]])(document.activeElement)"
    )


def in_short(gain):
    """A gain as a tile has it: the page holds four digits of it."""
    return gain_text(float(f"{gain:.4g}")).replace("-", "−")


def address(tab):
    return tab.evaluate("location.hash")


def test_search_and_choice_filter(photographs, near, show):
    tab = show(explorer_html(photographs, near))
    count, tiles = tab.locator(".count"), tab.locator(".list .tile")
    assert count.inner_text() == "60 samples, page 1 of 2"
    assert tiles.count() == 40
    wanted = tab.locator("[name=label]")
    wanted.fill("CRANE, ä")
    assert count.inner_text() == "4 samples, page 1 of 1"
    wanted.fill("latinum 1")
    assert count.inner_text() == "22 samples, page 1 of 1"  # 1 and 10 to 19
    wanted.fill("class 1, latinum 1")
    assert count.inner_text() == "2 samples, page 1 of 1"  # a whole name is that name
    wanted.fill("</script><b>")
    assert tiles.first.locator(".what").text_content() == EVIL
    wanted.fill("no such class")
    assert count.inner_text() == "no samples, page 1 of 1"
    assert tab.locator(".about").inner_text() == "No sample here is like that."
    assert tab.locator(".near .tile").count() == 0
    wanted.fill("")
    tab.locator("[name=near]").select_option("same")
    assert count.inner_text() == "20 samples, page 1 of 1"
    tab.locator("[name=near]").select_option("cross")
    assert count.inner_text() == "40 samples, page 1 of 1"
    tab.locator("[name=near]").select_option("any")
    tab.locator("[name=order]").select_option("1")
    assert "rank 60 of 60 from the hardest" in tab.locator(".about").inner_text()
    assert not tab.locator("[name=true]").is_visible()
    assert tab.locator("datalist option").count() == len(set(photographs.names.values()))


def test_wrong_labels_are_told_from_right_ones(probe, show):
    digits, kernel = probe
    tab = show(explorer(digits, kernel, live=False).data)
    tiles = tab.locator(".list .tile")
    tab.locator("[name=labels]").select_option("wrong only")
    hardest = np.argsort(digits.gain[:7])[::-1]
    assert tiles.locator(".what").all_inner_texts() == [
        f"{digits.label[i]} (is {digits.true[i]})" for i in hardest
    ]
    gains = [f"gain {in_short(digits.gain[i])}" for i in hardest]
    assert [text.split("\n")[1] for text in tiles.all_inner_texts()] == gains
    tab.locator("[name=labels]").select_option("right only")
    assert tab.locator(".count").inner_text().startswith("53 samples")
    tab.locator("[name=true]").fill("3")
    right = (digits.true == 3) & (digits.true == digits.label)
    assert tab.locator(".count").inner_text().startswith(f"{right.sum()} sample")


def test_tiles_show_and_say_the_neighbours(photographs, near, wordnet, show):
    tab = show(explorer_html(photographs, near, wordnet=wordnet))
    for i in (0, 1):
        tab.locator(".list .tile").nth(i).click()
        tiles = tab.locator(".near .tile")
        assert tiles.count() == K + 1
        assert tiles.first.get_attribute("data-i") == str(i)
        for k in range(K):
            tile, j = tiles.nth(k + 1), near.index[i, k]
            r = f"R {near.correlation[i, k]:.3f}".replace("-", "−")
            q = near.q_value[i, k]
            same = j == i ^ 1
            spoken = tile.get_attribute("aria-label").split(", ")
            assert spoken[:2] == [f"neighbour {k + 1}", f"sample {photographs.ids[j]}"]
            assert {r, "same label" if same else "another label"} <= set(spoken)
            assert ("q not known" if np.isnan(q) else f"q {q:.2g}") in spoken
            assert ("may be chance" in spoken) == (not q < 0.05)
            assert ("chance" in tile.get_attribute("class").split()) == (not q < 0.05)
            similarity = [s for s in spoken if s.startswith("WordNet")]
            assert len(similarity) == (not np.isnan(wordnet[i, k]))
            lines = tile.inner_text().split("\n")
            gain = f"gain {in_short(photographs.gain[j])}"
            assert lines[-3:] == [gain, r, "no q" if np.isnan(q) else f"q {q:.2g}"]
            style = tile.evaluate("e => getComputedStyle(e).borderTopStyle")
            assert style == ("solid" if same else "dashed")


def test_tiles_show_their_own_image(photographs, near, show):
    tab = show(explorer_html(photographs, near))
    tab.locator(".list .tile").nth(11).click()
    for box, i in (
        (tab.locator(".list .picture").nth(35), 35),
        (tab.locator(".near .picture").nth(1), near.index[11, 0]),
    ):
        shot = np.asarray(Image.open(io.BytesIO(box.screenshot())).convert("RGB"))
        middle = shot[shot.shape[0] // 2, shot.shape[1] // 2]
        np.testing.assert_allclose(middle.astype(int), photographs.images[i, :, 0, 0], atol=8)


def test_keys_move_pick_and_keep_the_focus(photographs, near, show):
    tab = show(explorer_html(photographs, near))
    tab.locator("[name=csv]").focus()
    tab.keyboard.press("Tab")
    assert of_focus(tab) == [0, "list"]
    across = tab.evaluate(
        "(t => t.filter(e => e.offsetTop === t[0].offsetTop).length)"
        "([...document.querySelectorAll('.list .tile')])"
    )
    for key, i in (
        *(("ArrowRight", 1), ("ArrowDown", 1 + across), ("ArrowLeft", across)),
        *(("ArrowUp", 0), ("ArrowUp", 0), ("End", 39), ("ArrowRight", 39), ("Home", 0)),
    ):
        tab.keyboard.press(key)
        assert of_focus(tab) == [i, "list"]
    assert tab.locator(".list .tile[tabindex='0']").count() == 1
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Enter")
    assert of_focus(tab) == [1, "list"]  # the grid was drawn again, the focus is where it was
    assert tab.locator(".list .tile[aria-pressed=true]").get_attribute("data-i") == "1"
    tab.keyboard.press("Tab")
    assert of_focus(tab) == [1, "near"]
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Enter")  # on from its best neighbour
    best = int(near.index[1, 0])
    assert of_focus(tab) == [best, "near"]
    assert tab.locator(".about").inner_text().startswith(f"Sample {photographs.ids[best]}:")
    tab.keyboard.press("ArrowRight")
    assert of_focus(tab) == [int(near.index[best, 0]), "near"]
    on = tab.get_by_label("next page", exact=True)
    on.focus()
    tab.keyboard.press("Enter")
    assert tab.locator(".count").inner_text() == "60 samples, page 2 of 2"
    assert on.get_attribute("aria-disabled") == "true"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.name") == "on"  # it cannot turn, and keeps it
    assert tab.locator(".count").inner_text() == "60 samples, page 2 of 2"


def test_a_sample_is_looked_up_by_its_id(photographs, near, show):
    tab = show(explorer_html(photographs, near))
    wanted = tab.locator("[name=find]")
    wanted.fill("n00000050")
    wanted.press("Enter")
    assert tab.locator(".about").inner_text().startswith("Sample n00000050.jpg:")
    assert tab.locator(".count").inner_text() == "60 samples, page 2 of 2"
    assert tab.evaluate("document.activeElement.name") == "find"
    wanted.fill("<b>5")
    wanted.press("Enter")
    assert tab.locator(".said").inner_text() == (
        "No sample here has the id <b>5: this page has 60 of 60."
    )
    assert tab.locator(".about").inner_text().startswith("Sample n00000050.jpg:")


def test_the_address_holds_the_view_and_back_works(photographs, near, show):
    page = "<p id=other>a heading</p>" + explorer_html(photographs, near)
    tab = show(page)
    about, count = tab.locator(".about"), tab.locator(".count")
    assert address(tab) == ""
    tab.locator(".list .tile").nth(7).click()
    tab.locator("[name=label]").fill("crane")
    tab.locator("[name=label]").press("Tab")
    tab.locator(".list .tile").nth(2).click()
    there = address(tab)
    assert there == "#explorer.page=1&explorer.label=crane&explorer.sample=n00000012.jpg"
    tab.go_back()
    assert count.inner_text() == "4 samples, page 1 of 1"
    assert about.inner_text().startswith("Sample n00000010.jpg:")
    tab.go_back()
    assert count.inner_text() == "60 samples, page 1 of 2"
    assert about.inner_text().startswith("Sample n00000007.jpg:")
    tab.go_back()
    assert address(tab) == ""
    assert about.inner_text().startswith("Sample n00000000.jpg:")
    tab.go_forward()
    tab.evaluate("location.hash = 'other'")  # a link to a heading changes nothing here
    assert about.inner_text().startswith("Sample n00000007.jpg:")
    shared = show("<div style='height: 3000px'></div>" + page, address=there)
    assert shared.locator(".about").inner_text().startswith("Sample n00000012.jpg:")
    assert shared.locator("[name=label]").input_value() == "crane"
    assert shared.evaluate("scrollY") > 2000
    odd = "#explorer.page=x&explorer.order=%3Cb%3E&explorer.sample=nobody"
    assert show(page, address=odd).locator(".count").inner_text() == "60 samples, page 1 of 2"


def test_two_explorers_on_a_page_keep_apart(photographs, near, show):
    small = replace(photographs, images=np.zeros((N, 28, 28), np.uint8))
    tab = show(
        explorer_html(photographs, near, name="one") + explorer_html(small, near, name="one-b")
    )
    one, two = tab.locator("#one"), tab.locator("#one-b")
    one.locator(".list .tile").nth(3).click()
    two.get_by_label("next page").click()
    two.locator(".list .tile").nth(1).click()
    assert address(tab) == (
        "#one.page=1&one.sample=n00000003.jpg&one-b.page=2&one-b.sample=n00000041.jpg"
    )
    one.locator(".list .tile").nth(4).click()
    assert two.locator(".about").inner_text().startswith("Sample n00000041.jpg:")
    tab.go_back()
    assert one.locator(".about").inner_text().startswith("Sample n00000003.jpg:")
    assert two.locator(".count").inner_text() == "60 samples, page 2 of 2"
    sizes = [e.locator(".picture").first.bounding_box()["width"] for e in (one, two)]
    assert sizes == [64, 56]


def test_in_jupyterlab_the_address_is_left_alone(photographs, near, show):
    lab = '<script id="jupyter-config-data" type="application/json">{}</script>'
    tab = show(lab + explorer_html(photographs, near), address="#explorer.sample=n00000012.jpg")
    assert tab.locator(".about").inner_text().startswith("Sample n00000000.jpg:")
    tab.locator(".list .tile").nth(7).click()
    assert tab.locator(".about").inner_text().startswith("Sample n00000007.jpg:")
    assert address(tab) == "#explorer.sample=n00000012.jpg"
    assert tab.locator("[data-lm-suppress-shortcuts] .list").count() == 1  # else arrows move cells


def test_the_download_is_what_is_shown(photographs, near, wordnet, show):
    tab = show(explorer_html(photographs, near, wordnet=wordnet, name="photos"))

    def download():
        with tab.expect_download() as it:
            tab.locator("[name=csv]").click()
        assert it.value.suggested_filename == "photos.csv"
        return it.value.path().read_bytes()

    assert download() == neighbours_csv(photographs, near, wordnet)
    tab.locator("[name=label]").fill("=hyper")
    rows = read_csv(download().decode())
    assert {row["label"] for row in rows} == {"'" + FORMULA}
    assert [row["id"] for row in rows] == [photographs.ids[i] for i in (8, 9) for _ in range(K)]


LOW_CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = color => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const ground = e => {
    for (; e; e = e.parentElement) {
      const c = rgba(getComputedStyle(e).backgroundColor);
      if (c[3] === 255) return c;
    }
    return [255, 255, 255];
  };
  const ratio = (e, style) => {
    const [a, b] = [light(rgba(style.color)), light(ground(e))];
    let faint = 1;
    for (let up = e; up; up = up.parentElement) faint *= getComputedStyle(up).opacity;
    return faint * style.opacity < 1 ? 0 : (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };
  const found = [];
  for (const e of document.querySelectorAll(".probe-explorer *")) {
    if (!e.checkVisibility() || ["STYLE", "SCRIPT"].includes(e.tagName)) continue;
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (own || ["INPUT", "SELECT"].includes(e.tagName))
      found.push([ratio(e, getComputedStyle(e)), e.className + ": " + e.textContent.slice(0, 40)]);
    if (e.placeholder) found.push([ratio(e, getComputedStyle(e, "::placeholder")), e.placeholder]);
  }
  return [found.length, found.filter(([r]) => r < 4.5)];
}"""


@pytest.mark.parametrize(
    ("theme", "body", "scheme", "ground"),
    [
        ('data-theme="light"', "", "dark", "rgb(255, 255, 255)"),
        ('data-theme="dark"', "", "light", "rgb(20, 24, 30)"),
        ("", 'data-jp-theme-light="true"', "dark", "rgb(255, 255, 255)"),
        ("", 'data-jp-theme-light="false"', "light", "rgb(20, 24, 30)"),
        ("", "", "light", "rgb(255, 255, 255)"),
        ("", "", "dark", "rgb(20, 24, 30)"),
    ],
)
def test_all_text_stands_out_in_both_modes(photographs, near, show, theme, body, scheme, ground):
    samples = replace(photographs, true=(photographs.label + 1) % (N // 2))
    page = explorer_html(samples, near, note="A note.")
    tab = show(page, theme=theme, body=body, scheme=scheme)
    shown = "getComputedStyle(document.querySelector('.probe-explorer')).backgroundColor"
    assert tab.evaluate(shown) == ground
    count, low = tab.evaluate(LOW_CONTRAST)
    assert count > 2 * 41 + 4 * K  # label and gain, for neighbours R and q as well
    assert low == []
    assert tab.locator(".near .chance").count() == K - 1


@pytest.mark.parametrize("pictures", [True, False])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_no_wider_than_the_screen(photographs, near, show, pictures, width):
    samples = replace(
        photographs, true=photographs.label, images=photographs.images if pictures else None
    )
    tab = show(explorer_html(samples, near), width)
    excess = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert tab.evaluate(excess) == 0
    tab.locator("[name=find]").fill("x" * 300)
    tab.locator("[name=find]").press("Enter")
    assert tab.evaluate(excess) == 0
