"""Traces and estimates as one netCDF file, which comes back as it was.

xarray's engines do the writing: ``h5netcdf`` where it is installed, else NetCDF 3 through SciPy.
Neither holds dicts, and NetCDF 3 neither 64-bit integers nor half precision: so attributes, types
and a checksum of every variable are in one attribute, as JSON, by which :func:`load` puts all of it
right. ``xarray.open_dataset`` opens the file as well, and estimators read what that gives.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

import numpy as np

from probelib.arguments import shown
from probelib.estimators.series import Estimate
from probelib.store import TraceMismatch, open_trace
from probelib.store.paths import local_path

if TYPE_CHECKING:
    import xarray as xr

    from probelib.trace import Trace

_RECORD, _VALUE = "probelib_saved", "probelib_value"


def save(data: xr.Dataset | xr.DataArray | Estimate, path: str | os.PathLike) -> None:
    """Write a trace, a series over checkpoints or an estimate as one netCDF file.

    The file appears whole or not at all, and takes the place of one that was there. A trace that
    should grow or be read in parts is better kept by ``sample(store=...)``.

    Args:
        data: a data set such as a trace (of several observed sets, each on its own), a data array
            such as ``loss_gain(trace)``, or an :class:`probelib.Estimate`.
        path: ends in ``.nc``.

    Raises:
        TypeError: another kind of data.
        ValueError: another ending, or an attribute or values that netCDF cannot hold.
    """
    place = local_path("path", path)
    if place.suffix != ".nc":
        raise ValueError(
            f"path is {str(path)!r}; end it in .nc (a trace as Zarr: sample(store=...), or "
            "trace.to_zarr)"
        )
    plain = _encoded(*_as_dataset(data))
    engine: Literal["h5netcdf", "scipy"] = "scipy"
    if importlib.util.find_spec("h5netcdf"):
        engine = "h5netcdf"
    aside = place.with_name(f".{place.name}.{os.getpid()}-{uuid4().hex[:8]}")
    try:
        plain.to_netcdf(aside, engine=engine)
        os.replace(aside, place)
    except (TypeError, ValueError, OverflowError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"data cannot be written as netCDF by {engine}: {why}") from error
    finally:
        with suppress(FileNotFoundError):
            aside.unlink()


def load(path: str | os.PathLike) -> Any:
    """What :func:`save` wrote, as it was: values, types, coordinates and attributes.

    A directory that ``sample(store=...)`` or ``to_zarr`` made opens too, by :func:`open_trace`.
    A netCDF file is read whole, and every value checked.

    Args:
        path: of the file.

    Returns:
        The data set, the data array or the :class:`probelib.Estimate`.

    Raises:
        FileNotFoundError: nothing lies there.
        TraceMismatch: the file is damaged, or nothing that :func:`save` wrote.
    """
    import xarray as xr  # slow to import, so where it is used

    place = local_path("path", path)
    if place.is_dir():
        return open_trace(place)
    if not place.exists():
        raise FileNotFoundError(f"path {str(path)!r} does not exist; check it")
    try:
        with xr.open_dataset(place, engine=_engine_of(place)) as opened:
            plain = opened.load()
    except Exception as error:  # whatever is wrong with a file
        why = " ".join(str(error).split())
        raise TraceMismatch(f"path {str(path)!r} cannot be read as netCDF: {why}") from error
    if _RECORD not in plain.attrs:
        raise TraceMismatch(
            f"path {str(path)!r} was not written by probelib.save; where xarray.open_dataset reads "
            "it, estimators take what that gives"
        )
    try:
        return _decoded(plain, json.loads(plain.attrs[_RECORD]))
    except Exception as error:  # a record that does not fit what is there
        raise TraceMismatch(
            f"path {str(path)!r} is damaged: {' '.join(str(error).split())}"
        ) from error


def _engine_of(place: Path) -> str:
    """By the file's first bytes, so that nothing but netCDF is ever tried."""
    with place.open("rb") as file:
        begin = file.read(8)
    if begin[:3] == b"CDF":
        return "scipy"
    if begin == b"\x89HDF\r\n\x1a\n":
        if importlib.util.find_spec("h5netcdf") is None:
            raise ModuleNotFoundError("it is NetCDF 4; install h5netcdf to read it")
        return "h5netcdf"
    raise ValueError("it does not begin as a netCDF file does")


def _as_dataset(data: Any) -> tuple[xr.Dataset, str]:
    """Data as a data set, and its kind."""
    import xarray as xr  # slow to import, so where it is used

    from probelib.trace import Trace  # slow to import, so where it is used

    if isinstance(data, Estimate):
        return xr.Dataset(attrs=asdict(data)), "Estimate"
    if isinstance(data, xr.DataArray):
        named = xr.Dataset({_VALUE: data.variable}, coords=data.coords)
        return named.assign_attrs(name=data.name), "DataArray"
    if isinstance(data, xr.Dataset):
        return data, "Trace" if isinstance(data, Trace) else "Dataset"
    if isinstance(data, xr.DataTree):
        if data.data_vars:
            return _as_dataset(data.to_dataset())
        raise TypeError(
            "data is a tree of several traces; save each in a file of its own: "
            f"save(tree[{next(iter(data.children), '...')!r}], ...)"
        )
    raise TypeError(f"data is {shown(data)}; give a data set, a data array or an Estimate")


def _encoded(data: xr.Dataset, kind: str) -> Trace:
    """A data set that every netCDF holds, with the record of what it was."""
    from probelib.trace import Trace  # slow to import, so where it is used

    many = [dim for dim, index in data.indexes.items() if index.nlevels > 1]
    if many:
        raise ValueError(f"data has {many[0]} stacked, which netCDF cannot hold; unstack it")
    variables = {str(name): variable.load() for name, variable in data.variables.items()}
    record = {
        "kind": kind,
        "attrs": _json("attribute", data.attrs),
        "coords": [str(name) for name in data.coords],
        "variables": {
            name: {
                "dims": list(map(str, v.dims)),
                "dtype": v.dtype.str if v.dtype.kind != "O" else "object",
                "attrs": _json(f"attribute of {name}:", v.attrs),
                "sha256": _hash(v.values),
            }
            for name, v in variables.items()
        },
    }
    plain = {name: (v.dims, _in_netcdf(name, v.values)) for name, v in variables.items()}
    readable = {k: v for k, v in data.attrs.items() if v is not None and not _is_null(v)}
    return Trace(
        {name: plain[name] for name in map(str, data.data_vars)},
        coords={name: plain[name] for name in map(str, data.coords)},
        attrs=readable | {_RECORD: json.dumps(record)},
    )


def _is_null(value: Any) -> bool:
    return isinstance(value, list | tuple) and not value  # netCDF has no empty ones


def _in_netcdf(name: str, values: np.ndarray) -> np.ndarray:
    """Values of a type that NetCDF 3 has; none changes."""
    kind = values.dtype.kind
    if kind == "b":
        return values.astype(np.int8)
    if kind in "iu":
        whole = np.iinfo(np.int32)
        if values.size and not whole.min <= int(values.min()) <= int(values.max()) <= whole.max:
            return np.array([str(v) for v in values.ravel()], object).reshape(values.shape)
        return values.astype(np.int32)
    if kind == "f":
        return values.astype(np.float32) if values.dtype.itemsize < 4 else values
    if kind == "U" or (kind == "O" and all(isinstance(v, str) for v in values.flat)):
        return values.astype(object)
    raise ValueError(f"data has {name} of the type {values.dtype}; give numbers or text")


def _decoded(plain: xr.Dataset, record: Mapping[str, Any]) -> Any:
    """What was saved, checked (ValueError: it is not what is there)."""
    import xarray as xr  # slow to import, so where it is used

    from probelib.trace import Trace  # slow to import, so where it is used

    variables = {}
    for name, said in record["variables"].items():
        if name not in plain.variables:
            raise ValueError(f"{name} is missing")
        dtype = np.dtype(said["dtype"])
        values = np.asarray(plain[name].transpose(*said["dims"]).values).astype(dtype)
        if _hash(values) != said["sha256"]:
            raise ValueError(f"{name} does not have the values that were saved")
        variables[name] = xr.Variable(said["dims"], values, said["attrs"])
    coords = {name: variables.pop(name) for name in record["coords"]}
    kind, attrs = record["kind"], dict(record["attrs"])
    if kind == "Estimate":
        return Estimate(**attrs)
    if kind == "DataArray":
        return xr.DataArray(variables[_VALUE], coords=coords, name=attrs["name"])
    return {"Trace": Trace, "Dataset": xr.Dataset}[kind](variables, coords, attrs)


def _hash(values: np.ndarray) -> str:
    """SHA-256 of values, whatever their byte order and layout."""
    if values.dtype.kind in "OU":
        content = json.dumps([str(v) for v in values.flat]).encode()
    else:
        content = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes()
    return hashlib.sha256(content).hexdigest()


def _json(what: str, value: Any) -> Any:
    """An attribute as JSON gives it back (ValueError: it would come back as another)."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_json(what, each) for each in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _json(f"{what} {key}", each) for key, each in value.items()}
    raise ValueError(f"data has the {what} {shown(value)}, which JSON cannot hold; leave it out")


__all__ = ["load", "save"]
