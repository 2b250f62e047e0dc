"""Render the executed chapters and the written pages with jupyter-book, for reading offline.

`book/_config.yml` is what is written by hand. A generated copy adds what only a build knows: the
profile's banner, the repository's address where there is a public one, and MathJax, copied from
the `sphinx-mathjax-offline` package (only the files that a page can ask for).
"""

from __future__ import annotations

import importlib.util
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


class RenderError(Exception):
    """The book could not be built."""


def repository() -> tuple[str, str] | None:
    """The public address and branch of this repository on GitHub, or None if there is none."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    name = os.environ.get("GITHUB_REPOSITORY", "")
    if not name:
        found = GITHUB.fullmatch(git("remote", "get-url", "origin"))
        name = found.group(1) if found else ""
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
    found = repository()
    if found is None:
        config["repository"] = {"url": ""}
        config["launch_buttons"] = {}
    else:
        # The pages `notebooks/NN_topic` have the same path in the repository, where the paired
        # notebooks are; so the buttons open the sources, not the executed copies.
        config["repository"] = {"url": found[0], "branch": found[1], "path_to_book": ""}
        html["use_repository_button"] = True
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


def tidy(html: Path) -> None:
    """Take what is unwanted out of the rendered pages."""
    for page in html.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        page.write_text(UNWANTED.sub("", text), encoding="utf-8")
    for leftover in (html / "_static").glob("sphinx-thebe.*"):
        leftover.unlink()


def build(book: Path, profile: str) -> Path:
    """Build the book in the folder `book` and return its front page.

    Warnings are errors, references are checked, and everything is built anew: an incremental
    build keeps stale numbers.
    """
    generated = book / "_generated"
    copy_mathjax(generated / "static" / "mathjax")
    config = generated / "_config.yml"
    text = yaml.safe_dump(configuration(book, profile), sort_keys=False, allow_unicode=True)
    config.write_text(text, encoding="utf-8")
    html = book / "_build" / "html"
    shutil.rmtree(book / "_build", ignore_errors=True)
    code = f"from probebook.lifeline import end_with_parent; end_with_parent({os.getpid()}); "
    command = [sys.executable, "-c", code + "from jupyter_book.cli.main import main; main()"]
    command += ["build", str(book), "--all", "-W", "-n", "--keep-going", "--config", str(config)]
    here = str(Path(__file__).resolve().parent)  # for docstrings.py, an extension, and probebook
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
    return html / "index.html"
