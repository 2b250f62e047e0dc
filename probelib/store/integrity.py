"""Whole files or none: atomic writes, checksums, and reading only what is a plain file."""

import ctypes
import errno
import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4


class TraceMismatch(ValueError):
    """A store holds a trace of something else than what was asked for, or a damaged one."""


class StoreError(OSError):
    """A store cannot be written: the disk is full, it is read-only, or it is gone."""


def checksum(content: dict[str, Any]) -> str:
    """SHA-256 of a record, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def chunk_checksum(chunk: Path) -> str | None:
    """The CRC-32C that a chunk's file ends in; None where there is no such file."""
    try:
        return read_file(chunk, last=4).hex()
    except OSError:  # a chunk of nothing but NaN is not kept
        return None


def read_file(path: Path, last: int | None = None) -> bytes:
    """The content of a plain file, or its ``last`` bytes.

    Raises:
        OSError: there is none, or it is something that a read could wait on for ever, as a pipe.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    with path.open("rb") as file:
        if last is not None:
            file.seek(-last, os.SEEK_END)
        return file.read()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a plain file (OSError, ValueError)."""
    content = json.loads(read_file(path))
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return content


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that no reader ever sees a part of it.

    The bytes go to a temporary file in the same directory, which then takes the final name in
    one step (``os.replace``); two processes that write at once leave one whole file.

    Raises:
        OSError: the directory is missing, read-only or full; nothing is left behind.
    """
    with appearing_whole(path) as temporary, temporary.open("xb") as file:
        file.write(content)


@contextmanager
def appearing_whole(path: Path) -> Iterator[Path]:
    """A temporary file to be written, which takes the name ``path`` at the end in one step.

    Raises:
        OSError: as for :func:`write_atomically`; whatever is raised inside, nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid4().hex[:8]}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        synchronise(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def synchronise(path: Path) -> None:
    """Have the disk take what was written to a file, or to the list of files that a folder is."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:  # a chunk of nothing but NaN is not kept
        return
    except PermissionError:  # Windows opens no folders
        if path.is_dir():
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # what some file systems do for folders
            raise
    finally:
        os.close(descriptor)


def exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step, where the system can (Linux's renameat2).

    Returns:
        Whether it did. Else nothing has changed.
    """
    if sys.platform != "linux":
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # a C library without it
        return False
    at_cwd, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), swap) == 0


@contextmanager
def disk_errors(path: Path | None, kept: str = "the draws before are kept") -> Iterator[None]:
    """Turn what a file system refuses into a StoreError: one sentence with a remedy.

    Args:
        path: of the store; None for one in memory, where nothing is turned.
        kept: what the failure leaves, for the sentence.
    """
    try:
        yield
    except OSError as error:
        if path is None or isinstance(error, StoreError):
            raise
        raise _store_error(error, path, kept) from error


def _store_error(error: OSError, path: Path, kept: str) -> StoreError:
    where, again = f"store {str(path)!r}", "the same call then goes on from there"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        text = f"{where} is on a full disk ({error.strerror}): {kept}; make room, and {again}"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        text = (
            f"{where} cannot be written ({error.strerror}): {kept}; make it writable, and {again}"
        )
    elif error.errno == errno.ENOENT and not path.exists():
        text = f"{where} is gone while it was written; bring it back or choose another"
    else:
        text = f"{where} cannot be written ({error}): {kept}; see to it, and {again}"
    raised = StoreError(text)
    raised.errno = error.errno
    return raised


__all__ = [
    "StoreError",
    "TraceMismatch",
    "appearing_whole",
    "checksum",
    "chunk_checksum",
    "disk_errors",
    "exchange",
    "read_file",
    "read_json",
    "synchronise",
    "write_atomically",
]
