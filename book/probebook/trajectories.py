"""A training with its checkpoints, and when each sample was learned.

:func:`probebook.training.train` gives the network at the end. Here the weights after chosen epochs
are kept, and after every epoch which samples are right, which costs a pass over the data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save

from probebook.cache import cache_dir, write_atomically
from probebook.models import MLP
from probebook.training import (
    Recipe,
    digest_tensors,
    evaluate,
    network_fingerprint,
    prepare_pixels,
    train,
)
from probelib.progress import report_run

__all__ = ["Trajectory", "learned_from", "trained_trajectory"]

_FORMAT = "1"  # of a cached trajectory


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A training, epoch by epoch.

    Attributes:
        recipe: what trained it.
        seed: of its initial weights and of the order of the data.
        states: epoch -> state dict after it.
        correct: after each epoch, whether the largest logit is that of the given label, boolean,
            shape (epochs, n).
        seconds: wall time, with the passes that ``correct`` takes.
    """

    recipe: Recipe
    seed: int
    states: dict[int, dict[str, torch.Tensor]]
    correct: np.ndarray
    seconds: float

    def model(self, epoch: int, in_features: int = 784) -> MLP:
        """The network after a kept epoch, in eval mode (KeyError: not kept)."""
        with torch.random.fork_rng(devices=[]):
            model = MLP(self.recipe.hidden, in_features)
        model.load_state_dict(self.states[epoch])
        return model.eval()

    def accuracy(self, part: np.ndarray) -> np.ndarray:
        """Accuracy on some samples after each epoch, against the given labels, shape (epochs,).

        Args:
            part: which samples, boolean, shape (n,).
        """
        return self.correct[:, part].mean(1)


def trained_trajectory(
    recipe: Recipe,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    epochs: Sequence[int],
    seed: int,
    cache: bool = True,
    progress: bool = True,
) -> Trajectory:
    """Train, and keep what happens; or the same from the cache, if it can be proved to be.

    The weights at the end are those of :func:`probebook.training.train`, bit for bit.

    Args:
        recipe: what to train and how.
        images: uint8 ``(n, 28, 28)``.
        labels: int64 ``(n,)``, classes 0..9.
        epochs: after which the weights are kept, ascending, from 1 to the recipe's.
        seed: 0 or more.
        cache: False trains anew and writes nothing.
        progress: show a bar of epochs.

    Raises:
        ValueError: ``epochs`` is not as it should be, or as :func:`probebook.training.train`.
    """
    wanted = list(epochs)
    if not wanted or wanted != sorted(set(wanted)) or not 1 <= wanted[0] <= wanted[-1]:
        raise ValueError(f"epochs is {wanted}; give ascending numbers from 1")
    if wanted[-1] > recipe.epochs:
        raise ValueError(f"epochs has {wanted[-1]}, and the recipe trains for {recipe.epochs}")
    network = network_fingerprint(recipe, images, labels, seed)
    key = hashlib.sha256(f"{network} {_FORMAT} {wanted}".encode()).hexdigest()
    path = cache_dir("trajectories") / f"{recipe.name}-{key[:16]}.safetensors"
    if cache and path.exists():
        try:
            kept = _load(path, key, recipe, seed)
            report_run("network", kept.seconds, cached=True)
            return kept
        except Exception as error:  # whatever is wrong with the file, training anew is right
            print(f"Training {recipe.name} anew: its cached checkpoints are unusable ({error}).")
    found = _train(recipe, images, labels, wanted, seed, progress)
    report_run("network", found.seconds, cached=False)
    if cache:
        try:
            write_atomically(path, _serialise(found, key))
        except OSError as error:
            print(f"The checkpoints of {recipe.name} were not cached: {error}.")
    return found


def _train(
    recipe: Recipe,
    images: torch.Tensor,
    labels: torch.Tensor,
    wanted: Sequence[int],
    seed: int,
    progress: bool,
) -> Trajectory:
    inputs = prepare_pixels(images, recipe)
    states, correct = {}, np.empty((recipe.epochs, len(labels)), bool)

    def keep(epoch: int, model: MLP) -> None:
        correct[epoch - 1] = evaluate(model, inputs, labels)[1].numpy()
        if epoch in wanted:
            states[epoch] = {
                name: value.detach().clone() for name, value in model.state_dict().items()
            }

    network = train(recipe, images, labels, seed=seed, progress=progress, on_epoch=keep)
    return Trajectory(recipe, seed, states, correct, network.seconds)


def _serialise(found: Trajectory, key: str) -> bytes:
    tensors = {
        f"{epoch}/{name}": value
        for epoch, state in found.states.items()
        for name, value in state.items()
    }
    tensors["correct"] = torch.from_numpy(np.packbits(found.correct, axis=1))
    metadata = {
        "key": key,
        "content": digest_tensors(tensors),
        "recipe": json.dumps(asdict(found.recipe)),
        "samples": str(found.correct.shape[1]),
        "seconds": repr(found.seconds),
    }
    return save(tensors, metadata)


def _load(path: Path, key: str, recipe: Recipe, seed: int) -> Trajectory:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if metadata.get("key") != key:
        raise ValueError("they are of other data, another recipe or other epochs")
    if metadata.get("content") != digest_tensors(tensors):
        raise ValueError("their content does not match its checksum")
    bits = tensors.pop("correct").numpy()
    correct = np.unpackbits(bits, axis=1, count=int(metadata["samples"])).astype(bool)
    states: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        epoch, _, parameter = name.partition("/")
        states.setdefault(int(epoch), {})[parameter] = value
    return Trajectory(recipe, seed, dict(sorted(states.items())), correct,
                      float(metadata["seconds"]))  # fmt: skip


def learned_from(correct: np.ndarray) -> np.ndarray:
    """The first epoch from which a sample stays correct, counted from 1.

    A sample that is wrong after the last epoch was not learned: one more than the number of epochs.

    Args:
        correct: after each epoch, boolean, shape (epochs, n).

    Returns:
        Whole numbers, shape (n,).
    """
    wrong = ~np.asarray(correct, bool)
    last_wrong = len(wrong) - wrong[::-1].argmax(0)
    return np.where(wrong.any(0), last_wrong, 0) + 1
