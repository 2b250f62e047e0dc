"""Groups of chains in other processes, on this machine or on others, through any executor.

What a worker needs lies in the store's ``checkpoint/`` while it runs: the run, pickled, whose
SHA-256 comes with the task; the token of the call that the workers work for, without which they
stop; and how many draws each has, for the bar. A worker writes its own chains, and holds a lock on
them.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
import traceback
from collections.abc import Callable
from concurrent import futures
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import cloudpickle
import torch
from torch import Tensor

from probelib.chains import Chains
from probelib.plan import Run
from probelib.record import Recorder, Stopped, StoppingRule
from probelib.store import DiskStore, StoreBusy, TraceStore, write_atomically
from probelib.store.disk import CALL, JOB, group_name
from probelib.store.integrity import disk_errors, read_file

# How long a call waits for its workers, once it has told them to stop.
_PATIENCE = 120.0
# How often a worker looks whether it is wanted, and says how far it is.
_SECONDS = 1.0


def run_group(
    run: Run,
    store: TraceStore,
    group: slice,
    chains: Chains | None = None,
    *,
    stopping: StoppingRule | None = None,
    on_draw: Callable[[int, Tensor], None] = lambda draws, losses: None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Take a group of chains from where the store has them to the last draw.

    Args:
        run: with its thinning chosen.
        store: open.
        group: which chains.
        chains: these chains at w*, where the caller has made them already.
        stopping, on_draw, check: see :class:`probelib.record.Recorder`.

    Raises:
        StoreBusy: a worker of an earlier call is still at it, and does not stop.
    """
    chains = chains or Chains(run, group.start, group.stop - group.start)
    with ExitStack() as stack:
        if isinstance(store, DiskStore):
            stack.enter_context(store.group_held(group))
        if store.progress(group).checkpoint is not None:
            chains.restore(store.checkpoint(group), store.path)
        chains.stage()
        chains.observer.places = store.places
        if stopping is not None:
            stopping.rewind(run.plan.draws_after(chains.step))
        recorder = Recorder(
            chains, store, group, run.plan, stopping=stopping, on_draw=on_draw, check=check
        )
        recorder.run()


def run_in_executor(
    executor: futures.Executor,
    store: DiskStore,
    run: Run,
    groups: list[slice],
    on_progress: Callable[[dict[int, int], float | None], None],
) -> None:
    """Have an executor's workers take groups of chains to their last draw, a task each.

    Args:
        executor: any.
        store: on a file system that all workers see under the same path.
        run: what the chains need.
        groups: those that are not done.
        on_progress: is given, now and then, how many draws each group has, and a mean loss.

    Raises:
        StoreBusy: the workers stopped before their chains were done, for another call.
        Exception: what a worker raised, with its chains and its traceback in a note. The other
            workers stop then, and what all of them had is kept.
    """
    folder = store.path.resolve() / "checkpoint"
    content, token = cloudpickle.dumps(run), uuid4().hex
    digest = hashlib.sha256(content).hexdigest()
    tasks: dict[futures.Future[bool], slice] = {}
    try:
        with disk_errors(store.path):
            write_atomically(folder / JOB, content)
            write_atomically(folder / CALL, token.encode())
        for group in groups:
            task = _Task(str(store.path.resolve()), digest, token, group.start, _this_process())
            tasks[executor.submit(_work, task)] = group
        waiting = set(tasks)
        while waiting:
            done, waiting = futures.wait(waiting, 0.5, futures.FIRST_COMPLETED)
            on_progress(*_progress(store, groups))
            for future in done:
                if not future.result():
                    raise StoreBusy(
                        f"{group_name(tasks[future])} of store {str(store.path)!r} stopped for "
                        "another call, which writes the store now; wait for it to end"
                    )
    except BaseException as error:
        (folder / CALL).unlink(missing_ok=True)  # which stops the others
        for future in tasks:
            future.cancel()
        if isinstance(error, futures.BrokenExecutor) or type(error).__name__ == "KilledWorker":
            error.add_note(
                "a worker died; what its chains had is kept. The same call, with an executor that "
                "works, goes on from there"
            )
        else:
            futures.wait(tasks, _PATIENCE)
        with suppress(ValueError):  # the error on its way says more
            store.refresh()
        raise
    finally:
        for name in (CALL, JOB):
            (folder / name).unlink(missing_ok=True)
    store.refresh()


def _progress(store: DiskStore, groups: list[slice]) -> tuple[dict[int, int], float | None]:
    draws, losses = {}, []
    with suppress(ValueError):
        store.refresh()
    for group in groups:
        draws[group.start] = store.progress(group).draws_done
        with suppress(OSError, ValueError, KeyError):
            now = json.loads(read_file(_bar_file(store, group)))
            draws[group.start] = max(now["draws"], draws[group.start])
            losses.append(now["loss"])
    return draws, sum(losses) / len(losses) if losses else None


def _bar_file(store: DiskStore, group: slice) -> Path:
    return store.path / "checkpoint" / f"chains-{group.start}.bar"


def _this_process() -> tuple[str, int]:
    return socket.gethostname(), os.getpid()


# --- in the worker ---


@dataclass(frozen=True)
class _Task:
    """What a worker is sent.

    Attributes:
        path: of the store.
        digest: SHA-256 of the run that lies there, checked before it is unpickled.
        token: of the call.
        start: the first chain of the group.
        caller: its host and process.
    """

    path: str
    digest: str
    token: str
    start: int
    caller: tuple[str, int]


class _Link:
    """A worker's ties to its call: whether it is still wanted, and how far it is."""

    def __init__(self, call: Path, token: str, bar: Path):
        self._call, self._token, self._bar = call, token, bar
        self._checked = self._shown = 0.0

    def check(self) -> None:
        """Raise Stopped if the call has ended, or is another."""
        if time.monotonic() - self._checked > _SECONDS:
            self._checked = time.monotonic()
            try:
                wanted = self._call.read_text() == self._token
            except FileNotFoundError:
                wanted = False
            if not wanted:
                raise Stopped

    def on_draw(self, draws: int, losses: Tensor) -> None:
        """Say how far the chains are."""
        if time.monotonic() - self._shown > _SECONDS:
            self._shown = time.monotonic()
            aside = self._bar.with_name(f".{self._bar.name}.{os.getpid()}")
            with suppress(OSError):  # it is only shown
                aside.write_text(json.dumps({"draws": draws, "loss": float(losses.nanmean())}))
                os.replace(aside, self._bar)


def _work(task: _Task) -> bool:
    """A task: one group of chains, in a worker. Whether it was wanted to the end."""
    host, process = _this_process()
    if (host, process) != tuple(task.caller):
        # Workers share a machine; and a forked one would wait for threads that it does not have.
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    store = DiskStore(task.path)
    folder = store.path / "checkpoint"
    what = f"chain group {task.start}"
    try:
        content = read_file(folder / JOB)
        if hashlib.sha256(content).hexdigest() != task.digest:
            return False  # another call's
        run: Run = cloudpickle.loads(content)
        store.open()
        group = next(g for g in store.groups if g.start == task.start)
        what, bar = group_name(group), _bar_file(store, group)
        link = _Link(folder / CALL, task.token, bar)
        try:
            run_group(run, store, group, on_draw=link.on_draw, check=link.check)
        finally:
            bar.unlink(missing_ok=True)
        return True
    except Stopped:
        return False
    except Exception as error:
        error.add_note(f"in {what}, process {process} on {host}:\n{traceback.format_exc()}")
        raise _portable(error) from None


def _portable(error: Exception) -> Exception:
    """The error, or where it cannot travel between processes one that says the same."""
    try:
        copy = cloudpickle.loads(cloudpickle.dumps(error))
        if copy.__notes__ == error.__notes__:
            return error
    except Exception:  # whatever keeps it from being pickled
        pass
    portable = RuntimeError(f"{type(error).__name__}: {error}")
    for note in error.__notes__:
        portable.add_note(note)
    return portable


__all__ = ["run_group", "run_in_executor"]
