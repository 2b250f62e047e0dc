"""Detection and separation against hand-computed values and closed forms."""

import numpy as np
import pytest
import torch
import xarray as xr
from sklearn.datasets import load_digits

import probelib
from probebook.memorization import detection, neighbour_auroc, principal, unfitted, unit_traces


def test_auroc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    score, flagged = rng.integers(0, 20, 200).astype(float), rng.random(200) < 0.3
    a, b = score[flagged][:, None], score[~flagged][None]
    pairs = (a > b).mean() + 0.5 * (a == b).mean()
    found = detection(score, flagged)
    assert found.auroc == pytest.approx(pairs, abs=1e-12)
    x, y = found.roc
    assert np.trapezoid(y, x) == pytest.approx(pairs, abs=1e-12)


def test_average_precision_of_a_perfect_score_is_one():
    flagged = np.array([0, 0, 1, 0, 1], bool)
    assert detection(flagged.astype(float), flagged).average_precision == 1


def test_one_population_is_refused():
    with pytest.raises(ValueError, match="flagged marks 0 of 3"):
        detection(np.arange(3.0), np.zeros(3, bool))


def test_separated_clouds_score_one_and_mixed_ones_a_half():
    rng = np.random.default_rng(1)
    flagged = np.arange(2000) % 4 == 0
    cloud = rng.normal(size=(2000, 2))
    assert neighbour_auroc(cloud + 50 * flagged[:, None], flagged) == 1
    # Mixed: the AUROC of 500 against 1,500 has a standard error of
    # sqrt((500 + 1500 + 1) / (12 * 500 * 1500)) = 0.015 for independent scores; neighbouring
    # scores share neighbours, so allow ten of them.
    assert abs(neighbour_auroc(cloud, flagged) - 0.5) < 0.15


def test_a_sample_does_not_count_itself():
    # Pairs of one kind each, far apart: with k = 1 each sample's neighbour is its twin.
    x = np.repeat(np.arange(10.0) * 10, 2)[:, None] + np.tile([0, 0.1], 10)[:, None]
    twins = np.repeat(np.arange(10) % 2 == 0, 2)
    assert neighbour_auroc(x, twins, k=1) == 1
    strangers = np.tile([True, False], 10)
    assert neighbour_auroc(x, strangers, k=1) == 0


def test_unit_traces_have_the_correlation_kernel_as_inner_products():
    loss = np.random.default_rng(0).normal(size=(2, 6, 9)) * np.geomspace(1e-4, 10, 9)
    loss[..., 4] = 0.25  # a loss that never moves
    trace = xr.Dataset(
        {"loss": (("chain", "draw", "sample"), loss), "init_loss": ("sample", loss[0, 0])}
    )
    kernel = probelib.loss_kernel(trace)
    rows = np.array([8, 4, 0, 2])
    unit = unit_traces(kernel, rows)
    assert unit.shape == (4, 12)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), [1, 0, 1, 1], atol=1e-6)
    expected = kernel.correlation(rows, rows)
    np.testing.assert_allclose(unit @ unit.T, expected, atol=1e-6)
    off = ~np.isin(rows, 4)
    whole = loss.reshape(12, 9)[:, rows[off]]
    np.testing.assert_allclose(expected[np.ix_(off, off)], np.corrcoef(whole.T), atol=1e-5)


def test_principal_axes_keep_the_inner_products():
    x = np.random.default_rng(0).normal(size=(30, 4)) @ np.diag([9.0, 3.0, 1.0, 1e-9])
    np.testing.assert_allclose(principal(x, 3) @ principal(x, 3).T, x @ x.T, atol=1e-6)
    assert principal(x, 1).shape == (30, 1)
    # The longest axis alone leaves what the other two hold: their squares, at most.
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    np.testing.assert_allclose(
        principal(x, 1) @ principal(x, 1).T, s[0] ** 2 * np.outer(u[:, 0], u[:, 0]), atol=1e-6
    )


def test_the_gain_is_reversed_where_unfitted_labels_have_the_lower_gains():
    loss = np.array([0.0, 0.1, 0.2, 3.0, 2.0])
    gain = np.array([0.5, 0.4, 0.6, -1.0, 0.2])
    found = unfitted(loss, gain)
    assert (found.share, found.gain) == (0.4, pytest.approx(-0.4))
    assert found.reversed
    assert str(found).startswith("Warning: 40.0% of the labels are not fitted")
    sound = unfitted(loss, np.abs(gain) + loss)
    assert not sound.reversed
    assert "as it should be" in str(sound)


def test_fitted_labels_have_no_reversed_gain():
    found = unfitted(np.full(4, 0.6), np.arange(4.0))
    assert not found.reversed
    assert "All labels are fitted" in str(found)


@pytest.mark.parametrize("seed", [1, 2])
def test_wrong_labels_that_are_not_fitted_yet_reverse_the_gain_and_it_is_said(seed):
    x, true = load_digits(return_X_y=True)
    x, true = torch.tensor(x[:800] / 16, dtype=torch.float32), true[:800]
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    wrong = rng.random(len(true)) < 0.1
    given = torch.tensor(np.where(wrong, (true + rng.integers(1, 10, len(true))) % 10, true))
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(25):
        for i in torch.randperm(len(true)).split(32):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[i]), given[i]).backward()
            optimizer.step()
    posterior = probelib.LocalPosterior(
        model, probelib.cross_entropy, (x, given), n_beta=10, localization=30
    )
    trace = probelib.sample(
        posterior,
        sampler=probelib.LeimkuhlerMatthews(5e-3, batch_size=64),
        chains=2,
        draws=40,
        thin=5,
        burn_in=50,
        progress=False,
    )
    gain, loss = probelib.loss_gain(trace).values, trace.init_loss.values
    assert detection(gain, wrong).auroc < 0.4
    assert unfitted(loss, gain).reversed  # found without knowing a true label
    assert detection(loss + gain, wrong).auroc > 0.95
