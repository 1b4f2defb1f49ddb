"""Stages that prefer, or avoid, popular candidates, and what may count as popular.

A law over *types* is not one over *entries*: a queue holds images, and each cluster owns as many of its entries as it has
images. So the exponent a at type level is a - 1 at entry level. At type level 1 is what a queue is anyway, 0.75 (word2vec)
is flatter, 0 draws all clusters alike, below 0 prefers rare ones.
"""

from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from contrastneg import distributed
from contrastneg.checks import Checked, WrongSetting, check_range
from contrastneg.evaluate.neighbours import nearest, unit_rows
from contrastneg.negatives.core import Clock, Facts, Negatives, StageWithState, count_at
from contrastneg.negatives.groups import clustered, column_of, group_codes, sizes
from contrastneg.negatives.select import Mass, draw_by_law, keep_only, scaling
from contrastneg.negatives.weight import tilted
from contrastneg.randomness import derive_seed
from contrastneg.schedules import Schedule, value


class Popularity(Checked, ABC):
    """What makes an image popular: a number per image, known at the start, before an epoch, or from the steps."""

    of_types: ClassVar[bool] = False
    """Whether it is the size of a type that the image belongs to."""

    def at_start(self, facts: Facts, stage: str) -> Float[Tensor, " T"]:
        """Popularity of each image before the first step."""
        return torch.zeros(facts.images)

    def of_epoch(self, embeddings: Callable[[], Float[Tensor, "T D"]], clock: Clock) -> Float[Tensor, " T"] | None:
        """Popularity from now on; None leaves it as it is."""
        return None

    def hits(self, negatives: Negatives, images: int) -> Float[Tensor, " T"] | None:
        """How often each image was hit in this step; None where that does not count."""
        return None

    def after_hits(self, known: Float[Tensor, " T"], hits: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
        """Popularity after a step with these hits of all ranks."""
        return known + hits


@dataclass(frozen=True)
class ClusterSize(Popularity):
    """Number of images in the image's cluster, by k-means on the embeddings before the epoch.

    An analogy where nothing is known of the images: clusters for words, items or nodes.
    """

    of_types: ClassVar[bool] = True

    clusters: int = 100
    """Clusters, at least 1."""
    start: int = 1
    """First epoch with clusters; all images are alike before it."""
    every: int = 1
    """Epochs from one clustering to the next."""

    def __post_init__(self) -> None:
        check_range(self, "clusters", "every", least=1)
        check_range(self, "start", least=0)

    def of_epoch(self, embeddings: Callable[[], Float[Tensor, "T D"]], clock: Clock) -> Float[Tensor, " T"] | None:
        """Cluster, if it is time."""
        if not due(clock, self.start, self.every):
            return None
        seed = derive_seed(clock.seed, "ClusterSize", round(clock.epoch), clock.stage)
        return sizes(clustered(embeddings(), self.clusters, seed).label)


@dataclass(frozen=True)
class ColumnSize(Popularity):
    """Number of images with the same value of a metadata column; faithful where the column holds the types."""

    of_types: ClassVar[bool] = True

    column: str
    """Name of the column."""

    def at_start(self, facts: Facts, stage: str) -> Float[Tensor, " T"]:
        """Count the values.

        Raises:
            ValueError: There is no such column.
        """
        return sizes(group_codes(column_of(facts, self, "column")))


@dataclass(frozen=True)
class OracleClassSize(Popularity):
    """Number of images of the same class: an oracle, which uses labels, for comparisons only."""

    of_types: ClassVar[bool] = True

    def at_start(self, facts: Facts, stage: str) -> Float[Tensor, " T"]:
        """Count the classes.

        Raises:
            ValueError: There are no labels.
        """
        if facts.labels is None:
            raise ValueError(f"stage {stage} with OracleClassSize needs labels but the data has none: use ClusterSize")
        return sizes(facts.labels)


@dataclass(frozen=True)
class InDegree(Popularity):
    """How many images have the image among their nearest neighbours (hubness): an analogy for the degree of a node.

    The search compares all pairs of images.
    """

    neighbours: int = 20
    """Neighbours of each image, at least 1."""
    start: int = 1
    """First epoch with neighbours; all images are alike before it."""
    every: int = 5
    """Epochs from one search to the next."""

    def __post_init__(self) -> None:
        check_range(self, "neighbours", "every", least=1)
        check_range(self, "start", least=0)

    def of_epoch(self, embeddings: Callable[[], Float[Tensor, "T D"]], clock: Clock) -> Float[Tensor, " T"] | None:
        """Search, if it is time."""
        if not due(clock, self.start, self.every):
            return None
        table = embeddings()
        there = table.isfinite().all(dim=1).nonzero()[:, 0]
        rows = unit_rows(table[there])
        index = nearest(rows, rows, min(self.neighbours + 1, len(rows)))[1]
        itself = index == torch.arange(len(rows))[:, None]
        itself[~itself.any(dim=1), -1] = True  # among many equal ones it may not be found: leave out the last instead
        degree = index[~itself].bincount(minlength=len(rows))
        return torch.zeros(len(table)).index_copy_(0, there, degree.float())


@dataclass(frozen=True)
class HitRate(Popularity):
    """How often the image was among the hardest candidates of a query, older steps counting less: an analogy."""

    share: float = 0.05
    """Share of a query's candidates that are hit, the hardest, above 0 and at most 1."""
    decay: float = 0.99
    """What earlier hits are multiplied by after each step, from 0 to 1."""

    def __post_init__(self) -> None:
        check_range(self, "share", above=0, most=1)
        check_range(self, "decay", least=0, most=1)

    def hits(self, negatives: Negatives, images: int) -> Float[Tensor, " T"] | None:
        """Hits of the step: the hardest of all columns that are images and were not removed."""
        real = negatives.kept & (negatives.key_id >= 0)
        count = min(max(1, round(self.share * real.shape[1])), real.shape[1])
        best = negatives.similarity.detach().masked_fill(~real, -torch.inf).topk(count, dim=1, sorted=False).indices
        hit = negatives.key_id.expand_as(real).gather(1, best).clamp(min=0)
        counted = real.gather(1, best).float()
        return counted.new_zeros(images).index_add_(0, hit.flatten(), counted.flatten())

    def after_hits(self, known: Float[Tensor, " T"], hits: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
        """Popularity after a step with these hits of all ranks; earlier ones fade."""
        return known * self.decay + hits


@dataclass(eq=False)
class OfPopularity(StageWithState):
    """What both stages know: the popularity of each image, 4 bytes per image (8 with HitRate), equal on all ranks."""

    needs: ClassVar[frozenset[str]] = frozenset({"id"})
    breaks: ClassVar[frozenset[str]] = frozenset({"iid"})
    frequency: Tensor = field(init=False, repr=False)

    popularity: Popularity = field(default_factory=ClusterSize)
    """What makes an image popular: ClusterSize, ColumnSize, InDegree, HitRate or OracleClassSize."""
    exponent: float | Schedule = 0.75
    """Power of the popularity; below 0 prefers rare images. 0.75 is word2vec's, at type level. A number or a schedule."""
    level: Literal["type", "entry"] = "type"
    """Whether the power is that of the law over types (clusters, values of a column) or over single images."""
    floor: float = 1.0
    """Least popularity of an image, above 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "exponent")
        check_range(self, "floor", above=0)
        if self.level == "type" and not self.popularity.of_types:
            kind = type(self.popularity).__name__
            raise WrongSetting(self, "level", f"is type but {kind} is no size of types: give level entry")
        self.oracle = isinstance(self.popularity, OracleClassSize)
        self.register_buffer("frequency", torch.zeros(0))
        self._hits: Tensor | None = None  # of the steps since the last update

    def first_epoch(self, epochs: float) -> float:
        """The first clustering or search, where popularity comes from one."""
        return self.popularity.start if isinstance(self.popularity, (ClusterSize, InDegree)) else 0.0

    def begin(self, facts: Facts) -> None:
        """Popularity before the first step.

        Raises:
            ValueError: The data lacks the column or the labels.
        """
        device = self.frequency.device
        self.frequency = self.popularity.at_start(facts, type(self).__name__).to(device)

    def refresh(self, embeddings: Callable[[], Float[Tensor, "T D"]], clock: Clock) -> None:
        """Popularity from this epoch on."""
        found = self.popularity.of_epoch(embeddings, clock)
        if found is not None:
            self.frequency.copy_(found)

    def update(self, keys: Float[Tensor, "B D"], image_id: Int64[Tensor, " B"], clock: Clock) -> None:
        """Count the hits of all ranks."""
        if self._hits is not None:
            self.frequency = self.popularity.after_hits(self.frequency, distributed.total(self._hits))
            self._hits = None

    def log_popularity(self, negatives: Negatives, clock: Clock) -> Float[Tensor, "B M"]:
        """Logarithm of each candidate's popularity to its power, up to a constant; counts the hits of training on the way."""
        hits = self.popularity.hits(negatives, len(self.frequency)) if self.training else None
        if hits is not None:
            self._hits = hits if self._hits is None else self._hits + hits
        power = value(self.exponent, clock.progress) - (self.level == "type")
        known = self.frequency[negatives.key_id.clamp(min=0)].masked_fill(negatives.key_id < 0, 0)
        log = power * known.clamp(min=self.floor).log().to(negatives.similarity.dtype)
        return log.expand_as(negatives.similarity)


@dataclass(eq=False)
class PopularSubset(OfPopularity):
    r"""Draw candidates, without replacement, by a power of their popularity (word2vec, arXiv:1310.4546).

    .. math:: \pi_j \propto \max(f_j, floor)^a

    with a the ``exponent`` at entry level and the ``exponent`` less 1 at type level. An analogy, except with ColumnSize
    where the column holds the types of the paper. Frequent clusters hold more of a query's own class: prefer them and
    there are more false negatives, the reverse of what exposure does in recommendation.
    """

    kind: ClassVar[str] = "select"
    gives: ClassVar[frozenset[str]] = frozenset({"log_prob"})
    of_candidates: ClassVar[tuple[str, ...]] = ("count",)

    count: int | Schedule = 256
    """Candidates kept per query, at least 1; rows with fewer keep them all. A number or a schedule."""
    mass: Mass = "preserve"
    """Whether the kept candidates take over the weight of the dropped ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "count", least=1)
        object.__setattr__(self, "breaks", self.breaks | scaling(self.mass))

    def forward(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with at most ``count`` candidates kept per query."""
        log_law = self.log_popularity(negatives, clock).masked_fill(~negatives.kept, -torch.inf)
        draws = clock.generator("PopularSubset", log_law.device)
        chosen, log_prob = draw_by_law(log_law, count_at(self.count, clock), draws)
        return keep_only(negatives, chosen, self.mass, log_prob)


@dataclass(eq=False)
class PopularityWeight(OfPopularity):
    r"""Weigh candidates by a power of their popularity, the total weight of each row staying what it was (eALS).

    .. math:: \omega_j \propto \max(f_j, floor)^a

    After arXiv:1708.05024, where these weights stand in a square loss over all items: an analogy. Their
    total, c_0 there, is the ``negative_weight`` of Square.
    """

    kind: ClassVar[str] = "weight"
    whole_groups: ClassVar[bool] = True
    breaks: ClassVar[frozenset[str]] = frozenset({"iid", "plain mass"})

    def forward(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with other weights."""
        return tilted(negatives, self.log_popularity(negatives, clock))


def due(clock: Clock, start: int, every: int) -> bool:
    """Whether something done every so many epochs, from a first one on, is to be done before this epoch."""
    epoch = round(clock.epoch)
    return epoch >= start and (epoch - start) % every == 0
