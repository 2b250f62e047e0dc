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
# # The loss kernel, tested
#
# **Claim.** *The loss kernel finds structure that a network learned.* The paper shows neighbours, and
# compares them with nothing. Here the kernel stands beside features, gradients, logits and pixels, on two
# networks, on structure that was planted, and at work.

# %% [markdown] tags=["about"]
# This is the second part of {doc}`chapter 04 <04_loss_kernel>`. It does what referees of the follow-up paper
# asked for: rank correlations and clusterings with errors, a comparison with the similarity of features, more
# than one network, and a use. Nothing of it is in the paper.
#
# | profile | what runs | two cores |
# | --- | --- | --- |
# | `smoke` | 40 photographs at 96 pixels, tiny planted problems: not a result | a minute or two |
# | `laptop` | 1,000 photographs of InceptionV1 and 250 of EfficientNet-Lite0 (kept runs); planted structure and uses in full | a quarter of an hour |
# | `paper` | 2,500 photographs, both kernels anew | a GPU |

# %% tags=["hide-input"]
from pathlib import Path

import numpy as np
import torch
from IPython.display import HTML

import probelib
from probebook import alignment as al
from probebook import figures, leaks, planted, removals
from probebook import similarity_tests as st
from probebook.cache import cache_dir
from probebook.chapter import Chapter
from probebook.chapters import loss_kernel as kernels
from probebook.chapters import loss_kernel_sweeps as sweeps
from probebook.chapters import loss_kernel_tested as helpers
from probebook.classifiers import first_classifier
from probebook.imagenet import choose, decode, find_images
from probebook.maps import maps_html
from probebook.prerun import gradients_at_rest, kept_gradients, kept_pairs
from probebook.wordnet import imagenet_classes, wu_palmer

# %% tags=["parameters"]
profile: str = "laptop"  # smoke, laptop or paper
seed: int = 0  # of the photographs, the walks, the halves and the maps
results_dir: str = "../results/live"  # where this chapter's numbers go
live: bool = True  # False when the driver runs it
classifier_name: str = "inception_v1"  # or googlenet, efficientnet_lite0, torchvision:NAME, timm:NAME
second_name: str = "efficientnet_lite0"  # the second network; "": none
device: str = "auto"  # cuda, cpu; auto takes a GPU if there is one
n_images: int = 1000  # photographs of the first network
second_images: int = 250  # photographs of the second
image_size: int = 0  # side in pixels; 0: what a network was trained on
n_beta: float = 10.0  # n beta
localization: float = 3e4  # gamma of the first network: chapter 04's
second_localization: float = 1e5  # gamma of the second
chains: int = 8  # independent walks of gradient pairs
pairs: int = 2  # gradient pairs per walk of the first network
second_pairs: int = 1  # the same of the second
depths: list = [5, 6, 7]  # of the WordNet tree; the root's is 1
planted_seeds: int = 5  # planted problems
planted_walks: int = 32  # walks on each of them
leak_seeds: int = 5  # problems with leaks
removal_seeds: int = 3  # training sets of the wrong predictions
small: bool = False  # planted problems and uses in a few seconds
prerun_dir: str = "../results/prerun"  # kept runs; "": none

# %% tags=["remove-input"]
chapter = Chapter(
    "04_loss_kernel_tested",
    profile=profile,
    results_dir=results_dir,
    parameters=globals(),
)

# %% [markdown]
# ## Seven similarities of the same photographs
#
# *Loss kernel*: $R_{ij}$, the correlation of the losses of two photographs under the local posterior, from
# gradient pairs of all weights ({doc}`chapter 04 <04_loss_kernel>`). Its rivals need no posterior, and a
# minute or less:
#
# - *features*: the cosine of penultimate features, and *centred features*: the same with their mean taken
#   off, which is what linear CKA compares;
# - *gradients*: the cosine of the gradients of the loss at $w^*$, for all weights;
# - *logits*, centred, and *pixels*, centred, as cosines;
# - *weights of the labels*: the cosine of the two labels' rows in the last layer. It looks at no photograph.

# %% tags=["hide-input"]
available = find_images()
if available.stand_in:  # a demonstration, not a result
    n_images, second_name, image_size, prerun_dir = 24, "", 64, ""
    chains, pairs = 4, 1
if device == "auto":
    device = "cuda" if torch.cuda.is_available() else "cpu"


def photographs_of(name, count):
    """A network, and photographs at its size, with their labels."""
    fallback = ["efficientnet_lite0"]
    classifier = first_classifier([name, *fallback])
    files = choose(available, count, seed=seed)
    side = image_size or classifier.size
    decoded = decode(files, side, cache=cache_dir("images"))
    files = files.subset(decoded.kept)
    return classifier, files, decoded


# %%
classifier, files, decoded = photographs_of(classifier_name, n_images)
network, images = classifier.network.to(device), decoded.tensor().to(device)
logits = helpers.apply(network, images)
labels = np.where(decoded.labels >= 0, decoded.labels, logits.argmax(1))
targets = torch.from_numpy(labels).to(device)
classes = imagenet_classes()
names = [classes[i].name for i in labels]
paths = [each.path for each in classes]


# %%
def kernel_parts(classifier, images, targets, gamma, walk_pairs):
    """The kernel by each of four parts of the walks, kept or made here."""
    posterior = probelib.LocalPosterior(
        classifier.network,
        probelib.cross_entropy,
        (images, targets),
        n_beta=n_beta,
        localization=gamma,
    )
    kept = None
    if prerun_dir:
        kept = kept_pairs(Path(prerun_dir), classifier.name, posterior)
    if kept is not None:
        return posterior, kept.kernels, kept
    found = probelib.gradient_pairs(
        posterior,
        chains=chains,
        pairs=walk_pairs,
        seed=seed,
        batch_size=8 if device == "cpu" else 64,
        cache=cache_dir("pairs"),
    )
    return posterior, sweeps.kernels_of_parts(found, 4), None


# %%
posterior, parts, kept = kernel_parts(
    classifier, images, targets, localization, pairs
)
r = helpers.correlation_of(parts)
without = helpers.without_each(parts)
gradients = (
    kept_gradients(Path(prerun_dir), classifier.name, posterior)
    if prerun_dir
    else None
)
if gradients is None:
    gradients = gradients_at_rest(posterior)
embedding = helpers.embedding_of(classifier, images)

# %%
similarities = {
    "loss kernel": r,
    "features": al.cosine(embedding),
    "centred features": al.cosine(embedding - embedding.mean(0)),
    "gradients": gradients,
    "logits": al.cosine(logits - logits.mean(0)),
    "pixels": helpers.pixel_cosine(decoded),
    "weights of the labels": kernels.label_weights(network.cpu(), labels),
}

# %% tags=["remove-input"]
network.to(device)
helpers.record_kernel(
    chapter,
    classifier,
    parts,
    kept,
    labels,
    localization,
    available.stand_in,
)
if available.stand_in:
    chapter.say(helpers.DEMONSTRATION)
chapter.say(
    "{network}, {n_images:,} photographs of {n_classes:,} classes ({image_source}). Kernel at γ = "
    "{localization:,.0f}: {made}; reliability of half of the walks {reliability_local:.3f}, of all "
    "{reliability_of_both:.3f}. The halves share {neighbours_shared_halves:.0%} of five neighbours."
)

# %% [markdown]
# ## Which of them knows meaning?
#
# Each is held against WordNet, in the same ways:
#
# - *rank correlation*: Spearman's, of the similarity with WordNet's (Wu and Palmer) over all pairs of
#   photographs; where a set has one photograph per class, all pairs are cross-label pairs;
# - *top 5*: the mean WordNet similarity of the five nearest photographs of another label;
# - *clusters*: spectral clustering of the graph of ten nearest neighbours, into as many clusters as WordNet
#   has groups at a depth, held against these groups by normalised mutual information (NMI) and purity.
#
# An interval is over photographs (random halves of them), and for the kernel over walks as well (the
# jackknife over four parts). Chance deals out the labels anew. {numref}`fig-similarities-meaning` has three of
# these numbers.

# %%
wordnet = wu_palmer(paths)
meaning = st.Meaning(
    labels, wordnet, {depth: st.groups_at(paths, depth) for depth in depths}
)
measured = {
    name: st.measured(
        meaning.measure,
        similarity,
        parts=without if name == "loss kernel" else (),
        seed=seed,
    )
    for name, similarity in similarities.items()
}
chance = {
    name: meaning.chance(similarity, seed)
    for name, similarity in similarities.items()
}

# %% tags=["remove-input"]
rows = helpers.meaning_rows(chapter, measured, chance, depths)
chapter.table(
    rows,
    "Seven similarities against WordNet: value [95 % interval], chance in brackets.",
)
chapter.say(helpers.meaning_in_words(chapter))

# %% tags=["key-figure"] mystnb={"figure": {"caption": "What seven similarities of the same photographs know of WordNet: points with 95 % intervals, and what chance gives (open markers). Look at how far each is from chance, and from plain features.", "name": "fig-similarities-meaning"}, "image": {"alt": "Three panels of points with intervals for seven similarities: rank correlation with WordNet, WordNet similarity of the five nearest, and normalised mutual information of clusters; chance as open markers."}}
figures.interval_panels(
    {
        "Spearman with WordNet": helpers.column(
            measured, "spearman_wordnet"
        ),
        "WordNet, cross-label top 5": helpers.column(
            measured, "top5_wordnet"
        ),
        f"NMI, depth {depths[-1]}": helpers.column(
            measured, f"nmi_{depths[-1]}"
        ),
    },
    {
        "Spearman with WordNet": helpers.column(chance, "spearman_wordnet"),
        "WordNet, cross-label top 5": helpers.column(
            chance, "top5_wordnet"
        ),
        f"NMI, depth {depths[-1]}": helpers.column(
            chance, f"nmi_{depths[-1]}"
        ),
    },
)

# %% [markdown]
# ### Does the kernel know anything that features do not?
#
# A partial rank correlation takes what features explain off both the kernel and WordNet, and correlates what
# is left. If it is zero, the kernel's meaning is that of features. What features explain is a step function of
# them (50 strata), since a curved relation would leave something over.

# %%
rivals = [name for name in similarities if name != "loss kernel"]


def partial(given):
    """Rank correlation of the kernel with WordNet, given others."""
    others = [similarities[name] for name in given]
    return st.measured(
        st.partial_wordnet(meaning, len(given)),
        np.stack([r, *others]),
        [np.stack([part, *others]) for part in without],
        seed=seed,
    )


given_features = partial(["centred features"])
given_all = partial(rivals)

# %% tags=["remove-input"]
chapter.record(
    **given_features["partial"].numbers("partial_wordnet_given_features"),
    **given_features["reverse"].numbers("partial_features_given_kernel"),
    **given_all["partial"].numbers("partial_wordnet_given_all"),
)
chapter.say(helpers.partial_in_words(chapter))

# %% [markdown]
# ## A second network
#
# EfficientNet-Lite0 has other layers, batch normalisation, and fewer weights. Do the two networks find the same
# photographs alike? The agreement of two kernels is their correlation over pairs, corrected for the noise of
# both walks; beside it stands that of the two networks' features.

# %%
other = None
if second_name:
    second, second_files, second_decoded = photographs_of(
        second_name, second_images
    )
    second_x = second_decoded.tensor().to(device)
    second_labels = second_decoded.labels
    second.network.to(device)
    second_posterior, second_parts, second_kept = kernel_parts(
        second,
        second_x,
        torch.from_numpy(second_labels).to(device),
        second_localization,
        second_pairs,
    )
    at = helpers.positions(files, second_files)
    other = helpers.Second(
        second,
        second_parts,
        helpers.embedding_of(second, second_x),
        second_labels,
        at,
    )

# %% tags=["remove-input"]
if other is None:
    chapter.record(networks=classifier.name)
else:
    rows = helpers.network_rows(
        chapter, classifier, other, parts, embedding, meaning, seed
    )
    chapter.table(
        rows, f"Two networks on the same {len(other.at)} photographs."
    )
    chapter.say(helpers.networks_in_words(chapter))

# %% [markdown]
# ## Planted structure
#
# On photographs nobody knows which ones a network *should* treat alike. So a problem is made whose answer is
# known. Each sample names a task, and the task decides which block of inputs holds the answer; several tasks
# share a block, the *mechanism*. Blocks are noise, labels are balanced, and most of what makes two inputs
# similar decides nothing. Which similarity, taken from the trained network, finds pairs of different tasks that
# share a mechanism? *Size only* scores a pair by the absolute value, for every method alike: two samples that
# rely on the same weights with opposite labels may well move against each other. {numref}`fig-planted` shows
# the similarities of one problem.

# %%
designs = {
    "one hidden layer": planted.WIDE,
    "three hidden layers": planted.DEEP,
}
if small:
    designs = {"one hidden layer": helpers.SMALL_PLANTED}
recoveries = {
    name: planted.measure(
        design, seeds=range(planted_seeds), chains=planted_walks
    )
    for name, design in designs.items()
}

# %% tags=["remove-input"]
rows = helpers.planted_rows(chapter, recoveries)
chapter.table(
    rows,
    "AUROC for pairs of different tasks that share a mechanism: mean over seeds [95 % interval].",
)
chapter.say(helpers.planted_in_words(chapter))

# %% mystnb={"figure": {"caption": "Similarities of the samples of one planted problem, sorted by mechanism, then task, then label. White lines part the mechanisms. Look for blocks on the diagonal that are larger than a task.", "name": "fig-planted"}, "image": {"alt": "Three square matrices of similarities, of the loss kernel, of features and of gradients, with lines between the mechanisms."}}
first = next(iter(recoveries.values()))
figures.planted_matrices(
    {
        "loss kernel": first.matrices["kernel"],
        "features": first.matrices["features"],
        "gradients": first.matrices["gradients"],
    },
    first.mechanism,
)

# %% [markdown]
# ## At work: leaks
#
# Test images that are copies of training images make a test worthless. Some test images of Fashion-MNIST (of
# MNIST, where it cannot be had) are replaced by copies of training images, a little shifted, turned, darkened
# or with noise. Whose nearest training image is the source? The kernel comes from $S$ weighted draws
# (`leak_size.draws`), so that $R$ has noise of about $1/\sqrt S$; its rivals have none.

# %%
leak_size = helpers.SMALL_LEAKS if small else leaks.LeakSize()
search = leaks.search_leaks(leak_size, seeds=range(leak_seeds))

# %% tags=["remove-input"]
chapter.record(
    **search.numbers(), use_data=leaks.load_images("fashion")[0].source
)
chapter.table(
    helpers.leak_rows(search),
    "Copies whose source is found first, and AUROC of the nearest one's similarity for copies against honest "
    "images: mean over seeds [95 % interval].",
)
chapter.say(helpers.leaks_in_words(chapter, search))

# %% [markdown]
# ## At work: what holds a wrong prediction?
#
# A small network is wrong about an image. Which training images hold that prediction? Each method names as many
# of them, they are removed, and the network is trained again from the same start. The kernel names those of
# most negative $K$ or $R$ with the image's loss ({doc}`07_influence_functions` has the sign); features and
# pixels, the nearest of the predicted class.

# %%
removal_size = helpers.SMALL_REMOVALS if small else removals.RemovalSize()
removed = removals.over_training_sets(
    removal_size, seeds=range(removal_seeds)
)

# %% tags=["remove-input"]
budget = max(removal_size.budgets)
chapter.record(
    **removed.numbers(),
    **{f"use_wrong_budget_{each}": each for each in removal_size.budgets},
)
for name in ("kernel", "correlation", "features"):
    of_budget = removed.row(name, budget).corrected
    chapter.record(**of_budget.numbers(f"use_wrong_{name}"))
chapter.table(
    helpers.removal_rows(removed, removal_size.budgets),
    "Removing the images that each method names: mean over queries [95 % interval].",
)
chapter.say(helpers.removals_in_words(chapter, removed, budget))

# %% [markdown]
# ## Two maps
#
# t-SNE places photographs near those they are similar to. On the left the loss kernel decides, on the right
# the centred features.

# %% tags=["remove-input"]
thumbnails = torch.nn.functional.interpolate(
    decoded.tensor().float(), size=48, mode="area"
)
HTML(
    maps_html(
        names,
        {
            "loss kernel": r,
            "centred features": similarities["centred features"],
        },
        images=thumbnails.round().to(torch.uint8).numpy(),
        note=f"{len(labels):,} photographs, {chapter.numbers['network']}.",
        name="maps",
        seed=seed,
    )
)

# %% [markdown]
# ## What could fool you
#
# - **Meaning is not truth.** WordNet knows kinds, not colours, scenes or layouts. A similarity that is far from
#   WordNet may be right about the network.
# - **The kernel's noise.** An estimated similarity loses rank correlation to its noise, exact ones do not. The
#   reliability above says how much there is to lose.
# - **One photograph per class.** All pairs are cross-label pairs then, and the weights of the labels look like
#   the best similarity because they know the classes.
# - **Planted is not found.** The planted problem has one kind of structure and small networks. What wins there
#   need not win on photographs.
# - **Budgets.** Features cost one forward pass. Every comparison here gives each method the same number of
#   samples to name, not the same seconds.

# %% [markdown]
# ## Exercises
#
# **1.** Photographs that the network is sure of have small, heavy-tailed losses. Leave out the half with the
# smallest losses at $w^*$. Does the kernel's rank correlation with WordNet rise?

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the answer"}
loss = torch.nn.functional.cross_entropy(
    torch.from_numpy(logits), torch.from_numpy(labels), reduction="none"
)
unsure = np.flatnonzero(loss.numpy() >= np.median(loss))
half = meaning.measure(r[np.ix_(unsure, unsure)], unsure)
chapter.record(exercise_unsure_spearman=half["spearman_wordnet"])
chapter.say(
    "It is **{exercise_unsure_spearman:.3f}** without them, and {spearman_wordnet_kernel:.3f} with all."
)

# %% [markdown]
# **2.** Average the ranks of the kernel and of the centred features. Are the neighbours of this similarity closer
# in meaning than those of either?

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the answer"}
both = helpers.mean_rank(r, similarities["centred features"])
found = meaning.measure(both, np.arange(len(labels)))
chapter.record(
    exercise_both_top5=found["top5_wordnet"],
    exercise_both_spearman=found["spearman_wordnet"],
)
chapter.say(
    "Top 5: **{exercise_both_top5:.3f}**, of the kernel {top5_wordnet_kernel:.3f}, of centred features "
    "{top5_wordnet_centred_features:.3f}. Rank correlation: {exercise_both_spearman:.3f}."
)

# %% [markdown]
# ## Summary

# %% tags=["remove-input"]
chapter.say(
    helpers.DEMONSTRATION
    if available.stand_in
    else helpers.summary(chapter)
)

# %% [markdown]
# Next: {doc}`chapter 05 <05_llc_identity>` adds the loss gains up to the learning coefficient.
#
# **References.** WordNet similarity: {cite:t}`wu1994verb`. The original network: {cite:t}`szegedy2015going`.

# %% tags=["answer"]
chapter.answer(*helpers.answer(chapter, available.stand_in))

# %% tags=["remove-input"]
chapter.finish(helpers.headline(available.stand_in))
