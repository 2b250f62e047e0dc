"""A small GPT, its training, and the cache of what was trained."""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor, nn

import probelib
from probebook.cache import cache_dir, write_atomically
from probebook.language_data import IGNORED, Windows, identity
from probelib.progress import progress_bar

__all__ = [
    "GPT",
    "GPTRecipe",
    "TrainedGPT",
    "embeddings",
    "load_network",
    "serialise",
    "token_losses",
    "train",
    "trained_gpt",
    "window_losses",
]

_FORMAT = "1"  # of a cached network; part of its fingerprint
_TORCH = ".".join(torch.__version__.split(".")[:2])


@dataclass(frozen=True)
class GPTRecipe:
    """A GPT's size, and how it is trained: AdamW, a linear warm-up, then a cosine to zero.

    Attributes:
        width: of the residual stream.
        layers: blocks of attention and MLP.
        heads: of each attention; they divide the width.
        learning_rate: the highest.
        weight_decay: of matrices; embeddings, biases and norms have none.
        batch_size: windows a step.
        epochs: passes over the data, each in a new random order.
        warm_up: share of the steps in which the rate rises.

    Raises:
        ValueError: a value is out of its range.
    """

    width: int = 96
    layers: int = 3
    heads: int = 4
    learning_rate: float = 4e-3
    weight_decay: float = 0.1
    batch_size: int = 64
    epochs: int = 6
    warm_up: float = 0.05

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"heads is {self.heads}, which does not divide width {self.width}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay must be 0 or more, got {self.weight_decay}")
        if not 0 <= self.warm_up < 1:
            raise ValueError(f"warm_up must be in [0, 1), got {self.warm_up}")


class Block(nn.Module):
    """Causal attention and an MLP, each after a norm and added to the stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.gather = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.attend(self.norm1(x)).chunk(3, -1)
        )
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.gather(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.narrow(F.gelu(self.widen(self.norm2(x))))


class GPT(nn.Module):
    """A decoder-only transformer (Radford et al., 2019), with the embedding as its last layer.

    Args:
        vocabulary: tokens that there are.
        length: the longest window.
        recipe: the size.
    """

    def __init__(self, vocabulary: int, length: int, recipe: GPTRecipe) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, recipe.width)
        self.place = nn.Embedding(length, recipe.width)
        self.blocks = nn.ModuleList(Block(recipe.width, recipe.heads) for _ in range(recipe.layers))
        self.norm = nn.LayerNorm(recipe.width)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                into_stream = name.endswith(("gather.weight", "narrow.weight"))
                scale = 0.02 / math.sqrt(2 * recipe.layers) if into_stream else 0.02
                nn.init.normal_(parameter, std=scale)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def stream(self, ids: Tensor) -> Tensor:
        """What the last layer reads, shape (batch, length, width), of tokens (batch, length)."""
        x = self.embed(ids) + self.place.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (batch, length, vocabulary) of what follows each of the tokens (batch, length)."""
        return F.linear(self.stream(ids), self.embed.weight)


@dataclass(frozen=True, eq=False)
class TrainedGPT:
    """A trained network and how its training went.

    Attributes:
        model: in eval mode, on the CPU.
        recipe: what trained it.
        seed: of its initial weights and the order of the data.
        loss: (epochs,), mean loss of each epoch in nats a token, taken while the weights move.
        seconds: wall time of the training; of the original one if the network was cached.
        cached: whether it was read from the cache.
    """

    model: GPT
    recipe: GPTRecipe
    seed: int
    loss: np.ndarray
    seconds: float
    cached: bool = False


def train(
    recipe: GPTRecipe, windows: Windows, vocabulary: int, *, seed: int, progress: bool = True
) -> TrainedGPT:
    """Train a GPT on the mean over windows of the mean loss of their tokens.

    That is the L of a ``probelib.LocalPosterior`` with ``probelib.sequence_cross_entropy`` on the
    same windows, so that the trained weights are near a minimum of it. PyTorch's global generators
    are neither read nor moved. The same seed gives the same weights on the same machine and number
    of threads.

    Args:
        recipe: what to train and how.
        windows: the data; canaries as often as they are planted.
        vocabulary: tokens that there are.
        seed: 0 or more.
        progress: show a bar of epochs.

    Raises:
        ValueError: the seed is negative, or there are no windows.
        FloatingPointError: the loss of an epoch is not finite.
    """
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    if len(windows) == 0:
        raise ValueError("windows is empty; give at least one window")
    model, order = _start(recipe, windows, vocabulary, seed)
    optimizer, (inputs, targets) = _optimizer(recipe, model), windows.data
    n = len(windows)
    steps, step = recipe.epochs * math.ceil(n / recipe.batch_size), 0
    losses, started = np.empty(recipe.epochs), time.perf_counter()
    bar = progress_bar(total=recipe.epochs, desc="GPT", unit="epoch", disable=not progress)
    with bar:
        for epoch in range(recipe.epochs):
            total = 0.0
            for batch in torch.randperm(n, generator=order).split(recipe.batch_size):
                step += 1
                for group in optimizer.param_groups:
                    group["lr"] = _learning_rate(recipe, step, steps)
                loss = _loss(model(inputs[batch]), targets[batch])
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                total += loss.item() * len(batch)
            losses[epoch] = total / n
            if not math.isfinite(losses[epoch]):
                raise FloatingPointError(
                    f"training diverged: the loss of epoch {epoch + 1} is {losses[epoch]} at "
                    f"learning rate {recipe.learning_rate:g}; try a smaller one"
                )
            bar.set_postfix(loss=f"{losses[epoch]:.3f}", refresh=False)
            bar.update()
    return TrainedGPT(model.eval(), recipe, seed, losses, time.perf_counter() - started)


def trained_gpt(
    recipe: GPTRecipe,
    windows: Windows,
    vocabulary: int,
    *,
    seed: int,
    cache: bool = True,
    progress: bool = True,
) -> TrainedGPT:
    """:func:`train`, or the same network from the cache if it can be proved to be the same.

    Its key is a SHA-256 of the recipe, the seed, the windows, the vocabulary's size, PyTorch's
    major and minor version and the file format; the file carries a SHA-256 of its tensors. One
    that does not match is trained anew, and a line says so.

    Args:
        cache: False trains anew and writes nothing.

    The other arguments and the errors are those of :func:`train`.
    """
    fingerprint = _fingerprint(recipe, windows, vocabulary, seed)
    path = None
    if cache:
        try:
            path = cache_dir("networks") / f"gpt-{fingerprint[:16]}.safetensors"
            if path.exists():
                return load_network(path.read_bytes(), recipe, windows, vocabulary, seed)
        except Exception as error:  # whatever is wrong with the file, training anew is right
            print(f"Training the GPT anew: its cached network is unusable ({error}).")
    network = train(recipe, windows, vocabulary, seed=seed, progress=progress)
    if path is not None:
        try:
            write_atomically(path, serialise(network, windows, vocabulary))
        except OSError as error:
            print(f"The GPT was not cached: {error}.")
    return network


def token_losses(model: nn.Module, windows: Windows, batch_size: int = 256) -> np.ndarray:
    """Losses of every token, float64 (n, length) in nats; NaN where nothing counts."""
    with torch.no_grad():
        parts = [
            probelib.token_cross_entropy(model(i).double(), t)
            for i, t in zip(*(x.split(batch_size) for x in windows.data), strict=True)
        ]
    return torch.cat(parts).numpy()


def window_losses(model: nn.Module, windows: Windows) -> np.ndarray:
    """Losses of whole windows, the means over their tokens that count: float64 (n,), nats."""
    return np.nanmean(token_losses(model, windows), 1)


def embeddings(model: GPT, windows: Windows, batch_size: int = 256) -> np.ndarray:
    """What the last layer reads, averaged over each window, float64 (n, width)."""
    with torch.no_grad():
        parts = [model.stream(ids).double().mean(1) for ids in windows.inputs.split(batch_size)]
    return torch.cat(parts).numpy()


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean over windows of the mean over their tokens."""
    each = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")  # 0 if ignored
    return (each.sum(1) / (targets != IGNORED).sum(1)).mean()


def _start(
    recipe: GPTRecipe, windows: Windows, vocabulary: int, seed: int
) -> tuple[GPT, torch.Generator]:
    init_seed, order_seed = (
        int(child.generate_state(1, np.uint64)[0] >> 1)
        for child in np.random.SeedSequence(seed).spawn(2)
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(init_seed)
        model = GPT(vocabulary, windows.inputs.shape[1], recipe)
    return model.train(), torch.Generator().manual_seed(order_seed)


def _optimizer(recipe: GPTRecipe, model: GPT) -> torch.optim.Optimizer:
    decays = {True: [], False: []}
    for name, parameter in model.named_parameters():
        decays[parameter.ndim == 2 and name.startswith("blocks")].append(parameter)
    groups = [
        {"params": decays[True], "weight_decay": recipe.weight_decay},
        {"params": decays[False], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)


def _learning_rate(recipe: GPTRecipe, step: int, steps: int) -> float:
    """The rate of a step, counted from 1."""
    rising = recipe.warm_up * steps
    if step < rising:
        return recipe.learning_rate * step / rising
    return recipe.learning_rate * (1 + math.cos(math.pi * (step - rising) / (steps - rising))) / 2


def _fingerprint(
    recipe: GPTRecipe, windows: Windows, vocabulary: int, seed: int, version: str | None = None
) -> str:
    described = {
        "format": _FORMAT,
        "recipe": asdict(recipe),
        "seed": int(seed),
        "data": identity(windows),
        "vocabulary": int(vocabulary),
        "torch": version or _TORCH,
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _content(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name].numpy())
        digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def serialise(network: TrainedGPT, windows: Windows, vocabulary: int) -> bytes:
    """A network as a safetensors file, with what it was trained from and a checksum.

    Args:
        network: of :func:`train`.
        windows, vocabulary: what it was trained on.
    """
    tensors = {
        f"model.{name}": value.detach().contiguous()
        for name, value in network.model.state_dict().items()
    }
    tensors["history.loss"] = torch.from_numpy(network.loss)
    metadata = {
        "fingerprint": _fingerprint(network.recipe, windows, vocabulary, network.seed),
        "content": _content(tensors),
        "torch": _TORCH,
        "seconds": repr(network.seconds),
    }
    return save(tensors, metadata)


def load_network(
    content: bytes,
    recipe: GPTRecipe,
    windows: Windows,
    vocabulary: int,
    seed: int,
    *,
    any_torch: bool = False,
) -> TrainedGPT:
    """The network in a file of :func:`serialise`, if it is the one that is asked for.

    Args:
        content: of the file.
        recipe, windows, vocabulary, seed: that it must have been trained with.
        any_torch: whatever version of torch trained it. Training anew with this one would end in
            other weights; the weights themselves are good under any.

    Raises:
        ValueError: it was trained from other data or otherwise, or the file is damaged.
    """
    tensors, metadata = load(content), _metadata(content)
    version = metadata.get("torch", _TORCH) if any_torch else _TORCH
    if metadata.get("fingerprint") != _fingerprint(recipe, windows, vocabulary, seed, version):
        raise ValueError("it was made from other data, another recipe or another version")
    if metadata.get("content") != _content(tensors):
        raise ValueError("its content does not match its checksum")
    model, _ = _start(recipe, windows, vocabulary, seed)
    named = {name: value for name, value in tensors.items() if name.startswith("model.")}
    model.load_state_dict({name.removeprefix("model."): value for name, value in named.items()})
    return TrainedGPT(
        model.eval(),
        recipe,
        seed,
        tensors["history.loss"].numpy(),
        float(metadata["seconds"]),
        cached=True,
    )


def _metadata(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file: a length of 8 bytes, then a header of JSON."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]).get("__metadata__", {})
