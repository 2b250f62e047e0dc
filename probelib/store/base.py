"""A trace while it grows: one interface, whether it lies in memory or on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from probelib.descriptions import described
from probelib.joined import run_number
from probelib.store.checkpoints import Checkpoint, Progress
from probelib.store.integrity import TraceMismatch
from probelib.store.layout import Sizes, Start, array_of, split
from probelib.tokens import Places

if TYPE_CHECKING:
    import xarray as xr

#: Root attributes that are of the store alone, and not shown in a trace.
_INTERNAL = ("checksum", "chunks", "probelib_format", "sizes")


class TraceStore(ABC):
    """A trace that chains write: its arrays, its root attributes, a record for each group.

    Chains that advance together are a group. A group's record says how far it is, and is written
    after all that it counts; the root attributes are the trace's configuration and sizes.
    """

    path: Path | None = None
    #: Root attributes, as they were last read or written here.
    attrs: dict[str, Any]
    #: Lengths of the dimensions; arrays may have more room than that.
    sizes: Sizes
    _group: zarr.Group
    _places: Places | None = None

    # --- what is there ---

    @property
    def is_open(self) -> bool:
        """Whether the trace was opened, or begun, here."""
        return hasattr(self, "_group")

    @abstractmethod
    def progress(self, group: slice) -> Progress:
        """How far a group of chains was when its record was last read or written here."""

    @abstractmethod
    def refresh(self, group: slice | None = None) -> None:
        """Read the record of a group, or of all, anew: others may write them (TraceMismatch)."""

    @abstractmethod
    def checkpoint(self, group: slice) -> Checkpoint:
        """Where a group of chains goes on from (TraceMismatch: it is missing or damaged)."""

    @abstractmethod
    def _open_arrays(self) -> xr.Dataset:
        """All arrays at the sizes of the root record, read when used."""

    # --- writing ---

    @abstractmethod
    def create(self, start: Start, groups: list[int], attrs: dict[str, Any]) -> None:
        """Begin a trace, in the place of the one that lies here, if any.

        Args:
            start: sizes, and what never changes.
            groups: numbers of chains that advance together.
            attrs: the run's root attributes.

        Raises:
            TraceMismatch: something that is not a trace lies here.
            StoreError: it cannot be written.
        """

    @abstractmethod
    def commit(self, group: slice, progress: Progress, checkpoint: Checkpoint | None) -> None:
        """Make what was written of a group durable: draws, then checkpoint, then its record.

        Args:
            group: the chains.
            progress: but for its step, checkpoint and chunks, which are the store's to fill in.
            checkpoint: None where the chains stand in the middle of a step: the last one stays.
        """

    @abstractmethod
    def _set_root(self, attrs: dict[str, Any], sizes: Sizes) -> None:
        """Replace the root attributes and the sizes, in one step."""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the only one who writes here (StoreBusy: somebody else is)."""
        yield

    @abstractmethod
    def clean(self) -> None:
        """Remove what writers that were killed have left. Only while the store is held."""

    @abstractmethod
    def require_there(self) -> None:
        """Raise StoreError if the store was taken away."""

    def write_draws(
        self, chains: slice, first: int, loss: np.ndarray, distance: np.ndarray
    ) -> None:
        """Write draws ``first, first + 1, ...`` of some chains.

        Args:
            chains: which.
            first: position of the first draw.
            loss: shape (chains, k, n_observed); NaN from where a chain has diverged.
            distance: shape (chains, k).
        """
        draws = slice(first, first + loss.shape[1])
        for name, values in split("loss", loss, self.places).items():
            self._write(name, (chains, draws), values)
        self._write("distance", (chains, draws), distance)

    def write_steps(self, chains: slice, first: int, recorded: dict[str, np.ndarray]) -> None:
        """Write what was recorded, each (chains, k), of steps ``first, first + 1, ...``."""
        with np.errstate(over="ignore"):  # of a chain on its way out: infinite says it
            for name, values in recorded.items():
                self._write(name, (chains, slice(first, first + values.shape[1])), values)

    def _write(self, name: str, at: tuple[slice, ...], values: np.ndarray) -> None:
        array = array_of(self._group, name)
        array[at] = values.astype(array.dtype, copy=False)

    def resize(self, draws: int, steps: int, config: dict[str, Any]) -> None:
        """Have room for ``draws`` draws, or as many as any chain has; those that are done stay.

        Arrays grow before the root record says so, and shrink after it: at every moment it says
        no more than there is.
        """
        draws = max(draws, *(self.progress(group).draws_done for group in self.groups))
        steps = max(steps, *(self.progress(group).steps_done for group in self.groups))
        self._resize_arrays(draws, steps, shrink=False)
        sizes = replace(self.sizes, draw=draws, step=steps)
        self._set_root(self.attrs | {"config": config}, sizes)
        self._resize_arrays(draws, steps, shrink=True)

    def _resize_arrays(self, draws: int, steps: int, shrink: bool) -> None:
        for name, dims in self.sizes.growing.items():
            array, size = array_of(self._group, name), steps if "step" in dims else draws
            if array.shape[1] > size if shrink else array.shape[1] < size:
                array.resize((array.shape[0], size, *array.shape[2:]))

    def finish(self, config: dict[str, Any]) -> None:
        """Repeat in the root attributes what the groups' records say, for readers of plain Zarr."""
        draws, steps = self.done(config["draws"])
        now = {"draws_done": draws, "steps_done": steps, "complete": self._complete(config, draws)}
        self._set_root(self.attrs | now | {"config": config}, self.sizes)

    # --- reading ---

    @property
    def loss_dtype(self) -> np.dtype:
        """Of the losses, as they are kept."""
        return array_of(self._group, "loss").dtype

    @property
    def groups(self) -> list[slice]:
        """The chains that advance together, as they were grouped when the trace was begun."""
        ends = np.cumsum(self.attrs["groups"]).tolist()
        return [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]

    @property
    def diverged(self) -> dict[int, dict[str, int]]:
        """The chains that diverged, by position: their last ``step`` and the ``draws`` before."""
        found: dict[int, dict[str, int]] = {}
        for group in self.groups:
            found |= self.progress(group).diverged
        return dict(sorted(found.items()))

    def ended(self, group: slice, draws: int) -> bool:
        """Whether a group has its draws, or no chain left that could take them."""
        progress = self.progress(group)
        return progress.draws_done >= draws or len(progress.diverged) == group.stop - group.start

    def done(self, draws: int | None = None) -> tuple[int, int]:
        """Draws and steps that all chains have, but for those that diverged on the way.

        Args:
            draws: of the way; default: those that were asked for. If no chain came so far, it is
                what all of them have.
        """
        draws = self.attrs["config"]["draws"] if draws is None else draws
        going: list[tuple[int, int]] = []
        lost: list[tuple[int, int]] = []
        for group in self.groups:
            progress = self.progress(group)
            for chain in range(group.start, group.stop):
                at = progress.diverged.get(chain)
                if at is None:
                    going.append((progress.draws_done, progress.steps_done))
                else:
                    (going if at["draws"] >= draws else lost).append((at["draws"], at["step"]))
        have, steps = zip(*(going or lost), strict=True)
        return min(have), min(steps)

    def _complete(self, config: dict[str, Any], draws: int) -> bool:
        return draws >= config["draws"] and len(self.diverged) < config["chains"]

    @property
    def places(self) -> Places | None:
        """Which samples have which tokens; None where there is one loss per sample."""
        if self.sizes.token is None:
            return None
        if self._places is None:
            self._places = Places(~np.isnan(np.asarray(array_of(self._group, "init_loss")[...])))
        return self._places

    @property
    def n_observed(self) -> int:
        """Losses at each draw: of all tokens that there are, then of all samples."""
        return self.sizes.sample + (0 if self.places is None else len(self.places))

    def init_loss(self, index: np.ndarray) -> np.ndarray:
        """l_i(w*) of some of the ``n_observed`` losses, shape (len(index),)."""
        return self._some("init_loss", (), index)

    def losses(self, draws: int, index: np.ndarray) -> np.ndarray:
        """Some of the first draws' ``n_observed`` losses, shape (chain, draws, len(index))."""
        return self._some("loss", (slice(None), slice(0, draws)), index)

    def _some(self, name: str, at: tuple[slice, ...], index: np.ndarray) -> np.ndarray:
        """Losses at some of the ``n_observed`` places, at draws or at w*."""
        places = self.places
        if places is None:
            return np.asarray(array_of(self._group, name).oindex[*at, index])
        index, n = np.asarray(index), len(places)
        of_tokens = index < n
        rows, back = np.unique(places.sample[index[of_tokens]], return_inverse=True)
        part = np.asarray(array_of(self._group, name).oindex[*at, rows])
        of_samples = array_of(self._group, name.replace("loss", "sample_loss"))
        found = np.empty((*part.shape[:-2], len(index)), part.dtype)
        found[..., of_tokens] = part[..., back, places.token[index[of_tokens]]]
        found[..., ~of_tokens] = of_samples.oindex[*at, index[~of_tokens] - n]
        return found

    def dataset(self, draws: int | None = None) -> xr.Dataset:
        """The trace up to its last complete draw, read lazily; see :meth:`done`.

        Raises:
            TraceMismatch: another trace was put in its place since it was opened.
        """
        from probelib.trace import Trace  # slow to import, so where it is used

        opened = self._open_arrays()
        ds = Trace(opened.data_vars, opened.coords, opened.attrs)
        if ds.attrs.get("fingerprint") != self.attrs.get("fingerprint"):
            raise TraceMismatch(
                f"store {str(self.path)!r} was replaced while it was read; open it again"
            )
        draws, steps = self.done(draws)
        ds = ds.isel(draw=slice(draws), step=slice(steps))
        for name in _INTERNAL:
            ds.attrs.pop(name, None)
        for array in ds.variables.values():  # how it lies here is no rule for a copy
            array.encoding = {"fill_value": np.nan} if array.dtype.kind == "f" else {}
        run = run_number(ds.attrs["fingerprint"], ds.attrs["config"]["thin"])
        ds = ds.assign_coords(run=run)
        number = ds.chain.values
        records = [self.progress(group) for group in self.groups]
        return described(ds).assign_attrs(
            draws_done=draws,
            steps_done=steps,
            wall_time=ds.attrs["wall_time"] + sum(record.wall_time for record in records),
            complete=self._complete(ds.attrs["config"], draws),
            diverged={str(number[c]): at for c, at in self.diverged.items()},
        )


__all__ = ["TraceStore"]
