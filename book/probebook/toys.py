r"""Models small enough that what the sampler must find is known exactly (chapters 00 and 01).

Linear regression with :math:`\ell = r^2/2` has a Gaussian local posterior, and SGLD on it is a
linear recursion, so that the law of the *discretised* chain is known too. A neuron with two
weights has a posterior that :mod:`probebook.quadrature` integrates. What is measured is held
against these.
"""

import inspect
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from sklearn.datasets import make_moons
from torch import Tensor, nn
from torch.func import grad, vmap

from probebook.chapter import Chapter, Claim
from probebook.models import MLP
from probelib import LocalPosterior, Sampler, cross_entropy, loss_kernel
from probelib.chains import Chains
from probelib.influence import hessian
from probelib.plan import Plan, Run


def path(
    posterior: LocalPosterior, sampler: Sampler, *, chains: int, steps: int, seed: int
) -> np.ndarray:
    """Weights after each step of the chains that :func:`probelib.sample` runs with this seed.

    A trace holds losses only. For models of a few weights.

    Returns:
        Shape (chains, steps, n_parameters).
    """
    plan = Plan(chains=chains, draws=steps, seed=seed)
    walk = Chains(Run.of(posterior, None, sampler, plan))
    weights = []
    for _ in range(steps):
        walk.advance()
        weights.append(walk.weights)
    return torch.stack(weights, 1).double().numpy()


def mean_and_error(series: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over (chain, draw, ...) and its standard error from the independent chains.

    Args:
        series: shape (chains, draws, ...), two chains or more.

    Returns:
        The mean and its standard error, both of shape (...).
    """
    by_chain = series.mean(1)
    return by_chain.mean(0), by_chain.std(0, ddof=1) / np.sqrt(len(by_chain))


def exact_claim(
    chapter: Chapter,
    what: str,
    key: str,
    truth: float,
    error: float,
    allowed: float = 0.0,
    digits: str = ".4g",
    why: str = "",
    must: bool = True,
    scale: float = 0.0,
) -> Claim:
    """Hold a recorded number against its exact value, which is recorded as ``exact_<key>``.

    Where so much room is left that the number could hardly miss, it is held to nothing.

    Args:
        chapter: where ``key`` is recorded.
        what: the quantity, in words.
        key: the recorded number.
        truth: its exact value.
        error: Monte-Carlo standard error of the number; it may be off by four of them.
        allowed: a further distance, for a known bias.
        digits: format of both.
        why: a note, to which the tolerance is added.
        must: refuse a book in which the claim fails; an exact value leaves no room for opinion.
        scale: of what the number is a small difference of; the room must be smaller than that, or
            than the exact value if that is larger.
    """
    chapter.record(**{f"exact_{key}": truth})
    room = 4 * error + allowed
    low: float | None
    high: float | None
    low, high = (float(f"{truth + side * room:.4g}") for side in (-1, 1))
    parts = ["4 standard errors"] if error > 0 else []
    if allowed > 0:
        parts.append(f"{allowed:.2g} for a known bias")
    tolerance = f"within {' and '.join(parts)}"
    if not room < max(abs(truth), scale):  # nor where the error is not known
        low, high, tolerance = None, None, "its error is too large to tell"
    note = "; ".join(filter(None, [why, tolerance]))
    return Claim(what, key, f"{truth:{digits}}, exact", low, high, digits, note, must)


def with_error(value: float, error: float | None, unit: str = "") -> str:
    """A number with its error: as many digits as the first two of the error.

    Args:
        value: the number.
        error: its standard error; None or not finite where it is not known.
        unit: written behind both.
    """
    if error is None or not 0 < error < math.inf:
        return f"{value:.3g}{unit} ± not known"
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{places}f}{unit} ± {error:.{places}f}{unit}"


def source(function: Callable) -> str:
    """The source of a function without its docstring, as a Markdown code block."""
    text = textwrap.dedent(inspect.getsource(function))
    documented = function.__doc__
    if documented:
        before, _, rest = text.partition('"""')
        text = before.rstrip() + "\n" + rest.partition('"""')[2].lstrip("\n")
    return f"```python\n{text.strip()}\n```"


# -- linear regression -------------------------------------------------------------------------


@dataclass(frozen=True)
class LinearRegression:
    r"""Least squares at its optimum: :math:`\ell_i(w) = \frac12 (x_i^\top w - y_i)^2`.

    Attributes:
        x: design, shape (n, d).
        y: targets, shape (n,).
        center: the least-squares weights, shape (d,).
        residuals: r_i = x_i'w* - y_i, shape (n,).
        hessian: H = X'X / n, the Hessian of the mean loss, shape (d, d).
    """

    x: np.ndarray
    y: np.ndarray
    center: np.ndarray
    residuals: np.ndarray
    hessian: np.ndarray

    @property
    def model(self) -> nn.Module:
        """A bias-free linear layer in float64 at the least-squares weights."""
        layer = nn.Linear(self.x.shape[1], 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            layer.weight[0] = torch.from_numpy(self.center)
        return layer

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        """Inputs (n, d) and targets (n, 1)."""
        return torch.from_numpy(self.x), torch.from_numpy(self.y)[:, None]

    def precision(self, n_beta: float, localization: float) -> np.ndarray:
        """A = nb H + gamma I, shape (d, d)."""
        return n_beta * self.hessian + localization * np.eye(len(self.hessian))

    def covariance(
        self,
        n_beta: float,
        localization: float,
        step_size: float = 0.0,
        batch_size: int | None = None,
    ) -> np.ndarray:
        r"""Exact stationary covariance of the weights, shape (d, d).

        With step size 0, that of Eq. 1: :math:`A^{-1}`. With a step size, that of the chain,
        :math:`[A (1 - \epsilon A / 4)]^{-1}` for the full gradient. A minibatch without
        replacement adds, at weights w, the gradient noise

        .. math::

           \frac1m \frac{n - m}{n - 1} \operatorname{Cov}_i[x_i (x_i^\top (w - w^*) + r_i)],

        whose mean over w is linear in the covariance; the fixed point is a linear system.
        """
        precision = self.precision(n_beta, localization)
        n, d = self.x.shape
        if step_size == 0:
            return np.linalg.inv(precision)
        contraction = np.eye(d) - step_size / 2 * precision
        noise = step_size * np.eye(d)
        operator = np.eye(d * d) - np.kron(contraction, contraction)
        if batch_size is not None and batch_size < n:
            scale = (step_size * n_beta / 2) ** 2 * (n - batch_size) / (n - 1) / batch_size
            squares = np.einsum("ni,nj,nk,nl->ijkl", *[self.x] * 4).reshape(d * d, d * d) / n
            operator -= scale * (squares - np.kron(self.hessian, self.hessian))
            weighted = self.x * self.residuals[:, None]
            noise = noise + scale * weighted.T @ weighted / n
        return np.linalg.solve(operator, noise.reshape(-1)).reshape(d, d)

    def gain(self, covariance: np.ndarray) -> np.ndarray:
        """mu_i = x_i' C x_i / 2, shape (n,): needs mean w* and covariance C, nothing else."""
        return 0.5 * np.einsum("ni,ij,nj->n", self.x, covariance, self.x)

    def kernel(self, covariance: np.ndarray) -> np.ndarray:
        """K = (r r') o G + (G o G) / 2 with G = X C X', shape (n, n): for Gaussian weights."""
        g = self.x @ covariance @ self.x.T
        return np.outer(self.residuals, self.residuals) * g + g * g / 2

    def llc(self, n_beta: float, covariance: np.ndarray) -> float:
        """lambda = (nb / 2) tr(H C)."""
        return float(n_beta / 2 * np.trace(self.hessian @ covariance))

    def expected_trace_ratio(
        self, n_beta: float, localization: float, step_size: float, draws: int
    ) -> tuple[float, float]:
        r"""What the pooled estimate of tr K is on average, for one stationary chain of T draws.

        The full-gradient chain is a Gaussian autoregression with lag-k covariance
        :math:`C_k = (1 - \epsilon A / 2)^k C`, which gives every loss's autocovariance. With
        ESS the variance of the losses over the variance of their mean, the ratio is
        :math:`\frac{T}{T-1}(1 - 1/\mathrm{ESS})`.

        Returns:
            The expected ratio of the estimate to tr K, and the ESS.
        """
        lagged = self.covariance(n_beta, localization, step_size)
        contraction = np.eye(len(lagged)) - step_size / 2 * self.precision(n_beta, localization)
        autocovariance = np.empty(draws)
        for lag in range(draws):
            g = 2 * self.gain(lagged)
            autocovariance[lag] = np.sum(self.residuals**2 * g + g * g / 2)
            lagged = contraction @ lagged
        fade = 1 - np.arange(1, draws) / draws
        of_mean = (autocovariance[0] + 2 * fade @ autocovariance[1:]) / draws
        ess = autocovariance[0] / of_mean
        return draws / (draws - 1) * (1 - 1 / ess), ess


def linear_regression(
    n: int = 40, scales: Sequence[float] = (2.0, 1.0, 0.5), noise: float = 1.0, seed: int = 0
) -> LinearRegression:
    """Gaussian inputs of the given scales, targets with Gaussian noise, and the solution.

    Args:
        n: samples.
        scales: standard deviation of each input; its squares are about the Hessian's eigenvalues.
        noise: standard deviation of the targets around the true line.
        seed: of all draws.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, len(scales))) * np.asarray(scales)
    y = x @ rng.normal(size=len(scales)) + noise * rng.normal(size=n)
    center = np.linalg.lstsq(x, y, rcond=None)[0]
    return LinearRegression(x, y, center, x @ center - y, x.T @ x / n)


def trace_by_chain(trace: xr.Dataset, draws: int) -> np.ndarray:
    """The estimate of tr K from the first ``draws`` of each chain alone, shape (chains,)."""
    return np.array(
        [
            float(loss_kernel(trace.isel(chain=[c], draw=slice(draws))).diagonal().sum())
            for c in range(trace.sizes["chain"])
        ]
    )


def printed_update(
    posterior: LocalPosterior, *, step_size: float, chains: int, steps: int, seed: int
) -> np.ndarray:
    r"""Eq. 7 as the paper prints it, without beta: the drift has n times the mean gradient.

    Only for erratum 2: it does not sample from Eq. 1 unless beta is 1. Full gradient, m = n.

    Returns:
        Weights after every step, shape (chains, steps, n_parameters).
    """
    generator = torch.Generator().manual_seed(seed)
    gradient = vmap(grad(posterior.mean_loss))
    w = posterior.center.expand(chains, -1).clone()
    path = []
    for _ in range(steps):
        drift = posterior.n_samples * gradient(w)
        drift += posterior.localization * (w - posterior.center)
        xi = torch.randn(w.shape, generator=generator, dtype=w.dtype)
        w = w - step_size / 2 * drift + step_size**0.5 * xi
        path.append(w)
    return torch.stack(path, 1).double().numpy()


# -- the smallest model of all -----------------------------------------------------------------


class Constant(nn.Module):
    """Predicts the same vector whatever the input; its best weights are the mean target."""

    def __init__(self, value: Tensor):
        super().__init__()
        self.value = nn.Parameter(value.clone())

    def forward(self, x: Tensor) -> Tensor:
        """The vector once an input, shape (batch, d)."""
        return self.value.expand(len(x), -1)


def constant_data(n: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs that do not matter, and targets of mean 0 and variance exactly 1 a dimension."""
    y = np.random.default_rng(seed).normal(size=(n, d))
    y = (y - y.mean(0)) / y.std(0)
    return torch.zeros(n, 1, dtype=torch.float64), torch.from_numpy(y)


# -- two weights -------------------------------------------------------------------------------


class Neuron(nn.Module):
    """One neuron, two weights, no bias: the logits of two classes are 0 and w'x."""

    def __init__(self, weight: Tensor | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2) if weight is None else weight.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (batch, 2)."""
        z = x @ self.weight
        return torch.stack([torch.zeros_like(z), z], -1)


@dataclass(frozen=True)
class TwoClasses:
    """Points in the plane in two classes, a trained neuron, and four samples with a name.

    Attributes:
        x: inputs, shape (n, 2).
        y: classes 0 and 1, shape (n,).
        model: the neuron at the minimum of the mean loss.
        named: name -> position.
    """

    x: Tensor
    y: Tensor
    model: Neuron
    named: Mapping[str, int]


def two_classes(n: int = 60, seed: int = 0) -> TwoClasses:
    """Two overlapping clouds on either side of a line through the origin.

    The first four samples are placed by hand: ``easy`` far from the line, and three close to it.
    ``hard`` and ``rival`` have the same class but lie at opposite ends of the line; ``friend``
    has the other class and lies at the rival's end.

    Args:
        n: samples, four of them the named ones.
        seed: of the others.
    """
    rng = np.random.default_rng(seed)
    classes = np.arange(n) % 2
    along = rng.normal(0, 1.5, n)
    across = np.where(classes == 1, 1, -1) * rng.normal(0.8, 0.9, n)
    along[:4], across[:4] = (0.4, -2.6, 2.0, 2.9), (2.5, 0.1, -0.3, 0.6)
    classes[:4] = (1, 1, 0, 1)
    tangent, normal = np.array([0.94, 0.34]), np.array([-0.34, 0.94])
    x = torch.from_numpy(np.outer(along, tangent) + np.outer(across, normal)).float()
    y = torch.from_numpy(classes)
    model = Neuron().double()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, tolerance_grad=1e-10)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(model(x.double()), y).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    names = ("easy", "hard", "friend", "rival")
    return TwoClasses(x, y, model.float(), {name: i for i, name in enumerate(names)})


def loss_surface(
    posterior: LocalPosterior, reach: float, points: int = 80
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """L(w) on a square around w*, for contours.

    Args:
        posterior: of a model with two weights.
        reach: half the square's side.
        points: grid points a side.

    Returns:
        First weights (points,), second weights (points,), and L, shape (points, points), rows
        along the second weight.
    """
    axis = torch.linspace(-reach, reach, points)
    first, second = axis + posterior.center[0], axis + posterior.center[1]
    grid = torch.stack(torch.meshgrid(first, second, indexing="xy"), -1).reshape(-1, 2)
    with torch.no_grad():
        loss = vmap(posterior.mean_loss)(grid)
    return first.numpy(), second.numpy(), loss.reshape(points, points).numpy()


# -- a small network ---------------------------------------------------------------------------


def moons_network(
    n: int = 256, hidden: int = 16, noise: float = 0.3, steps: int = 2000, seed: int = 0
) -> tuple[MLP, tuple[Tensor, Tensor]]:
    """A ReLU network trained to rest on two interleaved half-moons, and its data.

    Args:
        n: samples.
        hidden: width of its one hidden layer.
        noise: standard deviation around the moons; they overlap.
        steps: full-batch steps of Adam, the learning rate falling to 0 along a cosine.
        seed: of data and initial weights; the global random state is left alone.
    """
    x, y = make_moons(n, noise=noise, random_state=seed)
    x, y = torch.from_numpy(x).float(), torch.from_numpy(y)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MLP((hidden,), in_features=2, out_features=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(x), y).mean().backward()
        optimizer.step()
        schedule.step()
    return model.eval(), (x, y)


def largest_curvature(posterior: LocalPosterior) -> float:
    """Largest eigenvalue of the Hessian of L at w*, built whole: for small models."""
    return float(np.linalg.eigvalsh(hessian(posterior))[-1])


__all__ = [
    "Constant",
    "LinearRegression",
    "Neuron",
    "TwoClasses",
    "constant_data",
    "exact_claim",
    "largest_curvature",
    "linear_regression",
    "loss_surface",
    "mean_and_error",
    "moons_network",
    "path",
    "printed_update",
    "source",
    "trace_by_chain",
    "two_classes",
    "with_error",
]
