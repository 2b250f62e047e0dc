"""A tiny project with chapters that papermill really runs, for tests of the driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import driver

CHAPTER = """# %% [markdown]
# # Chapter {stem}

# %% tags=["parameters"]
profile: str = "laptop"  # which set of parameters
seed: int = 0  # where the randomness starts
results_dir: str = "../results/live"  # the number's home
live: bool = True  # opened by hand
n: int = 10  # µ, not ASCII

# %%
{body}

# %% tags=["remove-cell"]
import json
from pathlib import Path

numbers = {{"n": n, "headline": f"n is {{n}}"}}
Path(results_dir, "{stem}.json").write_text(json.dumps(numbers))
"""


def empty(root: Path) -> driver.Layout:
    """A project with no chapters yet."""
    layout = driver.Layout.of(root)
    for folder in (layout.notebooks, layout.params, layout.pages):
        folder.mkdir()
    (layout.params / "laptop.yaml").write_text("{}\n")
    (layout.pages / "_config.yml").write_text("title: A tiny book\n")
    (layout.pages / "_toc.yml").write_text("format: jb-book\nroot: intro\n")
    (layout.pages / "intro.md").write_text("# A tiny book\n")
    return layout


def add(
    layout: driver.Layout, stem: str, body: str = "print('n =', n)", text: str = CHAPTER
) -> Path:
    """Add a chapter to the project."""
    path = layout.notebooks / f"{stem}.py"
    path.write_text(text.format(stem=stem, body=body), encoding="utf-8")
    return path


def start(layout: driver.Layout, *arguments: str, **environment: str) -> subprocess.Popen:
    """The driver's command line on this project, in a process of its own, without a render."""
    root = layout.notebooks.parent
    code = (
        "import sys, driver; from pathlib import Path; of = driver.Layout.of; "
        f"driver.Layout.of = lambda **k: of(Path({str(root)!r}), **k); "
        "sys.exit(driver.main(sys.argv[1:]))"
    )
    path = os.pathsep.join(filter(None, [str(driver.ROOT / "book"), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-c", code, "--no-render", *arguments],
        env=os.environ | {"PYTHONPATH": path} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_signals,
    )


def _heed_signals() -> None:
    """Whoever runs the tests in the background or under nohup had these ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
