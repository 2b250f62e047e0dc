"""Chapter 09's tables and sentences, of tables made by hand."""

import numpy as np
import pandas as pd
import pytest
from test_benchmark_summaries import TWO, table

from probebook import benchmark_summaries as summaries
from probebook.chapter import Chapter
from probebook.chapters import samplers_and_settings as helpers

NAMES = {"a": "SGLD", "b": "RMSprop-SGLD"}
ROWS = TWO.assign(weights=100, depth=3, eq1_se=0.1, mcse=0.2, sampler=TWO.sampler.map(NAMES))


@pytest.fixture
def chapter(tmp_path):
    return Chapter("09_samplers_and_settings", profile="smoke", results_dir=tmp_path)


def test_names_of_samplers_are_parts_of_names_of_numbers():
    assert helpers.key_of("Leimkuhler-Matthews") == "leimkuhler_matthews"


def test_problems_are_counted_once_and_shown_with_both_truths(chapter):
    helpers.record_known(chapter, ROWS)
    assert chapter.numbers["n_problems"] == 3
    assert chapter.numbers["n_runs"] == 18
    assert chapter.numbers["n_diverged"] == 4
    assert chapter.numbers["share_of_limit_least"] == 0.5
    rows = helpers.problem_rows(chapter, ROWS)
    assert [row["learning coefficient λ"] for row in rows] == ["20", "40", "60"]
    assert chapter.numbers["problem_2_eq1"] == 20


def test_errors_that_are_not_known_are_not_recorded(chapter):
    rows = helpers.error_rows(chapter, summaries.relative_errors(ROWS))
    assert chapter.numbers["relative_error_sgld"] == 0.04
    assert rows[0]["median error there"].startswith("4.0% ± ")
    none = ROWS.assign(relative_error_to_eq1=np.nan, llc=np.nan)
    rows = helpers.error_rows(chapter, summaries.relative_errors(none))
    assert rows[0]["median error there"] == "diverged ± not known"
    assert chapter.numbers["relative_error_sgld_text"] == "diverged ± not known"


def test_orders_are_those_at_the_best_step(chapter):
    found = summaries.kendall(ROWS)
    rows = helpers.kendall_rows(chapter, found, summaries.best_steps(ROWS).to_dict())
    assert chapter.numbers["kendall_sgld"] == 1
    assert "kendall_sgld_se" not in chapter.numbers  # of three pairs, all in the right order
    assert {row["sampler"] for row in rows} == {"SGLD", "RMSprop-SGLD"}


def test_verdicts_are_recorded_as_they_are_shown(chapter):
    rows = helpers.verdict_rows(chapter, summaries.verdicts(ROWS))
    assert chapter.numbers["verdict_approved_off_sgld"] == pytest.approx(1 / 9)
    assert rows[0]["approved, off"] == "11.1%"


@pytest.mark.parametrize(("error", "says"), [(0.2, "is sure"), (0.011, "not sure")])
def test_a_winner_is_said_to_be_sure_only_where_it_is(chapter, error, says):
    first = [0.01, 0.0101, 0.3] * 3
    second = [0.01 + error] * 3 + ([0.005] * 6 if error < 0.1 else [0.4] * 6)
    rows = table({"SGLD": {1.0: first}, "RMSprop-SGLD": {1.0: second}})
    helpers.error_rows(chapter, summaries.relative_errors(rows))
    helpers.record_winner(chapter, rows, summaries.winner(rows))
    assert says in helpers.winner_in_words(chapter)
    assert chapter.numbers["rmsprop_wins"] == int(error < 0.1)


def test_the_digits_say_only_what_there_is(chapter):
    found = pd.DataFrame(
        {
            "sampler": ["SGLD"] * 3,
            "step_size": [1e-3, 1e-2, 1e-1],
            "llc": [7.0, 9.0, np.nan],
            "mcse": [0.1, 0.1, np.nan],
            "error": [0.02, 0.3, np.inf],
            "spearman": [0.99, 0.97, np.nan],
            "spearman_se": [0.001, np.inf, np.inf],
            "kernel": [0.8, 0.7, np.nan],
            "verdict": ["good", "wrong", "wrong"],
        }
    )
    rows = helpers.agreement_rows(chapter, found)
    assert rows[2]["LLC"] == "diverged"
    assert rows[1]["ranks of the gains"] == "0.9700 ± not known"
    helpers.record_digits(chapter, found, {"spearman": 0.995, "kernel": 0.9})
    said = helpers.digits_in_words(chapter).format(**chapter.numbers)
    assert "**1** have an LLC" in said
    assert "by up to 30%" in said
    fresh = Chapter("09_samplers_and_settings", profile="smoke", results_dir=chapter.path.parent)
    helpers.record_digits(fresh, found[:1], {"spearman": 0.995, "kernel": 0.9})
    assert "Where it is off" not in helpers.digits_in_words(fresh).format(**fresh.numbers)


def test_runs_made_again_are_compared_in_standard_errors(chapter):
    again = ROWS[(ROWS.sampler == "SGLD") & (ROWS.step == 0.1)]
    moved = again.assign(llc=again.llc + 0.2 * np.sqrt(2) * 1.5)
    said = helpers.record_again(chapter, ROWS, moved)
    assert chapter.numbers["n_again"] == 3
    assert chapter.numbers["again_z_max"] == pytest.approx(1.5)
    assert "1.50" in said.format(**chapter.numbers)
