"""Chapter 11: moments of the loss along the draws, and kernels of checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import xarray as xr

import probelib
from probebook.chapter import Chapter
from probebook.chapters.training_time import record_finite, record_interval
from probebook.curves import Cumulants, KernelPhases, cumulants
from probebook.similarities import Interval

__all__ = ["cumulant_rows", "loss_cumulants", "record_cumulants", "record_phases"]


def loss_cumulants(series: xr.Dataset, n_beta: float, parts: int = 4) -> dict[int, Cumulants]:
    """Cumulants of n beta L along the draws of each checkpoint, by its name."""
    return {
        name: cumulants(n_beta * probelib.mean_loss_change(series.sel(checkpoint=name)), parts)
        for name in series["checkpoint"].values.tolist()
    }


def cumulant_rows(
    chapter: Chapter,
    found: Mapping[str, Mapping[int, Cumulants]],
    tables: Mapping[str, pd.DataFrame],
) -> list[dict[str, str]]:
    """Record LLC, second and third cumulant of each checkpoint; in a Gamma law 1 to 1 to 2."""
    for name, each in found.items():
        for epoch, one in each.items():
            numbers = {f"at_{k}": v for k, v in vars(one).items()}
            numbers["at_llc"] = tables[name].loc[epoch].llc
            record_finite(chapter, f"{name}_{epoch}", **numbers)
    return [
        {
            "labels": name,
            "epoch": str(epoch),
            "LLC": f"{tables[name].loc[epoch].llc:.1f}",
            "second cumulant": f"{one.second:.2f} ± {one.second_se:.2f}",
            "third cumulant": f"{one.third:.2f} ± {one.third_se:.2f}",
            "skewness": f"{one.skewness:.2f} ± {one.skewness_se:.2f}",
        }
        for name, each in found.items()
        for epoch, one in each.items()
    ]


def record_cumulants(
    chapter: Chapter,
    found: Mapping[str, Mapping[int, Cumulants]],
    tables: Mapping[str, pd.DataFrame],
) -> None:
    """Record the third cumulant at both ends, and at how many checkpoints its sign is known."""
    every = [one for each in found.values() for one in each.values()]
    sure = [one for one in every if abs(one.third) > 1.96 * one.third_se]
    chapter.record(
        third_positive=sum(one.third > 0 for one in every),
        third_positive_sure=sum(one.third > 0 for one in sure),
        third_negative_sure=sum(one.third < 0 for one in sure),
        third_checkpoints=len(every),
    )
    for name, each in found.items():
        ends = [*each.values()]
        share = ends[-1].third / (2 * tables[name]["llc"].iloc[-1])
        chapter.record(**{f"third_{name}_share_of_gamma": float(share)})
        for when, one in (("first", ends[0]), ("last", ends[-1])):
            for key in ("third", "skewness"):
                value, error = getattr(one, key), getattr(one, f"{key}_se")
                chapter.record(
                    **{
                        f"{key}_{name}_{when}": value,
                        f"{key}_{name}_{when}_se": error,
                        f"{key}_{name}_{when}_text": f"{value:.2f} ± {error:.2f}",
                    }
                )


def record_phases(chapter: Chapter, found: KernelPhases, name: str) -> None:
    """Record how alike the first and the last kernel are, neighbours on average, and the noise.

    Args:
        chapter: where to.
        found: of a series.
        name: of the network, in the names of the numbers.
    """
    reliable = np.diag(found.cross)
    chapter.record(
        **{
            f"kernel_{name}_reliability_least": float(reliable.min()),
            f"kernel_{name}_ends_naive": float(found.naive[0, -1]),
            f"kernel_{name}_ends_cross": float(found.cross[0, -1]),
        }
    )
    value, error = found.corrected[0, -1], found.corrected_se[0, -1]
    if math.isfinite(value) and math.isfinite(error):
        ends = Interval(float(value), float(value - 1.96 * error), float(value + 1.96 * error))
        record_interval(chapter, f"kernel_{name}_ends", ends, ".2f")
    else:
        chapter.record(**{f"kernel_{name}_ends_text": "not known: the noise is too large"})
    beside = np.diag(found.corrected, 1)
    if np.isfinite(beside).all():
        least = int(beside.argmin())
        between = f"{found.names[least]} and {found.names[least + 1]}"
        chapter.record(
            **{
                f"kernel_{name}_least_text": f"{beside[least]:.2f}, between epochs {between}",
                f"kernel_{name}_beside": float(beside.mean()),
            }
        )
    else:
        chapter.record(**{f"kernel_{name}_least_text": "not known"})
