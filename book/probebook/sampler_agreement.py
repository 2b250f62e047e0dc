"""A network without a known LLC: do samplers and settings agree with each other (chapter 09)?

Nobody knows the LLC, the gains or the kernel of a network that reads digits. What can be asked is
whether runs agree with a longer run of a shorter step, in values and in ranks.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import probelib
from probebook.benchmark_summaries import rank_agreement
from probebook.cache import cache_dir
from probebook.sampler_benchmark import Candidate, verdict_of, without_diverged

__all__ = ["agreement", "agreement_row", "halves"]


def agreement(
    posterior: probelib.LocalPosterior,
    observe: Any,
    reference: xr.Dataset,
    samplers: Mapping[str, Candidate],
    steps: Sequence[float],
    *,
    batch_size: int | None,
    progress: bool = False,
    **settings: int,
) -> pd.DataFrame:
    """Runs of several samplers and step sizes beside a reference, one row each.

    Args:
        posterior: Eq. 1.
        observe: the samples whose losses are recorded.
        reference: a trace of the same posterior and samples that one believes.
        samplers: by name.
        steps: step sizes epsilon.
        batch_size: of the gradients.
        progress: show bars.
        settings: of :func:`probelib.sample`: chains, draws, burn_in, thin, seed.

    Returns:
        ``sampler``, ``step_size``, and the columns of :func:`agreement_row`. Where all chains
        diverged, estimates are NaN and ``error`` is infinite.
    """
    rows = []
    for name, candidate in samplers.items():
        for step_size in steps:
            sampler = candidate.make(step_size=step_size, batch_size=batch_size)
            row: dict[str, Any] = {"sampler": name, "step_size": step_size}
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", RuntimeWarning)  # diverged chains are counted
                    trace = probelib.sample(
                        posterior, observe=observe, sampler=sampler, progress=progress,
                        cache=cache_dir("traces"), **settings,
                    )  # fmt: skip
            except (probelib.DivergenceError, OverflowError):
                nothing = dict.fromkeys(("llc", "mcse", "spearman", "kernel"), math.nan)
                row |= {**nothing, "error": math.inf, "spearman_se": math.inf, "verdict": "wrong"}
            else:
                row |= agreement_row(trace, reference)
            rows.append(row)
    return pd.DataFrame(rows)


def agreement_row(trace: xr.Dataset, reference: xr.Dataset) -> dict[str, Any]:
    """What a trace says beside a reference of the same samples.

    Returns:
        ``llc``, ``mcse``; ``error``, how far its LLC is from the reference's, relative and
        absolute; ``spearman`` and ``spearman_se`` of the gains
        (:func:`probebook.benchmark_summaries.rank_agreement`); ``kernel``, Pearson's correlation of
        the two correlation kernels over all pairs; and the ``verdict``.
    """
    verdict = verdict_of(trace)
    trace = without_diverged(trace)
    llc = probelib.local_learning_coefficient(trace)
    truth = probelib.local_learning_coefficient(reference).value
    gains = probelib.loss_gain(reference).values
    spearman, error = rank_agreement(gains, _by_chain(trace))
    kernels = (probelib.loss_kernel(t).correlation() for t in (trace, reference))
    return {
        "llc": llc.value,
        "mcse": llc.mcse,
        "error": abs(llc.value / truth - 1),
        "spearman": spearman,
        "spearman_se": error,
        "kernel": probelib.estimators.split_half_reliability(*kernels),
        "verdict": verdict,
    }


def halves(reference: xr.Dataset) -> dict[str, float]:
    """How well two halves of a reference agree: more than any other run can be asked for.

    The halves are every other chain; of a single one, or of weighted draws, every other draw.

    Returns:
        ``spearman`` of the gains and ``kernel``, as in :func:`agreement_row`.
    """
    across = "chain" if reference.sizes["chain"] > 1 else "draw"
    first, second = (reference.isel({across: slice(k, None, 2)}) for k in (0, 1))
    row = agreement_row(second, first)
    return {"spearman": row["spearman"], "kernel": row["kernel"]}


def _by_chain(trace: xr.Dataset) -> np.ndarray:
    """The gain of each sample by each chain, shape (chain, sample)."""
    chains = (trace.isel(chain=[k]) for k in range(trace.sizes["chain"]))
    return np.stack([probelib.loss_gain(one).values for one in chains])
