"""The rule for the localization, where the answer is known."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import probelib
from probebook.localization_rule import (
    GRID,
    KEEP,
    choose_localization,
    frequency_loss,
    kept_share,
)


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    return


def quadratic(d=6, n=40):
    """Squared errors of a linear model that fits exactly: E[L] = tr(X'X) / (2 n gamma)."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(d, 1, bias=False, dtype=torch.float64)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = model(x).detach()
    posterior = probelib.LocalPosterior(
        model, probelib.squared_error, (x, y), n_beta=10, localization=1.0
    )
    return posterior, float(x.square().sum()) / (2 * n)


def test_the_rule_finds_the_gamma_of_a_quadratic():
    posterior, half_trace = quadratic()
    known = 0.2  # nats: kept = 1 - half_trace / (gamma 0.2)
    choice = choose_localization(posterior, known, draws=400)
    table = choice.table
    closed = 1 - half_trace / (table.gamma * known)
    assert choice.localization == min(g for g in GRID if 1 - half_trace / (g * known) >= KEEP)
    assert choice.trained_loss == pytest.approx(0, abs=1e-20)
    assert (np.abs(table.kept - closed) < 4 * table.kept_error).all()
    # One set of directions for all: on a quadratic the loss goes with 1 / gamma exactly.
    np.testing.assert_allclose(table.loss * table.gamma, table.loss[0] * table.gamma[0], rtol=1e-9)
    np.testing.assert_allclose(table.kept_error * known, table.error, rtol=1e-9)
    assert posterior.localization == 1.0  # left as it was


def test_its_mean_and_error_are_those_of_the_weighted_draws():
    posterior, _ = quadratic()
    choice = choose_localization(posterior, 0.04, (1e2, 1e3), draws=8, seed=3)
    other = probelib.LocalPosterior(
        posterior.model, probelib.squared_error, posterior.data.batch(slice(0, 40)),
        n_beta=1, localization=1e2,
    )  # fmt: skip
    losses = probelib.importance_sample(other, draws=8, seed=3, progress=False).mean_loss.values
    assert choice.table.loss[0] == pytest.approx(losses.mean())
    assert choice.table.error[0] == pytest.approx(losses.std(ddof=1) / math.sqrt(8))


def test_a_grid_that_ends_too_early_or_begins_too_late_is_said():
    posterior, _ = quadratic()
    with pytest.raises(ValueError, match="give larger gammas"):
        choose_localization(posterior, 0.2, (1.0, 2.0))
    with pytest.warns(UserWarning, match="a smaller gamma might"):
        choose_localization(posterior, 0.2, (1e5, 1e6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose_localization(posterior, 0.2)


def test_kept_share():
    assert kept_share(2.0, 5.0, 2.0) == 1
    assert kept_share(5.0, 5.0, 2.0) == 0
    np.testing.assert_allclose(kept_share(np.array([1.7, 2.3, 8.0]), 5.0, 2.0), [1.1, 0.9, -1.0])
    with pytest.raises(ValueError, match="not below"):
        kept_share(2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="loss is nan"):
        kept_share(math.nan, 5.0, 2.0)
    with pytest.raises(ValueError, match="frequency_loss is inf"):
        kept_share(2.0, math.inf, 2.0)


def test_frequency_loss_by_hand():
    # Counts 3, 1, 0, 0 and one more each: 4, 2, 1, 1 of 8. A negative token is none.
    seen = torch.tensor([[0, 0], [0, 1], [-100, -100]])
    said = torch.tensor([[0, 2, -100], [1, -100, -100]])
    wanted = ((math.log(2) + math.log(8)) / 2 + math.log(4)) / 2
    assert frequency_loss(seen, said, 4) == pytest.approx(wanted)
    assert frequency_loss([0, 0, 0, 1], said, 4) == pytest.approx(wanted)
    with pytest.raises(ValueError, match="vocabulary is 2, but there are tokens"):
        frequency_loss(seen, said, 2)
    with pytest.raises(ValueError, match="no token that counts"):
        frequency_loss(seen, torch.tensor([[0, 1], [-100, -100]]), 4)
