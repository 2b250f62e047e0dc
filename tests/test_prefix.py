"""What comes before the weights that move, computed once: the same numbers, or not at all."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import probelib
from probelib import SGLD, ControlVariate, LocalPosterior, cross_entropy
from probelib.prefix import Cut

pytestmark = pytest.mark.usefixtures("one_thread")


def images(n=24):
    rng = torch.Generator().manual_seed(1)
    return torch.randn(n, 2, 8, 8, generator=rng), torch.arange(n) % 3


def rows(n=24):
    rng = torch.Generator().manual_seed(1)
    return torch.randn(n, 4, generator=rng), torch.arange(n) % 3


class Block(nn.Module):
    """A residual block that writes in place, as those of torchvision do."""

    def __init__(self, width):
        super().__init__()
        self.a, self.b = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.na, self.nb, self.relu = nn.BatchNorm2d(width), nn.BatchNorm2d(width), nn.ReLU(True)

    def forward(self, x):
        out = self.nb(self.b(self.relu(self.na(self.a(x)))))
        out += x
        return self.relu(out)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.first, self.last = nn.Conv2d(2, 6, 3, padding=1), Block(6), Block(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu_(self.stem(x))
        x = self.last(self.first(x))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def deep(*between, seed=0):
    torch.manual_seed(seed)
    layers = nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), *between, nn.Linear(16, 3)
    return nn.Sequential(*layers)


def part(model, given, parameters, **kwargs):
    settings = {"n_beta": 10.0, "localization": 30.0, "parameters": parameters} | kwargs
    return LocalPosterior(model, cross_entropy, given, **settings)


def draw(posterior, chains=2, **kwargs):
    settings = {"sampler": SGLD(1e-3, 8), "draws": 4, "progress": False} | kwargs
    return probelib.sample(posterior, chains=chains, **settings)


@pytest.fixture
def whole(monkeypatch):
    """Draws with the whole model at every step."""

    def drawn(*args, **kwargs):
        with monkeypatch.context() as m:
            m.setattr(probelib.chains, "cut", lambda run, p, data, observed, size: Cut(
                p, data, observed, "none: as the test wants it"))  # fmt: skip
            return draw(*args, **kwargs)

    return drawn


def assert_same(a, b, rtol=1e-6):
    for name in ("loss", "init_loss", "sampling_loss", "distance", "gradient_square"):
        np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=rtol, err_msg=name)
    assert a.attrs["config"] == b.attrs["config"]
    assert a.attrs["fingerprint"] == b.attrs["fingerprint"]


SETTINGS = [
    {"chains": 1},
    {"chains": 3},
    {"sampler": SGLD(1e-3)},
    {"sampler": SGLD(1e-3, gradient=ControlVariate(8))},
    {"observe_batch_size": 7},
    {"thin": "auto", "burn_in": 100},
]


@pytest.mark.filterwarnings("ignore:burn_in is short")
@pytest.mark.parametrize("how", SETTINGS)
@pytest.mark.parametrize(
    ("make", "given", "parameters"),
    [
        (Residual, images(), ["last.*", "head.*"]),
        (deep, rows(), {"4.weight": torch.eye(3, 16) > 0}),
    ],
)
def test_the_numbers_are_those_of_the_whole(make, given, parameters, how, whole):
    posterior = part(make(), given, parameters)
    ours = draw(posterior, **how)
    assert "% of a pass is computed once" in ours.attrs["prefix"]
    assert_same(ours, whole(posterior, **how))


def test_other_samples_are_observed(whole):
    posterior, (x, y) = part(Residual(), images(), "head.*"), images(11)
    ours = draw(posterior, observe=(x + 1, y))
    assert "% of a pass" in ours.attrs["prefix"]
    assert_same(ours, whole(posterior, observe=(x + 1, y)))


def test_half_precision(whole):
    x, y = rows()
    posterior = part(deep().bfloat16(), (x.bfloat16(), y), "4.*")
    ours = draw(posterior)
    assert "% of a pass" in ours.attrs["prefix"]
    assert_same(ours, whole(posterior))


def test_data_sets_and_tied_places(whole):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.layer, self.last = deep()[:4], nn.Linear(16, 16), nn.Linear(16, 3)
            self.again = self.layer

        def forward(self, x):
            return self.last(self.again(self.layer(self.before(x)).tanh()).tanh())

    torch.manual_seed(0)
    posterior = part(Twice(), list(zip(*rows(), strict=True)), "again.*")
    ours = draw(posterior)
    assert "% of a pass" in ours.attrs["prefix"]
    assert_same(ours, whole(posterior))


def test_a_run_that_goes_on_cuts_again(tmp_path):
    posterior = part(Residual(), images(), "head.*")
    there = draw(posterior, draws=3, store=tmp_path / "a.zarr")
    assert there.sizes["draw"] == 3
    longer = draw(posterior, draws=6, store=tmp_path / "a.zarr")
    np.testing.assert_array_equal(longer["loss"], draw(posterior, draws=6)["loss"])
    with ThreadPoolExecutor(2) as executor:
        apart = draw(posterior, draws=6, store=tmp_path / "b.zarr", executor=executor)
    np.testing.assert_allclose(apart["loss"], longer["loss"], rtol=1e-6)
    assert draw(posterior, draws=6, store=tmp_path / "a.zarr").attrs["complete"]


def test_a_chain_that_diverges_is_told():
    posterior = part(Residual(), images(), "head.*")
    with pytest.raises(probelib.DivergenceError, match="diverged at step"):
        draw(posterior, sampler=SGLD(1e30, 8))


def test_frozen_models_without_parameters_stay_as_they_were():
    model = deep()
    model[:4].requires_grad_(False)
    assert "prefix" not in draw(part(model, rows(), None)).attrs
    assert "prefix" not in draw(part(model, rows(), "4.*")).attrs  # the same posterior


# --- where it must not be -------------------------------------------------------------------------


RARE = float(rows(200)[0][101, 0])


class Odd(nn.Module):
    """Two layers, and something between them that nobody can cut."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.how, self.calls = how, 0
        self.a, self.b, self.c = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.gate, self.g = nn.Linear(16, 16), nn.Parameter(torch.linspace(0.5, 1.5, 16))

    def forward(self, x):
        return getattr(self, self.how)(x)

    def branch(self, x):
        h = self.b(self.a(x))
        return self.c(h if h.sum() > 1e6 else h.tanh())

    def asks_first(self, x):
        h = self.b(self.a(x)).tanh()
        if isinstance(h, torch.Tensor) and h.abs().sum() > 1e6:
            h = h / 2
        return self.c(h)

    def asks_otherwise(self, x):  # a sample that few looked at would not show
        h = self.b(self.a(x)).tanh()
        if type(h) is torch.Tensor:
            h = torch.where(x[:, :1] == x[:, :1].new_tensor(RARE), 0.5 * h, h)
        return self.c(h)

    def skip(self, x):
        return self.c(self.b(self.a(x)).tanh()) + x[:, :3]

    def batch_second(self, x):
        h = self.b(self.a(x[:, None].expand(-1, 5, -1)).transpose(0, 1))
        return self.c(h).transpose(0, 1).mean(1)

    def no_grad(self, x):
        h = self.b(self.a(x).tanh())
        with torch.no_grad():
            gate = self.gate(h).sigmoid()
        return self.c(h * gate)

    def counts(self, x):
        self.calls += 1
        return self.c(self.b(self.a(x)).tanh())

    def raw(self, x):  # what torch.fx would take for a number that stays
        scale = float(self._parameters["g"].detach().sum())
        return self.c(self.b(self.a(x)).tanh() * scale)

    def table(self, x):
        scale = self._parameters["g"].exp()
        return self.c(self.b(self.a(x)).tanh() * scale)

    def drawn(self, x):
        return self.c(F.dropout(self.b(self.a(x)), 0.5, training=True))

    def drawn_behind(self, x):
        return F.dropout(self.c(self.b(self.a(x))), 0.5, training=True)

    def baked(self, x):
        return self.c(self.b(self.a(x)).tanh() + 0.01 * torch.rand(16))

    def numpy(self, x):
        h = self.b(self.a(x)).detach()
        return self.c(torch.from_numpy(np.tanh(h.cpu().numpy())))


@pytest.mark.parametrize(
    ("how", "parameters", "why"),
    [
        ("branch", "c.*", r"cannot be cut \(TraceError\)"),
        ("asks_first", "c.*", r"cannot be cut \(TraceError\)"),
        ("asks_otherwise", "c.*", "its halves are not the whole for every sample"),
        ("skip", "c.*", "more or less than one tensor goes across"),
        ("skip", "a.*", "more or less than one tensor goes across"),
        ("batch_second", "c.*", "has no samples first"),
        ("no_grad", ["c.*", "gate.*"], "its halves are not the whole"),
        ("counts", "c.*", "its forward depends on more than weights and inputs"),
        ("raw", ["c.*", "g"], "its halves are not the whole|cannot be cut"),
        ("table", ["c.*", "g"], "computes with tensors that no operation of it makes"),
        ("drawn", "c.*", r"cannot be cut \(ValueError\)"),
        ("drawn_behind", "c.*", "its halves are not the whole"),
        ("baked", "c.*", "computes with tensors that no operation of it makes"),
        ("numpy", "c.*", "cannot be cut"),
    ],
)
def test_what_is_not_clear_is_run_as_a_whole(how, parameters, why, whole, monkeypatch):
    posterior = part_even_if_random(Odd(how), parameters, monkeypatch)
    state = torch.get_rng_state()
    ours = draw(posterior)
    assert torch.equal(torch.get_rng_state(), state)
    assert ours.attrs["prefix"].startswith("none: ")
    np.testing.assert_array_equal(ours["loss"], whole(posterior)["loss"])
    assert re.search(why, ours.attrs["prefix"]), ours.attrs["prefix"]


def part_even_if_random(model, parameters, monkeypatch):
    if model.how == "raw":  # no gradient by this weight, as by none that is read as a number
        monkeypatch.setattr(probelib.soundness, "check_samples", lambda p, s: torch.float32)
    given = rows(200) if model.how == "asks_otherwise" else rows()
    return part(model, given, parameters)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"train_mode": True}, "its forward depends on more"),
        ({"observe_dtype": "bfloat16"}, "observed in another precision"),
        ({"_MOST": 24 * 16 * 4 - 1}, "takes more than"),
        ({"_STAGED": 0}, "its samples are read at every step"),
        ({"parameters": ["2.weight", "4.*"]}, "little is computed in front"),
        ({"n": 1}, "one sample does not show"),
    ],
)
@pytest.mark.filterwarnings("ignore:observe_dtype is 'bfloat16'")
def test_what_does_not_fit_is_run_as_a_whole(how, why, monkeypatch, whole):
    given = rows(how.pop("n", 24))
    settings = {k: how[k] for k in ("observe_dtype",) if k in how}
    more = {k: how[k] for k in ("train_mode",) if k in how}
    if "_MOST" in how:
        monkeypatch.setattr(probelib.prefix, "_MOST", how["_MOST"])
    if "_STAGED" in how:
        monkeypatch.setattr(probelib.chains, "_STAGED", how["_STAGED"])
        given = Named(*given)
    posterior = part(deep(), given, how.get("parameters", "4.*"), **more)
    settings["sampler"] = SGLD(1e-3)
    ours = draw(posterior, **settings)
    assert why in ours.attrs["prefix"]
    np.testing.assert_array_equal(ours["loss"], whole(posterior, **settings)["loss"])


def test_models_that_are_called_in_other_ways_are_run_as_a_whole(whole):
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = deep()

        def forward(self, x, shift):
            return self.net(x + shift)

    (x, y), forward = rows(), lambda model, x: model(2 * x)
    for posterior, why in (
        (part(deep(), (x, y), "4.*", forward=forward), "forward= says"),
        (part(Several(), ({"x": x, "shift": x}, y), "net.4.*"), "more than one tensor"),
    ):
        ours = draw(posterior)
        assert why in ours.attrs["prefix"]
        np.testing.assert_array_equal(ours["loss"], whole(posterior)["loss"])


def by_position(output, target):
    return F.cross_entropy(output.mT, target, reduction="none")


def mean_by_position(output, target):
    return by_position(output, target).mean(1)


def test_losses_per_token_behind_a_cut(whole):
    rng = torch.Generator().manual_seed(2)
    given = torch.randn(24, 5, 4, generator=rng), torch.randint(3, (24, 5), generator=rng)
    posterior = LocalPosterior(
        deep(), mean_by_position, given, n_beta=10.0, localization=30.0, parameters="4.*"
    )
    ours = draw(posterior, observe_loss=by_position)
    assert "% of a pass" in ours.attrs["prefix"]
    theirs = whole(posterior, observe_loss=by_position)
    assert set(ours.variables) == set(theirs.variables)
    for name in ours.variables:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6, atol=1e-6, err_msg=name)


class Named(torch.utils.data.TensorDataset):
    """A data set that is read item by item."""

    probelib_fingerprint = "version 1"


class InPlace(nn.Module):
    """The part that moves writes into what came before, which is read again afterwards."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.before, self.shift = deep()[:3], nn.Parameter(torch.linspace(-1, 1, 16))
        self.last = nn.Linear(16, 3)

    def forward(self, x):
        h = self.before(x)
        h.add_(self.shift)
        return self.last(torch.tanh(h))


def test_activations_that_are_written_in_place_stay(whole):
    posterior = part(InPlace(), rows(), ["shift", "last.*"])
    for chains in (1, 2):
        ours = draw(posterior, chains, draws=8)
        assert "% of a pass" in ours.attrs["prefix"]
        assert_same(ours, whole(posterior, chains, draws=8))


def test_other_threads_run_their_models_meanwhile():
    model, x, stop, wrong = Residual().eval(), images()[0], threading.Event(), []
    with torch.no_grad():
        expected = model(x)

    def run():
        while not stop.is_set():
            try:
                with torch.no_grad():
                    if not torch.equal(model(x), expected):
                        wrong.append("other numbers")
            except Exception as error:
                wrong.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        found = draw(part(Residual(), images(), "head.*"))
    finally:
        stop.set()
        thread.join()
    assert not wrong
    assert "% of a pass" in found.attrs["prefix"]
