"""Differences of two traces: against closed forms, and their errors against repetitions."""

import numpy as np
import pytest
from regressions import Exact
from test_estimators import make_trace, random_trace

import probelib

pytestmark = pytest.mark.usefixtures("one_thread")


def run(exact, seed=0, chains=4, draws=60, **settings):
    settings = {"sampler": probelib.LeimkuhlerMatthews(0.02), "burn_in": 30} | settings
    return probelib.sample(
        exact.posterior, chains=chains, draws=draws, thin=2, seed=seed, progress=False, **settings
    )


def test_a_trace_is_not_other_than_itself():
    trace = run(Exact())
    found = probelib.compare(trace, trace)
    assert found.paired
    assert not found.gain.values.any()
    assert not found.gain.mcse.values.any()
    assert (found.llc.value, found.llc.mcse) == (0, 0)
    assert (found.mean_gain.value, found.mean_gain.mcse) == (0, 0)


def test_paired_errors_cover_and_are_several_times_smaller():
    """Nominal 95 %; 60 repetitions had 0.946 of the gains and 0.90 of the LLCs."""
    first, second = Exact(n_beta=10.0), Exact(n_beta=15.0)
    truth = second.at(15.0)[0] - first.at(10.0)[0]
    llc = second.at(15.0)[2] - first.at(10.0)[2]
    held, held_llc, smaller = [], [], []
    for seed in range(20):
        one, other = run(first, seed, draws=40), run(second, seed, draws=40)
        found = probelib.compare(one, other)
        held.append(np.abs(found.gain.values - truth) <= 1.96 * found.gain.mcse.values)
        held_llc.append(abs(found.llc.value - llc) <= 1.96 * found.llc.mcse)
        apart = np.hypot(probelib.loss_gain(one).mcse, probelib.loss_gain(other).mcse)
        smaller.append(np.median(apart / found.gain.mcse.values))
    assert np.mean(held) > 0.85
    assert np.mean(held_llc) > 0.75
    assert np.median(smaller) > 2


def test_other_seeds_are_not_paired():
    one, other = run(Exact(), seed=0), run(Exact(), seed=1)
    found = probelib.compare(one, other)
    assert not found.paired
    assert found.gain.attrs["paired"] is False
    gains = probelib.loss_gain(one), probelib.loss_gain(other)
    np.testing.assert_allclose(found.gain, gains[1] - gains[0])
    np.testing.assert_allclose(found.gain.mcse, np.hypot(gains[0].mcse, gains[1].mcse))
    llc = [probelib.local_learning_coefficient(trace) for trace in (one, other)]
    assert found.llc.mcse == pytest.approx(np.hypot(llc[0].mcse, llc[1].mcse))
    assert found.llc.value == pytest.approx(llc[1].value - llc[0].value)
    assert "not paired" in str(found)


def test_differences_are_those_of_the_estimators():
    one, other = run(Exact(n_beta=10.0)), run(Exact(n_beta=15.0))
    found = probelib.compare(one, other)
    gains = probelib.loss_gain(one), probelib.loss_gain(other)
    np.testing.assert_allclose(found.gain, gains[1] - gains[0], atol=1e-12)
    np.testing.assert_allclose(found.gain.step_bias, gains[1].step_bias - gains[0].step_bias)
    llc = [probelib.local_learning_coefficient(trace) for trace in (one, other)]
    assert found.llc.value == pytest.approx(llc[1].value - llc[0].value)
    assert found.mean_gain.value == pytest.approx(float((gains[1] - gains[0]).mean()))
    table = found.to_dataframe()
    assert table.index.name == "sample_id"
    np.testing.assert_array_equal(table.gain_difference, found.gain)
    back = probelib.compare(other, one)
    np.testing.assert_allclose(back.gain, -found.gain)
    np.testing.assert_allclose(back.gain.mcse, found.gain.mcse)


def test_weighted_draws_are_not_paired():
    of = [
        probelib.importance_sample(Exact(n_beta=b).posterior, draws=100, progress=False)
        for b in (5.0, 10.0)
    ]
    found = probelib.compare(*of)
    gains = [probelib.loss_gain(trace) for trace in of]
    assert not found.paired
    np.testing.assert_allclose(found.gain, gains[1] - gains[0])


def test_traces_made_elsewhere_need_no_settings():
    one, other = random_trace(0), random_trace(1)
    one.attrs, other.attrs = {}, {}
    found = probelib.compare(one, other)
    assert found.llc is None
    assert not found.paired  # nobody knows


def test_what_cannot_be_compared_is_refused():
    trace = make_trace(np.random.default_rng(0).random((2, 9, 4)), label=np.arange(4))
    with pytest.raises(ValueError, match="a has 9 along draw and b 5"):
        probelib.compare(trace, trace.isel(draw=slice(5)))
    with pytest.raises(ValueError, match="their label differs"):
        probelib.compare(trace, trace.assign_coords(label=("sample", np.arange(4) + 1)))
    with pytest.raises(ValueError, match="their sample_id differs"):
        probelib.compare(trace, trace.isel(sample=[1, 0, 2, 3]))
    with pytest.raises(ValueError, match="observe other data"):
        probelib.compare(
            trace.assign_attrs(fingerprint={"observed_data": "a"}),
            trace.assign_attrs(fingerprint={"observed_data": "b"}),
        )
    with pytest.raises(TypeError, match="b is None"):
        probelib.compare(trace, None)
