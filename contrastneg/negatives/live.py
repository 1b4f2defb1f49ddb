"""How hard the candidates are that the loss of a step sees, by the definitions of :mod:`contrastneg.analysis`.

Measured at the steps that are logged, on the first queries of the step, so that it costs little: at 65,536 keys the 32 queries
of :data:`ROWS`, of shorter tables as many as have :data:`CELLS` cosines. No random number is drawn and nothing that the loss
sees is changed.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from contrastneg.negatives.core import Negatives, of_image

ROWS = 32
"""Queries of a step that are measured at least, if it has so many."""
CELLS = 2**18
"""Cosines that are measured where that is more queries."""
EDGES = (0.001, 0.05)
"""Shares of the ranking at which its bins end, those of arXiv:2010.06682: see :func:`contrastneg.analysis.hardness_bins`."""
BINS = ("hardest", "hard", "rest")
POSITIVES = {"low": 0.1, "median": 0.5, "high": 0.9}
"""Quantiles over queries of the cosine of the positive."""

Ratios = dict[str, tuple[Tensor, Tensor]]
"""Two sums over queries by name, of which the number is the ratio."""


def measured_rows(candidates: int) -> int:
    """How many queries of a step are measured at most, by the candidates of each."""
    return max(ROWS, CELLS // max(1, candidates))


def first_rows(negatives: Negatives) -> Negatives:
    """The table of the first queries alone, which are measured."""
    some = slice(0, measured_rows(negatives.similarity.shape[1]))
    attracted = negatives.attracted
    return Negatives(
        negatives.query[some].detach(),
        negatives.positive[some].detach(),
        negatives.keys if negatives.keys.ndim == 2 else negatives.keys[some],
        negatives.similarity[some].detach(),
        negatives.log_weight[some].detach(),
        negatives.query_id[some],
        negatives.key_id if negatives.key_id.ndim == 1 else negatives.key_id[some],
        attracted=None if attracted is None else attracted[some],
    )


@torch.no_grad()
def first_rows_of_keys(
    query: Float[Tensor, "B D"],
    positive: Float[Tensor, "B D"],
    image_id: Int64[Tensor, " B"],
    keys: Float[Tensor, "K D"],
    key_id: Int64[Tensor, " K"],
) -> Negatives:
    """:func:`first_rows` where the loss makes no table: the same numbers as of its rows."""
    some = slice(0, measured_rows(len(keys)))
    return Negatives.of(query[some], positive[some], keys, query_id=image_id[some], key_id=key_id)


@torch.no_grad()
def hardness_ratios(negatives: Negatives, temperature: float, label_table: Int64[Tensor, " T"] | None) -> Ratios:
    r"""Measures of a table's negatives, those that are neither removed nor attracted, as means over its queries.

    With :math:`r_{ij} = w_{ij} e^{s_{ij}/t} / \sum_l w_{il} e^{s_{il}/t}`, and each query's negatives ranked by cosine and cut
    into three bins, ``hardest`` the first 0.1 % (rounded up), ``hard`` those to 5 %, and the ``rest``:

    ===================== =========================================================================================
    gradient_BIN          :math:`\sum_{j \in \text{BIN}} r_{ij}`, the share of InfoNCE's gradient on negatives whatever the
                          loss of the run, see :func:`contrastneg.analysis.gradient_shares`
    effective             :math:`e^{H(r_i)}`, see :func:`contrastneg.analysis.effective_negatives`
    same_class_BIN        share of the bin that is of the query's class: ``rate`` of :func:`contrastneg.analysis.hardness_bins`
    false_mass            :math:`\sum_{j \text{ of the class}} r_{ij}`, see :func:`contrastneg.analysis.negative_counts`
    negative_first        cosine of the most similar negative; ``negative_hardest`` and ``negative_hard`` of the last one of
                          these bins; ``negative_mean`` of all
    positive_low          quantile over queries of the cosine of the positive, at 10 %; ``positive_median``,
                          ``positive_high`` at 90 %
    ===================== =========================================================================================

    Queries without negatives do not count but for the last. Images of unknown class, and candidates that were made, are left
    out of ``same_class_BIN``, as is a query with none but such in the bin; they are of no class for ``false_mass``. Over several
    processes quantiles over queries are means of each process's.

    Args:
        negatives: The table, of one candidate at least.
        temperature: t, that of the loss.
        label_table: Label of each image by stable index, -1 unknown; None without labels, then what needs them is left out.
    """
    repelled, similarity = negatives.repelled, negatives.similarity.detach()
    ends = ends_of_bins(repelled.sum(dim=1))
    most = int(ends_of_bins(torch.tensor([similarity.shape[1]]))[0, -2])
    ranked, order = similarity.masked_fill(~repelled, -torch.inf).topk(most, dim=1)
    logits = similarity / temperature + negatives.log_weight.detach()
    some = repelled.any(dim=1)
    law = torch.where(some[:, None], logits.masked_fill(~repelled, -torch.inf).softmax(dim=1), 0)

    def over_queries(values: Float[Tensor, " B"], counted: Bool[Tensor, " B"] = some) -> tuple[Tensor, Tensor]:
        return torch.where(counted, values, 0).sum(), counted.sum()  # no choice of rows: that would wait for the device

    def at(rank: Int64[Tensor, " B"]) -> Float[Tensor, " B"]:
        return ranked.gather(1, (rank - 1).clamp(0, most - 1)[:, None]).squeeze(1)

    found: Ratios = {
        "negative_first": over_queries(ranked[:, 0]),
        "negative_hardest": over_queries(at(ends[:, 0])),
        "negative_hard": over_queries(at(ends[:, 1])),
        "negative_mean": over_queries((similarity * repelled).sum(dim=1) / ends[:, -1]),
        "effective": over_queries(torch.special.entr(law).sum(dim=1).exp()),
    }
    for name, share in zip(BINS, sums_of_bins(law, order, ends).unbind(dim=1), strict=True):
        found[f"gradient_{name}"] = over_queries(share)
    own = negatives.positive_similarity.detach()
    for name, share in POSITIVES.items():
        found[f"positive_{name}"] = (own.quantile(share), own.new_ones(()))
    if label_table is not None:
        label, asked = of_image(label_table, negatives.key_id, -1), of_image(label_table, negatives.query_id, -1)
        known = (label >= 0) & repelled
        same = known & (label == asked[:, None])
        found["false_mass"] = over_queries((law * same).sum(dim=1), some & (asked >= 0))
        counts = sums_of_bins(known.float(), order, ends)
        rates = sums_of_bins(same.float(), order, ends) / counts
        for place, name in enumerate(BINS):
            found[f"same_class_{name}"] = over_queries(rates[:, place], (counts[:, place] > 0) & (asked >= 0))
    return found


def ends_of_bins(size: Int64[Tensor, " B"]) -> Int64[Tensor, "B bins"]:
    """Negatives in each bin and those before it, by the number of negatives; shares are rounded up."""
    return torch.stack([*(-(-size // round(1 / edge)) for edge in EDGES), size], dim=1)


def sums_of_bins(
    values: Float[Tensor, "B M"], order: Int64[Tensor, "B R"], ends: Int64[Tensor, "B bins"]
) -> Float[Tensor, "B bins"]:
    """Sum of each row over each bin.

    Args:
        values: At least 0; 0 where a candidate is no negative.
        order: The first candidates by rank, all of those in the bins but the last.
        ends: See :func:`ends_of_bins`.
    """
    first, rank = values.gather(1, order), torch.arange(order.shape[1], device=order.device)
    before = [(first * (rank < end[:, None])).sum(dim=1) for end in ends.unbind(dim=1)[:-1]]
    return torch.stack([torch.zeros_like(first[:, 0]), *before, values.sum(dim=1)], dim=1).diff(dim=1).clamp(min=0)
