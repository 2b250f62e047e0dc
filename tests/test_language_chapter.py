"""What chapter 08 records and says, on small made-up results."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import probelib
from probebook.chapter import Chapter
from probebook.chapters import language_models as helpers
from probebook.chapters import language_models_llm as llm
from probebook.gpt import GPTRecipe, serialise, train
from probebook.gpt_runs import KeptDocuments, canary_trace
from probebook.language_data import LanguageData, TextPlan, Windows
from probebook.localization_rule import Choice
from probebook.memorized import SCORES, detection_table, over_networks
from probebook.smollm_runs import kept_run

pytestmark = pytest.mark.usefixtures("one_thread")

V, T = 11, 6
TINY = GPTRecipe(width=8, layers=1, heads=2, epochs=1, batch_size=8)
RUN = {"n_beta": 10.0, "localization": 1e4, "loss_samples": 9}


@pytest.fixture
def chapter(tmp_path):
    return Chapter("00_test", profile="smoke", results_dir=tmp_path)


@pytest.fixture(scope="module")
def data():
    ids = torch.randint(0, V, (24, T + 1), generator=torch.Generator().manual_seed(0))
    document = np.r_[np.repeat([0, 1], 10), np.full(4, -1)]
    repetitions = np.r_[np.full(20, -1), 4, 1, 1, 0]
    genre = np.where(document < 0, -1, document)
    texts = tuple(map(str, range(24)))
    windows = Windows(ids[:, :-1].clone(), ids[:, 1:].clone(), document, genre, repetitions, texts)
    plan = TextPlan(vocabulary=V, length=T, windows=10)
    return LanguageData(plan, range(V), windows[:22], windows[:20], windows[20:], "made up")


def test_the_rule_is_recorded_and_its_choice_marked(chapter):
    table = pd.DataFrame(
        [(1000.0, 4.0, 0.1, 0.5, 0.05), (10_000.0, 3.2, 0.01, 0.95, 0.005)],
        columns=["gamma", "loss", "error", "kept", "kept_error"],
    )
    rows = helpers.rule_rows(chapter, Choice(10_000.0, table, 5.0, 3.0))
    assert [row["γ"] for row in rows] == ["1,000", "10,000 (chosen)"]
    assert chapter.numbers["rule_localization"] == 10_000
    assert (chapter.numbers["rule_loss"], chapter.numbers["rule_kept"]) == (3.2, 0.95)
    assert chapter.numbers["rule_loss_frequency"] == 5.0


def scores_of(gain: float, loss: float) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    repetitions = np.repeat([4, 1, 0], [40, 40, 100])
    table = pd.DataFrame({name: rng.normal(size=180) for name in SCORES})
    table["gain"] += gain * (repetitions > 0)
    table["loss"] += loss * (repetitions > 0)
    table["variance"] -= 3 * (repetitions > 0)
    return table.assign(repetitions=repetitions)


@pytest.mark.parametrize(
    ("gain", "loss", "said"),
    [
        (3.0, 0.5, "The gain finds more than the loss does"),
        (0.5, 3.0, "The gain finds less than the loss does"),
        (1.0, 1.0, "cannot be told apart"),
    ],
)
def test_the_comparison_of_scores_is_what_was_measured(chapter, gain, loss, said):
    scores = scores_of(gain, loss)
    table = over_networks([detection_table(scores)])
    chapter.record(
        canary_networks=1, canary_draws=9, canary_khat=0.1, held_out_loss=2.3, held_out_loss_se=0.1
    )
    rows = helpers.detection_rows(chapter, table, [scores])
    assert [row["score"] for row in rows] == list(SCORES.values())
    every = table[table.repetitions == 0].set_index("score")
    assert chapter.numbers["canary_auroc_gain"] == every.auroc["gain"]
    assert chapter.numbers["canary_auroc_compression_low"] == every.low["loss_over_zlib"]
    sentence = helpers.detection_in_words(chapter).format(**chapter.numbers)
    assert said in sentence
    assert "ranks them backwards" in sentence


def test_kept_draws_are_held_against_this_runs(chapter, data, tmp_path, monkeypatch):
    monkeypatch.setenv("PROBELIB_CACHE", str(tmp_path / "cache"))
    one, other = (train(TINY, data.train, V, seed=seed, progress=False) for seed in (0, 1))
    kept, same = (canary_trace(one, data, draws=n, seed=0, **RUN) for n in (6, 3))
    elsewhere = canary_trace(other, data, draws=3, seed=0, **RUN)
    (tmp_path / "08_gpt_seed0.safetensors").write_bytes(serialise(one, data.train, V))

    def checked(traces, again):
        said = helpers.check_kept(chapter, tmp_path, TINY, data, traces, again, few=2)
        return said.format(**chapter.numbers)

    assert "No kept run" in checked({0: same}, same)
    assert "No kept run" in checked({1: kept}, same)
    assert "kept_draws_again" not in chapter.numbers
    assert "in the same weights" in checked({0: kept}, same)
    assert chapter.numbers["kept_draws_again"] == 3
    assert chapter.numbers["kept_largest_difference"] == 0
    assert "the kept network was taken" in checked({0: kept}, elsewhere)
    assert chapter.numbers["kept_draws_again"] == 2
    assert chapter.numbers["kept_largest_difference"] < 1e-6
    moved = kept.assign(loss=kept.loss + 0.5)
    checked({0: moved}, same)
    assert chapter.numbers["kept_largest_difference"] == pytest.approx(0.5, abs=1e-6)


def test_windows_to_show_are_what_their_titles_say(data):
    shown, titles = helpers.windows_to_show(data)
    assert titles[:3] == [
        "A canary planted 4 times", "A canary planted once", "A canary never planted",
    ]  # fmt: skip
    assert shown.repetitions.tolist() == [4, 1, 0, -1, -1]
    assert titles[3:] == ["Brown, news", "Brown, editorial"]
    assert shown.genre[3:].tolist() == [0, 1]


def test_halves_of_the_kernel_of_documents_are_compared(chapter):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30, 8))
    walks = [
        probelib.MatrixKernel((f := features + 0.5 * rng.normal(size=(30, 8))) @ f.T)
        for _ in range(4)
    ]
    kept = KeptDocuments(walks, {"config": {"pairs": 3}, "seconds": 7.0})
    helpers.record_kernel(chapter, kept, kept)
    pairs = np.triu_indices(30, 1)
    one, other = (sum(w.covariance() for w in walks[i::2]) for i in (0, 1))
    one, other = (k / np.sqrt(np.outer(np.diag(k), np.diag(k))) for k in (one, other))
    found = chapter.numbers["genre_half_correlation"]
    assert found == pytest.approx(np.corrcoef(one[pairs], other[pairs])[0, 1])
    assert chapter.numbers["genre_again_correlation"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((0.3, 0.7, 0.6), "is above chance by all three measures"),
        ((0.3, 0.5, 0.4), "is above chance by 1 of the three measures"),
        ((0.1, 0.5, 0.4), "is not above chance by any measure"),
    ],
)
def test_genres_above_chance_are_counted(chapter, values, said):
    rows = [
        (title, name, value, 0.01, 0.1, 0.05, 0.2 if name == "purity" else 0.55, 0.5)
        for title in helpers.SIMILARITIES
        for name, value in zip(("purity", "auroc", "nmi"), values, strict=True)
    ]
    columns = ["similarity", "statistic", "value", "error", "chance", "low", "high", "p"]
    lines = helpers.genre_rows(chapter, pd.DataFrame(rows, columns=columns))
    assert len(lines) == 5
    assert chapter.numbers["genre_purity_kernel_low"] == pytest.approx(values[0] - 0.0196)
    chapter.record(genre_documents=30, genre_walks=4, genre_pairs=2, genre_half_correlation=0.5)
    assert said in helpers.genres_in_words(chapter).format(**chapter.numbers)


def test_a_leak_into_the_held_out_canaries_breaks_the_book(chapter):
    chapter.record(
        held_out_loss=2.0, held_out_loss_se=0.01, spread_float32=1.0, canary_auroc_loss_1=0.6
    )
    chapter.compare(helpers.claims(chapter.numbers, kept=False), against="theory")
    assert chapter.numbers["claims_broken"] == 1
    chapter.record(held_out_loss=2.35)
    chapter.compare(helpers.claims(chapter.numbers, kept=False), against="theory")
    assert chapter.numbers["claims_broken"] == 0


def test_a_model_that_cannot_be_had_is_said(chapter, monkeypatch):
    def none():
        raise llm.LanguageModelUnavailable("there is no wheel")

    monkeypatch.setattr(llm, "load_language_model", none)
    said = llm.compute_again(chapter, SimpleNamespace(), 2)
    assert "there is no wheel" in said
    assert "llm_draws_again" not in chapter.numbers


@pytest.mark.parametrize(("error", "said"), [(0.05, "differ."), (0.5, "cannot be told apart.")])
def test_patterns_and_controls_differ_where_their_errors_allow(chapter, error, said):
    names = ["loss", "gain", "same word", "one half", "two passages"]
    table = pd.DataFrame(
        {"pattern": 0.5, "control": 0.1, "difference": 0.4, "error": error,
         "low": 0.0, "high": 0.1, "p": 0.01},
        index=names,
    )  # fmt: skip
    chapter.record(**llm.induction_numbers(table))
    assert llm.induction_in_words(chapter).format(**chapter.numbers).endswith(said)


def test_the_kept_run_has_a_chain_that_agrees_with_its_weights(chapter):
    kept = kept_run(Path(__file__).parents[1] / "results" / "prerun")
    found = llm.numbers(kept)
    chapter.record(**found)
    said = llm.chain_in_words(chapter, kept).format(**chapter.numbers)
    along = llm.along_chain(kept)
    assert len(along) == found["llm_chain_draws"] == kept.chain.sizes["draw"]
    assert f"from {along.min():.2f} to {along.max():.2f}" in said
    assert said.endswith("error of their own.")
    # Two ways to one posterior; the draws of the chain hardly know each other.
    error = along.std(ddof=1) / len(along) ** 0.5
    assert abs(found["llm_loss_chain"] - found["llm_loss_weighted"]) < 4 * error
    none = replace(kept, chain=None)
    assert "has no chain" in llm.chain_in_words(chapter, none)
    with pytest.raises(ValueError, match="kept has no chain"):
        llm.along_chain(none)
