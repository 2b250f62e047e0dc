"""What a researcher would use instead, each run as its documentation suggests.

Every competitor samples the posterior of Eq. 1 with the update of Eq. 7 and keeps the loss of every
observed sample at every draw. Each is an iterator over draws, one chain after the other, so that a
benchmark can take turns between them.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from probelib import cross_entropy


@dataclass(frozen=True)
class Probe:
    """A posterior, its sampler and what is observed, in terms that every contender understands."""

    model: nn.Module
    x: Tensor
    y: Tensor
    observe_x: Tensor
    observe_y: Tensor
    n_beta: float
    localization: float
    step_size: float
    batch_size: int
    observe_batch_size: int = 1000

    def to(self, device: str) -> Probe:
        """The same probe with its model and all its data on a device."""
        moved = {
            name: getattr(self, name).to(device) for name in ("x", "y", "observe_x", "observe_y")
        }
        return replace(self, model=copy.deepcopy(self.model).to(device), **moved)


@dataclass
class Chain:
    """One chain's draws as they come, and where its time went."""

    losses: list[np.ndarray] = field(default_factory=list)
    steps: int = 0
    step_seconds: float = 0.0
    observe_seconds: float = 0.0


def observe_with_loader(model: Callable[[Tensor], Tensor], loader: DataLoader) -> np.ndarray:
    """The per-sample losses of a whole DataLoader, in its order."""
    with torch.no_grad():
        return torch.cat([cross_entropy(model(x), y) for x, y in loader]).cpu().numpy()


def wait_for(device: torch.device) -> None:
    """Let the device finish, so that a clock tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def plain_loop(probe: Probe, seed: int, thin: int = 1) -> Iterator[Chain]:
    """SGLD by hand around an nn.Module, DataLoaders for both halves; yields at every draw."""
    torch.manual_seed(seed)
    model = copy.deepcopy(probe.model).eval()
    weights = list(model.parameters())
    center = [w.detach().clone() for w in weights]
    train = DataLoader(
        TensorDataset(probe.x, probe.y), probe.batch_size, shuffle=True, drop_last=True
    )
    observed = DataLoader(TensorDataset(probe.observe_x, probe.observe_y), probe.observe_batch_size)
    chain, batches = Chain(), iter(train)
    while True:
        since = time.perf_counter()
        for _ in range(thin):
            try:
                x, y = next(batches)
            except StopIteration:
                batches = iter(train)
                x, y = next(batches)
            model.zero_grad()
            cross_entropy(model(x), y).mean().backward()
            with torch.no_grad():
                for w, c in zip(weights, center, strict=True):
                    drift = probe.n_beta * w.grad + probe.localization * (w - c)
                    w -= probe.step_size / 2 * drift
                    w += probe.step_size**0.5 * torch.randn_like(w)
        wait_for(probe.x.device)
        chain.steps += thin
        chain.step_seconds += time.perf_counter() - since
        since = time.perf_counter()
        chain.losses.append(observe_with_loader(model, observed))
        chain.observe_seconds += time.perf_counter() - since
        yield chain


def posteriors_loop(probe: Probe, seed: int, thin: int = 1) -> Iterator[Chain]:
    """``posteriors``' SGLD, whose state the user carries and traces; yields at every draw.

    Its update is w += lr g - lr beta prior + sqrt(2 lr T) xi with g the gradient of a log density,
    so lr = eps / 2 and a log density of -[nb L + gamma/2 |w - w*|²] give Eq. 7.
    """
    import posteriors

    torch.manual_seed(seed)
    model = copy.deepcopy(probe.model).eval()
    center = {k: p.detach().clone() for k, p in model.named_parameters()}

    def log_posterior(params: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Any:
        x, y = batch
        mean = cross_entropy(torch.func.functional_call(model, params, x), y).mean()
        away = sum((params[k] - c).square().sum() for k, c in center.items())
        return -(probe.n_beta * mean + probe.localization / 2 * away), torch.tensor([])

    transform = posteriors.sgmcmc.sgld.build(log_posterior, lr=probe.step_size / 2)
    state = transform.init({k: c.clone() for k, c in center.items()})
    train = DataLoader(
        TensorDataset(probe.x, probe.y), probe.batch_size, shuffle=True, drop_last=True
    )
    observed = DataLoader(TensorDataset(probe.observe_x, probe.observe_y), probe.observe_batch_size)
    chain, batches = Chain(), iter(train)
    while True:
        since = time.perf_counter()
        for _ in range(thin):
            try:
                batch = next(batches)
            except StopIteration:
                batches = iter(train)
                batch = next(batches)
            state, _ = transform.update(state, batch, inplace=True)
        wait_for(probe.x.device)
        chain.steps += thin
        chain.step_seconds += time.perf_counter() - since
        since = time.perf_counter()
        now = functools.partial(torch.func.functional_call, model, state.params)
        chain.losses.append(observe_with_loader(now, observed))
        chain.observe_seconds += time.perf_counter() - since
        yield chain


class _Positions(Dataset):
    """devinterp wants token ids: a position in the data and its label serve as two tokens."""

    def __init__(self, y: Tensor):
        self.ids = torch.stack([torch.arange(len(y)), y.cpu()], 1)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[i]}


def devinterp_sample(
    probe: Probe, seed: int, *, chains: int, draws: int, burn_in: int, path: Path, thin: int = 1
) -> tuple[np.ndarray, float]:
    """devinterp 2.0.1's ``sample()`` with a custom loss; losses (chain, draw, sample), seconds.

    It observes in batches of the size that its chains step with and drops the last, smaller one.
    """
    from devinterp.slt import sampling

    if not torch.equal(probe.x[: len(probe.observe_x)], probe.observe_x):
        raise ValueError("observe_x must be the first samples of x: devinterp looks both up there")

    def loss_fn(model: nn.Module, ids: Tensor) -> Tensor:
        return cross_entropy(model(probe.x[ids[:, 0]]), ids[:, 1]).unsqueeze(-1)

    model = copy.deepcopy(probe.model)
    n = len(probe.observe_y)
    started = time.perf_counter()
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        tree = sampling.sample(
            model,
            _Positions(probe.y),
            {"all": (_Positions(probe.observe_y), n // probe.batch_size)},
            lr=probe.step_size,
            n_beta=probe.n_beta,
            localization=probe.localization,
            num_chains=chains,
            num_draws=draws,
            num_burnin_steps=burn_in,
            num_steps_bw_draws=thin,
            num_init_loss_batches=1,
            batch_size=probe.batch_size,
            init_seed=seed,
            match_sampling_input_ids_across_chains=False,
            device=str(probe.x.device),
            output_path=path,
            loss_fn=loss_fn,
        )
    seconds = time.perf_counter() - started
    return tree["loss_all"].values[..., 0], seconds
