"""Chains into a trace: every draw's losses, kept durably as they come, until there are enough."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from probelib import schedule
from probelib.chains import Chains
from probelib.trace import Progress, TraceStore

# Draws, steps and seconds after which what was recorded is written.
_FLUSH_DRAWS, _FLUSH_STEPS, _FLUSH_SECONDS = 50, 1000, 60.0


class Stopped(Exception):
    """Somebody else wants the recording to end here."""


class Watch:
    """Decides for ``until`` when a trace is good enough, in a run as in a trace read again."""

    def __init__(self, until: float | None, draws: int, trace: TraceStore):
        self.until, self.draws, self._trace = until, draws, trace
        self._rows: list[Tensor] = []
        #: Draws at which the trace was good enough, or None.
        self.enough: int | None = None
        if until is None:
            return
        done, _ = trace.done()
        self._index = schedule.watched(trace.shape[2])
        before = trace.losses(done, self._index).astype(np.float32)
        self._rows = list(torch.from_numpy(before).unbind(1))
        self.enough = schedule.good_enough(before, until, draws)
        self.rewind(done)

    def rewind(self, done: int) -> None:
        """Forget the draws that the run takes again, after the first ``done``."""
        self._rows = self._rows[:done]
        self._looks = (at for at in schedule.looks(self.draws) if at > done)
        self._next = next(self._looks, None)

    def saw(self, losses: Tensor) -> bool:
        """Take the losses (chains, n_observed) of the next draw; whether this is enough."""
        if self.until is None:
            return False
        self._rows.append(losses[:, self._index])
        if len(self._rows) != self._next:
            return False
        self._next = next(self._looks, None)
        kept = torch.stack([row.cpu() for row in self._rows], 1).numpy()
        error = schedule.median_mcse(kept.astype(self._trace.loss_dtype))
        self.enough = len(self._rows) if error <= self.until else None
        return self.enough is not None


@dataclass
class _Buffer:
    """What was recorded since the last flush."""

    losses: list[Tensor] = field(default_factory=list)
    distances: list[Tensor] = field(default_factory=list)
    sampling: list[Tensor] = field(default_factory=list)


def record(
    run: Chains,
    trace: TraceStore,
    group: slice,
    *,
    draws: int,
    burn_in: int,
    thin: int,
    watch: Watch | None = None,
    saw: Callable[[int, Tensor], None] = lambda draws, losses: None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Advance a group of chains to its last draw, writing losses and states as they come.

    A chain that diverges is left at w* and its losses are NaN from there on; the others go on.

    Args:
        run: the chains, where the trace has them.
        trace: open.
        group: which chains of the trace these are.
        draws: how many each is to have.
        burn_in, thin: as in :func:`probelib.sample`.
        watch: ends the recording early.
        saw: told after each draw how many there are, and its losses: for a bar.
        check: called at each step; ends the recording by raising.

    Raises:
        OverflowError: a loss too large for the trace's type; the draws before it are kept.
        StoreError: the trace cannot be written; what was written before is kept.
    """
    total = burn_in + draws * thin
    on_cpu = run.center.device.type == "cpu"
    progress = trace.progress(group)
    diverged = dict(progress.diverged)
    wall_time, since = progress.wall_time, time.perf_counter()
    begun, buffer = run.step, _Buffer()  # the step up to which all is written, and what came since
    raised: dict[int, int] = {}  # chains whose model failed, and the step after which it did
    for chain in diverged:
        run.park(chain - group.start)

    def taken_at(draw: int) -> int:
        return burn_in + (draw + 1) * thin

    def flush(checkpoint: bool = True) -> None:
        nonlocal wall_time, since, begun, buffer
        trace.require_there()
        kept, buffer, first_step, begun = buffer, _Buffer(), begun, run.step
        first_draw = max(0, first_step - burn_in) // thin
        steps = torch.stack(kept.sampling, 1).float().cpu().numpy()
        rows = np.empty((run.chains, 0, len(run.observed)), np.float32)
        away = np.empty((run.chains, 0), np.float32)
        if kept.losses:
            rows = torch.stack(kept.losses, 1).float().cpu().numpy()
            away = torch.stack(kept.distances, 1).float().cpu().numpy()
        found = _first_not_finite(steps, rows, away, first_step, first_draw, taken_at)
        for c in range(run.chains):
            chain, step = group.start + c, min(found.get(c, run.step + 1), raised.get(c, total + 1))
            if chain not in diverged and step <= run.step:
                diverged[chain] = {"step": step, "draws": max(0, step - 1 - burn_in) // thin}
                run.park(c)
            if chain in diverged:
                at = diverged[chain]
                for of_draws in (rows, away):
                    of_draws[c, max(0, at["draws"] - first_draw) :] = np.nan
                steps[c, max(0, at["step"] - first_step) :] = np.nan
        raised.clear()
        sound = rows.shape[1]
        too_large = rows > np.finfo(trace.loss_dtype).max
        if too_large.any():
            sound = int(np.flatnonzero(too_large.any((0, 2)))[0])
        # What an interruption left beyond the checkpoint is what comes again now.
        before = trace.progress(group)
        old_draws = max(0, before.draws_done - first_draw)
        old_steps = max(0, before.steps_done - first_step)
        if old_draws < sound:
            at = slice(old_draws, sound)
            trace.write_draws(group, first_draw + old_draws, rows[:, at], away[:, at])
        if old_steps < steps.shape[1]:
            trace.write_steps(group, first_step + old_steps, steps[:, old_steps:])
        now = time.perf_counter()
        wall_time, since = wall_time + now - since, now
        done = Progress(
            draws_done=max(first_draw + sound, before.draws_done),
            steps_done=max(first_step + steps.shape[1], before.steps_done),
            wall_time=wall_time,
            diverged=diverged,
        )
        states = run.states() if checkpoint and not too_large.any() else None
        trace.commit(group, done, states)
        if too_large.any():
            raise OverflowError(
                f"loss_dtype is {str(trace.loss_dtype)!r}, which cannot hold a loss of "
                f"{np.nanmax(rows[:, sound]):.3g}; use loss_dtype='float32' (the "
                f"{first_draw + sound} draws before it are kept, marked incomplete)"
            )

    def lost(error: Exception) -> None:
        """Park the chains on which the model failed; if it was not they, the error stands."""
        chains = [c for c in run.lost() if c not in run.parked]
        if not chains:
            raise error
        for c in chains:
            raised[c] = run.step
            run.park(c)

    def observe() -> Tensor:
        while True:
            try:
                seen = run.observe(run.weights, run.step)
            except Exception as error:
                lost(error)
            else:
                seen[run.parked] = torch.nan
                return seen

    while run.step < total and len(run.parked) < run.chains:
        try:
            check()
            try:
                loss = run.advance()
            except Exception as error:
                lost(error)
                continue
            buffer.sampling.append(loss)
            if run.step > burn_in and (run.step - burn_in) % thin == 0:
                away = torch.linalg.vector_norm(run.weights - run.center, dim=1)
                seen = observe()
                buffer.distances.append(away)
                buffer.losses.append(seen)
                saw((run.step - burn_in) // thin, seen)
                if watch is not None and watch.saw(seen):
                    total = run.step
        except BaseException as error:
            # Keep what is whole. The checkpoint stays behind: this step may be half done.
            run.step = begun + len(buffer.sampling)
            due = max(0, run.step - burn_in) // thin - max(0, begun - burn_in) // thin
            if len(buffer.losses) < due:  # the last step's draw was not observed
                run.step -= 1
                buffer.sampling.pop()
                del buffer.distances[len(buffer.losses) :]
            if buffer.sampling:
                flush(checkpoint=isinstance(error, Stopped))  # that comes between steps
            raise
        if (
            run.step == total
            or len(buffer.losses) == _FLUSH_DRAWS
            or len(buffer.sampling) >= _FLUSH_STEPS
            or time.perf_counter() - since > _FLUSH_SECONDS
            # On an accelerator this look would stall the queue: there the next flush tells.
            or (on_cpu and not loss.isfinite().all())
        ):
            flush()
    if buffer.sampling or raised:
        flush()


def _first_not_finite(
    steps: np.ndarray,
    rows: np.ndarray,
    away: np.ndarray,
    first_step: int,
    first_draw: int,
    taken_at: Callable[[int], int],
) -> dict[int, int]:
    """The chains (rows) that left the finite numbers, and after how many steps."""
    found = [(int(c), first_step + int(s)) for c, s in np.argwhere(~np.isfinite(steps))]
    lost = ~np.isfinite(rows).all(-1) | ~np.isfinite(away)
    found += [(int(c), taken_at(first_draw + int(d))) for c, d in np.argwhere(lost)]
    first: dict[int, int] = {}
    for chain, step in found:
        first[chain] = min(step, first.get(chain, step))
    return first


__all__ = ["Stopped", "Watch", "record"]
