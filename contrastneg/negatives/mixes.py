"""Cosines of a query with mixes of its hardest candidates, from closed forms: the mixes themselves are never made."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from contrastneg.negatives.core import Clock, Negatives, Stage

# Numbers that are gathered or compared at once. On a CPU they should stay in the second-level cache, and below the size
# from which glibc asks the kernel for every buffer anew; a GPU wants few, large launches.
CPU_CHUNK = 1 << 18
GPU_CHUNK = 1 << 24
GROUP = 8  # columns that share one maximum in the search for the hardest


@dataclass(frozen=True)
class Pool:
    """The hardest candidates of each query, which mixes are made of."""

    keys: Float[Tensor, "*per_query K D"]
    """The table's keys, constant and as wide as its similarities."""
    column: Int64[Tensor, "B N"]
    """Columns of the candidates; a query's own come first, filled up with removed ones where there are fewer than N."""
    size: Int64[Tensor, " B"]
    """Candidates of each query that may be mixed."""
    similarity: Float[Tensor, "B N"]
    """Their cosines with the query, with gradient to the query alone, also where the keys are trained."""
    whole: bool
    """Whether every query has all N."""

    @classmethod
    def of(cls, negatives: Negatives, count: int) -> "Pool":
        """The at most ``count`` most similar keys of each query that have not been removed.

        Args:
            negatives: A table with at least one key; synthetic columns are left out.
            count: Candidates per query.
        """
        count = min(max(1, count), negatives.n_keys)
        table = negatives.similarity.detach()[:, : negatives.n_keys]
        whole = negatives.untouched
        kept = None if whole else negatives.repelled[:, : negatives.n_keys]
        size = torch.full_like(negatives.query_id, count) if kept is None else kept.sum(dim=1).clamp(max=count)
        keys = negatives.keys.detach().to(table.dtype)
        column = hardest_columns(table, kept, count)
        return cls.found(negatives.query, keys, column, size, table.gather(1, column), whole)

    @classmethod
    def found(
        cls,
        query: Float[Tensor, "B D"],
        keys: Float[Tensor, "*per_query K D"],
        column: Int64[Tensor, "B N"],
        size: Int64[Tensor, " B"],
        similarity: Float[Tensor, "B N"],
        whole: bool,
    ) -> "Pool":
        """The pool of candidates that have been found already; their constant cosines get their gradient to the query.

        Args:
            query: The queries that receive the gradient.
            keys: See :class:`Pool`.
            column: See :class:`Pool`.
            size: See :class:`Pool`.
            similarity: Cosines as numbers, without gradient.
            whole: See :class:`Pool`.
        """
        return cls(keys, column, size, _OfColumns.apply(query, keys, similarity, column), whole)

    @property
    def kept(self) -> Bool[Tensor, "B 1"] | None:
        """Queries that have anything to mix, None if all have, as :meth:`Negatives.appended` takes it."""
        return None if self.whole else (self.size > 0)[:, None]

    def draw(
        self, count: int, partners: int, span: tuple[float, float], generator: torch.Generator
    ) -> tuple[Int64[Tensor, "partners B count"], Float[Tensor, "B count"]]:
        """Ranks of mixing partners, uniform over each query's pool with replacement, and coefficients from U(span)."""
        return draw(self.size, count, partners, span, self.similarity.dtype, generator)


class HardestStage(Stage):
    """A stage that appends columns made of each query's hardest candidates alone; by itself it needs no table."""

    @abstractmethod
    def made(
        self, query: Float[Tensor, "B D"], hardest: Callable[[int], Pool], clock: Clock
    ) -> tuple[Float[Tensor, "B S"], Bool[Tensor, "B 1"] | None] | None:
        """Cosines of the columns and which queries have them, as :meth:`Negatives.appended` takes them; None for none now.

        Args:
            query: Unit-norm queries, with gradient.
            hardest: Gives the pool of the so many hardest candidates of each query; there is at least one key.
            clock: Where the run stands.
        """

    def __call__(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with the columns appended."""
        if negatives.n_keys == 0:
            return negatives
        columns = self.made(negatives.query, partial(Pool.of, negatives), clock)
        return negatives if columns is None else negatives.appended(*columns)


def hardest_columns(
    similarity: Float[Tensor, "B K"], kept: Bool[Tensor, "B K"] | None, count: int
) -> Int64[Tensor, "B count"]:
    """Columns of the ``count`` most similar kept candidates of each query, a few rows at a time.

    Args:
        similarity: The table.
        kept: Candidates to choose from, None means all. Where a query has fewer than ``count``, the removed come last.
        count: Columns per query, at most K.
    """
    found = torch.empty(len(similarity), count, dtype=torch.long, device=similarity.device)
    ordered = kept is not None and bool((kept.sum(dim=1) < count).any())
    for part in row_parts(similarity, similarity.shape[1], 4):
        ranked = similarity[part] if kept is None else similarity[part].masked_fill(~kept[part], -torch.inf)
        found[part] = largest_columns(ranked, count, ordered)
    return found


def largest_columns(ranked: Float[Tensor, "B K"], count: int, ordered: bool) -> Int64[Tensor, "B count"]:
    """Columns of the ``count`` largest entries of each row.

    Exact in two steps: the ``count`` groups of columns with the largest maxima hold the ``count`` largest entries, so
    only their members are compared.

    Args:
        ranked: The table, -inf where a candidate has been removed.
        count: Columns per row, at most K.
        ordered: Largest first; otherwise in any order, which saves sorting.
    """
    columns, per_group = ranked.shape[1], ranked.shape[1] // GROUP
    if per_group <= 2 * count:  # too few groups for two steps to gain anything
        return _largest(ranked, count, ordered)
    rest = GROUP * per_group
    maxima = ranked[:, :rest].unflatten(1, (GROUP, per_group)).amax(dim=1)  # group g holds columns g, g + K/8, ...
    if not ordered and rest == columns and _partitions(ranked):
        return _members_above(ranked, maxima, count)
    group = _largest(maxima, count)
    first = torch.arange(0, rest, per_group, device=ranked.device)
    column = (group[:, None] + first[:, None]).flatten(1)
    if rest < columns:
        column = torch.cat([column, torch.arange(rest, columns, device=ranked.device).expand(len(ranked), -1)], dim=1)
    return column.gather(1, _largest(ranked.gather(1, column), count, ordered))


def _members_above(ranked: Float[Tensor, "B K"], maxima: Float[Tensor, "B G"], count: int) -> Int64[Tensor, "B count"]:
    """Columns of the ``count`` largest entries of each row, in any order, from the maxima of its groups.

    At least ``count`` entries reach the ``count``-th largest maximum and hardly more, so few are left to partition.
    """
    groups, found = maxima.shape[1], torch.empty(len(ranked), count, dtype=torch.long)
    members = ranked.unflatten(1, (GROUP, groups)).numpy()
    for entries, tops, columns in zip(members, maxima.numpy(), found.numpy(), strict=True):
        least = np.partition(tops, groups - count)[groups - count]
        group = np.flatnonzero(~(tops < least))  # "not below", so that a row of NaN keeps as many
        entries = entries.take(group, axis=1).ravel()
        place = np.flatnonzero(~(entries < least))
        place = place[np.argpartition(entries[place], len(place) - count)[len(place) - count :]]
        rank, index = np.divmod(place, len(group))
        columns[:] = group[index] + groups * rank
    return found


def _largest(ranked: Float[Tensor, "B K"], count: int, ordered: bool = False) -> Int64[Tensor, "B count"]:
    """Columns of the ``count`` largest entries of each row; without an order NumPy partitions, six times as fast on CPUs."""
    if ordered or not _partitions(ranked):
        return ranked.topk(count, dim=1, sorted=ordered).indices
    place = ranked.shape[1] - count
    return torch.from_numpy(np.argpartition(ranked.numpy(), place, axis=1)[:, place:])


def _partitions(ranked: Tensor) -> bool:
    """Whether NumPy can partition it where it lies."""
    return ranked.device.type == "cpu" and ranked.dtype in (torch.float32, torch.float64)


def draw(
    size: Int64[Tensor, " B"],
    count: int,
    partners: int,
    span: tuple[float, float],
    dtype: torch.dtype,
    generator: torch.Generator,
) -> tuple[Int64[Tensor, "partners B count"], Float[Tensor, "B count"]]:
    """Ranks of mixing partners, uniform over each query's pool with replacement, and coefficients from U(span)."""
    rows, device = len(size), size.device
    place = torch.rand(partners, rows, count, generator=generator, device=device)
    last = (size - 1).clamp(min=0)[:, None]
    rank = torch.minimum((place * size[:, None]).long(), last)  # rounding may reach the size itself
    low, high = span
    return rank, low + (high - low) * torch.rand(rows, count, generator=generator, device=device).to(dtype)


def pair_similarity(
    x: Float[Tensor, "B s"], y: Float[Tensor, "B s"], norm: Float[Tensor, "B s"], a: Float[Tensor, "B s"]
) -> Float[Tensor, "B s"]:
    r"""Cosine of the query with mixes of two keys.

    .. math:: (a s_x + (1 - a) s_y) / \|a x + (1 - a) y\|

    Args:
        x: Cosine of the query with the one key.
        y: Cosine of the query with the other.
        norm: Length of the mix before it is scaled, see :func:`pair_norms`.
        a: Share of the one key.
    """
    return (a * x + (1 - a) * y) / norm.clamp(min=1e-12)


def query_similarity(
    query: Float[Tensor, "B D"], x: Float[Tensor, "B s"], b: Float[Tensor, "B s"]
) -> Float[Tensor, "B s"]:
    r"""Cosine of the query with mixes of itself, held constant, and a key.

    .. math:: (b + (1 - b) s_x) / \sqrt{b^2 + (1 - b)^2 + 2 b (1 - b) s_x}

    Args:
        query: Unit-norm queries.
        x: Cosine of the query with the key.
        b: Share of the query; below 0 the mix lies beyond the key, away from the query.
    """
    norm = (b**2 + (1 - b) ** 2 + 2 * b * (1 - b) * x.detach()).sqrt()
    itself = (query * query.detach()).sum(dim=1, keepdim=True)  # 1, with the query as its gradient
    return (b * itself + (1 - b) * x) / norm.clamp(min=1e-12)


@torch.no_grad()
def pair_norms(
    keys: Float[Tensor, "*per_query K D"],
    first: Int64[Tensor, "B s"],
    second: Int64[Tensor, "B s"],
    a: Float[Tensor, "B s"],
) -> Float[Tensor, "B s"]:
    """Lengths of ``a`` of the key in the first column plus ``1 - a`` of that in the second, a few queries at a time."""
    norms = torch.empty_like(a)
    everything = slice(0, len(a))
    place = torch.stack([_flat(keys, everything, column) for column in (first, second)], dim=-1)
    share = torch.stack([a, 1 - a], dim=-1)
    for part in row_parts(first, first.shape[1] * keys.shape[-1], 4):
        mixes = _weighted_sums(keys, place[part].flatten(0, 1), share[part].flatten(0, 1))
        norms[part] = torch.linalg.vector_norm(mixes, dim=1).view_as(a[part])
    return norms


@torch.no_grad()
def products(
    keys: Float[Tensor, "*per_query K D"], column: Int64[Tensor, "B s"], vector: Float[Tensor, "B *s D"]
) -> Float[Tensor, "B s"]:
    """Dot products of the keys in some columns with one vector per query (B, D), or one per column (B, s, D)."""
    found = vector.new_empty(column.shape)
    for part in row_parts(column, column.shape[1] * keys.shape[-1]):
        chosen = keys.flatten(0, -2).index_select(0, _flat(keys, part, column[part]).flatten())
        chosen = chosen.view(*column[part].shape, keys.shape[-1])
        own = vector[part] if vector.ndim == 3 else vector[part, None]
        with torch.autocast(chosen.device.type, enabled=False):
            found[part] = torch.linalg.vecdot(chosen, own)
    return found


def row_parts(rows: Tensor, numbers_per_row: int, chunks: int = 1) -> Iterator[slice]:
    """Slices of the rows of a tensor that make about ``chunks`` chunks of numbers each, at least one row."""
    chunk = chunks * (CPU_CHUNK if rows.device.type == "cpu" else GPU_CHUNK)
    step = max(1, chunk // max(1, numbers_per_row))
    return (slice(start, min(len(rows), start + step)) for start in range(0, len(rows), step))


class _OfColumns(torch.autograd.Function):
    """Cosines with some columns, with gradient to the query only, as a weighted sum of keys.

    A gather from the table would give the same and fill a second (B, K) table for it, and reach keys that are trained.
    """

    @staticmethod
    def forward(ctx, query, keys, similarity, column):
        ctx.save_for_backward(keys, column)
        return similarity.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        keys, column = ctx.saved_tensors
        return _weighted_sums(keys, _flat(keys, slice(0, len(grad)), column), grad), None, None, None


def _weighted_sums(keys: Tensor, place: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums of the keys in each row of places, (rows, D).

    An embedding bag reads the keys where they lie; gathering them first takes five times as long.
    """
    if place.numel() == 0:
        return weight.new_zeros(len(place), keys.shape[-1])
    start = torch.arange(0, place.numel(), place.shape[1], dtype=place.dtype, device=place.device)
    listed, share = keys.flatten(0, -2), weight.flatten().to(keys.dtype)
    return F.embedding_bag(place.flatten(), listed, start, per_sample_weights=share, mode="sum")


def _flat(keys: Tensor, part: slice, column: Tensor) -> Tensor:
    """Columns of some rows as places in one list of all rows' keys; in 32 bits, if they do, the list is read faster."""
    if keys.ndim == 3:
        column = column + keys.shape[1] * torch.arange(part.start, part.stop, device=keys.device)[:, None]
    return column.int() if keys.numel() <= torch.iinfo(torch.int32).max else column
