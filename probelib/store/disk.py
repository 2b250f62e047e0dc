"""A trace on disk: a Zarr v3 directory that opens at every moment, whatever ended its writers.

What counts are two kinds of records, each a file that is replaced in one rename: the root record
(``zarr.json``: configuration and sizes), and one for each group of chains
(``checkpoint/chains-N.json``: how far it is, and in which file its checkpoint lies). Everything
else is written before the record that counts it, and ignored until then. Every file is written
aside, synchronised and renamed into place, and carries a checksum.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import zarr

from probelib.observed_sets import apart
from probelib.store import copies, layout
from probelib.store.base import TraceStore
from probelib.store.checkpoints import Checkpoint, Progress
from probelib.store.integrity import (
    TraceMismatch,
    chunk_checksum,
    disk_errors,
    exchange,
    read_file,
    synchronise,
    write_atomically,
)
from probelib.store.layout import FORMAT, Sizes, Start
from probelib.store.locks import StoreBusy, hold
from probelib.store.paths import local_path

if TYPE_CHECKING:
    import xarray as xr

#: Files in ``checkpoint/`` through which a call and its workers meet; none outlives the call.
JOB, CALL = "job.pickle", "call"
# How long a call waits for a worker that is about to notice that it is not wanted any more.
_PATIENCE = 120.0
# A reader beside a writer begins again when the writer commits; so often at most.
_ATTEMPTS = 50


class DiskStore(TraceStore):
    """A trace in a directory."""

    path: Path

    def __init__(self, path: str | os.PathLike):
        self.path = local_path("store", path)
        self._progress: dict[int, Progress] = {}
        self._unsynced: set[Path] = set()
        self._read: dict[Path, bytes | None] = {}
        self._is_held = False

    # --- what is there ---

    def exists(self) -> bool:
        """Whether a trace lies here, of whatever format and in whatever state.

        Raises:
            TraceMismatch: something else does.
        """
        self._recover()
        if not self.path.exists():
            return False
        if self.path.is_dir() and not any(self.path.iterdir()):
            return False
        if layout.is_trace(self.path):
            return True
        raise TraceMismatch(
            f"store {str(self.path)!r} exists and is not a trace of probelib; choose another path"
        )

    def open(self) -> None:
        """Read what lies here, after a look at all of it but the values.

        Raises:
            TraceMismatch: it has another format, a part of it is missing or damaged, or it would
                be decoded by anything but plain numbers with a checksum.
        """
        for _ in range(_ATTEMPTS):
            try:
                self._open()
            except PermissionError:
                raise
            except Exception as error:  # whatever is wrong with a file
                if self.changed():  # a writer has committed since the first file was read
                    continue
                if isinstance(error, TraceMismatch):
                    raise
                raise self._damaged(_in_words(error)) from error
            return
        raise self._damaged("its records change faster than they can be read")

    def _open(self) -> None:
        """Read the root record and those of all groups, and check what they count."""
        self._read.clear()
        root = json.loads(self._remember(self.path / "zarr.json"))
        found = root["attributes"]["probelib_format"]
        if found != FORMAT:
            raise TraceMismatch(
                f"store {str(self.path)!r} holds another trace: format is {found} there and "
                f"{FORMAT} here. Choose another store, or pass overwrite=True to replace it; "
                "xarray.open_zarr still shows what it holds"
            )
        self.attrs, self.sizes = layout.check_root(root)
        layout.check_arrays(self.path, root, self.sizes)
        self._group = zarr.open_group(self.path, mode="r+", zarr_format=3, use_consolidated=False)
        self._places = None
        layout.check_written_once(self.path, self._group, self.attrs, self.sizes)
        self.refresh()
        for group in self.groups:
            progress = self._progress[group.start]
            layout.check_draws(self.path, self._group, group, progress, self.sizes)

    def changed(self) -> bool:
        """Whether somebody has committed since the records were read here."""
        return any(_content(file) != content for file, content in self._read.items())

    def _remember(self, file: Path) -> bytes:
        """Read a record; :meth:`changed` then looks whether it is still the same."""
        self._read[file] = None
        self._read[file] = content = read_file(file)
        return content

    def progress(self, group: slice) -> Progress:
        return self._progress[group.start]

    def refresh(self, group: slice | None = None) -> None:
        for part in self.groups if group is None else [group]:
            file = self._record(part)
            try:
                found = Progress.from_json(json.loads(self._remember(file)))
                if not set(found.diverged) <= set(range(part.start, part.stop)):
                    raise ValueError("it names chains of other groups")
            except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
                raise self._damaged(f"{file.name}: {error}") from error
            self._progress[part.start] = found

    def checkpoint(self, group: slice) -> Checkpoint:
        progress = self.progress(group)
        name, digest = progress.checkpoint or ("", "")
        try:
            content = read_file(self.path / "checkpoint" / Path(name).name)
            if hashlib.sha256(content).hexdigest() != digest:
                raise ValueError("it does not have the content that its checksum says")
            return Checkpoint.from_bytes(content)
        except Exception as error:  # whatever is wrong with a file
            raise TraceMismatch(
                f"store {str(self.path)!r} can be read but not continued: its checkpoint of step "
                f"{progress.step} is missing or damaged ({error}). Ask for {progress.draws_done} "
                "draws or fewer, or choose another store"
            ) from error

    def _open_arrays(self) -> xr.Dataset:
        import xarray as xr  # slow to import, so where it is used

        with warnings.catch_warnings():  # of a file that is being written beside ours
            warnings.filterwarnings("ignore", "Object at .*partial")
            return xr.open_zarr(self.path, consolidated=True, chunks=None, zarr_format=3)

    # --- writing ---

    def create(self, start: Start, groups: list[int], attrs: dict[str, Any]) -> None:
        """Begin a trace: see :meth:`TraceStore.create`.

        It is made aside and moved into place whole, so that a failure leaves what was there.
        """
        place = self.path.resolve()  # a link stays a link
        aside = place.with_name(f".{place.name}.{os.getpid()}-{uuid4().hex[:8]}")
        with disk_errors(self.path, "nothing was written"):
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lay_out(aside, start, groups, attrs)
                if self.exists():  # looked at again: much time may have passed
                    _replace(place, aside)
                else:
                    os.rename(aside, place)
                synchronise(place.parent)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        self._group = zarr.open_group(self.path, mode="r+", zarr_format=3, use_consolidated=False)
        self._places = None
        self._progress = {group.start: Progress() for group in self.groups}

    def _lay_out(
        self, folder: Path, start: Start, groups: list[int], attrs: dict[str, Any]
    ) -> None:
        group = zarr.create_group(folder, zarr_format=3)
        layout.create_arrays(group, start)
        group.create_group("checkpoint")
        attrs = layout.first_attributes(start, groups, attrs)
        attrs |= {"chunks": layout.written_once(folder, attrs, start.sizes)}
        self.attrs, self.sizes = layout.write_root(folder, attrs, start.sizes), start.sizes
        for part in self.groups:
            file = folder / "checkpoint" / self._record(part).name
            write_atomically(file, json.dumps(Progress().to_json()).encode())
        for file in folder.rglob("*"):
            synchronise(file)

    def _write(self, name: str, at: tuple[slice, ...], values: np.ndarray) -> None:
        self.require_there()
        with disk_errors(self.path):
            try:
                super()._write(name, at, values)
            except ValueError as error:  # a chunk that is written in part is read first
                raise self._damaged(f"{name}: {error}") from error
        keys = layout.chunk_keys(layout.array_of(self._group, name), at)
        self._unsynced.update(self.path / name / key for key in keys)

    def commit(self, group: slice, progress: Progress, checkpoint: Checkpoint | None) -> None:
        with disk_errors(self.path):
            old = self._progress[group.start]
            ends = {str(f.relative_to(self.path)): chunk_checksum(f) for f in self._unsynced}
            chunks = old.chunks | {name: end for name, end in ends.items() if end}
            for file in (*self._unsynced, *{file.parent for file in self._unsynced}):
                synchronise(file)
            self._unsynced.clear()
            progress = replace(progress, step=old.step, checkpoint=old.checkpoint, chunks=chunks)
            if checkpoint is not None:
                step, content = checkpoint.step, checkpoint.to_bytes()
                file = self.path / "checkpoint" / f"chains-{group.start}-step-{step}.safetensors"
                write_atomically(file, content)
                named = file.name, hashlib.sha256(content).hexdigest()
                progress = replace(progress, step=step, checkpoint=named)
            write_atomically(self._record(group), json.dumps(progress.to_json()).encode())
            self._progress[group.start] = progress
            for file in self.path.glob(f"checkpoint/chains-{group.start}-step-*"):
                if progress.checkpoint is None or file.name != progress.checkpoint[0]:
                    file.unlink(missing_ok=True)

    def _set_root(self, attrs: dict[str, Any], sizes: Sizes) -> None:
        with disk_errors(self.path, "all draws are kept"):
            self.attrs, self.sizes = layout.write_root(self.path, attrs, sizes), sizes

    def _resize_arrays(self, draws: int, steps: int, shrink: bool) -> None:
        with disk_errors(self.path, "all draws before it are kept"):
            super()._resize_arrays(draws, steps, shrink)
            for name in self.sizes.growing:
                synchronise(self.path / name / "zarr.json")

    def require_there(self) -> None:
        """Zarr would begin another store in the place of one that was taken away."""
        with disk_errors(self.path):
            if not (self.path / "zarr.json").exists():
                raise FileNotFoundError(errno.ENOENT, "its zarr.json is gone")

    # --- one writer, and what killed ones have left ---

    @contextmanager
    def held(self) -> Iterator[None]:
        file = self.lock_file()
        with ExitStack() as stack:
            with disk_errors(self.path, "nothing was written"):
                file.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(hold(file, f"store {str(self.path)!r}"))
            self._is_held = True
            try:
                yield
            finally:
                self._is_held = False

    @contextmanager
    def group_held(self, group: slice) -> Iterator[None]:
        """Be the only one who writes a group of chains, and know how far it is.

        Raises:
            StoreBusy: a worker of an earlier call is still at it, and does not stop.
        """
        what = f"{group_name(group)} of store {str(self.path)!r}"
        with hold(self.lock_file(group), what, wait=_PATIENCE):
            self.refresh(group)
            yield

    def lock_file(self, group: slice | None = None) -> Path:
        """Whoever writes the store, or a group of its chains, holds this file."""
        place = self.path.resolve()
        if group is not None:
            return place / "checkpoint" / f"chains-{group.start}.lock"
        return place.with_name(f".{place.name}.lock")

    def dismiss_workers(self) -> None:
        """Have the workers of an earlier call stop, and wait until they wrote what they have.

        Raises:
            StoreBusy: one of them does not stop.
        """
        with disk_errors(self.path, "nothing was changed"):
            (self.path / "checkpoint" / CALL).unlink(missing_ok=True)
            for group in self.groups:
                with self.group_held(group):
                    pass

    def clean(self) -> None:
        """Remove what writers that were killed have left. Only while the store is held."""
        with disk_errors(self.path, "nothing was changed"):
            for file in list(_leftovers(self.path.resolve())):
                if file.is_dir() and not file.is_symlink():
                    shutil.rmtree(file, ignore_errors=True)
                else:
                    file.unlink(missing_ok=True)

    def clean_if_free(self) -> None:
        """The same for a call that writes nothing; it stays undone where somebody is at it."""
        with suppress(StoreBusy, OSError):
            if self.lock_file().exists() or any(True for _ in _leftovers(self.path.resolve())):
                with self.held():
                    (self.path / "checkpoint" / CALL).unlink(missing_ok=True)
                    self.clean()

    def _recover(self) -> None:
        """Bring back the trace that an overwriting call had moved aside when it was killed."""
        if os.path.lexists(self.path.resolve()):  # a link may lead to what was moved aside
            return
        for old in _moved_aside(self.path.resolve()):
            if old.name.endswith(".old") and layout.is_trace(old):
                holding = nullcontext() if self._is_held else self.held()
                with suppress(StoreBusy, OSError), holding:  # busy: that call is still at it
                    os.rename(old, self.path.resolve())
                return

    def _record(self, group: slice) -> Path:
        return self.path / "checkpoint" / f"chains-{group.start}.json"

    def _damaged(self, what: str) -> TraceMismatch:
        return TraceMismatch(
            f"store {str(self.path)!r} is damaged: {what}. Restore it from a copy, choose another "
            "store, or pass overwrite=True to sample it again"
        )


def open_trace(path: str | os.PathLike) -> xr.Dataset | Any:
    """Open a trace from disk as a plain xarray data set, its variables read when used.

    An unfinished trace opens with the draws that all chains have, and ``complete`` False. Its
    values are read when used: load() it before you replace the store. That every file is there
    in full length is looked at now, that its content is right when it is read.

    A copy that ``to_zarr`` made, of all of a trace or a part, opens as well: ``draws_done`` and
    ``complete`` are then those of the copy, and it has only the checksums that it was written with.

    Args:
        path: the directory given to :func:`probelib.sample` as ``store``, or a copy's.

    Returns:
        The data set described in :mod:`probelib.contract`; a tree of them where several sets were
        observed.

    Raises:
        FileNotFoundError: nothing lies there.
        TraceMismatch: what lies there is not a trace of probelib, or a damaged one.
        ValueError: it is a URL; ``xarray.open_zarr`` opens those.
    """
    url = "open it with xarray.open_zarr, whose data set every estimator takes"
    store = DiskStore(local_path("path", path, instead=url))
    if (copied := copies.open_copy(store.path)) is not None:
        return copied
    try:
        there = store.exists()
    except TraceMismatch as error:
        raise TraceMismatch(
            f"path {str(path)!r} exists and is not a trace of probelib; where xarray.open_zarr or "
            "xarray.open_dataset reads it, estimators take what that gives"
        ) from error
    if not there:
        raise FileNotFoundError(f"path {str(path)!r} holds no trace; check it or sample one first")
    store.open()
    return apart(store.dataset())


def _leftovers(place: Path) -> Iterator[Path]:
    """What calls that were killed have left in a store, and beside it."""
    if layout.is_trace(place):  # in anything else, nothing is ours
        meeting = (place / "checkpoint" / name for name in (JOB, CALL))
        yield from (file for file in meeting if file.exists())
        yield from place.glob(".zarr.json.*")
        yield from place.glob("checkpoint/.*")
        yield from place.glob("checkpoint/*.bar")
        yield from place.rglob("*.partial")
        yield from _moved_aside(place)
    else:  # what an overwriting call moved aside may be all that is left of a trace
        yield from (folder for folder in _moved_aside(place) if folder.suffix != ".old")


def _moved_aside(place: Path) -> list[Path]:
    """Folders of calls that were killed while they made a store, or replaced one."""
    ours = re.compile(rf"\.{re.escape(place.name)}\.\d+-[0-9a-f]{{8}}(\.old)?")
    names = os.listdir(place.parent) if place.parent.is_dir() else []
    return [place.parent / name for name in sorted(names) if ours.fullmatch(name)]


def group_name(group: slice) -> str:
    """A group of chains in words."""
    last = group.stop - 1
    return f"chain {group.start}" if last == group.start else f"chains {group.start} to {last}"


def _replace(place: Path, aside: Path) -> None:
    """Put a folder in the place of another, which is removed."""
    if exchange(aside, place):  # the old one lies aside now, where the caller removes it
        return
    old = aside.with_name(f"{aside.name}.old")
    os.rename(place, old)
    os.rename(aside, place)  # killed between the two: exists() brings the old one back
    shutil.rmtree(old, ignore_errors=True)


def _content(file: Path) -> bytes | None:
    """Of a record; None where there is none to be read."""
    try:
        return read_file(file)
    except OSError:
        return None


def _in_words(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if type(error) is ValueError else f"{type(error).__name__}: {text}"


__all__ = ["CALL", "JOB", "DiskStore", "group_name", "open_trace"]
