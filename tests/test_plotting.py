"""The library's figures fit any data, and draw what they are given."""

import ast
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from drawn import assert_drawn

import probelib
from probelib import plotting

RNG = np.random.default_rng(0)
IMAGES = RNG.random((5, 28, 28))
R = np.array([[1, 0.9, -0.4], [0.9, 1, 0.1], [-0.4, 0.1, 1]])
PHOTOGRAPHS = RNG.integers(0, 256, (5, 3, 16, 16), dtype=np.uint8)
WORDS = ["tench, Tinca tinca", "$5 or less", "supercalifragilisticexpialidocious", "cock", "hen"]
AXIS = np.linspace(0, 1, 9)
NEAR = np.array([[1, 2], [4, 1], [0, 1]])
TRAINING = pd.DataFrame(
    {
        "llc": [3.0, 5.0, 9.0],
        "llc_mcse": [0.5, np.inf, 0.2],
        "mean_gain": [0.3, 0.5, 0.9],
        "mean_gain_mcse": [0.05, np.inf, 0.02],
        "gain_q10": [0.1, 0.1, 0.1],
        "gain_q50": [0.2, 0.3, 0.4],
        "gain_q90": [0.6, 0.8, 2.0],
        "verdict": ["wrong", "uncertain", "good"],
    },
    index=pd.Index([0, 1000, 100], name="checkpoint"),
)
FIGURES = {
    "over_training": lambda: plotting.over_training(TRAINING, "training step", log=True),
    "image_grid": lambda: plotting.image_grid(
        {"low": IMAGES, "high": IMAGES[:3]}, {"low": list("abcde"), "high": list("abc")}, cols=3
    ),
    "gain_against_loss": lambda: plotting.gain_against_loss(
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
    "neighbour_grid": lambda: plotting.neighbour_grid(
        PHOTOGRAPHS,
        np.array([0, 3, 4]),
        NEAR,
        names=WORDS,
        same=NEAR == 1,
        correlation=NEAR / 10 - 0.2,
        blocks=2,
    ),
    "kernel_heatmap": lambda: plotting.kernel_heatmap(R),
    "rhat_and_ess": lambda: plotting.rhat_and_ess(
        np.array([1.2, 1.0, 1.15, np.nan]), np.array([150.0, 90.0, 400.0, np.nan])
    ),
    "sweep": lambda: plotting.sweep(
        pd.DataFrame(
            {
                "n_beta": [1.0, 10.0],
                "localization": [5.0, 5.0],
                "llc": [0.5, 1.0],
                "llc_mcse": [0.1, 0.1],
                "weighted_llc": [0.6, np.nan],
                "weighted_llc_mcse": [0.1, np.nan],
                "verdict": ["good", "wrong"],
            }
        )
    ),
}


def test_every_figure_of_the_library_is_drawn_here():
    style = {"STYLE", "figure", "BLUE", "ORANGE", "GREEN", "VERMILION", "PURPLE", "SKY"}
    assert set(FIGURES) == set(plotting.__all__) - style


def test_only_this_module_needs_matplotlib():
    folder = Path(probelib.__file__).parent
    users = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
        )
        if name and name.split(".")[0] == "matplotlib"
    }
    assert users == {"plotting.py"}


def test_the_library_starts_without_matplotlib_and_draws_without_scikit_learn():
    code = (
        "import sys, types; sys.modules['arviz'] = types.ModuleType('arviz');"  # brings its own
        "import probelib; assert 'matplotlib' not in sys.modules;"
        "sys.modules['sklearn'] = None; import probelib.plotting"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_returned_and_not_left_with_pyplot(name, tmp_path):
    assert_drawn(FIGURES[name], tmp_path)


def test_style_does_not_leak():
    before = dict(plt.rcParams)
    FIGURES["populations"]()
    assert dict(plt.rcParams) == before


def test_grid_shows_every_image_under_its_title():
    fig = FIGURES["image_grid"]()
    drawn = [ax for ax in fig.get_axes() if ax.images]
    assert [ax.get_title() for ax in drawn] == list("abcde") + list("abc")
    np.testing.assert_array_equal(drawn[0].images[0].get_array(), IMAGES[0])


def test_words_above_images_do_not_touch():
    words = ["7: <0.01", "3: 12.5", "8"]
    fig = plotting.image_grid(
        {"low": IMAGES[:3], "high": IMAGES[:3]}, {"low": words, "high": words}
    )
    fig.draw_without_rendering()
    drawn = [ax for ax in fig.get_axes() if ax.images]
    assert drawn[0].get_title() == "7:\n<0.01"
    for ax in drawn:
        limit = 0.42 * fig.dpi  # images stand 0.47 inch apart by default
        assert ax.title.get_window_extent().width <= limit + 2  # hinting moves an edge by a pixel


@pytest.mark.parametrize(
    "images",
    [
        PHOTOGRAPHS,
        PHOTOGRAPHS.transpose(0, 2, 3, 1),
        PHOTOGRAPHS.transpose(0, 2, 3, 1) / 255,
        PHOTOGRAPHS[:, 0],
        PHOTOGRAPHS[:, :1],
        PHOTOGRAPHS[:, 0, :, :, None],
    ],
    ids=["channels first", "channels last", "floats", "grey", "grey first", "grey last"],
)
def test_grids_take_any_shape_of_image(images):
    drawn = [
        ax.images[0].get_array() for ax in plotting.image_grid({"a": images}).axes if ax.images
    ]
    colour = images.shape[1] == 3 or images.shape[-1] == 3
    expected = PHOTOGRAPHS[0].transpose(1, 2, 0) if colour else PHOTOGRAPHS[0, 0]
    scale = 255 if images.dtype.kind == "f" else 1
    np.testing.assert_allclose(drawn[0] * scale if scale > 1 else drawn[0], expected, rtol=1e-12)
    (ax,) = plotting.neighbour_grid(images, [0], np.array([[1]]), correlation=np.ones((1, 1))).axes
    np.testing.assert_array_equal(ax.images[0].get_array(), drawn[0])


def test_standardised_colours_are_brought_into_range():
    fig = plotting.image_grid({"a": np.linspace(-2, 3, 2 * 3 * 4 * 6).reshape(2, 3, 4, 6)})
    drawn = [ax.images[0].get_array() for ax in fig.axes if ax.images]
    assert (np.min(drawn), np.max(drawn)) == pytest.approx((0, 1))
    assert drawn[0].shape == (4, 6, 3)


def test_images_of_no_known_shape_are_refused():
    with pytest.raises(ValueError, match=r"groups\['a'\] has shape \(5, 784\); give images of"):
        plotting.image_grid({"a": np.zeros((5, 784))})


def test_negative_gains_are_counted_not_hidden():
    fig = FIGURES["gain_against_loss"]()
    assert "1 negative gains not drawn" in fig.axes[0].texts[0].get_text()
    assert fig.axes[0].collections[0].get_offsets().shape == (2, 2)


def test_populations_are_shares_of_themselves():
    values = {"a": np.full(10, 2.0), "b": np.r_[np.full(30, 0.001), np.full(10, 4.0)]}
    fig = plotting.populations(values, "x", bins=10, low=1.0)
    outlines = [p for p in fig.axes[0].patches if not p.get_fill()]
    shares = [p.get_data().values for p in outlines]
    assert [s.sum() for s in shares] == pytest.approx([1, 1])
    assert shares[1][0] == pytest.approx(0.75)  # what lies below the axis is in the first bin


def test_populations_without_a_positive_value_are_refused():
    with pytest.raises(ValueError, match="values holds no positive number"):
        plotting.populations({"a": np.zeros(3)}, "x")


def test_no_group_is_left_out():
    many = {str(k): RNG.lognormal(size=9) for k in range(9)}
    masks = {name: np.arange(9) == k for k, name in enumerate(many)}
    curves = dict.fromkeys(many, (AXIS, AXIS, 0.5))
    for fig in (
        plotting.populations(many, "x"),
        plotting.embedding(RNG.random((9, 2)), masks),
        plotting.detection_curves(curves, curves, 0.1),
    ):
        assert len(fig.axes[0].get_legend().get_texts()) == 9
    assert len(plotting.chain_traces(RNG.random((130, 2)), "x").axes[0].lines) == 130


def test_the_heat_map_is_sorted_by_group():
    ax, bar = plotting.kernel_heatmap(R, ["b", "a", "b"], limit=1.0).axes
    np.testing.assert_array_equal(ax.images[0].get_array(), R[np.ix_([1, 0, 2], [1, 0, 2])])
    assert ax.images[0].get_clim() == (-1, 1)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b"]
    np.testing.assert_array_equal(ax.get_xticks(), [0, 1.5])
    assert [line.get_ydata()[0] for line in ax.lines[::2]] == [0.5]
    assert bar.get_ylabel() == "correlation R"


def test_heat_maps_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"matrix has shape \(2, 3\); give as many"):
        plotting.kernel_heatmap(R[:2])
    with pytest.raises(ValueError, match="groups has 2 entries; give one for each of the 3"):
        plotting.kernel_heatmap(R, ["a", "b"])


def test_series_beyond_the_limits_are_counted():
    rhat, ess = FIGURES["rhat_and_ess"]().axes
    assert rhat.get_title() == "2 of 3 above the limit"
    assert ess.get_title() == "1 of 3 below the limit"
    for ax, limit, first in ((rhat, 1.1, 1.2), (ess, 100, 150)):
        assert [line.get_xdata()[0] for line in ax.lines] == [limit, first]
        assert sum(bar.get_height() for bar in ax.patches) == 3


def test_training_is_drawn_in_its_order_with_its_doubts():
    llc, gain = FIGURES["over_training"]().axes
    line = llc.lines[0]
    np.testing.assert_array_equal(line.get_xdata(), [0, 100, 1000])
    np.testing.assert_array_equal(line.get_ydata(), [3, 9, 5])
    assert [text.get_text() for text in llc.get_legend().get_texts()] == [
        "mean",
        "mean, error unknown",
        "do not trust",
    ]
    written = [text.get_text() for text in gain.get_legend().get_texts()]
    assert {"median", "samples from 10 to 90 %"} < set(written)
    named = plotting.over_training(TRAINING.set_axis(["start", "end", "middle"]))
    assert [t.get_text() for t in named.axes[0].get_xticklabels()] == ["start", "end", "middle"]
    with pytest.raises(ValueError, match="table has no column llc; give that of"):
        plotting.over_training(TRAINING.drop(columns="llc"))
    with pytest.raises(ValueError, match="table has no rows"):
        plotting.over_training(TRAINING.iloc[:0])


def test_neighbours_need_neither_names_nor_labels():
    (ax,) = plotting.neighbour_grid(
        PHOTOGRAPHS, np.array([0, 3, 4]), NEAR, correlation=NEAR / 10
    ).axes
    written = [text.get_text() for text in ax.texts]
    assert written[:5] == ["0", "0.10", "1", "0.20", "2"]
    assert not any("label" in text for text in written)


def test_neighbours_stand_beside_their_reference_with_their_mark():
    (ax,) = FIGURES["neighbour_grid"]().axes
    order = [0, 1, 2, 3, 4, 1, 4, 0, 1]
    assert len(ax.images) == len(order)
    for image, i in zip(ax.images, order, strict=True):
        np.testing.assert_array_equal(image.get_array(), PHOTOGRAPHS[i].transpose(1, 2, 0))
    written = [text.get_text() for text in ax.texts]
    marks = [text for text in written if text[:2] in ("= ", "≠ ") and text[2] != " "]
    assert marks == ["= −0.10", "≠ 0.00", "≠ 0.20", "= −0.10", "≠ −0.20", "= −0.10"]
    assert "$5 or less" in " ".join(written).replace("\n", " ")
    solid = [frame.get_linestyle() == "-" for frame in ax.patches[:9]]
    assert solid == [True, True, False, True, False, True, True, False, True]


def test_names_under_photographs_keep_to_their_column():
    fig = FIGURES["neighbour_grid"]()
    fig.draw_without_rendering()
    (ax,) = fig.axes
    boxes = [text.get_window_extent() for text in ax.texts if text.get_ha() == "center"]
    cell = 0.8 * fig.dpi
    assert max(box.width for box in boxes) <= cell
    for k, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[k + 1 :])
    assert any(text.get_text().endswith("…") for text in ax.texts)


def test_a_grid_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"same has shape \(3, 1\); give one row for each"):
        plotting.neighbour_grid(
            PHOTOGRAPHS, np.arange(3), NEAR, names=WORDS, same=NEAR[:, :1] == 1, correlation=NEAR
        )


def test_positions_that_a_sample_does_not_have_are_nothing() -> None:
    values = np.random.default_rng(0).random((5, 4)) + 0.1
    ragged = values.copy()
    ragged[0, 2:] = np.nan
    ragged[1, 0] = -1.0
    text = plotting.gain_against_loss(values, ragged).axes[0].texts[0].get_text()
    assert text.strip() == "1 negative gains not drawn"
    ax = plotting.populations({"some": ragged[:, 1:]}, "gain").axes[0]
    assert ax.get_legend().get_texts()[0].get_text() == "some (n = 13)"
    shares = ax.patches[1].get_data().values
    assert shares.sum() == pytest.approx(1)
    with pytest.raises(ValueError, match=r"loss has shape \(5,\)"):
        plotting.gain_against_loss(values[:, 0], values)
