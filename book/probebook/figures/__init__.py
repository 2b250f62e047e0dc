"""Figures of the chapters, one module a chapter: each draws what it is given.

What any user of the library wants to draw is in :mod:`probelib.plotting`.
"""

from probebook.figures.influence_functions import (
    expansion_errors,
    kernel_and_gradients,
    retraining_scatter,
    singular_influence,
)
from probebook.figures.introduction import data_maps, kernel_picture, probe_picture
from probebook.figures.language_models_llm import (
    induction_kernels,
    induction_positions,
    kept_by_localization,
)
from probebook.figures.llc_identity import approach, known_answers, llc_in_parts, when_to_believe
from probebook.figures.local_posterior import (
    chain_gallery,
    closed_forms,
    stationary_variance,
    sweeps,
    three_errata,
)
from probebook.figures.loss_kernel import (
    chain_losses,
    localization_sweep,
    permutation_picture,
    reliability_curves,
)
from probebook.figures.loss_kernel_tested import interval_panels, planted_matrices
from probebook.figures.memorization import embeddings
from probebook.figures.outliers import odd_scores, odd_sweep, relabelling_curves
from probebook.figures.samplers_and_settings import (
    efficiency,
    ranks_and_errors,
    sampler_map,
)
from probebook.figures.singular_fluctuation import (
    gibbs_levels,
    group_shares,
    one_data_set,
    waic_picture,
)
from probebook.figures.training_time import (
    gains_in_training,
    memorization_curves,
    phase_picture,
    stage_picture,
)
from probebook.figures.wrong_labels import (
    scores_by_stage,
    scores_over_epochs,
    suspicious_digits,
)

__all__ = [
    "approach",
    "chain_gallery",
    "chain_losses",
    "closed_forms",
    "data_maps",
    "efficiency",
    "embeddings",
    "expansion_errors",
    "gains_in_training",
    "gibbs_levels",
    "group_shares",
    "induction_kernels",
    "induction_positions",
    "interval_panels",
    "kept_by_localization",
    "kernel_and_gradients",
    "kernel_picture",
    "known_answers",
    "llc_in_parts",
    "localization_sweep",
    "memorization_curves",
    "odd_scores",
    "odd_sweep",
    "one_data_set",
    "permutation_picture",
    "phase_picture",
    "planted_matrices",
    "probe_picture",
    "ranks_and_errors",
    "relabelling_curves",
    "reliability_curves",
    "retraining_scatter",
    "sampler_map",
    "scores_by_stage",
    "scores_over_epochs",
    "singular_influence",
    "stage_picture",
    "stationary_variance",
    "suspicious_digits",
    "sweeps",
    "three_errata",
    "waic_picture",
    "when_to_believe",
]
