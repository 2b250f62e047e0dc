"""Every link within the repository leads somewhere: files, headings, labels. No network."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BOOK = sorted((ROOT / "book").glob("*.md")) + sorted((ROOT / "notebooks").glob("*.py"))
PAGES = sorted(ROOT.glob("*.md")) + BOOK
LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?\)")
ROLE = re.compile(r"\{(doc|ref|numref|eq)\}`(?:[^`<]*<)?([^`>]+)>?`")
DIRECTIVE = re.compile(r"^\s*[`:]{3,}\{(?:figure|image|include|literalinclude)\}\s+(\S+)", re.M)
# Labels: before a block, as an option of a directive, in the metadata of a figure's cell.
LABEL = re.compile(r'^\(([\w-]+)\)=|^:(?:name|label): *([\w-]+)|"name": "([\w-]+)"', re.M)
MATH_LABEL = re.compile(r"^\$\$ *\(([\w-]+)\)", re.M)


def prose(path: Path) -> str:
    """The Markdown of a page; of a chapter, its Markdown cells and its cells' metadata."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        text = "\n".join(re.sub(r"^# ?", "", m) for m in re.findall(r"^#.*$", text, re.M))
    return text


def without_blocks(text: str) -> str:
    """A page without its blocks of code; directives stay."""
    return re.sub(r"^(\s*)(`{3,})(?!\{)[^\n]*\n.*?^\s*\2 *$", "", text, flags=re.M | re.S)


def without_code(text: str) -> str:
    """A page without its blocks of code and what stands in backticks; roles stay."""
    quoted = re.compile(r"(\{[\w:]+\})?(?<!`)(`+)(?!`)(?:(?!\n\n).)+?(?<!`)\2(?!`)", re.S)
    return quoted.sub(lambda match: match[0] if match[1] else "", without_blocks(text))


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", without_blocks(prose(path)), re.M):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = 0
        while (unique := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(unique)
    return found


def labels() -> set[str]:
    """Every label of the book."""
    text = "\n".join(prose(path) for path in BOOK)
    return {next(filter(None, m)) for m in LABEL.findall(text)} | set(MATH_LABEL.findall(text))


def file_of(page: Path, target: str) -> Path | None:
    """The file that a link on a page leads to: a path, or a page of the book without its ending."""
    places = [page.parent / target]
    if target.startswith("_generated/front/"):  # what chapters keep beside their results
        places = [ROOT / "results" / "laptop" / Path(target).name]
    if page in BOOK:  # a chapter is executed into book/notebooks, beside the written pages
        folder = ROOT / "book" / ("notebooks" if page.suffix == ".py" else "")
        name = os.path.relpath((folder / target).with_suffix(""), ROOT / "book")
        places += [ROOT / "book" / f"{name}.md", ROOT / f"{name}.py"]
    return next((path for path in places if path.exists()), None)


def broken(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    text, known = without_code(prose(page)), labels()
    wrong = []
    for target in LINK.findall(text) + DIRECTIVE.findall(text):
        if re.match(r"[a-z]+:", target):
            continue  # another site: .github/workflows/links.yml
        path, _, anchor = target.partition("#")
        if page in BOOK and not anchor and path in known:
            continue
        file = file_of(page, path) if path else page
        if file is None or (anchor and anchor not in anchors(file) | known):
            wrong.append(target)
    for role, target in ROLE.findall(text):
        exists = file_of(page, target) if role == "doc" else target in known
        if not exists:
            wrong.append(f"{{{role}}}`{target}`")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# One heading\n\n## `Code`, and more\n")
    page.write_text(
        "# Here\n\n[a](other.md) [b](other.md#one-heading) [c](other.md#code-and-more) [d](#here)\n"
        "[`e`](missing.md) ![f](missing.png) [g](other.md#nothing) [h](#there)\n"
        "`[i](in-code.md)` [j](https://example.org)\n\n```python\nx[0](not_a_link)\n```\n"
    )
    assert broken(page) == ["missing.md", "missing.png", "other.md#nothing", "#there"]


def test_the_patterns_find_what_is_there() -> None:
    # A pattern that finds nothing would let everything pass.
    assert {"CONTRIBUTING.md", "book/beyond.md"} <= set(LINK.findall(prose(ROOT / "README.md")))
    roles = {role for page in BOOK for role, _ in ROLE.findall(without_code(prose(page)))}
    assert {"doc", "numref"} <= roles
    assert {"results", "bench-scale", "erratum-1", "demo-erratum-1"} <= labels()
