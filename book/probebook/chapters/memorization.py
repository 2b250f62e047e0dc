"""Chapter 03: accuracies, gains of the two populations, other recipes, and the claims."""

import math

import numpy as np
import torch
import xarray as xr
from scipy.special import stdtrit
from sklearn.manifold import TSNE

import probelib
from probebook.chapter import Chapter, Claim
from probebook.memorization import (
    Detection,
    detection,
    neighbour_auroc,
    principal,
    unfitted,
    unit_traces,
)
from probebook.samplers import estimate_cells, record_text
from probebook.training import TrainedNetwork, evaluate, prepare_pixels
from probelib import Diagnostics, Estimate
from probelib.contract import required
from probelib.estimators import share


def accuracies(
    network: TrainedNetwork, images: torch.Tensor, labels: torch.Tensor, noisy: np.ndarray
) -> tuple[float, float]:
    """Accuracy on the clean and on the mislabeled samples, against the given labels."""
    inputs = prepare_pixels(images, network.recipe)
    correct = evaluate(network.model, inputs, labels)[1].numpy()
    return correct[~noisy].mean(), correct[noisy].mean()


def record_populations(
    chapter: Chapter, gain: np.ndarray, noisy: np.ndarray, trust: Diagnostics
) -> None:
    """Record the median loss gains of both populations, and the diagnostics.

    Means, with their errors, are recorded by :func:`sampler_rows`.

    Args:
        chapter: where to.
        gain: mu, shape (n,), nats.
        noisy: whether the label is wrong, bool, shape (n,).
        trust: of the trace.
    """
    chapter.record(
        gain_median_clean=float(np.median(gain[~noisy])),
        gain_median_noisy=float(np.median(gain[noisy])),
        rhat_max=trust.rhat_max,
        ess_min=trust.ess_min,
        loss_at_center=trust.loss_at_center,
        loss_along_chains=trust.loss_along_chains,
    )


def record_detection(
    chapter: Chapter, gain: Detection, loss: Detection, diagonal: Detection
) -> None:
    """Record how well each score finds the wrong labels."""
    chapter.record(
        auroc_gain=gain.auroc,
        auroc_loss=loss.auroc,
        auroc_kernel_diagonal=diagonal.auroc,
        average_precision_gain=gain.average_precision,
        average_precision_loss=loss.average_precision,
        average_precision_kernel_diagonal=diagonal.average_precision,
    )


def sampler_rows(
    chapter: Chapter, traces: dict[str, tuple[str, xr.Dataset]], noisy: np.ndarray
) -> list[dict[str, str]]:
    """Record what each sampler says of the two populations, and give a line of a table each.

    Every number has its Monte-Carlo error under ``<name>_mcse``, the gains their
    ``<name>_step_bias``, and both stand in words under ``<name>_text``.

    Args:
        chapter: where to.
        traces: ending of the recorded names -> (the sampler in words, its trace); "" for the
            paper's.
        noisy: whether the label is wrong, bool, shape (n,).
    """
    rows = []
    for end, (described, trace) in traces.items():
        gain = probelib.loss_gain(trace).values
        clean, wrong = (_mean_gain(trace.isel(sample=part)) for part in (~noisy, noisy))
        series = [probelib.mean_loss_change(trace.isel(sample=part)) for part in (noisy, ~noisy)]
        auroc = detection(gain, noisy).auroc
        found = {
            f"gain_clean{end}": (clean, ".2f"),
            f"gain_noisy{end}": (wrong, ".2f"),
            f"gain_ratio{end}": (share(*series), ".2f"),
            f"auroc_gain{end}": (
                Estimate(auroc, auroc_error(trace, noisy), math.nan, math.nan), ".3f",
            ),
        }  # fmt: skip
        cells = {}
        for key, (estimate, digits) in found.items():
            estimate_cells(chapter, key, key, estimate)
            record_text(chapter, key, digits)
            cells[key] = chapter.numbers[f"{key}_text"]
        titles = ("gain, clean", "gain, mislabeled", "ratio", "AUROC")
        rows.append(
            {"sampler": described}
            | dict(zip(titles, cells.values(), strict=True))
            | estimate_cells(
                chapter, f"llc{end}", "LLC", probelib.local_learning_coefficient(trace)
            )
        )
    return rows


def _mean_gain(trace: xr.Dataset) -> Estimate:
    """The mean loss gain of a trace's samples, nats: their LLC without its factor n beta."""
    llc, scale = probelib.local_learning_coefficient(trace), 1 / required(trace, "n_beta")
    return Estimate(scale * llc.value, scale * llc.mcse, llc.ess, llc.rhat, scale * llc.step_bias)


def auroc_error(trace: xr.Dataset, noisy: np.ndarray, parts: int = 8) -> float:
    """Monte-Carlo error of the gain's AUROC: a jackknife that leaves out parts of the chains.

    The parts must be long against the autocorrelation time of the losses. Student's t is in it:
    1.96 of it are half of a 95 % interval.

    Args:
        trace: of the draws.
        noisy: whether the label is wrong, bool, shape (n,).
        parts: into how many each chain is cut.

    Returns:
        The error; infinite where there are fewer draws than parts.
    """
    length = trace.sizes["draw"] // parts
    if not length:
        return math.inf
    cut = trace.loss[:, -parts * length :].values.astype(np.float64).mean(0)
    means = cut.reshape(parts, length, -1).mean(1)
    left_out = (means.sum(0) - means) / (parts - 1) - trace.init_loss.values
    found = np.array([detection(gain, noisy).auroc for gain in left_out])
    spread = math.sqrt((parts - 1) / parts * np.square(found - found.mean()).sum())
    return float(stdtrit(parts - 1, 0.975) / 1.96 * spread)


def record_halves(chapter: Chapter, trace: xr.Dataset, noisy: np.ndarray) -> None:
    """Record what each half of the draws says alone, and how few draws bias the AUROC.

    Noise in the gains mixes the two populations. To first order its effect is in proportion to
    the inverse number of draws, so that halves are off by twice as much as the whole.

    Args:
        chapter: where ``auroc_gain`` is recorded.
        trace: of the draws.
        noisy: whether the label is wrong, bool, shape (n,).
    """
    half = trace.sizes["draw"] // 2
    gains = [
        probelib.loss_gain(trace.isel(draw=part)).values
        for part in (slice(None, half), slice(half, None))
    ]
    first, second = (detection(gain, noisy).auroc for gain in gains)
    chapter.record(
        auroc_gain_first_half=first,
        auroc_gain_second_half=second,
        auroc_gain_draws_bias=(first + second) / 2 - chapter.numbers["auroc_gain"],
        gain_halves_correlation=float(np.corrcoef(*gains)[0, 1]),
    )


def record_fit(chapter: Chapter, loss: np.ndarray, gain: np.ndarray, noisy: np.ndarray) -> None:
    """Record whether the gain is reversed, and the score that holds either way.

    Args:
        chapter: where to.
        loss: at w*, shape (n,), nats.
        gain: mu, shape (n,), nats.
        noisy: whether the label is wrong, bool, shape (n,).
    """
    found = unfitted(loss, gain)
    chapter.record(
        unfitted_share=found.share,
        gain_reversed=int(found.reversed),
        gain_reversed_verdict=str(found),
        auroc_loss_along_chains=detection(loss + gain, noisy).auroc,
    )
    if found.share:
        chapter.record(gain_unfitted=found.gain, gain_fitted=found.gain_fitted)


def tsne_maps(
    kernel: probelib.Kernel, rows: np.ndarray, *, n_components: int, seed: int
) -> dict[str, np.ndarray]:
    """t-SNE of the covariance and of the correlation kernel of some samples.

    Args:
        kernel: a loss kernel.
        rows: positions of the samples laid out.
        n_components: principal axes that t-SNE is given.
        seed: of both.

    Returns:
        Coordinates, shape (rows, 2), by a title: covariance first.
    """
    tsne = TSNE(init="pca", random_state=seed, perplexity=30, n_jobs=2)
    given = {
        "covariance kernel K": kernel.features(n_components, rows=rows),
        "correlation kernel R": principal(unit_traces(kernel, rows), n_components),
    }
    return {name: tsne.fit_transform(features) for name, features in given.items()}


def record_separation(
    chapter: Chapter, maps: dict[str, np.ndarray], noisy: np.ndarray, end: str = ""
) -> None:
    """Record how far apart the mislabeled samples are in both maps of :func:`tsne_maps`.

    Args:
        chapter: where to: ``tsne_separation<end>`` and ``tsne_separation_correlation<end>``.
        maps: coordinates, shape (n, 2), of the covariance and of the correlation kernel.
        noisy: whether their labels are wrong, bool, shape (n,).
        end: of the recorded names.
    """
    for name, xy in zip(("", "_correlation"), maps.values(), strict=True):
        chapter.record(**{f"tsne_separation{name}{end}": neighbour_auroc(xy, noisy)})


def nearest_recipe(traces: dict[str, xr.Dataset], noisy: np.ndarray) -> str:
    """The recipe whose ratio of gains is nearest the paper's, 23 / 2.31, in proportion.

    Args:
        traces: of the same samples, by recipe.
        noisy: whether their label is wrong, bool, shape (n,).
    """
    found = {}
    for name, trace in traces.items():
        gain = probelib.loss_gain(trace).values
        ratio = gain[noisy].mean() / gain[~noisy].mean()
        found[name] = abs(math.log(ratio / (23 / 2.31))) if ratio > 0 else math.inf
    return min(found, key=found.__getitem__)


def record_ranges(chapter: Chapter, names: list[str]) -> None:
    """Record lowest and highest gain, ratio and AUROC of what :func:`recipe_row` recorded."""
    for what in ("gain_noisy", "gain_ratio", "auroc_gain", "auroc_loss"):
        values = [chapter.numbers[f"{name.replace('-', '_')}_{what}"] for name in names]
        chapter.record(**{f"{what}_lowest": min(values), f"{what}_highest": max(values)})


def recipe_row(
    chapter: Chapter,
    network: TrainedNetwork,
    trace: xr.Dataset,
    noisy: np.ndarray,
    accuracy: tuple[float, float],
    main: bool,
) -> dict[str, str]:
    """Record one recipe's accuracies, gains and detection, and give a line of a table.

    Args:
        chapter: where to.
        network: trained by the recipe.
        trace: of the observed samples.
        noisy: whether their label is wrong, bool, shape (n,).
        accuracy: on clean and on mislabeled samples.
        main: whether it is the recipe of the main experiment.
    """
    gain = probelib.loss_gain(trace).values
    clean, wrong = gain[~noisy].mean(), gain[noisy].mean()
    numbers = {
        "clean_accuracy": accuracy[0],
        "noisy_accuracy": accuracy[1],
        "gain_clean": clean,
        "gain_noisy": wrong,
        "gain_ratio": wrong / clean,
        "auroc_gain": detection(gain, noisy).auroc,
        "auroc_loss": detection(trace.init_loss.values, noisy).auroc,
    }
    key, recipe = network.recipe.name.replace("-", "_"), network.recipe.describe()
    chapter.record(**{f"{key}_{k}": v for k, v in numbers.items()}, **{f"{key}_recipe": recipe})
    return {
        "recipe": recipe + (" (main)" if main else ""),
        "accuracy, clean / mislabeled": f"{accuracy[0]:.2%} / {accuracy[1]:.2%}",
        "gain, clean / mislabeled": f"{clean:.2f} / {wrong:.1f}",
        "ratio": f"{numbers['gain_ratio']:.1f}",
        "AUROC gain": f"{numbers['auroc_gain']:.3f}",
        "AUROC loss": f"{numbers['auroc_loss']:.3f}",
    }


def claims() -> list[Claim]:
    """What the paper says about memorized samples, and numbers that nothing is held to."""
    spread = (
        "within 25 %: in the published run the ratios of the four recipes differ by as much from "
        "their middle"
    )
    distinct = "0.9 is this book's reading of “distinct”"

    def near(what: str, key: str, paper: float, shown: str, digits: str, why: str) -> Claim:
        low, high = (round(paper * factor, 2) for factor in (0.75, 1.25))
        return Claim(what, key, shown, low, high, digits, why)

    gains = "the same 25 %; the recipes move the gains by much more, and the paper's is not known"
    return [
        Claim(
            "accuracy, clean", "clean_accuracy", "99 %", 0.985, None, ".2%",
            "at least as much, after rounding",
        ),
        Claim(
            "accuracy, mislabeled", "noisy_accuracy", "98 %", 0.975, None, ".2%",
            "the same; set by recipe and epochs, not by the probe",
        ),
        near("mean loss gain, clean (nats)", "gain_clean", 2.31, "2.31", ".2f", gains),
        near("mean loss gain, mislabeled (nats)", "gain_noisy", 23, "23", ".1f", gains),
        near("ratio", "gain_ratio", 23 / 2.31, "about 10", ".1f", spread),
        near(
            "ratio, unbiased sampler", "gain_ratio_unbiased", 23 / 2.31, "about 10", ".1f", spread
        ),
        Claim(
            "AUROC of the loss gain", "auroc_gain", "separates", 0.9, None, ".3f",
            "the paper gives no number; 0.9 is this book's reading of “separates”",
        ),
        Claim("AUROC of the loss gain, unbiased sampler", "auroc_gain_unbiased", digits=".3f"),
        Claim("AUROC of the loss", "auroc_loss", digits=".3f"),
        Claim("AUROC of the kernel's diagonal", "auroc_kernel_diagonal", digits=".3f"),
        Claim(
            "separation in the t-SNE", "tsne_separation", "a distinct cluster", 0.9, None, ".3f",
            f"neighbour AUROC, defined above; {distinct}",
        ),
        Claim(
            "the same, correlation kernel", "tsne_separation_correlation", "a distinct cluster",
            0.9, None, ".3f", "the paper does not say which of the two kernels it shows",
        ),
    ]  # fmt: skip


__all__ = [
    "accuracies",
    "auroc_error",
    "claims",
    "nearest_recipe",
    "recipe_row",
    "record_detection",
    "record_fit",
    "record_halves",
    "record_populations",
    "record_ranges",
    "record_separation",
    "sampler_rows",
    "tsne_maps",
]
