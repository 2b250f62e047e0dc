"""A run card says what a chapter sampled, what came from the cache, and what it had cost."""

from __future__ import annotations

import datetime
import logging

import nbformat
import pytest
import torch
from test_anatomy import copied_from, executed

import prepare
import probelib
from probebook.chapter import RUN_CARD, Chapter
from probebook.ledger import Ledger, summary
from probebook.training import RECIPES, trained_network
from probelib.progress import report_run


@pytest.fixture
def ledger():
    logger, before = logging.getLogger("probelib"), logging.getLogger("probelib").level
    ledger = Ledger()
    ledger.listen()
    yield ledger
    logger.removeHandler(ledger)
    logger.setLevel(before)


@pytest.fixture
def posterior():
    torch.manual_seed(0)
    data = torch.randn(12, 3), torch.randint(0, 2, (12,))
    model = torch.nn.Linear(3, 2)
    return probelib.LocalPosterior(
        model, probelib.cross_entropy, data, n_beta=1.0, localization=10.0
    )


def test_what_was_sampled_is_found_in_the_cache_the_next_time(ledger, posterior, tmp_path):
    settings = {"sampler": probelib.SGLD(1e-2), "chains": 2, "draws": 5, "progress": False}
    for cached in (False, True):
        ledger.runs.clear()
        trace = probelib.sample(posterior, **settings, cache=tmp_path)
        probelib.importance_sample(posterior, 7, cache=tmp_path, progress=False)
        probelib.gradient_pairs(posterior, chains=2, pairs=1, cache=tmp_path, progress=False)
        kinds = [(run["kind"], run["draws"], run["cached"]) for run in ledger.runs]
        walk = ("gradient walk", None, cached)
        assert kinds == [("trace", 10, cached), ("weighted trace", 7, cached), walk, walk]
        assert ledger.runs[0]["seconds"] == trace.attrs["wall_time"]
        assert all((run["made"] is not None) == cached for run in ledger.runs)
    today = datetime.datetime.now(datetime.UTC).timestamp()
    assert all(abs(run["made"] - today) < 600 for run in ledger.runs)


def test_a_trace_that_is_not_kept_was_made(ledger, posterior):
    probelib.sample(posterior, sampler=probelib.SGLD(1e-2), chains=1, draws=3, progress=False)
    assert [(run["draws"], run["cached"]) for run in ledger.runs] == [(3, False)]


def test_networks_are_counted(ledger, tmp_path, monkeypatch):
    monkeypatch.setenv("PROBELIB_CACHE", str(tmp_path))
    images = torch.randint(0, 256, (20, 28, 28), dtype=torch.uint8)
    recipe = RECIPES["sgd-unit-1x512"]
    for _ in range(2):
        trained_network(recipe, images, torch.arange(20) % 10, seed=0, progress=False)
    made, kept = ledger.runs
    assert (made["kind"], made["cached"]) == ("network", False)
    assert (kept["kind"], kept["cached"]) == ("network", True)
    assert kept["seconds"] == made["seconds"]


def run(kind, seconds, draws=None, made=None):
    return {"kind": kind, "seconds": seconds, "draws": draws, "cached": True, "made": made}


def test_runs_are_summed_by_kind():
    day = 86_400.0
    runs = [run("trace", 60, 2500, day), run("network", 5.04), run("trace", 100, 500, 3 * day)]
    assert summary(runs) == (
        "2 traces, 3,000 draws, 2 min 40 s; 1 network, 5.0 s; made 1970-01-02 to 1970-01-04"
    )
    assert summary(runs[:1]) == "1 trace, 2,500 draws, 1 min 00 s; made 1970-01-02"
    assert summary([]) == "nothing"


def test_a_setup_cell_that_ran_twice_counts_once(ledger, tmp_path):
    chapters = [Chapter("00_test", profile="smoke", results_dir=tmp_path) for _ in range(2)]
    report_run("trace", 1.0, cached=False, draws=4)
    assert [len(chapter.ledger.runs) for chapter in chapters] == [0, 1]
    assert chapters[1].ledger.rows() == [
        ("Made in this run", "1 trace, 4 draws, 1.0 s"),
        ("From the cache", "nothing"),
    ]
    logging.getLogger("probelib").removeHandler(chapters[1].ledger)


def test_the_card_of_a_page_has_what_the_chapter_says_of_its_runs():
    nb = executed()
    rows = [["Made in this run", "nothing"], ["From the cache", "5 traces, 2 h 10 min"]]
    nb.cells[-2].outputs.append(nbformat.v4.new_output("display_data", {RUN_CARD: rows}))
    page = prepare.executed_copy(nb, copied_from("laptop"), {})
    [card] = [cell for cell in page.cells if "run-card" in cell.metadata.get("tags", [])]
    assert (
        "| Made in this run | nothing |\n| From the cache | 5 traces, 2 h 10 min |" in card.source
    )
    assert not [o for c in page.cells for o in c.get("outputs", []) if RUN_CARD in o["data"]]
