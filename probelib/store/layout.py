"""How a trace lies in a Zarr v3 group: its arrays, its root record, and whether both are whole.

What the arrays are is in :mod:`probelib.contract`.

The root record is the file ``zarr.json``: attributes under a checksum, among them the sizes of the
trace, and the metadata of all arrays at these sizes (Zarr's consolidated metadata). It is replaced
in one rename, which is what commits a change of size; until then an array's own file may already
say more room, and what lies in that room is ignored.
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from probelib.arguments import is_whole
from probelib.contract import (
    ACCEPTANCE,
    COORDINATES,
    TOKEN_COORDINATES,
    TOKEN_VARIABLES,
    VARIABLES,
)
from probelib.store.checkpoints import Progress
from probelib.store.integrity import checksum, chunk_checksum, read_json, write_atomically
from probelib.tokens import Places

#: Raised whenever the same call would give other numbers or another layout, so that no store
#: written before the change is taken for one written after it.
FORMAT = 5

#: Dimensions of each array of a trace, and of one with losses per token.
_DIMENSIONS = VARIABLES | ACCEPTANCE | COORDINATES
_TOKEN_DIMENSIONS = _DIMENSIONS | TOKEN_VARIABLES | TOKEN_COORDINATES
_DRAW_CHUNK, _STEP_CHUNK, _SAMPLE_CHUNK = 50, 8192, 8192
# What is ever decoded: plain numbers, in arrays of ours with a checksum and nothing else.
_DTYPES = {"bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))}
_DTYPES |= {"float16", "float32", "float64"}
_CODECS = {"bytes", "crc32c", "zstd", "gzip", "blosc"}


@dataclass(frozen=True)
class Sizes:
    """Lengths of a trace's dimensions; ``token`` is None where there is one loss per sample.

    ``acceptance`` is 1 where each step has a proposal's probability, and else None.
    """

    chain: int
    draw: int
    step: int
    sample: int
    token: int | None = None
    acceptance: int | None = None

    @property
    def dimensions(self) -> dict[str, tuple[str, ...]]:
        """Of each array that a trace may have."""
        return _DIMENSIONS if self.token is None else _TOKEN_DIMENSIONS

    @property
    def variables(self) -> list[str]:
        """Arrays that a trace has, beside its coordinates."""
        every = VARIABLES if self.token is None else VARIABLES | TOKEN_VARIABLES
        return [*every, *(ACCEPTANCE if self.acceptance else ())]

    @property
    def growing(self) -> dict[str, tuple[str, ...]]:
        """Arrays that grow along draws or steps, with their dimensions."""
        dims = {name: self.dimensions[name] for name in self.variables}
        return {name: of for name, of in dims.items() if of[0] == "chain"}

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an array of the trace."""
        return tuple(getattr(self, dim) for dim in self.dimensions[name])

    def as_json(self) -> dict[str, int]:
        """Those that there are."""
        return {name: size for name, size in asdict(self).items() if size is not None}


@dataclass(frozen=True)
class Start:
    """What a trace begins with.

    Attributes:
        sizes: of its dimensions.
        init_loss: l_i(w*), shape (n_observed,): of the tokens that there are, then of the samples.
        labels: shape (sample,), or None.
        loss_dtype: "float64", "float32" or "float16".
        first_chain: number of the first chain.
        init_loss_mcse: of l_i(w*), shape (n_observed,), where the model draws at random.
        places: of tokens, where there are losses of them.
        token_ids: their targets, shape (sample, token), where these are whole numbers.
    """

    sizes: Sizes
    init_loss: np.ndarray
    labels: np.ndarray | None
    loss_dtype: str
    first_chain: int = 0
    init_loss_mcse: np.ndarray | None = None
    places: Places | None = None
    token_ids: np.ndarray | None = None

    def values(self) -> dict[str, np.ndarray]:
        """What never changes of the trace, coordinates included."""
        return split("init_loss", self.init_loss, self.places) | self.coordinates()

    def coordinates(self) -> dict[str, np.ndarray]:
        """Those of the trace."""
        number = np.arange(self.first_chain, self.first_chain + self.sizes.chain)
        found = {"chain": number, "sample_id": np.arange(self.sizes.sample)}
        if self.labels is not None:
            found["label"] = self.labels
        if self.init_loss_mcse is not None:
            found |= split("init_loss_mcse", self.init_loss_mcse, self.places)
        if self.places is not None:
            found["token"] = np.arange(self.places.positions)
            if self.token_ids is not None:
                found["token_id"] = self.token_ids
        return found


def split(name: str, values: np.ndarray, places: Places | None) -> dict[str, np.ndarray]:
    """Values (..., n_observed) by array: those of tokens, where there are some, and of samples."""
    if places is None:
        return {name: values}
    n, of_samples = len(places), name.replace("loss", "sample_loss")
    return {name: places.spread(values[..., :n]), of_samples: values[..., n:]}


def create_arrays(group: zarr.Group, start: Start) -> None:
    """Lay out the arrays of a trace, and write those that never change."""
    sizes = start.sizes
    token = min(sizes.token or 1, _SAMPLE_CHUNK)
    chunk = {
        "chain": 1,
        "draw": min(sizes.draw, _DRAW_CHUNK),
        "step": min(sizes.step, _STEP_CHUNK),
        "sample": min(sizes.sample, _SAMPLE_CHUNK),
        "token": token,
    }
    values = start.values()
    grown = dict.fromkeys(sizes.growing, "float32")
    for name in ("loss", "sample_loss"):
        if name in grown:
            grown[name] = start.loss_dtype
    if start.loss_dtype == "float64":
        grown["sampling_loss"] = "float64"
    for name in (*grown, *values):
        dims, dtype = sizes.dimensions[name], np.dtype(grown.get(name) or values[name].dtype)
        samples = min(sizes.sample, max(1, _SAMPLE_CHUNK // token))
        some = chunk | ({"sample": samples} if "token" in dims else {})
        array = group.create_array(
            name,
            shape=sizes.shape(name),
            chunks=sizes.shape(name) if name in values else tuple(some[dim] for dim in dims),
            dtype=dtype,
            fill_value=np.nan if np.issubdtype(dtype, np.floating) else 0,
            # Losses are close to random bits: compression costs time and saves next to nothing.
            compressors=[Crc32cCodec()],
            dimension_names=dims,
            config={"write_empty_chunks": True},
        )
        if name in values:
            array[...] = values[name]


# --- the root record ---


def first_attributes(start: Start, groups: list[int], attrs: dict[str, Any]) -> dict[str, Any]:
    """The root attributes of a trace that has no draws yet."""
    return {
        "probelib_format": FORMAT,
        "coordinates": " ".join(start.coordinates()),
        **attrs,
        "groups": groups,
        "draws_done": 0,
        "steps_done": 0,
        "complete": False,
        "chunks": {},
    }


def root_record(folder: Path, attrs: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    """What ``zarr.json`` says of a trace with these attributes and sizes.

    Args:
        folder: where the arrays lie.
        attrs: root attributes; sizes and checksum are added.
        sizes: at most what the arrays have room for.
    """
    content = json.loads(json.dumps(attrs | {"sizes": sizes.as_json()}))
    content.pop("checksum", None)
    arrays = {path.parent.name: read_json(path) for path in sorted(folder.glob("*/zarr.json"))}
    arrays = {k: a for k, a in arrays.items() if a.get("node_type") == "array"}
    return {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": content | {"checksum": checksum(content)},
        "consolidated_metadata": {
            "kind": "inline",
            "must_understand": False,
            "metadata": {k: _at_size(k, array, sizes) for k, array in arrays.items()},
        },
    }


def write_root(folder: Path, attrs: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    """Replace the root record in one step; returns its attributes."""
    record = root_record(folder, attrs, sizes)
    write_atomically(folder / "zarr.json", json.dumps(record).encode())
    return record["attributes"]


def _at_size(name: str, array: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    if name not in sizes.dimensions:  # somebody's own, beside ours
        return array
    return copy.deepcopy(array) | {"shape": list(sizes.shape(name))}


# --- whether it is whole ---


def is_trace(folder: Path) -> bool:
    """Whether a folder holds a trace of probelib, of whatever format and in whatever state."""
    try:
        root = read_json(folder / "zarr.json")
        return root["zarr_format"] == 3 and root["attributes"]["probelib_format"] is not None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def check_root(root: dict[str, Any]) -> tuple[dict[str, Any], Sizes]:
    """The attributes and sizes of a root record.

    Raises:
        ValueError: saying what cannot be in it.
    """
    attrs = dict(root["attributes"])
    if attrs.pop("checksum") != checksum(attrs):
        raise ValueError("zarr.json does not have the content that its checksum says")
    config = attrs["config"]
    sizes = Sizes(**attrs["sizes"])
    numbers = {f"sizes.{name}": value for name, value in sizes.as_json().items()}
    numbers |= {f"config.{k}": config[k] for k in ("chains", "draws", "thin", "burn_in")}
    numbers |= {name: attrs[name] for name in ("observe_batch_size", "seed")}
    for name, value in numbers.items():
        if not is_whole(value) or value < (name not in ("config.burn_in", "seed")):
            raise ValueError(f"{name} is {value!r}, which is no count")
    if not all(is_whole(group) and group > 0 for group in attrs["groups"]):
        raise ValueError("its groups of chains are not counts")
    if not config["chains"] == sizes.chain == sum(attrs["groups"]):
        raise ValueError("its numbers of chains do not agree")
    wall_time = attrs["wall_time"]
    if not isinstance(wall_time, int | float) or not 0 <= wall_time < float("inf"):
        raise ValueError(f"wall_time is {wall_time!r}")
    kinds: dict[str, Any] = {
        "chunks": dict,
        "coordinates": str,
        "device": str,
        "fingerprint": dict,
        "observe_together": bool,
    }
    for name, kind in kinds.items():
        if not isinstance(attrs[name], kind):
            raise ValueError(f"{name} is {attrs[name]!r}")
    return attrs, sizes


def check_arrays(folder: Path, root: dict[str, Any], sizes: Sizes) -> None:
    """Whether all arrays are there, laid out as :func:`create_arrays` does it, and large enough.

    Raises:
        ValueError: naming the first that is not.
        OSError: a file cannot be read.
    """
    wanted = [*sizes.variables, *root["attributes"]["coordinates"].split()]
    found = {path.parent.name for path in folder.glob("*/zarr.json")} - {"checkpoint", *wanted}
    consolidated = root["consolidated_metadata"]["metadata"]
    for name in (*wanted, *sorted(found)):
        array = read_json(folder / name / "zarr.json")
        plain = _is_plain(array)
        if name in wanted:
            plain &= [codec["name"] for codec in array["codecs"]] == ["bytes", "crc32c"]
            plain &= tuple(array["dimension_names"]) == sizes.dimensions[name]
        if not plain:
            raise ValueError(f"{name} is not laid out as probelib lays it out")
        if name not in wanted:  # somebody's own, beside ours
            continue
        chunk, shape = array["chunk_grid"]["configuration"]["chunk_shape"], array["shape"]
        if len(shape) != len(sizes.dimensions[name]) or not _fits(name, shape, chunk, sizes):
            raise ValueError(f"{name} has the shape {shape}, which does not fit the rest")
        if consolidated[name] != _at_size(name, array, sizes):
            raise ValueError(f"zarr.json and {name}/zarr.json do not agree")


def _is_plain(array: dict[str, Any]) -> bool:
    """Whether nothing but plain numbers is ever decoded from an array."""
    plain = array["node_type"] == "array" and array["data_type"] in _DTYPES
    plain &= array["chunk_key_encoding"]["configuration"] == {"separator": "/"}
    codecs = {codec["name"] for codec in array["codecs"]}
    return plain and codecs <= _CODECS and not array.get("storage_transformers")


def check_plain(folder: Path) -> None:
    """Whether all arrays of a folder are plain numbers (ValueError: naming the first that is not).

    Raises:
        OSError: a file cannot be read.
    """
    for file in sorted(folder.glob("*/zarr.json")):
        if not _is_plain(read_json(file)):
            raise ValueError(f"{file.parent.name} is not an array of plain numbers")


def _fits(name: str, shape: list[Any], chunk: list[Any], sizes: Sizes) -> bool:
    """Whether an array has room for the trace: more of it only along draws and steps."""
    if len(chunk) != len(shape) or not all(is_whole(c) and c > 0 for c in chunk):
        return False
    if name not in sizes.growing:
        return shape == chunk == list(sizes.shape(name))
    return all(
        is_whole(length) and (length >= size if dim in ("draw", "step") else length == size)
        for dim, length, size in zip(sizes.dimensions[name], shape, sizes.shape(name), strict=True)
    )


def written_once(folder: Path, attrs: dict[str, Any], sizes: Sizes) -> dict[str, str | None]:
    """The chunks of the arrays that never change, with their checksums."""
    keys = [_only_chunk(name, dims) for name, dims in _never_changing(attrs, sizes).items()]
    return {key: chunk_checksum(folder / key) for key in keys}


def _never_changing(attrs: dict[str, Any], sizes: Sizes) -> dict[str, tuple[str, ...]]:
    """Names and dimensions of the arrays that a trace begins with."""
    names = [*(name for name in sizes.variables if name not in sizes.growing)]
    return {name: sizes.dimensions[name] for name in (*names, *attrs["coordinates"].split())}


def _only_chunk(name: str, dims: tuple[str, ...]) -> str:
    return f"{name}/c/{'/'.join('0' * len(dims))}"


def array_of(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """An array of a trace (TypeError: it is a group).

    What is written into it is there as a file, NaN alone too, as of samples that have no token: an
    array that was opened again does not know how it was created.
    """
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise TypeError(f"{name} is a group")
    return array.with_config({"write_empty_chunks": True})


def check_written_once(
    folder: Path, group: zarr.Group, attrs: dict[str, Any], sizes: Sizes
) -> None:
    """Whether the arrays that never change are there, as they were written (ValueError)."""
    for name, dims in _never_changing(attrs, sizes).items():
        key = _only_chunk(name, dims)
        check_chunk(folder, key, _length(array_of(group, name)), attrs["chunks"].get(key))


def check_draws(
    folder: Path, group: zarr.Group, chains: slice, progress: Progress, sizes: Sizes
) -> None:
    """Whether the files of all draws and steps that a group of chains has done are there.

    Raises:
        ValueError: naming the first that is missing, truncated or not the one that was written.
    """
    for chain in range(chains.start, chains.stop):
        at = progress.diverged.get(chain, {})
        draws = min(at.get("draws", progress.draws_done), progress.draws_done)
        steps = min(at.get("step", progress.steps_done), progress.steps_done)
        for name, dims in sizes.growing.items():
            array, done = array_of(group, name), steps if "step" in dims else draws
            if done > array.shape[1]:
                raise ValueError(f"{name} has no room for the draws that are done")
            # The last chunk may have been begun again by a writer who did not live to say so.
            whole = done // array.chunks[1]
            for key in chunk_keys(array, (slice(chain, chain + 1), slice(0, done))) if done else ():
                known = progress.chunks.get(f"{name}/{key}")
                is_last = int(key.split("/")[2]) >= whole
                check_chunk(folder, f"{name}/{key}", _length(array), None if is_last else known,
                            any_content=is_last)  # fmt: skip


def check_chunk(
    folder: Path, key: str, length: int, ends_in: str | None, any_content: bool = False
) -> None:
    """Whether a chunk's file has its full length and the checksum that was written (ValueError)."""
    file = folder / key
    if not file.is_file() or file.stat().st_size != length:
        raise ValueError(f"{key} is missing or truncated")
    if not any_content and chunk_checksum(file) != ends_in:
        raise ValueError(f"{key} is not the chunk that was written there")


def chunk_keys(array: zarr.Array[Any], at: tuple[slice, ...]) -> Iterator[str]:
    """Keys of the chunks that a part of an array, all of its last axes, lies in."""
    at = (*at, *(slice(0, size) for size in array.shape[len(at) :]))
    ranges = [range(s.start // c, -(-s.stop // c)) for s, c in zip(at, array.chunks, strict=True)]
    for index in np.ndindex(*(len(r) for r in ranges)):
        yield "/".join(["c", *(str(r[i]) for r, i in zip(ranges, index, strict=True))])


def _length(array: zarr.Array[Any]) -> int:
    """Bytes of a chunk's file: its values and four of checksum."""
    return int(np.prod(array.chunks)) * array.dtype.itemsize + 4


__all__ = [
    "FORMAT",
    "Sizes",
    "Start",
    "array_of",
    "check_arrays",
    "check_draws",
    "check_plain",
    "check_root",
    "check_written_once",
    "chunk_keys",
    "create_arrays",
    "first_attributes",
    "is_trace",
    "root_record",
    "split",
    "write_root",
    "written_once",
]
