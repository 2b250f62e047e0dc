"""The nearest samples of each by pairs of gradients, where no matrix of all samples has room."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probelib.ambient import undisturbed
from probelib.arguments import require_kind, require_whole
from probelib.contract import sample_coordinates
from probelib.data import Data
from probelib.estimators import blocks
from probelib.estimators.matrix_kernel import correlations
from probelib.estimators.neighbours import Neighbours, nearest, require_fewer
from probelib.estimators.pair_sums import (
    DataTerm,
    Diagonal,
    Sums,
    bear_an_error,
    diagonal_of,
    kernel_and_left_out,
    sums_of_chain,
    total_of,
)
from probelib.estimators.positions import Positions, place
from probelib.job import made_by_workers
from probelib.pair_rows import Cut, of_rows, of_samples, pair_weights
from probelib.pair_walks import Walks, losses_at_center, walks_of
from probelib.posterior import LocalPosterior
from probelib.progress import progress_bar, report_run
from probelib.run_arguments import check_executor
from probelib.store.arrays import keep_arrays, kept_arrays, place_of
from probelib.store.paths import local_path

_FORMAT = 1  # of what is kept
_ENDING = "-neighbours"
_OF_SAMPLES, _OF_ROWS = "look at all samples", "block of rows"
_NAMES = "kernel", "products", "cross", "loss", "log_weight"


@undisturbed
def pair_neighbours(
    posterior: LocalPosterior,
    observe: Data | None = None,
    *,
    k: int = 16,
    rows: Positions = None,
    chains: int = 8,
    pairs: int = 2,
    seed: int = 0,
    batch_size: int = 16,
    memory: int | None = None,
    limit: bool = False,
    cache: str | os.PathLike | None = None,
    executor: Executor | None = None,
    progress: bool = True,
) -> Neighbours:
    r"""The k most correlated samples of each row under Eq. 1, without a matrix of all samples.

    Up to rounding it is

    .. code-block:: python

        pairs = probelib.gradient_pairs(posterior, observe, chains=..., pairs=..., seed=...)
        probelib.pair_kernel(pairs, limit=limit).top_correlated(k, rows=rows)

    of the same walks. That takes chains x n x n numbers; this takes the products of a block of rows
    with all samples, chains x block x n, and the gradients of a block at three weights. For it
    the gradients of all samples are computed anew for every block: with m rows that is
    (m / block) x n x chains x (pairs + 1) gradients, which cost little beside the products where
    a block has hundreds of rows, and most of the time where it has a few.

    Args:
        posterior: Eq. 1.
        observe: samples among which neighbours are looked for; default: those of the posterior.
        k: how many for each row.
        rows: positions to find neighbours for; default: all. All samples may be neighbours.
        chains, pairs, seed, batch_size: of the walks, as in :func:`probelib.gradient_pairs`. The
            errors come from leaving out a chain, so that few chains make them wide.
        memory: bytes that a block of rows may take, with gradients, products and all; more make it
            faster. Beside it there are the weights and the gradient of L along one walk, 2 x
            (pairs + 1) x n_parameters numbers. A single row, of a single layer, may take more.
            Default: 4 GiB, and a third of what is free on an accelerator.
        limit: leave the data term of Eq. 1 out, as in :func:`probelib.pair_kernel`.
        cache: a directory in which every walk's look at the samples is kept, and every block of
            rows that is finished. A call that was stopped goes on from there, and other rows use
            what there is. The same call finds the same blocks; with another ``memory`` in between
            some numbers may be rounded otherwise.
        executor: runs the walks, and then the blocks, in its workers: as in
            :func:`probelib.gradient_pairs`. Each takes ``memory`` bytes.
        progress: show a bar.

    Returns:
        What :meth:`probelib.Kernel.top_correlated` gives, with the errors ``mcse``. A kernel of
        pairs has no q-values: they are NaN.

    Raises:
        TypeError, ValueError: a bad argument, an executor without a cache, a posterior in train
            mode, losses or gradients that are not finite.
        IndexError: ``rows`` that are no positions.

    Warns:
        UserWarning: the weights exp[-n beta L] may leave so few of the draws that R is not to be
            believed; its errors are infinite then.
    """
    if cache is not None:
        cache = local_path("cache", cache).resolve()
    require_kind("limit", limit, bool, "True or False")
    k = require_whole("k", k)
    if memory is not None:
        memory = require_whole("memory", memory)
    check_executor(executor, 1, cache, None, "cache")
    walks = walks_of(posterior, observe, chains, pairs, seed, batch_size, memory)
    n = len(walks.observed)
    at = np.arange(n) if (index := place("rows", rows, n)) is None else np.arange(n)[index]
    require_fewer(k, n)
    wanted, back = np.unique(at, return_inverse=True)
    cut = Cut.of(walks, chains)
    form = "{l_bar}{bar}| {n:.1f}/{total} [{elapsed}<{remaining}]"
    total = chains * (1 + -(-len(wanted) // cut.rows))
    with progress_bar(total=total, bar_format=form, disable=not progress) as bar:
        samples = _Samples(walks, cut, cache, losses_at_center(walks))
        of_chains = samples.of_all(chains, executor, bar.update)
        search = _search(samples, of_chains, k, limit)
        found = search.of_all(wanted, executor, bar.update)
    labels = walks.observed.labels()
    coords = {name: values for name, (_, values) in sample_coordinates(n, labels).items()}
    index, correlation, mcse = (array[back] for array in found)
    q_value = np.full(index.shape, np.nan)  # as of every kernel of pairs
    neighbours = Neighbours(index, correlation, q_value, at, coords, partial(np.copy, mcse))
    single = rows is not None and not isinstance(rows, slice) and not np.ndim(rows)
    return neighbours.take(0, 0) if single else neighbours


@dataclass(frozen=True, eq=False)
class _Samples:
    """What the walks know of each sample alone, chain by chain, and where it is kept.

    Attributes:
        walks: all of them.
        cut: how gradients are cut to fit.
        cache: the directory.
        center: losses at w*, (n,).
    """

    walks: Walks
    cut: Cut
    cache: Path | None
    center: np.ndarray

    @cached_property
    def identity(self) -> dict[str, Any]:
        return self.walks.identity() | {"of_samples": _FORMAT}

    def made(self, chain: int, tick: Callable[[float], Any]) -> dict[str, np.ndarray]:
        """Of one chain, left in the cache."""
        started = time.perf_counter()
        found = of_samples(self.walks, chain, self.cut, tick) | {"init_loss": self.center}
        found["seconds"] = np.array(time.perf_counter() - started)
        if self.cache is not None:
            keep_arrays(self._file(chain), self.identity, found)
        return found

    def of_all(
        self, chains: int, executor: Executor | None, tick: Callable[[float], Any]
    ) -> list[dict[str, np.ndarray]]:
        """Of all chains: what is kept, and what is missing made."""
        found = {chain: self._kept(chain, tick) for chain in range(chains)}
        missing = {f"chain {chain}": chain for chain in found if found[chain] is None}

        def on_result(name: str, result: dict[str, np.ndarray]) -> None:
            report_run(_OF_SAMPLES, float(result["seconds"]), cached=False)
            found[missing[name]] = result
            tick(0.0 if executor is None else 1.0)

        _make(self, missing, executor, self.cache, self.identity, on_result, tick)
        return [result for result in found.values() if result is not None]

    def _kept(self, chain: int, tick: Callable[[float], Any]) -> dict[str, np.ndarray] | None:
        if self.cache is None:
            return None
        n, pairs = len(self.center), self.walks.pairs
        shapes = {"kernel": (n,), "products": (n,), "cross": (pairs, 2, n), "init_loss": (n,)}
        shapes |= {"loss": (pairs + 1, n), "log_weight": (pairs + 1,), "seconds": ()}
        file, center = self._file(chain), {"init_loss": self.center}
        found = kept_arrays(file, self.identity, shapes, center)
        if found is not None:
            report_run(_OF_SAMPLES, float(found["seconds"]), cached=True, file=file)
            tick(1.0)
        return found

    def _file(self, chain: int) -> Path:
        assert self.cache is not None
        return place_of(self.cache, self.identity, f"{_ENDING}/chain-{chain}.safetensors")


@dataclass(frozen=True, eq=False)
class _Search:
    """Blocks of rows, each with its nearest samples, and where they are kept.

    Attributes:
        walks: all of them.
        cut: how gradients are cut to fit.
        cache: the directory.
        identity: all that a row's numbers depend on.
        k: neighbours of each row.
        shares: what each pair counts, (chain, pairs).
        term: of Eq. 1; None: without it.
        diagonal: of all samples.
        believed: whether the weights bear an error.
    """

    walks: Walks
    cut: Cut
    cache: Path | None
    identity: dict[str, Any]
    k: int
    shares: np.ndarray
    term: DataTerm | None
    diagonal: Diagonal
    believed: bool

    def made(self, rows: np.ndarray, tick: Callable[[float], Any]) -> dict[str, np.ndarray]:
        """Of one block of rows, left in the cache."""
        started = time.perf_counter()
        index, correlation, mcse = self._nearest(rows, tick)
        # No file has infinite numbers: an error of -1 is one that is not known.
        found = {"rows": rows, "index": index, "correlation": correlation}
        found |= {"mcse": np.where(np.isinf(mcse), -1.0, mcse)}
        found["seconds"] = np.array(time.perf_counter() - started)
        if self.cache is not None:
            named = hashlib.sha256(rows.tobytes()).hexdigest()[:16]
            keep_arrays(
                self._folder / f"rows-{len(rows)}-{named}.safetensors", self.identity, found
            )
        return found

    def of_all(
        self, rows: np.ndarray, executor: Executor | None, tick: Callable[[float], Any]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Neighbours of rows, sorted, each once, with R and its errors: each (rows, k)."""
        index = np.full((len(rows), self.k), -1)
        correlation, mcse = np.full((2, len(rows), self.k), np.nan)

        def enter(result: dict[str, np.ndarray]) -> None:
            here = np.isin(rows, result["rows"])
            there = np.searchsorted(result["rows"], rows[here])
            index[here] = result["index"][there]
            correlation[here] = result["correlation"][there]
            error = result["mcse"][there]
            mcse[here] = np.where(error < 0, np.inf, error)

        for result in self._kept():
            enter(result)
        left = rows[index[:, 0] < 0]
        cut = [left[i : i + self.cut.rows] for i in range(0, len(left), self.cut.rows)]
        missing = {f"rows {part[0]} to {part[-1]}": part for part in cut}
        chains = len(self.shares)
        tick(chains * (-(-len(rows) // self.cut.rows) - len(missing)))

        def on_result(name: str, result: dict[str, np.ndarray]) -> None:
            report_run(_OF_ROWS, float(result["seconds"]), cached=False)
            enter(result)
            tick(0.0 if executor is None else chains)

        _make(self, missing, executor, self.cache, self.identity, on_result, tick)
        return index, correlation, mcse

    def _nearest(
        self, rows: np.ndarray, tick: Callable[[float], Any]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        products = [
            of_rows(self.walks, chain, rows, share, self.cut, tick)
            for chain, share in enumerate(self.shares)
        ]

        def sums(chain: int) -> Sums:
            return sums_of_chain(self.term, chain, products[chain], rows)

        variance = self.diagonal.variance
        if self.believed:
            covariance, left_out = kernel_and_left_out(sums, self.diagonal, rows)
        else:
            covariance, left_out = total_of(sums, len(products)).kernel(rows), None
        score = correlations(covariance, variance[rows], variance)
        index, correlation = nearest(_blocks_of(score), rows, self.k)
        mcse = np.full(index.shape, np.inf)
        if left_out is not None:
            for at, (row, near) in enumerate(zip(rows, index, strict=True)):
                part = covariance[at : at + 1, near]
                mcse[at] = left_out.correlation_mcse(np.array([row]), near, part, variance)[0]
        return index, correlation, mcse

    def _kept(self) -> Iterator[dict[str, np.ndarray]]:
        """Blocks of rows that are there already, of any call."""
        if self.cache is None:
            return
        for file in sorted(self._folder.glob("rows-*.safetensors")):
            count = file.name.split("-")[1]
            if not count.isdecimal():
                continue
            each = int(count), self.k
            shapes = {"rows": each[:1], "index": each, "correlation": each, "mcse": each}
            found = kept_arrays(file, self.identity, shapes | {"seconds": ()}, {})
            if found is not None:
                report_run(_OF_ROWS, float(found["seconds"]), cached=True, file=file)
                yield found

    @cached_property
    def _folder(self) -> Path:
        assert self.cache is not None
        return place_of(self.cache, self.identity, _ENDING)


def _search(
    samples: _Samples, of_chains: list[dict[str, np.ndarray]], k: int, limit: bool
) -> _Search:
    """What remains to be done once all chains have looked at each sample."""
    every = {name: np.stack([of[name] for of in of_chains]) for name in _NAMES}
    chains, pairs = len(of_chains), samples.walks.pairs
    if limit:
        term, believed, shares = None, True, np.full((chains, pairs), 1 / pairs)
    else:
        term = DataTerm(every["log_weight"], every["loss"], every["cross"])
        # The caller is five frames away: undisturbed, and its wrapper, stand between.
        believed = bear_an_error(term.log_weight, stacklevel=5)
        shares = np.stack([pair_weights(of_chain) for of_chain in term.log_weight])
    own = every["kernel" if limit else "products"]
    diagonal = diagonal_of([sums_of_chain(term, chain, of) for chain, of in enumerate(own)])
    # A row depends on the others' variances too: on all that was found of them, to the last bit.
    digest = hashlib.sha256(b"".join(every[name].tobytes() for name in _NAMES)).hexdigest()
    identity = samples.identity | {"k": k, "limit": limit, "chains": chains, "samples": digest}
    return _Search(
        samples.walks, samples.cut, samples.cache, identity, k, shares, term, diagonal, believed
    )


def _blocks_of(score: np.ndarray) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """R of some rows with all samples, cut as :class:`probelib.MatrixKernel` cuts it."""
    for start in range(0, score.shape[1], blocks.BLOCK):
        here = np.arange(start, min(start + blocks.BLOCK, score.shape[1]))
        yield here, torch.from_numpy(score[:, here])


def _make(
    call: _Samples | _Search,
    tasks: dict[str, Any],
    executor: Executor | None,
    cache: Path | None,
    identity: dict[str, Any],
    on_result: Callable[[str, Any], None],
    tick: Callable[[float], Any],
) -> None:
    """Make what is missing, by name: here, or in an executor's workers."""
    if executor is None:
        for name, task in tasks.items():
            on_result(name, call.made(task, tick))
    elif tasks:
        assert cache is not None
        made_by_workers(executor, call, place_of(cache, identity, _ENDING), tasks, on_result)


__all__ = ["pair_neighbours"]
