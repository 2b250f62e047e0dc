"""A trace elsewhere: netCDF, copies by ``to_zarr``, stores at ``~`` and at URLs."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from torch import nn

import probelib

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Consolidated metadata"),
]
X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 2


def run(**settings) -> xr.Dataset:
    torch.manual_seed(0)
    posterior = probelib.LocalPosterior(
        nn.Linear(3, 2), probelib.cross_entropy, (X, Y), n_beta=10.0, localization=5.0
    )
    settings = {"chains": 2, "draws": 60, "burn_in": 4} | settings
    return probelib.sample(posterior, sampler=probelib.SGLD(1e-3, 4), progress=False, **settings)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("elsewhere") / "trace.zarr"
    run(store=place)
    return place


def assert_same(found: xr.Dataset, expected: xr.Dataset) -> None:
    """Every estimate, and what it needs of the attributes."""
    for f in (probelib.loss_gain, lambda t: probelib.loss_kernel(t).diagonal()):
        xr.testing.assert_equal(f(found), f(expected))
    for f in (probelib.local_learning_coefficient, probelib.singular_fluctuation):
        assert str(f(found)) == str(f(expected))


PARTS = {
    "all": lambda t: t,
    "half of the draws": lambda t: t.isel(draw=slice(30)),
    "the other half": lambda t: t.isel(draw=slice(30, None)),
    "some samples": lambda t: t.isel(sample=[1, 5, 7]),
    "one chain": lambda t: t.isel(chain=[1]),
    "one chain, no dimension": lambda t: t.isel(chain=1),
    "transposed": lambda t: t.transpose("sample", ...),
    "loaded": lambda t: t.load(),
    "chunked": lambda t: t.chunk({"draw": 7, "sample": 5}),
    "more coordinates": lambda t: t.assign_coords(noisy=("sample", np.arange(12) > 5)),
}


@pytest.mark.parametrize(
    ("part", "engine"),
    [(p, "h5netcdf") for p in PARTS] + [(p, "scipy") for p in ("all", "some samples", "loaded")],
)
def test_netcdf_holds_a_trace(engine, part, store, tmp_path):
    pytest.importorskip(engine)
    trace = PARTS[part](probelib.open_trace(store))
    before = dict(trace.attrs)
    trace.to_netcdf(tmp_path / "trace.nc", engine=engine)
    assert trace.attrs == before
    with xr.open_dataset(tmp_path / "trace.nc", engine=engine) as found:
        assert json.loads(found.attrs["config"]) == before["config"]
        assert_same(found, trace)
        assert str(probelib.diagnostics(found)) == str(probelib.diagnostics(trace))


def test_netcdf_holds_what_it_has_no_type_for(tmp_path):
    trace = run(loss_dtype="float16", draws=9, seed=2**40)
    trace = trace.assign_coords(label=("sample", np.full(12, 200, np.uint8)))
    trace.attrs |= {"nothing": None, "flag": np.True_, "list": [{"a": 1}], "path": Path("x")}
    trace.to_netcdf(tmp_path / "trace.nc", engine="scipy")
    with xr.open_dataset(tmp_path / "trace.nc", engine="scipy") as found:
        xr.testing.assert_equal(probelib.loss_gain(found), probelib.loss_gain(trace))
        assert found.attrs["seed"] == str(2**40)
        assert found.attrs["flag"] == 1
    assert trace.attrs["seed"] == 2**40


@pytest.mark.parametrize("made", ["run in memory", "pairs", "devinterp"])
def test_netcdf_holds_all_that_the_library_gives(made, tmp_path):
    if made == "run in memory":
        given, read = run(), probelib.loss_gain
    elif made == "pairs":
        posterior = probelib.LocalPosterior(
            nn.Linear(3, 2), probelib.cross_entropy, (X, Y), n_beta=10.0, localization=5.0
        )
        given = probelib.gradient_pairs(posterior, pairs=2, progress=False)

        def read(pairs):
            return probelib.pair_kernel(pairs, limit=True).covariance(), pairs.log_weight.values

    else:
        probelib.interop.to_devinterp(run(), tmp_path / "theirs")
        given = probelib.interop.from_devinterp(tmp_path / "theirs")
        read = probelib.empirical_variance
    given.to_netcdf(tmp_path / "given.nc")
    with xr.open_dataset(tmp_path / "given.nc") as found:
        assert str(read(found)) == str(read(given))


@pytest.mark.parametrize(
    ("part", "zarr_format"), [(p, 3) for p in PARTS] + [(p, 2) for p in ("all", "chunked")]
)
def test_a_copy_by_to_zarr_opens(zarr_format, part, store, tmp_path):
    trace = PARTS[part](probelib.open_trace(store))
    trace.to_zarr(tmp_path / "copy.zarr", zarr_format=zarr_format)
    assert_same(xr.open_zarr(tmp_path / "copy.zarr"), trace)
    if zarr_format == 2:
        with pytest.raises(ValueError, match=r"xarray\.open_zarr"):
            probelib.open_trace(tmp_path / "copy.zarr")
        return
    found = probelib.open_trace(tmp_path / "copy.zarr")
    assert_same(found, trace)
    draws, chains = trace.sizes["draw"], trace.sizes.get("chain", 1)
    assert found.attrs["draws_done"] == draws
    assert found.attrs["complete"] is (draws == 60 and chains == 2)
    assert found.attrs["config"] == trace.attrs["config"]
    found.to_zarr(tmp_path / "again.zarr")
    assert_same(probelib.open_trace(tmp_path / "again.zarr"), trace)


@pytest.mark.parametrize("part", ["all", "half of the draws", "some samples"])
def test_a_copy_of_what_xarray_opened_opens(part, store, tmp_path):
    trace = PARTS[part](xr.open_zarr(store))
    trace.to_zarr(tmp_path / "copy.zarr")
    found = probelib.open_trace(tmp_path / "copy.zarr")
    assert_same(found, PARTS[part](probelib.open_trace(store)))
    assert not {"checksum", "sizes", "chunks"} & set(found.attrs)


def test_a_copy_of_netcdf_opens(store, tmp_path):
    trace = probelib.open_trace(store)
    trace.to_netcdf(tmp_path / "trace.nc")
    with xr.open_dataset(tmp_path / "trace.nc") as found:
        found.to_zarr(tmp_path / "copy.zarr")
    found = probelib.open_trace(tmp_path / "copy.zarr")
    assert_same(found, trace)
    assert found.attrs["config"] == trace.attrs["config"]


def test_a_copy_is_no_store(store, tmp_path):
    probelib.open_trace(store).isel(draw=slice(30)).to_zarr(tmp_path / "copy.zarr")
    before = {f: f.read_bytes() for f in (tmp_path / "copy.zarr").rglob("*") if f.is_file()}
    for overwrite in (False, True):
        with pytest.raises(probelib.TraceMismatch, match="is not a trace of probelib; choose"):
            run(store=tmp_path / "copy.zarr", overwrite=overwrite)
    assert before == {f: f.read_bytes() for f in before}


def test_a_damaged_copy_is_told(store, tmp_path):
    copy = tmp_path / "copy.zarr"
    probelib.open_trace(store).to_zarr(copy)
    for chunk in (copy / "loss" / "c").rglob("*"):
        if chunk.is_file():
            chunk.unlink()
    with pytest.raises(ValueError, match="non-finite loss"):  # not 0
        probelib.loss_gain(probelib.open_trace(copy))
    (copy / "loss" / "zarr.json").write_text("{")
    with pytest.raises(probelib.TraceMismatch):
        probelib.open_trace(copy)


def test_a_copy_of_something_else_is_told(tmp_path):
    texts = xr.Dataset({"loss": ("sample", np.array(["a", "b"]))})
    texts.to_zarr(tmp_path / "texts.zarr", encoding={"loss": {"compressors": ()}})
    zarr.open_group(tmp_path / "texts.zarr")["loss"].attrs["coordinates"] = "x"
    xr.Dataset({"loss": ("time", np.arange(3.0))}).to_zarr(tmp_path / "other.zarr")
    for name in ("texts", "other"):
        with pytest.raises(probelib.TraceMismatch, match=r"xarray\.open_zarr shows what it holds"):
            probelib.open_trace(tmp_path / f"{name}.zarr")


@pytest.mark.parametrize("path", ["str/", "moved", "bytes", "file", "relative"])
def test_a_store_goes_by_any_local_path(path, store, tmp_path, monkeypatch):
    expected, moved = probelib.open_trace(store), tmp_path / "moved x é.zarr"
    shutil.copytree(store, moved)
    monkeypatch.chdir(tmp_path)
    given = {
        "str/": f"{store}/", "moved": moved, "bytes": str(moved).encode(),
        "file": moved.as_uri(), "relative": "./moved x é.zarr",
    }[path]  # fmt: skip
    assert_same(probelib.open_trace(given), expected)
    same = {f: f.stat().st_mtime_ns for f in moved.rglob("*/c/*")}
    assert_same(run(store=given), expected)  # which goes on from there: nothing is left to do
    assert same == {f: f.stat().st_mtime_ns for f in moved.rglob("*/c/*")}


@pytest.mark.parametrize("kind", [str, Path])
def test_home_is_expanded(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    trace = run(store=kind("~/a.zarr"), draws=8)
    assert (tmp_path / "home" / "a.zarr" / "zarr.json").exists()
    xr.testing.assert_equal(probelib.open_trace(kind("~/a.zarr")), trace)
    run(cache=kind("~/cache"), draws=8)
    assert len(list((tmp_path / "home" / "cache").glob("*.zarr"))) == 1
    posterior = probelib.LocalPosterior(
        nn.Linear(3, 2), probelib.cross_entropy, (X, Y), n_beta=10.0, localization=5.0
    )
    probelib.gradient_pairs(posterior, pairs=1, cache=kind("~/pairs"), progress=False)
    probelib.interop.to_devinterp(trace, kind("~/theirs"))
    probelib.interop.from_devinterp(kind("~/theirs"))
    assert {f.name for f in (tmp_path / "home").iterdir() if f.name[0] != "."} == {
        "a.zarr", "cache", "pairs", "theirs",
    }  # fmt: skip
    assert [f.name for f in tmp_path.iterdir()] == ["home"]


URLS = [
    "s3://bucket/a.zarr", "gs://bucket/a", "memory://a", "https://host/a.zarr", "S3://b/a",
    "simplecache::s3://bucket/a", "file://elsewhere/a", Path("s3://bucket/a"), b"s3://bucket/a",
    "~nobody-of-that-name/a",
]  # fmt: skip


@pytest.mark.parametrize("url", URLS, ids=str)
def test_a_url_is_refused_before_anything_is_done(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    posterior = probelib.LocalPosterior(
        nn.Linear(3, 2), probelib.cross_entropy, (X, Y), n_beta=10.0, localization=5.0
    )
    remedy = "write it out" if "~" in str(url) else "give a local path, and copy"
    for argument in ("store", "cache"):
        with pytest.raises(ValueError, match=f"{argument} is '.*{remedy}"):
            run(**{argument: url})
    with pytest.raises(ValueError, match=f"cache is '.*{remedy}"):
        probelib.gradient_pairs(posterior, pairs=1, cache=url, progress=False)
    with pytest.raises(ValueError, match=r"path is '.*(xarray\.open_zarr|write it out)"):
        probelib.open_trace(url)
    assert not list(tmp_path.iterdir())


def test_the_remedy_for_a_url_works(store):
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").put(str(store), "/trace.zarr", recursive=True)
    found = xr.open_zarr("memory://trace.zarr", consolidated=False)
    assert_same(found, probelib.open_trace(store))


@pytest.mark.parametrize("name", ["c:x", "a:b/c", "runs:2026/05", "it's 100%/a", "%7E/a", "x~/a"])
def test_odd_names_are_names(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(store=name, draws=4)
    assert (tmp_path / name / "zarr.json").exists()


def test_a_pickled_and_a_copied_trace_are_the_same(store):
    trace = probelib.open_trace(store)
    for found in (pickle.loads(pickle.dumps(trace)), trace.copy(deep=True), trace.compute()):
        assert_same(found, trace)
