"""Chains into a trace: every draw's losses, kept durably as they come, until there are enough."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from probelib import schedule
from probelib.chains import Chains
from probelib.norms import norms
from probelib.plan import Plan
from probelib.store import Progress, TraceStore

# Draws, steps and seconds after which what was recorded is written.
_FLUSH_DRAWS, _FLUSH_STEPS, _FLUSH_SECONDS = 50, 1000, 60.0


class Stopped(Exception):
    """Somebody else wants the recording to end here."""


class StoppingRule:
    """Decides for ``until`` when a trace is good enough, in a run as in a trace read again.

    Args:
        until: target for the median standard error of a gain, nats; None for no early end.
        draws: the cap.
        store: open; the draws that it has count.
    """

    def __init__(self, until: float | None, draws: int, store: TraceStore):
        self.until, self.draws, self._dtype = until, draws, None
        self._rows: list[Tensor] = []
        #: Draws at which the trace was good enough, or None.
        self.enough: int | None = None
        if until is None:
            return
        done, _ = store.done()
        self._dtype, self._index = store.loss_dtype, schedule.watched(store.n_observed)
        before = store.losses(done, self._index)
        before = before.astype(np.promote_types(before.dtype, np.float32))
        self._rows = list(torch.from_numpy(before).unbind(1))
        self.enough = schedule.good_enough(before, until, draws)
        self.rewind(done)

    def rewind(self, done: int) -> None:
        """Forget the draws that the run takes again, after the first ``done``."""
        self._rows = self._rows[:done]
        self._looks = (at for at in schedule.looks(self.draws) if at > done)
        self._next = next(self._looks, None)

    def on_draw(self, losses: Tensor) -> bool:
        """Take the losses (chains, n_observed) of the next draw; whether this is enough."""
        if self.until is None:
            return False
        self._rows.append(losses[:, self._index])
        if len(self._rows) != self._next:
            return False
        self._next = next(self._looks, None)
        kept = torch.stack([row.cpu() for row in self._rows], 1).numpy()
        error = schedule.median_mcse(kept.astype(self._dtype))
        self.enough = len(self._rows) if error <= self.until else None
        return self.enough is not None


@dataclass
class _Buffer:
    """What was recorded since the last flush."""

    losses: list[Tensor] = field(default_factory=list)
    distances: list[Tensor] = field(default_factory=list)
    steps: list[dict[str, Tensor]] = field(default_factory=list)


@dataclass
class _Block:
    """The same as arrays, ready to be written.

    Attributes:
        first_step, first_draw: where they begin.
        steps: what was recorded of each, by name, shape (chains, k).
        losses: shape (chains, m, n_observed).
        distance: shape (chains, m).
    """

    first_step: int
    first_draw: int
    steps: dict[str, np.ndarray]
    losses: np.ndarray
    distance: np.ndarray

    def not_finite(self, plan: Plan) -> dict[int, int]:
        """The chains (rows) that left the finite numbers, and after how many steps."""
        lost = ~np.isfinite(self.steps["sampling_loss"])
        found = [(int(c), self.first_step + int(s)) for c, s in np.argwhere(lost)]
        lost = ~np.isfinite(self.losses).all(-1) | ~np.isfinite(self.distance)
        for c, d in np.argwhere(lost):
            found.append((int(c), plan.steps_until(self.first_draw + int(d) + 1)))
        first: dict[int, int] = {}
        for chain, step in found:
            first[chain] = min(step, first.get(chain, step))
        return first

    def blank(self, row: int, step: int, draws: int) -> None:
        """Make a chain NaN from its divergence on."""
        self.losses[row, max(0, draws - self.first_draw) :] = np.nan
        self.distance[row, max(0, draws - self.first_draw) :] = np.nan
        for recorded in self.steps.values():
            recorded[row, max(0, step - self.first_step) :] = np.nan


class Recorder:
    """Advances a group of chains to its last draw, writing losses and states as they come.

    A chain that diverges is left at w* and its losses are NaN from there on; the others go on.

    Args:
        chains: where the store has them.
        store: open.
        group: which chains of the trace these are.
        plan: of the run, its thinning chosen.
        stopping: ends the recording early.
        on_draw: is given the number of draws after each, and its losses: for a bar.
        check: called at each step; ends the recording by raising.
    """

    def __init__(
        self,
        chains: Chains,
        store: TraceStore,
        group: slice,
        plan: Plan,
        *,
        stopping: StoppingRule | None = None,
        on_draw: Callable[[int, Tensor], None] = lambda draws, losses: None,
        check: Callable[[], None] = lambda: None,
    ):
        self.chains, self.store, self.group, self.plan = chains, store, group, plan
        self._stopping, self._on_draw, self._check = stopping, on_draw, check
        progress = store.progress(group)
        self._diverged = dict(progress.diverged)
        self._wall_time, self._since = progress.wall_time, time.perf_counter()
        self._total = plan.steps
        self._begun = chains.step  # the step up to which all is written
        self._buffer = _Buffer()  # what came since
        self._failed: dict[int, int] = {}  # chains whose model raised, and the step after which
        for chain in self._diverged:
            chains.freeze(chain - group.start)

    def run(self) -> None:
        """Record until the last draw.

        Raises:
            OverflowError: a loss too large for the trace's type; the draws before it are kept.
            StoreError: the trace cannot be written; what was written before is kept.
        """
        chains = self.chains
        while chains.step < self._total and len(chains.frozen) < chains.chains:
            try:
                self._check()
                loss = self._step()
            except BaseException as error:
                self._keep_what_is_whole(error)
                raise
            if loss is not None and self._is_due(loss):
                self._flush()
        if self._buffer.steps or self._failed:
            self._flush()

    def _step(self) -> Tensor | None:
        """A step, and the draw that follows it, if one does. None: a chain was lost instead."""
        chains, plan = self.chains, self.plan
        try:
            recorded = chains.advance()
        except Exception as error:
            self._freeze_failed(error)
            return None
        self._buffer.steps.append(recorded)
        if chains.step > plan.burn_in and plan.draws_after(chains.step) > plan.draws_after(
            chains.step - 1
        ):
            distance = norms(chains.weights - chains.center)
            losses = self._observe()
            self._buffer.distances.append(distance)
            self._buffer.losses.append(losses)
            self._on_draw(plan.draws_after(chains.step), losses)
            if self._stopping is not None and self._stopping.on_draw(losses):
                self._total = chains.step
        return recorded["sampling_loss"]

    def _observe(self) -> Tensor:
        while True:
            try:
                return self.chains.observe()
            except Exception as error:
                self._freeze_failed(error)

    def _freeze_failed(self, error: Exception) -> None:
        """Freeze the chains on which the model failed; if it was not they, the error stands."""
        failed = [c for c in self.chains.not_finite() if c not in self.chains.frozen]
        if not failed:
            raise error
        for chain in failed:
            self._failed[chain] = self.chains.step
            self.chains.freeze(chain)

    def _is_due(self, loss: Tensor) -> bool:
        """Whether it is time to write."""
        return (
            self.chains.step == self._total
            or len(self._buffer.losses) == _FLUSH_DRAWS
            or len(self._buffer.steps) >= _FLUSH_STEPS
            or time.perf_counter() - self._since > _FLUSH_SECONDS
            # On an accelerator this look would stall the queue: there the next flush tells.
            or (loss.device.type == "cpu" and not bool(loss.isfinite().all()))
        )

    def _keep_what_is_whole(self, error: BaseException) -> None:
        """Write the steps and draws before an error; a step that is half done is taken again."""
        chains, plan, buffer = self.chains, self.plan, self._buffer
        chains.step = self._begun + len(buffer.steps)
        due = plan.draws_after(chains.step) - plan.draws_after(self._begun)
        if len(buffer.losses) < due:  # the last step's draw was not observed
            chains.step -= 1
            buffer.steps.pop()
            del buffer.distances[len(buffer.losses) :]
        if buffer.steps:
            # The checkpoint stays behind, but for an end that was asked for between two steps.
            self._flush(checkpoint=isinstance(error, Stopped))

    def _flush(self, checkpoint: bool = True) -> None:
        """Write what was recorded, and how far the chains are."""
        self.store.require_there()
        block = self._take_buffer()
        self._mark_diverged(block)
        largest = np.finfo(self.store.loss_dtype).max
        too_large = block.losses > largest
        sound = block.losses.shape[1]
        if too_large.any():
            sound = int(np.flatnonzero(too_large.any((0, 2)))[0])
        self._write(block, sound)
        now = time.perf_counter()
        self._wall_time, self._since = self._wall_time + now - self._since, now
        before = self.store.progress(self.group)
        done = Progress(
            draws_done=max(block.first_draw + sound, before.draws_done),
            steps_done=max(self._begun, before.steps_done),
            wall_time=self._wall_time,
            diverged=dict(self._diverged),
        )
        states = self.chains.checkpoint() if checkpoint and not too_large.any() else None
        self.store.commit(self.group, done, states)
        if too_large.any():
            raise OverflowError(
                f"loss_dtype is {str(self.store.loss_dtype)!r}, which cannot hold a loss of "
                f"{np.nanmax(block.losses[:, sound]):.3g}; use loss_dtype='float32' (the "
                f"{block.first_draw + sound} draws before it are kept, marked incomplete)"
            )

    def _take_buffer(self) -> _Block:
        kept, self._buffer = self._buffer, _Buffer()
        names = self.chains.step_variables
        first_step, self._begun = self._begun, self.chains.step
        block = _Block(
            first_step=first_step,
            first_draw=self.plan.draws_after(first_step),
            steps={name: np.empty((self.chains.chains, 0), np.float32) for name in names},
            losses=np.empty((self.chains.chains, 0, self.chains.observer.n_observed), np.float32),
            distance=np.empty((self.chains.chains, 0), np.float32),
        )
        if kept.steps:
            for name in names:
                recorded = torch.stack([step[name] for step in kept.steps], 1)
                block.steps[name] = recorded.cpu().numpy()
        if kept.losses:
            block.losses = torch.stack(kept.losses, 1).cpu().numpy()
            block.distance = torch.stack(kept.distances, 1).float().cpu().numpy()
        return block

    def _mark_diverged(self, block: _Block) -> None:
        """Freeze the chains that left the finite numbers in a block, and blank them from there."""
        chains, found = self.chains, block.not_finite(self.plan)
        never = self._total + 1
        for row in range(chains.chains):
            chain = self.group.start + row
            step = min(found.get(row, chains.step + 1), self._failed.get(row, never))
            if chain not in self._diverged and step <= chains.step:
                draws = self.plan.draws_after(max(0, step - 1))
                self._diverged[chain] = {"step": step, "draws": draws}
                chains.freeze(row)
            if chain in self._diverged:
                block.blank(row, **self._diverged[chain])
        self._failed.clear()

    def _write(self, block: _Block, sound: int) -> None:
        """Write a block's first ``sound`` draws and its steps, but for those that are there.

        After an interruption a run takes the steps since the checkpoint again, to the same values.
        """
        before = self.store.progress(self.group)
        old_draws = max(0, before.draws_done - block.first_draw)
        old_steps = max(0, before.steps_done - block.first_step)
        if old_draws < sound:
            at = slice(old_draws, sound)
            self.store.write_draws(
                self.group, block.first_draw + old_draws, block.losses[:, at], block.distance[:, at]
            )
        if old_steps < block.steps["sampling_loss"].shape[1]:
            first = block.first_step + old_steps
            new = {name: recorded[:, old_steps:] for name, recorded in block.steps.items()}
            self.store.write_steps(self.group, first, new)


__all__ = ["Recorder", "Stopped", "StoppingRule"]
