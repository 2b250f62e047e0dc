"""The probe's scores of wrong labels: gain, posterior mean loss, variance, third cumulant, R."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.nn import functional

import probelib
from probebook.labels.scores import disagreement
from probebook.models import MLP
from probelib.calibration.localization import choose_localization
from probelib.estimators.weighted import weights_of

__all__ = [
    "PROBE",
    "ChainSettings",
    "chains_around",
    "local_gamma",
    "probe_scores",
    "third_cumulant",
    "weighted_draws",
]

PROBE: Mapping[str, str] = MappingProxyType({
    "loss_gain": "loss gain",
    "mean_loss": "posterior mean loss",
    "variance": "variance of the loss, K_ii",
    "third_cumulant": "third cumulant of the loss",
    "kernel_neighbours": "neighbours of other labels, R",
})  # fmt: skip
"""Scores of the probe, and their names in a table."""


@dataclass(frozen=True)
class ChainSettings:
    """Settings of chains, one for all networks: Table 1's row for MNIST, with another step.

    Attributes:
        n_beta, localization: of Eq. 1.
        step_size, batch_size: of Leimkuhler-Matthews.
        chains, draws, thin, burn_in: of the run.
    """

    n_beta: float = 10.0
    localization: float = 30.0
    step_size: float = 5e-3
    batch_size: int = 64
    chains: int = 4
    draws: int = 50
    thin: int = 4
    burn_in: int = 50


def local_gamma(model: MLP, x: Tensor, y: Tensor, seed: int = 0) -> float:
    """The localization of a network: the smallest of 1, 3, 10, ... that keeps nine tenths.

    It is the rule of :func:`probelib.calibrate`: draws from N(w*, I / gamma) keep nine tenths of
    what the network knows beyond the frequency of its labels. It asks for nothing about which
    labels are wrong. A network that knows nothing beyond them gets 1000.
    """
    frequency = torch.bincount(y).double() / len(y)
    guess = float(-(frequency[frequency > 0].log() * frequency[frequency > 0]).sum())
    posterior = probelib.LocalPosterior(
        model, probelib.cross_entropy, (x, y), n_beta=10.0, localization=1.0
    )
    with torch.no_grad():
        if not float(functional.cross_entropy(model(x), y)) < guess:
            return 1000.0
    return choose_localization(posterior, (x, y), guess, 0.9, seed)[0].localization


def weighted_draws(
    model: MLP, x: Tensor, y: Tensor, localization: float, draws: int, seed: int
) -> xr.Dataset:
    """Independent weighted draws around one network, at n beta = 10, that observe all samples."""
    posterior = probelib.LocalPosterior(
        model, probelib.cross_entropy, (x, y), n_beta=10.0, localization=localization
    )
    return probelib.importance_sample(posterior, draws, seed=seed, progress=False)


def chains_around(
    model: MLP, x: Tensor, y: Tensor, settings: ChainSettings, seed: int
) -> xr.Dataset:
    """Chains around one network, that observe all samples."""
    posterior = probelib.LocalPosterior(
        model,
        probelib.cross_entropy,
        (x, y),
        n_beta=settings.n_beta,
        localization=settings.localization,
    )
    return probelib.sample(
        posterior,
        sampler=probelib.LeimkuhlerMatthews(settings.step_size, batch_size=settings.batch_size),
        chains=settings.chains,
        draws=settings.draws,
        thin=settings.thin,
        burn_in=settings.burn_in,
        seed=seed,
        progress=False,
    )


def probe_scores(trace: xr.Dataset, labels: np.ndarray, k: int = 20) -> dict[str, np.ndarray]:
    """All :data:`PROBE` scores, by name; each (n,), high where a label is suspicious.

    And ``flags_label_issues``, boolean (n,): those that :func:`probelib.label_issues` flags.

    Args:
        trace: that observes the training samples.
        labels: those that the network was trained on, in the order of the trace.
        k: neighbours, of R.
    """
    with warnings.catch_warnings():  # scores, not flags, are wanted of networks that fit all
        warnings.filterwarnings("ignore", "the network fits", UserWarning)
        table = probelib.label_issues(trace)
    near = probelib.loss_kernel(trace).top_correlated(k=k)
    return {
        "loss_gain": table.loss_gain.to_numpy(),
        "mean_loss": table.mean_loss.to_numpy(),
        "variance": table.variance.to_numpy(),
        "third_cumulant": third_cumulant(trace)[0],
        "kernel_neighbours": disagreement(near.correlation, labels[near.index], labels),
        "flags_label_issues": table.flagged.to_numpy(),
    }


def third_cumulant(trace: xr.Dataset, groups: int = 10) -> tuple[np.ndarray, np.ndarray]:
    r"""Third cumulant of each sample's loss, nats cubed, and its standard error.

    :math:`\operatorname{E}(\ell_i - \operatorname{E}\ell_i)^3` over all draws, with their weights
    where they have some. The error is a jackknife over chains, or over ``groups`` parts of the
    draws where they are independent; NaN of a single chain.

    Raises:
        ValueError: losses that are not finite.
    """
    loss = trace.loss.transpose("chain", "draw", "sample").values.astype(np.float64)
    if not np.isfinite(loss).all():
        raise ValueError("trace has losses that are not finite; leave the diverged chains out")
    chains, draws, _ = loss.shape
    weights, weight = weights_of(trace), np.ones((chains, draws))
    part = np.repeat(np.arange(chains), draws)
    if weights is not None:
        log_weight = trace.log_weight.transpose("chain", "draw").values
        weight = np.exp(log_weight - log_weight.max())
        part = np.arange(chains * draws) % groups
    flat, weight = loss.reshape(chains * draws, -1), weight.ravel()

    def cumulant(keep: np.ndarray) -> np.ndarray:
        share = weight[keep] / weight[keep].sum()
        return share @ (flat[keep] - share @ flat[keep]) ** 3

    parts = np.unique(part)
    whole = cumulant(np.ones(len(flat), bool))
    if len(parts) < 2:
        return whole, np.full_like(whole, np.nan)
    without = np.stack([cumulant(part != one) for one in parts])
    spread = np.square(without - without.mean(0)).sum(0)
    return whole, np.sqrt((len(parts) - 1) / len(parts) * spread)
