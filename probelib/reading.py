"""What data may be: pairs, mappings with labels, samples; and what is refused, with a remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from probelib.batches import (
    Tree,
    is_named_tuple,
    named_leaves,
    parts_of,
    shown_tree,
    tree_leaves,
    with_parts,
)

_LABELS = ("labels", "label")


def pair_of(data: Any, name: str) -> tuple[Tree, Tree] | None:
    """Inputs and targets, where data are two of them or a mapping; None: they are a data set.

    Raises:
        ValueError: data that are neither, or that can be read as both.
    """
    if isinstance(data, Mapping):
        if key := _label_of(data, name):
            return _without(data, key)
        if not data or 0 in data:  # samples by their position
            return None
        raise ValueError(
            f'{name} is a {type(data).__name__} without the key "labels"; give a pair '
            "(inputs, targets), of which either may be a dict"
        )
    if not isinstance(data, tuple | list):
        return None
    if len(data) != 2:
        if data and all(map(is_array, data)):
            raise ValueError(
                f"{name} has a {type(data[0]).__name__} as sample 0; each must be a pair "
                "(input, target), or all of them a pair of tensors: ((first, second), targets), "
                "where a model has several inputs"
            )
        return None
    pair = data[0], data[1]
    leaves = tree_leaves(pair)
    arrays = all(map(is_array, leaves)) and all(np.ndim(a) for a in leaves)
    whole = arrays and len({len(a) for a in leaves}) == 1
    two_samples = all(map(_is_sample, pair))
    if not two_samples or (whole and len(set(map(_shapes, pair))) > 1):
        return pair
    if whole and isinstance(data, tuple):
        raise ValueError(
            f"{name} can be read as two samples, and as two inputs and two targets; give a list of "
            "samples, or the inputs as a dict"
        )
    return None


def pair_of_item(item: Any, name: str, i: int) -> tuple[Tree, Tree]:
    """The input and the target of item i of a data set.

    Raises:
        ValueError: it is no pair, and no mapping with labels.
    """
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    if isinstance(item, Mapping) and (key := _label_of(item, f"sample {i} of {name}")):
        return _without(item, key)
    raise ValueError(
        f"{name} has a {type(item).__name__} as sample {i}; each must be a pair "
        "(input, target), several inputs in a tuple or a dict, or a mapping with the key "
        '"labels"'
    )


def _is_sample(part: Any) -> bool:
    """Whether it has the form of an item of a data set."""
    if isinstance(part, Mapping):
        return any(key in part for key in _LABELS)
    return isinstance(part, tuple | list) and len(part) == 2


def _shapes(tree: Tree) -> str:
    return shown_tree(tree, lambda a: f"{kind_of(a)}{np.shape(a)}")


def _label_of(mapping: Mapping, name: str) -> str | None:
    """The key of the targets in a mapping that holds inputs beside them.

    Raises:
        ValueError: there are two.
    """
    found = [key for key in _LABELS if key in mapping]
    if len(found) > 1:
        raise ValueError(
            f'{name} has the keys "labels" and "label"; leave one out, or give a pair '
            "(input, target)"
        )
    return found[0] if found else None


def _without(mapping: Mapping, key: str) -> tuple[Tree, Tree]:
    """The rest of a mapping, and what it has under a key."""
    parts = parts_of(mapping) or {}
    target = parts.pop(key)
    return with_parts(mapping, parts), target


def require_leaves(name: str, what: str, side: Tree, sample: int | None = None) -> None:
    """Refuse inputs or targets that are not made of tensors (ValueError).

    Args:
        name: of the argument.
        what: of the two it is.
        side: all of them; or those of one sample, which may be numbers too.
        sample: which.
    """
    if not tree_leaves(side) and not isinstance(side, list):
        of = "" if sample is None else f" of sample {sample}"
        raise ValueError(f"{name} has no tensor as {what}{of}; give at least one")
    _require_no_numbers(side, f"{name} has a list of numbers as {what}", sample)
    for where, leaf in named_leaves(side, what):
        whole = sample is None
        if _is_text(leaf) or (not is_array(leaf) if whole else kind_of(leaf) is None):
            raise ValueError(f"{name} has {_refused(leaf, where, sample)}")


def _require_no_numbers(side: Tree, what: str, sample: int | None = None) -> None:
    """Refuse lists of nothing but numbers: an array, or as many inputs? (ValueError)"""
    parts = parts_of(side)
    if not parts and not isinstance(side, list):
        return
    values = list((parts or {}).values())
    if isinstance(side, tuple | list) and not is_named_tuple(side) and all(map(_is_number, values)):
        of = "" if sample is None else f" of sample {sample}"
        raise ValueError(
            f"{what}{of}; make it a tensor, with torch.tensor (for a Hugging Face data set, with "
            '.with_format("torch"))'
        )
    for key, part in (parts or {}).items():
        _require_no_numbers(part, f"{what}[{key!r}]", sample)


def _is_number(a: Any) -> bool:
    return isinstance(a, bool | int | float | np.generic)


def _is_text(a: Any) -> bool:
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype.kind in "US"
    return isinstance(a, str | bytes)


def _refused(leaf: Any, where: str, sample: int | None = None) -> str:
    """What is wrong with a leaf that is no tensor, and what to do."""
    kind, of = type(leaf), f"{where}" if sample is None else f"{where} of sample {sample}"
    what = f"a {kind.__name__} as {of}"
    if _is_text(leaf):
        return f"{what}; give tokens as a tensor, from a tokenizer, and leave the text out"
    if kind.__module__.partition(".")[0] == "PIL":
        return (
            f"{what}; make it a tensor in the data set, with "
            "transform=torchvision.transforms.ToTensor()"
        )
    if _is_number(leaf):
        return f"{what}; give one for each sample, as a tensor"
    if isinstance(leaf, Tensor):
        return (
            f"{what}, whose rows have several lengths; pad them, with torch.nested.to_padded_tensor"
        )
    return (
        f"{what}; each must be a tensor, an array or a number, in dicts, tuples or data classes: "
        "give the tensors of an object as a dict, and put it together with "
        "forward=lambda model, inputs: ..."
    )


def is_array(a: Any) -> bool:
    """Whether it is a tensor or an array, whose rows all have one shape."""
    return isinstance(a, Tensor | np.ndarray) and not getattr(a, "is_nested", False)


def kind_of(a: Any) -> str | None:
    """Of what type a number or an array of numbers is; None: it is neither."""
    if isinstance(a, Tensor):
        return None if a.is_nested else str(a.dtype)
    if isinstance(a, np.ndarray | np.generic):
        return str(a.dtype.newbyteorder("=")) if a.dtype.kind in "biufc" else None
    return type(a).__name__ if isinstance(a, bool | int | float) else None


__all__ = ["is_array", "kind_of", "pair_of", "pair_of_item", "require_leaves"]
