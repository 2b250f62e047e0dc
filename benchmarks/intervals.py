"""Do the errors of probelib cover? Simulations with a known truth, each a function of repeats.

``python benchmarks/intervals.py`` prints all of them. Weights are stationary Gaussian chains of a
given integrated autocorrelation time (draws); losses are linear in eight of them, or those of a
linear regression (DESIGN, section 2), so that gains and kernel are known exactly.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence

import numpy as np
import xarray as xr
from scipy.signal import lfilter

import probelib
from probelib import schedule

#: Chains x draws, and integrated autocorrelation times in draws.
SIZES = ((1, 100), (1, 1000), (2, 8), (2, 100), (4, 20), (4, 500), (5, 10), (5, 500), (30, 1000))
TAUS = (1, 3, 10, 50)
_WEIGHTS, _N_BETA = 8, 10.0


def chains(shape: tuple[int, ...], tau: float, rng: np.random.Generator) -> np.ndarray:
    """Stationary AR(1) series of unit variance along axis 1, with this autocorrelation time."""
    rho = (tau - 1) / (tau + 1)
    noise = rng.standard_normal(shape)
    noise[:, 1:] *= np.sqrt(1 - rho**2)
    return lfilter([1], [1, -rho], noise, axis=1)


def trace_of(loss: np.ndarray, init_loss: np.ndarray) -> xr.Dataset:
    """A trace of these losses (chain, draw, sample)."""
    return xr.Dataset(
        {"loss": (("chain", "draw", "sample"), loss), "init_loss": ("sample", init_loss)},
        {"chain": np.arange(len(loss)), "sample_id": ("sample", np.arange(loss.shape[2]))},
        {"config": {"n_beta": _N_BETA}},
    )


class Problem:
    """Losses whose gains and kernel are known: of eight weights, linear or those of a regression.

    Sample 1 is nearly sample 0, sample 2 half of it, sample 3 independent of it.
    """

    def __init__(self, kind: str, n: int = 12):
        rng = np.random.default_rng(7)
        self.quadratic = kind == "regression"
        design = rng.standard_normal((n, _WEIGHTS)) / np.sqrt(_WEIGHTS)
        first, other = np.eye(_WEIGHTS)[:2]
        for at, r in enumerate((1, 0.95, 0.5, 0)):
            design[at] = r * first + np.sqrt(1 - r**2) * other
        self.design = design
        self.residual = np.where(np.arange(n) < 4, 1.0, rng.standard_normal(n))
        g = design @ design.T
        self.gain = np.zeros(n) if not self.quadratic else np.diag(g) / 2
        self.kernel = g if not self.quadratic else np.outer(*[self.residual] * 2) * g + g * g / 2

    def losses(self, size: tuple[int, int], tau: float, rng: np.random.Generator) -> np.ndarray:
        move = chains((*size, _WEIGHTS), tau, rng) @ self.design.T
        return np.square(self.residual - move) / 2 if self.quadratic else move

    def trace(self, size: tuple[int, int], tau: float, rng: np.random.Generator) -> xr.Dataset:
        init = np.square(self.residual) / 2 if self.quadratic else np.zeros(len(self.gain))
        return trace_of(self.losses(size, tau, rng), init)


def errors(
    repeats: int = 200,
    sizes: Iterable[tuple[int, int]] = SIZES,
    taus: Iterable[float] = TAUS,
    problems: Iterable[str] = ("linear", "regression"),
    seed: int = 0,
) -> list[dict]:
    """Coverage of the 95 % intervals (value -+ 1.96 mcse), by problem, size, tau and estimator.

    Returns:
        Rows with ``coverage``, the share of ``infinite`` errors, and ``width``: the median error
        over the true one.
    """
    rng, rows = np.random.default_rng(seed), []
    for kind in problems:
        problem = Problem(kind)
        for size in sizes:
            for tau in taus:
                found = [_off(problem, problem.trace(size, tau, rng)) for _ in range(repeats)]
                for name in found[0]:
                    both = np.array([one[name] for one in found]).reshape(repeats, 2, -1)
                    off, mcse = both[:, 0], both[:, 1]
                    rows.append(
                        {
                            "problem": kind,
                            "chains": size[0],
                            "draws": size[1],
                            "tau": tau,
                            "estimator": name,
                            "coverage": float(np.mean(np.abs(off) <= 1.96 * mcse)),
                            "infinite": float(np.mean(np.isinf(mcse))),
                            "width": float(np.median(mcse) / np.sqrt(np.mean(np.square(off)))),
                        }
                    )
    return rows


def _off(problem: Problem, trace: xr.Dataset) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """How far each estimate is off, with its error."""
    gain, kernel = probelib.loss_gain(trace), probelib.loss_kernel(trace)
    llc, v = probelib.local_learning_coefficient(trace), probelib.empirical_variance(trace)
    diagonal, others = kernel.diagonal(), slice(1, 4)
    k, k_error = kernel.covariance([0], others)[0], kernel.covariance_mcse([0], others)[0]
    r, r_error = kernel.correlation([0], others)[0], kernel.correlation_mcse([0], others)[0]
    scale = np.sqrt(np.diag(problem.kernel))
    true = problem.kernel / np.outer(scale, scale)
    of_pairs = {
        f"{name} near {near}": (value[at] - truth[0, at + 1], error[at])
        for name, value, error, truth in (
            ("K_ij", k, k_error, problem.kernel),
            ("R_ij", r, r_error, true),
        )
        for at, near in enumerate(("1", "0.5", "0"))
    }
    return {
        "gain": (gain.values - problem.gain, gain.mcse.values),
        "LLC": (llc.value - _N_BETA * problem.gain.mean(), llc.mcse),
        "V": (v.value - np.trace(problem.kernel), v.mcse),
        "K_ii": (diagonal.values - np.diag(problem.kernel), diagonal.mcse.values),
        **of_pairs,
    }


def stopping(
    repeats: int = 200,
    counts: Iterable[int] = (1, 2, 4),
    taus: Iterable[float] = TAUS,
    until: Sequence[float] = (0.5, 0.2, 0.1),
    weights: Iterable[int] = (_WEIGHTS, 1),
    cap: int = 20_000,
    seed: int = 0,
) -> list[dict]:
    """The true error of the gains where ``until`` stopped, over the error asked for.

    Args:
        weights: how many weights the losses depend on. With one, all samples are off together, and
            so is what their chains say of it: nothing averages out.

    Returns:
        Rows with ``ratio``, the median over samples of the root mean square error over repeats,
        over ``until`` (a share of the losses' standard deviation); the median ``draws`` at the
        stop, and how many would have been ``needed``.
    """
    rng, rows = np.random.default_rng(seed), []
    for of, count, tau in itertools.product(weights, counts, taus):
        design = Problem("linear").design[4:, :of]  # none of them is zero along the first weight
        design = design / np.linalg.norm(design, axis=1, keepdims=True)
        off = {target: [] for target in until}
        stop = {target: [] for target in until}
        for _ in range(repeats):
            losses = chains((count, cap, of), tau, rng) @ design.T
            for target in until:
                at = schedule.good_enough(losses, target, cap) or cap
                off[target].append(losses[:, :at].mean((0, 1)))
                stop[target].append(at)
        for target in until:
            ratio = np.median(np.sqrt(np.mean(np.square(off[target]), 0))) / target
            rows.append(
                {
                    "weights": of,
                    "chains": count,
                    "tau": tau,
                    "until": target,
                    "ratio": float(ratio),
                    "draws": float(np.median(stop[target])),
                    "needed": float(np.ceil(tau / count / target**2)),
                }
            )
    return rows


def neighbours(
    repeats: int = 5,
    sizes: Iterable[tuple[int, int]] = ((1, 1000), (2, 100), (5, 500), (30, 100)),
    taus: Iterable[float] = (1, 5),
    tails: Iterable[str] = ("normal", "heavy"),
    planted: Iterable[float] = (0.0, 0.3, 0.5, 0.8),
    n: int = 2000,
    rows: int = 200,
    k: int = 16,
    seed: int = 0,
) -> list[dict]:
    """Neighbours called at q < 0.05: of a null kernel, and of planted groups of ten.

    Args:
        planted: R within a group; 0 is the null. Half of the rows belong to a group.
        tails: "heavy" draws have rare large values (a Student's t of 2.5 degrees of freedom).

    Returns:
        Rows with the share of all neighbours that is ``called``, the share of the called that is
        ``false``, and the ``power``, the share called of the nine others in a row's group (None
        where nothing is planted).
    """
    rng, out = np.random.default_rng(seed), []
    groups = np.where(np.arange(n) < rows // 2, np.arange(n) // 10, -1 - np.arange(n))
    for size in sizes:
        for tau in taus:
            for tail in tails:
                for r in planted:
                    called = false = true = possible = 0
                    for _ in range(repeats):
                        x = chains((*size, n), tau, rng)
                        common = chains((*size, rows // 20), tau, rng)
                        x[..., : rows // 2] *= np.sqrt(1 - r)
                        x[..., : rows // 2] += np.sqrt(r) * np.repeat(common, 10, axis=2)
                        if tail == "heavy":
                            x *= 1 / np.sqrt(rng.chisquare(2.5, x.shape) / 2.5)
                        near = probelib.loss_kernel(trace_of(x, np.zeros(n))).top_correlated(
                            k, rows=np.arange(rows)
                        )
                        good = near.q_value < 0.05
                        same = groups[near.index] == groups[:rows, None]
                        called += good.sum()
                        false += (good & ~same).sum() if r else good.sum()
                        true += (good & same).sum()
                        possible += 9 * (rows // 2)
                    out.append(
                        {
                            "chains": size[0],
                            "draws": size[1],
                            "tau": tau,
                            "tails": tail,
                            "planted": r,
                            "called": float(called / (repeats * rows * k)),
                            "false": float(false / max(called, 1)),
                            "power": float(true / possible) if r else None,
                        }
                    )
    return out


def main() -> None:
    for study in (errors, stopping, neighbours):
        for row in study():
            print(json.dumps({"study": study.__name__} | row), flush=True)


if __name__ == "__main__":
    main()
