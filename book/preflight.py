"""What must be so before the first chapter runs, and how a run ends that is told to.

A run holds a lock on the folder that it writes to, takes away what an earlier one left there, and
finds out what would stop the render an hour later. Whatever is wrong is a :class:`DriverError`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import yaml

import prepare

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"  # in the folder of executed chapters


class DriverError(Exception):
    """Something that the user can put right, in one sentence."""


class Terminated(KeyboardInterrupt):
    """A signal other than SIGINT that asks the run to end; `status` is the exit status for it."""

    status = 128 + signal.SIGTERM


# -- the process -------------------------------------------------------------------------------


@contextlib.contextmanager
def ending_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a run as SIGINT does; what was ignored (`nohup`) stays so."""

    def end(number: int, frame: FrameType | None) -> None:
        error = Terminated()
        error.status = 128 + number
        raise error

    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def never_fail_to_print() -> None:
    """Show what a terminal's encoding lacks as `?`, rather than end the run over it."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _user_folders() -> tuple[Path, Path]:
    """The user's cache, and the folder of Jupyter's connection files."""
    from jupyter_core.paths import jupyter_runtime_dir

    cache = os.environ.get("XDG_CACHE_HOME")
    return Path(cache) if cache else Path("~/.cache").expanduser(), Path(jupyter_runtime_dir())


@contextlib.contextmanager
def usable_home() -> Iterator[None]:
    """Where the home cannot be written, lend its caches a folder that goes with the run."""
    before = dict(os.environ)
    cache, runtime = _user_folders()
    if all(_cannot_write(folder) is None for folder in (cache, runtime)):
        yield
        return
    for name, folder in (("TORCH_HOME", cache / "torch"), ("HF_HOME", cache / "huggingface")):
        if folder.is_dir():  # can still be read
            os.environ.setdefault(name, str(folder))
    with tempfile.TemporaryDirectory(prefix="probebook-home-", ignore_cleanup_errors=True) as home:
        names = "XDG_CACHE_HOME MPLCONFIGDIR IPYTHONDIR"
        names += " JUPYTER_CONFIG_DIR JUPYTER_DATA_DIR JUPYTER_RUNTIME_DIR"
        for name in names.split():
            os.environ[name] = str(Path(home) / name.lower())
            Path(os.environ[name]).mkdir()
        print("The home folder cannot be written: caches that need one are temporary this time.")
        try:
            yield
        finally:
            for name in (*names.split(), "TORCH_HOME", "HF_HOME"):
                os.environ.pop(name, None)
                if name in before:
                    os.environ[name] = before[name]


# -- the folder --------------------------------------------------------------------------------


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Be the only run that writes to `folder`; the system lets go however this process ends.

    Raises:
        DriverError: another run holds it.
    """
    if fcntl is None:
        yield
        return
    file = folder / LOCK
    descriptor = _take(file)
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):  # `make clean` may have been here
                file.unlink()
            os.close(descriptor)


def _take(file: Path) -> int | None:
    """Lock a file, and say in it who has it; None where files cannot be locked."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 200).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise DriverError(
                f"another run ({holder}) is writing to {file.parent}; wait for it to end, or give "
                "this one a folder of its own with --into"
            ) from error
        except OSError:  # a file system without locks
            os.close(descriptor)
            return None
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                break
        os.close(descriptor)  # the holder before removed this file while we took it
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()}, since {time.strftime('%H:%M:%S')}".encode())
    return descriptor


def clear(executed: Path, results: Path, stems: Collection[str]) -> None:
    """Remove what an interrupted run, an older book or JupyterLab left among a run's outputs.

    Args:
        executed: the folder of executed chapters.
        results: the folder of results files.
        stems: the chapters that there are. Executed copies of others are removed.
    """
    left = [*executed.glob(".running-*"), *executed.rglob(".ipynb_checkpoints")]
    left += results.glob(".[0-9][0-9]_*")  # a results file that was being written
    left += [path for path in _strays(executed, stems) if _is_ours(path)]
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if left:
        print(f"Removed what an earlier run left: {', '.join(sorted(p.name for p in left))}")


def _strays(executed: Path, stems: Collection[str]) -> list[Path]:
    """Notebooks among the executed chapters that are none of them."""
    known = {f"{stem}{end}" for stem in stems for end in (".ipynb", ".failed.ipynb")}
    return [
        path
        for path in sorted(executed.rglob("*.ipynb"))
        if path.parent != executed or path.name not in known
    ]


def _is_ours(notebook: Path) -> bool:
    """Whether the driver made a notebook: it keeps one of a chapter that has been renamed."""
    if notebook.name.endswith(".failed.ipynb"):
        return True
    try:
        return prepare.PROVENANCE in json.loads(notebook.read_text(encoding="utf-8"))["metadata"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


# -- checks ------------------------------------------------------------------------------------


def check_data() -> None:
    """Refuse a variable that names a folder of data which is not there."""
    for name in ("PROBELIB_DATA", "PROBELIB_IMAGENET"):
        value = os.environ.get(name)
        if value and not Path(value).expanduser().is_dir():
            raise DriverError(
                f"{name} is {value}, which is no folder; set it to the folder that has the data, "
                "or unset it"
            )


def check_writable(folders: Collection[Path]) -> None:
    """Make the folders that a run writes to, and refuse one that cannot be written."""
    for folder in folders:
        reason = _cannot_write(folder)
        if reason is not None:
            raise DriverError(
                f"{folder} cannot be written ({reason}); put that right, or write elsewhere with "
                "--into"
            )


def check_render(pages: Path, executed: Path, stems: Collection[str]) -> None:
    """Refuse what would make the render fail after all chapters have run.

    Args:
        pages: the folder of the written pages, with `_config.yml` and `_toc.yml`.
        executed: the folder of executed chapters.
        stems: the chapters that there are.
    """
    for package, module in (
        ("jupyter-book", "jupyter_book"),
        ("sphinx-mathjax-offline", "sphinx-mathjax-offline"),
    ):
        if importlib.util.find_spec(module) is None:
            raise DriverError(f"the package {package} is missing; run `make env`")
    _read_yaml(pages / "_config.yml")
    toc = _read_yaml(pages / "_toc.yml")
    for name in _entries(toc):
        if not _exists(name, pages, stems):
            raise DriverError(
                f"{pages.name}/_toc.yml names {name!r}, but there is no such page or chapter"
            )
    for path in _strays(executed, stems):
        raise DriverError(f"{path} is no chapter, and the render would fail on it; move it away")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        what = error.strerror if isinstance(error, OSError) else type(error).__name__
        raise DriverError(f"{path.parent.name}/{path.name} cannot be read ({what})") from error
    if not isinstance(content, dict):
        raise DriverError(f"{path.parent.name}/{path.name} must map names to values")
    return content


def _entries(toc: Any) -> Iterator[str]:
    """Every page that a table of contents names, at any depth."""
    if isinstance(toc, dict):
        yield from (str(toc[key]) for key in ("root", "file") if key in toc)
        toc = list(toc.values())
    if isinstance(toc, list):
        for part in toc:
            yield from _entries(part)


def _exists(name: str, pages: Path, stems: Collection[str]) -> bool:
    """Whether a page has its source: a chapter, or a written page (with or without its ending)."""
    if name.startswith("notebooks/"):
        return name.removeprefix("notebooks/").removesuffix(".ipynb") in stems
    return any((pages / f"{name}{end}").is_file() for end in (".md", ".rst", ".ipynb", ""))


def _cannot_write(folder: Path) -> str | None:
    """Make a folder and try to write there; the reason why not, or None."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or type(error).__name__
