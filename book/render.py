"""Render the executed chapters and the written pages with jupyter-book, for reading offline.

`book/_config.yml` is what is written by hand. A generated copy adds what only a build knows: the
profile's banner, the repository's address where there is a public one, and MathJax, copied from
the `sphinx-mathjax-offline` package (only the files that a page can ask for).
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

import prepare

BANNER = (
    "<strong>A smoke run: not a result.</strong> Its networks and chains are far too small; "
    "the laptop profile makes the real book."
)
GITHUB = re.compile(
    r"(?:git@github\.com:|(?:https|ssh)://(?:[^@/]*@)?github\.com/)(.+?)(?:\.git)?/?"
)


IMAGE = "results/laptop/02_loss_gain-digits.png"  # what a site that links here may show
FRONT = "*_*-*.png"  # images beside the results of chapters; intro.md shows two of them


class RenderError(Exception):
    """The book could not be built."""


def repository(configured: str = "") -> tuple[str, str] | None:
    """The public address and branch of this repository on GitHub, or None if there is none.

    Args:
        configured: the address in `_config.yml`; "" leaves it to GITHUB_REPOSITORY, then to the
            remote `origin`.

    Raises:
        RenderError: an address is configured, but not one on GitHub.
    """
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    def name_in(address: str) -> str:
        found = GITHUB.fullmatch(address)
        return found.group(1) if found else ""

    if configured and name_in(configured).count("/") != 1:
        raise RenderError(
            f"repository: url in _config.yml is {configured!r}; "
            "give https://github.com/OWNER/NAME, or nothing"
        )
    name = name_in(configured) or os.environ.get("GITHUB_REPOSITORY", "")
    name = name or name_in(git("remote", "get-url", "origin"))
    if name.count("/") != 1:
        return None
    branch = os.environ.get("GITHUB_REF_NAME") or git("branch", "--show-current") or "main"
    return f"https://github.com/{name}", branch


def copy_mathjax(target: Path) -> None:
    """Copy the part of MathJax that a page with TeX formulas can ask for (about 2 MB)."""
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None or spec.origin is None:
        raise RenderError("the package sphinx-mathjax-offline is missing; run `make env`")
    source = Path(spec.origin).parent / "static" / "mathjax"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    shutil.copy2(source / "tex-chtml.js", target)
    for part in ("input/tex/extensions", "output/chtml/fonts/woff-v2"):
        shutil.copytree(source / part, target / part)


def configuration(book: Path, profile: str) -> dict[str, Any]:
    """`_config.yml` with what only the build knows merged in."""
    config = yaml.safe_load((book / "_config.yml").read_text(encoding="utf-8"))
    html = config.setdefault("html", {})
    if profile in prepare.NOT_A_RESULT:
        html["announcement"] = BANNER
    found = repository(config.get("repository", {}).get("url", ""))
    if found is None:
        config["repository"] = {"url": ""}
        config["launch_buttons"] = {}
    else:
        # The pages `notebooks/NN_topic` have the same path in the repository, where the paired
        # notebooks are; so the buttons open the sources, not the executed copies.
        config["repository"] = {"url": found[0], "branch": found[1], "path_to_book": ""}
        html["use_repository_button"] = True
        raw = found[0].replace("https://github.com", "https://raw.githubusercontent.com")
        config["sphinx"]["config"]["book_image"] = f"{raw}/{found[1]}/{IMAGE}"
        config["launch_buttons"] = {
            "notebook_interface": "jupyterlab",
            # Not Colab: a notebook that it opens comes alone, without probelib.
            "binderhub_url": "https://mybinder.org",
        }
    return config


# What the theme puts into every page although this book has no use for it: thebe, which would be
# fetched from another host, and font preloads, which a browser refuses for local files.
UNWANTED = re.compile(
    r'<link rel="preload" as="font"[^>]*>\s*'
    r"|<link [^>]*sphinx-thebe[^>]*>\s*"
    r"|<script>\s*const THEBE_JS_URL.*?</script>\s*"
    r"|<script [^>]*sphinx-thebe[^>]*>\s*</script>\s*"
    r'|<script type="text/x-thebe-config">.*?</script>\s*',
    re.DOTALL,
)


def scoped(table: re.Match[str]) -> str:
    """A table in a box that scrolls, with header cells that say what they head.

    Those above head columns, those at the side rows.
    """
    box, text = table.groups()
    head, foot, body = text.partition("</thead>")
    text = HEADER.sub('<th scope="col"', head) + foot + HEADER.sub('<th scope="row"', body)
    return f"{box}{text}" if box else f"{BOX}{text}</div>"


BOX = '<div class="pst-scrollable-table-container">'  # as the theme has it, around some tables
TABLE = re.compile(rf"({BOX}\s*)?(<table\b.*?</table>)", re.DOTALL)
HEADER = re.compile(r"<th(?![^>]*\bscope=)(?=[\s>])")
# Attributes that the theme and Sphinx had better not write: an id that the page of the search has
# twice and nothing uses, and roles of the bibliography that do not fit what is in it.
ATTRIBUTES = re.compile(
    r' id="search-input"| role="doc-biblioentry"| role="list"(?= class="citation-list")'
)
# Not imported from where it is written: Matplotlib comes with that, and wants a home.
NARROW = "application/vnd.probebook.narrow+png"
PHONE = "screen and (max-width: 600px)"  # as in book.css


def narrow_images(executed: Path) -> dict[str, bytes]:
    """Drawings for a phone (`probebook/figures/narrow.py`) of a chapter's figures.

    Args:
        executed: its executed copy.

    Returns:
        The PNG of each by the name, without ending, that MyST-NB gives the image that it stands
        beside: the SHA-256 of that.
    """
    found = {}
    for cell in json.loads(executed.read_text(encoding="utf-8"))["cells"]:
        for bundle in (output.get("data", {}) for output in cell.get("outputs", [])):
            if {NARROW, "image/png"} <= bundle.keys():
                wide, narrow = (
                    base64.b64decode("".join(bundle[kind])) for kind in ("image/png", NARROW)
                )
                found[hashlib.sha256(wide).hexdigest()] = narrow
    return found


def add_narrow_images(html: Path, executed: Path) -> None:
    """Let a phone show the drawings that are made for it: one figure, two sources of its image.

    Args:
        html: the rendered book.
        executed: the folder of executed copies.

    Raises:
        RenderError: a page does not have the image that a drawing stands beside.
    """
    for notebook in sorted(executed.glob("[0-9][0-9]_*.ipynb")):
        page = html / "notebooks" / f"{notebook.stem}.html"
        images = narrow_images(notebook) if page.is_file() else {}
        text = page.read_text(encoding="utf-8") if images else ""
        for name, content in images.items():
            (html / "_images" / f"{name}-narrow.png").write_bytes(content)
            source = rf'<source media="{PHONE}" srcset="\g<2>{name}-narrow.png" />'
            image = rf'(<img\b[^>]*\bsrc="([^"]*/){name}\.png"[^>]*>)'
            text, found = re.subn(image, rf"<picture>{source}\g<1></picture>", text)
            if not found:
                raise RenderError(f"{page.name} does not show an image of {notebook.name}")
        if images:
            page.write_text(text, encoding="utf-8")


ABOUT = re.compile(
    r'<title>.*?</title>|<meta (?:name="description"|property="og:)[^>]*>', re.DOTALL
)


def tidy(html: Path) -> None:
    """Take what is unwanted out of the rendered pages, and put right what Sphinx leaves open."""
    for page in html.rglob("*.html"):
        text = UNWANTED.sub("", page.read_text(encoding="utf-8"))
        page.write_text(ATTRIBUTES.sub("", TABLE.sub(scoped, text)), encoding="utf-8")
    for leftover in (html / "_static").glob("sphinx-thebe.*"):
        leftover.unlink()
    # jupyter-book's index.html only sends the reader on; who follows no refresh reads it as it is.
    about = "\n".join(ABOUT.findall((html / "intro.html").read_text(encoding="utf-8")))
    (html / "index.html").write_text(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8" />\n'
        f'<meta http-equiv="Refresh" content="0; url=intro.html" />\n{about}\n</head>\n'
        '<body><main><a href="intro.html">Bayesian Probes</a></main></body></html>\n',
        encoding="utf-8",
    )


def copy_kept_images(results: Path, target: Path) -> None:
    """Copy the images that chapters have kept beside their results to where intro.md has them."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for image in results.glob(FRONT):
        shutil.copy2(image, target / image.name)


def build(book: Path, profile: str, results: Path) -> Path:
    """Build the book in the folder `book` and return its front page.

    Warnings are errors, references are checked, and everything is built anew: an incremental
    build keeps stale numbers.

    Args:
        book: with the written pages and the executed chapters.
        profile: of these.
        results: the folder of their results.
    """
    generated = book / "_generated"
    copy_mathjax(generated / "static" / "mathjax")
    copy_kept_images(results, generated / "front")
    config = generated / "_config.yml"
    text = yaml.safe_dump(configuration(book, profile), sort_keys=False, allow_unicode=True)
    config.write_text(text, encoding="utf-8")
    html = book / "_build" / "html"
    shutil.rmtree(book / "_build", ignore_errors=True)
    code = f"from probebook.lifeline import end_with_parent; end_with_parent({os.getpid()}); "
    command = [sys.executable, "-c", code + "from jupyter_book.cli.main import main; main()"]
    command += ["build", str(book), "--all", "-W", "-n", "--keep-going", "--config", str(config)]
    # For docstrings.py and pages.py, which are extensions, and for probebook.
    here = str(Path(__file__).resolve().parent)
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    print("Building the book", flush=True)
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", env=environment
    )
    if done.returncode != 0 or not (html / "index.html").is_file():
        said = re.sub(r"\x1b\[[0-9;]*m", "", done.stderr.strip() or done.stdout.strip())
        raise RenderError("jupyter-book failed:\n" + said[-8000:])
    tidy(html)
    add_narrow_images(html, book / "notebooks")
    return html / "index.html"
