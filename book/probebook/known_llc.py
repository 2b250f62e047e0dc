r"""Models whose LLC is known, and the LLC taken apart (chapter 05).

The truth that SGLD must meet is not the learning coefficient :math:`\lambda`, a limit, but

.. math::

   \hat\lambda(n\beta, \gamma, \epsilon) = n\beta\, \operatorname{E}[L(w) - L(w^*)]

under the law of the discretised chain at the :math:`n\beta`, :math:`\gamma` and
:math:`\epsilon` that were used. For :math:`\epsilon \to 0` that is Eq. 1, which is integrated
here; the bias of a finite :math:`\epsilon` is found from the chain's transition operator, or to
first order from Eq. 1 (:class:`Law`).
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from scipy.optimize import brentq
from scipy.stats import norm
from torch import Tensor, nn

import probelib
from probebook import toys
from probebook.chain_law import ChainLaw
from probebook.chapter import Claim
from probelib import LocalPosterior
from probelib.estimators import Estimate, share

# -- the models --------------------------------------------------------------------------------


class Monomial(nn.Module):
    r"""Predicts :math:`x \prod_i w_i^{k_i}`, with w* = 0.

    With targets 0 and inputs of mean square 1 the mean squared error is
    :math:`L = \frac12 \prod_i w_i^{2 k_i}`, a normal crossing.

    Args:
        exponents: k_i, whole numbers from 1.
    """

    def __init__(self, exponents: Sequence[int]):
        super().__init__()
        self.exponents = tuple(_whole("exponents", k) for k in exponents)
        self.weight = nn.Parameter(torch.zeros(len(self.exponents), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Predictions, shape (batch, 1), for inputs of that shape."""
        product = 1.0
        for w, k in zip(self.weight, self.exponents, strict=True):
            product = product * w**k
        return x * product


class Mixed(nn.Module):
    r"""Predicts :math:`(x w_1, x w_2^2)`: one stiff direction and one that is flat at w* = 0.

    :math:`L = \frac12 w_1^2 + \frac12 w_2^4`, whose learning coefficient is 1/2 + 1/4.
    """

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Predictions, shape (batch, 2), for inputs of shape (batch, 1)."""
        return x * torch.stack([self.weight[0], self.weight[1] ** 2])


class ReducedRank(nn.Module):
    r"""Two linear layers, :math:`f(x) = B A x`, at a true map of the given rank.

    w* has the identity in the upper left r x r corners of A and B and zeros elsewhere: the
    deepest singularity of its fibre, where both factors have rank r.

    Args:
        inputs, hidden, outputs: M, H, N; A is (H, M), B is (N, H).
        rank: r, from 0 to the smallest of the three.

    Raises:
        ValueError: a rank that two such layers do not have.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, rank: int):
        super().__init__()
        self.shape = _reduced_rank(inputs, hidden, outputs, rank)
        a, b = (torch.zeros(s, dtype=torch.float64) for s in ((hidden, inputs), (outputs, hidden)))
        a[range(rank), range(rank)] = 1.0
        b[range(rank), range(rank)] = 1.0
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def forward(self, x: Tensor) -> Tensor:
        """Predictions, shape (batch, outputs), for inputs (batch, inputs)."""
        return x @ self.a.T @ self.b.T


def local(model: nn.Module, n_beta: float, localization: float) -> LocalPosterior:
    """The local posterior of one of the models above, on noiseless data.

    The inputs' empirical covariance is exactly the identity, so that L is the population loss,
    and the targets are the model's own predictions at w*, so that every loss at w* is 0.
    """
    width = model.shape[0] if isinstance(model, ReducedRank) else 1
    x = width**0.5 * torch.eye(width, dtype=torch.float64)
    with torch.no_grad():
        y = model(x)
    return LocalPosterior(
        model, probelib.squared_error, (x, y), n_beta=n_beta, localization=localization
    )


# -- learning coefficients: the limits ---------------------------------------------------------


def monomial_coefficient(exponents: Sequence[int]) -> tuple[float, int]:
    r"""Learning coefficient of :math:`\prod_i w_i^{2 k_i}` at 0, and its multiplicity.

    :math:`\lambda = \min_i 1 / (2 k_i)`, and m the number of i that attain it: the largest pole
    of :math:`\int \prod_i |w_i|^{2 k_i z} dw`, and its order.
    """
    largest = max(_whole("exponents", k) for k in exponents)
    return 1 / (2 * largest), list(exponents).count(largest)


def reduced_rank_coefficient(
    inputs: int, hidden: int, outputs: int, rank: int
) -> tuple[float, int]:
    """Learning coefficient of reduced-rank regression, and its multiplicity.

    The closed form of Aoyagi and Watanabe (2005), case by case.

    Args:
        inputs, hidden, outputs: M, H, N.
        rank: r of the true map.

    Raises:
        ValueError: a rank that two such layers do not have.
    """
    m, h, n, r = _reduced_rank(inputs, hidden, outputs, rank)
    if m + h < n + r:
        return (h * m - h * r + n * r) / 2, 1
    if n + h < m + r:
        return (h * n - h * r + m * r) / 2, 1
    if m + n < h + r:
        return m * n / 2, 1
    odd = (m + h + n + r) % 2
    eighths = 2 * (h + r) * (m + n) + 2 * m * n - (h + r) ** 2 - m**2 - n**2 + odd
    return eighths / 8, 1 + odd


# -- Eq. 1 at finite n beta and gamma ----------------------------------------------------------


@dataclass(frozen=True)
class Law:
    r"""What Eq. 1 says about a model, and what a small step adds.

    The Euler step with drift :math:`-\frac\epsilon2 \nabla U` has, to first order in
    :math:`\epsilon`, the stationary density

    .. math::

       e^{-U} \Big[1 + \frac\epsilon2 f\Big], \qquad
       f = \frac14 \lVert\nabla U\rVert^2 - \frac12 \Delta U + \text{const},

    so that :math:`\hat\lambda` moves by :math:`\epsilon` times the ``slope``
    :math:`\frac12 n\beta \operatorname{Cov}[L, f]`.

    Attributes:
        llc: nb (E[L] - L(w*)) at step size 0.
        slope: its derivative with respect to epsilon, at 0.
        held: gamma E|w - w*|²: how many directions the leash holds, of d in all. Since
            E[(w - w*)' grad U] = d, what the data hold is the rest.
        llc_se, slope_se: standard errors, where the integral was done by Monte Carlo.
    """

    llc: float
    slope: float
    held: float
    llc_se: float = 0.0
    slope_se: float = 0.0


def monomial_law(
    exponents: Sequence[int],
    n_beta: float,
    localization: float,
    volumes: Sequence[int] | None = None,
) -> Law:
    r"""Eq. 1 for :class:`Monomial`, by the trapezoid rule in :math:`u_i = \log w_i`.

    In u the integrand falls off doubly exponentially above and like :math:`e^{u}` below, which
    the rule integrates to near rounding however thin the ridges along the axes are.

    Args:
        exponents: k_i; three at most, or the grid does not fit into memory.
        n_beta, localization: nb and gamma.
        volumes: let w_i be the length of a vector of so many weights; default: 1 each. Then
            :math:`L = \frac12 \prod_i \lVert w_i \rVert^{2 k_i}`, and with two vectors and
            k = (1, 1) this is reduced-rank regression with one hidden unit at rank 0.

    Raises:
        ValueError: more than three exponents.
    """
    k = np.array([_whole("exponents", k) for k in exponents])
    if len(k) > 3:
        raise ValueError(f"exponents has {len(k)} entries; give three at most")
    volumes = [1] * len(k) if volumes is None else volumes
    step = {1: 0.02, 2: 0.1, 3: 0.2}[len(k)]
    # Up to where the leash or the data leave exp(-45), whichever is nearer.
    high = 0.5 * np.log(90 / localization)
    if len(k) == 1:
        high = min(high, np.log(90 / n_beta) / (2 * k[0]))
    axis = np.arange(high, high - 32, -step)
    u = np.meshgrid(*[axis] * len(k), indexing="ij", sparse=True)
    w2 = [np.exp(2 * v) for v in u]
    loss = 0.5 * np.exp(2 * sum(ki * v for ki, v in zip(k, u, strict=True)))
    square = sum(w2)
    log_mass = -n_beta * loss - localization / 2 * square
    log_mass = log_mass + sum(v * ui for v, ui in zip(volumes, u, strict=True))
    mass = np.exp(log_mass - log_mass.max())
    mass /= mass.sum()
    pull = [2 * ki * n_beta * loss / v for ki, v in zip(k, w2, strict=True)]  # (d nb L / dw) / w
    gradient = sum((p + localization) ** 2 * v for p, v in zip(pull, w2, strict=True))
    laplacian = sum((2 * ki - 2 + v) * p for ki, v, p in zip(k, volumes, pull, strict=True))
    f = gradient / 4 - laplacian / 2
    mean = float((mass * loss).sum())
    return Law(
        llc=n_beta * mean,
        slope=float(n_beta / 2 * (mass * (loss - mean) * f).sum()),
        held=float(localization * (mass * square).sum()),
    )


def mixed_law(n_beta: float, localization: float) -> Law:
    """Eq. 1 for :class:`Mixed`: its two weights are independent."""
    first, second = (monomial_law([k], n_beta, localization) for k in (1, 2))
    return Law(first.llc + second.llc, first.slope + second.slope, first.held + second.held)


def reduced_rank_law(
    model: ReducedRank, n_beta: float, localization: float, draws: int = 1_000_000, seed: int = 0
) -> Law:
    r"""Eq. 1 for :class:`ReducedRank`, by importance sampling with B integrated out.

    Given A, B is Gaussian with precision :math:`P = \gamma I + n\beta A A^\top` a row. So draw A
    from the localizing Gaussian and weigh it by the exact integral over B; the mean loss given A
    is exact too. The draws are independent: no chain, no step size, nothing to mix.

    Args:
        model: at w*.
        n_beta, localization: nb and gamma.
        draws: of A.
        seed: of all draws.

    Returns:
        The law with standard errors (of ratios of means of independent draws).
    """
    a0, b0 = (p.detach().numpy() for p in (model.a, model.b))
    target, d = b0 @ a0, a0.size + b0.size
    rng = np.random.default_rng(seed)
    rows, logs = [], []
    for start in range(0, draws, 100_000):
        size = min(100_000, draws - start)
        a = a0 + rng.normal(size=(size, *a0.shape)) / localization**0.5
        aat = a @ a.transpose(0, 2, 1)
        precision = localization * np.eye(len(a0)) + n_beta * aat
        linear = localization * b0 + n_beta * target @ a.transpose(0, 2, 1)
        inverse = np.linalg.inv(precision)
        mean = linear @ inverse
        log_det = np.linalg.slogdet(precision)[1]
        logs.append(-len(b0) / 2 * log_det + 0.5 * (mean * linear).sum((1, 2)))
        inner = 0.5 * ((mean @ a - target) ** 2).sum((1, 2))
        inner += len(b0) / 2 * (aat * inverse).sum((1, 2))  # E[L | A]
        noise = rng.normal(size=(size, *b0.shape))
        b = mean + noise @ np.linalg.cholesky(inverse).transpose(0, 2, 1)
        off = b @ a - target
        loss = 0.5 * (off**2).sum((1, 2))
        to_a, to_b = a - a0, b - b0
        gradient = n_beta * b.transpose(0, 2, 1) @ off + localization * to_a
        gradient = (gradient**2).sum((1, 2))
        gradient += ((n_beta * off @ a.transpose(0, 2, 1) + localization * to_b) ** 2).sum((1, 2))
        laplacian = n_beta * (a0.shape[1] * (b**2).sum((1, 2)) + len(b0) * (a**2).sum((1, 2)))
        f = gradient / 4 - laplacian / 2
        square = (to_a**2).sum((1, 2)) + (to_b**2).sum((1, 2))
        rows.append(np.stack([inner, loss, f, loss * f, square]))
    inner, loss, f, product, square = np.concatenate(rows, 1)
    log = np.concatenate(logs)
    weight = np.exp(log - log.max())
    weight /= weight.sum()

    def mean_of(values: np.ndarray) -> tuple[float, float]:
        mean = weight @ values
        return float(mean), float(np.sqrt((weight**2) @ (values - mean) ** 2))

    llc, llc_se = mean_of(n_beta * inner)
    mean_loss, mean_f = weight @ loss, weight @ f
    slope, slope_se = mean_of(n_beta / 2 * (product - mean_loss * f - mean_f * (loss - mean_loss)))
    held = localization * float(weight @ square)
    if not held <= d * 1.1:
        raise FloatingPointError(f"the leash seems to hold {held:.3g} of {d} directions")
    return Law(llc, slope, held, llc_se, slope_se)


# -- the law of the discretised chain ----------------------------------------------------------


def _monomial_chain(
    exponents: Sequence[int], n_beta: float, localization: float, step_size: float
) -> tuple[ChainLaw, np.ndarray, np.ndarray]:
    """The chain's law on its grid, L at the nodes, and exp(-U) there."""
    k = np.array(exponents, float)[:, None]
    reach = 6.6 / localization**0.5
    if len(k) == 1:
        reach = min(reach, (90 / n_beta) ** (1 / (2 * k[0, 0])))
    # At large steps the law is wider than Eq. 1's.
    reach = reach + 6 * step_size**0.5

    def loss(w: np.ndarray) -> np.ndarray:
        return 0.5 * np.prod(w ** (2 * k), 0)

    def gradient(w: np.ndarray) -> np.ndarray:
        return n_beta * 2 * k * loss(w) / w + localization * w

    chain = ChainLaw(gradient, reach, len(k), step_size)
    at = loss(chain.weights)
    energy = n_beta * at + localization / 2 * (chain.weights**2).sum(0)
    return chain, at, np.exp(-energy)


def monomial_chain_llc(
    exponents: Sequence[int], n_beta: float, localization: float, step_size: float
) -> tuple[float, float]:
    """nb E[L] of :class:`Monomial` under the discretised chain's own stationary law.

    Args:
        exponents: k_i, one or two.
        n_beta, localization, step_size: nb, gamma, epsilon.

    Returns:
        nb E[L], and the relaxation time of :meth:`ChainLaw.stationary`, in steps.

    Raises:
        ArithmeticError: the step is so long that the chain has no such law.
    """
    chain, loss, start = _monomial_chain(exponents, n_beta, localization, step_size)
    mass, relaxation = chain.stationary(start)
    return float(n_beta * loss @ mass), relaxation


def mixed_chain_llc(n_beta: float, localization: float, step_size: float) -> float:
    """nb E[L] of :class:`Mixed` under the discretised chain's own stationary law.

    Raises:
        ArithmeticError: the step is so long that the chain has no such law.
    """
    stiff = _stiff(n_beta, localization, step_size)
    return stiff + monomial_chain_llc([2], n_beta, localization, step_size)[0]


def _stiff(n_beta: float, localization: float, step_size: float) -> float:
    """nb E[w²] / 2 of a weight of curvature 1 under the chain."""
    precision = n_beta + localization
    if step_size * precision >= 4:
        raise ArithmeticError(
            f"step_size is {step_size:g}, with which the chain runs away; keep it below "
            f"{4 / precision:.3g}"
        )
    return n_beta / 2 / (precision * (1 - step_size * precision / 4))


def mixed_chain_along(
    n_beta: float, localization: float, step_size: float, steps: int
) -> np.ndarray:
    """nb E[L] of :class:`Mixed` after each step of a chain that starts at w*, shape (steps,)."""
    precision = n_beta + localization
    shrink = (1 - step_size * precision / 2) ** (2 * np.arange(1, steps + 1))
    stiff = _stiff(n_beta, localization, step_size) * (1 - shrink)
    chain, loss, _ = _monomial_chain([2], n_beta, localization, step_size)
    return stiff + n_beta * chain.along(loss, steps)


# -- models of known LLC, measured -------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Known:
    """A model, the settings to sample it with, and what must come out.

    Attributes:
        key: name of its numbers.
        what: name in words.
        posterior: to sample from.
        step_size: epsilon.
        relaxation: steps in which the slowest even function of the weights forgets: a square of a
            weight that only the leash holds needs 1 / (epsilon gamma).
        limit: the learning coefficient.
        multiplicity: of it.
        law: nb (E[L] - L(w*)) of Eq. 1 at the nb and gamma used.
        truth: the same for the discretised chain.
        truth_se: standard error of the truth, where it was integrated by Monte Carlo.
        allowed: a further distance: the second order of the step's bias, where only the first
            is known.
        by: how the truth was found.
    """

    key: str
    what: str
    posterior: LocalPosterior
    step_size: float
    relaxation: int
    limit: float
    multiplicity: int
    law: float
    truth: float
    truth_se: float
    allowed: float
    by: str

    def numbers(self, estimate: Estimate) -> dict[str, float | str]:
        """What a chapter records of the model and its measurement, each name behind the key."""
        posterior = self.posterior
        return {
            f"{self.key}_{name}": value
            for name, value in {
                "llc": estimate.value,
                "mcse": estimate.mcse,
                "rhat": estimate.rhat,
                "truth": self.truth,
                "truth_se": self.truth_se,
                "truth_allowed": self.allowed,
                "truth_by": self.by,
                "eq1": self.law,
                "step_bias": self.truth / self.law - 1,
                "limit": self.limit,
                "multiplicity": self.multiplicity,
                "n_beta": posterior.n_beta,
                "localization": posterior.localization,
                "step_size": self.step_size,
                "relaxation_steps": self.relaxation,
            }.items()
        }

    def row(self, estimate: Estimate) -> dict[str, str]:
        """The same as a line of a table."""
        posterior = self.posterior
        exact = f"{self.truth:.4f}"
        if self.truth_se:
            exact += f" ± {self.truth_se:.4f}"
        return {
            "model": self.what,
            "nβ": f"{posterior.n_beta:g}",
            "γ": f"{posterior.localization:g}",
            "ε": f"{self.step_size:.2g}",
            "measured": f"{estimate.value:.4f} ± {estimate.mcse:.4f}",
            "exact, this chain": exact,
            "exact, Eq. 1": f"{self.law:.4f}",
            "bias of the step": f"{self.truth / self.law - 1:+.1%}",
            "λ": f"{self.limit:g}",
            "m": f"{self.multiplicity}",
            "exact value by": self.by,
        }


# (exponents, nb, gamma, epsilon): epsilon times the largest precision that the chain meets with
# any frequency stays below 1, and gamma is as small as a run of a few seconds allows.
MONOMIALS = (
    ((2,), 1000.0, 1.0, 1e-3),
    ((3,), 1000.0, 1.0, 2e-3),
    ((1, 1), 100.0, 2.0, 2e-3),
    ((2, 1), 100.0, 4.0, 1e-3),
    ((2, 2), 1000.0, 4.0, 5e-4),
    ((1, 1, 1), 100.0, 2.0, 1e-3),
)
# ((inputs, hidden, outputs, rank), nb, gamma, epsilon)
REDUCED_RANKS = (
    ((3, 1, 2, 0), 100.0, 3.0, 1e-3),
    ((2, 2, 2, 0), 100.0, 3.0, 1e-3),
    ((2, 2, 2, 1), 100.0, 4.0, 5e-4),
    ((4, 2, 3, 1), 100.0, 4.0, 5e-4),
    ((3, 2, 3, 2), 100.0, 4.0, 4e-4),
)
REGULARS = (2, 8, 32)
# Models that are quadratic in each weight: where the exact chain is known, its bias exceeds the
# first order by the square of that order's relative size, times 1.1 (one weight) to 1.7 (two;
# tests/test_known_llc.py). So much is allowed where it is not.
SECOND_ORDER = 3.0


def known_models(rrr_draws: int = 2_000_000, seed: int = 0) -> Iterator[Known]:
    """Every model of known LLC of the chapter, with its truth.

    Args:
        rrr_draws: independent draws for the truth of reduced-rank regression.
        seed: of these.
    """
    for d in REGULARS:
        n_beta, localization = 1000.0, 1.0
        regression = toys.linear_regression(4 * d, [1.0] * d, noise=0.5, seed=d)
        precision = np.linalg.eigvalsh(regression.precision(n_beta, localization))
        step_size = 0.3 / precision[-1]
        yield Known(
            f"regular_{d}", f"linear regression, d = {d}",
            LocalPosterior(
                regression.model, probelib.squared_error, regression.data,
                n_beta=n_beta, localization=localization,
            ),
            step_size, int(np.ceil(1 / (step_size * precision[0]))), d / 2, 1,
            regression.llc(n_beta, regression.covariance(n_beta, localization)),
            regression.llc(n_beta, regression.covariance(n_beta, localization, step_size)),
            0.0, 0.0, "closed form",
        )  # fmt: skip
    for k, n_beta, localization, step_size in MONOMIALS:
        law = monomial_law(k, n_beta, localization)
        if len(k) < 3:
            truth, relaxation = monomial_chain_llc(k, n_beta, localization, step_size)
            allowed = 0.0
            by = "quadrature, transition operator"
        else:
            truth, allowed, by = _first_order(law, step_size, "quadrature")
            relaxation = 1 / (step_size * localization)
        powers = " ".join(f"w{'₁₂₃'[i]}{'⁰¹²³⁴⁵⁶'[2 * ki]}" for i, ki in enumerate(k))
        yield Known(
            "monomial_" + "_".join(map(str, k)), f"½ {powers}",
            local(Monomial(k), n_beta, localization), step_size,
            int(np.ceil(relaxation)), *monomial_coefficient(k),
            law.llc, truth, 0.0, allowed, by,
        )  # fmt: skip
    for shape, n_beta, localization, step_size in REDUCED_RANKS:
        model = ReducedRank(*shape)
        law = reduced_rank_law(model, n_beta, localization, rrr_draws, seed)
        truth, allowed, by = _first_order(law, step_size, "importance sampling")
        m, h, n, r = shape
        yield Known(
            "rrr_" + "_".join(map(str, shape)), f"reduced rank {m}–{h}–{n}, true rank {r}",
            local(model, n_beta, localization), step_size,
            int(np.ceil(1 / (step_size * localization))), *reduced_rank_coefficient(*shape),
            law.llc, truth, float(np.hypot(law.llc_se, step_size * law.slope_se)), allowed, by,
        )  # fmt: skip


def _first_order(law: Law, step_size: float, by: str) -> tuple[float, float, str]:
    bias = step_size * law.slope
    return law.llc + bias, SECOND_ORDER * bias**2 / law.llc, f"{by}, first order in ε"


def measure(
    known: Known, *, chains: int, burn_in: float, length: float, draws: int, seed: int
) -> Estimate:
    """The LLC of a known model from SGLD with the full gradient.

    Its standard error comes from the independent chains, which makes no assumption about what
    happens within them.

    Args:
        known: the model.
        chains: independent chains.
        burn_in, length: of each, in relaxation times.
        draws: kept of each, evenly spaced.
        seed: of the chains.
    """
    thin = max(4, round(length * known.relaxation / draws))
    trace = probelib.sample(
        known.posterior, kernel=probelib.SGLD(known.step_size), chains=chains, draws=draws,
        thin=thin, burn_in=int(np.ceil(burn_in * known.relaxation)), seed=seed, progress=False,
    )  # fmt: skip
    estimate = probelib.local_learning_coefficient(trace)
    error = toys.mean_and_error(
        known.posterior.n_beta * probelib.estimators.mean_loss_change(trace)
    )
    return replace(estimate, mcse=float(error[1]))


# -- one model, every knob ---------------------------------------------------------------------

KNOBS = {"n_beta": "nβ", "localization": "γ", "step_size": "ε"}
_OFF = 0.1  # a cause is called out where it moves the exact value by more than this


@dataclass(frozen=True)
class Point:
    """A measurement of :class:`Mixed` at one setting: LLC, standard error, exact values."""

    knob: str
    value: float
    llc: float
    mcse: float
    chain: float
    law: float
    held: float
    stiffness: float

    @property
    def z(self) -> float:
        """Distance from the exact value of the chain in standard errors."""
        return (self.llc - self.chain) / self.mcse


@dataclass(frozen=True)
class Sweeps:
    """The LLC of :class:`Mixed` as each setting moves, measured and exact.

    Attributes:
        points: what was measured.
        panels: what :func:`probebook.figures.when_to_believe` draws.
        boundaries: where each cause moves the exact value by a tenth.
    """

    points: Sequence[Point]
    panels: dict
    boundaries: dict[str, float]

    def numbers(self) -> dict[str, float]:
        """Everything measured, and the boundaries, by name."""
        out = {f"boundary_{k}": v for k, v in self.boundaries.items()}
        out |= {
            "sweep_points": len(self.points),
            "sweep_z_max": max(abs(p.z) for p in self.points),
        }
        counts: dict[str, int] = {}
        for p in self.points:
            counts[p.knob] = counts.get(p.knob, 0) + 1
            name = f"sweep_{p.knob}_{counts[p.knob]}"
            out |= {
                f"{name}_at": p.value,
                f"{name}_llc": p.llc,
                f"{name}_mcse": p.mcse,
                f"{name}_truth": p.chain,
                f"{name}_eq1": p.law,
                f"{name}_held": p.held,
                f"{name}_stiffness": p.stiffness,
            }
        return out

    def rows(self) -> list[dict[str, str]]:
        """A line of a table a point."""
        return [
            {
                "changed": KNOBS.get(p.knob, "steps from w*"),
                "to": f"{p.value:.3g}",
                "measured": f"{p.llc:.4f} ± {p.mcse:.4f}",
                "exact, this chain": f"{p.chain:.4f}",
                "exact, Eq. 1": f"{p.law:.4f}",
                "held by the leash, of 2": f"{p.held:.3f}",
                "ε A_max": f"{p.stiffness:.2f}",
            }
            for p in self.points
        ]

    def claim(self) -> Claim:
        """That no point lies too far from its exact value: chance does so once in 10,000 runs."""
        limit = float(norm.isf(0.5e-4 / len(self.points)))
        return Claim(
            f"farthest of {len(self.points)} points of the sweeps, in standard errors",
            "sweep_z_max", "no bias", None, float(f"{limit:.3g}"), ".2f",
            "the normal quantile at 1 in 10,000 for the largest of so many", must=True,
        )  # fmt: skip


def sweep_mixed(
    base: Mapping[str, float],
    *,
    points: int,
    curve: int,
    chains: int,
    burn_in: float,
    length: float,
    draws: int,
    seed: int,
) -> Sweeps:
    """Turn nb, gamma, epsilon and the number of steps of :class:`Mixed`, each alone.

    Errors come from the independent chains.

    Args:
        base: ``n_beta``, ``localization``, ``step_size``, from which each is moved.
        points: measured for each of the four.
        curve: points of each exact curve.
        chains: independent chains of each run.
        burn_in, length: of each run, in relaxation times.
        draws: kept of each chain.
        seed: of the chains; every run has another.
    """
    n_beta, localization, step_size = (base[k] for k in KNOBS)
    ends = {  # measured where a run is short, up to a step near the edge of stability
        "n_beta": (n_beta / 10, 3 / step_size - localization),
        "localization": (localization / 10, localization * 300),
        "step_size": (step_size / 2, 3 / (n_beta + localization)),
    }
    wide = ends | {"n_beta": (n_beta / 1000, ends["n_beta"][1])}
    measured, curves = [], {}
    for knob in KNOBS:
        for value in np.geomspace(*ends[knob], points):
            settings = dict(base) | {knob: float(value)}
            run = {"chains": chains, "draws": draws, "seed": seed + len(measured)}
            measured.append(_measure_mixed(knob, settings, burn_in, length, **run))
        at = np.geomspace(*wide[knob], curve)
        exact = [dict(base) | {knob: float(v)} for v in at]
        curves[knob] = {
            "exact, this chain": (at, np.array([mixed_chain_llc(**e) for e in exact])),
            "exact, Eq. 1": (at, np.array([_eq1(e).llc for e in exact])),
        }
    limit, goal = 0.75, mixed_chain_llc(**base)
    relaxation = monomial_chain_llc([2], **base)[1]
    steps = int(np.ceil(12 * relaxation))
    run = _run_mixed(base, chains, draws=steps, thin=1, burn_in=0, seed=seed + len(measured))
    running = np.cumsum(run, 1) / np.arange(1, steps + 1)
    expected = mixed_chain_along(steps=steps, **base).cumsum() / np.arange(1, steps + 1)
    for t in np.unique(np.geomspace(min(10, steps), steps, points).astype(int)):
        by_chain = running[:, t - 1]
        measured.append(
            Point(
                "steps", int(t), float(by_chain.mean()),
                float(by_chain.std(ddof=1) / len(by_chain) ** 0.5), float(expected[t - 1]),
                _eq1(base).llc, _eq1(base).held, step_size * (n_beta + localization),
            )
        )  # fmt: skip
    count = np.arange(1, steps + 1)[9:]
    curves["steps"] = {
        "exact, this chain": (count, expected[9:]),
        "exact, Eq. 1": (count[[0, -1]], np.full(2, _eq1(base).llc)),
    }

    def leash(knob: str) -> Callable[[float], float]:
        return lambda v: _eq1(dict(base) | {knob: v}).llc / limit - (1 - _OFF)

    def step(knob: str) -> Callable[[float], float]:
        return lambda v: (
            mixed_chain_llc(**(dict(base) | {knob: v})) / _eq1(dict(base) | {knob: v}).llc
            - (1 + _OFF)
        )

    few = float(brentq(leash("n_beta"), wide["n_beta"][0], n_beta))
    many = float(brentq(step("n_beta"), n_beta, wide["n_beta"][1]))
    tight = float(brentq(leash("localization"), localization, wide["localization"][1]))
    long = float(brentq(step("step_size"), step_size, wide["step_size"][1]))
    short = int(np.argmax(expected >= (1 - _OFF) * goal)) + 1
    leash_text, step_text, short_text = "leash dominates", "step too long", "chain too short"
    regions = {
        "n_beta": {leash_text: (0, few), step_text: (many, np.inf)},
        "localization": {leash_text: (tight, np.inf)},
        "step_size": {step_text: (long, np.inf)},
        "steps": {short_text: (0, short)},
    }
    labels = {
        "n_beta": r"$n\beta$", "localization": r"$\gamma$", "step_size": r"$\epsilon$",
        "steps": r"steps from $w^*$",
    }  # fmt: skip
    panels = {}
    for knob, label in labels.items():
        own = [p for p in measured if p.knob == knob]
        seen = tuple(np.array([getattr(p, k) for p in own]) for k in ("value", "llc", "mcse"))
        panels[label] = curves[knob], seen, regions[knob]
    boundaries = {
        "n_beta_low": few,
        "n_beta_high": many,
        "localization": tight,
        "held": _eq1(dict(base) | {"localization": tight}).held,
        "step_size": long,
        "stiffness": long * (n_beta + localization),
        "steps": short,
        "relaxation_steps": relaxation,
        "relaxations": short / relaxation,
    }
    return Sweeps(measured, panels, boundaries)


def _eq1(settings: Mapping[str, float]) -> Law:
    return mixed_law(settings["n_beta"], settings["localization"])


def _run_mixed(
    settings: Mapping[str, float], chains: int, draws: int, thin: int, burn_in: int, seed: int
) -> np.ndarray:
    """nb (L - L(w*)) of :class:`Mixed` along SGLD chains, shape (chains, draws)."""
    posterior = local(Mixed(), settings["n_beta"], settings["localization"])
    trace = probelib.sample(
        posterior, kernel=probelib.SGLD(settings["step_size"]), chains=chains, draws=draws,
        thin=thin, burn_in=burn_in, seed=seed, progress=False,
    )  # fmt: skip
    return settings["n_beta"] * probelib.estimators.mean_loss_change(trace)


def _measure_mixed(
    knob: str,
    settings: Mapping[str, float],
    burn_in: float,
    length: float,
    *,
    chains: int,
    draws: int,
    seed: int,
) -> Point:
    """One run of :class:`Mixed`, beside its exact values."""
    quartic, relaxation = monomial_chain_llc([2], **settings)
    precision = settings["n_beta"] + settings["localization"]
    chain = _stiff(**settings) + quartic
    relaxation = max(relaxation, 1 / (settings["step_size"] * precision))
    thin = max(2, round(length * relaxation / draws))
    series = _run_mixed(settings, chains, draws, thin, int(np.ceil(burn_in * relaxation)), seed)
    by_chain = series.mean(1)
    law = _eq1(settings)
    return Point(
        knob, settings[knob], float(by_chain.mean()),
        float(by_chain.std(ddof=1) / len(by_chain) ** 0.5), chain, law.llc, law.held,
        settings["step_size"] * precision,
    )  # fmt: skip


# -- the LLC of a trace, another way and in parts ----------------------------------------------


def streamed_llc(trace: xr.Dataset) -> float:
    """nb (E[L] - L(w*)) draw by draw: first over the samples, then over the draws, in float64.

    It shares no arithmetic with :func:`probelib.loss_gain`, which goes sample by sample and
    subtracts the losses at w* first.

    Args:
        trace: from :func:`probelib.sample`.
    """
    along = [
        np.add.reduce(draw, dtype=np.float64) / trace.sizes["sample"]
        for rows in _draws(trace)
        for draw in rows
    ]
    at_center = trace.init_loss.values.astype(np.float64).mean()
    return trace.attrs["config"]["n_beta"] * float(np.mean(along) - at_center)


def partial_llc(trace: xr.Dataset, groups: np.ndarray) -> np.ndarray:
    r"""The part of the LLC that lies in each group of samples, at every draw.

    :math:`\beta \sum_{i \in G} \Delta\ell_i(w)`, whose mean over the draws is
    :math:`\beta \sum_{i \in G} \mu_i`; the parts of a partition add up to the LLC.

    Args:
        trace: from :func:`probelib.sample`.
        groups: membership, shape (sample, group), 0 and 1.

    Returns:
        Shape (chain, draw, group), dimensionless.

    Raises:
        ValueError: as many rows as there are samples are needed.
    """
    n = trace.sizes["sample"]
    if len(groups) != n:
        raise ValueError(f"groups has {len(groups)} rows; give one for each of the {n} samples")
    groups = np.asarray(groups, np.float64)
    at_center = trace.init_loss.values.astype(np.float64) @ groups
    parts = np.concatenate([rows.astype(np.float64) @ groups for rows in _draws(trace)])
    beta = trace.attrs["config"]["n_beta"] / n
    shape = trace.sizes["chain"], trace.sizes["draw"], -1
    return beta * (parts - at_center).reshape(shape)


@dataclass(frozen=True)
class Split:
    """The LLC of one trace, split among its samples.

    Attributes:
        lorenz: curve of :func:`lorenz`, by the gains' own order.
        gini: coefficient of the gains.
        classes: share of each class.
        class_samples: share of the samples in each class.
        deciles: share of each tenth of the samples, lowest gain first.
        hardest: share of the hardest hundredth of the samples.
        hardest_held_out: the same with the order from the first half of each chain and the share
            from the second.
        marked: share of the marked samples.
        marked_samples: their share of the samples.
    """

    lorenz: tuple[np.ndarray, np.ndarray]
    gini: float
    classes: Sequence[Estimate]
    class_samples: np.ndarray
    deciles: Sequence[Estimate]
    hardest: Estimate
    hardest_held_out: Estimate
    marked: Estimate | None
    marked_samples: float

    def numbers(self) -> dict[str, float]:
        """Everything by name, errors as ``<name>_mcse``."""
        shares = {
            "share_hardest_1pct": self.hardest,
            "share_hardest_1pct_held_out": self.hardest_held_out,
            **{f"share_class_{k}": e for k, e in enumerate(self.classes)},
            **{f"share_decile_{k + 1}": e for k, e in enumerate(self.deciles)},
        }
        out: dict[str, float] = {"gini": self.gini}
        out |= {f"samples_class_{k}": float(v) for k, v in enumerate(self.class_samples)}
        if self.marked is not None:
            shares["share_wrong_labels"] = self.marked
            out["samples_wrong_labels"] = self.marked_samples
        for name, estimate in shares.items():
            out |= {name: estimate.value, f"{name}_mcse": estimate.mcse}
        return out


def split_llc(trace: xr.Dataset, labels: np.ndarray, marked: np.ndarray | None = None) -> Split:
    """Split the LLC of a trace by class, by loss gain and by a mark.

    Args:
        trace: from :func:`probelib.sample`, with four draws a chain or more.
        labels: class of each sample, from 0, shape (sample,).
        marked: a further group, bool, shape (sample,).

    Raises:
        ValueError: fewer than eight draws a chain, too few to be halved.
    """
    draws, n = trace.sizes["draw"], trace.sizes["sample"]
    if draws < 8:
        raise ValueError(f"trace has {draws} draws a chain; give 8 or more")
    gain, top = probelib.loss_gain(trace).values, max(1, n // 100)
    order = np.argsort(gain)
    rank = np.empty(n, int)
    rank[order] = np.arange(n)
    tenths, of_class = rank * 10 // n, np.eye(int(labels.max()) + 1)[labels]
    groups = [np.eye(10)[tenths], of_class, (rank >= n - top)[:, None], np.ones((n, 1))]
    if marked is not None:
        groups.insert(0, marked[:, None])
    parts = partial_llc(trace, np.concatenate(groups, 1))
    total = parts[..., -1]
    shares = [share(parts[..., k], total) for k in range(parts.shape[-1] - 1)]
    mark = shares.pop(0) if marked is not None else None
    first = probelib.loss_gain(trace.isel(draw=slice(draws // 2))).values
    hardest = np.zeros((n, 2))
    hardest[np.argsort(first)[-top:], 0] = 1
    hardest[:, 1] = 1
    held_out = partial_llc(trace.isel(draw=slice(draws // 2, None)), hardest)
    return Split(
        lorenz=lorenz(gain),
        gini=gini(gain),
        classes=shares[10:-1],
        class_samples=of_class.mean(0),
        deciles=shares[:10],
        hardest=shares[-1],
        hardest_held_out=share(held_out[..., 0], held_out[..., 1]),
        marked=mark,
        marked_samples=0.0 if marked is None else float(marked.mean()),
    )


def percent(numbers: Mapping[str, float], name: str) -> str:
    """A recorded share with its error, in per cent; a dash where it was not recorded."""
    if name not in numbers:
        return "–"
    return f"{numbers[name]:.2%} ± {numbers[name + '_mcse']:.2%}"


def fresh_mean_loss(model: nn.Module, inputs: Tensor, labels: Tensor, batch: int = 5000) -> float:
    """Mean cross-entropy of a classifier in float64, by PyTorch's own loss.

    Args:
        model: a classifier; a copy of it is evaluated.
        inputs: shape (n, ...).
        labels: shape (n,).
        batch: samples at a time.
    """
    model = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        total = sum(
            float(F.cross_entropy(model(x.double()), y, reduction="sum"))
            for x, y in zip(inputs.split(batch), labels.split(batch), strict=True)
        )
    return total / len(labels)


def lorenz(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lorenz curve: share of the sum in the lowest values, against their share of the samples.

    Args:
        values: shape (n,), with a positive sum.

    Returns:
        Share of samples and share of the sum, from 0 to 1, shape (n + 1,) each.
    """
    total = np.concatenate([[0.0], np.cumsum(np.sort(values), dtype=np.float64)])
    return np.linspace(0, 1, len(total)), total / total[-1]


def gini(values: np.ndarray) -> float:
    """Gini coefficient: twice the area between the Lorenz curve and the diagonal."""
    samples, part = lorenz(values)
    return float(1 - 2 * np.trapezoid(part, samples))


def _draws(trace: xr.Dataset, block: int = 25) -> Iterator[np.ndarray]:
    """Losses in blocks of draws, shape (<= block, sample), chain after chain."""
    for chain in range(trace.sizes["chain"]):
        for start in range(0, trace.sizes["draw"], block):
            yield trace.loss[chain, start : start + block].values


def _whole(name: str, value: int) -> int:
    if int(value) != value or value < 1:
        raise ValueError(f"{name} has {value!r}; give whole numbers from 1")
    return int(value)


def _reduced_rank(inputs: int, hidden: int, outputs: int, rank: int) -> tuple[int, int, int, int]:
    for name, value in (("inputs", inputs), ("hidden", hidden), ("outputs", outputs)):
        _whole(name, value)
    if not 0 <= rank <= min(inputs, hidden, outputs):
        raise ValueError(
            f"rank is {rank}; layers of {inputs}, {hidden} and {outputs} units make ranks from 0 "
            f"to {min(inputs, hidden, outputs)}"
        )
    return inputs, hidden, outputs, rank


__all__ = [
    "KNOBS",
    "MONOMIALS",
    "REDUCED_RANKS",
    "REGULARS",
    "SECOND_ORDER",
    "Known",
    "Law",
    "Mixed",
    "Monomial",
    "Point",
    "ReducedRank",
    "Split",
    "Sweeps",
    "fresh_mean_loss",
    "gini",
    "known_models",
    "local",
    "lorenz",
    "measure",
    "mixed_chain_along",
    "mixed_chain_llc",
    "mixed_law",
    "monomial_chain_llc",
    "monomial_coefficient",
    "monomial_law",
    "partial_llc",
    "percent",
    "reduced_rank_coefficient",
    "reduced_rank_law",
    "split_llc",
    "streamed_llc",
    "sweep_mixed",
]
