"""Networks as their users bring them, in the lines that these would write.

Weights are random and the networks small: what is looked at is that a call works as it stands, and
that its numbers are those of a loop written by hand.
"""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from torch import nn

import probelib

pytestmark = pytest.mark.usefixtures("one_thread")
FEW = {"chains": 2, "draws": 6, "burn_in": 2, "progress": False}
SAMPLER = probelib.LeimkuhlerMatthews(step_size=1e-4, batch_size=4)


def probed(posterior, **options):
    """A short trace, whose first chain can be told from its second, and moves."""
    trace = probelib.sample(posterior, sampler=SAMPLER, **(FEW | options))
    assert trace.loss.std("draw").max() > 0
    assert float(abs(trace.loss[0] - trace.loss[1]).max()) > 0
    gain = probelib.loss_gain(trace)
    assert (gain.isnull() == trace.init_loss.isnull()).all()
    assert np.isfinite(probelib.local_learning_coefficient(trace).value)
    return trace


@pytest.fixture(scope="module")
def text():
    """Token ids with padding (0), the attention mask, and what comes next (-100: nothing does)."""
    torch.manual_seed(0)
    ids = torch.randint(1, 30, (8, 7))
    mask = torch.arange(7) < torch.randint(3, 8, (8, 1))
    ids = ids * mask
    target = torch.where(mask, ids, -100).roll(-1, 1)
    target[:, -1] = -100
    return {"input_ids": ids, "attention_mask": mask.long()}, target


@pytest.fixture(scope="module")
def gpt2():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=30, n_positions=8, n_embd=8, n_layer=2, n_head=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def test_gpt2_token_by_token(gpt2, text):
    inputs, target = text
    posterior = probelib.LocalPosterior(
        gpt2,
        probelib.sequence_cross_entropy,
        (inputs, target),
        n_beta=10,
        localization=1e3,
        parameters="transformer.h.1.*",
    )
    trace = probed(posterior, observe_loss=probelib.token_cross_entropy)
    gain = probelib.loss_gain(trace)  # (sample, token)
    near = probelib.loss_kernel(trace).top_correlated(k=3).to_dataframe()

    gpt2.eval()
    with torch.no_grad():
        logits = gpt2(**inputs).logits
    wanted = nn.functional.cross_entropy(logits.transpose(1, 2), target, reduction="none")
    wanted[target == -100] = torch.nan
    np.testing.assert_allclose(trace.init_loss, wanted, rtol=1e-4)
    assert gain.dims == ("sample", "token")
    assert {"sample_id", "token", "token_id", "q_value"} <= set(near.columns)
    np.testing.assert_array_equal(trace.token_id, target)
    # Padding does not count: its tokens could be any.
    other = {**inputs, "input_ids": torch.where(inputs["attention_mask"] > 0,
                                                inputs["input_ids"], 7)}  # fmt: skip
    same = probelib.LocalPosterior(
        gpt2, probelib.sequence_cross_entropy, (other, target), n_beta=10, localization=1e3,
        parameters="transformer.h.1.*",
    )  # fmt: skip
    again = probed(same, observe_loss=probelib.token_cross_entropy)
    np.testing.assert_allclose(again.loss, trace.loss, rtol=1e-3, atol=1e-4)


def test_one_attention_head_of_gpt2(gpt2, text):
    """The refined LLC of a head: its columns of the projection to queries, keys and values."""
    mask = torch.zeros(1, 3, 2, 4, dtype=torch.bool)  # of (8, 24): q, k, v, two heads of four
    mask[:, :, 1] = True
    posterior = probelib.LocalPosterior(
        gpt2, probelib.sequence_cross_entropy, text, n_beta=10, localization=1e3,
        parameters={"transformer.h.0.attn.c_attn.weight": mask.reshape(1, 24)},
    )  # fmt: skip
    assert posterior.n_parameters == 8 * 12
    trace = probed(posterior)
    moved = posterior.whole(posterior.center + 1.0)["transformer.h.0.attn.c_attn.weight"]
    weight = gpt2.transformer.h[0].attn.c_attn.weight
    np.testing.assert_array_equal((moved != weight)[0].reshape(3, 2, 4)[:, 0], np.zeros((3, 4)))
    assert trace.attrs["config"]["n_parameters"] == 96


def test_a_language_model_is_the_same_in_every_process(gpt2):
    """Or no cache would find what another process computed."""
    code = """if True:
        import torch, transformers
        from probelib.fingerprint import describe
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config.from_dict({config}))
        print(describe(model, tensors=False))"""
    code = code.replace("{config}", repr(gpt2.config.to_dict()))
    once, again = (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
        ).stdout
        for seed in (1, 2)
    )  # fmt: skip
    assert len(once.strip()) == 64  # all of it was followed
    assert once == again


def test_bert_with_a_head_for_classes(text):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=8, num_labels=3,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    labels = torch.arange(8) % 3
    items = [{k: v[i] for k, v in text[0].items()} | {"labels": labels[i]} for i in range(8)]
    posterior = probelib.LocalPosterior(
        model, probelib.cross_entropy, items, n_beta=10, localization=1e3
    )
    trace = probed(posterior)
    model.eval()
    with torch.no_grad():
        wanted = nn.functional.cross_entropy(model(**text[0]).logits, labels, reduction="none")
    np.testing.assert_allclose(trace.init_loss, wanted, rtol=1e-4)
    np.testing.assert_array_equal(trace.label, labels)


def test_torchvisions_resnet_with_its_last_block_moving():
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=4)
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6) % 4
    posterior = probelib.LocalPosterior(
        model, probelib.cross_entropy, (images, labels), n_beta=10, localization=1e3,
        parameters=["layer4.1.*", "fc.*"],
    )  # fmt: skip
    trace = probed(posterior, draws=3, chains=2)
    model.eval()
    with torch.no_grad():
        wanted = nn.functional.cross_entropy(model(images), labels, reduction="none")
    np.testing.assert_allclose(trace.init_loss, wanted, rtol=1e-3)
    assert "is computed once" in trace.attrs["prefix"]


def test_a_recurrent_network_over_sequences():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.head = nn.GRU(3, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, x):
            return self.head(self.gru(x)[0])

    torch.manual_seed(0)
    model, x, tags = Tagger(), torch.randn(9, 4, 3), torch.randint(0, 2, (9, 4))
    posterior = probelib.LocalPosterior(
        model, probelib.sequence_cross_entropy, (x, tags), n_beta=10, localization=1e2
    )
    trace = probed(posterior, observe_loss=probelib.token_cross_entropy)
    with torch.no_grad():
        wanted = nn.functional.cross_entropy(model(x).transpose(1, 2), tags, reduction="none")
    np.testing.assert_allclose(trace.init_loss, wanted, rtol=1e-4)


def test_a_segmentation_head_pixel_by_pixel():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    images, masks = torch.randn(5, 1, 6, 6), torch.randint(0, 3, (5, 6, 6))

    def pixels(output, target):
        return probelib.token_cross_entropy(output.movedim(1, -1), target)

    posterior = probelib.LocalPosterior(
        model, lambda o, t: pixels(o, t).flatten(1).mean(1), (images, masks),
        n_beta=10, localization=1e2,
    )  # fmt: skip
    trace = probed(posterior, observe_loss=pixels)
    gain = probelib.loss_gain(trace).values.reshape(5, *trace.attrs["token_shape"])
    assert gain.shape == (5, 6, 6)


def test_a_regression_on_dicts_of_two_kinds_of_features():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(4, 2), nn.Linear(5, 1)

        def forward(self, kind, numbers):
            return self.out(torch.cat([self.embed(kind), numbers], 1)).squeeze(1)

    class Houses(torch.utils.data.Dataset):
        def __init__(self):
            generator = torch.Generator().manual_seed(0)
            self.kind = torch.randint(0, 4, (10,), generator=generator)
            self.numbers = torch.randn(10, 3, generator=generator)

        def __len__(self):
            return 10

        def __getitem__(self, i):
            return {"kind": self.kind[i], "numbers": self.numbers[i]}, self.numbers[i].sum()

    torch.manual_seed(0)
    model, houses = Wide(), Houses()
    posterior = probelib.LocalPosterior(
        model, probelib.squared_error, houses, n_beta=10, localization=1e2
    )
    trace = probed(posterior)
    with torch.no_grad():
        wanted = (model(houses.kind, houses.numbers) - houses.numbers.sum(1)).pow(2) / 2
    np.testing.assert_allclose(trace.init_loss, wanted, rtol=1e-4, atol=1e-6)


def test_a_timm_model_by_name():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3, pretrained=False)
    size = model.patch_embed.img_size
    images, labels = torch.randn(5, 3, *size), torch.arange(5) % 3
    posterior = probelib.LocalPosterior(
        model, probelib.cross_entropy, (images, labels), n_beta=10, localization=1e3,
        parameters="head.*",
    )  # fmt: skip
    trace = probed(posterior, draws=3)
    model.eval()
    with torch.no_grad():
        wanted = nn.functional.cross_entropy(model(images), labels, reduction="none")
    np.testing.assert_allclose(trace.init_loss, wanted, rtol=1e-3)


def test_low_rank_weights_around_a_frozen_layer():
    class LoRA(nn.Module):
        def __init__(self, base, rank=2):
            super().__init__()
            self.base = base.requires_grad_(False)
            self.down = nn.Parameter(torch.randn(rank, base.in_features) / 10)
            self.up = nn.Parameter(torch.zeros(base.out_features, rank))

        def forward(self, x):
            return self.base(x) + x @ self.down.T @ self.up.T

    torch.manual_seed(0)
    model = nn.Sequential(LoRA(nn.Linear(6, 8)), nn.ReLU(), LoRA(nn.Linear(8, 3)))
    x, y = torch.randn(12, 6), torch.arange(12) % 3
    posterior = probelib.LocalPosterior(
        model, probelib.cross_entropy, (x, y), n_beta=10, localization=1e2
    )
    assert posterior.n_parameters == 2 * (6 + 8) + 2 * (8 + 3)
    trace = probed(posterior)
    with torch.no_grad():
        wanted = nn.functional.cross_entropy(model(x), y, reduction="none")
    np.testing.assert_allclose(trace.init_loss, wanted, rtol=1e-4)


def test_ten_checkpoints_in_one_call(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(30, 4)
    y = (x[:, 0] > 0).long()
    model, checkpoints = nn.Linear(4, 2), {}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        if step % 10 == 9:
            checkpoints[step + 1] = {k: v.clone() for k, v in model.state_dict().items()}
    series = probelib.over_checkpoints(
        checkpoints, probelib.cross_entropy, (x, y), n_beta=10, localization=10, model=model,
        sampler=probelib.LeimkuhlerMatthews(step_size=1e-2, batch_size=8), store=tmp_path, **FEW,
    )  # fmt: skip
    assert series.sizes["checkpoint"] == 10
    table = probelib.checkpoint_table(series)
    assert list(table.index) == list(range(10, 101, 10))
    change = probelib.compare(series.sel(checkpoint=10), series.sel(checkpoint=100))
    assert change.paired


def test_features_of_a_kernel_in_a_pipeline_of_scikit_learn(gpt2, text):
    posterior = probelib.LocalPosterior(
        gpt2, probelib.sequence_cross_entropy, text, n_beta=10, localization=1e3,
        parameters="*.h.1.*",
    )  # fmt: skip
    kernel = probelib.loss_kernel(probed(posterior))
    features = FunctionTransformer(lambda rows: kernel.features(4, rows=rows))
    pipeline = make_pipeline(features, LogisticRegression())
    pipeline.fit(np.arange(8), np.arange(8) % 2)
    assert pipeline.predict(np.arange(8)).shape == (8,)


def test_the_examples_of_the_readme(gpt2, tmp_path, monkeypatch):
    """A language model, and checkpoints; the first example runs with the wheel."""
    page = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    (language,) = [block for block in blocks if "token_cross_entropy" in block]
    (training,) = [block for block in blocks if "over_checkpoints" in block]
    assert len([line for line in language.splitlines() if line.strip()]) <= 15
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        probelib, "sample", functools.partial(probelib.sample, chains=2, draws=4, progress=False)
    )
    torch.manual_seed(0)
    tokens = {"input_ids": torch.randint(0, 30, (20, 8)),
              "attention_mask": torch.ones(20, 8, dtype=torch.long)}  # fmt: skip
    tokens["attention_mask"][3, 5:] = 0
    found = {"probelib": probelib, "tokenizer": lambda texts, **_: tokens, "texts": [],
             "model": gpt2}  # fmt: skip
    exec(language.replace("transformer.h.11.*", "transformer.h.1.*"), found)
    assert found["gain"].shape == (20, 8)
    assert found["gain"][3].isnull().values.tolist() == [False] * 4 + [True] * 4
    model, x = nn.Linear(3, 2), torch.randn(70, 3)
    files = {}
    for step in (100, 200):
        nn.init.normal_(model.weight)
        files[step] = tmp_path / f"{step}.safetensors"
        save_file(model.state_dict(), files[step])
    found = {"probelib": probelib, "files": files, "model": model,
             "data": (x, (x[:, 0] > 0).long())}  # fmt: skip
    exec(training.replace('store="training"', 'store="training", draws=4, progress=False'), found)
    assert list(found["series"].checkpoint.values) == [100, 200]
