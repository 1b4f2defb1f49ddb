"""Retrieval: whether the images most similar to an image are of its class. Every image is query and gallery at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from contrastneg.evaluate.features import Features, finite_rows
from contrastneg.evaluate.neighbours import unit_rows

CELLS = 2**24  # cosines held at once: 128 MiB in float64


@dataclass(frozen=True)
class RetrievalScore:
    """How often the class of an image is found among the others most similar to it."""

    recall: dict[int, float]
    """Recall@k by k: share of queries with an image of their class among the k most similar others, in [0, 1]."""
    map_at_r: float
    """MAP@R, in [0, 1]."""
    queries: int
    """Images with another of their class and of another group: only these are asked about; all labelled ones are the gallery."""
    found: Bool[Tensor, "Q ks"]
    """For each query and k, whether one of its class is among the k most similar others."""
    precision: Float64[Tensor, " Q"]
    """Average precision of each query; its mean is MAP@R."""
    asked: Int64[Tensor, " Q"]
    """Row of each query among the features."""
    notes: tuple[str, ...] = ()
    """What a reader of the score must know."""


def retrieval_score(
    features: Features, ks: Sequence[int] = (1, 5, 10), group: Int64[Tensor, " N"] | None = None
) -> RetrievalScore:
    r"""Recall@k and mean average precision at R (arXiv:2003.08505), by cosine, each image left out of its own answers.

    .. math:: \mathrm{MAP@R} = \frac{1}{Q} \sum_q \frac{1}{R_q} \sum_{i=1}^{R_q} \mathrm{rel}_q(i)\, P_q(i)

    with :math:`R_q` the other images of the query's class and :math:`P_q(i)` the share of these among the first i answers.
    Equal cosines are decided by the lower position. Images of the query's group, for instance frames of the same film, are
    left out of its answers, too, as Market-1501's protocol leaves out those of the same camera: finding them again
    says nothing about classes.

    Args:
        features: Of one set; images without a label and features that are not finite are left out.
        ks: Depths of Recall@k, each at least 1.
        group: Of each image; None: no two are of one group.

    Raises:
        ValueError: No class has two images (of two groups), or a depth is below 1.
    """
    if min(ks) < 1:
        raise ValueError(f"k is {min(ks)}: give at least 1")
    known = features.labels >= 0
    usable = known & finite_rows(features.x)
    x, labels = unit_rows(features.x[usable]).double(), features.labels[usable]
    own = torch.arange(len(x)) if group is None else group[usable]
    others = same_count(labels) - same_count(torch.stack([labels, own], dim=1))
    asked = (others > 0).nonzero().flatten()
    if not len(asked):
        apart = "" if group is None else " that are of two groups"
        raise ValueError(f"retrieval needs two labelled images of one class{apart}: there are none")
    deepest = min(len(x) - 1, max(int(others.max()), *ks))
    found, precision = [], []
    for rows in asked.split(max(1, CELLS // len(x))):
        cosine = x[rows] @ x.T
        cosine[own[rows, None] == own] = -torch.inf
        order = cosine.sort(dim=1, descending=True, stable=True).indices[:, :deepest]
        right = (labels[order] == labels[rows, None]) & (own[order] != own[rows, None])
        found.append(torch.stack([right[:, :k].any(dim=1) for k in ks], dim=1))
        precision.append(_average_precision(right, others[rows]))
    lost = int((known & ~usable).sum())
    notes = (f"{lost} features are not finite and left out",) if lost else ()
    hits, average = torch.cat(found), torch.cat(precision)
    recall = dict(zip(ks, hits.double().mean(dim=0).tolist(), strict=True))
    rows = usable.nonzero().flatten()[asked]
    return RetrievalScore(recall, float(average.mean()), len(asked), hits, average, rows, notes)


def same_count(of: Int64[Tensor, "N ..."]) -> Int64[Tensor, " N"]:
    """For each row, how many rows are the same, itself among them."""
    _, code, count = of.unique(dim=0, return_inverse=True, return_counts=True)
    return count[code]


def _average_precision(right: Bool[Tensor, "m n"], others: Tensor) -> Float64[Tensor, " m"]:
    """Mean precision at the right answers among each row's first R."""
    place = torch.arange(1, right.shape[1] + 1)
    right = right & (place <= others[:, None])
    precision = right.cumsum(dim=1).double() / place
    return (precision * right).sum(dim=1) / others
