"""A number of candidates that follows the state of the encoder."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from contrastneg import distributed
from contrastneg.checks import check_range
from contrastneg.negatives.core import Clock, Negatives, StageWithState
from contrastneg.negatives.select import Mass, scaling, uniform_subset


@dataclass(eq=False)
class AdaptiveCount(StageWithState):
    r"""Keep as many uniformly drawn candidates as promise the most informative queries.

    Say each candidate is a true negative with probability r and already less similar than the positive with probability
    s. All K are true and one is not yet beaten with probability :math:`r^K (1 - s^K)`, which is largest at

    .. math:: K^* = \ln\left( \frac{\ln r}{\ln r + \ln s} \right) / \ln s

    s is measured over all candidates as the run goes on; before each epoch K moves to :math:`K^*`, by no more than twice
    or half. As s approaches 1 it approaches :math:`-1 / \ln r`, about the number of balanced classes.

    A reconstruction of adaptive negative sampling (arXiv:2105.13003): the paper's weights of the cases and its course of
    K were not found. The theory counts a query as lost if any of its negatives is false, while InfoNCE only loses that
    negative's share of the gradient: compare with fixed numbers before you believe it.
    """

    kind: ClassVar[str] = "select"
    gives: ClassVar[frozenset[str]] = frozenset({"log_prob"})
    of_candidates: ClassVar[tuple[str, ...]] = ("count",)
    beaten: Tensor = field(init=False, repr=False)
    measured: Tensor = field(init=False, repr=False)
    now: Tensor = field(init=False, repr=False)
    pending: Tensor = field(init=False, repr=False)

    count: int = 256
    """Candidates kept per query in the first epoch, at least 1."""
    false_negatives: float = 0.01
    """Share of candidates that are of the query's class (1 - r), above 0 and below 1; 1 / classes if they are balanced."""
    smallest: int = 16
    """Fewest candidates kept."""
    largest: int = 65536
    """Most candidates kept."""
    momentum: float = 0.9
    """Share of the measured s that stays from one step to the next, at least 0 and below 1."""
    mass: Mass = "preserve"
    """Whether the kept candidates take over the weight of the dropped ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "count", "smallest", least=1)
        check_range(self, "largest", least=self.smallest)
        check_range(self, "false_negatives", above=0, below=1)
        check_range(self, "momentum", least=0, below=1)
        object.__setattr__(self, "breaks", self.breaks | scaling(self.mass))
        self.register_buffer("beaten", torch.zeros(()))
        self.register_buffer("measured", torch.zeros((), dtype=torch.bool))
        self.register_buffer("now", torch.tensor(self.count))
        self.register_buffer("pending", torch.zeros(2), persistent=False)

    def refresh(self, embeddings: Callable[[], Float[Tensor, "T D"]], clock: Clock) -> None:
        """Move the number towards the best one."""
        if self.measured:
            before = int(self.now)
            best = best_count(1 - self.false_negatives, float(self.beaten))
            near = min(2 * before, max(before // 2, round(best)))
            self.now.fill_(min(self.largest, max(self.smallest, near)))

    def update(self, keys: Float[Tensor, "B D"], image_id: Int64[Tensor, " B"], clock: Clock) -> None:
        """Take in what all ranks measured in the step."""
        beaten, pairs = distributed.all_gather(self.pending[None]).sum(dim=0)
        self.pending.zero_()
        share = torch.where(self.measured, self.beaten.lerp(beaten / pairs, 1 - self.momentum), beaten / pairs)
        self.beaten = torch.where(pairs > 0, share, self.beaten)
        self.measured = self.measured | (pairs > 0)

    def forward(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with as many candidates kept per query as this epoch wants."""
        kept = negatives.kept
        below = negatives.similarity.detach() < negatives.positive_similarity.detach()[:, None]
        self.pending += torch.stack([(below & kept).sum(), kept.sum()])
        draws = clock.generator("AdaptiveCount", kept.device)
        return uniform_subset(negatives, int(self.now), self.mass, draws)


def best_count(clean: float, beaten: float) -> float:
    r"""The K that makes :math:`r^K (1 - s^K)` largest.

    Args:
        clean: r, probability in (0, 1) that a candidate is a true negative; taken to be at most 1 - 1e-9.
        beaten: s, probability that the positive is more similar than a candidate; taken to lie within 1e-6 of (0, 1).
    """
    log_r, log_s = math.log(min(1 - 1e-9, clean)), math.log(min(1 - 1e-6, max(1e-6, beaten)))
    return math.log(log_r / (log_r + log_s)) / log_s
