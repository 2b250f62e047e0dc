"""Detection of canaries: against counting by hand, published intervals, and a trace by hand."""

import math
import zlib

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import nn

import probelib
from probebook.language_data import IGNORED, Windows
from probebook.memorized import (
    SCORES,
    auroc_interval,
    canary_scores,
    detection_table,
    exposure,
    over_networks,
    paired_difference,
    recall_at,
    wilson,
)

N, T, V = 12, 5, 7


@pytest.fixture(scope="module")
def windows():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, V, (N, T + 1), generator=generator)
    targets = ids[:, 1:].clone()
    targets[:, 3:] = IGNORED
    targets[4:, 3] = ids[4:, 4]  # of different lengths
    none = np.full(N, -1)
    repetitions = np.repeat([1, 2, 0], 4)
    texts = tuple("".join(map(str, row)) for row in ids.tolist())
    return Windows(ids[:, :-1].clone(), targets, none, none, repetitions, texts)


@pytest.fixture(scope="module")
def trace(windows):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(V, 4), nn.Linear(4, V))
    posterior = probelib.LocalPosterior(
        model, probelib.sequence_cross_entropy, windows.data, n_beta=10.0, localization=20.0
    )
    return probelib.sample(posterior, sampler=probelib.SGLD(1e-3, batch_size=4), chains=2, draws=9,
                           observe_loss=probelib.token_cross_entropy, progress=False)  # fmt: skip


def test_scores_are_those_counted_by_hand(trace, windows):
    scores = canary_scores(trace, windows)
    assert list(scores.columns) == ["repetitions", *SCORES]
    loss = np.nanmean(trace.loss.values.astype(float), 3)
    init = np.nanmean(trace.init_loss.values.astype(float), 1)
    assert scores["gain"].to_numpy() == pytest.approx(loss.mean((0, 1)) - init, abs=1e-6)
    assert scores["mean_loss"].to_numpy() == pytest.approx(-loss.mean((0, 1)), abs=1e-6)
    assert scores["loss"].to_numpy() == pytest.approx(-init)
    variance = loss.reshape(-1, N).var(0, ddof=1)
    assert scores["variance"].to_numpy() == pytest.approx(variance, rel=1e-4)
    total = np.nansum(trace.init_loss.values.astype(float), 1) / math.log(2)
    bits = [8 * len(zlib.compress(text.encode(), 9)) for text in windows.texts]
    assert scores["loss_over_zlib"].to_numpy() == pytest.approx(-total / bits)


def test_scores_of_other_windows_are_refused(trace, windows):
    with pytest.raises(ValueError, match="trace observes other tokens"):
        canary_scores(trace, windows[::-1])
    with pytest.raises(ValueError, match="trace observes other tokens"):
        canary_scores(trace, windows[:5])


def test_a_trace_without_tokens_needs_the_losses_of_its_windows(trace, windows):
    without = xr.Dataset({"loss": trace.sample_loss, "init_loss": trace.init_sample_loss})
    without = without.drop_vars("token_id", errors="ignore")
    loss = trace.init_sample_loss.values
    scores = canary_scores(without, windows, loss)
    pd.testing.assert_frame_equal(scores, canary_scores(trace, windows), rtol=1e-5)
    with pytest.raises(ValueError, match="loss is None, and a trace without tokens"):
        canary_scores(without, windows)
    with pytest.raises(ValueError, match="trace has other losses at"):
        canary_scores(without, windows, loss[::-1])
    with pytest.raises(ValueError, match=r"trace observes \(12,\) samples, and there are 5"):
        canary_scores(without, windows[:5], loss[:5])


def test_the_table_has_every_score_at_every_repetition():
    rng = np.random.default_rng(0)
    repetitions = np.repeat([1, 4, 0], [20, 30, 100])
    scores = pd.DataFrame({name: rng.normal(size=150) for name in SCORES})
    scores.insert(0, "repetitions", repetitions)
    scores["gain"] += 100 * (repetitions == 4)
    table = detection_table(scores).set_index(["score", "repetitions"])
    assert len(table) == 5 * 3
    four, all_of_them = table.loc[("gain", 4)], table.loc[("gain", 0)]
    assert (four.auroc, four.recall, four.canaries) == (1, 1, 30)
    assert four.low < 1
    assert all_of_them.canaries == 50
    one = scores.gain[repetitions == 1].to_numpy()[:, None]
    alone = (one > scores.gain[repetitions == 0].to_numpy()).mean()
    assert table.loc[("gain", 1)].auroc == pytest.approx(alone)
    assert all_of_them.auroc == pytest.approx((20 * alone + 30) / 50)
    with pytest.raises(ValueError, match="1 rows are no canaries"):
        detection_table(scores.assign(repetitions=np.r_[-1, repetitions[1:]]))


# -- intervals ------------------------------------------------------------------------------------


def test_the_interval_solves_its_equation():
    for auroc, m, n in ((0.5, 30, 30), (0.93, 24, 200), (0.08, 10, 12), (1.0, 24, 200)):
        for theta in auroc_interval(auroc, m, n):
            if theta in (0.0, 1.0):
                continue
            q1, q2, mean = theta / (2 - theta), 2 * theta**2 / (1 + theta), (m + n) / 2
            hanley = (
                theta * (1 - theta) + (mean - 1) * (q1 - theta**2) + (mean - 1) * (q2 - theta**2)
            )
            assert abs(auroc - theta) == pytest.approx(1.959964 * math.sqrt(hanley / (m * n)), 1e-4)


def test_the_interval_covers():
    """Normal scores: 95 % of 400 intervals, less four standard errors of 1.1 %, are 90.6 %."""
    rng, held = np.random.default_rng(0), 0
    truth = 0.921350396  # Phi(2 / sqrt 2)
    for _ in range(400):
        a, b = rng.normal(2, 1, 24), rng.normal(size=100)
        auroc = (a[:, None] > b).mean()
        low, high = auroc_interval(auroc, 24, 100)
        held += low <= truth <= high
    assert held / 400 > 0.906


@given(st.floats(0, 1), st.integers(1, 300), st.integers(1, 300))
@settings(max_examples=100, deadline=None)
def test_intervals_hold_the_estimate_and_mirror(auroc, m, n):
    auroc = round(auroc * 2 * m * n) / (2 * m * n)  # what counting can give
    low, high = auroc_interval(auroc, m, n)
    assert 0 <= low <= auroc <= high <= 1
    assert low < high
    mirrored = auroc_interval(1 - auroc, m, n)
    assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-9)


def test_wilson_is_the_published():
    # Newcombe, Statistics in Medicine 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for r, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605),
                            (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)):  # fmt: skip
        assert wilson(r / n, n) == pytest.approx((low, high), abs=6e-5)


# -- recall and exposure -------------------------------------------------------------------------


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share(counts):
    low, high = wilson(counts[0] / counts[1], counts[1])
    assert 0 <= low <= counts[0] / counts[1] <= high <= 1


def test_recall_allows_as_many_false_positives_as_said():
    held = np.arange(200.0)
    assert recall_at(np.array([198.0, 197.5, 197.0, 300.0]), held, 0.01) == 0.75  # 198, 199 may be
    assert recall_at(np.array([197.0]), held, 0.01) == 0  # equal to one that may not
    assert recall_at(held, np.zeros(100), 0.01) == 199 / 200


def test_ties_are_all_called_or_none():
    held = np.r_[np.zeros(90), np.ones(10)]
    assert recall_at(np.ones(5), held, 0.05) == 0
    assert recall_at(np.ones(5), held, 0.10) == 1


@pytest.mark.parametrize(
    ("planted", "held", "share", "message"),
    [
        (np.ones(3), np.zeros(99), 0.01, "99 held out cannot show 0.01 .* at least 100"),
        (np.ones(3), np.zeros(99), 1.0, "share must be in"),
        (np.array([np.nan]), np.zeros(100), 0.01, "not finite"),
    ],
)
def test_recall_refuses(planted, held, share, message):
    with pytest.raises(ValueError, match=message):
        recall_at(planted, held, share)


def test_exposure_is_by_rank():
    held = np.arange(1.0, 16)
    np.testing.assert_allclose(exposure(np.array([0.0, 1.5, 99]), held), [4, 3, 0], atol=1e-12)
    uniform = exposure(np.random.default_rng(0).random(2000), np.random.default_rng(1).random(2000))
    # An exponential with mean 1 / ln 2 = 1.443 and as much spread: four standard errors are 0.13,
    # and as much again for the held out.
    assert abs(uniform.mean() - 1.443) < 0.19


def canaries_of(seed):
    rng = np.random.default_rng(seed)
    repetitions = np.repeat([4, 1, 0], [10, 12, 100])
    table = pd.DataFrame({name: rng.normal(size=122) + (repetitions > 1) for name in SCORES})
    table.insert(0, "repetitions", repetitions)
    return table


def test_networks_are_averaged_and_the_interval_is_that_of_one():
    tables = [detection_table(canaries_of(seed)) for seed in (0, 1)]
    mean = over_networks(tables)
    auroc = np.stack([table.auroc for table in tables])
    assert mean.auroc.to_numpy() == pytest.approx(auroc.mean(0))
    assert mean.auroc_lowest.to_numpy() == pytest.approx(auroc.min(0))
    assert mean.auroc_highest.to_numpy() == pytest.approx(auroc.max(0))
    row = mean.iloc[1]
    assert (row.low, row.high) == pytest.approx(auroc_interval(row.auroc, int(row.canaries), 100))
    alone = over_networks(tables[:1])
    pd.testing.assert_frame_equal(alone[tables[0].columns], tables[0], check_dtype=False)
    with pytest.raises(ValueError, match="tables is empty"):
        over_networks([])
    with pytest.raises(ValueError, match="different rows"):
        over_networks([tables[0], tables[1].iloc[1:].reset_index(drop=True)])


def test_a_difference_is_that_of_the_aurocs_and_what_is_shared_cancels():
    scores = [canaries_of(seed) for seed in (0, 1)]
    found, low, high = paired_difference(scores, "gain", "loss", resamples=200)
    of = {
        name: np.mean([roc_auc_score(s.repetitions > 0, s[name]) for s in scores])
        for name in ("gain", "loss")
    }
    assert found == pytest.approx(of["gain"] - of["loss"])
    assert low < found < high
    same = [table.assign(loss=2 * table.gain) for table in scores]
    assert paired_difference(same, "gain", "loss", resamples=50) == (0.0, 0.0, 0.0)
    # Independent scores: the standard error of a difference, by Hanley and McNeil, twice.
    wide = paired_difference([canaries_of(s) for s in range(2, 3)], "gain", "loss", resamples=400)
    spread = auroc_interval(0.7, 22, 100)
    assert wide[2] - wide[1] == pytest.approx(2**0.5 * (spread[1] - spread[0]), rel=0.3)
    with pytest.raises(ValueError, match="different canaries"):
        paired_difference([scores[0], scores[1].iloc[::-1]], "gain", "loss")
