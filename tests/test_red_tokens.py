"""Losses per token and observed sets, where a number could be wrong or lost in silence."""

import warnings

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import probelib
from probelib.store import layout

pytestmark = pytest.mark.usefixtures("one_thread")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)

    def forward(self, ids):
        return self.head(self.embed(ids).cumsum(1))


class Reads(Model):
    def forward(self, input_ids, attention_mask=None):
        return super().forward(input_ids)


def of_samples(output, target):
    """The sum over tokens, which no mean over them is."""
    return probelib.token_cross_entropy(output, target).nansum(1)


def text(empty=()):
    ids = torch.randint(0, 7, (10, 6), generator=torch.Generator().manual_seed(0))
    target = ids.roll(-1, 1)
    for row in range(10):
        target[row, 2 + row % 5 :] = -100
    target[list(empty)] = -100
    return ids, target


def posterior(data, n_beta=10.0):
    torch.manual_seed(0)
    return probelib.LocalPosterior(Model(), of_samples, data, n_beta=n_beta, localization=20.0)


def run(of, observe=None, **options):
    settings = {"chains": 2, "draws": 12, "progress": False}
    settings |= {"observe_loss": probelib.token_cross_entropy}
    return probelib.sample(of, observe, sampler=probelib.SGLD(1e-2, 4), **(settings | options))


@pytest.fixture(scope="module")
def trace():
    return run(posterior(text()))


@pytest.mark.parametrize("combine", ["mean", "sum", "max"])
def test_a_trace_averaged_over_its_tokens_is_not_taken_for_one_of_samples(trace, combine):
    averaged = getattr(trace, combine)("token")
    for estimator in (probelib.local_learning_coefficient, probelib.empirical_variance):
        assert estimator(averaged).value == estimator(trace).value
    wanted = probelib.loss_gain(trace, over="sample")
    np.testing.assert_array_equal(probelib.loss_gain(averaged, over="sample"), wanted)
    for estimator in (probelib.loss_gain, probelib.loss_kernel, probelib.diagnostics):
        for other in (averaged, trace.rename(token="position")):
            with pytest.raises(ValueError, match=r"averaged or summed.*over='sample'"):
                estimator(other)


def test_one_token_of_one_sample(trace):
    gain = probelib.loss_gain(trace)
    for sample, token in ((0, 1), (4, 5)):
        one = probelib.loss_gain(trace.isel(sample=sample, token=token))
        assert one.shape == (1, 1)
        np.testing.assert_allclose(one[0, 0], gain[sample, token])


def test_a_token_without_its_loss_at_the_center_is_not_left_out_in_silence(trace):
    elsewhere = trace.copy(deep=True)
    elsewhere["init_loss"][4, 1] = np.nan
    del elsewhere.attrs["fingerprint"]
    with pytest.raises(ValueError, match=r"no l_i\(w\*\) of position 1 of sample 4"):
        probelib.loss_gain(elsewhere)
    diverged = trace.copy(deep=True).assign_attrs(diverged={"0": {"draws": 0, "step": 1}})
    diverged["loss"][0] = np.nan
    del diverged.attrs["fingerprint"]
    assert np.isfinite(probelib.loss_gain(diverged.isel(chain=[1])).values[4]).all()


@pytest.mark.parametrize("chunk", [6, 18, 8192])
def test_samples_without_tokens_lie_in_a_store_that_can_be_read(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(layout, "_SAMPLE_CHUNK", chunk)
    of = posterior(text(empty=[0, 3, 4, 5, 6, 9]))
    place, wanted = tmp_path / "t.zarr", run(of)
    run(of, store=place, draws=5, observe_batch_size=1)
    found = run(of, store=place, observe_batch_size=1)
    for opened in (found, probelib.open_trace(place)):
        np.testing.assert_allclose(opened.loss, wanted.loss, rtol=1e-6)
        np.testing.assert_allclose(opened.sample_loss, wanted.sample_loss, rtol=1e-6)


def test_chunks_are_of_so_many_losses(tmp_path):
    run(posterior(text()), store=tmp_path / "t.zarr")
    assert len(list((tmp_path / "t.zarr" / "loss").rglob("c/*/*/*/*"))) == 2  # one a chain


def test_a_tree_of_several_runs_is_refused():
    one = posterior(text())
    for other, options, message in (
        (posterior(text(), n_beta=20.0), {}, "several posteriors"),
        (one, {"seed": 1}, "several runs"),
        (one, {"draws": 10}, "other chains, draws"),
        (one, {"first_chain": 2}, "other chains, draws"),
        (one, {"observe_loss": None}, "or variables"),
    ):
        tree = xr.DataTree.from_dict({"a": run(one), "b": run(other, **options)})
        with pytest.raises(ValueError, match=message):
            probelib.loss_kernel(tree)
    tree = xr.DataTree.from_dict({"a": run(one), "b": run(one)})
    kernel = probelib.loss_kernel(tree)
    assert kernel.correlation(0)[kernel.find(0, 0, "b")] == pytest.approx(1)


def test_a_table_of_checkpoints_has_the_gains_of_samples():
    data = text()
    series = probelib.over_checkpoints(
        [Model(), Model()], of_samples, data, n_beta=10.0, localization=20.0,
        sampler=probelib.SGLD(1e-2, 4), observe_loss=probelib.token_cross_entropy,
        chains=2, draws=12, progress=False,
    )  # fmt: skip
    table = probelib.checkpoint_table(series)
    for at in range(2):
        gain = probelib.loss_gain(series.isel(checkpoint=at), over="sample")
        np.testing.assert_allclose(table.gain_q50[at], np.median(gain))


def test_sets_are_refused_before_a_checkpoint_is_sampled(tmp_path):
    with pytest.raises(ValueError, match="observe has several sets"):
        probelib.over_checkpoints(
            [Model()], of_samples, text(), n_beta=10.0, localization=20.0,
            sampler=probelib.SGLD(1e-2, 4), observe={"a": text()}, store=tmp_path / "s",
            progress=False,
        )  # fmt: skip
    assert not (tmp_path / "s").exists()


def test_a_set_out_of_a_tree_is_saved_and_the_tree_is_not(tmp_path):
    ids, target = text()
    tree = run(posterior(text()), {"a": (ids[:4], target[:4]), "b": (ids[4:], target[4:])})
    probelib.save(tree["a"], tmp_path / "a.nc")
    found = probelib.open(tmp_path / "a.nc")
    xr.testing.assert_identical(found, tree["a"].to_dataset())
    with pytest.raises(TypeError, match=r"tree of several traces.*save\(tree\['a'\]"):
        probelib.save(tree, tmp_path / "t.nc")


def test_sets_of_one_run_are_read_from_one_chain(trace):
    ids, target = text()
    tree = run(posterior(text()), {"a": (ids[:4], target[:4]), "b": (ids[4:], target[4:])})
    whole = probelib.loss_kernel(tree.isel(chain=[1])).correlation()
    np.testing.assert_allclose(
        whole, probelib.loss_kernel(trace.isel(chain=[1])).correlation(), atol=1e-3
    )


@pytest.mark.parametrize("loss", [probelib.sequence_cross_entropy, of_samples])
def test_targets_that_are_the_inputs_are_warned_of(loss):
    ids, _ = text()
    padded = ids.masked_fill(ids == 3, -100)

    def warned(inputs, target):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.manual_seed(0)
            of = probelib.LocalPosterior(
                Reads(), loss, (inputs, target), n_beta=1.0, localization=1.0
            )
            run(of, draws=2)
        return sum("targets that are its inputs" in str(w.message) for w in seen)

    for target in (ids, padded):
        assert warned(ids, target) > 0
        assert warned({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, target) > 0
    assert warned(ids, ids.roll(-1, 1)) == 0
    other = ids.clone()
    other[:, 4] = (other[:, 4] + 1) % 7
    assert warned(ids, other) == 0


@pytest.mark.parametrize("dim", ["chain", "draw", "sample", "token"])
def test_a_trace_put_together_again_is_what_it_was(trace, dim):
    half = trace.sizes[dim] // 2
    parts = [trace.isel({dim: slice(half)}), trace.isel({dim: slice(half, None)})]
    for options in ({}, {"data_vars": "all", "coords": "all"}):
        again = xr.concat(parts, dim, **options)
        for over in ("token", "sample"):
            found, wanted = (probelib.loss_gain(t, over=over) for t in (again, trace))
            np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(reduction="none"), None])
def test_positions_that_torch_leaves_out_are_no_tokens_of_no_loss(loss):
    ids, target = text()
    model = nn.Sequential(nn.Embedding(7, 7), Classes())

    def own(output, target):
        return nn.functional.cross_entropy(output, target, reduction="none")

    of = probelib.LocalPosterior(
        model, lambda o, t: own(o, t).sum(1), (ids, target), n_beta=1.0, localization=1.0
    )
    with pytest.raises(ValueError, match=r"0 where the target is -100.*position 2 of sample 0"):
        run(of, observe_loss=loss or own)
    run(of, (ids[4:5], target[4:5]), observe_loss=lambda o, t: own(o[..., :5], t[:, :5]), draws=2)


class Classes(nn.Module):
    def forward(self, x):
        return x.movedim(-1, 1)


def test_a_sample_without_tokens_is_named_before_a_chain_meets_it():
    ids, target = (t.repeat(20, 1) for t in text())
    target[133] = -100
    with pytest.raises(ValueError, match="sample 133 without a token"):
        probelib.LocalPosterior(
            Model(), probelib.sequence_cross_entropy, (ids, target), n_beta=1.0, localization=1.0
        )
