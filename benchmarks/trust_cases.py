"""Runs whose right answer is known: what ``diagnostics`` has to approve, and what it must not.

Every case says how it is made, and what is wrong with it, if anything is. That is measured, not
declared: ``trust_truth.py`` compares the expectation of each case's LLC, from many chains with the
same settings, with the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trust_problems as of
from trust_problems import Problem

import probelib

#: What a case is: right within 5 %; unbiased, but too few draws to say much; or wrong.
SOUND, WIDE, WRONG = "sound", "wide", "wrong"

#: What may be wrong, in words.
FAULTS = {
    "step": "the step is too long for the curvature",
    "noise": "the gradient's noise is too large for the step",
    "preconditioner": "the preconditioner changes too fast",
    "relaxation": "the chains have not relaxed, or sit in different modes",
    "precision": "losses are kept in too few digits",
    "minimum": "w* is no minimum of L",
    "guessing": "the network is no better than guessing",
    "basin": "the chains have left the basin of w*",
    "diverged": "chains have diverged",
    "weights": "a few of the weighted draws decide everything",
}
#: Of these, what is wrong whatever the LLC under Eq. 1 is; the others move it by a tenth or more.
NO_BIAS = {"minimum", "guessing", "basin", "diverged", "weights"}


@dataclass(frozen=True)
class How:
    """A sampler, its step in units of 1 / the stiffest precision of the problem."""

    kind: type[probelib.Sampler]
    step: float
    batch: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def sampler(self, problem: Problem) -> probelib.Sampler:
        options = {"batch_size": self.batch} | self.options
        return self.kind(self.step / problem.stiffest, **options)


SGLD = partial(How, probelib.SGLD)
LM = partial(How, probelib.LeimkuhlerMatthews)


def rmsprop(step: float, batch: int | None = None, decay: float = 0.999) -> How:
    return How(probelib.RMSpropSGLD, step, batch, {"decay": decay})


def controlled(step: float, batch: int, kind: type[probelib.Sampler] = probelib.SGLD) -> How:
    return How(kind, step, None, {"gradient": probelib.ControlVariate(batch)})


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        name: unique, in words.
        kind: the row of the page's table that it belongs to.
        expected: "sound", "wide" or "wrong".
        fault: a key of FAULTS; "" where nothing is wrong.
        problem: makes the posterior.
        how: the sampler; None for draws by importance.
        plan: arguments of ``probelib.sample``.
    """

    name: str
    kind: str
    expected: str
    fault: str
    problem: Callable[[], Problem]
    how: How | None
    plan: dict[str, Any]

    def run(self, seed: int = 0, **options: Any) -> Any:
        """The trace (``options`` replace those of the plan)."""
        problem = self.problem()
        options = self.plan | {"seed": seed} | options
        if self.how is None:
            return probelib.importance_sample(
                problem.posterior, observe=problem.observe, progress=False, **options
            )
        sampler = options.pop("sampler", None) or self.how.sampler(problem)
        return probelib.sample(
            problem.posterior, problem.observe, sampler=sampler, progress=False, **options
        )

    @property
    def problem_name(self) -> str:
        """The problem in words, the same for all cases that share it."""
        made = self.problem
        if not isinstance(made, partial):
            return f"{made.__name__}()"
        given = [*map(repr, made.args), *(f"{k}={v!r}" for k, v in sorted(made.keywords.items()))]
        return f"{made.func.__name__}({', '.join(given)})"


def plan(chains: int = 4, draws: int = 300, burn_in: int = 100, thin: int = 3) -> dict[str, Any]:
    return {"chains": chains, "draws": draws, "burn_in": burn_in, "thin": thin}


def _sound() -> list[Case]:
    cases: list[Case] = []

    def add(kind: str, name: str, problem: Any, how: How | None, **settings: Any) -> None:
        cases.append(Case(name, kind, SOUND, "", problem, how, settings or plan()))

    gauss, add_gauss = of.regression, partial(add, "exact Gaussians")
    add_gauss("one weight", partial(gauss, 1), SGLD(0.1), **plan(8, 100, thin=12))
    add_gauss("two weights, a long step", partial(gauss, 2), LM(1.0))
    add_gauss("ten weights, hardly pinned", partial(gauss, 10, n_beta=100.0, gamma=1.0), LM(0.8))
    for seed in range(1, 5):  # refused in 7 of 12 seeds, once
        how, thin = (LM(1.0), 3) if seed % 2 else (SGLD(0.1), 12)
        problem = partial(gauss, 4, n_beta=100.0, gamma=0.5, seed=seed)
        name = f"four weights, hardly pinned, data {seed}"
        add_gauss(name, problem, how, **plan(8, 100, thin=thin))
    add_gauss("twenty weights, the longest step", partial(gauss, 20), LM(3.0))
    add_gauss("100 weights", partial(gauss, 100, 300), SGLD(0.1), **plan(8, 60, thin=40))
    add_gauss("300 weights", partial(gauss, 300, 400), LM(1.0), **plan(thin=5))
    add_gauss("1000 weights", partial(gauss, 1000, 1200), LM(1.0), **plan(draws=150, thin=8))
    add_gauss("float64", partial(gauss, double=True), LM(1.0))
    add_gauss("30 chains", gauss, LM(1.0), **plan(30, 40))
    add_gauss("one chain", gauss, LM(1.0), **plan(1, 800))
    stiff = partial(gauss, 10, n_beta=1000.0, gamma=30.0, stiff=1000.0)
    add_gauss("stiff, 1 to 1000", stiff, LM(1.0), **plan(8, 100, 200, 20))
    add_gauss("stiff, SGLD", stiff, SGLD(0.3), **plan(8, 100, 500, 80))
    dominated = partial(gauss, 10, n_beta=10.0, gamma=10.0, dominating=50.0)
    add_gauss("one stiff direction", dominated, LM(2.0), **plan(8, 100, thin=20))
    add_gauss("RMSprop", gauss, rmsprop(0.15), **plan(8, 80, 300, 30))

    add_noise = partial(add, "minibatches")
    add_noise("SGLD, batches of 50", gauss, SGLD(0.06, 50), **plan(8, 120, 200, 30))
    add_noise(
        "SGLD, batches of 5", partial(gauss, n_beta=5.0), SGLD(0.06, 5), **plan(8, 120, 200, 25)
    )
    add_noise("Leimkuhler-Matthews", gauss, LM(0.15, 50), **plan(8, 100, thin=12))
    add_noise("Leimkuhler-Matthews, stiff", partial(gauss, 10, stiff=30.0, gamma=4.0), LM(0.15, 50),
              **plan(8, 100, 200, 30))  # fmt: skip
    noisy = partial(gauss, noise=5.0)
    add_noise("control variate, noisy targets", noisy, controlled(0.1, 20), **plan(8, 100, 200, 25))
    add_noise("control variate, Leimkuhler-Matthews", noisy,
              controlled(0.5, 50, probelib.LeimkuhlerMatthews))  # fmt: skip
    add_noise("RMSprop", gauss, rmsprop(0.1, 100), **plan(8, 80, 300, 30))
    add_noise("logistic regression", of.logistic, LM(6e-4, 400), **plan(8, 100, 300, 30))
    add_noise("logistic regression, control variate", of.logistic,
              controlled(2e-3, 100, probelib.LeimkuhlerMatthews), **plan(thin=5))  # fmt: skip

    add_scale = partial(add, "small, large and negative")
    add_scale("an LLC of 0.01", partial(gauss, n_beta=1.0, gamma=250.0), LM(1.0))
    add_scale("an LLC of 1e-5", partial(gauss, n_beta=1e-3, gamma=250.0, double=True), LM(1.0))
    add_scale("large residuals, float64", partial(gauss, noise=1e5, double=True), LM(1.0))
    add_scale("losses around 1000", partial(gauss, offset=1000.0, n_beta=5.0), LM(1.0))
    add_scale("density, width 0.2", partial(of.density, 0.2), LM(2e-3), **plan(thin=40, draws=120))
    add_scale("density, width 0.5", partial(of.density, 0.5), LM(1e-2), **plan(thin=20, draws=200))
    add_scale("density, width 1", partial(of.density, 1.0), LM(2e-2), **plan(thin=20, draws=200))

    add_target = partial(add, "targets and what is observed")
    add_target("whole numbers", partial(gauss, whole=True), LM(1.0))
    add_target("counts under a Poisson loss", of.counts, LM(1e-2), **plan(thin=15))
    add_target("0 and 1 as numbers", of.binary, LM(3e-2), **plan(thin=15))
    add_target("an observed part", partial(gauss, observed=100), LM(1.0))
    add_target("rare positives", of.rare, LM(1e-2), **plan(thin=10))
    add_target("ten classes", of.ten_classes, LM(2e-2), **plan(thin=10))
    add_target("two of ten classes observed", partial(of.ten_classes, only=2), LM(2e-2),
               **plan(thin=10))  # fmt: skip
    add_target("rows of tokens", of.tokens, LM(1e-2), **plan(8, 80, 100, 10))

    add_other = partial(add, "singular models and networks")
    add_other("w1 w2 = 0", partial(of.product, 50.0, 5.0), LM(2e-2), **plan(thin=15))
    add_other("w1 w2 = 1", partial(of.product, 50.0, 5.0, 1.0, (1.0, 1.0)), LM(5e-3),
              **plan(thin=30, draws=150))  # fmt: skip
    add_other(
        "w to the fourth", partial(of.quartic, 50.0, 2.0), LM(1.5e-2), **plan(8, 100, thin=25)
    )
    add_other("a network that learned a sine", of.curve, LM(6e-4), **plan(8, 60, 600, 60))
    add_other("breast cancer, wrong labels", partial(of.cancer, 20.0, 30.0), LM(4e-3),
              **plan(thin=6))  # fmt: skip
    add_other("breast cancer, batches", partial(of.cancer, 20.0, 30.0), SGLD(8e-4, 400),
              **plan(8, 60, 300, 60))  # fmt: skip
    if hasattr(probelib, "importance_sample"):
        broad = partial(gauss, n_beta=10.0, gamma=10.0)
        add("weighted draws", "Gaussian", broad, None, draws=2000)
        add("weighted draws", "w to the fourth", partial(of.quartic, 10.0, 1.0), None, draws=2000)
        add("weighted draws", "rare positives", of.rare, None, draws=1000)
    return cases


def _wrong() -> list[Case]:
    cases: list[Case] = []

    def add(fault: str, name: str, problem: Any, how: How | None, **settings: Any) -> None:
        cases.append(Case(name, FAULTS[fault], WRONG, fault, problem, how, settings or plan()))

    gauss, step, noise = of.regression, partial(add, "step"), partial(add, "noise")
    for relative in (0.6, 1.0, 2.0, 3.0, 3.9):
        step(f"SGLD, eps A = {relative}", partial(gauss, n_beta=50.0, gamma=2.0), SGLD(relative))
    step("SGLD, RMSprop step for the curvature", partial(gauss, n_beta=50.0), rmsprop(4.0))
    dominated = partial(gauss, 10, n_beta=10.0, gamma=10.0, dominating=100.0)
    for relative in (2.0, 3.0, 3.8):
        step(f"one stiff direction, SGLD, eps A = {relative}", dominated, SGLD(relative),
             **plan(thin=10))  # fmt: skip
    step("one stiff direction of 100", partial(gauss, 100, 300, n_beta=1.0, gamma=20.0,
         dominating=3000.0), SGLD(3.8), **plan(thin=20, draws=100))  # fmt: skip
    step("w to the fourth", partial(of.quartic, 200.0, 1.0), SGLD(1e-2), **plan(8, 100, thin=15))
    step("w1 w2 = 1", partial(of.product, 50.0, 5.0, 1.0, (1.0, 1.0)), SGLD(1.5e-2),
         **plan(thin=15))  # fmt: skip
    step("density, width 0.2", partial(of.density, 0.2), SGLD(8e-3), **plan(thin=20))
    step("counts under a Poisson loss", of.counts, SGLD(4e-2))
    step("logistic regression, the full gradient", of.logistic, SGLD(2.4e-2), **plan(thin=6))
    step("breast cancer, the full gradient", partial(of.cancer, 90.0, 30.0), SGLD(8e-3),
         **plan(thin=6, draws=200))  # fmt: skip
    step("breast cancer, Leimkuhler-Matthews", partial(of.cancer, 300.0, 30.0), LM(8e-3),
         **plan(thin=6, draws=200))  # fmt: skip
    step("a network that learned a sine", of.curve, LM(5e-3), **plan(thin=10, burn_in=400))

    noise("SGLD, batches of 2", partial(gauss, n_beta=20.0), SGLD(0.1, 2), **plan(thin=10))
    noise("SGLD, batches of 10, cold", partial(gauss, n_beta=200.0), SGLD(0.1, 10),
          **plan(thin=10))  # fmt: skip
    noise("SGLD, noisy targets", partial(gauss, noise=5.0), SGLD(0.05, 20), **plan(thin=10))
    noise("Leimkuhler-Matthews, batches of 2", gauss, LM(0.2, 2), **plan(thin=10))
    noise("Leimkuhler-Matthews, batches of 20, noisy", partial(gauss, noise=5.0), LM(0.1, 20),
          **plan(thin=10))  # fmt: skip
    noise("100 weights, batches of 10", partial(gauss, 100, 300), LM(0.2, 10),
          **plan(thin=10, draws=200))  # fmt: skip
    noise("RMSprop, batches of 2", gauss, rmsprop(1.0, 2), **plan(8, 100, thin=12))
    noise("control variate, ten weights, batches of 1", partial(gauss, 10), controlled(0.2, 1),
          **plan(thin=10))  # fmt: skip
    noise("logistic regression, batches of 50", of.logistic, SGLD(6e-3, 50), **plan(thin=6))
    noise("logistic regression, Leimkuhler-Matthews", of.logistic, LM(2e-3, 20), **plan(thin=10))
    noise("breast cancer, batches of 64", partial(of.cancer, 90.0, 30.0), SGLD(1e-3, 64),
          **plan(thin=20, draws=100, burn_in=400))  # fmt: skip
    noise("breast cancer, batches of 64, a long step", partial(of.cancer, 90.0, 30.0),
          SGLD(3e-3, 64), **plan(thin=15, draws=120))  # fmt: skip
    noise("rows of tokens, batches of 8", partial(of.tokens, 500.0), LM(2e-3, 8),
          **plan(8, 80, 100, 10))  # fmt: skip

    for decay in (0.5, 0.9):
        add("preconditioner", f"decay {decay}", gauss, rmsprop(0.03, None, decay), **plan(thin=10))
    add("preconditioner", "decay 0.5, hardly pinned", partial(gauss, 4, n_beta=100.0, gamma=0.5),
        rmsprop(0.3, None, 0.5), **plan(8, 100, thin=10))  # fmt: skip

    relax = partial(add, "relaxation")
    relax("no burn-in", gauss, LM(2e-3), **plan(burn_in=0, thin=1, draws=500))
    relax("no burn-in, ten weights", partial(gauss, 10), SGLD(5e-3), **plan(burn_in=0, thin=1))
    relax("drifting", partial(gauss, 50), SGLD(1e-3), **plan(thin=2, burn_in=50))
    relax("one chain", partial(gauss, 20), LM(2e-3), **plan(1, 500, thin=1, burn_in=10))
    relax("an autocorrelation of 1000 draws", partial(gauss, 5, n_beta=1.0, gamma=1.0),
          SGLD(2e-3), **plan(draws=500, thin=1, burn_in=200))  # fmt: skip
    relax("breast cancer, no burn-in", partial(of.cancer, 90.0, 30.0), LM(1e-4),
          **plan(burn_in=0, thin=3))  # fmt: skip
    relax("two wells, the lower one elsewhere", partial(of.two_wells, 8.0, 0.2, -0.3), LM(2e-2))
    relax("two wells, hardly ever crossed", partial(of.two_wells, 5.0, 0.2, -0.3), LM(2e-2),
          **plan(8, 200))  # fmt: skip

    minimum = partial(add, "minimum")
    minimum("linear regression, moved", partial(gauss, shift=0.7), LM(1.0))
    minimum("50 weights, moved", partial(gauss, 50, shift=0.3, n_beta=50.0), LM(1.0))
    minimum("moved, strongly pinned", partial(gauss, shift=1.0, gamma=200.0), LM(1.0))
    minimum("logistic regression, moved", partial(of.binary, shift=2.0), LM(3e-2), **plan(thin=15))
    minimum("a saddle", partial(of.product, 50.0, 5.0, 1.0), LM(5e-3), **plan(thin=30, draws=150))
    minimum("breast cancer, half trained", partial(of.cancer, 90.0, 10.0, steps=3), LM(3e-3),
            **plan(thin=10, burn_in=1000))  # fmt: skip
    minimum("ten classes, half trained", partial(of.ten_classes, steps=10), LM(2e-2))
    minimum("a sine, half learned", partial(of.curve, steps=8), LM(5e-3), **plan(thin=10))

    guessing = partial(add, "guessing")
    guessing("untrained", partial(of.cancer, 10.0, 1000.0, steps=0), LM(1e-3))
    guessing("untrained, ten classes", partial(of.ten_classes, 1.0, 1000.0, steps=0), LM(1e-3))
    guessing("labels exchanged", partial(of.cancer, 10.0, 1000.0, flipped=True), LM(1e-4),
             **plan(thin=10))  # fmt: skip
    basin = partial(add, "basin")
    basin("ten classes, hardly pinned", partial(of.ten_classes, 1.0, 0.02), LM(5.0))
    basin("breast cancer, hardly pinned", partial(of.cancer, 1.0, 0.05), LM(0.5))
    basin("rare positives, hardly pinned", partial(of.rare, 1.0, 0.2), LM(1.0))

    add("diverged", "some chains of w to the fourth", partial(of.quartic, 200.0, 1.0), SGLD(0.017),
        **plan(8, 200))  # fmt: skip
    add("diverged", "all chains", gauss, SGLD(4.3), **plan(draws=300))
    if hasattr(probelib, "importance_sample"):
        weights = partial(add, "weights")
        weights("Gaussian, hardly pinned", gauss, None, draws=2000)
        weights("a narrow Gaussian", partial(gauss, n_beta=500.0, gamma=1.0), None, draws=1000)
        weights("100 weights", partial(gauss, 100, 300, n_beta=50.0), None, draws=1000)
        weights("six draws", partial(gauss, n_beta=10.0), None, draws=6)
    return cases


def _wide() -> list[Case]:
    def case(name: str, problem: Any, how: How, **settings: Any) -> Case:
        return Case(name, "too few draws", WIDE, "", problem, how, settings)

    gauss = of.regression
    return [
        case("four chains of six", gauss, LM(1.0), **plan(4, 6, thin=20)),
        case("two chains of four", gauss, LM(1.0), **plan(2, 4, thin=20)),
        case("one chain of ten", gauss, LM(1.0), **plan(1, 10, thin=20)),
        case("correlated draws", partial(gauss, 2), LM(0.02), **plan(4, 300, 500, 1)),
        case("w to the fourth, few draws", partial(of.quartic, 50.0, 2.0), LM(3e-2),
             **plan(4, 10, thin=50)),
        case("an observed part that is noisy", partial(gauss, observed=20, n_beta=0.2, gamma=20.0,
             noise=3.0), LM(1.0), **plan(4, 20)),
    ]  # fmt: skip


CASES = [*_sound(), *_wrong(), *_wide()]
