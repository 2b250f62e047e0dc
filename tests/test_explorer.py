"""The explorer carries what it shows, needs nothing else, and works when clicked."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import probelib
from probebook.chapter import Chapter
from probebook.explorer import Digits, explorer_html, explorer_widget, gain_text


@pytest.fixture(scope="module")
def probe():
    rng = np.random.default_rng(0)
    n = 60
    images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
    given = rng.integers(0, 10, n)
    true = given.copy()
    true[:7] = (true[:7] + 1) % 10
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    data = (torch.from_numpy(images).float() / 255, torch.from_numpy(given))
    posterior = probelib.LocalPosterior(
        model, probelib.cross_entropy, data, n_beta=10, localization=30
    )
    trace = probelib.sample(
        posterior, sampler=probelib.SGLD(5e-3), chains=2, draws=20, progress=False
    )
    gain = probelib.loss_gain(trace).values
    digits = Digits(images, given, true, trace.init_loss.values, gain)
    return digits, probelib.loss_kernel(trace)


def payload(html):
    return json.loads(re.search(r'application/json">(.*?)</script>', html, re.S)[1])


def test_html_holds_the_ends_of_the_ranking_and_their_neighbours(probe):
    digits, kernel = probe
    data = payload(explorer_html(digits, kernel, extremes=5, others=10, neighbours=3))
    assert len(data["id"]) == 20
    order = np.argsort(digits.gain)
    assert set(order[:5]) | set(order[-5:]) <= set(data["id"])
    shown = np.array(data["id"])
    correlation = kernel.correlation(shown, shown)
    np.fill_diagonal(correlation, -2)
    for p, (near, r) in enumerate(zip(data["near"], data["r"], strict=True)):
        assert p not in near
        np.testing.assert_allclose(r, np.sort(correlation[p])[::-1][:3], atol=0.006)


def test_neighbours_that_may_be_chance_are_told_and_counted(probe, tmp_path):
    digits, kernel = probe
    chapter = Chapter("00_test", profile="smoke", results_dir=tmp_path)
    html = explorer_html(digits, kernel, extremes=5, others=10, neighbours=3, chapter=chapter)
    shown = np.array(payload(html)["id"])
    near = kernel.top_correlated(3, rows=shown, among=shown)
    np.testing.assert_array_equal(payload(html)["real"], near.q_value < 0.05)
    significant = int((near.q_value < 0.05).sum())
    assert chapter.numbers == {"neighbours_listed": 60, "neighbours_significant": significant}
    assert f"{significant} of the 60 neighbours" in html


def test_html_needs_nothing_from_outside(probe):
    html = explorer_html(*probe)
    assert not re.search(r"https?://|src=|@import|\bfetch\(", html)


def test_sprite_holds_the_images(probe):
    digits, kernel = probe
    html = explorer_html(digits, kernel, extremes=60, others=0)
    sheet = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^)]*)\)", html)[1])))
    pixels = np.asarray(sheet)
    for i in (0, 39, 40, 59):
        r, c = divmod(i, 40)
        tile = pixels[28 * r : 28 * r + 28, 28 * c : 28 * c + 28]
        np.testing.assert_array_equal(tile, digits.images[i])


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
    digits = Digits(None, np.array([4]), np.array([9]), np.array([0.0]), np.array([gain]))
    assert digits.caption(0) == f"4 (is 9): {text}"


def test_widget_browses_by_rank_and_class(probe, monkeypatch):
    digits, kernel = probe
    figures = []
    monkeypatch.setattr("IPython.display.display", figures.append)
    box = explorer_widget(digits, kernel, per_page=10)
    order, given, true, noise, page = box.children[0].children
    assert {true.layout.display, noise.layout.display} == {None}
    pick = box.children[2]
    assert pick.value == np.argmax(digits.gain)
    order.value = "easiest first"
    assert pick.value == np.argmin(digits.gain)
    given.value = 3
    assert digits.given[pick.value] == 3
    assert page.max == max(1, -(-int((digits.given == 3).sum()) // 10))
    pick.value = 5
    near = [ax for ax in figures[-1].get_axes() if ax.images]
    best = kernel.top_correlated(10, rows=np.array([5]))
    for ax, i in zip(near, [5, *best.index[0]], strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), digits.images[i])


def test_widget_tells_wrong_labels_from_right_ones(probe, monkeypatch):
    digits, kernel = probe
    figures = []
    monkeypatch.setattr("IPython.display.display", figures.append)
    box = explorer_widget(digits, kernel, per_page=100)
    *_, noise, _ = box.children[0].children
    pick = box.children[2]
    wrong = np.flatnonzero(digits.given != digits.true)
    right = np.flatnonzero(digits.given == digits.true)
    for choice, these in (("wrong only", wrong), ("right only", right)):
        figures.clear()
        noise.value = choice
        pages = [f for f in figures if len([ax for ax in f.get_axes() if ax.images]) == len(these)]
        assert pages
        assert pick.value == these[np.argmax(digits.gain[these])]


def test_widget_has_no_choice_of_labels_where_all_are_right(probe, monkeypatch):
    digits, kernel = probe
    monkeypatch.setattr("IPython.display.display", lambda _: None)
    clean = Digits(digits.images, digits.given, digits.given, digits.loss, digits.gain)
    _, _, true, noise, _ = explorer_widget(clean, kernel).children[0].children
    assert true.layout.display == noise.layout.display == "none"
