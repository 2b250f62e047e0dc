r"""Hamiltonian Monte Carlo (Duane et al., 1987; Neal, 2011), exact up to Monte-Carlo error.

A fresh momentum :math:`p \sim \mathcal N(0, I)`, then leapfrog steps of :math:`h`,

.. math::

   p \leftarrow p - \tfrac h2 \nabla U(w), \quad w \leftarrow w + h\, p, \quad
   p \leftarrow p - \tfrac h2 \nabla U(w),

and the accept test: where they lead is taken with probability :math:`\min(1, e^{-\Delta H})`, H
being :math:`U(w) + |p|^2 / 2`, and else the chain stays. So Eq. 1 is its law at every step size;
one that is too long shows as proposals that are refused, not as a wrong number.

h is drawn anew at each step, for each chain, from :math:`\sqrt\epsilon\,(1 \pm 0.2)`: with a fixed
one, a direction whose period fits the trajectory comes back to where it was, and is never sampled.

**Digits.** Energies are added up in float64. The losses of a float32 model have its rounding all
the same, which makes an error of :math:`n\beta` times it in :math:`\Delta H`: about :math:`6 \cdot
10^{-8}\, n\beta L`. Where that is more than a few hundredths, use a float64 model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from probelib.arguments import require_whole, shown
from probelib.gradients import FullGradient, Minibatch
from probelib.samplers.base import Sampler, State, StepGradient, Target

#: Parts by which the step of a trajectory is longer or shorter.
_SPREAD = 0.2


class AcceptTest(Sampler):
    """What samplers with an accept test share: the full gradient alone, and their state."""

    order: ClassVar[int | None] = 0
    #: Whether the state holds, as "acceptance", the probability of each chain's last proposal.
    has_accept_test: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.gradient) is not FullGradient:
            given = "batch_size" if type(self.gradient) is Minibatch else "gradient"
            raise ValueError(
                f"{given} is {shown(getattr(self, given))}, but {type(self).__name__} tests its "
                "steps by the loss of all samples; leave it out, or take LeimkuhlerMatthews"
            )

    def init(self, weights: Tensor) -> State:
        """Weights, and the acceptance probability of the last proposal."""
        return {"weights": weights, "acceptance": weights.new_zeros(len(weights))}


def trajectory(
    state: State,
    gradient: StepGradient,
    noise: Callable[[], Tensor],
    target: Target,
    leaps: int,
    time: Tensor | float,
) -> State:
    """Leapfrog steps from a fresh momentum, and the accept test.

    Args:
        state, gradient, noise, target: as for :meth:`probelib.Sampler.step`.
        leaps: how many.
        time: h of each, shape (chains, 1) or one for all.
    """
    begin, momentum = state["weights"], noise()
    slope, loss = gradient.with_loss(begin)
    energy = _energy(begin, momentum, loss, target)
    weights = begin
    momentum = momentum - time / 2 * target.drift(weights, slope)
    for leap in range(1, leaps + 1):
        weights = weights + time * momentum
        slope, loss = gradient.with_loss(weights)
        part = time if leap < leaps else time / 2
        momentum = momentum - part * target.drift(weights, slope)
    gained = energy - _energy(weights, momentum, loss, target)  # -(change of H); NaN is refused
    accepted = _log_uniform(noise()) < gained
    probability = gained.clamp(max=0).exp().nan_to_num(0.0)
    return {
        "weights": torch.where(accepted[:, None], weights, begin),
        "acceptance": probability.to(begin.dtype),
    }


def _energy(weights: Tensor, momentum: Tensor, loss: Tensor, target: Target) -> Tensor:
    """H in float64, shape (chains,)."""
    away = weights.double() - target.center.double()
    kinetic = momentum.double().square().sum(1) / 2
    return target.n_beta * loss.double() + target.localization / 2 * away.square().sum(1) + kinetic


def _log_uniform(normals: Tensor) -> Tensor:
    """The logarithm of one uniform number a chain, from its first normal, in float64."""
    return torch.special.log_ndtr(normals[:, 0].double())


@dataclass(frozen=True, repr=False)
class HMC(AcceptTest):
    r"""Hamiltonian Monte Carlo: the reference, exact up to Monte-Carlo error, full gradients only.

    It costs ``leapfrog_steps + 1`` gradients of all samples a step. The trace has the variable
    ``acceptance``; a mean of 0.6 to 0.9 is efficient. Models that draw at random are refused.

    Args:
        step_size: :math:`\epsilon = h^2`, of a leapfrog step.
        batch_size, gradient: None; there is no accept test of a minibatch.
        leapfrog_steps: in a trajectory. :math:`h` times them should be near half a period of the
            slowest direction, :math:`\pi / \sqrt\gamma`, where that is affordable.

    Raises:
        ValueError, TypeError: see :class:`probelib.Sampler`; a gradient that is not the full one,
            or ``leapfrog_steps`` that are no number of steps.
    """

    leapfrog_steps: int = 10

    order: ClassVar[int | None] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = require_whole("leapfrog_steps", self.leapfrog_steps)
        object.__setattr__(self, "leapfrog_steps", steps)

    @property
    def gradients_per_step(self) -> int:
        """One more than leapfrog steps: also that at the beginning."""
        return self.leapfrog_steps + 1

    def step(
        self,
        state: State,
        gradient: StepGradient,
        noise: Callable[[], Tensor],
        target: Target,
    ) -> State:
        """One trajectory: see :meth:`probelib.Sampler.step`."""
        uniform = _log_uniform(noise()).exp()
        time = self.step_size**0.5 * (1 + _SPREAD * (2 * uniform - 1))
        time = time.to(state["weights"].dtype)[:, None]
        return trajectory(state, gradient, noise, target, self.leapfrog_steps, time)


__all__ = ["HMC", "AcceptTest", "trajectory"]
