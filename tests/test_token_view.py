"""The view of tokens shows the trace's own numbers, and works by mouse, by keys, and unscripted."""

import html
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import probelib
from probebook.bpe import BytePairs
from probebook.language_data import IGNORED, Windows
from probebook.token_view import Passage, neighbours_on_page, passages_of, token_view

pytestmark = pytest.mark.usefixtures("one_thread")

N, T = 5, 8
EVIL = '</script><b title="x">evil</b> & more'


@pytest.fixture(scope="module")
def pieces():
    return BytePairs.train(["the cat and the dog. " * 3], 110)


@pytest.fixture(scope="module")
def windows(pieces):
    """Text with spaces, a tag and line feeds; the last is short, as a canary is."""
    ids = pieces.encode("the cat <b> & the\ndog. and so on and on " * 4)[: N * T + 1]
    inputs = torch.tensor([ids[row * T : row * T + T] for row in range(N)])
    targets = torch.tensor([ids[row * T + 1 : row * T + T + 1] for row in range(N)])
    targets[4] = IGNORED
    inputs[4, 5:] = pieces.encode("\n")[0]
    targets[4, 1:3] = inputs[4, 2:4]
    none = np.full(N, -1)
    texts = tuple(pieces.decode(row) for row in inputs.tolist())
    return Windows(inputs, targets, none, none, none, texts)


@pytest.fixture(scope="module")
def trace(windows, pieces):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(len(pieces), 4), nn.Linear(4, len(pieces)))
    posterior = probelib.LocalPosterior(
        model, probelib.sequence_cross_entropy, windows.data, n_beta=10.0, localization=20.0
    )
    return probelib.sample(posterior, sampler=probelib.SGLD(1e-3, batch_size=2), chains=4, draws=25,
                           observe_loss=probelib.token_cross_entropy, progress=False)  # fmt: skip


@pytest.fixture(scope="module")
def passages(trace, windows, pieces):
    return passages_of(trace, windows, pieces, [3, 0, 4], ["third", EVIL, "a canary"])


@pytest.fixture(scope="module")
def kernel(trace):
    return probelib.loss_kernel(trace)


@pytest.fixture(scope="module")
def near(kernel, passages):
    return neighbours_on_page(kernel, passages, 4)


@pytest.fixture(scope="module")
def page(passages, near):
    return token_view(passages, near, note="<note>")


# -- what it shows --------------------------------------------------------------------------------


def test_a_passage_is_its_window_with_the_traces_numbers(passages, trace, windows, kernel, pieces):
    gain = probelib.loss_gain(trace)
    for passage, row in zip(passages[:2], (3, 0), strict=True):
        whole = [*windows.inputs[row].tolist(), int(windows.targets[row, -1])]
        assert "".join(passage.tokens) == pieces.decode(whole)
        assert passage.place[0] == -1
        for at in range(T):
            assert passage.gain[at + 1] == gain.values[row, at]
            assert passage.error[at + 1] == gain.mcse.values[row, at]
            assert passage.loss[at + 1] == trace.init_loss.values[row, at]
            assert passage.place[at + 1] == kernel.find(row, at)


def test_what_does_not_count_has_no_number(passages, windows, kernel):
    canary = passages[2]
    np.testing.assert_array_equal(np.flatnonzero(canary.place >= 0), [2, 3])
    assert list(canary.place[2:4]) == [kernel.find(4, 1), kernel.find(4, 2)]
    assert np.isnan(canary.gain[[0, 1, 4]]).all()
    assert canary.tokens[-1] != "\n"  # the padding is not shown


def spans(page):
    body = page.split('<p class="said"')[0]
    return re.findall(r'<span class="(token[^"]*|none)"([^>]*)>(.*?)</span>', body, re.S)[3:]


def test_the_page_reads_without_its_script(page, passages):
    shown = "".join(html.unescape(text).replace("↵\n", "\n") for _, _, text in spans(page))
    assert shown == "".join("".join(passage.tokens) for passage in passages)
    count = sum(int((p.place >= 0).sum()) for p in passages)
    titles = re.findall(r'title="“(.*?)”: loss gain (\S+) ± (\S+) nats, loss (\S+) nats"', page)
    assert len(titles) == count == 2 * T + 2
    gains = [float(t[1].replace("−", "-")) for t in titles]
    expected = np.concatenate([p.gain[p.place >= 0] for p in passages])
    np.testing.assert_allclose(gains, expected, atol=0.0051)


def test_colours_follow_the_gains():
    gain = np.array([np.nan, 0.0, 1.0, -0.5, 100.0])
    place = np.array([-1, 0, 1, 2, 3])
    one = Passage("t", list("abcde"), gain, gain, gain, place)
    many = Passage("u", ["x"] * 300, np.full(300, 1.0), np.ones(300), np.ones(300),
                   np.arange(4, 304))  # fmt: skip
    found = [(kind, style) for kind, style, _ in spans(token_view([one, many]))][:5]
    assert [kind for kind, _ in found] == ["none", "token", "token", "token down", "token"]
    sizes = [int(re.search(r"--size: (\d)", style)[1]) for _, style in found[1:]]
    assert sizes == [0, 8, 4, 8]  # the scale ends at 1: one of 304 is beyond


def test_nothing_in_a_text_is_markup(page):
    assert EVIL not in page
    assert "&lt;/script&gt;&lt;b title=&quot;x&quot;&gt;evil" in page
    assert "<note>" not in page
    assert page.count("</script>") == 2
    assert "<b>" not in page
    assert not re.search(r"""(?:src|href)\s*=|url\(|https?:|@import""", page)


def test_neighbours_are_those_of_the_kernel(page, passages, near, kernel):
    data = json.loads(re.search(r'application/json">(.*?)</script>', page, re.S)[1])
    places = np.concatenate([p.place[p.place >= 0] for p in passages])
    best = kernel.top_correlated(4, rows=places, among=places)
    for i, row in enumerate(data["near"]):
        np.testing.assert_array_equal(places[[j for j, *_ in row]], best.index[i])
        np.testing.assert_allclose([float(r) for _, r, *_ in row], best.correlation[i], atol=0.0051)
    sure = int((near.q_value < 0.05).sum())
    assert f"{sure} of the {near.index.size} neighbours" in page
    assert data["spoken"][-1].endswith("(a canary)")


def test_the_same_token_after_the_same_text_is_no_finding(show):
    """Such pairs have R = 1 whatever the network; what differs before them counts."""
    gain, place = np.array([np.nan, 1.0, 1.0]), np.array([-1, 0, 1])
    one = Passage("a", ["x", "y", "z"], gain, gain, gain, place)
    other = replace(one, title="b", tokens=["x", "y", "w"], place=np.array([-1, 2, 3]))
    index = np.array([[2, 1], [3, 0], [0, 3], [1, 2]])
    near = probelib.Neighbours(index, np.full((4, 2), 0.5), np.full((4, 2), 0.01), np.arange(4))
    page = token_view([one, other], near)
    data = json.loads(re.search(r'application/json">(.*?)</script>', page, re.S)[1])
    assert [[s for *_, s in row] for row in data["near"]] == [[1, 0], [0, 0], [1, 0], [0, 0]]
    assert "6 of the 6 neighbours listed here" in page
    assert "2 more are the same token after the same text" in page
    tab = show(page)
    tab.locator(".text .token").first.click()
    first, second = tab.locator(".list button").all_inner_texts()
    assert first.endswith("R 0.50, the same token after the same text")
    assert second.endswith("R 0.50, q 0.01")
    assert tab.locator(".list .chance").count() == 1


# -- what is refused ------------------------------------------------------------------------------


def test_other_windows_and_neighbours_are_refused(trace, windows, pieces, passages, kernel, near):
    with pytest.raises(ValueError, match="trace observes other tokens"):
        passages_of(trace, windows[[1, 0, 2, 3, 4]], pieces, [0], ["x"])
    with pytest.raises(ValueError, match="titles has 1 entries for 2"):
        passages_of(trace, windows, pieces, [0, 1], ["x"])
    with pytest.raises(ValueError, match="near has other tokens"):
        token_view(passages[:2], near)
    with pytest.raises(ValueError, match="near has other tokens"):
        token_view(passages[::-1], near)
    with pytest.raises(ValueError, match="near has other tokens"):
        token_view(passages, kernel.top_correlated(4, rows=near.rows))
    with pytest.raises(ValueError, match="there twice"):
        token_view([passages[0], passages[0]])
    with pytest.raises(ValueError, match="passages is empty"):
        token_view([])
    with pytest.raises(ValueError, match="name is"):
        token_view(passages, name="1 2")


def test_passages_that_do_not_fit_are_refused(passages):
    with pytest.raises(ValueError, match="loss has shape"):
        replace(passages[0], loss=np.zeros(2))
    with pytest.raises(ValueError, match="gain is infinite in 'third'"):
        replace(passages[0], gain=np.where(passages[0].place == 0, 0, np.inf))
    with pytest.raises(ValueError, match="gain and place differ"):
        replace(passages[0], gain=np.full(T + 1, np.nan))
    nothing = replace(passages[0], gain=np.full(T + 1, np.nan), place=np.full(T + 1, -1))
    with pytest.raises(ValueError, match="no token of the passages counts"):
        token_view([nothing])


# -- in a browser ---------------------------------------------------------------------------------


FOCUS = (
    """(e => [...document.querySelectorAll('.text .token')].indexOf(e))(document.activeElement)"""
)


def test_keys_move_and_pick(page, near, show):
    tab = show(page)
    tab.keyboard.press("Tab")
    for key, at in (("ArrowRight", 1), ("ArrowDown", T), ("End", 2 * T - 1), ("ArrowRight", 2 * T),
                    ("ArrowRight", 2 * T + 1), ("ArrowRight", 2 * T + 1), ("ArrowUp", 2 * T - 1),
                    ("Home", T), ("ArrowUp", T - 1), ("ArrowLeft", T - 2)):  # fmt: skip
        tab.keyboard.press(key)
        assert tab.evaluate(FOCUS) == at
    assert tab.locator(".text .token[tabindex='0']").count() == 1
    tab.keyboard.press("Enter")
    picked = tab.locator(".text .token[aria-pressed=true]")
    assert picked.count() == 1
    assert tab.locator(".said").inner_text().startswith(picked.get_attribute("title"))
    assert tab.locator(".list button").count() == 4
    assert tab.locator(".text .near").count() == 4
    chance = int((~(near.q_value[T - 2] < 0.05)).sum())  # also where no q is known
    assert tab.locator(".list .chance").count() == chance
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")  # to the first of its neighbours
    first = np.flatnonzero(near.rows == near.index[T - 2, 0])[0]
    assert tab.evaluate(FOCUS) == first
    tab.keyboard.press("Escape")
    assert tab.locator(".text .token[aria-pressed=true]").count() == 0
    assert tab.locator(".list button").count() == 0


def test_the_mouse_picks_and_lets_go(page, show):
    tab = show(page)
    token = tab.locator(".text .token").nth(3)
    token.click()
    assert token.get_attribute("aria-pressed") == "true"
    token.click()
    assert token.get_attribute("aria-pressed") == "false"


LOW_CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = text => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(
      c => c <= 10 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = e => {
    for (; e; e = e.parentElement) {
      const c = rgba(getComputedStyle(e).backgroundColor);
      if (c[3] === 255) return c;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const e of document.querySelectorAll(".probe-tokens *")) {
    if (!e.checkVisibility() || ["STYLE", "SCRIPT"].includes(e.tagName)) continue;
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const [a, b] = [light(rgba(getComputedStyle(e).color)), light(ground(e))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.textContent.slice(0, 40)]);
  }
  return [found.length, found.filter(([r]) => r < 4.5)];
}"""


@pytest.mark.parametrize(
    ("theme", "body", "scheme", "ground"),
    [
        ('data-theme="light"', "", "dark", "rgb(255, 255, 255)"),
        ('data-theme="dark"', "", "light", "rgb(20, 24, 30)"),
        ("", 'data-jp-theme-light="false"', "light", "rgb(20, 24, 30)"),
        ("", "", "dark", "rgb(20, 24, 30)"),
    ],
)
def test_all_text_stands_out_in_both_modes(passages, near, show, theme, body, scheme, ground):
    """Also on the strongest colours of both sides."""
    strong = [replace(p, gain=np.where(p.place < 0, np.nan, (-1.0) ** p.place)) for p in passages]
    tab = show(token_view(strong, near, note="A note."), theme=theme, body=body, scheme=scheme)
    tab.locator(".text .token").nth(2).click()
    shown = "getComputedStyle(document.querySelector('.probe-tokens')).backgroundColor"
    assert tab.evaluate(shown) == ground
    grounds = tab.evaluate(
        "[...new Set([...document.querySelectorAll('.text .token')].map("
        "e => getComputedStyle(e).backgroundColor))]"
    )
    assert len(grounds) == 2
    assert ground not in grounds
    count, low = tab.evaluate(LOW_CONTRAST)
    assert count > 2 * T + 6
    assert low == []


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_no_wider_than_the_screen(passages, near, show, width):
    long = [replace(passages[0], title="x" * 300), *passages[1:]]
    tab = show(token_view(long, near), width=width)
    tab.locator(".text .token").nth(2).click()
    excess = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert tab.evaluate(excess) == 0


def test_two_views_on_a_page_keep_apart(passages, near, show):
    tab = show(token_view(passages, near) + token_view(passages, near, name="other"))
    tab.locator("#other .text .token").nth(3).click()
    assert tab.locator("#tokens [aria-pressed=true]").count() == 0
    assert tab.locator("#other .list button").count() == 4
