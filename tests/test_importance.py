"""Weighted draws against closed forms; weights that nothing may lose, misplace or ignore."""

import numpy as np
import pytest
import torch
import xarray as xr
from regressions import Exact, N
from torch import nn

import probelib
from probelib import contract
from probelib.estimators import weights_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def exact():
    return Exact()


@pytest.fixture(scope="module")
def trace(exact):
    return probelib.importance_sample(exact.posterior, 6000, progress=False)


def within(estimate, error, truth, sigmas=4.0):
    np.testing.assert_array_less(np.abs(np.asarray(estimate) - truth), sigmas * np.asarray(error))


@pytest.mark.parametrize("n_beta", [1e-3, 1.0, 10.0, 100.0])
def test_one_set_of_draws_has_the_closed_form_at_every_n_beta(exact, trace, n_beta):
    gains, k, llc = exact.at(n_beta)
    part = probelib.reweight(trace, n_beta)
    assert part.attrs["config"]["n_beta"] == n_beta
    assert part.attrs["config"]["beta"] == pytest.approx(n_beta / N)
    gain = probelib.loss_gain(part)
    within(gain, gain.mcse, gains)
    found = probelib.local_learning_coefficient(part)
    within(found.value, found.mcse, llc)
    assert found.mcse < 0.1 * llc  # small enough to tell
    assert np.isnan(found.rhat)
    assert found.step_bias == 0
    assert 1 < found.ess <= 6000
    v, nu = probelib.empirical_variance(part), probelib.singular_fluctuation(part)
    within(v.value, v.mcse, np.trace(k))
    within(nu.value, nu.mcse, n_beta / N / 2 * np.trace(k))
    kernel, every = probelib.loss_kernel(part), np.arange(N)
    within(kernel.covariance(), kernel.covariance_mcse(every, every), k)
    within(kernel.diagonal(), kernel.diagonal().mcse, np.diag(k))
    r = k / np.sqrt(np.outer(np.diag(k), np.diag(k)))
    above = np.triu_indices(N, 1)
    within(kernel.correlation()[above], kernel.correlation_mcse(every, every)[above], r[above])
    # The draws as they are would be another posterior's.
    assert (
        n_beta < 1
        or np.abs(trace.loss.mean(("chain", "draw")) - part.init_loss - gains).max() > 0.01
    )


def test_errors_cover():
    """60 parts of 100 draws, of which half count. 200 runs of 200 gave 0.956, 0.970 and 0.948."""
    exact = Exact(gamma=20.0)
    gains, k, llc = exact.at(10.0)
    whole = probelib.importance_sample(exact.posterior, 6000, seed=3, progress=False)
    hits = []
    for first in range(0, 6000, 100):
        trace = whole.isel(draw=slice(first, first + 100))
        gain, diagonal = probelib.loss_gain(trace), probelib.loss_kernel(trace).diagonal()
        found = probelib.local_learning_coefficient(trace)
        assert np.isfinite(found.mcse)
        hits.append(
            [
                (np.abs(gain - gains) < 1.96 * gain.mcse).mean(),
                abs(found.value - llc) < 1.96 * found.mcse,
                (np.abs(diagonal - np.diag(k)) < 1.96 * diagonal.mcse).mean(),
            ]
        )
    of_gain, of_llc, of_variance = np.mean(hits, 0)
    # Of 60 parts 95 % +- 2.8 %; of their 12 samples, which differ, somewhat better.
    assert 0.90 < of_gain < 0.99
    assert of_llc > 0.86
    assert 0.87 < of_variance < 0.99


def concat(parts, dim):
    return xr.concat(parts, dim, data_vars="minimal")


def equal(one, other):
    """What every estimator says of two traces."""
    for function in (probelib.local_learning_coefficient, probelib.empirical_variance):
        a, b = function(one), function(other)
        assert a.value == pytest.approx(b.value)
        assert a.mcse == pytest.approx(b.mcse)
    np.testing.assert_allclose(probelib.loss_gain(one), probelib.loss_gain(other))
    np.testing.assert_allclose(
        probelib.loss_kernel(one).covariance(),
        probelib.loss_kernel(other).covariance(),
        rtol=1e-4,
        atol=1e-7,
    )


def test_parts_shuffles_and_copies_keep_each_draw_its_weight(trace, tmp_path):
    few = trace.isel(draw=slice(500))
    order = np.random.default_rng(0).permutation(500)
    equal(few, few.isel(draw=order))
    equal(few, concat([few.isel(draw=slice(200)), few.isel(draw=slice(200, None))], "draw"))
    equal(few, few.set_coords("log_weight"))
    equal(few, few.assign(log_weight=few.log_weight.transpose("draw", "chain")))
    equal(few, few.isel(chain=0))
    equal(few, few.stack(every=("chain", "draw")))
    chains = [
        few.isel(draw=slice(0, 250)),
        few.isel(draw=slice(250, 500)).assign_coords(chain=[1]),
    ]
    equal(few, concat([c.drop_vars("draw", errors="ignore") for c in chains], "chain"))
    weights = contract.draw_weights(few)
    assert weights.shape == (1, 500)
    assert weights.sum() == pytest.approx(1)
    assert probelib.khat(few) != probelib.khat(trace)  # of what is there


def test_weights_that_are_lost_or_foreign_are_refused(exact, trace):
    few = trace.isel(draw=slice(100))
    for broken, match in (
        (few.drop_vars("log_weight"), "has no log_weight"),
        (few[["loss", "init_loss"]], "has no log_weight"),
        (few.assign(log_weight=few.log_weight * 2), "but weights of another"),
        (few.assign_attrs(config=few.attrs["config"] | {"n_beta": 3.0}), "but weights of another"),
        (few.assign(log_weight=few.log_weight.where(few.draw > 3)), "without a weight"),
        (few.assign(log_weight=few.log_weight + np.inf), "without a weight"),
        (few.assign(log_weight=few.loss), "differs along sample"),
        (concat([few, probelib.reweight(few, 3.0)], "draw"), "but weights of another"),
        (concat([few, few], "draw"), "weighted draws twice, those at 0 and 100"),
        (concat([few, few.assign_coords(chain=[1])], "chain"), "weighted draws twice"),
    ):
        for estimator in (
            probelib.loss_gain,
            probelib.local_learning_coefficient,
            probelib.empirical_variance,
            lambda t: probelib.loss_kernel(t).diagonal(),
        ):
            with pytest.raises(ValueError, match=match):
                estimator(broken)
    chain = probelib.sample(
        exact.posterior, sampler=probelib.SGLD(1e-3, None), chains=1, draws=5, progress=False
    )
    with pytest.raises(ValueError, match="without a weight"):
        probelib.loss_gain(concat([few, chain.assign(init_loss=few.init_loss)], "draw"))
    with pytest.raises(ValueError, match="sampler 'SGLD'"):
        probelib.reweight(chain, 3.0)
    assert contract.draw_weights(chain) is None
    assert np.isnan(probelib.khat(chain))


def test_draws_of_a_loss_of_few_values_are_told_apart_by_their_distance(exact):
    """Of a loss that is 0 or 1, many draws have all losses, and so their weight, in common."""
    posterior = probelib.LocalPosterior(
        exact.posterior.model,
        lambda output, target: (output.sign() != target.sign()).double() + 0 * output,
        exact.data,
        n_beta=10.0,
        localization=exact.gamma,
    )
    found = probelib.importance_sample(posterior, 100, progress=False)
    assert len(np.unique(found.log_weight)) < 10
    weights = np.exp(found.log_weight - found.log_weight.max())
    mean = (found.loss * weights).sum(("chain", "draw")) / weights.sum()
    np.testing.assert_allclose(probelib.loss_gain(found), mean - found.init_loss, atol=1e-12)
    with pytest.raises(ValueError, match="weighted draws twice, those at 0 and 100"):
        probelib.loss_gain(concat([found, found], "draw"))
    with pytest.raises(ValueError, match="keep distance"):
        probelib.loss_gain(found.drop_vars("distance"))


def test_devinterp_cannot_weigh(trace, tmp_path):
    with pytest.raises(ValueError, match="which devinterp cannot weigh"):
        probelib.interop.to_devinterp(trace, tmp_path / "store")


def test_no_error_is_known_where_the_weights_are_degenerate():
    exact = Exact(gamma=0.1, n_beta=100.0)
    trace = probelib.importance_sample(exact.posterior, 200, progress=False)
    assert probelib.khat(trace) > 0.7
    found = probelib.local_learning_coefficient(trace)
    assert np.isinf(found.mcse)
    assert found.ess < 5
    assert np.isinf(probelib.loss_gain(trace).mcse).all()
    with pytest.raises(ValueError, match="one draw that outweighs all others"):
        probelib.empirical_variance(trace)
    heavy = probelib.reweight(trace, 5.0)
    assert probelib.khat(heavy) > 0.7
    assert np.isinf(probelib.loss_kernel(heavy).diagonal().mcse).all()
    assert np.isinf(probelib.singular_fluctuation(heavy).mcse)
    assert np.isfinite(probelib.local_learning_coefficient(probelib.reweight(trace, 1e-3)).mcse)


def test_a_dozen_draws_do_not_know_their_tail(trace):
    """Even where the weights that are there look alike."""
    few = probelib.reweight(trace, 0.1).isel(draw=slice(12))
    assert weights_of(few).ess > 10
    assert np.isinf(probelib.khat(few))
    assert np.isinf(probelib.local_learning_coefficient(few).mcse)


def test_equal_weights_are_the_plain_estimators(trace):
    """At no n_beta at all: means, variances and errors of independent draws."""
    few = probelib.reweight(trace, 1e-9).isel(draw=slice(300))
    plain = few.drop_vars(["log_weight", "mean_loss", "log_weight_error"]).assign_attrs(config={})
    np.testing.assert_allclose(probelib.loss_gain(few), probelib.loss_gain(plain))
    a, b = probelib.loss_kernel(few), probelib.loss_kernel(plain)
    np.testing.assert_allclose(a.covariance(), b.covariance(), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(a.correlation(), b.correlation(), atol=1e-6)
    np.testing.assert_allclose(
        a.features() @ a.features().T, b.features() @ b.features().T, atol=1e-5
    )
    rows = np.arange(N)
    np.testing.assert_allclose(
        a.covariance_mcse(rows, rows), b.covariance_mcse(rows, rows), rtol=0.5
    )
    np.testing.assert_array_equal(a.top_correlated(2).index, b.top_correlated(2).index)


def test_a_kernel_read_from_disk_is_the_one_in_memory(trace, monkeypatch):
    few, rows = trace.isel(draw=slice(300)), np.array([3, 1])
    one = probelib.loss_kernel(few)
    monkeypatch.setattr("probelib.estimators.kernel._IN_MEMORY", 0)
    other = probelib.loss_kernel(few)
    np.testing.assert_allclose(one.covariance(), other.covariance())
    np.testing.assert_allclose(one.correlation_mcse(rows, rows), other.correlation_mcse(rows, rows))
    plane = [kernel.features(2, rows) for kernel in (one, other)]
    np.testing.assert_allclose(plane[0] @ plane[0].T, plane[1] @ plane[1].T, rtol=1e-4)
    whole = one.features() @ one.features().T
    np.testing.assert_allclose(whole, one.covariance(), rtol=1e-4, atol=1e-7)


def test_a_loss_that_never_moves_has_no_variance_and_no_correlation(trace):
    constant = trace.isel(draw=slice(300)).copy(deep=True)
    constant.loss[:, :, 2] = 0.1
    constant.init_loss[2] = 0.1
    kernel = probelib.loss_kernel(constant)
    assert kernel.diagonal()[2] == 0
    assert (kernel.correlation([2]) == 0).all()
    assert probelib.loss_gain(constant)[2] == 0


def test_a_share_is_of_weighted_means(trace):
    few, gains = trace.isel(draw=slice(500)), probelib.loss_gain(trace.isel(draw=slice(500)))
    change = (few.loss - few.init_loss).values
    weights = weights_of(few)
    found = probelib.estimators.share(change[..., 0], change.sum(-1), weights)
    assert found.value == pytest.approx(float(gains[0] / gains.sum()))
    assert probelib.estimators.share(0.4 * change[..., 0], change[..., 0], weights).mcse < 1e-12


def test_a_constant_in_the_loss_changes_no_weight():
    """A loss of 1e5 beside changes of 0.1: weights and gains in the precision of the model."""
    plain = probelib.importance_sample(Exact().posterior, 50, progress=False)
    far = probelib.importance_sample(Exact(offset=1e5).posterior, 50, progress=False)
    np.testing.assert_allclose(contract.draw_weights(far), contract.draw_weights(plain), rtol=1e-6)
    np.testing.assert_allclose(probelib.loss_gain(far), probelib.loss_gain(plain), rtol=1e-6)


def test_l_is_that_of_the_posterior_whatever_is_observed(exact, trace):
    some = tuple(t[[1, 5]] for t in exact.data)
    part = probelib.importance_sample(exact.posterior, 50, observe=some, progress=False)
    np.testing.assert_allclose(part.mean_loss, trace.mean_loss[:, :50], rtol=1e-12)
    np.testing.assert_allclose(part.loss, trace.loss[:, :50, [1, 5]], rtol=1e-12)
    assert (part.log_weight_error == 0).all()
    fewer = probelib.importance_sample(exact.posterior, 30, observe=some, progress=False)
    np.testing.assert_array_equal(fewer.loss, part.loss[:, :30])


@pytest.mark.filterwarnings("ignore:loss_samples is 300")
def test_l_from_some_samples_widens_the_errors_by_what_it_may_do():
    """Over 12 choices of 300 of 600 samples, nb L is off by what the trace says it is."""
    exact = Exact(d=3, n=600, gamma=30.0, n_beta=10.0)
    some = tuple(t[:2] for t in exact.data)

    def draw(**options):
        return probelib.importance_sample(
            exact.posterior, 30, observe=some, progress=False, **options
        )

    # The draws follow from the seed as the choice does: look at one seed after the other.
    off, said = [], []
    for seed in range(12):
        whole, part = draw(seed=seed), draw(seed=seed, loss_samples=300)
        difference = (part.log_weight - whole.log_weight).values
        off.append(difference.var(ddof=1))
        said.append(float(part.log_weight_error[0, 0]) ** 2)
    assert np.mean(off) == pytest.approx(np.mean(said), rel=0.3)
    gain, exactly = probelib.loss_gain(part), probelib.loss_gain(whole)
    assert (gain.mcse > exactly.mcse).all()
    assert probelib.reweight(part, 20.0).log_weight_error[0, 0] == pytest.approx(
        2 * said[-1] ** 0.5
    )
    with pytest.warns(UserWarning, match="loss_samples is 5, so few"):
        few = draw(loss_samples=5)
    assert np.isfinite(probelib.loss_gain(few).mcse).all() == bool(
        few.log_weight_error[0, 0] <= 0.5
    )
    assert np.isinf(probelib.loss_gain(probelib.reweight(few, 1e3)).mcse).all()


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x):
        return nn.functional.dropout(self.layer(x), 0.5, training=True).flatten()


class Explodes(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1, bias=False)
        self.layer.weight.data.zero_()

    def forward(self, x):
        return torch.exp(1e4 * self.layer(x) ** 2).flatten()


def test_arguments_and_posteriors_that_cannot_be_are_named(exact):
    for options, match in (
        ({"draws": 1}, "draws is 1"),
        ({"seed": -1}, "seed is -1"),
        ({"loss_samples": 5}, "leave it out"),
        ({"observe": exact.data, "loss_samples": 13}, "more than the 12 samples"),
        ({"observe": exact.data, "loss_samples": 1}, "loss_samples is 1"),
    ):
        with pytest.raises(ValueError, match=match):
            probelib.importance_sample(exact.posterior, **options, progress=False)
    torch.manual_seed(0)  # some masks look like a loss of the batch, which is refused before
    data = torch.ones(3, 2), torch.ones(3)
    options = {"n_beta": 1.0, "localization": 0.01}
    for model, mode, match in (
        (nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)), True, "train mode"),
        (Noisy(), False, "draws at random in eval mode"),
        (Explodes(), False, "localization is 0.01, at which sample 0"),
    ):
        posterior = probelib.LocalPosterior(
            model, probelib.squared_error, data, train_mode=mode, **options
        )
        with pytest.raises(ValueError, match=match):
            probelib.importance_sample(posterior, 5, progress=False)


class Items(torch.utils.data.Dataset):
    """The same data, an item at a time."""

    def __init__(self, data):
        self.data, self.reads = data, 0

    def __len__(self):
        return len(self.data[1])

    def __getitem__(self, at):
        self.reads += 1
        return self.data[0][at], self.data[1][at]


def test_data_sets_are_read_once(exact, trace):
    items = Items(exact.data)
    posterior = probelib.LocalPosterior(
        exact.posterior.model,
        exact.posterior.per_sample_loss,
        items,
        n_beta=10.0,
        localization=exact.gamma,
    )
    found = probelib.importance_sample(posterior, 30, progress=False)
    np.testing.assert_allclose(found.loss, trace.loss[:, :30])
    assert items.reads < 10 * N


def test_the_batches_of_a_pass_change_no_draw(exact, trace, monkeypatch):
    sizes = []
    losses = probelib.LocalPosterior.losses

    def counted(self, weights, x, y):
        sizes.append(len(y))
        return losses(self, weights, x, y)

    monkeypatch.setattr(probelib.LocalPosterior, "losses", counted)
    sample = probelib.importance_sample
    again = sample(exact.posterior, 5, observe_batch_size=7, progress=False)
    assert sizes.count(7) >= 6 * (N // 7)  # at w* and at each of the draws
    np.testing.assert_allclose(again.loss, trace.loss.isel(draw=slice(5)), rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(again.distance, trace.distance.isel(draw=slice(5)))
    with pytest.raises(ValueError, match="observe_batch_size is 0"):
        sample(exact.posterior, 5, observe_batch_size=0, progress=False)


def test_nothing_of_the_callers_moves(exact):
    torch.manual_seed(3)
    before, weights = torch.get_rng_state(), exact.posterior.center.clone()
    probelib.importance_sample(exact.posterior, 5, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(exact.posterior.center, weights)


def test_draws_are_kept_and_serve_at_any_n_beta(tmp_path, monkeypatch):
    first = probelib.importance_sample(Exact().posterior, 40, cache=tmp_path, progress=False)
    (file,) = tmp_path.iterdir()
    monkeypatch.setattr("probelib.importance._evaluated", lambda *a: pytest.fail("drawn again"))
    other = probelib.importance_sample(
        Exact(n_beta=3.0).posterior, 40, cache=tmp_path, progress=False
    )
    xr.testing.assert_equal(other, probelib.reweight(first, 3.0))
    assert other.attrs["config"] == probelib.reweight(first, 3.0).attrs["config"]
    assert other.attrs["fingerprint"] == probelib.reweight(first, 3.0).attrs["fingerprint"]
    monkeypatch.undo()
    for changed in (Exact(gamma=31.0), Exact(seed=1)):
        fresh = probelib.importance_sample(changed.posterior, 40, cache=tmp_path, progress=False)
        assert not np.allclose(fresh.loss, first.loss)
    assert len(list(tmp_path.iterdir())) == 3
    file.write_bytes(file.read_bytes()[:-9])  # damaged: made again
    again = probelib.importance_sample(Exact().posterior, 40, cache=tmp_path, progress=False)
    xr.testing.assert_equal(again, first)


def test_a_trace_that_was_elsewhere_is_weighed_as_before(trace, tmp_path):
    few = trace.isel(draw=slice(200))
    few.to_netcdf(tmp_path / "few.nc")
    back = xr.open_dataset(tmp_path / "few.nc")
    equal(few, back)
    equal(probelib.reweight(few, 3.0), probelib.reweight(back, 3.0))
