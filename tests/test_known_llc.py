"""The truths of chapter 05, against slower or independent ways to the same."""

import itertools

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.integrate import dblquad, quad
from scipy.stats import norm

import probelib
from probebook import known_llc as known
from probebook import llc_parts, llc_sweeps

N_BETA, LOCALIZATION, STEP_SIZE = 40.0, 3.0, 0.01


# -- the limits --------------------------------------------------------------------------------


def test_monomials_have_the_smallest_pole_and_its_order():
    assert known.monomial_coefficient([1]) == (0.5, 1)
    assert known.monomial_coefficient([1, 3, 3]) == (1 / 6, 2)


def test_reduced_rank_against_its_regular_part_and_scaling_of_the_rest():
    """Rank r leaves r(M + N - r) regular directions and rank 0 with r units less everywhere.

    At rank 0, with B integrated out, E[prod_i (1 + nb s_i)^(-N/2)] over the eigenvalues s_i of a
    Wishart matrix, whose density near 0 is prod_i s_i^(a_i - 1) ds_i for s_1 > s_2 > ..., with
    a_i = (M + H + 1) / 2 - i. An eigenvalue costs N/2 powers of nb if it stays finite and a_i if
    it shrinks like 1/nb; a tie doubles the pole.
    """
    for m, h, n in itertools.product(range(1, 7), repeat=3):
        for r in range(min(m, h, n) + 1):
            a = [(m + h - 2 * r + 1) / 2 - i for i in range(1, min(m, h) - r + 1)]
            coefficient = r * (m + n - r) / 2 + sum(min(v, (n - r) / 2) for v in a)
            multiplicity = 1 + sum(v == (n - r) / 2 for v in a)
            expected = coefficient, multiplicity
            assert known.reduced_rank_coefficient(m, h, n, r) == expected, (m, h, n, r)


def test_reduced_rank_in_cases_that_are_known_without_it():
    assert known.reduced_rank_coefficient(1, 1, 1, 0) == (0.5, 2)  # the product of two weights
    for m, n in itertools.product(range(1, 6), repeat=2):
        # |a|² |b|² with a in R^m, b in R^n: poles at m/2 and n/2.
        expected = min(m, n) / 2, 1 + (m == n)
        assert known.reduced_rank_coefficient(m, 1, n, 0) == expected
        # H = r: the fibre is a smooth manifold of dimension H².
        h = min(m, n)
        assert known.reduced_rank_coefficient(m, h, n, h) == ((h * (m + n) - h * h) / 2, 1)
        # Very wide: as good as a full matrix.
        assert known.reduced_rank_coefficient(m, m + n + 1, n, 0) == (m * n / 2, 1)


# -- Eq. 1 -------------------------------------------------------------------------------------


def test_one_quadratic_weight_has_closed_forms():
    law = known.monomial_law([1], N_BETA, LOCALIZATION)
    precision = N_BETA + LOCALIZATION
    # The range ends at exp(-32) below, which leaves out 1e-14, and at exp(-45) above.
    assert law.llc == pytest.approx(N_BETA / 2 / precision, rel=1e-10)
    assert law.held == pytest.approx(LOCALIZATION / precision, rel=1e-10)
    # nb / 2 / [A (1 - eps A / 4)] has the slope nb / 8.
    assert law.slope == pytest.approx(N_BETA / 8, rel=1e-10)


@pytest.mark.parametrize("k", [2, 3])
def test_one_weight_against_adaptive_quadrature(k):
    def density(w):
        return np.exp(-N_BETA / 2 * w ** (2 * k) - LOCALIZATION / 2 * w**2)

    mass, mean = (
        quad(lambda w, p=p: (w ** (2 * k) / 2) ** p * density(w), 0, 3, epsrel=1e-11)[0]
        for p in (0, 1)
    )
    assert known.monomial_law([k], N_BETA, LOCALIZATION).llc == pytest.approx(
        N_BETA * mean / mass, rel=1e-8
    )


def test_two_weights_against_adaptive_quadrature():
    def density(v, w):
        return np.exp(-N_BETA / 2 * w**4 * v**2 - LOCALIZATION / 2 * (w**2 + v**2))

    mass = dblquad(density, 0, 4, 0, 4, epsrel=1e-8)[0]
    mean = dblquad(lambda v, w: w**4 * v**2 / 2 * density(v, w), 0, 4, 0, 4, epsrel=1e-8)[0]
    # The square ends at 7 standard deviations of the leash.
    assert known.monomial_law([2, 1], N_BETA, LOCALIZATION).llc == pytest.approx(
        N_BETA * mean / mass, rel=1e-6
    )


@pytest.mark.parametrize("k", [(2,), (1, 1), (2, 1), (2, 2), (1, 1, 1)])
def test_monomials_obey_the_virial_theorem_and_scale(k):
    law = known.monomial_law(k, N_BETA, LOCALIZATION)
    # E[w' grad U] = d and w' grad L = 2 sum(k) L. In d dimensions the part of the mass below the
    # grid's end in one weight is exp(-32) times at most the ridge's log: far below 1e-8.
    expected = (len(k) - law.held) / (2 * sum(k))
    assert law.llc == pytest.approx(expected, rel=1e-6)
    scaled = known.monomial_law(k, N_BETA * 5.0 ** sum(k), LOCALIZATION * 5)
    assert scaled.llc == pytest.approx(law.llc, rel=1e-6)


def test_the_limit_is_approached_with_its_multiplicity():
    for k, n_beta, rel in (((2,), 1e10, 1e-4), ((3,), 1e12, 1e-3), ((2, 1), 1e16, 1e-3)):
        limit = known.monomial_coefficient(k)[0]
        assert known.monomial_law(k, n_beta, 1.0).llc == pytest.approx(limit, rel=rel)
    # (1, 1): 1 / (lambda - llc) = log nb + const + o(1), so its slope in log nb is 1.
    near, far = (1 / (0.5 - known.monomial_law((1, 1), x, 1.0).llc) for x in (1e8, 1e12))
    assert (far - near) / np.log(1e4) == pytest.approx(1, abs=1e-3)


def test_a_length_counts_for_its_weights():
    # |w|² / 2 with w in R³ is three regular weights.
    law = known.monomial_law([1], N_BETA, LOCALIZATION, volumes=[3])
    one = known.monomial_law([1], N_BETA, LOCALIZATION)
    for name in ("llc", "slope", "held"):
        assert getattr(law, name) == pytest.approx(3 * getattr(one, name), rel=1e-9)


def test_reduced_rank_law_against_quadrature_at_rank_0():
    exact = known.monomial_law((1, 1), N_BETA, LOCALIZATION, volumes=(3, 2))
    law = known.reduced_rank_law(known.ReducedRank(3, 1, 2, 0), N_BETA, LOCALIZATION, 200_000)
    assert abs(law.llc - exact.llc) < 4 * law.llc_se < 0.02 * exact.llc
    assert abs(law.slope - exact.slope) < 4 * law.slope_se < 0.15 * exact.slope
    assert law.held == pytest.approx(exact.held, rel=0.02)


def test_reduced_rank_law_against_quadrature_at_rank_1():
    # One unit everywhere: U = nb/2 (ba - 1)² + gamma/2 [(a - 1)² + (b - 1)²].
    def density(b, a):
        fit, leash = (a * b - 1) ** 2, (a - 1) ** 2 + (b - 1) ** 2
        return np.exp(-N_BETA / 2 * fit - LOCALIZATION / 2 * leash)

    box = (-3, 5, -3, 5)
    mass = dblquad(density, *box, epsrel=1e-7)[0]
    mean = dblquad(lambda b, a: (a * b - 1) ** 2 / 2 * density(b, a), *box, epsrel=1e-7)[0]
    law = known.reduced_rank_law(known.ReducedRank(1, 1, 1, 1), N_BETA, LOCALIZATION, 200_000)
    assert abs(law.llc - N_BETA * mean / mass) < 4 * law.llc_se < 0.02 * law.llc


def test_reduced_rank_law_against_gibbs_sampling():
    """Given A, the rows of B are Gaussian, and given B, the columns of A: no step, no weights."""
    model, chains, sweeps, burn_in = known.ReducedRank(3, 2, 2, 1), 4000, 200, 80
    a0, b0 = (p.detach().numpy() for p in (model.a, model.b))
    target, rng = b0 @ a0, np.random.default_rng(0)

    def conditional(other, at_center, pull):
        """Rows x of the law exp(-nb/2 |x other - y|² - gamma/2 |x - at_center|²)."""
        precision = LOCALIZATION * np.eye(2) + N_BETA * other @ other.transpose(0, 2, 1)
        covariance = np.linalg.inv(precision)
        mean = (LOCALIZATION * at_center + N_BETA * pull) @ covariance
        noise = rng.normal(size=mean.shape) @ np.linalg.cholesky(covariance).transpose(0, 2, 1)
        return mean + noise

    a, seen = np.broadcast_to(a0, (chains, *a0.shape)), 0.0
    for sweep in range(sweeps):
        b = conditional(a, b0, target @ a.transpose(0, 2, 1))
        bt = b.transpose(0, 2, 1)
        a = conditional(bt, a0.T, target.T @ b).transpose(0, 2, 1)
        if sweep >= burn_in:
            seen = seen + N_BETA / 2 * ((b @ a - target) ** 2).sum((1, 2)) / (sweeps - burn_in)
    error = seen.std(ddof=1) / chains**0.5
    law = known.reduced_rank_law(model, N_BETA, LOCALIZATION, 200_000)
    assert abs(law.llc - seen.mean()) < 4 * np.hypot(law.llc_se, error) < 0.03


# -- the chain ---------------------------------------------------------------------------------


def test_a_chain_that_runs_away_is_an_error():
    with pytest.raises(ArithmeticError, match=r"step_size is 0\.1, with which the chain leaves"):
        known.monomial_chain_llc([2], 1000.0, 1.0, 0.1)
    with pytest.raises(ArithmeticError, match=r"step_size is 0\.1.*keep it below 0\.0976"):
        known.mixed_chain_llc(N_BETA, 1.0, 0.1)


@pytest.mark.parametrize("k", [(2,), (3,), (1, 1), (2, 1)])
def test_the_first_order_in_the_step_is_the_slope(k):
    law = known.monomial_law(k, N_BETA, LOCALIZATION)
    whole, half = (
        (known.monomial_chain_llc(k, N_BETA, LOCALIZATION, e)[0] - law.llc) / e
        for e in (STEP_SIZE / 4, STEP_SIZE / 8)
    )
    # Richardson: what is left is of second order in the step, a few times the square of
    # 2 half / llc * epsilon, itself below 5 %.
    assert 2 * half - whole == pytest.approx(law.slope, rel=0.02)


@pytest.mark.parametrize(
    ("k", "settings"), [((1,), (100.0, 3.0, 1e-3)), ((1, 1), (100.0, 2.0, 2e-3))]
)
def test_the_allowance_for_the_second_order_is_enough(k, settings):
    law, epsilon = known.monomial_law(k, *settings[:2]), settings[2]
    first = epsilon * law.slope
    rest = known.monomial_chain_llc(k, *settings)[0] - law.llc - first
    assert 1 < rest / (first**2 / law.llc) < known.SECOND_ORDER


def test_mixed_is_the_sum_of_its_weights():
    settings = {"n_beta": N_BETA, "localization": LOCALIZATION}
    stiff = known.monomial_chain_llc([1], **settings, step_size=STEP_SIZE)[0]
    flat = known.monomial_chain_llc([2], **settings, step_size=STEP_SIZE)[0]
    together = known.mixed_chain_llc(**settings, step_size=STEP_SIZE)
    assert together == pytest.approx(stiff + flat, rel=1e-6)
    along = known.mixed_chain_along(**settings, step_size=STEP_SIZE, steps=600)
    assert along[-1] == pytest.approx(together, rel=1e-6)  # exp(-eps gamma 600) is 1e-8
    # After one step from w* both weights are N(0, epsilon).
    first = N_BETA / 2 * (STEP_SIZE + 3 * STEP_SIZE**2)
    assert along[0] == pytest.approx(first, rel=1e-6)


def test_the_sampler_follows_the_law_of_the_chain_from_the_first_step():
    chains, steps = 400, 30
    settings = {"n_beta": N_BETA, "localization": LOCALIZATION, "step_size": STEP_SIZE}
    posterior = known.local(known.Mixed(), N_BETA, LOCALIZATION)
    trace = probelib.sample(
        posterior, sampler=probelib.SGLD(STEP_SIZE), chains=chains, draws=steps, progress=False
    )
    seen = N_BETA * probelib.mean_loss_change(trace)
    error = seen.std(0, ddof=1) / chains**0.5
    z = (seen.mean(0) - known.mixed_chain_along(**settings, steps=steps)) / error
    assert np.abs(z).max() < norm.isf(0.5e-4 / steps)  # once in 10,000 seeds


# -- the models --------------------------------------------------------------------------------


def test_losses_are_what_the_text_says():
    w = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
    monomial = known.local(known.Monomial([1, 2, 1]), 1, 1)
    expected = 0.5 * (0.3 * 0.7**2 * 1.1) ** 2
    assert float(monomial.mean_loss(w)) == pytest.approx(expected)
    mixed = known.local(known.Mixed(), 1, 1)
    assert float(mixed.mean_loss(w[:2])) == pytest.approx((0.3**2 + 0.7**4) / 2)
    model = known.ReducedRank(3, 2, 4, 1)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3)), rng.normal(size=(4, 2))
    target = np.zeros((4, 3))
    target[0, 0] = 1
    posterior = known.local(model, 1, 1)
    flat = torch.from_numpy(np.concatenate([a.ravel(), b.ravel()]))
    expected = 0.5 * ((b @ a - target) ** 2).sum()
    assert float(posterior.mean_loss(flat)) == pytest.approx(expected)
    for p in (monomial, mixed, posterior):
        assert float(p.mean_loss(p.center)) == 0


def test_bad_models_are_named():
    with pytest.raises(ValueError, match="rank is 3; layers of 4, 2 and 5 units"):
        known.ReducedRank(4, 2, 5, 3)
    with pytest.raises(ValueError, match="exponents is 0; it must be a whole number, 1 or more"):
        known.Monomial([1, 0])
    with pytest.raises(ValueError, match="exponents has 4 entries; give three at most"):
        known.monomial_law([1, 1, 1, 1], 1, 1)


def test_known_models_know_their_limits():
    models = {m.key: m for m in known.known_models(rrr_draws=20_000)}
    assert len(models) == len(known.REGULARS) + len(known.MONOMIALS) + len(known.REDUCED_RANKS)
    assert (models["regular_8"].limit, models["monomial_2_2"].multiplicity) == (4.0, 2)
    assert models["rrr_4_2_3_1"].limit == 4.0
    for model in models.values():
        assert model.truth > model.law  # a step spreads
        # The limit lies above Eq. 1 at finite n beta, up to the error of the sampled truths.
        assert model.law < model.limit + 4 * model.truth_se
        assert model.posterior.n_parameters >= 2 * model.limit - 1e-12
    model = models["regular_2"]
    estimate = known.measure(model, chains=64, burn_in=8, length=6, draws=60, seed=1)
    assert abs(estimate.value - model.truth) < 4 * estimate.mcse < 0.2
    numbers = model.numbers(estimate)
    assert numbers["regular_2_truth"] == model.truth
    assert numbers["regular_2_mcse"] == estimate.mcse
    assert f"{model.truth:.4f}" in model.row(estimate)["exact, this chain"]


# -- the LLC of a trace ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trace() -> xr.Dataset:
    """Made-up losses of 200 samples that differ in how much they gain."""
    rng = np.random.default_rng(0)
    at_center = rng.gamma(1.0, size=200).astype(np.float32)
    scale = rng.gamma(0.5, size=200) + 0.1
    loss = at_center + scale * rng.gamma(2.0, size=(3, 60, 200))
    return xr.Dataset(
        {
            "loss": (("chain", "draw", "sample"), loss.astype(np.float32)),
            "init_loss": ("sample", at_center),
        },
        attrs={"config": {"n_beta": 10.0}},
    )


def test_three_ways_to_the_llc_agree(trace):
    by_draw = llc_parts.streamed_llc(trace)
    gain = probelib.loss_gain(trace).values
    loss = trace.loss.values.astype(np.longdouble)
    exact = float(10 * (loss.mean() - trace.init_loss.values.astype(np.longdouble).mean()))
    # 36,000 terms of order 1: the rounding of float64 sums is below 1e-12.
    assert by_draw == pytest.approx(exact, rel=1e-12)
    assert 10 * gain.mean() == pytest.approx(exact, rel=1e-12)
    assert probelib.local_learning_coefficient(trace).value == pytest.approx(exact, rel=1e-12)


def test_parts_of_the_llc_are_those_of_their_gains_and_add_up(trace):
    labels = np.arange(200) % 3
    gain = probelib.loss_gain(trace).values
    parts = llc_parts.partial_llc(trace, np.eye(3)[labels])
    assert parts.shape == (3, 60, 3)
    expected = [10 / 200 * gain[labels == k].sum() for k in range(3)]
    np.testing.assert_allclose(parts.mean((0, 1)), expected, rtol=1e-10)
    total = 10 * probelib.mean_loss_change(trace)
    np.testing.assert_allclose(parts.sum(-1), total, rtol=1e-10)
    with pytest.raises(ValueError, match="groups has 3 rows; give one for each of the 200"):
        llc_parts.partial_llc(trace, np.eye(3))


@pytest.mark.filterwarnings("ignore:invalid value")  # R-hat of a constant
def test_the_error_of_a_share_is_that_of_a_ratio():
    """Independent Gaussian draws: the delta method is exact to first order."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(3, 0.3, size=(4, 2500)), rng.normal(7, 0.7, size=(4, 2500))
    estimate = probelib.estimators.share(a, a + b)
    assert estimate.value == pytest.approx(0.3, abs=5e-3)
    # Var = (0.7² Var a + 0.3² Var b) / 10² / S; ArviZ finds an ESS within some 5 % of S.
    expected = np.sqrt((0.49 * 0.09 + 0.09 * 0.49) / 100 / 10_000)
    assert estimate.mcse == pytest.approx(expected, rel=0.1)
    # A part that moves with the whole has a share without error.
    assert probelib.estimators.share(0.4 * b, b).mcse < 1e-15


def test_split_shares_add_up_and_selection_is_seen(trace):
    marked = np.arange(200) < 20
    split = llc_parts.split_llc(trace, np.arange(200) % 4, marked)
    gain = probelib.loss_gain(trace).values
    for shares in (split.classes, split.deciles):
        assert sum(e.value for e in shares) == pytest.approx(1, rel=1e-10)
    assert split.marked.value == pytest.approx(gain[:20].sum() / gain.sum(), rel=1e-10)
    assert split.marked_samples == pytest.approx(0.1)
    top = np.sort(gain)[-2:].sum() / gain.sum()
    assert split.hardest.value == pytest.approx(top, rel=1e-10)
    assert [e.value for e in split.deciles] == sorted(e.value for e in split.deciles)
    first = probelib.loss_gain(trace.isel(draw=slice(30))).values
    second = probelib.loss_gain(trace.isel(draw=slice(30, None))).values
    held_out = second[np.argsort(first)[-2:]].sum() / second.sum()
    assert split.hardest_held_out.value == pytest.approx(held_out, rel=1e-10)
    numbers = split.numbers()
    assert {"gini", "share_wrong_labels", "share_class_3", "share_decile_10_mcse"} <= set(numbers)
    assert llc_parts.percent(numbers, "share_class_9") == "–"
    assert "share_wrong_labels" not in llc_parts.split_llc(trace, np.arange(200) % 4).numbers()
    with pytest.raises(ValueError, match="trace has 4 draws per chain; give 8 or more"):
        llc_parts.split_llc(trace.isel(draw=slice(4)), np.arange(200) % 4)


def test_a_single_chain_can_be_split(trace):
    one = trace.isel(chain=[0], draw=slice(31))
    assert np.isfinite(llc_parts.split_llc(one, np.arange(200) % 4).hardest.rhat)


def test_lorenz_and_gini_have_their_closed_forms():
    samples, part = llc_parts.lorenz(np.array([3.0, 1.0, 0.0]))
    np.testing.assert_allclose(samples, [0, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(part, [0, 0, 0.25, 1])
    n = 50
    assert llc_parts.gini(np.arange(1.0, n + 1)) == pytest.approx((n - 1) / (3 * n))
    assert llc_parts.gini(np.ones(n)) == pytest.approx(0, abs=1e-12)
    assert llc_parts.gini(np.eye(n)[0]) == pytest.approx(1 - 1 / n)


def test_the_fresh_loss_is_in_float64_and_leaves_the_model_alone():
    model = torch.nn.Linear(4, 3)
    x = torch.randn(11, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(11) % 3
    logits = x.double().numpy() @ model.weight.detach().double().numpy().T
    logits = logits + model.bias.detach().double().numpy()
    expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(11), y.numpy()])
    assert llc_parts.fresh_mean_loss(model, x, y, batch=4) == pytest.approx(expected, rel=1e-12)
    assert model.weight.dtype == torch.float32


# -- the sweeps --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sweeps() -> llc_sweeps.Sweeps:
    base = {"n_beta": 500.0, "localization": 10.0, "step_size": 4e-4}
    return llc_sweeps.sweep_mixed(
        base, points=2, curve=4, chains=64, burn_in=5, length=1, draws=10, seed=0
    )


def test_sweeps_lie_on_their_exact_values(sweeps):
    assert {p.knob for p in sweeps.points} == {*llc_sweeps.KNOBS, "steps"}
    # Burn-in leaves exp(-5) of the way, far below the errors of 64 chains.
    assert max(abs(p.z) for p in sweeps.points) < sweeps.claim().high
    numbers = sweeps.numbers()
    assert numbers["sweep_points"] == len(sweeps.points) == len(sweeps.rows()) == 8
    assert numbers["sweep_step_size_2_truth"] == sweeps.points[5].chain
    assert sweeps.claim().must


def test_boundaries_are_where_a_tenth_is_lost_or_gained(sweeps):
    at = sweeps.boundaries
    assert known.mixed_law(500.0, at["localization"]).llc == pytest.approx(0.675, rel=1e-6)
    assert known.mixed_law(at["n_beta_low"], 10.0).llc == pytest.approx(0.675, rel=1e-6)
    for settings in ((at["n_beta_high"], 10.0, 4e-4), (500.0, 10.0, at["step_size"])):
        ratio = known.mixed_chain_llc(*settings) / known.mixed_law(*settings[:2]).llc
        assert ratio == pytest.approx(1.1, rel=1e-4)
    along = known.mixed_chain_along(500.0, 10.0, 4e-4, at["steps"])
    running = np.cumsum(along) / np.arange(1, len(along) + 1)
    goal = 0.9 * known.mixed_chain_llc(500.0, 10.0, 4e-4)
    assert running[-1] >= goal > running[-2]
