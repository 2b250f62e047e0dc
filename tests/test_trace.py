"""The trace store: its schema, going on after an interruption, and never serving another trace."""

import os
import signal
import subprocess
import sys
import textwrap
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from torch import nn

import probelib
from probelib import SGLD, LocalPosterior, TraceMismatch, cross_entropy, squared_error
from probelib.observe import Observer
from probelib.store import disk, integrity, layout

pytestmark = pytest.mark.usefixtures("one_thread")

fuse = -1  # a number that a function counts is not in a fingerprint


def burn():
    """Raise where a user might press Ctrl-C: in the middle of a forward pass."""
    global fuse
    fuse -= 1
    if fuse == 0:
        raise KeyboardInterrupt


@contextmanager
def interrupted(monkeypatch, after):
    """Ctrl-C in a forward pass, so many of them after the chains have begun."""
    original = probelib.record.Recorder.run

    def run(recorder):
        globals()["fuse"] = after + 1
        original(recorder)

    try:
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):  # noqa: PT012
            patched.setattr(probelib.record.Recorder, "run", run)
            yield
    finally:
        globals()["fuse"] = -1


def loss(output, target):
    burn()
    return cross_entropy(output, target)


def doubled(output, target):
    return 2 * cross_entropy(output, target)


def model_of(seed=0, hidden=5):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, 4))


def toy(n=30, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=rng), torch.randint(0, 4, (n,), generator=rng)


def posterior_of(model=None, data=None, per_sample_loss=cross_entropy, **kwargs):
    return LocalPosterior(
        model_of() if model is None else model,
        per_sample_loss,
        toy() if data is None else data,
        **{"n_beta": 10.0, "localization": 5.0} | kwargs,
    )


def run(posterior=None, store=None, **kwargs):
    settings = {"sampler": SGLD(1e-2, 8), "chains": 2, "draws": 6, "progress": False} | kwargs
    return probelib.sample(posterior or posterior_of(), store=store, **settings)


def assert_same(a, b):
    assert set(a.variables) == set(b.variables)
    for name in a.variables:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        assert a[name].dtype == b[name].dtype
    for key in ("config", "fingerprint", "draws_done", "steps_done", "complete"):
        assert a.attrs[key] == b.attrs[key], key


def content(path):
    """Every file under a path with its bytes and its time of change."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return [(str(p), p.read_bytes(), p.stat().st_mtime_ns) for p in files]


@pytest.fixture
def store(tmp_path):
    return tmp_path / "trace.zarr"


# --- schema ------------------------------------------------------------------------------------


def test_schema(store):
    x, y = toy(7, seed=2)
    trace = run(store=store, observe=(x, y), burn_in=3, thin=2, seed=9)
    expected = {
        "loss": (("chain", "draw", "sample"), (2, 6, 7), "float32"),
        "init_loss": (("sample",), (7,), "float32"),
        "sampling_loss": (("chain", "step"), (2, 15), "float32"),
        "distance": (("chain", "draw"), (2, 6), "float32"),
        "gradient_square": (("chain", "step"), (2, 15), "float32"),
        "gradient_along": (("chain", "step"), (2, 15), "float32"),
        "gradient_repeat": (("chain", "step"), (2, 15), "float32"),
    }
    assert set(trace.data_vars) == set(expected)
    for name, (dims, shape, dtype) in expected.items():
        assert (trace[name].dims, trace[name].shape, trace[name].dtype) == (dims, shape, dtype)
        # No gradient comes before that of the first step.
        known = trace[name][:, 1:] if name == "gradient_repeat" else trace[name]
        assert np.isfinite(known).all()
    np.testing.assert_array_equal(trace.coords["sample_id"], np.arange(7))
    np.testing.assert_array_equal(trace.coords["label"], y)
    assert trace.label.dtype == np.int64
    assert trace.attrs["config"] == {
        "n_beta": 10.0, "localization": 5.0, "beta": 10 / 30, "n_samples": 30, "n_parameters": 44,
        "sampler": "SGLD", "order": 1, "step_size": 1e-2, "batch_size": 8,
        "gradients_per_step": 1, "gradient": "Minibatch",
        "chains": 2, "draws": 6, "burn_in": 3, "thin": 2,
    }  # fmt: skip
    assert set(trace.attrs["fingerprint"]) == {
        "weights", "model", "per_sample_loss", "sampling_data", "observed_data", "n_beta",
        "localization", "train_mode", "precision", "sampler", "sampler_code", "chains", "burn_in",
        "thin", "seed", "loss_dtype", "format",
    }  # fmt: skip
    assert trace.attrs["seed"] == 9
    assert trace.attrs["device"] == "cpu"
    assert trace.attrs["wall_time"] > 0
    assert trace.attrs["complete"] is True
    assert trace.attrs["versions"]["torch"] == torch.__version__
    assert zarr.open_group(store, mode="r").metadata.zarr_format == 3


def test_without_labels_there_is_no_label():
    target = torch.zeros(30, 4)
    trace = run(posterior_of(data=(toy()[0], target), per_sample_loss=probelib.squared_error))
    assert "label" not in trace.coords


def test_memory_and_disk_hold_the_same_and_it_reopens(store):
    trace = run(store=store)
    assert_same(trace, run())
    assert_same(probelib.open_trace(store), trace)
    assert_same(probelib.open_trace(str(store)), trace)
    plain = xr.open_zarr(store, consolidated=False)  # without this library
    np.testing.assert_array_equal(plain.loss, trace.loss)


def test_half_precision(store):
    half, full = run(store=store, loss_dtype="float16"), run()
    assert half.loss.dtype == np.float16
    assert half.init_loss.dtype == np.float32
    np.testing.assert_array_equal(half.loss, full.loss.values.astype(np.float16))
    np.testing.assert_allclose(
        probelib.loss_gain(half), probelib.loss_gain(full), atol=1e-3 * float(full.loss.max())
    )
    with pytest.raises(ValueError, match=r"cannot hold a loss of .*; use loss_dtype='float32'"):
        run(posterior_of(per_sample_loss=lambda o, t: 1e5 * cross_entropy(o, t), n_beta=1e-4),
            loss_dtype="float16")  # fmt: skip


# --- the same call, a longer one, a shorter one ------------------------------------------------


def test_the_same_call_does_not_sample_again(store, monkeypatch):
    trace = run(store=store)
    before = content(store)

    def never(self):
        raise AssertionError("sampled again")

    monkeypatch.setattr(probelib.chains.Chains, "advance", never)
    assert_same(run(store=store), trace)
    fewer = run(store=store, draws=4)
    np.testing.assert_array_equal(fewer.loss, trace.loss[:, :4])
    assert fewer.sizes["step"] == 4
    assert (fewer.attrs["config"]["draws"], fewer.attrs["complete"]) == (4, True)
    assert content(store) == before


@pytest.mark.parametrize("settings", [{}, {"burn_in": 3, "thin": 2}])
def test_more_draws_extend_a_finished_trace(store, settings):
    run(store=store, draws=5, **settings)
    run(store=store, draws=60, **settings)
    longer = run(store=store, draws=130, **settings)
    assert_same(longer, run(draws=130, **settings))
    assert_same(probelib.open_trace(store), longer)


# --- interruption ------------------------------------------------------------------------------


# One forward pass at each gradient, one at each observation; five before the first.
@pytest.mark.parametrize("calls", [24, 144, 199, 206, 324])
def test_an_interrupted_run_goes_on_where_it_stopped(
    store, calls, python_in_every_step, monkeypatch
):
    settings = {"draws": 120, "burn_in": 5, "thin": 2}
    posterior = posterior_of(per_sample_loss=loss)
    whole = run(posterior, **settings)
    with interrupted(monkeypatch, calls):
        run(posterior, store, **settings)
    partial = probelib.open_trace(store)
    done = partial.attrs["draws_done"]
    assert partial.attrs["complete"] is False
    assert partial.sizes["draw"] == done < 120
    assert done == (calls - 5) // 3  # a draw is two steps and one observation
    assert partial.sizes["step"] == 5 + 2 * done + min(1, (calls - 5) % 3)
    np.testing.assert_array_equal(partial.loss, whole.loss[:, :done])
    assert_same(run(posterior, store, **settings), whole)
    assert probelib.open_trace(store).attrs["complete"] is True


def test_an_interrupted_run_may_be_asked_for_fewer_or_more_draws(
    store, python_in_every_step, monkeypatch
):
    posterior = posterior_of(per_sample_loss=loss)
    with interrupted(monkeypatch, 124):
        run(posterior, store, draws=200)
    assert probelib.open_trace(store).sizes["draw"] == 124 // 2
    for draws in (20, 80, 90, 30):
        assert_same(run(posterior, store, draws=draws), run(posterior, draws=draws))
        opened = probelib.open_trace(store)
        assert opened.attrs["config"]["draws"] >= opened.sizes["draw"]
        assert opened.attrs["complete"] is (opened.attrs["config"]["draws"] == opened.sizes["draw"])


@pytest.mark.parametrize("write", range(2, 8))
def test_stopped_while_checkpoints_are_written(store, monkeypatch, write):
    # One file when the store is made, then three flushes: stopped before and between their two.
    whole, writes = run(draws=150), []
    original = integrity.write_atomically

    def failing(path, data):
        writes.append(path)
        if len(writes) == write:
            raise KeyboardInterrupt
        original(path, data)

    monkeypatch.setattr(disk, "write_atomically", failing)
    with pytest.raises(KeyboardInterrupt):
        run(store=store, draws=150)
    monkeypatch.undo()
    assert probelib.open_trace(store).sizes["draw"] == 50 * ((write - 2) // 2)
    assert_same(run(store=store, draws=150), whole)
    assert len(list((store / "checkpoint").glob("*.safetensors"))) == 1


def test_a_killed_process(store, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(
        textwrap.dedent("""
        import os, signal, sys
        import torch
        import probelib

        left = -1  # of the calls that a run makes once its chains have begun

        def loss(output, target):
            global left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return probelib.cross_entropy(output, target)

        begin = probelib.record.Recorder.run

        def run(recorder):
            global left
            left = int(sys.argv[2])
            begin(recorder)

        probelib.record.Recorder.run = run
        torch.set_num_threads(1)
        torch.manual_seed(0)
        x, y = torch.randn(30, 3), torch.arange(30) % 4
        posterior = probelib.LocalPosterior(
            torch.nn.Linear(3, 4), loss, (x, y), n_beta=10, localization=5
        )
        probelib.sample(posterior, sampler=probelib.SGLD(1e-2, 8), chains=2, draws=120,
                        store=sys.argv[1], progress=False)
        """)
    )

    def call(path, calls):
        return subprocess.run([sys.executable, script, path, str(calls)], check=False).returncode

    assert call(store, 90) == -signal.SIGKILL
    assert probelib.open_trace(store).sizes["draw"] == 50
    assert call(store, -1) == 0
    whole = tmp_path / "whole.zarr"
    assert call(whole, -1) == 0
    assert_same(probelib.open_trace(store), probelib.open_trace(whole))


# --- never another trace -----------------------------------------------------------------------


def test_every_difference_is_refused_by_its_name(store, monkeypatch):
    run(store=store)
    before = content(store)
    x, y = toy()
    double = {"model": model_of().double(), "data": (x.double(), y)}
    settings = {
        "weights": {"posterior": posterior_of(model_of(seed=1))},
        "model": {"posterior": posterior_of(nn.Sequential(*model_of()).append(nn.Identity()))},
        "per_sample_loss": {"posterior": posterior_of(per_sample_loss=doubled)},
        "sampling_data": {"posterior": posterior_of(data=(x + 1, y)), "observe": (x, y)},
        "observed_data": {"observe": (x[:10], y[:10])},
        "n_beta": {"posterior": posterior_of(n_beta=11.0)},
        "localization": {"posterior": posterior_of(localization=6.0)},
        "train_mode": {"posterior": posterior_of(train_mode=True)},
        "precision": {"posterior": posterior_of(**double)},
        "sampler.step_size": {"sampler": SGLD(2e-2, 8)},
        "sampler.gradient.batch_size": {"sampler": SGLD(1e-2, 9)},
        "chains": {"chains": 3},
        "burn_in": {"burn_in": 1},
        "thin": {"thin": 2},
        "seed": {"seed": 1},
        "loss_dtype": {"loss_dtype": "float16"},
    }
    for field, changed in settings.items():
        with pytest.raises(
            TraceMismatch, match=rf"holds another trace: .*\b{field} is .* there and"
        ):
            run(**{"store": store} | changed)
    with pytest.raises(TraceMismatch, match=r"sampler.gradient.batch_size is 8 there and 9 here"):
        run(store=store, sampler=SGLD(1e-2, 9))
    with pytest.raises(TraceMismatch, match="overwrite=True to replace it"):
        run(store=store, seed=2)
    monkeypatch.setattr(disk, "FORMAT", 99)
    with pytest.raises(TraceMismatch, match=f"format is {layout.FORMAT} there and 99 here"):
        run(store=store)
    monkeypatch.undo()
    named = {field.split(".")[0] for field in settings} | {"sampler_code", "format"}
    assert named == set(probelib.open_trace(store).attrs["fingerprint"])
    assert content(store) == before


temperature = {"value": 1.0}


def tempered(output, target):
    return cross_entropy(output / temperature["value"], target)


@pytest.mark.parametrize("value", [1.5, 1.002])
def test_what_a_loss_looks_up_when_it_runs_is_seen(store, monkeypatch, value):
    run(posterior_of(per_sample_loss=tempered), store)
    run(posterior_of(per_sample_loss=tempered), store)
    monkeypatch.setitem(temperature, "value", value)
    with pytest.raises(TraceMismatch, match=r"per_sample_loss is .* there and .* here"):
        run(posterior_of(per_sample_loss=tempered), store)


@pytest.mark.parametrize("kind", ["dropout", "batch norm"])
def test_a_loss_that_depends_on_its_batch_is_known_again(store, kind):
    layer = nn.Dropout(0.5) if kind == "dropout" else nn.BatchNorm1d(5)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), layer, nn.Linear(5, 4))
    posterior = posterior_of(model, toy(2600), train_mode=True)  # three batches, one of them short
    first = run(posterior, store, draws=2)
    assert_same(run(posterior, store, draws=2), first)
    assert_same(run(posterior, store, draws=3), run(posterior, draws=3))
    with pytest.raises(TraceMismatch, match=r"the loss of sample \d+ at w\* is"):
        run(posterior, store, draws=3, observe_batch_size=100)  # other batches, other losses
    begun = store.with_name("begun")
    run(posterior, begun, draws=2, observe_batch_size=100)
    longer = run(posterior, begun, draws=4)  # in the batches it was begun with
    assert_same(longer, run(posterior, draws=4, observe_batch_size=100))


def test_overwrite_replaces_a_trace(store):
    run(store=store, seed=1, draws=9)
    assert_same(run(store=store, overwrite=True), run())
    assert probelib.open_trace(store).sizes["draw"] == 6
    new = store.with_name("new")
    assert_same(run(store=new, overwrite=True), run())


def test_a_cache_keeps_every_trace_apart(tmp_path, monkeypatch):
    cache = tmp_path / "traces"
    first, other = run(cache=cache), run(cache=cache, seed=3)
    assert_same(first, run())
    assert_same(other, run(seed=3))
    assert len(list(cache.iterdir())) == 2
    before = content(cache)
    with monkeypatch.context() as patched:
        patched.setattr("probelib.chains.Chains.advance", None)
        assert_same(run(cache=cache), first)
        assert_same(run(cache=cache, seed=3), other)
    assert content(cache) == before
    longer = run(cache=cache, draws=9)  # extends its own, and leaves the other
    assert_same(longer, run(draws=9))
    assert len(list(cache.iterdir())) == 2


def test_a_cache_steps_round_what_it_cannot_use(tmp_path):
    cache = tmp_path / "traces"
    run(cache=cache)
    (store,) = cache.iterdir()
    (store / "zarr.json").write_text("{")
    before = content(store)
    for _ in range(2):
        assert_same(run(cache=cache), run())
    assert sorted(p.name for p in cache.iterdir()) == [f"{store.stem}-2.zarr", store.name]
    assert content(store) == before


def test_a_cache_sees_a_captured_value_in_the_losses(tmp_path):
    def loss_with(scale):
        def scaled(output, target):
            return scale * cross_entropy(output, target)

        return scaled

    found = [
        run(posterior_of(per_sample_loss=loss_with(scale)), cache=tmp_path) for scale in (1, 2, 1)
    ]
    assert len(list(tmp_path.iterdir())) == 2
    assert_same(found[0], found[2])
    np.testing.assert_allclose(found[1].init_loss, 2 * found[0].init_loss, rtol=1e-6)


@pytest.mark.parametrize("wrong", [{"store": "a.zarr"}, {"overwrite": True}])
def test_a_cache_names_its_own_stores(wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="cache is 'traces' beside store or overwrite; a cache"):
        run(cache="traces", **wrong)
    assert not list(tmp_path.iterdir())


def test_a_loss_too_large_for_float16_is_refused_before_anything_is_written(store):
    def huge(output, target):
        return 1e5 * cross_entropy(output, target)

    posterior = posterior_of(per_sample_loss=huge, n_beta=1e-4)
    run(posterior, store)
    before = content(store)
    with pytest.raises(ValueError, match="loss_dtype is 'float16', which cannot hold a loss of"):
        run(posterior, store, loss_dtype="float16", overwrite=True)
    assert content(store) == before


def test_a_loss_that_grows_too_large_for_float16_ends_the_run_and_keeps_the_draws(store):
    x, y = torch.zeros(2, 1), torch.tensor([[10.0], [357.0]])  # 357² / 2 is 63,725 of 65,504
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.bias)
    posterior = LocalPosterior(model, squared_error, (x, y), n_beta=1e-6, localization=0.01)
    with pytest.raises(OverflowError, match=r"use loss_dtype='float32' .the .* draws before"):
        run(posterior, store, sampler=SGLD(10.0), draws=400, loss_dtype="float16")
    kept = probelib.open_trace(store)
    assert kept.attrs["complete"] is False
    assert 0 < kept.sizes["draw"] < 400
    assert np.isfinite(kept.loss).all()


def test_a_failure_while_the_store_is_made_leaves_what_was_there(store, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("No space left on device")

    for old in (False, True):
        if old:
            run(store=store, seed=1)
            before = content(store)
        monkeypatch.setattr(zarr.Group, "create_group", full)
        with pytest.raises(OSError, match="No space left"):
            run(store=store, overwrite=old)
        monkeypatch.undo()
        assert [p.name for p in store.parent.iterdir()] == ([store.name] if old else [])
    assert content(store) == before
    assert_same(run(store=store, overwrite=True), run())


def test_what_comes_into_the_place_while_losses_are_evaluated_is_left(store, monkeypatch):
    original = Observer.at_center

    def slow(self):
        store.mkdir()
        (store / "a.jpg").write_bytes(b"dear")
        return original(self)

    monkeypatch.setattr(Observer, "at_center", slow)
    with pytest.raises(TraceMismatch, match="exists and is not a trace of probelib"):
        run(store=store)
    assert (store / "a.jpg").read_bytes() == b"dear"
    assert [p.name for p in store.parent.iterdir()] == [store.name]


def test_a_store_may_be_a_link(store):
    real = store.with_name("real")
    real.mkdir()
    store.symlink_to(real)
    assert_same(run(store=store), run())
    assert_same(run(store=store, seed=2, overwrite=True), run(seed=2))
    assert store.is_symlink()
    assert_same(probelib.open_trace(real), run(seed=2))


def test_a_trace_without_its_checkpoint_is_readable_and_stays_complete(store):
    whole = run(store=store)
    for file in (store / "checkpoint").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(TraceMismatch, match=r"can be read but not continued: .* Ask for 6 draws"):
        run(store=store, draws=9)
    assert probelib.open_trace(store).attrs["complete"] is True
    assert_same(run(store=store), whole)


def test_bad_input_with_overwrite_leaves_the_old_trace(store):
    run(store=store)
    before = content(store)
    x, y = toy()
    for changed in ({"observe": (x, y + 1)}, {"sampler": SGLD(1e-2, 31)}, {"draws": 0}):
        with pytest.raises(ValueError):  # noqa: PT011
            run(store=store, overwrite=True, **changed)
    assert content(store) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["directory", "file", "group", "array", "version 2", "broken"])
def test_what_is_not_a_trace_is_refused_and_left(store, kind, overwrite):
    if kind == "directory":
        (store / "photos").mkdir(parents=True)
        (store / "photos" / "a.jpg").write_bytes(b"dear")
    elif kind == "file":
        store.write_text("dear")
    elif kind == "array":
        zarr.create_array(store, shape=(3,), dtype="f4")[:] = 1
    elif kind == "broken":
        store.mkdir()
        (store / "zarr.json").write_text('{"zarr_format": 3, "node_')
    else:
        group = zarr.create_group(store, zarr_format=2 if kind == "version 2" else 3)
        group.create_array("a", shape=(3,), dtype="f4")
    before = content(store)
    with pytest.raises(
        TraceMismatch, match="exists and is not a trace of probelib; choose another"
    ):
        run(store=store, overwrite=overwrite)
    with pytest.raises(TraceMismatch):
        probelib.open_trace(store)
    assert content(store) == before


def test_an_empty_directory_will_do(store):
    store.mkdir()
    assert_same(run(store=store), run())


def test_opening_nothing(store):
    with pytest.raises(FileNotFoundError, match="holds no trace; check it or sample one first"):
        probelib.open_trace(store)
    assert not store.exists()


def test_a_relative_store_and_one_in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(store="here.zarr")
    assert_same(run(store=os.path.join("a", "b", "c.zarr")), probelib.open_trace("here.zarr"))
