"""The contenders of benchmarks/ sample the same posterior, and its page is made of its numbers."""

import json

import numpy as np
import pytest
import torch
from competitors import Probe, devinterp_sample, plain_loop, posteriors_loop
from report import THIN, write_report
from torch import nn

import probelib

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def probe():
    torch.manual_seed(0)
    x = torch.randn(64, 2)
    y = (x[:, 0] + 0.5 * torch.randn(64) > 0).long()
    model = nn.Linear(2, 2)
    return Probe(model, x, y, x, y, 20.0, 5.0, 2e-2, 16, observe_batch_size=32)


@pytest.fixture(scope="module")
def ours(probe):
    posterior = probelib.LocalPosterior(
        probe.model, probelib.cross_entropy, (probe.x, probe.y),
        n_beta=probe.n_beta, localization=probe.localization,
    )  # fmt: skip
    return probelib.sample(
        posterior, sampler=probelib.SGLD(probe.step_size, probe.batch_size),
        chains=8, draws=1500, burn_in=50, thin=2, progress=False,
    )  # fmt: skip


def z_scores(losses, trace):
    """Differences of the mean losses in their standard errors, sample by sample."""
    error = probelib.estimators.mcse_of_mean(losses[None].astype(np.float64))
    other = probelib.loss_gain(trace).mcse.values
    return (losses.mean(0) - trace.loss.values.mean((0, 1))) / np.hypot(error, other)


def assert_same_law(losses, trace):
    # 64 dependent z-scores. A factor of 2 in n_beta or in the localization gives 10 and more.
    z = z_scores(losses, trace)
    assert np.abs(z).max() < 4.5
    assert np.sqrt(np.mean(z**2)) < 1.8


@pytest.mark.parametrize("name", ["plain", "posteriors"])
def test_the_loops_sample_the_same_law(probe, ours, name):
    if name == "posteriors":
        pytest.importorskip("posteriors")
    loop = {"plain": plain_loop, "posteriors": posteriors_loop}[name](probe, seed=3, thin=2)
    for _ in range(2550):
        chain = next(loop)
    assert chain.steps == 5100
    assert_same_law(np.array(chain.losses[50:]), ours)


def test_devinterp_samples_the_same_law(probe, ours, tmp_path):
    pytest.importorskip("devinterp")
    losses, seconds = devinterp_sample(
        probe, 0, chains=1, draws=2500, burn_in=100, path=tmp_path / "samples.zarr", thin=2
    )
    assert seconds > 0
    # It looks in an order of its own: compare what does not depend on it.
    found, expected = losses[0].mean(1), ours.loss.values.mean(-1)
    error = probelib.estimators.mcse_of_mean(found[None, :, None].astype(np.float64))
    other = probelib.estimators.mcse_of_mean(expected[..., None].astype(np.float64))
    assert abs(found.mean() - expected.mean()) < 4.5 * float(np.hypot(error, other)[0])


def test_the_report_is_made_of_what_was_measured(tmp_path):
    contenders = {
        f"{name}_{what}": 2.5
        for name in ("plain", "posteriors", "devinterp")
        for what in (
            *("step", "draw", "step_ratio", "ratio", "thinned_ratio", "seconds"),
            "ratio_by_own_error",
        )
    }
    (tmp_path / "mnist.json").write_text(
        json.dumps(
            contenders
            | {"n_observed": 60_000, "chains": 5, "ours_step": 0.001, "ours_draw": 0.1}
            | {"flops_a_sample": 8e5, "observe_batch_size": 3236, "observation_gflops": 130.0}
            | {"matmul_gflops": 140.0, "observation_share": 0.93}
            | {f"error2_a_draw_thin_{k}": 7.0 / k for k in THIN}
        )
    )
    (tmp_path / "accuracy.json").write_text(
        json.dumps(
            contenders
            | {"ours_draws": 22, "ours_thin": 18, "ours_seconds": 40.0}
            | {"their_draws": 80, "target": 0.13}
        )
    )
    write_report(tmp_path, tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert "| MNIST, 784-512-10 | 0.8 | 3236 | 130.0 | 140 | 93% |" in table
    assert "22, 18 steps apart" in table
    assert table.count("**2.5**") == 3
    for name in ("accuracy", "costs", "throughput"):
        assert table.index(f"<!-- {name} -->") < table.index(f"<!-- /{name} -->")
    assert (tmp_path / "thinning.svg").stat().st_size > 1000
