"""Classes of images: true labels, or clusters that stand in for them and are always named an estimate."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from contrastneg.pseudolabels import kmeans


@dataclass(frozen=True)
class EstimatedClasses:
    """Clusters in the place of labels; what is measured with them is an estimate and its table says so."""

    label: Int64[Tensor, " N"]
    """Cluster of each image, -1 without one."""
    source: str
    """What the column ``classes`` of a table says."""


Labels = Int[Tensor | np.ndarray, " L"] | EstimatedClasses | None
"""One whole number per image, -1 unknown; or an estimate. None is refused by measures that compare classes."""


def estimated_classes(
    embeddings: Float[Tensor | np.ndarray, "N D"], clusters: int, *, seed: int = 0
) -> EstimatedClasses:
    """Spherical k-means in the place of labels.

    Clusters of the very embeddings that are measured agree with their similarities: every rate of false negatives found
    with them is an estimate, and too high among the hardest. Those of another encoder are a better stand-in.

    Args:
        embeddings: Of all images, the measured ones or better ones.
        clusters: Clusters, about as many as you expect classes.
        seed: Of the starting centroids.

    Raises:
        ValueError: There are fewer images than clusters.
    """
    found = kmeans(torch.as_tensor(embeddings), clusters, seed=seed)
    return EstimatedClasses(found.label, f"estimate: {clusters} clusters, seed {seed}")


def known_classes(labels: Labels, images: int) -> tuple[Int64[Tensor, " N"], str]:
    """Label of each image and where labels come from.

    Args:
        labels: Labels, or an estimate of classes.
        images: How many there must be.

    Raises:
        ValueError: There are none, not one per image, no two images of one class, or one class only.
    """
    if labels is None:
        raise ValueError(
            "labels is None but this measure compares classes: give one whole number per image, or "
            "estimated_classes(embeddings, clusters)"
        )
    label = of_images(labels, images)
    sizes = label[label >= 0].unique(return_counts=True)[1]
    if len(sizes) < 2 or int(sizes.max()) < 2:
        raise ValueError(
            f"labels has {len(sizes)} classes, the largest of {int(sizes.max()) if len(sizes) else 0} images: give two "
            "classes, one of them with two images"
        )
    return label, labels.source if isinstance(labels, EstimatedClasses) else "labels"


def of_images(
    labels: Int[Tensor | np.ndarray, " L"] | EstimatedClasses, images: int, name: str = "labels"
) -> Int64[Tensor, " N"]:
    """One label for each image.

    Args:
        labels: Labels or clusters.
        images: How many there must be.
        name: What the user calls them.

    Raises:
        ValueError: There are more or fewer.
    """
    label = torch.as_tensor(labels.label if isinstance(labels, EstimatedClasses) else labels).cpu().long()
    if len(label) != images:
        raise ValueError(f"{name} has {len(label)} entries but there are {images} images: give one for each")
    return label
