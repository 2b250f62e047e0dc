"""Chapter 02: loss gains by digit, and how they go with the loss under several recipes."""

import numpy as np
from scipy.stats import pearsonr, spearmanr

from probebook.chapter import Chapter, Claim

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
        Claim("local learning coefficient", "llc", digits=".1f"),
        Claim("largest R-hat", "rhat_max", digits=".3f", why="a common rule asks for 1.01"),
        Claim("smallest ESS", "ess_min", digits=".0f", why="a common rule asks for 400"),
    ]  # fmt: skip


__all__ = ["claims", "class_rows", "record_range", "relation_row"]
