"""Losses per token: against closed forms, against runs without, and what may go wrong with them."""

import math
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import probelib
from probelib import contract
from probelib.tokens import Places, flat

pytestmark = pytest.mark.usefixtures("one_thread")


# -- a closed form: several outputs of a linear regression, some of them missing ---------------


def parts(output, target):
    """Half the squared error of each output; the target says which of them there are."""
    error = (output - target[..., 0]).pow(2) / 2
    return torch.where(target[..., 1] > 0, error, torch.nan)


class Outputs:
    """Linear regression on three outputs, of which each sample has some: all in closed form."""

    n, d, m = 9, 3, 3

    def __init__(self, n_beta=10.0, gamma=20.0):
        rng = np.random.default_rng(0)
        self.there = rng.random((self.n, self.m)) < 0.7
        self.there[0] = True
        x, y = rng.normal(size=(self.n, self.d)), rng.normal(size=(self.n, self.m))
        w = [np.linalg.lstsq(x[k], y[k, a], rcond=None)[0] for a, k in enumerate(self.there.T)]
        model = nn.Linear(self.d, self.m, bias=False).double()
        model.weight.data = torch.tensor(np.array(w))
        target = torch.tensor(np.stack([y, self.there], -1))
        self.data = torch.tensor(x), target
        self.posterior = probelib.LocalPosterior(
            model, lambda o, t: parts(o, t).nansum(1), self.data, n_beta=n_beta, localization=gamma
        )
        gain, kernel, llc = [], np.zeros((self.n, self.m, self.n, self.m)), 0.0
        for a, k in enumerate(self.there.T):
            hessian = x[k].T @ x[k] / self.n
            s = np.linalg.inv(n_beta * hessian + gamma * np.eye(self.d))
            g, r = x @ s @ x.T, y[:, a] - x @ w[a]
            gain.append(np.diag(g) / 2)
            kernel[:, a, :, a] = np.outer(r, r) * g + g * g / 2
            llc += n_beta / 2 * np.trace(hessian @ s)
        self.gain = np.where(self.there, np.array(gain).T, np.nan)
        self.kernel = kernel[self.there][:, self.there]
        # Of whole samples: the sum over their outputs.
        both = kernel * self.there[..., None, None] * self.there
        self.sample_gain, self.sample_kernel = np.nansum(self.gain, 1), both.sum((1, 3))
        self.llc = llc


@pytest.fixture(scope="module")
def outputs():
    return Outputs()


@pytest.fixture(scope="module")
def exact(outputs):
    return probelib.sample(
        outputs.posterior,
        sampler=probelib.LeimkuhlerMatthews(step_size=0.04, batch_size=None),
        observe_loss=parts,
        chains=4,
        draws=1500,
        burn_in=50,
        thin=4,
        progress=False,
    )


def within(estimate, error, truth, sigmas=4.5):
    there = ~np.isnan(truth)
    np.testing.assert_array_equal(~np.isnan(np.asarray(estimate)), there)
    far = np.abs(np.asarray(estimate) - truth)[there]
    np.testing.assert_array_less(far, sigmas * np.asarray(error)[there])


def test_gains_and_kernel_of_tokens_and_of_samples_have_the_closed_form(outputs, exact):
    gain = probelib.loss_gain(exact)
    assert gain.dims == ("sample", "token")
    within(gain, gain.mcse, outputs.gain)
    assert np.nanmedian(gain.mcse) < 0.1 * np.nanmean(outputs.gain)  # small enough to tell
    of_samples = probelib.loss_gain(exact, over="sample")
    within(of_samples, of_samples.mcse, outputs.sample_gain)
    kernel = probelib.loss_kernel(exact)
    every = np.arange(kernel.shape[0])
    assert kernel.shape == outputs.kernel.shape
    within(kernel.covariance(), kernel.covariance_mcse(every, every), outputs.kernel)
    variance = kernel.diagonal()
    wanted = np.full(outputs.there.shape, np.nan)
    wanted[outputs.there] = np.diag(outputs.kernel)
    within(variance, variance.mcse, wanted)
    whole, every = probelib.loss_kernel(exact, over="sample"), np.arange(outputs.n)
    within(whole.covariance(), whole.covariance_mcse(every, every), outputs.sample_kernel)


def test_the_llc_and_the_fluctuation_are_those_of_the_posteriors_loss(outputs, exact):
    llc = probelib.local_learning_coefficient(exact)
    within(llc.value, llc.mcse, np.array(outputs.llc))
    v = probelib.empirical_variance(exact)
    within(v.value, v.mcse, np.array(np.trace(outputs.sample_kernel)))
    found = probelib.diagnostics(exact)
    assert found["minimum"].value == pytest.approx(llc.value)
    assert found.good, str(found)


# -- a language model: runs with and without tokens, and everything that moves a trace ---------


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.mix = nn.GRU(4, 4, batch_first=True)
        self.head = nn.Linear(4, 7)

    def forward(self, ids):
        return self.head(self.mix(self.embed(ids))[0])


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


def run(posterior, observe_loss=probelib.token_cross_entropy, **options):
    settings = {"chains": 3, "draws": 12, "burn_in": 3, "thin": 2, "progress": False}
    sampler = options.pop("sampler", probelib.SGLD(step_size=1e-3, batch_size=4))
    return probelib.sample(
        posterior, sampler=sampler, observe_loss=observe_loss, **(settings | options)
    )


@pytest.fixture(scope="module")
def trace(posterior):
    return run(posterior)


def test_the_trace_is_what_the_contract_says(trace, text):
    of_tokens = {name: contract.TOKEN_VARIABLES.get(name, dims) for name, dims in
                 (contract.VARIABLES | contract.TOKEN_VARIABLES).items()}  # fmt: skip
    assert {str(k): v.dims for k, v in trace.data_vars.items()} == of_tokens
    assert trace.token_id.dims == ("sample", "token")
    np.testing.assert_array_equal(trace.token_id, text[1])
    np.testing.assert_array_equal(trace.token, np.arange(6))
    assert trace.attrs["token_shape"] == [6]
    np.testing.assert_array_equal(trace.init_loss.isnull(), text[1] == -100)
    assert (trace.loss.isnull() == trace.init_loss.isnull()).all()


def test_whole_samples_are_bit_for_bit_what_they_are_without_tokens(posterior, trace):
    without = run(posterior, None)
    np.testing.assert_array_equal(trace.sample_loss, without.loss)
    np.testing.assert_array_equal(trace.init_sample_loss, without.init_loss)
    for estimate in (probelib.local_learning_coefficient, probelib.empirical_variance,
                     probelib.singular_fluctuation):  # fmt: skip
        assert estimate(trace) == estimate(without)
    xr.testing.assert_identical(
        probelib.loss_gain(trace, over="sample"), probelib.loss_gain(without)
    )
    mean = trace.loss.mean("token")  # the posterior's loss is the mean over tokens
    np.testing.assert_allclose(mean, trace.sample_loss, rtol=1e-5, atol=1e-6)


def test_losses_of_tokens_are_those_of_a_loop_written_by_hand(posterior, text):
    found = run(posterior, sampler=probelib.SGLD(step_size=1e-12, batch_size=4), draws=2)
    torch.manual_seed(0)
    with torch.no_grad():
        plain = nn.functional.cross_entropy(
            Model()(text[0]).transpose(1, 2), text[1], reduction="none"
        )
    plain[text[1] == -100] = torch.nan
    np.testing.assert_allclose(found.init_loss, plain, rtol=1e-5)
    np.testing.assert_allclose(found.loss[0, 0], plain, rtol=1e-4)


def test_a_store_goes_on_is_served_and_is_read_again_as_it_was(posterior, trace, tmp_path):
    path = tmp_path / "t.zarr"
    run(posterior, draws=5, store=path)
    extended = run(posterior, store=path)
    np.testing.assert_array_equal(extended.loss, trace.loss)
    np.testing.assert_array_equal(extended.sample_loss, trace.sample_loss)
    xr.testing.assert_identical(probelib.open_trace(path), run(posterior, store=path))
    plain = xr.open_zarr(path)
    xr.testing.assert_equal(probelib.loss_gain(plain), probelib.loss_gain(trace))
    with pytest.raises(probelib.TraceMismatch, match="observe_loss"):
        run(posterior, None, store=path)
    with pytest.raises(probelib.TraceMismatch, match="observe_loss"):
        run(posterior, lambda o, t: 2 * probelib.token_cross_entropy(o, t), store=path)


@pytest.mark.parametrize("way", ["zarr", "netcdf"])
def test_copies_on_disk_say_the_same(trace, tmp_path, way):
    path = tmp_path / "copy"
    if way == "zarr":
        trace.isel(sample=slice(2, None)).to_zarr(path)
        found = probelib.open_trace(path)
    else:
        trace.isel(sample=slice(2, None)).to_netcdf(path)
        found = xr.open_dataset(path)
    wanted = probelib.loss_gain(trace).isel(sample=slice(2, None))
    xr.testing.assert_equal(probelib.loss_gain(found).drop_vars("step_bias"),
                            wanted.drop_vars("step_bias"))  # fmt: skip


def test_workers_give_the_same_trace(posterior, tmp_path):
    alone = run(posterior, store=tmp_path / "one.zarr", executor=ThreadPoolExecutor(1))
    shared = run(posterior, store=tmp_path / "two.zarr", executor=ThreadPoolExecutor(2))
    np.testing.assert_array_equal(alone.loss, shared.loss)
    np.testing.assert_array_equal(alone.sample_loss, shared.sample_loss)


@pytest.mark.parametrize("change", ["transposed", "one", "some", "stacked", "no tokens known"])
def test_gains_do_not_depend_on_how_a_trace_was_rearranged(trace, change):
    wanted = probelib.loss_gain(trace).drop_vars("step_bias")
    found = {
        "transposed": lambda: trace.transpose("token", "sample", "draw", ...),
        "one": lambda: trace.isel(token=1),
        "some": lambda: trace.isel(token=[4, 1], sample=[7, 2, 3]),
        "stacked": lambda: trace.stack(place=("sample", "token")),
        "no tokens known": lambda: trace.drop_vars("token_id"),
    }[change]()
    if change == "stacked":
        found = found.assign_coords(place=found.place)
    if change == "one":
        wanted = wanted.isel(token=[1])
    if change == "some":
        wanted = wanted.isel(token=[4, 1], sample=[7, 2, 3])
    got = probelib.loss_gain(found).drop_vars("step_bias")
    assert got.dims == ("sample", "token")
    np.testing.assert_array_equal(got.values, wanted.values)
    np.testing.assert_array_equal(got.mcse.values, wanted.mcse.values)
    np.testing.assert_array_equal(got.sample_id.values, wanted.sample_id.values)


def test_one_sample_can_be_selected(trace):
    gain = probelib.loss_gain(trace.isel(sample=4))
    np.testing.assert_array_equal(gain, probelib.loss_gain(trace).isel(sample=[4]))
    assert gain.token_id.values.tolist() == trace.token_id.values[[4]].tolist()


def test_a_kernel_of_tokens_is_that_of_their_series(trace):
    kernel = probelib.loss_kernel(trace)
    there = trace.init_loss.notnull().values
    series = trace.loss.values.reshape(36, *there.shape)[:, there].astype(np.float64)
    np.testing.assert_allclose(kernel.correlation(), np.corrcoef(series.T), atol=1e-5)
    sample, token = np.nonzero(there)
    at = kernel.find(6, 2)
    assert (sample[at], token[at]) == (6, 2)
    near = kernel.top_correlated(3, rows=at).to_dataframe()
    np.testing.assert_array_equal(near.sample_id, sample[near["index"]])
    np.testing.assert_array_equal(near.token, token[near["index"]])
    np.testing.assert_array_equal(near.token_id, trace.token_id.values[near.sample_id, near.token])
    some = probelib.loss_kernel(trace.isel(sample=[7, 6], token=[0, 2]))
    names = some.top_correlated(1, rows=some.find(6, 2)).to_dataframe()
    assert some.find(int(names.sample_id[0]), int(names.token[0])) == names["index"][0]
    with pytest.raises(IndexError, match="sample 0 does not have"):
        kernel.find(0, 5)
    with pytest.raises(ValueError, match="no tokens"):
        probelib.loss_kernel(trace, over="sample").find(0, 0)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_one_axis_of_all_tokens_reads_what_is_there(data):
    shape = tuple(data.draw(st.integers(1, 4)) for _ in range(4))
    there = np.array(
        data.draw(st.lists(st.booleans(), min_size=shape[2] * shape[3],
                           max_size=shape[2] * shape[3]))
    ).reshape(shape[2:])  # fmt: skip
    there.flat[0] = True
    places, loss = Places(there), np.random.default_rng(0).random(shape)
    one = xr.DataArray(flat(xr.Variable(("chain", "draw", "sample", "token"), loss), places))
    wanted = loss[..., there]
    np.testing.assert_array_equal(one, wanted)
    some = data.draw(st.lists(st.integers(-len(places), len(places) - 1), max_size=5))
    np.testing.assert_array_equal(one[:, -1:, some], wanted[:, -1:][..., some])
    np.testing.assert_array_equal(one[0, 0, ::-1], wanted[0, 0, ::-1])
    np.testing.assert_array_equal(one[0, 0, 0], wanted[0, 0, 0])
    whole = places.spread(wanted)
    np.testing.assert_array_equal(np.isnan(whole), np.broadcast_to(~there, shape))
    np.testing.assert_array_equal(whole[..., there], wanted)


# -- other kinds of runs -----------------------------------------------------------------------


def test_losses_of_pixels_are_losses_of_tokens():
    torch.manual_seed(0)
    images, masks = torch.randn(5, 2, 4, 3), torch.randint(0, 3, (5, 4, 3))

    def of_pixels(output, target):
        return nn.functional.cross_entropy(output, target, reduction="none")

    posterior = probelib.LocalPosterior(
        nn.Conv2d(2, 3, 1),
        lambda output, target: of_pixels(output, target).flatten(1).mean(1),
        (images, masks),
        n_beta=5.0,
        localization=10.0,
    )
    trace = run(posterior, of_pixels, sampler=probelib.SGLD(step_size=1e-3, batch_size=2))
    assert trace.attrs["token_shape"] == [4, 3]
    gain = probelib.loss_gain(trace)
    assert gain.shape == (5, 12)
    np.testing.assert_allclose(
        gain.mean("token"), probelib.loss_gain(trace, over="sample"), atol=1e-6
    )
    np.testing.assert_array_equal(trace.token_id, masks.flatten(1))


def test_thinning_is_chosen_and_errors_end_a_run(posterior):
    with pytest.warns(UserWarning, match="burn_in is short"):
        found = run(posterior, thin="auto", burn_in=100, draws=400, until=0.3)
    assert found.attrs["thinning"]["thin"] == found.attrs["config"]["thin"]
    assert 20 <= found.sizes["draw"] < 400
    assert found.complete


def test_precisions_of_losses(posterior, trace):
    half = run(posterior, loss_dtype="float16")
    assert half.loss.dtype == half.sample_loss.dtype == np.float16
    np.testing.assert_allclose(half.loss, trace.loss, rtol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bfloat16 where it is slow
        rough = run(posterior, observe_dtype="bfloat16")
    np.testing.assert_allclose(rough.loss, trace.loss, rtol=0.05, atol=0.05)


def test_a_chain_that_diverges_ends_alone(posterior):
    def explodes(output, target):
        losses = probelib.token_cross_entropy(output, target)
        far = (output.abs().amax((1, 2), keepdim=True)[..., 0] > 1.88) & ~losses.isnan()
        return torch.where(far, math.inf, losses)

    with pytest.warns(UserWarning, match="chain . diverged"):
        found = run(posterior, explodes, sampler=probelib.SGLD(step_size=4e-2, batch_size=4),
                    draws=6, chains=6)  # fmt: skip
    lost = [int(c) for c in found.attrs["diverged"]]
    assert 0 < len(lost) < 6
    with pytest.raises(ValueError, match="leave it out"):
        probelib.loss_gain(found)
    kept = probelib.loss_gain(found.drop_sel(chain=lost))
    np.testing.assert_array_equal(kept.isnull(), found.init_loss.isnull())


def test_a_model_that_draws_at_random_has_errors_at_the_centre(text):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Dropout(0.5), nn.Linear(4, 7))
    posterior = probelib.LocalPosterior(
        model, probelib.sequence_cross_entropy, text, n_beta=5.0, localization=50.0,
        train_mode=True,
    )  # fmt: skip
    found = run(posterior, draws=20)
    assert found.init_loss_mcse.dims == ("sample", "token")
    assert found.init_sample_loss_mcse.dims == ("sample",)
    gain = probelib.loss_gain(found)
    there = found.init_loss.notnull().values
    assert (gain.mcse.values[there] >= found.init_loss_mcse.values[there]).all()
    of_mean = found.attrs["init_loss_mcse_of_mean"]
    assert of_mean["samples"] == 10
    llc = probelib.local_learning_coefficient(found)
    assert llc.mcse >= 5.0 * of_mean["mcse"]


# -- what is refused ---------------------------------------------------------------------------


def refused(posterior, observe_loss, message):
    with pytest.raises((ValueError, TypeError), match=message) as info:
        run(posterior, observe_loss)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("observe_loss", "message"),
    [
        (3, "observe_loss is 3; give a function"),
        (lambda o, t: probelib.sequence_cross_entropy(o, t), "observe_loss returned .*positions"),
        (lambda o, t: probelib.token_cross_entropy(o, t).mean(), "observe_loss returned"),
        (lambda o, t: t, "floating-point"),
        (lambda o, t: probelib.token_cross_entropy(o, t) / 0, "not finite"),
        (lambda o, t: probelib.token_cross_entropy(o, t) * torch.nan, "NaN at all positions"),
        (lambda o, t: probelib.token_cross_entropy(o, t) - o.mean(), "depend on this sample alone"),
        (
            lambda o, t: torch.where(o[..., 0] > 0, probelib.token_cross_entropy(o, t), torch.nan),
            "observe_loss",
        ),
        (lambda o, t: probelib.token_cross_entropy(o.zero_(), t), "writes into"),
        (lambda o, t: probelib.token_cross_entropy(o, t.clamp_(0)), "writes into"),
    ],
)
def test_what_is_no_loss_per_token_is_refused(posterior, observe_loss, message):
    refused(posterior, observe_loss, message)


def test_positions_that_come_and_go_along_the_chain_are_refused(posterior):
    def sometimes(output, target):
        losses = probelib.token_cross_entropy(output, target).nan_to_num(1.0)
        far = output.detach().abs().amax() > 1.5
        return torch.where((target == -100) & ~far, torch.nan, losses)

    with pytest.raises(ValueError, match=r"at position \d for some weights and NaN"):
        run(posterior, sometimes, sampler=probelib.SGLD(step_size=4e-2, batch_size=4), draws=30)


def test_what_a_trace_does_not_have_is_asked_for(posterior, trace):
    without = run(posterior, None)
    for estimate in (probelib.loss_gain, probelib.loss_kernel, probelib.diagnostics):
        with pytest.raises(ValueError, match="over is 'token', but trace has one loss per sample"):
            estimate(without, over="token")
        with pytest.raises(ValueError, match="over is 'word'"):
            estimate(trace, over="word")
    tokens_only = trace.drop_vars(["sample_loss", "init_sample_loss"])
    assert np.isnan(probelib.loss_gain(tokens_only).step_bias).all()
    with pytest.raises(ValueError, match="no sample_loss"):
        probelib.local_learning_coefficient(tokens_only)


def test_sequences_and_tokens_agree_with_torch():
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 4, (3, 5), generator=generator)
    target[1, 2:] = -100
    found = probelib.token_cross_entropy(output, target)
    plain = nn.functional.cross_entropy(output.transpose(1, 2), target, reduction="none")
    torch.testing.assert_close(found.nan_to_num(0.0), plain)
    assert (found.isnan() == (target == -100)).all()
    mean = [nn.functional.cross_entropy(o, t) for o, t in zip(output, target, strict=True)]
    torch.testing.assert_close(probelib.sequence_cross_entropy(output, target), torch.stack(mean))
    target[0] = -100
    assert probelib.sequence_cross_entropy(output, target).isnan().tolist() == [True, False, False]
