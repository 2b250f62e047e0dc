"""Do samplers agree on the small GPT of chapter 08 (chapter 09)?

    python -m probebook.gpt_agreement

Its reference is independent of every step size: the weighted draws of chapter 08, which are draws
of Eq. 1 itself. Runs of several samplers at several steps are held against them. The rows go to
``results/prerun/09_gpt.json``, from where the chapter reads them.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import probelib
from probebook import gpt_runs
from probebook.brown import load_brown
from probebook.cache import cache_dir, write_atomically
from probebook.gpt import GPTRecipe
from probebook.language_data import LanguageData, TextPlan, read_brown
from probebook.sampler_agreement import agreement, halves
from probebook.sampler_benchmark import SAMPLERS

__all__ = ["COMPARED", "FILE", "STEPS", "kept_agreement", "measure"]

FORMAT = 1  # of the kept run
FILE = "09_gpt.json"
COMPARED = ("SGLD", "Leimkuhler-Matthews", "BAOAB", "RMSprop-SGLD")
STEPS = (0.1, 0.5, 2.0)  # epsilon gamma
_PRERUN = Path(__file__).resolve().parents[2] / "results" / "prerun"
_OBSERVED, _DRAWS = 200, 100  # windows, and weighted draws of the reference
_RUN = {"chains": 4, "draws": 16, "burn_in": 40, "thin": 4}
_BATCH = 16


def measure(data: LanguageData, prerun: Path, *, seed: int = 0) -> dict[str, Any]:
    """The rows, how well two halves of the reference agree, and the reference's LLC.

    Args:
        data: of chapter 08.
        prerun: folder of kept runs, where the network is.
        seed: of the windows, the draws and the chains.
    """
    network = gpt_runs.kept_network(prerun, GPTRecipe(), data)
    gamma = gpt_runs.LOCALIZATION
    posterior = probelib.LocalPosterior(
        network.model,
        probelib.sequence_cross_entropy,
        data.train.data,
        n_beta=gpt_runs.N_BETA,
        localization=gamma,
    )
    part = np.random.default_rng(seed).choice(len(data.train), _OBSERVED, replace=False)
    observed = data.train[np.sort(part)].data
    reference = probelib.importance_sample(
        posterior,
        _DRAWS,
        observe=observed,
        loss_samples=gpt_runs.LOSS_SAMPLES,
        seed=seed,
        cache=cache_dir("traces"),
    )
    rows = agreement(
        posterior,
        observed,
        reference,
        {name: SAMPLERS[name] for name in COMPARED},
        [step / gamma for step in STEPS],
        batch_size=_BATCH,
        progress=True,
        seed=seed + 1,
        **_RUN,
    )
    llc = probelib.local_learning_coefficient(reference)
    about = {"weights": posterior.n_parameters, "n_beta": posterior.n_beta, "localization": gamma}
    about |= {"llc": llc.value, "mcse": llc.mcse, "khat": probelib.khat(reference)}
    return {"about": about, "ceiling": halves(reference), "rows": rows.to_dict("records")}


def kept_agreement(folder: Path, seed: int = 0) -> dict[str, Any] | None:
    """What the command left, ``rows`` as a table; None where it is not there, or of another seed.

    Args:
        folder: ``results/prerun``.
        seed: of the runs.

    Raises:
        ValueError: the file is damaged, or of another format.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        rows, form = pd.DataFrame(kept["rows"]), kept["about"]["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"path {path.name!r} is no kept run of this project ({error})") from error
    if form != FORMAT:
        raise ValueError(f"path {path.name!r} has format {form}, not {FORMAT}")
    if kept["about"]["seed"] != seed:
        return None
    # JSON knows no infinity: an error that is not there is that of a run that diverged.
    endless = {name: rows[name].astype(float).fillna(math.inf) for name in ("error", "spearman_se")}
    return kept | {"rows": rows.assign(**endless)}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--into", type=Path, default=_PRERUN)
    asked = parser.parse_args(arguments)
    found = measure(read_brown(load_brown(), TextPlan()), _PRERUN, seed=asked.seed)
    found["about"] |= {
        "format": FORMAT,
        "seed": asked.seed,
        "settings": _RUN | {"batch_size": _BATCH, "observed": _OBSERVED, "reference": _DRAWS},
        "recipe": asdict(GPTRecipe()),
        "probelib": probelib.__version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    found["rows"] = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in found["rows"]
    ]
    text = json.dumps(found, indent=1, allow_nan=False) + "\n"
    write_atomically(asked.into / FILE, text.encode())
    print(text)


if __name__ == "__main__":
    main()
