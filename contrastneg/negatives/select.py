"""Stages that keep a random part of the candidates, and what all stages that keep a part have in common.

A stage that knows the law of its draw leaves in ``log_prob`` the logarithm of the probability with which each candidate
was kept, so that :class:`contrastneg.negatives.SamplingCorrection` can undo the law.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from contrastneg.checks import check_range
from contrastneg.negatives.core import Clock, Negatives, Stage, count_at
from contrastneg.schedules import Schedule

Mass = Literal["preserve", "plain"]
"""Whether kept candidates take over the weight of dropped ones."""


@dataclass(frozen=True)
class UniformSubset(Stage):
    """Keep a uniformly drawn subset of each query's candidates (random negative sampling).

    With ``mass`` "preserve" the kept ones weigh (candidates before) / (candidates kept), so that the expected sum in the
    loss stays what it was; "plain" drops without reweighting, as papers that study the number of negatives do.
    """

    kind: ClassVar[str] = "select"
    gives: ClassVar[frozenset[str]] = frozenset({"log_prob"})
    of_candidates: ClassVar[tuple[str, ...]] = ("count",)

    count: int | Schedule = 256
    """Candidates kept per query, at least 1; rows with fewer keep them all. A number or a schedule."""
    mass: Mass = "preserve"
    """Whether the kept candidates take over the weight of the dropped ones."""

    def __post_init__(self) -> None:
        check_range(self, "count", least=1)
        object.__setattr__(self, "breaks", self.breaks | scaling(self.mass))

    def __call__(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with at most ``count`` candidates kept per query."""
        draws = clock.generator("UniformSubset", negatives.similarity.device)
        return uniform_subset(negatives, count_at(self.count, clock), self.mass, draws)


def uniform_subset(negatives: Negatives, count: int, mass: Mass, generator: torch.Generator) -> Negatives:
    """The table with at most ``count`` uniformly drawn candidates per query.

    Args:
        negatives: The table.
        count: Candidates kept per query.
        mass: See :func:`keep_only`.
        generator: On the device of the table.
    """
    chosen = gumbel_top(negatives.kept.to(negatives.similarity.dtype).log(), count, generator)
    before = negatives.kept.sum(dim=1, keepdim=True)
    log_share = (before.clamp(1, count) / before.clamp(min=1)).log().to(negatives.similarity.dtype)
    return keep_only(negatives, chosen, mass, log_share.expand_as(chosen))


def keep_only(
    negatives: Negatives, chosen: Bool[Tensor, "B M"], mass: Mass, log_prob: Float[Tensor, "B M"] | None = None
) -> Negatives:
    """The table with only the chosen ones of its candidates.

    Args:
        negatives: The table.
        chosen: The candidates to keep; those that were removed before stay removed.
        mass: "preserve" gives the chosen the weight (candidates before) / (candidates chosen) each, "plain" leaves their
            weights alone.
        log_prob: Logarithm of the probability with which a candidate was chosen; None where that is not known. That of
            an earlier draw is multiplied with it, 1 for candidates that nobody drew.
    """
    chosen = chosen & negatives.kept
    thinned = negatives.removed(~chosen)
    if mass == "preserve":
        before, after = negatives.kept.sum(dim=1, keepdim=True), chosen.sum(dim=1, keepdim=True)
        thinned = replace(thinned, log_weight=thinned.log_weight + (before.clamp(min=1) / after.clamp(min=1)).log())
    if log_prob is not None and negatives.log_prob is not None:
        log_prob = log_prob + negatives.log_prob.masked_fill(negatives.log_prob.isnan(), 0)
    return replace(thinned, log_prob=None if log_prob is None else log_prob.masked_fill(~chosen, -math.inf))


def gumbel_top(log_law: Float[Tensor, "B M"], count: int, generator: torch.Generator) -> Bool[Tensor, "B M"]:
    """Draw without replacement from a law per row: the ``count`` largest of log-probability plus Gumbel noise.

    Args:
        log_law: Logarithm of the law, up to a constant per row; -inf is never drawn.
        count: Draws per row.
        generator: On the device of ``log_law``.

    Returns:
        The drawn entries; all that can be drawn, in rows with fewer than ``count`` of them.
    """
    best = (log_law + gumbel(log_law, generator)).topk(min(count, log_law.shape[1]), dim=1).indices
    return torch.zeros_like(log_law, dtype=torch.bool).scatter_(1, best, True) & (log_law > -torch.inf)


def gumbel(like: Float[Tensor, "*shape"], generator: torch.Generator) -> Float[Tensor, "*shape"]:
    """Gumbel noise: the largest of log-probability plus noise is a draw, the M largest are M without replacement.

    Args:
        like: Of the shape, type and device that are wanted; the noise is drawn in float32 at least.
        generator: On any device.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    uniform = torch.rand(like.shape, generator=generator, device=generator.device, dtype=dtype)
    uniform = uniform.clamp(torch.finfo(dtype).tiny, 1 - torch.finfo(dtype).eps)
    return -torch.log(-torch.log(uniform)).to(like)


def draw_by_law(
    log_law: Float[Tensor, "B M"], count: int, generator: torch.Generator
) -> tuple[Bool[Tensor, "B M"], Float[Tensor, "B M"]]:
    r"""Draw without replacement from a law per row, and how probable each draw was.

    The largest of log-probability plus Gumbel noise are drawn. Let k be the largest of the noisy values that were not
    drawn. Given the others' noise, candidate j was drawn with probability

    .. math:: 1 - \exp(-e^{\log \pi_j - k})

    and sums over the drawn ones divided by these are unbiased for the sum over all (arXiv:1903.06059).

    Args:
        log_law: Logarithm of the law, up to a constant per row; -inf is never drawn.
        count: Draws per row, at least 1.
        generator: On the device of ``log_law``.

    Returns:
        The drawn entries, all that can be drawn in rows with no more than ``count`` of them; and the logarithm of the
        probability above for every entry, drawn or not.
    """
    best = (log_law + gumbel(log_law, generator)).topk(min(count + 1, log_law.shape[1]), dim=1)
    drawn = torch.zeros_like(log_law, dtype=torch.bool).scatter_(1, best.indices[:, :count], True)
    drawn &= log_law > -torch.inf
    if best.values.shape[1] <= count:  # all there are
        return drawn, torch.zeros_like(log_law)
    above = log_law - best.values[:, count:]
    # 1 - exp(-x) is x for small x, and there the direct form would lose it.
    log_prob = torch.where(above < -15, above, torch.log(-torch.expm1(-above.clamp(min=-15).exp())))
    return drawn, log_prob.nan_to_num(nan=-torch.inf)  # -inf - -inf where neither can be drawn


def scaling(mass: Mass) -> frozenset[str]:
    """What no longer holds after a draw by a known law, or weights, of this mass: that no weight makes up for a draw."""
    return frozenset({"plain mass"} if mass == "preserve" else ())
