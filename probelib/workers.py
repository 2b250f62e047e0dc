"""Groups of chains in other processes, on this machine or on others, through any executor.

The job (:mod:`probelib.job`) lies in the store's ``checkpoint/`` while it runs, and beside it how
many draws each group has, for the bar. A worker writes its own chains, and holds a lock on them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from concurrent import futures
from contextlib import ExitStack, suppress
from pathlib import Path

from torch import Tensor

from probelib.chains import Chains
from probelib.job import SECONDS, Job, Link, carry_out, in_worker
from probelib.plan import Run
from probelib.record import Recorder, StoppingRule
from probelib.store import DiskStore, StoreBusy, TraceStore
from probelib.store.disk import CALL, JOB, group_name
from probelib.store.integrity import read_file


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

    def on_result(start: int, wanted: bool | None) -> None:
        if not wanted:
            group = next(group for group in groups if group.start == start)
            raise StoreBusy(
                f"{group_name(group)} of store {str(store.path)!r} stopped for another call, "
                "which writes the store now; wait for it to end"
            )

    try:
        carry_out(
            executor,
            (str(store.path.resolve()), run),
            folder / JOB,
            folder / CALL,
            _work,
            [group.start for group in groups],
            on_result,
            lambda: on_progress(*_progress(store, groups)),
            store.path,
        )
    except BaseException:
        with suppress(ValueError):  # the error on its way says more
            store.refresh()
        raise
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


# --- in the worker ---


class _Bar:
    """Says how far a worker is, in a file that its call reads."""

    def __init__(self, file: Path):
        self._file, self._shown = file, 0.0

    def on_draw(self, draws: int, losses: Tensor) -> None:
        if time.monotonic() - self._shown > SECONDS:
            self._shown = time.monotonic()
            aside = self._file.with_name(f".{self._file.name}.{os.getpid()}")
            with suppress(OSError):  # it is only shown
                aside.write_text(json.dumps({"draws": draws, "loss": float(losses.nanmean())}))
                os.replace(aside, self._file)


def _work(job: Job, start: int) -> bool | None:
    """A task: the group of chains from ``start`` on. Whether it was wanted to the end."""
    what = f"chain group {start}"

    def work() -> bool:
        nonlocal what
        path, run = job.content()
        store = DiskStore(path)
        store.open()
        group = next(g for g in store.groups if g.start == start)
        what, bar = group_name(group), _bar_file(store, group)
        try:
            run_group(run, store, group, on_draw=_Bar(bar).on_draw, check=Link(job).check)
        finally:
            bar.unlink(missing_ok=True)
        return True

    return in_worker(job, lambda: what, work)


__all__ = ["run_group", "run_in_executor"]
