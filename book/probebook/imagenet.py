"""Photographs: ImageNet from wherever it can be had, else a few that installed packages ship.

ImageNet cannot be fetched without an account, so nothing here downloads. The sources, in order:

1. a folder that the caller names;
2. ``$PROBELIB_IMAGENET``;
3. ``$PROBELIB_DATA/imagenet``;
4. stand-in photographs: crops of those that scikit-learn and matplotlib carry. They have no
   ImageNet class; what is computed with them shows the method, not the paper's result.

A folder that is named but holds no ImageNet is an error, never passed over. It may have one of
three layouts:

- ``classes.csv`` with columns ``index,wnid,label,file``: the file of each row, seen from it;
- class folders: ``n01440764/*.JPEG``, ``n01443537/*.JPEG``, ..., any number of the 1,000 classes;
- flat, as the validation set is handed out: ``ILSVRC2012_val_00000001.JPEG``, ..., with a file of
  labels beside them or in the folder above.

A file of labels has lines ``filename label`` (``.txt``) or ``filename,label`` (``.csv``), where a
label is a wnid or an index 0..999 in the standard order, which is that of the sorted wnids.
Kaggle's ``LOC_val_solution.csv`` is such a file. ``ILSVRC2012_validation_ground_truth.txt`` is
not: its 1..1000 are in the order of the challenge's development kit.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache as remember
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError, features
from PIL import __version__ as pillow_version

from probebook.cache import write_atomically
from probebook.wordnet import imagenet_classes

__all__ = [
    "Decoded",
    "ImageFiles",
    "ImageNetUnavailable",
    "NotEnoughImages",
    "choose",
    "data_identity",
    "decode",
    "find_images",
    "stand_in_images",
]

FEWEST = 20
"""Images below which a figure of similarities shows nothing."""

_EXTENSIONS = {".jpg", ".jpeg", ".png"}
_FORMATS = ("JPEG", "PNG")  # by content: ImageNet has a PNG that is called .JPEG
_KAGGLE = "LOC_val_solution.csv"
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_RECIPE = 1  # raise it when the same file would become other pixels
# Side of the crops as a share of the short side, and how many of them along the long and short.
_CROPS = ((1.0, 3, 1), (0.7, 3, 2), (0.45, 3, 3))

Box = tuple[int, int, int, int]


class ImageNetUnavailable(RuntimeError):
    """A folder is not ImageNet or its images cannot be read; the message says what to do."""


class NotEnoughImages(ValueError):
    """Fewer images than a picture of their similarities needs."""


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images on disk, n of them, in a fixed order.

    Attributes:
        paths: n files; one may occur several times, with several boxes.
        labels: int64 ``(n,)``, the index 0..999 of the class in the standard order, or -1 where
            it is unknown.
        source: where they come from, without a path: fit to be published.
        stand_in: these are not ImageNet.
        boxes: for each image the part of the file that it is, ``(left, upper, right, lower)`` in
            pixels, right and lower exclusive, or None for all of it; None if that holds for each.

    Raises:
        ValueError: the lengths differ, or a label is not an integer in -1..999.
    """

    paths: list[Path]
    labels: np.ndarray
    source: str
    stand_in: bool = False
    boxes: list[Box | None] | None = None

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        n = len(self.paths)
        if labels.shape != (n,) or (self.boxes is not None and len(self.boxes) != n):
            boxes = "none" if self.boxes is None else len(self.boxes)
            raise ValueError(
                f"paths has {n} entries, labels the shape {labels.shape} and boxes {boxes} "
                "entries; give each image one of each"
            )
        if n and not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"labels must be integers, got {labels.dtype}")
        if n and not (labels.min() >= -1 and labels.max() <= 999):
            raise ValueError(f"labels must be in -1..999, found {labels.min()} to {labels.max()}")
        object.__setattr__(self, "labels", labels.astype(np.int64))

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, index: np.ndarray | list[int] | slice) -> ImageFiles:
        """The images at ``index``, positions ``(m,)`` or a mask ``(n,)``, in that order.

        Raises:
            IndexError: a position is out of range, or the mask has another length.
        """
        if not isinstance(index, slice):
            index = np.asarray(index)
            index = index.astype(np.int64) if index.size == 0 else index
        positions = np.arange(len(self))[index].tolist()
        return ImageFiles(
            [self.paths[i] for i in positions],
            self.labels[positions],
            self.source,
            self.stand_in,
            None if self.boxes is None else [self.boxes[i] for i in positions],
        )

    def box(self, i: int) -> Box | None:
        """The part of the file that image ``i`` is, or None for all of it."""
        return None if self.boxes is None else self.boxes[i]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the files' contents, the boxes and the labels, in order; not of the names.

        Every file is read, once, when this is first asked for. One that cannot be read counts
        as unreadable, whatever it holds.
        """
        distinct = list(dict.fromkeys(self.paths))
        with ThreadPoolExecutor(_default_workers()) as pool:
            digests = dict(zip(distinct, pool.map(_digest, distinct), strict=True))
        total = hashlib.sha256()
        for i, path in enumerate(self.paths):
            total.update(f"{digests[path]} {self.box(i)} {self.labels[i]}\n".encode())
        return total.hexdigest()


@dataclass(frozen=True, eq=False)
class Decoded:
    """Images ready for a network, m of the n files.

    Attributes:
        images: uint8 ``(m, 3, size, size)``, RGB; read-only and on disk where it was cached.
        labels: int64 ``(m,)``, as in :class:`ImageFiles`.
        kept: int64 ``(m,)``, ascending: the positions in the files of the images.
        skipped: file name and reason of each of the n - m that could not be read, in order.
    """

    images: np.ndarray
    labels: np.ndarray
    kept: np.ndarray
    skipped: list[tuple[str, str]]

    def __len__(self) -> int:
        return len(self.labels)

    def tensor(self) -> torch.Tensor:
        """The images as a tensor over the same memory: what is on disk stays there until read."""
        with warnings.catch_warnings():  # it warns of writing, which nothing here does
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return torch.from_numpy(np.asarray(self.images))


def find_images(root: str | os.PathLike | None = None) -> ImageFiles:
    """ImageNet's photographs where there are any, else stand-ins; see the module's docstring.

    The order is that of the classes, and of the file names within each; in a flat folder that of
    the file names.

    Args:
        root: a folder with one of the three layouts. Without it ``$PROBELIB_IMAGENET`` is taken,
            then ``$PROBELIB_DATA/imagenet`` if there is such a folder, then the stand-ins.

    Raises:
        ImageNetUnavailable: the folder that was named is not ImageNet, or none was named and
            the stand-ins are missing.
    """
    if root is not None:
        return _read_folder(Path(root).expanduser(), "root")
    named = os.environ.get("PROBELIB_IMAGENET")
    if named:
        return _read_folder(Path(named).expanduser(), "PROBELIB_IMAGENET")
    data = os.environ.get("PROBELIB_DATA")
    if data and (folder := Path(data).expanduser() / "imagenet").is_dir():
        return _read_folder(folder, "PROBELIB_DATA/imagenet")
    return stand_in_images()


def data_identity() -> str:
    """SHA-256 that stands for what :func:`find_images` would find: names, sizes and times.

    Nothing is opened. A source that is refused has an identity as well.
    """
    named, data = os.environ.get("PROBELIB_IMAGENET"), os.environ.get("PROBELIB_DATA")
    folder = Path(named).expanduser() if named else None
    if folder is None and data and (Path(data).expanduser() / "imagenet").is_dir():
        folder = Path(data).expanduser() / "imagenet"
    digest = hashlib.sha256()
    if folder is None:
        for path, owner in _sample_photographs():  # their times are those of the installation
            digest.update(
                f"{owner} {path.name} {path.is_file() and path.stat().st_size}\n".encode()
            )
        return f"stand-in {digest.hexdigest()}"
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(root, name)
            found = path.lstat()
            line = f"{path.relative_to(folder)} {found.st_size} {found.st_mtime_ns}\n"
            digest.update(line.encode(errors="surrogateescape"))
    return f"{'PROBELIB_IMAGENET' if named else 'PROBELIB_DATA'} {digest.hexdigest()}"


def choose(files: ImageFiles, n: int, *, seed: int, per_class: int | None = None) -> ImageFiles:
    """A random part of the images, in their old order.

    Args:
        files: the images.
        n: how many; all, if there are fewer.
        seed: 0 or more; the same seed chooses the same on every machine.
        per_class: at most this many of each class, drawn first. Images of unknown class are not
            limited.

    Raises:
        NotEnoughImages: fewer than 20 would be left.
        ValueError: an argument is out of its range.
    """
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    if per_class is not None and per_class < 1:
        raise ValueError(f"per_class must be 1 or more, got {per_class}")
    if n < FEWEST:
        raise NotEnoughImages(f"n is {n}, too few images; choose {FEWEST} or more")
    # A stream of its own: a caller's default_rng(seed) would repeat it.
    order = np.random.default_rng([seed, *b"image subset"]).permutation(len(files))
    if per_class is not None:
        taken: Counter[int] = Counter()
        allowed = []
        for i in order:
            label = int(files.labels[i])
            if label < 0 or taken[label] < per_class:
                taken[label] += 1
                allowed.append(i)
        order = np.array(allowed, dtype=np.int64)
    if len(order) < FEWEST:
        limit = "" if per_class is None else f" with per_class={per_class}"
        raise NotEnoughImages(
            f"files has {len(order)} images{limit} ({files.source}), too few images; "
            f"give {FEWEST} or more"
        )
    return files.subset(np.sort(order[:n]))


def decode(
    files: ImageFiles,
    size: int,
    *,
    workers: int | None = None,
    resize: int | None = None,
    cache: Path | None = None,
) -> Decoded:
    """Read the images: short side to ``resize`` pixels, then the central ``size x size``.

    Resampling is bicubic with antialiasing; a large JPEG is first decoded at a half, a quarter or
    an eighth, but never below twice the wanted size. An image whose short side is ``resize``
    already is only cropped. Grey, CMYK, palette and 16-bit images become RGB, and an alpha
    channel is dropped. The orientation that a camera noted is ignored, as is usual for ImageNet.

    An image that is damaged, truncated, implausibly large or no JPEG or PNG is skipped and named.

    Args:
        files: n images.
        size: side of the result in pixels.
        workers: threads; the number of processors, at most 8, if not given.
        resize: ``round(size * 256 / 224)`` if not given, so that every size shows the same part
            of the photograph.
        cache: a folder, made if needed, that keeps the result in a file of ``3 size**2`` bytes an
            image. It is then read from there, and never in memory as a whole. The name comes from
            the content of the images, so that a change of any makes a new one; a damaged one is
            made anew. Without it the result is in memory.

    Raises:
        ValueError: files is empty, or another argument is out of its range.
        ImageNetUnavailable: more than half of the images cannot be read.
        OSError: the cache cannot be written.
    """
    if len(files) == 0:
        raise ValueError("files is empty; give at least one image")
    if size < 1:
        raise ValueError(f"size must be 1 or more pixels, got {size}")
    resize = round(size * 256 / 224) if resize is None else resize
    if size > resize:
        raise ValueError(f"size is {size}, larger than resize, which is {resize}; raise resize")
    workers = _default_workers() if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers must be 1 or more, got {workers}")

    shape = (len(files), 3, size, size)
    if cache is None:
        images = np.empty(shape, np.uint8)
        kept, skipped = _fill(images, files, resize, workers)
    else:
        images, kept, skipped = _cached(Path(cache), shape, files, resize, workers)
    return Decoded(
        images[: len(kept)],
        files.labels[kept],
        kept,
        [(files.paths[i].name, reason) for i, reason in skipped],
    )


def stand_in_images() -> ImageFiles:
    """54 square crops, at three scales, of three photographs that installed packages ship.

    ``china.jpg`` and ``flower.jpg`` are scikit-learn's, ``grace_hopper.jpg`` is matplotlib's; one
    that an installation left out is passed over. The labels are -1, unknown.

    Raises:
        ImageNetUnavailable: none of the three is there.
    """
    found = [(path, package) for path, package in _sample_photographs() if path.is_file()]
    if not found:
        raise ImageNetUnavailable(
            "no photographs are available: set PROBELIB_IMAGENET to a folder of ImageNet, or "
            "reinstall scikit-learn and matplotlib with their sample images."
        )
    paths: list[Path] = []
    boxes: list[Box | None] = []
    for path, _ in found:
        with Image.open(path, formats=_FORMATS) as image:
            crops = _crops(*image.size)
        paths += [path] * len(crops)
        boxes += crops
    names = " and ".join(
        f"{' and '.join(path.name for path, owner in found if owner == package)} of {package}"
        for package in dict.fromkeys(package for _, package in found)
    )
    labels = np.full(len(paths), -1, np.int64)
    return ImageFiles(paths, labels, f"stand-in: crops of {names}", stand_in=True, boxes=boxes)


# Finding


def _read_folder(folder: Path, where: str) -> ImageFiles:
    """ImageNet in one of the three layouts, or ImageNetUnavailable."""
    try:
        if not folder.is_dir():
            raise ImageNetUnavailable(
                f"{where} is {folder}, which is no folder; give the folder that holds ImageNet's "
                "class folders, its validation set or a classes.csv."
            )
        with os.scandir(folder) as entries:
            # Hidden ones are no data: .ipynb_checkpoints, and the ._ files that macOS leaves.
            visible = sorted(
                (entry for entry in entries if not entry.name.startswith(".")),
                key=lambda entry: entry.name,
            )
        listed = _listed(folder, where)
        if listed is not None:
            return listed
        folders = [entry.name for entry in visible if entry.is_dir()]
        images = [entry.name for entry in visible if _is_image(entry)]
        wnids = _index_of_wnid()
        if images and not any(name in wnids for name in folders):
            return _flat(folder, images, where)
        if not folders:
            raise ImageNetUnavailable(
                f"{where} is {folder}, which holds no images; give the folder that holds "
                "ImageNet's class folders, its validation set or a classes.csv."
            )
        return _class_folders(folder, folders, where)
    except (OSError, csv.Error) as error:
        raise ImageNetUnavailable(f"{where} is {folder}, which cannot be read: {error}.") from error


def _listed(folder: Path, where: str) -> ImageFiles | None:
    """The images that ``classes.csv`` lists; None where there is no such table with files."""
    table = folder / "classes.csv"
    if not table.is_file():
        return None
    with table.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        if not {"wnid", "file"} <= set(reader.fieldnames or ()):
            return None
        rows = list(reader)
    wnids = _index_of_wnid()
    found: list[tuple[int, str]] = []
    for line, row in enumerate(rows, 2):
        wnid, name, index = row["wnid"], row["file"], row.get("index")
        if wnid not in wnids:
            raise ImageNetUnavailable(
                f"line {line} of classes.csv in {where} ({folder}) has the wnid {wnid!r}, which is "
                "none of ILSVRC-2012's 1,000; correct it or take the line out."
            )
        if index is not None and index != str(wnids[wnid]):
            raise ImageNetUnavailable(
                f"line {line} of classes.csv in {where} ({folder}) gives {wnid} the index "
                f"{index}, which is {wnids[wnid]} in the standard order; correct it."
            )
        if name:
            found.append((wnids[wnid], name))
    found.sort()
    # A few that are missing are skipped when they are decoded, as unreadable ones are.
    if not any((folder / name).is_file() for _, name in found):
        raise ImageNetUnavailable(
            f"classes.csv in {where} ({folder}) lists {len(found)} files, none of which is there; "
            "put the images where it says."
        )
    return ImageFiles(
        [folder / name for _, name in found],
        np.array([label for label, _ in found], dtype=np.int64),
        f"ImageNet photographs listed in classes.csv ({where})",
    )


def _class_folders(folder: Path, folders: list[str], where: str) -> ImageFiles:
    wnids = _index_of_wnid()
    for name in folders:
        if name not in wnids:
            raise ImageNetUnavailable(
                f"{where} is {folder}, which holds the folder {name!r}, none of ILSVRC-2012's "
                "1,000 wnids; give a folder whose class folders are named like n01440764."
            )
    paths: list[Path] = []
    labels: list[int] = []
    for name in sorted(folders, key=wnids.__getitem__):
        with os.scandir(folder / name) as entries:
            inside = sorted(entry.name for entry in entries if _is_image(entry))
        paths += [folder / name / image for image in inside]
        labels += [wnids[name]] * len(inside)
    if not paths:
        raise ImageNetUnavailable(
            f"{where} is {folder}, whose {len(folders)} class folders hold no .jpg, .jpeg or .png; "
            "put the images straight into them."
        )
    return ImageFiles(
        paths, np.array(labels, dtype=np.int64), f"ImageNet photographs in class folders ({where})"
    )


def _flat(folder: Path, images: list[str], where: str) -> ImageFiles:
    stems = {Path(name).stem for name in images}
    problems: list[ImageNetUnavailable] = []
    for table in _label_files(folder):
        try:
            labels = _read_labels(table, stems)
        except ImageNetUnavailable as problem:
            problems.append(problem)  # another file may be the one that is meant
            continue
        if not labels:
            continue
        missing = [name for name in images if Path(name).stem not in labels]
        if missing:
            problems.append(
                ImageNetUnavailable(
                    f"{table} has no label for {len(missing)} of the {len(images)} images in "
                    f"{where}, the first {missing[0]}; add them to it or take the images away."
                )
            )
            continue
        return ImageFiles(
            [folder / name for name in images],
            np.array([labels[Path(name).stem] for name in images], dtype=np.int64),
            f"ImageNet photographs in one folder, with a file of labels ({where})",
        )
    if problems:
        raise problems[0]
    if any((place / _GROUND_TRUTH).is_file() for place in (folder, folder.absolute().parent)):
        raise ImageNetUnavailable(
            f"{where} is {folder}, whose labels are only in {_GROUND_TRUTH}, where 1..1000 are in "
            "another order than the networks'; put beside the images a val.txt of lines "
            "'filename wnid' instead."
        )
    raise ImageNetUnavailable(
        f"{where} is {folder}, which holds {len(images)} images and no labels; put beside them a "
        f"val.txt of lines 'filename wnid', or Kaggle's {_KAGGLE}."
    )


def _label_files(folder: Path) -> Iterator[Path]:
    """What may hold the labels of a flat folder, the likeliest first."""
    beside, *above = [folder, *list(folder.absolute().parents)[:4]]
    for place in (beside, *above[:1]):
        # What may not be read above is not the caller's concern, beside the images it is.
        if place is not beside and not os.access(place, os.R_OK | os.X_OK):
            continue
        names = [
            path.name
            for path in place.iterdir()
            if path.suffix.lower() in {".txt", ".csv"}
            and not path.name.startswith(".")
            and path.name != _GROUND_TRUTH
            and path.is_file()
            and (place is beside or os.access(path, os.R_OK))
        ]
        names.sort(key=lambda name: (name != _KAGGLE, name != "val.txt", name))
        yield from (place / name for name in names)
    # Kaggle's archive has it above ILSVRC/Data/CLS-LOC/val.
    yield from (place / _KAGGLE for place in above[1:] if (place / _KAGGLE).is_file())


def _read_labels(table: Path, stems: set[str]) -> dict[str, int]:
    """Class index by file name without extension, for those in ``stems``.

    Empty where the file names none of them: then it is about something else.
    """
    wnids = _index_of_wnid()
    labels: dict[str, int] = {}
    with table.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            # "name.JPEG 65", "name.JPEG,n03995372", Kaggle's "name,n03995372 85 1 499 272"
            parts = re.split(r"\s*,\s*" if "," in line else r"\s+", line.strip())
            name = re.split(r"[/\\]", parts[0].strip('"'))[-1]
            if Path(name).suffix.lower() in _EXTENSIONS:
                name = Path(name).stem
            if name not in stems:
                continue
            words = parts[1].strip('"').split() if len(parts) > 1 else []
            token = words[0] if words else ""
            if token in wnids:
                label = wnids[token]
            elif token.isascii() and token.isdigit() and int(token) <= 999:
                label = int(token)
            else:
                raise ImageNetUnavailable(
                    f"line {number} of {table} gives {name} the label {token!r}, which is neither "
                    "a wnid of ILSVRC-2012 nor an index 0..999 in the standard order; correct it."
                )
            if labels.setdefault(name, label) != label:
                raise ImageNetUnavailable(
                    f"line {number} of {table} gives {name} the label {label}, an earlier one "
                    f"{labels[name]}; leave one of them."
                )
    return labels


def _is_image(entry: os.DirEntry) -> bool:
    name = entry.name
    return (
        not name.startswith(".")
        and os.path.splitext(name)[1].lower() in _EXTENSIONS
        and entry.is_file()
    )


@remember
def _index_of_wnid() -> dict[str, int]:
    return {each.wnid: each.index for each in imagenet_classes()}


def _sample_photographs() -> list[tuple[Path, str]]:
    """Where the sample photographs of installed packages should be, and the packages."""
    photographs: list[tuple[Path, str]] = []
    sklearn = find_spec("sklearn")  # found, not imported: that takes seconds
    if sklearn is not None and sklearn.origin is not None:
        folder = Path(sklearn.origin).parent / "datasets" / "images"
        photographs += [(folder / name, "scikit-learn") for name in ("china.jpg", "flower.jpg")]
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "sample_data"
    return [*photographs, (folder / "grace_hopper.jpg", "matplotlib")]


def _crops(width: int, height: int) -> list[Box]:
    """Squares of three sizes on a grid over the whole image."""
    crops: list[Box] = []
    for share, along, across in _CROPS:
        side = int(share * min(width, height))
        columns, rows = (along, across) if width >= height else (across, along)
        for top in _places(height - side, rows):
            crops += [
                (left, top, left + side, top + side) for left in _places(width - side, columns)
            ]
    return crops


def _places(room: int, count: int) -> list[int]:
    return [room // 2] if count == 1 else [room * i // (count - 1) for i in range(count)]


# Decoding


def _fill(
    images: np.ndarray, files: ImageFiles, resize: int, workers: int
) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Decode into ``images``; those that can be read end up at its front.

    Returns:
        kept: int64 ``(m,)``, their positions in ``files``.
        skipped: position and reason of the others.

    Raises:
        ImageNetUnavailable: more than half cannot be read.
    """
    size = images.shape[-1]

    def one(i: int) -> str | None:
        try:
            images[i] = _pixels(files.paths[i], files.box(i), size, resize)
        except Exception as error:  # damaged files make Pillow raise nearly anything
            return _reason(error)
        return None

    pool = ThreadPoolExecutor(workers)
    try:
        with _strict_pillow():
            reasons = list(pool.map(one, range(len(files))))
    finally:
        pool.shutdown(cancel_futures=True)  # so that an interrupt does not wait for all of them
    kept = np.array([i for i, reason in enumerate(reasons) if reason is None], dtype=np.int64)
    skipped = [(i, reason) for i, reason in enumerate(reasons) if reason is not None]
    if 2 * len(skipped) > len(files):
        i, reason = skipped[0]
        raise ImageNetUnavailable(
            f"{len(skipped)} of {len(files)} images cannot be read, the first "
            f"{files.paths[i].name} ({reason}); check that the files are whole."
        )
    for place, i in enumerate(kept):  # in place: a copy could take the memory twice
        if place != i:
            images[place] = images[i]
    images[len(kept) :] = 0
    return kept, skipped


def _pixels(path: Path, box: Box | None, size: int, resize: int) -> np.ndarray:
    """uint8 ``(3, size, size)`` of one image, or an exception that says why not."""
    with Image.open(path, formats=_FORMATS) as opened:
        image: Image.Image = opened
        if box is not None:
            if not (0 <= box[0] < box[2] <= image.width and 0 <= box[1] < box[3] <= image.height):
                raise ValueError(f"the box {box} is not inside its {image.width} x {image.height}")
            image = image.crop(box)
        width, height = image.size
        short = min(width, height)
        target = (resize * width // short, resize * height // short)
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and target[0] * target[1] > limit:
            raise ValueError(f"{width} x {height} pixels are too elongated")
        region = (0.0, 0.0, float(width), float(height))
        if box is None and (drafted := image.draft(None, (2 * target[0], 2 * target[1]))):
            region = drafted[1]
        image = _to_rgb(image)
        if image.size != target:
            image = image.resize(target, Image.Resampling.BICUBIC, box=region)
        left, upper = (round((side - size) / 2) for side in target)
        image = image.crop((left, upper, left + size, upper + size))
        return np.asarray(image).transpose(2, 0, 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode.startswith("I"):
        # 16 bits of grey, which Pillow would clip at 255 in some versions.
        high = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        image = Image.fromarray(high)
    elif "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, a palette with alpha makes Pillow warn
    return image if image.mode == "RGB" else image.convert("RGB")


def _reason(error: Exception) -> str:
    """What is wrong with a file, in a few words and without its path."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no JPEG or PNG"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Truncated files and decompression bombs are errors in here, whatever the program chose.

    Both settings are the process's, so that they hold in the worker threads too.
    """
    truncated = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = truncated


def _default_workers() -> int:
    if hasattr(os, "sched_getaffinity"):  # a container may have less than the machine
        return min(8, len(os.sched_getaffinity(0)))
    return min(8, os.cpu_count() or 1)


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "unreadable"


# The cache of decoded images


def _cached(
    folder: Path, shape: tuple[int, int, int, int], files: ImageFiles, resize: int, workers: int
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, str]]]:
    """The decoded images from ``folder``, put there first if they are not."""
    recipe = [_RECIPE, files.fingerprint, shape, resize, pillow_version, features.version("jpg")]
    key = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()
    array, notes = folder / f"{key}.npy", folder / f"{key}.json"
    entry = _open_entry(array, notes, shape)
    if entry is not None:
        return entry
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{array.name}.{os.getpid()}-{uuid4().hex[:8]}"
    try:
        images = _reserve(aside, shape)
        kept, skipped = _fill(images, files, resize, workers)
        images.flush()
        del images
        content = {"sha256": _digest(aside), "kept": kept.tolist(), "skipped": skipped}
        # First the notes, then the name: an array that is there has its notes.
        write_atomically(notes, json.dumps(content).encode())
        os.replace(aside, array)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    entry = _open_entry(array, notes, shape)
    if entry is None:
        raise OSError(f"{array} is not what was just written; give another cache folder")
    return entry


def _open_entry(
    array: Path, notes: Path, shape: tuple[int, int, int, int]
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, str]]] | None:
    """An entry of the cache, or None where it is missing or damaged."""
    try:
        content = json.loads(notes.read_bytes())
        kept = np.array(content["kept"], dtype=np.int64)
        skipped = [(int(i), str(reason)) for i, reason in content["skipped"]]
        if sorted([*kept.tolist(), *(i for i, _ in skipped)]) != list(range(shape[0])):
            return None
        if _digest(array) != content["sha256"]:
            return None
        images = np.load(array, mmap_mode="r")
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    if images.shape != shape or images.dtype != np.uint8:
        return None
    return images, kept, skipped


def _reserve(path: Path, shape: tuple[int, int, int, int]) -> np.memmap:
    """A new .npy file of zeros, all of its blocks taken.

    Into a sparse file a memory map would find the disk full only when its pages are written,
    and that ends the process.

    Raises:
        OSError: there is no room, or the folder cannot be written.
    """
    size = int(np.prod(shape))
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise OSError(
            f"the decoded images take {size / 1e9:.1f} GB and the cache {path.parent} has "
            f"{free / 1e9:.1f} GB left; make room or give another folder"
        )
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:  # not on every file system
                    raise
    return images
