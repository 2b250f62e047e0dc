"""Where progress bars go."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(iterable: Iterable[Any] | None = None, **settings: Any) -> tqdm[Any]:
    """A bar of tqdm: on stderr, as usual, or on stdout in a Jupyter kernel.

    A notebook shows whatever comes on stderr on the ground that it keeps for errors.

    Args:
        iterable: what it counts, if it is not told.
        settings: of tqdm.
    """
    stream = sys.stdout if _in_a_kernel() else sys.stderr
    return tqdm(iterable, file=stream, **settings)


def _in_a_kernel() -> bool:
    ipython = sys.modules.get("IPython")  # never imported for this
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


__all__ = ["progress_bar"]
