"""The long run of chapter 08's real language model, kept small enough to travel.

    python -m probebook.smollm_runs

It chooses the localization by the rule, makes weighted draws and one chain, and writes one
safetensors file under ``results/prerun/``. What it has made lies in the cache, so that it goes on
where it was ended. ``--only`` makes one part, for a second process: weighted draws of some seeds.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

import probelib
from probebook import prerun
from probebook.brown import Brown, load_brown
from probebook.cache import cache_dir
from probebook.language_data import Windows
from probebook.llm_text import ObservedText, brown_ids, observed_text
from probebook.localization_rule import Choice, choose_localization, frequency_loss
from probebook.smollm import LanguageModel, load_language_model
from probelib.data import Samples

__all__ = ["N_BETA", "KeptRun", "Pieces", "agreement", "kept_run", "language_posterior"]

FILE = "08_smollm2.safetensors"
N_BETA = 10.0
GRID = (10**3.5, 1e4, 10**4.5)  # one that keeps too little, the choice, and one more
BATCH = 7  # passages per pass: weights as large as these are read once for all of them


class Pieces:
    """What the tokens of kept passages spell, without the tokenizer.

    Args:
        known: token -> its text.
    """

    def __init__(self, known: dict[int, str]) -> None:
        self._known = known

    def decode(self, ids: list[int]) -> str:
        """The text of some tokens."""
        return "".join(self._known[i] for i in ids)


@dataclass(frozen=True, eq=False)
class KeptRun:
    """What the long run left.

    Attributes:
        trace: weighted draws, a loss per token of all passages; L is that of the Brown passages.
        chain: of Leimkuhler and Matthews's sampler, for the same posterior and passages; None where
            none was kept.
        choice: of the localization, by the rule.
        text: the passages.
        pieces: what their tokens spell.
        seeds: of ``importance_sample``, one a draw: draws of one seed follow each other.
        about: what made it.
    """

    trace: xr.Dataset
    chain: xr.Dataset | None
    choice: Choice
    text: ObservedText
    pieces: Pieces
    seeds: np.ndarray
    about: dict[str, Any]


def language_posterior(
    model: torch.nn.Module, text: ObservedText, localization: float, n_beta: float = N_BETA
) -> probelib.LocalPosterior:
    """Eq. 1 of all weights, with the mean loss of the Brown passages as L."""
    return probelib.LocalPosterior(
        model,
        probelib.sequence_cross_entropy,
        text.brown.data,
        n_beta=n_beta,
        localization=localization,
    )


def kept_run(folder: Path, language: LanguageModel | None = None) -> KeptRun:
    """The long run that the repository has.

    Args:
        folder: ``results/prerun``.
        language: the model, if it is at hand: it must be the one of the run.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or of another model.
    """
    arrays, about = prerun.read(folder / FILE)
    if language is not None and language.source != about["source"]:
        raise ValueError(f"the kept run is of {about['source']}, not of {language.source}")
    n = len(about["titles"])
    document, genre = arrays["document"], arrays["genre"]
    targets = torch.from_numpy(arrays["targets"].astype(np.int64))
    windows = Windows(
        torch.from_numpy(arrays["inputs"].astype(np.int64)),
        targets,
        document,
        genre,
        np.full(n, -1),
        tuple(about["texts"]),
    )
    text = ObservedText(windows, tuple(about["titles"]), np.array(about["kind"]), arrays["pairs"])
    table = pd.DataFrame(arrays["rule"], columns=about["rule"])
    choice = Choice(
        about["config"]["localization"], table, about["frequency_loss"], about["trained_loss"]
    )
    pieces = Pieces({int(k): v for k, v in about["pieces"].items()})
    trace = _weighted(arrays, about)
    chain = _chain(arrays, about) if "chain_loss" in arrays else None
    return KeptRun(trace, chain, choice, text, pieces, arrays["seed"], about)


def _coordinates(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {
        "chain": [0],
        "sample_id": ("sample", np.arange(len(arrays["targets"]))),
        "token": np.arange(arrays["targets"].shape[1]),
        "token_id": (("sample", "token"), arrays["targets"].astype(np.int64)),
    }


def _weighted(arrays: dict[str, np.ndarray], about: dict[str, Any]) -> xr.Dataset:
    by_draw, config = ("chain", "draw"), about["config"]
    log_weight = -config["n_beta"] * arrays["mean_loss"][None]
    return _trace(arrays["loss"], arrays, config, about["seconds"]).assign(
        log_weight=(by_draw, log_weight),
        log_weight_error=(by_draw, np.zeros_like(log_weight)),
        mean_loss=(by_draw, arrays["mean_loss"][None]),
        distance=(by_draw, arrays["distance"][None]),
    )


def _chain(arrays: dict[str, np.ndarray], about: dict[str, Any]) -> xr.Dataset:
    made = _trace(arrays["chain_loss"], arrays, about["chain_config"], about["chain_seconds"])
    steps = {
        name: (("chain", "step"), arrays[f"chain_{name}"][None])
        for name in ("sampling_loss", "gradient_square", "gradient_along", "gradient_repeat")
        if f"chain_{name}" in arrays
    }
    return made.assign(distance=(("chain", "draw"), arrays["chain_distance"][None]), **steps)


def _trace(
    loss: np.ndarray, arrays: dict[str, np.ndarray], config: dict[str, Any], seconds: float
) -> xr.Dataset:
    init = arrays["init_loss"]
    return xr.Dataset(
        {
            "loss": (("chain", "draw", "sample", "token"), loss[None]),
            "init_loss": (("sample", "token"), init),
            "sample_loss": (("chain", "draw", "sample"), np.nanmean(loss[None], -1)),
            "init_sample_loss": ("sample", np.nanmean(init, -1)),
        },
        coords=_coordinates(arrays),
        attrs={
            "config": config, "complete": True, "diverged": {}, "draws_done": len(loss),
            "wall_time": seconds, "token_shape": [int(init.shape[1])],
        },
    )  # fmt: skip


def agreement(kept: xr.Dataset, again: xr.Dataset) -> dict[str, float]:
    """How far draws made again are from the kept ones of the same seed.

    Args:
        kept: the first of them, of the kept run.
        again: from ``importance_sample`` with the seed of the first kept draw.

    Returns:
        ``draws``; ``largest_difference`` of a token's loss, nats; ``largest_relative``, the same
        over 1 + the loss; ``mean_loss_difference``, the largest of L, nats; ``equal``, the share of
        token losses that are equal bit for bit.

    Raises:
        ValueError: they observe other tokens, or more draws are made than were kept.
    """
    draws = again.sizes["draw"]
    if draws > kept.sizes["draw"] or not np.array_equal(kept.token_id, again.token_id):
        raise ValueError("kept and again are not of the same draws and tokens")
    there = kept.loss.values[0, :draws]
    apart = np.abs(again.loss.values[0] - there)
    mean = np.abs(again.mean_loss.values[0] - kept.mean_loss.values[0, :draws])
    return {
        "draws": draws,
        "largest_difference": float(np.nanmax(apart)),
        "largest_relative": float(np.nanmax(apart / (1 + there))),
        "mean_loss_difference": float(mean.max()),
        "equal": float((apart[~np.isnan(apart)] == 0).mean()),
    }


# -- the run -------------------------------------------------------------------------------------


def weighted_draws(
    language: LanguageModel, text: ObservedText, gamma: float, draws: int, seeds: Sequence[int]
) -> list[xr.Dataset]:
    """Weighted draws of some seeds: a loss per token of all passages.

    The posterior is of all passages, so that each is evaluated once. The draws do not know L, and
    that of the Brown passages follows from what is recorded.
    """
    posterior = probelib.LocalPosterior(
        language.model,
        probelib.sequence_cross_entropy,
        text.windows.data,
        n_beta=N_BETA,
        localization=gamma,
    )
    return [
        probelib.importance_sample(
            posterior,
            draws=draws,
            observe_loss=probelib.token_cross_entropy,
            seed=seed,
            cache=cache_dir("smollm2", "draws"),
            observe_batch_size=BATCH,
        )
        for seed in seeds
    ]


def chosen(
    language: LanguageModel, text: ObservedText, corpus: Brown
) -> tuple[Choice, probelib.LocalPosterior]:
    """The rule's choice for the Brown passages, and their posterior there."""
    counts = brown_ids(language.tokenizer, corpus)
    vocabulary = language.model.config.vocab_size
    start = language_posterior(language.model, text, GRID[0])
    choice = choose_localization(
        start,
        frequency_loss(counts, text.brown.targets, vocabulary),
        GRID,
        cache=cache_dir("smollm2", "rule"),
        observe_batch_size=BATCH,
        progress=True,
    )
    return choice, start.at(localization=choice.localization)


def one_chain(posterior: probelib.LocalPosterior, text: ObservedText, draws: int) -> xr.Dataset:
    """A chain with steps of 1/gamma: in a flat direction half is forgotten a step, without bias."""
    return probelib.sample(
        posterior,
        text.windows.data,
        sampler=probelib.LeimkuhlerMatthews(step_size=1 / posterior.localization, batch_size=4),
        observe_loss=probelib.token_cross_entropy,
        chains=1,
        draws=draws,
        burn_in=4,
        thin=2,
        cache=cache_dir("smollm2", "chain"),
        observe_batch_size=BATCH,
    )


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="The long run of chapter 08's language model.")
    parser.add_argument("--draws", type=int, default=20, help="weighted draws of each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(6)))
    parser.add_argument("--chain-draws", type=int, default=10)
    parser.add_argument("--no-chain", action="store_true", help="it takes 9 GB of memory")
    parser.add_argument("--only", choices=["rule", "draws", "chain"])
    parser.add_argument("--localization", type=float, help="with --only draws: the rule's choice")
    parser.add_argument("--into", type=Path, default=Path("results/prerun"))
    asked = parser.parse_args(arguments)
    language, corpus = load_language_model(), load_brown()
    text = observed_text(language.tokenizer, corpus)
    gamma = asked.localization
    if asked.only != "draws" or gamma is None:
        choice, posterior = chosen(language, text, corpus)
        gamma = choice.localization
        print(choice.table.to_string(index=False), f"\nchosen: {gamma:g}", flush=True)
    chain = None
    if asked.only in (None, "chain") and not asked.no_chain:
        chain = one_chain(posterior, text, asked.chain_draws)
        print(probelib.diagnostics(chain), flush=True)
    if asked.only in (None, "draws"):
        traces = weighted_draws(language, text, gamma, asked.draws, asked.seeds)
    if asked.only is None:
        arrays, about = gathered(language, text, choice, traces, chain)
        about |= {"corpus": corpus.source, "command": _command(asked)}
        arrays["seed"] = np.repeat(asked.seeds, asked.draws).astype(np.int32)
        prerun.write(asked.into / FILE, arrays, about)


def _command(asked: argparse.Namespace) -> str:
    seeds = " ".join(map(str, asked.seeds))
    chain = "--no-chain" if asked.no_chain else f"--chain-draws {asked.chain_draws}"
    return f"python -m probebook.smollm_runs --draws {asked.draws} --seeds {seeds} {chain}"


def gathered(
    language: LanguageModel,
    text: ObservedText,
    choice: Choice,
    traces: list[xr.Dataset],
    chain: xr.Dataset | None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and provenance of the kept file, less the seeds and the command."""
    loss = np.concatenate([trace.loss.values[0] for trace in traces])
    brown = np.concatenate([trace.sample_loss.values[0] for trace in traces])[:, text.is_brown]
    windows, n = text.windows, int(text.is_brown.sum())
    config = {
        "n_beta": N_BETA, "localization": choice.localization, "beta": N_BETA / n, "n_samples": n,
        "n_parameters": language.parameters, "sampler": "importance", "chains": 1,
        "draws": len(loss), "loss_samples": n,
    }  # fmt: skip
    arrays = {
        "loss": loss,
        "init_loss": traces[0].init_loss.values,
        "mean_loss": brown.astype(np.float64).mean(1),
        "distance": np.concatenate([trace.distance.values[0] for trace in traces]),
        "inputs": windows.inputs.numpy().astype(np.int32),
        "targets": windows.targets.numpy().astype(np.int32),
        "document": windows.document,
        "genre": windows.genre,
        "pairs": text.pairs,
        "rule": choice.table.to_numpy(),
    }
    every = sorted({*windows.inputs.flatten().tolist(), *windows.targets.flatten().tolist()})
    about = {
        "model": language.name,
        "source": language.source,
        "parameters": language.parameters,
        "titles": list(text.titles),
        "texts": list(windows.texts),
        "kind": text.kind.tolist(),
        "pieces": {i: language.tokenizer.decode([i]) for i in every},
        "rule": list(choice.table.columns),
        "frequency_loss": choice.frequency_loss,
        "trained_loss": choice.trained_loss,
        "config": config,
        "fingerprint": dict(traces[0].attrs["fingerprint"]),
        "observed_data": Samples(windows.data, torch.device("cpu")).fingerprint(),
        "seconds": round(sum(trace.attrs["wall_time"] for trace in traces), 1),
        "versions": dict(traces[0].attrs["versions"]) | _versions(),
        "device": f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)",
    }
    if chain is not None:
        names = ("loss", "distance", "sampling_loss", "gradient_square", "gradient_along",
                 "gradient_repeat")  # fmt: skip
        arrays |= {f"chain_{name}": chain[name].values[0] for name in names if name in chain}
        about |= {
            "chain_config": dict(chain.attrs["config"]),
            "chain_seconds": round(chain.attrs["wall_time"], 1),
        }
    return arrays, about


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("transformers", "gguf", "accelerate")}


if __name__ == "__main__":
    main()
