"""Compiled code as what it does: hashed without lines, names of files or docstrings."""

from __future__ import annotations

import dis
import functools
import hashlib
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any

# What a compiler puts in for the interpreter, or for lines to be traced.
_IDLE = {"CACHE", "EXTENDED_ARG", "NOP", "RESUME"}
_GLOBAL = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
_ATTRIBUTE = {"LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "STORE_ATTR", "DELETE_ATTR"}
# What a class body says of its text.
_OF_TEXT = {"__doc__", "__firstlineno__", "__static_attributes__"}
_KINDS_OF_FUNCTION = 0x04 | 0x08 | 0x20 | 0x80 | 0x200  # *args, **kwargs, generator, async


@dataclass(frozen=True)
class Code:
    """What compiled code is, and what it looks up when it runs, nested code included.

    Attributes:
        digest: SHA-256; another version of Python compiles, and so hashes, otherwise.
        names: global names, each with the attributes that are taken of it at once: ("np", "linalg",
            "norm").
        stored: global names that it sets.
        attributes: names of all attributes.
        imports: modules that it imports: level, name.
    """

    digest: bytes
    names: tuple[tuple[str, ...], ...]
    stored: frozenset[str]
    attributes: frozenset[str]
    imports: tuple[tuple[int, str], ...]


@functools.lru_cache(maxsize=4096)
def read(code: CodeType) -> Code:
    """Read a function's code."""
    digest = hashlib.sha256()
    names: dict[tuple[str, ...], None] = {}
    stored, attributes = set(), set()
    imports: dict[tuple[int, str], None] = {}

    def put(part: Any) -> None:
        digest.update(f"{part!r}\n".encode("utf-8", "surrogatepass"))

    arguments = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount
    put((arguments, code.co_varnames[: sum(arguments[::2])], code.co_flags & _KINDS_OF_FUNCTION))
    steps = list(_steps(code))
    offsets = [step.offset for step in steps]
    for at, step in enumerate(steps):
        put((step.opname, _argument(step, offsets)))
        if step.opname in _GLOBAL:
            path = [step.argval]
            for after in steps[at + 1 :]:
                if after.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
                    break
                path.append(after.argval)
            names[tuple(path)] = None
        elif step.opname == "STORE_GLOBAL":
            stored.add(step.argval)
        elif step.opname in _ATTRIBUTE or step.opname == "IMPORT_FROM":
            attributes.add(step.argval)
        elif step.opname == "MATCH_CLASS":  # it takes attributes that the class names
            attributes.add("getattr")
        elif step.opname == "IMPORT_NAME":
            imports[steps[at - 2].argval, step.argval] = None
    for entry in _exception_table(code):
        put(tuple(bisect_left(offsets, end) for end in entry[:3]) + entry[3:])
    for inner in (read(part) for part in code.co_consts if isinstance(part, CodeType)):
        names |= dict.fromkeys(inner.names)
        imports |= dict.fromkeys(inner.imports)
        stored |= inner.stored
        attributes |= inner.attributes
    return Code(
        digest.digest(), tuple(names), frozenset(stored), frozenset(attributes), tuple(imports)
    )


def _steps(code: CodeType) -> Iterator[dis.Instruction]:
    """Its instructions, but for those that do nothing, or only say how it was written."""
    kept = [step for step in dis.get_instructions(code) if step.opname not in _IDLE]
    for step, after in zip(kept, [*kept[1:], None], strict=True):
        of_text = [s.opname == "STORE_NAME" and s.argval in _OF_TEXT for s in (step, after) if s]
        if not any(of_text):
            yield step


def _argument(step: dis.Instruction, offsets: list[int]) -> Any:
    """Of an instruction: a constant by its value, a jump by how many instructions lie before."""
    if step.opcode in dis.hasjrel or step.opcode in dis.hasjabs:
        return bisect_left(offsets, step.argval)
    return _constant(step.argval) if step.opcode in dis.hasconst else step.argval


def _constant(value: Any) -> Any:
    if isinstance(value, CodeType):
        return read(value).digest
    if isinstance(value, tuple):
        return tuple(map(_constant, value))
    if isinstance(value, frozenset):  # its order is another in every process
        return "frozenset", sorted(repr(_constant(part)) for part in value)
    return type(value).__name__, value


def _exception_table(code: CodeType) -> list[tuple[int, int, int, int, bool]]:
    """Ranges that are in a ``try`` or ``with``: start, end and target, depth, whether lasti."""
    return [
        (e.start, e.end, e.target, e.depth, e.lasti)
        for e in dis._parse_exception_table(code)  # type: ignore[attr-defined]
    ]


__all__ = ["Code", "read"]
