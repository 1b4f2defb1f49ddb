"""Stages that make candidates which no image gave."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from contrastneg.negatives.core import Clock, Negatives, Stage
from contrastneg.schedules import Schedule, value

CHUNK = 1 << 20  # numbers gathered or compared at once: 4 MiB in float32, so that they stay in the cache
GROUP = 8  # columns that share one maximum in the search for the hardest


@dataclass(frozen=True)
class MoCHi(Stage):
    r"""Append mixes of each query's hardest candidates (arXiv:2010.01028).

    With x, y drawn from the ``pool`` candidates most similar to the query q, with replacement,

    .. math::
        h = \frac{a x + (1 - a) y}{\|a x + (1 - a) y\|}, \quad a \sim U(0, 1) \qquad
        h' = \frac{b q + (1 - b) x}{\|b q + (1 - b) x\|}, \quad b \sim U(0, 1/2)

    Mixes are constants, the q inside h' too: the gradient reaches the query through the similarity alone. They live for
    one step, count once each and are never queued. Removed candidates are not in the pool; a query with fewer than
    ``pool`` candidates mixes those it has, and one without any gets no mixes. Similarities come from closed forms, so
    the mixes themselves are never made.
    """

    kind: ClassVar[str] = "synthesize"
    breaks: ClassVar[frozenset[str]] = frozenset({"iid", "log_prob"})

    pool: int | Schedule = 1024
    """Candidates, hardest first, that mixes are made of (N in the paper). A number or a schedule."""
    pair_mixes: int | Schedule = 1024
    """Mixes of two candidates per query (s). A number or a schedule."""
    query_mixes: int | Schedule = 128
    """Mixes of the query and a candidate per query (s'). A number or a schedule."""
    warmup_epochs: float = 10.0
    """Epochs without mixes."""

    def __post_init__(self) -> None:
        if isinstance(self.pool, int) and self.pool < 1:
            raise ValueError(f"MoCHi.pool is {self.pool}: mix at least 1 candidate")
        for name in ("pair_mixes", "query_mixes", "warmup_epochs"):
            number = getattr(self, name)
            if not isinstance(number, Schedule) and number < 0:
                raise ValueError(f"MoCHi.{name} is {number}: give 0 or more")

    def __call__(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with ``pair_mixes + query_mixes`` columns more."""
        pairs, singles = (max(0, round(value(n, clock.progress))) for n in (self.pair_mixes, self.query_mixes))
        if clock.epoch < self.warmup_epochs or negatives.n_keys == 0 or pairs + singles == 0:
            return negatives
        query, keys = negatives.query, negatives.keys.detach()
        pool = min(max(1, round(value(self.pool, clock.progress))), negatives.n_keys)
        table, kept = negatives.similarity[:, : negatives.n_keys].detach(), negatives.kept[:, : negatives.n_keys]
        hardest = hardest_columns(table, kept, pool)  # (B, N)
        size = kept.sum(dim=1).clamp(max=pool)  # candidates in each query's pool
        similarity = _OfColumns.apply(query, keys, table, hardest)  # (B, N)

        draws = clock.generator("MoCHi", table.device)
        (x, y), a = draw(size, pairs, 2, 1.0, similarity.dtype, draws)
        product = pair_products(keys, hardest.gather(1, x), hardest.gather(1, y))
        of_pairs = pair_similarity(similarity.gather(1, x), similarity.gather(1, y), product.to(a.dtype), a)
        (x,), b = draw(size, singles, 1, 0.5, similarity.dtype, draws)
        of_singles = query_similarity(query, similarity.gather(1, x), b)
        return negatives.appended(torch.cat([of_pairs, of_singles], dim=1), kept=(size > 0)[:, None])


def hardest_columns(
    similarity: Float[Tensor, "B K"], kept: Bool[Tensor, "B K"], count: int
) -> Int64[Tensor, "B count"]:
    """Columns of the ``count`` most similar kept candidates of each query, hardest first, removed ones last.

    Exact in two steps: the ``count`` groups of columns with the largest maxima hold the ``count`` largest entries, so
    only their members are sorted. A few rows at a time.
    """
    columns = similarity.shape[1]
    grouped = columns - columns % GROUP
    offsets = torch.arange(0, grouped, max(1, grouped // GROUP), device=similarity.device)
    rest = torch.arange(grouped, columns, device=similarity.device)
    found = []
    for part in _row_parts(len(similarity), columns):
        ranked = similarity[part].masked_fill(~kept[part], -torch.inf)
        if grouped // GROUP <= 2 * count:  # too few groups for two steps to gain anything
            found.append(ranked.topk(count, dim=1).indices)
            continue
        maxima = ranked[:, :grouped].unflatten(1, (GROUP, -1)).amax(dim=1)  # group g holds columns g, g + K/8, ...
        groups = maxima.topk(count, dim=1, sorted=False).indices
        members = torch.cat([(groups[:, None] + offsets[:, None]).flatten(1), rest.expand(len(ranked), -1)], dim=1)
        found.append(members.gather(1, ranked.gather(1, members).topk(count, dim=1).indices))
    return torch.cat(found) if found else torch.empty(0, count, dtype=torch.long, device=similarity.device)


def draw(
    size: Int64[Tensor, " B"],
    count: int,
    partners: int,
    largest: float,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> tuple[Int64[Tensor, "partners B count"], Float[Tensor, "B count"]]:
    """Ranks of mixing partners, uniform over each query's pool with replacement, and coefficients from U(0, largest)."""
    rows, device = len(size), size.device
    place = torch.rand(partners, rows, count, generator=generator, device=device)
    last = (size - 1).clamp(min=0)[:, None]
    rank = torch.minimum((place * size[:, None]).long(), last)  # rounding may reach the size itself
    return rank, largest * torch.rand(rows, count, generator=generator, device=device).to(dtype)


def pair_similarity(
    x: Float[Tensor, "B s"], y: Float[Tensor, "B s"], product: Float[Tensor, "B s"], a: Float[Tensor, "B s"]
) -> Float[Tensor, "B s"]:
    r"""Cosine of the query with mixes of two keys.

    .. math:: (a s_x + (1 - a) s_y) / \sqrt{a^2 + (1 - a)^2 + 2 a (1 - a) x \cdot y}

    Args:
        x: Cosine of the query with the one key.
        y: Cosine of the query with the other.
        product: Dot product of the two keys.
        a: Share of the one key.
    """
    norm = (a**2 + (1 - a) ** 2 + 2 * a * (1 - a) * product).sqrt()
    return (a * x + (1 - a) * y) / norm.clamp(min=1e-12)


def query_similarity(
    query: Float[Tensor, "B D"], x: Float[Tensor, "B s"], b: Float[Tensor, "B s"]
) -> Float[Tensor, "B s"]:
    r"""Cosine of the query with mixes of itself, held constant, and a key.

    .. math:: (b + (1 - b) s_x) / \sqrt{b^2 + (1 - b)^2 + 2 b (1 - b) s_x}

    Args:
        query: Unit-norm queries.
        x: Cosine of the query with the key.
        b: Share of the query.
    """
    norm = (b**2 + (1 - b) ** 2 + 2 * b * (1 - b) * x.detach()).sqrt()
    itself = (query * query.detach()).sum(dim=1, keepdim=True)  # 1, with the query as its gradient
    return (b * itself + (1 - b) * x) / norm.clamp(min=1e-12)


@torch.no_grad()
def pair_products(
    keys: Float[Tensor, "*per_query K D"], first: Int64[Tensor, "B s"], second: Int64[Tensor, "B s"]
) -> Float[Tensor, "B s"]:
    """Dot products of the keys in two columns of each row, in float32 at least."""
    products = torch.empty(first.shape, dtype=torch.promote_types(keys.dtype, torch.float32), device=keys.device)
    for part in _row_parts(len(first), first.shape[1] * keys.shape[-1]):
        products[part] = torch.linalg.vecdot(_gathered(keys, part, first), _gathered(keys, part, second))
    return products


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
        for_query = grad.new_empty(len(grad), keys.shape[-1])
        for part in _row_parts(len(grad), column.shape[1] * keys.shape[-1]):
            chosen = _gathered(keys, part, column).to(grad.dtype)
            for_query[part] = (grad[part, None] @ chosen).squeeze(1)
        return for_query, None, None, None


def _gathered(keys: Tensor, part: slice, column: Tensor) -> Tensor:
    """Keys in some rows' columns, (rows, s, D); ``index_select`` is three times as fast as indexing on a CPU."""
    column = column[part]
    if keys.ndim == 3:  # per query: lay all rows' keys in one list
        column = column + keys.shape[1] * torch.arange(part.start, part.stop, device=keys.device)[:, None]
    rows = keys.flatten(0, -2).index_select(0, column.flatten()).unflatten(0, column.shape)
    return rows.to(torch.promote_types(keys.dtype, torch.float32))  # keys may be kept in bfloat16


def _row_parts(rows: int, numbers_per_row: int) -> Iterator[slice]:
    """The rows in parts of about ``CHUNK`` numbers, at least one row each."""
    step = max(1, CHUNK // max(1, numbers_per_row))
    return (slice(start, min(rows, start + step)) for start in range(0, rows, step))
