"""One writer per store: a second one gets an error that names the first.

A lock is a small file that its holder keeps locked with the operating system (a POSIX record lock),
which lets go when the holder dies, however it dies, on this machine or over a network file system.
Where there are no such locks (Windows, a file system without them) a store is not guarded.
"""

import json
import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_held: set[str] = set()  # by this process: record locks keep out only other processes
_guard = threading.Lock()


class StoreBusy(RuntimeError):
    """Somebody else is writing the store."""


@contextmanager
def hold(file: Path, what: str, wait: float = 0.0) -> Iterator[None]:
    """Be the only one who holds ``file``, and say in it who that is; it is removed at the end.

    Args:
        file: of the lock; its folder exists.
        what: is locked, for the message.
        wait: seconds to wait for another holder.

    Raises:
        StoreBusy: another process, or another thread of this one, holds it.
        OSError: the file cannot be written.
    """
    if fcntl is None:
        yield
        return
    until = time.monotonic() + wait
    while True:
        try:
            descriptor = _take(file, what)
            break
        except StoreBusy:
            if time.monotonic() >= until:
                raise
            time.sleep(0.2)
    try:
        yield
    finally:
        with _guard:
            _held.discard(str(file))
            if descriptor is not None:
                with suppress(OSError):  # its folder may be gone
                    file.unlink()
                os.close(descriptor)


def _take(file: Path, what: str) -> int | None:
    assert fcntl is not None
    with _guard:
        # First, because closing any descriptor of the file would drop this process's own lock.
        if str(file) in _held:
            raise StoreBusy(f"{what} is being written by this process; wait for that call to end")
        while True:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_same_file(descriptor, file):
                    break
            except (BlockingIOError, PermissionError) as error:
                holder = _name_of_holder(descriptor)
                os.close(descriptor)
                raise StoreBusy(
                    f"{what} is being written by {holder}; wait for it to end or stop it, or "
                    "choose another store"
                ) from error
            except OSError as error:
                os.close(descriptor)
                file.unlink(missing_ok=True)
                warnings.warn(
                    f"{what} lies where files cannot be locked ({error.strerror}); see to it that "
                    "only one process writes it",
                    UserWarning,
                    stacklevel=2,
                )
                return None
            os.close(descriptor)  # the holder before removed this file while we took it
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(_this_process()).encode())
        _held.add(str(file))
        return descriptor


def _is_same_file(descriptor: int, file: Path) -> bool:
    try:
        there = os.stat(file)
    except OSError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)


def _this_process() -> dict[str, str | int]:
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "program": " ".join(sys.argv[:2]) or "python",
    }


def _name_of_holder(descriptor: int) -> str:
    try:
        who = json.loads(os.read(descriptor, 4096))
        return f"process {who['process']} on {who['host']} ({who['program']}) since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has only just taken it
        return "another process"


__all__ = ["StoreBusy", "hold"]
