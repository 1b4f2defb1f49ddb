"""Stages that draw candidates from a law of their scores or ranks."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from contrastneg.checks import check_range
from contrastneg.negatives.core import Clock, Negatives, Stage, count_at
from contrastneg.negatives.scores import Ranking, Score, score_of
from contrastneg.negatives.select import Mass, draw_by_law, keep_only, scaling
from contrastneg.schedules import Schedule, value


@dataclass(frozen=True)
class SoftmaxSubset(Stage):
    r"""Draw candidates, without replacement, with probability growing exponentially with their score.

    .. math:: \pi_j \propto e^{\beta s_j / t}

    With M = 1 and ``mass`` "preserve" its expected sum is that of :class:`contrastneg.negatives.HardnessWeight` with
    the same beta: sampling and weighting are two ways to one number, and both at once apply the tilt twice. It is the
    target law of MCNS (KDD 2020, :math:`\beta < 1`, analogy: the model's similarity in place of edges of a graph) drawn
    exactly instead of by a Markov chain, and the best answer of an adversary with entropy bonus t / beta, to which
    IRGAN's sampler is an approximation.
    """

    kind: ClassVar[str] = "select"
    gives: ClassVar[frozenset[str]] = frozenset({"log_prob"})
    breaks: ClassVar[frozenset[str]] = frozenset({"iid"})
    of_candidates: ClassVar[tuple[str, ...]] = ("count",)

    count: int | Schedule = 256
    """Candidates kept per query, at least 1; rows with fewer keep them all. A number or a schedule."""
    beta: float | Schedule = 0.75
    """Steepness of the law; 0 draws uniformly, below 0 prefers easy candidates. MCNS's code has 0.25. A number or a schedule."""
    temperature: float | None = None
    """Temperature in the law and in the "loss" score, above 0; none is the method's."""
    score: Score = "anchor"
    """Score in the law: similarity to the query, to its positive, the sum of both, the z-score or the pairwise loss."""
    mass: Mass = "preserve"
    """Whether the kept candidates take over the weight of the dropped ones."""

    def __post_init__(self) -> None:
        check_range(self, "count", least=1)
        check_range(self, "beta")
        check_range(self, "temperature", above=0)
        object.__setattr__(self, "breaks", self.breaks | scaling(self.mass))

    def __call__(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with at most ``count`` candidates kept per query."""
        temperature = self.temperature or clock.temperature
        score = score_of(negatives, self.score, temperature=temperature)
        log_law = value(self.beta, clock.progress) / temperature * score
        log_law = log_law.masked_fill(~negatives.kept, -torch.inf).log_softmax(dim=1).nan_to_num(nan=-torch.inf)
        draws = clock.generator("SoftmaxSubset", score.device)
        chosen, log_prob = draw_by_law(log_law, count_at(self.count, clock), draws)
        return keep_only(negatives, chosen, self.mass, log_prob)


@dataclass(frozen=True)
class RankSubset(Stage):
    r"""Draw candidates, without replacement, with probability falling exponentially with their rank.

    .. math:: \pi_j \propto e^{-r_j / \lambda}

    r is 0 for the hardest. After adaptive oversampling by rank in recommendation (WSDM 2014), from memory, not verified.
    """

    kind: ClassVar[str] = "select"
    gives: ClassVar[frozenset[str]] = frozenset({"log_prob"})
    breaks: ClassVar[frozenset[str]] = frozenset({"iid"})
    of_candidates: ClassVar[tuple[str, ...]] = ("count",)

    count: int | Schedule = 256
    """Candidates kept per query, at least 1; rows with fewer keep them all. A number or a schedule."""
    decay: float | Schedule = 0.1
    """Share of the ranking over which the probability falls to 1/e (lambda / candidates), above 0. A number or a schedule."""
    score: Ranking = "anchor"
    """What they are ranked by: similarity to the query, to its positive, or the sum of both."""
    mass: Mass = "preserve"
    """Whether the kept candidates take over the weight of the dropped ones."""

    def __post_init__(self) -> None:
        check_range(self, "count", least=1)
        check_range(self, "decay", above=0)
        object.__setattr__(self, "breaks", self.breaks | scaling(self.mass))

    def __call__(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with at most ``count`` candidates kept per query."""
        score, kept = score_of(negatives, self.score), negatives.kept
        order = score.masked_fill(~kept, -torch.inf).argsort(dim=1, descending=True)
        place = torch.arange(score.shape[1], device=score.device, dtype=score.dtype)
        length = value(self.decay, clock.progress) * kept.sum(dim=1, keepdim=True).clamp(min=1)
        log_law = torch.empty_like(score).scatter_(1, order, -place / length).masked_fill(~kept, -torch.inf)
        draws = clock.generator("RankSubset", score.device)
        chosen, log_prob = draw_by_law(log_law, count_at(self.count, clock), draws)
        return keep_only(negatives, chosen, self.mass, log_prob)
