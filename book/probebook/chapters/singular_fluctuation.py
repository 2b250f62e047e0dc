"""Chapter 06: what is recorded of Eq. 12, of single data sets and of WAIC, and the claims."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

import probelib
from probebook import gibbs
from probebook.chapter import Chapter, Claim
from probebook.samplers import estimate_cells, record_text
from probebook.toys import exact_claim
from probelib import Estimate

Rows = list[dict[str, str]]


def sampler_rows(chapter: Chapter, traces: Mapping[str, tuple[str, xr.Dataset]]) -> Rows:
    """Record LLC and (beta/2) V on MNIST by each sampler, and give a line of a table each.

    Args:
        chapter: where to.
        traces: ending of the recorded names -> (the sampler in words, its trace).
    """
    return [
        {"settings": described}
        | estimate_cells(
            chapter, f"mnist_llc{end}", "LLC", probelib.local_learning_coefficient(trace)
        )
        | estimate_cells(chapter, f"mnist_nu{end}", "(β/2) V", probelib.singular_fluctuation(trace))
        for end, (described, trace) in traces.items()
    ]


def record_mnist(chapter: Chapter, trace: xr.Dataset, by_numpy: float, beta: float) -> None:
    """Record V, (beta/2) V and the LLC on MNIST, and Eq. 13 as an identity.

    Args:
        chapter: where to.
        trace: of chapter 02.
        by_numpy: the sum of the raw losses' variances (ddof 1).
        beta: of the posterior.
    """
    v = probelib.empirical_variance(trace)
    of_kernel = float(probelib.loss_kernel(trace).diagonal().sum())
    nu, llc = probelib.singular_fluctuation(trace), probelib.local_learning_coefficient(trace)
    chapter.record(
        mnist_v=v.value,
        mnist_trace_k=of_kernel,
        mnist_v_correction=v.value / of_kernel - 1,
        trace_identity_error=abs(of_kernel / by_numpy - 1),
        mnist_beta=beta,
    )
    for key, estimate, digits in (
        ("mnist_v", v, ",.0f"), ("mnist_nu", nu, ".2f"), ("mnist_llc", llc, ".2f"),
    ):  # fmt: skip
        estimate_cells(chapter, key, key, estimate)
        record_text(chapter, key, digits)


def record_classes(chapter: Chapter, shares: gibbs.Shares) -> None:
    """Record the share of LLC and V of every class, and which holds most and least of V."""
    for k, label in enumerate(shares.groups):
        chapter.record(
            **{
                f"class_{label}_size": shares.size[k],
                f"class_{label}_llc_share": shares.llc[k],
                f"class_{label}_llc_share_mcse": shares.llc_mcse[k],
                f"class_{label}_v_share": shares.variance[k],
                f"class_{label}_v_share_mcse": shares.variance_mcse[k],
            }
        )
    most, least = shares.variance.argmax(), shares.variance.argmin()
    chapter.record(
        class_v_most=int(shares.groups[most]),
        class_v_least=int(shares.groups[least]),
        class_v_share_most=shares.variance[most],
        class_v_share_least=shares.variance[least],
    )


def slope_claims(
    chapter: Chapter, slopes: Mapping[tuple[str, float], gibbs.Slope], main_beta: float
) -> tuple[list[Claim], Rows]:
    """Record the slopes of Eq. 12, claim that they are those of theory, and give a row each.

    Args:
        chapter: where to.
        slopes: (model, beta) -> slope.
        main_beta: the beta whose slopes the summary names.
    """
    claims, rows = [], []
    for (name, beta), slope in slopes.items():
        key = f"gibbs_slope_{name}_beta_{beta:g}".replace(".", "_")
        chapter.record(
            **{
                key: slope.value,
                f"{key}_se": slope.error,
                f"{key}_bias": slope.bias,
                f"{key}_nu": slope.nu,
            }
        )
        claims.append(
            exact_claim(
                chapter, f"Eq. 12: slope, {name}, β = {beta:g}", key, slope.predicted, slope.error,
                abs(slope.bias), ".4f", scale=0.5,
            )
        )  # fmt: skip
        if beta == main_beta:
            short = {"regular": "regular", "square": "singular"}[name]
            chapter.record(
                **{
                    f"gibbs_slope_{short}": slope.value,
                    f"gibbs_slope_{short}_se": slope.error,
                    f"gibbs_slope_{short}_truth": slope.predicted,
                }
            )
        rows.append(
            {
                "model": name,
                "β": f"{beta:g}",
                "λ": f"{gibbs.PARAMETRISATIONS[name].learning_coefficient:g}",
                "ν": f"{slope.nu:.4f}",
                "(λ − νβ)/β": f"{slope.predicted:+.4f}",
                "fitted slope": f"{slope.value:+.4f} ± {slope.error:.4f}",
                "bias of the fit": f"{slope.bias:+.1g}",
            }
        )
    return claims, rows


def product_rows(
    chapter: Chapter, beta: float, localization: float, powers: Sequence[int] = (2, 4, 8, 16)
) -> Rows:
    """Record how the product comes to its limit, at n = 10 to each of ``powers``; a row each."""
    level = gibbs.limiting_gibbs(gibbs.PRODUCT, beta)
    rows = []
    for power in powers:
        n = 10**power
        e = gibbs.expected(gibbs.PRODUCT, n, beta, localization)
        chapter.record(
            **{
                f"product_gibbs_1e{power}": n * e.gibbs,
                f"product_nu_1e{power}": e.fluctuation,
                f"product_ratio_1e{power}": n * e.gibbs / level,
            }
        )
        rows.append(
            {
                "n": f"10^{power}",
                "n E[G_n]": f"{n * e.gibbs:.4f}",
                "(β/2) E[V]": f"{e.fluctuation:.4f}",
                "n E[G_n] / limit": f"{n * e.gibbs / level:.3f}",
            }
        )
    near, far = (1 / (level - chapter.numbers[f"product_gibbs_1e{p}"]) for p in powers[-2:])
    decades = powers[-1] - powers[-2]
    chapter.record(
        product_limit=level,
        product_log_slope=(far - near) / np.log(10**decades),  # of 1 / (limit - n E[G_n]) by log n
    )
    return rows


def sgld_claims(
    chapter: Chapter,
    model: gibbs.Parametrisation,
    data: gibbs.DataSets,
    estimates: Sequence[tuple[Estimate, Estimate]],
    unbiased: Sequence[tuple[Estimate, Estimate]],
    *,
    beta: float,
    localization: float,
    step_size: float,
) -> tuple[list[Claim], Rows]:
    """Record n G_n and (beta/2) V by SGLD, claim that they are the chain's, and give a row each.

    Args:
        chapter: where to.
        model: ``regular`` or ``square``.
        data: the data sets.
        estimates: LLC and singular fluctuation of each of them, by SGLD.
        unbiased: the same by Leimkuhler and Matthews' sampler.
        beta, localization, step_size: of the chains.
    """
    name, count = model.name, len(data.mean)
    laws = (
        gibbs.chain_moments(model, data, beta, localization, step_size),
        gibbs.moments(model, data, beta, localization),
    )
    known = {
        "gibbs": [data.n * law.gibbs(data) for law in laws],
        "nu": [beta / 2 * law.empirical_variance(data) for law in laws],
    }
    claims, rows = [], []
    for k, (what, symbol) in enumerate((("gibbs", "n G_n"), ("nu", "(β/2) V"))):
        value, error = np.array([(e[k].value, e[k].mcse) for e in estimates]).T
        key, (truth, limit) = f"sgld_{name}_{what}", known[what]
        spread = np.sqrt(np.sum(error**2)) / count
        other, other_error = np.array([(e[k].value, e[k].mcse) for e in unbiased]).T
        chapter.record(
            **{
                f"{key}_unbiased": other.mean(),
                f"{key}_unbiased_mcse": np.sqrt(np.sum(other_error**2)) / count,
                key: value.mean(),
                f"{key}_mcse": spread,
                f"{key}_eq1": limit.mean(),
                f"{key}_z_max": np.max(np.abs(value - truth) / error),
                f"{key}_between": value.std(ddof=1) / np.sqrt(count),
            }
        )
        claims.append(
            exact_claim(
                chapter, f"{name}: {symbol} by SGLD, mean of {count} data sets", key,
                truth.mean(), spread, digits=".4f", scale=0.5,
            )
        )  # fmt: skip
        rows.append(
            {
                "model": name,
                "quantity": symbol,
                "SGLD": f"{value.mean():.4f} ± {spread:.4f}",
                "exact, this chain": f"{truth.mean():.4f}",
                "exact, Eq. 1": f"{limit.mean():.4f}",
                "Leimkuhler-Matthews": f"{other.mean():.4f} ± "
                f"{chapter.numbers[f'{key}_unbiased_mcse']:.4f}",
                "largest distance (standard errors)": f"{chapter.numbers[f'{key}_z_max']:.1f}",
                "error without pairing": f"{chapter.numbers[f'{key}_between']:.3f}",
            }
        )
    exact = data.n * gibbs.expected(model, data.n, beta, localization).gibbs
    paired = chapter.numbers[f"sgld_{name}_gibbs"] - chapter.numbers[f"sgld_{name}_gibbs_eq1"]
    chapter.record(
        **{
            f"sgld_{name}_expected": exact + paired,
            f"sgld_{name}_expected_exact": exact,
            f"sgld_{name}_limit": gibbs.limiting_gibbs(model, beta),
        }
    )
    return claims, rows


def record_deviations(
    chapter: Chapter,
    fluctuations: Mapping[str, np.ndarray],
    sizes: np.ndarray,
    beta: float,
    localization: float,
) -> None:
    """Record how the error of one data set, and of the mean over data sets, falls with n.

    Args:
        chapter: where to.
        fluctuations: model -> (beta / 2) V of single data sets, shape (sizes, data sets).
        sizes: n, shape (k,).
        beta, localization: of the posterior.
    """
    for name, values in fluctuations.items():
        model = gibbs.PARAMETRISATIONS[name]
        limit = gibbs.limiting_fluctuation(model, beta)
        squares = np.square(values - limit)
        exponent, exponent_se = gibbs.decay_exponent(sizes, squares)
        off = [
            gibbs.expected(model, int(n), beta, localization).fluctuation - limit
            for n in sizes[-2:]
        ]
        chapter.record(
            **{
                f"one_set_exponent_{name}": exponent,
                f"one_set_exponent_{name}_se": exponent_se,
                f"one_set_relative_error_{name}": np.sqrt(squares[-1].mean()) / limit,
                f"mean_exponent_{name}": np.log(off[1] / off[0]) / np.log(sizes[-1] / sizes[-2]),
            }
        )


def waic_claim(
    chapter: Chapter,
    model: gibbs.Parametrisation,
    predictions: gibbs.Prediction,
    n: int,
    errors: np.ndarray,
    sizes: np.ndarray,
    localization: float,
) -> Claim:
    """Record WAIC of one model, and claim that it misses on average by what theory says.

    Args:
        chapter: where to.
        model: the parametrisation.
        predictions: of data sets of n samples.
        n: samples of each.
        errors: exact E[WAIC] - E[generalization loss] at each of ``sizes``.
        sizes: shape (k,).
        localization: of the posterior, at beta 1.
    """
    name, key = model.name, f"waic_difference_{model.name}"
    paired = n * (predictions.waic - predictions.generalization)
    exact = gibbs.expected_prediction(model, n, 1.0, localization)
    last, end = errors[-2:]
    chapter.record(
        **{
            key: paired.mean(),
            f"{key}_se": paired.std(ddof=1) / np.sqrt(len(paired)),
            f"waic_exponent_{name}": np.log(abs(end / last)) / np.log(sizes[-1] / sizes[-2]),
            f"waic_{name}": n * predictions.waic.mean(),
            f"waic_training_{name}": n * predictions.training.mean(),
            f"waic_generalization_{name}": n * predictions.generalization.mean(),
            f"waic_correlation_{name}": np.corrcoef(predictions.waic, predictions.generalization)[
                0, 1
            ],
        }
    )
    return exact_claim(
        chapter, f"{name}: n (WAIC − generalization loss), mean of {len(paired):,} data sets", key,
        n * float(exact.waic - exact.generalization), chapter.numbers[f"{key}_se"], 0.0, ".4f",
        "that the two are equal, not what is left between them", scale=0.5,
    )  # fmt: skip


def waic_rows(numbers: Mapping[str, float], names: Sequence[str]) -> Rows:
    """A line of a table a model, from what :func:`waic_claim` recorded."""
    return [
        {
            "model": name,
            "n (training loss − S_n)": f"{numbers[f'waic_training_{name}']:+.3f}",
            "n (WAIC − S_n)": f"{numbers[f'waic_{name}']:+.3f}",
            "n (generalization loss − S)": f"{numbers[f'waic_generalization_{name}']:+.3f}",
            "WAIC less generalization": (
                f"{numbers[f'waic_difference_{name}']:+.4f} ± "
                f"{numbers[f'waic_difference_{name}_se']:.4f}"
            ),
            "exact": f"{numbers[f'exact_waic_difference_{name}']:+.4f}",
            "correlation": f"{numbers[f'waic_correlation_{name}']:+.3f}",
        }
        for name in names
    ]


def theory_claims(chapter: Chapter) -> list[Claim]:
    """Eq. 13, and Eq. 12 at finite n."""
    return [
        Claim(
            "Eq. 13: V is the trace of K, relative difference", "trace_identity_error", "0", None,
            1e-9, ".1g", "rounding in float64, two code paths", True,
        ),
        Claim(
            f"Eq. 12: largest |z| of {chapter.numbers['gibbs_points']} means over data sets",
            "gibbs_z_max", "exact at finite n", None, 4.5, ".2f",
            "normal errors pass 4.5 in fewer than one of 2,000 runs", True,
        ),
    ]  # fmt: skip


def asymptotic_claims(chapter: Chapter, beta: float) -> list[Claim]:
    """What B.2 says about one data set, WAIC, ArviZ, and the numbers that nothing is held to.

    Args:
        chapter: with everything recorded.
        beta: at which the product's slope was measured.
    """
    quadratic = "−2 (“scales quadratically in n”)"
    room = "0.2 of room, for terms of higher order"
    # Within 0.2 of -2: every exponent that theory gives here is further from it than that.
    slope = beta * (1 + beta)

    def exponent(what: str, key: str, why: str) -> Claim:
        return Claim(what, key, quadratic, -2.2, -1.8, "+.3f", f"{why}; {room}")

    return [
        exact_claim(
            chapter, "product: 1/log n term of Eq. 12, its inverse coefficient",
            "product_log_slope", slope, 0.0, 0.01 * slope, ".4f",
            "β(1 + β), by quadrature between n = 10^8 and 10^16",
        ),
        exponent(
            "regular: exponent of one data set’s error", "one_set_exponent_regular",
            "it is −1/2 (of its square, −1): a mean over n samples",
        ),
        exponent(
            "square: exponent of one data set’s error", "one_set_exponent_square",
            "it is 0: V stays random, the expectation cannot be dropped",
        ),
        exponent(
            "product: exponent of one data set’s error", "one_set_exponent_product",
            "slower than any power: 1/log n",
        ),
        exponent(
            "regular: exponent of the mean’s error", "mean_exponent_regular",
            "it is −1, even for the mean over data sets",
        ),
        exponent(
            "square: exponent of the mean’s error", "mean_exponent_square",
            "it is −1/2: the prior still matters",
        ),
        Claim(
            "regular: exponent of E[WAIC] − E[generalization loss]", "waic_exponent_regular",
            "−2 (Watanabe)", -2.2, -1.8, "+.3f",
            f"the relation that does scale quadratically; {room}", True,
        ),
        Claim(
            "square: exponent of E[WAIC] − E[generalization loss]", "waic_exponent_square",
            "−2 (Watanabe)", -2.2, -1.8, "+.3f", f"in the singular model too; {room}", True,
        ),
        Claim(
            "WAIC: largest relative difference from ArviZ", "arviz_relative_error", "0", None, 1e-9,
            ".1g", "rounding in float64", True,
        ),
        Claim("MNIST: empirical variance V (nats²)", "mnist_v", digits=".4g"),
        Claim("MNIST: (β/2) V", "mnist_nu", digits=".2f"),
    ]  # fmt: skip


__all__ = [
    "asymptotic_claims",
    "product_rows",
    "record_classes",
    "record_deviations",
    "record_mnist",
    "sampler_rows",
    "sgld_claims",
    "slope_claims",
    "theory_claims",
    "waic_claim",
    "waic_rows",
]
