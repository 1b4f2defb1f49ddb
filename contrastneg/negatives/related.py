"""Stages that prefer candidates related to the query by metadata, for instance those taken at the same place.

Candidates from other places can be told apart by their background alone; those from the same place cannot. Measure the
false negatives among related candidates (``STAGE/same_class``) before trusting them: a relation close to the class, such
as a coarse category, raises their share and wants an eliminating stage before it.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from scipy.special import gammaln, xlog1py, xlogy
from torch import Tensor

from contrastneg.checks import check_range
from contrastneg.negatives.core import Clock, Facts, Negatives, StageWithState, count_at
from contrastneg.negatives.groups import column_of, group_codes
from contrastneg.negatives.hard import ranks_between
from contrastneg.negatives.select import Mass, keep_only, scaling
from contrastneg.negatives.weight import tilted
from contrastneg.schedules import Schedule, value


@dataclass(eq=False)
class Related(StageWithState):
    """What both stages know: the group of each image in one or two columns."""

    needs: ClassVar[frozenset[str]] = frozenset({"id"})
    breaks: ClassVar[frozenset[str]] = frozenset({"iid"})
    group: Tensor = field(init=False, repr=False)
    other: Tensor = field(init=False, repr=False)

    column: str = "location"
    """Metadata column in which related images agree."""
    differs_in: str | None = None
    """Column in which they must differ, for instance "sequence" for the same place at another time; none asks nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("group", "other"):  # from the data in every run, so not in the checkpoint
            self.register_buffer(name, torch.zeros(0, dtype=torch.long), persistent=False)

    def begin(self, facts: Facts) -> None:
        """Number the values of the columns.

        Raises:
            ValueError: There is no such column.
        """
        device = self.group.device
        self.group = group_codes(column_of(facts, self, "column")).to(device)
        if self.differs_in is not None:
            self.other = group_codes(column_of(facts, self, "differs_in")).to(device)

    def related(self, negatives: Negatives) -> Bool[Tensor, "B M"]:
        """The candidates related to each query; a missing value is related to nothing."""
        query, key = _codes(self.group, negatives)
        found = (query == key) & (query >= 0)
        if self.differs_in is not None:
            query, key = _codes(self.other, negatives)
            found = found & (query != key) & (query >= 0) & (key >= 0)
        return found


@dataclass(eq=False)
class RelatedSubset(Related):
    r"""Draw some candidates from those related to the query and the rest from all (DGCN, WWW 2021).

    Each of ``count`` places is, with probability beta, filled from the related candidates while there are any left, else
    from all that are not yet drawn. The official code draws with replacement, for items of the positive's category: an
    analogy.
    """

    kind: ClassVar[str] = "select"
    gives: ClassVar[frozenset[str]] = frozenset({"log_prob"})
    of_candidates: ClassVar[tuple[str, ...]] = ("count",)

    count: int | Schedule = 256
    """Candidates kept per query, at least 1; rows with fewer keep them all. A number or a schedule."""
    beta: float | Schedule = 0.25
    """Probability of a place for related candidates, from 0 to 1; 0.5 in the official code. A number or a schedule."""
    mass: Mass = "preserve"
    """Whether the kept candidates take over the weight of the dropped ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "count", least=1)
        check_range(self, "beta", least=0, most=1)
        object.__setattr__(self, "breaks", self.breaks | scaling(self.mass))

    def forward(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with at most ``count`` candidates kept per query."""
        kept, like = negatives.kept, negatives.similarity
        count = min(count_at(self.count, clock), kept.shape[1])
        beta = min(1.0, max(0.0, value(self.beta, clock.progress)))
        near = self.related(negatives) & kept
        draws = clock.generator("RelatedSubset", like.device)

        def noise(columns: int) -> Float[Tensor, "B columns"]:
            return torch.rand(len(kept), columns, generator=draws, device=like.device, dtype=like.dtype)

        n_near, n_all = near.sum(dim=1), kept.sum(dim=1)
        places = (noise(count) < beta).sum(dim=1)
        of_near = torch.minimum(places, n_near)
        none = torch.zeros_like(of_near)
        chosen = ranks_between(noise(kept.shape[1]), near, none, of_near, count)
        rest = ranks_between(noise(kept.shape[1]), kept & ~chosen, none, count - of_near, count)
        log_prob = mixture_law(near, n_near, n_all, count, beta, like.dtype)
        return keep_only(negatives, chosen | rest, self.mass, log_prob)


@dataclass(eq=False)
class RelatedWeight(Related):
    """Let candidates related to the query count more (geography in recommendation; an analogy, the factor is ours)."""

    kind: ClassVar[str] = "weight"
    whole_groups: ClassVar[bool] = True

    factor: float | Schedule = 2.0
    """What the weight of related candidates is multiplied by, above 0. A number or a schedule."""
    mass: Mass = "preserve"
    """Keep each row's total weight, or multiply and leave the others alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "factor", above=0)
        object.__setattr__(self, "breaks", self.breaks | scaling(self.mass))

    def forward(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with other weights."""
        near = self.related(negatives).to(negatives.similarity.dtype)
        return tilted(negatives, near * near.new_tensor(value(self.factor, clock.progress)).log(), mass=self.mass)


def mixture_law(
    near: Bool[Tensor, "B M"],
    n_near: Int64[Tensor, " B"],
    n_all: Int64[Tensor, " B"],
    count: int,
    beta: float,
    dtype: torch.dtype,
) -> Float[Tensor, "B M"]:
    r"""Logarithm of the probability with which RelatedSubset keeps each candidate.

    With m of the places for related candidates, a = min(m, R) are drawn from the R related ones and M - a from the K - a
    others of all; then :math:`a/R + (1 - a/R) (M - a)/(K - a)` for a related candidate, :math:`(M - a)/(K - a)` for
    another, and m is binomial.

    Args:
        near: The related candidates.
        n_near: R of each row.
        n_all: K of each row.
        count: M.
        beta: Probability of a place for related candidates.
        dtype: Of the result.
    """
    places = np.arange(count + 1)
    # The logarithms of factorials cancel, which takes float64: on the host, for not every device has it.
    ways = gammaln(count + 1) - gammaln(places + 1) - gammaln(count - places + 1)
    chance = np.exp(ways + xlogy(places, beta) + xlog1py(count - places, -beta))
    m, chance = (torch.from_numpy(numbers).to(dtype).to(near.device) for numbers in (places, chance))
    r, k = n_near[:, None].to(dtype), n_all[:, None].to(dtype)
    a = torch.minimum(m, r)  # (B, count + 1)
    later = ((count - a) / (k - a).clamp(min=1)).clamp(0, 1)
    first = a / r.clamp(min=1)
    of_near = ((first + (1 - first) * later) * chance).sum(dim=1, keepdim=True)
    of_others = (later * chance).sum(dim=1, keepdim=True)
    return torch.where(near, of_near, of_others).clamp(max=1).log()


def _codes(table: Int64[Tensor, " T"], negatives: Negatives) -> tuple[Tensor, Tensor]:
    """The group of each query, (B, 1), and of each candidate, (M,) or (B, M); -1 without one."""
    key = table[negatives.key_id.clamp(min=0)].masked_fill(negatives.key_id < 0, -1)
    return table[negatives.query_id.clamp(min=0)].masked_fill(negatives.query_id < 0, -1)[:, None], key
