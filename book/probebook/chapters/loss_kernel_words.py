"""Chapter 04: what it answers, what it claims, and what it shows where there are no photographs."""

import csv
import json
from pathlib import Path

import numpy as np

from probebook.cache import write_atomically
from probebook.chapter import Chapter, Claim
from probebook.chapters.loss_kernel import Table1Row
from probebook.chapters.loss_kernel_sweeps import Localization, Tempered
from probebook.explorer import Samples, neighbours_csv
from probelib import Neighbours

NOT_A_RESULT = (
    '<div class="admonition warning not-a-result"><p class="admonition-title">No ImageNet '
    "photographs here: what follows is a demonstration on a stand-in, not a result</p>"
    "<p>The images are crops of a few photographs that Python packages ship, under the labels that "
    "a small network gives them, and the sizes are reduced. No number or figure of this page means "
    "anything. Set <code>PROBELIB_IMAGENET</code> and run it again for a result.</p></div>"
)
DEMONSTRATION = (
    "**A stand-in, not a result.** There are no ImageNet photographs here. The sizes are reduced, "
    "whatever the parameters say."
)
STAND_IN_HEADLINE = "stand-in, not a result"
HEADLINE = (
    "{n_images:,} photographs: WordNet similarity of cross-label top 5 "
    "{wordnet_top5_cross_label:.3f} ± {wordnet_top5_se:.3f}, chance {wordnet_chance:.3f} "
    "[{wordnet_interval_low:.3f}, {wordnet_interval_high:.3f}]; split-half reliability "
    "{split_half_reliability:.2f} ± {split_half_reliability_se:.2f} ({effective_draws:.0f} draws' "
    "worth); of {draws} draws {draws_that_count:.0%} count"
)
# Names of the numbers that a page without photographs quotes from the published run -> in words.
PUBLISHED = {
    "n_images": ("photographs", "{:,}"),
    "paper_gamma_mean_loss": ("mean loss under noise of Table 1's γ (nats)", "{:.2f}"),
    "mean_loss_chain": ("mean loss at the chapter's γ (nats)", "{:.2f}"),
    "split_half_reliability": ("split-half reliability of R", "{:.2f}"),
    "wordnet_top5_cross_label": ("WordNet similarity of cross-label neighbours", "{:.3f}"),
    "wordnet_chance": ("the same by chance", "{:.3f}"),
    "wordnet_interval_low": ("its 95 % interval, lower end", "{:.3f}"),
    "wordnet_interval_high": ("its 95 % interval, upper end", "{:.3f}"),
}


# -- the published run -------------------------------------------------------------------------


def published(folder: Path, name: str = "04_loss_kernel") -> dict[str, float]:
    """The published numbers of a run with photographs; empty where there are none.

    A run on a stand-in carries them on in its own results, as ``published_...``.

    Args:
        folder: of the results.
        name: of the chapter.
    """
    try:
        found = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    carried = "" if found.get("stand_in") in (0, "false") else "published_"
    if found.get("profile") == "smoke" and not carried:
        return {}
    quoted = {key: found.get(f"{carried}{key}") for key in PUBLISHED}
    return {k: v for k, v in quoted.items() if isinstance(v, int | float)}


def published_neighbours(folder: Path, references: int = 8, k: int = 5) -> list[dict[str, str]]:
    """A line of a table for each of some references of the published run; names, no pictures.

    Args:
        folder: of the results.
        references: how many: those whose nearest neighbour is strongest.
        k: neighbours of each.

    Returns:
        The lines, none where the table is not there or lacks a column.
    """
    try:
        text = (folder / "04_loss_kernel-neighbours.csv").read_text(encoding="utf-8")
        lines = list(csv.DictReader(text.splitlines()))
        old = "class" in lines[0]
        own, other = ("class", "neighbour_class") if old else ("label", "neighbour_label")
        by_name: dict[str, list[tuple[str, float]]] = {}
        for line in lines:
            near = by_name.setdefault(line[own], [])
            if int(line["rank"]) <= k:
                near.append((line[other], float(line["correlation"])))
        strongest = sorted(by_name, key=lambda name: -by_name[name][0][1])[:references]
    except (OSError, KeyError, IndexError, TypeError, ValueError):
        return []
    return [
        {
            "reference": name,
            "its most correlated photographs (R)": ", ".join(
                f"{near} ({r:.2f})" for near, r in by_name[name]
            ),
        }
        for name in strongest
    ]


def show_published(chapter: Chapter, numbers: dict[str, float], folder: Path) -> None:
    """Show and carry on what was measured elsewhere, with photographs; nothing where none is.

    Args:
        chapter: where to.
        numbers: from :func:`published`.
        folder: of the results.
    """
    if not numbers:
        return
    chapter.record(**{f"published_{key}": value for key, value in numbers.items()})
    chapter.table(
        [
            {"quantity": what, "measured elsewhere": form.format(numbers[key])}
            for key, (what, form) in PUBLISHED.items()
            if key in numbers
        ],
        "Measured elsewhere, with photographs: the published run.",
    )
    if rows := published_neighbours(folder):
        chapter.table(rows, "Measured elsewhere, with photographs: the strongest neighbours.")


def record_front(chapter: Chapter, stand_in: bool, numbers: dict[str, float]) -> None:
    """Record what the front page shows, as text: dashes and published numbers for a stand-in.

    Args:
        chapter: where to, with the numbers of the run.
        stand_in: whether there were no photographs.
        numbers: from :func:`published`.
    """
    source = numbers if stand_in else chapter.numbers

    def shown(form: str, *keys: str) -> str:
        if not set(keys) <= source.keys():
            return "–"
        text = form.format(*(source[key] for key in keys))
        return f"– (measured elsewhere, with photographs: {text})" if stand_in else text

    chance = "wordnet_chance", "wordnet_interval_low", "wordnet_interval_high"
    chapter.record(
        front_paper_gamma_mean_loss=shown("{:.2f}", "paper_gamma_mean_loss"),
        front_split_half_reliability=shown("{:.2f}", "split_half_reliability"),
        front_wordnet_top5_cross_label=shown("{:.3f}", "wordnet_top5_cross_label"),
        front_wordnet_chance=shown("{:.3f} [{:.3f}, {:.3f}]", *chance),
    )


def write_neighbours(
    chapter: Chapter, photographs: Samples, table: Neighbours, alike: np.ndarray
) -> None:
    """Write the neighbours beside the chapter's results, as ``<chapter>-neighbours.csv``."""
    chapter.path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(
        chapter.path.with_name(f"{chapter.name}-neighbours.csv"),
        neighbours_csv(photographs, table, alike),
    )


# -- what the run says -------------------------------------------------------------------------


def locality_in_words(chapter: Chapter, sweep: list[Localization], own: float) -> str:
    """Which localization is local, and what the chapter's own leaves of the network.

    Args:
        chapter: with ``local_gamma``.
        sweep: the localizations that were looked at.
        own: the chapter's.
    """
    found = (
        "Of this sweep, γ = {local_gamma:,.0f} is the smallest at which nine of ten photographs "
        "that the trained network is right about stay so."
        if chapter.numbers["local_gamma"]
        else "At no γ of this sweep do nine of ten photographs stay right."
    )
    found += (
        " That is what this chapter asks of a posterior before it calls it *local*; with the table "
        f"you can ask for something else. The chapter's own kernel is that of γ = {own:,.0f}"
    )
    at_own = [point for point in sweep if point.gamma == own]
    if not at_own:
        return found + "."
    return found + (
        f": there {at_own[0].kept:.0%} stay right, and the mean loss is {at_own[0].loss:.2f} nats."
    )


def hubs_in_words(chapter: Chapter) -> str:
    """What the counts of neighbours say, as a template."""
    numbers = chapter.numbers
    text = (
        "The most frequent neighbour is among the five of **{hubs_loss_kernel_most}** photographs "
        "(features: {hubs_features_most}). "
    )
    if numbers["hubs_loss_kernel_loss_of_hubs"] < numbers["loss_median"]:
        text += (
            "The ten most frequent have a median loss of {hubs_loss_kernel_loss_of_hubs:.2g} nats "
            "at $w^*$, all photographs one of {loss_median:.2g}: the network is sure of them. "
        )
    else:
        text += (
            "The ten most frequent have a median loss of {hubs_loss_kernel_loss_of_hubs:.2g} nats "
            "at $w^*$, all photographs one of {loss_median:.2g}: it is not that the network is "
            "sure of them. "
        )
    fewer = numbers["hubs_loss_kernel_robust_scale_skewness"] < numbers["hubs_loss_kernel_skewness"]
    closer = numbers["hubs_loss_kernel_robust_scale_wordnet"] > numbers["hubs_loss_kernel_wordnet"]
    return text + (
        f"A robust scale makes the counts {'less' if fewer else 'not less'} uneven, and the "
        f"neighbours {'closer' if closer else 'no closer'} in meaning."
    )


def data_term_in_words(chapter: Chapter, tempered: list[Tempered]) -> str:
    """What n_beta changes, as a template.

    Args:
        chapter: with the numbers of the sweep of n_beta.
        tempered: its points.
    """
    known = [point for point in tempered if point.share > 0.5]
    if not known:
        return "At no nβ of this table do half of the draws count: read none of its rows."
    last = max(known, key=lambda point: point.n_beta)
    return (
        f"Up to nβ = {last.n_beta:,.0f} ({last.what}), where {last.share:.0%} of the draws count, "
        f"$R$ correlates by {min(point.agreement for point in known):.3f} or more with that of the "
        "limit."
    )


def answer(chapter: Chapter, row: Table1Row | None, own: float) -> tuple[str, str]:
    """The chapter's answer and the line on trust, as templates for :meth:`Chapter.answer`.

    Args:
        chapter: with the numbers of the run.
        row: Table 1's, if there is one.
        own: the chapter's localization.
    """
    numbers = chapter.numbers
    beyond = "closer" if numbers["wordnet_over_chance"] > 0 else "not closer"
    closest = "less close than" if _below(numbers, "features") else "at least as close as"
    what = (
        f"Photographs whose losses move together are {beyond} in meaning than chance would have "
        "them: WordNet similarity **{wordnet_top5_cross_label:.3f} ± {wordnet_top5_se:.3f}**, by "
        "chance {wordnet_interval_low:.3f} to {wordnet_interval_high:.3f} ({n_images:,} "
        f"photographs, γ = {own:,.0f}). They are {closest} neighbours by plain features "
        "({features_wordnet_top5:.3f})."
    )
    trust = (
        "One half of the walks against the other has a reliability of {split_half_reliability:.2f} "
        "± {split_half_reliability_se:.2f}, and they share {neighbours_shared_halves:.0%} of five "
        "neighbours. Gradient pairs have no step, and so no step bias; {draws_that_count:.0%} of "
        "their draws count under the data term. At Table 1's γ the mean loss is "
        "{paper_gamma_mean_loss:.1f} nats (guessing: {guessing:.1f})."
    )
    if row is not None:
        trust += " Verdict on the draws of Table 1's row: {table1_verdict}."
    return what, trust


def _below(numbers: dict[str, float | int | str], name: str) -> bool:
    return numbers["wordnet_top5_cross_label"] < numbers[f"{name}_wordnet_top5"]


def summary(chapter: Chapter, row: Table1Row | None) -> str:
    """What the run says in the end, as a template; see :func:`answer` for the arguments."""
    numbers = chapter.numbers
    works = numbers["mean_loss_chain"] < numbers["guessing"]
    text = (
        "At Table 1's γ the mean loss is {paper_gamma_mean_loss:.1f} nats, where guessing has "
        "{guessing:.1f}. At this chapter's γ it is {mean_loss_chain:.2f}, the kernel has a "
        "reliability of {reliability_of_both:.2f}, and its cross-label neighbours "
    )
    if numbers["wordnet_over_chance"] <= 0:
        text += "are not closer in meaning than chance would have them."
    elif works:
        text += "are closer in meaning than chance, in a network that still works."
    else:
        text += "are closer in meaning than chance, in a network that does worse than guessing."
    if row is None:
        return text
    text += " Table 1's own row, at {table1_mean_loss_chain:.1f} nats, has neighbours at "
    text += "{table1_wordnet:.3f}, where chance has {table1_interval_low:.3f} to "
    text += "{table1_interval_high:.3f}."
    if numbers["table1_mean_loss_chain"] > numbers["guessing"]:
        text += (
            " That network does worse than guessing, and its kernel correlates by "
            "{table1_class_agreement:.2f} with the weights of the labels, which know nothing of "
            "the photographs."
        )
    return text


# -- claims ------------------------------------------------------------------------------------


def show_open_claims(chapter: Chapter, claims: list[Claim]) -> None:
    """The table of claims for a stand-in: dashes, since it can neither agree nor differ."""
    chapter.record(claims_broken=0, claims_broken_names="")
    chapter.table(
        [
            {
                "quantity": claim.what,
                "paper": claim.paper or "not given",
                "this run": "–",
                "verdict": "–",
            }
            for claim in claims
        ],
        "Paper says / this run: a stand-in, so there is nothing to compare.",
    )


def claims(kept: bool, row: Table1Row | None) -> list[Claim]:
    """What the paper says about neighbours, and what must hold of the runs.

    Args:
        kept: whether the kernel of the whole network is a kept run.
        row: Table 1's, if there is one.
    """
    guessing = float(np.log(1000))
    neighbours = Claim(
        "cross-label neighbours: WordNet similarity above the interval of chance",
        "wordnet_over_chance", "highly interpretable", 0.0, None, ".3f",
        "the paper shows pictures; this is the distance to the upper end of the interval, the "
        "central 95 % of random deals of the classes",
    )  # fmt: skip
    reliability = Claim(
        "split-half reliability of R", "split_half_reliability", "", digits=".3f",
        why="of one half; the paper gives none",
    )  # fmt: skip
    others = [
        Claim(
            "mean loss along the chains, this chapter's γ (nats)", "mean_loss_chain",
            "a local posterior", None, guessing, ".2f",
            "a network that still knows something is below guessing, log 1000",
        ),
        Claim(
            "covariances of SGLD draws on those of gradient pairs, slope freed of noise",
            "draws_on_pairs", "1", 0.9, 1.1, ".3f",
            "two estimators of one kernel, not a claim of the paper; the room is for Eq. 1's data "
            "term",
        ),
        Claim("Spearman of R with WordNet, all pairs", "spearman_wordnet", digits=".3f"),
    ]  # fmt: skip
    again = Claim(
        "R of the kept run computed again, largest difference", "verified_difference", "0",
        None, 0.02, ".4f",
        "bfloat16 rounds to 1 in 256; five times that, for sums in another order", must=True,
    )  # fmt: skip
    of_row = [] if row is None else [
        Claim(
            "mean loss along the chain, Table 1's γ (nats)", "table1_mean_loss_chain",
            "a local posterior", None, guessing, ".2f",
            "above guessing, the draws do worse than a network that knows nothing",
        ),
        Claim(
            "cross-label neighbours, Table 1's γ: WordNet similarity", "table1_wordnet",
            "highly interpretable", row.aligned.high, None, ".3f",
            "agrees if above the interval of chance",
        ),
        Claim(
            "R at Table 1's γ and the weights of the labels: correlation",
            "table1_class_agreement", "", digits=".2f",
            why="corrected for noise; these weights know nothing of photographs",
        ),
    ]  # fmt: skip
    return [neighbours, reliability, *of_row, *others, *([again] if kept else [])]


__all__ = [
    "DEMONSTRATION",
    "HEADLINE",
    "NOT_A_RESULT",
    "PUBLISHED",
    "STAND_IN_HEADLINE",
    "answer",
    "claims",
    "data_term_in_words",
    "hubs_in_words",
    "locality_in_words",
    "published",
    "published_neighbours",
    "record_front",
    "show_open_claims",
    "show_published",
    "summary",
    "write_neighbours",
]
