"""Groups of images: by the values of a metadata column, and by k-means on embeddings."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from contrastneg.checks import WrongSetting
from contrastneg.negatives.core import Facts
from contrastneg.randomness import generator

CHUNK = 1 << 24  # cosines held at once, 64 MiB
ROWS_PER_CLUSTER = 1000  # more rows than this per cluster change the centroids little


def column_of(facts: Facts, owner: object, setting: str, name: str | None = None) -> Tensor | Sequence[Any]:
    """The column of metadata that a setting names.

    Args:
        facts: What is known of the images.
        owner: What has the setting.
        setting: The setting, for the message.
        name: The column, where the setting is not its name itself.

    Raises:
        WrongSetting: There is no such column.
    """
    column = getattr(owner, setting) if name is None else name
    if column not in facts.columns:
        there = ", ".join(sorted(facts.columns)) or "none"
        raise WrongSetting(owner, setting, f"asks for the column {column!r} but the columns of the images are: {there}")
    return facts.columns[column]


def group_codes(column: Tensor | Sequence[Any]) -> Int64[Tensor, " T"]:
    """A number from 0 for each value of a column; -1 where there is none: None, NaN, -1 or False.

    These stand for a missing value in columns of each type, False in one of booleans: there only True is a group.
    """
    values = column.tolist() if isinstance(column, Tensor) else column
    codes: dict[Any, int] = {}
    absent = (v is None or v is False or v == -1 or v != v for v in values)  # NaN differs from itself
    return torch.tensor(
        [-1 if gone else codes.setdefault(v, len(codes)) for v, gone in zip(values, absent, strict=True)],
        dtype=torch.long,
    )


def sizes(codes: Int64[Tensor, " T"]) -> Float[Tensor, " T"]:
    """How many images are in each image's group; 0 for one without a group."""
    counts = (codes + 1).bincount(minlength=1)
    counts[0] = 0
    return counts[codes + 1].float()


def kmeans(
    embeddings: Float[Tensor, "T D"], k: int, *, seed: int, iterations: int = 20
) -> tuple[Int64[Tensor, " T"], Float[Tensor, "k D"]]:
    """Spherical k-means; the same on every rank for the same arguments.

    Args:
        embeddings: One row per image; a row that is not finite has no image.
        k: Clusters; no more than images are made, the other centroids stay 0.
        seed: Of the centroids at first, which are rows far apart.
        iterations: Rounds of assignment and centring.

    Returns:
        Cluster of each image, -1 for one without embedding; unit-norm centroids.
    """
    there = embeddings.isfinite().all(dim=1)
    x = F.normalize(embeddings[there].float(), dim=1)
    label, centroids = torch.full((len(embeddings),), -1), torch.zeros(k, embeddings.shape[1])
    if len(x) == 0:
        return label, centroids
    draws = generator(seed, "kmeans", k)
    rows = x[torch.randperm(len(x), generator=draws)[: ROWS_PER_CLUSTER * k]]
    fitted = _spread(rows, min(k, len(rows)), draws)
    for _ in range(iterations):
        cosine, own = _nearest(rows, fitted)
        total = torch.zeros_like(fitted).index_add_(0, own, rows)
        empty = (own.bincount(minlength=len(fitted)) == 0).nonzero()[:, 0]
        total[empty] = rows[cosine.argsort(stable=True)[: len(empty)]]  # begin again at the rows that fit worst
        fitted = F.normalize(total, dim=1)
    label[there] = _nearest(x, fitted)[1]
    centroids[: len(fitted)] = fitted
    return label, centroids


def _spread(rows: Tensor, k: int, draws: torch.Generator) -> Tensor:
    """Rows to begin with: each is drawn in proportion to its distance from those before it (k-means++)."""
    chosen = [0]
    distance = torch.full((len(rows),), torch.inf)
    for _ in range(k - 1):
        distance = torch.minimum(distance, 1 - rows @ rows[chosen[-1]]).clamp(min=0)
        distance[chosen[-1]] = 0
        reach = distance.double().add(1e-12).cumsum(0)
        place = torch.rand(1, generator=draws, dtype=torch.double) * reach[-1]
        chosen.append(min(int(torch.searchsorted(reach, place)), len(rows) - 1))
    return rows[chosen]


def _nearest(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Largest cosine of each row, and the centroid that has it."""
    found = [(part @ centroids.T).max(dim=1) for part in x.split(max(1, CHUNK // len(centroids)))]
    return torch.cat([values for values, _ in found]), torch.cat([index for _, index in found])
