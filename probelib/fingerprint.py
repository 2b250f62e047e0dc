"""What a trace depends on, as hashes: equal in every process for equal things."""

from __future__ import annotations

import builtins
import copyreg
import enum
import functools
import hashlib
import importlib
import inspect
import io
import logging
import operator
import os
import pkgutil
import re
import struct
import sys
import types
import typing
import warnings
import weakref
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import resolve_name
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.nn.modules import module as _modules

from probelib.bytecode import read
from probelib.libraries import library_of, library_of_module, library_to_import

#: Between a hash and what could not be followed.
_NOT_FOLLOWED = " not followed: "
_MISSING = object()
# Methods that torch and this library call; whatever Python calls has underscores.
_CALLED = {"forward", "init", "step", "identity", "batch_size", "evaluations", "gradient"}
# What a class says of its text, or does when its objects are copied, pickled or removed.
_NEVER = {
    "__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__qualname__",
    "__dataclass_fields__", "__dataclass_params__", "__abstractmethods__",
    "__parameters__", "__orig_bases__", "__firstlineno__", "__static_attributes__",
    "__getstate__", "__setstate__", "__reduce__", "__reduce_ex__", "__getnewargs__", "__copy__",
    "__getnewargs_ex__", "__deepcopy__", "__del__", "__sizeof__", "__dir__", "__annotate__",
    "__subclasshook__", "__type_params__", "__replace__", "__classcell__", "__annotate_func__",
    "_abc_impl", "__slotnames__",  # which Python notes when it copies or pickles
}  # fmt: skip
# What it does when it is made, which code that does not name the class cannot have it do.
_MAKING = {"__init__", "__new__", "__post_init__", "__init_subclass__", "__set_name__"}
# Where transformers keeps Python's hash of a text, which is another one in every process.
_OF_THE_PROCESS = {"_original_object_hash"}
# With these, code takes any attribute.
_ANY_ATTRIBUTE = {"getattr", "vars", "dir", "getmembers", "attrgetter", "methodcaller"}
_ANY_ATTRIBUTE |= {"__dict__", "__getattribute__"}
_TAKING_ANY = (getattr, vars, dir, inspect.getmembers, operator.attrgetter, operator.methodcaller)
# Names of attributes, and functions, through which code reaches what it does not name.
_UNSEEN_ATTRIBUTES = {"__globals__", "__subclasses__", "f_globals", "f_locals", "f_back"}
_READING = {
    "read_text", "read_bytes", "open", "memmap", "safe_open", "load_file", "from_file", "read_csv",
    "read_parquet", "read_json", "read_pickle", "read_excel", "read_table", "loadmat", "imread",
}  # fmt: skip
_UNSEEN_CODE = {
    "exec": exec, "eval": eval, "compile": compile, "globals": globals, "__import__": __import__,
    "importlib.import_module": importlib.import_module, "importlib.reload": importlib.reload,
    "sys.modules": sys.modules, "sys._getframe": sys._getframe, "inspect.stack": inspect.stack,
    "inspect.currentframe": inspect.currentframe, "torch.hub.load": torch.hub.load,
    "pkgutil.resolve_name": pkgutil.resolve_name,
}  # fmt: skip
_UNSEEN_VALUES = {
    "open": open, "input": input, "os.environ": os.environ, "os.getenv": os.getenv,
    "torch.load": torch.load, "torch.jit.load": torch.jit.load, "np.load": np.load,
    "np.loadtxt": np.loadtxt, "np.genfromtxt": np.genfromtxt, "np.fromfile": np.fromfile,
}  # fmt: skip
_UNSEEN = {id(value): name for name, value in (_UNSEEN_CODE | _UNSEEN_VALUES).items()}
_LOCKS = ("lock", "RLock")
_LEAVES = {type(None), bool, int, float, complex, str, bytes, bytearray, range, type(...)}
_UFUNCS = ("numpy", "scipy.special")
_BY_NAME = (
    types.MethodDescriptorType, types.WrapperDescriptorType, types.MemberDescriptorType,
    types.GetSetDescriptorType, types.ClassMethodDescriptorType, typing.TypeVar, typing.ParamSpec,
    typing.NewType,
)  # fmt: skip
_PYTHON = "python "
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE
_POINTER = struct.calcsize("P")
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
# Their keys count all hooks of the process; and those of state dicts run at no step.
_ALL_HOOKS = {name for name in vars(nn.Module()) if "_hooks" in name}


def hash_array(digest: Any, a: Tensor, header: bool = True) -> None:
    """Feed an array's bytes to a hash; with ``header`` also its type and the shape of a row."""
    if header:
        digest.update(f"{a.dtype}{tuple(a.shape[1:])}".encode())
    digest.update(_on_host(a))


def describe(value: Any, tensors: bool = True) -> str:
    """SHA-256 of what a model, a loss, a class or a value is, the same in every process.

    It follows, to any depth, what objects hold and what code does: attributes, captured values,
    defaults, partials, hooks; the methods that code names, of classes that it names or has; the
    global names that a function looks up when it runs, and the attributes of modules. Code is
    hashed as it was compiled, so that a comment or another line changes nothing, and another
    version of Python everything. Libraries (Python's own, and what is installed) are known by
    name and version. A number that a function counts up in a global of its own is not seen.

    Args:
        value: a callable, a class, a module, a value.
        tensors: also hash the parameters and buffers of ``value``.

    Returns:
        64 digits; after them, if something cannot be followed (``exec``, a generator, a C
        extension), what that is: see :func:`not_followed`.
    """
    description, limit = _Description(), sys.getrecursionlimit()
    if isinstance(value, nn.Module) and not tensors:
        description.leave_out(value)
    try:
        sys.setrecursionlimit(max(limit, 5000))
        found, unseen = description.of(value), description.unseen
    except RecursionError:
        found, unseen = bytes(32), ["objects that are nested too deeply"]
    finally:
        sys.setrecursionlimit(limit)
    return found.hex() + (f"{_NOT_FOLLOWED}{unseen[0]}" if unseen else "")


def not_followed(description: Any) -> str | None:
    """What a description says could not be followed, so that it may have changed unseen."""
    match = re.fullmatch(rf"[0-9a-f]{{64}}{_NOT_FOLLOWED}(.*)", str(description), re.DOTALL)
    return match[1] if match else None


def plain(value: Any) -> Any:
    """A setting as JSON can say it: as it is, by its ``identity()``, or by its hash."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return repr(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain(part) for key, part in value.items()}
    identity = getattr(value, "identity", None)
    if callable(identity) and not isinstance(value, type):
        return plain(identity())
    return describe(value)


def attributes(value: Any) -> dict[str, Any]:
    """What an object holds, in its ``__dict__`` and in slots."""
    slots = [name for base in type(value).__mro__ for name in _slots(base)]
    held = {n: getattr(value, n) for n in slots if hasattr(value, n)}
    held |= getattr(value, "__dict__", {})
    return {name: part for name, part in held.items() if name not in _OF_THE_PROCESS}


def _slots(kind: type) -> list[str]:
    named = vars(kind).get("__slots__", ())
    named = (named,) if isinstance(named, str) else tuple(named)
    names = [name for name in named if name not in ("__dict__", "__weakref__")]
    own = kind.__name__.lstrip("_")
    return [f"_{own}{n}" if n.startswith("__") and not n.endswith("__") else n for n in names]


class _Visitor:
    """Hashes of values, each seen once.

    Attributes:
        unseen: what could not be followed, and where.
    """

    def __init__(self) -> None:
        self.unseen: list[str] = []
        # By id; holding the values keeps an id from being used again.
        self._known: dict[int, tuple[bytes, Any]] = {}
        self._open: dict[int, int] = {}
        self._left_out: set[int] = set()
        self._training = True
        self._trail: list[str] = []
        # Classes and modules count for those members that some code names.
        self._names = set(_CALLED)
        self._any_name = False
        self._spaces: dict[int, tuple[str, Any]] = {}
        self._made: set[int] = set()
        self._whole: set[int] = set()
        self._is_sure = True

    def __call__(self, value: Any) -> bytes:
        """The hash of a value, members of its class left for later."""
        if type(value) in _LEAVES:
            return _hash(type(value).__name__, hex(value) if type(value) is int else repr(value))
        key = id(value)
        if key in self._known:
            return self._known[key][0]
        if key in self._open:  # it holds itself, so many levels up
            return _hash("above", str(len(self._open) - self._open[key]))
        if key in _UNSEEN:
            return self._refuse(_UNSEEN[key])
        self._any_name |= any(value is taking for taking in _TAKING_ANY)
        self._open[key] = len(self._open)
        found = self._contents(value)
        del self._open[key]
        self._known[key] = found, value
        return found

    def _contents(self, value: Any) -> bytes:
        return next(see for kind, see in _METHODS if isinstance(value, kind))(self, value)

    def _all(self, values: Iterable[Any]) -> list[bytes]:
        return [self(value) for value in list(values)]  # another thread may add to them

    def _named(self, values: dict[Any, Any]) -> list[bytes]:
        """Of names and their values, in whatever order they were given."""
        parts, values = [], dict(values)
        for name in sorted(values, key=str):
            with self._at(str(name)):
                parts += [self(name), self(values[name])]
        return parts

    def _refuse(self, what: str, parts: Iterable[bytes] = ()) -> bytes:
        where = ".".join(self._trail[-3:])
        if self._is_sure or what not in (*_UNSEEN_VALUES, *_READING):
            self.unseen.append(f"{what} (in {where})" if where else what)
        return _hash("unseen", what, *parts)

    @contextmanager
    def _at(self, name: str) -> Iterator[None]:
        self._trail.append(name)
        yield
        self._trail.pop()


class _Code(_Visitor):
    """What code does: functions, and those members of classes and modules that it names."""

    def _method(self, value: Any) -> bytes:
        return _hash("method", self(value.__func__), self(value.__self__))

    def _builtin(self, value: Any) -> bytes:
        owner = value.__self__
        if owner is not None and not isinstance(owner, types.ModuleType | type):
            return _hash("builtin", value.__qualname__, self(owner))
        where = getattr(owner, "__module__", None) or value.__module__
        if isinstance(owner, types.ModuleType):
            where = owner.__name__
        known = library_of_module(where)
        if not known:
            return self._refuse(f"{_name(value)}, which is not written in Python")
        return _hash("builtin", known, value.__qualname__)

    def _operator(self, value: Any) -> bytes:
        """One of torch.ops: of torch itself, or of a library of that name."""
        name = str(value)
        space = name.partition(".")[0]
        if space not in ("aten", "prim", "prims") and not library_of_module(space):
            return self._refuse(f"torch.ops.{name}")
        return _hash("operator", name)

    def _function(self, function: types.FunctionType) -> bytes:
        original = vars(function).get("_torchdynamo_orig_callable")
        if original is not None:
            return _hash("compiled", self(original))
        library = library_of(function.__globals__)
        if library and _is_at_its_name(function):
            return _hash("function", library, function.__module__, function.__qualname__)
        with self._at(function.__qualname__.rpartition(".")[2]):
            parts: list[bytes | str] = [self(function.__defaults__)]
            parts += self._named(function.__kwdefaults__ or {})
            parts += self._named(vars(function))
            for name, cell in zip(
                function.__code__.co_freevars, function.__closure__ or (), strict=True
            ):
                with suppress(ValueError), self._at(name):  # a cell that is still empty
                    value = cell.cell_contents
                    parts.append(self._reference(value) if name == "__class__" else self(value))
            if library:
                return _hash("function", library, function.__code__.co_qualname, *parts)
            return _hash("function", *parts, *self._code(function))

    def _code(self, function: types.FunctionType) -> list[bytes]:
        """What a function does, and the values of the names that it looks up."""
        code, space = read(function.__code__), function.__globals__
        self._names |= code.attributes
        used = code.attributes | {name for path in code.names for name in path}
        for name in sorted(code.attributes & _UNSEEN_ATTRIBUTES | used & _READING):
            self._refuse(name)
        self._any_name |= not used.isdisjoint(_ANY_ATTRIBUTE)
        parts = [code.digest]
        for name, *path in sorted(code.names):
            value = space.get(name, getattr(builtins, name, _MISSING))
            if name in code.stored and isinstance(value, int | float):
                continue
            for attribute in path:
                if isinstance(value, types.ModuleType):
                    with suppress(Exception):  # as it will be when the code runs
                        value = getattr(value, attribute)
            if isinstance(value, types.ModuleType):  # of which code then takes what it likes
                self._whole.add(id(value))
            if value is not _MISSING:
                with self._at(name):
                    parts.append(_hash("global", name, *path, self(value)))
        for level, name in code.imports:
            with suppress(ImportError):
                name = resolve_name("." * level + name, space.get("__package__"))
            if name in sys.modules:
                parts.append(_hash("import", name, self(sys.modules[name])))
            elif (library := library_to_import(name)) is not None:
                parts.append(_hash("import", name, library))
            else:
                self._refuse(f"the import of {name}")
        return parts

    def _class(self, kind: type) -> bytes:
        """A class that may be called."""
        self._made |= {id(base) for base in kind.__mro__}
        return self._reference(kind)

    def _class_of(self, value: Any) -> bytes:
        return self._reference(type(value))

    def _reference(self, space: Any) -> bytes:
        """A class or a module by its name, its members left for later."""
        if id(space) in self._spaces:
            return _hash("space", self._spaces[id(space)][0])
        is_class = isinstance(space, type)
        if is_class and space.__module__ == "builtins" and not _is_made_here(space):
            return _hash("space", space.__qualname__)
        library = _library(space)
        name = space.__qualname__ if is_class else space.__name__
        name = f"{library}: {_name(space)}" if library else name
        taken = {of for of, _ in self._spaces.values()}
        name = next(n for k in range(10**6) if (n := f"{name}#{k}" if k else name) not in taken)
        self._spaces[id(space)] = name, space
        above = []
        if is_class:
            above = [self._reference(kind) for kind in (type(space), *space.__mro__[1:])]
        if not library and _is_compiled(space):
            self._refuse(f"{_name(space)}, which is not written in Python")
        return _hash("space", name, *above)

    def _members(self, space: Any) -> Iterator[tuple[str, Any]]:
        """Those members of a class or a module that code may use."""
        library = _library(space)
        is_class = isinstance(space, type)
        overridden = _of_libraries(space) if is_class and not library else frozenset()
        for name, member in list(vars(space).items()):
            if not isinstance(name, str) or name in _NEVER:
                continue
            hidden = name.startswith("__") and name.endswith("__")
            if library:  # known, but for what somebody has put into it
                if _is_foreign(member) if is_class else name in self._names and not hidden:
                    yield name, member
            elif name in _MAKING:
                if id(space) in self._made:
                    yield name, member
            elif (
                name in self._names
                or (hidden and (is_class or name == "__getattr__"))
                or name in overridden
                or (not hidden and (id(space) in self._whole or not self._is_sure))
            ):
                yield name, member

    def _wrapper(self, value: Any) -> bytes:
        return _hash(type(value).__name__, self(value.__func__))

    def _property(self, value: property) -> bytes:
        return _hash("property", *self._all((value.fget, value.fset, value.fdel)))

    def _cell(self, value: Any) -> bytes:
        with suppress(ValueError):  # one that is still empty
            return _hash("cell", self(value.cell_contents))
        return _hash("cell")

    def _python_code(self, value: types.CodeType) -> bytes:
        return read(value).digest


class _Description(_Code):
    """Hashes of values, and of what the code in them does."""

    def leave_out(self, model: nn.Module) -> None:
        """Parameters, buffers and the mode of a model count nothing."""
        self._left_out = {id(t) for t in (*model.parameters(), *model.buffers())}
        self._training = model.training

    def of(self, value: Any) -> bytes:
        """The hash of a value and of all members of classes and modules that it comes to use."""
        parts = [_hash("with", str(torch.get_default_dtype())), self(value)]
        done: set[tuple[str, str]] = set()
        while True:
            wanted = {
                (space, name): member
                for space, of in list(self._spaces.values())
                for name, member in self._members(of)
                if (space, name) not in done
            }
            for key in sorted(wanted):
                done.add(key)
                with self._at(key[1]):
                    parts.append(_hash("member", *key, self(wanted[key])))
            if wanted:
                continue
            if not self._any_name or not self._is_sure:
                return _hash("all", *parts)
            self._is_sure = False  # what is left may be used by a name that code makes up

    def _tensor(self, value: Tensor) -> bytes:
        header: list[bytes | str] = [
            self._class_of(value),
            str(value.dtype),
            str(tuple(value.shape)),
        ]
        if id(value) in self._left_out:
            return _hash("tensor", *header)
        header += self._named(vars(value)) if getattr(value, "__dict__", None) else []
        if value.is_quantized:  # its bytes say nothing of the scale
            header.append(self(value.dequantize()))
        try:
            if value.layout == torch.sparse_coo:
                whole = value.detach().coalesce()
                return _hash("sparse", *header, self(whole.indices()), self(whole.values()))
            return _hash("tensor", *header, _on_host(value).tobytes())
        except (RuntimeError, NotImplementedError, TypeError):
            return self._refuse(f"a tensor of layout {value.layout} on {value.device}")

    def _array(self, value: np.ndarray) -> bytes:
        header: list[bytes | str] = [self._class_of(value), str(value.dtype), str(value.shape)]
        if not isinstance(value, np.memmap):  # which says only where it lies
            header += self._named(attributes(value))  # such as a mask
        if value.dtype.hasobject:
            return _hash("array", *header, *self._all(value.ravel().tolist()))
        return _hash("array", *header, np.ascontiguousarray(value).tobytes())

    def _module(self, module: nn.Module) -> bytes:
        if isinstance(module, torch.jit.ScriptModule):
            return _hash("script", *self._script(module), *self._named(module.state_dict()))
        original = module._modules.get("_orig_mod")
        if original is not None and type(module).__module__ == "torch._dynamo.eval_frame":
            return _hash("compiled", self(original))
        held = dict(vars(module))
        mode = held.pop("training", self._training)
        hooks = []
        for name in _HOOKS:  # whose keys count all hooks of the process
            for key, hook in held.get(name, {}).items():
                how = ("_with_kwargs", "_always_called")
                flags = (key in held.get(f"{name}{word}", {}) for word in how)
                hooks.append(_hash(name, self(hook), *map(str, flags)))
        for name in _HOOKS:
            hooks += self._all(getattr(_modules, f"_global{name}").values())
        held = {k: v for k, v in held.items() if k not in _ALL_HOOKS}
        parts = [_hash("mode", str(mode))] if mode != self._training else []
        return _hash("module", self._class_of(module), *parts, *hooks, *self._named(held))

    def _script(self, script: Any) -> list[bytes]:
        """The code and the attributes of what torch.jit compiled."""
        parts = []
        with zipfile.ZipFile(io.BytesIO(script.save_to_buffer())) as archive:
            for file in sorted(archive.namelist()):
                name = file.partition("/")[2]
                if not name.endswith((".debug_pkl", "_id", "version")):  # lines, and random ids
                    text = re.sub(rb"\.?___torch_mangle_\d+", b"", archive.read(file))
                    parts.append(_hash("script", re.sub(r"___torch_mangle_\d+", "", name), text))
        return parts

    def _script_function(self, script: Any) -> bytes:
        return _hash("script", *self._script(script))

    def _partial(self, value: functools.partial) -> bytes:
        parts = self(value.func), self(value.args), *self._named(value.keywords)
        return _hash("partial", self._class_of(value), *parts, *self._named(attributes(value)))

    def _dict(self, value: dict) -> bytes:
        """In the order in which it is kept, which a loop over it follows."""
        parts = [self._class_of(value)]
        kind: Any = OrderedDict if isinstance(value, OrderedDict) else dict  # with its own order
        for key, part in list(kind.items(value)):
            with self._at(str(key)):
                parts += [self(key), self(part)]
        more = attributes(value)
        if hasattr(value, "default_factory"):
            more["default_factory"] = value.default_factory
        return _hash("dict", *parts, *self._named(more))

    def _sequence(self, value: Any) -> bytes:
        kind = tuple if isinstance(value, tuple) else list
        parts = self._all(kind.__iter__(value))
        return _hash("sequence", self._class_of(value), *parts, *self._named(attributes(value)))

    def _set(self, value: Any) -> bytes:
        kind = set if isinstance(value, set) else frozenset
        parts = sorted(self._all(kind.__iter__(value)))
        return _hash("set", self._class_of(value), *parts, *self._named(attributes(value)))

    def _enum(self, value: enum.Enum) -> bytes:
        known = {"_name_", "_value_", "__objclass__", "_sort_order_"}
        more = {name: part for name, part in vars(value).items() if name not in known}
        parts = self(value.value), *self._named(more)
        return _hash("enum", self._class_of(value), str(value.name), *parts)

    def _object(self, value: Any) -> bytes:
        """Anything else: its attributes, and its state where a class in C keeps it."""
        kind = type(value)
        parts = [self._class_of(value)]
        if isinstance(value, operator.attrgetter | operator.methodcaller):
            self._any_name = True
        if value is sys.stdout or value is sys.stderr:
            return _hash("output")  # changes no number
        held = {k: v for k, v in attributes(value).items() if k != "__doc__"}
        library = _library(kind) or _PYTHON
        curated = not library.startswith(_PYTHON) and _pickles_itself(kind)
        if not curated:  # else it knows what of it is a cache
            parts += self._named(held)
            if not _keeps_state_in_c(kind):
                return _hash("object", *parts)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the pickling of iterators will go
                reduced = copyreg.dispatch_table.get(kind, lambda v: v.__reduce_ex__(2))(value)
        except Exception:  # whatever keeps it from being pickled
            if kind.__name__ in _LOCKS or (isinstance(value, io.IOBase) and _only_written(value)):
                return _hash("output")
            return self._refuse(f"{kind.__module__}.{kind.__qualname__}", parts)
        if not isinstance(reduced, str):
            made_by, given, *state = reduced
            state[1:] = [None if part is None else list(part) for part in state[1:3]]
            return _hash("object", *parts, self(made_by), self(tuple(given)), self(state))
        known = library_of_module(getattr(value, "__module__", None) or kind.__module__)
        if isinstance(value, np.ufunc) and not any(
            getattr(sys.modules.get(place), reduced, None) is value for place in _UFUNCS
        ):
            known = None  # made of somebody's function
        if not known and "__wrapped__" not in held:
            return self._refuse(f"{reduced}, a {kind.__name__}", parts)
        return _hash("object", *parts, reduced, known or "")


# How each kind of value is seen, the first that fits.
_METHODS: list[tuple[Any, Any]] = [
    (Tensor, _Description._tensor),
    (np.ndarray, _Description._array),
    (torch.jit.ScriptFunction, _Description._script_function),
    (nn.Module, _Description._module),
    (functools.partial, _Description._partial),
    (enum.Enum, _Description._enum),
    (dict, _Description._dict),
    (tuple | list, _Description._sequence),
    (set | frozenset, _Description._set),
    (type, _Description._class),
    (types.ModuleType, _Description._reference),
    (types.FunctionType, _Description._function),
    (types.MethodType, _Description._method),
    (types.BuiltinFunctionType | types.MethodWrapperType, _Description._builtin),
    (property, _Description._property),
    (staticmethod | classmethod, _Description._wrapper),
    (types.CellType, _Description._cell),
    (types.CodeType, _Description._python_code),
    (types.MappingProxyType, lambda self, value: _hash("proxy", self(dict(value)))),
    (memoryview, lambda self, value: _hash("view", self(bytes(value)))),
    (weakref.ref, lambda self, value: _hash("weak", self(value()))),
    (logging.Logger, lambda self, value: _hash("logger")),
    (_BY_NAME, lambda self, value: _hash("named", _name(value))),
    ((OpOverload, OpOverloadPacket), _Description._operator),
    (object, _Description._object),
]


def _hash(kind: str, *parts: bytes | str) -> bytes:
    digest = hashlib.sha256(kind.encode())
    for part in parts:
        part = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.digest()


def _name(value: Any) -> str:
    if isinstance(value, types.ModuleType):
        return value.__name__
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", "")
    return f"{getattr(value, '__module__', None) or 'builtins'}.{name}"


def _library(space: Any) -> str | None:
    """Of a class or a module."""
    if isinstance(space, types.ModuleType):
        return library_of(vars(space))
    if space.__module__ == "builtins" and _is_made_here(space):
        return None
    return library_of_module(space.__module__)


def _is_made_here(kind: type) -> bool:
    """Whether a class was made while Python ran: what exec made may say it is of builtins."""
    return bool(kind.__flags__ & _HEAP_TYPE)


def _is_compiled(space: Any) -> bool:
    """Whether a class or a module comes from a C extension."""
    module = sys.modules.get(space.__module__) if isinstance(space, type) else space
    return str(getattr(module, "__file__", "")).endswith((".so", ".pyd"))


def _is_foreign(member: Any) -> bool:
    """Whether a member of a library's class is a function that somebody else put there."""
    member = getattr(member, "fget", None) or getattr(member, "__func__", member)
    return isinstance(member, types.FunctionType) and not library_of(member.__globals__)


def _of_libraries(kind: type) -> set[str]:
    """Names of members that a class has from libraries, which may call them."""
    return {n for base in kind.__mro__[:-1] if _library(base) for n in vars(base)}


def _pickles_itself(kind: type) -> bool:
    """Whether a class says what of its objects is to be kept."""
    names = ("__reduce_ex__", "__reduce__", "__getstate__")
    return any(getattr(kind, n, None) is not getattr(object, n, None) for n in names)


def _only_written(file: io.IOBase) -> bool:
    return not file.closed and not file.readable()


def _is_at_its_name(function: types.FunctionType) -> bool:
    """Whether a function is what its module has under its name, and so captures nothing."""
    found: Any = sys.modules.get(function.__globals__.get("__name__", ""))
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is function


def _keeps_state_in_c(kind: type) -> bool:
    """Whether objects of a class are larger than their attributes, as pickle tells it."""
    pointers = sum(len(_slots(base)) for base in kind.__mro__)
    pointers += (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0)
    size = object.__basicsize__ + _POINTER * pointers
    return kind.__itemsize__ != 0 or kind.__basicsize__ > size


def _on_host(a: Tensor) -> np.ndarray:
    if a.numel() == 0:
        return np.empty(0, np.uint8)
    a = a.detach().resolve_conj().resolve_neg()
    return a.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


__all__ = ["attributes", "describe", "hash_array", "not_followed", "plain"]
