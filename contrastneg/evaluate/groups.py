"""Test images of one origin, such as frames of one film: they are no independent witnesses, nor news to each other."""

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from contrastneg.data.imageset import ImageSet

COLUMNS = ("group", "sequence")  # metadata that says so by its name
NO_ORIGIN = ("-1", "-1.0", "nan", "None", "")


def group_column(source: ImageSet, asked: str) -> str | None:
    """The column of metadata that says which images are of one origin.

    Args:
        source: The test images.
        asked: Name of the column; auto: ``group`` or ``sequence`` where there is one; none: no column.

    Raises:
        ValueError: There is no such column.
    """
    if asked == "none":
        return None
    if asked == "auto":
        return next((name for name in COLUMNS if name in source.columns), None)
    if asked not in source.columns:
        there = f"it has {', '.join(source.columns)}" if source.columns else "it has no columns of metadata"
        raise ValueError(f"group is {asked} but {source.address} has no such column: {there}; or give none")
    return asked


def groups_of(source: ImageSet, column: str) -> Int64[Tensor, " N"]:
    """A number for each image, the same for those of one origin; an image without one (-1 or nothing) is its own."""
    texts = texts_of(source, column)
    number = torch.from_numpy(np.unique(np.array(texts, dtype=np.str_), return_inverse=True)[1].reshape(-1)).long()
    alone = torch.tensor([text in NO_ORIGIN for text in texts])
    number[alone] = len(texts) + torch.arange(int(alone.sum()))
    return number


def shared_notes(bank: ImageSet, queries: ImageSet, column: str) -> list[str]:
    """What must be known where test images were held out of the set that answers, and share origins with it."""
    if (bank.address, bank.split) != (queries.address, queries.split):
        return []  # numbers of two files need not mean the same
    known, asked = set(texts_of(bank, column)) - set(NO_ORIGIN), texts_of(queries, column)
    shared = sum(text in known for text in asked)
    if not shared:
        return []
    return [
        f"{shared:,} of {len(asked):,} test images share their {column} with training images: scores are optimistic"
    ]


def texts_of(source: ImageSet, column: str) -> list[str]:
    """A column's values as text."""
    values = source.columns[column]
    return [str(value) for value in (values.tolist() if isinstance(values, Tensor) else values)]
