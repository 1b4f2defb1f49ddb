"""Graphs over the images: nearest neighbours or shared metadata, and walks on them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from contrastneg.checks import check_kinds, check_range
from contrastneg.evaluate.neighbours import nearest, unit_rows
from contrastneg.negatives.bank import KeyBank, without_repeats
from contrastneg.negatives.core import Clock, Facts, StageWithState
from contrastneg.negatives.groups import column_of, group_codes
from contrastneg.randomness import generator

LARGEST_DRAW = 1 - 2.0**-20  # so that a draw times the sum of the weights stays below that sum in float32


@dataclass(frozen=True)
class Edges:
    """Which images are neighbours in a graph."""

    neighbours: int = 20
    """Edges of an image, at most; at least 1."""
    columns: tuple[str, ...] = ()
    """Metadata columns: images are neighbours where they agree, and the graph is made once. None: nearest embeddings."""
    every: int = 5
    """Epochs between searches for nearest neighbours, at least 1."""
    start: int = 1
    """Epoch of the first search; the embeddings of epoch 0 come from an untrained encoder."""
    mutual: bool = False
    """Keep only edges between images that are each among the other's nearest neighbours."""
    temperature: float = 0.0
    """Weigh an edge by e to its cosine over this; 0 gives all edges weight 1. Metadata edges weigh the columns that agree."""
    power: float = 1.0
    """Each weight is raised to this power."""

    def __post_init__(self) -> None:
        check_kinds(self)
        object.__setattr__(self, "columns", tuple(self.columns))  # a YAML file gives a list
        check_range(self, "neighbours", "every", least=1)
        check_range(self, "start", "temperature", least=0)
        check_range(self, "power")


class Graph(nn.Module):
    """For each image its neighbours and the weight of each edge; 8 bytes per edge, 205 MB for 1.28 million images by 20.

    Buffers:
        neighbours: (T, k) images, -1 where there is none.
        upto: (T, k) sum of the weights of an edge and those left of it, from which walks draw.
        built: Epoch of the last search, -1 before it.
    """

    neighbours: Tensor
    upto: Tensor
    built: Tensor

    def __init__(self, settings: Edges) -> None:
        """An empty graph.

        Args:
            settings: Which images are neighbours.
        """
        super().__init__()
        self.settings = settings
        self.register_buffer("neighbours", torch.full((0, settings.neighbours), -1, dtype=torch.int32))
        self.register_buffer("upto", torch.zeros(0, settings.neighbours))
        self.register_buffer("built", torch.tensor(-1))

    def begin(self, facts: Facts) -> None:
        """Make the graph of metadata, or one without edges.

        Raises:
            ValueError: There is no such column.
        """
        edges = self.settings
        columns = [column_of(facts, edges, "columns", name) for name in edges.columns]
        shape = (facts.images, edges.neighbours)
        neighbours, weight = torch.full(shape, -1), torch.zeros(shape)
        if edges.columns:
            codes = torch.stack([group_codes(column) for column in columns], dim=1)
            neighbours, weight = metadata_graph(codes, edges.neighbours)
        self.put(neighbours, weight**edges.power)
        self.built.fill_(-1)

    def refresh(self, embeddings: Callable[[], Float[Tensor, "T D"]], clock: Clock, memory: KeyBank) -> None:
        """Search for the nearest neighbours if it is time; the memory gets the embeddings too."""
        edges, epoch, built = self.settings, int(clock.epoch + 1e-6), int(self.built)
        due = epoch >= edges.start if built < 0 else epoch >= built + edges.every
        if edges.columns or not due:
            return
        table = embeddings()
        memory.fill(table)
        neighbours, cosine = knn_graph(table.to(self.upto.device), edges.neighbours, edges.mutual)
        weight = (cosine / edges.temperature).exp() if edges.temperature else torch.ones_like(cosine)
        self.put(neighbours, weight**edges.power)
        self.built.fill_(epoch)

    def put(self, neighbours: Int64[Tensor, "T k"], weight: Float[Tensor, "T k"]) -> None:
        """Take these edges.

        Args:
            neighbours: Neighbours of each image, -1 where there is none.
            weight: At least 0; taken as 0 where there is no neighbour.
        """
        device = self.upto.device
        self.neighbours = neighbours.int().to(device)
        # on the CPU: running sums on a GPU may differ from one time to the next
        self.upto = weight.masked_fill(neighbours < 0, 0).float().cpu().cumsum(dim=1).to(device)

    def weight(self, node: Int64[Tensor, "*shape"]) -> Float[Tensor, "*shape k"]:
        """The weights of the edges of some images; 0 where there is none. Those of image 0 for -1."""
        upto = self.upto[node.clamp(min=0)]
        return upto.diff(dim=-1, prepend=torch.zeros_like(upto[..., :1]))

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        saved = state_dict.get(prefix + "upto")
        if saved is not None and saved.shape != self.upto.shape:
            self.upto = self.upto.new_zeros(saved.shape)
            self.neighbours = self.neighbours.new_zeros(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class OnGraph(StageWithState):
    """What stages with a bank and a graph do alike: keep both up to date."""

    memory: KeyBank
    graph: Graph

    def first_epoch(self, epochs: float) -> float:
        """The first search; a graph of metadata is there from the start."""
        return 0.0 if self.graph.settings.columns else self.graph.settings.start

    def begin(self, facts: Facts) -> None:
        """Make an empty row for each image, and the graph if it is one of metadata."""
        self.memory.begin(facts)
        self.graph.begin(facts)

    def refresh(self, embeddings: Callable[[], Float[Tensor, "T D"]], clock: Clock) -> None:
        """Fill the memory if asked for, and search for neighbours if it is time."""
        self.memory.fill_once(embeddings)
        self.graph.refresh(embeddings, clock, self.memory)

    def update(self, keys: Float[Tensor, "B D"], image_id: Int64[Tensor, " B"], clock: Clock) -> None:
        """Write the keys of the step."""
        self.memory.write(keys, image_id, clock)


def knn_graph(
    embeddings: Float[Tensor, "T D"], count: int, mutual: bool = False
) -> tuple[Int64[Tensor, "T count"], Float[Tensor, "T count"]]:
    """The nearest images of each image by cosine, itself left out; exact, equal cosines by index.

    Args:
        embeddings: NaN rows have no neighbours and are nobody's.
        count: Neighbours of each.
        mutual: Keep only edges that go both ways.

    Returns:
        Neighbours, most similar first, -1 where there is none; their cosines.
    """
    there = (~embeddings.isnan().any(dim=1)).nonzero()[:, 0]
    neighbours = torch.full((len(embeddings), count), -1, device=embeddings.device)
    cosines = torch.zeros(neighbours.shape, device=embeddings.device)
    found = min(count, len(there) - 1)
    if found < 1:
        return neighbours, cosines
    rows = unit_rows(embeddings[there])
    cosine, index = nearest(rows, rows, found + 1)
    itself = index == torch.arange(len(rows), device=rows.device)[:, None]
    order = itself.int().argsort(dim=1, stable=True)[:, :found]  # itself last; not there at all among many equals
    neighbours[there, :found] = there[index.gather(1, order)]
    cosines[there, :found] = cosine.gather(1, order).to(cosines)
    if mutual:
        own = torch.arange(len(neighbours), device=rows.device)
        for column in range(found):
            back = (neighbours[neighbours[:, column].clamp(min=0)] == own[:, None]).any(dim=1)
            cosines[:, column].masked_fill_(~back, torch.nan)
        neighbours, cosines = neighbours.masked_fill(cosines.isnan(), -1), cosines.nan_to_num()
    return neighbours, cosines


def metadata_graph(
    codes: Int64[Tensor, "T C"], count: int
) -> tuple[Int64[Tensor, "T count"], Float[Tensor, "T count"]]:
    """Images that agree in some column, and in how many: co-occurrence counts.

    The whole graph where no image has more than ``count`` such neighbours. Of larger groups each image gets ``count``
    others that lie behind it in one random order per column; those that agree in most columns are kept.

    Args:
        codes: Group of each image in each column, -1 none.
        count: Neighbours of each image.
    """
    images = len(codes)
    draws = generator(0, "metadata graph")
    found = []
    for code in codes.T:
        order = torch.randperm(images, generator=draws)
        order = order[code[order].argsort(stable=True)]
        _, size = code[order].unique_consecutive(return_counts=True)
        first = (size.cumsum(0) - size).repeat_interleave(size)[:, None]
        size = size.repeat_interleave(size)[:, None]
        shift = torch.arange(1, count + 1)
        place = torch.arange(images)[:, None] - first + shift  # the next ones of the group, round and round
        other = order[first + place % size].masked_fill((shift >= size) | (code[order] < 0)[:, None], -1)
        found.append(torch.empty_like(other).index_copy_(0, order, other))
    ids = without_repeats(torch.cat(found, dim=1))
    agree = torch.zeros(ids.shape)
    for code in codes.T:
        agree += (code[ids.clamp(min=0)] == code[:, None]) & (code >= 0)[:, None] & (ids >= 0)
    weight, column = agree.sort(dim=1, descending=True, stable=True)
    return ids.gather(1, column)[:, :count], weight[:, :count]


def next_node(graph: Graph, node: Int64[Tensor, " n"], uniform: Float[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """A neighbour of each node, drawn by the weights of its edges; -1 from a node without any and from -1.

    Args:
        graph: The graph.
        node: Where walkers stand.
        uniform: One draw from [0, 1) each.
    """
    place = node.clamp(min=0)
    upto = graph.upto[place]
    total = upto[:, -1]
    column = (upto > (uniform.clamp(max=LARGEST_DRAW) * total)[:, None]).int().argmax(dim=1)
    return graph.neighbours[place, column].long().masked_fill((node < 0) | (total == 0), -1)


def walk(
    graph: Graph, start: Int64[Tensor, " n"], steps: int, follow: float, draws: torch.Generator
) -> tuple[Int64[Tensor, "n steps"], Int64[Tensor, "n steps"]]:
    r"""Walks that follow an edge with probability c and else return to their start.

    .. math:: p_t = (1 - c) \sum_{s<t} c^s (P^T)^s e + c^t (P^T)^t e

    is the law of node t, P being the weights with rows scaled to sum 1: powers of P at c = 1, personalised PageRank for
    large t. A walker on a node without edges returns to its start too.

    Args:
        graph: The graph.
        start: Where each walk begins; -1 stays -1.
        steps: Nodes visited after the start.
        follow: c in [0, 1].
        draws: On the device of the graph.

    Returns:
        The nodes, and how many edges each lies from the last visit of the start.
    """
    node, hop = start, torch.zeros_like(start)
    nodes, hops = [], []
    for _ in range(steps):
        go, choice = torch.rand(2, len(start), generator=draws, device=start.device)
        reached = next_node(graph, node, choice)
        moved = (go < follow) & (reached >= 0)
        node, hop = torch.where(moved, reached, start), torch.where(moved, hop + 1, 0)
        nodes.append(node)
        hops.append(hop)
    return torch.stack(nodes, dim=1), torch.stack(hops, dim=1)


def path_law(
    graph: Graph, start: Int64[Tensor, " n"], steps: int
) -> tuple[Int64[Tensor, "n paths"], Float[Tensor, "n paths"]]:
    """All paths of some steps: where each ends and its probability. A node may end several; -1 is a dead end.

    Row i of the matrix power P^steps is the sum over paths by end. There are (neighbours)^steps paths.
    """
    ends, law = start[:, None], torch.ones(len(start), 1, device=start.device)
    for _ in range(steps):
        weight = graph.weight(ends).masked_fill((ends < 0)[:, :, None], 0)  # (n, paths, k)
        share = weight / weight.sum(dim=2, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
        law = (law[:, :, None] * share).flatten(1)
        ends = graph.neighbours[ends.clamp(min=0)].long().flatten(1).masked_fill(law == 0, -1)
    return ends, law


def visits(nodes: Int64[Tensor, "B V"], images: int) -> tuple[Int64[Tensor, "B L"], Int64[Tensor, "B L"]]:
    """The different nodes of each row, -1 left out, and how often each occurs; ascending, filled with -1 and 0.

    Args:
        nodes: Below ``images``.
        images: Number of images.
    """
    row = torch.arange(len(nodes), device=nodes.device)[:, None].expand_as(nodes)
    pairs, times = (row * images + nodes)[nodes >= 0].unique(return_counts=True)
    row = pairs // images
    length = row.bincount(minlength=len(nodes))
    place = torch.arange(len(pairs), device=nodes.device) - (length.cumsum(0) - length)[row]
    shape = (len(nodes), int(length.max()) if len(nodes) else 0)
    ids, counts = nodes.new_full(shape, -1), nodes.new_zeros(shape)
    ids[row, place], counts[row, place] = pairs % images, times
    return ids, counts
