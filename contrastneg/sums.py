"""Sums over each query's candidates, from the table of negatives or in one pass over the keys.

A loss that is algebra on such sums is written once and runs on both: without stages the (B, K) table never exists.
"""

from abc import ABC, abstractmethod

from jaxtyping import Float, Int64
from torch import Tensor

from contrastneg.logsumexp import one_pass_logsumexp_max, table_logsumexp
from contrastneg.losses.rows import log_count, weighted_sum, wide
from contrastneg.losses.whole_data import KeyMoments
from contrastneg.negatives.core import Negatives


class Sums(ABC):
    """What a loss may know of the candidates without seeing them one by one."""

    positive: Float[Tensor, " B"]
    """Cosine of each query and its positive."""
    image_id: Int64[Tensor, " B"]
    """Image of each query, -1 where it is not known."""

    @abstractmethod
    def logsumexp(self, temperature: float, *, constant: bool = False) -> Float[Tensor, " B"]:
        """``log sum_j w_j e^{s_j / temperature}``; -inf without candidates; ``constant`` asks for no gradient."""

    @abstractmethod
    def log_count(self) -> Float[Tensor, " B"]:
        """``log sum_j w_j``; -inf without candidates."""

    @abstractmethod
    def square_sum(self, target: float = 0.0) -> Float[Tensor, " B"]:
        """``sum_j w_j (s_j - target)^2``."""


class TableSums(Sums):
    """Sums of rows of the table, whatever stages made of it."""

    def __init__(self, negatives: Negatives) -> None:
        self.negatives = negatives
        self.positive, self.image_id = negatives.positive_similarity, negatives.query_id

    def logsumexp(self, temperature: float, *, constant: bool = False) -> Float[Tensor, " B"]:
        """See :class:`Sums`."""
        similarity = self.negatives.similarity.detach() if constant else self.negatives.similarity
        return table_logsumexp(similarity, self.negatives.log_weight, temperature=temperature)

    def log_count(self) -> Float[Tensor, " B"]:
        """See :class:`Sums`."""
        return log_count(self.negatives.similarity, self.negatives.log_weight)

    def square_sum(self, target: float = 0.0) -> Float[Tensor, " B"]:
        """See :class:`Sums`."""
        return weighted_sum((self.negatives.similarity - target).square(), self.negatives.log_weight)


class KeySums(Sums):
    """Sums over keys that carry no gradient, each counted once, a few pairs left out. Nothing of the keys is kept.

    Args:
        query: Unit-norm queries.
        positive: Unit-norm positives.
        keys: Unit-norm keys; they may be overwritten before the backward pass.
        exclude: Pairs (row of query, row of keys) that do not count.
        image_id: Image of each query, if it is known.
    """

    def __init__(
        self,
        query: Float[Tensor, "B D"],
        positive: Float[Tensor, "B D"],
        keys: Float[Tensor, "K D"],
        exclude: Int64[Tensor, "E 2"],
        image_id: Int64[Tensor, " B"] | None = None,
    ) -> None:
        self.query, self.keys, self.exclude = wide(query), keys, exclude
        self.positive = (self.query * positive).sum(dim=1)
        self.image_id = exclude.new_full((len(query),), -1) if image_id is None else image_id
        self._hardest: Tensor | None = None

    def logsumexp(self, temperature: float, *, constant: bool = False) -> Float[Tensor, " B"]:
        """See :class:`Sums`."""
        query = self.query.detach() if constant else self.query
        lse, hardest = one_pass_logsumexp_max(query, self.keys, temperature=temperature, exclude=self.exclude)
        if self._hardest is None:
            self._hardest = hardest
        return lse

    def log_count(self) -> Float[Tensor, " B"]:
        """See :class:`Sums`."""
        left_out = self.exclude[:, 0].bincount(minlength=len(self.query))
        return (len(self.keys) - left_out).to(self.positive.dtype).log()

    def square_sum(self, target: float = 0.0) -> Float[Tensor, " B"]:
        """See :class:`Sums`; through the second moment of the keys, at D^2 per query."""
        row, column = self.exclude.unbind(1)
        left_out = (self.query[row] * self.keys[column].to(self.query.dtype)).sum(dim=1) - target
        everything = KeyMoments.of(self.keys.to(self.query.dtype)).square_sum(self.query, target)
        return everything.index_add(0, row, -left_out.square())

    @property
    def hardest(self) -> Float[Tensor, " B"]:
        """The largest cosine among each query's candidates, without gradient; -inf where there is none."""
        if self._hardest is None:
            self.logsumexp(1.0, constant=True)
        assert self._hardest is not None
        return self._hardest
