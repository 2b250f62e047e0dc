"""Processes that end with the one that started them, however that one ends.

python lifeline.py PARENT MODULE ARGUMENT ...    run MODULE as `python -m` would, on such a line
"""

from __future__ import annotations

import os
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1  # of Linux's prctl
_SIGKILL = 9


def end_with_parent(parent: int, every: float = 1.0) -> None:
    """Have this process end when ``parent`` does: at once on Linux, within ``every`` elsewhere.

    On Linux the thread that started this process must live as long as its process should.

    Args:
        parent: the process that started this one.
        every: seconds between two looks, where the system does not tell.
    """
    told = _tell_me()
    if os.getppid() != parent:  # it ended before it could be watched
        os._exit(1)
    if not told:
        threading.Thread(target=_watch, args=(parent, every), daemon=True).start()


def _tell_me() -> bool:
    """Ask the system for a SIGKILL at the parent's end; whether it will send one."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        import ctypes

        return ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0) == 0
    except (ImportError, OSError, AttributeError):
        return False


def _watch(parent: int, every: float) -> None:
    while os.getppid() == parent:
        time.sleep(every)
    os._exit(1)


def _main() -> None:
    sys.path[0] = ""  # as `python -m` has it; the folder of this file is no place to import from
    _, parent, module, *arguments = sys.argv
    end_with_parent(int(parent))
    import runpy

    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
