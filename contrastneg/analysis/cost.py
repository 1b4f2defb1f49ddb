"""What a square loss over all pairs costs with the table of pairs and without it."""

import time
from collections.abc import Callable, Sequence

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
    for count in images:
        for width in widths:
            draws = generator(seed, "cost", count, width)
            query, keys = (F.normalize(torch.randn(count, width, generator=draws), dim=1) for _ in range(2))
            moments, few = KeyMoments.of(keys), query[:256]
            ways: list[tuple[str, Callable[[], Tensor], Tensor, int]] = [
                ("pairs", lambda q=query, k=keys: (q @ k.T).square_().sum(dim=1), query, count * count),
                (
                    "moments",
                    lambda q=query, k=keys: KeyMoments.of(k).square_sum(q),
                    query,
                    width * width + 2 * count * width,
                ),
                ("queue", lambda q=few, m=moments: m.square_sum(q), few, 2 * len(few) * width),
            ]
            for way, made, asked, numbers in ways:
                small = way != "pairs" or numbers <= LARGEST_TABLE
                found, seconds = _timed(made, repeats) if small else (None, torch.nan)
                error = torch.nan if found is None else _error(found, asked, keys)
                measured = {"seconds": seconds, "bytes": 4 * numbers, "error": error}
                rows.append({"images": count, "width": width, "way": way, **measured})
    return pd.DataFrame(rows).assign(repeats=repeats, seed=seed)


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
