r"""Draws from the localizing Gaussian, weighted to be draws from Eq. 1.

With :math:`w_t \sim \mathcal N(w^*, \gamma^{-1} I)`, independent, and the weights

.. math::

   v_t \propto \exp[-n\beta\, L(w_t)]

a weighted mean is a mean under Eq. 1: no chain, no burn-in, no step size. It is the independent
check of what chains say, where the data term leaves enough of the draws their weight:
:func:`probelib.khat` tells. Neither the draws nor their losses know n beta, so that one set of
draws serves at any: :func:`reweight`.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from probelib._version import __version__
from probelib.arguments import require_kind, require_positive, require_whole
from probelib.contract import attributes, required, sample_coordinates, settings
from probelib.data import Data, Samples
from probelib.descriptions import described
from probelib.estimators.weighted import khat
from probelib.posterior import LocalPosterior
from probelib.progress import progress_bar, report_run
from probelib.randomness import keep_random_state, no_draws
from probelib.schedule import cost_of_pass, observe_batch
from probelib.store.arrays import keep_arrays, kept_arrays, place_of
from probelib.store.paths import local_path

if TYPE_CHECKING:
    import xarray as xr

_FORMAT = 1
_STAGED = 2**31  # bytes up to which a data set is read once, and kept
_NOTICED = 0.1  # error of the log weights from which a warning tells of it


def importance_sample(
    posterior: LocalPosterior,
    draws: int = 1000,
    *,
    observe: Data | None = None,
    loss_samples: int | None = None,
    seed: int = 0,
    cache: str | os.PathLike | None = None,
    progress: bool = True,
) -> xr.Dataset:
    r"""Independent draws from N(w*, I / gamma), weighted by exp[-n beta L(w)]: a trace of Eq. 1.

    All estimators heed the weights, of the whole trace or of any part of it. Their errors are
    infinite where :func:`probelib.khat` is above 0.7 (less for few draws): raise the localization,
    or lower n_beta, or use :func:`probelib.sample`.

    Args:
        posterior: what to sample from.
        draws: how many; draw t depends on ``seed`` and t alone.
        observe: the samples whose losses are recorded; default: those of the posterior.
        loss_samples: how many randomly chosen samples of the posterior give L, where others are
            observed; default: all. n_beta times the error of L then widens every error, and above
            0.5 makes it infinite.
        seed: of the draws and of that choice.
        cache: a directory in which the draws are kept, and found by the next call, whatever its
            n_beta.
        progress: show a bar.

    Returns:
        A trace of one chain: ``loss`` (chain, draw, sample), ``init_loss`` (sample) and
        ``distance`` (chain, draw), as :func:`probelib.sample` has them, without ``sampling_loss``;
        beside them, all (chain, draw) and float64, ``log_weight``, its standard error
        ``log_weight_error`` (0 where L is that of all samples), and ``mean_loss``, L(w) in nats.

    Raises:
        ValueError: a bad argument, a posterior whose losses depend on chance or on their batch, a
            loss that is not finite at a draw.

    Warns:
        UserWarning: L comes from so few samples that the weights are off by more than 10 %.
    """
    require_kind("posterior", posterior, LocalPosterior, "a probelib.LocalPosterior")
    draws, seed = require_whole("draws", draws, 2), require_whole("seed", seed, 0)
    if cache is not None:
        local_path("cache", cache)  # before anything is computed
    observed = posterior.data
    if observe is not None:
        observed = Samples(observe, posterior.device, "observe")
        posterior.check(observed)
    chosen = _chosen(posterior, observed, loss_samples, seed)
    identity = _identity(posterior, observed, draws, seed, len(chosen))
    evaluate, data = _Losses(posterior), posterior.data.staged(_STAGED)
    observed = data if observed is posterior.data else observed.staged(_STAGED)
    evaluate.require_repeatable(observed)
    center = evaluate.all_of(posterior.center, observed)
    n = len(observed)
    shapes = {"loss": (draws, n), "init_loss": (n,), "seconds": ()}
    shapes |= {"distance": (draws,), "mean_loss": (draws,), "mean_loss_error": ()}
    kept = None if cache is None else place_of(cache, identity, "-importance.safetensors")
    found = None if kept is None else kept_arrays(kept, identity, shapes, center)
    cached = found is not None
    if found is None:
        started = time.perf_counter()
        weights = _weights(posterior, draws, seed)
        with progress_bar(weights, total=draws, unit="draw", disable=not progress) as bar:
            found = _evaluated(bar, evaluate, observed, data, chosen)
        found |= {"init_loss": center, "seconds": np.array(time.perf_counter() - started)}
        if kept is not None:
            keep_arrays(kept, identity, found)
    seconds = float(found["seconds"])
    report_run("weighted trace", seconds, cached=cached, draws=draws, file=kept)
    return _trace(posterior, observed, found, identity, seed)


def reweight(trace: xr.Dataset, n_beta: float) -> xr.Dataset:
    """The same draws under Eq. 1 with another n beta: new weights and settings, nothing evaluated.

    Args:
        trace: from :func:`importance_sample`, or any part of one.
        n_beta: the new one.

    Raises:
        ValueError: a trace of chains, whose draws belong to the n_beta that they were made at.
    """
    n_beta = require_positive("n_beta", n_beta)
    if "mean_loss" not in trace or settings(trace).sampler != "importance":
        raise ValueError(
            f"trace is not one of importance_sample (sampler {settings(trace).sampler!r}), and its "
            "draws belong to their own n_beta; sample again at the other"
        )
    weights = {"log_weight": -n_beta * trace["mean_loss"].astype(np.float64)}
    if "log_weight_error" in trace:
        ratio = n_beta / required(trace, "n_beta")
        weights["log_weight_error"] = ratio * trace["log_weight_error"]
    attrs = attributes(trace)
    config = attrs["config"] = attrs["config"] | {"n_beta": n_beta}
    if config.get("n_samples"):
        config["beta"] = n_beta / config["n_samples"]
    if "fingerprint" in attrs:
        attrs["fingerprint"] = attrs["fingerprint"] | {"n_beta": n_beta}
    return trace.assign(weights).assign_attrs(attrs)


class _Losses:
    """Losses at single weights, batch by batch, in float64 after the loss.

    Args:
        posterior: gives the model and the loss.
    """

    def __init__(self, posterior: LocalPosterior):
        self.posterior = posterior
        data = posterior.data.batch(np.arange(min(4, posterior.n_samples)))
        with keep_random_state(posterior.device):
            cost = cost_of_pass(lambda x, y: posterior.losses(posterior.center, x, y), *data)
        self.batch_size = observe_batch(cost.bytes, posterior.device)

    @torch.no_grad()
    def all_of(
        self, weights: Tensor, samples: Samples, index: np.ndarray | None = None
    ) -> np.ndarray:
        """Of all samples, or of those at ``index``: shape (n,)."""
        n = len(samples) if index is None else len(index)
        parts = []
        with keep_random_state(self.posterior.device):
            for start in range(0, n, self.batch_size):
                part = slice(start, min(start + self.batch_size, n))
                batch = samples.batch(part if index is None else index[part])
                parts.append(self.posterior.losses(weights, *batch).double())
        losses = torch.cat(parts).cpu().numpy()
        if not np.isfinite(losses).all():
            at = int((~np.isfinite(losses)).argmax())
            gamma = self.posterior.localization
            raise ValueError(
                f"localization is {gamma:g}, at which sample {at if index is None else index[at]} "
                f"of {samples.name} has a non-finite loss with every weight about "
                f"{float(gamma) ** -0.5:.3g} away from w*; raise it"
            )
        return losses

    def require_repeatable(self, samples: Samples) -> None:
        """Refuse a model whose losses depend on chance or on their batch: L would, too."""
        if self.posterior.train_mode:
            raise ValueError(
                "posterior is in train mode, where a loss may depend on its batch and on chance; "
                "weighted draws need train_mode=False"
            )
        some = np.unique(np.linspace(0, len(samples) - 1, 8, dtype=int))
        with no_draws(self.posterior.device, "loss that its weights alone decide"):
            self.posterior.losses(self.posterior.center, *samples.batch(some))


def _chosen(
    posterior: LocalPosterior, observed: Samples, loss_samples: int | None, seed: int
) -> np.ndarray:
    """Positions of the samples that give L."""
    n = posterior.n_samples
    if loss_samples is None:
        return np.arange(n)
    if observed is posterior.data:
        raise ValueError(
            f"loss_samples is {loss_samples}, but all samples of the posterior are observed and "
            "give L at no cost; leave it out, or observe fewer"
        )
    if require_whole("loss_samples", loss_samples, 2) > n:
        raise ValueError(
            f"loss_samples is {loss_samples}, more than the {n} samples of the posterior; make it "
            "smaller, or None for all"
        )
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    return np.sort(rng.choice(n, loss_samples, replace=False))


def _weights(posterior: LocalPosterior, draws: int, seed: int) -> Iterator[Tensor]:
    """Draws from N(w*, I / gamma), made on the host: the same on every kind of device."""
    generator = torch.Generator()
    state = np.random.SeedSequence(seed, spawn_key=(0,)).generate_state(1, np.uint64)[0]
    generator.manual_seed(int(state >> 1))
    center = posterior.center
    for _ in range(draws):
        normal = torch.empty_like(center, device="cpu").normal_(generator=generator)
        yield center + normal.to(center.device) / posterior.localization**0.5


def _evaluated(
    draws: tqdm[Tensor], evaluate: _Losses, observed: Samples, data: Samples, chosen: np.ndarray
) -> dict[str, np.ndarray]:
    """Losses of the observed samples at every draw, L there, and its standard error (nats)."""
    posterior, whole, n = evaluate.posterior, len(chosen) == len(data), len(observed)
    kind = np.float64 if posterior.dtype == torch.float64 else np.float32
    loss, mean_loss = np.empty((draws.total, n), kind), np.empty(draws.total)
    distance = np.empty(draws.total, np.float32)
    between, sums = np.empty(draws.total), np.zeros(len(chosen))
    for t, weights in enumerate(draws):
        loss[t] = seen = evaluate.all_of(weights, observed)
        if observed is not data:
            seen = evaluate.all_of(weights, data, None if whole else chosen)
        mean_loss[t], between[t] = seen.mean(), seen.var()
        sums += seen
        distance[t] = float(torch.linalg.vector_norm(weights - posterior.center))
    error = 0.0
    if not whole:  # what all draws have in common, the error of a sample's own mean, cancels
        spread = max(between.mean() - (sums / draws.total).var(), 0.0)
        error = float(np.sqrt(spread * (1 / (len(chosen) - 1) - 1 / len(data))))
    return {
        "loss": loss,
        "mean_loss": mean_loss,
        "distance": distance,
        "mean_loss_error": np.array(error),
    }


def _identity(
    posterior: LocalPosterior, observed: Samples, draws: int, seed: int, loss_samples: int
) -> dict[str, Any]:
    """All that the draws and their losses depend on: not n_beta."""
    identity = posterior.fingerprint()
    identity.pop("n_beta")
    shared = observed is posterior.data
    return identity | {
        "observed_data": identity["sampling_data"] if shared else observed.fingerprint(),
        "sampler": "importance",
        "draws": draws,
        "loss_samples": loss_samples,
        "seed": seed,
        "format": _FORMAT,
    }


def _trace(
    posterior: LocalPosterior,
    observed: Samples,
    found: dict[str, np.ndarray],
    identity: dict[str, Any],
    seed: int,
) -> xr.Dataset:
    from probelib.trace import Trace  # slow to import, so where it is used

    n_beta, draws = posterior.n_beta, len(found["loss"])
    off = n_beta * float(found["mean_loss_error"])
    if off > _NOTICED:
        warnings.warn(
            f"loss_samples is {identity['loss_samples']}, so few that n_beta L(w) has a standard "
            f"error of {off:.2g}, which widens all errors; give more, or None for all",
            UserWarning,
            stacklevel=3,
        )
    by_draw, mean_loss = ("chain", "draw"), found["mean_loss"][None]
    return described(
        Trace(
            {
                "loss": (("chain", "draw", "sample"), found["loss"][None]),
                "init_loss": ("sample", found["init_loss"].astype(found["loss"].dtype)),
                "distance": (by_draw, found["distance"][None]),
                "log_weight": (by_draw, -n_beta * mean_loss),
                "log_weight_error": (by_draw, np.full((1, draws), off)),
                "mean_loss": (by_draw, mean_loss),
            },
            coords={"chain": [0], **sample_coordinates(len(observed), observed.labels())},
            attrs={
                "config": {
                    "n_beta": n_beta,
                    "localization": posterior.localization,
                    "beta": posterior.beta,
                    "n_samples": posterior.n_samples,
                    "n_parameters": posterior.n_parameters,
                    "sampler": "importance",
                    "chains": 1,
                    "draws": draws,
                    "loss_samples": identity["loss_samples"],
                },
                "fingerprint": identity | {"n_beta": n_beta},
                "seed": seed,
                "diverged": {},
                "complete": True,
                "draws_done": draws,
                "wall_time": float(found["seconds"]),
                "device": str(posterior.device),
                "versions": {
                    "probelib": __version__,
                    "torch": torch.__version__,
                    "numpy": np.__version__,
                },
            },
        )
    )


__all__ = ["importance_sample", "khat", "reweight"]
