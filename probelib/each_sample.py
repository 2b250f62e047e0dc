"""Derivatives of single samples' losses, all at once where torch.func can, else one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, jacrev, vmap
from torch.utils._pytree import tree_map

from probelib.batches import Tree, count, rows, tree_leaves, tree_like
from probelib.randomness import keep_host_random_state, keep_random_state, no_draws

if TYPE_CHECKING:
    from probelib.posterior import LocalPosterior


def each_sample(
    posterior: LocalPosterior, function: Callable[..., Any], weights: Tensor, x: Tree, y: Tree
) -> Any:
    """``function(weights, x_i, y_i)`` of all samples of a batch, stacked.

    Args:
        posterior: whose losses the function takes.
        function: built with torch.func, of single samples; its result is a tensor, or several.
        weights: flat, shape (n_parameters,).
        x, y: inputs and targets, shape (batch, ...).

    Raises:
        ValueError: the model needs its batch, or draws at random.
    """
    with keep_host_random_state(), keep_random_state(posterior.device):
        try:
            # Leaf by leaf: vmap does not look into every container.
            of_leaves = lambda w, *one: function(w, *tree_like((x, y), one))  # noqa: E731
            leaves = tree_leaves((x, y))
            together = vmap(of_leaves, in_dims=(None, *[0] * len(leaves)))(weights, *leaves)
        except Exception as error:  # what vmap cannot do may well be done one by one
            return _one_by_one(posterior, function, weights, x, y, error)
        first = _one_by_one(posterior, function, weights, *rows((x, y), slice(1)))
        if not all(map(_agree, _leaves(together), _leaves(first))):
            return _one_by_one(posterior, function, weights, x, y)
    return together


def single(posterior: LocalPosterior) -> Callable[[Tensor, Tree, Tree], Tensor]:
    """The loss of one sample as a function of (weights, x, y)."""

    def loss(weights: Tensor, x: Tree, y: Tree) -> Tensor:
        return posterior.losses(weights, *rows((x, y), None))[0]

    return loss


def gradient_and_value(function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Of a scalar function in its first argument; by plain autograd where torch.func cannot."""

    def at(w: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        try:
            return grad_and_value(function)(w, *rest)
        except RuntimeError:
            moving = w.detach().requires_grad_()
            with torch.enable_grad():
                value = function(moving, *rest)
                return torch.autograd.grad(value, moving)[0], value.detach()

    return at


def curvature(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The Hessian of a scalar function in its first argument, in the same way."""

    def at(w: Tensor, *rest: Tensor) -> Tensor:
        try:
            return jacrev(grad(function))(w, *rest)
        except RuntimeError:
            with torch.enable_grad():
                found = torch.autograd.functional.hessian(lambda v: function(v, *rest), w)
            return cast(Tensor, found)

    return at


def _one_by_one(
    posterior: LocalPosterior,
    function: Callable[..., Any],
    weights: Tensor,
    x: Tree,
    y: Tree,
    why: Exception | None = None,
) -> Any:
    if why is not None and posterior.train_mode:
        raise ValueError(
            "posterior is in train mode, where a loss may depend on its batch and on chance; "
            f"gradients of single samples need train_mode=False ({why})"
        ) from why
    with no_draws(posterior.device, "derivative of a sample"):
        samples = (rows((x, y), i) for i in range(count(x)))
        found = [function(weights, *sample) for sample in samples]
    return tree_map(lambda *parts: torch.stack(parts), *found)


def _leaves(found: Any) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


def _agree(together: Tensor, first: Tensor) -> bool:
    atol = 1e-5 * float(first.abs().nan_to_num().max()) if first.numel() else 0.0
    return torch.allclose(together[:1], first, rtol=1e-3, atol=atol, equal_nan=True)


__all__ = ["curvature", "each_sample", "gradient_and_value", "single"]
