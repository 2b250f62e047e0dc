"""Long runs kept small: what comes back, and what is refused."""

import numpy as np
import pytest
import torch
from torch import nn

import probelib
from probelib.experiments import prerun


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    return


def test_upper_and_whole_are_inverse():
    rng = np.random.default_rng(0)
    r = np.corrcoef(rng.normal(size=(7, 30)))
    np.testing.assert_allclose(prerun.whole(prerun.upper(r), 7), r, atol=5e-4)  # float16
    assert (np.diag(prerun.whole(prerun.upper(r), 7)) == 1).all()


@pytest.mark.parametrize("gamma", [1e3, 1e4])
def test_long_steps_keep_the_law_of_flat_directions(gamma):
    """The design's exact law of a discretised chain, at the settings of long_step."""
    settings = prerun.long_step(10.0, gamma)
    eps, precision = settings["step_size"], settings["localization"]
    variance = 1 / (precision * (1 - eps * precision / 4))
    assert variance * gamma == pytest.approx(1)
    assert 1 - eps * precision / 2 == pytest.approx(0.5)  # what is left after a step
    assert settings["n_beta"] / settings["localization"] == pytest.approx(10 / gamma)
    stiff = precision * 2  # nb H = gamma
    assert 2 * gamma / (stiff * (1 - eps * stiff / 4)) == pytest.approx(3 / 2)
    assert eps * precision * 4 == pytest.approx(4)  # nb H = 3 gamma: no longer stable


def written(tmp_path, images="abc", chain=0, n=6, name="04_pairs_net_gamma100"):
    rng = np.random.default_rng(chain)
    correlation = np.corrcoef(rng.normal(size=(n, 50)))
    arrays = {
        "correlation": prerun.upper(correlation),
        "variance": np.arange(n, dtype=np.float64),
        "loss": rng.random((3, n)).astype(np.float16),
        "init_loss": rng.random(n).astype(np.float32),
    }
    path = tmp_path / f"{name}_chain{chain}.safetensors"
    prerun.write(path, arrays, {"images": images, "chain": chain})
    return path, correlation


def test_kept_pairs_come_back_for_the_photographs_that_made_them(tmp_path):
    _, first = written(tmp_path, chain=0)
    written(tmp_path, chain=1)
    kept = prerun.kept_pairs(tmp_path, "net", 100.0, "abc")
    assert len(kept.kernels) == 2
    assert kept.loss.shape == (2, 3, 6)
    r = kept.kernels[0].correlation()
    np.testing.assert_allclose(r[1:, 1:], first[1:, 1:], atol=5e-4)
    np.testing.assert_array_equal(r[0], np.zeros(6))  # no variance
    np.testing.assert_allclose(kept.kernels[0].diagonal(), np.arange(6))
    assert prerun.kept_pairs(tmp_path, "net", 100.0, "other photographs") is None
    assert prerun.kept_pairs(tmp_path, "net", 101.0, "abc") is None
    assert prerun.kept_pairs(tmp_path, "another", 100.0, "abc") is None


def test_damaged_and_foreign_files_are_named(tmp_path):
    path, _ = written(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    with pytest.raises(ValueError, match=r"chain0\.safetensors' is no long run"):
        prerun.kept_pairs(tmp_path, "net", 100.0, "abc")
    path.write_bytes(b"not at all")
    with pytest.raises(ValueError, match="no long run of this project"):
        prerun.read(path)
    with pytest.raises(FileNotFoundError, match="missing"):
        prerun.read(tmp_path / "missing.safetensors")
    prerun.write(path, {"a": np.zeros(1)}, {"format": 99})
    with pytest.raises(ValueError, match="format 99"):
        prerun.read(path)


def test_a_kept_trace_is_a_trace(tmp_path):
    torch.manual_seed(0)
    data = torch.randn(12, 3), torch.randint(0, 2, (12,))
    posterior = probelib.LocalPosterior(
        nn.Linear(3, 2), probelib.cross_entropy, data, n_beta=1.0, localization=10.0
    )
    trace = probelib.sample(
        posterior, kernel=probelib.SGLD(0.01), chains=2, draws=40, progress=False
    )
    arrays = {
        "loss": trace.loss.values.astype(np.float16),
        "init_loss": trace.init_loss.values,
        "distance": trace.distance.values,
        "sampling_loss": trace.sampling_loss.values,
    }
    names = [f"{i}.jpg" for i in range(12)]
    about = {"config": trace.attrs["config"], "names": names}
    prerun.write(tmp_path / "04_sgld_net_gamma10.safetensors", arrays, about)
    available = ["other.jpg", *reversed(names)]
    kept, at, found = prerun.kept_trace(tmp_path, "net", 10.0, available)
    assert [available[i] for i in at] == names
    assert found["config"]["n_beta"] == 1.0
    np.testing.assert_allclose(
        probelib.loss_kernel(kept).correlation(),
        probelib.loss_kernel(trace).correlation(),
        atol=0.02,
    )
    assert probelib.diagnostics(kept).ess_min > 0
    assert prerun.kept_trace(tmp_path, "net", 10.0, names[:-1]) is None
    assert prerun.kept_trace(tmp_path, "net", 11.0, names) is None
