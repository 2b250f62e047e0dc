"""The same probe of every checkpoint of a training: one seed, one data set, many w*."""

from __future__ import annotations

import difflib
import inspect
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from probelib.arguments import require_kind, shown
from probelib.contract import CHECKPOINT_ATTRIBUTES
from probelib.copies import copy_of
from probelib.data import Data
from probelib.observed_sets import are_sets
from probelib.posterior import LocalPosterior, PerSampleLoss
from probelib.run import DivergenceError, sample
from probelib.samplers import Sampler
from probelib.store.paths import local_path

if TYPE_CHECKING:
    import xarray as xr


def over_checkpoints(
    models: Mapping[Any, Any] | Iterable[Any],
    per_sample_loss: PerSampleLoss,
    data: Data,
    *,
    n_beta: float,
    localization: float,
    sampler: Sampler,
    observe: Data | None = None,
    model: nn.Module | None = None,
    store: str | os.PathLike | None = None,
    **settings: Any,
) -> xr.Dataset:
    """Probe a series of models with the same minibatches and the same noise.

    Every checkpoint is a run of :func:`probelib.sample` with one seed, so that differences between
    two of them have paired errors: ``probelib.compare(series.sel(checkpoint=1000),
    series.sel(checkpoint=2000))``. With ``store`` or ``cache`` each is kept as it is done: the same
    call again, after an interruption or with more checkpoints, samples what is missing.

    Args:
        models: the checkpoints in order, each a model or a state dict: a dict of name -> it, a list
            (named 0, 1, ...), or an iterable of (name, it), of which one is held at a time. Names
            are numbers (steps, epochs) or text.
        per_sample_loss, data, n_beta, localization: as for :class:`probelib.LocalPosterior`.
        sampler, observe: as for :func:`probelib.sample`.
        model: into a copy of which state dicts are loaded; all of their names must fit.
        store: a directory; the trace of each checkpoint lies in it, as ``NAME.zarr``.
        settings: any other argument of :func:`probelib.sample` (``draws``, ``seed``, ``cache``,
            ...) or of :class:`probelib.LocalPosterior`.

    Returns:
        The traces side by side, in memory, along ``checkpoint``. ``series.sel(checkpoint=name)`` is
        a trace, with its own attributes when an estimator reads it; estimators refuse several at
        once, and :func:`probelib.checkpoint_table` maps over all.

    Raises:
        ValueError: no checkpoints, two of one name, state dicts without ``model`` or that do not
            fit it; ``thin="auto"`` or ``until``, which would choose for each checkpoint anew.
        TypeError: a checkpoint that is neither a model nor a state dict; an argument that there is
            not.
        DivergenceError: all chains of a checkpoint; a note names it.

    Warns:
        UserWarning: two checkpoints have the same weights.
    """
    for name, changed in (("thin", settings.get("thin") == "auto"), ("until", "until" in settings)):
        if changed:
            raise ValueError(
                f"{name} is {shown(settings[name])}, which chooses for each checkpoint anew; give "
                "draws and thin as numbers, the same for all"
            )
    if are_sets(observe):
        raise ValueError(
            "observe has several sets, which one series cannot hold; call once for each, which "
            "the same seed makes the same run"
        )
    run, posterior = _of_run_and_posterior(settings)
    traces: dict[Any, xr.Dataset] = {}
    files: set[str] = set()
    for name, at in _named(models):
        file = _file_name(name)
        if name in traces or file in files:
            raise ValueError(f"models has the name {shown(name)} twice; give each its own")
        files.add(file)
        place = None if store is None else local_path("store", store) / file
        try:
            traces[name] = sample(
                LocalPosterior(
                    _model_at(name, at, model), per_sample_loss, data,
                    n_beta=n_beta, localization=localization, **posterior,
                ),
                observe, sampler=sampler, store=place, **run,
            )  # fmt: skip
        except DivergenceError as error:
            error.add_note(f"at checkpoint {name!r}")
            raise
        if not traces[name].attrs["complete"]:  # interrupted at a prompt, with a warning
            raise KeyboardInterrupt(f"at checkpoint {name!r}; those before it are kept in store")
        _warn_of_the_same(traces, name)
    if not traces:
        raise ValueError("models is empty; give one checkpoint at least")
    return _side_by_side(traces)


def _of_run_and_posterior(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of :func:`probelib.sample`, and of the posterior (TypeError: of neither)."""
    own = {*inspect.signature(over_checkpoints).parameters, "posterior"}
    of_sample, of_posterior = (
        {*inspect.signature(function).parameters} - own for function in (sample, LocalPosterior)
    )
    for name in settings:
        if name not in of_sample | of_posterior:
            near = difflib.get_close_matches(name, {*of_sample, *of_posterior, *own}, 1)
            raise TypeError(
                f"over_checkpoints has no argument {name!r}, and neither have sample and "
                f"LocalPosterior; {f'is it {near[0]!r}?' if near else 'leave it out'}"
            )
    run = {name: value for name, value in settings.items() if name in of_sample}
    return run, {name: value for name, value in settings.items() if name in of_posterior}


def _named(models: Any) -> Iterator[tuple[Any, Any]]:
    """Checkpoints with their names."""
    if isinstance(models, nn.Module) or not isinstance(models, Mapping | Iterable):
        raise TypeError(f"models is {shown(models)}; give a list or a dict of models")
    if isinstance(models, Mapping):
        if any(isinstance(value, Tensor) for value in models.values()):
            raise TypeError("models is one state dict; give a list of them, or a dict by name")
        yield from models.items()
        return
    for number, item in enumerate(models):
        is_pair = isinstance(item, tuple) and len(item) == 2
        yield item if is_pair else (number, item)


def _model_at(name: Any, at: Any, model: nn.Module | None) -> nn.Module:
    if isinstance(at, nn.Module):
        return at
    if not isinstance(at, Mapping):
        raise TypeError(
            f"checkpoint {shown(name)} is {shown(at)}; give an nn.Module or a state dict"
        )
    if model is None:
        raise ValueError(
            f"checkpoint {shown(name)} is a state dict; give model=, into whose copy it is loaded"
        )
    require_kind("model", model, nn.Module, "an nn.Module")
    loaded = copy_of(model)
    try:
        loaded.load_state_dict(at)
    except RuntimeError as error:
        why = " ".join(str(error).split())
        raise ValueError(f"checkpoint {shown(name)} does not fit model: {why}") from error
    return loaded


def _warn_of_the_same(traces: Mapping[Any, xr.Dataset], name: Any) -> None:
    """Say that a checkpoint is one that was there before: mostly they share their tensors."""
    weights = {other: trace.attrs["fingerprint"]["weights"] for other, trace in traces.items()}
    for other in traces:
        if other != name and weights[other] == weights[name]:
            warnings.warn(
                f"checkpoints {other!r} and {name!r} have the same weights; where they should not, "
                "they share their tensors: keep copy.deepcopy(model.state_dict()) while you train",
                UserWarning,
                stacklevel=3,
            )
            return


def _file_name(name: Any) -> str:
    """Of a checkpoint's store (TypeError: a name that is no number and no text)."""
    if isinstance(name, bool) or not isinstance(name, str | int | float | np.integer | np.floating):
        raise TypeError(f"models has the name {shown(name)}; give numbers or text")
    if isinstance(name, str) and not re.fullmatch(r"[\w+=,-][\w+=,. -]*", name):
        raise ValueError(
            f"models has the name {shown(name)}; use letters, digits, spaces and -_.,+="
        )
    return f"{name}.zarr"


def _side_by_side(traces: Mapping[Any, xr.Dataset]) -> xr.Dataset:
    """Traces of one shape along ``checkpoint``."""
    from probelib.trace import Trace  # slow to import, so where it is used

    every = list(traces.values())
    first = every[0]
    if len({isinstance(name, str) for name in traces}) > 1:
        traces = {str(name): trace for name, trace in traces.items()}

    def stacked(name: Any) -> tuple[tuple[Any, ...], np.ndarray]:
        dims = ("checkpoint", *first[name].dims)
        return dims, np.stack([trace[name].values for trace in every])

    shared = {
        name: coord.variable
        for name, coord in first.coords.items()
        if name != "run" and all(np.array_equal(coord, trace[name]) for trace in every)
    }
    own = {name: stacked(name) for name in first.coords if name not in shared}
    attrs = [json.dumps(trace.attrs, default=_plain) for trace in every]
    return Trace(
        {name: stacked(name) for name in first.data_vars},
        coords={
            "checkpoint": list(traces),
            CHECKPOINT_ATTRIBUTES: ("checkpoint", np.array(attrs, dtype=object)),
            **shared,
            **own,
        },
        attrs={"checkpoints": len(every), "config": first.attrs["config"]},
    )


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"a trace has the attribute {shown(value)}, which JSON cannot hold")


__all__ = ["over_checkpoints"]
