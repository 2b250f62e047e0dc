"""Samplers against known answers, over step sizes, at equal numbers of gradients (chapter 09).

    python -m probebook.sampler_benchmark --weights 1e5 --networks 4
    python -m probebook.sampler_benchmark --weights 1e7 --networks 4 --device cuda

The problems are those of :mod:`probebook.benchmark_problems`; the grid is sampler x step size x
problem, one row of a table each. Every row is cached as soon as it is known. The command line
leaves the rows of one plan in ``results/prerun/``, with the recipe that made them and what
calibrate chooses for its problems, and the chapter reads them from there. What the rows say is in
:mod:`probebook.benchmark_summaries`.
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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from tqdm import tqdm

import probelib
from probebook.benchmark_problems import DeepLinearPlan, KnownPlan, Problem, cached
from probebook.cache import write_atomically
from probelib.plan import Plan, Run

__all__ = [
    "OF_MINIBATCHES",
    "SAMPLERS",
    "Budget",
    "Candidate",
    "Rows",
    "choices",
    "grid",
    "keep_rows",
    "kept_large",
    "kept_rows",
    "measure",
    "measure_choice",
    "recipe_of",
    "rows_of",
    "verdict_of",
    "without_diverged",
]

FORMAT = 1  # of kept runs
_OF_TRUTH = {"sweeps", "burn_in", "gibbs_chains", "hmc_draws"}
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


def _baoab(step_size: float, batch_size: int | None) -> probelib.Sampler:
    """Half of the momentum is kept in a step, whatever its size."""
    friction = math.log(2) / math.sqrt(step_size)
    return probelib.BAOAB(step_size, batch_size, friction=friction)


#: Leapfrog steps of HMC; one gradient more is where a trajectory begins.
_LEAPS = 9

#: The samplers that are compared, by the name that tables and figures show: one line each.
SAMPLERS: dict[str, Candidate] = {
    "SGLD": Candidate(probelib.SGLD),
    "Leimkuhler-Matthews": Candidate(probelib.LeimkuhlerMatthews),
    "BAOAB": Candidate(_baoab),
    "Exponential Euler": Candidate(probelib.ExponentialEuler),
    "RMSprop-SGLD": Candidate(probelib.RMSpropSGLD),
    "corrected RMSprop-SGLD": Candidate(probelib.CorrectedRMSpropSGLD, 2),
    "MALA": Candidate(probelib.MALA, 2),
    "HMC": Candidate(partial(probelib.HMC, leapfrog_steps=_LEAPS), _LEAPS + 1),
}
#: Those that may follow the gradient of a minibatch.
OF_MINIBATCHES = tuple(name for name in SAMPLERS if name not in ("MALA", "HMC"))


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
    found = cached(_key(posterior, sampler, plan), lambda: _estimates(posterior, sampler, plan))
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
            draws, burn_in, thin, and the sampler if you like), as ``probelib.calibrate`` does; or
            raises ValueError, which is counted as a refusal. A sampler that needs several
            gradients per step says so by an attribute ``gradients_per_step``. What the choice
            itself cost is not counted.
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
    lengths = {name: value for name, value in chosen.settings.items() if name != "sampler"}
    plan = Plan(**lengths, seed=seed)
    per_step = getattr(chosen.sampler, "gradients_per_step", 1)
    found = cached(
        _key(posterior, chosen.sampler, plan), lambda: _estimates(posterior, chosen.sampler, plan)
    )
    gradients = plan.chains * per_step * (plan.burn_in + int(plan.thin) * plan.draws)
    return _row(
        problem, type(chosen.sampler).__name__, chosen.sampler.step_size, found, gradients
    ) | {"refused": ""}


def choices(
    problems: Sequence[Problem], *, error: float = 0.01, seed: int = 0, progress: bool = False
) -> pd.DataFrame:
    """What ``probelib.calibrate`` chooses for each problem, and how far off that is, a row each."""
    choose = partial(probelib.calibrate, error=error, seed=seed)
    rows = [
        measure_choice(problem, choose, seed=seed)
        for problem in tqdm(problems, "calibrated", disable=not progress)
    ]
    return pd.DataFrame(rows)


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


def _estimators() -> str:
    """SHA-256 of the code that makes estimates and verdicts."""
    folder = Path(probelib.estimators.__file__).parent
    content = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    return hashlib.sha256(content).hexdigest()


# -- kept runs -----------------------------------------------------------------------------------


def recipe_of(
    plan: KnownPlan | DeepLinearPlan,
    steps: Sequence[float],
    budget: Budget,
    seed: int,
    error: float = 0.01,
) -> dict[str, Any]:
    """What decides the rows of a kept run, beside the samplers; the error is calibrate's aim.

    How long the Gibbs and HMC chains were is not in it: every row says how well Eq. 1 is known.
    """
    networks = {k: v for k, v in asdict(plan).items() if k not in _OF_TRUTH}
    recipe = {"plan": networks, "steps": list(steps), "budget": asdict(budget), "seed": seed}
    recipe["error"] = error
    return json.loads(json.dumps(recipe))


@dataclass(frozen=True)
class Rows:
    """What is known of the problems of one plan.

    Attributes:
        grid: of :func:`grid`.
        choices: of :func:`choices`; no row where calibrate was not tried.
        kept: whether they come from a kept run.
    """

    grid: pd.DataFrame
    choices: pd.DataFrame
    kept: bool = False


def kept_rows(path: Path, recipe: Mapping[str, Any], samplers: Sequence[str]) -> Rows | None:
    """The rows that a long run left for a recipe, or None.

    Args:
        path: of the kept run.
        recipe: of :func:`recipe_of`.
        samplers: names of those that are asked for, which must all be there; () for all.

    Raises:
        ValueError: the file is damaged, or of another format.
    """
    if not path.is_file():
        return None
    try:
        kept = json.loads(path.read_text())
        rows, chosen = (pd.DataFrame(**kept[name]) for name in ("rows", "choices"))
        about = kept["about"]
        same = about["recipe"] == recipe and set(samplers) <= set(rows["sampler"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"path {path.name!r} is no kept run of this project ({error})") from error
    if about["format"] != FORMAT:
        raise ValueError(f"path {path.name!r} has format {about['format']}, not {FORMAT}")
    if not same:
        return None
    asked = samplers or rows["sampler"].unique()
    rows = rows[rows["sampler"].isin(asked)].fillna(math.nan).reset_index(drop=True)
    return Rows(rows, chosen.fillna(math.nan), True)


def keep_rows(path: Path, recipe: Mapping[str, Any], rows: Rows, **about: Any) -> None:
    """Write the rows of a run for :func:`kept_rows`, whole or not at all: a line of text each."""
    said = {"about": json.dumps({"format": FORMAT, "recipe": recipe, **about})}
    for name, table in (("rows", rows.grid), ("choices", rows.choices)):
        split = json.loads(table.to_json(orient="split", index=False, double_precision=10))
        lines = ",\n".join(json.dumps(row) for row in split["data"])
        said[name] = f'{{"columns": {json.dumps(split["columns"])}, "data": [\n{lines}\n]}}'
    text = ",\n".join(f'"{name}": {value}' for name, value in said.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, f"{{\n{text}\n}}\n".encode())


def rows_of(
    plan: KnownPlan | DeepLinearPlan,
    steps: Sequence[float],
    budget: Budget,
    *,
    prerun: Path | None = None,
    samplers: Sequence[str] = tuple(SAMPLERS),
    error: float = 0.01,
    seed: int = 0,
    progress: bool = False,
) -> Rows:
    """The grid of a plan and what calibrate makes of it: kept, or else made here.

    Args:
        plan: which problems.
        steps, budget, seed, progress: as for :func:`grid`.
        error: that calibrate aims at.
        prerun: folder of kept runs; None for none.
        samplers: names.
    """
    if prerun is not None:
        recipe = recipe_of(plan, steps, budget, seed, error)
        if (kept := kept_rows(prerun / plan.file, recipe, samplers)) is not None:
            return kept
    problems = plan.problems()
    chosen = {name: SAMPLERS[name] for name in samplers}
    made = grid(problems, chosen, steps, budget, seed=seed, progress=progress)
    return Rows(made, choices(problems, error=error, seed=seed, progress=progress))


def kept_large(
    plans: Sequence[DeepLinearPlan],
    steps: Sequence[float],
    budget: Budget,
    prerun: Path,
    seed: int = 0,
) -> pd.DataFrame:
    """Rows of networks that are too large to be run again, of all samplers that were kept."""
    found = []
    for plan in plans:
        recipe = recipe_of(plan, steps, budget, seed)
        kept = kept_rows(prerun / plan.file, recipe, ())
        if kept is not None:
            found.append(kept.grid)
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    defaults, cost = DeepLinearPlan(), Budget()
    parser = argparse.ArgumentParser(description="Long runs of chapter 09.")
    parser.add_argument("--known", action="store_true", help="problems of chapter 05 instead")
    parser.add_argument("--weights", type=float, default=defaults.weights)
    parser.add_argument("--networks", type=int, default=defaults.networks)
    parser.add_argument("--n-beta", type=float, default=defaults.n_beta)
    parser.add_argument("--localization-per-width", type=float, default=10.0, help="gamma / width")
    parser.add_argument("--sweeps", type=int, default=defaults.sweeps, help="of the Gibbs chains")
    parser.add_argument("--gibbs-burn-in", type=int, default=defaults.burn_in)
    parser.add_argument("--gibbs-chains", type=int, default=defaults.gibbs_chains)
    parser.add_argument("--gradients", type=int, default=cost.gradients, help="of each chain")
    parser.add_argument("--chains", type=int, default=cost.chains)
    parser.add_argument("--draws", type=int, default=cost.draws)
    parser.add_argument("--steps", type=float, nargs="+", default=STEPS, help="epsilon n beta")
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=list(SAMPLERS))
    parser.add_argument("--no-choices", action="store_true", help="do not try calibrate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--into", type=Path, default=Path("results/prerun"))
    asked = parser.parse_args(arguments)
    plan = KnownPlan(n_beta=asked.n_beta) if asked.known else _deep_linear_plan(asked)
    budget = Budget(asked.gradients, asked.chains, asked.draws)
    problems = plan.problems(asked.device)
    samplers = {name: SAMPLERS[name] for name in asked.samplers}
    made = grid(problems, samplers, asked.steps, budget, seed=asked.seed, progress=True)
    tried = [] if asked.no_choices else problems
    rows = Rows(made, choices(tried, seed=asked.seed, progress=True))
    is_gpu = asked.device.startswith("cuda")
    device = torch.cuda.get_device_name(0) if is_gpu else f"CPU ({platform.machine()})"
    about = {k: v for k, v in asdict(plan).items() if k in _OF_TRUTH}
    about |= {"torch": torch.__version__, "probelib": probelib.__version__}
    recipe = recipe_of(plan, asked.steps, budget, asked.seed)
    keep_rows(asked.into / plan.file, recipe, rows, device=device, **about)
    print(f"{len(made)} runs in {asked.into / plan.file}")


def _deep_linear_plan(asked: argparse.Namespace) -> DeepLinearPlan:
    return DeepLinearPlan(
        asked.weights,
        asked.networks,
        asked.n_beta,
        asked.localization_per_width,
        asked.sweeps,
        asked.gibbs_burn_in,
        asked.gibbs_chains,
        asked.seed,
    )


if __name__ == "__main__":
    main()
