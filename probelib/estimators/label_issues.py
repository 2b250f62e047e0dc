r"""Which labels are suspicious: a table of the samples, and a cut that is stated.

A network that was trained on a wrong label has either not fitted it (its loss at w* is high, and
its gain low or negative) or fitted it as an exception (its loss is low, and its gain high). The
posterior mean loss :math:`\operatorname{E}[\ell_i(w)]`, loss and gain together, is high for both.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from probelib.arguments import require_choice
from probelib.contract import canonical, init_mcse
from probelib.estimators.blocks import blocks_of_losses, sample_coords
from probelib.estimators.gain import loss_gain
from probelib.estimators.guesses import guess_costs
from probelib.estimators.kernel import loss_kernel
from probelib.estimators.series import NORMAL
from probelib.estimators.sets import each_set
from probelib.estimators.weighted import Weights, mcse, mean, weights_of

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

#: Why one may want each score, in words.
SCORES = {
    "mean_loss": "high for wrong labels that are fitted as exceptions and for those that are not",
    "init_loss": "high for wrong labels that are not fitted; low for those that are memorized",
    "loss_gain": "high for wrong labels that are memorized; low for those that are not fitted yet",
    "variance": "high for wrong labels that are memorized; low for those that are not fitted yet",
}
# Ashman's D from which two normal components are two groups; samples from which one looks for them,
# and that a class needs for a level of its own; points that stand for all samples.
_SEPARATED, _FEW, _POINTS = 2.0, 10, 2000
# Robust standard deviations above the median: of scores with a floor of their own, and without.
_ABOVE_FLOOR, _ALONE = 2.0, 3.5
_MEMORIZED = 0.99  # share of fitted labels from which flags say little


@each_set
def label_issues(trace: xr.Dataset, score: str = "mean_loss") -> pd.DataFrame:
    r"""Which samples look mislabeled: a score for each, and whether it is beyond a cut.

    The gain alone ranks wrong labels *last* while the network has not fitted them; the posterior
    mean loss holds before and after memorization.

    A sample is flagged where the lower end of its score's 95 % interval is above the cut, so that
    no sampling error flags it. Two things make the cut of a mean loss, the larger one counts:

    1. what guessing costs: -log of the label's frequency in the trace where the loss is a cross
       entropy, else the trace's ``guessing_loss``. Above it the network gives the label less
       probability than somebody who has not seen the input;
    2. the other samples of the class. On the scale of the log odds against the label, log(exp(s) -
       1), less their lower quartile in the class, all samples together: where two normal components
       of unequal width fit with Ashman's D of 2 or more, the point at which both are equally
       likely; else the median plus 2 robust standard deviations (1.48 times the median absolute
       deviation).

    No share of wrong labels is assumed. Scores and traces without a level to compare with (gains,
    variances, no labels) have only the median plus 3.5 robust standard deviations of the log of the
    score, at least the guessing loss where the score is a loss: few false flags, and few flags
    where many samples are wrong. Samples that are hard for other reasons are flagged as well.

    Once a network has memorized its wrong labels, most of them cost less than guessing, and few or
    none are flagged, which a warning tells: then read the table by ``score``, from the top.

    The default follows chapter 10 of the book. Over the epochs of a training the posterior mean
    loss has the highest mean AUROC of these four. Before wrong labels are fitted it ranks them as
    the loss at w* does, once they are memorized somewhat better; the gain alone is then as good.
    Where inputs have a geometry, or other networks may be trained, the labels of a sample's
    neighbours, or networks that have not seen it, find more wrong labels than any of them.

    Args:
        trace: from :func:`probelib.sample` or :func:`probelib.open_trace`.
        score: "mean_loss", "init_loss" (l_i(w*)), "loss_gain" or "variance" (K_ii).

    Returns:
        A row a sample, in the order of the trace, by ``sample_id``: ``score`` (higher is more
        suspicious), ``mcse`` (its Monte-Carlo standard error), ``cut``, ``flagged``, ``label``
        where known, ``mean_loss``, ``init_loss``, ``loss_gain`` (nats) and ``variance`` (nats
        squared). ``attrs`` say which is the score and why, by which rule the cut was found, and how
        many samples are above it but not by enough (``uncertain``), and the share of labels that
        cost less at w* than guessing (``fitted``, NaN where unknown). Of losses per token, those of
        whole samples count; of a tree of several observed sets, a dict of tables.

    Raises:
        ValueError: fewer than two draws, a chain that diverged, losses that are not finite; a score
            that there is not.
    """
    import pandas as pd  # slow to import, so where it is used

    score = require_choice("score", score, *SCORES)
    trace = canonical(trace, "loss")
    values, error = _columns(trace, score)
    coords = sample_coords(trace)
    labels = coords["label"].values if "label" in coords else None
    guess = trace.attrs.get("guessing_loss") if score.endswith("loss") else None
    cut, rule = _cut(values[score], labels, guess)
    flagged = values[score] - NORMAL * error > cut
    fitted = _fitted(values["init_loss"], labels, trace.attrs.get("guessing_loss"))
    if score.endswith("loss") and fitted >= _MEMORIZED:
        warnings.warn(
            f"the network fits {100 * fitted:.1f} % of the labels (they cost less at w* than "
            "guessing), and wrong ones that it has memorized are not flagged; read the table from "
            "the top by score, or use a checkpoint from before it fitted them",
            UserWarning,
            stacklevel=3,
        )
    columns: dict[str, Any] = {"score": values[score], "mcse": error, "cut": cut}
    columns["flagged"] = flagged
    if labels is not None:
        columns["label"] = labels
    number = coords["sample_id"].values if "sample_id" in coords else np.arange(len(flagged))
    table = pd.DataFrame(columns | values, index=pd.Index(number, name="sample_id"))
    table.attrs = {
        "score": score,
        "reason": SCORES[score],
        "rule": rule,
        "flagged": int(flagged.sum()),
        "uncertain": int((values[score] > cut).sum() - flagged.sum()),
        "fitted": fitted,
        "units": "nats squared" if score == "variance" else "nats",
    }
    return table


def _columns(trace: xr.Dataset, score: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The four numbers of every sample, and the standard error of the one that is the score."""
    n, weights = trace.sizes["sample"], weights_of(trace)
    init = np.full(n, np.nan)
    if "init_loss" in trace:
        init = trace.init_loss.values.astype(np.float64)
    found = {name: np.empty(n) for name in ("mean_loss", "loss_gain", "variance")}
    error = np.empty(n)
    for at, loss in blocks_of_losses(trace):
        found["mean_loss"][at] = mean(loss, weights)
        found["loss_gain"][at] = mean(loss - init[at], weights)
        found["variance"][at] = _variance(loss, weights)
        if score == "mean_loss":
            error[at] = mcse(loss, weights)
    values = {"mean_loss": found["mean_loss"], "init_loss": init} | found
    if score in ("init_loss", "loss_gain") and not np.isfinite(init).all():
        first = int((~np.isfinite(init)).argmax())
        raise ValueError(
            f"score is {score!r}, but trace has no l_i(w*) of sample {first}; choose 'mean_loss', "
            "or give init_loss where the trace was made elsewhere"
        )
    if score == "mean_loss" and error.any():  # as of a gain: what has not moved yet may do so
        error[error == 0] = np.inf
    if score == "init_loss":
        error = init_mcse(trace)[0]
    if score == "loss_gain":
        error = loss_gain(trace)["mcse"].values
    if score == "variance":
        error = loss_kernel(trace).diagonal()["mcse"].values
    return values, error


def _fitted(init: np.ndarray, labels: np.ndarray | None, guess: float | None) -> float:
    """The share of labels that cost less at w* than guessing; NaN where that is unknown."""
    if guess is None or not np.isfinite(init).all():
        return np.nan
    return float((init < guess_costs(labels, guess, len(init))).mean())


def _variance(loss: np.ndarray, weights: Weights | None) -> np.ndarray:
    """K_ii of some samples, as :class:`probelib.LossKernel` has it."""
    if weights is None:
        return loss.var((0, 1), ddof=1)
    return weights.unbiased * weights.mean(np.square(loss - weights.mean(loss)))


# --- the cut ---


def _cut(
    score: np.ndarray, labels: np.ndarray | None, guess: float | None
) -> tuple[np.ndarray, str]:
    """Where scores begin to be suspicious, in their own unit, and the rule in words."""
    is_odds = labels is not None and guess is not None and not (score < 0).any()
    if not is_odds:
        return _outliers(score, guess)
    assert labels is not None
    assert guess is not None
    scale = _log_odds(score)
    level = _level(scale, labels)
    above = scale - level
    between = _between_groups(above)
    how = "the point between two groups of"
    if between is None:
        between = _far_above(above, _ABOVE_FLOOR)
        how = f"the median plus {_ABOVE_FLOOR:g} robust standard deviations of"
    floor = guess_costs(labels, guess)
    cut = np.maximum(np.logaddexp(0, level + between), floor)  # the inverse of the log odds
    rule = f"above what guessing the label costs, and above {how} the log odds against the label"
    return cut, f"{rule} less the lower quartile of their class"


def _outliers(score: np.ndarray, guess: float | None) -> tuple[np.ndarray, str]:
    """The cut where nothing but the scores themselves is known: robust outliers."""
    spread = f"the median plus {_ALONE:g} robust standard deviations of"
    if guess is not None and (score < 0).any():  # a loss with densities in it has no logarithm
        cut, rule = _far_above(score, _ALONE), f"above {spread} the score"
    else:
        positive = np.log(score[score > 0])
        far = _far_above(positive, _ALONE) if len(positive) else np.inf
        cut, rule = float(np.exp(far)), f"above {spread} the log of the score"
    if guess is not None:
        cut, rule = max(cut, guess), f"above what guessing costs, and {rule}"
    return np.full(len(score), cut), rule


def _log_odds(loss: np.ndarray) -> np.ndarray:
    """log((1 - p) / p) where -log p is the loss."""
    loss = np.maximum(loss, np.finfo(np.float32).tiny)
    return loss + np.log(-np.expm1(-loss))


def _level(scale: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The lower quartile of each sample's class; that of all samples for classes of a few."""
    level = np.full(len(scale), np.quantile(scale, 0.25))
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        if count >= _FEW:
            level[labels == label] = np.quantile(scale[labels == label], 0.25)
    return level


def _far_above(values: np.ndarray, deviations: float) -> float:
    """The median plus so many robust standard deviations."""
    middle = float(np.median(values))
    return middle + deviations * 1.4826 * float(np.median(np.abs(values - middle)))


def _between_groups(values: np.ndarray) -> float | None:
    """Where two normal components are equally likely; None where they are not two groups.

    Maximum likelihood by expectation-maximisation, from three starts; 2,000 quantiles stand for
    the values. Two groups have Ashman's D, the distance of their means over the root mean square of
    their widths, of 2 or more.
    """
    if len(values) < 2 * _FEW or np.ptp(values) == 0:
        return None
    count = min(len(values), _POINTS)
    points = np.quantile(values, (np.arange(count) + 0.5) / count)
    fits = [_fit(points, start) for start in ((0.25, 0.95), (0.25, 0.75), (0.5, 0.99))]
    _, share, middle, width = max(fits, key=lambda fit: fit[0])
    order = np.argsort(middle)
    share, middle, width = share[order], middle[order], width[order]
    if middle[1] - middle[0] < _SEPARATED * np.sqrt(np.square(width).mean()):
        return None
    grid = np.linspace(middle[0], middle[1], 2001)
    lower, upper = _log_density(grid, share, middle, width).T
    return float(grid[np.argmax(upper > lower)])


def _fit(
    points: np.ndarray, start: tuple[float, float], rounds: int = 300
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Log likelihood, shares, means and widths of two normal components."""
    least = 1e-3 * points.std()
    middle, width = np.quantile(points, start), np.full(2, points.std() / 2)
    share = np.array([0.7, 0.3])
    for _ in range(rounds):
        density = _log_density(points, share, middle, width)
        total = np.logaddexp(*density.T)
        part = np.exp(density - total[:, None])
        mass = part.sum(0) + 1e-9
        share, middle = mass / mass.sum(), points @ part / mass
        width = np.sqrt((part * np.square(points[:, None] - middle)).sum(0) / mass) + least
    return float(total.sum()), share, middle, width


def _log_density(
    x: np.ndarray, share: np.ndarray, middle: np.ndarray, width: np.ndarray
) -> np.ndarray:
    """Of each component at each x, (k, 2), up to the constant of a normal law."""
    return np.log(share) - np.log(width) - np.square((x[:, None] - middle) / width) / 2


__all__ = ["SCORES", "label_issues"]
