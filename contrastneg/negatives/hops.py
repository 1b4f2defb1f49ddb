"""Mixes over the neighbourhoods of a positive and of candidates."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from contrastneg.checks import check_range
from contrastneg.evaluate.neighbours import nearest, unit_rows
from contrastneg.negatives.core import Clock, Negatives, StageWithState, count_at, whole
from contrastneg.negatives.mixes import row_parts
from contrastneg.negatives.popularity import due
from contrastneg.schedules import Schedule, value


@dataclass(eq=False)
class HopMix(StageWithState):
    r"""Append negatives mixed hop by hop from a positive and the hardest of a few candidates (MixGCF, KDD 2021).

    An image has one vector per hop: its embedding, and above it the mean over its nearest images of their vectors one hop
    below. Of ``candidates`` keys m drawn from those that are left, with replacement, with p the positive,

    .. math::
        e_m^{(l)} \leftarrow a_l \, e_p^{(l)} + (1 - a_l) \, e_m^{(l)}, \ a_l \sim U(0, \texttt{largest}), \qquad
        h \propto \frac{1}{L + 1} \sum_l e_{m_l}^{(l)}, \ m_l = \arg\max_m \; q \cdot e_m^{(l)}

    The negative h is a constant. The graph of nearest images is built every few epochs and kept with the checkpoint:
    ``depth`` x images x width numbers, from a search of 2 T^2 D operations; a step costs some 16 times a plain loss at 4,096
    keys. Before that, and for keys that show no image, hops above 0 repeat the embedding.

    An analogy: hops are layers of a graph network in the paper, here means over nearest images. Pooling by the mean is one
    of its choices. The paper draws a from U(0, 1) and makes one negative; a half and ``count`` are ours.
    """

    kind: ClassVar[str] = "synthesize"
    needs: ClassVar[frozenset[str]] = frozenset({"id"})
    breaks: ClassVar[frozenset[str]] = frozenset({"iid", "log_prob"})
    hops: Tensor = field(init=False, repr=False)

    count: int | Schedule = 16
    """Negatives made per query. A number or a schedule."""
    candidates: int | Schedule = 16
    """Keys drawn for each of them, at least 1. A number or a schedule."""
    depth: int = 2
    """Hops above the embedding itself; 0 mixes embeddings only."""
    neighbours: int = 10
    """Nearest images that a hop averages over, at least 1."""
    largest: float | Schedule = 0.5
    """Largest share of the positive, in [0, 1]. A number or a schedule."""
    every: int = 5
    """Epochs between searches for the nearest images, at least 1."""
    start: int = 1
    """Epoch of the first search; the embeddings of epoch 0 come from an untrained encoder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "count", "depth", "start", least=0)
        check_range(self, "candidates", "neighbours", "every", least=1)
        check_range(self, "largest", least=0, most=1)
        self.register_buffer("hops", torch.zeros(0, 0, 0))

    def first_epoch(self, epochs: float) -> float:
        """The first search, where there are hops to search for."""
        return self.start if self.depth else 0.0

    def refresh(self, embeddings: Callable[[], Float[Tensor, "T D"]], clock: Clock) -> None:
        """Build the graph of nearest images and average over it, if it is time."""
        if self.depth and due(clock, self.start, self.every):
            table = embeddings()
            self.hops = torch.stack(averages(table, self.depth, self.neighbours)).to(self.hops.device)

    def forward(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with ``count`` columns more."""
        count, candidates = whole(self.count, clock), count_at(self.candidates, clock)
        if negatives.n_keys == 0 or count == 0:
            return negatives
        query, draws = negatives.query, clock.generator("HopMix", negatives.query.device)
        kept = negatives.repelled[:, : negatives.n_keys]
        some = kept.any(dim=1, keepdim=True)
        drawn = (kept | ~some).to(query.dtype).multinomial(count * candidates, replacement=True, generator=draws)
        size = (len(query), count, len(self.hops) + 1)
        largest = value(self.largest, clock.progress)
        share = largest * torch.rand(size, generator=draws, device=query.device, dtype=query.dtype)
        parts = [
            self._mixes(negatives, part, drawn[part], share[part])
            for part in row_parts(query, count * candidates * size[2] * query.shape[1], 4)
        ]
        with torch.autocast(query.device.type, enabled=False):
            similarity = torch.einsum("bd,bsd->bs", query, torch.cat(parts))
        return negatives.appended(similarity, kept=None if negatives.untouched else some)

    @torch.no_grad()
    def _mixes(self, negatives: Negatives, part: slice, drawn: Tensor, share: Tensor) -> Tensor:
        query, count = negatives.query[part], share.shape[1]
        positive = self._vectors(negatives.positive[part].to(query.dtype), negatives.query_id[part])
        if negatives.keys.ndim == 2:
            keys = negatives.keys[drawn]
        else:
            keys = negatives.keys[part].gather(1, drawn[..., None].expand(-1, -1, query.shape[1]))
        ids = negatives.key_id[: negatives.n_keys][drawn] if negatives.key_id.ndim == 1 else None
        ids = negatives.key_id[part].gather(1, drawn) if ids is None else ids
        vectors = self._vectors(keys.to(query.dtype), ids).unflatten(1, (count, -1))
        return hop_mixes(query, positive, vectors, share)

    def _vectors(self, embedding: Float[Tensor, "*n D"], image_id: Int64[Tensor, "*n"]) -> Float[Tensor, "*n hops D"]:
        """An embedding and what lies above it, for each hop."""
        vectors = [embedding]
        for hop in self.hops:
            above = hop[image_id.clamp(0, len(hop) - 1)].to(embedding.dtype)
            known = ((image_id >= 0) & (image_id < len(hop)))[..., None] & above.isfinite()
            vectors.append(torch.where(known, above, embedding))
        return torch.stack(vectors, dim=-2)


def hop_mixes(
    query: Float[Tensor, "b D"],
    positive: Float[Tensor, "b hops D"],
    candidates: Float[Tensor, "b S n hops D"],
    share: Float[Tensor, "b S hops"],
) -> Float[Tensor, "b S D"]:
    """Unit vectors: at each hop the mix most similar to the query, averaged over hops.

    Args:
        query: What the mixes are to be hard for.
        positive: Vectors of the positive.
        candidates: Vectors of the n candidates of each mix.
        share: Share of the positive at each hop.
    """
    share = share[:, :, None, :, None]
    mixed = share * positive[:, None, None] + (1 - share) * candidates
    best = torch.einsum("bd,bsnhd->bsnh", query, mixed).argmax(dim=2, keepdim=True)  # each hop for itself
    picked = mixed.gather(2, best[..., None].expand(*best.shape, mixed.shape[-1])).squeeze(2)
    return F.normalize(picked.mean(dim=2), dim=-1)


def averages(embeddings: Float[Tensor, "T D"], depth: int, neighbours: int) -> list[Float[Tensor, "T D"]]:
    """Vectors of the first ``depth`` hops above the embeddings: means over each image's nearest others.

    Args:
        embeddings: By stable index; NaN where there is no image, and there the result is NaN too.
        depth: Hops.
        neighbours: Images that a mean is over; fewer where there are not so many others.
    """
    there = embeddings.isfinite().all(dim=1)
    level = embeddings[there]
    rows = unit_rows(level)
    k = min(neighbours, len(rows) - 1)
    _, near = nearest(rows, rows, k + 1)
    others = near != torch.arange(len(rows))[:, None]
    others[others.all(dim=1), -1] = False  # equal images may have pushed the image itself from its list
    near = near[others].view(len(rows), k)
    hops = []
    for _ in range(depth):
        if k > 0:
            level = torch.stack([level[column] for column in near.unbind(1)]).mean(dim=0)
        hops.append(torch.full_like(embeddings, torch.nan).index_put_((there,), level))
    return hops
