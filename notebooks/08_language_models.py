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
# # Language models, token by token
#
# **Claim.** *The probes work where the paper does not go: on language models, with a loss per token.* A
# small GPT that we train shows what the loss gain and the loss kernel find there, and what they do not. A
# real one, SmolLM2, shows that the method reaches it.

# %% [markdown] tags=["about"]
# The paper probes networks that read images. This chapter goes on from there; it has no number of the
# paper to check.
#
# **A network that can be known.** A GPT learns to read the Brown corpus: 500 documents of 15 genres. Random
# numbers, *canaries*, are planted in its text 1 to 32 times. What the network knows of them it can only have
# memorized. So we can count how well the loss gain finds what was memorized, beside other scores; and
# whether documents of a genre are near each other in the loss kernel, beside other similarities.
#
# **A real one.** SmolLM2-135M reads a few passages, and a pattern that repeats. Each token gets its gain,
# and the tokens whose losses rise and fall with its own.
#
# | profile | what runs | two cores |
# | --- | --- | --- |
# | `smoke` | a GPT of 24,000 weights, 5 documents per genre, 30 draws; SmolLM2 from its kept run alone: not a result | a minute |
# | `laptop` | a GPT of 440,000 weights; the draws for three networks, the kernel and SmolLM2 are kept from long runs, and a part of each is computed again | about fifteen minutes |
# | `paper` | the same; the draws and the kernel of the GPT computed again, SmolLM2 still from its kept run | not timed as a whole |

# %% tags=["hide-input"]
from pathlib import Path

import numpy as np
import torch
from IPython.display import HTML, display

import probelib
from probebook import gpt_runs, smollm_runs
from probebook.brown import brown_or_stand_in
from probebook.cache import cache_dir
from probebook.chapter import Chapter
from probebook.chapters import language_models as helpers
from probebook.chapters import language_models_llm as llm
from probebook.figures import language_models as figures
from probebook.figures import language_models_llm as llm_figures

# %% tags=["hide-input"]
from probebook.genres import recovery_table
from probebook.gpt import GPTRecipe, trained_gpt
from probebook.induction import by_position, induction
from probebook.language_data import TextPlan, read_brown
from probebook.localization_rule import (
    KEEP,
    choose_localization,
    frequency_loss,
)
from probebook.memorized import (
    canary_scores,
    detection_table,
    over_networks,
)
from probebook.stored_weights import noise_kept, stored_chain
from probebook.token_view import (
    neighbours_on_page,
    passages_of,
    token_view,
)

# %% tags=["parameters"]
profile: str = "laptop"  # smoke, laptop or paper
seed: int = 0  # of the training, the draws and every random choice
results_dir: str = "../results/live"  # where this chapter's numbers go
live: bool = True  # False when the driver runs it: no progress bars then
vocabulary: int = 1024  # pieces of the tokenizer
windows: int = 24  # of each document, 64 tokens each
documents_per_genre: int = 80  # at most: all of them
repetitions: list = [1, 2, 4, 8, 16, 32]  # how often canaries are planted
canaries: int = 24  # of each
held_out_canaries: int = 200  # that are never planted
width: int = 96  # of the GPT's stream
layers: int = 3  # of the GPT
epochs: int = 6  # passes over the text
n_beta: float = 10.0  # n beta of the GPT, as in Table 1
rule_windows: int = 1000  # that the rule for the localization looks at
rule_draws: int = 8  # at each localization
grid: list = [316.0, 1000.0, 3162.0, 10_000.0, 31_623.0]  # of the rule
prerun_dir: str = "../results/prerun"  # kept runs
kept_runs: bool = True  # use them for the GPT, and compute a part again
draws: int = 200  # weighted draws for each network
again: int = 20  # of these, computed again beside kept ones
networks: int = 3  # seeds of the training
loss_samples: int = 1000  # windows that give a draw its weight
token_draws: int = 100  # at which single tokens are observed
genre_documents: int = 500  # at most, whose genres are asked for
genre_windows: int = 4  # of each
pair_chains: int = 4  # walks of the gradient pairs
pairs: int = 7  # in each walk
again_pairs: int = 1  # in each of two walks beside a kept kernel
permutations: int = 1000  # of the genres, for chance
precision_step: float = 0.05  # times 1/gamma: of chains in two precisions
precision_draws: int = 20  # of each, every fifth step
llm_again: int = 2  # draws of SmolLM2 that are computed again

# %% tags=["remove-input"]
chapter = Chapter(
    "08_language_models",
    profile=profile,
    results_dir=results_dir,
    parameters=globals(),
)

# %% [markdown]
# ## A network that can be known
#
# A tokenizer is learned from the text, which is cut into windows of 64 tokens. A canary is a window with a
# sentence like "The number is 4950671238120976." Nobody can guess the digits: each costs
# $\log 10 = 2.30$ nats or more, unless the network has memorized them. A fifth of each genre's documents,
# and many canaries, are kept from the training.

# %% tags=["hide-input"]
prerun = Path(prerun_dir)
corpus = brown_or_stand_in()
stand_in = corpus.stand_in
if stand_in:  # a demonstration of a minute, not a result
    vocabulary, windows, canaries, held_out_canaries = 300, 6, 8, 100
    repetitions, width, layers, epochs = [1, 8], 32, 1, 15
    kept_runs, draws, networks, token_draws = False, 30, 1, 30
    genre_documents, genre_windows, pair_chains, pairs = 60, 2, 2, 1
    rule_windows, permutations, precision_draws, llm_again = 100, 50, 5, 0

# %%
plan = TextPlan(
    vocabulary=vocabulary,
    windows=windows,
    repetitions=repetitions,
    canaries=canaries,
    held_out_canaries=held_out_canaries,
)
corpus = corpus.per_genre(documents_per_genre)
data = read_brown(corpus, plan)
recipe = GPTRecipe(width=width, layers=layers, epochs=epochs)
network = trained_gpt(
    recipe, data.train, len(data.tokens), seed=seed, progress=live
)

# %% tags=["remove-input"]
helpers.record_data(chapter, data, network, stand_in=stand_in)
if stand_in:
    chapter.say(helpers.DEMONSTRATION)
chapter.say(
    "The network has **{n_parameters:,}** weights and has read {train_tokens:,} tokens of {documents} "
    "documents {epochs} times; {canary_windows:,} of its windows are canaries. Its loss in the last epoch "
    "is {train_loss:.2f} nats per token."
)

# %% [markdown]
# ## How far may the draws go?
#
# A draw is local as long as the network still is the network. For language there is a scale to judge this
# by: what a model would lose that knows only how frequent each token is. Write $L_0$ for its loss. The
# share of what was learned that the draws keep is
#
# $$\text{kept}(\gamma) = \frac{L_0 - \operatorname{E}[L(w)]}{L_0 - L(w^*)}, \qquad
#   w \sim \mathcal N(w^*, I/\gamma).$$
#
# The rule was written down before the draws below were made: *the smallest $\gamma$ of the grid at which the
# draws keep nine tenths*. It knows nothing of canaries and genres. {numref}`fig-kept` shows it.

# %%
part = np.random.default_rng(seed).choice(
    len(data.train), min(rule_windows, len(data.train)), replace=False
)
some = data.train[np.sort(part)]
by_frequency = frequency_loss(
    data.train.targets, some.targets, len(data.tokens)
)
choice = choose_localization(
    probelib.LocalPosterior(
        network.model,
        probelib.sequence_cross_entropy,
        some.data,
        n_beta=n_beta,
        localization=grid[-1],
    ),
    by_frequency,
    grid,
    draws=rule_draws,
    seed=seed,
    cache=cache_dir("traces"),
    progress=live,
)
localization = choice.localization

# %% mystnb={"figure": {"caption": "The share of what the network has learned beyond token frequencies that draws from the localizing Gaussian keep, against the localization; bars of 95 %. The rule takes the first point above the dashed line. Look at how steep the curve is.", "name": "fig-kept"}, "image": {"alt": "A rising curve on a logarithmic horizontal axis: the share kept, lowest at the left and near one at the right, with a dashed line at 0.9."}}
llm_figures.kept_by_localization(choice.table, KEEP, localization)

# %% tags=["remove-input"]
chapter.table(
    helpers.rule_rows(chapter, choice),
    "Mean loss of draws by localization; ± is one standard error.",
)
chapter.say(
    "A model of frequencies has a loss of {rule_loss_frequency:.2f} nats, the network "
    "{rule_loss_trained:.2f}. The rule takes **$\\gamma$ = {rule_localization:,.0f}**, where the draws keep "
    "{rule_kept:.2f} ± {rule_kept_error:.2f}."
)

# %% [markdown]
# ## Does the gain find what was memorized?
#
# The posterior weighs the mean loss of all windows that the network was trained on. A sample is a window,
# its loss the mean over the tokens that count: for a canary, its digits. The draws are independent ones from
# the localizing Gaussian, weighted by $e^{-n\beta L(w)}$: no burn-in, no step size. Where the data term
# changes little, as Pareto's $\hat k$ below tells, nearly all of them count.

# %%
posterior = probelib.LocalPosterior(
    network.model,
    probelib.sequence_cross_entropy,
    data.train.data,
    n_beta=n_beta,
    localization=localization,
)
trace = probelib.importance_sample(
    posterior,
    again if kept_runs else draws,
    observe=data.canaries.data,
    loss_samples=min(loss_samples, len(data.train)),
    seed=seed,
    cache=cache_dir("traces"),
)

# %% [markdown]
# That is one network. Others were trained from other seeds, and in the published run the draws of all of
# them come from long runs; those of this network are computed again in part.

# %% tags=["hide-input"]
traces = {seed: trace}
if kept_runs:
    traces = gpt_runs.kept_canaries(
        prerun, recipe, data, n_beta, localization
    ) or {seed: trace}
else:
    settings = {
        "n_beta": n_beta,
        "localization": localization,
        "draws": draws,
        "loss_samples": loss_samples,
    }
    for other in range(seed + 1, seed + networks):
        more = trained_gpt(recipe, data.train, len(data.tokens), seed=other)
        traces[other] = gpt_runs.canary_trace(
            more, data, seed=other, **settings
        )

# %%
scores = [
    canary_scores(one, data.canaries, one.init_loss.values)
    for one in traces.values()
]
table = over_networks([detection_table(one) for one in scores])

# %% tags=["remove-input"]
helpers.record_traces(chapter, traces)
if kept_runs:
    chapter.say(
        helpers.check_kept(chapter, prerun, recipe, data, traces, trace)
    )

# %% [markdown]
# Five scores, each turned so that high means *memorized*, are held against the canaries that no network has
# seen: the gain; the variance of the loss; and, low, the posterior mean loss, the loss at $w^*$, and the
# loss over what zlib needs for the digits. {numref}`fig-canaries` and the table show how well each tells
# planted from held-out canaries.

# %% tags=["key-figure"] mystnb={"figure": {"caption": "How well five scores find planted canaries, by how often each was planted. Left: area under the ROC curve against held-out canaries (dotted: guessing). Right: the share found while at most one in a hundred held-out ones is called. Bars of 95 % over canaries. Look at the left end, a number that was read once, and at which of the scores stays at guessing or below it.", "name": "fig-canaries"}, "image": {"alt": "Two panels with one line for each of five scores against the number of times that a canary was planted. In the published run four lines rise from somewhat above one half to one on the left, and from near zero to one on the right; that of the variance stays at the bottom."}}
figures.detection(table)

# %% tags=["remove-input"]
chapter.table(
    helpers.detection_rows(chapter, table, scores),
    "Planted canaries against held-out ones, means over networks; the interval is over canaries.",
)
chapter.say(helpers.detection_in_words(chapter))

# %% [markdown]
# Which digits were memorized? With a loss per token, `observe_loss`, each digit has its gain. Below are some
# canaries and the beginnings of two documents. Strong colour: a high gain. A token that is pale costs the
# same wherever the draws go. Pick one to see the tokens whose losses rise and fall with its own.

# %%
shown, titles = helpers.windows_to_show(data)
by_token = probelib.importance_sample(
    posterior,
    token_draws,
    observe=shown.data,
    observe_loss=probelib.token_cross_entropy,
    loss_samples=min(loss_samples, len(data.train)),
    seed=seed,
    cache=cache_dir("traces"),
)
passages = passages_of(
    by_token,
    shown,
    data.tokens,
    range(len(titles)),
    titles,
)
near = neighbours_on_page(
    probelib.loss_kernel(by_token, over="token"), passages
)
HTML(token_view(passages, near, name="gpt-tokens"))

# %% [markdown]
# ## Do documents of a genre stand together?
#
# The loss kernel says which samples a network treats alike. Let a sample be a whole *document*: its loss is
# the mean over its windows. Does the kernel then know the 15 genres, which it was never told? Gradients at
# pairs of draws give the kernel of Eq. 1 with far less noise than its draws
# ({doc}`chapter 04 <04_loss_kernel>`).

# %%
read = gpt_runs.some_of_each(data.train, genre_documents, genre_windows)
_, first = np.unique(read.document, return_index=True)
genres = read.genre[first]
of_documents = gpt_runs.document_posterior(
    network, read, n_beta, localization
)

# %% [markdown]
# The posterior above is an ordinary one whose samples have the shape (windows, tokens); `forward=` says how
# the model reads such a sample. In the published run the kernel comes from a long run, and two short walks of
# this network stand beside it.

# %%
kept = None
if kept_runs:
    kept = gpt_runs.kept_documents(prerun, recipe, of_documents)
found = probelib.gradient_pairs(
    of_documents,
    chains=pair_chains if kept is None else 2,
    pairs=pairs if kept is None else again_pairs,
    seed=seed if kept is None else seed + 1,
    progress=live,
)
computed = gpt_runs.KeptDocuments(gpt_runs.walks_of(found), found.attrs)
kernel = kept or computed

# %% [markdown]
# Its rivals cost less: cosines of gradients at $w^*$, cosines of the network's mean embeddings, and words
# weighted by how rare they are (tf-idf), of the same windows and of the whole documents. Each is asked three
# questions. Of a document's five nearest, how many have its genre? Of two pairs, one of one genre and one
# of two, is the first more similar (AUROC)? Do clusters and genres share information (NMI)? Chance is what
# shuffled genres give ({numref}`fig-genres`).

# %%
whole = [corpus.documents[i].text for i in read.document[first]]
similarities = {
    "loss kernel": kernel.correlation,
    **helpers.rivals(network, read, whole),
}
recovered = recovery_table(
    similarities, genres, permutations=permutations, seed=seed
)

# %% mystnb={"figure": {"caption": "Three measures of how well similarities of documents know their genres; bars: 95 %, from a jackknife over documents. Grey: 95 % of what shuffled genres give. Look at which similarities leave the grey, and at how far the loss kernel is from those that read words alone.", "name": "fig-genres"}, "image": {"alt": "Three panels, one for each measure, with one row for each of five similarities: a point with an error bar, and a grey bar of chance."}}
figures.genres(recovered)

# %% tags=["remove-input"]
chapter.table(
    helpers.genre_rows(chapter, recovered),
    "Recovery of genres; ± is one standard error over documents, chance is 95 % of shuffled genres.",
)
helpers.record_kernel(chapter, kernel, computed)
chapter.say(helpers.genres_in_words(chapter))

# %% [markdown]
# ## In which precision?
#
# Large models come in bfloat16, whose numbers have eight bits of mantissa: near 0.05 they are 0.0002 apart.
# A Langevin step moves a weight by about $\sqrt\epsilon$, and a chain that stores its weights in bfloat16
# loses all moves that round to nothing. `probelib` keeps such weights in float32 while it samples. The plain
# loop below does not, and shows what that would cost: two chains with the same noise, that differ in the
# storage alone, and a third with other noise to compare with.

# %%
step_size = precision_step / localization
noise = noise_kept(network.model, step_size, seed=seed)
chain_settings = {
    "n_beta": n_beta,
    "localization": localization,
    "step_size": step_size,
    "draws": precision_draws,
}
observed = data.canaries
chains = {
    name: stored_chain(
        network.model,
        data.train,
        observed,
        dtype,
        seed=chain_seed,
        **chain_settings,
    )
    for name, dtype, chain_seed in (
        ("float32", torch.float32, seed),
        ("bfloat16", torch.bfloat16, seed),
        ("float32, another seed", torch.float32, seed + 1),
    )
}

# %% tags=["remove-input"]
chapter.table(
    helpers.precision_rows(chapter, noise, chains, step_size),
    "The same chain with weights stored in two precisions, gains of the canaries.",
)
chapter.say(
    "One step of $\\epsilon$ = {precision_step_size:.0e} leaves **{noise_rounded_away_bfloat16:.1%}** of the "
    "weights where they were, if they are stored in bfloat16. Gains of the two storages correlate by "
    "{gain_correlation_bfloat16:.4f}, those of two seeds by {gain_correlation_another_seed:.4f}. The mean "
    "gain is {gain_mean_bfloat16:.4f} nats in place of {gain_mean_float32:.4f}."
)

# %% [markdown]
# ## A real language model
#
# SmolLM2-135M-Instruct has 134.5 million weights, and comes as a file of four-bit numbers from the package
# index. So $w^*$ is near a minimum of the loss, but not at one, and gains may be negative. It reads eight
# passages of Brown, whose mean loss is $L$, and six sequences of words that we made up. The draws come from
# a long run with the same calls as above; the localization was chosen by the same rule.

# %%
kept_llm = smollm_runs.kept_run(prerun)
text, llm_trace = kept_llm.text, kept_llm.trace
llm_gain = probelib.loss_gain(llm_trace)
llm_gain

# %% [markdown]
# In the long run stood, with `model` from transformers and `ids` from its tokenizer:
#
# ```python
# posterior = probelib.LocalPosterior(
#     model,                                # returns .logits: that is found
#     probelib.sequence_cross_entropy,
#     (ids[:, :-1], ids[:, 1:]),
#     n_beta=10.0,
#     localization=gamma,
# )
# trace = probelib.importance_sample(
#     posterior, draws=20, observe_loss=probelib.token_cross_entropy, cache="traces"
# )
# ```
#
# The weights are checked by a short chain of the same posterior. Before anything is read from a chain, look at
# the loss along it.

# %% tags=["remove-input"]
chapter.record(**llm.numbers(kept_llm))
chapter.table(
    helpers.rule_rows(chapter, kept_llm.choice, "llm_rule"),
    "SmolLM2: mean loss of the Brown passages at draws, by localization.",
)
chapter.record_verdict(probelib.diagnostics(llm_trace), "llm_verdict")
chapter.say(
    "**{llm}**: {n_tokens:,} tokens, **{draws}** weighted draws, worth {effective_draws:.0f} independent ones "
    "($\\hat k$ = {llm_khat:.2f}). The passages have a loss of {llm_loss_start:.2f} nats at $w^*$ and "
    "**{llm_loss_weighted:.2f} ± {llm_loss_weighted_se:.2f}** under the posterior; a model of frequencies has "
    "{llm_loss_frequencies:.2f}. {llm_negative_gains:.0%} of the tokens have a negative gain."
)

# %% tags=["remove-input"]
chapter.say(llm.chain_in_words(chapter, kept_llm))
if llm_again:
    chapter.say(llm.compute_again(chapter, kept_llm, llm_again))

# %%
even = llm.gaussian_draws(llm_trace)  # or there are no q-values
llm_kernel = probelib.loss_kernel(even, over="token")
llm_passages = passages_of(
    llm_trace,
    text.windows,
    kept_llm.pieces,
    range(len(text)),
    text.titles,
)
llm_near = neighbours_on_page(llm_kernel, llm_passages)
HTML(token_view(llm_passages, llm_near, name="llm-tokens"))

# %% [markdown]
# Which tokens of *different* passages move together most?

# %%
together = llm.moving_together(llm_kernel, text, kept_llm.pieces)
together.round(3)

# %% [markdown]
# ### A pattern that repeats
#
# A *pattern* is a random sequence of words, said twice: what follows a word of the second half is what
# followed it in the first. A network that looks back can say it. Its *control* has the same words in the
# second half in another order, so that looking back does not help. {numref}`fig-induction` shows losses and
# gains along them.

# %% mystnb={"figure": {"caption": "Loss at the trained weights (top) and loss gain (bottom) at each position of a pattern and of its control, means over three of each. The second half begins at the dotted line. Look at how soon the loss of a pattern falls there, and at what the gain does at the same place.", "name": "fig-induction"}, "image": {"alt": "Two panels with a line for patterns and one for controls against position. Up to the dotted line the two are one. Beyond it the loss of patterns falls far below that of controls."}}
along = by_position(llm_trace, text)
llm_figures.induction_positions(along)

# %%
repeated = induction(llm_trace, text, seed=seed)
repeated.round(3)

# %% tags=["remove-input"]
chapter.record(**llm.induction_numbers(repeated))
chapter.say(llm.induction_in_words(chapter))

# %% [markdown]
# ## Theory says / this run
#
# The paper has no number of language. Some numbers are known all the same.

# %% tags=["remove-input"]
if stand_in:
    chapter.say(helpers.DEMONSTRATION)
    helpers.record_no_claims(chapter)
else:
    chapter.compare(
        helpers.claims(chapter.numbers, kept_runs), against="theory"
    )

# %% [markdown]
# ## What could fool you
#
# - **Canaries are easy to tell apart.** All scores are held against canaries of the same law that were never
#   read. Among other texts, a low loss may mean *easy* as well as *memorized*; so may a gain.
# - **Is the gain new information?** Where it finds what the loss at $w^*$ finds as well, the loss is cheaper by
#   the factor of the number of draws. The sentence below the table says by how much they differ.
# - **The localization decides what is asked.** The rule keeps nine tenths of what was learned. At a smaller
#   $\gamma$ the draws ask about a network that has lost more of it.
# - **Noise looks like blindness.** A correlation from $S$ independent draws is off by about $1/\sqrt S$: with a
#   hundred draws by 0.1, more than most documents differ. Look at how well two halves of a kernel agree before
#   you say that it knows nothing.
# - **Quantised weights are no minimum.** A negative gain of SmolLM2's tokens need not mean anything: random
#   weights near by may be better ones.
# - **Many pairs.** The most correlated of a million pairs look better than they are. Read the q-values.

# %% [markdown]
# ## Exercises
#
# **1.** Do the gains of canaries of one number of plantings differ from each other, or is the number all that
# counts? Compare the spread of the gains within each group with their error.

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the answer"}
first_trace = next(iter(traces.values()))
gain = probelib.loss_gain(first_trace)
most = data.canaries.repetitions == max(repetitions)
chapter.record(
    exercise_spread=float(gain.values[most].std(ddof=1)),
    exercise_error=float(np.median(gain.mcse.values[most])),
    exercise_mean=float(gain.values[most].mean()),
)
chapter.say(
    "Of those planted most often the gains have a mean of {exercise_mean:.3f} and a spread of "
    "**{exercise_spread:.3f}** nats; the error of one is {exercise_error:.3f}."
)

# %% [markdown]
# **2.** Halve the draws of that network. By how much does the AUROC of the gain change?

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the answer"}
half = first_trace.isel(draw=slice(0, first_trace.sizes["draw"] // 2))
fewer = detection_table(
    canary_scores(half, data.canaries, half.init_loss.values)
)
of_half = fewer[(fewer.score == "gain") & (fewer.repetitions == 0)]
every = detection_table(scores[0])
of_all = every[(every.score == "gain") & (every.repetitions == 0)]
chapter.record(
    exercise_auroc_half=float(of_half.auroc.iloc[0]),
    exercise_auroc_all=float(of_all.auroc.iloc[0]),
    exercise_auroc_low=float(of_all.low.iloc[0]),
    exercise_auroc_high=float(of_all.high.iloc[0]),
)
chapter.say(
    "It is **{exercise_auroc_half:.3f}** with half of them and {exercise_auroc_all:.3f} with all, where other "
    "canaries might have given {exercise_auroc_low:.3f} to {exercise_auroc_high:.3f}."
)

# %% [markdown]
# ## Summary

# %% tags=["remove-input"]
chapter.say(helpers.DEMONSTRATION if stand_in else helpers.SUMMARY)

# %% [markdown]
# Losses per token need one argument, `observe_loss`. What to observe beside the training data, and how to
# follow a probe over checkpoints, is in {doc}`../beyond`.
#
# **References.** Canaries: {cite:t}`carlini2019secret`. The Brown corpus: {cite:t}`francis1979brown`.
# SmolLM2: {cite:t}`allal2025smollm2`. Induction: {cite:t}`olsson2022induction`. Bayesian influence per
# token: {cite:t}`anonymous2025bif`.

# %% tags=["answer"]
if stand_in:
    display(HTML(helpers.NOT_A_RESULT))
else:
    chapter.answer(helpers.answer(chapter), helpers.TRUST)

# %% tags=["remove-input"]
helpers.record_front(chapter, stand_in)
chapter.finish(helpers.STAND_IN_HEADLINE if stand_in else helpers.HEADLINE)
