"""Word pieces, windows and canaries: nothing lost, nothing shared, nothing that tells on others."""

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probebook.bpe import ALPHABET, BytePairs
from probebook.brown import GENRES, Brown, Document
from probebook.language_data import IGNORED, PREFIX, TextPlan, identity, join, read_brown

ASCII = st.text(alphabet=ALPHABET)


@pytest.fixture(scope="module")
def corpus():
    """Three documents a genre, of words of its own and some that all share."""
    rng = np.random.default_rng(0)
    documents = []
    for place, genre in enumerate(np.repeat(GENRES, 3)):
        words = rng.choice(["the", "of", "a", str(genre), f"no{place}"], 300)
        documents.append(Document(f"c{place:02d}", str(genre), " ".join(words) + ".\n"))
    return Brown(tuple(documents), "a test")


PLAN = TextPlan(vocabulary=140, length=40, windows=3, held_out=3, digits=8, repetitions=(1, 4),
                canaries=5, held_out_canaries=7)  # fmt: skip


@pytest.fixture(scope="module")
def data(corpus):
    return read_brown(corpus, PLAN)


# -- word pieces ------------------------------------------------------------------------------


def test_merges_are_those_done_by_hand():
    # "ab" is there 2 + 3 times, then "abc" 3 times, " abc" and " x" not twice more than these.
    pieces = BytePairs.train(["ab", "abc", "ab", "abc", "abc"], len(ALPHABET) + 2)
    assert pieces.merges == (("a", "b"), ("ab", "c"))
    assert [pieces.pieces[i] for i in pieces.encode("abcab a")] == ["abc", "ab", " ", "a"]


def test_merges_are_those_of_counting_anew_each_time():
    rng = np.random.default_rng(1)
    text = " ".join("".join(rng.choice(list("aab"), rng.integers(1, 7))) for _ in range(60))
    words = [list(w) for w in re.findall(r" ?[a-z]+", text)]
    expected = []
    for _ in range(12):
        counts = {}
        for word in words:
            for pair in pairwise(word):
                counts[pair] = counts.get(pair, 0) + 1
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        expected.append(best)
        for word in words:
            i = 0
            while i + 1 < len(word):
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = ["".join(best)]
                i += 1
    assert BytePairs.train([text], len(ALPHABET) + 12).merges == tuple(expected)


def test_training_ends_where_nothing_occurs_twice():
    assert BytePairs.train(["abc"], 1000).merges == ()


@given(text=ASCII)
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back(text):
    pieces = BytePairs.train(["the cat, the dog. " * 3], 120)
    assert pieces.decode(pieces.encode(text)) == text


def test_a_digit_is_a_token(data):
    assert len(data.tokens.encode("2024")) == 4


@pytest.mark.parametrize("text", ["naïve", "a\tb"])
def test_other_characters_are_named(data, text):
    with pytest.raises(ValueError, match="the text has"):
        data.tokens.encode(text)


def test_a_vocabulary_holds_more_than_the_alphabet():
    with pytest.raises(ValueError, match="size is 96"):
        BytePairs.train(["a"], 96)


# -- windows ----------------------------------------------------------------------------------


def test_windows_are_pieces_of_their_document(corpus, data):
    text = data.train[data.train.repetitions < 0]
    assert len(text) == 15 * 2 * 3
    assert len(data.held_out) == 15 * 3
    for part in (text, data.held_out):
        for row in range(len(part)):
            document = corpus.documents[part.document[row]]
            assert GENRES[part.genre[row]] == document.genre
            said = data.tokens.decode(part.targets[row].tolist())
            assert said == part.texts[row]
            whole = data.tokens.decode([*part.inputs[row].tolist(), part.targets[row, -1].item()])
            assert whole in document.text
        assert torch.equal(part.inputs[:, 1:], part.targets[:, :-1])


def test_windows_do_not_overlap(data):
    one = data.held_out[data.held_out.document == 2]
    rows = {tuple(row) for row in one.inputs.tolist()}
    assert len(rows) == PLAN.windows


def test_held_out_documents_are_not_trained_on(data):
    assert not set(data.held_out.document) & set(data.train.document)
    genres, counts = np.unique(data.held_out.genre, return_counts=True)
    np.testing.assert_array_equal(genres, np.arange(15))
    assert set(counts) == {PLAN.windows}


def test_the_vocabulary_knows_nothing_of_what_is_held_out(data):
    """Document 2 is held out, and has a word of its own."""
    assert not any("no2" in piece for piece in data.tokens.pieces)


# -- canaries ---------------------------------------------------------------------------------


def test_canaries_are_planted_as_often_as_said(data):
    texts, counts = np.unique(data.train.texts, return_counts=True)
    planted = dict(zip(texts, counts, strict=True))
    for text, times in zip(data.canaries.texts, data.canaries.repetitions, strict=True):
        assert planted.get(text, 0) == times
    assert (data.canaries.repetitions == 0).sum() == PLAN.held_out_canaries
    assert len(set(data.canaries.texts)) == len(data.canaries) == 2 * 5 + 7


def test_only_the_digits_of_a_canary_count(data):
    for row, text in enumerate(data.canaries.texts):
        counted = data.canaries.targets[row] != IGNORED
        assert data.tokens.decode(data.canaries.targets[row][counted].tolist()) == text
        whole = data.tokens.decode(data.canaries.inputs[row].tolist())
        assert whole.startswith(f"{PREFIX}{text}.\n")
        # What is read before a digit is all that comes before it.
        at = int(counted.nonzero()[0])
        assert data.tokens.decode(data.canaries.inputs[row, : at + 1].tolist()) == PREFIX


def test_canaries_come_from_the_seed(corpus, data):
    assert read_brown(corpus, PLAN).canaries.texts == data.canaries.texts
    other = read_brown(corpus, TextPlan(**vars(PLAN) | {"seed": 1}))
    assert not set(other.canaries.texts) & set(data.canaries.texts)


def test_digits_of_canaries_are_uniform(corpus):
    """10 counts of 2,000 digits: chi-squared with 9 degrees of freedom, 99.9 % below 27.9."""
    plan = TextPlan(**vars(PLAN) | {"held_out_canaries": 240})
    text = "".join(read_brown(corpus, plan).canaries.texts)
    counts = np.bincount(np.array(list(text), int), minlength=10)
    assert ((counts - len(text) / 10) ** 2 / (len(text) / 10)).sum() < 27.9


# -- rows, identity, refusals ----------------------------------------------------------------


def test_rows_are_chosen_in_all_columns_alike(data):
    mask = data.train.genre == 3
    chosen = data.train[mask]
    assert len(chosen) == mask.sum()
    assert torch.equal(chosen.inputs, data.train.inputs[torch.from_numpy(mask)])
    assert chosen.texts == tuple(t for t, m in zip(data.train.texts, mask, strict=True) if m)
    assert data.train[::-1].texts == data.train.texts[::-1]
    again = join([data.train[:2], data.train[2:]])
    assert identity(again) == identity(data.train)
    with pytest.raises(IndexError, match="rows is 3"):
        data.train[3]


def test_the_identity_is_that_of_inputs_and_targets(data):
    one = data.canaries[:4]
    before = identity(one)
    one.targets[0, -1] = 5
    assert identity(one) != before
    assert identity(data.canaries[:4]) == before  # which has not been written into


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": 1}, "held_out must be at least 2"),
        ({"windows": 0}, "windows must be at least 1"),
        ({"repetitions": ()}, "repetitions must be 1 or more"),
        ({"repetitions": (0, 1)}, "repetitions must be 1 or more"),
        ({"repetitions": (2, 2)}, "repetitions must differ"),
        ({"digits": 2}, "digits is 2, too few"),
        ({"seed": -1}, "seed must be 0 or more"),
    ],
)
def test_plans_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TextPlan(**changes)


def test_what_does_not_fit_a_window_is_named(corpus):
    with pytest.raises(ValueError, match="document c00 has"):
        read_brown(corpus, TextPlan(**vars(PLAN) | {"windows": 50}))
    with pytest.raises(ValueError, match="a canary has"):
        read_brown(corpus, TextPlan(**vars(PLAN) | {"digits": 39}))
