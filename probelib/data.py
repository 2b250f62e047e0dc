"""One way to read any data: tensors in any containers, or a map-style data set of samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset, default_collate

from probelib.ambient import undisturbed
from probelib.batches import (
    Tree,
    count,
    kinds_of,
    named_leaves,
    rows,
    shown_tree,
    tree_leaves,
    tree_like,
    tree_map,
)
from probelib.fingerprint import describe, hash_array
from probelib.randomness import keep_host_random_state
from probelib.reading import kind_of, pair_of, pair_of_item, require_leaves

#: (inputs, targets), each a tensor or tensors in a dict, a tuple, a list, a named tuple or a data
#: class; a mapping of tensors with the key "labels" or "label"; or a map-style data set of samples.
Data = tuple[Tree, Tree] | Mapping[str, Any] | Dataset | Sequence

_SIDES = ("inputs", "targets")
_AT_ONCE = 64  # items of a data set
_SMALL = 2**28  # bytes of a data set that is read whole at once, and kept
_LOOKED_AT = 2**24  # numbers among which samples that differ are looked for


class Samples:
    """Inputs and targets, read by position: a snapshot, which the caller's later changes miss.

    Either may be a tensor, or tensors in a dict or another mapping, a tuple, a list, a named tuple
    or a data class: a model of several inputs, a tokenizer's output. All of them count the samples
    by their first dimension. A mapping with the key ``labels`` (or ``label``) stands for a pair:
    the target is what lies there, the inputs are the rest, which is all that the model is given.

    Tensors are copied to the device once, and so is a data set of up to 256 MiB. The items of a
    larger one, or of one with a fingerprint of its own, are read and collated when asked for.

    Args:
        data: a pair (inputs, targets), a mapping of tensors with the key ``labels``, or a map-style
            data set, each of whose items is such a pair or such a mapping, without the first
            dimension.
        device: where batches are wanted.
        name: of the argument, for messages.
        copied: a pair that belongs to nobody else, so that it need not be copied.

    Raises:
        ValueError: no samples, tensors of different numbers of them, samples of several shapes or
            types, what is no tensor (text, pictures, objects), values that are not finite, a data
            set that gives another sample at each read.
        TypeError: neither tensors nor a data set.
    """

    @undisturbed
    def __init__(
        self, data: Data, device: torch.device, name: str = "data", *, copied: bool = False
    ):
        self.name = name
        self.device = device
        self._dataset: Any = None
        self._x: Tree = None
        self._y: Tree = None
        self._labels: np.ndarray | None = None
        self._labels_are_known = False
        # The containers and the types of a sample, which all have.
        self._form: str | None = None
        #: Whether it came as a data set, whose labels nobody has looked at yet.
        self.by_item = False
        if type(data) is TensorDataset:  # one of its kind may give other items than it holds
            data = data.tensors
        pair = data if copied else pair_of(data, name)
        if pair is not None:
            inputs, targets = pair  # type: ignore[misc]
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
                f"{name} is a {type(data).__name__}; give a pair of tensors (inputs, targets), or "
                "of containers of tensors, or a map-style data set of (input, target)"
            )
        if self.n == 0:
            raise ValueError(f"{name} is empty; give at least one sample")

    def _take_tensors(self, inputs: Tree, targets: Tree, copied: bool) -> None:
        taken = []
        for what, side in zip(_SIDES, (inputs, targets), strict=True):
            require_leaves(self.name, what, side)
            try:
                taken.append(tree_map(_as_tensor, side))
            except TypeError as error:
                raise ValueError(f"{self.name} cannot become tensors: {error}") from error
        self._require_counted(*taken)
        x, y = taken
        self.n = count(x)
        self._require_finite(x, y, np.arange(self.n))
        self._x, self._y = (
            tree_map(lambda t: t.to(self.device, copy=not copied), t) for t in taken
        )
        self._set_labels([_one_number_each(self._y)])

    def _require_counted(self, x: Tree, y: Tree) -> None:
        """Refuse tensors whose first dimensions do not count the same samples (ValueError)."""
        plain = isinstance(x, Tensor) and isinstance(y, Tensor)
        leaves = [*named_leaves(x, _SIDES[0]), *named_leaves(y, _SIDES[1])]
        if any(leaf.ndim == 0 for _, leaf in leaves):
            shown = " and ".join(f"{w} of shape {tuple(t.shape)}" for w, t in leaves)
            raise ValueError(
                f"{self.name} has {shown}; the first dimension of {'both' if plain else 'all'} "
                "must count the samples"
            )
        first = leaves[0]
        for where, leaf in leaves[1:]:
            if len(leaf) == len(first[1]):
                continue
            if plain:
                raise ValueError(
                    f"{self.name} has {len(x)} inputs and {len(y)} targets; give one target per "
                    "input"
                )
            here, there = (f"{len(t)} samples in {w}" for w, t in (first, (where, leaf)))
            raise ValueError(
                f"{self.name} has {here} and {there}; the first dimension of all must count the "
                "samples (make samples in a list one tensor, with torch.stack or "
                "torch.nn.utils.rnn.pad_sequence)"
            )

    def __len__(self) -> int:
        return self.n

    @property
    def in_memory(self) -> bool:
        """Whether they are tensors."""
        return self._dataset is None

    def batch(self, index: np.ndarray | slice) -> tuple[Tree, Tree]:
        """The samples at ``index`` (any shape), as tensors of shape (*index.shape, ...)."""
        if self.in_memory:
            at = index if isinstance(index, slice) else torch.from_numpy(index).to(self.device)
            return rows(self._x, at), rows(self._y, at)
        if isinstance(index, slice):
            index = np.arange(*index.indices(self.n))
        shape = index.shape
        x, y = (
            tree_map(lambda t: t.to(self.device).reshape(*shape, *t.shape[1:]), side)
            for side in self._read(index.ravel())
        )
        return x, y

    def batches(self, size: int) -> Iterator[tuple[Tree, Tree]]:
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
        one = self._read(np.arange(1))
        if self.n * sum(t.nbytes for t in tree_leaves(one)) > most:
            return self
        whole = tree_map(lambda t: t.new_empty((self.n, *t.shape[1:]), device=self.device), one)
        for start, batch in enumerate(self.batches(_AT_ONCE)):
            for into, part in zip(tree_leaves(whole), tree_leaves(batch), strict=True):
                into[_AT_ONCE * start : _AT_ONCE * start + len(part)] = part
        return Samples(whole, self.device, self.name, copied=True)

    def labels(self, read: bool = True) -> np.ndarray | None:
        """Integer targets of shape (n,), where they are one tensor; else None.

        Args:
            read: a data set that was not read yet is read for them; else they are None.
        """
        if read and not self._labels_are_known:
            self._set_labels(_one_number_each(y) for _, y in self.batches(_AT_ONCE))
        return self._labels

    def _set_labels(self, parts: Iterable[Tensor | None]) -> None:
        """Given what :func:`_one_number_each` makes of the targets, in order."""
        found = [part for part in parts if part is not None]
        whole = bool(found) and not (found[0].is_floating_point() or found[0].is_complex())
        self._labels = torch.cat(found).numpy() if whole else None
        self._labels_are_known = True

    def fingerprint(self) -> str:
        """SHA-256 of the content: equal for equal samples, whatever data set holds them.

        The containers of inputs and targets, their keys and their order are part of it, and the
        code of classes of the caller's. A data set is read whole; one whose items are slow to load
        may say instead, as a string ``probelib_fingerprint``, what it holds: another string for
        other samples.

        Raises:
            ValueError: a data set has a sample that is not finite.
        """
        own = self._own_fingerprint()
        if own is not None:
            return f"{own} ({self.n} samples)"
        digests: list[Any] = []
        labels = []
        for start, batch in enumerate(self.batches(self.n if self.in_memory else _AT_ONCE)):
            leaves = tree_leaves(batch)
            if not self.in_memory:
                labels.append(_one_number_each(batch[1]))
            digests = digests or [hashlib.sha256() for _ in leaves]
            for digest, leaf in zip(digests, leaves, strict=True):
                hash_array(digest, leaf, header=start == 0)
        if labels:
            self._set_labels(labels)
        of_leaves = iter(digests)
        sides = [_hash_of(side, of_leaves) for side in batch]
        found = hashlib.sha256(b"".join(sides))
        kinds = kinds_of(batch)
        if not kinds:
            return found.hexdigest()
        # All that a class of somebody's does to what it holds: any code may call any of it.
        code = describe([vars, *kinds])
        found.update(code.encode())
        return found.hexdigest() + code[64:]

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

    def _read(self, index: np.ndarray) -> tuple[Tree, Tree]:
        """Items of the data set, collated and found finite; the caller's generators stay put."""
        with keep_host_random_state():
            items = [self._item(int(i)) for i in index]
        leaves = list(zip(*map(tree_leaves, items), strict=True))
        sides = zip(("input", "target"), items[0], strict=True)
        names = [where for what, side in sides for where, _ in named_leaves(side, what)]
        collated = []
        for where, leaf in zip(names, leaves, strict=True):
            try:
                collated.append(default_collate(list(leaf)))
            except RuntimeError as error:
                raise ValueError(
                    f"{self.name} has samples of several shapes as {where} ({error}); give all of "
                    "them one: pad them in the data set, with torch.nn.functional.pad"
                ) from error
        x, y = tree_like(items[0], collated)
        self._require_finite(x, y, index)
        return x, y

    def _item(self, i: int) -> tuple[Tree, Tree]:
        """A sample, as numbers of the kind that the first sample has, and nobody else's."""
        pair = pair_of_item(self._dataset[i], self.name, i)
        for what, side in zip(("input", "target"), pair, strict=True):
            require_leaves(self.name, what, side, i)
        x, y = (tree_map(_owned, side) for side in pair)
        form = shown_tree((x, y), lambda leaf: str(kind_of(leaf)))
        self._form = self._form or form
        if form != self._form:  # collated, some would be rounded to what the others are
            raise ValueError(
                f"{self.name} has sample {i} as {form} and others as {self._form}; give all "
                "samples one type"
            )
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

    def _require_finite(self, x: Tree, y: Tree, index: np.ndarray) -> None:
        for what, a in (*named_leaves(x, _SIDES[0]), *named_leaves(y, _SIDES[1])):
            if a.is_floating_point() and not a.isfinite().all():
                bad = int(index[int((~a.isfinite().reshape(len(a), -1).all(-1)).nonzero()[0, 0])])
                raise ValueError(
                    f"{self.name} has non-finite {what}, first in sample {bad}; "
                    "remove or repair these samples"
                )


def _hash_of(side: Tree, digests: Iterator[Any]) -> bytes:
    """Of inputs or targets, given the hashes of their leaves."""
    own = b"".join(next(digests).digest() for _ in tree_leaves(side))
    if isinstance(side, Tensor):
        return own
    kinds = [f"{kind.__module__}.{kind.__qualname__}" for kind in kinds_of(side)]
    form = shown_tree(side, lambda leaf: "*")
    return hashlib.sha256(f"{form} {kinds}".encode("utf-8", "surrogatepass") + own).digest()


def _one_number_each(targets: Tree) -> Tensor | None:
    """Targets that are one number a sample, on the host; None: they are something else."""
    first, *others = tree_leaves(targets)
    return None if others or first.ndim != 1 else first.cpu()


def _some(index: np.ndarray, most: int) -> np.ndarray:
    return index[np.linspace(0, len(index) - 1, min(len(index), most), dtype=int)]


def _different(side: Tree, spread: np.ndarray) -> np.ndarray:
    """Positions of one of each kind of row, in the order of a number that tells rows apart."""
    leaves = tree_leaves(side)
    if sum(leaf.numel() for leaf in leaves) <= _LOOKED_AT:
        spread = np.arange(len(leaves[0]))
    found = np.concatenate([_numbers(leaf, spread) for leaf in leaves], 1)
    weight = np.random.default_rng(0).standard_normal(found.shape[1])
    return spread[np.unique(found @ weight, return_index=True)[1]]


def _numbers(leaf: Tensor, index: np.ndarray) -> np.ndarray:
    """Some rows of a tensor as a matrix of real numbers."""
    some = leaf[torch.from_numpy(index).to(leaf.device)]
    some = torch.view_as_real(some) if some.is_complex() else some
    return some.cpu().double().reshape(len(index), some[0].numel()).numpy()


def _device(a: Any) -> torch.device:
    """Where an array is: torch's default device of the moment has no say."""
    return a.device if isinstance(a, Tensor) else torch.device("cpu")


def _as_tensor(a: Any) -> Tensor:
    return torch.as_tensor(_plain(a), device=_device(a)).detach()


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


def _same(one: tuple[Tree, Tree], other: tuple[Tree, Tree]) -> bool:
    """Whether two samples are the same; NaN is as good as NaN."""
    for a, b in zip(
        *(map(torch.as_tensor, tree_leaves(item)) for item in (one, other)), strict=True
    ):
        if a.shape != b.shape or not bool(((a == b) | ((a != a) & (b != b))).all()):
            return False
    return True


__all__ = ["Data", "Samples"]
