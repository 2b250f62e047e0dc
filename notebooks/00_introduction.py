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
# **Claim.** *Shake the weights of a trained model a little, and each sample's loss answers: its mean
# rise tells how fragile the sample's fit is, and which losses rise together tells what the samples
# share.*
#
# This chapter is Section 3 of the paper (Eqs. 1, 4, 5 and 6) on a model with two weights, so that
# everything can be drawn. You will see a cloud of sampled weights, what it does to the loss of an
# easy and of a hard sample, and the kernel between three samples. Two weights can also be integrated
# on a grid, so every estimate is held against its exact value.
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

torch.set_num_threads(
    1
)  # the models are so small that a second thread only gets in the way

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

# %%
chapter = Chapter(
    "00_introduction", profile=profile, results_dir=results_dir
)
chapter.record(chains=chains, draws=draws)

# %% [markdown]
# ## The idea
#
# Training ends at one point $w^*$ of weight space. That point says how large each sample's loss
# *is*. It does not say how firmly the model holds the sample: whether the loss would survive a
# slightly different $w$, or hangs by a thread. To find out, move $w$.
#
# Not in every direction alike, though. The **local posterior** (Eq. 1) moves the weights freely
# where the data do not mind, and little where they do:
#
# $$p(w) \propto \exp\Big[-n\beta\, L(w) - \frac{\gamma}{2} \lVert w - w^* \rVert^2\Big],
#   \qquad L(w) = \frac1n \sum_i \ell_i(w).$$
#
# The first term asks the mean loss to stay low, the second asks the weights to stay near. Sample
# weights $w$ from it, and look at every sample's **loss change**
# $\Delta\ell_i(w) = \ell_i(w) - \ell_i(w^*)$, which is now a random number. Its first two cumulants
# are the probe:
#
# $$\mu_i = \operatorname{E}_w[\Delta\ell_i], \qquad
#   K_{ij} = \operatorname{Cov}_w[\Delta\ell_i, \Delta\ell_j].$$
#
# | quantity | in plain words |
# | --- | --- |
# | local posterior $p(w)$, Eq. 1 | all the models that do about as well as the trained one and lie near it |
# | loss change $\Delta\ell_i(w)$ | how much worse (or better) one of them does on sample $i$ |
# | loss gain $\mu_i$, Eq. 4 | how much worse they do on average: how fragile sample $i$ is |
# | loss kernel $K_{ij}$, Eq. 5 | whether the models that fail on $i$ also fail on $j$: what the two share |
# | correlation kernel $R_{ij}$, Eq. 6 | the same on a scale from $-1$ to $1$ |
# | local learning coefficient $\lambda$, B.1 | the loss gains, summed and scaled: how complex the model is here |
# | singular fluctuation $\nu$, B.2 | the kernel's diagonal, summed and scaled: how much it fluctuates |
#
# ## A model that can be drawn
#
# Two classes of points in the plane, and the smallest network there is: one neuron, two weights, no
# bias. Its decision boundary is a line through the origin; the weights set how the line lies and how
# sharply the model distinguishes its two sides. Four of the 60 samples are placed by hand, so that
# there is someone to talk about. *Easy* lies far on its own side. *Hard* lies almost on the line.
# *Rival* has the class of *hard*, at the other end of the line. *Friend* lies at that end too, and
# has the other class.

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
# {numref}`fig-probe` shows, in this order: the data, the cloud of weights, and what the cloud does to
# two of the samples.

# %% mystnb={"figure": {"caption": "A Bayesian probe. 1: the trained model's decision line (black) and the lines of sixty draws from the local posterior (grey); squares and circles are the two classes. 2: the same draws as points in weight space, on the contours of the mean loss; the cloud is long where the loss is flat. 3: the loss changes of an easy and of a hard sample over all draws. The grey fan never reaches the easy sample, so its loss hardly moves; it sweeps over the hard one. The means of the two histograms are their loss gains.", "name": "fig-probe"}, "image": {"alt": "Four panels. Top left: points of two classes in the plane, a black line through the origin between them and a fan of grey lines around it that spreads towards both ends; the sample named easy is far above the fan, the samples named hard, friend and rival lie within it. Top right: an elongated cloud of blue points around a star labelled w star, on oval contour lines of the loss. Bottom: two histograms of loss changes; that of the easy sample is a spike at zero, that of the hard sample is broad, mostly positive in its tail, and has a clearly positive mean."}}
change = (trace.loss - trace.init_loss).values.reshape(chains * draws, -1)
changes = {name: change[:, i] for name, i in toy.named.items()}
# The same chains once more, for the weights: a trace keeps the losses.
weights = path(
    posterior,
    sampler,
    chains=chains,
    steps=burn_in + draws * thin,
    seed=seed,
)
cloud = weights[:, burn_in:][:, thin - 1 :: thin].reshape(-1, 2)
shuffled = np.random.default_rng(seed).permutation(len(cloud))
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

# %%
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
# The loss gain looks at one sample. The kernel looks at two at once: do the draws that raise the
# loss of one also raise the other's? In {numref}`fig-kernel` every point is one draw.
#
# Think of the line as a seesaw. When its left end tips over *hard*, its right end tips over
# *friend*: both lose. *Rival* sits at the same end as *friend*, in the other class, and profits. So
# *hard* and *friend* have a strong positive kernel, although they are far apart and differ in class;
# *hard* and *rival*, of the same class, have a negative one. The kernel sees neither distance nor
# label. It sees what the losses hang on: here, the tilt of the line.

# %% mystnb={"figure": {"caption": "The kernel between three samples. Left and middle: loss changes of two samples against each other, one point a draw. Points along a rising line mean that the two samples stand and fall together; along a falling one, that one's loss is the other's profit. Right: the correlation kernel of all three.", "name": "fig-kernel"}, "image": {"alt": "Left: scatter of the loss changes of hard and friend, a narrow rising band. Middle: scatter of hard and rival, a falling curve. Right: a three by three heat map of correlations between hard, friend and rival; hard and friend are near plus one, both are negatively correlated with rival."}}
three = ["hard", "friend", "rival"]
at = np.array([toy.named[name] for name in three])
r = kernel.correlation(at, at)
r_error = kernel.correlation_mcse(at, at)
chapter.record(
    r_hard_friend=r[0, 1],
    r_hard_friend_mcse=r_error[0, 1],
    r_hard_rival=r[0, 2],
    r_hard_rival_mcse=r_error[0, 2],
)
figures.kernel_picture(
    {name: changes[name][shuffled[:4000]] for name in three},
    [("hard", "friend"), ("hard", "rival")],
    r,
)

# %% [markdown]
# ## All samples at once
#
# Nothing above needed names. One trace gives the loss gain of every sample, and for any sample the
# others that move with it or against it ({numref}`fig-maps`).

# %% mystnb={"figure": {"caption": "The whole data set, each sample coloured by its loss gain (left) and by its correlation with the sample named hard (right); squares and circles are the two classes. Left: the fragile samples line the boundary, more so at its ends, where the fan is wide. Right: look at the two classes at one end of the line: opposite colours. Then at one class at both ends: opposite colours again.", "name": "fig-maps"}, "image": {"alt": "Two scatter plots of the same sixty points and the trained line. Left: colour is loss gain, bright for points near the ends of the line and dark for points far from it. Right: colour is correlation with the sample hard, red for points of its class at its end and of the other class at the other end, blue for the rest near the line."}}
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
# The paper has no toy, but its equations leave nothing open here: Eq. 1 has two weights, and the
# trapezoid rule on a grid integrates it to rounding. Below, the column *exact value* holds what Eqs. 4 to 6
# give on that grid. A run agrees when it lies within four Monte-Carlo standard errors plus the bias
# that a finite step size allows, a fraction $\epsilon A_{\max} / 4$ of a variance, with
# $A_{\max}$ the largest precision; {doc}`chapter 1 <01_local_posterior>` derives and measures it. The
# book is not built with a miss here.

# %%
exact = integrate(posterior)
llc = probelib.local_learning_coefficient(trace)
stiffest = n_beta * largest_curvature(posterior) + localization
bias = step_size * stiffest / 4
scale = np.sqrt(np.diag(exact.kernel))
exact_r = (exact.kernel / scale[:, None] / scale)[np.ix_(at, at)]
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
# - **Hard is relative to the posterior.** More data weight ($n\beta$) or a stronger localization ($\gamma$)
#   shrinks the cloud and all gains with it. Compare gains within a run, not across settings.
# - **The mean hides the spread.** The hard sample's loss falls in many draws. Its gain is positive
#   because a loss has more room to rise than to fall.
# - **Draws are not independent.** A chain remembers where it was. The errors above account for it;
#   dividing by the square root of the number of draws would not.
# - **Two weights are kind.** This loss is convex, with one minimum. In a network the chains may find
#   directions they have not explored by the time you stop; {doc}`chapter 1 <01_local_posterior>`
#   shows how to notice.

# %%
trust = probelib.diagnostics(trace)
chapter.record(rhat_max=trust.rhat_max, ess_min=trust.ess_min)
chapter.say(
    "Here: largest R-hat {rhat_max:.3f}, smallest effective sample size {ess_min:.0f} of "
    "{chains} × {draws} draws."
)

# %% [markdown]
# ## A map of the book
#
# | chapter | question |
# | --- | --- |
# | {doc}`1 · The local posterior <01_local_posterior>` | Does the sampler sample what it should? Every answer that is known exactly, three errata, and how to choose the settings. |
# | {doc}`2 · Loss gain on MNIST <02_loss_gain>` | Which digits does a network hold by a thread, and is that just their loss? |
# | {doc}`3 · Memorization <03_memorization>` | Can the probe tell what was memorized from what was learned? |
# | {doc}`5 · The LLC sum identity <05_llc_identity>` | Do the gains add up to the learning coefficient, and is the estimate right where the answer is known? |
# | {doc}`6 · Singular fluctuation <06_singular_fluctuation>` | What is the kernel's trace, and what does one data set know of it? |
# | {doc}`7 · Influence functions <07_influence_functions>` | When is the kernel the classical influence, and which of the two predicts retraining? |
# | {doc}`Errata <../errata>` | Seven places where the paper needs a correction. |
# | {doc}`Glossary <../glossary>` and {doc}`API <../api>` | The words, and the library. |
#
# ## Summary
#
# A Bayesian probe is a cloud of weights around a trained model and the losses along it. The mean
# change of a sample's loss is its loss gain; the covariance of two samples' changes is their kernel.
# The recipe does not depend on there being two weights: the same three calls run on any network.
# What does get harder is knowing that the cloud is right, and that is the
# {doc}`next chapter <01_local_posterior>`.
#
# **References.** The local learning coefficient: {cite:t}`lau2025llc`. The covariance of losses as a
# kernel between samples: {cite:t}`iba2024wkernel` and {cite:t}`thomas2018reconciling`; its close
# relatives for networks, the Bayesian influence function of {cite:t}`anonymous2025bif` and the
# susceptibilities of {cite:t}`baker2025susceptibilities`. Why networks are singular models:
# {cite:t}`wei2023singular`.

# %%
chapter.finish(
    "loss gain easy {gain_easy:.4f}, hard {gain_hard:.3f} ± {gain_hard_mcse:.3f} "
    "(exact {exact_gain_hard:.3f}); R hard-friend {r_hard_friend:+.2f}, hard-rival {r_hard_rival:+.2f}"
)
