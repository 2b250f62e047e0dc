r"""SGLD preconditioned by a running mean of squared gradients (Li et al., 2016, "pSGLD").

.. math::

   w &\leftarrow w - \tfrac{\epsilon}{2}\, G \nabla \hat U(w) + \sqrt{\epsilon\, G}\,\xi, \\
   G &= \sqrt{\gamma / V}, \\
   V &\leftarrow \rho V + (1 - \rho)\, \nabla \hat U(w)^2

for each weight, with V before the step, beginning at :math:`\gamma`: the value it has where only
the localization holds a weight. There G is 1, and the step is SGLD's; a stiffer weight, or one
with a noisier gradient, takes a smaller step.

**The correction term is left out.** As G depends on where the chain was, the exact drift has a
further term :math:`\frac{\epsilon}{2} \Gamma`, :math:`\Gamma_i = \sum_j \partial G_{ij} / \partial
w_j`, which needs second derivatives. Without it the law is off by an amount that vanishes as
:math:`\rho \to 1`: keep :math:`1 / (1 - \rho)` well above the chain's integrated autocorrelation
time in steps. :class:`probelib.CorrectedRMSpropSGLD` has the term, at a second gradient a step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from probelib.arguments import shown
from probelib.samplers.base import Sampler, State, Target


@dataclass(frozen=True, repr=False)
class RMSpropSGLD(Sampler):
    r"""SGLD with a step of its own for each weight, from a running mean of squared gradients.

    Without the correction term for a preconditioner that moves: see the module's text.

    Args:
        step_size: :math:`\epsilon`, of a weight that only the localization holds. The chain is
            stable where :math:`\epsilon G A < 4` for every precision A = nb h + gamma.
        batch_size: m, drawn without replacement at each step; None for the full gradient.
        gradient: estimator of the gradient of L, in place of ``batch_size``.
        decay: :math:`\rho` in (0, 1), of the running mean.

    Raises:
        ValueError, TypeError: see :class:`probelib.Sampler`; a decay out of range.
    """

    decay: float = 0.999

    order: ClassVar[int | None] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        decay = self.decay
        if not isinstance(decay, int | float) or isinstance(decay, bool) or not 0 < decay < 1:
            raise ValueError(f"decay is {shown(decay)}; it must lie between 0 and 1, as 0.999 does")
        object.__setattr__(self, "decay", float(decay))

    def metric(self, state: State, target: Target) -> Tensor:
        """G, shape (chains, n_parameters), of the step that leaves ``state``."""
        # The second moment is positive: its beginning is, and fades.
        v = state["second_moment"] + target.localization * state["of_beginning"]
        return (target.localization / v).sqrt()

    def init(self, weights: Tensor) -> State:
        """Weights; the running mean without its beginning; what is left of the beginning."""
        return {
            "weights": weights,
            "second_moment": torch.zeros_like(weights),
            "of_beginning": weights.new_ones(len(weights), 1),
        }

    def step(
        self,
        state: State,
        gradient: Callable[[Tensor], Tensor],
        noise: Callable[[], Tensor],
        target: Target,
    ) -> State:
        """One step: see :meth:`probelib.Sampler.step`."""
        weights, moment = state["weights"], state["second_moment"]
        drift = target.drift(weights, gradient(weights))
        scale = self.metric(state, target)
        moved = weights - self.step_size / 2 * scale * drift
        moved += (self.step_size * scale).sqrt() * noise()
        return {
            "weights": moved,
            "second_moment": self.decay * moment + (1 - self.decay) * drift.square(),
            "of_beginning": self.decay * state["of_beginning"],
        }


__all__ = ["RMSpropSGLD"]
