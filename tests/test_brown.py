"""The Brown corpus from a file and from NLTK, and what is refused."""

import gzip
import hashlib
import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from probebook import brown
from probebook.brown import (
    COUNTS,
    GENRES,
    BrownUnavailable,
    brown_or_stand_in,
    join_words,
    load_brown,
)

SHARED = Path(os.environ.get("PROBELIB_DATA") or "-") / "brown" / brown.FILE
WORDS = [["``", "Twice", "''", ",", "he", "said", "(", "$", "3", ")", "."], ["No", "!", "!"]]
SPACED = '"Twice", he said ($3).\nNo!'


def entries():
    """Five hundred tiny documents of the right genres."""
    genres = [genre for genre, count in COUNTS.items() for _ in range(count)]
    return [{"id": f"c{i:03d}", "genre": g, "text": SPACED} for i, g in enumerate(genres)]


def write(path, content):
    packed = gzip.compress("\n".join(map(json.dumps, content)).encode(), mtime=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed)
    return hashlib.sha256(packed).hexdigest()


@pytest.fixture
def no_nltk(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    monkeypatch.delenv("PROBELIB_DATA", raising=False)


def install_nltk(monkeypatch, corpus):
    """A stand-in with the three calls of NLTK's reader that are used."""
    package, module = ModuleType("nltk"), ModuleType("nltk.corpus")
    module.brown = corpus
    monkeypatch.setitem(sys.modules, "nltk", package)
    monkeypatch.setitem(sys.modules, "nltk.corpus", module)


def reader(documents):
    genre = {d["id"]: d["genre"] for d in documents}
    return SimpleNamespace(
        fileids=lambda: list(genre)[::-1],
        categories=lambda fileids: [genre[fileids[0]]],
        sents=lambda fileids: WORDS,
    )


@pytest.mark.parametrize("below", ["", "brown"])
def test_the_file_is_found_where_the_data_are(tmp_path, monkeypatch, no_nltk, below):
    digest = write(tmp_path / below / brown.FILE, entries())
    monkeypatch.setattr(brown, "SHA256", digest)
    monkeypatch.setenv("PROBELIB_DATA", str(tmp_path))
    assert brown.data_identity() == digest
    corpus = load_brown()
    assert [vars(d) for d in corpus.documents] == entries()
    assert corpus.source == "file brown.jsonl.gz (PROBELIB_DATA)"
    assert load_brown(root=tmp_path).source == "file brown.jsonl.gz (root)"


def test_without_the_file_it_comes_from_nltk(monkeypatch, no_nltk):
    install_nltk(monkeypatch, reader(entries()))
    corpus = load_brown()
    assert corpus.source == "NLTK"
    assert [vars(d) for d in corpus.documents] == entries()  # in order, with the spaces put back


def test_another_content_is_named_and_not_used(tmp_path, monkeypatch, no_nltk):
    digest = write(tmp_path / brown.FILE, entries())
    monkeypatch.setenv("PROBELIB_DATA", str(tmp_path))
    with (
        pytest.warns(UserWarning, match=f"its SHA-256 is {digest}"),
        pytest.raises(BrownUnavailable, match="has the wrong content; NLTK"),
    ):
        load_brown()


def test_a_corpus_that_is_not_all_there_is_refused(monkeypatch, no_nltk):
    install_nltk(monkeypatch, reader(entries()[1:]))
    with pytest.raises(BrownUnavailable, match="NLTK: it has 499 documents"):
        load_brown()


def test_nltk_without_its_data_says_what_to_do(monkeypatch, no_nltk):
    def missing():
        raise LookupError("\n***\n  Resource brown not found.")

    install_nltk(monkeypatch, SimpleNamespace(fileids=missing))
    with pytest.raises(BrownUnavailable, match=r"python -m nltk\.downloader brown"):
        load_brown()


def test_nothing_at_hand_is_one_sentence(monkeypatch, no_nltk):
    with pytest.raises(BrownUnavailable, match="PROBELIB_DATA is not set; NLTK") as caught:
        load_brown()
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not SHARED.is_file(), reason="PROBELIB_DATA has no Brown corpus")
def test_the_real_corpus():
    corpus = load_brown()
    assert len(corpus.documents) == 500
    first = corpus.documents[0]
    assert (first.id, first.genre) == ("ca01", "news")
    assert first.text.startswith("The Fulton County Grand Jury said Friday an investigation of")
    assert sum(len(d.text.split()) for d in corpus.documents) > 900_000


def test_spaces_come_back_around_punctuation():
    assert "\n".join(map(join_words, WORDS)) == SPACED
    assert join_words(["so", "--", "well", ";", "it's", "50", "%"]) == "so -- well; it's 50%"


def test_some_of_each_genre_are_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(brown, "SHA256", write(tmp_path / brown.FILE, entries()))
    corpus = load_brown(root=tmp_path)
    some = corpus.per_genre(7)
    for genre, count in COUNTS.items():
        own = [d for d in corpus.documents if d.genre == genre]
        assert [d for d in some.documents if d.genre == genre] == own[: min(7, count)]
    assert some.source == corpus.source
    assert corpus.per_genre(80).documents == corpus.documents
    with pytest.raises(ValueError, match="most must be at least 1"):
        corpus.per_genre(0)


@pytest.mark.usefixtures("no_nltk")
def test_without_the_corpus_there_is_a_stand_in_that_says_so():
    found = brown_or_stand_in()
    assert found.stand_in
    assert found.source.startswith("stand-in")
    assert [d.genre for d in found.documents] == [*GENRES] * 5
    assert all(len(d.text) > 3000 and d.text.isascii() for d in found.documents)
    assert brown_or_stand_in().documents == found.documents


def test_the_corpus_is_no_stand_in(tmp_path, monkeypatch):
    monkeypatch.setattr(brown, "SHA256", write(tmp_path / brown.FILE, entries()))
    monkeypatch.setenv("PROBELIB_DATA", str(tmp_path))
    assert not brown_or_stand_in().stand_in
