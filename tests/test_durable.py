"""Nothing lost, nothing stale: processes killed, disks full, stores locked and damaged."""

import errno
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time

import faults
import malformed_input
import numpy as np
import pytest
import torch
import zarr
from torch import nn

import probelib
from probelib import SGLD, LocalPosterior, StoreBusy, StoreError, TraceMismatch, cross_entropy
from probelib.store import DiskStore, disk, integrity
from probelib.store.locks import hold

pytestmark = pytest.mark.usefixtures("one_thread")


def run(store=None, loss=cross_entropy, **kwargs):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 3, generator=generator), torch.arange(30) % 4
    torch.manual_seed(0)
    posterior = LocalPosterior(nn.Linear(3, 4), loss, (x, y), n_beta=10.0, localization=5.0)
    settings = {"sampler": SGLD(1e-2, 8), "chains": 2, "draws": 120, "progress": False} | kwargs
    return probelib.sample(posterior, store=store, **settings)


def assert_same(a, b):
    for name in a.variables:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture
def store(tmp_path):
    return tmp_path / "trace.zarr"


# --- the same faults as `make faults`, fewer of them ---


def test_killed_at_random_moments():
    found = faults.kills(6)
    assert found["killed"] == 6
    assert found["identical"] == found["traces"] >= 1
    assert found["resumed"] >= 1
    assert found["mid_write"] >= 1
    assert not found.get("lost")
    assert not found.get("wrong")


def test_disks_that_are_full_read_only_or_gone():
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk here (unshare -rm)")
    found = faults.disks()
    assert found == {
        "times": 3,
        "full_refused": 1, "full_draws_kept": found["full_draws_kept"], "full_wrong": 0,
        "read_only_refused": 1, "read_only_kept": 1, "went_on_identical": 1,
        "gone_refused": 1, "gone_recreated": 0, "gone_draws_kept": 30,
        "gone_went_on_identical": 1,
    }  # fmt: skip
    assert 0 < found["full_draws_kept"] < faults.DRAWS


def test_stores_damaged_at_random():
    found = faults.corrupted(40)
    assert not found["silently_wrong"]
    assert found["found_when_opened"] > 10
    assert found["found_when_read"] > 3
    kinds = ("found_when_opened", "found_when_read", "found_when_extended", "harmless")
    assert sum(found.get(kind, 0) for kind in kinds) == 40


def test_malformed_input():
    found = malformed_input.run(500)
    assert found["refused"] == 500
    assert found["arguments"] > 15


# --- errors of the disk, one by one ---


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, r"is on a full disk .*: the draws before are kept; make room, and the same"),
        (errno.EROFS, r"cannot be written .*: the draws before are kept; make it writable, and"),
        (
            errno.EIO,
            r"cannot be written .*: the draws before are kept; see to it, and the same call",
        ),
    ],
)
@pytest.mark.parametrize("where", ["chunk", "checkpoint"])
def test_a_disk_that_refuses(store, monkeypatch, code, message, where):
    owner, name = {
        "chunk": (zarr.storage.LocalStore, "set"),
        "checkpoint": (disk, "write_atomically"),
    }[where]
    original, calls = getattr(owner, name), [0]

    def refuses(self, key, *args, **kwargs):
        calls[0] += 1
        # The second block of draws; the third file after the one of the beginning.
        if str(key).startswith("loss/c/0/1") or (where == "checkpoint" and calls[0] > 3):
            raise OSError(code, os.strerror(code))
        return original(self, key, *args, **kwargs)

    monkeypatch.setattr(owner, name, refuses)
    with pytest.raises(StoreError, match=message) as info:
        run(store)
    assert info.value.errno == code
    monkeypatch.undo()
    kept = probelib.open_trace(store)
    assert kept.sizes["draw"] == 50
    assert_same(run(store), run())


def test_a_place_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("dear")
    with pytest.raises(StoreError, match="cannot be written"):
        run(tmp_path / "file" / "trace")


# --- locks ---


def _hold(file, held, go):
    with hold(file, "it"):
        held.set()
        go.wait()


def _held_elsewhere(file):
    context = multiprocessing.get_context("spawn")
    held, go = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(file, held, go))
    other.start()
    assert held.wait(60)
    return other, go


def test_the_second_of_two_processes_is_told_who_holds_a_store(store):
    whole = run(store, draws=60)
    other, go = _held_elsewhere(DiskStore(store).lock_file())
    try:
        with pytest.raises(StoreBusy) as info:
            run(store)
        told = str(info.value)
        assert f"store {str(store)!r} is being written by process {other.pid} on " in told
        assert "wait for it to end or stop it, or choose another store" in told
        assert_same(run(store, draws=60), whole)  # what needs no writing needs no lock
        assert_same(probelib.open_trace(store), whole)
    finally:
        go.set()
        other.join()
    assert_same(run(store), run())
    assert [p.name for p in store.parent.iterdir()] == [store.name]


def test_a_dead_holder_blocks_nobody(store):
    file = DiskStore(store).lock_file()
    other, _ = _held_elsewhere(file)
    other.kill()
    other.join()
    assert file.exists()  # it had no time to remove it
    assert_same(run(store), run())
    assert not file.exists()


def test_a_worker_left_by_a_caller_that_died_is_waited_for(store):
    run(store, draws=50)
    (store / "checkpoint" / "call").write_text("the dead one's")
    group = slice(0, 2)
    other, go = _held_elsewhere(DiskStore(store).lock_file(group))
    later = threading.Timer(1.0, go.set)
    later.start()
    since = time.monotonic()
    assert_same(run(store), run())
    assert time.monotonic() - since > 0.9
    other.join()
    assert {p.name for p in (store / "checkpoint").iterdir()} == {
        "zarr.json", "chains-0.json", "chains-0-step-120.safetensors",
    }  # fmt: skip


def test_a_lock_is_one_threads_too(tmp_path):
    file = tmp_path / "lock"
    with (
        hold(file, "store 'a'"),
        pytest.raises(StoreBusy, match="store 'a' is being written by this process; wait for that"),
        hold(file, "store 'a'"),
    ):
        pass
    with hold(file, "store 'a'"):
        pass
    assert not file.exists()


def test_where_nothing_can_be_locked_a_warning_says_so(store, monkeypatch):
    def cannot(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.lockf", cannot)
    with pytest.warns(UserWarning, match="lies where files cannot be locked .No locks available"):
        assert_same(run(store), run())
    assert [p.name for p in store.parent.iterdir()] == [store.name]


def test_a_lock_may_be_waited_for(tmp_path):
    file = tmp_path / "lock"
    other, go = _held_elsewhere(file)
    since = time.monotonic()
    with pytest.raises(StoreBusy), hold(file, "it", wait=0.5):
        pass
    assert time.monotonic() - since >= 0.5
    go.set()
    with hold(file, "it", wait=60):
        other.join()


# --- Ctrl-C ---


INTERRUPTED = """
import os, signal, sys, threading
import torch, probelib
from probelib.chains import Chains

torch.set_num_threads(1)
torch.manual_seed(0)
x, y = torch.randn(30, 3), torch.arange(30) % 4
posterior = probelib.LocalPosterior(
    torch.nn.Linear(3, 4), probelib.cross_entropy, (x, y), n_beta=10, localization=5
)
original = Chains.observe
def observe(self):
    if self.step == 70:
        os.kill(os.getpid(), signal.SIGINT)
    return original(self)
Chains.observe = observe
trace = probelib.sample(posterior, sampler=probelib.SGLD(1e-2, 8), chains=2, draws=200,
                        progress=False, store={store})
print("complete", trace.attrs["complete"], "draws", trace.sizes["draw"])
print("gain is finite", bool((probelib.loss_gain(trace) > -1e9).all()))
"""


@pytest.mark.parametrize("stored", [False, True])
def test_an_interrupted_notebook_has_the_trace_so_far(store, stored):
    import nbformat
    from nbclient import NotebookClient

    code = INTERRUPTED.format(store=repr(str(store)) if stored else None)
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(nb, timeout=120).execute()
    shown = "".join(o.get("text", "") for o in nb.cells[0].outputs)
    assert "complete False draws 69" in shown
    assert "gain is finite True" in shown
    assert "interrupted: this is the trace so far, 69 of 200 draws" in shown
    assert ("the same call again goes on from there" in shown) is stored
    if stored:
        assert probelib.open_trace(store).sizes["draw"] == 69


def python(*arguments, **settings):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True, text=True, timeout=120, check=False, **settings,
    )  # fmt: skip


def test_an_interrupted_prompt_has_the_trace_so_far(tmp_path):
    (tmp_path / "typed.py").write_text(INTERRUPTED.format(store=None))
    done = python("-i", "-q", input="exec(open('typed.py').read())\n", cwd=tmp_path)
    assert "complete False draws 69" in done.stdout
    assert "KeyboardInterrupt" not in done.stderr


@pytest.mark.parametrize("kind", ["script", "piped in", "beside a shell"])
def test_an_interrupted_script_stops(store, kind):
    code = INTERRUPTED.format(store=repr(str(store)))
    if kind == "beside a shell":
        code = f"from IPython import InteractiveShell\nInteractiveShell.instance()\n{code}"
    done = python("-", input=code) if kind == "piped in" else python("-c", code)
    assert "KeyboardInterrupt" in done.stderr
    assert "complete" not in done.stdout
    assert probelib.open_trace(store).sizes["draw"] == 69


# --- damaged and hostile stores ---


class Boom:
    def __reduce__(self):
        return os.mkdir, ("boom",)


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def signed(store, **attrs):
    """Root attributes with a checksum that fits: what somebody who means harm can write."""
    root = json.loads((store / "zarr.json").read_text())
    root["attributes"] |= attrs
    root["attributes"].pop("checksum")
    root["attributes"]["checksum"] = integrity.checksum(root["attributes"])
    (store / "zarr.json").write_text(json.dumps(root))


def test_what_is_found_in_a_damaged_store(store):
    whole = run(store).load()
    cases = {
        r"zarr.json does not have the content that its checksum says": lambda: edit(
            store / "zarr.json", lambda c: c["attributes"]["config"].update(n_beta=11.0)
        ),
        r"chains-0.json: it does not have the content": lambda: edit(
            store / "checkpoint" / "chains-0.json", lambda c: c.update(draws_done=119)
        ),
        r"chains-0.json: .*No such file": lambda: (store / "checkpoint" / "chains-0.json").unlink(),
        r"loss/c/0/1/0 is missing or truncated": lambda: (store / "loss/c/0/1/0").unlink(),
        r"loss/c/1/0/0 is missing or truncated": lambda: os.truncate(store / "loss/c/1/0/0", 99),
        r"loss is not laid out as probelib": lambda: edit(
            store / "loss" / "zarr.json",
            lambda c: c["codecs"].append({"name": "numcodecs.pickle", "configuration": {}}),
        ),
        r"init_loss has the shape \[31\]": lambda: edit(
            store / "init_loss" / "zarr.json", lambda c: c.update(shape=[31])
        ),
        r"JSONDecodeError": lambda: (store / "distance" / "zarr.json").write_text("{"),
    }
    copy = store.with_name("copy")
    shutil.copytree(store, copy)
    for message, spoil in cases.items():
        shutil.rmtree(store)
        shutil.copytree(copy, store)
        spoil()
        for call in (probelib.open_trace, run):
            with pytest.raises(TraceMismatch, match=f"is damaged: .*{message}") as info:
                call(store)
            assert "Restore it from a copy, choose another store, or pass overwrite" in str(
                info.value
            )
        assert_same(run(store, overwrite=True), whole)


def test_a_damaged_chunk_is_found_when_it_is_read(store):
    run(store)
    chunk = store / "loss" / "c" / "1" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[1000] ^= 4
    chunk.write_bytes(content)
    trace = probelib.open_trace(store)
    with pytest.raises(ValueError, match="checksum do not match"):
        trace.load()
    for estimate in (probelib.loss_gain, probelib.diagnostics, probelib.singular_fluctuation):
        with pytest.raises(
            ValueError, match=r"trace cannot be read: loss of samples 0 to 29 is damaged on disk"
        ):
            estimate(trace)
    with pytest.raises(ValueError, match="is damaged on disk"):
        probelib.loss_kernel(trace).diagonal()


def test_a_damaged_checkpoint_is_not_gone_on_from(store):
    whole = run(store)
    (file,) = (store / "checkpoint").glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1  # in the weights, where safetensors sees nothing
    file.write_bytes(content)
    assert_same(run(store), whole)
    with pytest.raises(TraceMismatch, match=r"can be read but not continued: .* checksum says"):
        run(store, draws=150)
    assert probelib.open_trace(store).attrs["complete"] is True


def test_no_code_of_a_hostile_store_runs(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = run(store)
    (store / "checkpoint" / "job.pickle").write_bytes(pickle.dumps(Boom()))
    (store / "checkpoint" / "call").write_text("mine")
    assert_same(probelib.open_trace(store), whole)
    assert_same(run(store, draws=150), run(draws=150))
    # Another's array of objects beside ours, in Zarr's formats 2 and 3.
    objects = store / "extra"
    objects.mkdir()
    (objects / "zarr.json").write_text(
        json.dumps(
            {
                "zarr_format": 3, "node_type": "array", "shape": [1], "data_type": "object",
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1]}},
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
                "fill_value": 0, "codecs": [{"name": "numcodecs.pickle"}],
                "attributes": {}, "dimension_names": ["x"],
            }
        )
    )  # fmt: skip
    with pytest.raises(TraceMismatch, match="extra is not laid out as probelib lays it out"):
        probelib.open_trace(store)
    shutil.rmtree(objects)
    # The checkpoint it names lies elsewhere.
    progress = json.loads((store / "checkpoint" / "chains-0.json").read_text())
    progress["checkpoint"][0] = "../../elsewhere"
    progress.pop("checksum")
    progress["checksum"] = integrity.checksum(progress)
    (store / "checkpoint" / "chains-0.json").write_text(json.dumps(progress))
    with pytest.raises(TraceMismatch, match="can be read but not continued"):
        run(store, draws=200)
    # Sizes that fit nothing, under a checksum that does.
    signed(store, groups=[10**9])
    with pytest.raises(TraceMismatch, match="is damaged"):
        probelib.open_trace(store)
    assert not (tmp_path / "boom").exists()


def test_somebodys_own_plain_array_beside_ours_is_no_harm(store):
    trace = run(store)
    group = zarr.open_group(store)
    group.create_array("mine", data=np.arange(30.0), dimension_names=["sample"])
    opened = probelib.open_trace(store)
    np.testing.assert_array_equal(opened.loss, trace.loss)


def test_killed_before_and_after_growing(store, monkeypatch):
    """A kill between making room for more draws and saying so."""
    run(store, draws=50)
    original = DiskStore._set_root

    def killed(self, attrs, sizes):
        raise KeyboardInterrupt

    monkeypatch.setattr(DiskStore, "_set_root", killed)
    with pytest.raises(KeyboardInterrupt):
        run(store, draws=90)
    monkeypatch.setattr(DiskStore, "_set_root", original)
    assert_same(probelib.open_trace(store), run(draws=50))
    assert_same(run(store, draws=50), run(draws=50))
    assert_same(run(store, draws=70), run(draws=70))
    assert_same(run(store, draws=90), run(draws=90))


def test_what_a_killed_writer_left_is_swept_up(store):
    run(store, draws=50)
    (store / "loss" / "c" / "0" / "0" / "0.abc.partial").write_bytes(b"half")
    (store / "checkpoint" / ".chains-0.json.1-2").write_bytes(b"half")
    assert_same(probelib.open_trace(store), run(draws=50))
    assert_same(run(store), run())
    assert not list(store.rglob("*.partial"))
    assert not list((store / "checkpoint").glob(".*"))
