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
# # The loss kernel and influence functions
#
# **Claim.** *For a regular model the loss kernel is, to leading order, the classical influence
# function with the other sign, a temperature and a damping. For a singular model the two differ.*
# Here samples are left out, and the network is trained again: which of the two predicts what happens?

# %% [markdown] tags=["about"]
# This chapter reproduces Appendix C of the paper (Eqs. 15 to 21). It adds a ground truth: every sample of
# a small network is left out in turn, and the network is trained again. Then it compares the kernel's
# expansion with integrals that have no sampling error, with [erratum 4](demo-erratum-4) and
# [erratum 5](demo-erratum-5). It looks at three singular models, and, on MNIST, at the kernel beside the
# inner products of gradients.
#
# | profile | what runs | two cores |
# | --- | --- | --- |
# | `smoke` | short chains, few removals, 1,500 digits: not a result | seconds |
# | `laptop` | every experiment in full; MNIST from chapter 02's trace | under ten minutes, if that trace is there |
# | `paper` | the same as `laptop` | the same |

# %% tags=["hide-input"]
import numpy as np
import torch
from torch.nn.utils import parameters_to_vector

import probelib
from probebook import figures, retraining, toys
from probebook.alignment import spearman
from probebook.chapter import Chapter
from probebook.chapters import influence_functions as helpers
from probebook.probes import mnist_probe
from probebook.quadrature import integrate
from probelib import influence

# %% tags=["parameters"]
profile: str = "laptop"  # smoke, laptop or paper
seed: int = 0  # of chains, draws and every random choice; data sets and networks have their own
results_dir: str = "../results/live"  # where this chapter's numbers go
live: bool = True  # False when the driver runs it: no progress bar then
data_sets: int = 8  # logistic regressions whose expansions are measured
points: int = 41  # lattice points along each of three weights
gaussian_draws: int = (
    100_000  # independent draws of the Laplace approximation
)
small_chains: int = 64  # chains on the small models
small_steps: int = 4000  # steps kept of each, on the logistic regression
relu_steps: int = 8000  # steps kept of each, on the ReLU network
removals: int = 120  # samples left out in turn, of 120
cold_starts: int = 20  # of these, trained again from scratch
network_steps: int = 40_000  # steps kept of each chain on the tanh network
importance_draws: int = 100_000  # weighted draws on the tanh network
resamples: int = 400  # of the bootstrap over queries
n_samples: int = 60_000  # training digits used, as in chapter 02
epochs: int = 20  # passes over them, as in chapter 02
chains: int = 5  # C, Table 1
draws: int = 500  # T, Table 1
n_subset: int = 500  # digits whose gradients are compared

# %% tags=["remove-input"]
chapter = Chapter(
    "07_influence_functions",
    profile=profile,
    results_dir=results_dir,
    parameters=globals(),
)
chapter.record(data_sets=data_sets, removals=removals, n_subset=n_subset)
threads = torch.get_num_threads()
torch.set_num_threads(1)  # small models: a second thread slows them down

# %% [markdown]
# ## Two influences
#
# Write $w^*$ for the trained weights, $\ell_i(w)$ for the loss of sample $i$, $L$ for the mean of the $n$
# losses, $g_i$ for the gradient of $\ell_i$ at $w^*$ and $H$ for the Hessian of $L$ there.
#
# The **classical influence function** {cite:p}`koh2017understanding` asks where the minimum goes
# when sample $i$ weighs a little more, $w_\varepsilon = \arg\min_w L(w) + \varepsilon\,\ell_i(w)$, and
# what this does to the loss of a query $q$:
#
# $$\mathcal I_{qi} = \frac{d\,\ell_q(w_\varepsilon)}{d\varepsilon}\Big|_0 = -g_q^\top H^{-1} g_i .$$
#
# The **Bayesian influence function** {cite:p}`iba2024wkernel,anonymous2025bif` asks where the
# *posterior* goes. The local posterior (Eq. 1) is proportional to
# $\exp[-\beta \sum_i \ell_i(w) - \frac\gamma2 \lVert w - w^*\rVert^2]$, with the inverse temperature
# $\beta$ and the localization $\gamma$. Give sample $i$ the weight $1 - t$ in place of 1. Then
#
# $$\frac{d}{dt} \operatorname{E}_t[\ell_q] = \beta\,\operatorname{Cov}_w[\ell_q, \ell_i]
#   = \beta K_{qi} .$$
#
# So to first order, *removing* sample $i$ changes the mean loss of $q$ by $+\beta K_{qi}$, and its loss
# at the minimum by $-\mathcal I_{qi} / n$. The expansion of the kernel (Eq. 21) connects the two:
#
# $$K_{qi} = g_q^\top S g_i + \dots, \qquad S = (n\beta H + \gamma I)^{-1}
#   = \tfrac{1}{n\beta} \big(H + \tfrac{\gamma}{n\beta} I\big)^{-1}.$$
#
# The leading term of $\beta K_{qi}$ is therefore $-\mathcal I_{qi} / n$ with the damping
# $\delta = \gamma / n\beta$ added to $H$: the localization *is* a damping. In the library:
#
# ```python
# probelib.influence.laplace_kernel(posterior)                      # g' S g
# probelib.influence.laplace_kernel(posterior, order=2)             # ... + tr(H S H S) / 2
# probelib.influence.next_order_kernel(posterior)                   # ... and all else of that order
# probelib.influence.classical_influence(posterior, damping=1e-3)   # with its minus sign
# ```
#
# ## Ground truth: leave one out, train again
#
# A tanh network with three hidden units (13 weights) learns 120 noisy samples of a surface that another
# network of its kind has made. This choice is deliberate. With such a teacher, well separated units and
# some noise, the model is *regular*: it has one strict minimum (up to symmetries), and training reaches
# it to rounding (L-BFGS, then Newton's method, float64).

# %%
teacher, surface = retraining.taught_surface(
    n=120, hidden=3, noise=0.3, seed=0
)
trained = [
    retraining.train_to_rest(
        retraining.tanh_network(3, k), probelib.squared_error, surface
    )
    for k in range(1, 4)
]


def around_network(weights, n_beta=120.0, gamma=1.0):
    """The local posterior around these weights of the tanh network."""
    model = retraining.with_weights(teacher, weights)
    return probelib.LocalPosterior(
        model,
        probelib.squared_error,
        surface,
        n_beta=n_beta,
        localization=gamma,
    )


# %%
losses_at_rest = [float(around_network(w).mean_loss(w)) for w, _ in trained]
center, slope_at_rest = trained[int(np.argmin(losses_at_rest))]
network = around_network(center)
curvature = np.linalg.eigvalsh(influence.hessian(network))

# %% [markdown]
# Each sample is left out in turn, and training goes on from $w^*$. Then we note how all losses change:
# removing sample $i$ changes $\ell_j$ by $\Delta_{ij}$.

# %%
left = np.linspace(0, 119, removals).astype(int)
removed = retraining.retrain_without(
    retraining.with_weights(teacher, center),
    probelib.squared_error,
    surface,
    left,
)
truth = removed.changes

# %% tags=["remove-input"]
again = np.unique(np.linspace(0, removals - 1, cold_starts).astype(int))
cold = retraining.retrain_without(
    retraining.with_weights(teacher, center), probelib.squared_error, surface, left[again],
    starts=lambda i: parameters_to_vector(retraining.tanh_network(3, 100 + i).parameters()).detach(),
)  # fmt: skip
same_basin = [
    retraining.relative_error(found, warm) < 1e-3
    for found, warm in zip(cold.changes, truth[again], strict=True)
]
chapter.record(
    loo_gradient_at_rest=max(slope_at_rest, removed.slope),
    loo_lowest_eigenvalue=curvature[0],
    loo_condition=curvature[-1] / curvature[0],
    loo_largest_move=removed.distance.max(),
    loo_loss=min(losses_at_rest),
    loo_cold_starts=len(again),
    loo_cold_same=int(np.sum(same_basin)),
    loo_cold_spearman=spearman(cold.changes, truth[again]),
)

# %% tags=["remove-input"]
chapter.say(
    "Largest gradient norm at the end of a training: {loo_gradient_at_rest:.0e}; smallest "
    "eigenvalue of $H$ {loo_lowest_eigenvalue:.1e}, largest over smallest {loo_condition:,.0f}. "
    "{loo_cold_starts} of the networks were trained again from other initial weights: {loo_cold_same} come "
    "to the same minimum up to its symmetries. Over all of these, the loss changes of cold and warm starts "
    "have a rank correlation of {loo_cold_spearman:.3f}."
)

# %% [markdown]
# ### The predictions
#
# The kernel depends on the temperature, so it is sampled at three values of $n\beta$ (the inverse
# temperature times the number of samples). The one that we settle on beforehand is $n\beta = 1{,}200$,
# $\beta = 10$: Eq. 1 is then close to the Bayesian posterior of a Gaussian model with the true noise,
# $\beta = 1 / 0.3^2 \approx 11$. At each of them $\beta K_{ij}$ predicts $\Delta_{ij}$.

# %%
n, traces, predictions = 120, {}, {}
steps_at = {
    12.0: network_steps // 12,
    120.0: network_steps // 3,
    1200.0: network_steps,
}
for n_beta, steps in steps_at.items():
    step_size = 0.5 / (n_beta * curvature[-1] + 1)
    traces[n_beta] = probelib.sample(
        around_network(center, n_beta),
        sampler=probelib.SGLD(step_size=step_size),
        chains=small_chains,
        draws=max(steps // 40, 4),
        thin=40,
        burn_in=steps // 4,
        seed=seed,
        progress=False,
    )
    kernel = probelib.loss_kernel(traces[n_beta])
    name = f"βK, SGLD, nβ = {n_beta:g}"
    predictions[name] = n_beta / n * kernel.covariance(left)
predictions["R, SGLD, nβ = 1200"] = kernel.correlation(left)

# %% [markdown]
# SGLD's steps have a finite length, which widens the posterior. `LeimkuhlerMatthews` has no such bias on a
# quadratic loss: the same chains with it, at $n\beta = 1{,}200$, show what the step did.

# %%
unbiased = probelib.sample(
    around_network(center, 1200.0),
    sampler=probelib.LeimkuhlerMatthews(step_size),
    chains=small_chains,
    draws=max(network_steps // 40, 4),
    thin=40,
    burn_in=network_steps // 4,
    seed=seed,
    progress=False,
)
predictions["βK, unbiased sampler, nβ = 1200"] = (
    1200 / n * probelib.loss_kernel(unbiased).covariance(left)
)

# %% [markdown]
# At $n\beta = 12{,}000$ a chain would take too many steps. Weighted independent draws give the kernel there.
# The other predictions are the normalised kernel $R_{ij}$, the classical influence $-\mathcal I_{ij} / n$
# at several dampings $\delta$, and the inner product and the cosine of the gradients.

# %%
cool = around_network(center, 12_000.0)
weighted, share = retraining.importance_kernel(cool, importance_draws, seed)
predictions["βK, weighted draws, nβ = 12000"] = 12_000 / n * weighted[left]
for delta in (0.0, 1e-3, 1e-2, 1e-1, 1.0):
    found = influence.classical_influence(network, delta)
    predictions[f"−I/n, δ = {delta:g}"] = -found[left] / n
cosine, length = influence.gradient_gram(network)
inner = cosine * np.outer(length, length)
predictions["inner product of gradients"] = inner[left]
predictions["cosine of gradients"] = cosine[left]
agreements = retraining.agreement(truth, predictions, resamples, seed)

# %% [markdown]
# {numref}`fig-retraining` has four of the predictions; the table has all.

# %% tags=["key-figure"] mystnb={"figure": {"caption": "Loss changes of all samples after a sample is left out and the network is trained again, against four predictions: the loss kernel at three temperatures, and the undamped classical influence. One point per pair of samples. Axes are linear about zero and logarithmic further out. A good predictor has its points along a rising line. Look at how wide each scatter is, and at the pairs whose sign is predicted wrongly, in the upper left and lower right quarters.", "name": "fig-retraining"}, "image": {"alt": "Four scatter plots with a common vertical axis, the loss change after retraining. Left to right: the loss kernel at n beta 12, 120 and 1,200, and the undamped classical influence. Each panel notes its rank correlation."}}
shown = {
    "loss kernel, nβ = 12": "βK, SGLD, nβ = 12",
    "loss kernel, nβ = 120": "βK, SGLD, nβ = 120",
    "loss kernel, nβ = 1200": "βK, SGLD, nβ = 1200",
    "classical influence": "−I/n, δ = 0",
}
figures.retraining_scatter(
    truth.ravel(),
    {
        name: (
            predictions[key].ravel(),
            f"Spearman {agreements[key].pairs:.3f}",
        )
        for name, key in shown.items()
    },
)

# %% tags=["remove-input"]
chapter.record(loo_weighted_share=share)
chapter.table(
    helpers.agreement_rows(chapter, agreements, predictions, truth),
    "Retraining against its predictions. The intervals come from a bootstrap over the queries. Slope: of "
    "the retrained changes on the predicted ones, through zero; 1 where the scale is right.",
)
chapter.table(
    helpers.chain_rows(chapter, traces), "The chains behind the kernels."
)
chapter.record_verdict(
    probelib.diagnostics(unbiased, n), "loo_unbiased_verdict"
)
chapter.say(helpers.chains_in_words(chapter))

# %% [markdown]
# On a regular model at its minimum, with an exact Hessian, the undamped classical influence *is* the
# derivative of the retraining, so it should do well. The kernel is a covariance over a neighbourhood of
# $w^*$, whose width is set by the temperature: the higher $n\beta$, the narrower. A deep network has
# neither the strict minimum nor the Hessian, and its classical influence has to be damped.

# %% [markdown]
# ## The Laplace regime
#
# Why do the two come together as $n\beta$ grows, and how fast? The model is now logistic regression with
# three weights on two overlapping classes, at its exact minimum. Three weights can be integrated on a
# lattice, so the true kernel and that of the Gaussian $\mathcal N(w^*, S)$ are known to rounding. All
# errors below are errors of the *expansion*. $\gamma = n\beta / 100$ grows with $n\beta$, so that $S$ is
# exactly proportional to $1/n\beta$, and the expansion is a power series in $1/n\beta$ alone.
#
# What should we see? Write $\delta \sim \mathcal N(0, S)$ for a move of the weights, of size
# $(n\beta)^{-1/2}$, $H_i$ for the Hessian of $\ell_i$, and $T_i = \nabla^3 \ell_i$.
#
# - $\operatorname{Cov}(g_i^\top\delta,\, g_j^\top\delta) = g_i^\top S g_j$ is of order $1/n\beta$.
#   Linear against quadratic terms vanish, since odd moments do.
# - $\frac14 \operatorname{Cov}(\delta^\top H_i \delta,\, \delta^\top H_j \delta) = \frac12 \operatorname{tr}(H_i S H_j S)$
#   is of order $1/(n\beta)^2$. But so is linear against cubic,
#   $\frac16 \operatorname{Cov}(g_i^\top\delta,\, T_j[\delta, \delta, \delta]) = \frac12\, g_i^\top S\, T_j[S]$,
#   which Eq. 20 contains and the "second-order correction" below Eq. 21 does not.
# - The true posterior is not Gaussian. Its mean is off by order $1/n\beta$, its covariance by
#   $1/(n\beta)^2$, and its third cumulant is of that order too. Each of them changes $K$ at the order
#   $1/(n\beta)^2$.
#
# So the first-order kernel has a *relative* error of order 1 in $1/n\beta$. With the trace term the
# order is still 1, unless the loss is quadratic. All terms together, `next_order_kernel`, must leave
# order 2. {numref}`fig-laplace-orders` measures it.

# %%
n_betas = np.geomspace(30, 30_000, 7)
shrink = 100  # gamma = n beta / 100
regressions = [
    retraining.overlapping_classes(seed=k) for k in range(data_sets)
]


def logistic(n_beta, which=0):
    """The local posterior of one of the logistic regressions."""
    neuron, data = regressions[which]
    return probelib.LocalPosterior(
        neuron,
        probelib.cross_entropy,
        data,
        n_beta=n_beta,
        localization=n_beta / shrink,
    )


def expansions(posterior, law):
    """Three expansions of the kernel under one of the two laws."""
    return {
        "first order": influence.laplace_kernel(posterior),
        "with the trace term": influence.laplace_kernel(posterior, order=2),
        "all of the next order": influence.next_order_kernel(
            posterior, law=law
        ),
    }


# %%
laws = {
    "the local posterior": "posterior",
    "the Gaussian N(w*, S)": "gaussian",
}
shape = (data_sets, len(n_betas))
distance, errors = np.empty(shape), {name: {} for name in laws}
for which, at in np.ndindex(shape):
    posterior = logistic(n_betas[at], which)
    exact = integrate(posterior, points)
    distance[which, at] = exact.total_variation
    kernels = exact.kernel, exact.gaussian_kernel
    for (name, law), true in zip(laws.items(), kernels, strict=True):
        for kind, found in expansions(posterior, law).items():
            of_kind = errors[name].setdefault(kind, np.empty(shape))
            of_kind[which, at] = retraining.relative_error(
                found.covariance(), true
            )

# %% [markdown]
# A sampler adds errors of its own. SGLD runs on the first data set at some of the $n\beta$, with a step
# $\epsilon$ for which $\epsilon A_{\max} = 0.1$ ($A_{\max}$: largest eigenvalue of $A = S^{-1}$).
# Independent draws of $\mathcal N(w^*, S)$, the same standard normals at each $n\beta$, stand beside it.
# Three parts of the chains' error are computed separately: that of the expansion, from the lattice; that of
# the step size, to leading order, as the first-order kernel with the chain's own covariance
# $[A (1 - \epsilon A / 4)]^{-1}$; and the Monte-Carlo error.

# %%
sampled_at = n_betas[::2]
budget, draw_errors = [], []
for n_beta in sampled_at:
    posterior = logistic(n_beta)
    first = influence.laplace_kernel(posterior).covariance()
    exact = integrate(posterior, points)
    precision = np.linalg.inv(influence.laplace_covariance(posterior))
    epsilon = 0.1 / np.linalg.eigvalsh(precision)[-1]
    trace = probelib.sample(
        posterior, sampler=probelib.SGLD(step_size=epsilon),
        chains=small_chains, draws=small_steps // 10, thin=10,
        burn_in=200, seed=seed, progress=False,
    )  # fmt: skip
    kernel = probelib.loss_kernel(trace)
    budget.append(
        helpers.error_budget(
            posterior, first, exact.kernel, kernel, epsilon
        )
    )
    independent = retraining.gaussian_draws(posterior, gaussian_draws, seed)
    draw_errors.append(retraining.relative_error(first, independent))

# %% mystnb={"figure": {"caption": "Relative error of three expansions of the loss kernel against n beta, over several logistic regressions (line: median, band: range), under the local posterior and under its Gaussian approximation. Lines: no sampling error. Look at the slopes, which are the orders in the table below. Open black markers: the first-order kernel against a sampled one, which also has the sampler's own error.", "name": "fig-laplace-orders"}, "image": {"alt": "Two log-log panels of relative error against n beta from thirty to thirty thousand, with three lines for three expansions and open markers for sampled kernels."}}
posterior_law, gaussian_law = laws
chain_errors = np.array([total for *_, total in budget])
figures.expansion_errors(
    n_betas,
    errors,
    {
        posterior_law: {
            "first order against SGLD": (sampled_at, chain_errors)
        },
        gaussian_law: {
            "first order against draws": (sampled_at, np.array(draw_errors))
        },
    },
)

# %% tags=["remove-input"]
chapter.table(
    helpers.order_rows(chapter, n_betas, errors, distance),
    "Order of the relative error of K, ± the half-width of a 95 % interval.",
)
chapter.table(
    helpers.budget_rows(chapter, sampled_at, budget),
    "Causes of the distance between SGLD's kernel and g'Sg.",
)

# %% [markdown]
# The trace term belongs to the expansion, but alone it cannot improve the order. It is positive on the
# diagonal, and the terms left out need not be, so it can even increase the error. The tanh network above
# is a test: the weighted draws at $n\beta = 12{,}000$ give its kernel.

# %%
network_errors = {
    kind: retraining.relative_error(found.covariance(), weighted)
    for kind, found in expansions(cool, "posterior").items()
}

# %% tags=["remove-input"]
chapter.record(
    network_first_error=network_errors["first order"],
    network_second_error=network_errors["with the trace term"],
    network_next_error=network_errors["all of the next order"],
)
chapter.say(
    "Relative error of the expansion on the tanh network: **{network_first_error:.3f}** at first order, "
    "**{network_second_error:.3f}** with the trace term, **{network_next_error:.3f}** with all terms of "
    "the next order. (The weights leave {loo_weighted_share:.0%} of the draws effective.)"
)

# %% [markdown]
# (demo-erratum-4)=
# ### Erratum 4: the covariance
#
# The Laplace approximation of the paper (Eq. 18) prints $\mathcal N(w^*, H^{-1})$ with the Hessian of the
# *summed* loss. It contains neither $\beta$ nor $\gamma$. On the first data set, at $n\beta = 3{,}000$ and
# $\gamma = 30$, the true covariance comes from the lattice.

# %%
posterior = logistic(n_betas[4])
exact = integrate(posterior, points)
printed = np.linalg.inv(posterior.n_samples * influence.hessian(posterior))
needed = influence.laplace_covariance(posterior)

# %% tags=["remove-input"]
size = np.trace(exact.covariance)
chapter.record(
    erratum4_n_beta=posterior.n_beta,
    erratum4_n=posterior.n_samples,
    erratum4_printed_ratio=np.trace(printed) / size,
    erratum4_needed_ratio=np.trace(needed) / size,
)
chapter.say(
    "Trace of the covariance over the true one, at nβ = {erratum4_n_beta:,.0f} and n = "
    "{erratum4_n}: **{erratum4_needed_ratio:.4f}** for $S$, **{erratum4_printed_ratio:.1f}** for the "
    "printed $H^{{-1}}$."
)

# %% [markdown]
# (demo-erratum-5)=
# ### Erratum 5: the sign
#
# The paper's expansion (Eq. 21) prints $K_{ij} \approx -g_i^\top H^{-1} g_j$. A line through all entries
# of the true kernel against $g_i^\top S g_j$ has the slope $+1$ or $-1$. And a variance is not negative.

# %%
first = influence.laplace_kernel(posterior).covariance()
slope = (first * exact.kernel).sum() / (first * first).sum()

# %% tags=["remove-input"]
chapter.record(
    erratum5_slope=slope,
    erratum5_smallest_variance=np.diag(exact.kernel).min(),
    erratum5_largest_printed=(-np.diag(first)).max(),
    translation_error=retraining.relative_error(
        exact.kernel_of_losses, exact.kernel
    ),
)
chapter.say(
    "Slope of $K$ on $+g^\\top S g$: **{erratum5_slope:+.4f}**. The smallest $K_{{ii}}$ is "
    "{erratum5_smallest_variance:.2g} nats²; the largest that the printed sign gives is "
    "{erratum5_largest_printed:.2g}."
)

# %% [markdown]
# ## Singular models
#
# The expansion needs a strict minimum. Three models have none.
#
# **A redundant line.** Linear regression with every weight written as a sum, $w = u + v$. Half of the
# eigenvalues of $H$ are zero. Every gradient is orthogonal to the flat directions, so damping does no harm
# there: the classical influence has a limit as $\delta \to 0$, only not at 0. The kernel has a closed form.
# With $\gamma$ on both $u$ and $v$, their sum feels the localization $\gamma/2$; so the kernel is that of
# the plain regression at $\gamma / 2$, exactly. It is invariant under the reparametrisation only as far as
# $\gamma$ does not matter.

# %%
plain = toys.linear_regression(
    n=40, scales=(2.0, 1.2, 0.8), noise=0.5, seed=0
)
double = retraining.Redundant(torch.from_numpy(plain.center))


def around_line(model, gamma):
    """The local posterior of a linear regression."""
    return probelib.LocalPosterior(
        model,
        probelib.squared_error,
        plain.data,
        n_beta=40.0,
        localization=gamma,
    )


def exact_kernel(model, gamma):
    """Its kernel: exact at second order, since the loss is quadratic."""
    around = around_line(model, gamma)
    return influence.laplace_kernel(around, order=2).covariance()


# %%
gamma = 4.0
twice, half, once = (
    exact_kernel(double, gamma),
    exact_kernel(plain.model, gamma / 2),
    exact_kernel(plain.model, gamma),
)
redundant = around_line(double, gamma)
undamped = influence.classical_influence(around_line(plain.model, gamma))
nearly = influence.classical_influence(redundant, 1e-9)

# %% tags=["remove-input"]
chapter.record(
    redundant_identity_error=retraining.relative_error(twice, half),
    redundant_change=retraining.relative_error(twice, once),
    redundant_change_small_gamma=retraining.relative_error(
        exact_kernel(double, gamma / 1000),
        exact_kernel(plain.model, gamma / 1000),
    ),
    redundant_classical_error=retraining.relative_error(nearly, undamped),
)
chapter.say(
    "The kernel of the redundant line equals the plain one at γ/2 to {redundant_identity_error:.0e}; "
    "at equal γ the two differ by {redundant_change:.1%}, at a thousandth of that γ by "
    "{redundant_change_small_gamma:.3%}. The classical influence at δ = 1e-9 is within "
    "{redundant_classical_error:.0e} of the plain model's."
)

# %% [markdown]
# **A product.** The line $y = abx$, at $a = b = 0$, on data whose best slope is exactly 0. This is a
# minimum, but no gradient and no Hessian sees anything: $g_i = 0$, $H = 0$. The classical influence
# is 0 for every damping. The kernel is an integral over $(a, b)$. Leaving a sample out of a line's least
# squares needs no training at all.

# %%
line = retraining.level_line(n=40, seed=0)
at_zero = retraining.product_kernel(
    line, 0.0, 0.0, n_beta=400.0, localization=1.0
)
left_out = retraining.line_without_each(line)
no_gradient = probelib.LocalPosterior(
    retraining.Product(0.0, 0.0),
    probelib.squared_error,
    line,
    n_beta=400.0,
    localization=1.0,
)
nothing = influence.classical_influence(no_gradient, 1e-6)

# %%
steep = retraining.level_line(n=40, slope=1.0, seed=0)
orbit = {
    (c, g): retraining.product_kernel(
        steep, c, 1 / c, n_beta=400.0, localization=g
    )
    for c in (1.0, 3.0)
    for g in (1.0, 10.0, 100.0)
}

# %% tags=["remove-input"]
chapter.record(
    product_classical_largest=np.abs(nothing).max(),
    product_kernel_spearman=spearman(at_zero, left_out),
    product_kernel_trace=np.trace(at_zero),
    **{
        f"orbit_change_gamma_{g:.0f}": retraining.relative_error(
            orbit[3.0, g], orbit[1.0, g]
        )
        for g in (1.0, 10.0, 100.0)
    },
)
chapter.say(
    "At zero the largest classical influence of the product is {product_classical_largest:g}. The rank "
    "correlation of the kernel with leaving out is **{product_kernel_spearman:.3f}**. On data of slope 1 "
    "the weights (1, 1) and (3, 1/3) make the same line, and kernels that differ by "
    "{orbit_change_gamma_1:.2%} at γ = 1, {orbit_change_gamma_10:.2%} at 10, "
    "{orbit_change_gamma_100:.2%} at 100."
)

# %% [markdown]
# So the kernel is *not* invariant under a change of parameters: the localization is a ball in weight
# space, and a reparametrisation deforms it. Where the data hold the weights, they decide; elsewhere
# $\gamma$ does.
#
# **A ReLU network** with 8 hidden units on half-moons, as Adam leaves it. {numref}`fig-singular` varies the
# damping of the classical influence, and the localization of the kernel, whose role is the same:
# $\delta = \gamma / n\beta$. The kernel is sampled with separate chains at each localization. How well two
# halves of them agree is the most that can be asked of any comparison.

# %%
relu, moons = toys.moons_network(n=128, hidden=8, seed=0)
relu, moons = relu.double(), (moons[0].double(), moons[1])
relu_n_beta, reference = 128.0, 0.25
gammas = relu_n_beta * reference * np.array([0.25, 1.0, 4.0])


def around_relu(gamma):
    """The local posterior of the ReLU network."""
    return probelib.LocalPosterior(
        relu,
        probelib.cross_entropy,
        moons,
        n_beta=relu_n_beta,
        localization=gamma,
    )


base = around_relu(1.0)
relu_values = np.linalg.eigvalsh(influence.hessian(base))

# %%
relu_kernels = []
for k, gamma in enumerate(gammas):
    step_size = 0.4 / (relu_n_beta * relu_values[-1] + gamma)
    trace = probelib.sample(
        around_relu(gamma),
        sampler=probelib.SGLD(step_size=step_size),
        chains=small_chains // 2,
        draws=max(relu_steps // 20, 4),
        thin=20,
        burn_in=relu_steps // 2,
        seed=seed + k,
        progress=False,
    )
    relu_kernels.append(helpers.SampledKernel.of(trace, gamma))

# %% tags=["hide-input"]
damping = np.geomspace(1e-6, 1, 241)
at_reference = influence.classical_influence(base, reference)
of_line = influence.classical_influence(redundant, reference)
largest, agree = np.array(
    [
        (
            np.abs(i).max() / np.abs(at_reference).max(),
            spearman(i, at_reference),
        )
        for i in retraining.influence_path(base, damping)
    ]
).T
of_redundant_line = [
    np.abs(i).max() / np.abs(of_line).max()
    for i in retraining.influence_path(redundant, damping)
]
kernel_agree = [
    spearman(k.covariance, relu_kernels[1].covariance) for k in relu_kernels
]

# %% mystnb={"figure": {"caption": "A ReLU network as training leaves it. Left: the sizes of its Hessian's eigenvalues, with negative ones and exact zeros (crosses, below 1e-12). Middle: the largest classical influence against the damping, over its value at the reference (dotted). A spike is a negative eigenvalue that the damping cancels; the redundant line has only exact zeros beside its positive eigenvalues. Right: rank correlation of the influences of all pairs with those at the reference, and the same for the sampled kernel against the localization.", "name": "fig-singular"}, "image": {"alt": "Three panels. Left: eigenvalue sizes on a log axis, with marks for negative ones and for zeros. Middle: largest influence against damping from one millionth to one, one line for the ReLU network and one for the redundant line. Right: rank correlation against damping, a line for the classical influence and three diamonds for the kernel."}}
figures.singular_influence(
    np.where(np.abs(relu_values) < 1e-12, 0, relu_values),
    damping,
    {
        "ReLU network": largest,
        "redundant line": np.array(of_redundant_line),
    },
    {
        "classical influence": (damping, agree),
        "loss kernel": (gammas / relu_n_beta, np.array(kernel_agree)),
    },
    reference,
)

# %% tags=["remove-input"]
helpers.record_spectrum(chapter, relu_values, largest, agree)
rows = helpers.relu_rows(
    chapter, relu_kernels, kernel_agree, relu_n_beta, damping, agree
)
chapter.table(
    rows, "The kernel of the ReLU network against its localization."
)
chapter.say(
    "Of {relu_parameters} eigenvalues {relu_zero_eigenvalues} are zero to rounding and "
    "{relu_negative_eigenvalues} negative, the lowest {relu_lowest_eigenvalue:.1e}; largest over smallest "
    "of the others: {relu_condition:.0e}. Over the dampings tried, the largest classical influence "
    "rises to **{relu_influence_spike:,.0f}** times that at the reference. (At a pole it has no bound: "
    "how high it comes depends on how near a damping is.) Its ranks agree with those at the "
    "reference with a correlation as low as **{relu_agreement_lowest:.2f}**."
)
chapter.say(helpers.relu_in_words(chapter, relu_kernels))

# %% [markdown]
# The kernel is finite for every positive $\gamma$, whatever the eigenvalues of $H$: the loss is bounded
# below, so Eq. 1 is a probability law. That it is finite does not make it independent of $\gamma$: the
# table says how far its ranks move.
#
# ## On MNIST
#
# Chapter 02's network has 407,050 weights, too many for a Hessian. The baseline that scales is the inner
# product of gradients at $w^*$, taken for a random subset of the digits. The kernel comes from the
# trace. {numref}`fig-mnist-gradients` compares them.

# %% tags=["remove-input"]
torch.set_num_threads(threads)

# %%
probe = mnist_probe(
    n_samples=n_samples,
    epochs=epochs,
    chains=chains,
    draws=draws,
    seed=seed,
    progress=live,
)
rng = np.random.default_rng(seed)
some = np.sort(rng.choice(n_samples, n_subset, replace=False))
digit_of = probe.labels.numpy()[some]
cosine, length = influence.gradient_gram(
    probe.posterior, (probe.inputs[some], probe.labels[some])
)
part = probelib.loss_kernel(probe.trace.isel(sample=some))
correlation, deviation = part.correlation(), np.sqrt(part.diagonal().values)

# %%
purities = {
    "kernel": retraining.neighbour_purity(correlation, digit_of),
    "gradients": retraining.neighbour_purity(cosine, digit_of),
}
digits = helpers.Digits(
    digit_of, cosine, length, correlation, deviation, purities
)

# %% mystnb={"figure": {"caption": "A random subset of the training digits. Left: the correlation kernel against the cosine of the gradients at the trained weights, for a random part of the pairs. Middle: lengths of the gradients and standard deviations of the losses under the posterior, each over its median; a steep line means that samples have similar sizes. Right: the share of a digit's ten nearest neighbours that have its class, by length of its gradient; dotted: chance.", "name": "fig-mnist-gradients"}, "image": {"alt": "Three panels. Left: scatter of correlation against gradient cosine, pairs of the same class apart from pairs of different classes. Middle: cumulative distributions on a log axis; one for the gradient lengths, one for the standard deviations. Right: two lines of neighbour purity over five groups of digits, with a dotted line at about one tenth."}}
upper = np.triu_indices(n_subset, 1)
drawn = np.random.default_rng(seed).choice(
    len(upper[0]), min(6000, len(upper[0])), replace=False
)
pair = upper[0][drawn], upper[1][drawn]
moves, fifth = digits.positive, digits.fifth
figures.kernel_and_gradients(
    cosine[pair],
    correlation[pair],
    digit_of[pair[0]] == digit_of[pair[1]],
    {
        "length of the gradient": length[moves],
        "deviation of the loss": deviation[moves],
    },
    {
        name: (
            np.arange(1, 6),
            np.array([p[fifth == k].mean() for k in range(1, 6)]),
        )
        for name, p in purities.items()
    },
    digits.chance,
)

# %% tags=["remove-input"]
digits.record(chapter, min(resamples, 100), seed)
chapter.record_verdict(
    probelib.diagnostics(probe.trace, seed=seed), "mnist_verdict"
)
chapter.say(
    "Rank correlation of kernel and cosine over all pairs: **{mnist_spearman:.2f}** (95 % interval over "
    "digits {mnist_spearman_low:.2f} to {mnist_spearman_high:.2f}), over pairs of different classes "
    "{mnist_spearman_across:.2f} ({mnist_spearman_across_low:.2f} to {mnist_spearman_across_high:.2f}). "
    "Between the 1 % and the 99 % quantile, the lengths of the "
    "gradients span a factor **{mnist_spread_gradient:.0e}**, the deviations of the losses "
    "**{mnist_spread_deviation:,.0f}**. The longest twentieth holds {mnist_longest_share:.0%} of the "
    "squared length, and the twentieth with the largest variance {mnist_deviation_share:.0%} of the trace "
    "of $K$. Neighbours of the same class: {mnist_purity_kernel:.3f} by the kernel, "
    "{mnist_purity_gradients:.3f} by the gradients, and in the fifth with the shortest gradients "
    "{mnist_purity_kernel_short:.3f} and {mnist_purity_gradients_short:.3f}; chance: "
    "{mnist_chance:.3f}. Verdict on the trace: {mnist_verdict}."
)

# %% [markdown]
# A sample that the network gets right with confidence has next to no gradient at $w^*$: to first order
# it influences nothing. Under the posterior the weights move away from $w^*$, and its loss moves with
# them. The kernel sees this, and the gradients at one point do not. The *direction* of a
# short gradient is another matter: it contains the label. The last layer's part of it is
# $p - \text{onehot}(y)$ times the features ($p$: the network's probabilities, $y$: the label), so two
# digits of one class point the same way almost by construction. A high purity of the gradients is no
# discovery; the pairs across classes are where the two may be compared.
#
# ## Paper says / this run
#
# Every statement of Appendix C has a row. Where the paper prints a formula, the measured value is compared
# with it, and the errata show as the differences that they are.

# %% tags=["remove-input"]
chapter.compare(helpers.claims(chapter))

# %% [markdown]
# ## What could fool you
#
# - **The temperature.** $\beta K$ predicts what happens to the mean over a neighbourhood of $w^*$. It comes
#   near to retraining only where that neighbourhood is so small that the curvature hardly changes in it,
#   and there the chain is slow. A rank correlation without its $n\beta$ says nothing.
# - **The localization is a damping.** $\gamma / n\beta$ acts on the kernel as $\delta$ does on the
#   classical influence. A kernel that looks stable may be stable because $\gamma$ holds it.
# - **A formula with more terms.** The trace term of Appendix C is one of several of the same size and
#   not of the same sign. Take all of them or none.
# - **The teacher.** The network of the leave-one-out test was chosen to be regular. That favours the
#   classical influence. Small networks on noisy data without a teacher had weights that grew without bound.
# - **One data set.** The intervals are over queries. Another data set or another network is not in them.
# - **Self-influence.** The pairs $i = j$ have the largest changes, but they are one in a hundred, and
#   ranks see no sizes.
# - **Spearman by pairs and by query** answer different questions: the first also rewards knowing
#   which samples matter at all.

# %% [markdown]
# ## Exercises
#
# **1.** The localization acts as the damping $\delta = \gamma / n\beta$. At $n\beta = 12$ and $\gamma = 1$
# this is $1/12$. Does the classical influence with that damping rank the pairs as the kernel at
# $n\beta = 12$ does? Guess first.

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the answer"}
damped = -influence.classical_influence(network, 1 / 12)[left] / n
chapter.record(
    exercise_damped_against_kernel=spearman(
        damped, predictions["βK, SGLD, nβ = 12"]
    ),
    exercise_damped_against_retraining=spearman(damped, truth),
)
chapter.say(
    "Their rank correlation is **{exercise_damped_against_kernel:.2f}**. With retraining the damped "
    "influence correlates by {exercise_damped_against_retraining:.2f}, the kernel at nβ = 12 by "
    "{loo_spearman_bayesian_nb_12:.2f}. The damping is the localization's part of the difference between "
    "kernel and influence; the rest comes from higher orders of the expansion, and from the chains."
)

# %% [markdown]
# **2.** How much of the distance from 1 is Monte-Carlo noise? Compute the kernel at $n\beta = 1{,}200$
# from half of the chains. If noise were the cause, its rank correlation with retraining would fall.

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the answer"}
fewer = traces[1200.0].isel(chain=slice(small_chains // 2))
half_of_them = probelib.loss_kernel(fewer).covariance(left)
chapter.record(exercise_half_the_chains=spearman(half_of_them, truth))
chapter.say(
    "With half of the chains: **{exercise_half_the_chains:.3f}**, with all of them "
    "{loo_spearman_bayesian:.3f}."
)

# %% [markdown]
# **3.** The diagonal pairs $i = j$ have large changes of a known sign. Leave them out: what remains of the
# rank correlations?

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the answer"}
across = left[:, None] != np.arange(n)
by_kernel, by_influence = (
    spearman(predictions[name][across], truth[across])
    for name in ("βK, SGLD, nβ = 1200", "−I/n, δ = 0")
)
chapter.record(
    exercise_across_kernel=by_kernel, exercise_across_classical=by_influence
)
chapter.say(
    "Kernel at nβ = 1,200: **{exercise_across_kernel:.3f}** (all pairs: {loo_spearman_bayesian:.3f}). "
    "Classical influence: **{exercise_across_classical:.3f}** (all pairs: {loo_spearman_classical:.3f})."
)

# %% [markdown]
# ## Summary
#
# Where a model is regular, the kernel and the classical influence are one object at leading order. The
# order of what is left out is what theory says, once theory counts all terms. Where the model is singular,
# the classical influence is 0, undefined, or decided by its damping. The kernel always exists, and it
# depends on $\gamma$ and on the temperature.
#
# Next: {doc}`chapter 08 <08_language_models>` goes where the paper does not, to language models.
#
# **References.** Influence functions of networks: {cite:t}`koh2017understanding`. The Bayesian
# influence function: {cite:t}`iba2024wkernel` and {cite:t}`anonymous2025bif`. Curvature and case
# influence in Bayesian models: {cite:t}`thomas2018reconciling`. Why networks are singular:
# {cite:t}`wei2023singular`.

# %% tags=["answer"]
chapter.answer(*helpers.answer(chapter))

# %% tags=["remove-input"]
chapter.finish(
    "leave-one-out Spearman (± half of a 95 % interval): kernel {loo_spearman_bayesian_nb_12:.2f} ± "
    "{loo_half_bayesian_nb_12:.2f}, {loo_spearman_bayesian_nb_120:.2f} ± {loo_half_bayesian_nb_120:.2f}, "
    "{loo_spearman_bayesian:.2f} ± {loo_half_bayesian:.2f} at nβ = 12, 120, 1,200 (unbiased sampler at "
    "1,200: {loo_spearman_unbiased:.2f}), classical {loo_spearman_classical:.3f} ± "
    "{loo_half_classical:.3f}, gradients {loo_spearman_inner:.2f} ± {loo_half_inner:.2f}; order of the "
    "expansion's error {laplace_order_first:.3f} (first), {laplace_order_second:.3f} (with the trace), "
    "{laplace_order_next:.3f} (complete)"
)
