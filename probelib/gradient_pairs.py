r"""The loss kernel from pairs of gradients, where localization dominates the local posterior.

Let :math:`w \sim q = \mathcal N(w^*, \gamma^{-1} I)`, the localizing factor of Eq. 1, let
:math:`w_\theta` be a copy of it with correlation :math:`\theta`, and :math:`v(w) = \exp[-n\beta
L(w)]` the rest of Eq. 1. With :math:`Z = \operatorname{E}_q[v]` and :math:`\mu_i` the mean of
:math:`\ell_i` under Eq. 1,

.. math::

   K_{ij} = \frac1{\gamma Z} \int_0^1 \operatorname{E}_q\big[ v(w)\, \big( \nabla\ell_i(w)
   - n\beta\, (\ell_i(w) - \mu_i)\, \nabla L(w) \big)^\top \nabla\ell_j(w_\theta) \big] \, d\theta

exactly, however far the losses are from linear. For :math:`n\beta \to 0` it is
:math:`\operatorname{Cov}_q[\ell_i, \ell_j] = \frac1\gamma \int_0^1 \operatorname{E}_q
[\nabla\ell_i(w)^\top \nabla\ell_j(w_\theta)] \, d\theta` (Houdré, Pérez-Abreu and Surgailis, 1998),
which knows nothing of the data term.

A sample covariance over S draws sees every :math:`\Delta\ell_i` as one number per draw, so that its
correlations carry noise of about :math:`1/\sqrt S`. A pair of gradients is an inner product over
all weights at once, and for a large network its noise is far smaller. Near :math:`w^*` the
integrand is :math:`g_i^\top g_j`, the leading term of Appendix C with :math:`S = \gamma^{-1} I`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from probelib.ambient import undisturbed
from probelib.arguments import require_kind
from probelib.contract import sample_coordinates
from probelib.data import Data
from probelib.descriptions import described
from probelib.job import made_by_workers
from probelib.pair_walks import Walks, inner_products, losses_at_center, products_of, walks_of
from probelib.posterior import LocalPosterior
from probelib.progress import progress_bar, report_run
from probelib.run_arguments import check_executor
from probelib.sample_gradients import SampleGradients, or_one
from probelib.store.arrays import keep_arrays, kept_arrays, place_of
from probelib.store.paths import local_path

if TYPE_CHECKING:
    import xarray as xr


@undisturbed
def gradient_pairs(
    posterior: LocalPosterior,
    observe: Data | None = None,
    *,
    chains: int = 2,
    pairs: int = 5,
    seed: int = 0,
    batch_size: int = 16,
    by_layer: bool = False,
    memory: int | None = None,
    cache: str | os.PathLike | None = None,
    executor: Executor | None = None,
    progress: bool = True,
) -> xr.Dataset:
    r"""Estimate the loss kernel (Eq. 5) by pairs of gradients: exact, and weighted as Eq. 1 has it.

    A chain is a walk w_0, w_1, ... whose neighbours are pairs, so that a pair costs one gradient
    of every sample. The correlations theta of a chain's pairs are drawn one from each of
    ``pairs`` equal parts of [0, 1], which makes its kernel unbiased. Chains are independent: the
    spread between them is the error.

    Where rows are kept in bfloat16 (see ``memory``), rounding moved R by 5e-5 (root mean square
    over pairs of samples; at most 4e-4) in a network of 784 inputs and three layers, and by 2e-4
    (at most 1.6e-3) in ResNet-18, and K_ii by 0.04 and 0.09 %: it is no part of the errors given,
    and far below them.

    Args:
        posterior: Eq. 1.
        observe: samples whose kernel is wanted; default: those of the posterior. With others, L and
            its gradient take a pass over the posterior's own at each step.
        chains: independent walks, at least two, so that the result has an error.
        pairs: pairs of gradients in a walk.
        seed: of all walks; chain c depends on ``seed`` and c alone.
        batch_size: samples a backward pass takes.
        by_layer: keep what each parameter adds to the kernel: an inner product over all weights is
            the sum of those over the weights of each parameter. It takes as many times the memory
            of a kernel as there are parameters that move.
        memory: bytes that the gradients of one side of a pair may take, n_samples x n_parameters
            x 2 (4 where the machine has no bfloat16). Where they take more, the layers are
            split into groups, each with its own backward passes. Default: 4 GiB, and a third of
            what is free on an accelerator.
        cache: a directory in which every finished chain is kept, and found by the next call.
        executor: runs the chains in its workers, as in :func:`probelib.sample`: a process pool,
            Dask's ``client.get_executor()``, or any other. They need a cache that all of them see
            under the same path. Which worker runs a chain changes no number; a worker process takes
            the threads that OMP_NUM_THREADS gives it, or one.
        progress: show a bar.

    Returns:
        What :func:`probelib.pair_kernel` reads. ``kernel`` (chain, sample, other), K in the limit
        of no data term, nats squared; ``loss`` (chain, draw, sample), the losses at the weights of
        each walk, nats; ``log_weight`` (chain, draw), -n beta L there; ``init_loss`` (sample), the
        losses at w*; the coordinate ``label`` where there is one; the attribute ``wall_time``, in
        seconds, which counts what came from the cache as well. For K under Eq. 1, ``products``
        (chain, sample, other), the sum over pairs of v g_i'g_j / gamma, v over the chain's largest;
        and ``cross`` (chain, pair, side, sample), n beta / gamma times the inner products of the
        gradient of L at one end of a pair with the gradients at the other. With ``by_layer`` these
        three have the dimension ``layer`` after ``chain``, along which their sum is what they are
        without it (up to rounding); its coordinate has the names of the parameters that move, as
        in ``posterior.parameters``.

    Raises:
        TypeError: ``by_layer`` is not True or False, or ``executor`` no executor.
        ValueError: a bad argument, an executor without a cache, a posterior in train mode, losses
            or gradients that are not finite.
    """
    if cache is not None:
        local_path("cache", cache)
    require_kind("by_layer", by_layer, bool, "True or False")
    check_executor(executor, 1, cache, None, "cache")
    walks = walks_of(posterior, observe, chains, pairs, seed, batch_size, memory, by_layer)
    observed, layers = walks.observed, walks.layers
    call = _Call(walks, walks.identity(), losses_at_center(walks), cache)
    form = "{l_bar}{bar}| {n:.1f}/{total} [{elapsed}<{remaining}]"
    with progress_bar(total=chains * (pairs + 1), bar_format=form, disable=not progress) as bar:
        if executor is None:
            found = [
                call.kept(chain, bar.update) or _reported(call.made(chain, bar.update))
                for chain in range(chains)
            ]
        else:
            found = _in_workers(executor, call, chains, bar.update)
    from probelib.trace import Trace  # slow to import, so where it is used

    return described(
        Trace(
            {
                name: (("chain", *dims), np.stack([f[name] for f in found]))
                for name, dims in _of_a_chain(by_layer).items()
            }
            | {"init_loss": ("sample", call.center)},
            coords=sample_coordinates(len(observed), observed.labels())
            | ({"layer": layers} if layers else {}),
            attrs={
                "config": {
                    "n_beta": posterior.n_beta,
                    "localization": posterior.localization,
                    "n_samples": posterior.n_samples,
                    "n_parameters": posterior.n_parameters,
                    "pairs": int(pairs),
                    "seed": int(seed),
                    "chains": int(chains),
                },
                "fingerprint": call.identity,
                "wall_time": float(sum(f["seconds"] for f in found)),
            },
        )
    )


def _of_a_chain(by_layer: bool) -> dict[str, tuple[str, ...]]:
    """The dimensions of what a chain gives."""
    layer = ("layer",) if by_layer else ()
    return {
        "kernel": (*layer, "sample", "other"),
        "products": (*layer, "sample", "other"),
        "cross": (*layer, "pair", "side", "sample"),
        "loss": ("draw", "sample"),
        "log_weight": ("draw",),
    }


@dataclass(frozen=True)
class _Call:
    """The walks of a call, and where their results are kept.

    Attributes:
        walks: all of them.
        identity: see :meth:`Walks.identity`.
        center: losses at w*, (n,).
        cache: the directory.
    """

    walks: Walks
    identity: dict[str, Any]
    center: np.ndarray
    cache: str | os.PathLike | None

    def file(self, ending: str) -> Path | None:
        if self.cache is None:
            return None
        return place_of(self.cache, self.identity, f"-pairs/{ending}")

    def kept(self, chain: int, tick: Callable[[float], Any]) -> dict[str, np.ndarray] | None:
        """The results of one chain, where the cache has them."""
        file = self.file(f"chain-{chain}.safetensors")
        result = None
        if file is not None:
            center = {"init_loss": self.center}
            result = kept_arrays(file, self.identity, self._shapes(), center)
        if result is not None:
            tick(self.walks.pairs + 1)
            report_run("gradient walk", float(result["seconds"]), cached=True, file=file)
        return result

    def made(self, chain: int, tick: Callable[[float], Any]) -> dict[str, np.ndarray]:
        """The results of one chain, left in the cache."""
        started = time.perf_counter()
        result = _walk(self.walks, chain, tick) | {"init_loss": self.center}
        result["seconds"] = np.array(time.perf_counter() - started)
        file = self.file(f"chain-{chain}.safetensors")
        if file is not None:
            keep_arrays(file, self.identity, result)
        return result

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        n, layers = len(self.center), self.walks.layers
        lengths = {"layer": len(layers or []), "sample": n, "other": n, "side": 2}
        lengths |= {"pair": self.walks.pairs, "draw": self.walks.pairs + 1}
        found = {
            name: tuple(lengths[dim] for dim in dims)
            for name, dims in _of_a_chain(layers is not None).items()
        }
        return found | {"init_loss": (n,), "seconds": ()}


def _reported(result: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A chain that was made, after a word on the logger."""
    report_run("gradient walk", float(result["seconds"]), cached=False)
    return result


def _in_workers(
    executor: Executor, call: _Call, chains: int, tick: Callable[[float], Any]
) -> list[dict[str, np.ndarray]]:
    """The results of all chains, of which an executor's workers make those that are not kept."""
    found = {chain: call.kept(chain, tick) for chain in range(chains)}
    if missing := [chain for chain, result in found.items() if result is None]:
        assert call.cache is not None
        cache = local_path("cache", call.cache).resolve()
        call = replace(call, cache=cache)
        tasks = {f"chain {chain}": chain for chain in missing}

        def on_result(name: str, result: dict[str, np.ndarray]) -> None:
            found[tasks[name]] = _reported(result)
            tick(call.walks.pairs + 1)

        folder = place_of(cache, call.identity, "-pairs")
        made_by_workers(executor, call, folder, tasks, on_result)
    return [result for result in found.values() if result is not None]


def _walk(walks: Walks, chain: int, tick: Callable[[float], Any]) -> dict[str, np.ndarray]:
    """One chain, by the names of :func:`gradient_pairs`."""
    gradients, posterior, n = walks.gradients, walks.posterior, len(walks.observed)
    device, steps = posterior.device, walks.pairs + 1
    count = 1 if walks.layers is None else len(walks.layers)
    kernel, products = torch.zeros(2, count, n, n, dtype=torch.float64, device=device)
    cross = torch.zeros(count, walks.pairs, 2, n, dtype=torch.float64, device=device)
    log_weight, largest = torch.zeros(steps, dtype=torch.float64), -float("inf")
    groups = list(gradients.groups(n, walks.memory))
    widest = max(sum(gradients.sizes[at] for at in group) for group in groups)
    buffers = [torch.empty(n, widest, dtype=gradients.dtype, device=device) for _ in range(2)]
    for group in groups:  # each sees the same weights
        sizes = [gradients.sizes[at] for at in group]
        first, parts = sum(gradients.sizes[: group[0]]), walks.parts(group)
        here, before = (buffer[:, : sum(sizes)] for buffer in buffers)
        losses = torch.empty(steps, n, dtype=posterior.dtype, device=device)
        scale_before, slope_before = losses.new_zeros(n).double(), losses.new_zeros(0)
        for step, (weights, theta) in enumerate(walks.weights(chain)):
            walks.write(here, losses[step], weights, group)
            scale = or_one(losses[step]).double()
            mean_loss, slope = walks.of_mean_loss(
                weights, here, losses[step], slice(first, first + sum(sizes))
            )
            log_weight[step] = -posterior.n_beta * mean_loss
            if theta is not None:
                highest = max(largest, float(log_weight[step - 1 : step + 1].max()))
                # Relative to the largest weight so far, which no walk need know beforehand.
                products *= np.exp(largest - highest)
                largest = highest
                weight = float((log_weight[step - 1 : step + 1] - largest).exp().mean())
                for at, columns, cut in parts:
                    a, b = before[:, columns], here[:, columns]
                    product = products_of(a, b, cut).double() * scale_before[:, None] * scale
                    kernel[at] += product / walks.pairs
                    products[at] += product * weight
                    cross[at, step - 1, 0] += inner_products(b, slope_before[columns]) * scale
                    cross[at, step - 1, 1] += inner_products(a, slope[columns]) * scale_before
            here, before, scale_before, slope_before = before, here, scale, slope
            tick(1 / len(groups))
    cross *= posterior.n_beta / posterior.localization
    for matrix in (kernel, products):
        matrix += matrix.mT.clone()
        matrix /= 2 * posterior.localization
    if not kernel.isfinite().all() or not cross.isfinite().all():
        bad = ~(kernel.isfinite().all(2).all(0) & cross.isfinite().flatten(0, 2).all(0))
        raise walks.not_finite(int(bad.nonzero()[0, 0]))
    found = {"kernel": kernel, "products": products, "cross": cross}
    if walks.layers is None:
        found = {name: of_all[0] for name, of_all in found.items()}
    found |= {"loss": losses, "log_weight": log_weight}
    return {name: tensor.cpu().numpy() for name, tensor in found.items()}


__all__ = ["SampleGradients", "gradient_pairs"]
