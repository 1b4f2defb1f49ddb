"""Groups of images: by the values of a metadata column, and by k-means on embeddings."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from contrastneg.checks import WrongSetting
from contrastneg.negatives.core import Facts
from contrastneg.pseudolabels import Clusters, kmeans


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


def clustered(embeddings: Float[Tensor, "T D"], clusters: int, seed: int) -> Clusters:
    """Spherical k-means with no more clusters than there are images with an embedding.

    Args:
        embeddings: One row per image; a row that is not finite has no image. There is at least one that is.
        clusters: Clusters, if there are as many images.
        seed: Of the starting centroids.
    """
    return kmeans(embeddings, min(clusters, int(embeddings.isfinite().all(dim=1).sum())), seed=seed)
