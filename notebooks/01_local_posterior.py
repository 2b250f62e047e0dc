# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The local posterior and its sampler
#
# **Claim.** *The sampler draws from the law that theory gives, with a bias that is known in advance.
# Three of the paper's formulas, used as printed, do not.*

# %% [markdown] tags=["about"]
# This chapter reproduces Sections 3.1 and 3.3 and Appendix A.1 of the paper: the local posterior (Eq. 1),
# the sampler (Eq. 7) and the pooled estimators. It shows errata [1](demo-erratum-1),
# [2](demo-erratum-2), [3](demo-erratum-3) and [6](demo-erratum-6) in experiments.
#
# It adds what the paper leaves out: exact values for every part of the sampler, a second sampler without
# the bias, and how to choose the step size $\epsilon$, the weight of the data $n\beta$ and the
# localization $\gamma$ on a small network.
#
# | profile | what runs | two cores |
# | --- | --- | --- |
# | `smoke` | every experiment with few chains and draws: not a result | seconds |
# | `laptop` | every experiment in full | about a minute |
# | `paper` | the same as `laptop` | the same |

# %% tags=["hide-input"]
import numpy as np
import torch
from IPython.display import Markdown
from scipy.stats import norm

import probelib
from probebook import figures, toys
from probebook.chapter import Chapter
from probebook.chapters import local_posterior as helpers

torch.set_num_threads(1)  # the models are small: a second thread slows

# %% tags=["parameters"]
profile: str = "laptop"  # smoke, laptop or paper
seed: int = 0  # of the chains; the data sets have their own
results_dir: str = "../results/live"  # where this chapter's numbers go
live: bool = (
    True  # False when the driver runs it; nothing here depends on it
)
chains: int = 64  # independent chains of the exact experiments
steps: int = 1000  # steps kept of each
burn_in: int = 200  # steps before them; twice as many for erratum 2
short_chains: int = (
    256  # chains of erratum 6, each an experiment of its own
)
network_chains: int = 4  # chains on the small network
network_training: int = 2000  # steps of training of the small network
network_steps: int = 1000  # steps kept of each
network_burn_in: int = 200  # steps before them

# %% tags=["remove-input"]
chapter = Chapter(
    "01_local_posterior",
    profile=profile,
    results_dir=results_dir,
    parameters=globals(),
)
chapter.record(chains=chains, steps=steps)

# %% [markdown]
# ## Two equations and their code
#
# Let $\ell_i(w)$ be the loss of sample $i$ at weights $w$, $L$ the mean loss of the $n$ samples, and $w^*$
# the trained weights. The local posterior (Eq. 1) weighs the mean loss with $n\beta$ and keeps the weights
# near $w^*$ with the strength $\gamma$. Its potential $U$ is minus the logarithm of its density, up to a
# constant:
#
# $$p(w) \propto e^{-U(w)}, \qquad
#   U(w) = n\beta\, L(w) + \frac\gamma2 \lVert w - w^*\rVert^2, \qquad
#   L(w) = \frac1n \sum_i \ell_i(w).$$
#
# Below is the method of `probelib.LocalPosterior`, printed from the installed library as this page
# was made.

# %% tags=["remove-input"]
Markdown(toys.source(probelib.LocalPosterior.potential))

# %% [markdown]
# The sampler is stochastic-gradient Langevin dynamics, SGLD {cite:p}`welling2011sgld`. One step (Eq. 7),
# with step size $\epsilon$, a minibatch $B$ of $m$ samples, and the factor $n\beta$ that the paper's
# version lacks ({ref}`erratum 2 <erratum-2>`):
#
# $$w \leftarrow w - \frac\epsilon2 \Big[ n\beta\, \frac1m \sum_{k \in B} \nabla\ell_k(w)
#   + \gamma\,(w - w^*) \Big] + \sqrt\epsilon\, \xi, \qquad \xi \sim \mathcal N(0, I).$$
#
# And `probelib.SGLD.step`, where `gradient` arrives as the mean gradient of the minibatch:

# %% tags=["remove-input"]
Markdown(toys.source(probelib.SGLD.step))

# %% [markdown]
# ## The law of the chain
#
# Langevin dynamics samples from $e^{-U}$ when its steps are infinitely small. Real steps are not. On a
# quadratic loss the effect is known exactly. Take one direction with curvature $h$ of $L$, so with
# precision $A = n\beta h + \gamma$ in Eq. 1. With $\delta$ the distance from $w^*$ along it, one step is
# $\delta \leftarrow (1 - \epsilon A / 2)\, \delta + \sqrt\epsilon\, \xi$. This is an autoregression. Its
# stationary variance is
#
# $$\sigma^2 = \frac{\epsilon}{1 - (1 - \epsilon A / 2)^2} = \frac{1}{A\,(1 - \epsilon A / 4)},$$
#
# larger than the $1/A$ of Eq. 1, and unbounded as $\epsilon A$ approaches 4. A minibatch adds noise to
# the gradient. If its variance is $s^2$, then
#
# $$\sigma^2 = \frac{1 + \epsilon\,(n\beta)^2 s^2 / 4}{A\,(1 - \epsilon A / 4)}, \qquad
#   s^2 = \frac{\operatorname{Var}_i[\nabla \ell_i]}{m} \cdot \frac{n - m}{n - 1}.$$
#
# The last factor is there because `probelib` draws a minibatch without replacement: the noise
# vanishes at $m = n$.
#
# There are two experiments. First, linear regression with three weights and the full gradient, at several
# step sizes; its three curvatures give three directions. Then the smallest model, a constant, whose
# gradient noise is the same everywhere, at several batch sizes. {numref}`fig-stationary` has both.

# %%
regression = toys.linear_regression(
    n=40, scales=(2.0, 1.2, 0.8), noise=0.5, seed=0
)
n_beta, localization = 40.0, 10.0
curvature, directions = np.linalg.eigh(regression.hessian)
precision = n_beta * curvature + localization
posterior = probelib.LocalPosterior(
    regression.model,
    probelib.squared_error,
    regression.data,
    n_beta=n_beta,
    localization=localization,
)

# %%
kept = {"chains": chains, "steps": steps, "burn_in": burn_in, "seed": seed}
# epsilon times the largest precision
relative_steps = np.array([0.3, 0.6, 1.2, 2.2, 3.2])
# variance times A and its standard error, of three directions
scaled = np.empty((len(relative_steps), 2, 3))
for row, relative in zip(scaled, relative_steps, strict=True):
    squares = helpers.squared_moves(
        posterior, relative / precision[-1], basis=directions, **kept
    )
    row[:] = toys.mean_and_error(squares * precision)
step_in_precisions = relative_steps[:, None] * precision / precision[-1]
z_steps = (scaled[:, 0] - 1 / (1 - step_in_precisions / 4)) / scaled[:, 1]

# %%
n, width, nb, gamma, step_size = 32, 8, 32.0, 4.0, 0.02
x, y = toys.constant_data(n, width, seed=0)  # every target has variance 1
constant = probelib.LocalPosterior(
    toys.Constant(y.mean(0)),
    probelib.squared_error,
    (x, y),
    n_beta=nb,
    localization=gamma,
)
batches = [1, 2, 4, 8, 16, 32]
fewer = kept | {"steps": steps // 4}
moves = [
    helpers.squared_moves(constant, step_size, size, **fewer).mean(-1)
    for size in batches
]
by_batch = np.array([toys.mean_and_error(of_size) for of_size in moves])

# %%
of_full_batch = 1 / ((nb + gamma) * (1 - step_size * (nb + gamma) / 4))
m = np.geomspace(1, n, 60)
noise = step_size * nb**2 / 4 / m  # s² without the finite-population factor
theory = {
    "theory, without replacement": (
        m,
        of_full_batch * (1 + noise * (n - m) / (n - 1)),
    ),
    "with replacement it would be": (m, of_full_batch * (1 + noise)),
}
predicted = np.interp(batches, *theory["theory, without replacement"])
z_batches = (by_batch[:, 0] - predicted) / by_batch[:, 1]

# %% tags=["key-figure"] mystnb={"figure": {"caption": "Stationary variance of the chain, measured (points, bars of two standard errors) and in theory (black line). Left: full gradient. Variance in units of Eq. 1's against the step size in units of the precision; three directions of one regression fall on one curve. Right: minibatches. Look at the largest batches: only the curve with the finite-population factor (black) meets the points.", "name": "fig-stationary"}, "image": {"alt": "Left: variance times precision against epsilon times A; a curve that rises from one near zero to five at epsilon A of 3.2, with measured points of three directions, above the dotted line of Eq. 1. Right: variance against batch size on log axes, falling from batch size 1 to 32; measured points, a black theory curve, and a dashed curve without the finite-population factor lies above them at large batches."}}
axis = np.linspace(0, 3.4, 200)
figures.stationary_variance(
    [
        (step_in_precisions[:, k], scaled[:, 0, k], scaled[:, 1, k])
        for k in (2, 1, 0)
    ],
    (axis, 1 / (1 - axis / 4)),
    (batches, by_batch[:, 0], by_batch[:, 1]),
    theory,
    1 / (nb + gamma),
)

# %% tags=["remove-input"]
chapter.record(
    step_largest=relative_steps[-1],
    step_variance_ratio=scaled[-1, 0, -1],
    step_variance_ratio_mcse=scaled[-1, 1, -1],
    step_variance_ratio_theory=1 / (1 - relative_steps[-1] / 4),
    step_z_max=np.abs(z_steps).max(),
    batch_1_variance=by_batch[0, 0],
    batch_16_variance=by_batch[-2, 0],
    batch_z_max=np.abs(z_batches).max(),
    n_step_points=z_steps.size,
    n_batch_points=z_batches.size,
    step_z_by_chance=norm.isf(0.05 / 2 / z_steps.size),
)
chapter.say(
    "At εA = {step_largest:g} the measured variance is **{step_variance_ratio:.2f} ± "
    "{step_variance_ratio_mcse:.2f}** times that of Eq. 1; theory gives {step_variance_ratio_theory:.2f}. Of "
    "{n_step_points} points by step size the one farthest from theory is {step_z_max:.1f} standard errors "
    "away, where chance alone exceeds {step_z_by_chance:.1f} in one run of twenty. Of {n_batch_points} by "
    "batch size the farthest is {batch_z_max:.1f} away."
)

# %% [markdown]
# ## Loss gain, kernel and LLC in closed form
#
# For $\ell_i = \frac12 (x_i^\top w - y_i)^2$ at the least-squares solution, with residuals $r$ and
# Gaussian weights of covariance $C$, write $G = X C X^\top$. The loss gain $\mu_i$, the loss kernel $K$
# and the local learning coefficient (LLC) $\lambda$ are
#
# $$\mu_i = \frac{G_{ii}}2, \qquad
#   K = (r r^\top) \circ G + \frac12\, G \circ G, \qquad
#   \lambda = \frac{n\beta}2 \operatorname{tr}(H C).$$
#
# where $H$ is the Hessian of $L$. Under Eq. 1, $C = (n\beta H + \gamma I)^{-1} = A^{-1}$. Under the chain,
# $C = [A\,(1 - \epsilon A / 4)]^{-1}$, and the law is still exactly Gaussian. So there are two exact
# values: that of the chain, which the measurement must match within its Monte-Carlo error, and that of
# Eq. 1, its limit as $\epsilon \to 0$, from which it differs by the bias of the step. With minibatches
# the chain's $C$ solves a linear equation (`toys.LinearRegression.covariance`). Its law is no longer
# Gaussian, but $\mu$ and $\lambda$ need only $C$. {numref}`fig-regression` compares the measured gains
# and kernel with the exact ones.

# %%
epsilon = 1.0 / precision[-1]
trace = probelib.sample(
    posterior,
    sampler=probelib.SGLD(step_size=epsilon),
    chains=chains,
    draws=steps,
    burn_in=burn_in,
    seed=seed,
    progress=False,
)
gain = probelib.loss_gain(trace)
kernel = probelib.loss_kernel(trace)
llc = probelib.local_learning_coefficient(trace)
variance = probelib.empirical_variance(trace)

# %%
batch = 8
noisy = probelib.sample(
    posterior,
    sampler=probelib.SGLD(step_size=epsilon, batch_size=batch),
    chains=chains,
    draws=steps,
    burn_in=burn_in,
    seed=seed,
    progress=False,
)
llc_minibatch = probelib.local_learning_coefficient(noisy)

# %%
limit = regression.covariance(n_beta, localization)
of_chain = regression.covariance(n_beta, localization, epsilon)
of_noisy_chain = regression.covariance(n_beta, localization, epsilon, batch)
exact_gain = regression.gain(of_chain)
exact_kernel = regression.kernel(of_chain)

# %% mystnb={"figure": {"caption": "Linear regression, measured against exact. Left: loss gain of each sample over its exact value; the filled points, over the exact law of the discretised chain, must lie on the line within their bars of two standard errors; the open ones, over the law of Eq. 1, show the bias of the step size. Bars are long where a large residual makes a loss swing widely about a small mean. Right: every entry of the loss kernel against its exact value.", "name": "fig-regression"}, "image": {"alt": "Left: ratio of measured to exact loss gain for forty samples; filled blue points around one, open orange diamonds mostly above them. Right: measured kernel entries against exact ones, and the diagonal."}}
figures.closed_forms(
    (exact_gain, regression.gain(limit), gain.values, gain.mcse.values),
    (exact_kernel, kernel.covariance()),
)

# %% tags=["remove-input"]
measured = helpers.Regression(
    regression, n_beta, gain, kernel, llc, variance, llc_minibatch, batch,
    limit, of_chain, of_noisy_chain,
)  # fmt: skip
closed = measured.claims(
    chapter
)  # each exact value is recorded as exact_<key>
rows = helpers.bias_rows(chapter, closed)
chapter.table(
    rows,
    "Linear regression: the measurement against the exact law of the chain, and of Eq. 1.",
)

# %% [markdown]
# More draws would not bring the last two columns together; a smaller $\epsilon$ would.
#
# ### The same step without its bias
#
# SGLD adds new noise $\sqrt\epsilon\,\xi_t$ at each step. `LeimkuhlerMatthews` adds
# $\sqrt\epsilon\,(\xi_t + \xi_{t+1})/2$ instead, at the same cost. On a quadratic its variance is
# $1/A$ at every stable step. So it is compared with Eq. 1 itself, at the same step size. The noise of a
# minibatch stays: neither sampler removes it.
#
# A trace also reports its own bias: `step_bias` stands beside the Monte-Carlo error. It comes from
# gradients that were recorded on the way, to first order in $\epsilon$.

# %%
unbiased, noisy_unbiased = (
    probelib.sample(
        posterior,
        sampler=probelib.LeimkuhlerMatthews(epsilon, batch_size=size),
        chains=chains,
        draws=steps,
        burn_in=burn_in,
        seed=seed,
        progress=False,
    )
    for size in (None, batch)
)
trust = probelib.diagnostics(trace, seed=seed)
unbiased_trust = probelib.diagnostics(unbiased, seed=seed)
print(f"SGLD: {trust}\n")
print(f"Leimkuhler-Matthews: {unbiased_trust}")

# %% tags=["remove-input"]
chapter.record_verdict(trust)
chapter.record_verdict(unbiased_trust, "unbiased_verdict")

# %% tags=["remove-input"]
in_batches = f", minibatches of {batch}"
by_sampler = {
    "": ("SGLD", trace),
    "_minibatch": ("SGLD" + in_batches, noisy),
    "_unbiased": ("Leimkuhler-Matthews", unbiased),
    "_minibatch_unbiased": (
        "Leimkuhler-Matthews" + in_batches,
        noisy_unbiased,
    ),
}
eq1 = (
    regression.llc(n_beta, limit),
    regression.gain(limit),
    np.trace(regression.kernel(limit)),
)
chapter.table(
    helpers.sampler_rows(chapter, by_sampler, eq1),
    "The same regression by both samplers at one step size; ± is chance, the step bias beside it.",
)
unbiased_claims = helpers.unbiased_claims(chapter, eq1, unbiased)
chapter.say(
    "The LLC of Eq. 1 is {regression_llc_eq1:.3f}. SGLD gives {regression_llc:.3f} ± "
    "{regression_llc_mcse:.3f}; its trace reports a step bias of {regression_llc_step_bias:.3f}. "
    "Leimkuhler-Matthews gives **{regression_llc_unbiased:.3f} ± {regression_llc_unbiased_mcse:.3f}**."
)

# %% [markdown]
# (demo-erratum-3)=
# ### Erratum 3: the sum of the loss gains
#
# With $L$ a mean, $\lambda = n\beta\, (\operatorname{E}[L] - L(w^*))$ is
# $\beta \sum_i \mu_i$. B.1 prints $n\beta \sum_i \mu_i$, which is $n$ times as much; here $n = 40$.
# The exact $\lambda = \frac{n\beta}2 \operatorname{tr}(H C)$ comes from the weights' covariance, not
# from loss gains, so it decides between the two.

# %% tags=["remove-input"]
chapter.record(
    erratum3_beta_sum=posterior.beta * gain.values.sum(),
    erratum3_printed=n_beta * gain.values.sum(),
)
chapter.say(
    "From the measured loss gains: β Σμ = **{erratum3_beta_sum:.3f} ± {regression_llc_mcse:.3f}**; "
    "as printed, nβ Σμ = **{erratum3_printed:.1f}**. Exact, for this chain: λ = "
    "**{exact_regression_llc:.3f}**."
)

# %% [markdown]
# ## Three more errata, measured
#
# The {doc}`errata <../errata>` derive these corrections. Here is what happens without them;
# {numref}`fig-errata` shows all three.
#
# (demo-erratum-1)=
# ### Erratum 1: the localization is a precision
#
# Below Eq. 1 the paper names the localizing Gaussian $\mathcal N(w^*, \gamma I)$. Without the data
# ($n\beta = 10^{-9}$) only the localization is left: the variance of a weight is then either
# $\gamma$ or $1/\gamma$. The steps are scaled to the precision, $\epsilon\gamma = 0.2$, so that the
# chain's own variance is $1/\gamma$ times $1 / (1 - 0.05)$.

# %%
gammas = np.array([1.0, 5.0, 30.0, 1000.0])
spread = []
for g in gammas:
    free = probelib.LocalPosterior(
        toys.Constant(y.mean(0)),
        probelib.squared_error,
        (x, y),
        n_beta=1e-9,
        localization=g,
    )
    squares = helpers.squared_moves(free, 0.2 / g, **fewer)
    spread.append(toys.mean_and_error(squares.mean(-1)))
spread = np.array(spread)

# %% tags=["remove-input"]
chapter.record(
    erratum1_gamma=gammas[2],
    erratum1_variance=spread[2, 0],
    erratum1_variance_mcse=spread[2, 1],
    erratum1_inverse=1 / gammas[2],
    erratum1_variance_times_gamma=(spread[:, 0] * gammas)[2],
    erratum1_z_max=np.abs(
        (spread[:, 0] * gammas - 1 / 0.95) / (spread[:, 1] * gammas)
    ).max(),
)
chapter.say(
    "At γ = {erratum1_gamma:g} the measured variance of a weight is "
    "**{erratum1_variance:.4f} ± {erratum1_variance_mcse:.4f}**; 1/γ is {erratum1_inverse:.4f}, before the "
    "5 % of the step."
)

# %% [markdown]
# (demo-erratum-2)=
# ### Erratum 2: the update without the inverse temperature
#
# The printed Eq. 7 has $\frac nm \sum_{k \in B} \nabla \ell_k$ where Eq. 1 needs
# $\frac{n\beta}{m} \sum_{k \in B} \nabla \ell_k$. `toys.printed_update` runs it as printed, beside
# ours, on the regression with $n = 40$ samples. The printed update does not contain $\beta$; the
# law that it is meant to sample does.

# %%
temperatures = np.array([5.0, 10.0, 40.0, 160.0])
updates = helpers.both_updates(
    regression,
    temperatures,
    localization,
    **kept | {"steps": steps // 2, "burn_in": 2 * burn_in},
)

# %% tags=["remove-input"]
updates.record(chapter)
chapter.say(
    "At nβ = {erratum2_n_beta:g}, with n = 40: our variance is "
    "{erratum2_ours_over_eq1:.3f} times that of Eq. 1, that of the printed update "
    "**{erratum2_printed_over_eq1:.3f} ± {erratum2_printed_over_eq1_error:.3f}** times."
)

# %% [markdown]
# (demo-erratum-6)=
# ### Erratum 6: the pooled covariance is biased for a Markov chain
#
# A.1 calls the estimate $\hat K$ of the kernel unbiased. It divides by the number of draws less one, which
# is right for independent draws. The draws of a chain are not independent. The chain's mean follows the
# chain, and the deviations from it are too small. On average $\hat K$ is lower than $K$ by a fraction of
# about $1/\mathrm{ESS}$, where the effective sample size (ESS) counts how many independent draws the
# chain is worth. To see an average, run many short chains, estimate $\operatorname{tr} K$ from each
# alone, and compare the mean of these estimates with the exact one. The expectation is known, too:
# each loss has an autocovariance that follows from that of the weights.

# %%
erratum6_eps = 0.3 / precision[-1]
lengths = np.array([5, 10, 20, 50, 100, 200])
many = probelib.sample(
    posterior,
    sampler=probelib.SGLD(step_size=erratum6_eps),
    chains=short_chains,
    draws=int(lengths[-1]),
    burn_in=burn_in,
    seed=seed + 2,
    progress=False,
).load()
truth = np.trace(
    regression.kernel(
        regression.covariance(n_beta, localization, erratum6_eps)
    )
)


def trace_ratio(draws):
    """Expected ratio and effective draws of one chain."""
    return regression.expected_trace_ratio(
        n_beta, localization, erratum6_eps, draws
    )


# %%
short = helpers.short_chains(many, lengths, truth, trace_ratio)
smooth = np.array([trace_ratio(t) for t in range(4, 260)]).T

# %% tags=["remove-input"]
short.record(chapter, probelib.empirical_variance(many), truth)
chapter.say(
    "From {erratum6_draws} draws of one chain, worth {erratum6_ess:.1f} independent ones, the estimate "
    "is on average **{erratum6_ratio:.3f} ± {erratum6_ratio_error:.3f}** of the truth. Pooled over "
    "all chains, each of full length, it is {erratum6_pooled_ratio:.3f} ± "
    "{erratum6_pooled_ratio_mcse:.3f}."
)

# %% mystnb={"figure": {"caption": "What is printed (dashed, red) against what is measured (points) and exact (black). Erratum 1: the variance of a weight under the localization alone, against gamma. Erratum 2: the variance of the printed update (squares) should depend on n beta; see where it agrees with Eq. 1, and where it does not. Beta is 1 at the dotted line. Erratum 6: the mean estimate of the kernel's trace from single short chains, over the truth, against how many independent draws a chain is worth.", "name": "fig-errata"}, "image": {"alt": "Three panels. Top left: variance against gamma on log axes; a falling line one over gamma, a rising line gamma, and measured points. Top right: total variance against n beta; a falling curve with round points, a flat line with squares; the two lines cross near n beta of 40. Bottom: ratio of the mean estimated to the exact trace of K against effective draws; points, an exact curve that rises towards one, and a dashed line at one."}}
finer = np.geomspace(2, 200, 40)
printed_law = np.trace(
    regression.covariance(40.0, localization, updates.step_size[1])
)
eq1_variance = [
    np.trace(regression.covariance(t, localization)) for t in finer
]
laws = {
    "Eq. 1": np.array(eq1_variance),
    "printed update, exact": np.full(len(finer), printed_law),
}
measured_variance = {
    "ours, measured": updates.ours,
    "printed, measured": updates.printed,
}
figures.three_errata(
    (gammas, spread[:, 0], spread[:, 1]),
    (finer, laws, temperatures, measured_variance, 40.0),
    (short.ess, short.ratio, short.error, smooth[1], smooth[0]),
)

# %% [markdown]
# ## A network, and no closed form
#
# From here on nothing is exact. The model is a ReLU network with 16 hidden units on two overlapping
# half-moons, trained for many steps. Its Hessian at $w^*$ is small enough to be computed in full. The
# largest eigenvalue $h_{\max}$ gives the largest precision $A_{\max} = n\beta\, h_{\max} + \gamma$
# that the chain will meet there. The starting point for the settings is Table 1's: $n\beta = 10$,
# $\gamma = 30$, $\epsilon = 5 \times 10^{-3}$, $m = 64$.
#
# Two numbers can be computed before any chain runs:
#
# - $\epsilon A_{\max}$, the step in units of the stiffest direction. The variance there is too large
#   by the fraction $\epsilon A_{\max} / 4$, as long as that is small. From 4 on, the quadratic
#   approximation of the chain has no stationary law.
# - $2 / (\epsilon\gamma)$, the relaxation time along a flat direction, in steps: the chain forgets its
#   position there in about so many, because only the localization pulls it back. Burn-in should be
#   several of these, the whole chain very many.

# %%
model, data = toys.moons_network(steps=network_training, seed=0)
table1 = {"epsilon": 5e-3, "n beta": 10.0, "gamma": 30.0}
h_max = toys.largest_curvature(
    probelib.LocalPosterior(
        model, probelib.cross_entropy, data, n_beta=10.0, localization=30.0
    )
)
thin = 5
network_chain = {
    "chains": network_chains,
    "draws": network_steps // thin,
    "thin": thin,
    "burn_in": network_burn_in,
    "seed": seed,
    "progress": False,
}


# %%
def probe(method=probelib.SGLD, **changed):
    """Run the chains with Table 1's settings, some of them changed."""
    settings = table1 | changed
    around = probelib.LocalPosterior(
        model,
        probelib.cross_entropy,
        data,
        n_beta=settings["n beta"],
        localization=settings["gamma"],
    )
    return probelib.sample(
        around,
        sampler=method(step_size=settings["epsilon"], batch_size=64),
        **network_chain,
    )


def stiffness(**changed):
    """epsilon A_max of these settings."""
    settings = table1 | changed
    return settings["epsilon"] * (
        settings["n beta"] * h_max + settings["gamma"]
    )


# %% tags=["remove-input"]
chapter.record(
    h_max=h_max,
    table1_stiffness=stiffness(),
    table1_forgetting=2 / (table1["epsilon"] * table1["gamma"]),
)
chapter.say(
    "Largest curvature {h_max:.2f}, so ε A_max = **{table1_stiffness:.2f}**, and the "
    "relaxation time of a flat direction is {table1_forgetting:.0f} steps."
)

# %% [markdown]
# ### What chains look like
#
# Four runs: Table 1's settings, very short steps, a very weak localization, and very long steps.
# $\hat R$ (R-hat) compares the chains with each other; it is near 1 where they agree. Look at each run in
# {numref}`fig-chains` and guess which of them $\hat R$ accepts.

# %%
cases = {
    "Table 1": {},
    "steps too short (ε = 0.0001)": {"epsilon": 1e-4},
    "localization too weak (γ = 0.3)": {"gamma": 0.3},
    "steps too long (ε = 0.05)": {"epsilon": 0.05},
}
runs = {name: probe(**changed) for name, changed in cases.items()}
looks = {
    name: probelib.diagnostics(run, n_samples=100)
    for name, run in runs.items()
}

# %% mystnb={"figure": {"caption": "Mean loss along the chains (left; dotted: the loss at the trained weights) and its autocorrelation (right) for four settings on the small network. All rows share their axes. Chains that have mixed share one band, and their autocorrelation falls quickly. Look in each row whether they do. In the last row, look also how high the band lies above the dotted line.", "name": "fig-chains"}, "image": {"alt": "Four rows, one per run, each with the chains on the left and their autocorrelation on the right. In the published run, first row: chains mixed in one narrow band slightly above the dotted line. Second: slow chains close to the dotted line. Third: chains at different levels. Fourth: chains well mixed, but far above the dotted line."}}
series = {
    name: float(run.init_loss.mean()) + probelib.mean_loss_change(run)
    for name, run in runs.items()
}
lags = min(40, network_steps // thin // 2)
figures.chain_gallery(
    {
        name: (along, probelib.autocorrelation(along, lags))
        for name, along in series.items()
    },
    "loss (nats)",
    reference=looks["Table 1"].loss_at_center,
    thin=thin,
)

# %% tags=["remove-input"]
rows = helpers.network_rows(
    chapter,
    runs,
    looks,
    {name: stiffness(**changed) for name, changed in cases.items()},
    keys=("table1", "short", "loose", "long"),
    thin=thin,
)
chapter.table(
    rows,
    "The same four runs in numbers: R-hat and ESS over the mean loss and 100 samples' losses.",
)

# %% tags=["remove-input"]
chapter.record_verdict(looks["Table 1"], "network_table1_verdict")
chapter.record_verdict(
    looks["steps too long (ε = 0.05)"], "network_long_verdict"
)
of_long, of_table1 = (
    toys.with_error(
        chapter.numbers[name], chapter.numbers.get(f"{name}_mcse")
    )
    for name in ("network_long_llc", "network_table1_llc")
)
chapter.say(
    "With the longest steps the largest $\\hat R$ is {network_long_rhat_max:.3f} and the least ESS "
    "{network_long_ess_min:.0f}. "
    f"The LLC is **{of_long}**, and with Table 1's {of_table1}. "
    "The library's verdict on the run with the longest steps: {network_long_verdict}."
)

# %% [markdown]
# $\hat R$ and ESS compare the chains with each other. They detect chains that have not mixed. They cannot
# detect chains that all agree on the wrong law, which a step that is too long can produce. For that,
# look at $\epsilon A_{\max}$, at the step bias, or at a second run with a smaller step.
#
# ### A chain that diverges
#
# With steps that are much too long the weights grow without bound. A chain whose loss is no longer finite
# ends there, and the others go on. Where none is left, `probelib` raises an error that names the first
# and its step, and keeps what was drawn before.

# %% tags=["hide-input"]
try:
    probe(epsilon=0.5)
    diverged = None
except probelib.DivergenceError as error:
    diverged = error

# %% tags=["remove-input"]
if diverged is None:
    chapter.record(divergence="no chain diverged")
else:
    chapter.record(
        divergence=str(diverged),
        divergence_step=diverged.step,
        divergence_draws=diverged.trace.sizes["draw"],
    )
chapter.say("With ε = 0.5: *{divergence}*")

# %% [markdown]
# ### One setting at a time
#
# A sweep around Table 1's settings, every run with the same number of steps. A run is called *step
# too long* when $\epsilon A_{\max} > 1$, a bias of a third or more in the stiffest direction, and
# otherwise *not mixed* when its largest $\hat R$ exceeds 1.1, a lenient limit for short chains. The LLC
# may change with $n\beta$ and $\gamma$: they define the posterior. It should not change with $\epsilon$,
# which concerns the sampler alone. The outcome is {numref}`fig-sweep`.

# %% tags=["hide-input"]
grid = {
    "epsilon": [1e-4, 1e-3, 5e-3, 2e-2, 5e-2],
    "n beta": [1.0, 10.0, 100.0, 300.0],
    "gamma": [0.3, 3.0, 30.0, 150.0],
}
done = {
    tuple(changed.items()): runs[name] for name, changed in cases.items()
}
swept, paper_by_step = [], {}
for knob, values in grid.items():
    for value in values:
        changed = {} if value == table1[knob] else {knob: value}
        key, settings = tuple(changed.items()), table1 | changed
        run = done[key] if key in done else probe(**changed)
        if knob == "epsilon":
            paper_by_step[value] = run
        point = helpers.Setting(
            knob,
            value,
            probelib.local_learning_coefficient(run),
            probelib.diagnostics(run, n_samples=100),
            stiffness(**changed),
            2 / (settings["epsilon"] * settings["gamma"]),
        )
        swept.append(point)

# %% mystnb={"figure": {"caption": "One setting changed at a time on the small network, the others as in Table 1 (dotted lines). Above: the local learning coefficient with two standard errors. Below: the least effective number of draws. Triangles mark steps that are too long: see how many effective draws they have, and where their coefficient lies.", "name": "fig-sweep"}, "image": {"alt": "Two rows of three panels with log axes: local learning coefficient above, effective draws below, against epsilon, n beta and gamma. Circles mark sound runs, crosses runs that have not mixed, triangles runs whose step is too long."}}
knobs = helpers.sweep_panels(swept)
chosen = dict(zip(knobs, table1.values(), strict=True))
figures.sweeps(knobs, chosen, helpers.VERDICTS)

# %% tags=["remove-input"]
chapter.table(
    [point.row(chapter) for point in swept],
    "The sweep in numbers. 2 / (ε γ) is the relaxation time of a flat direction, in steps; ± is chance, the step bias beside it.",
)

# %% [markdown]
# The row of $\epsilon$ once more, by both samplers. A sampler without bias has the same LLC at every
# step that is short enough to be stable and long enough to mix. A network's loss is not quadratic, so
# `LeimkuhlerMatthews` has some bias at long steps too. The reported step bias is of first order: it is
# reliable where it is small. Where it is a large part of the LLC, trust neither number.

# %%
unbiased_by_step = {
    e: probe(probelib.LeimkuhlerMatthews, epsilon=e) for e in paper_by_step
}

# %% tags=["remove-input"]
samplers = {"SGLD": paper_by_step, "Leimkuhler-Matthews": unbiased_by_step}
chapter.table(
    helpers.step_rows(chapter, samplers),
    "The LLC of the small network by step size and sampler.",
)

# %% [markdown]
# ### A recipe
#
# 1. **$\gamma$ and $n\beta$ define the posterior.** $n\beta$ sets how much the loss may rise: about
#    $\lambda / n\beta$ nats on average. $\gamma$ sets how far the weights may go: about
#    $\sqrt{d/\gamma}$ from $w^*$ in $d$ flat directions. Choose them, and report them.
# 2. **Choose $\epsilon$ from the stiffest direction.** Estimate $h_{\max}$ and keep
#    $\epsilon\,(n\beta\, h_{\max} + \gamma)$ well below 1. Without a Hessian: halve $\epsilon$ and see
#    whether the LLC changes by more than its error.
# 3. **Choose the number of steps from the flattest direction.** An independent draw along it costs about
#    $2/(\epsilon\gamma)$ steps. Burn in for several of these, run for hundreds.
# 4. **Then check**: the loss along the chains, and $\hat R$ and ESS of single samples as well as of the
#    mean loss, which mixes faster than they do.
#
# If 2 and 3 cannot both be met, the posterior is too stiff for this sampler. A larger $\gamma$ makes it
# less stiff, but it is then another posterior: say so.
#
# ## Paper says / this run
#
# The second column holds an exact value where the quantity has one. A run then agrees within four
# Monte-Carlo standard errors, which chance exceeds once in 16,000 tries. The last three lines compare the
# paper's printed statements in the same way. They are expected to differ: they are the errata. A miss in
# any other line is an error of the sampler or of this chapter, and the book is not built with it.

# %% tags=["remove-input"]
chapter.record(
    printed_variance_ratio=updates.printed[1] / updates.eq1[1],
    exact_erratum6_ratio=short.expected[2],
)
by_step = helpers.stationary_claims(
    chapter, relative_steps[-1], scaled[-1, 1, -1], predicted, by_batch
)
precision_exact, precision_printed = helpers.localization_claims(
    chapter, gammas[2], spread[2, 1]
)
update_exact, update_printed = updates.claims(chapter, printed_law)
chapter.compare(
    [
        *by_step,
        *closed,
        *unbiased_claims,
        helpers.gain_claim(len(curvature)),
        *precision_exact,
        *update_exact,
        *precision_printed,
        *update_printed,
        short.claim(),
    ],
    against="exact or printed value",
)

# %% [markdown]
# ## What could fool you
#
# - **A quadratic is the best case.** The closed forms show that the sampler does what it should. They
#   do not show that a network's posterior is close to a quadratic.
# - **Good diagnostics, wrong law.** $\hat R$ near 1 is necessary, not sufficient: see the last row of
#   {numref}`fig-chains`.
# - **The mean loss mixes faster than the losses.** An ESS for the LLC says little about the loss gain
#   of a sample that depends on a slow direction. `probelib.diagnostics` looks at samples, too.
# - **Pooling can hide and can invent.** Few effective draws make $\hat K$ too small. Chains that have not
#   mixed make it too large, by the variance between them.
# - **The curvature is not constant.** $h_{\max}$ at $w^*$ is a local number; the chain may reach
#   stiffer places.

# %% [markdown]
# ## Exercises
#
# **1.** Halve the step of the regression. By what factor does the bias of the LLC fall? Use
# $1/(1 - \epsilon A/4)$ for a guess, with $\epsilon A = 1$ in the stiffest direction.

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the answer"}
halved = probelib.sample(
    posterior,
    sampler=probelib.SGLD(step_size=epsilon / 2),
    chains=chains,
    draws=steps,
    burn_in=burn_in,
    seed=seed,
    progress=False,
)
half_law = regression.covariance(n_beta, localization, epsilon / 2)
bias_full, bias_half = (
    regression.llc(n_beta, law) - eq1[0] for law in (of_chain, half_law)
)
found = probelib.local_learning_coefficient(halved)
chapter.record(
    exercise_bias_factor=bias_full / bias_half,
    exercise_bias_half=bias_half,
    exercise_bias_half_measured=found.value - eq1[0],
    exercise_bias_half_measured_mcse=found.mcse,
)
chapter.say(
    "By a factor of **{exercise_bias_factor:.2f}**, to {exercise_bias_half:.3f}. Measured: "
    "{exercise_bias_half_measured:.3f} ± {exercise_bias_half_measured_mcse:.3f}. To first order it would be "
    "a factor of 2."
)

# %% [markdown]
# **2.** The update as printed (erratum 2) ran at $n\beta = 10$. At which $n\beta$ would Eq. 1 have the
# variance that it found?

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the answer"}
chapter.record(
    exercise_printed_over_eq1_at_n=updates.printed[1] / updates.eq1[2],
    exercise_printed_error=updates.printed_error[1] / updates.eq1[2],
    exercise_printed_exact=printed_law / updates.eq1[2],
)
chapter.say(
    "At $n\\beta = n = 40$, where $\\beta = 1$. There its variance is **{exercise_printed_over_eq1_at_n:.2f} ± "
    "{exercise_printed_error:.2f}** times that of Eq. 1. Exact, with this step: {exercise_printed_exact:.3f}."
)

# %% [markdown]
# **3.** How many steps of one chain does $\hat K$ need before its bias is below 5 %, in the experiment of
# erratum 6?

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the answer"}
enough = next(t for t in range(10, 20_000, 10) if trace_ratio(t)[0] > 0.95)
chapter.record(
    exercise_draws=enough, exercise_draws_ess=trace_ratio(enough)[1]
)
chapter.say(
    "About **{exercise_draws}**, worth {exercise_draws_ess:.0f} independent draws: $1/\\mathrm{{ESS}}$ is "
    "then about 5 %."
)

# %% [markdown]
# ## Summary
#
# On a quadratic loss the sampler's law is known, and the table compares every part of it with that law:
# stationary variances, minibatch noise, loss gains, the kernel, the LLC. Its bias is a matter of
# $\epsilon A$, and minibatches add to it. Three printed formulas are compared with the same laws. On a
# network, look at $\hat R$ *and* at the step size; then read the numbers. The
# {doc}`next chapter <02_loss_gain>` does so on MNIST.
#
# **References.** SGLD: {cite:t}`welling2011sgld`. The local learning coefficient and its estimator:
# {cite:t}`lau2025llc`. Losses of Bayesian models: {cite:t}`watanabe2018mathematical`.

# %% tags=["answer"]
chapter.answer(
    "On models with a known law the chain has the variance that theory gives for its step: of "
    "{n_step_points} variances the farthest is **{step_z_max:.1f}** standard errors away. It is wider than "
    "Eq. 1: in the regression below the LLC is {regression_llc:.3f} ± {regression_llc_mcse:.3f}, where Eq. 1 "
    "has {regression_llc_eq1:.3f} and the unbiased sampler finds **{regression_llc_unbiased:.3f} ± "
    "{regression_llc_unbiased_mcse:.3f}**; the update as printed has "
    "{erratum2_printed_over_eq1:.2f} ± {erratum2_printed_over_eq1_error:.2f} of Eq. 1's variance at "
    "$n\\beta$ = {erratum2_n_beta:g}.",
    "The ± are chance; the exact bias of that LLC is {regression_llc_bias:+.0%}. Verdict on SGLD's draws: "
    "{verdict}. On the unbiased sampler's: {unbiased_verdict}. On the small network at Table 1's settings: "
    "{network_table1_verdict}.",
)

# %% tags=["remove-input"]
chapter.finish(
    "largest deviation from theory {step_z_max:.1f} s.e. by step, {batch_z_max:.1f} by batch; LLC of a "
    "regression by SGLD {regression_llc:.3f} ± {regression_llc_mcse:.3f} (exact for this chain "
    "{exact_regression_llc:.3f}), unbiased sampler {regression_llc_unbiased:.3f} ± "
    "{regression_llc_unbiased_mcse:.3f} (exact, Eq. 1: {regression_llc_eq1:.3f}); printed Eq. 7 gives "
    "{erratum2_printed_over_eq1:.2f} ± {erratum2_printed_over_eq1_error:.2f} of Eq. 1's variance at "
    "nβ = {erratum2_n_beta:g}"
)
