"""A small GPT: causal, trained on its posterior's own loss, and kept only where it is the same."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import probelib
from probebook import gpt
from probebook.gpt import GPT, GPTRecipe, embeddings, token_losses, train, trained_gpt
from probebook.language_data import IGNORED, Windows

pytestmark = pytest.mark.usefixtures("one_thread")

V, T, N = 11, 6, 24
TINY = GPTRecipe(width=8, layers=2, heads=2, epochs=3, batch_size=8, learning_rate=1e-2)


@pytest.fixture(scope="module")
def windows():
    ids = torch.randint(0, V, (N, T + 1), generator=torch.Generator().manual_seed(0))
    targets = ids[:, 1:].clone()
    targets[:10, 2:] = IGNORED  # short ones, such as canaries
    none = np.full(N, -1)
    return Windows(ids[:, :-1].clone(), targets, none, none, none, tuple(map(str, range(N))))


@pytest.fixture(scope="module")
def network(windows):
    return train(TINY, windows, V, seed=0, progress=False)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PROBELIB_CACHE", str(tmp_path))
    return tmp_path / "networks"


def test_a_position_sees_what_is_before_it_only(windows, network):
    ids = windows.inputs[:4]
    changed = ids.clone()
    changed[:, 3] = (changed[:, 3] + 1) % V
    with torch.no_grad():
        difference = (network.model(ids) - network.model(changed)).abs().amax((0, 2))
    assert (difference[:3] == 0).all()
    assert (difference[3:] > 1e-4).all()


def test_attention_is_the_textbooks(windows):
    """One block, against softmax(q k' / sqrt(d)) v with a mask, written out."""
    torch.manual_seed(0)
    block = gpt.Block(8, 2).double()
    x = torch.randn(3, T, 8, dtype=torch.float64)
    q, k, v = block.attend(block.norm1(x)).split(8, -1)
    heads = []
    for h in (slice(0, 4), slice(4, 8)):
        score = q[..., h] @ k[..., h].transpose(1, 2) / 2
        score = score.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
        heads.append(score.softmax(-1) @ v[..., h])
    y = x + block.gather(torch.cat(heads, -1))
    y = y + block.narrow(nn.functional.gelu(block.widen(block.norm2(y))))
    torch.testing.assert_close(block(x), y)


def test_an_untrained_network_guesses(windows):
    torch.manual_seed(0)
    loss = token_losses(GPT(V, T, TINY), windows)
    np.testing.assert_array_equal(np.isnan(loss), windows.targets.numpy() == IGNORED)
    # Logits of untrained weights are small: all within 0.05 of log V.
    assert abs(np.nanmean(loss) - math.log(V)) < 0.05


def test_training_minimises_the_posteriors_loss(windows, network):
    losses = token_losses(network.model, windows)
    posterior = probelib.LocalPosterior(
        network.model, probelib.sequence_cross_entropy, windows.data, n_beta=1.0, localization=1.0
    )
    trace = probelib.sample(posterior, sampler=probelib.SGLD(1e-9), chains=1, draws=2, burn_in=0,
                            progress=False)  # fmt: skip
    np.testing.assert_allclose(trace.init_loss, np.nanmean(losses, 1), rtol=1e-5)
    trained_on = gpt._loss(network.model(windows.inputs), windows.targets).item()
    assert trained_on == pytest.approx(np.nanmean(losses, 1).mean(), rel=1e-5)
    assert network.loss[-1] < network.loss[0]


def test_tokens_of_several_chains_have_the_losses_of_a_plain_call(windows, network):
    """Attention under vmap, and the embedding that is used twice."""
    posterior = probelib.LocalPosterior(
        network.model, probelib.sequence_cross_entropy, windows.data, n_beta=10.0, localization=1e3
    )
    run = {
        "draws": 3,
        "burn_in": 0,
        "progress": False,
        "observe_loss": probelib.token_cross_entropy,
    }
    sampler = probelib.SGLD(1e-4, batch_size=8)
    both = probelib.sample(posterior, sampler=sampler, chains=2, **run)
    alone = probelib.sample(posterior, sampler=sampler, chains=1, first_chain=1, **run)
    np.testing.assert_allclose(both.init_loss, token_losses(network.model, windows), rtol=1e-4,
                               atol=1e-6)  # fmt: skip
    np.testing.assert_allclose(both.loss[1], alone.loss[0], rtol=1e-4, atol=1e-6)
    assert float(both.loss.std("draw").min()) > 0


def test_the_seed_decides_and_global_generators_rest(windows, network):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again = train(TINY, windows, V, seed=0, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(again.model.parameters(), network.model.parameters(), strict=True):
        assert torch.equal(a, b)
    other = train(TINY, windows, V, seed=1, progress=False)
    assert not torch.equal(other.model.embed.weight, network.model.embed.weight)


def test_the_cache_gives_the_same_network(windows, network, own_cache):
    made = trained_gpt(TINY, windows, V, seed=0, progress=False)
    found = trained_gpt(TINY, windows, V, seed=0, progress=False)
    assert (made.cached, found.cached) == (False, True)
    assert found.seconds == made.seconds
    np.testing.assert_array_equal(found.loss, network.loss)
    for a, b in zip(found.model.parameters(), network.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not found.model.training


def test_other_data_recipes_and_seeds_are_other_networks(windows):
    changed = windows[:]
    changed.targets[0, 0] = (changed.targets[0, 0] + 1) % V
    prints = {
        gpt._fingerprint(TINY, windows, V, 0),
        gpt._fingerprint(TINY, changed, V, 0),
        gpt._fingerprint(TINY, windows, V + 1, 0),
        gpt._fingerprint(TINY, windows, V, 1),
        gpt._fingerprint(GPTRecipe(**vars(TINY) | {"epochs": 4}), windows, V, 0),
    }
    assert len(prints) == 5


@pytest.mark.parametrize("at", [3, 400, -5])
def test_a_damaged_file_is_trained_anew(windows, network, own_cache, capsys, at):
    trained_gpt(TINY, windows, V, seed=0, progress=False)
    (path,) = own_cache.iterdir()
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)
    again = trained_gpt(TINY, windows, V, seed=0, progress=False)
    assert not again.cached
    assert "anew" in capsys.readouterr().out
    assert torch.equal(again.model.embed.weight, network.model.embed.weight)
    assert trained_gpt(TINY, windows, V, seed=0, progress=False).cached


def test_embeddings_are_means_over_a_window(windows, network):
    found = embeddings(network.model, windows, batch_size=7)
    with torch.no_grad():
        logits = network.model(windows.inputs).mean(1)
    assert found.shape == (N, 8)
    weight = network.model.embed.weight.detach().numpy()
    np.testing.assert_allclose(found @ weight.T, logits, atol=1e-5)


def test_the_rate_rises_then_falls_to_nothing():
    recipe = GPTRecipe(learning_rate=1.0, warm_up=0.1)
    rates = [gpt._learning_rate(recipe, step, 100) for step in range(1, 101)]
    assert rates[4] == pytest.approx(0.5)
    assert int(np.argmax(rates)) == 9
    assert rates[9] == pytest.approx(1)
    assert rates[54] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "heads is 5, which does not divide width 96"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"learning_rate": math.nan}, "learning_rate must be positive"),
        ({"weight_decay": -1.0}, "weight_decay must be 0 or more"),
        ({"warm_up": 1.0}, "warm_up must be in"),
    ],
)
def test_recipes_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        GPTRecipe(**changes)


def test_bad_calls_are_one_sentence(windows):
    with pytest.raises(ValueError, match="seed must be 0 or more"):
        train(TINY, windows, V, seed=-1)
    with pytest.raises(ValueError, match="windows is empty"):
        train(TINY, windows[:0], V, seed=0)
    wild = GPTRecipe(**vars(TINY) | {"learning_rate": 1e30})
    with pytest.raises(FloatingPointError, match="the loss of epoch"):
        train(wild, windows, V, seed=0, progress=False)
