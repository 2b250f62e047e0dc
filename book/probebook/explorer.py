"""Browse samples by loss gain and walk the loss kernel: one page, live and in the rendered book."""

import base64
import hashlib
import html
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from probebook.chapter import Chapter
from probelib import Kernel, Neighbours

_PAGE = Path(__file__).parent / "data" / "explorer.html"
_AT_ONCE = 800  # samples whose neighbours one page lists: with more it weighs many megabytes
_ACROSS, _TILES = 32, 1024  # of a sheet of images: 32 tiles high, which every browser decodes
_CHANCE = 0.05  # a neighbour whose q-value is not below may be chance
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)


def gain_text(gain: float) -> str:
    """A loss gain (nats) as it is written beside a digit: short, and never as a power of ten."""
    size = abs(gain)
    if size >= 1:
        return f"{gain:.1f}"
    return f"{gain:#.2g}" if size >= 0.01 else "<0.01"


@dataclass(frozen=True, eq=False)
class Samples:
    """What there is to browse, one entry a sample; what is None is not shown.

    Attributes:
        label: the label the network was trained on, integers, shape (n,).
        images: uint8, grey of shape (n, s, s) or RGB of shape (n, 3, s, s); s a multiple of 16
            keeps photographs from bleeding into each other.
        ids: what a sample is looked up by, n of them, files without folders; default: 0 to n - 1.
        names: name of every label; default: the integer.
        true: the label of the original data set, integers, shape (n,).
        loss: l_i(w*), shape (n,), nats.
        gain: mu_i, shape (n,), nats.

    Raises:
        ValueError: if shapes, types, ids or names do not fit together.
    """

    label: np.ndarray
    images: np.ndarray | None = None
    ids: list[str] | None = None
    names: Mapping[int, str] | None = None
    true: np.ndarray | None = None
    loss: np.ndarray | None = None
    gain: np.ndarray | None = None

    def __post_init__(self) -> None:
        n = len(self.label)
        for name in ("label", "true", "loss", "gain"):
            values = getattr(self, name)
            if values is not None and np.shape(values) != (n,):
                raise ValueError(
                    f"{name} has shape {np.shape(values)}: give one value for each of the {n} "
                    f"labels, shape ({n},)."
                )
        for name in ("label", "true"):
            values = getattr(self, name)
            if values is not None and not np.issubdtype(np.asarray(values).dtype, np.integer):
                raise ValueError(
                    f"{name} is {np.asarray(values).dtype}: give an array of integers."
                )
            for value in set() if values is None or self.names is None else {*values.tolist()}:
                if value not in self.names:
                    raise ValueError(f"names has no {value}: give every label of {name} a name.")
        if self.ids is not None and len(self.ids) != n:
            raise ValueError(
                f"ids has {len(self.ids)} entries: give one for each of the {n} labels."
            )
        for i in self.ids or ():  # the page is published, the folders of a machine are not
            if "/" in i or "\\" in i:
                raise ValueError(f"ids has {i!r}: give the file name without its folder.")
        if self.images is not None:
            shape, kind = self.images.shape, self.images.dtype
            if kind != np.uint8 or shape[0] != n or shape[1:-2] not in ((), (3,)):
                raise ValueError(
                    f"images is {kind} of shape {shape}: give uint8 of shape ({n}, s, s) or "
                    f"({n}, 3, s, s)."
                )
            if shape[-1] != shape[-2]:
                raise ValueError(
                    f"images is of {shape[-2]} x {shape[-1]} pixels: crop them to squares."
                )

    def columns(self, at: np.ndarray) -> dict[str, list[str]]:
        """Id, label and numbers of the samples ``at``, as text, by the names of the CSV."""
        names = self.names or {}
        label = [names.get(v, str(v)) for v in np.asarray(self.label)[at].tolist()]
        columns = {"id": [str(i) if self.ids is None else self.ids[i] for i in at], "label": label}
        if self.true is not None:
            columns["true_label"] = [
                names.get(v, str(v)) for v in np.asarray(self.true)[at].tolist()
            ]
        for name in ("loss", "gain"):
            if (values := getattr(self, name)) is not None:
                columns[name] = [f"{v:.4g}" for v in np.asarray(values)[at]]
        return columns


def explorer(
    samples: Samples, kernel: Kernel, *, live: bool, seed: int = 0, chapter: Chapter | None = None
) -> object:
    """What to show in a cell: samples by loss gain, and the neighbours of each.

    Few samples are all on the page. Of many it has the hardest and the easiest, a quarter each,
    and as many at random, and neighbours are looked for among these; a running notebook can ask
    for any others.

    Args:
        samples: in the order of the trace, with gains.
        kernel: their loss kernel.
        live: whether a kernel stays to answer.
        seed: of the choice of samples for the page.
        chapter: where the page records how many neighbours it lists, and how many of them are more
            than chance (``neighbours_listed``, ``neighbours_significant``).

    Raises:
        ValueError: there are no gains.
    """
    from IPython.display import HTML

    if live and len(samples.label) > _AT_ONCE:
        return explorer_widget(samples, kernel)
    rows = spread(_gain(samples), seed=seed)
    near = kernel.top_correlated(min(10, len(rows) - 1), rows=rows, among=rows)
    if chapter is not None:
        significant = int((near.q_value < _CHANCE).sum())
        chapter.record(neighbours_listed=near.index.size, neighbours_significant=significant)
    return HTML(explorer_html(samples, near))


def _gain(samples: Samples) -> np.ndarray:
    if samples.gain is None:
        raise ValueError("samples has gain None: give one for each sample, they are ranked by it.")
    return samples.gain


def spread(gain: np.ndarray, count: int = _AT_ONCE, *, seed: int = 0) -> np.ndarray:
    """Positions of up to ``count`` samples: a quarter from each end of the ranking, half at random.

    Args:
        gain: what ranks them, shape (n,).
        count: how many.
        seed: of the random half.

    Returns:
        Positions, ascending, shape (min(count, n),).
    """
    order, end = np.argsort(gain), count // 4
    if len(order) <= count:
        return np.arange(len(order))
    middle = np.random.default_rng(seed).choice(order[end:-end], count - 2 * end, replace=False)
    return np.sort(np.r_[order[:end], middle, order[-end:]])


def explorer_widget(samples: Samples, kernel: Kernel, at_once: int = _AT_ONCE // 4) -> object:
    """The same page over any part of the samples, with all samples as candidates for neighbours.

    Widgets choose the part, and the running kernel fetches it: a page over all of MNIST would
    weigh tens of megabytes, and take all 60,000 x 60,000 correlations before it opens.

    Args:
        samples: in the order of the trace, with gains.
        kernel: their loss kernel.
        at_once: samples listed at once.

    Returns:
        An ``ipywidgets`` box.
    """
    import ipywidgets as w
    from IPython.display import HTML, display

    n, by_gain = len(samples.label), np.argsort(_gain(samples))[::-1]
    k = min(10, n - 1)
    ids = samples.columns(np.arange(n))["id"]
    rank = w.BoundedIntText(value=1, min=1, max=n, step=at_once, description="from rank")
    wanted = w.Text(placeholder="any sample's", description="or id", continuous_update=False)
    view = w.Output()

    def show(rows: np.ndarray, start: int | None = None) -> None:
        near = kernel.top_correlated(k, rows=rows)
        with view:
            view.clear_output(wait=True)
            display(HTML(explorer_html(samples, near, start=start)))

    def from_rank(_: object = None) -> None:
        show(by_gain[rank.value - 1 :][:at_once])

    def around(_: object) -> None:
        if wanted.value.strip() not in ids:
            with view:
                view.clear_output(wait=True)
                print(f"No sample has the id {wanted.value!r}.")
            return
        start = ids.index(wanted.value.strip())
        rows = np.array([start])
        for _step in range(2):  # its neighbours and theirs can be picked in turn
            rows = np.union1d(rows, kernel.top_correlated(k, rows=rows).index)
        show(rows, start)

    rank.observe(from_rank, "value")
    wanted.observe(around, "value")
    from_rank()
    return w.VBox([w.HBox([rank, wanted]), view])


def explorer_html(
    samples: Samples,
    near: Neighbours,
    *,
    wordnet: np.ndarray | None = None,
    note: str = "",
    name: str = "explorer",
    start: int | None = None,
) -> str:
    """Samples and their neighbours to browse, as HTML that needs neither a kernel nor a network.

    Neighbours that may be chance (q of 0.05 or more, or not known) are pale, and said to be. The
    view is part of the page's address, except in JupyterLab.

    Args:
        samples: all samples.
        near: the neighbours of those that are listed; where no q-value is known, none is shown.
        wordnet: similarity of each neighbour's class, shape (rows, k), NaN where there is none.
        note: a sentence above it, plain text.
        name: id of the element and of its part of the address, its own on a page.
        start: position of the sample that is picked first; default: the first of the list.

    Returns:
        HTML with the images, numbers, style and script inline.

    Raises:
        ValueError: if neighbours do not fit the samples, or ``name`` cannot be an id.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise ValueError(f"name is {name!r}: give letters, digits, - and _ only, a letter first.")
    pairs = _pairs(samples, near, wordnet)
    n, rows = len(samples.label), np.asarray(near.rows)
    shown = np.r_[rows, np.setdiff1d(near.index, rows)]
    position = np.zeros(n, int)
    position[shown] = np.arange(len(shown))
    sheets = {} if samples.images is None else sheets_of(samples.images[shown])
    side = 0 if samples.images is None else samples.images.shape[-1]
    size = side * max(1, 64 // max(1, side))
    data = {
        "columns": samples.columns(shown),
        "kind": np.asarray(samples.label)[shown].tolist(),
        "near": position[near.index].tolist(),
        "pairs": pairs,
        "n": n,
        "start": -1 if start is None else int(position[start]),
        **{"sheets": list(sheets), "across": _ACROSS, "tiles": _TILES, "size": size},
    }
    if samples.true is not None:
        data["wrong"] = (np.asarray(samples.label) != samples.true)[shown].tolist()
    if samples.gain is not None:
        data["rank"] = np.argsort(np.argsort(samples.gain))[shown].tolist()
    data["token"] = "labels-" + _digest(json.dumps(data).encode())
    real, listed = int((near.q_value < _CHANCE).sum()), near.index.size
    parts = {
        "name": name,
        "note": f"<p>{html.escape(note)}</p>" if note else "",
        "found": f"{real:,} of the {listed:,} neighbours listed here are more than chance "
        f"(q &lt; {_CHANCE}); the others are pale."
        if "q_value" in pairs
        else "",
        "data": to_json(data),
        "sheets": "\n".join(
            f".{key} {{ background-image: url({s}); }}" for key, s in sheets.items()
        ),
        "size": str(size),
        "width": str(max(size + 14, 96 if samples.names else 0) if sheets else 128),
        "sheet": str(_ACROSS * size),
        "scaled": "pixelated" if size > side else "auto",
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], _PAGE.read_text(encoding="utf-8"))


def neighbours_csv(samples: Samples, near: Neighbours, wordnet: np.ndarray | None = None) -> bytes:
    """The neighbours as CSV, a line a pair, UTF-8: what the page downloads, sample by sample.

    ``rank`` counts from 1, ``same_label`` is 0 or 1, numbers that are not known are empty. A cell
    that a spreadsheet would take for a formula begins with a single quote.

    Args:
        samples, near, wordnet: see :func:`explorer_html`.

    Raises:
        ValueError: if neighbours do not fit the samples.
    """
    pairs, own = _pairs(samples, near, wordnet), samples.columns(np.arange(len(samples.label)))
    lines = [[*own, "rank", "neighbour_id", "neighbour_label", "same_label", *pairs]]
    for row, i in enumerate(near.rows):
        for k, j in enumerate(near.index[row]):
            same = int(samples.label[i] == samples.label[j])
            neighbour = [str(k + 1), own["id"][j], own["label"][j], str(same)]
            numbers = [column[row][k] for column in pairs.values()]
            lines.append([*(column[i] for column in own.values()), *neighbour, *numbers])
    return "".join(",".join(map(_cell, line)) + "\n" for line in lines).encode()


def _cell(text: str) -> str:
    """One cell of a CSV file: never a formula, quoted where it must be."""
    if text.startswith(("=", "+", "-", "@", "\t", "\r")) and not _NUMBER.fullmatch(text):
        text = "'" + text
    return '"' + text.replace('"', '""') + '"' if re.search('[",\r\n]', text) else text


def _pairs(
    samples: Samples, near: Neighbours, wordnet: np.ndarray | None
) -> dict[str, list[list[str]]]:
    """The numbers of each neighbour as text, once they are known to fit; "" for NaN."""
    n, index = len(samples.label), np.asarray(near.index)
    if index.ndim != 2 or len(index) != len(near.rows):
        raise ValueError(
            f"near.index has shape {index.shape}: give one row of neighbours for each of the "
            f"{len(near.rows)} rows, shape ({len(near.rows)}, k)."
        )
    if not np.issubdtype(index.dtype, np.integer):
        raise ValueError(f"near.index is {index.dtype}: give an array of integers.")
    every = np.r_[index.ravel(), near.rows]
    if len(outside := every[(every < 0) | (every >= n)]):
        raise ValueError(f"near has the position {outside[0]}: give positions from 0 to {n - 1}.")
    numbers = {"correlation": near.correlation, "q_value": near.q_value}
    for name, values in (numbers | {"wordnet": wordnet}).items():
        if values is not None and np.shape(values) != index.shape:
            raise ValueError(
                f"{name} has shape {np.shape(values)}: give one value for each neighbour, shape "
                f"{index.shape}."
            )
    if not np.isfinite(near.correlation).all():
        raise ValueError(
            "correlation has a value that is not finite: leave out samples whose loss does not "
            "vary."
        )
    pairs = {"correlation": _texts(near.correlation, ".3f")}
    if not np.isnan(near.q_value).all():
        pairs["q_value"] = _texts(near.q_value, ".2g")
    if wordnet is not None:
        pairs["wordnet_similarity"] = _texts(wordnet, ".3f")
    return pairs


def _texts(values: np.ndarray, digits: str) -> list[list[str]]:
    return [["" if np.isnan(v) else format(v, digits) for v in row] for row in values]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:10]


def to_json(data: dict) -> str:
    """JSON in which no name can end the script element, or a line of it."""
    text = json.dumps(data, separators=(",", ":"))  # ASCII, so U+2028 and U+2029 are escaped
    return re.sub("[<>&]", lambda m: f"\\u{ord(m[0]):04x}", text)


def sheets_of(images: np.ndarray) -> dict[str, str]:
    """Sheets of up to ``_TILES`` images, ``_ACROSS`` a row, as data URLs by a class name.

    The name comes from the content: pages of two notebooks may stand in one JupyterLab.
    """
    sheets, size, grey = {}, images.shape[-1], images.ndim == 3
    images = images[:, None] if grey else images
    for start in range(0, len(images), _TILES):
        part = images[start : start + _TILES]
        rows = -(-len(part) // _ACROSS)
        sheet = np.zeros((rows * _ACROSS, *part.shape[1:]), np.uint8)
        sheet[: len(part)] = part
        sheet = sheet.reshape(rows, _ACROSS, -1, size, size).transpose(0, 3, 1, 4, 2)
        sheet = sheet.reshape(rows * size, _ACROSS * size, -1)
        picture, file = Image.fromarray(sheet[..., 0] if grey else sheet), io.BytesIO()
        kind = "PNG" if grey else "JPEG"
        picture.save(file, format=kind, optimize=True, **({} if grey else {"quality": 70}))
        content = file.getvalue()
        url = f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"
        sheets["sheet-" + _digest(content)] = url
    return sheets


__all__ = [
    "Samples",
    "explorer",
    "explorer_html",
    "explorer_widget",
    "gain_text",
    "neighbours_csv",
    "sheets_of",
    "spread",
    "to_json",
]
