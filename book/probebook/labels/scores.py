r"""Scores that are to be high for wrong labels, without a posterior: what the probe competes with.

Those of one network (:data:`POST_HOC`) need nothing but its weights and the data. Those of its
training (:data:`OF_TRAINING`) need what only an instrumented training has, or other networks.
Confident learning is cleanlab's own code, neighbours and cross-validation are scikit-learn's.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.nn import functional

from probebook.labels.training import Training
from probebook.models import MLP
from probelib.arguments import require_whole

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

__all__ = [
    "OF_TRAINING",
    "POST_HOC",
    "aum",
    "confident_learning",
    "curvature",
    "el2n",
    "flagged_by_confident_learning",
    "forgetting",
    "gradient_norm",
    "label_margin",
    "last_layer_influence",
    "loss",
    "neighbour_disagreement",
    "penultimate",
    "tracin",
]

POST_HOC: Mapping[str, str] = MappingProxyType({
    "loss": "loss (and self-confidence: the same order)",
    "margin": "margin of the label, in log odds",
    "curvature": "curvature of the loss in the input",
    "gradient_norm": "squared norm of the gradient",
    "last_layer_influence": "influence on itself, last layer",
    "knn_features": "neighbours of other labels, features",
    "knn_inputs": "neighbours of other labels, inputs",
})  # fmt: skip
"""Scores of one network, and their names in a table."""

OF_TRAINING: Mapping[str, str] = MappingProxyType({
    "out_of_sample": "self-confidence out of sample",
    "confident_learning": "confident learning (cleanlab)",
    "aum": "area under the margin",
    "forgetting": "forgetting events",
    "el2n": "EL2N, early networks",
    "grand": "GraNd, early networks",
    "tracin": "TracIn on itself",
})  # fmt: skip
"""Scores of a training or of other networks, and their names in a table."""


# --- of one network ---


def loss(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross entropy of each label, nats; one minus the self-confidence has the same order."""
    return functional.cross_entropy(
        torch.from_numpy(logits).double(), torch.from_numpy(labels), reduction="none"
    ).numpy()


def label_margin(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Largest other logit less that of the label; high where another class is preferred.

    Args:
        logits: shape (..., n, classes).
        labels: shape (n,).
    """
    every = np.arange(len(labels))
    own = logits[..., every, labels]
    others = logits.copy()
    others[..., every, labels] = -np.inf
    return others.max(-1) - own


def gradient_norm(model: MLP, x: Tensor, y: Tensor) -> np.ndarray:
    r"""Squared norm of each sample's gradient in all weights.

    The gradient of a linear layer is an outer product, so that its squared norm is that of what
    comes in (and 1 for the bias) times that of what comes back. Backward from the sum of all
    losses: each sample's part of a layer's output has its own gradient.
    """
    seen: list[tuple[Tensor, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
        for layer in model.modules()
        if isinstance(layer, torch.nn.Linear)
    ]
    try:
        total = functional.cross_entropy(model(x), y, reduction="sum")
    finally:
        for hook in hooks:
            hook.remove()
    back = torch.autograd.grad(total, [output for _, output in seen])
    parts = [
        (inputs.detach().double().square().sum(1) + 1) * gradient.double().square().sum(1)
        for (inputs, _), gradient in zip(seen, back, strict=True)
    ]
    return torch.stack(parts).sum(0).numpy()


def curvature(
    model: MLP, x: Tensor, y: Tensor, *, directions: int = 10, step: float = 1e-3, seed: int = 0
) -> np.ndarray:
    r"""Curvature of each sample's loss in its input (Garg, Ravikumar and Roy, ICML 2024).

    Hutchinson's estimate of the squared Frobenius norm of the Hessian H in the input,
    :math:`\operatorname{E}_v |H v|^2`, with v of random signs and Hv by a finite difference of the
    gradient. In float64, where the difference does not lose its digits.

    Args:
        model: its gradients, in float64.
        x, y: inputs and labels.
        directions: how many v.
        step: length of the difference along v.
        seed: of the directions.
    """
    require_whole("directions", directions)
    exact = MLP((model.layers[0].out_features,), x.shape[1], model.layers[-1].out_features)
    exact.load_state_dict(model.state_dict())
    exact, x = exact.double().eval(), x.double()
    generator = torch.Generator().manual_seed(seed)

    def gradient(at: Tensor) -> Tensor:
        at = at.clone().requires_grad_()
        return torch.autograd.grad(functional.cross_entropy(exact(at), y, reduction="sum"), at)[0]

    first, total = gradient(x), torch.zeros(len(x), dtype=torch.float64)
    for _ in range(directions):
        signs = torch.randint(0, 2, x.shape, generator=generator).double() * 2 - 1
        total += ((gradient(x + step * signs) - first) / step).square().sum(1)
    return (total / directions).numpy()


def penultimate(model: MLP, x: Tensor) -> Tensor:
    """What the last layer gets, shape (n, width)."""
    with torch.no_grad():
        return model.layers[:-1](x.flatten(1))


def last_layer_influence(model: MLP, x: Tensor, y: Tensor, damping: float = 1e-3) -> np.ndarray:
    r"""Influence of each sample on its own loss, in the last layer: :math:`g_i^\top H^{-1} g_i`.

    Koh and Liang (2017), where everything below the last layer stands still: there the loss is
    convex, and H is its Hessian, (1/n) sum (diag p - p p') x a a' with a the features and a 1 for
    the bias, plus ``damping``. To first order, n times smaller, how much the sample's loss rises
    when it is left out.

    Args:
        model, x, y: network, inputs and labels.
        damping: added to the Hessian's diagonal, more than 0.
    """
    if not damping > 0:
        raise ValueError(f"damping is {damping}; give more than 0, for H is singular")
    features = penultimate(model, x).double()
    a = torch.cat([features, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    with torch.no_grad():
        p = model(x).double().softmax(1)
    classes, width = p.shape[1], a.shape[1]
    hessian = torch.zeros(classes, width, classes, width, dtype=torch.float64)
    for c in range(classes):
        for d in range(classes):
            weight = p[:, c] * (float(c == d) - p[:, d])
            hessian[c, :, d] = (a * weight[:, None]).T @ a / len(x)
    hessian = hessian.reshape(classes * width, -1)
    hessian += damping * torch.eye(classes * width, dtype=torch.float64)
    back = p - functional.one_hot(y, classes)
    gradients = (back[:, :, None] * a[:, None, :]).flatten(1)
    solved = torch.cholesky_solve(gradients.T, torch.linalg.cholesky(hessian))
    return (gradients * solved.T).sum(1).numpy()


def neighbour_disagreement(features: np.ndarray, labels: np.ndarray, k: int = 20) -> np.ndarray:
    """Share of the k nearest other samples, by cosine, that have another label, weighted.

    A neighbour counts by its cosine, at least 0, so that few scores are equal.

    Args:
        features: shape (n, features).
        labels: shape (n,).
        k: neighbours, fewer than n.
    """
    nearest = NearestNeighbors(n_neighbors=require_whole("k", k), metric="cosine").fit(features)
    distance, at = nearest.kneighbors()
    return disagreement(1 - distance, labels[at], labels)


def disagreement(similarity: np.ndarray, theirs: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Weighted share of neighbours whose label is another; 0.5 where no neighbour counts.

    Args:
        similarity: of each neighbour; less than 0 counts 0. Shape (n, k).
        theirs: the neighbours' labels, shape (n, k).
        own: shape (n,).
    """
    weight = np.maximum(similarity, 0)
    total = weight.sum(1)
    other = (weight * (theirs != own[:, None])).sum(1)
    return np.where(total > 0, other / np.where(total > 0, total, 1), 0.5)


# --- of a training, or of other networks ---


def aum(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Minus the area under the margin: the mean over epochs of the largest other logit less the
    label's (Pleiss et al., NeurIPS 2020).

    Args:
        logits: after each epoch so far, shape (epochs, n, classes).
        labels: shape (n,).
    """
    return label_margin(logits, labels).mean(0)


def forgetting(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Forgetting events: how often a sample that was right after an epoch is wrong after the next
    (Toneva et al., ICLR 2019). One that was never right counts one more than there are epochs.

    Args:
        logits: after each epoch so far, shape (epochs, n, classes).
        labels: shape (n,).
    """
    right = logits.argmax(-1) == labels
    events = (right[:-1] & ~right[1:]).sum(0).astype(float)
    return np.where(right.any(0), events, len(right) + 1.0)


def el2n(logits: Sequence[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """EL2N: norm of probabilities less the one-hot label, mean over networks that have trained
    for a few epochs (Paul, Ganguli and Dziugaite, NeurIPS 2021).

    Args:
        logits: of each network, shape (n, classes).
        labels: shape (n,).
    """
    norms = []
    for each in logits:
        p = torch.from_numpy(each).double().softmax(1).numpy()
        p[np.arange(len(labels)), labels] -= 1
        norms.append(np.linalg.norm(p, axis=1))
    return np.mean(norms, 0)


def tracin(training: Training, x: Tensor, y: Tensor, until: int) -> np.ndarray:
    r"""TracIn of each sample on itself: the sum over kept networks of
    :math:`\eta |\nabla \ell_i|^2` (Pruthi et al., NeurIPS 2020).

    Args:
        training: with its kept networks.
        x, y: inputs and the labels that it was trained on.
        until: the last epoch that counts.

    Raises:
        ValueError: no network was kept until then.
    """
    kept = [model for epoch, model in training.networks.items() if epoch <= until]
    if not kept:
        raise ValueError(f"until is {until}, before the first kept network")
    return training.rate * np.sum([gradient_norm(model, x, y) for model in kept], 0)


def confident_learning(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """One minus cleanlab's quality of a label: its normalized margin out of sample, adjusted.

    Northcutt, Jiang and Chuang (JAIR 2021): probabilities less the mean confidence of their class,
    so that a class that the network doubts is not taken for one of wrong labels.

    Args:
        probabilities: of networks that were not trained on the sample, shape (n, classes).
        labels: shape (n,).
    """
    present = np.bincount(labels, minlength=probabilities.shape[1]) > 0
    return 1 - get_label_quality_scores(
        labels,
        probabilities,
        method="normalized_margin",
        adjust_pred_probs=bool(present.all()),  # cleanlab cannot adjust for a class without samples
    )


def flagged_by_confident_learning(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which labels cleanlab's confident learning calls wrong, boolean (n,)."""
    return find_label_issues(labels, probabilities, filter_by="both", n_jobs=1)
