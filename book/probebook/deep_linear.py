r"""Deep linear networks, whose learning coefficient is known at any size (chapter 09).

:math:`f(x) = W_L \cdots W_1 x` with targets :math:`T x` and white inputs has the population loss
:math:`L(w) = \frac12 \lVert W_L \cdots W_1 - T \rVert^2`. Three numbers are told apart:

- the **learning coefficient** of the true map, in closed form (Aoyagi, 2024): the smallest local
  coefficient on the set of weights that make T;
- the **local coefficient** at one point w* of that set, which may be larger. The points here have
  the identity in the corner of every layer: all layers have the rank of T there, every direction
  beyond it meets the others at zero, and the two are the same;
- the **LLC of Eq. 1** at the n beta and gamma that are used, which a perfect sampler would
  report. Given the other layers, a layer is Gaussian under Eq. 1, so that a Gibbs sampler draws
  from it without a step size (:func:`deep_linear_law`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import probelib
from probelib import LocalPosterior
from probelib.arguments import require_positive, require_whole
from probelib.estimators.series import estimate_mean

__all__ = [
    "DeepLinear",
    "DeepLinearLaw",
    "deep_linear_coefficient",
    "deep_linear_law",
    "deep_linear_posterior",
    "random_teacher",
]


class DeepLinear(nn.Module):
    r"""Linear layers without biases, :math:`f(x) = W_L \cdots W_1 x`, at a map of given rank.

    w* has the identity in the upper left r x r corner of each layer and zeros elsewhere: the
    deepest singularity of the set of weights that make the same map.

    Args:
        widths: of the input, the hidden layers and the output; two layers or more.
        rank: r of the map, from 0 to the smallest width.
        dtype: of the weights.

    Raises:
        ValueError: fewer than three widths, or a rank that such layers do not have.
    """

    def __init__(self, widths: Sequence[int], rank: int, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.widths, self.rank = _widths_and_rank(widths, rank)
        layers = []
        for inputs, outputs in zip(self.widths, self.widths[1:], strict=False):
            layer = torch.zeros(outputs, inputs, dtype=dtype)
            layer[range(rank), range(rank)] = 1.0
            layers.append(nn.Parameter(layer))
        self.layers = nn.ParameterList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Predictions, shape (batch, outputs), for inputs (batch, inputs)."""
        for layer in self.layers:
            x = x @ layer.T
        return x


def random_teacher(
    widths: Sequence[int], ranks: Sequence[int], seed: int, dtype: torch.dtype = torch.float32
) -> DeepLinear:
    """The same network at a generic point, where each layer has a rank of its own.

    Layers are products of Gaussian factors with entries of mean square 1 / width. Such a point
    makes a map whose rank is the smallest of the layers', but it need not be the deepest
    singularity of its map: its local coefficient may be above the learning coefficient.

    Args:
        widths: as for :class:`DeepLinear`.
        ranks: of each layer, in its order.
        seed: of the entries.
        dtype: of the weights.

    Raises:
        ValueError: a rank that its layer cannot have.
    """
    model = DeepLinear(widths, min(ranks), dtype)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for layer, rank in zip(model.layers, ranks, strict=True):
            if not 1 <= rank <= min(layer.shape):
                raise ValueError(f"ranks has {rank} for a layer of shape {tuple(layer.shape)}")
            left, right = (rng.normal(size=(n, rank)) for n in layer.shape)
            scale = math.sqrt(rank * layer.shape[1])
            layer.copy_(torch.from_numpy(left @ right.T / scale))
    return model


def deep_linear_posterior(
    model: DeepLinear,
    n_beta: float,
    localization: float,
    samples: int | None = None,
    seed: int = 0,
) -> LocalPosterior:
    """Eq. 1 of a deep linear network on noiseless data, with L the population loss.

    The inputs' empirical covariance is exactly the identity and the targets are the network's own
    predictions at w*, so that every loss there is 0.

    Args:
        model: at w*.
        n_beta, localization: nb and gamma.
        samples: inputs, as many as the first width or more: Gaussian ones, made white; for
            minibatches. Default: one along each axis, which the full gradient needs no more than.
        seed: of the inputs.

    Raises:
        ValueError: fewer samples than the first width.
    """
    width, dtype = model.widths[0], model.layers[0].dtype
    x = width**0.5 * torch.eye(width, dtype=dtype)
    if samples is not None:
        if samples < width:
            raise ValueError(f"samples is {samples}; white inputs of width {width} need as many")
        gaussian = np.random.default_rng(seed).normal(size=(samples, width))
        x = torch.from_numpy(samples**0.5 * np.linalg.qr(gaussian)[0]).to(dtype)
    with torch.no_grad():
        y = model(x)
    return LocalPosterior(
        model, probelib.squared_error, (x, y), n_beta=n_beta, localization=localization
    )


# -- the limit ---------------------------------------------------------------------------------


def deep_linear_coefficient(widths: Sequence[int], rank: int) -> tuple[float, int]:
    r"""Learning coefficient of a deep linear network, and its multiplicity (Aoyagi, 2024).

    With :math:`\Delta_i = H_i - r` the widths beyond the rank, let :math:`\Sigma` be the
    narrowest of them, :math:`\ell + 1` in number, as many as satisfy
    :math:`\ell \max_\Sigma \Delta \le \sum_\Sigma \Delta < \ell \min_{\text{others}} \Delta`. Then

    .. math::

       \lambda = \frac{r (H_1 + H_{L+1}) - r^2}2 + \frac{a (\ell - a)}{4 \ell}
         - \frac{\ell (\ell - 1)}4 \Big(\frac1\ell \sum_\Sigma \Delta\Big)^2
         + \frac12 \sum_{i < j \in \Sigma} \Delta_i \Delta_j, \qquad m = a (\ell - a) + 1,

    :math:`a = \sum_\Sigma \Delta - (\lceil \sum_\Sigma \Delta / \ell \rceil - 1)\, \ell`.

    Args:
        widths: of the input, the hidden layers and the output.
        rank: r of the true map.

    Raises:
        ValueError: fewer than three widths, or a rank that such layers do not have.
    """
    widths, rank = _widths_and_rank(widths, rank)
    beyond = sorted(width - rank for width in widths)
    for many in range(2, len(beyond) + 1):
        ell, chosen, others = many - 1, beyond[:many], beyond[many:]
        total = sum(chosen)
        if ell * chosen[-1] <= total and (not others or total < ell * others[0]):
            break
    else:
        raise ArithmeticError(f"widths {widths} of rank {rank} have no such set")
    a = total - (math.ceil(total / ell) - 1) * ell
    pairs = (total**2 - sum(value**2 for value in chosen)) // 2  # of products, each pair once
    # All terms over 4 ell, in whole numbers: of a million weights, they cancel to a few digits.
    regular = rank * (widths[0] + widths[-1]) - rank**2
    over = a * (ell - a) - (ell - 1) * total**2 + 2 * ell * pairs
    return regular / 2 + over / (4 * ell), a * (ell - a) + 1


def _widths_and_rank(widths: Sequence[int], rank: int) -> tuple[tuple[int, ...], int]:
    widths = tuple(require_whole("widths", width) for width in widths)
    if len(widths) < 3:
        raise ValueError(f"widths is {widths}; give the input, a hidden layer and the output")
    if not 0 <= rank <= min(widths):
        raise ValueError(f"rank is {rank}; layers of widths {widths} have 0 to {min(widths)}")
    return widths, rank


# -- Eq. 1 at finite n beta and gamma ----------------------------------------------------------


@dataclass(frozen=True)
class DeepLinearLaw:
    """What Eq. 1 says about a deep linear network.

    Attributes:
        llc: nb (E[L] - L(w*)).
        llc_se: its standard error.
        rhat: of the Gibbs chains behind it.
        sweeps: of each chain that counted.
    """

    llc: float
    llc_se: float
    rhat: float
    sweeps: int


def deep_linear_law(
    model: DeepLinear,
    n_beta: float,
    localization: float,
    *,
    chains: int = 4,
    sweeps: int = 400,
    burn_in: int = 200,
    seed: int = 0,
) -> DeepLinearLaw:
    r"""Eq. 1 of a deep linear network, by Gibbs sampling layer by layer.

    With :math:`U` the product of the layers after a layer W and :math:`V` that of those before,
    :math:`L = \frac12 \lVert U W V - T \rVert^2` is quadratic in W. In the eigenvectors of
    :math:`U^\top U` and :math:`V V^\top` its precision under Eq. 1 is diagonal,
    :math:`\gamma + n\beta\, u_i v_j`, and a draw costs two decompositions. There is no step size
    and no acceptance; what is left is chance, and the standard error says how much.

    Args:
        model: at w*, which the chains start from.
        n_beta, localization: nb and gamma.
        chains: independent chains.
        sweeps: through all layers, of each chain, that count.
        burn_in: sweeps before these.
        seed: of all draws.
    """
    require_positive("n_beta", n_beta)
    require_positive("localization", localization)
    chains = require_whole("chains", chains)
    walk = _gibbs_chains(model, n_beta, localization, chains, burn_in + sweeps, seed)
    found = estimate_mean(n_beta * walk[:, burn_in:])
    return DeepLinearLaw(found.value, found.mcse, found.rhat, sweeps)


@torch.no_grad()
def _gibbs_chains(
    model: DeepLinear, n_beta: float, localization: float, chains: int, sweeps: int, seed: int
) -> np.ndarray:
    """L after every sweep, shape (chains, sweeps)."""
    device = model.layers[0].device
    generator = torch.Generator(device).manual_seed(seed)
    center = [layer.detach().double() for layer in model.layers]
    first, last = (
        torch.eye(width, dtype=torch.float64, device=device)
        for width in (model.widths[0], model.widths[-1])
    )
    target = first
    for layer in center:
        target = layer @ target
    layers = [layer.expand(chains, -1, -1) for layer in center]
    losses = np.empty((chains, sweeps))
    for sweep in range(sweeps):
        after = [last.expand(chains, -1, -1)]  # products of the layers behind each, last one first
        for layer in layers[:0:-1]:
            after.append(after[-1] @ layer)
        before = first.expand(chains, -1, -1)
        for k, u in enumerate(reversed(after)):
            given = u, before, target
            layers[k] = _draw_layer(center[k], given, n_beta, localization, generator)
            before = layers[k] @ before
        losses[:, sweep] = 0.5 * (before - target).square().sum((1, 2)).cpu().numpy()
    return losses


def _draw_layer(
    center: Tensor,
    given: tuple[Tensor, Tensor, Tensor],
    n_beta: float,
    localization: float,
    generator: torch.Generator,
) -> Tensor:
    """A draw of W under Eq. 1 given U, V and T, in every chain."""
    u, v, target = given
    by_u, left = torch.linalg.eigh(u.mT @ u)
    by_v, right = torch.linalg.eigh(v @ v.mT)
    # What rounding makes negative is 0.
    curvature = by_u.clamp(min=0)[:, :, None] * by_v.clamp(min=0)[:, None, :]
    precision = localization + n_beta * curvature
    linear = localization * center + n_beta * u.mT @ target @ v.mT
    noise = torch.empty_like(precision).normal_(generator=generator)
    drawn = left.mT @ linear @ right / precision + noise / precision.sqrt()
    return left @ drawn @ right.mT
