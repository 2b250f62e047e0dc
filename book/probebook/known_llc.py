r"""Models whose LLC is known (chapter 05).

The truth that SGLD must meet is not the learning coefficient :math:`\lambda`, a limit, but

.. math::

   \hat\lambda(n\beta, \gamma, \epsilon) = n\beta\, \operatorname{E}[L(w) - L(w^*)]

under the law of the discretised chain at the :math:`n\beta`, :math:`\gamma` and
:math:`\epsilon` that were used. For :math:`\epsilon \to 0` that is Eq. 1, which is integrated
here; the bias of a finite :math:`\epsilon` is found from the chain's transition operator, or to
first order from Eq. 1 (:class:`Law`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

import probelib
from probebook import toys
from probebook.chain_law import ChainLaw
from probelib import Estimate, LocalPosterior
from probelib.arguments import require_whole

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
        self.exponents = tuple(require_whole("exponents", k) for k in exponents)
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
    largest = max(require_whole("exponents", k) for k in exponents)
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
        held: gamma E|w - w*|²: how many directions the localization holds, of d in all. Since
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
    k = np.array([require_whole("exponents", k) for k in exponents])
    if len(k) > 3:
        raise ValueError(f"exponents has {len(k)} entries; give three at most")
    volumes = [1] * len(k) if volumes is None else volumes
    step = {1: 0.02, 2: 0.1, 3: 0.2}[len(k)]
    # Up to where the localization or the data leave exp(-45), whichever is nearer.
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
        raise FloatingPointError(f"the localization seems to hold {held:.3g} of {d} directions")
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
    stiff = stiff_chain_llc(n_beta, localization, step_size)
    return stiff + monomial_chain_llc([2], n_beta, localization, step_size)[0]


def stiff_chain_llc(n_beta: float, localization: float, step_size: float) -> float:
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
    stiff = stiff_chain_llc(n_beta, localization, step_size) * (1 - shrink)
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
            weight that only the localization holds needs 1 / (epsilon gamma).
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
            exact = toys.with_error(self.truth, self.truth_se)
        return {
            "model": self.what,
            "nβ": f"{posterior.n_beta:g}",
            "γ": f"{posterior.localization:g}",
            "ε": f"{self.step_size:.2g}",
            "measured": toys.with_error(estimate.value, estimate.mcse),
            "exact, this chain": exact,
            "exact, Eq. 1": f"{self.law:.4f}",
            "bias of the step": f"{self.truth / self.law - 1:+.1%}",
            "λ": f"{self.limit:.4g}",
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
    known: Known,
    *,
    chains: int,
    burn_in: float,
    length: float,
    draws: int,
    seed: int,
    method: type[probelib.SGLD] | type[probelib.LeimkuhlerMatthews] = probelib.SGLD,
) -> Estimate:
    """The LLC of a known model from a sampler with the full gradient.

    Its standard error comes from the independent chains, which makes no assumption about what
    happens within them.

    Args:
        known: the model.
        chains: independent chains.
        burn_in, length: of each, in relaxation times.
        draws: kept of each, evenly spaced.
        seed: of the chains.
        method: the sampler.
    """
    thin = max(4, round(length * known.relaxation / draws))
    trace = probelib.sample(
        known.posterior, sampler=method(known.step_size), chains=chains, draws=draws,
        thin=thin, burn_in=int(np.ceil(burn_in * known.relaxation)), seed=seed, progress=False,
    )  # fmt: skip
    estimate = probelib.local_learning_coefficient(trace)
    error = toys.mean_and_error(known.posterior.n_beta * probelib.mean_loss_change(trace))
    return replace(estimate, mcse=float(error[1]))


def _reduced_rank(inputs: int, hidden: int, outputs: int, rank: int) -> tuple[int, int, int, int]:
    for name, value in (("inputs", inputs), ("hidden", hidden), ("outputs", outputs)):
        require_whole(name, value)
    if not 0 <= rank <= min(inputs, hidden, outputs):
        raise ValueError(
            f"rank is {rank}; layers of {inputs}, {hidden} and {outputs} units make ranks from 0 "
            f"to {min(inputs, hidden, outputs)}"
        )
    return inputs, hidden, outputs, rank


__all__ = [
    "MONOMIALS",
    "REDUCED_RANKS",
    "REGULARS",
    "SECOND_ORDER",
    "Known",
    "Law",
    "Mixed",
    "Monomial",
    "ReducedRank",
    "known_models",
    "local",
    "measure",
    "mixed_chain_along",
    "mixed_chain_llc",
    "mixed_law",
    "monomial_chain_llc",
    "monomial_coefficient",
    "monomial_law",
    "reduced_rank_coefficient",
    "reduced_rank_law",
    "stiff_chain_llc",
]
