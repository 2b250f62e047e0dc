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
# # The loss kernel on ImageNet
#
# **Claim.** *Photographs whose losses move together under the local posterior are related, and not
# only by their label.* The paper shows chosen neighbours. Here they are counted, against chance, and their
# errors are known.

# %% [markdown] tags=["about"]
# This chapter reproduces the ImageNet half of the paper's section 4, its Appendix A.5 and Figures 2
# to 5: the original InceptionV1 is probed, and for every photograph its most correlated others are
# shown. It adds randomly chosen references, and three checks: is the network under these perturbations
# still the network, how many draws does a neighbour need, and are the neighbours closer in meaning than
# chance would have them? The tools come after the result. The second part of the chapter,
# {doc}`04_loss_kernel_tested`, holds the kernel against its rivals, on more networks, and puts it to use.
#
# | profile | what runs | two cores |
# | --- | --- | --- |
# | `smoke` | 40 photographs at 96 pixels, a few draws: not a result | minutes |
# | `laptop` | 1,000 photographs; the whole network by gradient pairs (kept run), its last module by SGLD; Table 1's row at reduced size (kept run) | half an hour |
# | `paper` | 2,500 photographs, Table 1's row exactly, gradient pairs anew | a GPU |
#
# Without ImageNet's photographs, every profile is a demonstration on a stand-in: about a minute, and not a
# result.

# %% tags=["hide-input"]
import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from IPython.display import HTML, display

import probelib
from probebook import alignment as al
from probebook import figures, prerun
from probebook.cache import cache_dir
from probebook.chapter import Chapter
from probebook.chapters import loss_kernel as helpers
from probebook.chapters import loss_kernel_sweeps as sweeps
from probebook.chapters import loss_kernel_words as words
from probebook.classifiers import first_classifier
from probebook.devices import available_devices, sample_over
from probebook.explorer import Samples, explorer_html
from probebook.imagenet import choose, decode, find_images
from probebook.wordnet import imagenet_classes, wu_palmer
from probelib import plotting

# %% tags=["parameters"]
profile: str = "laptop"  # smoke, laptop or paper
seed: int = 0  # of the choice of photographs, the walks, the chains and the permutations
results_dir: str = "../results/live"  # where this chapter's numbers go
live: bool = True  # False when the driver runs it
classifier_name: str = "inception_v1"  # or googlenet, efficientnet_lite0, torchvision:NAME, timm:NAME
device: str = "auto"  # cuda, cpu; auto takes a GPU if there is one
n_images: int = 1000  # photographs observed (the paper: 2,500)
n_sampling: int = (
    0  # photographs that define L, 0: those observed (the paper: 50,000)
)
image_size: int = 0  # side in pixels; 0: what the network was trained on
n_beta: float = 10.0  # n beta, Table 1
localization: float = (
    3e4  # gamma of this chapter's kernel; the sweep shows why
)
chains: int = 8  # independent walks of gradient pairs
pairs: int = 2  # gradient pairs per walk
gammas: list = [1e3, 1e4, 3e4, 1e5]  # the sweep of gamma, the paper's first
n_betas: list = [10.0, 20.0, 40.0]  # the sweep of n beta, whole network
head_n_betas: list = [10.0, 100.0, 300.0]  # the same for its last module
n_sweep: int = 120  # photographs in the sweeps
sweep_chains: int = 4  # walks of the sweeps, of one gradient pair each
chain_draws: int = (
    20  # draws of the whole network's chains in the first figure
)
head_chains: int = 2  # SGLD chains of the last module
head_draws: int = 300  # draws of each
n_steps: int = 200  # steps of the comparison of step sizes
rule_samples: int = 64  # samples of the trial of pairs and draws
rule_draws: int = 100  # its weighted draws
table1_localization: float = 1000.0  # gamma, Table 1
table1_step_size: float = 1e-4  # epsilon, Table 1
batch_size: int = 64  # m, Table 1
table1_chains: int = (
    0  # C of Table 1's row, run here; 0: take the kept run (the paper: 30)
)
table1_draws: int = 1000  # T, Table 1
table1_burn_in: int = 100  # b, Table 1
prerun_dir: str = "../results/prerun"  # kept runs; "": none
published_dir: str = "../results/laptop"  # the published run's numbers
permutations: int = 1000  # of the labels

# %% tags=["remove-input"]
chapter = Chapter(
    "04_loss_kernel",
    profile=profile,
    results_dir=results_dir,
    parameters=globals(),
)

# %% [markdown]
# ## Photographs and network
#
# Photographs come from `PROBELIB_IMAGENET` (one folder per class, or the flat validation set), else from
# `PROBELIB_DATA`, else from packages that are installed anyway. The last are a stand-in.

# %% tags=["hide-input"]
available = find_images()
if available.stand_in:  # a demonstration of about a minute, not a result
    n_images, n_sweep, image_size = 24, 20, 64
    chains, pairs, sweep_chains, gammas = 4, 1, 3, [localization]
    chain_draws, head_draws, n_steps = 4, 20, 20
    rule_samples, rule_draws = 6, 32
    table1_chains, prerun_dir, permutations = 0, "", 100
if device == "auto":
    device = "cuda" if torch.cuda.is_available() else "cpu"
observation = (
    "auto"  # bfloat16 where it is fast; the chains stay in float32
)
small = (
    10 if device == "cpu" else 250
)  # a batch that stays in a CPU's cache

# %%
files = choose(available, n_images, seed=seed)
wanted = "efficientnet_lite0" if available.stand_in else classifier_name
classifier = first_classifier([wanted, "googlenet", "efficientnet_lite0"])
side = image_size or classifier.size
decoded = decode(files, side, cache=cache_dir("images"))
files = files.subset(decoded.kept)
network = classifier.network.to(device)
images = decoded.tensor().to(device)


@torch.no_grad()
def apply(model, x, batch=small):
    """The model on many inputs, a small batch at a time."""
    return torch.cat([model(part) for part in x.split(batch)])


logits = apply(network, images).float().cpu()
guessed = logits.argmax(1).numpy()
labels = np.where(decoded.labels >= 0, decoded.labels, guessed)
targets = torch.from_numpy(labels).to(device)

# %% tags=["hide-input"]
over = (images, targets)  # what L is the mean over
if n_sampling > len(labels) and not available.stand_in:
    wider = decode(
        choose(available, n_sampling, seed=seed),
        side,
        cache=cache_dir("images"),
    )
    over = (
        wider.tensor(),
        torch.from_numpy(wider.labels),
    )  # a map of the disk; whole on a GPU

# %%
classes = imagenet_classes()
names = [classes[i].name for i in labels]
wordnet = wu_palmer([c.path for c in classes])
meaning = al.meaning_of(wordnet, permutations, seed)

# %% tags=["remove-input"]
helpers.record_photographs(
    chapter,
    classifier,
    decoded,
    files,
    logits,
    labels,
    stand_in=available.stand_in,
    n_sampling=len(over[1]),
    side=side,
)
if available.stand_in:
    chapter.say(words.DEMONSTRATION)
for name, reason in decoded.skipped:
    print(f"skipped {name}: {reason}")
chapter.say(
    "{network}, {n_parameters:,} weights. {n_images:,} images of {n_classes:,} classes at "
    "{image_side} pixels ({image_source}); {n_skipped} could not be read; L is the mean over {n_sampling:,}. Top-1 {top1:.1%}, top-5 "
    "{top5:.1%} of all images; of every fifth, {top1_every_fifth:.1%} and {top5_every_fifth:.1%}."
)


# %% [markdown]
# ## The kernel
#
# Let $w^*$ be the trained weights and $\ell_i(w)$ the loss of photograph $i$. The local posterior (Eq. 1) is
# a law of weights around $w^*$: $p(w) \propto \exp[-n\beta L(w) - \frac\gamma2 \lVert w - w^*\rVert^2]$,
# with the mean loss $L$, its weight $n\beta$ and the localization $\gamma$. The loss kernel is the covariance
# of the losses under it, $K_{ij} = \operatorname{Cov}_w[\ell_i(w), \ell_j(w)]$, and $R_{ij}$ the correlation.
# Two photographs are neighbours where $R_{ij}$ is large: what harms the network on one harms it on the other.
#
# The kernel below is that of all weights of the network. It comes from pairs of gradients, which
# {ref}`a later section <pairs-of-gradients>` explains, with the data term of Eq. 1. A run of about an hour
# on two cores travels with the repository, in parts of the walks. It is used where it fits the photographs
# at hand; then a part of it is computed again, from the same seed, before anything is read from it.


# %%
def posterior_of(model, x, y, gamma, nb=n_beta):
    """The local posterior of a network, or of its last stages."""
    return probelib.LocalPosterior(
        model, probelib.cross_entropy, (x, y), n_beta=nb, localization=gamma
    )


# %%
whole = posterior_of(network, images, targets, localization)
kept_whole = None
if prerun_dir:
    kept_whole = prerun.kept_pairs(Path(prerun_dir), classifier.name, whole)
if kept_whole is None:
    found = probelib.gradient_pairs(
        whole,
        chains=chains,
        pairs=pairs,
        seed=seed,
        batch_size=8 if device == "cpu" else 64,
        cache=cache_dir("pairs"),
    )
    parts = sweeps.kernels_of_parts(found, min(4, chains))
    walk_loss, walk_start = found.loss.values, found.init_loss.values
    walk_weight = found.log_weight.values
else:
    parts, walk_loss = kept_whole.kernels, kept_whole.loss
    walk_start, walk_weight = kept_whole.init_loss, kept_whole.log_weight

# %% tags=["remove-input"]
if kept_whole is None:
    chapter.record(made="this run", verified_images=0)
else:
    check = kept_whole.check
    again = probelib.gradient_pairs(
        posterior_of(
            network.cpu(),
            images[check].cpu(),
            targets[check].cpu(),
            localization,
        ),
        chains=kept_whole.about["config"]["chains"],
        pairs=kept_whole.about["config"]["pairs"],
        seed=kept_whole.about["config"]["seed"],
        batch_size=8,
        cache=cache_dir("pairs"),
    )
    network.to(device)
    helpers.record_kept(chapter, kept_whole, again)
    chapter.say(
        "From a {made}. {verified_images} of its photographs computed again: $R$ differs by at most "
        "{verified_difference:.4f}, the losses by {verified_loss_difference:.3f} nats."
    )

# %% [markdown]
# $R$ comes from all walks together. The parts of the walks share nothing, so their differences tell
# the error. Each neighbour has a q-value: one half of the walks chooses, the other tests.


# %%
def mean_of(some):
    """The mean of several kernels of the same photographs."""
    return probelib.MatrixKernel(np.mean([k.covariance() for k in some], 0))


kernel = mean_of(parts)
r = kernel.correlation()
halves = [mean_of(parts[p::2]).correlation() for p in (0, 1)]
near = al.top(r, min(16, len(labels) - 1))
q_near = al.q_values(near, *halves)
cross = al.cross_label_top(r, labels, 5)

# %% tags=["remove-input"]
helpers.record_kernel(
    chapter, halves, walk_loss, walk_start, walk_weight, labels, cross
)
chapter.record(
    sure_neighbours=float((q_near < 0.05).mean()),
    sure_nearest=float((q_near[:, 0] < 0.05).mean()),
)
chapter.say(
    "The mean loss is {mean_loss_start:.3f} nats at $w^*$, {mean_loss_chain:.3f} along the walks, of whose "
    "draws {draws_that_count:.0%} count under the data term. {draws} "
    "gradients of every photograph estimate $R$ as well as **{effective_draws:,.0f}** independent "
    "draws would. Split-half reliability **{reliability_local:.2f} ± {split_half_reliability_se:.2f}** (± over "
    "photographs), of both halves together {reliability_of_both:.2f}. The halves share **{neighbours_shared_halves:.0%}** of their five nearest neighbours "
    "({shared_top5_by_chance:.1%} by chance). Chosen on one half and tested on the other, "
    "**{sure_nearest:.0%}** of the nearest neighbours and {sure_neighbours:.0%} of the sixteen nearest are "
    "more than chance ($q < 0.05$)."
)

# %% [markdown]
# ## The neighbours
#
# {numref}`fig-neighbours-top` corresponds to the paper's Figure 2, but nobody has chosen it by eye. It shows
# the references whose strongest cross-label neighbour is strongest in both halves of the walks (the smaller
# of its two correlations counts), and none of them is among the neighbours of another.
# {numref}`fig-neighbours-random` is the paper's Figures 3 to 5: references at random, and their nearest.
#
# The best of many candidates look better than they are. Of the neighbours with $q < 0.05$ at most 5 % are
# expected to be unrelated ($R = 0$) to their reference. The others are pale.
#
# Frames tell whether a neighbour has its reference's label. Where the set has one photograph per class
# there is no such neighbour: all you see is cross-label, which the paper calls the more interesting case.

# %%
rank = np.arange(len(r))
in_both = np.minimum(*(half[rank, cross[:, 0]] for half in halves))
chosen = al.apart(np.argsort(-in_both), cross, most=8)


def grid_of(references, k, **options):
    """Some references and their k most correlated photographs."""
    best = near[references, :k]
    return plotting.neighbour_grid(
        decoded.images,
        references,
        best,
        names=names,
        same=labels[best] == labels[references][:, None],
        correlation=r[references[:, None], best],
        q_value=q_near[references, :k],
        **options,
    )


# %% tags=["key-figure"] mystnb={"figure": {"caption": "References with the strongest cross-label neighbours, each with its five most correlated photographs; whole network. Numbers are R; pale neighbours may be chance. Look at what the five share: kind, background, colour, or use.", "name": "fig-neighbours-top"}, "image": {"alt": "Grid of photographs: up to eight references in bold frames, each followed by its five most correlated photographs with class names and correlations."}}
grid_of(chosen, 5, blocks=2)

# %% mystnb={"figure": {"caption": "References at random, each with its most correlated photographs; whole network. Read the correlations as well as the pictures.", "name": "fig-neighbours-random"}, "image": {"alt": "Grid of photographs: random references in bold frames, each followed by its most correlated photographs with class names and correlations."}}
at_random = np.random.default_rng(seed + 2).choice(
    len(labels), min(10, len(labels)), False
)
grid_of(np.sort(at_random), min(15, near.shape[1]))

# %% [markdown]
# What one person saw in the published run, before anything was counted. Among the strongest, *kind* comes
# first: cars find cars, a wok finds plates of food, a curly-coated retriever finds dogs, a bookcase finds a
# bookshop and comic books. *Shape* comes second: a slug finds an eel and a sea snake. *Colour* is there as
# well: chocolate sauce stands beside a cockroach and a crayfish. Among the references at random it is another
# matter. The Pomeranian finds small furry animals and the space bar of a typewriter finds machines. An ice
# bear finds animals, a boathouse things by the water. For a coucal, a hook and a stretcher the viewer could
# name nothing that most of their neighbours share, although nearly all of them are more than chance.
#
# Five photographs beside a sixth always share something. Judge for yourself;
# {ref}`browse all of them below <browse-neighbours>`. The next section counts.
#
# ## Do they mean anything?
#
# WordNet is a tree of meanings, and two classes are similar in it where their paths part late (Wu and
# Palmer's similarity, from 0 to 1). The neighbours of the kernel are held against random deals of the classes
# ({numref}`fig-kernel-agreement`). Beside it stands Spearman's rank correlation of $R$ with WordNet similarity
# over *all* pairs. Three other similarities are held to the same tests:
#
# - *Features*: the cosine of penultimate features.
# - *Weights of the labels* looks at no photograph: it is the cosine of the two labels' rows in the last
#   layer. If noise moved the features of all photographs alike, a loss would change by its label's row times
#   that movement, and $R_{ij}$ would be this cosine: a kernel of labels.
# - *Common part removed* takes each draw's mean over the photographs off every loss, so that what moves all of
#   them at once does not count. (A photograph that hardly moves is then left with little but that mean,
#   turned around: such photographs correlate for no better reason.)

# %%
trunk, last_stages = (
    part.to(device) for part in classifier.split(classifier.head)
)
features = apply(trunk, images)
embed = torch.nn.Sequential(*list(last_stages)[:-1]).eval()
embedding = apply(embed, features).flatten(1).cpu().numpy()
feature_r = al.cosine(embedding - embedding.mean(0))
class_r = helpers.label_weights(network, labels)
without_common = al.without_common_part(kernel.covariance())
measured = {
    "loss kernel": r,
    "common part removed": probelib.MatrixKernel(
        without_common
    ).correlation(),
    "features": feature_r,
    "weights of the labels": class_r,
}
among = wordnet[np.ix_(labels, labels)]
results = {name: meaning(of, labels) for name, of in measured.items()}
main = results["loss kernel"]

# %% tags=["remove-input"]
rows = helpers.alignment_rows(chapter, measured, labels, among, meaning)
helpers.record_agreement(chapter, measured, halves, main)
chapter.record(
    wordnet_top5_se=al.similarity_error(cross, labels, wordnet),
    loss_gain_mean=float((walk_loss.mean((0, 1)) - walk_start).mean()),
)
chapter.table(
    rows, "Neighbours and all pairs, by the kernel that names them."
)

# %% mystnb={"figure": {"caption": "WordNet similarity of the five nearest cross-label neighbours: the classes dealt out at random under the loss kernel's neighbours (grey), and what each kernel's neighbours have; the table has each kernel's own interval. Look at the distance from the grey, and between the kernels and plain features.", "name": "fig-kernel-agreement"}, "image": {"alt": "A grey histogram of similarities under permutation, and labeled vertical lines for the loss kernel, its variants and penultimate features."}}
figures.permutation_picture(
    main.null,
    {name: aligned.value for name, aligned in results.items()},
    "WordNet similarity of the cross-label top 5",
)

# %% tags=["remove-input"]
chapter.say(
    "Neighbours in the loss kernel have a WordNet similarity of **{wordnet_top5_cross_label:.3f} ± "
    "{wordnet_top5_se:.3f}** (± over references); "
    "chance gives {wordnet_chance:.3f} [{wordnet_interval_low:.3f}, {wordnet_interval_high:.3f}]. "
    "Over all pairs the rank correlation with WordNet is {spearman_wordnet:.3f}, with features "
    "{feature_agreement:.3f}."
)

# %% [markdown]
# ### Hubs
#
# Some photographs are among the neighbours of very many. The network is sure of most of these: their losses
# are near zero, except in a few draws, and whatever else moves in these draws is their neighbour. The table
# counts how often each photograph is one of five. *Robust scale* divides $K_{ij}$ by the median absolute
# deviations of the two losses along the walks in place of their standard deviations, which heavy tails
# inflate.

# %%
robust = helpers.robust_similarity(kernel.covariance(), walk_loss)
hubs = {
    "loss kernel": r,
    "loss kernel, robust scale": robust,
    "common part removed": measured["common part removed"],
    "features": feature_r,
}

# %% tags=["remove-input"]
rows = helpers.hub_rows(chapter, hubs, labels, walk_start, meaning)
chapter.table(rows, "How often a photograph is among the five of another.")
chapter.say(words.hubs_in_words(chapter))

# %% [markdown]
# ## Is the network still itself?
#
# Now the tools, and the choice of $\gamma$. Table 1 probes InceptionV1 at $\gamma = 1000$: every weight
# receives noise of standard deviation $\gamma^{-1/2} = 0.03$. With $n\beta = 10$, the data term is worth ten
# samples against all weights of the network, so little pulls the network back. {numref}`fig-imagenet-chains`
# follows the mean loss of a few short chains of the whole network from $w^*$, beside the loss of guessing
# among 1,000 classes, $\log 1000 = 6.9$ nats.

# %%
rng = np.random.default_rng(seed)
some = np.sort(
    rng.choice(len(labels), min(n_sweep, len(labels)), replace=False)
)
seen = np.sort(rng.choice(some, max(20, len(some) // 2), replace=False))
along = {}
for gamma in (table1_localization, localization, 10 * localization):
    settings = prerun.long_step(n_beta, gamma)
    step, nb = settings["step_size"], settings["n_beta"]
    along[gamma] = probelib.sample(
        posterior_of(network, *over, settings["localization"], nb),
        observe=(images[seen], targets[seen]),
        sampler=probelib.SGLD(step, batch_size=min(16, len(labels))),
        chains=1,
        draws=chain_draws,
        seed=seed,
        observe_dtype=observation,
        observe_batch_size=small,
        cache=cache_dir("traces"),
    )
at_center = float(along[localization].init_loss.mean())

# %% mystnb={"figure": {"caption": "Mean loss of the photographs along chains of the whole network, for three localizations (the paper's is 1,000). Half of the photographs of the sweep below are observed. The dashed line is the loss of the trained network, the dotted one that of guessing. A chain above the dotted line does worse than a network that knows nothing.", "name": "fig-imagenet-chains"}, "image": {"alt": "Line chart of mean loss against draws on a log axis, one line for each of three localizations, with horizontal lines at the loss of the trained network and of guessing."}}
figures.chain_losses(
    {f"γ = {g:,.0f}": t.loss.values.mean(-1) for g, t in along.items()},
    at_center,
    float(np.log(logits.shape[1])),
)

# %% tags=["remove-input"]
chapter.record(
    chain_loss_start=at_center,
    **{  # a chain that keeps half forgets in a few
        f"chain_loss_gamma_{gamma:.0f}": float(
            trace.loss.values[:, chain_draws // 4 :].mean()
        )
        for gamma, trace in along.items()
    },
)

# %% [markdown]
# (These chains take long steps that keep the posterior, and minibatches of 16; the section after next
# says how.)
#
# (pairs-of-gradients)=
# ## A kernel from pairs of gradients
#
# Where the data term is small, Eq. 1 is nearly its other factor,
# $\mathcal N(w^*, \gamma^{-1} I)$, and for a Gaussian the kernel has a second form. With
# $w_\theta$ a copy of $w$ that correlates with it by $\theta$,
#
# $$
# K_{ij} = \operatorname{Cov}[\ell_i(w), \ell_j(w)] = \frac{1}{\gamma} \int_0^1
# \operatorname{E}\big[\nabla \ell_i(w)^\top \nabla \ell_j(w_\theta)\big] \, d\theta ,
# $$
#
# exactly, and however far the losses are from linear {cite:p}`houdre1998interpolation`. A sample
# covariance sees each draw as one number per photograph, so that a correlation from $S$ independent
# draws carries noise of $1/\sqrt S$. A pair of gradients is an inner product over all weights at
# once. Close to $w^*$ a single pair is already exact: there $K_{ij} = g_i^\top g_j / \gamma$, the
# linear part that Appendix C isolates. Further out, the mean over pairs adds what is not linear.
# With the data term of Eq. 1, each pair gets the weight $\exp[-n\beta L]$, and each gradient a term with
# that of $L$ (`pair_kernel` does both). Where few draws have all the weight, `limit=True` leaves the term
# out: that is the limit $n\beta \to 0$.
#
# {numref}`fig-imagenet-sweep` sweeps $\gamma$ in this limit. *Reliability* is the correlation, over all pairs of
# photographs, between the $R$ of one half of the walks and that of the other: 0 is noise, 1 is a kernel that
# does not depend on chance. *WordNet similarity* (Wu and Palmer) is that of each photograph's class
# and the classes of its five most correlated photographs of another label.

# %%
x_some, y_some = images[some], targets[some]


def pairs_at(gamma, model=network, x=x_some, walks=sweep_chains, **options):
    """Gradient pairs on part of the images, in walks of one pair each."""
    return probelib.gradient_pairs(
        posterior_of(model, x, y_some, gamma),
        chains=walks,
        pairs=1,
        seed=seed,
        batch_size=8,
        cache=cache_dir("pairs"),
        **options,
    )


# %%
by_gamma = {
    gamma: pairs_at(gamma, by_layer=gamma == localization)
    for gamma in sorted({*gammas, localization, table1_localization})
}
sweep = [
    sweeps.localization_of(gamma, found, labels[some], wordnet, meaning)
    for gamma, found in by_gamma.items()
]
at_rest = float(by_gamma[localization].init_loss.mean())

# %% tags=["remove-input"]
for point in sweep:
    if point.gamma == table1_localization:
        chapter.record(paper_gamma_mean_loss=point.loss)
    chapter.record(**point.numbers())
chapter.record(
    sweep_images=len(some),
    sweep_loss_start=at_rest,
    local_gamma=min(
        (point.gamma for point in sweep if point.kept >= 0.9), default=0.0
    ),
)
# %% tags=["remove-input"]
chapter.table(
    [point.row() for point in sweep],
    "The whole network under noise of precision γ, ± over walks and over photographs, intervals over walks. "
    "Still right: of the photographs that have more than half the probability on their label at $w^*$, those "
    "that have it along the walks.",
)

# %% mystnb={"figure": {"caption": "The sweep of the localization, whole network. Top: mean loss over the draws, beside that of the trained network and of guessing. Middle: reliability of R from half of the walks, with its 95 % interval over photographs. Bottom: WordNet similarity of cross-label neighbours with its interval over walks, and the central 95 % of what chance gives. The vertical line is the paper's setting. Look for the smallest γ at which all three are sound.", "name": "fig-imagenet-sweep"}, "image": {"alt": "Three stacked panels against gamma on a log axis: mean loss with lines for the trained network and for guessing, reliability with a band, and WordNet similarity of neighbours with its own band and that of chance."}}
figures.localization_sweep(
    np.array([point.gamma for point in sweep]),
    sweeps.sweep_panels(sweep, at_rest),
    levels={
        "mean loss (nats)": ("guessing", float(np.log(logits.shape[1])))
    },
    mark=table1_localization,
)

# %% tags=["remove-input"]
chapter.say(words.locality_in_words(chapter, sweep, localization))

# %% [markdown]
# For $\gamma \to \infty$ the kernel becomes the cosine of the gradients at $w^*$, a kernel without noise and
# without a posterior.

# %%
gradient_cosine = (
    prerun.kept_gradients(Path(prerun_dir), classifier.name, whole)
    if prerun_dir
    else None
)
if gradient_cosine is None:
    gradient_cosine = prerun.gradients_at_rest(whole)

# %% tags=["remove-input"]
helpers.record_gradients(
    chapter, r, halves, gradient_cosine, labels, meaning
)
chapter.say(
    "With that cosine the chapter's $R$ correlates by {gradient_agreement:.3f} "
    "(corrected for the noise of $R$: {gradient_agreement_noise_free:.3f}). WordNet similarity of its cross-label "
    "top 5: {gradient_wordnet:.3f}, of the kernel's {wordnet_top5_cross_label:.3f}."
)

# %% [markdown]
# ### The weight of the data
#
# What does $n\beta$ change? The same walks answer for every $n\beta$, as it stands only in their weights and
# in the term with the gradient of $L$. The table goes on until too few draws count; the
# last module, whose data term is smaller, allows a larger $n\beta$.

# %%
by_layer = by_gamma[localization]
last_stage = posterior_of(last_stages, features[some], y_some, localization)
by_head = probelib.gradient_pairs(
    last_stage,
    chains=2 * sweep_chains,
    pairs=1,
    seed=seed,
    batch_size=8,
    cache=cache_dir("pairs"),
)
tempered = [
    sweeps.tempered(what, found, nb, labels[some], wordnet)
    for what, found, values in (
        ("whole network", sweeps.all_layers(by_layer), n_betas),
        ("last module", by_head, head_n_betas),
    )
    for nb in values
]

# %% tags=["remove-input"]
for point in tempered:
    chapter.record(**point.numbers())
chapter.table(
    [point.row() for point in tempered],
    f"{len(some)} photographs at γ = {localization:,.0f}; intervals over walks. The share of draws that count "
    "is an upper bound where it is small.",
)
chapter.say(words.data_term_in_words(chapter, tempered))

# %% [markdown]
# ### Which layers make two photographs alike?
#
# An inner product over all weights is the sum of those over the weights of each layer, so that the kernel
# comes apart by layer (`gradient_pairs(by_layer=True)`, `pair_kernel(layer=...)`).

# %% tags=["remove-input"]
rows = sweeps.layer_rows(
    chapter, by_gamma[localization], labels[some], wordnet
)
chapter.table(
    rows,
    f"The kernel of each stage's weights alone, in the limit of no data term; {len(some)} photographs. Agreement: "
    "correlation over pairs of photographs, corrected for the noise of both.",
)

# %% [markdown]
# ### What can be left out
#
# One gradient of every photograph and every weight takes minutes on two cores. Three ways to make it cheaper,
# on the photographs of the sweep, at the $\gamma$ of this chapter: half the resolution, the last module and
# the classifier alone (a restricted posterior, in the sense of the refined learning coefficient
# {cite:p}`wang2025refined`). The last columns say what is left of the whole network's kernel.

# %% tags=["hide-input"]
last = list(dict(network.named_children()))[-1]
half_size = torch.nn.functional.interpolate(
    x_some.float(), scale_factor=0.5, mode="bilinear", antialias=True
)
variants = {
    "whole network": (network, x_some),
    "half the resolution": (network, half_size),
}
for stage in dict.fromkeys((classifier.head, last)):
    trunk, part = (stages.to(device) for stages in classifier.split(stage))
    variants[f"from {stage} on"] = part, apply(trunk, x_some)

# %% tags=["hide-input"]
reduced = {
    name: sweeps.all_layers(by_layer)
    if part is network and x is x_some
    else pairs_at(localization, part, x)
    for name, (part, x) in variants.items()
}

# %% tags=["remove-input"]
rows = sweeps.reduced_rows(
    chapter, reduced, labels[some], meaning, 2 * sweep_chains
)
chapter.table(
    rows,
    f"{len(some)} photographs, {sweep_chains} walks of one pair. Agreement: correlation over pairs of "
    "photographs, corrected for the noise of both.",
)

# %% [markdown]
# ## How many draws a neighbour needs
#
# The same question for the paper's estimator, the sample covariance over SGLD draws. To afford
# enough draws on two cores, the posterior is restricted here: only the last module and the classifier
# move, and everything before them is computed once. Two facts come first.
#
# **Short steps waste draws.** At Table 1's $\epsilon \gamma = 0.1$ a chain keeps
# $\phi = 1 - \epsilon\gamma/2 = 0.95$ of its place at each step. The mean of a linear observable then
# needs $(1 + \phi)/(1 - \phi) = 39$ steps for one independent draw, a correlation of two of them
# $(1 + \phi^2)/(1 - \phi^2) = 20$: 30,000 draws are worth about 770 for a gain and 1,540 for the kernel.
# At $\epsilon\gamma' = 1$ it keeps one half, and needs 3 and 1.7. The discretisation then widens the
# flat directions by $1/(1 - \epsilon\gamma'/4) = 4/3$, which a potential 4/3 as steep ($n\beta$ and
# $\gamma$ times 4/3) takes back: the same posterior, wherever $n\beta H$ and the minibatch noise are
# small beside $\gamma$.

# %%
head_name, head = classifier.head, last_stages
settings = prerun.long_step(n_beta, localization)
long = settings.pop("step_size")
short = table1_step_size * table1_localization / localization
observed = np.sort(
    rng.choice(len(labels), min(100, len(labels)), replace=False)
)

# %%
compared = {}
for name, step, nb, gamma in (
    ("Table 1's", short, n_beta, localization),
    ("long", long, settings["n_beta"], settings["localization"]),
):
    compared[name] = probelib.sample(
        posterior_of(head, features, targets, gamma, nb),
        observe=(features[observed], targets[observed]),
        sampler=probelib.SGLD(
            step_size=step, batch_size=min(batch_size, len(labels))
        ),
        chains=2,
        draws=n_steps,
        burn_in=100 if n_steps >= 100 else 0,
        seed=seed,
        observe_batch_size=50,
        cache=cache_dir("traces"),
    )

# %% tags=["remove-input"]
chapter.record(
    head=head_name,
    head_parameters=sum(p.numel() for p in head.parameters()),
    head_draws=head_draws,
)
helpers.record_steps(chapter, compared["Table 1's"], compared["long"])
chapter.say(
    "{steps} steps at Table 1's εγ are worth **{kernel_draws_table1_step:.0f}** independent draws for the "
    "kernel, as many long steps **{kernel_draws_long_step:.0f}**: {kernel_draws_ratio:.1f} times as many "
    "(for the mean loss {ess_table1_step:.0f} and {ess_long_step:.0f}). The mean loss gains are "
    "{gain_table1_step:.3f} ± {gain_mcse_table1_step:.3f} and {gain_long_step:.3f} ± "
    "{gain_mcse_long_step:.3f} nats."
)

# %% [markdown]
# **The signal is small.** Gradients of different photographs point nearly anywhere in a space of
# millions of dimensions, so that most $R_{ij}$ should be close to zero, with a few pairs far out. A sample
# covariance has to bring its noise of $1/\sqrt S$ below their spread.
# {numref}`fig-kernel-reliability` shows what the draws reach, and what pairs of gradients reach on the same
# restricted posterior.

# %%
trace = probelib.sample(
    posterior_of(
        head,
        features,
        targets,
        settings["localization"],
        settings["n_beta"],
    ),
    sampler=probelib.SGLD(
        step_size=long, batch_size=min(batch_size, len(labels))
    ),
    chains=head_chains,
    draws=head_draws,
    burn_in=10,
    seed=seed,
    observe_dtype=observation,
    observe_batch_size=50 if device == "cpu" else None,
    cache=cache_dir("traces"),
)

# %%
by_pairs = probelib.gradient_pairs(
    posterior_of(head, features, targets, localization),
    chains=2,
    pairs=5,
    seed=seed,
    batch_size=25,
    cache=cache_dir("pairs"),
)
last_module = helpers.last_module(trace, by_pairs)
r_pairs = probelib.pair_kernel(by_pairs, limit=True).correlation()
r_draws = probelib.loss_kernel(trace).correlation()

# %% mystnb={"figure": {"caption": "Split-half reliability of the correlation kernel of the last module, from one half of the chains against the other, as draws grow: nominal (left) and effective ones (right), in each half; and that of gradient pairs on the same posterior. The dotted line is what noise of one over the root of the effective draws leaves of a signal as wide as gradient pairs find it. Look at where the curve ends: 1 is a kernel without chance in it.", "name": "fig-kernel-reliability"}, "image": {"alt": "Two panels of reliability against the number of draws in one half of the chains, on a log axis: a measured curve for SGLD with a dotted prediction, and one point for gradient pairs."}}
figures.reliability_curves(*last_module.curves())

# %% tags=["remove-input"]
last_module.record(chapter, 10, seed)
helpers.record_last_module(chapter, r, r_pairs)
of_module = {
    "last module only": r_pairs,
    "last module, SGLD draws": r_draws,
}
rows = helpers.alignment_rows(
    chapter, of_module | {"features": feature_r}, labels, among, meaning
)
chapter.table(rows, "Neighbours by the kernel of the last module.")
chapter.say(
    "{sgld_draws} draws of {head} and the classifier ({head_parameters:,} weights) are worth "
    "{sgld_effective_draws:.0f} effective ones and reach a split-half reliability of "
    "**{sgld_split_half_reliability:.3f}**. The signal spreads by {head_signal_spread:.4f} over the "
    "pairs, so that one half would need {head_draws_for_one_half:,.0f} effective draws in each half. "
    "{head_pairs} pairs of gradients reach **{head_pairs_split_half_reliability:.3f}**: as good as "
    "{head_pairs_equivalent_draws:,.0f} independent draws. If both estimate the same kernel, the "
    "covariances of the draws follow those of the pairs with a slope of 1 once they are freed of noise; it "
    "is {draws_on_pairs:.3f}. For $R$ it is {draws_on_pairs_correlation:.3f}: a correlation divides by "
    "noisy variances, and losses of confident photographs have heavy tails. With the whole network's $R$ that of the last "
    "module correlates by {last_module_agreement:.3f}. Verdict on the draws: {sgld_verdict}."
)

# %% [markdown]
# **Pairs or draws?** Pairs win where there are many weights and the weights $\exp[-n\beta L]$ are nearly equal.
# Where the data tilt the posterior strongly, few walks carry all the weight, and independent weighted draws
# or a chain are sooner there: on the MNIST network at Table 1's row, for instance.
# `probelib.pairs_or_draws(posterior)` tries both on a few samples and says which gives $R$ sooner, or that it
# cannot tell. For many samples, `probelib.pair_neighbours` finds the nearest of each without a matrix of all
# pairs.

# %%
trial = probelib.pairs_or_draws(
    posterior_of(head, features, targets, localization),
    samples=rule_samples,
    draws=rule_draws,
    seed=seed,
)

# %% tags=["remove-input"]
chapter.record(rule=str(trial), rule_choice=trial.choice or "not known")
chapter.say("On the last module it says: *{rule}*")

# %% [markdown]
# There is an exact form for a strong tilt as well. Along a Langevin chain $w_t$ of Eq. 1 with tangent flow $J_t$,
# $\operatorname{Cov}[\ell_i, \ell_j] = \int_0^\infty \operatorname{E}[\nabla\ell_i(w_0)^\top J_t^\top
# \nabla\ell_j(w_t)] \, dt$, with one Hessian-vector product per step for each query. In trials it was better than draws
# near linearity, and worse on MNIST at Table 1's row, where its tangents grow. It is not in the library.

# %% [markdown]
# ### The paper's own setting
#
# Table 1's row for InceptionV1: the whole network, $\gamma = 1000$, $\epsilon = 10^{-4}$,
# $C = 30$, $T = 1000$. The `paper` profile runs it as it stands. Elsewhere a kept run stands for
# it, of fewer photographs and draws but with long steps; the sentence below says what it was.

# %% tags=["hide-input"]
run, how = None, ""
if table1_chains:
    how, at = "run here as it stands", np.arange(len(labels))
    run = sample_over(
        available_devices() if device == "cuda" else [device],
        lambda on: posterior_of(
            copy.deepcopy(network).to(on), *over, table1_localization
        ),
        observe=(images, targets),
        sampler=probelib.SGLD(
            step_size=table1_step_size,
            batch_size=min(batch_size, len(labels)),
        ),
        chains=table1_chains,
        draws=table1_draws,
        burn_in=table1_burn_in,
        seed=seed,
        observe_dtype=observation,
        observe_batch_size=small,
        cache=cache_dir("traces"),
    )

# %% tags=["hide-input"]
if run is None and prerun_dir:
    kept = prerun.kept_trace(
        Path(prerun_dir),
        classifier.name,
        posterior_of(network, images, targets, table1_localization),
        [path.name for path in files.paths],
    )
    if kept is not None:
        run, at, about = kept
        how = (
            f"a kept run ({about['device']}, {about['seconds'] / 60:.0f} min) with long steps and "
            f"minibatches of {about['config']['batch_size']}"
        )
row = (
    None
    if run is None
    else helpers.table1_row(run, at, labels[at], meaning)
)

# %% tags=["remove-input"]
if row is None:
    chapter.say(
        "No kept run fits these images and this network: nothing to show for Table 1's row."
    )
else:
    row.record(chapter, how, wordnet, seed)
    row.record_beside(chapter, r, halves, class_r, feature_r, meaning)
    chapter.say(
        "Table 1's row ({table1_how}): {table1_images} photographs, {table1_draws} draws worth "
        "{table1_effective_draws:.0f}. The mean loss goes from {table1_mean_loss_start:.2f} to "
        "**{table1_mean_loss_chain:.2f}** nats. Split-half reliability "
        "{table1_split_half_reliability:.2f}; the mean correlation of a pair is "
        "{table1_correlation_mean:.3f}; WordNet similarity of the cross-label top 5 "
        "**{table1_wordnet:.3f}**, by chance {table1_chance:.3f} "
        "[{table1_interval_low:.3f}, {table1_interval_high:.3f}]. Verdict on the draws: {table1_verdict}."
    )

# %% tags=["remove-input"]
if row is not None:  # the same photographs, two localizations
    chapter.say(
        "On the {table1_images} photographs of Table 1's row: WordNet similarity of the cross-label top 5 "
        "**{table1_wordnet:.3f}** at Table 1's γ, **{table1_kernel_here_wordnet:.3f}** at this chapter's, "
        "{table1_features_wordnet:.3f} by features, {table1_class_wordnet:.3f} by the weights of the labels. "
        "The two kernels correlate by {table1_agreement:.2f}. With the weights of the labels Table 1's "
        "correlates by **{table1_class_agreement:.2f}** and this chapter's by **{class_agreement:.2f}**; "
        "with features by {table1_feature_agreement:.2f} and {feature_agreement_noise_free:.2f} (all "
        "corrected for the noise of the kernels)."
    )

# %% [markdown]
# ## Paper says / this run

# %% tags=["remove-input"]
claims = words.claims(kept_whole is not None, row)
if available.stand_in:
    words.show_open_claims(chapter, claims)
else:
    chapter.compare(claims)

# %% [markdown]
# ## What could fool you
#
# - **Your eyes.** Five photographs beside a sixth always share something. At a reliability near zero
#   they are five at random, and still seem to have a theme. Hence reliability first, permutations second,
#   pictures last.
# - **Heavy tails.** A confident photograph's loss is near zero in most draws and large in a few. Its sample
#   variance, and every correlation that divides by it, rests on those few.
# - **Meaning is not fidelity.** Neighbours above chance tell that the losses of related photographs move
#   together under *these* weights. Where the mean loss is above that of guessing, the trained network's
#   behaviour does not survive these weights, and the losses of labels that are close in the last layer may
#   still rise together. Read the mean loss first, and compare with a kernel that has seen no photograph.
# - **Neighbours are not the kernel.** Few of all pairs are pairs of neighbours. A number over all pairs
#   and a number over neighbours answer different questions; read both.
# - **Weights that few draws carry.** The data term of Eq. 1 weighs the walks by $\exp[-n\beta L]$. Where
#   the share of draws that count is far below 1, the kernel rests on a few of them, and its error bars
#   are infinite; the limit without the data term is then another kernel, not this one.
# - **One photograph per class.** With such a set there are no same-label neighbours to find, and an image's class is its only label for meaning: layout, texture and colour count for
#   nothing in WordNet.
# - **Batch normalisation.** The original InceptionV1 has none. torchvision's GoogLeNet has it after
#   every convolution. In eval mode, the default here, its statistics are frozen, noise on a
#   convolution is scaled by what the trained statistics happen to be, and one $\gamma$ means another
#   strength in every layer. In train mode the statistics follow the noisy weights and undo much of
#   the damage, but then a photograph's loss depends on its batch: the losses of one batch move
#   together for no other reason, and $K_{ij}$ is no longer a function of two samples.
# - **A confident network.** Below a loss of $10^{-7}$ nats, `log_softmax` in float32 is exactly zero and
#   a loss never moves: such a photograph would have no neighbours. `probelib.cross_entropy` works from
#   margins instead.

# %% [markdown]
# (browse-neighbours)=
# ## Browse all neighbours
#
# The sixteen most correlated photographs of every observed one; search for a class, or click a
# neighbour to go on from there. With photographs, the same table is `04_loss_kernel-neighbours.csv` beside
# this chapter's results.

# %% tags=["remove-input"]
thumbnails = torch.nn.functional.interpolate(
    decoded.tensor().float(), size=64, mode="area"
)
photographs = Samples(
    labels,
    thumbnails.round().to(torch.uint8).numpy(),
    ids=[path.name for path in files.paths],
    names={i: classes[i].label for i in np.unique(labels).tolist()},
    loss=walk_start,
    gain=walk_loss.mean((0, 1)) - walk_start,
)
every = np.arange(len(r))
table = probelib.Neighbours(near, r[every[:, None], near], q_near, every)
alike = among[every[:, None], near]
if not available.stand_in:  # the published table stays where it is
    of_class = dict(zip(labels.tolist(), names, strict=True))
    words.write_neighbours(
        chapter, replace(photographs, names=of_class), table, alike
    )
note = f"Whole network, γ = {localization:,.0f}; {chapter.numbers['made']}."
HTML(
    explorer_html(
        photographs, table, wordnet=alike, note=note, name="neighbours"
    )
)

# %% [markdown]
# ## Exercises
#
# **1.** A photograph that the network is very sure of has a loss near zero that moves in few draws. Leave out
# the quarter of the photographs with the smallest losses at $w^*$. Does the WordNet similarity of the
# neighbours rise?

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the answer"}
unsure = np.flatnonzero(walk_start >= np.quantile(walk_start, 0.25))
found = meaning(r[np.ix_(unsure, unsure)], labels[unsure])
chapter.record(
    exercise_unsure_wordnet=found.value,
    exercise_unsure_low=found.low,
    exercise_unsure_high=found.high,
)
chapter.say(
    "It is **{exercise_unsure_wordnet:.3f}** without them (chance: {exercise_unsure_low:.3f} to "
    "{exercise_unsure_high:.3f}), and {wordnet_top5_cross_label:.3f} with all."
)

# %% [markdown]
# **2.** Take only the nearest cross-label neighbour in place of five. Is it closer in meaning than the five
# are on average? What happens to the interval of chance?

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the answer"}
nearest = al.meaning_of(wordnet, permutations, seed, k=1)(r, labels)
chapter.record(
    exercise_nearest_wordnet=nearest.value,
    exercise_nearest_low=nearest.low,
    exercise_nearest_high=nearest.high,
)
chapter.say(
    "The nearest has **{exercise_nearest_wordnet:.3f}**, the five {wordnet_top5_cross_label:.3f}. The "
    "interval of chance goes from {exercise_nearest_low:.3f} to {exercise_nearest_high:.3f}, in place of "
    "{wordnet_interval_low:.3f} to {wordnet_interval_high:.3f}: it rests on fewer pairs."
)

# %% [markdown]
# **3.** A sample correlation from $S$ independent draws has noise of about $1/\sqrt S$. For which $S$ is the
# noise as large as the spread of the true $R_{ij}$ over pairs, so that the reliability is one half?

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the answer"}
spread = chapter.numbers["signal_spread"]
chapter.record(exercise_draws_for_one_half=1 / max(spread, 1e-6) ** 2)
chapter.say(
    "The spread is {signal_spread:.4f}, so $S$ = **{exercise_draws_for_one_half:,.0f}** in each half. The "
    "gradient pairs of this page are worth {effective_draws:,.0f} draws in all."
)

# %% [markdown]
# ## Summary
#
# The chapter asked what the noise leaves of the network, how much of $R$ is chance, and whether the neighbours
# are closer in meaning than a random deal of the labels.

# %% tags=["remove-input"]
chapter.say(
    words.DEMONSTRATION
    if available.stand_in
    else words.summary(chapter, row)
)

# %% [markdown]
# Next: {doc}`the second part <04_loss_kernel_tested>` holds the kernel against its rivals.
#
# **References.** The original network: {cite:t}`szegedy2015going`. The covariance identity:
# {cite:t}`houdre1998interpolation`. WordNet similarity: {cite:t}`wu1994verb`.

# %% tags=["answer"]
published = words.published(Path(published_dir))
if available.stand_in:
    display(HTML(words.NOT_A_RESULT))
    words.show_published(chapter, published, Path(published_dir))
else:
    chapter.answer(*words.answer(chapter, row, localization))
words.record_front(chapter, available.stand_in, published)

# %% tags=["remove-input"]
chapter.finish(
    words.STAND_IN_HEADLINE if available.stand_in else words.HEADLINE
)
