"""Samples sorted by an estimate as a training passes: one slider, no kernel process, no network."""

import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from probebook.explorer import sheets_of, to_json

_PAGE = Path(__file__).parent / "data" / "scrubber.html"
_ACROSS, _TILES = 32, 1024  # as the sheets of images are cut


def mixed(flagged: np.ndarray, count: int, least: int, seed: int = 0) -> np.ndarray:
    """Positions of up to ``count`` samples at random, at least ``least`` of them flagged.

    Args:
        flagged: boolean, shape (n,).
        count: how many.
        least: of these, flagged ones, where there are as many.
        seed: of the choice.

    Returns:
        Positions, ascending.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(flagged))
    special, plain = order[flagged[order]], order[~flagged[order]]
    of_special = min(len(special), max(least, round(count * float(flagged.mean()))))
    return np.sort(np.r_[special[:of_special], plain[: max(0, count - of_special)]])


def scrubber_html(
    images: np.ndarray,
    labels: np.ndarray,
    true: np.ndarray,
    epochs: Sequence[int],
    values: Mapping[str, np.ndarray],
    *,
    note: str = "",
    name: str = "scrubber",
) -> str:
    """Samples in the order of a value at one checkpoint after the other, as HTML for a page.

    Args:
        images: uint8, grey, shape (n, s, s).
        labels: that the network was trained on, integers, shape (n,).
        true: of the data set, integers, shape (n,); where they differ, a sample is framed.
        epochs: of the checkpoints, ascending.
        values: title -> what samples can be sorted by, nats, shape (checkpoints, n); the first at
            the beginning.
        note: a sentence above it, plain text.
        name: id of the element, its own on a page.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, or ``name`` cannot be an id.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise ValueError(f"name is {name!r}: give letters, digits, - and _ only, a letter first.")
    n, shape = len(labels), (len(epochs), len(labels))
    if images.dtype != np.uint8 or images.ndim != 3 or len(images) != n or len(true) != n:
        raise ValueError(
            f"images is {images.dtype} of shape {images.shape}, and there are {len(true)} true "
            f"labels; give uint8 of ({n}, s, s), and a label for each"
        )
    if not values:
        raise ValueError("values is empty; give one to sort by")
    for title, rows in values.items():
        if np.shape(rows) != shape or not np.isfinite(rows).all():
            raise ValueError(
                f"values has {title!r} of shape {np.shape(rows)}; give finite numbers of {shape}, "
                "a row for each epoch"
            )
    sheets = sheets_of(images)
    size = images.shape[-1]
    numbers = {title: np.asarray(rows).round(3).tolist() for title, rows in values.items()}
    data = {
        "label": np.asarray(labels).tolist(),
        "true": np.asarray(true).tolist(),
        "epochs": [int(epoch) for epoch in epochs],
        "titles": list(values),
        "values": list(numbers.values()),
        "token": "scrub-" + hashlib.sha256(str(numbers).encode()).hexdigest()[:10],
        **{"sheets": list(sheets), "across": _ACROSS, "tiles": _TILES, "size": size},
    }
    parts = {
        "name": name,
        "note": f"<p>{html.escape(note)}</p>" if note else "",
        "data": to_json(data),
        "sheets": "\n".join(
            f".{key} {{ background-image: url({s}); }}" for key, s in sheets.items()
        ),
        "size": str(size),
        "sheet": str(_ACROSS * size),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], _PAGE.read_text(encoding="utf-8"))


__all__ = ["mixed", "scrubber_html"]
