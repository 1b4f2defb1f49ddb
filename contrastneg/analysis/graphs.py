"""False negatives in the graph of nearest images: by rank of personalised PageRank, and by hops from the query."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Int64
from scipy import sparse
from torch import Tensor

from contrastneg.analysis.classes import Labels
from contrastneg.analysis.errors import columns_of, mean, ratio
from contrastneg.analysis.hardness import sums_by_bin
from contrastneg.analysis.pairs import window_starts
from contrastneg.analysis.queries import (
    Asked,
    Embeddings,
    ask_by_class,
    check_above_0,
    check_share,
    filled,
    hardest_first,
)
from contrastneg.negatives.graph import knn_graph

BATCH = 64
"""Queries whose walks are followed at a time."""


def same_class_by_pagerank(
    embeddings: Embeddings,
    labels: Labels,
    *,
    neighbours: int = 20,
    follow: float = 0.85,
    steps: int = 20,
    queries: int = 512,
    seed: int = 0,
) -> pd.DataFrame:
    r"""How often the candidate of a rank by personalised PageRank is of the query's class (PinSage, arXiv:1806.01973).

    In the graph in which each image points at its k nearest with equal weight,

    .. math:: \pi^{(0)} = e_i, \qquad \pi^{(m+1)} = (1 - c)\, e_i + c\, P^\top \pi^{(m)}

    and candidates are ranked by :math:`\pi` after some steps, those that no walk of that length reaches having no rank:
    what many walks of :class:`contrastneg.negatives.PageRankBand` estimate. Ranks are taken in windows as in
    :func:`same_class_by_rank`; :func:`rank_band` reads this table, too.

    Args:
        embeddings: Of all images.
        labels: Their classes.
        neighbours: k, edges of each image, at least 1.
        follow: c, the probability to go on rather than to restart, between 0 and 1.
        steps: Longest walk, at least 1.
        queries: How many are asked at most.
        seed: Of the draw of queries.

    Returns:
        One row per window that any query reaches: ``first`` and ``last`` rank in it; ``reached``, candidates of these ranks
        per query; ``rate`` and ``lift``, rate over base rate, each with its standard error over queries, ``..._se``;
        ``base_rate``; ``neighbours``, ``follow``, ``steps``.

    Raises:
        ValueError: Labels are missing, or a number is out of range.
    """
    check_share("follow", follow)
    check_above_0("steps", steps)
    asked = ask_by_class(embeddings, labels, queries=queries, seed=seed)
    moves = _moves(asked, neighbours)
    windows = list(pairwise(window_starts(asked.candidates)))
    walked = ((rows, _pagerank(moves, len(asked.x), rows, follow, steps)) for rows in asked.rows.split(BATCH))
    shape = (len(asked.rows), 2, len(windows))
    found = filled(shape, (_by_rank(asked, rows, score, windows) for rows, score in walked))
    used = found[:, 0].sum(dim=0) > 0
    first, after = torch.tensor(windows)[used].unbind(dim=1)
    ranks = {"first": first + 1, "last": after}
    about = {"neighbours": neighbours, "follow": follow, "steps": steps}
    return asked.table({**ranks, **_rates(asked, found[:, :, used]), **about})


def same_class_by_hop(
    embeddings: Embeddings,
    labels: Labels,
    *,
    neighbours: int = 20,
    hops: int = 6,
    queries: int = 512,
    seed: int = 0,
) -> pd.DataFrame:
    r"""How often images that lie h edges from the query in the graph of nearest images are of its class.

    .. math:: \text{rate}_h = \frac{\sum_i |H_{ih} \cap F_i|}{\sum_i |H_{ih}|} \qquad
        \text{recall}_h = \frac{1}{Q} \sum_i \frac{|H_{ih} \cap F_i|}{|F_i|}

    with H the images that a shortest path of h edges leads to and F the candidates of the query's class. It tells from
    which hop on the images that walks visit (:class:`contrastneg.negatives.GraphWalk`) may be taken for negatives.

    Args:
        embeddings: Of all images.
        labels: Their classes.
        neighbours: Edges of each image, at least 1.
        hops: Largest h, at least 1.
        queries: How many are asked at most.
        seed: Of the draw of queries.

    Returns:
        One row per hop that any query reaches: ``hop``; ``reached`` images per query; ``rate``, ``lift``, rate over base
        rate, and ``recall``, each with its standard error over queries, ``..._se``; ``base_rate``; ``neighbours``.

    Raises:
        ValueError: Labels are missing, or a number is out of range.
    """
    check_above_0("hops", hops)
    asked = ask_by_class(embeddings, labels, queries=queries, seed=seed)
    moves = _moves(asked, neighbours)
    walked = ((rows, _hops(moves, len(asked.x), rows, hops)) for rows in asked.rows.split(BATCH))
    found = filled((len(asked.rows), 2, hops), (_by_hop(asked, rows, hop, hops) for rows, hop in walked))
    used = found[:, 0].sum(dim=0) > 0
    of_class = asked.base_rate()[:, None] * asked.candidates
    recall = columns_of("recall", mean(found[:, 1, used] / of_class))
    hop = torch.arange(1, hops + 1)[used]
    return asked.table({"hop": hop, **_rates(asked, found[:, :, used]), **recall, "neighbours": neighbours})


def _by_rank(
    asked: Asked, rows: Int64[Tensor, " b"], score: Float64[Tensor, "b N"], windows: Sequence[tuple[int, int]]
) -> Float64[Tensor, "b 2 windows"]:
    """Images with a score at the ranks of each window, and those of the query's class among them."""
    image = hardest_first(score)
    there = score.gather(1, image) > -torch.inf
    same = asked.same_class(rows).gather(1, image) & there
    return torch.stack([sums_by_bin(kind, windows) for kind in (there, same)], dim=1)


def _by_hop(
    asked: Asked, rows: Int64[Tensor, " b"], hop: Int64[Tensor, "b N"], hops: int
) -> Float64[Tensor, "b 2 hops"]:
    """Images at each number of hops, and those of the query's class among them."""
    same = asked.same_class(rows)
    at_hop = [hop == number for number in range(1, hops + 1)]
    counts = [torch.stack([here.sum(dim=1), (here & same).sum(dim=1)], dim=1) for here in at_hop]
    return torch.stack(counts, dim=2).double()


def _rates(asked: Asked, found: Float64[Tensor, "Q 2 rows"]) -> dict[str, Any]:
    """Candidates that are reached, and the rate and lift of those of the query's class among them."""
    reached, false = found.unbind(dim=1)
    base = float(asked.base_rate().mean())
    rate, error = ratio(false, reached)
    measured = {**columns_of("rate", (rate, error)), **columns_of("lift", (rate / base, error / base))}
    return {"reached": reached.mean(dim=0), **measured, "base_rate": base}


def _moves(asked: Asked, neighbours: int) -> sparse.csr_matrix:
    """Transposed law of one step: entry (to, from)."""
    check_above_0("neighbours", neighbours)
    if neighbours > asked.candidates:
        raise ValueError(f"neighbours is {neighbours} but there are {asked.candidates} other images: give at most that")
    edges = knn_graph(asked.x, neighbours)[0].numpy()
    n, origin = len(edges), np.arange(len(edges)).repeat(neighbours)
    return sparse.csr_matrix((np.full(edges.size, 1 / neighbours), (edges.ravel(), origin)), shape=(n, n))


def _pagerank(
    moves: sparse.csr_matrix, images: int, rows: Int64[Tensor, " b"], follow: float, steps: int
) -> Float64[Tensor, "b N"]:
    """PageRank of each image for each query; -inf for the query itself and for images that are not reached."""
    own, column = rows.numpy(), np.arange(len(rows))
    law = np.zeros((images, len(rows)))
    law[own, column] = 1
    for _ in range(steps):
        law = np.asarray(follow * (moves @ law))
        law[own, column] += 1 - follow
    score = torch.from_numpy(np.ascontiguousarray(law.T))
    score[column, rows] = 0
    return score.masked_fill_(score == 0, -torch.inf)


def _hops(moves: sparse.csr_matrix, images: int, rows: Int64[Tensor, " b"], hops: int) -> Int64[Tensor, "b N"]:
    """Edges on the shortest path from each query to each image, 0 for itself and beyond the largest number."""
    new = np.zeros((images, len(rows)))
    new[rows.numpy(), np.arange(len(rows))] = 1
    seen, hop = new > 0, np.zeros(new.shape, dtype=np.int64)
    for number in range(1, hops + 1):
        reached = (np.asarray(moves @ new) > 0) & ~seen
        hop[reached] = number
        seen |= reached
        new = reached.astype(np.float64)
    return torch.from_numpy(np.ascontiguousarray(hop.T))
