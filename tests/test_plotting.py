"""Every figure draws what it is given, once, in colours that stay apart."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from probelib import plotting

RNG = np.random.default_rng(0)
IMAGES = RNG.random((5, 28, 28))
FIGURES = {
    "digit_grid": lambda: plotting.digit_grid(
        {"low": IMAGES, "high": IMAGES[:3]}, {"low": list("abcde"), "high": list("abc")}, cols=3
    ),
    "loss_against_gain": lambda: plotting.loss_against_gain(
        np.array([0, 1e-3, 1]), np.array([1.0, -2.0, 3.0]), "note"
    ),
    "populations": lambda: plotting.populations(
        {"a": RNG.lognormal(size=100), "b": RNG.lognormal(1, size=50)}, "x"
    ),
    "detection_curves": lambda: plotting.detection_curves(
        {"s": (np.array([0, 1]), np.array([0, 1]), 0.5)},
        {"s": (np.array([0, 1]), np.array([1, 0.1]), 0.3)},
        0.1,
    ),
    "embedding": lambda: plotting.embedding(
        RNG.random((10, 2)), {"a": np.arange(10) < 5, "b": np.arange(10) >= 5}
    ),
    "chain_traces": lambda: plotting.chain_traces(
        RNG.random((8, 20)), "loss", RNG.random((8, 5)), reference=0.5
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_returned_and_not_left_with_pyplot(name, tmp_path):
    before = plt.get_fignums()
    fig = FIGURES[name]()
    assert isinstance(fig, Figure)
    assert plt.get_fignums() == before
    fig.savefig(tmp_path / "figure.png")
    pixels = plt.imread(tmp_path / "figure.png")
    assert pixels[..., :3].std() > 0.01, "the figure is blank"


def test_style_does_not_leak():
    before = dict(plt.rcParams)
    FIGURES["populations"]()
    assert dict(plt.rcParams) == before


def test_grid_shows_every_image_under_its_title():
    fig = FIGURES["digit_grid"]()
    drawn = [ax for ax in fig.get_axes() if ax.images]
    assert [ax.get_title() for ax in drawn] == list("abcde") + list("abc")
    np.testing.assert_array_equal(drawn[0].images[0].get_array(), IMAGES[0])


def test_negative_gains_are_counted_not_hidden():
    fig = FIGURES["loss_against_gain"]()
    assert "1 negative gains not drawn" in fig.axes[0].texts[0].get_text()
    assert fig.axes[0].collections[0].get_offsets().shape == (2, 2)


def test_populations_are_shares_of_themselves():
    values = {"a": np.full(10, 2.0), "b": np.r_[np.full(30, 0.001), np.full(10, 4.0)]}
    fig = plotting.populations(values, "x", bins=10, low=1.0)
    outlines = [p for p in fig.axes[0].patches if not p.get_fill()]
    shares = [p.get_data().values for p in outlines]
    assert [s.sum() for s in shares] == pytest.approx([1, 1])
    assert shares[1][0] == pytest.approx(0.75)  # what lies below the axis is in the first bin
