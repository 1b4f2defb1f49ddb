"""Losses as pure functions: similarities in, one value per query out. The caller takes the mean.

All of them compute in float32 (float64 for float64 input) whatever autocast says, in log space. A query without candidates
has loss exactly 0 and zero gradient. ``..._from_logsumexp`` forms need no table of similarities.
"""

from contrastneg.losses.average import moving_average_from_logsumexp, moving_average_info_nce
from contrastneg.losses.debiased import (
    debiased_info_nce,
    debiased_logsumexp,
    hard_info_nce,
    log_mean_exp,
    tilted_logsumexp,
)
from contrastneg.losses.geometry import align_uniform, alignment, uniformity
from contrastneg.losses.infonce import (
    decoupled_from_logsumexp,
    decoupled_info_nce,
    dual_temperature_from_logsumexp,
    dual_temperature_info_nce,
    info_nce,
    info_nce_from_logsumexp,
    nt_xent,
    rince,
    rince_from_logsumexp,
    von_mises_fisher_weight,
)
from contrastneg.losses.pairwise import (
    binary_cross_entropy,
    bpr,
    cosine_contrastive,
    normalised_hard,
    sigmoid,
    triplet,
)
from contrastneg.losses.supervised import multi_positive_info_nce, sincere, sincere_info_nce, supervised_contrastive
from contrastneg.losses.whole_data import (
    KeyMoments,
    clip_norm,
    spectral,
    spectral_contrastive,
    square,
    square_all_pairs,
)

__all__ = [
    "KeyMoments",
    "align_uniform",
    "alignment",
    "binary_cross_entropy",
    "bpr",
    "clip_norm",
    "cosine_contrastive",
    "debiased_info_nce",
    "debiased_logsumexp",
    "decoupled_from_logsumexp",
    "decoupled_info_nce",
    "dual_temperature_from_logsumexp",
    "dual_temperature_info_nce",
    "hard_info_nce",
    "info_nce",
    "info_nce_from_logsumexp",
    "log_mean_exp",
    "moving_average_from_logsumexp",
    "moving_average_info_nce",
    "multi_positive_info_nce",
    "normalised_hard",
    "nt_xent",
    "rince",
    "rince_from_logsumexp",
    "sigmoid",
    "sincere",
    "sincere_info_nce",
    "spectral",
    "spectral_contrastive",
    "square",
    "square_all_pairs",
    "supervised_contrastive",
    "tilted_logsumexp",
    "triplet",
    "uniformity",
    "von_mises_fisher_weight",
]
