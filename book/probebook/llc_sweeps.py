"""The LLC of one model of known law as each setting changes, measured and exact (chapter 05)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

import probelib
from probebook.chapter import Claim
from probebook.known_llc import (
    Law,
    Mixed,
    local,
    mixed_chain_along,
    mixed_chain_llc,
    mixed_law,
    monomial_chain_llc,
    stiff_chain_llc,
)
from probebook.toys import with_error

KNOBS = {"n_beta": "nβ", "localization": "γ", "step_size": "ε"}
_LIMIT = 0.75  # learning coefficient of the model
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
    """The LLC of :class:`Mixed` as each setting changes, measured and exact.

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
        """One line of a table per point."""
        return [
            {
                "changed": KNOBS.get(p.knob, "steps from w*"),
                "to": f"{p.value:.3g}",
                "measured": with_error(p.llc, p.mcse),
                "exact, this chain": f"{p.chain:.4f}",
                "exact, Eq. 1": f"{p.law:.4f}",
                "held by the localization, of 2": f"{p.held:.3f}",
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
            "normal quantile: chance alone exceeds it in one run of 10,000", must=True,
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
    """Change nb, gamma, epsilon and the number of steps of :class:`Mixed`, each alone.

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

    short = int(np.argmax(expected >= (1 - _OFF) * mixed_chain_llc(**base))) + 1
    boundaries = _boundaries(base, wide, relaxation, short)
    return Sweeps(measured, _panels(measured, curves, boundaries), boundaries)


def _boundaries(
    base: Mapping[str, float],
    wide: Mapping[str, tuple[float, float]],
    relaxation: float,
    short: int,
) -> dict[str, float]:
    """Where each cause moves the exact value of :class:`Mixed` by a tenth.

    Args:
        base: settings from which each is moved.
        wide: setting -> the range that is searched.
        relaxation: of the chain at ``base``, in steps.
        short: steps from w* in which a chain comes within a tenth.
    """
    n_beta, localization, step_size = (base[k] for k in KNOBS)

    def boundary(knob: str) -> Callable[[float], float]:
        return lambda v: _eq1(dict(base) | {knob: v}).llc / _LIMIT - (1 - _OFF)

    def step(knob: str) -> Callable[[float], float]:
        return lambda v: (
            mixed_chain_llc(**(dict(base) | {knob: v})) / _eq1(dict(base) | {knob: v}).llc
            - (1 + _OFF)
        )

    few = float(brentq(boundary("n_beta"), wide["n_beta"][0], n_beta))
    many = float(brentq(step("n_beta"), n_beta, wide["n_beta"][1]))
    tight = float(brentq(boundary("localization"), localization, wide["localization"][1]))
    long = float(brentq(step("step_size"), step_size, wide["step_size"][1]))
    return {
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


def _panels(
    measured: Sequence[Point], curves: Mapping[str, dict], boundaries: Mapping[str, float]
) -> dict[str, tuple]:
    """What :func:`probebook.figures.when_to_believe` draws, one panel a setting."""
    dominates, step, short = "localization dominates", "step too long", "chain too short"
    regions = {
        "n_beta": {
            dominates: (0, boundaries["n_beta_low"]),
            step: (boundaries["n_beta_high"], np.inf),
        },
        "localization": {dominates: (boundaries["localization"], np.inf)},
        "step_size": {step: (boundaries["step_size"], np.inf)},
        "steps": {short: (0, boundaries["steps"])},
    }
    labels = {
        "n_beta": r"$n\beta$", "localization": r"$\gamma$", "step_size": r"$\epsilon$",
        "steps": r"steps from $w^*$",
    }  # fmt: skip
    panels = {}
    for knob, label in labels.items():
        own = [p for p in measured if p.knob == knob]
        points = tuple(np.array([getattr(p, k) for p in own]) for k in ("value", "llc", "mcse"))
        panels[label] = curves[knob], points, regions[knob]
    return panels


def _eq1(settings: Mapping[str, float]) -> Law:
    return mixed_law(settings["n_beta"], settings["localization"])


def _run_mixed(
    settings: Mapping[str, float], chains: int, draws: int, thin: int, burn_in: int, seed: int
) -> np.ndarray:
    """nb (L - L(w*)) of :class:`Mixed` along SGLD chains, shape (chains, draws)."""
    posterior = local(Mixed(), settings["n_beta"], settings["localization"])
    trace = probelib.sample(
        posterior, sampler=probelib.SGLD(settings["step_size"]), chains=chains, draws=draws,
        thin=thin, burn_in=burn_in, seed=seed, progress=False,
    )  # fmt: skip
    return settings["n_beta"] * probelib.mean_loss_change(trace)


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
    chain = stiff_chain_llc(**settings) + quartic
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


__all__ = [
    "KNOBS",
    "Point",
    "Sweeps",
    "sweep_mixed",
]
