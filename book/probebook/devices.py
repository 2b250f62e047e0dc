"""The chains of one call, shared out over several devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import xarray as xr

import probelib

__all__ = ["available_devices", "sample_over"]


def available_devices() -> list[str]:
    """Every GPU that torch sees, or the CPU where it sees none."""
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]


def sample_over(
    devices: Sequence[str],
    posterior_on: Callable[[str], probelib.LocalPosterior],
    *,
    chains: int,
    **options: Any,
) -> xr.Dataset:
    """:func:`probelib.sample` with its chains dealt out to devices, a thread each.

    A chain's numbers depend on the seed and its own number alone, so the trace is that of one call
    (to rounding, and on devices of one kind).

    Args:
        devices: such as ``["cuda:0", "cuda:1"]``; those beyond the number of chains stay idle.
        posterior_on: makes the posterior on a device.
        chains: of all devices together.
        options: of :func:`probelib.sample`; ``cache`` rather than ``store``, so that each part
            has a store of its own, and a run that was cut off continues.

    Returns:
        The whole trace, in memory.

    Raises:
        ValueError: ``options`` has a ``store`` or ``until``, or there are no devices.
    """
    if options.get("until") is not None:
        raise ValueError(
            "until would stop each device's chains at a draw of their own; give draws instead"
        )
    if options.get("store") is not None:
        raise ValueError("store is one place for several traces; give cache, a directory of them")
    shares = [s for s in np.array_split(np.arange(chains), max(1, len(devices))) if len(s)]
    if not devices or not shares:
        raise ValueError(
            f"devices is {list(devices)} for {chains} chains; give at least one of each"
        )

    def run(device: str, share: np.ndarray) -> xr.Dataset:
        posterior = posterior_on(device)
        first = int(share[0])
        return probelib.sample(posterior, chains=len(share), first_chain=first, **options).load()

    with ThreadPoolExecutor(len(shares)) as pool:
        traces = list(pool.map(run, devices[: len(shares)], shares))
    whole = xr.concat(traces, dim="chain", data_vars="minimal", coords="minimal", compat="override")
    diverged = {chain: at for trace in traces for chain, at in trace.attrs["diverged"].items()}
    return whole.assign_attrs(
        config=traces[0].attrs["config"] | {"chains": chains}, diverged=diverged
    )
