"""Chapter 10: when a kept run counts, what is recorded, and what the sentences say."""

import numpy as np
import pandas as pd
import pytest
from test_label_study import SMALL, TUMOURS, both_tasks

from probebook.chapter import Chapter
from probebook.chapters import wrong_labels as helpers
from probebook.labels import study as st
from probebook.labels import summaries

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def chapter(tmp_path):
    return Chapter("10_wrong_labels", profile="smoke", results_dir=str(tmp_path))


def test_a_kept_run_counts_where_it_has_the_studies_at_their_size(tmp_path, monkeypatch):
    from dataclasses import replace

    path = tmp_path / "10.safetensors"
    studies = [replace(TUMOURS, seed=seed) for seed in (0, 1)]
    table = both_tasks(loss=(0.8, 0.9))
    table = table[table.task == "mnist"].assign(task="tumours")
    st.keep_studies(path, table, SMALL)
    ran = []
    monkeypatch.setattr(
        helpers, "run_studies", lambda asked, size, progress: ran.append((asked, size)) or table
    )
    rows, made = helpers.kept_or_run(path, studies[:1], SMALL, progress=False)
    assert made == "a kept run"
    assert set(rows.seed) == {0}
    assert not ran
    for other, size in (
        ([*studies, replace(TUMOURS, seed=2)], SMALL),
        (studies, replace(SMALL, draws=13)),
    ):
        assert helpers.kept_or_run(path, other, size, progress=False)[1] == "this run"
        assert ran.pop() == (other, size)
    assert helpers.kept_or_run(tmp_path / "none", studies, SMALL, progress=False)[1] == "this run"


def test_what_is_made_again_is_compared_score_by_score(chapter):
    rows = both_tasks(loss=(0.8, 0.9), aum=(0.8, 0.9))
    again = rows[(rows.task == "mnist") & (rows.seed == 0)].copy()
    again.loc[again.score == "aum", "auroc"] -= 0.03
    again["seconds"] = 4.0
    helpers.record_again(chapter, rows, again)
    assert chapter.numbers["again_studies"] == 1
    assert chapter.numbers["again_largest"] == pytest.approx(0.03)
    assert chapter.numbers["seconds_aum"] == 4.0  # of this machine, not of the kept run


def test_every_number_of_one_rate_is_recorded_and_all_are_in_the_table(chapter):
    rows = both_tasks(loss=(0.8, 0.9))
    rows = pd.concat([rows, rows.assign(rate=0.4, auroc=rows.auroc - 0.2)])
    helpers.record_scores(chapter, rows, 0.1)
    assert chapter.numbers["auroc_loss_mnist_uniform10_100"] == pytest.approx(0.91)
    low = chapter.numbers["auroc_loss_mnist_uniform10_100_low"]
    assert low == pytest.approx(0.91 - 12.706204736 * 0.01, abs=1e-4)
    assert not any("uniform40" in name for name in chapter.numbers)
    table = pd.read_csv(chapter.path.with_name("10_wrong_labels-scores.csv"))
    assert len(table) == 8
    own = table[(table.rate == 0.4) & (table.task == "mnist") & (table.epoch == 100)]
    np.testing.assert_allclose(own["mean"], 0.71)


def test_sentences_name_the_winner_and_a_loser(chapter):
    rows = both_tasks(
        loss=(0.9, 0.6), gradient_norm=(0.8, 0.6), loss_gain=(0.2, 0.7), mean_loss=(0.85, 0.65),
        mean_loss_table1=(0.8, 0.6), variance=(0.5, 0.5), aum=(0.95, 0.8), knn_features=(0.9, 0.9),
        out_of_sample=(0.9, 0.8), el2n=(0.9, 0.9),
    )  # fmt: skip
    fitted = both_tasks(fitted_wrong=(0.1, 0.95))
    staged = summaries.by_stage(pd.concat([rows, fitted]))
    helpers.record_stages(chapter, staged)
    words = helpers.shootout_in_words(chapter, staged).format(**chapter.numbers)
    before, after = words.split(" Once ")
    assert "the best score is *area under the margin* (0.960)" in before
    assert "of the probe's *posterior mean loss* (0.860)" in before
    assert "the gain has **0.210**" in before
    assert "of the probe's *loss gain* (0.710)" in after
    helpers.record_front(chapter)
    assert chapter.numbers["front_scores"] == (
        "gain 0.21 / 0.71; mean loss 0.86 / 0.66; loss 0.91 / 0.61"
    )
    helpers.record_best(chapter, rows)
    assert chapter.numbers["best_posthoc_score"] == "knn_features"
    assert chapter.numbers["mean_loss_less_loss_last"] == pytest.approx(0.05)
    assert len(helpers.difference_rows(chapter)) == len(helpers.PAIRS)
    chapter.record(seconds_loss=0.1, seconds_mean_loss=2.0, seconds_loss_gain=2.0,
                   seconds_gradient_norm=0.2)  # fmt: skip
    added = helpers.added_in_words(chapter).format(**chapter.numbers)
    assert "The posterior mean loss is **better than** the plain loss" in added
    assert "0.1 seconds in place of 2" in added
    [line, *_] = helpers.rate_rows(chapter, rows)
    assert line == {"score": "loss gain, local", "10% wrong labels": "0.710 [0.583, 0.837]"}


def test_only_what_is_sure_to_beat_chance_is_said_to():
    table = pd.DataFrame({
        "score": ["loss", "aum", "random"], "share": 0.1, "over_random_low": [0.1, -0.1, 0.0],
    })  # fmt: skip
    words = helpers.loop_in_words({
        "uniform": table,
        "instance": table.assign(over_random_low=-1.0),
        "other": table.assign(over_random_low=1.0),
    })  # fmt: skip
    assert words == (
        "With noise of the uniform kind more than random inspection gain for sure: loss. "
        "With noise of the instance kind no score gains more than random inspection for sure. "
        "With noise of the other kind every score gains more than random inspection."
    )


def test_panels_part_the_probe_from_the_rest():
    probe, rest = helpers.panels_of(both_tasks(aum=(1, 1), loss_gain=(1, 1), loss=(1, 1))).values()
    assert probe == {"loss_gain": "gain"}
    assert rest == {"loss": "loss", "aum": "AUM"}


def test_every_score_has_a_name_and_a_need():
    assert set(helpers.NEEDS) == set(helpers.SHORT) == set(st.SCORES)
    for names in (helpers.LOOP, helpers.SHOWN, dict.fromkeys(helpers.RATE_SCORES)):
        assert set(names) <= set(st.SCORES)
    assert {name for pair in helpers.PAIRS for name in pair} <= set(st.SCORES)
