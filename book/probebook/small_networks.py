"""Small networks that train in a second, one at a time or a hundred side by side.

The hundred share their inputs and the order of them, and differ in their initial weights, in the
samples that they are trained without, and where this is wanted in their labels. Their first layers
are then one matrix product.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from probebook.models import MLP
from probelib.arguments import require_whole

__all__ = ["Stack", "initial_network", "train_network", "train_stack"]


def initial_network(hidden: Sequence[int], features: int, classes: int, seed: int) -> MLP:
    """An untrained network; the global random state is left alone.

    Args:
        hidden: width of each hidden layer.
        features: numbers per input.
        classes: outputs.
        seed: of the initial weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return MLP(hidden, features, classes)


def train_network(
    hidden: Sequence[int],
    data: tuple[Tensor, Tensor],
    *,
    classes: int,
    seed: int,
    epochs: int = 30,
    rate: float = 3e-3,
    batch_size: int = 100,
    decay: float = 1e-2,
) -> MLP:
    """A network that AdamW has trained, its rate falling to 0 on a cosine.

    Args:
        hidden: width of each hidden layer.
        data: inputs (n, ...) and labels (n,).
        classes: outputs.
        seed: of the initial weights and of the order of the data.
        epochs, rate, batch_size, decay: of AdamW.

    Returns:
        The network, in eval mode.
    """
    x, y = data
    model = initial_network(hidden, x[0].numel(), classes, seed)
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=decay)
    steps = epochs * -(-len(y) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for part in torch.randperm(len(y), generator=order).split(batch_size):
            optimizer.zero_grad()
            functional.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


class Stack(nn.Module):
    """Networks with one hidden layer of the same sizes, run side by side on the same inputs.

    Args:
        networks: of one hidden layer each; their weights are copied.
    """

    def __init__(self, networks: Sequence[MLP]) -> None:
        super().__init__()
        first, last = ([net.layers[at] for net in networks] for at in (0, 2))
        self.width = first[0].out_features
        self.first = nn.Parameter(torch.cat([layer.weight.detach() for layer in first]))
        self.first_bias = nn.Parameter(torch.cat([layer.bias.detach() for layer in first]))
        self.last = nn.Parameter(torch.stack([layer.weight.detach().T for layer in last]))
        self.last_bias = nn.Parameter(torch.stack([layer.bias.detach()[None] for layer in last]))

    def __len__(self) -> int:
        return len(self.last)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (networks, n, classes), of inputs (n, features)."""
        hidden = functional.linear(x, self.first, self.first_bias).relu()
        hidden = hidden.view(len(x), len(self), self.width).transpose(0, 1)
        return torch.baddbmm(self.last_bias, hidden, self.last)

    def network(self, at: int) -> MLP:
        """One of them, by itself, in eval mode."""
        _, width, classes = self.last.shape
        model = MLP((width,), self.first.shape[1], classes)
        part = slice(at * width, (at + 1) * width)
        with torch.no_grad():
            model.layers[0].weight.copy_(self.first[part])
            model.layers[0].bias.copy_(self.first_bias[part])
            model.layers[2].weight.copy_(self.last[at].T)
            model.layers[2].bias.copy_(self.last_bias[at, 0])
        return model.eval()


def train_stack(
    start: Sequence[MLP],
    data: tuple[Tensor, Tensor],
    keep: Tensor,
    *,
    epochs: int = 20,
    rate: float = 0.1,
    batch_size: int = 50,
) -> Stack:
    """Train networks side by side, each without the samples that it does not keep.

    By gradient descent on batches (momentum 0.9), the rate falling to 0 on a cosine. All see the
    same batches in the same order. A sample that a network does not keep has the weight 0 in its
    loss, and the others count as before, so that removing nothing changes nothing.

    Args:
        start: networks with one hidden layer, not changed.
        data: inputs (n, features) and labels, shape (n,), or (networks, n) where each network has
            its own.
        keep: which network is trained on which sample, boolean, shape (networks, n).
        epochs, rate, batch_size: of the training.

    Raises:
        ValueError: ``keep`` or the labels have another shape, or a network keeps no sample.
    """
    x, y = data
    shape = len(start), len(x)
    if keep.shape != shape or not keep.any(1).all():
        raise ValueError(
            f"keep has shape {tuple(keep.shape)}; it must be {shape}, and every network must keep "
            "a sample"
        )
    if y.shape not in (shape, shape[1:]):
        raise ValueError(
            f"data has labels of shape {tuple(y.shape)}; give {shape[1:]} for all networks alike, "
            f"or {shape} for each its own"
        )
    y = y.expand(shape)
    require_whole("epochs", epochs)
    stack = Stack([copy.deepcopy(net) for net in start])
    share = keep.float()
    order = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(stack.parameters(), rate, momentum=0.9)
    steps = epochs * -(-len(x) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for part in torch.randperm(len(x), generator=order).split(batch_size):
            optimizer.zero_grad()
            logits = stack(x[part]).flatten(0, 1)
            losses = functional.cross_entropy(logits, y[:, part].flatten(), reduction="none")
            (losses.view(len(stack), -1) * share[:, part]).sum().div(len(part)).backward()
            optimizer.step()
            schedule.step()
    return stack.eval()
