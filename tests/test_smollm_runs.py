"""The kept run of the real language model: what is written comes back, and what the book has."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from test_smollm import Words, corpus

import probelib
from probebook import prerun
from probebook.chapters.language_models_llm import (
    gaussian_draws,
    mean_loss,
    moving_together,
    numbers,
    own_places,
)
from probebook.induction import induction
from probebook.llm_text import observed_text
from probebook.localization_rule import KEEP, Choice
from probebook.smollm_runs import FILE, N_BETA, agreement, gathered, kept_run
from probebook.token_view import neighbours_on_page, passages_of, token_view

KEPT = Path(__file__).parent.parent / "results" / "prerun"


def trace_of(text, draws, seed):
    rng = np.random.default_rng(seed)
    n, length = text.windows.targets.shape
    init = np.random.default_rng(9).random((n, length)).astype(np.float32)
    loss = (init + rng.normal(0.1, 0.2, (1, draws, n, length))).astype(np.float32)
    return xr.Dataset(
        {
            "loss": (("chain", "draw", "sample", "token"), loss),
            "init_loss": (("sample", "token"), init),
            "sample_loss": (("chain", "draw", "sample"), loss.mean(-1)),
            "distance": (("chain", "draw"), rng.random((1, draws)).astype(np.float32)),
        },
        attrs={"wall_time": 10.0, "versions": {"torch": "2"}, "fingerprint": {"weights": "w"},
               "config": {"sampler": "leimkuhler-matthews", "draws": draws, "n_beta": N_BETA}},
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A kept run of made up losses, and what it was made from."""
    folder = tmp_path_factory.mktemp("kept")
    tokenizer = Words()
    text = observed_text(tokenizer, corpus())
    language = SimpleNamespace(name="words", source="made up", parameters=5, tokenizer=tokenizer)
    table = pd.DataFrame(
        [(1e3, 2.0, 0.1, 0.5, 0.1), (1e4, 1.1, 0.1, 0.95, 0.1)],
        columns=["gamma", "loss", "error", "kept", "kept_error"],
    )
    traces = [trace_of(text, 30, seed) for seed in (0, 1)]
    chain = trace_of(text, 8, 2)
    arrays, about = gathered(language, text, Choice(1e4, table, 3.0, 1.0), traces, chain)
    arrays["seed"] = np.repeat([0, 1], 30)
    prerun.write(folder / FILE, arrays, about)
    return SimpleNamespace(
        folder=folder, text=text, language=language, traces=traces, chain=chain, table=table
    )


def test_what_is_written_comes_back(made):
    kept = kept_run(made.folder, made.language)
    both = np.concatenate([t.loss.values[0] for t in made.traces])
    np.testing.assert_array_equal(kept.trace.loss[0], both)
    np.testing.assert_array_equal(kept.chain.loss, made.chain.loss)
    wanted = both[:, made.text.is_brown].mean((1, 2))
    np.testing.assert_allclose(kept.trace.mean_loss[0], wanted, rtol=1e-6)
    np.testing.assert_allclose(kept.trace.log_weight, -N_BETA * kept.trace.mean_loss)
    assert kept.trace.attrs["config"]["beta"] == N_BETA / 8
    pd.testing.assert_frame_equal(kept.choice.table, made.table)
    assert kept.text.titles == made.text.titles
    np.testing.assert_array_equal(kept.text.pairs, made.text.pairs)
    words = kept.pieces.decode(kept.text.windows.targets[0].tolist())
    assert words == made.text.windows.texts[0]
    with pytest.raises(ValueError, match="is of made up, not of another"):
        kept_run(made.folder, SimpleNamespace(source="another"))
    with pytest.raises(FileNotFoundError):
        kept_run(made.folder / "nowhere")


def test_the_estimators_the_view_and_the_tables_take_it(made):
    kept = kept_run(made.folder)
    found = numbers(kept)
    weights = np.exp(kept.trace.log_weight.values[0] - kept.trace.log_weight.values.max())
    weights /= weights.sum()
    assert found["effective_draws"] == pytest.approx(1 / np.square(weights).sum())
    assert found["llm_loss_weighted"] == pytest.approx(weights @ kept.trace.mean_loss.values[0])
    assert found["draws"] == 60
    assert found["n_tokens"] == 14 * 64
    brown = made.chain.loss.values[0][:, :8].mean((1, 2))
    assert mean_loss(kept.chain, kept.text)[0] == pytest.approx(brown.mean(), rel=1e-5)
    assert found["llm_kept_chain"] == pytest.approx((3 - brown.mean()) / 2, rel=1e-4)
    kernel = probelib.loss_kernel(kept.trace)
    table = moving_together(kernel, kept.text, kept.pieces)
    assert len(table) == 12
    assert (table["in"] != table["of"]).all()
    assert table.R.is_monotonic_decreasing
    plain = gaussian_draws(kept.trace)
    mean = kept.trace.loss.values[0].mean(0) - kept.trace.init_loss.values
    np.testing.assert_allclose(probelib.loss_gain(plain).values, mean, atol=1e-6)
    assert table.q.isna().all()  # of weighted draws none is known
    passages = passages_of(kept.trace, kept.text.windows, kept.pieces, [0, 8], ["one", "two"])
    page = token_view(passages, neighbours_on_page(kernel, passages))
    assert "news0w63" in page
    assert np.isfinite(induction(kept.trace, kept.text, permutations=50).difference).all()


def test_a_run_without_a_chain(made, tmp_path):
    choice = Choice(1e4, made.table, 3.0, 1.0)
    arrays, about = gathered(made.language, made.text, choice, made.traces, None)
    arrays["seed"] = np.repeat([0, 1], 30)
    prerun.write(tmp_path / FILE, arrays, about)
    kept = kept_run(tmp_path)
    assert kept.chain is None
    assert "llm_loss_chain" not in numbers(kept)
    assert "llm_loss_chain" in numbers(kept_run(made.folder))


def test_a_control_repeats_the_text_of_its_pattern(made):
    own = own_places(made.text)
    for pattern in (8, 10, 12):
        assert np.isin(np.arange(pattern * 64, (pattern + 1) * 64), own).all()
        control = (pattern + 1) * 64 + np.arange(64)
        assert not np.isin(control[:32], own).any()
        assert np.isin(control[32:], own).all()


def test_draws_made_again_are_compared_one_by_one(made):
    kept = kept_run(made.folder).trace
    again = kept.isel(draw=slice(3)).copy(deep=True)
    assert agreement(kept, again) == {
        "draws": 3, "largest_difference": 0.0, "largest_relative": 0.0,
        "mean_loss_difference": 0.0, "equal": 1.0,
    }  # fmt: skip
    again["loss"][0, 1, 2, 3] += 0.5
    again["mean_loss"][0, 2] -= 0.25
    found = agreement(kept, again)
    assert found["largest_difference"] == pytest.approx(0.5, rel=1e-5)
    assert found["mean_loss_difference"] == pytest.approx(0.25)
    assert found["equal"] == pytest.approx(1 - 1 / (3 * 14 * 64))
    again["token_id"] = again.token_id + 1
    with pytest.raises(ValueError, match="not of the same draws and tokens"):
        agreement(kept, again)


def test_the_kept_run_of_the_book_is_whole():
    if not (KEPT / FILE).is_file():
        pytest.skip("the long run is not here")
    kept = kept_run(KEPT)
    table, choice = kept.choice.table, kept.choice
    assert choice.localization == table.gamma[table.kept >= KEEP].min()
    assert table.kept.min() < KEEP  # the rule was not met by all
    at_center = kept.trace.init_sample_loss.values[kept.text.is_brown].mean()
    assert choice.trained_loss == pytest.approx(at_center, abs=1e-4)
    assert choice.trained_loss < kept.trace.mean_loss.values.mean() < choice.frequency_loss
    assert np.isfinite(kept.trace.loss.values).all()
    assert len(kept.seeds) == kept.trace.sizes["draw"]
    # Independent draws at a distance of sqrt(d / gamma), as from N(w*, I / gamma).
    d = kept.about["parameters"]
    spread = np.square(kept.trace.distance.values.astype(float)) * choice.localization / d
    np.testing.assert_allclose(spread, 1, atol=6 * (2 / d) ** 0.5)
    assert len(np.unique(kept.trace.sample_loss.values[0], axis=0)) == len(kept.seeds)
    assert kept.trace.attrs["config"]["n_beta"] == N_BETA
    kernel = probelib.loss_kernel(gaussian_draws(kept.trace))
    assert moving_together(kernel, kept.text, kept.pieces).q.between(0, 1).all()
    assert (KEPT / FILE).stat().st_size < 2e6
