"""Losses with several positives per query: attraction of detected false negatives, SupCon and SINCERE."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from contrastneg.logsumexp import table_logsumexp
from contrastneg.losses.rows import check_table, check_temperature, empty_rows, weighted_sum, wide


def multi_positive_info_nce(
    pos: Float[Tensor, " B"],
    neg: Float[Tensor, "B M"],
    log_weight: Float[Tensor, "B M"] | None = None,
    *,
    temperature: float,
    is_positive: Bool[Tensor, "B M"],
    inside: bool = False,
) -> Float[Tensor, " B"]:
    r"""InfoNCE with some of the candidates as further positives, which stay in the denominator.

    With P the positive and the candidates marked, Z the sum over the positive and all candidates,

    .. math:: L_{out} = -\frac{1}{|P|} \sum_{p \in P} \log \frac{e^{s_p/t}}{Z}, \quad
        L_{in} = -\log \frac{\frac{1}{|P|} \sum_{p \in P} e^{s_p/t}}{Z} \le L_{out}

    L_out is the attraction of detected false negatives (IFND; FNC, arXiv:2011.11765) and, with labels, SupCon's
    (arXiv:2004.11362). A positive with more than 1/|P| of the softmax is pushed away by it; :func:`sincere_info_nce`
    does not do that.

    Args:
        pos: Cosine similarity of each query to its positive.
        neg: Cosine similarity of each query to each candidate, further positives among them.
        log_weight: ``log w``: 0 counts a candidate once, ``-inf`` drops it, as positive too. None means all 0.
        temperature: Softmax temperature t > 0.
        is_positive: The candidates that are positives.
        inside: L_in, with the sum over positives inside the logarithm, in place of L_out.

    Returns:
        Losses >= 0 in nats; exactly 0, with zero gradient, for a query without candidates.

    Raises:
        ValueError: The temperature is not positive, or the shapes do not fit.
    """
    check_table(pos, neg, log_weight, is_positive)
    check_temperature(temperature)
    logit = wide(pos) / temperature
    total = torch.logaddexp(logit, table_logsumexp(neg, log_weight, temperature=temperature))
    ones = torch.ones_like(neg, dtype=logit.dtype).masked_fill(~is_positive, 0)
    many = 1 + weighted_sum(ones, log_weight)
    if inside:
        marked = torch.zeros_like(neg) if log_weight is None else log_weight
        further = table_logsumexp(neg, marked.masked_fill(~is_positive, -torch.inf), temperature=temperature)
        attraction = torch.logaddexp(logit, further) - many.log()
    else:
        attraction = (logit + weighted_sum(ones * wide(neg), log_weight) / temperature) / many
    return (total - attraction).masked_fill(empty_rows(neg, log_weight), 0)


def sincere_info_nce(
    pos: Float[Tensor, " B"],
    neg: Float[Tensor, "B M"],
    log_weight: Float[Tensor, "B M"] | None = None,
    *,
    temperature: float,
    is_positive: Bool[Tensor, "B M"],
    margin: float = 0.0,
) -> Float[Tensor, " B"]:
    r"""SINCERE (arXiv:2309.14277): each positive against the true negatives alone; no positive is ever pushed away.

    .. math:: \frac{1}{|P|} \sum_{p \in P} -\log \frac{e^{s_p/t}}{e^{s_p/t - \epsilon} + \sum_{j \notin P} w_j e^{n_j/t}}

    Args:
        pos: See :func:`multi_positive_info_nce`.
        neg: See :func:`multi_positive_info_nce`.
        log_weight: See :func:`multi_positive_info_nce`.
        temperature: Softmax temperature t > 0; 0.07 in the official class.
        is_positive: See :func:`multi_positive_info_nce`.
        margin: epsilon, taken from the positive's logit in the denominator only (0.25 gives epsilon-SupInfoNCE).

    Returns:
        Losses in nats, >= 0 for margin 0; exactly 0, with zero gradient, for a query without true negatives.

    Raises:
        ValueError: The temperature is not positive, or the shapes do not fit.
    """
    check_table(pos, neg, log_weight, is_positive)
    check_temperature(temperature)
    weight = torch.zeros_like(neg) if log_weight is None else log_weight
    lse = table_logsumexp(neg, weight.masked_fill(is_positive, -torch.inf), temperature=temperature)
    empty = lse == -torch.inf
    lse = lse.masked_fill(empty, 0)

    def against(logit: Tensor, mass: Tensor) -> Tensor:
        gap = mass - logit
        return torch.logaddexp(gap, torch.full_like(gap, -margin))

    own = against(wide(pos) / temperature, lse)
    further = against(wide(neg) / temperature, lse[:, None]) * is_positive
    many = 1 + weighted_sum(is_positive.to(lse.dtype), log_weight)
    return ((own + weighted_sum(further, log_weight)) / many).masked_fill(empty, 0)


def supervised_contrastive(
    view1: Float[Tensor, "B D"],
    view2: Float[Tensor, "B D"],
    labels: Int64[Tensor, " B"],
    *,
    temperature: float,
    inside: bool = False,
) -> Float[Tensor, " 2*B"]:
    """SupCon (arXiv:2004.11362), one value per anchor: first all of view 1, then all of view 2.

    The positives of an anchor are its other view and both views of all images of its label; all of them stay in the
    denominator. Form "one" of the official code is the mean over the first B values. Its scale, t / 0.07, is left to the
    caller: it is a factor on the learning rate.

    Args:
        view1: Unit-norm embeddings of one view.
        view2: Unit-norm embeddings of the other view, row by row of the same images.
        labels: Class of each image; -1, unknown, leaves the other view as its only positive.
        temperature: Softmax temperature t > 0.
        inside: L_in in place of L_out, see :func:`multi_positive_info_nce`.

    Returns:
        2B losses >= 0 in nats; exactly 0 where a single image is given.

    Raises:
        ValueError: The temperature is not positive.
    """
    pos, neg, log_weight, same = _all_pairs(view1, view2, labels)
    return multi_positive_info_nce(pos, neg, log_weight, temperature=temperature, is_positive=same, inside=inside)


def sincere(
    view1: Float[Tensor, "B D"],
    view2: Float[Tensor, "B D"],
    labels: Int64[Tensor, " B"],
    *,
    temperature: float,
    margin: float = 0.0,
) -> Float[Tensor, " 2*B"]:
    """SINCERE (arXiv:2309.14277), one value per anchor: first all of view 1, then all of view 2.

    Args:
        view1: See :func:`supervised_contrastive`.
        view2: See :func:`supervised_contrastive`.
        labels: See :func:`supervised_contrastive`.
        temperature: Softmax temperature t > 0.
        margin: See :func:`sincere_info_nce`.

    Returns:
        2B losses in nats; exactly 0, with zero gradient, where all images have one label.

    Raises:
        ValueError: The temperature is not positive.
    """
    pos, neg, log_weight, same = _all_pairs(view1, view2, labels)
    return sincere_info_nce(pos, neg, log_weight, temperature=temperature, is_positive=same, margin=margin)


def _all_pairs(view1: Tensor, view2: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Similarity of 2B anchors to their other view and to all views, weights without both, equality of labels."""
    anchors, label = wide(torch.cat([view1, view2])), labels.repeat(2)
    image = torch.arange(len(view1), device=anchors.device).repeat(2)
    with torch.autocast(anchors.device.type, enabled=False):
        table = anchors @ anchors.T
    pos = (anchors * anchors.roll(len(view1), dims=0)).sum(dim=1)
    log_weight = torch.zeros_like(table).masked_fill(image[:, None] == image, -torch.inf).detach()
    return pos, table, log_weight, (label[:, None] == label) & (label >= 0)
