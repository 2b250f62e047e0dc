"""Long runs of chapter 04, kept small enough to travel with the repository.

    python -m probebook.prerun pairs --localization 1e4
    python -m probebook.prerun sgld --localization 1e3 --photographs 250

A run ends in one safetensors file under ``results/prerun/``: half-precision numbers, and in the
file's metadata everything that made them. The chapter draws from these files and computes a part of
them again.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from safetensors import safe_open
from safetensors.numpy import save

import probelib
from probebook.cache import cache_dir, write_atomically
from probebook.classifiers import load_classifier
from probebook.imagenet import choose, decode, find_images
from probelib.data import Samples

FORMAT = 1

# A discretised chain of step eps in a direction of precision A has the variance
# 1 / (A (1 - eps A / 4)). At eps A = 1 this is 4/3 too much; a potential 4/3 as steep makes up for
# it wherever the localization dominates, and leaves a memory of one half from step to step.
STEEPER = 4 / 3


def long_step(n_beta: float, localization: float) -> dict[str, float]:
    """Settings of a chain with long steps and the stationary law of Eq. 1 in flat directions.

    Args:
        n_beta, localization: those of the posterior that is meant.

    Returns:
        ``n_beta`` and ``localization`` to give to :class:`probelib.LocalPosterior`, ``step_size``
        to give to :class:`probelib.SGLD`. Exact where nb H, and nb² times the variance of a
        minibatch's gradient, are small beside gamma; where nb H is as large as gamma, the variance
        is 3/2 of the truth, and beyond 3 gamma the chain diverges.
    """
    steep = STEEPER * localization
    return {"n_beta": STEEPER * n_beta, "localization": steep, "step_size": 1 / steep}


def upper(matrix: np.ndarray) -> np.ndarray:
    """The part of a symmetric matrix above its diagonal, as one float16 row."""
    return matrix[np.triu_indices(len(matrix), 1)].astype(np.float16)


def whole(row: np.ndarray, n: int) -> np.ndarray:
    """The inverse of :func:`upper`, with ones on the diagonal: shape (n, n), float32."""
    matrix = np.eye(n, dtype=np.float32)
    matrix[np.triu_indices(n, 1)] = row
    return matrix + matrix.T - np.eye(n, dtype=np.float32)


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and provenance of a long run.

    Raises:
        FileNotFoundError: there is none at ``path``.
        ValueError: the file is of another format or damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"path {path.name!r} is no file; make it with {__spec__.name}")
    try:
        with safe_open(path, framework="np") as file:
            about = json.loads(file.metadata()["about"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # whatever is wrong with a file
        raise ValueError(f"path {path.name!r} is no long run of this project ({error})") from error
    if about.get("format") != FORMAT:
        raise ValueError(
            f"path {path.name!r} has format {about.get('format')}, not {FORMAT}; make it again"
        )
    return arrays, about


def write(path: Path, arrays: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    """Store a long run whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"format": FORMAT, **about}
    # As they lie in memory is how safetensors writes them, whatever their strides say.
    rows = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    write_atomically(path, save(rows, metadata={"about": json.dumps(about)}))


def as_trace(arrays: dict[str, np.ndarray], about: dict[str, Any]) -> xr.Dataset:
    """A kept run of SGLD as a trace, for every estimator."""
    return xr.Dataset(
        {
            "loss": (("chain", "draw", "sample"), arrays["loss"].astype(np.float32)),
            "init_loss": ("sample", arrays["init_loss"]),
            "distance": (("chain", "draw"), arrays["distance"]),
            "sampling_loss": (("chain", "step"), arrays["sampling_loss"]),
        },
        coords={"sample_id": ("sample", np.arange(len(arrays["init_loss"])))},
        attrs={"config": about["config"]},
    )


@dataclass(frozen=True, eq=False)
class KeptPairs:
    """Gradient pairs of a long run.

    Attributes:
        kernels: the kernel of each chain, all of the same n photographs.
        loss: along the walks, shape (chains, pairs + 1, n), nats, half precision.
        init_loss: at w*, shape (n,), nats.
        about: what made them.
    """

    kernels: list[probelib.MatrixKernel]
    loss: np.ndarray
    init_loss: np.ndarray
    about: dict[str, Any]


def kept_pairs(
    folder: Path, classifier: str, posterior: probelib.LocalPosterior
) -> KeptPairs | None:
    """The gradient pairs that a long run left for this posterior and its samples, or None.

    Args:
        folder: ``results/prerun``.
        classifier: name of the network.
        posterior: whose weights, samples and localization must be those of the run.

    Raises:
        ValueError: a file is damaged, or the walks of the run are not all there.
    """
    n, gamma = posterior.n_samples, posterior.localization
    paths = sorted(folder.glob(f"04_pairs_{classifier}_gamma{gamma:g}_n{n}_chain*.safetensors"))
    if not paths:
        return None
    own = posterior.fingerprint()
    wanted = {"weights": own["weights"], "observed_data": own["sampling_data"]}
    found = sorted((read(path) for path in paths), key=lambda run: run[1]["chain"])
    first = found[0][1]
    if any(first["fingerprint"][k] != v for k, v in wanted.items()):
        return None
    if [about["chain"] for _, about in found] != list(range(first["config"]["chains"])) or any(
        about["fingerprint"] != first["fingerprint"] for _, about in found
    ):
        raise ValueError(
            f"folder {folder.name!r} has {len(found)} walks of gamma {gamma:g} that do not belong "
            f"together; make them again with {__spec__.name}"
        )
    kernels = []
    for arrays, _ in found:
        scale = np.sqrt(np.maximum(arrays["variance"], 0))
        correlation = whole(arrays["correlation"], len(scale))
        kernels.append(probelib.MatrixKernel(correlation * scale[:, None] * scale))
    return KeptPairs(
        kernels,
        np.stack([arrays["loss"] for arrays, _ in found]).astype(np.float32),
        found[0][0]["init_loss"],
        first,
    )


def kept_trace(
    folder: Path,
    classifier: str,
    posterior: probelib.LocalPosterior,
    available: list[str],
) -> tuple[xr.Dataset, np.ndarray, dict[str, Any]] | None:
    """The SGLD trace that a long run left for this posterior, or None.

    Args:
        folder: ``results/prerun``.
        classifier: name of the network.
        posterior: the one that is meant: its weights, n_beta and localization must be the run's,
            and the run's photographs among its samples.
        available: file names of its samples.

    Returns:
        The trace, the positions of its photographs in ``available``, and what made it; or None.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / f"04_sgld_{classifier}_gamma{posterior.localization:g}.safetensors"
    if not path.is_file():
        return None
    arrays, about = read(path)
    position = {name: at for at, name in enumerate(available)}
    if len(position) < len(available) or not set(about["names"]) <= position.keys():
        return None
    at = np.array([position[name] for name in about["names"]])
    seen = Samples(posterior.data.batch(at), posterior.device)
    fits = (
        about["fingerprint"]["weights"] == posterior.fingerprint()["weights"]
        and about["fingerprint"]["observed_data"] == seen.fingerprint()
        and about["meant"] == {"n_beta": posterior.n_beta, "localization": posterior.localization}
    )
    return (as_trace(arrays, about), at, about) if fits else None


def _posterior(
    model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, **settings: float
) -> probelib.LocalPosterior:
    return probelib.LocalPosterior(model, probelib.cross_entropy, (images, labels), **settings)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Long runs of chapter 04.")
    parser.add_argument("kind", choices=["pairs", "sgld"])
    parser.add_argument("--classifier", default="inception_v1")
    parser.add_argument("--localization", type=float, required=True)
    parser.add_argument("--n-beta", type=float, default=10.0)
    parser.add_argument("--photographs", type=int, default=1000)
    parser.add_argument("--chains", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--burn-in", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64, help="of SGLD, Table 1's m")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=float, default=4.8e9, help="bytes, see gradient_pairs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--into", type=Path, default=Path("results/prerun"))
    asked = parser.parse_args(arguments)
    classifier = load_classifier(asked.classifier)
    files = choose(find_images(), asked.photographs, seed=asked.seed)
    decoded = decode(files, classifier.size)
    files = files.subset(decoded.kept)
    model = classifier.network.to(asked.device)
    images = torch.from_numpy(np.array(decoded.images)).to(asked.device)
    labels = torch.from_numpy(decoded.labels).to(asked.device)
    about: dict[str, Any] = {
        "command": {k: str(v) for k, v in vars(asked).items() if k not in ("into", "memory")},
        "images": files.fingerprint,
        "names": [path.name for path in files.paths],
        "source": files.source,
        "weights": classifier.source,
        "torch": torch.__version__,
        "probelib": probelib.__version__,
        "device": torch.cuda.get_device_name(0)
        if asked.device.startswith("cuda")
        else f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)",
    }
    name = f"04_{asked.kind}_{asked.classifier}_gamma{asked.localization:g}"
    if asked.kind == "pairs":
        posterior = _posterior(
            model, images, labels, n_beta=asked.n_beta, localization=asked.localization
        )
        found = probelib.gradient_pairs(
            posterior,
            chains=asked.chains,
            pairs=asked.pairs,
            seed=asked.seed,
            batch_size=8,
            memory=int(asked.memory),
            cache=cache_dir("pairs"),
        )
        about |= {
            "config": found.attrs["config"],
            "fingerprint": found.attrs["fingerprint"],
            "seconds": round(found.attrs["wall_time"], 1),
        }
        for chain in range(asked.chains):
            kernel = probelib.pair_kernel(found, slice(chain, chain + 1), limit=True)
            arrays = {
                "correlation": upper(kernel.correlation()),
                "variance": kernel.diagonal().values,
                "loss": found.loss.values[chain].astype(np.float16),
                "init_loss": found.init_loss.values,
            }
            write(asked.into / f"{name}_chain{chain}.safetensors", arrays, about | {"chain": chain})
        return
    setting = long_step(asked.n_beta, asked.localization)
    step_size = setting.pop("step_size")
    posterior = _posterior(model, images, labels, **setting)
    trace = probelib.sample(
        posterior,
        sampler=probelib.SGLD(step_size=step_size, batch_size=asked.batch_size),
        chains=asked.chains,
        draws=asked.draws,
        burn_in=asked.burn_in,
        seed=asked.seed,
        observe_dtype="bfloat16",
        observe_batch_size=10 if asked.device == "cpu" else None,
        cache=cache_dir("traces"),
    )
    about |= {
        "config": trace.attrs["config"],
        "meant": {"n_beta": asked.n_beta, "localization": asked.localization},
        "fingerprint": trace.attrs["fingerprint"],
        "seconds": round(trace.attrs["wall_time"], 1),
    }
    arrays = {
        "loss": trace.loss.values.astype(np.float16),
        "init_loss": trace.init_loss.values,
        "distance": trace.distance.values,
        "sampling_loss": trace.sampling_loss.values,
    }
    write(asked.into / f"{name}.safetensors", arrays, about)


if __name__ == "__main__":
    main()
