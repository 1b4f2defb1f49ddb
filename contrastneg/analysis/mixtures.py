"""Mixes of hard candidates as MoCHi makes them: how hard they are, whose class their parents are, and what lies nearest."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from contrastneg.analysis.classes import Labels
from contrastneg.analysis.errors import mean, numbers_of
from contrastneg.analysis.queries import Asked, Embeddings, Positives, ask_either, check_above_0
from contrastneg.evaluate.neighbours import nearest, unit_rows
from contrastneg.negatives import Clock, MoCHi, Negatives
from contrastneg.negatives.mixes import Pool

BATCH = 32
"""Queries of one table."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
KINDS = ("parents", "pair mixes", "query mixes")


def mixed_negatives(
    embeddings: Embeddings,
    positives: Positives,
    labels: Labels = None,
    *,
    pool: int = 1024,
    pair_mixes: int = 256,
    query_mixes: int = 64,
    searched: int = 8,
    queries: int = 256,
    seed: int = 0,
) -> pd.DataFrame:
    r"""What mixes of each query's hardest candidates are (MoCHi, arXiv:2010.01028): as :class:`contrastneg.negatives.MoCHi`.

    =========== ===================================================================================================
    parents     the ``pool`` most similar candidates of the query, which mixes are made of
    pair mixes  :math:`a x + (1 - a) y` scaled to length 1, x and y of the pool, a from U(0, 1)
    query mixes :math:`b q + (1 - b) x` scaled to length 1, b from U(0, 1/2)
    =========== ===================================================================================================

    Of each kind, as means over queries:

    ================== ============================================================================================
    similarity         mean cosine with the query; ``q05`` to ``q95`` are quantiles of a query's
    above_hardest      share that is more similar than every image
    above_positive     share that is more similar than the positive
    positive_first     share of queries whose positive is more similar than all of them: the proxy accuracy with them
    parents_0, 1, 2    share with so many parents of the query's class; the query inside a query mix does not count
    nearest_same_class share whose nearest image, the query's own left out, is of the query's class: the rate of false
                       negatives of what was made, looked up for ``searched`` mixes of each kind
    ================== ============================================================================================

    Args:
        embeddings: Of all images.
        positives: Of a second view of each image, row by row: the positive of each query.
        labels: Classes for the columns on classes, which are NaN without.
        pool: Candidates that mixes are made of, at least 1 and at most all.
        pair_mixes: Mixes of two candidates per query, at least 1.
        query_mixes: Mixes of the query and a candidate per query, at least 1.
        searched: Mixes of each kind per query whose nearest image is looked up, at least 1; those there are, if fewer.
        queries: How many are asked at most.
        seed: Of the draws of queries and of mixes.

    Returns:
        One row per kind: ``kind``; the columns above, each with its standard error over queries, ``..._se``; ``base_rate``,
        the share of all candidates that are of the query's class; ``pool``, ``mixes`` per query.

    Raises:
        ValueError: Positives are not as many as images, or a number is out of range.
    """
    check_above_0("pool, pair_mixes, query_mixes, searched", pool, pair_mixes, query_mixes, searched)
    asked = ask_either(embeddings, labels, queries=queries, seed=seed, positives=positives)
    if pool > asked.candidates:
        raise ValueError(f"pool is {pool} but a query has {asked.candidates} candidates: give at most that")
    measured, vectors = _of_kinds(asked, pool, (pair_mixes, query_mixes), searched, seed)
    rows = []
    for kind, number in zip(KINDS, (pool, pair_mixes, query_mixes), strict=True):
        found = measured[kind]
        if kind in vectors:
            found["nearest_same_class"] = _nearest_same_class(asked, vectors[kind])
        else:
            found["nearest_same_class"] = found["parents_1"]  # an image is the nearest to itself
        rows.append(_row(asked, kind, found) | {"pool": pool, "mixes": number})
    return pd.concat([asked.table(row) for row in rows], ignore_index=True)


@dataclass(frozen=True)
class _Mixes:
    similarity: Float[Tensor, "b S"]
    parent: Int64[Tensor, "b S parents"]
    """Images that each was made of."""
    vector: Float[Tensor, "b S D"] | None = None


def _made(
    asked: Asked, pool: int, counts: tuple[int, int], seed: int
) -> Iterator[tuple[Int64[Tensor, " b"], Float[Tensor, " b"], Float[Tensor, " b"], tuple[_Mixes, _Mixes, _Mixes]]]:
    """Some queries at a time: cosines of their hardest candidate and of the positive, and all that is measured."""
    assert asked.second is not None
    image = torch.arange(len(asked.x))
    mixer = MoCHi(pool=pool, pair_mixes=counts[0], query_mixes=counts[1])
    for number, rows in enumerate(asked.rows.split(BATCH)):
        query = asked.x[rows]
        table = Negatives.of(query, asked.second[rows], asked.x, query_id=rows, key_id=image)
        hardest = Pool.of(table, pool)
        (x, y, a), (z, b) = mixer.drawn(hardest, Clock(1, 1, 0.0, seed, batch=number))
        x, y, z = (hardest.column.gather(1, rank) for rank in (x, y, z))
        pairs = F.normalize(a[..., None] * asked.x[x] + (1 - a)[..., None] * asked.x[y], dim=-1)
        singles = F.normalize(b[..., None] * query[:, None] + (1 - b)[..., None] * asked.x[z], dim=-1)
        found = (
            _Mixes(hardest.similarity, hardest.column[..., None]),
            _Mixes((pairs @ query[:, :, None]).squeeze(2), torch.stack([x, y], dim=2), pairs),
            _Mixes((singles @ query[:, :, None]).squeeze(2), z[..., None], singles),
        )
        yield rows, hardest.similarity.amax(dim=1), table.positive_similarity, found


def _of_kinds(
    asked: Asked, pool: int, counts: tuple[int, int], searched: int, seed: int
) -> tuple[dict[str, dict[str, Float64[Tensor, " Q"]]], dict[str, Float[Tensor, "Q searched D"]]]:
    """By kind, what is measured of each query, and the first vectors of those kinds that are no images."""
    measured: dict[str, list[dict[str, Tensor]]] = {kind: [] for kind in KINDS}
    vectors: dict[str, list[Tensor]] = {kind: [] for kind in KINDS[1:]}
    for rows, hardest, positive, made in _made(asked, pool, counts, seed):
        for kind, mixes in zip(KINDS, made, strict=True):
            measured[kind].append(_measures(asked, rows, mixes, hardest, positive))
            if mixes.vector is not None:
                vectors[kind].append(mixes.vector[:, :searched].clone())
    columns = {
        kind: {name: torch.cat([part[name] for part in parts]) for name in parts[0]} for kind, parts in measured.items()
    }
    return columns, {kind: torch.cat(parts) for kind, parts in vectors.items()}


def _measures(
    asked: Asked, rows: Int64[Tensor, " b"], mixes: _Mixes, hardest: Float[Tensor, " b"], positive: Float[Tensor, " b"]
) -> dict[str, Float64[Tensor, " b"]]:
    similarity = mixes.similarity.double()
    found = {"similarity": similarity.mean(dim=1)}
    for share, values in zip(QUANTILES, similarity.quantile(torch.tensor(QUANTILES).double(), dim=1), strict=True):
        found[f"q{round(100 * share):02d}"] = values
    found["above_hardest"] = (mixes.similarity > hardest[:, None]).double().mean(dim=1)
    found["above_positive"] = (mixes.similarity > positive[:, None]).double().mean(dim=1)
    found["positive_first"] = (mixes.similarity < positive[:, None]).all(dim=1).double()
    for number in range(3):
        found[f"parents_{number}"] = torch.full((len(rows),), torch.nan, dtype=torch.float64)
    if asked.label is not None:
        same = (asked.labels[mixes.parent] == asked.labels[rows][:, None, None]).sum(dim=2)
        for number in range(3):
            found[f"parents_{number}"] = (same == number).double().mean(dim=1)
    return found


def _nearest_same_class(asked: Asked, vector: Float[Tensor, "Q searched D"]) -> Float64[Tensor, " Q"]:
    if asked.label is None:
        return torch.full((len(vector),), torch.nan, dtype=torch.float64)
    own = asked.rows.repeat_interleave(vector.shape[1])
    two = nearest(unit_rows(vector.flatten(0, 1)), asked.x, 2)[1]
    image = torch.where(two[:, 0] == own, two[:, 1], two[:, 0])
    return (asked.labels[image] == asked.labels[own]).double().view(len(vector), -1).mean(dim=1)


def _row(asked: Asked, kind: str, found: dict[str, Float64[Tensor, " Q"]]) -> dict[str, Any]:
    values: dict[str, Any] = {"kind": [kind]}
    for name, of_queries in found.items():
        values |= numbers_of(name, mean(of_queries))
    base = torch.nan if asked.label is None else float(asked.base_rate().mean())
    return {**values, "base_rate": base}
