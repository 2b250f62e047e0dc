"""Parts of a network: which of its weights move, down to single numbers of a parameter.

The local posterior of a part, with everything else at w*, gives the refined learning coefficient
(Wang et al., 2024, arXiv:2410.02984) and the loss kernel of that part.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probelib.arguments import shown
from probelib.copies import version
from probelib.fingerprint import hash_array

Mask = bool | Tensor
Choice = Callable[[str, nn.Parameter], Mask]
#: A name or glob, several, a function of (name, parameter), or masks by name or glob.
Parameters = str | Sequence[str] | Choice | Mapping[str, Mask]


@dataclass(frozen=True)
class Part:
    """What moves of one parameter.

    Attributes:
        name: of the parameter.
        shape: of the whole parameter.
        size: how many of its weights move.
        index: their positions in the flattened parameter, shape (size,); None if all move.
        whole: the flattened parameter at w*; None if all move.
    """

    name: str
    shape: torch.Size
    size: int
    index: Tensor | None = None
    whole: Tensor | None = None

    @classmethod
    def of(cls, name: str, parameter: Tensor, mask: Tensor | None) -> Part:
        """A part of a parameter; mask: of its shape, or None for all of it."""
        if mask is None or bool(mask.all()):
            return cls(name, parameter.shape, parameter.numel())
        index = mask.reshape(-1).nonzero()[:, 0].to(parameter.device)
        return cls(name, parameter.shape, len(index), index, parameter.detach().reshape(-1))

    def taken_from(self, parameter: Tensor) -> Tensor:
        """The weights that move, shape (size,)."""
        flat = parameter.detach().reshape(-1)
        return flat if self.index is None else flat[self.index]

    def put_into(self, weights: Tensor) -> Tensor:
        """The whole parameter, of its shape, with these (size,) in place of those that move."""
        if self.index is None or self.whole is None:
            return weights.reshape(self.shape)
        return self.whole.index_copy(0, self.index, weights).reshape(self.shape)


class Parts:
    """The weights of a model that move, as one flat vector in the order of the model.

    Args:
        model: as it is run; its parameters are told afterwards whether they move.
        parameters: see :class:`probelib.LocalPosterior`.

    Raises:
        ValueError, TypeError: a name that the model does not have, a mask that does not fit, or
            nothing that moves.
    """

    def __init__(self, model: nn.Module, parameters: Parameters | None):
        every = dict(model.named_parameters())
        default: dict[str, Tensor | None] = {k: None for k, p in every.items() if p.requires_grad}
        found = default if parameters is None else _chosen(model, parameters)
        if not found:
            raise ValueError(
                "model has no parameter with requires_grad=True; leave at least one free, or name "
                "what moves with parameters="
            )
        self._parts = [Part.of(k, p, found[k]) for k, p in every.items() if k in found]
        self._masked = [part for part in self._parts if part.index is not None]
        #: Whether these are other weights than those that ask for a gradient.
        self.chosen: bool = bool(self._masked) or set(found) != set(default)
        if parameters is not None:
            for name, parameter in every.items():
                parameter.requires_grad_(name in found)
        self._sizes = [part.size for part in self._parts]

    @property
    def sizes(self) -> dict[str, int]:
        """How many weights of each parameter move, by its name; of no other does any."""
        return {part.name: part.size for part in self._parts}

    def taken_from(self, model: nn.Module) -> Tensor:
        """The weights of a model that move, flat."""
        every = dict(model.named_parameters())
        return torch.cat([part.taken_from(every[part.name]) for part in self._parts])

    def put_into(self, weights: Tensor) -> dict[str, Tensor]:
        """By name, the whole parameters of which these flat weights move."""
        moving = weights.split(self._sizes)
        return {p.name: p.put_into(w) for p, w in zip(self._parts, moving, strict=True)}

    def versions(self, weights: Tensor, tensors: dict[str, Tensor]) -> list[int]:
        """How often flat weights, and what :meth:`put_into` made of them, were changed in place."""
        return [version(weights), *(version(tensors[part.name]) for part in self._masked)]

    def constants(self) -> dict[str, Tensor]:
        """By name, the parameters at w* of which a part stands still."""
        return {part.name: part.whole for part in self._masked if part.whole is not None}

    def fingerprint(self) -> str:
        """SHA-256 of which weights move."""
        digest = hashlib.sha256()
        for part in self._parts:
            digest.update(repr((part.name, tuple(part.shape), part.size)).encode())
            if part.index is not None:
                hash_array(digest, part.index)
        return digest.hexdigest()


# --- what the caller named ---


def _chosen(model: nn.Module, parameters: Parameters) -> dict[str, Tensor | None]:
    """By its first name, each parameter that moves, and its mask; None for all of it."""
    named: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        named.setdefault(id(parameter), []).append(name)
    every = dict(model.named_parameters())
    first = {alias: names[0] for names in named.values() for alias in names}
    found: dict[str, Tensor | None] = {}
    for alias, mask in _asked(model, every, first, parameters):
        name = first[alias]
        if not every[name].is_floating_point():
            raise ValueError(
                f"parameters asks for {alias!r}, which is of type {every[name].dtype} and has no "
                "gradient; leave it out, for instance with a function: "
                "lambda name, p: p.is_floating_point()"
            )
        before = found.get(name, mask)
        # Named twice, as tied weights may be: it moves where any of its names says so.
        found[name] = None if before is None or mask is None else before | mask
    if not found:
        raise ValueError(
            f"parameters is {shown(parameters)}, for which no weight moves; name at least one: "
            f"{_nearest('', list(first))}"
        )
    return found


def _asked(
    model: nn.Module,
    every: dict[str, nn.Parameter],
    first: dict[str, str],
    parameters: Parameters,
) -> Iterator[tuple[str, Tensor | None]]:
    """Names, tied ones under each of theirs, and masks of what is to move."""
    if isinstance(parameters, str):
        parameters = [parameters]
    if isinstance(parameters, Mapping):
        for pattern, mask in parameters.items():
            for name in _matching(model, list(first), pattern):
                yield name, _mask(f"parameters[{pattern!r}]", mask, name, every[first[name]])
    elif isinstance(parameters, list | tuple | set | frozenset):
        for pattern in parameters:
            for name in _matching(model, list(first), pattern):
                yield name, None
    elif callable(parameters) and not isinstance(parameters, nn.Module | type):
        for name in first:
            own = every[first[name]]
            # A copy: what the function does with it stays there.
            given = nn.Parameter(own.detach().clone(), own.requires_grad)
            answer = parameters(name, given)
            if isinstance(answer, bool | np.bool_) and not answer:
                continue
            of_it = _mask("parameters", answer, name, own, may_be_empty=True)
            if of_it is None or bool(of_it.any()):
                yield name, of_it
    else:
        raise TypeError(
            f"parameters is {shown(parameters)}; give a name or glob, a list of these, a function "
            "(name, parameter) -> bool or mask, or a dict of name or glob -> mask"
        )


def _matching(model: nn.Module, names: list[str], pattern: Any) -> list[str]:
    """Names that a name or glob stands for; a ``*`` goes across dots."""
    if not isinstance(pattern, str):
        raise TypeError(f"parameters has {shown(pattern)}, which is no name; give text")
    found = [pattern] if pattern in names else [n for n in names if fnmatchcase(n, pattern)]
    if found:
        return found
    if any(name.startswith(f"{pattern}.") for name in names):
        remedy = f"it is a module, whose parameters are {pattern + '.*'!r}"
    elif any(fnmatchcase(name, pattern) for name, _ in model.named_buffers()):
        remedy = "it is a buffer, and only parameters move"
    else:
        remedy = _nearest(pattern, names)
    raise ValueError(f"parameters has {pattern!r}, which matches no parameter of model; {remedy}")


def _nearest(pattern: str, names: list[str]) -> str:
    near = difflib.get_close_matches(pattern, names, 3, 0.5) or names[:3]
    return (
        f"the nearest names are {', '.join(map(repr, near))} "
        "([n for n, _ in model.named_parameters()] has all)"
    )


def _mask(
    what: str, mask: Any, name: str, parameter: Tensor, may_be_empty: bool = False
) -> Tensor | None:
    """A mask of the parameter's shape, nobody else's; None for True."""
    if isinstance(mask, bool | np.bool_) and mask:
        return None
    if isinstance(mask, np.ndarray | bool | np.bool_):
        mask = torch.from_numpy(np.array(mask))
    if not isinstance(mask, Tensor):
        raise TypeError(
            f"{what} is {shown(mask)} for {name!r}; give a boolean tensor, or True for all of it"
        )
    if mask.dtype != torch.bool:
        raise ValueError(
            f"{what} is a mask of type {mask.dtype} for {name!r}; make it boolean, such as with "
            "mask != 0"
        )
    shape = tuple(parameter.shape)
    fits = mask.ndim == len(shape) and all(
        m in (1, n) for m, n in zip(mask.shape, shape, strict=True)
    )
    if not fits and mask.ndim > 0:  # of fewer dimensions, it could mean rows as well as columns
        raise ValueError(
            f"{what} is a mask of shape {tuple(mask.shape)} for {name!r}, which has shape {shape}; "
            "give it as many dimensions, each as long or 1 (rows: mask[:, None], columns: "
            "mask[None, :])"
        )
    if not may_be_empty and not bool(mask.any()):
        raise ValueError(
            f"{what} is a mask of which all is False for {name!r}, so that nothing of it moves; "
            "leave the name out"
        )
    return mask.detach().to(parameter.device).expand(shape).clone()


__all__ = ["Part", "Parts"]
