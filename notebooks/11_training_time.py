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
# # Training time
#
# **Claim.** *A probe can be read while a network learns.* Checkpoint after checkpoint, the loss gain and the
# local learning coefficient (LLC) are held against what is known: when wrong labels are memorized, in which
# order samples are learned, and when a linear network takes its next step.

# %% [markdown] tags=["about"]
# The paper probes networks at the end of their training. This chapter probes them on the way, and goes beyond
# the paper. It asks four questions with numbers for an answer. Is a wrong label's gain high before the network
# has memorized it? Does the LLC rise at the stages of a network whose stages are known? Does the order of
# learning predict the final gain? And what is the third cumulant of the loss along the draws?
#
# The small GPT of {doc}`chapter 08 <08_language_models>` was kept at the end of its training alone. It has no
# checkpoints, and is not in this chapter.
#
# | profile | what runs | two cores |
# | --- | --- | --- |
# | `smoke` | 1,500 digits, 3 epochs, 3 checkpoints, few draws: not a result | under a minute |
# | `laptop` | 10,000 digits, 100 epochs, 10 checkpoints, three networks with true and three with wrong labels; a linear network at 49 checkpoints | about nine minutes |
# | `paper` | the same with six networks of each kind | not timed |

# %% tags=["hide-input"]
from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch

import probelib
from probebook import figures
from probebook.cache import cache_dir
from probebook.chapter import Chapter
from probebook.chapters import (
    training_phases,
    training_stages,
    training_time,
)
from probebook.curves import kernel_phases, passes
from probebook.deep_linear import deep_linear_coefficient
from probebook.mnist import load_mnist
from probebook.scrubber import mixed, scrubber_html
from probebook.stages import Stages, follow, half_times, strengths, teacher
from probebook.training import RECIPES, prepare_pixels

# %% tags=["parameters"]
profile: str = "laptop"  # smoke, laptop or paper
seed: int = 0  # of the first network, its wrong labels, the chains and every random choice
results_dir: str = "../results/live"  # where this chapter's numbers go
live: bool = True  # False when the driver runs it
n_samples: int = 10_000  # training digits, the first of MNIST's
noise: float = 0.1  # share of wrong labels
hidden: int = 128  # width of the one hidden layer
epochs: int = 100  # of training
checkpoints: list = [1, 2, 4, 7, 12, 20, 30, 45, 70, 100]  # epochs
seeds: int = 3  # networks with true labels, and as many with wrong ones
n_observed: int = 2000  # digits whose losses are recorded, at random
n_unseen: int = 500  # others, with wrong labels that no network is given
n_beta: float = 10.0  # n beta, Table 1
localization: float = 30.0  # gamma, Table 1
batch_size: int = 64  # m, Table 1
chains: int = 4  # C
draws: int = 100  # T
thin: int = 6  # steps between two draws
n_kernel: int = 300  # digits whose kernels are compared
n_shown: int = 200  # digits of the view
widths: list = [16, 4, 16]  # of the linear network
singular_values: list = [4.0, 2.0, 1.0]  # of the map that it learns
start: float = 1e-3  # strength of every singular direction at time 0
stage_n_beta: float = 1000.0  # n beta of the linear network
stage_localization: float = 10.0  # its gamma
stage_checkpoints: int = 49  # on the way
stage_chains: int = 32  # of the Gibbs sampler
stage_sweeps: int = 100  # of each, after as many that do not count
stage_step: float = 2e-4  # epsilon of the chains of the training loss
stage_draws: int = 100  # of each of 4 chains
stage_burn_in: int = 4000  # their burn-in, steps
stage_every: int = 4  # every so many checkpoints are probed by chains

# %% tags=["remove-input"]
chapter = Chapter(
    "11_training_time",
    profile=profile,
    results_dir=results_dir,
    parameters=globals(),
)
chapter.record(n_samples=n_samples, seeds=seeds, n_observed=n_observed)

# %% [markdown]
# ## A training, with its checkpoints
#
# A network with one hidden layer learns to read digits, once with the true labels and once with a tenth of
# them wrong. Its weights are kept after some epochs, evenly on a scale of logarithms. After every epoch we note
# which digits it reads as it was told. Several networks of each kind differ in their first weights, in the
# order of the data and in which labels are wrong.

# %%
mnist = load_mnist("train")
images, true_labels = mnist.images[:n_samples], mnist.labels[:n_samples]
recipe = replace(RECIPES["sgd-unit-1x512"], hidden=(hidden,), epochs=epochs)
runs = training_time.trained_runs(
    recipe,
    images,
    true_labels,
    noise,
    epochs=checkpoints,
    seeds=seeds,
    seed=seed,
)
inputs = prepare_pixels(images, recipe)
rng = np.random.default_rng(seed)
observed = np.sort(rng.choice(n_samples, n_observed, replace=False))

# %% [markdown]
# ## One probe for all checkpoints
#
# `over_checkpoints` runs the same probe at every checkpoint: the same minibatches and the same noise, so that
# differences between two checkpoints have paired errors. The posterior is Table 1's. Sampler, step and burn-in
# follow the recipe of {doc}`chapter 09 <09_samplers_and_settings>`: Leimkuhler-Matthews with the step
# $\epsilon = 0.1/n\beta$, four chains, a burn-in of $8/\epsilon\gamma$ steps. Trials on the first network, at three
# steps, came before: there this step gave enough independent draws. Thinning and draws come from them.
#
# Beside digits of the training set we observe others that no network is given, each with a wrong label. They
# tell what is memorized from what is only wrong.

# %%
unseen = slice(n_samples, n_samples + n_unseen)
far_inputs = prepare_pixels(mnist.images[unseen], recipe)
shift = torch.from_numpy(rng.integers(1, 10, n_unseen))
far_labels = (mnist.labels[unseen] + shift) % 10

# %%
step_size = 0.1 / n_beta


def probe(run, epochs):
    states = {epoch: run.trajectory.states[epoch] for epoch in epochs}
    return probelib.over_checkpoints(
        states,
        probelib.cross_entropy,
        (inputs, run.labels),
        model=run.trajectory.model(epochs[-1]),
        observe=(
            torch.cat([inputs[observed], far_inputs]),
            torch.cat([run.labels[observed], far_labels]),
        ),
        n_beta=n_beta,
        localization=localization,
        sampler=probelib.LeimkuhlerMatthews(
            step_size, batch_size=batch_size
        ),
        chains=chains,
        draws=draws,
        thin=thin,
        burn_in=round(8 / (step_size * localization)),
        seed=seed,
        cache=cache_dir("traces"),
        progress=live,
    )


# %% [markdown]
# The networks with wrong labels, and the first with true ones, are probed at every checkpoint. Of the others
# the last one is enough.

# %%
series, far = {}, {}
for (kind, number), run in runs.items():
    every = kind == "noisy" or number == 0
    both = probe(run, checkpoints if every else checkpoints[-1:])
    series[kind, number] = both.isel(sample=slice(0, n_observed))
    far[kind, number] = both.isel(sample=slice(n_observed, None))
tables = {
    "right": probelib.checkpoint_table(series["clean", 0]),
    "wrong": probelib.checkpoint_table(series["noisy", 0]),
}

# %% tags=["remove-input"]
training_time.record_tables(chapter, tables)
trust = probelib.diagnostics(
    series["noisy", 0].isel(checkpoint=-1), seed=seed
)
chapter.record_verdict(trust)
chapter.table(
    training_time.table_rows(chapter, tables),
    "LLC, loss gains and the library's verdict at each checkpoint of the first network of each kind; ± is chance.",
)
chapter.say(
    "With true labels the verdict approves **{verdicts_right_good}** of {checkpoints} checkpoints and refuses "
    "{verdicts_right_wrong} (epochs: {verdicts_right_wrong_epochs}); with wrong ones it approves "
    "**{verdicts_wrong_good}** and refuses {verdicts_wrong_wrong} (epochs: {verdicts_wrong_wrong_epochs}). "
    "At a refused checkpoint the LLC cannot be read. What it neither approves nor refuses is uncertain: more "
    "draws would tell."
)

# %% [markdown]
# ## When is a wrong label memorized, and who sees it first?
#
# Two definitions. The levels came with the question, before any network was probed. Wrong labels *are memorized* when the accuracy on them passes
# one half. The gain *sees* them when its area under the ROC curve (AUROC) for wrong labels passes 0.9: a wrong
# label then has a higher gain than a right one in nine pairs of ten. Between two checkpoints a straight line in
# the logarithm of the epoch is drawn. Both levels are conventions. So look at the whole curves in
# {numref}`fig-memorization-time`, and at the baseline: the loss of the same checkpoint, which needs no probe.

# %%
noisy_runs = [runs["noisy", k] for k in range(seeds)]
noisy_series = [series["noisy", k] for k in range(seeds)]
found = [
    training_time.aurocs(one, run.noisy[observed])
    for run, one in zip(noisy_runs, noisy_series, strict=True)
]
seen = [
    training_time.against_unseen(
        series["noisy", k],
        runs["noisy", k].noisy[observed],
        far["noisy", k],
    )
    for k in range(seeds)
]
every_epoch = np.arange(1, epochs + 1)
accuracy = {
    "right labels": [r.trajectory.accuracy(~r.noisy) for r in noisy_runs],
    "wrong labels": [r.trajectory.accuracy(r.noisy) for r in noisy_runs],
}

# %% tags=["remove-input"]
training_time.record_race(chapter, noisy_runs, found, observed)
training_time.record_unseen(chapter, checkpoints, seen)
marks = {
    "half memorized": chapter.numbers.get(
        "memorization_epoch_accuracy", np.inf
    ),
    "gain: 0.9": chapter.numbers.get("memorization_epoch_gain", np.inf),
}

# %% tags=["remove-input", "key-figure"] mystnb={"figure": {"caption": "Networks that learn a tenth of wrong labels: thin lines are single networks, thick ones their means. Left: accuracy on right and on wrong labels. Middle: how well three scores tell wrong from right labels at each checkpoint. Right: how well a high gain or a low loss tells wrong labels of the training set from wrong labels that the network was never given. Vertical lines: when half of the wrong labels are memorized, and when the AUROC of the gain passes 0.9. Look which score is the better one before and after.", "name": "fig-memorization-time"}, "image": {"alt": "Three panels over the epoch on a log axis. Left: accuracy on right labels is high early, that on wrong labels rises later. Middle: AUROC of loss gain, loss, and loss along the chains. In the published run the AUROC of the loss begins near one and falls while that of the gain rises. Right: AUROC of loss gain and of low loss for wrong labels of the training set against unseen ones."}}
figures.memorization_curves(
    {name: (every_epoch, rows) for name, rows in accuracy.items()},
    {
        name: (np.array(checkpoints), [one[name] for one in found])
        for name in found[0]
    },
    {
        name: (np.array(checkpoints), [one[name] for one in seen])
        for name in ("loss gain", "low loss")
    },
    marks,
)

# %% tags=["remove-input"]
chapter.say(training_time.race_in_words(chapter))
chapter.table(
    training_time.race_rows(chapter, noisy_runs, noisy_series, observed),
    "Scores of wrong labels by epoch, means over networks ± their standard deviation; gains in nats.",
)
chapter.say(
    "Intervals in brackets are of 95 %, from Student's t over {seeds} networks. Over the digits of each single "
    "network, the interval of the gain's AUROC is above 0.5 in all of them first at: {gain_above_chance_epoch}."
)

# %% [markdown]
# The column of wrong labels that are *not yet fitted* is a stricter test: there the network still gives another
# answer than it was told. The strictest asks whether the gain sees memorization at all, or only that a label is
# wrong. For this we compare wrong labels of the training set with wrong labels that no network was given. This
# test was added after the results of the others were known.

# %% tags=["remove-input"]
chapter.say(training_time.unseen_in_words(chapter))

# %% [markdown]
# ## LLC and gains
#
# {numref}`fig-gains-time` shows the LLC of both kinds of network, and the gains of right and wrong labels.

# %% mystnb={"figure": {"caption": "Left: LLC by epoch of a network with true labels and of one with wrong ones; bars are 95 % intervals of chance, open markers are refused by the verdict. Right: mean loss gain of right and of wrong labels in the second network, with the range from the 10 to the 90 % quantile over digits. Look where the two populations part.", "name": "fig-gains-time"}, "image": {"alt": "Left: two curves of the local learning coefficient over the epoch on a log axis, for true and for wrong labels. Right: mean loss gains of right and of wrong labels over the epoch, each with a shaded band; in the published run those of wrong labels rise and those of right labels do not."}}
flags = runs["noisy", 0].noisy[observed]
figures.gains_in_training(
    {"true labels": tables["right"], "a tenth wrong": tables["wrong"]},
    training_time.gain_curves(
        series["noisy", 0], {"right labels": ~flags, "wrong labels": flags}
    ),
)

# %% [markdown]
# From one checkpoint to the next the noise is the same. `probelib.compare` takes the difference draw by draw:

# %%
first, last = (
    series["noisy", 0].sel(checkpoint=e) for e in checkpoints[-2:]
)
print(probelib.compare(first, last))

# %% tags=["remove-input"]
chapter.table(
    training_time.change_rows(chapter, series["noisy", 0]),
    "Change of LLC and mean gain from one checkpoint to the next, with wrong labels; ± is chance, paired.",
)
chapter.say(
    "The LLC at the first, the lowest and the last checkpoint: **{llc_right_first_text}**, "
    "{llc_right_lowest_text} (epoch {llc_right_lowest_epoch}) and **{llc_right_last_text}** with true labels, "
    "**{llc_wrong_first_text}**, {llc_wrong_lowest_text} (epoch {llc_wrong_lowest_epoch}) and "
    "**{llc_wrong_last_text}** with wrong ones. ± is chance; the step bias stands in the table above."
)

# %% [markdown]
# ## Stages that are known
#
# A linear network $f(x) = W_2 W_1 x$ learns a map with singular values $s_1 > s_2 > \dots$ one at a time
# ({cite:t}`saxe2014exact`). From balanced weights with the right directions, each at the small strength $a_0$,
# the strength of direction $k$ passes half of $s_k$ at
#
# $$ t_k = \frac{\ln(s_k / a_0 - 1)}{2 s_k}. $$
#
# Between two stages the map has a known rank, and the LLC of every rank has a closed form
# ({cite:t}`aoyagi2024deep`). So it is known when the LLC should rise, and from where to where.

# %%
known = half_times(singular_values, start)
target, network = teacher(tuple(widths), singular_values, start, seed)
times = np.linspace(0, 1.8 * known[-1], stage_checkpoints).round(3)
path = list(follow(network, target, times))
closed = strengths(singular_values, start, [t for t, _ in path])
ranks = range(len(singular_values) + 1)
coefficients = [deep_linear_coefficient(widths, r)[0] for r in ranks]
print("known times", known.round(2), "coefficients", coefficients)

# %% [markdown]
# At a checkpoint the training loss has a slope, and it falls if one leaves the checkpoint. So its LLC is no
# coefficient of anything. The question has an answer if the loss is changed: $L$ compares the network with
# *its own map* at the checkpoint. Then $w^*$ is a minimum. Eq. 1 of that loss is drawn without a step size by
# the Gibbs sampler of {doc}`chapter 09 <09_samplers_and_settings>`. The localization is a hundredth of
# $n\beta$ times the smallest singular value, so that it should not hide what has been learned. It was chosen
# after a look at three values; another of them is in the table of resolutions below.
#
# We say that the LLC *marks* a stage where it first passes the middle between the two known coefficients
# ({numref}`fig-stages`).

# %%
gibbs = {
    "localization": stage_localization,
    "chains": stage_chains,
    "sweeps": stage_sweeps,
    "seed": seed,
}
stages = Stages.measure(path, n_beta=stage_n_beta, **gibbs)

# %% [markdown]
# Chains of the library see the same, as a check, and the LLC of the training loss beside it.

# %%
some = path[::stage_every]
chain = {
    "sampler": probelib.LeimkuhlerMatthews(stage_step),
    "chains": 4,
    "draws": stage_draws,
    "thin": 20,
    "burn_in": stage_burn_in,
    "seed": seed,
    "progress": live,
}
white = widths[0] ** 0.5 * torch.eye(widths[0])
of_loss = probelib.over_checkpoints(
    [(float(t), deepcopy(model).float()) for t, model in some],
    probelib.squared_error,
    (white, white @ target.float().T),
    n_beta=stage_n_beta,
    localization=stage_localization,
    **chain,
)
of_loss = probelib.checkpoint_table(of_loss)


# %%
def off_by(outputs, targets):
    # The constant changes no draw, and hides the rounding of a loss of 0.
    return 1 + probelib.squared_error(outputs, targets)


check = []
for t, model in some[:: max(1, len(some) // 4)]:
    model = deepcopy(model).float()
    own = probelib.LocalPosterior(
        model,
        off_by,
        (white, model(white).detach()),
        n_beta=stage_n_beta,
        localization=stage_localization,
    )
    trace = probelib.sample(own, **chain)
    llc = probelib.local_learning_coefficient(trace)
    check.append((t, llc.value, llc.mcse))
check = np.array(check)

# %% tags=["remove-input"]
rows = training_stages.record_stages(
    chapter, stages, closed, known, singular_values, coefficients, seed
)
training_stages.record_checks(chapter, stages, check, of_loss)

# %% tags=["remove-input"] mystnb={"figure": {"caption": "A linear network that learns three singular values. Dashed: the known times of the stages. Left: singular values of its map (markers) and the closed form (lines). Middle: LLC of each checkpoint against its own map, by Gibbs sampling with its 95 % band and by chains (crosses); dotted: the known coefficients of rank 0, 1, 2 and 3. Right: LLC of the training loss on an axis that is linear within ±100; open markers are refused by the verdict. Look how far the rises in the middle are from the dashed lines.", "name": "fig-stages"}, "image": {"alt": "Three panels over time with dashed vertical lines at three known times. Left: three curves rise one after the other to 4, 2 and 1. Middle: the LLC rises in steps between dotted levels. Right: the LLC of the training loss, far below zero at first and positive at the end."}}
figures.stage_picture(
    (stages.times, stages.singular[:, : len(singular_values)], closed),
    {
        "Gibbs sampling": (stages.times, stages.llc, stages.llc_se),
        "chains": tuple(check.T),
    },
    coefficients,
    known,
    (
        of_loss.index.to_numpy(float),
        of_loss["llc"].to_numpy(),
        (of_loss["verdict"] == "wrong").to_numpy(),
    ),
)

# %% tags=["remove-input"]
chapter.table(
    rows,
    "Stages by three clocks: the closed form, the singular values, and the LLC with its 95 % interval of chance.",
)
chapter.say(training_stages.stages_in_words(chapter, len(singular_values)))
chapter.say(
    "Of the training loss the verdict refuses the LLC at **{loss_llc_wrong}** of {loss_llc_checkpoints} "
    "checkpoints, of which {loss_llc_negative} are negative; the lowest is {loss_llc_lowest:,.0f}. "
    "{loss_llc_readable} The chains that check the Gibbs sampler differ from it by "
    "{stage_check_z:.1f} standard errors at most."
)

# %% [markdown]
# What is seen of a small strength depends on the resolution, which $n\beta$ and $\gamma$ set. So the time at
# which the LLC rises is not a property of the training alone:

# %%
settings = [
    (stage_n_beta, 10 * stage_localization),
    (10 * stage_n_beta, stage_localization),
]
resolutions = {(stage_n_beta, stage_localization): stages}
for nb, gamma in settings:
    resolutions[nb, gamma] = Stages.measure(
        path[::2], n_beta=nb, **(gibbs | {"localization": gamma})
    )

# %% tags=["remove-input"]
chapter.table(
    training_stages.resolution_rows(
        chapter, resolutions, singular_values, known, coefficients
    ),
    "When the LLC passes the middle of two coefficients (in brackets: the known time), and what part of the "
    "singular value is there then.",
)

# %% [markdown]
# ## What is learned first
#
# A sample is *learned* at the first epoch from which it stays right until the end. Does that order predict
# the gain at the end?

# %% tags=["remove-input"]
chapter.table(
    training_time.record_order(chapter, runs, series, observed),
    "Spearman's rank correlation over the observed digits, mean over networks with its 95 % t-interval.",
)
chapter.say(training_time.order_in_words(chapter))

# %% [markdown]
# ## The third cumulant, and kernels between phases
#
# If the posterior were in the limit of large $n\beta$, $n\beta (L - L(w^*))$ would have a Gamma distribution:
# its second cumulant would be the LLC, and its third twice the LLC. A third cumulant above 0 means that the
# loss along the draws has its longer tail upwards.
#
# The correlation kernel $R$ of one checkpoint can be compared with that of another, over all pairs of the same
# digits. Noise makes any two kernels less alike than they are. And chains with the same random numbers make
# them more alike than they are. So half of the chains at one checkpoint is compared with the *other* half at the
# other. The result is divided by what two halves of one checkpoint have ({numref}`fig-phases`).

# %%
part = np.random.default_rng(seed).choice(
    n_observed, min(n_kernel, n_observed), replace=False
)
phases = {
    name: kernel_phases(series[kind, 0], part)
    for name, kind in (("right", "clean"), ("wrong", "noisy"))
}
moments = {
    name: training_phases.loss_cumulants(series[kind, 0], n_beta)
    for name, kind in (("right", "clean"), ("wrong", "noisy"))
}

# %% tags=["remove-input"] mystnb={"figure": {"caption": "Left: correlation of the correlation kernels of two checkpoints of the network with wrong labels, over all pairs of the same digits, freed of noise; 1 is the same kernel, and chance may lead above it. Right: skewness of the mean loss along the draws, with 95 % intervals over parts of the chains; dotted: symmetric. Look how fast the kernel changes, and whether the skewness has a sign.", "name": "fig-phases"}, "image": {"alt": "Left: a square of numbers on a colour scale, one row and one column per checkpoint, with ones on the diagonal and lower values away from it. Right: skewness with error bars over the epoch on a log axis, for true and for wrong labels, beside a dotted line at zero."}}
of = phases["wrong"]
names = ("true labels", "a tenth wrong")
skewness = {
    label: (
        np.array(list(each)),
        np.array([one.skewness for one in each.values()]),
        np.array([one.skewness_se for one in each.values()]),
    )
    for label, each in zip(names, moments.values(), strict=True)
}
figures.phase_picture(of.names, of.corrected, skewness)

# %% tags=["remove-input"]
for name, one in phases.items():
    training_phases.record_phases(chapter, one, name)
training_phases.record_cumulants(chapter, moments, tables)
chapter.table(
    training_phases.cumulant_rows(chapter, moments, tables),
    "Cumulants of nβ times the mean loss along the draws; ± is a standard error over parts of the chains.",
)
chapter.say(
    "The third cumulant is positive at **{third_positive}** of {third_checkpoints} checkpoints of both networks; "
    "surely positive at {third_positive_sure}, surely negative at {third_negative_sure}. With wrong labels it is "
    "{third_wrong_first_text} at the first and {third_wrong_last_text} at the last checkpoint, a skewness of "
    "{skewness_wrong_first_text} and {skewness_wrong_last_text}. The last is {third_wrong_share_of_gamma:.0%} of "
    "twice the LLC, which a Gamma distribution would have. A small share is expected where the localization, "
    "and not the data, holds most directions."
)
chapter.say(
    "With wrong labels, kernels of the first and the last checkpoint correlate at **{kernel_wrong_ends_text}** "
    "(with true labels: {kernel_right_ends_text}), freed of noise. Uncorrected it is "
    "{kernel_wrong_ends_cross:.2f}, and {kernel_wrong_ends_naive:.2f} if both use the same random numbers. "
    "Neighbouring checkpoints are least alike at {kernel_wrong_least_text}. The least reliable half-kernel has "
    "a reliability of {kernel_wrong_reliability_least:.2f}."
)

# %% [markdown]
# ## Scrub through the training
#
# Digits of the first network with wrong labels, the highest gain first. Move the slider, or let it play, and see
# where the framed digits with wrong labels are. Choose the loss instead, and compare.

# %% tags=["remove-input"]
shown = mixed(flags, n_shown, n_shown // 5, seed)
values = {
    name: rows[:, shown]
    for name, rows in training_time.scores(series["noisy", 0]).items()
}
page = scrubber_html(
    images[observed[shown]].numpy(),
    runs["noisy", 0].labels[observed[shown]].numpy(),
    true_labels[observed[shown]].numpy(),
    checkpoints,
    values,
    note="More wrong labels are shown than the training set has: one in five.",
)
training_time.show_page(chapter, page)

# %% [markdown]
# ## Known / this run

# %% tags=["remove-input"]
chapter.compare(
    training_stages.claims(chapter, known, singular_values, stages.times),
    against="known",
)

# %% [markdown]
# ## What could fool you
#
# - **Levels are conventions.** An accuracy of one half and an AUROC of 0.9 are not the same kind of event. Which of
#   them comes first depends on the two levels as well as on the network.
# - **A checkpoint is no minimum.** Where the verdict refuses it, the LLC is not one. An approval says that the
#   chains draw from Eq. 1, whose localization is strong here. It does not say that the number is the coefficient
#   of a limit.
# - **Wrong is not memorized.** A score that finds wrong labels need not see that they are in the weights. Ask for
#   wrong labels that were never trained on.
# - **Resolution.** $n\beta$ and $\gamma$ set what strength counts as learned. A rise of the LLC has a time only
#   together with these two.
# - **Shared noise.** The same random numbers make paired errors small. They also make two kernels look alike.
# - **Few networks.** Intervals over three networks are wide: Student's factor is 4.3 where it would be 1.96.

# %% [markdown]
# ## Exercises
#
# **1.** The closed form wants weights that know the right directions. Start with small random weights in
# addition. Does the LLC still rise early?

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the answer"}
target_r, random_start = teacher(
    tuple(widths), singular_values, start, seed, noise=start**0.5 / 4
)
other = Stages.measure(
    list(follow(random_start, target_r, times[::2])),
    n_beta=stage_n_beta,
    **gibbs,
)
at_half = passes(other.times, other.singular[:, 0], singular_values[0] / 2)
at_llc = passes(other.times, other.llc, sum(coefficients[:2]) / 2)
chapter.record(
    exercise_half=str(round(at_half, 2)), exercise_llc=str(round(at_llc, 2))
)
chapter.say(
    "The first singular value passes one half at **{exercise_half}**, and the LLC the first middle at "
    "**{exercise_llc}**. From the aligned start these are {stage_1_known:.2f} and {stage_1_llc_text}."
)

# %% [markdown]
# **2.** Take the wrong labels that are not fitted at a checkpoint. Does their gain there tell which are memorized
# first? And their loss?

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the answer"}
training_time.record_next(
    chapter, noisy_runs, noisy_series, observed, at=len(checkpoints) // 2
)
chapter.say(
    "At epoch {exercise_next_epoch}, over the wrong labels not yet fitted, the rank correlation of the epoch at "
    "which they are learned is **{exercise_next_gain_text}** with the gain and **{exercise_next_loss_text}** with "
    "the loss. A negative one with the gain means: those of high gain are memorized sooner."
)

# %% [markdown]
# ## Summary
#
# The same probe at every checkpoint costs what one probe costs, times their number. It needs a verdict at each,
# and a baseline at each. The answer at the top says what the gain saw before the accuracy did, and whether that
# was memorization.
#
# **References.** Exact solutions of the learning of linear networks: {cite:t}`saxe2014exact`. Learning
# coefficients of deep linear networks: {cite:t}`aoyagi2024deep`. The LLC: {cite:t}`lau2025llc`.

# %% tags=["remove-input"]
training_time.record_front(chapter)

# %% tags=["answer"]
chapter.answer(
    training_time.answer_in_words(chapter),
    "Verdicts on the network with wrong labels: {verdicts_wrong_good} of {checkpoints} checkpoints approved, "
    "{verdicts_wrong_wrong} refused; at the last: {verdict}. The step bias of the last LLC is "
    "{llc_wrong_last_bias_text}. Intervals are over {seeds} networks, those of the stages of chance. Of the "
    "training loss of the linear network, {loss_llc_wrong} of {loss_llc_checkpoints} LLCs cannot be read.",
)

# %% tags=["remove-input"]
chapter.finish(
    "half of the wrong labels memorized at epoch {memorization_epoch_accuracy_text}, AUROC of the gain 0.9 at "
    "{memorization_epoch_gain_text}; order of learning and final gain: Spearman "
    "{spearman_learning_order_gain_text}; stages known {stage_times_known}, by the LLC {stage_times_llc}; "
    "verdicts {verdicts_wrong_good} good and {verdicts_wrong_wrong} wrong of {checkpoints}"
)
