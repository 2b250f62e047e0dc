"""What is saved comes back as it was, whichever engine wrote it."""

import importlib.util
import json

import numpy as np
import pytest
import torch
import xarray as xr
from regressions import Exact
from test_estimators import random_trace
from torch import nn

import probelib

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=["h5netcdf", "scipy"])
def engine(request, monkeypatch):
    """The engine that writes; without h5netcdf there is SciPy alone."""
    if request.param == "scipy":
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == "h5netcdf" else find(name)
        )
    else:
        pytest.importorskip("h5netcdf")
    return request.param


@pytest.fixture(scope="module")
def trace():
    x, y = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
    torch.manual_seed(0)
    posterior = probelib.LocalPosterior(
        nn.Linear(3, 3), probelib.cross_entropy, (x, y), n_beta=10.0, localization=5.0
    )
    return probelib.sample(
        posterior, sampler=probelib.SGLD(1e-3, 4), chains=2, draws=20, progress=False
    )


def there_and_back(data, folder):
    probelib.save(data, folder / "a.nc")
    return probelib.open(folder / "a.nc")


def test_a_trace_comes_back_identical(trace, engine, tmp_path):
    back = there_and_back(trace, tmp_path)
    assert type(back) is type(trace)
    xr.testing.assert_identical(back, trace)
    assert {n: v.dtype for n, v in back.variables.items()} == {
        n: v.dtype for n, v in trace.variables.items()
    }
    assert json.dumps(back.attrs) == json.dumps(trace.attrs)
    estimators = probelib.local_learning_coefficient, probelib.empirical_variance
    for estimator in estimators:
        assert estimator(back) == estimator(trace)
    assert str(probelib.diagnostics(back)) == str(probelib.diagnostics(trace))
    begin = (tmp_path / "a.nc").read_bytes()[:4]
    assert (begin[:3] == b"CDF") == (engine == "scipy")
    read = xr.open_dataset(tmp_path / "a.nc")  # and estimators read what others open
    assert probelib.local_learning_coefficient(read) == estimators[0](trace)


def test_estimates_come_back(trace, engine, tmp_path):
    gain = probelib.loss_gain(trace)
    back = there_and_back(gain, tmp_path)
    xr.testing.assert_identical(back, gain)
    assert back.label.dtype == gain.label.dtype
    llc = probelib.local_learning_coefficient(trace)
    assert there_and_back(llc, tmp_path) == llc


def test_what_netcdf_has_not_comes_back(engine, tmp_path):
    odd = random_trace().astype(np.float16)
    odd = odd.assign_coords(label=("sample", np.arange(12) + 2**40), run=1.5)
    odd = odd.assign_coords(name=("sample", [f"ä{i}" for i in range(12)]))
    odd = odd.assign_coords(is_one=("sample", np.arange(12) == 1))
    odd.loss.attrs["units"] = "nats"
    odd = odd.assign_attrs(nested={"a": [1, {"b": None}], "c": True, "big": 2**60, "none": []})
    xr.testing.assert_identical(there_and_back(odd, tmp_path), odd)


def test_a_series_and_weighted_draws_come_back(engine, tmp_path):
    weighted = probelib.importance_sample(Exact().posterior, draws=50, progress=False)
    back = there_and_back(weighted, tmp_path)
    xr.testing.assert_identical(probelib.loss_gain(back), probelib.loss_gain(weighted))
    exact = [Exact(seed=seed) for seed in (0, 1)]
    series = probelib.over_checkpoints(
        [of.posterior.model for of in exact], lambda o, t: (o - t) ** 2 / 2, exact[0].data,
        n_beta=10.0, localization=30.0, sampler=probelib.SGLD(1e-3), draws=10, progress=False,
    )  # fmt: skip
    back = there_and_back(series, tmp_path)
    for at in (0, 1):
        one, other = (probelib.loss_gain(s.sel(checkpoint=at)) for s in (series, back))
        xr.testing.assert_identical(one, other)


def test_a_file_is_replaced_whole(trace, tmp_path, monkeypatch):
    probelib.save(trace, tmp_path / "a.nc")
    before = (tmp_path / "a.nc").read_bytes()

    def fails(*args, **kwargs):
        raise ValueError("no room")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", fails)
    with pytest.raises(ValueError, match="cannot be written as netCDF by"):
        probelib.save(trace, tmp_path / "a.nc")
    assert [path.name for path in tmp_path.iterdir()] == ["a.nc"]
    assert (tmp_path / "a.nc").read_bytes() == before


def test_damaged_and_foreign_files_are_said(trace, engine, tmp_path):
    file = tmp_path / "a.nc"
    probelib.save(trace, file)
    whole, loss = file.read_bytes(), trace.loss.values.tobytes()
    if engine == "scipy":
        loss = trace.loss.values.astype(">f4").tobytes()
    at = whole.find(loss[:64])
    assert at > 0
    file.write_bytes(whole[: at + 8] + bytes([whole[at + 8] ^ 1]) + whole[at + 9 :])
    with pytest.raises(probelib.TraceMismatch, match="is damaged: loss does not have the values"):
        probelib.open(file)
    for content in (whole[: len(whole) // 2], whole[:20], b"", b"something else"):
        file.write_bytes(content)
        with pytest.raises(probelib.TraceMismatch, match=r"path .* (cannot be read|is damaged)"):
            probelib.open(file)
    file.unlink()
    trace.to_netcdf(file)
    with pytest.raises(probelib.TraceMismatch, match=r"was not written by probelib\.save"):
        probelib.open(file)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        probelib.open(tmp_path / "b.nc")


def test_stores_open_by_the_same_name(trace, tmp_path):
    trace.to_zarr(tmp_path / "a.zarr")
    np.testing.assert_array_equal(probelib.open(tmp_path / "a.zarr").loss, trace.loss)


def test_what_cannot_be_saved_is_refused(trace, tmp_path):
    with pytest.raises(ValueError, match=r"path is 'a\.zarr'; end it in \.nc"):
        probelib.save(trace, "a.zarr")
    with pytest.raises(TypeError, match="data is 3; give a data set"):
        probelib.save(3, tmp_path / "a.nc")
    with pytest.raises(ValueError, match="data has the attribute odd <object"):
        probelib.save(trace.assign_attrs(odd=object()), tmp_path / "a.nc")
    with pytest.raises(ValueError, match=r"data has the attribute odd \{1: 2\}"):
        probelib.save(trace.assign_attrs(odd={1: 2}), tmp_path / "a.nc")
    with pytest.raises(ValueError, match="data has z stacked"):
        probelib.save(trace.stack(z=("chain", "sample")), tmp_path / "a.nc")
