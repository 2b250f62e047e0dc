"""A sweep: right numbers where there are closed forms, and objections where two contradict."""

import math

import numpy as np
import pandas as pd
import pytest
from test_calibrate import classifier, exact_llc, regression

import probelib
from probelib import SGLD, LeimkuhlerMatthews, cross_entropy, plotting
from probelib.sweep import _compare_with_below, _compare_with_weighted

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_regression_at_every_setting(tmp_path, monkeypatch):
    posterior, hessian = regression(localization=None)
    settings = {"n_beta": [20, 60], "localization": [300, 10], "cache": tmp_path, "draws": 400}
    table = probelib.sweep(posterior, **settings, progress=False)
    assert list(table.localization) == [10, 10, 300, 300]
    assert list(table.n_beta) == [20, 60, 20, 60]
    assert (table.verdict == "good").all()
    for row in table.itertuples():
        exact = exact_llc(posterior.at(n_beta=row.n_beta, localization=row.localization), hessian)
        assert abs(row.llc - exact) < 5 * row.llc_mcse
        assert row.gain * row.n_beta == pytest.approx(row.llc)
        if row.localization == 300:  # hardly tilted: the weights can be trusted
            assert abs(row.weighted_llc - exact) < 5 * row.weighted_llc_mcse
            assert row.khat < 0.7
    monkeypatch.setattr(probelib.run, "_begin", None)  # everything is kept
    again = probelib.sweep(posterior, **settings, progress=False)
    assert again.equals(table)


def test_one_sampler_for_all_and_a_step_that_is_too_long():
    posterior, hessian = regression()
    stiff = np.linalg.eigvalsh(hessian)[-1]
    long = SGLD(3 / (200 * stiff + 5))
    table = probelib.sweep(
        posterior, n_beta=[2, 200], sampler=long, draws=300, burn_in=200, progress=False
    )
    assert (table.step_size == long.step_size).all()
    assert table.verdict[1] == "wrong"
    assert "step_size" in table.why[1]


def test_a_run_that_gives_up_is_a_row():
    model, data = classifier(trained=5)
    posterior = probelib.LocalPosterior(model, cross_entropy, data, n_beta=2000.0)
    table = probelib.sweep(posterior, localization=100.0, weighted_draws=0, progress=False)
    assert list(table.verdict) == ["refused"]
    assert "no minimum" in table.why[0]
    assert math.isnan(table.llc[0])
    wild = LeimkuhlerMatthews(1e4)
    table = probelib.sweep(
        regression()[0], sampler=wild, draws=400, weighted_draws=0, progress=False
    )
    assert list(table.verdict) == ["refused"]
    assert "diverged" in table.why[0]


def row(**changed):
    return {
        "n_beta": 10.0, "gain": 1.0, "gain_mcse": 0.01, "llc": 10.0, "llc_mcse": 0.1,
        "llc_step_bias": 0.0, "verdict": "good", "why": "",
    } | changed  # fmt: skip


def test_a_gain_that_rises_is_objected_to():
    above = row(n_beta=20.0, gain=1.1)
    _compare_with_below(above, row())
    assert above["verdict"] == "wrong"
    assert "the mean gain rises from 1 ± 0.01 nats at n_beta 10 to 1.1" in above["why"]
    chance = row(n_beta=20.0, gain=1.02)
    _compare_with_below(chance, row())
    assert chance["verdict"] == "good"


def test_weighted_draws_that_contradict_are_objected_to():
    posterior, hessian = regression(localization=300.0)
    weighted = probelib.importance_sample(posterior, 400, progress=False)
    exact = exact_llc(posterior, hessian)
    for llc, verdict in ((exact, "good"), (1.5 * exact, "wrong")):
        one = row(n_beta=posterior.n_beta, llc=llc, llc_mcse=0.01 * llc)
        _compare_with_weighted(one, weighted, posterior.n_beta)
        assert one["verdict"] == verdict
        assert one["weighted_llc"] == pytest.approx(exact, rel=0.2)
    strong = row(llc=100.0)
    _compare_with_weighted(strong, weighted, 1e6)  # its weights cannot be trusted
    assert strong["verdict"] == "good"
    assert strong["khat"] > 0.7
    assert "weighted_llc" not in strong


def test_other_samples_may_gain_more_at_a_larger_n_beta():
    posterior, _ = regression()
    x, y = posterior.data.batch(slice(0, 40))
    table = probelib.sweep(
        posterior, (x, y + 3), n_beta=[1, 50], draws=200, weighted_draws=0, progress=False
    )
    assert not any("rises" in why for why in table.why)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_beta": []}, r"n_beta is \[\]; give one value at least"),
        ({"n_beta": [1, -1]}, "n_beta is -1"),
        ({"localization": "30"}, "localization is '30'"),
        ({"weighted_draws": -1}, "weighted_draws is -1"),
    ],
)
def test_values_are_checked(wrong, message):
    with pytest.raises(ValueError, match=message):
        probelib.sweep(regression()[0], **wrong)


def test_where_runs_are_kept_is_for_cache_to_say(tmp_path):
    with pytest.raises(TypeError, match="sweep has no argument 'store'; give cache"):
        probelib.sweep(regression()[0], store=tmp_path)


def test_the_figure_shows_every_number_and_its_verdict():
    table = pd.DataFrame(
        {
            "n_beta": [1.0, 10.0, 100.0, 1.0],
            "localization": [5.0, 5.0, 5.0, 50.0],
            "llc": [0.5, 1.0, 2.0, math.nan],
            "llc_mcse": [0.1, math.inf, 0.1, math.nan],
            "weighted_llc": [0.6, math.nan, math.nan, math.nan],
            "weighted_llc_mcse": [0.1, math.nan, math.nan, math.nan],
            "verdict": ["good", "wide", "wrong", "refused"],
        }
    )
    [ax] = plotting.sweep(table).axes
    drawn = {(x, y) for line in ax.lines for x, y in zip(*line.get_data(), strict=True)}
    assert {(1.0, 0.5), (10.0, 1.0), (100.0, 2.0), (1.0, 0.6)} <= drawn
    assert {t.get_text() for t in ax.get_legend().get_texts()} == {
        r"$\gamma$ = 5", r"$\gamma$ = 50", "weighted draws"
    }  # fmt: skip
    assert ax.get_yscale() == "log"
    [ax] = plotting.sweep(table.assign(llc=-table.llc)).axes
    assert ax.get_yscale() == "linear"
