"""The Brown corpus: 500 documents of 15 genres, from a file at hand or from NLTK.

*A Standard Corpus of Present-Day Edited American English*, W. N. Francis and H. Kucera, Brown
University, 1964 (revised 1971 and 1979). About a million words, printed in 1961.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

__all__ = [
    "GENRES",
    "Brown",
    "BrownUnavailable",
    "Document",
    "brown_or_stand_in",
    "data_identity",
    "load_brown",
]

FILE = "brown.jsonl.gz"
SHA256 = "49f84d3c7377cbbe986aa230d22530c8a13dc7d82d1f0c0c1f9a779f42af173d"

COUNTS = {
    "news": 44,
    "editorial": 27,
    "reviews": 17,
    "religion": 17,
    "hobbies": 36,
    "lore": 48,
    "belles_lettres": 75,
    "government": 30,
    "learned": 80,
    "fiction": 29,
    "mystery": 24,
    "science_fiction": 6,
    "adventure": 29,
    "romance": 29,
    "humor": 9,
}
"""Documents of each genre, in the corpus's own order."""

GENRES = tuple(COUNTS)
"""The 15 genres; a genre's number is its place here."""


class BrownUnavailable(RuntimeError):
    """No source has the corpus; the message says what to put where, and why each failed."""


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        id: ``"ca01"`` to ``"cr09"``.
        genre: one of :data:`GENRES`.
        text: a sentence a line, printable ASCII.
    """

    id: str
    genre: str
    text: str


@dataclass(frozen=True, eq=False)
class Brown:
    """The corpus.

    Attributes:
        documents: 500 of them, by id.
        source: where they came from, without a path: fit to be published.
        stand_in: these are no documents of Brown, and their genres mean nothing.
    """

    documents: tuple[Document, ...]
    source: str
    stand_in: bool = False

    def per_genre(self, most: int) -> Brown:
        """The first documents of each genre, at most so many.

        Raises:
            ValueError: ``most`` is not positive.
        """
        if most < 1:
            raise ValueError(f"most must be at least 1, got {most}")
        count = dict.fromkeys(GENRES, 0)
        some = []
        for document in self.documents:
            count[document.genre] += 1
            if count[document.genre] <= most:
                some.append(document)
        return replace(self, documents=tuple(some))


def brown_or_stand_in() -> Brown:
    """:func:`load_brown`, or a stand-in to demonstrate a chapter with where it fails.

    The stand-in is the manual that Python carries for its ``help()``, cut in pieces of equal
    length, whose genres are dealt out in turn.
    """
    try:
        return load_brown()
    except BrownUnavailable:
        from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    lines = (" ".join(line.split()) for line in text.encode("ascii", "ignore").decode().split("\n"))
    text = "\n".join(line for line in lines if line and line.isprintable())
    size = min(len(text) // (5 * len(GENRES)), 8000)
    documents = (
        Document(f"p{i:02d}", GENRES[i % len(GENRES)], text[i * size : (i + 1) * size])
        for i in range(5 * len(GENRES))
    )
    return Brown(tuple(documents), "stand-in: the manual of Python's help()", stand_in=True)


def load_brown(*, root: str | os.PathLike | None = None) -> Brown:
    """The Brown corpus, every document with its genre.

    Tried in turn:

    1. ``root``, or ``$PROBELIB_DATA`` where that is not given: ``brown.jsonl.gz`` in it, or in
       ``brown/`` below it, with the SHA-256 that is known here;
    2. NLTK's copy, where NLTK is installed (``pip install nltk; python -m nltk.downloader brown``).
       It is a list of words, and the spaces around its punctuation are put back by rule. They
       may differ from the file's here and there, and numbers with them: ``source`` says which.

    Args:
        root: a directory to look in first.

    Raises:
        BrownUnavailable: both failed.

    Warns:
        UserWarning: a file is there, but has the wrong content.
    """
    reasons = []
    path = _file(root)
    if path is None:
        reasons.append("PROBELIB_DATA is not set" if root is None else "root is empty")
    elif not path.is_file():
        reasons.append(f"there is no {FILE} in root or PROBELIB_DATA")
    else:
        content = path.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found == SHA256:
            where = "root" if root is not None else "PROBELIB_DATA"
            return Brown(_checked(_parse(content)), f"file {FILE} ({where})")
        warnings.warn(
            f"{path} is not used: its SHA-256 is {found}, the corpus's is {SHA256}", stacklevel=2
        )
        reasons.append(f"{FILE} has the wrong content")
    try:
        return Brown(_checked(_from_nltk()), "NLTK")
    except (ImportError, LookupError, ValueError) as error:
        lines = [line for line in str(error).splitlines() if line.strip(" *")]
        reasons.append(f"NLTK: {lines[0].strip() if lines else type(error).__name__}")
    raise BrownUnavailable(
        f"The Brown corpus is not available: put {FILE} into a directory and set PROBELIB_DATA to "
        "it, or run `pip install nltk` and `python -m nltk.downloader brown`; tried without "
        f"success: {'; '.join(reasons)}."
    )


def data_identity() -> str:
    """What :func:`load_brown` would read, in words or as a hash, without reading it."""
    path = _file(None)
    if path is not None and path.is_file():
        return SHA256  # any other content is refused, and then there is NLTK's
    return "NLTK" if importlib.util.find_spec("nltk") is not None else ""


def _file(root: str | os.PathLike | None) -> Path | None:
    given = root if root is not None else os.environ.get("PROBELIB_DATA")
    if not given:
        return None
    folder = Path(given).expanduser()
    below = folder / "brown" / FILE
    return below if below.is_file() else folder / FILE


def _parse(content: bytes) -> Iterable[Document]:
    for line in gzip.decompress(content).decode("ascii").splitlines():
        entry = json.loads(line)
        yield Document(entry["id"], entry["genre"], entry["text"])


def _from_nltk() -> Iterable[Document]:
    from nltk.corpus import brown

    for name in brown.fileids():
        genres = brown.categories(fileids=[name])
        if len(genres) != 1:
            raise ValueError(f"document {name} has the genres {list(genres)}, not one")
        sentences = (join_words(list(words)) for words in brown.sents(fileids=[name]))
        yield Document(name, genres[0], "\n".join(sentences))


_CLOSING = re.compile(r"[,.;:?!)\]}%]+|''|\.\.\.")
_OPENING = {"(", "[", "{", "``", "$"}
_QUOTES = {"``": '"', "''": '"'}


def join_words(words: list[str]) -> str:
    """A sentence of its words: no space before what closes, none after what opens.

    Args:
        words: as NLTK has them, with quotation marks as two back quotes or two apostrophes, and
            ``;``, ``?`` and ``!`` written twice.
    """
    sentence, opened = "", True  # nothing comes before the first word, so no space either
    for before, word in pairwise(["", *words]):
        if word == before and word in {";", "?", "!"}:
            continue
        if not opened and not _CLOSING.fullmatch(word):
            sentence += " "
        sentence += _QUOTES.get(word, word)
        opened = word in _OPENING
    return sentence


def _checked(documents: Iterable[Document]) -> tuple[Document, ...]:
    """The documents by id, or ValueError where they are not the Brown corpus."""
    found = tuple(sorted(documents, key=lambda document: document.id))
    counts = {genre: sum(d.genre == genre for d in found) for genre in GENRES}
    if counts != COUNTS or len(found) != sum(COUNTS.values()):
        raise ValueError(f"it has {len(found)} documents, by genre {counts}, not {COUNTS}")
    if len({document.id for document in found}) < len(found):
        raise ValueError("two of its documents have one id")
    for document in found:
        if not document.text.strip() or not document.text.isascii():
            raise ValueError(f"document {document.id} is empty or not ASCII")
    return found
