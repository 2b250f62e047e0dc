"""Losses per sample and per token that keep their precision where a network is very confident."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    r"""Cross-entropy of each sample, exact down to :math:`e^{-80}` nats in float32.

    :math:`\ell = \log(1 + \sum_{k \ne y} e^{z_k - z_y})`, computed from the log-odds of the
    true class. The usual ``log_softmax`` rounds this to an exact zero as soon as the
    margin passes about 17 nats in float32, which would give a confident sample a loss trace
    without any variance. Where every other class is masked out (logits of minus infinity), and
    where there is none, the loss is 0, and so are its derivatives.

    Args:
        output: logits, shape (batch, classes).
        target: true classes, integers in [0, classes), shape (batch,).

    Returns:
        Losses in nats, shape (batch,).
    """
    true_class = target.unsqueeze(-1)
    true_logit = output.gather(-1, true_class).squeeze(-1)
    # Not minus infinity: a sum over nothing would have no derivatives.
    others = output.scatter(-1, true_class, torch.finfo(output.dtype).min)
    return -F.logsigmoid(true_logit - torch.logsumexp(others, dim=-1))


def token_cross_entropy(output: Tensor, target: Tensor, ignore_index: int = -100) -> Tensor:
    """Cross-entropy of each token, as exact as :func:`cross_entropy`: a loss to observe.

    The target of a position is what the model should say *there*: a language model's are its
    inputs, one position on.

    Args:
        output: logits, shape (batch, positions..., classes).
        target: true classes, integers, shape (batch, positions...).
        ignore_index: the target of positions that are none, such as padding.

    Returns:
        Losses in nats, shape (batch, positions...); NaN where the target is ``ignore_index``.
    """
    counted = target != ignore_index
    losses = cross_entropy(output, torch.where(counted, target, 0))
    return torch.where(counted, losses, torch.nan)


def sequence_cross_entropy(output: Tensor, target: Tensor, ignore_index: int = -100) -> Tensor:
    """Mean cross-entropy of a sample's tokens: one loss per sample, to sample from.

    Args:
        output, target, ignore_index: as for :func:`token_cross_entropy`.

    Returns:
        Losses in nats per token, shape (batch,); NaN where a sample has no token that counts.
    """
    return token_cross_entropy(output, target, ignore_index).flatten(1).nanmean(1)


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    r"""Half the squared error of each sample, :math:`\ell = \frac12 \lVert f(x) - y \rVert^2`.

    The negative log-likelihood of a Gaussian with unit variance, up to a constant.

    Args:
        output: predictions, shape (batch,) or (batch, ...).
        target: values of the same shape as ``output``.

    Returns:
        Losses in squared units of the target, shape (batch,).

    Raises:
        ValueError: the two shapes differ (they would otherwise broadcast in silence).
    """
    if output.shape != target.shape:
        raise ValueError(
            f"squared_error got output of shape {tuple(output.shape)} and target of shape "
            f"{tuple(target.shape)}; reshape one of them so that they agree"
        )
    return 0.5 * (output - target).pow(2).reshape(output.shape[0], -1).sum(-1)


__all__ = ["cross_entropy", "sequence_cross_entropy", "squared_error", "token_cross_entropy"]
