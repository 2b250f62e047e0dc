"""The data set that a trace is: xarray's own, but for netCDF, which has no dicts for attributes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from numbers import Number
from typing import Any

import numpy as np
import xarray as xr

_WHOLE = np.iinfo(np.int32)  # netCDF 3 has none that are larger


class Trace(xr.Dataset):
    """A trace whose ``to_netcdf`` works: there, dicts are JSON text, which estimators read as well.

    See :mod:`probelib.contract` for what it holds.
    """

    __slots__ = ()

    def to_netcdf(self, *args: Any, **kwargs: Any) -> Any:
        """As :meth:`xarray.Dataset.to_netcdf`: what it writes opens with ``xarray.open_dataset``.

        Attributes that netCDF cannot hold are text there, and float16 is float32.
        """
        return xr.Dataset.to_netcdf(_as_netcdf(self), *args, **kwargs)


class TraceTree(xr.DataTree):
    """Traces of several observed sets, by name: each comes out as a :class:`Trace`."""

    __slots__ = ()

    def to_dataset(self, *args: Any, **kwargs: Any) -> Trace:
        """As :meth:`xarray.DataTree.to_dataset`, a trace."""
        found = super().to_dataset(*args, **kwargs)
        return Trace(found.data_vars, found.coords, found.attrs)

    def to_netcdf(self, *args: Any, **kwargs: Any) -> Any:
        """As :meth:`xarray.DataTree.to_netcdf`, which needs h5netcdf or netCDF4.

        What it writes opens with ``xarray.open_datatree``, and estimators read it.
        """
        plain = {
            node.relative_to(self): _as_netcdf(node.to_dataset(inherit=node is self))
            for node in self.subtree
        }
        return xr.DataTree.from_dict(plain).to_netcdf(*args, **kwargs)


def _as_netcdf(trace: Trace) -> xr.Dataset:
    """A trace with attributes and types that every netCDF has."""
    plain = {name: _at_home(array) for name, array in trace.variables.items()}
    attrs = {key: _plain(value) for key, value in trace.attrs.items() if value is not None}
    data = trace.assign({k: plain[k] for k in trace.data_vars})
    data = data.assign_coords({k: plain[k] for k in trace.coords if k not in trace.indexes})
    data.attrs = attrs
    return data


def _plain(value: Any) -> Any:
    """An attribute as netCDF holds it."""
    if isinstance(value, bool | np.bool_):
        return int(value)
    if isinstance(value, int) and not _WHOLE.min <= value <= _WHOLE.max:
        return str(value)
    if isinstance(value, str | bytes | Number | np.ndarray):
        return value
    return json.dumps(dict(value) if isinstance(value, Mapping) else value, default=str)


def _at_home(array: xr.Variable) -> xr.Variable:
    """A variable of a type that all kinds of netCDF have."""
    if array.dtype == np.float16:
        return array.astype(np.float32)
    return array.astype(np.int64) if array.dtype.kind == "u" else array


__all__ = ["Trace", "TraceTree"]
