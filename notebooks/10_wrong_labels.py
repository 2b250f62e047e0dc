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
# # Finding wrong labels: a shoot-out
#
# **Claim.** *The loss gain finds wrong labels.* The paper shows it on one network that has memorized them.
# Here the probe stands beside everything else that is used for this, on four data sets, with three kinds of
# noise, before and after memorization.

# %% [markdown] tags=["about"]
# The paper names the detection of anomalies as future work. This chapter goes beyond it. What wins is told, and
# what loses, with errors over seeds.
#
# | profile | what runs | two cores |
# | --- | --- | --- |
# | `smoke` | two data sets of 120 samples, two seeds: not a result | a minute |
# | `laptop` | the whole grid from a kept run, of which a part is made again; the uses in full | a quarter of an hour |
# | `paper` | the same | a quarter of an hour |
#
# `python -m probebook.labels.study --into FILE` makes the grid: about an hour on one core.

# %% tags=["hide-input"]
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import probelib
from probebook import figures, outliers, relabelling
from probebook.cache import cache_dir
from probebook.chapter import Chapter
from probebook.chapters import wrong_labels as helpers
from probebook.labels import scores, study, summaries
from probebook.labels.tasks import source_of
from probebook.mnist import load_mnist
from probebook.training import RECIPES, prepare_pixels, trained_network

# %% tags=["parameters"]
profile: str = "laptop"  # smoke, laptop or paper
seed: int = 0  # of the digits' network and its draws
results_dir: str = "../results/live"  # where this chapter's numbers go
live: bool = True  # False when the driver runs it: no progress bars then
prerun_dir: str = "../results/prerun"  # kept runs; "": none
tasks: list = ["mnist", "fashion", "tumours", "genres"]  # data sets
noises: list = [
    "uniform",
    "asymmetric",
    "instance",
]  # kinds of wrong labels
rates: list = [0.02, 0.1, 0.4]  # shares of wrong labels
shown_rate: float = (
    0.1  # of these, the one that figures and single numbers are at
)
seeds: int = 5  # repetitions: each has its own samples, noise and network
n_train: int = 1000  # training samples
epochs: list = [1, 3, 10, 30, 100]  # at which networks are probed
draws: int = 200  # weighted draws around each network
chain_draws: int = 50  # of each of 4 chains at Table 1's row
again_seeds: int = 1  # MNIST, uniform: seeds that are made again
loop_seeds: int = 5  # of closing the loop
loop_epochs: int = 20  # of the trainings after repair
loop_samples: int = 2000  # training samples of them
ood_seeds: int = 5  # of the odd inputs
ood_size: dict = {}  # sizes of the odd inputs that differ from the default
n_digits: int = 60_000  # digits whose own labels are looked at
digit_epochs: int = 20  # of their network, as in chapter 02
digit_draws: int = 50  # around it

# %% tags=["remove-input"]
chapter = Chapter(
    "10_wrong_labels",
    profile=profile,
    results_dir=results_dir,
    parameters=globals(),
)

# %% [markdown]
# ## The rules
#
# A *study* takes one data set, makes some labels wrong, trains a small network on them (one hidden layer,
# constant learning rate), and keeps it at several epochs. Every score then ranks the training samples, and
# is judged by its AUROC: the chance that a wrong label ranks above a right one. 0.5 is chance.
#
# - **Noise.** *Uniform*: any other class. *Asymmetric*: the class that the own class is most often taken for.
#   *Instance*: samples that look like another class get its label. All kinds make exactly the same number wrong.
# - **Repetition.** Every seed has its own samples, noise, networks and draws; intervals are over seeds.
# - **The probe** is weighted independent draws around one network, without a step size or a burn-in. Its
#   $\gamma$ is the smallest of 1, 3, 10, ... whose draws keep nine tenths of what the network knows: the rule of
#   `probelib.calibrate`, which looks at no label's truth. At 10 % wrong labels there are also chains at
#   Table 1's row, $\gamma = 30$.
# - **Seconds** count what a score needs beyond the trained network: draws, other networks, recorded outputs.

# %%
size = study.StudySize(
    n=n_train, epochs=tuple(epochs), draws=draws, chain_draws=chain_draws
)
studies = study.grid(tasks, noises, rates, seeds)
one = study.prepare(studies[0], size)
y = torch.from_numpy(one.given)
network = one.training.networks[epochs[len(epochs) // 2]]
posterior = probelib.LocalPosterior(
    network,
    probelib.cross_entropy,
    (one.task.x, y),
    n_beta=10.0,
    localization=300.0,
)
trace = probelib.importance_sample(posterior, draws, progress=live)
probelib.label_issues(trace).sort_values("score").tail(3).round(3)

# %% tags=["hide-input"]
rows, made = helpers.kept_or_run(
    Path(prerun_dir) / "10_labels.safetensors", studies, size, progress=live
)

# %% tags=["remove-input"]
again = study.run_studies(
    study.grid(tasks[:1], noises[:1], [shown_rate], again_seeds),
    size,
    progress=live,
    cached=False,
)
chapter.record(
    rows_made=made,
    n_studies=len(studies),
    n_seeds=seeds,
    n_scores=len(set(rows.score) & set(study.SCORES)),
)
helpers.record_again(chapter, rows, again)
chapter.table(
    helpers.known_rows(chapter, rows),
    "The networks, by epoch: means over all studies. Draws that count: effective share of the weighted draws.",
)
chapter.say(
    "**{n_studies}** studies and {n_scores} scores, from {rows_made}. Made again here: {again_studies}; the "
    "largest difference of an AUROC is {again_largest:.3f}."
)

# %% [markdown]
# ## Who finds them?
#
# {numref}`fig-scores` sorts networks by how far they have memorized: *underfitted* ones predict fewer than a
# fifth of the wrong labels, *memorized* ones more than nine tenths.

# %%
shown = rows[rows.rate == shown_rate]
staged = summaries.by_stage(shown)

# %% tags=["key-figure"] mystnb={"figure": {"caption": "AUROC of the wrong labels for every score, by how far the network has memorized them: means over data sets and kinds of noise, 10 % wrong labels, with 95 % intervals over seeds. Left: scores of draws around the network, at the local γ and at Table 1's. Look at which scores keep to the right for all three markers.", "name": "fig-scores"}, "image": {"alt": "Two panels of dots with one line per score and three markers per line, for networks that have not fitted, partly fitted and memorized the wrong labels; horizontal axis AUROC, dotted line at one half."}}
figures.scores_by_stage(staged, helpers.panels_of(shown))

# %% tags=["remove-input"]
helpers.record_scores(chapter, rows, shown_rate)
helpers.record_stages(chapter, staged)
helpers.record_best(chapter, shown)
chapter.table(
    helpers.stage_rows(chapter, staged),
    "Every score: what it needs, its AUROC by stage with 95 % interval, and its seconds (MNIST, one "
    "network at the last epoch).",
)
chapter.say(
    helpers.shootout_in_words(chapter, staged)
    + " Whoever does not know how far a network has memorized may look at the epoch at which a score is worst: of "
    "the scores of one finished network *{best_network_in_words}* is best there, **{best_network_worst:.3f}**."
)

# %% [markdown]
# Three things stand out in the published run. The gain is below one half while wrong labels are not fitted: a
# sample that the network gets wrong has little to lose. Adding the loss mends that: the posterior mean loss is
# as good as the plain loss before memorization, and somewhat better after. But scores that do not ask how well
# this network fits a label find more: the neighbours of a sample in the inputs or in the features, and networks
# that are young or have not seen it.
#
# {numref}`fig-epochs` shows the same along the training.

# %%
uniform = shown[shown.noise == noises[0]]
by_task = summaries.means(
    summaries.of_scores(uniform), ["score", "task", "epoch"]
)
fitted = summaries.means(
    uniform[uniform.score == "fitted_wrong"], ["task", "epoch"]
)

# %% mystnb={"figure": {"caption": "AUROC of six scores over the epochs of training, one panel a data set; uniform noise. Bands: 95 % intervals over seeds. Grey: share of the wrong labels that the network predicts. Look at what happens to each score where the grey rises.", "name": "fig-epochs"}, "image": {"alt": "Panels with epochs on a logarithmic horizontal axis and AUROC on the vertical one, six lines of different style each, over a grey area that rises from left to right."}}
figures.scores_over_epochs(
    by_task,
    fitted,
    helpers.SHOWN,
    {name: helpers.TASKS[name] for name in tasks},
)

# %% [markdown]
# How many labels are wrong matters more to some scores than to others:

# %% tags=["remove-input"]
chapter.table(
    helpers.rate_rows(chapter, rows),
    "AUROC at the last epoch by the share of wrong labels, means over data sets and kinds of noise, with 95 % "
    "intervals over seeds. All numbers are in `10_wrong_labels-scores.csv` beside the results.",
)

# %% [markdown]
# ## What does the probe add?
#
# Differences of AUROC, paired within each study:

# %% tags=["remove-input"]
chapter.table(
    helpers.difference_rows(chapter),
    "Posterior quantities less the cheap quantity that is closest to them: mean over all studies, 95 % interval "
    "over seeds, at the first epoch, at the last, and over all.",
)
chapter.say(helpers.added_in_words(chapter))

# %% [markdown]
# ## Flags
#
# A ranking needs somebody who reads it from the top. A *flag* says where to stop. `probelib.label_issues` flags
# what costs more than guessing and stands out from its class; confident learning compares networks that have
# not seen the sample.

# %% tags=["remove-input"]
chapter.table(
    helpers.flag_rows(chapter, rows),
    "Flags: share of the wrong labels that are found, and share of flagged ones that are wrong; means over data "
    "sets and kinds of noise, with 95 % intervals over seeds.",
)
chapter.say(helpers.flags_in_words(chapter, shown_rate))

# %% [markdown]
# ## Closing the loop
#
# Somebody looks at the k most suspicious samples and corrects their labels. A network is trained again, and
# tested. {numref}`fig-loop` shows what the looking buys, against inspection at random and against an ideal that
# looks at the wrong labels first. The samples are clothes, with a tenth of their labels wrong: at random, and of
# the *instance* kind, where samples that look like another class have its label.

# %%
alone = replace(size, n=loop_samples, chain_rates=())


def closed(kind, number):
    made_wrong = study.prepare(
        study.Study("fashion", kind, 0.1, 100 + number), alone
    )
    [(_, found)] = study.all_scores(made_wrong, epochs[-1:])
    task = made_wrong.task
    return relabelling.close_the_loop(
        relabelling.LabelProblem(
            task.x,
            torch.from_numpy(made_wrong.given),
            task.y,
            (task.test_x, task.test_y),
        ),
        {name: found[name][0] for name in helpers.LOOP},
        train=relabelling.side_by_side(epochs=loop_epochs, seed=number),
        seed=number,
    )


# %%
gained = {
    kind: relabelling.accuracy_gained(
        [closed(kind, number) for number in range(loop_seeds)]
    )
    for kind in ("uniform", "instance")
}

# %% mystnb={"figure": {"caption": "Wrong labels of the uniform kind. Left: test accuracy after the most suspicious samples have been looked at and relabelled; dashed: the ideal, dotted: random inspection. Right: points of accuracy per hundred labels over random inspection, where a tenth is looked at. Bars: 95 % intervals over seeds. Look at how far each score lies between the two.", "name": "fig-loop"}, "image": {"alt": "Left: curves of test accuracy against the share of training labels inspected, one per score, between a dotted curve of random inspection below and a dashed ideal one above. Right: a point with an interval for each score."}}
figures.relabelling_curves(
    gained["uniform"],
    helpers.LOOP_SHARE,
    list(helpers.LOOP)[:5],
    helpers.SHORT,
)

# %% tags=["remove-input"]
for kind, prefix in (
    ("uniform", "accuracy_gained"),
    ("instance", "accuracy_gained_instance"),
):
    chapter.record(
        **relabelling.gained_numbers(
            gained[kind], helpers.LOOP_SHARE, prefix
        )
    )
    chapter.table(
        helpers.loop_rows(gained[kind]),
        f"Looking at a tenth of the labels, noise of the {kind} kind: how many of these are wrong, and percentage "
        "points of test accuracy per hundred labels inspected, with 95 % intervals over seeds.",
    )
chapter.record(loop_source=source_of("fashion"))
chapter.say(helpers.loop_in_words(gained) + " (Images: {loop_source}.)")

# %% [markdown]
# ## MNIST's own labels
#
# Are there wrong labels in the data set itself? The network of {doc}`chapter 02 <02_loss_gain>` has seen all of
# its digits; {numref}`fig-digits` shows those with the highest posterior mean loss.

# %%
mnist = load_mnist("train")
images, labels = mnist.images[:n_digits], mnist.labels[:n_digits]
recipe = replace(RECIPES["sgd-unit-1x512"], epochs=digit_epochs)
digits = trained_network(recipe, images, labels, seed=seed, progress=live)
inputs = prepare_pixels(images, recipe)
own = probelib.LocalPosterior(
    digits.model,
    probelib.cross_entropy,
    (inputs, labels),
    n_beta=10.0,
    localization=100.0,
)
clean = probelib.importance_sample(
    own, digit_draws, cache=cache_dir("traces"), progress=live
)
issues = probelib.label_issues(clean)
top = np.argsort(-issues.score.to_numpy())[:20]

# %% mystnb={"figure": {"caption": "MNIST's training digits of highest posterior mean loss, each with its label in the data set and the network's second guess where the first is the label. Look for labels that you would not have given.", "name": "fig-digits"}, "image": {"alt": "Two rows of ten handwritten digits, above each its label and the class that the network prefers to it."}}
with torch.no_grad():
    outputs = digits.model(inputs[top]).numpy()
outputs[np.arange(len(top)), labels[top]] = -np.inf
figures.suspicious_digits(
    images[top].numpy(), labels[top].tolist(), outputs.argmax(1)
)

# %% tags=["remove-input"]
helpers.record_digits(chapter, issues, labels.numpy(), top, clean)
chapter.say(
    "Of {n_digits_seen:,} digits {digits_flagged} are flagged. The first ten, by their place in the "
    "training set: {digits_top}." + helpers.digits_in_words(chapter)
)

# %% [markdown]
# ## Inputs from elsewhere
#
# An input that the network has never seen the like of has no label. Give it the class that the network
# predicts, and ask how much that costs under the posterior. {numref}`fig-odd` holds this against scores made
# for the purpose. Here $\gamma$ is the smallest at which $n\beta L$ spreads by no more than half a nat over the
# draws of the training data; {numref}`fig-odd-gamma` shows what others would have given.

# %%
odd = outliers.odd_runs(
    replace(outliers.OddSize(), **ood_size), seeds=range(ood_seeds)
)
strange = outliers.ood_table(odd)

# %% mystnb={"figure": {"caption": "AUROC of inputs from elsewhere against test inputs, one panel a pair of data sets, one line a score; 95 % intervals over seeds. The probe's scores come first. Look at whether any of them is to the right of maximum softmax.", "name": "fig-odd"}, "image": {"alt": "Panels of points with intervals, one line per score; horizontal axis AUROC."}}
figures.odd_scores(strange)

# %% mystnb={"figure": {"caption": "AUROC of the probe's scores of inputs from elsewhere along the localization, one panel a pair; bands: lowest and highest of the seeds that were swept. The line marks the γ that the rule took; hollow markers have weights that are not to be trusted. Look at which scores depend on γ.", "name": "fig-odd-gamma"}, "image": {"alt": "One panel per pair of data sets with lines of AUROC against the localization on a logarithmic axis, and an upright line at the localization that was chosen."}}
figures.odd_sweep(outliers.ood_sweep(odd))

# %% tags=["remove-input"]
chapter.record(**outliers.ood_numbers(strange))
chapter.table(
    helpers.odd_rows(chapter, odd),
    "AUROC of the probe's scores less that of the maximum softmax, paired, with 95 % intervals over seeds.",
)
chapter.say(helpers.odd_in_words(chapter, strange))

# %% [markdown]
# ## The literature / this run

# %% tags=["remove-input"]
chapter.compare(helpers.claims(epochs[0], epochs[-1]), against="literature")

# %% [markdown]
# ## What could fool you
#
# - **Small networks.** One hidden layer of 128 units on a thousand samples. What wins here need not win on a
#   large network.
# - **Seeds that share samples.** The table has 569 samples and the texts some 2,500 passages, so that their seeds
#   share many. The intervals there are over splits, noise and networks, not over other tables and texts.
# - **The epoch.** A score that is good after memorization may be worse than chance before. Whoever does not know
#   how far a network has memorized should take a score that does not care.
# - **Neighbours need a geometry.** In pixels of centred digits the neighbours are right; in other data they may
#   not be. Features of the network itself are safer, and worse where it has memorized by moving them. Two of the
#   three kinds of noise follow a linear classifier of the inputs, which is close to what such neighbours know.
# - **Hard is not wrong.** Noise of the instance kind falls on samples that are hard anyway. No score tells the
#   two apart without another look.
# - **Seconds** are of these sizes. Five other networks cost five trainings, whatever the size.

# %% [markdown]
# ## Exercises
#
# **1.** Average the ranks of two scores that look at different things: the posterior mean loss and the
# neighbours in features. Is the mean better than either?

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the answer"}
near = scores.neighbour_disagreement(
    scores.penultimate(network, one.task.x).numpy(), one.given
)
mean_loss = probelib.label_issues(trace).score.to_numpy()
both = helpers.mean_rank(near, mean_loss)
chapter.record(
    exercise_near=helpers.auroc(near, one.wrong),
    exercise_mean_loss=helpers.auroc(mean_loss, one.wrong),
    exercise_both=helpers.auroc(both, one.wrong),
)
chapter.say(
    "Neighbours {exercise_near:.3f}, posterior mean loss {exercise_mean_loss:.3f}, the mean of their ranks "
    "**{exercise_both:.3f}** (one study, AUROC)."
)

# %% [markdown]
# **2.** Take the memorized network of that study, and let its draws go further from $w^*$ than the rule does.
# Does the posterior mean loss get better?

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the answer"}
memorized = probelib.LocalPosterior(
    one.training.networks[epochs[-1]],
    probelib.cross_entropy,
    (one.task.x, y),
    n_beta=10.0,
    localization=1.0,
)
by_gamma = {}
for gamma in (10.0, 30.0, 100.0, 1000.0):
    around = probelib.sample(
        memorized.at(localization=gamma),
        sampler=probelib.LeimkuhlerMatthews(0.1 / gamma, batch_size=64),
        chains=4,
        draws=chain_draws,
        thin=4,
        burn_in=50,
        progress=live,
    )
    by_gamma[gamma] = helpers.auroc(
        around.loss.mean(("chain", "draw")), one.wrong
    )

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the numbers"}
chapter.record(
    **{f"exercise_gamma_{at:g}": of for at, of in by_gamma.items()}
)
chapter.say(
    "AUROC by $\\gamma$: "
    + ", ".join(f"{at:g}: {{exercise_gamma_{at:g}:.3f}}" for at in by_gamma)
    + " (one study)."
)

# %% [markdown]
# ## Summary
#
# The gain finds memorized wrong labels, and ranks those that are not memorized last. The posterior mean loss
# holds before and after, and is hardly better than the loss itself. Whoever wants to clean labels should look at a
# sample's neighbours first, or at networks that have not seen it.
#
# **References.** The scores: {cite:t}`northcutt2021confident`, {cite:t}`pleiss2020aum`,
# {cite:t}`toneva2019forgetting`, {cite:t}`paul2021diet`, {cite:t}`garg2024curvature`, {cite:t}`pruthi2020tracin`,
# {cite:t}`koh2017understanding`. Inputs from elsewhere: {cite:t}`hendrycks2017baseline`, {cite:t}`liu2020energy`,
# {cite:t}`lee2018mahalanobis`, {cite:t}`lakshminarayanan2017ensembles`, {cite:t}`sun2022knn`.

# %% tags=["remove-input"]
helpers.record_front(chapter)

# %% tags=["answer"]
chapter.answer(
    helpers.shootout_in_words(chapter, staged),
    "Intervals are over {n_seeds} seeds, each with its own samples, noise and network; one network per seed, "
    "small ones throughout. Weighted draws have no step, and so no step bias.",
)

# %% tags=["remove-input"]
chapter.finish(
    "{n_studies} studies: {best_network_in_words} has the best worst epoch of all scores of one network, "
    "{best_network_worst:.3f}; posterior mean loss {mean_loss_memorized:.3f}, gain {loss_gain_memorized:.3f}, loss "
    "{loss_memorized:.3f} of memorized labels"
)
