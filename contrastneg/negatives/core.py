"""The table of negatives and the stages that edit it.

For query i with positive similarity p_i, candidates j with similarity s_ij and weight w_ij >= 0, all methods share

    loss_i = -log( e^{p_i/t} / ( e^{p_i/t} + sum_j w_ij e^{s_ij/t} ) )

Eliminating, selecting and weighting edit log w, synthesising appends columns. A stage is a function from table to table;
a method is a list of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from contrastneg.logsumexp import own_pairs
from contrastneg.randomness import derive_seed

KINDS = ("source", "score", "eliminate", "select", "weight", "synthesize")


@dataclass(frozen=True)
class Clock:
    """Where a run stands: what schedules and random draws of stages are functions of."""

    step: int
    """Optimizer steps done."""
    total_steps: int
    """Optimizer steps of the whole run."""
    epoch: float
    """Epochs done, with fraction."""
    seed: int
    """Seed of the run."""
    rank: int = 0
    """This process."""
    batch: int = 0
    """Micro-batch within the epoch: steps that accumulate draw anew for each."""
    direction: int = 0
    """0 for queries of view 1, 1 for those of view 2 in a symmetric loss, which draw their own numbers."""

    @property
    def progress(self) -> float:
        """Share of the run done, in [0, 1]."""
        return min(1.0, self.step / max(1, self.total_steps))

    def generator(self, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator for one purpose of one step on this rank; the same again in a resumed run."""
        seed = derive_seed(self.seed, purpose, self.step, self.batch, self.rank, self.direction)
        return torch.Generator(device).manual_seed(seed)


@dataclass(frozen=True)
class Negatives:
    """What B queries are contrasted with: M candidates each, their similarity and their weight."""

    query: Float[Tensor, "B D"]
    """Unit-norm queries, with gradient."""
    positive: Float[Tensor, "B D"]
    """Unit-norm positives."""
    keys: Float[Tensor, "*per_query K D"]
    """Unit-norm candidates: (K, D) shared by all queries or (B, K, D). Synthetic candidates are not among them."""
    similarity: Float[Tensor, "B M"]
    """Cosine of query and candidate, differentiable in the query. Columns from K on are synthetic."""
    log_weight: Float[Tensor, "B M"]
    """Logarithm of the candidate's weight: 0 counts it once, -inf removes it."""
    query_id: Int64[Tensor, " B"]
    """Image of each query."""
    key_id: Int64[Tensor, "*per_query M"]
    """Image of each candidate, (M,) or (B, M); -1 where there is none behind it (learned, synthetic)."""
    log_prob: Float[Tensor, "B M"] | None = None
    """Logarithm of the probability with which a stage drew the candidate, where that law is known."""

    @classmethod
    def of(
        cls,
        query: Float[Tensor, "B D"],
        positive: Float[Tensor, "B D"],
        keys: Float[Tensor, "*per_query K D"],
        *,
        query_id: Int64[Tensor, " B"],
        key_id: Int64[Tensor, "*per_query K"],
    ) -> "Negatives":
        """All keys as candidates of every query, each counted once, the query's own image removed.

        The table keeps the keys for its backward pass: give it a copy of a queue that is pushed to before that.
        Similarities are float32 (float64 for float64 queries), also under autocast.

        Args:
            query: Unit-norm queries.
            positive: Unit-norm positives.
            keys: Unit-norm candidates, (K, D) shared or (B, K, D) per query; they receive gradient if they require it.
            query_id: Image of each query.
            key_id: Image of each key; -1 matches no query.
        """
        query = query.to(torch.promote_types(query.dtype, torch.float32))
        wide = keys.to(query.dtype)
        with torch.autocast(query.device.type, enabled=False):
            similarity = query @ wide.T if keys.ndim == 2 else (wide @ query[:, :, None]).squeeze(2)
        if key_id.ndim == 1:
            row, column = own_pairs(query_id, key_id).unbind(1)
        else:
            row, column = ((query_id[:, None] == key_id) & (key_id >= 0)).nonzero(as_tuple=True)
        # One zero stands for all until something is removed: at 256 x 65,536 that saves 64 MiB.
        log_weight = similarity.new_zeros(1, 1).expand_as(similarity)
        if len(row):
            log_weight = log_weight.contiguous().index_put_((row, column), log_weight.new_tensor(-torch.inf))
        return cls(query, positive, keys, similarity, log_weight, query_id, key_id)

    @property
    def positive_similarity(self) -> Float[Tensor, " B"]:
        """Cosine of each query and its positive."""
        return (self.query * self.positive).sum(dim=1)

    @property
    def kept(self) -> Bool[Tensor, "B M"]:
        """Candidates that have not been removed."""
        return self.log_weight > -torch.inf

    @property
    def n_keys(self) -> int:
        """Candidates that are keys; further columns are synthetic."""
        return self.keys.shape[-2]

    def removed(self, mask: Bool[Tensor, "B M"]) -> "Negatives":
        """The table without the candidates in ``mask``."""
        return replace(self, log_weight=self.log_weight.masked_fill(mask, -torch.inf))

    def appended(self, similarity: Float[Tensor, "B S"], kept: Bool[Tensor, "#B #S"] | None = None) -> "Negatives":
        """The table with S synthetic candidates more per query, each counted once, with no image behind them.

        Args:
            similarity: Their cosine with the query, differentiable in the query.
            kept: Which of them count; None means all.
        """
        added = torch.zeros_like(similarity).detach()
        if kept is not None:
            added = added.masked_fill(~kept, -torch.inf)
        no_image = self.key_id.new_full((*self.key_id.shape[:-1], similarity.shape[1]), -1)
        log_prob = self.log_prob
        if log_prob is not None:  # nobody drew them, and logQ corrections must see that
            log_prob = torch.cat([log_prob, torch.full_like(added, torch.nan)], dim=1)
        return replace(
            self,
            similarity=torch.cat([self.similarity, similarity], dim=1),
            log_weight=torch.cat([self.log_weight, added], dim=1),
            key_id=torch.cat([self.key_id, no_image], dim=-1),
            log_prob=log_prob,
        )


class Stage(ABC):
    """One edit of the table. Stateless stages are frozen dataclasses; stages with state are modules with buffers."""

    kind: ClassVar[str]
    """Its place in the order source, score, eliminate, select, weight, synthesize."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """What must be known: "id", "queue", "batch", "log_prob", "iid" ..."""
    gives: ClassVar[frozenset[str]] = frozenset()
    """What later stages may rely on after it."""
    breaks: ClassVar[frozenset[str]] = frozenset()
    """What no longer holds after it."""

    @abstractmethod
    def __call__(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The edited table."""


def check_pipeline(stages: Sequence[Stage], provides: set[str]) -> None:
    """Refuse a list of stages that cannot be right.

    Args:
        stages: The stages in the order in which they will run.
        provides: What holds before the first: "id" (images behind keys are known), "queue" or "batch" (where the keys
            come from); "iid" (candidates are drawn alike from the data) is added.

    Raises:
        ValueError: A stage comes too early or too late, or needs what an earlier one took away or nobody gives.
    """
    holds = {"iid", *provides}
    taken: dict[str, str] = {}
    furthest, before = 0, ""
    for stage in stages:
        name = type(stage).__name__
        place = KINDS.index(stage.kind)
        if place < furthest:
            raise ValueError(
                f"stage {name} ({stage.kind}) stands after {before} ({KINDS[furthest]}): "
                f"order stages as {', '.join(KINDS)}"
            )
        for need in sorted(stage.needs - holds):
            why = f"{taken[need]} took away" if need in taken else f"nothing before it gives (there is {sorted(holds)})"
            raise ValueError(f"stage {name} needs {need!r}, which {why}: leave one of them out")
        furthest, before = place, name
        taken.update(dict.fromkeys(stage.breaks, name))
        holds = (holds | stage.gives) - stage.breaks
