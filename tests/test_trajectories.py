"""Trainings with their checkpoints: the same network as without, from the cache or not."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probebook.training import Recipe, evaluate, prepare_pixels, train
from probebook.trajectories import learned_from, trained_trajectory

TINY = Recipe("tiny", (6,), "unit", "sgd", 0.1, 0.9, 16, 4, "cosine")


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("PROBELIB_CACHE", str(tmp_path))
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (50, 28, 28), generator=generator, dtype=torch.uint8)
    return images, torch.randint(0, 10, (50,), generator=generator)


def files(tmp_path):
    return list((tmp_path / "trajectories").glob("*"))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_checkpoints_are_those_of_a_shorter_and_of_the_whole_training(data):
    images, labels = data
    found = trained_trajectory(TINY, images, labels, epochs=[1, 3, 4], seed=1, progress=False)
    assert list(found.states) == [1, 3, 4]
    whole = train(TINY, images, labels, seed=1, progress=False)
    assert same(found.states[4], whole.model.state_dict())
    assert not same(found.states[3], found.states[4])  # copies, not views of the weights
    for epoch in (1, 4):
        right = evaluate(found.model(epoch), prepare_pixels(images, TINY), labels)[1].numpy()
        np.testing.assert_array_equal(found.correct[epoch - 1], right)
    part = np.arange(50) < 10
    np.testing.assert_allclose(found.accuracy(part), found.correct[:, :10].mean(1))


def test_what_was_kept_comes_back_and_other_questions_do_not_find_it(data, tmp_path):
    images, labels = data
    ask = {"epochs": [2, 4], "seed": 0, "progress": False}
    first = trained_trajectory(TINY, images, labels, **ask)
    [path] = files(tmp_path)
    before = path.stat().st_mtime_ns
    again = trained_trajectory(TINY, images, labels, **ask)
    assert path.stat().st_mtime_ns == before
    assert all(same(first.states[e], again.states[e]) for e in (2, 4))
    np.testing.assert_array_equal(first.correct, again.correct)
    trained_trajectory(TINY, images, labels, **(ask | {"epochs": [1, 4]}))
    trained_trajectory(TINY, images, labels, **(ask | {"seed": 1}))
    trained_trajectory(TINY, images, (labels + 1) % 10, **ask)
    assert len(files(tmp_path)) == 4


def test_a_damaged_file_is_made_again(data, tmp_path, capsys):
    images, labels = data
    ask = {"epochs": [4], "seed": 0, "progress": False}
    first = trained_trajectory(TINY, images, labels, **ask)
    [path] = files(tmp_path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 255
    path.write_bytes(content)
    again = trained_trajectory(TINY, images, labels, **ask)
    assert "checksum" in capsys.readouterr().out
    assert same(first.states[4], again.states[4])


@pytest.mark.parametrize("epochs", [[], [0, 1], [2, 1], [1, 1], [5]])
def test_epochs_that_cannot_be_kept_are_refused(data, epochs):
    with pytest.raises(ValueError, match="epochs"):
        trained_trajectory(TINY, *data, epochs=epochs, seed=0)


def test_learned_is_right_from_then_on_by_hand():
    correct = np.array([[1, 0, 0, 1], [1, 1, 0, 0], [1, 1, 0, 1]], bool)
    # Always right; right from the second epoch; never; forgotten once, so from the third.
    np.testing.assert_array_equal(learned_from(correct), [1, 2, 4, 3])


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=9))
@settings(deadline=None)
def test_a_sample_is_wrong_just_before_it_is_learned(rows):
    correct = np.array(rows, bool)
    for at, epoch in enumerate(learned_from(correct)):
        assert correct[epoch - 1 :, at].all()
        assert epoch == 1 or not correct[epoch - 2, at]
