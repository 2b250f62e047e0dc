"""What comes before the first weight that moves, computed once for all steps of the chains.

Where only the last block of a network moves, the activations in front of it are the same at every
step. A model whose forward torch.fx can write down as a plain list of operations is cut in front of
the first that reads a moving weight, if one tensor alone, samples first, goes across the cut. The
second half keeps its operations and their order, so that its numbers are those of the whole; the
activations are computed in other batches than a step's, so that they may differ in the last digit.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from probelib import schedule
from probelib.batches import tree_map
from probelib.data import Samples
from probelib.plan import Run
from probelib.posterior import LocalPosterior
from probelib.randomness import ONE_THREAD, keep_host_random_state, keep_random_state, no_draws

# Bytes that the activations of all samples may take.
_MOST = 2**31
# The share of a pass that has to be saved, for two halves to be worth their while.
_LEAST = 0.2
_LOOKED_AT = 8  # samples on which halves and whole are compared


class Whole(Exception):
    """Why a model is run as a whole."""


class Prefix:
    """The first half of a model, and the posterior that goes on from what it gives.

    Args:
        run: of whose posterior only a part moves.
        posterior: the run's, apart from others.
        data: its samples, as tensors where they fit.
        observed: likewise.

    Raises:
        Whole: the model has no first half, or it is not certain that it is one.
    """

    def __init__(self, run: Run, posterior: LocalPosterior, data: Samples, observed: Samples):
        if posterior.train_mode or posterior.leaves_traces:
            raise Whole("its forward depends on more than weights and inputs")
        if run.plan.observe_dtype != "float32":
            raise Whole("it is observed in another precision than it is stepped in")
        if not (data.in_memory and observed.in_memory):
            raise Whole("its samples are read at every step")
        if posterior.called_by_hand:
            raise Whole("forward= says how it is called")
        x, _ = data.batch(np.arange(1))
        if not isinstance(x, Tensor):
            raise Whole("its input is more than one tensor")
        self._whole = posterior
        self._first, second = _halves(posterior)
        #: The posterior of the second half, by the same flat weights.
        self.posterior: LocalPosterior = _behind(posterior, second)
        self._require_sound(data)
        self._require_worth(data)
        self._require_room(data, observed)

    def of(self, samples: Samples, batch_size: int) -> Samples:
        """The samples with what the first half makes of their inputs in place of these.

        Args:
            samples: as tensors.
            batch_size: how many to run at a time.
        """
        one, n = self._before(samples.batch(np.arange(1))[0]), len(samples)
        out = one.new_empty((n, *one.shape[1:]))
        for start in range(0, n, batch_size):
            part = slice(start, min(start + batch_size, n))
            out[part] = self._before(samples.batch(part)[0])
        targets = tree_map(Tensor.clone, samples.batch(slice(0, n))[1])
        found = Samples((out, targets), samples.device, samples.name, copied=True)
        self._require_same_losses(samples, found, batch_size)
        return found

    @torch.no_grad()
    def _before(self, x: Tensor) -> Tensor:
        return self._first(self._whole.in_own_type(x.clone()))

    # --- what has to hold ---

    def _require_sound(self, data: Samples) -> None:
        """Compare with the whole, at w* and at weights away from it, losses and gradients."""
        some = data.differing(_LOOKED_AT)
        if len(some) < 2:
            raise Whole("one sample does not show which dimension counts the samples")
        center = self._whole.center
        noise = torch.randn(center.shape, generator=torch.Generator().manual_seed(1))
        away = [center + noise.to(center) * s * (0.1 + center.abs()) for s in (0.1, 1.0)]
        for size in {1, len(some) // 2, len(some)}:
            x, y = data.batch(some[:size])
            with no_draws(center.device, "prefix"):
                h = self._before(x)
            if h.ndim == 0 or len(h) != size:
                raise Whole("what goes across the cut has no samples first")
            for weights in (center, *away):
                for one, other in zip(
                    _answers(self.posterior, weights, h, y),
                    _answers(self._whole, weights, x, y),
                    strict=True,
                ):
                    if not _close(one, other):
                        raise Whole("its halves are not the whole")
        x, _ = data.batch(some)
        h = self._before(x)
        alone = torch.cat([self._before(x[i : i + 1]) for i in range(len(some))])
        if not (_close(self._before(x.flip(0)).flip(0), h) and _close(alone, h)):
            raise Whole("what goes across the cut mixes samples")

    @torch.no_grad()
    def _require_same_losses(self, inputs: Samples, found: Samples, batch_size: int) -> None:
        """Compare the losses of all samples with those of the whole, at w* and where chains go."""
        center = self._whole.center
        noise = torch.randn(center.shape, generator=torch.Generator().manual_seed(2))
        for weights in (center, center + noise.to(center) / self._whole.localization**0.5):
            batches = zip(inputs.batches(batch_size), found.batches(batch_size), strict=True)
            for (x, y), (h, _) in batches:
                if not _close(
                    self.posterior.losses(weights, h, y), self._whole.losses(weights, x, y)
                ):
                    raise Whole("its halves are not the whole for every sample")

    def _require_worth(self, data: Samples) -> None:
        x, y = data.batch(np.arange(min(4, len(data))))
        center = self._whole.center

        def flops(of: LocalPosterior, inputs: Tensor) -> float:
            return schedule.cost_of_pass(lambda a, b: of.losses(center, a, b), inputs, y).flops

        whole, rest = flops(self._whole, x), flops(self.posterior, self._before(x))
        #: The share of a pass that is computed once.
        self.share: float = 1 - rest / whole if whole > 0 else 0.0
        if not self.share >= _LEAST:
            raise Whole("little is computed in front of the weights that move")

    def _require_room(self, data: Samples, observed: Samples) -> None:
        one = self._before(data.batch(np.arange(1))[0])
        samples = len(data) + (0 if observed is data else len(observed))
        if one.nbytes * samples > _MOST:
            raise Whole(f"what goes across the cut takes more than {_MOST / 2**30:.0f} GiB")


@dataclass(frozen=True)
class Cut:
    """A run from where its weights begin to move.

    Attributes:
        posterior: of the second half, by the same flat weights.
        data, observed: activations in place of inputs.
        words: what was chosen, or why nothing was.
    """

    posterior: LocalPosterior
    data: Samples
    observed: Samples
    words: str


def cut(run: Run, posterior: LocalPosterior, data: Samples, observed: Samples, size: int) -> Cut:
    """A run cut in front of the weights that move; or as it is, with the reason.

    Args:
        run: as it was planned.
        posterior: of its own, with a part that moves.
        data: its samples, as tensors where they fit.
        observed: likewise.
        size: samples at a time.
    """
    try:
        with keep_random_state(posterior.device), keep_host_random_state():
            found = Prefix(run, posterior, data, observed)
            first = found.of(data, size)
            second = first if observed is data else found.of(observed, size)
    except Whole as why:
        return Cut(posterior, data, observed, f"none: {why}")
    except Exception as error:  # whatever torch.fx cannot write down runs as it is
        what = f"none: the model cannot be cut ({type(error).__name__})"
        return Cut(posterior, data, observed, what)
    words = f"{found.share:.0%} of a pass is computed once"
    return Cut(found.posterior, first, second, words)


# --- the cut ---


class _Model(nn.Module):
    """A model as torch.fx takes it: with one input, however many its forward may have."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class _Proxy(fx.Proxy):
    """What stands for a tensor says that it is one: a model may ask before it looks inside.

    To look inside is an error then, as it is where nobody asks; else what a model does with some
    samples only would be missed.
    """

    _is_param = False

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return Tensor


class _Tracer(fx.Tracer):
    """torch.fx takes over the modules of all threads: those of others run as they are."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_arg(self, a: Any) -> Any:
        return a.node if type(a) is _Proxy else super().create_arg(a)

    def call_module(self, m: Any, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def _halves(posterior: LocalPosterior) -> tuple[fx.GraphModule, fx.GraphModule]:
    """A model, cut in front of the first operation that reads a weight that moves.

    By the order of operations, so that what is written in place is seen as in the whole.
    """
    root = _Model(posterior.model)
    held = _tensors_held(root)
    with ONE_THREAD:
        graph = _Tracer().trace(root)
    if _tensors_held(root) != held:  # computed while it was written down, perhaps of weights
        raise Whole("it computes with tensors that no operation of it makes")
    every = dict(posterior.model.named_parameters())
    moving = {id(every[name]) for name in posterior.parameters}
    nodes = list(graph.nodes)
    at = next((i for i, node in enumerate(nodes) if _reads(root, node, moving)), 0)
    before, after = nodes[:at], nodes[at:]
    constants = [node for node in before if node.op == "get_attr"]
    across = [n for n in before if n.op != "get_attr" and any(u in after for u in n.users)]
    if len(across) != 1 or across[0].op == "placeholder":
        raise Whole("more or less than one tensor goes across the cut")
    first, second = fx.Graph(), fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    for node in before:
        made[node] = first.node_copy(node, lambda n: made[n])
    first.output(made[across[0]])
    made = {across[0]: second.placeholder("h")}
    for node in (*constants, *after):
        made[node] = second.node_copy(node, lambda n: made[n])
    return fx.GraphModule(root, first), fx.GraphModule(root, second)


def _reads(root: nn.Module, node: fx.Node, moving: set[int]) -> bool:
    """Whether an operation reads, or a module holds, a weight that moves."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        return any(id(p) in moving for p in module.parameters())
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        return id(getattr(root.get_submodule(owner), name)) in moving
    return False


def _tensors_held(root: nn.Module) -> set[tuple[str, int]]:
    """Every tensor that a module holds, as anything."""
    return {
        (f"{at}.{name}", id(value))
        for at, module in root.named_modules()
        for held in (vars(module), module._buffers, module._parameters)
        for name, value in held.items()
        if isinstance(value, Tensor)
    }


def _behind(posterior: LocalPosterior, second: fx.GraphModule) -> LocalPosterior:
    """The posterior whose model is the second half, which takes activations for inputs."""
    here = {
        name
        for names in (
            second.named_parameters(remove_duplicate=False),
            second.named_buffers(remove_duplicate=False),
        )
        for name, _ in names
    }
    places = {
        name: [f"model.{place}" for place in at if f"model.{place}" in here]
        for name, at in posterior._places.items()
    }
    behind = copy.copy(posterior)
    behind.model, behind._places = second, places
    behind._constants = {k: t for k, t in posterior._constants.items() if places[k]}
    behind._writes = True  # into what goes across, which every step sees again
    return behind


def _answers(posterior: LocalPosterior, weights: Tensor, x: Tensor, y: Tensor) -> list[Tensor]:
    """Losses, and the gradient of their sum."""
    moving = weights.clone().requires_grad_()
    with torch.enable_grad():
        losses = posterior.losses(moving, x, y)
        (slope,) = torch.autograd.grad(losses.sum(), moving)
    return [losses.detach(), slope]


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether they differ by rounding at most."""
    if a.shape != b.shape or a.dtype != b.dtype or not bool((a.isfinite() & b.isfinite()).all()):
        return False
    eps = 1e3 * torch.finfo(a.dtype).eps if a.is_floating_point() else 0.0
    scale = float(b.abs().max()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=eps, atol=eps * scale)


__all__ = ["Cut", "Prefix", "Whole", "cut"]
