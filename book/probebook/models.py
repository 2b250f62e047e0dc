"""The networks of the experiments."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from probelib.arguments import require_whole


class MLP(nn.Module):
    """A fully connected ReLU network: linear, ReLU, ..., linear.

    Args:
        hidden: width of each hidden layer; ``(512,)`` is the paper's MNIST network (A.3) read
            as two layers of weights, ``(512, 512)`` read as two hidden layers.
        in_features: inputs a sample has once it is flattened.
        out_features: outputs, one logit a class.

    Raises:
        ValueError: a width is not a positive integer.
    """

    def __init__(
        self, hidden: Sequence[int] = (512,), in_features: int = 784, out_features: int = 10
    ) -> None:
        super().__init__()
        widths = [in_features, *hidden, out_features]
        names = ["in_features", *["hidden"] * len(hidden), "out_features"]
        for name, width in zip(names, widths, strict=True):
            require_whole(name, width)
        layers: list[nn.Module] = []
        for below, above in pairwise(widths):
            layers += [nn.Linear(below, above), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, shape ``(n, out_features)``, of floats ``(n, 28, 28)`` or ``(n, in_features)``.

        Every dimension after the first is flattened.
        """
        return self.layers(x.flatten(1))


def count_parameters(model: nn.Module) -> int:
    """The number of parameters of ``model``, each shared one counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


__all__ = ["MLP", "count_parameters"]
