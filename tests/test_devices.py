"""Chains shared out over devices are the chains of one call."""

import numpy as np
import pytest
import torch
from torch import nn

import probelib
from probebook.devices import available_devices, sample_over

pytestmark = pytest.mark.usefixtures("one_thread")


def posterior_on(device):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(30, 3, generator=generator), torch.randint(0, 2, (30,), generator=generator)
    model = nn.Linear(3, 2)
    model.weight.data = torch.tensor([[0.3, -0.2, 0.1], [0.0, 0.4, -0.3]])
    model.bias.data.zero_()
    return probelib.LocalPosterior(
        model.to(device),
        probelib.cross_entropy,
        tuple(d.to(device) for d in data),
        n_beta=5.0,
        localization=3.0,
    )


@pytest.mark.parametrize("devices", [1, 2, 3, 7])
def test_the_trace_is_that_of_one_call(devices, tmp_path):
    options = {"sampler": probelib.SGLD(0.05, 8), "draws": 6, "seed": 2, "progress": False}
    whole = probelib.sample(posterior_on("cpu"), chains=5, **options)
    shared = sample_over(["cpu"] * devices, posterior_on, chains=5, cache=tmp_path, **options)
    for name in ("loss", "distance", "sampling_loss", "init_loss"):
        assert shared[name].dims == whole[name].dims
        np.testing.assert_allclose(shared[name], whole[name], rtol=1e-5)
    assert shared.attrs["config"]["chains"] == 5
    assert len(list(tmp_path.glob("*.zarr"))) == min(devices, 5)
    np.testing.assert_allclose(
        probelib.loss_kernel(shared).correlation(),
        probelib.loss_kernel(whole).correlation(),
        atol=1e-4,
    )


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="give cache"):
        sample_over(["cpu"], posterior_on, chains=2, store=tmp_path / "a.zarr")
    with pytest.raises(ValueError, match="until would stop each device's chains"):
        sample_over(["cpu"], posterior_on, chains=2, until=0.1)
    with pytest.raises(ValueError, match=r"devices is \[\] for 2 chains"):
        sample_over([], posterior_on, chains=2)
    assert available_devices()
