"""Images that are hard for many: how often each is among the nearest of others, and whether popular classes are nearer."""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Int64
from scipy import stats
from torch import Tensor

from contrastneg.analysis.classes import Labels
from contrastneg.analysis.queries import Asked, Embeddings, ask, ask_by_class
from contrastneg.evaluate.neighbours import nearest

ALL_PAIRS = 50_000
"""Up to so many images all are queries of :func:`k_occurrence`."""


def k_occurrence(
    embeddings: Embeddings, *, neighbours: int = 20, queries: int = ALL_PAIRS, seed: int = 0
) -> pd.DataFrame:
    r"""How many queries have an image among their k nearest (JMLR 11, 2010, "Hubs in space"): its in-degree in the kNN graph.

    .. math:: O_k(j) = |\{ i : j \in kNN(i) \}|

    Args:
        embeddings: Of all images.
        neighbours: k.
        queries: How many are asked at most: with few queries the counts are mostly chance.
        seed: Of the draw of queries.

    Returns:
        One row per image in the order given: ``image``, its position; ``occurrence``; ``expected``, what chance would give;
        ``neighbours``.

    Raises:
        ValueError: k is not between 1 and the number of candidates.
    """
    asked, occurrence = _occurrence(embeddings, neighbours, queries, seed)
    chance = torch.full((len(asked.x),), neighbours / asked.candidates, dtype=torch.float64) * _askers(asked)
    columns = {"image": asked.position, "occurrence": occurrence, "expected": chance}
    return asked.table({**columns, "neighbours": neighbours})


def hubness(embeddings: Embeddings, *, neighbours: int = 20, queries: int = ALL_PAIRS, seed: int = 0) -> pd.DataFrame:
    r"""How unevenly images are neighbours of others, beside what chance gives.

    Of the counts :math:`O_k` of :func:`k_occurrence`:

    ========== ==================================================================================================
    skewness   :math:`E (O_k - \mu)^3 / \sigma^3`; above 1 there are hubs
    gini       mean difference of two images over twice the mean; 0 if all are alike
    never      share of images that are no query's neighbour
    largest    largest count
    ========== ==================================================================================================

    Chance: each query takes k of its N - 1 candidates at random, so that counts are binomial with p = k / (N - 1).

    Args:
        embeddings: Of all images.
        neighbours: k.
        queries: How many are asked at most.
        seed: Of the draw of queries.

    Returns:
        One row per statistic: ``statistic``, ``value``, ``value_se`` with images as sampling units (NaN for largest and
        gini), ``chance``, the value under chance (NaN for largest); ``neighbours``.

    Raises:
        ValueError: k is not between 1 and the number of candidates.
    """
    asked, occurrence = _occurrence(embeddings, neighbours, queries, seed)
    law = mixed_binomial(_askers(asked), neighbours / asked.candidates)
    skewness, error = _skewness(occurrence.double())
    never = float((occurrence == 0).double().mean())
    rows = [
        ("skewness", skewness, error, _law_skewness(law)),
        ("gini", gini(occurrence.bincount().double() / len(occurrence)), torch.nan, gini(law)),
        ("never", never, (never * (1 - never) / len(occurrence)) ** 0.5, float(law[0])),
        ("largest", float(occurrence.max()), torch.nan, torch.nan),
    ]
    names = ("statistic", "value", "value_se", "chance")
    return asked.table({**dict(zip(names, zip(*rows, strict=True), strict=True)), "neighbours": neighbours})


def popularity(embeddings: Embeddings, labels: Labels) -> pd.DataFrame:
    r"""Whether images of large classes are more similar to everything (what CLRec, arXiv:2005.12964, would correct).

    The correlation over images j of the mean cosine that they receive with the logarithm of their class's size,

    .. math:: \rho = \mathrm{corr}_j \Bigl( \frac{1}{N - 1} \sum_{i \ne j} s_{ij}, \; \log n_{y_j} \Bigr)

    Args:
        embeddings: Of all images; all are queries.
        labels: Their classes.

    Returns:
        One row: ``correlation`` (Pearson); ``correlation_se``, with classes as sampling units; ``classes_counted``.

    Raises:
        ValueError: Labels are missing, or all classes have the same size.
    """
    asked = ask_by_class(embeddings, labels, queries=len(embeddings), seed=0)
    sizes = asked.labels.bincount()
    if len(sizes.unique()) < 2:
        raise ValueError(f"labels has classes of one size, {int(sizes[0])} images each: popularity cannot be compared")
    total = asked.x.sum(dim=0, dtype=torch.float64)
    received = torch.cat([part.double() @ total - 1 for part in asked.x.split(65_536)]) / asked.candidates
    x, y = (_standard(values) for values in (received, sizes[asked.labels].double().log()))
    correlation = float((x * y).mean())
    influence = x * y - correlation * (x.square() + y.square()) / 2
    of_class = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, asked.labels, influence)
    error = float(of_class.square().sum().sqrt()) / len(x)
    about = {"images": len(asked.x), "classes": asked.about["classes"]}
    return pd.DataFrame([{"correlation": correlation, "correlation_se": error, "classes_counted": len(sizes), **about}])


def mixed_binomial(trials: Int64[Tensor, " N"], chance: float | Float64[Tensor, " N"]) -> Float64[Tensor, " values"]:
    """The law of a count that is binomial with another number of trials, and chance, for each image.

    Args:
        trials: Trials of each image.
        chance: Of one trial.

    Returns:
        Probability of each count from 0 to the most trials.
    """
    each = torch.stack([trials.double(), torch.as_tensor(chance, dtype=torch.float64).expand(len(trials))], dim=1)
    kinds, number = each.unique(dim=0, return_counts=True)
    counts = np.arange(int(trials.max()) + 1)
    law = sum(
        many * stats.binom.pmf(counts, int(n), p) for (n, p), many in zip(kinds.tolist(), number.tolist(), strict=True)
    )
    return torch.as_tensor(law) / len(trials)


def gini(law: Float64[Tensor, " values"]) -> float:
    r"""Gini index of a count: mean difference of two draws over twice the mean.

    .. math:: \frac{1}{\mu} \sum_k F(k) (1 - F(k))

    Args:
        law: Probability of each count from 0.
    """
    below = law.cumsum(dim=0).clamp(max=1)
    return float((below * (1 - below)).sum() / (law * torch.arange(len(law))).sum())


def _askers(asked: Asked) -> Int64[Tensor, " N"]:
    """Queries that each image is a candidate of: all but itself."""
    askers = torch.full((len(asked.x),), len(asked.rows))
    askers[asked.rows] -= 1
    return askers


def _occurrence(embeddings: Embeddings, neighbours: int, queries: int, seed: int) -> tuple[Asked, Int64[Tensor, " N"]]:
    asked = ask(embeddings, queries=queries, seed=seed)
    if not 1 <= neighbours <= asked.candidates:
        raise ValueError(f"neighbours is {neighbours} but a query has {asked.candidates} candidates: give 1 to that")
    index = nearest(asked.x[asked.rows], asked.x, neighbours + 1)[1]
    itself = index == asked.rows[:, None]
    itself[~itself.any(dim=1), -1] = True  # among many equal ones it may not be found: leave out the last instead
    return asked, index[~itself].bincount(minlength=len(asked.x))


def _standard(values: Float64[Tensor, " N"]) -> Float64[Tensor, " N"]:
    return (values - values.mean()) / values.std(correction=0)


def _skewness(values: Float64[Tensor, " N"]) -> tuple[float, float]:
    """Skewness and its standard error, from the influence of each value on it; NaN where all are the same."""
    z = _standard(values)
    skewness = z.pow(3).mean()
    influence = z.pow(3) - skewness - 3 * z - 1.5 * skewness * (z.square() - 1)
    return float(skewness), float(influence.square().mean().sqrt()) / len(z) ** 0.5


def _law_skewness(law: Float64[Tensor, " values"]) -> float:
    count = torch.arange(len(law), dtype=torch.float64)
    mean = (law * count).sum()
    variance = (law * (count - mean).square()).sum()
    return float((law * (count - mean).pow(3)).sum() / variance**1.5)
