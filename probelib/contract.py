"""What a trace holds by name, and what of its attributes a reader may rely on.

A trace is an xarray data set. :func:`probelib.sample` and :func:`probelib.open_trace` give one, and
so does whoever builds a data set with the variables below. Estimators and converters read its
attributes through this module alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from probelib.arguments import shown

if TYPE_CHECKING:
    import xarray as xr

#: What is recorded of each step, before it: the minibatch loss (nats) and, of the estimated
#: gradient g of L that the step used, g'G g, g'G (w - w*) and g'G h, with h that of the step before
#: (g itself for the full gradient, which has no noise) and G the sampler's metric, mostly 1.
STEP_VARIABLES = ("sampling_loss", "gradient_square", "gradient_along", "gradient_repeat")
#: Variables and their dimensions: l_i(w) at the draws, l_i(w*) (both nats), |w - w*| at the draws,
#: and what is recorded of each step.
VARIABLES: dict[str, tuple[str, ...]] = {
    "loss": ("chain", "draw", "sample"),
    "init_loss": ("sample",),
    "distance": ("chain", "draw"),
    **dict.fromkeys(STEP_VARIABLES, ("chain", "step")),
}
#: Coordinates and their dimensions. ``label`` exists where the observed data has labels.
COORDINATES = {"chain": ("chain",), "sample_id": ("sample",), "label": ("sample",)}
#: Root attributes that a reader may use.
ATTRIBUTES = {
    "config": "the settings of the run, by the names of RunSettings",
    "seed": "of all chains",
    "diverged": "chain number (text) -> its last step and the draws before it",
    "complete": "whether all draws that were asked for are there",
    "draws_done": "draws that every chain has",
    "steps_done": "steps that every chain has made",
    "wall_time": "seconds of work, all chains together",
    "device": "where the chains ran",
    "fingerprint": "of weights, data, code and settings",
    "versions": "of the packages that made the trace",
}


@dataclass(frozen=True)
class RunSettings:
    """The settings a trace was sampled with; None where it does not say.

    Attributes:
        n_beta, localization, beta: nb, gamma and beta of Eq. 1.
        n_samples: n, samples in the data that define L.
        n_parameters: weights that move.
        sampler: name of the sampler.
        step_size: epsilon of Eq. 7.
        order: of the sampler, see :attr:`probelib.Sampler.order`.
        batch_size: samples per step; None also for the full gradient.
        chains, draws, burn_in, thin: as given to :func:`probelib.sample`.
    """

    n_beta: float | None = None
    localization: float | None = None
    beta: float | None = None
    n_samples: int | None = None
    n_parameters: int | None = None
    sampler: str | None = None
    step_size: float | None = None
    order: int | None = None
    batch_size: int | None = None
    chains: int | None = None
    draws: int | None = None
    burn_in: int | None = None
    thin: int | None = None


def settings(trace: xr.Dataset, argument: str = "trace") -> RunSettings:
    """The settings of a trace's run.

    Args:
        trace: from :func:`probelib.sample`, :func:`probelib.open_trace` or elsewhere.
        argument: how an error calls the trace.

    Raises:
        ValueError: a setting is not of its kind, as text where a number belongs.
    """
    config = trace.attrs.get("config", {})
    if not isinstance(config, Mapping):
        raise ValueError(
            f"{argument} has the config {shown(config)} in its attributes; give a dict of settings"
        )
    known = {
        field.name: config[field.name] for field in fields(RunSettings) if field.name in config
    }
    if "sampler" not in known and "kernel" in config:  # its name in older traces
        known["sampler"] = config["kernel"]
    for name, value in known.items():
        kind = str if name == "sampler" else Real
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            what = "text" if kind is str else "a number"
            raise ValueError(
                f"{argument} has the {name} {shown(value)} in its attributes; it must be {what}"
            )
    return RunSettings(**known)


def required(trace: xr.Dataset, name: str, argument: str = "trace") -> Any:
    """One setting of a trace's run that cannot be done without.

    Args:
        trace: as for :func:`settings`.
        name: of a field of :class:`RunSettings`.
        argument: how an error calls the trace.

    Raises:
        ValueError: the trace does not say it.
    """
    value = getattr(settings(trace, argument), name)
    if value is None:
        raise ValueError(
            f"{argument} has no {name} in its attributes; where it was made elsewhere, add it: "
            f'{argument}.attrs.setdefault("config", {{}})["{name}"] = ...'
        )
    return value


def diverged(trace: xr.Dataset) -> dict[str, dict[str, int]]:
    """The chains of a trace that diverged before its last draw.

    Returns:
        Chain number, as text -> its last ``step`` and the ``draws`` before it.
    """
    return {
        chain: at
        for chain, at in trace.attrs.get("diverged", {}).items()
        if int(chain) in trace["chain"].values and trace.sizes["draw"] > at["draws"]
    }


def sample_coordinates(n: int, labels: np.ndarray | None = None) -> dict[str, Any]:
    """The coordinates along ``sample`` of n samples, and of their labels where there are any."""
    coords: dict[str, Any] = {"sample_id": ("sample", np.arange(n))}
    return coords if labels is None else coords | {"label": ("sample", labels)}


__all__ = [
    "ATTRIBUTES",
    "COORDINATES",
    "STEP_VARIABLES",
    "VARIABLES",
    "RunSettings",
    "diverged",
    "required",
    "sample_coordinates",
    "settings",
]
