"""Long runs of the small GPT: documents as samples, and files that prove what they are."""

import warnings
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

import probelib
from probebook import gpt, gpt_runs, prerun
from probebook.gpt import GPTRecipe, load_network, serialise, train
from probebook.gpt_runs import (
    KeptDocuments,
    canary_trace,
    document_posterior,
    kept_canaries,
    kept_documents,
    kept_network,
    some_of_each,
    walks_of,
)
from probebook.language_data import IGNORED, LanguageData, TextPlan, Windows

pytestmark = pytest.mark.usefixtures("one_thread")

V, T = 11, 6
TINY = GPTRecipe(width=8, layers=1, heads=2, epochs=1, batch_size=8)
EQ1 = {"n_beta": 10.0, "localization": 1e4}


def cut(n, document, repetitions, seed):
    ids = torch.randint(0, V, (n, T + 1), generator=torch.Generator().manual_seed(seed))
    targets = ids[:, 1:].clone()
    targets[repetitions >= 0, 3:] = IGNORED
    genre = np.where(document >= 0, document % 3, -1)
    texts = tuple(f"{seed}-{i}" for i in range(n))
    return Windows(ids[:, :-1].clone(), targets, document, genre, repetitions, texts)


@pytest.fixture(scope="module")
def data():
    """Five documents of four windows each, then two planted canaries; one is held out."""
    document = np.r_[np.repeat([3, 4, 7, 8, 9], 4), -1, -1]
    train_windows = cut(22, document, np.where(document < 0, 1, -1), 0)
    canaries = cut(3, np.full(3, -1), np.array([1, 1, 0]), 1)
    plan = TextPlan(vocabulary=V, length=T, windows=4)
    return LanguageData(plan, range(V), train_windows, train_windows, canaries, "made up")


@pytest.fixture(scope="module")
def network(data):
    return train(TINY, data.train, V, seed=0, progress=False)


def test_some_of_each_document_are_spread_over_all(data):
    some = some_of_each(data.train, 3, 2)
    assert some.document.tolist() == [3, 3, 7, 7, 9, 9]
    rows = [0, 3, 8, 11, 16, 19]  # the first and the last window of the first, third and fifth
    assert torch.equal(some.inputs, data.train.inputs[rows])
    assert some_of_each(data.train, 99, 4).texts == data.train.texts[:20]


def test_the_loss_of_a_document_is_the_mean_over_its_windows(data, network):
    posterior = document_posterior(network, some_of_each(data.train, 5, 4), **EQ1)
    assert posterior.n_samples == 5
    inputs, targets = data.train[:20].data
    with torch.no_grad():
        each = probelib.sequence_cross_entropy(network.model(inputs), targets)
    found = posterior.losses(posterior.center, *posterior.data.batch(np.arange(5)))
    torch.testing.assert_close(found, each.reshape(5, 4).mean(1))


def test_kept_canaries_are_found_by_what_they_are(data, network, tmp_path, monkeypatch):
    monkeypatch.setenv("PROBELIB_CACHE", str(tmp_path / "cache"))
    trace = canary_trace(network, data, draws=4, loss_samples=9, seed=2, **EQ1)
    probelib.save(trace, tmp_path / "08_canaries_seed2.nc")
    found = kept_canaries(tmp_path, TINY, data, **EQ1)
    assert list(found) == [2]
    assert np.array_equal(found[2].loss, trace.loss)
    fewer = canary_trace(network, data, draws=2, loss_samples=9, seed=2, **EQ1)
    assert np.array_equal(found[2].loss[:, :2], fewer.loss)  # a part can be computed again
    assert kept_canaries(tmp_path, TINY, data, 9.0, 1e4) == {}
    assert kept_canaries(tmp_path / "cache", TINY, data, **EQ1) == {}
    # Another network, other canaries, other text: none of them may pass for these.
    assert kept_canaries(tmp_path, replace(TINY, epochs=2), data, **EQ1) == {}
    assert kept_canaries(tmp_path, TINY, replace(data, canaries=data.canaries[::-1]), **EQ1) == {}
    assert kept_canaries(tmp_path, TINY, replace(data, train=data.train[:21]), **EQ1) == {}


def test_a_kept_network_is_the_one_that_is_asked_for(data, network, tmp_path):
    place = tmp_path / "08_gpt_seed0.safetensors"
    with pytest.raises(FileNotFoundError):
        kept_network(tmp_path, TINY, data)
    place.write_bytes(serialise(network, data.train, V))
    again = kept_network(tmp_path, TINY, data)
    for one, other in zip(again.model.parameters(), network.model.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="other data, another recipe"):
        kept_network(tmp_path, replace(TINY, epochs=2), data)


def test_a_kept_network_is_good_under_another_torch(data, network, tmp_path, monkeypatch):
    """A cached one is not: training anew would end in other weights."""
    with monkeypatch.context() as before:
        before.setattr(gpt, "_TORCH", "1.0")
        content = serialise(network, data.train, V)
    (tmp_path / "08_gpt_seed0.safetensors").write_bytes(content)
    assert kept_network(tmp_path, TINY, data).seed == 0
    with pytest.raises(ValueError, match="other data, another recipe"):
        load_network(content, TINY, data.train, V, 0)


def test_kept_documents_are_those_of_the_posterior(data, network, tmp_path):
    posterior = document_posterior(network, some_of_each(data.train, 5, 2), **EQ1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # so few draws
        pairs = probelib.gradient_pairs(posterior, chains=2, pairs=1, seed=0, progress=False)
        walks, both = walks_of(pairs), probelib.pair_kernel(pairs)
    # Weights that hardly differ: the mean of the walks is the kernel of both.
    mean = KeptDocuments(walks, {}).correlation
    np.testing.assert_allclose(mean, both.correlation(), atol=0.02)
    assert kept_documents(tmp_path, TINY, posterior) is None
    arrays = {
        "correlation": np.stack([prerun.upper(walk.correlation()) for walk in walks]),
        "variance": np.stack([walk.diagonal().values for walk in walks]),
    }
    about = {"documents": posterior.fingerprint()["sampling_data"], "config": EQ1}
    about["recipe"] = asdict(TINY)
    prerun.write(tmp_path / gpt_runs.DOCUMENTS, arrays, about)
    kept = kept_documents(tmp_path, TINY, posterior)
    np.testing.assert_allclose(kept.correlation, mean, atol=2e-3)  # half precision
    one, other = kept.halves()
    np.testing.assert_allclose(one, walks[0].correlation(), atol=2e-3)
    np.testing.assert_allclose(other, walks[1].correlation(), atol=2e-3)
    fewer = document_posterior(network, some_of_each(data.train, 4, 2), **EQ1)
    assert kept_documents(tmp_path, TINY, fewer) is None
    cooler = document_posterior(network, some_of_each(data.train, 5, 2), 20.0, 1e4)
    assert kept_documents(tmp_path, TINY, cooler) is None
    assert kept_documents(tmp_path, replace(TINY, epochs=2), posterior) is None
