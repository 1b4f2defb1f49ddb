"""One remembered key per image, and how candidates taken from it enter the table."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from contrastneg.checks import check_kinds, check_range
from contrastneg.negatives.core import Clock, Facts, Negatives
from contrastneg.schedules import Schedule, value

Combine = Literal["append", "replace"]


@dataclass(frozen=True)
class Bank:
    """How the key of each image is remembered."""

    momentum: float | Schedule = 0.5
    """Share of the old row kept when an image is met again, in [0, 1): 0 keeps the latest key. A number or a schedule."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Storage of the keys; bfloat16 halves the memory and rounds each number to 8 bits."""
    fill: bool = False
    """Fill all rows before the first step by a pass over the images; otherwise a row is filled when its image is met."""

    def __post_init__(self) -> None:
        check_kinds(self)
        check_range(self, "momentum", least=0, below=1)


class KeyBank(nn.Module):
    r"""A row for each image: its key, mixed with the earlier ones of that image (InstDisc, arXiv:1805.01978).

    .. math:: v_i \leftarrow \frac{m v_i + (1 - m) k_i}{\|m v_i + (1 - m) k_i\|}, \qquad v_i \leftarrow k_i \text{ at first}

    Rows are by stable image index, so they are the same on every rank that is given the same keys. T rows of width D
    take 4 T D bytes, half in bfloat16, and 5 T bytes more for what is filled: 660 MB or 335 MB for the 1.28 million
    images of ImageNet at D = 128, on the device of the run and in its checkpoint. Every stage with a bank has its own.

    Buffers:
        keys: (T, D) rows.
        filled: (T,) which of them have been written.
        order: (T,) the filled rows in the order in which they were first written, -1 after them.
    """

    keys: Tensor
    filled: Tensor
    order: Tensor

    def __init__(self, settings: Bank) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("keys", torch.zeros(0, 0, dtype=getattr(torch, settings.dtype)))
        self.register_buffer("filled", torch.zeros(0, dtype=torch.bool))
        self.register_buffer("order", torch.zeros(0, dtype=torch.int32))
        self._count = 0  # the same for the host, so that drawing need not wait for the device; writing does

    def __len__(self) -> int:
        """Rows filled so far."""
        return self._count

    def begin(self, facts: Facts) -> None:
        """Make an empty row for each image."""
        device = self.keys.device
        self.keys = torch.zeros(facts.images, facts.dim, dtype=self.keys.dtype, device=device)
        self.filled = torch.zeros(facts.images, dtype=torch.bool, device=device)
        self.order = torch.full((facts.images,), -1, dtype=torch.int32, device=device)
        self._count = 0

    @torch.no_grad()
    def write(self, keys: Float[Tensor, "B D"], image_id: Int64[Tensor, " B"], clock: Clock) -> None:
        """Mix keys into the rows of their images; of several keys of one image the last counts.

        Args:
            keys: Unit-norm keys.
            image_id: Their images.
            clock: Where the run stands.
        """
        ids, row = distinct(image_id)
        new, share = keys[row].float(), value(self.settings.momentum, clock.progress)
        old, known = self.keys[ids].float(), self.filled[ids]
        mixed = F.normalize(share * old + (1 - share) * new, dim=1)
        self.keys[ids] = torch.where(known[:, None], mixed, new).to(self.keys.dtype)
        self._note(ids[~known])

    @torch.no_grad()
    def fill(self, embeddings: Float[Tensor, "T D"]) -> None:
        """Overwrite the rows of all images that have an embedding (the others are NaN)."""
        ids = (~embeddings.isnan().any(dim=1)).nonzero()[:, 0]
        self.keys[ids.to(self.keys.device)] = embeddings[ids].to(self.keys)
        ids = ids.to(self.keys.device)
        self._note(ids[~self.filled[ids]])

    def fill_once(self, embeddings: Callable[[], Float[Tensor, "T D"]]) -> None:
        """Fill all rows before the first is written, if the settings ask for it."""
        if self.settings.fill and self._count == 0:
            self.fill(embeddings())

    def _note(self, fresh: Int64[Tensor, " n"]) -> None:
        self.filled[fresh] = True
        self.order[self._count : self._count + len(fresh)] = fresh.int()
        self._count += len(fresh)

    def rows(self, ids: Int64[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        """Copies of rows; row 0 for an id of -1."""
        return self.keys[ids.clamp(min=0)]

    def known(self, ids: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
        """The ids, with -1 in place of those whose row is not filled."""
        return torch.where(self.filled[ids.clamp(min=0)], ids, -1)

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Int64[Tensor, "*shape"]:
        """Images drawn uniformly, with replacement, from those with a filled row; -1 while there is none.

        Args:
            shape: How many.
            generator: On any device.
        """
        if self._count == 0:
            return torch.full(shape, -1, device=self.keys.device)
        place = torch.randint(self._count, shape, generator=generator, device=generator.device)
        return self.order[place.to(self.keys.device)].long()

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        saved = state_dict.get(prefix + "keys")
        if saved is not None and saved.shape != self.keys.shape:
            self.begin(Facts(*saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._count = int(self.filled.sum())


def distinct(image_id: Int64[Tensor, " B"]) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]:
    """The different images in ascending order, and where each was given last."""
    ids, which = image_id.unique(return_inverse=True)
    place = torch.arange(len(image_id), device=image_id.device)
    return ids, torch.zeros_like(ids).scatter_reduce_(0, which, place, "amax", include_self=False)


def same_on_all_ranks(clock: Clock, purpose: str) -> torch.Generator:
    """A CPU generator for what a stage remembers: all ranks draw the same numbers."""
    return replace(clock, rank=0).generator(purpose)


def without_repeats(ids: Int64[Tensor, "B M"], own: Int64[Tensor, " B"] | None = None) -> Int64[Tensor, "B M"]:
    """The ids with -1 in place of each one that stands further left in its row already, and of the row's own."""
    ordered, place = ids.sort(dim=1, stable=True)
    repeat = torch.zeros_like(ids, dtype=torch.bool)
    repeat[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    gone = torch.zeros_like(repeat).scatter_(1, place, repeat)
    if own is not None:
        gone |= ids == own[:, None]
    return ids.masked_fill(gone, -1)


def largest(
    score: Float[Tensor, "B M"], ids: Int64[Tensor, "B M"], count: int
) -> tuple[Int64[Tensor, "B count"], Int64[Tensor, "B count"]]:
    """The ids of the ``count`` largest scores of each row, largest first, -1 where the row has fewer; and their columns.

    Args:
        score: -inf is never taken.
        ids: -1 is never taken.
        count: At least 1; may exceed the number of columns.
    """
    ranked = score.masked_fill(ids < 0, -torch.inf)
    missing = max(0, count - ranked.shape[1])
    best, column = F.pad(ranked, (0, missing), value=-torch.inf).topk(count, dim=1)
    column = column.clamp(max=max(0, score.shape[1] - 1))
    if score.shape[1] == 0:
        return ids.new_full((len(ids), count), -1), column
    return ids.gather(1, column).masked_fill(best == -torch.inf, -1), column


@torch.no_grad()
def similarity_to(memory: KeyBank, query: Float[Tensor, "B D"], ids: Int64[Tensor, "B M"]) -> Float[Tensor, "B M"]:
    """Cosine of each query and its own rows of the memory, in float32 at least."""
    wide = query.to(torch.promote_types(query.dtype, torch.float32))
    with torch.autocast(query.device.type, enabled=False):
        return (memory.rows(ids).to(wide) @ wide[:, :, None]).squeeze(2)


def filled_up(
    negatives: Negatives, bank: KeyBank, ids: Int64[Tensor, "B M"], combine: Combine, generator: torch.Generator
) -> tuple[Int64[Tensor, "B M"], Bool[Tensor, " B"]]:
    """Candidates of each query that are usable; with "replace", a query without any gets M uniform draws instead.

    Args:
        negatives: The queries.
        bank: Candidates whose row is not filled are not usable, nor are repeats and the query's own image.
        ids: Candidates; -1 is none.
        combine: With "append" a query without candidates goes on with those of the table.
        generator: For the draws.

    Returns:
        The candidates, -1 where there is none, and which queries got uniform draws.
    """
    own = negatives.query_id
    ids = without_repeats(bank.known(ids), own)
    empty = (ids < 0).all(dim=1)
    if combine == "append" or ids.shape[1] == 0:
        return ids, torch.zeros_like(empty)
    drawn = without_repeats(bank.draw(tuple(ids.shape), generator), own)
    return torch.where(empty[:, None], drawn, ids), empty


def joined(
    negatives: Negatives,
    bank: KeyBank,
    ids: Int64[Tensor, "B M"],
    combine: Combine,
    log_weight: Float[Tensor, "B M"] | None = None,
    log_prob: Float[Tensor, "B M"] | None = None,
) -> Negatives:
    """The table with candidates per query from the bank.

    Args:
        negatives: The table so far.
        bank: Holds the candidates' keys.
        ids: Candidates of each query, no image twice in a row; -1 is none.
        combine: "replace" makes them the table, with keys (B, M, D). "append" adds them; where the keys of the table are
            shared, all queries' candidates become shared columns that are removed for the queries they are not meant for.
        log_weight: Logarithm of each candidate's weight; None means 0.
        log_prob: Logarithm of the probability with which each was drawn, if known.
    """
    query, positive, own = negatives.query, negatives.positive, negatives.query_id
    weight = (torch.zeros_like(ids, dtype=query.dtype) if log_weight is None else log_weight).to(query.dtype)
    weight = weight.masked_fill(ids < 0, -torch.inf)
    if combine == "append" and negatives.keys.ndim == 2:
        columns, place = ids.unique(return_inverse=True)  # ascending: -1, if any, comes first
        spread = weight.new_full((len(ids), len(columns)), -torch.inf)
        weight = spread.clone().scatter_(1, place, weight)  # several -1 of a row all write -inf
        if log_prob is not None:
            log_prob = spread.scatter_(1, place, log_prob.to(weight).masked_fill(ids < 0, -torch.inf))
        ids = columns
    new = Negatives.of(query, positive, bank.rows(ids), query_id=own, key_id=ids)
    new = replace(new, log_weight=new.log_weight + weight.to(new.log_weight), log_prob=log_prob)
    return new if combine == "replace" else appended_keys(negatives, new)


def appended_keys(negatives: Negatives, new: Negatives) -> Negatives:
    """The candidates of both tables, keys before synthetic columns.

    The law of candidates is known where either table knows it; NaN elsewhere.
    """
    n, queries = negatives.n_keys, len(negatives.query)
    keys, more = negatives.keys, new.keys
    if keys.ndim != more.ndim:  # shared beside per query
        keys, more = (k if k.ndim == 3 else k.expand(queries, -1, -1) for k in (keys, more))
    dtype = torch.promote_types(keys.dtype, more.dtype)
    key_id, more_id = negatives.key_id, new.key_id
    if key_id.ndim != more_id.ndim:
        key_id, more_id = (i if i.ndim == 2 else i.expand(queries, -1) for i in (key_id, more_id))
    log_prob = None
    if negatives.log_prob is not None or new.log_prob is not None:
        old_law, new_law = (
            torch.full_like(table.similarity, torch.nan).detach() if table.log_prob is None else table.log_prob
            for table in (negatives, new)
        )
        log_prob = _between(old_law, new_law, n)
    return replace(
        negatives,
        keys=torch.cat([keys.to(dtype), more.to(dtype)], dim=-2),
        similarity=_between(negatives.similarity, new.similarity, n),
        log_weight=_between(negatives.log_weight, new.log_weight, n),
        key_id=_between(key_id, more_id, n),
        log_prob=log_prob,
    )


def _between(table: Tensor, new: Tensor, n_keys: int) -> Tensor:
    return torch.cat([table[..., :n_keys], new.to(table.dtype), table[..., n_keys:]], dim=-1)
