"""Two maps of the same samples side by side, to zoom and to search, without a kernel process."""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from sklearn.manifold import TSNE

from probebook import alignment as al
from probebook.explorer import sheets_of, to_json

_PAGE = Path(__file__).parent / "data" / "maps.html"
_ACROSS, _TILES = 32, 1024  # as the sheets of images are cut
_NEAR = 5  # that are framed


def layout(similarity: np.ndarray, seed: int = 0, perplexity: float = 20.0) -> np.ndarray:
    """A map of the samples by scikit-learn's t-SNE, shape (n, 2), in [0, 1].

    The distance of two unit vectors with this inner product, sqrt(2 - 2 R), is what is mapped.

    Args:
        similarity: correlations or cosines, shape (n, n).
        seed: of the start.
        perplexity: about the number of neighbours that count.
    """
    distance = np.sqrt(np.clip(2 - 2 * similarity, 0, None))
    np.fill_diagonal(distance, 0)
    method = TSNE(
        metric="precomputed",
        init="random",
        perplexity=min(perplexity, (len(similarity) - 1) / 3),
        random_state=seed,
    )
    places = method.fit_transform(distance)
    low, high = places.min(0), places.max(0)
    return 0.03 + 0.94 * (places - low) / np.maximum(high - low, 1e-12)


def maps_html(
    names: Sequence[str],
    similarities: Mapping[str, np.ndarray],
    *,
    images: np.ndarray | None = None,
    note: str = "",
    name: str = "maps",
    seed: int = 0,
) -> str:
    """Maps of two similarities of the same samples, as HTML that needs no kernel and no network.

    Picking a sample in one map marks it, and its nearest by both similarities, in both.

    Args:
        names: of the samples.
        similarities: title -> correlations or cosines, two of them, shape (n, n).
        images: uint8 RGB, shape (n, 3, s, s), s a multiple of 16; default: dots.
        note: a sentence above them, plain text.
        name: id of the element, its own on a page.
        seed: of the maps.

    Raises:
        ValueError: not two similarities, shapes that do not fit, or ``name`` that cannot be an id.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise ValueError(f"name is {name!r}: give letters, digits, - and _ only, a letter first.")
    if len(similarities) != 2:
        raise ValueError(f"similarities has {len(similarities)} entries; give two to compare")
    n = len(names)
    for title, similarity in similarities.items():
        if similarity.shape != (n, n) or not np.isfinite(similarity).all():
            raise ValueError(
                f"similarities has {title!r} of shape {similarity.shape}; give finite numbers of "
                f"shape ({n}, {n}), a row for each name"
            )
    if images is not None and (images.dtype != np.uint8 or len(images) != n or images.ndim != 4):
        raise ValueError(
            f"images is {images.dtype} of shape {images.shape}; give uint8 of ({n}, 3, s, s)"
        )
    sheets = {} if images is None else sheets_of(images)
    size = 8 if images is None else images.shape[-1]
    places = [layout(similarity, seed).round(4).tolist() for similarity in similarities.values()]
    near = [al.top(similarity, min(_NEAR, n - 1)).tolist() for similarity in similarities.values()]
    token = "maps-" + hashlib.sha256(str(places).encode()).hexdigest()[:10]
    data = {
        "label": list(names),
        "titles": list(similarities),
        "places": places,
        "near": near,
        "token": token,
        **{"sheets": list(sheets), "across": _ACROSS, "tiles": _TILES, "size": size},
    }
    first, second = similarities
    parts = {
        "name": name,
        "note": f"<p>{html.escape(note)}</p>" if note else "",
        "first": html.escape(first),
        "second": html.escape(second),
        "data": to_json(data),
        "sheets": "\n".join(
            f".{key} {{ background-image: url({s}); }}" for key, s in sheets.items()
        ),
        "size": str(size),
        "sheet": str(_ACROSS * size),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], _PAGE.read_text(encoding="utf-8"))


__all__ = ["layout", "maps_html"]
