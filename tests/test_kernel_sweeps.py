"""Chapter 04's sweeps: another n_beta from the same walks, layers, and intervals over walks."""

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import probelib
from probebook.chapters import loss_kernel_sweeps as sweeps

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:pairs has"),
]


def posterior(n_beta=2.0, localization=30.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    return probelib.LocalPosterior(
        model, probelib.cross_entropy, (x, y), n_beta=n_beta, localization=localization
    )


def pairs_of(n_beta=2.0, **options):
    return probelib.gradient_pairs(
        posterior(n_beta), chains=6, pairs=1, seed=3, progress=False, **options
    )


def test_another_n_beta_is_what_pairs_made_there_give():
    moved, there = sweeps.at_n_beta(pairs_of(2.0), 7.0), pairs_of(7.0)
    assert moved.attrs["config"]["n_beta"] == 7.0
    np.testing.assert_allclose(
        probelib.pair_kernel(moved).covariance(),
        probelib.pair_kernel(there).covariance(),
        rtol=1e-4, atol=1e-9,
    )  # fmt: skip


def test_walks_of_several_pairs_are_refused():
    found = probelib.gradient_pairs(posterior(), chains=2, pairs=2, progress=False)
    with pytest.raises(ValueError, match="walks of 2 pairs"):
        sweeps.at_n_beta(found, 1.0)


def test_layers_add_up_to_what_is_made_without_them():
    whole, split = pairs_of(), sweeps.all_layers(pairs_of(by_layer=True))
    assert "layer" not in split.dims
    xr.testing.assert_allclose(split.loss, whole.loss)
    np.testing.assert_allclose(
        probelib.pair_kernel(split).correlation(),
        probelib.pair_kernel(whole).correlation(),
        atol=0.02,
    )
    assert split.attrs["config"] == whole.attrs["config"]


def test_parts_of_the_walks_are_kernels_of_their_own():
    found = pairs_of()
    parts = sweeps.kernels_of_parts(found, 3)
    for at, part in enumerate(parts):
        own = probelib.pair_kernel(found, [at, at + 3])
        np.testing.assert_allclose(part.covariance(), own.covariance())


def test_a_tempered_kernel_names_its_share_and_its_change():
    labels, similarity = np.arange(12), np.eye(12)
    point = sweeps.tempered("whole network", pairs_of(), 2.0, labels, similarity)
    log_weight = pairs_of().log_weight.values
    weight = np.exp(log_weight - log_weight.max())
    assert point.share == pytest.approx(weight.sum() ** 2 / (weight**2).sum() / weight.size)
    assert point.variance.low < point.variance.value < point.variance.high
    assert point.agreement > 0.5
    nothing = sweeps.tempered("whole network", pairs_of(), 1e-9, labels, similarity)
    assert nothing.share == pytest.approx(1)
    assert nothing.agreement == pytest.approx(1)
    assert nothing.variance.value == pytest.approx(1)
    assert "whole_network_n_beta_2_share" in point.numbers()


def test_two_walks_give_no_interval():
    found = pairs_of().isel(chain=[0, 1])
    assert sweeps.meaning_over_walks(found, np.arange(12), np.eye(12)).high == np.inf
    assert sweeps.without_each_walk(found) == []
