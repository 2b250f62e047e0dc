"""On a phone the panels of a figure stand below each other, with text that can be read."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import subprocess
import sys

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest

import render
from probebook.figures import narrow
from probelib import plotting


def places(axes) -> list[tuple[int, int]]:
    return [(ax.get_subplotspec().rowspan.start, ax.get_subplotspec().colspan.start) for ax in axes]


def titles(fig) -> list[str]:
    return [ax.get_title() for ax in fig.axes]


def three(**settings):
    """A row of three panels, with the label of the y axis at the first."""
    fig, axes = plotting.figure(1, 3, size=(9, 3), **settings)
    for ax, name in zip(axes[0], "abc", strict=True):
        ax.plot([0, 1], [1, 2])
        ax.set_title(name)
        ax.set_xlabel("draw")
    axes[0, 0].set_ylabel("loss (nats)")
    return fig


def test_a_row_becomes_a_column_and_the_figure_stays_as_it_is() -> None:
    fig = three()
    copy = narrow.stacked(fig)
    assert places(copy.axes) == [(0, 0), (1, 0), (2, 0)]
    assert titles(copy) == ["a", "b", "c"]
    assert copy.get_figwidth() == narrow.WIDTH
    tops = [ax.get_window_extent().y1 for ax in copy.axes]
    assert tops == sorted(tops, reverse=True)
    assert places(fig.axes) == [(0, 0), (0, 1), (0, 2)]
    assert tuple(fig.get_size_inches()) == (9, 3)


def test_panels_get_back_the_labels_that_they_shared() -> None:
    for shared in (True, False):
        copy = narrow.stacked(three(sharey=shared))
        labels = [ax.get_ylabel() for ax in copy.axes]
        assert labels == ["loss (nats)", *2 * ["loss (nats)" if shared else ""]]
        assert all(any(t.get_visible() for t in ax.get_yticklabels()) for ax in copy.axes)


@pytest.mark.parametrize(
    ("sharex", "order"), [("none", ["00", "01", "10", "11"]), ("col", ["00", "10", "01", "11"])]
)
def test_panels_of_a_column_stay_together_where_they_share_their_axis(sharex, order) -> None:
    fig, axes = plotting.figure(2, 2, sharex=sharex)
    for (row, col), ax in np.ndenumerate(axes):
        ax.set_title(f"{row}{col}")
    copy = narrow.stacked(fig)
    by_place = sorted(copy.axes, key=lambda ax: ax.get_subplotspec().rowspan.start)
    assert [ax.get_title() for ax in by_place] == order


def test_words_are_broken_and_formulas_are_not() -> None:
    fig = three()
    fig.axes[0].set_title("a title that is far too long for a single line of a phone's page")
    assert "\n" in narrow.stacked(fig).axes[0].get_title()
    formula = r"$\frac{a + b + c + d + e + f + g}{a + b + c + d}$"
    assert narrow.wrapped(f"ratio {formula} of", 1.0, 10.0).split("\n") == ["ratio", formula, "of"]


def test_a_wide_legend_is_a_column() -> None:
    fig = three()
    for k in range(3):
        fig.axes[0].plot([0, 1], [k, k], label=f"a curve with a long name, number {k}")
    fig.axes[0].legend(ncols=3, fontsize=7)
    ax = narrow.stacked(fig).axes[0]
    assert ax.get_legend().get_window_extent().width < ax.get_window_extent().width


def blocks():
    images = {name: np.zeros((4, 8, 8)) for name in "ab"}
    return plotting.image_grid(images, cols=2)


def bar_of_two():
    fig, axes = plotting.figure(1, 2)
    shown = [ax.imshow(np.eye(3)) for ax in axes[0]]
    fig.colorbar(shown[0], ax=list(axes[0]))
    return fig


def nested():
    fig = plt.figure()
    plt.close(fig)
    for part in fig.subfigures(1, 2):
        part.subplots()
    return fig


def by_hand():
    fig = three()
    fig.add_axes((0.4, 0.4, 0.1, 0.1))
    return fig


def without_a_name():
    fig = three()
    fig.axes[0].xaxis.set_major_formatter(lambda value, _: f"{value}")
    return fig


@pytest.mark.parametrize("draw", [blocks, bar_of_two, nested, by_hand, without_a_name])
def test_what_stands_in_no_simple_grid_is_left_alone(draw) -> None:
    assert narrow.stacked(draw()) is None
    assert narrow.bundle(draw()) == {}


def test_a_colour_bar_stays_beside_its_panel() -> None:
    fig, axes = plotting.figure(1, 2)
    for ax in axes[0]:
        fig.colorbar(ax.imshow(np.eye(3)), ax=ax)
    one, other, bar_of_one, bar_of_other = narrow.stacked(fig).axes
    for ax, bar in ((one, bar_of_one), (other, bar_of_other)):
        panel, beside = ax.get_window_extent(), bar.get_window_extent()
        assert panel.x1 < beside.x0
        assert panel.y0 < (beside.y0 + beside.y1) / 2 < panel.y1


# -- on the page -------------------------------------------------------------------------------


def book_of(folder, page: str):
    """A rendered page of a chapter with one figure, and the two drawings of it."""
    fig, image = three(), io.BytesIO()
    fig.savefig(image, format="png")
    kept = narrow.bundle(fig)
    wide = base64.b64encode(image.getvalue()).decode()
    output = nbformat.v4.new_output("display_data", {"image/png": wide} | kept)
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("draw()", outputs=[output])])
    for name in ("executed", "html/notebooks", "html/_images"):
        (folder / name).mkdir(parents=True)
    nbformat.write(nb, folder / "executed" / "00_test.ipynb")
    name = hashlib.sha256(image.getvalue()).hexdigest()
    text = page.format(image=f'<img alt="A line." src="../_images/{name}.png" />')
    (folder / "html" / "notebooks" / "00_test.html").write_text(text)
    return name, base64.b64decode(kept[narrow.NARROW])


def test_a_page_has_both_drawings_as_one_image(tmp_path) -> None:
    name, drawing = book_of(tmp_path, "<figure>{image}<figcaption>Fig. 1</figcaption></figure>")
    html = tmp_path / "html"
    render.add_narrow_images(html, tmp_path / "executed")
    assert (html / "notebooks" / "00_test.html").read_text() == (
        f'<figure><picture><source media="{render.PHONE}" srcset="../_images/{name}-narrow.png" />'
        f'<img alt="A line." src="../_images/{name}.png" /></picture>'
        "<figcaption>Fig. 1</figcaption></figure>"
    )
    assert (html / "_images" / f"{name}-narrow.png").read_bytes() == drawing


def test_the_driver_starts_without_matplotlib() -> None:
    """Which writes to the home as it is imported, before the driver has seen to that."""
    code = "import sys, driver; sys.exit('matplotlib' in sys.modules)"
    path = os.pathsep.join(sys.path)
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": path})


def test_a_drawing_that_no_page_shows_is_an_error(tmp_path) -> None:
    book_of(tmp_path, "<p>no image</p>")
    with pytest.raises(render.RenderError, match=r"00_test\.html does not show"):
        render.add_narrow_images(tmp_path / "html", tmp_path / "executed")
