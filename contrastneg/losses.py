"""Losses as pure functions: similarities in, one value per query out, in nats. The caller takes the mean.

All of them compute in float32 (float64 for float64 input) whatever autocast says, in log space.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from contrastneg.logsumexp import table_logsumexp


def info_nce(
    pos: Float[Tensor, " B"],
    neg: Float[Tensor, "B M"],
    log_weight: Float[Tensor, "B M"] | None = None,
    *,
    temperature: float,
) -> Float[Tensor, " B"]:
    r"""Weighted InfoNCE (arXiv:1807.03748), one value per query.

    .. math:: -\log \frac{e^{p/t}}{e^{p/t} + \sum_j w_j e^{n_j/t}}

    Args:
        pos: Cosine similarity of each query to its positive.
        neg: Cosine similarity of each query to each candidate negative; M may be 0.
        log_weight: ``log w``: 0 counts a candidate once, ``-inf`` drops it. None means all 0.
        temperature: Softmax temperature t > 0.

    Returns:
        Losses >= 0 in nats; exactly 0, with zero gradient, for a query whose every candidate is dropped.

    Raises:
        ValueError: The temperature is not positive.
    """
    lse = table_logsumexp(neg, log_weight, temperature=temperature)
    return info_nce_from_logsumexp(pos, lse, temperature=temperature)


def info_nce_from_logsumexp(
    pos: Float[Tensor, " B"], lse: Float[Tensor, " B"], *, temperature: float
) -> Float[Tensor, " B"]:
    r"""InfoNCE from the log-sum-exp over the negatives, as :mod:`contrastneg.logsumexp` gives it.

    .. math:: \log(e^{p/t} + e^{\mathrm{lse}}) - p/t

    Args:
        pos: Cosine similarity of each query to its positive.
        lse: ``log sum_j exp(n_j / t)`` over each query's negatives, -inf where there is none.
        temperature: The temperature t > 0 that ``lse`` was made with.

    Returns:
        Losses >= 0 in nats; exactly 0, with zero gradient, where ``lse`` is -inf.

    Raises:
        ValueError: The temperature is not positive.
    """
    _check(temperature)
    margin = _wide(lse) - _wide(pos) / temperature
    return torch.logaddexp(margin, torch.zeros_like(margin))


def nt_xent(view1: Float[Tensor, "B D"], view2: Float[Tensor, "B D"], *, temperature: float) -> Float[Tensor, " 2*B"]:
    r"""NT-Xent of SimCLR (arXiv:2002.05709), one value per anchor: first all of view 1, then all of view 2.

    .. math:: -s_{a,b(a)}/t + \log \sum_{c \ne a} e^{s_{ac}/t}

    The sum holds the positive and both views of every other image, 2B - 1 terms. This is the form for one process in
    which every row is a different image; with image ids or several ranks, build :class:`contrastneg.Negatives` of
    gathered keys and use :func:`info_nce`, which gives the same values.

    Args:
        view1: Unit-norm embeddings of one view.
        view2: Unit-norm embeddings of the other view, row by row of the same images.
        temperature: Softmax temperature t > 0.

    Returns:
        2B losses >= 0 in nats. The SimCLR loss is their mean (its original code returns twice that).

    Raises:
        ValueError: The temperature is not positive.
    """
    _check(temperature)
    anchors = _wide(torch.cat([view1, view2]))
    with torch.autocast(anchors.device.type, enabled=False):
        logits = anchors @ anchors.T / temperature
    itself = torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
    partner = torch.arange(len(anchors), device=anchors.device).roll(len(view1))
    return F.cross_entropy(logits.masked_fill(itself, -torch.inf), partner, reduction="none")


def _wide(x: Tensor) -> Tensor:
    """Float32 at least: half precision overflows below a temperature of 0.09."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check(temperature: float) -> None:
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
