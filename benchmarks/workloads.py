"""What the benchmarks probe: three networks that have nothing in common but their loss."""

from __future__ import annotations

from dataclasses import replace

import torch
from competitors import Probe
from torch import Tensor, nn

from probebook.classifiers import load_classifier
from probebook.imagenet import choose, decode, find_images
from probebook.mnist import load_mnist
from probebook.training import RECIPES, prepare_pixels, trained_network
from probelib import cross_entropy

TABLE_1 = {"n_beta": 10.0, "localization": 30.0, "step_size": 5e-3, "batch_size": 64}


def mnist_mlp(observed: int = 60_000) -> Probe:
    """Chapter 02's network, 784-512-10, at the first row of Table 1."""
    mnist, recipe = load_mnist("train"), replace(RECIPES["sgd-unit-1x512"], epochs=20)
    network = trained_network(recipe, mnist.images, mnist.labels, seed=0, progress=False)
    x, y = prepare_pixels(mnist.images, recipe), mnist.labels
    return Probe(network.model, x, y, x[:observed], y[:observed], **TABLE_1)


def small_mlp() -> Probe:
    """784-16-10, so small that a step is all overhead; 64 digits observed."""
    mnist = load_mnist("train")
    x, y = mnist.images.flatten(1).float() / 255, mnist.labels
    model = nn.Sequential(nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))
    train(model, x, y, epochs=1)
    return Probe(model, x, y, x[:64], y[:64], **TABLE_1)


def inception(size: int = 112, images: int = 200) -> Probe:
    """The original InceptionV1 around ImageNet photographs, at chapter 04's localization.

    Raises:
        FileNotFoundError: its weights are not at hand (PROBELIB_DATA).
    """
    classifier = load_classifier("inception_v1")
    files = choose(find_images(), images, seed=0)
    decoded = decode(files, size=size)
    x, y = decoded.tensor(), torch.from_numpy(decoded.labels)
    # Steps of the same eps gamma as Table 1's; 16 photographs a gradient, as chapter 04 has them.
    probe = {"n_beta": 10.0, "localization": 1e4, "step_size": 1e-5, "batch_size": 16}
    return Probe(classifier.network, x, y, x, y, **probe, observe_batch_size=50)


class Block(nn.Module):
    """A transformer's layer, normalised before it attends."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(-2, -3)
            for t in self.qkv(self.before(x)).chunk(3, -1)
        )
        seen = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(seen.transpose(-2, -3).flatten(-2))
        return x + self.mlp(self.between(x))


class VisionTransformer(nn.Module):
    """Digits as sixteen patches of 7 x 7 pixels."""

    def __init__(self, width: int = 64, layers: int = 4, heads: int = 4):
        super().__init__()
        self.embed, self.where = nn.Linear(49, width), nn.Parameter(torch.randn(16, width) / 50)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        patches = x.unflatten(-1, (4, 7, 4, 7)).transpose(-2, -3).flatten(-2).flatten(-3, -2)
        return self.head(self.norm(self.blocks(self.embed(patches) + self.where)).mean(-2))


def transformer(observed: int = 5000) -> Probe:
    """A small vision transformer after two epochs of MNIST, at a localization that it survives."""
    mnist = load_mnist("train")
    x, y = mnist.images.flatten(1).float() / 255, mnist.labels
    torch.manual_seed(0)
    model = VisionTransformer()
    train(model, x, y, epochs=2)
    probe = TABLE_1 | {"localization": 300.0, "step_size": 5e-4}
    return Probe(model, x, y, x[:observed], y[:observed], **probe, observe_batch_size=1000)


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> None:
    """Adam, batches of 128."""
    order, optimizer = torch.Generator().manual_seed(0), torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(y), generator=order).split(128):
            optimizer.zero_grad()
            cross_entropy(model(x[index]), y[index]).mean().backward()
            optimizer.step()
    model.eval()
