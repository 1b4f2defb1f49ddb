"""Whether the same candidates are hard again: for many queries, and for one query under several encoders or views."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float64, Int64
from scipy import stats
from torch import Tensor

from contrastneg.analysis.classes import Labels
from contrastneg.analysis.errors import columns_of, mean
from contrastneg.analysis.hubness import gini, mixed_binomial
from contrastneg.analysis.queries import (
    QUERIES,
    Asked,
    Embeddings,
    ask,
    ask_either,
    check_share,
    hardest_first,
    place,
)

BAND = (0.001, 0.999)  # quantiles of the null outside of which a count is remarkable


@dataclass(frozen=True)
class _Hits:
    asked: Asked
    count: Int64[Tensor, " N"]
    """Queries that have the image among their hardest candidates."""
    trials: Int64[Tensor, " N"]
    """Queries that have it among their candidates at all."""
    expected: Float64[Tensor, " N"]
    """What chance gives."""

    @property
    def chance(self) -> Float64[Tensor, " N"]:
        return self.expected / self.trials.clamp(min=1)


def hardness_hits(
    embeddings: Embeddings, labels: Labels = None, *, share: float = 0.05, queries: int = QUERIES, seed: int = 0
) -> pd.DataFrame:
    r"""For how many queries each image is among the hardest candidates (arXiv:2010.06682).

    .. math:: h_j = |\{ i : j \text{ among the hardest share of the candidates of } i \}|

    Args:
        embeddings: Of all images.
        labels: None, or classes: then images of the query's class are no candidates.
        share: The hardest candidates, as a share of all, rounded up; between 0 and 1.
        queries: How many are asked at most.
        seed: Of the draw of queries.

    Returns:
        One row per image (of known class, with labels): ``image``, its place among those given; ``hits``; ``trials``,
        queries it is a candidate of; ``expected``, what chance gives; ``share``.

    Raises:
        ValueError: The share is not between 0 and 1.
    """
    hits = _hits(embeddings, labels, share, queries, seed)
    columns = {"image": hits.asked.position, "hits": hits.count, "trials": hits.trials}
    return hits.asked.table({**columns, "expected": hits.expected, "share": share})


def hardness_consistency(
    embeddings: Embeddings, labels: Labels = None, *, share: float = 0.05, queries: int = QUERIES, seed: int = 0
) -> pd.DataFrame:
    r"""Whether some images are hard for more queries than chance would have it (arXiv:2010.06682).

    Null: each query takes its hardest candidates at random, so that :math:`h_j \sim \mathrm{Binomial}(Q_j, p)` with
    :math:`Q_j` the queries that j is a candidate of and p the share that is taken. Embeddings without structure, many more
    dimensions than matter, come close to it.

    ================ ==================================================================================================
    over-dispersion  :math:`\frac{1}{N} \sum_j (h_j - Q_j p)^2 / (Q_j p (1 - p))`; 1 under the null
    gini             mean difference of two images over twice the mean
    above            share of images above the 99.9 % quantile of the null: hard for many
    below            share of images below its 0.1 % quantile: easy for nearly all
    ================ ==================================================================================================

    Args:
        embeddings: Of all images.
        labels: None, or classes: then images of the query's class are no candidates, and what is left is no effect of
            false negatives. Where classes differ in size, p is the mean over the queries, which the null then only nears.
        share: The hardest candidates, as a share of all, rounded up; between 0 and 1.
        queries: How many are asked at most.
        seed: Of the draw of queries.

    Returns:
        One row per statistic: ``statistic``, ``value``, ``value_se`` with images as sampling units (NaN for gini), ``null``,
        the value under the null; ``share``.

    Raises:
        ValueError: The share is not between 0 and 1.
    """
    hits = _hits(embeddings, labels, share, queries, seed)
    trials, chance = hits.trials.numpy(), hits.chance.numpy()
    low, high = (torch.as_tensor(stats.binom.ppf(end, trials, chance)) for end in BAND)
    variance = hits.expected * (1 - hits.chance)
    varies = variance > 0  # an image of the only class that is asked about is a candidate of none
    deviation, its_error = mean(((hits.count - hits.expected).square() / variance)[varies])
    outside, errors = mean(torch.stack([hits.count > high, hits.count < low], dim=1).double())
    null_above = float(stats.binom.sf(high.numpy(), trials, chance).mean())
    null_below = float(stats.binom.cdf(low.numpy() - 1, trials, chance).mean())
    observed = hits.count.bincount().double() / len(hits.count)
    return hits.asked.table(
        {
            "statistic": ["over-dispersion", "gini", "above", "below"],
            "value": [float(deviation), gini(observed), *outside.tolist()],
            "value_se": [float(its_error), math.nan, *errors.tolist()],
            "null": [1.0, gini(mixed_binomial(hits.trials, hits.chance)), null_above, null_below],
            "share": share,
        }
    )


def consistency_histogram(
    embeddings: Embeddings, labels: Labels = None, *, share: float = 0.05, queries: int = QUERIES, seed: int = 0
) -> pd.DataFrame:
    """How many images are hard for how many queries, beside the binomial null of :func:`hardness_consistency`.

    Args:
        embeddings: Of all images.
        labels: See :func:`hardness_consistency`.
        share: See :func:`hardness_consistency`.
        queries: How many are asked at most.
        seed: Of the draw of queries.

    Returns:
        One row per count up to the largest that was seen or is likely under the null: ``hits``, ``observed`` share of the
        images with it, its standard error ``observed_se`` with images as sampling units, ``null`` share; ``share``.

    Raises:
        ValueError: The share is not between 0 and 1.
    """
    hits = _hits(embeddings, labels, share, queries, seed)
    null = mixed_binomial(hits.trials, hits.chance)
    seen = hits.count.bincount(minlength=len(null)).double() / len(hits.count)
    shown = 1 + max(int(hits.count.max()), int((null.cumsum(dim=0) < 1 - 1e-6).sum()))
    columns = {"hits": np.arange(shown), "observed": seen[:shown]}
    error = (seen * (1 - seen) / len(hits.count)).sqrt()[:shown]
    return hits.asked.table({**columns, "observed_se": error, "null": null[:shown], "share": share})


def hardness_agreement(
    encoders: Sequence[Embeddings], *, share: float = 0.05, queries: int = QUERIES, seed: int = 0
) -> pd.DataFrame:
    r"""Whether a candidate that is hard for a query under one encoder, or in one view, is so under others.

    Of all pairs (query, candidate), the share that is among the hardest of the query under exactly e of E encoders. Null:
    encoders have nothing to do with each other, so that e is binomial with E trials and chance p, the share taken. With
    two encoders the last row over p is the share of one's hardest candidates that are the other's too.

    Args:
        encoders: Embeddings of the same images in the same order, two at least; widths may differ.
        share: The hardest candidates, as a share of all, rounded up; between 0 and 1.
        queries: How many are asked at most.
        seed: Of the draw of queries.

    Returns:
        One row per e from 0 to E: ``encoders``, the number e; ``observed`` share of pairs and its standard error over
        queries, ``observed_se``; ``null`` share; ``ratio`` of the two; ``share``.

    Raises:
        ValueError: There are fewer than two encoders, they differ in images, or the share is not between 0 and 1.
    """
    check_share("share", share)
    if len(encoders) < 2 or len({len(embeddings) for embeddings in encoders}) > 1:
        lengths = [len(embeddings) for embeddings in encoders]
        raise ValueError(f"encoders has embeddings of {lengths} images: give two or more of the same images")
    all_asked = [ask(embeddings, queries=queries, seed=seed) for embeddings in encoders]
    asked, number = all_asked[0], len(encoders)
    count = place(share, asked.candidates)
    tallies = []
    for parts in zip(*(each.parts() for each in all_asked), strict=True):
        times_hard = sum(_hardest(cosine, torch.full((len(cosine),), count)).long() for _, cosine in parts)
        assert isinstance(times_hard, Tensor)
        tally = torch.stack([(times_hard == e).sum(dim=1) for e in range(number + 1)], dim=1)
        tally[:, 0] -= 1  # the query itself
        tallies.append(tally)
    observed = mean(torch.cat(tallies).double() / asked.candidates)
    null = torch.as_tensor(stats.binom.pmf(np.arange(number + 1), number, count / asked.candidates))
    columns = {"encoders": np.arange(number + 1), **columns_of("observed", observed)}
    return asked.table({**columns, "null": null, "ratio": observed[0] / null, "share": share})


def _hits(embeddings: Embeddings, labels: Labels, share: float, queries: int, seed: int) -> _Hits:
    check_share("share", share)
    asked = ask_either(embeddings, labels, queries=queries, seed=seed)
    count, trials = torch.zeros(2, len(asked.x), dtype=torch.long)
    expected = torch.zeros(len(asked.x), dtype=torch.float64)
    for rows, cosine in asked.parts():
        if labels is not None:
            cosine = cosine.masked_fill(asked.same_class(rows), -torch.inf)
        among = cosine > -torch.inf
        offered = among.sum(dim=1)
        taken = (share * offered.double() - 1e-9).ceil().long()
        count += _hardest(cosine, taken).sum(dim=0)
        trials += among.sum(dim=0)
        expected += (among * (taken / offered.clamp(min=1)).double()[:, None]).sum(dim=0)
    return _Hits(asked, count, trials, expected)


def _hardest(cosine: Float64[Tensor, "b N"], count: Int64[Tensor, " b"]) -> Bool[Tensor, "b N"]:
    """The ``count`` most similar images of each row, the lower position first among equals."""
    deepest = int(count.max())
    order = hardest_first(cosine)[:, :deepest]
    return torch.zeros_like(cosine, dtype=torch.bool).scatter_(1, order, torch.arange(deepest) < count[:, None])
