"""A job for the workers of any executor, on this machine or on others.

What the workers need lies in a folder that all see under the same path while the call runs: the
job, pickled, whose SHA-256 comes with each task; and the token of the call that they work for,
without which they stop.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import cloudpickle
import torch

from probelib.ambient import undisturbed
from probelib.record import Stopped
from probelib.store import write_atomically
from probelib.store.integrity import disk_errors, read_file

T = TypeVar("T")
R = TypeVar("R")

# How long a call waits for its workers, once it has told them to stop.
_PATIENCE = 120.0
#: How often a worker looks whether it is wanted, and says how far it is.
SECONDS = 1.0


@dataclass(frozen=True)
class Job:
    """What every worker is sent.

    Attributes:
        file: holds the job, pickled.
        digest: its SHA-256, checked before it is unpickled.
        call: the file that holds the token while the call wants its workers.
        token: of the call.
        caller: its host and process.
    """

    file: str
    digest: str
    call: str
    token: str
    caller: tuple[str, int]

    def content(self) -> Any:
        """The job itself, in a worker (Stopped: another call's lies there)."""
        content = read_file(Path(self.file))
        if hashlib.sha256(content).hexdigest() != self.digest:
            raise Stopped
        return cloudpickle.loads(content)


class Link:
    """A worker's tie to its call: whether it is still wanted."""

    def __init__(self, job: Job):
        self._call, self._token, self._checked = Path(job.call), job.token, 0.0

    def check(self) -> None:
        """Raise Stopped if the call has ended, or is another."""
        if time.monotonic() - self._checked > SECONDS:
            self._checked = time.monotonic()
            try:
                wanted = self._call.read_text() == self._token
            except FileNotFoundError:
                wanted = False
            if not wanted:
                raise Stopped


def carry_out(
    executor: futures.Executor,
    content: Any,
    file: Path,
    call: Path,
    work: Callable[[Job, T], R],
    tasks: Iterable[T],
    on_result: Callable[[T, R], None],
    on_wait: Callable[[], None] = lambda: None,
    store: Path | None = None,
) -> None:
    """Have an executor's workers do a job, task by task.

    Args:
        executor: any.
        content: the job: whatever its workers need, which is pickled.
        file, call: where :class:`Job` lies, in a folder that all workers see; removed at the end.
        work: a function of a module, of the job and a task, called in the workers.
        tasks: each a small thing that can be pickled.
        on_result: is given each task with what it returned, here, as it ends.
        on_wait: is called twice a second.
        store: in which the folder is, for errors of the disk.

    Raises:
        OSError: the job cannot be written.
        Exception: what a worker raised, with its traceback in a note, or what ``on_result`` did.
            The other workers stop then.
    """
    pickled, token = cloudpickle.dumps(content), uuid4().hex
    digest = hashlib.sha256(pickled).hexdigest()
    job = Job(str(file), digest, str(call), token, this_process())
    running: dict[futures.Future[R], T] = {}
    try:
        with disk_errors(store):
            write_atomically(file, pickled)
            write_atomically(call, token.encode())
        for task in tasks:
            running[executor.submit(work, job, task)] = task
        waiting = set(running)
        while waiting:
            done, waiting = futures.wait(waiting, 0.5, futures.FIRST_COMPLETED)
            on_wait()
            for future in done:
                on_result(running[future], future.result())
    except BaseException as error:
        call.unlink(missing_ok=True)  # which stops the others
        for future in running:
            future.cancel()
        if isinstance(error, futures.BrokenExecutor) or type(error).__name__ == "KilledWorker":
            error.add_note(
                "a worker died; what its chains had is kept. The same call, with an executor that "
                "works, goes on from there"
            )
        else:
            futures.wait(running, _PATIENCE)
        raise
    finally:
        for place in (call, file):
            place.unlink(missing_ok=True)


def made_by_workers(
    executor: futures.Executor,
    call: Any,
    folder: Path,
    tasks: dict[str, Any],
    on_result: Callable[[str, Any], None],
) -> None:
    """Have an executor's workers make ``call.made(task, tick)``, and keep it, for each task.

    Args:
        executor: any.
        call: can be pickled; its ``tick`` is called now and then, and stops a worker whose call
            has ended.
        folder: that all workers see, made if need be.
        tasks: by name, such as "chain 3".
        on_result: is given each name with what was made.

    Raises:
        RuntimeError: the files of the call were removed while it ran.
    """
    # Names of this call alone, which may be made twice at once.
    job, wanted = (folder / f"{name}-{uuid4().hex}" for name in ("job", "call"))
    folder.mkdir(parents=True, exist_ok=True)

    def came(task: tuple[str, Any], result: Any) -> None:
        if result is None:
            raise RuntimeError(
                f"the files of this call in {str(folder)!r} were removed while it ran; make it "
                "again"
            )
        on_result(task[0], result)

    carry_out(executor, call, job, wanted, _make, tasks.items(), came)


def _make(job: Job, named: tuple[str, Any]) -> Any:
    """One task, in a worker; None where it was not wanted to the end."""
    link, (name, task) = Link(job), named

    def work() -> Any:
        return undisturbed(job.content().made)(task, lambda _: link.check())

    return in_worker(job, lambda: name, work)


def in_worker(job: Job, what: Callable[[], str], work: Callable[[], R]) -> R | None:
    """Do a task's work in a worker; None where it was not wanted to the end.

    Args:
        what: says which task this is, for the note of an error.
    """
    host, process = this_process()
    if (host, process) != tuple(job.caller):
        # Workers share a machine; and a forked one would wait for threads that it does not have.
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    try:
        return work()
    except Stopped:
        return None
    except Exception as error:
        error.add_note(f"in {what()}, process {process} on {host}:\n{traceback.format_exc()}")
        raise _portable(error) from None


def this_process() -> tuple[str, int]:
    """This host and process."""
    return socket.gethostname(), os.getpid()


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


__all__ = ["SECONDS", "Job", "Link", "carry_out", "in_worker", "made_by_workers", "this_process"]
