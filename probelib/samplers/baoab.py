r"""BAOAB, a splitting of underdamped Langevin dynamics (Leimkuhler and Matthews, 2013).

With a momentum p, unit mass, time step :math:`h = \sqrt\epsilon` and :math:`c = e^{-\text{friction}
\, h}`, one step is a kick, half a drift, fresh noise, and the other half:

.. math::

   p &\leftarrow p - h\, \nabla \hat U(w) \\
   w &\leftarrow w + \tfrac h2\, p \\
   p &\leftarrow c\, p + \sqrt{1 - c^2}\; \xi \\
   w &\leftarrow w + \tfrac h2\, p

The whole kick at one place is the two half kicks that BAOAB takes there, one at the end of a step
and one at the beginning of the next: it costs one gradient, and the weights are those of BAOAB,
which are exact on quadratics ("Robust and efficient configurational molecular sampling via
Langevin dynamics"; ``posteriors`` calls this order BAOA). As the friction grows, c goes to 0, and
the step is :class:`probelib.LeimkuhlerMatthews` at the same ``step_size``, normal by normal.

**Minibatches.** A kick :math:`\delta` of the momentum moves the weights by :math:`\frac h2
\frac{1 + c}{1 - c} \delta` before it has faded, and a normal by
:math:`h \frac{\sqrt{1 - c^2}}{1 - c} \xi`. Noise of variance s² of the gradient of L therefore
counts as in SGLD of the step :math:`\epsilon \frac{1 + c}{1 - c}`: little friction makes large
strides, and takes in as much noise as they would.

**SGHMC** (Chen, Fox and Guestrin, 2014) is an Euler step of the same dynamics, and of no use beside
it: on a quadratic of precision A its variance is off in proportion to :math:`h A /
\text{friction}`, and it runs away where that is 1. At h = 0.1, A = 4 and a friction of 2 it has
1.26 / A, where this step has 1 / A to all digits. Its estimate of the noise to be taken off the
normals is a number that nobody has.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from probelib.arguments import require_positive
from probelib.samplers.base import Lengths, Sampler, State, Target


@dataclass(frozen=True, repr=False)
class BAOAB(Sampler):
    r"""Underdamped Langevin dynamics by the splitting BAOAB, one gradient a step.

    Where a few slow directions decide, momentum crosses them in fewer steps than
    :class:`probelib.LeimkuhlerMatthews`, with the full gradient or little noise. On a quadratic
    with precision A the stationary variance with the full gradient is exactly 1 / A at every stable
    step; minibatch noise of variance s² multiplies it by

    .. math:: 1 + \frac{\epsilon}{4} \frac{1 + c}{1 - c} \frac{(n\beta)^2 s^2}{1 - \epsilon A / 4},
       \qquad c = e^{-\text{friction} \sqrt\epsilon}.

    Where L is no quadratic the bias grows as the friction falls.

    Args:
        step_size: :math:`\epsilon = h^2`. The chain is stable where
            :math:`\epsilon (n\beta h + \gamma) < 4` for every curvature h of L.
        batch_size: m, drawn without replacement at each step; None for the full gradient.
        gradient: estimator of the gradient of L, in place of ``batch_size``.
        friction: rate at which momentum is forgotten, one over a time in which a step takes
            :math:`\sqrt\epsilon`. A direction of precision A is crossed fastest at about
            :math:`2 \sqrt A`; so :math:`2 \sqrt\gamma` suits the slowest ones.

    Raises:
        ValueError, TypeError: see :class:`probelib.Sampler`; a friction that is not positive, or
            too small for a float.
    """

    friction: float = field(kw_only=True)

    order: ClassVar[int | None] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "friction", require_positive("friction", self.friction))
        if self._kept == 1:
            raise ValueError(
                f"friction is {self.friction:g}, of which nothing is left in a step of "
                f"{self.step_size**0.5:g}: the momentum would never be refreshed; raise it"
            )

    @property
    def _kept(self) -> float:
        """c, the part of the momentum that a step keeps."""
        return math.exp(-self.friction * self.step_size**0.5)

    def lengths(self, target: Target) -> Lengths:
        """Minibatch noise counts as at a longer step; no other part of a step makes a bias."""
        kept = self._kept
        return Lengths(
            noise_step=self.step_size * (1 + kept) / (1 - kept),
            kick=self.step_size / 2 * (1 + kept),
            localization_step=0.0,
        )

    def init(self, weights: Tensor) -> State:
        """Weights, at rest."""
        return {"weights": weights, "momentum": torch.zeros_like(weights)}

    def step(
        self,
        state: State,
        gradient: Callable[[Tensor], Tensor],
        noise: Callable[[], Tensor],
        target: Target,
    ) -> State:
        """One step: see :meth:`probelib.Sampler.step`."""
        weights, time, kept = state["weights"], self.step_size**0.5, self._kept
        drift = target.drift(weights, gradient(weights))
        kicked = state["momentum"].sub(drift, alpha=time)
        momentum = kicked.mul(kept).add_(noise(), alpha=(1 - kept**2) ** 0.5)
        moved = weights.add(kicked + momentum, alpha=time / 2)
        return {"weights": moved, "momentum": momentum}


__all__ = ["BAOAB"]
