"""Training the MNIST networks: four recipes, one loop, a cache of what it made.

The paper (A.3, A.4) names the architecture, "a two-layer ReLU MLP (width 512)", and 100 passes
over the data; it names neither the optimiser nor the pixels' scale, and "two-layer" can be read
as one hidden layer or two. :data:`RECIPES` holds the four readings that the book compares.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import nn
from torch.nn import functional

from probebook.cache import cache_dir, write_atomically
from probebook.lifeline import end_with_parent
from probebook.models import MLP
from probebook.scratch import scratch_folder
from probelib.progress import progress_bar, report_run

__all__ = [
    "RECIPES",
    "Recipe",
    "TrainedNetwork",
    "digest_tensors",
    "evaluate",
    "network_fingerprint",
    "prepare_pixels",
    "train",
    "trained_network",
    "trained_networks",
]

MNIST_MEAN, MNIST_STD = 0.1307, 0.3081
"""Mean and standard deviation of the training images' pixels, scaled to [0, 1]."""

_MODULE = "probebook.training"
_NAME = set(string.ascii_letters + string.digits + "-_")
_FORMAT = "1"  # of a cached network; part of its fingerprint


@dataclass(frozen=True)
class Recipe:
    """How a network is made and trained.

    Attributes:
        name: a short label, used in tables and file names.
        hidden: width of each hidden layer.
        pixels: ``"unit"`` for [0, 1], ``"standardised"`` for (unit - 0.1307) / 0.3081.
        optimizer: ``"sgd"`` (with ``momentum``) or ``"adam"`` (PyTorch's betas and epsilon;
            ``momentum`` must be 0).
        learning_rate: at the start.
        momentum: of SGD, without Nesterov or dampening.
        batch_size: samples a step; an epoch's last step takes what is left.
        epochs: passes over the data, each in a new random order.
        schedule: ``"constant"``, or ``"cosine"``: epoch e of E runs at
            learning_rate * (1 + cos(pi e / E)) / 2, e = 0..E-1.
        weight_decay: L2 penalty's coefficient, as PyTorch's optimisers define it.

    Raises:
        ValueError: a value is out of its range, or an optimiser, scale or schedule is unknown.
    """

    name: str
    hidden: tuple[int, ...]
    pixels: Literal["unit", "standardised"]
    optimizer: Literal["sgd", "adam"]
    learning_rate: float
    momentum: float
    batch_size: int
    epochs: int
    schedule: Literal["constant", "cosine"]
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        for field, known in (
            ("pixels", ("unit", "standardised")),
            ("optimizer", ("sgd", "adam")),
            ("schedule", ("constant", "cosine")),
        ):
            if getattr(self, field) not in known:
                raise ValueError(f"{field} must be one of {known}, got {getattr(self, field)!r}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum}")
        if self.optimizer == "adam" and self.momentum != 0:
            raise ValueError(f"adam takes no momentum here, got {self.momentum}")
        if self.batch_size < 1 or self.epochs < 1:
            sizes = f"{self.batch_size} and {self.epochs}"
            raise ValueError(f"batch_size and epochs must be at least 1, got {sizes}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay must be 0 or more, got {self.weight_decay}")
        if not self.name or not set(self.name) <= _NAME:
            raise ValueError(f"name must be letters, digits, - and _, got {self.name!r}")

    def describe(self) -> str:
        """One line for a table or a caption."""
        widths = "-".join(str(width) for width in (784, *self.hidden, 10))
        pixels = "pixels in [0, 1]" if self.pixels == "unit" else "standardised pixels"
        optimizer = "SGD" if self.optimizer == "sgd" else "Adam"
        rate = f"{optimizer} {self.learning_rate:g}"
        if self.momentum:
            rate += f" momentum {self.momentum:g}"
        parts = [widths, pixels, rate, f"batch {self.batch_size}"]
        if self.schedule == "cosine":
            parts.append("cosine")
        if self.weight_decay:
            parts.append(f"weight decay {self.weight_decay:g}")
        parts.append(f"{self.epochs} epoch{'s' if self.epochs != 1 else ''}")
        return ", ".join(parts)


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            Recipe("sgd-unit-1x512", (512,), "unit", "sgd", 0.1, 0.9, 64, 100, "cosine"),
            Recipe("sgd-std-1x512", (512,), "standardised", "sgd", 0.05, 0.9, 128, 100, "constant"),
            Recipe("adam-unit-2x512", (512, 512), "unit", "adam", 1e-3, 0.0, 128, 100, "cosine"),
            Recipe(
                "sgd-std-2x512", (512, 512), "standardised", "sgd", 0.05, 0.9, 128, 100, "constant"
            ),
        )
    }
)
"""The recipes that the book compares, by name (read-only)."""


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A trained network and how its training went.

    Attributes:
        model: in eval mode, on the device it was trained on.
        recipe: what trained it.
        seed: of its initial weights and of the order of the data.
        loss: (epochs,) float64, mean training cross-entropy of each epoch in nats, taken during
            the pass, so while the weights move.
        accuracy: (epochs,) float64, training accuracy in [0, 1], taken the same way.
        seconds: wall time of the training itself; of the original one if the network was cached.
        cached: whether it was read from the cache instead of trained by this call.
    """

    model: MLP
    recipe: Recipe
    seed: int
    loss: np.ndarray
    accuracy: np.ndarray
    seconds: float
    cached: bool = False


def prepare_pixels(images: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """The network's input: float32 ``(n, 784)`` from uint8 images ``(n, 28, 28)``.

    Args:
        images: uint8, 0..255; other sizes of image give other widths of input.
        recipe: its ``pixels`` says which scale.

    Raises:
        ValueError: ``images`` is not a uint8 tensor of three dimensions.
    """
    if images.dtype != torch.uint8 or images.ndim != 3:
        raise ValueError(
            "images must be uint8 of shape (n, height, width), "
            f"got {images.dtype} of shape {tuple(images.shape)}"
        )
    unit = images.flatten(1).float().div_(255)
    return unit if recipe.pixels == "unit" else unit.sub_(MNIST_MEAN).div_(MNIST_STD)


def train(
    recipe: Recipe,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    seed: int,
    progress: bool = True,
    device: str | torch.device = "cpu",
    on_epoch: Callable[[int, MLP], None] | None = None,
) -> TrainedNetwork:
    """Train a network on images in memory.

    Initial weights and the order of the data come from two streams spawned from ``seed``;
    PyTorch's global generators are neither read nor moved. On a CPU the same seed gives the
    same weights bit for bit, on the same machine and PyTorch: training takes one thread whatever
    the number of cores (steps this small gain little from a second; :func:`trained_networks`
    spends the cores on several networks at once), and puts the thread count back.

    Args:
        recipe: what to train and how.
        images: uint8 ``(n, 28, 28)``.
        labels: int64 ``(n,)``, classes 0..9.
        seed: 0 or more.
        progress: show a bar of epochs.
        device: where to train.
        on_epoch: called after every epoch with its number, from 1, and the model, which it leaves
            as it is; what it needs later it copies.

    Raises:
        ValueError: images and labels do not fit together, a label is out of range, seed < 0.
        FloatingPointError: the loss of an epoch is not finite; names recipe, epoch and rate.
    """
    _check_labels(images, labels)
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    device = torch.device(device)
    x = prepare_pixels(images, recipe).to(device)
    y = labels.to(device)
    n = len(y)

    init_seed, order_seed = (
        int(child.generate_state(1, np.uint64)[0] >> 1)
        for child in np.random.SeedSequence(seed).spawn(2)
    )
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also seed every accelerator, and not restore them.
        torch.default_generator.manual_seed(init_seed)
        model = MLP(recipe.hidden, in_features=x.shape[1])
    model.to(device).train()
    order = torch.Generator().manual_seed(order_seed)
    optimizer = _optimizer(recipe, model)

    losses, accuracies = np.empty(recipe.epochs), np.empty(recipe.epochs)
    logits_seen = torch.empty(n, model.layers[-1].out_features, device=device)
    started = time.perf_counter()
    bar = progress_bar(
        total=recipe.epochs, desc=recipe.name, unit="epoch", disable=not progress, mininterval=1.0
    )
    with bar, _one_thread():
        for epoch in range(recipe.epochs):
            rate = _learning_rate(recipe, epoch)
            for group in optimizer.param_groups:
                group["lr"] = rate
            permutation = torch.randperm(n, generator=order).to(device)
            for start in range(0, n, recipe.batch_size):
                batch = permutation[start : start + recipe.batch_size]
                logits = model(x.index_select(0, batch))
                functional.cross_entropy(logits, y.index_select(0, batch)).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                logits_seen[start : start + len(batch)] = logits.detach()
            # The pass's own outputs give its loss and accuracy: no second pass.
            target = y[permutation]
            losses[epoch] = functional.cross_entropy(logits_seen, target).item()
            accuracies[epoch] = (logits_seen.argmax(1) == target).double().mean().item()
            if not math.isfinite(losses[epoch]):
                raise FloatingPointError(
                    f"training {recipe.name} diverged: the loss of epoch {epoch + 1} is "
                    f"{losses[epoch]} at learning rate {rate:g}; try a smaller one"
                )
            shown = {"loss": losses[epoch], "accuracy": accuracies[epoch]}
            bar.set_postfix({name: f"{value:.4f}" for name, value in shown.items()}, refresh=False)
            bar.update()
            if on_epoch is not None:
                on_epoch(epoch + 1, model)
    seconds = time.perf_counter() - started
    model.eval()
    return TrainedNetwork(model, recipe, seed, losses, accuracies, seconds)


def trained_network(
    recipe: Recipe,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    seed: int,
    cache: bool = True,
    progress: bool = True,
    device: str | torch.device = "cpu",
) -> TrainedNetwork:
    """:func:`train`, or the same network from the cache if it can be proved to be the same.

    The cache is ``cache_dir("networks")``, one safetensors file a network. Its key is a SHA-256
    of recipe, seed, content of images and labels, PyTorch's major and minor version and the file
    format; the file also carries a SHA-256 of its tensors. A file that does not match, or cannot
    be read, is reported, retrained and replaced. A cache that cannot be written costs a line.

    Args:
        cache: False trains anew and writes nothing.

    The other arguments and the errors are those of :func:`train`.
    """
    if cache and (kept := _from_cache(recipe, images, labels, seed, device)) is not None:
        return kept
    network = train(recipe, images, labels, seed=seed, progress=progress, device=device)
    if cache:
        _to_cache(network, network_fingerprint(recipe, images, labels, seed))
    return network


def trained_networks(
    recipes: Sequence[Recipe],
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    seed: int,
    cache: bool = True,
    progress: bool = True,
    jobs: int | None = None,
) -> dict[str, TrainedNetwork]:
    """Several recipes on the same data, on the CPU, as many at once as there are cores.

    The networks are those of :func:`trained_network`, bit for bit: each trains on one thread.

    Args:
        recipes: of different names.
        images: uint8 ``(n, 28, 28)``.
        labels: int64 ``(n,)``, classes 0..9.
        seed: 0 or more, the same for all.
        cache: False trains all anew, and writes nothing.
        progress: show one bar, of the epochs of all.
        jobs: networks at once; None for one a core that this process may use.

    Returns:
        The networks by the name of their recipe, in the order given.

    Raises:
        ValueError: two recipes have the same name, ``jobs`` is below 1, or as :func:`train`.
        RuntimeError: a training failed; names the recipe and gives its last line. The others
            are stopped.
    """
    _check_labels(images, labels)
    names = [recipe.name for recipe in recipes]
    if len(set(names)) < len(names):
        raise ValueError(f"recipes must have different names, got {names}")
    if jobs is None:
        jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    elif jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    found: dict[str, TrainedNetwork] = {}
    if cache:
        for recipe in recipes:
            if (kept := _from_cache(recipe, images, labels, seed, "cpu")) is not None:
                found[recipe.name] = kept
    missing = [recipe for recipe in recipes if recipe.name not in found]
    if len(missing) < 2 or jobs == 1:
        new = [train(recipe, images, labels, seed=seed, progress=progress) for recipe in missing]
    else:
        new = _train_side_by_side(missing, images, labels, seed, progress, jobs)
    for network in new:
        found[network.recipe.name] = network
        if cache:
            _to_cache(network, network_fingerprint(network.recipe, images, labels, seed))
    return {name: found[name] for name in names}


def evaluate(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, batch_size: int = 10_000
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and correctness of every sample, with the model in eval mode.

    The loss is log(1 + sum_{j != y} exp(z_j - z_y)) in float64, which keeps the order of very
    confident samples where a float32 log-softmax rounds them all to exactly 0. The model's mode
    is restored.

    Args:
        model: returns logits ``(batch, classes)``; on the device of its parameters.
        x: inputs ``(n, ...)``, as :func:`prepare_pixels` makes them.
        y: int64 ``(n,)``, the classes to score against.
        batch_size: samples a forward pass; changes memory, not the result.

    Returns:
        loss: float64 ``(n,)``, in nats, on the CPU.
        correct: bool ``(n,)``, whether the largest logit is that of ``y``, on the CPU.

    Raises:
        ValueError: x and y have different lengths, or batch_size is below 1.
    """
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} samples and y has {len(y)}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    parameter = next(model.parameters(), None)
    device = x.device if parameter is None else parameter.device
    modes = [(module, module.training) for module in model.modules()]
    losses, correct = torch.empty(len(y), dtype=torch.float64), torch.empty(len(y), dtype=bool)
    try:
        model.eval()
        with torch.no_grad():
            for start in range(0, len(y), batch_size):
                part = slice(start, start + batch_size)
                logits = model(x[part].to(device)).cpu().double()
                target = y[part].cpu()[:, None]
                correct[part] = logits.argmax(1) == target[:, 0]
                others = (logits - logits.gather(1, target)).scatter(1, target, -math.inf)
                losses[part] = functional.softplus(others.logsumexp(1))
    finally:
        for module, mode in modes:
            module.training = mode
    return losses, correct


def _check_labels(images: torch.Tensor, labels: torch.Tensor) -> None:
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise ValueError(
            f"labels must be int64 of shape (n,), got {labels.dtype} {tuple(labels.shape)}"
        )
    if len(images) != len(labels) or len(labels) == 0:
        counts = f"{len(images)} and {len(labels)}"
        raise ValueError(f"images and labels must be equally many and not empty, got {counts}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > 9:
        raise ValueError(f"labels must be in 0..9, found {low} to {high}")


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _train_side_by_side(
    recipes: Sequence[Recipe],
    images: torch.Tensor,
    labels: torch.Tensor,
    seed: int,
    progress: bool,
    jobs: int,
) -> list[TrainedNetwork]:
    """Train each recipe in a process of its own, ``jobs`` at a time, the longest first."""
    # Plain subprocesses: multiprocessing's would import the caller's script a second time.
    environment = {"OMP_WAIT_POLICY": "passive"} | os.environ  # several trainings share the cores
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).resolve().parents[2]), environment.get("PYTHONPATH")])
    )
    command = [sys.executable, "-c", f"from {_MODULE} import _worker; _worker()"]
    running: set[subprocess.Popen] = set()
    stopped = Event()
    bar = progress_bar(
        total=sum(recipe.epochs for recipe in recipes),
        desc=f"training {len(recipes)} networks",
        unit="epoch",
        disable=not progress,
        mininterval=1.0,
    )

    def one(recipe: Recipe) -> TrainedNetwork:
        result, log = (folder / f"{recipe.name}.{kind}" for kind in ("safetensors", "log"))
        job = {
            "parent": os.getpid(),
            "recipe": asdict(recipe),
            "seed": int(seed),
            "fingerprint": network_fingerprint(recipe, images, labels, seed),
            "data": str(data),
            "result": str(result),
        }
        if stopped.is_set():
            raise RuntimeError(f"training {recipe.name} was not started")
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [*command, json.dumps(job)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
            )
        running.add(process)
        with process:
            while process.stdout.read(1):  # the worker writes a byte an epoch
                bar.update()
        running.discard(process)
        if process.returncode != 0:
            lines = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            raise RuntimeError(f"training {recipe.name} failed: {lines[-1]}")
        network = _load(result, recipe, images[0].numel(), seed, job["fingerprint"], "cpu")
        return replace(network, cached=False)

    with scratch_folder("training") as folder, bar:
        data = folder / "data.safetensors"
        save_file({"images": images.cpu().contiguous(), "labels": labels.cpu().contiguous()}, data)
        order = sorted(recipes, key=lambda recipe: (len(recipe.hidden), recipe.epochs))[::-1]
        with ThreadPoolExecutor(jobs) as pool:
            futures = {recipe.name: pool.submit(one, recipe) for recipe in order}
            try:
                for future in as_completed(futures.values()):
                    future.result()
            except BaseException:
                stopped.set()
                for process in list(running):
                    process.kill()
                raise
    return [futures[recipe.name].result() for recipe in recipes]


def _worker() -> None:
    """The process of one training: the job is the first argument, in JSON."""
    job = json.loads(sys.argv[1])
    end_with_parent(job["parent"])
    recipe = Recipe(**job["recipe"])
    data = load_file(job["data"])
    images, labels = data["images"], data["labels"]
    network = train(recipe, images, labels, seed=job["seed"], progress=False, on_epoch=_dot)
    write_atomically(Path(job["result"]), _serialise(network, job["fingerprint"]))


def _dot(epoch: int, model: MLP) -> None:
    print(".", end="", flush=True)


def _from_cache(
    recipe: Recipe,
    images: torch.Tensor,
    labels: torch.Tensor,
    seed: int,
    device: str | torch.device,
) -> TrainedNetwork | None:
    _check_labels(images, labels)
    fingerprint = network_fingerprint(recipe, images, labels, seed)
    try:
        path = _cache_path(recipe, fingerprint)
        if not path.exists():
            return None
        network = _load(path, recipe, images[0].numel(), seed, fingerprint, device)
        report_run("network", network.seconds, cached=True, file=path)
        return network
    except Exception as error:  # whatever is wrong with the file, training anew is right
        print(f"Training {recipe.name} anew: its cached network is unusable ({error}).")
        return None


def _to_cache(network: TrainedNetwork, fingerprint: str) -> None:
    report_run("network", network.seconds, cached=False)
    try:
        path = _cache_path(network.recipe, fingerprint)
        write_atomically(path, _serialise(network, fingerprint))
    except OSError as error:
        print(f"The network {network.recipe.name} was not cached: {error}.")


def _cache_path(recipe: Recipe, fingerprint: str) -> Path:
    return cache_dir("networks") / f"{recipe.name}-{fingerprint[:16]}.safetensors"


def _optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    # fused: one kernel for all parameters; PyTorch has it for the CPU since 2.4.
    shared = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay, "fused": True}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=recipe.momentum, **shared)
    return torch.optim.Adam(model.parameters(), **shared)


def _learning_rate(recipe: Recipe, epoch: int) -> float:
    if recipe.schedule == "constant":
        return recipe.learning_rate
    return recipe.learning_rate * (1 + math.cos(math.pi * epoch / recipe.epochs)) / 2


def digest_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name].detach().cpu().numpy())
        digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def network_fingerprint(
    recipe: Recipe, images: torch.Tensor, labels: torch.Tensor, seed: int
) -> str:
    described = {
        "format": _FORMAT,
        "recipe": asdict(recipe),
        "seed": int(seed),
        "data": digest_tensors({"images": images, "labels": labels}),
        "torch": ".".join(torch.__version__.split(".")[:2]),
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _serialise(network: TrainedNetwork, fingerprint: str) -> bytes:
    tensors = {
        f"model.{name}": value.detach().cpu().contiguous()
        for name, value in network.model.state_dict().items()
    }
    tensors["history.loss"] = torch.from_numpy(network.loss)
    tensors["history.accuracy"] = torch.from_numpy(network.accuracy)
    metadata = {
        "format": _FORMAT,
        "fingerprint": fingerprint,
        "content": digest_tensors(tensors),
        "recipe": json.dumps(asdict(network.recipe)),
        "seed": str(network.seed),
        "seconds": repr(network.seconds),
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
    }
    return save(tensors, metadata)


def _load(
    path: Path,
    recipe: Recipe,
    in_features: int,
    seed: int,
    fingerprint: str,
    device: str | torch.device,
) -> TrainedNetwork:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"format {metadata.get('format')}, not {_FORMAT}")
    if metadata.get("fingerprint") != fingerprint:
        raise ValueError("it was made from other data, another recipe or another version")
    if metadata.get("content") != digest_tensors(tensors):
        raise ValueError("its content does not match its checksum")
    with torch.random.fork_rng(devices=[]):
        model = MLP(recipe.hidden, in_features=in_features)
    model.load_state_dict(
        {
            name.removeprefix("model."): value
            for name, value in tensors.items()
            if name.startswith("model.")
        }
    )
    return TrainedNetwork(
        model.to(device).eval(),
        recipe,
        seed,
        tensors["history.loss"].numpy(),
        tensors["history.accuracy"].numpy(),
        float(metadata["seconds"]),
        cached=True,
    )
