"""One way to read any data: a pair of tensors, or a map-style data set of (input, target)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset, default_collate

from probelib.ambient import undisturbed
from probelib.fingerprint import hash_array
from probelib.randomness import keep_host_random_state

Data = tuple[Tensor, Tensor] | Dataset | Sequence

_AT_ONCE = 64  # items of a data set
_SMALL = 2**28  # bytes of a data set that is read whole at once, and kept
_LOOKED_AT = 2**24  # numbers among which samples that differ are looked for


class Samples:
    """Inputs and targets, read by position: a snapshot, which the caller's later changes miss.

    Tensors are copied to the device once, and so is a data set of up to 256 MiB. The items of a
    larger one, or of one with a fingerprint of its own, are read and collated when asked for.

    Args:
        data: a pair of tensors (inputs, targets), or a map-style data set of (input, target).
        device: where batches are wanted.
        name: of the argument, for messages.
        copied: the tensors belong to nobody else, so that they need not be copied.

    Raises:
        ValueError: no samples, inputs and targets of different numbers, values that are not
            finite, a data set that gives another sample at each read.
        TypeError: neither tensors nor a data set.
    """

    @undisturbed
    def __init__(
        self, data: Data, device: torch.device, name: str = "data", *, copied: bool = False
    ):
        self.name = name
        self.device = device
        self._dataset: Any = None
        self._x: Tensor
        self._y: Tensor
        self._labels: np.ndarray | None = None
        self._labels_are_known = False
        self._kinds: tuple[str | None, ...] | None = None
        #: Whether it came as a data set, whose labels nobody has looked at yet.
        self.by_item = False
        if type(data) is TensorDataset:  # one of its kind may give other items than it holds
            data = data.tensors
        if isinstance(data, tuple | list) and len(data) == 2 and all(map(_is_array, data)):
            inputs, targets = data
            self._take_tensors(inputs, targets, copied)
        elif hasattr(data, "__getitem__") and hasattr(data, "__len__"):
            self._dataset = data
            self.n = len(data)
            self._require_repeatable()
            self.by_item = True
            if self.n and self._own_fingerprint() is None:
                with suppress(ValueError):  # a sample that is not sound is found with all others
                    taken = self.staged(_SMALL)
                    if taken.in_memory:
                        self._dataset, self._x, self._y = None, taken._x, taken._y
        else:
            raise TypeError(
                f"{name} is a {type(data).__name__}; give a pair of tensors (inputs, targets) or "
                "a map-style data set of (input, target)"
            )
        if self.n == 0:
            raise ValueError(f"{name} is empty; give at least one sample")

    def _take_tensors(self, inputs: Any, targets: Any, copied: bool) -> None:
        try:
            x, y = (
                torch.as_tensor(_plain(a), device=_device(a)).detach() for a in (inputs, targets)
            )
        except TypeError as error:
            raise ValueError(f"{self.name} cannot become tensors: {error}") from error
        if x.ndim == 0 or y.ndim == 0:
            raise ValueError(
                f"{self.name} has inputs of shape {tuple(x.shape)} and targets of shape "
                f"{tuple(y.shape)}; the first dimension of both must count the samples"
            )
        if len(x) != len(y):
            raise ValueError(
                f"{self.name} has {len(x)} inputs and {len(y)} targets; give one target per input"
            )
        self._require_finite(x, y, np.arange(len(x)))
        self._x, self._y = (t.to(self.device, copy=not copied) for t in (x, y))
        self.n = len(x)
        self._set_labels(self._y)

    def __len__(self) -> int:
        return self.n

    @property
    def in_memory(self) -> bool:
        """Whether they are tensors."""
        return self._dataset is None

    def batch(self, index: np.ndarray | slice) -> tuple[Tensor, Tensor]:
        """The samples at ``index`` (any shape), as tensors of shape (*index.shape, ...)."""
        if self.in_memory:
            if isinstance(index, slice):
                return self._x[index], self._y[index]
            at = torch.from_numpy(index).to(self.device)
            return self._x[at], self._y[at]
        if isinstance(index, slice):
            index = np.arange(*index.indices(self.n))
        x, y = self._read(index.ravel())
        return (
            x.to(self.device).reshape(*index.shape, *x.shape[1:]),
            y.to(self.device).reshape(*index.shape, *y.shape[1:]),
        )

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples in order, ``size`` at a time."""
        for start in range(0, self.n, size):
            yield self.batch(slice(start, min(start + size, self.n)))

    def staged(self, most: int) -> Samples:
        """These samples as tensors on the device, read once; or as they are.

        Args:
            most: bytes that they may take; a larger data set is read item by item as before.
        """
        if self.in_memory:
            return self
        x, y = self._read(np.arange(1))
        if self.n * (x.nbytes + y.nbytes) > most:
            return self
        whole = tuple(t.new_empty((self.n, *t.shape[1:]), device=self.device) for t in (x, y))
        for start, batch in enumerate(self.batches(_AT_ONCE)):
            for into, part in zip(whole, batch, strict=True):
                into[_AT_ONCE * start : _AT_ONCE * start + len(part)] = part
        return Samples(whole, self.device, self.name, copied=True)

    def labels(self, read: bool = True) -> np.ndarray | None:
        """Integer targets of shape (n,), else None.

        Args:
            read: a data set that was not read yet is read for them; else they are None.
        """
        if read and not self._labels_are_known:
            self._set_labels(torch.cat([y.cpu() for _, y in self.batches(_AT_ONCE)]))
        return self._labels

    def _set_labels(self, targets: Tensor) -> None:
        whole = targets.ndim == 1 and not (targets.is_floating_point() or targets.is_complex())
        self._labels = targets.cpu().numpy().copy() if whole else None
        self._labels_are_known = True

    def fingerprint(self) -> str:
        """SHA-256 of the content: equal for equal samples, whatever object holds them.

        A data set is read whole; one whose items are slow to load may say instead, as a string
        ``probelib_fingerprint``, what it holds: another string for other samples.

        Raises:
            ValueError: a data set has a sample that is not finite.
        """
        own = self._own_fingerprint()
        if own is not None:
            return f"{own} ({self.n} samples)"
        inputs, targets, labels = hashlib.sha256(), hashlib.sha256(), []
        for start, (x, y) in enumerate(self.batches(self.n if self.in_memory else _AT_ONCE)):
            if not self.in_memory and y.ndim == 1:
                labels.append(y.cpu())
            hash_array(inputs, x, header=start == 0)
            hash_array(targets, y, header=start == 0)
        if labels:
            self._set_labels(torch.cat(labels))
        return hashlib.sha256(inputs.digest() + targets.digest()).hexdigest()

    def _own_fingerprint(self) -> str | None:
        own = getattr(self._dataset, "probelib_fingerprint", None)
        return own if isinstance(own, str) else None

    def differing(self, most: int) -> np.ndarray:
        """Positions of up to ``most`` samples that differ in targets and inputs, the last included.

        Of very large data only some are looked at, and of a data set not read yet the first three.
        """
        if not self._labels_are_known:
            return np.arange(min(3, self.n))
        spread = np.linspace(0, self.n - 1, min(self.n, 256), dtype=int)
        chosen = [_some(spread, -(-most // 4)), spread[-1:]]
        if self.in_memory:
            chosen += [_some(_different(self._y, spread), -(-most // 2))]
            chosen += [_some(_different(self._x, spread), most // 4)]
        index = np.concatenate(chosen[::-1])
        return index[np.sort(np.unique(index, return_index=True)[1])][:most]

    def _read(self, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """Items of the data set, collated and found finite; the caller's generators stay put."""
        with keep_host_random_state():
            items = [self._item(int(i)) for i in index]
        try:
            x, y = default_collate(items)
        except RuntimeError as error:
            raise ValueError(
                f"{self.name} has samples of several shapes ({error}); give all of them one"
            ) from error
        self._require_finite(x, y, index)
        return x, y

    def _item(self, i: int) -> tuple[Any, Any]:
        """A sample, as numbers of the kind that the first sample has, and nobody else's."""
        item = self._dataset[i]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise ValueError(
                f"{self.name} has a {type(item).__name__} as sample {i}; "
                "each must be a pair (input, target)"
            )
        kinds = tuple(map(_kind, item))
        if None in kinds:
            at = kinds.index(None)
            raise ValueError(
                f"{self.name} has a {type(item[at]).__name__} as {('input', 'target')[at]} of "
                f"sample {i}; each must be a tensor, an array or a number"
            )
        if self._kinds is None:
            self._kinds = kinds
        if kinds != self._kinds:  # collated, some would be rounded to what the others are
            raise ValueError(
                f"{self.name} has sample {i} as ({', '.join(map(str, kinds))}) and others as "
                f"({', '.join(map(str, self._kinds))}); give all samples one type"
            )
        x, y = map(_owned, item)
        return x, y

    def _require_repeatable(self) -> None:
        if self.n == 0:
            return
        index = np.unique(np.linspace(0, self.n - 1, 8, dtype=int))
        with keep_host_random_state():
            once = [self._item(i) for i in index.tolist()]
            again = [self._item(i) for i in index.tolist()]
        for i, a, b in zip(index, once, again, strict=True):
            if not _same(a, b):
                raise ValueError(
                    f"{self.name} gives another sample {i} at each read; take random transforms "
                    "out of it, so that a loss belongs to a sample"
                )

    def _require_finite(self, x: Tensor, y: Tensor, index: np.ndarray) -> None:
        for what, a in (("inputs", x), ("targets", y)):
            if a.is_floating_point() and not a.isfinite().all():
                bad = int(index[int((~a.isfinite().reshape(len(a), -1).all(-1)).nonzero()[0, 0])])
                raise ValueError(
                    f"{self.name} has non-finite {what}, first in sample {bad}; "
                    "remove or repair these samples"
                )


def _some(index: np.ndarray, most: int) -> np.ndarray:
    return index[np.linspace(0, len(index) - 1, min(len(index), most), dtype=int)]


def _different(rows: Tensor, spread: np.ndarray) -> np.ndarray:
    """Positions of one of each kind of row, in the order of a number that tells rows apart."""
    if rows.numel() <= _LOOKED_AT:
        spread = np.arange(len(rows))
    rows = rows[torch.from_numpy(spread).to(rows.device)].flatten(1) if rows.ndim > 1 else rows
    rows = torch.view_as_real(rows).flatten(1) if rows.is_complex() else rows
    rows = rows.cpu().double().reshape(len(spread), -1)
    weight = np.random.default_rng(0).standard_normal(rows.shape[1])
    return spread[np.unique(rows.numpy() @ weight, return_index=True)[1]]


def _device(a: Any) -> torch.device:
    """Where an array is: torch's default device of the moment has no say."""
    return a.device if isinstance(a, Tensor) else torch.device("cpu")


def _is_array(a: Any) -> bool:
    return isinstance(a, Tensor | np.ndarray)


def _kind(a: Any) -> str | None:
    """Of what type a number or an array of numbers is; None: it is neither."""
    if isinstance(a, Tensor):
        return str(a.dtype)
    if isinstance(a, np.ndarray | np.generic):
        return str(a.dtype.newbyteorder("=")) if a.dtype.kind in "biufc" else None
    return type(a).__name__ if isinstance(a, bool | int | float) else None


def _plain(a: Any) -> Any:
    """An array as torch takes it: in this machine's byte order, and read forwards."""
    if not isinstance(a, np.ndarray):
        return a
    return np.ascontiguousarray(a, a.dtype.newbyteorder("=")).reshape(a.shape)


def _owned(a: Any) -> Any:
    """A number, or an array that no later read writes into."""
    if isinstance(a, Tensor):
        return a.detach().clone()
    return _plain(a).copy() if isinstance(a, np.ndarray) else a


def _same(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    """Whether two samples are the same; NaN is as good as NaN."""
    for a, b in zip(map(torch.as_tensor, one), map(torch.as_tensor, other), strict=True):
        if a.shape != b.shape or not bool(((a == b) | ((a != a) & (b != b))).all()):
            return False
    return True


__all__ = ["Data", "Samples"]
