r"""Curvature at the trained weights: Laplace regime of the kernel, classical influence (App. C).

With :math:`g_i = \nabla\ell_i(w^*)`, :math:`H_i = \nabla^2\ell_i(w^*)`, :math:`H` the Hessian of
the *mean* loss L at :math:`w^*`, and :math:`w^*` a minimum of L, Eq. 1 is close to a Gaussian when
:math:`n\beta` is large, and

.. math::

   S = (n\beta H + \gamma I)^{-1}, \qquad
   K_{ij} = g_i^\top S g_j + \tfrac12 \operatorname{tr}(H_i S H_j S) + \dots

The paper's Eq. 18 has :math:`H^{-1}` for S, without temperature and localization, and its Eq. 21 a
minus sign that belongs to the influence *function*. Everything here except
:func:`per_sample_gradients`, :func:`gradient_gram` and :func:`hessian_operator` builds matrices of
n_parameters squared: it is for small models.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor
from torch.func import grad, jacrev, jvp, vjp, vmap

from probelib.ambient import undisturbed
from probelib.arguments import require_choice, require_whole
from probelib.batches import Tree
from probelib.contract import sample_coordinates
from probelib.data import Data, Samples
from probelib.each_sample import curvature, each_sample, gradient_and_value, single
from probelib.estimators import MatrixKernel
from probelib.posterior import LocalPosterior
from probelib.randomness import no_draws

_LARGEST = 10_000  # a Hessian of this width takes 0.8 GB
_LARGEST_TENSOR = 64  # third derivatives grow with the cube of the width


@undisturbed
def per_sample_gradients(
    posterior: LocalPosterior, data: Data | None = None, batch_size: int = 256
) -> np.ndarray:
    r"""Gradients :math:`g_i = \nabla\ell_i(w^*)` of single samples.

    Args:
        posterior: gives :math:`w^*`, the model and the loss.
        data: samples to take the gradients of; default: those of the posterior.
        batch_size: samples at a time.

    Returns:
        Shape (n, n_parameters), nats per unit of weight, in the precision of the model.

    Raises:
        ValueError: ``batch_size`` is not positive, or ``data`` do not fit the model.
    """
    require_whole("batch_size", batch_size)
    samples = _samples(posterior, data)
    return np.concatenate([g.cpu().numpy() for g in _gradients(posterior, samples, batch_size)])


@undisturbed
def gradient_gram(
    posterior: LocalPosterior, data: Data | None = None, batch_size: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    r"""Cosines and lengths of the gradients of all pairs, for models of any size.

    :math:`g_i^\top g_j` is their product: the kernel of Appendix C with the identity for S. No
    Hessian is needed, and never more than two batches of gradients are held. Splitting off the
    lengths keeps samples whose gradients nearly vanish as exact as the others.

    Args:
        posterior: gives :math:`w^*`, the model and the loss.
        data: samples, in all n of them; default: those of the posterior.
        batch_size: gradients held at a time are twice this; each is n_parameters long.

    Returns:
        Cosines, shape (n, n), in [-1, 1], 0 for a sample without a gradient; lengths
        :math:`\lVert g_i \rVert`, shape (n,), nats per unit of weight.

    Raises:
        ValueError: ``batch_size`` is not positive, or ``data`` do not fit the model.
    """
    require_whole("batch_size", batch_size)
    samples = _samples(posterior, data)
    n = len(samples)
    cosine, length = np.zeros((n, n)), np.zeros(n)
    starts = range(0, n, batch_size)

    def unit(start: int) -> tuple[slice, Tensor, Tensor]:
        block = slice(start, min(start + batch_size, n))
        rows = _gradient(posterior, samples, block)
        largest = rows.abs().amax(1, keepdim=True)  # squares of small gradients would underflow
        scaled = rows / torch.where(largest > 0, largest, 1)
        norm = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
        return block, scaled / torch.where(norm > 0, norm, 1), (norm * largest)[:, 0]

    for start in starts:
        here, rows, norms = unit(start)
        length[here] = norms.cpu().numpy()
        cosine[here, here] = (rows @ rows.T).cpu().numpy()
        for later in range(start + batch_size, n, batch_size):
            there, others, _ = unit(later)
            cosine[here, there] = (rows @ others.T).cpu().numpy()
            cosine[there, here] = cosine[here, there].T
    return np.clip(cosine, -1, 1), length


@undisturbed
def hessian(posterior: LocalPosterior, batch_size: int = 1000) -> np.ndarray:
    r"""The Hessian :math:`H = \nabla^2 L(w^*)` of the mean loss, whole.

    Args:
        posterior: gives :math:`w^*`, the model, the loss and the data.
        batch_size: samples at a time.

    Returns:
        Shape (n_parameters, n_parameters), symmetric, float64, nats per squared unit of weight.

    Raises:
        ValueError: more than 10,000 parameters (:func:`hessian_operator` never builds the matrix),
            or a posterior in train mode.
    """
    require_whole("batch_size", batch_size)
    _require_small(posterior, _LARGEST, "hessian", "use hessian_operator")
    total = torch.zeros(2 * [posterior.n_parameters], dtype=torch.float64, device=posterior.device)
    with _one_function(posterior):
        for x, y in posterior.data.batches(batch_size):
            total += curvature(_summed(posterior, x, y))(posterior.center).detach()
            _require_finite(total, "Hessian", posterior.data.name)
    total /= posterior.n_samples
    return ((total + total.T) / 2).cpu().numpy()


@undisturbed
def per_sample_hessians(
    posterior: LocalPosterior, data: Data | None = None, batch_size: int = 64
) -> np.ndarray:
    r"""Hessians :math:`H_i = \nabla^2\ell_i(w^*)` of single samples.

    Args:
        posterior: gives :math:`w^*`, the model and the loss.
        data: samples; default: those of the posterior.
        batch_size: samples at a time.

    Returns:
        Shape (n, n_parameters, n_parameters), float64, nats per squared unit of weight.

    Raises:
        ValueError: they would take more than 10,000 x 10,000 numbers.
    """
    require_whole("batch_size", batch_size)
    samples = _samples(posterior, data)
    cells = len(samples) * posterior.n_parameters**2
    if cells > _LARGEST**2:
        raise ValueError(
            f"posterior has {posterior.n_parameters} parameters, whose {len(samples)} Hessians "
            f"would hold {cells:.1e} numbers; give fewer samples as data, or a smaller model"
        )
    every = curvature(single(posterior))
    parts = [
        each_sample(posterior, every, posterior.center, x, y).detach()
        for x, y in samples.batches(batch_size)
    ]
    found = torch.cat(parts).double()
    _require_finite(found, "Hessian", samples.name, range(len(samples)))
    return found.cpu().numpy()


def hessian_operator(posterior: LocalPosterior, batch_size: int = 1000) -> LinearOperator:
    r"""The Hessian of the mean loss as a product with vectors, never built.

    One product costs a few passes over the data: the derivative, along the vector, of the
    gradient, summed over batches. Use it with ``scipy.sparse.linalg.cg``, ``eigsh`` and their like.

    Args:
        posterior: gives :math:`w^*`, the model, the loss and the data.
        batch_size: samples at a time.

    Returns:
        A symmetric operator of shape (n_parameters, n_parameters), float64.

    Raises:
        ValueError: ``batch_size`` is not positive, or the posterior is in train mode.
    """
    require_whole("batch_size", batch_size)
    center, d = posterior.center, posterior.n_parameters

    @undisturbed
    def times(vector: np.ndarray) -> np.ndarray:
        along = torch.as_tensor(np.ravel(vector)).to(center)
        total = torch.zeros(d, dtype=torch.float64, device=center.device)
        with _one_function(posterior):
            for x, y in posterior.data.batches(batch_size):
                total += _derivative_along(grad(_summed(posterior, x, y)), center, along)
        _require_finite(total, "Hessian", posterior.data.name)
        return (total / posterior.n_samples).cpu().numpy()

    return LinearOperator((d, d), matvec=times, rmatvec=times, dtype=np.float64)


def laplace_covariance(posterior: LocalPosterior) -> np.ndarray:
    r"""Covariance of the weights in the Laplace regime, :math:`S = (n\beta H + \gamma I)^{-1}`.

    The paper's Eq. 18 prints the inverse Hessian of the summed loss, which is S only for
    :math:`\beta = 1` and :math:`\gamma = 0`.

    Args:
        posterior: around a minimum of L; elsewhere the Gaussian would not even be centred at w*.

    Returns:
        Shape (n_parameters, n_parameters), squared units of weight.

    Raises:
        ValueError: the matrix to invert is not positive definite, as w* is no minimum, or the
            model is too large.
    """
    precision = posterior.n_beta * hessian(posterior) + posterior.localization * np.eye(
        posterior.n_parameters
    )
    try:
        factor = cho_factor(precision)
    except np.linalg.LinAlgError:
        lowest = float(np.linalg.eigvalsh(precision)[0])
        raise ValueError(
            f"localization is {posterior.localization:g}, but n_beta times the Hessian has the "
            f"eigenvalue {lowest - posterior.localization:.3g}, so w* is no minimum; train on, or "
            "raise localization above its size"
        ) from None
    return _symmetric(cho_solve(factor, np.eye(len(precision))))


def laplace_kernel(
    posterior: LocalPosterior, data: Data | None = None, order: int = 1
) -> MatrixKernel:
    r"""The loss kernel in the Laplace regime (Eq. 21 with its errata).

    .. math::

       K^{(1)}_{ij} = g_i^\top S g_j, \qquad
       K^{(2)}_{ij} = K^{(1)}_{ij} + \tfrac12 \operatorname{tr}(H_i S H_j S)

    The first term is of order :math:`1/n\beta`, the second of order :math:`1/(n\beta)^2`. For a
    loss that is quadratic in the weights the two are exact. For any other loss there are further
    terms of the second's order, so it improves the approximation, but not its order:
    :func:`next_order_kernel` has them all.

    Args:
        posterior: around a minimum of L.
        data: samples to relate; default: those of the posterior.
        order: 1 or 2.

    Returns:
        The kernel of the n samples; :meth:`~probelib.MatrixKernel.covariance` is K, (n, n).

    Raises:
        ValueError: another order, no minimum at w*, or a model that is too large.
    """
    if order not in (1, 2):
        raise ValueError(f"order is {order!r}; choose 1 or 2, or next_order_kernel")
    covariance = laplace_covariance(posterior)
    g = per_sample_gradients(posterior, data).astype(np.float64)
    kernel = g @ covariance @ g.T
    if order == 2:
        weighted = per_sample_hessians(posterior, data) @ covariance
        kernel = kernel + np.einsum("iab,jba->ij", weighted, weighted, optimize=True) / 2
    return _as_kernel(kernel, _samples(posterior, data))


@undisturbed
def next_order_kernel(
    posterior: LocalPosterior, data: Data | None = None, law: str = "posterior"
) -> MatrixKernel:
    r"""The loss kernel with *every* term up to order :math:`1/(n\beta)^2`.

    K is the second derivative, at t = 0, of
    :math:`\log Z(t) = \log \int e^{-U(w) + \sum_i t_i \ell_i(w)} dw`, with U the potential of
    Eq. 1. Laplace's method gives
    :math:`\log Z = -U_t(w_t) - \frac12 \log\det M_t + \dots` at the minimum :math:`w_t` of the
    tilted potential, with Hessian :math:`M_t`. Differentiated twice, with :math:`w_i = S g_i`, and
    with :math:`T_i, U_3, U_4` for the third and fourth derivatives,

    .. math::

       K_{ij} &= g_i^\top S g_j + \tfrac12 \operatorname{tr}(S B_i S B_j)
                - \tfrac12 \operatorname{tr}(S M_{ij}), \qquad B_i = U_3[w_i] - H_i, \\
       M_{ij} &= U_4[w_i, w_j] + U_3[w_{ij}] - T_i[w_j] - T_j[w_i], \\
       w_{ij} &= S\,(H_i w_j + H_j w_i - U_3[w_i, w_j]).

    Without third and fourth derivatives this is :func:`laplace_kernel` of order 2. Under the exact
    Gaussian N(w*, S) in place of Eq. 1, ``law="gaussian"``, :math:`U_3 = U_4 = 0`, and what is
    left beside that kernel are the terms in :math:`T_i`: the covariance of the linear with the
    cubic part.

    Args:
        posterior: around a minimum of L, smooth there.
        data: samples to relate; default: those of the posterior.
        law: "posterior" (Eq. 1) or "gaussian" (the Laplace approximation of it).

    Returns:
        The kernel of the n samples; :meth:`~probelib.MatrixKernel.covariance` is K, (n, n).

    Raises:
        ValueError: another law, no minimum at w*, or more than 64 parameters.
    """
    require_choice("law", law, "posterior", "gaussian")
    _require_small(posterior, _LARGEST_TENSOR, "next_order_kernel", "use laplace_kernel")
    samples = _samples(posterior, data)
    s = laplace_covariance(posterior)
    g = per_sample_gradients(posterior, data).astype(np.float64)
    h = per_sample_hessians(posterior, data)
    # T_i enters only contracted with S, and U_4 too: derivatives of tr(H_i S) and of tr(U_2 S).
    root = torch.from_numpy(np.linalg.cholesky(s)).to(posterior.center).T
    third = grad(_curvature_along(single(posterior), root))
    parts = [
        _numbers(each_sample(posterior, third, posterior.center, x, y))
        for x, y in samples.batches(16)
    ]
    thirds = np.concatenate(parts)
    w = g @ s
    b, trace_m = -h, -(thirds @ w.T + w @ thirds.T)
    if law == "posterior":
        mean = posterior.mean_loss
        u3 = _numbers(posterior.n_beta * jacrev(jacrev(grad(mean)))(posterior.center))
        along = _curvature_along(mean, root)
        u4 = _numbers(posterior.n_beta * jacrev(grad(along))(posterior.center))
        u3_of_w = np.einsum("abc,ia->ibc", u3, w, optimize=True)
        p = s @ np.einsum("abc,bc->a", u3, s)
        mixed = np.einsum("a,iab,jb->ij", p, h, w, optimize=True)
        mixed = mixed + mixed.T - np.einsum("a,iab,jb->ij", p, u3_of_w, w, optimize=True)
        b, trace_m = u3_of_w + b, trace_m + w @ u4 @ w.T + mixed
    sb = b @ s
    trace_bb = np.einsum("iab,jba->ij", sb, sb, optimize=True)
    return _as_kernel(w @ g.T + trace_bb / 2 - trace_m / 2, samples)


def classical_influence(
    posterior: LocalPosterior,
    damping: float = 0.0,
    query: Data | None = None,
    solver: str = "exact",
) -> np.ndarray:
    r"""Classical influence functions (Koh and Liang, 2017), with their minus sign.

    .. math::

       \mathcal I_{qi} = \frac{d \ell_q(w_\varepsilon)}{d\varepsilon}\Big|_{\varepsilon = 0}
         = -g_q^\top (H + \delta I)^{-1} g_i, \qquad
       w_\varepsilon = \arg\min_w\, L(w) + \varepsilon\, \ell_i(w)

    L is the *mean* loss, in which each sample has the weight 1/n. So doubling sample i changes the
    query's loss by about :math:`\mathcal I_{qi} / n`, and removing it by about
    :math:`-\mathcal I_{qi} / n`, in nats. In the Laplace regime
    :math:`K_{qi} \approx -\mathcal I_{qi} / n\beta` with the damping
    :math:`\delta = \gamma / n\beta`: removing sample i changes the mean of the query's loss under
    Eq. 1 by about :math:`\beta K_{qi}`.

    Args:
        posterior: around a minimum of L; its n_beta and localization do not enter.
        damping: :math:`\delta \ge 0`, added to the diagonal of H.
        query: samples whose losses respond; default: those of the posterior.
        solver: "exact" builds H; "cg" needs only products with H, by conjugate gradients, one
            system a query, for larger models whose damped H is positive definite.

    Returns:
        Shape (n_query, n), nats; row q, column i.

    Raises:
        ValueError: a negative damping, another solver, or a model too large for the exact one.
        numpy.linalg.LinAlgError: the damped Hessian is singular to working precision, or the
            conjugate gradients did not converge.
    """
    if not (np.isfinite(damping) and damping >= 0):
        raise ValueError(f"damping is {damping!r}; it must be a finite number, 0 or more")
    require_choice("solver", solver, "exact", "cg")
    g = per_sample_gradients(posterior).astype(np.float64)
    of_query = g if query is None else per_sample_gradients(posterior, query).astype(np.float64)
    if solver == "cg":
        return -_conjugate_gradients(posterior, damping, of_query) @ g.T
    _require_small(posterior, _LARGEST, 'solver="exact"', 'use solver="cg"')
    values, vectors = np.linalg.eigh(hessian(posterior))
    damped = values + damping
    rounding = np.finfo(np.float64).eps if posterior.dtype == torch.float64 else 1.2e-7
    if np.abs(damped).min() <= len(damped) * rounding * np.abs(damped).max():
        raise np.linalg.LinAlgError(
            f"damping is {damping:g}, with which the Hessian is singular to working precision "
            f"(eigenvalues from {damped.min():.2g} to {damped.max():.2g}); choose another damping"
        )
    return -(of_query @ vectors / damped) @ (g @ vectors).T


def _conjugate_gradients(posterior: LocalPosterior, damping: float, rows: np.ndarray) -> np.ndarray:
    """(H + damping I)^-1 applied to every row."""
    product = hessian_operator(posterior)
    damped = LinearOperator(
        product.shape, matvec=lambda v: product.matvec(v) + damping * v, dtype=np.float64
    )
    solved = np.empty_like(rows)
    for k, row in enumerate(rows):
        solved[k], failed = cg(
            damped, row, rtol=1e-10 if posterior.dtype == torch.float64 else 1e-5
        )
        if failed:
            raise np.linalg.LinAlgError(
                f"damping is {damping:g}, with which conjugate gradients did not converge for "
                f"query {k}; raise damping"
            )
    return solved


def _summed(posterior: LocalPosterior, x: Tree, y: Tree) -> Callable[[Tensor], Tensor]:
    return lambda w: posterior.losses(w, x, y).sum()


def _one_function(posterior: LocalPosterior) -> AbstractContextManager[None]:
    """Refuse a mean loss that depends on chance, or on how samples are batched (ValueError)."""
    if posterior.train_mode:
        raise ValueError(
            "posterior is in train mode, where a loss may depend on its batch and on chance; a "
            "Hessian needs train_mode=False"
        )
    return no_draws(posterior.device, "Hessian")


def _gradient(posterior: LocalPosterior, samples: Samples, at: slice) -> Tensor:
    """Gradients of some samples at w*, shape (batch, n_parameters)."""
    every, (x, y) = gradient_and_value(single(posterior)), samples.batch(at)
    found = each_sample(posterior, every, posterior.center, x, y)[0].detach()
    _require_finite(found, "gradient", samples.name, range(at.start, at.stop))
    return found


def _gradients(posterior: LocalPosterior, samples: Samples, batch_size: int) -> Iterator[Tensor]:
    for start in range(0, len(samples), batch_size):
        yield _gradient(posterior, samples, slice(start, min(start + batch_size, len(samples))))


def _require_finite(found: Tensor, what: str, name: str, samples: range | None = None) -> None:
    """Refuse derivatives that are not numbers (ValueError)."""
    if bool(found.isfinite().all()):
        return
    of = name
    if samples is not None:
        bad = ~found.isfinite().reshape(len(found), -1).all(1)
        of = f"sample {samples[int(bad.nonzero()[0, 0])]} of {name}"
    raise ValueError(
        f"per_sample_loss has a {what} at w* that is not finite, for {of}; give a loss that is "
        "smooth there (where logits of -inf mask classes out, probelib.cross_entropy is)"
    )


def _derivative_along(
    gradient: Callable[[Tensor], Tensor], center: Tensor, along: Tensor
) -> Tensor:
    """H times a vector: forward over reverse, or twice reverse where a layer lacks the former."""
    try:
        with warnings.catch_warnings():  # torch announces something of its own at the first use
            warnings.simplefilter("ignore", FutureWarning)
            return jvp(gradient, (center,), (along,))[1].detach()
    except (NotImplementedError, RuntimeError):
        return vjp(gradient, center)[1](along)[0].detach()  # H is symmetric


def _curvature_along(function: Callable[..., Tensor], directions: Tensor) -> Callable[..., Tensor]:
    """The sum over the rows c of ``directions`` of c'Hc, H the Hessian in the first argument."""

    def along(w: Tensor, *rest: Tensor) -> Tensor:
        slope = grad(function)
        twice = vmap(lambda c: grad(lambda v: slope(v, *rest) @ c)(w) @ c)
        return twice(directions).sum()

    return along


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


def _samples(posterior: LocalPosterior, data: Data | None) -> Samples:
    if data is None:
        return posterior.data
    samples = Samples(data, posterior.device)
    posterior.check(samples)
    return samples


def _symmetric(matrix: np.ndarray) -> np.ndarray:
    return (matrix + matrix.T) / 2


def _as_kernel(matrix: np.ndarray, samples: Samples) -> MatrixKernel:
    return MatrixKernel(_symmetric(matrix), sample_coordinates(len(samples), samples.labels()))


def _require_small(posterior: LocalPosterior, largest: int, what: str, instead: str) -> None:
    if posterior.n_parameters > largest:
        raise ValueError(
            f"posterior has {posterior.n_parameters:,} parameters, and {what} takes at most "
            f"{largest:,}; {instead}, or freeze layers with requires_grad=False"
        )


__all__ = [
    "classical_influence",
    "gradient_gram",
    "hessian",
    "hessian_operator",
    "laplace_covariance",
    "laplace_kernel",
    "next_order_kernel",
    "per_sample_gradients",
    "per_sample_hessians",
]
