"""A commit is one rename: a kill or a full disk before any of them, and readers beside a writer."""

import dataclasses
import errno
import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import probelib
from probelib import SGLD, LocalPosterior, TraceMismatch, cross_entropy
from probelib.store import DiskStore, disk, integrity

pytestmark = pytest.mark.usefixtures("one_thread")


class Killed(BaseException):
    """As if the process were gone: nothing that comes after it changes a file."""


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr(probelib.record, "_FLUSH_DRAWS", 4)
    # Recording the gradients takes longer than the few steps that are taken here; so do these.
    monkeypatch.setattr(probelib.chains, "_recorded", lambda function, *args: function)
    monkeypatch.setattr(probelib.chains, "_vmap_agrees", lambda *args: True)
    monkeypatch.setattr(probelib.run, "guessing_losses", lambda *args: 1.0)


def posterior_of():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 3, generator=generator), torch.arange(12) % 4
    torch.manual_seed(0)
    return LocalPosterior(nn.Linear(3, 4), cross_entropy, (x, y), n_beta=10.0, localization=5.0)


POSTERIOR = posterior_of()


@pytest.fixture(autouse=True)
def until_looks_early(monkeypatch):
    """Here until= is about what a store holds when a run ends early, not about its error."""
    monkeypatch.setattr(probelib.schedule, "_BATCHES", 2)


def run(store=None, **kwargs):
    settings = {"sampler": SGLD(1e-2, 8), "chains": 2, "draws": 6, "progress": False} | kwargs
    return probelib.sample(POSTERIOR, store=store, **settings)


def assert_same(a, b):
    for name in b.variables:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


class Renames:
    """Counts what puts a file or a folder in its place, and ends things before one of them."""

    def __init__(self, monkeypatch, exchanges=True):
        self.count, self.at, self.error, self.dead = 0, None, Killed, False
        for owner, name in ((os, "replace"), (os, "rename"), (disk, "exchange")):
            original = getattr(owner, name)
            if name == "exchange" and not exchanges:
                original = lambda one, other: False  # noqa: E731
            monkeypatch.setattr(owner, name, self.counted(original))
        for owner, name in ((os, "unlink"), (os, "remove"), (shutil, "rmtree"), (os, "rmdir")):
            monkeypatch.setattr(owner, name, self.guarded(getattr(owner, name)))

    def counted(self, original):
        def rename(*args, **kwargs):
            self.count += 1
            if self.dead or (self.at is not None and self.count >= self.at):
                self.dead = self.error is Killed
                raise self.error() if self.dead else OSError(errno.ENOSPC, os.strerror(28))
            return original(*args, **kwargs)

        return rename

    def guarded(self, original):
        def remove(*args, **kwargs):
            if self.dead:
                raise Killed
            return original(*args, **kwargs)

        return remove

    def end_at(self, at, error):
        self.count, self.at, self.error, self.dead = 0, at, error, False


def leftovers(folder):
    names = [p.name for p in folder.rglob("*")]
    return [n for n in names if n.endswith((".partial", ".old", ".bar")) or n[0] == "."] + [
        n for n in names if n in ("job.pickle", "call")
    ]


ONE = {"chains": 1, "draws": 2}
SCENARIOS = {
    # What was there before, the call, and whether it names a cache.
    "fresh": (None, {"chains": 1, "draws": 6}, "store"),
    "extension": ({"draws": 6}, {"draws": 9}, "store"),
    "until": (None, {"draws": 60, "until": 1.7}, "cache"),
    "overwrite": (ONE | {"seed": 1}, ONE | {"overwrite": True}, "store"),
    "overwrite without exchange": (ONE | {"seed": 1}, ONE | {"overwrite": True}, "store"),
}


@pytest.mark.parametrize("error", [Killed, OSError], ids=["killed", "disk full"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_before_every_rename(scenario, error, tmp_path, monkeypatch):
    before, call, where = SCENARIOS[scenario]
    old = run(**before) if before else None
    new = run(**{k: v for k, v in call.items() if k != "overwrite"})
    if where == "cache":
        assert 20 <= new.sizes["draw"] < 60, "until no longer stops early"
        monkeypatch.setattr(probelib.record, "_FLUSH_DRAWS", 15)
    if before:
        run(tmp_path / "before", **before)
    renames = Renames(monkeypatch, exchanges="without" not in scenario)
    at = 0
    while True:
        at += 1
        renames.end_at(None, error)
        home = tmp_path / f"{at}"
        home.mkdir()
        place = home / "trace"
        if before:
            shutil.copytree(tmp_path / "before", place)
        renames.end_at(at, error)
        try:
            run(**{where: place}, **call)
            ended = renames.count < at
        except (Killed, probelib.StoreError) as raised:
            assert error is Killed or "is on a full disk" in str(raised)  # noqa: PT017
            ended = False
        renames.end_at(None, error)
        if ended:
            break
        store = place
        if where == "cache":
            found = list(place.glob("*.zarr"))
            store = found[0] if found else place / "none"
        try:
            left = probelib.open_trace(store)
        except FileNotFoundError:
            assert before is None
            assert not store.exists()
        else:
            done = left.sizes["draw"]
            expected = [t for t in (old, new) if t is not None and done <= t.sizes["draw"]]
            same = [np.array_equal(left.loss, t.loss[:, :done]) for t in expected]
            assert any(same)
            plain = xr.open_zarr(store)  # without this library
            assert plain.sizes["draw"] >= done
        assert_same(run(**{where: place}, **call), new)
        store = next(place.glob("*.zarr")) if where == "cache" else place
        assert_same(probelib.open_trace(store), new)
        assert not leftovers(home)
        shutil.rmtree(home)
    assert at > 10, "the renames are no longer counted"


def test_readers_beside_a_writer_never_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(probelib.record, "_FLUSH_DRAWS", 1)
    store, whole = tmp_path / "trace", run(draws=60).load()
    run(store, draws=2)
    errors, reads, stop = [], [0], threading.Event()

    def read():
        while not stop.is_set():
            try:
                trace = probelib.open_trace(store)
                done = trace.sizes["draw"]
                if not np.array_equal(trace.loss.values, whole.loss[:, :done]):
                    errors.append(f"other numbers at {done}")
                reads[0] += 1
            except Exception as error:
                errors.append(repr(error))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for draws in (10, 11, 30, 31, 60):
        run(store, draws=draws)
    stop.set()
    for reader in readers:
        reader.join()
    assert not errors
    assert reads[0] > 10


@pytest.mark.parametrize("served", [True, False])
def test_what_a_killed_call_left_is_swept_up_by_the_next(tmp_path, served):
    store = tmp_path / "trace"
    whole = run(store)
    for name in ("job.pickle", "call", "chains-0.bar", ".chains-0.json.12-0a1b2c3d"):
        (store / "checkpoint" / name).write_bytes(b"half")
    (store / "loss" / "c" / "0" / "0" / "0.abc.partial").write_bytes(b"half")
    shutil.copytree(store, tmp_path / ".trace.123-0a1b2c3d")
    shutil.copytree(store, tmp_path / ".trace.123-0a1b2c3d.old")
    other = tmp_path / ".trace.b.123-0a1b2c3d"  # another store's
    other.mkdir()
    (tmp_path / ".trace.123-4.lock").write_text("another's")
    assert_same(run(store, draws=6 if served else 9), whole if served else run(draws=9))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".trace.123-4.lock", other.name, "trace",
    ]  # fmt: skip
    assert not leftovers(store)


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("call", [probelib.open_trace, run])
def test_a_trace_that_was_moved_aside_comes_back(tmp_path, linked, call):
    store = tmp_path / "trace"
    whole = run(store).load()
    os.rename(store, tmp_path / ".trace.99-0a1b2c3d.old")
    place = tmp_path / "link" if linked else store
    if linked:
        place.symlink_to(store)
    assert_same(call(place), whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "trace"][not linked :]


def test_the_only_copy_of_a_trace_is_never_swept_up(tmp_path):
    store = tmp_path / "trace"
    whole = run(store).load()
    place = DiskStore(store)
    with place.held():
        os.rename(store, tmp_path / ".trace.99-0a1b2c3d.old")
        place.clean()
        assert place.exists()  # it comes back for the holder of the lock, too
    assert_same(probelib.open_trace(store), whole)


def test_a_run_killed_before_it_could_say_so_is_finished_by_the_next_call(tmp_path, monkeypatch):
    store, settings = tmp_path / "trace", {"draws": 60, "until": 1.7}
    whole = run(**settings)
    with monkeypatch.context() as patched:
        patched.setattr(probelib.run, "_finish", lambda *args: None)
        run(store, **settings)
    assert probelib.open_trace(store).attrs["complete"] is False
    assert_same(run(store, **settings), whole)
    opened = probelib.open_trace(store)
    assert opened.attrs["complete"] is True
    assert opened.attrs["config"]["draws"] == whole.sizes["draw"]


def test_a_worker_that_still_writes_is_waited_for_before_anything_changes(tmp_path, monkeypatch):
    store = tmp_path / "trace"
    with ThreadPoolExecutor(1) as threads:
        run(store, draws=8, executor=threads)
    whole = run(draws=12, first_chain=0, chains=1)
    orphan = DiskStore(store)
    orphan.open()
    dismissed = DiskStore.dismiss_workers

    def commit_first(self):  # what a worker does when it is told to stop
        group = orphan.groups[0]
        progress = orphan.progress(group)
        orphan.commit(group, dataclasses.replace(progress, wall_time=99.0), None)
        dismissed(self)

    monkeypatch.setattr(DiskStore, "dismiss_workers", commit_first)
    longer = run(store, draws=12)
    assert longer.attrs["wall_time"] > 99  # its record was read anew, not overwritten
    np.testing.assert_array_equal(longer.loss[0], whole.loss[0])


def test_a_finished_call_opens_a_store_once(tmp_path, monkeypatch):
    store = tmp_path / "trace"
    with ThreadPoolExecutor(1) as threads:
        run(store, chains=5, executor=threads)
    opened, records, checked = [], [], []
    monkeypatch.setattr(DiskStore, "_open", counted(DiskStore._open, opened))
    monkeypatch.setattr(disk, "read_file", counted(disk.read_file, records))
    monkeypatch.setattr(disk.layout, "check_draws", counted(disk.layout.check_draws, checked))
    monkeypatch.setattr(probelib.run, "Chains", None)  # nor is anything built to sample with
    for kwargs in ({"store": store}, {"cache": tmp_path / "cache"}):
        if "cache" in kwargs:
            with monkeypatch.context() as patched:
                patched.setattr(probelib.run, "Chains", probelib.chains.Chains)
                run(chains=5, **kwargs)
        for seen in (opened, records, checked):
            seen.clear()
        run(chains=5, **kwargs)
        assert len(opened) == 1
        groups = 5 if "store" in kwargs else 1
        assert len(checked) == groups
        names = [path.name for (path, *_) in records]
        assert names.count("zarr.json") == 1
        assert len(names) == 1 + groups
    opened.clear()
    monkeypatch.setattr(probelib.run, "Chains", probelib.chains.Chains)
    run(store, chains=5, draws=9)
    assert len(opened) == 1


def counted(original, calls):
    def call(*args, **kwargs):
        calls.append(args)
        return original(*args, **kwargs)

    return call


# --- stores that somebody edited -----------------------------------------------------------------


def edit(file, change):
    """Change a record, and make its checksum fit."""
    root = json.loads(file.read_text())
    content = root.get("attributes", root)
    change(content)
    content.pop("checksum")
    content["checksum"] = integrity.checksum(content)
    file.write_text(json.dumps(root))


def set_to(*path_and_value):
    *path, last, value = path_and_value

    def change(content):
        for key in path:
            content = content[key]
        content[last] = value

    return change


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("zarr.json", set_to("config", "draws", "many")),
        ("zarr.json", set_to("config", "chains", 10**7)),
        ("zarr.json", set_to("config", "burn_in", -1)),
        ("zarr.json", set_to("config", "thin", 0)),
        ("zarr.json", set_to("config", None)),
        ("zarr.json", set_to("groups", ["2"])),
        ("zarr.json", set_to("groups", [1, 1])),
        ("zarr.json", set_to("groups", [2, -1, 1])),
        ("zarr.json", set_to("sizes", "draw", 10**9)),
        ("zarr.json", set_to("sizes", "draw", 2.5)),
        ("zarr.json", set_to("sizes", "sample", True)),
        ("zarr.json", set_to("sizes", {})),
        ("zarr.json", set_to("wall_time", "long")),
        ("zarr.json", set_to("observe_batch_size", "all")),
        ("zarr.json", set_to("chunks", None)),
        ("zarr.json", set_to("coordinates", "chain sample_id label elsewhere")),
        ("zarr.json", set_to("fingerprint", [])),
        ("checkpoint/chains-0.json", set_to("draws_done", -5)),
        ("checkpoint/chains-0.json", set_to("draws_done", 10**9)),
        ("checkpoint/chains-0.json", set_to("draws_done", "6")),
        ("checkpoint/chains-0.json", set_to("steps_done", 1.5)),
        ("checkpoint/chains-0.json", set_to("wall_time", float("nan"))),
        ("checkpoint/chains-0.json", set_to("diverged", {"0": {"step": "x", "draws": 1}})),
        ("checkpoint/chains-0.json", set_to("diverged", {"7": {"step": 1, "draws": 1}})),
        ("checkpoint/chains-0.json", set_to("diverged", [])),
        ("checkpoint/chains-0.json", set_to("chunks", {"loss/c/0/0/0": 4})),
        ("checkpoint/chains-0.json", set_to("checkpoint", ["a"])),
        ("checkpoint/chains-0.json", set_to("checkpoint", 3)),
    ],
)
def test_a_record_that_cannot_be_is_refused_in_a_sentence(tmp_path, file, change):
    store = tmp_path / "trace"
    run(store)
    edit(store / file, change)
    for call in (probelib.open_trace, run):
        with pytest.raises(TraceMismatch, match=r"is damaged: .* Restore it from a copy") as info:
            call(store)
        assert "\n" not in str(info.value)
    assert_same(run(store, overwrite=True), run())


def test_ten_million_chains_are_refused_at_once(tmp_path):
    store = tmp_path / "trace"
    run(store)

    def declare(content):
        content["config"]["chains"] = content["sizes"]["chain"] = 10**7
        content["groups"] = [10**7]

    edit(store / "zarr.json", declare)
    root = json.loads((store / "zarr.json").read_text())
    sizes = disk.layout.Sizes(**root["attributes"]["sizes"])
    for name in (*sizes.growing, "chain"):
        array = json.loads((store / name / "zarr.json").read_text())
        array["shape"][0] = 10**7
        if name == "chain":
            array["chunk_grid"]["configuration"]["chunk_shape"] = [10**7]
        (store / name / "zarr.json").write_text(json.dumps(array))
        root["consolidated_metadata"]["metadata"][name] = array
    (store / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(TraceMismatch, match="chain/c/0 is missing or truncated"):
        probelib.open_trace(store)


@pytest.mark.parametrize("name", ["label", "loss", "chain", "init_loss"])
def test_an_array_that_is_gone(tmp_path, name):
    store = tmp_path / "trace"
    run(store)
    shutil.rmtree(store / name)
    with pytest.raises(TraceMismatch, match=f"is damaged: .*{name}"):
        probelib.open_trace(store)


@pytest.mark.parametrize(
    "name",
    [
        "zarr.json", "loss/zarr.json", "loss/c/0/0/0", "chain/c/0", "checkpoint/chains-0.json",
        "checkpoint/chains-0-step-6.safetensors",
    ],
)  # fmt: skip
def test_a_pipe_in_the_place_of_a_file_blocks_nobody(tmp_path, name):
    store = tmp_path / "trace"
    whole = run(store)
    (store / name).unlink()
    os.mkfifo(store / name)
    if name == "zarr.json":
        with pytest.raises(TraceMismatch, match="exists and is not a trace of probelib"):
            probelib.open_trace(store)
        return
    if "step" in name:
        assert_same(probelib.open_trace(store), whole)
        with pytest.raises(TraceMismatch, match=r"not continued: .*not a plain file"):
            run(store, draws=9)
        return
    with pytest.raises(TraceMismatch, match="is damaged"):
        probelib.open_trace(store)
    assert_same(run(store, overwrite=True), whole)
    assert_same(run(cache=tmp_path / "cache"), whole)


def test_a_layout_that_is_another_is_stepped_round_by_a_cache(tmp_path):
    whole = run(cache=tmp_path)
    (store,) = tmp_path.glob("*.zarr")
    array = json.loads((store / "distance" / "zarr.json").read_text())
    array["shape"] = [2, 3]
    (store / "distance" / "zarr.json").write_text(json.dumps(array))
    assert_same(run(cache=tmp_path), whole)
    assert len(list(tmp_path.glob("*.zarr"))) == 2
