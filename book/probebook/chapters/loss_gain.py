"""Chapter 02: gains by digit, gains and losses under several recipes, and what the step did."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from scipy.stats import pearsonr, spearmanr

import probelib
from probebook.cache import cache_dir
from probebook.chapter import Chapter, Claim
from probebook.mnist import Mnist
from probebook.samplers import estimate_cells
from probebook.training import TrainedNetwork, prepare_pixels

Rows = list[dict[str, object]]


def class_rows(chapter: Chapter, gain: np.ndarray, labels: np.ndarray) -> Rows:
    """Record the loss gains of every class, and give a line of a table each.

    Args:
        chapter: where to.
        gain: mu, shape (n,), nats.
        labels: classes 0 to 9, shape (n,).
    """
    rows = []
    for digit in range(10):
        own = gain[labels == digit]
        n, mean, median, high = len(own), own.mean(), np.median(own), np.quantile(own, 0.99)
        chapter.record(
            **{
                f"n_digit_{digit}": n,
                f"gain_digit_{digit}": mean,
                f"gain_median_digit_{digit}": median,
                f"gain_q99_digit_{digit}": high,
            }
        )
        rows.append(
            {
                "digit": digit,
                "n": n,
                "mean loss gain": f"{mean:.2f}",
                "median": f"{median:.2f}",
                "99 % quantile": f"{high:.1f}",
            }
        )
    return rows


def relation_row(
    chapter: Chapter, name: str, described: str, loss: np.ndarray, gain: np.ndarray
) -> dict[str, str]:
    """Record how loss and loss gain go together, and give a line of a table.

    Args:
        chapter: where to.
        name: of the network, in what is recorded.
        described: the same in words.
        loss, gain: of the same samples, shape (n,), nats.
    """
    numbers = {
        "mean_loss": loss.mean(),
        "mean_gain": gain.mean(),
        "pearson": pearsonr(loss, gain).statistic,
        "spearman": spearmanr(loss, gain).statistic,
    }
    chapter.record(**{f"{name.replace('-', '_')}_{k}": v for k, v in numbers.items()})
    return {
        "network": described,
        "mean loss": f"{numbers['mean_loss']:.4f}",
        "mean loss gain": f"{numbers['mean_gain']:.2f}",
        "Pearson": f"{numbers['pearson']:.3f}",
        "Spearman": f"{numbers['spearman']:.3f}",
    }


def record_range(chapter: Chapter) -> None:
    """Record the lowest and highest of the correlations that :func:`relation_row` recorded."""
    for kind in ("pearson", "spearman"):
        values = [v for k, v in chapter.numbers.items() if k.endswith(f"_{kind}")]
        chapter.record(**{f"{kind}_lowest": min(values), f"{kind}_highest": max(values)})


def sampler_row(chapter: Chapter, name: str, described: str, trace: xr.Dataset) -> dict[str, str]:
    """Record the LLC and the singular fluctuation of a trace, and give a line of a table.

    Args:
        chapter: where to, as ``llc<name>``, with ``_mcse`` and ``_step_bias`` behind it where they
            are known, and the same for ``singular_fluctuation``.
        name: "" for the paper's sampler, or with a leading underscore.
        described: sampler and digits in words.
        trace: of the draws, weighted or not.
    """
    row = {"settings": described}
    for what, title, found in (
        ("llc", "LLC", probelib.local_learning_coefficient(trace)),
        ("singular_fluctuation", "singular fluctuation", probelib.singular_fluctuation(trace)),
    ):
        row |= estimate_cells(chapter, f"{what}{name}", title, found)
    khat = probelib.khat(trace) if "log_weight" in trace else math.nan
    if math.isfinite(khat):
        chapter.record(importance_khat=khat)
    return row | {"k-hat": f"{khat:.2f}" if math.isfinite(khat) else "–"}


def test_set_probe(
    network: TrainedNetwork,
    images: torch.Tensor,
    labels: torch.Tensor,
    test: Mnist,
    *,
    n_beta: float,
    localization: float,
    sampler: probelib.Sampler,
    draws: int,
    thin: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Losses at w* and loss gains of the test set, under the posterior of the training set.

    Args:
        network: trained on ``images`` and ``labels``.
        images, labels: the sampling data.
        test: the digits that are observed.
        n_beta, localization: of the posterior.
        sampler, draws, thin, seed: of :func:`probelib.sample`; one chain.

    Returns:
        Both of shape (test,), float64, nats.
    """
    posterior = probelib.LocalPosterior(
        network.model,
        probelib.cross_entropy,
        (prepare_pixels(images, network.recipe), labels),
        n_beta=n_beta,
        localization=localization,
    )
    trace = probelib.sample(
        posterior,
        observe=(prepare_pixels(test.images, network.recipe), test.labels),
        sampler=sampler,
        chains=1,
        draws=draws,
        thin=thin,
        burn_in=10 * thin,
        seed=seed,
        cache=cache_dir("traces"),
    )
    return trace.init_loss.values.astype(np.float64), probelib.loss_gain(trace).values


def record_overconfident(
    chapter: Chapter, loss: np.ndarray, gain: np.ndarray, confident: float
) -> None:
    """Record how loss and gain of the test set go together, with and without its worst errors.

    Args:
        chapter: where to.
        loss, gain: shape (n,), nats.
        confident: the network is confidently wrong where the loss is above this (nats).
    """
    wrong = loss > confident
    chapter.record(
        n_test=len(loss),
        n_confidently_wrong=int(wrong.sum()),
        pearson_test_overconfident=pearsonr(loss, gain).statistic,
        spearman_test_overconfident=spearmanr(loss, gain).statistic,
        pearson_test_without_wrong=pearsonr(loss[~wrong], gain[~wrong]).statistic,
        gain_confidently_wrong=float(gain[wrong].mean()) if wrong.any() else 0.0,
        gain_test_others=float(gain[~wrong].mean()),
        n_confidently_wrong_negative=int((gain[wrong] < 0).sum()),
    )


def claims() -> list[Claim]:
    """What the paper says about loss and loss gain, and numbers that nothing is held to."""
    return [
        Claim(
            "Pearson, loss and loss gain", "pearson_loss_gain", "−0.0302", -0.1303, 0.0697, ".4f",
            "within 0.1; the table of other recipes shows how far it moves with the network",
        ),
        Claim(
            "Spearman, loss and loss gain", "spearman_loss_gain", digits=".3f",
            why="the paper gives none; where it is far from 0, the gain follows the loss in rank",
        ),
        Claim("mean loss gain (nats)", "gain_mean", digits=".2f"),
        Claim(
            "Pearson, test set, over-confident network", "pearson_test_overconfident", "−0.0302",
            -0.1303, 0.0697, ".4f", "the same 0.1; see the section on it for what makes it",
        ),
        Claim(
            "local learning coefficient, the paper's sampler", "llc", digits=".1f",
            why="the step is in it: see the next line",
        ),
        Claim("the same, unbiased sampler", "llc_unbiased", digits=".1f"),
        Claim("largest R-hat", "rhat_max", digits=".3f", why="a common rule asks for 1.01"),
        Claim("smallest ESS", "ess_min", digits=".0f", why="a common rule asks for 400"),
    ]  # fmt: skip


Series = tuple[np.ndarray, np.ndarray]


def by_settings(
    sweep: Mapping[float, Sequence[xr.Dataset]],
) -> tuple[dict[str, Series], dict[str, Series]]:
    """Mean gains and LLCs with their errors, by localization in words; NaN where nothing is known.

    Args:
        sweep: localization -> traces of weighted draws, by inverse temperature.
    """
    gains: dict[str, Series] = {}
    llcs: dict[str, Series] = {}
    for gamma, traces in sweep.items():
        found = [probelib.local_learning_coefficient(trace) for trace in traces]
        n_beta = np.array([trace.attrs["config"]["n_beta"] for trace in traces])
        value, error = np.array([(llc.value, llc.mcse) for llc in found]).T
        known = np.isfinite(error)
        value, error = np.where(known, value, np.nan), np.where(known, error, np.nan)
        name = f"$\\gamma$ = {gamma:g}"
        llcs[name], gains[name] = (value, error), (value / n_beta, error / n_beta)
    return gains, llcs


def settings_sentence(
    chapter: Chapter, sweep: Mapping[float, Sequence[xr.Dataset]], n_betas: np.ndarray
) -> str:
    """Record mean gains at n beta 10 by localization, and their order; the sentence on it."""
    at = int(np.abs(n_betas - 10).argmin())
    gains = [probelib.loss_gain(traces[at]) for traces in sweep.values()]
    llcs = [probelib.local_learning_coefficient(traces[at]) for traces in sweep.values()]
    for place, traces in enumerate(sweep.values()):
        chapter.record(**{f"sweep_khat_{place}": probelib.khat(traces[at])})
    if not all(math.isfinite(llc.mcse) for llc in llcs):
        return (
            "At $n\\beta$ = 10 the weights of one of the three sets cannot be believed, so "
            "that nothing is said of its gains."
        )
    for place, (llc, gain) in enumerate(zip(llcs, gains, strict=True)):
        chapter.record(
            **{
                f"sweep_gain_{place}": llc.value / n_betas[at],
                f"sweep_gain_{place}_mcse": llc.mcse / n_betas[at],
                f"sweep_rank_{place}": spearmanr(gains[0], gain).statistic,
            }
        )
    return (
        "At $n\\beta$ = 10 the mean gain of these digits is {sweep_gain_0:.2f} ± "
        "{sweep_gain_0_mcse:.2f} nats at the first localization, {sweep_gain_1:.3f} ± "
        "{sweep_gain_1_mcse:.3f} at ten times, and {sweep_gain_2:.4f} ± {sweep_gain_2_mcse:.4f} "
        "at a hundred times of it. Their order changes, too: the rank correlation of the gains, "
        "the noise of these draws included, is {sweep_rank_1:.2f} between the first and the "
        "second, and {sweep_rank_2:.2f} between the first and the last."
    )


__all__ = [
    "claims",
    "class_rows",
    "record_overconfident",
    "record_range",
    "relation_row",
    "sampler_row",
    "test_set_probe",
]
