r"""The local posterior around trained weights (Eq. 1).

.. math::

   p(w) \propto \exp\!\Big[-n\beta\, L(w) - \tfrac{\gamma}{2} \lVert w - w^* \rVert^2\Big],
   \qquad L(w) = \tfrac1n \sum_i \ell_i(w)
"""

import copy
import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from probelib import soundness
from probelib.ambient import undisturbed
from probelib.arguments import require_kind, require_positive
from probelib.batches import Tree, anew, in_full, tree_leaves, tree_map
from probelib.calling import Call, Forward, given_to
from probelib.copies import Restored, copy_of, sharing_tensors, version
from probelib.data import Data, Samples
from probelib.fingerprint import describe, hash_array
from probelib.parts import Parameters, Parts
from probelib.prepared import in_half, prepared, widen

PerSampleLoss = Callable[[Any, Any], Tensor]


class LocalPosterior:
    r"""The tempered posterior around trained weights, pinned to them by a Gaussian (Eq. 1).

    The caller's model, loss and data are copied, never changed: weights are passed to the copy as
    arguments, and what a forward leaves on the model is undone. Losses and gradients do not depend
    on what surrounds a call, such as autocast, inference mode or a fast path without gradients.
    Which weights move is what ``parameters`` says, and all others stay at :math:`w^*`: the
    posterior of a layer, of an attention head, of single weights. Tied weights are one parameter,
    which moves at all its places whichever of its names is given. With ``parameters``, chains
    compute what comes before the first weight that moves only once, where :mod:`probelib.prefix`
    finds that they can.

    A model with parameters in bfloat16 or float16 is run in float32 as a whole, from the same
    :math:`w^*`, and inputs and targets in half precision are taken in float32: half precision would
    round away most of a step, and most of what it does to a loss. So :math:`\ell_i(w^*)` may differ
    from the model's own in the digits that this one rounds. A model that :func:`torch.compile`,
    ``nn.DataParallel`` or ``DistributedDataParallel`` wraps is run without the wrapper, by the
    names of the plain model.

    Args:
        model: any ``nn.Module`` that maps a batch of inputs to a batch of outputs; its weights
            are :math:`w^*`.
        per_sample_loss: maps (output, target) to losses of shape (batch,), in nats. It gets what
            the model returns, with one exception: of an object with a tensor ``logits``, as Hugging
            Face models return, the losses of this library and of torch get these logits.
        data: the samples that define :math:`L`: a pair (inputs, targets), each a tensor or tensors
            in a dict, a tuple, a data class...; a mapping of tensors with the key ``labels``, which
            are the targets (the model is not given them); or a map-style data set of such samples.
            See :class:`probelib.data.Samples`. Labels are compared as they are: those of a causal
            language model have to be shifted by the loss, or in the data.
        n_beta: :math:`n\beta`, the inverse temperature times the number of samples.
        localization: :math:`\gamma`, the *precision* of the Gaussian around :math:`w^*`; None:
            :func:`probelib.calibrate` finds one, by itself or for :func:`probelib.sample` without
            a sampler, and nothing else can be computed before.
        parameters: which weights move. None: the parameters with ``requires_grad=True``. Else it
            alone decides, and ``requires_grad`` counts for nothing: a name or glob, such as
            ``"head.*"`` (as in ``model.named_parameters()``; a ``*`` goes across dots); a list of
            these; a function (name, parameter) -> bool, or a boolean mask of the parameter's shape;
            or a dict of name or glob -> mask (True for all of it), whose every dimension is as
            long as the parameter's, or 1. What is named more than once moves where any says so.
        train_mode: run the model in train mode (dropout and batch normalisation active). The
            default is eval mode, whatever mode the caller's model is in.
        forward: a function of (model, inputs) that says how the model is called, such as
            ``lambda model, inputs: model(**inputs).logits``. By default a mapping or a named tuple
            is passed by keyword, if the model's ``forward`` takes its keys (all of them, if it has
            ``**kwargs``: then a key that changes nothing, perhaps mistyped, is warned of); a tuple
            or a list by position, if ``forward`` takes several arguments; anything else as one
            argument.

    Raises:
        ValueError: a non-positive ``n_beta`` or ``localization``, non-finite data or weights,
            labels out of range, inputs that are not the model's arguments, a loss that is not one
            finite number per sample, that depends on the rest of the batch, or on whether gradients
            are taken; a model that writes its own weights, or is not initialised yet; parameters
            that it does not have, a mask that does not fit, nothing that moves.
        TypeError: data of a kind that cannot be indexed, a model that is no module, a loss that is
            no function, or such a ``forward``; parameters of another kind.
    """

    @undisturbed
    def __init__(
        self,
        model: nn.Module,
        per_sample_loss: PerSampleLoss,
        data: Data,
        *,
        n_beta: float,
        localization: float | None = None,
        parameters: Parameters | None = None,
        train_mode: bool = False,
        forward: Forward | None = None,
    ):
        require_kind("model", model, nn.Module, "an nn.Module")
        require_kind("per_sample_loss", per_sample_loss, callable, "a function of (output, target)")
        self.n_beta = require_positive("n_beta", n_beta)
        self._localization = (
            None if localization is None else require_positive("localization", localization)
        )
        if forward is not None:
            require_kind("forward", forward, callable, "a function of (model, inputs), or None")
        self.train_mode = train_mode
        soundness.require_runnable(model)
        #: The copy that is run, in the mode and the precision it runs in.
        self.model: nn.Module = prepared(model).train(train_mode)
        names = [name for name, _ in self.model.named_parameters()]
        given: dict[str, Tensor] = dict(zip(names, model.parameters(), strict=False))
        #: Whether it came in half precision, in which samples may come as well.
        self.widened: bool = in_half(self.model)
        if self.widened:
            widen(self.model)
        self.per_sample_loss = own_loss(per_sample_loss, self.widened)
        self._call = Call(self.model, None if forward is None else own_loss(forward, self.widened))
        self._restored: Restored | None = None
        # Whether model or loss write into a batch, which is then copied for each of them.
        self._writes = True
        self._parts = Parts(self.model, parameters)
        moving = [p for k, p in self.model.named_parameters() if k in self._parts.sizes]
        self.dtype, self.device = _type_and_device(moving)
        # As it was given, its tensors shared: what a forward writes on the copy that is run, such
        # as its last activations, is no setting.
        self._as_given = sharing_tensors(self.model, self.model)
        self._constants = {
            k: t.detach()
            for k, t in (*self.model.named_parameters(), *self.model.named_buffers())
            if k not in self._parts.sizes
        }
        self._buffers = {k for k, _ in self.model.named_buffers()}
        self._places = _places(self.model)
        #: w*, the trained weights that move, flattened: shape (n_parameters,).
        self.center: Tensor = self._parts.taken_from(self.model)
        if not self.center.isfinite().all():
            raise ValueError("model has non-finite weights; a posterior around them has no centre")
        self.data = Samples(data, self.device)
        restored = Restored(self.model, lambda: soundness.check_model(self, self.data, given))
        if restored.changed:
            self._restored = restored
        self._writes = soundness.writes_batch(self, self.data)
        #: The precision in which losses are computed.
        self.loss_dtype: torch.dtype = soundness.check_samples(self, self.data)
        soundness.check_tokens(self.per_sample_loss, self.data)
        soundness.warn_of_unread(self, self.data)

    @property
    def localization(self) -> float:
        """The precision gamma of the Gaussian around w* (ValueError: it has none yet)."""
        if self._localization is None:
            raise ValueError(
                "posterior has localization None, which says nothing about how far its draws may "
                "go from w*; give one, or take probelib.calibrate(posterior).posterior"
            )
        return self._localization

    @property
    def is_localized(self) -> bool:
        """Whether it has a localization; without one only :func:`probelib.calibrate` takes it."""
        return self._localization is not None

    def at(
        self, *, n_beta: float | None = None, localization: float | None = None
    ) -> "LocalPosterior":
        """The same network and data under Eq. 1 with another n beta, localization or both.

        Args:
            n_beta, localization: the new ones; None leaves it as it is.

        Returns:
            A posterior of its own, which shares weights, model and data with this one.
        """
        other = self.apart()
        if n_beta is not None:
            other.n_beta = require_positive("n_beta", n_beta)
        if localization is not None:
            other._localization = require_positive("localization", localization)
        return other

    @property
    def n_parameters(self) -> int:
        """Number d of weights that move."""
        return self.center.numel()

    @property
    def parameters(self) -> dict[str, int]:
        """How many weights of each parameter move, by its name, in the order of ``center``."""
        return self._parts.sizes

    @property
    def is_part(self) -> bool:
        """Whether other weights move than those that ask for a gradient."""
        return self._parts.chosen

    @property
    def leaves_traces(self) -> bool:
        """Whether a forward leaves something on the model, which each call then undoes."""
        return self._restored is not None

    @property
    def called_by_hand(self) -> bool:
        """Whether a function of the caller's says how the model is called."""
        return self._call.forward is not None

    @property
    def n_samples(self) -> int:
        """Number n of samples that define L."""
        return len(self.data)

    @property
    def beta(self) -> float:
        """The inverse temperature: n_beta / n."""
        return self.n_beta / self.n_samples

    @undisturbed
    def losses(self, weights: Tensor, x: Tree, y: Tree) -> Tensor:
        """Per-sample losses of a batch at ``weights``.

        Args:
            weights: flat weights, shape (n_parameters,).
            x: inputs, shape (batch, ...), in containers as the data have them.
            y: targets, shape (batch, ...), likewise.

        Returns:
            Losses in nats, shape (batch,).
        """
        return self.loss_of(self.outputs(weights, x), y)

    @undisturbed
    def outputs(self, weights: Tensor, x: Tree) -> Any:
        """What the model makes of inputs (batch, ...) at flat ``weights`` (n_parameters,).

        Raises:
            ValueError: the model writes into the weights that it is given.
        """
        own, x = weights.clone(), self._own_batch(x)
        moving = self.whole(own)
        before = self._parts.versions(own, moving), _versions(x)
        output = self.run(moving, x)
        if self._parts.versions(own, moving) != before[0]:
            raise soundness.written_weights()
        self._require_unwritten(x, before[1], "model", "its inputs")
        return output

    def loss_of(self, output: Any, y: Tree) -> Tensor:
        """Losses (batch,) of outputs, which belong to this call; targets (batch, ...) do not."""
        y = self._own_batch(self.in_own_type(y))
        before = _versions(y)
        loss = self.per_sample_loss(given_to(self.per_sample_loss, output), anew(y))
        self._require_unwritten(y, before, "per_sample_loss", "its targets")
        return loss

    def in_own_type(self, batch: Tree) -> Tree:
        """Inputs or targets as the model and losses get them: in float32 if it came in less."""
        return in_full(batch) if self.widened else batch

    def _own_batch(self, batch: Tree) -> Tree:
        return tree_map(Tensor.clone, batch) if self._writes else batch

    def _require_unwritten(self, batch: Tree, before: list[int], who: str, what: str) -> None:
        if not self._writes and _versions(batch) != before:
            raise ValueError(
                f"{who} writes into {what} for some samples and not for others, so that the data "
                "are no longer what they were; let it write into a copy, made with .clone()"
            )

    def forward(self, weights: Tensor, x: Tree) -> Any:
        """:meth:`outputs` of a model that may write into what it is given."""
        return self.run(self.whole(weights), x)

    def whole(self, weights: Tensor) -> dict[str, Tensor]:
        """By name, the parameters of which flat ``weights`` (n_parameters,) are what moves."""
        return self._parts.put_into(weights)

    def run(self, moving: dict[str, Tensor], x: Tree) -> Any:
        """:meth:`forward` with the parameters of :meth:`whole`."""
        x = self.in_own_type(x)
        # A model may write to its buffers, as batch normalisation does: give it its own.
        fixed = {k: t.clone() if k in self._buffers else t for k, t in self._constants.items()}
        tensors = moving | fixed
        every = {place: t for name, t in tensors.items() for place in self._places[name]}
        try:
            return self._call(self.model, every, x)
        finally:
            if self._restored is not None:
                self._restored(self.model)

    def mean_loss(self, weights: Tensor) -> Tensor:
        """L(w) over all samples, in nats (a scalar; differentiable, so keep the data small)."""
        x, y = self.data.batch(slice(0, self.n_samples))
        return self.losses(weights, x, y).mean()

    def potential(self, weights: Tensor) -> Tensor:
        """Minus the log density of Eq. 1, up to a constant: nb L(w) + gamma/2 |w - w*|²."""
        spread = (weights - self.center).pow(2).sum()
        return self.n_beta * self.mean_loss(weights) + 0.5 * self.localization * spread

    def keys_of_any_name(self, samples: Samples) -> list[str]:
        """Keys of the inputs that the model takes with its ``**kwargs`` alone."""
        return self._call.by_any_name(samples.batch(slice(0, 1))[0])

    @undisturbed
    def check(self, samples: Samples) -> None:
        """Evaluate some samples, of up to 64 distinct labels, and name what is wrong.

        Raises:
            ValueError: a label is out of range, or the loss is not one finite number per sample
                that depends on this sample alone, and is the same with and without gradients.

        Warns:
            UserWarning: the model takes inputs with ``**kwargs`` that it does not read.
        """
        soundness.check_samples(self, samples)
        soundness.warn_of_unread(self, samples)

    def apart(self) -> "LocalPosterior":
        """The same posterior, whose model a call may use beside others in other threads."""
        own = copy.copy(self)
        own.model = sharing_tensors(self.model, self.model)
        return own

    def fingerprint(self) -> dict[str, str | float | bool | None]:
        """What the posterior depends on, field by field; contents as SHA-256."""
        weights = hashlib.sha256()
        constants = self._constants | self._parts.constants()
        for name, tensor in [("w*", self.center), *sorted(constants.items())]:
            weights.update(name.encode())
            hash_array(weights, tensor)
        return {
            **({"parameters": self._parts.fingerprint()} if self.is_part else {}),
            "weights": weights.hexdigest(),
            "model": describe(self._as_given, tensors=False),
            "per_sample_loss": describe(self.per_sample_loss),
            "sampling_data": self.data.fingerprint(),
            "n_beta": self.n_beta,
            "localization": self._localization,
            "train_mode": self.train_mode,
            "precision": str(self.dtype).removeprefix("torch."),
            # Named only where there is one.
            **({} if self._call.forward is None else {"forward": describe(self._call.forward)}),
        }


def _type_and_device(moving: list[nn.Parameter]) -> tuple[torch.dtype, torch.device]:
    """The one type and device that all weights that move have."""
    dtypes, devices = {p.dtype for p in moving}, {p.device for p in moving}
    if len(dtypes) > 1 or dtypes.isdisjoint({torch.float32, torch.float64}):
        raise ValueError(
            f"model has parameters of type {', '.join(sorted(map(str, dtypes)))}; a chain "
            "needs them all in float32 (model.float()) or float64"
        )
    if len(devices) > 1:
        raise ValueError(
            f"model has parameters on {', '.join(sorted(map(str, devices)))}; move it to one device"
        )
    return dtypes.pop(), devices.pop()


def _places(model: nn.Module) -> dict[str, list[str]]:
    """By the name of each parameter and buffer, every place that it is kept at.

    Several, where weights are tied. A module that is reached by several names counts once: torch
    would set its weights twice, and then take the set ones for its own.
    """
    found: dict[int, list[str]] = {}
    for at, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                found.setdefault(id(tensor), []).append(f"{at}.{name}" if at else name)
    return {places[0]: places for places in found.values()}


def _versions(batch: Tree) -> list[int]:
    return [version(leaf) for leaf in tree_leaves(batch)]


def own_loss(function: Any, wide: bool) -> Any:
    """A loss, or what calls the model, that nobody else can change: a copy, where it can be copied.

    Weights of its own, such as a temperature, belong to it as they are; ``wide``: in float32
    where they are in half precision, like the model.
    """
    try:
        own = copy_of(function)
    except Exception:  # it holds what cannot be copied, such as a file or a lock
        return function
    if isinstance(own, nn.Module):
        own.requires_grad_(False)
        if wide:
            widen(own)
    return own


__all__ = [
    "LocalPosterior",
    "PerSampleLoss",
    "own_loss",
]
