"""k-nearest-neighbour classification of frozen features (InstDisc, arXiv:1805.01978): exact, in bounded memory."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from contrastneg.evaluate.features import Features

BANK_TILE = 8192  # bank rows per product; fixed, so that rounding does not depend on how queries are chunked
QUERY_TILE = 64


@dataclass(frozen=True)
class KnnScore:
    """Share of queries whose class is found, and how it was asked."""

    top1: float
    """Share of queries whose first class is right, in [0, 1]."""
    top5: float | None
    """Share of queries with their class among the first five; None with five classes or fewer, where it says nothing."""
    k: int
    """Neighbours that voted."""
    temperature: float
    """Temperature of the votes."""
    notes: tuple[str, ...] = ()
    """What a reader of the score must know."""


def knn_score(bank: Features, queries: Features, *, k: int, temperature: float, num_classes: int) -> KnnScore:
    """Score queries by the labelled images of a bank; images without a label are left out of both.

    Args:
        bank: Answers.
        queries: Are asked about.
        k: Neighbours that vote, at least 1.
        temperature: Temperature of the votes' weights, above 0.
        num_classes: Number of classes.

    Raises:
        ValueError: Nothing in the bank or the queries has a label, or k or temperature is out of range.
    """
    known, asked = bank.labels >= 0, queries.labels >= 0
    if not known.any() or not asked.any():
        raise ValueError("kNN needs labelled images in the bank and among the queries: there are none")
    labels = queries.labels[asked]
    found = knn_predict(
        bank.x[known], bank.labels[known], queries.x[asked], k=k, temperature=temperature, num_classes=num_classes
    )
    hits = found == labels[:, None]
    notes = []
    if k > int(known.sum()):
        notes.append(f"k is {k} but the bank has {int(known.sum())} labelled images: all of them vote")
    if num_classes == 1:
        notes.append("there is one class only: the score is meaningless")
    top5 = hits.any(dim=1).float().mean().item() if num_classes > 5 else None
    return KnnScore(hits[:, 0].float().mean().item(), top5, min(k, int(known.sum())), temperature, tuple(notes))


def knn_predict(
    bank: Float[Tensor, "N F"],
    bank_labels: Int64[Tensor, " N"],
    queries: Float[Tensor, "M F"],
    *,
    k: int = 20,
    temperature: float = 0.07,
    num_classes: int,
    chunk: int = 1024,
) -> Int64[Tensor, "M ranked"]:
    r"""The most voted classes of each query, best first, at most five.

    Each of the k nearest bank rows by cosine votes for its class with weight :math:`e^{\cos / T}`. Equal similarities are
    decided by the lower bank index, equal votes by the lower class.

    Args:
        bank: Features that vote.
        bank_labels: Their classes, 0 to num_classes - 1.
        queries: Features that are asked about.
        k: Neighbours that vote; at most N do.
        temperature: T above 0.
        num_classes: Number of classes.
        chunk: Queries worked on between two releases of memory; does not change the result.

    Returns:
        Classes (M, min(5, num_classes)).

    Raises:
        ValueError: k, temperature or chunk is out of range.
    """
    if k < 1 or temperature <= 0 or chunk < 1:
        raise ValueError(f"k is {k}, temperature {temperature}, chunk {chunk}: give k, chunk >= 1 and temperature > 0")
    bank = F.normalize(bank.float(), dim=1)
    ranked = min(5, num_classes)
    answers = []
    for part in queries.split(chunk):
        for tile in part.split(QUERY_TILE):
            similarity, index = nearest(F.normalize(tile.float(), dim=1), bank, min(k, len(bank)))
            answers.append(vote(similarity, bank_labels[index], temperature, ranked, num_classes))
    return torch.cat(answers) if answers else torch.empty(0, ranked, dtype=torch.long)


def nearest(
    query: Float[Tensor, "m F"], bank: Float[Tensor, "N F"], k: int
) -> tuple[Float[Tensor, "m k"], Int64[Tensor, "m k"]]:
    """The k most similar rows of the bank for each query, by a running top-k over tiles of the bank."""
    padded = F.pad(query, (0, 0, 0, QUERY_TILE - len(query)))  # products of one shape round alike, whatever the chunk
    best = query.new_empty(len(query), 0)
    index = torch.empty(len(query), 0, dtype=torch.long)
    for start in range(0, len(bank), BANK_TILE):
        tile = bank[start : start + BANK_TILE]
        similarity = (padded @ tile.T)[: len(query)]
        value, place = similarity.topk(min(k, len(tile)), dim=1)
        best, index = torch.cat([best, value], dim=1), torch.cat([index, place + start], dim=1)
        order = index.argsort(dim=1)  # by index first, so that the stable sort lets the lower index win
        best, index = best.gather(1, order), index.gather(1, order)
        order = best.argsort(dim=1, descending=True, stable=True)[:, :k]
        best, index = best.gather(1, order), index.gather(1, order)
    return best, index


def vote(
    similarity: Float[Tensor, "m k"],
    labels: Int64[Tensor, "m k"],
    temperature: float,
    ranked: int,
    num_classes: int,
) -> Int64[Tensor, "m ranked"]:
    """Classes by the sum of their votes; memory is (m, num_classes) for a tile of queries only."""
    weight = ((similarity - similarity[:, :1]) / temperature).exp()  # relative to the largest: no overflow
    votes = torch.zeros(len(similarity), num_classes).scatter_add_(1, labels, weight)
    return votes.argsort(dim=1, descending=True, stable=True)[:, :ranked]
