"""Browse digits by loss gain and walk the loss kernel: live with widgets, rendered without."""

import base64
import io
import json
from dataclasses import dataclass

import numpy as np
from PIL import Image

from probebook.chapter import Chapter
from probelib import Kernel
from probelib.plotting import image_grid

_SPRITE_COLUMNS = 40
_CHANCE = 0.05  # a neighbour whose q-value is not below may be chance


def gain_text(gain: float) -> str:
    """A loss gain (nats) as it is written beside a digit: short, and never as a power of ten."""
    size = abs(gain)
    if size >= 1:
        return f"{gain:.1f}"
    return f"{gain:#.2g}" if size >= 0.01 else "<0.01"


@dataclass(frozen=True, eq=False)
class Digits:
    """What there is to browse, one entry a sample.

    Attributes:
        images: uint8, shape (n, 28, 28).
        given: the label the network was trained on, shape (n,).
        true: the label of the original data set, shape (n,); equal to ``given`` without noise.
        loss: l_i(w*), shape (n,), nats.
        gain: mu_i, shape (n,), nats.
    """

    images: np.ndarray
    given: np.ndarray
    true: np.ndarray
    loss: np.ndarray
    gain: np.ndarray

    def caption(self, i: int) -> str:
        """Labels and loss gain of sample ``i``, in one line."""
        label = f"{self.given[i]}"
        if self.given[i] != self.true[i]:
            label += f" (is {self.true[i]})"
        return f"{label}: {gain_text(self.gain[i])}"


def explorer(
    digits: Digits, kernel: Kernel, *, live: bool, seed: int = 0, chapter: Chapter | None = None
) -> object:
    """What to show in a cell: the widget in a running notebook, the same as HTML in a page.

    Args:
        digits: the samples, in the order of the trace.
        kernel: their loss kernel.
        live: whether a kernel stays to answer.
        seed: of the choice of digits for the page.
        chapter: where the page records how many neighbours it lists, and how many of them are more
            than chance (``neighbours_listed``, ``neighbours_significant``).
    """
    from IPython.display import HTML

    if live:
        return explorer_widget(digits, kernel)
    return HTML(explorer_html(digits, kernel, seed=seed, chapter=chapter))


def explorer_widget(digits: Digits, kernel: Kernel, per_page: int = 40) -> object:
    """An ipywidgets view for a running kernel: all samples, all neighbours.

    Args:
        digits: the samples, in the order of the trace.
        kernel: their loss kernel.
        per_page: digits shown at once.

    Returns:
        An ``ipywidgets`` box.
    """
    import ipywidgets as w
    from IPython.display import display

    classes = ["any", *range(10)]
    order = w.Dropdown(options=["hardest first", "easiest first"], description="order")
    given = w.Dropdown(options=classes, description="given label")
    true = w.Dropdown(options=classes, description="true label")
    noise = w.Dropdown(options=["all", "wrong only", "right only"], description="labels")
    page = w.BoundedIntText(value=1, min=1, max=1, description="page")
    pick = w.BoundedIntText(value=0, min=0, max=len(digits.gain) - 1, description="sample")
    grid, near = w.Output(), w.Output()
    by_gain = np.argsort(digits.gain)
    wrong = digits.given != digits.true
    if not wrong.any():  # nothing to choose from, as in the HTML view
        true.layout.display = noise.layout.display = "none"

    def chosen() -> np.ndarray:
        seen = by_gain if order.value == "easiest first" else by_gain[::-1]
        for box, labels in ((given, digits.given), (true, digits.true)):
            if box.value != "any":
                seen = seen[labels[seen] == box.value]
        if noise.value != "all":
            seen = seen[wrong[seen] == (noise.value == "wrong only")]
        return seen

    def show_page(_: object = None) -> None:
        seen = chosen()
        page.max = max(1, -(-len(seen) // per_page))
        part = seen[(page.value - 1) * per_page : page.value * per_page]
        name = f"{len(seen):,} digits, page {page.value} of {page.max}"
        lines = [f"#{i}\n{digits.caption(i)}" for i in part]
        with grid:
            grid.clear_output(wait=True)
            if len(part):
                display(image_grid({name: digits.images[part]}, {name: lines}, 10, cmap="gray_r"))
            else:
                print("No digit has these labels.")
        if len(part):
            pick.value = int(part[0])

    def show_neighbours(_: object = None) -> None:
        best = kernel.top_correlated(10, rows=np.array([pick.value]))
        index = np.r_[pick.value, best.index[0]]
        lines = [f"#{i}\n{digits.caption(i)}" for i in index]
        lines[1:] = [
            f"{t}\nR = {r:.2f}" + ("" if q < _CHANCE else "\nchance?")
            for t, r, q in zip(lines[1:], best.correlation[0], best.q_value[0], strict=True)
        ]
        found = f"{int((best.q_value < _CHANCE).sum())} with q < {_CHANCE}"
        name = f"sample {pick.value} and the digits most correlated with it, {found}"
        with near:
            near.clear_output(wait=True)
            display(image_grid({name: digits.images[index]}, {name: lines}, 11, cmap="gray_r"))

    def restart(_: object) -> None:
        page.value = 1
        show_page()

    for box in (order, given, true, noise):
        box.observe(restart, "value")
    page.observe(show_page, "value")
    pick.observe(show_neighbours, "value")
    show_page()
    show_neighbours()
    return w.VBox([w.HBox([order, given, true, noise, page]), grid, pick, near])


def explorer_html(
    digits: Digits,
    kernel: Kernel,
    *,
    extremes: int = 150,
    others: int = 500,
    neighbours: int = 10,
    seed: int = 0,
    name: str = "explorer",
    chapter: Chapter | None = None,
) -> str:
    """The same view as one piece of HTML that needs neither a kernel nor a network.

    It carries the ``extremes`` hardest and easiest digits and ``others`` at random; neighbours
    are looked for among these. Those that may be chance (q of 0.05 or more, or not known) are pale
    and say so.

    Args:
        digits: the samples, in the order of the trace.
        kernel: their loss kernel.
        extremes: digits from each end of the ranking by loss gain.
        others: further digits, at random.
        neighbours: most correlated digits kept for each.
        seed: of the random choice.
        name: id of the element, its own on a page.
        chapter: see :func:`explorer`.

    Returns:
        HTML with the images, numbers, style and script inline.
    """
    n = len(digits.gain)
    rank = np.argsort(np.argsort(digits.gain))
    at_ends = np.flatnonzero((rank < extremes) | (rank >= n - extremes))
    middle = np.setdiff1d(np.arange(n), at_ends)
    drawn = np.random.default_rng(seed).choice(middle, min(others, len(middle)), replace=False)
    shown = np.sort(np.r_[at_ends, drawn])
    near = kernel.top_correlated(min(neighbours, len(shown) - 1), rows=shown, among=shown)
    real = near.q_value < _CHANCE  # False where it is not known
    if chapter is not None:
        chapter.record(neighbours_listed=real.size, neighbours_significant=int(real.sum()))
    position = {int(i): p for p, i in enumerate(shown)}
    data = {
        "id": shown.tolist(),
        "given": digits.given[shown].tolist(),
        "true": digits.true[shown].tolist(),
        "loss": [f"{v:.2g}" for v in digits.loss[shown]],
        "gain": [f"{v:.3g}" for v in digits.gain[shown]],
        "rank": rank[shown].tolist(),
        "near": [[position[int(j)] for j in row] for row in near.index],
        "r": [[round(float(v), 2) for v in row] for row in near.correlation],
        "real": real.tolist(),
        "n": n,
        "columns": _SPRITE_COLUMNS,
        "noisy": bool((digits.given != digits.true).any()),
    }
    return _PAGE.format(
        name=name,
        sprite=_sprite(digits.images[shown]),
        data=json.dumps(data, separators=(",", ":")),
        classes="".join(f"<option>{c}</option>" for c in range(10)),
        hide="" if data["noisy"] else "hidden",
        found=f"{int(real.sum()):,} of the {real.size:,} neighbours listed here are more than "
        f"chance (q &lt; {_CHANCE}); the others are pale.",
    )


def _sprite(images: np.ndarray) -> str:
    """All images in one PNG, ``_SPRITE_COLUMNS`` a row, as base64."""
    rows = -(-len(images) // _SPRITE_COLUMNS)
    sheet = np.zeros((rows * _SPRITE_COLUMNS, 28, 28), np.uint8)
    sheet[: len(images)] = images
    sheet = sheet.reshape(rows, _SPRITE_COLUMNS, 28, 28).swapaxes(1, 2).reshape(rows * 28, -1)
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


_PAGE = """
<div class="probe-explorer" id="{name}">
<style>
.probe-explorer {{ font-size: 0.9em; }}
.probe-explorer .controls {{ display: flex; flex-wrap: wrap; gap: 0.4em 1em; margin: 0.5em 0; }}
.probe-explorer .controls label[hidden] {{ display: none; }}
.probe-explorer .grid {{ display: flex; flex-wrap: wrap; gap: 6px; }}
.probe-explorer .digit {{ width: 42px; height: 42px; padding: 0; border: 2px solid transparent;
  border-radius: 3px; image-rendering: pixelated; background-color: #000; cursor: pointer; }}
.probe-explorer .digit[aria-pressed=true] {{ border-color: #E69F00; }}
.probe-explorer .digit:focus-visible {{ outline: 3px solid #56B4E9; }}
.probe-explorer .cell {{ width: 46px; text-align: center; font-size: 0.75em; line-height: 1.2; }}
.probe-explorer .chance .digit {{ opacity: 0.4; }}
.probe-explorer .wrong {{ color: #D55E00; font-weight: bold; }}
html[data-theme=dark] .probe-explorer .wrong {{ color: #E69F00; }}
</style>
<div class="controls">
<label>order <select class="order"><option value="-1">hardest first</option>
<option value="1">easiest first</option></select></label>
<label>given label <select class="given"><option>any</option>{classes}</select></label>
<label {hide}>true label <select class="true"><option>any</option>{classes}</select></label>
<label {hide}>labels <select class="noise"><option>all</option><option>wrong only</option>
<option>right only</option></select></label>
<span><button type="button" class="back" aria-label="previous page">◀</button>
<span class="page" aria-live="polite"></span>
<button type="button" class="on" aria-label="next page">▶</button></span>
</div>
<div class="grid list"></div>
<p class="about" aria-live="polite"></p>
<div class="grid near"></div>
<p class="found">{found}</p>
<script type="application/json">{data}</script>
<script>
(function () {{
  const root = document.getElementById("{name}");
  const d = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const sprite = "url(data:image/png;base64,{sprite})";
  const rows = Math.ceil(d.id.length / d.columns), per = 40, size = 38;
  const $ = c => root.querySelector("." + c);
  let page = 0, picked = -1;
  const label = i => d.given[i] + (d.given[i] === d.true[i] ? "" : " (is " + d.true[i] + ")");
  function tile(i, note) {{
    const cell = document.createElement("div"), b = document.createElement("button");
    cell.className = "cell"; b.type = "button"; b.className = "digit";
    b.style.backgroundImage = sprite;
    b.style.backgroundSize = d.columns * size + "px " + rows * size + "px";
    b.style.backgroundPosition =
      -(i % d.columns) * size + "px " + -Math.floor(i / d.columns) * size + "px";
    b.setAttribute("aria-label",
      "digit " + d.id[i] + ", given label " + label(i) + ", loss gain " + d.gain[i]);
    b.setAttribute("aria-pressed", i === picked);
    b.onclick = () => {{ picked = i; list(); about(); }};
    const t = document.createElement("div");
    t.textContent = note;
    if (d.given[i] !== d.true[i]) t.className = "wrong";
    cell.append(b, t);
    return cell;
  }}
  function seen() {{
    const is = (box, v) => box.value === "any" || +box.value === v;
    const noise = $("noise").value;
    return d.id.map((_, i) => i)
      .filter(i => is($("given"), d.given[i]) && is($("true"), d.true[i])
        && (noise === "all" || (noise === "wrong only") === (d.given[i] !== d.true[i])))
      .sort((a, b) => (d.rank[a] - d.rank[b]) * +$("order").value);
  }}
  function list() {{
    const s = seen(), pages = Math.max(1, Math.ceil(s.length / per));
    page = Math.min(page, pages - 1);
    const part = s.slice(page * per, (page + 1) * per);
    if (picked < 0 && part.length) {{ picked = part[0]; about(); }}
    $("list").replaceChildren(...part.map(i => tile(i, label(i))));
    $("page").textContent = s.length + " digits, page " + (page + 1) + " of " + pages;
    $("back").disabled = page === 0; $("on").disabled = page === pages - 1;
  }}
  function about() {{
    const i = picked;
    $("about").textContent = "Sample " + d.id[i] + ": given label " + label(i) + ", loss "
      + d.loss[i] + " nats, loss gain " + d.gain[i] + " nats, rank " + (d.n - d.rank[i])
      + " of " + d.n + " from the hardest. Most correlated with it, of the digits here:";
    $("near").replaceChildren(...d.near[i].map((j, k) => {{
      const real = d.real[i][k];
      const cell = tile(j, "R " + d.r[i][k].toFixed(2) + (real ? "" : " chance?"));
      cell.classList.toggle("chance", !real);
      return cell;
    }}));
  }}
  for (const c of ["order", "given", "true", "noise"])
    $(c).onchange = () => {{ page = 0; picked = -1; list(); }};
  $("back").onclick = () => {{ page--; list(); }};
  $("on").onclick = () => {{ page++; list(); }};
  list();
}})();
</script>
</div>
"""

__all__ = ["Digits", "explorer_html", "explorer_widget", "gain_text"]
