"""Text in which every token is coloured by its loss gain: HTML without a kernel or a network."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xarray as xr

import probelib
from probebook.bpe import BytePairs
from probebook.language_data import IGNORED, Windows
from probebook.memorized import require_windows
from probelib import Kernel, Neighbours

__all__ = ["Passage", "neighbours_on_page", "passages_of", "token_view"]

_PAGE = Path(__file__).parent / "data" / "tokens.html"
_STEPS = 8  # of colour, from none to full
_CHANCE = 0.05  # a neighbour whose q-value is not below may be chance


@dataclass(frozen=True, eq=False)
class Passage:
    """One text of the view, token by token.

    Attributes:
        title: what stands above it, plain text.
        tokens: m strings, which make up the text.
        gain: loss gain of each, shape (m,), nats; NaN where a token counts for no loss.
        error: its standard error, shape (m,), nats.
        loss: l(w*) of each, shape (m,), nats.
        place: of each its position in the kernel of tokens, integers, shape (m,); -1 where none.

    Raises:
        ValueError: shapes do not fit, or a gain is infinite.
    """

    title: str
    tokens: Sequence[str]
    gain: np.ndarray
    error: np.ndarray
    loss: np.ndarray
    place: np.ndarray

    def __post_init__(self) -> None:
        m = len(self.tokens)
        for name in ("gain", "error", "loss", "place"):
            if np.shape(getattr(self, name)) != (m,):
                raise ValueError(
                    f"{name} has shape {np.shape(getattr(self, name))} for {m} tokens; give one "
                    "for each"
                )
        if np.isinf(self.gain).any():
            raise ValueError(f"gain is infinite in {self.title!r}; it has diverged")
        if not np.array_equal(np.isnan(self.gain), np.asarray(self.place) < 0):
            raise ValueError(
                f"gain and place differ in {self.title!r} on which tokens count; a token has both "
                "or none (NaN and -1)"
            )


def passages_of(
    trace: xr.Dataset,
    windows: Windows,
    pieces: BytePairs,
    rows: Sequence[int],
    titles: Sequence[str],
) -> list[Passage]:
    """Some of the windows that a trace observes, with all that the view shows of them.

    The first token is what is read at the start, and counts for nothing; each later one is what
    was to be said after those before it.

    Args:
        trace: of ``probelib.sample(..., observe=windows.data, observe_loss=token_cross_entropy)``.
        windows: what was observed.
        pieces: of the vocabulary.
        rows: positions of the wanted windows.
        titles: of each.

    Raises:
        ValueError: the trace observes other tokens, or there are not as many titles as rows.
    """
    if len(titles) != len(rows):
        raise ValueError(f"titles has {len(titles)} entries for {len(rows)} rows; give one each")
    if "token_id" not in trace.coords:
        raise ValueError("trace has no tokens; sample with observe_loss=token_cross_entropy")
    require_windows(trace, windows)
    wanted = windows.targets.numpy()
    gain = probelib.loss_gain(trace)
    counted = wanted != IGNORED
    if not np.array_equal(counted, trace.init_loss.notnull().values):
        raise ValueError("trace has losses at other positions than windows has targets")
    place = np.full(wanted.shape, -1)
    place[counted] = np.arange(counted.sum())  # sample after sample, as in the kernel
    passages = []
    for row, title in zip(rows, titles, strict=True):
        ids = windows.inputs[row].tolist()
        last = ids[-1:] if not counted[row, -1] else [int(wanted[row, -1])]
        said = [*ids[1:], *last]
        keep = len(said) - (not counted[row, -1])  # an unknown last one is not shown
        first = (np.nan, np.nan, np.nan, -1)
        columns = (gain.values[row], gain.mcse.values[row], trace.init_loss.values[row], place[row])
        filled = [np.r_[f, c[:keep]] for f, c in zip(first, columns, strict=True)]
        texts = [pieces.decode([i]) for i in (ids[0], *said[:keep])]
        passages.append(Passage(title, texts, *filled[:3], filled[3].astype(int)))
    return [_without_padding(passage) for passage in passages]


def _without_padding(passage: Passage) -> Passage:
    """It without the line feeds at its end that count for nothing, less one."""
    end = len(passage.tokens)
    while end > 1 and passage.place[end - 1] < 0 and passage.tokens[end - 1] == "\n":
        end -= 1
    return replace(
        passage,
        tokens=list(passage.tokens[:end]),
        **{name: getattr(passage, name)[:end] for name in ("gain", "error", "loss", "place")},
    )


def neighbours_on_page(kernel: Kernel, passages: Sequence[Passage], k: int = 5) -> Neighbours:
    """The k tokens of the page most correlated with each of its tokens, with q-values.

    Args:
        kernel: of tokens, of the trace that the passages come from.
        passages: of :func:`passages_of`.
        k: how many.
    """
    places = _places(passages)
    return kernel.top_correlated(k, rows=places, among=places)


def token_view(
    passages: Sequence[Passage],
    near: Neighbours | None = None,
    *,
    note: str = "",
    name: str = "tokens",
) -> str:
    """Passages to read, each token coloured by its gain; a picked one shows what moves with it.

    It reads without its script, too: colours and, on hovering, numbers. With it, arrow keys move,
    Enter picks, Escape lets go. The scale ends at the 98th percentile of all gains' size.

    Args:
        passages: at least one, with a token that counts.
        near: of :func:`neighbours_on_page`; None shows none.
        note: a sentence above it, plain text.
        name: id of the element, its own on a page.

    Returns:
        HTML with numbers, style and script inline.

    Raises:
        ValueError: no token counts, neighbours are not of just these tokens, or ``name`` cannot be
            an id.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise ValueError(f"name is {name!r}: give letters, digits, - and _ only, a letter first.")
    places = _places(passages)
    gains = np.concatenate([p.gain[p.place >= 0] for p in passages])
    limit = float(np.quantile(np.abs(gains), 0.98)) or 1.0
    data: dict[str, object] = {"near": None}
    found = ""
    if near is not None:
        same = _same_text(near, places, passages)
        data = {"near": _near(near, places, same), "spoken": _spoken(passages)}
        sure = int(((near.q_value < _CHANCE) & ~same).sum())
        if not np.isnan(near.q_value).all():
            found = (f"{sure:,} of the {(~same).sum():,} neighbours listed here are more than "
                     f"chance (q &lt; {_CHANCE}); the others are pale.")  # fmt: skip
        if same.any():
            found += f" {same.sum():,} more are the same token after the same text."
    parts = {
        "name": name,
        "note": f"<p>{html.escape(note)}</p>" if note else "",
        "limit": f"{limit:.2g}",
        "found": found,
        "passages": "\n".join(_passage(passage, limit) for passage in passages),
        "data": _json(data),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], _PAGE.read_text(encoding="utf-8"))


def _places(passages: Sequence[Passage]) -> np.ndarray:
    """Positions in the kernel of the tokens that count, in the order of the page."""
    if not passages:
        raise ValueError("passages is empty; give at least one")
    places = np.concatenate([np.asarray(p.place)[np.asarray(p.place) >= 0] for p in passages])
    if not len(places):
        raise ValueError("no token of the passages counts; give some with a gain")
    if len(np.unique(places)) < len(places):
        raise ValueError("a token is there twice; give each passage once")
    return places


def _passage(passage: Passage, limit: float) -> str:
    spans = []
    for i, token in enumerate(passage.tokens):
        text = html.escape(token.replace("\n", "↵\n"))
        gain = float(passage.gain[i])
        if np.isnan(gain):
            spans.append(f'<span class="none">{text}</span>')
            continue
        size = min(_STEPS, round(_STEPS * abs(gain) / limit))
        error, loss = _number(float(passage.error[i])), _number(float(passage.loss[i]))
        spoken = html.escape(
            f"{_shown(token)}: loss gain {_number(gain)} ± {error} nats, loss {loss} nats"
        )
        side = " down" if gain < 0 else ""
        spans.append(
            f'<span class="token{side}" style="--size: {size}" title="{spoken}">{text}</span>'
        )
    title = html.escape(passage.title)
    return f'<p class="title">{title}</p>\n<p class="text">{"".join(spans)}</p>'


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "−") if np.isfinite(value) else "not known"


def _shown(token: str) -> str:
    """A token in quotation marks, with its spaces to be seen."""
    return f"“{token.replace(chr(10), '↵').replace(' ', '␣')}”"


def _spoken(passages: Sequence[Passage]) -> list[str]:
    """What each token that counts is called in a list: itself and the title of its passage."""
    return [
        f"{_shown(token)} ({passage.title})"
        for passage in passages
        for token, place in zip(passage.tokens, passage.place, strict=True)
        if place >= 0
    ]


def _on_page(near: Neighbours, places: np.ndarray) -> np.ndarray:
    """Of each neighbour its place among the tokens of the page, shape (rows, k)."""
    if not np.array_equal(near.rows, places) or not np.isin(near.index, places).all():
        raise ValueError(
            "near has other tokens than the passages; make it with neighbours_on_page(kernel, "
            "passages)"
        )
    if not np.isfinite(near.correlation).all():
        raise ValueError("near has a correlation that is not finite")
    order = np.argsort(places)
    return order[np.searchsorted(places[order], near.index)]


def _same_text(near: Neighbours, places: np.ndarray, passages: Sequence[Passage]) -> np.ndarray:
    """Which neighbours are the same token after the same text, so that R is 1 and says nothing."""
    known: dict[tuple[str, ...], int] = {}
    texts = np.array(
        [
            known.setdefault(tuple(passage.tokens[: i + 1]), len(known))
            for passage in passages
            for i in np.flatnonzero(np.asarray(passage.place) >= 0)
        ]
    )
    return texts[_on_page(near, places)] == texts[:, None]


def _near(near: Neighbours, places: np.ndarray, same: np.ndarray) -> list[list[list[object]]]:
    """Of each token the neighbours: place on the page, R and q as text, and whether it is one."""
    return [
        [
            [int(j), f"{r:.2f}", "" if np.isnan(q) else f"{q:.2g}", int(s)]
            for j, r, q, s in zip(*row, strict=True)
        ]
        for row in zip(_on_page(near, places), near.correlation, near.q_value, same, strict=True)
    ]


def _json(data: dict) -> str:
    """JSON in which no text can end the script element, or a line of it."""
    text = json.dumps(data, separators=(",", ":"))  # ASCII, so U+2028 and U+2029 are escaped
    return re.sub("[<>&]", lambda m: f"\\u{ord(m[0]):04x}", text)
