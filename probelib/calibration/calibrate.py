"""The function that finds settings: its arguments, checked, and the search."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import replace

from probelib.arguments import require_kind, require_positive, require_whole, shown
from probelib.calibration.result import Calibration
from probelib.calibration.search import FEWEST_STEPS, Search
from probelib.data import Data
from probelib.observed_sets import read_observed
from probelib.posterior import LocalPosterior


def calibrate(
    posterior: LocalPosterior,
    observe: Data | Mapping[str, Data] | None = None,
    *,
    error: float = 0.01,
    kept: float = 0.9,
    chains: int = 4,
    max_steps: int = 200_000,
    seed: int = 0,
) -> Calibration:
    """Settings for :func:`probelib.sample` that need no guess, with the evidence for each.

    The sampler is :class:`probelib.LeimkuhlerMatthews`. What each setting follows from is said in
    the text of :mod:`probelib.calibration`. Some short runs are made and thrown away.

    Args:
        posterior: what will be sampled from; with ``localization=None`` one is found.
        observe: what will be observed, as :func:`probelib.sample` takes it; it decides the
            thinning.
        error: of the LLC, the standard error that the draws are for, as a part of the LLC.
        kept: where a localization is looked for, the part of what the network has learned beyond
            guessing that draws of the localizing Gaussian must keep on the average.
        chains: how many will be run.
        max_steps: of a chain; a run that needs more is refused.
        seed: of the short runs.

    Returns:
        The settings.

    Raises:
        CalibrationRefused: the network knows no more than a guess, w* is no minimum on the scale
            of the localization, no step is short enough, the chains would not mix in
            ``max_steps``, or something else speaks against the numbers of a short run. The message
            says what to do.
        ValueError, TypeError: a bad argument.
    """
    require_kind("posterior", posterior, LocalPosterior, "a probelib.LocalPosterior")
    error, kept = require_positive("error", error), require_positive("kept", kept)
    if not (error < 1 and kept < 1):
        name, value = ("error", error) if error >= 1 else ("kept", kept)
        raise ValueError(f"{name} is {shown(value)}; it is a part of a whole, so make it below 1")
    chains, seed = require_whole("chains", chains), require_whole("seed", seed, 0)
    max_steps = require_whole("max_steps", max_steps, FEWEST_STEPS)
    if posterior.train_mode:
        raise ValueError(
            "posterior is in train mode, where losses depend on chance and no short run tells how "
            "much; calibrate it with train_mode=False, or give sample its settings"
        )
    started = time.perf_counter()
    observed, _ = read_observed(posterior, observe)
    search = Search(posterior, len(observed), error, kept, chains, max_steps, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # short runs are not what the caller will see
        found = search.run()
    return replace(found, seconds=time.perf_counter() - started)


__all__ = ["calibrate"]
