"""What a trained classifier answers about labelled queries."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from contrastneg.evaluate.features import finite_rows
from contrastneg.evaluate.knn import RANKED


@dataclass(frozen=True)
class Answers:
    """Share of queries that a classifier gets right, and which."""

    top1: float
    """Share of labelled queries whose class is right, in [0, 1]; queries without finite features count as wrong."""
    top5: float | None
    """Share of queries with their class among the first five; None with five classes or fewer, where it says nothing."""
    right: Bool[Tensor, " M"] = field(compare=False, repr=False)
    """Whether each labelled query is right, in their order: what a bootstrap over queries draws from."""
    notes: tuple[str, ...]
    """What a reader of the score must know."""


def listed(logits: Float[Tensor, "M C"], labels: Int64[Tensor, " M"]) -> Bool[Tensor, "M 2"]:
    """Whether the class of each query comes first, and whether it is among the first five; never where a logit is not finite.

    Args:
        logits: One per class.
        labels: Classes; -1 is never found.
    """
    first = logits.topk(min(RANKED, logits.shape[1]), dim=1).indices
    found = (first == labels[:, None]) & finite_rows(logits)[:, None]
    return torch.stack([found[:, 0], found.any(dim=1)], dim=1)


def shares(found: Bool[Tensor, "M 2"], num_classes: int) -> tuple[float, float | None]:
    """Top-1 and top-5 of all labelled queries together.

    Args:
        found: See :func:`listed`.
        num_classes: Number of classes.
    """
    top1, top5 = (int(column.sum()) / len(column) for column in found.unbind(dim=1))
    return top1, top5 if num_classes > RANKED else None
