"""What chapters record and claim, on small made-up results."""

import json
from pathlib import Path
from types import SimpleNamespace

import jupytext
import numpy as np
import pytest
import xarray as xr
from scipy.stats import pearsonr

import probelib
from probebook import gibbs, llc_parts, toys
from probebook.alignment import Alignment, meaning_of, reliability_error, similarity_error
from probebook.chapter import Chapter
from probebook.chapters import (
    influence_functions,
    llc_identity,
    local_posterior,
    loss_gain,
    loss_kernel,
    loss_kernel_words,
    memorization,
    singular_fluctuation,
)
from probebook.memorization import detection
from probebook.prerun import KeptPairs
from probebook.samplers import record_text
from probelib import Estimate

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.py"))
RNG = np.random.default_rng(0)


@pytest.fixture
def chapter(tmp_path):
    return Chapter("00_test", profile="smoke", results_dir=tmp_path)


def trace_of(loss: np.ndarray) -> xr.Dataset:
    """A trace as far as a kernel needs it; loss has shape (chain, draw, sample)."""
    return xr.Dataset(
        {
            "loss": (("chain", "draw", "sample"), loss),
            "init_loss": ("sample", np.zeros(loss.shape[-1])),
        }
    )


def setting(stiffness: float, rhat: float, knob: str = "gamma", value: float = 0.3):
    llc = Estimate(5.0, 0.5, 100.0, rhat)
    look = SimpleNamespace(rhat_max=rhat, ess_min=50.0, distance=2.0)
    return local_posterior.Setting(knob, value, llc, look, stiffness, 20.0)


def test_a_long_step_outweighs_bad_mixing(chapter):
    assert setting(0.5, 1.05).verdict == "sound"
    assert setting(0.5, 1.2).verdict == "not mixed"
    assert setting(1.5, 1.2).verdict == "step too long"
    assert {setting(s, 1.2).verdict for s in (0.5, 1.5)} < set(local_posterior.VERDICTS)
    row = setting(0.5, 1.05).row(chapter)
    assert row["LLC"] == "5 ± 0.5"
    assert chapter.numbers["sweep_gamma_0p3_llc"] == 5.0


def test_sweeps_are_drawn_by_knob():
    points = [setting(0.1, 1.0, "epsilon", 1e-3), setting(0.1, 1.2, "epsilon", 1e-2)]
    points += [setting(2.0, 1.0, knob) for knob in ("n beta", "gamma")]
    panels = local_posterior.sweep_panels(points)
    assert list(panels) == [r"$\epsilon$", r"$n\beta$", r"$\gamma$"]
    values, llc, error, ess, verdict = panels[r"$\epsilon$"]
    np.testing.assert_array_equal(values, [1e-3, 1e-2])
    np.testing.assert_array_equal([*llc, *error, *ess], [5, 5, 0.5, 0.5, 50, 50])
    assert list(verdict) == ["sound", "not mixed"]


def test_printed_formulas_are_claimed_as_printed(chapter):
    chapter.record(erratum1_variance=0.0345, erratum1_variance_times_gamma=1.035)
    (exact,), (printed,) = local_posterior.localization_claims(chapter, 30.0, 0.001)
    assert exact.must
    assert exact.holds(1.035)
    assert printed.holds(chapter.numbers["erratum1_variance"]) is False


def test_relations_are_recorded_and_their_range_found(chapter):
    loss, gain = RNG.lognormal(size=(2, 50))
    rows = [
        loss_gain.relation_row(chapter, name, name, loss, g)
        for name, g in (("main", gain), ("other-net", loss**2))
    ]
    loss_gain.record_range(chapter)
    assert chapter.numbers["main_pearson"] == pytest.approx(pearsonr(loss, gain).statistic)
    assert chapter.numbers["other_net_spearman"] == pytest.approx(1)
    assert chapter.numbers["spearman_highest"] == chapter.numbers["other_net_spearman"]
    assert chapter.numbers["pearson_lowest"] == chapter.numbers["main_pearson"]
    assert rows[1]["Spearman"] == "1.000"


def test_gains_by_class_are_those_of_the_class(chapter):
    labels = np.arange(40) % 10
    rows = loss_gain.class_rows(chapter, labels.astype(float), labels)
    assert [row["mean loss gain"] for row in rows] == [f"{k:.2f}" for k in range(10)]
    assert chapter.numbers["n_digit_7"] == 4
    assert chapter.numbers["gain_q99_digit_7"] == 7


def test_populations_are_told_apart(chapter):
    trust = SimpleNamespace(rhat_max=1.0, ess_min=9.0, loss_at_center=0.1, loss_along_chains=0.2)
    noisy = np.arange(10) >= 8
    gain = np.where(noisy, 6.0, 2.0)
    memorization.record_populations(chapter, gain, noisy, trust)
    assert chapter.numbers["gain_median_clean"] == 2
    assert chapter.numbers["gain_median_noisy"] == 6


def drawn(seed: int, weighted: bool = False) -> xr.Dataset:
    """A trace of 2 x 60 independent draws of 30 samples, with settings; one chain if weighted."""
    rng = np.random.default_rng(seed)
    trace = trace_of(rng.gamma(2.0, size=(1 if weighted else 2, 60, 30)))
    if weighted:
        trace["log_weight"] = ("chain", "draw"), rng.normal(size=(1, 60)) * 0.1
    config = {"n_beta": 10.0, "n_samples": 30, "sampler": "importance" if weighted else "SGLD"}
    return trace.assign_attrs(config=config)


def test_samplers_are_recorded_and_stand_in_a_row_with_their_errors(chapter):
    row = loss_gain.sampler_row(chapter, "", "a chain", drawn(1))
    llc = probelib.local_learning_coefficient(drawn(1))
    assert chapter.numbers["llc"] == llc.value
    assert row["LLC"] == f"{llc.value:.2f} ± {llc.mcse:.2f}"
    assert row["step bias of LLC"] == row["k-hat"] == "–"
    assert "llc_step_bias" not in chapter.numbers  # nothing is known of it
    row = loss_gain.sampler_row(chapter, "_importance", "weights", drawn(2, weighted=True))
    nu = probelib.singular_fluctuation(drawn(2, weighted=True))
    assert chapter.numbers["singular_fluctuation_importance_mcse"] == nu.mcse
    assert row["k-hat"] == f"{chapter.numbers['importance_khat']:.2f}"


def test_a_few_confident_errors_are_taken_out(chapter):
    loss = np.r_[np.linspace(0.1, 1, 50), 8.0, 9.0]
    gain = np.r_[np.linspace(0.1, 1, 50), -1.0, -2.0]
    loss_gain.record_overconfident(chapter, loss, gain, confident=np.log(10))
    assert chapter.numbers["pearson_test_overconfident"] < -0.5
    assert chapter.numbers["pearson_test_without_wrong"] == pytest.approx(1)
    assert chapter.numbers["n_confidently_wrong"] == 2
    assert chapter.numbers["n_confidently_wrong_negative"] == 2
    assert chapter.numbers["gain_confidently_wrong"] == -1.5


def test_both_samplers_are_recorded_under_their_names(chapter):
    noisy = np.arange(30) >= 24
    traces = {"": ("one", drawn(1)), "_unbiased": ("other", drawn(2))}
    rows = memorization.sampler_rows(chapter, traces, noisy)
    gain = probelib.loss_gain(drawn(2)).values
    ratio = gain[noisy].mean() / gain[~noisy].mean()
    assert chapter.numbers["gain_ratio_unbiased"] == pytest.approx(ratio)
    error = chapter.numbers["gain_ratio_unbiased_mcse"]
    assert rows[1]["ratio"] == chapter.numbers["gain_ratio_unbiased_text"]
    assert rows[1]["ratio"] == f"{ratio:.2f} ± {error:.2f}"
    assert {"auroc_gain_unbiased", "llc_unbiased_mcse", "llc_mcse"} <= set(chapter.numbers)
    clean = probelib.loss_gain(drawn(2)).values[~noisy]
    assert chapter.numbers["gain_clean_unbiased"] == pytest.approx(clean.mean())


def test_the_error_of_an_auroc_is_how_far_repetitions_scatter():
    noisy = np.arange(60) >= 40
    at, found, errors = np.where(noisy, 1.3, 1.0), [], []
    for seed in range(40):
        draws = np.random.default_rng(seed).normal(at, 2.0, size=(1, 96, 60))
        trace = trace_of(draws)
        gain = probelib.loss_gain(trace).values
        found.append(detection(gain, noisy).auroc)
        errors.append(memorization.auroc_error(trace, noisy))
    assert np.median(errors) == pytest.approx(np.std(found), rel=0.6)
    assert memorization.auroc_error(trace.isel(draw=slice(7)), noisy) == np.inf


def test_halves_say_how_few_draws_bias_an_auroc(chapter):
    noisy = np.arange(400) >= 200
    draws = np.random.default_rng(0).normal(np.where(noisy, 1.0, 0.0), 8.0, size=(1, 100, 400))
    trace = trace_of(draws)
    chapter.record(auroc_gain=detection(probelib.loss_gain(trace).values, noisy).auroc)
    memorization.record_halves(chapter, trace, noisy)
    assert chapter.numbers["auroc_gain_draws_bias"] < -0.01  # noise mixes the populations
    assert 0 < chapter.numbers["gain_halves_correlation"] < 1


def test_a_number_whose_error_is_not_known_says_so(chapter):
    chapter.record(a=1.234, b=2.0, b_mcse=0.1, b_step_bias=-0.04)
    for key in ("a", "b"):
        record_text(chapter, key)
    assert chapter.numbers["a_text"] == "1.23 ± not known"
    assert chapter.numbers["b_text"] == "2.00 ± 0.10 (step bias -0.04)"


def test_the_nearest_recipe_is_nearest_in_proportion():
    noisy = np.array([False, True])
    traces = {
        name: trace_of(np.tile([1.0, ratio], (1, 4, 1)))
        for name, ratio in (("a", 5.1), ("b", 14.0), ("c", -10.0))
    }
    assert memorization.nearest_recipe(traces, noisy) == "b"


def test_shares_of_every_trace_stand_in_a_row():
    numbers = {"share_class_3": 0.25, "share_class_3_mcse": 0.01}
    rows = llc_identity.share_rows(numbers, {"clean": "", "noisy": "noisy_"})
    (row,) = [row for row in rows if row["part"] == "class 3"]
    assert row["share of the LLC, clean"] == llc_parts.percent(numbers, "share_class_3")
    assert row["share of the LLC, noisy"] == "–"
    assert len(rows) == 3 + 10 + 10


def test_v_is_the_trace_of_the_kernel_and_what_is_added_to_it_stands_apart(chapter):
    trace = drawn(1)
    walk = np.cumsum(np.random.default_rng(3).normal(size=(2, 60, 1)), axis=1)  # autocorrelated
    trace["loss"] = trace.loss + walk
    by_numpy = trace.loss.values.var((0, 1), ddof=1).sum()
    singular_fluctuation.record_mnist(chapter, trace, by_numpy, 1 / 3)
    assert chapter.numbers["trace_identity_error"] < 1e-12
    assert chapter.numbers["mnist_v_correction"] > 0.01  # 1 / ESS of few independent draws
    assert chapter.numbers["mnist_nu"] == pytest.approx(chapter.numbers["mnist_v"] / 6)
    assert chapter.numbers["mnist_v_text"].startswith(f"{chapter.numbers['mnist_v']:,.0f} ±")


def test_the_product_comes_to_its_limit(chapter):
    rows = singular_fluctuation.product_rows(chapter, 1.5, 1.0, (2, 4))
    expected = gibbs.expected(gibbs.PRODUCT, 10**4, 1.5, 1.0).gibbs * 10**4
    assert chapter.numbers["product_gibbs_1e4"] == pytest.approx(expected)
    assert rows[1]["n E[G_n]"] == f"{expected:.4f}"
    gap = [
        chapter.numbers["product_limit"] - chapter.numbers[f"product_gibbs_1e{k}"] for k in (2, 4)
    ]
    slope = (1 / gap[1] - 1 / gap[0]) / np.log(100)
    assert chapter.numbers["product_log_slope"] == pytest.approx(slope)


def test_halves_of_the_chains_are_ranked_against_each_other():
    loss = RNG.normal(size=(1, 40, 6)) * np.arange(1, 7)
    assert influence_functions.halves_agreement(trace_of(np.repeat(loss, 2, 0))) == pytest.approx(1)
    other = RNG.normal(size=(1, 40, 6))
    assert influence_functions.halves_agreement(trace_of(np.concatenate([loss, other]))) < 0.99


def test_the_budget_of_an_exact_kernel_is_empty():
    """For a linear model g'Sg is K but for its second order, and a zero step adds nothing."""
    regression = toys.linear_regression(n=8, scales=(1.0, 0.5), noise=0.5, seed=0)
    posterior = probelib.LocalPosterior(
        regression.model, probelib.squared_error, regression.data, n_beta=1e6, localization=1e5
    )
    first = regression.residuals[:, None] * regression.residuals
    first = first * (regression.x @ regression.covariance(1e6, 1e5) @ regression.x.T)
    kernel = probelib.loss_kernel(trace_of(RNG.normal(size=(2, 50, 8))))
    expansion, step, mcse, total = influence_functions.error_budget(
        posterior, first, first, kernel, step_size=0.0
    )
    assert expansion == 0
    assert step == pytest.approx(0, abs=1e-6)  # gradients of a float64 model
    assert mcse > 0
    assert total == pytest.approx(1, rel=1e-3)  # the made-up kernel is a million times larger


def pairs_of(kernels: np.ndarray, loss: np.ndarray) -> xr.Dataset:
    return xr.Dataset(
        {
            "kernel": (("chain", "sample", "other"), kernels),
            "loss": (("chain", "draw", "sample"), loss),
            "init_loss": ("sample", np.zeros(loss.shape[-1])),
        }
    )


def test_a_kept_run_is_held_to_what_is_computed_again(chapter):
    """Four walks in two parts: 0 and 2, 1 and 3."""
    x = RNG.normal(size=(4, 9, 5))
    kernels = x @ x.transpose(0, 2, 1)
    loss = RNG.random((4, 3, 9)).astype(np.float32)
    check = np.array([1, 4, 7])
    part = np.ix_(range(4), check, check)
    of_parts = [kernels[part][p::2].mean(0) for p in (0, 1)]
    about = {"device": "a CPU", "seconds": 600.0, "torch": "2", "config": {"chains": 4}}
    kept = KeptPairs(
        [probelib.MatrixKernel(kernels[p::2].mean(0)) for p in (0, 1)],
        loss[[0, 2, 1, 3]],  # part after part
        np.zeros((4, 3)),
        np.zeros(9),
        check,
        of_parts,
        about,
    )
    again = pairs_of(2 * kernels[part], loss[:, :, check] + 0.25)  # twice K is the same R
    loss_kernel.record_kept(chapter, kept, again)
    assert chapter.numbers["verified_difference"] == pytest.approx(0, abs=1e-6)
    assert chapter.numbers["verified_loss_difference"] == pytest.approx(0.25)
    assert chapter.numbers["made"] == "kept run: a CPU, 10 min, torch 2"
    off = kernels[part] * np.where(np.eye(3), 1, 0.5)
    loss_kernel.record_kept(chapter, kept, pairs_of(off, loss[:, :, check]))
    r = [probelib.MatrixKernel(k).correlation() for k in of_parts]
    largest = max(np.abs(np.triu(each, 1)).max() for each in r)
    assert chapter.numbers["verified_difference"] == pytest.approx(largest / 2, rel=1e-5)


def test_a_robust_scale_does_not_follow_a_rare_jump():
    rng = np.random.default_rng(0)
    loss = rng.normal(size=(8, 50, 3))
    loss[0, 0, 2] = 1e3
    covariance = np.cov(loss.reshape(-1, 3).T)
    found = loss_kernel.robust_similarity(covariance, loss)
    assert found[0, 0] == pytest.approx(1, abs=0.3)
    assert found[0, 1] == pytest.approx(np.corrcoef(loss.reshape(-1, 3).T)[0, 1], abs=0.1)
    assert found[2, 2] > 1e3  # the variance is not its scale
    still = loss_kernel.robust_similarity(np.diag([1.0, 4.0]), np.zeros((2, 3, 2)))
    np.testing.assert_allclose(still, np.eye(2))  # a loss that stood still keeps its own


def test_hubs_are_counted(chapter):
    """The first of twenty is the nearest of all others."""
    matrix = RNG.uniform(0, 0.1, (20, 20))
    matrix = matrix + matrix.T
    matrix[0] = matrix[:, 0] = 0.9
    labels, loss = np.arange(20), np.arange(20.0)
    meaning = meaning_of(np.eye(20), 10, 0)
    rows = loss_kernel.hub_rows(chapter, {"loss kernel": matrix}, labels, loss, meaning)
    assert chapter.numbers["hubs_loss_kernel_most"] == 19
    assert 0 <= chapter.numbers["hubs_loss_kernel_never"] < 0.5
    assert chapter.numbers["hubs_loss_kernel_skewness"] > 0.5
    assert chapter.numbers["loss_median"] == 9.5
    assert rows[0]["most frequent: among the five of"] == "19"
    everyone = np.ones((6, 6))  # each is a neighbour of each
    loss_kernel.hub_rows(chapter, {"even": everyone}, labels[:6], loss[:6], meaning)
    assert chapter.numbers["hubs_even_skewness"] == 0


def test_claims_about_a_run_are_made_where_there_is_one():
    none = [claim.key for claim in loss_kernel_words.claims(kept=False, row=None)]
    assert "verified_difference" not in none
    assert not any(key.startswith("table1") for key in none)
    row = loss_kernel.Table1Row(
        trace_of(np.zeros((2, 2, 3))), np.arange(3), np.arange(3), [], np.eye(3),
        Alignment(0.5, np.zeros(3), 0.1, 0.2),
    )  # fmt: skip
    full = [claim.key for claim in loss_kernel_words.claims(kept=True, row=row)]
    assert full[2:5] == ["table1_mean_loss_chain", "table1_wordnet", "table1_class_agreement"]
    assert full[-1] == "verified_difference"
    assert set(none) < set(full)


def test_a_stand_in_shows_what_was_measured_elsewhere(chapter, tmp_path):
    numbers = dict.fromkeys(loss_kernel_words.PUBLISHED, 0.25)
    assert loss_kernel_words.published(tmp_path) == {}
    path = tmp_path / "04_loss_kernel.json"
    path.write_text(json.dumps({"stand_in": "false", "profile": "laptop", **numbers}))
    assert loss_kernel_words.published(tmp_path) == numbers
    carried = {f"published_{key}": value for key, value in numbers.items()}
    path.write_text(json.dumps({"stand_in": 1, "n_images": 54, **carried}))
    assert loss_kernel_words.published(tmp_path) == numbers
    chapter.record(**dict.fromkeys(loss_kernel_words.PUBLISHED, 0.75))
    loss_kernel_words.record_front(chapter, True, numbers)
    shown = chapter.numbers["front_wordnet_top5_cross_label"]
    assert shown == "– (measured elsewhere, with photographs: 0.250)"
    loss_kernel_words.record_front(chapter, True, {})
    assert chapter.numbers["front_wordnet_chance"] == "–"
    loss_kernel_words.record_front(chapter, False, numbers)
    assert chapter.numbers["front_wordnet_chance"] == "0.750 [0.750, 0.750]"


def test_a_stand_in_neither_agrees_nor_differs(chapter):
    loss_kernel_words.show_open_claims(chapter, loss_kernel_words.claims(kept=False, row=None))
    assert "claims_agree" not in chapter.numbers
    assert chapter.numbers["claims_broken"] == 0


@pytest.mark.parametrize(
    "head",
    [
        "file,class,rank,neighbour_file,neighbour_class,correlation",
        "id,label,rank,neighbour_id,neighbour_label,correlation",
    ],
)
def test_published_neighbours_are_named(tmp_path, head):
    path = tmp_path / "04_loss_kernel-neighbours.csv"
    lines = ["a,cat,1,b,lynx,0.5", "a,cat,2,c,dog,0.25", "b,lynx,1,a,cat,0.75"]
    path.write_text("\n".join([head, *lines]))
    lynx, cat = loss_kernel_words.published_neighbours(tmp_path)
    assert list(lynx.values()) == ["lynx", "cat (0.75)"]
    assert list(cat.values()) == ["cat", "lynx (0.50), dog (0.25)"]
    path.write_text("\n".join([head.replace("correlation", "r"), *lines]))
    assert loss_kernel_words.published_neighbours(tmp_path) == []


def test_errors_over_photographs():
    same = np.eye(40) + RNG.normal(size=(40, 40))
    same = same + same.T
    assert reliability_error(same, same) == pytest.approx(0)
    other = RNG.normal(size=(40, 40))
    assert 0.005 < reliability_error(same, other + other.T) < 0.2
    labels = np.array([0, 1, 1, 0])
    neighbours = np.array([[1], [2], [1], [1]])
    # similarities 0, 1, 1, 0: a standard deviation of 0.577 over the square root of 4
    assert similarity_error(neighbours, labels, np.eye(2)) == pytest.approx(1 / np.sqrt(12))


def test_the_last_module_is_compared_at_growing_draws():
    trace = trace_of(RNG.normal(size=(2, 40, 12)))
    x = RNG.normal(size=(2, 12, 30))
    pairs = pairs_of(x @ x.transpose(0, 2, 1), RNG.random((2, 4, 12)))
    found = loss_kernel.last_module(trace, pairs)
    assert (found.draws[0], found.draws[-1]) == (10, 40)
    measured, expected = found.curves()
    nominal, effective, reliable = measured["SGLD"]
    np.testing.assert_array_equal(nominal, found.draws)
    np.testing.assert_array_equal(effective, found.effective / 2)
    np.testing.assert_array_equal(reliable, found.reliable)
    assert measured["gradient pairs"][0] == [4]
    noise = 1 / (found.effective / 2)
    np.testing.assert_allclose(expected["SGLD"], found.signal**2 / (found.signal**2 + noise))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_cell_is_longer_than_a_reader_takes_in(path):
    """25 lines of code, blank ones and comments not counted; parameters are a list."""
    long = {}
    for cell in jupytext.read(path).cells:
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []):
            lines = [line.strip() for line in cell.source.splitlines()]
            lines = [line for line in lines if line and not line.startswith("#")]
            if len(lines) > 25:
                long[lines[0]] = len(lines)
    assert not long
