"""Several checkpoints of one encoder: whether scores of false negatives vary less, and what a curriculum would offer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Int64
from scipy import stats
from torch import Tensor

from contrastneg.analysis.classes import Labels
from contrastneg.analysis.errors import NORMAL, clustered_error, mean, numbers_of
from contrastneg.analysis.queries import (
    Asked,
    Embeddings,
    Positives,
    ask_by_class,
    check_above_0,
    check_share,
    hardest_first,
    place,
    weighted_sum,
)
from contrastneg.randomness import generator

Checkpoint = tuple[Embeddings, Positives]
"""Embeddings of all images and of a second view of each, by one checkpoint."""
Order = Literal["easy first", "hard first", "random", "all"]
PACING = {"root": 0.5, "linear": 1.0, "quadratic": 2.0}
DECILES = 10


def score_variance(
    checkpoints: Sequence[Checkpoint],
    labels: Labels,
    *,
    temperature: float = 0.2,
    share: float = 0.05,
    queries: int = 256,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Whether scores of false negatives vary less over training than those of true ones as high (SRNS, arXiv:2009.03376).

    With :math:`P_{ij}^e = \sigma((s_{ij}^e - s_{i+}^e) / t)` at each of E checkpoints, pairs (query, candidate) are cut into
    tenths by their mean over the checkpoints, and within each the population standard deviations of false and of true
    negatives are compared: without that the comparison says little, as extreme means have small deviations by construction.
    Pairs are each query's hardest share at the last checkpoint and as many others at random.

    Augmented views of one checkpoint in the place of checkpoints are an analogy: name it so.

    Args:
        checkpoints: Embeddings and positives of the same images by two checkpoints at least, in order; five are fair.
        labels: Classes of the images.
        temperature: t above 0.
        share: Hardest candidates that are looked at, as a share of all, rounded up; between 0 and 1.
        queries: How many are asked at most.
        seed: Of the draws of queries and of random candidates.

    Returns:
        One row per tenth: ``tenth`` from 1, ``mean_score`` in it; ``pairs``; ``false_rate``; ``sd_false`` and ``sd_true``,
        mean deviations; ``auc``, how often a false negative of the tenth has a smaller deviation than a true one, a half if
        they are alike, and its standard error, ``auc_se``, over queries; ``checkpoints``, ``temperature``, ``share``.

    Raises:
        ValueError: There are fewer than two checkpoints, they differ in images, labels are missing, or a number is out of
            range.
    """
    scored = _Scored.of(checkpoints, labels, temperature, share, queries, seed)
    tenths = scored.tenths()
    rows = [{"tenth": tenth + 1, **_within(scored, tenths == tenth)} for tenth in range(DECILES)]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return scored.asked.table({**columns, **scored.about})


def score_variance_claim(
    checkpoints: Sequence[Checkpoint],
    labels: Labels,
    *,
    temperature: float = 0.2,
    share: float = 0.05,
    queries: int = 256,
    seed: int = 0,
) -> pd.DataFrame:
    r"""The claim of SRNS (arXiv:2009.03376) in three numbers: can false negatives be told by a score that varies little?

    ================== ============================================================================================
    deviation, matched the AUC of a small deviation within tenths of the mean score, averaged by pairs that are compared:
                       the claim is supported if its 95 % interval lies above a half
    deviation          the same AUC over all pairs, confounded by the mean
    mean               the AUC of a high mean score, which needs one checkpoint only
    ================== ============================================================================================

    Args:
        checkpoints: See :func:`score_variance`, as for all other arguments.
        labels: See there.
        temperature: See there.
        share: See there.
        queries: See there.
        seed: See there.

    Returns:
        One row per score: ``score``; ``auc`` with its standard error over queries, ``auc_se``, and 95 % interval, ``low`` to
        ``high``; ``supported``, whether that lies above a half; ``checkpoints``, ``temperature``, ``share``.

    Raises:
        ValueError: As :func:`score_variance`.
    """
    scored = _Scored.of(checkpoints, labels, temperature, share, queries, seed)
    number = len(scored.asked.rows)
    found = {
        "deviation, matched": _matched_auc(scored, number),
        "deviation": _auc(-scored.deviation, scored.false, scored.query, number),
        "mean": _auc(scored.mean, scored.false, scored.query, number),
    }
    auc = np.array([value for value, _ in found.values()])
    error = np.array([float(clustered_error(torch.from_numpy(influence))) for _, influence in found.values()])
    low, high = auc - NORMAL * error, auc + NORMAL * error
    columns = {"score": list(found), "auc": auc, "auc_se": error, "low": low, "high": high, "supported": low > 0.5}
    return scored.asked.table({**columns, **scored.about})


def curriculum_curves(
    checkpoints: Sequence[Checkpoint],
    labels: Labels,
    *,
    progress: Sequence[float] | None = None,
    pacing: Mapping[str, float] = PACING,
    temperature: float = 0.2,
    queries: int = 128,
    seed: int = 0,
) -> pd.DataFrame:
    r"""What curricula would offer along a run: how hard, how false, and with what gradient (CuCo, IJCAI 2021).

    At progress x a share :math:`\rho(x) = x^\lambda` of each query's candidates is open, at least one: the easiest ("easy
    first"), the hardest ("hard first"), any ("random"), and beside these all ("all"), by the cosines of the checkpoint of
    that time. The encoder is as it was trained: what it would become under a curriculum takes a run.

    Args:
        checkpoints: Embeddings and positives of the same images by one checkpoint at least, in order.
        labels: Classes of the images.
        progress: Where each checkpoint stands in the run, in [0, 1]; None spreads them evenly, the last at 1.
        pacing: lambda above 0 by name: the square root, linear and quadratic pacing of the paper's code.
        temperature: t above 0.
        queries: How many are asked at most.
        seed: Of the draws of queries and of random candidates.

    Returns:
        One row per checkpoint, pacing and order: ``checkpoint`` from 0, ``progress``, ``pacing``, ``order``; ``offered``
        candidates per query; their mean ``similarity``, ``false_rate``, and ``gradient_norm``, the length of the gradient of
        negatives of InfoNCE over the offered ones, each with its standard error over queries, ``..._se``; ``temperature``.

    Raises:
        ValueError: Checkpoints differ in images, labels are missing, or a number is out of range.
    """
    check_above_0("temperature", temperature)
    check_above_0("pacing", *pacing.values())
    times = [(e + 1) / len(checkpoints) for e in range(len(checkpoints))] if progress is None else list(progress)
    if len(times) != len(checkpoints) or not all(0 <= x <= 1 for x in times):
        raise ValueError(f"progress is {times}: give a number from 0 to 1 for each of {len(checkpoints)} checkpoints")
    all_asked = _same_images(checkpoints, labels, queries, seed, least=1)
    tables = []
    for number, (asked, x) in enumerate(zip(all_asked, times, strict=True)):
        plans = _plans(pacing, x, asked.candidates)
        found = _offered(asked, plans, temperature, seed)
        for (name, order, count), part in zip(plans, found, strict=True):
            where = {"checkpoint": [number], "progress": x, "pacing": name, "order": order, "offered": count}
            tables.append(asked.table({**where, **_curve_columns(part), "temperature": temperature}))
    return pd.concat(tables, ignore_index=True)


@dataclass(frozen=True)
class _Scored:
    """Pairs of queries and candidates with their scores over the checkpoints."""

    asked: Asked
    query: np.ndarray
    """Which query each pair is of."""
    false: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    about: dict[str, Any]

    @classmethod
    def of(
        cls,
        checkpoints: Sequence[Checkpoint],
        labels: Labels,
        temperature: float,
        share: float,
        queries: int,
        seed: int,
    ) -> "_Scored":
        check_above_0("temperature", temperature)
        check_share("share", share)
        all_asked = _same_images(checkpoints, labels, queries, seed, least=2)
        last = all_asked[-1]
        parts = [
            (image, score, last.same_class(rows).gather(1, image))
            for rows, image, score in _pairs(all_asked, temperature, share, seed)
        ]
        score = torch.cat([score for _, score, _ in parts]).flatten(0, 1)
        false = torch.cat([same for _, _, same in parts]).flatten()
        query = np.arange(len(last.rows)).repeat(parts[0][0].shape[1])
        about = {"checkpoints": len(checkpoints), "temperature": temperature, "share": share}
        average, deviation = score.mean(dim=1).numpy(), score.std(dim=1, correction=0).numpy()
        return cls(last, query, false.numpy(), average, deviation, about)

    def tenths(self) -> np.ndarray:
        """Tenth of each pair by its mean score."""
        order = np.argsort(self.mean, kind="stable")
        tenth = np.empty(len(order), dtype=np.int64)
        tenth[order] = np.arange(len(order)) * DECILES // len(order)
        return tenth


def _pairs(
    all_asked: Sequence[Asked], temperature: float, share: float, seed: int
) -> Iterator[tuple[Int64[Tensor, " b"], Int64[Tensor, "b pairs"], Float64[Tensor, "b pairs E"]]]:
    """Some queries at a time with the candidates that are looked at and their score at each checkpoint."""
    last = all_asked[-1]
    count = place(share, last.candidates)
    others = min(count, last.candidates - count)
    for parts in zip(*(asked.parts() for asked in all_asked), strict=True):
        rows, cosine = parts[-1]
        order = hardest_first(cosine)[:, :-1]
        drawn = [
            torch.randperm(order.shape[1] - count, generator=generator(seed, "others", row)) for row in rows.tolist()
        ]
        image = torch.cat([order[:, :count], order.gather(1, count + torch.stack(drawn)[:, :others])], dim=1)
        scores = [
            ((each.gather(1, image) - asked.positive(rows)[:, None]) / temperature).sigmoid()
            for asked, (_, each) in zip(all_asked, parts, strict=True)
        ]
        yield rows, image, torch.stack(scores, dim=2)


def _same_images(checkpoints: Sequence[Checkpoint], labels: Labels, queries: int, seed: int, least: int) -> list[Asked]:
    lengths = [len(embeddings) for embeddings, _ in checkpoints]
    if len(checkpoints) < least or len(set(lengths)) > 1:
        raise ValueError(
            f"checkpoints has embeddings of {lengths} images: give {least} or more checkpoints, all of the same images"
        )
    return [ask_by_class(x, labels, queries=queries, seed=seed, positives=positive) for x, positive in checkpoints]


def _auc(score: np.ndarray, false: np.ndarray, query: np.ndarray, queries: int) -> tuple[float, np.ndarray]:
    """How often a false negative scores above a true one, and what each query adds to that (clustered DeLong)."""
    many, others = int(false.sum()), int((~false).sum())
    if not many or not others:
        return np.nan, np.full(queries, np.nan)
    rank = stats.rankdata(score)
    beaten = (rank[false] - stats.rankdata(score[false])) / others  # of each false one, ties by half
    beating = 1 - (rank[~false] - stats.rankdata(score[~false])) / many
    auc = float(beaten.mean())
    influence = np.bincount(query[false], beaten - auc, queries) / many
    return auc, influence + np.bincount(query[~false], beating - auc, queries) / others


def _within(scored: _Scored, inside: np.ndarray) -> dict[str, Any]:
    """Scores of some pairs, and how their deviations tell the false from the true negatives."""
    false, deviation = scored.false[inside], scored.deviation[inside]
    auc, influence = _auc(-deviation, false, scored.query[inside], len(scored.asked.rows))
    return {
        "mean_score": scored.mean[inside].mean(),
        "pairs": int(inside.sum()),
        "false_rate": false.mean(),
        "sd_false": deviation[false].mean() if false.any() else np.nan,
        "sd_true": deviation[~false].mean() if (~false).any() else np.nan,
        "auc": auc,
        "auc_se": float(clustered_error(torch.from_numpy(influence))),
    }


def _matched_auc(scored: _Scored, queries: int) -> tuple[float, np.ndarray]:
    """The AUC of a small deviation within tenths of the mean score, weighted by the pairs that are compared."""
    tenths = scored.tenths()
    total, auc, influence = 0, 0.0, np.zeros(queries)
    for tenth in range(DECILES):
        inside = tenths == tenth
        false = scored.false[inside]
        weight = int(false.sum()) * int((~false).sum())
        if weight:
            value, part = _auc(-scored.deviation[inside], false, scored.query[inside], queries)
            total, auc, influence = total + weight, auc + weight * value, influence + weight * part
    return (auc / total, influence / total) if total else (np.nan, influence * np.nan)


def _plans(pacing: Mapping[str, float], progress: float, candidates: int) -> list[tuple[str, Order, int]]:
    """Name of the pacing, order, and number of candidates that are open at this progress."""
    orders: tuple[Order, ...] = ("easy first", "hard first", "random")
    opened = {name: max(1, place(progress**power, candidates)) for name, power in pacing.items()}
    return [*((name, order, count) for name, count in opened.items() for order in orders), ("all", "all", candidates)]


def _offered(
    asked: Asked, plans: Sequence[tuple[str, Order, int]], temperature: float, seed: int
) -> Float64[Tensor, "plans Q 3"]:
    """Mean similarity, rate of false negatives and length of the gradient of what each plan offers a query."""
    found = torch.empty(len(plans), len(asked.rows), 3, dtype=torch.float64)
    done = 0
    for rows, cosine in asked.parts():
        order = hardest_first(cosine)[:, :-1]
        drawn = [torch.randperm(order.shape[1], generator=generator(seed, "random", row)) for row in rows.tolist()]
        ranked = {"hard first": order, "easy first": order.flip(1), "random": order.gather(1, torch.stack(drawn))}
        same = asked.same_class(rows)
        for part, (_, kind, count) in zip(found, plans, strict=True):
            image = ranked.get(kind, order)[:, :count]
            kept = cosine.gather(1, image)
            own = asked.positive(rows)[:, None]
            law = (torch.cat([own, kept], dim=1) / temperature).softmax(dim=1)[:, 1:]
            weight = torch.zeros_like(cosine).scatter_(1, image, law)
            length = weighted_sum(weight, asked.x).norm(dim=1) / temperature
            false = same.gather(1, image).double().mean(dim=1)
            part[done : done + len(rows)] = torch.stack([kept.mean(dim=1), false, length], dim=1)
        done += len(rows)
    return found


def _curve_columns(found: Float64[Tensor, "Q 3"]) -> dict[str, float]:
    columns: dict[str, float] = {}
    for name, values in zip(("similarity", "false_rate", "gradient_norm"), found.T, strict=True):
        columns |= numbers_of(name, mean(values))
    return columns
