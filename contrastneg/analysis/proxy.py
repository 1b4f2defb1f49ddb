"""How hard the proxy task is: where the probability of a match goes, and how often the positive wins."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from contrastneg.analysis.errors import columns_of, mean
from contrastneg.analysis.queries import QUERIES, Embeddings, Positives, ask, check_above_0, counts_up_to


def matching_probability(
    embeddings: Embeddings,
    positives: Positives,
    *,
    temperatures: Sequence[float] = (0.2,),
    ranks: int = 1024,
    queries: int = QUERIES,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Softmax probability of the positive and of candidates by rank (the curves of MoCHi, arXiv:2010.01028).

    .. math:: P_{ir} = \frac{e^{s_{i(r)}/t}}{e^{s_{i+}/t} + \sum_j e^{s_{ij}/t}}, \quad s_{i(1)} \ge s_{i(2)} \ge \dots

    averaged over queries rank by rank. The steeper the curve, the fewer candidates still teach anything. All other images
    are candidates: give as many as your queue holds to compare with training.

    Args:
        embeddings: Of all images.
        positives: Positives of a second view of each image, row by row: the positive of each query.
        temperatures: Each t, above 0.
        ranks: Ranks that are told, fewer where there are fewer candidates; at least 1.
        queries: How many are asked at most.
        seed: Of the draw of queries.

    Returns:
        One row per temperature and rank: ``temperature``; ``rank``, 0 for the positive, 1 for the hardest candidate;
        ``probability`` and its standard error over queries, ``probability_se``.

    Raises:
        ValueError: Positives are not as many as images, a temperature is not above 0, or ranks is below 1.
    """
    check_above_0("temperatures", *temperatures)
    check_above_0("ranks", ranks)
    asked = ask(embeddings, queries=queries, seed=seed, positives=positives)
    shown = min(ranks, asked.candidates)
    parts: list[list[Tensor]] = [[] for _ in temperatures]
    for rows, cosine, _ in asked.ordered():
        first = torch.cat([asked.positive(rows)[:, None], cosine], dim=1)
        for probabilities, temperature in zip(parts, temperatures, strict=True):
            probabilities.append((first / temperature).softmax(dim=1)[:, : shown + 1].clone())
    tables = []
    for probabilities, temperature in zip(parts, temperatures, strict=True):
        columns = {"temperature": temperature, "rank": np.arange(shown + 1)}
        tables.append(asked.table({**columns, **columns_of("probability", mean(torch.cat(probabilities)))}))
    return pd.concat(tables, ignore_index=True)


def proxy_accuracy(
    embeddings: Embeddings,
    positives: Positives,
    *,
    counts: Sequence[int] | None = None,
    queries: int = QUERIES,
    seed: int = 0,
) -> pd.DataFrame:
    r"""How often the positive is more similar than all of K negatives (MoCHi, arXiv:2010.01028; P(B) of arXiv:2105.13003).

    With :math:`b_i` of the n = N - 1 candidates less similar than the positive, K drawn at random without replacement are
    all so with probability :math:`\binom{b_i}{K} / \binom{n}{K}`. The mean of that over queries needs no draws.

    Args:
        embeddings: Of all images.
        positives: Positives of a second view of each image, row by row: the positive of each query.
        counts: Each K; none takes powers of 4 from 16, and all candidates.
        queries: How many are asked at most.
        seed: Of the draw of queries.

    Returns:
        One row per K: ``negatives``, the number K; ``accuracy`` and its standard error over queries, ``accuracy_se``;
        ``chance``, 1 / (K + 1), that of a positive no different from the negatives.

    Raises:
        ValueError: Positives are not as many as images, or a K is below 1 or above the candidates.
    """
    asked = ask(embeddings, queries=queries, seed=seed, positives=positives)
    numbers = counts_up_to(counts, asked.candidates)
    beaten = torch.cat([(cosine < asked.positive(rows)[:, None]).sum(dim=1) for rows, cosine in asked.parts()])
    accuracy = mean(all_beaten(beaten - 1, asked.candidates, numbers))  # the query itself, at -inf, is no candidate
    columns = {"negatives": numbers, **columns_of("accuracy", accuracy)}
    return asked.table({**columns, "chance": [1 / (number + 1) for number in numbers]})


def positive_wins(
    positive: Float[Tensor | np.ndarray, " P"], negative: Float[Tensor | np.ndarray, " M"], counts: Sequence[int]
) -> pd.DataFrame:
    r"""How often a draw from one law of scores is above K draws from another (P(A) and P(B) of arXiv:2105.13003).

    .. math:: P(K) = \int f_+(y)\, F_-(y)^K \, dy

    estimated without bias from samples of both laws, K negatives being drawn without replacement. With scores of the
    model that is P(B), with true relevance P(A). 1 / (K + 1) if the laws are equal.

    Args:
        positive: Scores of positives.
        negative: Scores of negatives.
        counts: Each K, from 1 to the number of negative scores.

    Returns:
        One row per K: ``negatives``, ``probability``, its standard error over positives with the negatives held fixed,
        ``probability_se``; ``chance``, 1 / (K + 1); ``positives`` and ``pool``, the numbers of scores.

    Raises:
        ValueError: There are no positives, or a K is below 1 or above the number of negative scores.
    """
    above, pool = torch.as_tensor(positive), torch.as_tensor(negative)
    if not len(above):
        raise ValueError("positive has no scores: give at least one")
    numbers = counts_up_to(list(counts), len(pool))
    common = torch.promote_types(above.dtype, pool.dtype)
    beaten = torch.searchsorted(pool.to(common).sort().values, above.to(common).contiguous())
    probability, error = mean(all_beaten(beaten, len(pool), numbers))
    return pd.DataFrame(
        {
            "negatives": numbers,
            "probability": probability.numpy(),
            "probability_se": error.numpy(),
            "chance": [1 / (number + 1) for number in numbers],
            "positives": len(above),
            "pool": len(pool),
        }
    )


def all_beaten(beaten: Int64[Tensor, " Q"], pool: int, counts: Sequence[int]) -> Float64[Tensor, "Q counts"]:
    r"""Probability that K drawn from a pool without replacement are all among the beaten: :math:`\binom{b}{K} / \binom{n}{K}`.

    Args:
        beaten: b, how many of the pool are beaten.
        pool: n.
        counts: Each K, from 1 to n.
    """
    b, k = beaten.double()[:, None], torch.tensor(counts, dtype=torch.float64)
    left = (b - k).clamp(min=0)
    log_choices = torch.lgamma(b + 1) - torch.lgamma(left + 1)
    log_all = torch.lgamma(k.new_tensor(pool + 1.0)) - torch.lgamma(pool - k + 1)
    return torch.where(b >= k, (log_choices - log_all).exp(), 0.0)
