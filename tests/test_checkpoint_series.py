"""Series over checkpoints: every one is the trace of its own call, and none is read with others."""

import copy

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import probelib

pytestmark = pytest.mark.usefixtures("one_thread")
X = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(30) % 3
SETTINGS = {"n_beta": 10.0, "localization": 5.0, "sampler": probelib.SGLD(1e-3, 4)}
RUN = {"chains": 2, "draws": 10, "seed": 3, "progress": False}


def trained(steps):
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()
    return model


MODELS = {steps: trained(steps) for steps in (0, 5, 50)}


def series(models=MODELS, **settings):
    arguments = SETTINGS | RUN | settings
    return probelib.over_checkpoints(models, probelib.cross_entropy, (X, Y), **arguments)


def alone(model, **settings):
    posterior = probelib.LocalPosterior(
        model, probelib.cross_entropy, (X, Y), n_beta=10.0, localization=5.0
    )
    return probelib.sample(posterior, sampler=SETTINGS["sampler"], **(RUN | settings))


@pytest.fixture(scope="module")
def found():
    return series()


def test_each_checkpoint_is_the_trace_of_its_own_call(found):
    assert found.checkpoint.values.tolist() == [0, 5, 50]
    for name, model in MODELS.items():
        one, own = found.sel(checkpoint=name), alone(model)
        for variable in own.data_vars:
            np.testing.assert_array_equal(one[variable], own[variable])
        estimates = [probelib.local_learning_coefficient(trace) for trace in (one, own)]
        assert estimates[0] == estimates[1]
        gains = [probelib.loss_gain(trace) for trace in (one, own)]
        xr.testing.assert_identical(*gains)
        verdicts = [str(probelib.diagnostics(trace)) for trace in (one, own)]
        assert verdicts[0] == verdicts[1]  # by its own attributes, such as the guessing loss
        assert (
            probelib.contract.canonical(one, "loss").attrs["fingerprint"]
            == (own.attrs["fingerprint"])
        )


def test_models_come_as_lists_state_dicts_and_iterables(found):
    states = {name: copy.deepcopy(model.state_dict()) for name, model in MODELS.items()}
    into = trained(7)
    before = copy.deepcopy(into.state_dict())
    for models, given in (
        (list(MODELS.values()), {}),
        (states, {"model": into}),
        (((name, state) for name, state in states.items()), {"model": into}),
    ):
        other = series(models, **given)
        np.testing.assert_array_equal(other.loss, found.loss)
    assert all(torch.equal(before[k], v) for k, v in into.state_dict().items())
    assert series(list(MODELS.values())[:2]).checkpoint.values.tolist() == [0, 1]


@pytest.mark.parametrize("where", ["store", "cache"])
def test_what_is_there_is_not_sampled_again(found, tmp_path, where, monkeypatch):
    series({0: MODELS[0], 5: MODELS[5]}, **{where: tmp_path})
    begun = []
    monkeypatch.setattr(
        probelib.run, "_begin", lambda *a, _old=probelib.run._begin: begun.append(1) or _old(*a)
    )
    again = series(**{where: tmp_path})
    assert len(begun) == 1
    np.testing.assert_array_equal(again.loss, found.loss)
    if where == "store":
        names = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("."))
        assert names == ["0.zarr", "5.zarr", "50.zarr"]
        own = probelib.open_trace(tmp_path / "5.zarr")
        np.testing.assert_array_equal(own.loss, found.loss.sel(checkpoint=5))


@pytest.mark.parametrize(
    "estimator",
    [
        probelib.loss_gain, probelib.loss_kernel, probelib.local_learning_coefficient,
        probelib.singular_fluctuation, probelib.diagnostics, probelib.label_issues,
        lambda trace: probelib.compare(trace, trace),
    ],
)  # fmt: skip
def test_no_estimator_pools_over_checkpoints(found, estimator):
    with pytest.raises(ValueError, match="holds 3 checkpoints; read one at a time"):
        estimator(found)
    with pytest.warns(UserWarning, match="checkpoints 'a' and 'b' have the same weights"):
        same = series({"a": MODELS[5], "b": MODELS[5]})  # nothing differs but the name
    with pytest.raises(ValueError, match="holds 2 checkpoints"):
        estimator(same)
    for pooled in (
        found.mean("checkpoint", keep_attrs=True),
        found.rename(chain="c").stack(chain=("checkpoint", "c")),
        found.stack(z=("checkpoint", "chain")),
    ):
        with pytest.raises(ValueError, match="checkpoint"):
            estimator(pooled)


def test_one_checkpoint_may_keep_its_dimension(found):
    kept = probelib.loss_gain(found.sel(checkpoint=[5]))
    np.testing.assert_array_equal(kept, probelib.loss_gain(found.sel(checkpoint=5)))


def test_two_checkpoints_have_paired_differences(found):
    assert probelib.compare(found.sel(checkpoint=5), found.sel(checkpoint=50)).paired


def test_the_table_has_what_the_estimators_say(found):
    table = probelib.checkpoint_table(found, quantiles=(0.25, 0.5))
    assert table.index.tolist() == [0, 5, 50]
    for name, model in MODELS.items():
        own = alone(model)
        llc, gain = probelib.local_learning_coefficient(own), probelib.loss_gain(own).values
        verdict = probelib.diagnostics(own)
        row = table.loc[name]
        assert (row.llc, row.llc_mcse, row.llc_step_bias) == (llc.value, llc.mcse, llc.step_bias)
        assert row.mean_gain == pytest.approx(gain.mean())
        assert row.gain_q25 == np.quantile(gain, 0.25)
        assert row.loss_at_center == verdict.loss_at_center
        assert row.not_fitted == verdict.not_fitted
        expected = "wrong" if verdict.wrong else "good" if verdict.good else "uncertain"
        assert row.verdict == expected
    with pytest.raises(ValueError, match="series has no dimension checkpoint"):
        probelib.checkpoint_table(alone(MODELS[0]))
    with pytest.raises(ValueError, match="quantiles is"):
        probelib.checkpoint_table(found, (0.5, 90))


def test_losses_per_token_keep_their_positions():
    def each_output(output, target):
        return (output - target[:, None]) ** 2

    found = series({0: MODELS[0], 5: MODELS[5]}, observe_loss=each_output)
    one, own = found.sel(checkpoint=5), alone(MODELS[5], observe_loss=each_output)
    xr.testing.assert_identical(probelib.loss_gain(one), probelib.loss_gain(own))
    with pytest.raises(ValueError, match="holds 2 checkpoints"):
        probelib.loss_gain(found)


def test_bad_series_are_refused():
    with pytest.raises(ValueError, match="observe has several sets"):
        series(observe={"a": (X, Y), "b": (X[:5], Y[:5])})
    with pytest.raises(ValueError, match="models is empty"):
        series([])
    with pytest.raises(TypeError, match="give a list or a dict of models"):
        series(MODELS[0])
    with pytest.raises(TypeError, match="models is one state dict"):
        series(MODELS[0].state_dict())
    with pytest.raises(ValueError, match="give model="):
        series([MODELS[0].state_dict()])
    with pytest.raises(ValueError, match="checkpoint 0 does not fit model"):
        series([MODELS[0].state_dict()], model=nn.Linear(4, 3))
    with pytest.raises(TypeError, match="checkpoint 0 is 3; give an nn"):
        series([3])
    with pytest.raises(ValueError, match="models has the name 1 twice"):
        series([(1, MODELS[0]), (1, MODELS[5])])
    with pytest.raises(ValueError, match=r"models has the name '\.\./a'"):
        series({"../a": MODELS[0]})
    with pytest.raises(ValueError, match="thin is 'auto', which chooses for each checkpoint"):
        series(thin="auto", burn_in=300)
    with pytest.raises(TypeError, match=r"no argument 'drawz', .* is it 'draws'"):
        series(drawz=3)
