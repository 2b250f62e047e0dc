"""Differences of two traces: against closed forms, and their errors against repetitions."""

import numpy as np
import pytest
import xarray as xr
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


def zero_one(output, target):
    """0 or 1, with the gradient of a smooth loss, so that it can be sampled."""
    smooth = probelib.squared_error(output, target)
    return (output.sign() != target.sign()).double() + smooth - smooth.detach()


def of_loss(loss, observe_loss=None, **options):
    exact = Exact()
    posterior = probelib.LocalPosterior(
        exact.posterior.model, loss, exact.data, n_beta=10.0, localization=exact.gamma
    )
    if options.get("weighted"):
        return probelib.importance_sample(posterior, 60, observe_loss=observe_loss, progress=False)
    sampler = probelib.LeimkuhlerMatthews(0.02)
    return probelib.sample(
        posterior, sampler=sampler, chains=2, draws=20, observe_loss=observe_loss, progress=False
    )


def per_part(output, target):
    half = probelib.squared_error(output, target)[:, None] / 2
    return half.expand(-1, 2)


@pytest.mark.parametrize("weighted", [False, True])
def test_losses_of_other_functions_are_refused(weighted, tmp_path):
    one = of_loss(probelib.squared_error, weighted=weighted)
    other = of_loss(zero_one, weighted=weighted)
    copy = tmp_path / "other.nc"
    other.to_netcdf(copy)
    for b in (other, xr.open_dataset(copy)):
        with pytest.raises(ValueError, match="of different losses") as info:
            probelib.compare(one, b)
        assert "\n" not in str(info.value)
    # The remedy, and traces that say nothing of it.
    said = {**other.attrs["fingerprint"]}
    said["per_sample_loss"] = one.attrs["fingerprint"]["per_sample_loss"]
    probelib.compare(one, other.assign_attrs(fingerprint=said))
    silent = {k: v for k, v in other.attrs.items() if k != "fingerprint"}
    probelib.compare(one, other.drop_attrs(deep=False).assign_attrs(silent))
    with pytest.raises(ValueError, match="b has the fingerprint 'abc'"):
        probelib.compare(one, other.assign_attrs(fingerprint="abc"))


@pytest.mark.parametrize("weighted", [False, True])
def test_of_traces_of_tokens_whole_samples_are_compared(weighted):
    one = of_loss(probelib.squared_error, weighted=weighted)
    parts = of_loss(probelib.squared_error, per_part, weighted=weighted)
    assert probelib.loss_gain(parts).dims == ("sample", "token")
    for a, b in ((one, parts), (parts, one), (parts, parts)):
        found = probelib.compare(a, b)
        assert found.gain.dims == ("sample",)
        np.testing.assert_allclose(found.gain, 0, atol=1e-12)
    with pytest.raises(ValueError, match="of different losses"):
        probelib.compare(parts, of_loss(zero_one, weighted=weighted))
