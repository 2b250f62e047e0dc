r"""What a sampler is: three methods, and a state that is a dict of tensors.

Every sampler here draws from the local posterior (Eq. 1), whose potential is
:math:`U(w) = n\beta L(w) + \frac\gamma2 \lVert w - w^* \rVert^2`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from probelib.arguments import require_kind, require_positive, require_whole
from probelib.fingerprint import plain
from probelib.gradients import FullGradient, GradientEstimator, Minibatch

State = dict[str, Tensor]


class StepGradient(Protocol):
    """What a step is given to ask for gradients, with the samples of this step."""

    def __call__(self, weights: Tensor) -> Tensor:
        """The estimated gradient of L at weights (chains, n_parameters)."""

    def with_loss(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the mean losses (chains,) of these samples there, nats."""


@dataclass(frozen=True)
class Target:
    r"""The local posterior (Eq. 1), as far as a sampler needs it.

    Attributes:
        center: w*, shape (n_parameters,).
        n_beta: inverse temperature times the number of samples.
        localization: precision of the Gaussian around w*.
    """

    center: Tensor
    n_beta: float
    localization: float

    def drift(self, weights: Tensor, gradient: Tensor) -> Tensor:
        r"""The gradient of the potential, :math:`n\beta\, \nabla L + \gamma (w - w^*)`.

        Args:
            weights: w, shape (chains, n_parameters).
            gradient: of L there, the same shape.
        """
        drift = gradient.mul(self.n_beta).add_(weights, alpha=self.localization)
        return drift.sub_(self.center, alpha=self.localization)


@dataclass(frozen=True)
class Lengths:
    r"""What one step amounts to, for estimates of its bias; of SGLD all follow from its step size.

    Attributes:
        noise_step: :math:`\epsilon` of the SGLD in which the noise of minibatches widens the
            posterior as much: in a slow direction, by :math:`\epsilon (n\beta)^2 s^2 / 4` parts.
        kick: by how many gradients of the potential a step itself moves the weights:
            :math:`\epsilon / 2`.
        localization_step: :math:`\epsilon` of the SGLD whose bias is as large where only the
            localization holds a weight; 0 where there is none. Heeded of samplers of order one.
    """

    noise_step: float
    kick: float
    localization_step: float


@dataclass(frozen=True)
class Sampler(ABC):
    """A sampler of the local posterior: how chains advance by one step.

    A subclass defines :meth:`step`, and :meth:`init` if its state is more than the weights. All
    that changes along a chain belongs in the state, which goes into checkpoints; the sampler
    itself never changes. Some say more, which is no part of this class: a trace is known by its
    sampler's code, so that what is added here makes all kept traces strangers.
    ``gradients_per_step`` is how many gradients of a batch a step asks for (where it is not said,
    1), and ``lengths(target)`` gives the :class:`Lengths` of a step where they are not SGLD's.

    Args:
        step_size: of one step, in squared units of weight for the Langevin samplers.
        batch_size: m, drawn without replacement at each step; None for the full gradient.
        gradient: estimator of the gradient of L, in place of ``batch_size``, such as
            :class:`probelib.ControlVariate`.

    Raises:
        ValueError: a non-positive value, or a ``batch_size`` that is not the estimator's.
        TypeError: ``gradient`` is no gradient estimator.
    """

    step_size: float
    batch_size: int | None = None
    gradient: GradientEstimator | None = None

    #: In which power of step_size its law differs from Eq. 1 with the full gradient, on a
    #: quadratic at least: 1 for SGLD, 2 or more where that bias is gone; None where nobody knows; 0
    #: where there is no such bias on any L, as an accept test (with the full gradient) sees to.
    #: The noise of minibatches adds a bias of first order to any of them.
    order: ClassVar[int | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "step" in vars(cls) and "order" not in vars(cls):
            cls.order = None  # what holds for one step need not hold for another

    def __post_init__(self) -> None:
        object.__setattr__(self, "step_size", require_positive("step_size", self.step_size))
        batch_size = self.batch_size
        if batch_size is not None:
            batch_size = require_whole("batch_size", batch_size)
        gradient = self.gradient
        if gradient is None:
            gradient = FullGradient() if batch_size is None else Minibatch(batch_size)
        require_kind(
            "gradient", gradient, GradientEstimator, "a gradient estimator, or a batch_size alone"
        )
        if batch_size not in (None, gradient.batch_size):
            raise ValueError(
                f"batch_size is {batch_size}, but gradient has {gradient.batch_size}; give one of "
                "the two"
            )
        object.__setattr__(self, "batch_size", gradient.batch_size)
        object.__setattr__(self, "gradient", gradient)

    def init(self, weights: Tensor) -> State:
        """The state of chains that stand at ``weights``, shape (chains, n_parameters).

        Every tensor of a state has one row per chain; "weights" is one of them.
        """
        return {"weights": weights}

    @abstractmethod
    def step(
        self,
        state: State,
        gradient: StepGradient,
        noise: Callable[[], Tensor],
        target: Target,
    ) -> State:
        """The state after one step of all chains. The old one is left as it is.

        Args:
            state: of all chains, as :meth:`init` or the step before returned it.
            gradient: estimates the gradient of L at weights (chains, n_parameters), with the
                samples of this step; may be called more than once per step. Of the first call it
                is recorded where it was made, and what it gave. ``gradient.with_loss(weights)``
                gives also the mean loss of these samples, shape (chains,); who calls step with
                another callable, as a test may, need not have it for a step that does not ask.
            noise: draws standard normals of the same shape, new ones at each call, to be left as
                they are. It is the only source of chance: what torch's global generator gives, no
                seed of the run fixes.
            target: what to sample from.
        """

    def metric(self, state: State, target: Target) -> Tensor | None:
        r"""By how much each weight's step is longer than ``step_size``, or None: by nothing.

        Shape (chains, n_parameters), G where a step is :math:`-\frac{\epsilon}{2} G \nabla U`.
        """
        return None

    def identity(self) -> dict[str, Any]:
        """What the draws depend on beside the sampler's code: its name and its settings."""
        settings = {k: plain(v) for k, v in vars(self).items() if k != "batch_size"}
        return {"name": type(self).__qualname__} | settings  # the gradient has the batch_size

    def __repr__(self) -> str:
        # An estimator that follows from batch_size is not named beside it.
        follows = type(self.gradient) in (FullGradient, Minibatch)
        left_out = "gradient" if follows else "batch_size"
        shown = {k: v for k, v in vars(self).items() if k != left_out}
        settings = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        return f"{type(self).__name__}({settings})"


def check_state(state: Any, chains: int, weights: Tensor, before: State | None = None) -> State:
    """A state as a sampler returned it, found to be one, with the same names as the one before.

    Raises:
        TypeError, ValueError: saying what is wrong with it.
    """
    where = "the state that sampler returned"
    if not isinstance(state, dict) or not isinstance(state.get("weights"), Tensor):
        raise TypeError(
            f"{where} is a {type(state).__name__} without a tensor 'weights'; return a dict of "
            "tensors, one row per chain"
        )
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.ndim == 0 or len(tensor) != chains:
            shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(
                f"{where} has {shape} as {name!r}; its first dimension must count the {chains} "
                "chains"
            )
    if before is not None and set(state) != set(before):
        raise ValueError(
            f"{where} holds {', '.join(sorted(state))}, but the one before "
            f"{', '.join(sorted(before))}; give init() all that the state will hold"
        )
    found = state["weights"]
    if found.shape != weights.shape or found.dtype != weights.dtype:
        raise ValueError(
            f"{where} has weights of shape {tuple(found.shape)} and type {found.dtype}; keep "
            f"{tuple(weights.shape)} and {weights.dtype}"
        )
    return {name: tensor.detach() for name, tensor in state.items()}


__all__ = ["Lengths", "Sampler", "State", "StepGradient", "Target", "check_state"]
