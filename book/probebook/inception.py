"""The original InceptionV1 (GoogLeNet), as a sequence of named stages.

Szegedy et al., *Going deeper with convolutions*, CVPR 2015, Table 1: with local response
normalisation, without batch normalisation and without the auxiliary classifiers of training. So
nothing in it differs between train and eval mode but dropout.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FullPrecisionLinear", "Inception", "LocalResponseNorm", "Prepare", "inception_v1"]

# Channels of 1x1 | 3x3 reduce, 3x3 | 5x5 reduce, 5x5 | pool projection.
_MODULES = {
    "inception_3a": (64, 96, 128, 16, 32, 32),
    "inception_3b": (128, 128, 192, 32, 96, 64),
    "inception_4a": (192, 96, 208, 16, 48, 64),
    "inception_4b": (160, 112, 224, 24, 64, 64),
    "inception_4c": (128, 128, 256, 24, 64, 64),
    "inception_4d": (112, 144, 288, 32, 64, 64),
    "inception_4e": (256, 160, 320, 32, 128, 128),
    "inception_5a": (256, 160, 320, 32, 128, 128),
    "inception_5b": (384, 192, 384, 48, 128, 128),
}
_POOL_BEFORE = {"inception_4a": "pool3", "inception_5a": "pool4"}


class Prepare(nn.Module):
    """Photographs as they are stored, to what a network takes.

    Args:
        mean: of each channel, 0 to 255, in the network's order of channels; subtracted.
        std: each channel is divided by it.
        bgr: the network takes blue, green, red.
    """

    def __init__(
        self,
        mean: tuple[float, float, float],
        std: tuple[float, float, float] = (1.0, 1.0, 1.0),
        bgr: bool = False,
    ) -> None:
        super().__init__()
        self.bgr = bgr
        self.register_buffer("mean", torch.tensor(mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """RGB, 0 to 255, uint8 or float, (batch, 3, h, w); to float32 of the same shape."""
        x = x.flip(1) if self.bgr else x
        x = (x.to(self.mean.dtype) - self.mean) / self.std
        # channels_last, in words that torch.func knows as well
        return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


class LocalResponseNorm(nn.Module):
    r"""Local response normalisation across channels, as ``torch.nn.LocalResponseNorm`` has it.

    :math:`x_c \,/\, \big(k + \tfrac{\alpha}{size} \sum_{c'} x_{c'}^2\big)^{\beta}` over the
    ``size`` channels around c. The sum is a product with a banded matrix, which takes a CPU
    half of the time of pooling over channels, or less.

    Args:
        channels: of the input.
        size, alpha, beta, k: as above; size is odd.

    Raises:
        ValueError: size is even.
    """

    def __init__(
        self,
        channels: int,
        size: int = 5,
        alpha: float = 1e-4,
        beta: float = 0.75,
        k: float = 1.0,
    ) -> None:
        super().__init__()
        if size % 2 == 0:
            raise ValueError(f"size must be odd, for a channel in the middle, got {size}")
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k
        at = torch.arange(channels)
        band = ((at[:, None] - at).abs() <= size // 2).float() * (alpha / size)
        self.register_buffer("band", band[:, :, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, channels, h, w), kept; in float32 also under autocast."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.band.dtype)
            scale = self.k + F.conv2d(x * x, self.band)
            if self.beta != 0.75:
                return x * scale**-self.beta
            root = torch.rsqrt(scale)  # a general power is several times slower
            return x * root * root.sqrt()

    def extra_repr(self) -> str:
        return f"size={self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


class FullPrecisionLinear(nn.Linear):
    """A linear layer that stays in float32 under autocast: bfloat16 would round a logit of 20
    by as much as a loss changes along a chain."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, in_features) to (batch, out_features)."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


class Inception(nn.Module):
    """Four branches side by side, a ReLU after every convolution.

    Args:
        channels: of the input.
        widths: output channels of 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection.
    """

    def __init__(self, channels: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        one, three_reduce, three, five_reduce, five, pool = widths
        self.branch1x1 = nn.Conv2d(channels, one, 1)
        self.branch3x3_reduce = nn.Conv2d(channels, three_reduce, 1)
        self.branch3x3 = nn.Conv2d(three_reduce, three, 3, padding=1)
        self.branch5x5_reduce = nn.Conv2d(channels, five_reduce, 1)
        self.branch5x5 = nn.Conv2d(five_reduce, five, 5, padding=2)
        self.pool = nn.MaxPool2d(3, 1, padding=1)
        self.pool_proj = nn.Conv2d(channels, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, channels, h, w) to (batch, sum of the branches' widths, h, w)."""
        branches = [
            self.branch1x1(x),
            self.branch3x3(self.branch3x3_reduce(x).relu()),
            self.branch5x5(self.branch5x5_reduce(x).relu()),
            self.pool_proj(self.pool(x)),
        ]
        return torch.cat(branches, 1).relu()


def inception_v1(classes: int = 1000) -> nn.Sequential:
    """The whole network, one child a stage, so that a slice of it is a trunk or a head.

    Input: photographs (batch, 3, height, width), red, green, blue, 0 to 255, uint8 or float;
    224 x 224 is what it was trained on, any size from 32 works. The first stage puts them into
    the order and range of the weights.
    Output: logits (batch, classes) in the standard order of ILSVRC-2012.

    Args:
        classes: number of outputs.
    """

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    stages: OrderedDict[str, nn.Module] = OrderedDict(
        prepare=Prepare((104.0, 117.0, 123.0), bgr=True),
        conv1=nn.Conv2d(3, 64, 7, stride=2, padding=3),
        relu1=nn.ReLU(),
        pool1=pool(),
        norm1=LocalResponseNorm(64),
        conv2_reduce=nn.Conv2d(64, 64, 1),
        relu2_reduce=nn.ReLU(),
        conv2=nn.Conv2d(64, 192, 3, padding=1),
        relu2=nn.ReLU(),
        norm2=LocalResponseNorm(192),
        pool2=pool(),
    )
    channels = 192
    for name, widths in _MODULES.items():
        if name in _POOL_BEFORE:
            stages[_POOL_BEFORE[name]] = pool()
        stages[name] = Inception(channels, widths)
        channels = widths[0] + widths[2] + widths[4] + widths[5]
    stages["average"] = nn.AdaptiveAvgPool2d(1)
    stages["flatten"] = nn.Flatten()
    stages["dropout"] = nn.Dropout(0.4)
    stages["classifier"] = FullPrecisionLinear(channels, classes)
    return nn.Sequential(stages)
