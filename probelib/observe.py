"""Losses of the observed samples at given weights, batch by batch."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from probelib.ambient import undisturbed
from probelib.data import Samples
from probelib.plan import Run
from probelib.randomness import chain_seeds, own_stream


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

    def at_center(self) -> np.ndarray:
        """l_i(w*) of all observed samples."""
        return self.losses(self.posterior.center.unsqueeze(0))[0].cpu().numpy()

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
            found = self._batch(self.posterior.center.unsqueeze(0), batch, 0, int(start), ())
            losses.append(found[0].to(self._kept).cpu().numpy())
            index.append(np.arange(start, stop))
        return np.concatenate(index), np.concatenate(losses)

    @torch.no_grad()
    def _losses(self, weights: Tensor, step: int, left_out: Collection[int]) -> Tensor:
        shape = len(weights), len(self.samples)
        out = torch.empty(shape, dtype=self._kept, device=weights.device)
        start = 0
        for batch in self.samples.batches(self.batch_size):
            stop = start + len(batch[1])
            out[:, start:stop] = self._batch(weights, batch, step, start, left_out)
            start = stop
        out[list(left_out)] = torch.nan
        return out

    @torch.no_grad()
    def _batch(
        self,
        weights: Tensor,
        batch: tuple[Tensor, Tensor],
        step: int,
        start: int,
        left_out: Collection[int],
    ) -> Tensor:
        """Losses (rows, batch) of one batch, which begins at sample ``start``."""
        if self.together:
            try:
                return vmap(self._of_row, in_dims=(0, None, None))(weights, *batch)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # some operations can be run together with gradients only
                self.together = False
        rows = []
        for row, w in enumerate(weights):
            if row in left_out:
                rows.append(weights.new_full((len(batch[1]),), torch.nan))
            elif self._draws_at_random:
                with own_stream(self._seeds[row], step, start + 1, weights.device):
                    rows.append(self._of_row(w, *batch))
            else:
                rows.append(self._of_row(w, *batch))
        return torch.stack(rows)

    def _of_row(self, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Losses at one row; the loss itself always sees outputs in full precision."""
        if self.dtype != "bfloat16":
            return self.posterior.losses(weights, x, y)
        with torch.autocast(weights.device.type, dtype=torch.bfloat16):
            output = self.posterior.outputs(weights, x)
        return self.posterior.loss_of(output.to(weights.dtype), y)


__all__ = ["Observer"]
