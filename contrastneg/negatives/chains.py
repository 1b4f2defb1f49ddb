"""A stage that draws candidates with a Markov chain for each image."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from contrastneg.checks import check_range
from contrastneg.negatives.bank import (
    Bank,
    Combine,
    KeyBank,
    distinct,
    filled_up,
    joined,
    same_on_all_ranks,
    similarity_to,
)
from contrastneg.negatives.core import Clock, Facts, Negatives
from contrastneg.negatives.graph import Edges, Graph, OnGraph, next_node
from contrastneg.schedules import Schedule, value


@dataclass(eq=False)
class MetropolisChain(OnGraph):
    r"""Draw candidates from a sub-linear power of the law of positives by Metropolis and Hastings (MCNS, arXiv:2005.09863).

    Over the remembered images other than i, chains of image i aim at

    .. math:: \pi_i(j) \propto e^{exponent \; s_{ij} / temperature}

    A move from x proposes a remembered image at random or a neighbour of x in the graph, with probability one half each
    (without neighbours always at random), so with F remembered images
    :math:`g(y|x) = 1/2F + P_{xy}/2`, and is accepted with probability

    .. math:: \min\left(1, \frac{\pi_i(y) \, g(x|y)}{\pi_i(x) \, g(y|x)}\right)

    A query's candidates are where ``chains`` chains stand after ``moves`` moves from where the image's last visit left
    them; a first visit starts at random images and makes ``burn_in`` moves before. What is kept from a visit is moved by
    the image's key rather than the query, so that all ranks keep the same. Chains that meet give one candidate.

    Analogy: the paper's law of positives is that of a given graph; here it is the encoder's own, e to the cosine over the
    temperature. The paper's code has another self-contrast (a fourth root of the product), leaves the mixture out of the
    ratio and draws one number for the whole batch; this follows the mathematics. Exponent 0.25 and 10 moves of burn-in
    are the code's. Memory: a bank, a graph and 4 T chains bytes.
    """

    kind: ClassVar[str] = "source"
    needs: ClassVar[frozenset[str]] = frozenset({"id"})
    breaks: ClassVar[frozenset[str]] = frozenset({"iid", "log_prob"})
    state: Tensor = field(init=False, repr=False)

    chains: int = 16
    """Chains of each image, and so candidates of a query; at least 1."""
    moves: int = 10
    """Moves per visit, at least 1."""
    burn_in: int = 10
    """Moves before those of a chain's first visit, 0 or more."""
    exponent: float | Schedule = 0.25
    """Power of the law of positives; 0 is uniform, 1 that law. A number or a schedule."""
    temperature: float | Schedule = 0.2
    """Of the law of positives, above 0. A number or a schedule."""
    combine: Combine = "replace"
    """Whether they become the candidates or are added to those of the queue or batch."""
    bank: Bank = Bank()
    """How the key of each image is remembered."""
    edges: Edges = Edges()
    """Which images are neighbours."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "chains", "moves", least=1)
        check_range(self, "burn_in", least=0)
        check_range(self, "temperature", above=0)
        check_range(self, "exponent")
        self.memory, self.graph = KeyBank(self.bank), Graph(self.edges)
        self.register_buffer("state", torch.full((0, self.chains), -1, dtype=torch.int32))

    def begin(self, facts: Facts) -> None:
        """Make an empty row and chains that have not begun for each image, and the graph if it is one of metadata."""
        super().begin(facts)
        self.state = self.state.new_full((facts.images, self.chains), -1)

    @torch.no_grad()
    def update(self, keys: Float[Tensor, "B D"], image_id: Int64[Tensor, " B"], clock: Clock) -> None:
        """Write the keys of the step, and move the chains of their images on."""
        super().update(keys, image_id, clock)
        anchors, row = distinct(image_id)
        draws = same_on_all_ranks(clock, "MetropolisChain/update")
        self.state[anchors] = self.moved(keys[row], anchors, clock, draws).int()

    def forward(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with, or of, the images on which the chains stand."""
        draws = clock.generator("MetropolisChain", self.memory.keys.device)
        ids = self.moved(negatives.query.detach(), negatives.query_id, clock, draws)
        ids, _ = filled_up(negatives, self.memory, ids, self.combine, draws)
        return joined(negatives, self.memory, ids, self.combine)

    @torch.no_grad()
    def moved(
        self, query: Float[Tensor, "B D"], own: Int64[Tensor, " B"], clock: Clock, draws: torch.Generator
    ) -> Int64[Tensor, "B chains"]:
        """Where the chains of some images stand after a visit; -1 while nothing else is remembered."""
        state, fresh = self.state[own].long(), self._fresh(own, draws)
        new = state < 0
        state = torch.where(new, fresh, state)
        tilt = value(self.exponent, clock.progress) / value(self.temperature, clock.progress)
        score = similarity_to(self.memory, query, state)
        for move in range(0 if new.any() else self.burn_in, self.burn_in + self.moves):
            proposed, there, accepted = self._move(state, score, query, own, tilt, draws)
            if move < self.burn_in:
                accepted = accepted & new
            state, score = torch.where(accepted, proposed, state), torch.where(accepted, there, score)
        return state

    def _fresh(self, own: Int64[Tensor, " B"], draws: torch.Generator) -> Int64[Tensor, "B chains"]:
        """A remembered image other than the own for each chain, uniformly."""
        tries = self.memory.draw((4, len(own), self.chains), draws)
        first = (tries != own[:, None]).int().argmax(dim=0, keepdim=True)
        others = tries.gather(0, first)[0]
        return others.masked_fill(others == own[:, None], -1)  # a later visit tries again

    def _move(
        self,
        state: Int64[Tensor, "B C"],
        score: Float[Tensor, "B C"],
        query: Float[Tensor, "B D"],
        own: Int64[Tensor, " B"],
        tilt: float,
        draws: torch.Generator,
    ) -> tuple[Int64[Tensor, "B C"], Float[Tensor, "B C"], Bool[Tensor, "B C"]]:
        """What is proposed to each chain, its similarity to the query, and whether it is accepted."""
        drawn = torch.rand(3, *state.shape, generator=draws, device=draws.device).to(state.device)
        proposed = self.propose(state, drawn[0], drawn[1], draws)
        there = similarity_to(self.memory, query, proposed)
        ratio = tilt * (there - score)
        ratio = ratio + self.proposal(proposed, state).log() - self.proposal(state, proposed).log()
        good = (proposed >= 0) & (state >= 0) & (proposed != own[:, None]) & (self.memory.known(proposed) >= 0)
        return proposed, there, good & (drawn[2].log() < ratio)

    def propose(
        self, state: Int64[Tensor, "B C"], which: Tensor, choice: Tensor, draws: torch.Generator
    ) -> Int64[Tensor, "B C"]:
        """A remembered image at random or a neighbour, with probability one half each."""
        anywhere = self.memory.draw(tuple(state.shape), draws)
        neighbour = next_node(self.graph, state.flatten(), choice.flatten()).view(state.shape)
        return torch.where((which < 0.5) & (neighbour >= 0), neighbour, anywhere)

    def proposal(self, origin: Int64[Tensor, "B C"], target: Int64[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        """Probability g(target | origin) that a move from the one image proposes the other."""
        weight = self.graph.weight(origin)
        total = weight.sum(dim=2)
        hit = self.graph.neighbours[origin.clamp(min=0)] == target[:, :, None]
        edge = (weight * hit).sum(dim=2) / total.clamp(min=torch.finfo(weight.dtype).tiny)
        anywhere = 1 / max(1, len(self.memory))
        return torch.where(total > 0, (edge + anywhere) / 2, anywhere)
