"""A chapter in JupyterLab, in a real browser: opened, made small, run from top to bottom."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_pages import ARGUMENTS, CHROMIUM

import prepare
from probebook.cache import cache_dir
from probebook.mnist import MnistUnavailable, load_mnist

pytestmark = pytest.mark.book

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
STEM = "02_loss_gain"
SMALL = {
    "profile": "smoke",
    "epochs": 1,
    "n_samples": 900,  # more than a page holds at once: a widget asks the kernel for the rest
    "chains": 2,
    "draws": 30,
    "n_scatter": 100,
    "other_recipes": ["sgd-std-2x512"],
    "other_epochs": [],
    "n_compare": 100,
    "importance_draws": 50,
    "loss_samples": 900,
    "overconfident_draws": 10,
}
SETTINGS = {  # every cell in the page at once; nothing asked of the network
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
}
PANEL = "window.jupyterapp?.shell.currentWidget"
IDLE = f"{PANEL}?.sessionContext?.session?.kernel?.status === 'idle'"
CODE = f"{PANEL}.content.widgets.filter(cell => cell.model.type === 'code')"
FAILED = f"{CODE}.some(cell => cell.model.outputs.toJSON().some(o => o.output_type === 'error'))"
RUN = f"{CODE}.every(cell => cell.model.executionState === 'idle' && cell.model.executionCount)"


def server_environment(folder: Path) -> dict[str, str]:
    """Everything that JupyterLab and the chapter keep goes to folders of their own."""
    cache = folder / "cache"
    cache.mkdir()
    (cache / "mnist").symlink_to(cache_dir("mnist"))
    for name, values in SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))
    own = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
        "PROBELIB_CACHE": "cache",
    }
    return os.environ | {name: str(folder / path) for name, path in own.items()}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab on a copy of the chapters."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (chromium, chromium-browser, google-chrome)")
    for package in ("jupyterlab", "jupyterlab_myst", "playwright"):
        pytest.importorskip(package)
    try:
        for split in ("train", "test"):
            load_mnist(split)
    except MnistUnavailable as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(NOTEBOOKS, folder / "notebooks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, log = f"http://127.0.0.1:{port}", folder / "log.txt"
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--expose-app-in-browser"]
    command += ["--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"]
    command += ["--IdentityProvider.token=", f"--notebook-dir={folder / 'notebooks'}"]
    with log.open("w") as output:
        server = subprocess.Popen(
            command, env=server_environment(folder), stdout=output, stderr=output
        )
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api/status", timeout=10).close()
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def tab(lab: str):
    """The chapter in JupyterLab, with small parameters, after all of its cells have run."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        tab = browser.new_page(viewport={"width": 1200, "height": 1600})
        tab.goto(f"{lab}/lab/tree/{STEM}.ipynb")
        tab.wait_for_function(IDLE, timeout=120_000)
        change(tab, "n_samples: int", lambda source: prepare.with_values(source, SMALL))
        change(tab, "plotting.gain_against_loss(", lambda source: f"{source}\n# a reader was here")
        tab.evaluate("() => void jupyterapp.commands.execute('notebook:run-all-cells')")
        tab.wait_for_function(f"{IDLE} && {RUN} || {FAILED}", timeout=600_000)
        yield tab
        browser.close()


def change(tab, holds: str, edit) -> None:
    """Edit the one code cell that holds a text, as a reader would."""
    sources = tab.evaluate(f"{CODE}.map(cell => cell.model.sharedModel.getSource())")
    [at] = [i for i, source in enumerate(sources) if holds in source]
    tab.evaluate(
        f"([at, source]) => {CODE}[at].model.sharedModel.setSource(source)",
        [at, edit(sources[at])],
    )


def outputs(tab) -> list[dict]:
    """The outputs of all cells."""
    return tab.evaluate(f"{CODE}.flatMap(cell => cell.model.outputs.toJSON())")


def test_every_cell_runs(tab) -> None:
    assert [o for o in outputs(tab) if o["output_type"] == "error"] == []


def test_progress_does_not_look_like_an_error(tab) -> None:
    printed = [o for o in outputs(tab) if o["output_type"] == "stream"]
    assert [o for o in printed if o["name"] == "stderr"] == []
    assert any("draw/s" in o["text"] for o in printed)
    pink = tab.locator('.jp-Notebook [data-mime-type="application/vnd.jupyter.stderr"]')
    assert pink.count() == 0


def test_captions_follow_the_figures(tab) -> None:
    texts = tab.locator(".jp-OutputArea figcaption").all_inner_texts()
    assert [re.match(r"Figure \d\.\d\.", text)[0] for text in texts] == [
        "Figure 2.2.",
        "Figure 2.1.",  # the key figure, with which the page begins
        "Figure 2.3.",  # of the cell that was changed
        "Figure 2.4.",
    ]
    alts = tab.evaluate(
        "[...document.querySelectorAll('.jp-OutputArea')].filter(area => "
        "area.querySelector('figcaption')).map(area => area.querySelector('img').alt)"
    )
    assert len(alts) == 4
    assert all(alts)


def test_references_are_words(tab) -> None:
    shown = tab.locator(".jp-Notebook .jp-RenderedMarkdown, .jp-Notebook .myst").all_inner_texts()
    prose = "\n".join(shown)
    assert not re.search(r"\{[a-z:]+\}", prose)
    assert "fig-mnist" not in prose
    assert "Figure 2.1 shows the digits" in prose
    assert "Lau et al. (2025)" in prose
    assert "../benchmarks" not in prose
    for title in ("Cross Reference Not Found", "Citation Not Found"):
        assert tab.locator(f'.jp-Notebook [title="{title}"]').count() == 0


def test_the_explorer_works(tab) -> None:
    explorer = tab.locator(".probe-explorer")
    assert explorer.count() == 1
    assert "rank 1 of 900" in explorer.locator(".about").inner_text()
    near = explorer.locator(".near .tile")
    before = near.all_inner_texts()
    explorer.locator(".list .tile").nth(3).click()
    assert "rank 4 of 900" in explorer.locator(".about").inner_text()
    assert len(before) == 11
    assert near.all_inner_texts() != before


def test_a_link_opens_another_chapter(tab) -> None:
    tab.locator(".jp-Notebook a", has_text="next chapter").click()
    tab.locator(".lm-TabBar-tab", has_text="03_memorization.ipynb").wait_for(timeout=60_000)
