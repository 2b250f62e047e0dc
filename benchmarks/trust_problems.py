r"""Posteriors whose learning coefficient is known, for the cases of ``trust_cases.py``.

Each function gives a :class:`Problem`. Its truth is a closed form (linear regression), an integral
over a grid (one or two weights), or None: then a long run of Hamiltonian Monte Carlo, which has no
step bias, is kept in ``trust_truth.json`` (see ``trust_truth.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import probelib


@dataclass(frozen=True)
class Line:
    """The parts of a linear regression, of which its posterior and every sampler's law follow.

    Attributes:
        x, residuals: the design (n, d) and the residuals at the minimum (n,).
        delta: w* less the minimum, shape (d,).
        observed: the samples that are observed.
    """

    x: np.ndarray
    residuals: np.ndarray
    delta: np.ndarray
    observed: slice

    @functools.cached_property
    def _seen(self) -> tuple[np.ndarray, np.ndarray]:
        """Hessian and minus the slope, at the minimum, of the mean loss over what is observed."""
        x, residuals = self.x[self.observed], self.residuals[self.observed]
        return x.T @ x / len(x), residuals @ x / len(x)

    def change(self, mean: np.ndarray, second: np.ndarray) -> float:
        """E[L(w)] - L(w*) over what is observed.

        Args:
            mean: of u, w less the minimum.
            second: E[uu'], or its diagonal where nothing else counts.
        """
        h, slope = self._seen
        at_center = self.delta @ h @ self.delta / 2 - slope @ self.delta
        curved = (h * second).sum() if second.ndim == 2 else h.diagonal() @ second
        return float(curved / 2 - slope @ mean - at_center)


@dataclass(frozen=True)
class Problem:
    """A posterior, what is observed of it, and its LLC where that is known without a run.

    Attributes:
        posterior: what is sampled.
        truth: the LLC over what is observed, under Eq. 1; None where it takes a long run.
        observe: the samples that are observed; None for those of the posterior.
        stiffest: the largest precision nb h + gamma, in whose units steps are given.
        line: for a linear regression, its parts.
    """

    posterior: probelib.LocalPosterior
    truth: float | None = None
    observe: tuple[Tensor, Tensor] | None = None
    stiffest: float = 1.0
    line: Line | None = None


def _once(function: Callable[..., Problem]) -> Callable[..., Problem]:
    """Made once a process, whatever the global random state is."""

    @functools.cache
    @functools.wraps(function)
    def made(*args: Any, **kwargs: Any) -> Problem:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return function(*args, **kwargs)

    return made


def _settle(loss: Callable[[], Tensor], parameters: Any, steps: int = 300) -> None:
    """Bring parameters to a minimum with L-BFGS."""
    optimizer = torch.optim.LBFGS(
        list(parameters), max_iter=steps, line_search_fn="strong_wolfe", tolerance_grad=1e-9
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


# --- exact Gaussians ---


@_once
def regression(
    d: int = 5,
    n: int = 200,
    n_beta: float = 20.0,
    gamma: float = 2.0,
    *,
    stiff: float = 1.0,
    dominating: float = 1.0,
    noise: float = 1.0,
    shift: float = 0.0,
    offset: float = 0.0,
    observed: int | None = None,
    whole: bool = False,
    double: bool = False,
    seed: int = 0,
) -> Problem:
    r"""Linear regression: the posterior is a Gaussian, and its LLC a formula.

    With w* = OLS + delta, A = nb H + gamma I, S = A^-1 and u = gamma S delta the mean's distance
    from OLS: LLC = nb (tr(H S) + u'Hu - delta'H delta) / 2, where all is observed.

    Args:
        d, n: weights and samples.
        stiff: ratio of the largest to the smallest scale of the columns' curvatures (log-spaced).
        dominating: factor on the curvature of the first column alone.
        noise: standard deviation of the targets around the line.
        shift: of w* from the minimum, in each weight.
        offset: a constant added to every loss.
        observed: only so many samples are observed.
        whole: targets rounded to whole numbers.
        double: float64.
    """
    rng = np.random.default_rng(seed)
    scale = np.sqrt(np.geomspace(1.0, 1 / stiff, d))
    scale[0] *= np.sqrt(dominating)
    x = rng.normal(size=(n, d)) * scale
    y = x @ rng.normal(size=d) + noise * rng.normal(size=n)
    if whole:
        y = np.round(3 * y)
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    delta = np.full(d, shift)
    model = nn.Linear(d, 1, bias=False).double()
    model.weight.data[0] = torch.tensor(best + delta)
    inputs, targets = torch.tensor(x), torch.tensor(y)
    if whole:
        targets = targets.long()
    if not double:
        model, inputs = model.float(), inputs.float()
        targets = targets if whole else targets.float()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return 0.5 * (output[:, 0] - target).square() + offset

    posterior = probelib.LocalPosterior(
        model, loss, (inputs, targets), n_beta=n_beta, localization=gamma
    )
    h = x.T @ x / n
    precision = n_beta * h + gamma * np.eye(d)
    s = np.linalg.inv(precision)
    line = Line(x, y - x @ best, delta, slice(0, observed))
    mean = gamma * s @ delta
    return Problem(
        posterior,
        n_beta * line.change(mean, s + np.outer(mean, mean)),
        None if observed is None else (inputs[:observed], targets[:observed]),
        float(np.linalg.eigvalsh(precision)[-1]),
        line,
    )


# --- one or two weights: integrals over a grid ---


class Weights(nn.Module):
    """Weights w and a loss l(w, x) that is written out: shape (batch,)."""

    def __init__(self, start: list[float], value: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.w, self.value = nn.Parameter(torch.tensor(start)), value

    def forward(self, x: Tensor) -> Tensor:
        return self.value(self.w, x)


def _identity(output: Tensor, target: Tensor) -> Tensor:
    return output


def _written(
    value: Callable[[Tensor, Tensor], Tensor],
    start: list[float],
    x: Tensor,
    n_beta: float,
    gamma: float,
    settle: bool = True,
) -> Problem:
    model = Weights(start, value)
    if settle:
        _settle(lambda: model(x).mean(), model.parameters())
    posterior = probelib.LocalPosterior(
        model, _identity, (x, torch.zeros(len(x))), n_beta=n_beta, localization=gamma
    )
    return Problem(posterior, by_quadrature(posterior))


def by_quadrature(posterior: probelib.LocalPosterior, points: int = 161) -> float:
    r"""nb (E[L] - L(w*)) by summing over a grid, drawn together three times around the mass."""
    center = posterior.center.double()
    d = len(center)
    low, high = (center + side * 9 / posterior.localization**0.5 for side in (-1, 1))
    x, y = posterior.data.batch(slice(0, posterior.n_samples))

    def mean_loss(weights: Tensor) -> Tensor:
        return posterior.losses(weights.to(posterior.dtype), x, y).double().mean()

    found = 0.0
    for _ in range(3):
        axes = [
            torch.linspace(a, b, points, dtype=torch.float64)
            for a, b in zip(low, high, strict=True)
        ]
        grid = torch.cartesian_prod(*axes).reshape(-1, d)
        with torch.no_grad():
            loss = torch.cat([torch.vmap(mean_loss)(part) for part in grid.split(512)])
            change = loss - mean_loss(center)
        log_p = -posterior.n_beta * change
        log_p -= posterior.localization / 2 * (grid - center).square().sum(1)
        p = (log_p - log_p.max()).exp()
        found = float(posterior.n_beta * (torch.where(p > 0, p * change, 0.0)).sum() / p.sum())
        inside = grid[log_p > log_p.max() - 32]
        margin = (high - low) / (points - 1) * 2
        low, high = inside.amin(0) - margin, inside.amax(0) + margin
    return found


@_once
def density(sigma: float, n_beta: float = 8.0, gamma: float = 0.2, n: int = 400) -> Problem:
    """The mean and the log width of a Gaussian: losses are negative where it is narrow."""

    def value(w: Tensor, x: Tensor) -> Tensor:
        return 0.5 * ((x[:, 0] - w[0]) / w[1].exp()).square() + w[1] + 0.9189385

    x = sigma * torch.randn(n, 1)
    start = [float(x.mean()), float(x.std(unbiased=False).log())]
    return _written(value, start, x, n_beta, gamma, settle=False)


@_once
def counts(n_beta: float = 20.0, gamma: float = 1.0, n: int = 300) -> Problem:
    """Poisson regression with two weights and without log y!: its losses are of both signs."""
    x = torch.randn(n, 1)
    y = torch.poisson((1.0 + 0.5 * x[:, 0]).exp())

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return output[:, 0].exp() - target * output[:, 0]

    model = nn.Linear(1, 1)
    _settle(lambda: loss(model(x), y).mean(), model.parameters())
    posterior = probelib.LocalPosterior(
        model, loss, (x, y.long()), n_beta=n_beta, localization=gamma
    )
    return Problem(posterior, by_quadrature(posterior))


@_once
def binary(n_beta: float = 50.0, gamma: float = 1.0, n: int = 300, shift: float = 0.0) -> Problem:
    """Logistic regression with one logit and two weights."""
    x = torch.randn(n, 1)
    y = (torch.rand(n) < torch.sigmoid(2 * x[:, 0] - 0.5)).float()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.softplus(output[:, 0]) - target * output[:, 0]

    model = nn.Linear(1, 1)
    _settle(lambda: loss(model(x), y).mean(), model.parameters())
    model.weight.data += shift
    posterior = probelib.LocalPosterior(model, loss, (x, y), n_beta=n_beta, localization=gamma)
    return Problem(posterior, by_quadrature(posterior))


@_once
def product(
    n_beta: float, gamma: float, slope: float = 0.0, start: tuple[float, float] = (0.0, 0.0)
) -> Problem:
    """l = (y - w1 w2 x)² / 2: singular where the slope is 0, a saddle at 0 where it is not."""
    x = torch.randn(200, 2)
    x[:, 1] -= x[:, 0] * (x[:, 0] @ x[:, 1]) / (x[:, 0] @ x[:, 0])  # the noise has no slope

    def value(w: Tensor, x: Tensor) -> Tensor:
        return 0.5 * ((slope - w[0] * w[1]) * x[:, 0] + x[:, 1]).square()

    return _written(value, list(start), x, n_beta, gamma, settle=False)


@_once
def quartic(n_beta: float, gamma: float) -> Problem:
    """l = x w⁴ with one weight: the LLC of the curve's own is 1/4, not 1/2."""
    x = 0.5 + torch.rand(100, 1)
    return _written(lambda w, x: x[:, 0] * w[0] ** 4, [0.0], x, n_beta, gamma, settle=False)


@_once
def two_wells(n_beta: float, gamma: float, tilt: float = 0.15, barrier: float = 1.0) -> Problem:
    """A minimum at about 1 and another, higher or lower by 2 tilt, at about -1."""
    x = 1 + 0.1 * torch.randn(100, 1)

    def value(w: Tensor, x: Tensor) -> Tensor:
        return x[:, 0] * (barrier * (w[0] ** 2 - 1) ** 2 + tilt * (1 - w[0]))

    return _written(value, [1.0], x, n_beta, gamma)


# --- networks ---


@_once
def logistic(
    n_beta: float = 500.0, gamma: float = 1.0, n: int = 500, steps: int = 300, shift: float = 0.0
) -> Problem:
    """nn.Linear(5, 2) under cross-entropy, trained to its minimum unless steps says otherwise."""
    x = torch.randn(n, 5)
    y = (torch.rand(n) < torch.sigmoid(1.5 * x[:, 0])).long()
    model = nn.Linear(5, 2)
    if steps:
        _settle(lambda: F.cross_entropy(model(x), y), model.parameters(), steps)
    model.weight.data += shift * torch.randn(2, 5)
    return Problem(_classifier(model, x, y, n_beta, gamma))


@_once
def rare(n_beta: float = 10.0, gamma: float = 25.0) -> Problem:
    """2 % of positives: a constant guess costs 0.098 nats, not log 2."""
    n = 500
    y = (torch.arange(n) < 10).long()
    x = torch.randn(n, 20)
    x[:, 0] += 8.0 * y
    model = nn.Linear(20, 2)
    _train(model, x, y, 400, 0.05)
    return Problem(_classifier(model, x, y, n_beta, gamma))


@_once
def ten_classes(
    n_beta: float = 100.0, gamma: float = 3.0, only: int | None = None, steps: int = 600
) -> Problem:
    """Softmax regression of ten classes; observed are all labels, or those below ``only``."""
    n = 600
    y = torch.arange(n) % 10
    x = (0.9 * torch.randn(10, 8))[y] + torch.randn(n, 8)
    model = nn.Linear(8, 10)
    _train(model, x, y, steps, 0.05)
    keep = y < (10 if only is None else only)
    observe = None if only is None else (x[keep], y[keep])
    return Problem(_classifier(model, x, y, n_beta, gamma), observe=observe)


class Bigram(nn.Module):
    """Scores of the next token from the one before."""

    def __init__(self, words: int, width: int):
        super().__init__()
        self.embed, self.read = nn.Embedding(words, width), nn.Linear(width, words)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.read(self.embed(tokens))


def _per_sequence(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.transpose(1, 2), target, reduction="none").mean(1)


@_once
def tokens(n_beta: float = 50.0, gamma: float = 20.0) -> Problem:
    """A bigram model: targets are rows of token numbers, the loss is a mean over a row."""
    words, n, length = 8, 200, 12
    step = torch.softmax(2 * torch.randn(words, words), 1)
    rows = [torch.randint(words, (n,))]
    for _ in range(length):
        rows.append(torch.multinomial(step[rows[-1]], 1)[:, 0])
    all_tokens = torch.stack(rows, 1)
    x, y = all_tokens[:, :-1].contiguous(), all_tokens[:, 1:].contiguous()
    model = Bigram(words, 4)
    _settle(lambda: _per_sequence(model(x), y).mean(), model.parameters(), 40)
    posterior = probelib.LocalPosterior(
        model, _per_sequence, (x, y), n_beta=n_beta, localization=gamma
    )
    return Problem(posterior)


@functools.lru_cache(maxsize=1)
def _cancer() -> tuple[Tensor, np.ndarray]:
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    return torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32), y


@_once
def cancer(
    n_beta: float,
    gamma: float,
    *,
    width: int = 16,
    steps: int = 300,
    wrong: float = 0.1,
    flipped: bool = False,
) -> Problem:
    """A network of one hidden layer on the breast-cancer data.

    Args:
        width: of the hidden layer.
        steps: of training with Adam, on all samples at once.
        wrong: share of labels that are made wrong before it is trained.
        flipped: every label is exchanged after training, so that the network is worse than a guess.
    """
    x, y = _cancer()
    bad = np.random.default_rng(0).random(len(y)) < wrong
    labels = torch.tensor(np.where(bad, 1 - y, y))
    model = nn.Sequential(nn.Linear(30, width), nn.ReLU(), nn.Linear(width, 2))
    _train(model, x, labels, steps, 1e-2)
    return Problem(_classifier(model, x, 1 - labels if flipped else labels, n_beta, gamma))


@_once
def curve(n_beta: float = 50.0, gamma: float = 10.0, steps: int = 500) -> Problem:
    """A network 1-8-1 that has learned a sine, under half the squared error."""
    x = torch.linspace(-2, 2, 100)[:, None]
    y = torch.sin(2 * x) + 0.2 * torch.randn(100, 1)
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    if steps:
        _settle(lambda: probelib.squared_error(model(x), y).mean(), model.parameters(), steps)
    posterior = probelib.LocalPosterior(
        model, probelib.squared_error, (x, y), n_beta=n_beta, localization=gamma
    )
    return Problem(posterior)


def _train(model: nn.Module, x: Tensor, y: Tensor, steps: int, rate: float) -> None:
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def _classifier(
    model: nn.Module, x: Tensor, y: Tensor, n_beta: float, gamma: float
) -> probelib.LocalPosterior:
    return probelib.LocalPosterior(
        model, probelib.cross_entropy, (x, y), n_beta=n_beta, localization=gamma
    )
