"""Chapter 03: accuracies, gains of the two populations, other recipes, and the claims."""

import math

import numpy as np
import torch
import xarray as xr
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
from probebook.samplers import estimate_cells
from probebook.training import TrainedNetwork, evaluate, prepare_pixels
from probelib import Diagnostics, Estimate


def accuracies(
    network: TrainedNetwork, images: torch.Tensor, labels: torch.Tensor, noisy: np.ndarray
) -> tuple[float, float]:
    """Accuracy on the clean and on the mislabeled samples, against the given labels."""
    inputs = prepare_pixels(images, network.recipe)
    correct = evaluate(network.model, inputs, labels)[1].numpy()
    return correct[~noisy].mean(), correct[noisy].mean()


def record_populations(
    chapter: Chapter, gain: np.ndarray, noisy: np.ndarray, llc: Estimate, trust: Diagnostics
) -> None:
    """Record the loss gains of clean and mislabeled samples, the LLC, and the diagnostics.

    Args:
        chapter: where to.
        gain: mu, shape (n,), nats.
        noisy: whether the label is wrong, bool, shape (n,).
        llc, trust: of the trace.
    """
    clean, wrong = gain[~noisy], gain[noisy]
    chapter.record(
        gain_clean=float(clean.mean()),
        gain_noisy=float(wrong.mean()),
        gain_ratio=float(wrong.mean() / clean.mean()),
        gain_median_clean=float(np.median(clean)),
        gain_median_noisy=float(np.median(wrong)),
        llc=llc.value,
        llc_mcse=llc.mcse,
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

    Args:
        chapter: where to.
        traces: ending of the recorded names -> (the sampler in words, its trace); "" for the
            paper's.
        noisy: whether the label is wrong, bool, shape (n,).
    """
    rows = []
    for end, (described, trace) in traces.items():
        gain = probelib.loss_gain(trace).values
        clean, wrong = float(gain[~noisy].mean()), float(gain[noisy].mean())
        auroc = detection(gain, noisy).auroc
        chapter.record(
            **{
                f"gain_clean{end}": clean,
                f"gain_noisy{end}": wrong,
                f"gain_ratio{end}": wrong / clean,
                f"auroc_gain{end}": auroc,
            }
        )
        rows.append(
            {
                "settings": described,
                "gain clean / mislabeled": f"{clean:.2f} / {wrong:.1f}",
                "ratio": f"{wrong / clean:.2f}",
                "AUROC": f"{auroc:.3f}",
            }
            | estimate_cells(
                chapter, f"llc{end}", "LLC", probelib.local_learning_coefficient(trace)
            )
        )
    return rows


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


def embed(
    chapter: Chapter,
    kernel: probelib.Kernel,
    rows: np.ndarray,
    noisy: np.ndarray,
    end: str,
    *,
    n_components: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """t-SNE of the covariance and of the correlation kernel, and how far each is apart.

    Args:
        chapter: where to: ``tsne_separation<end>`` and ``tsne_separation_correlation<end>``.
        kernel: a loss kernel.
        rows: positions of the samples laid out.
        noisy: whether their labels are wrong, bool, shape (rows,).
        end: of the recorded names.
        n_components: principal axes that t-SNE is given.
        seed: of both.

    Returns:
        Coordinates, shape (rows, 2), by a title.
    """
    tsne = TSNE(init="pca", random_state=seed, perplexity=30, n_jobs=2)
    given = {
        "covariance kernel K": kernel.features(n_components, rows=rows),
        "correlation kernel R": principal(unit_traces(kernel, rows), n_components),
    }
    found = {name: tsne.fit_transform(features) for name, features in given.items()}
    for name, xy in zip(("", "_correlation"), found.values(), strict=True):
        chapter.record(**{f"tsne_separation{name}{end}": neighbour_auroc(xy, noisy)})
    return found


def nearest_recipe(chapter: Chapter, names: list[str]) -> str:
    """The recipe whose ratio of gains is nearest the paper's, 23 / 2.31, in proportion."""
    found = {}
    for name in names:
        ratio = chapter.numbers[f"{name.replace('-', '_')}_gain_ratio"]
        found[name] = abs(math.log(ratio / (23 / 2.31))) if ratio > 0 else math.inf
    return min(found, key=found.__getitem__)


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
        "clean / noisy accuracy": f"{accuracy[0]:.2%} / {accuracy[1]:.2%}",
        "gain clean / noisy": f"{clean:.2f} / {wrong:.1f}",
        "ratio": f"{numbers['gain_ratio']:.1f}",
        "AUROC gain": f"{numbers['auroc_gain']:.3f}",
        "AUROC loss": f"{numbers['auroc_loss']:.3f}",
    }


def claims() -> list[Claim]:
    """What the paper says about memorized samples, and numbers that nothing is held to."""
    return [
        Claim("accuracy, clean", "clean_accuracy", "99 %", 0.985, None, ".2%"),
        Claim(
            "accuracy, mislabeled", "noisy_accuracy", "98 %", 0.975, None, ".2%",
            "set by recipe and epochs, not by the probe",
        ),
        Claim(
            "mean loss gain, clean (nats)", "gain_clean", "2.31", 2.31 / 2, 2.31 * 2, ".2f",
            "within a factor 2; scales with the network's margins",
        ),
        Claim(
            "mean loss gain, mislabeled (nats)", "gain_noisy", "23", 23 / 2, 23 * 2, ".1f",
            "likewise",
        ),
        Claim("ratio", "gain_ratio", "about 10", 5, 20, ".1f", "within a factor 2"),
        Claim(
            "AUROC of the loss gain", "auroc_gain", "separates", 0.9, None, ".3f",
            "the paper gives no number",
        ),
        Claim("ratio, unbiased sampler", "gain_ratio_unbiased", "about 10", 5, 20, ".1f"),
        Claim("AUROC of the loss gain, unbiased sampler", "auroc_gain_unbiased", digits=".3f"),
        Claim("AUROC of the loss", "auroc_loss", digits=".3f"),
        Claim("AUROC of the kernel's diagonal", "auroc_kernel_diagonal", digits=".3f"),
        Claim(
            "separation in the t-SNE", "tsne_separation", "a distinct cluster", 0.9, None, ".3f",
            "neighbour AUROC, defined above; where it is low and that of the correlation kernel "
            "high, the lengths of the vectors blur the picture",
        ),
        Claim(
            "the same, correlation kernel", "tsne_separation_correlation", "a distinct cluster",
            0.9, None, ".3f", "the paper's picture may be this one: it does not say",
        ),
    ]  # fmt: skip


__all__ = [
    "accuracies",
    "claims",
    "embed",
    "nearest_recipe",
    "recipe_row",
    "record_detection",
    "record_fit",
    "record_populations",
    "sampler_rows",
]
