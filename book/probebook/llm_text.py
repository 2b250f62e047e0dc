"""What the probe of a real language model reads: passages of Brown, and planted repetitions.

An *induction pattern* is a random sequence of words, said twice. What follows a word of the second
half is what followed it in the first, so a network that looks back can say it. Its control has the
same first half, and the same words after it in a new order, so that looking back does not help.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from probebook.brown import GENRES, Brown
from probebook.language_data import Windows

__all__ = ["ObservedText", "brown_ids", "observed_text"]

READ = ("news", "religion", "hobbies", "government", "learned", "mystery", "science_fiction",
        "romance")  # fmt: skip
"""Genres whose first document is read from its beginning."""

START = "<|endoftext|>"
"""What stands before every text that SmolLM2 has learned from."""

WORDS = (
    "apple river window doctor yellow music table winter garden paper bridge horse silver "
    "market forest letter dinner soldier circle engine mirror castle summer pocket butter "
    "kitchen dragon island orange station mountain pencil hammer valley carpet rabbit temple "
    "planet bottle camera shoulder ticket basket village thunder blanket captain desert "
    "engineer feather guitar helmet jacket lemon magnet needle ocean pepper"
)
"""Words of the patterns; those that are one token each are used."""


@dataclass(frozen=True, eq=False)
class ObservedText:
    """Passages of one length, and what each is.

    Attributes:
        windows: the passages, row by row; a pattern's and a control's document and genre are -1.
        titles: of each, plain text.
        kind: of each ``"brown"``, ``"pattern"`` or ``"control"``.
        pairs: integers (m, 3), a line a repeated word: its row, the position in ``targets`` where
            it is said first, and where it is said again.
    """

    windows: Windows
    titles: tuple[str, ...]
    kind: np.ndarray
    pairs: np.ndarray

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def is_brown(self) -> np.ndarray:
        """Which passages are of Brown, boolean (n,): those whose mean loss is L."""
        return self.kind == "brown"

    @property
    def brown(self) -> Windows:
        """The passages of Brown alone."""
        return self.windows[self.is_brown]

    def repeated(self, kind: str) -> np.ndarray:
        """The pairs of the rows of one kind."""
        return self.pairs[self.kind[self.pairs[:, 0]] == kind]


def observed_text(
    tokenizer: Any,
    corpus: Brown,
    *,
    length: int = 64,
    genres: Sequence[str] = READ,
    patterns: int = 3,
    seed: int = 0,
) -> ObservedText:
    """The passages that the chapter's real language model is probed on.

    Args:
        tokenizer: of transformers.
        corpus: of :func:`probebook.brown.load_brown`.
        length: tokens of each passage that are to be said, even for the patterns' sake.
        genres: one passage of each, the beginning of its first document.
        patterns: how many patterns, and as many controls.
        seed: of the patterns.

    Raises:
        ValueError: ``length`` is odd, a document is too short, or too few words are one token.
    """
    if length < 4 or length % 2:
        raise ValueError(f"length must be even and at least 4, got {length}")
    start = tokenizer.convert_tokens_to_ids(START)
    if start is None or tokenizer.convert_ids_to_tokens(start) != START:
        start = tokenizer.bos_token_id
    rows, titles, documents = [], [], []
    for genre in genres:
        place = next(i for i, d in enumerate(corpus.documents) if d.genre == genre)
        document = corpus.documents[place]
        ids = tokenizer(document.text, add_special_tokens=False).input_ids
        if len(ids) < length:
            raise ValueError(f"document {document.id} has fewer than {length} tokens")
        rows.append([start, *ids[:length]])
        titles.append(f"Brown, {genre.replace('_', ' ')} ({document.id})")
        documents.append(place)
    kind, pairs = ["brown"] * len(rows), []
    for number, (name, order, ids) in enumerate(_planted(tokenizer, length, patterns, seed)):
        pairs += [(len(rows), first, length // 2 + again) for again, first in enumerate(order)]
        rows.append([start, *ids])
        titles.append(f"{'Pattern' if name == 'pattern' else 'Control'} {number // 2 + 1}")
        kind.append(name)
    read = torch.tensor(rows)
    none = -np.ones(len(rows), int)
    document, genre = none.copy(), none.copy()
    document[: len(documents)] = documents
    genre[: len(documents)] = [GENRES.index(name) for name in genres]
    texts = tuple(tokenizer.decode(row[1:]) for row in rows)
    windows = Windows(read[:, :-1].clone(), read[:, 1:].clone(), document, genre, none, texts)
    return ObservedText(windows, tuple(titles), np.array(kind), np.array(pairs).reshape(-1, 3))


def brown_ids(tokenizer: Any, corpus: Brown) -> torch.Tensor:
    """All tokens of the corpus, (n,): what token frequencies are counted in."""
    parts = tokenizer([d.text for d in corpus.documents], add_special_tokens=False).input_ids
    return torch.tensor([i for ids in parts for i in ids])


def _planted(tokenizer: Any, length: int, patterns: int, seed: int) -> list[tuple]:
    """A pattern and its control in turn: name, order of the second half, token ids."""
    words = [tokenizer(f" {word}", add_special_tokens=False).input_ids for word in WORDS.split()]
    single = [ids[0] for ids in words if len(ids) == 1]
    half = length // 2
    if len(single) < half and patterns:
        raise ValueError(
            f"length is {length}, but only {len(single)} words are one token for this tokenizer; "
            f"give {2 * len(single)} or less"
        )
    # A stream of its own: the same seed elsewhere gives other orders.
    generator = np.random.default_rng([seed, *b"induction"])
    planted = []
    for _ in range(patterns):
        first = generator.permutation(single)[:half]
        same, other = np.arange(half), _apart(generator, half)
        for name, order in (("pattern", same), ("control", other)):
            planted.append((name, order, [*first.tolist(), *first[order].tolist()]))
    return planted


def _apart(generator: np.random.Generator, n: int) -> np.ndarray:
    """A random order in which nothing follows what it followed before."""
    while True:
        order = generator.permutation(n)
        if not (np.diff(order) == 1).any():
            return order
