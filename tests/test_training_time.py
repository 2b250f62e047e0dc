"""Chapter 11's numbers, tables and sentences, of made-up trainings and stages."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.stats import spearmanr

from probebook.chapter import Chapter
from probebook.chapters import training_phases as of_phases
from probebook.chapters import training_stages as of_stages
from probebook.chapters import training_time as helpers
from probebook.curves import Cumulants, KernelPhases
from probebook.similarities import Interval, mean_interval
from probebook.stages import Stages

EPOCHS = [1, 2, 4]


@pytest.fixture
def chapter(tmp_path):
    return Chapter("11_training_time", profile="smoke", results_dir=tmp_path)


def run_of(correct, noisy):
    states = {epoch: {} for epoch in EPOCHS}
    path = SimpleNamespace(
        states=states, correct=correct, accuracy=lambda part: correct[:, part].mean(1)
    )
    return helpers.Run(path, None, noisy)


def series_of(gain, loss):
    """Checkpoints of four draws in two chains: gains and losses at w* as given, (c, n)."""
    gain, loss = np.asarray(gain, float), np.asarray(loss, float)
    move = np.array([-1.0, 1.0, 1.0, -1.0]).reshape(1, 2, 2, 1)
    drawn = (loss + gain)[:, None, None] + 0.01 * move
    return xr.Dataset(
        {
            "loss": (("checkpoint", "chain", "draw", "sample"), drawn),
            "init_loss": (("checkpoint", "sample"), loss),
        },
        coords={"checkpoint": EPOCHS[: len(gain)]},
    )


def test_means_over_networks_stay_where_they_can_be():
    plain = helpers.over_seeds([1.0, 2.0, 4.5])
    want = mean_interval([1.0, 2.0, 4.5])
    assert (plain.value, plain.low, plain.high) == (want.value, want.low, want.high)
    assert helpers.over_seeds([1.0, 4.0], "log").value == pytest.approx(2.0)
    high = helpers.over_seeds([0.9, 0.99, 0.999], "auroc")
    assert 0 < high.low < high.value < high.high < 1
    assert high.value == pytest.approx((1 + np.tanh(np.arctanh([0.8, 0.98, 0.998]).mean())) / 2)
    turned = helpers.over_seeds([-0.9, -0.5], "correlation")
    assert -1 < turned.low < turned.value < turned.high < 1
    assert helpers.over_seeds([1.0, 0.5], "correlation").value == 0.75  # an end of the scale
    assert math.isinf(helpers.over_seeds([3.0, math.inf], "log").value)


def test_what_was_never_reached_has_a_text_and_no_number(chapter):
    helpers.record_interval(chapter, "a", Interval(math.inf, math.nan, math.nan))
    helpers.record_interval(chapter, "b", Interval(2.0, 1.0, 3.0))
    helpers.record_interval(chapter, "c", Interval(2.0, math.nan, math.nan))
    assert chapter.numbers == {
        "a_text": "not reached in every network",
        "b": 2.0, "b_low": 1.0, "b_high": 3.0, "b_text": "2 [1, 3]",
        "c": 2.0, "c_text": "2",
    }  # fmt: skip


def race(chapter, gain, loss):
    """Two networks of 100 digits, of which ten are wrong; half of these are right at epoch 2."""
    noisy = np.arange(100) < 10
    correct = np.ones((4, 100), bool)
    correct[0, :10], correct[1, :5] = False, False
    runs = [run_of(correct, noisy)] * 2
    found = [{"loss gain": np.array(gain), "loss": np.array(loss)}] * 2
    helpers.record_race(chapter, runs, found, np.arange(100))
    return helpers.race_in_words(chapter).format(**chapter.numbers)


def test_the_race_is_told_as_it_was(chapter):
    said = race(chapter, [0.7, 0.97, 0.99], [0.95, 0.9, 0.8])
    assert chapter.numbers["memorization_epoch_accuracy"] == pytest.approx(2.0)
    # 0.9 is 0.2 / 0.27 of the way from 1 to 2, in logarithms.
    assert chapter.numbers["memorization_epoch_gain"] == pytest.approx(2 ** (0.2 / 0.27))
    assert chapter.numbers["gain_lead"] == pytest.approx(2 ** (1 - 0.2 / 0.27))
    assert chapter.numbers["auroc_loss_first"] == pytest.approx(0.95)
    assert "its level earlier" in said
    assert "But the loss needs no memorization" in said
    # Differences -0.25 and 0.07: on the line, 25/32 of the way.
    assert chapter.numbers["gain_overtakes_loss_epoch"] == pytest.approx(2 ** (25 / 32))
    assert chapter.numbers["gain_above_chance_epoch"] == "epoch 1"


def test_a_gain_that_is_late_or_never_there_is_said_to_be(chapter, tmp_path):
    said = race(chapter, [0.4, 0.5, 0.95], [0.2, 0.3, 0.4])
    assert "its level later" in said
    assert "But the loss" not in said
    assert chapter.numbers["gain_above_chance_epoch"] == "epoch 4"
    other = Chapter("11_training_time", profile="smoke", results_dir=tmp_path)
    said = race(other, [0.4, 0.5, 0.6], [0.9, 0.9, 0.9])
    assert "passes 0.9: not reached in every network" in said
    assert "gain_lead" not in other.numbers


def test_scores_and_their_aurocs_are_those_of_the_trace():
    gain, loss = [[1, 2, 3, 4], [4, 3, 2, 1]], [[1, 1, 2, 2], [2, 2, 1, 1]]
    series = series_of(gain, loss)
    found = helpers.scores(series)
    np.testing.assert_allclose(found["loss gain"], gain)
    np.testing.assert_allclose(found["loss along the chains"], np.add(gain, loss))
    areas = helpers.aurocs(series, np.array([False, False, True, True]))
    np.testing.assert_array_equal(areas["loss gain"], [1, 0])
    np.testing.assert_array_equal(areas["loss"], [1, 0])


def test_what_is_memorized_is_told_from_what_is_only_wrong(chapter):
    noisy = np.array([True, True, False, False])
    seen = series_of([[3, 4, 1, 2], [9, 9, 1, 2]], [[5, 6, 1, 1], [0.1, 0.2, 0, 0]])
    unseen = series_of([[3.5, 4.5], [0.5, 0.6]], [[5.5, 5.6], [7, 8]])
    found = helpers.against_unseen(seen, noisy, unseen)
    np.testing.assert_array_equal(found["loss gain"], [0.25, 1])  # 4 above 3.5, of four pairs
    np.testing.assert_array_equal(found["low loss"], [0.5, 1])  # 5 is below both, 6 is not
    np.testing.assert_array_equal(found["unseen gain"], [1, 0])
    helpers.record_unseen(chapter, [1, 10], [found, found])
    # From 0.25 to 1, 0.9 is 0.65 / 0.75 of the way.
    assert chapter.numbers["seen_gain_epoch"] == pytest.approx(10 ** (0.65 / 0.75))
    assert chapter.numbers["seen_loss_epoch"] == pytest.approx(10**0.8)
    chapter.record(auroc_gain_first_text="0.70", stage_times_known="1", stage_times_llc="2")
    chapter.record(memorization_epoch_accuracy_text="9", memorization_epoch_gain_text="5")
    answer = helpers.answer_in_words(chapter).format(**chapter.numbers)
    assert "a label is wrong, not that it is memorized" in answer
    assert "better detector" not in answer
    said = helpers.unseen_in_words(chapter).format(**chapter.numbers)
    assert "the unseen have the higher gains" in said
    chapter.record(auroc_seen_gain_first_low=0.4, auroc_seen_gain_first_high=0.6)
    assert "do not tell the two kinds" in helpers.unseen_in_words(chapter)


def test_labels_that_are_not_fitted_have_a_column_of_their_own(chapter):
    noisy = np.arange(40) < 12
    correct = np.ones((4, 40), bool)
    correct[:2, :6] = False
    gain = np.tile(np.where(np.arange(40) < 6, 2.0, np.where(noisy, 0.0, 1.0)), (3, 1))
    rows = helpers.race_rows(
        chapter, [run_of(correct, noisy)], [series_of(gain, 0 * gain)], np.arange(40)
    )
    assert [row["epoch"] for row in rows] == ["1", "2", "4"]
    assert rows[0]["AUROC gain, wrong labels not yet fitted"] == "1.00"
    assert rows[0]["AUROC gain"] == "0.50"
    assert rows[2]["AUROC gain, wrong labels not yet fitted"] == "–"
    assert rows[0]["accuracy, wrong labels"] == "0.50"
    assert chapter.numbers["race_accuracy_wrong_labels_1"] == 0.5
    assert "race_spread_accuracy_wrong_labels_1" not in chapter.numbers  # of a single network


def test_the_order_of_learning_is_held_to_the_final_gain(chapter):
    rng = np.random.default_rng(0)
    runs, series, found = {}, {}, []
    for number in range(3):
        correct = np.sort(rng.random((4, 30)) < 0.5, axis=0)  # once right, always right
        gain = rng.random((3, 30))
        for kind in ("clean", "noisy"):
            noisy = (np.arange(30) < 9) & (kind == "noisy")
            runs[kind, number] = run_of(correct, noisy)
            series[kind, number] = series_of(gain, 1 - gain)
        order = 4 - correct.sum(0) + 1
        found.append(spearmanr(order, gain[-1]).statistic)
    rows = helpers.record_order(chapter, runs, series, np.arange(30))
    want = helpers.over_seeds(found, "correlation")
    numbers = chapter.numbers
    assert numbers["spearman_learning_order_gain"] == pytest.approx(want.value)
    assert numbers["spearman_learning_order_gain_low"] == pytest.approx(want.low)
    assert numbers["spearman_learning_order_loss"] == pytest.approx(-want.value)
    assert numbers["spearman_learning_order_gain_noisy"] == pytest.approx(want.value)
    assert len(rows) == 4
    said = helpers.order_in_words(chapter).format(**numbers)
    sure = numbers["spearman_learning_order_gain_low"] > 0
    assert ("learned later has the higher gain" in said) == sure


def test_the_next_to_be_learned_are_looked_for_among_the_unfitted(chapter):
    noisy = np.arange(30) < 20
    epoch = np.r_[np.full(5, 1), np.repeat([2, 3, 4], 5), np.full(10, 1)]
    correct = np.arange(1, 5)[:, None] >= epoch
    gain = np.tile(-epoch.astype(float), (3, 1))
    gain[:, :5] = 99  # fitted at epoch 1 already, not asked
    helpers.record_next(
        chapter, [run_of(correct, noisy)] * 2, [series_of(gain, -gain)] * 2, np.arange(30), at=0
    )
    assert chapter.numbers["exercise_next_epoch"] == 1
    assert chapter.numbers["exercise_next_gain"] == pytest.approx(-1)
    assert chapter.numbers["exercise_next_loss"] == pytest.approx(1)
    helpers.record_next(
        chapter, [run_of(correct, noisy)], [series_of(gain, -gain)], np.arange(30), at=2
    )
    assert chapter.numbers["exercise_next_gain_text"] == "not known"


TABLE = pd.DataFrame(
    {
        "llc": [3.0, 2.0, 5.0],
        "llc_mcse": [0.1, np.inf, 0.2],
        "llc_step_bias": [0.01, np.nan, 0.02],
        "gain_q10": 0.1, "gain_q50": 0.2, "gain_q90": 0.3, "not_fitted": 0.25,
        "verdict": ["wrong", "uncertain", "good"],
    },
    index=pd.Index(EPOCHS, name="checkpoint"),
)  # fmt: skip


def test_checkpoints_that_cannot_be_read_are_named(chapter):
    helpers.record_tables(chapter, {"right": TABLE, "wrong": TABLE})
    numbers = chapter.numbers
    assert numbers["llc_wrong_lowest"] == 2
    assert numbers["llc_wrong_lowest_text"] == "2.00 ± not known"
    assert "llc_wrong_lowest_mcse" not in numbers
    assert numbers["llc_wrong_lowest_epoch"] == 2
    assert numbers["llc_wrong_last_bias_text"] == "+0.02"
    assert (numbers["verdicts_wrong_good"], numbers["verdicts_wrong_wrong"]) == (1, 1)
    assert numbers["verdicts_right_wrong_epochs"] == "1"
    assert numbers["checkpoints"] == 3
    rows = helpers.table_rows(chapter, {"right": TABLE})
    assert [row["verdict"] for row in rows] == ["wrong", "uncertain", "good"]
    assert rows[1]["step bias"] == "–"
    assert rows[0]["gains: 10, 50, 90 %"] == "0.10, 0.20, 0.30"
    assert numbers["at_gain_q90_right_1"] == 0.3
    assert "at_llc_step_bias_right_2" not in numbers  # what is not known is not recorded


def test_signs_of_the_third_cumulant_are_counted(chapter):
    sure, open_, down = (Cumulants(1, 0.1, third, 1.0, third, 0.5) for third in (3, 1, -3))
    of_phases.record_cumulants(chapter, {"wrong": {1: sure, 2: open_, 4: down}}, {"wrong": TABLE})
    numbers = chapter.numbers
    assert numbers["third_wrong_share_of_gamma"] == pytest.approx(-3 / 10)
    assert (numbers["third_positive"], numbers["third_checkpoints"]) == (2, 3)
    assert (numbers["third_positive_sure"], numbers["third_negative_sure"]) == (1, 1)
    assert numbers["third_wrong_last_text"] == "-3.00 ± 1.00"
    rows = of_phases.cumulant_rows(chapter, {"wrong": {1: sure}}, {"wrong": TABLE})
    assert rows[0]["LLC"] == "3.0"
    assert numbers["at_third_se_wrong_1"] == 1.0


def test_kernels_that_noise_has_eaten_are_not_compared(chapter):
    one = np.array([[1, 0.5], [0.5, 1]])
    phases = KernelPhases(np.array([1, 9]), 0.6 * one, one, 0.1 * one, 0.9 * one)
    of_phases.record_phases(chapter, phases, "wrong")
    assert chapter.numbers["kernel_wrong_ends"] == 0.5
    assert chapter.numbers["kernel_wrong_ends_high"] == pytest.approx(0.5 + 1.96 * 0.05)
    assert chapter.numbers["kernel_wrong_least_text"] == "0.50, between epochs 1 and 9"
    eaten = KernelPhases(phases.names, -one, np.nan * one, one, one)
    of_phases.record_phases(chapter, eaten, "right")
    assert chapter.numbers["kernel_right_ends_text"].startswith("not known")
    assert chapter.numbers["kernel_right_reliability_least"] == -1


TIMES = np.linspace(0, 4, 41)
KNOWN = np.array([1.0, 3.0])


def stages(shift):
    """Singular values that pass one half at 1 and 3, and an LLC that rises earlier by shift."""
    sizes = np.array([4.0, 2.0]) / (1 + np.exp(-8 * (TIMES[:, None] - KNOWN)))
    steps = 1 / (1 + np.exp(-20 * (TIMES[:, None] + shift - KNOWN)))
    return Stages(TIMES, sizes, 10 + steps @ [4.0, 2.0], np.full(41, 0.01), 1.0)


def test_stages_by_three_clocks(chapter):
    early = stages(0.3)
    rows = of_stages.record_stages(chapter, early, early.singular, KNOWN, (4.0, 2.0), [10, 14, 16])
    numbers = chapter.numbers
    assert numbers["stage_1_llc"] == pytest.approx(0.7, abs=0.01)
    assert numbers["stage_2_llc_low"] <= 2.7 <= numbers["stage_2_llc_high"] + 0.01
    assert numbers["stage_closed_form_error"] == 0
    assert numbers["stage_1_strength"] == pytest.approx(1 / (1 + math.exp(2.4)), rel=0.05)
    assert numbers["stage_times_known"] == "1.00, 3.00"
    assert [row["singular value passes one half"] for row in rows] == ["1.00", "3.00"]
    said = of_stages.stages_in_words(chapter, 2).format(**numbers)
    assert "Between 1 of 1 pairs" in said
    assert (numbers["stages_early"], numbers["stages_late"]) == (2, 0)
    misses = of_stages.claims(chapter, KNOWN, (4.0, 2.0), TIMES)
    assert [claim.holds(numbers[claim.key]) for claim in misses] == [True, False, False]


def test_a_curve_without_plateaus_has_no_stages_of_its_own(chapter):
    ramp = Stages(TIMES, stages(0.0).singular, 10 + 1.5 * TIMES, np.full(41, 0.01), 1.0)
    of_stages.record_stages(chapter, ramp, ramp.singular, KNOWN, (4.0, 2.0), [10, 12, 15])
    assert chapter.numbers["stage_2_llc"] == pytest.approx(7 / 3)
    assert chapter.numbers["stages_parted"] == 0


def test_a_stage_that_the_llc_never_marks(chapter):
    found = stages(0.0)
    of_stages.record_stages(chapter, found, found.singular, KNOWN, (4.0, 2.0), [10, 14, 30])
    assert "stage_2_llc" not in chapter.numbers
    assert chapter.numbers["stage_times_llc"].endswith(", never")
    said = of_stages.stages_in_words(chapter, 2).format(**chapter.numbers)
    assert "It passes 1 of 2 stages" in said
    keys = [claim.key for claim in of_stages.claims(chapter, KNOWN, (4.0, 2.0), TIMES)]
    assert keys == ["stage_closed_form_error", "stage_1_llc"]
    rows = of_stages.resolution_rows(
        chapter, {(100.0, 0.5): found}, (4.0, 2.0), KNOWN, [10, 14, 30]
    )
    assert rows[0]["stage 1 (known)"] == "1.00 (1.00), at 50%"
    assert rows[0]["stage 2 (known)"] == "never (3.00)"
    assert chapter.numbers["stage_llc_last_nb_100_gamma_0p5"] == pytest.approx(16, abs=0.01)


def test_chains_are_checked_and_refused_losses_counted(chapter):
    found = stages(0.0)
    check = np.array([[0.0, 10.0, 0.03], [4.0, 16.1, 0.03]])
    loss = pd.DataFrame({"llc": [-50.0, 4.0], "verdict": ["wrong", "good"]}, index=[0.0, 4.0])
    of_stages.record_checks(chapter, found, check, loss)
    numbers = chapter.numbers
    assert numbers["stage_check_z"] == pytest.approx(0.1 / math.hypot(0.03, 0.01), rel=0.02)
    assert (numbers["loss_llc_wrong"], numbers["loss_llc_negative"]) == (1, 1)
    assert numbers["loss_llc_readable"].endswith("at time 4.00.")
    of_stages.record_checks(chapter, found, check, loss.assign(verdict="wrong"))
    assert chapter.numbers["loss_llc_readable"] == "It can be read nowhere."
