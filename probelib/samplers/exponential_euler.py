r"""The exponential Euler step: the localization solved exactly, the data's gradient held still.

With L flat, Eq. 1's Langevin dynamics is an Ornstein-Uhlenbeck process, which decays by
:math:`a = e^{-\gamma\epsilon/2}` in a step. With the gradient of L as it is at the beginning,

.. math::

   w - w^* \leftarrow a\, (w - w^*) - \frac{1 - a}{\gamma}\, n\beta\, \nabla \hat L(w)
   + \sqrt{\frac{1 - a^2}{\gamma}}\; \xi.

It is exact where L is flat, at every step, and has the right mean where L is linear (Lawson, 1967;
Hochbruck and Ostermann, 2010, "Exponential integrators"). On a quadratic of precision
A = nb h + gamma its variance is

.. math::

   \frac1A\, \frac{1 - \epsilon'\gamma/4}{1 - \epsilon' A/4}, \qquad
   \epsilon' = 2\, \frac{1 - a}{\gamma},

so that what is too much is due to nb h alone: to an LLC it adds :math:`\tfrac{\tilde\epsilon}{8}
(n\beta)^2 \operatorname{E} |\nabla L|^2`, exactly, with :math:`\tilde\epsilon = \tfrac4\gamma
\tanh \tfrac{\gamma \epsilon}4`. Noise of minibatches, of variance s², multiplies the variance by
:math:`1 + \tilde\epsilon\, (n\beta)^2 s^2 / 4`, exactly too.

**Why no symmetric splitting.** Half a process, a kick by :math:`\tfrac\epsilon2 n\beta \nabla L`,
half a process: of the splittings with one gradient it has the least bias for short steps,
:math:`-k^2 / (4 (g + k))` of the variance with :math:`g = \gamma\epsilon` and :math:`k = n\beta h\,
\epsilon`. But from :math:`\gamma\epsilon = 4` on it has more than this step (:math:`1 - \tfrac g2 /
\sinh \tfrac g2` of :math:`n\beta h / \gamma`, against :math:`(1 - a) / 2`), it has a wrong mean
where L is linear, and no gradient at its draws. For short steps there is something better than
both: of all steps with one gradient that use a normal twice at most, only
:class:`probelib.LeimkuhlerMatthews` is exact on every quadratic. Its draws cannot be independent of
the next ones, though; with :math:`\gamma\epsilon` above 4, these are nearly.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from probelib.samplers.base import Lengths, Sampler, State, Target


@dataclass(frozen=True, repr=False)
class ExponentialEuler(Sampler):
    r"""Eq. 1's Langevin dynamics with the localization solved exactly, for where that dominates.

    However long the step, it samples N(w*, I / gamma) exactly where L is flat, and a long one makes
    draws that are nearly independent; its bias is then about half of :math:`n\beta h / \gamma`
    for a curvature h of L, and it is stable at every step where none of these is above 1.
    Elsewhere take :class:`probelib.LeimkuhlerMatthews`.

    Args:
        step_size: :math:`\epsilon`, SGLD's time. The chain forgets by
            :math:`e^{-\gamma \epsilon / 2}` in a step. Stable where
            :math:`n\beta h < \gamma \coth (\gamma \epsilon / 4)`.
        batch_size: m, drawn without replacement at each step; None for the full gradient.
        gradient: estimator of the gradient of L, in place of ``batch_size``.

    Raises:
        ValueError, TypeError: see :class:`probelib.Sampler`.
    """

    order: ClassVar[int | None] = 1

    def lengths(self, target: Target) -> Lengths:
        """The localization makes no bias, and a kick is no longer than it lets it be."""
        gamma = target.localization
        return Lengths(
            noise_step=4 / gamma * math.tanh(gamma * self.step_size / 4),
            kick=-math.expm1(-gamma * self.step_size / 2) / gamma,
            localization_step=0.0,
        )

    def step(
        self,
        state: State,
        gradient: Callable[[Tensor], Tensor],
        noise: Callable[[], Tensor],
        target: Target,
    ) -> State:
        """One step: see :meth:`probelib.Sampler.step`."""
        weights, gamma = state["weights"], target.localization
        gone = -math.expm1(-gamma * self.step_size / 2)  # 1 - a, to all digits for a short step
        moved = weights.add(target.drift(weights, gradient(weights)), alpha=-gone / gamma)
        return {"weights": moved.add_(noise(), alpha=(gone * (2 - gone) / gamma) ** 0.5)}


__all__ = ["ExponentialEuler"]
