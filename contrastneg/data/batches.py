"""Which images share a batch: the order in which an epoch shows them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from contrastneg.checks import check_range
from contrastneg.evaluate.neighbours import unit_rows
from contrastneg.negatives.graph import Edges, Graph, walk
from contrastneg.randomness import generator

__all__ = ["Batches", "GraphWalkBatches", "ShuffledBatches"]
BLOCK = 256  # images that are compared with the same random images
WALKERS = 8  # walks from a seed, one after the other in the order of visits
LEAST_STEPS = 32


class Batches(ABC):
    """How the images of an epoch are put into batches: equal on all ranks, a function of seed, epoch and what was saved."""

    @abstractmethod
    def order(self, images: int, per_step: int, seed: int, epoch: int) -> Int64[Tensor, " N"]:
        """The positions of an epoch; each run of ``per_step`` of them is what all ranks together see in one micro-batch.

        Args:
            images: Images of the set; as many positions are given.
            per_step: Images of a micro-batch on all ranks together.
            seed: Seed of the run.
            epoch: Which epoch, from 0.
        """

    def refresh(  # noqa: B027 - most orders need no embeddings
        self, embeddings: Callable[[], Float[Tensor, "N D"]], seed: int, epoch: int
    ) -> None:
        """Called on every rank before the first batch of an epoch, but not where a run resumes within one.

        Args:
            embeddings: Gives the unit embeddings of all images by position, the same on every rank, on the CPU; NaN
                where an image could not be read. Costs a pass over the images: call it only if needed.
            seed: Seed of the run.
            epoch: The epoch that begins.
        """

    def state_dict(self) -> dict[str, Any]:
        """What the order depends on beside seed and epoch, for the checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Take a saved state."""


@dataclass(frozen=True)
class ShuffledBatches(Batches):
    """Each image once per epoch, in a random order."""

    def order(self, images: int, per_step: int, seed: int, epoch: int) -> Int64[Tensor, " N"]:
        """A permutation."""
        return torch.randperm(images, generator=generator(seed, "order", epoch))


@dataclass(eq=False)
class GraphWalkBatches(Batches):
    r"""Batches of images that random walks with restart visit on a graph of similar images (BatchSampler, arXiv:2306.03355).

    The negatives within a batch become harder and the loss stays as it is. An edge leads from each image to the
    ``neighbours`` most similar by cosine of ``candidates`` images drawn at random: with N images about a share
    candidates / N of the very nearest, those most likely of the same class, are among them. Walks begin at a random image
    (the seed); in each step they return to it with probability

    .. math:: \alpha_e = \max(\alpha_{least}, \alpha - d \lfloor e / n \rfloor)

    in epoch e, with ``restart``, ``restart_drop``, ``restart_every`` and ``restart_least``, and else follow one of the
    edges. The batch is the seed and what is visited first. Restart 1 gives shuffled batches.

    As in the paper: the graph, its 1000 and 100, the restart probability and its course, shuffled batches at first. Ours:
    the graph is made anew before an epoch, not every 100 steps; 256 images in turn share the images that they are
    compared with; a walk begins anew after at least 32 steps; where no further image is reached, two more seeds are taken, then four and so
    on. With ``once`` each image is shown once per epoch, so late batches have few neighbours left to take; without it
    each batch is walked anew as in the paper, and an epoch, which has as many steps, shows some images often and others
    not at all. Within a batch an image never occurs twice.

    It changes the negatives of methods that contrast within the batch: SimCLR, and MoCo without a queue. Memory: 8 bytes
    per edge, 4 of them in the checkpoint: 1 GB and 0.5 GB for the 1.28 million images of ImageNet. Time: a pass over the
    images for each graph.
    """

    candidates: int = 1000
    """Random images that an image is compared with, at least ``neighbours``: the more, the harder the batches."""
    neighbours: int = 100
    """Edges from an image, at least 1."""
    restart: float = 0.2
    """Probability to return to the seed in the first epochs, in [0, 1]: the lower, the farther a batch reaches."""
    restart_drop: float = 0.1
    """How much lower it is after each ``restart_every`` epochs, at least 0."""
    restart_every: int = 5
    """Epochs between these drops, at least 1."""
    restart_least: float = 0.05
    """The lowest probability to return, in [0, 1]."""
    every: int = 1
    """Epochs between graphs, at least 1."""
    start: int = 1
    """Epoch of the first graph, at least 0; batches before it are shuffled, as the encoder has not learned anything yet."""
    once: bool = True
    """Show each image once per epoch."""

    graph: Graph = field(init=False, repr=False)
    built: int = field(init=False, repr=False, default=-1)

    def __post_init__(self) -> None:
        check_range(self, "neighbours", "restart_every", "every", least=1)
        check_range(self, "candidates", least=self.neighbours)
        check_range(self, "start", "restart_drop", least=0)
        check_range(self, "restart", "restart_least", least=0, most=1)
        self.graph = Graph(Edges(neighbours=self.neighbours))

    def refresh(self, embeddings: Callable[[], Float[Tensor, "N D"]], seed: int, epoch: int) -> None:
        """Make the graph anew if it is time."""
        if epoch < self.start or (self.built >= 0 and epoch < self.built + self.every):
            return
        draws = generator(seed, "GraphWalkBatches", "graph", epoch)
        self._take(proximity_graph(embeddings(), self.candidates, self.neighbours, draws), epoch)

    def order(self, images: int, per_step: int, seed: int, epoch: int) -> Int64[Tensor, " N"]:
        """Batch after batch, each in a random order of its own so that all ranks see alike parts of it."""
        waiting = ShuffledBatches().order(images, per_step, seed, epoch)
        if self.built < 0:
            return waiting
        draws = generator(seed, "GraphWalkBatches", "walks", epoch)
        free, batches = torch.ones(images, dtype=torch.bool), []
        for step, size in enumerate(len(part) for part in waiting.split(per_step)):
            if self.once:
                waiting = waiting[free[waiting]]
                batch = self._batch(free, waiting, size, epoch, draws)
            else:
                batch = self._batch(torch.ones_like(free), waiting.roll(-step), size, epoch, draws)
            batches.append(batch[torch.randperm(size, generator=draws)])
        return torch.cat(batches)

    def _batch(
        self, free: Bool[Tensor, " N"], waiting: Int64[Tensor, " W"], size: int, epoch: int, draws: torch.Generator
    ) -> Int64[Tensor, " size"]:
        """Images that are free, from then on taken; seeds are the first of those that wait."""
        follow = 1 - max(self.restart_least, self.restart - self.restart_drop * (epoch // self.restart_every))
        taken: list[int] = []
        seeds = 1
        while len(taken) < size:
            missing = size - len(taken)
            waiting = waiting[free[waiting]]
            start = waiting[: min(seeds, missing)]
            steps = max(LEAST_STEPS, -(-4 * missing // (WALKERS * len(start))))
            nodes, _ = walk(self.graph, start.repeat_interleave(WALKERS), steps, follow, draws)
            met = torch.cat([start[:, None], nodes.view(len(start), -1)], dim=1).flatten()
            new = list(dict.fromkeys(met[free[met]].tolist()))[:missing]
            free[new] = False
            taken += new
            seeds *= 2
        return torch.tensor(taken)

    def _take(self, neighbours: Int64[Tensor, "N k"], epoch: int) -> None:
        self.graph.put(neighbours, torch.ones(neighbours.shape))
        self.built = epoch

    def state_dict(self) -> dict[str, Any]:
        """The graph and the epoch in which it was made."""
        return {"neighbours": self.graph.neighbours, "built": self.built}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a saved graph."""
        self._take(state["neighbours"].long(), state["built"])


def proximity_graph(
    embeddings: Float[Tensor, "N D"], candidates: int, neighbours: int, draws: torch.Generator
) -> Int64[Tensor, "N neighbours"]:
    """The most similar of some random images for each image, itself left out.

    Args:
        embeddings: NaN rows have no neighbours and are nobody's.
        candidates: Images drawn without repetition for every 256 images; all where there are no more.
        neighbours: Of them kept, at most.
        draws: For the candidates and for which images share them.

    Returns:
        Positions, most similar first, -1 where there is none.
    """
    found = torch.full((len(embeddings), neighbours), -1)
    there = (~embeddings.isnan().any(dim=1)).nonzero()[:, 0]
    rows = unit_rows(embeddings[there])
    for block in torch.randperm(len(there), generator=draws).split(BLOCK):
        drawn = torch.randperm(len(there), generator=draws)[:candidates]
        cosine = rows[block] @ rows[drawn].T
        cosine.masked_fill_(block[:, None] == drawn, -torch.inf)
        best = cosine.topk(min(neighbours, len(drawn)), dim=1)
        ids = there[drawn[best.indices]].masked_fill(best.values.isneginf(), -1)
        found[there[block], : ids.shape[1]] = ids
    return found
