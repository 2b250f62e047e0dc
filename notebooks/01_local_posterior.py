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
# **Claim.** *The sampler draws from the law that theory says it must, with a bias that is known in
# advance; three of the paper's formulas, followed to the letter, would not.*
#
# This chapter covers Section 3.1, Section 3.3 and Appendix A.1 of the paper (Eqs. 1 and 7, and the
# pooled estimators). You will see the two equations beside the code that runs; the sampler held
# against closed forms that carry no sampling error; errata [1](demo-erratum-1),
# [2](demo-erratum-2), [3](demo-erratum-3) and [6](demo-erratum-6) at work; and how to choose
# $\epsilon$, $n\beta$ and $\gamma$ on a small network, with choices that fail loudly, and one that
# fails in silence.
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

import probelib
from probebook import figures, toys
from probebook.chapter import Chapter
from probebook.chapters import local_posterior as helpers

torch.set_num_threads(
    1
)  # the models are so small that a second thread only gets in the way

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

# %%
chapter = Chapter(
    "01_local_posterior", profile=profile, results_dir=results_dir
)
chapter.record(chains=chains, steps=steps)

# %% [markdown]
# ## Two equations and their code
#
# **Eq. 1**, the local posterior, and its potential, which is minus the logarithm of its density up
# to a constant:
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
# **Eq. 7**, one step of stochastic-gradient Langevin dynamics {cite:p}`welling2011sgld`, with the
# factor $n\beta$ that the paper's version lacks ({ref}`erratum 2 <erratum-2>`):
#
# $$w \leftarrow w - \frac\epsilon2 \Big[ n\beta\, \frac1m \sum_{k \in B} \nabla\ell_k(w)
#   + \gamma\,(w - w^*) \Big] + \sqrt\epsilon\, \xi, \qquad \xi \sim \mathcal N(0, I).$$
#
# And `probelib.SGLD.step`, where `gradient` arrives as the mean gradient of the minibatch:

# %% tags=["remove-input"]
Markdown(toys.source(probelib.SGLD.step))

# %% [markdown]
# ## Where the chain comes to rest
#
# Langevin dynamics samples from $e^{-U}$ when its steps are infinitely small. Ours are not. On a
# quadratic loss the price is known exactly. Take one direction with curvature $h$ of $L$, so with
# precision $A = n\beta h + \gamma$ in Eq. 1. There one step is
# $\delta \leftarrow (1 - \epsilon A / 2)\, \delta + \sqrt\epsilon\, \xi$, an autoregression, whose
# variance settles at
#
# $$\sigma^2 = \frac{\epsilon}{1 - (1 - \epsilon A / 2)^2} = \frac{1}{A\,(1 - \epsilon A / 4)},$$
#
# wider than the $1/A$ of Eq. 1, and unbounded as $\epsilon A$ comes to 4. A minibatch adds noise to
# the gradient. If its variance is $s^2$, then
#
# $$\sigma^2 = \frac{1 + \epsilon\,(n\beta)^2 s^2 / 4}{A\,(1 - \epsilon A / 4)}, \qquad
#   s^2 = \frac{\operatorname{Var}_i[\nabla \ell_i]}{m} \cdot \frac{n - m}{n - 1}.$$
#
# The last factor is there because `probelib` draws a minibatch without replacement: the noise
# vanishes at $m = n$.
#
# Two experiments. First, linear regression with three weights and the full gradient, at several step
# sizes; its three curvatures give three directions. Then the smallest model of all, a constant, whose
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
relative_steps = np.array(
    [0.3, 0.6, 1.2, 2.2, 3.2]
)  # epsilon times the largest precision
scaled = np.empty(
    (len(relative_steps), 2, 3)
)  # variance times A, and its standard error
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
batches = np.array([1, 2, 4, 8, 16, 32])
fewer = kept | {"steps": steps // 4}
by_batch = np.array(
    [
        toys.mean_and_error(
            helpers.squared_moves(
                constant, step_size, int(m), **fewer
            ).mean(-1)
        )
        for m in batches
    ]
)
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

# %% mystnb={"figure": {"caption": "Stationary variance of the chain, measured (points, bars of two standard errors) and in theory (black line). Left: full gradient. Variance in units of Eq. 1's against the step size in units of the precision; three directions of one regression fall on one curve. Right: minibatches. Look at the largest batches: only the curve with the finite-population factor (black) meets the points.", "name": "fig-stationary"}, "image": {"alt": "Left: variance times precision against epsilon times A; a curve that rises from one near zero to five at epsilon A of 3.2, with measured points of three directions on it, above the dotted line of Eq. 1. Right: variance against batch size on log axes, falling from batch size 1 to 32; measured points follow the black theory curve, and a dashed curve without the finite-population factor lies above them at large batches."}}
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

# %%
chapter.record(
    step_largest=relative_steps[-1],
    step_variance_ratio=scaled[-1, 0, -1],
    step_z_max=np.abs(z_steps).max(),
    batch_1_variance=by_batch[0, 0],
    batch_16_variance=by_batch[-2, 0],
    batch_z_max=np.abs(z_batches).max(),
    n_step_points=z_steps.size,
    n_batch_points=z_batches.size,
)
chapter.say(
    "At εA = {step_largest:g} the measured variance is **{step_variance_ratio:.2f}** times "
    "that of Eq. 1. Of {n_step_points} points by step size the one farthest from theory is "
    "{step_z_max:.1f} standard errors away; of {n_batch_points} by batch size, {batch_z_max:.1f}."
)

# %% [markdown]
# ## Loss gain, kernel and LLC in closed form
#
# For $\ell_i = \frac12 (x_i^\top w - y_i)^2$ at the least-squares solution, with residuals $r$ and
# Gaussian weights of covariance $C$, write $G = X C X^\top$. Then
#
# $$\mu_i = \frac{G_{ii}}2, \qquad
#   K = (r r^\top) \circ G + \frac12\, G \circ G, \qquad
#   \lambda = \frac{n\beta}2 \operatorname{tr}(H C).$$
#
# What is $C$? Eq. 1 says $C = (n\beta H + \gamma I)^{-1} = A^{-1}$. The chain that we run says
# $C = [A\,(1 - \epsilon A / 4)]^{-1}$, and it is still exactly Gaussian. So there are two truths: that
# of the discretised chain, which the measurement must hit within its Monte-Carlo error, and that of
# Eq. 1, its limit as $\epsilon \to 0$, which it misses by the bias of the step size. With minibatches
# the chain's $C$ solves a linear equation (`toys.LinearRegression.covariance`); its law is no longer
# Gaussian, but $\mu$ and $\lambda$ need only $C$. {numref}`fig-regression` holds the measured gains
# and kernel against the exact ones.

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
exact_gain, exact_kernel = (
    regression.gain(of_chain),
    regression.kernel(of_chain),
)

# %% mystnb={"figure": {"caption": "Linear regression, measured against exact. Left: loss gain of each sample over its exact value; the filled points, over the exact law of the discretised chain, must lie on the line within their bars of two standard errors; the open ones, over the law of Eq. 1, show the bias of the step size. Bars are long where a large residual makes a loss swing widely about a small mean. Right: every entry of the loss kernel against its exact value.", "name": "fig-regression"}, "image": {"alt": "Left: ratio of measured to exact loss gain for forty samples; filled blue points scatter around one, open orange diamonds lie five to thirty-five per cent above. Right: measured kernel entries against exact ones, all close to the diagonal."}}
figures.closed_forms(
    (exact_gain, regression.gain(limit), gain.values, gain.mcse.values),
    (exact_kernel, kernel.covariance()),
)

# %% tags=["hide-input"]
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
# The measurement follows the chain, not Eq. 1. More draws would not bring the last two columns
# together; a smaller $\epsilon$ would.
#
# ### The same step without its bias
#
# SGLD adds a fresh $\sqrt\epsilon\,\xi_t$ at each step. `LeimkuhlerMatthews` adds
# $\sqrt\epsilon\,(\xi_t + \xi_{t+1})/2$ instead, at the same cost, and on a quadratic its variance is
# $1/A$ at every stable step. So what it measures is held to Eq. 1, at the step at which SGLD misses
# it. The noise of a minibatch stays: neither of them takes it out.
#
# And a trace says itself what its step did: `step_bias` stands beside the Monte-Carlo error, from
# gradients that were recorded on the way, to first order in $\epsilon$.

# %%
by_sampler = {
    "": ("SGLD", trace),
    "_minibatch": (f"SGLD, minibatches of {batch}", noisy),
}
for name, described, m in (
    ("", "", None),
    ("_minibatch", f", minibatches of {batch}", batch),
):
    drawn = probelib.sample(
        posterior,
        sampler=probelib.LeimkuhlerMatthews(
            step_size=epsilon, batch_size=m
        ),
        chains=chains,
        draws=steps,
        burn_in=burn_in,
        seed=seed,
        progress=False,
    )
    by_sampler[f"{name}_unbiased"] = (
        f"Leimkuhler-Matthews{described}",
        drawn,
    )
eq1 = (
    regression.llc(n_beta, limit),
    regression.gain(limit),
    np.trace(regression.kernel(limit)),
)
chapter.table(
    helpers.sampler_rows(chapter, by_sampler, eq1),
    "The same regression by both samplers at one step size; ± is chance, the step bias beside it.",
)
unbiased_claims = helpers.unbiased_claims(
    chapter, eq1, by_sampler["_unbiased"][1]
)

# %%
chapter.say(
    "SGLD: {regression_llc:.4f} ± {regression_llc_mcse:.4f}, and less the step bias that its trace "
    "reports, {regression_llc_step_bias:.4f}, near Eq. 1's {regression_llc_eq1:.4f}; "
    "Leimkuhler-Matthews: **{regression_llc_unbiased:.4f} ± {regression_llc_unbiased_mcse:.4f}** as it "
    "stands."
)

# %% [markdown]
# (demo-erratum-3)=
# ### Erratum 3: the sum of the loss gains
#
# With $L$ a mean, $\lambda = n\beta\, (\operatorname{E}[L] - L(w^*))$ is
# $\beta \sum_i \mu_i$. B.1 prints $n\beta \sum_i \mu_i$, which is $n$ times as much; here $n = 40$.
# The exact $\lambda = \frac{n\beta}2 \operatorname{tr}(H C)$ comes from the weights' covariance, not
# from loss gains, and tells which of the two is meant.

# %%
chapter.record(
    erratum3_beta_sum=posterior.beta * gain.values.sum(),
    erratum3_printed=n_beta * gain.values.sum(),
)
chapter.say(
    "From the measured loss gains: β Σμ = **{erratum3_beta_sum:.4f}**; as printed, nβ Σμ = "
    "**{erratum3_printed:.2f}**. Exact: λ = **{exact_regression_llc:.4f}**."
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
# Below Eq. 1 the paper names the localizing Gaussian $\mathcal N(w^*, \gamma I)$. Take the data away
# ($n\beta = 10^{-9}$) and only the localization is left: the variance of a weight is then either
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
    spread.append(
        toys.mean_and_error(
            helpers.squared_moves(free, 0.2 / g, **fewer).mean(-1)
        )
    )
spread = np.array(spread)
chapter.record(
    erratum1_gamma=gammas[2],
    erratum1_variance=spread[2, 0],
    erratum1_variance_times_gamma=(spread[:, 0] * gammas)[2],
    erratum1_z_max=np.abs(
        (spread[:, 0] * gammas - 1 / 0.95) / (spread[:, 1] * gammas)
    ).max(),
)
chapter.say(
    "At γ = {erratum1_gamma:g} the measured variance of a weight is "
    "**{erratum1_variance:.4f}**; 1/γ would be 0.0333, γ would be 30."
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
updates.record(chapter)
chapter.say(
    "At nβ = {erratum2_n_beta:g}, with n = 40: our variance is "
    "{erratum2_ours_over_eq1:.3f} times that of Eq. 1, that of the printed update "
    "**{erratum2_printed_over_eq1:.3f}** times."
)

# %% [markdown]
# (demo-erratum-6)=
# ### Erratum 6: the pooled covariance is biased for a Markov chain
#
# A.1 calls $\hat K$ unbiased. It divides by the number of draws less one, which is right for
# independent draws. A chain's draws are not independent, the chain's mean follows the chain, and the
# deviations from it are too small: on average $\hat K$ is lower than $K$ by a fraction of about
# $1/\mathrm{ESS}$. To see an average, run many short chains, estimate $\operatorname{tr} K$ from each
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


def theory(draws):
    """Expected ratio and effective draws of one chain."""
    return regression.expected_trace_ratio(
        n_beta, localization, erratum6_eps, draws
    )


# %%
short = helpers.short_chains(many, lengths, truth, theory)
smooth = np.array([theory(t) for t in range(4, 260)]).T
short.record(chapter, probelib.empirical_variance(many), truth)
chapter.say(
    "From {erratum6_draws} draws of one chain, worth {erratum6_ess:.1f} independent ones, the estimate "
    "is on average **{erratum6_ratio:.3f} ± {erratum6_ratio_error:.3f}** of the truth. Pooled over "
    "all chains, each of full length, it is {erratum6_pooled_ratio:.3f} ± "
    "{erratum6_pooled_ratio_mcse:.3f}."
)

# %% mystnb={"figure": {"caption": "What is printed (dashed, red) against what is measured (points) and exact (black). Erratum 1: the variance of a weight under the localization alone falls with gamma. Erratum 2: the variance of the printed update (squares) does not answer to n beta, and agrees with Eq. 1 only where beta is 1, at the dotted line. Erratum 6: the mean estimate of the kernel's trace from single short chains lies below the truth, the more so the fewer independent draws per chain is worth.", "name": "fig-errata"}, "image": {"alt": "Three panels. Top left: variance against gamma on log axes; measured points lie on the falling line one over gamma, not on the rising line gamma. Top right: total variance against n beta; round points follow a falling curve, squares lie on a flat line that crosses it at n beta of 40. Bottom: ratio of the mean estimated to the exact trace of K against effective draws; points rise from well below one towards one along the exact curve."}}
finer = np.geomspace(2, 200, 40)
printed_law = np.trace(
    regression.covariance(40.0, localization, updates.step_size[1])
)
figures.three_errata(
    (gammas, spread[:, 0], spread[:, 1]),
    (
        finer,
        {
            "Eq. 1": np.array(
                [
                    np.trace(regression.covariance(t, localization))
                    for t in finer
                ]
            ),
            "printed update, exact": np.full(len(finer), printed_law),
        },
        temperatures,
        {
            "ours, measured": updates.ours,
            "printed, measured": updates.printed,
        },
        40.0,
    ),
    (short.ess, short.ratio, short.error, smooth[1], smooth[0]),
)

# %% [markdown]
# ## A network, and no closed form
#
# From here on nothing is exact. The model is a ReLU network with 16 hidden units on two overlapping
# half-moons, trained until it rests. Its Hessian at $w^*$ is small enough to be built whole, and its
# largest eigenvalue $h_{\max}$ gives the largest precision $A_{\max} = n\beta\, h_{\max} + \gamma$
# that the chain will meet there. The starting point for the settings is Table 1's: $n\beta = 10$,
# $\gamma = 30$, $\epsilon = 5 \times 10^{-3}$, $m = 64$.
#
# Two numbers can be computed before any chain runs:
#
# - $\epsilon A_{\max}$, the step in units of the stiffest direction. The variance there is too large
#   by the fraction $\epsilon A_{\max} / 4$, as long as that is small. From 4 on, the quadratic
#   approximation of the chain has no stationary law.
# - $2 / (\epsilon\gamma)$, the steps in which the chain forgets where it was along a flat direction,
#   where only the localization pulls. Burn-in should be several of these, the whole chain very many.

# %%
model, data = toys.moons_network(steps=network_training, seed=0)
table1 = {"epsilon": 5e-3, "n beta": 10.0, "gamma": 30.0}
h_max = toys.largest_curvature(
    probelib.LocalPosterior(
        model, probelib.cross_entropy, data, n_beta=10.0, localization=30.0
    )
)
thin = 5


# %%
def probe(method=probelib.SGLD, **changed):
    """Run the chains with Table 1's settings, some of them changed."""
    settings = table1 | changed
    around = probelib.LocalPosterior(
        model, probelib.cross_entropy, data,
        n_beta=settings["n beta"], localization=settings["gamma"],
    )  # fmt: skip
    return probelib.sample(
        around, sampler=method(step_size=settings["epsilon"], batch_size=64),
        chains=network_chains, draws=network_steps // thin, thin=thin,
        burn_in=network_burn_in, seed=seed, progress=False,
    )  # fmt: skip


def stiffness(**changed):
    """epsilon A_max of these settings."""
    settings = table1 | changed
    return settings["epsilon"] * (
        settings["n beta"] * h_max + settings["gamma"]
    )


# %%
chapter.record(
    h_max=h_max,
    table1_stiffness=stiffness(),
    table1_forgetting=2 / (table1["epsilon"] * table1["gamma"]),
)
chapter.say(
    "Largest curvature {h_max:.2f}, so ε A_max = **{table1_stiffness:.2f}**, and a flat "
    "direction is forgotten in {table1_forgetting:.0f} steps."
)

# %% [markdown]
# ### What chains look like
#
# Four runs: Table 1's settings, steps that are too short, a localization that is too weak, and steps that
# are too long. Look at each in {numref}`fig-chains` and guess which of them R-hat will accept.

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

# %% mystnb={"figure": {"caption": "Mean loss along the chains (left; dotted: the loss at the trained weights) and its autocorrelation (right) for four settings on the small network. All rows share their axes. Sound chains share one band and forget quickly where they were. Steps that are too short, or a localization that is too weak, give chains that wander apart or are still on their way. In the last row the chains agree with each other; look at the height of their band.", "name": "fig-chains"}, "image": {"alt": "Four rows. First: four chains mixed in one narrow band slightly above the dotted line, with autocorrelation that falls quickly. Second: slowly wandering chains close to the dotted line, with autocorrelation that falls slowly. Third: chains wandering at different levels. Fourth: chains well mixed, but far above the dotted line."}}
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

# %% tags=["hide-input"]
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

# %% [markdown]
# R-hat and ESS compare the chains with each other. They see chains that have not mixed. They cannot
# see chains that all agree on the wrong law, which is what a step that is too long produces: R-hat
# near 1, many effective draws, and an LLC that belongs to the sampler, not to the network. Only
# $\epsilon A_{\max}$, or a second run at a smaller step, tells.
#
# ### A step that fails loudly
#
# Long enough steps leave the finite numbers altogether. A chain that does ends there and the others go
# on; where none is left, `probelib` names the first and its step, and keeps what was drawn before.

# %%
try:
    probe(epsilon=0.5)
    chapter.record(divergence="no chain diverged")
except probelib.DivergenceError as error:
    chapter.record(
        divergence=str(error),
        divergence_step=error.step,
        divergence_draws=error.trace.sizes["draw"],
    )
chapter.say("`DivergenceError`: *{divergence}*")

# %% [markdown]
# ### One knob at a time
#
# A sweep around Table 1's settings, every run with the same number of steps. A run is called *step
# too long* when $\epsilon A_{\max} > 1$, a bias of a third or more in the stiffest direction, and
# otherwise *not mixed* when its largest R-hat exceeds 1.1, a lenient limit for short chains. The LLC
# may change with $n\beta$ and $\gamma$: they define the posterior. It may not change with $\epsilon$,
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

# %% mystnb={"figure": {"caption": "One setting changed at a time on the small network, the others as in Table 1 (dotted lines). Above: the local learning coefficient with two standard errors. Below: the least effective number of draws. Look for the triangles: many effective draws, small errors, and a wrong coefficient.", "name": "fig-sweep"}, "image": {"alt": "Two rows of three panels with log axes: local learning coefficient above, effective draws below, against epsilon, n beta and gamma. Circles mark sound runs, crosses runs that have not mixed, triangles runs whose step is too long. Crosses have few effective draws; triangles have many, but their coefficients shoot up with epsilon and n beta."}}
knobs = helpers.sweep_panels(swept)
figures.sweeps(
    knobs,
    dict(
        zip(
            knobs,
            (table1["epsilon"], table1["n beta"], table1["gamma"]),
            strict=True,
        )
    ),
    helpers.VERDICTS,
)

# %%
chapter.table(
    [point.row(chapter) for point in swept],
    "The sweep in numbers. Forgetting time 2 / (ε γ) in steps; ± is chance, the step bias beside it.",
)

# %% [markdown]
# The row of $\epsilon$ once more, by both samplers. A sampler without bias has the same LLC at every
# step that is short enough to be stable and long enough to mix. A network's loss is no quadratic, so
# `LeimkuhlerMatthews`, too, has its limit. What $\epsilon$ moves, the step bias announces, as long as
# it is small; where it is a large part of the LLC, believe neither.

# %%
unbiased_by_step = {
    e: probe(probelib.LeimkuhlerMatthews, epsilon=e) for e in paper_by_step
}
samplers = {"SGLD": paper_by_step, "Leimkuhler-Matthews": unbiased_by_step}
chapter.table(
    helpers.step_rows(chapter, samplers),
    "The LLC of the small network by step size and sampler.",
)

# %% [markdown]
# ### A recipe
#
# 1. **$\gamma$ and $n\beta$ are the question, not the sampler.** $n\beta$ sets how much loss the
#    cloud may cost: about $\lambda / n\beta$ nats on average. $\gamma$ sets how far it may go:
#    about $\sqrt{d/\gamma}$ from $w^*$ in $d$ flat directions. Choose them, and report them.
# 2. **$\epsilon$ from the stiffest direction.** Estimate $h_{\max}$ and keep
#    $\epsilon\,(n\beta\, h_{\max} + \gamma)$ well below 1. Without a Hessian: halve $\epsilon$ and see
#    whether the LLC moves by more than its error.
# 3. **The number of steps from the flattest.** A draw along a flat direction costs
#    $2/(\epsilon\gamma)$ steps. Burn in for several of these, run for hundreds.
# 4. **Then look**: the loss along the chains, R-hat and ESS of single samples as well as of the
#    mean loss, which mixes faster than they do.
#
# If 2 and 3 cannot both be met, the posterior is too stiff for this sampler: a larger $\gamma$, which
# is another question, is the honest way out.
#
# ## Paper says / this run
#
# The second column holds an exact value where the quantity has one; a run then agrees within four
# Monte-Carlo standard errors. The last three lines hold the paper's printed statements to the same
# standard. They are expected to differ: they are the errata, shown as what they are. A miss in any
# other line is an error of the sampler or of this chapter, and the book is not built with it.

# %% tags=["hide-input"]
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
    against="exact, or printed",
)

# %% [markdown]
# ## What could fool you
#
# - **A quadratic is the best case.** The closed forms say that the sampler does what it should. They
#   do not say that a network's posterior is anything like a quadratic.
# - **Good diagnostics, wrong law.** R-hat near 1 is necessary, not sufficient: see the last row of
#   {numref}`fig-chains`.
# - **The mean loss mixes faster than the losses.** An ESS for the LLC says little about the loss gain
#   of a sample that hangs on a slow direction. `probelib.diagnostics` looks at samples, too.
# - **Pooling hides and makes up.** Few effective draws make $\hat K$ too small; chains that have not
#   met make it too large, by the variance between them. Both look like a kernel.
# - **The curvature is not constant.** $h_{\max}$ at $w^*$ is a local number; the chain may meet
#   stiffer places.
#
# ## Summary
#
# On a quadratic loss the sampler's law is known, and the table holds every part of it to that law:
# stationary variances, minibatch noise, loss gains, the kernel, the LLC. Its bias is a matter of
# $\epsilon A$, and minibatches add to it. Three printed formulas cannot pass the same test. On a
# network, look at R-hat *and* at the step size; then read the numbers. The
# {doc}`next chapter <02_loss_gain>` does so on MNIST.
#
# **References.** SGLD: {cite:t}`welling2011sgld`. The local learning coefficient and its estimator:
# {cite:t}`lau2025llc`. Losses of Bayesian models: {cite:t}`watanabe2018mathematical`.

# %%
chapter.finish(
    "largest deviation from theory {step_z_max:.1f} s.e. by step, {batch_z_max:.1f} by batch; "
    "LLC {regression_llc:.4f} ± {regression_llc_mcse:.4f} (exact {exact_regression_llc:.4f}); printed "
    "Eq. 7 gives {erratum2_printed_over_eq1:.2f} of Eq. 1's variance at nβ = {erratum2_n_beta:g}; "
    "unbiased LLC {regression_llc_unbiased:.4f} (Eq. 1: {regression_llc_eq1:.4f})"
)
