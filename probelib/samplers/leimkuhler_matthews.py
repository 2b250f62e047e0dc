r"""The Leimkuhler-Matthews step, the high-friction limit of BAOAB.

.. math::

   w \leftarrow w - \tfrac{\epsilon}{2}\,\nabla \hat U(w)
   + \sqrt{\epsilon}\,\tfrac12 (\xi_t + \xi_{t+1})

Each normal is used twice (Leimkuhler and Matthews, 2013, "Rational construction of stochastic
numerical methods for molecular sampling"). It costs what SGLD costs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from probelib.samplers.base import Sampler, State, Target


@dataclass(frozen=True, repr=False)
class LeimkuhlerMatthews(Sampler):
    r"""The Leimkuhler-Matthews step: the sampler to use for new work.

    It costs what SGLD costs, without its bias: on a quadratic with precision A its stationary
    variance with the full gradient is exactly 1 / A at every stable step, where SGLD has
    1 / (A (1 - eps A / 4)). Minibatch noise of variance s² still adds (nb² s² eps / 4) / A;
    :class:`probelib.ControlVariate` takes most of it down near w*. The first step has no normal
    before it and takes half its noise.

    Args:
        step_size: :math:`\epsilon`. The chain is stable where
            :math:`\epsilon (n\beta h + \gamma) < 4` for every curvature h of L.
        batch_size: m, drawn without replacement at each step; None for the full gradient.
        gradient: estimator of the gradient of L, in place of ``batch_size``.

    Raises:
        ValueError, TypeError: see :class:`probelib.Sampler`.
    """

    order: ClassVar[int | None] = 2

    def init(self, weights: Tensor) -> State:
        """Weights, and the normals of the step before."""
        return {"weights": weights, "noise": torch.zeros_like(weights)}

    def step(
        self,
        state: State,
        gradient: Callable[[Tensor], Tensor],
        noise: Callable[[], Tensor],
        target: Target,
    ) -> State:
        """One step: see :meth:`probelib.Sampler.step`."""
        weights, drawn = state["weights"], noise()
        drift = target.drift(weights, gradient(weights))
        moved = weights.sub(drift, alpha=self.step_size / 2)
        moved.add_(state["noise"] + drawn, alpha=self.step_size**0.5 / 2)
        return {"weights": moved, "noise": drawn}


__all__ = ["LeimkuhlerMatthews"]
