"""Mistyped names: arguments that a call does not have, inputs that a model does not read."""

import warnings

import pytest
import torch
from torch import nn

import probelib

pytestmark = pytest.mark.usefixtures("one_thread")


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 2)

    def forward(self, ids, mask=None, position=None):
        x = self.embed(ids)
        if position is not None:
            x = x + position[..., None]
        if mask is not None:
            x = x * mask[..., None]
        return self.head(x.mean(1))


class Lenient(Inner):
    """As many models of language are: what else comes is left unread."""

    def forward(self, ids, mask=None, **kwargs):
        return super().forward(ids, mask, kwargs.get("position"))


class Wrapped(nn.Module):
    """As adapters are: everything goes on to the model inside."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, *args, **kwargs):
        return {"logits": self.inside(*args, **kwargs)}


IDS = torch.arange(40).reshape(8, 5) % 5
MASK = (torch.arange(5) < torch.tensor([5, 4, 3, 2, 5, 4, 3, 2])[:, None]).long()
LABELS = torch.arange(8) % 2


def posterior(model, **inputs):
    def loss(output, target):
        return probelib.cross_entropy(
            output["logits"] if isinstance(output, dict) else output, target
        )

    return probelib.LocalPosterior(model, loss, (inputs, LABELS), n_beta=1.0, localization=10.0)


@pytest.mark.parametrize("model", [Lenient(), Wrapped(Lenient())])
def test_inputs_that_a_model_does_not_read_are_named(model):
    with pytest.warns(UserWarning, match=r"data has inputs 'maks', .* mistyped name") as found:
        posterior(model, ids=IDS, maks=MASK)
    assert len(found) == 1
    assert found[0].filename == __file__


@pytest.mark.parametrize("model", [Inner(), Lenient(), Wrapped(Inner()), Wrapped(Lenient())])
@pytest.mark.parametrize("mask", [MASK, torch.ones_like(MASK), MASK.bool()])
def test_inputs_that_it_reads_are_not(model, mask):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        posterior(model, ids=IDS, mask=mask)
        posterior(model, ids=IDS, mask=mask, position=IDS)
        posterior(model, ids=IDS, mask=mask, position=torch.zeros_like(IDS))  # nobody can tell


def test_inputs_of_the_observed_samples_are_looked_at_too():
    of = posterior(Lenient(), ids=IDS, mask=MASK)
    with pytest.warns(UserWarning, match="observe has inputs 'maks'"):
        probelib.sample(
            of, ({"ids": IDS, "maks": MASK}, LABELS), sampler=probelib.SGLD(1e-3, 4), draws=2,
            chains=1, progress=False,
        )  # fmt: skip


def test_a_function_that_calls_the_model_reads_what_it_will():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probelib.LocalPosterior(
            Lenient(), probelib.cross_entropy, ({"ids": IDS, "other": MASK}, LABELS), n_beta=1.0,
            localization=10.0, forward=lambda model, inputs: model(inputs["ids"]),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("burnin", "no argument 'burnin', .* is it 'burn_in'"),
        ("paramters", "is it 'parameters'"),
        ("observed_loss", "is it 'observe_loss'"),
        ("posterior", "no argument 'posterior'"),
        ("zzz", "leave it out"),
    ],
)
def test_arguments_that_a_series_does_not_have_are_named(name, match):
    with pytest.raises(TypeError, match=match):
        probelib.over_checkpoints(
            [nn.Linear(2, 2)], probelib.cross_entropy, (torch.randn(4, 2), torch.arange(4) % 2),
            n_beta=1.0, localization=1.0, sampler=probelib.SGLD(1e-3, 2), progress=False,
            **{name: 3},
        )  # fmt: skip
