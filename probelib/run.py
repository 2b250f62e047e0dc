"""A run: posterior, sampler and plan in, trace out.

How chains advance is in :mod:`probelib.chains`, how they are written down in
:mod:`probelib.record`, where they run in :mod:`probelib.workers`, and how often and how long to
observe in :mod:`probelib.schedule`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import asdict, replace
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from probelib._version import __version__
from probelib.calibration.kept import calibration_of
from probelib.chains import Chains, rehearse
from probelib.data import Data
from probelib.estimators.diagnostics import diagnostics
from probelib.guessing import guessing_losses
from probelib.observe import Observer
from probelib.observe_loss import ObserveLoss
from probelib.observed_sets import apart
from probelib.plan import Plan, Run
from probelib.posterior import LocalPosterior
from probelib.progress import progress_bar, report_run
from probelib.record import StoppingRule
from probelib.run_arguments import (
    check_executor,
    check_init_loss,
    check_place,
    warn_of_rounding,
)
from probelib.samplers import Sampler
from probelib.store import (
    DiskStore,
    MemoryStore,
    Sizes,
    Start,
    StoreBusy,
    TraceMismatch,
    TraceStore,
)
from probelib.store.matching import (
    check_fingerprint,
    check_losses,
    refuse_unseen,
    warn_of_unseen,
)
from probelib.store.paths import local_path
from probelib.workers import run_group, run_in_executor

if TYPE_CHECKING:
    import xarray as xr


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


def sample(
    posterior: LocalPosterior,
    observe: Data | Mapping[str, Data] | None = None,
    *,
    sampler: Sampler | None = None,
    observe_loss: ObserveLoss | None = None,
    chains: int = 4,
    draws: int | None = None,
    burn_in: int | None = None,
    thin: int | Literal["auto"] | None = None,
    until: float | None = None,
    seed: int = 0,
    store: str | os.PathLike | None = None,
    cache: str | os.PathLike | None = None,
    overwrite: bool = False,
    loss_dtype: str = "auto",
    observe_dtype: str = "float32",
    observe_batch_size: int | None = None,
    first_chain: int = 0,
    executor: Executor | None = None,
    chains_per_task: int = 1,
    progress: bool = True,
) -> xr.Dataset | Any:
    """Run chains from w* and record every observed sample's loss at every draw.

    Without a ``sampler``, :func:`probelib.calibrate` finds it, and with it the localization, draws,
    burn_in and thin that are not given; the trace's attribute ``calibration`` says what it chose
    and why. It is found again with the trace, in ``store`` or ``cache``.

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
        observe: the samples whose losses are recorded; default: those of the posterior. A dict
            of several sets, such as ``{"train": data, "test": held_out}``, gives a tree.
        sampler: how chains advance, such as ``probelib.SGLD(step_size=1e-3, batch_size=64)``. It
            is copied, never changed. Default: found by :func:`probelib.calibrate`.
        observe_loss: maps (output, target) to losses of shape (batch, positions...), in nats, NaN
            where there is none: what is recorded of each sample beside its loss, such as
            ``probelib.token_cross_entropy``. The posterior's own loss still defines L.
        chains: number C of independent chains, all starting at w*.
        draws: number T of draws kept per chain; with ``until`` at most so many. Default: 500 with a
            sampler, else as many as give the LLC a standard error of 1 %.
        burn_in: number b of steps before the first draw counts. Default: 0 with a sampler.
        thin: steps per draw. Default: 1 with a sampler. "auto" chooses them for the least time to a
            given standard error: it runs the burn-in first with up to 256 observed samples watched
            at every step, weighs how fast their losses decorrelate against what a step and an
            observation cost, and keeps what it found in the trace's attribute ``thinning``. See
            :func:`probelib.schedule.choose_thin`.
        until: stop as soon as the median Monte-Carlo standard error of the loss gain, over up to
            256 observed samples, is at most this (nats). It looks after 20 draws and then after
            every tenth more. Few draws of a heavy-tailed loss make their own error too small.
        seed: of the whole run.
        store: directory for the trace, on this machine; ``~`` is expanded, a URL refused. Without
            it and ``cache`` the trace stays in memory.
        cache: directory of many traces, instead of ``store``. Nothing in it is replaced.
        overwrite: replace the trace that ``store`` holds already.
        loss_dtype: "auto" is the precision in which the loss is computed: float64 where the model
            or the loss is, else float32. "float32" keeps seven digits of each loss, "float16" three
            and a half, and losses below 6e-8 become 0: what changes by less than the last digit
            does not change.
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
        The trace: see :mod:`probelib.contract`. ``loss`` has shape (chains, draws, n_observed);
        with ``observe_loss`` it has a dimension ``token`` more, and ``sample_loss`` is what it
        would be without. For several observed sets, an ``xarray.DataTree`` with a trace for each:
        ``trace["test"]`` goes where a trace goes, and estimators give a dict for the whole.

    Raises:
        ValueError, TypeError: a bad argument, named in the message; nothing has been written.
        TraceMismatch: ``store`` holds a trace of something else, or a damaged one.
        StoreBusy: another call is writing ``store``, or took it over; the message says whose.
        StoreError: the disk is full, or ``store`` is read-only or gone; earlier draws stay.
        DivergenceError: every chain's loss or weights became non-finite; earlier draws stay.
        OverflowError: a loss along the chain is too large for float16; earlier draws stay readable.
        CalibrationRefused: there is no sampler, and no settings would give numbers to be trusted.

    Warns:
        UserWarning: there is no sampler, and something speaks against the trace all the same.
    """
    plan = Plan(
        chains=chains,
        draws=500 if draws is None else draws,
        burn_in=0 if burn_in is None else burn_in,
        thin=1 if thin is None else thin,
        until=until,
        seed=seed,
        first_chain=first_chain,
        loss_dtype=loss_dtype,
        observe_dtype=observe_dtype,
        observe_batch_size=observe_batch_size,
    )
    check_place(store, cache, overwrite)
    check_executor(executor, chains_per_task, store if cache is None else cache, until)
    calibration = None
    if sampler is None:
        kept_in = None if overwrite else store
        settings, calibration = calibration_of(
            posterior, observe, chains=plan.chains, seed=plan.seed, store=kept_in, cache=cache
        )
        given = {"draws": draws, "burn_in": burn_in, "thin": thin}
        missing = [name for name, value in given.items() if value is None]
        plan = replace(plan, **{name: settings.settings[name] for name in missing})
        posterior, sampler = settings.posterior, settings.sampler
    run = Run.of(posterior, observe, sampler, plan, observe_loss)
    run = replace(run, calibration=calibration)
    fingerprint = run.fingerprint()
    place = _open(run, fingerprint, store, cache, overwrite)
    if (found := _finished(place, run.plan)) is not None:
        return _reported(found, place, cached=True)
    with place.held():
        if isinstance(place, DiskStore) and place.exists() and not overwrite:
            if not place.is_open or place.changed():  # much may have happened since
                place.open()
                _check_is_of(place, run, fingerprint)
                if (found := _finished(place, run.plan)) is not None:
                    return _reported(found, place, cached=True)
            run, chains_here = _continue(place, run), None
        else:
            warn_of_unseen(fingerprint, place.path)
            place.clean()
            together = run.plan.chains if executor is None else chains_per_task
            run, chains_here = _begin(place, run, fingerprint, together, progress)
        return _to_the_end(place, run, chains_here, executor, progress)


def rehearsed(run: Run) -> tuple[xr.Dataset, Chains]:
    """A short run in memory: its trace, and the chains where they stand at its end.

    Raises:
        DivergenceError: every chain became non-finite.
    """
    place = MemoryStore()
    run, chains = _begin(place, run, {}, run.plan.chains, progress=False)
    enough = _advance(place, run, chains, None, progress=False)
    _finish(place, run.config(), enough)
    return _trace(place, enough or run.plan.draws), chains


# --- before: what is there already ---


def _open(
    run: Run,
    fingerprint: dict[str, Any],
    store: str | os.PathLike | None,
    cache: str | os.PathLike | None,
    overwrite: bool,
) -> TraceStore:
    """The store of a call, opened and found to be this run's if something lies there."""
    if store is not None:
        place = DiskStore(store)
        if place.exists() and not overwrite:
            place.open()
            _check_is_of(place, run, fingerprint)
        return place
    if cache is None:
        return MemoryStore()
    named = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]
    for suffix in ("", *(f"-{k}" for k in range(2, 100))):
        place = DiskStore(local_path("cache", cache) / f"{named}{suffix}.zarr")
        if place.path.exists():
            refuse_unseen(fingerprint, place.path, "or remove it, or leave out cache")
        try:
            if place.exists():
                place.open()
                _check_is_of(place, run, fingerprint)
            return place
        except TraceMismatch:  # damaged, or a difference that only the losses at w* show
            continue
    raise TraceMismatch(f"cache {str(cache)!r} has 99 unusable stores {named}*; remove them")


def _check_is_of(place: DiskStore, run: Run, fingerprint: dict[str, Any]) -> None:
    """Refuse an open store that holds the trace of another call (TraceMismatch)."""
    check_fingerprint(place.attrs["fingerprint"], fingerprint, place.path)
    # The way that wrote it: bfloat16 rounds otherwise in another. But in train mode a loss depends
    # on its batch, so that a size that is asked for must be the one that was used.
    batch_size = run.plan.observe_batch_size or place.attrs["observe_batch_size"]
    observer = Observer(run, batch_size, together=place.attrs["observe_together"])
    observer.places = place.places
    index, losses = observer.some_at_center()
    same_device = place.attrs["device"] == str(run.posterior.device)
    check_losses(place.init_loss(index), losses, index, same_device, place.path)


def _finished(place: TraceStore, plan: Plan) -> xr.Dataset | None:
    """What an open store has of a call, if that is all of it.

    Raises:
        DivergenceError: the run that is in it came to nothing.
    """
    if not isinstance(place, DiskStore) or not place.is_open:
        return None
    enough = StoppingRule(plan.until, plan.draws, place).enough
    if enough or all(place.ended(group, plan.draws) for group in place.groups):
        _finish_late(place, plan, enough)
        place.clean_if_free()
        return _trace(place, enough or plan.draws)
    return None


def _finish_late(place: DiskStore, plan: Plan, enough: int | None) -> None:
    """Say of a store that it is complete, where its call was killed before it could."""
    config, draws = place.attrs["config"], enough or plan.draws
    if place.attrs["complete"] or config["draws"] != plan.draws or place.done()[0] != draws:
        return
    with suppress(StoreBusy, OSError), place.held():
        if not place.changed():
            _finish(place, config, enough)


# --- sampling ---


def _continue(place: DiskStore, run: Run) -> Run:
    """Make a store ready to go on to the draws of a run, whose thinning it has."""
    if run.plan.until is not None and len(place.groups) > 1:
        raise ValueError(
            f"until looks at all chains at once, but those of store {str(place.path)!r} were begun "
            "apart, by an executor; give draws"
        )
    plan = replace(run.plan, thin=place.attrs["config"]["thin"])
    if run.posterior.train_mode:  # where a loss depends on its batch
        plan = replace(plan, observe_batch_size=place.attrs["observe_batch_size"])
    run = replace(run, plan=plan)
    place.dismiss_workers()
    place.clean()
    draws = run.plan.draws
    for group in place.groups:
        if not place.ended(group, draws) and place.progress(group).checkpoint:
            place.checkpoint(group)  # before anything is changed
    if draws != place.attrs["config"]["draws"] or draws > place.sizes.draw:
        place.resize(draws, run.plan.steps, run.config())
    return run


def _begin(
    place: TraceStore, run: Run, fingerprint: dict[str, Any], together: int, progress: bool
) -> tuple[Run, Chains]:
    """Evaluate l_i(w*), choose the thinning, and lay the trace out; the chains are at w*."""
    run.check_labels()
    started = time.perf_counter()
    chains, plan = Chains(run), run.plan
    chains.stage()
    center = chains.observer.at_center()
    n, places = len(run.observed), chains.observer.places
    check_init_loss(center.loss, plan.loss_dtype, places)
    warn_of_rounding(center.loss[-n:], plan.loss_dtype, run.posterior.n_beta)
    thinning = rehearse(run, chains.inputs, chains.cost) if plan.thin == "auto" else None
    if thinning:
        if progress:
            tqdm.write(str(thinning))
        run = replace(run, plan=replace(plan, thin=thinning.thin))
    plan = run.plan
    groups = [min(together, plan.chains - first) for first in range(0, plan.chains, together)]
    start = Start(
        sizes=Sizes(
            plan.chains,
            plan.draws,
            plan.steps,
            n,
            None if places is None else places.positions,
            1 if chains.has_accept_test else None,
        ),
        init_loss=center.loss,
        init_loss_mcse=center.mcse,
        labels=run.observed.labels(),
        loss_dtype=plan.loss_dtype,
        first_chain=plan.first_chain,
        places=places,
        token_ids=chains.observer.token_ids(),
    )
    attrs = {
        "config": run.config(),
        "fingerprint": fingerprint,
        "seed": plan.seed,
        "device": str(run.posterior.device),
        "threads": torch.get_num_threads(),
        "versions": _versions(),
        "advance": "together" if chains.together else "one by one",
        "observe_dtype": plan.observe_dtype,
        "observe_batch_size": chains.observer.batch_size,
        "observe_together": chains.observer.together,
        "guessing_loss": guessing_losses(run),
        "preconditioned": chains.preconditioned,
        "wall_time": time.perf_counter() - started,
    }
    if run.calibration is not None:
        attrs["calibration"] = run.calibration
    if run.posterior.is_part:
        attrs["prefix"] = chains.prefix
    if center.mcse is not None:
        of_mean = {"samples": n, "mcse": center.mcse_of_mean}
        attrs["init_loss_mcse_of_mean"] = of_mean
    if run.sets is not None:
        attrs["observed_sets"] = {name: len(samples) for name, samples in run.sets.items()}
    if places is not None:
        attrs["token_shape"] = chains.observer.token_shape()
    place.create(start, groups, attrs | ({"thinning": asdict(thinning)} if thinning else {}))
    return run, chains


def _to_the_end(
    place: TraceStore, run: Run, chains: Chains | None, executor: Executor | None, progress: bool
) -> Any:
    """Sample what is missing; what an interruption leaves is returned where somebody waits."""
    plan = run.plan
    try:
        enough = _advance(place, run, chains, executor, progress)
    except KeyboardInterrupt:
        if not _at_a_prompt():
            raise
        so_far = place.dataset()
        warnings.warn(
            f"interrupted: this is the trace so far, {so_far.sizes['draw']} of {plan.draws} draws"
            + ("" if place.path is None else "; the same call again goes on from there"),
            UserWarning,
            stacklevel=3,
        )
        return apart(so_far)
    _finish(place, run.config(), enough)
    return _reported(_trace(place, enough or plan.draws), place, cached=False)


def _finish(place: TraceStore, config: dict[str, Any], enough: int | None) -> None:
    """Say of a store that it is complete, cut to the draws that were enough for ``until``."""
    if enough:
        config = config | {"draws": enough}
        place.resize(enough, config["burn_in"] + enough * config["thin"], config)
    place.finish(config)


def _advance(
    place: TraceStore, run: Run, chains: Chains | None, executor: Executor | None, progress: bool
) -> int | None:
    """Take all groups of chains to the end; the draws at which ``until`` was content, if it was."""
    draws = run.plan.draws
    stopping = StoppingRule(run.plan.until, draws, place)
    left = [group for group in place.groups if not place.ended(group, draws)]
    with _Bar(place, draws, progress) as bar:
        if executor is not None and isinstance(place, DiskStore):
            run_in_executor(executor, place, run, left, bar.on_progress)
        else:
            for group in left:
                own = chains if group.stop - group.start == run.plan.chains else None
                run_group(run, place, group, own, stopping=stopping, on_draw=bar.of_group(group))
        if stopping.enough and stopping.enough < draws:
            bar.total(stopping.enough)
    return stopping.enough


class _Bar:
    """A progress bar over the draws of all groups."""

    def __init__(self, place: TraceStore, draws: int, shown: bool):
        self._done = {g.start: min(place.progress(g).draws_done, draws) for g in place.groups}
        self._bar = progress_bar(
            total=draws * len(self._done),
            initial=sum(self._done.values()),
            unit="draw",
            disable=not shown,
            mininterval=0.5,
        )

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def total(self, draws: int) -> None:
        """Say that this is all there will be."""
        self._bar.total = draws

    def of_group(self, group: slice) -> Callable[[int, Tensor], None]:
        """Called at each draw of a group that runs here."""

        def on_draw(draws: int, losses: Tensor) -> None:
            if draws > self._done[group.start]:
                self._done[group.start] = draws
                if not self._bar.disable and self._bar.update():
                    self._bar.set_postfix(loss=f"{float(losses.nanmean()):.4g}", refresh=False)

        return on_draw

    def on_progress(self, draws: dict[int, int], loss: float | None) -> None:
        """Called from time to time for the groups that run elsewhere."""
        self._done |= {start: max(d, self._done[start]) for start, d in draws.items()}
        if loss is not None:
            self._bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
        self._bar.update(sum(self._done.values()) - self._bar.n)


# --- after ---


def _reported(trace: xr.Dataset, place: TraceStore, cached: bool) -> Any:
    """A finished trace, as the caller gets it, after a word on the logger about what it cost."""
    draws = trace.sizes["chain"] * trace.sizes["draw"]
    file = None if place.path is None else place.path / "zarr.json"
    report_run("trace", trace.attrs["wall_time"], cached=cached, draws=draws, file=file)
    out = apart(trace)
    if "calibration" in trace.attrs:  # nobody has looked at these settings
        _warn_of_doubts(out)
    return out


def _warn_of_doubts(trace: Any) -> None:
    """Say what speaks against a trace whose settings were found."""
    verdict = diagnostics(trace)
    for found in verdict.values() if isinstance(verdict, dict) else [verdict]:
        if not found.good:
            doubts = "; ".join(one.sentence for one in found.findings if not one.good)
            warnings.warn(
                "the settings that calibrate found gave a trace that is "
                f"{'wrong' if found.wrong else 'uncertain'}: {doubts}",
                UserWarning,
                stacklevel=4,
            )


def _trace(place: TraceStore, draws: int) -> xr.Dataset:
    """A trace's first draws, with a warning about the chains that diverged on the way.

    Raises:
        DivergenceError: that is all of them.
    """
    ds = place.dataset(draws)
    number, config = ds["chain"].values, place.attrs["config"] | {"draws": draws}
    lost = {c: at for c, at in place.diverged.items() if at["draws"] < draws}
    step_size = config.get("step_size")
    where = (
        "at step {step}"
        + (f" with step_size {step_size:g}" if isinstance(step_size, int | float) else "")
        + ": its loss or its weights are no longer finite; lower step_size"
    )
    if lost and len(lost) == ds.sizes["chain"]:
        chain = min(lost, key=lambda c: (lost[c]["step"], c))
        step = lost[chain]["step"]
        raise DivergenceError(
            f"chain {number[chain]} diverged {where.format(step=step)} (the {ds.sizes['draw']} "
            "draws before it are kept, marked incomplete)",
            int(number[chain]),
            step,
            apart(ds.assign_attrs(complete=False)),
        )
    for chain, at in lost.items():
        warnings.warn(
            f"chain {number[chain]} diverged {where.format(step=at['step'])}. Its {at['draws']} "
            "draws before are kept, and the other chains went on; estimators ask you to leave it "
            "out",
            UserWarning,
            stacklevel=4,
        )
    if ds.sizes["draw"] < draws:
        raise TraceMismatch(
            f"store {str(place.path)!r} has {ds.sizes['draw']} of {draws} draws, though its chains "
            "had ended; make the same call again"
        )
    steps = config["burn_in"] + draws * config["thin"]
    return ds.isel(draw=slice(draws), step=slice(steps)).assign_attrs(
        complete=True, config=config, draws_done=draws, steps_done=steps
    )


def _versions() -> dict[str, str]:
    return {"probelib": __version__, "torch": torch.__version__, "numpy": np.__version__}


def _at_a_prompt() -> bool:
    """Whether somebody waits for a value: in a cell of IPython's, or at Python's own prompt.

    That a shell exists says nothing (widgets make one, which sets sys.ps1): it must run this call.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "IPython.core.interactiveshell":
            return True
        typed = frame.f_code.co_filename.startswith(("<stdin>", "<python-input"))
        if typed and hasattr(sys, "ps1"):  # without one it is a script that was piped in
            return True
        frame = frame.f_back
    return False


__all__ = ["DivergenceError", "rehearsed", "sample"]
