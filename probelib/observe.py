"""Losses of the observed samples at given weights, batch by batch."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from probelib.ambient import undisturbed
from probelib.batches import Tree, count, in_full
from probelib.data import Samples
from probelib.plan import Run
from probelib.randomness import chain_seeds, own_stream

# Passes at w* that a model which draws at random is averaged over.
_PASSES = 16


def _streams(passes: int) -> range:
    """Numbers of passes at w*, in place of a step: those after the first are of no step."""
    return range(0, passes * _NO_STEP, _NO_STEP)


_NO_STEP = 2**40


@dataclass(frozen=True)
class AtCenter:
    """l_i(w*) of the observed samples.

    Attributes:
        loss: shape (sample,), nats.
        mcse: its standard error, shape (sample,), where the model draws at random; else None.
        mcse_of_mean: that of the mean over samples.
    """

    loss: np.ndarray
    mcse: np.ndarray | None
    mcse_of_mean: float


class Observer:
    """Evaluates the observed samples' losses, as a trace records them.

    Args:
        run: says what to observe, and at which precision.
        batch_size: samples at a time; halved where they do not fit, unless the run fixes it.
        seeds: of the chains, for models that draw at random; default: the run's first.
        together: evaluate all rows of weights in one pass (vmap).
        draws_at_random: whether a model may, as dropout does; then each batch has a stream of its
            own.
    """

    def __init__(
        self,
        run: Run,
        batch_size: int,
        seeds: list[np.random.SeedSequence] | None = None,
        together: bool = False,
        draws_at_random: bool = True,
    ):
        self.posterior, self.samples = run.posterior, run.observed
        self.dtype, self.batch_size = run.plan.observe_dtype, batch_size
        self._kept = torch.promote_types(run.posterior.loss_dtype, torch.float32)
        # In train mode a loss depends on its batch: another size would be another trace.
        self._may_shrink = run.plan.observe_batch_size is None and not run.posterior.train_mode
        self._seeds = seeds or chain_seeds(run.plan.seed, run.plan.first_chain, 1)
        self.together, self._draws_at_random = together, draws_at_random

    def stage(self, samples: Samples) -> None:
        """Observe these from now on: the same, read once."""
        self.samples = samples

    @undisturbed
    def losses(self, weights: Tensor, step: int = 0, left_out: Collection[int] = ()) -> Tensor:
        """Losses of the observed samples at each row of ``weights``.

        Args:
            weights: shape (rows, n_parameters).
            step: of the chains, for models that draw at random.
            left_out: rows that are NaN instead.

        Returns:
            Shape (rows, n_observed); float64 where the loss is computed so, else float32.
        """
        while True:
            try:
                return self._losses(weights, step, left_out)
            except torch.OutOfMemoryError:
                if not self._may_shrink or self.batch_size == 1:
                    raise
                self.batch_size //= 2  # the largest batch that fits, found

    def at_center(self) -> AtCenter:
        """l_i(w*) of all observed samples: the mean of 16 passes if the model draws at random."""
        center = self.posterior.center.unsqueeze(0)
        passes = _PASSES if self._by_chance else 1
        found = torch.stack([self.losses(center, at)[0] for at in _streams(passes)]).cpu().numpy()
        if passes == 1:
            return AtCenter(found[0], None, 0.0)
        from scipy.special import stdtrit  # slow to import, so where it is used

        # Half of a 95 % interval over 1.96, as all errors are.
        scale = float(stdtrit(passes - 1, 0.975)) / 1.96 / math.sqrt(passes)
        error, of_mean = (scale * a.std(0, ddof=1) for a in (found, found.mean(1)))
        return AtCenter(found.mean(0), error, float(of_mean))

    @functools.cached_property
    def _by_chance(self) -> bool:
        """Whether two passes over the first batch at w* differ."""
        if not self._draws_at_random:
            return False
        center = self.posterior.center.unsqueeze(0)
        batch = self.samples.batch(slice(0, min(self.batch_size, len(self.samples))))
        first, other = (self._batch(center, batch, at, 0, ()) for at in _streams(2))
        return not torch.equal(first, other)

    @undisturbed
    def some_at_center(self, batches: int = 4, samples: int = 64) -> tuple[np.ndarray, np.ndarray]:
        """Positions and l_i(w*) of at least so many batches and samples, spread over all.

        Whole batches with their own randomness: in train mode a loss depends on its batch.
        """
        batches = max(batches, -(-samples // self.batch_size))
        starts = np.arange(0, len(self.samples), self.batch_size)
        starts = starts[np.unique(np.linspace(0, len(starts) - 1, batches, dtype=int))]
        index, losses = [], []
        for start in starts:
            stop = min(start + self.batch_size, len(self.samples))
            batch = self.samples.batch(slice(start, stop))
            center, passes = self.posterior.center.unsqueeze(0), _PASSES if self._by_chance else 1
            found = [self._batch(center, batch, at, int(start), ())[0] for at in _streams(passes)]
            losses.append(torch.stack(found).to(self._kept).mean(0).cpu().numpy())
            index.append(np.arange(start, stop))
        return np.concatenate(index), np.concatenate(losses)

    @torch.no_grad()
    def _losses(self, weights: Tensor, step: int, left_out: Collection[int]) -> Tensor:
        shape = len(weights), len(self.samples)
        out = torch.empty(shape, dtype=self._kept, device=weights.device)
        start = 0
        for batch in self.samples.batches(self.batch_size):
            stop = start + count(batch)
            out[:, start:stop] = self._batch(weights, batch, step, start, left_out)
            start = stop
        out[list(left_out)] = torch.nan
        return out

    @torch.no_grad()
    def _batch(
        self,
        weights: Tensor,
        batch: tuple[Tree, Tree],
        step: int,
        start: int,
        left_out: Collection[int],
    ) -> Tensor:
        """Losses (rows, batch) of one batch, which begins at sample ``start``."""
        if self.together:
            try:
                return vmap(lambda w: self._of_row(w, *batch))(weights)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # some operations can be run together with gradients only
                self.together = False
        rows = []
        for row, w in enumerate(weights):
            if row in left_out:
                rows.append(weights.new_full((count(batch),), torch.nan))
            elif self._draws_at_random:
                with own_stream(self._seeds[row], step, start + 1, weights.device):
                    rows.append(self._of_row(w, *batch))
            else:
                rows.append(self._of_row(w, *batch))
        return torch.stack(rows)

    def _of_row(self, weights: Tensor, x: Tree, y: Tree) -> Tensor:
        """Losses at one row; the loss itself always sees outputs in full precision."""
        if self.dtype != "bfloat16":
            return self.posterior.losses(weights, x, y)
        with torch.autocast(weights.device.type, dtype=torch.bfloat16):
            output = self.posterior.outputs(weights, x)
        return self.posterior.loss_of(in_full(output), y)


__all__ = ["AtCenter", "Observer"]
