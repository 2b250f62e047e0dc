"""Samplers of the local posterior, one file each.

A sampler has three methods (see :class:`probelib.Sampler`):

- ``init(weights) -> state``: the state of chains that stand at these weights;
- ``step(state, gradient, noise, target) -> state``: one step of all chains;
- ``identity() -> dict``: its name and its settings, for the fingerprint of a trace.

The state is a dict of tensors with one row per chain, and goes whole into the checkpoint.
"""

from probelib.samplers.baoab import BAOAB
from probelib.samplers.base import Lengths, Sampler, State, StepGradient, Target
from probelib.samplers.corrected_rmsprop_sgld import CorrectedRMSpropSGLD
from probelib.samplers.exponential_euler import ExponentialEuler
from probelib.samplers.hmc import HMC
from probelib.samplers.leimkuhler_matthews import LeimkuhlerMatthews
from probelib.samplers.mala import MALA
from probelib.samplers.rmsprop_sgld import RMSpropSGLD
from probelib.samplers.sgld import SGLD

__all__ = [
    "BAOAB",
    "HMC",
    "MALA",
    "SGLD",
    "CorrectedRMSpropSGLD",
    "ExponentialEuler",
    "LeimkuhlerMatthews",
    "Lengths",
    "RMSpropSGLD",
    "Sampler",
    "State",
    "StepGradient",
    "Target",
]
