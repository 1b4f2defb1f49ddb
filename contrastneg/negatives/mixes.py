"""Cosines of a query with mixes of its hardest candidates, from closed forms: the mixes themselves are never made."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from contrastneg.negatives.core import Negatives

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
        return cls(keys, column, size, _OfColumns.apply(negatives.query, keys, table, column), whole)

    @property
    def kept(self) -> Bool[Tensor, "B 1"] | None:
        """Queries that have anything to mix, None if all have, as :meth:`Negatives.appended` takes it."""
        return None if self.whole else (self.size > 0)[:, None]

    def draw(
        self, count: int, partners: int, span: tuple[float, float], generator: torch.Generator
    ) -> tuple[Int64[Tensor, "partners B count"], Float[Tensor, "B count"]]:
        """Ranks of mixing partners, uniform over each query's pool with replacement, and coefficients from U(span)."""
        return draw(self.size, count, partners, span, self.similarity.dtype, generator)


def hardest_columns(
    similarity: Float[Tensor, "B K"], kept: Bool[Tensor, "B K"] | None, count: int
) -> Int64[Tensor, "B count"]:
    """Columns of the ``count`` most similar kept candidates of each query, hardest first, removed ones last.

    Exact in two steps: the ``count`` groups of columns with the largest maxima hold the ``count`` largest entries, so
    only their members are compared. A few rows at a time.

    Args:
        similarity: The table.
        kept: Candidates to choose from. None means all, and that the order does not matter, which saves sorting.
        count: Columns per query, at most K.
    """
    columns = similarity.shape[1]
    grouped = columns - columns % GROUP
    offsets = torch.arange(0, grouped, max(1, grouped // GROUP), device=similarity.device)
    rest = torch.arange(grouped, columns, device=similarity.device)
    ordered = kept is not None
    found = []
    for part in row_parts(similarity, columns, 4):
        ranked = similarity[part] if kept is None else similarity[part].masked_fill(~kept[part], -torch.inf)
        if grouped // GROUP <= 2 * count:  # too few groups for two steps to gain anything
            found.append(ranked.topk(count, dim=1, sorted=ordered).indices)
            continue
        maxima = ranked[:, :grouped].unflatten(1, (GROUP, -1)).amax(dim=1)  # group g holds columns g, g + K/8, ...
        groups = maxima.topk(count, dim=1, sorted=False).indices
        members = torch.cat([(groups[:, None] + offsets[:, None]).flatten(1), rest.expand(len(ranked), -1)], dim=1)
        found.append(members.gather(1, ranked.gather(1, members).topk(count, dim=1, sorted=ordered).indices))
    return torch.cat(found) if found else torch.empty(0, count, dtype=torch.long, device=similarity.device)


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
    for part in row_parts(first, first.shape[1] * keys.shape[-1]):
        place = torch.stack([_flat(keys, part, column[part]) for column in (first, second)], dim=-1)
        share = torch.stack([a[part], 1 - a[part]], dim=-1)
        mixes = _weighted_sums(keys, place.flatten(0, 1), share.flatten(0, 1))
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
    """Entries of the table with gradient to the query only, as a weighted sum of keys.

    A gather from the table would give the same and fill a second (B, K) table for it, and reach keys that are trained.
    """

    @staticmethod
    def forward(ctx, query, keys, table, column):
        ctx.save_for_backward(keys, column)
        return table.gather(1, column)

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
    return F.embedding_bag(place, keys.flatten(0, -2), per_sample_weights=weight.to(keys.dtype), mode="sum")


def _flat(keys: Tensor, part: slice, column: Tensor) -> Tensor:
    """Columns of some rows as places in one list of all rows' keys."""
    if keys.ndim == 2:
        return column
    return column + keys.shape[1] * torch.arange(part.start, part.stop, device=keys.device)[:, None]
