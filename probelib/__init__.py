"""Bayesian probes: how hard each sample is for a trained network, and which it treats alike."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from probelib._version import __version__
from probelib.calibration import Calibration, CalibrationRefused, calibrate
from probelib.checkpoint_series import over_checkpoints
from probelib.estimators import (
    Comparison,
    Diagnostics,
    Estimate,
    Finding,
    Kernel,
    LossKernel,
    MatrixKernel,
    Neighbours,
    autocorrelation,
    checkpoint_table,
    compare,
    diagnostics,
    empirical_variance,
    label_issues,
    local_learning_coefficient,
    loss_gain,
    loss_kernel,
    mean_loss_change,
    pair_kernel,
    singular_fluctuation,
    spearman_brown,
    split_half_reliability,
)
from probelib.gradient_pairs import gradient_pairs
from probelib.gradients import ControlVariate, FullGradient, GradientEstimator, Minibatch
from probelib.importance import importance_sample, khat, reweight
from probelib.losses import (
    cross_entropy,
    sequence_cross_entropy,
    squared_error,
    token_cross_entropy,
)
from probelib.pair_features import pair_features
from probelib.pair_neighbours import pair_neighbours
from probelib.pairs_or_draws import PairsOrDraws, pairs_or_draws
from probelib.posterior import LocalPosterior
from probelib.run import DivergenceError, sample
from probelib.samplers import (
    BAOAB,
    HMC,
    MALA,
    SGLD,
    CorrectedRMSpropSGLD,
    ExponentialEuler,
    LeimkuhlerMatthews,
    RMSpropSGLD,
    Sampler,
)
from probelib.saved import load, save
from probelib.store import StoreBusy, StoreError, TraceMismatch, open_trace
from probelib.sweep import sweep

open = load  # not in __all__, so that a star import hides nobody's built-in

if TYPE_CHECKING:
    from probelib import influence, interop


def __getattr__(name: str) -> ModuleType:
    """Submodules that few need, imported at the first use."""
    if name in ("influence", "interop"):
        return importlib.import_module(f"probelib.{name}")
    raise AttributeError(f"module 'probelib' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "BAOAB",
    "HMC",
    "MALA",
    "SGLD",
    "Calibration",
    "CalibrationRefused",
    "Comparison",
    "ControlVariate",
    "CorrectedRMSpropSGLD",
    "Diagnostics",
    "DivergenceError",
    "Estimate",
    "ExponentialEuler",
    "Finding",
    "FullGradient",
    "GradientEstimator",
    "Kernel",
    "LeimkuhlerMatthews",
    "LocalPosterior",
    "LossKernel",
    "MatrixKernel",
    "Minibatch",
    "Neighbours",
    "PairsOrDraws",
    "RMSpropSGLD",
    "Sampler",
    "StoreBusy",
    "StoreError",
    "TraceMismatch",
    "__version__",
    "autocorrelation",
    "calibrate",
    "checkpoint_table",
    "compare",
    "cross_entropy",
    "diagnostics",
    "empirical_variance",
    "gradient_pairs",
    "importance_sample",
    "influence",
    "interop",
    "khat",
    "label_issues",
    "load",
    "local_learning_coefficient",
    "loss_gain",
    "loss_kernel",
    "mean_loss_change",
    "open_trace",
    "over_checkpoints",
    "pair_features",
    "pair_kernel",
    "pair_neighbours",
    "pairs_or_draws",
    "reweight",
    "sample",
    "save",
    "sequence_cross_entropy",
    "singular_fluctuation",
    "spearman_brown",
    "split_half_reliability",
    "squared_error",
    "sweep",
    "token_cross_entropy",
]
