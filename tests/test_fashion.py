"""Fashion-MNIST from files at hand, and what is refused."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from probebook import fashion
from probebook.fashion import FashionUnavailable, fashion_or_mnist, load_fashion
from probebook.mnist import Mnist

SHARED = Path(os.environ.get("PROBELIB_DATA") or "-") / "fashion-mnist"
HERE = all((SHARED / f"{name}.gz").is_file() for name in fashion.FILES)


@pytest.mark.skipif(not HERE, reason="Fashion-MNIST is not at hand")
def test_fashion_is_what_was_published():
    for split, n in (("train", 60_000), ("test", 10_000)):
        found = load_fashion(split)
        assert found.images.shape == (n, 28, 28)
        assert found.images.dtype == torch.uint8
        assert np.bincount(found.labels).tolist() == [n // 10] * 10
    train, test = fashion_or_mnist()
    assert train.source == test.source == "Fashion-MNIST"
    assert found.labels[0] == 9  # an ankle boot
    assert fashion.KINDS[9] == "ankle boot"


def test_wrong_content_is_named_and_refused(tmp_path, monkeypatch):
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    for name in fashion.FILES:
        (folder / f"{name}.gz").write_bytes(gzip.compress(b"something else"))
    monkeypatch.setenv("PROBELIB_CACHE", str(tmp_path / "cache"))
    import torchvision.datasets

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", offline)
    with (
        pytest.warns(UserWarning, match="wrong SHA-256"),
        pytest.raises(FashionUnavailable, match="no network"),
    ):
        load_fashion("train", root=tmp_path)
    with pytest.raises(ValueError, match="split must be"):
        load_fashion("all")


def test_mnist_takes_its_place_and_says_so(monkeypatch):
    def missing(split):
        raise FashionUnavailable("not here")

    stand_in = Mnist(torch.zeros(1, 28, 28, dtype=torch.uint8), torch.zeros(1).long(), "MNIST")
    monkeypatch.setattr(fashion, "load_fashion", missing)
    monkeypatch.setattr(fashion, "load_mnist", lambda split: stand_in)
    with pytest.warns(UserWarning, match="MNIST takes the place"):
        assert fashion_or_mnist() == (stand_in, stand_in)
