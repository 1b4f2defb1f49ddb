"""Stages that keep, for each image, a short list of hard candidates and better it at each visit."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from contrastneg.checks import check_range
from contrastneg.negatives.bank import (
    Bank,
    Combine,
    KeyBank,
    distinct,
    filled_up,
    joined,
    largest,
    same_on_all_ranks,
    similarity_to,
    without_repeats,
)
from contrastneg.negatives.core import Clock, Facts, Negatives, StageWithState, count_at
from contrastneg.negatives.select import gumbel
from contrastneg.schedules import Schedule, value


@dataclass(eq=False)
class HardCache(StageWithState):
    r"""Take candidates from a small cache of hard ones for each image (NSCaching, arXiv:1812.06410).

    At each visit of image i its cache meets ``explore`` images drawn from all; of the lot ``size`` stay: the most similar
    to the image's key ("top"), or drawn without replacement ("importance") with

    .. math:: P(j \text{ stays}) \propto e^{k_i \cdot k_j / temperature}

    From the cache ``count`` candidates are drawn per query. Sizes of 30, uniform draws from the cache and importance
    updates are the code's defaults, with temperature 1 for unbounded scores; 0.2 for cosines is ours. Analogy: the paper
    corrupts entities of a knowledge graph; here the entities are images, scored by the key of the step instead of the
    query, so that all ranks update alike. Before a first visit, candidates are uniform.

    Memory: a bank, and 4 T size bytes of caches: 154 MB for 1.28 million images at 30.
    """

    kind: ClassVar[str] = "source"
    needs: ClassVar[frozenset[str]] = frozenset({"id"})
    breaks: ClassVar[frozenset[str]] = frozenset({"iid", "log_prob"})
    of_images: ClassVar[tuple[str, ...]] = ("size",)
    memory: KeyBank = field(init=False, repr=False)
    cache: Tensor = field(init=False, repr=False)

    size: int = 30
    """Images in the cache of each image, at least 1."""
    explore: int = 30
    """Images that each visit draws from all, 0 or more; the first draws ``size`` more."""
    count: int | Schedule = 30
    """Candidates per query, at least 1. A number or a schedule."""
    take: Literal["uniform", "softmax", "top"] = "uniform"
    """How candidates are taken from the cache: all alike, drawn by similarity to the query, or the most similar."""
    keep: Literal["importance", "top"] = "importance"
    """Which images stay in the cache."""
    temperature: float | Schedule = 0.2
    """Of both draws by similarity, above 0. A number or a schedule."""
    every: int = 1
    """Caches are updated in each so many-th epoch only, at least 1."""
    combine: Combine = "replace"
    """Whether they become the candidates or are added to those of the queue or batch."""
    bank: Bank = Bank()
    """How the key of each image is remembered."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "size", "count", "every", least=1)
        check_range(self, "explore", least=0)
        check_range(self, "temperature", above=0)
        self.memory = KeyBank(self.bank)
        self.register_buffer("cache", torch.full((0, self.size), -1, dtype=torch.int32))

    def begin(self, facts: Facts) -> None:
        """Make an empty row and an empty cache for each image."""
        self.memory.begin(facts)
        self.cache = self.cache.new_full((facts.images, self.size), -1)

    def refresh(self, embeddings: Callable[[], Float[Tensor, "T D"]], clock: Clock) -> None:
        """Fill the memory before the first step, if asked for."""
        self.memory.fill_once(embeddings)

    @torch.no_grad()
    def update(self, keys: Float[Tensor, "B D"], image_id: Int64[Tensor, " B"], clock: Clock) -> None:
        """Write the keys of the step, and better the caches of their images."""
        self.memory.write(keys, image_id, clock)
        if int(clock.epoch + 1e-6) % self.every:
            return
        anchors, row = distinct(image_id)
        draws = same_on_all_ranks(clock, "HardCache/update")
        pool, _ = explored(self.memory, self.cache[anchors].long(), anchors, self.explore, draws)
        score = similarity_to(self.memory, keys[row], pool)
        if self.keep == "importance":
            score = score / value(self.temperature, clock.progress) + gumbel(score, draws)
        self.cache[anchors] = largest(score, pool, self.size)[0].int()

    def forward(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with, or of, candidates from the caches."""
        draws = clock.generator("HardCache", self.memory.keys.device)
        count = count_at(self.count, clock)
        ids = self.memory.known(self.cache[negatives.query_id].long())
        if self.take == "uniform":
            score = torch.rand(ids.shape, generator=draws, device=ids.device)
        else:
            score = similarity_to(self.memory, negatives.query.detach(), ids)
        if self.take == "softmax":
            score = score / value(self.temperature, clock.progress) + gumbel(score, draws)
        ids, _ = filled_up(negatives, self.memory, largest(score, ids, count)[0], self.combine, draws)
        return joined(negatives, self.memory, ids, self.combine)


@dataclass(eq=False)
class ScoreHistory(StageWithState):
    r"""Take candidates whose score is high and has varied, so as to pass over false negatives (SRNS, arXiv:2009.03376).

    With :math:`P_{ij} = \sigma((s_{ij} - s_i^+) / temperature)` for the cached images j of image i, the candidates are the
    ``count`` largest of

    .. math:: P_{ij} + \alpha \min(1, epoch / warmup) \; \mathrm{std}_{ij}

    std being the population standard deviation of the ``history`` latest values. The claim that false negatives score
    high with little variance is the paper's, for some data sets. At each visit the cache meets ``explore`` images drawn
    from all, and ``size`` of the lot stay, drawn without replacement with probability proportional to e^(P / keep_temperature).

    Analogy, with these differences: values are noted at visits, not at ends of epochs, scored by the image's key against
    its own row of the bank as the positive, so that all ranks note the same; an entrant has std 0 until it has two
    values, where the paper's code scores future candidates ahead; cosines need temperatures of their own. Alpha 5,
    warm-up 50 and a history of 5 are the code's; negative alpha prefers steady ones. Before a first visit, candidates
    are uniform.

    Memory: a bank, and T size (5 + 2 history) bytes, scores in float16: 307 MB for 1.28 million images at 16 and 5.
    """

    kind: ClassVar[str] = "source"
    needs: ClassVar[frozenset[str]] = frozenset({"id"})
    breaks: ClassVar[frozenset[str]] = frozenset({"iid", "log_prob"})
    of_images: ClassVar[tuple[str, ...]] = ("size",)
    memory: KeyBank = field(init=False, repr=False)
    cache: Tensor = field(init=False, repr=False)
    scores: Tensor = field(init=False, repr=False)
    noted: Tensor = field(init=False, repr=False)

    size: int = 16
    """Images in the cache of each image, at least 1."""
    explore: int = 64
    """Images that each visit draws from all, 0 or more; the first draws ``size`` more."""
    count: int | Schedule = 8
    """Candidates per query, at least 1. A number or a schedule."""
    alpha: float | Schedule = 5.0
    """Weight of the standard deviation. A number or a schedule."""
    warmup_epochs: float = 50.0
    """Epochs in which alpha rises from 0."""
    history: int = 5
    """Values noted of each cached image, 2 to 255."""
    temperature: float | Schedule = 0.2
    """Of P, above 0. A number or a schedule."""
    keep_temperature: float | Schedule = 0.1
    """Of the draw of those that stay in the cache, above 0. A number or a schedule."""
    combine: Combine = "replace"
    """Whether they become the candidates or are added to those of the queue or batch."""
    bank: Bank = Bank()
    """How the key of each image is remembered."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "size", "count", least=1)
        check_range(self, "explore", "warmup_epochs", least=0)
        check_range(self, "history", least=2, most=255)
        check_range(self, "temperature", "keep_temperature", above=0)
        check_range(self, "alpha")
        self.memory = KeyBank(self.bank)
        self.register_buffer("cache", torch.full((0, self.size), -1, dtype=torch.int32))
        self.register_buffer("scores", torch.zeros(0, self.size, self.history, dtype=torch.float16))
        self.register_buffer("noted", torch.zeros(0, self.size, dtype=torch.uint8))

    def begin(self, facts: Facts) -> None:
        """Make an empty row, cache and history for each image."""
        self.memory.begin(facts)
        self.cache = self.cache.new_full((facts.images, self.size), -1)
        self.scores = self.scores.new_zeros(facts.images, self.size, self.history)
        self.noted = self.noted.new_zeros(facts.images, self.size)

    def refresh(self, embeddings: Callable[[], Float[Tensor, "T D"]], clock: Clock) -> None:
        """Fill the memory before the first step, if asked for."""
        self.memory.fill_once(embeddings)

    @torch.no_grad()
    def update(self, keys: Float[Tensor, "B D"], image_id: Int64[Tensor, " B"], clock: Clock) -> None:
        """Note the scores of cached images, better the caches of the step's images, write their keys."""
        anchors, row = distinct(image_id)
        key, cache = keys[row], self.cache[anchors].long()
        own_row = (self.memory.rows(anchors).to(key) * key).sum(dim=1)
        positive = torch.where(self.memory.filled[anchors], own_row, 1.0)
        draws = same_on_all_ranks(clock, "ScoreHistory/update")
        pool, old = explored(self.memory, cache, anchors, self.explore, draws)
        score = self._score(similarity_to(self.memory, key, pool), positive, clock)

        law = score / value(self.keep_temperature, clock.progress)
        kept, column = largest(law + gumbel(law, draws), pool, self.size)
        stayed = (column < old) & (kept >= 0)
        place = column.clamp(max=old - 1)
        past = self.scores[anchors].gather(1, place[:, :, None].expand(-1, -1, self.history))
        now = score.gather(1, column)[:, :, None].to(past.dtype)
        self.cache[anchors] = kept.int()
        self.scores[anchors] = torch.cat([past[:, :, 1:], now], dim=2)  # the latest value last
        noted = self.noted[anchors].gather(1, place).int().masked_fill(~stayed, 0) + 1
        self.noted[anchors] = noted.clamp(max=self.history).masked_fill(kept < 0, 0).to(torch.uint8)
        self.memory.write(keys, image_id, clock)

    def _score(self, similarity: Tensor, positive: Float[Tensor, " B"], clock: Clock) -> Float[Tensor, "B M"]:
        return ((similarity - positive[:, None]) / value(self.temperature, clock.progress)).sigmoid()

    def deviation(self, image_id: Int64[Tensor, " B"]) -> Float[Tensor, "B size"]:
        """Population standard deviation of the noted scores of each cached image; 0 with fewer than two."""
        scores, noted = self.scores[image_id].float(), self.noted[image_id].long()[:, :, None]
        there = torch.arange(self.history, device=noted.device) >= self.history - noted
        times = noted.clamp(min=1)
        mean = (scores * there).sum(dim=2, keepdim=True) / times
        variance = ((scores - mean).square() * there).sum(dim=2, keepdim=True) / times
        return variance.sqrt()[:, :, 0]

    def forward(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with, or of, the best of the caches."""
        draws = clock.generator("ScoreHistory", self.memory.keys.device)
        count = count_at(self.count, clock)
        own = negatives.query_id
        ids = self.memory.known(self.cache[own].long())
        similarity = similarity_to(self.memory, negatives.query.detach(), ids)
        score = self._score(similarity, negatives.positive_similarity.detach(), clock)
        alpha = value(self.alpha, clock.progress)
        if self.warmup_epochs > 0:
            alpha *= min(1.0, clock.epoch / self.warmup_epochs)
        ids, _ = largest(score + alpha * self.deviation(own).to(score), ids, count)
        ids, _ = filled_up(negatives, self.memory, ids, self.combine, draws)
        return joined(negatives, self.memory, ids, self.combine)


def explored(
    memory: KeyBank, cache: Int64[Tensor, "B S"], anchors: Int64[Tensor, " B"], count: int, draws: torch.Generator
) -> tuple[Int64[Tensor, "B P"], int]:
    """The cached images of each anchor and ``count`` drawn from all, as many more as an empty cache has room for.

    Returns:
        Images, each once and never the anchor, -1 where there is none; and the number of columns of cached ones.
    """
    size = cache.shape[1]
    drawn = memory.draw((len(anchors), count + size), draws)
    spare = torch.arange(count + size, device=cache.device) >= count
    drawn = drawn.masked_fill(spare & (cache >= 0).any(dim=1)[:, None], -1)
    return without_repeats(torch.cat([cache, drawn], dim=1), anchors), size
