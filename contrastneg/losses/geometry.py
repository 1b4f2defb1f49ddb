"""Alignment and uniformity: the two things that InfoNCE asks of embeddings on the sphere, as numbers and as a loss."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from contrastneg.losses.rows import check_values, wide

CHUNK = 1024


def alignment(
    view1: Float[Tensor, "B D"], view2: Float[Tensor, "B D"], *, exponent: float = 2.0
) -> Float[Tensor, " B"]:
    r"""Distance of the two views of each image (arXiv:2005.10242).

    .. math:: \|u_i - v_i\|^\alpha

    Args:
        view1: Unit-norm embeddings of one view.
        view2: Unit-norm embeddings of the other view, row by row of the same images.
        exponent: alpha > 0; 2 in the paper, which makes it 2 - 2 cosine.

    Returns:
        One value >= 0 per image.

    Raises:
        ValueError: The exponent is not positive.
    """
    if exponent <= 0:
        raise ValueError(f"exponent must be positive, got {exponent}")
    return _power((wide(view1) - wide(view2)).square().sum(dim=1), exponent)


def uniformity(embedding: Float[Tensor, "B D"], *, scale: float = 2.0) -> Float[Tensor, ""]:
    r"""How evenly embeddings cover the sphere (arXiv:2005.10242); the less the better.

    .. math:: \log \mathrm{mean}_{i<j}\, e^{-t \|x_i - x_j\|^2}

    0 for a collapsed encoder, about -2t for a high-dimensional uniform sphere. Pairs are taken in chunks, so thousands of
    rows need no table of their own.

    Args:
        embedding: Unit-norm embeddings of different images, at least 2.
        scale: t > 0; 2 in the paper.

    Returns:
        One number <= 0.

    Raises:
        ValueError: There are fewer than 2 rows, or the scale is not positive.
    """
    if scale <= 0:
        raise ValueError(f"scale must be positive, got {scale}")
    if len(embedding) < 2:
        raise ValueError(f"uniformity needs at least 2 embeddings, got {len(embedding)}")
    x = wide(embedding)
    squares = x.square().sum(dim=1)
    parts = []
    for start in range(0, len(x) - 1, CHUNK):
        rows = slice(start, start + CHUNK)
        with torch.autocast(x.device.type, enabled=False):
            distance = squares[rows, None] + squares[None, start:] - 2 * x[rows] @ x[start:].T
        later = torch.ones_like(distance, dtype=torch.bool).triu(1)
        parts.append((-scale * distance)[later].logsumexp(dim=0))
    return torch.stack(parts).logsumexp(dim=0) - math.log(len(x) * (len(x) - 1) / 2)


def align_uniform(
    pos: Float[Tensor, " B"],
    lse: Float[Tensor, " B"],
    count: Float[Tensor, " B"],
    *,
    scale: float = 2.0,
    exponent: float = 2.0,
    align_weight: float = 1.0,
    uniform_weight: float = 1.0,
) -> Float[Tensor, " B"]:
    r"""Alignment plus uniformity over queries and candidates, one value per query.

    .. math:: \lambda_a (2 - 2 p_i)^{\alpha/2} + \lambda_u
        \log \frac{\sum_{ij} w_{ij} e^{-t (2 - 2 n_{ij})}}{\sum_{ij} w_{ij}}

    The second term is one number that all queries share. The paper takes it within each view of a batch; here it is over
    the pairs that the candidates offer.

    Args:
        pos: Cosine similarity of each query to its positive.
        lse: Log-sum-exp over the candidates at temperature ``1 / (2 scale)``; -inf where there is none.
        count: Logarithm of how many candidates each query has.
        scale: t > 0; 2 in the paper.
        exponent: alpha > 0; 2 in the paper.
        align_weight: lambda_a.
        uniform_weight: lambda_u.

    Returns:
        Losses; exactly 0, with zero gradient, for a query without candidates.

    Raises:
        ValueError: The shapes do not fit.
    """
    check_values(pos, lse, count)
    lse, empty = wide(lse), lse == -torch.inf
    align = _power(2 - 2 * wide(pos), exponent)
    lowest = torch.finfo(lse.dtype).min  # finite: the gradient of a log-sum-exp of -inf alone is NaN
    total = lse.masked_fill(empty, lowest).logsumexp(dim=0)
    pairs = count.to(lse.dtype).masked_fill(empty, lowest).logsumexp(dim=0)
    uniform = total - pairs - 2 * scale
    return (align_weight * align + uniform_weight * uniform).masked_fill(empty, 0)


def _power(squared: Tensor, exponent: float) -> Tensor:
    """A distance to a power, from its square; with slope 0 where the distance is 0 and a root has none."""
    if exponent == 2:
        return squared
    apart = squared > 0
    return torch.where(apart, torch.where(apart, squared, 1.0).pow(exponent / 2), 0.0)
