"""Groups of chains in other processes, on this machine or on others, through any executor.

What a worker needs lies in the store's ``checkpoint/`` while it runs: the job, pickled, whose
SHA-256 comes with the task; the token of the call that the workers work for, without which they
stop; and how many draws each has, for the bar. A worker writes its own chains, and holds a lock on
them.
"""

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
from typing import TYPE_CHECKING
from uuid import uuid4

import cloudpickle
import torch
from torch import Tensor

from probelib.chains import Chains
from probelib.lock import StoreBusy, hold
from probelib.posterior import LocalPosterior, Samples
from probelib.record import Stopped, Watch, record
from probelib.trace import TraceStore, write_atomically

if TYPE_CHECKING:
    from probelib.sampler import SGLD

_JOB, _CALL = "job.pickle", "call"
# How long a task waits for a worker that is about to notice that it is not wanted any more.
_PATIENCE = 120.0


@dataclass
class Job:
    """All that a group of chains needs, beside the store."""

    posterior: LocalPosterior
    observed: Samples
    kernel: "SGLD"
    seed: int
    first_chain: int
    draws: int
    burn_in: int
    thin: int
    observe_batch_size: int | None
    observe_dtype: str

    def chains(self, group: slice) -> Chains:
        """A group of the chains, at w*."""
        return Chains(
            self.posterior,
            self.observed,
            self.kernel,
            group.stop - group.start,
            self.seed,
            self.observe_batch_size,
            self.observe_dtype,
            self.first_chain + group.start,
        )

    def run(
        self,
        trace: TraceStore,
        group: slice,
        chains: Chains | None = None,
        watch: Watch | None = None,
        saw: Callable[[int, Tensor], None] = lambda draws, losses: None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Take a group of chains from where the trace has them to the last draw.

        Raises:
            StoreBusy: a worker of an earlier call is still at it, and does not stop.
        """
        chains = chains or self.chains(group)
        with ExitStack() as stack:
            if trace.path is not None:
                what = f"{named(group)} of store {str(trace.path)!r}"
                stack.enter_context(hold(trace.lock_file(group), what, wait=_PATIENCE))
            if trace.progress(group).checkpoint is not None:
                chains.restore(trace.states(group), trace.path)
            chains.stage()
            if watch is not None:
                watch.rewind(max(0, chains.step - self.burn_in) // self.thin)
            record(
                chains,
                trace,
                group,
                draws=self.draws,
                burn_in=self.burn_in,
                thin=self.thin,
                watch=watch,
                saw=saw,
                check=check,
            )


def named(group: slice) -> str:
    """A group of chains in words."""
    last = group.stop - 1
    return f"chain {group.start}" if last == group.start else f"chains {group.start} to {last}"


def dismiss(trace: TraceStore) -> None:
    """Have the workers of an earlier call stop: they write what they have and let go."""
    if trace.path is not None:
        (trace.path / "checkpoint" / _CALL).unlink(missing_ok=True)


def run_elsewhere(
    executor: futures.Executor,
    trace: TraceStore,
    job: Job,
    groups: list[slice],
    saw: Callable[[dict[int, int], float | None], None],
) -> None:
    """Have an executor's workers take groups of chains to their last draw, a task each.

    Args:
        executor: any.
        trace: on a file system that all workers see under the same path.
        job: what the chains need.
        groups: those that are not done.
        saw: told now and then how many draws each group has, and a mean loss.

    Raises:
        StoreBusy: the workers stopped before their chains were done, for another call.
        Exception: what a worker raised, with its chains and its traceback in a note. The other
            workers stop then, and what all of them had is kept.
    """
    folder = trace.path.resolve() / "checkpoint"
    content, token = cloudpickle.dumps(job), uuid4().hex
    digest = hashlib.sha256(content).hexdigest()
    here = socket.gethostname(), os.getpid()
    tasks: dict[futures.Future, slice] = {}
    try:
        with trace.told():
            write_atomically(folder / _JOB, content)
            write_atomically(folder / _CALL, token.encode())
        for group in groups:
            call = str(trace.path.resolve()), digest, token, group.start, here
            tasks[executor.submit(_work, *call)] = group
        waiting = set(tasks)
        while waiting:
            done, waiting = futures.wait(waiting, 0.5, futures.FIRST_COMPLETED)
            saw(*_seen(trace, groups))
            for task in done:
                if not task.result():
                    raise StoreBusy(
                        f"{named(tasks[task])} of store {str(trace.path)!r} stopped for another "
                        "call, which writes the store now; wait for it to end"
                    )
    except BaseException as error:
        (folder / _CALL).unlink(missing_ok=True)  # which stops the others
        for task in tasks:
            task.cancel()
        if isinstance(error, futures.BrokenExecutor) or type(error).__name__ == "KilledWorker":
            error.add_note(
                "a worker died; what its chains had is kept. The same call, with an executor that "
                "works, goes on from there"
            )
        else:
            futures.wait(tasks, _PATIENCE)
        raise
    finally:
        for name in (_CALL, _JOB):
            (folder / name).unlink(missing_ok=True)


def _seen(trace: TraceStore, groups: list[slice]) -> tuple[dict[int, int], float | None]:
    draws, losses = {}, []
    for group in groups:
        draws[group.start] = trace.progress(group).draws_done
        with suppress(OSError, ValueError, KeyError):
            now = json.loads(_bar_file(trace, group).read_bytes())
            draws[group.start] = max(now["draws"], draws[group.start])
            losses.append(now["loss"])
    return draws, sum(losses) / len(losses) if losses else None


def _bar_file(trace: TraceStore, group: slice) -> Path:
    return trace.path / "checkpoint" / f"chains-{group.start}.bar"


def _work(path: str, digest: str, token: str, start: int, caller: tuple[str, int]) -> bool:
    """A task: one group of chains, in a worker. Whether it was wanted to the end."""
    here = socket.gethostname(), os.getpid()
    if here != tuple(caller):
        # Workers share a machine; and a forked one would wait for threads that it does not have.
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    trace = TraceStore(path)
    folder = trace.path / "checkpoint"
    looked = 0.0

    def check() -> None:
        nonlocal looked
        if time.monotonic() - looked > 1:
            looked = time.monotonic()
            try:
                wanted = (folder / _CALL).read_text() == token
            except FileNotFoundError:
                wanted = False
            if not wanted:
                raise Stopped

    shown = 0.0

    def saw(draws: int, losses: Tensor) -> None:
        nonlocal shown
        if time.monotonic() - shown > 1:
            shown = time.monotonic()
            now = {"draws": draws, "loss": float(losses.nanmean())}
            aside = bar.with_suffix(f".{here[1]}")
            with suppress(OSError):  # it is only for the eye
                aside.write_text(json.dumps(now))
                os.replace(aside, bar)

    what = f"chain group {start}"
    try:
        content = (folder / _JOB).read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:  # before it is unpickled
            return False  # another call's
        job: Job = cloudpickle.loads(content)
        trace.open()
        group = next(g for g in trace.groups if g.start == start)
        what, bar = named(group), _bar_file(trace, group)
        try:
            job.run(trace, group, saw=saw, check=check)
        finally:
            bar.unlink(missing_ok=True)
        return True
    except Stopped:
        return False
    except Exception as error:
        error.add_note(f"in {what}, process {here[1]} on {here[0]}:\n{traceback.format_exc()}")
        raise _portable(error) from None


def _portable(error: Exception) -> Exception:
    """The error, or where it cannot travel between processes one that says the same."""
    try:
        copy = cloudpickle.loads(cloudpickle.dumps(error))
        if copy.__notes__ == error.__notes__:
            return error
    except Exception:  # whatever keeps it from being pickled
        pass
    told = RuntimeError(f"{type(error).__name__}: {error}")
    for note in error.__notes__:
        told.add_note(note)
    return told


__all__ = ["Job", "dismiss", "run_elsewhere"]
