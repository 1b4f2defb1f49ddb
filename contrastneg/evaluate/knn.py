"""k-nearest-neighbour classification of frozen features (InstDisc, arXiv:1805.01978): exact, in bounded memory."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from contrastneg import distributed
from contrastneg.evaluate.features import Features, check_labels, finite_rows
from contrastneg.evaluate.neighbours import nearest, unit_rows

RANKED = 5  # classes that an answer lists at most


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
    right: Bool[Tensor, " M"] = field(compare=False, repr=False)
    """Whether each labelled query is right, in their order, also where ranks shared them out."""
    notes: tuple[str, ...] = ()
    """What a reader of the score must know."""


def knn_score(
    bank: Features,
    queries: Features,
    *,
    k: int,
    temperature: float,
    num_classes: int,
    across_ranks: bool = False,
) -> KnnScore:
    """Score queries by the labelled images of a bank; images without a label are left out of both.

    Args:
        bank: Answers.
        queries: Are asked about.
        k: Neighbours that vote, at least 1.
        temperature: Temperature of the votes' weights, above 0.
        num_classes: Number of classes.
        across_ranks: Each rank answers its share of the queries. All ranks must call with the same features, and all get
            the same score.

    Raises:
        ValueError: Nothing in the bank or the queries has a label, a label is not among the classes, or k or temperature
            is out of range.
    """
    known, asked = bank.labels >= 0, queries.labels >= 0
    if not known.any() or not asked.any():
        raise ValueError("kNN needs labelled training and test images: there are none")
    x, y, labels = bank.x[known], bank.labels[known], queries.labels[asked]
    check_labels(y, num_classes, "training images")
    check_labels(labels, num_classes, "test images")
    own = slice(distributed.rank(), None, distributed.world_size()) if across_ranks else slice(None)
    found = knn_predict(x, y, queries.x[asked][own], k=k, temperature=temperature, num_classes=num_classes)
    listed = (found == labels[own, None]).cumsum(dim=1)[:, [0, -1]].bool()
    if across_ranks:
        listed = _all_ranks(listed, len(labels))
    top1, top5 = listed.double().mean(dim=0).tolist()
    notes = _notes(x, queries.x[asked], k, num_classes, len(y.unique()))
    return KnnScore(top1, top5 if num_classes > RANKED else None, min(k, len(y)), temperature, listed[:, 0], notes)


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
        bank: Features that vote; a row that is not finite has no vote.
        bank_labels: Their classes, 0 to num_classes - 1; -1 has no vote.
        queries: Features that are asked about.
        k: Neighbours that vote; at most N do.
        temperature: T above 0.
        num_classes: Number of classes.
        chunk: Queries worked on at a time; does not change the result.

    Returns:
        Classes (M, min(5, num_classes)); -1 where fewer classes were voted for, and for queries that are not finite.

    Raises:
        ValueError: k, temperature or chunk is out of range, or a label is not among the classes.
    """
    grid = knn_grid(
        bank, bank_labels, queries, ks=(k,), temperatures=(temperature,), num_classes=num_classes, chunk=chunk
    )
    return grid[k, temperature]


def knn_grid(
    bank: Float[Tensor, "N F"],
    bank_labels: Int64[Tensor, " N"],
    queries: Float[Tensor, "M F"],
    *,
    ks: Sequence[int],
    temperatures: Sequence[float],
    num_classes: int,
    chunk: int = 1024,
) -> dict[tuple[int, float], Int64[Tensor, "M ranked"]]:
    """The answers of :func:`knn_predict` for every k and temperature, from one search.

    Args:
        bank: Features that vote; a row that is not finite has no vote.
        bank_labels: Their classes, 0 to num_classes - 1; -1 has no vote.
        queries: Features that are asked about.
        ks: Neighbours that vote, each at least 1; at most N do.
        temperatures: Each above 0.
        num_classes: Number of classes.
        chunk: Queries worked on at a time; does not change the result.

    Returns:
        Classes by (k, temperature).

    Raises:
        ValueError: A k, temperature or chunk is out of range, or a label is not among the classes.
    """
    if min(ks) < 1 or min(temperatures) <= 0 or chunk < 1:
        raise ValueError(
            f"k is {min(ks)}, temperature {min(temperatures)}, chunk {chunk}: give k, chunk >= 1 and temperature > 0"
        )
    check_labels(bank_labels, num_classes, "training images")
    votes, asked = finite_rows(bank) & (bank_labels >= 0), finite_rows(queries)
    if not votes.all():
        bank, bank_labels = bank[votes], bank_labels[votes]
    ranked = min(RANKED, num_classes)
    answers = {(k, t): bank_labels.new_full((len(queries), ranked), -1) for k in ks for t in temperatures}
    if len(bank) and asked.any():
        cosine, index = nearest(unit_rows(queries[asked]), unit_rows(bank), min(max(ks), len(bank)), chunk)
        labels = bank_labels[index]
        for (k, temperature), answer in answers.items():
            answer[asked] = vote(cosine[:, :k], labels[:, :k], temperature, ranked)
    return answers


def vote(
    cosine: Float64[Tensor, "M k"], labels: Int64[Tensor, "M k"], temperature: float, ranked: int
) -> Int64[Tensor, "M ranked"]:
    """Classes by the sum of their votes, most votes first; -1 where fewer classes got any. Memory does not grow with classes."""
    weight = ((cosine - cosine[:, :1]) / temperature).exp()  # relative to the largest: no overflow
    labels, order = labels.sort(dim=1, stable=True)
    starts = torch.nn.functional.pad(labels[:, 1:] != labels[:, :-1], (1, 0))
    place = starts.cumsum(dim=1)  # which of the query's classes, counted in the order of labels
    votes = torch.zeros_like(weight).scatter_add_(1, place, weight.gather(1, order))
    classes = torch.full_like(labels, -1).scatter_(1, place, labels)
    votes.masked_fill_(classes < 0, -1.0)
    best = votes.argsort(dim=1, descending=True, stable=True)[:, :ranked]
    return torch.nn.functional.pad(classes.gather(1, best), (0, ranked - best.shape[1]), value=-1)


def _all_ranks(own: Bool[Tensor, "m 2"], queries: int) -> Bool[Tensor, "M 2"]:
    """The answers of all ranks in the order of the queries, which the ranks took in turns."""
    world = distributed.world_size()
    device = "cuda" if world > 1 and torch.distributed.get_backend() == "nccl" else own.device
    by_rank = distributed.all_gather(own.to(device)).cpu()
    taken = torch.cat([torch.arange(rank, queries, world) for rank in range(world)])
    return by_rank[taken.argsort()]


def _notes(bank: Tensor, queries: Tensor, k: int, num_classes: int, met: int) -> tuple[str, ...]:
    lost, unanswered = int((~finite_rows(bank)).sum()), int((~finite_rows(queries)).sum())
    notes = []
    if k > len(bank):
        notes.append(f"k is {k} but {len(bank)} training images are labelled: all of them vote")
    notes.extend(class_notes(num_classes, met))
    if lost:
        notes.append(f"{lost} of {len(bank)} features of the training images are not finite: they do not vote")
    if unanswered:
        notes.append(f"{unanswered} of {len(queries)} features of the test images are not finite: they count as wrong")
    return tuple(notes)


def class_notes(num_classes: int, met: int) -> list[str]:
    """What a reader of a score must know about the classes, if anything.

    Args:
        num_classes: Number of classes.
        met: Number of classes that the bank has images of.
    """
    if num_classes == 1:
        return ["there is one class only: the score is meaningless"]
    if met == 1:
        return [f"the training images are of one of the {num_classes} classes only: the score is meaningless"]
    if num_classes <= RANKED:
        return [f"there are {num_classes} classes: a top-5 score would always be 1 and is left out"]
    return []
