"""Several observed sets in one run: each is what it is alone, and together they are one kernel."""

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import probelib

pytestmark = pytest.mark.usefixtures("one_thread")


def data(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=generator), torch.arange(n) % 4


@pytest.fixture(scope="module")
def posterior():
    torch.manual_seed(0)
    return probelib.LocalPosterior(
        nn.Linear(3, 4), probelib.cross_entropy, data(12, 0), n_beta=10.0, localization=5.0
    )


SETS = {"train": data(12, 0), "held out": data(7, 1)}


def run(posterior, observe, **options):
    settings = {"chains": 2, "draws": 15, "burn_in": 2, "progress": False}
    return probelib.sample(
        posterior, observe, sampler=probelib.SGLD(1e-2, 4), **(settings | options)
    )


@pytest.fixture(scope="module")
def tree(posterior):
    return run(posterior, SETS)


@pytest.mark.parametrize("name", SETS)
def test_each_set_is_what_it_is_when_observed_alone(posterior, tree, name):
    alone, found = run(posterior, SETS[name]), tree[name].to_dataset()
    np.testing.assert_allclose(found.loss, alone.loss, rtol=1e-6)
    for variable in ("sampling_loss", "distance", "sample_id", "label", "run"):
        np.testing.assert_array_equal(found[variable], alone[variable])
    np.testing.assert_allclose(found.attrs["guessing_loss"], alone.attrs["guessing_loss"])
    assert found.attrs["observed_set"] == name
    assert found.attrs["fingerprint"]["observed_data"] == alone.attrs["fingerprint"][
        "observed_data"
    ]  # fmt: skip
    gain, wanted = probelib.loss_gain(tree)[name], probelib.loss_gain(alone)
    np.testing.assert_allclose(gain, wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gain.step_bias, wanted.step_bias, rtol=1e-3, atol=1e-6)
    for estimate in (
        probelib.local_learning_coefficient,
        probelib.empirical_variance,
        probelib.singular_fluctuation,
    ):
        whole = estimate(tree)
        assert list(whole) == sorted(SETS)
        np.testing.assert_allclose(whole[name].value, estimate(alone).value, rtol=1e-4)
        np.testing.assert_allclose(whole[name].step_bias, estimate(alone).step_bias, rtol=1e-3)
        assert estimate(trace=tree[name]).value == whole[name].value
    assert str(probelib.diagnostics(tree)[name]) == str(probelib.diagnostics(found))
    np.testing.assert_allclose(probelib.mean_loss_change(tree)[name].shape, (2, 15))


def test_the_kernel_is_one_of_all_samples(tree):
    kernel = probelib.loss_kernel(tree)
    assert kernel.shape == (19, 19)
    both = np.concatenate([tree[name].loss.values.reshape(30, -1) for name in sorted(SETS)], 1)
    np.testing.assert_allclose(kernel.correlation(), np.corrcoef(both.T), atol=1e-5)
    near = kernel.top_correlated(5, rows=[0]).to_dataframe()
    in_held_out = near["index"].values < 7
    assert in_held_out.any()
    assert not in_held_out.all()
    np.testing.assert_array_equal(near.observed_set == "held out", in_held_out)
    np.testing.assert_array_equal(near.sample_id, near["index"] - np.where(in_held_out, 0, 7))


def test_a_store_keeps_them_apart(posterior, tree, tmp_path):
    path = tmp_path / "t.zarr"
    run(posterior, SETS, draws=5, store=path)
    found = run(posterior, dict(reversed(SETS.items())), store=path)
    opened = probelib.open_trace(path)
    for other in (found, opened, run(posterior, SETS, store=path)):
        assert list(other.children) == sorted(SETS)
        for name in SETS:
            np.testing.assert_array_equal(other[name].loss, tree[name].loss)
    for observe in (SETS["train"], {"train": SETS["train"]},
                    {"train": SETS["held out"], "held out": SETS["train"]},
                    {"train": SETS["train"], "test": SETS["held out"]}):  # fmt: skip
        with pytest.raises(probelib.TraceMismatch, match="observed_data"):
            run(posterior, observe, store=path)


def test_a_part_of_a_tree_and_a_copy_of_one(tree, tmp_path):
    tree.to_zarr(tmp_path / "copy.zarr")
    copied = xr.open_datatree(tmp_path / "copy.zarr", engine="zarr")
    for name in SETS:
        np.testing.assert_array_equal(
            probelib.loss_gain(copied)[name], probelib.loss_gain(tree[name])
        )
    with pytest.raises(TypeError, match="whose root has no variables"):
        probelib.loss_gain(xr.DataTree.from_dict({"a": xr.Dataset({"b": 1})}))


def test_sets_of_tokens(posterior):
    ids = torch.randint(0, 5, (9, 6), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5))
    posterior = probelib.LocalPosterior(
        model, probelib.sequence_cross_entropy, (ids[:, :-1], ids[:, 1:]),
        n_beta=5.0, localization=5.0,
    )  # fmt: skip
    sets = {"a": (ids[:4, :-1], ids[:4, 1:]), "b": (ids[4:, :-1], ids[4:, 1:])}
    options = {"observe_loss": probelib.token_cross_entropy}
    tree, alone = run(posterior, sets, **options), run(posterior, sets["b"], **options)
    np.testing.assert_allclose(tree["b"].loss, alone.loss, rtol=1e-6)
    np.testing.assert_array_equal(tree["b"].token_id, ids[4:, 1:])
    np.testing.assert_allclose(
        probelib.loss_gain(tree)["b"], probelib.loss_gain(alone), rtol=1e-4, atol=1e-6
    )
    kernel = probelib.loss_kernel(tree)
    assert kernel.shape == (45, 45)
    assert kernel.find(2, 3, "b") == 4 * 5 + 2 * 5 + 3
    with pytest.raises(IndexError, match="give observed_set"):
        kernel.find(2, 3)
    assert probelib.loss_kernel(tree, over="sample").shape == (9, 9)


@pytest.mark.parametrize(
    ("observe", "message"),
    [
        ({"train": data(4, 0), "test": (torch.zeros(4, 2), torch.zeros(4).long())}, "one form"),
        ({"a/b": data(4, 0)}, "without '/'"),
        ({"a": data(4, 0), "b": (torch.zeros(0, 3), torch.zeros(0).long())}, r"observe\['b'\]"),
        (
            {"a": data(4, 0), "b": (torch.ones(2, 3), torch.tensor([1, 9]))},
            r"observe\['b'\].*labels",
        ),
        ({"a": data(4, 0), "b": 3}, r"observe\['b'\] is a int"),
    ],
)
def test_sets_that_cannot_stand_together(posterior, observe, message):
    with pytest.raises((ValueError, TypeError), match=message):
        run(posterior, observe)


def test_a_tree_goes_into_netcdf_and_comes_back_to_the_same_estimates(tree, tmp_path):
    pytest.importorskip("h5netcdf")
    tree.to_netcdf(tmp_path / "tree.nc", engine="h5netcdf")
    back = xr.open_datatree(tmp_path / "tree.nc", engine="h5netcdf")
    gains, llc = probelib.loss_gain(back), probelib.local_learning_coefficient(back)
    for name in SETS:
        np.testing.assert_array_equal(gains[name], probelib.loss_gain(tree)[name])
        assert llc[name] == probelib.local_learning_coefficient(tree)[name]
    for part in (
        tree["train"],
        tree["train"].to_dataset(),
        tree["train"].to_dataset().isel(draw=[1, 2]),
    ):
        part.to_netcdf(tmp_path / "part.nc", engine="h5netcdf")
        found = xr.open_dataset(tmp_path / "part.nc", engine="h5netcdf")
        whole = part.to_dataset() if isinstance(part, xr.DataTree) else part
        np.testing.assert_array_equal(probelib.loss_gain(found), probelib.loss_gain(whole))
        found.close()
    back.close()
