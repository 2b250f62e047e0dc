"""The trace store: create, append, resume, open. An xarray data set over a Zarr v3 directory.

Variables, with dimensions ``chain``, ``draw``, ``sample``, ``step``:

=================  ====================  ==========================================================
``loss``           chain, draw, sample   l_i(w) at the draw, nats
``init_loss``      sample                l_i(w*), through the same code path
``sampling_loss``  chain, step           minibatch loss before each step
``distance``       chain, draw           |w - w*|
=================  ====================  ==========================================================

Coordinates: ``sample_id`` and, where the observed data has one, ``label``. Draw d is taken after
``burn_in + (d + 1) * thin`` steps. Root attributes hold the configuration, the fingerprint, seed,
device, wall time, ``draws_done`` and ``complete``. Beside the arrays lies ``checkpoint/``: one
safetensors file a chain with its weights and generators at step ``checkpoint_step``.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import xarray as xr
import zarr
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

#: Raised whenever the same call would give other numbers or another layout, so that no store
#: written before the change is taken for one written after it.
FORMAT = 2

_DRAW_CHUNK = 50
_SAMPLE_CHUNK = 8192


class TraceMismatch(ValueError):
    """A store holds a trace of something else than what was asked for."""


@dataclass
class ChainState:
    """All that a chain needs to continue: where it is and where its generators stand."""

    step: int
    weights: Tensor  # (n_parameters,)
    noise_rng: Tensor  # a torch generator's state, uint8
    batch_rng: dict[str, Any]  # a NumPy bit generator's state


class TraceStore:
    """A trace while it grows. ``path=None`` keeps it in memory, without checkpoints."""

    def __init__(self, path: str | os.PathLike | None):
        self.path = None if path is None else Path(path)
        self._store = zarr.storage.MemoryStore() if path is None else self.path
        self._group: zarr.Group | None = None

    def exists(self) -> bool:
        """Whether a probelib trace lies here.

        Raises:
            TraceMismatch: something else lies here.
        """
        if self.path is None or not self.path.exists():
            return False
        if self.path.is_dir() and not any(self.path.iterdir()):
            return False
        try:
            self._group = zarr.open_group(self._store, mode="r+", zarr_format=3)
            if self._group.attrs.get("probelib_format") is not None:
                return True
        except (OSError, ValueError, KeyError, zarr.errors.BaseZarrError):
            pass
        raise TraceMismatch(
            f"store {str(self.path)!r} exists and is not a trace of probelib; choose another path"
        )

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
    ) -> None:
        """Lay out an empty trace, in the place of the one that lies here, if any.

        It is made aside and moved into place whole, so that a failure leaves what was there.

        Raises:
            TraceMismatch: something that is not a trace lies here.
        """
        if self.path is None:
            self._lay_out(self._store, chains, draws, steps, init_loss, labels, loss_dtype, attrs)
            return
        place = self.path.resolve()  # a link stays a link
        aside = place.with_name(f".{place.name}.{os.getpid()}-{uuid4().hex[:8]}")
        old = aside.with_name(f"{aside.name}.old")
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lay_out(aside, chains, draws, steps, init_loss, labels, loss_dtype, attrs)
            if self.exists():  # looked at again: much time may have passed
                os.rename(place, old)
            os.rename(aside, place)
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
    ) -> None:
        n = len(init_loss)
        group = zarr.create_group(store, zarr_format=3)

        def array(name: str, dims: dict[str, int], chunks: tuple[int, ...], dtype: str) -> None:
            # Losses are close to random bits: compression costs time and saves next to nothing.
            group.create_array(
                name,
                shape=tuple(dims.values()),
                chunks=chunks,
                dtype=dtype,
                fill_value=np.nan,
                compressors=None,
                dimension_names=list(dims),
            )

        draw_chunk, sample_chunk = min(draws, _DRAW_CHUNK), min(n, _SAMPLE_CHUNK)
        array(
            "loss",
            {"chain": chains, "draw": draws, "sample": n},
            (1, draw_chunk, sample_chunk),
            loss_dtype,
        )
        array("distance", {"chain": chains, "draw": draws}, (1, draw_chunk), "float32")
        array("sampling_loss", {"chain": chains, "step": steps}, (1, min(steps, 8192)), "float32")
        array("init_loss", {"sample": n}, (n,), init_loss.dtype.name)
        group["init_loss"][:] = init_loss
        coords = {"sample_id": np.arange(n)} | ({} if labels is None else {"label": labels})
        for name, values in coords.items():
            group.create_array(
                name, data=values, chunks=(n,), compressors=None, dimension_names=["sample"]
            )
        group.create_group("checkpoint")
        group.attrs.update(
            {"probelib_format": FORMAT, "coordinates": " ".join(coords), **attrs}
            | {"draws_done": 0, "steps_done": 0, "checkpoint_step": 0, "complete": False}
        )
        self._group = group

    def resize(self, *, draws: int, steps: int) -> None:
        """Make room for ``draws`` draws; those that are done stay."""
        for name, size in (("loss", draws), ("distance", draws), ("sampling_loss", steps)):
            array = self._group[name]
            array.resize((array.shape[0], size, *array.shape[2:]))
        self._group.attrs.update({"complete": False})

    def write_draws(self, first: int, loss: np.ndarray, distance: np.ndarray) -> None:
        """Write draws ``first, first + 1, ...``; loss (chain, k, sample), distance (chain, k)."""
        last = first + loss.shape[1]
        self._group["loss"][:, first:last] = loss.astype(self._group["loss"].dtype, copy=False)
        self._group["distance"][:, first:last] = distance

    def write_steps(self, first: int, sampling_loss: np.ndarray) -> None:
        """Write the minibatch losses (chain, k) of steps ``first, first + 1, ...``."""
        self._group["sampling_loss"][:, first : first + sampling_loss.shape[1]] = sampling_loss

    def commit(self, states: list[ChainState] | None, **attrs: Any) -> None:
        """Make what was written durable: first the chains' states, then the attributes.

        The attribute ``checkpoint_step`` says which states count, so that all chains continue
        from the same step wherever the writing stopped.
        """
        if self.path is None or states is None:
            self._group.attrs.update(attrs)
            return
        step = states[0].step
        for chain, state in enumerate(states):
            write_atomically(self._checkpoint(step, chain), _pack(state))
        self._group.attrs.update(attrs | {"checkpoint_step": step})
        for old in self._checkpoint(step, 0).parent.glob("step-*"):
            if not old.name.startswith(f"step-{step}-"):
                old.unlink()

    def states(self, chains: int) -> list[ChainState]:
        """The chains' last durable states.

        Raises:
            TraceMismatch: they are not all there.
        """
        step = self.attrs["checkpoint_step"]
        try:
            return [_unpack(self._checkpoint(step, chain)) for chain in range(chains)]
        except Exception as error:  # whatever is wrong with a file
            raise TraceMismatch(
                f"store {str(self.path)!r} can be read but not continued: its checkpoint of step "
                f"{step} is missing or damaged ({error}). Ask for {self.attrs['draws_done']} "
                "draws or fewer, or choose another store"
            ) from error

    def losses(self, draws: int, index: np.ndarray) -> np.ndarray:
        """The first draws' losses of some samples, shape (chain, draws, len(index))."""
        return self._group["loss"].oindex[:, slice(0, draws), index]

    def dataset(self) -> xr.Dataset:
        """The trace up to its last complete draw, read lazily."""
        return _as_dataset(self._store)

    def _checkpoint(self, step: int, chain: int) -> Path:
        return self.path / "checkpoint" / f"step-{step}-chain-{chain}.safetensors"


def open_trace(path: str | os.PathLike) -> xr.Dataset:
    """Open a trace from disk as a plain xarray data set, its variables read when used.

    An unfinished trace opens with the draws that all chains have, and ``complete`` False. Its
    values are read when used: load() it before you replace the store.

    Args:
        path: the directory given to :func:`probelib.sample` as ``store``.

    Returns:
        The data set described in :mod:`probelib.trace`.

    Raises:
        FileNotFoundError: nothing lies there.
        TraceMismatch: what lies there is not a trace of probelib.
    """
    store = TraceStore(path)
    if not store.exists():
        raise FileNotFoundError(f"path {str(path)!r} holds no trace; check it or sample one first")
    return store.dataset()


def _as_dataset(store: Any) -> xr.Dataset:
    ds = xr.open_zarr(store, consolidated=False, chunks=None, zarr_format=3)
    return ds.isel(draw=slice(ds.attrs["draws_done"]), step=slice(ds.attrs["steps_done"]))


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


def _pack(state: ChainState) -> bytes:
    return save(
        {"weights": state.weights.cpu(), "noise_rng": state.noise_rng.cpu()},
        metadata={"step": str(state.step), "batch_rng": json.dumps(state.batch_rng)},
    )


def _unpack(path: Path) -> ChainState:
    with safe_open(path, framework="pt") as f:
        meta = f.metadata()
        return ChainState(
            step=int(meta["step"]),
            weights=f.get_tensor("weights"),
            noise_rng=f.get_tensor("noise_rng"),
            batch_rng=json.loads(meta["batch_rng"]),
        )


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
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


__all__ = [
    "FORMAT",
    "ChainState",
    "TraceMismatch",
    "TraceStore",
    "open_trace",
    "write_atomically",
]
