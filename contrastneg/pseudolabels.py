"""Pseudo-labels: k-means on unit embeddings, how sure each image's cluster is, and which images to believe.

Tables are by stable image index. What is computed here is computed once, on the first rank, and is the same on all.
"""

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from contrastneg import distributed
from contrastneg.evaluate import neighbours
from contrastneg.randomness import derive_seed, generator

CHUNK = 1 << 24  # cosines held at once, 64 MiB
ROWS_PER_CLUSTER = 1000  # more rows than this per cluster change the centroids little
MANY_ROWS = 2**17  # beyond these fewer rows per cluster must do: the time of a fit grows with rows times clusters
FEWER_PER_CLUSTER = 64  # faiss asks for 39 at least


@dataclass(frozen=True)
class Clusters:
    """One clustering of all images."""

    label: Int64[Tensor, " T"]
    """Cluster of each image, -1 for an image without embedding. Some clusters may be empty."""
    confidence: Float[Tensor, " T"]
    """How sure that is, larger is surer; -inf for an image without embedding."""
    centroids: Float[Tensor, "k D"]
    """Unit-norm centres."""


def kmeans(
    embeddings: Float[Tensor, "T D"],
    k: int,
    *,
    seed: int,
    iterations: int = 20,
    restarts: int = 1,
    confidence: Literal["margin", "softmax"] = "margin",
    temperature: float = 0.1,
) -> Clusters:
    r"""Spherical k-means, by faiss where it can be imported and by torch elsewhere.

    An image belongs to the centroid of largest cosine. With cosines :math:`c_1 \ge c_2 \ge ...` to the centroids of
    clusters that are not empty, its confidence is

    .. math:: c_1 - c_2 \text{ (margin)} \qquad \frac{e^{c_1/\phi}}{\sum_l e^{c_l/\phi}} \text{ (softmax)}

    Centroids start at rows drawn by ``seed`` and are fitted to at most 1,000 k rows, of more than 131,072 images to at most
    131,072 or, with more than 2,048 clusters, 64 k; every image is assigned. The first rank computes, the others are told;
    all must call with the same arguments.

    Args:
        embeddings: Rows of any length but 0, one per stable image index; a row that is not finite has no image.
        k: Clusters, at least 1.
        seed: Of the starting centroids.
        iterations: Rounds of assignment and centring.
        restarts: Fits from different starts, of which the one with the largest mean cosine counts.
        confidence: ``margin`` or ``softmax``.
        temperature: :math:`\phi` > 0 of the softmax.

    Raises:
        ValueError: There are fewer images than clusters, or a number is out of range.
    """
    if k < 1 or iterations < 1 or restarts < 1 or temperature <= 0:
        raise ValueError(
            f"k is {k}, iterations {iterations}, restarts {restarts}, temperature {temperature}: give numbers above 0"
        )
    there = embeddings.isfinite().all(dim=1)
    if k > int(there.sum()):
        raise ValueError(f"{k} clusters of {int(there.sum())} images were asked for: ask for fewer than images")
    label = torch.full((len(embeddings),), -1)
    sure = torch.full((len(embeddings),), -torch.inf)
    centroids = torch.zeros(k, embeddings.shape[1])
    if distributed.rank() == 0:
        x = F.normalize(embeddings[there].detach().float().cpu(), dim=1).contiguous()
        fits = [_fit(x, k, derive_seed(seed, "kmeans", k, number), iterations) for number in range(restarts)]
        centroids = fits[0] if restarts == 1 else max(fits, key=lambda fitted: float(_nearest(x, fitted)[0].mean()))
        label[there.cpu()], sure[there.cpu()] = _assign(x, centroids, temperature if confidence == "softmax" else None)
        _warn_if_empty(label, k)
    return Clusters(*(distributed.of_first_rank(part) for part in (label, sure, centroids)))


def accepted(
    clusters_of: Int64[Tensor, " T"],
    confidence: Float[Tensor, " T"],
    share: float,
    ranked: Literal["all", "cluster"] = "all",
) -> Bool[Tensor, " T"]:
    """The most confident share of the images that have a cluster; equal confidence is decided by the lower index.

    For fixed confidences a larger share contains the smaller.

    Args:
        clusters_of: Cluster of each image, -1 without.
        confidence: How sure that is.
        share: Share that is accepted, in [0, 1].
        ranked: Compare all images, or those of each cluster, so that every cluster gets the same share.

    Raises:
        ValueError: The share is outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share of accepted pseudo-labels is {share}: give a number from 0 to 1")
    there = (clusters_of >= 0).nonzero()[:, 0]
    order = there[confidence[there].argsort(descending=True, stable=True)]
    groups = clusters_of[order] if ranked == "cluster" else torch.zeros_like(order)
    groups, place = groups.sort(stable=True)
    size = groups.bincount()
    within = torch.arange(len(groups), device=groups.device) - (size.cumsum(0) - size)[groups]
    believed = torch.zeros_like(clusters_of, dtype=torch.bool)
    believed[order[place[within < (share * size[groups]).round()]]] = True
    return believed


def pair_scores(found: Int64[Tensor, " T"], truth: Int64[Tensor, " T"]) -> dict[str, float]:
    """How well clusters tell which two images are of one class, over all pairs of different images of known class.

    Args:
        found: Cluster of each image, -1 for one that is not believed to be in any.
        truth: Class of each image, -1 unknown.

    Returns:
        ``precision``, the share of pairs in one cluster that are of one class, and ``recall``, the share of pairs of one
        class that are in one cluster; NaN where there is no such pair.
    """
    found, truth = found[truth >= 0], truth[truth >= 0]
    inside = found >= 0
    both = torch.stack([found[inside], truth[inside]], dim=1).unique(dim=0, return_counts=True)[1]

    def pairs(counts: Tensor) -> float:
        return float((counts.double() * (counts.double() - 1)).sum())

    hits = pairs(both)
    together, alike = pairs(found[inside].bincount()), pairs(truth.bincount())
    return {
        "precision": hits / together if together else float("nan"),
        "recall": hits / alike if alike else float("nan"),
    }


def _fit(x: Tensor, k: int, seed: int, iterations: int) -> Tensor:
    order = torch.randperm(len(x), generator=generator(seed))
    most = _rows_to_fit(len(x), k)
    rows = x if len(x) <= most else x[order[:most]]
    fit = _fit_torch if neighbours._faiss() is None else _fit_faiss
    return fit(rows, x[order[:k]], seed, iterations)


def _rows_to_fit(images: int, k: int) -> int:
    """Rows that centroids are fitted to, at most."""
    most = ROWS_PER_CLUSTER * k
    return most if images <= MANY_ROWS else min(most, max(MANY_ROWS, FEWER_PER_CLUSTER * k))


def _fit_faiss(x: Tensor, start: Tensor, seed: int, iterations: int) -> Tensor:
    faiss = neighbours._faiss()
    settings = {"niter": iterations, "spherical": True, "seed": seed & 0x7FFFFFFF}
    limits = {"min_points_per_centroid": 1, "max_points_per_centroid": len(x)}  # sampled before
    fitted = faiss.Kmeans(x.shape[1], len(start), **settings, **limits)
    fitted.train(x.numpy(), init_centroids=start.numpy())
    return torch.from_numpy(fitted.centroids).clone()


def _fit_torch(x: Tensor, start: Tensor, seed: int, iterations: int) -> Tensor:
    centroids = start
    for _ in range(iterations):
        cosine, label = _nearest(x, centroids)
        total = torch.zeros_like(centroids).index_add_(0, label, x)
        empty = (label.bincount(minlength=len(centroids)) == 0).nonzero()[:, 0]
        if len(empty):  # begins again at the rows that fit worst
            total[empty] = x[cosine.argsort(stable=True)[: len(empty)]]
        centroids = F.normalize(total, dim=1)
    return centroids


def _nearest(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Largest cosine of each row, and the centroid that has it."""
    found = [(part @ centroids.T).max(dim=1) for part in x.split(max(1, CHUNK // len(centroids)))]
    return torch.cat([values for values, _ in found]), torch.cat([index for _, index in found])


def _assign(x: Tensor, centroids: Tensor, temperature: float | None) -> tuple[Tensor, Tensor]:
    """Cluster of each row and its confidence: margin, or softmax with a temperature."""
    label = _nearest(x, centroids)[1]
    empty = label.bincount(minlength=len(centroids)) == 0  # faiss splits a cluster in two next to each other
    sure = []
    for part in x.split(max(1, CHUNK // len(centroids))):
        cosine = (part @ centroids.T).masked_fill_(empty, -torch.inf)
        if temperature is None:
            first, place = cosine.max(dim=1)  # twice, which takes a third of the time of topk
            second = cosine.scatter_(1, place[:, None], -torch.inf).amax(dim=1)
            sure.append(first - second.clamp(min=-1))  # -1 stands for the next where there is one cluster only
        else:
            sure.append((cosine / temperature).softmax(dim=1).amax(dim=1))
    return label, torch.cat(sure)


def _warn_if_empty(label: Tensor, k: int) -> None:
    used = len(label[label >= 0].unique())
    if used < k:
        warnings.warn(
            f"{k} clusters were asked for and {used} have images: others are equal, or fewer rows differ than that",
            stacklevel=3,
        )
