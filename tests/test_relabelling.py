"""Closing the loop from suspicion to test accuracy, on toys where the answer is known."""

import numpy as np
import pandas as pd
import pytest
import torch

from probebook.relabelling import (
    IDEAL,
    NOTHING,
    RANDOM,
    LabelProblem,
    accuracy_gained,
    close_the_loop,
    gained_difference,
    gained_numbers,
    inspection_order,
    repaired,
    side_by_side,
)
from probebook.small_networks import initial_network, train_stack

pytestmark = pytest.mark.usefixtures("one_thread")

N, WRONG = 200, 40


def noisy(n=N, wrong=WRONG, seed=0):
    """Two clouds; every label of the first ``wrong`` samples is wrong."""
    rng = np.random.default_rng(seed)
    true = torch.from_numpy(rng.integers(2, size=n + 500))
    x = torch.from_numpy(rng.normal(size=(n + 500, 5))).float() + 1.2 * (2 * true[:, None] - 1)
    given = true[:n].clone()
    given[:wrong] = 1 - given[:wrong]
    return LabelProblem(x[:n], given, true[:n], (x[n:], true[n:]))


def share_right(inputs, labels, keep, test, of=None):
    """A training function without training: the share of kept labels that are right."""
    right = (labels == of) & keep
    return (right.sum(1) / keep.sum(1)).numpy()


@pytest.fixture
def problem():
    return noisy()


@pytest.fixture
def counted(problem):
    """:func:`share_right` of the toy, and the labels that it was asked to train."""
    asked = []

    def train(inputs, labels, keep, test):
        assert keep.all() or (keep | (labels != problem.true)).all()  # no right label is left out
        asked.extend(labels)
        return share_right(inputs, labels, keep, test, problem.true)

    return train, asked


# -- stacks with labels of their own --------------------------------------------------------------


def test_networks_with_labels_of_their_own_are_those_trained_alone():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(60, 6, generator=rng)
    labels = torch.randint(3, (4, 60), generator=rng)
    keep = torch.rand(4, 60, generator=rng) < 0.8
    start = [initial_network((7,), 6, 3, seed) for seed in range(4)]
    stack = train_stack(start, (x, labels), keep, epochs=5, batch_size=20)
    for at in range(4):
        alone = train_stack(
            [start[at]], (x, labels[at]), keep[at : at + 1], epochs=5, batch_size=20
        )
        torch.testing.assert_close(stack(x)[at], alone(x)[0], rtol=1e-4, atol=1e-5)
    alike = train_stack(start, (x, labels[:1].expand(4, -1)), keep, epochs=2)
    shared = train_stack(start, (x, labels[0]), keep, epochs=2)
    torch.testing.assert_close(alike(x), shared(x), rtol=0, atol=0)


def test_labels_of_another_shape_are_refused():
    start = [initial_network((2,), 3, 2, 0)] * 2
    x, keep = torch.zeros(5, 3), torch.ones(2, 5, dtype=torch.bool)
    for shape in ((4,), (3, 5), (5, 2), (1, 5)):
        with pytest.raises(ValueError, match="data has labels of shape"):
            train_stack(start, (x, torch.zeros(shape, dtype=torch.long)), keep)


# -- what is inspected, and what becomes of it ----------------------------------------------------


def test_order_falls_and_ties_are_the_seeds():
    order = inspection_order(np.array([0, 5, 1, np.inf, -np.inf]))
    assert order.tolist() == [3, 1, 2, 0, 4]
    flat = np.zeros(50)
    one, again, other = (inspection_order(flat, seed) for seed in (0, 0, 1))
    assert sorted(one) == list(range(50))
    assert one.tolist() == again.tolist()
    assert one.tolist() != other.tolist()
    assert one.tolist() != list(range(50))  # the place in the data says nothing


def test_only_wrong_labels_that_are_seen_change(problem):
    seen = np.array([0, 1, 100])  # two wrong ones and a right one
    labels, keep = repaired(problem, seen)
    assert keep.all()
    changed = np.flatnonzero(labels != problem.given.numpy())
    assert changed.tolist() == [0, 1]
    assert (labels[:2] == problem.true[:2].numpy()).all()
    labels, keep = repaired(problem, seen, "drop")
    np.testing.assert_array_equal(labels, problem.given)
    assert np.flatnonzero(~keep).tolist() == [0, 1]
    labels, keep = repaired(problem, np.arange(0))
    np.testing.assert_array_equal(labels, problem.given)
    assert keep.all()
    with pytest.raises(ValueError, match="fix must be one of relabel, drop"):
        repaired(problem, seen, "burn")


# -- the loop -------------------------------------------------------------------------------------


def test_all_wrong_ones_relabelled_is_clean_training(problem):
    train = side_by_side(hidden=8, classes=2, epochs=5)
    perfect = problem.wrong + 0.0
    table = close_the_loop(problem, {"perfect": perfect}, shares=(0.2, 0.5, 1.0), train=train)
    table = table.set_index(["score", "share"])
    every = torch.ones(1, N, dtype=torch.bool)
    clean, dirty = (
        float(train(problem.inputs, labels[None], every, problem.test)[0])
        for labels in (problem.true, problem.given)
    )
    assert clean > dirty
    for share in (0.2, 0.5, 1.0):  # 40 of 200 are wrong
        assert table.accuracy["perfect", share] == pytest.approx(clean, abs=0.004)
        assert table.accuracy[IDEAL, share] == table.accuracy["perfect", share]
        assert table.found["perfect", share] == WRONG
    assert table.accuracy[RANDOM, 1.0] == table.accuracy[IDEAL, 1.0]
    assert table.accuracy[NOTHING, 0.0] == pytest.approx(dirty, abs=0.004)
    assert table.inspected[NOTHING, 0.0] == 0


def test_inspecting_right_labels_changes_nothing(problem):
    train = side_by_side(hidden=8, classes=2, epochs=2)
    for fix in ("relabel", "drop"):
        table = close_the_loop(
            problem, {"backwards": -problem.wrong.astype(float)}, shares=(0.1, 0.8), train=train,
            fix=fix,
        ).set_index(["score", "share"])  # fmt: skip
        for share in (0.1, 0.8):
            assert table.found["backwards", share] == 0
            assert table.accuracy["backwards", share] == table.accuracy[NOTHING, 0.0]


def test_accuracy_is_counted_by_hand(problem, counted):
    train, _ = counted
    score = np.arange(N, 0, -1.0)  # the first 40 are the wrong ones
    for fix, after in (("relabel", (N - 30) / N), ("drop", (N - 40) / (N - 10))):
        table = close_the_loop(
            problem, {"first": score}, shares=(0.05, 0.2), train=train, fix=fix
        ).set_index(["score", "share"])
        assert table.accuracy[NOTHING, 0.0] == pytest.approx(0.8)
        assert table.accuracy["first", 0.05] == pytest.approx(after)
        assert table.accuracy["first", 0.2] == pytest.approx(1)
        assert table.inspected["first", 0.05] == 10


def test_random_inspection_is_chance(problem, counted):
    train, _ = counted
    table = close_the_loop(problem, {}, shares=(0.1, 0.5), train=train, chances=400)
    table = table.set_index(["score", "share"])
    for share in (0.1, 0.5):
        k = share * N
        assert table.found[RANDOM, share] == pytest.approx(0.2 * k, rel=0.05)
        assert table.accuracy[RANDOM, share] == pytest.approx(0.8 + 0.2 * share, abs=0.005)


def test_equal_labels_are_trained_once(problem, counted):
    train, asked = counted
    perfect = problem.wrong.astype(float)
    scores = {"one": perfect, "two": 2 * perfect}
    table = close_the_loop(problem, scores, shares=(0.2, 0.4), train=train, chances=1)
    # Nothing, all wrong ones found (six cells), and chance at two shares.
    assert len(asked) == 4
    assert sum(torch.equal(labels, problem.true) for labels in asked) == 1
    assert sum(torch.equal(labels, problem.given) for labels in asked) == 1
    assert len(table) == 1 + 4 * 2


def test_loop_is_decided_by_its_seed_and_paired(problem):
    rng = np.random.default_rng(0)
    scores = {"noise": rng.random(N), "noise again": rng.random(N)}
    scores["the same"] = scores["noise"] * 3
    make = lambda seed: close_the_loop(  # noqa: E731
        problem, scores, shares=(0.1,), seed=seed, chances=2,
        train=side_by_side(hidden=4, classes=2, epochs=1, seed=seed),
    )  # fmt: skip
    one, again, other = make(0), make(0), make(1)
    pd.testing.assert_frame_equal(one, again)
    assert not one.accuracy.equals(other.accuracy)
    by_name = one.set_index("score").accuracy
    assert by_name["the same"] == by_name["noise"]
    assert one.attrs == {"wrong": WRONG, "samples": N, "fix": "relabel"}


def test_accuracy_is_the_mean_over_initial_weights(problem):
    labels = torch.stack([problem.given, problem.true])
    keep = torch.ones(2, N, dtype=torch.bool)
    few = side_by_side(hidden=4, classes=2, epochs=1, networks=3, together=2)
    found = few(problem.inputs, labels, keep, problem.test)
    seeds = np.random.SeedSequence(0).generate_state(3)
    start = [initial_network((4,), 5, 2, int(seed)) for seed in seeds]
    for row in range(2):
        alone = [train_stack([net], (problem.inputs, labels[row]), keep[:1], epochs=1)
                 for net in start]  # fmt: skip
        x, y = problem.test
        right = [float((stack(x)[0].argmax(-1) == y).float().mean()) for stack in alone]
        assert found[row] == pytest.approx(np.mean(right), abs=0.003)


# -- over seeds -----------------------------------------------------------------------------------


def table_of(none, random, mine):
    """A run with the given accuracies; 50 of 500 samples are inspected."""
    return pd.DataFrame(
        {
            "score": [NOTHING, "mine", RANDOM, IDEAL],
            "share": [0.0, 0.1, 0.1, 0.1],
            "inspected": [0, 50, 50, 50],
            "found": [0.0, 30.0, 5.0, 50.0],
            "accuracy": [none, mine, random, 0.95],
        }
    )


def test_gains_by_hand():
    runs = [table_of(0.80, 0.81, 0.84), table_of(0.82, 0.82, 0.88)]
    table = accuracy_gained(runs).set_index("score")
    mine = table.loc["mine"]
    # 4 and 6 points for 50 labels; over chance 3 and 6.
    assert mine.gained == pytest.approx(10)
    assert mine.over_random == pytest.approx(9)
    # 8 and 12 have a standard error of 2; Student's t of one degree of freedom is 12.7.
    assert mine.gained_high - mine.gained == pytest.approx(12.706 * 2, rel=1e-3)
    assert mine.precision == pytest.approx(0.6)
    assert mine.accuracy == pytest.approx(0.86)
    assert table.over_random[RANDOM] == 0
    assert table.gained[NOTHING] == 0
    assert table.precision[RANDOM] == pytest.approx(0.1)
    gap = gained_difference(runs, "mine", IDEAL, 0.1)
    assert gap.value == pytest.approx(100 * (0.86 - 0.95) / 50 * 100)
    numbers = gained_numbers(accuracy_gained(runs), 0.1)
    assert numbers["accuracy_gained_mine"] == pytest.approx(10)
    assert numbers["accuracy_gained_over_random_mine_low"] == mine.over_random_low
    assert numbers["accuracy_gained_test_ideal"] == pytest.approx(0.95)
    assert f"accuracy_gained_{NOTHING}" not in numbers


def test_one_seed_has_no_interval():
    table = accuracy_gained([table_of(0.8, 0.81, 0.84)])
    assert np.isnan(table.set_index("score").gained_low["mine"])
    numbers = gained_numbers(table, 0.1)
    assert "accuracy_gained_mine_low" not in numbers
    assert all(np.isfinite(value) for value in numbers.values())


def test_real_runs_add_up(problem):
    train = side_by_side(hidden=8, classes=2, epochs=3)
    runs = [
        close_the_loop(each, {"perfect": each.wrong + 0.0}, shares=(0.1,), train=train, seed=seed)
        for seed, each in enumerate(noisy(seed=seed) for seed in range(3))
    ]
    table = accuracy_gained(runs).set_index("score")
    assert table.attrs == {"wrong": WRONG, "samples": N, "fix": "relabel", "seeds": 3}
    assert table.precision["perfect"] == 1
    assert table.gained["perfect"] == table.gained[IDEAL]
    assert table.gained["perfect"] > table.gained[RANDOM]
    lift = table.accuracy["perfect"] - table.accuracy[NOTHING]
    assert table.gained["perfect"] == pytest.approx(1e4 * lift / 20)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"scores": {"a": np.full(N, np.nan)}}, "'a', of which the score has .* 200 NaN"),
        ({"scores": {"a": np.zeros(3)}}, r"'a' of shape \(3,\); give \(200,\)"),
        ({"scores": {RANDOM: np.zeros(N)}}, "'random', a name that is taken"),
        ({"shares": ()}, "shares is empty"),
        ({"shares": (0.001,)}, "shares has 0.001, 0.2 of 200 samples"),
        ({"shares": (1.5,)}, "choose from 0.005 to 1"),
        ({"shares": (0.1, 0.101)}, "equally many"),
        ({"fix": "burn"}, "fix must be"),
        ({"chances": 0}, "chances"),
        ({"train": lambda *a: np.full(len(a[1]), np.nan)}, "not finite"),
        ({"train": lambda *a: np.zeros(1)}, "one accuracy per row"),
    ],
)
def test_loops_that_cannot_be_are_refused(problem, counted, change, match):
    settings = {"scores": {}, "train": counted[0]} | change
    with pytest.raises(ValueError, match=match):
        close_the_loop(problem, settings.pop("scores"), **settings)


def test_problems_that_cannot_be_are_refused(problem):
    x, given, true, test = problem.inputs, problem.given, problem.true, problem.test
    for arguments, match in (
        ((x, given[:5], true, test), "given has shape"),
        ((x, given, true.float(), test), "true has shape"),
        ((x, given - 100, true, test), "given has the label -100"),
        ((x, given, true, (test[0], test[1][:3])), "test has 500 inputs and 3 labels"),
        ((x * np.nan, given, true, test), "inputs has inputs that are not finite"),
        ((x, given, true, (test[0] * np.inf, test[1])), "test has inputs that are not finite"),
    ):
        with pytest.raises(ValueError, match=match):
            LabelProblem(*arguments)
    with pytest.raises(TypeError, match="given"):
        LabelProblem(x, given.numpy(), true, test)
    train = side_by_side(hidden=2, classes=2, epochs=1)
    with pytest.raises(ValueError, match="classes is 2, but there is the label 3"):
        close_the_loop(LabelProblem(x, given + 2, true, test), {}, shares=(0.1,), train=train)
    with pytest.raises(ValueError, match="there is no wrong label"):
        close_the_loop(LabelProblem(x, true, true, test), {})


def test_tables_that_differ_are_refused():
    one = table_of(0.8, 0.81, 0.84)
    with pytest.raises(ValueError, match="different scores or shares"):
        accuracy_gained([one, one.assign(share=[0, 0.2, 0.2, 0.2])])
    with pytest.raises(ValueError, match="runs is empty"):
        accuracy_gained([])
    with pytest.raises(ValueError, match=r"share is 0\.3; choose from 0\.1"):
        gained_numbers(accuracy_gained([one]), 0.3)
    with pytest.raises(ValueError, match=r"runs have no 'luck' at share 0\.1"):
        gained_difference([one], "mine", "luck", 0.1)
