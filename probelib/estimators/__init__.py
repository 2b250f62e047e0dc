r"""What a trace says: loss gain, loss kernel, LLC, singular fluctuation, diagnostics.

One file for each, beside ``series`` (standard errors, effective sample size) and ``blocks`` (how
the losses of a trace are read). With :math:`\Delta\ell_i(w) = \ell_i(w) - \ell_i(w^*)` over draws
pooled from all chains (A.1):

.. math::

   \mu_i = \operatorname{E}[\Delta\ell_i], \qquad
   K_{ij} = \operatorname{Cov}[\Delta\ell_i, \Delta\ell_j], \qquad
   R_{ij} = K_{ij} / \sqrt{K_{ii} K_{jj}}

(Eqs. 4 to 6). Every estimate from a trace carries its Monte-Carlo standard error.
"""

from probelib.estimators.checkpoint_table import checkpoint_table
from probelib.estimators.compare import Comparison, compare
from probelib.estimators.diagnostics import Diagnostics, Finding, diagnostics
from probelib.estimators.gain import loss_gain
from probelib.estimators.kernel import (
    Kernel,
    LossKernel,
    loss_kernel,
    spearman_brown,
    split_half_reliability,
)
from probelib.estimators.label_issues import label_issues
from probelib.estimators.llc import (
    empirical_variance,
    local_learning_coefficient,
    mean_loss_change,
    share,
    singular_fluctuation,
)
from probelib.estimators.matrix_kernel import MatrixKernel
from probelib.estimators.neighbours import Neighbours
from probelib.estimators.pairs import pair_kernel
from probelib.estimators.series import Estimate, autocorrelation, ess_of_mean, mcse_of_mean
from probelib.estimators.weighted import Weights, khat, khat_limit, weights_of

__all__ = [
    "Comparison",
    "Diagnostics",
    "Estimate",
    "Finding",
    "Kernel",
    "LossKernel",
    "MatrixKernel",
    "Neighbours",
    "Weights",
    "autocorrelation",
    "checkpoint_table",
    "compare",
    "diagnostics",
    "empirical_variance",
    "ess_of_mean",
    "khat",
    "khat_limit",
    "label_issues",
    "local_learning_coefficient",
    "loss_gain",
    "loss_kernel",
    "mcse_of_mean",
    "mean_loss_change",
    "pair_kernel",
    "share",
    "singular_fluctuation",
    "spearman_brown",
    "split_half_reliability",
    "weights_of",
]
