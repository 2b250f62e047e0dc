"""Chapter 08, the real language model: its numbers, and which of its tokens move together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import probelib
from probebook.chapter import Chapter
from probebook.llm_text import ObservedText
from probebook.localization_rule import kept_share
from probebook.smollm import LanguageModelUnavailable, load_language_model
from probebook.smollm_runs import KeptRun, Pieces, agreement, weighted_draws
from probelib import Kernel
from probelib.estimators.weighted import estimate, weights_of

__all__ = [
    "along_chain",
    "chain_in_words",
    "compute_again",
    "gaussian_draws",
    "induction_in_words",
    "induction_numbers",
    "mean_loss",
    "moving_together",
    "numbers",
    "own_places",
]


def mean_loss(trace: xr.Dataset, text: ObservedText) -> tuple[float, float]:
    """E[L(w)] over the draws of a trace, L that of the Brown passages, and its standard error.

    Args:
        trace: of all passages with losses per token, weighted or of chains.
        text: what was observed.
    """
    losses = trace.sample_loss.values[..., text.is_brown].astype(np.float64).mean(-1)
    found = estimate(losses, weights_of(trace))
    return found.value, found.mcse


def numbers(kept: KeptRun) -> dict[str, Any]:
    """What the chapter records of the kept run, by the names of its results.

    Those of the chain (``llm_loss_chain`` and its like) are there where the run has one.
    """
    text, choice = kept.text, kept.choice
    weights = weights_of(kept.trace)
    weighted, weighted_error = mean_loss(kept.trace, text)
    plain = kept.trace.mean_loss.values.mean()
    ends = choice.frequency_loss, choice.trained_loss
    gain = probelib.loss_gain(kept.trace).values[text.is_brown]
    found = {
        "llm": kept.about["model"],
        "llm_source": kept.about["source"],
        "llm_weights": kept.about["parameters"],
        "llm_localization": choice.localization,
        "llm_loss_frequencies": choice.frequency_loss,
        "llm_loss_start": choice.trained_loss,
        "llm_loss_gaussian": float(plain),
        "llm_loss_weighted": weighted,
        "llm_loss_weighted_se": weighted_error,
        "llm_kept_weighted": float(kept_share(weighted, *ends)),
        "llm_negative_gains": float((gain < 0).mean()),
        "n_tokens": int(kept.trace.init_loss.notnull().sum()),
        "draws": kept.trace.sizes["draw"],
        "effective_draws": float("nan") if weights is None else weights.ess,
        "llm_khat": probelib.khat(kept.trace),
        "llm_seconds": kept.about["seconds"],
    }
    if kept.chain is not None:
        chain, error = mean_loss(kept.chain, text)
        along = along_chain(kept)
        found |= {
            "llm_loss_chain": chain,
            "llm_loss_chain_lowest": float(along.min()),
            "llm_loss_chain_highest": float(along.max()),
            **({"llm_loss_chain_se": error} if np.isfinite(error) else {}),
            "llm_kept_chain": float(kept_share(chain, *ends)),
            "llm_chain_draws": kept.chain.sizes["draw"],
        }
    return found


def gaussian_draws(trace: xr.Dataset) -> xr.Dataset:
    """Weighted draws without their weights: equal draws from N(w*, I / gamma), Eq. 1 at n_beta 0.

    Their neighbours have q-values, which those of weighted draws do not have.
    """
    config = trace.attrs["config"] | {"sampler": "gaussian", "n_beta": None, "beta": None}
    left = trace.drop_vars(["log_weight", "log_weight_error", "mean_loss"])
    return left.assign_attrs(config=config)


def own_places(text: ObservedText) -> np.ndarray:
    """Positions in the kernel of the tokens whose text stands nowhere before.

    The first half of a control is that of its pattern, token by token: R is 1 and says nothing.
    """
    inputs = text.windows.inputs.numpy()
    known: set[tuple[int, ...]] = set()
    own = []
    for row, ids in enumerate(inputs):
        for t in range(len(ids)):
            said = (*ids[: t + 1].tolist(), int(text.windows.targets[row, t]))
            if said not in known:
                known.add(said)
                own.append(row * len(ids) + t)
    return np.array(own)


def moving_together(
    kernel: Kernel, text: ObservedText, pieces: Pieces, k: int = 5, most: int = 12
) -> pd.DataFrame:
    """The most correlated tokens of different passages, of all tokens of the page.

    Args:
        kernel: of all tokens.
        text: the passages, in which every position counts.
        pieces: what their tokens spell.
        k: neighbours that each token has a say for.
        most: lines of the table; a pair is there once.

    Returns:
        ``token``, ``in`` (its passage), ``with``, ``of`` (that one's), ``R``, ``q``; the most
        correlated first.
    """
    places = own_places(text)
    near = kernel.top_correlated(k, rows=places, among=places)
    length = text.windows.targets.shape[1]
    said = text.windows.targets.numpy().ravel()
    lines, seen = [], set()
    for at in np.argsort(-near.correlation, axis=None):
        i, j = int(near.rows[at // near.index.shape[1]]), int(near.index.ravel()[at])
        pair = (min(i, j), max(i, j))
        if i // length == j // length or pair in seen:
            continue
        seen.add(pair)
        lines.append(
            (
                pieces.decode([int(said[i])]),
                text.titles[i // length],
                pieces.decode([int(said[j])]),
                text.titles[j // length],
                float(near.correlation.ravel()[at]),
                float(near.q_value.ravel()[at]),
            )
        )
        if len(lines) == most:
            break
    return pd.DataFrame(lines, columns=["token", "in", "with", "of", "R", "q"])


def chain_in_words(chapter: Chapter, kept: KeptRun) -> str:
    """The loss along the chain of the long run, draw by draw."""
    if kept.chain is None:
        return "The long run has no chain, so that nothing checks the weights."
    along = along_chain(kept)
    return (
        f"Along a chain of Leimkuhler and Matthews's sampler with steps of $1/\\gamma$, every "
        f"second kept: {', '.join(f'{loss:.2f}' for loss in along)} nats. Its mean is "
        "**{llm_loss_chain:.2f}**, from {llm_loss_chain_lowest:.2f} to "
        "{llm_loss_chain_highest:.2f}; {llm_chain_draws} draws are too few for an error of their "
        "own."
    )


def along_chain(kept: KeptRun) -> np.ndarray:
    """L, that of the Brown passages, at each draw of the chain, (draws,), nats."""
    if kept.chain is None:
        raise ValueError("kept has no chain; make the long run with one")
    return kept.chain.sample_loss.values[0][:, kept.text.is_brown].astype(np.float64).mean(-1)


def compute_again(chapter: Chapter, kept: KeptRun, draws: int) -> str:
    """Make the first draws of the kept run again, record how far they are, and say it.

    Args:
        chapter: where to.
        kept: the long run.
        draws: how many; at most as many as the run has of its first seed.
    """
    try:
        language = load_language_model()
    except LanguageModelUnavailable as error:
        return f"None of the draws could be computed again here: {error}"
    [again] = weighted_draws(
        language, kept.text, kept.choice.localization, draws, [int(kept.seeds[0])]
    )
    # L of the kept run is that of the Brown passages, and of these draws of all.
    brown = again.sample_loss.values[..., kept.text.is_brown].astype(np.float64).mean(-1)
    found = agreement(kept.trace, again.assign(mean_loss=(("chain", "draw"), brown)))
    chapter.record(
        llm_draws_again=found["draws"],
        llm_largest_difference=found["largest_difference"],
    )
    return (
        "**{llm_draws_again}** of the draws were computed again here: no loss of a token differs "
        "by more than {llm_largest_difference:.1g} nats."
    )


def induction_numbers(table: pd.DataFrame) -> dict[str, float]:
    """What the chapter records of :func:`probebook.induction.induction`."""
    found: dict[str, float] = {}
    for quantity, row in table.iterrows():
        name = f"induction_{str(quantity).replace(' ', '_')}"
        found[f"{name}_pattern"], found[f"{name}_control"] = row.pattern, row.control
        found[f"{name}_difference"], found[f"{name}_difference_mcse"] = row.difference, row.error
    same = table.loc["same word"]
    for name in ("low", "high", "p"):
        found[f"induction_same_word_chance_{name}"] = same[name]
    return found


def induction_in_words(chapter: Chapter) -> str:
    """What patterns and their controls show."""
    found = chapter.numbers

    def apart(name: str) -> str:
        error = float(found[f"induction_{name}_difference_mcse"])
        away = abs(float(found[f"induction_{name}_difference"]))
        return "differ" if away > 1.96 * error else "cannot be told apart"

    return (
        "In the second half a word of a pattern costs **{induction_loss_pattern:.2f}** nats at "
        "$w^*$, one of a control {induction_loss_control:.2f}: the network looks back. Their "
        "gains, {induction_gain_pattern:.2f} and {induction_gain_control:.2f}, "
        + apart("gain")
        + " ({induction_gain_difference:+.2f} ± {induction_gain_difference_mcse:.2f}). A "
        "word and itself in the first half correlate by {induction_same_word_pattern:.2f} in "
        "patterns (chance {induction_same_word_chance_low:.2f} to "
        "{induction_same_word_chance_high:.2f}) and {induction_same_word_control:.2f} in controls. "
        "Words of the second halves of two patterns correlate by "
        "**{induction_two_passages_pattern:.2f}**, of two controls by "
        "{induction_two_passages_control:.2f}; these " + apart("two_passages") + "."
    )
