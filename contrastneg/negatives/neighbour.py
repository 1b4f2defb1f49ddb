"""Positives from the neighbourhood: an embedding of another image in the place of one's own."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from contrastneg.checks import check_range
from contrastneg.logsumexp import own_pairs
from contrastneg.negatives.core import Clock, Facts, Negatives, StageWithState, of_image
from contrastneg.negatives.mixes import row_parts
from contrastneg.queue import KeyQueue

NO_IMAGE = -2  # unlike the -1 of candidates without an image: it matches none of them


@dataclass(eq=False)
class NeighbourPositive(StageWithState):
    r"""Put the nearest neighbour in a support queue Q of past embeddings in the place of one's own (NNCLR, arXiv:2104.14548).

    With z the two views' embeddings, p those that are compared with them and NN(z) the row of Q with the largest cosine,

    .. math::
        L_i = -\log \frac{e^{NN(z_i) \cdot p_i / t}}{e^{NN(z_i) \cdot p_i / t} + \sum_k e^{NN(z_i) \cdot p_k / t}}
        \qquad \text{(query)} \qquad
        L_i = -\log \frac{e^{p_i \cdot NN(z_i) / t}}{e^{p_i \cdot NN(z_i) / t} + \sum_k e^{p_i \cdot z_k / t}}
        \qquad \text{(positive)}

    Rows of Q are constants, so with "query" all gradient comes through the positive and the candidates. The keys of a step
    join Q after its loss. Until Q holds an image that may be taken, a query keeps its own embedding.

    Verdict: with "query", ``mask`` off and SimCLR the published loss up to two things: SimCLR here has no predictor, so p
    is z, and its candidates and Q take both views of the images, where the official re-implementations take one. "positive"
    is the form for MoCo, whose keys have no gradient. Cost: B x size cosines more per step, and Q.
    """

    kind: ClassVar[str] = "source"
    breaks: ClassVar[frozenset[str]] = frozenset({"iid"})
    queue: KeyQueue = field(init=False, repr=False)

    size: int = 65536
    """Embeddings in the support queue, at least 1; they should be of many more images than a batch has."""
    replaces: Literal["positive", "query"] = "positive"
    """What the neighbour stands for: the positive, whose neighbour it is, or the query itself (as published, SimCLR only)."""
    mask: bool = True
    """Whether image ids are heeded: no image is its own neighbour, and its neighbour's image is none of its candidates. Off
    as published, where older embeddings of an image are its nearest as soon as the queue is as long as an epoch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "size", least=1)
        self.queue = KeyQueue(self.size, 1)  # of the right width as soon as that is known
        self._labels: Tensor | None = None
        self._last: tuple[Tensor, Tensor, Tensor] | None = None  # cosines, images and neighbours of the last table

    @property
    def chooses(self) -> bool:
        """No: it takes another positive or query, and leaves the candidates as they are."""
        return False

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Image ids, and a gradient through the candidates where the query becomes a constant."""
        return frozenset({"id", "key_gradient"} if self.replaces == "query" else {"id"})

    def begin(self, facts: Facts) -> None:
        """Make room for embeddings; labels serve the report alone."""
        self._labels = facts.labels
        self._start(facts.dim)

    def _start(self, dim: int) -> None:
        keys = self.queue.keys
        if keys.shape[1] != dim:
            self.queue = KeyQueue(self.size, dim, keys.dtype).to(keys.device)

    def update(self, keys: Float[Tensor, "B D"], image_id: Int64[Tensor, " B"], clock: Clock) -> None:
        """Let the embeddings of a step join the queue."""
        self._start(keys.shape[1])
        self.queue.push(keys, image_id)

    def forward(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table with neighbours for positives, or for queries."""
        self._start(negatives.query.shape[1])
        keys, key_id = self.queue.filled_keys()
        if len(keys) == 0:
            return negatives
        embedding = (negatives.query if self.replaces == "query" else negatives.positive).detach()
        similarity, column = self.nearest(embedding, negatives.query_id)
        found = similarity > -torch.inf
        neighbour = torch.where(found[:, None], keys[column].to(embedding.dtype), embedding)
        neighbour_id = torch.where(found, key_id[column], NO_IMAGE)
        self._last = (similarity, negatives.query_id, neighbour_id)
        if self.replaces == "query":
            ids = {"query_id": negatives.query_id, "key_id": negatives.key_id}
            similarities = Negatives.of(neighbour, negatives.positive, negatives.keys, **ids).similarity
            negatives = replace(negatives, query=neighbour, similarity=similarities)
        else:
            negatives = replace(negatives, positive=neighbour)
        return negatives.removed(negatives.key_id == neighbour_id[:, None]) if self.mask else negatives

    @torch.no_grad()
    def nearest(
        self, embedding: Float[Tensor, "B D"], image_id: Int64[Tensor, " B"]
    ) -> tuple[Float[Tensor, " B"], Int64[Tensor, " B"]]:
        """Cosine and place of each embedding's nearest row of the queue; -inf where it holds none that may be taken."""
        keys, key_id = self.queue.filled_keys()
        keys, parts = keys.to(embedding.dtype), []
        for part in row_parts(embedding, len(keys), 16):
            with torch.autocast(keys.device.type, enabled=False):
                similarity = embedding[part] @ keys.T
            if self.mask:
                row, own = own_pairs(image_id[part], key_id).unbind(1)
                similarity[row, own] = -torch.inf
            parts.append(similarity.max(dim=1))
        return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])

    def report(self) -> dict[str, Tensor]:
        """Of the last step: the neighbours' mean cosine, the share that shows the query's own image, or its class."""
        if self._last is None:
            return {}
        similarity, image_id, neighbour_id = self._last
        found = neighbour_id != NO_IMAGE
        own = (image_id == neighbour_id)[found].to(similarity.dtype).mean()
        numbers = {"similarity": similarity[found].mean(), "own_image": own}
        if self._labels is not None:
            table = self._labels.to(image_id.device)
            label, other = (of_image(table, image, -1) for image in (image_id, neighbour_id))
            known = (label >= 0) & (other >= 0)
            numbers["neighbour_same_class"] = (known & (label == other)).sum().to(similarity.dtype) / known.sum()
        return numbers

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        saved = state_dict.get(prefix + "queue.keys")
        if saved is not None:
            self._start(saved.shape[1])  # a queue of another size is refused by itself
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
