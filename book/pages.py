"""A Sphinx extension: numbers of chapters and figures, and what a page tells other sites.

A chapter is numbered by its file, `notebooks/NN_topic`, and nowhere else: the number is put into
its title before anything reads that, so that the page, the sidebar, the search and every reference
agree. Its figures are numbered NN.1, NN.2 and so on, as in a chapter opened by hand
(`probebook/captions.py`); those of other pages are counted through.

The front page shows images that chapters have kept. One that is not there is left out.

Every page describes itself (`<meta name="description">` and Open Graph): by the `description` in
its front matter (`myst: html_meta`) where there is one, else by its first paragraph.
"""

from __future__ import annotations

import re
import unicodedata
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

UNWRITTEN = {"genindex": "Index", "py-modindex": "Modules", "search": "Search"}
CHAPTER = re.compile(r"notebooks/(\d\d)_")


def number_title(app: Sphinx, doctree: nodes.document) -> None:
    """Put the number of a chapter before its title."""
    chapter = CHAPTER.match(app.env.docname)
    title = doctree.next_node(nodes.title)
    if chapter and title is not None:
        title.insert(0, nodes.Text(f"{chapter[1]} · "))


def number_figures(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Number the figures of each chapter by chapter, those of all other pages through the book."""
    others = 0
    for docname in env.toc_fignumbers:
        figures = env.toc_fignumbers[docname].get("figure", {})
        chapter = CHAPTER.match(docname)
        for k, label in enumerate(figures, start=1):
            others += chapter is None
            figures[label] = (int(chapter[1]), k) if chapter else (others,)
    return []


KEPT = re.compile(r"^```\{figure\} (_generated/\S+)\n.*?^```\n+", re.DOTALL | re.MULTILINE)


def leave_out_missing(app: Sphinx, docname: str, source: list[str]) -> None:
    """Leave out the figures whose image no chapter has kept."""

    def figure(found: re.Match[str]) -> str:
        return found[0] if (Path(app.srcdir) / found[1]).is_file() else ""

    if docname == app.config.root_doc:
        source[0] = KEPT.sub(figure, source[0])


def readable(formula: str) -> str | None:
    """A formula in plain text, Greek letters as such; None if it needs TeX."""

    def letter(match: re.Match[str]) -> str:
        try:
            return unicodedata.lookup(f"GREEK SMALL LETTER {match[1].upper()}")
        except KeyError:
            return match[0]

    text = re.sub(r"\\([a-z]+) ?", letter, formula)
    return None if "\\" in text or "{" in text else text


def first_paragraph(doctree: nodes.document) -> str:
    """The first paragraph that stands in a section, in plain text; "" where there is none.

    It ends before the first sentence with a formula that needs TeX.
    """
    for paragraph in doctree.findall(nodes.paragraph):
        if isinstance(paragraph.parent, nodes.section):
            text = ""
            for node in paragraph.findall(nodes.Text):
                part = readable(node) if isinstance(node.parent, nodes.math) else node.astext()
                if part is None:
                    before, stop, _ = text.rpartition(". ")
                    return " ".join(f"{before}{stop}".split())
                text += part
            return " ".join(text.split())
    return ""


def description(app: Sphinx, title: str, doctree: nodes.document | None) -> str:
    """What a page says of itself; pages that nobody wrote (search, index) say whose they are."""
    if doctree is None:
        return f"{title} of the book {app.config.html_title}"
    for meta in doctree.findall(nodes.meta):
        if meta.get("name") == "description":
            return str(meta["content"])
    return first_paragraph(doctree)


def add_tags(
    app: Sphinx,
    pagename: str,
    template: str,
    context: dict[str, Any],
    doctree: nodes.document | None,
) -> None:
    """Add the tags to the head of a page."""
    root = app.config.root_doc
    titles = app.env.titles
    title = titles[pagename].astext() if pagename in titles else UNWRITTEN.get(pagename, pagename)
    about = description(app, title, doctree)
    tags = {
        "og:title": title,
        "og:description": about,
        "og:type": "website" if pagename == root else "article",
        "og:site_name": app.config.html_title,
        "og:image": app.config.book_image,
    }
    lines = [
        f'<meta property="{name}" content="{escape(value)}" />'
        for name, value in tags.items()
        if value
    ]
    lines.insert(0, f'<meta name="description" content="{escape(about)}" />')
    # Sphinx has written the one of the front matter, in other words: one is enough.
    written = re.sub(r'<meta [^>]*name="description"[^>]*>', "", context.get("metatags", ""))
    context["metatags"] = written + "\n" + "\n".join(lines) + "\n"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register all; titles are numbered before Sphinx collects them, figures after (500)."""
    app.add_config_value("book_image", "", "html", str)  # an absolute address, or nothing
    app.connect("source-read", leave_out_missing)
    app.connect("doctree-read", number_title, priority=400)
    app.connect("env-get-updated", number_figures, priority=600)
    app.connect("html-page-context", add_tags)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
