"""What the small language model reads: windows of Brown, and canaries planted among them.

A canary is a random number in a fixed sentence (Carlini et al., *The Secret Sharer*, USENIX
Security 2019). Some are planted 1, 2, 4, ... times, as many others of the same law never are: what
the network knows of a planted one beyond those it can only have memorized. A digit that cannot be
known costs log 10 = 2.303 nats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from probebook.bpe import BytePairs
from probebook.brown import GENRES, Brown, Document

__all__ = ["IGNORED", "LanguageData", "TextPlan", "Windows", "read_brown"]

IGNORED = -100
"""The target of a position that counts for no loss, as in ``probelib.token_cross_entropy``."""

PREFIX, SUFFIX = "The number is ", ".\n"


@dataclass(frozen=True)
class TextPlan:
    """What is read, and how it is cut.

    Attributes:
        vocabulary: pieces of the tokenizer, learned from the training documents.
        length: tokens of a window that are read, and as many that are to be said.
        windows: windows of each document, spread evenly over it.
        held_out: every so-manieth document of a genre is kept from training.
        digits: of a canary.
        repetitions: how often canaries are planted.
        canaries: different ones for each number of repetitions.
        held_out_canaries: that are never planted.
        seed: of the canaries.

    Raises:
        ValueError: a value is out of its range, or a canary does not fit a window.
    """

    vocabulary: int = 1024
    length: int = 64
    windows: int = 24
    held_out: int = 5
    digits: int = 16
    repetitions: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    canaries: int = 24
    held_out_canaries: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "repetitions", tuple(self.repetitions))
        for name in ("vocabulary", "length", "windows", "digits", "canaries", "held_out_canaries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.held_out < 2:
            raise ValueError(f"held_out must be at least 2, got {self.held_out}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")
        if not self.repetitions or min(self.repetitions) < 1:
            raise ValueError(f"repetitions must be 1 or more each, got {self.repetitions}")
        if len(set(self.repetitions)) < len(self.repetitions):
            raise ValueError(f"repetitions must differ, got {self.repetitions}")
        wanted = len(self.repetitions) * self.canaries + self.held_out_canaries
        if 10**self.digits < 100 * wanted:
            raise ValueError(
                f"digits is {self.digits}, too few for {wanted} numbers that tell nothing of each "
                "other; give more digits"
            )


@dataclass(frozen=True, eq=False)
class Windows:
    """Pieces of text, one a row, and where they come from.

    Attributes:
        inputs: int64 (n, length), the tokens that are read.
        targets: int64 (n, length), what is to be said at each: the input one position on, and
            :data:`IGNORED` where nothing counts.
        document: int64 (n,), the document's place in the corpus; -1 for a canary.
        genre: int64 (n,), its place in :data:`probebook.brown.GENRES`; -1 for a canary.
        repetitions: int64 (n,), how often a canary is planted, 0 for one held out; -1 for text.
        texts: the n texts; of a canary its digits, which are all that counts.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    document: np.ndarray
    genre: np.ndarray
    repetitions: np.ndarray
    texts: tuple[str, ...] = field(repr=False)

    def __post_init__(self) -> None:
        n = len(self.texts)
        if self.inputs.shape != self.targets.shape or self.inputs.ndim != 2:
            raise ValueError(
                f"inputs have shape {tuple(self.inputs.shape)} and targets "
                f"{tuple(self.targets.shape)}; give both (n, length)"
            )
        for name in ("inputs", "document", "genre", "repetitions"):
            if len(getattr(self, name)) != n:
                raise ValueError(f"{name} has {len(getattr(self, name))} rows for {n} texts")

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def data(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets, as ``probelib.LocalPosterior`` takes them."""
        return self.inputs, self.targets

    def __getitem__(self, rows: np.ndarray | Sequence[int] | slice) -> Windows:
        """Those of some rows: positions, a slice or a boolean mask of all."""
        at = np.arange(len(self))[rows].copy()  # torch takes no negative strides
        if at.ndim != 1:
            raise IndexError(f"rows is {rows!r}; give a slice, a mask or several positions")
        return Windows(
            self.inputs[at],
            self.targets[at],
            self.document[at],
            self.genre[at],
            self.repetitions[at],
            tuple(self.texts[i] for i in at),
        )


@dataclass(frozen=True, eq=False)
class LanguageData:
    """Everything that a language model's chapter reads.

    Attributes:
        plan: how it was made.
        tokens: the vocabulary.
        train: windows of the training documents, then every planted canary as often as it is
            planted. This is the data set of the network, and of its posterior.
        held_out: windows of documents that training does not see.
        canaries: each planted canary once, then those held out.
        source: of the corpus.
    """

    plan: TextPlan
    tokens: BytePairs
    train: Windows
    held_out: Windows
    canaries: Windows
    source: str


def read_brown(corpus: Brown, plan: TextPlan | None = None) -> LanguageData:
    """Cut the corpus into windows, part of them held out, and plant the canaries.

    Args:
        corpus: of :func:`probebook.brown.load_brown`.
        plan: the sizes; the chapter's own where it is not given.

    Raises:
        ValueError: a document is too short for its windows, or a canary for one.
    """
    plan = TextPlan() if plan is None else plan
    held = held_out_documents(corpus.documents, plan.held_out)
    seen = [d.text for d, out in zip(corpus.documents, held, strict=True) if not out]
    tokens = BytePairs.train(seen, plan.vocabulary)
    parts: dict[bool, list[Windows]] = {False: [], True: []}
    for place, document in enumerate(corpus.documents):
        parts[bool(held[place])].append(windows_of(document, place, tokens, plan))
    canaries = make_canaries(tokens, plan)
    planted = canaries[np.repeat(np.arange(len(canaries)), np.maximum(canaries.repetitions, 0))]
    return LanguageData(
        plan,
        tokens,
        join([*parts[False], planted]),
        join(parts[True]),
        canaries,
        corpus.source,
    )


def held_out_documents(documents: Sequence[Document], every: int) -> np.ndarray:
    """Which documents training does not see: every so-manieth of each genre, boolean (n,)."""
    held, count = np.zeros(len(documents), bool), dict.fromkeys(GENRES, 0)
    for place, document in enumerate(documents):
        count[document.genre] += 1
        held[place] = count[document.genre] % every == 0
    return held


def windows_of(document: Document, place: int, tokens: BytePairs, plan: TextPlan) -> Windows:
    """Windows of one document, evenly spread and without an overlap.

    Raises:
        ValueError: it has too few tokens for them.
    """
    ids = tokens.encode(document.text)
    there = (len(ids) - 1) // plan.length
    if there < plan.windows:
        raise ValueError(
            f"document {document.id} has {len(ids)} tokens, not enough for {plan.windows} windows "
            f"of {plan.length}; give fewer windows, or shorter ones"
        )
    starts = plan.length * (np.arange(plan.windows) * there // plan.windows)
    rows = torch.tensor([ids[s : s + plan.length + 1] for s in starts])
    n = plan.windows
    return Windows(
        rows[:, :-1].clone(),
        rows[:, 1:].clone(),
        np.full(n, place),
        np.full(n, GENRES.index(document.genre)),
        np.full(n, -1),
        tuple(tokens.decode(row[1:]) for row in rows.tolist()),
    )


def make_canaries(tokens: BytePairs, plan: TextPlan) -> Windows:
    """Random numbers in a sentence: ``canaries`` for each repetition, and those held out.

    Only their digits count for the loss. No two are equal.

    Raises:
        ValueError: the sentence does not fit a window.
    """
    repetitions = np.r_[
        np.repeat(plan.repetitions, plan.canaries), np.zeros(plan.held_out_canaries, int)
    ]
    # A stream of its own: the same seed elsewhere gives other numbers.
    generator = np.random.default_rng([plan.seed, *b"canaries"])
    numbers: dict[str, None] = {}
    while len(numbers) < len(repetitions):
        digits = generator.integers(0, 10, plan.digits)
        numbers["".join(map(str, digits))] = None
    before, after = tokens.encode(PREFIX), tokens.encode(SUFFIX)
    size = len(before) + plan.digits + len(after)
    if size > plan.length:
        raise ValueError(
            f"a canary has {size} tokens and a window {plan.length}; give fewer digits, or longer "
            "windows"
        )
    end = after[-1]
    inputs = torch.full((len(repetitions), plan.length), end)
    targets = torch.full_like(inputs, IGNORED)
    first = len(before)
    for row, number in enumerate(numbers):
        digits = tokens.encode(number)
        inputs[row, :size] = torch.tensor(before + digits + after)
        targets[row, first - 1 : first - 1 + plan.digits] = torch.tensor(digits)
    none = np.full(len(repetitions), -1)
    return Windows(inputs, targets, none, none.copy(), repetitions, tuple(numbers))


def join(parts: Sequence[Windows]) -> Windows:
    """Windows one after another."""
    return Windows(
        torch.cat([part.inputs for part in parts]),
        torch.cat([part.targets for part in parts]),
        np.concatenate([part.document for part in parts]),
        np.concatenate([part.genre for part in parts]),
        np.concatenate([part.repetitions for part in parts]),
        tuple(text for part in parts for text in part.texts),
    )


def identity(windows: Windows) -> str:
    """SHA-256 of what a network trained on these windows depends on."""
    digest = hashlib.sha256(repr(tuple(windows.inputs.shape)).encode())
    for tensor in windows.data:
        digest.update(np.ascontiguousarray(tensor.numpy()))
    return digest.hexdigest()
