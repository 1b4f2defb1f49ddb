"""Stages that keep some candidates and drop the others."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from contrastneg.negatives.core import Clock, Negatives, Stage
from contrastneg.schedules import Schedule, value


@dataclass(frozen=True)
class UniformSubset(Stage):
    """Keep a uniformly drawn subset of each query's candidates (random negative sampling).

    With ``mass`` "preserve" the kept ones weigh (candidates before) / (candidates kept), so that the expected sum in the
    loss stays what it was; "plain" drops without reweighting, as papers that study the number of negatives do.
    """

    kind: ClassVar[str] = "select"
    gives: ClassVar[frozenset[str]] = frozenset({"log_prob"})

    count: int | Schedule = 256
    """Candidates kept per query, at least 1; rows with fewer keep them all. A number or a schedule."""
    mass: Literal["preserve", "plain"] = "preserve"
    """Whether the kept candidates take over the weight of the dropped ones."""

    def __post_init__(self) -> None:
        if isinstance(self.count, int) and self.count < 1:
            raise ValueError(f"UniformSubset.count is {self.count}: keep at least 1 candidate")

    def __call__(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with at most ``count`` candidates kept per query."""
        count = max(1, round(value(self.count, clock.progress)))
        draws = clock.generator("UniformSubset", negatives.similarity.device)
        chosen = gumbel_top(negatives.kept.to(negatives.similarity.dtype).log(), count, draws)
        before = negatives.kept.sum(dim=1, keepdim=True)
        log_share = (before.clamp(1, count) / before.clamp(min=1)).log()  # probability that a candidate is kept
        thinned = negatives.removed(~chosen)
        if self.mass == "preserve":
            thinned = replace(thinned, log_weight=thinned.log_weight - log_share)
        return replace(thinned, log_prob=log_share.expand_as(thinned.log_weight).masked_fill(~chosen, -math.inf))


def gumbel_top(log_law: Float[Tensor, "B M"], count: int, generator: torch.Generator) -> Bool[Tensor, "B M"]:
    """Draw without replacement from a law per row: the ``count`` largest of log-probability plus Gumbel noise.

    Args:
        log_law: Logarithm of the law, up to a constant per row; -inf is never drawn.
        count: Draws per row.
        generator: On the device of ``log_law``.

    Returns:
        The drawn entries; all that can be drawn, in rows with fewer than ``count`` of them.
    """
    uniform = torch.rand(log_law.shape, generator=generator, device=log_law.device, dtype=log_law.dtype)
    noise = -torch.log(-torch.log(uniform.clamp(torch.finfo(uniform.dtype).tiny, 1 - torch.finfo(uniform.dtype).eps)))
    top = (log_law + noise).topk(min(count, log_law.shape[1]), dim=1).indices
    drawn = torch.zeros_like(log_law, dtype=torch.bool).scatter_(1, top, True)
    return drawn & (log_law > -torch.inf)
