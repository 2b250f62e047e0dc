"""The MNIST probes of chapters 02 and 03, for the chapters that read their traces again.

Each is the call that the chapter makes itself. The trace comes from the cache if the chapter ran
before, and is sampled if it did not.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
import xarray as xr

import probelib
from probebook.cache import cache_dir
from probebook.mnist import corrupt_labels, load_mnist
from probebook.training import (
    RECIPES,
    TrainedNetwork,
    prepare_pixels,
    trained_network,
)

RECIPE = "sgd-unit-1x512"  # the recipe of both chapters


@dataclass(frozen=True, eq=False)
class MnistProbe:
    """A network trained on MNIST, its local posterior, and the trace of all its training digits.

    Attributes:
        images: uint8, shape (n, 28, 28).
        inputs: what the network takes, float32, shape (n, 784).
        labels: those that it was trained on, shape (n,).
        true_labels: those of MNIST, shape (n,).
        network: the trained network.
        posterior: around it, over all n digits.
        trace: its draws, every digit observed.
    """

    images: torch.Tensor
    inputs: torch.Tensor
    labels: torch.Tensor
    true_labels: torch.Tensor
    network: TrainedNetwork
    posterior: probelib.LocalPosterior
    trace: xr.Dataset


def mnist_probe(
    *,
    noise: float = 0.0,
    n_samples: int = 60_000,
    epochs: int = 20,
    chains: int = 5,
    draws: int = 500,
    burn_in: int = 10,
    n_beta: float = 10.0,
    localization: float = 30.0,
    step_size: float = 5e-3,
    batch_size: int = 64,
    seed: int = 0,
    thin: int = 1,
    method: type[probelib.SGLD] | type[probelib.LeimkuhlerMatthews] = probelib.SGLD,
    progress: bool = True,
) -> MnistProbe:
    """The probe of chapter 02 (the defaults: Table 1's first row).

    Chapter 03's is that of ``noise=0.1, epochs=100, chains=1, burn_in=100``. Both also ran
    ``method=probelib.LeimkuhlerMatthews``, with ``thin=5`` and a fifth of the draws.

    Args:
        noise: share of wrong labels.
        n_samples: training digits used, the first of them.
        epochs: of training.
        chains, draws, burn_in: of :func:`probelib.sample`.
        n_beta, localization: of the posterior.
        step_size, batch_size: of the sampler.
        seed: of the noise, the training and the chains.
        thin: of :func:`probelib.sample`.
        method: the sampler.
        progress: show bars.
    """
    mnist = load_mnist("train")
    images, true_labels = mnist.images[:n_samples], mnist.labels[:n_samples]
    labels = corrupt_labels(true_labels, noise, seed=seed)[0] if noise else true_labels
    recipe = replace(RECIPES[RECIPE], epochs=epochs)
    network = trained_network(recipe, images, labels, seed=seed, progress=progress)
    posterior, trace = digit_probe(
        network,
        images,
        labels,
        n_beta=n_beta,
        localization=localization,
        step_size=step_size,
        batch_size=batch_size,
        chains=chains,
        draws=draws,
        burn_in=burn_in,
        seed=seed,
        thin=thin,
        method=method,
        progress=progress,
    )
    inputs = prepare_pixels(images, recipe)
    return MnistProbe(images, inputs, labels, true_labels, network, posterior, trace)


def digit_probe(
    network: TrainedNetwork,
    images: torch.Tensor,
    labels: torch.Tensor,
    observed: np.ndarray | None = None,
    *,
    n_beta: float,
    localization: float,
    step_size: float,
    batch_size: int,
    chains: int,
    draws: int,
    burn_in: int,
    seed: int,
    thin: int = 1,
    method: type[probelib.SGLD] | type[probelib.LeimkuhlerMatthews] = probelib.SGLD,
    progress: bool = True,
) -> tuple[probelib.LocalPosterior, xr.Dataset]:
    """The local posterior of a network over all digits, and the trace of some of them.

    Args:
        network: the trained network.
        images: uint8, shape (n, 28, 28).
        labels: those that it was trained on, shape (n,).
        observed: positions of the digits whose losses are recorded; default: all.
        n_beta, localization: of the posterior.
        step_size, batch_size: of the sampler.
        chains, draws, burn_in, seed, thin: of :func:`probelib.sample`.
        method: the sampler.
        progress: show a bar.
    """
    inputs = prepare_pixels(images, network.recipe)
    posterior = probelib.LocalPosterior(
        network.model,
        probelib.cross_entropy,
        (inputs, labels),
        n_beta=n_beta,
        localization=localization,
    )
    trace = probelib.sample(
        posterior,
        observe=None if observed is None else (inputs[observed], labels[observed]),
        sampler=method(step_size=step_size, batch_size=batch_size),
        chains=chains,
        draws=draws,
        burn_in=burn_in,
        thin=thin,
        seed=seed,
        cache=cache_dir("traces"),
        progress=progress,
    )
    return posterior, trace


__all__ = ["MnistProbe", "digit_probe", "mnist_probe"]
