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
        plain = {name: _at_home(array) for name, array in self.variables.items()}
        attrs = {key: _plain(value) for key, value in self.attrs.items() if value is not None}
        data = self.assign({k: plain[k] for k in self.data_vars})
        data = data.assign_coords({k: plain[k] for k in self.coords if k not in self.indexes})
        data.attrs = attrs
        return xr.Dataset.to_netcdf(data, *args, **kwargs)


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


__all__ = ["Trace"]
