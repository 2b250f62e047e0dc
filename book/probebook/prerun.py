"""Long runs of chapter 04, kept small enough to travel with the repository.

    python -m probebook.prerun pairs --localization 3e4
    python -m probebook.prerun gradients
    python -m probebook.prerun sgld --localization 1e3 --photographs 250

A run ends in one safetensors file under ``results/prerun/``: half-precision numbers, and in the
file's metadata everything that made them. The chapter draws from these files and computes a part of
them again.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
from probelib.sample_gradients import SampleGradients

FORMAT = 1
N_CHECK = 24  # photographs of a kept run that a chapter computes again

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
    """Gradient pairs of a long run: the kernel of Eq. 1 by each of a few parts of the walks.

    Attributes:
        kernels: of each part, all of the same n photographs. A part's walks are no other's.
        loss: along all walks, part after part, shape (walks, draws, n), nats, half precision.
        log_weight: -n_beta L there, shape (walks, draws).
        init_loss: at w*, shape (n,), nats.
        check: positions of photographs to be computed again, shape (m,).
        check_kernels: of each part, K of these without the data term, shape (m, m), nats squared.
        about: what made them.
    """

    kernels: list[probelib.MatrixKernel]
    loss: np.ndarray
    log_weight: np.ndarray
    init_loss: np.ndarray
    check: np.ndarray
    check_kernels: list[np.ndarray]
    about: dict[str, Any]

    def walks(self, part: int) -> list[int]:
        """The walks of a part, by their number in the run."""
        return list(range(self.about["config"]["chains"]))[part :: len(self.kernels)]


def part_of_pairs(
    found: xr.Dataset, part: int, parts: int, check: np.ndarray
) -> dict[str, np.ndarray]:
    """What is kept of every ``parts``-th walk of gradient pairs, from ``part`` on."""
    walks = slice(part, None, parts)
    with warnings.catch_warnings():  # a few draws bear no error; the parts' spread is the error
        warnings.filterwarnings("ignore", "pairs has", UserWarning)
        kernel = probelib.pair_kernel(found, walks)
    plain = probelib.pair_kernel(found, walks, limit=True)
    return {
        "correlation": upper(kernel.correlation()),
        "variance": kernel.diagonal().values,
        "loss": found.loss.values[walks].astype(np.float16),
        "log_weight": found.log_weight.values[walks],
        "init_loss": found.init_loss.values,
        "check": check,
        "check_kernel": plain.covariance(check, check).astype(np.float32),
    }


def kept_pairs(
    folder: Path, classifier: str, posterior: probelib.LocalPosterior
) -> KeptPairs | None:
    """The gradient pairs that a long run left for this posterior and its samples, or None.

    Args:
        folder: ``results/prerun``.
        classifier: name of the network.
        posterior: whose weights, samples, n_beta and localization must be those of the run.

    Raises:
        ValueError: a file is damaged, or the parts of the run are not all there.
    """
    n, gamma = posterior.n_samples, posterior.localization
    paths = sorted(folder.glob(f"04_pairs_{classifier}_gamma{gamma:g}_n{n}_part*.safetensors"))
    if not paths:
        return None
    own = posterior.fingerprint()
    wanted = {"weights": own["weights"], "observed_data": own["sampling_data"]}
    found = sorted((read(path) for path in paths), key=lambda run: run[1]["part"])
    arrays, first = [arrays for arrays, _ in found], found[0][1]
    if any(first["fingerprint"][k] != v for k, v in wanted.items()):
        return None
    if first["config"]["n_beta"] != posterior.n_beta:
        return None
    if [about["part"] for _, about in found] != list(range(first["parts"])) or any(
        about["fingerprint"] != first["fingerprint"] for _, about in found
    ):
        raise ValueError(
            f"folder {folder.name!r} has {len(found)} parts of gamma {gamma:g} that do not belong "
            f"together; make them again with {__spec__.name}"
        )
    kernels = []
    for part in arrays:
        scale = np.sqrt(np.maximum(part["variance"], 0))
        correlation = whole(part["correlation"], len(scale))
        kernels.append(probelib.MatrixKernel(correlation * scale[:, None] * scale))
    return KeptPairs(
        kernels,
        np.concatenate([part["loss"] for part in arrays]).astype(np.float32),
        np.concatenate([part["log_weight"] for part in arrays]),
        arrays[0]["init_loss"],
        arrays[0]["check"],
        [part["check_kernel"] for part in arrays],
        first,
    )


def gradients_at_rest(
    posterior: probelib.LocalPosterior, batch_size: int = 8, memory: int = 2**31
) -> np.ndarray:
    """Cosines of the per-sample gradients of all weights at w*, shape (n, n).

    One gradient of every sample, some layers at a time so that it fits into ``memory`` bytes.
    :func:`probelib.influence.gradient_gram`, exact and for any model, computes those of a block
    anew for each other block, which for a thousand photographs takes many passes.

    Raises:
        ValueError: a sample has no gradient at w*, so that it has no cosine.
    """
    rows_of = SampleGradients(posterior)
    n = posterior.n_samples
    product = torch.zeros(n, n)
    for group in rows_of.groups(n, memory):
        width = sum(rows_of.sizes[at] for at in group)
        rows = torch.empty(n, width, dtype=rows_of.dtype, device=posterior.device)
        for start in range(0, n, batch_size):
            part = slice(start, min(start + batch_size, n))
            rows_of.write(rows[part], posterior.center, *posterior.data.batch(part), group)
        for layer in rows.split([rows_of.sizes[at] for at in group], dim=1):
            product += (layer @ layer.T).float().cpu()  # by layer: bfloat16 sums stay short
    length = product.diagonal().sqrt()
    if not bool((length > 0).all()):
        bad = int((length <= 0).nonzero()[0, 0])
        raise ValueError(f"posterior has sample {bad}, whose gradient at w* is 0; leave it out")
    return (product / length[:, None] / length).numpy()


def kept_gradients(
    folder: Path, classifier: str, posterior: probelib.LocalPosterior
) -> np.ndarray | None:
    """:func:`gradients_at_rest` of these weights and samples from a long run, or None.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / f"04_gradients_{classifier}_n{posterior.n_samples}.safetensors"
    if not path.is_file():
        return None
    arrays, about = read(path)
    own = posterior.fingerprint()
    if any(about["fingerprint"][key] != own[key] for key in ("weights", "sampling_data")):
        return None
    return whole(arrays["cosine"], posterior.n_samples)


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
    parser.add_argument("kind", choices=["pairs", "gradients", "sgld"])
    parser.add_argument("--classifier", default="inception_v1")
    parser.add_argument("--localization", type=float, default=3e4)
    parser.add_argument("--n-beta", type=float, default=10.0)
    parser.add_argument("--photographs", type=int, default=1000)
    parser.add_argument("--chains", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--parts", type=int, default=4, help="of the walks, each kept for itself")
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--burn-in", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64, help="of SGLD, Table 1's m")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=float, default=3.2e9, help="bytes, see gradient_pairs")
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
    make = {"pairs": _pairs, "gradients": _gradients, "sgld": _sgld}[asked.kind]
    make(asked, partial(_posterior, model, images, labels), about)


def _pairs(
    asked: argparse.Namespace,
    posterior_of: Callable[..., probelib.LocalPosterior],
    about: dict[str, Any],
) -> None:
    settings = {"n_beta": asked.n_beta, "localization": asked.localization}
    found = probelib.gradient_pairs(
        posterior_of(**settings),
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
        "parts": asked.parts,
    }
    n = found.sizes["sample"]
    check = np.random.default_rng(asked.seed + 1).choice(n, min(N_CHECK, n), replace=False)
    name = f"04_pairs_{asked.classifier}_gamma{asked.localization:g}_n{n}"
    for part in range(asked.parts):
        arrays = part_of_pairs(found, part, asked.parts, np.sort(check))
        write(asked.into / f"{name}_part{part}.safetensors", arrays, about | {"part": part})


def _gradients(
    asked: argparse.Namespace,
    posterior_of: Callable[..., probelib.LocalPosterior],
    about: dict[str, Any],
) -> None:
    settings = {"n_beta": asked.n_beta, "localization": asked.localization}
    posterior = posterior_of(**settings)  # the cosines depend on neither
    started = time.perf_counter()
    cosine = gradients_at_rest(posterior, memory=int(asked.memory))
    about |= {
        "fingerprint": posterior.fingerprint(),
        "seconds": round(time.perf_counter() - started, 1),
    }
    name = f"04_gradients_{asked.classifier}_n{posterior.n_samples}"
    write(asked.into / f"{name}.safetensors", {"cosine": upper(cosine)}, about)


def _sgld(
    asked: argparse.Namespace,
    posterior_of: Callable[..., probelib.LocalPosterior],
    about: dict[str, Any],
) -> None:
    setting = long_step(asked.n_beta, asked.localization)
    step_size = setting.pop("step_size")
    trace = probelib.sample(
        posterior_of(**setting),
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
    name = f"04_sgld_{asked.classifier}_gamma{asked.localization:g}"
    write(asked.into / f"{name}.safetensors", arrays, about)


if __name__ == "__main__":
    main()
