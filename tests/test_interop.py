"""Traces elsewhere: devinterp reads ours, we read devinterp's; ArviZ and pandas."""

import arviz as az
import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from torch import nn

import probelib
from probelib import SGLD, LocalPosterior, TraceMismatch, cross_entropy

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trace():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 3, generator=generator), torch.arange(40) % 4
    torch.manual_seed(0)
    posterior = LocalPosterior(
        nn.Linear(3, 4), cross_entropy, (x, y), n_beta=10.0, localization=5.0
    )
    return probelib.sample(
        posterior, sampler=SGLD(1e-2, 8), chains=3, draws=120, burn_in=10, thin=2, progress=False
    ).load()


def test_devinterp_finds_our_covariance_and_our_llc(trace, tmp_path):
    bif, llc = pytest.importorskip("devinterp.slt.bif"), pytest.importorskip("devinterp.slt.llc")
    probelib.interop.to_devinterp(trace, tmp_path / "store")
    samples = xr.open_datatree(tmp_path / "store", engine="zarr", consolidated=False)
    theirs = bif.compute_bif(
        samples, correlation_method="sequence", compute_covariance=True, device="cpu"
    ).influences.values
    kernel = probelib.loss_kernel(trace)
    ours = kernel.covariance()
    assert theirs.shape == (40, 40)
    assert np.abs(theirs - ours).max() < 1e-6 * np.abs(ours).max()
    correlation = bif.compute_bif(samples, correlation_method="sequence", device="cpu")
    np.testing.assert_allclose(correlation.influences, kernel.correlation(), atol=1e-5)
    np.testing.assert_array_equal(correlation.input_ids[:, 0], trace.sample_id)
    their_llc = llc.compute_llc(samples)
    our_llc = probelib.local_learning_coefficient(trace)
    np.testing.assert_allclose(float(their_llc.llc_mean), our_llc.value, rtol=1e-5)
    change = trace.loss.mean("sample") - trace.init_loss.mean()
    np.testing.assert_allclose(their_llc.llc_per_chain, 10 * change.mean("draw"), rtol=1e-4)


def test_there_and_back(trace, tmp_path):
    probelib.interop.to_devinterp(trace, tmp_path / "store", name="digits")
    back = probelib.interop.from_devinterp(tmp_path / "store", init_loss=trace.init_loss)
    np.testing.assert_array_equal(back.loss, trace.loss)
    assert back.loss.dims == trace.loss.dims
    np.testing.assert_array_equal(probelib.loss_gain(back), probelib.loss_gain(trace))
    assert (
        probelib.local_learning_coefficient(back).value
        == probelib.local_learning_coefficient(trace).value
    )
    with pytest.raises(ValueError, match="name is 'mist'; choose one of 'digits'"):
        probelib.interop.from_devinterp(tmp_path / "store", name="mist")
    with pytest.raises(ValueError, match=r"init_loss has shape \(3,\); give one loss per sample"):
        probelib.interop.from_devinterp(tmp_path / "store", init_loss=np.zeros(3))


@pytest.fixture(scope="module")
def tokens():
    torch.manual_seed(0)
    ids = torch.randint(0, 7, (8, 6))
    posterior = LocalPosterior(
        nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7)), probelib.sequence_cross_entropy,
        (ids[:, :-1], ids[:, 1:]), n_beta=10.0, localization=5.0,
    )  # fmt: skip
    return probelib.sample(
        posterior, sampler=SGLD(1e-2, 4), observe_loss=probelib.token_cross_entropy,
        chains=2, draws=30, progress=False,
    ).load()  # fmt: skip


def test_devinterp_finds_our_kernel_of_tokens(tokens, tmp_path):
    bif, llc = pytest.importorskip("devinterp.slt.bif"), pytest.importorskip("devinterp.slt.llc")
    probelib.interop.to_devinterp(tokens, tmp_path / "store")
    samples = xr.open_datatree(tmp_path / "store", engine="zarr", consolidated=False)
    theirs = bif.compute_bif(
        samples, correlation_method="token", compute_covariance=True, device="cpu"
    )
    ours = probelib.loss_kernel(tokens).covariance().reshape(8, 5, 8, 5)
    found = theirs.influences
    assert found.shape == (8, 8, 5, 5)
    np.testing.assert_allclose(found.values.transpose(0, 2, 1, 3), ours, atol=1e-6)
    np.testing.assert_array_equal(theirs.input_ids[:, 1:], tokens.token_id)
    our_llc = probelib.local_learning_coefficient(tokens).value
    np.testing.assert_allclose(float(llc.compute_llc(samples).llc_mean), our_llc, rtol=1e-5)
    back = probelib.interop.from_devinterp(
        tmp_path / "store", init_loss=tokens.init_loss, tokens=True
    )
    np.testing.assert_array_equal(probelib.loss_gain(back), probelib.loss_gain(tokens))
    np.testing.assert_array_equal(back.token_id, tokens.token_id)
    np.testing.assert_allclose(probelib.local_learning_coefficient(back).value, our_llc, rtol=1e-5)
    unknown = probelib.interop.from_devinterp(tmp_path / "store", tokens=True)
    np.testing.assert_array_equal(
        probelib.loss_kernel(unknown).covariance(), probelib.loss_kernel(tokens).covariance()
    )
    with pytest.raises(ValueError, match=r"no l_i\(w\*\) of position 0 of sample 0"):
        probelib.loss_gain(unknown)
    with pytest.raises(ValueError, match=r"one loss per token, shape \(8, 5\)"):
        probelib.interop.from_devinterp(tmp_path / "store", init_loss=np.zeros(8), tokens=True)


def test_devinterp_takes_no_samples_of_several_lengths(tokens, tmp_path):
    ragged = tokens.copy(deep=True)
    for name in ("loss", "init_loss"):
        ragged[name][..., 3, 4] = np.nan
    with pytest.raises(ValueError, match="no loss at position 4 of sample 3"):
        probelib.interop.to_devinterp(ragged, tmp_path / "store")
    probelib.interop.to_devinterp(ragged.isel(token=slice(4)), tmp_path / "store")


def test_a_store_of_devinterps_own_opens_as_a_trace(tmp_path):
    sampling = pytest.importorskip("devinterp.slt.sampling")
    datasets = pytest.importorskip("datasets")
    torch.manual_seed(0)
    tokens = torch.randint(0, 7, (24, 5))
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7))

    def loss(model, input_ids):
        logits = model(input_ids)[:, :-1]
        target = input_ids[:, 1:]
        return nn.functional.cross_entropy(logits.transpose(1, 2), target, reduction="none")

    data = datasets.Dataset.from_dict({"input_ids": tokens.tolist()}).with_format("torch")
    theirs = sampling.sample(
        model=model, dataset=data, observables={"all": data}, lr=1e-3, n_beta=5.0,
        localization=2.0, num_chains=2, num_draws=12, num_burnin_steps=3, num_steps_bw_draws=2,
        batch_size=8, batches_per_draw=3, loss_fn=loss, output_path=tmp_path / "theirs",
        device="cpu",
    )  # fmt: skip
    trace = probelib.interop.from_devinterp(tmp_path / "theirs")
    assert trace.loss.dims == ("chain", "draw", "sample")
    assert trace.loss.shape == (2, 12, 24)
    np.testing.assert_allclose(trace.loss, theirs.dataset.loss_all.mean("token_pos"), rtol=1e-6)
    config = trace.attrs["config"]
    assert (config["n_beta"], config["step_size"], config["localization"]) == (5.0, 1e-3, 2.0)
    assert (config["burn_in"], config["thin"], config["draws"]) == (3, 2, 12)
    from devinterp.slt.bif import compute_bif

    kernel = probelib.loss_kernel(trace)
    covariance = compute_bif(
        theirs, correlation_method="sequence", compute_covariance=True, device="cpu"
    ).influences
    np.testing.assert_allclose(kernel.covariance(), covariance, atol=1e-6)
    # It does not keep l_i(w*): what needs it says so.
    for estimate in (probelib.loss_gain, probelib.local_learning_coefficient):
        with pytest.raises(ValueError, match=r"trace has no l_i\(w\*\) of sample 0, .* init_loss"):
            estimate(trace)
    with torch.no_grad():
        init = loss(model, tokens).mean(1)
    gain = probelib.loss_gain(probelib.interop.from_devinterp(tmp_path / "theirs", init_loss=init))
    np.testing.assert_allclose(gain, trace.loss.mean(("chain", "draw")) - init.numpy(), atol=1e-5)
    back = probelib.interop.from_devinterp(tmp_path / "theirs", init_loss=init)
    assert back.sizes["step"] == 3 + 2 * 12


def test_what_cannot_be_written_or_read(trace, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="exists; choose another, or remove it"):
        probelib.interop.to_devinterp(trace, tmp_path / "there")
    lost = trace.copy(deep=True)
    lost.loss[1, 100:] = np.nan
    with pytest.raises(ValueError, match=r"non-finite loss in chain 1; .*drop_sel\(chain=\[1\]\)"):
        probelib.interop.to_devinterp(lost, tmp_path / "store")
    assert [p.name for p in tmp_path.iterdir()] == ["there"]
    with pytest.raises(ValueError, match="trace has 3 chains of 0 draws"):
        probelib.interop.to_devinterp(trace.isel(draw=slice(0)), tmp_path / "store")
    with pytest.raises(FileNotFoundError, match="does not exist; check it"):
        probelib.interop.from_devinterp(tmp_path / "nowhere")
    with pytest.raises(TraceMismatch, match="is not a store of devinterp 2"):
        probelib.interop.from_devinterp(tmp_path / "there")
    probelib.interop.to_devinterp(trace, tmp_path / "store")
    zarr.open_group(tmp_path / "store").attrs["completed"] = 0
    with pytest.raises(TraceMismatch, match="is not finished"):
        probelib.interop.from_devinterp(tmp_path / "store")


def test_the_recipes_for_arviz_and_pandas(trace):
    """As the book's page on traces elsewhere has them."""
    data = az.InferenceData(posterior=trace[["loss", "distance"]])
    summary = az.summary(data, var_names=["distance"], kind="diagnostics")
    assert summary.loc["distance", "r_hat"] > 0.9
    assert set(az.ess(data.posterior.loss).data_vars) == {"loss"}
    tree = xr.DataTree.from_dict({"posterior": trace[["loss", "distance"]]})
    assert tree["posterior"].sizes == {"chain": 3, "draw": 120, "sample": 40}
    frame = trace.loss.to_dataframe()
    assert len(frame) == 3 * 120 * 40
    assert frame.index.names == ["chain", "draw", "sample"]
    gains = probelib.loss_gain(trace).to_dataframe()
    assert list(gains.columns) == ["sample_id", "label", "mcse", "step_bias", "loss_gain"]
    by_label = gains.groupby("label").loss_gain.mean()
    np.testing.assert_allclose(
        by_label, probelib.loss_gain(trace).groupby("label").mean(), rtol=1e-12
    )
