"""Chapter 09's tables and sentences, of tables made by hand."""

import numpy as np
import pandas as pd
import pytest
from test_benchmark_summaries import TWO, table

from probebook import benchmark_summaries as summaries
from probebook import calibrated_networks
from probebook.chapter import Chapter
from probebook.chapters import samplers_and_settings as helpers

NAMES = {"a": "SGLD", "b": "RMSprop-SGLD"}
SAID = TWO.verdict.where(TWO.llc.notna(), "wrong")  # nothing approves a run that diverged
ROWS = TWO.assign(
    weights=100,
    depth=3,
    eq1_se=0.1,
    mcse=0.2,
    step_bias=0.0,
    sampler=TWO.sampler.map(NAMES),
    verdict=SAID,
)


@pytest.fixture
def chapter(tmp_path):
    return Chapter("09_samplers_and_settings", profile="smoke", results_dir=tmp_path)


def test_names_of_samplers_are_parts_of_names_of_numbers():
    assert helpers.key_of("Leimkuhler-Matthews") == "leimkuhler_matthews"
    assert helpers.key_of("10^5 weights") == "10_5_weights"


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
    rows = helpers.kendall_rows(
        chapter, found, summaries.kendall(ROWS, "eq1"), summaries.best_steps(ROWS).to_dict()
    )
    assert chapter.numbers["kendall_eq1_sgld"] == 1
    assert chapter.numbers["kendall_sgld"] == 1
    assert "kendall_sgld_se" not in chapter.numbers  # of three pairs, all in the right order
    assert {row["sampler"] for row in rows} == {"SGLD", "RMSprop-SGLD"}


def test_verdicts_are_recorded_as_they_are_shown(chapter):
    rows = helpers.verdict_rows(chapter, summaries.verdicts(ROWS))
    assert chapter.numbers["verdict_approved_off_sgld"] == pytest.approx(1 / 9)
    assert rows[0]["approved, off"] == "11.1%"
    helpers.record_known(chapter, ROWS)
    said = helpers.verdicts_in_words(chapter).format(**chapter.numbers)
    worst = summaries.error_of(ROWS)[ROWS.verdict == "good"].max()
    assert f"the worst by {worst:.0%}" in said
    off = summaries.error_of(ROWS) > 0.1
    missed = (off & (ROWS.verdict == "good")).sum() / off.sum()
    assert f"approves {missed:.1%} of the runs that are off" in said
    assert f"{summaries.outside(ROWS):.1%} of the approved runs" in said
    fresh = Chapter("09_samplers_and_settings", profile="smoke", results_dir=chapter.path.parent)
    none = ROWS.assign(verdict="wrong")
    helpers.record_known(fresh, none)
    helpers.verdict_rows(fresh, summaries.verdicts(none))
    said = helpers.verdicts_in_words(fresh).format(**fresh.numbers)
    assert "approves 0.0%" in said
    assert "of the approved runs" not in said


def test_errors_by_size_are_those_at_the_best_step_there(chapter):
    large = ROWS[(ROWS.step == 0.1) & (ROWS.sampler == "SGLD")].assign(group="large")
    rows = helpers.size_rows(chapter, pd.concat([ROWS, large], ignore_index=True))
    assert rows[0] == {"sampler": "SGLD", "g": "4.0% (1)", "large": "30.0% (0.1)"}
    assert rows[1]["large"] == "–"
    assert chapter.numbers["error_rmsprop_sgld_g"] == 0.06


def test_a_problem_whose_limit_nobody_knows_is_shown_without(chapter):
    rows = helpers.problem_rows(chapter, ROWS.assign(limit=np.nan))
    assert {row["learning coefficient λ"] for row in rows} == {"not known"}
    assert "problem_1_limit" not in chapter.numbers


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
    rows = helpers.agreement_rows(chapter, found, "digits")
    assert rows[2]["LLC"] == "diverged"
    assert rows[1]["ranks of the gains"] == "0.9700 ± not known"
    ceiling = {"spearman": 0.995, "kernel": 0.9}
    helpers.record_agreement(chapter, found, ceiling, "digits")
    said = helpers.agreement_in_words(chapter, "digits").format(**chapter.numbers)
    assert "**1** have an LLC" in said
    assert "by up to 30%" in said
    fresh = Chapter("09_samplers_and_settings", profile="smoke", results_dir=chapter.path.parent)
    helpers.record_agreement(fresh, found[:1], ceiling, "digits")
    said = helpers.agreement_in_words(fresh, "digits").format(**fresh.numbers)
    assert "Where it is off" not in said
    about = {"weights": 9, "llc": 3.0, "mcse": 0.1, "khat": 0.2}
    helpers.record_gpt(fresh, {"about": about, "rows": found[1:], "ceiling": ceiling})
    said = helpers.agreement_in_words(fresh, "gpt").format(**fresh.numbers)
    assert said.startswith("The reference has an LLC of 3.00 ± 0.10 (k-hat 0.20).")
    assert "**0** have an LLC" in said


def test_what_calibrate_found_is_counted_and_shown(chapter):
    row = {
        "network": "a net", "kind": "toy", "sound": True, "refused": "", "weights": 9,
        "localization": 30.0, "step_size": 0.011, "burn_in": 50.0, "draws": 300.0,
        "thin": 2.0, "llc": 2.0, "mcse": 0.05, "reference": 2.2,
        "reference_mcse": 0.02, "off": -0.09, "verdict": "good", "seconds": 3.0,
    }  # fmt: skip
    refused = {"network": "no net", "sound": False, "refused": "it knows nothing", "weights": 9}
    found = pd.DataFrame([row, refused | {"verdict": None, "seconds": 1.0}])
    table = helpers.calibration_rows(chapter, found)
    assert table[0]["off by"] == "-9.0%"
    assert table[0]["burn-in, draws, thin"] == "50, 300, 2"
    assert list(table[0]) == list(table[1])
    assert table[1]["verdict"] == "refused"
    chapter.record(**calibrated_networks.summary(found))
    assert chapter.numbers["calibrated_wrong"] == 1
    chosen = ROWS[ROWS.step == 1.0].assign(refused="")
    helpers.record_choices(chapter, summaries.of_choices(ROWS, chosen), chosen)
    said = helpers.calibration_in_words(chapter).format(**chapter.numbers)
    assert "**1** are approved and wrong" in said
    assert "The median regret is" in said
    helpers.error_rows(chapter, summaries.relative_errors(ROWS))
    helpers.record_winner(chapter, ROWS, summaries.winner(ROWS))
    chapter.record(relative_error_leimkuhler_matthews_text="1 %")
    helpers.record_front(chapter)
    assert chapter.numbers["front_calibrated"].endswith("1 refused, 1 wrong")
    assert "Leimkuhler-Matthews: 1 %" in chapter.numbers["front_errors"]


def test_runs_made_again_are_compared_in_standard_errors(chapter):
    again = ROWS[(ROWS.sampler == "SGLD") & (ROWS.step == 0.1)]
    moved = again.assign(llc=again.llc + 0.2 * np.sqrt(2) * 1.5)
    said = helpers.record_again(chapter, ROWS, moved)
    assert chapter.numbers["n_again"] == 3
    assert chapter.numbers["again_z_max"] == pytest.approx(1.5)
    assert "1.50" in said.format(**chapter.numbers)
