"""The trace store: create, append, resume, open. An xarray data set over a Zarr v3 directory.

Variables, with dimensions ``chain``, ``draw``, ``sample``, ``step``:

=================  ====================  ==========================================================
``loss``           chain, draw, sample   l_i(w) at the draw, nats
``init_loss``      sample                l_i(w*), through the same code path
``sampling_loss``  chain, step           minibatch loss before each step
``distance``       chain, draw           |w - w*|
=================  ====================  ==========================================================

Coordinates: ``chain``, its number; ``sample_id`` and, where the observed data has one, ``label``.
Draw d is taken after ``burn_in + (d + 1) * thin`` steps. Root attributes hold the configuration,
the fingerprint, seed, device, ``draws_done`` and ``complete``, and ``wall_time``, the seconds of
work of all groups together. ``diverged`` names chains that did, which are NaN from there on.

Chains that advance together are a group, with files of its own in ``checkpoint/``: their weights
and generators at some step (safetensors), and how far they have come (JSON), which names the
former and is written last. Every file is written aside, synchronised and renamed into place, and
carries a checksum; so a run that is killed at any moment goes on from the group's last such pair.
"""

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
import xarray as xr
import zarr
from safetensors.torch import load, save
from torch import Tensor
from zarr.codecs import Crc32cCodec

from probelib.lock import hold

#: Raised whenever the same call would give other numbers or another layout, so that no store
#: written before the change is taken for one written after it.
FORMAT = 3

_DRAW_CHUNK = 50
_SAMPLE_CHUNK = 8192
_REQUIRED = {
    "loss": ["chain", "draw", "sample"],
    "distance": ["chain", "draw"],
    "sampling_loss": ["chain", "step"],
    "init_loss": ["sample"],
    "chain": ["chain"],
    "sample_id": ["sample"],
}
# What is ever decoded: plain numbers, in arrays of ours with a checksum and nothing else.
_DTYPES = {"bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))}
_DTYPES |= {"float16", "float32", "float64"}
_CODECS = {"bytes", "crc32c", "zstd", "gzip", "blosc"}


class TraceMismatch(ValueError):
    """A store holds a trace of something else than what was asked for, or a damaged one."""


class StoreError(OSError):
    """A store cannot be written: the disk is full, it is read-only, or it is gone."""


@dataclass
class ChainState:
    """All that a chain needs to continue: where it is and where its generators stand."""

    step: int
    weights: Tensor  # (n_parameters,)
    noise_rng: Tensor  # a torch generator's state, uint8
    batch_rng: dict[str, Any]  # a NumPy bit generator's state


@dataclass(frozen=True)
class Progress:
    """How far a group of chains has come.

    Attributes:
        step: of the states in ``checkpoint``; 0 without one.
        draws_done, steps_done: written; never fewer than at ``step``.
        wall_time: seconds of work.
        diverged: by position in the trace: the chain's last ``step`` and the ``draws`` before it.
        checkpoint: the file of the states, and its SHA-256.
        chunks: files of draws and steps, with the checksum (CRC-32C) that each ends in, so that no
            other sound chunk is taken for one of them.
    """

    step: int = 0
    draws_done: int = 0
    steps_done: int = 0
    wall_time: float = 0.0
    diverged: dict[int, dict[str, int]] = field(default_factory=dict)
    checkpoint: tuple[str, str] | None = None
    chunks: dict[str, str] = field(default_factory=dict)


class TraceStore:
    """A trace while it grows. ``path=None`` keeps it in memory, without checkpoints."""

    def __init__(self, path: str | os.PathLike | None):
        self.path = None if path is None else Path(path)
        self._store = zarr.storage.MemoryStore() if path is None else self.path
        self._group: zarr.Group | None = None
        self._in_memory: dict[int, Progress] = {}
        self._unsynced: set[Path] = set()

    def exists(self) -> bool:
        """Whether a probelib trace lies here, of whatever format and in whatever state.

        Raises:
            TraceMismatch: something else lies here.
        """
        if self.path is None or not self.path.exists():
            return False
        if self.path.is_dir() and not any(self.path.iterdir()):
            return False
        try:
            root = json.loads((self.path / "zarr.json").read_bytes())
            if root["zarr_format"] == 3 and root["attributes"]["probelib_format"] is not None:
                return True
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        raise TraceMismatch(
            f"store {str(self.path)!r} exists and is not a trace of probelib; choose another path"
        )

    def open(self) -> None:
        """Read what lies here, after a look at all of it but the values.

        Raises:
            TraceMismatch: it has another format, a part of it is missing or damaged, or it would
                be decoded by anything but plain numbers with a checksum.
        """
        try:
            self._check_layout()
            self._group = zarr.open_group(self._store, mode="r+", zarr_format=3)
            for group in self.groups:
                self._check_chunks(group, self.progress(group))
        except TraceMismatch:
            raise
        except PermissionError:
            raise
        except Exception as error:  # whatever is wrong with a file
            raise self._damaged(f"{type(error).__name__}: {error}") from error

    @property
    def attrs(self) -> dict[str, Any]:
        return dict(self._group.attrs)

    @property
    def loss_dtype(self) -> np.dtype:
        return self._group["loss"].dtype

    @property
    def shape(self) -> tuple[int, int, int]:
        """Room for (chain, draw, sample)."""
        return self._group["loss"].shape

    @property
    def groups(self) -> list[slice]:
        """The chains that advance together, as they were grouped when the trace was begun."""
        ends = np.cumsum(self.attrs["groups"]).tolist()
        return [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]

    def create(
        self,
        *,
        chains: int,
        draws: int,
        steps: int,
        init_loss: np.ndarray,
        labels: np.ndarray | None,
        loss_dtype: str,
        attrs: dict[str, Any],
        groups: list[int] | None = None,
        first_chain: int = 0,
    ) -> None:
        """Lay out an empty trace, in the place of the one that lies here, if any.

        It is made aside and moved into place whole, so that a failure leaves what was there.

        Args:
            groups: numbers of chains that advance together; default: all of them.
            first_chain: the number of the first.

        Raises:
            TraceMismatch: something that is not a trace lies here.
            StoreError: it cannot be written.
        """
        attrs = attrs | {"groups": groups or [chains]}
        layout = (chains, draws, steps, init_loss, labels, loss_dtype, attrs, first_chain)
        if self.path is None:
            self._lay_out(self._store, *layout)
            return
        place = self.path.resolve()  # a link stays a link
        aside = place.with_name(f".{place.name}.{os.getpid()}-{uuid4().hex[:8]}")
        old = aside.with_name(f"{aside.name}.old")
        with self.told("nothing was written"):
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lay_out(aside, *layout)
                for file in aside.rglob("*"):
                    _synchronise(file)
                if self.exists():  # looked at again: much time may have passed
                    os.rename(place, old)
                os.rename(aside, place)
                _synchronise(place.parent)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
        self._group = zarr.open_group(self._store, mode="r+", zarr_format=3)

    def _lay_out(
        self,
        store: Any,
        chains: int,
        draws: int,
        steps: int,
        init_loss: np.ndarray,
        labels: np.ndarray | None,
        loss_dtype: str,
        attrs: dict[str, Any],
        first_chain: int,
    ) -> None:
        n = len(init_loss)
        group = zarr.create_group(store, zarr_format=3)

        def array(name: str, sizes: tuple[int, ...], chunks: tuple[int, ...], dtype: Any) -> Any:
            # Losses are close to random bits: compression costs time and saves next to nothing.
            return group.create_array(
                name,
                shape=sizes,
                chunks=chunks,
                dtype=dtype,
                fill_value=np.nan if np.issubdtype(dtype, np.floating) else 0,
                compressors=[Crc32cCodec()],
                dimension_names=_REQUIRED.get(name, ["sample"]),
                config={"write_empty_chunks": True},
            )

        draw_chunk, sample_chunk = min(draws, _DRAW_CHUNK), min(n, _SAMPLE_CHUNK)
        array("loss", (chains, draws, n), (1, draw_chunk, sample_chunk), loss_dtype)
        array("distance", (chains, draws), (1, draw_chunk), "float32")
        array("sampling_loss", (chains, steps), (1, min(steps, 8192)), "float32")
        array("init_loss", (n,), (n,), init_loss.dtype)[:] = init_loss
        number = np.arange(first_chain, first_chain + chains)
        array("chain", (chains,), (chains,), number.dtype)[:] = number
        coords = {"sample_id": np.arange(n)} | ({} if labels is None else {"label": labels})
        for name, values in coords.items():
            array(name, (n,), (n,), values.dtype)[:] = values
        group.create_group("checkpoint")
        self._group = group
        begun = {"draws_done": 0, "steps_done": 0, "complete": False}
        first = {"probelib_format": FORMAT, "coordinates": " ".join(["chain", *coords])}
        ends = {}
        if self.path is not None:
            files = (Path(store) / name / "c" / "0" for name in ("init_loss", "chain", *coords))
            ends = {f"{f.parent.parent.name}/c/0": _checksum_of(f) for f in files}
        self.put(**first, **attrs, **begun, chunks=ends)
        for part in self.groups:
            self._keep(part, Progress(), None if self.path is None else Path(store))

    def put(self, **attrs: Any) -> None:
        """Write root attributes, with a checksum over all of them."""
        new = json.loads(json.dumps(self.attrs | attrs))
        new.pop("checksum", None)
        self._group.attrs.update(new | {"checksum": _checksum(new)})
        if self.path is not None:
            self._unsynced.add(self.path / "zarr.json")

    def resize(self, *, draws: int, steps: int) -> None:
        """Make room for ``draws`` draws, or as many as any chain has; those that are done stay."""
        done = [self.progress(group) for group in self.groups]
        draws = max(draws, *(p.draws_done for p in done))
        steps = max(steps, *(p.steps_done for p in done))
        with self.told("all draws before it are kept"):
            for name, size in (("loss", draws), ("distance", draws), ("sampling_loss", steps)):
                array = self._group[name]
                if array.shape[1] != size:
                    array.resize((array.shape[0], size, *array.shape[2:]))
                    if self.path is not None:
                        self._unsynced.add(self.path / name / "zarr.json")

    def write_draws(
        self, chains: slice, first: int, loss: np.ndarray, distance: np.ndarray
    ) -> None:
        """Write draws ``first, first + 1, ...`` of some chains.

        Args:
            chains: which.
            first: position of the first draw.
            loss: shape (chains, k, sample); NaN from where a chain has diverged.
            distance: shape (chains, k).
        """
        draws = slice(first, first + loss.shape[1])
        self._write("loss", (chains, draws), loss)
        self._write("distance", (chains, draws), distance)

    def write_steps(self, chains: slice, first: int, sampling_loss: np.ndarray) -> None:
        """Write the minibatch losses (chains, k) of steps ``first, first + 1, ...``."""
        self._write(
            "sampling_loss", (chains, slice(first, first + sampling_loss.shape[1])), sampling_loss
        )

    def _write(self, name: str, at: tuple[slice, ...], values: np.ndarray) -> None:
        self.require_there()
        array = self._group[name]
        with self.told():
            try:
                array[at] = values.astype(array.dtype, copy=False)
            except ValueError as error:  # a chunk that is written in part is read first
                raise self._damaged(f"{name}: {error}") from error
        if self.path is not None:
            self._unsynced.update(self._chunks(name, at))

    def progress(self, group: slice) -> Progress:
        """How far a group of chains has come.

        Raises:
            TraceMismatch: its file is missing or damaged.
        """
        if self.path is None:
            return self._in_memory[group.start]
        file = self._progress_file(group)
        try:
            content = json.loads(file.read_bytes())
            checksum = content.pop("checksum")
            found = Progress(**content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._damaged(f"{file.name}: {error}") from error
        if checksum != _checksum(content):
            raise self._damaged(f"{file.name} does not have the content that its checksum says")
        found = replace(found, diverged={int(c): at for c, at in found.diverged.items()})
        return replace(found, checkpoint=found.checkpoint and tuple(found.checkpoint))

    def commit(self, group: slice, progress: Progress, states: list[ChainState] | None) -> None:
        """Make what was written of a group durable: its draws, then its states, then how far it is.

        Args:
            group: the chains.
            progress: but for its step and checkpoint, which are those of ``states``, and chunks.
            states: None where the chains stand in the middle of a step: the last ones stay.
        """
        if self.path is None:
            self._in_memory[group.start] = progress
            return
        with self.told():
            old = self.progress(group)
            written = (f for f in self._unsynced if f.name != "zarr.json")
            ends = {str(f.relative_to(self.path)): _checksum_of(f) for f in written}
            chunks = old.chunks | {name: end for name, end in ends.items() if end}
            self.synchronise()
            progress = replace(progress, step=old.step, checkpoint=old.checkpoint, chunks=chunks)
            if states is not None:
                step, content = states[0].step, _pack(states)
                file = self.path / "checkpoint" / f"chains-{group.start}-step-{step}.safetensors"
                write_atomically(file, content)
                named = file.name, hashlib.sha256(content).hexdigest()
                progress = replace(progress, step=step, checkpoint=named)
            self._keep(group, progress, self.path)
            for file in self.path.glob(f"checkpoint/chains-{group.start}-step-*"):
                if progress.checkpoint is None or file.name != progress.checkpoint[0]:
                    file.unlink(missing_ok=True)

    def _keep(self, group: slice, progress: Progress, root: Path | None) -> None:
        if root is None:
            self._in_memory[group.start] = progress
            return
        content = json.loads(json.dumps(asdict(progress)))
        text = json.dumps(content | {"checksum": _checksum(content)})
        write_atomically(root / "checkpoint" / self._progress_file(group).name, text.encode())

    def synchronise(self) -> None:
        """Wait until the disk has what was written."""
        folders = {file.parent for file in self._unsynced}
        for file in (*self._unsynced, *folders):
            _synchronise(file)
        self._unsynced.clear()

    def states(self, group: slice) -> list[ChainState]:
        """The last durable states of a group of chains.

        Raises:
            TraceMismatch: they are not all there, or damaged.
        """
        progress = self.progress(group)
        name, checksum = progress.checkpoint
        try:
            content = (self.path / "checkpoint" / Path(name).name).read_bytes()
            if hashlib.sha256(content).hexdigest() != checksum:
                raise ValueError("it does not have the content that its checksum says")
            return _unpack(content)
        except Exception as error:  # whatever is wrong with a file
            raise TraceMismatch(
                f"store {str(self.path)!r} can be read but not continued: its checkpoint of step "
                f"{progress.step} is missing or damaged ({error}). Ask for {progress.draws_done} "
                "draws or fewer, or choose another store"
            ) from error

    @property
    def diverged(self) -> dict[int, dict[str, int]]:
        """The chains that diverged, by position: their last ``step`` and the ``draws`` before."""
        found: dict[int, dict[str, int]] = {}
        for group in self.groups:
            found |= self.progress(group).diverged
        return dict(sorted(found.items()))

    def done(self, draws: int | None = None) -> tuple[int, int]:
        """Draws and steps that all chains have, but for those that diverged on the way.

        Args:
            draws: of the way; default: those that were asked for. If no chain came so far, it is
                what all of them have.
        """
        draws = self.attrs["config"]["draws"] if draws is None else draws
        going, lost = [], []
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

    def finish(self, **attrs: Any) -> None:
        """Repeat in the root attributes what the groups' files say, for readers of plain Zarr."""
        config = attrs.get("config", self.attrs["config"])
        draws, steps = self.done(config["draws"])
        now = {"draws_done": draws, "steps_done": steps, "complete": self._complete(config, draws)}
        with self.told("all draws are kept"):
            self.put(**now, **attrs)
            if self.path is not None:
                self.synchronise()

    def _complete(self, config: dict[str, Any], draws: int) -> bool:
        return draws >= config["draws"] and len(self.diverged) < config["chains"]

    def losses(self, draws: int, index: np.ndarray) -> np.ndarray:
        """The first draws' losses of some samples, shape (chain, draws, len(index))."""
        return self._group["loss"].oindex[:, slice(0, draws), index]

    def dataset(self, draws: int | None = None) -> xr.Dataset:
        """The trace up to its last complete draw, read lazily; see :meth:`done`."""
        with warnings.catch_warnings():  # of a file that is being written beside ours
            warnings.filterwarnings("ignore", "Object at .*partial")
            ds = xr.open_zarr(self._store, consolidated=False, chunks=None, zarr_format=3)
        draws, steps = self.done(draws)
        ds = ds.isel(draw=slice(draws), step=slice(steps))
        for internal in ("checksum", "chunks"):
            ds.attrs.pop(internal, None)
        number = ds.chain.values
        wall_time = ds.attrs["wall_time"] + sum(self.progress(g).wall_time for g in self.groups)
        return ds.assign_attrs(
            draws_done=draws,
            steps_done=steps,
            wall_time=wall_time,
            complete=self._complete(ds.attrs["config"], draws),
            diverged={str(number[c]): at for c, at in self.diverged.items()},
        )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the only one who writes here.

        Raises:
            StoreBusy: somebody else is.
            StoreError: nothing can be written here.
        """
        with ExitStack() as stack:
            if self.path is not None:
                with self.told("nothing was written"):
                    file = self.lock_file()
                    file.parent.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(hold(file, f"store {str(self.path)!r}"))
            yield

    def lock_file(self, group: slice | None = None) -> Path:
        """Whoever writes the store, or a group of its chains, holds this file."""
        if group is not None:
            return self.path.resolve() / "checkpoint" / f"chains-{group.start}.lock"
        place = self.path.resolve()
        return place.with_name(f".{place.name}.lock")

    def clean(self) -> None:
        """Remove what writers that were killed have left half written."""
        for file in self.path.rglob("*.partial"):
            file.unlink(missing_ok=True)
        for file in self.path.glob("checkpoint/.*"):
            file.unlink(missing_ok=True)

    def _progress_file(self, group: slice) -> Path:
        return Path(self.path or "") / "checkpoint" / f"chains-{group.start}.json"

    def _chunks(self, name: str, at: tuple[slice, ...]) -> Iterator[Path]:
        """The files of the chunks that a part of an array, all of its last axes, lies in."""
        array = self._group[name]
        at = (*at, *(slice(0, size) for size in array.shape[len(at) :]))
        ranges = [
            range(s.start // c, -(-s.stop // c)) for s, c in zip(at, array.chunks, strict=True)
        ]
        for index in np.ndindex(*(len(r) for r in ranges)):
            key = "/".join(str(r[i]) for r, i in zip(ranges, index, strict=True))
            yield self.path / name / "c" / key

    def _check_layout(self) -> None:
        root = json.loads((self.path / "zarr.json").read_bytes())
        attrs = root["attributes"]
        if attrs["probelib_format"] != FORMAT:
            raise TraceMismatch(
                f"store {str(self.path)!r} holds another trace: format is "
                f"{attrs['probelib_format']} there and {FORMAT} here. Choose another store, or "
                "pass overwrite=True to replace it; xarray.open_zarr still shows what it holds"
            )
        checksum = attrs.pop("checksum")
        if checksum != _checksum(attrs):
            raise self._damaged("zarr.json does not have the content that its checksum says")
        config, n = attrs["config"], None
        found = {file.parent.name: file for file in self.path.glob("*/zarr.json")}
        found.pop("checkpoint", None)
        for name in sorted({*_REQUIRED, *found}, key=[*_REQUIRED, *found].index):
            array = json.loads((self.path / name / "zarr.json").read_bytes())
            codecs = [codec["name"] for codec in array["codecs"]]
            plain = array["node_type"] == "array" and array["data_type"] in _DTYPES
            plain &= array["chunk_key_encoding"]["configuration"] == {"separator": "/"}
            plain &= _CODECS.issuperset(codecs) and not array.get("storage_transformers")
            dims = _REQUIRED.get(name, ["sample"] if name == "label" else None)
            if dims is not None:
                plain &= codecs == ["bytes", "crc32c"] and array["dimension_names"] == dims
            if not plain:
                raise self._damaged(f"{name} is not laid out as probelib lays it out")
            if dims is None:  # somebody's own, beside ours
                continue
            chunk, shape = array["chunk_grid"]["configuration"]["chunk_shape"], array["shape"]
            n = shape[-1] if n is None else n
            fits = len(shape) == len(chunk) == len(dims) and min(chunk) > 0
            fits &= dims[-1] != "sample" or shape[-1] == n
            fits &= dims[0] != "chain" or shape[0] == config["chains"] == sum(attrs["groups"])
            if not fits:
                raise self._damaged(f"{name} has the shape {shape}, which does not fit the rest")

    def _check_chunks(self, group: slice, progress: Progress) -> None:
        """Whether the files of all draws and steps that are done are there, in full length."""
        wanted: list[tuple[str, tuple[slice, ...]]] = []
        attrs = self.attrs
        if group.start == 0:
            for name in ("init_loss", "chain", "sample_id", "label"):
                if name in self._group:
                    wanted.append((name, (slice(0, self._group[name].shape[0]),)))
        for chain in range(group.start, group.stop):
            at = progress.diverged.get(chain, {})
            draws = at.get("draws", progress.draws_done)
            steps = min(at.get("step", progress.steps_done), progress.steps_done)
            one = slice(chain, chain + 1)
            wanted += [(name, (one, slice(0, draws))) for name in ("loss", "distance")]
            wanted.append(("sampling_loss", (one, slice(0, steps))))
        for name, at in wanted:
            array = self._group[name]
            if any(s.stop > size for s, size in zip(at, array.shape, strict=False)):
                raise self._damaged(f"{name} has no room for the draws that are done")
            length = int(np.prod(array.chunks)) * array.dtype.itemsize + 4
            # The last chunk may have been begun again by a writer who did not live to say so.
            whole = len(at) < 2 or at[1].stop // array.chunks[1]
            for file in self._chunks(name, at) if at[-1].stop else ():
                key = str(file.relative_to(self.path))
                if not file.is_file() or file.stat().st_size != length:
                    raise self._damaged(f"{key} is missing or truncated")
                known = attrs["chunks"] if len(at) < 2 else progress.chunks
                if (len(at) < 2 or int(key.split("/")[3]) < whole) and known.get(
                    key
                ) != _checksum_of(file):
                    raise self._damaged(f"{key} is not the chunk that was written there")

    def _damaged(self, what: str) -> TraceMismatch:
        return TraceMismatch(
            f"store {str(self.path)!r} is damaged: {what}. Restore it from a copy, choose another "
            "store, or pass overwrite=True to sample it again"
        )

    def require_there(self) -> None:
        """Raise StoreError if the store was taken away: Zarr would begin another in its place."""
        with self.told():
            if self.path is not None and not (self.path / "zarr.json").exists():
                raise FileNotFoundError(errno.ENOENT, "its zarr.json is gone")

    @contextmanager
    def told(self, kept: str = "") -> Iterator[None]:
        """What a file system refuses, in a sentence."""
        if self.path is None:
            yield
            return
        where = f"store {str(self.path)!r}"
        kept = kept or "the draws before are kept"
        again = "the same call then goes on from there"
        try:
            yield
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                text = (
                    f"{where} is on a full disk ({error.strerror}): {kept}; make room, and {again}"
                )
            elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                text = (
                    f"{where} cannot be written ({error.strerror}): {kept}; make it writable, and "
                    + again
                )
            elif error.errno == errno.ENOENT and not self.path.exists():
                text = f"{where} is gone while it was written; bring it back or choose another"
            else:
                text = f"{where} cannot be written ({error}): {kept}; see to it, and {again}"
            told = StoreError(text)
            told.errno = error.errno
            raise told from error


def open_trace(path: str | os.PathLike) -> xr.Dataset:
    """Open a trace from disk as a plain xarray data set, its variables read when used.

    An unfinished trace opens with the draws that all chains have, and ``complete`` False. Its
    values are read when used: load() it before you replace the store. That every file is there
    in full length is looked at now, that its content is right when it is read.

    Args:
        path: the directory given to :func:`probelib.sample` as ``store``.

    Returns:
        The data set described in :mod:`probelib.trace`.

    Raises:
        FileNotFoundError: nothing lies there.
        TraceMismatch: what lies there is not a trace of probelib, or a damaged one.
    """
    store = TraceStore(path)
    if not store.exists():
        raise FileNotFoundError(f"path {str(path)!r} holds no trace; check it or sample one first")
    store.open()
    return store.dataset()


def check_fingerprint(stored: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    """Refuse to serve a trace of something else.

    Raises:
        TraceMismatch: naming every field that differs, with both values.
    """
    fields = [k for k in {**stored, **wanted} if stored.get(k) != wanted.get(k)]
    if fields:
        found = "; ".join(
            f"{k} is {_short(stored.get(k))} there and {_short(wanted.get(k))} here"
            for k in sorted(fields)
        )
        raise TraceMismatch(
            f"store {str(path)!r} holds another trace: {found}. Choose another store, or pass "
            "overwrite=True to replace it"
        )


def check_losses(
    stored: np.ndarray, now: np.ndarray, index: np.ndarray, same_device: bool, path: Path
) -> None:
    """Refuse a trace whose losses at w* are not those of this model and loss.

    It sees what a fingerprint cannot: a function that a loss looks up when it runs.

    Args:
        stored: the trace's l_i(w*), shape (k,).
        now: the same samples' losses now, shape (k,).
        index: which samples these are, shape (k,).
        same_device: only rounding can differ; else another device's arithmetic.
        path: of the store, for the message.

    Raises:
        TraceMismatch: naming the first sample that differs.
    """
    then = stored
    # A confident sample's loss, exp(-margin), has the relative error that its margin has absolute.
    rtol, atol = (1e-4, 1e-6) if same_device else (1e-2, 1e-3)
    differ = ~np.isclose(now, then, rtol=rtol, atol=atol * np.abs(then).max())
    if differ.any():
        at = int(np.flatnonzero(differ)[0])
        raise TraceMismatch(
            f"store {str(path)!r} holds another trace: the loss of sample {index[at]} at w* is "
            f"{then[at]:.6g} there and {now[at]:.6g} here. Choose another store, or pass "
            "overwrite=True to replace it"
        )


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _checksum_of(chunk: Path) -> str | None:
    """The CRC-32C that a chunk's file ends in; None where there is no such file."""
    try:
        with chunk.open("rb") as file:
            file.seek(-4, os.SEEK_END)
            return file.read().hex()
    except OSError:  # a chunk of nothing but NaN is not kept
        return None


def _pack(states: list[ChainState]) -> bytes:
    """The states of a group of chains, all at one step."""
    tensors = {
        "weights": torch.stack([s.weights.cpu() for s in states]),
        "noise_rng": torch.stack([s.noise_rng.cpu() for s in states]),
    }
    rngs = json.dumps([s.batch_rng for s in states])
    return save(tensors, metadata={"step": str(states[0].step), "batch_rng": rngs})


def _unpack(content: bytes) -> list[ChainState]:
    tensors = load(content)
    length = int.from_bytes(content[:8], "little")
    meta = json.loads(content[8 : 8 + length])["__metadata__"]
    rows = zip(tensors["weights"], tensors["noise_rng"], json.loads(meta["batch_rng"]), strict=True)
    # A generator takes its state from an aligned tensor of its own only.
    return [ChainState(int(meta["step"]), w, noise.clone(), batch) for w, noise, batch in rows]


def _synchronise(path: Path) -> None:
    """Have the disk take what was written to a file, or to the list of files that a folder is."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:  # a chunk of nothing but NaN is not kept
        return
    except PermissionError:  # Windows opens no folders
        if path.is_dir():
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # what some file systems do for folders
            raise
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that no reader ever sees a part of it.

    The bytes go to a temporary file in the same directory, which then takes the final name in
    one step (``os.replace``); two processes that write at once leave one whole file.

    Raises:
        OSError: the directory is missing, read-only or full; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid4().hex[:8]}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _synchronise(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


__all__ = [
    "FORMAT",
    "ChainState",
    "Progress",
    "StoreError",
    "TraceMismatch",
    "TraceStore",
    "open_trace",
    "write_atomically",
]
