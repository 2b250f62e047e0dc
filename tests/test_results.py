"""What the README quotes is what the chapters measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book"))
import quote  # noqa: E402

REQUIRED = {
    "01_local_posterior": "regression_llc regression_llc_mcse regression_llc_step_bias "
    "regression_llc_eq1 regression_llc_unbiased regression_llc_unbiased_mcse",
    "02_loss_gain": "n_samples chains draws pearson_loss_gain spearman_loss_gain rhat_max ess_min "
    "importance_khat pearson_test_overconfident spearman_test_overconfident "
    + " ".join(
        f"{name}{end}"
        for name in ("llc", "singular_fluctuation")
        for end in (
            *("", "_mcse", "_step_bias", "_unbiased", "_unbiased_mcse"),
            *("_importance", "_importance_mcse"),
        )
    ),
    "03_memorization": "clean_accuracy noisy_accuracy gain_clean gain_noisy gain_ratio auroc_gain "
    "auroc_loss auroc_kernel_diagonal tsne_separation gain_ratio_unbiased auroc_gain_unbiased "
    "tsne_separation_correlation tsne_separation_nearest tsne_separation_correlation_nearest",
    "04_loss_kernel": "top1 top5 n_images draws effective_draws mean_loss_start mean_loss_chain "
    "split_half_reliability wordnet_top5_cross_label wordnet_chance wordnet_interval_low "
    "wordnet_interval_high spearman_wordnet feature_agreement stand_in reliability_local "
    "neighbours_shared_halves draws_that_count data_term",
    "04_loss_kernel_tested": "stand_in networks reliability_local neighbours_shared_halves "
    + " ".join(
        f"{statistic}_{similarity}{end}"
        for statistic in ("spearman_wordnet", "top5_wordnet", "nmi_5", "nmi_6", "nmi_7")
        for similarity in (
            *("kernel", "features", "centred_features", "gradients", "logits", "pixels"),
            "weights_of_the_labels",
        )
        for end in ("", "_low", "_high", "_chance")
    )
    + " "
    + " ".join(
        f"{name}{end}"
        for name in (
            *("partial_wordnet_given_features", "partial_wordnet_given_all"),
            *("planted_recovery_auroc", "planted_recovery_auroc_features"),
            *("use_leaks_kernel", "use_leaks_features", "use_wrong_kernel", "use_wrong_features"),
        )
        for end in ("", "_low", "_high")
    ),
    "05_llc_identity": "identity_relative_error identity_n_factor llc llc_step_bias llc_unbiased "
    "llc_unbiased_mcse noisy_share_wrong_labels_unbiased known_off_eq1 known_off_eq1_unbiased "
    + " ".join(
        f"{name}_{what}"
        for name in ("regular_8", "monomial_1_1", "monomial_2", "rrr_2_2_2_0", "rrr_4_2_3_1")
        for what in ("llc", "mcse", "truth")
    ),
    "06_singular_fluctuation": "mnist_nu mnist_nu_mcse mnist_nu_step_bias mnist_nu_unbiased "
    "mnist_nu_unbiased_mcse gibbs_slope_regular gibbs_slope_regular_se "
    "gibbs_slope_regular_truth gibbs_slope_singular gibbs_slope_singular_se "
    "gibbs_slope_singular_truth",
    "07_influence_functions": "laplace_order_first laplace_order_second laplace_relative_error "
    "loo_spearman_bayesian loo_spearman_bayesian_low loo_spearman_bayesian_high "
    "loo_spearman_classical loo_spearman_classical_low loo_spearman_classical_high",
    "08_language_models": "stand_in noise_rounded_away_bfloat16 llm llm_loss_start llm_loss_chain "
    "n_tokens draws effective_draws "
    + " ".join(
        f"canary_auroc_{score}{end}"
        for score in ("gain", "mean_loss", "loss", "compression", "variance")
        for end in ("", "_low", "_high")
    )
    + " "
    + " ".join(
        f"genre_{statistic}_{similarity}{end}"
        for statistic in ("purity", "auroc", "nmi")
        for similarity in ("kernel", "gradients", "embeddings", "tfidf", "tfidf_whole")
        for end in ("", "_low", "_high", "_chance_low", "_chance_high")
    ),
    "09_samplers_and_settings": "calibrated_networks calibrated_within_5pct calibrated_refused "
    "calibrated_wrong regret_calibrate_median winner winner_share max_weights kendall_perfect "
    + " ".join(
        f"{what}_{sampler}"
        for what in ("kendall", "relative_error", "range_error")
        for sampler in (
            *("sgld", "leimkuhler_matthews", "baoab", "exponential_euler"),
            *("rmsprop_sgld", "corrected_rmsprop_sgld", "mala", "hmc"),
        )
    ),
    "10_wrong_labels": "best_posthoc_score best_network_score n_studies n_seeds again_largest "
    "digits_flagged digits_khat "
    + " ".join(
        f"auroc_{score}_{task}_{kind}10_{epochs}{end}"
        for score in ("loss_gain", "mean_loss", "loss", "confident_learning", "tracin", "curvature")
        for task in ("mnist", "fashion", "tumours", "genres")
        for kind in ("uniform", "asymmetric", "instance")
        for epochs in (1, 3, 10, 30, 100)
        for end in ("", "_low", "_high")
    )
    + " "
    + " ".join(
        f"{name}{end}"
        for name in (
            *("mean_loss_less_loss_last", "loss_gain_less_gradient_norm_last"),
            *("loss_gain_underfitted", "loss_gain_memorized", "mean_loss_memorized"),
            *("accuracy_gained_mean_loss", "accuracy_gained_instance_mean_loss"),
            *("ood_auroc_mean_loss_mnist_fashion", "ood_auroc_softmax_mnist_fashion"),
            "ood_fpr_gain_fashion_mnist",
        )
        for end in ("", "_low", "_high")
    )
    + " seconds_mean_loss seconds_loss seconds_confident_learning",
    "11_training_time": "stage_times_known stage_times_llc verdict llc_wrong_last_mcse "
    "llc_wrong_last_step_bias gain_lead_text stage_1_known stage_1_llc stage_1_llc_low "
    "stage_1_llc_high third_wrong_last third_wrong_last_se kernel_wrong_ends_text "
    + " ".join(
        f"{name}{end}"
        for name in (
            *("memorization_epoch_accuracy", "memorization_epoch_gain"),
            *("spearman_learning_order_gain", "spearman_learning_order_gain_noisy"),
            *("auroc_gain_first", "auroc_loss_first", "auroc_gain_last", "auroc_loss_last"),
        )
        for end in ("", "_low", "_high")
    ),
}


@pytest.fixture
def committed(tmp_path):
    """The results as committed: a local `make book` may have rewritten the working tree's."""
    try:
        names = subprocess.run(
            ["git", "-C", ROOT, "ls-tree", "-r", "--name-only", "HEAD", "results"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not a git checkout: {error}")
    for name in names:
        if name.endswith(".json"):
            show = ["git", "-C", ROOT, "show", f"HEAD:{name}"]
            path = tmp_path / Path(name).relative_to("results")
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_bytes(subprocess.run(show, capture_output=True, check=True).stdout)
    return tmp_path


@pytest.mark.parametrize("page", ["README.md", "book/benchmarks.md", "book/faults.md"])
def test_pages_quote_the_results(committed, page):
    text = (ROOT / page).read_text()
    assert len(quote.QUOTE.findall(text)) >= 10
    assert quote.refresh(text, committed) == text, (
        f"{page} is out of date: run `python book/quote.py {page}` and commit it together "
        "with the results"
    )


def test_benchmarks_hold_what_was_promised(committed):
    folder = committed / "benchmarks"
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    for name in ("faults", "trust"):  # of another kind
        found.pop(name, None)
    assert {"accuracy", "mnist", "small", "memory", "scaling", "topk", "precision"} <= set(found)
    for numbers in found.values():
        assert all(isinstance(v, int | float | str) for v in numbers.values())
        assert numbers["device"]
    # Promises that no machine's speed decides.
    assert found["memory"]["beyond_mib"] < 1536
    assert found["topk"]["peak_mib"] < 4096
    assert found["topk"]["n"] * found["topk"]["draws"] == 10**9
    assert found["precision"]["bfloat16_gain_correlation"] > 0.999


def test_nothing_was_lost(committed):
    found = json.loads((committed / "benchmarks" / "faults.json").read_text())
    assert found["kills_killed"] >= 50
    assert found["kills_mid_write"] >= 10
    assert found["kills_lost"] == found["kills_wrong"] == 0
    assert found["kills_identical"] == found["kills_traces"]
    assert found["worker_losses_killed"] >= 10
    assert found["worker_losses_identical"] == found["worker_losses_traces"]
    assert found["disks_went_on_identical"] == found["disks_gone_went_on_identical"] == 1
    assert found["corrupted_times"] >= 200
    assert found["corrupted_silently_wrong"] == 0
    assert found["malformed_refused"] == found["malformed_times"] >= 10_000
    assert found["overhead_share_in_writing"] <= 0.03


@pytest.mark.parametrize("chapter", REQUIRED)
def test_results_hold_what_a_reader_looks_for(committed, chapter):
    numbers = json.loads((committed / "laptop" / f"{chapter}.json").read_text())
    assert set(REQUIRED[chapter].split()) <= set(numbers)
    assert numbers["profile"] == "laptop"
    assert all(isinstance(v, int | float | str) for v in numbers.values())


def test_table_1_was_run_at_full_size(committed):
    clean = json.loads((committed / "laptop" / "02_loss_gain.json").read_text())
    assert (clean["n_samples"], clean["chains"], clean["draws"]) == (60_000, 5, 500)
    noisy = json.loads((committed / "laptop" / "03_memorization.json").read_text())
    assert (noisy["n_samples"], noisy["chains"], noisy["draws"]) == (60_000, 1, 500)
    assert noisy["n_noisy"] == 6_000
    assert noisy["n_still_right"] == 0


def test_weighted_draws_agree_with_the_unbiased_sampler(committed):
    """At Table 1, on the same digits, where no step made them (k-hat below 0.7)."""
    numbers = json.loads((committed / "laptop" / "02_loss_gain.json").read_text())
    assert numbers["importance_khat"] < 0.7
    for name in ("llc", "singular_fluctuation"):
        weighted, unbiased = (numbers[f"{name}{end}"] for end in ("_importance", "_unbiased_part"))
        errors = [numbers[f"{name}{end}_mcse"] for end in ("_importance", "_unbiased_part")]
        assert abs(weighted - unbiased) < 2 * sum(e**2 for e in errors) ** 0.5
    for name in ("llc", "singular_fluctuation"):  # and the step bias says most of what is left
        bias, truth = numbers[f"{name}_step_bias"], numbers[name] - numbers[f"{name}_unbiased"]
        assert 0.5 * truth < bias < 1.5 * truth


def test_quotes_are_rewritten_from_their_file(tmp_path):
    (tmp_path / "laptop").mkdir()
    (tmp_path / "laptop" / "a.json").write_text('{"x": 0.98765}')
    page = "| AUROC | 0.1<!--laptop/a.x:.3f--> |"
    assert quote.refresh(page, tmp_path) == "| AUROC | 0.988<!--laptop/a.x:.3f--> |"
    with pytest.raises(KeyError, match="lacks"):
        quote.refresh("1<!--laptop/a.y:.3f-->", tmp_path)
    with pytest.raises(KeyError, match="does not exist"):
        quote.refresh("1<!--laptop/b.x:.3f-->", tmp_path)
