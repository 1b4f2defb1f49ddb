"""How many negatives: what more of them add and spoil, how near their gradient is to that of all, and a best number."""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from contrastneg.analysis.classes import Labels
from contrastneg.analysis.errors import columns_of, mean
from contrastneg.analysis.queries import (
    QUERIES,
    Asked,
    Embeddings,
    Positives,
    ask,
    ask_by_class,
    check_above_0,
    counts_up_to,
    weighted_sum,
)
from contrastneg.negatives.adaptive import best_count
from contrastneg.randomness import generator

Mass = Literal["plain", "preserve"]
STEP = 1e-4  # of the slopes of the best number, in probability


def negative_counts(
    embeddings: Embeddings,
    labels: Labels,
    positives: Positives,
    *,
    counts: Sequence[int] | None = None,
    temperature: float = 0.2,
    penalty: float = 1.0,
    queries: int = QUERIES,
    seed: int = 0,
) -> pd.DataFrame:
    r"""What K random negatives give a query: a hard one, none that is false, and how much gradient falls on false ones.

    With :math:`F_i` the share of query i's true negatives that are at most as similar as its positive and :math:`\pi_i` the
    share of its candidates that are false negatives,

    .. math::
        \text{hard}(K) = 1 - \frac{1}{Q} \sum_i F_i^K \qquad \text{clean}(K) = \frac{1}{Q} \sum_i (1 - \pi_i)^K

    .. math::
        \text{false mass}(K) = \frac{1}{Q} \sum_i \frac{\sum_{j \text{ false}} P_{ij}}{\sum_j P_{ij}} \qquad
        P_{ij} = \frac{e^{s_{ij}/t}}{e^{s_{i+}/t} + \sum_{l \le K} e^{s_{il}/t}}

    .. math:: v(K) = \text{hard} \cdot \text{clean} - \lambda\, \text{hard}\, (1 - \text{clean}) \qquad
        v_g(K) = \frac{1}{Q} \sum_i \Bigl( \sum_{j \text{ true}} P_{ij} - \lambda \sum_{j \text{ false}} P_{ij} \Bigr)

    v is a reconstruction of the training effectiveness of arXiv:2105.13003, whose own weights of the cases were not found,
    and :math:`v_g` is ours. hard and clean are exact for independent draws; the masses are of one draw without replacement
    per query, the K of each number within those of the larger.

    Args:
        embeddings: Of all images.
        labels: Their classes.
        positives: Positives of a second view of each image, row by row: the positive of each query.
        counts: Each K; none takes powers of 4 from 16, and all candidates.
        temperature: t above 0.
        penalty: lambda, what a false negative costs beside what a true one gains; at least 0.
        queries: How many are asked at most.
        seed: Of the draw of queries and of their candidates.

    Returns:
        One row per K: ``negatives``, the number K; ``hard``, ``clean``, ``false_mass``, ``v_reconstruction``,
        ``v_gradient``, each with its standard error over queries, ``..._se``; ``temperature``, ``penalty``.

    Raises:
        ValueError: Labels are missing, positives are not as many as images, or a number is out of range.
    """
    check_above_0("temperature", temperature)
    if penalty < 0:
        raise ValueError(f"penalty is {penalty}: give at least 0")
    asked = ask_by_class(embeddings, labels, queries=queries, seed=seed, positives=positives)
    numbers = counts_up_to(counts, asked.candidates)
    power = torch.tensor(numbers, dtype=torch.float64)
    beaten = torch.cat([_beaten_true(asked, rows, cosine) for rows, cosine in asked.parts()])
    masses = torch.cat(list(_masses(asked, numbers, temperature, seed)))  # (Q, counts, true and false)
    hard_of, clean_of = 1 - beaten[:, None] ** power, (1 - asked.base_rate())[:, None] ** power
    columns = {
        **columns_of("hard", mean(hard_of)),
        **columns_of("clean", mean(clean_of)),
        **columns_of("false_mass", mean(masses[..., 1] / masses.sum(dim=2))),
        **columns_of("v_reconstruction", _worth(hard_of, clean_of, penalty)),
        **columns_of("v_gradient", mean(masses[..., 0] - penalty * masses[..., 1])),
    }
    return asked.table({"negatives": numbers, **columns, "temperature": temperature, "penalty": penalty})


def gradient_agreement(
    embeddings: Embeddings,
    positives: Positives,
    *,
    counts: Sequence[int] | None = None,
    temperature: float = 0.2,
    draws: int = 4,
    queries: int = 256,
    seed: int = 0,
) -> pd.DataFrame:
    r"""How near the gradient of InfoNCE with K random negatives is to that with all of them, and how much it varies.

    .. math:: g_i(K) = \frac{1}{t} \Bigl( \sum_{j \le K} P_{ij} k_j - (1 - P_{i+})\, p_i \Bigr), \qquad
        P_{ij} = \frac{\omega e^{s_{ij}/t}}{e^{s_{i+}/t} + \omega \sum_{l \le K} e^{s_{il}/t}}

    is the gradient with respect to the unit query. Mass "plain" has :math:`\omega = 1`: fewer negatives also push less.
    Mass "preserve" has :math:`\omega = n / K` with n candidates in all, which parts how many from how strong (EqCo,
    arXiv:2010.01929). With R draws of K per query and bars for their mean,

    .. math:: \text{cosine} = \overline{\cos(g(K), g(n))} \quad
        \text{error} = \frac{\overline{\|g(K) - g(n)\|^2}}{\|g(n)\|^2} \quad
        \text{variance} = \frac{R}{R - 1} \frac{\overline{\|g(K) - \overline{g(K)}\|^2}}{\|g(n)\|^2}

    Args:
        embeddings: Of all images.
        positives: Positives of a second view of each image, row by row: the positive of each query.
        counts: Each K; none takes powers of 4 from 16, and all candidates.
        temperature: t above 0.
        draws: R, at least 2, without replacement each.
        queries: How many are asked at most.
        seed: Of the draw of queries and of their candidates.

    Returns:
        One row per mass and K: ``mass``, ``negatives``, the number K; ``cosine``, ``error``, ``variance``, means over
        queries each with its standard error, ``..._se``; ``temperature``, ``draws``.

    Raises:
        ValueError: Positives are not as many as images, or a number is out of range.
    """
    check_above_0("temperature", temperature)
    if draws < 2:
        raise ValueError(f"draws is {draws}: a variance needs at least 2")
    asked = ask(embeddings, queries=queries, seed=seed, positives=positives)
    numbers = counts_up_to(counts, asked.candidates)
    tables = []
    for mass, found in _agreements(asked, numbers, temperature, draws, seed).items():
        value, error = mean(found)
        columns = {"mass": mass, "negatives": numbers}
        for place, name in enumerate(("cosine", "error", "variance")):
            columns |= columns_of(name, (value[:, place], error[:, place]))
        tables.append(asked.table({**columns, "temperature": temperature, "draws": draws}))
    return pd.concat(tables, ignore_index=True)


def best_number(
    embeddings: Embeddings, labels: Labels, positives: Positives, *, queries: int = QUERIES, seed: int = 0
) -> pd.DataFrame:
    r"""The number of negatives at which a query is most often informative, if negatives are independent: a reconstruction.

    Say each negative is true with probability r and less similar than the positive with probability s. All K are true and
    one is not yet beaten with probability :math:`r^K (1 - s^K)`, which is largest at

    .. math:: K^* = \ln\left( \frac{\ln r}{\ln r + \ln s} \right) / \ln s

    and with s near 1 at :math:`-1 / \ln r`, about the number of balanced classes. r and s are measured over all pairs
    (query, candidate). A reconstruction after arXiv:2105.13003, whose own function was not found: it counts a query as lost
    if any negative is false, where InfoNCE loses that negative's share of the gradient only. Do not read it as the best
    number for your training without trying others.

    Args:
        embeddings: Of all images.
        labels: Their classes.
        positives: Positives of a second view of each image, row by row: the positive of each query.
        queries: How many are asked at most.
        seed: Of the draw of queries.

    Returns:
        One row: ``clean``, r, and ``beaten``, s, with standard errors over queries, ``..._se``; ``best``, :math:`K^*`, and
        its error from those of both, ``best_se``; ``ceiling``, :math:`-1 / \ln r`; ``status``, "reconstruction".

    Raises:
        ValueError: Labels are missing, or positives are not as many as images.
    """
    asked = ask_by_class(embeddings, labels, queries=queries, seed=seed, positives=positives)
    below = [(cosine < asked.positive(rows)[:, None]).sum(dim=1) - 1 for rows, cosine in asked.parts()]
    beaten_of, clean_of = torch.cat(below).double() / asked.candidates, 1 - asked.base_rate()
    (clean, clean_se), (beaten, beaten_se) = mean(clean_of), mean(beaten_of)
    r, s = float(clean), float(beaten)
    slopes = [
        (best_count(r + by_r, s + by_s) - best_count(r - by_r, s - by_s)) / (2 * STEP)
        for by_r, by_s in ((STEP * (1 - r), 0.0), (0.0, STEP * (1 - s)))
    ]
    _, best_se = mean(slopes[0] * clean_of / (1 - r) + slopes[1] * beaten_of / max(1 - s, 1e-6))
    return asked.table(
        {
            "clean": [r],
            "clean_se": float(clean_se),
            "beaten": s,
            "beaten_se": float(beaten_se),
            "best": best_count(r, s),
            "best_se": float(best_se),
            "ceiling": -1 / math.log(r),
            "status": "reconstruction",
        }
    )


def _worth(
    hard_of: Float64[Tensor, "Q counts"], clean_of: Float64[Tensor, "Q counts"], penalty: float
) -> tuple[Float64[Tensor, " counts"], Float64[Tensor, " counts"]]:
    """v of each number of negatives and its error, from what each query adds to a product of two means."""
    hard, clean = hard_of.mean(dim=0), clean_of.mean(dim=0)
    worth = clean - penalty * (1 - clean)
    return hard * worth, mean(worth * hard_of + (1 + penalty) * hard * clean_of)[1]


def _beaten_true(asked: Asked, rows: Int64[Tensor, " b"], cosine: Float64[Tensor, "b N"]) -> Float64[Tensor, " b"]:
    """Share of each query's true negatives that are at most as similar as its positive."""
    true = ~asked.same_class(rows)
    true[torch.arange(len(rows)), rows] = False
    below = (cosine <= asked.positive(rows)[:, None]) & true
    return below.sum(dim=1).double() / true.sum(dim=1)


def _masses(asked: Asked, numbers: list[int], temperature: float, seed: int) -> Iterator[Float64[Tensor, "b counts 2"]]:
    """Softmax probability of the true and of the false among the first K of a random order, the positive being in it."""
    last = torch.tensor(numbers) - 1
    for rows, cosine in asked.parts():
        order = _random_orders(asked, rows, (seed, 0))
        positive = asked.positive(rows)[:, None]
        top = torch.maximum(cosine.amax(dim=1, keepdim=True), positive)
        weight = ((cosine - top) / temperature).exp().gather(1, order)
        false = weight * asked.same_class(rows).gather(1, order)
        total, wrong = weight.cumsum(dim=1)[:, last], false.cumsum(dim=1)[:, last]
        yield torch.stack([total - wrong, wrong], dim=2) / (total + ((positive - top) / temperature).exp())[..., None]


def _random_orders(asked: Asked, rows: Int64[Tensor, " b"], about: tuple[int, int]) -> Int64[Tensor, "b C"]:
    """A random order of each query's candidates, which depends on nothing but the seed, the draw and the query."""
    orders = []
    for row in rows.tolist():
        order = torch.randperm(asked.candidates, generator=generator(*about, "candidates", row))
        orders.append(order + (order >= row))
    return torch.stack(orders)


def _sums_of_first(
    asked: Asked,
    rows: Int64[Tensor, " b"],
    cosine: Float64[Tensor, "b N"],
    numbers: list[int],
    temperature: float,
    about: tuple[int, int],
) -> Float64[Tensor, "counts b sums"]:
    """Sums over the first K of a random order: of keys times e^{(s - 1)/t}, and, last, of these weights alone."""
    weight = ((cosine - 1) / temperature).exp()
    order = _random_orders(asked, rows, about)
    sums = []
    for number in numbers:
        chosen = torch.zeros_like(weight).scatter_(1, order[:, :number], 1.0) * weight
        sums.append(torch.cat([weighted_sum(chosen, asked.x), chosen.sum(dim=1, keepdim=True)], dim=1))
    return torch.stack(sums)


def _agreements(
    asked: Asked, numbers: list[int], temperature: float, draws: int, seed: int
) -> dict[Mass, Float64[Tensor, "Q counts 3"]]:
    """How each mass agrees with all candidates, see :func:`_agreement`, both from the same draws."""
    parts: dict[Mass, list[Tensor]] = {"plain": [], "preserve": []}
    for rows, cosine in asked.parts():
        sums = torch.stack([_sums_of_first(asked, rows, cosine, numbers, temperature, (seed, d)) for d in range(draws)])
        every = _sums_of_first(asked, rows, cosine, [asked.candidates], temperature, (seed, 0))
        whole = _gradient(asked, rows, every, torch.ones(1), temperature)
        for mass, agreements in parts.items():
            found = _gradient(asked, rows, sums, _omega(mass, numbers, asked.candidates), temperature)
            agreements.append(_agreement(found, whole))
    return {mass: torch.cat(agreements) for mass, agreements in parts.items()}


def _gradient(
    asked: Asked, rows: Int64[Tensor, " b"], sums: Tensor, omega: Tensor, temperature: float
) -> Float64[Tensor, "*draws counts b D"]:
    """Gradient of InfoNCE with respect to unit queries, from the sums over their negatives."""
    assert asked.second is not None
    sums = sums * omega[:, None, None]
    own = ((asked.positive(rows) - 1) / temperature).exp()
    total = sums[..., -1] + own
    pushed = sums[..., :-1] / total[..., None]
    pulled = (sums[..., -1] / total)[..., None] * asked.second[rows].double()  # 1 - P+ without cancellation
    return (pushed - pulled) / temperature


def _omega(mass: Mass, numbers: list[int], candidates: int) -> Tensor:
    """Weight of each negative where there are so many."""
    return torch.ones(1) if mass == "plain" else candidates / torch.tensor(numbers, dtype=torch.float64)


def _agreement(
    found: Float64[Tensor, "draws counts b D"], whole: Float64[Tensor, "1 b D"]
) -> Float64[Tensor, "b counts 3"]:
    """Cosine, relative error and relative variance of each query's gradients, by number of negatives."""
    length = whole.square().sum(dim=-1)
    cosine = torch.nn.functional.cosine_similarity(found, whole[None], dim=-1, eps=1e-300).mean(dim=0)
    error = (found - whole).square().sum(dim=-1).mean(dim=0) / length
    variance = found.var(dim=0).sum(dim=-1) / length
    return torch.stack([cosine, error, variance], dim=-1).transpose(0, 1)
