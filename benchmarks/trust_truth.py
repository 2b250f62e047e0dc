"""What is right, and what a sampler makes of it, without the library's samplers and estimators.

- :func:`expected_llc`: for linear regression, the exact expectation of the LLC of a run: the first
  two moments of the chain, step by step, with step bias, minibatch noise and burn-in.
- :func:`hamiltonian`: for networks, the LLC under Eq. 1 from Hamiltonian Monte Carlo, whose
  acceptance step leaves no bias. ``python benchmarks/trust_truth.py`` keeps them in
  ``trust_truth.json``.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from trust_problems import Line, Problem

import probelib

KEPT = Path(__file__).with_suffix(".json")


def expected_llc(problem: Problem, sampler: probelib.Sampler, plan: dict[str, Any]) -> float | None:
    r"""The expectation of a run's LLC on linear regression; None for other problems and samplers.

    With u = w - OLS, A = nb H + gamma I, M = I - (eps/2) A: u moves to M u + (eps/2) gamma delta
    + noise, so that mean and E[uu'] have recursions of their own. The covariance of a minibatch
    gradient (drawn without replacement) is quadratic in u and closes them.
    """
    line, eps = problem.line, sampler.step_size
    if line is None or not isinstance(sampler, probelib.SGLD | probelib.LeimkuhlerMatthews):
        return None
    n_beta, gamma = problem.posterior.n_beta, problem.posterior.localization
    d = line.x.shape[1]
    values, basis = np.linalg.eigh(line.x.T @ line.x / len(line.x))
    kept = Line(line.x @ basis, line.residuals, basis.T @ line.delta, line.observed)
    shrink = 1 - eps / 2 * (n_beta * values + gamma)  # M, diagonal in this basis
    pull = eps / 2 * gamma * kept.delta
    mean, second = kept.delta.copy(), np.outer(kept.delta, kept.delta)
    middle = isinstance(sampler, probelib.LeimkuhlerMatthews)
    steps = plan["burn_in"] + plan["draws"] * plan["thin"]
    found: list[float] = []
    if sampler.batch_size is None and not kept.delta.any():  # no direction moves another
        second = np.zeros(d)
    matrix = second.ndim == 2
    for step in range(1, steps + 1):
        moved = shrink * mean
        if matrix:
            wide = shrink[:, None] * second * shrink + np.outer(moved, pull)
            wide += np.outer(pull, moved + pull)
            wide += (eps * n_beta / 2) ** 2 * _noise(kept, sampler, mean, second, values)
        else:
            wide = shrink * second * shrink
        if not middle:
            added = np.full(d, eps)
        else:  # Leimkuhler-Matthews: no normal before the first step
            added = np.full(d, eps / 4) if step == 1 else eps / 2 * (1 + shrink)
        wide = wide + (np.diag(added) if matrix else added)
        rest = np.abs(wide - second).max() <= 1e-9 * np.abs(wide).max()
        mean, second = moved + pull, wide
        if step > plan["burn_in"] and (step - plan["burn_in"]) % plan["thin"] == 0:
            found.append(n_beta * kept.change(mean, second))
        if not np.isfinite(second).all() or second.max() > 1e12:
            return math.inf
        if rest:  # nothing changes any more
            last = n_beta * kept.change(mean, second)
            found += [last] * (plan["draws"] - len(found))
            break
    return float(np.mean(found))


def _noise(
    line: Line, sampler: probelib.Sampler, mean: np.ndarray, second: np.ndarray, h: np.ndarray
) -> np.ndarray | float:
    """The expected covariance of the minibatch gradient of L."""
    n, batch = len(line.x), sampler.batch_size
    if batch is None or batch >= n:
        return 0.0
    if isinstance(sampler.gradient, probelib.ControlVariate):  # residuals cancel; u from w*
        cross = np.outer(mean, line.delta)
        second = second - cross - cross.T + np.outer(line.delta, line.delta)
        size = (line.x @ second * line.x).sum(1)
    else:
        size = line.residuals**2 - 2 * line.residuals * (line.x @ mean)
        size += (line.x @ second * line.x).sum(1)
    total = line.x.T @ (size[:, None] * line.x) / n - h[:, None] * second * h
    return total * (n - batch) / ((n - 1) * batch)


def hamiltonian(
    problem: Problem, chains: int = 16, draws: int = 200, leaps: int = 10, seed: int = 0
) -> tuple[float, float]:
    """The LLC under Eq. 1 and its standard error, from Hamiltonian Monte Carlo started at w*.

    The step is adapted during the first third, which is left out, towards 80 % acceptance; the
    number of leaps is random, so that no direction is periodic.
    """
    posterior = problem.posterior
    x, y = posterior.data.batch(slice(0, posterior.n_samples))
    seen_x, seen_y = problem.observe or (x, y)
    center = posterior.center

    def potential(w: Tensor) -> Tensor:
        spread = (w - center).square().sum()
        mean = posterior.losses(w, x, y).mean()
        return posterior.n_beta * mean + posterior.localization / 2 * spread

    force = torch.vmap(torch.func.grad_and_value(potential))
    observed = torch.vmap(lambda w: posterior.losses(w, seen_x, seen_y).mean())
    generator = torch.Generator().manual_seed(seed)
    w = center.expand(chains, -1).clone()
    gradient, energy = force(w)
    step, burn_in, kept = 0.5 / posterior.localization**0.5, draws // 2, []
    for draw in range(burn_in + draws):
        momentum = torch.randn(w.shape, generator=generator, dtype=w.dtype)
        new, new_gradient, p = w, gradient, momentum
        for _ in range(int(torch.randint(leaps // 2, leaps + 1, (), generator=generator))):
            p = p - step / 2 * new_gradient
            new = new + step * p
            new_gradient, new_energy = force(new)
            p = p - step / 2 * new_gradient
        change = new_energy - energy + (p.square() - momentum.square()).sum(1) / 2
        chance = torch.exp(-change.nan_to_num(math.inf)).clamp(max=1)
        taken = torch.rand(chains, generator=generator) < chance
        w = torch.where(taken[:, None], new, w)
        gradient = torch.where(taken[:, None], new_gradient, gradient)
        energy = torch.where(taken, new_energy, energy)
        if draw < burn_in:
            step *= math.exp((float(chance.mean()) - 0.8) / (1 + draw / 10) ** 0.6)
        else:
            kept.append(observed(w).double())
    change = (torch.stack(kept, 1) - observed(center[None]).double()) * posterior.n_beta
    chain_means = change.mean(1).numpy()
    return float(chain_means.mean()), float(chain_means.std(ddof=1) / len(chain_means) ** 0.5)


def truth_of(case: Any) -> tuple[float, float]:
    """The LLC of a case's problem under Eq. 1, with its standard error (0 where it is exact)."""
    problem = case.problem()
    if problem.truth is not None:
        return problem.truth, 0.0
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    found = kept.get(case.problem_name)
    return (found["llc"], found["error"]) if found else (math.nan, math.nan)


def main() -> None:
    """Make the long runs that are not kept yet; a word makes only those that it occurs in."""
    from trust_cases import CASES, NO_BIAS

    needed = {c.problem_name: c.problem for c in CASES if c.fault not in NO_BIAS}
    for name, problem in needed.items():
        kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
        wanted = len(sys.argv) == 1 or any(word in name for word in sys.argv[1:])
        if name in kept or not wanted or problem().truth is not None:
            continue
        value, error = hamiltonian(problem())
        print(f"{name}: {value:.4f} ± {error:.4f}", flush=True)
        kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
        kept[name] = {"llc": value, "error": error}
        KEPT.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
