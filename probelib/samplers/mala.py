r"""The Metropolis-adjusted Langevin algorithm (Besag, 1994; Roberts and Tweedie, 1996).

SGLD's step with the full gradient is proposed,

.. math::

   w' = w - \tfrac\epsilon2 \nabla U(w) + \sqrt\epsilon\, \xi, \qquad \xi \sim \mathcal N(0, I),

and taken with the probability of Metropolis and Hastings,

.. math::

   \min\Big(1, \frac{e^{-U(w')}\, q(w | w')}{e^{-U(w)}\, q(w' | w)}\Big),

q being the density of the proposal; else the chain stays. It is Hamiltonian Monte Carlo with one
leapfrog step of :math:`\sqrt\epsilon`, and computed so: what :mod:`probelib.samplers.hmc` says of
digits holds here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from probelib.samplers.base import State, StepGradient, Target
from probelib.samplers.hmc import AcceptTest, trajectory


@dataclass(frozen=True, repr=False)
class MALA(AcceptTest):
    r"""SGLD with an accept test: exact up to Monte-Carlo error, full gradients only.

    It costs two gradients of all samples a step. The trace has the variable ``acceptance``; a mean
    of 0.57 is the most efficient in many dimensions, where :math:`\epsilon` falls as
    :math:`d^{-1/3}`. Models that draw at random are refused.

    Args:
        step_size: :math:`\epsilon`, SGLD's.
        batch_size, gradient: None; there is no accept test of a minibatch.

    Raises:
        ValueError, TypeError: see :class:`probelib.Sampler`; a gradient that is not the full one.
    """

    order: ClassVar[int | None] = 0
    gradients_per_step: ClassVar[int] = 2

    def step(
        self,
        state: State,
        gradient: StepGradient,
        noise: Callable[[], Tensor],
        target: Target,
    ) -> State:
        """One proposal: see :meth:`probelib.Sampler.step`."""
        return trajectory(state, gradient, noise, target, 1, self.step_size**0.5)


__all__ = ["MALA"]
