"""Long runs kept small: what comes back, and what is refused."""

import numpy as np
import pytest
import torch
from torch import nn

import probelib
from probebook import prerun


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


def posterior(gamma=100.0, n=6, seed=0, n_beta=1.0):
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(n, 3, generator=generator), torch.arange(n) % 2
    model = nn.Linear(3, 2)
    model.weight.data = torch.tensor([[0.3, -0.2, 0.1], [0.0, 0.4, -0.3]])
    model.bias.data.zero_()
    return probelib.LocalPosterior(
        model, probelib.cross_entropy, data, n_beta=n_beta, localization=gamma
    )


def written(tmp_path, part=0, parts=2, of=None, **changed):
    """A file such as a run of ``parts`` walks leaves, one walk in each part."""
    of = posterior() if of is None else of
    rng = np.random.default_rng(part)
    n = of.n_samples
    correlation = np.corrcoef(rng.normal(size=(n, 50)))
    arrays = {
        "correlation": prerun.upper(correlation),
        "variance": np.arange(n, dtype=np.float64),
        "loss": rng.random((1, 3, n)).astype(np.float16),
        "log_weight": rng.normal(size=(1, 3)),
        "init_loss": rng.random(n).astype(np.float32),
        "check": np.array([0, 2]),
        "check_kernel": np.eye(2, dtype=np.float32),
    }
    own = of.fingerprint()
    identity = {"weights": own["weights"], "observed_data": own["sampling_data"], "pairs": 2}
    path = tmp_path / f"04_pairs_net_gamma100_n{n}_part{part}.safetensors"
    about = {
        "fingerprint": identity | changed,
        "part": part,
        "parts": parts,
        "config": {"chains": parts, "n_beta": of.n_beta},
    }
    prerun.write(path, arrays, about)
    return path, correlation


def test_kept_pairs_come_back_for_the_posterior_that_made_them(tmp_path):
    _, first = written(tmp_path, part=0)
    written(tmp_path, part=1)
    kept = prerun.kept_pairs(tmp_path, "net", posterior())
    assert len(kept.kernels) == 2
    assert kept.loss.shape == (2, 3, 6)
    assert kept.log_weight.shape == (2, 3)
    assert [kept.walks(part) for part in (0, 1)] == [[0], [1]]
    r = kept.kernels[0].correlation()
    np.testing.assert_allclose(r[1:, 1:], first[1:, 1:], atol=5e-4)
    np.testing.assert_array_equal(r[0], np.zeros(6))  # no variance
    np.testing.assert_allclose(kept.kernels[0].diagonal(), np.arange(6))
    assert prerun.kept_pairs(tmp_path, "net", posterior(seed=1)) is None  # other samples
    assert prerun.kept_pairs(tmp_path, "net", posterior(n=5)) is None
    assert prerun.kept_pairs(tmp_path, "net", posterior(gamma=101.0)) is None
    assert prerun.kept_pairs(tmp_path, "net", posterior(n_beta=2.0)) is None  # other weights
    assert prerun.kept_pairs(tmp_path, "another", posterior()) is None


def test_eleven_parts_come_back_in_their_order(tmp_path):
    correlations = [written(tmp_path, part=c, parts=11)[1] for c in range(11)]
    kept = prerun.kept_pairs(tmp_path, "net", posterior())
    for kernel, correlation in zip(kept.kernels, correlations, strict=True):
        np.testing.assert_allclose(kernel.correlation()[1:, 1:], correlation[1:, 1:], atol=5e-4)


@pytest.mark.parametrize("second", [{"part": 1, "pairs": 3}, {"part": 2}])
def test_parts_that_do_not_belong_together_are_refused(tmp_path, second):
    written(tmp_path)
    written(tmp_path, **second)
    with pytest.raises(ValueError, match="do not belong together"):
        prerun.kept_pairs(tmp_path, "net", posterior())


@pytest.mark.filterwarnings("ignore:pairs has")
def test_the_parts_of_real_pairs_make_up_their_kernel(tmp_path):
    of = posterior(gamma=1e4)
    found = probelib.gradient_pairs(of, chains=4, pairs=2, progress=False)
    for part in (0, 1):
        arrays = prerun.part_of_pairs(found, part, 2, np.array([1, 3]))
        about = {
            "fingerprint": found.attrs["fingerprint"],
            "part": part,
            "parts": 2,
            "config": found.attrs["config"],
        }
        path = tmp_path / f"04_pairs_net_gamma10000_n6_part{part}.safetensors"
        prerun.write(path, arrays, about)
    kept = prerun.kept_pairs(tmp_path, "net", of)
    np.testing.assert_allclose(kept.loss, found.loss.values[[0, 2, 1, 3]], atol=1e-3)
    for part in (0, 1):
        own = probelib.pair_kernel(found, slice(part, None, 2))
        np.testing.assert_allclose(kept.kernels[part].correlation(), own.correlation(), atol=1e-3)
        np.testing.assert_allclose(
            kept.check_kernels[part],
            probelib.pair_kernel(found, kept.walks(part), limit=True).covariance()[1::2, 1::2][
                :2, :2
            ],
            rtol=1e-5,
        )


def test_gradients_at_rest_are_those_of_autograd(tmp_path):
    of = posterior(n=7)
    found = prerun.gradients_at_rest(of, batch_size=3)
    rows = []
    for at in range(7):
        w = of.center.clone().requires_grad_()
        loss = of.losses(w, *of.data.batch(np.array([at])))[0]
        rows.append(torch.autograd.grad(loss, w)[0])
    rows = torch.stack(rows)
    rows = (rows / rows.norm(dim=1, keepdim=True)).double()
    np.testing.assert_allclose(found, (rows @ rows.T).numpy(), atol=0.02)  # bfloat16 rows
    arrays = {"cosine": prerun.upper(found)}
    path = tmp_path / "04_gradients_net_n7.safetensors"
    prerun.write(path, arrays, {"fingerprint": of.fingerprint()})
    np.testing.assert_allclose(prerun.kept_gradients(tmp_path, "net", of), found, atol=1e-3)
    assert prerun.kept_gradients(tmp_path, "net", posterior(n=7, seed=1)) is None
    assert prerun.kept_gradients(tmp_path, "net", posterior(n=6)) is None


def test_damaged_and_foreign_files_are_named(tmp_path):
    path, _ = written(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    with pytest.raises(ValueError, match=r"part0\.safetensors' is no long run"):
        prerun.kept_pairs(tmp_path, "net", posterior())
    path.write_bytes(b"not at all")
    with pytest.raises(ValueError, match="no long run of this project"):
        prerun.read(path)
    with pytest.raises(FileNotFoundError, match="missing"):
        prerun.read(tmp_path / "missing.safetensors")
    prerun.write(path, {"a": np.zeros(1)}, {"format": 99})
    with pytest.raises(ValueError, match="format 99"):
        prerun.read(path)


def test_a_kept_trace_is_a_trace(tmp_path):
    made = posterior(n=12, gamma=10.0)
    trace = probelib.sample(made, sampler=probelib.SGLD(0.01), chains=2, draws=40, progress=False)
    arrays = {
        "loss": trace.loss.values.astype(np.float16),
        "init_loss": trace.init_loss.values,
        "distance": trace.distance.values,
        "sampling_loss": trace.sampling_loss.values,
    }
    names = [f"{i}.jpg" for i in range(12)]
    about = {
        "config": trace.attrs["config"],
        "fingerprint": trace.attrs["fingerprint"],
        "meant": {"n_beta": 1.0, "localization": 10.0},
        "names": names,
    }
    prerun.write(tmp_path / "04_sgld_net_gamma10.safetensors", arrays, about)
    # The same samples in another order, and one more.
    order = np.append(np.arange(12)[::-1], 0)
    x, y = made.data.batch(order)
    wider = probelib.LocalPosterior(
        made.model, probelib.cross_entropy, (x, y), n_beta=1.0, localization=10.0
    )
    available = [*(names[i] for i in order[:-1]), "other.jpg"]
    kept, at, found = prerun.kept_trace(tmp_path, "net", wider, available)
    assert [available[i] for i in at] == names
    assert found["config"]["n_beta"] == 1.0
    np.testing.assert_allclose(
        probelib.loss_kernel(kept).correlation(),
        probelib.loss_kernel(trace).correlation(),
        atol=0.02,
    )
    assert probelib.diagnostics(kept).ess_min > 0

    def look(of, names=names):
        return prerun.kept_trace(tmp_path, "net", of, names)

    assert look(made) is not None
    assert look(made, names[:-1]) is None
    assert look(made, [*names[:-1], names[0]]) is None  # a name that stands twice
    assert look(posterior(n=12, gamma=10.0, n_beta=2.0)) is None
    assert look(posterior(n=12, gamma=10.0, seed=4)) is None
    assert look(posterior(n=12, gamma=11.0)) is None


def test_arrays_of_any_order_come_back(tmp_path):
    given = {
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "turned": np.ones((2, 3)).T,
    }
    given["part"] = np.arange(10)[::3]
    prerun.write(tmp_path / "run", given, {})
    found, _ = prerun.read(tmp_path / "run")
    for name, array in given.items():
        np.testing.assert_array_equal(found[name], array)
