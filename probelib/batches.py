"""Batches of any form: tensors in dicts, tuples, lists, named tuples and data classes.

A *tree* is a tensor, or a container of trees: a mapping (a dict, a tokenizer's output), a tuple, a
list, a named tuple, a data class; None in it is nothing. Its *leaves* are the tensors, in the order
in which the containers keep them. torch's own trees know neither other mappings nor data classes,
and would take what they do not know for a constant.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, UserDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

#: A tensor, or a container of trees.
Tree = Any

_PLAIN = (dict, OrderedDict, UserDict, tuple, list)


def parts_of(tree: Tree) -> dict[Any, Tree] | None:
    """What a container holds, by key, position or field; None of anything else."""
    if isinstance(tree, Tensor):
        return None
    if isinstance(tree, Mapping):
        return {key: tree[key] for key in tree}
    if is_named_tuple(tree):
        return dict(zip(tree._fields, tree, strict=True))
    if isinstance(tree, tuple | list):
        return dict(enumerate(tree))
    if is_dataclass(tree) and not isinstance(tree, type):
        return {field.name: getattr(tree, field.name) for field in fields(tree)}
    return {} if tree is None else None


def with_parts(tree: Tree, parts: dict[Any, Tree]) -> Tree:
    """A container of the same kind that holds other parts, and nothing else of the first.

    What it kept beside them (a mask that an ``__init__`` computed, a tokenizer's record of words)
    would be that of other samples, and is left out. A mapping that cannot be made of its parts
    alone becomes a dict.
    """
    if type(tree) is dict:
        return parts
    if isinstance(tree, Mapping):
        try:
            made: Any = type(tree)(parts)  # type: ignore[call-arg]
            same = list(made) == list(parts) and all(made[k] is v for k, v in parts.items())
        except Exception:  # it is made in another way
            return parts
        return made if same else parts
    if is_named_tuple(tree):
        return tuple.__new__(type(tree), parts.values())
    if isinstance(tree, tuple):
        return tuple(parts.values())
    if isinstance(tree, list):
        return list(parts.values())
    if tree is None:
        return None
    made = object.__new__(type(tree))
    for name, part in parts.items():  # frozen or not, and with no __init__ that looks at values
        object.__setattr__(made, name, part)
    return made


def tree_map(function: Callable[[Any], Any], tree: Tree) -> Tree:
    """The same containers, made anew, with the function of every leaf in its place."""
    parts = parts_of(tree)
    if parts is None:
        return function(tree)
    return with_parts(tree, {key: tree_map(function, part) for key, part in parts.items()})


def named_leaves(tree: Tree, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves in their order, each with its place: ``name['ids']``, ``name[0]``, ``name.x``."""
    parts = parts_of(tree)
    if parts is None:
        yield name, tree
        return
    for key, part in parts.items():
        by_key = isinstance(tree, Mapping | tuple | list) and not is_named_tuple(tree)
        yield from named_leaves(part, f"{name}[{key!r}]" if by_key else f"{name}.{key}")


def tree_leaves(tree: Tree) -> list[Any]:
    """The leaves in their order."""
    parts = parts_of(tree)
    return [tree] if parts is None else [leaf for p in parts.values() for leaf in tree_leaves(p)]


def tree_like(tree: Tree, leaves: Any) -> Tree:
    """Other leaves, in the containers of ``tree``."""
    left = iter(leaves)
    return tree_map(lambda _: next(left), tree)


def shown_tree(tree: Tree, leaf: Callable[[Any], str]) -> str:
    """A tree on one line, with what ``leaf`` says of every leaf."""
    parts = parts_of(tree)
    if parts is None:
        return leaf(tree)
    if tree is None:
        return "None"
    kind = "" if type(tree) in (dict, tuple, list) else type(tree).__name__
    inside = {key: shown_tree(part, leaf) for key, part in parts.items()}
    if isinstance(tree, Mapping):
        return f"{kind}{{{', '.join(f'{key!r}: {part}' for key, part in inside.items())}}}"
    if isinstance(tree, tuple | list) and not is_named_tuple(tree):
        opened, closed = "[]" if isinstance(tree, list) else "()"
        return f"{opened}{', '.join(inside.values())}{closed}"
    return f"{kind}({', '.join(f'{key}={part}' for key, part in inside.items())})"


def shapes(tree: Tree) -> str:
    """The shapes of the leaves, for a message."""
    return shown_tree(tree, lambda t: str(tuple(t.shape)))


def kinds_of(tree: Tree) -> list[type]:
    """The classes of its containers that are somebody's own, each once, in their order."""
    parts = parts_of(tree)
    if not parts:
        return []
    own = [] if type(tree) in _PLAIN else [type(tree)]
    return list(dict.fromkeys(own + [kind for part in parts.values() for kind in kinds_of(part)]))


def count(batch: Tree) -> int:
    """How many samples a batch has."""
    return len(tree_leaves(batch)[0])


def anew(tree: Tree) -> Tree:
    """The same leaves in containers of a call's own, which may take a key out of a dict."""
    return tree_map(lambda leaf: leaf, tree)


def rows(batch: Tree, at: Any) -> Tree:
    """Some samples of a batch, by what a tensor can be indexed with."""
    return tree_map(lambda leaf: leaf[at], batch)


def in_full(output: Any) -> Any:
    """What a model returned, its half-precision tensors widened, those of an object's too."""
    is_tree = isinstance(output, Tensor) or parts_of(output) is not None
    if is_tree or not hasattr(output, "__dict__") or callable(output):
        return tree_map(_widened, output)
    wide = copy.copy(output)
    vars(wide).update({k: tree_map(_widened, part) for k, part in vars(output).items()})
    return wide


def _widened(leaf: Any) -> Any:
    half = isinstance(leaf, Tensor) and leaf.dtype in (torch.bfloat16, torch.float16)
    return leaf.float() if half else leaf


def is_named_tuple(tree: Any) -> bool:
    """Whether a tuple has names for its parts."""
    return isinstance(tree, tuple) and hasattr(tree, "_fields")


__all__ = [
    "Tree",
    "anew",
    "count",
    "in_full",
    "is_named_tuple",
    "kinds_of",
    "named_leaves",
    "parts_of",
    "rows",
    "shapes",
    "shown_tree",
    "tree_leaves",
    "tree_like",
    "tree_map",
    "with_parts",
]
