"""The random numbers of chains: each chain's own, from the seed of the run alone.

Chain c has the children of ``numpy.random.SeedSequence(seed).spawn(chains)[c]``: one for its
minibatches, one for its noise. What a model itself draws, as dropout does, comes from a stream of
the chain and the step. No global generator is left changed.
"""

import random
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Global generators, filters of warnings and torch.fx's recording are those of all threads.
ONE_THREAD = threading.RLock()


def chain_seeds(seed: int, first: int, count: int) -> list[np.random.SeedSequence]:
    """The seeds of some chains of a run."""
    return np.random.SeedSequence(seed).spawn(first + count)[first:]


def around(center: Tensor, precision: float, draws: int, seed: int) -> Iterator[Tensor]:
    """Draws from a Gaussian around weights, made on the host: the same on every kind of device.

    For a seed they lie in the same directions at every precision.

    Args:
        center: shape (n_parameters,), that of each draw.
        precision: of each weight, such as a localization.
        draws: how many.
        seed: draw t depends on it and t alone.
    """
    generator = torch.Generator()
    state = np.random.SeedSequence(seed, spawn_key=(0,)).generate_state(1, np.uint64)[0]
    generator.manual_seed(int(state >> 1))
    for _ in range(draws):
        normal = torch.empty_like(center, device="cpu").normal_(generator=generator)
        yield center + normal.to(center.device) / precision**0.5


class Draws:
    """What a group of chains draws: minibatches and noise.

    Within a step the same numbers come again if the step is taken again, after an error: only
    :meth:`next_step` moves on.

    Args:
        seeds: one per chain.
        like: weights (chains, n_parameters), whose shape, type and device the noise has.
    """

    def __init__(self, seeds: list[np.random.SeedSequence], like: Tensor):
        self._like = like
        self._batch_rng, self._noise_rng = [], []
        for seed in seeds:
            for_batch, for_noise = seed.spawn(2)
            self._batch_rng.append(np.random.default_rng(for_batch))
            generator = torch.Generator(like.device)
            generator.manual_seed(int(for_noise.generate_state(1, np.uint64)[0]))
            self._noise_rng.append(generator)
        self._index: np.ndarray | None = None
        self._normals: list[Tensor] = []
        self._versions: list[int] = []
        self._handed_out = 0

    def begin(self) -> None:
        """Begin a step, or begin it again."""
        self._handed_out = 0

    def next_step(self) -> None:
        """What was drawn is used up."""
        self._index, self._normals, self._versions = None, [], []

    def minibatch(self, n: int, size: int) -> np.ndarray:
        """Positions of ``size`` of n samples for each chain, without replacement."""
        if self._index is None:
            drawn = [r.choice(n, size, replace=False, shuffle=False) for r in self._batch_rng]
            self._index = np.stack(drawn)
        return self._index

    def noise(self) -> Tensor:
        """Standard normals, shape (chains, n_parameters): new ones at each call in a step."""
        if self._handed_out == len(self._normals):
            drawn = torch.empty_like(self._like)
            for row, generator in zip(drawn, self._noise_rng, strict=True):
                row.normal_(generator=generator)
            self._normals.append(drawn)
            self._versions.append(0 if drawn.is_inference() else drawn._version)
        self._handed_out += 1
        return self._normals[self._handed_out - 1]

    def changed_in_place(self) -> bool:
        """Whether somebody wrote into the normals of this step."""
        now = [0 if drawn.is_inference() else drawn._version for drawn in self._normals]
        return now != self._versions

    def states(self) -> tuple[Tensor, list[dict[str, Any]]]:
        """Of the generators of noise and of minibatches, one row per chain."""
        noise = torch.stack([generator.get_state() for generator in self._noise_rng])
        return noise, [dict(generator.bit_generator.state) for generator in self._batch_rng]

    def restore(self, noise: Tensor, batch: list[dict[str, Any]]) -> None:
        """Continue from :meth:`states`.

        Raises:
            RuntimeError, TypeError: they are those of another kind of device.
        """
        for generator, state in zip(self._noise_rng, noise, strict=True):
            generator.set_state(state.clone())  # it takes an aligned tensor of its own only
        for rng, state in zip(self._batch_rng, batch, strict=True):
            rng.bit_generator.state = state
        self.next_step()


@contextmanager
def own_stream(
    seed: np.random.SeedSequence, step: int, part: int, device: torch.device
) -> Iterator[None]:
    """Dropout and its like draw from a stream of this chain, step and part of it alone.

    Whether from torch's generators, NumPy's or Python's.
    """
    own = np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, 2, step, part))
    number = int(own.generate_state(1, np.uint64)[0] >> 1)
    with ONE_THREAD, keep_random_state(device), keep_host_random_state():  # of other threads, too
        random.seed(number)
        np.random.seed(number % 2**32)  # noqa: NPY002
        if device.type == "cpu":
            torch.default_generator.manual_seed(number)
        else:
            torch.get_device_module(device).manual_seed(number)
        yield


def keep_random_state(device: torch.device) -> AbstractContextManager[None]:
    """Puts the global torch generators of the CPU and of ``device`` back at the end."""
    if device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=device.type)


def host_random_state() -> tuple[Any, str]:
    """Of the global generators of Python and NumPy, to be compared."""
    return random.getstate(), repr(np.random.get_state(legacy=False))  # noqa: NPY002


@contextmanager
def keep_host_random_state() -> Iterator[None]:
    """Puts the global generators of Python, NumPy and torch's CPU back at the end."""
    pythons, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)  # noqa: NPY002


def _generators(device: torch.device) -> list[bytes]:
    """States of torch's global generators, to be compared."""
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(device))
    return [state.cpu().numpy().tobytes() for state in states]


@contextmanager
def no_draws(device: torch.device, what: str, who: str = "model") -> Iterator[None]:
    """Refuse what draws at random inside (ValueError); no generator is left changed."""
    with keep_host_random_state(), keep_random_state(device):
        before = _generators(device), host_random_state()
        yield
        if _generators(device) != before[0] or host_random_state() != before[1]:
            raise ValueError(
                f"{who} draws at random in eval mode, so that it has no {what}; switch that off, "
                "as dropout is in eval mode"
            )


__all__ = [
    "ONE_THREAD",
    "Draws",
    "around",
    "chain_seeds",
    "host_random_state",
    "keep_host_random_state",
    "keep_random_state",
    "no_draws",
    "own_stream",
]
