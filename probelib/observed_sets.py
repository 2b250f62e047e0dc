"""Several observed sets in one run: joined for the chains, and apart again in what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch

from probelib.arguments import shown
from probelib.batches import named_leaves, tree_leaves, tree_like
from probelib.data import Data, Samples
from probelib.posterior import LocalPosterior
from probelib.reading import is_array

if TYPE_CHECKING:
    import xarray as xr


def are_sets(observe: Any) -> bool:
    """Whether data are several sets by name, and not one mapping of tensors."""
    if not isinstance(observe, Mapping) or not observe or {"labels", "label"} & {*observe}:
        return False
    return all(isinstance(k, str) and not is_array(v) for k, v in observe.items())


def read_observed(
    posterior: LocalPosterior, observe: Data | Mapping[str, Data] | None
) -> tuple[Samples, dict[str, Samples] | None]:
    """The samples to observe, checked, and the sets that were joined in them, if it is several.

    Raises:
        ValueError, TypeError: they do not fit the posterior, or each other.
    """
    if observe is None:
        return posterior.data, None
    if are_sets(observe):
        sets = read_sets(cast(Mapping[str, Data], observe), posterior.device)
        for samples in sets.values():
            posterior.check(samples)
        return joined(sets, posterior.device), sets
    observed = Samples(cast(Data, observe), posterior.device, "observe")
    posterior.check(observed)
    return observed, None


def read_sets(observe: Mapping[str, Data], device: torch.device) -> dict[str, Samples]:
    """Each set, read whole.

    Raises:
        ValueError: a set is named or made so that it cannot stand beside the others.
    """
    found: dict[str, Samples] = {}
    for name, data in sorted(observe.items()):  # in whatever order they are given
        if not name or "/" in name or name.startswith("."):
            raise ValueError(
                f"observe has a set named {shown(name)}; give it a name without '/' and '.'"
            )
        found[name] = Samples(data, device, f"observe[{name!r}]").staged(2**62)
    (first, one), *others = found.items()
    for name, other in others:
        if _form(one) != _form(other):
            raise ValueError(
                f"observe[{name!r}] has samples of {_form(other)} and observe[{first!r}] of "
                f"{_form(one)}; give all sets samples of one form, or observe them in two runs of "
                "one seed"
            )
    return found


def joined(sets: Mapping[str, Samples], device: torch.device) -> Samples:
    """All sets as one, set after set."""
    every = [s.batch(slice(0, len(s))) for s in sets.values()]
    leaves = [torch.cat(same) for same in zip(*map(tree_leaves, every), strict=True)]
    return Samples(tree_like(every[0], leaves), device, "observe", copied=True)


def apart(trace: xr.Dataset) -> Any:
    """A trace that observes several sets as a tree of one trace for each; another as it is."""
    sizes = trace.attrs.get("observed_sets")
    if not sizes:
        return trace
    from probelib.trace import TraceTree  # slow to import, so where it is used

    found, start = {}, 0
    for name, size in sizes.items():
        part = trace.isel(sample=slice(start, start + size))
        part = part.assign_coords(sample_id=("sample", part.sample_id.values - start))
        attrs = {k: v for k, v in trace.attrs.items() if k != "observed_sets"}
        of = attrs["fingerprint"]
        attrs["fingerprint"] = of | {"observed_data": of["observed_data"][name]}
        if "guessing_loss" in attrs:
            attrs["guessing_loss"] = (attrs["guessing_loss"] or {}).get(name)
        found[name] = part.assign_attrs(attrs | {"observed_set": name})
        found[name].attrs.pop("observed_sets")
        start += size
    tree = TraceTree.from_dict(found)
    tree.attrs = dict(trace.attrs)
    return tree


def _form(samples: Samples) -> str:
    """Containers, types and shapes of a sample."""
    batch = samples.batch(slice(0, 1))
    return ", ".join(f"{name} {t.dtype} {tuple(t.shape[1:])}" for name, t in named_leaves(batch))


__all__ = ["apart", "are_sets", "joined", "read_observed", "read_sets"]
