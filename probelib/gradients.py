r"""Estimators of the gradient of L, apart from the samplers that use them.

An estimator says how many samples per step draws, and what to make of their gradients. The chains
give it the mean gradient of a batch (:class:`BatchGradients`); a sampler only sees the result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from probelib.arguments import require_whole
from probelib.batches import Tree
from probelib.fingerprint import plain

#: Inputs and targets, each a tensor or tensors in the containers that the data have.
Batch = tuple[Tree, Tree]


class BatchGradients(Protocol):
    """What chains offer to an estimator."""

    @property
    def center(self) -> Tensor:
        """w*, shape (n_parameters,)."""

    def of_batch(self, weights: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean gradients (chains, n_parameters) and losses (chains,) of a batch for each chain."""

    def of_all_at_center(self) -> Tensor:
        """The gradient of L at w*, over all samples: shape (n_parameters,), computed once."""


class GradientEstimator(ABC):
    """Estimates the gradient of L from the samples of a step."""

    #: Samples per step, drawn without replacement; None for all of them.
    batch_size: int | None = None
    #: Gradients of a batch that one estimate takes, for the cost of a step.
    evaluations: int = 1

    @abstractmethod
    def __call__(
        self, weights: Tensor, batch: Batch, gradients: BatchGradients
    ) -> tuple[Tensor, Tensor]:
        """Estimates for all chains.

        Args:
            weights: shape (chains, n_parameters).
            batch: inputs and targets, (chains, m, ...), or (n, ...) for the full gradient.
            gradients: of batches.

        Returns:
            Gradients of L (chains, n_parameters), and the batch's mean losses (chains,).
        """

    def identity(self) -> dict[str, Any]:
        """Its name and its settings."""
        return {"name": type(self).__qualname__} | {k: plain(v) for k, v in vars(self).items()}


@dataclass(frozen=True)
class FullGradient(GradientEstimator):
    """The gradient itself, of all samples."""

    def __call__(
        self, weights: Tensor, batch: Batch, gradients: BatchGradients
    ) -> tuple[Tensor, Tensor]:
        return gradients.of_batch(weights, batch)


@dataclass(frozen=True)
class Minibatch(GradientEstimator):
    """The mean gradient of a minibatch.

    Args:
        batch_size: m, drawn without replacement at each step.
    """

    batch_size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "batch_size", require_whole("batch_size", self.batch_size))

    def __call__(
        self, weights: Tensor, batch: Batch, gradients: BatchGradients
    ) -> tuple[Tensor, Tensor]:
        return gradients.of_batch(weights, batch)


@dataclass(frozen=True)
class ControlVariate(Minibatch):
    r"""A minibatch's gradient, less its gradient at w*, plus that of all samples there.

    :math:`\nabla \hat L_B(w) - \nabla \hat L_B(w^*) + \nabla L(w^*)` (Baker et al., 2019). Its
    noise vanishes at w* and grows with the distance from there, so that it pays where the chain
    stays near; it costs a second gradient per step, and one of all samples at the start.

    Args:
        batch_size: m, drawn without replacement at each step.
    """

    evaluations = 2

    def __call__(
        self, weights: Tensor, batch: Batch, gradients: BatchGradients
    ) -> tuple[Tensor, Tensor]:
        gradient, loss = gradients.of_batch(weights, batch)
        anchor, _ = gradients.of_batch(gradients.center.expand_as(weights), batch)
        return gradient - anchor + gradients.of_all_at_center(), loss


def gradient_of(sampler: Any) -> GradientEstimator:
    """The estimator that a sampler uses: its ``gradient``, or what its ``batch_size`` says."""
    gradient = getattr(sampler, "gradient", None)
    if isinstance(gradient, GradientEstimator):
        return gradient
    batch_size = getattr(sampler, "batch_size", None)
    return FullGradient() if batch_size is None else Minibatch(batch_size)


__all__ = [
    "BatchGradients",
    "ControlVariate",
    "FullGradient",
    "GradientEstimator",
    "Minibatch",
    "gradient_of",
]
