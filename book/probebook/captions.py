"""A chapter opened by hand: captions below its figures, and references that read without the book.

Captions, labels and alt texts stand in the metadata of cells, which the rendered book shows and
JupyterLab does not. Here a hook looks each cell that has run up in the chapter's notebook file, and
shows its caption. References to figures, chapters, pages and literature become plain text: those in
what a chapter says before they are shown, those in its Markdown cells by a script in the page.

None of this happens when the driver runs a chapter (``live`` is False there).
"""

import html
import json
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
_BOOK = _HERE.parent  # where the written pages and the literature are, in a clone
_ROLE = re.compile(r"\{([a-z]+(?::[a-z]+)?)\}`([^`]+)`")
_TITLED = re.compile(r"(.+?)\s*<([^<>]+)>", re.DOTALL)
_HOOK = "post_run_cell"


@dataclass(frozen=True)
class FigureCell:
    """A cell that draws a figure.

    Attributes:
        number: as in the book: "2.1" for the key figure of chapter 02, with which the page begins;
            then in the order of the chapter.
        label: what {numref} calls it.
        caption, alt: its texts.
        source, id: of the cell.
    """

    number: str
    label: str
    caption: str
    alt: str
    source: str
    id: str


def figure_cells(notebook: Path) -> list[FigureCell]:
    """The figures of a chapter, by number; none if the file is not there, or not a notebook."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return []
    drawing = [cell for cell in cells if "figure" in cell["metadata"].get("mystnb", {})]
    drawing.sort(key=lambda cell: "key-figure" not in cell["metadata"].get("tags", []))
    found = []
    chapter = re.match(r"\d\d", notebook.name)
    before = f"{int(chapter[0])}." if chapter else ""
    for number, cell in enumerate(drawing, start=1):
        shown = cell["metadata"]["mystnb"]
        found.append(
            FigureCell(
                number=f"{before}{number}",
                label=shown["figure"].get("name", ""),
                caption=shown["figure"].get("caption", ""),
                alt=shown.get("image", {}).get("alt", ""),
                source="".join(cell["source"]).strip(),
                id=cell.get("id", ""),
            )
        )
    return found


def notebook_of(chapter: str) -> Path:
    """A chapter's notebook file: beside the running kernel, or else in the clone."""
    here = Path.cwd() / f"{chapter}.ipynb"
    return here if here.exists() else _BOOK.parent / "notebooks" / here.name


# -- when a chapter runs ------------------------------------------------------------------------


def switch_on(chapter: str, warning: str = "") -> None:
    """Show captions and plain references from here on, if this chapter was opened by hand.

    Args:
        chapter: its file stem.
        warning: a sentence that every caption begins with.
    """
    from IPython.display import HTML, display

    shell = _shell_of_a_reader()
    if shell is None:
        return
    figures = figure_cells(notebook_of(chapter))

    def after(result: Any) -> None:
        if result.success and (figure := _drawn_by(figures, result.info)):
            display(HTML(caption_html(figure, figures, warning)))

    # The cell that calls this can run again, from a file that has changed.
    for before in [f for f in shell.events.callbacks[_HOOK] if hasattr(f, "shows_captions")]:
        shell.events.unregister(_HOOK, before)
    after.shows_captions = True
    shell.events.register(_HOOK, after)
    display(HTML(_script(figures)))


def readable(text: str, chapter: str) -> str:
    """Markdown that reads without the book if this chapter was opened by hand; else unchanged."""
    if _shell_of_a_reader() is None or not _ROLE.search(text):
        return text
    return plain(text, figure_cells(notebook_of(chapter)))


def opened_by_hand() -> bool:
    """Whether this is a notebook that a reader runs, with ``live`` true."""
    return _shell_of_a_reader() is not None


def in_a_kernel() -> bool:
    """Whether this is a notebook, whoever runs it."""
    return _kernel_shell() is not None


def _kernel_shell() -> Any:
    """The shell of a notebook; None anywhere else."""
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    shell = get_ipython()
    return shell if hasattr(shell, "kernel") else None


def _shell_of_a_reader() -> Any:
    """The shell of a notebook that runs with ``live`` true; None anywhere else."""
    shell = _kernel_shell()
    return shell if shell is not None and shell.user_ns.get("live") is True else None


def _drawn_by(figures: list[FigureCell], run: Any) -> FigureCell | None:
    """The figure of the cell that has run: by its source, or by its id if a reader changed it."""
    source, cell = (run.raw_cell or "").strip(), getattr(run, "cell_id", None)
    same = [figure for figure in figures if figure.source == source]
    return next(iter(same or [figure for figure in figures if figure.id == cell]), None)


def caption_html(figure: FigureCell, figures: list[FigureCell], warning: str = "") -> str:
    """A caption with its number. It carries the alt text, which the script gives to the image."""
    text = html.escape(plain(f"{warning} {figure.caption}".strip(), figures), quote=False)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return (
        f'<figcaption class="probe-caption" data-alt="{html.escape(figure.alt)}" '
        f'style="max-width: 46em; margin: 0 0 0.8em">'
        f"<b>Figure {figure.number}.</b> {text}</figcaption>"
    )


# -- references ---------------------------------------------------------------------------------


def plain(text: str, figures: list[FigureCell]) -> str:
    """Markdown with every role replaced by words.

    A figure is called by its number, a source by authors and year, a page by its title or the words
    that the reference has for it; of any other role its text stays.
    """
    numbers = {figure.label: f"Figure {figure.number}" for figure in figures}

    def words(found: re.Match[str]) -> str:
        role, content = found[1], found[2].strip()
        if role.startswith("cite"):
            literature = sources()
            narrative = role == "cite:t"
            keys = [key.strip() for key in content.split(",")]
            said = [literature.get(key, (key, key))[not narrative] for key in keys]
            return " and ".join(said) if narrative else f"({'; '.join(said)})"
        if titled := _TITLED.fullmatch(content):
            return titled[1]
        if role == "doc":
            return titles().get(content.rpartition("/")[2], content)
        return numbers.get(content, content)

    return _ROLE.sub(words, text)


def sources() -> dict[str, tuple[str, str]]:
    """The literature: by key, what stands in a sentence and what stands in brackets."""
    file = _BOOK / "references.bib"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    found = {}
    for entry in re.split(r"^@\w+\{", text, flags=re.MULTILINE)[1:]:
        author = re.search(r"\bauthor\s*=\s*\{(.*)\}", entry)
        year = re.search(r"\byear\s*=\s*\{(\d+)\}", entry)
        if author and year:
            names = [_surname(name) for name in author[1].split(" and ")]
            who = f"{names[0]} et al." if len(names) > 2 else " and ".join(names)
            found[entry.partition(",")[0]] = (f"{who} ({year[1]})", f"{who}, {year[1]}")
    return found


def _surname(name: str) -> str:
    """The family name of ``Family, Given``, without the braces and accents of BibTeX."""
    family = re.sub(r"\\'\{?(\w)\}?", "\\1\u0301", name.partition(",")[0])
    return unicodedata.normalize("NFC", re.sub(r"[{}]", "", family)).strip()


def titles() -> dict[str, str]:
    """Titles of the written pages and of the chapters, by file stem, where there is a clone."""
    chapters = (_BOOK.parent / "notebooks").glob("[0-9]*.py")
    found = {}
    for page in [*_BOOK.glob("*.md"), *chapters]:
        heading = r"^# (.+)$" if page.suffix == ".md" else r"^# # (.+)$"
        if title := re.search(heading, page.read_text(encoding="utf-8"), re.MULTILINE):
            found[page.stem] = title[1]
    return found


def _script(figures: list[FigureCell]) -> str:
    """What makes the Markdown cells of the notebook readable, as HTML for an output."""
    known = {
        "figures": {figure.label: f"Figure {figure.number}" for figure in figures},
        "sources": sources(),
        "titles": titles(),
    }
    page = (_HERE / "data" / "references.html").read_text(encoding="utf-8")
    return page.replace("{{known}}", json.dumps(known).replace("<", "\\u003c"))


__all__ = [
    "FigureCell",
    "caption_html",
    "figure_cells",
    "in_a_kernel",
    "opened_by_hand",
    "plain",
    "readable",
    "switch_on",
]
