"""Time to accuracy, against what a user would write or pick instead: ``make bench``.

Each part is measured in one process, contenders in turn, and written to
``results/benchmarks/PART.json``; ``book/benchmarks`` has the table and the figures. Ratios are
what to read: seconds belong to the machine, and to what else it did.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import workloads
from competitors import (
    Chain,
    Probe,
    devinterp_sample,
    plain_loop,
    posteriors_loop,
    wait_for,
)
from report import THIN, write_report
from scipy.stats import spearmanr

import probelib
from probelib import schedule
from probelib.estimators import mcse_of_mean

RESULTS = Path(__file__).resolve().parents[1] / "results" / "benchmarks"
PAGES = Path(__file__).resolve().parents[1] / "book" / "benchmarks"
DEVICE = torch.device("cpu")  # main() may choose another


def posterior_of(probe: Probe) -> probelib.LocalPosterior:
    return probelib.LocalPosterior(
        probe.model,
        probelib.cross_entropy,
        (probe.x, probe.y),
        n_beta=probe.n_beta,
        localization=probe.localization,
    )


def observed(probe: Probe) -> tuple[torch.Tensor, torch.Tensor]:
    return probe.observe_x, probe.observe_y


def sampler_of(probe: Probe) -> probelib.SGLD:
    return probelib.SGLD(step_size=probe.step_size, batch_size=probe.batch_size)


def seconds(work: Callable[[], Any]) -> float:
    wait_for(DEVICE)
    started = time.perf_counter()
    work()
    wait_for(DEVICE)
    return time.perf_counter() - started


def matmul_rate(rows: int = 4096, inner: int = 4096, cols: int = 4096) -> float:
    """GFLOP/s of a float32 matrix product, the best of ten."""
    a, b = torch.randn(rows, inner, device=DEVICE), torch.randn(inner, cols, device=DEVICE)
    out = torch.empty(rows, cols, device=DEVICE)
    best = min(seconds(lambda: torch.mm(a, b, out=out)) for _ in range(10))
    return 2 * rows * inner * cols / best / 1e9


def machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":")[1].strip() if names else model
    if DEVICE.type == "cuda":
        model = torch.cuda.get_device_name(DEVICE)
    return {
        "device": model,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "fast_bfloat16": schedule.has_fast_bfloat16(DEVICE),
        "torch": torch.__version__,
    }


# --- the statistical half: what a draw is worth -------------------------------------------------


def law(
    probe: Probe, chains: int, steps: int, watch: int = 256, burn_in: int = schedule.BURN_IN
) -> dict[str, Any]:
    """What thinning does to the standard error, from long chains with a few samples watched.

    Every contender draws from the same law, so that this holds for all of them.
    """
    x, y = observed(probe)
    index = np.unique(np.linspace(0, len(y) - 1, watch, dtype=int))
    trace = probelib.sample(
        posterior_of(probe),
        (x[index], y[index]),
        sampler=sampler_of(probe),
        chains=chains,
        draws=steps,
        burn_in=burn_in,
        seed=1,
        progress=False,
    )
    loss = trace.loss.values.astype(np.float64)
    unit = {}
    for k in (k for k in THIN if steps // k >= 20):
        some = loss[:, ::k]
        # Squared error of the mean of one draw: what the number of draws divides.
        unit[k] = np.median(np.square(mcse_of_mean(some)) * some[..., 0].size)
    variance = np.median(loss.var((0, 1), ddof=1))
    return {"law_steps": chains * steps, "gain_variance_median": float(variance)} | {
        f"error2_a_draw_thin_{k}": float(v) for k, v in unit.items()
    }


# --- the other half: what a draw costs -----------------------------------------------------------


def rates(probe: Probe, chains: int, draws: int, rounds: int, steps: int) -> dict[str, Any]:
    """Seconds a draw and a step of each contender, in turn, by the median of ratios over rounds.

    Ours and devinterp's are differences of whole calls, so that what a call does once (checks,
    fingerprints, losses at w*) is apart: draws with everything observed, steps with nearly nothing.
    """
    few = replace(
        probe,
        observe_x=probe.observe_x[: probe.batch_size],
        observe_y=probe.observe_y[: probe.batch_size],
    )
    posterior, found = posterior_of(probe), {}

    def add(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    def ours(probe: Probe, draws: int, thin: int) -> float:
        return seconds(
            lambda: probelib.sample(
                posterior,
                observed(probe),
                sampler=sampler_of(probe),
                chains=chains,
                draws=draws,
                thin=thin,
                progress=False,
            )
        )

    def devinterp(probe: Probe, draws: int, thin: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "samples.zarr"
            return devinterp_sample(
                probe, 0, chains=1, draws=draws, burn_in=0, path=path, thin=thin
            )[1]

    loops: dict[str, Iterator[Chain]] = {
        "plain": plain_loop(probe, seed=0),
        "posteriors": posteriors_loop(probe, seed=0),
    }
    stepping = {"plain": plain_loop(few, 0, steps), "posteriors": posteriors_loop(few, 0, steps)}
    for chain in (*loops.values(), *stepping.values()):
        next(chain)
    ours(few, 1, 1), devinterp(few, 1, 1)
    # devinterp writes every step to disk after min(50, draws) of them: let it have its buffer.
    kept = min(50, steps)
    for _ in range(rounds):
        for name, call, at_once in (("ours", ours, chains), ("devinterp", devinterp, 1)):
            once = call(probe, 1, 1)
            add(f"{name}_draw", (call(probe, 1 + draws, 1) - once) / draws / at_once)
            once = call(few, kept, 1)
            taken = kept * (steps // kept)
            long = call(few, kept, 1 + steps // kept)
            add(f"{name}_step", (long - once) / taken / at_once)
        for name, chain in loops.items():
            add(f"{name}_draw", seconds(lambda: [next(chain) for _ in range(draws)]) / draws)  # noqa: B023
            before = next(stepping[name])
            before = before.step_seconds, before.steps
            now = next(stepping[name])
            add(f"{name}_step", (now.step_seconds - before[0]) / (now.steps - before[1]))
    # Round by round against ours: the machine's speed drifts, and neighbours in time share it.
    out = {}
    for what in ("draw", "step"):
        mine = np.array(found[f"ours_{what}"])
        for name in ("ours", *loops, "devinterp"):
            ratio = float(np.median(np.array(found[f"{name}_{what}"]) / mine))
            out[f"{name}_{what}"] = float(np.median(mine)) * ratio
    return out


def compare(counts: dict[str, Any], time_of: dict[str, float]) -> dict[str, float]:
    """Ratios to ours of the time to a given error: at thin=1, and each at its best thinning."""
    unit = {
        k: counts[f"error2_a_draw_thin_{k}"] for k in THIN if f"error2_a_draw_thin_{k}" in counts
    }

    def best(step: float, draw: float) -> tuple[float, int]:
        return min(((draw + (k - 1) * step) * e, k) for k, e in unit.items())

    ours, k = best(time_of["ours_step"], time_of["ours_draw"])
    out: dict[str, float] = {"ours_best_thin": k, "ours_seconds_nats2": ours}
    for name in ("plain", "posteriors", "devinterp"):
        draw, step = time_of[f"{name}_draw"], time_of[f"{name}_step"]
        out[f"{name}_ratio"] = draw * unit[1] / ours
        out[f"{name}_thinned_ratio"] = best(step, draw)[0] / ours
        out[f"{name}_step_ratio"] = step / time_of["ours_step"] if time_of["ours_step"] else np.nan
    out["thinning_gain"] = time_of["ours_draw"] * unit[1] / ours
    return out


def throughput(probe: Probe) -> dict[str, float]:
    """The observation pass beside the machine's own matrix product, in turn, best of five."""
    posterior = posterior_of(probe)
    x, y = observed(probe)
    one = schedule.cost_of_pass(lambda a, b: posterior.losses(posterior.center, a, b), x[:4], y[:4])
    batch = schedule.observe_batch(one.bytes, posterior.device)

    @torch.no_grad()
    def look() -> None:
        for start in range(0, len(y), batch):
            posterior.losses(posterior.center, x[start : start + batch], y[start : start + batch])

    passes, products = [], []
    for _ in range(5):
        products.append(matmul_rate())
        passes.append(one.flops * len(y) / seconds(look) / 1e9)
    return {
        "flops_a_sample": one.flops,
        "observe_batch_size": batch,
        "observation_gflops": max(passes),
        "matmul_gflops": max(products),
        "observation_share": float(np.median(np.array(passes) / np.array(products))),
    }


WORKLOADS: dict[str, tuple[Callable[[], Probe], dict[str, int]]] = {
    "mnist": (
        workloads.mnist_mlp,
        {"chains": 5, "draws": 2, "rounds": 5, "steps": 50, "law": 1500},
    ),
    "small": (
        workloads.small_mlp,
        {"chains": 5, "draws": 400, "rounds": 5, "steps": 200, "law": 1000},
    ),
    "transformer": (
        workloads.transformer,
        {"chains": 4, "draws": 2, "rounds": 3, "steps": 20, "law": 200},
    ),
    "inception": (
        workloads.inception,
        {"chains": 2, "draws": 1, "rounds": 3, "steps": 3, "law": 60, "watch": 16, "burn_in": 20},
    ),
}


def workload(name: str) -> dict[str, Any]:
    make, size = WORKLOADS[name]
    probe = make().to(str(DEVICE))
    found = machine() | {
        "n_observed": len(probe.observe_y),
        "n_samples": len(probe.y),
        "n_parameters": sum(p.numel() for p in probe.model.parameters()),
        "chains": size["chains"],
    }
    found |= throughput(probe)
    options = {k: size[k] for k in ("watch", "burn_in") if k in size}
    counts = law(probe, size["chains"], size["law"], **options)
    time_of = rates(probe, size["chains"], size["draws"], size["rounds"], size["steps"])
    return found | counts | time_of | compare(counts, time_of)


# --- end to end ---------------------------------------------------------------------------------


def accuracy(target: float = 0.13, chains: int = 5, part: float = 0.3) -> dict[str, Any]:
    """Wall time until the median standard error of 60,000 loss gains is ``target`` nats.

    Ours runs before and after each competitor (A B A C A D A), to its end. A competitor runs for
    a part of the draws that it needs; :func:`at_target` says how much longer it would take.
    """
    probe = workloads.mnist_mlp().to(str(DEVICE))
    posterior = posterior_of(probe)
    found = machine() | law(probe, chains, 1500) | {"target": target, "chains": chains}
    draws = round(part * found["error2_a_draw_thin_1"] / target**2 / chains)
    found["their_draws"] = draws
    watched = schedule.watched(len(probe.observe_y))
    mine: list[float] = []

    def error(losses: np.ndarray) -> float:
        index = watched[watched < losses.shape[-1]]  # devinterp drops the last, smaller batch
        return float(np.median(mcse_of_mean(losses[..., index].astype(np.float64))))

    def ours() -> None:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            trace = probelib.sample(
                posterior,
                sampler=sampler_of(probe),
                chains=chains,
                draws=2000,
                burn_in=schedule.BURN_IN,
                thin="auto",
                until=target,
                store=Path(folder) / "trace.zarr",
                progress=False,
            )
            took = time.perf_counter() - started
            reached = error(trace.loss.values)
        mine.append(took)
        found.update(
            ours_draws=trace.sizes["draw"],
            ours_thin=trace.attrs["config"]["thin"],
            ours_mcse=reached,
        )
        print(f"  ours: {took:.1f} s, {trace.sizes['draw']} draws, error {reached:.3f}", flush=True)

    def by_loop(loop: Callable[..., Iterator[Chain]]) -> np.ndarray:
        rows = []
        for chain in range(chains):
            draw = loop(probe, seed=chain)
            for _ in range(10 + draws):  # the burn-in of Table 1 too, which is not charged
                state = next(draw)
            rows.append(state.losses[10:])
        return np.array(rows)

    def devinterp() -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            return devinterp_sample(
                probe, 0, chains=chains, draws=draws, burn_in=10, path=Path(folder) / "s.zarr"
            )[0]

    runs = {
        "plain": lambda: by_loop(plain_loop),
        "devinterp": devinterp,
        "posteriors": lambda: by_loop(posteriors_loop),
    }
    ours()
    for name, run in runs.items():
        started = time.perf_counter()
        losses = run()
        found[f"{name}_raw_seconds"] = time.perf_counter() - started
        found[f"{name}_observed"] = draws + (0 if name == "devinterp" else 10)
        found[f"{name}_mcse"] = error(losses)
        del losses
        print(f"  {name}: {found[f'{name}_raw_seconds']:.1f} s", flush=True)
        ours()
        found[f"{name}_ours_raw_seconds"] = float(np.mean(mine[-2:]))
    return found | at_target(found)


def at_target(found: dict[str, Any]) -> dict[str, float]:
    """Seconds at which each contender reaches the target, and their ratios to ours.

    By the law of the chain: 5 x 1,500 draws say what variance a draw leaves at each thinning. An
    error that a hundred correlated draws estimate for themselves is too small, the more so the
    more they are correlated; ratios by these are kept beside.
    """
    target, chains = found["target"], found["chains"]
    near = min(
        (k for k in THIN if f"error2_a_draw_thin_{k}" in found),
        key=lambda k: abs(k - found["ours_thin"]),
    )

    def needed(thin: int) -> float:
        """Draws a chain."""
        return found[f"error2_a_draw_thin_{thin}"] / (chains * target**2)

    mine = needed(near) / found["ours_draws"]
    out = {"their_needed_draws": needed(1)}
    for name in ("plain", "devinterp", "posteriors"):
        a_draw = found[f"{name}_raw_seconds"] / found[f"{name}_observed"]
        ours = found[f"{name}_ours_raw_seconds"]
        out[f"{name}_seconds"] = a_draw * needed(1)
        out[f"{name}_ratio"] = a_draw * needed(1) / (ours * mine)
        own = found["their_draws"] * (found[f"{name}_mcse"] / found["ours_mcse"]) ** 2
        out[f"{name}_ratio_by_own_error"] = a_draw * own / ours
        out["ours_seconds"] = ours * mine
    return out


# --- the rest -----------------------------------------------------------------------------------


def precision(draws: int = 20) -> dict[str, Any]:
    """What bfloat16 in the observation pass and float16 on disk do to gains, ranks and kernel.

    Where no unit multiplies bfloat16, its products are emulated: operands rounded to bfloat16,
    accumulated in float32, the result rounded.
    """
    probe = workloads.mnist_mlp(observed=10_000)

    class Rounded(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not torch.is_autocast_enabled("cpu"):
                return super().forward(x)
            with torch.autocast("cpu", enabled=False):
                x, w, b = (t.bfloat16().float() for t in (x, self.weight, self.bias))
                return torch.nn.functional.linear(x, w, b).bfloat16()

    emulated = not schedule.has_fast_bfloat16(torch.device("cpu"))
    if emulated:
        for module in probe.model.modules():
            if type(module) is torch.nn.Linear:
                module.__class__ = Rounded
    posterior = posterior_of(probe)

    def run(**options: Any) -> Any:
        return probelib.sample(
            posterior,
            observed(probe),
            sampler=sampler_of(probe),
            chains=5,
            draws=draws,
            burn_in=100,
            thin=12,
            progress=False,
            **options,
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traces = {
            "float32": run(),
            "bfloat16": run(observe_dtype="bfloat16"),
            "float16_on_disk": run(loss_dtype="float16"),
        }
    full = probelib.loss_gain(traces["float32"])
    some = np.arange(0, 10_000, 5)
    r = probelib.loss_kernel(traces["float32"]).correlation(some, some)
    other = run(seed=1)
    noise = float(np.median(np.abs(probelib.loss_gain(other) - full)))
    out = machine() | {
        "emulated": emulated,
        "draws": 5 * draws,
        "gain_change_by_seed": noise,
        "kernel_change_by_seed": float(
            np.median(np.abs(probelib.loss_kernel(other).correlation(some, some) - r))
        ),
    }
    for name, trace in list(traces.items())[1:]:
        gain = probelib.loss_gain(trace)
        out |= {
            f"{name}_gain_correlation": float(np.corrcoef(gain, full)[0, 1]),
            f"{name}_gain_rank_correlation": float(spearmanr(gain, full).statistic),
            f"{name}_gain_change": float(np.median(np.abs(gain - full))),
            f"{name}_gain_change_in_mcse": float(np.median(np.abs(gain - full) / full.mcse)),
            f"{name}_kernel_change": float(
                np.median(np.abs(probelib.loss_kernel(trace).correlation(some, some) - r))
            ),
        }
        change = np.abs(trace.loss.values / traces["float32"].loss.values.clip(1e-30) - 1)
        out[f"{name}_loss_relative_error"] = float(np.median(change))
    return out


def scaling() -> dict[str, Any]:
    """Cost against observed samples and draws, and against n where few are observed."""
    probe = workloads.mnist_mlp()
    posterior, found = posterior_of(probe), machine()

    def run(posterior: Any, observe: Any, draws: int) -> float:
        return seconds(
            lambda: probelib.sample(
                posterior, observe, sampler=sampler_of(probe), chains=2, draws=draws, progress=False
            )
        )

    run(posterior, (probe.x[:1000], probe.y[:1000]), 2)
    for n in (3750, 7500, 15_000, 30_000, 60_000):
        some = probe.x[:n], probe.y[:n]
        best = min(run(posterior, some, 9) - run(posterior, some, 1) for _ in range(3))
        found[f"seconds_observed_{n}"] = best / 8
    few = probe.x[:7500], probe.y[:7500]
    start = min(run(posterior, few, 1) for _ in range(3))
    for draws in (5, 10, 20, 40, 80):
        found[f"seconds_draws_{draws}"] = (
            min(run(posterior, few, 1 + draws) for _ in range(2)) - start
        )
    for n in (15_000, 60_000, 240_000):
        times = -(-n // 60_000)
        x, y = probe.x.repeat(times, 1)[:n], probe.y.repeat(times)[:n]
        larger = posterior_of(replace(probe, x=x, y=y))
        few = x[:1000], y[:1000]
        best = min(run(larger, few, 101) - run(larger, few, 1) for _ in range(3))
        found[f"seconds_of_n_{n}"] = best / 100
    return found


def peak(code: str) -> tuple[float, float, dict[str, Any]]:
    """Run code that prints a JSON line in a process of its own: MiB before, MiB at most, the line.

    Linux only: it reads the peak from /proc.

    The code calls ``before()`` where its data is there and its work begins.
    """
    prelude = """
import contextlib, json, pathlib
def rss(field):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(l.split()[1]) / 1024 for l in lines if l.startswith(field + ":"))
def before():
    global start
    start = rss("VmRSS")
    with contextlib.suppress(OSError):  # forget the peak so far
        pathlib.Path("/proc/self/clear_refs").write_text("5")
"""
    end = "\nprint(json.dumps([start, rss('VmHWM')]))"
    done = subprocess.run(
        [sys.executable, "-c", prelude + code + end],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    *_, line, memory = done.stdout.strip().splitlines()
    start, most = json.loads(memory)
    return start, most, json.loads(line)


def memory() -> dict[str, Any]:
    """Peak resident memory of a probe of MNIST with five chains, beyond data and libraries."""
    code = """
import tempfile, workloads, probelib
from run import posterior_of, sampler_of
probe = workloads.mnist_mlp()
posterior = posterior_of(probe)
before()
with tempfile.TemporaryDirectory() as folder:
    probelib.sample(posterior, sampler=sampler_of(probe), chains=5, draws=20, progress=False,
                    store=folder + "/trace.zarr")
print(json.dumps({"data_mib": (probe.x.nbytes + probe.y.nbytes) / 2**20}))
"""
    start, most, line = peak(code)
    return machine() | line | {"before_mib": start, "peak_mib": most, "beyond_mib": most - start}


def topk(n: int = 1_000_000, draws: int = 1000, rows: int = 2048, k: int = 16) -> dict[str, Any]:
    """The nearest of a million samples by a thousand draws, for some of them, from disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.zarr"
        rng = np.random.default_rng(0)
        axes = rng.normal(size=(draws, 30)).astype(np.float32)
        store = probelib.store.DiskStore(path)
        sizes = probelib.store.Sizes(chain=1, draw=draws, step=1, sample=n)
        start = probelib.store.Start(sizes, np.zeros(n, np.float32), None, "float32")
        config = {"n_beta": 10.0, "chains": 1, "draws": draws, "burn_in": 0, "thin": 1}
        attrs = {"config": config, "fingerprint": {}, "seed": 0, "device": "cpu", "wall_time": 0.0}
        attrs |= {"observe_batch_size": 1, "observe_together": False}
        store.create(start, [1], attrs)
        loadings = rng.normal(size=(30, n)).astype(np.float32)
        for first in range(0, draws, 50):
            loss = axes[first : first + 50] @ loadings
            loss += rng.standard_normal(loss.shape, np.float32)
            store.write_draws(slice(0, 1), first, loss[None], np.ones((1, len(loss))))
        store.commit(slice(0, 1), probelib.store.Progress(draws_done=draws), None)
        store.finish(config)
        code = f"""
import time, numpy as np, probelib, torch
trace = probelib.open_trace({str(path)!r})
before()
started = time.perf_counter()
kernel = probelib.loss_kernel(trace)
near = kernel.top_correlated(k={k}, rows=np.arange({rows}) * ({n} // {rows}))
took = time.perf_counter() - started
from run import matmul_rate
print(json.dumps({{"seconds": took, "matmul_gflops": matmul_rate(),
                   "correlation_median": float(np.median(near.correlation))}}))
"""
        start, most, line = peak(code)
    rate = 2 * n * rows * draws / line["seconds"] / 1e9
    return (
        machine()
        | line
        | {
            "n": n,
            "draws": draws,
            "rows": rows,
            "k": k,
            "peak_mib": most,
            "beyond_mib": most - start,
            "gflops": rate,
            "share": rate / line["matmul_gflops"],
            "whole_hours": line["seconds"] * n / rows / 3600,
        }
    )


class Mirrored(probelib.SGLD):
    """SGLD with its noise mirrored."""

    def step(self, state: Any, gradient: Any, noise: Any, target: Any) -> Any:
        """One step with minus the normals."""
        return super().step(state, gradient, lambda: noise().neg(), target)


def tried(steps: int = 1600, chains: int = 4) -> dict[str, Any]:
    """Two ways to fewer observations that do not pay on MNIST, 500 digits watched.

    Antithetic chains share their minibatches and mirror their noise. A regression on the losses of
    other digits would let a long chain that observes few of them stand in for draws of all.
    """
    probe = workloads.mnist_mlp()
    posterior = posterior_of(probe)
    index = np.unique(np.linspace(0, len(probe.y) - 1, 500, dtype=int))
    some = probelib.data.Samples((probe.x[index], probe.y[index]), posterior.device)
    plan = probelib.plan.Plan(chains=chains)
    observe = some.batch(slice(0, len(some)))
    pair = [
        probelib.chains.Chains(probelib.plan.Run.of(posterior, observe, sampler, plan))
        for sampler in (sampler_of(probe), Mirrored(probe.step_size, probe.batch_size))
    ]
    rows: list[list[np.ndarray]] = [[], []]
    for step in range(steps):
        for run, row in zip(pair, rows, strict=True):
            run.advance()
            if step >= 100 and step % 4 == 0:
                row.append(run.observe().numpy().astype(np.float64))
    one, other = (np.stack(row, 1) for row in rows)
    apart = one[:, ::4].var((0, 1)), ((one + other) / 2)[:, ::4].var((0, 1))
    found = {"antithetic_gain": float(np.median(apart[0] / (2 * apart[1])))}
    # The regression is fitted on half of the chains and judged on the others.
    fit, judge = (x.reshape(-1, x.shape[-1]) for x in (one[: chains // 2], one[chains // 2 :]))
    mean, spread = fit.mean(0), fit.std(0) + 1e-12
    watched, wanted = slice(0, None, 2), slice(1, None, 2)
    axes = np.linalg.svd(((fit - mean) / spread)[:, watched], full_matrices=False)[2]
    for rank in (5, 20, 80):
        a, b = (((x - mean) / spread)[:, watched] @ axes[:rank].T for x in (fit, judge))
        weights = np.linalg.lstsq(a, (fit - mean)[:, wanted], rcond=None)[0]
        left = (judge - mean)[:, wanted] - b @ weights
        explained = 1 - left.var(0) / judge[:, wanted].var(0)
        found[f"regression_{rank}_explained"] = float(np.median(explained))
    return machine() | found


def table_1() -> dict[str, Any]:
    """InceptionV1 at Table 1's size, extrapolated: 30 chains of 1,100 steps, 2,500 observed.

    The paper names 3 hours on four A100s.
    """
    probe = replace(workloads.inception(size=224, images=1000), batch_size=64).to(str(DEVICE))
    posterior, found = posterior_of(probe), machine()
    for dtype in ("float32", "auto"):

        def run(draws: int, thin: int, dtype: str = dtype) -> float:
            return seconds(
                lambda: probelib.sample(
                    posterior,
                    sampler=sampler_of(probe),
                    chains=1,
                    draws=draws,
                    thin=thin,
                    observe_dtype=dtype,
                    progress=False,
                )
            )

        run(1, 1)
        once, more, long = run(1, 1), run(4, 1), run(4, 4)
        step = (long - more) / 12
        look = (more - once) / 3 - step
        found |= {
            f"{dtype}_step_seconds": step,
            f"{dtype}_pass_of_1000_seconds": look,
            f"{dtype}_table_1_gpu_hours": 30 * (1100 * step + 1000 * 2.5 * look) / 3600,
        }
    return found


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    **{name: (lambda name=name: workload(name)) for name in WORKLOADS},
    "accuracy": accuracy,
    "precision": precision,
    "scaling": scaling,
    "memory": memory,
    "topk": topk,
    "tried": tried,
    "table_1": table_1,
}
CPU_PARTS = [name for name in PARTS if name != "table_1"]


def main() -> None:
    global DEVICE
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", type=torch.device, default=DEVICE, help="such as cuda")
    asked = parser.parse_args()
    unknown = sorted(set(asked.parts) - set(PARTS))
    if unknown:
        parser.error(f"no part {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    torch.set_num_threads(asked.threads)
    DEVICE = asked.device
    folder = RESULTS if DEVICE.type == "cpu" else RESULTS / DEVICE.type
    folder.mkdir(parents=True, exist_ok=True)
    usual = CPU_PARTS if DEVICE.type == "cpu" else [*WORKLOADS, "accuracy", "table_1"]
    for name in asked.parts or usual:
        print(name, flush=True)
        started = time.perf_counter()
        try:
            found = PARTS[name]()
        except (FileNotFoundError, ModuleNotFoundError) as error:
            print(f"  left out: {error}")
            continue
        found["minutes"] = (time.perf_counter() - started) / 60
        found["peak_process_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        text = json.dumps(found, indent=1, sort_keys=True)
        (folder / f"{name}.json").write_text(text + "\n")
        print(text, flush=True)
    write_report(folder, PAGES if DEVICE.type == "cpu" else folder)


if __name__ == "__main__":
    main()
