"""Recipes, the training loop, its cache, and the model."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional

from probebook import cache as cache_module
from probebook import training
from probebook.cache import cache_dir, write_atomically
from probebook.models import MLP, count_parameters
from probebook.training import (
    RECIPES,
    Recipe,
    evaluate,
    prepare_pixels,
    train,
    trained_network,
    trained_networks,
)

TINY = Recipe("tiny", (8,), "unit", "sgd", 0.1, 0.9, 16, 3, "cosine")


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (50, 28, 28), generator=generator, dtype=torch.uint8)
    images *= torch.rand(50, 28, 28, generator=generator) < 0.1  # mostly background, as digits are
    return images, torch.randint(0, 10, (50,), generator=generator)


@pytest.fixture
def networks(tmp_path, monkeypatch):
    monkeypatch.setenv("PROBELIB_CACHE", str(tmp_path))
    return tmp_path / "networks"


def same(first, second) -> bool:
    a, b = first.model.state_dict(), second.model.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Cache directory


def test_the_cache_directory_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PROBELIB_CACHE", str(tmp_path / "own"))
    assert cache_dir("a", "b") == tmp_path / "own" / "a" / "b"
    assert (tmp_path / "own" / "a" / "b").is_dir()
    monkeypatch.delenv("PROBELIB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "probelib"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir() == tmp_path / "home" / ".cache" / "probelib"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*_):
        raise OSError("no space")

    monkeypatch.setattr(cache_module.os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# Model


@pytest.mark.parametrize("hidden", [(), (5,), (6, 4)])
def test_the_mlp_is_its_formula(hidden):
    model = MLP(hidden, in_features=12, out_features=3)
    x = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(0))
    weights = [value.detach().numpy().astype(np.float64) for value in model.parameters()]
    h = x.numpy().reshape(7, 12).astype(np.float64)
    for i in range(0, len(weights), 2):
        h = h @ weights[i].T + weights[i + 1]
        if i + 2 < len(weights):
            h = np.maximum(h, 0)
    np.testing.assert_allclose(model(x).detach().numpy(), h, atol=1e-6)
    torch.testing.assert_close(model(x.flatten(1)), model(x), rtol=0, atol=0)


def test_parameters_are_counted():
    assert count_parameters(MLP()) == 784 * 512 + 512 + 512 * 10 + 10
    assert count_parameters(MLP((512, 512))) == count_parameters(MLP()) + 512 * 513
    shared = torch.nn.Linear(3, 3)
    assert count_parameters(torch.nn.Sequential(shared, shared)) == 12


@pytest.mark.parametrize("width", [0, -1, 2.0, True])
def test_a_bad_width_is_refused(width):
    with pytest.raises(ValueError, match=r"hidden is .*; it must be a whole number"):
        MLP((width,))


# Recipes


def test_the_recipes_are_the_four_of_the_trial():
    assert {name: recipe.describe() for name, recipe in RECIPES.items()} == {
        "sgd-unit-1x512": "784-512-10, pixels in [0, 1], SGD 0.1 momentum 0.9, batch 64, "
        "cosine, 100 epochs",
        "sgd-std-1x512": "784-512-10, standardised pixels, SGD 0.05 momentum 0.9, batch 128, "
        "100 epochs",
        "adam-unit-2x512": "784-512-512-10, pixels in [0, 1], Adam 0.001, batch 128, cosine, "
        "100 epochs",
        "sgd-std-2x512": "784-512-512-10, standardised pixels, SGD 0.05 momentum 0.9, "
        "batch 128, 100 epochs",
    }
    with pytest.raises(TypeError):
        RECIPES["new"] = TINY


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"pixels": "raw"}, "pixels"),
        ({"optimizer": "lion"}, "optimizer"),
        ({"schedule": "step"}, "schedule"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"momentum": 1.0}, "momentum"),
        ({"optimizer": "adam"}, "adam"),
        ({"batch_size": 0}, "batch_size"),
        ({"epochs": 0}, "epochs"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"name": "../up"}, "name"),
    ],
)
def test_a_bad_recipe_is_refused(change, match):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(TINY, **change)


def test_pixels_are_scaled_and_the_images_untouched(data):
    images, _ = data
    before = images.clone()
    unit = prepare_pixels(images, TINY)
    assert unit.shape == (50, 784)
    assert unit.dtype == torch.float32
    torch.testing.assert_close(unit, images.reshape(50, 784) / 255)
    standardised = prepare_pixels(images, dataclasses.replace(TINY, pixels="standardised"))
    torch.testing.assert_close(standardised, (unit - 0.1307) / 0.3081)
    assert torch.equal(images, before)
    with pytest.raises(ValueError, match="uint8"):
        prepare_pixels(images.float(), TINY)


# Training


def test_the_same_seed_gives_the_same_weights(data):
    first, second = (train(TINY, *data, seed=1, progress=False) for _ in range(2))
    assert same(first, second)
    np.testing.assert_array_equal(first.loss, second.loss)
    assert not same(first, train(TINY, *data, seed=2, progress=False))


def test_the_thread_count_changes_nothing_and_is_restored(data):
    threads = torch.get_num_threads()
    first = train(TINY, *data, seed=1, progress=False)
    try:
        torch.set_num_threads(threads + 1)
        second = train(TINY, *data, seed=1, progress=False)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert same(first, second)


def test_the_global_generators_are_untouched_and_unread(data):
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = train(TINY, *data, seed=1, progress=False)
    assert torch.equal(torch.get_rng_state(), torch_before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
    torch.manual_seed(6)
    assert same(first, train(TINY, *data, seed=1, progress=False))


def test_the_result_is_in_eval_mode_with_its_history(data):
    recipe = dataclasses.replace(TINY, epochs=60, schedule="constant")
    network = train(recipe, *data, seed=0, progress=False)
    assert not network.model.training
    assert not network.cached
    assert network.loss.shape == network.accuracy.shape == (60,)
    assert network.loss[0] == pytest.approx(math.log(10), abs=0.5)
    assert network.loss[-1] < network.loss[0] / 2
    assert network.seconds > 0
    assert all(parameter.grad is None for parameter in network.model.parameters())


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_an_epoch_of_full_batches_is_gradient_descent_with_momentum(data, schedule):
    """With one batch an epoch the order is irrelevant; follow the update by hand in float64."""
    images, labels = data
    recipe = dataclasses.replace(
        TINY, batch_size=50, epochs=4, schedule=schedule, weight_decay=0.01
    )
    network = train(recipe, images, labels, seed=4, progress=False)
    # Its initial weights: the same seed, at a rate too small to move them.
    start = train(
        dataclasses.replace(recipe, learning_rate=1e-30, epochs=1), images, labels, seed=4,
        progress=False,
    )  # fmt: skip
    model = start.model.double()
    x = prepare_pixels(images, recipe).double()
    velocity = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for epoch in range(4):
        rate = 0.1 * (1 if schedule == "constant" else (1 + math.cos(math.pi * epoch / 4)) / 2)
        loss = functional.cross_entropy(model(x), labels)
        assert network.loss[epoch] == pytest.approx(loss.item(), rel=1e-5)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for w, v, g in zip(model.parameters(), velocity, gradients, strict=True):
                v.mul_(0.9).add_(g + 0.01 * w)
                w.sub_(rate * v)
    for ours, theirs in zip(network.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-6)


def test_adam_trains(data):
    recipe = dataclasses.replace(
        TINY, optimizer="adam", momentum=0.0, learning_rate=1e-2, epochs=30
    )
    network = train(recipe, *data, seed=0, progress=False)
    assert network.loss[-1] < network.loss[0] / 2


def test_bad_data_is_refused(data):
    images, labels = data
    for wrong, match in (
        (labels[:-1], "equally many"),
        (labels.float(), "int64"),
        (labels + 1 - labels.min() + 9, "0..9"),
        (labels - labels.min() - 1, "0..9"),
        (labels[:0], "equally many"),
    ):
        with pytest.raises(ValueError, match=match):
            train(TINY, images, wrong, seed=0)
    with pytest.raises(ValueError, match="seed"):
        train(TINY, images, labels, seed=-1)


def test_divergence_is_named(data):
    with pytest.raises(FloatingPointError, match=r"tiny diverged.*epoch.*learning rate 1e\+30"):
        train(
            dataclasses.replace(TINY, learning_rate=1e30, schedule="constant", epochs=5),
            *data,
            seed=0,
            progress=False,
        )


# Cache of networks


def test_a_second_call_reads_the_cache(data, networks, monkeypatch):
    first = trained_network(TINY, *data, seed=1, progress=False)
    assert not first.cached
    monkeypatch.setattr(training, "train", None)  # a second training would fail
    state = torch.get_rng_state()
    second = trained_network(TINY, *data, seed=1)
    assert second.cached
    assert same(first, second)
    assert not second.model.training
    np.testing.assert_array_equal(first.loss, second.loss)
    np.testing.assert_array_equal(first.accuracy, second.accuracy)
    assert second.seconds == first.seconds
    assert torch.equal(torch.get_rng_state(), state)


def test_what_the_network_depends_on_is_in_the_key(data, networks, monkeypatch):
    images, labels = data
    trained_network(TINY, images, labels, seed=1, progress=False)
    pixel, label = images.clone(), labels.clone()
    pixel[7, 3, 3] ^= 1
    label[7] = (label[7] + 1) % 10
    others = [
        (TINY, images, labels, 2),
        (TINY, pixel, labels, 1),
        (TINY, images, label, 1),
        *(
            (dataclasses.replace(TINY, **change), images, labels, 1)
            for change in ({"learning_rate": 0.11}, {"epochs": 4}, {"hidden": (9,)})
        ),
    ]
    for recipe, x, y, seed in others:
        assert not trained_network(recipe, x, y, seed=seed, progress=False).cached
    assert len(list(networks.iterdir())) == 1 + len(others)
    monkeypatch.setattr(torch, "__version__", "1.0.0")
    assert not trained_network(TINY, images, labels, seed=1, progress=False).cached


def test_no_cache_writes_nothing(data, networks):
    trained_network(TINY, *data, seed=1, cache=False, progress=False)
    trained_networks([TINY], *data, seed=1, cache=False, progress=False)
    assert not networks.exists()


def rewritten(path, *, weights=None, **metadata):
    with safe_open(path, framework="pt") as file:
        old = file.metadata()
    tensors = load_file(path)
    if weights is not None:
        tensors["model.layers.0.weight"] += weights
    save_file(tensors, path, {**old, **metadata})


def truncated(path):
    path.write_bytes(path.read_bytes()[:200])


DAMAGE = {
    "other fingerprint": (lambda path: rewritten(path, fingerprint="0" * 64), "other data"),
    "older format": (lambda path: rewritten(path, format="0"), "format 0"),
    "changed weights": (lambda path: rewritten(path, weights=1e-3), "checksum"),
    "no metadata": (lambda path: save_file(load_file(path), path), "format None"),
    "truncated": (truncated, ""),
    "not safetensors": (lambda path: path.write_bytes(b"nonsense"), ""),
    "empty": (lambda path: path.write_bytes(b""), ""),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_stale_or_damaged_file_is_never_served(damage, data, networks, capsys):
    spoil, reason = DAMAGE[damage]
    first = trained_network(TINY, *data, seed=1, progress=False)
    (path,) = networks.iterdir()
    spoil(path)
    capsys.readouterr()
    second = trained_network(TINY, *data, seed=1, progress=False)
    notice = capsys.readouterr().out
    assert notice.count("\n") == 1
    assert "tiny anew" in notice
    assert reason in notice
    assert not second.cached
    assert same(first, second)
    assert trained_network(TINY, *data, seed=1).cached  # and the file was replaced


def test_a_cache_that_cannot_be_written_costs_a_line(data, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PROBELIB_CACHE", str(tmp_path / "file"))
    assert not trained_network(TINY, *data, seed=1, progress=False).cached
    assert "was not cached" in capsys.readouterr().out


def test_networks_side_by_side_are_those_one_by_one(data, networks, capsys):
    recipes = [
        dataclasses.replace(TINY, name=name, hidden=hidden)
        for name, hidden in (("one", (8,)), ("two", (8, 8)), ("three", (4,)))
    ]
    alone = {r.name: train(r, *data, seed=1, progress=False) for r in recipes}
    trained_network(recipes[2], *data, seed=1, progress=False)
    together = trained_networks(recipes, *data, seed=1, progress=False, jobs=2)
    assert list(together) == ["one", "two", "three"]
    assert [network.cached for network in together.values()] == [False, False, True]
    for name, network in together.items():
        assert same(network, alone[name])
        np.testing.assert_array_equal(network.loss, alone[name].loss)
    capsys.readouterr()
    again = trained_networks(recipes, *data, seed=1, jobs=2)
    assert all(network.cached for network in again.values())
    assert capsys.readouterr() == ("", "")  # no bar over nothing to train


@pytest.mark.parametrize(("given", "policy"), [(None, "passive"), ("active", "active")])
def test_trainings_side_by_side_wait_passively_by_default(data, monkeypatch, given, policy):
    def started(command, env, **options):
        policies.append(env["OMP_WAIT_POLICY"])
        raise OSError("not started")

    policies = []
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    monkeypatch.setattr("probebook.training.subprocess.Popen", started)
    recipes = [dataclasses.replace(TINY, name=f"unstarted-{policy}-{i}") for i in range(2)]
    with pytest.raises(OSError, match="not started"):
        trained_networks(recipes, *data, seed=1, progress=False, jobs=2)
    assert set(policies) == {policy}


def test_a_failed_training_beside_others_is_named(data, networks):
    bad = dataclasses.replace(TINY, name="bad", learning_rate=1e30, epochs=9)
    long = dataclasses.replace(TINY, name="long", epochs=10**6)
    with pytest.raises(RuntimeError, match=r"bad failed.*diverged"):
        trained_networks([bad, long], *data, seed=1, progress=False, jobs=2)


def test_bad_sets_of_recipes_are_refused(data):
    with pytest.raises(ValueError, match="different names"):
        trained_networks([TINY, TINY], *data, seed=1)
    with pytest.raises(ValueError, match="jobs"):
        trained_networks([TINY], *data, seed=1, jobs=0)
    assert trained_networks([], *data, seed=1) == {}


def test_the_metadata_say_what_it_is(data, networks):
    trained_network(TINY, *data, seed=1, progress=False)
    (path,) = networks.iterdir()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert Recipe(**json.loads(metadata["recipe"])) == TINY
    assert metadata["seed"] == "1"
    assert path.name == f"tiny-{metadata['fingerprint'][:16]}.safetensors"


# Evaluation


def test_evaluate_is_cross_entropy_whatever_the_batch(data):
    images, labels = data
    network = train(TINY, images, labels, seed=1, progress=False)
    x = prepare_pixels(images, TINY)
    logits = network.model(x).detach().double()
    for batch_size in (1, 7, 50, 10_000):
        loss, correct = evaluate(network.model, x, labels, batch_size)
        torch.testing.assert_close(
            loss, functional.cross_entropy(logits, labels, reduction="none"), rtol=1e-5, atol=1e-7
        )
        assert torch.equal(correct, logits.argmax(1) == labels)
    assert loss.dtype == torch.float64
    assert correct.dtype == torch.bool


def test_very_confident_samples_keep_their_order():
    x = torch.tensor([[0.0, -40.0, -90.0], [0.0, -60.0, -90.0], [0.0, 800.0, 0.0]])
    loss, correct = evaluate(torch.nn.Identity(), x, torch.tensor([0, 0, 0]))
    assert loss.tolist() == pytest.approx([math.exp(-40), math.exp(-60), 800.0], rel=1e-9)
    assert correct.tolist() == [True, True, False]


def test_evaluate_restores_each_mode_and_uses_eval():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.5))
    model.train()
    model[0].eval()
    x, y = torch.ones(5, 4), torch.zeros(5, dtype=torch.int64)
    loss, _ = evaluate(model, x, y)
    assert (loss == loss[0]).all()
    assert [module.training for module in model.modules()] == [True, False, True]
    with pytest.raises(ValueError, match="5 samples"):
        evaluate(model, x, y[:-1])
    with pytest.raises(ValueError, match="batch_size"):
        evaluate(model, x, y, 0)
