"""Stages that take candidates from a memory of all images: any of them, or the nearest found by a search."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from contrastneg.checks import check_range
from contrastneg.negatives.bank import Bank, Combine, KeyBank, appended_keys, filled_up, joined, largest
from contrastneg.negatives.core import Clock, Facts, Negatives, StageWithState, count_at, whole
from contrastneg.negatives.graph import Edges, Graph, OnGraph
from contrastneg.negatives.select import scaling
from contrastneg.schedules import Schedule


@dataclass(eq=False)
class MemoryBank(StageWithState):
    r"""Draw candidates uniformly from a memory that holds one key per image (InstDisc, arXiv:1805.01978).

    A step takes ``count`` different images of the F remembered ones, the same for all queries, so

    .. math:: P(j \text{ is a candidate}) = \min(1, count / F)

    Written after each step. Analogy: the paper's positive is the image's own row and its loss is noise-contrastive
    estimation; here the positive stays the other view and the loss is that of the method. For the memory's size see
    :class:`contrastneg.negatives.bank.KeyBank`.
    """

    kind: ClassVar[str] = "source"
    needs: ClassVar[frozenset[str]] = frozenset({"id"})
    of_images: ClassVar[tuple[str, ...]] = ("count",)
    memory: KeyBank = field(init=False, repr=False)

    count: int | Schedule = 4096
    """Images drawn per step, at least 1. A number or a schedule."""
    combine: Combine = "replace"
    """Whether they become the candidates or are added to those of the queue or batch."""
    mass: Literal["plain", "preserve"] = "plain"
    """Whether each counts once, or the drawn ones stand for all remembered images and count F / count times."""
    bank: Bank = Bank()
    """How the key of each image is remembered."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "count", least=1)
        object.__setattr__(self, "breaks", self.breaks | scaling(self.mass))
        self.memory = KeyBank(self.bank)

    @property
    def gives(self) -> frozenset[str]:  # type: ignore[override]
        """The law of the draw, unless candidates of the table stay whose law is not known."""
        return frozenset({"log_prob"} if self.combine == "replace" else ())

    def begin(self, facts: Facts) -> None:
        """Make an empty row for each image."""
        self.memory.begin(facts)

    def refresh(self, embeddings: Callable[[], Float[Tensor, "T D"]], clock: Clock) -> None:
        """Fill the memory before the first step, if asked for."""
        self.memory.fill_once(embeddings)

    def update(self, keys: Float[Tensor, "B D"], image_id: Int64[Tensor, " B"], clock: Clock) -> None:
        """Write the keys of the step."""
        self.memory.write(keys, image_id, clock)

    def forward(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with, or of, ``count`` remembered images."""
        count, remembered = count_at(self.count, clock), len(self.memory)
        draws = clock.generator("MemoryBank", self.memory.keys.device)
        place = torch.randperm(remembered, generator=draws, device=draws.device)[:count]
        ids = self.memory.order[place].long()
        query, positive, own = negatives.query, negatives.positive, negatives.query_id
        new = Negatives.of(query, positive, self.memory.rows(ids), query_id=own, key_id=ids)
        log_share = math.log(len(ids) / remembered) if remembered else 0.0
        law = torch.full_like(new.similarity, log_share).detach()
        if self.mass == "preserve":
            new = replace(new, log_weight=new.log_weight - log_share)
        new = replace(new, log_prob=law.masked_fill(~new.kept, -torch.inf))
        return new if self.combine == "replace" else appended_keys(negatives, new)


@dataclass(eq=False)
class MinedNeighbours(OnGraph):
    r"""Take candidates from each image's nearest images, searched among all images every few epochs.

    The list of image i holds ranks ``skip`` + 1 to ``skip + size`` by cosine of the embeddings of that time, found by an
    exact search. Per query, ``count`` of the list are drawn without replacement and ``uniform`` more images from all.
    Until the first search, and for images it did not know, all are uniform.

    Mining by rounds goes back to bootstrapping detectors with their own mistakes and to iterated mining of relevant
    negatives. ``size`` = ``count`` with ``uniform`` = 0 or = ``count`` is nearest-to-the-positive sampling, "max" or
    "mix", with features of the past epoch; ``size`` a share of all images is the truncated sampling of BootEA. Analogy:
    there the windows, items or entities are not images.

    Memory: a bank, and 8 T (skip + size) bytes of lists: 330 MB for 1.28 million images at 32. The search costs
    2 T^2 D operations: seconds for 50,000 images on a CPU; beyond some 200,000 it wants a GPU or a large ``every``.
    """

    kind: ClassVar[str] = "source"
    needs: ClassVar[frozenset[str]] = frozenset({"id"})
    breaks: ClassVar[frozenset[str]] = frozenset({"iid", "log_prob"})
    of_images: ClassVar[tuple[str, ...]] = ("size",)

    size: int = 32
    """Images in each list, at least 1."""
    count: int | Schedule = 16
    """Candidates drawn from the list, at least 1; a number or a schedule."""
    uniform: int | Schedule = 16
    """Candidates drawn from all images besides, 0 or more; a number or a schedule."""
    skip: int = 0
    """Nearest images that are left out, because they may be of the same class."""
    every: int = 1
    """Epochs between searches, at least 1."""
    start: int = 1
    """Epoch of the first search; the embeddings of epoch 0 come from an untrained encoder."""
    combine: Combine = "replace"
    """Whether they become the candidates or are added to those of the queue or batch."""
    bank: Bank = Bank()
    """How the key of each image is remembered."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "size", "count", "every", least=1)
        check_range(self, "uniform", "skip", "start", least=0)
        self.memory = KeyBank(self.bank)
        self.graph = Graph(Edges(self.skip + self.size, every=self.every, start=self.start))

    def forward(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with, or of, the drawn images."""
        draws = clock.generator("MinedNeighbours", self.memory.keys.device)
        count, uniform = (whole(n, clock) for n in (self.count, self.uniform))
        own = negatives.query_id
        ids = self.memory.known(self.graph.neighbours[own, self.skip :].long())
        order = torch.rand(ids.shape, generator=draws, device=ids.device)
        listed, _ = largest(order, ids, count) if count else (ids[:, :0], None)
        drawn = self.memory.draw((len(own), count + uniform), draws)
        listed = torch.where((listed >= 0).any(dim=1, keepdim=True), listed, drawn[:, :count])
        ids = torch.cat([listed, drawn[:, count:]], dim=1)
        ids, _ = filled_up(negatives, self.memory, ids, self.combine, draws)
        return joined(negatives, self.memory, ids, self.combine)
