"""Inputs and targets in any containers give what the same tensors give on their own."""

import hashlib
import multiprocessing
from collections import OrderedDict, UserDict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import probelib
from probelib import LocalPosterior, cross_entropy, influence, squared_error
from probelib.batches import in_full, named_leaves, tree_leaves, tree_like, tree_map
from probelib.calling import Call
from probelib.chains import Chains
from probelib.data import Samples
from probelib.plan import Plan, Run

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
N = 24


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@dataclass(frozen=True, slots=True)
class Frozen:
    left: Tensor
    right: Tensor
    weight: Tensor | None = None


@dataclass
class Computed:
    """Keeps what it computed from all samples, where no field says so."""

    left: Tensor
    right: Tensor
    both: Tensor = field(init=False)

    def __post_init__(self):
        self.both = torch.stack([self.left, self.right], 1)
        self.of_all = self.left.sum()


class Two(nn.Module):
    """Two inputs that are not alike."""

    def __init__(self, classes=3):
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(4, 6), nn.Linear(4, 6)
        self.out = nn.Linear(6, classes)

    def forward(self, left, right):
        return self.out(torch.tanh(self.left(left) - 2 * self.right(right)))


class Joined(Two):
    """The same, of one tensor."""

    def forward(self, x):
        return super().forward(*x.unbind(1))


class Items(Dataset):
    def __init__(self, make, n=N):
        self.make, self.n = make, n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return self.make(i)


@pytest.fixture(scope="module")
def tensors():
    rng = torch.Generator().manual_seed(1)
    left, right = torch.randn(2, N, 4, generator=rng)
    return left, right, torch.arange(N) % 3


def build(data, model=None, loss=cross_entropy, **kwargs):
    model = Two() if model is None else model
    return LocalPosterior(model, loss, data, **{"n_beta": 10, "localization": 30} | kwargs)


def run(posterior, **kwargs):
    default = {"sampler": probelib.SGLD(1e-2, 8), "chains": 3, "draws": 6, "progress": False}
    return probelib.sample(posterior, **default | kwargs)


@pytest.fixture(scope="module")
def expected(tensors):
    """What the joined inputs give: the trace that all others must have, bit for bit."""
    left, right, y = tensors
    posterior = build((torch.stack([left, right], 1), y), Joined())
    return run(posterior), posterior


def by_attribute(model, inputs):
    return model(inputs.left, inputs.right)


def nested(model, inputs):
    (left,), more = inputs["sides"]
    return model(left, right=more["right"])


CONTAINERS = {
    "dict": (lambda a, b: {"left": a, "right": b}, None),
    "ordered": (lambda a, b: OrderedDict(left=a, right=b), None),
    "user": (lambda a, b: UserDict(left=a, right=b), None),
    "tuple": (lambda a, b: (a, b), None),
    "list": (lambda a, b: [a, b], None),
    "named": (Pair, None),
    "frozen": (Frozen, by_attribute),
    "computed": (Computed, by_attribute),
    "nested": (lambda a, b: {"sides": [(a,), {"right": b}], "none": None}, nested),
}


CASES = [(kind, "whole") for kind in CONTAINERS]
CASES += [(kind, "arrays") for kind in ("dict", "frozen")]
CASES += [(kind, "items") for kind in ("dict", "list", "named", "frozen", "nested")]


@pytest.mark.parametrize(("kind", "how"), CASES)
def test_containers_give_the_trace_of_the_same_tensors(tensors, expected, kind, how):
    (left, right, y), (make, forward) = tensors, CONTAINERS[kind]
    if how == "arrays":
        data = make(left.numpy(), right.numpy()), y.numpy()
    else:
        data = make(left, right), y
    if how == "items":
        data = Items(lambda i: (make(left[i], right[i].numpy()), int(y[i])))
    posterior = build(data, forward=forward)
    trace, (wanted, joined) = run(posterior), expected
    # Minibatches, all chains in one recorded pass: no container stands still in it.
    for name in ("loss", "init_loss", "sampling_loss", "distance"):
        np.testing.assert_array_equal(trace[name], wanted[name])
    np.testing.assert_array_equal(trace.label, wanted.label)
    assert probelib.local_learning_coefficient(trace) == probelib.local_learning_coefficient(wanted)
    np.testing.assert_array_equal(probelib.loss_gain(trace), probelib.loss_gain(wanted))
    fingerprint = posterior.fingerprint()
    assert fingerprint["sampling_data"] != joined.fingerprint()["sampling_data"]
    assert ("forward" in fingerprint) == (forward is not None)


def test_chains_together_are_chains_one_by_one(tensors):
    left, right, y = tensors
    posterior = build(({"left": left, "right": right}, y))
    of = Run.of(posterior, None, probelib.SGLD(1e-2, 8), Plan(chains=3))
    assert Chains(of).together
    together = run(posterior)
    for c in range(3):
        alone = run(posterior, chains=1, first_chain=c)
        torch.testing.assert_close(
            alone.loss.values[0], together.loss.values[c], rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize(
    "sampler",
    [
        probelib.SGLD(1e-2),
        probelib.SGLD(1e-2, gradient=probelib.ControlVariate(8)),
        probelib.LeimkuhlerMatthews(1e-2, 8),
    ],
    ids=["full", "control", "lm"],
)
def test_other_gradients_and_schedules(tensors, expected, sampler):
    left, right, y = tensors
    posterior = build((Frozen(left, right), y), forward=by_attribute)
    settings = {"sampler": sampler, "thin": "auto", "burn_in": 100, "draws": 3}
    observe = Items(lambda i: (Frozen(left[i], right[i]), y[i]), 7)
    got = run(posterior, observe=observe, **settings)
    joined = torch.stack([left, right], 1)
    wanted = run(expected[1], observe=(joined[:7], y[:7]), **settings)
    np.testing.assert_array_equal(got.loss, wanted.loss)
    assert got.attrs["thinning"] == wanted.attrs["thinning"]


def test_derivatives_and_weighted_draws(tensors, expected):
    left, right, y = tensors
    posterior, joined = build(({"left": left, "right": right}, y)), expected[1]
    drawn = [probelib.importance_sample(p, draws=5, progress=False) for p in (posterior, joined)]
    np.testing.assert_array_equal(drawn[0].loss, drawn[1].loss)
    some = {"left": left[:5], "right": right[:5]}, y[:5]
    other = torch.stack([left, right], 1)[:5], y[:5]
    drawn = [
        probelib.importance_sample(p, observe=o, draws=5, loss_samples=9, progress=False)
        for p, o in ((posterior, some), (joined, other))
    ]
    np.testing.assert_array_equal(drawn[0].mean_loss, drawn[1].mean_loss)
    pairs = [probelib.gradient_pairs(p, pairs=2, progress=False) for p in (posterior, joined)]
    np.testing.assert_array_equal(pairs[0].kernel, pairs[1].kernel)
    for function in (
        influence.per_sample_gradients,
        influence.per_sample_hessians,
        influence.hessian,
        lambda p: influence.gradient_gram(p)[0],
        lambda p: influence.laplace_kernel(p, order=2).covariance(),
        lambda p: influence.hessian_operator(p) @ np.arange(p.n_parameters),
        lambda p: influence.classical_influence(p, damping=1.0),
    ):
        np.testing.assert_array_equal(function(posterior), function(joined))
    of_some = influence.classical_influence(posterior, damping=1.0, query=some)
    wanted = influence.classical_influence(joined, damping=1.0, query=other)
    np.testing.assert_array_equal(of_some, wanted)


def test_derivatives_of_a_data_class(tensors, expected):
    left, right, y = tensors
    posterior = build((Computed(left, right), y), forward=by_attribute)
    found = influence.per_sample_gradients(posterior)
    np.testing.assert_array_equal(found, influence.per_sample_gradients(expected[1]))
    assert len(np.unique(found, axis=0)) == N  # no container was the same for all samples


def test_workers_take_them(tensors, expected, tmp_path):
    left, right, y = tensors
    posterior = build((Frozen(left, right), y), forward=lambda model, x: model(x.left, x.right))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        got = run(posterior, store=tmp_path / "a.zarr", executor=pool, chains_per_task=3)
    np.testing.assert_array_equal(got.loss, expected[0].loss)


def test_a_store_goes_on_and_serves_no_other_leaves(tensors, expected, tmp_path):
    left, right, y = tensors
    store, cache = tmp_path / "one.zarr", tmp_path / "cache"
    data = {"left": left, "right": right}, y
    run(build(data), store=store, draws=2)
    resumed = run(build(data), store=store)
    np.testing.assert_array_equal(resumed.loss, expected[0].loss)
    permuted = {"right": right, "left": left}, y
    np.testing.assert_array_equal(run(build(permuted)).loss, resumed.loss)
    swapped = {"left": right, "right": left}, y
    for other in (permuted, swapped, ((left, right), y)):
        with pytest.raises(probelib.TraceMismatch, match="sampling_data is"):
            run(build(other), store=store)
    first, second = run(build(data), cache=cache), run(build(swapped), cache=cache)
    assert not np.array_equal(first.loss, second.loss)
    np.testing.assert_array_equal(second.loss, run(build(swapped)).loss)
    assert len(list(cache.iterdir())) == 2


def test_the_fingerprint_of_plain_tensors_is_what_it_was(tensors):
    left, _, y = tensors
    sides = [
        hashlib.sha256(header + a.numpy().tobytes()).digest()
        for header, a in ((b"torch.float32(4,)", left), (b"torch.int64()", y))
    ]
    wanted = hashlib.sha256(b"".join(sides)).hexdigest()
    assert Samples((left, y), CPU).fingerprint() == wanted
    assert "forward" not in build((left, y), nn.Linear(4, 3)).fingerprint()


def test_fingerprints_of_containers_all_differ(tensors):
    left, right, y = tensors
    every = [make(left, right) for make, _ in CONTAINERS.values()]
    every += [
        {"right": right, "left": left},
        {"left": right, "right": left},
        {"left": left, "other": right},
        {"left": left, "right": right.double()},
        {"left": left, "right": right, "mask": None},
        {"left": left, "inner": {"right": right}},
        {0: left, 1: right},
        {"0": left, "1": right},
        left,
    ]
    prints = [Samples((inputs, y), CPU).fingerprint() for inputs in every]
    prints += [Samples((left, targets), CPU).fingerprint() for targets in ({"y": y}, (y,), [y])]
    assert len(set(prints)) == len(prints)


def test_the_code_of_a_container_is_part_of_the_fingerprint(tensors):
    left, right, y = tensors

    def kind(by):
        class Scaled(UserDict):
            def scaled(self):
                return by * self["left"]

        return Scaled(left=left, right=right)

    prints = {Samples((kind(by), y), CPU).fingerprint() for by in (1.0, 2.0)}
    assert len(prints) == 2
    assert Samples((kind(1.0), y), CPU).fingerprint() in prints


def test_a_later_change_is_not_seen(tensors):
    left, right, y = (t.clone() for t in tensors)
    inputs = {"left": left, "right": right}
    targets = {"y": y}
    posterior = build((inputs, targets), loss=lambda out, t: cross_entropy(out, t["y"]))
    before, fingerprint = run(posterior), posterior.fingerprint()
    left.zero_()
    y.zero_()
    del inputs["right"], targets["y"]
    np.testing.assert_array_equal(run(posterior).loss, before.loss)
    assert posterior.fingerprint() == fingerprint


class Consuming(Two):
    """Takes its inputs out of their container, and writes into them."""

    def forward(self, inputs):
        left = inputs.pop("left")
        left *= 2
        return super().forward(left / 2, inputs["right"])


def test_a_model_that_consumes_its_inputs_leaves_the_data_alone(tensors, expected):
    left, right, y = tensors
    posterior = build(({"left": left, "right": right}, y), Consuming())
    fingerprint = posterior.fingerprint()
    np.testing.assert_array_equal(run(posterior).loss, expected[0].loss)
    assert posterior.fingerprint() == fingerprint
    assert torch.equal(posterior.data.batch(slice(N))[0]["left"], left)


def test_a_loss_that_consumes_its_targets(tensors, expected):
    left, right, y = tensors

    def loss(output, targets):
        return cross_entropy(output, targets.pop("y"))

    posterior = build(({"left": left, "right": right}, {"y": y}), loss=loss)
    np.testing.assert_array_equal(run(posterior).loss, expected[0].loss)
    np.testing.assert_array_equal(posterior.data.labels(), y)


# --- how a model is called -----------------------------------------------------------------------


def called(forward, inputs, function=None):
    """What a model with this forward is given."""
    kind = type("Kind", (nn.Module,), {"forward": forward})
    return Call(kind(), function)(kind(), {}, inputs)


def test_how_a_model_is_called():
    a, b = torch.zeros(1), torch.ones(1)
    two = lambda self, left, right=None: (left, right)  # noqa: E731
    one = lambda self, inputs: inputs  # noqa: E731
    rest = lambda self, *args, **named: (args, named)  # noqa: E731
    assert called(two, {"right": b, "left": a}) == (a, b)
    assert called(two, Pair(right=b, left=a)) == (a, b)
    assert called(two, (a, b)) == (a, b)
    assert called(two, a) == (a, None)
    assert called(two, Frozen(a, b))[0] == Frozen(a, b)
    assert called(one, {"left": a}) == {"left": a}
    assert called(one, {"inputs": a}) is a
    assert called(one, (a, b)) == (a, b)
    assert called(one, Pair(a, b)) == Pair(a, b)
    assert called(rest, {"left": a}) == ((), {"left": a})
    assert called(rest, [a, b]) == ((a, b), {})
    assert called(lambda self, x, **named: x, {"left": a}) == {"left": a}
    assert called(lambda self, left, **named: named, {"left": a, "right": b}) == {"right": b}
    with pytest.raises(ValueError, match=r"inputs have 'mask', which .* beside 'left'; leave it"):
        called(two, {"left": a, "mask": b})
    doubled = lambda model, inputs: 2 * model(inputs["left"])[0]  # noqa: E731
    assert called(two, {"left": b, "mask": b}, doubled) == 2 * b


def test_forward_is_a_part_of_the_posterior(tensors, tmp_path):
    left, right, y = tensors
    data = {"left": left, "right": right}, y
    scale = [1.0]

    class Scaled:
        def __init__(self, by):
            self.by = by

        def __call__(self, model, inputs):
            return self.by[0] * model(**inputs)

    plain, one = build(data), build(data, forward=Scaled(scale))
    other = build(data, forward=Scaled([2.0]))
    differ = [k for k, v in one.fingerprint().items() if plain.fingerprint().get(k) != v]
    assert differ == ["forward"]
    assert one.fingerprint()["forward"] != other.fingerprint()["forward"]
    before = run(one, store=tmp_path / "a.zarr")
    scale[0] = 3.0  # its own copy
    np.testing.assert_array_equal(run(one).loss, before.loss)
    with pytest.raises(probelib.TraceMismatch, match="forward is"):
        run(other, store=tmp_path / "a.zarr")
    with pytest.raises(TypeError, match=r"forward is 3; give a function of \(model, inputs\)"):
        build(data, forward=3)


def test_forward_of_another_model_is_refused(tensors):
    left, right, y = tensors
    outside = Two()
    with pytest.raises(ValueError, match="asks for a gradient and is no parameter of the model"):
        build(
            ({"left": left, "right": right}, y), forward=lambda model, x: outside(**x) + model(**x)
        )


@pytest.mark.parametrize(
    "loss",
    [
        cross_entropy,
        nn.CrossEntropyLoss(reduction="none"),
        lambda output, y: cross_entropy(output.logits, y),
    ],
    ids=["ours", "torch", "own"],
)
def test_logits_of_an_object(tensors, expected, loss):
    left, right, y = tensors

    class Wrapped(Two):
        def forward(self, left, right):
            return SimpleNamespace(logits=super().forward(left, right), hidden=None)

    posterior = build(({"left": left, "right": right}, y), Wrapped(), loss)
    got = posterior.losses(posterior.center, *posterior.data.batch(slice(N)))
    wanted = expected[1].losses(expected[1].center, *expected[1].data.batch(slice(N)))
    torch.testing.assert_close(got, wanted)
    with pytest.raises(ValueError, match="labels from 1 to 3, but the model has 3 outputs"):
        build(({"left": left, "right": right}, y + 1), Wrapped())


def test_half_precision_is_widened_wherever_it_lies():
    half = torch.ones(2, dtype=torch.bfloat16)
    for output in (
        half,
        {"a": half},
        (half, 3),
        Frozen(half, half),
        SimpleNamespace(logits=half, hidden=[half], name="a"),
    ):
        wide = in_full(output)
        held = vars(wide) if isinstance(wide, SimpleNamespace) else wide
        leaves = [t for t in tree_leaves(held) if isinstance(t, Tensor)]
        assert leaves
        assert {t.dtype for t in leaves} == {torch.float32}
    assert half.dtype == torch.bfloat16


# --- networks that one meets --------------------------------------------------------------------

WORDS, LONG = 11, 7


class Tokens(nn.Module):
    """One block of attention, as BERT has it, or with causal=True as GPT."""

    def __init__(self, causal=False, classes=3):
        super().__init__()
        torch.manual_seed(0)
        self.causal = causal
        self.embed, self.place = nn.Embedding(WORDS, 8), nn.Embedding(LONG, 8)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, WORDS if causal else classes)

    def forward(self, input_ids, attention_mask=None):
        long = input_ids.shape[1]
        h = self.embed(input_ids) + self.place(torch.arange(long))
        hidden = None if attention_mask is None else attention_mask == 0
        ahead = torch.ones(long, long).triu(1).bool() if self.causal else None
        h = h + self.attend(h, h, h, key_padding_mask=hidden, attn_mask=ahead)[0]
        if not self.causal:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            h = (h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return SimpleNamespace(logits=self.head(h))


@pytest.fixture(scope="module")
def text():
    rng = torch.Generator().manual_seed(2)
    ids = torch.randint(1, WORDS, (16, LONG), generator=rng)
    mask = (torch.arange(LONG) < torch.arange(16)[:, None] % 4 + 3).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.arange(16) % 3}


def test_masked_classification(text):
    posterior = build(text, Tokens())
    trace = run(posterior)
    model = Tokens().eval()
    for i in (0, 5, 15):  # each alone, cut to its own length
        ids = text["input_ids"][i : i + 1, : int(text["attention_mask"][i].sum())]
        own = cross_entropy(model(ids).logits, text["labels"][i : i + 1])
        np.testing.assert_allclose(trace.init_loss[i], own.item(), rtol=1e-5)
    np.testing.assert_array_equal(trace.label, text["labels"])
    # What stands where the mask is 0 counts for nothing, along the chains too.
    junk = text | {"input_ids": text["input_ids"] + 5 * (1 - text["attention_mask"])}
    np.testing.assert_allclose(run(build(junk, Tokens())).loss, trace.loss, rtol=1e-5)
    without = {k: v for k, v in text.items() if k != "attention_mask"}
    assert np.abs(run(build(without, Tokens())).loss - trace.loss).max() > 1e-3
    explicit = build(text, Tokens(), forward=lambda model, x: model(**x).logits)
    np.testing.assert_array_equal(run(explicit).loss, trace.loss)
    items = Items(lambda i: {name: a[i] for name, a in text.items()}, 16)
    np.testing.assert_array_equal(run(build(items, Tokens())).loss, trace.loss)


def next_token(output, labels):
    """The mean over a sample's own tokens."""
    logits, labels = output.logits[:, :-1], labels[:, 1:]
    loss = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
    return loss.sum(1) / (labels != -100).sum(1)


def test_next_tokens_with_labels_left_out(text):
    labels = text["input_ids"].masked_fill(text["attention_mask"] == 0, -100)
    posterior = build(text | {"labels": labels}, Tokens(causal=True), next_token)
    trace = run(posterior)
    model = Tokens(causal=True).eval()
    for i in range(16):
        ids = text["input_ids"][i : i + 1, : int(text["attention_mask"][i].sum())]
        own = F.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:])
        np.testing.assert_allclose(trace.init_loss[i], own.item(), rtol=1e-5)
    assert posterior.data.labels() is None
    pairs = probelib.gradient_pairs(posterior, pairs=2, progress=False)
    np.testing.assert_allclose(pairs.init_loss, trace.init_loss, rtol=1e-5)


def next_of_each(output, targets):
    """The loss of every token, NaN where there is none, of an output that holds the logits."""
    return probelib.token_cross_entropy(output.logits, targets["next"])


@pytest.mark.parametrize("own", ["neither", "both", "observed"])
def test_losses_per_token_of_containers(text, own):
    """Losses of the library are given the logits, and others what the model returns."""
    after = text["input_ids"].roll(-1, 1)
    after[:, -1] = 0
    after = after.masked_fill(after == 0, -100)
    inputs = {k: v for k, v in text.items() if k != "labels"}
    if own == "both":
        data, each = (inputs, {"next": after}), next_of_each
        loss = lambda output, targets: next_of_each(output, targets).nanmean(1)  # noqa: E731
    else:
        data, loss = inputs | {"labels": after}, probelib.sequence_cross_entropy
        each = probelib.token_cross_entropy
    if own == "observed":
        each = lambda output, y: probelib.token_cross_entropy(output.logits, y)  # noqa: E731
    posterior = build(data, Tokens(causal=True), loss)
    trace = run(posterior, observe_loss=each, chains=2, draws=3)
    whole = run(posterior, chains=2, draws=3)
    assert trace.loss.dims == ("chain", "draw", "sample", "token")
    np.testing.assert_allclose(trace.loss.mean("token"), whole.loss, rtol=1e-5)
    logits = Tokens(causal=True).eval()(**inputs).logits
    wanted = F.cross_entropy(logits.transpose(1, 2), after, ignore_index=-100, reduction="none")
    there = (after != -100).numpy()
    np.testing.assert_array_equal(~np.isnan(trace.init_loss), there)
    np.testing.assert_allclose(
        trace.init_loss.values[there], wanted.detach().numpy()[there], rtol=1e-5
    )


class Recurrent(nn.Module):
    """A GRU that is read at the last step of each sequence, with two heads."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.gru, self.kind, self.size = (
            nn.GRU(3, 5, batch_first=True),
            *(nn.Linear(5, out) for out in (3, 1)),
        )

    def forward(self, series, lengths):
        every, _ = self.gru(series)
        last = every[torch.arange(len(series)), lengths - 1]
        return {"kind": self.kind(last), "size": self.size(last)[:, 0]}


def both(output, target):
    return cross_entropy(output["kind"], target["kind"]) + squared_error(
        output["size"], target["size"]
    )


def test_a_recurrent_network_with_several_targets():
    rng = torch.Generator().manual_seed(3)
    series, lengths = torch.randn(12, 6, 3, generator=rng), torch.arange(12) % 5 + 2
    targets = {"kind": torch.arange(12) % 3, "size": torch.randn(12, generator=rng)}
    posterior = build(({"series": series, "lengths": lengths}, targets), Recurrent(), both)
    trace = run(posterior, chains=2, draws=3)
    model = Recurrent().eval()
    for i in range(12):
        out = model(series[i : i + 1, : lengths[i]], lengths[i : i + 1])
        own = both(out, tree_map(lambda t, i=i: t[i : i + 1], targets))
        np.testing.assert_allclose(trace.init_loss[i], own.item(), rtol=1e-5)
    assert np.isfinite(trace.loss).all()
    assert "label" not in trace.coords
    items = Items(
        lambda i: ((series[i], int(lengths[i])), {k: t[i] for k, t in targets.items()}), 12
    )
    by_position = build(items, Recurrent(), both)
    np.testing.assert_array_equal(run(by_position, chains=2, draws=3).loss, trace.loss)
    gradients = influence.per_sample_gradients(posterior)
    np.testing.assert_allclose(
        gradients.mean(0), influence.per_sample_gradients(by_position).mean(0), rtol=1e-5
    )


def test_regression_on_a_set_of_dicts():
    """Linear regression, whose Hessian is known: H = X'X / n."""
    rng = torch.Generator().manual_seed(4)
    age, height = torch.randn(2, 30, generator=rng, dtype=torch.float64)
    label = 2 * age - height + torch.randn(30, generator=rng, dtype=torch.float64)

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.float64))

        def forward(self, age, height):
            return self.weight[0] * age + self.weight[1] * height

    rows = [
        {"age": age[i], "height": height[i].numpy(), "label": float(label[i])} for i in range(30)
    ]
    posterior = build(rows, Linear(), squared_error)
    x = torch.stack([age, height], 1).numpy()
    np.testing.assert_allclose(influence.hessian(posterior), x.T @ x / 30, rtol=1e-12)
    residual = x @ np.ones(2) - label.numpy()
    np.testing.assert_allclose(
        influence.per_sample_gradients(posterior), residual[:, None] * x, rtol=1e-12
    )


class Graph:
    """A graph as a library of graphs would have it: an object that batches itself."""

    def __init__(self, nodes, adjacency):
        self.nodes, self.adjacency = nodes, adjacency


class OfGraphs(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.out = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, graph):
        return self.out(torch.tanh(graph.adjacency @ self.mix(graph.nodes)).sum(1))


def test_graphs_by_their_tensors():
    rng = torch.Generator().manual_seed(5)
    nodes = torch.randn(9, 5, 4, generator=rng)
    adjacency = (torch.rand(9, 5, 5, generator=rng) < 0.4).float()
    y = torch.arange(9) % 3
    with pytest.raises(
        ValueError, match=r"a Graph as input of sample 0; .* as a dict, .* forward=lambda model"
    ):
        build(Items(lambda i: (Graph(nodes[i], adjacency[i]), y[i]), 9), OfGraphs())
    posterior = build(
        Items(lambda i: ({"nodes": nodes[i], "adjacency": adjacency[i]}, y[i]), 9),
        OfGraphs(),
        forward=lambda model, inputs: model(Graph(**inputs)),
    )
    got = posterior.losses(posterior.center, *posterior.data.batch(slice(9)))
    torch.testing.assert_close(got, cross_entropy(OfGraphs()(Graph(nodes, adjacency)), y).detach())
    assert np.isfinite(run(posterior, sampler=probelib.SGLD(1e-2, 4), draws=2).loss).all()


# --- what cannot be -----------------------------------------------------------------------------


def _nan(a, at):
    a = a.clone()
    a[at] = float("nan")
    return a


REFUSED = {
    "one leaf is short": (
        lambda a, b, y: ({"left": a, "right": b[:9]}, y),
        r"9 samples in inputs\['right'\];",
    ),
    "a list of samples": (lambda a, b, y: (list(a), y), "24 samples in targets; .*pad_sequence"),
    "a scalar": (
        lambda a, b, y: ({"left": a, "t": torch.tensor(1)}, y),
        r"\['t'\] of shape \(\) and",
    ),
    "NaN in a leaf": (
        lambda a, b, y: ({"left": a, "right": _nan(b, 7)}, y),
        r"non-finite inputs\['right'\], first in sample 7",
    ),
    "NaN in a target": (
        lambda a, b, y: (a, {"y": y, "z": _nan(b, (9, 1))}),
        r"non-finite targets\['z'\], first in sample 9",
    ),
    "no tensor": (lambda a, b, y: ({}, y), "data has no tensor as inputs; give at least one"),
    "no target": (lambda a, b, y: (a, None), "data has no tensor as targets"),
    "a dict alone": (lambda a, b, y: {"left": a, "right": b}, 'a dict without the key "labels"'),
    "two labels": (
        lambda a, b, y: {"x": a, "labels": y, "label": y},
        '"labels" and "label"; leave',
    ),
    "three tensors": (lambda a, b, y: (a, b, y), r"\(\(first, second\), targets\)"),
    "three in a set": (lambda a, b, y: TensorDataset(a, b, y), r"\(\(first, second\), targets\)"),
    "two readings": (lambda a, b, y: ((a, b), (a, b)), "as two samples, and as two inputs"),
    "a list of numbers": (
        lambda a, b, y: (a, y.tolist()),
        "a list of numbers as targets; make it a tensor",
    ),
    "texts": (lambda a, b, y: (["one", "two", "three"], y[:3]), "a str as inputs.0.; .* tokenizer"),
    "texts in arrays": (
        lambda a, b, y: Items(lambda i: (np.array(["so", "it"]), 1)),
        "a ndarray as input of sample 0; .* tokenizer",
    ),
    "a setting": (
        lambda a, b, y: (Frozen(a, b, 2.0), y),
        r"a float as inputs.weight; give one for each sample, as a tensor",
    ),
    "an object": (lambda a, b, y: (Graph(a, b), y), "a Graph as inputs; .*forward=lambda"),
    "text in items": (
        lambda a, b, y: Items(lambda i: {"ids": a[i], "text": "so", "label": y[i]}),
        r"a str as input\['text'\] of sample 0; .* leave the text out",
    ),
    "lists in items": (
        lambda a, b, y: Items(lambda i: {"ids": a[i].tolist(), "label": int(y[i])}),
        r"numbers as input\['ids'\] of sample 0; .*torch.tensor .*with_format\(\"torch\"\)",
    ),
    "ragged items": (
        lambda a, b, y: Items(lambda i: ({"left": a[i], "right": b[i, : 2 + i % 2]}, y[i])),
        r"several shapes as input\['right'\] .* pad them in the data set, with torch.nn",
    ),
    "items of two types": (
        lambda a, b, y: Items(lambda i: ({"left": a[i], "n": i if i < 20 else 0.5}, y[i])),
        r"as \(\{'left': torch.float32, 'n': float\}, torch.int64\) and others .* one type",
    ),
    "items of two forms": (
        lambda a, b, y: Items(
            lambda i: ({"left": a[i], "right": b[i]} if i else {"left": a[i]}, 1)
        ),
        "give all samples one type",
    ),
    "restless items": (
        lambda a, b, y: Items(lambda i: ({"left": a[i], "right": torch.randn(4)}, y[i])),
        "another sample 0 at each read",
    ),
    "items without labels": (
        lambda a, b, y: Items(lambda i: {"left": a[i]}),
        'a dict as sample 0; each must be a pair .* the key "labels"',
    ),
    "a key too many": (
        lambda a, b, y: ({"left": a, "right": b, "mask": b}, y),
        "inputs have 'mask', which the model's forward does not take beside 'left', 'right'",
    ),
    "a key too few": (lambda a, b, y: ({"left": a}, y), "missing 1 required .* 'right'; forward="),
    "a nested tensor": (
        lambda a, b, y: ({"left": torch.nested.nested_tensor([a[0], a[1, :2]])}, y[:2]),
        "several lengths; pad them, with torch.nested",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(tensors, case):
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        build(make(*tensors))


def test_pictures_are_to_be_tensors(tensors):
    image = pytest.importorskip("PIL.Image")
    with pytest.raises(ValueError, match=r"an? Image as input of sample 0; .*ToTensor"):
        build(Items(lambda i: (image.new("RGB", (4, 4)), 1)))


def test_two_samples_in_a_list_are_two_samples(tensors):
    left, right, _ = tensors
    for data in ([(left[0], right[0]), (left[1], right[1])], [(left[0], 0), (left[1], 1)]):
        samples = Samples(data, CPU)
        assert len(samples) == 2
        assert torch.equal(samples.batch(slice(2))[0], left[:2])
    pair = Samples(((left, right), (left, right[:, :2])), CPU)
    assert len(pair) == N


def test_a_loss_of_the_batch_is_found_in_containers(tensors):
    left, right, y = tensors
    data = {"left": left, "right": right}, {"y": y}

    def loss(output, target):
        return cross_entropy(output, target["y"]).mean().expand(len(output))

    with pytest.raises(ValueError, match="it must depend on this sample alone"):
        build(data, loss=loss)

    def mixing(model, inputs):
        return model(inputs["left"] - inputs["right"].mean(0), inputs["right"])

    with pytest.raises(ValueError, match="it must depend on this sample alone"):
        build((data[0], y), forward=mixing)


def test_a_class_keeps_nothing_of_other_samples(tensors):
    left, right, y = tensors
    samples = Samples((Computed(left, right), y), CPU)
    x, _ = samples.batch(slice(3))
    assert torch.equal(x.both, torch.stack([left, right], 1)[:3])
    assert not hasattr(x, "of_all")


_LEAVES = st.integers(0, 5).map(lambda k: torch.arange(k, k + 12).reshape(4, 3))
_TREES = st.recursive(
    _LEAVES,
    lambda inner: (
        st.dictionaries(st.text(max_size=2), inner, min_size=1, max_size=3)
        | st.lists(inner, min_size=1, max_size=3)
        | st.tuples(inner, inner)
        | st.builds(Pair, inner, inner)
        | st.builds(Frozen, inner, inner)
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(_TREES, st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_any_tree_is_sliced_leaf_by_leaf(tree, index):
    leaves = tree_leaves(tree)
    again = tree_like(tree, leaves)
    assert all(a is b for a, b in zip(tree_leaves(again), leaves, strict=True))
    assert [w for w, _ in named_leaves(again)] == [w for w, _ in named_leaves(tree)]
    samples = Samples((tree, torch.arange(4)), CPU)
    x, y = samples.batch(np.array(index))
    assert type(x) is type(tree)
    for found, leaf in zip(tree_leaves(x), leaves, strict=True):
        assert torch.equal(found, leaf[index])
    assert y.tolist() == index
    items = Items(lambda i: (tree_map(lambda t: t[i], tree), i), 4)
    assert Samples(items, CPU).fingerprint() == samples.fingerprint()
    changed = [t.clone() for t in leaves]
    changed[-1][3, 2] += 1
    other = Samples((tree_like(tree, changed), torch.arange(4)), CPU)
    assert other.fingerprint() != samples.fingerprint()


# --- Hugging Face, where it is installed --------------------------------------------------------


@pytest.fixture(scope="module")
def hugging_face():
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    return transformers


def test_a_tokenizers_output_and_a_bert(hugging_face, text):
    torch.manual_seed(0)
    model = hugging_face.BertForSequenceClassification(
        hugging_face.BertConfig(
            vocab_size=WORDS, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=8, num_labels=3, max_position_embeddings=LONG,
        )
    ).eval()  # fmt: skip
    encoded = hugging_face.BatchEncoding(dict(text))
    posterior = build(encoded, model)
    trace = run(posterior, chains=2, draws=2)
    inputs = {k: v for k, v in text.items() if k != "labels"}
    with torch.no_grad():
        own = cross_entropy(model(**inputs).logits, text["labels"])
    np.testing.assert_allclose(trace.init_loss, own, rtol=1e-5)
    explicit = build((inputs, text["labels"]), model, forward=lambda model, x: model(**x).logits)
    np.testing.assert_array_equal(run(explicit, chains=2, draws=2).loss, trace.loss)
    assert isinstance(posterior.data.batch(slice(2))[0], hugging_face.BatchEncoding)


def test_a_gpt_of_a_data_set(hugging_face, text):
    datasets = pytest.importorskip("datasets")
    torch.manual_seed(0)
    model = hugging_face.GPT2LMHeadModel(
        hugging_face.GPT2Config(
            vocab_size=WORDS, n_positions=LONG, n_embd=8, n_layer=1, n_head=2,
            bos_token_id=0, eos_token_id=0,
        )
    ).eval()  # fmt: skip
    labels = text["input_ids"].masked_fill(text["attention_mask"] == 0, -100)
    rows = {k: v.tolist() for k, v in (text | {"labels": labels}).items()}
    data = datasets.Dataset.from_dict(rows).with_format("torch")
    posterior = build(data, model, next_token)
    trace = run(posterior, chains=1, draws=2)
    for i in (0, 7):
        kept = int(text["attention_mask"][i].sum())
        ids = text["input_ids"][i : i + 1, :kept]
        # Their own loss of one sequence is the mean over its tokens, shifted.
        np.testing.assert_allclose(
            trace.init_loss[i], model(ids, labels=ids).loss.item(), rtol=1e-4
        )
    with pytest.raises(ValueError, match="with_format"):
        build(datasets.Dataset.from_dict(rows), model, next_token)
