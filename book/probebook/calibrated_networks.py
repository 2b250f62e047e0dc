"""Networks of many kinds, calibrated and held against longer runs (chapter 09).

    python -m probebook.calibrated_networks

Each network is trained, its settings are found by ``probelib.calibrate``, and the run at these
settings is compared with a reference: a quarter of the step, ten times as many steps. Every
network is cached as soon as it is done. The command leaves all of them in
``results/prerun/09_calibrated.json``, from where the chapter reads them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn import datasets
from torch import Tensor, nn
from tqdm import tqdm

import probelib
from probebook.cache import cache_dir, write_atomically
from probelib import LocalPosterior, cross_entropy, sequence_cross_entropy, squared_error

__all__ = ["NETWORKS", "Case", "fitted", "kept_calibrations", "measure", "summary"]

FORMAT = 1  # of cached rows and of the kept run
WITHIN = 0.05  # of the LLC, which a calibrated run may differ from its reference
_SHORTER, _LONGER = 4, 10  # the reference's step and steps
_PRERUN = Path(__file__).resolve().parents[2] / "results" / "prerun"


@dataclass(frozen=True)
class Case:
    """A network to be calibrated.

    Attributes:
        kind: of data: "tabular", "image", "text" or "toy".
        make: gives (model, per-sample loss, (inputs, targets)), trained.
        n_beta: of the posterior; None for n / log n.
        settings: further ones of :class:`probelib.LocalPosterior`, such as a localization.
        sound: whether there is something to be probed; else it must be refused.
        error: of the LLC, that calibrate aims at, where no other is asked for. A network whose
            losses take long to observe gets a larger one.
    """

    kind: str
    make: Callable[[], tuple[nn.Module, Any, tuple[Tensor, Tensor]]]
    n_beta: float | None = 10.0
    settings: dict[str, Any] = field(default_factory=dict)
    sound: bool = True
    error: float = 0.01

    def posterior(self) -> LocalPosterior:
        """Trained, with the localization that the settings give, or none."""
        model, loss, data = self.make()
        n = len(data[1])
        n_beta = n / math.log(n) if self.n_beta is None else self.n_beta
        return LocalPosterior(model, loss, data, n_beta=n_beta, **self.settings)


# -- training ------------------------------------------------------------------------------------


def _trained(
    model: nn.Module,
    loss: Any,
    data: tuple[Tensor, Tensor],
    epochs: int,
    rate: float = 1e-2,
    batch: int = 64,
) -> tuple[nn.Module, Any, tuple[Tensor, Tensor]]:
    """By Adam, its rate falling to 0 on a cosine."""
    x, y = data
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    steps = epochs * math.ceil(len(y) / batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    for _ in range(epochs):
        for part in torch.randperm(len(y), generator=generator).split(batch):
            optimizer.zero_grad()
            loss(model(x[part]), y[part]).mean().backward()
            optimizer.step()
            schedule.step()
    return model.eval(), loss, data


def fitted(
    model: nn.Module, loss: Any, data: tuple[Tensor, Tensor], steps: int = 300
) -> tuple[nn.Module, Any, tuple[Tensor, Tensor]]:
    """A model that L-BFGS has taken to its minimum, the loss and the data.

    Args:
        model: is trained in place.
        loss: per sample.
        data: inputs and targets.
        steps: at most.
    """
    x, y = data
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=steps, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        found = loss(model(x), y).mean()
        found.backward()
        return found

    optimizer.step(closure)
    return model, loss, data


def _layers(*sizes: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), act()]
    return nn.Sequential(*layers[:-1])


# -- data ----------------------------------------------------------------------------------------


def _standard(values: np.ndarray) -> Tensor:
    values = np.asarray(values, np.float64)
    return torch.from_numpy((values - values.mean(0)) / values.std(0)).float()


def _table(name: str) -> tuple[Tensor, Tensor]:
    """A table that scikit-learn ships: standardised columns, and classes or a number."""
    found = getattr(datasets, f"load_{name}")()
    if name == "diabetes":
        return _standard(found.data), _standard(found.target[:, None])
    return _standard(found.data), torch.from_numpy(found.target).long()


def _digits(shape: tuple[int, ...] = (64,)) -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 digits of 8 x 8 pixels."""
    found = datasets.load_digits()
    return torch.from_numpy(found.data / 16).float().reshape(-1, *shape), torch.from_numpy(
        found.target
    ).long()


def _noisy_digits() -> tuple[Tensor, Tensor]:
    """A tenth of the labels drawn at random."""
    x, y = _digits()
    rng = np.random.default_rng(0)
    wrong = rng.choice(len(y), len(y) // 10, replace=False)
    y[wrong] = torch.from_numpy(rng.integers(0, 10, len(wrong)))
    return x, y


def _zen() -> tuple[Tensor, Tensor, int]:
    """Windows of 24 characters of the Zen of Python, and the character after each."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()):
        import this
    text = "".join(this.d.get(c, c) for c in this.s)
    alphabet = sorted(set(text))
    ids = torch.tensor([alphabet.index(c) for c in text])
    windows = ids.unfold(0, 25, 3)
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous(), len(alphabet)


# -- networks ------------------------------------------------------------------------------------


class _Recurrent(nn.Module):
    """Reads a digit row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.GRU(8, 24, batch_first=True)
        self.out = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rows(x)[0][:, -1])


class _Transformer(nn.Module):
    """One block, causal, characters in and out."""

    def __init__(self, alphabet: int, length: int = 24, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(alphabet, width)
        self.place = nn.Parameter(0.1 * torch.randn(length, width))
        self.block = nn.TransformerEncoderLayer(width, 2, 64, dropout=0.0, batch_first=True)
        self.out = nn.Linear(width, alphabet)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.out(self.block(self.embed(x) + self.place, src_mask=mask))


class _Addition(nn.Module):
    """Adds two numbers modulo 13."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(13, 16)
        self.layers = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 13))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.embed(x).flatten(1))


def _regression() -> Any:
    rng = torch.Generator().manual_seed(0)
    x, w = torch.randn(200, 8, generator=rng), torch.randn(8, 1, generator=rng)
    y = x @ w + torch.randn(200, 1, generator=rng)
    return fitted(_layers(8, 1), squared_error, (x, y))


def _deep_linear() -> Any:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(500, 10, generator=rng)
    true = torch.randn(10, 3, generator=rng) @ torch.randn(3, 8, generator=rng) / 3
    y = x @ true + 0.5 * torch.randn(500, 8, generator=rng)
    return _trained(_layers(10, 6, 6, 8, act=nn.Identity), squared_error, (x, y), 300, 5e-3)


def _convolutions() -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    return _trained(model, cross_entropy, _digits((1, 8, 8)), 20)


def _normalised() -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
    return _trained(model, cross_entropy, _digits(), 30)


def _recurrent() -> Any:
    torch.manual_seed(0)
    return _trained(_Recurrent(), cross_entropy, _digits((8, 8)), 25)


def _transformer() -> Any:
    x, y, alphabet = _zen()
    torch.manual_seed(0)
    return _trained(_Transformer(alphabet), sequence_cross_entropy, (x, y), 80, 3e-3, 32)


def _addition() -> Any:
    pairs = torch.cartesian_prod(torch.arange(13), torch.arange(13))
    torch.manual_seed(0)
    return _trained(_Addition(), cross_entropy, (pairs, pairs.sum(1) % 13), 300, batch=169)


def _digits_network(epochs: int = 30, rate: float = 1e-2) -> Any:
    return _trained(_layers(64, 64, 10), cross_entropy, _digits(), epochs, rate)


def _tabular(name: str, *sizes: int, act: type[nn.Module], epochs: int) -> Any:
    loss = squared_error if name == "diabetes" else cross_entropy
    return _trained(_layers(*sizes, act=act), loss, _table(name), epochs)


#: By name.
NETWORKS: dict[str, Case] = {
    "linear regression": Case("toy", _regression, None),
    "deep linear network": Case("toy", _deep_linear, None),
    "modular addition": Case("toy", _addition),
    "diabetes, linear": Case(
        "tabular", lambda: fitted(_layers(10, 1), squared_error, _table("diabetes")), 442.0
    ),
    "diabetes, two layers": Case(
        "tabular", lambda: _tabular("diabetes", 10, 16, 1, act=nn.Tanh, epochs=300), None
    ),
    "iris, logistic": Case("tabular", lambda: fitted(_layers(4, 3), cross_entropy, _table("iris"))),
    "wine, two layers": Case(
        "tabular", lambda: _tabular("wine", 13, 16, 3, act=nn.Tanh, epochs=100), None
    ),
    "cancer, two layers": Case(
        "tabular", lambda: _tabular("breast_cancer", 30, 32, 2, act=nn.ReLU, epochs=60)
    ),
    "digits, two layers": Case("image", _digits_network),
    "digits, n beta n / log n": Case("image", _digits_network, None),
    "digits, localization 10": Case("image", _digits_network, 10.0, {"localization": 10.0}),
    "digits, last layer": Case("image", _digits_network, 100.0, {"parameters": "2.*"}),
    "digits, wrong labels": Case(
        "image", lambda: _trained(_layers(64, 128, 10), cross_entropy, _noisy_digits(), 80)
    ),
    "digits, convolutions": Case("image", _convolutions, error=0.02),
    "digits, batch norm": Case("image", _normalised, 30.0),
    "digits, recurrent": Case("image", _recurrent, error=0.02),
    "text, transformer": Case("text", _transformer, error=0.02),
    "digits, untrained": Case("image", lambda: _digits_network(0), sound=False),
    "digits, one epoch": Case("image", lambda: _digits_network(1, 1e-3), 300.0, sound=False),
}


# -- what is measured ----------------------------------------------------------------------------


def measure(name: str, *, error: float | None = None, seed: int = 0) -> dict[str, Any]:
    """What calibrate says of a network, the run at its settings, and the reference: cached.

    Args:
        name: of :data:`NETWORKS`.
        error: of the LLC, for :func:`probelib.calibrate`; default: the network's own.
        seed: of calibration and run; the reference has the next.

    Returns:
        A row: ``network``, ``kind``, ``weights``, ``samples``, ``n_beta``, ``localization``;
        ``refused``, the reason or ""; ``seconds`` of the calibration; the settings; ``llc``,
        ``mcse``, ``step_bias`` and ``verdict`` of the run; ``reference`` and ``reference_mcse``;
        ``off``, the difference as a part of the reference. NaN where there is no run.
    """
    error = NETWORKS[name].error if error is None else error
    key = {"name": name, "error": error, "seed": seed, "format": FORMAT}
    hashed = hashlib.sha256(json.dumps([key, _code()], sort_keys=True).encode()).hexdigest()[:16]
    path = cache_dir("calibrated") / f"{hashed}.json"
    if path.is_file():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    row = _measured(name, error, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(row).encode())
    return row


def _measured(name: str, error: float, seed: int) -> dict[str, Any]:
    case = NETWORKS[name]
    posterior = case.posterior()
    row: dict[str, Any] = {
        "network": name, "kind": case.kind, "sound": case.sound, "refused": "",
        "weights": posterior.n_parameters, "samples": posterior.n_samples,
        "n_beta": posterior.n_beta,
    }  # fmt: skip
    started = time.perf_counter()
    try:
        found = probelib.calibrate(posterior, error=error, seed=seed)
    except probelib.CalibrationRefused as refused:
        return row | {"refused": str(refused), "seconds": time.perf_counter() - started}
    settings, sampler = found.settings, found.sampler
    del settings["sampler"]
    run = _run(found.posterior, sampler, settings, seed)
    slow = probelib.LeimkuhlerMatthews(sampler.step_size / _SHORTER, sampler.batch_size)
    longer = settings | {
        "burn_in": _SHORTER * settings["burn_in"],
        "thin": _SHORTER * settings["thin"],
        "draws": math.ceil(settings["draws"] * _LONGER / _SHORTER),
    }
    reference = _run(found.posterior, slow, longer, seed + 1)
    return row | {
        "seconds": found.seconds,
        "localization": found.posterior.localization,
        "sampler": type(sampler).__name__,
        "step_size": sampler.step_size,
        "batch_size": sampler.batch_size,
        **{k: settings[k] for k in ("burn_in", "thin", "draws")},
        **run,
        "reference": reference["llc"],
        "reference_mcse": reference["mcse"],
        "reference_verdict": reference["verdict"],
        "off": (run["llc"] - reference["llc"]) / reference["llc"],
    }


def _run(
    posterior: LocalPosterior, sampler: probelib.Sampler, settings: dict[str, Any], seed: int
) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        trace = probelib.sample(posterior, sampler=sampler, seed=seed, progress=False, **settings)
    llc, found = probelib.local_learning_coefficient(trace), probelib.diagnostics(trace)
    return {
        "llc": llc.value,
        "mcse": llc.mcse,
        "step_bias": llc.step_bias,
        "verdict": "good" if found.good else "wrong" if found.wrong else "wide",
        "run_seconds": trace.attrs["wall_time"],
    }


def _code() -> str:
    """What a cached row depends on beside its key."""
    own = Path(__file__).read_bytes()
    folder = Path(probelib.__file__).parent
    parts = sorted([*folder.glob("calibration/*.py"), *folder.glob("samplers/*.py")])
    return hashlib.sha256(own + b"".join(part.read_bytes() for part in parts)).hexdigest()


def summary(rows: pd.DataFrame) -> dict[str, Any]:
    """How often calibrate was right: counts, by name.

    "calibrated_wrong" counts runs that the library approves and that are off by more than 5 %,
    and networks in which there is nothing to be probed that were not refused.
    """
    runs, refused = rows[rows.refused == ""], rows[rows.refused != ""]
    close = runs.off.abs() <= WITHIN
    approved = runs.verdict == "good"
    return {
        "calibrated_networks": len(rows),
        "calibrated_within_5pct": int((close & runs.sound).sum()),
        "calibrated_refused": len(refused),
        "calibrated_refused_sound": int(refused.sound.sum()),
        "calibrated_warned": int((~close & ~approved).sum()),
        "calibrated_wrong": int(((~close & approved) | (~runs.sound & approved)).sum()),
        "calibrated_seconds_median": float(rows.seconds.median()),
        "calibrated_off_largest": float(runs.off.abs().max()) if len(runs) else math.nan,
    }


# -- the kept run --------------------------------------------------------------------------------


def kept_calibrations(folder: Path, names: Sequence[str], seed: int = 0) -> pd.DataFrame | None:
    """The rows that the command left, if it is about these networks and this seed.

    Args:
        folder: ``results/prerun``.
        names: of the networks.
        seed: of the runs.

    Raises:
        ValueError: the file is damaged, or of another format.
    """
    path = folder / "09_calibrated.json"
    if not path.is_file():
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        rows, about = pd.DataFrame(kept["rows"]), kept["about"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"path {path.name!r} is no kept run of this project ({error})") from error
    if about["format"] != FORMAT:
        raise ValueError(f"path {path.name!r} has format {about['format']}, not {FORMAT}")
    if about["seed"] != seed or not set(names) <= set(rows.network):
        return None
    return rows[rows.network.isin(names)].reset_index(drop=True)


def main(arguments: list[str] | None = None) -> None:
    """Measure all networks and leave the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--into", type=Path, default=_PRERUN)
    given = parser.parse_args(arguments)
    rows = []
    for name in tqdm(given.only):
        rows.append(measure(name, seed=given.seed))
        tqdm.write(json.dumps(rows[-1]))
    about = {
        "format": FORMAT,
        "seed": given.seed,
        "probelib": probelib.__version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "command": "python -m probebook.calibrated_networks",
    }
    text = json.dumps({"about": about, "rows": rows}, indent=1)
    write_atomically(given.into / "09_calibrated.json", text.encode())


if __name__ == "__main__":
    main()
