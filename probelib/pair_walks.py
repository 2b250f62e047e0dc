"""The walks whose neighbours are pairs of gradients: their weights, and gradients there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probelib.arguments import require_whole
from probelib.data import Data, Samples
from probelib.posterior import LocalPosterior
from probelib.randomness import keep_random_state
from probelib.sample_gradients import SampleGradients, or_one

_FORMAT = 2
_FEW_ROWS = 64
_ROWS = 64  # that are widened to the model's precision at once
_SAME = 8  # that are multiplied with themselves elsewhere


@dataclass(frozen=True)
class Walks:
    """What all chains of a call have in common: see the arguments of :func:`gradient_pairs`."""

    gradients: SampleGradients
    observed: Samples
    pairs: int
    seed: int
    batch_size: int
    memory: int | None
    layers: list[str] | None

    @property
    def posterior(self) -> LocalPosterior:
        return self.gradients.posterior

    def identity(self) -> dict[str, Any]:
        """All that a chain's numbers depend on, except which chain it is."""
        identity = self.posterior.fingerprint()
        shared = self.observed is self.posterior.data
        return (
            identity
            | {
                "observed_data": (
                    identity["sampling_data"] if shared else self.observed.fingerprint()
                ),
                "pairs": self.pairs,
                "seed": self.seed,
                "gradients": str(self.gradients.dtype).removeprefix("torch."),
                "format": _FORMAT,
            }
            | ({} if self.layers is None else {"layers": self.layers})
        )

    def parts(self, group: list[int]) -> list[tuple[int, slice, list[int]]]:
        """The parameters in a group of layers, or the group as a whole where none are wanted.

        Returns:
            Of each its place along ``layer``, its columns in the rows of the group, and lengths
            into which these are cut to be multiplied.
        """
        sizes = [self.gradients.sizes[at] for at in group]
        if self.layers is None:
            return [(0, slice(0, sum(sizes)), sizes)]
        first, found, start = sum(self.gradients.sizes[: group[0]]), [], 0
        for place, size in enumerate(self.posterior.parameters.values()):
            if first <= start < first + sum(sizes):
                found.append((place, slice(start - first, start - first + size), [size]))
            start += size
        return found

    def weights(self, chain: int) -> Iterator[tuple[Tensor, float | None]]:
        """Weights along a chain, each with its correlation to those before it.

        The normals are drawn on the host, so that a walk is the same on every kind of device.
        """
        # Not spawn(chains)[chain]: a chain must not depend on how many there are.
        seeds = np.random.SeedSequence(self.seed, spawn_key=(chain,))
        rng = np.random.default_rng(seeds.spawn(1)[0])
        correlation = (rng.permutation(self.pairs) + rng.random(self.pairs)) / self.pairs
        generator = torch.Generator()
        generator.manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> 1))
        center = self.posterior.center

        def normals() -> Tensor:
            drawn = torch.empty_like(center, device="cpu").normal_(generator=generator)
            return drawn.to(center.device)

        away = normals()
        yield center + away / self.posterior.localization**0.5, None
        for theta in map(float, correlation):
            away = theta * away + (1 - theta**2) ** 0.5 * normals()
            yield center + away / self.posterior.localization**0.5, theta

    def write(
        self,
        out: Tensor,
        losses: Tensor,
        weights: Tensor,
        group: list[int],
        samples: np.ndarray | None = None,
    ) -> None:
        """Gradients with respect to a group of layers, each over its loss, and the losses.

        Args:
            out: (samples, sum of the layers' sizes), overwritten.
            losses: (samples,), overwritten.
            weights: flat, shape (n_parameters,).
            group: positions of layers.
            samples: positions of the samples wanted; default: all.

        Raises:
            ValueError: a loss is not finite.
        """
        n = len(self.observed) if samples is None else len(samples)
        with keep_random_state(self.posterior.device):
            for start in range(0, n, self.batch_size):
                part = slice(start, min(start + self.batch_size, n))
                x, y = self.observed.batch(part if samples is None else samples[part])
                losses[part] = self.gradients.write(out[part], weights, x, y, group)
        if not losses.isfinite().all():
            at = int((~losses.isfinite()).nonzero()[0, 0])
            bad = at if samples is None else int(samples[at])
            gamma = self.posterior.localization
            raise ValueError(
                f"localization is {gamma:g}, at which sample {bad} has a non-finite loss "
                f"with every weight about {float(gamma) ** -0.5:.3g} away from w*; raise it"
            )

    def of_mean_loss(
        self, weights: Tensor, rows: Tensor, losses: Tensor, columns: slice
    ) -> tuple[float, Tensor]:
        """L, and some columns of its gradient, over the samples of the posterior.

        Args:
            weights: flat, shape (n_parameters,).
            rows: what :meth:`write` gave there, of ``columns``.
            losses: of the observed samples.
            columns: the part of the weights.
        """
        posterior = self.posterior
        if self.observed is posterior.data:
            parts = zip(rows.split(_ROWS), or_one(losses).split(_ROWS), strict=True)
            slope = sum(scale @ block.to(scale.dtype) for block, scale in parts)
            return float(losses.double().mean()), slope / len(losses)
        mean_loss, slope = self.mean_loss(weights)
        return mean_loss, slope[columns]

    def mean_loss(self, weights: Tensor) -> tuple[float, Tensor]:
        """L and its gradient over the samples of the posterior, by a pass over them.

        Raises:
            ValueError: one of them is not finite.
        """
        posterior = self.posterior
        moving, total = weights.clone().requires_grad_(), 0.0
        slope = torch.zeros_like(weights)
        with torch.enable_grad(), keep_random_state(posterior.device):
            for x, y in posterior.data.batches(self.batch_size):
                own = posterior.losses(moving, x, y)
                slope += torch.autograd.grad(own.sum(), moving)[0]
                total += float(own.detach().double().sum())
        if not np.isfinite(total) or not slope.isfinite().all():
            gamma = posterior.localization
            raise ValueError(
                f"localization is {gamma:g}, at which data has a non-finite loss or gradient with "
                f"every weight about {float(gamma) ** -0.5:.3g} away from w*; raise it"
            )
        return total / posterior.n_samples, slope / posterior.n_samples

    def not_finite(self, sample: int) -> ValueError:
        """What to say of a sample whose gradient is not finite along a walk."""
        return ValueError(
            f"observe has sample {sample} with a non-finite gradient near w*; "
            f"remove it, or raise localization ({self.posterior.localization:g})"
        )


def walks_of(
    posterior: LocalPosterior,
    observe: Data | None,
    chains: int,
    pairs: int,
    seed: int,
    batch_size: int,
    memory: int | None,
    by_layer: bool = False,
) -> Walks:
    """The walks of a call, its arguments checked: see :func:`probelib.gradient_pairs`.

    Raises:
        ValueError: a bad argument, or a posterior in train mode.
    """
    for name, value, least in (
        ("chains", chains, 2),
        ("pairs", pairs, 1),
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
    ):
        require_whole(name, value, least)
    if posterior.train_mode:
        raise ValueError(
            "posterior is in train mode, where a loss may depend on its batch and on chance; "
            "gradient pairs need train_mode=False"
        )
    if observe is None:
        observed = posterior.data
    else:
        observed = Samples(observe, posterior.device, "observe")
        posterior.check(observed)
    gradients = SampleGradients(posterior, observed)
    layers = list(posterior.parameters) if by_layer else None
    return Walks(gradients, observed, int(pairs), int(seed), batch_size, memory, layers)


def inner_products(rows: Tensor, vector: Tensor) -> Tensor:
    """Inner products of all rows with a vector, (n,), summed in its precision."""
    parts = [block.to(vector.dtype) @ vector for block in rows.split(_ROWS)]
    return torch.cat(parts).double()


def products_of(before: Tensor, here: Tensor, sizes: list[int]) -> Tensor:
    """Inner products of all rows with all, (m, n), layer by layer: bfloat16 sums stay short."""
    dtype = torch.promote_types(before.dtype, torch.float32)
    product = torch.zeros(len(before), len(here), dtype=dtype, device=here.device)
    at = 0
    for size in sizes:
        columns = slice(at, at + size)
        product += (_filled(before[:, columns]) @ here[:, columns].T)[: len(before)].to(dtype)
        at += size
    return product


def _filled(rows: Tensor) -> Tensor:
    """Rows of bfloat16 on a CPU, with zeros below where there are few.

    oneDNN (with torch 2.14) ends the process by a division by zero in products of 8, 16, 24 or 32
    rows on one thread, where their size is 1.5 x 2^20: 24 of 65,536, for instance.
    """
    lacking = _FEW_ROWS - len(rows)
    if lacking <= 0 or rows.dtype != torch.bfloat16 or rows.device.type != "cpu":
        return rows
    return torch.cat([rows, rows.new_zeros(lacking, rows.shape[1])])


def products_of_same(before: Tensor, here: Tensor) -> Tensor:
    """Inner products of each row with the same one there, (n,), in float64 or float32."""
    dtype = torch.promote_types(before.dtype, torch.float32)
    parts = zip(before.split(_SAME), here.split(_SAME), strict=True)
    return torch.cat([(a.to(dtype) * b.to(dtype)).sum(1) for a, b in parts]).double()


@torch.no_grad()
def losses_at_center(walks: Walks) -> np.ndarray:
    """Losses of the observed samples at w*, (n,)."""
    posterior = walks.posterior
    batches = walks.observed.batches(walks.batch_size)
    parts = [posterior.losses(posterior.center, x, y) for x, y in batches]
    return torch.cat(parts).cpu().numpy()


__all__ = [
    "Walks",
    "inner_products",
    "losses_at_center",
    "products_of",
    "products_of_same",
    "walks_of",
]
