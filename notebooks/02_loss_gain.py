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
# # Loss gain on MNIST
#
# **Claim.** *The loss gain ranks training samples from prototypical to puzzling.* The paper adds that
# the gain does not predict the training loss. Here both are tested.

# %% [markdown] tags=["about"]
# This chapter reproduces the left half of Figure 1 and Appendix A.3. A ReLU network learns MNIST. Then
# the posterior loss gain (Eq. 4) of all 60,000 training digits is measured, with the first row of Table 1.
# The chapter shows the easiest and the hardest digits, and sets the gain against the loss.
#
# It adds what the paper leaves out: the error of every number, rank correlations, other training
# recipes, the local learning coefficient, and what the length of the steps did to the numbers.
#
# | profile | what runs | two cores |
# | --- | --- | --- |
# | `smoke` | 1,500 digits, 2 epochs, 2 chains of 40 draws: not a result | seconds |
# | `laptop` | 60,000 digits, Table 1 exactly: 5 chains of 500 draws; five other networks on 10,000; the same posterior by two other samplers | about half an hour |
# | `paper` | the same as `laptop` | the same |

# %% tags=["hide-input"]
from dataclasses import replace

import numpy as np
from scipy.stats import pearsonr, spearmanr

import probelib
from probebook.cache import cache_dir
from probebook.chapter import Chapter
from probebook.chapters import loss_gain as helpers
from probebook.explorer import Samples, explorer, gain_text
from probebook.figures import loss_gain as figures
from probebook.mnist import load_mnist
from probebook.probes import digit_probe
from probebook.training import (
    RECIPES,
    prepare_pixels,
    trained_network,
    trained_networks,
)
from probelib import plotting

# %% tags=["parameters"]
profile: str = "laptop"  # smoke, laptop or paper
seed: int = 0  # of the training, the chains and every random choice
results_dir: str = "../results/live"  # where this chapter's numbers go
live: bool = (
    True  # False when the driver runs it: the explorer then needs no kernel
)
recipe_name: str = (
    "sgd-unit-1x512"  # architecture and training, see chapter 03
)
epochs: int = 20  # passes over the training set
n_samples: int = 60_000  # training digits used: the first of them
n_beta: float = 10.0  # n beta, Table 1
localization: float = 30.0  # gamma, Table 1
step_size: float = 5e-3  # epsilon, Table 1
batch_size: int = 64  # m, Table 1
chains: int = 5  # C, Table 1
draws: int = 500  # T, Table 1
burn_in: int = 10  # b, Table 1
n_scatter: int = 10_000  # digits in the scatter plot, as in the paper
other_recipes: list = [
    "sgd-std-1x512",
    "adam-unit-2x512",
    "sgd-std-2x512",
]  # for comparison
other_epochs: list = [1, 5]  # the recipe above, stopped early
n_compare: int = 10_000  # digits observed under these
unbiased_thin: int = (
    5  # the second sampler's draws are kept every so many of its steps
)
importance_draws: int = 1000  # weighted draws
loss_samples: int = 30_000  # digits that give them their weights; n_compare digits are observed
sweep_draws: int = 400  # weighted draws at each of three localizations
overconfident_recipe: str = "sgd-std-2x512"  # one of other_recipes
overconfident_localization: float = (
    1000.0  # gamma of the probe of the test set
)
overconfident_step_size: float = (
    5e-4  # its step; at this gamma Table 1's would diverge
)
overconfident_draws: int = 200  # of its one chain, every fifth step

# %% tags=["remove-input"]
chapter = Chapter(
    "02_loss_gain",
    profile=profile,
    results_dir=results_dir,
    parameters=globals(),
)
chapter.record(
    run_profile=profile, n_samples=n_samples, chains=chains, draws=draws
)

# %% [markdown]
# ## The network
#
# The paper says "a two-layer ReLU MLP (width 512)". That leaves open the number of hidden layers, the
# optimiser and the scale of the pixels. This book takes one hidden layer, pixels in $[0, 1]$, and SGD
# with momentum. {doc}`Chapter 03 <03_memorization>` says why, and what changes under other readings.

# %%
mnist = load_mnist("train")
images, labels = mnist.images[:n_samples], mnist.labels[:n_samples]
recipe = replace(RECIPES[recipe_name], epochs=epochs)
network = trained_network(recipe, images, labels, seed=seed)
inputs = prepare_pixels(images, recipe)

# %% tags=["remove-input"]
chapter.record(
    recipe=recipe.describe(), train_accuracy=network.accuracy[-1]
)
chapter.say(
    "Trained: {recipe}. Accuracy in the last epoch: {train_accuracy:.2%}."
)

# %% [markdown]
# ## The probe
#
# Let $w^*$ be the trained weights and $\ell_i(w)$ the loss of sample $i$. Chains draw weights $w$ around
# $w^*$, from the local posterior. It weighs the mean loss $L$ of the $n$ samples with $n\beta$, and keeps
# the weights near $w^*$ with the strength $\gamma$. The loss gain of a sample is its mean loss change:
#
# $$\mu_i = \operatorname{E}_w\big[\ell_i(w) - \ell_i(w^*)\big], \qquad
#   p(w) \propto e^{-n\beta L(w) - \frac{\gamma}{2}\lVert w - w^*\rVert^2}.$$
#
# The trace keeps the loss of every digit at every draw. It is stored in the cache: run this cell again,
# and the trace is read from there.

# %%
posterior = probelib.LocalPosterior(
    network.model,
    probelib.cross_entropy,
    (inputs, labels),
    n_beta=n_beta,
    localization=localization,
)
trace = probelib.sample(
    posterior,
    sampler=probelib.SGLD(step_size=step_size, batch_size=batch_size),
    chains=chains,
    draws=draws,
    burn_in=burn_in,
    seed=seed,
    cache=cache_dir("traces"),
)
gain = probelib.loss_gain(trace)
gain

# %% [markdown]
# ## Can the draws be trusted?
#
# The library looks before we do. $\hat R$ compares the chains with each other. The effective sample size
# (ESS) counts how many independent draws the correlated ones are worth. Both are computed for the mean
# loss and for 500 random digits. The verdict also says what the step size did to the numbers.

# %%
trust = probelib.diagnostics(trace, seed=seed)
print(trust)

# %% tags=["remove-input"]
chapter.record_verdict(trust)
chapter.record(
    rhat_max=trust.rhat_max,
    ess_min=trust.ess_min,
    autocorrelation_time=trust.autocorrelation_time,
    loss_at_center=trust.loss_at_center,
    loss_along_chains=trust.loss_along_chains,
    gain_mcse_median=float(np.median(gain.mcse)),
    gain_median=float(gain.median()),
)
chapter.say(
    "Largest $\\hat R$: **{rhat_max:.3f}**. Smallest effective sample size: "
    "**{ess_min:.0f}** of {chains} × {draws} draws. One in "
    "{autocorrelation_time:.1f} draws of the mean loss is worth an independent "
    "one (its autocorrelation time). The median error of a loss gain is {gain_mcse_median:.2g} nats, and the "
    "median gain {gain_median:.2g}."
)

# %% [markdown]
# {numref}`fig-mnist-chains` shows the chains themselves.

# %% mystnb={"figure": {"caption": "Mean loss of all training digits along each chain, and its autocorrelation. Every chain starts at the trained weights (dotted: the loss there). Look at the left edge: the first draw that is kept already lies far above the dotted line, and yet the chains go on climbing for some draws before they reach the band in which they stay. Right: they forget where they were within some ten draws.", "name": "fig-mnist-chains"}, "image": {"alt": "Left: one line per chain of mean training loss against draw; all lines begin far above the dotted loss at the trained weights, rise for about ten draws and then fluctuate around a common level. Right: autocorrelation of each chain, falling from one to about zero within ten draws or so."}}
along = trace.init_loss.values.mean() + probelib.mean_loss_change(trace)
plotting.chain_traces(
    along,
    "mean loss (nats)",
    probelib.autocorrelation(along, min(60, draws // 2)),
    reference=trust.loss_at_center,
)

# %% [markdown]
# ## Easy, average, hard
#
# {numref}`fig-mnist-grid` shows the digits in the order of their loss gain: the two ends, and the middle.

# %%
order = np.argsort(gain.values)
k = 24
mean_rank = np.searchsorted(gain.values[order], gain.values.mean())
start = int(np.clip(mean_rank - k // 2, 0, len(order) - k))
chosen = {
    "lowest loss gain": order[:k],
    "nearest the mean": order[start : start + k],
    "highest loss gain": order[: -k - 1 : -1].copy(),
}

# %% tags=["key-figure"] mystnb={"figure": {"caption": "Training digits with the lowest loss gain, nearest the mean, and with the highest. Above each digit: its label and its loss gain in nats. On the right, ask of each whether you would have given it this label.", "name": "fig-mnist-grid"}, "image": {"alt": "Three blocks of handwritten digits. Left, lowest loss gain: clean, prototypical digits. Middle, average loss gain: ordinary digits. Right, highest loss gain: odd shapes, ambiguous or apparently mislabeled digits."}}
grid = plotting.image_grid(
    {name: images[index].numpy() for name, index in chosen.items()},
    {
        name: [f"{labels[i]}: {gain_text(gain.values[i])}" for i in index]
        for name, index in chosen.items()
    },
    cols=6,
    cmap="gray_r",
)
grid

# %% tags=["remove-input"]
chapter.keep(grid, "digits")
digit_of = labels.numpy()
of_class = helpers.class_rows(chapter, gain.values, digit_of)
chapter.record(
    gain_mean=float(gain.mean()),
    gain_share_hardest_1pct=float(
        np.sort(gain.values)[-n_samples // 100 :].sum() / gain.sum()
    ),
)
chapter.table(of_class, "Loss gain by digit, in nats.")

# %% [markdown]
# ## Is it the loss in disguise?
#
# The paper reports a Pearson correlation of $-0.0302$ between loss and loss gain. It concludes that the
# gain does not predict the loss. But both quantities have heavy tails, so a few samples decide
# Pearson's $r$; and the paper's figure has log axes. Here is the rank correlation too, and Pearson's $r$
# of the logarithms, and without the 1 % of the digits with the largest loss ({numref}`fig-mnist-scatter`).

# %%
loss = trace.init_loss.values.astype(np.float64)
pearson = pearsonr(loss, gain.values).statistic
spearman = spearmanr(loss, gain.values).statistic

# %% tags=["remove-input"]
positive = (gain.values > 0) & (loss > 0)
in_bulk = loss < np.quantile(loss, 0.99)
chapter.record(
    pearson_loss_gain=pearson,
    spearman_loss_gain=spearman,
    pearson_log_loss_log_gain=pearsonr(
        np.log(loss[positive]), np.log(gain.values[positive])
    ).statistic,
    pearson_without_top_1pct=pearsonr(
        loss[in_bulk], gain.values[in_bulk]
    ).statistic,
    n_negative_gain=int((gain.values <= 0).sum()),
)

# %% mystnb={"figure": {"caption": "Loss at the trained weights against loss gain, both on a log scale, for a random subset of training digits. A horizontal or round cloud would mean that the two share nothing; look at how far the cloud is tilted.", "name": "fig-mnist-scatter"}, "image": {"alt": "Scatter plot on log-log axes of loss at the trained weights against loss gain for up to ten thousand training digits."}}
rng = np.random.default_rng(seed)
subset = rng.choice(n_samples, min(n_scatter, n_samples), replace=False)
plotting.gain_against_loss(
    loss[subset],
    gain.values[subset],
    f"Pearson {pearson:.3f}, Spearman {spearman:.3f}",
)

# %% tags=["remove-input"]
chapter.say(
    "Pearson **{pearson_loss_gain:.4f}**, Spearman **{spearman_loss_gain:.3f}**, Pearson of the "
    "logarithms {pearson_log_loss_log_gain:.3f}, without the largest losses "
    "{pearson_without_top_1pct:.3f}; {n_negative_gain} of {n_samples} gains are not positive."
)

# %% [markdown]
# The paper names neither optimiser nor epochs, and the training loss depends on both. A network that
# stopped early gets some digits wrong. One that did not has losses near zero everywhere. So the same
# probe, with one chain on a random part of the digits, goes to other networks too.

# %%
recipes = [
    *[
        replace(recipe, name=f"{recipe.name}-epochs-{e}", epochs=e)
        for e in other_epochs
    ],
    *[replace(RECIPES[name], epochs=epochs) for name in other_recipes],
]
others = trained_networks(recipes, images, labels, seed=seed)
rng = np.random.default_rng(seed + 1)
part = np.sort(
    rng.choice(n_samples, min(n_compare, n_samples), replace=False)
)

# %%
settings = {
    "n_beta": n_beta,
    "localization": localization,
    "step_size": step_size,
    "batch_size": batch_size,
    "chains": 1,
    "draws": draws,
    "burn_in": burn_in,
    "seed": seed,
}
compared = {
    "main": (recipe.describe() + " (main)", loss[part], gain.values[part])
}
for other in others.values():
    _, probed = digit_probe(other, images, labels, part, **settings)
    compared[other.recipe.name] = (
        other.recipe.describe(),
        probed.init_loss.values.astype(np.float64),
        probelib.loss_gain(probed).values,
    )

# %% tags=["remove-input"]
rows = [
    helpers.relation_row(chapter, name, *of)
    for name, of in compared.items()
]
chapter.record(n_compared=len(part))
helpers.record_range(chapter)
chapter.table(
    rows,
    f"Loss and loss gain under other recipes; {len(part):,} digits, nats, one seed each.",
)
chapter.say(
    "Over these networks Pearson's $r$ runs from {pearson_lowest:.3f} to {pearson_highest:.3f} and "
    "the rank correlation from {spearman_lowest:.3f} to {spearman_highest:.3f}. The paper's $r$ is "
    "-0.0302."
)

# %% [markdown]
# ## Is r = -0.03 within reach?
#
# On the training set Pearson's $r$ is positive for every network above, and the ranks of loss and gain
# share far more. There is one place where $r$ is near zero: the *test* set, close to an over-confident
# network ($\gamma = 1000$). There a few digits are wrong with great confidence. They have the largest
# losses of all, and their softmax is saturated: moving the weights lowers such a loss almost as often as
# it raises it. So their gains scatter on both sides of 0. These few points lie far to the right of the
# cloud and turn Pearson's line. The ranks hardly notice them.

# %%
test = load_mnist("test")
test_loss, test_gain = helpers.test_set_probe(
    others[overconfident_recipe],
    images,
    labels,
    test,
    n_beta=n_beta,
    localization=overconfident_localization,
    sampler=probelib.LeimkuhlerMatthews(
        overconfident_step_size, batch_size=batch_size
    ),
    draws=overconfident_draws,
    thin=5,
    seed=seed,
)

# %% tags=["remove-input"]
helpers.record_overconfident(
    chapter, test_loss, test_gain, confident=np.log(10)
)
chapter.say(
    "Test set: Pearson **{pearson_test_overconfident:.3f}**, Spearman "
    "**{spearman_test_overconfident:.3f}**. {n_confidently_wrong} of {n_test} digits are confidently "
    "wrong (a loss above that of guessing, $\\log 10$). Their mean gain is "
    "{gain_confidently_wrong:.2g} nats ({n_confidently_wrong_negative} are negative), that of the others "
    "{gain_test_others:.2g}. Without them Pearson's $r$ is **{pearson_test_without_wrong:.3f}**."
)

# %% [markdown]
# So a Pearson correlation near zero does not say that the gain is new information. Here a rank
# correlation that says the opposite stands beside it. A few samples decided the former.

# %% [markdown]
# ## The sum of the gains: the local learning coefficient
#
# Averaged over the samples, the loss gain is the local learning coefficient (LLC) up to a constant,
# $\hat\lambda = n\beta\,\tfrac1n\sum_i \mu_i = \beta \sum_i \mu_i$. Appendix B.1 prints
# $n\beta \sum_i \mu_i$ for a mean loss, which is $n$ times larger ({ref}`erratum 3 <erratum-3>`).

# %%
llc = probelib.local_learning_coefficient(trace)
print(llc)

# %% tags=["remove-input"]
by_sampler = [
    helpers.sampler_row(
        chapter, "", "SGLD (the paper's), all digits", trace
    )
]
settled = probelib.local_learning_coefficient(
    trace.isel(draw=slice(draws // 10, None))
)
chapter.record(
    llc_without_first_tenth=settled.value,
    llc_from_gains=n_beta * float(gain.mean()),
    llc_as_printed=n_beta * float(gain.sum()),
    n_parameters=posterior.n_parameters,
)
chapter.say(
    "$\\hat\\lambda$ = **{llc:.1f} ± {llc_mcse:.1f}**, and {llc_from_gains:.1f} from the gains. "
    "As printed it would be {llc_as_printed:,.0f}; the most that "
    "{n_parameters:,} parameters can have is half their number. Singular fluctuation: "
    "{singular_fluctuation:.1f} ± {singular_fluctuation_mcse:.1f}. These are the numbers of the paper's "
    "sampler, and ± is chance alone."
)

# %% [markdown]
# ## What the step did to these numbers
#
# A Langevin step of finite length samples a law that is a little wider than Eq. 1. Chance and bias are
# two things: more draws narrow the first and leave the second. There are three ways to see the bias.
#
# - The trace itself has a `step_bias`: what the recorded gradients say the step added. It is a first-order
#   formula with an assumption about the noise of minibatches, so a fifth of it is not known.
# - `LeimkuhlerMatthews` costs the same per step, and on a quadratic it has the right variance at any
#   stable step. It runs with the same seed, chains, steps and step size, and keeps fewer of the draws.
# - `importance_sample` has no step at all. It takes independent draws from the localizing Gaussian and
#   weighs them by $e^{-n\beta L(w)}$. Pareto's $\hat k$ says whether the weights can be believed (below
#   0.7). These draws observe the digits of the comparison above, so the chains are read on the same
#   digits too.

# %%
unbiased = probelib.sample(
    posterior,
    sampler=probelib.LeimkuhlerMatthews(step_size, batch_size=batch_size),
    chains=chains,
    draws=draws // unbiased_thin,
    thin=unbiased_thin,
    burn_in=burn_in,
    seed=seed,
    cache=cache_dir("traces"),
)
weighted = probelib.importance_sample(
    posterior,
    importance_draws,
    observe=(inputs[part], labels[part]),
    loss_samples=loss_samples,
    seed=seed,
    cache=cache_dir("traces"),
)
gain_unbiased = probelib.loss_gain(unbiased)

# %% tags=["remove-input"]
by_sampler += [
    helpers.sampler_row(chapter, name, described, one)
    for name, described, one in (
        (
            "_unbiased",
            "Leimkuhler-Matthews (unbiased), all digits",
            unbiased,
        ),
        ("_part", "SGLD, the compared digits", trace.isel(sample=part)),
        (
            "_unbiased_part",
            "Leimkuhler-Matthews, the compared digits",
            unbiased.isel(sample=part),
        ),
        ("_importance", "weighted draws, the compared digits", weighted),
    )
]

# %% tags=["remove-input"]
chapter.record(
    gain_mean_unbiased=float(gain_unbiased.mean()),
    gain_ratio_samplers=float(gain.mean() / gain_unbiased.mean()),
    gain_rank_agreement=spearmanr(
        gain.values, gain_unbiased.values
    ).statistic,
    llc_less_unbiased=chapter.numbers["llc"]
    - chapter.numbers["llc_unbiased"],
)
chapter.table(
    by_sampler,
    "The same posterior by three samplers; ± is chance, the step bias beside it.",
)

# %% tags=["remove-input"]
chapter.say(
    "The paper's sampler: **{llc:.2f}**. The unbiased one: **{llc_unbiased:.2f}**. Weighted draws: "
    "**{llc_importance:.2f}**, on digits where the unbiased sampler says {llc_unbiased_part:.2f}. The "
    "errors are in the table. The trace of the paper's sampler gives its own bias as "
    "{llc_step_bias:+.2f}; it lies {llc_less_unbiased:+.2f} above the unbiased one. Gains under SGLD are "
    "{gain_ratio_samplers:.2f} times as large on average. The rank correlation of the gains between the "
    "two samplers is **{gain_rank_agreement:.4f}**."
)

# %% [markdown]
# ## What $n\beta$ and $\gamma$ change
#
# Weighted draws at one localization $\gamma$ serve every inverse temperature $n\beta$: only the weights
# change. So a sweep costs three sets of draws. {numref}`fig-mnist-settings` shows it. Where $\hat k$ says
# that the weights cannot be believed, the value is left out.

# %%
few = part[:1000]
n_betas = np.geomspace(1, 100, 9)
sweep = {}
for gamma in (localization, 10 * localization, 100 * localization):
    near = probelib.LocalPosterior(
        network.model,
        probelib.cross_entropy,
        (inputs, labels),
        n_beta=n_beta,
        localization=gamma,
    )
    drawn = probelib.importance_sample(
        near,
        sweep_draws,
        observe=(inputs[few], labels[few]),
        loss_samples=min(loss_samples, 10_000),
        seed=seed,
        cache=cache_dir("traces"),
    )
    sweep[gamma] = [probelib.reweight(drawn, nb) for nb in n_betas]

# %% mystnb={"figure": {"caption": "Mean loss gain (left) and LLC (right) of 1,000 digits against the inverse temperature, at three localizations; bars of two standard errors. Left: by Eq. 1 a stronger pull towards the data can only lower the gain; look at where it does, and where the localization alone decides. Right: how far the LLC still grows with it. Look at how far apart the lines are: a gain, or an LLC, without its two settings says nothing.", "name": "fig-mnist-settings"}, "image": {"alt": "Two panels on log-log axes with one line for each of three localizations. Left: the mean loss gain, which is the lower the stronger the localization, and falls little with the inverse temperature. Right: the learning coefficient, which rises with the inverse temperature, in the same order."}}
gains, llcs = helpers.by_settings(sweep)
figures.by_settings(n_betas, gains, llcs)

# %% tags=["remove-input"]
chapter.say(helpers.settings_sentence(chapter, sweep, n_betas))

# %% [markdown]
# ## Paper says / this run

# %% tags=["remove-input"]
chapter.compare(helpers.claims())

# %% [markdown]
# ## What could fool you
#
# - **Step size.** $\epsilon = 5 \times 10^{-3}$ is not small: it moves the LLC by several times its
#   Monte-Carlo error, which does not contain it. It is the paper's setting, so it stays here. For your
#   own work take `LeimkuhlerMatthews`.
# - **Burn-in** matters less. A flat direction is forgotten at a rate of $\epsilon\gamma/2 = 0.075$ per
#   step, so ten steps are short, as {numref}`fig-mnist-chains` shows. But a variance that lacks
#   $(1 - 0.075)^{2t}$ of itself at step $t$ lacks 0.25 % on average over the 500 draws that follow.
# - **Draws are not independent.** Judge an error by the effective number of draws, not by 2,500. Table 1
#   observes every digit after every step. `thin="auto"` reaches the same errors with a fraction of the
#   observations ({doc}`../benchmarks`).
# - **A few samples decide Pearson's $r$.** Look at the rank correlation too. A correlation near zero
#   says less than it seems to.
# - **A very confident sample** has a loss that a float32 softmax rounds to zero.
#   `probelib.cross_entropy` keeps such losses exact.

# %% tags=["remove-input"]
chapter.say(
    "Leaving out the first tenth of the draws moves the LLC from {llc:.2f} to "
    "{llc_without_first_tenth:.2f}; its Monte-Carlo error is {llc_mcse:.2f}. The unbiased sampler "
    "moves it to {llc_unbiased:.2f}."
)

# %% [markdown]
# ## Explore
#
# Browse the digits by loss gain and class. Pick one to see the digits whose losses rise and fall with its
# own under the posterior. The best of many candidates look better than they are, so each neighbour has a
# q-value that accounts for the choice. Those that may be chance ($q \ge 0.05$) are pale. Arrow keys move,
# Enter picks, and the address of the page keeps the view. The page has the hardest, the easiest and a
# random few. In a running notebook, two boxes fetch any other digits.

# %% tags=["remove-input"]
digits = Samples(digit_of, images.numpy(), loss=loss, gain=gain.values)
explorer(
    digits,
    probelib.loss_kernel(trace),
    live=live,
    seed=seed,
    chapter=chapter,
)

# %% [markdown]
# ## Exercises
#
# **1.** Raise the localization from 30 to 300: the chains stay closer to $w^*$. By what factor does the
# mean gain fall? Guess first. (In a flat direction the variance of a weight is $1/\gamma$.)

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the answer"}
closer = settings | {
    "localization": 10 * localization,
    "step_size": step_size / 10,
}
_, probed = digit_probe(network, images, labels, few, **closer)
factor = float(gain.values[few].mean() / probelib.loss_gain(probed).mean())
chapter.record(exercise_factor_localization=factor)
chapter.say(
    "The mean gain falls by a factor of **{exercise_factor_localization:.1f}**, on 1,000 digits and with "
    "one chain. Were all losses quadratic and all directions flat, it would be 10."
)

# %% [markdown]
# **2.** Keep only every fifth draw of the trace. By how much does the median error of a gain grow?

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the answer"}
thinned = probelib.loss_gain(trace.isel(draw=slice(None, None, 5)))
growth = float(np.median(thinned.mcse) / np.median(gain.mcse))
chapter.record(exercise_error_growth=growth)
chapter.say(
    "By a factor of **{exercise_error_growth:.2f}**, where independent draws would give "
    "$\\sqrt 5 = 2.24$: neighbouring draws say much the same."
)

# %% [markdown]
# ## Summary
#
# One posterior, one trace, one number per sample: the loss gain orders the training set by how hard each
# digit is for the network. The mean of the gains is the local learning coefficient. Its error is known:
# that of chance, and that of the step, which is the larger of the two. Whether the gain is new
# information beside the loss depends on the network and on the correlation that one asks for; the table
# says how much. Whether a high gain also means *memorized* is the question of the
# {doc}`next chapter <03_memorization>`, where we know which samples had to be memorized.
#
# **References.** The local learning coefficient: {cite:t}`lau2025llc`, and its data-refined kin:
# {cite:t}`wang2025refined`; SGLD: {cite:t}`welling2011sgld`.

# %% tags=["answer"]
chapter.answer(
    "Sorted by loss gain, clean and typical digits come first, odd and ambiguous ones last. The gain is not "
    "independent of the loss: their rank correlation is **{spearman_loss_gain:.2f}**, and Pearson's $r$ "
    "{pearson_loss_gain:.2f}, where the paper has -0.03.",
    "The median error of a gain is {gain_mcse_median:.2g} nats. The LLC is {llc:.2f} ± {llc_mcse:.2f} by the "
    "paper's sampler, {llc_unbiased:.2f} ± {llc_unbiased_mcse:.2f} by an unbiased one. Verdict on the paper's "
    "draws: {verdict}.",
)

# %% tags=["remove-input"]
chapter.finish(
    "Pearson {pearson_loss_gain:.4f}, Spearman {spearman_loss_gain:.3f}, "
    "LLC {llc:.1f} ± {llc_mcse:.1f} (unbiased sampler {llc_unbiased:.1f}), "
    "R-hat ≤ {rhat_max:.3f}, ESS ≥ {ess_min:.0f}"
)
