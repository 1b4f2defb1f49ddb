"""Standard errors over queries: each query is a sampling unit, however many pairs it is in."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

NORMAL = 1.959964
"""Standard errors on each side of a 95 % interval."""


def ratio(
    part: Float[Tensor, "Q *n"], whole: Float[Tensor, "#Q *#n"]
) -> tuple[Float64[Tensor, "*n"], Float64[Tensor, "*n"]]:
    r"""A ratio of two sums over queries and its standard error, by linearisation.

    .. math:: R = \frac{\sum_i a_i}{\sum_i b_i} \qquad
        \mathrm{se} = \frac{1}{\sum_i b_i} \sqrt{\frac{Q}{Q - 1} \sum_i (a_i - R\, b_i)^2}

    Where every b is the same, that is the mean of a / b and its usual standard error.

    Args:
        part: a, one row per query.
        whole: b, at least 0; one row or column stands for all.

    Returns:
        R, NaN where the sum of b is 0; and its error, NaN for a single query.
    """
    part, whole = part.double(), whole.double().expand(part.shape)
    total = whole.sum(dim=0)
    value = part.sum(dim=0) / total
    return value, clustered_error(part - value * whole) / total


def clustered_error(influence: Float[Tensor, "Q *n"]) -> Float64[Tensor, "*n"]:
    r"""The standard error of an estimate from what each query adds to it.

    .. math:: \mathrm{se} = \sqrt{\frac{Q}{Q - 1} \sum_i \psi_i^2}

    Args:
        influence: psi, one row per query, of sum 0.

    Returns:
        The error, NaN for a single query.
    """
    queries = len(influence)
    correction = queries / (queries - 1) if queries > 1 else torch.nan
    return (influence.double().square().sum(dim=0) * correction).sqrt()


def columns_of(name: str, measured: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """A measure and its standard error as columns of a table, ``name`` and ``name_se``."""
    return {name: measured[0], f"{name}_se": measured[1]}


def numbers_of(name: str, measured: tuple[Tensor, Tensor]) -> dict[str, float]:
    """A single measure and its standard error as numbers of a row, ``name`` and ``name_se``."""
    return {column: float(value) for column, value in columns_of(name, measured).items()}


def mean(values: Float[Tensor, "Q *n"]) -> tuple[Float64[Tensor, "*n"], Float64[Tensor, "*n"]]:
    """The mean over queries and its standard error.

    Args:
        values: One row per query.
    """
    return ratio(values, torch.ones_like(values))
