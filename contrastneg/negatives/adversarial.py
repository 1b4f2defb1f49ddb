"""Candidates moved one step towards a higher loss, in the space of embeddings."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from contrastneg.checks import check_range
from contrastneg.negatives.core import Clock, Negatives, Stage, whole
from contrastneg.negatives.mixes import Pool, query_similarity, row_parts
from contrastneg.schedules import Schedule, value


@dataclass(frozen=True)
class AdversarialShift(Stage):
    r"""Append the most contested keys, moved one step along the gradient of the loss.

    With P the softmax of each query over its positive and its candidates,

    .. math:: k_j' = \frac{k_j + \eta \sum_i P_{ij} q_i}{\|k_j + \eta \sum_i P_{ij} q_i\|}

    The step is the direction, up to 1 / temperature, in which InfoNCE summed over the queries of this process grows
    fastest in k_j; the ``count`` keys with the largest sum over i of P_ij are moved, and the moved keys are shared by all
    queries that had not lost the original. Keys per query are moved by their own query. Moved keys are constants.

    An analogy of CLAE (arXiv:2010.12050), which moves images and not embeddings; step and count are ours.
    """

    kind: ClassVar[str] = "synthesize"
    breaks: ClassVar[frozenset[str]] = frozenset({"iid", "log_prob"})
    of_candidates: ClassVar[tuple[str, ...]] = ("count",)

    count: int | Schedule = 1024
    """Keys that are moved and appended. A number or a schedule."""
    step: float | Schedule = 1.0
    """Length of the step per unit of softmax mass, 0 copies the keys. A number or a schedule."""
    temperature: float | None = None
    """Temperature of the softmax, above 0; none is the method's, which makes the step that of its loss."""

    def __post_init__(self) -> None:
        check_range(self, "count", "step", least=0)
        check_range(self, "temperature", above=0)

    def __call__(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with at most ``count`` columns more."""
        count = min(whole(self.count, clock), negatives.n_keys)
        if count == 0:
            return negatives
        step, temperature = value(self.step, clock.progress), self.temperature or clock.temperature
        if negatives.keys.ndim == 3:
            return self._each_by_its_own_query(negatives, count, step, temperature)
        mass, push = softmax_sums(negatives, temperature)
        chosen = mass.topk(count).indices
        keys = negatives.keys.detach()[chosen].to(push.dtype)
        moved = F.normalize(keys + step * push[chosen], dim=1)
        with torch.autocast(moved.device.type, enabled=False):
            similarity = negatives.query @ moved.T
        kept = None if negatives.untouched else negatives.repelled[:, chosen]
        return negatives.appended(similarity, kept=kept)

    def _each_by_its_own_query(self, negatives: Negatives, count: int, step: float, temperature: float) -> Negatives:
        """One query's step is along itself, so the moved key is a mix of the two."""
        pool = Pool.of(negatives, count)
        share = softmax(negatives, temperature, slice(None))[:, : negatives.n_keys].gather(1, pool.column) * step
        similarity = query_similarity(negatives.query, pool.similarity, share / (1 + share))
        rank = torch.arange(count, device=share.device)
        kept = None if pool.whole else rank < pool.size[:, None]  # removed candidates come last
        return negatives.appended(similarity, kept=kept)


@torch.no_grad()
def softmax_sums(negatives: Negatives, temperature: float) -> tuple[Float[Tensor, " K"], Float[Tensor, "K D"]]:
    """Sums over queries of the softmax at each shared key, and of softmax times query; a few queries at a time.

    Args:
        negatives: A table with shared keys.
        temperature: Temperature of the softmax, above 0.
    """
    query = negatives.query.detach()
    mass = query.new_zeros(negatives.n_keys)
    push = query.new_zeros(negatives.n_keys, query.shape[1])
    for part in row_parts(query, negatives.n_keys, 16):
        share = softmax(negatives, temperature, part)[:, : negatives.n_keys]
        mass += share.sum(dim=0)
        push.addmm_(share.T, query[part])
    return mass, push


@torch.no_grad()
def softmax(negatives: Negatives, temperature: float, part: slice) -> Float[Tensor, "b M"]:
    """Softmax of some queries over their positive and their candidates, at the candidates; 0 at removed ones."""
    positive = (negatives.query[part].detach() * negatives.positive[part].detach()).sum(dim=1) / temperature
    logit = negatives.similarity[part].detach() / temperature + negatives.log_weight[part]
    return torch.cat([positive[:, None], logit], dim=1).softmax(dim=1)[:, 1:]
