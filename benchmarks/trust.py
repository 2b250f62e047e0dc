"""Runs of known truth, what the verdict says of them, and whether it is right: ``make trust``.

``python benchmarks/trust.py WORD`` runs only the cases in whose description WORD occurs, prints
what it found, and keeps nothing. Results go to ``results/benchmarks/trust.json``, the tables of
``book/trust.md`` to ``book/benchmarks/trust.md``.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import subprocess
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import intervals
import numpy as np
import torch
from trust_cases import CASES, NO_BIAS, SOUND, WIDE, WRONG, Case
from trust_report import is_mistaken, write_report
from trust_truth import expected_llc, truth_of

import probelib

ROOT = Path(__file__).resolve().parents[1]
SEEDS = (0, 1)


def judge(case: Case, seed: int, cache: str | None = None) -> dict[str, Any]:
    """Run a case, ask for the verdict, and compare its LLC with the truth."""
    since = time.perf_counter()
    truth, truth_error = truth_of(case)
    found: dict[str, Any] = {
        "name": case.name,
        "kind": case.kind,
        "expected": case.expected,
        "fault": case.fault,
        "seed": seed,
        "truth": truth,
        "truth_error": truth_error,
    }
    if case.how is not None:
        problem = case.problem()
        expected = expected_llc(problem, case.how.sampler(problem), case.plan)
        if expected is not None:
            found["expected_llc"] = expected
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            trace = case.run(seed, **({"cache": cache} if cache and case.how else {}))
            found |= {"verdict": WRONG, "llc": math.nan, "mcse": math.nan, "reasons": []}
            llc = probelib.local_learning_coefficient(trace)
            found |= {"llc": llc.value, "mcse": llc.mcse, "step_bias": llc.step_bias}
            found |= verdict_of(trace)
        except (ValueError, probelib.DivergenceError) as error:  # refused: nothing is approved
            found |= {"verdict": WRONG, "reasons": [type(error).__name__], "said": [str(error)]}
            found = {"llc": math.nan, "mcse": math.nan, "step_bias": math.nan} | found
    found["seconds"] = round(time.perf_counter() - since, 2)
    return found


def verdict_of(trace: Any) -> dict[str, Any]:
    """What ``diagnostics`` says: sound, wide or wrong, and what speaks against the trace."""
    verdict = probelib.diagnostics(trace)
    against = [finding for finding in verdict.findings if not finding.good]
    names = [finding.name for finding in against]
    word = SOUND if verdict.good else WRONG if verdict.wrong else WIDE
    return {"verdict": word, "reasons": names, "said": [f.sentence for f in against]}


def measured_bias(runs: list[dict[str, Any]]) -> tuple[float, float]:
    """The relative bias of a case's LLC and its error: of its expectation where that is known."""
    truth, of_truth = runs[0]["truth"], runs[0]["truth_error"]
    if "expected_llc" in runs[0]:
        return runs[0]["expected_llc"] / truth - 1, 0.0
    mean = float(np.mean([run["llc"] for run in runs]))
    error = float(np.sqrt(np.sum([run["mcse"] ** 2 for run in runs]))) / len(runs)
    return mean / truth - 1, math.hypot(error, of_truth) / abs(truth)


def by_case(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry a case: what all its runs share, and a list of what each found."""
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in runs:
        grouped.setdefault((run["kind"], run["name"]), []).append(run)
    shared = "name", "kind", "expected", "fault", "truth", "truth_error"
    each = "seed", "llc", "mcse", "step_bias", "reasons", "said", "seconds"
    cases = []
    for of in grouped.values():
        bias, error = measured_bias(of)
        case = {key: of[0][key] for key in shared} | {"bias": bias, "bias_error": error}
        case |= {key: [run.get(key) for run in of] for key in each}
        cases.append(case | {"verdicts": [run["verdict"] for run in of]})
    return cases


def summary(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Totals. A case counts as mistaken if one of its runs is."""
    totals: dict[str, Any] = {"seeds": max(len(case["seed"]) for case in cases)}
    for expected in (SOUND, WIDE, WRONG):
        of = [case for case in cases if case["expected"] == expected]
        totals[f"{expected}_cases"] = len(of)
        totals[f"{expected}_runs"] = sum(len(case["verdicts"]) for case in of)
        for word in (SOUND, WIDE, WRONG):
            called = sum(case["verdicts"].count(word) for case in of)
            totals[f"{expected}_called_{word}"] = called
        totals[f"{expected}_mistaken"] = sum(map(is_mistaken, of))
    totals["false_alarms"], totals["misses"] = totals["sound_mistaken"], totals["wrong_mistaken"]
    return totals


def doubtful(cases: list[dict[str, Any]]) -> list[str]:
    """Cases whose bias, as measured, does not bear out what they are said to be."""
    found = []
    for case in cases:
        bias, error = abs(case["bias"]), case["bias_error"]
        if case["expected"] != WRONG:
            wrong = not bias - 2 * error < 0.05
        else:
            wrong = case["fault"] not in NO_BIAS and not bias + 2 * error > 0.1
        if wrong:
            found.append(f"{case['kind']}, {case['name']}: {case['bias']:+.3f} ± {error:.3f}")
    return found


def plain(value: Any) -> Any:
    """The same for JSON, which knows no NaN."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run_all(
    cases: list[Case], seeds: tuple[int, ...], pool: ProcessPoolExecutor, cache: str | None = None
) -> list[dict[str, Any]]:
    """Every case with every seed, in processes of one thread; printed as they come."""
    tasks = [(case.name, case.kind, seed, cache) for case in cases for seed in seeds]
    runs = []
    for run in pool.map(_judge, tasks):
        runs.append(run)
        print(_line(run), flush=True)
    return runs


def _one_thread() -> None:
    torch.set_num_threads(1)


def _judge(task: tuple[str, str, int, str | None]) -> dict[str, Any]:
    name, kind, *options = task
    case = next(case for case in CASES if (case.name, case.kind) == (name, kind))
    return judge(case, *options)


def _line(run: dict[str, Any]) -> str:
    right = {SOUND: run["verdict"] == SOUND, WRONG: run["verdict"] != SOUND}
    mark = "   " if right.get(run["expected"], run["verdict"] != SOUND) else "!!!"
    bias = measured_bias([run])
    return (
        f"{mark} {run['expected']:5} called {run['verdict']:5} {run['kind'][:24]:24} "
        f"{run['name'][:44]:44} LLC {run['llc']:9.4g} ± {run['mcse']:.2g} "
        f"truth {run['truth']:9.4g} bias {bias[0]:+.3f} ± {bias[1]:.3f} "
        f"{','.join(run['reasons'])} {run['seconds']} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="only cases in whose description one occurs")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--cache", help="a folder that keeps the traces, to try other verdicts")
    parser.add_argument("--into", type=Path, help="another file for the results of all cases")
    asked = parser.parse_args()
    of = [" ".join((case.expected, case.fault, case.kind, case.name)) for case in CASES]
    cases = [
        case
        for case, text in zip(CASES, of, strict=True)
        if not asked.words or any(word in text for word in asked.words)
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(asked.jobs, mp_context=context, initializer=_one_thread) as pool:
        # Studies first: they take longest, and would else keep one process busy at the end.
        studies = (
            {} if asked.words else {name: pool.submit(study) for name, study in STUDIES.items()}
        )
        found = by_case(run_all(cases, tuple(asked.seeds), pool, asked.cache))
        measured = {name: study.result() for name, study in studies.items()}
    totals = summary(found)
    print(json.dumps(totals, indent=1))
    for line in doubtful(found):
        print(f"doubtful: {line}")
    if asked.words:
        return
    results = {**totals, **measured, "cases": found}
    into = asked.into or ROOT / "results" / "benchmarks" / "trust.json"
    into.write_text(json.dumps(plain(results), indent=1, sort_keys=True) + "\n")
    write_report(plain(results), ROOT / "book" / "benchmarks" / "trust.md")
    subprocess.run(
        [sys.executable, ROOT / "book" / "quote.py", ROOT / "book" / "trust.md"], check=True
    )


#: Coverage of intervals, stopping on an error, neighbours.
STUDIES = {
    "coverage": intervals.errors,
    "stopping": intervals.stopping,
    "neighbours": intervals.neighbours,
}


if __name__ == "__main__":
    main()
