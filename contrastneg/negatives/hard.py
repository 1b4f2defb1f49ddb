"""Stages that keep candidates by their hardness.

None of them can be undone by a correction of the sampling: candidates of some ranks are never kept.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from contrastneg.checks import WrongSetting, check_range
from contrastneg.negatives.core import Clock, Negatives, Stage, count_at
from contrastneg.negatives.scores import Ranking, score_of
from contrastneg.negatives.select import Mass, gumbel_top, keep_only
from contrastneg.schedules import Linear, Schedule, value


@dataclass(frozen=True)
class HardestSubset(Stage):
    """Keep each query's hardest candidates, or some of those and others at random.

    With ``score`` "positive" these are the max and mix rules (``random_share`` 0 and 0.5) of the survey's reference
    [19], which keeps 8 and ranks by the embeddings of the previous epoch, at random in the first; here the queue's keys
    stand in for those: an analogy.
    """

    kind: ClassVar[str] = "select"
    breaks: ClassVar[frozenset[str]] = frozenset({"iid", "log_prob", "all ranks"})
    of_candidates: ClassVar[tuple[str, ...]] = ("count",)

    count: int | Schedule = 256
    """Candidates kept per query, at least 1; rows with fewer keep them all. A number or a schedule."""
    score: Ranking = "anchor"
    """What they are ranked by: similarity to the query, to its positive, or the sum of both."""
    random_share: float | Schedule = 0.0
    """Share of the kept ones, from 0 to 1, that is drawn uniformly from the others. A number or a schedule."""
    mass: Mass = "preserve"
    """Whether the kept candidates take over the weight of the dropped ones."""

    def __post_init__(self) -> None:
        check_range(self, "count", least=1)
        check_range(self, "random_share", least=0, most=1)

    def __call__(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with at most ``count`` candidates kept per query."""
        count = count_at(self.count, clock)
        at_random = round(count * min(1.0, max(0.0, value(self.random_share, clock.progress))))
        chosen = top_of(score_of(negatives, self.score), negatives.kept, count - at_random)
        if at_random:
            draws = clock.generator("HardestSubset", chosen.device)
            others = (negatives.kept & ~chosen).to(negatives.similarity.dtype).log()
            chosen = chosen | gumbel_top(others, at_random, draws)
        return keep_only(negatives, chosen, self.mass)


@dataclass(frozen=True)
class HardestOfRandom(Stage):
    r"""Keep the hardest of a random pool (dynamic negative sampling, SIGIR 2013; faithful, M = 1 there).

    The pool is how hard the kept ones are: as large as ``count`` it is a uniform subset, as large as the table the
    hardest ones. Of a pool of P among K candidates the one with rank r (1 is the hardest) is kept with probability

    .. math:: \frac{P}{K} \Pr[H(K - 1, r - 1, P - 1) \le M - 1]

    with H hypergeometric: 0 for the P - M easiest, which is why no correction of the sampling may follow.
    """

    kind: ClassVar[str] = "select"
    breaks: ClassVar[frozenset[str]] = frozenset({"iid", "log_prob", "all ranks"})
    of_candidates: ClassVar[tuple[str, ...]] = ("count", "pool")

    count: int | Schedule = 256
    """Candidates kept per query (M), at least 1. A number or a schedule."""
    pool: int | Schedule = 1024
    """Candidates drawn uniformly, of which the hardest are kept; no fewer than ``count`` are. A number or a schedule."""
    score: Ranking = "anchor"
    """What they are ranked by: similarity to the query, to its positive, or the sum of both."""
    mass: Mass = "preserve"
    """Whether the kept candidates take over the weight of the dropped ones."""

    def __post_init__(self) -> None:
        check_range(self, "count", "pool", least=1)
        if isinstance(self.count, int) and isinstance(self.pool, int) and self.pool < self.count:
            raise WrongSetting(self, "pool", f"is {self.pool}: draw at least as many as count, {self.count}")

    def __call__(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with at most ``count`` candidates kept per query."""
        count = count_at(self.count, clock)
        draws = clock.generator("HardestOfRandom", negatives.similarity.device)
        uniform = negatives.kept.to(negatives.similarity.dtype).log()
        pool = gumbel_top(uniform, max(count, count_at(self.pool, clock)), draws)
        return keep_only(negatives, top_of(score_of(negatives, self.score), pool, count), self.mass)


@dataclass(frozen=True)
class HardnessBand(Stage):
    r"""Keep the candidates whose hardness lies between two shares of each query's ranking, 0 being the hardest.

    Of n candidates those with rank from :math:`\lceil lower \cdot n \rceil` up to, not including,
    :math:`\lceil upper \cdot n \rceil` are kept, and at least one: that which follows an empty band, or else the easiest.

    - Percentiles of "Are all negatives created equal" (arXiv:2010.06682; faithful with ``mass`` "plain"): hardest 5 %
      0 to 0.05, those without the hardest 0.1 % 0.001 to 0.05. The edges are the authors' choice of bins.
    - Ring of conditional negatives (arXiv:2010.02037): both edges, one of them a schedule. Its percentiles and their
      course were not found; none of the values here is the paper's.
    - Truncated sampling of BootEA (IJCAI 2018): ``upper`` 0.1, ``score`` "positive" and a ``count``.
    - Curriculum (CuCo, IJCAI 2021): ``lower`` :class:`contrastneg.schedules.Power` from 1 to 0 opens the ranking from
      its easy end, ``upper`` from 0 to 1 from its hard end, with a ``count`` to draw.
    """

    kind: ClassVar[str] = "select"
    breaks: ClassVar[frozenset[str]] = frozenset({"iid", "log_prob", "all ranks"})
    of_candidates: ClassVar[tuple[str, ...]] = ("count",)

    lower: float | Schedule = 0.0
    """Share of the ranking at which the band begins, from 0 to 1. A number or a schedule."""
    upper: float | Schedule = 0.05
    """Share of the ranking at which the band ends, from 0 to 1, not below ``lower``; equal to it one candidate is kept. A number or a
    schedule."""
    outside: bool = False
    """Keep what lies outside the band instead."""
    count: int | Schedule | None = None
    """Candidates drawn uniformly from the band; none keeps the whole band. A number or a schedule."""
    score: Ranking = "anchor"
    """What they are ranked by: similarity to the query, to its positive, or the sum of both."""
    mass: Mass = "preserve"
    """Whether the kept candidates take over the weight of the dropped ones."""

    def __post_init__(self) -> None:
        check_range(self, "count", least=1)
        check_range(self, "lower", "upper", least=0, most=1)
        if not isinstance(self.lower, Schedule) and not isinstance(self.upper, Schedule) and self.lower > self.upper:
            raise WrongSetting(self, "upper", f"is {self.upper:g}: give lower, {self.lower:g}, or more")

    def __call__(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with only the band kept."""
        lower, upper = (min(1.0, max(0.0, value(x, clock.progress))) for x in (self.lower, self.upper))
        kept = negatives.kept
        size = kept.sum(dim=1)
        last = _place(upper, size)
        first = torch.minimum(_place(lower, size), size - 1)
        last = torch.maximum(last, first + 1).clamp(max=size)
        # Ranks are needed up to the band's end only, and a little more where an empty band is extended.
        deepest = min(kept.shape[1], math.ceil(max(lower, upper) * kept.shape[1]) + 1)
        chosen = ranks_between(score_of(negatives, self.score), kept, first, last, deepest)
        if self.outside:
            chosen = kept & ~chosen
        if self.count is not None:
            draws = clock.generator("HardnessBand", chosen.device)
            chosen = gumbel_top(chosen.to(negatives.similarity.dtype).log(), count_at(self.count, clock), draws)
        return keep_only(negatives, chosen, self.mass)


@dataclass(frozen=True)
class SemiHardSubset(Stage):
    r"""Keep the hardest candidates that the positive beats, by a little but not by much.

    .. math:: s_+ - margin < s_j \le s_+ - gap

    After FaceNet (arXiv:1503.03832, there distances and one candidate per pair; an analogy). A ``margin`` of 2, as far
    as cosines can be apart, leaves the upper bound alone. A query without such a candidate keeps its least similar one.
    Early in a run the positive beats few candidates and many queries are in that case: see ``STAGE/kept``.
    """

    kind: ClassVar[str] = "select"
    breaks: ClassVar[frozenset[str]] = frozenset({"iid", "log_prob", "all ranks"})
    of_candidates: ClassVar[tuple[str, ...]] = ("count",)

    count: int | Schedule = 256
    """Candidates kept per query, at most. A number or a schedule."""
    margin: float | Schedule = 0.2
    """How far below the positive a candidate's cosine may be, above ``gap``; FaceNet's 0.2 of squared distances is 0.1 here. A
    number or a schedule."""
    gap: float | Schedule = 0.0
    """How far below the positive a candidate must be, 0 or more. A number or a schedule."""
    mass: Mass = "preserve"
    """Whether the kept candidates take over the weight of the dropped ones."""

    def __post_init__(self) -> None:
        check_range(self, "count", least=1)
        check_range(self, "gap", least=0)
        check_range(self, "margin", above=0)
        if not isinstance(self.margin, Schedule) and not isinstance(self.gap, Schedule) and self.margin <= self.gap:
            raise WrongSetting(self, "margin", f"is {self.margin:g}: give more than gap, {self.gap:g}")

    def __call__(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with at most ``count`` candidates kept per query."""
        below = below_positive(negatives)
        kept = negatives.kept
        fit = kept & (below >= value(self.gap, clock.progress)) & (below < value(self.margin, clock.progress))
        chosen = top_of(-below, fit, count_at(self.count, clock))
        nothing = ~chosen.any(dim=1, keepdim=True)
        return keep_only(negatives, chosen | (nothing & top_of(below, kept, 1)), self.mass)


@dataclass(frozen=True)
class GapSubset(Stage):
    r"""Keep the candidates that the positive beats by about a given gap (adaptive hardness, survey reference [90], ASA).

    The ``count`` smallest of :math:`|s_+ - s_j - gap|` are kept: a candidate below the positive is preferred to one as
    far above it. A small gap keeps harder candidates and more false negatives. The rule is from a second-hand account
    and the course of the paper's gap was not found: a reconstruction.
    """

    kind: ClassVar[str] = "select"
    breaks: ClassVar[frozenset[str]] = frozenset({"iid", "log_prob", "all ranks"})
    of_candidates: ClassVar[tuple[str, ...]] = ("count",)

    count: int | Schedule = 256
    """Candidates kept per query, at least 1. A number or a schedule."""
    gap: float | Schedule = Linear(0.3, 0.0)
    """How far below the positive the best candidates are, 0 or more. A number or a schedule."""
    mass: Mass = "preserve"
    """Whether the kept candidates take over the weight of the dropped ones."""

    def __post_init__(self) -> None:
        check_range(self, "count", least=1)
        check_range(self, "gap", least=0)

    def __call__(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with at most ``count`` candidates kept per query."""
        distance = (below_positive(negatives) - value(self.gap, clock.progress)).abs()
        return keep_only(negatives, top_of(-distance, negatives.kept, count_at(self.count, clock)), self.mass)


@dataclass(frozen=True)
class HardestQueries(Stage):
    """Keep the candidates of the queries with the largest losses alone (online hard example mining, arXiv:1604.03540).

    The others lose all theirs, and so have loss 0 and no gradient. The paper keeps regions of a detector by their loss:
    an analogy, with InfoNCE as the loss that ranks, whatever the method's own is. Each device ranks its own queries.
    """

    kind: ClassVar[str] = "select"
    breaks: ClassVar[frozenset[str]] = frozenset({"iid"})

    share: float | Schedule = 0.5
    """Share of the queries that keep their candidates, from 0 to 1; at least one does. A number or a schedule."""
    temperature: float | None = None
    """Temperature of the loss that ranks, above 0; none is the method's."""

    def __post_init__(self) -> None:
        check_range(self, "share", least=0, most=1)
        check_range(self, "temperature", above=0)

    def __call__(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with the candidates of some queries alone."""
        count = math.ceil(len(negatives.query) * value(self.share, clock.progress) - 1e-9)
        margin = (negatives.similarity - negatives.positive_similarity[:, None]).detach() / (
            self.temperature or clock.temperature
        )
        loss = (margin + negatives.log_weight.detach()).logsumexp(dim=1)  # the rank of log(1 + e^x) is that of x
        hardest = loss.topk(min(max(1, count), len(loss))).indices
        easy = torch.ones_like(loss, dtype=torch.bool).index_fill_(0, hardest, False)
        return negatives.removed(easy[:, None].expand_as(negatives.similarity))


def below_positive(negatives: Negatives) -> Float[Tensor, "B M"]:
    """How much more similar than each candidate the positive is, without gradient."""
    return negatives.positive_similarity.detach()[:, None] - negatives.similarity.detach()


def top_of(score: Float[Tensor, "B M"], among: Bool[Tensor, "B M"], count: int) -> Bool[Tensor, "B M"]:
    """The ``count`` largest scores of each row among some entries; all of them where there are fewer."""
    best = score.masked_fill(~among, -torch.inf).topk(min(max(0, count), score.shape[1]), dim=1, sorted=False).indices
    return torch.zeros_like(among).scatter_(1, best, True) & among


def ranks_between(
    score: Float[Tensor, "B M"],
    among: Bool[Tensor, "B M"],
    first: Int64[Tensor, " B"],
    last: Int64[Tensor, " B"],
    deepest: int,
) -> Bool[Tensor, "B M"]:
    """The entries of each row whose rank, 0 for the largest score, is at least ``first`` and below ``last``.

    Args:
        score: What is ranked.
        among: The entries that have a rank.
        first: First rank per row.
        last: The rank after the last per row, at most ``deepest``.
        deepest: Ranks that are looked at.
    """
    order = score.masked_fill(~among, -torch.inf).topk(deepest, dim=1).indices
    rank = torch.arange(deepest, device=score.device)
    inside = (rank >= first[:, None]) & (rank < last[:, None])
    return torch.zeros_like(among).scatter_(1, order, inside) & among


def _place(share: float, size: Int64[Tensor, " B"]) -> Int64[Tensor, " B"]:
    """A share of each size, rounded up; 0.07 of 100 is 7 although the product of these numbers is a hair above."""
    exact = Fraction(share).limit_denominator(1_000_000)  # in whole numbers: not every device has float64
    return -((-exact.numerator * size) // exact.denominator)
