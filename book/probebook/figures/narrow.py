"""Figures for a phone: as wide as that, and panels below each other instead of side by side.

A figure is one image, and on a phone its text is unreadable where it is wide. While the driver runs
a chapter, every figure that is shown gets a second drawing beside the first: a copy whose panels
are stacked, as wide as a phone. The page shows one or the other (`book/render.py`).

Left alone are figures with parts that stand in no simple grid: images in blocks, axes placed by
hand, a colour bar of several panels.
"""

from __future__ import annotations

import base64
import io
import pickle
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.text import Text

NARROW = "application/vnd.probebook.narrow+png"  # base64, as of image/png
WIDTH = 3.75  # inches: text of 10 points is 13 pixels high on a phone
LEAST, MOST = 2.4, 3.4  # height of a panel, inches
SMALLEST = 7.0  # points: 9 pixels on a phone
EDGE = 0.04  # around it, inches
_DPI = 200  # phones have two or three dots per pixel


def switch_on() -> None:
    """Draw every figure twice that is shown from here on; outside a notebook, do nothing."""
    from IPython import get_ipython

    shell = get_ipython()
    if shell is not None:
        shell.display_formatter.mimebundle_formatter.for_type(Figure, bundle)


def bundle(fig: Figure, include: Any = None, exclude: Any = None) -> Mapping[str, str]:
    """What a notebook keeps of a figure beside its image: the narrow one, if it has one.

    Args:
        fig: that is shown; it stays as it is.
        include, exclude: of IPython's protocol; not needed.
    """
    narrow = stacked(fig)
    if narrow is None:
        return {}
    file = io.BytesIO()
    narrow.savefig(file, format="png", dpi=_DPI, bbox_inches="tight", pad_inches=EDGE)
    return {NARROW: base64.b64encode(file.getvalue()).decode()}


def stacked(fig: Figure) -> Figure | None:
    """A copy of a figure with its panels below each other; None where it is to be left alone."""
    if panels(fig) is None:
        return None
    try:
        copy = pickle.loads(pickle.dumps(fig))
    except (AttributeError, TypeError, pickle.PicklingError):  # a formatter without a name
        return None
    axes = panels(copy)
    heights = [_height(ax) for ax in axes]
    if axes[0].get_gridspec().ncols > 1:
        for ax in axes:
            _label(ax)
    copy.set_size_inches(WIDTH, sum(heights) + 0.5 * (copy.get_suptitle() != ""))
    grid = GridSpec(len(axes), 1, figure=copy, height_ratios=heights)
    for ax, place in zip(axes, grid, strict=True):
        ax.set_subplotspec(place)
        _wrap_words(ax)
    for text in copy.findobj(Text):
        text.set_fontsize(max(text.get_fontsize(), SMALLEST))
    copy.draw_without_rendering()  # or nothing has its size yet
    for ax in axes:
        _narrow_legend(ax)
    return copy


def panels(fig: Figure) -> list[Axes] | None:
    """The panels of a figure in the order in which they are read; None if it has no simple grid.

    A row of panels comes before the next, but where the panels of a column share their x axis, a
    column comes before the next.
    """
    own = [ax for ax in fig.axes if ax.get_subplotspec() is not None]
    bars = [ax for ax in fig.axes if ax.get_subplotspec() is None]
    grids = {ax.get_gridspec() for ax in own}
    if len(grids) != 1 or not isinstance(own[0].get_gridspec(), GridSpec):
        return None
    if fig.subfigs or not all(map(_is_bar_of_one, bars)) or not all(ax.axison for ax in own):
        return None
    rows = {
        ax: (ax.get_subplotspec().rowspan.start, ax.get_subplotspec().colspan.start) for ax in own
    }
    by_column = any(
        rows[ax][0] != rows[other][0]
        for ax in own
        for other in ax.get_shared_x_axes().get_siblings(ax)
    )
    return sorted(own, key=lambda ax: rows[ax][::-1] if by_column else rows[ax])


def _is_bar_of_one(ax: Axes) -> bool:
    """Whether axes are the colour bar of a single panel, beside which the layout keeps them."""
    return len(getattr(ax, "_colorbar_info", {}).get("parents", ())) == 1


def _height(ax: Axes) -> float:
    """The height that a panel has when it is as wide as a phone, in inches."""
    fig = ax.get_figure()
    place = ax.get_subplotspec().get_position(fig)
    width, height = fig.get_size_inches() * (place.width, place.height)
    return min(max(WIDTH * height / width, LEAST), MOST)


def _label(ax: Axes) -> None:
    """Give a panel the tick labels and the axis labels that it left to its neighbours."""
    for axis, shared, shown in (
        (ax.xaxis, ax.get_shared_x_axes(), "labelbottom"),
        (ax.yaxis, ax.get_shared_y_axes(), "labelleft"),
    ):
        siblings = shared.get_siblings(ax)
        if len(siblings) < 2:
            continue
        axis.set_tick_params(which="both", **{shown: True})
        axis.get_offset_text().set_visible(True)
        names = [getattr(other, axis.axis_name + "axis").get_label_text() for other in siblings]
        if not axis.get_label_text():
            axis.set_label_text(next(filter(None, names), ""))


def _wrap_words(ax: Axes) -> None:
    """Break titles and axis labels that are longer than the panel."""
    for place in ("left", "center", "right"):
        if title := ax.get_title(loc=place):
            size = ax.title.get_fontsize()
            ax.set_title(wrapped(title, 0.92 * WIDTH, size), loc=place, fontsize=size)
    for axis, room in ((ax.xaxis, 0.85 * WIDTH), (ax.yaxis, 0.8 * _height(ax))):
        if text := axis.get_label_text():
            axis.set_label_text(wrapped(text, room, axis.label.get_fontsize()))


def _narrow_legend(ax: Axes) -> None:
    """Put the entries of a legend that is wider than its panel below each other."""
    legend = ax.get_legend()
    if legend is None or legend.get_window_extent().width <= ax.get_window_extent().width:
        return
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        size = legend.get_texts()[0].get_fontsize()
        ax.legend(handles, labels, loc="best", fontsize=size)


def wrapped(text: str, room: float, size: float) -> str:
    """Text in lines, no longer than there is room; formulas stay whole.

    Args:
        text: Matplotlib's, in lines or not.
        room: inches.
        size: of the letters, points; one is about half as wide.
    """
    whole = re.sub(r"\$[^$]*\$", lambda formula: formula[0].replace(" ", "\0"), text)
    letters = max(12, int(room * 72 / (0.52 * size)))
    lines = [textwrap.fill(line, letters, break_long_words=False) for line in whole.split("\n")]
    return "\n".join(lines).replace("\0", " ")


__all__ = ["NARROW", "bundle", "panels", "stacked", "switch_on"]
