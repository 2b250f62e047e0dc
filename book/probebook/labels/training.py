"""Networks that are trained on labels of which some are wrong, and what is recorded meanwhile."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from probebook.models import MLP
from probebook.small_networks import initial_network
from probelib.arguments import require_whole

__all__ = ["Training", "train", "train_out_of_sample"]


@dataclass(frozen=True, eq=False)
class Training:
    """One training: networks along it, and all logits after each epoch.

    Attributes:
        networks: by epoch, in eval mode.
        logits: after each epoch, of all training samples, float32, shape (epochs, n, classes).
        labels: those that it was trained on, shape (n,).
        rate: learning rate.
        seconds: of the training alone.
        recording: seconds that the logits took.
    """

    networks: dict[int, MLP]
    logits: np.ndarray
    labels: np.ndarray
    rate: float
    seconds: float
    recording: float


def train(
    x: Tensor,
    y: Tensor,
    *,
    classes: int,
    epochs: Sequence[int],
    seed: int,
    hidden: int = 128,
    rate: float = 0.05,
    batch_size: int = 50,
    record: bool = True,
) -> Training:
    """Train one network with one hidden layer, and keep it at some epochs.

    Gradient descent on batches at a constant rate, momentum 0.9, no decay: the network kept at an
    epoch is the one that a training of that length would have made.

    Args:
        x, y: inputs (n, features) and the labels given to the network (n,).
        classes: outputs.
        epochs: at which it is kept; it ends at the last.
        seed: of the initial weights and of the order of the data.
        hidden, rate, batch_size: of the network and its training.
        record: keep the logits after each epoch; without, there are none, ``(0, n, classes)``.

    Raises:
        ValueError: no epochs, or one below 1.
        FloatingPointError: the training diverged.
    """
    last = max((require_whole("epochs", epoch) for epoch in epochs), default=0)
    if not last:
        raise ValueError("epochs is empty; give one at least")
    model = initial_network((hidden,), x.shape[1], classes, seed)
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    networks, logits, seconds, recording = {}, [], 0.0, 0.0
    for epoch in range(1, last + 1):
        started = time.perf_counter()
        for part in torch.randperm(len(y), generator=order).split(batch_size):
            optimizer.zero_grad()
            functional.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
        trained = time.perf_counter()
        if record:
            with torch.no_grad():
                logits.append(model(x).numpy())
        seconds += trained - started
        recording += time.perf_counter() - trained
        if epoch in epochs:
            networks[epoch] = copy.deepcopy(model).eval()
            if not all(torch.isfinite(weight).all() for weight in model.parameters()):
                raise FloatingPointError(
                    f"the training diverged by epoch {epoch} at rate {rate}; try a smaller one"
                )
    seen = np.stack(logits) if record else np.empty((0, len(y), classes), np.float32)
    return Training(networks, seen, y.numpy().copy(), rate, seconds, recording)


def train_out_of_sample(
    x: Tensor, y: Tensor, *, classes: int, epochs: Sequence[int], seed: int, folds: int = 5, **how
) -> tuple[dict[int, np.ndarray], float]:
    """Class probabilities by networks that were not trained on the sample, and the seconds.

    Args:
        x, y, classes, epochs, seed: as for :func:`train`.
        folds: each is left out by one network.
        how: any other argument of :func:`train`.

    Returns:
        By epoch, shape (n, classes); the seconds of all trainings.
    """
    part = np.random.default_rng(seed).permutation(len(y)) % require_whole("folds", folds, 2)
    found = {epoch: np.empty((len(y), classes)) for epoch in epochs}
    started = time.perf_counter()
    for fold in range(folds):
        keep, out = (torch.from_numpy(np.flatnonzero(at)) for at in (part != fold, part == fold))
        trained = train(
            x[keep], y[keep], classes=classes, epochs=epochs, seed=seed, record=False, **how
        )
        with torch.no_grad():
            for epoch, model in trained.networks.items():
                found[epoch][out.numpy()] = model(x[out]).double().softmax(1).numpy()
    return found, time.perf_counter() - started
