"""What metadata say about negatives: candidates that stand in a relation with the query, and how much a place tells."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from contrastneg.analysis.classes import Labels
from contrastneg.analysis.errors import clustered_error, numbers_of, ratio
from contrastneg.analysis.queries import QUERIES, Asked, Embeddings, ask_by_class, ask_either, check_above_0
from contrastneg.negatives.groups import group_codes

Column = Tensor | np.ndarray | pd.Series | Sequence[Any]
"""One value for each image; -1, NaN, None and False stand for none."""


def metadata_relations(
    embeddings: Embeddings,
    columns: Mapping[str, Column],
    labels: Labels = None,
    *,
    temperature: float = 0.2,
    queries: int = QUERIES,
    seed: int = 0,
) -> pd.DataFrame:
    r"""How similar and how false candidates are that share a value of metadata with the query, column by column.

    For the candidates :math:`R_i` that have query i's value in a column, summed over queries,

    .. math:: \text{rate} = \frac{\sum_i |R_i \cap F_i|}{\sum_i |R_i|} \quad
        \text{lift} = \text{rate} \Big/ \frac{\sum_i |F_i|}{Q (N - 1)} \quad
        \text{similarity} = \frac{\sum_i \sum_{j \in R_i} s_{ij}}{\sum_i |R_i|} \quad
        \text{share} = \frac{1}{Q} \sum_i \sum_{j \in R_i} r_{ij}

    with F the candidates of the query's class and r the softmax of cosines over t among all candidates. Look at it before
    a tier of :class:`contrastneg.negatives.MetadataTiers` removes or raises what stands in a relation. Columns may overlap.

    Args:
        embeddings: Of all images.
        columns: Values by the name of the column: a place, a sequence, a group of duplicates.
        labels: Classes for ``rate`` and ``lift``, which are NaN without.
        temperature: t above 0.
        queries: How many are asked at most.
        seed: Of the draw of queries.

    Returns:
        One row per column, then one for candidates that share none ("no relation") and one for all ("all"): ``relation``;
        ``pairs`` per query; ``rate``, ``lift``, ``similarity`` and gradient ``share``, each with its standard error over
        queries, ``..._se``; ``temperature``.

    Raises:
        ValueError: There is no column, or one has not a value for each image.
    """
    check_above_0("temperature", temperature)
    asked = ask_either(embeddings, labels, queries=queries, seed=seed)
    group = {name: column_groups(name, column, len(embeddings))[asked.position] for name, column in columns.items()}
    if not group:
        raise ValueError("columns is empty: give at least one column of metadata")
    names = [*group, "no relation", "all"]
    tally = torch.empty(len(names), len(asked.rows), 4, dtype=torch.float64)
    done = 0
    for rows, cosine in asked.parts():
        others = cosine > -torch.inf
        related = [sharing(codes, rows) & others for codes in group.values()]
        alone = others & ~torch.stack(related).any(dim=0)
        law = (cosine / temperature).softmax(dim=1)
        same = torch.zeros_like(others) if asked.label is None else asked.same_class(rows)
        for part, mask in zip(tally, [*related, alone, others], strict=True):
            sums = [mask.sum(dim=1), (mask & same).sum(dim=1), cosine.masked_fill(~mask, 0).sum(dim=1)]
            part[done : done + len(rows)] = torch.stack([*sums, (law * mask).sum(dim=1)], dim=1)
        done += len(rows)
    rows_of = [_relation_row(asked, name, part) for name, part in zip(names, tally, strict=True)]
    return pd.concat([asked.table(row) for row in rows_of], ignore_index=True).assign(temperature=temperature)


def background_effect(
    embeddings: Embeddings, labels: Labels, place: Column, *, queries: int = QUERIES, seed: int = 0
) -> pd.DataFrame:
    r"""How much more similar images of different classes are if they share a place, that is a background.

    .. math:: \text{effect} = \frac{\mu_\text{here} - \mu_\text{elsewhere}}{\sigma}, \qquad
        \sigma^2 = \frac{n_h \sigma_h^2 + n_e \sigma_e^2}{n_h + n_e}

    over pairs (query, candidate) of two classes, of one place ("here") or of two ("elsewhere"); means and variances are
    those of all pairs. 0 if the place says nothing. Negatives of the same place should make it shrink in training.

    Args:
        embeddings: Of all images.
        labels: Their classes.
        place: The place of each image; pairs in which either has none are left out.
        queries: How many are asked at most.
        seed: Of the draw of queries.

    Returns:
        One row: ``here`` and ``elsewhere``, the mean cosines, with standard errors over queries, ``..._se``; ``pooled``, the
        standard deviation; ``effect`` and ``effect_se``, of the difference with the deviation held fixed; ``pairs_here``
        and ``pairs_elsewhere`` per query.

    Raises:
        ValueError: Labels are missing, or no pair of two classes shares a place, or all do.
    """
    asked = ask_by_class(embeddings, labels, queries=queries, seed=seed)
    code = column_groups("place", place, len(embeddings))[asked.position]
    found = _sums_by_place(asked, code)
    pairs_here, here, squares_here, pairs_else, elsewhere, squares_else = found.sum(dim=0)
    if not pairs_here or not pairs_else:
        raise ValueError(
            "place must be shared by some images of two classes and not by all: there is nothing to compare"
        )
    means = [ratio(found[:, 1], found[:, 0]), ratio(found[:, 4], found[:, 3])]
    spread = squares_here - here**2 / pairs_here + squares_else - elsewhere**2 / pairs_else
    pooled = float((spread / (pairs_here + pairs_else)).sqrt())
    at_here, at_else = (
        (found[:, at + 1] - found[:, at] * value) / found[:, at].sum()
        for at, (value, _) in zip((0, 3), means, strict=True)
    )
    influence = at_here - at_else
    error = float(clustered_error(influence))
    return asked.table(
        {
            **numbers_of("here", means[0]),
            **numbers_of("elsewhere", means[1]),
            "pooled": [pooled],
            "effect": float(means[0][0] - means[1][0]) / pooled,
            "effect_se": error / pooled,
            "pairs_here": float(pairs_here) / len(found),
            "pairs_elsewhere": float(pairs_else) / len(found),
        }
    )


def _sums_by_place(asked: Asked, code: Int64[Tensor, " N"]) -> Float64[Tensor, "Q 6"]:
    """Pairs of two classes of each query, sum and sum of squares of their cosines: of one place, then of two."""
    parts = []
    for rows, cosine in asked.parts():
        others = (cosine > -torch.inf) & ~asked.same_class(rows) & (code >= 0) & (code[rows] >= 0)[:, None]
        here = others & sharing(code, rows)
        plain = cosine.masked_fill(~others, 0)
        sums = [
            torch.stack([mask.sum(dim=1), (plain * mask).sum(dim=1), (plain.square() * mask).sum(dim=1)], dim=1)
            for mask in (here, others & ~here)
        ]
        parts.append(torch.cat(sums, dim=1))
    return torch.cat(parts)


def column_groups(name: str, column: Column, images: int) -> Int64[Tensor, " N"]:
    """A number for each value of a column, -1 where there is none.

    Args:
        name: What the user calls it.
        column: Its values.
        images: How many there must be.

    Raises:
        ValueError: There are more or fewer.
    """
    check_column(name, column, images)
    return group_codes(column if isinstance(column, Tensor) else np.asarray(column, dtype=object).tolist())


def check_column(name: str, column: Column, images: int) -> None:
    """Refuse a column that has not one value for each image."""
    if len(column) != images:
        raise ValueError(
            f"columns has {len(column)} entries for {name} but there are {images} images: give one for each"
        )


def sharing(code: Int64[Tensor, " N"], rows: Int64[Tensor, " b"]) -> Bool[Tensor, "b N"]:
    """Which images have each query's value."""
    own = code[rows][:, None]
    return (code == own) & (own >= 0)


def _relation_row(asked: Asked, name: str, tally: Float64[Tensor, "Q 4"]) -> dict[str, Any]:
    pairs, false, cosines, share = tally.unbind(dim=1)
    classed, one = torch.nan, torch.ones_like(pairs)
    base = 1.0
    if asked.label is not None:
        classed, base = 1.0, float(asked.base_rate().mean())
    rate, error = ratio(classed * false, pairs)
    measured = {
        "rate": (rate, error),
        "lift": (rate / base, error / base),
        "similarity": ratio(cosines, pairs),
        "share": ratio(share, one),
    }
    values: dict[str, Any] = {"relation": [name], "pairs": float(pairs.mean())}
    for key, found in measured.items():
        values |= numbers_of(key, found)
    return values
