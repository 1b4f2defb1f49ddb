"""Stages that make candidates which no image gave."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from contrastneg.negatives.core import Clock, Negatives, Stage

PAIR_FLOATS = 1 << 21  # numbers gathered at once for pair products: 8 MiB in float32


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

    pool: int = 1024
    """Candidates, hardest first, that mixes are made of (N in the paper)."""
    pair_mixes: int = 1024
    """Mixes of two candidates per query (s)."""
    query_mixes: int = 128
    """Mixes of the query and a candidate per query (s')."""
    warmup_epochs: float = 10.0
    """Epochs without mixes."""

    def __post_init__(self) -> None:
        if self.pool < 1:
            raise ValueError(f"MoCHi.pool is {self.pool}: mix at least 1 candidate")
        for name in ("pair_mixes", "query_mixes", "warmup_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"MoCHi.{name} is {getattr(self, name)}: give 0 or more")

    def __call__(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with ``pair_mixes + query_mixes`` columns more."""
        if clock.epoch < self.warmup_epochs or negatives.n_keys == 0 or self.pair_mixes + self.query_mixes == 0:
            return negatives
        draws = clock.generator("MoCHi", negatives.similarity.device)
        similarity = constant_key_similarity(negatives)
        kept = negatives.kept[:, : negatives.n_keys]
        hardest = (
            similarity.detach().masked_fill(~kept, -torch.inf).topk(min(self.pool, negatives.n_keys), dim=1).indices
        )
        size = kept.sum(dim=1).clamp(max=hardest.shape[1])  # candidates in each query's pool
        mixes = torch.cat(
            [
                pair_similarity(negatives.keys, similarity, *draw(hardest, size, self.pair_mixes, 2, 1.0, draws)),
                query_similarity(negatives.query, similarity, *draw(hardest, size, self.query_mixes, 1, 0.5, draws)),
            ],
            dim=1,
        )
        grown = negatives.appended(mixes)
        nothing_to_mix = (size == 0)[:, None].expand_as(mixes)
        return grown.removed(torch.cat([torch.zeros_like(negatives.kept), nothing_to_mix], dim=1))


def constant_key_similarity(negatives: Negatives) -> Float[Tensor, "B K"]:
    """Similarity of query and keys with gradient to the query only: that of the table, unless keys are trained, too."""
    if not negatives.keys.requires_grad:
        return negatives.similarity[:, : negatives.n_keys]
    return torch.einsum("bd,...kd->bk", negatives.query, negatives.keys.detach())


def draw(
    hardest: Int64[Tensor, "B N"],
    size: Int64[Tensor, " B"],
    count: int,
    partners: int,
    largest: float,
    generator: torch.Generator,
) -> tuple[Int64[Tensor, "partners B count"], Float[Tensor, "B count"]]:
    """Columns of mixing partners, uniform over each query's pool with replacement, and coefficients from U(0, largest)."""
    rows, device = len(hardest), hardest.device
    place = torch.rand(partners, rows, count, generator=generator, device=device)
    rank = (place * size[:, None]).long().clamp_(max=hardest.shape[1] - 1)
    column = hardest.expand(partners, -1, -1).gather(2, rank)
    return column, largest * torch.rand(rows, count, generator=generator, device=device)


def pair_similarity(
    keys: Float[Tensor, "*per_query K D"],
    similarity: Float[Tensor, "B K"],
    column: Int64[Tensor, "2 B s"],
    a: Float[Tensor, "B s"],
) -> Float[Tensor, "B s"]:
    r"""Cosine of the query with mixes of two keys.

    .. math:: (a s_x + (1 - a) s_y) / \sqrt{a^2 + (1 - a)^2 + 2 a (1 - a) x \cdot y}
    """
    a = a.to(similarity.dtype)
    norm = (a**2 + (1 - a) ** 2 + 2 * a * (1 - a) * pair_products(keys, *column).to(a.dtype)).sqrt()
    x, y = similarity.gather(1, column[0]), similarity.gather(1, column[1])
    return (a * x + (1 - a) * y) / norm.clamp(min=1e-12)


def query_similarity(
    query: Float[Tensor, "B D"],
    similarity: Float[Tensor, "B K"],
    column: Int64[Tensor, "1 B s"],
    b: Float[Tensor, "B s"],
) -> Float[Tensor, "B s"]:
    r"""Cosine of the query with mixes of itself, held constant, and a key.

    .. math:: (b + (1 - b) s_x) / \sqrt{b^2 + (1 - b)^2 + 2 b (1 - b) s_x}
    """
    b = b.to(similarity.dtype)
    x = similarity.gather(1, column[0])
    norm = (b**2 + (1 - b) ** 2 + 2 * b * (1 - b) * x.detach()).sqrt()
    itself = (query * query.detach()).sum(dim=1, keepdim=True)  # 1, with the query as its gradient
    return (b * itself + (1 - b) * x) / norm.clamp(min=1e-12)


@torch.no_grad()
def pair_products(
    keys: Float[Tensor, "*per_query K D"], first: Int64[Tensor, "B s"], second: Int64[Tensor, "B s"]
) -> Float[Tensor, "B s"]:
    """Dot products of the keys in two columns of each row; a few rows at a time, to keep what is gathered in the cache."""
    rows = max(1, PAIR_FLOATS // max(1, first.shape[1] * keys.shape[-1]))
    products = []
    for i in range(0, len(first), rows):
        part = slice(i, i + rows)
        if keys.ndim == 2:
            x, y = keys[first[part]], keys[second[part]]
        else:
            x, y = (keys[part].gather(1, at[part, :, None].expand(-1, -1, keys.shape[-1])) for at in (first, second))
        wide = torch.promote_types(keys.dtype, torch.float32)  # keys may be kept in bfloat16
        products.append((x.to(wide) * y.to(wide)).sum(dim=-1))
    return torch.cat(products)
