"""Traces for devinterp 2, and its stores as traces.

ArviZ and pandas need no code of ours, since a trace is an xarray data set: the book's page on
traces elsewhere has a line for each.
"""

import os
import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import xarray as xr
import zarr
from numpy.typing import ArrayLike

from probelib.contract import (
    canonical,
    has_tokens,
    places_of,
    require_unweighted,
    required,
    settings,
    token_coordinates,
    unstacked,
)
from probelib.descriptions import described
from probelib.store import TraceMismatch
from probelib.store.paths import local_path
from probelib.trace import Trace

_DRAWS_AT_ONCE = 50


def to_devinterp(trace: xr.Dataset, path: str | os.PathLike, name: str = "observed") -> None:
    """Write a trace as a store that devinterp 2.0.1 reads.

    ``xarray.open_datatree(path, engine="zarr", consolidated=False)`` opens it there. The covariance
    of its ``compute_bif(..., correlation_method="sequence", compute_covariance=True)`` is that of
    :func:`probelib.loss_kernel`, and the LLC of its ``compute_llc`` that of
    :func:`probelib.local_learning_coefficient`: it averages what it takes for the minibatch losses
    of the steps, and is given the mean loss over the observed samples at the draws. A sample is a
    sequence with one loss; of a trace of losses per token it has all of them, and
    ``correlation_method="token"`` is their kernel. l_i(w*) goes with it only as its mean, for which
    devinterp has a place.

    Args:
        trace: from :func:`probelib.sample` or :func:`probelib.open_trace`.
        path: where nothing lies yet.
        name: of the observed samples there: ``loss_<name>``.

    Raises:
        FileExistsError: something lies at ``path``.
        ValueError: the trace has a loss that is not finite, weighted draws, no draws, samples of
            different numbers of tokens, or no setting of its run that devinterp keeps.
    """
    place = local_path("path", path)
    if place.exists():
        raise FileExistsError(f"path {str(path)!r} exists; choose another, or remove it")
    whole, trace = unstacked(trace), canonical(trace, "loss", "init_loss")
    require_unweighted(trace, "devinterp")
    each = _losses(whole)
    chains, draws, n, length = (each.sizes[dim] for dim in ("chain", "draw", "sample", "token"))
    if not chains or not draws:
        raise ValueError(f"trace has {chains} chains of {draws} draws; it needs one of each")
    batch = f"batch_{name}"
    sampler = _devinterp_settings(trace)
    aside = place.with_name(f".{place.name}.{os.getpid()}-{uuid4().hex[:8]}")
    try:
        root = zarr.create_group(aside, zarr_format=3)

        def array(key: str, sizes: dict[str, int], dtype: str = "float32") -> zarr.Array:
            shape = tuple(sizes.values())
            by_draw = {"chain": 1, "draw": min(draws, _DRAWS_AT_ONCE)} if "draw" in sizes else {}
            return root.create_array(
                key,
                shape=shape,
                chunks=tuple((sizes | by_draw).values()),
                dtype=dtype,
                dimension_names=list(sizes),
                fill_value=np.nan if dtype == "float32" else 0,
            )

        of_loss = {"chain": chains, "draw": draws, batch: n, "token_pos": length}
        losses = array(f"loss_{name}", of_loss)
        mean = np.empty((chains, draws))
        for first in range(0, draws, _DRAWS_AT_ONCE):
            part = slice(first, first + _DRAWS_AT_ONCE)
            loss = each[:, part].values
            if not np.isfinite(loss).all():
                chain = trace["chain"].values[np.argwhere(~np.isfinite(loss))[0, 0]]
                raise ValueError(
                    f"trace has a non-finite loss in chain {chain}; leave it out: "
                    f"trace.drop_sel(chain=[{chain}])"
                )
            losses[:, part] = loss.astype(np.float32)
            mean[:, part] = trace.loss[:, part].values.mean(-1, dtype=np.float64)
        sampling = {"chain": chains, "step": draws, "batch_sampling": 1, "token_pos": length}
        array("sampling_loss_micro", sampling)[:] = mean.astype(np.float32)[
            :, :, None, None
        ].repeat(length, -1)
        init = trace.init_loss.values.mean(dtype=np.float64)
        array("init_loss", {"chain": chains, "token_pos": length})[:] = init
        tokens = _input_ids(each)
        array(f"input_ids_{name}", {batch: n, "token": length + 1}, "int64")[:] = tokens
        root.attrs.update({"metadata": {"config": {"sampler": sampler}}, "completed": 1})
        os.rename(aside, place)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _losses(trace: xr.Dataset) -> xr.DataArray:
    """The losses of a trace as (chain, draw, sample, token), of one token where it has none."""
    if not has_tokens(trace):
        return canonical(trace, "loss").loss.expand_dims("token", -1)
    places, coords = places_of(trace), token_coordinates(trace)
    if not places.there.all():
        sample, token = np.argwhere(~places.there)[0]
        raise ValueError(
            f"trace has no loss at position {token} of sample {sample}, and devinterp takes "
            "samples of one length; keep the positions that all have: trace.isel(token=slice(...))"
        )
    one = canonical(trace, "loss", over="token").loss.variable
    shape = (*one.shape[:2], *places.there.shape)
    loss = one.values.reshape(shape)
    return xr.DataArray(loss, coords, ("chain", "draw", "sample", "token"))


def _input_ids(losses: xr.DataArray) -> np.ndarray:
    """Tokens (sample, token + 1) as devinterp keeps them: the first has no loss, and is unknown.

    Where they are not known, the number of the sample in their place.
    """
    n, length = losses.sizes["sample"], losses.sizes["token"]
    if "token_id" in losses.coords:
        return np.concatenate([np.full((n, 1), -1), losses.token_id.values], 1)
    number = losses.sample_id.values if "sample_id" in losses.coords else np.arange(n)
    return np.repeat(number[:, None], length + 1, 1)


def _devinterp_settings(trace: xr.Dataset) -> dict[str, Any]:
    """The settings of a trace's run, by devinterp's names."""
    run = settings(trace)
    return {
        "lr": required(trace, "step_size"),
        "n_beta": required(trace, "n_beta"),
        "localization": required(trace, "localization"),
        "batch_size": run.batch_size or required(trace, "n_samples"),
        "num_chains": trace.sizes["chain"],
        "num_draws": trace.sizes["draw"],
        "num_burnin_steps": required(trace, "burn_in"),
        "num_steps_bw_draws": required(trace, "thin"),
        "init_seed": trace.attrs.get("seed"),
    }


def from_devinterp(
    path: str | os.PathLike,
    name: str | None = None,
    init_loss: ArrayLike | None = None,
    *,
    tokens: bool = False,
) -> xr.Dataset:
    """A store that devinterp 2.0.1's ``sample()`` wrote, as a trace.

    The loss of a sample is its mean over positions, as devinterp's "sequence" has it; with
    ``tokens`` the trace has the losses of these as well. What it does
    not keep is NaN here: ``distance``, and ``init_loss`` unless you give it. The kernel needs
    neither; the gain and the LLC ask for ``init_loss``.

    Args:
        path: its ``output_path``.
        name: of the observed samples; may be left out if there is one set only.
        init_loss: l_i(w*), shape (sample,), nats; with ``tokens`` (sample, token).
        tokens: keep the losses per token.

    Returns:
        The data set described in :mod:`probelib.contract`, in memory.

    Raises:
        FileNotFoundError: nothing lies there.
        TraceMismatch: what lies there is no store of devinterp, or an unfinished one.
        ValueError: it has no samples of that name, several sets and no name was given, or
            ``init_loss`` of another length.
    """
    path = local_path("path", path)
    if not path.exists():
        raise FileNotFoundError(f"path {str(path)!r} does not exist; check it")
    ds, steps, attrs = _opened(path)
    names = [str(k).removeprefix("loss_") for k in ds.data_vars if str(k).startswith("loss_")]
    if name not in names and (name is not None or len(names) != 1):
        raise ValueError(f"name is {name!r}; choose one of {', '.join(map(repr, names))}")
    losses, coords = _read_losses(ds, name or names[0], init_loss, tokens)
    chains, draws = losses["loss"][1].shape[:2]
    attrs["config"] |= {"chains": chains, "draws": draws}
    return described(
        Trace(
            {
                **losses,
                "sampling_loss": (("chain", "step"), steps),
                "distance": (("chain", "draw"), np.full((chains, draws), np.nan, np.float32)),
            },
            coords=coords | {"chain": np.arange(chains)},
            attrs=attrs | {"draws_done": draws, "steps_done": steps.shape[1]},
        )
    )


def _opened(path: Path) -> tuple[xr.Dataset, np.ndarray, dict[str, Any]]:
    """A store of devinterp's, its losses of the steps (chain, step), and a trace's attributes."""
    try:
        ds = xr.open_zarr(path, consolidated=False, chunks=None)
        sampler = ds.attrs["metadata"]["config"]["sampler"]
        steps = ds["sampling_loss_micro"].mean(["batch_sampling", "token_pos"]).values
        config = {
            "n_beta": float(sampler["n_beta"]),
            "localization": float(sampler["localization"]),
            "sampler": "devinterp",
            "order": 1,
            "step_size": float(sampler["lr"]),
            "batch_size": sampler["batch_size"],
            "burn_in": int(sampler["num_burnin_steps"]),
            "thin": int(sampler["num_steps_bw_draws"]),
        }
        seed, finished = sampler["init_seed"], ds.attrs.get("completed") == 1
    except Exception as error:  # whatever else lies there
        raise TraceMismatch(
            f"path {str(path)!r} is not a store of devinterp 2 ({type(error).__name__}: {error})"
        ) from error
    if not finished:
        raise TraceMismatch(
            f"path {str(path)!r} is not finished: devinterp has not marked it completed; sample it "
            "again"
        )
    attrs = {"config": config, "seed": seed, "complete": True, "diverged": {}}
    return ds, steps.astype(np.float32), attrs


def _read_losses(
    ds: xr.Dataset, name: str, init_loss: ArrayLike | None, tokens: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Variables and coordinates of a trace's losses, per sample or (``tokens``) per token too."""
    each = ds[f"loss_{name}"].values.astype(np.float32)
    *_, n, length = each.shape
    shape = (n, length) if tokens else (n,)
    init = np.full(shape, np.nan) if init_loss is None else np.asarray(init_loss, np.float64)
    if init.shape != shape:
        per = "token" if tokens else "sample"
        raise ValueError(
            f"init_loss has shape {init.shape}; give one loss per {per}, shape {shape}"
        )
    coords: dict[str, Any] = {"sample_id": ("sample", np.arange(n))}
    mean = (("chain", "draw", "sample"), each.mean(-1))
    if not tokens:
        return {"loss": mean, "init_loss": (("sample",), init.astype(np.float32))}, coords
    coords["token"] = np.arange(length)
    ids = ds.get(f"input_ids_{name}")
    if ids is not None and ids.shape[-1] == length + 1:  # the first has no loss
        coords["token_id"] = (("sample", "token"), ids.values.reshape(n, -1)[:, 1:])
    return {
        "loss": (("chain", "draw", "sample", "token"), each),
        "init_loss": (("sample", "token"), init.astype(np.float32)),
        "sample_loss": mean,
        "init_sample_loss": (("sample",), init.mean(-1).astype(np.float32)),
    }, coords


__all__ = ["from_devinterp", "to_devinterp"]
