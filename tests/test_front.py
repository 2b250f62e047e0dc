"""The front page begins with what the chapters found, and figures have the chapter's number."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pages
import render

ROOT = Path(__file__).parents[1]
INTRO = (ROOT / "book" / "intro.md").read_text(encoding="utf-8")
FIGURE = re.compile(r"^```\{figure\} _generated/front/(\S+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def shown(folder: Path) -> str:
    """The front page of a book in a folder, as Sphinx reads it."""
    app = SimpleNamespace(srcdir=folder, config=SimpleNamespace(root_doc="intro"))
    source = [INTRO]
    pages.leave_out_missing(app, "intro", source)
    return source[0]


def test_the_figures_come_before_any_table_and_are_described() -> None:
    before_tables = INTRO[: INTRO.index("\n| ")]
    found = FIGURE.findall(before_tables)
    assert [image for image, _ in found] == [
        "02_loss_gain-digits.png",
        "03_memorization-populations.png",
    ]
    for _, text in found:
        options, caption = text.split("\n\n", 1)
        assert len(re.search(r":alt: (.+)", options)[1]) > 80
        assert len(caption) > 80


def test_the_chapters_keep_the_images_that_the_front_page_shows() -> None:
    for image, _ in FIGURE.findall(INTRO):
        stem, name = image.removesuffix(".png").split("-")
        chapter = (ROOT / "notebooks" / f"{stem}.py").read_text(encoding="utf-8")
        assert re.search(rf'chapter\.keep\(\w+, "{name}"\)', chapter)
        assert (ROOT / "results" / "laptop" / image).is_file()


def test_images_are_copied_and_one_that_is_missing_leaves_no_trace(tmp_path) -> None:
    results, book = tmp_path / "results" / "laptop", tmp_path / "book"
    results.mkdir(parents=True)
    target = book / "_generated" / "front"
    assert "_generated" not in shown(book)
    for stem in ("02_loss_gain-digits", "03_memorization-populations"):
        (results / f"{stem}.png").write_bytes(b"an image")
        render.copy_kept_images(results, target)
        assert [image for image, _ in FIGURE.findall(shown(book))][-1] == f"{stem}.png"
    assert shown(book) == INTRO
    (results / "02_loss_gain-digits.png").unlink()
    render.copy_kept_images(results, target)  # what an earlier build left is not shown
    assert [image for image, _ in FIGURE.findall(shown(book))] == [
        "03_memorization-populations.png"
    ]


def test_figures_are_numbered_by_chapter() -> None:
    numbers = {
        "intro": {"figure": {"a": (1,), "b": (2,)}},
        "notebooks/02_topic": {"figure": {"c": (3,), "d": (4,)}, "table": {"t": (1,)}},
        "errata": {},
        "notebooks/11_topic": {"figure": {"e": (5,)}},
        "trust": {"figure": {"f": (6,)}},
    }
    pages.number_figures(None, SimpleNamespace(toc_fignumbers=numbers))
    assert numbers == {
        "intro": {"figure": {"a": (1,), "b": (2,)}},
        "notebooks/02_topic": {"figure": {"c": (2, 1), "d": (2, 2)}, "table": {"t": (1,)}},
        "errata": {},
        "notebooks/11_topic": {"figure": {"e": (11, 1)}},
        "trust": {"figure": {"f": (3,)}},
    }
