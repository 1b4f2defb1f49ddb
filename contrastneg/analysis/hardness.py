"""How hard candidates are: bins of the ranking by similarity, whose class is in them, and what they weigh in the gradient."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from contrastneg.analysis.classes import Labels
from contrastneg.analysis.errors import columns_of, mean, ratio
from contrastneg.analysis.queries import (
    QUERIES,
    Embeddings,
    Positives,
    ask,
    ask_by_class,
    check_above_0,
    check_share,
    place,
)
from contrastneg.negatives.live import EDGES

TEMPERATURES = (0.07, 0.1, 0.2, 0.5)


def hardness_bins(
    embeddings: Embeddings,
    labels: Labels,
    *,
    edges: Sequence[float] = EDGES,
    queries: int = QUERIES,
    seed: int = 0,
) -> pd.DataFrame:
    r"""How often candidates are of the query's class, by bins of the ranking (arXiv:2010.06682).

    Each query's N - 1 candidates are ranked by cosine, the hardest first, and cut at shares of the ranking (rounded up to
    whole candidates). For query i with :math:`f_{ib}` candidates of its class among the :math:`m_b` of bin b, and
    :math:`n_i` in all,

    .. math:: \text{rate}_b = \frac{1}{Q} \sum_i \frac{f_{ib}}{m_b} \qquad
        \text{lift}_b = \frac{\text{rate}_b}{\text{base}}, \; \text{base} = \frac{1}{Q} \sum_i \frac{n_i}{N - 1} \qquad
        \text{recall}_b = \frac{1}{Q} \sum_i \frac{f_{ib}}{n_i}

    The edges 0.1 % and 5 % are bins that the paper's authors chose, not measured shares of false and hard negatives.

    Args:
        embeddings: Of all images.
        labels: Their classes.
        edges: Shares of the ranking between 0 and 1 at which one bin ends and the next begins, ascending.
        queries: How many are asked at most.
        seed: Of the draw of queries.

    Returns:
        One row per bin: ``lower`` and ``upper`` share of the ranking, 0 the hardest; ``candidates`` per query; ``rate``,
        ``lift`` and ``recall``, each with its standard error over queries, ``..._se``; ``base_rate``.

    Raises:
        ValueError: Labels are missing, or a bin is empty.
    """
    asked = ask_by_class(embeddings, labels, queries=queries, seed=seed)
    bins = bin_ranks(edges, asked.candidates)
    found = torch.cat(
        [sums_by_bin(asked.same_class(rows).gather(1, image), bins) for rows, _, image in asked.ordered()]
    )
    size = torch.tensor([last - first for first, last in bins], dtype=torch.float64)
    base = asked.base_rate()[:, None]
    return asked.table(
        {
            **bin_columns(edges, bins),
            **columns_of("rate", mean(found / size)),
            "base_rate": float(base.mean()),
            **columns_of("lift", ratio(found / size, base)),
            **columns_of("recall", mean(found / (base * asked.candidates))),
        }
    )


def gradient_shares(
    embeddings: Embeddings,
    *,
    temperatures: Sequence[float] = TEMPERATURES,
    edges: Sequence[float] = EDGES,
    queries: int = QUERIES,
    seed: int = 0,
) -> pd.DataFrame:
    r"""How much of the gradient on negatives each bin of the ranking has, at several temperatures.

    .. math:: G_b = \frac{1}{Q} \sum_i \sum_{j \in b} r_{ij}, \qquad r_{ij} = \frac{e^{s_{ij}/t}}{\sum_l e^{s_{il}/t}}

    r is the relative penalty of arXiv:2012.09740: the positive cancels. Plain InfoNCE with a small temperature is
    concentrated on the hardest already; that is what methods for hard negatives have to be compared with.

    Args:
        embeddings: Of all images.
        temperatures: Each t, above 0.
        edges: See :func:`hardness_bins`.
        queries: How many are asked at most.
        seed: Of the draw of queries.

    Returns:
        One row per temperature and bin: ``temperature``; ``lower``, ``upper``, ``candidates`` as in :func:`hardness_bins`;
        ``share`` and its standard error over queries, ``share_se``. Shares of a temperature sum to 1.

    Raises:
        ValueError: A bin is empty, or a temperature is not above 0.
    """
    check_above_0("temperatures", *temperatures)
    asked = ask(embeddings, queries=queries, seed=seed)
    bins = bin_ranks(edges, asked.candidates)
    parts: list[list[Tensor]] = [[] for _ in temperatures]
    for _, cosine, _ in asked.ordered():
        for sums, temperature in zip(parts, temperatures, strict=True):
            sums.append(sums_by_bin((cosine / temperature).softmax(dim=1), bins))
    tables = []
    for sums, temperature in zip(parts, temperatures, strict=True):
        columns = {"temperature": temperature, **bin_columns(edges, bins)}
        tables.append(asked.table({**columns, **columns_of("share", mean(torch.cat(sums)))}))
    return pd.concat(tables, ignore_index=True)


def effective_negatives(
    embeddings: Embeddings,
    *,
    temperatures: Sequence[float] = TEMPERATURES,
    queries: int = QUERIES,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Among how many candidates the gradient is shared: e to the entropy of the relative penalty, at several temperatures.

    .. math:: \frac{1}{Q} \sum_i e^{H(r_i)}, \qquad H(r_i) = -\sum_j r_{ij} \log r_{ij}

    with r of :func:`gradient_shares`. N - 1 if all candidates are equally similar, 1 if one outweighs all others.

    Args:
        embeddings: Of all images.
        temperatures: Each t, above 0.
        queries: How many are asked at most.
        seed: Of the draw of queries.

    Returns:
        One row per temperature: ``temperature``, ``candidates`` per query, ``effective`` number of them and its standard
        error over queries, ``effective_se``.

    Raises:
        ValueError: A temperature is not above 0.
    """
    check_above_0("temperatures", *temperatures)
    asked = ask(embeddings, queries=queries, seed=seed)
    parts = []
    for _, cosine in asked.parts():
        entropy = [torch.special.entr((cosine / t).softmax(dim=1)).sum(dim=1) for t in temperatures]
        parts.append(torch.stack(entropy, dim=1).exp())
    columns = {"temperature": list(temperatures), "candidates": asked.candidates}
    return asked.table({**columns, **columns_of("effective", mean(torch.cat(parts)))})


def difficulty_shares(
    embeddings: Embeddings,
    labels: Labels,
    positives: Positives,
    *,
    margin: float = 0.2,
    reference: Literal["positive", "same class"] = "positive",
    queries: int = QUERIES,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Shares of false, hard and easy negatives, as they can be measured.

    ======== =====================================================================================================
    false    of the query's class
    hard     of another class, and :math:`s_{ij} > s_{i+} - margin`; with reference "same class" above the median
             cosine of the query's class instead, whatever the margin
    easy     the rest
    ======== =====================================================================================================

    Ours: the survey speaks of such shares without defining them.

    Args:
        embeddings: Of all images.
        labels: Their classes.
        positives: Positives of a second view of each image, row by row: the positive of each query.
        margin: In cosine.
        reference: What a hard candidate is compared with.
        queries: How many are asked at most.
        seed: Of the draw of queries.

    Returns:
        Three rows: ``kind``, ``share`` of all candidates and its standard error over queries, ``share_se``; ``margin``,
        NaN where none is; ``reference``.

    Raises:
        ValueError: Labels are missing, positives are not as many as images, or the reference is neither of both.
    """
    if reference not in ("positive", "same class"):
        raise ValueError(f"reference is {reference!r}: give 'positive' or 'same class'")
    asked = ask_by_class(embeddings, labels, queries=queries, seed=seed, positives=positives)
    counts = []
    for rows, cosine in asked.parts():
        same = asked.same_class(rows)
        if reference == "positive":
            bar = asked.positive(rows)[:, None] - margin
        else:
            bar = cosine.masked_fill(~same, torch.nan).nanquantile(0.5, dim=1, keepdim=True)
        hard = (cosine > bar) & ~same
        counts.append(torch.stack([same.sum(dim=1), hard.sum(dim=1)], dim=1))
    false, hard = (torch.cat(counts).double() / asked.candidates).unbind(dim=1)
    shares = mean(torch.stack([false, hard, 1 - false - hard], dim=1))
    kinds = {"kind": ["false", "hard", "easy"], "margin": margin if reference == "positive" else torch.nan}
    return asked.table({**kinds, "reference": reference, **columns_of("share", shares)})


def bin_ranks(edges: Sequence[float], candidates: int) -> list[tuple[int, int]]:
    """First rank of each bin, counted from 0, and the one after its last.

    Raises:
        ValueError: Edges do not ascend between 0 and 1, or a bin has no candidate.
    """
    for edge in edges:
        check_share("edges", edge)
    bins = list(pairwise([0, *(place(edge, candidates) for edge in edges), candidates]))
    if any(last <= first for first, last in bins):
        raise ValueError(f"edges is {list(edges)}: with {candidates} candidates a bin is empty, or they do not ascend")
    return bins


def bin_columns(edges: Sequence[float], bins: list[tuple[int, int]]) -> dict[str, list[float] | list[int]]:
    """Where each bin begins and ends in shares of the ranking, and how many candidates it has.

    Args:
        edges: Shares at which one bin ends and the next begins.
        bins: Their ranks, see :func:`bin_ranks`.
    """
    sizes = [last - first for first, last in bins]
    return {"lower": [0.0, *edges], "upper": [*edges, 1.0], "candidates": sizes}


def sums_by_bin(values: Shaped[Tensor, "b C"], bins: Sequence[tuple[int, int]]) -> Float64[Tensor, "b bins"]:
    """Sum of each row over each bin of ranks.

    Args:
        values: Numbers or truth values, by rank.
        bins: First rank of each bin and the one after its last.
    """
    return torch.stack([values[:, first:last].sum(dim=1) for first, last in bins], dim=1).double()
