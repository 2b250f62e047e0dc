"""Bayesian probes: how hard each sample is for a trained network, and which it treats alike."""

__version__ = "0.1.0"

from probelib.estimators import (
    LossKernel,
    MatrixKernel,
    diagnostics,
    empirical_variance,
    local_learning_coefficient,
    loss_gain,
    loss_kernel,
    pair_kernel,
    singular_fluctuation,
    spearman_brown,
    split_half_reliability,
    tilt,
)
from probelib.gradient_pairs import gradient_pairs
from probelib.gradients import ControlVariate, FullGradient, GradientEstimator, Minibatch
from probelib.influence import (
    classical_influence,
    gradient_gram,
    hessian,
    hessian_operator,
    laplace_covariance,
    laplace_kernel,
    next_order_kernel,
    per_sample_gradients,
    per_sample_hessians,
)
from probelib.interop import from_devinterp, to_devinterp
from probelib.losses import cross_entropy, squared_error
from probelib.posterior import LocalPosterior
from probelib.run import DivergenceError, sample
from probelib.samplers import SGLD, LeimkuhlerMatthews, RMSpropSGLD, Sampler
from probelib.store import StoreBusy, StoreError, TraceMismatch, open_trace

__all__ = [
    "SGLD",
    "ControlVariate",
    "DivergenceError",
    "FullGradient",
    "GradientEstimator",
    "LeimkuhlerMatthews",
    "LocalPosterior",
    "LossKernel",
    "MatrixKernel",
    "Minibatch",
    "RMSpropSGLD",
    "Sampler",
    "StoreBusy",
    "StoreError",
    "TraceMismatch",
    "classical_influence",
    "cross_entropy",
    "diagnostics",
    "empirical_variance",
    "from_devinterp",
    "gradient_gram",
    "gradient_pairs",
    "hessian",
    "hessian_operator",
    "laplace_covariance",
    "laplace_kernel",
    "local_learning_coefficient",
    "loss_gain",
    "loss_kernel",
    "next_order_kernel",
    "open_trace",
    "pair_kernel",
    "per_sample_gradients",
    "per_sample_hessians",
    "sample",
    "singular_fluctuation",
    "spearman_brown",
    "split_half_reliability",
    "squared_error",
    "tilt",
    "to_devinterp",
]
