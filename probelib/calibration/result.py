"""What a calibration finds, with the evidence; and the error that says why there is nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from probelib.posterior import LocalPosterior
from probelib.samplers import LeimkuhlerMatthews


class CalibrationRefused(ValueError):
    """No settings would give a number that can be trusted; the message says why.

    Attributes:
        evidence: what was found before that.
    """

    def __init__(self, message: str, evidence: tuple[Evidence, ...] = ()):
        super().__init__(message)
        self.evidence = evidence


@dataclass(frozen=True)
class Evidence:
    """Why a setting is what it is.

    Attributes:
        name: what was measured.
        value: what came out.
        sentence: both in words.
    """

    name: str
    value: float
    sentence: str


@dataclass(frozen=True)
class Calibration:
    """Settings of a run with the evidence for each: printed, a sentence a setting.

    ``probelib.sample(found.posterior, **found.settings)`` is the run.

    Attributes:
        posterior: with the localization that was found, or the one it had.
        sampler: with step size and batch size.
        chains, draws, burn_in, thin: as :func:`probelib.sample` takes them.
        error: standard error of the LLC that the draws are for, as a part of the LLC.
        llc, llc_error: of the pilot run, a first look.
        step_bias: of the LLC, as a part of it and at most.
        evidence: what decided, an :class:`Evidence` each.
        seconds: that finding them took.
        seconds_of_run: that the run will take here, by the speed of the pilot run.
    """

    posterior: LocalPosterior
    sampler: LeimkuhlerMatthews
    chains: int
    draws: int
    burn_in: int
    thin: int
    error: float
    llc: float
    llc_error: float
    step_bias: float
    evidence: tuple[Evidence, ...] = field(repr=False)
    seconds: float = math.nan
    seconds_of_run: float = math.nan

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of :func:`probelib.sample`."""
        names = "sampler", "chains", "draws", "burn_in", "thin"
        return {name: getattr(self, name) for name in names}

    def __getitem__(self, name: str) -> Evidence:
        """The evidence of a name (KeyError where there is none)."""
        named = {one.name: one for one in self.evidence}
        if name not in named:
            raise KeyError(f"name is {name!r}; choose one of {', '.join(map(repr, named))}")
        return named[name]

    def __str__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        lines = [
            f"localization={self.posterior.localization:g}, {settings}",
            *(f"  {one.sentence}" for one in self.evidence),
            f"  found in {self.seconds:.1f} s; the run will take about {self.seconds_of_run:.0f} s",
        ]
        return "\n".join(lines)


__all__ = ["Calibration", "CalibrationRefused", "Evidence"]
