"""Chapter 04: the rows behind its tables, and kept runs computed again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from scipy.stats import skew
from torch import nn

import probelib
from probebook import alignment as al
from probebook.chapter import Chapter
from probebook.classifiers import Classifier
from probebook.imagenet import Decoded, ImageFiles
from probebook.prerun import KeptPairs

Rows = list[dict[str, str]]
EVEN, ODD = slice(0, None, 2), slice(1, None, 2)  # of the chains: two halves that share nothing


# -- two halves of the chains ------------------------------------------------------------------


def halves_of_pairs(pairs: xr.Dataset) -> list[np.ndarray]:
    """R from the even walks of gradient pairs, and from the odd ones."""
    return [probelib.pair_kernel(pairs, part, limit=True).correlation() for part in (EVEN, ODD)]


def halves_of_draws(trace: xr.Dataset, draws: int | None = None) -> list[np.ndarray]:
    """R from the first draws of the even chains, and of the odd ones."""
    part = trace.isel(draw=slice(draws))
    return [probelib.loss_kernel(part.isel(chain=half)).correlation() for half in (EVEN, ODD)]


# -- the photographs ---------------------------------------------------------------------------


def record_photographs(
    chapter: Chapter,
    classifier: Classifier,
    decoded: Decoded,
    files: ImageFiles,
    logits: torch.Tensor,
    labels: np.ndarray,
    *,
    stand_in: bool,
    n_sampling: int,
    side: int,
) -> None:
    """Record the network, the photographs, and how many of them it gets right.

    Args:
        chapter: where to.
        classifier: the network.
        decoded, files: the photographs.
        logits: of the network, shape (n, classes).
        labels: of the photographs, shape (n,).
        stand_in: whether they are not ImageNet's.
        n_sampling: how many define L.
        side: in pixels.
    """
    right_first = logits.argmax(1).numpy() == labels
    right_in_five = (logits.topk(5).indices.numpy() == labels[:, None]).any(1)
    chapter.record(
        stand_in=int(stand_in),
        network=classifier.name,
        n_parameters=sum(p.numel() for p in classifier.network.parameters()),
        n_images=len(labels),
        n_sampling=n_sampling,
        n_skipped=len(decoded.skipped),
        n_classes=len(np.unique(labels)),
        image_source=files.source,
        image_side=side,
        top1=float(right_first.mean()),
        top5=float(right_in_five.mean()),
        top1_every_fifth=float(right_first[::5].mean()),
        top5_every_fifth=float(right_in_five[::5].mean()),
        guessing=float(np.log(logits.shape[1])),
    )


# -- the last module ---------------------------------------------------------------------------


def record_steps(chapter: Chapter, table1: xr.Dataset, long: xr.Dataset) -> None:
    """Record what as many steps at Table 1's size, and long ones, are worth."""
    for key, trace in (("table1_step", table1), ("long_step", long)):
        # nb times the mean gain, which has its own standard error over both chains
        llc, nb = probelib.local_learning_coefficient(trace), trace.attrs["config"]["n_beta"]
        chapter.record(
            **{
                f"ess_{key}": llc.ess,
                f"kernel_draws_{key}": al.equivalent_draws(*halves_of_draws(trace)),
                f"gain_{key}": llc.value / nb,
                f"gain_mcse_{key}": llc.mcse / nb,
            }
        )
    chapter.record(
        steps=long.sizes["chain"] * long.sizes["draw"],
        kernel_draws_ratio=chapter.numbers["kernel_draws_long_step"]
        / chapter.numbers["kernel_draws_table1_step"],
    )


@dataclass(frozen=True, eq=False)
class LastModule:
    """The kernel of the last module, by SGLD draws and by pairs of gradients.

    Attributes:
        trace, pairs: the draws, and the pairs.
        draws: draws of each chain at which the reliability is looked at, shape (k,).
        reliable, effective: split-half reliability and equivalent draws there, shape (k,).
        pair_halves: R from two halves of the walks.
        signal: spread of R over pairs of photographs, freed of noise.
    """

    trace: xr.Dataset
    pairs: xr.Dataset
    draws: np.ndarray
    reliable: np.ndarray
    effective: np.ndarray
    pair_halves: Sequence[np.ndarray]
    signal: float

    def curves(self) -> tuple[dict, dict]:
        """What :func:`probebook.figures.reliability_curves` draws."""
        per_half = self.effective / 2
        of_pairs = np.array([al.equivalent_draws(*self.pair_halves) / 2])
        passes = self.pairs.loss.sizes["chain"] * self.pairs.loss.sizes["draw"]
        power = self.signal**2
        return {
            "SGLD": (self.draws * self.trace.sizes["chain"] / 2, per_half, self.reliable),
            "gradient pairs": (
                np.array([passes / 2]),
                of_pairs,
                np.array([probelib.split_half_reliability(*self.pair_halves)]),
            ),
        }, {
            "SGLD": power / (power + 1 / per_half),
            "gradient pairs": power / (power + 1 / of_pairs),
        }

    def record(self, chapter: Chapter, n_pairs: int, seed: int) -> None:
        """Record what draws and pairs reach, and whether they estimate one kernel.

        Args:
            chapter: where to.
            n_pairs: of gradients.
            seed: of the diagnostics.
        """
        trace, trust = self.trace, probelib.diagnostics(self.trace, seed=seed)
        draws = trace.sizes["chain"] * trace.sizes["draw"]
        # Covariances are what both estimators are unbiased for. All three are put on one scale, of
        # chains that are not compared, because losses of confident photographs vary a thousandth
        # as much as others.
        even = probelib.loss_kernel(trace.isel(chain=EVEN))
        spread = np.sqrt(even.diagonal().values)
        scale = np.outer(spread, spread)
        chapter.record(
            sgld_draws=draws,
            sgld_effective_draws=self.effective[-1],
            sgld_ess_of_mean_loss=float(trust.ess[0]),
            sgld_rhat_max=trust.rhat_max,
            sgld_split_half_reliability=self.reliable[-1],
            sgld_mean_loss=trust.loss_along_chains,
            sgld_losses_a_second=trace.sizes["sample"] * draws / trace.attrs["wall_time"],
            head_signal_spread=self.signal,
            head_draws_for_one_half=1 / self.signal**2,
            head_pairs=n_pairs,
            head_pairs_split_half_reliability=probelib.split_half_reliability(*self.pair_halves),
            head_pairs_equivalent_draws=al.equivalent_draws(*self.pair_halves),
            head_pairs_data_term=float(self.pairs.log_weight.std(ddof=1)),
            draws_on_pairs=al.noise_free_slope(
                probelib.loss_kernel(trace.isel(chain=ODD)).covariance() / scale,
                *(
                    probelib.pair_kernel(self.pairs, part, limit=True).covariance() / scale
                    for part in (EVEN, ODD)
                ),
            ),
            draws_on_pairs_correlation=al.noise_free_slope(
                probelib.loss_kernel(trace).correlation(), *self.pair_halves
            ),
        )
        chapter.record_verdict(trust, "sgld_verdict")


def last_module(trace: xr.Dataset, pairs: xr.Dataset) -> LastModule:
    """Compare the kernel of SGLD draws with that of gradient pairs on the same posterior."""
    most = trace.sizes["draw"]
    draws = np.unique(np.geomspace(10, most, 8).astype(int))
    draws = draws[draws >= min(10, most)]
    parts = [halves_of_draws(trace, count) for count in draws]
    pair_halves = halves_of_pairs(pairs)
    return LastModule(
        trace,
        pairs,
        draws,
        np.array([probelib.split_half_reliability(*part) for part in parts]),
        np.array([al.equivalent_draws(*part) for part in parts]),
        pair_halves,
        float(np.sqrt(max(np.cov(*map(al.off_diagonal, pair_halves))[0, 1], 1e-12))),
    )


# -- Table 1's row -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Table1Row:
    """A run at the paper's setting.

    Attributes:
        trace: its draws.
        at: positions of its photographs among the chapter's, shape (m,).
        labels: of these, shape (m,).
        halves: R from two halves of the chains.
        r: R from all.
        aligned: WordNet similarity of the neighbours.
    """

    trace: xr.Dataset
    at: np.ndarray
    labels: np.ndarray
    halves: Sequence[np.ndarray]
    r: np.ndarray
    aligned: al.Alignment

    def record(self, chapter: Chapter, how: str, similarity: np.ndarray, seed: int) -> None:
        """Record the run.

        Args:
            chapter: where to.
            how: it was made.
            similarity: of the classes.
            seed: of the diagnostics.
        """
        trust = probelib.diagnostics(self.trace, seed=seed)
        first, second = self.halves
        chapter.record(
            table1_how=how,
            table1_images=len(self.labels),
            table1_draws=self.trace.sizes["chain"] * self.trace.sizes["draw"],
            table1_effective_draws=al.equivalent_draws(first, second),
            table1_mean_loss_start=trust.loss_at_center,
            table1_mean_loss_chain=trust.loss_along_chains,
            table1_split_half_reliability=probelib.split_half_reliability(first, second),
            table1_correlation_mean=float(al.off_diagonal((first + second) / 2).mean()),
            table1_spearman_wordnet=al.spearman_of_pairs(
                self.r, similarity[np.ix_(self.labels, self.labels)]
            ),
            table1_wordnet=self.aligned.value,
            table1_chance=self.aligned.chance,
            table1_interval_low=self.aligned.low,
            table1_interval_high=self.aligned.high,
        )
        llc = probelib.local_learning_coefficient(self.trace)
        if np.isfinite(llc.mcse):  # of a trace that is long enough to have an error
            error = llc.mcse / self.trace.attrs["config"]["n_beta"]
            chapter.record(table1_mean_loss_chain_mcse=float(error))
        chapter.record_verdict(trust, "table1_verdict")

    def record_beside(
        self,
        chapter: Chapter,
        r: np.ndarray,
        halves: Sequence[np.ndarray],
        class_r: np.ndarray,
        feature_r: np.ndarray,
        meaning: al.Meaning,
    ) -> None:
        """Record the chapter's kernel, classes and features on the same photographs.

        Args:
            chapter: where to.
            r, halves: the chapter's kernel, and its two halves, shape (n, n).
            class_r, feature_r: cosines of the labels' weights and of features, shape (n, n).
            meaning: from :func:`probebook.alignment.meaning_of`.
        """
        own = np.ix_(self.at, self.at)
        chapter.record(
            table1_kernel_here_wordnet=meaning(r[own], self.labels).value,
            table1_features_wordnet=meaning(feature_r[own], self.labels).value,
            table1_class_agreement=al.noise_free_correlation(self.halves, [class_r[own]] * 2),
            table1_feature_agreement=al.noise_free_correlation(self.halves, [feature_r[own]] * 2),
            table1_class_wordnet=meaning(class_r[own], self.labels).value,
            table1_spearman_features=al.spearman_of_pairs(self.r, feature_r[own]),
            table1_agreement=al.noise_free_correlation(self.halves, [h[own] for h in halves]),
        )


def table1_row(
    trace: xr.Dataset, at: np.ndarray, labels: np.ndarray, meaning: al.Meaning
) -> Table1Row:
    """Kernel and neighbours of a run at the paper's setting."""
    r = probelib.loss_kernel(trace).correlation()
    return Table1Row(trace, at, labels, halves_of_draws(trace), r, meaning(r, labels))


# -- the whole network -------------------------------------------------------------------------


def record_kept(chapter: Chapter, kept: KeptPairs, again: xr.Dataset) -> None:
    """Record a kept run, and by how much some of its photographs differ when computed again.

    The kernel that is compared leaves the data term out: that is the part which needs no pass over
    all photographs.

    Args:
        chapter: where to.
        kept: the run.
        again: the gradient pairs of its photographs ``check``, all walks.
    """
    parts = len(kept.kernels)
    difference = 0.0
    for part, covariance in enumerate(kept.check_kernels):
        then = probelib.MatrixKernel(covariance.astype(np.float64)).correlation()
        now = probelib.pair_kernel(again, slice(part, None, parts), limit=True).correlation()
        difference = max(difference, float(np.abs(then - now).max()))
    about, minutes = kept.about, kept.about["seconds"] / 60
    order = [walk for part in range(parts) for walk in kept.walks(part)]
    losses = again.loss.values[order] - kept.loss[:, :, kept.check]
    chapter.record(
        made=f"kept run: {about['device']}, {minutes:.0f} min, torch {about['torch']}",
        verified_images=len(kept.check),
        verified_difference=difference,
        verified_loss_difference=float(np.abs(losses).max()),
    )


def record_kernel(
    chapter: Chapter,
    halves: Sequence[np.ndarray],
    loss: np.ndarray,
    at_center: np.ndarray,
    log_weight: np.ndarray,
    labels: np.ndarray,
    cross: np.ndarray,
) -> None:
    """Record the kernel of the whole network: how sure it is, and of its neighbours.

    The error of the mean loss comes from the walks, which are independent, and few.

    Args:
        chapter: where to.
        halves: R from two halves of the walks, shape (n, n).
        loss: along the walks, shape (chain, draw, n), nats.
        at_center: at w*, shape (n,).
        log_weight: -n_beta L along the walks, shape (chain, draw).
        labels: of the photographs.
        cross: cross-label neighbours in the whole R, shape (n, 5).
    """
    first, second = halves
    reliability = probelib.split_half_reliability(first, second)
    nearest = [al.cross_label_top(half, labels, 5) for half in halves]
    weight = np.exp(log_weight - log_weight.max())
    chapter.record(
        draws_that_count=float(weight.sum() ** 2 / np.square(weight).sum() / weight.size),
        data_term=float(log_weight.std(ddof=1)),
        draws=int(loss.shape[0] * loss.shape[1]),
        effective_draws=al.equivalent_draws(first, second),
        mean_loss_start=float(at_center.mean()),
        mean_loss_chain=float(loss.mean()),
        mean_loss_chain_se=float(loss.mean((1, 2)).std(ddof=1) / len(loss) ** 0.5),
        split_half_reliability=reliability,
        reliability_local=reliability,
        split_half_reliability_se=al.reliability_error(*halves),
        reliability_of_both=probelib.spearman_brown(reliability),
        shared_top5=al.overlap(*nearest),
        neighbours_shared_halves=al.overlap(*nearest),
        most_frequent_neighbour=int(np.bincount(cross.ravel()).max()),
        shared_top5_by_chance=5 / (len(labels) - 1),
        signal_spread=float(np.sqrt(max(np.cov(*map(al.off_diagonal, halves))[0, 1], 0))),
    )


# -- what neighbours mean ----------------------------------------------------------------------


def label_weights(network: nn.Module, labels: np.ndarray) -> np.ndarray:
    """Cosines of the labels' rows in the last linear layer, its mean row taken off: (n, n)."""
    last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1].weight.detach().cpu()
    return al.cosine((last - last.mean(0)).numpy().astype(np.float64))[np.ix_(labels, labels)]


def alignment_rows(
    chapter: Chapter,
    measured: Mapping[str, np.ndarray],
    labels: np.ndarray,
    among: np.ndarray,
    meaning: al.Meaning,
) -> Rows:
    """Record what each similarity's neighbours mean, and give a line of a table each.

    Args:
        chapter: where to.
        measured: name -> similarity, shape (n, n); "loss kernel" and "features" among them.
        labels: of the photographs, shape (n,).
        among: WordNet similarity of the photographs' classes, shape (n, n).
        meaning: from :func:`probebook.alignment.meaning_of`.
    """
    rows, features = [], measured["features"]
    for name, matrix in measured.items():
        aligned = meaning(matrix, labels)
        key = "kernel" if name == "loss kernel" else name.replace(",", "").replace(" ", "_").lower()
        numbers = {
            "wordnet_top5": aligned.value,
            "chance": aligned.chance,
            "interval_low": aligned.low,
            "interval_high": aligned.high,
            "spearman_wordnet": al.spearman_of_pairs(matrix, among),
            "spearman_features": al.spearman_of_pairs(matrix, features),
            "shared_with_features": al.overlap(
                al.cross_label_top(matrix, labels, 5), al.cross_label_top(features, labels, 5)
            ),
        }
        chapter.record(**{f"{key}_{what}": value for what, value in numbers.items()})
        rows.append(
            {
                "similarity": name,
                "WordNet, cross-label top 5": f"{aligned.value:.3f}",
                "by chance": f"{aligned.chance:.3f} [{aligned.low:.3f}, {aligned.high:.3f}]",
                "Spearman with WordNet": f"{numbers['spearman_wordnet']:.3f}",
                "Spearman with features": f"{numbers['spearman_features']:.3f}",
                "top 5 shared with features": f"{numbers['shared_with_features']:.0%}",
            }
        )
    return rows


def record_agreement(
    chapter: Chapter,
    measured: Mapping[str, np.ndarray],
    halves: Sequence[np.ndarray],
    main: al.Alignment,
) -> None:
    """Record the kernel's neighbours beside chance, and its agreement with simpler similarities.

    Args:
        chapter: where to, with the numbers of :func:`alignment_rows`.
        measured: as there.
        halves: R from two halves of the walks.
        main: alignment of the loss kernel.
    """
    classes, features = measured["weights of the labels"], measured["features"]
    chapter.record(
        wordnet_top5_cross_label=main.value,
        wordnet_chance=main.chance,
        wordnet_interval_low=main.low,
        wordnet_interval_high=main.high,
        wordnet_over_chance=main.value - main.high,
        spearman_wordnet=chapter.numbers["kernel_spearman_wordnet"],
        feature_agreement=chapter.numbers["kernel_spearman_features"],
        class_agreement=al.noise_free_correlation(halves, (classes, classes)),
        feature_agreement_noise_free=al.noise_free_correlation(halves, (features, features)),
    )


def robust_similarity(covariance: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """K_ij over robust scales of the two losses, shape (n, n).

    The scale is the median absolute deviation along the walks, times 1.4826, which is the standard
    deviation of a normal law. A loss that does not move in half of the draws, or whose deviation
    vanishes in half precision, keeps its standard deviation.

    Args:
        covariance: K, shape (n, n), nats squared.
        loss: along the walks, shape (chain, draw, n), nats.
    """
    flat = loss.reshape(-1, loss.shape[-1])
    scale = 1.4826 * np.median(np.abs(flat - np.median(flat, 0)), 0)
    own = np.sqrt(np.maximum(np.diag(covariance), 0))
    scale = np.where(scale > 1e-6, scale, np.maximum(own, 1e-30))
    return covariance / scale[:, None] / scale


def hub_rows(
    chapter: Chapter,
    similarities: Mapping[str, np.ndarray],
    labels: np.ndarray,
    at_center: np.ndarray,
    meaning: al.Meaning,
) -> Rows:
    """Record how often photographs are neighbours, and give a line of a table each.

    Args:
        chapter: where to.
        similarities: name -> (n, n).
        labels: of the photographs, shape (n,).
        at_center: their losses at w*, shape (n,), nats.
        meaning: from :func:`probebook.alignment.meaning_of`.
    """
    rows = []
    for name, matrix in similarities.items():
        nearest = al.cross_label_top(matrix, labels, 5)
        count = np.bincount(nearest.ravel(), minlength=len(labels))
        numbers = {
            "most": int(count.max()),
            "never": float((count == 0).mean()),
            "skewness": float(skew(count)) if np.ptp(count) else 0.0,
            "loss_of_hubs": float(np.median(at_center[np.argsort(-count, kind="stable")[:10]])),
            "wordnet": meaning(matrix, labels).value,
        }
        key = f"hubs_{name.replace(',', '').replace(' ', '_')}"
        chapter.record(**{f"{key}_{what}": value for what, value in numbers.items()})
        rows.append(
            {
                "similarity": name,
                "most frequent: among the five of": f"{numbers['most']}",
                "never among the five": f"{numbers['never']:.0%}",
                "skewness of the counts": f"{numbers['skewness']:.1f}",
                "loss at w* of the ten most frequent (median)": f"{numbers['loss_of_hubs']:.2g}",
                "WordNet, cross-label top 5": f"{numbers['wordnet']:.3f}",
            }
        )
    chapter.record(loss_median=float(np.median(at_center)))
    return rows


def record_gradients(
    chapter: Chapter,
    r: np.ndarray,
    halves: Sequence[np.ndarray],
    gradient_cosine: np.ndarray,
    labels: np.ndarray,
    meaning: al.Meaning,
) -> None:
    """Record the kernel beside the cosine of the gradients at w*.

    Args:
        chapter: where to.
        r, halves: of all photographs, and from two halves of the walks, shape (n, n).
        gradient_cosine: shape (n, n).
        labels: of the photographs.
        meaning: from :func:`probebook.alignment.meaning_of`.
    """
    chapter.record(
        gradient_agreement=_pearson_of_pairs(r, gradient_cosine),
        gradient_agreement_noise_free=al.noise_free_correlation(halves, [gradient_cosine] * 2),
        gradient_wordnet=meaning(gradient_cosine, labels).value,
    )


def record_last_module(chapter: Chapter, r: np.ndarray, of_module: np.ndarray) -> None:
    """Record the correlation over pairs of the whole network's R and the last module's own."""
    chapter.record(last_module_agreement=_pearson_of_pairs(r, of_module))


def _pearson_of_pairs(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(al.off_diagonal(one), al.off_diagonal(other))[0, 1])


__all__ = [
    "LastModule",
    "Table1Row",
    "alignment_rows",
    "halves_of_draws",
    "halves_of_pairs",
    "hub_rows",
    "label_weights",
    "last_module",
    "record_agreement",
    "record_gradients",
    "record_kept",
    "record_kernel",
    "record_last_module",
    "record_photographs",
    "record_steps",
    "robust_similarity",
    "table1_row",
]
