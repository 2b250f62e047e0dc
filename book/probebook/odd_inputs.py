"""Inputs that a network was not trained for: rendered letters, corrupted digits, other data sets.

All are grey images in [0, 1], shape (n, 28, 28), in the form of MNIST: bright on black.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.ft2font import FT2Font
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from probelib.arguments import require_kind, require_whole

__all__ = [
    "CORRUPTIONS",
    "FONTS",
    "LETTERS",
    "centred",
    "corrupted",
    "corrupted_in_turn",
    "letter",
    "rendered_letters",
]

LETTERS = "ACEFHKLMNPRUVWX" + "aefhmnrt"
"""Letters that look like no digit (O, I, S, Z, B, G, q, g, b, l and their like are left out), and
no two of which are the same but for their size (such as C and c)."""

FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Italic",
    "DejaVuSansMono", "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmss10",
    "cmtt10",
)  # fmt: skip
"""Fonts that matplotlib ships, by the names of their files."""

CORRUPTIONS = ("noise", "blur", "occlusion", "quarter_turn")
"""What is done to a digit: noise of 0.4 on every pixel, a Gaussian blur of 2 pixels, a black square
of 12 pixels on the centre of its ink or near it, or a turn by 90 degrees to either side."""

_SIDE, _BOX, _NOISE, _BLUR, _SQUARE = 28, 20, 0.4, 2.0, 12


def centred(glyph: np.ndarray, longest: int = _BOX) -> np.ndarray:
    """A glyph as MNIST has its digits: in a box of 20 pixels, its centre of mass in the middle.

    Args:
        glyph: grey, in [0, 1], of any size; rows and columns without ink are cut off first.
        longest: pixels of the longer side of the box that it is scaled to.

    Returns:
        Shape (28, 28), its brightest pixel 1.

    Raises:
        ValueError: there is no ink, or the box is larger than the image.
    """
    require_whole("longest", longest, 4)
    glyph = np.asarray(glyph, np.float64)
    if glyph.ndim != 2 or not np.isfinite(glyph).all() or not (glyph > 0).any():
        raise ValueError(
            f"glyph has shape {glyph.shape}; give a grey image of finite values with some ink"
        )
    if longest > _SIDE:
        raise ValueError(f"longest is {longest}, more than the {_SIDE} pixels of an image")
    rows, cols = (np.flatnonzero((glyph > 0).any(axis)) for axis in (1, 0))
    glyph = glyph[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    sides = [max(1, round(side * longest / max(glyph.shape))) for side in glyph.shape]
    small = functional.interpolate(
        torch.from_numpy(glyph.copy())[None, None], sides, mode="bilinear", antialias=True
    )[0, 0].numpy()
    small = small / small.max()
    middle = np.array(ndimage.center_of_mass(small)) + 0.5
    # By whole pixels, as MNIST's digits, and never over the edge.
    start = np.clip(np.round(_SIDE / 2 - middle).astype(int), 0, _SIDE - np.array(sides))
    image = np.zeros((_SIDE, _SIDE))
    image[start[0] : start[0] + sides[0], start[1] : start[1] + sides[1]] = small
    return image


@lru_cache(maxsize=1024)
def _glyph(character: str, font: str) -> np.ndarray:
    """A character 96 points high, grey, in [0, 1]."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    if not path.is_file():
        raise ValueError(f"font is {font!r}, which matplotlib does not ship; choose one of FONTS")
    face = FT2Font(str(path))
    face.set_size(96, 72)
    face.set_text(character, 0)
    face.draw_glyphs_to_bitmap(antialiased=True)
    return np.array(face.get_image()) / 255


def letter(character: str, font: str = FONTS[0], slant: float = 0.0, size: int = _BOX) -> Tensor:
    """One letter, rendered in a font, slanted, scaled and centred as MNIST's digits are.

    Args:
        character: one character.
        font: of :data:`FONTS`, or another file of matplotlib's.
        slant: pixels to the right per pixel up; 0 is upright.
        size: of the longer side, pixels.

    Returns:
        In [0, 1], float32, shape (28, 28).

    Raises:
        ValueError: another font, no single character, or a slant that is no number from -1 to 1.
    """
    if not isinstance(character, str) or len(character) != 1:
        raise ValueError(f"character is {character!r}; give a string of one character")
    if not -1 <= slant <= 1:
        raise ValueError(f"slant is {slant}; choose from -1 to 1")
    glyph = _glyph(character, font)
    height = len(glyph)
    room = round(abs(slant) * height)
    wide = np.pad(glyph, ((0, 0), (room, room)))
    # A pixel in row r is read from the column that is slant * (height - 1 - r) pixels to its left,
    # as the row at the bottom stays where it is.
    matrix, offset = [[1.0, 0.0], [slant, 1.0]], [0.0, -slant * (height - 1)]
    sheared = ndimage.affine_transform(wide, matrix, offset, order=1)
    return torch.from_numpy(centred(sheared.clip(0, 1), size)).float()


def rendered_letters(
    n: int, seed: int, *, letters: Sequence[str] = LETTERS, fonts: Sequence[str] = FONTS
) -> tuple[Tensor, np.ndarray]:
    """Letters in several fonts, slants (-0.25 to 0.25) and sizes (16 to 20 pixels).

    Args:
        n: how many; the letters come in turn, so that each is there as often as any other.
        seed: of fonts, slants, sizes and order.
        letters: to choose from.
        fonts: to choose from.

    Returns:
        Images (n, 28, 28) in [0, 1], float32, and the letter of each, shape (n,).

    Raises:
        ValueError: there is no letter or no font.
    """
    require_whole("n", n)
    require_whole("seed", seed, 0)
    for name, given in (("letters", letters), ("fonts", fonts)):
        if not len(given):
            raise ValueError(f"{name} is empty; give at least one")
    rng = np.random.default_rng([seed, *b"letters"])
    chosen = rng.permutation(np.resize(np.array(list(letters)), n))
    images = [
        letter(str(each), str(rng.choice(fonts)), rng.uniform(-0.25, 0.25), rng.integers(16, 21))
        for each in chosen
    ]
    return torch.stack(images), chosen


def corrupted(images: Tensor, kind: str, rng: np.random.Generator) -> Tensor:
    """Digits that something was done to.

    Args:
        images: in [0, 1], shape (n, height, width).
        kind: one of :data:`CORRUPTIONS`.
        rng: of the noise, the place of the square, and the sense of the turn.

    Returns:
        In [0, 1], float32, of the same shape; the images given stay as they are.

    Raises:
        ValueError: another kind, or images that are not in [0, 1].
    """
    _require_images(images)
    n, height, width = images.shape
    if kind == "noise":
        noise = torch.from_numpy(rng.normal(0, _NOISE, images.shape)).float()
        return (images + noise).clamp(0, 1)
    if kind == "blur":
        blurred = ndimage.gaussian_filter(images.numpy(), (0, _BLUR, _BLUR), mode="constant")
        return torch.from_numpy(blurred).float().clamp(0, 1)
    if kind == "occlusion":
        found = images.clone()
        moved = rng.integers(-2, 3, size=(n, 2))
        for at, image in enumerate(images.numpy()):
            ink = image if image.any() else np.ones_like(image)
            middle = np.round(ndimage.center_of_mass(ink)).astype(int) + moved[at]
            top, left = np.maximum(middle - _SQUARE // 2, 0)
            found[at, top : top + _SQUARE, left : left + _SQUARE] = 0
        return found
    if kind == "quarter_turn":
        if height != width:
            raise ValueError(f"images are {height} x {width}; a quarter turn needs square ones")
        left = torch.from_numpy(rng.random(n) < 0.5)[:, None, None]
        return torch.where(left, images.rot90(1, (1, 2)), images.rot90(-1, (1, 2)))
    raise ValueError(f"kind must be one of {', '.join(CORRUPTIONS)}; got {kind!r}")


def corrupted_in_turn(images: Tensor, seed: int) -> tuple[Tensor, np.ndarray]:
    """Images corrupted in turn by each of :data:`CORRUPTIONS`, and the kind of each.

    Args:
        images: in [0, 1], shape (n, height, width).
        seed: of what :func:`corrupted` draws.
    """
    _require_images(images)
    require_whole("seed", seed, 0)
    rng = np.random.default_rng([seed, *b"corrupted"])
    kinds = np.resize(np.array(CORRUPTIONS), len(images))
    found = torch.empty(images.shape)
    for kind in CORRUPTIONS:
        part = torch.from_numpy(kinds == kind)
        if part.any():
            found[part] = corrupted(images[part], kind, rng)
    return found, kinds


def _require_images(images: Tensor) -> None:
    """Grey images in [0, 1] (TypeError, ValueError)."""
    require_kind("images", images, Tensor, "a tensor")
    if images.ndim != 3 or not images.is_floating_point():
        raise ValueError(
            f"images has shape {tuple(images.shape)} and type {images.dtype}; give floats of shape "
            "(n, height, width)"
        )
    if not bool(((images >= 0) & (images <= 1)).all()):  # NaN is not
        raise ValueError("images has values outside [0, 1], or NaN; divide bytes by 255")
