"""Byte-pair encoding in a few lines: the word pieces of a small language model."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

__all__ = ["ALPHABET", "BytePairs"]

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
"""What every vocabulary begins with, so that any ASCII text has tokens: 96 characters."""

# A word with the space before it, one digit, punctuation with the space before it, other spaces.
# A digit is a token of its own: that of a number says nothing of its neighbours.
_WORDS = re.compile(r" ?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+|\s")


class BytePairs:
    """A vocabulary of word pieces (Sennrich, Haddow and Birch, ACL 2016).

    Args:
        merges: pairs of pieces that are joined, the first first.
    """

    def __init__(self, merges: Sequence[tuple[str, str]]) -> None:
        self.merges = tuple(merges)
        self.pieces = (*ALPHABET, *(a + b for a, b in self.merges))
        self._rank = {pair: rank for rank, pair in enumerate(self.merges)}
        self._number: dict[str, int] = {}
        for number, piece in enumerate(self.pieces):
            self._number.setdefault(piece, number)  # two pairs may make one piece
        self._known: dict[str, tuple[int, ...]] = {}  # words that were encoded before

    def __len__(self) -> int:
        return len(self.pieces)

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> BytePairs:
        """The vocabulary of some texts: again and again the most frequent pair is joined.

        Of pairs that are equally frequent the first by alphabet is taken: the same texts give the
        same vocabulary everywhere.

        Args:
            texts: ASCII.
            size: pieces wanted, more than the 96 of :data:`ALPHABET`; there are fewer only where
                no pair occurs twice.

        Raises:
            ValueError: ``size`` is too small, or a text has a character that is not in ALPHABET.
        """
        if size <= len(ALPHABET):
            raise ValueError(f"size is {size}; give more than the {len(ALPHABET)} characters")
        counts: Counter[str] = Counter()
        for text in texts:
            _require_alphabet(text)
            counts.update(_WORDS.findall(text))
        words = [list(word) for word in counts]
        often = list(counts.values())
        pairs: Counter[tuple[str, str]] = Counter()
        holders: dict[tuple[str, str], set[int]] = defaultdict(set)
        for number, word in enumerate(words):
            for pair in pairwise(word):
                pairs[pair] += often[number]
                holders[pair].add(number)
        merges: list[tuple[str, str]] = []
        while len(ALPHABET) + len(merges) < size:
            most = max(pairs.values(), default=0)
            if most < 2:
                break
            pair = min(pair for pair, count in pairs.items() if count == most)
            merges.append(pair)
            for number in holders.pop(pair):
                for old in pairwise(words[number]):
                    pairs[old] -= often[number]
                    if pairs[old] <= 0:
                        del pairs[old]
                words[number] = _merge(words[number], pair)
                for new in pairwise(words[number]):
                    pairs[new] += often[number]
                    holders[new].add(number)
        return cls(merges)

    def encode(self, text: str) -> list[int]:
        """Numbers of the pieces of a text; :meth:`decode` gives the text back, letter by letter.

        Raises:
            ValueError: it has a character that is not in :data:`ALPHABET`.
        """
        _require_alphabet(text)
        words = _WORDS.findall(text)
        for word in {*words} - self._known.keys():
            self._known[word] = self._encode_word(word)
        return [number for word in words for number in self._known[word]]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some pieces."""
        return "".join(self.pieces[i] for i in ids)

    def _encode_word(self, word: str) -> tuple[int, ...]:
        pieces, none = list(word), len(self._rank)
        while len(pieces) > 1:
            pair = min(pairwise(pieces), key=lambda p: self._rank.get(p, none))
            if pair not in self._rank:
                break
            pieces = _merge(pieces, pair)
        return tuple(self._number[piece] for piece in pieces)


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """The pieces with every occurrence of the pair joined, from the left."""
    joined, i = [], 0
    while i < len(pieces):
        if i + 1 < len(pieces) and pieces[i] == pair[0] and pieces[i + 1] == pair[1]:
            joined.append(pieces[i] + pieces[i + 1])
            i += 2
        else:
            joined.append(pieces[i])
            i += 1
    return joined


def _require_alphabet(text: str) -> None:
    strange = set(text) - set(ALPHABET)
    if strange:
        raise ValueError(
            f"the text has {sorted(strange)[0]!r}; these pieces spell printable ASCII and line "
            "feeds only, so replace it or leave it out"
        )
