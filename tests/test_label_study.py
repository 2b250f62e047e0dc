"""Studies of wrong labels: what they are of, what is kept of them, and what is averaged."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from probebook.labels import study as st
from probebook.labels import summaries, tasks
from probebook.labels.noise import NOISES

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = st.StudySize(
    n=90, epochs=(1, 200), hidden=16, draws=12, chains=2, chain_draws=4, early=1, early_networks=2
)
TUMOURS = st.Study("tumours", "uniform", 0.1, 0)


@pytest.fixture(scope="module")
def rows():
    return st.run_study(TUMOURS, SMALL)


def test_tasks_have_what_they_say():
    task = tasks.load_task("tumours", 400, 3)
    assert task.x.shape == (379, 30)  # two thirds of 569
    assert task.test_x.shape == (190, 30)
    assert task.classes == ("malignant", "benign")
    both = torch.cat([task.x, task.test_x])
    assert len(both.unique(dim=0)) == 569  # no sample is in both
    other = tasks.load_task("tumours", 400, 4)
    assert not torch.equal(task.x, other.x)
    assert torch.equal(task.x, tasks.load_task("tumours", 400, 3).x)
    with pytest.raises(ValueError, match="name"):
        tasks.load_task("cifar", 10, 0)


def test_passages_are_those_of_their_genre(monkeypatch):
    from probebook.brown import Brown, Document

    documents = [
        Document(f"d{at}", genre, " ".join([f"{genre}word"] * words))
        for at, (genre, words) in enumerate([("news", 900), ("hobbies", 500)] * 2)
    ]
    monkeypatch.setattr(tasks, "brown_or_stand_in", lambda: Brown(tuple(documents), "here"))
    tasks._passages.cache_clear()
    try:
        features, labels, genres, source = tasks._passages()
    finally:
        tasks._passages.cache_clear()
    assert genres == ("hobbies", "news")
    assert source == "here"
    # 900 words are two passages of 400 and one of 100, which is too short; 500 are one and no more.
    np.testing.assert_array_equal(labels, [1, 1, 0, 1, 1, 0])
    assert features.shape == (6, 2)
    np.testing.assert_allclose(np.square(features).mean(1), 1)
    assert (features[labels == 0, 0] > 0).all()
    assert (features[labels == 0, 1] == 0).all()


def test_a_study_has_every_score_at_every_epoch(rows):
    there = {(row.epoch, row.score) for row in rows.itertuples()}
    assert {(epoch, score) for epoch in (1, 200) for score in st.SCORES} <= there
    assert len(there) == len(rows)
    of_scores = rows[rows.score.isin(list(st.SCORES))]
    assert np.isfinite(of_scores[["auroc", "average_precision", "seconds"]]).all().all()
    last = rows[rows.epoch == 200].set_index("score").auroc
    assert last["fitted_wrong"] > 0.5
    assert last["loss"] > 0.7
    assert 0 < last["draws_that_count"] <= 1


def test_rates_without_chains_have_no_scores_of_theirs():
    found = st.run_study(replace(TUMOURS, rate=0.2), replace(SMALL, epochs=(1,)))
    assert not any(name.endswith("_table1") for name in found.score)
    assert "mean_loss" in set(found.score)


def test_scores_see_the_given_labels_and_nothing_of_the_true_ones():
    prepared = st.prepare(TUMOURS, SMALL)
    assert prepared.wrong.sum() == 9
    lied = replace(prepared, task=replace(prepared.task, y=1 - prepared.task.y))
    [(_, one)] = st.all_scores(prepared, [200])
    [(_, other)] = st.all_scores(lied, [200])
    for name in st.SCORES:
        np.testing.assert_array_equal(one[name][0], other[name][0], err_msg=name)


def test_studies_are_kept_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PROBELIB_CACHE", str(tmp_path))
    size = replace(SMALL, epochs=(2,), chain_rates=())
    studies = [replace(TUMOURS, seed=seed) for seed in (0, 1)]
    first = st.run_studies(studies, size, progress=False)
    monkeypatch.setattr(st, "run_study", None)  # nothing is run again
    again = st.run_studies(studies, size, progress=False)
    pd.testing.assert_frame_equal(first, again)
    with pytest.raises(TypeError):
        st.run_studies(studies, replace(size, draws=13), progress=False)
    with pytest.raises(TypeError):
        st.run_studies(studies, size, progress=False, cached=False)
    with monkeypatch.context() as other:
        other.setattr(st, "source_of", lambda name: "a stand-in")
        with pytest.raises(TypeError):
            st.run_studies(studies, size, progress=False)
    st.keep_studies(tmp_path / "kept.safetensors", first, size)
    kept, about = st.kept_studies(tmp_path / "kept.safetensors")
    assert about["size"]["n"] == 90
    for name in first:
        if first[name].dtype.kind == "f" and name != "rate":
            np.testing.assert_allclose(kept[name], first[name], rtol=1e-6)
        else:
            assert list(kept[name]) == list(first[name])


def test_the_grid_has_whole_seeds_first():
    found = st.grid(("mnist",), NOISES, (0.1, 0.4), seeds=2)
    assert len({study.name for study in found}) == len(found) == 12
    assert [study.seed for study in found] == [0] * 6 + [1] * 6
    assert found[0].name == "mnist_uniform10_seed0"


# --- summaries ---


def table(values):
    """Rows from (score, task, epoch, seed): auroc."""
    rows = [(*key, "uniform", 0.1, value, value / 2, 0.5) for key, value in values.items()]
    columns = ["score", "task", "epoch", "seed", "noise", "rate", "auroc", "average_precision",
               "seconds"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def both_tasks(**of_scores):
    """Both tasks at two epochs and two seeds; every value is a little higher with the seed."""
    return table({
        (score, task, epoch, seed): value + 0.02 * seed
        for score, by_epoch in of_scores.items()
        for task in ("mnist", "fashion")
        for epoch, value in zip((1, 100), by_epoch, strict=True)
        for seed in (0, 1)
    })  # fmt: skip


def test_means_are_over_seeds_after_all_else():
    rows = both_tasks(loss=(0.6, 0.8))
    found = summaries.means(rows, ["score", "epoch"])
    np.testing.assert_allclose(found["mean"], [0.61, 0.81])
    half = 12.706204736432095 * 0.02 / np.sqrt(2) / np.sqrt(2)
    np.testing.assert_allclose(found.high - found["mean"], half)
    assert summaries.means(both_tasks(loss=(0.99, 0.8)), ["score", "epoch"]).high[0] == 1
    with pytest.raises(ValueError, match="more of"):
        summaries.means(rows.iloc[1:], ["score", "epoch"])


def test_the_best_score_is_the_one_whose_worst_epoch_is_best():
    rows = both_tasks(loss=(0.9, 0.6), loss_gain=(0.2, 0.99), mean_loss=(0.8, 0.8), aum=(1, 1))
    best, ranked = summaries.best_post_hoc(rows)
    assert best == "mean_loss"
    assert list(ranked.score) == ["mean_loss", "loss", "loss_gain"]  # aum needs the training
    np.testing.assert_allclose(ranked.worst, [0.81, 0.61, 0.21])
    assert list(ranked.epoch) == [1, 100, 1]


def test_differences_are_paired():
    rows = both_tasks(loss=(0.6, 0.8), mean_loss=(0.7, 0.7))
    assert summaries.difference(rows, "mean_loss", "loss", 1).value == pytest.approx(0.1)
    overall = summaries.difference(rows, "mean_loss", "loss")
    assert overall.value == pytest.approx(0)
    assert overall.high == pytest.approx(0, abs=1e-12)  # what both have in common cancels
    with pytest.raises(ValueError, match="no study with both"):
        summaries.difference(rows, "mean_loss", "aum")


def test_stages_follow_what_is_fitted():
    rows = pd.concat([both_tasks(loss=(0.9, 0.6)), both_tasks(fitted_wrong=(0.1, 0.95))])
    found = summaries.by_stage(rows).set_index("stage")
    assert set(found.index) == {"underfitted", "memorized"}
    np.testing.assert_allclose(found.loc["underfitted", "mean"], 0.91)
    np.testing.assert_allclose(found.loc["memorized", "mean"], 0.61)
    some = both_tasks(mean_loss=(0.5, 0.5))
    with pytest.raises(ValueError, match="give studies that have every score"):
        summaries.by_stage(pd.concat([rows, some[some.task == "mnist"]]))


def test_flags_have_recall_and_precision():
    found = summaries.flags(both_tasks(flags_label_issues=(0.4, 0.2)))
    assert list(found.detector) == ["label_issues", "label_issues"]
    np.testing.assert_allclose(found.recall, [0.41, 0.21])
    np.testing.assert_allclose(found.precision, [0.205, 0.105])
