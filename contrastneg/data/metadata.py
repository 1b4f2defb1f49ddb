"""Facts about images, row by row, become labels and columns."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from contrastneg.data.address import AddressError

LABEL_NAMES = ("label", "cls", "labels", "fine_label", "class", "target")


def columns_of(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor | list]:
    """Rows of facts -> columns; a fact that a row lacks is None there."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: as_column([row.get(name) for row in rows]) for name in names}


def as_column(values: list) -> Tensor | list:
    """Values as a tensor where all are whole numbers (int64) or numbers (float64), else the list itself."""
    if values and all(type(value) is int for value in values):
        return torch.tensor(values)
    if values and all(type(value) in (int, float) for value in values):
        return torch.tensor(values, dtype=torch.float64)
    return values


def label_column(
    columns: dict[str, Tensor | list], address: str, name: str | None = None, classes: list[str] | None = None
) -> tuple[Tensor | None, list[str] | None]:
    """Take the label out of the columns.

    Without class names, the values that occur are the classes, in order: labels {0, 1, 2, 5} are the four classes "0",
    "1", "2" and "5". So a gap costs nothing, and an evaluation set is matched by the value itself.

    Args:
        columns: Columns by name; the label's is removed.
        address: For messages.
        name: The label's column; None looks for the usual names.
        classes: Class names by label, where the data set declares them.

    Returns:
        Labels (-1 where unknown) and class names, or None and None where there is no such column or all are unknown.

    Raises:
        AddressError: A label is outside the declared classes, or the column holds neither whole numbers nor text.
    """
    name = name or next((usual for usual in LABEL_NAMES if usual in columns), None)
    if name is None:
        return None, None
    column = columns.pop(name)
    values = column.tolist() if isinstance(column, Tensor) else column
    known = {value for value in values if value is not None and value != -1}
    if not known:
        return None, None
    if not (all(type(value) is int for value in known) or all(type(value) is str for value in known)):
        raise AddressError(f"{address}: column {name!r} has labels like {next(iter(known))!r}: use integers or text")
    if classes is not None and all(type(value) is int for value in known):
        labels = torch.tensor([-1 if value is None else value for value in values])
        check_labels(labels, len(classes), address)
        return labels, classes
    ordered = sorted(known)
    number = {value: label for label, value in enumerate(ordered)}
    return torch.tensor([number.get(value, -1) for value in values]), [str(value) for value in ordered]


def check_labels(labels: Int64[Tensor, " N"], n_classes: int, address: str) -> None:
    """Refuse a label that has no class, before it can reach a loss on some device.

    Raises:
        AddressError: A label is below -1, or not below the number of classes.
    """
    wrong = labels[(labels < -1) | (labels >= n_classes)]
    if len(wrong):
        raise AddressError(
            f"{address}: label {int(wrong[0])} is outside its {n_classes} classes (0 to {n_classes - 1}, "
            f"-1 for unknown; {len(wrong)} such labels): correct the labels or the class names"
        )
