"""Losses that correct for negatives of the query's own class: debiased, and debiased with hard negatives weighted up."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from contrastneg.logsumexp import table_logsumexp
from contrastneg.losses.infonce import info_nce_from_logsumexp
from contrastneg.losses.rows import check_table, check_temperature, check_values, log1mexp, log_count, wide


def debiased_info_nce(
    pos: Float[Tensor, " B"],
    neg: Float[Tensor, "B M"],
    log_weight: Float[Tensor, "B M"] | None = None,
    *,
    temperature: float,
    class_prior: float,
    class_pos: Float[Tensor, "B V"] | None = None,
) -> Float[Tensor, " B"]:
    r"""Debiased contrastive loss (arXiv:2007.00224): the expected share of false negatives is subtracted.

    .. math:: -\log \frac{e^{p/t}}{e^{p/t} + N g}, \quad
        N g = \max\left\{ \frac{\sum_j w_j e^{n_j/t} - \tau N\, \mathrm{mean}_v e^{p_v/t}}{1 - \tau},\
        N e^{-1/t} \right\}, \quad N = \sum_j w_j

    The estimate holds for candidates drawn alike from the data; the floor is the least that N unit vectors can give.
    The difference is taken in log space, so that neither value nor gradient overflows or cancels.

    Args:
        pos: See :func:`contrastneg.losses.info_nce`.
        neg: See :func:`contrastneg.losses.info_nce`.
        log_weight: See :func:`contrastneg.losses.info_nce`.
        temperature: Softmax temperature t > 0; 0.5 in the paper.
        class_prior: Probability tau in [0, 1) that a candidate has the query's class; 0.1 in the paper. 0 is InfoNCE.
        class_pos: Cosine similarity of each query to V >= 1 samples of its class, which estimate the bias. None takes
            ``pos`` alone, as the official code does.

    Returns:
        Losses >= 0 in nats; exactly 0, with zero gradient, for a query without candidates.

    Raises:
        ValueError: The temperature or the prior is out of range, or the shapes do not fit.
    """
    check_table(pos, neg, log_weight)
    lse = table_logsumexp(neg, log_weight, temperature=temperature)
    bias = None if class_pos is None else log_mean_exp(class_pos, temperature=temperature)
    mass, _ = debiased_logsumexp(
        pos, lse, log_count(neg, log_weight), temperature=temperature, class_prior=class_prior, bias=bias
    )
    return info_nce_from_logsumexp(pos, mass, temperature=temperature)


def hard_info_nce(
    pos: Float[Tensor, " B"],
    neg: Float[Tensor, "B M"],
    log_weight: Float[Tensor, "B M"] | None = None,
    *,
    temperature: float,
    beta: float,
    class_prior: float = 0.0,
    detach_weights: bool = False,
    class_pos: Float[Tensor, "B V"] | None = None,
) -> Float[Tensor, " B"]:
    r"""Hard negatives weighted up, then debiased (HCL, arXiv:2010.04592).

    In :func:`debiased_info_nce` the sum over candidates becomes N times its mean under the law tilted by hardness:

    .. math:: N \frac{\sum_j w_j e^{(1 + \beta) n_j/t}}{\sum_j w_j e^{\beta n_j/t}}

    Args:
        pos: See :func:`contrastneg.losses.info_nce`.
        neg: See :func:`contrastneg.losses.info_nce`.
        log_weight: See :func:`contrastneg.losses.info_nce`.
        temperature: Softmax temperature t > 0; 0.5 in the paper.
        beta: Tilt >= 0 in units of 1/t, as in the official code; 1 in the paper, 0 is the debiased loss.
        class_prior: See :func:`debiased_info_nce`.
        detach_weights: Whether the weights ``e^{beta n/t}`` are constants. Off as published: then easy negatives may be
            attracted a little, so that hard ones weigh less.
        class_pos: See :func:`debiased_info_nce`; its mean is tilted alike.

    Returns:
        Losses >= 0 in nats; exactly 0, with zero gradient, for a query without candidates.

    Raises:
        ValueError: The temperature, beta or the prior is out of range, or the shapes do not fit.
    """
    check_table(pos, neg, log_weight)
    lse, count = _tilted_row(neg, log_weight, temperature, beta, detach_weights)
    bias = None
    if class_pos is not None:
        total, many = _tilted_row(class_pos, None, temperature, beta, detach_weights)
        bias = total - many
    mass, _ = debiased_logsumexp(pos, lse, count, temperature=temperature, class_prior=class_prior, bias=bias)
    return info_nce_from_logsumexp(pos, mass, temperature=temperature)


def tilted_logsumexp(
    raised: Float[Tensor, " B"],
    weights: Float[Tensor, " B"],
    count: Float[Tensor, " B"],
    *,
    beta: float,
    detach_weights: bool = False,
) -> Float[Tensor, " B"]:
    r"""Log of N times the mean of ``e^{n/t}`` under the law tilted by ``e^{beta n/t}``, from two log-sum-exps.

    Args:
        raised: Log-sum-exp at temperature ``t / (1 + beta)``.
        weights: Log-sum-exp at temperature ``t / beta``.
        count: ``log N``.
        beta: Tilt > 0.
        detach_weights: Whether the weights are constants.

    Returns:
        One value per query; -inf with zero gradient where ``raised`` is.
    """
    empty = raised == -torch.inf
    raised, weights, count = (x.masked_fill(empty, 0) for x in (raised, weights, count))
    mass = raised - weights + count
    if (
        detach_weights
    ):  # the gradient of raised is (1 + beta) pi / t, pi being the tilted law: constant weights leave pi / t
        slope = raised / (1 + beta)
        mass = mass.detach() + slope - slope.detach()
    return mass.masked_fill(empty, -torch.inf)


def debiased_logsumexp(
    pos: Float[Tensor, " B"],
    lse: Float[Tensor, " B"],
    count: Float[Tensor, " B"],
    *,
    temperature: float,
    class_prior: float,
    bias: Float[Tensor, " B"] | None = None,
) -> tuple[Float[Tensor, " B"], Bool[Tensor, " B"]]:
    """``log N g`` of :func:`debiased_info_nce`: what stands for the negatives' log-sum-exp in InfoNCE.

    Args:
        pos: Cosine similarity of each query to its positive.
        lse: Log-sum-exp over the candidates, plain or :func:`tilted <tilted_logsumexp>`; -inf where there is none.
        count: ``log N``.
        temperature: The temperature t > 0 that ``lse`` was made with.
        class_prior: See :func:`debiased_info_nce`. 0 returns ``lse``.
        bias: Log of the mean of ``e^{p/t}`` over samples of the query's class; None takes ``pos`` alone.

    Returns:
        The mass, for :func:`contrastneg.losses.info_nce_from_logsumexp`; and the queries at the floor, whose negatives
        get no gradient. If they are many, the prior is too large for the data.

    Raises:
        ValueError: The temperature or the prior is out of range, or the shapes do not fit.
    """
    check_values(pos, lse, count)
    check_temperature(temperature)
    if not 0 <= class_prior < 1:
        raise ValueError(f"class_prior must be at least 0 and below 1, got {class_prior}")
    empty = lse == -torch.inf
    if class_prior == 0:  # no sum of e^{n/t} is below its floor
        return wide(lse), torch.zeros_like(empty)
    lse, count = wide(lse).masked_fill(empty, 0), wide(count).masked_fill(empty, 0)
    bias = wide(pos) / temperature if bias is None else bias
    excess = bias + count + math.log(class_prior) - lse  # log of the share to be subtracted
    left = excess < 0
    corrected = lse + log1mexp(torch.where(left, excess, -1.0)) - math.log1p(-class_prior)
    floor = count - 1 / temperature
    floored = ~left | (corrected < floor)
    mass = torch.where(floored, floor, corrected)
    return mass.masked_fill(empty, -torch.inf), floored & ~empty


def log_mean_exp(sim: Float[Tensor, "B V"], *, temperature: float) -> Float[Tensor, " B"]:
    """Log of the mean of ``e^{sim / t}`` of each row.

    Args:
        sim: Cosine similarities, at least one per row.
        temperature: Softmax temperature t > 0.
    """
    return table_logsumexp(sim, temperature=temperature) - math.log(sim.shape[1])


def _tilted_row(
    neg: Tensor, log_weight: Tensor | None, temperature: float, beta: float, detach_weights: bool
) -> tuple[Tensor, Tensor]:
    """The log-sum-exp under the tilted law, and the log-count, of each row of a table."""
    if beta < 0:
        raise ValueError(f"beta must be at least 0, got {beta}")
    count = log_count(neg, log_weight)
    raised = table_logsumexp(neg, log_weight, temperature=temperature / (1 + beta))
    if beta == 0:
        return raised, count
    weights = table_logsumexp(neg, log_weight, temperature=temperature / beta)
    return tilted_logsumexp(raised, weights, count, beta=beta, detach_weights=detach_weights), count
