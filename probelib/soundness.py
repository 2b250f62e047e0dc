"""What must hold of a model and a loss, so that l_i(w) is a function of the weights and sample i.

All of it is looked at on a few samples before anything runs, at w* and at weights nearby.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from probelib.batches import Tree, anew, parts_of, rows, shapes, tree_leaves, tree_map, with_parts
from probelib.calling import given_to
from probelib.data import Samples
from probelib.losses import cross_entropy, sequence_cross_entropy, token_cross_entropy
from probelib.randomness import keep_host_random_state, keep_random_state

if TYPE_CHECKING:
    from probelib.posterior import LocalPosterior

_CHECKED = 64  # samples, of as many labels, whose losses are looked at
_DIFFERENT = 8  # samples, as different as there are, that are looked at closely


def require_runnable(model: nn.Module) -> None:
    """Refuse modules that take no weights as arguments, and lazy ones without any (ValueError)."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ValueError(
            "model is made by torch.jit, or holds what is, which takes no weights as arguments; "
            "give the module that it was made from"
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(
                f"model has no {name} yet, as its layer is lazy; run it once on a batch before"
            )


def written_weights() -> ValueError:
    """What is said of a model that is no function of its weights."""
    return ValueError(
        "model writes its own weights in its forward, so that its loss has no gradient with "
        "respect to them; take out what does (max_norm=, clamping or normalising in place), or "
        "compute new weights from them, as torch.nn.utils.parametrize does"
    )


def check_model(posterior: LocalPosterior, samples: Samples, given: dict[str, Tensor]) -> None:
    """Refuse a model that writes its weights, or makes new ones (ValueError); other faults wait.

    It is run at w*, nearby and far away, where what limits the size of weights has something to do.

    Args:
        posterior: its model is the copy that is run.
        samples: some of them are what it is run on.
        given: the caller's parameters by the names of the copy, as they were.
    """
    index = samples.differing(_DIFFERENT)
    x, y = samples.batch(index)
    model, center = posterior.model, posterior.center
    far = center + 1e3 * (1 + center.abs())
    for weights, grad in ((center, True), *((w, False) for w in (*_probes(center), far))):
        own, same = posterior.whole(weights.clone()), posterior.whole(weights.clone())
        # What fails is said with the samples, where it fails at w* too.
        with torch.set_grad_enabled(grad), _same_chance(posterior), suppress(Exception):
            posterior.loss_of(posterior.run(own, tree_map(Tensor.clone, x)), y)
        if not all(torch.equal(own[k], same[k]) for k in own):
            raise written_weights()
    for name, parameter in model.named_parameters():
        if name not in given:
            raise ValueError(
                f"model makes {name} in its forward, so that it is no part of w*; run the model "
                "once on a batch before"
            )
        kept = given[name].detach().to(parameter.dtype)
        if not torch.allclose(parameter.detach(), kept, rtol=0, atol=0, equal_nan=True):
            raise written_weights()


def writes_batch(posterior: LocalPosterior, samples: Samples) -> bool:
    """Whether model or loss write in place into inputs or targets, as far as a few show."""
    given = samples.batch(samples.differing(_DIFFERENT))
    batch = tree_map(Tensor.clone, given)
    leaves = tree_leaves(batch)
    versions = [t._version for t in leaves]
    for grad in (False, True):
        # What fails is said with the samples.
        with torch.set_grad_enabled(grad), _same_chance(posterior), suppress(Exception):
            output = posterior.forward(posterior.center.clone(), batch[0])
            given_output = given_to(posterior.per_sample_loss, output)
            posterior.per_sample_loss(given_output, anew(batch[1]))
    # .data and NumPy write without a new version.
    same = all(map(torch.equal, leaves, tree_leaves(given)))
    return not same or versions != [t._version for t in leaves]


def check_samples(posterior: LocalPosterior, samples: Samples) -> torch.dtype:
    """Evaluate some samples at w* and nearby: see :meth:`probelib.LocalPosterior.check`.

    Returns:
        The type of their losses.
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
    with torch.no_grad(), _same_chance(posterior):
        with _failure_named(posterior, samples, x, y):
            output = posterior.outputs(posterior.center, x)
            logits = given_to(posterior.per_sample_loss, output)
            takes_classes = isinstance(logits, Tensor) and _takes_classes(posterior.per_sample_loss)
            if labels is not None and takes_classes:
                classes = logits.shape[-1 if posterior.per_sample_loss is cross_entropy else 1]
                left_out = _left_out(posterior.per_sample_loss)
                counted = labels if left_out is None else labels[labels != left_out]
                if len(counted) and (counted.min() < 0 or counted.max() >= classes):
                    raise ValueError(
                        f"{samples.name} has labels from {counted.min()} to {counted.max()}, "
                        f"but the model has {classes} outputs; labels must lie in "
                        f"[0, {classes - 1}]"
                    )
            loss = posterior.loss_of(output, y)
        _require_one_a_sample(loss, len(index))
        by_chance = not torch.equal(posterior.losses(posterior.center, x, y), loss)
    _require_finite(loss, index, samples.name)
    index = samples.differing(_DIFFERENT)
    probe = _Probe(posterior, *samples.batch(index), index, samples.name)
    with _failure_named(posterior, samples, probe.x, probe.y):
        for weights in _probes(posterior.center):
            probe.require_one_function(weights)
            if len(index) > 1 and not posterior.train_mode and not by_chance:
                probe.require_separate(weights)
    return loss.dtype


def check_tokens(loss: Any, samples: Samples) -> None:
    """Look at the targets of a loss of tokens: whether there are some, and are not the inputs.

    So are the labels of a language model's batch, which a Hugging Face model shifts by itself, and
    a loss does not.

    Raises:
        ValueError: a sample without a token that counts, whose mean loss would be NaN.

    Warns:
        UserWarning: they are the inputs, at every position that counts, of a few samples.
    """
    left_out = -100
    while isinstance(loss, functools.partial):
        left_out, loss = loss.keywords.get("ignore_index", left_out), loss.func
    if loss not in (token_cross_entropy, sequence_cross_entropy):
        return
    if samples.in_memory and loss is sequence_cross_entropy:
        y = tree_leaves(samples.batch(slice(None))[1])[0]
        empty = (y.flatten(1) == left_out).all(1)
        if empty.any():
            raise ValueError(
                f"{samples.name} has sample {int(empty.nonzero()[0, 0])} without a token: all its "
                f"targets are {left_out}; leave it out, as its mean loss is not a number"
            )
    x, y = samples.batch(samples.differing(_DIFFERENT))
    targets = tree_leaves(y)
    for leaf in tree_leaves(x):
        if len(targets) != 1 or leaf.shape != targets[0].shape or leaf.ndim < 2:
            continue
        counted = targets[0] != left_out
        if counted.any() and torch.equal(leaf[counted], targets[0][counted]):
            warnings.warn(
                f"{samples.name} has targets that are its inputs, position by position. A language "
                "model says at each position what comes next, and the loss shifts nothing: give "
                "input_ids[:, :-1] as inputs and input_ids[:, 1:] as targets",
                UserWarning,
                stacklevel=5,
            )
            return


def warn_of_unread(posterior: LocalPosterior, samples: Samples) -> None:
    """Say of inputs that a model takes with ``**kwargs`` alone, and does not read.

    Python refuses a mistyped key only where ``forward`` has no ``**kwargs``. A key that no other
    argument takes is read if something changes, or fails, where all its numbers are 0; of one whose
    numbers are 0 already nobody can tell.

    Warns:
        UserWarning: a few samples have the same outputs, bit for bit, at w* and nearby.
    """
    keys = posterior.keys_of_any_name(samples)
    if samples is not posterior.data:  # whose own were looked at
        keys = [key for key in keys if key not in posterior.keys_of_any_name(posterior.data)]
    for key in keys:
        x, _ = samples.batch(samples.differing(_DIFFERENT))
        parts = parts_of(x) or {}
        if not any(bool(leaf.any()) for leaf in tree_leaves(parts[key])):
            continue
        blank = with_parts(x, parts | {key: tree_map(torch.zeros_like, parts[key])})
        if _same_outputs(posterior, x, blank):
            warnings.warn(
                f"{samples.name} has inputs {key!r}, which the model's forward takes with **kwargs "
                "and does not read: its outputs are the same where they are 0. If it should read "
                "them, look for a mistyped name; else leave them out",
                UserWarning,
                stacklevel=4,
            )


@torch.no_grad()
def _same_outputs(posterior: LocalPosterior, x: Tree, other: Tree) -> bool:
    """Whether a model makes the same of two batches, bit for bit, at w* and nearby."""
    for weights in _probes(posterior.center):
        found: list[list[Tensor]] = []
        for batch in (x, other):
            with _same_chance(posterior), suppress(Exception):  # what fails has read it
                output = posterior.outputs(weights, batch)
                every = output if parts_of(output) is not None else getattr(output, "__dict__", {})
                every = output if isinstance(output, Tensor) else every
                found.append([t.clone() for t in tree_leaves(every) if isinstance(t, Tensor)])
        if len(found) < 2 or not found[0] or len(found[0]) != len(found[1]):
            return False
        if not all(torch.equal(a, b) for a, b in zip(*found, strict=True)):
            return False
    return True


@contextmanager
def _failure_named(posterior: LocalPosterior, samples: Samples, x: Tree, y: Tree) -> Iterator[None]:
    """Says of what fails inside on which data it does."""
    failures: tuple[type[Exception], ...] = IndexError, RuntimeError
    contained = not isinstance(x, Tensor) or not isinstance(y, Tensor)
    if contained:  # what is missing there, or is taken for a tensor
        failures = (*failures, TypeError, AttributeError, KeyError)
    try:
        yield
    except failures as error:
        labels = samples.labels(read=False)
        shown = "" if labels is None else f", labels from {labels.min()} to {labels.max()}"
        remedy = "; forward=lambda model, inputs: ... says how the model is called"
        wide = (
            ". The model came in half precision and is run in float32: let it, and the loss, take "
            "the type of what they are given"
        )
        raise ValueError(
            f"model or per_sample_loss failed on {samples.name} at w* "
            f"(input {shapes(x)}, target {shapes(y)}{shown}): {error}"
            f"{remedy if contained else ''}{wide if posterior.widened else ''}"
        ) from error


@dataclass
class _Probe:
    """A few samples, and what must hold of their losses at any weights."""

    posterior: LocalPosterior
    x: Tree
    y: Tree
    index: np.ndarray
    name: str

    def require_one_function(self, weights: Tensor) -> None:
        """Refuse losses that are others with gradients, or at the next call (ValueError).

        Steps take gradients, observations do not.
        """
        found = []
        for grad in (False, False, True):
            with torch.set_grad_enabled(grad), _same_chance(self.posterior):
                moving = weights.clone().requires_grad_(grad)
                losses = self.posterior.losses(moving, self.x, self.y)
                _require_no_other_weights(losses, moving)
                found.append(losses.detach())
        first, again, stepped = found
        _require_one_a_sample(first, len(self.index))
        if weights is self.posterior.center:
            _require_finite(first, self.index, self.name)
        for other, how, remedy, rtol in (
            # The same call again: what drifts by little would be far away after many.
            (again, "at the next call", "take out what changes from call to call", None),
            (
                stepped,
                "where gradients are taken",
                "let it not ask for torch.is_grad_enabled()",
                1e-3,
            ),
        ):
            if (bad := _differ(other, first, rtol)) is not None:
                raise ValueError(
                    f"model or per_sample_loss gives {first[bad]:.6g} for sample {self.index[bad]} "
                    f"of {self.name} and {other[bad]:.6g} {how}; steps and observations must see "
                    f"one function ({remedy})"
                )

    @torch.no_grad()
    def require_separate(self, weights: Tensor) -> None:
        """Refuse losses that depend on what else is in the batch, or on the place there."""
        n = len(self.index)
        with _same_chance(self.posterior):
            losses = self.posterior.losses(weights, self.x, self.y)
            x, y = tree_map(lambda t: t.flip(0), (self.x, self.y))
            backwards = self.posterior.losses(weights, x, y).flip(0)
            parts = self._in_parts(weights)
        for other, of in (parts, (backwards, f"in another order of these {n}")):
            if (bad := _differ(other, losses[: len(other)])) is not None:
                raise ValueError(
                    f"per_sample_loss is {losses[bad]:.4g} for sample {self.index[bad]} of "
                    f"{self.name} in a batch of {n} and {other[bad]:.4g} {of}; it must depend on "
                    "this sample alone (look for a mean or a broadcast over the batch)"
                )

    def _in_parts(self, weights: Tensor) -> tuple[Tensor, str]:
        """Losses of the samples one at a time; or of half of them, if the model takes no one."""
        alone = []
        for at in range(len(self.index)):
            with suppress(IndexError, RuntimeError, ValueError):
                one = self._of(weights, slice(at, at + 1))
                alone += [one] if one.shape == (1,) else []
        if len(alone) == len(self.index):
            return torch.cat(alone), "alone"
        half = -(-len(self.index) // 2)
        try:
            loss = self._of(weights, slice(half))
        except (IndexError, RuntimeError) as error:
            raise ValueError(
                f"per_sample_loss takes a batch of {len(self.index)} but not of {half}: {error}"
            ) from error
        _require_one_a_sample(loss, half)
        return loss, f"in one of {half}"

    def _of(self, weights: Tensor, part: slice) -> Tensor:
        return self.posterior.losses(weights, *rows((self.x, self.y), part))


def _require_no_other_weights(losses: Tensor, own: Tensor) -> None:
    """Refuse losses whose derivative asks for other tensors than the weights (ValueError)."""
    left, seen = [losses.grad_fn], set()
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        left += [before for before, _ in node.next_functions]
        leaf = getattr(node, "variable", own)
        if leaf is not own:
            raise ValueError(
                f"model or per_sample_loss computes with a tensor of shape {tuple(leaf.shape)} "
                "that asks for a gradient and is no parameter of the model, so that it would stand "
                "still where the chain moves; make its module a part of the model, or give it "
                "requires_grad_(False); a penalty on the weights belongs to localization"
            )


def _probes(center: Tensor) -> tuple[Tensor, Tensor]:
    """w*, and weights near it: there an output that is 0 at w* hides nothing."""
    drawn = torch.randn(center.shape, generator=torch.Generator().manual_seed(0), device="cpu")
    return center, center + drawn.to(center) * (0.02 + 0.1 * center.abs())


@contextmanager
def _same_chance(posterior: LocalPosterior) -> Iterator[None]:
    """What is drawn inside is what the next of these draws, and the caller's generators stay."""
    with keep_host_random_state(), keep_random_state(posterior.device):
        yield


def _differ(a: Tensor, b: Tensor, rtol: float | None = 1e-3) -> int | None:
    """Where two rows of losses differ most, if by more than rounding; NaN is as good as NaN.

    Args:
        rtol: None for a few units of the last digit, as of sums in another order.
    """
    scale = float(torch.where(b.isfinite(), b.abs(), 0).max())
    eps = torch.finfo(b.dtype).eps
    rtol = 100 * eps if rtol is None else rtol
    # A model that fits its targets exactly has losses of nothing but squared rounding: of outputs
    # of some tens, a few units of the last digit.
    atol = max(rtol / 100 * scale, (32 * eps) ** 2)
    if torch.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True):
        return None
    return int((a - b).abs().nan_to_num(torch.inf).argmax())


def _require_finite(loss: Tensor, index: np.ndarray, name: str) -> None:
    if not loss.isfinite().all():
        bad = int(index[int((~loss.isfinite()).nonzero()[0, 0])])
        raise ValueError(
            f"per_sample_loss is not finite for sample {bad} of {name} at w*; check the sample, "
            "the loss and the weights"
        )


def _takes_classes(loss: Any) -> bool:
    """Whether targets are class indices: no other value has a meaning."""
    known = cross_entropy, F.cross_entropy, F.nll_loss
    return loss in known or isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss)


def _left_out(loss: Any) -> int | None:
    """The label of samples that a loss leaves out on purpose, with a loss of 0; else none.

    Torch's default of -100 is nobody's purpose: a label that slipped in would pass for it.
    """
    label = getattr(loss, "ignore_index", -100)
    return None if label == -100 else label


def _require_one_a_sample(loss: Any, batch: int) -> None:
    if isinstance(loss, Tensor) and loss.shape == (batch,):
        if not loss.is_floating_point():
            raise ValueError(
                f"per_sample_loss returned {loss.dtype}, which has no gradient; it must return "
                "floating-point numbers"
            )
        return
    got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
    raise ValueError(
        f"per_sample_loss returned {got} for a batch of {batch}; it must return one loss per "
        f"sample, shape ({batch},){_advice(loss, batch)}"
    )


def _advice(loss: Any, batch: int) -> str:
    """How losses of another shape become one a sample."""
    if not isinstance(loss, Tensor):
        return ""
    if loss.ndim == 0:
        return ": leave out the mean or sum over the batch (for a torch loss: reduction='none')"
    if loss.ndim > 1 and len(loss) == batch:
        if loss.numel() == batch:
            return ": flatten it, with loss.flatten()"
        return ": sum or average the rest, with loss.flatten(1).sum(1)"
    if loss.ndim == 1 and len(loss) % batch == 0 and len(loss) > batch:
        return f": sum or average what belongs to a sample, with loss.reshape({batch}, -1).sum(1)"
    return ": the first dimension is that of the samples"


__all__ = [
    "check_model",
    "check_samples",
    "check_tokens",
    "require_runnable",
    "warn_of_unread",
    "writes_batch",
    "written_weights",
]
