r"""How far draws of a language model may go from w*: a rule written down before it was measured.

Let :math:`L_0` be the mean loss of a model that knows only how frequent each token is (counts of a
reference text, one added to each token's), :math:`L^* = L(w^*)`, and

.. math::

   \text{kept}(\gamma) = \frac{L_0 - E[L(w)]}{L_0 - L^*}, \qquad w \sim \mathcal N(w^*, I/\gamma)

(along a chain: the mean over its draws in the place of E). The rule: **of the grid**
:math:`\gamma = 10^{k/2}` **the smallest at which kept is 0.9 or more**. The draws keep nine tenths
of what the network has learned beyond token frequencies. A smaller :math:`\gamma` asks about a
network that has lost more of it than that, a larger one about a smaller neighbourhood than needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import probelib
from probebook.language_data import IGNORED

__all__ = ["GRID", "KEEP", "Choice", "choose_localization", "frequency_loss", "kept_share"]

KEEP = 0.9
"""The share of what was learned that the draws must keep."""

GRID = tuple(10.0 ** (k / 2) for k in range(4, 13))
"""100, 316.2, 1000, ..., 1e6."""


@dataclass(frozen=True, eq=False)
class Choice:
    """What the rule chose, and from what.

    Attributes:
        localization: the chosen gamma.
        table: a row a gamma: ``gamma``; ``loss``, the mean of L over the draws, nats; ``error``,
            its standard error; ``kept`` and ``kept_error``.
        frequency_loss: L0, nats.
        trained_loss: L(w*), nats.
    """

    localization: float
    table: pd.DataFrame
    frequency_loss: float
    trained_loss: float


def kept_share(
    loss: float | np.ndarray, frequency_loss: float, trained_loss: float
) -> float | np.ndarray:
    """The share of what was learned beyond token frequencies that a mean loss still shows.

    Args:
        loss: E[L(w)], nats, of any shape.
        frequency_loss: L0, nats.
        trained_loss: L(w*), nats.

    Returns:
        1 at w*, 0 at L0, negative beyond.

    Raises:
        ValueError: a loss is not finite, or the network knows no more than frequencies.
    """
    for name, value in (("loss", loss), ("frequency_loss", frequency_loss),
                        ("trained_loss", trained_loss)):  # fmt: skip
        if not np.isfinite(value).all():
            raise ValueError(f"{name} is {value}; give finite numbers of nats")
    learned = frequency_loss - trained_loss
    if not learned > 0:
        raise ValueError(
            f"trained_loss is {trained_loss:.4g}, not below the {frequency_loss:.4g} of token "
            "frequencies; there is nothing of which draws could keep a share"
        )
    return (frequency_loss - loss) / learned


def frequency_loss(reference: Tensor | Sequence[int], targets: Tensor, vocabulary: int) -> float:
    """L0: the loss of a model that knows only how frequent each token is.

    Args:
        reference: tokens that are counted, of any shape; negative ones are none.
        targets: (n, length), those that are to be said; -100 where nothing counts.
        vocabulary: how many different tokens there are; one is added to each one's count.

    Returns:
        The mean over the n of the mean over their tokens, nats.

    Raises:
        ValueError: a token is not of the vocabulary, or a row has none that counts.
    """
    seen, said = torch.as_tensor(reference).reshape(-1), torch.as_tensor(targets)
    seen = seen[seen >= 0]
    counted = said != IGNORED
    if len(seen) == 0 or not counted.any(1).all():
        raise ValueError("reference or a row of targets has no token that counts; leave it out")
    low, high = int(said[counted].min()), int(max(seen.max(), said[counted].max()))
    if low < 0 or high >= vocabulary:
        raise ValueError(f"vocabulary is {vocabulary}, but there are tokens {low} to {high}")
    often = torch.bincount(seen, minlength=vocabulary).double() + 1
    losses = -(often / often.sum()).log()[said.clamp(min=0)]
    return float((losses.where(counted, 0).sum(1) / counted.sum(1)).mean())


def choose_localization(
    posterior: probelib.LocalPosterior,
    frequency_loss: float,
    grid: Sequence[float] = GRID,
    *,
    draws: int = 8,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> Choice:
    """The smallest gamma of the grid at which draws from N(w*, I/gamma) keep enough.

    All gammas have the same random directions, so that they differ in the distance alone.

    Args:
        posterior: of the network and its text; its own localization and n_beta count for nothing.
        frequency_loss: L0, nats.
        grid: the gammas.
        draws: of each gamma.
        seed: of the draws.
        progress: show a bar for each gamma.
        options: of ``probelib.importance_sample``, such as ``cache``.

    Raises:
        ValueError: no gamma keeps enough, L0 is not above L(w*), or a loss is not finite.

    Warns:
        UserWarning: the smallest gamma keeps enough already, so that a smaller one might.
    """
    gammas, rows, center = sorted(map(float, grid)), [], np.nan
    for gamma in gammas:
        trace = probelib.importance_sample(
            posterior.at(localization=gamma), draws=draws, seed=seed, progress=progress, **options
        )
        losses, center = trace.mean_loss.values.ravel(), float(trace.init_loss.mean())
        kept = kept_share(losses, frequency_loss, center)
        found = [v for x in (losses, kept) for v in (x.mean(), x.std(ddof=1) / draws**0.5)]
        rows.append((gamma, *found))
    table = pd.DataFrame(rows, columns=["gamma", "loss", "error", "kept", "kept_error"])
    enough = table.gamma[table.kept >= KEEP]
    if enough.empty:
        raise ValueError(
            f"grid ends at {gammas[-1]:g}, where draws keep {table.kept.iloc[-1]:.2f} of what was "
            f"learned, less than {KEEP}; give larger gammas"
        )
    chosen = float(enough.iloc[0])
    if chosen == gammas[0]:
        warnings.warn(
            f"grid begins at {chosen:g}, which keeps {table.kept.iloc[0]:.2f} already; a smaller "
            "gamma might, too",
            stacklevel=2,
        )
    return Choice(chosen, table, frequency_loss, center)
