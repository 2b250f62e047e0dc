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
# # Which sampler, which settings
#
# **Claim.** *Samplers can be compared where the answer is known.* On networks whose local learning
# coefficient (LLC) is known, the right step size matters more than the sampler, and the library's verdict
# tells a right step from a wrong one.

# %% [markdown] tags=["about"]
# The paper takes stochastic-gradient Langevin dynamics (SGLD) with the settings of its Table 1. This chapter
# asks what other samplers and settings would have given. It goes beyond the paper.
#
# An earlier benchmark ({cite:t}`hitchcock2025global`) compared samplers on deep linear networks. Its winner
# was SGLD with RMSprop's preconditioner. The chapter repeats it with two changes: the truth is the LLC of the
# posterior that is sampled, not its limit; and every run has the library's verdict beside it.
#
# | profile | what runs | two cores |
# | --- | --- | --- |
# | `smoke` | networks of 30 weights, 150 gradients per chain; a small network on 1,500 digits: not a result | three minutes |
# | `laptop` | the grid from kept runs, of which a part is made again; nineteen runs on MNIST | about ten minutes |
# | `paper` | the grid made here, with five times the gradients | not timed as a whole |
#
# Networks of $10^7$ and $10^8$ weights are for a GPU:
# `python -m probebook.sampler_benchmark --weights 1e8 --networks 2 --gradients 400 --device cuda`.

# %% tags=["hide-input"]
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

import probelib
from probebook import benchmark_summaries as summaries
from probebook import calibrated_networks as calibrated
from probebook import figures, hmc_truth
from probebook import sampler_benchmark as benchmark
from probebook.benchmark_problems import DeepLinearPlan, KnownPlan
from probebook.cache import cache_dir
from probebook.chapter import Chapter
from probebook.chapters import samplers_and_settings as helpers
from probebook.deep_linear import (
    DeepLinear,
    deep_linear_coefficient,
    deep_linear_law,
    random_teacher,
)
from probebook.gpt_agreement import kept_agreement
from probebook.mnist import load_mnist
from probebook.sampler_agreement import agreement, halves
from probebook.training import RECIPES, prepare_pixels, trained_network

# %% tags=["parameters"]
profile: str = "laptop"  # smoke, laptop or paper
seed: int = 0  # of networks, chains and every random choice
results_dir: str = "../results/live"  # where this chapter's numbers go
live: bool = True  # False when the driver runs it: no progress bars then
sizes: list = [1e2, 1e3, 1e4]  # weights of the deep linear networks
networks: list = [8, 8, 2]  # how many of each size
large_sizes: list = [1e5, 1e6]  # of those that come from kept runs alone
large_networks: list = [2, 1]  # of each of these
hmc_networks: bool = True  # also small ones that HMC knows
prerun_dir: str = "../results/prerun"  # kept runs
n_beta: float = 1000.0  # n beta of the networks
localization_per_width: float = 10.0  # gamma over the largest width
sweeps: int = 300  # of the Gibbs sampler behind the truth
steps: list = [0.01, 0.0316, 0.1, 0.316, 1.0, 3.16, 10.0]  # epsilon n beta
gradients: int = 2000  # of each chain, whatever the sampler
large_steps: list = [0.0316, 0.1, 0.316]  # of the large networks
large_gradients: int = 150  # of theirs
chains: int = 4  # of each run
draws: int = 200  # kept of each chain, at most
again_step: int = 3  # of steps, at which a part of a kept run is made again
resamples: int = 1000  # of the problems, for the errors of medians
calibrated_cases: int = 19  # networks that calibrate is tried on
calibrated_error: float = (
    0.01  # of the LLC, that it aims at on problems of known LLC
)
n_samples: int = 60_000  # digits of the network without a truth
epochs: int = 20  # of its training, as in chapter 02
n_observed: int = 2000  # digits that are observed
digit_steps: list = [1.25e-3, 5e-3, 2e-2]  # epsilon
digit_draws: int = 100  # of each of 4 chains, every fourth step
reference_step: float = 2.5e-3  # of the Leimkuhler-Matthews reference
reference_draws: int = 300  # of each of 4 chains, every fourth step

# %% tags=["remove-input"]
chapter = Chapter(
    "09_samplers_and_settings",
    profile=profile,
    results_dir=results_dir,
    parameters=globals(),
)

# %% [markdown]
# ## Known answers at any size
#
# A deep linear network is a product of matrices, $f(x) = W_L \cdots W_1 x$. With $T$ the true map of rank
# $r$ and white inputs, its loss is $L(w) = \frac12 \lVert W_L \cdots W_1 - T \rVert^2$. It is as singular as
# a real network, and its learning coefficient $\lambda$ has a closed form, for any depth and width
# ({cite:t}`aoyagi2024deep`).

# %%
widths, rank = (9, 12, 10, 9), 2
coefficient, multiplicity = deep_linear_coefficient(widths, rank)
model = DeepLinear(widths, rank)
law = deep_linear_law(model, n_beta=1000.0, localization=12.0)
print(f"limit {coefficient}, Eq. 1 at n beta = 1000: {law.llc:.2f}")

# %% [markdown]
# Three numbers must not be confused:
#
# - **$\lambda$**, the limit of $n\beta\,(\operatorname{E}[L] - L(w^*))$ as $n\beta \to \infty$, at the most
#   singular of all weights that make $T$.
# - **The local coefficient** at the weights $w^*$ where the chains start. At other weights that make the same
#   map it may be larger than $\lambda$. Our $w^*$ has the identity in the corner of every layer, so that all
#   layers have the rank of $T$: there both are the same. Exercise 1 shows weights where they are not.
# - **The LLC of the local posterior** (Eq. 1) at the $n\beta$ and the localization $\gamma$ in use. This is
#   what a perfect sampler would report, and so it is our truth.
#
# The last can be had without a step size. Given the other layers, $L$ is quadratic in one layer, and Eq. 1 is
# a Gaussian whose precision two eigendecompositions make diagonal. Drawing layer after layer is a Gibbs
# sampler. Its only error is that of chance.
#
# Other problems come from {doc}`chapter 05 <05_llc_identity>`: a linear regression, and products of powers of
# weights. Two small networks with a nonlinearity have no closed form; a long run of Hamiltonian Monte Carlo
# (HMC) tells their LLC, which its accept test makes exact but for chance.

# %%
small = tuple(hmc_truth.NETWORKS) if hmc_networks else ()
plans = [KnownPlan(n_beta=n_beta, networks=small)]
for size, many in zip(sizes, networks, strict=True):
    plans.append(
        DeepLinearPlan(
            size,
            many,
            n_beta,
            localization_per_width,
            sweeps=sweeps,
            seed=seed,
        )
    )
budget = benchmark.Budget(gradients, chains, draws)

# %% [markdown]
# ## The grid
#
# Every sampler runs on every problem at every step size $\epsilon$, with the same number of gradients.
# A step size is given in units of $1/n\beta$. The samplers are in a dictionary, and another one is a line more:

# %%
samplers = benchmark.SAMPLERS
for name, candidate in samplers.items():
    made = candidate.make(step_size=1e-4, batch_size=None)
    print(
        f"{name}: {made}, gradients a step: {candidate.gradients_per_step}"
    )

# %% tags=["hide-input"]
prerun = Path(prerun_dir)
found = [
    benchmark.rows_of(
        plan,
        steps,
        budget,
        prerun=prerun,
        error=calibrated_error,
        seed=seed,
        progress=live,
    )
    for plan in plans
]
rows = pd.concat([one.grid for one in found], ignore_index=True)
chosen = pd.concat([one.choices for one in found], ignore_index=True)

# %% tags=["hide-input"]
large = benchmark.kept_large(
    [
        replace(plans[-1], weights=size, networks=many)
        for size, many in zip(large_sizes, large_networks, strict=True)
    ],
    large_steps,
    replace(budget, gradients=large_gradients),
    prerun,
    seed,
)
everything = pd.concat([rows, large], ignore_index=True)

# %% tags=["remove-input"]
helpers.record_known(chapter, rows)
chapter.record(
    kept_plans=sum(one.kept for one in found),
    max_weights=int(everything["weights"].max()),
)
chapter.table(
    helpers.problem_rows(chapter, everything),
    "The problems: the learning coefficient, and the LLC of Eq. 1, which is the truth of the benchmark.",
)
chapter.say(
    "**{n_problems}** problems in the grid, {n_runs} runs, of which {n_diverged} diverged; and larger networks, "
    "up to **{max_weights:,}** weights. The LLC of Eq. 1 is {share_of_limit_least:.0%} to "
    "{share_of_limit_most:.0%} of $\\lambda$. A benchmark that takes $\\lambda$ for the truth counts that "
    "distance as an error of the sampler, and an upward bias of the step can hide it."
)

# %% tags=["remove-input"]
again = [
    benchmark.grid(
        plan.first().problems(),
        samplers,
        steps[again_step : again_step + 1],
        budget,
        seed=seed,
        progress=live,
    )
    for plan, one in zip(plans, found, strict=True)
    if one.kept
]
if again:
    chapter.say(helpers.record_again(chapter, rows, pd.concat(again)))

# %% [markdown]
# ## A map for a newcomer
#
# {numref}`fig-sampler-map` shows how far off each sampler is at each step. Too short a step leaves the chains
# near $w^*$, and the LLC is too small. Too long a step widens the posterior, and the LLC is too large. A run
# that diverged has an infinite error.

# %%
by_step = summaries.by_step(rows)

# %% tags=["key-figure"] mystnb={"figure": {"caption": "Relative error of the LLC against the step size, one panel a sampler, at equal numbers of gradients: median over all problems, with quartiles. Curves that reach the top diverged. Bars at the bottom: what the library's verdict says of the same runs, without knowing the truth. Look for the steps at which a curve is in the green band, and whether the verdict approves there and nowhere else.", "name": "fig-sampler-map"}, "image": {"alt": "Eight panels, one a sampler: relative error against step size on log axes, each a curve with a valley and a shaded band, and a green area below ten per cent. Along the bottom of each panel a bar for every step size, divided into approved, uncertain and refused runs."}}
figures.sampler_map(by_step)

# %%
errors = summaries.relative_errors(rows, resamples=resamples, seed=seed)
best = summaries.winner(rows, resamples=resamples, seed=seed)
errors.round(3)

# %% tags=["remove-input"]
chapter.table(
    helpers.error_rows(chapter, errors),
    "Relative error of the LLC against Eq. 1; ± is one standard error over problems.",
)
helpers.record_winner(chapter, rows, best)
chapter.say(helpers.winner_in_words(chapter))

# %% [markdown]
# Nobody knows the best step of a network whose LLC is unknown. What a sampler does *over the range* is what
# one meets without tuning.
#
# ## Are models told apart?
#
# Often the LLC itself does not matter, but which of two networks has the larger one. Kendall's $\tau$ counts
# pairs of problems of one kind and size: those in the right order less those in the wrong one, over all. The
# right order is that of $\lambda$, or that of Eq. 1, which is what a sampler can be asked for.

# %%
limits = rows[rows["limit"].notna()]
order = summaries.kendall(limits)
order_eq1 = summaries.kendall(rows, "eq1")
best_steps = summaries.best_steps(rows)
perfect = summaries.perfect_order(rows)
print(f"a perfect sampler of Eq. 1 has tau = {perfect:.2f}")

# %% tags=["remove-input"]
chapter.table(
    helpers.kendall_rows(chapter, order, order_eq1, best_steps.to_dict()),
    "Do the estimates order the problems as the truth does?",
)
chapter.record(kendall_perfect=perfect)
chapter.say(
    "A perfect sampler of Eq. 1 has $\\tau$ = **{kendall_perfect:.2f}** with $\\lambda$: where it is below 1, "
    "Eq. 1 at this $n\\beta$ and $\\gamma$ orders two networks otherwise than their limits."
)

# %% [markdown]
# ## What a gradient buys
#
# {numref}`fig-efficiency` shows how many independent draws of the mean loss a thousand gradients are worth,
# burn-in included, at the step that gives most of them while the LLC is right.

# %% mystnb={"figure": {"caption": "Effective draws per thousand gradients, median over problems, at the longest useful step of each sampler: of the steps whose median LLC is within 10 % of Eq. 1, the one that gives most. The step stands at the bar, in units of 1/nβ. Look at how much longer the best bar is than that of SGLD.", "name": "fig-efficiency"}, "image": {"alt": "Horizontal bars, one a sampler, of effective draws per thousand gradients, each with its step size written at its end."}}
figures.efficiency(by_step)

# %% [markdown]
# ## Does it hold for larger networks?
#
# An accept test looks at the whole energy, whose changes grow with the number of weights; so its steps must
# shrink. The other samplers only mind the stiffest direction. The localization grows with the widths here, and
# with it the precision that a step has to fit.

# %% tags=["remove-input"]
chapter.table(
    helpers.size_rows(chapter, everything),
    "Median relative error by kind and size of the problems, at the step (in brackets) at which it is least "
    "there; a dash: not run.",
)

# %% [markdown]
# ## Does the verdict know?
#
# `probelib.diagnostics` does not know the truth. The table counts its words against it. The worst fault is to
# approve a run that is off by more than 10 %.

# %%
said = summaries.verdicts(rows)

# %% tags=["remove-input"]
chapter.table(
    helpers.verdict_rows(chapter, said),
    "The verdict against the truth, shares of all runs of each sampler.",
)
chapter.say(helpers.verdicts_in_words(chapter))

# %% [markdown]
# ## Settings that nobody has to guess
#
# `probelib.calibrate` looks at the curvature along a chain, at the noise of minibatches and at how fast losses
# decorrelate, and takes step size, batch size, burn-in, thinning and the number of draws from these. On the
# problems above it may be held against the grid, whose best setting takes the truth to find. The *regret* is
# one less the share of that setting's effective draws per gradient; below 0 it beats the grid.

# %%
choice = summaries.of_choices(rows, chosen)
regret = summaries.regret(rows, chosen[chosen["refused"] == ""])
regret.round(3)

# %% [markdown]
# On networks whose LLC nobody knows, the run at these settings is compared with a *reference*: a quarter of the
# step, ten times as many steps. Where the posterior has no localization, `calibrate` takes the smallest of
# 1, 3, 10, 30, ... whose draws keep nine tenths of what the network has learned beyond guessing.

# %%
names = list(calibrated.NETWORKS)[:calibrated_cases]
networks_found = calibrated.kept_calibrations(prerun, names, seed)
if networks_found is None:
    networks_found = pd.DataFrame(
        [
            calibrated.measure(
                name,
                error=max(
                    calibrated_error, calibrated.NETWORKS[name].error
                ),
                seed=seed,
            )
            for name in names
        ]
    )

# %% tags=["remove-input"]
helpers.record_choices(chapter, choice, chosen)
chapter.record(**calibrated.summary(networks_found))
chapter.table(
    helpers.calibration_rows(chapter, networks_found),
    "Networks of many kinds, calibrated; the reference has a quarter of the step and ten times the steps.",
)
chapter.say(helpers.calibration_in_words(chapter))

# %% [markdown]
# ## Networks without a truth
#
# The network of {doc}`chapter 02 <02_loss_gain>` reads digits, and nobody knows its LLC. The reference is a
# longer run of the Leimkuhler-Matthews sampler at half of Table 1's step size. Do other samplers and steps
# agree with it, and in what? All follow the gradient of 64 digits, as Table 1 does, so that none has an accept
# test.

# %%
mnist = load_mnist("train")
images, labels = mnist.images[:n_samples], mnist.labels[:n_samples]
recipe = replace(RECIPES["sgd-unit-1x512"], epochs=epochs)
network = trained_network(recipe, images, labels, seed=seed)
inputs = prepare_pixels(images, recipe)
posterior = probelib.LocalPosterior(
    network.model,
    probelib.cross_entropy,
    (inputs, labels),
    n_beta=10.0,
    localization=30.0,
)
part = np.random.default_rng(seed).choice(
    n_samples, min(n_observed, n_samples), replace=False
)
observed = inputs[part], labels[part]

# %%
settings = {"chains": 4, "burn_in": 100, "thin": 4, "seed": seed}
reference = probelib.sample(
    posterior,
    observe=observed,
    sampler=probelib.LeimkuhlerMatthews(reference_step, batch_size=64),
    draws=reference_draws,
    cache=cache_dir("traces"),
    **settings,
)
settings |= {"draws": digit_draws, "seed": seed + 1}
digits = agreement(
    posterior,
    observed,
    reference,
    {name: samplers[name] for name in benchmark.OF_MINIBATCHES},
    digit_steps,
    batch_size=64,
    progress=live,
    **settings,
)
ceiling = halves(reference)

# %% [markdown]
# The second is the small GPT of {doc}`chapter 08 <08_language_models>`. Its reference has no step at all:
# weighted draws of Eq. 1. The runs beside it are kept (`python -m probebook.gpt_agreement`).

# %%
kept_gpt = kept_agreement(prerun, seed)
beside = {"digits": (digits, ceiling["spearman"])}
if kept_gpt is not None:
    gpt_rows = kept_gpt["rows"]
    beside["a small GPT"] = (gpt_rows, kept_gpt["ceiling"]["spearman"])

# %% mystnb={"figure": {"caption": "Rank correlation of the loss gains with those of the reference, against the relative error of the LLC, one marker per sampler and step size; bars are two standard errors over chains. Dotted: two halves of the reference. Look whether the correlation falls where the error of the LLC grows.", "name": "fig-ranks"}, "image": {"alt": "One panel a network with markers of several samplers: rank correlation on the vertical axis against relative error of the LLC on a logarithmic horizontal axis, with a green band of errors below ten per cent and a dotted line for the reference."}}
figures.ranks_and_errors(beside)

# %% tags=["remove-input"]
chapter.record_verdict(probelib.diagnostics(reference), "reference_verdict")
chapter.table(
    helpers.agreement_rows(chapter, digits, "digits"),
    "Runs on the digits beside the reference: LLC, ranks of the gains, and correlation of the kernels.",
)
helpers.record_agreement(chapter, digits, ceiling, "digits")
chapter.say(helpers.agreement_in_words(chapter, "digits"))

# %% tags=["remove-input"]
if kept_gpt is not None:
    helpers.record_gpt(chapter, kept_gpt)
    chapter.table(
        helpers.agreement_rows(chapter, gpt_rows, "gpt"),
        "The same of the small GPT, beside weighted draws.",
    )
    chapter.say(helpers.agreement_in_words(chapter, "gpt"))

# %% [markdown]
# {numref}`fig-ranks` asks what survives a wrong step. Too long a step widens all directions of the weights, and
# raises all gains together; so their order suffers less than their values. Whoever has nothing but a refused run
# may use the order of its gains as a hint, and should use neither the values, nor the LLC, nor a difference of
# two gains.
#
# ## The earlier benchmark / this run
#
# {cite:t}`hitchcock2025global` drew widths, rank and the true weights at random. A random point of the set of
# weights that make a map need not be its most singular one. The closed form is that of the most singular one.
# Here $w^*$ is that point, so that closed form and starting point belong together.

# %% tags=["remove-input"]
chapter.compare(helpers.claims(), against=helpers.EARLIER)

# %% [markdown]
# ## What could fool you
#
# - **The limit is no truth for a sampler.** Against $\lambda$, a step that is somewhat too long looks better than
#   a perfect sampler wherever Eq. 1 lies below $\lambda$. Exercise 2 counts how the winner changes.
# - **Equal gradients are not equal time.** A preconditioner costs memory and a few operations per weight.
# - **The best step is chosen with the truth in hand.** Compare the range, too.
# - **Full gradients.** Noise of minibatches adds a bias to every sampler, which no run of the grid has; those on
#   digits and the GPT have it.
# - **Few problems.** Medians have errors over problems, and the winner is given with the share of resampled
#   sets in which it wins.
#
# ## A recipe
#
# 1. Fix $n\beta$ and, if you know it, $\gamma$. They say what is asked; the sampler only answers.
# 2. `found = probelib.calibrate(posterior)`, and print it: every setting with its reason.
# 3. Refused: the message names what to change. Do not go around it by hand.
# 4. `trace = probelib.sample(found.posterior, **found.settings)`.
# 5. By hand instead: `LeimkuhlerMatthews`, $\epsilon = 0.1 / n\beta$ or less where the network is stiff, four
#    chains, a burn-in of $8 / \epsilon\gamma$ steps.
# 6. Read `probelib.diagnostics(trace)`. Refused for the step: take the step that it names.
# 7. Not mixed or not arrived: a longer burn-in, or the longest step that it still approves.
# 8. Uncertain: more draws.
# 9. Halve the step once. If the LLC moves by more than its error, halve again.
# 10. Report the LLC with its error, its step bias, $n\beta$ and $\gamma$.

# %% [markdown]
# ## Exercises
#
# **1.** Between two invertible layers stands a layer of rank 1. What is the local coefficient there, and what
# is $\lambda$ of the same map?

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the answer"}
square = random_teacher((4, 4, 4, 4), (4, 1, 4), seed=1)
square.layers[0].data = 2.0 * square.layers[0].data.new_ones(4).diag()
square.layers[2].data = 2.0 * square.layers[2].data.new_ones(4).diag()
lowest = deep_linear_coefficient((4, 4, 4, 4), 1)[0]
found = deep_linear_law(square, 1e6, 100.0, chains=16, sweeps=50)
chapter.record(
    exercise_lowest=lowest,
    exercise_local=found.llc,
    exercise_local_se=found.llc_se,
)
chapter.say(
    "The two outer layers can be inverted, so the map determines the inner layer: 16 equations, and a local "
    "coefficient of 8. The Gibbs sampler finds **{exercise_local:.2f} ± {exercise_local_se:.2f}**. The closed "
    "form of the same map is {exercise_lowest:.1f}, which belongs to weights whose layers all have rank 1."
)

# %% [markdown]
# **2.** Take $\lambda$ for the truth, as the earlier benchmark does. Which sampler wins then, and at which step?

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the answer"}
to_limit = summaries.winner(limits, "limit", resamples=resamples, seed=seed)
limit_steps = summaries.best_steps(limits, "limit")
chapter.record(
    exercise_limit_winner=to_limit["winner"],
    exercise_limit_share=to_limit["share"],
    exercise_limit_step=limit_steps[to_limit["winner"]],
    exercise_eq1_step=best_steps[to_limit["winner"]],
)
chapter.say(
    "**{exercise_limit_winner}**, in {exercise_limit_share:.0%} of resampled sets, at $\\epsilon n\\beta$ = "
    "{exercise_limit_step:.3g}. Against Eq. 1 its best step is {exercise_eq1_step:.3g}."
)

# %% [markdown]
# ## Summary
#
# Samplers can be compared without knowing anything but the posterior, where that posterior can be drawn from
# exactly. Deep linear networks are such a place at any size. What a sampler is worth depends on the step, and
# the verdict says without the truth which steps to leave alone.
#
# **References.** The benchmark: {cite:t}`hitchcock2025global`. Learning coefficients of deep linear networks:
# {cite:t}`aoyagi2024deep`. The sampler of Leimkuhler and Matthews: {cite:t}`leimkuhler2013rational`. RMSprop's
# preconditioner: {cite:t}`li2016psgld`. The LLC: {cite:t}`lau2025llc`.

# %% tags=["remove-input"]
helpers.record_front(chapter)

# %% tags=["answer"]
chapter.answer(
    helpers.winner_in_words(chapter)
    + " "
    + helpers.answer_in_words(chapter),
    "The truth is known to {eq1_se_largest:.1%} or better. Of all runs that are off by more than 10 % the "
    "verdict approves {verdict_missed:.1%}; on the digits, the reference: {reference_verdict}.",
)

# %% tags=["remove-input"]
chapter.finish(
    "{winner} has the least error in {winner_share:.0%} of resampled sets of {n_problems} problems; networks of "
    "up to {max_weights:,} weights. SGLD {relative_error_sgld_text}, Leimkuhler-Matthews "
    "{relative_error_leimkuhler_matthews_text}, RMSprop-SGLD {relative_error_rmsprop_sgld_text}"
)
