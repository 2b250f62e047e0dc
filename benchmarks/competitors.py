"""What a researcher would use instead, each run as its documentation suggests.

Every competitor samples the posterior of Eq. 1 with the update of Eq. 7 and keeps the loss of every
observed sample at every draw. The two loops are iterators over the draws of one chain, so that a
benchmark can take turns between them; devinterp runs a whole call.
"""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
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
    """One chain's draws as they come, and the time that its steps took."""

    losses: list[np.ndarray] = field(default_factory=list)
    steps: int = 0
    step_seconds: float = 0.0


def wait_for(device: torch.device) -> None:
    """Let the device finish, so that a clock tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _draws(
    probe: Probe,
    thin: int,
    step: Callable[[Tensor, Tensor], None],
    outputs: Callable[[Tensor], Tensor],
) -> Iterator[Chain]:
    """Step on minibatches of a DataLoader and observe with another; yields at every draw."""
    train = DataLoader(
        TensorDataset(probe.x, probe.y), probe.batch_size, shuffle=True, drop_last=True
    )
    observed = DataLoader(TensorDataset(probe.observe_x, probe.observe_y), probe.observe_batch_size)
    chain, batches = Chain(), itertools.chain.from_iterable(itertools.repeat(train))
    while True:
        since = time.perf_counter()
        for x, y in itertools.islice(batches, thin):
            step(x, y)
        wait_for(probe.x.device)
        chain.steps += thin
        chain.step_seconds += time.perf_counter() - since
        with torch.no_grad():
            losses = [cross_entropy(outputs(x), y) for x, y in observed]
        chain.losses.append(torch.cat(losses).cpu().numpy())
        yield chain


def plain_loop(probe: Probe, seed: int, thin: int = 1) -> Iterator[Chain]:
    """SGLD by hand around an nn.Module, DataLoaders for both halves; yields at every draw."""
    torch.manual_seed(seed)
    model = copy.deepcopy(probe.model).eval()
    weights = list(model.parameters())
    center = [w.detach().clone() for w in weights]

    def step(x: Tensor, y: Tensor) -> None:
        model.zero_grad()
        cross_entropy(model(x), y).mean().backward()
        with torch.no_grad():
            for w, c in zip(weights, center, strict=True):
                drift = probe.n_beta * w.grad + probe.localization * (w - c)
                w -= probe.step_size / 2 * drift
                w += probe.step_size**0.5 * torch.randn_like(w)

    return _draws(probe, thin, step, model)


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
        mean = cross_entropy(functional_call(model, params, x), y).mean()
        away = sum((params[k] - c).square().sum() for k, c in center.items())
        return -(probe.n_beta * mean + probe.localization / 2 * away), torch.tensor([])

    transform = posteriors.sgmcmc.sgld.build(log_posterior, lr=probe.step_size / 2)
    state = transform.init({k: c.clone() for k, c in center.items()})

    def step(x: Tensor, y: Tensor) -> None:
        nonlocal state
        state, _ = transform.update(state, (x, y), inplace=True)

    return _draws(probe, thin, step, lambda x: functional_call(model, state.params, x))


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
