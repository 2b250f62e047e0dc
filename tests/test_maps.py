"""Maps of two similarities: placed by what they hold, worked by mouse and keys."""

import json
import re

import numpy as np
import pytest

from probebook.maps import layout, maps_html

N = 60
EVIL = "</script><b>evil</b>"


def blocks(groups):
    """Cosines of samples in groups that know nothing of each other."""
    rows = np.eye(3)[groups % 3] + 0.2 * np.random.default_rng(1).normal(size=(len(groups), 3))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


@pytest.fixture(scope="module")
def page():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (N, 3, 16, 16), dtype=np.uint8)
    names = [f"photo {i}" for i in range(N - 1)] + [EVIL]
    similarities = {
        "loss kernel": blocks(np.arange(N) % 3),
        "features": blocks(np.arange(N) // 20),
    }
    return maps_html(names, similarities, images=images, note="A & B", name="m")


def data_of(page):
    found = re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    return json.loads(found[1])


def test_samples_that_are_alike_lie_together():
    groups = np.arange(N) % 3
    places = layout(blocks(groups), perplexity=10)
    assert places.min() >= 0
    assert places.max() <= 1
    far = np.linalg.norm(places[:, None] - places, axis=-1)
    same = groups[:, None] == groups
    nearest = np.where(np.eye(N, dtype=bool), np.inf, far).argmin(1)
    assert (groups[nearest] == groups).mean() > 0.95
    assert far[same].mean() < 0.7 * far[~same].mean()
    np.testing.assert_array_equal(places, layout(blocks(groups), perplexity=10))


def test_the_page_holds_both_maps_and_no_address(page):
    data = data_of(page)
    assert data["titles"] == ["loss kernel", "features"]
    assert np.shape(data["places"]) == (2, N, 2)
    assert all(j % 3 == 0 for j in data["near"][0][0])
    assert all(j < 20 for j in data["near"][1][0])
    assert "A &amp; B" in page
    assert EVIL not in page
    assert data["label"][-1] == EVIL
    assert "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"name": "a b"}, "name is"),
        ({"similarities": {"one": np.eye(3)}}, "1 entries"),
        ({"similarities": {"a": np.eye(3), "b": np.eye(4)}}, r"'b' of shape \(4, 4\)"),
        ({"similarities": {"a": np.eye(3), "b": np.full((3, 3), np.nan)}}, "finite"),
        ({"images": np.zeros((3, 16, 16), np.uint8)}, "images is uint8 of shape"),
    ],
)
def test_what_does_not_fit_is_refused(change, match):
    given = {"names": list("abc"), "similarities": {"a": np.eye(3), "b": np.eye(3)}} | change
    with pytest.raises(ValueError, match=match):
        maps_html(**given)


def picked(tab):
    return tab.evaluate(
        "[...document.querySelectorAll('.dot.picked')].map(e => Number(e.dataset.i))"
    )


def zoom(tab, pane=0):
    return float(
        tab.evaluate(f"document.querySelectorAll('.pane')[{pane}].style.getPropertyValue('--zoom')")
    )


def test_looking_up_marks_a_sample_and_its_nearest_in_both_maps(page, show):
    tab = show(page)
    assert tab.locator(".pane").count() == 2
    assert tab.locator(".dot").count() == 2 * N
    tab.locator("[name=find]").fill("photo 7")
    tab.keyboard.press("Enter")
    assert picked(tab) == [7, 7]
    said = tab.locator(".said").inner_text()
    assert said.startswith("photo 7. Nearest by loss kernel: ")
    own = tab.evaluate("[...document.querySelectorAll('.dot.own')].map(e => Number(e.dataset.i))")
    assert len(own) == 10
    assert all(i % 3 == 1 for i in own)
    assert zoom(tab) >= 3  # and in the middle of both
    middle = tab.evaluate(
        "[...document.querySelectorAll('.pane')].map(v => { const r = v.getBoundingClientRect(),"
        "q = v.querySelector('.picked').getBoundingClientRect();"
        "return Math.hypot(q.x + q.width / 2 - r.x - r.width / 2, q.y + q.height / 2 - r.y "
        "- r.height / 2); })"
    )
    assert max(middle) < 3
    tab.locator("[name=find]").fill("nothing of the kind")
    tab.keyboard.press("Enter")
    assert "No photograph here" in tab.locator(".said").inner_text()


def test_keys_move_zoom_and_pick(page, show):
    tab = show(page)
    tab.locator(".pane").first.focus()
    assert tab.locator(".cross").first.is_visible()
    tab.keyboard.press("+")
    tab.keyboard.press("+")
    assert zoom(tab) == pytest.approx(1.96)
    assert zoom(tab, 1) == 1
    before = tab.evaluate("document.querySelector('.field').style.transform")
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("document.querySelector('.field').style.transform") != before
    tab.keyboard.press("Enter")
    assert len(picked(tab)) == 2
    tab.keyboard.press("0")
    assert zoom(tab) == 1


def test_a_click_picks_and_a_drag_moves(page, show):
    tab = show(page)
    target = tab.locator(".pane").first.locator(".dot").nth(5)
    target.click(force=True)
    assert len(set(picked(tab))) == 1
    chosen = picked(tab)
    box = tab.locator(".pane").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    before = tab.evaluate("document.querySelector('.field').style.transform")
    tab.mouse.move(x, y)
    tab.mouse.down()
    tab.mouse.move(x + 40, y + 20, steps=4)
    tab.mouse.up()
    assert tab.evaluate("document.querySelector('.field').style.transform") != before
    assert picked(tab) == chosen


@pytest.mark.parametrize(("theme", "dark"), [("light", False), ("dark", True)])
def test_it_follows_the_theme_and_fits_a_phone(page, show, theme, dark):
    tab = show(page, width=390, theme=f'data-theme="{theme}"')
    colour = tab.evaluate("getComputedStyle(document.querySelector('.probe-maps')).backgroundColor")
    assert (colour == "rgb(20, 24, 30)") == dark
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
