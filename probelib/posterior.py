r"""The local posterior around trained weights (Eq. 1).

.. math::

   p(w) \propto \exp\!\Big[-n\beta\, L(w) - \tfrac{\gamma}{2} \lVert w - w^* \rVert^2\Big],
   \qquad L(w) = \tfrac1n \sum_i \ell_i(w)
"""

import copy
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from probelib.arguments import require_kind, require_positive
from probelib.data import Data, Samples
from probelib.fingerprint import describe, hash_array
from probelib.losses import cross_entropy
from probelib.randomness import keep_random_state

PerSampleLoss = Callable[[Tensor, Tensor], Tensor]

_CHECKED = 64  # samples, of as many labels, that are looked at before anything runs


class LocalPosterior:
    r"""The tempered posterior around trained weights, pinned to them by a Gaussian (Eq. 1).

    The caller's model is copied, never changed: weights are passed to the copy as arguments.
    Parameters with ``requires_grad=False`` stay at :math:`w^*`, so freezing all but some layers
    gives the posterior of those layers alone.

    Args:
        model: any ``nn.Module`` that maps a batch of inputs to a batch of outputs; its weights
            are :math:`w^*`.
        per_sample_loss: maps (output, target) to losses of shape (batch,), in nats.
        data: the samples that define :math:`L`: a pair of tensors (inputs, targets), or a
            map-style data set of (input, target).
        n_beta: :math:`n\beta`, the inverse temperature times the number of samples.
        localization: :math:`\gamma`, the *precision* of the Gaussian around :math:`w^*`.
        train_mode: run the model in train mode (dropout and batch normalisation active). The
            default is eval mode, whatever mode the caller's model is in.

    Raises:
        ValueError: a non-positive ``n_beta`` or ``localization``, non-finite data or weights,
            labels out of range, a loss that is not one finite number per sample.
        TypeError: data of a kind that cannot be indexed, a model that is no module, a loss that is
            no function.
    """

    def __init__(
        self,
        model: nn.Module,
        per_sample_loss: PerSampleLoss,
        data: Data,
        *,
        n_beta: float,
        localization: float,
        train_mode: bool = False,
    ):
        require_kind("model", model, nn.Module, "an nn.Module")
        require_kind("per_sample_loss", per_sample_loss, callable, "a function of (output, target)")
        self.n_beta = require_positive("n_beta", n_beta)
        self.localization = require_positive("localization", localization)
        self.per_sample_loss = per_sample_loss
        self.train_mode = train_mode

        #: The copy that is run, in the mode it runs in.
        self.model: nn.Module = copy.deepcopy(model).train(train_mode)
        trainable = {k: p.detach() for k, p in self.model.named_parameters() if p.requires_grad}
        if not trainable:
            raise ValueError(
                "model has no parameter with requires_grad=True; leave at least one free"
            )
        dtypes = {p.dtype for p in trainable.values()}
        devices = {p.device for p in trainable.values()}
        if len(dtypes) > 1 or dtypes.isdisjoint({torch.float32, torch.float64}):
            raise ValueError(
                f"model has parameters of type {', '.join(sorted(map(str, dtypes)))}; a chain "
                "needs them all in float32 (model.float()) or float64"
            )
        if len(devices) > 1:
            raise ValueError(
                f"model has parameters on {', '.join(sorted(map(str, devices)))}; "
                "move it to one device"
            )
        (self.dtype,), (self.device,) = dtypes, devices
        # As it was given, its tensors shared: what a forward writes on the copy that is run, such
        # as its last activations, is no setting.
        shared = {id(t): t for t in (*self.model.parameters(), *self.model.buffers())}
        self._as_given = copy.deepcopy(self.model, shared)
        self._names = list(trainable)
        self._shapes = [p.shape for p in trainable.values()]
        self._sizes = [p.numel() for p in trainable.values()]
        self._constants = {
            k: t.detach()
            for k, t in (*self.model.named_parameters(), *self.model.named_buffers())
            if k not in trainable
        }
        self._buffers = {k for k, _ in self.model.named_buffers()}
        #: w*, the trained weights, flattened: shape (n_parameters,).
        self.center: Tensor = torch.cat([p.reshape(-1) for p in trainable.values()])
        if not self.center.isfinite().all():
            raise ValueError("model has non-finite weights; a posterior around them has no centre")
        self.data = Samples(data, self.device)
        self.check(self.data)

    @property
    def n_parameters(self) -> int:
        """Number d of weights that move."""
        return self.center.numel()

    @property
    def n_samples(self) -> int:
        """Number n of samples that define L."""
        return len(self.data)

    @property
    def beta(self) -> float:
        """The inverse temperature: n_beta / n."""
        return self.n_beta / self.n_samples

    def losses(self, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Per-sample losses of a batch at ``weights``.

        Args:
            weights: flat weights, shape (n_parameters,).
            x: inputs, shape (batch, ...).
            y: targets, shape (batch, ...).

        Returns:
            Losses in nats, shape (batch,).
        """
        return self.per_sample_loss(self.outputs(weights, x), y)

    def outputs(self, weights: Tensor, x: Tensor) -> Tensor:
        """What the model makes of inputs (batch, ...) at flat ``weights`` (n_parameters,)."""
        parts = weights.split(self._sizes)
        moving = {k: w.reshape(s) for k, w, s in zip(self._names, parts, self._shapes, strict=True)}
        # A model may write to its buffers, as batch normalisation does: give it its own.
        fixed = {k: t.clone() if k in self._buffers else t for k, t in self._constants.items()}
        return functional_call(self.model, (moving, fixed), x)

    def mean_loss(self, weights: Tensor) -> Tensor:
        """L(w) over all samples, in nats (a scalar; differentiable, so keep the data small)."""
        x, y = self.data.batch(slice(0, self.n_samples))
        return self.losses(weights, x, y).mean()

    def potential(self, weights: Tensor) -> Tensor:
        """Minus the log density of Eq. 1, up to a constant: nb L(w) + gamma/2 |w - w*|²."""
        spread = (weights - self.center).pow(2).sum()
        return self.n_beta * self.mean_loss(weights) + 0.5 * self.localization * spread

    def check(self, samples: Samples) -> None:
        """Evaluate a few samples at w*, of up to 64 distinct labels, and name what is wrong.

        Raises:
            ValueError: a label is out of range, or the loss is not one finite number per sample
                that depends on this sample alone.
        """
        labels = samples.labels(read=False)
        if labels is None:
            index = np.arange(min(3, len(samples)))
        else:
            first = np.unique(labels, return_index=True)[1]
            some = np.linspace(0, len(first) - 1, min(len(first), _CHECKED), dtype=int)
            index = first[some]  # smallest and largest label among them
            if len(index) < 3 <= len(samples):  # one sample would hide a loss that is a scalar
                index = np.append(index, np.setdiff1d(np.arange(3), index))
        x, y = samples.batch(index)
        with torch.no_grad(), keep_random_state(self.device):
            try:
                output = self.outputs(self.center, x)
                if labels is not None and _takes_classes(self.per_sample_loss):
                    classes = output.shape[-1 if self.per_sample_loss is cross_entropy else 1]
                    if labels.min() < 0 or labels.max() >= classes:
                        raise ValueError(
                            f"{samples.name} has labels from {labels.min()} to {labels.max()}, but "
                            f"the model has {classes} outputs; labels must lie in "
                            f"[0, {classes - 1}]"
                        )
                loss = self.per_sample_loss(output, y)
            except (IndexError, RuntimeError) as error:
                raise ValueError(
                    f"model or per_sample_loss failed on {samples.name} at w* "
                    f"(input {tuple(x.shape)}, target {tuple(y.shape)}{_range(labels)}): {error}"
                ) from error
            _require_one_a_sample(loss, len(index))
            if not loss.isfinite().all():
                bad = int(index[int((~loss.isfinite()).nonzero()[0, 0])])
                raise ValueError(
                    f"per_sample_loss is not finite for sample {bad} of {samples.name} at w*; "
                    "check the sample, the loss and the weights"
                )
            if len(index) > 1 and not self.train_mode:
                self._require_separate(x, y, loss, index, samples.name)

    def _require_separate(
        self, x: Tensor, y: Tensor, loss: Tensor, index: np.ndarray, name: str
    ) -> None:
        """Refuse losses that depend on what else is in the batch: sums over a wrong axis."""
        half = len(index) // 2 + len(index) % 2
        try:
            part = self.losses(self.center, x[:half], y[:half])
        except (IndexError, RuntimeError) as error:
            raise ValueError(
                f"per_sample_loss takes a batch of {len(index)} but not of {half}: {error}"
            ) from error
        _require_one_a_sample(part, half)
        if torch.allclose(part, loss[:half], rtol=1e-2, atol=1e-4 * float(loss.abs().max())):
            return
        if torch.equal(self.losses(self.center, x, y), loss):  # else the model draws at random
            bad = int((part - loss[:half]).abs().argmax())
            raise ValueError(
                f"per_sample_loss is {part[bad]:.4g} for sample {index[bad]} of {name} in a batch "
                f"of {half} and {loss[bad]:.4g} in one of {len(index)}; it must depend on this "
                "sample alone (look for a mean or a broadcast over the batch)"
            )

    def fingerprint(self) -> dict[str, str | float | bool]:
        """What the posterior depends on, field by field; contents as SHA-256."""
        weights = hashlib.sha256()
        for name, tensor in [("w*", self.center), *sorted(self._constants.items())]:
            weights.update(name.encode())
            hash_array(weights, tensor)
        return {
            "weights": weights.hexdigest(),
            "model": describe(self._as_given, tensors=False),
            "per_sample_loss": describe(self.per_sample_loss),
            "sampling_data": self.data.fingerprint(),
            "n_beta": self.n_beta,
            "localization": self.localization,
            "train_mode": self.train_mode,
            "precision": str(self.dtype).removeprefix("torch."),
        }


def _range(labels: np.ndarray | None) -> str:
    return "" if labels is None else f", labels from {labels.min()} to {labels.max()}"


def _takes_classes(loss: PerSampleLoss) -> bool:
    """Whether targets are class indices: no other value has a meaning."""
    known = cross_entropy, F.cross_entropy, F.nll_loss
    return loss in known or isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss)


def _require_one_a_sample(loss: Any, batch: int) -> None:
    if not isinstance(loss, Tensor) or loss.shape != (batch,):
        got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"per_sample_loss returned {got} for a batch of {batch}; it must return one "
            f"loss per sample, shape ({batch},) (for a torch loss: reduction='none')"
        )


__all__ = [
    "LocalPosterior",
    "PerSampleLoss",
]
