r"""The posterior loss kernel K (Eq. 5) and its correlation R (Eq. 6).

With :math:`\Delta\ell_i(w) = \ell_i(w) - \ell_i(w^*)` over draws pooled from all chains (A.1):

.. math::

   K_{ij} = \operatorname{Cov}[\Delta\ell_i, \Delta\ell_j], \qquad
   R_{ij} = K_{ij} / \sqrt{K_{ii} K_{jj}}
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probelib.ambient import undisturbed
from probelib.contract import Over, canonical, unstacked
from probelib.estimators import blocks
from probelib.estimators.blocks import (
    blocks_of_deviations,
    blocks_of_losses,
    by_token,
    per_sample,
    require_draws,
    sample_coords,
)
from probelib.estimators.jackknife import (
    mcse_of_pairs,
    mcse_of_variance,
    p_values_of_pairs,
)
from probelib.estimators.neighbours import (
    Neighbours,
    benjamini_hochberg,
    nearest,
    of_found,
    require_fewer,
)
from probelib.estimators.positions import Positions, by_position
from probelib.estimators.series import batches
from probelib.estimators.sets import together
from probelib.estimators.weighted import Weights, mcse, mean, weights_of

if TYPE_CHECKING:
    import xarray as xr

# A kernel whose centred trace takes more than this is read from disk at every use.
_IN_MEMORY = 2**31
# A draw of less weight is worth nothing.
_NO_WEIGHT = 1e-30
# What the correlations and columns of the rows that look for neighbours at once may take.
_SEARCH_BYTES = 2**30
# What the draws of pairs that are tested at once may take.
_TEST_BYTES = 2**27
# Draws that a single chain needs before its halves can tell anything.
_FEWEST_TO_HALVE = 16


class Kernel(ABC):
    """A loss kernel of n samples: what every kernel answers, however it came about.

    ``rows``, ``cols`` and ``among`` are positions along ``sample``: whole numbers (negative ones
    count from the end), a mask, a slice, or None for all. A single number takes its axis away, as
    in NumPy: ``kernel.correlation(7)`` has shape (n,). Positions that are none raise IndexError. A
    sample whose loss has no variance has R_ij = 0 with every sample, itself included.

    Attributes:
        shape: (n, n).
    """

    shape: tuple[int, int]

    @abstractmethod
    def diagonal(self) -> xr.DataArray:
        """Loss variances K_ii, shape (sample,), nats squared.

        The coordinate ``mcse`` is their Monte-Carlo standard error, and NaN where it was
        not estimated; ``sample_id`` and ``label`` are those of the source, where it has them.
        """

    @abstractmethod
    def covariance(self, rows: Positions = None, cols: Positions = None) -> np.ndarray:
        """K at the positions ``rows`` and ``cols`` (default: all), in nats squared."""

    @abstractmethod
    def correlation(self, rows: Positions = None, cols: Positions = None) -> np.ndarray:
        """R at the positions ``rows`` and ``cols`` (default: all), in [-1, 1]."""

    @abstractmethod
    def covariance_mcse(self, rows: Positions, cols: Positions) -> np.ndarray:
        """Monte-Carlo standard error of K by the jackknife, nats squared.

        1.96 of it are half of the 95 % interval. Infinite where the draws cannot tell, NaN where
        it was not estimated.
        """

    @abstractmethod
    def correlation_mcse(self, rows: Positions, cols: Positions) -> np.ndarray:
        """Monte-Carlo standard error of R by the jackknife; 0 on the diagonal.

        1.96 of it are half of the 95 % interval. Infinite where the draws cannot tell, NaN where
        it was not estimated.
        """

    @abstractmethod
    def features(self, n_components: int | None = None, rows: Positions = None) -> np.ndarray:
        """Coordinates of the samples: their inner products are K, or its best approximation.

        Args:
            n_components: keep this many principal axes, the largest first; default: all there are.
            rows: positions of the samples wanted; default: all.

        Returns:
            Features, shape (rows, components), nats.

        Raises:
            ValueError: more components than there are.

        The sign of a principal axis is arbitrary.
        """

    @by_position
    def top_correlated(
        self,
        k: int = 16,
        rows: Positions = None,
        among: Positions = None,
        block: int | None = None,
    ) -> Neighbours:
        """The k most correlated samples of each row, itself left out, and which are not chance.

        Args:
            k: how many.
            rows: positions to find neighbours for; default: all.
            among: positions that may be neighbours; default: all.
            block: rows that meet all candidates at once. A trace on disk is read once for each
                block of rows, and the default takes up to 1 GiB.

        Returns:
            Neighbours of shape (rows, k), positions in the whole kernel, with q-values that
            account for the choice among all candidates, where the kernel has draws: see
            :class:`Neighbours`.

        Raises:
            ValueError: k is not between 1 and the number of candidates less one.
        """
        every = np.arange(self.shape[0])
        row_at, candidates = every[index_of(rows)], np.unique(every[index_of(among)])
        require_fewer(k, len(candidates))
        if block is None:
            block = max(1, _SEARCH_BYTES // self._bytes_per_row())
        index, correlation = self._search(row_at, candidates, k, block)
        q_value = self._q_values(row_at, candidates, index, block)
        errors = partial(self._neighbour_errors, row_at, index)
        return Neighbours(index, correlation, q_value, row_at, self._coordinates(), errors)

    def _search(
        self, rows: np.ndarray, among: np.ndarray, k: int, block: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Positions and correlations of the best k of ``among``, some rows at a time."""
        starts = range(0, max(1, len(rows)), block)
        parts = [rows[i : i + block] for i in starts]
        found = [nearest(self._correlation_blocks(part, among), part, k) for part in parts]
        index, correlation = (np.concatenate(part) for part in zip(*found, strict=True))
        return index, correlation

    def _q_values(
        self, rows: np.ndarray, among: np.ndarray, index: np.ndarray, block: int
    ) -> np.ndarray:
        """Of the neighbours ``index`` (rows, k); NaN where there are no draws to tell."""
        return np.full(index.shape, np.nan)

    def _neighbour_errors(self, rows: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Of R of each row with its own neighbours (rows, k)."""
        error = np.empty(index.shape)
        for at, row in enumerate(rows):
            error[at] = self.correlation_mcse(np.array([row]), index[at])[0]
        return error

    @abstractmethod
    def _coordinates(self) -> Mapping[str, Any]:
        """``sample_id`` and ``label``, each of shape (sample,), where known."""

    @abstractmethod
    def _correlation_blocks(
        self, rows: np.ndarray, among: np.ndarray
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Blocks of the candidates ``among``, sorted, each with its R: (rows, block), a copy."""

    @abstractmethod
    def _bytes_per_row(self) -> int:
        """What a row takes while it meets a block of candidates."""


class LossKernel(Kernel):
    """The loss kernel of a trace, never built as a full matrix.

    Stored as the centred trace with unit columns U, shape (S, n), and one scale s_i per sample:
    K_ij = s_i s_j u_i'u_j and R_ij = u_i'u_j; where the draws have weights v, a row of U has its
    root of v in it, and s_i² is divided by 1 - sum v². A sample without any variance has u_i = 0.
    Splitting off the scale keeps samples with losses of 1e-18 nats as exact as the others. The
    trace is read at the first use, S x n x 4 bytes; beyond 2 GiB it stays on disk, and every use
    reads it block by block. Correlations and features are float32, covariances float64.

    K has the divisor S - 1 (A.1). Autocorrelated draws make it too small by about K / ESS, which is
    less than its error; :func:`probelib.empirical_variance` puts that right, R does not feel it.

    Of a trace of losses per token its samples are the tokens that there are, sample after sample:
    :meth:`find` says where one of them is, and neighbours name sample and position.

    Args:
        trace: from :func:`probelib.sample` or :func:`probelib.open_trace`.
        over: of a trace of losses per token, "token" (the default) or "sample".

    Raises:
        ValueError: fewer than two draws, or (at first use) losses that are not finite.
    """

    def __init__(self, trace: xr.Dataset, over: Over = None):
        self._given, self._over = unstacked(together(trace)), over
        trace = canonical(self._given, "loss", over=over)
        require_draws(trace)
        self._trace, self._weights = trace, weights_of(trace)
        self.shape = (trace.sizes["sample"], trace.sizes["sample"])
        self._chains, self._draws = trace.sizes["chain"], trace.sizes["draw"]

    def find(self, sample: int, token: int, observed_set: str | None = None) -> int:
        """The position in this kernel of a token, by its names as neighbours have them.

        Args:
            sample: its ``sample_id``.
            token: its ``token``, the position in the sample.
            observed_set: the name of its set, where the kernel is of several.

        Raises:
            ValueError: a kernel of whole samples.
            IndexError: no such token, or more than one.
        """
        names = self._coordinates()
        if "token" not in names:
            raise ValueError("over is 'sample' in this kernel, which has no tokens to be found")
        same = (names["sample_id"] == sample) & (names["token"] == token)
        if observed_set is not None and "observed_set" in names:
            same &= names["observed_set"] == observed_set
        found = np.flatnonzero(same)
        if len(found) != 1:
            many = "does not have" if not len(found) else "has in several sets; give observed_set"
            raise IndexError(f"token is {token}, which sample {sample} {many}")
        return int(found[0])

    def diagonal(self) -> xr.DataArray:
        error = np.empty(self.shape[0])
        for block, centred in blocks_of_deviations(self._trace):
            if self._weights is None:
                error[block] = mcse_of_variance(centred)
            else:
                error[block] = mcse(np.square(centred), self._weights)
        if error.any():  # what has not moved yet may do so: no draw tells how far
            error[error == 0] = np.inf
        coords = sample_coords(self._trace)
        found = per_sample(coords, np.square(self._scale), error, "loss_variance")
        return by_token(found, self._given, self._over)

    @by_position
    def covariance(self, rows: Positions = None, cols: Positions = None) -> np.ndarray:
        scale = self._scale[index_of(rows)][:, None] * self._scale[index_of(cols)]
        return scale * self.correlation(rows, cols)

    @by_position
    def correlation(self, rows: Positions = None, cols: Positions = None) -> np.ndarray:
        u = self._columns(rows)
        v = u if cols is rows else self._columns(cols)
        return np.clip(u.T @ v, -1, 1)

    @by_position
    def correlation_mcse(self, rows: Positions, cols: Positions) -> np.ndarray:
        """Monte-Carlo standard error of R by the jackknife; 0 on the diagonal.

        1.96 of it are half of the 95 % interval. Infinite where the draws cannot tell.
        """
        every = np.arange(self.shape[0])
        itself = np.equal.outer(every[index_of(rows)], every[index_of(cols)])
        if self._weights is not None:
            error = self._weighted_mcse(rows, cols, self.correlation(rows, cols))
        else:
            error = self._mcse(rows, cols, correlation=True)
        return np.where(itself, 0, error)

    @by_position
    def covariance_mcse(self, rows: Positions, cols: Positions) -> np.ndarray:
        """Monte-Carlo standard error of K by the jackknife, nats squared.

        1.96 of it are half of the 95 % interval. Infinite where the draws cannot tell.
        """
        scale = self._scale[index_of(rows)][:, None] * self._scale[index_of(cols)]
        if self._weights is not None:
            return scale * self._weighted_mcse(rows, cols, 0.0)
        error, count = self._mcse(rows, cols, correlation=False), self._chains * self._draws
        unknown = np.isinf(error)  # also where the scale is 0
        return np.where(unknown, np.inf, count * scale * np.where(unknown, 0, error))

    def _mcse(self, rows: Positions, cols: Positions, correlation: bool) -> np.ndarray:
        shape = (self._chains, self._draws, -1)
        u, v = (self._columns(at).astype(np.float64).reshape(shape) for at in (rows, cols))
        error = np.empty((u.shape[2], v.shape[2]))
        for start in range(0, v.shape[2], blocks.BLOCK):
            here = slice(start, start + blocks.BLOCK)
            error[:, here] = mcse_of_pairs(u, v[..., here], correlation)
        return error

    def _weighted_mcse(
        self, rows: Positions, cols: Positions, slope: np.ndarray | float
    ) -> np.ndarray:
        """Of the mean of [u_i u_j - slope (u_i² + u_j²) / 2] / v over weighted draws, row by row.

        A draw of no weight is left out.
        """
        assert self._weights is not None
        weight = self._weights.values.reshape(-1, 1)
        count = np.where(weight > _NO_WEIGHT, 1 / np.maximum(weight, _NO_WEIGHT), 0)
        every, v = self._columns(rows), self._columns(cols).astype(np.float64)
        error = np.empty((every.shape[1], v.shape[1]))
        for at, slopes in enumerate(np.broadcast_to(slope, error.shape)):
            u = every[:, at].astype(np.float64)[:, None]
            series = count * (u * v - slopes * (u * u + v * v) / 2)
            error[at] = mcse(series.reshape(self._chains, self._draws, -1), self._weights)
        return error

    def _coordinates(self) -> Mapping[str, Any]:
        return {name: values.values for name, values in sample_coords(self._trace).items()}

    def _q_values(
        self, rows: np.ndarray, among: np.ndarray, index: np.ndarray, block: int
    ) -> np.ndarray:
        """One half chooses 4 k neighbours a row, the other tests whether these have R = 0."""
        if self._weights is not None or (self._chains == 1 and self._draws < _FEWEST_TO_HALVE):
            return np.full(index.shape, np.nan)
        chosen, other = self._halves
        wide = min(4 * index.shape[1], len(among) - 1)
        tested = chosen._search(rows, among, wide, block)[0]
        return of_found(index, tested, benjamini_hochberg(other._p_values(rows, tested)))

    @cached_property
    def _halves(self) -> tuple[LossKernel, LossKernel]:
        """The kernels of every other chain, or of a chain's first half and its last 3/8."""
        if self._chains > 1:
            halves = [{"chain": slice(first, None, 2)} for first in (0, 1)]
        else:  # an eighth between them, so that they are nearly independent
            halves = [
                {"draw": slice(0, self._draws // 2)},
                {"draw": slice(-3 * self._draws // 8, None)},
            ]
        first, second = (LossKernel(self._trace.isel(half), "sample") for half in halves)
        return first, second

    def _p_values(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """Of R = 0 against R > 0 for each row with its own ``cols`` (rows, m): same shape."""
        p = np.empty(cols.shape)
        at_once = max(1, _TEST_BYTES // (8 * self._chains * self._draws * cols.shape[1]))
        for start in range(0, len(rows), at_once):
            here = slice(start, start + at_once)
            samples, place = np.unique(np.append(rows[here], cols[here]), return_inverse=True)
            x = self._columns(samples).astype(np.float64)
            x = x.reshape(self._chains, self._draws, -1)
            new = self._parts[samples] < 0
            if new.any():
                self._parts[samples[new]] = batches(x[..., new])
            first, second = np.split(place, [len(rows[here])])
            i = np.repeat(first, cols.shape[1])
            found = p_values_of_pairs(x, self._parts[samples], i, second)
            p[here] = found.reshape(cols[here].shape)
        return p

    @cached_property
    def _parts(self) -> np.ndarray:
        """Batches a chain for each sample, -1 where not known yet."""
        return np.full(self.shape[0], -1)

    def _correlation_blocks(
        self, rows: np.ndarray, among: np.ndarray
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        columns = torch.from_numpy(self._columns(rows)).T.contiguous()
        for where, unit, _ in self._blocks():
            here = among[np.searchsorted(among, where.start) : np.searchsorted(among, where.stop)]
            if not len(here):
                continue
            if len(here) < unit.shape[1]:
                unit = unit[:, here - where.start]
            yield here, undisturbed(torch.matmul)(columns, torch.from_numpy(unit))

    def _bytes_per_row(self) -> int:
        return 4 * (self._chains * self._draws + blocks.BLOCK)

    @by_position
    def features(self, n_components: int | None = None, rows: Positions = None) -> np.ndarray:
        """Coordinates whose inner products are K: the loss traces as vectors.

        Args:
            n_components: keep this many principal axes of the centred traces; default: all S.
            rows: positions of the samples wanted; default: all.

        Returns:
            Features, shape (rows, S) or (rows, n_components), nats.

        Raises:
            ValueError: more components than draws or samples.
        """
        chosen = np.arange(self.shape[0])[index_of(rows)]
        draws = self._chains * self._draws
        if n_components is None:
            out = np.empty((len(chosen), draws), np.float32)
            for at, part in self._traces(chosen):
                out[at] = part
            return out
        if not 1 <= n_components <= min(draws, len(chosen)):
            raise ValueError(
                f"n_components is {n_components}; choose from 1 to "
                f"{min(draws, len(chosen))}, the smaller of draws and samples"
            )
        gram = np.zeros((draws, draws), np.float32)
        for _, part in self._traces(chosen):
            gram += part.T @ part
        axes = np.linalg.eigh(gram.astype(np.float64))[1][:, ::-1][:, :n_components]
        axes = axes.astype(np.float32)
        out = np.empty((len(chosen), n_components), np.float32)
        for at, part in self._traces(chosen):
            out[at] = part @ axes
        return out

    def _traces(self, chosen: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Centred traces (k, S) of some samples block by block, with their places in ``chosen``."""
        for where, unit, scale in self._blocks():
            at = np.flatnonzero((chosen >= where.start) & (chosen < where.stop))
            if len(at):
                here = chosen[at] - where.start
                yield at, (unit[:, here] * scale[here].astype(np.float32)).T

    def _columns(self, positions: Positions) -> np.ndarray:
        """Unit columns of some samples, shape (S, k)."""
        if self._small:
            return self._unit_and_scale[0][:, index_of(positions)]
        chosen = np.arange(self.shape[0])[index_of(positions)]
        out = np.empty((self._chains * self._draws, len(chosen)), np.float32)
        needed = np.zeros(self.shape[0], bool)
        needed[chosen] = True
        for where, losses in blocks_of_losses(self._trace, needed):
            at = np.flatnonzero((chosen >= where.start) & (chosen < where.stop))
            out[:, at] = self._unit(losses[:, :, chosen[at] - where.start])[0]
        return out

    def _blocks(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Blocks of samples with their unit columns (S, block) and scales (block,)."""
        if self._small:
            unit, scale = self._unit_and_scale
            for start in range(0, self.shape[0], blocks.BLOCK):
                where = slice(start, min(start + blocks.BLOCK, self.shape[0]))
                yield where, unit[:, where], scale[where]
        else:
            for where, losses in blocks_of_losses(self._trace):
                yield where, *self._unit(losses)

    def _unit(self, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _unit_columns(losses, self._weights)

    @property
    def _small(self) -> bool:
        return self._chains * self._draws * self.shape[0] * 4 <= _IN_MEMORY

    @cached_property
    def _unit_and_scale(self) -> tuple[np.ndarray, np.ndarray]:
        unit = np.empty((self._chains * self._draws, self.shape[0]), np.float32)
        scale = np.empty(self.shape[0])
        for where, losses in blocks_of_losses(self._trace):
            unit[:, where], scale[where] = self._unit(losses)
        return unit, scale

    @cached_property
    def _scale(self) -> np.ndarray:
        if self._small:
            return self._unit_and_scale[1]
        return np.concatenate(
            [self._unit(losses)[1] for _, losses in blocks_of_losses(self._trace)]
        )

    def __repr__(self) -> str:
        return f"LossKernel({self.shape[0]} samples, {self._chains} x {self._draws} draws)"


def loss_kernel(trace: xr.Dataset, over: Over = None) -> LossKernel:
    """The posterior loss kernel of a trace (Eqs. 5 and 6): see :class:`LossKernel`.

    Of several observed sets it is the kernel of all their samples, set after set in the order of
    the tree, which is that of their names ("test" before "train"): what they are to each other is
    in it, and neighbours name their set.
    """
    return LossKernel(trace, over)


def split_half_reliability(first: np.ndarray, second: np.ndarray) -> float:
    """How well two independent estimates of R agree: Pearson's r over all pairs i < j.

    It is the share of the variance between pairs that is signal, in each of the two halves; for
    the average of both see :func:`spearman_brown`.

    Args:
        first, second: R from two halves of the draws that share no chain, shape (n, n).

    Returns:
        r; 0 where one of the two does not vary.

    Raises:
        ValueError: the shapes differ, or there are fewer than three samples.
    """
    if first.shape != second.shape or len(first) < 3:
        raise ValueError(
            f"first has shape {first.shape} and second {second.shape}; give two correlation "
            "matrices of the same samples, at least three"
        )
    above = np.triu_indices(len(first), 1)
    a, b = first[above], second[above]
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def spearman_brown(reliability: float) -> float:
    """Reliability of the mean of two halves that agree by ``reliability``: 2 r / (1 + r).

    Halves that agree less than chance have none: 0.
    """
    r = max(reliability, 0.0)
    return 2 * r / (1 + r)


def _unit_columns(losses: np.ndarray, weights: Weights | None) -> tuple[np.ndarray, np.ndarray]:
    """Centred losses as unit columns (S, k), float32, and their scales (k,): see LossKernel."""
    centred = (losses - mean(losses, weights)).reshape(-1, losses.shape[-1])
    freedom = len(centred) - 1.0
    if weights is not None:
        centred *= np.sqrt(weights.values).reshape(-1, 1)
        freedom = 1 / weights.unbiased
    norm = np.linalg.norm(centred, axis=0)
    centred /= np.where(norm > 0, norm, 1)
    return centred.astype(np.float32), norm / np.sqrt(freedom)


def index_of(positions: Positions) -> Any:
    """Positions as NumPy indexes with them."""
    return slice(None) if positions is None else positions


__all__ = [
    "Kernel",
    "LossKernel",
    "Neighbours",
    "index_of",
    "loss_kernel",
    "spearman_brown",
    "split_half_reliability",
]
