"""Weighted draws with a loss per token, or of several sets: against closed forms and by hand."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
import xarray as xr
from test_tokens import Model, Outputs, parts, within
from torch import nn

import probelib
from probelib import contract, importance
from probelib.randomness import around

pytestmark = pytest.mark.usefixtures("one_thread")


def run(posterior, observe_loss=probelib.token_cross_entropy, draws=60, **options):
    return probelib.importance_sample(
        posterior, draws, observe_loss=observe_loss, progress=False, **options
    )


# -- a closed form -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exact():
    return run(Outputs().posterior, parts, 4000)


@pytest.mark.parametrize("n_beta", [0.1, 10.0, 30.0])
def test_one_set_of_draws_has_the_closed_form_at_every_n_beta(exact, n_beta):
    truth, found = Outputs(n_beta), probelib.reweight(exact, n_beta)
    assert probelib.khat(found) < 0.7
    gain = probelib.loss_gain(found)
    assert gain.dims == ("sample", "token")
    within(gain, gain.mcse, truth.gain)
    assert np.nanmedian(gain.mcse) < 0.15 * np.nanmean(truth.gain)  # small enough to tell
    of_samples = probelib.loss_gain(found, over="sample")
    within(of_samples, of_samples.mcse, truth.sample_gain)
    llc = probelib.local_learning_coefficient(found)
    within(llc.value, llc.mcse, np.array(truth.llc))
    v = probelib.empirical_variance(found)
    within(v.value, v.mcse, np.array(np.trace(truth.sample_kernel)))
    for kernel, wanted in (
        (probelib.loss_kernel(found), truth.kernel),
        (probelib.loss_kernel(found, over="sample"), truth.sample_kernel),
    ):
        every = np.arange(len(wanted))
        within(kernel.covariance(), kernel.covariance_mcse(every, every), wanted)
    # The draws as they are would be another posterior's.
    plain = exact.loss.mean(("chain", "draw")) - exact.init_loss
    assert n_beta < 1 or np.nanmax(np.abs(plain - truth.gain) / gain.mcse) > 20


def test_errors_of_tokens_cover(exact):
    """40 parts of 100 draws, of which three quarters count; nominal 95 %."""
    truth, hits = Outputs(), []
    for first in range(0, 4000, 100):
        gain = probelib.loss_gain(exact.isel(draw=slice(first, first + 100)))
        error = gain.mcse.values[truth.there]
        assert np.isfinite(error).all()
        hits.append((np.abs(gain.values - truth.gain)[truth.there] < 1.96 * error).mean())
    assert 0.90 < np.mean(hits) < 0.99


def test_diagnostics_comparison_and_labels_weigh_the_draws(exact):
    found, other = exact.isel(draw=slice(2000)), probelib.reweight(exact, 30.0)
    other = other.isel(draw=slice(2000, None))
    verdict = probelib.diagnostics(found)
    assert verdict.good, str(verdict)
    llc = probelib.local_learning_coefficient(found)
    assert verdict["minimum"].value == pytest.approx(llc.value)
    assert probelib.diagnostics(found, over="sample")["weights"].value == pytest.approx(
        verdict["weights"].value
    )
    difference = probelib.compare(found, other)  # of whole samples
    assert not difference.paired
    truth = Outputs(30.0).sample_gain - Outputs(10.0).sample_gain
    within(difference.gain, difference.gain.mcse, truth)
    within(
        difference.llc.value, difference.llc.mcse, np.array(Outputs(30.0).llc - Outputs(10.0).llc)
    )
    table = probelib.label_issues(found)
    within(table.loss_gain, probelib.loss_gain(found, over="sample").mcse, Outputs().sample_gain)


# -- a language model --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text():
    ids = torch.randint(0, 7, (10, 6), generator=torch.Generator().manual_seed(0))
    target = ids.roll(-1, 1)
    for row in range(10):
        target[row, 2 + row % 5 :] = -100
    return ids, target


@pytest.fixture(scope="module")
def posterior(text):
    torch.manual_seed(0)
    return probelib.LocalPosterior(
        Model(), probelib.sequence_cross_entropy, text, n_beta=10.0, localization=50.0
    )


@pytest.fixture(scope="module")
def trace(posterior):
    return run(posterior)


def test_the_trace_is_what_the_contract_says(trace, text):
    dims = contract.VARIABLES | contract.TOKEN_VARIABLES | contract.WEIGHT_VARIABLES
    wanted = {name: of for name, of in dims.items() if name not in contract.STEP_VARIABLES}
    assert {str(k): v.dims for k, v in trace.data_vars.items()} == wanted
    np.testing.assert_array_equal(trace.token_id, text[1])
    np.testing.assert_array_equal(trace.token, np.arange(6))
    assert trace.attrs["token_shape"] == [6]
    assert trace.loss.dtype == trace.sample_loss.dtype == np.float32
    np.testing.assert_array_equal(trace.init_loss.isnull(), text[1] == -100)
    assert (trace.loss.isnull() == trace.init_loss.isnull()).all()
    mean = trace.loss.mean("token")  # the posterior's loss is the mean over tokens
    np.testing.assert_allclose(mean, trace.sample_loss, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(trace.mean_loss, trace.sample_loss.mean("sample"), rtol=1e-6)


def test_weights_and_whole_samples_are_bit_for_bit_what_they_are_without_tokens(posterior, trace):
    without = run(posterior, None)
    np.testing.assert_array_equal(trace.sample_loss, without.loss)
    np.testing.assert_array_equal(trace.init_sample_loss, without.init_loss)
    for name in (*contract.WEIGHT_VARIABLES, "distance"):
        np.testing.assert_array_equal(trace[name], without[name])
    assert "observe_loss" not in without.attrs["fingerprint"]
    for estimate in (probelib.local_learning_coefficient, probelib.empirical_variance,
                     probelib.singular_fluctuation):  # fmt: skip
        assert estimate(trace) == estimate(without)
    xr.testing.assert_identical(
        probelib.loss_gain(trace, over="sample"), probelib.loss_gain(without)
    )


def test_losses_weights_gains_and_errors_are_those_of_a_loop_written_by_hand(posterior, text):
    found = run(posterior, draws=200)
    torch.manual_seed(0)
    model, losses, wholes, weights = Model(), [], [], []
    for w in around(posterior.center, posterior.localization, 200, seed=0):
        nn.utils.vector_to_parameters(w, model.parameters())
        with torch.no_grad():
            each = nn.functional.cross_entropy(
                model(text[0]).transpose(1, 2), text[1], reduction="none"
            )
        each[text[1] == -100] = torch.nan
        losses.append(each.double().numpy())
        wholes.append(np.nanmean(losses[-1], 1))
        weights.append(math.exp(-10.0 * wholes[-1].mean()))
    np.testing.assert_allclose(found.loss[0], losses, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.mean_loss[0], np.mean(wholes, 1), rtol=1e-6)
    np.testing.assert_allclose(found.log_weight[0], np.log(weights), rtol=1e-6)
    v = np.array(weights) / np.sum(weights)
    mean = np.tensordot(v, losses, 1)
    gain = probelib.loss_gain(found)
    np.testing.assert_allclose(gain, mean - found.init_loss, rtol=1e-3, atol=1e-5)
    # To first order, before Student's t widens it for the few draws that carry it.
    square = np.square(losses - mean)
    error = np.sqrt(np.tensordot(v**2, square, 1) / (1 - np.sum(v**2)))
    there = ~np.isnan(mean)
    assert (gain.mcse.values[there] > 0.999 * error[there]).all()
    assert (gain.mcse.values[there] < 1.2 * error[there]).all()
    kernel = probelib.loss_kernel(found)
    deviations = (np.array(losses) - mean)[:, there]
    covariance = (deviations * v[:, None]).T @ deviations / (1 - np.sum(v**2))
    np.testing.assert_allclose(kernel.covariance(), covariance, rtol=1e-3, atol=1e-6)


def test_l_is_that_of_the_posterior_whatever_is_observed(posterior, trace, text):
    some = tuple(t[[1, 5]] for t in text)
    part = run(posterior, observe=some)
    np.testing.assert_allclose(part.mean_loss, trace.mean_loss, rtol=1e-6)
    np.testing.assert_allclose(part.loss, trace.loss[:, :, [1, 5]], rtol=1e-5)
    with pytest.warns(UserWarning, match="loss_samples is 8, so few"):
        fewer = run(posterior, observe=some, loss_samples=8)
    error = fewer.log_weight_error[0, 0]
    assert 0 < error < 0.5
    spread = np.nanmax(probelib.loss_gain(fewer).mcse.values)
    assert np.isfinite(spread)
    known = fewer.assign(log_weight_error=0 * fewer.log_weight_error)
    assert spread > np.nanmax(probelib.loss_gain(known).mcse.values)


def test_losses_of_pixels_are_losses_of_tokens():
    torch.manual_seed(0)
    images, masks = torch.randn(5, 2, 4, 3), torch.randint(0, 3, (5, 4, 3))

    def of_pixels(output, target):
        return nn.functional.cross_entropy(output, target, reduction="none")

    posterior = probelib.LocalPosterior(
        nn.Conv2d(2, 3, 1), lambda o, t: of_pixels(o, t).flatten(1).mean(1), (images, masks),
        n_beta=5.0, localization=10.0,
    )  # fmt: skip
    found = run(posterior, of_pixels)
    assert found.attrs["token_shape"] == [4, 3]
    np.testing.assert_allclose(
        probelib.loss_gain(found).mean("token"), probelib.loss_gain(found, "sample"), atol=1e-6
    )
    np.testing.assert_array_equal(found.token_id, masks.flatten(1))


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("way", ["zarr", "netcdf", "save"])
def test_copies_on_disk_say_the_same(trace, tmp_path, way):
    path, some = tmp_path / "copy.nc", trace.isel(sample=slice(2, None))
    if way == "zarr":
        some.to_zarr(path)
        found = probelib.open_trace(path)
    elif way == "netcdf":
        some.to_netcdf(path)
        found = xr.open_dataset(path)
    else:
        probelib.save(some, path)
        found = probelib.open(path)
        xr.testing.assert_identical(found, some)
    xr.testing.assert_equal(probelib.loss_gain(found), probelib.loss_gain(some))
    wanted = probelib.loss_gain(probelib.reweight(some, 3.0))
    xr.testing.assert_equal(probelib.loss_gain(probelib.reweight(found, 3.0)), wanted)
    assert probelib.khat(found) == probelib.khat(some)


def test_devinterp_is_refused_weights_before_lengths(trace, tmp_path):
    with pytest.raises(ValueError, match="which devinterp cannot weigh"):
        probelib.interop.to_devinterp(trace, tmp_path / "store")


# -- the cache ---------------------------------------------------------------------------------


def test_a_cache_serves_tokens_at_any_n_beta_and_never_those_of_another_loss(
    posterior, trace, text, tmp_path, monkeypatch
):
    first = run(posterior, cache=tmp_path)
    xr.testing.assert_equal(first, trace)
    (file,) = tmp_path.iterdir()
    colder = probelib.LocalPosterior(
        posterior.model, probelib.sequence_cross_entropy, text, n_beta=3.0, localization=50.0
    )
    with monkeypatch.context() as patch:
        patch.setattr(importance, "_evaluated", lambda *a: pytest.fail("drawn again"))
        xr.testing.assert_identical(run(posterior, cache=tmp_path).drop_attrs(), first.drop_attrs())
        served = run(colder, cache=tmp_path)
    again = probelib.reweight(first, 3.0)
    xr.testing.assert_equal(served, again)
    assert served.attrs["fingerprint"] == again.attrs["fingerprint"]
    double = run(posterior, lambda o, t: 2 * probelib.token_cross_entropy(o, t), cache=tmp_path)
    np.testing.assert_allclose(double.loss, 2 * first.loss, rtol=1e-6)
    np.testing.assert_array_equal(double.log_weight, first.log_weight)
    plain = run(posterior, None, cache=tmp_path)
    assert plain.loss.dims == ("chain", "draw", "sample")
    assert len(list(tmp_path.iterdir())) == 3
    damaged = bytearray(file.read_bytes())
    damaged[-9:] = b""
    file.write_bytes(damaged)
    xr.testing.assert_equal(run(posterior, cache=tmp_path), first)


def test_an_entry_with_a_hole_among_the_tokens_is_made_again(posterior, trace, tmp_path):
    from safetensors.numpy import load_file, save_file

    run(posterior, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    with importance.kept_arrays.__globals__["safe_open"](file, "np") as entry:
        said = entry.metadata()
    mode = file.stat().st_mode
    for value, place in ((np.nan, (3, 0, 0)), (1.0, (3, 0, 5)), (np.inf, (3, 0, 5))):
        arrays = load_file(file)
        assert np.isfinite(arrays["loss"][place]) == (value is np.nan)
        arrays["loss"][place] = value
        save_file(arrays, file, metadata=said)
        xr.testing.assert_equal(run(posterior, cache=tmp_path), trace)
    assert file.stat().st_mode == mode


SCALE = {"of": 1.0}


def test_what_a_loss_looks_up_where_no_hash_sees_it_is_never_served(posterior, tmp_path):
    def unseen(output, target):
        return eval("SCALE")["of"] * probelib.token_cross_entropy(output, target)

    before = run(posterior, unseen, cache=tmp_path)
    SCALE["of"] = 1.00001  # less than a look at w* would notice
    after = run(posterior, unseen, cache=tmp_path)
    SCALE["of"] = 1.0
    np.testing.assert_allclose(after.loss, 1.00001 * before.loss, rtol=1e-6)


@pytest.mark.parametrize("cached", [False, True])
def test_the_losses_are_held_once(tmp_path, cached):
    """Of 60 draws of 12,000 tokens; what the second call reads from the cache as well."""
    x, y = torch.randn(60, 200, 1), torch.randint(0, 2, (60, 200))
    posterior = probelib.LocalPosterior(
        nn.Linear(1, 2), probelib.sequence_cross_entropy, (x, y), n_beta=1.0, localization=10.0
    )
    options = {"cache": tmp_path} if cached else {}
    size = 60 * y.numel() * 4
    for _ in range(2):
        tracemalloc.start()
        found = run(posterior, **options)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.loss.nbytes == size
        del found
        assert size < peak < 2 * size


# -- several observed sets ---------------------------------------------------------------------


def data(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=generator), torch.arange(n) % 4


SETS = {"train": data(12, 0), "held out": data(7, 1)}


@pytest.mark.parametrize("observe_loss", [None, lambda o, t: (o - t[:, None]).square()])
def test_each_set_is_what_it_is_when_observed_alone(observe_loss, tmp_path, monkeypatch):
    torch.manual_seed(0)
    posterior = probelib.LocalPosterior(
        nn.Linear(3, 4), probelib.cross_entropy, SETS["train"], n_beta=10.0, localization=5.0
    )
    tree = run(posterior, observe_loss, observe=SETS, cache=tmp_path)
    assert isinstance(tree, xr.DataTree)
    assert sorted(tree.children) == sorted(SETS)
    colder = probelib.reweight(tree, 3.0)
    assert colder.attrs["config"]["n_beta"] == 3.0
    for name, observe in SETS.items():
        alone, found = run(posterior, observe_loss, observe=observe), tree[name].to_dataset()
        np.testing.assert_allclose(found.loss, alone.loss, rtol=1e-5)
        np.testing.assert_array_equal(found.log_weight, alone.log_weight)
        np.testing.assert_array_equal(found.sample_id, alone.sample_id)
        assert found.attrs["fingerprint"] == alone.attrs["fingerprint"]
        assert found.attrs["observed_set"] == name
        assert found.attrs["guessing_loss"] == alone.attrs["guessing_loss"] > 0
        for one, other in ((tree, alone), (colder, probelib.reweight(alone, 3.0))):
            gain, wanted = probelib.loss_gain(one)[name], probelib.loss_gain(other)
            np.testing.assert_allclose(gain, wanted, rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(gain.mcse, wanted.mcse, rtol=1e-3)
            llc = probelib.local_learning_coefficient(one)[name]
            np.testing.assert_allclose(
                llc.value, probelib.local_learning_coefficient(other).value, rtol=1e-3
            )
            assert probelib.khat(one)[name] == probelib.khat(other)
    assert probelib.loss_kernel(tree, over="sample").shape == (19, 19)
    assert probelib.loss_kernel(colder).shape[0] == 19 * (1 if observe_loss is None else 4)
    monkeypatch.setattr(importance, "_evaluated", lambda *a: pytest.fail("drawn again"))
    served = run(posterior, observe_loss, observe=SETS, cache=tmp_path)
    xr.testing.assert_equal(served["train"].to_dataset(), tree["train"].to_dataset())


# -- what is refused ---------------------------------------------------------------------------


def by_chance(output, target):
    return probelib.token_cross_entropy(output, target) + 0 * torch.rand(())


def comes_and_goes(output, target):
    losses = probelib.token_cross_entropy(output, target)
    far = output.abs().amax((1, 2), keepdim=True)[..., 0] > 1.3
    return torch.where(far, 1.0, losses)


def explodes(output, target):
    losses = probelib.token_cross_entropy(output, target)
    far = (output.abs().amax((1, 2), keepdim=True)[..., 0] > 1.3) & ~losses.isnan()
    return torch.where(far, math.inf, losses)


@pytest.mark.parametrize(
    ("observe_loss", "error", "message"),
    [
        (3, TypeError, "observe_loss is 3; give a function"),
        (probelib.sequence_cross_entropy, ValueError, "observe_loss returned .*positions"),
        (lambda o, t: probelib.token_cross_entropy(o, t) * torch.nan, ValueError, "at all positio"),
        (by_chance, ValueError, "observe_loss draws at random"),
        (comes_and_goes, ValueError, "at position . for some weights and NaN"),
        (explodes, ValueError, r"localization is 1, at which sample \d of data at position \d"),
    ],
)
def test_what_is_no_loss_per_token_is_refused(posterior, text, observe_loss, error, message):
    wide = probelib.LocalPosterior(
        posterior.model, posterior.per_sample_loss, text, n_beta=1.0, localization=1.0
    )
    with pytest.raises(error, match=message) as info:
        run(wide, observe_loss)
    assert "\n" not in str(info.value)


def test_a_loss_that_is_not_finite_at_the_centre_is_named(posterior):
    ids = torch.randint(0, 6, (60, 6), generator=torch.Generator().manual_seed(1))
    target = ids.roll(-1, 1)
    target[41, 1] = 6

    def infinite(output, target):
        return torch.where(target == 6, math.inf, probelib.token_cross_entropy(output, target))

    match = r"sample 41 of observe at position 1 \(observe_loss\) has a non-finite loss at w\*"
    with pytest.raises(ValueError, match=match):
        run(posterior, infinite, observe=(ids, target))
