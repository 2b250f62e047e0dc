"""What becomes of a chain whose weights are stored in bfloat16: noise that rounds away.

``probelib`` runs a model in half precision in float32, from the same w*. This is the plain loop
that shows what that avoids: Eq. 7 with the weights rounded after every step, everything else in
float32, so that nothing but the storage differs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call

import probelib
from probebook.language_data import Windows

__all__ = ["StoredChain", "noise_kept", "stored", "stored_chain"]


def stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A float32 tensor as it comes back from being stored in another precision."""
    return tensor.to(dtype).to(torch.float32)


def noise_kept(
    model: nn.Module, step_size: float, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> pd.DataFrame:
    """What one step's noise, N(0, step_size), does to weights that are stored in ``dtype``.

    Args:
        model: its weights are where the step starts, rounded.
        step_size: eps; the noise of a weight has the standard deviation sqrt(eps).
        dtype: of the stored weights.
        seed: of the noise.

    Returns:
        A row a parameter and one, ``all``, of all: ``weights``, how many; ``size``, their median;
        ``unmoved``, the share that the noise leaves where they are; ``variance``, the mean square
        of the move over eps (1 where nothing is lost).

    Raises:
        ValueError: ``step_size`` is not positive.
    """
    if not step_size > 0:
        raise ValueError(f"step_size must be positive, got {step_size}")
    generator = torch.Generator().manual_seed(seed)
    rows, moves = {}, []
    for name, parameter in model.named_parameters():
        start = stored(parameter.detach().float(), dtype)
        noise = torch.randn(start.shape, generator=generator) * step_size**0.5
        move = stored(start + noise, dtype) - start
        rows[name] = _row(start, move, step_size)
        moves.append((start.flatten(), move.flatten()))
    rows["all"] = _row(*map(torch.cat, zip(*moves, strict=True)), step_size)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("parameter").reset_index()


def _row(start: Tensor, move: Tensor, step_size: float) -> dict[str, float]:
    return {
        "weights": start.numel(),
        "size": float(start.abs().median()),
        "unmoved": float((move == 0).double().mean()),
        "variance": float(move.double().square().mean() / step_size),
    }


@dataclass(frozen=True, eq=False)
class StoredChain:
    """A chain with stored weights.

    Attributes:
        loss: of the observed windows at every draw, float64 (draws, n), nats.
        init_loss: at the stored w*, (n,), nats.
        spread: gamma |w - w*|² / d at every draw, (draws,): about 1 where the localization holds,
            for it alone leaves 1.
    """

    loss: np.ndarray
    init_loss: np.ndarray
    spread: np.ndarray

    @property
    def gain(self) -> np.ndarray:
        """The loss gain of each observed window, (n,), nats."""
        return self.loss.mean(0) - self.init_loss


def stored_chain(
    model: nn.Module,
    windows: Windows,
    observed: Windows,
    dtype: torch.dtype,
    *,
    n_beta: float,
    localization: float,
    step_size: float,
    batch_size: int = 32,
    draws: int = 20,
    burn_in: int = 100,
    thin: int = 5,
    seed: int = 0,
) -> StoredChain:
    """SGLD (Eq. 7) whose weights are stored in ``dtype`` after every step.

    The same seed gives the same batches and the same noise whatever the precision, so that two
    chains differ in the storage alone.

    Args:
        model: with the trained weights; left as it is.
        windows: of the posterior.
        observed: whose losses are recorded.
        dtype: ``torch.float32`` or ``torch.bfloat16``.
        n_beta, localization, step_size, batch_size: as in ``probelib``.
        draws, burn_in, thin: draw d is taken after burn_in + (d + 1) thin steps.
        seed: of batches and noise.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    start = {name: stored(p.detach().float(), dtype) for name, p in model.named_parameters()}
    weights = {name: value.clone() for name, value in start.items()}
    count = sum(value.numel() for value in start.values())

    def losses(at: dict[str, Tensor], some: Windows) -> Tensor:
        inputs, targets = some.data
        return probelib.sequence_cross_entropy(functional_call(model, at, (inputs,)), targets)

    with torch.no_grad():
        init, found, spread = losses(start, observed), [], []
    for step in range(1, burn_in + draws * thin + 1):
        batch = torch.randint(len(windows), (batch_size,), generator=generator).numpy()
        free = {name: value.requires_grad_() for name, value in weights.items()}
        mean = losses(free, windows[batch]).mean()
        slopes = torch.autograd.grad(mean, list(free.values()))
        with torch.no_grad():
            for (name, value), slope in zip(free.items(), slopes, strict=True):
                pull = n_beta * slope + localization * (value - start[name])
                noise = torch.randn(value.shape, generator=generator) * step_size**0.5
                weights[name] = stored(value - step_size / 2 * pull + noise, dtype)
            if step > burn_in and (step - burn_in) % thin == 0:
                found.append(losses(weights, observed))
                away = sum(float((weights[n] - start[n]).square().sum()) for n in start)
                spread.append(localization * away / count)
    chain = StoredChain(
        torch.stack(found).double().numpy(), init.double().numpy(), np.array(spread)
    )
    if not (np.isfinite(chain.loss).all() and np.isfinite(chain.spread).all()):
        raise FloatingPointError(
            f"the chain diverged at step_size {step_size:g}; give a smaller one"
        )
    return chain
