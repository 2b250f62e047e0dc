"""The benchmark of samplers: rows against direct calls, the cache, and kept runs."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import probelib
from probebook import benchmark_summaries as summaries
from probebook import hmc_truth
from probebook import sampler_benchmark as benchmark
from probebook.benchmark_problems import DeepLinearPlan, KnownPlan, problem_of
from probebook.profiles import read_profiles
from probebook.sampler_benchmark import Budget, Candidate

PLAN = DeepLinearPlan(weights=30, networks=2, sweeps=60, burn_in=20)
BUDGET = Budget(gradients=120, chains=3, draws=40)
STEPS = (0.1, 1000.0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PROBELIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sampler_benchmark"


def test_every_sampler_spends_the_same_gradients():
    for per_step in (1, 10):
        plan = Budget(gradients=3000, chains=2, draws=400).plan(per_step, 0)
        assert per_step * (plan.burn_in + plan.thin * plan.draws) == 3000
    assert Budget(gradients=3000, burn_in=0.5).plan(1, 0).burn_in == 1500


def test_networks_are_of_the_size_that_was_asked_for():
    for weights in (1e2, 1e4, 1e6):
        shapes = DeepLinearPlan(weights, networks=8).shapes()
        sizes = [sum(a * b for a, b in itertools.pairwise(w)) for w, _ in shapes]
        assert [len(w) - 1 for w, _ in shapes] == [2, 3, 4, 5] * 2
        # Of independent widths within 40 % of the typical one.
        assert 0.35 * weights < min(sizes) < max(sizes) < 1.97 * weights
        assert all(1 <= rank <= min(w) for w, rank in shapes)
    assert DeepLinearPlan(1e3).shapes() == DeepLinearPlan(1e3).shapes()
    assert DeepLinearPlan(1e3).shapes() != DeepLinearPlan(1e3, seed=1).shapes()


def test_a_row_is_what_the_library_says_and_a_diverged_one_says_nothing():
    problems = PLAN.problems()
    rows = benchmark.grid(problems, steps=STEPS, budget=BUDGET)
    assert len(rows) == 2 * len(benchmark.SAMPLERS) * len(STEPS)
    first = rows[(rows.sampler == "SGLD") & (rows.step == 0.1)].iloc[0]
    problem, settings = problems[0], {"chains": 3, "draws": 40, "burn_in": 40, "thin": 2}
    trace = probelib.sample(
        problem.posterior, sampler=probelib.SGLD(1e-4), progress=False, **settings
    )
    llc = probelib.local_learning_coefficient(trace)
    assert (first.llc, first.mcse, first.ess) == (llc.value, llc.mcse, llc.ess)
    assert first.relative_error_to_eq1 == pytest.approx(llc.value / problem.eq1 - 1)
    assert first.relative_error_to_limit == pytest.approx(llc.value / problem.limit - 1)
    assert first.gradients == 360
    assert first.effective_per_gradient == pytest.approx(llc.ess / 360)
    lost = rows[(rows.sampler == "SGLD") & (rows.step == 1000.0)].iloc[0]
    assert np.isnan([lost.llc, lost.effective_per_gradient]).all()
    assert (lost.diverged, lost.verdict) == (3, "wrong")
    found = summaries.relative_errors(rows, resamples=10)
    assert set(found.sampler) == set(benchmark.SAMPLERS)
    assert np.isfinite(found.error).all()


def test_an_interruption_loses_no_row(cache, monkeypatch):
    problems = PLAN.problems()
    samplers = {"SGLD": benchmark.SAMPLERS["SGLD"]}
    ran = []
    estimates = benchmark._estimates

    def until_third(*args):
        ran.append(args)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return estimates(*args)

    monkeypatch.setattr(benchmark, "_estimates", until_third)
    with pytest.raises(KeyboardInterrupt):
        benchmark.grid(problems, samplers, STEPS, BUDGET)
    rows = benchmark.grid(problems, samplers, STEPS, BUDGET)
    assert len(ran) == 5  # two before, and the third and the fourth once more
    again = benchmark.grid(problems, samplers, STEPS, BUDGET)
    assert len(ran) == 5
    assert again.equals(rows)
    benchmark.grid(problems, samplers, STEPS[:1], replace(BUDGET, gradients=150))
    assert len(ran) == 7  # another budget is another run


def test_another_sampler_is_one_line():
    longer = Candidate(lambda **settings: probelib.SGLD(**settings), gradients_per_step=4)
    problems = PLAN.problems()[:1]
    rows = benchmark.grid(problems, {"mine": longer}, [0.1], BUDGET)
    assert rows.sampler.tolist() == ["mine"]
    assert rows.gradients[0] == 360  # of a quarter as many steps


def test_problems_of_chapter_05_and_those_with_a_reference():
    plan = KnownPlan(networks=())
    regular, product, other = plan.problems()
    assert plan.first().problems()[0].name == regular.name
    precision = 1000 + 10  # of each of eight directions, on the average of the curvatures
    assert regular.eq1 == pytest.approx(8 / 2 * 1000 / precision, rel=0.01)
    assert (product.limit, product.multiplicity) == (0.5, 2)
    assert (other.limit, other.multiplicity) == (0.25, 1)
    assert 0 < product.eq1 < product.limit
    weighted = probelib.importance_sample(product.posterior, draws=5000, seed=1)
    llc = probelib.local_learning_coefficient(weighted)
    assert llc.value == pytest.approx(product.eq1, abs=4 * llc.mcse)
    mine = problem_of("net", "nonlinear", product.posterior, llc.value, llc.mcse)
    assert (mine.eq1, mine.eq1_se) == (llc.value, llc.mcse)
    assert math.isnan(mine.limit)


def test_settings_that_somebody_chose_are_a_row_and_a_refusal_is_one_too():
    [problem] = PLAN.problems()[:1]
    settings = {"chains": 3, "draws": 40, "burn_in": 40, "thin": 2}

    def choose(posterior):
        sampler = probelib.SGLD(step_size=0.1 / posterior.n_beta)
        return SimpleNamespace(posterior=posterior, sampler=sampler, settings=settings)

    def refuse(posterior):
        raise ValueError("this will not do")

    row = benchmark.measure_choice(problem, choose)
    same = benchmark.measure(problem, "SGLD", benchmark.SAMPLERS["SGLD"], 0.1, BUDGET)
    assert row == {**same, "step": pytest.approx(0.1), "refused": ""}
    refused = benchmark.measure_choice(problem, refuse)
    assert refused["refused"] == "this will not do"
    assert np.isnan(refused["llc"])
    other = replace(PLAN, n_beta=5.0).problems()[0].posterior
    with pytest.raises(ValueError, match="n_beta and localization"):
        benchmark.measure_choice(problem, lambda posterior: choose(other))


def test_calibrate_is_one_who_chooses():
    [problem] = PLAN.problems()[:1]
    found = benchmark.choices([problem], error=0.1).iloc[0]
    chosen = probelib.calibrate(problem.posterior, error=0.1)
    assert found.step_size == chosen.sampler.step_size
    assert found.sampler == "LeimkuhlerMatthews"
    steps = chosen.burn_in + chosen.draws * chosen.thin
    assert found.gradients == chosen.chains * steps
    assert found.llc == pytest.approx(problem.eq1, rel=0.4)
    assert len(benchmark.choices([])) == 0


def test_momentum_loses_half_of_itself_in_a_step_of_any_size():
    for step in (1e-5, 1e-2):
        made = benchmark.SAMPLERS["BAOAB"].make(step_size=step, batch_size=None)
        assert math.exp(-made.friction * math.sqrt(step)) == pytest.approx(0.5)


def test_gradients_of_a_step_are_those_that_the_samplers_say():
    for candidate in benchmark.SAMPLERS.values():
        made = candidate.make(step_size=1e-3, batch_size=None)
        assert candidate.gradients_per_step == getattr(made, "gradients_per_step", 1)


def test_small_networks_are_known_by_hmc_and_only_where_its_chains_agree(monkeypatch):
    name = "tanh network 1–8–1 on a curve"
    with pytest.raises(RuntimeError, match="no truth"):
        hmc_truth.hmc_llc(name, draws=10)
    network = hmc_truth.NETWORKS[name]
    posterior = network.make()
    x, y = posterior.data.batch(slice(None))
    away = posterior.losses(posterior.center, x, y).mean()
    assert 0 < away < 0.01  # it is fitted, to about half of the noise's variance
    monkeypatch.setattr(hmc_truth, "hmc_llc", lambda *_: SimpleNamespace(value=2.0, mcse=0.1))
    known = KnownPlan(regular=(), monomials=(), networks=(name,)).problems()
    assert [(p.eq1, p.eq1_se, math.isnan(p.limit)) for p in known] == [(2.0, 0.1, True)]


def test_a_kept_run_belongs_to_its_recipe(tmp_path):
    options = ["--weights", "30", "--networks", "2", "--sweeps", "60", "--gibbs-burn-in", "20",
               "--gradients", "120", "--chains", "3", "--draws", "40", "--steps", "0.1", "1000",
               "--device", "cpu", "--no-choices", "--into", str(tmp_path)]  # fmt: skip
    benchmark.main(options)
    recipe = benchmark.recipe_of(PLAN, STEPS, BUDGET, 0)
    names, path = list(benchmark.SAMPLERS), tmp_path / PLAN.file
    found = benchmark.kept_rows(path, recipe, names)
    assert found.kept
    assert found.choices.empty
    kept, made = found.grid, benchmark.grid(PLAN.problems(), steps=STEPS, budget=BUDGET)
    for column in made.columns:
        if column in ("problem", "group", "sampler", "verdict"):
            assert kept[column].tolist() == made[column].tolist()
        else:
            np.testing.assert_allclose(kept[column], made[column], rtol=1e-8, atol=1e-9)
    assert len(benchmark.kept_rows(path, recipe, names[:1]).grid) == 4
    assert benchmark.kept_rows(path, recipe, ()).grid.equals(kept)
    assert benchmark.kept_rows(path, recipe, [*names, "another"]) is None
    longer = benchmark.recipe_of(replace(PLAN, sweeps=1000), STEPS, BUDGET, 0)
    assert benchmark.kept_rows(path, longer, names).grid.equals(kept)
    for other in (
        benchmark.recipe_of(replace(PLAN, n_beta=10.0), STEPS, BUDGET, 0),
        benchmark.recipe_of(PLAN, STEPS, BUDGET, 0, error=0.1),
    ):
        assert benchmark.kept_rows(path, other, names) is None
    assert benchmark.kept_rows(tmp_path / "empty", recipe, names) is None
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"about": content["about"] | {"format": 99}}))
    with pytest.raises(ValueError, match="format 99"):
        benchmark.kept_rows(path, recipe, names)
    path.write_text("{")
    with pytest.raises(ValueError, match="no kept run"):
        benchmark.kept_rows(path, recipe, names)


def test_rows_are_kept_with_choices_or_made_here(tmp_path):
    plan = replace(PLAN, networks=1)
    settings = {"samplers": ("SGLD",), "error": 0.2}
    made = benchmark.rows_of(plan, STEPS, BUDGET, prerun=tmp_path, **settings)
    assert (len(made.grid), len(made.choices), made.kept) == (2, 1, False)
    recipe = benchmark.recipe_of(plan, STEPS, BUDGET, 0, error=0.2)
    benchmark.keep_rows(tmp_path / plan.file, recipe, made)
    kept = benchmark.rows_of(plan, STEPS, BUDGET, prerun=tmp_path, **settings)
    assert kept.kept
    assert kept.choices.refused.tolist() == made.choices.refused.tolist()
    np.testing.assert_allclose(kept.choices.llc, made.choices.llc, rtol=1e-8)
    large = benchmark.kept_large([plan, replace(plan, weights=1e5)], STEPS, BUDGET, tmp_path)
    assert large.empty  # of another error
    benchmark.keep_rows(tmp_path / plan.file, benchmark.recipe_of(plan, STEPS, BUDGET, 0), made)
    large = benchmark.kept_large([plan, replace(plan, weights=1e5)], STEPS, BUDGET, tmp_path)
    assert large.equals(kept.grid)


def test_the_published_runs_are_those_that_the_chapter_asks_for():
    asked = read_profiles("09_samplers_and_settings")["laptop"]
    prerun = Path(__file__).parents[1] / "results" / "prerun"
    plans = [KnownPlan(n_beta=asked["n_beta"])]
    for size, many in zip(asked["sizes"], asked["networks"], strict=True):
        plans.append(DeepLinearPlan(size, many, asked["n_beta"], asked["localization_per_width"]))
    budget = Budget(asked["gradients"], asked["chains"], asked["draws"])
    for plan in plans:
        recipe = benchmark.recipe_of(plan, asked["steps"], budget, asked["seed"])
        found = benchmark.kept_rows(prerun / plan.file, recipe, list(benchmark.SAMPLERS))
        assert found is not None, plan.file
        assert len(found.choices) == found.grid.problem.nunique()
    large = [
        replace(plans[-1], weights=size, networks=many)
        for size, many in zip(asked["large_sizes"], asked["large_networks"], strict=True)
    ]
    budget = replace(budget, gradients=asked["large_gradients"])
    rows = benchmark.kept_large(large, asked["large_steps"], budget, prerun)
    assert rows.group.nunique() == len(large)
