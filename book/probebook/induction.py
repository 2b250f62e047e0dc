"""What a kernel of tokens knows of a repeated sequence: patterns against their controls.

The second half of a pattern can be said by looking back, that of its control cannot: the same words
in a new order. Only words of the second half count of which the one before was said already, so
that there is something to look back to: all but the first.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import xarray as xr

import probelib
from probebook.llm_text import ObservedText
from probebook.memorized import require_windows

__all__ = ["by_position", "correlation_of_passage", "induction"]

_BLOCKS = 20  # of the jackknife over draws


def induction(
    trace: xr.Dataset, text: ObservedText, *, permutations: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Losses, gains and correlations of the second halves of patterns, and of controls.

    ``same word``: R of a word of the second half with itself in the first, beside what dealing the
    words of the first half out anew within each passage would give (95 % of ``permutations``), so
    that only *which* word it is counts. In controls the two are one word as well, but what stands
    before them differs. ``one half``: R of two words of one second half. ``two passages``: R of
    words of the second halves of two patterns (of two controls), unless they are one word: what is
    common to them is not the text, but what the network has to do.

    Args:
        trace: of the passages, with losses per token; weighted or of chains.
        text: what was observed.
        permutations: for chance.
        seed: of these.

    Returns:
        By quantity (``loss``, ``gain``, ``same word``, ``one half``, ``two passages``): ``pattern``
        and ``control``; ``difference``, of them; ``error``, its standard error from the draws, by a
        jackknife over 20 blocks (0 for the loss at w*); ``low``, ``high`` and ``p`` of chance for
        the pattern's ``same word``, NaN elsewhere. In nats, correlations without a unit.

    Raises:
        ValueError: the trace observes other tokens, has fewer draws than blocks, or there are fewer
            than two patterns and two controls.
    """
    require_windows(trace, text.windows)
    draws = trace.sizes["draw"]
    if draws < _BLOCKS:
        raise ValueError(f"trace has {draws} draws a chain; errors need {_BLOCKS} or more")
    rows = {kind: _rows(text, kind) for kind in ("pattern", "control")}
    if min(len(of) for of in rows.values()) < 2:
        raise ValueError("text has fewer than two patterns and two controls; plant more")
    whole = _measured(trace, rows)
    blocks = np.array_split(np.arange(draws), _BLOCKS)
    without = np.array(
        [_measured(trace.isel(draw=np.setdiff1d(np.arange(draws), b)), rows) for b in blocks]
    )
    apart = without[..., 0] - without[..., 1]
    error = np.sqrt((_BLOCKS - 1) * np.square(apart - apart.mean(0)).mean(0))
    names = ["loss", "gain", "same word", "one half", "two passages"]
    table = pd.DataFrame(whole, columns=["pattern", "control"], index=names)
    table["difference"], table["error"] = table.pattern - table.control, error
    null = _dealt(trace, rows["pattern"], permutations, seed)
    table[["low", "high", "p"]] = np.nan
    table.loc["same word", ["low", "high"]] = np.quantile(null, [0.025, 0.975])
    as_high = (null >= table.pattern["same word"] - 1e-12).sum()
    table.loc["same word", "p"] = (1 + as_high) / (1 + permutations)
    return table.rename_axis("quantity")


def by_position(trace: xr.Dataset, text: ObservedText) -> pd.DataFrame:
    """Loss at w* and loss gain at each position, averaged over the passages of a kind.

    Returns:
        ``kind``, ``position`` (from 1), ``loss`` and ``gain``, nats, for patterns and controls.
    """
    require_windows(trace, text.windows)
    gain = probelib.loss_gain(trace).values
    parts = [
        pd.DataFrame(
            {
                "kind": kind,
                "position": 1 + np.arange(gain.shape[1]),
                "loss": trace.init_loss.values[text.kind == kind].mean(0),
                "gain": gain[text.kind == kind].mean(0),
            }
        )
        for kind in ("pattern", "control")
    ]
    return pd.concat(parts, ignore_index=True)


def correlation_of_passage(trace: xr.Dataset, row: int) -> np.ndarray:
    """R between all tokens of one passage, (length, length)."""
    return probelib.loss_kernel(trace.isel(sample=[row])).correlation()


def _rows(text: ObservedText, kind: str) -> list[np.ndarray]:
    """Of each passage of a kind: its row, the first and second places of words, (m, 3)."""
    pairs = text.repeated(kind)
    half = text.windows.targets.shape[1] // 2
    pairs = pairs[pairs[:, 2] > half]
    return [pairs[pairs[:, 0] == row] for row in np.unique(pairs[:, 0])]


def _measured(trace: xr.Dataset, rows: dict[str, list[np.ndarray]]) -> np.ndarray:
    """The table's numbers, (5, 2): quantities, and patterns and controls."""
    gain, start = probelib.loss_gain(trace).values, trace.init_loss.values
    words, columns = trace.token_id.values, []
    for passages in rows.values():
        at = np.concatenate(passages)
        r, first, second = _correlations(trace, passages)
        each, said = range(len(passages)), [words[p[:, 0], p[:, 2]] for p in passages]
        across = [
            r[second[k]][:, second[j]][np.not_equal.outer(said[k], said[j])].mean()
            for k in each
            for j in range(k)
        ]
        columns.append(
            [
                start[at[:, 0], at[:, 2]].mean(),
                gain[at[:, 0], at[:, 2]].mean(),
                np.mean([np.diag(r[second[k]][:, first[k]]).mean() for k in each]),
                np.mean([_off_diagonal(r[second[k]][:, second[k]]) for k in each]),
                np.mean(across),
            ]
        )
    return np.array(columns).T


def _correlations(
    trace: xr.Dataset, passages: list[np.ndarray]
) -> tuple[np.ndarray, list[slice], list[slice]]:
    """R of all words of some passages, and where in it each one's first and second words are."""
    place = np.full(trace.init_loss.shape, -1)
    counted = trace.init_loss.notnull().values
    place[counted] = np.arange(counted.sum())  # sample after sample, as in the kernel
    parts = [place[p[:, 0], p[:, column]] for column in (1, 2) for p in passages]
    ends = np.cumsum([0, *map(len, parts)])
    slices = [slice(low, high) for low, high in pairwise(ends)]
    every, m = np.concatenate(parts), len(passages)
    return probelib.loss_kernel(trace).correlation(every, every), slices[:m], slices[m:]


def _off_diagonal(r: np.ndarray) -> float:
    """The mean of a square matrix without its diagonal."""
    return float(r[~np.eye(len(r), dtype=bool)].mean())


def _dealt(
    trace: xr.Dataset, passages: list[np.ndarray], permutations: int, seed: int
) -> np.ndarray:
    """The mean R of ``same word`` with first words dealt out anew in each passage."""
    r, first, second = _correlations(trace, passages)
    rng, null = np.random.default_rng(seed), np.zeros(permutations)
    for one, other in zip(first, second, strict=True):
        of_passage = r[other][:, one]
        m = len(of_passage)
        for k in range(permutations):
            null[k] += of_passage[np.arange(m), rng.permutation(m)].mean() / len(passages)
    return null
