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
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from probelib._version import __version__
from probelib.arguments import require_kind, require_positive, require_whole
from probelib.contract import (
    TOKEN_VARIABLES,
    VARIABLES,
    attributes,
    required,
    sample_coordinates,
    settings,
)
from probelib.data import Data, Samples
from probelib.descriptions import described
from probelib.estimators.sets import sets_of
from probelib.estimators.weighted import khat
from probelib.guessing import guessing_losses
from probelib.norms import norms
from probelib.observe import Observer
from probelib.observe_loss import ObserveLoss, check_observe_loss, losses_of_tokens
from probelib.observed_sets import apart, read_observed
from probelib.plan import Observation, Plan
from probelib.posterior import LocalPosterior, own_loss
from probelib.progress import progress_bar, report_run
from probelib.randomness import around, keep_random_state, no_draws
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
    observe: Data | Mapping[str, Data] | None = None,
    observe_loss: ObserveLoss | None = None,
    loss_samples: int | None = None,
    seed: int = 0,
    cache: str | os.PathLike | None = None,
    observe_batch_size: int | None = None,
    progress: bool = True,
) -> xr.Dataset | Any:
    r"""Independent draws from N(w*, I / gamma), weighted by exp[-n beta L(w)]: a trace of Eq. 1.

    All estimators heed the weights, of the whole trace or of any part of it. Their errors are
    infinite where :func:`probelib.khat` is above 0.7 (less for few draws): raise the localization,
    or lower n_beta, or use :func:`probelib.sample`.

    Args:
        posterior: what to sample from.
        draws: how many; draw t depends on ``seed`` and t alone.
        observe: the samples whose losses are recorded; default: those of the posterior. A dict
            of several sets, such as ``{"train": data, "test": held_out}``, gives a tree.
        observe_loss: what is recorded of each sample beside its loss, such as
            ``probelib.token_cross_entropy``: as for :func:`probelib.sample`. The posterior's own
            loss still defines L, and so the weights.
        loss_samples: how many randomly chosen samples of the posterior give L, where others are
            observed; default: all. n_beta times the error of L then widens every error, and above
            0.5 makes it infinite.
        seed: of the draws and of that choice.
        cache: a directory in which the draws are kept, and found by the next call, whatever its
            n_beta.
        observe_batch_size: samples per pass; default: as many as fit a CPU's cache, or a part of an
            accelerator's memory. More are faster where the weights alone do not fit the cache.
        progress: show a bar.

    Returns:
        A trace of one chain: ``loss`` (chain, draw, sample), ``init_loss`` (sample) and
        ``distance`` (chain, draw), as :func:`probelib.sample` has them, without ``sampling_loss``;
        beside them, all (chain, draw) and float64, ``log_weight``, its standard error
        ``log_weight_error`` (0 where L is that of all samples), and ``mean_loss``, L(w) in nats.
        With ``observe_loss`` ``loss`` has the dimension ``token`` more, and ``sample_loss`` is what
        it would be without. Of several observed sets, an ``xarray.DataTree`` with a trace for each.

    Raises:
        ValueError, TypeError: a bad argument, a posterior whose losses depend on chance or on their
            batch, a loss that is not finite at w* or at a draw.

    Warns:
        UserWarning: L comes from so few samples that the weights are off by more than 10 %.
    """
    require_kind("posterior", posterior, LocalPosterior, "a probelib.LocalPosterior")
    draws, seed = require_whole("draws", draws, 2), require_whole("seed", seed, 0)
    if cache is not None:
        local_path("cache", cache)  # before anything is computed
    if observe_batch_size is not None:
        observe_batch_size = require_whole("observe_batch_size", observe_batch_size, 1)
    observation = _observation(posterior, observe, observe_loss, draws, seed)
    chosen = _chosen(posterior, observation.observed, loss_samples, seed)
    identity = _identity(observation, len(chosen))
    data = posterior.data.staged(_STAGED)
    record = _Record(observation, data, observe_batch_size)
    record.require_repeatable()
    center = record.at_center()
    shapes = {name: array.shape for name, array in center.items()}
    losses = {name: (draws, *shapes[f"init_{name}"]) for name in record.names}
    shapes |= {**losses, "seconds": ()}
    shapes |= {"distance": (draws,), "mean_loss": (draws,), "mean_loss_error": ()}
    kept = None if cache is None else place_of(cache, identity, "-importance.safetensors")
    like = {name: f"init_{name}" for name in losses}
    found = None if kept is None else kept_arrays(kept, identity, shapes, center, like)
    cached = found is not None
    if found is None:
        started = time.perf_counter()
        weights = around(posterior.center, posterior.localization, draws, seed)
        with progress_bar(weights, total=draws, unit="draw", disable=not progress) as bar:
            found = _evaluated(bar, record, losses, data, chosen)
        found |= center | {"seconds": np.array(time.perf_counter() - started)}
        if kept is not None:
            keep_arrays(kept, identity, found)
    seconds = float(found["seconds"])
    report_run("weighted trace", seconds, cached=cached, draws=draws, file=kept)
    return apart(_trace(record, found, identity))


def reweight(trace: xr.Dataset | Any, n_beta: float) -> xr.Dataset | Any:
    """The same draws under Eq. 1 with another n beta: new weights and settings, nothing evaluated.

    Args:
        trace: from :func:`importance_sample`, or any part of one; of several observed sets the
            tree, which gives a tree.
        n_beta: the new one.

    Raises:
        ValueError: a trace of chains, whose draws belong to the n_beta that they were made at.
    """
    n_beta = require_positive("n_beta", n_beta)
    if (sets := sets_of(trace)) is not None:
        from probelib.trace import TraceTree  # slow to import, so where it is used

        every = {name: reweight(part, n_beta) for name, part in sets.items()}
        tree = TraceTree.from_dict(every)
        tree.attrs = _attributes_at(n_beta, trace)
        return tree
    if "mean_loss" not in trace or settings(trace).sampler != "importance":
        raise ValueError(
            f"trace is not one of importance_sample (sampler {settings(trace).sampler!r}), and its "
            "draws belong to their own n_beta; sample again at the other"
        )
    weights = {"log_weight": -n_beta * trace["mean_loss"].astype(np.float64)}
    if "log_weight_error" in trace:
        ratio = n_beta / required(trace, "n_beta")
        weights["log_weight_error"] = ratio * trace["log_weight_error"]
    return trace.assign(weights).assign_attrs(_attributes_at(n_beta, trace))


def _attributes_at(n_beta: float, trace: xr.Dataset | xr.DataTree) -> dict[str, Any]:
    """The attributes of a trace, or of a tree of them, with another n beta."""
    attrs = attributes(trace)
    config = attrs["config"] = attrs["config"] | {"n_beta": n_beta}
    if config.get("n_samples"):
        config["beta"] = n_beta / config["n_samples"]
    if "fingerprint" in attrs:
        attrs["fingerprint"] = attrs["fingerprint"] | {"n_beta": n_beta}
    return attrs


def _observation(
    posterior: LocalPosterior,
    observe: Data | Mapping[str, Data] | None,
    observe_loss: ObserveLoss | None,
    draws: int,
    seed: int,
) -> Observation:
    """What is recorded, with everything checked against everything else."""
    observed, sets = read_observed(posterior, observe)
    if observe_loss is not None:
        require_kind("observe_loss", observe_loss, callable, "a function of (output, target)")
        observe_loss = own_loss(observe_loss, posterior.widened)
        check_observe_loss(posterior, observed, observe_loss)
    plan = Plan(chains=1, draws=draws, seed=seed)
    return Observation(
        posterior=posterior, observed=observed, plan=plan, observe_loss=observe_loss, sets=sets
    )


class _Losses:
    """Losses at single weights, batch by batch, in float64 after the loss.

    Args:
        posterior: gives the model and the loss.
        batch_size: samples per pass; None: what a pass costs decides.
    """

    def __init__(self, posterior: LocalPosterior, batch_size: int | None = None):
        self.posterior = posterior
        if batch_size is not None:
            self.batch_size = batch_size
            return
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
            sample = f"sample {at if index is None else index[at]} of {samples.name}"
            raise self.not_finite(sample, weights)
        return losses

    def not_finite(self, sample: str, weights: Tensor) -> ValueError:
        """What to say of a sample whose loss is not finite at these weights."""
        if weights is self.posterior.center:
            return ValueError(f"{sample} has a non-finite loss at w*; remove or repair it")
        gamma = self.posterior.localization
        return ValueError(
            f"localization is {gamma:g}, at which {sample} has a non-finite loss with every weight "
            f"about {float(gamma) ** -0.5:.3g} away from w*; raise it"
        )


class _Record:
    """Losses of the observed samples, and of their tokens where these are asked for.

    Args:
        observation: says which.
        data: of the posterior, as they are read here.
        batch_size: of :class:`_Losses`.

    Attributes:
        names: of the variables of losses that the trace has.
        samples: those that are observed.
        observer: evaluates tokens and samples, where there are tokens.
    """

    def __init__(self, observation: Observation, data: Samples, batch_size: int | None):
        self.observation = observation
        self.evaluate = _Losses(observation.posterior, batch_size)
        same = observation.observed is observation.posterior.data
        self.samples = data if same else observation.observed.staged(_STAGED)
        self.observer: Observer | None = None
        self.names = ["loss"]
        if observation.observe_loss is not None:
            size = self.evaluate.batch_size  # as without tokens, so that samples have equal losses
            self.observer = Observer(observation, size, draws_at_random=False)
            self.observer.stage(self.samples)
            self.names += ["sample_loss"]

    def require_repeatable(self) -> None:
        """Refuse a model whose losses depend on chance or on their batch: L would, too."""
        posterior, observe_loss = self.observation.posterior, self.observation.observe_loss
        if posterior.train_mode:
            raise ValueError(
                "posterior is in train mode, where a loss may depend on its batch and on chance; "
                "weighted draws need train_mode=False"
            )
        some = np.unique(np.linspace(0, len(self.samples) - 1, 8, dtype=int))
        x, y = self.samples.batch(some)
        what = "loss that its weights alone decide"
        with no_draws(posterior.device, what):
            posterior.losses(posterior.center, x, y)
        if observe_loss is not None:
            with no_draws(posterior.device, what, "observe_loss"), torch.no_grad():
                output = posterior.outputs(posterior.center, x)
                losses_of_tokens(observe_loss, output, posterior.in_own_type(y))

    def at_center(self) -> dict[str, np.ndarray]:
        """Losses at w*, float64: "init_loss", and "init_sample_loss" where there are tokens."""
        n = len(self.samples)
        found = {"init_loss": np.empty(n)}
        if self.observer is not None and (places := self.observer.places) is not None:
            found = {
                "init_loss": np.full(places.there.shape, np.nan),
                "init_sample_loss": np.empty(n),
            }
        self.into(
            {name: found[f"init_{name}"] for name in self.names}, self.evaluate.posterior.center
        )
        return found

    def into(self, rows: Mapping[str, np.ndarray], weights: Tensor) -> np.ndarray:
        """Write the losses at ``weights`` into ``rows``, by the names of the trace's variables.

        A row of tokens, (sample, token), stays as it is where there is none.

        Returns:
            The losses of the samples, float64.
        """
        if self.observer is None or (places := self.observer.places) is None:
            rows["loss"][...] = losses = self.evaluate.all_of(weights, self.samples)
            return losses
        with keep_random_state(weights.device):
            found = self.observer.losses(weights.unsqueeze(0))[0].double().cpu().numpy()
        tokens, losses = np.split(found, [len(places)])
        if not np.isfinite(found).all():
            at = int((~np.isfinite(found)).argmax())
            sample = f"sample {at - len(places)} of {self.samples.name}"
            if at < len(places):
                sample = f"sample {places.sample[at]} of {self.samples.name} at position "
                sample += f"{places.token[at]} (observe_loss)"
            raise self.evaluate.not_finite(sample, weights)
        rows["loss"][places.there] = tokens
        rows["sample_loss"][...] = losses
        return losses

    def coordinates(self) -> dict[str, Any]:
        """Those of samples and tokens."""
        coords = sample_coordinates(len(self.samples), self.observation.observed.labels())
        if self.observer is None or (places := self.observer.places) is None:
            return coords
        coords["token"] = np.arange(places.positions)
        if (ids := self.observer.token_ids()) is not None:
            coords["token_id"] = (("sample", "token"), ids)
        return coords

    def attributes(self) -> dict[str, Any]:
        """Those that say what was observed."""
        found: dict[str, Any] = {}
        if self.observer is not None:
            found["token_shape"] = self.observer.token_shape()
        if self.observation.sets is not None:
            found["observed_sets"] = {k: len(part) for k, part in self.observation.sets.items()}
        return found


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


def _evaluated(
    draws: tqdm[Tensor],
    record: _Record,
    shapes: Mapping[str, tuple[int, ...]],
    data: Samples,
    chosen: np.ndarray,
) -> dict[str, np.ndarray]:
    """Losses of these shapes at every draw, L there, and its standard error (nats)."""
    evaluate, whole = record.evaluate, len(chosen) == len(data)
    posterior = evaluate.posterior
    kind = np.float64 if posterior.dtype == torch.float64 else np.float32
    # Where they stay: of many tokens there is no room for a second copy.
    losses = {name: np.full(shape, np.nan, kind) for name, shape in shapes.items()}
    mean_loss, distance = np.empty(draws.total), np.empty(draws.total, np.float32)
    between, sums = np.empty(draws.total), np.zeros(len(chosen))
    for t, weights in enumerate(draws):
        seen = record.into({name: array[t] for name, array in losses.items()}, weights)
        if record.samples is not data:
            seen = evaluate.all_of(weights, data, None if whole else chosen)
        mean_loss[t], between[t] = seen.mean(), seen.var()
        sums += seen
        distance[t] = float(norms(weights - posterior.center))
    error = 0.0
    if not whole:  # what all draws have in common, the error of a sample's own mean, cancels
        spread = max(between.mean() - (sums / draws.total).var(), 0.0)
        error = float(np.sqrt(spread * (1 / (len(chosen) - 1) - 1 / len(data))))
    return losses | {
        "mean_loss": mean_loss,
        "distance": distance,
        "mean_loss_error": np.array(error),
    }


def _identity(observation: Observation, loss_samples: int) -> dict[str, Any]:
    """All that the draws and their losses depend on: not n_beta."""
    identity: dict[str, Any] = dict(observation.posterior.fingerprint())
    identity.pop("n_beta")
    return identity | {
        **observation.identity(identity),
        "sampler": "importance",
        "draws": observation.plan.draws,
        "loss_samples": loss_samples,
        "seed": observation.plan.seed,
        "format": _FORMAT,
    }


def _trace(record: _Record, found: dict[str, np.ndarray], identity: dict[str, Any]) -> xr.Dataset:
    from probelib.trace import Trace  # slow to import, so where it is used

    posterior = record.observation.posterior
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
    dims = VARIABLES if record.observer is None else VARIABLES | TOKEN_VARIABLES
    losses = {name: (dims[name], found[name][None]) for name in record.names}
    init = {
        f"init_{name}": (dims[f"init_{name}"], found[f"init_{name}"].astype(found[name].dtype))
        for name in record.names
    }
    return described(
        Trace(
            {
                **losses,
                **init,
                "distance": (by_draw, found["distance"][None]),
                "log_weight": (by_draw, -n_beta * mean_loss),
                "log_weight_error": (by_draw, np.full((1, draws), off)),
                "mean_loss": (by_draw, mean_loss),
            },
            coords={"chain": [0], **record.coordinates()},
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
                "seed": identity["seed"],
                "diverged": {},
                "complete": True,
                "draws_done": draws,
                "wall_time": float(found["seconds"]),
                "device": str(posterior.device),
                "guessing_loss": guessing_losses(record.observation),
                **record.attributes(),
                "versions": {
                    "probelib": __version__,
                    "torch": torch.__version__,
                    "numpy": np.__version__,
                },
            },
        )
    )


__all__ = ["importance_sample", "khat", "reweight"]
