"""Chapter 04: sweeps of the localization and of n_beta, layers, and what can be left out."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

import probelib
from probebook import alignment as al
from probebook.chapter import Chapter
from probebook.chapters.loss_kernel import Rows, halves_of_pairs
from probebook.similarities import Interval
from probebook.similarity_tests import jackknife_arm

# -- kernels of some walks ---------------------------------------------------------------------


def kernels_of_parts(pairs: xr.Dataset, parts: int) -> list[probelib.MatrixKernel]:
    """The kernel by every ``parts``-th walk of gradient pairs, from each of the first on."""
    with warnings.catch_warnings():  # their spread is the error
        warnings.filterwarnings("ignore", "pairs has", UserWarning)
        return [probelib.pair_kernel(pairs, slice(part, None, parts)) for part in range(parts)]


def all_layers(pairs: xr.Dataset) -> xr.Dataset:
    """Gradient pairs that were made by layer, as they would have been without."""
    split = [name for name, values in pairs.items() if "layer" in values.dims]
    total = {name: pairs[name].sum("layer", skipna=False) for name in split}
    return pairs.drop_dims("layer").assign(total)


def correlation_of(
    pairs: xr.Dataset, walks: Sequence[int] | None = None, limit: bool = True
) -> np.ndarray:
    """R from some walks of gradient pairs, shape (n, n).

    Args:
        pairs: from :func:`probelib.gradient_pairs`.
        walks: default: all.
        limit: without the data term of Eq. 1.
    """
    with warnings.catch_warnings():  # errors are made here, from walks left out
        warnings.filterwarnings("ignore", "pairs has", UserWarning)
        return probelib.pair_kernel(pairs, walks, limit=limit).correlation()


def without_each_walk(pairs: xr.Dataset, limit: bool = True) -> list[np.ndarray]:
    """R without each of the walks in turn."""
    walks = list(range(pairs.sizes["chain"]))
    return (
        [correlation_of(pairs, [w for w in walks if w != out], limit) for out in walks]
        if len(walks) > 2
        else []
    )


def meaning_over_walks(
    pairs: xr.Dataset, labels: np.ndarray, similarity: np.ndarray, limit: bool = True
) -> Interval:
    """WordNet similarity of the cross-label top 5, with its interval over walks."""

    def meaning(r: np.ndarray) -> float:
        nearest = al.cross_label_top(r, labels, 5)
        return float(similarity[labels[:, None], labels[nearest]].mean())

    value = meaning(correlation_of(pairs, limit=limit))
    arm = jackknife_arm([meaning(r) for r in without_each_walk(pairs, limit)])
    return Interval(value, value - arm, value + arm)


# -- the sweep of the localization -------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Localization:
    """The whole network at one localization.

    Attributes:
        gamma: the localization.
        loss: mean over draws and photographs, nats.
        loss_se: its standard error over walks.
        kept: of the photographs with more than half the probability on their label at w*, the
            share that has it along the walks.
        data_term: spread of n_beta L over the draws, which the limit n_beta -> 0 leaves out.
        reliability: of R from one half of the walks against the other.
        reliability_se: its standard error over photographs.
        wordnet: similarity of the neighbours, with its interval over walks.
        aligned: the same against chance.
    """

    gamma: float
    loss: float
    loss_se: float
    kept: float
    data_term: float
    reliability: float
    reliability_se: float
    wordnet: Interval
    aligned: al.Alignment

    def numbers(self) -> dict[str, float]:
        """Everything by name."""
        key = f"gamma_{self.gamma:.0f}"
        return {
            f"{key}_mean_loss": self.loss,
            f"{key}_mean_loss_se": self.loss_se,
            f"{key}_still_right": self.kept,
            f"{key}_data_term": self.data_term,
            f"{key}_reliability": self.reliability,
            f"{key}_reliability_se": self.reliability_se,
            **self.wordnet.numbers(f"{key}_wordnet"),
            f"{key}_interval_low": self.aligned.low,
            f"{key}_interval_high": self.aligned.high,
        }

    def row(self) -> dict[str, str]:
        """A line of a table."""
        return {
            "γ": f"{self.gamma:,.0f}",
            "mean loss": f"{self.loss:.2f} ± {self.loss_se:.2f}",
            "still right": f"{self.kept:.0%}",
            "spread of nβ L": f"{self.data_term:.2f}",
            "reliability of half the walks": f"{self.reliability:.2f} ± {self.reliability_se:.2f}",
            "WordNet, cross-label top 5": str(self.wordnet),
            "by chance": f"{self.aligned.low:.3f} to {self.aligned.high:.3f}",
        }


def localization_of(
    gamma: float,
    pairs: xr.Dataset,
    labels: np.ndarray,
    similarity: np.ndarray,
    meaning: al.Meaning,
) -> Localization:
    """What gradient pairs at one localization say.

    Args:
        gamma: the localization.
        pairs: gradient pairs there.
        labels: of the photographs, shape (n,).
        similarity: of the classes.
        meaning: from :func:`probebook.alignment.meaning_of`.
    """
    right = pairs.init_loss.values < np.log(2)  # more than half the probability on the label
    kept = float((pairs.loss.values[:, :, right] < np.log(2)).mean()) if right.any() else 0.0
    of_walk = pairs.loss.values.mean((1, 2))
    halves = halves_of_pairs(pairs)
    return Localization(
        gamma,
        float(of_walk.mean()),
        float(of_walk.std(ddof=1) / len(of_walk) ** 0.5),
        kept,
        float(pairs.log_weight.std(ddof=1)),
        probelib.split_half_reliability(*halves),
        al.reliability_error(*halves),
        meaning_over_walks(pairs, labels, similarity),
        meaning(correlation_of(pairs), labels),
    )


def sweep_panels(sweep: Sequence[Localization], at_center: float) -> dict[str, dict]:
    """What :func:`probebook.figures.localization_sweep` draws.

    Args:
        sweep: in ascending order of gamma.
        at_center: mean loss of the trained network, nats.
    """
    chance = [(p.aligned.chance, p.aligned.low, p.aligned.high) for p in sweep]
    own = [(p.wordnet.value, p.wordnet.low, p.wordnet.high) for p in sweep]
    own = [(v, lo, hi) if np.isfinite(hi - lo) else (v, v, v) for v, lo, hi in own]
    halves = [p.reliability for p in sweep]
    errors = [1.96 * p.reliability_se for p in sweep]
    return {
        "mean loss (nats)": {
            "along the draws": np.array([p.loss for p in sweep]),
            "trained": np.full(len(sweep), at_center),
        },
        "reliability": {
            "R, half the walks": np.stack(
                [halves, np.subtract(halves, errors), np.add(halves, errors)]
            )
        },
        "WordNet similarity": {
            "cross-label top 5": np.array(own).T,
            "chance": np.array(chance).T,
        },
    }


# -- the sweep of n_beta -----------------------------------------------------------------------


def at_n_beta(pairs: xr.Dataset, n_beta: float) -> xr.Dataset:
    """Gradient pairs with another weight of the data term, from the same weights.

    The walks come from the localization alone; n_beta is in the weights exp[-n_beta L] and before
    the gradient of L. With one pair in each walk both can be made anew from what is there.

    Args:
        pairs: from :func:`probelib.gradient_pairs` with ``pairs=1``.
        n_beta: the new one.

    Raises:
        ValueError: walks of several pairs, whose weighted sums cannot be taken apart.
    """
    if pairs.sizes["pair"] != 1:
        raise ValueError(f"pairs has walks of {pairs.sizes['pair']} pairs; make them with pairs=1")
    ratio = n_beta / pairs.attrs["config"]["n_beta"]
    log_weight = pairs.log_weight * ratio
    weight = np.exp(log_weight - log_weight.max("draw")).mean("draw")
    changed = pairs.assign(
        log_weight=log_weight, cross=pairs.cross * ratio, products=pairs.kernel * weight
    )
    return changed.assign_attrs(config=pairs.attrs["config"] | {"n_beta": float(n_beta)})


@dataclass(frozen=True, eq=False)
class Tempered:
    """A kernel at one n_beta.

    Attributes:
        what: moves.
        n_beta: the weight of the data term.
        share: of the draws that count under it, at most.
        variance: mean over photographs of K_ii over that at n_beta -> 0, with its interval over
            walks.
        agreement: correlation over pairs of R with that at n_beta -> 0, from the same draws.
        wordnet: similarity of the neighbours, with its interval over walks.
    """

    what: str
    n_beta: float
    share: float
    variance: Interval
    agreement: float
    wordnet: Interval

    def numbers(self) -> dict[str, float]:
        """Everything by name; what is not known is left out."""
        key = f"{self.what.replace(' ', '_')}_n_beta_{self.n_beta:.0f}"
        found = {
            f"{key}_share": self.share,
            f"{key}_agreement": self.agreement,
            **self.variance.numbers(f"{key}_variance"),
            **self.wordnet.numbers(f"{key}_wordnet"),
        }
        return {name: value for name, value in found.items() if np.isfinite(value)}

    def row(self) -> dict[str, str]:
        """A line of a table."""
        return {
            "what moves": self.what,
            "nβ": f"{self.n_beta:,.0f}",
            "draws that count": f"{self.share:.0%}",
            "variance, over that at nβ → 0": str(self.variance),
            "R, correlation with that at nβ → 0": f"{self.agreement:.3f}",
            "WordNet, cross-label top 5": str(self.wordnet),
        }


def tempered(
    what: str,
    pairs: xr.Dataset,
    n_beta: float,
    labels: np.ndarray,
    similarity: np.ndarray,
) -> Tempered:
    """What gradient pairs of one-pair walks say at another n_beta.

    Args:
        what: moves.
        pairs: see :func:`at_n_beta`.
        n_beta: the weight of the data term.
        labels: of the photographs, shape (n,).
        similarity: of the classes.
    """
    here = at_n_beta(pairs, n_beta)
    weight = np.exp(here.log_weight.values - here.log_weight.values.max())
    walks = list(range(pairs.sizes["chain"]))

    def variance(some: Sequence[int]) -> float:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "pairs has", UserWarning)
            own = probelib.pair_kernel(here, some).diagonal().values
        return float((own / probelib.pair_kernel(here, some, limit=True).diagonal().values).mean())

    ratio = variance(walks)
    arm = jackknife_arm(
        [variance([w for w in walks if w != out]) for out in walks] if len(walks) > 2 else []
    )
    r, plain = correlation_of(here, limit=False), correlation_of(here)
    return Tempered(
        what,
        n_beta,
        float(weight.sum() ** 2 / np.square(weight).sum() / weight.size),
        Interval(ratio, ratio - arm, ratio + arm),
        float(np.corrcoef(al.off_diagonal(r), al.off_diagonal(plain))[0, 1]),
        meaning_over_walks(here, labels, similarity, limit=False),
    )


# -- layers ------------------------------------------------------------------------------------


def layer_rows(
    chapter: Chapter, pairs: xr.Dataset, labels: np.ndarray, similarity: np.ndarray
) -> Rows:
    """Record what each stage of the network adds to the kernel, and give a line of a table each.

    Args:
        chapter: where to.
        pairs: made with ``by_layer=True``.
        labels: of the photographs, shape (n,).
        similarity: of the classes.
    """
    stages = list(dict.fromkeys(str(name).split(".")[0] for name in pairs.layer.values))
    whole = probelib.pair_kernel(pairs, limit=True).diagonal().values
    whole_halves, rows = halves_of_pairs(pairs), []
    for stage in stages:
        of_stage = [str(name) for name in pairs.layer.values if str(name).split(".")[0] == stage]
        only = pairs.sel(layer=of_stage)
        share = probelib.pair_kernel(only, limit=True).diagonal().values / whole
        halves = halves_of_pairs(only)
        reliability = probelib.split_half_reliability(*halves)
        agreement = al.noise_free_correlation(halves, whole_halves)
        wordnet = meaning_over_walks(only, labels, similarity)
        key = f"layer_{stage}"
        chapter.record(
            **{
                f"{key}_share": float(np.median(share)),
                f"{key}_reliability": reliability,
                f"{key}_agreement": agreement,
            },
            **{k: v for k, v in wordnet.numbers(f"{key}_wordnet").items() if np.isfinite(v)},
        )
        rows.append(
            {
                "weights of": stage,
                "share of the variance (median photograph)": f"{np.median(share):.0%}",
                "reliability of half the walks": f"{reliability:.2f}",
                "agreement with the whole network's R": (
                    f"{agreement:.2f}" if reliability > 0.1 else "too noisy"
                ),
                "WordNet, cross-label top 5": str(wordnet),
            }
        )
    return rows


# -- what can be left out ----------------------------------------------------------------------


def reduced_rows(
    chapter: Chapter,
    reduced: Mapping[str, xr.Dataset],
    labels: np.ndarray,
    meaning: al.Meaning,
    passes: int,
) -> Rows:
    """Record what cheaper kernels leave of the first one, and give a line of a table each.

    Args:
        chapter: where to.
        reduced: name -> gradient pairs, those of the whole network first.
        labels: of the photographs, shape (n,).
        meaning: from :func:`probebook.alignment.meaning_of`.
        passes: gradients of every photograph that each took.
    """
    whole = next(iter(reduced))
    whole_halves, rows = halves_of_pairs(reduced[whole]), []
    whole_reliability = probelib.split_half_reliability(*whole_halves)
    for name, found in reduced.items():
        own = halves_of_pairs(found)
        numbers = {
            "seconds_a_pass": found.attrs["wall_time"] / passes,
            "reliability": probelib.split_half_reliability(*own),
            "agreement": 1.0 if name == whole else al.noise_free_correlation(own, whole_halves),
            "wordnet": meaning(probelib.pair_kernel(found, limit=True).correlation(), labels).value,
        }
        key = f"reduced_{name.replace(' ', '_')}"
        reliability, agreement = numbers["reliability"], numbers["agreement"]
        readable = min(reliability, whole_reliability) > 0.1 and agreement < 1.2
        chapter.record(**{f"{key}_{what}": value for what, value in numbers.items()})
        rows.append(
            {
                "what moves": name,
                "seconds per pass": f"{numbers['seconds_a_pass']:.1f}",
                "reliability of half the walks": f"{reliability:.2f}",
                "agreement with the whole network's R": (
                    f"{agreement:.2f}" if readable else "too noisy"
                ),
                "WordNet, cross-label top 5": f"{numbers['wordnet']:.3f}",
            }
        )
    return rows


__all__ = [
    "Localization",
    "Tempered",
    "all_layers",
    "at_n_beta",
    "correlation_of",
    "kernels_of_parts",
    "layer_rows",
    "localization_of",
    "meaning_over_walks",
    "reduced_rows",
    "sweep_panels",
    "tempered",
    "without_each_walk",
]
