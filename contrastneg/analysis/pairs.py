"""Pairs of one class and of two: how similar they are, which classes are near each other, and at which ranks."""

from collections.abc import Sequence
from itertools import pairwise

import pandas as pd
import torch

from contrastneg.analysis.classes import Labels
from contrastneg.analysis.errors import columns_of, mean, ratio
from contrastneg.analysis.hardness import sums_by_bin
from contrastneg.analysis.queries import QUERIES, Embeddings, ask_by_class, check_share, place


def similarity_histogram(
    embeddings: Embeddings, labels: Labels, *, bins: int = 100, queries: int = QUERIES, seed: int = 0
) -> pd.DataFrame:
    r"""Cosines of pairs of one class and of pairs of two classes, as histograms.

    Of the pairs (query, candidate) of either kind, the share with :math:`left \le s_{ij} < right`; the last bin holds 1, too.

    Args:
        embeddings: Of all images.
        labels: Their classes.
        bins: Bins of equal width from -1 to 1.
        queries: How many are asked at most.
        seed: Of the draw of queries.

    Returns:
        One row per kind and bin: ``pairs`` ("same class" or "different class"), ``left``, ``right``, ``share`` of the
        pairs of that kind with its standard error over queries, ``share_se``, and ``density``, the share over the width.

    Raises:
        ValueError: Labels are missing, or there is no bin.
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}: give at least 1")
    asked = ask_by_class(embeddings, labels, queries=queries, seed=seed)
    edges = torch.linspace(-1, 1, bins + 1, dtype=torch.float64)
    counts = []
    for rows, cosine in asked.parts():
        bin_of = torch.bucketize(cosine, edges[1:-1], right=True) + bins * asked.same_class(rows)
        bin_of[torch.arange(len(rows)), rows] = 2 * bins  # the query itself: counted apart and dropped
        ones = torch.ones((), dtype=torch.float64).expand(bin_of.shape)
        counts.append(torch.zeros(len(rows), 2 * bins + 1, dtype=torch.float64).scatter_add_(1, bin_of, ones)[:, :-1])
    different, same = torch.cat(counts).split(bins, dim=1)
    tables = []
    for kind, count in (("same class", same), ("different class", different)):
        share = ratio(count, count.sum(dim=1, keepdim=True))
        columns = {"pairs": kind, "left": edges[:-1], "right": edges[1:], **columns_of("share", share)}
        tables.append(asked.table({**columns, "density": share[0] * bins / 2}))
    return pd.concat(tables, ignore_index=True)


def hard_confusion(
    embeddings: Embeddings, labels: Labels, *, share: float = 0.05, queries: int = QUERIES, seed: int = 0
) -> pd.DataFrame:
    r"""Which classes the hardest candidates of each class are of.

    .. math:: \text{rate}_{cd} = P(y_j = d \mid y_i = c, \; j \text{ among the hardest share of } i)

    The rows c = d are the false negatives among them.

    Args:
        embeddings: Of all images.
        labels: Their classes.
        share: The hardest candidates that are looked at, as a share of all, rounded up; between 0 and 1.
        queries: How many are asked at most.
        seed: Of the draw of queries.

    Returns:
        One row per class of queries and class of candidates, by label: ``query_class``, ``candidate_class``, ``rate`` and
        its standard error over the queries of the class, ``rate_se``; ``base_rate``, that of all candidates; ``lift``,
        rate over base rate; ``class_queries``, queries of the class; ``hardest``, candidates looked at per query.

    Raises:
        ValueError: Labels are missing, or the share is not between 0 and 1.
    """
    check_share("share", share)
    asked = ask_by_class(embeddings, labels, queries=queries, seed=seed)
    count, sizes = place(share, asked.candidates), asked.labels.bincount().double()
    total = torch.zeros(len(sizes), len(sizes), dtype=torch.float64)
    squares = torch.zeros_like(total)
    for rows, _, image in asked.ordered():
        hardest = asked.labels[image[:, :count]]
        ones = torch.ones((), dtype=torch.float64).expand(hardest.shape)
        found = torch.zeros(len(rows), len(sizes), dtype=torch.float64).scatter_add_(1, hardest, ones) / count
        total.index_add_(0, asked.labels[rows], found)
        squares.index_add_(0, asked.labels[rows], found.square())
    asked_of = asked.labels[asked.rows].bincount(minlength=len(sizes)).double()[:, None]
    rate = total / asked_of
    error = ((squares / asked_of - rate.square()).clamp(min=0) / (asked_of - 1)).sqrt()
    base = (sizes - torch.eye(len(sizes), dtype=torch.float64)) / asked.candidates
    pairs = (asked_of > 0).expand_as(rate).nonzero()
    row, column = pairs.unbind(dim=1)
    names = asked.class_names
    return asked.table(
        {
            "query_class": names[row],
            "candidate_class": names[column],
            **columns_of("rate", (rate[row, column], error[row, column])),
            "base_rate": base[row, column],
            "lift": rate[row, column] / base[row, column],
            "class_queries": asked_of[row, 0].long(),
            "hardest": count,
        }
    )


def same_class_by_rank(
    embeddings: Embeddings, labels: Labels, *, queries: int = QUERIES, seed: int = 0
) -> pd.DataFrame:
    r"""How often the candidate of a rank is of the query's class, rank 1 being the most similar (after KDD 2018, PinSage).

    .. math:: \rho(r) = P(y_j = y_i \mid \text{rank of } j = r)

    over windows of ranks that begin with one rank each and grow by about a fifth.

    Args:
        embeddings: Of all images.
        labels: Their classes.
        queries: How many are asked at most.
        seed: Of the draw of queries.

    Returns:
        One row per window: ``first`` and ``last`` rank in it, ``rate`` and its standard error over queries, ``rate_se``;
        ``base_rate``, that of all candidates; ``lift``, rate over base rate, and ``lift_se``.

    Raises:
        ValueError: Labels are missing.
    """
    asked = ask_by_class(embeddings, labels, queries=queries, seed=seed)
    windows = list(pairwise(window_starts(asked.candidates)))
    found = torch.cat(
        [sums_by_bin(asked.same_class(rows).gather(1, image), windows) for rows, _, image in asked.ordered()]
    )
    first, after = torch.tensor(windows).unbind(dim=1)
    base = asked.base_rate()[:, None]
    rate = found / (after - first)
    columns = {"first": first + 1, "last": after, **columns_of("rate", mean(rate)), "base_rate": float(base.mean())}
    return asked.table({**columns, **columns_of("lift", ratio(rate, base))})


def rank_band(curve: pd.DataFrame, lifts: Sequence[float] = (2.0, 1.1)) -> pd.DataFrame:
    """Where the curve of :func:`same_class_by_rank` first falls below multiples of the base rate.

    Between the ranks of two such multiples lie candidates that are similar, yet rarely false: the band that PinSage draws
    its hard negatives from is set by hand.

    Args:
        curve: The table of :func:`same_class_by_rank`.
        lifts: Multiples of the base rate.

    Returns:
        One row per multiple: ``lift``; ``rank``, the first of the first window below it, NaN where there is none.
    """
    below = [curve.loc[curve["lift"] < lift, "first"] for lift in lifts]
    ranks = [float(first.iloc[0]) if len(first) else float("nan") for first in below]
    about = {name: curve[name].iloc[0] for name in ("queries", "images", "seed", "classes")}
    return pd.DataFrame({"lift": list(lifts), "rank": ranks, **about})


def window_starts(candidates: int) -> list[int]:
    """Ranks from 0 at which windows begin, and the end of the last one."""
    starts = sorted({round(2 ** (power / 4)) - 1 for power in range(4 * candidates.bit_length())})
    return [*(start for start in starts if start < candidates), candidates]
