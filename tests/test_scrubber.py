"""The view that scrubs through a training: what it holds, and its slider, keys and themes."""

import json
import re

import numpy as np
import pytest

from probebook.scrubber import mixed, scrubber_html

N, EPOCHS = 40, [1, 5, 20]
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (N, 28, 28), dtype=np.uint8)
TRUE = np.arange(N) % 10
LABELS = np.where(np.arange(N) < 8, (TRUE + 1) % 10, TRUE)
GAIN = np.array([np.arange(N), RNG.permutation(N), -np.arange(N)], float)
VALUES = {"loss gain": GAIN, "loss": GAIN[::-1]}


@pytest.fixture(scope="module")
def page():
    return scrubber_html(IMAGES, LABELS, TRUE, EPOCHS, VALUES, note="A & B", name="s")


def test_the_page_is_small_and_needs_no_address(page):
    found = re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    data = json.loads(found[1])
    assert data["epochs"] == EPOCHS
    assert data["titles"] == ["loss gain", "loss"]
    np.testing.assert_array_equal(data["values"][0], GAIN)
    assert (np.array(data["label"]) != data["true"]).sum() == 8
    assert "A &amp; B" in page
    assert "http" not in page
    many = np.tile(IMAGES, (8, 1, 1))[:300]
    rows = RNG.normal(size=(10, 300))
    wide = scrubber_html(many, TRUE[np.arange(300) % N], np.zeros(300, int), range(1, 11),
                         {"a": rows, "b": rows})  # fmt: skip
    assert len(wide) < 1_000_000


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"name": "a b"}, "name is"),
        ({"images": IMAGES.astype(float)}, "images is float64"),
        ({"true": TRUE[1:]}, "39 true"),
        ({"values": {}}, "values is empty"),
        ({"values": {"g": GAIN[:2]}}, r"'g' of shape \(2, 40\)"),
        ({"values": {"g": np.where(GAIN > 3, np.nan, GAIN)}}, "finite"),
    ],
)
def test_what_does_not_fit_is_refused(change, match):
    given = {"images": IMAGES, "labels": LABELS, "true": TRUE, "epochs": EPOCHS, "values": VALUES}
    with pytest.raises(ValueError, match=match):
        scrubber_html(**(given | change))


def test_a_choice_has_as_many_flagged_as_it_says():
    flagged = np.arange(1000) % 10 == 0
    at = mixed(flagged, 100, 20)
    assert len(set(at.tolist())) == 100
    assert flagged[at].sum() == 20
    assert flagged[mixed(flagged, 100, 2)].sum() == 10  # their share is more
    np.testing.assert_array_equal(at, np.sort(at))
    assert len(mixed(flagged[:30], 100, 50)) == 30


def order(tab):
    """Numbers of the digits as they stand, row by row."""
    return tab.evaluate(
        "[...document.querySelectorAll('.tile')].map((e, i) => {"
        "const m = new DOMMatrix(e.style.transform); return [m.f, m.e, i]; })"
        ".sort((a, b) => a[0] - b[0] || a[1] - b[1]).map(e => e[2])"
    )


def test_the_slider_sorts_by_keys(page, show):
    tab = show(page)
    assert order(tab) == list(range(N))[::-1]
    assert tab.locator(".tile.wrong").count() == 8
    assert tab.locator("output").inner_text() == "1 of 20"
    tab.locator("input[type=range]").focus()
    tab.keyboard.press("ArrowRight")
    assert order(tab) == np.argsort(-GAIN[1]).tolist()
    tab.keyboard.press("End")
    assert tab.locator("output").inner_text() == "20 of 20"
    assert order(tab) == list(range(N))
    said = tab.locator(".said").inner_text()
    assert "of the 8 digits with the highest loss gain, 8 have a wrong label" in said
    assert tab.locator("input").get_attribute("aria-valuetext") == "epoch 20"
    tab.locator("select").select_option(label="loss")
    assert order(tab) == list(range(N))[::-1]
    assert "highest loss, 0 have" in tab.locator(".said").inner_text()


def test_arrows_pick_a_digit_and_say_what_became_of_it(page, show):
    tab = show(page)
    tab.locator(".field").focus()
    tab.keyboard.press("ArrowRight")
    chosen = (
        "[...document.querySelectorAll('[aria-selected=true]')].map(e => e.id.split('-').pop())"
    )
    assert tab.evaluate(chosen) == [str(N - 1)]
    assert "number 1 of 40" in tab.locator(".one").inner_text()
    assert "loss gain by epoch: 1: 39.0, 5: " in tab.locator(".one").inner_text()
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate(chosen) == [str(N - 2)]
    tab.keyboard.press("End")
    assert tab.evaluate(chosen) == ["0"]
    assert "labeled 1, really 0" in tab.locator(".one").inner_text()
    tab.locator(".tile").nth(5).click(force=True)
    assert tab.evaluate(chosen) == ["5"]
    label = tab.locator(".tile").nth(5).get_attribute("aria-label")
    assert label == "labeled 6, really 5, loss gain 5.00"


def test_play_goes_on_and_stops_at_the_end(page, show):
    tab = show(page)
    tab.clock.install()
    tab.locator("button").click()
    assert tab.locator("button").inner_text() == "pause"
    tab.clock.run_for(1300)
    assert tab.locator("output").inner_text() == "5 of 20"
    tab.clock.run_for(3000)
    assert tab.locator("output").inner_text() == "20 of 20"
    assert tab.locator("button").inner_text() == "play"


@pytest.mark.parametrize(("theme", "dark"), [("light", False), ("dark", True)])
def test_it_follows_the_theme_and_fits_a_phone(page, show, theme, dark):
    tab = show(page, width=390, theme=f'data-theme="{theme}"')
    colour = tab.evaluate(
        "getComputedStyle(document.querySelector('.probe-scrub')).backgroundColor"
    )
    assert (colour == "rgb(20, 24, 30)") == dark
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
