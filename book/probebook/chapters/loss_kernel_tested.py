"""The second part of chapter 04: the kernel beside its rivals, planted structure, uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

import probelib
from probebook import alignment as al
from probebook import similarity_tests as st
from probebook.chapter import Chapter
from probebook.classifiers import Classifier
from probebook.imagenet import Decoded, ImageFiles
from probebook.leaks import LeakSearch, LeakSize
from probebook.planted import Design, Recovery
from probebook.prerun import KeptPairs
from probebook.removals import Removals, RemovalSize
from probebook.similarities import Interval

Rows = list[dict[str, str]]

DEMONSTRATION = (
    "**A stand-in, not a result.** There are no ImageNet photographs here: the similarities of "
    "photographs and their maps mean nothing. The planted problems and the uses need none."
)
SMALL_PLANTED = Design(samples=400, observed=48, epochs=5)
SMALL_LEAKS = LeakSize(train=200, honest=30, leaks=12, hidden=(16,), epochs=3, draws=40)
SMALL_REMOVALS = RemovalSize(
    train=150, pool=150, queries=4, budgets=(10,), networks=2, hidden=8, epochs=3, draws=40
)


def key_of(name: str) -> str:
    """The part of a recorded number's name that stands for a similarity."""
    return "kernel" if name == "loss kernel" else name.replace(" ", "_")


# -- similarities ------------------------------------------------------------------------------


@torch.no_grad()
def apply(model: nn.Module, x: Tensor, batch: int = 10) -> np.ndarray:
    """A model on many inputs, a small batch at a time; float32, on the host."""
    return torch.cat([model(part).float().cpu() for part in x.split(batch)]).numpy()


def embedding_of(classifier: Classifier, images: Tensor) -> np.ndarray:
    """Penultimate features, shape (n, features)."""
    trunk, last = classifier.split(classifier.head)
    model = nn.Sequential(trunk, *list(last)[:-1]).eval().to(images.device)
    rows = apply(model, images)
    return rows.reshape(len(rows), -1)


def pixel_cosine(decoded: Decoded, side: int = 32) -> np.ndarray:
    """Cosines of the photographs at low resolution, their mean taken off, shape (n, n)."""
    pixels = nn.functional.interpolate(decoded.tensor().float(), size=side, mode="area")
    rows = pixels.flatten(1).numpy()
    return al.cosine(rows - rows.mean(0))


def correlation_of(parts: Sequence[probelib.MatrixKernel]) -> np.ndarray:
    """R from the mean of several kernels of the same photographs, shape (n, n)."""
    mean = np.mean([part.covariance() for part in parts], 0)
    return probelib.MatrixKernel(mean).correlation()


def without_each(parts: Sequence[probelib.MatrixKernel]) -> list[np.ndarray]:
    """R without each of the parts in turn."""
    every = range(len(parts))
    return [correlation_of([parts[p] for p in every if p != out]) for out in every]


def halves_of(parts: Sequence[probelib.MatrixKernel]) -> list[np.ndarray]:
    """R from every other part, and from the rest."""
    return [correlation_of(parts[start::2]) for start in (0, 1)]


def mean_rank(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The mean of the ranks, over all pairs, of two similarities, shape (n, n)."""
    ranks = [rankdata(matrix).reshape(matrix.shape) for matrix in (one, other)]
    return (ranks[0] + ranks[1]) / 2


def record_kernel(
    chapter: Chapter,
    classifier: Classifier,
    parts: Sequence[probelib.MatrixKernel],
    kept: KeptPairs | None,
    labels: np.ndarray,
    localization: float,
    stand_in: bool,
) -> None:
    """Record what kernel is tested, and how sure it is."""
    halves = halves_of(parts)
    reliability = probelib.split_half_reliability(*halves)
    k = min(5, len(labels) - 2)
    made = "made in this run"
    if kept is not None:
        about = kept.about
        made = f"a kept run ({about['device']}, {about['seconds'] / 60:.0f} min)"
    chapter.record(
        stand_in=int(stand_in),
        network=classifier.name,
        n_images=len(labels),
        n_classes=len(np.unique(labels)),
        image_source="a stand-in" if stand_in else "ImageNet",
        localization=localization,
        made=made,
        reliability_local=reliability,
        reliability_of_both=probelib.spearman_brown(reliability),
        neighbours_shared_halves=al.overlap(
            *(al.cross_label_top(half, labels, k) for half in halves)
        ),
    )


# -- meaning -----------------------------------------------------------------------------------


def column(found: Mapping[str, Mapping], name: str) -> dict:
    """One number of every similarity."""
    return {method: numbers[name] for method, numbers in found.items()}


def meaning_rows(
    chapter: Chapter,
    measured: Mapping[str, Mapping[str, Interval]],
    chance: Mapping[str, Mapping[str, float]],
    depths: Sequence[int],
) -> Rows:
    """Record what every similarity knows of WordNet, and give a line of a table each."""
    rows = []
    for name, numbers in measured.items():
        key = key_of(name)
        row = {"similarity": name}
        for what, estimate in numbers.items():
            # nmi_<depth>_<method>: the method comes last, as in the other names
            chapter.record(**estimate.numbers(f"{what}_{key}"))
            chapter.record(**{f"{what}_{key}_chance": chance[name][what]})
        for what, title in {
            "spearman_wordnet": "Spearman",
            "top5_wordnet": "top 5",
            **{f"nmi_{depth}": f"NMI, depth {depth}" for depth in depths},
            **{f"purity_{depth}": f"purity, depth {depth}" for depth in depths[-1:]},
        }.items():
            row[title] = f"{numbers[what]} ({chance[name][what]:.3f})"
        rows.append(row)
    return rows


def meaning_in_words(chapter: Chapter) -> str:
    """What the table of similarities says, as a template."""
    n = chapter.numbers
    prefix = "spearman_wordnet_"
    methods = [name.removeprefix(prefix) for name in n if _is_value(name, prefix, "cross")]
    best = max(methods, key=lambda method: float(n[f"spearman_wordnet_{method}"]))
    kernel, features = "spearman_wordnet_kernel", "spearman_wordnet_features"
    apart = n[f"{kernel}_high"] < n[f"{features}_low"]
    above = n[f"{kernel}_low"] > 0
    first = (
        "The kernel's rank correlation with WordNet is "
        f"{'above zero' if above else 'not told apart from zero'}: **{{{kernel}:.3f}}** "
        f"[{{{kernel}_low:.3f}}, {{{kernel}_high:.3f}}]. That of plain features is "
        f"{{{features}:.3f}}, {'which is more' if apart else 'and the intervals meet'}. "
    )
    return first + (
        f"The highest is that of the {best.replace('_', ' ')} ({{spearman_wordnet_{best}:.3f}})."
    )


def _is_value(name: str, prefix: str, but: str) -> bool:
    rest = name.removeprefix(prefix)
    ends = ("_low", "_high", "_chance")
    return name.startswith(prefix) and not rest.startswith(but) and not rest.endswith(ends)


def partial_in_words(chapter: Chapter) -> str:
    """What is left of the kernel's meaning given features, as a template."""
    n, name = chapter.numbers, "partial_wordnet_given_features"
    low, high = n[f"{name}_low"], n[f"{name}_high"]
    verdict = (
        "something that features do not" if low > 0
        else "nothing of WordNet that features do not" if high > 0
        else "less than nothing: given features, photographs of one kind are less alike"
    )  # fmt: skip
    return (
        f"Given centred features, the kernel knows {verdict}: **{{{name}:.3f}}** "
        f"[{{{name}_low:.3f}}, {{{name}_high:.3f}}]. Features given the kernel: "
        "{partial_features_given_kernel:.3f}. Given all rivals at once, the kernel is left with "
        "{partial_wordnet_given_all:.3f} [{partial_wordnet_given_all_low:.3f}, "
        "{partial_wordnet_given_all_high:.3f}]."
    )


# -- a second network --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Second:
    """Another network on part of the photographs.

    Attributes:
        classifier: the network.
        parts: its kernel by parts of the walks.
        embedding: its penultimate features, shape (m, features).
        labels: of its photographs, shape (m,).
        at: their positions among the first network's, shape (m,).
    """

    classifier: Classifier
    parts: Sequence[probelib.MatrixKernel]
    embedding: np.ndarray
    labels: np.ndarray
    at: np.ndarray


def positions(files: ImageFiles, some: ImageFiles) -> np.ndarray:
    """Where some photographs stand among others, by file name.

    Raises:
        ValueError: one is not among them.
    """
    place = {path.name: at for at, path in enumerate(files.paths)}
    names = [path.name for path in some.paths]
    if missing := [name for name in names if name not in place]:
        raise ValueError(f"some has {missing[0]!r}, which is not among the other photographs")
    return np.array([place[name] for name in names])


def network_rows(
    chapter: Chapter,
    first: Classifier,
    second: Second,
    parts: Sequence[probelib.MatrixKernel],
    embedding: np.ndarray,
    meaning: st.Meaning,
    seed: int,
) -> Rows:
    """Record two networks on the same photographs, and give a line of a table each."""
    block = np.ix_(second.at, second.at)
    own = [probelib.MatrixKernel(part.covariance()[block]) for part in parts]
    theirs = list(second.parts)
    here = embedding[second.at]
    restricted = st.Meaning(second.labels, meaning.wordnet, meaning.groups)
    networks = {
        first.name: (own, here),
        second.classifier.name: (theirs, second.embedding),
    }
    rows = []
    for name, (some, rows_of) in networks.items():
        features = al.cosine(rows_of - rows_of.mean(0))
        kernel = st.measured(restricted.measure, correlation_of(some), without_each(some), seed)
        of_features = st.measured(restricted.measure, features, seed=seed)
        halves = halves_of(some)
        numbers = {
            "reliability": probelib.split_half_reliability(*halves),
            "agreement_features": al.noise_free_correlation(halves, [features] * 2),
        }
        chapter.record(**{f"networks_{name}_{what}": value for what, value in numbers.items()})
        for what in ("spearman_wordnet", "top5_wordnet"):
            chapter.record(**kernel[what].numbers(f"networks_{name}_{what}_kernel"))
            chapter.record(**of_features[what].numbers(f"networks_{name}_{what}_features"))
        rows.append(
            {
                "network": name,
                "reliability of half the walks": f"{numbers['reliability']:.2f}",
                "Spearman with WordNet: kernel": str(kernel["spearman_wordnet"]),
                "centred features": str(of_features["spearman_wordnet"]),
                "top 5: kernel": str(kernel["top5_wordnet"]),
                "top 5: centred features": str(of_features["top5_wordnet"]),
            }
        )
    kernels, features = _agreement(own, theirs, here, second.embedding, seed)
    chapter.record(
        networks=", ".join(networks),
        networks_images=len(second.at),
        **kernels.numbers("kernel_agreement_between_networks"),
        **features.numbers("feature_agreement_between_networks"),
    )
    return rows


def _agreement(
    own: Sequence[probelib.MatrixKernel],
    theirs: Sequence[probelib.MatrixKernel],
    here: np.ndarray,
    there: np.ndarray,
    seed: int,
) -> tuple[Interval, Interval]:
    """Correlation over pairs of two networks' kernels, free of noise, and of their features."""

    def statistic(stack: np.ndarray, at: np.ndarray) -> dict[str, float]:
        a, b, c, d, e, f = stack
        kernels = al.noise_free_correlation((a, b), (c, d))
        plain = float(np.corrcoef(al.off_diagonal(e), al.off_diagonal(f))[0, 1])
        return {"kernels": kernels, "features": plain}

    cosines = [al.cosine(rows - rows.mean(0)) for rows in (here, there)]
    stack = np.stack([*halves_of(own), *halves_of(theirs), *cosines])
    found = st.measured(statistic, stack, seed=seed)
    return found["kernels"], found["features"]


def networks_in_words(chapter: Chapter) -> str:
    """Whether two networks find the same photographs alike, as a template."""
    name = "kernel_agreement_between_networks"
    return (
        "The kernels of {networks} agree by "
        f"**{{{name}:.3f}}** [{{{name}_low:.3f}}, {{{name}_high:.3f}}] (correlation over pairs, "
        "corrected for noise; the interval is over photographs), their centred features by "
        "{feature_agreement_between_networks:.3f}."
    )


# -- planted structure -------------------------------------------------------------------------

_METHODS = {
    "kernel": "loss kernel R",
    "covariance": "covariance K",
    "gradients": "gradients at w*",
    "features": "features",
    "features_centred": "centred features",
    "layers": "all hidden layers, centred",
    "logits": "logits",
    "inputs": "inputs",
    "pixels": "pixels",
}
_REMOVED_BY = {
    "kernel": "covariance K",
    "correlation": "loss kernel R",
    "gradients": "gradients at w*, inner product",
    "gradient_cosines": "gradients at w*, cosine",
    "kernel_class": "covariance K, of the predicted class",
    "features": "features, of the predicted class",
    "pixels": "pixels, of the predicted class",
    "class": "any of the predicted class",
    "chance": "chance",
}


def planted_rows(chapter: Chapter, recoveries: Mapping[str, Recovery]) -> Rows:
    """Record how well mechanisms are found, and give a line of a table for each method.

    The numbers of the first design are ``planted_recovery_...``, those of one with more hidden
    layers ``planted_deep_recovery_...``.
    """
    for place, found in enumerate(recoveries.values()):
        chapter.record(**found.numbers("planted_deep_recovery" if place else "planted_recovery"))
    first = next(iter(recoveries.values()))
    methods = dict.fromkeys(row.method for found in recoveries.values() for row in found.rows)
    rows = []
    for method in methods:
        row = {"similarity": _METHODS.get(method, method.replace("_", " "))}
        for name, found in recoveries.items():
            for size, title in ((False, "with sign"), (True, "size only")):
                try:
                    row[f"{name}, {title}"] = str(found.row(method, size=size).auroc)
                except KeyError:
                    row[f"{name}, {title}"] = "–"
        rows.append(row)
    chapter.record(planted_samples=first.design.samples, planted_observed=first.design.observed)
    return rows


def planted_in_words(chapter: Chapter) -> str:
    """Who finds planted mechanisms, as a template."""
    n, name = chapter.numbers, "planted_recovery_auroc"
    rivals = {m: n[f"{name}_{m}"] for m in _METHODS if f"{name}_{m}" in n and m != "covariance"}
    best = max(rivals, key=lambda method: float(rivals[method]))
    wins = n[name] > rivals[best]
    text = (
        "With one hidden layer the kernel reaches **{planted_recovery_auroc:.3f}**, "
        f"{'more' if wins else 'less'} than the best rival, {_METHODS[best]} "
        f"({{{name}_{best}:.3f}}), and **{{{name}_size:.3f}}** by its size alone: its sign follows "
        "the labels. "
    )
    if "planted_deep_recovery_auroc" in n:
        text += (
            "With three hidden layers its size has {planted_deep_recovery_auroc_size:.3f}, that of "
            "the gradients at $w^*$ {planted_deep_recovery_auroc_gradients_size:.3f}, and features "
            "{planted_deep_recovery_auroc_features:.3f}. "
        )
    return text + (
        "The walks' log weights spread by {planted_recovery_spread:.2f} at most; "
        "{planted_recovery_share:.0%} or more of their draws count."
    )


# -- uses --------------------------------------------------------------------------------------


def leak_rows(search: LeakSearch) -> Rows:
    """A line of a table for each method."""
    rows = []
    for row in search.rows:
        if row.same_label:
            continue
        label = search.row(row.method, same_label=True)
        rows.append(
            {
                "similarity": _METHODS.get(row.method, row.method.replace("_", " ")),
                "source found first": str(row.recall),
                "the same, among images of the label": str(label.recall),
                "AUROC": str(row.auroc),
                "AUROC, among images of the label": str(label.auroc),
            }
        )
    return rows


def leaks_in_words(chapter: Chapter, search: LeakSearch) -> str:
    """Who finds leaks, as a template."""
    best = max((row for row in search.rows if not row.same_label), key=lambda r: r.recall.value)
    name = _METHODS.get(best.method, best.method.replace("_", " "))
    return (
        "{use_data}: the kernel finds the source of **{use_leaks_kernel:.0%}** of the copies "
        "first, features of **{use_leaks_features:.0%}**. The best is "
        f"{name} ({best.recall.value:.0%}). The "
        "spread of the draws' log weights is {use_leaks_spread:.2f} at most."
    )


def removal_rows(removed: Removals, budgets: Sequence[int]) -> Rows:
    """A line of a table for each method and budget."""
    rows = []
    for budget in budgets:
        for row in removed.rows:
            if row.budget == budget:
                rows.append(
                    {
                        "named by": _REMOVED_BY[row.method],
                        "removed": f"{budget}",
                        "predictions that become right": str(row.corrected),
                        "fall of the loss (nats)": str(row.drop),
                        "accuracy on others": f"{row.accuracy_change:+.3f}",
                    }
                )
    return rows


def removals_in_words(chapter: Chapter, removed: Removals, budget: int) -> str:
    """Who names what holds a wrong prediction, as a template."""

    def against(method: str, rival: str) -> str:
        gap = removed.difference(rival, budget, method)
        word = (
            "more than" if gap.low > 0 else "less than" if gap.high < 0 else "no surely more than"
        )
        return f"{word} {_REMOVED_BY[rival].partition(',')[0]} ({gap} nats)"

    return (
        f"Of {budget} images, those that $K$ names hold the query's loss "
        f"{against('kernel', 'features')}; those that $R$ names, "
        f"{against('correlation', 'features')} and "
        f"{against('correlation', 'gradient_cosines')}. Differences are paired by query. "
        "Predictions that become right: $K$ {use_wrong_kernel:.0%}, $R$ "
        "{use_wrong_correlation:.0%}, features {use_wrong_features:.0%}."
    )


# -- the answer --------------------------------------------------------------------------------


def answer(chapter: Chapter, stand_in: bool) -> tuple[str, str]:
    """The chapter's answer and the line on trust, as templates."""
    if stand_in:
        return DEMONSTRATION, "No number of photographs on this page means anything."
    n = chapter.numbers
    more = n["partial_wordnet_given_all_low"] > 0
    what = (
        "The kernel's rank correlation with WordNet is **{spearman_wordnet_kernel:.3f}** "
        "[{spearman_wordnet_kernel_low:.3f}, {spearman_wordnet_kernel_high:.3f}], that of the "
        "gradients at $w^*$ {spearman_wordnet_gradients:.3f}, of centred features "
        "**{spearman_wordnet_centred_features:.3f}** [{spearman_wordnet_centred_features_low:.3f}, "
        "{spearman_wordnet_centred_features_high:.3f}]; given features it is "
        "{partial_wordnet_given_features:.3f} [{partial_wordnet_given_features_low:.3f}, "
        "{partial_wordnet_given_features_high:.3f}], and given all rivals "
        f"{'more' if more else 'not more'} than nothing ({{partial_wordnet_given_all:.3f}} "
        "[{partial_wordnet_given_all_low:.3f}, {partial_wordnet_given_all_high:.3f}]). Planted "
        "mechanisms it finds with an AUROC of **{planted_recovery_auroc:.3f}**, by its size alone "
        "{planted_recovery_auroc_size:.3f} (features {planted_recovery_auroc_features:.3f}); "
        "leaked copies in {use_leaks_kernel:.0%} of the cases (features "
        "{use_leaks_features:.0%}, pixels {use_leaks_pixels:.0%})."
    )
    trust = (
        "Intervals are over photographs and walks, over seeds, and over queries. One half of the "
        "walks against the other has a reliability of {reliability_local:.2f}. Gradient pairs have "
        "no step bias. Networks: {networks}."
    )
    return what, trust


def headline(stand_in: bool) -> str:
    """The chapter's headline, as a template."""
    if stand_in:
        return "stand-in for photographs, not a result"
    return (
        "{n_images:,} photographs: Spearman with WordNet {spearman_wordnet_kernel:.3f} "
        "[{spearman_wordnet_kernel_low:.3f}, {spearman_wordnet_kernel_high:.3f}], centred features "
        "{spearman_wordnet_centred_features:.3f}; given these "
        "{partial_wordnet_given_features:.3f} [{partial_wordnet_given_features_low:.3f}, "
        "{partial_wordnet_given_features_high:.3f}]; planted mechanisms AUROC "
        "{planted_recovery_auroc:.3f} [{planted_recovery_auroc_low:.3f}, "
        "{planted_recovery_auroc_high:.3f}], features {planted_recovery_auroc_features:.3f}"
    )


def summary(chapter: Chapter) -> str:
    """What the run says in the end, as a template."""
    n = chapter.numbers
    wins = []
    if n["spearman_wordnet_kernel"] > n["spearman_wordnet_centred_features"]:
        wins.append("meaning")
    if n["planted_recovery_auroc"] > n["planted_recovery_auroc_features"]:
        wins.append("planted mechanisms")
    if n["use_leaks_kernel"] > n["use_leaks_features"]:
        wins.append("leaks")
    if n["use_wrong_kernel"] > n["use_wrong_features"]:
        wins.append("wrong predictions")
    better = ", ".join(wins) if wins else "none of them"
    return (
        "Meaning, planted mechanisms, leaks and wrong predictions: four tests of the kernel "
        f"against features. By its point estimates the kernel is ahead in: {better}. Whether a "
        "lead is more than chance stands in the tables."
    )
