"""Contrast with a moving average of each image's negatives in the place of the batch's sum."""

import torch
from jaxtyping import Float
from torch import Tensor

from contrastneg.logsumexp import table_logsumexp
from contrastneg.losses.rows import check_table, check_temperature, check_values, log_count, wide


def moving_average_info_nce(
    pos: Float[Tensor, " B"],
    neg: Float[Tensor, "B M"],
    log_weight: Float[Tensor, "B M"] | None = None,
    *,
    temperature: float,
    log_average: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, " B"]:
    r"""Decoupled InfoNCE times t, with a mean of the negatives that is remembered (SogCLR, arXiv:2202.12387).

    .. math:: L = -p + t \log u \qquad
        \nabla L = -\nabla p + \frac{1}{\sum_j w_j} \sum_j w_j \frac{e^{n_j/t}}{u} \nabla n_j

    u is the moving average over an image's visits of the weighted mean of :math:`e^{n_j/t}`, this visit included, and is
    held constant. The gradient is that of the paper's code, whose value is only a vehicle for it; ours is the estimate of
    what is minimised. With u the mean of this visit it is t times that of :func:`decoupled_info_nce`.

    Args:
        pos: Cosine similarity of each query to its positive.
        neg: Cosine similarity of each query to each candidate negative; M may be 0.
        log_weight: ``log w``: 0 counts a candidate once, ``-inf`` drops it. None means all 0.
        temperature: Temperature t > 0.
        log_average: ``log u`` of each query's image; None means the mean of this visit.

    Returns:
        Losses in units of cosine, which may be negative; exactly 0, with zero gradient, for a query without candidates.

    Raises:
        ValueError: The temperature is not positive, or the shapes do not fit.
    """
    check_table(pos, neg, log_weight)
    lse = table_logsumexp(neg, log_weight, temperature=temperature)
    count = log_count(neg, log_weight)
    return moving_average_from_logsumexp(pos, lse, count, temperature=temperature, log_average=log_average)


def moving_average_from_logsumexp(
    pos: Float[Tensor, " B"],
    lse: Float[Tensor, " B"],
    count: Float[Tensor, " B"],
    *,
    temperature: float,
    log_average: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, " B"]:
    """:func:`moving_average_info_nce` from the log-sum-exp over the negatives and the logarithm of how many they are.

    Args:
        pos: See :func:`moving_average_info_nce`.
        lse: ``log sum_j w_j e^{n_j / t}``, -inf where there is no negative.
        count: ``log sum_j w_j``.
        temperature: The temperature t > 0 that ``lse`` was made with.
        log_average: See :func:`moving_average_info_nce`.

    Returns:
        Losses; exactly 0, with zero gradient, where ``lse`` is -inf.

    Raises:
        ValueError: The temperature is not positive, or the shapes do not fit.
    """
    check_values(pos, lse, count)
    check_temperature(temperature)
    empty = lse == -torch.inf
    log_mean = wide(lse).masked_fill(empty, 0) - wide(count).masked_fill(empty, 0)
    average = (log_mean if log_average is None else log_average.masked_fill(empty, 0)).detach()
    ratio = (log_mean - average).exp()  # of this visit's mean to the average; its gradient alone counts
    return (-wide(pos) + temperature * (average + ratio - ratio.detach())).masked_fill(empty, 0)
