"""Chapter 08, the small GPT: what its canaries, its genres and its precision are recorded as."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

import probelib
from probebook.brown import GENRES
from probebook.chapter import Chapter, Claim
from probebook.genres import centred_cosine, document_gradients, group_means, tf_idf
from probebook.gpt import GPTRecipe, TrainedGPT, embeddings, window_losses
from probebook.gpt_runs import KeptDocuments, canary_trace, kept_network
from probebook.language_data import IGNORED, LanguageData, Windows, join
from probebook.localization_rule import Choice
from probebook.memorized import SCORES, paired_difference
from probebook.stored_weights import StoredChain
from probelib.estimators.weighted import weights_of

__all__ = [
    "answer",
    "check_kept",
    "claims",
    "detection_in_words",
    "detection_rows",
    "genre_rows",
    "genres_in_words",
    "precision_rows",
    "record_data",
    "record_front",
    "record_kernel",
    "record_no_claims",
    "record_traces",
    "rivals",
    "rule_rows",
    "windows_to_show",
]

NOT_A_RESULT = (
    '<div class="admonition warning not-a-result"><p class="admonition-title">No Brown corpus '
    "here: what follows is a demonstration on a stand-in, not a result</p><p>The small GPT has "
    "read a manual of Python, whose genres mean nothing, and the sizes are reduced. Set "
    "<code>PROBELIB_DATA</code>, or install NLTK with its Brown corpus, and run it again for a "
    "result. What is said of SmolLM2 comes from a kept run and holds.</p></div>"
)
DEMONSTRATION = (
    "**A stand-in, not a result.** There is no Brown corpus here. The sizes are reduced, whatever "
    "the parameters say."
)
STAND_IN_HEADLINE = "stand-in, not a result"
HEADLINE = (
    "Canaries planted in a small GPT: AUROC {canary_auroc_gain:.3f} [{canary_auroc_gain_low:.3f}, "
    "{canary_auroc_gain_high:.3f}] by loss gain, {canary_auroc_loss:.3f} by loss; genres: NMI "
    "{genre_nmi_kernel:.3f} ± {genre_nmi_kernel_mcse:.3f} by the kernel, "
    "{genre_nmi_embeddings:.3f} ± {genre_nmi_embeddings_mcse:.3f} by embeddings"
)

RECORDED = {"loss_over_zlib": "compression"}  # a score's name in the results, where it is another
SUMMARY = (
    "A loss per token, a sample that is a document, a model of 134 million weights: the same two "
    "calls. In a small GPT the loss gain finds what was memorized with an AUROC of "
    "**{canary_auroc_gain:.3f}**; the loss at $w^*$, which costs one pass, has "
    "{canary_auroc_loss:.3f}. The loss kernel's nearest documents have the same genre in "
    "{genre_purity_kernel:.0%} of all cases, embeddings' in {genre_purity_embeddings:.0%}."
)
TRUST = (
    "Intervals are 95 % over canaries; over {canary_networks} networks the AUROC of the gain runs "
    "from {canary_auroc_gain_lowest:.3f} to {canary_auroc_gain_highest:.3f}. Weighted draws have "
    "no step bias; $\\hat k$ is at most {canary_khat:.2f}. Two halves of the documents' kernel "
    "correlate by {genre_half_correlation:.2f}. SmolLM2: {draws} draws worth "
    "{effective_draws:.0f}; verdict: {llm_verdict}."
)
SIMILARITIES = {
    "loss kernel": "kernel",
    "gradients, cosine": "gradients",
    "embeddings": "embeddings",
    "tf-idf, same windows": "tfidf",
    "tf-idf, whole documents": "tfidf_whole",
}
"""Similarities of documents by their title, and their names in the results."""


def record_data(chapter: Chapter, data: LanguageData, network: TrainedGPT, stand_in: bool) -> None:
    """Record how much text the network has read, and what it makes of it."""
    text = data.train.document >= 0
    held = window_losses(network.model, data.canaries[data.canaries.repetitions == 0])
    chapter.record(
        stand_in=int(stand_in),
        corpus=data.source,
        train_windows=int(text.sum()),
        train_tokens=int((data.train.targets[text] != IGNORED).sum()),
        documents=len(np.unique(data.train.document[text])),
        canaries_planted=int((data.canaries.repetitions > 0).sum()),
        canaries_held_out=int((data.canaries.repetitions == 0).sum()),
        canary_windows=int((~text).sum()),
        n_parameters=sum(p.numel() for p in network.model.parameters()),
        epochs=network.recipe.epochs,
        train_loss=float(network.loss[-1]),
        guessing_loss=math.log(10),
        held_out_loss=float(held.mean()),
        held_out_loss_se=float(held.std(ddof=1) / len(held) ** 0.5),
        training_seconds=round(network.seconds, 1),
    )


def rule_rows(chapter: Chapter, choice: Choice, name: str = "rule") -> list[dict[str, str]]:
    """Record what the rule for the localization chose, and give its table.

    Args:
        chapter: where to.
        choice: of :func:`probebook.localization_rule.choose_localization`.
        name: beginning of the recorded names.
    """
    table = choice.table.set_index("gamma")
    kept = table.loc[choice.localization]
    chapter.record(
        **{
            f"{name}_localization": choice.localization,
            f"{name}_loss_frequency": choice.frequency_loss,
            f"{name}_loss_trained": choice.trained_loss,
            f"{name}_loss": float(kept.loss),
            f"{name}_kept": float(kept.kept),
            f"{name}_kept_error": float(kept.kept_error),
        },
        **{
            f"{name}_{column}_at_{gamma:.0f}": float(row[column])
            for gamma, row in table.iterrows()
            for column in ("loss", "error", "kept", "kept_error")
        },
    )
    return [
        {
            "γ": f"{gamma:,.0f}" + (" (chosen)" if gamma == choice.localization else ""),
            "mean loss, nats": f"{row.loss:.3f} ± {row.error:.3f}",
            "kept": f"{row.kept:.2f} ± {row.kept_error:.2f}",
        }
        for gamma, row in table.iterrows()
    ]


# -- canaries ---------------------------------------------------------------------------------


def detection_rows(
    chapter: Chapter, table: pd.DataFrame, scores: Sequence[pd.DataFrame], end: str = ""
) -> list[dict[str, str]]:
    """Record how well each score finds the planted canaries, and give a line of a table each.

    Args:
        chapter: where to.
        table: of :func:`probebook.memorized.over_networks`.
        scores: of :func:`probebook.memorized.canary_scores`, one a network.
        end: of the recorded names.
    """
    rows = []
    for score, title in SCORES.items():
        name = RECORDED.get(score, score)
        of_score = table[table.score == score].set_index("repetitions")
        every = of_score.loc[0]
        chapter.record(
            **{
                f"canary_auroc_{name}{end}": float(every.auroc),
                f"canary_auroc_{name}{end}_low": float(every.low),
                f"canary_auroc_{name}{end}_high": float(every.high),
                f"canary_auroc_{name}{end}_lowest": float(every.auroc_lowest),
                f"canary_auroc_{name}{end}_highest": float(every.auroc_highest),
                f"canary_recall_{name}{end}": float(every.recall),
                f"canary_recall_{name}{end}_low": float(every.recall_low),
                f"canary_recall_{name}{end}_high": float(every.recall_high),
            },
            **{
                f"canary_auroc_{name}{end}_{times}": float(row.auroc)
                for times, row in of_score.drop(index=0).iterrows()
            },
        )
        rows.append(
            {
                "score": title,
                "AUROC [95 %]": f"{every.auroc:.3f} [{every.low:.3f}, {every.high:.3f}]",
                "by network": f"{every.auroc_lowest:.3f} to {every.auroc_highest:.3f}",
                "found at 1 % false positives [95 %]": f"{every.recall:.0%} "
                f"[{every.recall_low:.0%}, {every.recall_high:.0%}]",
                **{
                    f"planted {times} times": f"{row.auroc:.2f}"
                    for times, row in of_score.drop(index=0).iterrows()
                },
            }
        )
    for other in ("loss", "mean_loss"):
        found, low, high = paired_difference(scores, "gain", other)
        name = f"canary_gain_less_{other}{end}"
        chapter.record(**{name: found, f"{name}_low": low, f"{name}_high": high})
    return rows


def record_traces(chapter: Chapter, traces: Mapping[int, xr.Dataset]) -> None:
    """Record how many draws there are of how many networks, and what they are worth."""
    worth = [weights_of(trace) for trace in traces.values()]
    chapter.record(
        canary_networks=len(traces),
        canary_draws=sum(trace.sizes["draw"] for trace in traces.values()),
        canary_effective_draws=float(sum(of.ess for of in worth if of is not None)),
        canary_khat=max(probelib.khat(trace) for trace in traces.values()),
        canary_seconds=round(sum(t.attrs["wall_time"] for t in traces.values()), 1),
    )


def check_kept(
    chapter: Chapter,
    folder: Path,
    recipe: GPTRecipe,
    data: LanguageData,
    traces: Mapping[int, xr.Dataset],
    again: xr.Dataset,
    few: int = 5,
) -> str:
    """Record how far draws made again are from the kept ones, and say it.

    Where the training of this machine ended in other weights than that of the long run, a few draws
    are made with the kept network.

    Args:
        chapter: where to.
        folder: ``results/prerun``.
        recipe, data: of the network.
        traces: of :func:`probebook.gpt_runs.kept_canaries`, by seed.
        again: the draws of this run's network, of the same seed.
        few: draws to make with the kept network.
    """
    if 0 not in traces or traces[0] is again:
        return "No kept run has these settings, so these draws are all that there are."
    kept = traces[0]
    same = kept.attrs["fingerprint"]["weights"] == again.attrs["fingerprint"]["weights"]
    if not same:
        config = kept.attrs["config"]
        names = ("n_beta", "localization", "loss_samples")
        again = canary_trace(
            kept_network(folder, recipe, data), data, draws=few, seed=kept.attrs["seed"],
            **{name: config[name] for name in names},
        )  # fmt: skip
    first = kept.isel(draw=slice(0, again.sizes["draw"]))
    apart = np.abs(first.loss.values - again.loss.values)
    chapter.record(
        kept_same_weights=int(same),
        kept_draws_again=again.sizes["draw"],
        kept_largest_difference=float(apart.max()),
        kept_mean_loss_difference=float(
            np.abs(first.mean_loss.values - again.mean_loss.values).max()
        ),
    )
    trained = (
        "The training ended in the same weights as that of the long run."
        if same
        else "The training ended in other weights than that of the long run, as it may on another "
        "machine, so the kept network was taken."
    )
    return (
        trained
        + " **{kept_draws_again}** draws were computed again: no loss of a canary differs by "
        "more than {kept_largest_difference:.1g} nats."
    )


def _gain_against_loss(chapter: Chapter) -> str:
    """Which of the two finds more canaries, as far as the interval of the difference tells."""
    low, high = (chapter.numbers[f"canary_gain_less_loss_{end}"] for end in ("low", "high"))
    if low > 0:
        return "The gain finds more than the loss does"
    if high < 0:
        return "The gain finds less than the loss does"
    return "The gain and the loss cannot be told apart"


def detection_in_words(chapter: Chapter) -> str:
    """What the table of canaries shows; which score is best is read from it."""
    apart = _gain_against_loss(chapter)
    guess = chapter.numbers["canary_auroc_variance_high"] < 0.5
    variance = "ranks them backwards" if guess else "is the worst of the five"
    return (
        "Over {canary_networks} networks and {canary_draws} draws ($\\hat k$ at most "
        "{canary_khat:.2f}): AUROC of the gain **{canary_auroc_gain:.3f}** "
        "[{canary_auroc_gain_low:.3f}, "
        "{canary_auroc_gain_high:.3f}], of the loss {canary_auroc_loss:.3f}. " + apart + ": the "
        "difference of their AUROCs is {canary_gain_less_loss:+.3f} "
        "[{canary_gain_less_loss_low:+.3f}, {canary_gain_less_loss_high:+.3f}]. Over the posterior "
        "mean loss the gain leads by "
        "{canary_gain_less_mean_loss:+.3f} [{canary_gain_less_mean_loss_low:+.3f}, "
        "{canary_gain_less_mean_loss_high:+.3f}]. The variance of the loss " + variance + ": "
        "{canary_auroc_variance:.3f}. A held-out digit costs {held_out_loss:.3f} ± "
        "{held_out_loss_se:.3f} nats at $w^*$, where guessing costs 2.303."
    )


def windows_to_show(data: LanguageData) -> tuple[Windows, list[str]]:
    """Some windows to look at token by token, and their titles.

    Canaries planted most often, a few times, once and never, and the beginnings of two documents.
    """
    repetitions = data.canaries.repetitions
    times = np.unique(repetitions[repetitions > 0])
    wanted = dict.fromkeys(int(n) for n in (times[-1], times[len(times) // 2], times[0], 0))
    rows = [int(np.flatnonzero(repetitions == n)[0]) for n in wanted]
    text = np.flatnonzero(data.train.document >= 0)
    places = [int(text[0]), int(text[len(text) // 2])]
    often = {0: "never planted", 1: "planted once"}
    titles = [f"A canary {often.get(n, f'planted {n} times')}" for n in wanted]
    titles += [f"Brown, {GENRES[data.train.genre[i]].replace('_', ' ')}" for i in places]
    return join([data.canaries[rows], data.train[places]]), titles


# -- genres -----------------------------------------------------------------------------------


def rivals(
    network: TrainedGPT, windows: Windows, whole: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Other similarities of the same documents, by the titles of :data:`SIMILARITIES`.

    Args:
        network: whose gradients and embeddings they are.
        windows: of :func:`some_of_each`.
        whole: texts of the documents, for words that the network has not seen here.
    """
    documents = np.unique(windows.document)
    read = [
        "".join(text for text, of in zip(windows.texts, windows.document, strict=True) if of == d)
        for d in documents
    ]
    mean = group_means(embeddings(network.model, windows), windows.document)
    found = {
        "gradients, cosine": centred_cosine(document_gradients(network.model, windows)),
        "embeddings": centred_cosine(mean),
        "tf-idf, same windows": tf_idf(read),
    }
    return found if whole is None else found | {"tf-idf, whole documents": tf_idf(whole)}


def genre_rows(chapter: Chapter, table: pd.DataFrame) -> list[dict[str, str]]:
    """Record how well each similarity knows the genres, and give a line of a table each.

    Every number is recorded as ``genre_<statistic>_<similarity>`` with its jackknife error
    ``_mcse``, the interval ``_low`` to ``_high`` of 1.96 such errors, and what 95 % of shuffled
    genres give, ``_chance_low`` to ``_chance_high``.

    Args:
        chapter: where to.
        table: of :func:`probebook.genres.recovery_table`.
    """
    rows = []
    for title, found in table.groupby("similarity", sort=False):
        row = {"similarity": title}
        for _, one in found.iterrows():
            name = f"genre_{one.statistic}_{SIMILARITIES[title]}"
            chapter.record(
                **{
                    name: one.value,
                    f"{name}_mcse": one.error,
                    f"{name}_low": one.value - 1.96 * one.error,
                    f"{name}_high": one.value + 1.96 * one.error,
                    f"{name}_chance": one.chance,
                    f"{name}_chance_low": one.low,
                    f"{name}_chance_high": one.high,
                }
            )
            row |= {
                one.statistic: f"{one.value:.3f} ± {one.error:.3f}",
                f"chance, {one.statistic}": f"{one.low:.3f} to {one.high:.3f}",
            }
        rows.append(row)
    return rows


def record_kernel(chapter: Chapter, kept: KeptDocuments, again: KeptDocuments) -> None:
    """Record how well two halves of the walks agree on the kernel of documents.

    Args:
        chapter: where to.
        kept: the kernel that the chapter reads.
        again: that of this run; the same where there was no other.
    """
    one, other = kept.halves()
    pairs = np.triu_indices(len(one), 1)
    halves = float(np.corrcoef(one[pairs], other[pairs])[0, 1])
    chapter.record(
        genre_documents=len(one),
        genre_walks=len(kept.walks),
        genre_pairs=kept.about["config"]["pairs"],
        genre_half_correlation=halves,
        genre_walks_again=len(again.walks),
        genre_again_correlation=float(
            np.corrcoef(kept.correlation[pairs], again.correlation[pairs])[0, 1]
        ),
        genre_reliability=probelib.spearman_brown(halves),
        genre_seconds=round(float(kept.about.get("seconds", kept.about.get("wall_time"))), 1),
    )


def genres_in_words(chapter: Chapter) -> str:
    """What the table of genres shows."""
    found = chapter.numbers
    above = [s for s in ("purity", "auroc", "nmi")
             if found[f"genre_{s}_kernel"] > found[f"genre_{s}_kernel_chance_high"]]  # fmt: skip
    says = (
        "is above chance by all three measures"
        if len(above) == 3
        else "is not above chance by any measure"
        if not above
        else f"is above chance by {len(above)} of the three measures"
    )
    return (
        "The kernel of {genre_documents} documents ({genre_walks} walks of {genre_pairs} pairs; "
        "its two halves correlate by {genre_half_correlation:.2f}) "
        + says
        + ". Of its five nearest, "
        "**{genre_purity_kernel:.1%}** ± {genre_purity_kernel_mcse:.1%} have the document's genre; "
        "chance is {genre_purity_kernel_chance:.1%}, embeddings of the same network have "
        "{genre_purity_embeddings:.1%}, gradients {genre_purity_gradients:.1%}, tf-idf of the same "
        "windows {genre_purity_tfidf:.1%} and of whole documents {genre_purity_tfidf_whole:.1%}."
    )


# -- precision --------------------------------------------------------------------------------


def precision_rows(
    chapter: Chapter,
    noise: pd.DataFrame,
    chains: Mapping[str, StoredChain],
    step_size: float,
) -> list[dict[str, str]]:
    """Record what is lost where weights are stored in bfloat16, and give a line a precision.

    Args:
        chapter: where to.
        noise: of :func:`probebook.stored_weights.noise_kept`.
        chains: of both precisions, and of float32 from another seed: "float32", "bfloat16",
            "float32, another seed".
        step_size: of the chains.
    """
    every = noise.set_index("parameter").loc["all"]
    gain = {name: chain.gain for name, chain in chains.items()}
    chapter.record(
        noise_rounded_away_bfloat16=every.unmoved,
        noise_variance_bfloat16=every.variance,
        precision_bits=32,
        precision_step_size=step_size,
        precision_weight_size=every["size"],
        gain_correlation_bfloat16=_correlation(gain["float32"], gain["bfloat16"]),
        gain_correlation_another_seed=_correlation(gain["float32"], gain["float32, another seed"]),
    )
    rows = []
    for name, chain in chains.items():
        key = name.replace(", ", "_").replace(" ", "_")
        chapter.record(
            **{
                f"gain_mean_{key}": float(chain.gain.mean()),
                f"spread_{key}": float(chain.spread.mean()),
                f"init_loss_{key}": float(chain.init_loss.mean()),
            }
        )
        rows.append(
            {
                "weights stored in": name,
                "loss at w*, nats": f"{chain.init_loss.mean():.4f}",
                "mean gain, nats": f"{chain.gain.mean():.4f}",
                "γ |w − w*|² / d": f"{chain.spread.mean():.3f}",
                "correlation of gains": f"{_correlation(gain['float32'], chain.gain):.4f}",
            }
        )
    return rows


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one, other)[0, 1])


# -- what is known beforehand -------------------------------------------------------------------


def claims(numbers: Mapping[str, object], kept: bool) -> list[Claim]:
    """What chapter 08 holds its numbers to; the paper has none of language.

    Args:
        numbers: recorded ones.
        kept: whether draws of a long run were computed again.
    """
    guess = math.log(10)
    found = [
        Claim(
            "loss of a held-out digit at w*, nats", "held_out_loss", "2.303 (guessing) or more",
            low=guess - 4 * float(str(numbers["held_out_loss_se"])),
            why="No network can know a random digit; four standard errors below is a leak.",
            must=True,
        ),
        Claim(
            "γ |w − w*|² / d of the float32 chain", "spread_float32", "1",
            low=0.95, high=1.05,
            why="The localization decides in nearly all of the many directions.",
        ),
        Claim(
            "AUROC of canaries planted once, by loss", "canary_auroc_loss_1", "",
            why="0.5 would say that nothing was memorized in one reading.",
        ),
    ]  # fmt: skip
    if kept and "kept_largest_difference" in numbers:
        found.append(
            Claim(
                "largest difference of a loss that was computed again, nats",
                "kept_largest_difference", "0", high=1e-3, digits=".1g",
                why="Float32, added in another order on another machine.", must=True,
            )
        )  # fmt: skip
    return found


def answer(chapter: Chapter) -> str:
    """The chapter's answer: canaries, and genres."""
    found = chapter.numbers
    above = found["genre_purity_kernel"] > found["genre_purity_kernel_chance_high"]
    knows = "knows" if above else "does not know"
    return (
        "Canaries were planted in the text of a small GPT. The loss gain finds them with an AUROC "
        "of **{canary_auroc_gain:.3f}** [{canary_auroc_gain_low:.3f}, "
        "{canary_auroc_gain_high:.3f}], the loss at $w^*$ with {canary_auroc_loss:.3f}, the "
        "posterior mean loss with {canary_auroc_mean_loss:.3f}. "
        + _gain_against_loss(chapter)
        + ", and the variance of the loss is no detector ({canary_auroc_variance:.3f}). The loss "
        f"kernel {knows} genres that it was never told: of a document's five nearest "
        "**{genre_purity_kernel:.0%}** ± {genre_purity_kernel_mcse:.0%} have its genre, by chance "
        "{genre_purity_kernel_chance:.0%}, by embeddings of the same network "
        "{genre_purity_embeddings:.0%} ± {genre_purity_embeddings_mcse:.0%}, by the words that it "
        "read (tf-idf) {genre_purity_tfidf:.0%} ± {genre_purity_tfidf_mcse:.0%}."
    )


def record_front(chapter: Chapter, stand_in: bool) -> None:
    """Record what the front page shows, as text: dashes for a stand-in."""
    texts = {
        "front_canaries": "{canary_auroc_gain:.3f} [{canary_auroc_gain_low:.3f}, "
        "{canary_auroc_gain_high:.3f}] / {canary_auroc_loss:.3f} [{canary_auroc_loss_low:.3f}, "
        "{canary_auroc_loss_high:.3f}]",
        "front_genres": "{genre_purity_kernel:.1%} ± {genre_purity_kernel_mcse:.1%} / "
        "{genre_purity_kernel_chance:.1%}",
    }
    chapter.record(
        **{
            name: "–" if stand_in else text.format(**chapter.numbers)
            for name, text in texts.items()
        }
    )


def record_no_claims(chapter: Chapter) -> None:
    """A stand-in can neither agree nor differ."""
    chapter.record(claims_agree=0, claims_differ=0, claims_broken=0, claims_broken_names="")
