"""Chains as they run: how they advance by steps of a kernel, and how they observe.

What is drawn at random, for minibatches and for noise, belongs to a chain and its seed alone.
"""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules.conv import _ConvNd

from probelib import schedule
from probelib.posterior import LocalPosterior, Samples, keep_random_state
from probelib.trace import ChainState, TraceMismatch

if TYPE_CHECKING:
    from probelib.sampler import SGLD

# On a CPU a wide network is observed faster one chain at a time (plain matrix products) than
# under vmap (batched ones); a small network is all overhead, and vmap shares it.
_SMALL = 2**16
# Items of a data set are kept on the device from one pass to the next if they take less than this.
_STAGED = 2**31
# Filters of warnings, torch.fx's recording and the global generators are those of all threads.
_ONE_AT_A_TIME = threading.RLock()


class Chains:
    """Chains that advance together on one device: their weights and their generators."""

    def __init__(
        self,
        posterior: LocalPosterior,
        observed: Samples,
        kernel: "SGLD",
        chains: int,
        seed: int,
        observe_batch_size: int | None,
        observe_dtype: str,
        first_chain: int,
    ):
        self.posterior, self.kernel = posterior, kernel
        self.data, self.observed = posterior.data, observed
        self.chains, self.center = chains, posterior.center
        self.seed, self.observe_dtype = seed, observe_dtype
        on_cpu = posterior.device.type == "cpu"
        self.step = 0
        self.weights = self.center.expand(chains, -1).clone()
        #: Chains that have diverged: they stay at w*, out of the way of those that go on.
        self.parked: list[int] = []
        self._drawn: np.ndarray | None = None  # the minibatches of a step that is not done yet
        self._noise = torch.empty_like(self.weights)
        self._full_batch = kernel.batch_size in (None, posterior.n_samples)
        self._seeds = np.random.SeedSequence(seed).spawn(first_chain + chains)[first_chain:]
        self._batch_rng, self._noise_rng = [], []
        for chain in self._seeds:
            for_batch, for_noise = chain.spawn(2)
            self._batch_rng.append(np.random.default_rng(for_batch))
            generator = torch.Generator(posterior.device)
            generator.manual_seed(int(for_noise.generate_state(1, np.uint64)[0]))
            self._noise_rng.append(generator)
        with keep_random_state(posterior.device):
            # Convolutions with weights of their own for each chain are run as one of many groups:
            # on a CPU slower than one chain after the other, and in many times the memory.
            apart = any(isinstance(m, _ConvNd) for m in posterior._model.modules())
            can = not apart and not posterior.train_mode and self._vmap_agrees()
            self.together = can and chains > 1  # one chain alone would only pay for vmap
            self._draws_at_random = not can  # as far as is known: vmap runs no model that does
            self.cost = schedule.cost_of_pass(
                lambda x, y: posterior.losses(self.center, x, y),
                *observed.batch(np.arange(min(4, len(observed)))),
            )
        self._observe_together = self.together and not (on_cpu and self.center.numel() > _SMALL)
        self._may_shrink = observe_batch_size is None
        self.observe_batch_size = observe_batch_size or schedule.observe_batch(
            self.cost.bytes, posterior.device, chains if self._observe_together else 1
        )
        self._anchor: Tensor | None = None
        self._all_gradients: Callable[..., tuple[Tensor, Tensor]] | None = None

    def stage(self) -> None:
        """Read data sets once, before they are read at every draw."""
        shared = self.observed is self.data
        self.data = self.data.staged(_STAGED)
        self.observed = self.data if shared else self.observed.staged(_STAGED)

    def at_center(self) -> np.ndarray:
        """l_i(w*) of all observed samples."""
        return self.observe(self.center.unsqueeze(0))[0].cpu().numpy()

    def some_at_center(self, batches: int = 4, samples: int = 64) -> tuple[np.ndarray, np.ndarray]:
        """Positions and l_i(w*) of at least so many batches and samples, spread over all.

        Whole batches with their own randomness: in train mode a loss depends on its batch.
        """
        batches = max(batches, -(-samples // self.observe_batch_size))
        starts = np.arange(0, len(self.observed), self.observe_batch_size)
        starts = starts[np.unique(np.linspace(0, len(starts) - 1, batches, dtype=int))]
        index, losses = [], []
        for start in starts:
            stop = min(start + self.observe_batch_size, len(self.observed))
            batch = self.observed.batch(slice(start, stop))
            seen = self._observe_batch(self.center.unsqueeze(0), *batch, step=0, start=int(start))
            losses.append(seen[0].float().cpu().numpy())
            index.append(np.arange(start, stop))
        return np.concatenate(index), np.concatenate(losses)

    def lost(self) -> list[int]:
        """The chains whose model gives no finite output any more."""
        found = []
        x, _ = self.observed.batch(schedule.watched(len(self.observed))[:64])
        with torch.no_grad():
            for chain, w in enumerate(self.weights):
                outputs = [torch.linalg.vector_norm(w - self.center)]
                with suppress(Exception):  # it may be the model itself that fails
                    outputs.append(self.posterior.outputs(w, x))
                if not all(bool(o.isfinite().all()) for o in outputs):
                    found.append(chain)
        return found

    def park(self, chain: int) -> None:
        """Leave a chain at w* for good."""
        self.parked = sorted({*self.parked, chain})
        self.weights[chain] = self.center

    def advance(self) -> Tensor:
        """One step of every chain. Returns the minibatch losses before it, shape (chains,).

        Where it raises, it may be called again: up to the noise nothing has changed.
        """
        x, y = self._minibatches()
        gradient, loss = self._gradients(x, y)
        if self.kernel.control_variate and not self._full_batch:
            anchored, _ = self._gradients(x, y, self.center.expand_as(self.weights))
            gradient = gradient - anchored + self._full_gradient()
        for row, generator in zip(self._noise, self._noise_rng, strict=True):
            row.normal_(generator=generator)
        self.kernel.step(
            self.weights,
            gradient,
            self._noise,
            center=self.center,
            n_beta=self.posterior.n_beta,
            localization=self.posterior.localization,
        )
        if self.parked:
            self.weights[self.parked] = self.center
        self.step += 1
        self._drawn = None
        return loss

    def _full_gradient(self) -> Tensor:
        """The gradient of L at w*, once."""
        if self._anchor is None:
            self._anchor = torch.zeros_like(self.center)
            for x, y in self.data.batches(self.observe_batch_size):
                gradient, _ = self._gradient(self.center, x, y)
                self._anchor += gradient * (len(y) / len(self.data))
        return self._anchor

    def observe(self, weights: Tensor, step: int = 0) -> Tensor:
        """Float32 losses of the observed samples at each row of ``weights``: (rows, n_observed)."""
        while True:
            try:
                return self._observe(weights, step)
            except torch.OutOfMemoryError:
                if not self._may_shrink or self.observe_batch_size == 1:
                    raise
                self.observe_batch_size //= 2  # the largest batch that fits, found

    @torch.no_grad()
    def _observe(self, weights: Tensor, step: int) -> Tensor:
        shape = len(weights), len(self.observed)
        out = torch.empty(shape, dtype=torch.float32, device=weights.device)
        start = 0
        for x, y in self.observed.batches(self.observe_batch_size):
            stop = start + len(y)
            out[:, start:stop] = self._observe_batch(weights, x, y, step=step, start=start)
            start = stop
        return out

    @torch.no_grad()
    def _observe_batch(
        self, weights: Tensor, x: Tensor, y: Tensor, *, step: int, start: int
    ) -> Tensor:
        """Losses of one batch, which begins at sample ``start``: (rows, batch)."""
        if self._observe_together:
            return vmap(self._losses, in_dims=(0, None, None))(weights, x, y)
        rows = []
        for c, w in enumerate(weights):
            if c in self.parked:
                rows.append(weights.new_full((len(y),), torch.nan))
                continue
            with self._own_randomness(c, step, start + 1):
                rows.append(self._losses(w, x, y))
        return torch.stack(rows)

    def _losses(self, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Losses as they are observed; the loss itself always sees outputs in full precision."""
        if self.observe_dtype != "bfloat16":
            return self.posterior.losses(weights, x, y)
        with torch.autocast(weights.device.type, dtype=torch.bfloat16):
            output = self.posterior.outputs(weights, x)
        return self.posterior.per_sample_loss(output.to(weights.dtype), y)

    def states(self) -> list[ChainState]:
        return [
            ChainState(self.step, w, noise.get_state(), batch.bit_generator.state)
            for w, noise, batch in zip(self.weights, self._noise_rng, self._batch_rng, strict=True)
        ]

    def restore(self, states: list[ChainState], path: Path | None) -> None:
        for c, state in enumerate(states):
            self.weights[c] = state.weights
            try:
                self._noise_rng[c].set_state(state.noise_rng)
            except (RuntimeError, TypeError) as error:
                raise TraceMismatch(
                    f"store {str(path)!r} can be read but not continued on "
                    f"{self.posterior.device}: its chains ran on another kind of device, whose "
                    "random numbers this one does not have. Choose another store"
                ) from error
            self._batch_rng[c].bit_generator.state = state.batch_rng
        self.step = states[0].step

    def _minibatches(self) -> tuple[Tensor, Tensor]:
        """Each chain's own minibatch, (chains, m, ...); for the full gradient one for all."""
        data, m = self.data, self.kernel.batch_size
        if self._full_batch:
            return data.batch(slice(0, len(data)))
        if self._drawn is None:
            self._drawn = np.stack(
                [r.choice(len(data), m, replace=False, shuffle=False) for r in self._batch_rng]
            )
        return data.batch(self._drawn)

    def _gradients(
        self, x: Tensor, y: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Gradients and values of the mean loss: at each chain's weights, or at others."""
        weights = self.weights if weights is None else weights
        shared = None if self._full_batch else 0
        if self.together:
            if self._all_gradients is None:
                every = vmap(grad_and_value(self._mean_loss), in_dims=(0, shared, shared))
                self._all_gradients = _recorded(every, weights, x, y)
            return self._all_gradients(weights, x, y)
        gradients, losses = [], []
        for c, w in enumerate(weights):
            if c in self.parked:
                gradients.append(torch.zeros_like(w))
                losses.append(w.new_zeros(()))
                continue
            with self._own_randomness(c, self.step, 0):
                xc, yc = (x, y) if self._full_batch else (x[c], y[c])
                gradient, loss = self._gradient(w, xc, yc)
            gradients.append(gradient)
            losses.append(loss)
        return torch.stack(gradients), torch.stack(losses)

    def _mean_loss(self, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self.posterior.losses(weights, x, y).mean()

    @torch.enable_grad()
    def _gradient(self, weights: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient and value of the mean loss by plain autograd, which runs every model."""
        weights = weights.detach().requires_grad_()
        loss = self._mean_loss(weights, x, y)
        if not loss.requires_grad:
            raise ValueError(
                "per_sample_loss has no gradient with respect to the weights; leave out what "
                "detaches it, such as .detach(), .item() or argmax"
            )
        return torch.autograd.grad(loss, weights)[0], loss.detach()

    @contextmanager
    def _own_randomness(self, chain: int, step: int, part: int) -> Iterator[None]:
        """Dropout and its like draw from a stream of this chain and step alone."""
        if not self._draws_at_random:
            yield
            return
        parent, device = self._seeds[chain], self.posterior.device
        own = np.random.SeedSequence(parent.entropy, spawn_key=(*parent.spawn_key, 2, step, part))
        seed = int(own.generate_state(1, np.uint64)[0] >> 1)
        with _ONE_AT_A_TIME, keep_random_state(device):  # of other threads, too
            if device.type == "cpu":
                torch.default_generator.manual_seed(seed)
            else:
                torch.get_device_module(device).manual_seed(seed)
            yield

    def _vmap_agrees(self) -> bool:
        """Whether torch.func can run this model for all chains at once, with the same result."""
        x, y = self.posterior.data.batch(slice(0, min(2, self.posterior.n_samples)))
        expected = self._gradient(self.center, x, y)
        try:
            with _ONE_AT_A_TIME, warnings.catch_warnings():
                # An operation that vmap would run chain by chain anyway.
                warnings.filterwarnings("error", ".*performance drop")
                every = vmap(grad_and_value(self._mean_loss))
                got = every(*(t.unsqueeze(0) for t in (self.center, x, y)))
        except Exception:  # whatever vmap cannot do, plain autograd just did
            return False
        return all(
            torch.allclose(g[0], e, rtol=1e-3, atol=1e-5)
            for g, e in zip(got, expected, strict=True)
        )


def _recorded(function: Callable, *args: Tensor) -> Callable:
    """The tensor operations of a function, without the Python around them (half of a small step).

    Only for what vmap runs: it takes no branch and draws nothing that depends on its arguments.
    """
    try:
        with _ONE_AT_A_TIME:
            return make_fx(lambda *a: function(*a))(*args)
    except Exception:  # what cannot be recorded runs all the same
        return function


__all__ = ["Chains"]
