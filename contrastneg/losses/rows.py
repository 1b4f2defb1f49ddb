"""What all losses agree on about a row of candidates: its precision, its weights and what an empty one gives.

A candidate of weight w counts as if it were listed w times, one of weight 0 (log -inf) as if it were not there. A row
without any candidate has loss exactly 0 and zero gradient. Sums over rows therefore go through these functions.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from contrastneg.logsumexp import table_logsumexp


def wide(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Float32 at least: half precision overflows below a temperature of 0.09."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not positive."""
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")


def check_table(pos: Tensor, neg: Tensor, *tables: Tensor | None) -> None:
    """Refuse shapes that torch would broadcast to something else than one value per query.

    Args:
        pos: One value per query.
        neg: One row per query.
        *tables: Weights and marks of the entries of ``neg``; None is left alone.
    """
    given = [table for table in tables if table is not None]
    if pos.ndim != 1 or neg.ndim != 2 or len(pos) != len(neg) or any(table.shape != neg.shape for table in given):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (pos, neg, *given))
        raise ValueError(f"the positives must be (B,), the candidates and what belongs to each (B, M), got {shapes}")


def check_values(*values: Tensor) -> None:
    """Refuse what is not one value per query, of as many queries everywhere."""
    if any(part.ndim != 1 or len(part) != len(values[0]) for part in values):
        shapes = ", ".join(str(tuple(part.shape)) for part in values)
        raise ValueError(f"all must be (B,), one value per query, got {shapes}")


def log_count(neg: Float[Tensor, "B M"], log_weight: Float[Tensor, "B M"] | None) -> Float[Tensor, " B"]:
    """Logarithm of the sum of each row's weights, how many candidates it counts; -inf for none."""
    if log_weight is None:
        many = math.log(neg.shape[1]) if neg.shape[1] else -math.inf
        return wide(neg).new_full((len(neg),), many)
    return table_logsumexp(log_weight, temperature=1.0)


def weighted_sum(x: Float[Tensor, "B M"], log_weight: Float[Tensor, "B M"] | None) -> Float[Tensor, " B"]:
    """Sum of each row, every entry times its weight."""
    return x.sum(dim=1) if log_weight is None else (x * wide(log_weight).exp()).sum(dim=1)


def weighted_mean(x: Float[Tensor, "B M"], log_weight: Float[Tensor, "B M"] | None) -> Float[Tensor, " B"]:
    """Weighted mean of each row; 0 for a row without entries."""
    if log_weight is None or x.shape[1] == 0:
        return x.sum(dim=1) / max(1, x.shape[1])
    log_weight = wide(log_weight)
    empty = (log_weight == -torch.inf).all(dim=1)
    share = F.softmax(log_weight.masked_fill(empty[:, None], 0), dim=1)
    return (x * share).sum(dim=1).masked_fill(empty, 0)


def empty_rows(neg: Float[Tensor, "B M"], log_weight: Float[Tensor, "B M"] | None) -> Bool[Tensor, " B"]:
    """Rows without any candidate."""
    if log_weight is None:
        return torch.full((len(neg),), neg.shape[1] == 0, device=neg.device)
    return (log_weight == -torch.inf).all(dim=1)


def log1mexp(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    r"""``log(1 - e^x)`` for x < 0, to full precision at both ends, with a finite gradient."""
    far = x.clamp(max=-math.log(2))  # log1p would meet -1 in the branch that is not taken
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-far.exp()))
