"""Chains as they run: they advance by the steps of a sampler, and are observed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.rnn import RNNBase

from probelib import schedule
from probelib.ambient import undisturbed
from probelib.batches import Tree, count, rows, tree_leaves, tree_like
from probelib.contract import ACCEPTANCE, STEP_VARIABLES
from probelib.copies import version
from probelib.data import Samples
from probelib.fingerprint import attributes, describe
from probelib.gradients import Batch, ControlVariate, FullGradient, Minibatch, gradient_of
from probelib.observe import Observer
from probelib.plan import Run
from probelib.posterior import LocalPosterior
from probelib.prefix import cut
from probelib.randomness import (
    ONE_THREAD,
    Draws,
    chain_seeds,
    host_random_state,
    keep_host_random_state,
    keep_random_state,
    own_stream,
)
from probelib.samplers.base import State, check_state
from probelib.store.checkpoints import Checkpoint
from probelib.store.integrity import TraceMismatch

# On a CPU a wide network is observed faster one chain at a time (plain matrix products) than
# under vmap (batched ones); a small network is all overhead, and vmap shares it.
_SMALL = 2**16
# Passes over the data that the gradient at w* of a model in train mode is averaged over.
_MASKS = 16
# Items of a data set are kept on the device from one pass to the next if they take less than this.
_STAGED = 2**31


class Chains:
    """Chains that advance together on one device: their state and what they draw at random.

    Args:
        run: what they sample from, how, and with which seed.
        first: position of the first of them in the run.
        count: how many; default: all of the run.
    """

    @undisturbed
    def __init__(self, run: Run, first: int = 0, count: int | None = None):
        # Of their own: others may run in other threads.
        run = replace(run, posterior=run.posterior.apart())
        self.posterior, self.plan = run.posterior, run.plan
        self.data, self.observed = run.posterior.data, run.observed
        self.center, self.target = run.posterior.center, run.target
        self.chains = count = run.plan.chains if count is None else count
        # Of their own: what a sampler of somebody's keeps on itself stays with these chains.
        self.sampler = copy.deepcopy(run.sampler)
        self._settings = describe(attributes(self.sampler))
        gradient = gradient_of(self.sampler)
        self._full_batch = gradient.batch_size in (None, run.posterior.n_samples)
        # Ours need no more than the full gradient then; what others do is theirs to say.
        ours = type(gradient) in (FullGradient, Minibatch, ControlVariate)
        self.estimator = FullGradient() if self._full_batch and ours else gradient
        self.step = 0
        self.state = check_state(
            self.sampler.init(self._at_center(count)), count, self._at_center(count)
        )
        #: Chains that have diverged: they stay at w*, out of the way of those that go on.
        self.frozen: list[int] = []
        #: The gradient that the step before used.
        self._previous: Tensor | None = None
        self._seeds = chain_seeds(run.plan.seed, run.plan.first_chain + first, count)
        self._draws = Draws(self._seeds, self.weights)
        self._full_gradient: Tensor | None = None
        self._all_gradients: Callable[..., tuple[Tensor, Tensor]] | None = None
        self._run = run
        #: Of a part of a network, what in front of it is computed once, in words; once staged.
        self.prefix: str | None = None
        self._choose_how(run)

    def _choose_how(self, run: Run) -> None:
        """Together or one by one, and the size of an observation batch."""
        on_cpu = self.center.device.type == "cpu"
        with keep_random_state(self.center.device), keep_host_random_state():
            # Convolutions with weights of their own for each chain are run as one of many groups:
            # on a CPU slower than one chain after the other, and in many times the memory. What
            # recurrent layers do has no form for several chains at all.
            apart = any(isinstance(m, _ConvNd | RNNBase) for m in self.posterior.model.modules())
            can = not apart and not self.posterior.train_mode
            can = can and _vmap_agrees(self.posterior, self._mean_loss, self._full_batch)
            self.together = can and self.chains > 1  # one chain alone would only pay for vmap
            self._draws_at_random = not can  # as far as is known: vmap runs no model that does
            self.cost = schedule.cost_of_pass(
                lambda x, y: self.posterior.losses(self.center, x, y),
                *self.observed.batch(np.arange(min(4, len(self.observed)))),
            )
        together = self.together and not (on_cpu and self.center.numel() > _SMALL)
        batch_size = self.plan.observe_batch_size or schedule.observe_batch(
            self.cost.bytes, self.center.device, self.chains if together else 1
        )
        self.observer = Observer(run, batch_size, self._seeds, together, self._draws_at_random)

    @property
    def has_accept_test(self) -> bool:
        """Whether the sampler tests its steps, and its state says how probable each was."""
        return bool(getattr(self.sampler, "has_accept_test", False))

    @property
    def step_variables(self) -> tuple[str, ...]:
        """Names of what is recorded of a step."""
        return (*STEP_VARIABLES, *(ACCEPTANCE if self.has_accept_test else ()))

    @property
    def weights(self) -> Tensor:
        """Where the chains stand, shape (chains, n_parameters)."""
        return self.state["weights"]

    def stage(self) -> None:
        """Read data sets once, before they are read at every draw."""
        shared = self.observed is self.data
        self.data = self.data.staged(_STAGED)
        self.observed = self.data if shared else self.observed.staged(_STAGED)
        if self.prefix is None:
            #: The samples themselves, where the chains go on from activations.
            self.inputs = self.data
            if self.posterior.is_part:
                self._cut()
        self.observer.stage(self.observed)

    @undisturbed
    def _cut(self) -> None:
        """Compute once what is the same at every step, in front of the weights that move."""
        size = schedule.observe_batch(self.cost.bytes, self.center.device)
        found = cut(self._run, self.posterior, self.data, self.observed, size)
        self.posterior = self.observer.posterior = found.posterior
        self.data, self.observed, self.prefix = found.data, found.observed, found.words

    def observe(self) -> Tensor:
        """Losses of the observed samples where the chains stand: (chains, n_observed)."""
        return self.observer.losses(self.weights, self.step, self.frozen)

    # --- steps ---

    @undisturbed
    def advance(self) -> dict[str, Tensor]:
        """One step of every chain.

        Returns:
            What is recorded of it, by :attr:`step_variables`, each (chains,).

        Where it raises, nothing has changed: it may be called again, and draws the same numbers.

        Raises:
            ValueError: the sampler changed in place what it was given, or returned no state.
        """
        self._draws.begin()
        gradient = _Gradients(self, self._batch())
        versions = {name: version(tensor) for name, tensor in self.state.items()}

        new = self.sampler.step(dict(self.state), gradient, self._draws.noise, self.target)
        if gradient.first is None:  # a sampler that needs no gradient is watched all the same
            gradient(self.weights)
        changed = [n for n, tensor in self.state.items() if version(tensor) != versions[n]]
        if changed or self._draws.changed_in_place():
            what = changed[0] if changed else "noise"
            raise ValueError(
                f"sampler ({type(self.sampler).__name__}) changed {what} in place, so that a step "
                "taken again would see other numbers; return new tensors"
            )
        new = check_state(new, self.chains, self.weights, self.state)
        if self.frozen:
            new = self._reset(new, self.frozen)
        assert gradient.first is not None
        record = self._record(*gradient.first)
        if self.has_accept_test:
            record |= {name: new[name] for name in ACCEPTANCE}
        self._previous = gradient.first[1]
        self.state, self.step = new, self.step + 1
        self._draws.next_step()
        if self.step == 1:
            self._require_unchanged_sampler()
        return record

    @property
    def preconditioned(self) -> bool:
        """Whether the sampler's steps are longer for some weights than for others."""
        return self._metric() is not None

    def _metric(self) -> Tensor | None:
        metric = getattr(self.sampler, "metric", lambda state, target: None)
        return metric(dict(self.state), self.target)

    def _record(self, weights: Tensor, gradient: Tensor, loss: Tensor) -> dict[str, Tensor]:
        """What is recorded of a step from the present state, which used this gradient of L.

        It is that of ``weights``, which are the present ones but for samplers that ask elsewhere.
        """
        scale = self._metric()
        scaled = gradient if scale is None else scale * gradient
        square = torch.linalg.vecdot(scaled, gradient)
        if self._previous is None:
            repeat = torch.full_like(square, torch.nan)
        else:
            repeat = torch.linalg.vecdot(scaled, self._previous)
        along = torch.linalg.vecdot(scaled, weights - self.center)
        return dict(zip(STEP_VARIABLES, (loss, square, along, repeat), strict=True))

    def freeze(self, chain: int) -> None:
        """Leave a chain at w* for good."""
        self.frozen = sorted({*self.frozen, chain})
        self.state = self._reset(self.state, self.frozen)

    @undisturbed
    def not_finite(self) -> list[int]:
        """The chains whose model gives no finite output any more."""
        found = []
        x, _ = self.observed.batch(schedule.watched(len(self.observed))[:64])
        with torch.no_grad(), keep_random_state(self.center.device), keep_host_random_state():
            for chain, w in enumerate(self.weights):
                outputs = [torch.linalg.vector_norm(w - self.center)]
                with suppress(Exception):  # it may be the model itself that fails
                    outputs += tree_leaves(self.posterior.outputs(w, x))
                if not all(bool(o.isfinite().all()) for o in outputs if isinstance(o, Tensor)):
                    found.append(chain)
        return found

    def checkpoint(self) -> Checkpoint:
        """All that the chains need to go on from here.

        Raises:
            ValueError: the sampler has changed itself, which no checkpoint would hold.
        """
        self._require_unchanged_sampler()
        return Checkpoint(self.step, dict(self.state), *self._draws.states(), self._previous)

    def restore(self, checkpoint: Checkpoint, path: Path | None) -> None:
        """Go on from a checkpoint of the store at ``path``.

        Raises:
            TraceMismatch: it is one of other chains, or of another kind of device.
        """
        where = f"store {str(path)!r} can be read but not continued"
        if set(checkpoint.state) != set(self.state):
            raise TraceMismatch(
                f"{where}: its checkpoint holds {', '.join(sorted(checkpoint.state))}, but this "
                f"sampler's state is {', '.join(sorted(self.state))}. Choose another store"
            )
        try:
            self._draws.restore(checkpoint.noise_rng, checkpoint.batch_rng)
        except (RuntimeError, TypeError) as error:
            raise TraceMismatch(
                f"{where} on {self.center.device}: its chains ran on another kind of device, whose "
                "random numbers this one does not have. Choose another store"
            ) from error
        state = {k: t.to(self.center.device) for k, t in checkpoint.state.items()}
        self.state = check_state(state, self.chains, self.weights)
        self.step = checkpoint.step
        previous = checkpoint.gradient
        self._previous = None if previous is None else previous.to(self.center.device)

    def _at_center(self, chains: int) -> Tensor:
        return self.center.expand(chains, -1).clone()

    def _reset(self, state: State, chains: list[int]) -> State:
        """A state in which some chains stand at w* as at the beginning."""
        begun = self.sampler.init(self._at_center(len(chains)))
        state = {name: tensor.clone() for name, tensor in state.items()}
        for name, tensor in state.items():
            tensor[chains] = begun[name] if name in begun else torch.zeros_like(tensor[chains])
        return state

    def _require_unchanged_sampler(self) -> None:
        if describe(attributes(self.sampler)) != self._settings:
            raise ValueError(
                f"sampler ({type(self.sampler).__name__}) changes an attribute of its own in step, "
                "which a trace that is continued would not know; keep what changes in the state"
            )

    # --- gradients, for the estimator (see probelib.gradients.BatchGradients) ---

    def _batch(self) -> Batch:
        """Each chain's own minibatch, (chains, m, ...); for the full gradient one for all."""
        size = self.estimator.batch_size
        if self._full_batch or size is None:
            return self.data.batch(slice(0, len(self.data)))
        return self.data.batch(self._draws.minibatch(len(self.data), size))

    def of_batch(self, weights: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean gradients (chains, n_parameters) and losses (chains,) of a batch for each chain."""
        if self.together:
            leaves = tree_leaves(batch)
            if self._all_gradients is None:
                every = _of_leaves(self._mean_loss, batch, self._full_batch)
                # What a model leaves behind is undone in Python, which no recording does.
                changes = self.posterior.leaves_traces
                self._all_gradients = every if changes else _recorded(every, weights, *leaves)
            return self._all_gradients(weights, *leaves)
        gradients, losses = [], []
        for c, w in enumerate(weights):
            if c in self.frozen:
                gradients.append(torch.zeros_like(w))
                losses.append(w.new_zeros(()))
                continue
            stream = own_stream(self._seeds[c], self.step, 0, w.device)
            with stream if self._draws_at_random else nullcontext():
                own = batch if self._full_batch else rows(batch, c)
                gradient, loss = self.gradient_at(w, *own)
            gradients.append(gradient)
            losses.append(loss)
        return torch.stack(gradients), torch.stack(losses)

    @undisturbed
    def of_all_at_center(self) -> Tensor:
        """The gradient of L at w*, computed once."""
        if self._full_gradient is None:
            total = torch.zeros_like(self.center)
            # The same for every group of chains: batches and streams are the run's.
            size = schedule.observe_batch(self.cost.bytes, self.center.device)
            seed = np.random.SeedSequence(self.plan.seed)
            # What a model draws at random is averaged over: an anchor of one mask would push alike
            # at every step.
            passes = _MASKS if self.posterior.train_mode else 1
            for again in range(passes):
                for part, (x, y) in enumerate(self.data.batches(size)):
                    stream = own_stream(seed, again, part, self.center.device)
                    with stream if self._draws_at_random else nullcontext():
                        gradient, _ = self.gradient_at(self.center, x, y)
                    total += gradient * (count(y) / len(self.data))
            self._full_gradient = total / passes
        return self._full_gradient

    def _mean_loss(self, weights: Tensor, x: Tree, y: Tree) -> Tensor:
        return self.posterior.losses(weights, x, y).mean()

    def gradient_at(self, weights: Tensor, x: Tree, y: Tree) -> tuple[Tensor, Tensor]:
        """Mean gradient and loss of a batch at single weights, by plain autograd."""
        return _by_autograd(self._mean_loss, weights, x, y)


class _Gradients:
    """What a step asks for gradients: :class:`probelib.samplers.base.StepGradient`.

    Attributes:
        first: where it first asked, with gradient and losses there.
    """

    def __init__(self, chains: Chains, batch: Batch):
        self._chains, self._batch = chains, batch
        self.first: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, weights: Tensor) -> Tensor:
        return self.with_loss(weights)[0]

    def with_loss(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        estimate, loss = self._chains.estimator(weights, self._batch, self._chains)
        if self.first is None:
            self.first = weights, estimate, loss
        return estimate, loss


def rehearse(run: Run, data: Samples, cost: schedule.Pass) -> schedule.Thinning:
    """What thin="auto" chooses: a rehearsal of the burn-in with a few samples watched.

    It always rehearses the first four chains of the whole, so that calls which share its chains
    out choose alike, and because one chain shows too little of what it will do.

    Args:
        run: the run to choose for; its own chains are not touched.
        data: its samples, staged.
        cost: of observing a sample.
    """
    posterior, plan = run.posterior, run.plan
    index = schedule.watched(len(run.observed))
    some = Samples(run.observed.batch(index), posterior.device, "observe", copied=True)
    shorter = replace(plan, chains=4, first_chain=0, thin=1, observe_batch_size=None)
    chains = Chains(replace(run, observed=some, plan=shorter))
    chains.data = data
    losses = []
    for step in range(plan.burn_in):
        chains.advance()
        if step >= plan.burn_in // 4:  # by then the chains have left w* behind
            losses.append(chains.observe())
    found = torch.stack(losses, 1).cpu().numpy()
    if not np.isfinite(found).all():  # the run itself will meet it, and name chain and step
        return schedule.Thinning(1, 1.0, 0.0, 1.0)
    return schedule.choose_thin(
        found,
        schedule.step_cost(
            cost,
            observed=len(run.observed),
            batch=run.gradient.batch_size or posterior.n_samples,
            gradients=run.gradients_per_step,
            weights=posterior.n_parameters,
        ),
    )


def _of_leaves(
    mean_loss: Callable[..., Tensor], like: Batch, shared: bool
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Gradients and losses of several rows of weights at once, given the leaves of a batch.

    Neither vmap nor a recording looks into every container: what lies in one that they do not
    know would be shared by the chains, and stand still from step to step.

    Args:
        mean_loss: of (weights, inputs, targets).
        like: a batch in the containers of those to come.
        shared: all chains have one batch; else each its own, chains first.
    """

    def of_row(weights: Tensor, *leaves: Tensor) -> tuple[Tensor, Tensor]:
        return grad_and_value(mean_loss)(weights, *tree_like(like, leaves))

    return vmap(of_row, in_dims=(0, *[None if shared else 0] * len(tree_leaves(like))))


def _vmap_agrees(posterior: LocalPosterior, mean_loss: Callable[..., Tensor], shared: bool) -> bool:
    """Whether torch.func can run this model for all chains at once, with the same result.

    Looked at as it will run: two rows of weights, with batches of their own or one for all.
    """
    x, y = posterior.data.batch(slice(0, min(2, posterior.n_samples)))
    expected, before = _by_autograd(mean_loss, posterior.center, x, y), host_random_state()
    leaves = tree_leaves((x, y))
    if not shared:
        leaves = [torch.stack([t, t.flip(0)]) for t in leaves]
    center = posterior.center
    weights = torch.stack([center, center + 0.01 * (1 + center.abs())])
    try:
        with ONE_THREAD, warnings.catch_warnings():
            # An operation that vmap would run chain by chain anyway.
            warnings.filterwarnings("error", ".*performance drop")
            got = _of_leaves(mean_loss, (x, y), shared)(weights, *leaves)
    except Exception:  # whatever vmap cannot do, plain autograd just did
        return False
    agree = all(
        torch.allclose(g[0], e, rtol=1e-3, atol=1e-5) for g, e in zip(got, expected, strict=True)
    )
    # Where a model draws from other generators than torch's, vmap does not see it.
    return agree and host_random_state() == before


@torch.enable_grad()
def _by_autograd(
    loss_of: Callable[..., Tensor], weights: Tensor, x: Tree, y: Tree
) -> tuple[Tensor, Tensor]:
    """Gradient and value of a mean loss by plain autograd, which runs every model."""
    weights = weights.detach().requires_grad_()
    loss = loss_of(weights, x, y)
    if not loss.requires_grad:
        raise ValueError(
            "per_sample_loss has no gradient with respect to the weights; leave out what "
            "detaches it, such as .detach(), .item() or argmax"
        )
    return torch.autograd.grad(loss, weights)[0], loss.detach()


def _recorded(function: Callable[..., Any], *args: Tensor) -> Callable[..., Any]:
    """The tensor operations of a function, without the Python around them (half of a small step).

    Only for what vmap runs: it takes no branch and draws nothing that depends on its arguments.
    """
    try:
        with ONE_THREAD:
            return make_fx(lambda *a: function(*a))(*args)
    except Exception:  # what cannot be recorded runs all the same
        return function


__all__ = ["Chains", "rehearse"]
