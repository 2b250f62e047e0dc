"""What every figure must be, whoever draws it."""

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def assert_drawn(draw: Callable[[], Figure], folder: Path) -> None:
    """The figure is returned, not left with pyplot, and not blank."""
    before = plt.get_fignums()
    fig = draw()
    assert isinstance(fig, Figure)
    assert plt.get_fignums() == before
    fig.savefig(folder / "figure.png")
    pixels = plt.imread(folder / "figure.png")
    assert pixels[..., :3].std() > 0.01, "the figure is blank"
