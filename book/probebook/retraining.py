r"""What influence must predict: expansions without sampling error, singular models, retraining.

For chapter 07. Three kinds of truth stand behind it. The kernel of a model with two or three
weights comes from a lattice (:mod:`probebook.quadrature`), exact to rounding. Two singular models
have kernels in closed form or from a two-dimensional integral. And a small network is trained again
without each of its samples.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.stats import rankdata
from scipy.stats import t as student
from torch import Tensor, nn
from torch.func import grad, jacrev
from torch.nn.utils import vector_to_parameters

from probebook.quadrature import losses_around, weighted_covariance
from probebook.toys import Neuron
from probelib import LocalPosterior, cross_entropy
from probelib.influence import hessian, laplace_covariance, per_sample_gradients
from probelib.posterior import PerSampleLoss

Data = tuple[Tensor, Tensor]


# -- training to rest --------------------------------------------------------------------------


def with_weights(model: nn.Module, weights: Tensor) -> nn.Module:
    """A copy of ``model`` in float64 with these flat weights, shape (n_parameters,)."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        vector_to_parameters(weights.detach().double().clone(), model.double().parameters())
    return model


def train_to_rest(
    model: nn.Module,
    loss: PerSampleLoss,
    data: Data,
    start: Tensor | None = None,
    left_out: int | None = None,
) -> tuple[Tensor, float]:
    r"""Minimise the mean loss to rounding, in float64.

    SciPy's L-BFGS leads to the neighbourhood, its trust-region Newton method (exact Hessian) into
    a minimum, and a few full Newton steps to rounding.

    Args:
        model: in float64; gives the form of the network, and the start.
        loss: of single samples.
        data: inputs (n, ...) and targets.
        start: flat weights to start from, shape (n_parameters,); default: the model's.
        left_out: position of a sample to train without.

    Returns:
        Flat weights, shape (n_parameters,), and the norm of the gradient there.
    """
    plain = LocalPosterior(model, loss, data, n_beta=1.0, localization=1.0)
    x, y = data
    share = torch.full((len(x),), 1 / len(x), dtype=torch.float64)
    if left_out is not None:
        share[left_out] = 0
    objective = lambda w: share @ plain.losses(w, x, y)  # noqa: E731
    slope, curvature = grad(objective), jacrev(grad(objective))

    def numbers(function: Callable[[Tensor], Tensor]) -> Callable[[np.ndarray], np.ndarray]:
        return lambda w: function(torch.from_numpy(w)).detach().numpy()

    at = (plain.center if start is None else start).numpy().copy()
    value = numbers(objective)
    near = minimize(
        lambda w: float(value(w)), at, jac=numbers(slope), method="L-BFGS-B",
        options={"maxiter": 500, "gtol": 1e-5},
    )  # fmt: skip
    rest = minimize(
        lambda w: float(value(w)), near.x, jac=numbers(slope), hess=numbers(curvature),
        method="trust-exact", options={"maxiter": 150, "gtol": 1e-7},
    )  # fmt: skip
    w = torch.from_numpy(rest.x)
    for _ in range(3):
        step = torch.linalg.lstsq(curvature(w), slope(w)[:, None]).solution[:, 0]
        if slope(w - step).norm() >= slope(w).norm():
            break
        w = w - step
    return w.detach(), float(slope(w).norm())


# -- the Laplace regime ------------------------------------------------------------------------


def overlapping_classes(n: int = 40, seed: int = 0) -> tuple[Neuron, Data]:
    """Logistic regression at its minimum: two overlapping clouds in the plane, three weights.

    Args:
        n: samples.
        seed: of the inputs and classes.

    Returns:
        A neuron over (x_1, x_2, 1) at the minimum of its mean loss, in float64, and the data.
    """
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = rng.normal(size=(n, 2)) + np.outer(2 * y - 1, [0.6, 0.3])
    data = torch.from_numpy(np.c_[x, np.ones(n)]), torch.from_numpy(y)
    neuron = Neuron(torch.zeros(3, dtype=torch.float64))
    w, _ = train_to_rest(neuron, cross_entropy, data)
    return Neuron(w), data


def gaussian_draws(posterior: LocalPosterior, draws: int, seed: int) -> np.ndarray:
    """K from independent draws of N(w*, S), by the pooled estimator: shape (n, n).

    The same ``seed`` gives the same standard normals whatever nb is, so that what differs between
    two nb is not chance.
    """
    z = np.random.default_rng(seed).normal(size=(draws, posterior.n_parameters))
    moves = z @ np.linalg.cholesky(laplace_covariance(posterior)).T
    return np.cov(losses_around(posterior, moves)[0], rowvar=False)


def importance_kernel(posterior: LocalPosterior, draws: int, seed: int) -> tuple[np.ndarray, float]:
    """K under Eq. 1 without a chain: draws of a Gaussian, weighted by the ratio of the densities.

    The proposal is N(w*, 1.3 S), a little wider than the Laplace approximation. Only as good as the
    share of the draws that carries the weight.

    Returns:
        K, shape (n, n), nats squared; and the effective share of the draws, in (0, 1].
    """
    wide = 1.3
    z = np.random.default_rng(seed).normal(size=(draws, posterior.n_parameters)) * wide**0.5
    moves = z @ np.linalg.cholesky(laplace_covariance(posterior)).T
    losses, at_center = losses_around(posterior, moves)
    change = losses - at_center
    log = -posterior.n_beta * change.mean(1) - posterior.localization / 2 * (moves**2).sum(1)
    log += (z**2).sum(1) / 2 / wide
    mass = np.exp(log - log.max())
    mass /= mass.sum()
    return weighted_covariance(change, mass), float(1 / (mass**2).sum() / draws)


def relative_error(found: np.ndarray, truth: np.ndarray) -> float:
    """Frobenius norm of the difference over that of the truth."""
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def order(n_beta: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """The power of 1/nb with which errors fall, and the half-width of its 95 % interval.

    Args:
        n_beta: shape (k,).
        errors: one row a data set, shape (m, k); each row gives a slope on log axes.

    Returns:
        The mean slope, and Student's t quantile times its standard error over the data sets.
    """
    slopes = -np.polyfit(np.log(n_beta), np.log(errors).T, 1)[0]
    error = slopes.std(ddof=1) / np.sqrt(len(slopes))
    return float(slopes.mean()), float(student.ppf(0.975, len(slopes) - 1) * error)


# -- singular models ---------------------------------------------------------------------------


class Redundant(nn.Module):
    """Linear regression that writes each weight as a sum of two: w = u + v.

    Args:
        weight: w, shape (d,); each of the two parts starts with half of it.
    """

    def __init__(self, weight: Tensor):
        super().__init__()
        self.u, self.v = nn.Parameter(weight / 2), nn.Parameter(weight / 2)

    def forward(self, x: Tensor) -> Tensor:
        """Predictions, shape (batch, 1)."""
        return x @ (self.u + self.v)[:, None]


class Product(nn.Module):
    """A line through the origin whose slope is a product, y = a b x: the smallest deep network."""

    def __init__(self, a: float, b: float):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (a, b))

    def forward(self, x: Tensor) -> Tensor:
        """Predictions, shape (batch,)."""
        return self.a * self.b * x


def level_line(n: int = 40, slope: float = 0.0, noise: float = 1.0, seed: int = 0) -> Data:
    """Targets around a line through the origin whose least-squares slope is exactly ``slope``."""
    rng = np.random.default_rng(seed)
    x, e = rng.normal(size=(2, n))
    e = e - x * (x @ e) / (x @ x)
    return torch.from_numpy(x), torch.from_numpy(slope * x + noise * e)


def product_kernel(
    data: Data, a: float, b: float, n_beta: float, localization: float, points: int = 1501
) -> np.ndarray:
    r"""K of :class:`Product` by integration: shape (n, n), nats squared.

    A loss depends on the weights only through the slope's change
    :math:`\delta = ab - a^* b^*`:
    :math:`\Delta\ell_i = r_i x_i \delta + \frac12 x_i^2 \delta^2`. So K
    needs the covariance of :math:`(\delta, \delta^2)` alone, integrals over (a, b).

    Args:
        data: x and y, shape (n,) each.
        a, b: the trained weights.
        n_beta, localization: of Eq. 1.
        points: grid points an axis; the grid reaches 8 localization lengths either way.
    """
    x, y = (v.numpy() for v in data)
    residuals = a * b * x - y
    axis = np.linspace(-8, 8, points) / np.sqrt(localization)
    delta = np.multiply.outer(a + axis, b + axis) - a * b
    rise = (residuals @ x / len(x)) * delta + (x @ x / len(x)) / 2 * delta**2
    log = -n_beta * rise - localization / 2 * np.add.outer(axis**2, axis**2)
    mass = np.exp(log - log.max()).ravel()
    powers = np.c_[delta.ravel(), delta.ravel() ** 2]
    features = np.c_[residuals * x, x**2 / 2]
    return features @ weighted_covariance(powers, mass / mass.sum()) @ features.T


def line_without_each(data: Data) -> np.ndarray:
    """Loss changes when each sample is left out of a line's least squares: (removed, query)."""
    x, y = (v.numpy() for v in data)
    slope = x @ y / (x @ x)
    without = (x @ y - x * y) / (x @ x - x**2)
    loss = lambda s: (np.multiply.outer(s, x) - y) ** 2 / 2  # noqa: E731
    return loss(without) - loss(np.array(slope))


def influence_path(posterior: LocalPosterior, dampings: np.ndarray) -> Iterator[np.ndarray]:
    """The classical influence at many dampings, with one eigendecomposition.

    A damping that comes near minus an eigenvalue gives what it gives: nothing is refused.
    """
    values, vectors = np.linalg.eigh(hessian(posterior))
    turned = per_sample_gradients(posterior).astype(np.float64) @ vectors
    for damping in dampings:
        yield -(turned / (values + damping)) @ turned.T


# -- retraining --------------------------------------------------------------------------------


def taught_surface(
    n: int = 120, hidden: int = 3, noise: float = 0.3, seed: int = 0
) -> tuple[nn.Module, Data]:
    """A tanh network with well separated units, and noisy samples of the surface it draws.

    A student of the same size has a regular minimum near this teacher. Without a teacher, small
    networks on noisy data run to weights without bound, and there is no minimum to leave.

    Args:
        n: samples, uniform on the square from -2 to 2.
        hidden: units.
        noise: standard deviation of the targets around the surface.
        seed: of the samples.

    Returns:
        The teacher, and inputs (n, 2) with targets (n, 1), in float64.
    """
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.uniform(-2, 2, size=(n, 2)))
    teacher, angle = tanh_network(hidden, 0), np.pi * np.arange(hidden) / hidden
    first, last = teacher[0], teacher[2]
    with torch.no_grad():
        first.weight[:] = torch.from_numpy(1.5 * np.c_[np.cos(angle), np.sin(angle)])
        first.bias[:] = torch.linspace(-0.5, 0.5, hidden)
        last.weight[0] = torch.from_numpy(1.5 * (-1.0) ** np.arange(hidden))
        last.bias.zero_()
        y = teacher(x) + noise * torch.from_numpy(rng.normal(size=(n, 1)))
    return teacher, (x, y)


def tanh_network(hidden: int, seed: int) -> nn.Module:
    """Two inputs, one hidden layer of tanh, one output, float64; the global state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 1)).double()


@dataclass(frozen=True)
class Removals:
    """A network trained again without each of some samples.

    Attributes:
        removed: positions of the samples left out, shape (m,).
        changes: l_j(w_-i) - l_j(w*), shape (m, n): rows the removed i, columns the queries j.
        distance: |w_-i - w*|, shape (m,).
        slope: largest norm of a gradient at the end of a training.
    """

    removed: np.ndarray
    changes: np.ndarray
    distance: np.ndarray
    slope: float


def retrain_without(
    model: nn.Module,
    loss: PerSampleLoss,
    data: Data,
    removed: Sequence[int] | np.ndarray,
    starts: Callable[[int], Tensor] | None = None,
) -> Removals:
    """Train to rest without each of the samples ``removed``.

    Args:
        model: at w*, in float64.
        loss: of single samples.
        data: inputs and targets.
        removed: positions.
        starts: sample left out -> flat weights to start from; default: w*, a warm start.
    """
    plain = LocalPosterior(model, loss, data, n_beta=1.0, localization=1.0)
    at_center = plain.losses(plain.center, *data)
    changes, distance, slopes = [], [], []
    for i in removed:
        start = plain.center if starts is None else starts(int(i))
        w, slope = train_to_rest(model, loss, data, start, int(i))
        changes.append((plain.losses(w, *data) - at_center).detach().numpy())
        distance.append(float((w - plain.center).norm()))
        slopes.append(slope)
    return Removals(np.asarray(removed), np.array(changes), np.array(distance), max(slopes))


@dataclass(frozen=True)
class Agreement:
    """Rank correlation of a prediction with retraining, with 95 % bootstrap intervals.

    Attributes:
        pairs: Spearman over all pairs (removed, query).
        pairs_interval: its interval.
        query: mean over queries of Spearman over the removed samples.
        query_interval: its interval.
    """

    pairs: float
    pairs_interval: tuple[float, float]
    query: float
    query_interval: tuple[float, float]


def agreement(
    truth: np.ndarray, predictions: Mapping[str, np.ndarray], resamples: int = 500, seed: int = 0
) -> dict[str, Agreement]:
    """Hold predictions to retraining; the bootstrap draws queries, the same ones for each.

    Args:
        truth: loss changes, shape (removed, query).
        predictions: name -> predicted changes of the same shape.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    n = truth.shape[1]
    draws = np.random.default_rng(seed).integers(n, size=(resamples, n))

    def measures(found: np.ndarray) -> Agreement:
        by_query = _correlation(rankdata(truth, axis=0), rankdata(found, axis=0))
        pairs = [
            float(_correlation(*(rankdata(v[:, chosen].ravel()) for v in (truth, found))))
            for chosen in (np.arange(n), *draws)
        ]
        return Agreement(
            pairs[0],
            tuple(float(v) for v in np.quantile(pairs[1:], (0.025, 0.975))),
            float(by_query.mean()),
            tuple(float(v) for v in np.quantile(by_query[draws].mean(1), (0.025, 0.975))),
        )

    return {name: measures(found) for name, found in predictions.items()}


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's correlation along the first axis."""
    a, b = (v - v.mean(0) for v in (a, b))
    return (a * b).sum(0) / np.sqrt((a * a).sum(0) * (b * b).sum(0))


# -- neighbours --------------------------------------------------------------------------------


def neighbour_purity(similarity: np.ndarray, labels: np.ndarray, k: int = 10) -> np.ndarray:
    """Share of each sample's k nearest neighbours that carry its label: shape (n,).

    Args:
        similarity: shape (n, n); its diagonal does not count.
        labels: shape (n,).
        k: neighbours.
    """
    apart = similarity.astype(np.float64).copy()
    np.fill_diagonal(apart, -np.inf)
    nearest = np.argpartition(-apart, k - 1, axis=1)[:, :k]
    return (labels[nearest] == labels[:, None]).mean(1)


__all__ = [
    "Agreement",
    "Product",
    "Redundant",
    "Removals",
    "agreement",
    "gaussian_draws",
    "importance_kernel",
    "influence_path",
    "level_line",
    "line_without_each",
    "neighbour_purity",
    "order",
    "overlapping_classes",
    "product_kernel",
    "relative_error",
    "retrain_without",
    "tanh_network",
    "taught_surface",
    "train_to_rest",
    "with_weights",
]
