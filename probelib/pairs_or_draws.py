r"""Whether pairs of gradients or draws give the kernel sooner: a trial of both.

With the walks, or the draws, in two halves, the mean of both has the squared error

.. math::

   \mathrm{err}^2 = \tfrac14 \, \operatorname{mean}_{i<j} (R^{(1)}_{ij} - R^{(2)}_{ij})^2

which falls as one over the seconds. Eight groups can be halved in seven ways whose differences are
uncorrelated (the rows of a Hadamard matrix): the spread between these says how well the error is
known.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from probelib.ambient import undisturbed
from probelib.arguments import require_whole
from probelib.data import Data, Samples
from probelib.estimators.kernel import loss_kernel
from probelib.estimators.pair_sums import bear_an_error
from probelib.estimators.pairs import pair_kernel
from probelib.estimators.weighted import weights_of
from probelib.gradient_pairs import gradient_pairs
from probelib.importance import importance_sample
from probelib.pair_walks import Walks, products_of, walks_of
from probelib.posterior import LocalPosterior

if TYPE_CHECKING:
    import xarray as xr

_GROUPS = 8  # into which walks and draws are cut
_FEWEST = 3  # ways of halving that tell how well an error is known
_MOST_WALKS = 64  # that a trial makes unasked
_WORTH = 5.0  # draws of Eq. 1 that an error needs, of walks a third of whose draws is independent
_CLOCK = 2.0  # factor by which times may be off
_UNRESOLVED = 0.1  # share of samples whose K_ii a half may miss


@dataclass(frozen=True)
class PairsOrDraws:
    """What a trial of gradient pairs and of weighted draws found: ``str`` says it in a sentence.

    Times are those of all the samples that are observed, from what the trial took for a few. They
    are of this machine as it was: what else it did may make them differ, for which ``interval`` has
    a factor of two.

    Attributes:
        choice: "pairs" (:func:`probelib.gradient_pairs`), "draws"
            (:func:`probelib.importance_sample`, or :func:`probelib.sample` where ``draws_error`` is
            NaN), or None: the trial cannot tell.
        why: the reason.
        pairs_error, draws_error: root mean squared error of R after one second, over pairs of
            samples; after s seconds it is smaller by the root of s. NaN where it is not known.
        ratio: seconds of draws that a second of pairs is worth; NaN where one is not known.
        interval: of ``ratio``, at 95 %.
        share: of the draws of N(w*, I / gamma) that count under the data term.
        bears: whether the weights of the trial's walks bear an error.
        walks, draws: that were made.
        seconds: that the trial took.
    """

    choice: str | None
    why: str
    pairs_error: float
    draws_error: float
    ratio: float
    interval: tuple[float, float]
    share: float
    bears: bool
    walks: int
    draws: int
    seconds: float

    def __str__(self) -> str:
        said = {"pairs": "Take gradient pairs", "draws": "Take draws", None: "Not known"}
        return f"{said[self.choice]}: {self.why}."


@undisturbed
def pairs_or_draws(
    posterior: LocalPosterior,
    observe: Data | None = None,
    *,
    samples: int = 64,
    draws: int = 400,
    walks: int | None = None,
    pairs: int = 2,
    seed: int = 0,
    batch_size: int = 16,
    loss_samples: int | None = None,
    progress: bool = False,
) -> PairsOrDraws:
    """Try gradient pairs and weighted draws on a few samples: which gives R sooner?

    Draws come first, and say how many of them count under the data term: as many walks are made as
    their weights need to bear an error, and twice as many where these cannot tell it. Where the
    weights alone need more than 64, pairs lose. Under the law for
    n beta -> 0 (``limit=True``) no weights are needed, and this says nothing of it.

    Args:
        posterior: Eq. 1.
        observe: the samples whose kernel is wanted; default: those of the posterior.
        samples: of these, spread evenly, whose R is compared; at least three.
        draws: independent ones of N(w*, I / gamma), 32 or more.
        walks: of gradients; default: 8, or as many as they need, up to 64.
        pairs: in a walk.
        seed: of both.
        batch_size: samples that a backward pass takes.
        loss_samples: how many samples give L to a draw: see :func:`probelib.importance_sample`.
        progress: show bars.

    Raises:
        ValueError: a bad argument, a posterior in train mode, losses or gradients that are not
            finite.
    """
    started = time.perf_counter()
    samples, draws = require_whole("samples", samples, 3), require_whole("draws", draws, 32)
    if walks is not None:
        walks = require_whole("walks", walks, 2)
    every = posterior.data if observe is None else Samples(observe, posterior.device, "observe")
    few = every.batch(np.unique(np.linspace(0, len(every) - 1, samples, dtype=int)))
    m, own = min(samples, len(every)), 0 if observe is None else len(every)
    if m < 3:
        raise ValueError(f"observe has {m} samples; give three at least, to have an R to compare")
    along = walks_of(posterior, few, 2, pairs, seed, batch_size, None)
    trace = importance_sample(
        posterior, draws, observe=few, loss_samples=loss_samples, seed=seed, progress=progress
    )
    weights, of_loss = weights_of(trace), loss_samples or posterior.n_samples
    assert weights is not None
    share = weights.ess / draws
    a_draw = float(trace.attrs["wall_time"]) / draws / (of_loss + m) * (of_loss + own)
    by_draws = _of_draws(trace, a_draw)
    needed = _GROUPS * -(-_walks_needed(share, pairs) // _GROUPS)
    made, by_pairs = walks or needed, _Trial.unknown()
    growth = _growth(along, len(every), observe is not None)
    while made <= _MOST_WALKS or walks is not None:
        found = gradient_pairs(
            posterior, few, chains=made, pairs=pairs, seed=seed, batch_size=batch_size,
            progress=progress,
        )  # fmt: skip
        by_pairs = _of_pairs(found, growth)
        if by_pairs.known or walks is not None or 2 * made > _MOST_WALKS:
            break
        made *= 2
    ratio, interval = _ratio(by_pairs, by_draws)
    choice, why = _verdict(by_pairs, by_draws, interval, needed if walks is None else 0)
    why += f" ({_number(100 * share)} % of draws count under the data term)"
    return PairsOrDraws(
        choice, why, by_pairs.error, by_draws.error, ratio, interval, share, by_pairs.bears,
        by_pairs.made, draws, time.perf_counter() - started,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Trial:
    """What a trial of one of the two found.

    Attributes:
        squares: squared errors of R by the ways of halving, (ways,).
        made: walks or draws.
        count: of these, those that were halved.
        each: seconds that one takes, with all samples.
        bears: whether their weights bear an error.
        unresolved: share of the samples without a K_ii.
    """

    squares: np.ndarray
    made: int
    count: int
    each: float
    bears: bool
    unresolved: float = 0.0

    @classmethod
    def unknown(cls) -> _Trial:
        return cls(np.zeros(0), 0, 0, np.nan, False)

    @property
    def known(self) -> bool:
        enough = len(self.squares) >= _FEWEST and self.unresolved <= _UNRESOLVED
        return self.bears and enough

    @property
    def error(self) -> float:
        """Of R after one second; NaN where it is not known."""
        return (
            float(np.sqrt(self.squares.mean() * self.count * self.each)) if self.known else np.nan
        )

    @property
    def spread(self) -> float:
        """Half of the 95 % interval of the logarithm of the squared error."""
        from scipy.special import stdtrit  # slow to import, so where it is used

        count, mean = len(self.squares), self.squares.mean()
        if not mean > 0:
            return 0.0
        return stdtrit(count - 1, 0.975) * self.squares.std(ddof=1) / mean / count**0.5


def _of_draws(trace: xr.Dataset, each: float) -> _Trial:
    def correlation(part: np.ndarray) -> np.ndarray:
        return loss_kernel(trace.isel(draw=part)).correlation()

    weights = weights_of(trace)
    assert weights is not None
    bears = weights.ess >= _WORTH and bool(np.isfinite(weights.mcse(trace.loss.values)).all())
    if not bears:  # one draw may have all the weight of a half
        return _Trial.unknown()
    squares, count, unresolved = _halved(correlation, trace.sizes["draw"])
    return _Trial(squares, trace.sizes["draw"], count, each, bears, unresolved)


def _of_pairs(found: xr.Dataset, growth: float) -> _Trial:
    each = growth * float(found.attrs["wall_time"]) / found.sizes["chain"]

    def correlation(part: np.ndarray) -> np.ndarray:
        return pair_kernel(found, part).correlation()

    with warnings.catch_warnings():  # a half may bear no error where all of them do
        warnings.simplefilter("ignore", UserWarning)
        bears = bear_an_error(found.log_weight.values)
        squares, count, unresolved = _halved(correlation, found.sizes["chain"])
    return _Trial(squares, found.sizes["chain"], count, each, bears, unresolved)


def _halved(
    correlation: Callable[[np.ndarray], np.ndarray], count: int
) -> tuple[np.ndarray, int, float]:
    """Squared errors of R by the ways of halving, of how many, and the share of lost samples."""
    from scipy.linalg import hadamard  # slow to import, so where it is used

    groups = 2 ** int(np.log2(min(count, _GROUPS)))
    count -= count % groups
    group = np.arange(count) % groups
    squares, lost = [], 0.0
    for way in hadamard(groups)[1:]:
        first, second = (correlation(np.flatnonzero(way[group] == side)) for side in (1, -1))
        moves = (np.diag(first) > 0) & (np.diag(second) > 0)
        lost += (1 - float(moves.mean())) / (groups - 1)
        if moves.sum() < 2:
            return np.zeros(0), count, 1.0
        above = np.triu_indices(int(moves.sum()), 1)
        gap = (first - second)[np.ix_(moves, moves)][above]
        squares.append(np.square(gap).mean() / 4)
    return np.array(squares), count, lost


def _walks_needed(share: float, pairs: int) -> int:
    """Walks whose draws, a third of them independent, are worth what an error needs."""
    return int(np.ceil(min(3 * _WORTH / (share * (pairs + 1)), 1e9)))


def _growth(walks: Walks, n: int, own: bool) -> float:
    """How much longer a walk takes with n samples than with the few that it has.

    The gradients of all grow as n, and products of all with all as its square.

    Args:
        walks: of the few, which take a pass for L and its gradient.
        n: samples.
        own: whether they would take it with all samples, too.
    """
    few, center, pairs = len(walks.observed), walks.posterior.center, walks.pairs
    gradients = products = 0.0
    for group in walks.gradients.groups(few, walks.memory):
        sizes = [walks.gradients.sizes[at] for at in group]
        rows = torch.empty(few, sum(sizes), dtype=walks.gradients.dtype, device=center.device)
        losses = torch.empty(few, dtype=walks.posterior.dtype, device=center.device)
        write = partial(walks.write, rows, losses, center, group)
        gradients += _clocked(write, center.device)
        products += _clocked(partial(products_of, rows, rows, sizes), center.device)
    mean = _clocked(partial(walks.mean_loss, center), center.device)
    here = (pairs + 1) * (gradients + mean) + pairs * products
    ratio = n / few
    there = (pairs + 1) * (gradients * ratio + mean * own) + pairs * products * ratio**2
    return there / here


def _clocked(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds, the shorter of two times."""
    found = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - started)
    return min(found)


def _ratio(pairs: _Trial, draws: _Trial) -> tuple[float, tuple[float, float]]:
    """Seconds of draws that a second of pairs is worth, with its interval."""
    if not (pairs.known and draws.known) or not pairs.error + draws.error > 0:
        return np.nan, (np.nan, np.nan)
    with np.errstate(divide="ignore"):
        ratio = float(np.square(np.float64(draws.error) / pairs.error))
    factor = float(np.exp(np.hypot(pairs.spread, draws.spread))) * _CLOCK
    return ratio, (ratio / factor, ratio * factor)


def _verdict(
    pairs: _Trial, draws: _Trial, interval: tuple[float, float], needed: int
) -> tuple[str | None, str]:
    """The choice and its reason."""
    low, high = map(_number, interval)
    if interval[0] > 1:
        return "pairs", f"a second of them is worth {low} to {high} seconds of weighted draws"
    if interval[1] < 1:
        low, high = (_number(1 / end if end > 0 else np.inf) for end in interval[::-1])
        return "draws", f"a second of weighted ones is worth {low} to {high} seconds of pairs"
    if interval[0] <= 1 <= interval[1]:
        return None, f"a second of pairs is worth {low} to {high} seconds of weighted draws"
    if needed > _MOST_WALKS and draws.known:
        walks = _number(needed)
        return "draws", f"an error of pairs would need some {walks} walks; take weighted draws"
    if needed > _MOST_WALKS:
        return "draws", (
            "neither walks nor weighted draws keep enough weight; take chains, with probelib.sample"
        )
    if not pairs.bears:
        return None, "the walks' weights bear no error; give more walks"
    if len(pairs.squares) < _FEWEST:
        return None, f"{pairs.made} walks are too few to tell their error; give 8 or more"
    if pairs.unresolved > _UNRESOLVED:
        lost = f"{100 * pairs.unresolved:.0f} %"
        return (
            None,
            f"K_ii is not positive in {lost} of the samples by half of the walks; give more",
        )
    if not draws.known:
        return None, "the draws do not know their error; give more"
    return None, "R has no error in either"


def _number(x: float) -> str:
    """Two digits of it."""
    return f"{float(f'{x:.2g}'):,.6g}"


__all__ = ["PairsOrDraws", "pairs_or_draws"]
