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
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from probelib import schedule
from probelib.arguments import (
    require_choice,
    require_kind,
    require_positive,
    require_whole,
    shown,
)
from probelib.chains import Chains
from probelib.posterior import Data, LocalPosterior, Samples
from probelib.record import Watch
from probelib.trace import FORMAT, TraceMismatch, TraceStore, check_fingerprint, check_losses
from probelib.workers import Job, dismiss, run_elsewhere


class DivergenceError(RuntimeError):
    """Every chain left the finite numbers; the first of them is named.

    Attributes:
        chain: its number.
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
        step_size = require_positive("step_size", self.step_size)
        object.__setattr__(self, "step_size", step_size)
        if self.batch_size is not None:
            batch_size = require_whole("batch_size", self.batch_size)
            object.__setattr__(self, "batch_size", batch_size)
        elif self.control_variate:
            raise ValueError(
                "control_variate is for minibatches, but batch_size is None; give a batch_size"
            )

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
    executor: Executor | None = None,
    chains_per_task: int = 1,
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
    each named by what it is a trace of: the call finds its own there, or starts it. Whatever ends a
    run, the same call then goes on from the last draws that reached the disk, to the same trace.

    A chain whose loss or weights become non-finite ends there, with a warning; the others go on,
    and the trace's attribute ``diverged`` names it. Ctrl-C in a notebook or at a prompt returns
    the trace so far, marked incomplete.

    With ``executor`` the chains run in its workers, which write them into the store: a process
    pool, Dask's ``client.get_executor()``, or any other. Which worker runs a chain, and how many
    there are, changes no number; chains that advance together in one task, or without an
    executor, may differ from those that run alone by rounding, and stay as they were begun. A
    worker process takes the threads that OMP_NUM_THREADS gives it, or one.

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
        executor: runs the chains elsewhere. The store must lie where its workers can write it.
        chains_per_task: chains that advance together in a worker: more than one pays for small
            networks, and on a GPU.
        progress: show a bar with rate, loss and time to go.

    Returns:
        The trace: see :mod:`probelib.trace`. ``loss`` has shape (chains, draws, n_observed).

    Raises:
        ValueError, TypeError: a bad argument, named in the message; nothing has been written.
        TraceMismatch: ``store`` holds a trace of something else, or a damaged one.
        StoreBusy: another call is writing ``store``, or took it over; the message says whose.
        StoreError: the disk is full, or ``store`` is read-only or gone; earlier draws stay.
        DivergenceError: every chain's loss or weights became non-finite; earlier draws stay.
        OverflowError: a loss along the chain is too large for float16; earlier draws stay readable.
    """
    require_kind("posterior", posterior, LocalPosterior, "a probelib.LocalPosterior")
    require_kind("kernel", kernel, SGLD, "a probelib.SGLD")
    chains, draws = require_whole("chains", chains), require_whole("draws", draws)
    burn_in, seed = require_whole("burn_in", burn_in, 0), require_whole("seed", seed, 0)
    first_chain = require_whole("first_chain", first_chain, 0)
    if isinstance(thin, str):
        if thin != "auto":
            raise ValueError(
                f"thin is {shown(thin)}; it must be a whole number, 1 or more, or 'auto'"
            )
        if burn_in < schedule.BURN_IN:
            raise ValueError(
                "thin is 'auto', which looks at the losses during burn-in, but burn_in is "
                f"{burn_in}; make it {schedule.BURN_IN} or more"
            )
    else:
        thin = require_whole("thin", thin)
    if until is not None:
        until = require_positive("until", until)
    if observe_batch_size is not None:
        observe_batch_size = require_whole("observe_batch_size", observe_batch_size)
    require_choice("loss_dtype", loss_dtype, "float32", "float16")
    require_choice("observe_dtype", observe_dtype, "float32", "bfloat16", "auto")
    for name, path in (("store", store), ("cache", cache)):
        if path is not None:
            require_kind(name, path, _is_path, "a path, or None")
    if cache is not None and (store is not None or overwrite):
        raise ValueError(
            f"cache is {os.fspath(cache)!r} beside store or overwrite; a cache names its stores "
            "itself and keeps them all, so give one or the other"
        )
    chains_per_task = require_whole("chains_per_task", chains_per_task)
    if executor is None:
        if chains_per_task != 1:
            raise ValueError(
                f"chains_per_task is {chains_per_task} without an executor; give one, or leave it "
                "out"
            )
    else:
        _check_executor(executor, store if cache is None else cache, until)
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
    asked = thin

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
        fingerprint["first_chain"] = first_chain
    for samples in (posterior.data, observed):
        if not samples.in_memory:  # its labels are known only now that it was read whole
            posterior.check(samples)
    run = Chains(
        posterior, observed, kernel, chains, seed, observe_batch_size, observe_dtype, first_chain
    )
    trace = TraceStore(store) if cache is None else _find(Path(cache), fingerprint, run)
    here = trace.exists() and not overwrite
    served = _served(trace, fingerprint, run, until, draws) if here else None
    if served is not None:
        return served

    with trace.held():
        if trace.exists() and not overwrite:
            served = _served(trace, fingerprint, run, until, draws)  # much may have happened since
            if served is not None:
                return served
            dismiss(trace)
            trace.clean()
            config["thin"] = thin = trace.attrs["config"]["thin"]
            for group in trace.groups:
                if not _ended(trace, group, draws) and trace.progress(group).checkpoint:
                    trace.states(group)  # before anything is changed
            if draws != trace.attrs["config"]["draws"] or draws > trace.shape[1]:
                trace.resize(draws=draws, steps=burn_in + draws * thin)
                trace.put(config=config)
                trace.synchronise()
        else:
            run.stage()
            init_loss = run.at_center()
            if not np.isfinite(init_loss).all():
                bad = int(np.flatnonzero(~np.isfinite(init_loss))[0])
                raise ValueError(
                    f"observe has a non-finite loss at w*, first in sample {bad}; remove or repair "
                    "it"
                )
            if init_loss.max() > np.finfo(loss_dtype).max:
                raise ValueError(
                    f"loss_dtype is {loss_dtype!r}, which cannot hold a loss of "
                    f"{init_loss.max():.3g}; use loss_dtype='float32'"
                )
            started = time.perf_counter()
            thinning = _thinning(run, burn_in, progress) if asked == "auto" else None
            thin = config["thin"] = thinning.thin if thinning else asked
            together = chains if executor is None else chains_per_task
            trace.create(
                chains=chains,
                draws=draws,
                steps=burn_in + draws * thin,
                init_loss=init_loss,
                labels=observed.labels(),
                loss_dtype=loss_dtype,
                groups=[min(together, chains - first) for first in range(0, chains, together)],
                first_chain=first_chain,
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
        job = Job(
            posterior=posterior,
            observed=observed,
            kernel=kernel,
            seed=seed,
            first_chain=first_chain,
            draws=draws,
            burn_in=burn_in,
            thin=thin,
            observe_batch_size=observe_batch_size,
            observe_dtype=observe_dtype,
        )
        try:
            enough = _advance(job, trace, run, until, executor, progress)
        except KeyboardInterrupt:
            if not _at_a_prompt():
                raise
            so_far = trace.dataset()
            warnings.warn(
                f"interrupted: this is the trace so far, {so_far.sizes['draw']} of {draws} draws"
                + ("" if trace.path is None else "; the same call again goes on from there"),
                UserWarning,
                stacklevel=2,
            )
            return so_far
        if enough:
            config |= {"draws": enough}
            trace.resize(draws=enough, steps=burn_in + enough * thin)
        trace.finish(config=config)
        return _sound(trace, enough or draws, kernel.step_size)


def _advance(
    job: Job,
    trace: TraceStore,
    run: Chains,
    until: float | None,
    executor: Executor | None,
    progress: bool,
) -> int | None:
    """Take all groups of chains to the end; the draws at which ``until`` was content, if it was."""
    watch = Watch(until, job.draws, trace)
    done = {g.start: min(trace.progress(g).draws_done, job.draws) for g in trace.groups}
    left = [g for g in trace.groups if not _ended(trace, g, job.draws)]
    if until is not None and len(trace.groups) > 1:
        raise ValueError(
            f"until looks at all chains at once, but those of store {str(trace.path)!r} were begun "
            "apart, by an executor; give draws"
        )
    with tqdm(
        total=job.draws * len(done),
        initial=sum(done.values()),
        unit="draw",
        disable=not progress,
        mininterval=0.5,
    ) as bar:

        def saw_one(group: slice) -> Callable[[int, Tensor], None]:
            def saw(draws: int, losses: Tensor) -> None:
                if draws > done[group.start]:
                    done[group.start] = draws
                    if progress and bar.update():
                        bar.set_postfix(loss=f"{float(losses.nanmean()):.4g}", refresh=False)

            return saw

        def saw_all(draws: dict[int, int], loss: float | None) -> None:
            done.update({start: max(d, done[start]) for start, d in draws.items()})
            if loss is not None:
                bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
            bar.update(sum(done.values()) - bar.n)

        if executor is not None:
            run_elsewhere(executor, trace, job, left, saw_all)
        else:
            for group in left:
                alone = group.stop - group.start == run.chains
                job.run(trace, group, run if alone else None, watch, saw_one(group))
        if watch.enough and watch.enough < job.draws:
            bar.total = watch.enough
    return watch.enough


def _ended(trace: TraceStore, group: slice, draws: int) -> bool:
    progress = trace.progress(group)
    return progress.draws_done >= draws or len(progress.diverged) == group.stop - group.start


def _served(
    trace: TraceStore,
    fingerprint: dict[str, Any],
    run: Chains,
    until: float | None,
    draws: int,
) -> xr.Dataset | None:
    """What a store has of this call, if that is all of it.

    Raises:
        TraceMismatch: it holds the trace of another call, or a damaged one.
        DivergenceError: the run that is in it came to nothing.
    """
    trace.open()
    _check(trace, fingerprint, run)
    enough = Watch(until, draws, trace).enough
    if enough or all(_ended(trace, group, draws) for group in trace.groups):
        return _sound(trace, enough or draws, run.kernel.step_size)
    return None


def _sound(trace: TraceStore, draws: int, step_size: float) -> xr.Dataset:
    """A trace's first draws, with a warning about the chains that diverged on the way.

    Raises:
        DivergenceError: that is all of them.
    """
    ds = trace.dataset(draws)
    number = ds["chain"].values
    lost = {c: at for c, at in trace.diverged.items() if at["draws"] < draws}
    told = (
        f"at step {{step}} with step_size {step_size:g}: its loss or its weights are no longer "
        "finite; lower step_size"
    )
    if lost and len(lost) == ds.sizes["chain"]:
        chain = min(lost, key=lambda c: (lost[c]["step"], c))
        step = lost[chain]["step"]
        raise DivergenceError(
            f"chain {number[chain]} diverged {told.format(step=step)} (the {ds.sizes['draw']} "
            "draws before it are kept, marked incomplete)",
            int(number[chain]),
            step,
            ds.assign_attrs(complete=False),
        )
    for chain, at in lost.items():
        warnings.warn(
            f"chain {number[chain]} diverged {told.format(step=at['step'])}. Its {at['draws']} "
            "draws before are kept, and the other chains went on; estimators ask you to leave it "
            "out",
            UserWarning,
            stacklevel=3,
        )
    config = trace.attrs["config"] | {"draws": draws}
    steps = config["burn_in"] + draws * config["thin"]
    return ds.isel(draw=slice(draws), step=slice(steps)).assign_attrs(
        complete=True, config=config, draws_done=draws, steps_done=steps
    )


def _thinning(run: Chains, burn_in: int, progress: bool) -> schedule.Thinning:
    """What thin="auto" chooses: a rehearsal of the burn-in with a few samples watched.

    It always rehearses the first four chains of the whole, so that calls which share its chains
    out choose alike, and because one chain shows too little of what it will do.
    """
    posterior, kernel = run.posterior, run.kernel
    index = schedule.watched(len(run.observed))
    some = Samples(run.observed.batch(index), posterior.device, "observe")
    rehearsal = Chains(posterior, some, kernel, 4, run.seed, None, run.observe_dtype, first_chain=0)
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


def _check(trace: TraceStore, fingerprint: dict[str, Any], run: Chains) -> None:
    """Refuse an open store that holds the trace of another call (TraceMismatch)."""
    check_fingerprint(trace.attrs["fingerprint"], fingerprint, trace.path)
    index, losses = run.some_at_center()
    check_losses(
        trace.dataset().init_loss.values[index],
        losses,
        index,
        trace.attrs["device"] == str(run.posterior.device),
        trace.path,
    )


def _find(cache: Path, fingerprint: dict[str, Any], run: Chains) -> TraceStore:
    """This call's own store in a cache, or a free place for it."""
    named = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]
    for suffix in ("", *(f"-{k}" for k in range(2, 100))):
        trace = TraceStore(cache / f"{named}{suffix}.zarr")
        try:
            if trace.exists():
                trace.open()
                _check(trace, fingerprint, run)
            return trace
        except TraceMismatch:  # damaged, or a difference that only the losses at w* show
            continue
    raise TraceMismatch(f"cache {str(cache)!r} has 99 unusable stores {named}*; remove them")


def _versions() -> dict[str, str]:
    from probelib import __version__

    return {"probelib": __version__, "torch": torch.__version__, "numpy": np.__version__}


def _at_a_prompt() -> bool:
    """Whether somebody waits for a value: in a cell of IPython's, or at Python's own prompt.

    That a shell exists says nothing (widgets make one, which sets sys.ps1): it must run this call.
    """
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "IPython.core.interactiveshell":
            return True
        typed = frame.f_code.co_filename.startswith(("<stdin>", "<python-input"))
        if typed and hasattr(sys, "ps1"):  # without one it is a script that was piped in
            return True
        frame = frame.f_back
    return False


def _check_executor(executor: Any, store: Any, until: float | None) -> None:
    require_kind(
        "executor",
        executor,
        Executor,
        "a concurrent.futures.Executor (for a client of Dask, client.get_executor())",
    )
    if store is None:
        raise ValueError(
            "executor runs chains in processes that meet in a store; give store or cache as well"
        )
    if until is not None:
        raise ValueError(
            "until looks at all chains at once, but an executor runs each on its own; give draws"
        )


def _is_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike) and str(value) != ""


__all__ = ["SGLD", "DivergenceError", "sample"]
