"""What the negatives of an encoder are, measured on the embeddings of a set: no training with this library is needed.

Each function takes embeddings (N, D), one row of any length above 0 per image, as a tensor or an array, and returns a tidy
table (:class:`pandas.DataFrame`). Query i is image i, its candidates are all other images; where a positive matters it is a
second view of the image, row i of ``positives``. What each column holds is in the docstring of the function. All tables
have these, too:

=========== =====================================================================================================
``queries`` images that were asked, drawn by ``seed`` where there are more than allowed
``images``  images that were compared, N; a query has N - 1 candidates
``seed``    seed of the draw
``classes`` where classes matter, "labels" or, for :func:`estimated_classes`, "estimate: ..."
=========== =====================================================================================================

Only images of known class are compared where classes matter, and only those with another of their class are queries. A
column ``x_se`` is the standard error of ``x``, over queries unless the docstring says otherwise: what another draw of
queries would change, the candidates being the same. Work is done on the CPU, in memory that does not grow with the number
of queries.
"""

from contrastneg.analysis.cards import sampler_agreement, sampler_cards, usual_samplers
from contrastneg.analysis.checkpoints import curriculum_curves, score_variance, score_variance_claim
from contrastneg.analysis.classes import EstimatedClasses, estimated_classes
from contrastneg.analysis.consistency import (
    consistency_histogram,
    hardness_agreement,
    hardness_consistency,
    hardness_hits,
)
from contrastneg.analysis.cost import whole_data_cost
from contrastneg.analysis.counts import best_number, gradient_agreement, negative_counts
from contrastneg.analysis.detectors import false_negative_detectors
from contrastneg.analysis.estimates import negative_terms
from contrastneg.analysis.graphs import same_class_by_hop, same_class_by_pagerank
from contrastneg.analysis.hardness import difficulty_shares, effective_negatives, gradient_shares, hardness_bins
from contrastneg.analysis.hierarchy import relatedness_by_hardness
from contrastneg.analysis.hubness import hubness, k_occurrence, popularity
from contrastneg.analysis.laws import chain_mixing, exponent_sweep, partition_variance
from contrastneg.analysis.margins import margin_shares
from contrastneg.analysis.mixtures import mixed_negatives
from contrastneg.analysis.pairs import hard_confusion, rank_band, same_class_by_rank, similarity_histogram
from contrastneg.analysis.proxy import matching_probability, positive_wins, proxy_accuracy
from contrastneg.analysis.relations import background_effect, metadata_relations

__all__ = [
    "EstimatedClasses",
    "background_effect",
    "best_number",
    "chain_mixing",
    "consistency_histogram",
    "curriculum_curves",
    "difficulty_shares",
    "effective_negatives",
    "estimated_classes",
    "exponent_sweep",
    "false_negative_detectors",
    "gradient_agreement",
    "gradient_shares",
    "hard_confusion",
    "hardness_agreement",
    "hardness_bins",
    "hardness_consistency",
    "hardness_hits",
    "hubness",
    "k_occurrence",
    "margin_shares",
    "matching_probability",
    "metadata_relations",
    "mixed_negatives",
    "negative_counts",
    "negative_terms",
    "partition_variance",
    "popularity",
    "positive_wins",
    "proxy_accuracy",
    "rank_band",
    "relatedness_by_hardness",
    "same_class_by_hop",
    "same_class_by_pagerank",
    "same_class_by_rank",
    "sampler_agreement",
    "sampler_cards",
    "score_variance",
    "score_variance_claim",
    "similarity_histogram",
    "usual_samplers",
    "whole_data_cost",
]
