"""Stages that take candidates near an image in a graph: by random walks, by PageRank, by a guided walk."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from contrastneg.checks import WrongSetting, check_range
from contrastneg.negatives.bank import (
    Bank,
    Combine,
    KeyBank,
    filled_up,
    joined,
    largest,
    similarity_to,
    without_repeats,
)
from contrastneg.negatives.core import Clock, Negatives, count_at
from contrastneg.negatives.graph import Edges, Graph, OnGraph, next_node, path_law, visits, walk
from contrastneg.negatives.mixes import row_parts
from contrastneg.schedules import Schedule, value

MOST_PATHS = 1024  # of which the law of a walk's end is summed


@dataclass(eq=False)
class GraphWalk(OnGraph):
    """Take as candidates the images that random walks with restart visit around the query's image.

    Each of ``walks`` walks follows ``steps`` times an edge with probability ``follow`` and else starts anew. Images at
    least ``hop_min`` edges from the start count: the nearest neighbours, one edge away, are those most likely of the
    same class. On an undirected graph long walks without restart visit images in proportion to their degree.

    Analogy to RWS and SamWalker: their graphs are given (a knowledge graph, a social network with learned strengths),
    while nearest neighbours only bring in what the embedding knows already. A graph of metadata is closer to theirs.
    ``follow`` 0.9 and ``steps`` 5 are SamWalker++'s. Until there is a graph, candidates are uniform.
    Memory: a bank and a graph, see :class:`contrastneg.negatives.graph.Graph`; the columns are up to walks x steps.
    """

    kind: ClassVar[str] = "source"
    needs: ClassVar[frozenset[str]] = frozenset({"id"})
    breaks: ClassVar[frozenset[str]] = frozenset({"iid", "log_prob"})

    walks: int = 64
    """Walks from each query's image, at least 1."""
    steps: int = 5
    """Steps of each walk, restarts included; at least 1."""
    follow: float | Schedule = 0.9
    """Probability to go on rather than to restart, in [0, 1]. A number or a schedule."""
    hop_min: int = 2
    """Edges from the start at which visited images begin to count, at least 1."""
    weigh: Literal["once", "visits"] = "once"
    """Whether an image counts once, or as often as it was visited relative to the query's other candidates."""
    combine: Combine = "replace"
    """Whether they become the candidates or are added to those of the queue or batch."""
    bank: Bank = Bank()
    """How the key of each image is remembered."""
    edges: Edges = Edges()
    """Which images are neighbours."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "walks", "steps", "hop_min", least=1)
        check_range(self, "follow", least=0, most=1)
        self.memory, self.graph = KeyBank(self.bank), Graph(self.edges)

    def forward(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with, or of, the visited images."""
        draws = clock.generator("GraphWalk", self.memory.keys.device)
        start = negatives.query_id.repeat_interleave(self.walks)
        nodes, hops = walk(self.graph, start, self.steps, value(self.follow, clock.progress), draws)
        nodes = nodes.masked_fill(hops < self.hop_min, -1).view(len(negatives.query_id), -1)
        ids, times = visits(self.memory.known(nodes), len(self.memory.keys))
        ids = widened(ids, self.walks)
        ids, uniform = filled_up(negatives, self.memory, ids, self.combine, draws)
        if self.weigh == "once":
            return joined(negatives, self.memory, ids, self.combine)
        times = widened(times, self.walks).masked_fill((ids < 0) & ~uniform[:, None], 0).float()
        mean = times.sum(dim=1, keepdim=True) / (ids >= 0).sum(dim=1, keepdim=True).clamp(min=1)
        log_weight = (times / mean).log().masked_fill(uniform[:, None], 0.0)
        return joined(negatives, self.memory, ids, self.combine, log_weight=log_weight)


@dataclass(eq=False)
class CooccurrenceRows(OnGraph):
    r"""Draw each query's candidates from a row of a power of the co-occurrence graph (GNEG).

    With A the edge weights raised to ``edges.power``, without loops, and P = A with rows scaled to sum 1,

    .. math:: P(j \mid i) = (P^{steps})_{ij}

    from which ``count`` draws are made with replacement. An image drawn more than once is one candidate, so it is among
    them with probability 1 - (1 - P(j|i))^count. The query's own image, to which two steps may lead back, is removed; a
    query whose draws all led there or nowhere gets uniform candidates. The law with this part in it is recorded where
    (neighbours)^steps is at most 1024.

    Analogy: the paper counts words that occur together; here two images co-occur that agree in ``edges.columns``
    (place, sequence, session), or are nearest neighbours. The paper's choice of power and steps could not be read;
    power 0.75 and 2 steps are ours. Memory: a bank and a graph.
    """

    kind: ClassVar[str] = "source"
    needs: ClassVar[frozenset[str]] = frozenset({"id"})

    count: int | Schedule = 64
    """Draws per query, at least 1. A number or a schedule."""
    steps: int = 2
    """Power of the graph, at least 1."""
    combine: Combine = "append"
    """Whether they become the candidates or are added to those of the queue or batch."""
    bank: Bank = Bank()
    """How the key of each image is remembered."""
    edges: Edges = Edges(power=0.75)
    """Which images co-occur."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "count", "steps", least=1)
        self.memory, self.graph = KeyBank(self.bank), Graph(self.edges)

    @property
    def gives(self) -> frozenset[str]:  # type: ignore[override]
        """The law of the draws, where it is summed and no candidates of the table stay."""
        known = self.combine == "replace" and self.edges.neighbours**self.steps <= MOST_PATHS
        return frozenset({"log_prob"} if known else ())

    @property
    def breaks(self) -> frozenset[str]:  # type: ignore[override]
        """Candidates are not drawn alike from the data; the law of the draws is kept where it is given."""
        return frozenset({"iid", "log_prob"}) - self.gives

    def forward(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with, or of, the drawn images."""
        count, own = count_at(self.count, clock), negatives.query_id
        draws = clock.generator("CooccurrenceRows", self.memory.keys.device)
        ids = own.repeat_interleave(count)
        for _ in range(self.steps):
            ids = next_node(self.graph, ids, torch.rand(len(ids), generator=draws, device=ids.device))
        ids, _ = filled_up(negatives, self.memory, ids.view(len(own), count), self.combine, draws)
        return joined(negatives, self.memory, ids, self.combine, log_prob=self._law(own, ids, count))

    def _law(self, own: Int64[Tensor, " B"], ids: Int64[Tensor, "B M"], count: int) -> Float[Tensor, "B M"] | None:
        """Log-probability that each is a candidate: drawn, or none is and it is among the uniform ones instead.

        None where it is not given, see :attr:`gives`.
        """
        if "log_prob" not in self.gives or len(own) == 0:
            return None
        ends, share = path_law(self.graph, own, self.steps)
        usable = (self.memory.known(ends) >= 0) & (ends != own[:, None])
        none = (1 - (share * usable).sum(dim=1, keepdim=True)).clamp(min=0) ** count
        uniform = -math.expm1(count * math.log1p(-1 / max(2, len(self.memory))))
        parts = row_parts(ids, ids.shape[1] * ends.shape[1], 4)  # all at once would be B x M x paths numbers
        law = torch.cat([((ends[p, None] == ids[p, :, None]) * share[p, None]).sum(dim=2) for p in parts])
        drawn = -torch.expm1(count * torch.log1p(-law.clamp(max=1)))
        return (drawn + none * uniform).log()


@dataclass(eq=False)
class PageRankBand(OnGraph):
    r"""Draw hard candidates from a band of ranks by personalised PageRank around the query's image (PinSage, arXiv:1806.01973).

    .. math:: \pi_i = (1 - c) e_i + c P^T \pi_i

    is estimated by the visits of ``walks`` walks with restart, each of ``steps`` steps, made anew for each query; the
    query's own image has no rank, and images without a visit none either, so the band ends with the visited ones.
    ``count`` images of the band are drawn; with ``growing`` at most n - 1 in epoch n, so that the first has none, as in
    the paper, which adds 6 to 500 shared random ones.

    Analogy: the paper's graph is of pins and boards, and its band is ranks 2000 to 5000 of two billion items; what is
    right here depends on the size of classes. The defaults skip 0.1 % of the images and end at 5 %, or at the last visit.
    Memory: a bank and a graph. Work per query: walks x steps.
    """

    kind: ClassVar[str] = "source"
    needs: ClassVar[frozenset[str]] = frozenset({"id"})
    breaks: ClassVar[frozenset[str]] = frozenset({"iid", "log_prob"})

    count: int | Schedule = 6
    """Images drawn from the band per query, at least 1. A number or a schedule."""
    growing: bool = True
    """No more than the epochs done: none at first, then 1, 2, ..."""
    skip: int | float = 0.001
    """Best ranks that are left out: a whole number, or below 1 a share of the images."""
    end: int | float = 0.05
    """Last rank of the band: a whole number, or below 1 a share of the images."""
    walks: int = 100
    """Walks from each query's image, at least 1; the ranks are the better the more of them."""
    steps: int = 20
    """Steps of each walk, restarts included; at least 1."""
    follow: float | Schedule = 0.85
    """Probability c to go on rather than to restart, in [0, 1]. A number or a schedule."""
    combine: Combine = "append"
    """Whether they become the candidates or are added to those of the queue or batch."""
    bank: Bank = Bank()
    """How the key of each image is remembered."""
    edges: Edges = Edges()
    """Which images are neighbours."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "count", "walks", "steps", least=1)
        check_range(self, "skip", "end", least=0)
        check_range(self, "follow", least=0, most=1)
        if (self.skip < 1) == (self.end < 1) and self.end <= self.skip:
            raise WrongSetting(self, "end", f"is {self.end}: let the band end after skip, {self.skip}")
        self.memory, self.graph = KeyBank(self.bank), Graph(self.edges)

    def forward(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with, or of, the drawn images."""
        count = count_at(self.count, clock)
        if self.growing:
            count = min(count, math.floor(min(clock.epoch, count) + 1e-6))
        if count == 0 and self.combine == "append":
            return negatives
        draws = clock.generator("PageRankBand", self.memory.keys.device)
        ranked = self.ranked(negatives.query_id, value(self.follow, clock.progress), draws)
        skip, end = (rank_of(rank, len(self.memory)) for rank in (self.skip, self.end))
        band = self.memory.known(ranked[:, skip:end])
        order = torch.rand(band.shape, generator=draws, device=band.device)
        ids = largest(order, band, max(1, count))[0][:, :count]
        ids, _ = filled_up(negatives, self.memory, ids, self.combine, draws)
        return joined(negatives, self.memory, ids, self.combine)

    def ranked(self, own: Int64[Tensor, " B"], follow: float, draws: torch.Generator) -> Int64[Tensor, "B L"]:
        """The visited images in falling order of visits, equal ones at random, -1 after the last."""
        nodes, _ = walk(self.graph, own.repeat_interleave(self.walks), self.steps, follow, draws)
        nodes = nodes.view(len(own), -1)
        ids, times = visits(nodes.masked_fill(nodes == own[:, None], -1), len(self.memory.keys))
        tie = torch.rand(ids.shape, generator=draws, device=ids.device)
        return ids.gather(1, (times + tie).masked_fill(ids < 0, -1).argsort(dim=1, descending=True))


@dataclass(eq=False)
class GuidedWalk(OnGraph):
    """Walk from the query's image towards what the encoder finds hardest, two edges at a time (KGPolicy, arXiv:2003.05753).

    A round goes to the best neighbour, looks at the ``pool`` best neighbours of that and keeps the one most similar to
    the query; the next round starts there. "Best" is by cosine to the query plus cosine to the positive, the paper's
    reward. The last round gives the ``count`` most similar of its pool.

    Analogy without the policy: the paper learns an attention by REINFORCE on a knowledge graph; here the walk is greedy,
    on nearest neighbours or metadata. Two rounds and a pool of 32 are the paper's code; its 64 edges a node are
    ``edges.neighbours`` here. Until there is a graph, candidates are uniform. Memory: a bank and a graph.
    """

    kind: ClassVar[str] = "source"
    needs: ClassVar[frozenset[str]] = frozenset({"id"})
    breaks: ClassVar[frozenset[str]] = frozenset({"iid", "log_prob"})

    count: int = 1
    """Candidates per query, at least 1 and at most ``pool``."""
    rounds: int = 2
    """Rounds of two edges, at least 1."""
    pool: int = 32
    """Neighbours of the second edge that are compared with the query, at least 1."""
    combine: Combine = "append"
    """Whether they become the candidates or are added to those of the queue or batch."""
    bank: Bank = Bank()
    """How the key of each image is remembered."""
    edges: Edges = Edges(neighbours=64)
    """Which images are neighbours."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "count", "rounds", "pool", least=1)
        if self.count > self.pool:
            raise WrongSetting(self, "count", f"is {self.count} but the pool {self.pool}: lower count or raise pool")
        self.memory, self.graph = KeyBank(self.bank), Graph(self.edges)

    @torch.no_grad()
    def _best(self, node: Tensor, own: Tensor, direction: Tensor, count: int) -> Int64[Tensor, "B count"]:
        """The neighbours of each node whose keys lie most in a direction; never the query's own image."""
        ids = self.graph.neighbours[node.clamp(min=0)].long().masked_fill((node < 0)[:, None], -1)
        ids = without_repeats(self.memory.known(ids), own)
        return largest(similarity_to(self.memory, direction, ids), ids, count)[0]

    def forward(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with, or of, the images where the walks end."""
        own, query = negatives.query_id, negatives.query.detach()
        both = query + negatives.positive.detach().to(query)
        node = own
        ids = own[:, None]
        for _ in range(self.rounds):
            first = self._best(node, own, both, 1)[:, 0]
            pool = self._best(first, own, both, self.pool)
            ids = largest(similarity_to(self.memory, query, pool), pool, self.count)[0]
            node = ids[:, 0]
        draws = clock.generator("GuidedWalk", self.memory.keys.device)
        ids, _ = filled_up(negatives, self.memory, ids, self.combine, draws)
        return joined(negatives, self.memory, ids, self.combine)


def rank_of(rank: int | float, images: int) -> int:
    """A rank given as a whole number or as a share of the images."""
    return int(rank) if rank >= 1 else math.ceil(rank * images)


def widened(ids: Int64[Tensor, "B L"], least: int) -> Int64[Tensor, "B M"]:
    """The ids with columns of -1 added until there are ``least``, so that queries without any may get that many."""
    missing = max(0, least - ids.shape[1])
    return torch.nn.functional.pad(ids, (0, missing), value=-1)
