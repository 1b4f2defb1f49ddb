"""Stages that append mixes of a query's hardest candidates, with each other, with the query or with its positive."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from contrastneg.checks import check_range
from contrastneg.negatives.core import Clock, Negatives, Stage, whole
from contrastneg.negatives.mixes import HardestStage, Pool, pair_norms, pair_similarity, products, query_similarity
from contrastneg.schedules import Schedule, value


@dataclass(frozen=True)
class MoCHi(HardestStage):
    r"""Append mixes of each query's hardest candidates (arXiv:2010.01028).

    With x, y drawn from the ``pool`` candidates most similar to the query q, with replacement,

    .. math::
        h = \frac{a x + (1 - a) y}{\|a x + (1 - a) y\|}, \quad a \sim U(0, 1) \qquad
        h' = \frac{b q + (1 - b) x}{\|b q + (1 - b) x\|}, \quad b \sim U(0, 1/2)

    Mixes are constants, the q inside h' too: the gradient reaches the query through the similarity alone. They live for
    one step, count once each and are never queued. Removed candidates are not in the pool; a query with fewer than
    ``pool`` candidates mixes those it has, and one without any gets no mixes. Similarities come from closed forms, so
    the mixes themselves are never made, and alone before a loss that is algebra on sums it needs no table.
    """

    kind: ClassVar[str] = "synthesize"
    breaks: ClassVar[frozenset[str]] = frozenset({"iid", "log_prob"})
    of_candidates: ClassVar[tuple[str, ...]] = ("pool",)

    pool: int | Schedule = 1024
    """Candidates, hardest first, that mixes are made of (N in the paper). A number or a schedule."""
    pair_mixes: int | Schedule = 1024
    """Mixes of two candidates per query (s). A number or a schedule."""
    query_mixes: int | Schedule = 128
    """Mixes of the query and a candidate per query (s'). A number or a schedule."""
    warmup_epochs: float = 10.0
    """Epochs without mixes."""

    def __post_init__(self) -> None:
        check_range(self, "pool", least=1)
        check_range(self, "pair_mixes", "query_mixes", "warmup_epochs", least=0)

    def first_epoch(self, epochs: float) -> float:
        """The end of the warm-up."""
        return self.warmup_epochs

    def made(
        self, query: Float[Tensor, "B D"], hardest: Callable[[int], Pool], clock: Clock
    ) -> tuple[Float[Tensor, "B S"], Bool[Tensor, "B 1"] | None] | None:
        """Cosines of ``pair_mixes + query_mixes`` mixes."""
        pairs, singles = (whole(n, clock) for n in (self.pair_mixes, self.query_mixes))
        if clock.epoch < self.warmup_epochs or pairs + singles == 0:
            return None
        pool = hardest(whole(self.pool, clock))
        (x, y, a), (z, b) = self.drawn(pool, clock)
        norm = pair_norms(pool.keys, pool.column.gather(1, x), pool.column.gather(1, y), a)
        of_pairs = pair_similarity(pool.similarity.gather(1, x), pool.similarity.gather(1, y), norm, a)
        of_singles = query_similarity(query, pool.similarity.gather(1, z), b)
        return torch.cat([of_pairs, of_singles], dim=1), pool.kept

    def drawn(self, pool: Pool, clock: Clock) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
        """What mixes are made of: ranks in the pool of both parents of each pair with the share of the first, (B, s) each,
        and those of the candidates that are mixed with the query with its share, (B, s')."""
        draws = clock.generator("MoCHi", pool.similarity.device)
        (x, y), a = pool.draw(whole(self.pair_mixes, clock), 2, (0.0, 1.0), draws)
        (z,), b = pool.draw(whole(self.query_mixes, clock), 1, (0.0, 0.5), draws)
        return (x, y, a), (z, b)


@dataclass(frozen=True)
class PositiveMix(Stage):
    r"""Append mixes of each query's positive p with its hardest candidates (positive mixing of MixGCF, KDD 2021).

    .. math:: h = \frac{a p + (1 - a) x}{\|a p + (1 - a) x\|}, \quad a \sim U(0, \texttt{largest})

    An analogy: MixGCF mixes the layers of a graph network, here there is one embedding; :class:`HopMix` has the layers.
    The paper draws a from U(0, 1); at 1 the mix is the positive itself, a false negative made by hand, so the default
    stops at a half (ours). Mixes are constants: the gradient reaches the query through the
    similarity alone.
    """

    kind: ClassVar[str] = "synthesize"
    breaks: ClassVar[frozenset[str]] = frozenset({"iid", "log_prob"})
    of_candidates: ClassVar[tuple[str, ...]] = ("pool",)

    pool: int | Schedule = 64
    """Candidates, hardest first, that are mixed. A number or a schedule."""
    count: int | Schedule = 64
    """Mixes per query. A number or a schedule."""
    largest: float | Schedule = 0.5
    """Largest share of the positive, in [0, 1]. A number or a schedule."""

    def __post_init__(self) -> None:
        check_range(self, "pool", least=1)
        check_range(self, "count", least=0)
        check_range(self, "largest", least=0, most=1)

    def __call__(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with ``count`` columns more."""
        count = whole(self.count, clock)
        if negatives.n_keys == 0 or count == 0:
            return negatives
        pool = Pool.of(negatives, whole(self.pool, clock))
        draws = clock.generator("PositiveMix", negatives.similarity.device)
        (x,), a = pool.draw(count, 1, (0.0, value(self.largest, clock.progress)), draws)
        positive = negatives.positive.detach().to(negatives.similarity.dtype)
        product = products(pool.keys, pool.column.gather(1, x), positive)
        norm = (a**2 + (1 - a) ** 2 + 2 * a * (1 - a) * product).clamp(min=0).sqrt()
        of_positive = (negatives.query * positive).sum(dim=1, keepdim=True).expand_as(a)
        return negatives.appended(pair_similarity(of_positive, pool.similarity.gather(1, x), norm, a), kept=pool.kept)
