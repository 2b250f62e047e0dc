"""What a table of runs says, on tables made by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau

from probebook import benchmark_summaries as summaries


def table(errors, verdicts=None, group="g", efficiency=None):
    """Rows from {sampler: {step: [relative error of each problem, None where it diverged]}}."""
    rows = []
    for sampler, by_step in errors.items():
        for step, of_problems in by_step.items():
            for k, error in enumerate(of_problems):
                truth = float(10 * (k + 1))
                off = math.nan if error is None else error
                rows.append(
                    {
                        "problem": f"p{k}",
                        "group": group,
                        "sampler": sampler,
                        "step": step,
                        "eq1": truth,
                        "limit": 2 * truth,
                        "llc": truth * (1 + off),
                        "relative_error_to_eq1": off,
                        "relative_error_to_limit": (1 + off) / 2 - 1,
                        "verdict": (verdicts or {}).get((sampler, step), "wrong"),
                        "effective_per_gradient": (efficiency or {}).get((sampler, step), 0.01),
                    }
                )
    return pd.DataFrame(rows)


TWO = table(
    {
        "a": {0.1: [-0.4, -0.3, -0.2], 1.0: [0.02, -0.04, 0.3], 10.0: [None, None, None]},
        "b": {0.1: [-0.5, -0.5, -0.5], 1.0: [0.2, 0.2, None], 10.0: [0.06, -0.05, 0.5]},
    },
    {("a", 1.0): "good", ("a", 0.1): "wide", ("b", 1.0): "good"},
    efficiency={("a", 1.0): 0.02, ("b", 10.0): 0.05},
)


def test_an_error_is_relative_and_a_diverged_run_is_infinitely_off():
    assert summaries.error_of(TWO).tolist()[:3] == [0.4, 0.3, 0.2]
    assert np.isinf(summaries.error_of(TWO)[TWO.llc.isna()]).all()
    assert summaries.error_of(TWO, "limit").iloc[0] == pytest.approx(0.7)
    with pytest.raises(ValueError, match="choose"):
        summaries.error_of(TWO, "lambda")
    with pytest.raises(ValueError, match="'p1'"):
        summaries.error_of(TWO.assign(limit=TWO.limit.where(TWO.problem != "p1")), "limit")


def test_each_sampler_is_judged_at_its_best_step_and_over_the_range():
    found = summaries.relative_errors(TWO).set_index("sampler")
    assert found.loc["a", ["step", "error", "own_step_error"]].tolist() == [1.0, 0.04, 0.04]
    assert found.loc["b", ["step", "error", "own_step_error"]].tolist() == [
        10.0,
        0.06,
        0.2 * 0 + 0.06,
    ]
    # Of nine errors of a, three infinite: 0.02 0.04 0.2 0.3 [0.3] 0.4 ...
    assert found.loc["a", "range_error"] == pytest.approx(0.3)
    assert found.loc["a", "range_close"] == pytest.approx(2 / 9)
    assert found.loc["b", "range_close"] == pytest.approx(2 / 9)


def test_problems_of_several_groups_are_taken_together_and_none_may_lack_a_run():
    both = pd.concat([TWO, TWO.assign(group="h", problem="q" + TWO.problem)], ignore_index=True)
    once, twice = (
        summaries.relative_errors(t, resamples=5).set_index("sampler") for t in (TWO, both)
    )
    columns = ["step", "error", "own_step_error", "range_error", "range_close"]
    pd.testing.assert_frame_equal(once[columns], twice[columns])
    assert summaries.winner(both, resamples=5)["winner"] == "a"
    with pytest.raises(ValueError, match="'qp2'"):
        summaries.relative_errors(both.iloc[:-1])


def test_steps_are_summed_up_over_problems():
    found = summaries.by_step(TWO).set_index(["sampler", "step"])
    assert found.loc[("a", 0.1), ["low", "error", "high"]].tolist() == [0.3, 0.3, 0.4]
    assert np.isinf(found.loc[("a", 10.0), "error"])
    assert found.loc[("a", 1.0), ["good", "wide", "wrong"]].tolist() == [1, 0, 0]
    assert found.loc[("b", 10.0), "effective_per_gradient"] == 0.05


def test_errors_over_problems_shrink_as_problems_grow():
    rng = np.random.default_rng(0)
    few, many = (table({"a": {1.0: list(rng.normal(0, 0.1, n))}}) for n in (25, 400))
    of_few, of_many = (summaries.relative_errors(t).error_se[0] for t in (few, many))
    # The standard error of a median, 1 / (2 f sqrt(n)): |N(0, 0.1)| has the density 6.4 at its.
    assert of_many == pytest.approx(1 / (2 * 6.36 * 20), rel=0.5)
    assert 2 < of_few / of_many < 8  # sqrt(16) = 4


def test_the_winner_is_sure_only_where_problems_agree():
    sure = table({"a": {1.0: [0.01] * 9}, "b": {1.0: [0.2] * 9}})
    assert summaries.winner(sure) == {
        "winner": "a", "runner_up": "b", "lead": pytest.approx(0.19), "share": 1.0
    }  # fmt: skip
    mixed = table({"a": {1.0: [0.01, 0.3] * 4 + [0.1]}, "b": {1.0: [0.3, 0.01] * 4 + [0.11]}})
    found = summaries.winner(mixed)
    assert found["winner"] == "a"
    assert 0.3 < found["share"] < 0.7


def test_tau_is_kendalls_and_looks_within_groups_only():
    rng = np.random.default_rng(1)
    rows = table({"a": {1.0: list(rng.normal(0, 0.7, 12))}})
    found = summaries.kendall(rows)
    assert found.tau[0] == pytest.approx(kendalltau(rows.limit, rows.llc).statistic)
    assert found.preserved[0] == pytest.approx((1 + found.tau[0]) / 2)
    # A second group of ten times the size, in reversed order: pairs across do not count.
    right = table({"a": {1.0: [0.0, 0.0, 0.0]}})
    wrong = right.assign(group="h", llc=300 - right.llc, limit=right.limit * 10)
    both = pd.concat([right, wrong], ignore_index=True)
    assert summaries.kendall(both).tau[0] == 0
    assert summaries.kendall(both).preserved[0] == 0.5


def test_a_perfect_sampler_need_not_order_the_limits():
    assert summaries.perfect_order(TWO) == 1
    assert summaries.perfect_order(TWO.assign(limit=-TWO.limit)) == -1
    swapped = TWO.assign(limit=TWO.limit.replace({20.0: 40.0, 40.0: 20.0}))
    assert summaries.perfect_order(swapped) == pytest.approx(1 / 3)


def test_a_pair_with_a_diverged_run_is_in_no_order():
    found = summaries.kendall(table({"a": {1.0: [0.0, 0.0, None], 2.0: [None] * 3}}))
    assert found.tau.tolist() == pytest.approx([1 / 3, 0])
    assert found.preserved.tolist() == pytest.approx([1 / 3, 0])
    two = summaries.kendall(table({"a": {1.0: [0.0, 0.0]}}))
    assert np.isinf(two.tau_se[0])


def test_verdicts_are_held_to_the_truth():
    found = summaries.verdicts(TWO).set_index("sampler").loc["a"]
    assert found.approved_close == pytest.approx(2 / 9)
    assert found.approved_off == pytest.approx(1 / 9)
    assert found.wide_off == pytest.approx(3 / 9)
    assert found.refused_off == pytest.approx(3 / 9)
    assert found.right == pytest.approx(8 / 9)
    shares = summaries.verdicts(TWO).drop(columns=["sampler", "right"])
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    with pytest.raises(ValueError, match="'fine'"):
        summaries.verdicts(TWO.assign(verdict="fine"))


def test_regret_is_against_the_most_efficient_setting_that_is_right():
    chosen = TWO[(TWO.sampler == "a") & (TWO.step == 1.0)]
    found = summaries.regret(TWO, chosen)
    # p0: b at 10 is within a tenth and has 0.05. p2: nothing of the grid is.
    assert found.best.tolist()[:2] == [0.05, 0.05]
    assert found.regret.tolist()[:2] == pytest.approx([0.6, 0.6])
    assert np.isnan(found.regret[2])
    assert found.close.tolist() == [True, True, False]
    assert found.error_regret.tolist() == pytest.approx([0, 0, 0.1])
    off = summaries.regret(TWO, TWO[(TWO.sampler == "b") & (TWO.step == 0.1)])
    assert off.regret.tolist()[:2] == [1, 1]
    better = chosen.assign(effective_per_gradient=0.1)
    assert summaries.regret(TWO, better).regret[0] == pytest.approx(-1)
    with pytest.raises(ValueError, match="'other'"):
        summaries.regret(TWO, chosen.assign(problem="other"))


def test_a_rule_is_judged_by_what_it_chose_and_what_it_refused():
    chosen = TWO[(TWO.sampler == "a") & (TWO.step == 1.0)].assign(refused=["", "", ""])
    found = summaries.of_choices(TWO, chosen)
    assert found["refused"] == 0
    assert found["within_5pct"] == pytest.approx(2 / 3)
    assert found["wrong"] == pytest.approx(1 / 3)  # approved, and 30 % off
    assert found["regret_median"] == pytest.approx(0.6)
    last = chosen.assign(refused=["", "", "no"], llc=[10, 20, math.nan])
    last["relative_error_to_eq1"] = [0.02, -0.04, math.nan]
    found = summaries.of_choices(TWO, last)
    assert (found["refused"], found["wrong"]) == (pytest.approx(1 / 3), 0)
    nothing = summaries.of_choices(TWO, last.assign(refused="no"))
    assert nothing["refused"] == 1
    assert math.isnan(nothing["regret_median"])


def test_ranks_survive_where_values_do_not():
    rng = np.random.default_rng(2)
    reference = rng.gamma(1, size=200)
    value, error = summaries.rank_agreement(reference, np.stack([3 * reference, 5 * reference]))
    assert (value, error) == pytest.approx((1, 0))
    assert summaries.rank_agreement(reference, -reference) == (-1, math.inf)
    noisy = reference + rng.normal(0, 1, (6, 200))
    value, error = summaries.rank_agreement(reference, noisy)
    again = [
        summaries.rank_agreement(reference, reference + rng.normal(0, 1, (6, 200)))[0]
        for _ in range(200)
    ]
    # The jackknife of six chains knows a standard error to about a third.
    assert 0.4 < error / np.std(again) < 2
    with pytest.raises(ValueError, match="shape"):
        summaries.rank_agreement(reference, noisy.T)
    with pytest.raises(ValueError, match="finite"):
        summaries.rank_agreement(reference, noisy * math.nan)


def test_what_an_approved_run_states_is_its_error_and_its_bias():
    rows = pd.DataFrame(
        {
            "verdict": ["good"] * 5 + ["wrong"],
            "llc": [10.0, 10.5, 10.9, 9.1, 9.1, 99.0],
            "mcse": 0.3,
            "eq1_se": 0.1,
            "eq1": 10.0,
            "step_bias": [0.0, 0.0, 0.5, 0.0, -0.5, 0.0],
        }
    )
    # Two errors are 0.632: the fourth alone is beyond them and its bias.
    assert summaries.outside(rows) == pytest.approx(1 / 5)
    assert math.isnan(summaries.outside(rows[rows.verdict == "wrong"]))
