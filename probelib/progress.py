"""Where progress bars go, and what is said of a run that is done."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
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


def report_run(
    kind: str, seconds: float, *, cached: bool, draws: int | None = None, file: Path | None = None
) -> None:
    """Say on the logger ``probelib``, at level INFO, that a run is done, or was found done.

    A handler finds the same as ``record.probelib_run``: a dict with ``kind``, ``seconds``,
    ``cached``, ``draws`` and ``made``, the time at which a kept run was written (seconds since
    1970, None where it is not known).

    Args:
        kind: of run, in the singular: "trace".
        seconds: that it took when it was made.
        cached: whether it was found rather than made.
        draws: of all chains together.
        file: written last of what is kept of it.
    """
    made = None
    if cached and file is not None:
        with contextlib.suppress(OSError):
            made = file.stat().st_mtime
    run = {"kind": kind, "seconds": seconds, "cached": cached, "draws": draws, "made": made}
    logging.getLogger("probelib").info(
        "%s %s: %.1f s%s",
        kind,
        "found in the cache" if cached else "made",
        seconds,
        f", {draws} draws" if draws else "",
        extra={"probelib_run": run},
    )


__all__ = ["progress_bar", "report_run"]
