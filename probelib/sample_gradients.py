"""Gradients of single samples, all in one backward pass where the layers allow it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from probelib.batches import Tree
from probelib.data import Samples
from probelib.each_sample import each_sample, gradient_and_value, single
from probelib.posterior import LocalPosterior
from probelib.randomness import keep_random_state

_MEMORY = 4 * 2**30  # bytes that the gradients of one side of a pair may take on a CPU
_EXACT = nn.Linear, nn.Conv2d, nn.BatchNorm2d
_LOOKED_AT, _CHECKED = 64, 4  # samples whose losses are looked at, and whose gradients are compared


class SampleGradients:
    """Gradients of single samples, as rows of a matrix, at any weights.

    For convolutions, linear layers and batch normalisation in eval mode, one backward pass over
    the batch gives the gradients of all samples: outer products of a layer's inputs and of the
    gradients with respect to its outputs (Goodfellow, 2015). It is taken for these classes
    without hooks, and only where it gives the gradients that autograd gives, of samples that have
    one. A subclass may do anything, so that what it returns, and how that depends on its weights,
    is compared with what its class would do, for every batch. Any other model, and a batch for
    which they differ, is differentiated sample by sample with ``torch.func``, which takes about ten
    times as long and is not split into groups of layers.

    Args:
        posterior: gives the model and the loss.
        samples: to try it on; default: those of the posterior.
    """

    def __init__(self, posterior: LocalPosterior, samples: Samples | None = None):
        self.posterior = posterior
        model = posterior.model
        self.layers = [
            module
            for module in model.modules()
            if any(p.requires_grad for p in module.parameters(recurse=False))
        ]
        self.sizes = [
            sum(p.numel() for p in layer.parameters(recurse=False) if p.requires_grad)
            for layer in self.layers
        ]
        self.by_layer = (
            all(map(_has_sample_gradients, self.layers))
            and sum(self.sizes) == posterior.n_parameters  # more: two layers share a weight
            and self._agrees(posterior.data if samples is None else samples)
        )
        if not self.by_layer:
            self.layers, self.sizes = [], [posterior.n_parameters]
        cpu = posterior.device.type == "cpu"
        fast = not cpu or (
            torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
        self.dtype = (
            torch.bfloat16 if fast and posterior.dtype == torch.float32 else posterior.dtype
        )

    def groups(self, n: int, memory: int | None) -> Iterator[list[int]]:
        """Positions of layers whose gradients of n samples fit into ``memory`` bytes together."""
        memory = self.room(memory)
        group: list[int] = []
        used = 0
        for at, size in enumerate(self.sizes):
            bytes_ = n * size * self.dtype.itemsize
            if group and used + bytes_ > memory:
                yield group
                group, used = [], 0
            group.append(at)
            used += bytes_
        yield group

    def room(self, memory: int | None) -> int:
        """Bytes that gradients may take: ``memory``, or where it is None what the device bears."""
        device = self.posterior.device
        if memory is not None:
            return memory
        return torch.cuda.mem_get_info(device)[0] // 3 if device.type == "cuda" else _MEMORY

    def write(self, out: Tensor, weights: Tensor, x: Tree, y: Tree, group: list[int]) -> Tensor:
        """Gradients of a batch with respect to the layers of ``group``, each row over its loss.

        Dividing by the loss keeps rows of confident samples from underflowing: their gradients
        shrink as their losses do.

        Args:
            out: shape (batch, sum of the layers' sizes), overwritten.
            weights: flat, shape (n_parameters,).
            x, y: inputs and targets, shape (batch, ...).
            group: positions of layers.

        Returns:
            The losses, shape (batch,), nats. A sample with no loss at all is divided by 1.
        """
        columns = slice(None)
        if self.by_layer:
            losses = self._at_once(out, weights, x, y, group)
            if losses is not None:
                return losses
            first = sum(self.sizes[: group[0]])
            columns = slice(first, first + sum(self.sizes[at] for at in group))
        every = gradient_and_value(single(self.posterior))
        rows, losses = each_sample(self.posterior, every, weights, x, y)
        out.copy_(rows.detach()[:, columns] / or_one(losses.detach())[:, None])
        return losses.detach()

    def _at_once(
        self, out: Tensor, weights: Tensor, x: Tree, y: Tree, group: list[int]
    ) -> Tensor | None:
        """What :meth:`write` does, by one backward pass; None where a subclass is not plain."""
        calls: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        chosen = [self.layers[at] for at in group]
        changed: list[nn.Module] = []

        def remember(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            if module in calls:
                raise RuntimeError("a layer of the model is used more than once")
            calls[module] = inputs[0].detach(), output
            if type(module) not in _EXACT and not _is_plain(module, inputs, output):
                changed.append(module)

        hooks = [module.register_forward_hook(remember) for module in chosen]
        try:
            with torch.enable_grad():
                losses = self.posterior.losses(weights.detach().requires_grad_(), x, y)
                total = (losses / or_one(losses.detach())).sum()
                # With respect to the layers' outputs: no gradient summed over the batch is built.
                out_gradients = torch.autograd.grad(total, [calls[m][1] for m in chosen])
        finally:
            for hook in hooks:
                hook.remove()
        if changed:
            return None
        start = 0
        for module, back in zip(chosen, out_gradients, strict=True):
            for rows in _layer_rows(module, calls[module][0], back, self.dtype):
                out[:, start : start + rows.shape[1]] = rows
                start += rows.shape[1]
        return losses.detach()

    def _agrees(self, samples: Samples) -> bool:
        """Whether the layers' rows are the whole gradient, of some samples that have one.

        As vectors, at w* and as far from it as the walks go: a weight that is used elsewhere as
        well may do nothing at w*.
        """
        posterior, self.by_layer, self.dtype = self.posterior, True, self.posterior.dtype
        center, seen = posterior.center, False
        noise = torch.randn(center.shape, generator=torch.Generator().manual_seed(0))
        away = center + noise.to(center) / posterior.localization**0.5
        some = _with_a_loss(posterior, samples)
        for weights in (center, away) if len(some) else ():
            out = center.new_empty(len(some), posterior.n_parameters)
            try:
                with torch.enable_grad(), keep_random_state(posterior.device):
                    every = list(range(len(self.layers)))
                    losses = self._at_once(out, weights, *samples.batch(some), every)
                    wanted = [self._of_one(weights, *samples.batch(i)) for i in some[:, None]]
            except (RuntimeError, IndexError, KeyError, AttributeError):
                return False
            if losses is None:
                return False
            for row, expected, loss in zip(out, wanted, losses, strict=True):
                expected = expected.double() / or_one(loss)
                if not expected.isfinite().all():
                    continue
                if not (row.double() - expected).norm() <= 1e-3 * expected.norm() + 1e-12:
                    return False
                seen |= bool(expected.norm() > 1e-6)
        return seen

    def _of_one(self, weights: Tensor, x: Tree, y: Tree) -> Tensor:
        """The gradient of one sample, by autograd alone."""
        moving = weights.clone().requires_grad_()
        return torch.autograd.grad(self.posterior.losses(moving, x, y)[0], moving)[0]


def _with_a_loss(posterior: LocalPosterior, samples: Samples) -> np.ndarray:
    """Positions of a few samples, spread over all, whose loss at w* is not nothing."""
    some = np.unique(np.linspace(0, len(samples) - 1, _LOOKED_AT, dtype=int))
    parts = np.array_split(some, max(1, len(some) // 16))
    with torch.no_grad(), keep_random_state(posterior.device):
        loss = torch.cat([posterior.losses(posterior.center, *samples.batch(i)) for i in parts])
    some = some[(loss != 0).cpu().numpy()]
    return (
        some[np.unique(np.linspace(0, len(some) - 1, _CHECKED, dtype=int))] if len(some) else some
    )


def _has_sample_gradients(module: nn.Module) -> bool:
    hooks = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
    own = {"forward", "_conv_forward"} & vars(module).keys()
    if not isinstance(module, _EXACT) or own or any(getattr(module, name) for name in hooks):
        return False
    if not {name for name, _ in module.named_parameters(recurse=False)} <= {"weight", "bias"}:
        return False
    if isinstance(module, nn.BatchNorm2d):
        return module.running_mean is not None  # without it, a batch normalises itself
    if isinstance(module, nn.Linear):
        return True
    # Padding to a mode, or to "same", is done by the layer itself and unknown to unfold.
    zeros = isinstance(module, nn.Conv2d) and module.padding_mode == "zeros"
    return zeros and not isinstance(module.padding, str)


def _is_plain(module: nn.Module, inputs: tuple, output: Tensor) -> bool:
    """Whether a subclass of a layer returned what the layer itself would have.

    And whether its output depends on its weights as the layer's would: what it returns may be
    detached, or have a derivative of its own. That is seen in a sum over the batch.
    """
    x, *more = inputs
    own = list(module.parameters(recurse=False))
    if more or not isinstance(x, Tensor) or not isinstance(output, Tensor):
        return False
    if x.dtype != own[0].dtype or not output.requires_grad:
        return False
    with torch.enable_grad():
        expected = _plain(module, x.detach())
    if expected.shape != output.shape or expected.dtype != output.dtype:
        return False
    size = expected.detach().abs().amax(tuple(range(1, expected.ndim)), keepdim=True)  # of each
    if not bool(((output - expected).abs() <= 1e-5 * size).all()):
        return False
    # Unequal numbers for all samples, so that no two samples cancel.
    along = torch.linspace(1, 2, output.numel(), dtype=output.dtype, device=output.device)
    along = along.view_as(output)
    found = torch.autograd.grad(output, own, along, retain_graph=True, allow_unused=True)
    wanted = torch.autograd.grad(expected, own, along)
    return all(
        one is not None and bool((one - other).norm() <= 1e-4 * other.norm())
        for one, other in zip(found, wanted, strict=True)
    )


def _plain(module: nn.Module, x: Tensor) -> Tensor:
    """What the class of a layer does, whatever a subclass may make of it."""
    if isinstance(module, nn.Linear):
        return F.linear(x, module.weight, module.bias)
    if isinstance(module, nn.BatchNorm2d):
        statistics = module.running_mean, module.running_var
        return F.batch_norm(x, *statistics, module.weight, module.bias, False, 0.0, module.eps)
    assert isinstance(module, nn.Conv2d)
    assert not isinstance(module.padding, str)
    how = module.stride, module.padding, module.dilation, module.groups
    return F.conv2d(x, module.weight, module.bias, *how)


def _layer_rows(
    module: nn.Module, inputs: Tensor, out_gradients: Tensor, dtype: torch.dtype
) -> Iterator[Tensor]:
    """Each sample's gradient of a layer's weight, then of its bias: rows of shape (batch, size)."""
    batch = len(inputs)
    if isinstance(module, nn.Linear):
        inputs = inputs.reshape(batch, 1, -1, inputs.shape[-1]).transpose(2, 3)
        back = out_gradients.reshape(batch, 1, -1, out_gradients.shape[-1]).transpose(2, 3)
    elif isinstance(module, nn.BatchNorm2d):
        assert module.running_mean is not None
        assert module.running_var is not None
        mean, var = (t[:, None, None] for t in (module.running_mean, module.running_var))
        inputs = ((inputs - mean) * torch.rsqrt(var + module.eps)).reshape(
            batch, inputs.shape[1], 1, -1
        )
        back = out_gradients.reshape(batch, out_gradients.shape[1], 1, -1)
    else:
        assert isinstance(module, nn.Conv2d)
        inputs = _patches(module, inputs).unflatten(1, (module.groups, -1))
        back = out_gradients.flatten(2).unflatten(1, (module.groups, -1))
    # back (batch, groups, outputs, positions), inputs (batch, groups, inputs, positions)
    for name, parameter in module.named_parameters(recurse=False):
        if not parameter.requires_grad:
            continue
        if name == "weight":
            yield torch.matmul(back.to(dtype), inputs.to(dtype).transpose(2, 3)).flatten(1)
        else:
            yield back.sum(3).flatten(1)


def _patches(module: nn.Conv2d, inputs: Tensor) -> Tensor:
    """What a convolution multiplies its weight with: (batch, inputs, positions)."""
    assert not isinstance(module.padding, str)
    if (module.kernel_size, module.stride, module.padding) == ((1, 1), (1, 1), (0, 0)):
        return inputs.flatten(2)
    return F.unfold(
        inputs.contiguous(),
        module.kernel_size,
        dilation=module.dilation,
        padding=module.padding,
        stride=module.stride,
    )


def or_one(losses: Tensor) -> Tensor:
    """The size of each loss, and 1 where it is too small to divide by."""
    size = losses.abs()
    return torch.where(size > 1e-30, size, 1.0)


__all__ = ["SampleGradients", "or_one"]
