"""From the measured numbers to what the book shows: one page of tables, two figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, NullFormatter

from probelib.plotting import BLUE, GREEN, ORANGE, VERMILION, figure

CONTENDERS = {
    "plain": "plain PyTorch loop",
    "posteriors": "posteriors",
    "devinterp": "devinterp",
}
WORKLOADS = {
    "mnist": "MNIST, 784-512-10",
    "small": "784-16-10",
    "transformer": "vision transformer",
    "inception": "InceptionV1, 112 pixels",
}
THIN = (1, 2, 4, 6, 8, 12, 16, 24, 32)


def write_report(folder: Path, into: Path) -> None:
    """Write ``table.md`` and the figures to ``into`` from the JSON files of ``folder``."""
    into.mkdir(parents=True, exist_ok=True)
    parts = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    blocks = {}
    if "accuracy" in parts:
        blocks["accuracy"] = _accuracy(parts["accuracy"])
    measured = {name: parts[name] for name in WORKLOADS if name in parts}
    if measured:
        blocks |= {"costs": _costs(measured), "throughput": _throughput(measured)}
        _thinning_figure(measured).savefig(into / "thinning.svg", metadata={"Date": None})
    if "precision" in parts:
        blocks["precision"] = _precision(parts["precision"])
    if "scaling" in parts:
        _scaling_figure(parts["scaling"]).savefig(into / "scaling.svg", metadata={"Date": None})
    # The marks are where book/benchmarks.md cuts.
    marked = [f"<!-- {name} -->\n\n{text}\n\n<!-- /{name} -->" for name, text in blocks.items()]
    (into / "table.md").write_text("\n\n".join(marked) + "\n")


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _accuracy(found: dict[str, Any]) -> str:
    rows = [
        [
            '**probelib**, `thin="auto"`, `until=`',
            f"{found['ours_draws']}, {found['ours_thin']} steps apart",
            f"{found['ours_seconds']:.0f}",
            "1",
            "1",
        ]
    ]
    for name, title in CONTENDERS.items():
        if f"{name}_ratio" in found:
            rows.append(
                [
                    title,
                    f"{found['their_draws']}",
                    f"{found[f'{name}_seconds']:.0f}",
                    f"**{found[f'{name}_ratio']:.1f}**",
                    f"{found[f'{name}_ratio_by_own_error']:.1f}",
                ]
            )
    head = [
        "",
        "draws a chain that were run",
        f"seconds to {found['target']} nats",
        "ratio",
        "ratio by their own errors",
    ]
    return _table(head, rows)


def _costs(measured: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, found in measured.items():
        rows.append(
            [
                f"**{WORKLOADS[name]}**, {found['n_observed']:,} observed, "
                f"{found['chains']} chains",
                f"{1e3 * found['ours_step']:.2f}",
                f"{1e3 * found['ours_draw']:,.1f}",
                "",
                "1",
                "1",
            ]
        )
        rows += [
            [
                title,
                f"{1e3 * found[f'{key}_step']:.2f}",
                f"{1e3 * found[f'{key}_draw']:,.1f}",
                f"{found[f'{key}_step_ratio']:.1f}",
                f"{found[f'{key}_ratio']:.1f}",
                f"{found[f'{key}_thinned_ratio']:.1f}",
            ]
            for key, title in CONTENDERS.items()
        ]
    head = [
        "",
        "a step (ms)",
        "a draw, all observed (ms)",
        "step, ratio",
        "same error, `thin=1`",
        "same error, each at its best thinning",
    ]
    return _table(head, rows)


def _throughput(measured: dict[str, dict[str, Any]]) -> str:
    rows = [
        [
            WORKLOADS[name],
            f"{found['flops_a_sample'] / 1e6:.3g}",
            f"{found['observe_batch_size']}",
            f"{found['observation_gflops']:.1f}",
            f"{found['matmul_gflops']:.0f}",
            f"{found['observation_share']:.0%}",
        ]
        for name, found in measured.items()
    ]
    head = ["", "MFLOP a sample", "batch", "observation (GFLOP/s)", "matrix product", "share"]
    return _table(head, rows)


def _precision(found: dict[str, Any]) -> str:
    rows = [
        [
            title,
            f"{found[f'{key}_loss_relative_error']:.1e}",
            f"{found[f'{key}_gain_correlation']:.6f}",
            f"{found[f'{key}_gain_rank_correlation']:.6f}",
            f"{found[f'{key}_gain_change_in_mcse']:.3f}",
            f"{found[f'{key}_kernel_change']:.4f}",
        ]
        for key, title in (
            ("bfloat16", "bfloat16 observation pass"),
            ("float16_on_disk", "float16 on disk"),
        )
    ]
    head = [
        "",
        "relative error of a loss",
        "gains: Pearson",
        "gains: Spearman",
        "change of a gain / its standard error",
        "change of R",
    ]
    return _table(head, rows)


def _thinning_figure(measured: dict[str, dict[str, Any]]) -> Any:
    """Time to a given error against steps a draw, each network relative to thin=1."""
    fig, axes = figure(size=(6.4, 3.6))
    ax = axes[0, 0]
    style = zip((BLUE, ORANGE, GREEN, VERMILION), ("o-", "s--", "^-.", "D:"), strict=True)
    for (name, found), (colour, line) in zip(measured.items(), style, strict=False):
        seen = [k for k in THIN if f"error2_a_draw_thin_{k}" in found]
        cost = np.array(
            [
                (found["ours_draw"] + (k - 1) * found["ours_step"])
                * found[f"error2_a_draw_thin_{k}"]
                for k in seen
            ]
        )
        ax.plot(seen, cost / cost[0], line, color=colour, label=WORKLOADS[name], markersize=4)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(THIN, [str(k) for k in THIN])
    for which in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
        which(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.set_xlabel("steps a draw (thin)")
    ax.set_ylabel("time to the same error, thin=1 is 1")
    ax.legend()
    return fig


def _scaling_figure(found: dict[str, Any]) -> Any:
    """Seconds against observed samples, draws, and samples of the posterior, on log axes."""
    fig, axes = figure(1, 3, size=(9.6, 3.2))
    panels = (
        ("seconds_observed_", "observed samples", "seconds a draw of two chains"),
        ("seconds_draws_", "draws", "seconds, 7,500 observed"),
        ("seconds_of_n_", "samples n, 1,000 observed", "seconds a draw of two chains"),
    )
    for ax, (prefix, label, title) in zip(axes[0], panels, strict=True):
        points = sorted(
            (int(k.removeprefix(prefix)), v) for k, v in found.items() if k.startswith(prefix)
        )
        x, y = np.array(points).T
        ax.loglog(x, y, "o-", color=BLUE)
        if prefix != "seconds_of_n_":
            ax.loglog(x, y[-1] * x / x[-1], "--", color="0.4", linewidth=1, label="proportional")
            ax.legend()
        else:
            ax.set_ylim(y.min() / 4, y.max() * 4)
        ax.set_xticks(x, [f"{int(v):,}" for v in x], rotation=30)
        ax.set_xticks([], minor=True)
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel(label)
        ax.set_ylabel(title)
    return fig
