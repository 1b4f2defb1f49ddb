"""Sums over each query's candidates, from the table of negatives or in one pass over the keys.

A loss that is algebra on such sums is written once and runs on both: without stages, or with one alone that makes its
columns of each query's hardest keys, the (B, K) table never exists.
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from contrastneg.logsumexp import one_pass_logsumexp_max, table_logsumexp
from contrastneg.losses.rows import log_count, weighted_sum, wide
from contrastneg.losses.whole_data import KeyMoments
from contrastneg.negatives.core import Clock, Negatives
from contrastneg.negatives.mixes import HardestStage, Pool
from contrastneg.negatives.search import Search, search


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


class MixedSums(Sums):
    """Sums over keys, as :class:`KeySums`, and over the columns that a stage makes of each query's hardest of them.

    Rows are independent, so the gradient of each sum is taken as soon as the sum is known: nothing of keys or columns is
    kept either. The search for the hardest gives the log-sum-exp at one temperature, too.

    Args:
        of_keys: The sums over the keys, at least one.
        stage: Makes the columns.
        temperature: The temperature at which the log-sum-exp will be asked for most.
        clock: Where the run stands.
    """

    def __init__(self, of_keys: KeySums, stage: HardestStage, temperature: float, clock: Clock) -> None:
        self.of_keys, self.query, self.positive = of_keys, of_keys.query, of_keys.positive
        self.image_id = of_keys.image_id
        self.temperature = temperature
        self.with_gradient = torch.is_grad_enabled() and self.query.requires_grad
        self.found: Search | None = None
        self.leaf = self.query.detach().requires_grad_(self.with_gradient)
        self.columns: tuple[Tensor, Tensor] | None = None
        if (made := stage.made(self.leaf, self._pool, clock)) is not None:
            similarity, kept = made
            log_weight = similarity.new_zeros(len(similarity), 1)
            if kept is not None:
                log_weight = log_weight.masked_fill(~kept, -torch.inf)
            self.columns = similarity, log_weight.expand_as(similarity)

    def _pool(self, count: int) -> Pool:
        """The hardest keys of each query, with the log-sum-exp over all as a by-product."""
        keys, exclude = self.of_keys.keys.to(self.leaf.dtype), self.of_keys.exclude
        count = min(max(1, count), len(keys))
        query, with_gradient = self.leaf.detach(), self.with_gradient
        found = search(query, keys, exclude, count, temperature=self.temperature, with_gradient=with_gradient)
        self.found = found
        return Pool.found(self.leaf, keys, found.column, found.size, found.similarity, whole=len(exclude) == 0)

    def logsumexp(self, temperature: float, *, constant: bool = False) -> Float[Tensor, " B"]:
        """See :class:`Sums`."""
        if self.columns is None:
            return self.of_keys.logsumexp(temperature, constant=constant)
        if self.found is not None and temperature == self.temperature:
            of_keys = _Known.apply(self.query, self.found.logsumexp, self.found.gradient)
        else:
            of_keys = self.of_keys.logsumexp(temperature, constant=constant)
        of_columns = self._known(table_logsumexp(*self.columns, temperature=temperature))
        both = torch.stack([of_keys, of_columns], dim=1)
        return table_logsumexp(both.detach() if constant else both, temperature=1.0)

    def log_count(self) -> Float[Tensor, " B"]:
        """See :class:`Sums`."""
        of_keys = self.of_keys.log_count()
        return of_keys if self.columns is None else torch.logaddexp(of_keys, log_count(*self.columns))

    def square_sum(self, target: float = 0.0) -> Float[Tensor, " B"]:
        """See :class:`Sums`."""
        of_keys = self.of_keys.square_sum(target)
        if self.columns is None:
            return of_keys
        similarity, log_weight = self.columns
        return of_keys + self._known(weighted_sum((similarity - target).square(), log_weight))

    @property
    def hardest(self) -> Float[Tensor, " B"]:
        """See :attr:`KeySums.hardest`; columns that are made do not count."""
        return self.of_keys.hardest if self.found is None else self.found.top

    def _known(self, sums: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Sums over the columns with their gradient to the query taken now."""
        if not sums.requires_grad:
            return sums
        (gradient,) = torch.autograd.grad(sums.sum(), self.leaf, retain_graph=True)
        return _Known.apply(self.query, sums.detach(), gradient)


class _Known(torch.autograd.Function):
    """One number per query whose gradient to the query is known already."""

    @staticmethod
    def forward(ctx, query, numbers, gradient):
        ctx.save_for_backward(gradient)
        return numbers.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return grad[:, None] * gradient, None, None
