r"""SGLD chains around trained weights (Eq. 7), and the trace of losses they leave.

.. math::

   w \leftarrow w - \tfrac{\epsilon}{2}\big[n\beta\,\nabla \hat L_B(w) + \gamma (w - w^*)\big]
   + \sqrt{\epsilon}\,\xi, \qquad \xi \sim \mathcal N(0, I)

with :math:`\nabla \hat L_B` the mean gradient of a minibatch. The paper's Eq. 7 lacks the beta.
How often and how long to observe is in :mod:`probelib.schedule`.
"""

import hashlib
import json
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules.conv import _ConvNd
from tqdm import tqdm

from probelib import schedule
from probelib.posterior import (
    Data,
    LocalPosterior,
    Samples,
    keep_random_state,
    require_positive,
)
from probelib.trace import (
    FORMAT,
    ChainState,
    TraceMismatch,
    TraceStore,
    check_fingerprint,
    check_losses,
)

# On a CPU a wide network is observed faster one chain at a time (plain matrix products) than
# under vmap (batched ones); a small network is all overhead, and vmap shares it.
_SMALL = 2**16
# Items of a data set are kept on the device from one pass to the next if they take less than this.
_STAGED = 2**31
# Filters of warnings and torch.fx's recording change what all threads of a process see.
_ONE_AT_A_TIME = threading.Lock()
_FLUSH_DRAWS, _FLUSH_STEPS, _FLUSH_SECONDS = 50, 1000, 60.0


class DivergenceError(RuntimeError):
    """A chain left the finite numbers.

    Attributes:
        chain: its position, from 0.
        step: the step before which its loss was last seen finite.
        trace: the draws that all chains took before, marked incomplete.
    """

    def __init__(self, message: str, chain: int, step: int, trace: xr.Dataset):
        super().__init__(message)
        self.chain, self.step, self.trace = chain, step, trace


@dataclass(frozen=True)
class SGLD:
    r"""Stochastic gradient Langevin dynamics (Eq. 7; Welling and Teh, 2011).

    Args:
        step_size: :math:`\epsilon`. The chain is stable where
            :math:`\epsilon (n\beta h + \gamma) < 4` for every curvature h of L.
        batch_size: m, drawn without replacement at each step; None for the full gradient.
        control_variate: take :math:`\nabla \hat L_B(w) - \nabla \hat L_B(w^*) + \nabla L(w^*)` for
            the gradient (Baker et al., 2019). Its minibatch noise vanishes at w* and grows with the
            distance from there, so that it pays where the chain stays near; it costs a second
            gradient a step, and one of all samples at the start.

    Raises:
        ValueError: a non-positive value, or a control variate for the full gradient.
    """

    step_size: float
    batch_size: int | None = None
    control_variate: bool = False

    def __post_init__(self) -> None:
        require_positive("step_size", self.step_size)
        if self.batch_size is not None:
            _positive("batch_size", self.batch_size)
            object.__setattr__(self, "batch_size", int(self.batch_size))
        elif self.control_variate:
            raise ValueError(
                "control_variate is for minibatches, but batch_size is None; give a batch_size"
            )
        object.__setattr__(self, "step_size", float(self.step_size))

    def __repr__(self) -> str:  # a part of a trace's fingerprint: names what differs from plain
        more = ", control_variate=True" if self.control_variate else ""
        return f"SGLD(step_size={self.step_size!r}, batch_size={self.batch_size!r}{more})"

    def step(
        self,
        weights: Tensor,
        gradient: Tensor,
        noise: Tensor,
        *,
        center: Tensor,
        n_beta: float,
        localization: float,
    ) -> None:
        """One step of Eq. 7, in place, for all chains.

        Args:
            weights: w, shape (chains, n_parameters); changed.
            gradient: mean gradient of each chain's minibatch, same shape; overwritten.
            noise: standard normals, same shape.
            center: w*, shape (n_parameters,).
            n_beta: inverse temperature times the number of samples.
            localization: precision of the Gaussian around w*.
        """
        drift = gradient.mul_(n_beta).add_(weights, alpha=localization)
        drift.sub_(center, alpha=localization)
        weights.sub_(drift, alpha=self.step_size / 2).add_(noise, alpha=self.step_size**0.5)


def sample(
    posterior: LocalPosterior,
    observe: Data | None = None,
    *,
    kernel: SGLD,
    chains: int = 4,
    draws: int = 500,
    burn_in: int = 0,
    thin: int | Literal["auto"] = 1,
    until: float | None = None,
    seed: int = 0,
    store: str | os.PathLike | None = None,
    cache: str | os.PathLike | None = None,
    overwrite: bool = False,
    loss_dtype: str = "float32",
    observe_dtype: str = "float32",
    observe_batch_size: int | None = None,
    first_chain: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    """Run chains from w* and record every observed sample's loss at every draw.

    Chain c draws its minibatches and its noise from generators seeded by
    ``numpy.random.SeedSequence(seed).spawn(chains)[c]``. The same call gives the same trace, bit
    for bit, on the same machine with the same number of threads. Neither the caller's model nor
    any global random state is touched.

    The gradients of several chains are recorded as tensor operations at the first step: what
    else a model or a loss does in Python (counting, printing, a schedule) happens only then.

    With ``store`` the trace grows on disk, with checkpoints. The same call again returns a
    finished trace without sampling, continues an unfinished one, and extends it if ``draws`` has
    grown; a store that holds anything else is refused. A ``cache`` is a directory of such stores,
    each named by what it is a trace of: the call finds its own there, or starts it.

    Args:
        posterior: what to sample from.
        observe: the samples whose losses are recorded; default: those of the posterior.
        kernel: the sampler.
        chains: number C of independent chains, all starting at w*.
        draws: number T of draws kept per chain; with ``until`` at most so many.
        burn_in: number b of steps before the first draw counts.
        thin: steps per draw. "auto" chooses them for the least time to a given standard error: it
            runs the burn-in first with up to 256 observed samples watched at every step, weighs how
            fast their losses decorrelate against what a step and an observation cost, and keeps
            what it found in the trace's attribute ``thinning``. See
            :func:`probelib.schedule.choose_thin`.
        until: stop as soon as the median Monte-Carlo standard error of the loss gain, over up to
            256 observed samples, is at most this (nats). It looks after 20 draws and then after
            every tenth more. Few draws of a heavy-tailed loss make their own error too small.
        seed: of the whole run.
        store: directory for the trace; without it and ``cache`` the trace stays in memory.
        cache: directory of many traces, instead of ``store``. Nothing in it is replaced.
        overwrite: replace the trace that ``store`` holds already.
        loss_dtype: "float32", or "float16" to halve the trace's size: four digits, and losses
            below 6e-8 become 0.
        observe_dtype: "float32", or "bfloat16" to observe under autocast, l_i(w*) included; the
            chains themselves stay in the precision of the weights. "auto" takes bfloat16 where
            the device multiplies it faster than float32, and says so in the trace.
        observe_batch_size: samples per observation pass; default: as many as fit a CPU's cache, or
            a part of an accelerator's memory.
        first_chain: the number of the first chain, so that several calls, one a device, each run
            some of the chains of one: their traces side by side are that call's.
        progress: show a bar with rate, loss and time to go.

    Returns:
        The trace: see :mod:`probelib.trace`. ``loss`` has shape (chains, draws, n_observed).

    Raises:
        ValueError: a bad argument, named in the message; nothing has been written then.
        TraceMismatch: ``store`` holds a trace of something else.
        DivergenceError: a chain's loss or weights became non-finite; earlier draws stay readable.
        OverflowError: a loss along the chain is too large for float16; earlier draws stay readable.
    """
    for name, value in (("chains", chains), ("draws", draws)):
        _positive(name, value)
    if isinstance(thin, str) and thin != "auto":
        raise ValueError(f"thin is {thin!r}; it must be a whole number, 1 or more, or 'auto'")
    if thin != "auto":
        _positive("thin", thin)
    elif _is_int(burn_in) and burn_in < schedule.BURN_IN:
        raise ValueError(
            f"thin is 'auto', which looks at the losses during burn-in, but burn_in is {burn_in}; "
            f"make it {schedule.BURN_IN} or more"
        )
    if until is not None:
        require_positive("until", until)
    if not _is_int(burn_in) or burn_in < 0:
        raise ValueError(f"burn_in is {burn_in}; it must be a whole number, 0 or more")
    if not _is_int(seed) or seed < 0:
        raise ValueError(f"seed is {seed}; it must be a whole number, 0 or more")
    if not _is_int(first_chain) or first_chain < 0:
        raise ValueError(f"first_chain is {first_chain}; it must be a whole number, 0 or more")
    if observe_batch_size is not None:
        _positive("observe_batch_size", observe_batch_size)
    if cache is not None and (store is not None or overwrite):
        raise ValueError(
            f"cache is {os.fspath(cache)!r} beside store or overwrite; a cache names its stores "
            "itself and keeps them all, so give one or the other"
        )
    if loss_dtype not in ("float32", "float16"):
        raise ValueError(f"loss_dtype is {loss_dtype!r}; choose 'float32' or 'float16'")
    if observe_dtype not in ("float32", "bfloat16", "auto"):
        raise ValueError(
            f"observe_dtype is {observe_dtype!r}; choose 'float32', 'bfloat16' or 'auto'"
        )
    fast = schedule.has_fast_bfloat16(posterior.device)
    if observe_dtype == "auto":
        observe_dtype = "bfloat16" if fast else "float32"
    elif observe_dtype == "bfloat16" and not fast:
        warnings.warn(
            f"observe_dtype is 'bfloat16', for which this {posterior.device.type} has no units: it "
            "may be hundreds of times slower than 'float32'; 'auto' knows",
            UserWarning,
            stacklevel=2,
        )
    if kernel.batch_size is not None and kernel.batch_size > posterior.n_samples:
        raise ValueError(
            f"batch_size is {kernel.batch_size}, more than the {posterior.n_samples} samples of "
            "the posterior; make it smaller, or None for the full gradient"
        )
    if observe is None:
        observed = posterior.data
    else:
        observed = Samples(observe, posterior.device, "observe")
        posterior.check(observed)
    chains, draws, burn_in, seed = (int(i) for i in (chains, draws, burn_in, seed))
    asked = thin if thin == "auto" else int(thin)

    config = {
        "n_beta": posterior.n_beta,
        "localization": posterior.localization,
        "beta": posterior.beta,
        "n_samples": posterior.n_samples,
        "n_parameters": posterior.n_parameters,
        "kernel": type(kernel).__name__,
        **asdict(kernel),
        "chains": chains,
        "draws": draws,
        "burn_in": burn_in,
    }
    identity = posterior.fingerprint()
    fingerprint = identity | {
        "observed_data": (identity["sampling_data"] if observe is None else observed.fingerprint()),
        "kernel": repr(kernel),
        "chains": chains,
        "burn_in": burn_in,
        "thin": asked,
        "seed": seed,
        "loss_dtype": loss_dtype,
        "format": FORMAT,
    }
    if observe_dtype != "float32":  # named only where it differs, as in stores older than it
        fingerprint["observe_dtype"] = observe_dtype
    if first_chain:
        fingerprint["first_chain"] = int(first_chain)
    for samples in (posterior.data, observed):
        if not samples.in_memory:  # its labels are known only now that it was read whole
            posterior.check(samples)
    run = _Run(
        posterior, observed, kernel, chains, seed, observe_batch_size, observe_dtype, first_chain
    )
    trace = TraceStore(store) if cache is None else _find(Path(cache), fingerprint, run)
    if trace.exists() and not overwrite:
        _check(trace, fingerprint, run)
        config["thin"] = thin = trace.attrs["config"]["thin"]
        watch = _Watch(until, draws, trace)
        done = min(trace.attrs["draws_done"], watch.enough or draws)
        if done == draws or watch.enough:
            steps = burn_in + done * thin
            enough = trace.dataset().isel(draw=slice(done), step=slice(steps))
            config["draws"] = done
            return enough.assign_attrs(
                complete=True, config=config, draws_done=done, steps_done=steps
            )
        if trace.attrs["checkpoint_step"]:
            run.restore(trace.states(chains), trace.path)
        run.stage()
        watch.rewind(max(0, run.step - burn_in) // thin)
        if draws != trace.attrs["config"]["draws"]:
            trace.resize(draws=draws, steps=burn_in + draws * thin)
            trace.commit(None, config=config)
    else:
        run.stage()
        init_loss = run.at_center()
        if not np.isfinite(init_loss).all():
            bad = int(np.flatnonzero(~np.isfinite(init_loss))[0])
            raise ValueError(
                f"observe has a non-finite loss at w*, first in sample {bad}; remove or repair it"
            )
        if init_loss.max() > np.finfo(loss_dtype).max:
            raise ValueError(
                f"loss_dtype is {loss_dtype!r}, which cannot hold a loss of "
                f"{init_loss.max():.3g}; use loss_dtype='float32'"
            )
        started = time.perf_counter()
        thinning = _thinning(run, burn_in, progress) if asked == "auto" else None
        thin = config["thin"] = thinning.thin if thinning else asked
        trace.create(
            chains=chains,
            draws=draws,
            steps=burn_in + draws * thin,
            init_loss=init_loss,
            labels=observed.labels(),
            loss_dtype=loss_dtype,
            attrs={
                "config": config,
                "fingerprint": fingerprint,
                "seed": seed,
                "device": str(posterior.device),
                "threads": torch.get_num_threads(),
                "versions": _versions(),
                "advance": "together" if run.together else "one by one",
                "observe_dtype": observe_dtype,
                "observe_batch_size": run.observe_batch_size,
                "wall_time": time.perf_counter() - started,
            }
            | ({"thinning": asdict(thinning)} if thinning else {}),
        )
        watch = _Watch(until, draws, trace)
    _record(run, trace, watch, draws, burn_in, thin, progress)
    return trace.dataset()


def _thinning(run: "_Run", burn_in: int, progress: bool) -> schedule.Thinning:
    """What thin="auto" chooses: a rehearsal of the burn-in with a few samples watched.

    It always rehearses the first four chains of the whole, so that calls which share its chains
    out choose alike, and because one chain shows too little of what it will do.
    """
    posterior, kernel = run.posterior, run.kernel
    index = schedule.watched(len(run.observed))
    some = Samples(run.observed.batch(index), posterior.device, "observe")
    rehearsal = _Run(posterior, some, kernel, 4, run.seed, None, run.observe_dtype, first_chain=0)
    rehearsal.data = run.data
    losses = []
    for step in range(burn_in):
        rehearsal.advance()
        if step >= burn_in // 4:  # by then the chains have left w* behind
            losses.append(rehearsal.observe(rehearsal.weights, rehearsal.step))
    losses = torch.stack(losses, 1).cpu().numpy()
    if not np.isfinite(losses).all():  # the run itself will meet it, and name chain and step
        return schedule.Thinning(1, 1.0, 0.0, 1.0)
    chosen = schedule.choose_thin(
        losses,
        schedule.step_cost(
            run.cost,
            observed=len(run.observed),
            batch=kernel.batch_size or posterior.n_samples,
            gradients=1 + kernel.control_variate,
            weights=posterior.n_parameters,
        ),
    )
    if progress:
        tqdm.write(str(chosen))
    return chosen


class _Watch:
    """Decides for ``until`` when a trace is good enough, in a run as in a trace read again."""

    def __init__(self, until: float | None, draws: int, trace: TraceStore):
        self.until, self.draws, self._trace = until, draws, trace
        self._rows: list[Tensor] = []
        #: Draws at which the trace was good enough, or None.
        self.enough: int | None = None
        if until is None:
            return
        done = trace.attrs["draws_done"]
        self._index = schedule.watched(trace.shape[2])
        before = trace.losses(done, self._index).astype(np.float32)
        self._rows = list(torch.from_numpy(before).unbind(1))
        self.enough = schedule.good_enough(before, until, draws)
        self.rewind(done)

    def rewind(self, done: int) -> None:
        """Forget the draws that the run takes again, after the first ``done``."""
        self._rows = self._rows[:done]
        self._looks = (at for at in schedule.looks(self.draws) if at > done)
        self._next = next(self._looks, None)

    def saw(self, losses: Tensor) -> bool:
        """Take the losses (chains, n_observed) of the next draw; whether this is enough."""
        if self.until is None:
            return False
        self._rows.append(losses[:, self._index])
        if len(self._rows) != self._next:
            return False
        self._next = next(self._looks, None)
        kept = torch.stack([row.cpu() for row in self._rows], 1).numpy()
        error = schedule.median_mcse(kept.astype(self._trace.loss_dtype))
        self.enough = len(self._rows) if error <= self.until else None
        return self.enough is not None


def _check(trace: TraceStore, fingerprint: dict[str, Any], run: "_Run") -> None:
    """Refuse a store that holds the trace of another call (TraceMismatch)."""
    check_fingerprint(trace.attrs["fingerprint"], fingerprint, trace.path)
    index, losses = run.some_at_center()
    check_losses(
        trace.dataset().init_loss.values[index],
        losses,
        index,
        trace.attrs["device"] == str(run.posterior.device),
        trace.path,
    )


def _find(cache: Path, fingerprint: dict[str, Any], run: "_Run") -> TraceStore:
    """This call's own store in a cache, or a free place for it."""
    named = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]
    for suffix in ("", *(f"-{k}" for k in range(2, 100))):
        trace = TraceStore(cache / f"{named}{suffix}.zarr")
        try:
            if trace.exists():
                _check(trace, fingerprint, run)
            return trace
        except TraceMismatch:  # damaged, or a difference that only the losses at w* show
            continue
    raise TraceMismatch(f"cache {str(cache)!r} has 99 unusable stores {named}*; remove them")


def _record(
    run: "_Run",
    trace: TraceStore,
    watch: _Watch,
    draws: int,
    burn_in: int,
    thin: int,
    progress: bool,
) -> None:
    """Advance the chains to the last draw, writing losses and states as they come."""
    total = burn_in + draws * thin
    losses: list[Tensor] = []
    distances: list[Tensor] = []
    sampling: list[Tensor] = []
    wall_time, since = trace.attrs["wall_time"], time.perf_counter()

    def flush(checkpoint: bool = True) -> None:
        nonlocal wall_time, since
        first_step = run.step - len(sampling)
        first_draw = max(0, first_step - burn_in) // thin
        steps = torch.stack(sampling, 1).float().cpu().numpy()
        rows = np.empty((run.chains, 0, len(run.observed)), np.float32)
        away = np.empty((run.chains, 0), np.float32)
        if losses:
            rows = torch.stack(losses, 1).float().cpu().numpy()
            away = torch.stack(distances, 1).float().cpu().numpy()
        diverged = _first_divergence(
            steps, rows, away, first_step, lambda d: burn_in + (first_draw + d + 1) * thin
        )
        sound, chain, bad = rows.shape[1], *(diverged or (None, None))
        if diverged:
            sound = max(0, min(sound, (bad - burn_in - 1) // thin - first_draw))
            steps = steps[:, : bad - first_step]
        too_large = rows[:, :sound] > np.finfo(trace.loss_dtype).max
        if too_large.any():
            sound = int(np.flatnonzero(too_large.any((0, 2)))[0])
        if sound:
            trace.write_draws(first_draw, rows[:, :sound], away[:, :sound])
        if steps.shape[1]:
            trace.write_steps(first_step, steps)
        now = time.perf_counter()
        wall_time, since = wall_time + now - since, now
        stopped = bool(diverged) or too_large.any()
        trace.commit(
            run.states() if checkpoint and not stopped else None,
            # What an interruption left beyond the checkpoint is as good as what replaces it.
            draws_done=max(first_draw + sound, 0 if stopped else trace.attrs["draws_done"]),
            steps_done=max(
                first_step + steps.shape[1], 0 if stopped else trace.attrs["steps_done"]
            ),
            wall_time=wall_time,
            complete=not stopped and run.step == total,
        )
        losses.clear(), distances.clear(), sampling.clear()
        if too_large.any():
            raise OverflowError(
                f"loss_dtype is {str(trace.loss_dtype)!r}, which cannot hold a loss of "
                f"{rows[:, sound].max():.3g}; use loss_dtype='float32' (the {first_draw + sound} "
                "draws before it are kept, marked incomplete)"
            )
        if diverged:
            raise divergence(chain, bad, first_draw + sound)

    def divergence(chain: int, step: int, kept: int) -> DivergenceError:
        return DivergenceError(
            f"chain {chain} diverged at step {step} with step_size {run.kernel.step_size:g}: its "
            f"loss or its weights are no longer finite; lower step_size (the {kept} draws "
            "before it are kept, marked incomplete)",
            chain,
            step,
            trace.dataset(),
        )

    done = trace.attrs["draws_done"]
    on_cpu = run.center.device.type == "cpu"
    with tqdm(total=draws, initial=done, unit="draw", disable=not progress, mininterval=0.5) as bar:
        while run.step < total:
            try:
                loss = run.advance()
                sampling.append(loss)
                if run.step > burn_in and (run.step - burn_in) % thin == 0:
                    seen = run.observe(run.weights, run.step)
                    distances.append(torch.linalg.vector_norm(run.weights - run.center, dim=1))
                    losses.append(seen)
                    if progress and bar.update():
                        bar.set_postfix(loss=f"{float(seen.mean()):.4g}", refresh=False)
                    if watch.saw(seen):
                        total = run.step
            except BaseException as error:
                # Keep what is whole. The checkpoint stays behind: this step may be half done.
                due = (
                    max(0, run.step - burn_in) // thin
                    - max(0, run.step - len(sampling) - burn_in) // thin
                )
                if len(losses) < due:  # the last step's draw was not observed
                    run.step -= 1
                    sampling.pop()
                    del distances[len(losses) :]
                if sampling:
                    flush(checkpoint=False)
                chain = run.lost_chain() if isinstance(error, Exception) else None
                if chain is not None:
                    raise divergence(chain, run.step, trace.attrs["draws_done"]) from error
                raise
            if (
                run.step == total
                or len(losses) == _FLUSH_DRAWS
                or len(sampling) >= _FLUSH_STEPS
                or time.perf_counter() - since > _FLUSH_SECONDS
                # On an accelerator this look would stall the queue: there the next flush tells.
                or (on_cpu and not sampling[-1].isfinite().all())
            ):
                flush()
        if watch.enough and watch.enough < draws:
            bar.total = watch.enough
            trace.resize(draws=watch.enough, steps=total)
            config = trace.attrs["config"] | {"draws": watch.enough}
            trace.commit(None, complete=True, config=config)


def _first_divergence(
    steps: np.ndarray,
    rows: np.ndarray,
    away: np.ndarray,
    first_step: int,
    taken_at: Callable[[int], int],
) -> tuple[int, int] | None:
    """The chain that left the finite numbers first, and after how many steps."""
    found = [(first_step + int(s), int(c)) for c, s in np.argwhere(~np.isfinite(steps))]
    lost = ~np.isfinite(rows).all(-1) | ~np.isfinite(away)
    found += [(taken_at(int(d)), int(c)) for c, d in np.argwhere(lost)]
    return min(found)[::-1] if found else None


class _Run:
    """The chains of one device: weights, generators, and how they advance and observe."""

    def __init__(
        self,
        posterior: LocalPosterior,
        observed: Samples,
        kernel: SGLD,
        chains: int,
        seed: int,
        observe_batch_size: int | None,
        observe_dtype: str,
        first_chain: int,
    ):
        self.posterior, self.kernel = posterior, kernel
        self.data, self.observed = posterior.data, observed
        self.chains, self.center = chains, posterior.center
        self.seed, self.observe_dtype = seed, observe_dtype
        on_cpu = posterior.device.type == "cpu"
        self.step = 0
        self.weights = self.center.expand(chains, -1).clone()
        self._noise = torch.empty_like(self.weights)
        self._full_batch = kernel.batch_size in (None, posterior.n_samples)
        self._seeds = np.random.SeedSequence(seed).spawn(first_chain + chains)[first_chain:]
        self._batch_rng, self._noise_rng = [], []
        for chain in self._seeds:
            for_batch, for_noise = chain.spawn(2)
            self._batch_rng.append(np.random.default_rng(for_batch))
            generator = torch.Generator(posterior.device)
            generator.manual_seed(int(for_noise.generate_state(1, np.uint64)[0]))
            self._noise_rng.append(generator)
        with keep_random_state(posterior.device):
            # Convolutions with weights of their own for each chain are run as one of many groups:
            # on a CPU slower than one chain after the other, and in many times the memory.
            apart = any(isinstance(m, _ConvNd) for m in posterior._model.modules())
            can = not apart and not posterior.train_mode and self._vmap_agrees()
            self.together = can and chains > 1  # one chain alone would only pay for vmap
            self._draws_at_random = not can  # as far as is known: vmap runs no model that does
            self.cost = schedule.cost_of_pass(
                lambda x, y: posterior.losses(self.center, x, y),
                *observed.batch(np.arange(min(4, len(observed)))),
            )
        self._observe_together = self.together and not (on_cpu and self.center.numel() > _SMALL)
        self._may_shrink = observe_batch_size is None
        self.observe_batch_size = observe_batch_size or schedule.observe_batch(
            self.cost.bytes, posterior.device, chains if self._observe_together else 1
        )
        self._anchor: Tensor | None = None
        self._all_gradients: Callable[..., tuple[Tensor, Tensor]] | None = None

    def stage(self) -> None:
        """Read data sets once, before they are read at every draw."""
        shared = self.observed is self.data
        self.data = self.data.staged(_STAGED)
        self.observed = self.data if shared else self.observed.staged(_STAGED)

    def at_center(self) -> np.ndarray:
        """l_i(w*) of all observed samples."""
        return self.observe(self.center.unsqueeze(0))[0].cpu().numpy()

    def some_at_center(self, batches: int = 4, samples: int = 64) -> tuple[np.ndarray, np.ndarray]:
        """Positions and l_i(w*) of at least so many batches and samples, spread over all.

        Whole batches with their own randomness: in train mode a loss depends on its batch.
        """
        batches = max(batches, -(-samples // self.observe_batch_size))
        starts = np.arange(0, len(self.observed), self.observe_batch_size)
        starts = starts[np.unique(np.linspace(0, len(starts) - 1, batches, dtype=int))]
        index, losses = [], []
        for start in starts:
            stop = min(start + self.observe_batch_size, len(self.observed))
            batch = self.observed.batch(slice(start, stop))
            seen = self._observe_batch(self.center.unsqueeze(0), *batch, step=0, start=int(start))
            losses.append(seen[0].float().cpu().numpy())
            index.append(np.arange(start, stop))
        return np.concatenate(index), np.concatenate(losses)

    def lost_chain(self) -> int | None:
        """The first chain whose model gives no finite output any more, or None."""
        x, _ = self.observed.batch(np.arange(1))
        with torch.no_grad():
            for chain, w in enumerate(self.weights):
                outputs = [w]
                with suppress(Exception):  # it may be the model itself that fails
                    outputs.append(self.posterior.outputs(w, x))
                if not all(bool(o.isfinite().all()) for o in outputs):
                    return chain
        return None

    def advance(self) -> Tensor:
        """One step of every chain. Returns the minibatch losses before it, shape (chains,)."""
        x, y = self._minibatches()
        gradient, loss = self._gradients(x, y)
        if self.kernel.control_variate and not self._full_batch:
            anchored, _ = self._gradients(x, y, self.center.expand_as(self.weights))
            gradient = gradient - anchored + self._full_gradient()
        for row, generator in zip(self._noise, self._noise_rng, strict=True):
            row.normal_(generator=generator)
        self.kernel.step(
            self.weights,
            gradient,
            self._noise,
            center=self.center,
            n_beta=self.posterior.n_beta,
            localization=self.posterior.localization,
        )
        self.step += 1
        return loss

    def _full_gradient(self) -> Tensor:
        """The gradient of L at w*, once."""
        if self._anchor is None:
            self._anchor = torch.zeros_like(self.center)
            for x, y in self.data.batches(self.observe_batch_size):
                gradient, _ = self._gradient(self.center, x, y)
                self._anchor += gradient * (len(y) / len(self.data))
        return self._anchor

    def observe(self, weights: Tensor, step: int = 0) -> Tensor:
        """Float32 losses of the observed samples at each row of ``weights``: (rows, n_observed)."""
        while True:
            try:
                return self._observe(weights, step)
            except torch.OutOfMemoryError:
                if not self._may_shrink or self.observe_batch_size == 1:
                    raise
                self.observe_batch_size //= 2  # the largest batch that fits, found

    @torch.no_grad()
    def _observe(self, weights: Tensor, step: int) -> Tensor:
        shape = len(weights), len(self.observed)
        out = torch.empty(shape, dtype=torch.float32, device=weights.device)
        start = 0
        for x, y in self.observed.batches(self.observe_batch_size):
            stop = start + len(y)
            out[:, start:stop] = self._observe_batch(weights, x, y, step=step, start=start)
            start = stop
        return out

    @torch.no_grad()
    def _observe_batch(
        self, weights: Tensor, x: Tensor, y: Tensor, *, step: int, start: int
    ) -> Tensor:
        """Losses of one batch, which begins at sample ``start``: (rows, batch)."""
        if self._observe_together:
            return vmap(self._losses, in_dims=(0, None, None))(weights, x, y)
        rows = []
        for c, w in enumerate(weights):
            with self._own_randomness(c, step, start + 1):
                rows.append(self._losses(w, x, y))
        return torch.stack(rows)

    def _losses(self, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Losses as they are observed; the loss itself always sees outputs in full precision."""
        if self.observe_dtype != "bfloat16":
            return self.posterior.losses(weights, x, y)
        with torch.autocast(weights.device.type, dtype=torch.bfloat16):
            output = self.posterior.outputs(weights, x)
        return self.posterior.per_sample_loss(output.to(weights.dtype), y)

    def states(self) -> list[ChainState]:
        return [
            ChainState(self.step, w, noise.get_state(), batch.bit_generator.state)
            for w, noise, batch in zip(self.weights, self._noise_rng, self._batch_rng, strict=True)
        ]

    def restore(self, states: list[ChainState], path: Path | None) -> None:
        for c, state in enumerate(states):
            self.weights[c] = state.weights
            try:
                self._noise_rng[c].set_state(state.noise_rng)
            except (RuntimeError, TypeError) as error:
                raise TraceMismatch(
                    f"store {str(path)!r} can be read but not continued on "
                    f"{self.posterior.device}: its chains ran on another kind of device, whose "
                    "random numbers this one does not have. Choose another store"
                ) from error
            self._batch_rng[c].bit_generator.state = state.batch_rng
        self.step = states[0].step

    def _minibatches(self) -> tuple[Tensor, Tensor]:
        """Each chain's own minibatch, (chains, m, ...); for the full gradient one for all."""
        data, m = self.data, self.kernel.batch_size
        if self._full_batch:
            return data.batch(slice(0, len(data)))
        return data.batch(
            np.stack(
                [r.choice(len(data), m, replace=False, shuffle=False) for r in self._batch_rng]
            )
        )

    def _gradients(
        self, x: Tensor, y: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Gradients and values of the mean loss: at each chain's weights, or at others."""
        weights = self.weights if weights is None else weights
        shared = None if self._full_batch else 0
        if self.together:
            if self._all_gradients is None:
                every = vmap(grad_and_value(self._mean_loss), in_dims=(0, shared, shared))
                self._all_gradients = _recorded(every, weights, x, y)
            return self._all_gradients(weights, x, y)
        gradients, losses = [], []
        for c, w in enumerate(weights):
            with self._own_randomness(c, self.step, 0):
                xc, yc = (x, y) if self._full_batch else (x[c], y[c])
                gradient, loss = self._gradient(w, xc, yc)
            gradients.append(gradient)
            losses.append(loss)
        return torch.stack(gradients), torch.stack(losses)

    def _mean_loss(self, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self.posterior.losses(weights, x, y).mean()

    @torch.enable_grad()
    def _gradient(self, weights: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient and value of the mean loss by plain autograd, which runs every model."""
        weights = weights.detach().requires_grad_()
        loss = self._mean_loss(weights, x, y)
        if not loss.requires_grad:
            raise ValueError(
                "per_sample_loss has no gradient with respect to the weights; leave out what "
                "detaches it, such as .detach(), .item() or argmax"
            )
        return torch.autograd.grad(loss, weights)[0], loss.detach()

    @contextmanager
    def _own_randomness(self, chain: int, step: int, part: int) -> Iterator[None]:
        """Dropout and its like draw from a stream of this chain and step alone."""
        if not self._draws_at_random:
            yield
            return
        parent, device = self._seeds[chain], self.posterior.device
        own = np.random.SeedSequence(parent.entropy, spawn_key=(*parent.spawn_key, 2, step, part))
        seed = int(own.generate_state(1, np.uint64)[0] >> 1)
        with keep_random_state(device):
            if device.type == "cpu":
                torch.default_generator.manual_seed(seed)
            else:
                torch.get_device_module(device).manual_seed(seed)
            yield

    def _vmap_agrees(self) -> bool:
        """Whether torch.func can run this model for all chains at once, with the same result."""
        x, y = self.posterior.data.batch(slice(0, min(2, self.posterior.n_samples)))
        expected = self._gradient(self.center, x, y)
        try:
            with _ONE_AT_A_TIME, warnings.catch_warnings():
                # An operation that vmap would run chain by chain anyway.
                warnings.filterwarnings("error", ".*performance drop")
                every = vmap(grad_and_value(self._mean_loss))
                got = every(*(t.unsqueeze(0) for t in (self.center, x, y)))
        except Exception:  # whatever vmap cannot do, plain autograd just did
            return False
        return all(
            torch.allclose(g[0], e, rtol=1e-3, atol=1e-5)
            for g, e in zip(got, expected, strict=True)
        )


def _recorded(function: Callable, *args: Tensor) -> Callable:
    """The tensor operations of a function, without the Python around them (half of a small step).

    Only for what vmap runs: it takes no branch and draws nothing that depends on its arguments.
    """
    try:
        with _ONE_AT_A_TIME:
            return make_fx(lambda *a: function(*a))(*args)
    except Exception:  # what cannot be recorded runs all the same
        return function


def _versions() -> dict[str, str]:
    from probelib import __version__

    return {"probelib": __version__, "torch": torch.__version__, "numpy": np.__version__}


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _positive(name: str, value: Any) -> None:
    if not _is_int(value) or value < 1:
        raise ValueError(f"{name} is {value}; it must be a whole number, 1 or more")


__all__ = ["SGLD", "DivergenceError", "sample"]
