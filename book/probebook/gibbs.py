r"""One mean, three parametrisations: models whose posterior quadrature knows (chapter 06).

The data are n draws from :math:`\mathcal N(0, 1)`. The model is :math:`\mathcal N(u(w), 1)` with
:math:`u = w`, :math:`u = w^2` or :math:`u = ab`, so the truth is w = 0, and Eq. 10 reads

.. math::

   K_n(w) = \frac1n \sum_i \log \frac{q(y_i)}{p(y_i \mid w)} = \frac{u^2}{2} - u \bar y.

The data enter the posterior (Eq. 9) through their mean alone. The prior is the localization of
Eq. 1 around the truth, :math:`\exp[-\gamma \lVert w \rVert^2 / 2]`, so this is also probelib's
local posterior. It is a density of the single number u, and a sum over some hundred nodes gives
its moments to rounding. What the chapter needs follows from four of them:

.. math::

   G_n &= \operatorname{E}_w[K_n] = \tfrac12 \operatorname{E}[u^2] - \bar y \operatorname{E}[u],
   \qquad \operatorname{Var}_w[\ell_i] = \operatorname{Var}_w[u^2/2 - u y_i], \\
   V &= \textstyle\sum_i y_i^2 \operatorname{Var}[u] - n \bar y \operatorname{Cov}[u, u^2]
        + \tfrac n4 \operatorname{Var}[u^2].

**The regular one by hand** (u = w, and d weights give d times as much). With
:math:`A = n\beta + \gamma` the posterior is :math:`\mathcal N(n\beta \bar y / A, 1/A)`, so
:math:`G_n = \frac12 [(n\beta\bar y/A)^2 + 1/A] - n\beta \bar y^2 / A`, and with
:math:`\operatorname{E}_{\mathcal D}[\bar y^2] = 1/n`

.. math::

   \operatorname{E}_{\mathcal D}[G_n] = \frac12 \Big[ \frac{n\beta^2}{A^2} + \frac1A
   - \frac{2\beta}{A} \Big]
   \;\xrightarrow{\gamma = 0}\; \frac{1}{2n} \Big[ \frac1\beta - 1 \Big]
   = \frac{\lambda - \nu\beta}{\beta n} \quad\text{with } \lambda = \nu = \tfrac12,

which fixes every sign and factor of Eq. 12.

**The square** (:math:`u = w^2`). Flat in w means :math:`u^{-1/2}` in u. With
:math:`u = v / \sqrt n` and :math:`\xi = \sqrt n\, \bar y \sim \mathcal N(0, 1)` the posterior tends
to :math:`v^{-1/2} \exp[-\beta (v^2/2 - v \xi)]` on v > 0. Hence :math:`\lambda = 1/4`, and
:math:`\nu = \frac\beta2 \operatorname{E}_\xi \operatorname{Var}_v[v]` is an integral
(:func:`limiting_fluctuation`).

**The product** (:math:`u = ab`). :math:`\lambda = 1/2` with multiplicity 2: two Gaussian weights
give u the density :math:`K_0(\gamma |u|)` (a Bessel function), which grows like
:math:`-\log|u|` at 0. On the scale :math:`1/\sqrt n` of the posterior it flattens, but only as
:math:`1 / \log n`; the limit is that of the regular model, so :math:`\nu = 1/2`. With
:math:`v = \sqrt n\, u` and :math:`L = \frac12 \log n` the density is, to first order, flat less
:math:`\log|v| / L`, which moves the mean of :math:`n K_n` by
:math:`-\frac1L \operatorname{E}_\xi \operatorname{Cov}_v[(v - \xi)^2/2, \log|v|]`. Over data sets v
is normal of variance :math:`1 + 1/\beta`, and for a standard normal t
:math:`\operatorname{E}[(t^2 - 1) \log|t|] = 1`, so this is

.. math::

   n \operatorname{E}_{\mathcal D}[G_n] = \frac{\lambda - \nu\beta}{\beta}
   - \frac{1}{\beta (1 + \beta) \log n} + O\Big(\frac1{\log^2 n}\Big).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.special
import torch
import xarray as xr
from torch import Tensor, nn

import probelib
from probebook.chain_law import ChainLaw
from probelib.estimators import share

_REACH = 9.0  # standard deviations that quadrature looks at: exp(-81 / 2) is 3e-18
_CHUNK = 4096  # data sets at a time


@dataclass(frozen=True)
class Parametrisation:
    r"""One way to write the mean u of a unit normal in weights.

    Attributes:
        name: ``regular`` (u = w), ``square`` (u = w²) or ``product`` (u = ab).
        learning_coefficient: lambda, with the truth at u = 0.
        multiplicity: of the largest pole.
        orders: the powers of n in the expansion of n E[G_n] that :func:`fit_orders` fits, the
            constant first; empty where the expansion is in 1/log n.
    """

    name: str
    learning_coefficient: float
    multiplicity: int
    orders: tuple[float, ...]

    def nodes(self, n: int, beta: float, localization: float) -> tuple[np.ndarray, np.ndarray]:
        r"""A quadrature rule for the prior of u, dense and wide enough for every data set.

        The trapezoid rule, which is exact to rounding for a smooth integrand that vanishes at both
        ends, in a variable that makes it so: w for ``regular`` and ``square``; for ``product``,
        s with :math:`|u| = \sigma \log(1 + e^s)`, :math:`\sigma = 1/\sqrt{n\beta}`, which
        stretches the logarithmic pole at 0 to a straight line.

        Args:
            n: samples of a data set.
            beta: inverse temperature.
            localization: gamma, 0 for a flat prior (not ``product``).

        Returns:
            Values of u and logarithms of their prior weight, up to a constant: shape (q,) each.

        Raises:
            ValueError: an argument is out of its range.
        """
        if n < 1 or beta <= 0 or localization < 0:
            raise ValueError(
                f"n is {n}, beta {beta}, localization {localization}; n must be at least 1, beta "
                "positive and localization not negative"
            )
        sigma = 1 / np.sqrt(n * beta)
        largest_mean = _REACH / np.sqrt(n)
        reach = largest_mean + _REACH * sigma
        if self.name == "regular":
            w = _line(-reach, reach, sigma / 3)
            return w, -localization / 2 * w**2
        if self.name == "square":
            # Narrowest at the largest mean, where the posterior is normal around sqrt(mean).
            w = _line(0, np.sqrt(reach), sigma / np.sqrt(largest_mean) / 6)
            return w**2, -localization / 2 * w**2 + np.log(np.where(w == 0, 0.5, 1.0))
        if localization == 0:
            raise ValueError("localization is 0; a product of two weights needs a proper prior")
        s = _line(-42, reach / sigma, 0.25)
        u = sigma * np.logaddexp(0, s)
        bessel = np.log(scipy.special.k0e(localization * u)) - localization * u
        log_weight = bessel + np.log(scipy.special.expit(s))
        return np.concatenate([-u[::-1], u]), np.concatenate([log_weight[::-1], log_weight])


def _line(low: float, high: float, step: float) -> np.ndarray:
    return np.linspace(low, high, int(np.ceil((high - low) / step)) + 1)


REGULAR = Parametrisation("regular", 0.5, 1, (0.0, -1.0))
SQUARE = Parametrisation("square", 0.25, 1, (0.0, -0.5, -1.0))
PRODUCT = Parametrisation("product", 0.5, 2, ())
PARAMETRISATIONS = {p.name: p for p in (REGULAR, SQUARE, PRODUCT)}


@dataclass(frozen=True)
class DataSets:
    """Data sets of size n, by what the posterior asks of them.

    Attributes:
        n: samples of each.
        mean: their means, shape (D,).
        square: their sums of squares, shape (D,).
    """

    n: int
    mean: np.ndarray
    square: np.ndarray


def draw_data_sets(n: int, count: int, rng: np.random.Generator) -> DataSets:
    """``count`` independent data sets of n standard normals, by their sufficient statistics.

    The mean is N(0, 1/n) and the sum of squared deviations from it an independent chi-squared
    with n - 1 degrees of freedom.
    """
    mean = rng.normal(size=count) / np.sqrt(n)
    return DataSets(n, mean, rng.chisquare(n - 1, size=count) + n * mean**2)


def summarise(y: np.ndarray) -> DataSets:
    """The statistics of given data sets, shape (D, n)."""
    return DataSets(y.shape[1], y.mean(1), np.square(y).sum(1))


@dataclass(frozen=True)
class Moments:
    """What the posterior of each data set says about u: shape (D,) each."""

    mean: np.ndarray  # E[u]
    square: np.ndarray  # E[u²]
    variance: np.ndarray  # Var[u]
    covariance: np.ndarray  # Cov[u, u²]
    variance_of_square: np.ndarray  # Var[u²]

    @classmethod
    def of_powers(cls, e: np.ndarray) -> Moments:
        """From E[u], E[u²], E[u³] and E[u⁴], shape (D, 4)."""
        one, two, three, four = e.T
        return cls(one, two, two - one**2, three - one * two, four - two**2)

    def gibbs(self, data: DataSets) -> np.ndarray:
        """G_n = E_w[K_n] (Eq. 11), shape (D,), nats."""
        return self.square / 2 - data.mean * self.mean

    def empirical_variance(self, data: DataSets) -> np.ndarray:
        """V, the sum of the per-sample loss variances (Eq. 13), shape (D,), nats²."""
        return (
            data.square * self.variance
            - data.n * data.mean * self.covariance
            + data.n / 4 * self.variance_of_square
        )


def moments(model: Parametrisation, data: DataSets, beta: float, localization: float) -> Moments:
    """The posterior moments of u for every data set, by quadrature."""
    u, log_weight = model.nodes(data.n, beta, localization)
    powers = u[:, None] ** np.arange(1, 5)
    e = np.concatenate(
        [
            _mass(u, log_weight, data.n * beta, data.mean[at : at + _CHUNK]) @ powers
            for at in range(0, len(data.mean), _CHUNK)
        ]
    )
    return Moments.of_powers(e)


def _mass(u: np.ndarray, log_weight: np.ndarray, n_beta: float, mean: np.ndarray) -> np.ndarray:
    """Posterior weights of the nodes, a row a data set: (D, q)."""
    log_mass = n_beta * (np.outer(mean, u) - u**2 / 2) + log_weight
    mass = np.exp(log_mass - log_mass.max(1, keepdims=True))
    return mass / mass.sum(1, keepdims=True)


# -- the expectation over data sets ------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """Expectations over data sets, without sampling error.

    Attributes:
        gibbs: E[G_n], nats.
        fluctuation: (beta / 2) E[V].
        deviation: root mean square of (beta / 2) V - nu over single data sets, for the limit nu.
    """

    gibbs: float
    fluctuation: float
    deviation: float


def expected(model: Parametrisation, n: int, beta: float, localization: float) -> Expected:
    r"""E over data sets of G_n and V, the mean :math:`\bar y` by the trapezoid rule.

    Given the mean, the sum of squares is :math:`n\bar y^2 + \chi^2_{n-1}`, of which V is a linear
    function: its two moments need no quadrature.
    """
    xi, weight = _normal_nodes()
    mean = xi / np.sqrt(n)
    data = DataSets(n, mean, n * mean**2 + n - 1)  # the sum of squares at its mean
    m = moments(model, data, beta, localization)
    fluctuation = beta / 2 * m.empirical_variance(data)
    noise = (beta / 2 * m.variance) ** 2 * 2 * (n - 1)
    nu = limiting_fluctuation(model, beta)
    return Expected(
        float(weight @ m.gibbs(data)),
        float(weight @ fluctuation),
        float(np.sqrt(weight @ ((fluctuation - nu) ** 2 + noise))),
    )


def limiting_fluctuation(model: Parametrisation, beta: float) -> float:
    r"""nu (Eq. 14), the limit of (beta / 2) E[V] for n to infinity.

    In the limit V is :math:`\operatorname{Var}_v[v]` under
    :math:`\varphi(v) \exp[-\beta(v^2/2 - v\xi)]`: with :math:`\varphi` flat for ``regular`` and
    ``product``, so that nu = 1/2; with :math:`\varphi = v^{-1/2}` for ``square``.
    """
    if model.name != "square":
        return 0.5
    xi, weight = _normal_nodes()
    limit = moments(model, DataSets(1, xi, xi**2), beta, 0.0)
    return float(beta / 2 * weight @ limit.variance)


def limiting_gibbs(model: Parametrisation, beta: float) -> float:
    """The slope that Eq. 12 predicts: n E[G_n] -> (lambda - nu beta) / beta."""
    return model.learning_coefficient / beta - limiting_fluctuation(model, beta)


def _normal_nodes(reach: float = 8.5, step: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    x = _line(-reach, reach, step)
    weight = np.exp(-(x**2) / 2)
    return x, weight / weight.sum()


def fit_orders(
    n: np.ndarray, values: np.ndarray, errors: np.ndarray, orders: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted least squares of values on powers of n.

    Args:
        n: shape (k,).
        values, errors: independent measurements and their standard errors, shape (k,).
        orders: exponents, at most k.

    Returns:
        The coefficients and their standard errors, shape (len(orders),) each.
    """
    design = np.asarray(n, float)[:, None] ** np.asarray(orders) / errors[:, None]
    covariance = np.linalg.inv(design.T @ design)
    return covariance @ design.T @ (values / errors), np.sqrt(np.diag(covariance))


@dataclass(frozen=True)
class Slope:
    """The coefficient of 1/n in the mean Gibbs training error.

    Attributes:
        value, error: as fitted, and its standard error.
        bias: what the fit makes of the exact curve, less the prediction: the orders left out.
        predicted: (lambda - nu beta) / beta, by Eq. 12.
        nu: the singular fluctuation that went into the prediction.
    """

    value: float
    error: float
    bias: float
    predicted: float
    nu: float


def gibbs_slope(
    model: Parametrisation,
    n: np.ndarray,
    values: np.ndarray,
    errors: np.ndarray,
    beta: float,
    localization: float,
) -> Slope:
    """Fit the slope of Eq. 12 to measured means, without use of lambda or nu.

    Args:
        model: one whose remainder is in powers of n (``regular`` or ``square``).
        n: sizes of the data sets, shape (k,).
        values, errors: mean of n G_n at each size and its standard error, shape (k,).
        beta, localization: of the posterior.

    Raises:
        ValueError: the remainder is not in powers of n.
    """
    if not model.orders:
        raise ValueError(
            f"model is {model.name!r}, whose remainder is in 1/log n; choose 'regular' or 'square'"
        )
    exact = np.array([size * expected(model, int(size), beta, localization).gibbs for size in n])
    value, error = (c[0] for c in fit_orders(n, values, errors, model.orders))
    predicted = limiting_gibbs(model, beta)
    bias = fit_orders(n, exact, errors, model.orders)[0][0] - predicted
    return Slope(value, error, bias, predicted, limiting_fluctuation(model, beta))


def decay_exponent(n: np.ndarray, squares: np.ndarray) -> tuple[float, float]:
    """The exponent with which a root mean square falls with n, and its standard error.

    Args:
        n: sizes, shape (k,).
        squares: squared errors of D data sets at each size, shape (k, D).
    """
    mean = squares.mean(1)
    # The relative error of a root is half that of the mean under it.
    relative = squares.std(1, ddof=1) / mean / np.sqrt(squares.shape[1]) / 2
    design = np.stack([np.log(n), np.ones(len(n))], 1) / relative[:, None]
    covariance = np.linalg.inv(design.T @ design)
    fit = covariance @ design.T @ (np.log(mean) / 2 / relative)
    return float(fit[0]), float(np.sqrt(covariance[0, 0]))


# -- WAIC --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """The predictive distribution held to data; losses less those of the truth, nats a sample.

    Attributes:
        training: -(1/n) sum_i log E_w[p(y_i|w) / q(y_i)].
        generalization: the same on a new sample, in expectation over it.
        correction: beta V / n, the functional variance.
    """

    training: np.ndarray
    generalization: np.ndarray
    correction: np.ndarray

    @property
    def waic(self) -> np.ndarray:
        """Training loss plus functional variance (Watanabe's WAIC at this beta)."""
        return self.training + self.correction


def predict(model: Parametrisation, y: np.ndarray, beta: float, localization: float) -> Prediction:
    """Training loss, generalization loss and functional variance of given data sets.

    Args:
        model: the parametrisation.
        y: data sets, shape (D, n).
        beta, localization: of the posterior.

    Returns:
        Arrays of shape (D,). The generalization loss is exact: quadrature over the new sample.
    """
    data = summarise(y)
    u, log_weight = model.nodes(data.n, beta, localization)
    new, weight = _normal_nodes()
    at_new = np.exp(np.outer(u, new) - u[:, None] ** 2 / 2)
    training, generalization = np.empty(len(y)), np.empty(len(y))
    for d, own in enumerate(y):
        mass = _mass(u, log_weight, data.n * beta, data.mean[d : d + 1])[0]
        training[d] = -np.log(mass @ np.exp(np.outer(u, own) - u[:, None] ** 2 / 2)).mean()
        generalization[d] = -np.log(mass @ at_new) @ weight
    variance = moments(model, data, beta, localization).empirical_variance(data)
    return Prediction(training, generalization, beta * variance / data.n)


def expected_prediction(
    model: Parametrisation, n: int, beta: float, localization: float
) -> Prediction:
    r"""The expectation of :func:`predict` over data sets, without sampling error.

    By exchangeability :math:`\operatorname{E}[T_n] = -\operatorname{E}[\log \operatorname{E}_w
    p(y_1 \mid w) / q(y_1)]`, and given the mean, :math:`y_1 \sim \mathcal N(\bar y, 1 - 1/n)`: two
    nested quadratures.

    Args:
        n: samples, 2 or more.
    """
    xi, of_xi = _normal_nodes()
    z, of_z = _normal_nodes()
    u, log_weight = model.nodes(n, beta, localization)
    mean = xi / np.sqrt(n)
    mass = _mass(u, log_weight, n * beta, mean)
    spread = np.sqrt(1 - 1 / n)
    own = (mass * np.exp(np.outer(mean, u))) @ np.exp(spread * np.outer(u, z) - u[:, None] ** 2 / 2)
    new = mass @ np.exp(np.outer(u, z) - u[:, None] ** 2 / 2)
    return Prediction(
        np.array(-of_xi @ np.log(own) @ of_z),
        np.array(-of_xi @ np.log(new) @ of_z),
        np.array(2 / n * expected(model, n, beta, localization).fluctuation),
    )


def trace_waic(trace: xr.Dataset, beta: float) -> Prediction:
    r"""WAIC of a trace, its losses taken as negative log-likelihoods.

    :math:`-\frac1n \sum_i \log \operatorname{E}_w[e^{-\ell_i(w)}] + \frac\beta n \sum_i K_{ii}`,
    with the variances of Eq. 5 (ddof 1; ArviZ's ``p_waic`` divides by S instead of S - 1), which
    :func:`probelib.empirical_variance` corrects for autocorrelated draws and ArviZ does not.

    Args:
        trace: from :func:`probelib.sample`.
        beta: inverse temperature of the posterior.

    Returns:
        Losses in nats a sample, not less any truth's; ``generalization`` is NaN.
    """
    size, draws = trace.sizes["sample"], trace.sizes["chain"] * trace.sizes["draw"]
    variance = float(probelib.loss_kernel(trace).diagonal().sum())
    total = 0.0
    for start in range(0, size, _CHUNK):
        loss = trace.loss[:, :, start : start + _CHUNK].values.astype(np.float64)
        total += scipy.special.logsumexp(-loss, axis=(0, 1)).sum()
    return Prediction(
        np.array(np.log(draws) - total / size), np.array(np.nan), np.array(beta * variance / size)
    )


# -- the same posteriors through SGLD ----------------------------------------------------------


class Means(nn.Module):
    """D means at once, each with a weight of its own: f(x) = x * w^power, all at w* = 0.

    The loss is a sum over the D coordinates, so the local posterior is a product of D posteriors,
    one a data set, and a single call samples them all.
    """

    def __init__(self, count: int, power: int):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(count, dtype=torch.float64))
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        """Predictions, shape (batch, D)."""
        return x * self.w**self.power


def local_posteriors(
    model: Parametrisation, y: np.ndarray, beta: float, localization: float
) -> tuple[probelib.LocalPosterior, tuple[Tensor, Tensor]]:
    """The posteriors of several data sets as one, and the samples to observe.

    Observed sample d n + i is sample i of data set d alone: its input switches the other
    coordinates off.

    Args:
        model: ``regular`` or ``square``.
        y: data sets, shape (D, n).
        beta, localization: of each posterior.

    Returns:
        The posterior, D weights around 0, and observed (inputs, targets), (D n, D) each.

    Raises:
        ValueError: the parametrisation has more than one weight.
    """
    if model.name not in ("regular", "square"):
        raise ValueError(f"model is {model.name!r}; choose 'regular' or 'square', of one weight")
    count, n = y.shape
    targets = torch.from_numpy(y)
    posterior = probelib.LocalPosterior(
        Means(count, 1 if model.name == "regular" else 2),
        probelib.squared_error,
        (torch.ones(n, count, dtype=torch.float64), targets.T.contiguous()),
        n_beta=n * beta,
        localization=localization,
    )
    switch = torch.eye(count, dtype=torch.float64).repeat_interleave(n, 0)
    return posterior, (switch, switch * targets.reshape(-1, 1))


def by_data_set(trace: xr.Dataset, count: int) -> list[xr.Dataset]:
    """A trace of :func:`local_posteriors`, cut into one a data set."""
    n = trace.sizes["sample"] // count
    return [trace.isel(sample=slice(d * n, (d + 1) * n)) for d in range(count)]


def chain_moments(
    model: Parametrisation,
    data: DataSets,
    beta: float,
    localization: float,
    step_size: float,
) -> Moments:
    r"""Moments of u under the exact stationary law of the *discretised* chain, full gradient.

    From :class:`probebook.chain_law.ChainLaw`, around the point about which the chain is
    symmetric: the posterior's mean for ``regular``, w = 0 for ``square``. What SGLD must hit, bias
    of the step size included.

    Args:
        model: ``regular`` or ``square``.
        data: the data sets.
        beta, localization: of the posterior.
        step_size: epsilon.

    Returns:
        Moments of shape (D,).

    Raises:
        ValueError: the parametrisation has more than one weight.
    """
    if model.name not in ("regular", "square"):
        raise ValueError(f"model is {model.name!r}; choose 'regular' or 'square', of one weight")
    n_beta, power = data.n * beta, 1 if model.name == "regular" else 2
    u, _ = model.nodes(data.n, beta, localization)
    reach = 1.1 * np.abs(u).max() ** (1 / power)
    result = []
    for mean in data.mean:
        center = n_beta * mean / (n_beta + localization) if power == 1 else 0.0

        def gradient(away: np.ndarray, mean: float = mean, center: float = center) -> np.ndarray:
            w = center + away
            return n_beta * (w**power - mean) * power * w ** (power - 1) + localization * w

        chain = ChainLaw(gradient, reach, 1, step_size)
        w = center + chain.weights[0]
        energy = n_beta * (w**power - mean) ** 2 / 2 + localization / 2 * w**2
        law, _ = chain.stationary(np.exp(energy.min() - energy))
        both = np.concatenate([w, center - chain.weights[0]])
        powers = both[:, None] ** (power * np.arange(1, 5))
        result.append(np.tile(law / 2, 2) @ powers)
    return Moments.of_powers(np.array(result))


# -- shares of a trace by group ----------------------------------------------------------------


@dataclass(frozen=True)
class Shares:
    """What each group of samples holds of two sums, with Monte-Carlo standard errors.

    Attributes:
        groups: their labels, shape (g,).
        size: share of the samples, shape (g,).
        llc, llc_mcse: share of the LLC, that is of the sum of the loss gains, shape (g,).
        variance, variance_mcse: share of V, the sum of the loss variances, shape (g,).
    """

    groups: np.ndarray
    size: np.ndarray
    llc: np.ndarray
    llc_mcse: np.ndarray
    variance: np.ndarray
    variance_mcse: np.ndarray


def shares(trace: xr.Dataset, group: np.ndarray) -> Shares:
    r"""Split LLC and V by group of samples.

    The error of a share is that of :func:`probelib.estimators.share`.

    Args:
        trace: from :func:`probelib.sample`.
        group: a label a sample, shape (n,).

    Raises:
        ValueError: not one label a sample.
    """
    group = np.asarray(group)
    if group.shape != (trace.sizes["sample"],):
        raise ValueError(
            f"group has shape {group.shape}, the trace {trace.sizes['sample']} samples; give one "
            "label a sample"
        )
    labels, at = np.unique(group, return_inverse=True)
    member = np.eye(len(labels))[at]
    change = np.zeros((trace.sizes["chain"], trace.sizes["draw"], len(labels)))
    square = np.zeros_like(change)
    for start in range(0, len(group), _CHUNK):
        block = slice(start, start + _CHUNK)
        loss = trace.loss[:, :, block].values.astype(np.float64)
        change += (loss - trace.init_loss[block].values) @ member[block]
        square += np.square(loss - loss.mean((0, 1))) @ member[block]
    return Shares(labels, member.mean(0), *_ratio(change), *_ratio(square))


def _ratio(parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of each part (chain, draw, g) in their sum, and its Monte-Carlo standard error."""
    total = parts.sum(-1)
    found = [share(parts[..., g], total) for g in range(parts.shape[-1])]
    return np.array([e.value for e in found]), np.array([e.mcse for e in found])


__all__ = [
    "PARAMETRISATIONS",
    "PRODUCT",
    "REGULAR",
    "SQUARE",
    "DataSets",
    "Expected",
    "Means",
    "Moments",
    "Parametrisation",
    "Prediction",
    "Shares",
    "Slope",
    "by_data_set",
    "chain_moments",
    "decay_exponent",
    "draw_data_sets",
    "expected",
    "expected_prediction",
    "fit_orders",
    "gibbs_slope",
    "limiting_fluctuation",
    "limiting_gibbs",
    "local_posteriors",
    "moments",
    "predict",
    "shares",
    "summarise",
    "trace_waic",
]
