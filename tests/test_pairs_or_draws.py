"""Which of pairs and draws is chosen, and whether the errors that decide are the true ones."""

import dataclasses
import importlib
import re

import numpy as np
import pytest
import torch
from regressions import Exact
from torch import nn

import probelib

pytestmark = pytest.mark.usefixtures("one_thread")
module = importlib.import_module("probelib.pairs_or_draws")


def wide(n_beta=1.0):
    """Forty samples of 2,000 weights at a strong localization: losses are nearly linear."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 2000, generator=generator, dtype=torch.float64)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2000, 1, bias=False), nn.Flatten(0)).double()
    data = x, torch.zeros(40, dtype=torch.float64)
    return probelib.LocalPosterior(
        model, probelib.squared_error, data, n_beta=n_beta, localization=1e4
    )


def small(gamma=20.0, n_beta=10.0):
    return Exact(n=12, d=3, gamma=gamma, n_beta=n_beta, seed=2)


@pytest.fixture
def counted(monkeypatch):
    """Seconds that are counted, not measured: a millisecond a draw, ten a gradient of a walk."""

    def of(function, seconds):
        def run(*args, **options):
            found = function(*args, **options)
            return found.assign_attrs(wall_time=seconds(found.loss.sizes))

        return run

    draws = of(probelib.importance_sample, lambda sizes: 1e-3 * sizes["draw"])
    pairs = of(probelib.gradient_pairs, lambda sizes: 1e-2 * sizes["chain"] * sizes["draw"])
    monkeypatch.setattr(module, "importance_sample", draws)
    monkeypatch.setattr(module, "gradient_pairs", pairs)
    monkeypatch.setattr(module, "_growth", lambda *of: 1.0)


@pytest.mark.usefixtures("counted")
def test_pairs_for_a_wide_and_nearly_linear_model():
    found = probelib.pairs_or_draws(wide())
    assert found.choice == "pairs"
    assert found.interval[0] > 1
    assert found.bears
    assert found.share > 0.9
    assert 0 < found.pairs_error < found.draws_error
    assert found.ratio == pytest.approx((found.draws_error / found.pairs_error) ** 2)
    assert str(found).startswith("Take gradient pairs: a second of them is worth ")
    assert "\n" not in str(found)


def test_draws_where_the_walks_carry_nothing(monkeypatch):
    monkeypatch.setattr(module, "gradient_pairs", None)  # not even tried
    found = probelib.pairs_or_draws(small(gamma=1.0, n_beta=1000.0).posterior)
    assert found.choice == "draws"
    assert not found.bears
    assert found.walks == 0
    assert found.share < 0.02
    assert np.isnan([found.pairs_error, found.draws_error, found.ratio, *found.interval]).all()
    assert "take chains, with probelib.sample" in str(found)
    # Some 4 % of the draws count: an error for them, and more than 64 walks for an error of pairs.
    found = probelib.pairs_or_draws(small(gamma=2.0, n_beta=40.0).posterior, draws=2000)
    assert found.choice == "draws"
    assert np.isfinite(found.draws_error)
    assert np.isnan(found.pairs_error)
    assert "take weighted draws" in str(found)


@pytest.mark.usefixtures("counted")
def test_draws_where_pairs_take_longer(monkeypatch):
    monkeypatch.setattr(module, "_growth", lambda *of: 1e4)
    found = probelib.pairs_or_draws(small().posterior)
    assert found.choice == "draws"
    assert found.interval[1] < 1
    assert found.bears
    assert "a second of weighted ones is worth" in str(found)


@pytest.mark.parametrize(
    ("posterior", "walks", "match"),
    [
        (wide(), 2, "the walks' weights bear no error; give more walks"),
        (wide(1e-3), 2, "2 walks are too few to tell their error; give 8"),
        (small(20.0, 1e-3).posterior, 8, "K_ii is not positive in .* % of the samples"),
    ],
)
def test_no_verdict_of_few_walks(posterior, walks, match):
    found = probelib.pairs_or_draws(posterior, walks=walks)
    assert found.choice is None
    assert found.walks == walks
    assert np.isnan(found.ratio)
    assert re.match(f"Not known: {match}", str(found))


def test_no_verdict_where_the_interval_holds_one():
    squares = np.array([1.0, 1.2, 0.9, 1.1, 1.0, 0.8, 1.05])
    pairs = module._Trial(squares, 8, 8, 1.0, True)
    for seconds, choice in ((1.0, None), (20.0, "pairs"), (0.05, "draws"), (1.8, None)):
        draws = dataclasses.replace(pairs, each=seconds)
        ratio, interval = module._ratio(pairs, draws)
        assert ratio == pytest.approx(seconds)
        assert interval[0] < ratio < interval[1]
        assert module._verdict(pairs, draws, interval, 8)[0] == choice
    unsure = dataclasses.replace(pairs, squares=np.array([1e-3, 3.0, 1e-3]), each=0.2)
    assert module._verdict(unsure, pairs, module._ratio(unsure, pairs)[1], 8)[0] is None
    none = dataclasses.replace(pairs, squares=np.zeros(7))
    assert module._verdict(none, none, module._ratio(none, none)[1], 8)[0] is None


def correlation_of(k):
    scale = np.sqrt(np.diag(k))
    return k / scale[:, None] / scale


@pytest.mark.parametrize("of", ["pairs", "draws"])
def test_errors_by_halves_are_the_distance_from_the_truth(of):
    """Over eight repetitions, with the closed form."""
    exact = small(gamma=60.0)
    truth, above = correlation_of(exact.at(10.0)[1]), np.triu_indices(12, 1)
    said, real = [], []
    for seed in range(8):
        if of == "pairs":
            found = probelib.gradient_pairs(
                exact.posterior, chains=64, pairs=2, seed=seed, progress=False
            )
            trial = module._of_pairs(found, 1.0)
            r = probelib.pair_kernel(found).correlation()
        else:
            found = probelib.importance_sample(exact.posterior, 400, seed=seed, progress=False)
            trial = module._of_draws(found, 1.0)
            r = probelib.loss_kernel(found).correlation()
        assert trial.known
        assert len(trial.squares) == 7
        said.append(trial.squares.mean())
        real.append(np.square(r - truth)[above].mean())
    # Each real one is of few degrees of freedom: their mean is known to some 35 %.
    assert np.mean(said) == pytest.approx(np.mean(real), rel=0.7)
    assert np.mean(said) > 0.5 * np.mean(real)


def test_ways_of_halving_see_each_walk_alike():
    """Of independent numbers with variance 1 the mean of eight has a squared error of 1/8."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(16, 200, 200))

    def correlation(part):
        found = values[part].mean(0)
        np.fill_diagonal(found, 1)
        return found

    squares, count, lost = module._halved(correlation, 19)
    assert (len(squares), count, lost) == (7, 16, 0)
    np.testing.assert_allclose(squares, 1 / 16, rtol=0.05)
    assert len(module._halved(correlation, 3)[0]) == 1


def test_times_are_those_of_all_samples(monkeypatch):
    """Gradients grow as n, products as its square, and L takes no pass of its own."""
    seconds = iter([2.0, 3.0, 5.0] * 2)
    monkeypatch.setattr(module, "_clocked", lambda *of: next(seconds))
    posterior = small().posterior
    few = posterior.data.batch(slice(0, 4))
    walks = module.walks_of(posterior, few, 2, 2, 0, 16, None)
    here = 3 * (2 + 5) + 2 * 3
    assert module._growth(walks, 40, False) == pytest.approx((3 * 20 + 2 * 300) / here)
    assert module._growth(walks, 40, True) == pytest.approx((3 * 25 + 2 * 300) / here)


def test_others_may_be_observed():
    x, y = small().data
    found = probelib.pairs_or_draws(small(60.0).posterior, (x[:5], y[:5]), samples=4, draws=100)
    assert found.draws == 100
    assert np.isfinite(found.draws_error)
    with pytest.raises(ValueError, match="observe has 2 samples; give three"):
        probelib.pairs_or_draws(small().posterior, (x[:2], y[:2]))


@pytest.mark.parametrize(
    ("name", "value"), [("samples", 2), ("draws", 31), ("walks", 1), ("pairs", 0)]
)
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        probelib.pairs_or_draws(small().posterior, **{name: value})
