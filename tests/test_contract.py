"""What a trace holds by name, on traces of ours and on traces made elsewhere."""

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import probelib
from probelib import contract
from probelib.contract import RunSettings
from probelib.descriptions import DESCRIPTIONS, described

pytestmark = pytest.mark.usefixtures("one_thread")


def bare(**config):
    losses = np.random.default_rng(0).random((2, 9, 3)).astype(np.float32)
    return xr.Dataset(
        {"loss": (("chain", "draw", "sample"), losses), "init_loss": ("sample", losses[0, 0])},
        attrs={"config": config} if config else {},
    )


def test_a_trace_of_ours_is_what_the_contract_says():
    x, y = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
    torch.manual_seed(0)
    posterior = probelib.LocalPosterior(
        nn.Linear(3, 3), probelib.cross_entropy, (x, y), n_beta=10.0, localization=5.0
    )
    trace = probelib.sample(
        posterior, sampler=probelib.SGLD(1e-3, 4), chains=2, draws=3, burn_in=1, thin=2,
        seed=7, progress=False,
    )  # fmt: skip
    assert {str(k): v.dims for k, v in trace.data_vars.items()} == contract.VARIABLES
    assert {str(k): v.dims for k, v in trace.coords.items()} == {
        name: dims for name, dims in contract.COORDINATES.items() if name != "init_loss_mcse"
    } | {"run": ()}
    assert set(contract.ATTRIBUTES) - {"calibration"} <= set(trace.attrs)
    assert contract.settings(trace) == RunSettings(
        n_beta=10.0, localization=5.0, beta=10 / 12, n_samples=12, n_parameters=12,
        sampler="SGLD", order=1, step_size=1e-3, batch_size=4, chains=2, draws=3, burn_in=1, thin=2,
    )  # fmt: skip
    assert contract.diverged(trace) == {}


def test_everything_says_what_it_is_and_in_which_unit(joinable):
    trace = joinable[""]
    assert set(contract.VARIABLES) | set(contract.WEIGHT_VARIABLES) <= set(DESCRIPTIONS)
    gain, diagonal = probelib.loss_gain(trace), probelib.loss_kernel(trace).diagonal()
    difference = probelib.compare(trace, trace).gain
    every = [*trace.data_vars.values(), gain, gain.mcse, gain.step_bias, gain.sample_id, gain.label]
    for array in [*every, diagonal, diagonal.mcse, difference, difference.step_bias]:
        assert array.attrs["long_name"], array.name
        assert array.attrs["units"] in ("nats", "nats^2", "1"), array.name
    assert (gain.units, diagonal.units, diagonal.mcse.units) == ("nats", "nats^2", "nats^2")
    own = trace.copy()
    own.loss.attrs["units"] = "bits"
    assert described(own).loss.units == "bits"


@pytest.fixture(scope="module")
def joinable():
    """Traces by what is other than in the first."""
    x, y = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3

    def run(part=slice(None), seed=0, n_beta=10.0, **plan):
        torch.manual_seed(0)
        posterior = probelib.LocalPosterior(
            nn.Linear(3, 3), probelib.cross_entropy, (x, y), n_beta=n_beta, localization=5.0
        )
        options = {"chains": 2, "draws": 10, "seed": seed, "progress": False} | plan
        return probelib.sample(
            posterior, (x[part], y[part]), sampler=probelib.SGLD(1e-3, 4), **options
        )

    return {
        "": run(),
        "more chains": run(first_chain=2),
        "seed": run(seed=1),
        "n_beta": run(n_beta=20.0),
        "first": run(slice(6)),
        "last": run(slice(6, None)),
        "last, seed": run(slice(6, None), seed=1),
    }


def join(one, other, dim):
    renumbered = other.assign_coords(chain=other.chain + 10) if dim == "chain" else other
    each = "minimal" if dim == "chain" else "all"
    return xr.concat(
        [one, renumbered], dim, data_vars=each, coords="different", compat="equals", join="outer"
    )


@pytest.mark.parametrize("other", ["more chains", "seed"])
def test_chains_of_one_posterior_may_be_joined(joinable, other):
    both = join(joinable[""], joinable[other], "chain")
    gains = [probelib.loss_gain(of) for of in (both, joinable[""], joinable[other])]
    np.testing.assert_allclose(gains[0], (gains[1] + gains[2]) / 2)


def test_chains_of_several_posteriors_may_not(joinable):
    both = join(joinable[""], joinable["n_beta"], "chain")
    for estimator in (probelib.loss_gain, probelib.loss_kernel, probelib.diagnostics):
        with pytest.raises(ValueError, match="trace joins traces of several posteriors"):
            estimator(both)


def test_samples_may_be_joined_if_they_were_seen_on_the_same_paths(joinable):
    both = join(joinable["first"], joinable["last"], "sample")
    whole = probelib.loss_kernel(joinable[""]).covariance()
    np.testing.assert_allclose(probelib.loss_kernel(both).covariance(), whole, atol=1e-6)
    with pytest.raises(ValueError, match="trace joins samples of several runs"):
        probelib.loss_kernel(join(joinable["first"], joinable["last, seed"], "sample"))


def test_the_number_of_a_run_lasts(joinable, tmp_path):
    trace = joinable[""]
    trace.to_netcdf(tmp_path / "a.nc")
    trace.to_zarr(tmp_path / "a.zarr")
    for copied in (xr.open_dataset(tmp_path / "a.nc"), probelib.open_trace(tmp_path / "a.zarr")):
        assert int(copied.run) == int(trace.run)


@pytest.mark.parametrize("key", ["kernel", "sampler"])
def test_the_sampler_is_found_under_either_name(key):
    assert contract.settings(bare(**{key: "SGLD"})).sampler == "SGLD"


def test_what_a_trace_does_not_say_is_none():
    assert contract.settings(bare()) == RunSettings()


@pytest.mark.parametrize(
    "estimate", [probelib.local_learning_coefficient, probelib.singular_fluctuation]
)
def test_a_missing_setting_is_named_and_the_remedy_works(estimate):
    trace = bare()
    with pytest.raises(ValueError, match="trace has no n_beta in its attributes; ") as error:
        estimate(trace)
    remedy = str(error.value).split("add it: ")[1].replace("...", "10.0")
    exec(remedy, {"trace": trace})
    assert np.isfinite(estimate(trace).value)
    probelib.loss_gain(trace)  # which never needed it


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"n_beta": "ten"}, "trace has the n_beta 'ten' in its attributes; it must be a number"),
        ({"n_beta": True}, "trace has the n_beta True in its attributes; it must be a number"),
        ({"sampler": 3}, "trace has the sampler 3 in its attributes; it must be text"),
    ],
)
def test_a_setting_of_another_kind_is_named(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        contract.settings(bare(**config))


def test_a_config_that_is_none():
    with pytest.raises(ValueError, match=r"trace has the config \[1\] in its attributes; give a"):
        contract.settings(bare().assign_attrs(config=[1]))
