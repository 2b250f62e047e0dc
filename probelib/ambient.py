"""What surrounds a call, kept out of it: a loss is the same function wherever it is evaluated."""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch.nn.utils import parametrize

P = ParamSpec("P")
R = TypeVar("R")

_LOCK = threading.Lock()
_inside, _put_back = 0, ExitStack()
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
        stack.enter_context(_switches_turned())
        _here.entered = True
        stack.callback(setattr, _here, "entered", False)
        yield


@contextmanager
def _switches_turned() -> Iterator[None]:
    """The switches are those of all threads: the first call turns them, the last puts them back."""
    global _inside, _put_back
    with _LOCK:
        if _inside == 0:
            _put_back = _turn()
        _inside += 1
    try:
        yield
    finally:
        with _LOCK:
            _inside -= 1
            if _inside == 0:
                _put_back.close()


def _turn() -> ExitStack:
    """Turn what is not as it has to be; closing the result puts it back."""
    back, attention = ExitStack(), torch.backends.mha
    if attention.get_fastpath_enabled():
        back.callback(attention.set_fastpath_enabled, True)
        attention.set_fastpath_enabled(False)
    if parametrize._cache_enabled:  # weights would be those of the first call for all others
        back.callback(_keep_weights, parametrize._cache_enabled, parametrize._cache)
        _keep_weights(0, {})
    try:
        precision = torch.get_float32_matmul_precision()
        if precision != "highest":
            back.callback(torch.set_float32_matmul_precision, precision)
            torch.set_float32_matmul_precision("highest")
    except RuntimeError:  # somebody set it for one kind of device: then torch has no word for all
        kinds: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cuda)
        for products in (kind.matmul for kind in kinds):
            back.callback(setattr, products, "fp32_precision", products.fp32_precision)
            products.fp32_precision = "ieee"
    return back


def _keep_weights(enabled: int, kept: dict[tuple[int, str], torch.Tensor | None]) -> None:
    """Set what ``parametrize.cached()`` sets."""
    parametrize._cache_enabled, parametrize._cache = enabled, kept


__all__ = ["undisturbed"]
