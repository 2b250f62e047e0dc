"""Photographs and their most correlated neighbours: a table, its CSV, and a page to browse it."""

import base64
import csv
import html
import io
import json
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image

_SPRITE_COLUMNS = 32
_SHEET_TILES = 1024  # a sheet is at most 32 tiles high, which every browser decodes


@dataclass(frozen=True, eq=False)
class NeighbourTable:
    """The k most correlated neighbours of each of n images.

    Attributes:
        names: class name of every image, n of them; one name a label.
        labels: class of every image, integers, shape (n,).
        index: neighbours of every image, best first, shape (n, k).
        correlation: their R, shape (n, k).
        files: file name of every image, n of them, without folders.
        similarity: WordNet similarity of every neighbour's class, shape (n, k), NaN where there
            is none; or None.
        q_value: of every neighbour, shape (n, k), NaN where none is known; or None. What is not
            below 0.05 may be chance: it is shown pale, and said.

    Raises:
        ValueError: if shapes, neighbours, numbers, class names or file names do not fit together.
    """

    names: list[str]
    labels: np.ndarray
    index: np.ndarray
    correlation: np.ndarray
    files: list[str]
    similarity: np.ndarray | None = None
    q_value: np.ndarray | None = None

    def __post_init__(self) -> None:
        n = len(self.names)
        if np.shape(self.labels) != (n,):
            raise ValueError(
                f"labels has shape {np.shape(self.labels)}: give one label for each of the "
                f"{n} names, shape ({n},)."
            )
        if np.ndim(self.index) != 2 or len(self.index) != n:
            raise ValueError(
                f"index has shape {np.shape(self.index)}: give one row of neighbours for each of "
                f"the {n} names, shape ({n}, k)."
            )
        for name in ("correlation", "similarity", "q_value"):
            values = getattr(self, name)
            if values is not None and np.shape(values) != np.shape(self.index):
                raise ValueError(
                    f"{name} has shape {np.shape(values)}: give one value for each neighbour, "
                    f"shape {np.shape(self.index)}."
                )
        if len(self.files) != n:
            raise ValueError(
                f"files has {len(self.files)} entries: give one file name for each of the "
                f"{n} names."
            )
        for name, values in (("labels", self.labels), ("index", self.index)):
            if not np.issubdtype(np.asarray(values).dtype, np.integer):
                raise ValueError(
                    f"{name} is {np.asarray(values).dtype}: give an array of integers."
                )
        outside = np.asarray(self.index)[(self.index < 0) | (self.index >= n)]
        if len(outside):
            raise ValueError(
                f"index has the neighbour {outside[0]}: give positions from 0 to {n - 1}."
            )
        if not np.isfinite(self.correlation).all():
            raise ValueError(
                "correlation has a value that is not finite: leave out images whose loss does not "
                "vary."
            )
        for file in self.files:  # the table is published, the folders of a machine are not
            if "/" in file or "\\" in file:
                raise ValueError(f"files has {file!r}: give the file name without its folder.")
        of_label: dict[int, str] = {}
        for label, name in zip(np.asarray(self.labels).tolist(), self.names, strict=True):
            if of_label.setdefault(label, name) != name:
                raise ValueError(
                    f"names has {of_label[label]!r} and {name!r} for label {label}: give every "
                    "label one name."
                )

    def same_label(self) -> np.ndarray:
        """Whether a neighbour has the label of its reference: bool, shape (n, k)."""
        return np.asarray(self.labels)[self.index] == np.asarray(self.labels)[:, None]

    def to_csv(self) -> bytes:
        """The table as CSV, a line a pair: n * k lines below the header, UTF-8.

        ``rank`` counts from 1, ``same_label`` is 0 or 1, ``wordnet_similarity`` is empty where
        there is none. With q-values there is a last column ``q_value``, empty where none is known.
        """
        same = self.same_label()
        text = io.StringIO(newline="")
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(
            ["file", "class", "rank", "neighbour_file", "neighbour_class", "correlation",
             "same_label", "wordnet_similarity", *(["q_value"] * (self.q_value is not None))]
        )  # fmt: skip
        for i, near in enumerate(np.asarray(self.index).tolist()):
            for rank, j in enumerate(near):
                alike = np.nan if self.similarity is None else self.similarity[i, rank]
                rows.writerow(
                    [self.files[i], self.names[i], rank + 1, self.files[j], self.names[j],
                     f"{self.correlation[i, rank]:.3f}", int(same[i, rank]),
                     "" if np.isnan(alike) else f"{alike:.3f}",
                     *([] if self.q_value is None else [_shown(self.q_value[i, rank])])]
                )  # fmt: skip
        return text.getvalue().encode()


def _shown(q: float) -> str:
    return "" if np.isnan(q) else f"{q:.2g}"


def neighbours_html(
    table: NeighbourTable,
    thumbnails: np.ndarray | None,
    *,
    note: str = "",
    name: str = "neighbours",
) -> str:
    """The table to browse, as one piece of HTML that needs neither a kernel nor a network.

    Args:
        table: the images and their neighbours.
        thumbnails: uint8, shape (n, 3, s, s), RGB; s a multiple of 16 keeps the tiles of a JPEG
            from bleeding into each other. None shows names only.
        note: a sentence above the table, plain text.
        name: id of the element, its own on a page.

    Returns:
        HTML with the images, numbers, style and script inline.

    Raises:
        ValueError: if ``thumbnails`` has another shape or type, or ``name`` cannot be an id.
    """
    n = len(table.names)
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise ValueError(f"name is {name!r}: give letters, digits, - and _ only, a letter first.")
    if thumbnails is not None:
        shape = thumbnails.shape
        if thumbnails.dtype != np.uint8 or len(shape) != 4 or shape[:2] != (n, 3):
            raise ValueError(
                f"thumbnails is {thumbnails.dtype} of shape {shape}: give uint8 of shape "
                f"({n}, 3, s, s), one for each image of the table."
            )
        if shape[2] != shape[3]:
            raise ValueError(
                f"thumbnails has tiles of {shape[2]} x {shape[3]} pixels: crop them to squares."
            )
    sheets = [] if thumbnails is None else _sheets(thumbnails)
    _, first, kind = np.unique(table.labels, return_index=True, return_inverse=True)
    data = {
        "names": [table.names[i] for i in first],
        "kind": kind.tolist(),  # position of each image's class in names
        "files": table.files,
        "near": np.asarray(table.index).tolist(),
        "r": [[round(v, 2) for v in row] for row in np.asarray(table.correlation).tolist()],
        "alike": None
        if table.similarity is None
        else [
            [None if np.isnan(v) else round(v, 2) for v in row]
            for row in np.asarray(table.similarity).tolist()
        ],
        "q": None
        if table.q_value is None
        else [[_shown(v) for v in row] for row in np.asarray(table.q_value).tolist()],
        "columns": _SPRITE_COLUMNS,
        "tiles": _SHEET_TILES,
        "pictures": bool(sheets),
    }
    text = json.dumps(data, separators=(",", ":"))
    for character in "<>&":  # a class name must not end the script element
        text = text.replace(character, f"\\u{ord(character):04x}")
    return _PAGE.format(
        name=name,
        note=f'<p class="note">{html.escape(note)}</p>' if note else "",
        data=text,
        sheets="\n".join(
            f"#{name} .sheet{i} {{ background-image: url(data:image/jpeg;base64,{sheet}); }}"
            for i, sheet in enumerate(sheets)
        ),
    )


def _sheets(images: np.ndarray) -> list[str]:
    """All images in JPEGs of up to ``_SHEET_TILES``, ``_SPRITE_COLUMNS`` a row, as base64."""
    sheets = []
    size = images.shape[-1]
    for start in range(0, len(images), _SHEET_TILES):
        part = images[start : start + _SHEET_TILES]
        rows = -(-len(part) // _SPRITE_COLUMNS)
        sheet = np.zeros((rows * _SPRITE_COLUMNS, 3, size, size), np.uint8)
        sheet[: len(part)] = part
        sheet = sheet.reshape(rows, _SPRITE_COLUMNS, 3, size, size).transpose(0, 3, 1, 4, 2)
        file = io.BytesIO()
        Image.fromarray(sheet.reshape(rows * size, _SPRITE_COLUMNS * size, 3)).save(
            file, format="JPEG", quality=70, optimize=True
        )
        sheets.append(base64.b64encode(file.getvalue()).decode())
    return sheets


_PAGE = """
<div class="probe-neighbours" id="{name}">
<style>
.probe-neighbours {{ --same: #0072B2; --cross: #D55E00; font-size: 0.9em; line-height: 1.35; }}
html[data-theme=dark] .probe-neighbours {{ --same: #56B4E9; --cross: #E69F00; }}
.probe-neighbours .controls {{ display: flex; flex-wrap: wrap; align-items: center;
  gap: 0.4em 1em; margin: 0.5em 0; }}
.probe-neighbours .controls label {{ max-width: 100%; margin: 0; }}
.probe-neighbours .controls input, .probe-neighbours .controls select,
.probe-neighbours .controls button {{ font: inherit; color: inherit; background: transparent;
  border: 1px solid currentColor; border-radius: 3px; padding: 0.15em 0.5em; max-width: 100%; }}
.probe-neighbours option {{ color: #14181e; background: #fff; }}
.probe-neighbours input::placeholder {{ color: inherit; opacity: 0.7; }}
.probe-neighbours .controls button {{ cursor: pointer; }}
.probe-neighbours .controls button:disabled {{ opacity: 0.4; cursor: default; }}
.probe-neighbours [hidden] {{ display: none !important; }}
.probe-neighbours .legend {{ display: flex; flex-wrap: wrap; align-items: center;
  gap: 0.3em 1.2em; margin: 0.5em 0; }}
.probe-neighbours .key {{ display: inline-block; width: 1.3em; height: 1.1em; margin-right: 0.4em;
  border-radius: 3px; vertical-align: text-bottom; }}
.probe-neighbours .row {{ display: flex; gap: 12px; margin: 0; padding: 8px 0;
  border-top: 1px solid rgba(128, 128, 128, 0.45); }}
.probe-neighbours .row:focus {{ outline: none; }}
.probe-neighbours .row:focus-visible {{ outline: 2px solid var(--same); outline-offset: 2px; }}
.probe-neighbours .reference {{ flex: none; width: 86px; font-weight: bold; font-size: 0.75em; }}
.probe-neighbours .reference .picture {{ width: 72px; height: 72px; border: 3px solid currentColor;
  border-radius: 3px; }}
.probe-neighbours .near {{ display: flex; flex-wrap: wrap; gap: 6px; min-width: 0; flex: 1;
  padding: 3px; }}
.probe-neighbours .cell {{ flex: none; width: 76px; }}
.probe-neighbours .cell button {{ display: block; width: 100%; margin: 0; padding: 3px;
  font: inherit; font-size: 0.8em; line-height: 1.3; text-align: left; color: inherit;
  position: relative; background: transparent; border-radius: 4px; cursor: pointer; }}
.probe-neighbours .same {{ border: 3px solid var(--same); }}
.probe-neighbours .cross {{ border: 3px dashed var(--cross); }}
.probe-neighbours .chance .picture {{ opacity: 0.45; }}
.probe-neighbours button:focus-visible, .probe-neighbours input:focus-visible,
.probe-neighbours select:focus-visible {{ outline: 3px solid #CC79A7; outline-offset: 1px; }}
.probe-neighbours .picture {{ display: block; width: 64px; height: 64px; background-color: #888;
  background-repeat: no-repeat; background-origin: content-box; box-sizing: content-box; }}
.probe-neighbours .words {{ display: block; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }}
.probe-neighbours .reference .words {{ display: -webkit-box; -webkit-box-orient: vertical;
  -webkit-line-clamp: 3; white-space: normal; overflow-wrap: anywhere; margin-top: 3px; }}
.probe-neighbours .numbers {{ display: flex; justify-content: space-between;
  white-space: nowrap; font-variant-numeric: tabular-nums; }}
.probe-neighbours .tag {{ color: #fff; background: #0072B2; border-radius: 3px; padding: 0 0.3em;
  font-weight: bold; }}
.probe-neighbours .picture + .numbers .tag {{ position: absolute; top: 50px; right: 3px; }}
.probe-neighbours.bare .reference {{ width: 120px; }}
.probe-neighbours.bare .cell {{ width: 128px; }}
@media (max-width: 720px) {{
  .probe-neighbours .near {{ flex-wrap: nowrap; overflow-x: auto; }}
  .probe-neighbours.bare .reference {{ width: 90px; }}
}}
{sheets}
</style>
{note}
<div class="controls">
<label>class <input type="search" class="wanted" list="{name}-classes" autocomplete="off"
placeholder="part of a name" aria-label="class name contains"></label>
<datalist id="{name}-classes"></datalist>
<label>show <select class="which" aria-label="which images"><option value="all">all</option>
<option value="same">with a same-label neighbour</option>
<option value="cross">cross-label only</option></select></label>
<span><button type="button" class="back" aria-label="previous page">◀</button>
<span class="count" aria-live="polite"></span>
<button type="button" class="on" aria-label="next page">▶</button></span>
<button type="button" class="whole" hidden>show all again</button>
</div>
<div class="legend"><span><span class="key same"></span>solid, “same”: same label as the
reference</span><span><span class="key cross"></span>dashed: another label</span>
<span>R: correlation; click a neighbour to see its own</span></div>
<div class="list"></div>
<div class="controls"><span><button type="button" class="back" aria-label="previous page, from the
first row">◀</button> <button type="button" class="on" aria-label="next page, from the first row"
>▶</button></span></div>
<noscript>This table is put together by a script: turn on JavaScript to browse it.</noscript>
<script type="application/json">{data}</script>
<script>
(function () {{
  const root = document.getElementById("{name}");
  const d = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const per = 8;
  const $ = c => root.querySelector("." + c);
  const every = c => root.querySelectorAll("." + c);
  const first = () => {{ const r = $("row"); if (r) r.focus(); }};
  const all = d.kind.map((_, i) => i);
  const label = i => d.names[d.kind[i]];
  const same = (i, j) => d.kind[i] === d.kind[j];
  const number = v => v.toFixed(2).replace("-", "\u2212");
  let page = 0, only = -1;
  root.classList.toggle("bare", !d.pictures);
  root.querySelector("datalist").replaceChildren(...[...new Set(d.names)].sort().map(text => {{
    const o = document.createElement("option");
    o.value = text;
    return o;
  }}));
  function make(tag, kind, text) {{
    const e = document.createElement(tag);
    e.className = kind;
    if (text !== undefined) e.textContent = text;
    return e;
  }}
  function picture(i, size, spoken) {{
    const p = make("span", "picture sheet" + Math.floor(i / d.tiles)), t = i % d.tiles;
    p.style.backgroundSize = d.columns * size + "px auto";
    p.style.backgroundPosition =
      -(t % d.columns) * size + "px " + -Math.floor(t / d.columns) * size + "px";
    if (spoken) {{ p.setAttribute("role", "img"); p.setAttribute("aria-label", spoken); }}
    return p;
  }}
  function cell(i, k) {{
    const j = d.near[i][k], is = same(i, j), box = make("div", "cell");
    const b = make("button", is ? "same" : "cross"), numbers = make("span", "numbers");
    const alike = d.alike && d.alike[i][k] !== null
      ? ", WordNet similarity " + d.alike[i][k].toFixed(2) : "";
    const q = d.q ? d.q[i][k] : "", chance = q !== "" && !(Number(q) < 0.05);
    const sure = (q === "" ? "" : ", q " + q) + (chance ? ", may be chance" : "");
    const about = (is ? "same label" : "another label") + ", R " + number(d.r[i][k]) + sure + alike;
    box.setAttribute("role", "listitem");
    b.type = "button";
    if (chance) b.classList.add("chance");
    b.title = label(j) + " (" + d.files[j] + "): " + about;
    b.setAttribute("aria-label", "neighbour " + (k + 1) + ": " + label(j) + ", " + about);
    b.onclick = () => {{ only = j; list(); first(); }};
    numbers.append(make("span", "r", "R " + number(d.r[i][k])));
    if (is) numbers.append(make("span", "tag", "same"));
    if (d.pictures) b.append(picture(j, 64));
    b.append(numbers, make("span", "words", label(j)));
    box.append(b);
    return box;
  }}
  function row(i) {{
    const r = make("div", "row"), ref = make("div", "reference"), near = make("div", "near");
    r.tabIndex = -1;
    r.setAttribute("role", "group");
    r.setAttribute("aria-label", label(i) + " and its neighbours");
    ref.title = label(i) + " (" + d.files[i] + ")";
    if (d.pictures) ref.append(picture(i, 72, "photograph: " + label(i)));
    ref.append(make("span", "words", label(i)));
    near.setAttribute("role", "list");
    near.setAttribute("aria-label", "most correlated with " + label(i) + ", best first");
    near.append(...d.near[i].map((_, k) => cell(i, k)));
    r.append(ref, near);
    return r;
  }}
  function seen() {{
    if (only >= 0) return [only];
    const part = $("wanted").value.trim().toLowerCase(), which = $("which").value;
    return all.filter(i => label(i).toLowerCase().includes(part)
      && (which === "all" || (which === "same") === d.near[i].some(j => same(i, j))));
  }}
  function list() {{
    const s = seen(), pages = Math.max(1, Math.ceil(s.length / per));
    const at = only >= 0 ? 0 : page = Math.min(page, pages - 1);
    $("list").replaceChildren(...s.slice(at * per, (at + 1) * per).map(row));
    $("count").textContent = (s.length ? s.length.toLocaleString("en") : "no")
      + (s.length === 1 ? " image" : " images") + ", page " + (at + 1) + " of " + pages;
    for (const b of every("back")) b.disabled = at === 0;
    for (const b of every("on")) b.disabled = at === pages - 1;
    $("whole").hidden = only < 0;
  }}
  for (const [c, event] of [["wanted", "input"], ["which", "change"]])
    $(c).addEventListener(event, () => {{ page = 0; only = -1; list(); }});
  for (const [c, by] of [["back", -1], ["on", 1]])
    every(c).forEach((b, below) => {{
      b.onclick = () => {{ page += by; list(); if (below) first(); }};
    }});
  $("whole").onclick = () => {{ only = -1; list(); first(); }};
  list();
}})();
</script>
</div>
"""

__all__ = ["NeighbourTable", "neighbours_html"]
