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
from probelib.batches import Tree, anew, count, in_full, tree_leaves
from probelib.calling import given_to
from probelib.data import Samples
from probelib.observe_loss import losses_of_tokens, require_none_left_out
from probelib.plan import Observation
from probelib.randomness import chain_seeds, own_stream
from probelib.tokens import Places

# Passes at w* that a model which draws at random is averaged over.
_PASSES = 16


def _streams(passes: int) -> range:
    """Numbers of passes at w*, in place of a step: those after the first are of no step."""
    return range(0, passes * _NO_STEP, _NO_STEP)


_NO_STEP = 2**40


@dataclass(frozen=True)
class AtCenter:
    """l_i(w*) of the observed samples, as :meth:`Observer.losses` gives it.

    Attributes:
        loss: shape (n_observed,), nats.
        mcse: its standard error, shape (n_observed,), where the model draws at random; else None.
        mcse_of_mean: that of the mean over samples.
    """

    loss: np.ndarray
    mcse: np.ndarray | None
    mcse_of_mean: float


class Observer:
    """Evaluates the observed samples' losses, as a trace records them.

    With losses per token these come first, in the order of samples and positions and only those
    that there are (see :attr:`places`), and the samples' own losses after them.

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
        run: Observation,
        batch_size: int,
        seeds: list[np.random.SeedSequence] | None = None,
        together: bool = False,
        draws_at_random: bool = True,
    ):
        self.posterior, self.samples = run.posterior, run.observed
        self.observe_loss = run.observe_loss
        self._places: Places | None = None
        self.dtype, self.batch_size = run.plan.observe_dtype, batch_size
        self._kept = torch.promote_types(run.posterior.loss_dtype, torch.float32)
        # In train mode a loss depends on its batch: another size would be another trace.
        self._may_shrink = run.plan.observe_batch_size is None and not run.posterior.train_mode
        self._seeds = seeds or chain_seeds(run.plan.seed, run.plan.first_chain, 1)
        self.together, self._draws_at_random = together, draws_at_random

    def stage(self, samples: Samples) -> None:
        """Observe these from now on: the same, read once."""
        self.samples = samples

    @property
    def n_observed(self) -> int:
        """Losses per row of weights."""
        places = self.places
        return len(self.samples) + (0 if places is None else len(places))

    @property
    def places(self) -> Places | None:
        """Which samples have a loss at which positions; None where there is one loss a sample.

        Found at w* by a pass over all samples, where nobody has said it.
        """
        if self.observe_loss is not None and self._places is None:
            self._places = self._find_places()
        return self._places

    @places.setter
    def places(self, places: Places | None) -> None:
        self._places = places

    @undisturbed
    @torch.no_grad()
    def token_shape(self) -> list[int]:
        """Shape of a sample's positions, as the loss per token has them."""
        assert self.observe_loss is not None
        x, y = self.samples.batch(slice(0, 1))
        with own_stream(self._seeds[0], 0, 1, self.posterior.device):
            output = self.posterior.outputs(self.posterior.center, x)
        y = anew(self.posterior.in_own_type(y))
        return list(self.observe_loss(given_to(self.observe_loss, output), y).shape[1:])

    def token_ids(self) -> np.ndarray | None:
        """Targets of the tokens (sample, token), where there is a whole number for each."""
        if (places := self.places) is None:
            return None
        found = []
        for _, targets in self.samples.batches(self.batch_size):
            y, *others = tree_leaves(targets)
            if others:
                return None
            whole = isinstance(y, Tensor) and not (y.is_floating_point() or y.is_complex())
            if not whole or y[0].numel() != places.positions:
                return None
            found.append(y.flatten(1).cpu().numpy())
        return np.concatenate(found)

    @undisturbed
    @torch.no_grad()
    def _find_places(self) -> Places:
        center, found, start = self.posterior.center.unsqueeze(0), [], 0
        for batch in self.samples.batches(self.batch_size):
            losses = self._batch(center, batch, 0, start, ())[0, :, 1:]
            require_none_left_out(losses, batch[1], start)
            found.append((~losses.isnan()).cpu().numpy())
            start += len(losses)
        lengths = sorted({there.shape[1] for there in found})
        if len(lengths) > 1:
            raise ValueError(
                f"observe_loss returns {lengths[0]} positions for some samples and {lengths[-1]} "
                "for others; pad them to one number, with NaN as the loss where there is none"
            )
        there = np.concatenate(found)
        if not there.any():
            raise ValueError(
                "observe_loss is NaN at all positions of all samples; give at least one a loss"
            )
        return Places(there)

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
        samples = found[:, -len(self.samples) :]
        error, of_mean = (scale * a.std(0, ddof=1) for a in (found, samples.mean(1)))
        return AtCenter(found.mean(0), error, float(of_mean))

    @functools.cached_property
    def _by_chance(self) -> bool:
        """Whether two passes over the first batch at w* differ."""
        if not self._draws_at_random:
            return False
        center = self.posterior.center.unsqueeze(0)
        batch = self.samples.batch(slice(0, min(self.batch_size, len(self.samples))))
        first, other = (self._batch(center, batch, at, 0, ()) for at in _streams(2))
        return not bool(((first == other) | (first.isnan() & other.isnan())).all())

    @undisturbed
    def some_at_center(self, batches: int = 4, samples: int = 64) -> tuple[np.ndarray, np.ndarray]:
        """Places and l_i(w*) of at least so many batches and samples, spread over all.

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
            mean = torch.stack(found).to(self._kept).mean(0)
            losses.append(self._flat(mean.unsqueeze(0), start)[0].cpu().numpy())
            index.append(self._at(int(start), stop))
        return np.concatenate(index), np.concatenate(losses)

    @torch.no_grad()
    def _losses(self, weights: Tensor, step: int, left_out: Collection[int]) -> Tensor:
        shape = len(weights), self.n_observed
        out = torch.empty(shape, dtype=self._kept, device=weights.device)
        start = 0
        for batch in self.samples.batches(self.batch_size):
            losses = self._batch(weights, batch, step, start, left_out)
            stop = start + losses.shape[1]
            if self.places is None:
                out[:, start:stop] = losses
            else:
                out[:, self._at(start, stop)] = self._flat(losses, start).to(self._kept)
            start = stop
        out[list(left_out)] = torch.nan
        return out

    def _at(self, start: int, stop: int) -> np.ndarray:
        """Places of the losses of some samples among all."""
        samples, places = np.arange(start, stop), self.places
        if places is None:
            return samples
        tokens = np.arange(places.first[start], places.first[stop])
        return np.concatenate([tokens, len(places) + samples])

    def _flat(self, losses: Tensor, start: int) -> Tensor:
        """Losses (rows, batch, 1 + positions) of a batch as (rows, n), tokens first.

        Raises:
            ValueError: a loss at a position where w* has none.
        """
        if (places := self.places) is None:
            return losses
        there = torch.from_numpy(places.there[start : start + losses.shape[1]]).to(losses.device)
        more = ~losses[..., 1:].isnan() & ~there
        if more.any():
            _, sample, token = more.nonzero()[0].tolist()
            raise ValueError(
                f"observe_loss has a loss of sample {start + sample} at position {token} for some "
                "weights and NaN there for others; which positions have a loss must follow from "
                "the target alone"
            )
        return torch.cat([losses[..., 1:][:, there], losses[..., 0]], 1)

    @torch.no_grad()
    def _batch(
        self,
        weights: Tensor,
        batch: tuple[Tree, Tree],
        step: int,
        start: int,
        left_out: Collection[int],
    ) -> Tensor:
        """Losses (rows, batch) of one batch, which begins at sample ``start``.

        With losses per token (rows, batch, 1 + positions), those of the samples first.
        """
        if self.together:
            try:
                return vmap(lambda w: self._of_row(w, *batch))(weights)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # some operations can be run together with gradients only
                self.together = False
        rows: list[Tensor] = []
        for row, w in enumerate(weights):
            if row in left_out:
                each = () if (places := self.places) is None else (1 + places.positions,)
                rows.append(weights.new_full((count(batch), *each), torch.nan))
            elif self._draws_at_random:
                with own_stream(self._seeds[row], step, start + 1, weights.device):
                    rows.append(self._of_row(w, *batch))
            else:
                rows.append(self._of_row(w, *batch))
        return torch.stack(rows)

    def _of_row(self, weights: Tensor, x: Tree, y: Tree) -> Tensor:
        """Losses at one row; the loss itself always sees outputs in full precision."""
        if self.dtype != "bfloat16":
            output = self.posterior.outputs(weights, x)
        else:
            with torch.autocast(weights.device.type, dtype=torch.bfloat16):
                output = self.posterior.outputs(weights, x)
            output = in_full(output)
        if self.observe_loss is None:
            return self.posterior.loss_of(output, y)
        # First: the posterior's loss may write into the outputs.
        tokens = losses_of_tokens(self.observe_loss, output, self.posterior.in_own_type(y))
        return torch.cat([self.posterior.loss_of(output, y)[:, None], tokens], 1)


__all__ = ["AtCenter", "Observer"]
