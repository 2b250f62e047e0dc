"""A trace's losses, read block by block: memory holds a few thousand samples at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from probelib.contract import (
    COORDINATES,
    Over,
    diverged,
    has_tokens,
    places_of,
    token_coordinates,
)
from probelib.estimators.weighted import mean, weights_of

if TYPE_CHECKING:
    import xarray as xr

#: Samples that are read at a time: as many as lie together on disk, fewer if there are many draws.
BLOCK, BLOCK_BYTES = 8192, 2**28
#: What the numbers per sample are, and their units.
_PER_SAMPLE = {
    "loss_gain": ("loss gain", "nats"),
    "loss_variance": ("variance of the loss, K_ii", "nats^2"),
    "loss_gain_difference": ("difference of the loss gains", "nats"),
}


def blocks_of_losses(
    trace: xr.Dataset, needed: np.ndarray | None = None
) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of samples with their losses, (chain, draw, block) in float64.

    Args:
        trace: read block by block.
        needed: shape (sample,); blocks in which it is nowhere true are passed over.

    Raises:
        ValueError: fewer than two draws, a chain that diverged, losses that are not finite, or
            a store that is damaged on disk.
    """
    require_draws(trace)
    n, draws = trace.sizes["sample"], trace.sizes["chain"] * trace.sizes["draw"]
    size = int(np.clip(BLOCK_BYTES // (8 * draws), 64, BLOCK))
    for start in range(0, n, size):
        block = slice(start, min(start + size, n))
        if needed is not None and not needed[block].any():
            continue
        loss = _read(trace.loss, block)
        if not np.isfinite(loss).all():
            chain, draw, at = (int(i) for i in np.argwhere(~np.isfinite(loss))[0])
            raise ValueError(
                f"trace has a non-finite loss in chain {chain}, draw {draw}, "
                f"{_named(trace, start + at)}; select the chains and draws that are finite first"
            )
        yield block, loss.astype(np.float64)


def blocks_of_changes(trace: xr.Dataset) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of samples, each with its loss changes (chain, draw, block) in float64."""
    for block, loss in blocks_of_losses(trace):
        init = _read(trace.init_loss, block)
        if not np.isfinite(init).all():
            first = _named(trace, block.start + int((~np.isfinite(init)).argmax()))
            raise ValueError(
                f"trace has no l_i(w*) of {first}, "
                "which a loss change needs; give init_loss, where the trace was made elsewhere"
            )
        yield block, loss - init


def blocks_of_deviations(trace: xr.Dataset) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of samples, each with its losses less their mean over chains and draws.

    Not by way of the changes: these round, which would make a spread of a constant loss.
    """
    weights = weights_of(trace)
    for block, loss in blocks_of_losses(trace):
        yield block, loss - mean(loss, weights)


def _named(trace: xr.Dataset, at: int) -> str:
    """A sample, or a token, in words."""
    if "token" not in trace.coords:
        return f"sample {at}"
    return f"position {trace.token.values[at]} of sample {trace.sample_id.values[at]}"


def require_draws(trace: xr.Dataset) -> None:
    """Two draws or more, of chains that did not diverge (ValueError)."""
    if lost := diverged(trace):
        chain, at = next(iter(lost.items()))
        raise ValueError(
            f"trace has chain {chain}, which diverged at step {at['step']}"
            + (f" (and {len(lost) - 1} more that did)" if len(lost) > 1 else "")
            + f"; leave it out: trace.drop_sel(chain=[{', '.join(lost)}])"
        )
    draws = trace.sizes["chain"] * trace.sizes["draw"]
    if draws < 2:
        raise ValueError(f"trace has {draws} draws; an estimate needs at least two")


def sample_coords(data: xr.Dataset) -> dict[str, xr.DataArray]:
    """The coordinates along ``sample`` of a data set, such as ``sample_id``, in memory."""
    names = [*COORDINATES, *sorted(map(str, set(data.coords) - {*COORDINATES, "mcse"}))]
    along = [name for name in names if name in data.coords and data[name].dims == ("sample",)]
    return {name: data[name].compute() for name in along}


def per_sample(
    coords: Mapping[str, Any], values: np.ndarray, mcse: np.ndarray, name: str
) -> xr.DataArray:
    """One number per sample with its Monte-Carlo standard error, as the coordinate ``mcse``."""
    import xarray as xr  # slow to import, so where it is used

    long_name, units = _PER_SAMPLE[name]
    error = {"long_name": f"Monte-Carlo standard error of the {long_name}", "units": units}
    return xr.DataArray(
        values,
        dims="sample",
        coords={**coords, "mcse": ("sample", mcse, error)},
        name=name,
        attrs={"long_name": long_name, "units": units},
    )


def by_token(values: xr.DataArray, trace: xr.Dataset, over: Over) -> xr.DataArray:
    """Estimates along all tokens of a trace as (sample, token), NaN where there is none.

    Those of a trace without tokens, or of its samples, stay as they are.
    """
    if over == "sample" or not has_tokens(trace):
        return values
    import xarray as xr  # slow to import, so where it is used

    places, coords = places_of(trace), token_coordinates(trace)
    for name, coord in values.coords.items():
        if name not in coords:
            coords[str(name)] = (("sample", "token"), places.spread(coord.values), coord.attrs)
    spread = places.spread(values.values)
    return xr.DataArray(spread, coords, ("sample", "token"), values.name, values.attrs)


def with_step_bias(of: xr.DataArray, bias: np.ndarray) -> xr.DataArray:
    """Numbers per sample with the coordinate ``step_bias``."""
    said = {"long_name": f"step bias of the {of.attrs['long_name']}", "units": of.attrs["units"]}
    return of.assign_coords(step_bias=("sample", bias, said))


def _read(of: xr.DataArray, samples: slice) -> np.ndarray:
    """Values of some samples, which the store's checksums must find as they were written."""
    try:
        return of[..., samples].values
    except (ValueError, OSError) as error:
        raise ValueError(
            f"trace cannot be read: {of.name} of samples {samples.start} to {samples.stop - 1} is "
            f"damaged on disk ({error}); restore the store from a copy or sample it again"
        ) from error


__all__ = [
    "blocks_of_changes",
    "blocks_of_deviations",
    "blocks_of_losses",
    "by_token",
    "per_sample",
    "require_draws",
    "sample_coords",
    "with_step_bias",
]
