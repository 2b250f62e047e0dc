"""What a trace holds by name, and what of its attributes a reader may rely on.

A trace is an xarray data set. :func:`probelib.sample` and :func:`probelib.open_trace` give one, and
so does whoever builds a data set with the variables below. Estimators and converters read it, and
its attributes, through this module alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, fields
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from probelib import joined, tokens
from probelib.arguments import shown

if TYPE_CHECKING:
    import xarray as xr

#: Which losses an estimate is of, where a trace has those of tokens and of samples.
Over = Literal["sample", "token"] | None

#: What is recorded of each step, before it: the minibatch loss (nats) and, of the estimated
#: gradient g of L that the step used, g'G g, g'G (w - w*) and g'G h, with h that of the step before
#: and G the sampler's metric, mostly 1.
STEP_VARIABLES = ("sampling_loss", "gradient_square", "gradient_along", "gradient_repeat")
#: What is recorded beside them of a sampler with an accept test: the probability of each proposal.
ACCEPTANCE: dict[str, tuple[str, ...]] = {"acceptance": ("chain", "step")}
#: Variables and their dimensions: l_i(w) at the draws, l_i(w*) (both nats), |w - w*| at the draws,
#: and what is recorded of each step.
VARIABLES: dict[str, tuple[str, ...]] = {
    "loss": ("chain", "draw", "sample"),
    "init_loss": ("sample",),
    "distance": ("chain", "draw"),
    **dict.fromkeys(STEP_VARIABLES, ("chain", "step")),
}
#: What a trace of losses per token has instead of ``loss`` and ``init_loss`` above: losses at each
#: position of a sample, NaN where it has none; and those of the samples, as the posterior has them,
#: by another name. The attribute ``token_shape`` is the shape of a sample's positions, of which
#: ``token`` is the flat number.
TOKEN_VARIABLES: dict[str, tuple[str, ...]] = {
    "loss": ("chain", "draw", "sample", "token"),
    "init_loss": ("sample", "token"),
    "sample_loss": ("chain", "draw", "sample"),
    "init_sample_loss": ("sample",),
}
#: What a trace of weighted draws has beside them: the log weight of each draw, its standard error
#: where L came from a subset of the data, and L(w) over the data (nats).
WEIGHT_VARIABLES: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("log_weight", "log_weight_error", "mean_loss"), ("chain", "draw")
)
#: Variables that not every trace has, and that count wherever one does.
OPTIONAL: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(STEP_VARIABLES, ("chain", "step")),
    **ACCEPTANCE,
    **WEIGHT_VARIABLES,
}
#: What :func:`probelib.gradient_pairs` gives. With ``by_layer=True`` kernel, products and cross
#: have the dimension ``layer`` as well, over which :func:`probelib.pair_kernel` sums.
PAIRS = {
    "kernel": ("chain", "sample", "other"),
    "loss": ("chain", "draw", "sample"),
    "init_loss": ("sample",),
    "products": ("chain", "sample", "other"),
    "cross": ("chain", "pair", "side", "sample"),
    "log_weight": ("chain", "draw"),
}
#: Coordinates and their dimensions. ``label`` exists where the observed data has labels, and
#: ``init_loss_mcse`` (nats) where the model draws at random, so that l_i(w*) has an error.
#: A scalar, ``run``, stands beside them: see :func:`probelib.joined.run_number`.
COORDINATES = {
    "chain": ("chain",),
    "sample_id": ("sample",),
    "label": ("sample",),
    "init_loss_mcse": ("sample",),
}
#: Those of a trace of losses per token, beside or instead: the position in the sample, and what the
#: target is there, where targets are whole numbers.
TOKEN_COORDINATES = {
    "token": ("token",),
    "token_id": ("sample", "token"),
    "init_loss_mcse": ("sample", "token"),
    "init_sample_loss_mcse": ("sample",),
}
#: Root attributes that a reader may use. Dicts are JSON text in what is read from netCDF; what
#: ``config`` does not say may stand beside it, as ``trace.attrs["n_beta"]``.
ATTRIBUTES = {
    "config": "the settings of the run, by the names of RunSettings",
    "seed": "of all chains",
    "diverged": "chain number (text) -> its last step and the draws before it",
    "complete": "whether all draws that were asked for are there",
    "draws_done": "draws that every chain has",
    "steps_done": "steps that every chain has made",
    "wall_time": "seconds of work, all chains together",
    "device": "where the chains ran",
    "preconditioned": "whether steps are longer for some weights than for others",
    "calibration": "of a run whose settings were found: the settings, and the evidence for each",
    "guessing_loss": "of the observed samples, nats, were the model's output always the same",
    "fingerprint": "of weights, data, code and settings",
    "versions": "of the packages that made the trace",
}


@dataclass(frozen=True)
class RunSettings:
    """The settings a trace was sampled with; None where it does not say.

    Attributes:
        n_beta, localization, beta: nb, gamma and beta of Eq. 1.
        n_samples: n, samples in the data that define L.
        n_parameters: weights that move.
        sampler: name of the sampler.
        step_size: epsilon of Eq. 7.
        order: of the sampler, see :attr:`probelib.Sampler.order`.
        noise_step, kick, localization_step: what a step amounts to, where that is not SGLD's: see
            :class:`probelib.samplers.base.Lengths`.
        batch_size: samples per step; None also for the full gradient.
        chains, draws, burn_in, thin: as given to :func:`probelib.sample`.
    """

    n_beta: float | None = None
    localization: float | None = None
    beta: float | None = None
    n_samples: int | None = None
    n_parameters: int | None = None
    sampler: str | None = None
    step_size: float | None = None
    order: int | None = None
    noise_step: float | None = None
    kick: float | None = None
    localization_step: float | None = None
    batch_size: int | None = None
    chains: int | None = None
    draws: int | None = None
    burn_in: int | None = None
    thin: int | None = None

    def lengths(self) -> tuple[float, float, float]:
        """``noise_step``, ``kick`` and ``localization_step``: SGLD's where they are not said."""
        eps = math.nan if self.step_size is None else self.step_size
        said = self.noise_step, self.kick, self.localization_step
        usual = eps, eps / 2, eps
        found = [u if s is None else s for s, u in zip(said, usual, strict=True)]
        return found[0], found[1], found[2]


def settings(trace: xr.Dataset, argument: str = "trace") -> RunSettings:
    """The settings of a trace's run.

    Args:
        trace: from :func:`probelib.sample`, :func:`probelib.open_trace` or elsewhere.
        argument: how an error calls the trace.

    Raises:
        ValueError: a setting is not of its kind, as text where a number belongs.
    """
    config = {**trace.attrs, **_mapping(trace, "config", argument)}
    known = {
        field.name: config[field.name] for field in fields(RunSettings) if field.name in config
    }
    if "sampler" not in known and "kernel" in config:  # its name in older traces
        known["sampler"] = config["kernel"]
    for name, value in known.items():
        kind = str if name == "sampler" else Real
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            what = "text" if kind is str else "a number"
            raise ValueError(
                f"{argument} has the {name} {shown(value)} in its attributes; it must be {what}"
            )
    return RunSettings(**known)


def _mapping(trace: xr.Dataset, name: str, argument: str) -> Mapping[str, Any]:
    """An attribute that is a dict, or JSON text where netCDF or Zarr gave it back."""
    value = attributes(trace).get(name)
    value = {} if value is None else value
    if not isinstance(value, Mapping):
        raise ValueError(
            f"{argument} has the {name} {shown(value)} in its attributes; give a dict"
            + (" of settings" if name == "config" else "")
        )
    return value


def fingerprint(trace: xr.Dataset, argument: str = "trace") -> Mapping[str, Any]:
    """What a trace says that it depends on, field by field; empty where it does not say.

    Raises:
        ValueError: the attribute is something else than a dict.
    """
    return _mapping(trace, "fingerprint", argument)


def required(trace: xr.Dataset, name: str, argument: str = "trace") -> Any:
    """One setting of a trace's run that cannot be done without.

    Args:
        trace: as for :func:`settings`.
        name: of a field of :class:`RunSettings`.
        argument: how an error calls the trace.

    Raises:
        ValueError: the trace does not say it.
    """
    value = getattr(settings(trace, argument), name)
    if value is None:
        raise ValueError(
            f"{argument} has no {name} in its attributes; where it was made elsewhere, add it: "
            f'{argument}.attrs["{name}"] = ...'
        )
    return value


def diverged(trace: xr.Dataset) -> dict[str, dict[str, int]]:
    """The chains of a trace that diverged before its last draw.

    Returns:
        Chain number, as text -> its last ``step`` and the ``draws`` before it.
    """
    return {
        chain: at
        for chain, at in _mapping(trace, "diverged", "trace").items()
        if int(chain) in trace["chain"].values and trace.sizes["draw"] > at["draws"]
    }


def canonical(
    trace: xr.Dataset,
    *needs: str,
    argument: str = "trace",
    variables: Mapping[str, tuple[str, ...]] = VARIABLES,
    over: Over = "sample",
) -> xr.Dataset:
    """What a reader needs of a trace, with the dimensions of the tables above, by name.

    However the trace was rearranged: transposed, stacked, cut to one chain or sample (a dimension
    of length one again), joined from parts. Every public reader of a trace begins here, so that
    none depends on the order of an array's axes. Values are read only where it cannot be helped.

    Args:
        trace: from :func:`probelib.sample`, :func:`probelib.open_trace` or elsewhere; it stays as
            it is.
        needs: variables that it must have. ``init_loss`` and :data:`OPTIONAL` come with them
            where it has them, and so do coordinates along one dimension.
        argument: how an error calls the trace.
        variables: the table that says their dimensions.
        over: of losses per token, "sample" reads those of the samples in their place; "token" the
            tokens', each as a sample; and None those, where there are any.

    Raises:
        TypeError: it is no data set.
        ValueError: a variable is missing, or has dimensions that cannot be understood; no samples,
            or no tokens.
    """
    import xarray as xr  # slow to import, so where it is used

    data = unstacked(trace, argument)
    if variables is VARIABLES:
        data = _one_axis(data, over, argument)
    table = {**variables, **OPTIONAL}
    for name in needs:
        if name not in data.data_vars:
            raise ValueError(
                f"{argument} has no variable {name}; give a data set with "
                f"{name} ({', '.join(table[name])}), such as probelib's own"
            )
    names = [*needs, *(n for n in ("init_loss", *OPTIONAL) if n in data and n not in needs)]
    arrays = {}
    for name in names:
        with suppress(ValueError) if _is_extra(name, needs) else nullcontext():
            arrays[name] = _in_order(data, name, table[name], argument)
    known = {dim for dims in table.values() for dim in dims}
    coords: dict[Any, Any] = {
        name: coord.variable
        for name, coord in data.coords.items()
        if len(coord.dims) == 1 and known.issuperset(coord.dims) and name not in arrays
    }
    for name, dims in COORDINATES.items():
        if name in data.coords:
            coords[name] = _in_order(data, name, dims, argument)
    joined.require_one_run(data, argument)
    ordered = xr.Dataset(arrays, coords=coords, attrs=attributes(data))
    if "chain" in ordered.dims and "chain" not in ordered.coords:
        ordered = ordered.assign_coords(chain=np.arange(ordered.sizes["chain"]))
    if ordered.sizes.get("sample") == 0:
        raise ValueError(f"{argument} has no samples; keep at least one")
    if "log_weight" in data and "distance" in data and "distance" in table:
        with suppress(ValueError):  # it tells draws apart whose losses are alike, as of 0 and 1
            distance = _in_order(data, "distance", table["distance"], argument)
            ordered = ordered.assign(distance=distance)
    joined.require_no_copies(ordered, argument)
    return ordered


def unstacked(trace: xr.Dataset, argument: str = "trace") -> xr.Dataset:
    """A trace with plain dimensions, none of ours stacked into another.

    Raises:
        TypeError, ValueError: as for :func:`canonical`.
    """
    return _reset(_unstacked(of_one_checkpoint(_data_set(trace, argument), argument), argument))


def has_tokens(data: xr.Dataset) -> bool:
    """Whether a trace has losses per token (perhaps of one position, or one sample, alone)."""
    if "loss" not in data:
        return False
    if "token" not in data["loss"].dims:
        return "token" in data.coords and data["token"].ndim == 0
    return "sample" in data["loss"].dims or _was_selected(data, "sample")


def _one_axis(data: xr.Dataset, over: Over, argument: str) -> xr.Dataset:
    """A trace whose losses lie along ``sample`` alone: those of its samples, or of its tokens."""
    if over not in ("sample", "token", None):
        raise ValueError(f"over is {shown(over)}; choose 'sample' or 'token'")
    if not has_tokens(data):
        if over == "token":
            raise ValueError(
                f"over is 'token', but {argument} has one loss per sample; give sample(...) an "
                "observe_loss, such as probelib.token_cross_entropy"
            )
        if over == "sample" and "sample_loss" in data:  # whatever became of the tokens'
            return _of_samples(data, argument)
        if {"loss", "sample_loss"} <= {*data.data_vars} and "token" not in data["loss"].dims:
            raise ValueError(
                f"{argument} has losses of tokens without the dimension token, which was renamed, "
                "averaged or summed; give all of it, and over='sample' for whole samples, or "
                "average the estimate: probelib.loss_gain(trace).mean('token')"
            )
        return data
    return _of_samples(data, argument) if over == "sample" else _of_tokens(data, argument)


def _of_samples(data: xr.Dataset, argument: str) -> xr.Dataset:
    """A trace of losses per token with those of its samples alone."""
    names = {"sample_loss": "loss", "init_sample_loss": "init_loss"}
    names |= {"init_sample_loss_mcse": "init_loss_mcse"}
    if "sample_loss" not in data:
        raise ValueError(
            f"{argument} has losses per token and no sample_loss, those of whole samples, which "
            "this estimate is of; keep that variable when you select others"
        )
    found = {new: data[old].variable for old, new in names.items() if old in data.variables}
    of_tokens = {*TOKEN_VARIABLES, *TOKEN_COORDINATES} & {*data.variables}
    coords = {name: found.pop(name) for name in COORDINATES if name in found}
    return data.drop_vars(of_tokens).assign(found).assign_coords(coords)


def _of_tokens(data: xr.Dataset, argument: str) -> xr.Dataset:
    """A trace of losses per token with each of these as a sample."""
    import xarray as xr  # slow to import, so where it is used

    places = places_of(data, argument)
    size = {"sample": places.samples, "token": places.positions}
    loss = _in_order(data, "loss", TOKEN_VARIABLES["loss"], argument)
    arrays: dict[Any, xr.Variable] = {"loss": tokens.flat(loss, places)}
    coords: dict[Any, xr.Variable] = {}
    known = {**COORDINATES, **TOKEN_COORDINATES, "init_loss": TOKEN_VARIABLES["init_loss"]}
    for name, array in data.variables.items():
        if name in ("loss", "sample_loss", "init_sample_loss", "init_sample_loss_mcse"):
            continue
        along, ours = {*array.dims} & {*size}, name in known and name != "chain"
        if along or ours:
            if not {*array.dims} <= {*size}:
                if not ours:  # somebody's own, of each draw
                    continue
                array = _in_order(data, str(name), known[str(name)], argument)
            values = array.set_dims(size).transpose("sample", "token").values
            array = xr.Variable(("sample",), values[places.there])
        (coords if name in data.coords else arrays)[name] = array
    return xr.Dataset(arrays, coords=coords, attrs=data.attrs)


def places_of(trace: xr.Dataset, argument: str = "trace") -> tokens.Places:
    """Which samples of a trace of losses per token have which positions.

    Raises:
        ValueError: none has any.
    """
    there = np.zeros((0, 0), bool)
    if "init_loss" in trace:
        there = ~np.isnan(_in_order(trace, "init_loss", ("sample", "token"), argument).values)
    if not there.any() or "fingerprint" not in trace.attrs:  # made elsewhere
        loss = _in_order(trace, "loss", TOKEN_VARIABLES["loss"], argument)
        seen = ~np.isnan(loss[:, :1].values).all((0, 1))
        if there.any() and (seen & ~there).any():
            sample, token = np.argwhere(seen & ~there)[0]
            raise ValueError(
                f"{argument} has no l_i(w*) of position {token} of sample {sample}, which has a "
                "loss; give init_loss for all that have one, or leave it out"
            )
        there = there if there.any() else seen
    if not there.any():
        raise ValueError(f"{argument} has no tokens with a loss; keep at least one")
    return tokens.Places(there)


def token_coordinates(trace: xr.Dataset) -> dict[str, Any]:
    """The coordinates of the samples and positions of a trace of losses per token, in memory."""
    known, found = {**COORDINATES, **TOKEN_COORDINATES}, {}
    for name, array in trace.coords.items():
        dims = known.get(str(name), array.dims)
        if dims and {*dims} <= {"sample", "token"}:
            ours = name in known
            found[str(name)] = (
                _in_order(trace, str(name), dims, "trace") if ours else array.variable
            )
    return found


#: A coordinate along ``checkpoint`` of what :func:`probelib.over_checkpoints` gives: the attributes
#: of each trace, as JSON.
CHECKPOINT_ATTRIBUTES = "checkpoint_attributes"


def of_one_checkpoint(data: xr.Dataset, argument: str = "trace") -> xr.Dataset:
    """One trace out of a series over checkpoints, with its own attributes; others as they are.

    Raises:
        ValueError: it holds several checkpoints, or was averaged over them.
    """
    one = f"read one at a time: {argument}.sel(checkpoint=...), or probelib.checkpoint_table"
    if "checkpoint" in data.dims:
        if data.sizes["checkpoint"] != 1:
            raise ValueError(f"{argument} holds {data.sizes['checkpoint']} checkpoints; {one}")
        data = data.isel(checkpoint=0)
    if CHECKPOINT_ATTRIBUTES in data.coords:
        if data[CHECKPOINT_ATTRIBUTES].ndim:
            raise ValueError(f"{argument} has checkpoints stacked with other dimensions; {one}")
        own = json.loads(str(data[CHECKPOINT_ATTRIBUTES].item()))
        data = data.drop_vars(["checkpoint", CHECKPOINT_ATTRIBUTES], errors="ignore")
        return data.drop_attrs(deep=False).assign_attrs(own)
    if "checkpoints" in data.attrs:
        raise ValueError(
            f"{argument} was made of several checkpoints, and no longer says of which; {one}"
        )
    return data


def attributes(trace: xr.Dataset | xr.DataTree) -> dict[str, Any]:
    """The attributes of a trace, with a dict where netCDF or Zarr gave its JSON text back."""
    found = dict(trace.attrs)
    for name, value in found.items():
        if isinstance(value, str) and value.startswith("{"):
            with suppress(ValueError):
                found[name] = json.loads(value)
    return found


def _is_extra(name: str, needs: tuple[str, ...]) -> bool:
    """Whether estimates are the same without a variable: of steps, which joined runs may mix."""
    return name in (*STEP_VARIABLES, *ACCEPTANCE) and name not in needs


def _data_set(trace: Any, argument: str) -> xr.Dataset:
    """A trace as a data set: it may be the root of a tree."""
    import xarray as xr  # slow to import, so where it is used

    if isinstance(trace, xr.DataTree):
        if not trace.data_vars:
            raise TypeError(
                f"{argument} is a DataTree whose root has no variables; give the data set of a "
                f'group: {argument}["..."].to_dataset()'
            )
        return trace.to_dataset()
    if not isinstance(trace, xr.Dataset):
        what = f"the array {trace.name}" if isinstance(trace, xr.DataArray) else shown(trace)
        raise TypeError(f"{argument} is {what}; give the whole xarray.Dataset of a trace")
    return trace


def _unstacked(data: xr.Dataset, argument: str) -> xr.Dataset:
    """Dimensions into which some of ours were stacked, taken apart again."""
    ours = ("chain", "draw", "sample", "token")
    for dim in map(str, data.dims):
        levels = [d for d in ours if d != dim and d in data.coords and data[d].dims == (dim,)]
        if len(levels) < 2:
            continue
        apart = data if _is_multi(data, dim) else data.set_index({dim: tuple(levels)})
        length, unique = data.sizes[dim], apart.indexes[dim].is_unique
        apart = apart.unstack(dim) if unique else apart
        if not unique or np.prod([apart.sizes[level] for level in levels]) != length:
            raise ValueError(
                f"{argument} was stacked along {dim}, where some of {', '.join(levels)} are "
                "missing or there twice; select before stacking"
            )
        data = apart
    return data


def _reset(data: xr.Dataset) -> xr.Dataset:
    """A data set whose dimensions have plain coordinates: levels are coordinates like others."""
    many = [dim for dim in data.dims if _is_multi(data, dim)]
    return data.reset_index(many) if many else data


def _is_multi(data: xr.Dataset, dim: Any) -> bool:
    return dim in data.indexes and data.indexes[dim].nlevels > 1


def _in_order(data: xr.Dataset, name: str, dims: tuple[str, ...], argument: str) -> xr.Variable:
    """A variable with exactly these dimensions, in this order."""
    found = data[name].variable
    extra = [str(dim) for dim in found.dims if dim not in dims]
    lost = [dim for dim in dims if dim not in found.dims and not _was_selected(data, dim)]
    where = f"{argument} has {name} along ({', '.join(map(str, found.dims))})"
    if lost and extra:
        remedy = "bring these back, as before they were stacked"
        if len(lost) == len(extra) == 1:
            renamed = f'{{"{extra[0]}": "{lost[0]}"}}'
            remedy = f"where that is only another name, {argument}.rename({renamed})"
        raise ValueError(f"{where} and not ({', '.join(dims)}); {remedy}")
    if lost:
        raise ValueError(
            f"{where}, without {lost[0]}; select with a list, which keeps the dimension: "
            f"{argument}.isel({lost[0]}=[0]) (an average over {lost[0]} cannot be read as a trace)"
        )
    for dim in extra:  # of what belongs to all of it, as after concat or stack
        one = found.isel({dim: slice(1)})
        if found.sizes[dim] != 1 and not _same(found.transpose(dim, ...), one.transpose(dim, ...)):
            raise ValueError(
                f"{where}, and it differs along {dim}; read each part on its own: "
                f"{argument}.isel({dim}=[0])"
            )
        found = found.isel({dim: 0})
    new = {dim: 1 for dim in dims if dim not in found.dims}
    found = found.set_dims(new | dict(found.sizes)) if new else found
    found = found if found.dims == dims else found.transpose(*dims)
    if name not in COORDINATES and found.dtype.kind not in "fiu":
        raise ValueError(f"{argument} has {name} of the type {found.dtype}; give real numbers")
    return found


def _was_selected(data: xr.Dataset, dim: str) -> bool:
    """Whether one place along a dimension was selected: its coordinate is still there."""
    names = [dim, *(name for name, dims in COORDINATES.items() if dims == (dim,))]
    return any(name in data.coords and data[name].ndim == 0 for name in names)


def _same(all_of_it: xr.Variable, first: xr.Variable) -> bool:
    one, every = first.values, all_of_it.values
    equal = (every == one) | ((every != every) & (one != one))  # NaN is NaN
    return every.size > 0 and bool(np.all(equal))


def log_weights(trace: xr.Dataset) -> np.ndarray | None:
    """The log weights of a trace's draws, shape (chain, draw), or None where it has none.

    Raises:
        ValueError: weights that are lost, not finite, or those of another n_beta than the trace's.
    """
    run, data = settings(trace), canonical(trace)
    if "log_weight" not in data:
        if run.sampler == "importance":
            raise ValueError(
                "trace has no log_weight, though its draws are weighted (sampler 'importance'); "
                "keep that variable when you select others"
            )
        return None
    found = data["log_weight"].values.astype(np.float64)
    if np.isnan(found).any() or not np.isfinite(found.max(initial=-np.inf)):
        raise ValueError(
            "trace has draws without a weight (log_weight is not finite); give each its own, and "
            "put no weighted draws together with draws of a chain"
        )
    if "mean_loss" in data and run.n_beta is not None:
        expected = -run.n_beta * data["mean_loss"].values.astype(np.float64)
        if not np.allclose(found, expected, rtol=1e-4, atol=1e-4):
            raise ValueError(
                f"trace has n_beta {run.n_beta:g} in its attributes, but weights of another; use "
                "probelib.reweight(trace, n_beta), which changes both"
            )
    return found


def draw_weights(trace: xr.Dataset) -> np.ndarray | None:
    """The weights of a trace's draws, shape (chain, draw), of sum 1; None where all count alike.

    They are of the draws that are there: any part of a trace has weights of sum 1.

    Raises:
        ValueError: as for :func:`log_weights`.
    """
    log_weight = log_weights(trace)
    if log_weight is None:
        return None
    weight = np.exp(log_weight - log_weight.max())
    return weight / weight.sum()


def init_mcse(trace: xr.Dataset) -> tuple[np.ndarray, float]:
    """Standard errors of l_i(w*), shape (sample,), and of their mean, nats; 0 but for chance.

    The latter is what the run kept in its attributes, for the samples that it observed; of others
    the most that it can be.
    """
    n = trace.sizes["sample"]
    if "init_loss_mcse" not in trace.coords:
        return np.zeros(n), 0.0
    error = trace["init_loss_mcse"].values.astype(np.float64)
    of_mean = trace.attrs.get("init_loss_mcse_of_mean", {})
    return error, float(of_mean["mcse"] if of_mean.get("samples") == n else error.mean())


def require_unweighted(trace: xr.Dataset, what: str) -> None:
    """Refuse a trace whose draws carry weights (ValueError), where ``what`` cannot heed them."""
    if log_weights(trace) is not None:
        raise ValueError(
            f"trace has weighted draws (log_weight), which {what} cannot weigh; give a trace of "
            "probelib.sample"
        )


def sample_coordinates(n: int, labels: np.ndarray | None = None) -> dict[str, Any]:
    """The coordinates along ``sample`` of n samples, and of their labels where there are any."""
    coords: dict[str, Any] = {"sample_id": ("sample", np.arange(n))}
    return coords if labels is None else coords | {"label": ("sample", labels)}


__all__ = [
    "ACCEPTANCE",
    "ATTRIBUTES",
    "CHECKPOINT_ATTRIBUTES",
    "COORDINATES",
    "OPTIONAL",
    "PAIRS",
    "STEP_VARIABLES",
    "TOKEN_COORDINATES",
    "TOKEN_VARIABLES",
    "VARIABLES",
    "WEIGHT_VARIABLES",
    "Over",
    "RunSettings",
    "attributes",
    "canonical",
    "diverged",
    "draw_weights",
    "fingerprint",
    "has_tokens",
    "init_mcse",
    "log_weights",
    "of_one_checkpoint",
    "places_of",
    "require_unweighted",
    "required",
    "sample_coordinates",
    "settings",
    "token_coordinates",
    "unstacked",
]
