"""A run's settings: checked once, hashed once, handed on whole."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import torch

from probelib import schedule
from probelib.arguments import (
    require_choice,
    require_kind,
    require_positive,
    require_whole,
    shown,
)
from probelib.data import Data, Samples
from probelib.fingerprint import describe, plain
from probelib.gradients import GradientEstimator, gradient_of
from probelib.observe_loss import ObserveLoss, check_observe_loss
from probelib.observed_sets import read_observed
from probelib.posterior import LocalPosterior, own_loss
from probelib.randomness import no_draws
from probelib.samplers.base import Sampler, Target
from probelib.store.layout import FORMAT


def _order(sampler: type[Sampler]) -> int | None:
    """The order of a sampler, where the class whose step it is, or one that has it, said so."""
    owner, said = (
        next((base for base in sampler.__mro__ if name in vars(base)), None)
        for name in ("step", "order")
    )
    return sampler.order if owner and said and issubclass(said, owner) else None


@dataclass(frozen=True)
class Plan:
    """How many chains take how many draws, and how they are kept: see :func:`probelib.sample`.

    Raises:
        ValueError: a value that cannot be, by its name.
    """

    chains: int = 4
    draws: int = 500
    burn_in: int = 0
    thin: int | Literal["auto"] = 1
    until: float | None = None
    seed: int = 0
    first_chain: int = 0
    loss_dtype: str = "auto"
    observe_dtype: str = "float32"
    observe_batch_size: int | None = None

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            "chains": require_whole("chains", self.chains),
            "draws": require_whole("draws", self.draws),
            "burn_in": require_whole("burn_in", self.burn_in, 0),
            "seed": require_whole("seed", self.seed, 0),
            "first_chain": require_whole("first_chain", self.first_chain, 0),
            "loss_dtype": require_choice(
                "loss_dtype", self.loss_dtype, "auto", "float64", "float32", "float16"
            ),
            "observe_dtype": require_choice(
                "observe_dtype", self.observe_dtype, "float32", "bfloat16", "auto"
            ),
        }
        if not isinstance(self.thin, str):
            checked["thin"] = require_whole("thin", self.thin)
        elif self.thin != "auto":
            raise ValueError(
                f"thin is {shown(self.thin)}; it must be a whole number, 1 or more, or 'auto'"
            )
        elif checked["burn_in"] < schedule.BURN_IN:
            raise ValueError(
                "thin is 'auto', which looks at the losses during burn-in, but burn_in is "
                f"{self.burn_in}; make it {schedule.BURN_IN} or more"
            )
        if self.until is not None:
            checked["until"] = require_positive("until", self.until)
        if self.observe_batch_size is not None:
            size = require_whole("observe_batch_size", self.observe_batch_size)
            checked["observe_batch_size"] = size
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def steps(self) -> int:
        """Steps of each chain, burn-in included."""
        return self.steps_until(self.draws)

    def steps_until(self, draws: int) -> int:
        """Steps after which a chain has so many draws."""
        if self.thin == "auto":
            raise ValueError("thin is 'auto', and not chosen yet")
        return self.burn_in + draws * self.thin

    def draws_after(self, steps: int) -> int:
        """Draws that a chain has after so many steps."""
        if self.thin == "auto":
            raise ValueError("thin is 'auto', and not chosen yet")
        return max(0, steps - self.burn_in) // self.thin

    def identity(self) -> dict[str, Any]:
        """The settings that decide which numbers a trace holds, but for how many draws it has."""
        left_out = {"draws", "until", "observe_batch_size"}
        # Named only where they are not the default.
        left_out |= {"first_chain"} if not self.first_chain else set()
        left_out |= {"observe_dtype"} if self.observe_dtype == "float32" else set()
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}

    def on_device(self, device: torch.device) -> Plan:
        """This plan with ``observe_dtype`` "auto" resolved.

        Warns:
            UserWarning: bfloat16 is asked for where it is slow.
        """
        fast = schedule.has_fast_bfloat16(device)
        if self.observe_dtype == "auto":
            return replace(self, observe_dtype="bfloat16" if fast else "float32")
        if self.observe_dtype == "bfloat16" and not fast:
            warnings.warn(
                f"observe_dtype is 'bfloat16', for which this {device.type} has no units: it "
                "may be hundreds of times slower than 'float32'; 'auto' chooses",
                UserWarning,
                stacklevel=4,
            )
        return self


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What is recorded at each draw: of which samples, which losses, and how precisely.

    Attributes:
        posterior: what to sample from.
        observed: the samples whose losses are recorded.
        plan: chains, draws and the rest.
        observe_loss: what is recorded of each token, the call's own copy; None: one loss a sample.
        sets: those that were joined in ``observed``, by name, in their order; None: it is one.
    """

    posterior: LocalPosterior
    observed: Samples
    plan: Plan
    observe_loss: ObserveLoss | None = None
    sets: dict[str, Samples] | None = None

    def identity(self, of_posterior: Mapping[str, Any]) -> dict[str, Any]:
        """What the recorded losses depend on beside the posterior, whose fingerprint is given."""
        if self.sets is not None:
            observed: Any = {name: of.fingerprint() for name, of in self.sets.items()}
        elif self.observed is self.posterior.data:
            observed = of_posterior["sampling_data"]
        else:
            observed = self.observed.fingerprint()
        if self.observe_loss is None:
            return {"observed_data": observed}
        return {"observed_data": observed, "observe_loss": describe(self.observe_loss)}


@dataclass(frozen=True, kw_only=True)
class Run(Observation):
    """All that decides a trace: what to sample from, what to observe, how, and how much.

    It is handed whole to the chains, and pickled for their workers.

    Attributes:
        sampler: the call's own copy.
        calibration: where the settings come from, if :func:`probelib.calibrate` found them.
    """

    sampler: Sampler
    calibration: dict[str, Any] | None = None

    @classmethod
    def of(
        cls,
        posterior: LocalPosterior,
        observe: Data | Mapping[str, Data] | None,
        sampler: Sampler,
        plan: Plan,
        observe_loss: ObserveLoss | None = None,
    ) -> Run:
        """A run, with everything checked against everything else.

        Raises:
            ValueError, TypeError: naming the argument that does not fit.
        """
        require_kind("posterior", posterior, LocalPosterior, "a probelib.LocalPosterior")
        require_kind("sampler", sampler, _is_sampler, "a sampler, such as probelib.SGLD")
        if not isinstance(sampler.identity(), dict):
            raise TypeError(
                f"sampler has the identity {shown(sampler.identity())}; return a dict of settings"
            )
        batch_size = gradient_of(sampler).batch_size
        if batch_size is not None and batch_size > posterior.n_samples:
            raise ValueError(
                f"batch_size is {batch_size}, more than the {posterior.n_samples} samples of "
                "the posterior; make it smaller, or None for the full gradient"
            )
        if getattr(sampler, "has_accept_test", False):
            _require_one_loss(posterior, sampler)
        observed, sets = read_observed(posterior, observe)
        if observe_loss is not None:
            what = "a function of (output, target)"
            require_kind("observe_loss", observe_loss, callable, what)
            observe_loss = own_loss(observe_loss, posterior.widened)
            check_observe_loss(posterior, observed, observe_loss)
        plan = plan.on_device(posterior.device)
        if plan.loss_dtype == "auto":
            kept = torch.promote_types(posterior.loss_dtype, torch.float32)
            plan = replace(plan, loss_dtype=str(kept).removeprefix("torch."))
        return cls(
            posterior=posterior,
            observed=observed,
            sampler=copy.deepcopy(sampler),
            plan=plan,
            observe_loss=observe_loss,
            sets=sets,
        )

    @property
    def target(self) -> Target:
        """The posterior, as far as a sampler needs it."""
        posterior = self.posterior
        return Target(posterior.center, posterior.n_beta, posterior.localization)

    @property
    def gradient(self) -> GradientEstimator:
        """The sampler's estimator of the gradient."""
        return gradient_of(self.sampler)

    def fingerprint(self) -> dict[str, Any]:
        """What the trace depends on, field by field; contents as SHA-256."""
        of_posterior = self.posterior.fingerprint()
        return of_posterior | {
            **self.identity(of_posterior),
            "sampler": self.sampler_identity(),
            # Its code, and the settings that an identity of somebody's own may have left out.
            "sampler_code": describe([self.sampler, self.gradient]),
            **self.plan.identity(),
            "format": FORMAT,
        }

    def sampler_identity(self) -> dict[str, Any]:
        """What the sampler says of itself, as JSON can say it."""
        return {str(name): plain(value) for name, value in self.sampler.identity().items()}

    def config(self) -> dict[str, Any]:
        """The settings as a trace shows them."""
        posterior, settings = self.posterior, self.sampler_identity()
        name = settings.pop("name", type(self.sampler).__qualname__)
        return settings | {  # what a sampler calls its own never hides what the run was
            "n_beta": posterior.n_beta,
            "localization": posterior.localization,
            "beta": posterior.beta,
            "n_samples": posterior.n_samples,
            "n_parameters": posterior.n_parameters,
            **({"parameters": posterior.parameters} if posterior.is_part else {}),
            "sampler": name,
            "order": _order(type(self.sampler)),
            **self._lengths(),
            "gradients_per_step": self.gradients_per_step,
            "batch_size": self.gradient.batch_size,
            "gradient": type(self.gradient).__name__,
            "chains": self.plan.chains,
            "draws": self.plan.draws,
            "burn_in": self.plan.burn_in,
            "thin": self.plan.thin,
        }

    @property
    def gradients_per_step(self) -> int:
        """Gradients of a batch that one step takes: the sampler's, times its estimator's."""
        return int(getattr(self.sampler, "gradients_per_step", 1)) * self.gradient.evaluations

    def _lengths(self) -> dict[str, float]:
        """What a step amounts to, where the sampler says so."""
        lengths = getattr(self.sampler, "lengths", lambda target: None)(self.target)
        return {} if lengths is None else asdict(lengths)

    def check_labels(self) -> None:
        """Refuse labels out of range in data sets, once all of them are known (ValueError)."""
        for samples in (self.posterior.data, self.observed):
            if samples.by_item:
                samples.labels()
                self.posterior.check(samples)


def _require_one_loss(posterior: LocalPosterior, sampler: Sampler) -> None:
    """Refuse an accept test of losses that are not L's (ValueError)."""
    who = type(sampler).__name__
    if gradient_of(sampler).batch_size not in (None, posterior.n_samples):
        raise ValueError(
            f"batch_size is given, but {who} tests its steps by the loss of all samples"
        )
    if posterior.train_mode:
        raise ValueError(
            "posterior is in train mode, where a loss may depend on its batch and on chance; "
            f"{who}, which tests a step by it, needs train_mode=False"
        )
    x, y = posterior.data.batch(slice(0, min(8, posterior.n_samples)))
    with no_draws(posterior.device, f"loss by which {who} could test a step"):
        posterior.losses(posterior.center, x, y)


def _is_sampler(value: Any) -> bool:
    methods = ("init", "step", "identity")
    return not isinstance(value, type) and all(callable(getattr(value, m, None)) for m in methods)


__all__ = ["Observation", "Plan", "Run"]
