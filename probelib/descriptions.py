"""What every variable of a trace is, and its unit, as xarray's plots and tables show them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import xarray as xr

Data = TypeVar("Data", bound="xr.Dataset")
#: Of variables and coordinates: ``long_name`` and ``units``.
DESCRIPTIONS = {
    "loss": ("loss at the draws, l_i(w)", "nats"),
    "init_loss": ("loss at w*, l_i(w*)", "nats"),
    "init_loss_mcse": ("standard error of the loss at w*", "nats"),
    "distance": ("distance from w*, |w - w*|", "1"),
    "sampling_loss": ("minibatch loss before the step", "nats"),
    "gradient_square": ("g'G g of the step's gradient", "nats^2"),
    "gradient_along": ("g'G (w - w*) of the step's gradient", "nats"),
    "gradient_repeat": ("g'G h, with h the gradient of the step before", "nats^2"),
    "acceptance": ("probability with which the step's proposal is taken", "1"),
    "log_weight": ("log weight of the draw", "1"),
    "log_weight_error": ("standard error of the log weight", "1"),
    "mean_loss": ("mean loss over the data, L(w)", "nats"),
    "kernel": ("loss kernel of N(w*, I / gamma)", "nats^2"),
    "products": ("weighted products of gradients over gamma", "nats^2"),
    "layer": ("parameter whose weights add this", "1"),
    "chain": ("chain", "1"),
    "sample_id": ("position in the data set", "1"),
    "label": ("label", "1"),
    "sample_loss": ("loss of the whole sample at the draws", "nats"),
    "init_sample_loss": ("loss of the whole sample at w*", "nats"),
    "init_sample_loss_mcse": ("standard error of the loss of the whole sample at w*", "nats"),
    "token": ("position in the sample", "1"),
    "token_id": ("target at the position", "1"),
}


def described(data: Data) -> Data:
    """A data set whose variables say what they are (``long_name``) and in which ``units``.

    It is changed in place; what a variable says already stays.
    """
    for name, (long_name, units) in DESCRIPTIONS.items():
        if name in data.variables:
            own = data[name].attrs
            data[name].attrs = {"long_name": long_name, "units": units} | own
    return data


__all__ = ["DESCRIPTIONS", "described"]
