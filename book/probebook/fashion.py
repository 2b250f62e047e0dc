"""Fashion-MNIST: photographs of clothes of ten kinds, from files at hand or from torchvision.

Xiao, Rasul and Vollgraf (2017), *Fashion-MNIST: a novel image dataset for benchmarking machine
learning algorithms*. The files have the form of MNIST's, and the SHA-256 in :data:`FILES`.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from probebook.cache import cache_dir
from probebook.mnist import Mnist, load_mnist

__all__ = ["KINDS", "FashionUnavailable", "data_identity", "fashion_or_mnist", "load_fashion"]

FILES: Mapping[str, str] = MappingProxyType(
    {
        "train-images-idx3-ubyte": (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
        ),
        "train-labels-idx1-ubyte": (
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
        ),
        "t10k-images-idx3-ubyte": (
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
        ),
        "t10k-labels-idx1-ubyte": (
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
        ),
    }
)
"""SHA-256 of the original IDX files, uncompressed, by name."""

KINDS = (
    "T-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
"""What the labels 0 to 9 stand for."""

_SPLITS = {"train": ("train-", 60_000), "test": ("t10k-", 10_000)}


class FashionUnavailable(RuntimeError):
    """No source has Fashion-MNIST; the message says which files to put where."""


def data_identity() -> str:
    """SHA-256 that stands for the data: of :data:`FILES`, for every source must give just these."""
    return hashlib.sha256(repr(sorted(FILES.items())).encode()).hexdigest()


def load_fashion(split: str = "train", *, root: str | os.PathLike | None = None) -> Mnist:
    """Fashion-MNIST's training or test set, in the original order.

    Looked for in ``root`` (default: ``$PROBELIB_DATA``), in ``fashion-mnist/`` below it, and in
    the local cache; else torchvision downloads it into the cache.

    Args:
        split: ``"train"`` (60,000) or ``"test"`` (10,000).
        root: a directory to look in first.

    Returns:
        Images and labels in the same form as MNIST's.

    Raises:
        ValueError: ``split`` is neither.
        FashionUnavailable: no source has both files with the right content.

    Warns:
        UserWarning: a local file has the wrong content and is skipped.
    """
    if split not in _SPLITS:
        raise ValueError(f'split must be "train" or "test", got {split!r}')
    prefix, n = _SPLITS[split]
    names = f"{prefix}images-idx3-ubyte", f"{prefix}labels-idx1-ubyte"
    found = [_at_hand(name, root) for name in names]
    if None in found:
        _download(root)
        found = [_at_hand(name, root) for name in names]
    images, labels = (content for content in found if content is not None)
    return Mnist(
        torch.from_numpy(np.frombuffer(images, np.uint8, offset=16).reshape(n, 28, 28).copy()),
        torch.from_numpy(np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)),
        "Fashion-MNIST",
    )


def fashion_or_mnist() -> tuple[Mnist, Mnist]:
    """Training and test set of Fashion-MNIST, or of MNIST where it cannot be had.

    ``source`` of either says which of the two it is.

    Warns:
        UserWarning: it is MNIST.
    """
    try:
        return load_fashion("train"), load_fashion("test")
    except FashionUnavailable as error:
        warnings.warn(f"MNIST takes the place of Fashion-MNIST: {error}", stacklevel=2)
        return load_mnist("train"), load_mnist("test")


def _folders(root: str | os.PathLike | None) -> Iterator[Path]:
    """Where the files may lie."""
    first = root or os.environ.get("PROBELIB_DATA")
    if first:
        yield from (Path(first), Path(first) / "fashion-mnist")
    yield cache_dir("fashion-mnist") / "FashionMNIST" / "raw"  # as torchvision has it


def _at_hand(name: str, root: str | os.PathLike | None) -> bytes | None:
    """An IDX file from the first folder that has it, plain or gzipped; None where none has."""
    for folder in _folders(root):
        for path in (folder / name, folder / f"{name}.gz"):
            if not path.is_file():
                continue
            try:
                content = path.read_bytes()
                content = gzip.decompress(content) if path.suffix == ".gz" else content
            except (OSError, EOFError) as error:
                warnings.warn(f"{path} is not used: {error}", stacklevel=3)
                continue
            if hashlib.sha256(content).hexdigest() == FILES[name]:
                return content
            # MNIST's files have the same names, and may well lie in the same folder.
            if folder.name in ("fashion-mnist", "raw"):
                warnings.warn(f"{path} is not used: it has the wrong SHA-256", stacklevel=3)
    return None


def _download(root: str | os.PathLike | None) -> None:
    """Let torchvision fetch all files into the cache (FashionUnavailable where it cannot)."""
    cache = cache_dir("fashion-mnist")
    try:
        from torchvision.datasets import FashionMNIST

        print("Downloading Fashion-MNIST ...", flush=True)
        FashionMNIST(cache, download=True)
        wrong = [name for name in FILES if _at_hand(name, root) is None]
    except Exception as error:  # no network, or a torchvision that does not match torch
        reason = str(error) or type(error).__name__
    else:
        if not wrong:
            return
        reason = f"{', '.join(wrong)} did not arrive with the right SHA-256"
    raise FashionUnavailable(
        f"Fashion-MNIST is not here and cannot be downloaded ({reason}); put its four IDX files, "
        "plain or .gz, into the folder fashion-mnist of the directory that PROBELIB_DATA names"
    )
