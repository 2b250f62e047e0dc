"""What surrounds a call, kept out of it: a loss is the same function wherever it is evaluated."""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import ParamSpec, TypeVar

import torch
from torch.nn.utils import parametrize

P = ParamSpec("P")
R = TypeVar("R")

_LOCK = threading.Lock()
_inside, _fast_path = 0, True
_here = threading.local()


def undisturbed(function: Callable[P, R]) -> Callable[P, R]:
    """Evaluate as if nothing around the outermost of these had been set.

    No autocast, no inference mode and no shortened products of matrices, which would change the
    precision or leave no gradient; no parametrised weights that were kept from before; and
    attention takes the one path that has gradients, as without them its fast path treats padding
    in another way. All is put back at the end.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if getattr(_here, "entered", False):  # at every batch: it has to cost nothing
            return function(*args, **kwargs)
        with _nothing_set():
            return function(*args, **kwargs)

    return call


@contextmanager
def _nothing_set() -> Iterator[None]:
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        accelerator = torch.accelerator.current_accelerator()
        for kind in {"cpu", accelerator.type if accelerator else "cpu"}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(_one_attention())
        stack.enter_context(_full_products())
        stack.enter_context(_no_kept_weights())
        _here.entered = True
        stack.callback(setattr, _here, "entered", False)
        yield


@contextmanager
def _one_attention() -> Iterator[None]:
    """The switch is that of all threads: the first call turns it, the last one puts it back."""
    global _inside, _fast_path
    with _LOCK:
        if _inside == 0:
            _fast_path = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
        _inside += 1
    try:
        yield
    finally:
        with _LOCK:
            _inside -= 1
            if _inside == 0:
                torch.backends.mha.set_fastpath_enabled(_fast_path)


@contextmanager
def _full_products() -> Iterator[None]:
    """Products of float32 matrices in float32: shortened, they would be other losses."""
    precision = torch.get_float32_matmul_precision()
    if precision == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


@contextmanager
def _no_kept_weights() -> Iterator[None]:
    """Inside ``parametrize.cached()`` weights would be those of the first call for all others."""
    kept = parametrize._cache_enabled, parametrize._cache
    if not kept[0]:
        yield
        return
    parametrize._cache_enabled, parametrize._cache = 0, {}
    try:
        yield
    finally:
        parametrize._cache_enabled, parametrize._cache = kept


__all__ = ["undisturbed"]
