r"""Stochastic gradient Langevin dynamics (the paper's Eq. 7; Welling and Teh, 2011).

.. math::

   w \leftarrow w - \tfrac{\epsilon}{2}\big[n\beta\,\nabla \hat L_B(w) + \gamma (w - w^*)\big]
   + \sqrt{\epsilon}\,\xi, \qquad \xi \sim \mathcal N(0, I)

with :math:`\nabla \hat L_B` the mean gradient of a minibatch. The paper's Eq. 7 lacks the beta.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from probelib.samplers.base import Sampler, State, Target


@dataclass(frozen=True, repr=False)
class SGLD(Sampler):
    r"""Stochastic gradient Langevin dynamics (Eq. 7), the paper's sampler.

    For new work :class:`probelib.LeimkuhlerMatthews` is the better one. On a quadratic with
    precision A (nb h + gamma along an eigenvector of the Hessian), its stationary variance with
    the full gradient is 1 / (A (1 - eps A / 4)): too large, in proportion to the step. Minibatch
    noise of variance s² multiplies it by 1 + eps nb² s² / 4.

    Args:
        step_size: :math:`\epsilon`. The chain is stable where
            :math:`\epsilon (n\beta h + \gamma) < 4` for every curvature h of L.
        batch_size: m, drawn without replacement at each step; None for the full gradient.
        gradient: estimator of the gradient of L, in place of ``batch_size``.

    Raises:
        ValueError, TypeError: see :class:`probelib.Sampler`.
    """

    order: ClassVar[int | None] = 1

    def step(
        self,
        state: State,
        gradient: Callable[[Tensor], Tensor],
        noise: Callable[[], Tensor],
        target: Target,
    ) -> State:
        """One step of Eq. 7: see :meth:`probelib.Sampler.step`."""
        weights = state["weights"]
        drift = target.drift(weights, gradient(weights))
        moved = weights.sub(drift, alpha=self.step_size / 2)
        return {"weights": moved.add_(noise(), alpha=self.step_size**0.5)}


__all__ = ["SGLD"]
