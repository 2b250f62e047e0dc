"""Fixtures that several test files share."""

import gc
import os
import shutil

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported, and inherited

from unittest import mock

import book_run
import pytest
import torch
from torch.fx.experimental import proxy_tensor

import probelib

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def _reads_the_book(item):
    """Whether a test waits for the smoke run of the book."""
    return bool({"book", "visitor"} & set(item.fixturenames))


def pytest_collection_modifyitems(items):
    """The tests that need the smoke run of the book come last: it takes as long as the others.

    The chapter in JupyterLab needs none of it, and fills the time until it has ended.
    """
    items.sort(key=lambda i: (_reads_the_book(i), i.get_closest_marker("book") is not None))


@pytest.fixture(scope="session", autouse=True)
def _smoke_run(request, tmp_path_factory):
    """Begin that run beside the other tests, on the core that they leave."""
    if any(map(_reads_the_book, request.session.items)):
        book_run.start(tmp_path_factory)
    yield
    book_run.stop()


def pytest_collection_finish():
    """What is imported by now stays: no collection of garbage looks through it again."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _plain_recordings():
    """Steps are recorded without what compilers want to know of each operation.

    No run reads it, and it is half of what a short one takes.
    """
    record = probelib.chains.make_fx
    assert hasattr(proxy_tensor, "set_meta")  # else nothing would be recorded at all

    def recorder(function):
        def recorded(*args):
            with mock.patch.object(proxy_tensor, "set_meta", lambda proxy, value: proxy):
                return record(function)(*args)

        return recorded

    with mock.patch.object(probelib.chains, "make_fx", recorder):
        yield


@pytest.fixture(scope="module")
def one_thread():
    """Tiny networks run several times faster without a second thread to wait for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def python_in_every_step(monkeypatch):
    """Gradients of several chains by the model's own code, as an interruption of it needs."""
    monkeypatch.setattr(probelib.chains, "_recorded", lambda function, *args: function)


@pytest.fixture(scope="module")  # Playwright's loop must not run beside other tests
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (chromium, chromium-browser, google-chrome)")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--no-first-run"],
        )
        yield browser
        browser.close()


@pytest.fixture
def show(browser, tmp_path):
    """Opens a page around a piece of HTML; afterwards nothing has gone wrong in it."""
    wrong, tabs = [], []

    def note(message):
        if message.type == "error":
            wrong.append(message.text)

    def opened(piece, width=1280, theme='data-theme="light"', body="", address="", scheme="light"):
        page = tmp_path / "page.html"
        page.write_text(
            f'<!doctype html><html {theme}><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width"><body {body}>{piece}</body>',
            encoding="utf-8",
        )
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab.on("console", note)
        tab.on("pageerror", lambda e: wrong.append(str(e)))
        tab.goto(page.as_uri() + address)
        tabs.append(tab)
        return tab

    yield opened
    for tab in tabs:
        tab.close()
    assert wrong == []
