"""How hard a candidate is: the numbers that selectors rank by or draw from."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from contrastneg.negatives.core import Negatives

Ranking = Literal["anchor", "positive", "sum"]
"""Scores that order a query's candidates differently."""
Score = Literal["anchor", "positive", "sum", "zscore", "loss"]
"""All scores. ``zscore`` and ``loss`` order a query's candidates as ``anchor`` does, but space them differently."""


@torch.no_grad()
def score_of(negatives: Negatives, kind: Score, *, temperature: float = 1.0) -> Float[Tensor, "B M"]:
    r"""One score per candidate, larger for a harder one, without gradient.

    ============ ========================================== ============================================================
    ``anchor``   :math:`q \cdot k_j`                        similarity to the query
    ``positive`` :math:`p \cdot k_j`                        similarity to the query's positive
    ``sum``      :math:`(q + p) \cdot k_j`                  the reward of KGPolicy (arXiv:2003.05753); ranks as the
                                                            cosine with the bisector of query and positive does
    ``zscore``   :math:`(s_j - \bar s) / \mathrm{std}\, s`  ``anchor`` in units of its spread over the kept candidates
    ``loss``     :math:`\log(1 + e^{(s_j - s_+)/t})`        what the candidate alone would cost
    ============ ========================================== ============================================================

    Synthetic candidates, whose vectors are not kept, count as equally similar to query and positive.

    Args:
        negatives: The table.
        kind: Which score.
        temperature: The t of ``loss``, above 0; the others do not depend on it.
    """
    similarity = negatives.similarity.detach()
    if kind == "anchor":
        return similarity
    if kind == "positive":
        return to_positive(negatives)
    if kind == "sum":
        return similarity + to_positive(negatives)
    if kind == "loss":
        return F.softplus((similarity - negatives.positive_similarity.detach()[:, None]) / temperature)
    kept = negatives.kept
    count = kept.sum(dim=1, keepdim=True).clamp(min=1)
    centred = similarity - similarity.masked_fill(~kept, 0).sum(dim=1, keepdim=True) / count
    spread = (centred.masked_fill(~kept, 0).square().sum(dim=1, keepdim=True) / count).sqrt()
    return centred / spread.clamp(min=torch.finfo(spread.dtype).eps)


def to_positive(negatives: Negatives) -> Float[Tensor, "B M"]:
    """Cosine of each query's positive with its candidates; for synthetic candidates, that of the query."""
    similarity = negatives.similarity.detach()
    keys, positive = negatives.keys.detach().to(similarity.dtype), negatives.positive.detach().to(similarity.dtype)
    with torch.autocast(similarity.device.type, enabled=False):
        of_keys = positive @ keys.T if keys.ndim == 2 else (keys @ positive[:, :, None]).squeeze(2)
    return torch.cat([of_keys, similarity[:, negatives.n_keys :]], dim=1)
