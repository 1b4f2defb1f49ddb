"""Whether clusters found without labels are the classes: k-means on features, against the labels."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from contrastneg.evaluate.features import Features, finite_rows
from contrastneg.pseudolabels import kmeans

RESTARTS = 5


@dataclass(frozen=True)
class ClusteringScore:
    """Agreement of k-means clusters with classes, over labelled images."""

    nmi: float
    """Normalised mutual information (arithmetic mean of the entropies), in [0, 1]."""
    ari: float
    """Adjusted Rand index: 0 for chance, at most 1."""
    accuracy: float
    """Share of images in the cluster that stands for their class, under the best one-to-one matching."""
    clusters: int
    """Clusters, as many as there are classes among the images."""
    notes: tuple[str, ...] = ()
    """What a reader of the score must know."""


def clustering_score(features: Features, *, seed: int) -> ClusteringScore:
    """Spherical k-means with as many clusters as classes, the best of 5 starts, scored against the labels.

    Args:
        features: Of one set; images without a label and features that are not finite are left out.
        seed: Of the starting centres.

    Raises:
        ValueError: Fewer than two classes are labelled.
    """
    known = features.labels >= 0
    usable = known & finite_rows(features.x)
    x, labels = features.x[usable], features.labels[usable].numpy()
    classes = len(np.unique(labels))
    if classes < 2:
        raise ValueError(
            f"clusters are compared with classes, of which there is {classes}: give labelled images of two"
        )
    found = kmeans(x, classes, seed=seed, restarts=RESTARTS).label.numpy()
    counts = contingency_matrix(labels, found)
    lost = int((known & ~usable).sum())
    return ClusteringScore(
        nmi=float(normalized_mutual_info_score(labels, found)),
        ari=float(adjusted_rand_score(labels, found)),
        accuracy=float(counts[linear_sum_assignment(counts, maximize=True)].sum() / len(labels)),
        clusters=classes,
        notes=(f"{lost} features are not finite and left out",) if lost else (),
    )
