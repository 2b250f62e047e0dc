r"""What a trace says: loss gain, loss kernel, LLC, singular fluctuation, diagnostics.

With :math:`\Delta\ell_i(w) = \ell_i(w) - \ell_i(w^*)` over S draws pooled from all chains (A.1):

.. math::

   \mu_i = \operatorname{E}[\Delta\ell_i], \qquad
   K_{ij} = \operatorname{Cov}[\Delta\ell_i, \Delta\ell_j], \qquad
   R_{ij} = K_{ij} / \sqrt{K_{ii} K_{jj}}

(Eqs. 4 to 6). Every estimate carries its Monte-Carlo standard error.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy.fft
import torch
import xarray as xr

with warnings.catch_warnings():  # ArviZ announces its next version at every import
    warnings.simplefilter("ignore", FutureWarning)
    import arviz as az

# Samples that are read at a time: as many as lie together on disk, fewer if there are many draws.
_BLOCK, _BLOCK_BYTES = 8192, 2**28
# A kernel whose centred trace takes more than this is read from disk at every use.
_IN_MEMORY = 2**31


@dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty.

    Attributes:
        value: the estimate.
        mcse: its Monte-Carlo standard error, in the same unit.
        ess: effective number of draws behind it (ArviZ, bulk).
        rhat: rank-normalised split R-hat of the series behind it (ArviZ).
    """

    value: float
    mcse: float
    ess: float
    rhat: float

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.mcse:.2g}"


def loss_gain(trace: xr.Dataset) -> xr.DataArray:
    """The posterior loss gain of every observed sample (Eq. 4).

    Args:
        trace: from :func:`probelib.sample` or :func:`probelib.open_trace`.

    Returns:
        mu, shape (sample,), nats; its coordinate ``mcse`` is the Monte-Carlo standard error as
        ArviZ defines it.

    Raises:
        ValueError: fewer than two draws, or losses that are not finite.
    """
    gain, mcse = np.empty(trace.sizes["sample"]), np.empty(trace.sizes["sample"])
    for block, change in _loss_changes(trace):
        gain[block] = change.mean((0, 1))
        mcse[block] = mcse_of_mean(change)
    return _per_sample(trace, gain, mcse, "loss_gain")


def local_learning_coefficient(trace: xr.Dataset) -> Estimate:
    r"""The local learning coefficient (B.1): :math:`\hat\lambda = n\beta\,(E[L(w)] - L(w^*))`.

    L is the mean over the *observed* samples: observe the sampling data for the LLC as defined.
    The paper prints n beta times the sum of the gains, which is n times larger.

    Args:
        trace: from :func:`probelib.sample` or :func:`probelib.open_trace`.

    Returns:
        The LLC, dimensionless, with its standard error from ArviZ.

    Raises:
        ValueError: fewer than two draws, or losses that are not finite.
    """
    n_beta = trace.attrs["config"]["n_beta"]
    return _estimate(n_beta * mean_loss_change(trace))


def mean_loss_change(trace: xr.Dataset) -> np.ndarray:
    """L(w) - L(w*) over the observed samples at every draw: shape (chain, draw), nats."""
    total = sum(change.sum(-1) for _, change in _loss_changes(trace))
    return total / trace.sizes["sample"]


def autocorrelation(series: np.ndarray, lags: int) -> np.ndarray:
    """Autocorrelation of each chain (ArviZ), from lag 0.

    Args:
        series: shape (chain, draw).
        lags: how many.

    Returns:
        Shape (chain, lags), 1 at lag 0.

    Raises:
        ValueError: fewer draws than lags.
    """
    if not 1 <= lags <= series.shape[1]:
        raise ValueError(f"lags is {lags}; choose from 1 to {series.shape[1]}, the draws")
    return np.stack([az.autocorr(chain)[:lags] for chain in series])


def empirical_variance(trace: xr.Dataset) -> Estimate:
    """The empirical variance V, the sum of the observed samples' loss variances (Eq. 13).

    Args:
        trace: from :func:`probelib.sample` or :func:`probelib.open_trace`.

    Returns:
        V = tr K, nats squared. Its standard error is that of the mean of the squared deviations,
        first order in the error of the gains.

    Raises:
        ValueError: fewer than two draws, or losses that are not finite.
    """
    return _estimate(_squared_deviations(trace))


def singular_fluctuation(trace: xr.Dataset) -> Estimate:
    r"""The singular fluctuation (Eq. 14): :math:`\hat\nu = \frac{\beta}{2} V`, on this data set.

    Computed as n beta / 2 times the mean variance, so that an observed random subset estimates
    the same quantity as the whole.

    Args:
        trace: from :func:`probelib.sample` or :func:`probelib.open_trace`.

    Returns:
        nu, dimensionless, with its standard error.

    Raises:
        ValueError: fewer than two draws, or losses that are not finite.
    """
    n_beta = trace.attrs["config"]["n_beta"]
    return _estimate(n_beta / 2 * _squared_deviations(trace) / trace.sizes["sample"])


def _squared_deviations(trace: xr.Dataset) -> np.ndarray:
    """Squared distance from the gain at every draw, whose mean is tr K: (chain, draw)."""
    draws = trace.sizes["chain"] * trace.sizes["draw"]
    total = sum(np.square(centred).sum(-1) for _, centred in _centred_losses(trace))
    return total * (draws / (draws - 1))


def share(part: np.ndarray, total: np.ndarray) -> Estimate:
    r"""The ratio of two means over the same draws, with its Monte-Carlo error to first order.

    The error of :math:`r = \bar a / \bar b` is that of the mean of
    :math:`(a_t - r b_t) / \bar b`: what moves both at once cancels.

    Args:
        part, total: series a and b, shape (chain, draw).
    """
    ratio = part.mean() / total.mean()
    return replace(_estimate((part - ratio * total) / total.mean()), value=float(ratio))


class Neighbours(NamedTuple):
    """The most correlated samples of each row, best first."""

    index: np.ndarray  # (rows, k), positions along `sample`
    correlation: np.ndarray  # (rows, k)


class LossKernel:
    """The posterior loss kernel K (Eq. 5) and its correlation R (Eq. 6), never built whole.

    Held as the centred trace with unit columns U, shape (S, n), and a scale s_i a sample:
    K_ij = s_i s_j u_i'u_j and R_ij = u_i'u_j. A sample without any variance has u_i = 0. Splitting
    off the scale keeps samples with losses of 1e-18 nats as exact as the others. The trace is
    read at the first use, S x n x 4 bytes; beyond 2 GiB it stays on disk, and every use reads it
    block by block.

    Args:
        trace: from :func:`probelib.sample` or :func:`probelib.open_trace`.

    Raises:
        ValueError: fewer than two draws, or (at first use) losses that are not finite.
    """

    def __init__(self, trace: xr.Dataset):
        _check_draws(trace)
        self._trace = trace
        self.shape = (trace.sizes["sample"],) * 2
        self._chains, self._draws = trace.sizes["chain"], trace.sizes["draw"]

    def diagonal(self) -> xr.DataArray:
        """Loss variances K_ii, shape (sample,), nats squared, with a coordinate ``mcse``."""
        mcse = np.empty(self.shape[0])
        for block, centred in _centred_losses(self._trace):
            mcse[block] = mcse_of_mean(np.square(centred))
        return _per_sample(self._trace, np.square(self._scale), mcse, "loss_variance")

    def covariance(
        self, rows: np.ndarray | None = None, cols: np.ndarray | None = None
    ) -> np.ndarray:
        """K at the positions ``rows`` and ``cols`` (default: all), in nats squared."""
        scale = self._scale[_all(rows)][:, None] * self._scale[_all(cols)]
        return scale * self.correlation(rows, cols)

    def correlation(
        self, rows: np.ndarray | None = None, cols: np.ndarray | None = None
    ) -> np.ndarray:
        """R at the positions ``rows`` and ``cols`` (default: all), in [-1, 1]."""
        u = self._columns(rows)
        v = u if cols is rows else self._columns(cols)
        return np.clip(u.T @ v, -1, 1)

    def correlation_mcse(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """Monte-Carlo standard error of R, first order: 0 on the diagonal."""
        return self._mcse(rows, cols, self.correlation(rows, cols))

    def covariance_mcse(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """Monte-Carlo standard error of K, nats squared."""
        scale = self._scale[rows][:, None] * self._scale[cols]
        return scale * self._mcse(rows, cols, 0.0)

    def _mcse(self, rows: np.ndarray, cols: np.ndarray, slope: np.ndarray | float) -> np.ndarray:
        """Of the mean of S [u_i u_j - slope (u_i² + u_j²) / 2] over the S draws, row by row."""
        slope = np.broadcast_to(slope, (len(rows), len(cols)))
        draws = self._chains * self._draws
        every, v = self._columns(rows), self._columns(cols).astype(np.float64)
        error = np.empty((len(rows), len(cols)))
        for at, own in enumerate(slope):
            u = every[:, at].astype(np.float64)[:, None]
            series = draws * (u * v - own * (u * u + v * v) / 2)
            error[at] = mcse_of_mean(series.reshape(self._chains, self._draws, -1))
        return error

    def top_correlated(
        self,
        k: int = 16,
        rows: np.ndarray | None = None,
        among: np.ndarray | None = None,
        block: int | None = None,
    ) -> Neighbours:
        """The k most correlated samples of each row, itself left out.

        Args:
            k: how many.
            rows: positions to find neighbours for; default: all.
            among: positions that may be neighbours; default: all.
            block: rows that meet all candidates at once. A trace on disk is read once for each
                block of rows, and the default takes up to 1 GiB.

        Returns:
            Neighbours of shape (rows, k), positions in the whole trace.

        Raises:
            ValueError: k is not between 1 and the number of candidates less one.
        """
        rows, among = (np.arange(self.shape[0])[_all(i)] for i in (rows, among))
        if not 1 <= k < len(among):
            raise ValueError(
                f"k is {k}; choose from 1 to {len(among) - 1}, the candidates less one"
            )
        among = np.sort(among)
        if block is None:
            block = max(1, 2**30 // (4 * (self._chains * self._draws + _BLOCK)))
        parts = [self._nearest(rows[i : i + block], among, k) for i in range(0, len(rows), block)]
        parts = parts or [(np.empty((0, k), np.int64), np.empty((0, k), np.float32))]
        index, correlation = (np.concatenate(p) for p in zip(*parts, strict=True))
        return Neighbours(index, correlation)

    def _nearest(
        self, rows: np.ndarray, among: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best k of ``among``, sorted, for some rows, from one pass over the candidates."""
        mine = torch.from_numpy(self._columns(rows)).T.contiguous()
        value = torch.full((len(rows), k), -torch.inf)
        index = torch.full((len(rows), k), -1)
        for where, unit, _ in self._blocks():
            here = among[np.searchsorted(among, where.start) : np.searchsorted(among, where.stop)]
            if not len(here):
                continue
            if len(here) < unit.shape[1]:
                unit = unit[:, here - where.start]
            scores = mine @ torch.from_numpy(unit)
            own = np.flatnonzero((rows >= here[0]) & (rows <= here[-1]))
            at = np.searchsorted(here, rows[own])
            own, at = own[here[at] == rows[own]], at[here[at] == rows[own]]
            scores[torch.from_numpy(own), torch.from_numpy(at)] = -torch.inf
            better = (scores.amax(1) > value[:, -1]).nonzero()[:, 0]  # ever fewer, block by block
            found, place = scores[better].topk(min(k, len(here)), dim=1)
            both = torch.cat([value[better], found], 1)
            names = torch.cat([index[better], torch.from_numpy(here)[place]], 1)
            value[better], order = both.topk(k, dim=1)
            index[better] = names.gather(1, order)
        return index.numpy(), value.clamp(-1, 1).numpy()

    def features(
        self, n_components: int | None = None, rows: np.ndarray | None = None
    ) -> np.ndarray:
        """Coordinates whose inner products are K: the loss traces as vectors.

        Args:
            n_components: keep this many principal axes of the centred traces; default: all S.
            rows: positions of the samples wanted; default: all.

        Returns:
            Features, shape (rows, S) or (rows, n_components), nats.

        Raises:
            ValueError: more components than draws or samples.
        """
        chosen = np.arange(self.shape[0])[_all(rows)]
        draws = self._chains * self._draws
        axes = None
        if n_components is not None:
            if not 1 <= n_components <= min(draws, len(chosen)):
                raise ValueError(
                    f"n_components is {n_components}; choose from 1 to "
                    f"{min(draws, len(chosen))}, the smaller of draws and samples"
                )
            gram = sum(part.T @ part for _, part in self._traces(chosen))
            axes = np.linalg.eigh(gram.astype(np.float64))[1][:, ::-1][:, :n_components]
            axes = axes.astype(np.float32)
        out = np.empty((len(chosen), draws if axes is None else n_components), np.float32)
        for at, part in self._traces(chosen):
            out[at] = part if axes is None else part @ axes
        return out

    def _traces(self, chosen: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Centred traces (k, S) of some samples block by block, with their places in ``chosen``."""
        for where, unit, scale in self._blocks():
            at = np.flatnonzero((chosen >= where.start) & (chosen < where.stop))
            if len(at):
                here = chosen[at] - where.start
                yield at, (unit[:, here] * scale[here].astype(np.float32)).T

    def _columns(self, index: np.ndarray | slice | None) -> np.ndarray:
        """Unit columns of some samples, shape (S, k)."""
        if self._small:
            return self._unit_and_scale[0][:, _all(index)]
        chosen = np.arange(self.shape[0])[_all(index)]
        out = np.empty((self._chains * self._draws, len(chosen)), np.float32)
        needed = np.zeros(self.shape[0], bool)
        needed[chosen] = True
        for where, losses in _losses(self._trace, needed):
            at = np.flatnonzero((chosen >= where.start) & (chosen < where.stop))
            out[:, at] = _unit_columns(losses[:, :, chosen[at] - where.start])[0]
        return out

    def _blocks(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Blocks of samples with their unit columns (S, block) and scales (block,)."""
        if self._small:
            unit, scale = self._unit_and_scale
            for start in range(0, self.shape[0], _BLOCK):
                where = slice(start, min(start + _BLOCK, self.shape[0]))
                yield where, unit[:, where], scale[where]
        else:
            for where, losses in _losses(self._trace):
                yield where, *_unit_columns(losses)

    @property
    def _small(self) -> bool:
        return self._chains * self._draws * self.shape[0] * 4 <= _IN_MEMORY

    @cached_property
    def _unit_and_scale(self) -> tuple[np.ndarray, np.ndarray]:
        unit = np.empty((self._chains * self._draws, self.shape[0]), np.float32)
        scale = np.empty(self.shape[0])
        for where, losses in _losses(self._trace):
            unit[:, where], scale[where] = _unit_columns(losses)
        return unit, scale

    @cached_property
    def _scale(self) -> np.ndarray:
        if self._small:
            return self._unit_and_scale[1]
        return np.concatenate([_unit_columns(losses)[1] for _, losses in _losses(self._trace)])

    def __repr__(self) -> str:
        return f"LossKernel({self.shape[0]} samples, {self._chains} x {self._draws} draws)"


def loss_kernel(trace: xr.Dataset) -> LossKernel:
    """The posterior loss kernel of a trace (Eqs. 5 and 6): see :class:`LossKernel`."""
    return LossKernel(trace)


class MatrixKernel:
    """A loss kernel K (Eq. 5) and its correlation R (Eq. 6) that are held whole, (n, n).

    Args:
        covariance: K, shape (n, n), symmetric, nats squared. A sample whose K_ii is not positive,
            because it never moves or is not resolved, has R_ij = 0.

    Raises:
        ValueError: not a square matrix of finite numbers.
    """

    def __init__(self, covariance: np.ndarray):
        covariance = np.asarray(covariance)
        if covariance.ndim != 2 or len(set(covariance.shape)) != 1:
            raise ValueError(f"covariance has shape {covariance.shape}; it must be square")
        if not np.isfinite(covariance).all():
            bad = int(np.argwhere(~np.isfinite(covariance))[0, 0])
            raise ValueError(f"covariance is not finite in row {bad}; remove this sample")
        self._covariance = covariance.astype(np.float64)
        self.shape = covariance.shape

    def diagonal(self) -> np.ndarray:
        """Loss variances K_ii, shape (n,), nats squared."""
        return np.diag(self._covariance).copy()

    def covariance(
        self, rows: np.ndarray | None = None, cols: np.ndarray | None = None
    ) -> np.ndarray:
        """K at the positions ``rows`` and ``cols`` (default: all), in nats squared."""
        return self._covariance[_all(rows)][:, _all(cols)].copy()

    def correlation(
        self, rows: np.ndarray | None = None, cols: np.ndarray | None = None
    ) -> np.ndarray:
        """R at the positions ``rows`` and ``cols`` (default: all), in [-1, 1]."""
        variance = self.diagonal()
        scale = np.sqrt(np.where(variance > 0, variance, np.inf))
        part = self.covariance(rows, cols) / scale[_all(rows)][:, None] / scale[_all(cols)]
        return np.clip(part, -1, 1)

    def __repr__(self) -> str:
        return f"MatrixKernel({self.shape[0]} samples)"


def pair_kernel(pairs: xr.Dataset, chains: slice | np.ndarray | None = None) -> MatrixKernel:
    """The loss kernel that pairs of gradients estimate, over all chains or some.

    Args:
        pairs: from :func:`probelib.gradient_pairs`.
        chains: positions of the chains to average; default: all.
    """
    return MatrixKernel(pairs.kernel.values[_all(chains)].mean(0, dtype=np.float64))


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


def tilt(pairs: xr.Dataset) -> float:
    r"""How much of a difference the data term of Eq. 1 makes, which gradient pairs leave out.

    The weights of a walk count by :math:`\exp[-n\beta L(w)]` under Eq. 1, L taken over the samples
    that were observed. Near 1 they all count alike and the Gaussian stands for the local posterior;
    near 1 / draws one outweighs the rest.

    Args:
        pairs: from :func:`probelib.gradient_pairs`.

    Returns:
        The effective share of the draws, (sum v)² / (draws x sum v²), in (0, 1].
    """
    log_weight = -pairs.attrs["config"]["n_beta"] * pairs.loss.values.mean(-1, dtype=np.float64)
    weight = np.exp(log_weight - log_weight.max()).ravel()
    return float(weight.sum() ** 2 / (weight.size * np.square(weight).sum()))


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at in a trace.

    Attributes:
        name: "diverged", "mixed", "draws", "step", "spread" or "basin".
        good: whether it is as it should be.
        value, limit: the number behind it, and how large (for "draws": how small) it may be.
        sentence: both in words, with what to try.
    """

    name: str
    good: bool
    value: float
    limit: float
    sentence: str


@dataclass(frozen=True)
class Diagnostics:
    """Whether the chains can be trusted: printed, a verdict with the number behind each point.

    Attributes:
        findings: what was looked at, a :class:`Finding` each.
        rhat_max: largest split R-hat over the mean loss and the samples looked at.
        ess_min: smallest bulk effective sample size over the same.
        rhat, ess: both for each series: the mean loss first, then the samples.
        samples: positions of the samples looked at.
        autocorrelation_time: draws per effective draw of the mean loss.
        loss_at_center: L(w*), nats, over the observed samples.
        loss_along_chains: E[L(w)], nats, over the observed samples.
        distance: mean |w - w*| over the draws.
    """

    rhat_max: float
    ess_min: float
    rhat: np.ndarray
    ess: np.ndarray
    samples: np.ndarray
    autocorrelation_time: float
    loss_at_center: float
    loss_along_chains: float
    distance: float
    findings: tuple[Finding, ...] = ()

    @property
    def good(self) -> bool:
        """Whether nothing speaks against the trace."""
        return all(finding.good for finding in self.findings)

    def __getitem__(self, name: str) -> Finding:
        """The finding of a name."""
        return next(finding for finding in self.findings if finding.name == name)

    def __str__(self) -> str:
        bad = sum(not finding.good for finding in self.findings)
        verdict = (
            f"Do not trust this trace yet: {bad} of {len(self.findings)} points speak against it."
            if bad
            else "Nothing here speaks against this trace."
        )
        marks = {True: "ok ", False: "NO "}
        return "\n".join([verdict, *(f"  {marks[f.good]} {f.sentence}" for f in self.findings)])


def diagnostics(trace: xr.Dataset, n_samples: int = 500, seed: int = 0) -> Diagnostics:
    """Whether a trace can be trusted, with the numbers behind the verdict.

    R-hat and ESS (ArviZ) of the mean loss and of randomly chosen samples' losses; how far the
    chains are from w*, and how high their loss. Chains that diverged are named and left out. A
    single chain is cut into two halves, so that R-hat can see a drift.

    Args:
        trace: from :func:`probelib.sample` or :func:`probelib.open_trace`.
        n_samples: how many samples to look at (all, if there are fewer).
        seed: of that choice.

    Returns:
        The verdict, and its numbers. It asks for an R-hat below 1.1 and an ESS above 100 of the
        worst series; stricter rules are 1.01 and 400.

    Raises:
        ValueError: fewer than two draws, no chain that did not diverge, or losses that are not
            finite.
    """
    lost = _diverged(trace)
    if len(lost) == trace.sizes["chain"]:
        at = next(iter(lost.values()))
        raise ValueError(
            f"trace has no chain that did not diverge, the first at step {at['step']}; sample "
            "again with a smaller step_size"
        )
    all_chains, trace = trace, trace.drop_sel(chain=[int(c) for c in lost]) if lost else trace
    mean = mean_loss_change(trace)
    n = trace.sizes["sample"]
    samples = np.sort(np.random.default_rng(seed).choice(n, min(n, n_samples), replace=False))
    series = np.concatenate(
        [mean[..., None], trace.loss[:, :, samples].values.astype(np.float64)], -1
    )
    ess, rhat = np.array([_ess_and_rhat(series[..., i]) for i in range(series.shape[-1])]).T
    at_center = float(trace.init_loss.values.astype(np.float64).mean())
    # A sample that never moves has no R-hat to speak of; it cannot be the worst.
    rhat_max = float(np.nanmax(rhat)) if np.isfinite(rhat).any() else float("inf")
    ess_min = float(np.nanmin(ess)) if np.isfinite(ess).any() else 0.0
    return Diagnostics(
        findings=(
            _on_divergence(lost, all_chains.sizes["chain"]),
            _on_mixing(rhat_max),
            _on_draws(ess_min, mean.size),
            *_on_the_step(trace),
            _on_the_basin(trace, at_center, float(mean.mean())),
        ),
        rhat_max=rhat_max,
        ess_min=ess_min,
        rhat=rhat,
        ess=ess,
        samples=samples,
        autocorrelation_time=mean.size / float(ess[0]),
        loss_at_center=at_center,
        loss_along_chains=at_center + float(mean.mean()),
        distance=float(trace.distance.mean()),
    )


def _on_divergence(lost: dict[str, dict[str, int]], chains: int) -> Finding:
    steps = ", ".join(f"{chain} at step {at['step']}" for chain, at in lost.items())
    return Finding(
        "diverged",
        not lost,
        len(lost),
        0,
        f"{len(lost)} of {chains} chains diverged ({steps}) and are left out of what follows; "
        "lower step_size"
        if lost
        else f"none of {chains} chains diverged",
    )


def _on_mixing(rhat: float, limit: float = 1.1) -> Finding:
    good = rhat <= limit
    return Finding(
        "mixed",
        good,
        rhat,
        limit,
        f"the chains have mixed: the largest R-hat is {rhat:.3f}"
        if good
        else f"the chains have not mixed: the largest R-hat is {rhat:.3f}, above {limit}; take "
        "more draws or a longer burn_in",
    )


def _on_draws(ess: float, draws: int, limit: float = 100) -> Finding:
    good = ess >= limit
    return Finding(
        "draws",
        good,
        ess,
        limit,
        f"{draws} draws are worth {ess:.0f} independent ones for the slowest loss"
        + ("" if good else f", fewer than {limit:.0f}; take more draws, or a larger thin"),
    )


def _on_the_step(trace: xr.Dataset, widened: float = 0.1, spread: float = 1.1) -> list[Finding]:
    """What the step size alone tells, and how far the chains are.

    Where only the localization holds a weight, its variance under Eq. 7 is
    1 / (gamma (1 - eps gamma / 4)), and smaller wherever L curves upwards.
    """
    config = trace.attrs.get("config", {})
    if not {"step_size", "localization", "n_parameters"} <= set(config):
        return []
    step, gamma, d = config["step_size"], config["localization"], config["n_parameters"]
    more = 1 / (1 - step * gamma / 4) - 1 if step * gamma < 4 else float("inf")
    ratio = float(np.square(trace.distance.values, dtype=np.float64).mean()) * gamma / d
    limit = spread * (1 + more)
    return [
        Finding(
            "step",
            more <= widened,
            more,
            widened,
            f"step_size {step:g} widens the posterior by {more:.1%} where only the localization of "
            f"{gamma:g} holds it"
            + ("" if more <= widened else f", more than {widened:.0%}; lower step_size"),
        ),
        Finding(
            "spread",
            ratio <= limit,
            ratio,
            limit,
            f"|w - w*|² is {ratio:.3g} of what the localization alone would leave"
            + (
                ""
                if ratio <= limit
                else f", above {limit:.3g}: step_size is too large for the curvature or the "
                "gradient noise, or the loss falls away from w*"
            ),
        ),
    ]


def _on_the_basin(trace: xr.Dataset, at_center: float, change: float) -> Finding:
    """Whether the losses along the chains still belong to what was trained."""
    where = f"the mean loss is {at_center:.3g} nats at w* and {at_center + change:.3g} along the"
    labels = np.unique(trace.label.values) if "label" in trace.coords else []
    guess = float(np.log(len(labels))) if len(labels) > 1 else 0.0
    if at_center < guess:
        good = at_center + change < guess
        told = f"{where} chains; guessing among {len(labels)} labels costs {guess:.3g}"
        value, limit = at_center + change, guess
    else:
        config = trace.attrs.get("config", {})
        value = config.get("n_beta", 0.0) * change
        limit = config.get("n_parameters", np.inf) / 2
        good = value <= limit
        told = f"{where} chains, an LLC of {value:.3g}; a regular model has {limit:g}"
    left = "" if good else ": they have left w*'s basin; raise localization or n_beta"
    return Finding("basin", good, float(value), float(limit), told + left)


def _loss_changes(trace: xr.Dataset) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of samples, each with its loss changes (chain, draw, block) in float64."""
    for block, loss in _losses(trace):
        init = _read(trace.init_loss, block)
        if not np.isfinite(init).all():
            first = block.start + int((~np.isfinite(init)).argmax())
            raise ValueError(
                f"trace has no l_i(w*) of sample {first}, "
                "which a loss change needs; give init_loss, where the trace was made elsewhere"
            )
        yield block, loss - init


def _centred_losses(trace: xr.Dataset) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of samples, each with its losses less their mean over chains and draws.

    Not by way of the changes: these round, which would make a spread of a constant loss.
    """
    for block, loss in _losses(trace):
        yield block, loss - loss.mean((0, 1))


def _unit_columns(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centred losses as unit columns (S, k), float32, and their scales (k,): see LossKernel."""
    centred = (losses - losses.mean((0, 1))).reshape(-1, losses.shape[-1])
    norm = np.linalg.norm(centred, axis=0)
    centred /= np.where(norm > 0, norm, 1)
    return centred.astype(np.float32), norm / np.sqrt(len(centred) - 1)


def _losses(
    trace: xr.Dataset, needed: np.ndarray | None = None
) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of samples with their losses, (chain, draw, block) in float64.

    Args:
        trace: read block by block.
        needed: shape (sample,); blocks in which it is nowhere true are passed over.
    """
    _check_draws(trace)
    n, draws = trace.sizes["sample"], trace.sizes["chain"] * trace.sizes["draw"]
    size = int(np.clip(_BLOCK_BYTES // (8 * draws), 64, _BLOCK))
    for start in range(0, n, size):
        block = slice(start, min(start + size, n))
        if needed is not None and not needed[block].any():
            continue
        loss = _read(trace.loss, block)
        if not np.isfinite(loss).all():
            chain, draw, at = (int(i) for i in np.argwhere(~np.isfinite(loss))[0])
            raise ValueError(
                f"trace has a non-finite loss in chain {chain}, draw {draw}, sample {start + at}; "
                "select the chains and draws that are sound first"
            )
        yield block, loss.astype(np.float64)


def _read(of: xr.DataArray, samples: slice) -> np.ndarray:
    """Values of some samples, which the store's checksums must find as they were written."""
    try:
        return of[..., samples].values
    except (ValueError, OSError) as error:
        raise ValueError(
            f"trace cannot be read: {of.name} of samples {samples.start} to {samples.stop - 1} is "
            f"damaged on disk ({error}); restore the store from a copy or sample it again"
        ) from error


def _check_draws(trace: xr.Dataset) -> None:
    if lost := _diverged(trace):
        chain, at = next(iter(lost.items()))
        raise ValueError(
            f"trace has chain {chain}, which diverged at step {at['step']}"
            + (f" (and {len(lost) - 1} more that did)" if len(lost) > 1 else "")
            + f"; leave it out: trace.drop_sel(chain=[{', '.join(lost)}])"
        )
    draws = trace.sizes["chain"] * trace.sizes["draw"]
    if draws < 2:
        raise ValueError(f"trace has {draws} draws; an estimate needs at least two")


def _diverged(trace: xr.Dataset) -> dict[str, dict[str, int]]:
    """The chains of a trace that diverged before its last draw, by number."""
    return {
        chain: at
        for chain, at in trace.attrs.get("diverged", {}).items()
        if int(chain) in trace["chain"].values and trace.sizes["draw"] > at["draws"]
    }


def mcse_of_mean(x: np.ndarray) -> np.ndarray:
    """Standard error of the mean over (chain, draw) of every series in x (chain, draw, ...).

    ArviZ's ``mcse`` for many series at once: the standard deviation over the square root of the
    effective sample size of the mean, with chains cut in halves. Fewer than 8 draws a chain say
    nothing about their correlation and count as independent.
    """
    spread = x.std((0, 1), ddof=1)
    if x.shape[1] < 8:
        return spread / np.sqrt(x.shape[0] * x.shape[1])
    return spread / np.sqrt(ess_of_mean(x))


def ess_of_mean(x: np.ndarray) -> np.ndarray:
    """Effective sample size of the mean of every series in x (chain, draw, ...).

    Autocovariances within chains and the variance between them, summed up to where they fade into
    noise (Geyer's initial monotone sequence): Vehtari et al. (2021), section 3.2.
    """
    half = x.shape[1] // 2
    x = np.concatenate([x[:, :half], x[:, -half:]])
    chains, draws = x.shape[:2]
    means = x.mean(1, keepdims=True)
    spectrum = scipy.fft.rfft(x - means, scipy.fft.next_fast_len(2 * draws, real=True), axis=1)
    power = (spectrum.real**2 + spectrum.imag**2).mean(0)
    within = scipy.fft.irfft(power, scipy.fft.next_fast_len(2 * draws, real=True), axis=0)
    within = within[:draws] / draws
    total = within[0] + means[:, 0].var(0, ddof=1)
    moving = total > 0
    rho = 1 - (within[0] * draws / (draws - 1) - within) / np.where(moving, total, 1)
    rho[0] = 1
    last = max(0, (draws - 3) // 2)  # the pairs (rho_0, rho_1), (rho_2, rho_3), ... looked at
    pairs = rho[: 2 * last + 2].reshape(last + 1, 2, *rho.shape[1:]).sum(1)
    faded = pairs <= 0
    faded[last] = True  # if none before it has faded, the sum ends there
    end = faded.argmax(0)
    falling = np.minimum.accumulate(pairs, axis=0)
    counted = np.arange(last + 1).reshape(-1, *[1] * end.ndim) < end
    even, pair = (np.take_along_axis(a, at[None], 0)[0] for a, at in ((rho, 2 * end), (pairs, end)))
    tau = 2 * (falling * counted).sum(0) - 1 + np.where(pair < 0, np.maximum(even, 0), even)
    ess = chains * draws / np.maximum(tau, 1 / np.log10(chains * draws))
    return np.where(moving, ess, chains * draws)


def _ess_and_rhat(x: np.ndarray) -> tuple[float, float]:
    if len(x) == 1:
        half = x.shape[1] // 2
        x = x[:, : 2 * half].reshape(2, half)
    if x.shape[1] < 4 or np.ptp(x) == 0:
        return float("nan"), float("nan")
    return float(az.ess(x)), float(az.rhat(x))


def _estimate(series: np.ndarray) -> Estimate:
    ess, rhat = _ess_and_rhat(series)
    mcse = float(az.mcse(series)) if series.shape[1] >= 4 else float(mcse_of_mean(series))
    return Estimate(float(series.mean()), mcse, ess, rhat)


def _per_sample(trace: xr.Dataset, values: np.ndarray, mcse: np.ndarray, name: str) -> xr.DataArray:
    coords = {k: trace[k].load() for k in ("sample_id", "label") if k in trace.coords}
    return xr.DataArray(
        values, dims="sample", coords=coords | {"mcse": ("sample", mcse)}, name=name
    )


def _all(index: np.ndarray | slice | None) -> slice | np.ndarray:
    if isinstance(index, slice):
        return index
    return slice(None) if index is None else np.asarray(index)


__all__ = [
    "Diagnostics",
    "Estimate",
    "Finding",
    "LossKernel",
    "MatrixKernel",
    "Neighbours",
    "autocorrelation",
    "diagnostics",
    "empirical_variance",
    "local_learning_coefficient",
    "loss_gain",
    "loss_kernel",
    "mean_loss_change",
    "pair_kernel",
    "share",
    "singular_fluctuation",
    "spearman_brown",
    "split_half_reliability",
    "tilt",
]
