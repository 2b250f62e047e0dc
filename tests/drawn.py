"""What every figure must be, whoever draws it."""

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text

from probebook.figures import narrow

# A page 1280 px wide shows figures so wide (tests/test_pages.py measures it), the pixels of a wider
# one made smaller; text is to have 9 of them.
PAGE, DENSITY, SMALLEST = 798, 130, 9.0
PHONE = 356  # so wide on one of 390 px


def assert_drawn(draw: Callable[[], Figure], folder: Path) -> None:
    """The figure is returned, not left with pyplot, not blank, and legible on pages and phones."""
    before = plt.get_fignums()
    fig = draw()
    assert isinstance(fig, Figure)
    assert plt.get_fignums() == before
    fig.savefig(folder / "figure.png")
    pixels = plt.imread(folder / "figure.png")
    assert pixels[..., :3].std() > 0.01, "the figure is blank"
    assert smallest_text(fig) >= SMALLEST, "text is too small on a page of the book"
    if (stacked := narrow.stacked(fig)) is not None:
        wide = stacked.get_tightbbox().width + 2 * narrow.EDGE
        assert smallest_text(stacked, PHONE / wide) >= SMALLEST, "text is too small on a phone"


def smallest_text(fig: Figure, density: float | None = None) -> float:
    """The height of the smallest text of a figure, CSS pixels.

    Args:
        fig: drawn.
        density: CSS pixels per inch; default: on a page 1280 px wide.
    """
    sizes = [text.get_fontsize() for text in fig.findobj(Text) if text.get_text().strip()]
    wide = fig.get_figwidth() + 0.2  # a notebook leaves an edge of 0.1 inch
    density = min(DENSITY, PAGE / wide) if density is None else density
    return min(sizes, default=SMALLEST) / 72 * density
