"""A bank of negatives that are learned themselves."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.optim.sgd import sgd

from contrastneg import distributed
from contrastneg.checks import check_range
from contrastneg.negatives.adversarial import softmax_sums
from contrastneg.negatives.core import Clock, Facts, Negatives, StageWithState
from contrastneg.randomness import derive_seed
from contrastneg.schedules import Schedule, value


@dataclass(eq=False)
class AdversarialBank(StageWithState):
    r"""Contrast with K free vectors that climb the loss while the encoder descends it (AdCo, arXiv:2011.08435).

    With w_k the vectors, d_k their directions, which are the candidates, and P the softmax of each query over its positive
    and all candidates at the bank's temperature t,

    .. math::
        \frac{\partial L}{\partial w_k} = \frac{1}{t \|w_k\|} (I - d_k d_k^\top) \frac{1}{N} \sum_i P_{ik} q_i, \qquad
        v \leftarrow \mu v - \frac{\partial L}{\partial w} + \lambda w, \quad w \leftarrow w - \eta v

    Each training step gives the encoder the vectors as they are, then moves them by the same similarities. Candidates of
    the table are replaced: take a queue of size 0, it would not be used. On several processes the gradient is averaged
    over their queries. Learned vectors show no image, so nothing that asks for images can follow.

    Faithful to the official code in update, order and defaults. Its bank starts from keys of one pass over the data; here
    the pass is that of the first epoch, and where there are fewer images than vectors the others start at random.
    """

    kind: ClassVar[str] = "source"
    needs: ClassVar[frozenset[str]] = frozenset({"candidates of the method"})
    breaks: ClassVar[frozenset[str]] = frozenset({"id", "iid", "queue", "batch"})
    vectors: Tensor = field(init=False, repr=False)
    velocity: Tensor = field(init=False, repr=False)
    begun: Tensor = field(init=False, repr=False)

    size: int = 65536
    """Vectors in the bank, at least 1."""
    rate: float | Schedule = 3.0
    """Learning rate of the vectors; 0 keeps them as they start. A number or a schedule."""
    momentum: float = 0.9
    """Momentum of their steps, from 0 to below 1."""
    weight_decay: float = 1e-4
    """Decay of their lengths; directions are compared, so it only makes later steps turn them further."""
    temperature: float = 0.02
    """Temperature at which they climb, above 0."""
    batch_keys: bool = True
    """Also contrast with the keys of the other images in the batch, of all processes, as constants."""
    start: Literal["keys", "random"] = "keys"
    """Start as embeddings of images drawn at random, or as random directions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "rate", "weight_decay", least=0)
        check_range(self, "size", least=1)
        check_range(self, "momentum", least=0, below=1)
        check_range(self, "temperature", above=0)
        # Buffers: in the checkpoint, equal on all processes as every step is, and unknown to the optimizer of the encoder.
        self.register_buffer("vectors", torch.zeros(0, 0))
        self.register_buffer("velocity", torch.zeros(0, 0))
        self.register_buffer("begun", torch.tensor(False))

    def begin(self, facts: Facts) -> None:
        """Give the vectors random directions, unless they have some."""
        self._start(facts.dim)

    def _start(self, dim: int) -> None:
        if self.vectors.numel() == 0:
            generator = torch.Generator().manual_seed(derive_seed("AdversarialBank", self.size, dim))
            start = F.normalize(torch.randn(self.size, dim, generator=generator), dim=1)
            self.vectors = start.to(self.velocity)
            self.velocity = torch.zeros_like(self.vectors)

    def refresh(self, embeddings: Callable[[], Float[Tensor, "T D"]], clock: Clock) -> None:
        """Before the first epoch, put embeddings of images in the place of random directions."""
        if self.begun or self.start == "random":
            return
        table = embeddings()
        table = table[table.isfinite().all(dim=1)]
        generator = replace(clock, rank=0).generator("AdversarialBank")  # the same images in every process
        chosen = torch.randperm(len(table), generator=generator)[: self.size]
        self._start(table.shape[1])
        self.vectors[: len(chosen)] = table[chosen].to(self.vectors)
        self.begun.fill_(True)

    def forward(self, negatives: Negatives, clock: Clock) -> Negatives:
        """A table of the bank, after the keys of the batch if they count; in training, the bank is a step further."""
        query = negatives.query
        self._start(query.shape[1])
        keys = F.normalize(self.vectors.to(query.dtype), dim=1)  # new numbers: the bank moves before the backward pass
        key_id = negatives.query_id.new_full((self.size,), -1)
        if self.batch_keys:
            keys = torch.cat([distributed.all_gather(negatives.positive).to(keys), keys])
            key_id = torch.cat([distributed.all_gather(negatives.query_id), key_id])
        table = Negatives.of(query, negatives.positive, keys, query_id=negatives.query_id, key_id=key_id)
        if self.training:
            with torch.autocast(query.device.type, enabled=False):
                self._climb(table, value(self.rate, clock.progress))
        return table

    @torch.no_grad()
    def _climb(self, table: Negatives, rate: float) -> None:
        _, push = softmax_sums(table, self.temperature)
        gradient = self.gradient(distributed.total(push[-self.size :]))
        queries = distributed.total(torch.tensor(float(len(table.query)), device=gradient.device))
        sgd(
            [self.vectors],
            [(gradient / queries).to(self.vectors)],
            [self.velocity],
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=rate,
            dampening=0.0,
            nesterov=False,
            maximize=True,
        )

    def gradient(self, push: Float[Tensor, "K D"]) -> Float[Tensor, "K D"]:
        """Gradient in the vectors of the loss summed over queries.

        Args:
            push: Sum over queries of the softmax at each vector times the query.
        """
        length = self.vectors.to(push).norm(dim=1, keepdim=True).clamp(min=1e-12)
        direction = self.vectors.to(push) / length
        tangent = push - direction * (push * direction).sum(dim=1, keepdim=True)
        return tangent / (self.temperature * length)
