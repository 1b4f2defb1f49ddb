"""What the metadata of two images says about their being negatives of each other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from contrastneg.checks import WrongSetting, check_kinds, check_range
from contrastneg.negatives.core import Clock, Facts, Negatives, StageWithState, of_image
from contrastneg.negatives.groups import column_of, group_codes
from contrastneg.schedules import Schedule, value

ROUNDING = 1e-6  # of a difference of two decimal fractions, which must not decide whether the largest one is near


@dataclass(frozen=True)
class Tier:
    """One relation of query and candidate, and what is done with candidates that stand in it."""

    column: str
    """Column in which both have the same value. -1, NaN, None and False match nothing."""
    action: Literal["remove", "attract", "weigh"] = "remove"
    """Remove the candidate, attract it as a further positive, or multiply its weight."""
    weight: float | Schedule = 1.0
    """What "weigh" multiplies by, at least 0; 1 keeps the candidate from later tiers. A number or a schedule."""
    refers: Literal["group", "image"] = "group"
    """What the column holds: a group, or the index of another image (the one that this one repeats)."""
    time: str | None = None
    """Column of numbers in which both must be near, for instance a time; None asks for nothing."""
    within: float = math.inf
    """Largest difference in ``time`` that is near, itself included, at least 0."""

    def __post_init__(self) -> None:
        check_kinds(self)
        check_range(self, "weight", least=0)
        if not self.within >= 0:  # infinite within is no condition
            raise WrongSetting(self, "within", f"is {self.within:g}: give a number of at least 0")
        if self.within < math.inf and self.time is None:
            raise WrongSetting(
                self, "within", f"is {self.within:g} but time names no column: name one, or leave within out"
            )


@dataclass(eq=False)
class MetadataTiers(StageWithState):
    """Remove, attract or reweight candidates by what metadata says of them and the query; the first tier that fits counts.

    Near and exact duplicates are a tier with ``refers: image`` (or a column of groups) that removes; frames of one video
    a tier with ``time``; images of one place, which share the background, a tier that weighs more. Survey section 2.5
    (additional data: SamWalker, MF-BPR and others, which know users, items and their ties). Verdict: analogy: columns of
    images stand for relations of users and items, and the weights are free. The draw of negatives from a relation with
    a fixed probability, and the loss of three tiers in pairs, are not here.
    """

    kind: ClassVar[str] = "eliminate"
    whole_groups: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"id"})
    breaks: ClassVar[frozenset[str]] = frozenset({"iid"})
    group: Tensor = field(init=False, repr=False)
    moment: Tensor = field(init=False, repr=False)

    tiers: list[Tier]
    """Relations in order, at least one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tiers:
            raise WrongSetting(self, "tiers", "is empty: give at least one, or leave the stage out")
        # Facts, not state: told again at the start of a resumed run.
        self.register_buffer("group", torch.zeros(len(self.tiers), 0, dtype=torch.long), persistent=False)
        self.register_buffer("moment", torch.zeros(len(self.tiers), 2, 0), persistent=False)

    @property
    def attracts(self) -> bool:
        """Whether it marks further positives."""
        return any(tier.action == "attract" for tier in self.tiers)

    def begin(self, facts: Facts) -> None:
        """Take the columns.

        Raises:
            ValueError: A column is missing or holds something else than its tier says.
        """
        group, moment = [], []
        for tier in self.tiers:
            column = column_of(facts, tier, "column")
            group.append(connected(_named(column, tier)) if tier.refers == "image" else group_codes(column))
            nowhen = torch.zeros(facts.images, dtype=torch.double)
            moment.append(nowhen if tier.time is None else _numbers(column_of(facts, tier, "time"), tier))
        self.group = torch.stack(group).to(self.group.device)
        self.moment = in_two_parts(torch.stack(moment)).to(self.moment.device)

    def forward(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with each tier's action on the candidates that it fits first."""
        settled = torch.zeros_like(negatives.kept)
        for tier, group, moment in zip(self.tiers, self.group, self.moment, strict=True):
            own = of_image(group, negatives.query_id, -1)[:, None]
            fits = (own == of_image(group, negatives.key_id, -1)) & (own >= 0) & ~settled
            if tier.time is not None:
                fits &= apart(moment, negatives) <= tier.within * (1 + ROUNDING)  # not with NaN
            settled |= fits
            weight = value(tier.weight, clock.progress)
            if tier.action == "attract":
                negatives = negatives.attracting(fits)
            elif tier.action == "remove" or weight == 0:
                negatives = negatives.removed(fits)
            else:
                negatives = replace(negatives, log_weight=negatives.log_weight + math.log(weight) * fits)
        return negatives


def in_two_parts(number: Float64[Tensor, "tiers T"]) -> Float32[Tensor, "tiers 2 T"]:
    """Numbers as the sum of two of float32, where seconds since 1970 keep their fractions: not every device has float64."""
    most = number.float()
    return torch.stack([most, (number - most.double()).float()], dim=1)


def apart(moment: Float32[Tensor, "2 T"], negatives: Negatives) -> Float32[Tensor, "B M"]:
    """Difference of each query's and each candidate's number, NaN where one is missing."""
    most, rest = (
        of_image(part, negatives.query_id, math.nan)[:, None] - of_image(part, negatives.key_id, math.nan)
        for part in moment
    )
    return (most + rest).abs()


def connected(other: Int64[Tensor, " T"]) -> Int64[Tensor, " T"]:
    """The group of each image where images name one other that they belong to: the least index in it.

    Args:
        other: Index that each image names, -1 for none. Images that are not in the set may be named: those that name the
            same one belong together.
    """
    own = torch.arange(len(other), device=other.device)
    nodes, place = torch.cat([own, torch.where(other >= 0, other, own)]).unique(return_inverse=True)
    group = torch.arange(len(nodes), device=other.device)  # the images first, then others that are named
    named = group.clone()
    named[: len(own)] = place[len(own) :]
    while True:
        least = torch.minimum(group, group[named])
        least = least.scatter_reduce(0, named, least, "amin")
        if torch.equal(least, group):
            return group[: len(own)]
        group = least


def _named(column: Tensor | Sequence[Any], tier: Tier) -> Int64[Tensor, " T"]:
    entries = column.tolist() if isinstance(column, Tensor) else column
    named = [-1 if entry is None else entry for entry in entries]
    wrong = [entry for entry in named if type(entry) is not int]
    if wrong:
        raise WrongSetting(tier, "column", f"names {tier.column}, which holds {wrong[0]!r}: name a column of indices")
    return torch.tensor(named, dtype=torch.long)


def _numbers(column: Tensor | Sequence[Any], tier: Tier) -> Float64[Tensor, " T"]:
    if isinstance(column, Tensor):
        return column.double()
    numbers = [math.nan if entry is None else entry for entry in column]
    wrong = [entry for entry in numbers if not isinstance(entry, (int, float))]
    if wrong:
        raise WrongSetting(tier, "time", f"names {tier.time}, which holds {wrong[0]!r}: name a column of numbers")
    return torch.tensor(numbers, dtype=torch.double)
