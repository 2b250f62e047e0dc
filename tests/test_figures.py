"""Every chapter's figure draws what it is given, once, in colours that stay apart."""

import numpy as np
import pandas as pd
import pytest
from drawn import assert_drawn

from probebook import figures, outlier_scores
from probebook.figures import loss_kernel
from probebook.similarities import Interval

RNG = np.random.default_rng(0)
PLANE = RNG.normal(size=(12, 2))
CLASSES = np.arange(12) % 2
NAMED = {"easy": 0, "hard": 1, "friend": 2}
CHANGES = {name: RNG.normal(size=70) for name in NAMED}
R = np.array([[1, 0.9, -0.4], [0.9, 1, 0.1], [-0.4, 0.1, 1]])
AXIS = np.linspace(-1, 1, 9)
THREE = np.array([1.0, 4.0, 16.0])
BY_STEP = pd.DataFrame(
    {
        "sampler": np.repeat(["one", "two"], 3),
        "step": np.tile(THREE / 10, 2),
        "error": [0.3, 0.05, np.inf, 0.5, 0.2, 0.02],
        "low": [0.2, 0.03, 0.9, 0.4, 0.1, 0.01],
        "high": [0.4, 0.09, np.inf, 0.6, 0.3, 0.04],
        "effective_per_gradient": [0.001, 0.004, np.nan, 0.001, 0.002, 0.016],
        "good": [0.0, 0.75, 0.0, 0.0, 0.5, 1.0],
        "wide": [1.0, 0.25, 0.0, 0.5, 0.5, 0.0],
        "wrong": [0.0, 0.0, 1.0, 0.5, 0.0, 0.0],
    }
)
RANKS = pd.DataFrame(
    {
        "sampler": ["one", "one", "two"],
        "error": [0.02, 2.0, np.inf],
        "spearman": [0.99, 0.9, 0.5],
        "spearman_se": [0.001, 0.01, np.inf],
    }
)
ODD = pd.DataFrame(
    [
        (pair, score, 0.6 + 0.1 * k, 0.5, 0.9, 0.7 - 0.1 * k, 0.2, np.nan if k else 0.8)
        for pair in ("mnist_fashion", "mnist_letters")
        for k, score in enumerate(["gain", "mean_loss", "energy"])
    ],
    columns=["pair", "score", "auroc", "auroc_low", "auroc_high", "fpr", "fpr_low", "fpr_high"],
)
ODD_SWEEP = pd.DataFrame(
    [
        (pair, score, gamma, 0.6 + gamma / 100, 0.5, 0.9, 0.9 if gamma == 1 else 0.1, 4.0)
        for pair in ("mnist_fashion", "mnist_letters")
        for score in outlier_scores.PROBE
        for gamma in THREE
    ],
    columns=[
        "pair", "score", "localization", "auroc", "auroc_low", "auroc_high", "khat", "chosen",
    ],
)  # fmt: skip
GAINED = pd.DataFrame(
    [("nothing", 0.0, 0.8, np.nan, np.nan, 0.0, 0.0, 0.0)]
    + [
        (score, share, 0.8 + k * share / 10, 0.7, 0.9, k - 2.0, k - 3.0, k - 1.5)
        for k, score in enumerate(["gain", "loss", "random", "margin", "ideal"])
        for share in (0.05, 0.1)
    ],
    columns=[
        "score", "share", "accuracy", "accuracy_low", "accuracy_high", "over_random",
        "over_random_low", "over_random_high",
    ],
)  # fmt: skip
STAGED = pd.DataFrame(
    [
        (score, stage, mean, mean - 0.05, mean + 0.05, 3)
        for score in ("loss", "aum")
        for stage, mean in (("underfitted", 0.9), ("between", 0.8), ("memorized", 0.6))
    ],
    columns=["score", "stage", "mean", "low", "high", "seeds"],
)
BY_TASK = pd.DataFrame(
    [(score, "mnist", epoch, 0.7, 0.6, 0.8) for score in ("loss", "aum") for epoch in (100, 1, 10)],
    columns=["score", "task", "epoch", "mean", "low", "high"],
)
SCORE_NAMES = {"loss": "the loss", "aum": "the margin"}

ALONG = pd.DataFrame(
    {"llc": THREE, "llc_mcse": [0.1, np.inf, 0.2], "verdict": ["wrong", "uncertain", "good"]},
    index=[1, 2, 4],
)


FIGURES = {
    "memorization_curves": lambda: figures.memorization_curves(
        {"right": (np.arange(1, 41), np.linspace(0, 1, 80).reshape(2, 40))},
        {"gain": (THREE, np.array([[0.5, 0.8, 0.9], [0.5, 0.6, 0.7]])), "loss": (THREE, [THREE])},
        {"gain": (THREE, np.array([[0.5, 0.6, 0.7]]))},
        {"half": 4.0, "never": np.inf},
    ),
    "gains_in_training": lambda: figures.gains_in_training(
        {"a": ALONG, "b": ALONG.assign(verdict="good")},
        {"right": (THREE, THREE, THREE / 20, THREE / 2, 2 * THREE)},
    ),
    "stage_picture": lambda: figures.stage_picture(
        (AXIS, np.outer(AXIS, [1, 2]), np.outer(AXIS, [1, 2])),
        {"Gibbs": (AXIS, AXIS, AXIS**2 / 9), "chains": (THREE, THREE, THREE / 9)},
        [1.0, 2.0],
        [0.5],
        (THREE, np.array([-500.0, 2.0, 3.0]), np.array([True, False, False])),
    ),
    "phase_picture": lambda: figures.phase_picture(
        [1, 10, 100],
        np.where(np.eye(3) + R > 1.5, 1.0, np.where(R < 0, np.nan, R)),
        {"a": (THREE, THREE / 16, THREE / 99), "b": (THREE, -THREE / 16, THREE / 99)},
    ),
    "scores_by_stage": lambda: figures.scores_by_stage(
        STAGED, {"one": {"loss": "the loss"}, "two": {"aum": "the margin"}}
    ),
    "scores_over_epochs": lambda: figures.scores_over_epochs(
        BY_TASK, BY_TASK[BY_TASK.score == "loss"], SCORE_NAMES, {"mnist": "MNIST"}
    ),
    "suspicious_digits": lambda: figures.suspicious_digits(
        RNG.integers(0, 256, (3, 28, 28)), list("012"), [1, 2, 3], columns=2
    ),
    "sampler_map": lambda: figures.sampler_map(BY_STEP),
    "efficiency": lambda: figures.efficiency(BY_STEP),
    "ranks_and_errors": lambda: figures.ranks_and_errors(
        {"digits": (RANKS, 0.98), "words": (RANKS.assign(error=0.1), 0.9)}
    ),
    "probe_picture": lambda: figures.probe_picture(
        PLANE,
        CLASSES,
        NAMED,
        (AXIS, AXIS, np.add.outer(AXIS**2, AXIS**2)),
        np.array([0.1, 0.2]),
        RNG.normal(size=(70, 2)),
        {name: CHANGES[name] for name in ("easy", "hard")},
        {"easy": 0.01, "hard": 0.5},
    ),
    "kernel_picture": lambda: figures.kernel_picture(
        CHANGES, [("hard", "easy"), ("hard", "friend")], R
    ),
    "data_maps": lambda: figures.data_maps(
        PLANE, CLASSES, NAMED, np.array([0.1, 0.2]), RNG.random(12), RNG.uniform(-1, 1, 12), "hard"
    ),
    "kept_by_localization": lambda: figures.kept_by_localization(
        pd.DataFrame({"gamma": 10 ** (2 + THREE / 8), "kept": 1 - 1 / THREE, "kept_error": 0.02}),
        0.9,
        10 ** (2 + 16 / 8),
    ),
    "induction_positions": lambda: figures.induction_positions(
        pd.DataFrame(
            {
                "kind": np.repeat(["pattern", "control"], 12),
                "position": np.tile(np.arange(1, 13), 2),
                "loss": RNG.random(24),
                "gain": RNG.normal(size=24),
            }
        )
    ),
    "induction_kernels": lambda: figures.induction_kernels({"Pattern 1": R, "Control 1": R.T}),
    "stationary_variance": lambda: figures.stationary_variance(
        [(THREE / 10, 1 + THREE / 10, THREE / 100)] * 2,
        (AXIS + 2, AXIS + 2),
        (THREE, 1 / THREE, THREE / 1000),
        {"with": (THREE, 1 / THREE), "without": (THREE, 2 / THREE)},
        0.03,
    ),
    "closed_forms": lambda: figures.closed_forms(
        (THREE, 1.1 * THREE, 0.9 * THREE, THREE / 10), (R, R + 0.01)
    ),
    "three_errata": lambda: figures.three_errata(
        (THREE, 1 / THREE, THREE / 1000),
        (THREE, {"one": 1 / THREE, "two": THREE}, THREE, {"a": 1 / THREE, "b": THREE}, 4.0),
        (THREE, 1 - 1 / (1 + THREE), THREE / 1000, THREE, 1 - 1 / (1 + THREE)),
    ),
    "chain_gallery": lambda: figures.chain_gallery(
        {name: (RNG.uniform(0.2, 2, (3, 20)), RNG.random((3, 5))) for name in "ab"},
        "loss",
        0.3,
        thin=5,
    ),
    "llc_in_parts": lambda: figures.llc_in_parts(
        {name: (np.linspace(0, 1, 5), np.linspace(0, 1, 5) ** 3) for name in "ab"},
        ["0", "1", "2"],
        dict.fromkeys("ab", (THREE / 21, THREE / 21, THREE / 210)),
    ),
    "known_answers": lambda: figures.known_answers(
        ["one", "two", "three"], 1 + THREE / 100, THREE / 200, 1 - THREE / 100, THREE / 4
    ),
    "approach": lambda: figures.approach(
        {name: (THREE, THREE / 20, np.full(3, np.nan)) for name in "ab"},
        {"b": (4.0, 0.2, 0.05)},
        "kappa",
    ),
    "when_to_believe": lambda: figures.when_to_believe(
        {
            knob: (
                {"exact": (THREE, THREE), "limit": (THREE, THREE / 2)},
                (THREE, THREE, THREE / 10),
                {"too small": (0, 2.0), "too large": (8.0, np.inf)},
            )
            for knob in ("x", "y", "z")
        },
        3.0,
    ),
    "sweeps": lambda: figures.sweeps(
        {
            "step": (THREE, THREE, THREE / 10, 10 * THREE, ["good", "bad", "good"]),
            "leash": (THREE, THREE, THREE / 10, 10 * THREE, ["good", "good", "worse"]),
        },
        {"step": 4.0, "leash": 4.0},
        ("good", "bad", "worse"),
    ),
    "group_shares": lambda: figures.group_shares(
        list("abc"),
        THREE / 21,
        {"one": (THREE / 21, THREE / 210), "two": (THREE / 30, THREE / 99)},
        "class",
    ),
    "embeddings": lambda: figures.embeddings({"K": PLANE, "R": PLANE[::-1]}, CLASSES == 1),
    "gibbs_levels": lambda: figures.gibbs_levels(
        {
            name: {
                beta: (THREE, 1 / THREE, THREE / 100, THREE, 1 / THREE, limit)
                for beta, limit in (("β = 1", 0.1), ("β = 2", -0.2))
            }
            for name in ("regular", "square")
        }
    ),
    "one_data_set": lambda: figures.one_data_set(
        {name: {"n = 1": RNG.gamma(2, size=90), "n = 9": RNG.gamma(2, size=90)} for name in "ab"},
        {"a": 0.5, "b": 0.7},
        dict.fromkeys("abc", (THREE, 1 / THREE, THREE, 1 / THREE)),
        [("slope −1/2", -0.5), ("slope −2", -2.0)],
    ),
    "waic_picture": lambda: figures.waic_picture(
        {name: (RNG.normal(size=50), RNG.gamma(1, size=50), 1.0) for name in "ab"},
        dict.fromkeys("abc", (THREE, THREE ** (-2))),
        ("slope −2", -2.0),
    ),
    "expansion_errors": lambda: figures.expansion_errors(
        THREE,
        {"a": {"first": np.outer([1, 2], 1 / THREE)}, "b": {"second": np.outer([1, 3], 1 / THREE)}},
        {"a": {"chain": (THREE, 2 / THREE)}, "b": {}},
    ),
    "singular_influence": lambda: figures.singular_influence(
        np.array([3.0, -1e-3, 0.0]),
        THREE,
        {"one": THREE, "two": 1 / THREE},
        {"one": (THREE, THREE / 16), "kernel": (THREE[:2], THREE[:2] / 4)},
        4.0,
    ),
    "retraining_scatter": lambda: figures.retraining_scatter(
        CHANGES["easy"], {"a": (CHANGES["hard"], "note"), "b": (CHANGES["friend"], "other")}
    ),
    "kernel_and_gradients": lambda: figures.kernel_and_gradients(
        RNG.uniform(-1, 1, 30),
        RNG.uniform(-1, 1, 30),
        np.arange(30) < 10,
        {"a": RNG.lognormal(size=9), "b": RNG.lognormal(size=9)},
        {"a": (np.arange(1, 6), np.linspace(0.3, 0.9, 5))},
        0.1,
    ),
    "chain_losses": lambda: figures.chain_losses(
        {name: RNG.uniform(0.5, 5, (3, 20)) for name in "ab"}, 0.4, np.log(1000)
    ),
    "reliability_curves": lambda: figures.reliability_curves(
        {"a": (THREE, THREE / 2, THREE / 20), "b": (THREE, THREE / 4, -THREE / 50)},
        {"a": THREE / 21},
    ),
    "localization_sweep": lambda: figures.localization_sweep(
        THREE,
        {
            "loss": {"chain": 1 / THREE},
            "similarity": {"kernel": np.stack([THREE, THREE - 1, THREE + 1]), "other": THREE},
        },
        {"loss": ("guessing", 2.0)},
        mark=4.0,
        log=["loss"],
    ),
    "permutation_picture": lambda: figures.permutation_picture(
        CHANGES["easy"], {"kernel": 4.0, "gradients": 3.9}, "x"
    ),
    "interval_panels": lambda: figures.interval_panels(
        {
            "x": {"kernel": Interval(0.2, 0.1, 0.3), "features": Interval(0.5, 0.4, 0.7)},
            "y": {"kernel": Interval(1.0, np.nan, np.nan), "features": Interval(2.0, 1.5, 2.5)},
        },
        {"x": {"kernel": 0.0, "features": 0.01}, "y": {"kernel": 0.9, "features": 0.8}},
    ),
    "odd_scores": lambda: figures.odd_scores(ODD),
    "odd_sweep": lambda: figures.odd_sweep(ODD_SWEEP),
    "relabelling_curves": lambda: figures.relabelling_curves(
        GAINED, 0.1, ["gain", "loss"], {"gain": "loss gain"}
    ),
    "planted_matrices": lambda: figures.planted_matrices(
        {"kernel": np.eye(6) + 0.1, "features": np.full((6, 6), 0.5)}, np.array([0, 0, 1, 1, 1, 2])
    ),
}


def test_every_figure_is_drawn_here():
    assert set(FIGURES) == set(figures.__all__)


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_returned_and_not_left_with_pyplot(name, tmp_path):
    assert_drawn(FIGURES[name], tmp_path)


def test_diverged_runs_leave_through_the_top_and_verdicts_fill_their_bars():
    one, two = FIGURES["sampler_map"]().axes
    assert [ax.get_title() for ax in (one, two)] == ["one", "two"]
    assert one.lines[0].get_ydata()[2] == one.get_ylim()[1]
    np.testing.assert_array_equal(two.lines[0].get_ydata(), BY_STEP.error[3:])
    shares = BY_STEP[["good", "wide", "wrong"]].to_numpy()
    for ax, own in ((one, shares[:3]), (two, shares[3:])):
        bars = [patch for patch in ax.patches if patch.get_y() == pytest.approx(0.055 - 0.075 / 2)]
        assert len(bars) == (own > 0).sum()
        width = sum(np.log(bar.get_x() + bar.get_width()) - np.log(bar.get_x()) for bar in bars)
        assert width == pytest.approx(3 * 0.84 * np.log(4))  # whole bars, one a step
    half = next(bar for bar in bars if bar.get_hatch() == "xx")
    # On a log axis, half of a bar of 0.1 (step) begins at the step itself.
    assert half.get_x() == pytest.approx(0.1)


def test_a_bar_is_the_best_of_the_settings_that_are_right():
    ax = FIGURES["efficiency"]().axes[0]
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], [16, 4])
    assert [text.get_text().strip() for text in ax.texts] == ["at 1.6", "at 0.4"]
    off = figures.efficiency(BY_STEP.assign(error=0.5)).axes[0]
    assert not off.patches
    assert {text.get_text().strip() for text in off.texts} == {"right at no step"}


def test_a_setting_without_an_llc_has_no_point():
    ax = FIGURES["ranks_and_errors"]().axes[0]
    assert [c.get_label() for c in ax.containers] == ["one"]


def test_a_sampler_looks_the_same_in_every_panel():
    both = RANKS.assign(error=0.1)
    fig = figures.ranks_and_errors(
        {"words": (both, 0.9), "few": (both[both.sampler == "two"], 0.9)}
    )
    words, few = ({c.get_label(): c.lines[0].get_color() for c in ax.containers} for ax in fig.axes)
    assert set(few) == {"two"}
    assert few["two"] == words["two"] != words["one"]
    [legend] = fig.legends
    assert {text.get_text() for text in legend.get_texts()} >= {"one", "two"}


def test_the_cloud_is_drawn_whole_and_as_sixty_lines():
    fig = FIGURES["probe_picture"]()
    plane, weights, easy, hard = fig.axes
    fan = [line for line in plane.lines if line.get_color() == "0.45"]
    assert len(fan) == 60
    assert {text.get_text() for text in plane.texts} == set(NAMED)
    assert max(len(c.get_offsets()) for c in weights.collections) == 70
    for ax, said in ((easy, "loss gain 0.01 nats"), (hard, "loss gain 0.5 nats")):
        assert said in ax.texts[0].get_text()
        assert ax.patches[0].get_data().values.sum() <= 1


def test_the_kernel_is_written_into_its_picture():
    left, right, heat = FIGURES["kernel_picture"]().axes
    assert left.get_title() == "hard and easy: R = +0.90"
    assert right.get_title() == "hard and friend: R = +0.10"
    np.testing.assert_array_equal(left.collections[0].get_offsets()[:, 0], CHANGES["hard"])
    written = [float(text.get_text().replace("\N{MINUS SIGN}", "-")) for text in heat.texts]
    np.testing.assert_array_equal(written, R.ravel())
    np.testing.assert_array_equal(heat.images[0].get_array(), R)


def test_maps_show_every_sample_once_a_panel():
    fig = FIGURES["data_maps"]()
    for ax in fig.axes[:2]:
        coloured = [c for c in ax.collections if c.get_array() is not None]
        assert sum(len(c.get_offsets()) for c in coloured) == 12


def test_bars_are_two_standard_errors():
    right = FIGURES["stationary_variance"]().axes[1]
    (segments,) = [c.get_segments() for c in right.containers[0].lines[2]]
    heights = [bar[1, 1] - bar[0, 1] for bar in segments]
    np.testing.assert_allclose(heights, 4 * THREE / 1000)


def test_closed_forms_are_ratios_to_the_exact_values():
    left, right = FIGURES["closed_forms"]().axes
    shown = {line.get_label(): line.get_ydata() for line in left.lines}
    np.testing.assert_allclose(shown["measured / Eq. 1"], 0.9 / 1.1)
    np.testing.assert_allclose(left.containers[0].lines[0].get_ydata(), 0.9)
    offsets = right.collections[0].get_offsets()
    np.testing.assert_allclose(offsets, np.c_[R.ravel(), R.ravel() + 0.01])


def test_errata_name_what_is_printed():
    one, two, six = FIGURES["three_errata"]().axes
    labels = [text.get_text() for ax in (one, two, six) for text in ax.get_legend().get_texts()]
    assert r"printed: $\gamma$" in labels
    assert {"one", "two", "a", "b"} <= set(labels)
    assert "printed: unbiased" in labels


def test_the_gallery_counts_in_steps():
    fig = FIGURES["chain_gallery"]()
    assert [ax.get_title(loc="left") for ax in fig.axes[::2]] == ["a", "b"]
    chains = fig.axes[0].lines[:3]
    np.testing.assert_array_equal(chains[0].get_xdata(), 5 * np.arange(1, 21))
    np.testing.assert_array_equal(fig.axes[1].lines[0].get_xdata(), 5 * np.arange(5))


def test_sweeps_mark_each_verdict():
    fig = FIGURES["sweeps"]()
    top = fig.axes[0]
    at = {c.get_label(): list(c.lines[0].get_xdata()) for c in top.containers}
    assert at == {"good": [1.0, 16.0], "bad": [4.0], "worse": []}
    assert [ax.get_xlabel() for ax in fig.axes[2:]] == ["step", "leash"]


def test_class_shares_are_relative_to_their_samples():
    right = FIGURES["llc_in_parts"]().axes[1]
    assert [c.get_label() for c in right.containers] == ["a", "b"]
    np.testing.assert_allclose(right.containers[0].lines[0].get_ydata(), 1)
    (segments,) = [c.get_segments() for c in right.containers[0].lines[2]]
    np.testing.assert_allclose([s[1, 1] - s[0, 1] for s in segments], 0.4)


def test_known_answers_read_from_the_top():
    near, far = FIGURES["known_answers"]().axes
    assert [t.get_text() for t in near.get_yticklabels()] == ["one", "two", "three"]
    x, y = near.containers[0].lines[0].get_data()
    np.testing.assert_allclose(x, 1 + THREE / 100)
    np.testing.assert_array_equal(y, [2, 1, 0])
    limit = next(line for line in far.lines if line.get_marker() == "x")
    np.testing.assert_allclose(limit.get_xdata(), THREE / 4)


def test_regions_of_disbelief_are_named_and_end_with_the_axis():
    fig = FIGURES["when_to_believe"]()
    for ax in fig.axes[:3]:
        assert [t.get_text() for t in ax.texts] == ["too small", "too large"]
        low, high = (patch.get_extents().width for patch in ax.patches)
        assert low > 0 < high
        assert ax.get_xlim() == pytest.approx((1 / 1.15, 16 * 1.15))


def test_shares_stand_over_the_size_of_their_group():
    (ax,) = FIGURES["group_shares"]().axes
    bars = next(c for c in ax.containers if c.get_label() == "samples")
    np.testing.assert_allclose([bar.get_height() for bar in bars], THREE / 21)
    points = {c.get_label(): c for c in ax.containers if c is not bars}
    np.testing.assert_allclose(points["one"].lines[0].get_ydata(), THREE / 21)
    (segments,) = [c.get_segments() for c in points["one"].lines[2]]
    np.testing.assert_allclose([s[1, 1] - s[0, 1] for s in segments], 4 * THREE / 210)
    assert [text.get_text() for text in ax.get_xticklabels()] == list("abc")


def test_gibbs_levels_are_drawn_where_eq_12_puts_them():
    fig = FIGURES["gibbs_levels"]()
    for ax, title in zip(fig.axes, ("regular", "square"), strict=True):
        assert ax.get_title() == title
        dashed = [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == "--"]
        assert dashed == [0.1, -0.2]


def test_guides_start_at_the_first_point():
    fig = FIGURES["one_data_set"]()
    lines = {line.get_label(): line.get_ydata() for line in fig.axes[-1].lines}
    np.testing.assert_allclose(lines["slope −1/2"], THREE**-0.5)
    np.testing.assert_allclose(lines["slope −2"], THREE**-2)
    nu = [ax.lines[0].get_xdata()[0] for ax in fig.axes[:2]]
    assert nu == [0.5, 0.7]


def test_the_sum_of_waic_and_loss_is_a_line():
    left, _, right = FIGURES["waic_picture"]().axes
    line = next(line for line in left.lines if "lambda" in line.get_label())
    np.testing.assert_allclose(line.get_xdata() + line.get_ydata(), 1.0)
    bias = {line.get_label(): line.get_ydata() for line in right.lines}
    np.testing.assert_allclose(bias["slope −2"], THREE**-2)


def test_expansions_are_medians_with_their_range():
    left, right = FIGURES["expansion_errors"]().axes
    assert [left.get_title(), right.get_title()] == ["a", "b"]
    shown = {line.get_label(): line.get_ydata() for line in (*left.lines, *right.lines)}
    np.testing.assert_allclose(shown["first"], 1.5 / THREE)
    np.testing.assert_allclose(shown["second"], 2 / THREE)
    np.testing.assert_allclose(shown["chain"], 2 / THREE)


def test_negative_eigenvalues_are_told_apart():
    left = FIGURES["singular_influence"]().axes[0]
    shown = {line.get_label(): list(line.get_ydata()) for line in left.lines}
    assert shown == {"positive": [3.0], "negative": [1e-3], "zero": [1e-5]}


def test_predictions_share_their_truth():
    fig = FIGURES["retraining_scatter"]()
    for ax, name, note in zip(fig.axes, ("hard", "friend"), ("note", "other"), strict=True):
        drawn = np.asarray(ax.collections[0].get_offsets())
        np.testing.assert_array_equal(drawn, np.c_[CHANGES[name], CHANGES["easy"]])
        assert ax.texts[0].get_text() == note


def test_pairs_are_told_apart_by_class():
    left, middle, _ = FIGURES["kernel_and_gradients"]().axes
    assert [len(c.get_offsets()) for c in left.collections] == [20, 10]
    for line in middle.lines:
        assert np.median(line.get_xdata()) == pytest.approx(1)


def test_chains_end_beside_their_names():
    (ax,) = FIGURES["chain_losses"]().axes
    assert {text.get_text() for text in ax.texts} == {"a", "b", "guessing", "$L(w^*)$"}
    levels = {line.get_linestyle(): line.get_ydata()[0] for line in ax.lines[-2:]}
    assert levels == {"--": 0.4, ":": pytest.approx(np.log(1000))}
    rows = np.array([[1.0, 2.0], [3.0, 4.0]])
    steps = {"a": np.array([10, 20])}
    (ax,) = figures.chain_losses({"a": rows}, 0.4, 7.0, steps).axes
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), steps["a"])
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [2, 3])
    assert ax.get_xlabel() == "step"


def test_names_that_would_touch_are_moved_apart():
    at = loss_kernel._spread(np.array([0.52, 0.1, 0.5, 0.51]), 0.1)
    np.testing.assert_allclose(at, [0.61, 0.1, 0.41, 0.51])


def test_reliability_is_drawn_against_both_counts():
    left, right = FIGURES["reliability_curves"]().axes
    np.testing.assert_array_equal(left.lines[0].get_xdata(), THREE)
    np.testing.assert_array_equal(right.lines[0].get_xdata(), THREE / 2)
    np.testing.assert_array_equal(right.lines[1].get_ydata(), THREE / 21)
    assert left.get_ylim()[0] < -16 / 50  # a negative reliability is seen


def test_the_sweep_marks_the_levels_and_the_papers_value():
    loss, similarity = FIGURES["localization_sweep"]().axes
    assert [text.get_text() for text in loss.texts] == [
        r"the paper's $\gamma$",
        "chain",
        "guessing",
    ]
    assert [text.get_text() for text in similarity.texts] == ["kernel", "other"]
    assert [loss.get_yscale(), similarity.get_yscale()] == ["log", "linear"]
    band = similarity.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (0, 17)
    colors = {line.get_color() for ax in (loss, similarity) for line in ax.lines[:1]}
    assert len(colors) == 2  # a colour is one series in every panel


def test_mislabeled_samples_are_drawn_last_in_every_embedding():
    axes = FIGURES["embeddings"]().axes
    assert [ax.get_title() for ax in axes] == ["K", "R"]
    for ax, xy in zip(axes, (PLANE, PLANE[::-1]), strict=True):
        np.testing.assert_array_equal(ax.collections[-1].get_offsets(), xy[CLASSES == 1])


def test_permutations_are_shares_and_the_observed_are_named():
    (ax,) = FIGURES["permutation_picture"]().axes
    assert ax.patches[0].get_data().values.sum() == pytest.approx(1)
    assert [line.get_xdata()[0] for line in ax.lines] == [4.0, 3.9]
    assert [text.get_text() for text in ax.texts] == ["kernel: 4.00", "gradients: 3.90"]
    kernel, gradients = (line.get_ydata()[1] for line in ax.lines)
    assert kernel > gradients > ax.patches[0].get_data().values.max()  # neither crosses a name


def test_intervals_stand_where_they_are():
    one, other = FIGURES["interval_panels"]().axes
    spans = [line.get_xdata() for line in one.lines if len(line.get_xdata()) == 2]
    np.testing.assert_allclose(spans, [[0.1, 0.3], [0.4, 0.7]])
    assert [label.get_text() for label in one.get_yticklabels()] == ["kernel", "features"]
    # Two points and two marks of chance a panel, and no interval where there is none.
    assert [len(line.get_xdata()) for line in other.lines].count(2) == 1


def test_only_what_was_reached_is_marked():
    left, right, _ = FIGURES["memorization_curves"]().axes
    assert [text.get_text().strip() for text in left.texts] == ["half"]
    upright = [line for line in right.lines if list(line.get_xdata()) == [4.0, 4.0]]
    assert len(upright) == 1
    mean = next(line for line in right.lines if line.get_label() == "gain")
    np.testing.assert_allclose(mean.get_ydata(), [0.5, 0.7, 0.8])


def test_refused_checkpoints_are_open_and_errors_that_are_not_known_have_no_bar():
    left, right = FIGURES["gains_in_training"]().axes
    looks = {c.get_label(): c for c in left.containers}
    assert set(looks) == {"a", "a, do not trust", "b"}
    refused = looks["a, do not trust"].lines[0]
    assert refused.get_markerfacecolor() == "white"
    assert list(refused.get_xdata()) == [1]
    (bars,) = [c.get_segments() for c in looks["a"].lines[2]]
    np.testing.assert_allclose([b[1, 1] - b[0, 1] for b in bars], [0, 2 * 1.96 * 0.2])
    (bars,) = [c.get_segments() for c in right.containers[0].lines[2]]
    np.testing.assert_allclose([b[1, 1] - b[0, 1] for b in bars], 2 * 1.96 * THREE / 20)


def test_known_times_cross_every_panel_of_the_stages():
    fig = FIGURES["stage_picture"]()
    for ax in fig.axes:
        assert any(list(line.get_xdata()) == [0.5, 0.5] for line in ax.lines)
    levels = [line.get_ydata()[0] for line in fig.axes[1].lines if line.get_linestyle() == ":"]
    assert levels == [1.0, 2.0]


def test_kernels_without_a_reliability_have_no_number():
    heat, right = FIGURES["phase_picture"]().axes
    written = {text.get_text() for text in heat.texts}
    assert "1.00" in written
    assert ".10" in written
    assert len(heat.texts) == 7  # of nine, the two below zero are not known
    assert [c.get_label() for c in right.containers] == ["a", "b"]


def test_mechanisms_are_parted():
    fig = FIGURES["planted_matrices"]()
    assert len(fig.axes) == 2
    for ax in fig.axes:
        assert sorted({float(line.get_xdata()[0]) for line in ax.lines}) == [0.0, 1.5, 4.5]


def test_scores_of_odd_inputs_stand_where_they_are():
    fig = FIGURES["odd_scores"]()
    one, other = fig.axes
    assert one.get_title() == "trained: MNIST\nshown: Fashion-MNIST"
    assert other.get_title() == "trained: MNIST\nshown: rendered letters"
    names = [label.get_text() for label in one.get_yticklabels()]
    assert names == ["loss gain", "posterior mean loss", "energy"]
    points = {
        float(line.get_ydata()[0]): float(line.get_xdata()[0])
        for line in one.lines
        if line.get_marker() in "Do"
    }
    assert points == pytest.approx({2.0: 0.6, 1.0: 0.7, 0.0: 0.8})
    probe, rival = ([line.get_color() for line in one.lines if line.get_marker() == mark]
                    for mark in "Do")  # fmt: skip
    assert len(probe) == 2
    assert {*probe}.isdisjoint(rival)
    # An interval that is not known is not drawn.
    fpr = figures.odd_scores(ODD, "fpr").axes[0]
    spans = [line.get_xdata() for line in fpr.lines if line.get_linestyle() == "-"]
    assert [list(span) for span in spans if len(span) == 2] == [[0.2, 0.8]]
    assert fpr.get_xlabel() == "FPR at 95 % TPR"


def test_what_cannot_be_trusted_is_hollow_in_the_sweep_of_odd_inputs():
    ax = FIGURES["odd_sweep"]().axes[0]
    hollow = [
        line for line in ax.lines if line.get_markerfacecolor() == "white" and len(line.get_xdata())
    ]
    assert [line.get_xdata().tolist() for line in hollow] == [[1.0]] * 5
    assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"] == [4.0]


def test_the_loop_is_drawn_from_no_inspection_on_and_ranked():
    curves, gains = FIGURES["relabelling_curves"]().axes
    named = {line.get_label(): line for line in curves.lines}
    assert {"loss gain", "loss", "random", "ideal"} <= set(named)
    assert "margin" not in named  # grey
    np.testing.assert_allclose(named["loss gain"].get_xdata(), [0, 5, 10])
    np.testing.assert_allclose(named["loss"].get_ydata(), [80, 80.5, 81])
    names = [label.get_text() for label in gains.get_yticklabels()]
    assert names == ["loss gain", "loss", "margin", "ideal"]
    at = [line.get_xdata()[0] for line in gains.lines if line.get_marker() in "Do"]
    assert at == [-2, -1, 1, 2]
    with pytest.raises(ValueError, match=r"highlight is .'luck'."):
        figures.relabelling_curves(GAINED, 0.1, ["luck"])
    with pytest.raises(ValueError, match=r"share is 0\.3"):
        figures.relabelling_curves(GAINED, 0.3, ["gain"])


def test_every_score_has_a_marker_a_stage_in_its_own_panel():
    one, two = FIGURES["scores_by_stage"]().axes
    for ax, title, name in ((one, "one", "the loss"), (two, "two", "the margin")):
        markers = {
            (line.get_marker(), float(line.get_xdata()[0]))
            for line in ax.lines
            if len(line.get_xdata()) == 1
        }
        assert markers == {("o", 0.9), ("s", 0.8), ("D", 0.6)}
        assert ax.get_title() == title
        assert [label.get_text() for label in ax.get_yticklabels()] == [name]
    legend = [text.get_text() for text in two.get_legend().get_texts()]
    assert legend == ["underfitted", "between", "memorized"]


def test_scores_over_epochs_are_drawn_in_the_order_of_the_epochs():
    [ax] = FIGURES["scores_over_epochs"]().axes
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [1, 10, 100])
    assert len({line.get_linestyle() for line in ax.lines[:2]}) == 2


def test_digits_have_both_labels_and_empty_places_stay_empty():
    axes = FIGURES["suspicious_digits"]().axes
    titles = [ax.get_title() for ax in axes]
    assert titles == ["0, read 1", "1, read 2", "2, read 3", ""]
