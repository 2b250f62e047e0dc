"""Probes of the real InceptionV1 on real photographs: restricted against whole, and duplicates."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import probelib
from probebook import classifiers
from probebook.alignment import cross_label_top, top
from probebook.classifiers import (
    ClassifierUnavailable,
    first_classifier,
    freeze_before,
    load_classifier,
)
from probebook.imagenet import decode, find_images

SHARED = Path(os.environ.get("PROBELIB_DATA") or "-") / "imagenet"
needs_data = pytest.mark.skipif(
    not (SHARED / classifiers.INCEPTION_FILE).is_file() or not (SHARED / "classes.csv").is_file(),
    reason="PROBELIB_DATA has no imagenet with photographs and weights",
)


@pytest.fixture(scope="module")
def probe():
    """InceptionV1 and 24 photographs at 64 pixels; the last is the fourth once more."""
    classifier = load_classifier(weights=SHARED / classifiers.INCEPTION_FILE)
    decoded = decode(find_images(SHARED).subset(np.arange(0, 920, 40)), 64)
    again = np.append(np.arange(23), 3)
    images, labels = decoded.tensor()[again], torch.from_numpy(decoded.labels[again])
    return classifier, images, labels


def posterior_of(model, x, y, gamma=1e4):
    return probelib.LocalPosterior(
        model, probelib.cross_entropy, (x, y), n_beta=10.0, localization=gamma
    )


@needs_data
@pytest.mark.parametrize("stage", ["inception_5b", "classifier"])
def test_restricted_and_full_probes_agree(probe, stage):
    """The head on the trunk's outputs, and the whole network with a frozen trunk."""
    classifier, images, labels = probe
    trunk, head = classifier.split(stage)
    with torch.no_grad():
        features = trunk(images)
    restricted = posterior_of(head, features, labels)
    full = posterior_of(freeze_before(classifier.network, stage), images, labels)
    assert restricted.n_parameters == full.n_parameters
    one, other = (
        probelib.sample(
            p, sampler=probelib.SGLD(1e-4, 8), chains=2, draws=5, seed=3, progress=False
        )
        for p in (restricted, full)
    )
    np.testing.assert_allclose(one.loss, other.loss, rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(one.distance, other.distance, rtol=1e-5)
    kernels = [
        probelib.pair_kernel(probelib.gradient_pairs(p, pairs=1, progress=False), limit=True)
        for p in (restricted, full)
    ]
    np.testing.assert_allclose(
        kernels[0].correlation(), kernels[1].correlation(), atol=0.01
    )  # bfloat16 products


@needs_data
@pytest.mark.parametrize("gamma", [1e3, 1e5])
def test_a_photograph_that_is_there_twice_is_its_own_neighbour(probe, gamma):
    classifier, images, labels = probe
    found = probelib.gradient_pairs(
        posterior_of(classifier.network, images, labels, gamma), pairs=1, progress=False
    )
    r = probelib.pair_kernel(found, limit=True).correlation()
    np.testing.assert_array_equal(top(r, 1)[[3, 23], 0], [23, 3])
    assert r[3, 23] == pytest.approx(1, abs=0.02)
    others = cross_label_top(r, labels.numpy(), 1)[:, 0]
    assert (labels.numpy()[others] != labels.numpy()).all()


@needs_data
def test_layers_of_inception_know_the_gradients_of_their_photographs(probe):
    classifier, images, labels = probe
    posterior = posterior_of(classifier.network, images[:4], labels[:4])
    gradients = probelib.gradient_pairs(
        posterior_of(classifier.network, images[:4], labels[:4], 1e14), pairs=1, progress=False
    )
    assert gradients.attrs["config"]["n_parameters"] == 6_998_552
    cosine, length = probelib.influence.gradient_gram(posterior)
    kernel = probelib.pair_kernel(gradients, limit=True)
    np.testing.assert_allclose(kernel.correlation(), cosine, atol=0.01)
    np.testing.assert_allclose(kernel.diagonal() * 1e14, length**2, rtol=0.02)


def test_the_first_network_that_can_be_had_is_taken(monkeypatch, capsys):
    tried = []

    def load(name):
        tried.append(name)
        if name == "here":
            return "network"
        raise FileNotFoundError("no weights of it.")

    monkeypatch.setattr(classifiers, "load_classifier", load)
    assert first_classifier(["away", "away", "here", "later"]) == "network"
    assert tried == ["away", "here"]
    assert "passed over away: no weights" in capsys.readouterr().out
    with pytest.raises(ClassifierUnavailable, match="away: no weights"):
        first_classifier(["away"])
