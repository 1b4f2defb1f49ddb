"""The nearest rows of a bank by cosine, and all close pairs: exact, in bounded memory, and the same whatever computes them.

Speed and exactness are parted. A float32 search, by faiss where it can be imported and by torch elsewhere, proposes a few
more rows than asked for; their cosines are then computed without any rounding. Where a row that was not proposed could
still belong among the nearest, that query is searched again without rounding. So neither the library, the number of
threads nor the size of chunks changes a neighbour, and equal cosines are decided by the lower index.
"""

import functools
import sys
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

SPARE = 16  # rows proposed beyond k
CAUTION = 4  # an unseen rounding error is taken to be at most so many times the largest seen one
TILE = 2**22  # numbers in one block of work: 32 MiB in float64
BLOCK = 2048  # rows that are compared with as many others at a time where pairs are looked for
MOST_QUERIES = 2048  # worked on at a time, however large a chunk is allowed: faiss and the ranking need room for each
GRID = 2.0**26  # coordinates are multiples of 1 / GRID


def unit_rows(x: Float[Tensor, "N F"]) -> Float32[Tensor, "N F"]:
    """Rows of unit length on the grid of 2^-26, finer than float32 resolves near 1; rows of zeros stay zeros.

    Products of two such numbers are multiples of 2^-52 and no partial sum of a cosine exceeds 2, so float64 holds every
    one of them exactly: the order of summation, and with it chunks and threads, cannot change a bit.

    Args:
        x: Finite features.
    """
    units = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    rows = max(1, TILE // max(1, x.shape[1]))
    for part, unit in zip(x.split(rows), units.split(rows), strict=True):
        unit.copy_((F.normalize(part.double(), dim=1, eps=1e-300) * GRID).round() / GRID)
    return units


def nearest(
    query: Float32[Tensor, "M F"], bank: Float32[Tensor, "N F"], k: int, chunk: int = 1024
) -> tuple[Float64[Tensor, "M k"], Int64[Tensor, "M k"]]:
    """The k most similar rows of the bank for each query, most similar first, the lower index first among equals.

    Args:
        query: Rows made by :func:`unit_rows`.
        bank: Rows made by :func:`unit_rows`.
        k: Neighbours of each query, at most N.
        chunk: Most queries worked on at a time; does not change the result.

    Returns:
        Exact cosines and bank indices.
    """
    cosines, indices = [], []
    for part in query.split(min(chunk, MOST_QUERIES)):
        cosine, index, sure = _proposed(part, bank, k)
        if not sure.all():
            cosine[~sure], index[~sure] = _exhaustive(part[~sure], bank, k)
        cosines.append(cosine)
        indices.append(index)
    if not cosines:
        return query.new_empty(0, k, dtype=torch.float64), query.new_empty(0, k, dtype=torch.long)
    return torch.cat(cosines), torch.cat(indices)


def close_pairs(
    rows: Float32[Tensor, "N F"], least: float, most: int
) -> tuple[Int64[Tensor, "P 2"], Float64[Tensor, " P"], bool]:
    """All pairs of rows with a cosine of at least a threshold, each once with the lower index first.

    Args:
        rows: Made by :func:`unit_rows`.
        least: The threshold.
        most: Pairs after which the search ends; it may find some more.

    Returns:
        Indices, exact cosines, and whether these are all pairs.
    """
    pairs = [torch.empty(0, 2, dtype=torch.long, device=rows.device)]
    cosines = [torch.empty(0, dtype=torch.float64, device=rows.device)]
    for start in range(0, len(rows), BLOCK):
        for left in range(start, len(rows), BLOCK):
            if sum(map(len, pairs)) >= most:
                return torch.cat(pairs), torch.cat(cosines), False
            for pair in _proposed_pairs(rows, start, left, least).split(max(1, TILE // rows.shape[1])):
                cosine = (rows[pair[:, 0]].double() * rows[pair[:, 1]].double()).sum(dim=1)
                pairs.append(pair[cosine >= least])
                cosines.append(cosine[cosine >= least])
    return torch.cat(pairs), torch.cat(cosines), True


def _proposed_pairs(rows: Tensor, start: int, left: int, least: float) -> Tensor:
    """Pairs between two blocks of rows that have at least a cosine, or would if float32 did not round."""
    similarity = rows[start : start + BLOCK] @ rows[left : left + BLOCK].T
    least -= rows.shape[1] * torch.finfo(torch.float32).eps  # no product of unit rows is rounded by more
    some = (similarity.amax(dim=1) >= least).nonzero()[:, 0]  # mostly few: the others are not looked at twice
    row, column = (similarity[some] >= least).nonzero(as_tuple=True)
    pair = torch.stack([some[row] + start, column + left], dim=1)
    return pair[pair[:, 0] < pair[:, 1]]


def _proposed(query: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k nearest among the proposals of a float32 search, and for which queries they are the k nearest of all."""
    count = min(k + SPARE, len(bank))
    search = _search_faiss if _faiss() is not None and query.device.type == "cpu" else _search_torch
    rounded, index = search(query, bank, count)
    cosine = _exact_cosines(query, bank, index)
    if count < len(bank):
        # no row left out is above the last proposal by more than the rounding error of the search
        error = CAUTION * (rounded - cosine).abs().max() + torch.finfo(torch.float32).eps
        unseen = rounded.amin(dim=1).double() + error
    else:
        unseen = torch.full_like(cosine[:, 0], -torch.inf)
    cosine, index = _ranked(cosine, index, k)
    return cosine, index, unseen < cosine[:, -1]


def _ranked(cosine: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    order = index.argsort(dim=1)  # by index first: the stable sort then leaves the lower one first among equals
    cosine, index = cosine.gather(1, order), index.gather(1, order)
    order = cosine.argsort(dim=1, descending=True, stable=True)[:, :k]
    return cosine.gather(1, order), index.gather(1, order)


def _exact_cosines(query: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """Cosines of each query with its own rows of the bank, without rounding."""
    rows = max(1, TILE // (index.shape[1] * bank.shape[1]))
    parts = [
        torch.bmm(bank[own].double(), part.double()[:, :, None])[..., 0]
        for part, own in zip(query.split(rows), index.split(rows), strict=True)
    ]
    return torch.cat(parts)


@functools.cache
def _faiss() -> Any:
    """The faiss module, imported when first needed; None without it, or on macOS, where its OpenMP clashes with torch's."""
    if sys.platform == "darwin":
        return None
    try:
        import faiss
    except ImportError:
        return None
    return faiss


def _search_faiss(query: Tensor, bank: Tensor, count: int) -> tuple[Tensor, Tensor]:
    faiss = _faiss()
    similarity, index = faiss.knn(query.numpy(), bank.numpy(), count, metric=faiss.METRIC_INNER_PRODUCT)
    return torch.from_numpy(similarity), torch.from_numpy(index)


def _search_torch(query: Tensor, bank: Tensor, count: int) -> tuple[Tensor, Tensor]:
    best = query.new_empty(len(query), 0)
    index = torch.empty(len(query), 0, dtype=torch.long, device=query.device)
    tile = max(count, 4 * TILE // len(query))
    for start in range(0, len(bank), tile):
        similarity = query @ bank[start : start + tile].T
        value, place = similarity.topk(min(count, similarity.shape[1]), dim=1)
        best, index = torch.cat([best, value], dim=1), torch.cat([index, place + start], dim=1)
        best, place = best.topk(min(count, best.shape[1]), dim=1)
        index = index.gather(1, place)
    return best, index


def _exhaustive(query: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest of all rows, every cosine without rounding: slower, and right however many are equal."""
    wide = query.double()
    best = wide.new_empty(len(query), 0)
    index = torch.empty(len(query), 0, dtype=torch.long, device=query.device)
    tile = max(k, TILE // len(query))
    for start in range(0, len(bank), tile):
        cosine = wide @ bank[start : start + tile].double().T
        place = torch.arange(start, start + cosine.shape[1], device=query.device).expand(len(query), -1)
        best, index = torch.cat([best, cosine], dim=1), torch.cat([index, place], dim=1)
        kept = _first_largest(best, min(k, best.shape[1]))
        best, index = best.gather(1, kept), index.gather(1, kept)
    return _ranked(best, index, k)


def _first_largest(value: Float[Tensor, "m n"], k: int) -> Int64[Tensor, "m k"]:
    """Columns of the k largest values of each row, ascending; among equal values the first columns. topk promises no such order."""
    least = value.topk(k, dim=1).values[:, -1:]
    above, equal = value > least, value == least
    kept = above | (equal & (equal.cumsum(dim=1) <= k - above.sum(dim=1, keepdim=True)))
    return kept.nonzero()[:, 1].view(len(value), k)
