"""Long runs of chapter 08 on the small GPT, kept small enough to travel with the repository.

    python -m probebook.gpt_runs canaries --seed 0
    python -m probebook.gpt_runs genres

The first trains the network of a seed and leaves the losses of its canaries at weighted draws; of
seed 0 also the network, so that any machine can compute its draws again. The second leaves the
kernel of its documents. Files go to ``results/prerun/``, with everything that made them.
"""

from __future__ import annotations

import argparse
import platform
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

import probelib
from probebook import prerun
from probebook.brown import load_brown
from probebook.cache import cache_dir, write_atomically
from probebook.gpt import GPTRecipe, TrainedGPT, load_network, serialise, trained_gpt
from probebook.language_data import LanguageData, Windows, read_brown
from probelib.data import Samples

__all__ = [
    "KeptDocuments",
    "canary_trace",
    "document_posterior",
    "kept_canaries",
    "kept_documents",
    "kept_network",
    "some_of_each",
]

N_BETA, LOCALIZATION, LOSS_SAMPLES = 10.0, 1e4, 1000
DOCUMENTS = "08_documents_seed0.safetensors"


# -- canaries ------------------------------------------------------------------------------------


def canary_trace(
    network: TrainedGPT,
    data: LanguageData,
    *,
    n_beta: float,
    localization: float,
    draws: int,
    loss_samples: int,
    seed: int,
) -> xr.Dataset:
    """Weighted draws of Eq. 1 of a small GPT, at which its canaries are observed.

    A sample is a window, its loss the mean over the tokens that count. The attribute ``recipe``
    says how the network was trained.
    """
    posterior = probelib.LocalPosterior(
        network.model,
        probelib.sequence_cross_entropy,
        data.train.data,
        n_beta=n_beta,
        localization=localization,
    )
    trace = probelib.importance_sample(
        posterior,
        draws,
        observe=data.canaries.data,
        loss_samples=min(loss_samples, len(data.train)),
        seed=seed,
        cache=cache_dir("traces"),
    )
    return trace.assign_attrs(recipe=asdict(network.recipe))


def kept_canaries(
    folder: Path, recipe: GPTRecipe, data: LanguageData, n_beta: float, localization: float
) -> dict[int, xr.Dataset]:
    """The kept traces of these canaries by the seed of their network; {} where there are none.

    Args:
        folder: ``results/prerun``.
        recipe: of the networks.
        data: what they were trained on, and the canaries that were observed.
        n_beta, localization: of the posterior that is meant.

    Raises:
        ValueError: a file is damaged.
    """
    wanted = {"observed_data": _content(data.canaries), "sampling_data": _content(data.train)}
    found = {}
    for path in sorted(folder.glob("08_canaries_seed*.nc")):
        trace = probelib.load(path)
        config, made = trace.attrs["config"], trace.attrs["fingerprint"]
        same = (config["n_beta"], config["localization"]) == (n_beta, localization)
        same &= trace.attrs["recipe"] == asdict(recipe)
        if same and all(made[name] == content for name, content in wanted.items()):
            found[int(path.stem.removeprefix("08_canaries_seed"))] = trace
    return found


def kept_network(folder: Path, recipe: GPTRecipe, data: LanguageData) -> TrainedGPT:
    """The network of seed 0 of the long runs: that of this recipe and these windows.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: the file is damaged, or of another recipe or other data.
    """
    path = folder / "08_gpt_seed0.safetensors"
    content = path.read_bytes()
    return load_network(content, recipe, data.train, len(data.tokens), 0, any_torch=True)


def _content(windows: Windows) -> str:
    return Samples(windows.data, torch.device("cpu")).fingerprint()


# -- documents -----------------------------------------------------------------------------------


def some_of_each(windows: Windows, documents: int, per_document: int) -> Windows:
    """As many windows of each document, evenly spread, of documents that are evenly spread.

    Args:
        windows: of documents in their order, equally many of each; canaries are left out.
        documents: how many, at most.
        per_document: windows of each.
    """
    text = np.flatnonzero(windows.document >= 0)
    by_document = text.reshape(len(np.unique(windows.document[text])), -1)
    rows = np.linspace(0, len(by_document) - 1, min(documents, len(by_document))).astype(int)
    columns = np.linspace(0, by_document.shape[1] - 1, per_document).astype(int)
    return windows[by_document[np.ix_(rows, columns)].ravel()]


def document_posterior(
    network: TrainedGPT, windows: Windows, n_beta: float, localization: float
) -> probelib.LocalPosterior:
    """Eq. 1 whose samples are documents: a document's loss is the mean over its windows.

    Args:
        network: a small GPT.
        windows: of :func:`some_of_each`.
        n_beta, localization: of the posterior.
    """
    shape = (len(np.unique(windows.document)), -1, windows.inputs.shape[1])

    def read_each_window(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
        return model(ids.flatten(0, 1)).unflatten(0, ids.shape[:2])

    return probelib.LocalPosterior(
        network.model,
        probelib.sequence_cross_entropy,
        (windows.inputs.reshape(shape), windows.targets.reshape(shape)),
        n_beta=n_beta,
        localization=localization,
        forward=read_each_window,
    )


@dataclass(frozen=True, eq=False)
class KeptDocuments:
    """The kernel of documents from gradient pairs.

    Attributes:
        walks: the kernel under Eq. 1 of each walk.
        about: what made it.
    """

    walks: list[probelib.MatrixKernel]
    about: dict[str, Any]

    @property
    def correlation(self) -> np.ndarray:
        """R of all walks together, (n, n)."""
        return _correlation([walk.covariance() for walk in self.walks])

    def halves(self) -> tuple[np.ndarray, np.ndarray]:
        """R of every other walk, and of the others."""
        covariance = [walk.covariance() for walk in self.walks]
        return _correlation(covariance[::2]), _correlation(covariance[1::2])


def _correlation(covariances: list[np.ndarray]) -> np.ndarray:
    return probelib.MatrixKernel(np.mean(covariances, 0)).correlation()


def kept_documents(
    folder: Path, recipe: GPTRecipe, posterior: probelib.LocalPosterior
) -> KeptDocuments | None:
    """The kept kernel of these documents, or None.

    The weights are not compared: on another machine the same training ends in other ones.

    Args:
        folder: ``results/prerun``.
        recipe: of the network.
        posterior: of :func:`document_posterior`: its documents, n_beta and localization count.

    Raises:
        ValueError: the file is damaged.
    """
    if not (folder / DOCUMENTS).is_file():
        return None
    arrays, about = prerun.read(folder / DOCUMENTS)
    config = about["config"]
    if (
        about["recipe"] != asdict(recipe)
        or about["documents"] != posterior.fingerprint()["sampling_data"]
        or (config["n_beta"], config["localization"]) != (posterior.n_beta, posterior.localization)
    ):  # fmt: skip
        return None
    walks = []
    for row, variance in zip(arrays["correlation"], arrays["variance"], strict=True):
        scale = np.sqrt(np.maximum(variance, 0))
        matrix = prerun.whole(row, len(variance)) * scale[:, None] * scale
        walks.append(probelib.MatrixKernel(matrix))
    return KeptDocuments(walks, about)


def walks_of(found: xr.Dataset) -> list[probelib.MatrixKernel]:
    """The kernel under Eq. 1 of each walk of gradient pairs.

    Warns:
        UserWarning: all walks together have weights that do not bear a kernel. A single one is too
            short to know that, and is not asked.
    """
    probelib.pair_kernel(found)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return [probelib.pair_kernel(found, [walk]) for walk in range(found.sizes["chain"])]


# -- the command line ----------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Long runs of chapter 08 on the small GPT.")
    parser.add_argument("kind", choices=["canaries", "genres"])
    parser.add_argument("--seed", type=int, default=0, help="of the network and of the draws")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--documents", type=int, default=500, help="at most")
    parser.add_argument("--windows", type=int, default=4, help="of each document")
    parser.add_argument("--chains", type=int, default=4, help="walks of gradient pairs")
    parser.add_argument("--pairs", type=int, default=7, help="in each walk")
    parser.add_argument("--into", type=Path, default=Path("results/prerun"))
    asked = parser.parse_args(arguments)
    data, recipe = read_brown(load_brown()), GPTRecipe()
    network = trained_gpt(recipe, data.train, len(data.tokens), seed=asked.seed)
    asked.into.mkdir(parents=True, exist_ok=True)
    if asked.kind == "canaries":
        trace = canary_trace(
            network, data, n_beta=N_BETA, localization=LOCALIZATION, draws=asked.draws,
            loss_samples=LOSS_SAMPLES, seed=asked.seed,
        )  # fmt: skip
        probelib.save(trace, asked.into / f"08_canaries_seed{asked.seed}.nc")
        if asked.seed == 0:
            content = serialise(network, data.train, len(data.tokens))
            write_atomically(asked.into / "08_gpt_seed0.safetensors", content)
        return
    windows = some_of_each(data.train, asked.documents, asked.windows)
    posterior = document_posterior(network, windows, N_BETA, LOCALIZATION)
    found = probelib.gradient_pairs(
        posterior, chains=asked.chains, pairs=asked.pairs, seed=asked.seed,
        cache=cache_dir("pairs"),
    )  # fmt: skip
    walks = walks_of(found)
    arrays = {
        "correlation": np.stack([prerun.upper(walk.correlation()) for walk in walks]),
        "variance": np.stack([walk.diagonal().values for walk in walks]),
    }
    about = {
        "command": {k: str(v) for k, v in vars(asked).items() if k != "into"},
        "recipe": asdict(recipe),
        "documents": posterior.fingerprint()["sampling_data"],
        "config": found.attrs["config"],
        "fingerprint": found.attrs["fingerprint"],
        "seconds": round(found.attrs["wall_time"], 1),
        "torch": torch.__version__,
        "probelib": probelib.__version__,
        "device": f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)",
    }
    prerun.write(asked.into / DOCUMENTS, arrays, about)


if __name__ == "__main__":
    main()
