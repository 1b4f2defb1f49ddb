"""Losses that look at one candidate at a time, without a softmax; and one whose softmax runs over standardised scores."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from contrastneg.logsumexp import table_logsumexp
from contrastneg.losses.rows import check_table, check_temperature, empty_rows, weighted_mean, weighted_sum, wide

SMALLEST_SPREAD = 1e-2  # in units of twice the cosine, where random vectors of 128 dimensions have 0.18


def cosine_contrastive(
    pos: Float[Tensor, " B"],
    neg: Float[Tensor, "B M"],
    log_weight: Float[Tensor, "B M"] | None = None,
    *,
    margin: float,
    negative_weight: float = 1.0,
    mean: bool = True,
) -> Float[Tensor, " B"]:
    r"""Cosine contrastive loss (SimpleX, arXiv:2109.12613): only candidates above the margin count, all alike.

    .. math:: [1 - p]_+ + \frac{\omega}{\sum_j w_j} \sum_j w_j [n_j - m]_+

    Args:
        pos: Cosine similarity of each query to its positive.
        neg: Cosine similarity of each query to each candidate negative; M may be 0.
        log_weight: ``log w``: 0 counts a candidate once, ``-inf`` drops it. None means all 0.
        margin: m in [-1, 1]; 0.2 to 0.9 in the tuned public settings for recommendation.
        negative_weight: omega > 0, what all candidates together weigh; 10 to 300 in those settings.
        mean: False sums over the candidates instead of taking their mean; the authors' library sums with omega 1 unless
            told.

    Returns:
        Losses >= 0; exactly 0, with zero gradient, for a query without candidates.

    Raises:
        ValueError: The shapes do not fit.
    """
    check_table(pos, neg, log_weight)
    above = F.relu(wide(neg) - margin)
    repulsion = negative_weight * (weighted_mean if mean else weighted_sum)(above, log_weight)
    return (F.relu(1 - wide(pos)) + repulsion).masked_fill(empty_rows(neg, log_weight), 0)


def bpr(
    pos: Float[Tensor, " B"],
    neg: Float[Tensor, "B M"],
    log_weight: Float[Tensor, "B M"] | None = None,
    *,
    temperature: float,
) -> Float[Tensor, " B"]:
    r"""Bayesian personalised ranking (arXiv:1205.2618): each candidate alone should score below the positive.

    .. math:: \frac{1}{\sum_j w_j} \sum_j w_j \left(-\log \sigma((p - n_j)/t)\right)

    Args:
        pos: See :func:`cosine_contrastive`.
        neg: See :func:`cosine_contrastive`.
        log_weight: See :func:`cosine_contrastive`.
        temperature: Temperature t > 0 of the logistic function.

    Returns:
        Losses >= 0 in nats; exactly 0, with zero gradient, for a query without candidates.

    Raises:
        ValueError: The temperature is not positive, or the shapes do not fit.
    """
    check_table(pos, neg, log_weight)
    check_temperature(temperature)
    return weighted_mean(F.softplus((wide(neg) - wide(pos)[:, None]) / temperature), log_weight)


def triplet(
    pos: Float[Tensor, " B"],
    neg: Float[Tensor, "B M"],
    log_weight: Float[Tensor, "B M"] | None = None,
    *,
    margin: float,
) -> Float[Tensor, " B"]:
    r"""Triplet loss on cosines (FaceNet, arXiv:1503.03832), over all candidates.

    .. math:: \frac{1}{\sum_j w_j} \sum_j w_j [n_j - p + m]_+

    On unit vectors half the squared distance is 1 - cosine: margin m is FaceNet's margin 2m.

    Args:
        pos: See :func:`cosine_contrastive`.
        neg: See :func:`cosine_contrastive`.
        log_weight: See :func:`cosine_contrastive`.
        margin: m in [0, 2], in cosine.

    Returns:
        Losses >= 0; exactly 0, with zero gradient, for a query without candidates.

    Raises:
        ValueError: The shapes do not fit.
    """
    check_table(pos, neg, log_weight)
    return weighted_mean(F.relu(wide(neg) - wide(pos)[:, None] + margin), log_weight)


def sigmoid(
    pos: Float[Tensor, " B"],
    neg: Float[Tensor, "B M"],
    log_weight: Float[Tensor, "B M"] | None = None,
    *,
    temperature: float,
    bias: float = -10.0,
) -> Float[Tensor, " B"]:
    r"""Sigmoid loss of SigLIP (arXiv:2303.15343): each pair is a yes-or-no question, summed over the candidates.

    .. math:: -\log \sigma(p/t + b) - \sum_j w_j \log \sigma(-n_j/t - b)

    The paper learns 1/t and b from 10 and -10 on [as recalled, not read]; here both are settings.

    Args:
        pos: See :func:`cosine_contrastive`.
        neg: See :func:`cosine_contrastive`.
        log_weight: See :func:`cosine_contrastive`.
        temperature: Temperature t > 0 of the logistic function.
        bias: b, added to all logits; negative where candidates far outnumber positives.

    Returns:
        Losses >= 0 in nats; exactly 0, with zero gradient, for a query without candidates.

    Raises:
        ValueError: The temperature is not positive, or the shapes do not fit.
    """
    check_table(pos, neg, log_weight)
    check_temperature(temperature)
    attraction = F.softplus(-wide(pos) / temperature - bias)
    repulsion = weighted_sum(F.softplus(wide(neg) / temperature + bias), log_weight)
    return (attraction + repulsion).masked_fill(empty_rows(neg, log_weight), 0)


def binary_cross_entropy(
    pos: Float[Tensor, " B"],
    neg: Float[Tensor, "B M"],
    log_weight: Float[Tensor, "B M"] | None = None,
    *,
    temperature: float,
    bias: float = 0.0,
) -> Float[Tensor, " B"]:
    r"""Binary cross-entropy with both sides counting alike: :func:`sigmoid` with the mean over the candidates.

    .. math:: -\log \sigma(p/t + b) - \frac{1}{\sum_j w_j} \sum_j w_j \log \sigma(-n_j/t - b)

    Args:
        pos: See :func:`cosine_contrastive`.
        neg: See :func:`cosine_contrastive`.
        log_weight: See :func:`cosine_contrastive`.
        temperature: Temperature t > 0 of the logistic function.
        bias: b, added to all logits.

    Returns:
        Losses >= 0 in nats; exactly 0, with zero gradient, for a query without candidates.

    Raises:
        ValueError: The temperature is not positive, or the shapes do not fit.
    """
    check_table(pos, neg, log_weight)
    check_temperature(temperature)
    attraction = F.softplus(-wide(pos) / temperature - bias)
    repulsion = weighted_mean(F.softplus(wide(neg) / temperature + bias), log_weight)
    return (attraction + repulsion).masked_fill(empty_rows(neg, log_weight), 0)


def normalised_hard(
    pos: Float[Tensor, " B"],
    neg: Float[Tensor, "B M"],
    log_weight: Float[Tensor, "B M"] | None = None,
    *,
    scale: float = 30.0,
    shift: float = 10.0,
) -> Float[Tensor, " B"]:
    r"""Log-sum-exp over triplet terms standardised within the row (Dual-AMN, WWW 2021): hardness without units.

    .. math:: h_j = d_+ - d_j = 2 (n_j - p), \quad z_j = \frac{h_j - \mathrm{mean}\,h}{\mathrm{std}\,h}, \quad
        \log \sum_j w_j e^{\lambda z_j + b}

    Mean and standard deviation are those of the row's candidates and are constants for the gradient. Hence the value does
    not depend on the positive, but the gradient does: it pulls the positive as hard as it pushes the candidates. The
    paper's margin inside h cancels against the mean and is left out.

    Args:
        pos: See :func:`cosine_contrastive`.
        neg: See :func:`cosine_contrastive`.
        log_weight: See :func:`cosine_contrastive`.
        scale: lambda > 0; 30 in the official code. The larger, the more the hardest candidate alone counts.
        shift: b, a constant in the value; 10 in the official code.

    Returns:
        Losses in nats; exactly 0, with zero gradient, for a query without candidates.

    Raises:
        ValueError: The scale is not positive, or the shapes do not fit.
    """
    check_table(pos, neg, log_weight)
    if scale <= 0:
        raise ValueError(f"scale must be positive, got {scale}")
    excess = 2 * (wide(neg) - wide(pos)[:, None])
    fixed = excess.detach()
    mean = weighted_mean(fixed, log_weight)[:, None]
    # Equal candidates have no spread to be measured in; rounding must not become one.
    spread = weighted_mean((fixed - mean).square(), log_weight).sqrt().clamp(min=SMALLEST_SPREAD)[:, None]
    lse = table_logsumexp((excess - mean) / spread, log_weight, temperature=1 / scale)
    empty = lse == -torch.inf
    return (lse.masked_fill(empty, 0) + shift).masked_fill(empty, 0)
