"""Copies that xarray's ``to_zarr`` made of a trace: a trace's variables, without its records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from probelib.store import layout
from probelib.store.integrity import TraceMismatch, read_json

if TYPE_CHECKING:
    import xarray as xr

#: Attributes that are of the store which was copied.
_OF_A_STORE = ("checksum", "chunks", "probelib_format", "sizes", "coordinates")


def is_copy(folder: Path) -> bool:
    """Whether xarray wrote this folder, from a trace or a part of one.

    A store's own arrays have no attributes; xarray notes the coordinates of those that it writes.
    """
    try:
        loss = read_json(folder / "loss" / "zarr.json")
        read_json(folder / "zarr.json")
        return "_FillValue" in loss["attributes"] or "coordinates" in loss["attributes"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def open_copy(folder: Path) -> xr.Dataset | None:
    """A copy as a trace, or None where there is none.

    Its attributes count what is in it: a copy of half the draws is not complete.

    Raises:
        TraceMismatch: it cannot be read, or holds what is no trace.
    """
    if not is_copy(folder):
        return None
    import xarray as xr  # slow to import, so where it is used

    from probelib.contract import canonical
    from probelib.trace import Trace

    what = f"path {str(folder)!r} is a copy that cannot be read as a trace"
    try:
        layout.check_plain(folder)
        opened = xr.open_zarr(folder, consolidated=False, chunks=None, zarr_format=3)
        whole = canonical(opened, "loss")
    except Exception as error:  # whatever is wrong with a file
        raise TraceMismatch(
            f"{what}: {' '.join(str(error).split())}; xarray.open_zarr shows what it holds"
        ) from error
    attrs = {k: value for k, value in whole.attrs.items() if k not in _OF_A_STORE}
    config = attrs.get("config")
    config = config if isinstance(config, dict) else {}
    draws, chains = whole.sizes["draw"], whole.sizes["chain"]
    attrs["draws_done"] = draws
    if "step" in opened.sizes:
        attrs["steps_done"] = opened.sizes["step"]
    whole_run = draws >= config.get("draws", draws) and chains >= config.get("chains", chains)
    attrs["complete"] = bool(attrs.get("complete", True)) and whole_run
    return Trace(opened.data_vars, opened.coords, attrs)


__all__ = ["is_copy", "open_copy"]
