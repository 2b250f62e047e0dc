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
# # Introduction
#
# **Claim.** *Change the weights of a trained model a little, at random, and each sample's loss changes. Its
# mean rise tells how fragile the fit of the sample is. Which losses rise together tells what the samples
# share.*

# %% [markdown] tags=["about"]
# This chapter reproduces Section 3 of the paper (Eqs. 1, 4, 5 and 6) on a model with two weights, so that
# everything can be drawn: the sampled weights, what they do to the loss of an easy and of a hard sample,
# and the kernel between three samples.
#
# It adds exact values: two weights can also be integrated on a grid, and every estimate is compared with
# that integral.
#
# | profile | what runs | two cores |
# | --- | --- | --- |
# | `smoke` | 60 samples, 8 chains of 100 draws: not a result | seconds |
# | `laptop` | 60 samples, 32 chains of 1,000 draws | well under a minute |
# | `paper` | the same as `laptop` | the same |

# %% tags=["hide-input"]
import numpy as np
import torch

import probelib
from probebook import figures
from probebook.chapter import Chapter
from probebook.quadrature import integrate
from probebook.toys import (
    exact_claim,
    largest_curvature,
    loss_surface,
    path,
    two_classes,
)

torch.set_num_threads(1)  # the models are small: a second thread slows

# %% tags=["parameters"]
profile: str = "laptop"  # smoke, laptop or paper
seed: int = 0  # of the chains
results_dir: str = "../results/live"  # where this chapter's numbers go
live: bool = True  # False when the driver runs it: no progress bar then
data_seed: int = 1  # of the 56 samples that are not placed by hand
n_beta: float = 10.0  # n beta: how strongly the data hold the weights
localization: float = 1.0  # gamma: how strongly w* holds them
step_size: float = 0.05  # epsilon
chains: int = 32  # C, independent chains
draws: int = 1000  # T, draws kept per chain
burn_in: int = 300  # b, steps before the first draw
thin: int = 4  # steps per draw

# %% tags=["remove-input"]
chapter = Chapter(
    "00_introduction",
    profile=profile,
    results_dir=results_dir,
    parameters=globals(),
)
chapter.record(chains=chains, draws=draws)

# %% [markdown]
# ## The idea
#
# Training ends at one point $w^*$ of weight space. At that point each sample $i$ has a loss $\ell_i(w^*)$.
# The loss alone does not say whether it would stay low at slightly different weights. To find out, change
# the weights.
#
# Not in all directions equally. The **local posterior** (Eq. 1) lets the weights vary much where the mean
# loss $L$ hardly depends on them, and little where it does:
#
# $$p(w) \propto \exp\Big[-n\beta\, L(w) - \frac{\gamma}{2} \lVert w - w^* \rVert^2\Big],
#   \qquad L(w) = \frac1n \sum_i \ell_i(w).$$
#
# The first term keeps the mean loss of the $n$ samples low, with the strength $n\beta$. The second keeps
# the weights near $w^*$, with the strength $\gamma$. Draw weights $w$ from it, and look at the **loss
# change** $\Delta\ell_i(w) = \ell_i(w) - \ell_i(w^*)$ of every sample, which is now a random number. The
# probe consists of its first two cumulants, the mean and the covariance:
#
# $$\mu_i = \operatorname{E}_w[\Delta\ell_i], \qquad
#   K_{ij} = \operatorname{Cov}_w[\Delta\ell_i, \Delta\ell_j].$$
#
# | quantity | in plain words |
# | --- | --- |
# | local posterior $p(w)$, Eq. 1 | models near the trained one, weighted by how well they do |
# | loss change $\Delta\ell_i(w)$ | how much worse (or better) one of them does on sample $i$ |
# | loss gain $\mu_i$, Eq. 4 | how much worse they do on average: how fragile the fit of sample $i$ is |
# | loss kernel $K_{ij}$, Eq. 5 | whether the models that fail on $i$ also fail on $j$: what the two share |
# | correlation kernel $R_{ij}$, Eq. 6 | the kernel on a scale from $-1$ to $1$ |
# | local learning coefficient $\lambda$, B.1 | the loss gains, summed and scaled: how complex the model is near $w^*$ |
# | singular fluctuation $\nu$, B.2 | the kernel's diagonal, summed and scaled: how much the losses fluctuate |
#
# ## A model that can be drawn
#
# Two classes of points in the plane, and the smallest network there is: one neuron, two weights, no
# bias. Its decision boundary is a line through the origin. The weights set the direction of the line and
# how sharply the model distinguishes its two sides. Four of the 60 samples are placed by hand and have
# names. *Easy* lies far on its own side. *Hard* lies almost on the line. *Rival* has the class of *hard*,
# at the other end of the line. *Friend* lies at that end too, and has the other class.

# %%
toy = two_classes(seed=data_seed)
posterior = probelib.LocalPosterior(
    toy.model,
    probelib.cross_entropy,
    (toy.x, toy.y),
    n_beta=n_beta,
    localization=localization,
)
sampler = probelib.SGLD(step_size=step_size)
trace = probelib.sample(
    posterior,
    sampler=sampler,
    chains=chains,
    draws=draws,
    burn_in=burn_in,
    thin=thin,
    seed=seed,
    progress=live,
)
gain = probelib.loss_gain(trace)  # mu, one number per sample
kernel = probelib.loss_kernel(trace)  # K and R

# %% [markdown]
# ## The probe in one picture
#
# A trace keeps losses, not weights. To draw the weights, the same chains run once more.
# {numref}`fig-probe` shows the data, the sampled weights, and what these do to two of the samples.

# %%
change = (trace.loss - trace.init_loss).values.reshape(chains * draws, -1)
changes = {name: change[:, i] for name, i in toy.named.items()}
weights = path(
    posterior,
    sampler,
    chains=chains,
    steps=burn_in + draws * thin,
    seed=seed,
)
cloud = weights[:, burn_in:][:, thin - 1 :: thin].reshape(-1, 2)
shuffled = np.random.default_rng(seed).permutation(len(cloud))

# %% tags=["key-figure"] mystnb={"figure": {"caption": "A Bayesian probe. 1: the trained model's decision line (black) and the lines of sixty draws from the local posterior (grey); squares and circles are the two classes. 2: the same draws as points in weight space, on the contours of the mean loss; the cloud is long where the loss is flat. 3: the loss changes of an easy and of a hard sample over all draws. Look whether the grey lines pass over a sample: where they do, its loss changes much. The means of the two histograms are the loss gains.", "name": "fig-probe"}, "image": {"alt": "Four panels. Top left: points of two classes in the plane, a black line through the origin between them and a fan of grey lines around it that spreads towards both ends; the sample named easy is far above the fan, the samples named hard, friend and rival lie within it. Top right: an elongated cloud of blue points around a star labelled w star, on oval contour lines of the loss. Bottom: two histograms of loss changes; in the published run that of the easy sample is a spike at zero, and that of the hard sample is broad, with a long positive tail and a positive mean."}}
figures.probe_picture(
    toy.x.numpy(),
    toy.y.numpy(),
    toy.named,
    loss_surface(posterior, reach=3.2),
    posterior.center.numpy(),
    cloud[shuffled[:2500]],
    {name: changes[name] for name in ("easy", "hard")},
    {name: float(gain[toy.named[name]]) for name in ("easy", "hard")},
)

# %% tags=["remove-input"]
chapter.record(
    **{f"gain_{name}": float(gain[i]) for name, i in toy.named.items()},
    **{
        f"gain_{name}_mcse": float(gain.mcse[i])
        for name, i in toy.named.items()
    },
    **{
        f"loss_{name}": float(trace.init_loss[i])
        for name, i in toy.named.items()
    },
)
chapter.say(
    "Loss gain of *easy*: **{gain_easy:.4f} ± {gain_easy_mcse:.4f}** nats. Of *hard*: "
    "**{gain_hard:.3f} ± {gain_hard_mcse:.3f}** nats. The errors are Monte-Carlo standard errors."
)

# %% [markdown]
# ## The kernel between three samples
#
# The loss gain is about one sample. The kernel is about two: do the draws that raise the loss of one
# also raise the other's? In {numref}`fig-kernel` every point is one draw.
#
# Think of the line as a seesaw. When its left end tips over *hard*, its right end tips over
# *friend*: both lose. *Rival* sits at the same end as *friend*, in the other class, and profits. So
# *hard* and *friend* have a strong positive kernel, although they are far apart and differ in class;
# *hard* and *rival*, of the same class, have a negative one. The kernel sees neither distance nor
# label. It sees what the losses hang on: here, the tilt of the line.

# %% mystnb={"figure": {"caption": "The kernel between three samples. Left and middle: loss changes of two samples against each other, one point per draw. Points along a rising line mean that the two losses rise together; along a falling line, that one falls when the other rises. Right: the correlation kernel of all three.", "name": "fig-kernel"}, "image": {"alt": "Left: scatter of the loss changes of hard and friend, in the published run a narrow rising band. Middle: scatter of hard and rival, a falling curve. Right: a three by three heat map of correlations between hard, friend and rival."}}
three = ["hard", "friend", "rival"]
at = np.array([toy.named[name] for name in three])
r = kernel.correlation(at, at)
figures.kernel_picture(
    {name: changes[name][shuffled[:4000]] for name in three},
    [("hard", "friend"), ("hard", "rival")],
    r,
)

# %% tags=["remove-input"]
r_error = kernel.correlation_mcse(at, at)
chapter.record(
    r_hard_friend=r[0, 1],
    r_hard_friend_mcse=r_error[0, 1],
    r_hard_rival=r[0, 2],
    r_hard_rival_mcse=r_error[0, 2],
)
chapter.say(
    "Correlation of *hard* and *friend*: **{r_hard_friend:+.3f} ± {r_hard_friend_mcse:.3f}**. Of *hard* and "
    "*rival*: **{r_hard_rival:+.3f} ± {r_hard_rival_mcse:.3f}**."
)

# %% [markdown]
# ## All samples at once
#
# The names were only for illustration. One trace gives the loss gain of every sample, and for each sample
# the others whose losses rise and fall with its own, or against it ({numref}`fig-maps`).

# %% mystnb={"figure": {"caption": "The whole data set, each sample coloured by its loss gain (left) and by its correlation with the sample named hard (right); squares and circles are the two classes. Left: look where along the boundary the fragile samples lie. Right: compare the two classes at one end of the line, and then one class at both ends.", "name": "fig-maps"}, "image": {"alt": "Two scatter plots of the same sixty points and the trained line. Left: colour is loss gain, in the published run bright for points near the ends of the line and dark for points far from it. Right: colour is correlation with the sample hard, red for positive and blue for negative."}}
everyone = np.arange(len(toy.y))
figures.data_maps(
    toy.x.numpy(),
    toy.y.numpy(),
    toy.named,
    posterior.center.numpy(),
    gain.values,
    kernel.correlation(at[:1], everyone)[0],
    "hard",
)

# %% [markdown]
# ## Paper says / this run
#
# The paper has no such example. But its equations leave nothing open here: the local posterior (Eq. 1)
# has two weights, and the trapezoid rule on a grid integrates it to rounding. The column *exact value* has
# what Eqs. 4 to 6 give on that grid. A run agrees when it lies within four Monte-Carlo standard errors
# plus the bias of the step size. This bias is at most a fraction $\epsilon A_{\max} / 4$ of a variance,
# with $\epsilon$ the step size and $A_{\max}$ the largest precision of the posterior;
# {doc}`chapter 01 <01_local_posterior>` derives and measures it. The book is not built with a miss here.

# %%
exact = integrate(posterior)
llc = probelib.local_learning_coefficient(trace)
stiffest = n_beta * largest_curvature(posterior) + localization
bias = step_size * stiffest / 4
scale = np.sqrt(np.diag(exact.kernel))
exact_r = (exact.kernel / scale[:, None] / scale)[np.ix_(at, at)]
print(f"exact LLC {exact.llc:.4f}, sampled {llc}")

# %% tags=["remove-input"]
chapter.record(llc=llc.value, llc_mcse=llc.mcse, step_bias=bias)
chapter.compare(
    [
        *[
            exact_claim(
                chapter, f"loss gain of {name} (nats)", f"gain_{name}", exact.gain[i],
                float(gain.mcse[i]), bias * exact.gain[i],
            )
            for name, i in toy.named.items()
        ],
        exact_claim(chapter, "R of hard and friend", "r_hard_friend", exact_r[0, 1], r_error[0, 1], bias),
        exact_claim(chapter, "R of hard and rival", "r_hard_rival", exact_r[0, 2], r_error[0, 2], bias),
        exact_claim(chapter, "local learning coefficient", "llc", exact.llc, llc.mcse, bias * exact.llc),
    ],
    against="exact value",
)  # fmt: skip

# %% [markdown]
# ## What could fool you
#
# - **Hard depends on the posterior.** A larger weight of the data ($n\beta$) or a stronger localization
#   ($\gamma$) makes the cloud and all gains smaller. Compare gains within a run, not across settings.
# - **The mean hides the spread.** The loss of a sample near the line falls in many draws. Its gain is
#   positive because a loss can rise further than it can fall.
# - **Draws are not independent.** Neighbouring draws of a chain are similar. The errors above account for
#   it; dividing by the square root of the number of draws would not.
# - **Two weights are an easy case.** This loss is convex, with one minimum. In a network the chains may
#   not have reached all directions when you stop; {doc}`chapter 01 <01_local_posterior>` shows how to
#   notice.
#
# The library checks the draws. $\hat R$ (R-hat) compares the chains with each other and is near 1 where
# they agree. The effective sample size (ESS) counts how many independent draws the correlated ones are
# worth.

# %%
trust = probelib.diagnostics(trace)
print(trust)

# %% tags=["remove-input"]
chapter.record_verdict(trust)
chapter.record(rhat_max=trust.rhat_max, ess_min=trust.ess_min)
chapter.say(
    "Largest $\\hat R$: {rhat_max:.3f}. Smallest effective sample size: {ess_min:.0f} of "
    "{chains} × {draws} draws."
)

# %% [markdown]
# ## Exercises
#
# **1.** Raise the localization $\gamma$ from 1 to 10. By what factor does the gain of *hard* fall? Would it
# be 10? Answer by integration, without sampling.

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the answer"}
closer = probelib.LocalPosterior(
    toy.model,
    probelib.cross_entropy,
    (toy.x, toy.y),
    n_beta=n_beta,
    localization=10 * localization,
)
hard = toy.named["hard"]
chapter.record(
    exercise_gain_factor=exact.gain[hard] / integrate(closer).gain[hard]
)
chapter.say(
    "By a factor of **{exercise_gain_factor:.1f}**. It would be 10 if the localization alone held the "
    "weights and the loss were quadratic."
)

# %% [markdown]
# **2.** Take the standard deviation of *hard*'s loss change, divided by the root of the number of draws, as
# the error of its gain. By what factor is it too small?

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the answer"}
naive = changes["hard"].std() / len(changes["hard"]) ** 0.5
factor = float(gain.mcse[toy.named["hard"]]) / naive
chapter.record(exercise_error_factor=factor, exercise_draws=factor**2)
chapter.say(
    "By a factor of **{exercise_error_factor:.1f}**: about {exercise_draws:.1f} draws are worth one "
    "independent draw."
)

# %% [markdown]
# **3.** For a regular model with $d$ weights the local learning coefficient approaches $d/2$ as $n\beta$
# grows. How near to 1 is it here, and how near at a hundred times the $n\beta$?

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the answer"}
more_data = probelib.LocalPosterior(
    toy.model,
    probelib.cross_entropy,
    (toy.x, toy.y),
    n_beta=100 * n_beta,
    localization=localization,
)
chapter.record(exercise_llc=exact.llc)
chapter.record(exercise_llc_more_data=integrate(more_data).llc)
chapter.say(
    "It is {exercise_llc:.3f} here and **{exercise_llc_more_data:.3f}** there, both by integration. Here the "
    "localization holds a part of the two directions; there the data hold nearly all of them."
)

# %% [markdown]
# ## A map of the book
#
# | chapter | question |
# | --- | --- |
# | {doc}`01 · The local posterior <01_local_posterior>` | Does the sampler sample what it should? Every answer that is known exactly, three errata, and how to choose the settings. |
# | {doc}`02 · Loss gain on MNIST <02_loss_gain>` | Which digits are fragile, and does the gain say more than the loss? |
# | {doc}`03 · Memorization <03_memorization>` | Can the probe tell what was memorized from what was learned? |
# | {doc}`04 · The loss kernel on ImageNet <04_loss_kernel>` | Does the kernel of a large network follow the meaning of its images? |
# | {doc}`04 · The loss kernel, tested <04_loss_kernel_tested>` | Does it know more than features, gradients or pixels, and what is it good for? |
# | {doc}`05 · The LLC sum identity <05_llc_identity>` | Do the gains add up to the learning coefficient, and is the estimate right where the answer is known? |
# | {doc}`06 · Singular fluctuation <06_singular_fluctuation>` | What is the trace of the kernel, and how well does one data set determine it? |
# | {doc}`07 · Influence functions <07_influence_functions>` | When is the kernel the classical influence, and which of the two predicts retraining? |
# | {doc}`08 · Language models <08_language_models>` | Does the gain find what a language model memorized, and does the kernel know genres? |
# | {doc}`09 · Samplers and settings <09_samplers_and_settings>` | Which sampler and which settings, where the answer is known, and who finds them without knowing it? |
# | {doc}`11 · Training time <11_training_time>` | When does a probe see that a wrong label is memorized, and does the LLC rise at known stages? |
# | {doc}`Errata <../errata>` | Seven places where the paper needs a correction. |
# | {doc}`Glossary <../glossary>` and {doc}`API <../api>` | The words, and the library. |
#
# ## Summary
#
# A Bayesian probe draws weights around a trained model and records the losses there. The mean change of a
# sample's loss is its loss gain; the covariance of two samples' changes is their kernel. Nothing depends
# on there being two weights: the same three calls run on any network. What becomes harder is to know
# whether the draws represent the posterior. That is the subject of the
# {doc}`next chapter <01_local_posterior>`.
#
# **References.** The local learning coefficient: {cite:t}`lau2025llc`. The covariance of losses as a
# kernel between samples: {cite:t}`iba2024wkernel` and {cite:t}`thomas2018reconciling`; its close
# relatives for networks, the Bayesian influence function of {cite:t}`anonymous2025bif` and the
# susceptibilities of {cite:t}`baker2025susceptibilities`. Why networks are singular models:
# {cite:t}`wei2023singular`.

# %% tags=["answer"]
chapter.answer(
    "Over the draws the loss of the sample *hard*, near the boundary, rises on average by **{gain_hard:.3f} ± "
    "{gain_hard_mcse:.3f}** nats; that of *easy*, far from it, by {gain_easy:.4f} ± {gain_easy_mcse:.4f}. "
    "The correlation of the loss of *hard* with that of *friend* is **{r_hard_friend:+.3f} ± "
    "{r_hard_friend_mcse:.3f}**, and with that of *rival* {r_hard_rival:+.3f} ± {r_hard_rival_mcse:.3f}.",
    "The ± are chance; the step size may add up to {step_bias:.0%} to a variance. Integrated exactly, the "
    "gain of *hard* is {exact_gain_hard:.3f}, and the two correlations are {exact_r_hard_friend:+.3f} and "
    "{exact_r_hard_rival:+.3f}. Verdict on the draws: {verdict}.",
)

# %% tags=["remove-input"]
chapter.finish(
    "loss gain easy {gain_easy:.4f} ± {gain_easy_mcse:.4f}, hard {gain_hard:.3f} ± {gain_hard_mcse:.3f} "
    "(exact {exact_gain_hard:.3f}); R hard-friend {r_hard_friend:+.3f} ± {r_hard_friend_mcse:.3f}, "
    "hard-rival {r_hard_rival:+.3f} ± {r_hard_rival_mcse:.3f}; step bias up to {step_bias:.0%} of a variance"
)
