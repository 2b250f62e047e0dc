"""Runs beside a reference, where nobody knows the truth."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import probelib
from probebook import sampler_agreement as agreement
from probebook.sampler_benchmark import SAMPLERS

SETTINGS = {"chains": 4, "draws": 150, "burn_in": 60, "thin": 3, "seed": 1}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PROBELIB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def posterior():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    y = x @ torch.ones(3, 1, dtype=torch.float64)
    y += 0.5 * torch.randn(30, 1, generator=generator, dtype=torch.float64)
    model = torch.nn.Linear(3, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight[:] = torch.linalg.lstsq(x, y).solution.T
    return probelib.LocalPosterior(
        model, probelib.squared_error, (x, y), n_beta=30.0, localization=5.0
    )


def test_a_run_agrees_with_itself_and_a_long_step_moves_values_and_ranks(posterior):
    sampler = probelib.LeimkuhlerMatthews(0.01)
    reference = probelib.sample(posterior, sampler=sampler, progress=False, **SETTINGS)
    same = agreement.agreement_row(reference, reference)
    assert (same["error"], same["spearman"]) == (0, 1)
    assert same["kernel"] == pytest.approx(1)
    table = agreement.agreement(
        posterior, None, reference, {"SGLD": SAMPLERS["SGLD"]}, [0.01, 0.06, 10.0],
        batch_size=None, **SETTINGS,
    )  # fmt: skip
    short, long, diverged = table.to_dict("records")
    # 1 / (1 - eps A / 4) on the average of three directions, A from 20 to 60.
    assert short["error"] < 0.2
    assert long["error"] > 0.5
    # A long step widens stiff directions most, so that ranks change with values.
    assert 0.95 < short["spearman"] <= 1
    assert long["spearman"] < short["spearman"] - 3 * long["spearman_se"]
    assert long["verdict"] == "wrong"
    assert math.isinf(diverged["error"])
    assert np.isnan(diverged["llc"])
    both = agreement.halves(reference)
    assert 0.9 < both["spearman"] <= 1
    assert 0.5 < both["kernel"] <= 1


def test_weighted_draws_are_a_reference_too(posterior):
    posterior = posterior.at(localization=50.0)
    reference = probelib.importance_sample(posterior, 4000, seed=3, progress=False)
    sampler = probelib.LeimkuhlerMatthews(0.01)
    trace = probelib.sample(posterior, sampler=sampler, progress=False, **SETTINGS)
    row = agreement.agreement_row(trace, reference)
    exact = probelib.local_learning_coefficient(reference)
    assert row["error"] < 3 * math.hypot(row["mcse"], exact.mcse) / exact.value
    # Every other draw, as there are no chains; each half by its own weights.
    even, odd = (probelib.loss_gain(reference.isel(draw=slice(k, None, 2))) for k in (0, 1))
    both = agreement.halves(reference)
    assert both["spearman"] == pytest.approx(spearmanr(even, odd).statistic)
    assert 0 < both["kernel"] < 1
