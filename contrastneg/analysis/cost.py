"""What a square loss over all pairs costs with the table of pairs and without it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from contrastneg.analysis.queries import check_above_0
from contrastneg.losses.whole_data import KeyMoments
from contrastneg.randomness import generator

LARGEST_TABLE = 2**28
"""Entries of the largest table of pairs that is made: 1 GiB in float32."""


def whole_data_cost(
    images: Sequence[int] = (1024, 4096, 16_384),
    *,
    widths: Sequence[int] = (64, 128, 256),
    repeats: int = 3,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Time, memory and error of :math:`\sum_{ij} s_{ij}^2` over T images, from all pairs and from D x D moments.

    .. math:: \sum_{i,j} (u_i \cdot v_j)^2 = \langle U^\top U, V^\top V \rangle

    ======== =======================================================================================================
    pairs    the T x T table, squared in place, 2 T^2 D operations
    moments  the D x D second moment of the keys first, 4 T D^2 operations (:class:`contrastneg.losses.KeyMoments`)
    queue    as moments, for 256 queries on a moment that is known already: what a step with a queue takes
    ======== =======================================================================================================

    On unit vectors drawn at random, forward alone, with the threads that torch has. EHCF and NS-KGE do
    without sampling by this identity; whether they train as well takes runs.

    Args:
        images: Each T, at least 1. Tables of more than 2^28 entries are not made: their rows are NaN.
        widths: Each D, at least 1.
        repeats: Runs of which the median time is told, at least 1.
        seed: Of the vectors.

    Returns:
        One row per T, D and way: ``images``, ``width``, ``way``; ``seconds``; ``bytes`` that the way needs beside its inputs;
        ``error``, the largest relative error of a query's sum in float32 against float64, NaN where that is not made;
        ``repeats``, ``seed``.

    Raises:
        ValueError: A number is out of range.
    """
    check_above_0("images", *images)
    check_above_0("widths", *widths)
    check_above_0("repeats", repeats)
    rows = []
    for count, width in product(images, widths):
        draws = generator(seed, "cost", count, width)
        query, keys = (F.normalize(torch.randn(count, width, generator=draws), dim=1) for _ in range(2))
        for way in _ways(query, keys):
            rows.append({"images": count, "width": width, **_measured(way, keys, repeats)})
    return pd.DataFrame(rows).assign(repeats=repeats, seed=seed)


@dataclass(frozen=True)
class _Way:
    name: str
    sums: Callable[[], Float[Tensor, " B"]]
    """Of the squared similarities of each query with all keys."""
    query: Float[Tensor, "B D"]
    numbers: int
    """Numbers that it holds beside its inputs."""


def _ways(query: Float[Tensor, "T D"], keys: Float[Tensor, "T D"]) -> list[_Way]:
    count, width = keys.shape
    moments, few = KeyMoments.of(keys), query[:256]
    return [
        _Way("pairs", lambda: (query @ keys.T).square_().sum(dim=1), query, count * count),
        _Way("moments", lambda: KeyMoments.of(keys).square_sum(query), query, width * width + 2 * count * width),
        _Way("queue", lambda: moments.square_sum(few), few, 2 * len(few) * width),
    ]


def _measured(way: _Way, keys: Float[Tensor, "T D"], repeats: int) -> dict[str, Any]:
    """The row of one way, without time and error where its table is too large to be made."""
    seconds = error = torch.nan
    if way.name != "pairs" or way.numbers <= LARGEST_TABLE:
        found, seconds = _timed(way.sums, repeats)
        error = _error(found, way.query, keys)
    return {"way": way.name, "seconds": seconds, "bytes": 4 * way.numbers, "error": error}


def _timed(made: Callable[[], Tensor], repeats: int) -> tuple[Tensor, float]:
    found, times = made(), []
    for _ in range(repeats):
        began = time.perf_counter()
        found = made()
        times.append(time.perf_counter() - began)
    return found, sorted(times)[repeats // 2]


def _error(found: Float[Tensor, " B"], query: Float[Tensor, "B D"], keys: Float[Tensor, "K D"]) -> float:
    exact = torch.cat([(part.double() @ keys.double().T).square().sum(dim=1) for part in query.split(1024)])
    return float(((found.double() - exact) / exact).abs().max())
