"""Chapter 10: which studies it has, numbers to record, tables and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import rankdata

import probelib
from probebook import outlier_scores, outliers
from probebook.cache import write_atomically
from probebook.chapter import Chapter, Claim
from probebook.labels import summaries
from probebook.labels.probe import PROBE
from probebook.labels.study import SCORES, Study, StudySize, kept_studies, run_studies
from probebook.labels.summaries import means, noise_name
from probebook.memorization import detection

Rows = list[dict[str, str]]

TASKS = {
    "mnist": "MNIST",
    "fashion": "Fashion-MNIST",
    "tumours": "breast cancer (table)",
    "genres": "genres of Brown (text)",
}
"""The tasks' titles."""

SHOWN = {
    "loss": "loss",
    "loss_gain": "loss gain",
    "mean_loss": "posterior mean loss",
    "knn_features": "neighbours, features",
    "aum": "area under the margin",
    "confident_learning": "confident learning",
}
"""Scores of the figure over epochs."""

LOOP = {
    "mean_loss": "posterior mean loss",
    "loss_gain": "loss gain",
    "loss": "loss",
    "gradient_norm": "squared norm of the gradient",
    "knn_features": "neighbours, features",
    "aum": "area under the margin",
    "confident_learning": "confident learning",
}
"""Scores that the loop is closed with."""

LOOP_SHARE = 0.1
"""Share of the labels that are looked at, where one number has to do."""

PAIRS = (
    ("mean_loss", "loss"),
    ("loss_gain", "gradient_norm"),
    ("variance", "gradient_norm"),
    ("mean_loss_table1", "loss"),
    ("mean_loss_table1", "mean_loss"),
    ("mean_loss", "knn_features"),
    ("mean_loss", "aum"),
    ("mean_loss", "out_of_sample"),
)
"""Posterior quantities, and what they are held against."""

SHORT = {
    "loss_gain": "gain",
    "mean_loss": "mean loss",
    "variance": "variance",
    "third_cumulant": "third cumulant",
    "kernel_neighbours": "neighbours in R",
    "loss_gain_table1": "gain, γ = 30",
    "mean_loss_table1": "mean loss, γ = 30",
    "variance_table1": "variance, γ = 30",
    "third_cumulant_table1": "third cum., γ = 30",
    "kernel_neighbours_table1": "neighbours, γ = 30",
    "loss": "loss",
    "margin": "margin",
    "curvature": "curvature",
    "gradient_norm": "gradient norm",
    "last_layer_influence": "self-influence",
    "knn_features": "k-NN, features",
    "knn_inputs": "k-NN, inputs",
    "out_of_sample": "out of sample",
    "confident_learning": "confident learning",
    "aum": "AUM",
    "forgetting": "forgetting",
    "el2n": "EL2N, young",
    "grand": "GraNd, young",
    "tracin": "TracIn",
}
"""Short names, for a figure that fits a phone."""

NEEDS = dict.fromkeys(SCORES, "draws around one network") | {
    "loss": "one network",
    "margin": "one network",
    "curvature": "one network",
    "gradient_norm": "one network",
    "last_layer_influence": "one network",
    "knn_features": "one network",
    "knn_inputs": "no network",
    "out_of_sample": "five other networks",
    "confident_learning": "five other networks",
    "aum": "outputs of every epoch",
    "forgetting": "outputs of every epoch",
    "el2n": "five young networks",
    "grand": "five young networks",
    "tracin": "networks along the training",
}
"""What a score takes beside the data."""


def kept_or_run(
    path: Path, studies: Sequence[Study], size: StudySize, *, progress: bool
) -> tuple[pd.DataFrame, str]:
    """The studies' rows from a kept run that has them at this size, else run now; and how.

    Returns:
        The rows of :func:`probebook.labels.study.run_studies`, of these studies alone; ``"a kept
        run"`` or ``"this run"``.
    """
    if path.is_file():
        rows, about = kept_studies(path)
        asked = pd.DataFrame([vars(study) for study in studies])
        same = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(size).items()}
        if about["size"] == same:
            found = asked.merge(rows, on=["task", "noise", "rate", "seed"])
            if len(found.drop_duplicates(["task", "noise", "rate", "seed"])) == len(studies):
                return found, "a kept run"
    return run_studies(studies, size, progress=progress), "this run"


def record_again(chapter: Chapter, rows: pd.DataFrame, again: pd.DataFrame) -> None:
    """Record how far studies that were made again differ from the kept ones, and the seconds."""
    keys = ["task", "noise", "rate", "seed", "epoch", "score"]
    both = rows.merge(again, on=keys, suffixes=("", "_again"))
    both = both[both.score.isin(list(SCORES))]
    chapter.record(
        again_studies=len(again.drop_duplicates(keys[:4])),
        again_largest=float((both.auroc - both.auroc_again).abs().max()),
    )
    last = again[again.epoch == again.epoch.max()]
    for score, seconds in last.groupby("score")["seconds"].mean().items():
        if score in SCORES:
            chapter.record(**{f"seconds_{score}": float(seconds)})


def record_scores(chapter: Chapter, rows: pd.DataFrame, rate: float) -> None:
    """Record the AUROC of every score on every task, kind of noise and epoch, at one rate.

    All rates are in a table beside the chapter's results, ``<chapter>-scores.csv``.
    """
    by = ["score", "task", "noise", "rate", "epoch"]
    table = means(summaries.of_scores(rows), by)
    for row in table[table.rate == rate].itertuples():
        key = f"auroc_{row.score}_{row.task}_{noise_name(row.noise, row.rate)}_{row.epoch}"
        chapter.record(**{
            key: round(row.mean, 4),
            f"{key}_low": round(row.low, 4),
            f"{key}_high": round(row.high, 4),
        })  # fmt: skip
    chapter.path.parent.mkdir(parents=True, exist_ok=True)
    text = table.round(4).to_csv(index=False)
    write_atomically(chapter.path.with_name(f"{chapter.name}-scores.csv"), text.encode())


def record_stages(chapter: Chapter, table: pd.DataFrame) -> None:
    """Record each score's mean AUROC by stage of memorization, with its interval."""
    for row in table.itertuples():
        chapter.record(**interval(f"{row.score}_{row.stage}", row))


def interval(key: str, row: object) -> dict[str, float]:
    """A mean and its interval, by name."""
    ends = ("mean", "low", "high")
    return {
        name: float(getattr(row, end))
        for name, end in zip((key, f"{key}_low", f"{key}_high"), ends, strict=True)
    }


def three(row: object, name: str, digits: str) -> str:
    """A number and its interval, from the columns ``name``, ``name_low`` and ``name_high``."""
    value, low, high = (
        format(getattr(row, f"{name}{end}"), digits) for end in ("", "_low", "_high")
    )
    return f"{value} [{low}, {high}]"


def stage_rows(chapter: Chapter, table: pd.DataFrame) -> Rows:
    """One line a score: what it needs, its AUROC by stage, and its seconds."""
    numbers, rows = chapter.numbers, []
    for score, label in SCORES.items():
        own = table[table.score == score].set_index("stage")
        if not len(own):
            continue
        line = {"score": label, "needs": NEEDS[score]}
        for stage in ("underfitted", "between", "memorized"):
            line[stage] = "–"
            if stage in own.index:
                line[stage] = in_brackets(own.loc[stage])
        seconds = numbers.get(f"seconds_{score}")
        line["seconds"] = "–" if seconds is None else f"{seconds:.2g}"
        rows.append(line)
    return rows


def in_brackets(row: pd.Series) -> str:
    """As in ``0.912 [0.901, 0.923]``."""
    return f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def record_best(chapter: Chapter, rows: pd.DataFrame) -> None:
    """Record the best score of one network, and differences that the text speaks of."""
    best, worst = summaries.best_post_hoc(rows)
    of_network = worst[worst.score != "knn_inputs"]
    first, last = int(rows.epoch.min()), int(rows.epoch.max())
    chapter.record(
        best_posthoc_score=best,
        best_posthoc_in_words=SCORES[best],
        best_posthoc_worst=float(worst.worst[0]),
        best_posthoc_worst_low=float(worst.low[0]),
        best_posthoc_worst_high=float(worst.high[0]),
        best_network_score=str(of_network.score.iloc[0]),
        best_network_in_words=SCORES[str(of_network.score.iloc[0])],
        best_network_worst=float(of_network.worst.iloc[0]),
        first_epoch=first,
        last_epoch=last,
    )
    for one, other in PAIRS:
        for epoch, name in ((first, "first"), (last, "last"), (None, "all")):
            found = summaries.difference(rows, one, other, epoch)
            chapter.record(**found.numbers(f"{one}_less_{other}_{name}"))


RATE_SCORES = ("loss_gain", "mean_loss", "loss", "knn_features", "aum", "el2n", "out_of_sample")


def rate_rows(chapter: Chapter, rows: pd.DataFrame) -> Rows:
    """Record some scores at the last epoch by rate of wrong labels, and give a line a score."""
    last = rows[rows.epoch == rows.epoch.max()]
    table = means(summaries.of_scores(last), ["score", "rate"])
    found = []
    for score in RATE_SCORES:
        line = {"score": SCORES[score]}
        for row in table[table.score == score].sort_values("rate").itertuples():
            chapter.record(**interval(f"{score}_rate{100 * row.rate:g}", row))
            line[f"{row.rate:.0%} wrong labels"] = f"{row.mean:.3f} [{row.low:.3f}, {row.high:.3f}]"
        found.append(line)
    return found


def known_rows(chapter: Chapter, rows: pd.DataFrame) -> Rows:
    """What one should know of the networks and the draws, by epoch."""
    table = []
    for epoch in sorted(rows.epoch.unique()):
        line = {"epochs": str(epoch)}
        own = rows[rows.epoch == epoch]
        for score, label in (
            ("fitted_right", "right labels fitted"),
            ("fitted_wrong", "wrong labels fitted"),
            ("test_accuracy", "test accuracy"),
            ("draws_that_count", "draws that count"),
            ("third_cumulant_known", "third cumulants beyond twice their error"),
        ):
            value = float(own[own.score == score].auroc.mean())
            chapter.record(**{f"{score}_{epoch}": value})
            line[label] = f"{value:.0%}"
        gammas = own[own.score == "gamma"].auroc
        chapter.record(**{f"gamma_median_{epoch}": float(gammas.median())})
        line["γ (median)"] = f"{gammas.median():,.0f}"
        table.append(line)
    return table


def flag_rows(chapter: Chapter, rows: pd.DataFrame) -> Rows:
    """Recall and precision of the flags, by rate and epoch."""
    names = {"label_issues": "probelib.label_issues", "confident_learning": "confident learning"}
    table = []
    for row in summaries.flags(rows).sort_values(["detector", "rate", "epoch"]).itertuples():
        key = f"flags_{row.detector}_{100 * row.rate:g}_{row.epoch}"
        for what in ("recall", "precision"):
            chapter.record(**{
                f"{key}_{what}{end}": float(getattr(row, f"{what}{end}"))
                for end in ("", "_low", "_high")
            })  # fmt: skip
        table.append({
            "detector": names[row.detector],
            "wrong labels": f"{row.rate:.0%}",
            "epochs": str(row.epoch),
            "found": three(row, "recall", ".0%"),
            "right of those flagged": three(row, "precision", ".0%"),
        })  # fmt: skip
    return table


def panels_of(rows: pd.DataFrame) -> dict[str, dict[str, str]]:
    """The scores that the rows have, by their short names, in two panels: the probe's, the rest."""
    there = set(rows.score)
    probe = {at for name in PROBE for at in (name, f"{name}_table1")}
    short = {name: label for name, label in SHORT.items() if name in there}
    return {
        "draws around one network": {k: v for k, v in short.items() if k in probe},
        "everything else": {k: v for k, v in short.items() if k not in probe},
    }


def shootout_in_words(chapter: Chapter, table: pd.DataFrame) -> str:
    """Who wins where, as a template."""
    parts = []
    for stage, when in (
        ("underfitted", "Before wrong labels are fitted"),
        ("memorized", "Once they are memorized"),
    ):
        own = table[table.stage == stage].sort_values("mean", ascending=False)
        if not len(own):
            continue
        best = str(own.score.iloc[0])
        of_probe = str(own[own.score.isin(PROBE)].score.iloc[0])
        chapter.record(**{f"best_{stage}": best, f"best_of_probe_{stage}": of_probe})
        parts.append(
            f"{when} the best score is *{SCORES[best]}* ({{{best}_{stage}:.3f}}), and of the "
            f"probe's *{PROBE[of_probe]}* ({{{of_probe}_{stage}:.3f}}); the gain has "
            f"**{{loss_gain_{stage}:.3f}}** [{{loss_gain_{stage}_low:.3f}}, "
            f"{{loss_gain_{stage}_high:.3f}}], the plain loss {{loss_{stage}:.3f}}."
        )
    return " ".join(parts)


def record_front(chapter: Chapter) -> None:
    """Record what the front page says of the chapter, whatever a run could know."""
    numbers = chapter.numbers
    parts = []
    for score, name in (("loss_gain", "gain"), ("mean_loss", "mean loss"), ("loss", "loss")):
        ends = [numbers.get(f"{score}_{stage}") for stage in ("underfitted", "memorized")]
        parts.append(f"{name} " + " / ".join("–" if v is None else f"{v:.2f}" for v in ends))
    chapter.record(front_scores="; ".join(parts))


def claims(first: int, last: int) -> list[Claim]:
    """What the paper and the literature say, held against the chapter's numbers."""
    return [
        Claim(
            "gain of memorized wrong labels: AUROC, MNIST, uniform 10 %",
            f"auroc_loss_gain_mnist_uniform10_{last}",
            "23 nats against 2.3",
            low=0.9,
            digits=".3f",
            why="the paper gives means; 0.9 is what two normal laws have whose means are 1.8 "
            "standard deviations apart",
        ),
        Claim(
            "gain of wrong labels that are not fitted yet: AUROC, the same at the first epoch",
            f"auroc_loss_gain_mnist_uniform10_{first}",
            high=0.5,
            digits=".3f",
            why="what the network gets wrong has little to lose: the paper's network had memorized",
        ),
        Claim(
            "curvature in the input: AUROC, MNIST, uniform 10 %, last epoch",
            f"auroc_curvature_mnist_uniform10_{last}",
            "0.99 (large networks, CIFAR-100)",
            low=0.97,
            digits=".3f",
            why="the literature takes the mean over all epochs of a training, this is one network",
        ),
    ]


def difference_rows(chapter: Chapter) -> Rows:
    """One line a pair of :data:`PAIRS`, from what was recorded."""
    rows = []
    for one, other in PAIRS:
        line = {"score": SCORES[one], "less": SCORES[other]}
        for name, label in (("first", "first epoch"), ("last", "last epoch"), ("all", "all")):
            line[label] = signed(chapter, f"{one}_less_{other}_{name}")
        rows.append(line)
    return rows


def signed(chapter: Chapter, key: str) -> str:
    """A recorded difference with its interval, where it has one."""
    value, low = chapter.numbers[key], chapter.numbers.get(f"{key}_low")
    if low is None:
        return f"{value:+.3f}"
    return f"{value:+.3f} [{low:+.3f}, {chapter.numbers[f'{key}_high']:+.3f}]"


def added_in_words(chapter: Chapter) -> str:
    """What the posterior adds to the plain loss and to the gradient, as a template."""
    parts = []
    for one, other, of in (
        ("mean_loss", "loss", "The posterior mean loss"),
        ("loss_gain", "gradient_norm", "The gain"),
    ):
        key = f"{one}_less_{other}_last"
        low, high = (chapter.numbers.get(f"{key}_{end}", np.nan) for end in ("low", "high"))
        word = "better than" if low > 0 else "worse than" if high < 0 else "not told apart from"
        parts.append(
            f"{of} is **{word}** {THE[other]} at the last epoch ({{{key}:+.3f}}), which takes "
            f"{{seconds_{other}:.2g}} seconds in place of {{seconds_{one}:.2g}}."
        )
    return " ".join(parts)


THE = {"loss": "the plain loss", "gradient_norm": "the squared norm of the gradient"}


def flags_in_words(chapter: Chapter, rate: float) -> str:
    """What the flags do before and after memorization, as a template."""
    numbers = chapter.numbers
    first, last = numbers["first_epoch"], numbers["last_epoch"]
    key = f"flags_label_issues_{100 * rate:g}"
    other = f"flags_confident_learning_{100 * rate:g}"
    return (
        f"At {rate:.0%} wrong labels `label_issues` finds {{{key}_{first}_recall:.0%}} at the "
        f"first epoch and {{{key}_{last}_recall:.0%}} at the last, confident learning "
        f"{{{other}_{first}_recall:.0%}} and {{{other}_{last}_recall:.0%}}, with a precision of "
        f"{{{other}_{last}_precision:.0%}} at the last. A network that has memorized its labels "
        "gives nearly all of them less than the cost of a guess: read the table of `label_issues` "
        "from the top then, or use networks that have not seen the sample."
    )


def loop_rows(gained: pd.DataFrame) -> Rows:
    """One line a score, at :data:`LOOP_SHARE`."""
    names = LOOP | {"random": "at random", "ideal": "ideal"}
    rows = []
    for row in gained[np.isclose(gained.share, LOOP_SHARE)].itertuples():
        if row.score in names:
            rows.append({
                "looked at by": names[row.score],
                "wrong ones among these": f"{row.precision:.0%}",
                "test accuracy": three(row, "accuracy", ".1%"),
                "points per 100 labels": three(row, "gained", "+.2f"),
                "more than at random": three(row, "over_random", "+.2f"),
            })  # fmt: skip
    return rows


def loop_in_words(gained: Mapping[str, pd.DataFrame]) -> str:
    """Which scores gain more than random inspection for sure, by kind of noise."""
    parts = []
    for kind, table in gained.items():
        own = table[np.isclose(table.share, LOOP_SHARE) & table.score.isin(list(LOOP))]
        sure = [LOOP[score] for score in own[own.over_random_low > 0].score]
        said = "no score gains more than random inspection for sure"
        if len(sure) == len(own):
            said = "every score gains more than random inspection"
        elif sure:
            said = f"more than random inspection gain for sure: {'; '.join(sure)}"
        parts.append(f"With noise of the {kind} kind {said}.")
    return " ".join(parts)


def record_digits(
    chapter: Chapter, issues: pd.DataFrame, labels: np.ndarray, top: np.ndarray, trace: xr.Dataset
) -> None:
    """Record the digits of highest score, how many are flagged, and how sure the draws are."""
    named = [
        f"{at} (label {labels[at]}, {issues.score[at]:.1f} ± {issues.mcse[at]:.1f} nats)"
        for at in top[:10]
    ]
    chapter.record(
        n_digits_seen=len(labels),
        digits_flagged=int(issues.flagged.sum()),
        digits_fitted=issues.attrs["fitted"],
        digits_top="; ".join(named),
    )
    khat = float(probelib.khat(trace))
    if np.isfinite(khat):
        chapter.record(digits_khat=khat)


def digits_in_words(chapter: Chapter) -> str:
    """Whether the weights of the digits' draws can be believed, as a template."""
    if "digits_khat" not in chapter.numbers:
        return " There are too few draws to say how sure their weights are."
    if chapter.numbers["digits_khat"] > 0.7:
        return " Pareto's k is {digits_khat:.2f}: the weights of the draws cannot be believed."
    return " Pareto's k is {digits_khat:.2f}: the weights of the draws can be believed."


def odd_in_words(chapter: Chapter, table: pd.DataFrame) -> str:
    """The best score of each pair, and the probe's best, as a template."""
    parts = []
    for pair, own in table.groupby("pair", sort=False):
        best = own.loc[own.auroc.idxmax()]
        probe = own[own.score.isin([*outlier_scores.PROBE])]
        best_probe = probe.loc[probe.auroc.idxmax()]
        key = f"ood_best_{pair}"
        chapter.record(**{key: best.score, f"{key}_probe": best_probe.score})
        names = outlier_scores.SCORES
        parts.append(
            f"*{' against '.join(outliers.PAIRS[str(pair)])}*: {names[best.score]} "
            f"{{ood_auroc_{best.score}_{pair}:.3f}}, of the probe's {names[best_probe.score]} "
            f"{{ood_auroc_{best_probe.score}_{pair}:.3f}}, maximum softmax "
            f"{{ood_auroc_softmax_{pair}:.3f}}"
        )
    return "Best by AUROC. " + "; ".join(parts) + "."


def odd_rows(chapter: Chapter, runs: Sequence[outliers.OddRun]) -> Rows:
    """Record the probe's scores less the maximum softmax, and give a line a score."""
    rows = []
    for score in outlier_scores.PROBE:
        line = {"score": outlier_scores.SCORES[score]}
        for pair, found in outliers.ood_difference(runs, score, "softmax").items():
            key = f"ood_{score}_less_softmax_{pair}"
            chapter.record(**found.numbers(key))
            line[" against ".join(outliers.PAIRS[pair])] = signed(chapter, key)
        rows.append(line)
    return rows


def mean_rank(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The mean of the ranks by two scores, shape (n,)."""
    return (rankdata(one) + rankdata(other)) / 2


def auroc(score: np.ndarray, wrong: np.ndarray) -> float:
    """How well a high score marks the wrong labels."""
    return detection(np.asarray(score), wrong).auroc


__all__ = [
    "LOOP",
    "LOOP_SHARE",
    "NEEDS",
    "PAIRS",
    "SHORT",
    "SHOWN",
    "TASKS",
    "added_in_words",
    "auroc",
    "claims",
    "difference_rows",
    "digits_in_words",
    "flag_rows",
    "flags_in_words",
    "kept_or_run",
    "known_rows",
    "loop_in_words",
    "loop_rows",
    "mean_rank",
    "odd_in_words",
    "odd_rows",
    "panels_of",
    "rate_rows",
    "record_again",
    "record_best",
    "record_digits",
    "record_front",
    "record_scores",
    "record_stages",
    "shootout_in_words",
    "stage_rows",
]
