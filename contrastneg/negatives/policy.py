"""Samplers that look for the candidates with the highest reward: a learned policy, and the best one in closed form."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from contrastneg import distributed
from contrastneg.checks import check_range
from contrastneg.negatives.ascent import Climber
from contrastneg.negatives.core import Clock, Facts, Negatives, Stage, StageWithState, count_at
from contrastneg.negatives.select import Mass, draw_by_law, keep_only, scaling
from contrastneg.schedules import Schedule, value


@dataclass(frozen=True)
class BestResponse(Stage):
    r"""Keep candidates drawn by the best adversary of a given entropy, whose law is known in closed form.

    .. math::
        r_{ij} = 2 \sigma(s_{ij} / t_r) - 1, \qquad
        \arg\max_\pi \; E_\pi r + T \, H(\pi) \; \propto \; e^{r / T}

    The reward is that of the official code of IRGAN (arXiv:1705.10513). A learned policy (:class:`LearnedPolicy`) can at
    best come close to this law; where all similarities are known anyway, as over a queue, this is the one to use.
    Derived, no paper's method: it is softmax sampling of a squashed similarity. Drawn without replacement.
    """

    kind: ClassVar[str] = "select"
    gives: ClassVar[frozenset[str]] = frozenset({"log_prob"})
    breaks: ClassVar[frozenset[str]] = frozenset({"iid"})
    of_candidates: ClassVar[tuple[str, ...]] = ("count",)

    count: int | Schedule = 256
    """Candidates kept per query, at least 1; rows with fewer keep them all. A number or a schedule."""
    entropy: float | Schedule = 0.2
    """Weight T of the entropy, above 0: the larger, the more uniform the law. A number or a schedule."""
    reward_temperature: float | Schedule = 0.2
    """Temperature t_r that similarities are divided by before they are squashed, above 0. A number or a schedule."""
    mass: Mass = "preserve"
    """Whether the kept candidates take over the weight of the dropped ones."""

    def __post_init__(self) -> None:
        check_range(self, "count", least=1)
        check_range(self, "entropy", "reward_temperature", above=0)
        object.__setattr__(self, "breaks", self.breaks | scaling(self.mass))

    def __call__(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with at most ``count`` candidates kept per query."""
        reward = rewards(negatives, value(self.reward_temperature, clock.progress))
        log_law = law(reward / value(self.entropy, clock.progress), negatives.kept)
        draws = clock.generator("BestResponse", reward.device)
        chosen, log_prob = draw_by_law(log_law, count_at(self.count, clock), draws)
        return keep_only(negatives, chosen, self.mass, log_prob)


@dataclass(eq=False)
class LearnedPolicy(StageWithState):
    r"""Keep candidates drawn by a sampler that learns, by policy gradient, which ones earn the highest reward.

    .. math::
        G(j | i) = \mathrm{softmax}_j \frac{(A q_i) \cdot (C k_j)}{T_g}, \qquad
        \max_{A, C} \; E_{j \sim G} [ (r_{ij} - b) \log G(j | i) ] + \texttt{entropy} \cdot H(G_i), \qquad
        r_{ij} = 2 \sigma(s_{ij} / t_r) - 1

    Each training step draws ``draws`` candidates per query with replacement for the estimate, takes one Adam step of the
    sampler, and keeps ``count`` candidates drawn without replacement by the law before that step. The baseline b is a
    moving average of the mean reward, over all processes, as are the gradients. The encoder receives nothing from it.

    An analogy of IRGAN (arXiv:1705.10513) and KBGAN (arXiv:1711.04071): the adversarial sampler of their discrete settings
    over the keys of a table; the linear scorer, rates and the entropy weight are ours. Experimental: over a queue, where
    every similarity is known, :class:`BestResponse` gives what this one can at best learn. No stage that makes candidates
    may follow: they are continuous, and the law has no probability of them.
    """

    kind: ClassVar[str] = "select"
    gives: ClassVar[frozenset[str]] = frozenset({"log_prob"})
    breaks: ClassVar[frozenset[str]] = frozenset({"iid", "synthesize"})
    of_candidates: ClassVar[tuple[str, ...]] = ("count",)
    network: Climber = field(init=False, repr=False)
    baseline: Tensor = field(init=False, repr=False)

    count: int | Schedule = 256
    """Candidates kept per query, at least 1; rows with fewer keep them all. A number or a schedule."""
    draws: int = 64
    """Candidates per query that the sampler learns from in a step, at least 1."""
    width: int = 64
    """Width in which the sampler compares queries and keys, at least 1."""
    temperature: float = 0.2
    """Temperature T_g of the sampler, above 0."""
    reward_temperature: float | Schedule = 0.2
    """Temperature t_r that similarities are divided by before they are squashed to a reward, above 0."""
    entropy: float | Schedule = 0.01
    """Weight of the law's entropy, 0 or more. A number or a schedule."""
    rate: float | Schedule = 1e-4
    """Learning rate of the sampler's Adam. A number or a schedule."""
    baseline_decay: float = 0.9
    """Share of the old baseline kept per step, in [0, 1]."""
    mass: Mass = "preserve"
    """Whether the kept candidates take over the weight of the dropped ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "count", "draws", "width", least=1)
        check_range(self, "temperature", "reward_temperature", above=0)
        check_range(self, "entropy", "rate", least=0)
        check_range(self, "baseline_decay", least=0, most=1)
        object.__setattr__(self, "breaks", self.breaks | scaling(self.mass))
        self.network = Climber()
        self.register_buffer("baseline", torch.zeros(()))

    def begin(self, facts: Facts) -> None:
        """Give the sampler its first weights, unless it has some."""
        self._start(facts.dim)

    def _start(self, dim: int) -> None:
        self.network.start("LearnedPolicy", [(dim, self.width), (dim, self.width)])

    def forward(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with at most ``count`` candidates kept per query; in training, the sampler is a step further."""
        if negatives.n_keys == 0:
            return keep_only(negatives, negatives.kept, self.mass, torch.zeros_like(negatives.log_weight))
        self._start(negatives.query.shape[1])
        generator = clock.generator("LearnedPolicy", negatives.similarity.device)
        learns = self.training
        with torch.autocast(negatives.query.device.type, enabled=False), torch.set_grad_enabled(learns):
            weights = self.network.weights.detach().requires_grad_(learns)
            log_law = law(self.scores(negatives, weights), negatives.kept)
            if learns:
                self._learn(negatives, weights, log_law, generator, clock)
        chosen, log_prob = draw_by_law(log_law.detach(), count_at(self.count, clock), generator)
        return keep_only(negatives, chosen, self.mass, log_prob)

    def scores(self, negatives: Negatives, weights: Float[Tensor, " P"]) -> Float[Tensor, "B M"]:
        """Logits of the sampler for every candidate.

        Args:
            negatives: A table in which every candidate is a key.
            weights: Of the sampler, as one list of numbers.
        """
        query, keys = negatives.query.detach(), negatives.keys.detach()
        of_query, of_key = weights.to(query.dtype).view(2, query.shape[1], self.width)
        turned = (query @ of_query) @ of_key.T / self.temperature  # (B, D): never a second bank of keys
        keys = keys.to(query.dtype)
        return turned @ keys.T if keys.ndim == 2 else (keys @ turned[:, :, None]).squeeze(2)

    @torch.enable_grad()
    def _learn(
        self, negatives: Negatives, weights: Tensor, log_law: Tensor, generator: torch.Generator, clock: Clock
    ) -> None:
        drawing = negatives.kept.any(dim=1)
        chances = log_law.detach().exp()
        chances[~drawing] = 1.0  # anything that can be drawn from: such a row counts for nothing
        drawn = chances.multinomial(self.draws, replacement=True, generator=generator)
        reward = rewards(negatives, value(self.reward_temperature, clock.progress)).gather(1, drawn)
        gain = policy_gain(log_law, drawn, reward - self.baseline, value(self.entropy, clock.progress))
        (gradient,) = torch.autograd.grad(torch.where(drawing, gain, 0).sum(), weights)
        self.network.climb(gradient, drawing.sum(), value(self.rate, clock.progress))
        seen = torch.stack([torch.where(drawing, reward.mean(dim=1), 0).sum(), drawing.sum().to(reward)])
        total, rows = distributed.total(seen)
        if rows > 0:
            self.baseline.lerp_((total / rows).to(self.baseline), 1 - self.baseline_decay)


def policy_gain(
    log_law: Float[Tensor, "B M"], drawn: Int64[Tensor, "B n"], advantage: Float[Tensor, "B n"], entropy: float
) -> Float[Tensor, " B"]:
    r"""What a sampler's step raises per query: its gradient is an estimate of that of the mean reward plus entropy.

    .. math:: \frac{1}{n} \sum_j a_j \log G(j) + \texttt{entropy} \cdot H(G)

    Args:
        log_law: Logarithm of the law G, -inf where nothing can be drawn, with gradient.
        drawn: Candidates drawn from it with replacement.
        advantage: Their rewards less a baseline, constants.
        entropy: Weight of the entropy.
    """
    possible = log_law > -torch.inf
    finite = torch.where(possible, log_law, 0)
    spread = -(torch.where(possible, log_law.exp(), 0) * finite).sum(dim=1)
    return (advantage * finite.gather(1, drawn)).mean(dim=1) + entropy * spread


def rewards(negatives: Negatives, temperature: float) -> Float[Tensor, "B M"]:
    """Reward of each candidate, in (-1, 1): twice the logistic function of its similarity over t_r, less 1."""
    return 2 * (negatives.similarity.detach() / temperature).sigmoid() - 1


def law(logit: Float[Tensor, "B M"], kept: Bool[Tensor, "B M"]) -> Float[Tensor, "B M"]:
    """Logarithm of the softmax over the candidates that are left; -inf at the others, also in rows without any."""
    some = kept.any(dim=1, keepdim=True)
    open_to = kept | ~some  # a softmax of nothing would be NaN, its gradient too
    return logit.masked_fill(~open_to, -torch.inf).log_softmax(dim=1).masked_fill(~kept, -torch.inf)
