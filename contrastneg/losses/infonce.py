"""InfoNCE and the losses that are algebra on the same two numbers: the positive's logit, the negatives' log-sum-exp."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from contrastneg.logsumexp import table_logsumexp
from contrastneg.losses.rows import check_table, check_temperature, check_values, wide

LARGEST_EXPONENT = 80.0  # e^88 is the largest float32


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
        ValueError: The temperature is not positive, or the shapes do not fit.
    """
    check_table(pos, neg, log_weight)
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
        ValueError: The temperature is not positive, or the shapes do not fit.
    """
    check_values(pos, lse)
    check_temperature(temperature)
    margin = wide(lse) - wide(pos) / temperature
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
        ValueError: The temperature is not positive, or the shapes differ.
    """
    check_temperature(temperature)
    if view1.ndim != 2 or view1.shape != view2.shape:
        raise ValueError(f"both views must be (B, D), got {tuple(view1.shape)} and {tuple(view2.shape)}")
    anchors = wide(torch.cat([view1, view2]))
    with torch.autocast(anchors.device.type, enabled=False):
        logits = anchors @ anchors.T / temperature
    itself = torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
    partner = torch.arange(len(anchors), device=anchors.device).roll(len(view1))
    return F.cross_entropy(logits.masked_fill(itself, -torch.inf), partner, reduction="none")


def decoupled_info_nce(
    pos: Float[Tensor, " B"],
    neg: Float[Tensor, "B M"],
    log_weight: Float[Tensor, "B M"] | None = None,
    *,
    temperature: float,
    positive_weight: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, " B"]:
    r"""Decoupled contrastive loss (arXiv:2110.06848): the positive is not in the denominator.

    .. math:: -v\, p/t + \log \sum_j w_j e^{n_j/t}

    Its gradient is that of InfoNCE divided by ``1 - p+``, p+ being the positive's softmax probability.

    Args:
        pos: See :func:`info_nce`.
        neg: See :func:`info_nce`.
        log_weight: See :func:`info_nce`.
        temperature: Softmax temperature t > 0.
        positive_weight: Factor v of the attraction, for instance :func:`von_mises_fisher_weight`. None means 1.

    Returns:
        Losses in nats, which may be negative; exactly 0, with zero gradient, for a query without candidates.

    Raises:
        ValueError: The temperature is not positive, or the shapes do not fit.
    """
    check_table(pos, neg, log_weight)
    lse = table_logsumexp(neg, log_weight, temperature=temperature)
    return decoupled_from_logsumexp(pos, lse, temperature=temperature, positive_weight=positive_weight)


def decoupled_from_logsumexp(
    pos: Float[Tensor, " B"],
    lse: Float[Tensor, " B"],
    *,
    temperature: float,
    positive_weight: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, " B"]:
    """:func:`decoupled_info_nce` from the log-sum-exp over the negatives.

    Args:
        pos: See :func:`info_nce`.
        lse: See :func:`info_nce_from_logsumexp`.
        temperature: The temperature t > 0 that ``lse`` was made with.
        positive_weight: See :func:`decoupled_info_nce`.

    Returns:
        Losses in nats; exactly 0, with zero gradient, where ``lse`` is -inf.

    Raises:
        ValueError: The temperature is not positive, or the shapes do not fit.
    """
    check_values(pos, lse)
    check_temperature(temperature)
    lse, attraction = wide(lse), wide(pos) / temperature
    if positive_weight is not None:
        attraction = attraction * positive_weight
    return (lse - attraction).masked_fill(lse == -torch.inf, 0)


def von_mises_fisher_weight(
    pos: Float[Tensor, " B"], lse: Float[Tensor, " B"] | None = None, *, sigma: float = 0.5, detach: bool = True
) -> Float[Tensor, " B"]:
    r"""Weights of the decoupled loss's positives (DCLW, arXiv:2110.06848): less for pairs that are already close.

    .. math:: v_i = 2 - B \frac{e^{p_i/\sigma}}{\sum_b e^{p_b/\sigma}}

    The softmax runs over the pairs given, so their mean weight is 1.

    Args:
        pos: Cosine similarity of each query to its positive.
        lse: Where it is -inf the query has no candidates: its pair is left out of the softmax, and its weight is 0.
        sigma: Concentration > 0, in units of cosine; 0.5 in the paper.
        detach: Whether the weights are constants. Public implementations differ; the default is the steadier form.

    Returns:
        One weight per pair; negative for a pair that holds more than two shares.

    Raises:
        ValueError: Sigma is not positive.
    """
    if sigma <= 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    pos = wide(pos.detach() if detach else pos)
    if lse is None:
        return 2 - len(pos) * F.softmax(pos / sigma, dim=0)
    counted = lse > -torch.inf
    masked = torch.where(counted, pos / sigma, -torch.finfo(pos.dtype).max)
    share = F.softmax(masked, dim=0)
    return (2 - counted.sum() * share).masked_fill(~counted, 0)


def dual_temperature_info_nce(
    pos: Float[Tensor, " B"],
    neg: Float[Tensor, "B M"],
    log_weight: Float[Tensor, "B M"] | None = None,
    *,
    temperature: float,
    ratio: float,
) -> Float[Tensor, " B"]:
    r"""Dual temperature (arXiv:2203.17248): t ranks a query's negatives, ``ratio`` x t says how much the query counts.

    .. math:: \mathrm{sg}\left[\frac{1 - p^+_{r t}}{1 - p^+_t}\right] L_{\mathrm{InfoNCE}}(t)

    p+ is the positive's softmax probability at a temperature, sg stops the gradient.

    Args:
        pos: See :func:`info_nce`.
        neg: See :func:`info_nce`.
        log_weight: See :func:`info_nce`.
        temperature: Temperature t > 0 within a query; 0.1 in the paper.
        ratio: Second temperature over the first, r > 0; 10 in the paper, 1 is InfoNCE.

    Returns:
        Losses >= 0 in nats; exactly 0, with zero gradient, for a query without candidates.

    Raises:
        ValueError: The temperature or the ratio is not positive, or the shapes do not fit.
    """
    check_table(pos, neg, log_weight)
    check_temperature(temperature)
    check_temperature(ratio * temperature)
    lse = table_logsumexp(neg, log_weight, temperature=temperature)
    across = table_logsumexp(neg.detach(), log_weight, temperature=ratio * temperature)
    return dual_temperature_from_logsumexp(pos, lse, across, temperature=temperature, ratio=ratio)


def dual_temperature_from_logsumexp(
    pos: Float[Tensor, " B"], lse: Float[Tensor, " B"], across: Float[Tensor, " B"], *, temperature: float, ratio: float
) -> Float[Tensor, " B"]:
    """:func:`dual_temperature_info_nce` from the log-sum-exps over the negatives at both temperatures.

    Args:
        pos: See :func:`info_nce`.
        lse: At ``temperature``; -inf where there is no negative.
        across: At ``ratio * temperature``; needs no gradient.
        temperature: Temperature within a query, above 0.
        ratio: Second temperature over the first, above 0.

    Returns:
        Losses >= 0 in nats; exactly 0, with zero gradient, where ``lse`` is -inf.

    Raises:
        ValueError: The temperature or the ratio is not positive, or the shapes do not fit.
    """
    check_values(pos, lse, across)
    check_temperature(temperature)
    check_temperature(ratio * temperature)
    empty = lse == -torch.inf
    margin = wide(lse).masked_fill(empty, 0) - wide(pos) / temperature
    level = (wide(across).masked_fill(empty, 0) - wide(pos) / (ratio * temperature)).detach()
    # The quotient of two vanishing numbers is never formed: d L_InfoNCE / d margin is 1 - p+ itself, which cancels.
    fixed = margin.detach()
    unit_loss = torch.where(fixed < -15, 1.0, F.softplus(fixed) / torch.sigmoid(fixed.clamp(min=-15)))
    weight = torch.sigmoid(level)
    return (weight * (unit_loss + margin - fixed)).masked_fill(empty, 0)


def rince(
    pos: Float[Tensor, " B"],
    neg: Float[Tensor, "B M"],
    log_weight: Float[Tensor, "B M"] | None = None,
    *,
    temperature: float,
    exponent: float,
    density: float,
    bounded: bool = False,
) -> Float[Tensor, " B"]:
    r"""Robust InfoNCE for positives that may be wrong (arXiv:2201.04309).

    .. math:: \frac{1}{q} \left[ -e^{q p/t} + \left(\lambda (e^{p/t} + \sum_j w_j e^{n_j/t})\right)^q \right]

    As q goes to 0 it becomes InfoNCE + log lambda; at q = 1 it is linear in the exponentials, hence robust to noise.

    Args:
        pos: See :func:`info_nce`.
        neg: See :func:`info_nce`.
        log_weight: See :func:`info_nce`.
        temperature: Softmax temperature t > 0.
        exponent: q in (0, 1]; 0.5 in the official code, 0.1 for ImageNet.
        density: Weight lambda of the whole denominator, positive and negatives, in (0, 1); 0.001 in the official code, 0.01 for ImageNet.
        bounded: Multiply by ``e^{-q/t}``, the largest value of the first term: the same loss at another learning rate.

    Returns:
        Losses, which may be negative; exactly 0, with zero gradient, for a query without candidates.

    Raises:
        ValueError: A setting is out of range, or e^{q/t} would overflow and ``bounded`` is off, or the shapes do not fit.
    """
    check_table(pos, neg, log_weight)
    lse = table_logsumexp(neg, log_weight, temperature=temperature)
    return rince_from_logsumexp(pos, lse, temperature=temperature, exponent=exponent, density=density, bounded=bounded)


def rince_from_logsumexp(
    pos: Float[Tensor, " B"],
    lse: Float[Tensor, " B"],
    *,
    temperature: float,
    exponent: float,
    density: float,
    bounded: bool = False,
) -> Float[Tensor, " B"]:
    """:func:`rince` from the log-sum-exp over the negatives.

    Args:
        pos: See :func:`info_nce`.
        lse: See :func:`info_nce_from_logsumexp`.
        temperature: The temperature t > 0 that ``lse`` was made with.
        exponent: See :func:`rince`.
        density: See :func:`rince`.
        bounded: See :func:`rince`.

    Returns:
        Losses; exactly 0, with zero gradient, where ``lse`` is -inf.

    Raises:
        ValueError: A setting is out of range, or e^{q/t} would overflow and ``bounded`` is off, or the shapes do not fit.
    """
    check_values(pos, lse)
    check_temperature(temperature)
    if not (0 < exponent <= 1 and 0 < density < 1):
        raise ValueError(f"rince needs 0 < exponent <= 1 and 0 < density < 1, got {exponent} and {density}")
    if exponent / temperature > LARGEST_EXPONENT and not bounded:
        raise ValueError(
            f"rince at exponent {exponent} and temperature {temperature} reaches e^{exponent / temperature:.0f}, "
            f"too large for float32: lower the exponent, raise the temperature or set bounded"
        )
    empty = lse == -torch.inf
    logit = wide(pos) / temperature
    mass = torch.logaddexp(logit, wide(lse).masked_fill(empty, 0)) + math.log(density)
    shift = 1 / temperature if bounded else 0.0
    high, low = (torch.exp(exponent * (x - shift)) for x in (mass, logit))
    return ((high - low) / exponent).masked_fill(empty, 0)
