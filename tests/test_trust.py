"""Cases of known truth: the truth by other means, the verdict on a few, the page of its numbers."""

import json
from pathlib import Path

import pytest
import trust
import trust_problems
from trust_cases import CASES, NO_BIAS, SOUND, WIDE, WRONG, How, plan
from trust_report import write_report
from trust_truth import expected_llc, hamiltonian

import probelib
import quote

pytestmark = pytest.mark.usefixtures("one_thread")


def case_of(name, expected):
    return next(c for c in CASES if (c.name, c.expected) == (name, expected))


def test_the_list_is_as_long_as_promised():
    of = {word: [c for c in CASES if c.expected == word] for word in (SOUND, WRONG, WIDE)}
    assert len(of[SOUND]) >= 34
    assert len(of[WRONG]) >= 44
    assert len({(c.kind, c.name) for c in CASES}) == len(CASES)


def test_two_formulas_and_a_grid_agree():
    # A regression with two weights, by its formula, over a grid, and by Hamiltonian Monte Carlo.
    problem = trust_problems.regression(2, 60, shift=0.1)
    assert trust_problems.by_quadrature(problem.posterior, 61) == pytest.approx(
        problem.truth, rel=1e-4
    )
    value, error = hamiltonian(problem, chains=16, draws=40, leaps=4)
    assert error < 0.1
    assert abs(value - problem.truth) < 4.5 * error


@pytest.mark.parametrize("kind", [probelib.SGLD, probelib.LeimkuhlerMatthews])
@pytest.mark.parametrize("gradient", [None, 4, probelib.ControlVariate(4)])
def test_the_expectation_of_a_run_is_what_it_gives(kind, gradient):
    """Step bias, minibatch noise, a centre off the minimum and a short burn-in, all at once."""
    problem = trust_problems.regression(3, 30, shift=0.3, gamma=6.0)
    options = (
        {"batch_size": gradient} if gradient is None or gradient == 4 else {"gradient": gradient}
    )
    sampler = How(kind, 0.4, None, options).sampler(problem)
    settings = plan(400, 4, 1, 1)
    trace = probelib.sample(problem.posterior, sampler=sampler, progress=False, **settings)
    means = probelib.estimators.mean_loss_change(trace).mean(1) * problem.posterior.n_beta
    error = means.std(ddof=1) / 20
    expected = expected_llc(problem, sampler, settings)
    assert abs(expected - problem.truth) > 4.5 * error  # so that the test can see something
    assert abs(means.mean() - expected) < 4.5 * error


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("two weights, a long step", SOUND),
        ("SGLD, eps A = 3.0", WRONG),
        ("linear regression, moved", WRONG),
        ("four chains of six", WIDE),
    ],
)
def test_a_few_cases(name, expected):
    found = trust.judge(case_of(name, expected), 0)
    assert abs(found["llc"] - found["expected_llc"]) < 6 * found["mcse"]
    assert (found["verdict"] == SOUND) == (expected == SOUND)


def test_the_page_is_made_of_what_was_measured(tmp_path):
    def run(name, expected, fault, seed, verdict, llc):
        return {
            **{"name": name, "kind": "Gaussians", "expected": expected, "fault": fault},
            **{"seed": seed, "verdict": verdict, "llc": llc, "mcse": 0.1, "truth": 2.0},
            **{"truth_error": 0.0, "reasons": [] if verdict == SOUND else ["step"], "said": []},
        }

    runs = [
        run("right", SOUND, "", 0, SOUND, 2.0),
        run("right", SOUND, "", 1, WRONG, 2.02),
        run("long step", WRONG, "step", 0, WRONG, 4.0),
        run("long step", WRONG, "step", 1, WIDE, 4.2),
        run("missed", WRONG, "step", 0, SOUND, 3.0),
        run("not so wrong", WRONG, "step", 0, WRONG, 2.02 - 0.1),
    ]
    cases = trust.by_case(runs)
    totals = trust.summary(cases)
    assert (totals["false_alarms"], totals["misses"]) == (1, 1)
    assert (totals["sound_cases"], totals["wrong_cases"], totals["wrong_runs"]) == (1, 3, 4)
    assert totals["wrong_called_wide"] == 1
    assert trust.doubtful([c | {"bias_error": 0.0} for c in cases]) == [
        "Gaussians, not so wrong: -0.040 ± 0.000"
    ]
    size = {"chains": 2, "draws": 100}
    coverage = [
        size | {"estimator": name, "tau": tau, "coverage": share, "infinite": lost}
        for name, tau, share, lost in (
            ("gain", 1, 0.95, 0.0),
            ("gain", 3, 0.93, 0.0),
            ("R_ij near 1", 1, 0.96, 0.25),
            ("R_ij near 0", 1, 0.90, 0.0),
        )
    ]
    stopping = [
        {"weights": 1, "chains": 2, "tau": 3, "until": until, "ratio": 0.97} | draws
        for until, draws in (
            (0.5, {"draws": 24.0, "needed": 6.0}),
            (0.1, {"draws": 9.0, "needed": 10.0}),
        )
    ]
    neighbours = [
        size | {"tails": "heavy", "tau": 5, "planted": r, "called": c, "false": f, "power": power}
        for r, c, f, power in ((0.0, 0.001, 1.0, None), (0.5, 0.2, 0.021, 0.75))
    ]
    write_report(
        trust.plain(
            {
                **totals,
                "cases": cases,
                "coverage": coverage,
                "stopping": stopping,
                "neighbours": neighbours,
            }
        ),
        tmp_path / "trust.md",
    )
    page = (tmp_path / "trust.md").read_text()
    assert "| Gaussians | 3 | 1 | 1 | 2 |" in page
    assert "| Gaussians: long step | wrong | 2 | 4, 4.2 | +105% | wrong, wide | step |" in page
    mistaken = page[page.index("<!-- mistaken -->") : page.index("<!-- /mistaken -->")]
    assert "right" in mistaken
    assert "missed" in mistaken
    assert "long step" not in mistaken
    assert "| 2 x 100 | 94.0 (93) | 93.0 (90; 12) |" in page
    assert "| 1 | 2 | 3 | 0.97 (4.0) | 0.97 (0.9) |" in page
    assert "| heavy | 2 x 100 | 5 | 0.10% | 75% | 2.1% |" in page


def test_what_is_committed_is_of_these_cases():
    """The page's tables and the results file are of one run, of the cases as they are now."""
    root = Path(__file__).resolve().parent.parent
    file = root / "results" / "benchmarks" / "trust.json"
    if not file.exists():
        pytest.skip("nobody has kept a run of `make trust` yet")
    found = json.loads(file.read_text())
    named = {(c["kind"], c["name"], c["expected"], c["fault"]) for c in found["cases"]}
    assert named == {(c.kind, c.name, c.expected, c.fault) for c in CASES}
    of_bias = [c for c in found["cases"] if c["fault"] not in NO_BIAS]
    assert all(c["truth"] is not None for c in of_bias)
    assert not trust.doubtful([c for c in of_bias if c["bias"] is not None])
    page = (root / "book" / "benchmarks" / "trust.md").read_text()
    for case in found["cases"]:
        assert f"| {case['kind']}: {case['name']} | {case['expected']} |" in page
    totals = trust.summary(found["cases"])
    assert totals == {key: found[key] for key in totals}
    text = (root / "book" / "trust.md").read_text()
    assert quote.refresh(text, root / "results") == text
