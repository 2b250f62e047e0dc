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
# # Memorization
#
# **Claim.** *Samples that a network had to memorize have a far higher loss gain than those it could
# learn, even after it fits both.* Here a tenth of the labels is wrong, and we know which.

# %% [markdown] tags=["about"]
# This chapter reproduces the right half of Figure 1 and Appendix A.4. A tenth of MNIST's training labels
# is made wrong. A network is trained for 100 epochs, until it fits nearly all labels. Then its posterior is
# probed with the second row of Table 1. The paper reports mean loss gains of 2.31 and 23 nats, and a
# distinct cluster of mislabeled samples in a t-SNE plot.
#
# It adds the errors of these numbers; how well the loss gain finds wrong labels, beside the loss and the
# kernel's diagonal; a number for the cluster; and what other training recipes and an unbiased sampler
# change.
#
# | profile | what runs | two cores |
# | --- | --- | --- |
# | `smoke` | 1,500 digits, 3 epochs, 40 draws, one other recipe: not a result | seconds |
# | `laptop` | 60,000 digits, Table 1 exactly, 100 epochs, three other recipes, a second sampler, four t-SNEs | about twenty minutes |
# | `paper` | the same as `laptop` | the same |

# %% tags=["hide-input"]
from dataclasses import replace

import numpy as np
from sklearn.metrics import silhouette_score

import probelib
from probebook.cache import cache_dir
from probebook.chapter import Chapter
from probebook.chapters import memorization as helpers
from probebook.explorer import Samples, explorer
from probebook.figures import embeddings
from probebook.memorization import detection, neighbour_auroc, unit_traces
from probebook.mnist import corrupt_labels, load_mnist
from probebook.probes import digit_probe
from probebook.training import (
    RECIPES,
    prepare_pixels,
    trained_networks,
)
from probelib import plotting

# %% tags=["parameters"]
profile: str = "laptop"  # smoke, laptop or paper
seed: int = 0  # of the label noise, the training, the chains and every random choice
results_dir: str = "../results/live"  # where this chapter's numbers go
live: bool = (
    True  # False when the driver runs it: the explorer then needs no kernel
)
noise: float = 0.1  # share of wrong labels
recipe_name: str = "sgd-unit-1x512"  # the recipe of the main experiment
other_recipes: list = [
    "adam-unit-2x512",
    "sgd-std-1x512",
    "sgd-std-2x512",
]  # for comparison
epochs: int = 100  # passes over the training set, A.4
n_samples: int = 60_000  # training digits used: the first of them
n_beta: float = 10.0  # n beta, Table 1
localization: float = 30.0  # gamma, Table 1
step_size: float = 5e-3  # epsilon, Table 1
batch_size: int = 64  # m, Table 1
chains: int = 1  # C, Table 1
draws: int = 500  # T, Table 1
burn_in: int = 100  # b, Table 1
n_tsne: int = 10_000  # digits in the t-SNE, as in the paper
n_compare: int = (
    12_000  # digits observed under the other recipes, half of them wrong
)
unbiased_thin: int = (
    5  # the second sampler's draws are kept every so many of its steps
)

# %% tags=["remove-input"]
chapter = Chapter(
    "03_memorization",
    profile=profile,
    results_dir=results_dir,
    parameters=globals(),
)
chapter.record(
    run_profile=profile, n_samples=n_samples, chains=chains, draws=draws
)

# %% [markdown]
# ## Wrong labels
#
# The paper relabels 10 % of the digits at random. A label drawn from all ten classes would be right in one
# case in ten. Here every chosen digit gets one of the nine *wrong* labels. So exactly 10 % of the labels
# are wrong, and no clean digit counts as mislabeled.

# %%
mnist = load_mnist("train")
images, true_labels = mnist.images[:n_samples], mnist.labels[:n_samples]
labels, is_noisy = corrupt_labels(true_labels, noise, seed=seed)
noisy = is_noisy.numpy()

# %% tags=["remove-input"]
chapter.record(
    n_noisy=int(noisy.sum()),
    n_still_right=int((labels == true_labels)[is_noisy].sum()),
)
chapter.say(
    "{n_noisy} of {n_samples} labels are wrong; {n_still_right} are right by chance."
)

# %% [markdown]
# ## The network, and why this recipe
#
# "Two-layer ReLU MLP, width 512" does not say whether a layer is one of weights or of hidden units. The
# paper gives neither optimiser nor pixel scale. The main experiment adds as little as possible to the
# paper's words:
#
# - two layers of weights, as in the theory literature;
# - pixels in $[0, 1]$, as they come;
# - SGD, which the abstract names. Its learning rate falls to zero along a cosine. So the trained weights
#   $w^*$, where the local posterior is centred, do not depend on where the last steps happened to jump.
#
# None of these reasons looks at the outcome. The outcomes of other recipes are shown in full below.

# %%
names = [recipe_name, *other_recipes]
recipes = [replace(RECIPES[name], epochs=epochs) for name in names]
networks = trained_networks(recipes, images, labels, seed=seed)
network = networks[recipe_name]

# %% tags=["remove-input"]
clean_accuracy, noisy_accuracy = helpers.accuracies(
    network, images, labels, noisy
)
chapter.record(
    recipe=network.recipe.describe(),
    clean_accuracy=clean_accuracy,
    noisy_accuracy=noisy_accuracy,
)
chapter.say(
    "{recipe}: it fits **{clean_accuracy:.2%}** of the clean labels and **{noisy_accuracy:.2%}** of "
    "the wrong ones."
)

# %% [markdown]
# ## The probe
#
# The call is that of {doc}`chapter 02 <02_loss_gain>`. Table 1 asks for one chain here, and a longer
# burn-in. The loss gain $\mu_i = \operatorname{E}_w[\ell_i(w) - \ell_i(w^*)]$ is how much the loss of
# sample $i$ rises, on average, at weights $w$ drawn from the local posterior.

# %%
inputs = prepare_pixels(images, network.recipe)
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
# With one chain there is no other that could disagree. So $\hat R$ compares the two halves of the chain:
# it sees a drift, but not a second region that the chain never reached.

# %%
trust = probelib.diagnostics(trace, seed=seed)
print(trust)

# %% tags=["remove-input"]
chapter.record_verdict(trust)
rows = helpers.sampler_rows(
    chapter, {"": ("SGLD (the paper's)", trace)}, noisy
)
helpers.record_populations(chapter, gain.values, noisy, trust)
chapter.say(
    "Largest $\\hat R$: **{rhat_max:.3f}**. Smallest effective sample size: **{ess_min:.0f}** of {draws} "
    "draws. Both are those of the worst of the digits that were looked at. A mean over a population has its "
    "own error, which stands beside it below."
)

# %% [markdown]
# ## Two populations
#
# {numref}`fig-populations` shows the loss gains of clean and of mislabeled digits.

# %% tags=["key-figure"] mystnb={"figure": {"caption": "Loss gain of correctly labeled and of mislabeled training digits, each as a share of its population; dashed: means. The axis is logarithmic. Look at how far the upper end of the clean digits reaches into the mislabeled.", "name": "fig-populations"}, "image": {"alt": "Two histograms of loss gain on a log axis, one of correctly labeled and one of mislabeled digits, with a dashed line at the mean of each. In the published run the clean digits form a broad hump with a tail to the right, the mislabeled a narrow hump at higher values."}}
lowest = np.quantile(gain.values[gain.values > 0], 0.001)
histograms = plotting.populations(
    {"clean": gain.values[~noisy], "mislabeled": gain.values[noisy]},
    "loss gain (nats)",
    low=max(1e-4, float(lowest)),
)
histograms

# %% tags=["remove-input"]
chapter.keep(histograms, "populations")
chapter.say(
    "Mean loss gain in nats: clean **{gain_clean_text}**, mislabeled **{gain_noisy_text}**. The ratio is "
    "**{gain_ratio_text}**. ± is chance. The step bias is what the length of the steps added, to first "
    "order. Its formula takes the same proportion of both gains, so the ratio is compared with that of an "
    "unbiased sampler below."
)

# %% [markdown]
# ## Finding the wrong labels
#
# Three scores need no true label:
#
# - the loss gain $\mu_i$;
# - the kernel's diagonal $K_{ii} = \operatorname{Var}_w[\ell_i(w)]$, the variance of the loss;
# - the loss $\ell_i(w^*)$ itself, which is the obvious baseline.
#
# {numref}`fig-detection` shows them as detectors. The area under the ROC curve (AUROC) is the chance that a
# mislabeled digit scores above a clean one.

# %% mystnb={"figure": {"caption": "Loss gain, kernel diagonal and loss as detectors of wrong labels: ROC and precision-recall curves, with the areas under them. The grey lines are guessing. Precision is the share of the inspected digits that are really mislabeled.", "name": "fig-detection"}, "image": {"alt": "Left: ROC curves of three scores: loss gain, kernel diagonal and loss. Right: precision-recall curves of the same scores. In the published run the curves of loss gain and kernel diagonal lie above that of the loss."}}
kernel = probelib.loss_kernel(trace)
loss = trace.init_loss.values.astype(np.float64)
found = {
    "loss gain": detection(gain.values, noisy),
    "kernel diagonal": detection(kernel.diagonal().values, noisy),
    "loss": detection(loss, noisy),
}
plotting.detection_curves(
    {name: (*d.roc, d.auroc) for name, d in found.items()},
    {
        name: (*d.precision_recall, d.average_precision)
        for name, d in found.items()
    },
    base_rate=noisy.mean(),
)

# %% tags=["remove-input"]
helpers.record_detection(
    chapter, found["loss gain"], found["loss"], found["kernel diagonal"]
)
helpers.record_halves(chapter, trace, noisy)
helpers.record_fit(chapter, loss, gain.values, noisy)
chapter.say(
    "AUROC of the gain **{auroc_gain_text}**, of the kernel's diagonal {auroc_kernel_diagonal:.3f}, of the "
    "loss **{auroc_loss:.3f}**. Noise in the gains mixes the populations: either half of the draws alone "
    "gives {auroc_gain_first_half:.3f} and {auroc_gain_second_half:.3f}. So the number of draws biases the "
    "AUROC of the gain by about {auroc_gain_draws_bias:+.3f}. Over the digits, the gains of the two halves "
    "correlate at {gain_halves_correlation:.3f}."
)

# %% [markdown]
# All this is about labels that the network *fits*. Where wrong labels are not fitted yet, the order can be
# reversed. Their loss is high, and moving the weights lowers it as often as it raises it. So they can get
# the lowest gains of all. This can be checked without a true label, on the samples whose label has less
# than half of the predicted probability. The loss along the chains, $\ell_i(w^*) + \mu_i$, is a score that
# works in both cases.

# %% tags=["remove-input"]
chapter.say(
    "{gain_reversed_verdict} AUROC of the loss along the chains: {auroc_loss_along_chains:.3f}, "
    "of the gain {auroc_gain:.3f}."
)

# %% [markdown]
# ## Is it the step?
#
# `LeimkuhlerMatthews` samples the same posterior, and has no step bias on a quadratic
# ({doc}`chapter 02 <02_loss_gain>` says more). It runs with the same seed, number of steps and step size,
# and keeps fewer of the draws.

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

# %% tags=["remove-input"]
rows += helpers.sampler_rows(
    chapter,
    {"_unbiased": ("Leimkuhler-Matthews (unbiased)", unbiased)},
    noisy,
)
chapter.record_verdict(
    probelib.diagnostics(unbiased, seed=seed), "verdict_unbiased"
)
chapter.table(
    rows, "Both samplers on all digits, gains in nats; ± is chance."
)
chapter.say(
    "The ratio of the gains is **{gain_ratio_text}** under the paper's sampler and "
    "**{gain_ratio_unbiased_text}** under the unbiased one. The AUROC is {auroc_gain_text} and "
    "{auroc_gain_unbiased_text}. Verdict on the unbiased sampler's draws: {verdict_unbiased}."
)

# %% [markdown]
# ## The kernel's view
#
# The loss kernel is $K_{ij} = \operatorname{Cov}_w[\Delta\ell_i, \Delta\ell_j]$, where
# $\Delta\ell_i = \ell_i(w) - \ell_i(w^*)$. It gives every sample a vector: its losses along the chain, less
# their mean. The inner products of these vectors are $K$. Scaled to length one, their inner products are
# the correlation kernel $R$. t-SNE draws a random subset of these vectors in the plane, from their first
# principal axes ({numref}`fig-tsne`).
#
# t-SNE can show clusters that are not there. So here is a number as well. Score each digit by the share of
# mislabeled ones among its 15 nearest neighbours, and take the AUROC of that score: 0.5 is mixed, 1 is
# apart. We compute it in the picture, in the coordinates that t-SNE was given, and in the whole vectors
# scaled to length one. In the last, mislabeled digits cannot stand out by longer vectors.

# %%
rng = np.random.default_rng(seed)
subset = np.sort(
    rng.choice(n_samples, min(n_tsne, n_samples), replace=False)
)
axes = min(50, chains * draws // 2)
maps = helpers.tsne_maps(kernel, subset, n_components=axes, seed=seed)
features = kernel.features(axes, rows=subset)
separation_given = neighbour_auroc(features, noisy[subset])
separation_unit = neighbour_auroc(
    unit_traces(kernel, subset), noisy[subset]
)

# %% tags=["remove-input"]
helpers.record_separation(chapter, maps, noisy[subset])
chapter.record(
    tsne_noisy_share=noisy[subset].mean(),
    tsne_silhouette=float(
        silhouette_score(maps["covariance kernel K"], noisy[subset])
    ),
    neighbour_auroc_covariance=separation_given,
    neighbour_auroc_correlation=separation_unit,
)

# %% mystnb={"figure": {"caption": "t-SNE of the loss covariance kernel (left) and of the loss correlation kernel (right) for the same random subset of training digits, mislabeled ones drawn on top. Look for where the mislabeled lie: in one cluster, or at the edges of many.", "name": "fig-tsne"}, "image": {"alt": "Two scatter plots of two-dimensional t-SNE embeddings of the same training digits, of the covariance kernel and of the correlation kernel; mislabeled digits are marked in a second colour and shape."}}
embeddings(maps, noisy[subset])

# %% tags=["remove-input"]
apart = [
    chapter.numbers[f"tsne_separation{end}"] for end in ("", "_correlation")
]
chapter.say(
    "Of the digits shown {tsne_noisy_share:.1%} are mislabeled. "
    "Separation in the t-SNE of the covariance kernel: **{tsne_separation:.3f}** (silhouette "
    "{tsne_silhouette:.2f}), of the correlation kernel: **{tsne_separation_correlation:.3f}**. "
    + (
        "At least one of them reaches 0.9, which we would call a distinct cluster. "
        if max(apart) >= 0.9
        else "Neither reaches 0.9, so we would not call it a distinct cluster. "
    )
    + "In the coordinates that the first was given it is {neighbour_auroc_covariance:.3f}. In the "
    "correlation kernel itself, where every vector has length one, it is "
    "{neighbour_auroc_correlation:.3f}."
)

# %% [markdown]
# ## Would another recipe have said something else?
#
# The noise and the probe stay the same; the network follows other readings of the paper's sentence. The
# probe observes a subset here, half of it mislabeled. Means, ratio and AUROC do not depend on that share.

# %%
rng = np.random.default_rng(seed + 1)
halves = [
    rng.choice(
        np.flatnonzero(mask), min(n_compare // 2, mask.sum()), replace=False
    )
    for mask in (noisy, ~noisy)
]
observed = np.sort(np.concatenate(halves))
flags = noisy[observed]

# %%
settings = {
    "n_beta": n_beta,
    "localization": localization,
    "step_size": step_size,
    "batch_size": batch_size,
    "chains": chains,
    "draws": draws,
    "burn_in": burn_in,
    "seed": seed,
}
parts = {recipe_name: trace.isel(sample=observed)}
for name in other_recipes:
    _, parts[name] = digit_probe(
        networks[name], images, labels, observed, **settings
    )
nearest = helpers.nearest_recipe(parts, flags)

# %% tags=["remove-input"]
chapter.record(
    n_compared=len(observed),
    nearest_recipe=networks[nearest].recipe.describe(),
)
rows = [
    helpers.recipe_row(
        chapter,
        networks[name],
        part,
        flags,
        helpers.accuracies(networks[name], images, labels, noisy),
        name == recipe_name,
    )
    for name, part in parts.items()
]
helpers.record_ranges(chapter, names)
chapter.table(
    rows, f"One network per recipe; {len(observed):,} digits observed."
)
chapter.say(
    "Over these recipes the mean gain of the mislabeled runs from {gain_noisy_lowest:.1f} to "
    "{gain_noisy_highest:.1f} nats, the ratio from {gain_ratio_lowest:.1f} to {gain_ratio_highest:.1f}, the "
    "AUROC of the gain from {auroc_gain_lowest:.3f} to {auroc_gain_highest:.3f}, that of the loss from "
    "{auroc_loss_lowest:.3f} to {auroc_loss_highest:.3f}."
)

# %% [markdown]
# Does the cluster depend on the recipe? {numref}`fig-tsne-nearest` shows both kernels again, under the
# recipe whose ratio of gains comes nearest the paper's 23 / 2.31. The share of wrong labels among the digits
# is that of the whole training set.

# %%
n_wrong = round((~flags).sum() * noise / (1 - noise))
wrong = rng.permutation(np.flatnonzero(flags))[:n_wrong]
chosen = np.sort(np.r_[np.flatnonzero(~flags), wrong])
near_maps = helpers.tsne_maps(
    probelib.loss_kernel(parts[nearest]),
    chosen,
    n_components=axes,
    seed=seed,
)

# %% mystnb={"figure": {"caption": "The same two t-SNEs under the recipe whose ratio is nearest the paper's. Compare with the main recipe's: in which panels are the mislabeled digits a cluster of their own?", "name": "fig-tsne-nearest"}, "image": {"alt": "Two scatter plots of two-dimensional t-SNE embeddings, of the covariance kernel and of the correlation kernel of another network; mislabeled digits are marked in a second colour and shape."}}
embeddings(near_maps, flags[chosen])

# %% tags=["remove-input"]
helpers.record_separation(chapter, near_maps, flags[chosen], "_nearest")
chapter.say(
    "Nearest the paper's ratio: {nearest_recipe}. Separation in the t-SNE of its covariance kernel "
    "**{tsne_separation_nearest:.3f}**, of its correlation kernel "
    "**{tsne_separation_correlation_nearest:.3f}** (main recipe: {tsne_separation:.3f} and "
    "{tsne_separation_correlation:.3f})."
)

# %% [markdown]
# ## Paper says / this run

# %% tags=["remove-input"]
chapter.compare(helpers.claims())

# %% [markdown]
# ## What could fool you
#
# - **The recipe.** A gain depends on how far training has pushed the network's outputs apart. The table
#   above shows how much gains, ratios and AUROCs move with the recipe.
# - **One chain.** Its error is computed from its own parts. It cannot contain what the chain has never
#   visited. The verdict above is about this.
# - **Hard is not wrong.** Some of MNIST's own labels are dubious. Clean digits with a high gain count as
#   false alarms here; browse them below.
# - **Labels that are not fitted** can reverse the order of the gains: see the check above.
# - **t-SNE** shows neighbourhoods, not distances between clusters. Trust the number.

# %% [markdown]
# ## Explore
#
# Wrong labels are marked, with the true class behind them. Choose "right only" and hardest first to see
# which clean digits have gains like those of mislabeled ones. Neighbours that may be chance ($q \ge 0.05$,
# where $q$ accounts for the choice of the best) are pale.

# %% tags=["remove-input"]
digits = Samples(
    labels.numpy(),
    images.numpy(),
    true=true_labels.numpy(),
    loss=loss,
    gain=gain.values,
)
explorer(digits, kernel, live=live, seed=seed, chapter=chapter)

# %% [markdown]
# ## Exercises
#
# **1.** Suppose you check by hand as many labels as there are wrong ones, in the order of a score. What
# share of the checked labels is wrong, if the score is the gain? And if it is the loss? Guess from
# {numref}`fig-detection`.

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the answer"}
budget = int(noisy.sum())
hits = {
    name: float(noisy[np.argsort(-score)[:budget]].mean())
    for name, score in (("gain", gain.values), ("loss", loss))
}
chapter.record(
    exercise_hits_gain=hits["gain"], exercise_hits_loss=hits["loss"]
)
chapter.say(
    "Of {n_noisy} checked labels **{exercise_hits_gain:.1%}** are wrong in the order of the gain, and "
    "**{exercise_hits_loss:.1%}** in the order of the loss. In random order it would be the share of wrong "
    "labels in the training set."
)

# %% [markdown]
# **2.** How many draws does the detector need? Take the first draw alone, the first twenty-fifth of the
# draws, and the first fifth.

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the answer"}
counts = {"one": 1, "some": max(1, draws // 25), "many": draws // 5}
for name, count in counts.items():
    raised = trace.loss[:, :count].mean(("chain", "draw"))
    score = (raised - trace.init_loss).values
    chapter.record(
        **{
            f"exercise_draws_{name}": count,
            f"exercise_auroc_{name}": detection(score, noisy).auroc,
        }
    )
chapter.say(
    "AUROC of the gain from {exercise_draws_one} draw: **{exercise_auroc_one:.3f}**; from "
    "{exercise_draws_some}: **{exercise_auroc_some:.3f}**; from {exercise_draws_many}: "
    "**{exercise_auroc_many:.3f}**; from all {draws}: {auroc_gain:.3f}. Neighbouring draws are alike, so the "
    "first few say less than as many independent ones would."
)

# %% [markdown]
# **3.** The mean of a heavy-tailed distribution may rest on a few samples. Is the ratio of the *medians*
# larger or smaller than that of the means?

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the answer"}
of_medians = np.median(gain.values[noisy]) / np.median(gain.values[~noisy])
chapter.record(exercise_ratio_medians=float(of_medians))
chapter.say(
    "The ratio of the medians is **{exercise_ratio_medians:.1f}**, that of the means {gain_ratio:.1f}. The "
    "medians are {gain_median_clean:.2f} nats (clean) and {gain_median_noisy:.2f} (mislabeled)."
)

# %% [markdown]
# ## Summary
#
# One number per sample, computed without a true label, was held to labels that we know to be wrong. The
# answer at the top of the page says how far the loss gain separates them, and how that compares with the
# loss. How much of the sum of all gains the wrong labels hold is the question of
# {doc}`chapter 05 <05_llc_identity>`.
#
# **References.** Influence and memorization are closely related: {cite:t}`koh2017understanding`; the
# covariance kernel as a tool for case influence: {cite:t}`thomas2018reconciling`.

# %% tags=["answer"]
chapter.answer(
    "The mean loss gain is **{gain_noisy_text}** nats for mislabeled digits and **{gain_clean_text}** for "
    "clean ones, {gain_ratio_text} times as much; the paper has 23 and 2.31. As a detector of wrong labels "
    "the gain has an AUROC of **{auroc_gain_text}**, and the loss {auroc_loss:.3f}.",
    "Verdict on the paper's one chain: {verdict}. An unbiased sampler gives a ratio of "
    "{gain_ratio_unbiased_text} and an AUROC of {auroc_gain_unbiased_text}. The finite number of draws biases "
    "the AUROC by about {auroc_gain_draws_bias:+.3f}. One network was trained; other recipes give ratios from "
    "{gain_ratio_lowest:.1f} to {gain_ratio_highest:.1f}.",
)

# %% tags=["remove-input"]
chapter.finish(
    "gain {gain_clean_text} clean, {gain_noisy_text} mislabeled, ratio {gain_ratio_text}; AUROC gain "
    "{auroc_gain_text}, loss {auroc_loss:.3f}; t-SNE separation {tsne_separation:.3f}; one chain, "
    "R-hat {rhat_max:.2f}, verdict: "
    + chapter.numbers["verdict"].partition(";")[0]
)
