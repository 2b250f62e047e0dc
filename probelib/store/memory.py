"""A trace in memory: without checkpoints, and gone with the process."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import zarr

from probelib.store.base import TraceStore
from probelib.store.checkpoints import Checkpoint, Progress
from probelib.store.layout import Sizes, Start, create_arrays, first_attributes

if TYPE_CHECKING:
    import xarray as xr


class MemoryStore(TraceStore):
    """A trace in memory."""

    def __init__(self) -> None:
        self._store = zarr.storage.MemoryStore()
        self._progress: dict[int, Progress] = {}

    def create(self, start: Start, groups: list[int], attrs: dict[str, Any]) -> None:
        self._group = zarr.create_group(self._store, zarr_format=3)
        create_arrays(self._group, start)
        self._places = start.places
        self._set_root(first_attributes(start, groups, attrs), start.sizes)
        self._progress = {group.start: Progress() for group in self.groups}

    def progress(self, group: slice) -> Progress:
        return self._progress[group.start]

    def refresh(self, group: slice | None = None) -> None:
        """Nobody else writes here."""

    def clean(self) -> None:
        """Nothing is left of a process that was killed."""

    def require_there(self) -> None:
        """Nobody can take it away."""

    def commit(self, group: slice, progress: Progress, checkpoint: Checkpoint | None) -> None:
        self._progress[group.start] = replace(progress, checkpoint=None)

    def checkpoint(self, group: slice) -> Checkpoint:
        raise NotImplementedError("a trace in memory has no checkpoints")

    def _set_root(self, attrs: dict[str, Any], sizes: Sizes) -> None:
        self._group.update_attributes(attrs)
        self.attrs, self.sizes = attrs, sizes

    def _open_arrays(self) -> xr.Dataset:
        import xarray as xr  # slow to import, so where it is used

        return xr.open_zarr(self._store, consolidated=False, chunks=None, zarr_format=3)


__all__ = ["MemoryStore"]
