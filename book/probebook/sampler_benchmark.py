"""Samplers against known answers, over step sizes, at equal numbers of gradients (chapter 09).

    python -m probebook.sampler_benchmark --weights 1e5 --networks 4
    python -m probebook.sampler_benchmark --weights 1e7 --networks 4 --device cuda

A *problem* is a posterior whose LLC is known; the grid is sampler x step size x problem, one row
of a table each. Every row is cached as soon as it is known. The command line leaves the rows of
deep linear networks of one size in ``results/prerun/``, with the recipe that made them, and the
chapter reads them from there. What the rows say is in :mod:`probebook.benchmark_summaries`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from tqdm import tqdm

import probelib
from probebook import known_llc, toys
from probebook.cache import cache_dir, write_atomically
from probebook.deep_linear import (
    DeepLinear,
    DeepLinearLaw,
    deep_linear_coefficient,
    deep_linear_law,
    deep_linear_posterior,
)
from probelib.plan import Plan, Run

__all__ = [
    "SAMPLERS",
    "Budget",
    "Candidate",
    "DeepLinearPlan",
    "Problem",
    "deep_linear_problems",
    "grid",
    "kept_grid",
    "known_problems",
    "measure",
    "measure_choice",
    "problem_of",
    "verdict_of",
    "without_diverged",
]

FORMAT = 1  # of cached rows and of kept runs
_OF_GIBBS = {"sweeps", "burn_in", "gibbs_chains"}
STEPS = tuple(float(f"{step:.3g}") for step in 10.0 ** np.arange(-2, 1.5, 0.5))


# -- samplers ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """A sampler of the benchmark.

    Attributes:
        make: called with ``step_size=`` and ``batch_size=``; gives the sampler.
        gradients_per_step: gradients that one of its steps asks for, such as a trajectory's.
    """

    make: Callable[..., probelib.Sampler]
    gradients_per_step: int = 1


#: The samplers that are compared, by the name that tables and figures show: one line each.
SAMPLERS: dict[str, Candidate] = {
    "SGLD": Candidate(probelib.SGLD),
    "Leimkuhler-Matthews": Candidate(probelib.LeimkuhlerMatthews),
    "RMSprop-SGLD": Candidate(probelib.RMSpropSGLD),
}


@dataclass(frozen=True)
class Budget:
    """What each run may cost, the same for every sampler.

    Attributes:
        gradients: of each chain, burn-in included.
        chains: independent chains.
        draws: kept of each chain, at most.
        burn_in: share of the gradients that comes before the first draw.
        batch_size: of a gradient; None for the full one.
    """

    gradients: int = 2000
    chains: int = 4
    draws: int = 200
    burn_in: float = 1 / 3
    batch_size: int | None = None

    def plan(self, gradients_per_step: int, seed: int) -> Plan:
        """The run's settings for a sampler that needs so many gradients per step."""
        steps = max(8, self.gradients // gradients_per_step)
        burn_in = int(self.burn_in * steps)
        thin = max(1, (steps - burn_in) // self.draws)
        draws = (steps - burn_in) // thin
        return Plan(chains=self.chains, draws=draws, burn_in=burn_in, thin=thin, seed=seed)


# -- problems ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Problem:
    """A posterior whose LLC is known.

    Attributes:
        name: of the problem, one of a kind within its group.
        group: of problems that are ranked among each other.
        posterior: Eq. 1.
        eq1, eq1_se: the LLC of Eq. 1 at its n beta and gamma, and its standard error.
        limit: the learning coefficient, NaN where nobody knows.
        multiplicity: of the limit; 0 where nobody knows.
        depth: layers of a deep linear network; 0 for other models.
    """

    name: str
    group: str
    posterior: probelib.LocalPosterior
    eq1: float
    eq1_se: float = 0.0
    limit: float = math.nan
    multiplicity: int = 0
    depth: int = 0


def problem_of(
    name: str, group: str, posterior: probelib.LocalPosterior, reference: probelib.Estimate
) -> Problem:
    """Any posterior as a problem, with an estimate that one believes in place of the truth.

    The place for a small nonlinear network with long HMC chains, or with weighted draws.
    """
    return Problem(name, group, posterior, reference.value, reference.mcse)


def known_problems(
    regular: Sequence[int] = (8,),
    monomials: Sequence[Sequence[int]] = ((1, 1), (2, 1)),
    n_beta: float = 1000.0,
    localization: float = 10.0,
) -> list[Problem]:
    """Regular models and normal crossings of chapter 05, at one n beta and gamma.

    Args:
        regular: dimensions of linear regressions.
        monomials: exponents of normal crossings.
        n_beta, localization: of Eq. 1.
    """
    problems = []
    for d in regular:
        regression = toys.linear_regression(4 * d, [1.0] * d, noise=0.5, seed=d)
        posterior = probelib.LocalPosterior(
            regression.model, probelib.squared_error, regression.data,
            n_beta=n_beta, localization=localization,
        )  # fmt: skip
        eq1 = regression.llc(n_beta, regression.covariance(n_beta, localization))
        name = f"linear regression, d = {d}"
        problems.append(Problem(name, "regular", posterior, eq1, 0.0, d / 2, 1))
    for exponents in monomials:
        model = known_llc.Monomial(exponents)
        posterior = known_llc.local(model, n_beta, localization)
        eq1 = known_llc.monomial_law(exponents, n_beta, localization).llc
        limit, multiplicity = known_llc.monomial_coefficient(exponents)
        name = f"product of weights to the powers {', '.join(map(str, exponents))}"
        problems.append(Problem(name, "normal crossings", posterior, eq1, 0.0, limit, multiplicity))
    return problems


@dataclass(frozen=True)
class DeepLinearPlan:
    """Which deep linear networks of one size, and Eq. 1 for them.

    Attributes:
        weights: about so many in each network.
        networks: how many; their depths are 2 to 5 in turn.
        n_beta: of Eq. 1.
        localization_per_width: gamma over the largest width, so that the noise in a layer has a
            spectral norm of about 2 / sqrt(this), whatever the width.
        sweeps, burn_in, gibbs_chains: of the Gibbs sampler behind the LLC of Eq. 1.
        seed: of widths and ranks, and of the Gibbs sampler.
    """

    weights: float = 1e3
    networks: int = 4
    n_beta: float = 1000.0
    localization_per_width: float = 1.0
    sweeps: int = 300
    burn_in: int = 100
    gibbs_chains: int = 4
    seed: int = 0

    @property
    def group(self) -> str:
        """Name of the group: the size as a power of ten."""
        return f"10^{round(math.log10(self.weights))} weights"

    def shapes(self) -> list[tuple[tuple[int, ...], int]]:
        """Widths and rank of each network, drawn from the seed."""
        rng = np.random.default_rng([self.seed, round(self.weights)])
        found = []
        for k in range(self.networks):
            depth = 2 + k % 4
            typical = math.sqrt(self.weights / depth)
            widths = np.maximum(2, np.rint(typical * rng.uniform(0.6, 1.4, depth + 1)))
            widths = tuple(int(width) for width in widths)
            found.append((widths, int(rng.integers(0, max(1, min(widths) // 2) + 1))))
        return found


def deep_linear_problems(
    plan: DeepLinearPlan, device: str | torch.device = "cpu", samples: int | None = None
) -> list[Problem]:
    """Deep linear networks with their coefficient and the LLC of Eq. 1, which is cached.

    Args:
        plan: which.
        device: on which they run.
        samples: inputs of each, see :func:`probebook.deep_linear.deep_linear_posterior`.
    """
    problems = []
    for widths, rank in plan.shapes():
        model = DeepLinear(widths, rank).to(device)
        localization = plan.localization_per_width * max(widths)
        law = _cached_law(model, plan, localization)
        limit, multiplicity = deep_linear_coefficient(widths, rank)
        problems.append(
            Problem(
                f"{'–'.join(map(str, widths))}, rank {rank}",
                plan.group,
                deep_linear_posterior(model, plan.n_beta, localization, samples),
                law.llc,
                law.llc_se,
                limit,
                multiplicity,
                len(widths) - 1,
            )
        )
    return problems


def _cached_law(model: DeepLinear, plan: DeepLinearPlan, localization: float) -> DeepLinearLaw:
    settings = {
        "chains": plan.gibbs_chains,
        "sweeps": plan.sweeps,
        "burn_in": plan.burn_in,
        "seed": plan.seed,
    }
    key = {
        "kind": "deep_linear_law",
        "widths": model.widths,
        "rank": model.rank,
        "n_beta": plan.n_beta,
        "localization": localization,
        **settings,
    }
    return DeepLinearLaw(
        **_cached(
            key, lambda: asdict(deep_linear_law(model, plan.n_beta, localization, **settings))
        )
    )


# -- the grid ------------------------------------------------------------------------------------


def grid(
    problems: Sequence[Problem],
    samplers: Mapping[str, Candidate] = SAMPLERS,
    steps: Sequence[float] = STEPS,
    budget: Budget = Budget(),
    *,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """Every sampler at every step size on every problem, one row each.

    Args:
        problems: whose LLC is known.
        samplers: by name.
        steps: step sizes in units of 1 / n beta, the same for all.
        budget: of each run.
        seed: of the chains.
        progress: show a bar.

    Returns:
        The columns of :func:`measure`.
    """
    cells = [(p, name, step) for p in problems for name in samplers for step in steps]
    rows = [
        measure(problem, name, samplers[name], step, budget, seed=seed)
        for problem, name, step in tqdm(cells, "runs", disable=not progress)
    ]
    return pd.DataFrame(rows)


def measure(
    problem: Problem, name: str, candidate: Candidate, step: float, budget: Budget, *, seed: int = 0
) -> dict[str, Any]:
    """One row: a sampler at a step size on a problem, from the cache if it is there.

    Args:
        problem: whose LLC is known.
        name: of the sampler.
        candidate: the sampler.
        step: epsilon n beta.
        budget: of the run.
        seed: of the chains.

    Returns:
        What was run (``problem``, ``group``, ``weights``, ``depth``, ``sampler``, ``step``,
        ``step_size``), the truths (``limit``, ``eq1``, ``eq1_se``), the estimate (``llc``,
        ``mcse``, ``step_bias``, ``ess``), ``relative_error_to_limit`` and
        ``relative_error_to_eq1``, ``effective_per_gradient`` (effective draws of the mean loss
        over all gradients, burn-in included), ``verdict`` ("good", "wide", "wrong"), ``diverged``
        chains, ``gradients`` of all chains, and ``seconds`` when it ran. Where all chains
        diverged, estimates are NaN.
    """
    posterior = problem.posterior
    sampler = candidate.make(step_size=step / posterior.n_beta, batch_size=budget.batch_size)
    plan = budget.plan(candidate.gradients_per_step, seed)
    found = _cached(_key(posterior, sampler, plan), lambda: _estimates(posterior, sampler, plan))
    gradients = plan.chains * candidate.gradients_per_step
    gradients *= plan.burn_in + int(plan.thin) * plan.draws
    return _row(problem, name, sampler.step_size, found, gradients) | {"step": step}


def measure_choice(
    problem: Problem, choose: Callable[..., Any], *, seed: int = 0
) -> dict[str, Any]:
    """One row for settings that somebody else chose, who does not know the truth.

    Args:
        problem: whose LLC is known.
        choose: maps a posterior to what has ``.posterior``, ``.sampler`` and ``.settings`` (chains,
            draws, burn_in, thin), as ``probelib.calibrate`` does; or raises ValueError, which is
            counted as a refusal. A sampler that needs several gradients per step says so by an
            attribute ``gradients_per_step``. What the choice itself cost is not counted.
        seed: of the chains.

    Returns:
        The columns of :func:`measure`, and ``refused``, the reason or "".

    Raises:
        ValueError: the choice has another n beta or gamma, so that its truth is another.
    """
    posterior = problem.posterior
    try:
        chosen = choose(posterior)
    except ValueError as error:
        nothing = dict.fromkeys(("llc", "mcse", "step_bias", "ess"), math.nan)
        found = nothing | {"verdict": "wrong", "diverged": 0, "seconds": 0.0}
        return _row(problem, "refused", math.nan, found, 0) | {"refused": str(error)}
    own = (posterior.n_beta, posterior.localization)
    other = (chosen.posterior.n_beta, chosen.posterior.localization)
    if own != other:
        raise ValueError(
            f"choose gave n_beta and localization {other}, not {own}, at which the "
            f"truth of {problem.name!r} is known"
        )
    plan = Plan(**chosen.settings, seed=seed)
    per_step = getattr(chosen.sampler, "gradients_per_step", 1)
    found = _cached(
        _key(posterior, chosen.sampler, plan), lambda: _estimates(posterior, chosen.sampler, plan)
    )
    gradients = plan.chains * per_step * (plan.burn_in + int(plan.thin) * plan.draws)
    return _row(
        problem, type(chosen.sampler).__name__, chosen.sampler.step_size, found, gradients
    ) | {"refused": ""}


def _key(
    posterior: probelib.LocalPosterior, sampler: probelib.Sampler, plan: Plan
) -> dict[str, Any]:
    """What a row depends on. An estimate or a verdict may change with the code that makes it."""
    fingerprint = Run.of(posterior, None, sampler, plan).fingerprint()
    return {"kind": "sampler_benchmark", "run": fingerprint, "estimators": _estimators()}


def _row(
    problem: Problem, name: str, step_size: float, found: dict[str, Any], gradients: int
) -> dict[str, Any]:
    """Truths, estimates, and how far they are apart."""
    posterior, llc = problem.posterior, found["llc"]
    return {
        "problem": problem.name,
        "group": problem.group,
        "weights": posterior.n_parameters,
        "depth": problem.depth,
        "sampler": name,
        "step": step_size * posterior.n_beta,
        "step_size": step_size,
        "limit": problem.limit,
        "eq1": problem.eq1,
        "eq1_se": problem.eq1_se,
        **found,
        "relative_error_to_limit": llc / problem.limit - 1,
        "relative_error_to_eq1": llc / problem.eq1 - 1,
        "effective_per_gradient": found["ess"] / gradients if gradients else math.nan,
        "gradients": gradients,
    }


def _estimates(
    posterior: probelib.LocalPosterior, sampler: probelib.Sampler, plan: Plan
) -> dict[str, Any]:
    """What one run says. Seconds are those of the run."""
    started = time.perf_counter()
    settings = {
        name: getattr(plan, name) for name in ("chains", "draws", "burn_in", "thin", "seed")
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # diverged chains are counted below
            trace = probelib.sample(posterior, sampler=sampler, progress=False, **settings)
    except (probelib.DivergenceError, OverflowError):
        nothing = dict.fromkeys(("llc", "mcse", "step_bias", "ess"), math.nan)
        seconds = time.perf_counter() - started
        return nothing | {"verdict": "wrong", "diverged": plan.chains, "seconds": seconds}
    seconds = time.perf_counter() - started
    llc = probelib.local_learning_coefficient(without_diverged(trace))
    return {
        "llc": llc.value,
        "mcse": llc.mcse,
        "step_bias": llc.step_bias,
        "ess": llc.ess,
        "verdict": verdict_of(trace),
        "diverged": len(trace.attrs.get("diverged") or {}),
        "seconds": seconds,
    }


def without_diverged(trace: xr.Dataset) -> xr.Dataset:
    """The chains of a trace that stayed finite."""
    return trace.drop_sel(chain=[int(chain) for chain in trace.attrs.get("diverged") or {}])


def verdict_of(trace: xr.Dataset) -> str:
    """The library's verdict: "good", "wide" or "wrong"."""
    found = probelib.diagnostics(trace)
    return "good" if found.good else "wrong" if found.wrong else "wide"


# -- the cache -----------------------------------------------------------------------------------


def _cached(key: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A flat dict of numbers and words, made once for each key."""
    text = json.dumps({"format": FORMAT, **key}, sort_keys=True, default=repr)
    path = cache_dir("sampler_benchmark") / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
    if path.is_file():
        return json.loads(path.read_text())
    found = make()
    write_atomically(path, json.dumps(found).encode())
    return found


def _estimators() -> str:
    """SHA-256 of the code that makes estimates and verdicts."""
    folder = Path(probelib.estimators.__file__).parent
    content = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    return hashlib.sha256(content).hexdigest()


# -- kept runs -----------------------------------------------------------------------------------


def recipe_of(
    plan: DeepLinearPlan, steps: Sequence[float], budget: Budget, seed: int
) -> dict[str, Any]:
    """What decides the rows of a kept run, beside the samplers.

    How long the Gibbs chains were is not in it: how well Eq. 1 is known stands in every row.
    """
    networks = {k: v for k, v in asdict(plan).items() if k not in _OF_GIBBS}
    recipe = {"plan": networks, "steps": list(steps), "budget": asdict(budget), "seed": seed}
    return json.loads(json.dumps(recipe))


def kept_path(folder: Path, plan: DeepLinearPlan) -> Path:
    """Where the rows of networks of this size lie."""
    return folder / f"09_deep_linear_1e{round(math.log10(plan.weights))}.json"


def kept_grid(
    folder: Path, recipe: Mapping[str, Any], samplers: Sequence[str]
) -> pd.DataFrame | None:
    """The rows that a long run left for a recipe, or None.

    Args:
        folder: ``results/prerun``.
        recipe: of :func:`recipe_of`.
        samplers: names of those that are asked for, which must all be there.

    Raises:
        ValueError: the file is damaged, or of another format.
    """
    path = kept_path(folder, DeepLinearPlan(**recipe["plan"]))
    if not path.is_file():
        return None
    try:
        kept = json.loads(path.read_text())
        rows, about = pd.DataFrame(kept["rows"]), kept["about"]
        same = about["recipe"] == recipe and set(samplers) <= set(rows["sampler"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"path {path.name!r} is no kept run of this project ({error})") from error
    if about["format"] != FORMAT:
        raise ValueError(f"path {path.name!r} has format {about['format']}, not {FORMAT}")
    if not same:
        return None
    return rows[rows["sampler"].isin(samplers)].fillna(math.nan).reset_index(drop=True)


def keep_grid(folder: Path, recipe: Mapping[str, Any], rows: pd.DataFrame, **about: Any) -> Path:
    """Write the rows of a run for :func:`kept_grid`, whole or not at all."""
    path = kept_path(folder, DeepLinearPlan(**recipe["plan"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    records = json.loads(rows.to_json(orient="records", double_precision=10))
    content = {"about": {"format": FORMAT, "recipe": recipe, **about}, "rows": records}
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
    return path


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    defaults, cost = DeepLinearPlan(), Budget()
    parser = argparse.ArgumentParser(description="Long runs of chapter 09.")
    parser.add_argument("--weights", type=float, default=defaults.weights)
    parser.add_argument("--networks", type=int, default=defaults.networks)
    parser.add_argument("--n-beta", type=float, default=defaults.n_beta)
    parser.add_argument("--localization-per-width", type=float, default=1.0, help="gamma / width")
    parser.add_argument("--sweeps", type=int, default=defaults.sweeps, help="of the Gibbs chains")
    parser.add_argument("--gibbs-burn-in", type=int, default=defaults.burn_in)
    parser.add_argument("--gibbs-chains", type=int, default=defaults.gibbs_chains)
    parser.add_argument("--gradients", type=int, default=cost.gradients, help="of each chain")
    parser.add_argument("--chains", type=int, default=cost.chains)
    parser.add_argument("--draws", type=int, default=cost.draws)
    parser.add_argument("--steps", type=float, nargs="+", default=STEPS, help="epsilon n beta")
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=list(SAMPLERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--into", type=Path, default=Path("results/prerun"))
    asked = parser.parse_args(arguments)
    plan = DeepLinearPlan(
        asked.weights,
        asked.networks,
        asked.n_beta,
        asked.localization_per_width,
        asked.sweeps,
        asked.gibbs_burn_in,
        asked.gibbs_chains,
        asked.seed,
    )
    budget = Budget(asked.gradients, asked.chains, asked.draws)
    problems = deep_linear_problems(plan, asked.device)
    samplers = {name: SAMPLERS[name] for name in asked.samplers}
    rows = grid(problems, samplers, asked.steps, budget, seed=asked.seed, progress=True)
    recipe = recipe_of(plan, asked.steps, budget, asked.seed)
    is_gpu = asked.device.startswith("cuda")
    device = torch.cuda.get_device_name(0) if is_gpu else f"CPU ({platform.machine()})"
    about = {name: getattr(plan, name) for name in sorted(_OF_GIBBS)}
    about |= {"torch": torch.__version__, "probelib": probelib.__version__}
    path = keep_grid(asked.into, recipe, rows, device=device, **about)
    print(f"{len(rows)} runs in {path}")


if __name__ == "__main__":
    main()
