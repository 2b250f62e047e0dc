r"""Settings of a run, found: localization, sampler, step size, thinning, burn-in, draws.

Each follows from something measured, none from a clock, so that the same call gives the same
settings:

- the **localization**, where none is given, from what draws of its Gaussian keep of what was
  learned (:mod:`probelib.calibration.localization`);
- the **step size** from the largest curvature along the chain: :math:`\epsilon (n\beta h + \gamma)`
  at most 1, a quarter of where the Leimkuhler-Matthews step becomes unstable; and from the bias
  that the noise of minibatches makes of it (:mod:`probelib.estimators.step_bias`), held under a
  limit; it is made shorter where the gradient turns within a step, as it may where L is no
  quadratic;
- the **batch size** from what a step costs: the one that gets the chains furthest for a given
  number of operations, at that bias;
- **burn-in** from the slowest relaxation that Eq. 1 has at a minimum, :math:`2 / (\epsilon\gamma)`
  steps of a direction that only the localization holds;
- **thinning** from the autocorrelation time of the mean loss, taken as a series of order one, and
  from what a step and an observation cost;
- **draws** from how fast the mean loss and the slowest samples decorrelate, and a target error.

Pilot runs are made longer until their chains agree, or are refused. The **tilt** is no setting: it
is how many directions the data hold, :math:`n\beta \operatorname{E}[\nabla L^\top (w - w^*)]`, of
the d that they and the localization hold together.
"""

from probelib.calibration.calibrate import calibrate
from probelib.calibration.kept import calibration_of
from probelib.calibration.result import Calibration, CalibrationRefused, Evidence

__all__ = ["Calibration", "CalibrationRefused", "Evidence", "calibrate", "calibration_of"]
