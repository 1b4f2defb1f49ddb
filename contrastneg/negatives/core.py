"""The table of negatives and the stages that edit it.

For query i with positive similarity p_i, candidates j with similarity s_ij and weight w_ij >= 0, all methods share

    loss_i = -log( e^{p_i/t} / ( e^{p_i/t} + sum_j w_ij e^{s_ij/t} ) )

Eliminating, selecting and weighting edit log w, synthesising appends columns. A stage is a function from table to table;
a method is a list of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from contrastneg.checks import Checked
from contrastneg.logsumexp import own_pairs
from contrastneg.randomness import derive_seed
from contrastneg.schedules import Schedule, value

KINDS = ("source", "eliminate", "select", "weight", "synthesize")
PHRASES = {
    "id": "the image behind each candidate",
    "support": "further views of each image",
    "key_gradient": "a gradient through the candidates",
    "iid": "candidates drawn at random",
    "log_prob": "the probability of each draw",
    "plain mass": "weights that do not make up for dropped candidates",
    "no correction": "candidates whose draw is not corrected",
    "all ranks": "candidates of every hardness",
    "candidates of the method": "the candidates of queue or batch",
    "every pair": "all candidates, weighed alike for all queries",
}  # what stages and losses may need, in words for users
WORDS = frozenset({*PHRASES, *KINDS})
# what stages may give and break, with what a method provides; the name of a kind: that no such stage may follow


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
    temperature: float = 0.2
    """Softmax temperature of the method's loss."""
    stage: int = 0
    """Place of the stage that draws in the list of stages: two of one class draw differently."""

    @property
    def progress(self) -> float:
        """Share of the run done, in [0, 1]."""
        return min(1.0, self.step / max(1, self.total_steps))

    def generator(self, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator for one purpose of one step on this rank; the same again in a resumed run."""
        place = (self.step, self.batch, self.rank, self.direction, self.stage)
        seed = derive_seed(self.seed, purpose, *place)
        return torch.Generator(device).manual_seed(seed)


def count_at(setting: int | Schedule, clock: Clock) -> int:
    """A setting that counts candidates, at a point of the run: a whole number of at least 1."""
    return max(1, whole(setting, clock))


def whole(setting: int | Schedule, clock: Clock) -> int:
    """A setting that counts something, at a point of the run: a whole number of at least 0."""
    return max(0, round(value(setting, clock.progress)))


@dataclass(frozen=True)
class Facts:
    """What is known of the pretraining images before the first step. Tables are by stable image index."""

    images: int
    """Stable indices are 0 to images - 1."""
    dim: int
    """Width D of the embeddings that are compared."""
    labels: Int64[Tensor, " T"] | None = None
    """Class of each image, -1 unknown; None without any labels."""
    columns: Mapping[str, Tensor | Sequence[Any]] = field(default_factory=dict)
    """Metadata of each image, by name of the column."""
    trained_on: int | None = None
    """Images that there really are, fewer than ``images`` where some indices are left out; None means all."""

    @property
    def count(self) -> int:
        """Images that there are."""
        return self.images if self.trained_on is None else self.trained_on


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
    attracted: Bool[Tensor, "B M"] | None = None
    """Candidates found to show what the query shows: further positives of losses that take several. They keep their
    weight, so that they stay in the denominator; one that is removed later is no positive either. None means none."""
    support: Float[Tensor, "B S D"] | None = None
    """Unit-norm embeddings, without gradient, of S further views of each query's image. Never candidates."""
    zeros: Tensor | None = None
    """The very ``log_weight`` that was made with every candidate counted once, if it was: see :attr:`untouched`."""

    @classmethod
    def of(
        cls,
        query: Float[Tensor, "B D"],
        positive: Float[Tensor, "B D"],
        keys: Float[Tensor, "*per_query K D"],
        *,
        query_id: Int64[Tensor, " B"],
        key_id: Int64[Tensor, "*per_query K"],
        support: Float[Tensor, "B S D"] | None = None,
    ) -> "Negatives":
        """All keys as candidates of every query, each counted once, the query's own image removed.

        The table keeps the keys for its backward pass: give it a copy of a queue that is pushed to before that.
        Similarities are float32 (float64 for float64 queries), also under autocast. That all rows have unit length is not
        looked at, which would take time at every step: of others the similarities are dot products, and no cosines.

        Args:
            query: Unit-norm queries.
            positive: Unit-norm positives.
            keys: Unit-norm candidates, (K, D) shared or (B, K, D) per query; they receive gradient if they require it.
            query_id: Image of each query.
            key_id: Image of each key; -1 matches no query.
            support: Unit-norm embeddings of further views of each query's image, constants.

        Raises:
            ValueError: The shapes do not belong together.
        """
        check_shapes(query, positive, keys, query_id, key_id)
        query = query.to(torch.promote_types(query.dtype, torch.float32))
        wide = keys.to(query.dtype)
        with torch.autocast(query.device.type, enabled=False):
            similarity = query @ wide.T if keys.ndim == 2 else (wide @ query[:, :, None]).squeeze(2)
        if key_id.ndim == 1:
            row, column = own_pairs(query_id, key_id).unbind(1)
        else:
            row, column = ((query_id[:, None] == key_id) & (key_id != -1)).nonzero(as_tuple=True)
        # One zero stands for all until something is removed: at 256 x 65,536 that saves 64 MiB.
        log_weight = similarity.new_zeros(1, 1).expand_as(similarity)
        if len(row):
            log_weight = log_weight.contiguous().index_put_((row, column), log_weight.new_tensor(-torch.inf))
        zeros = None if len(row) else log_weight
        return cls(query, positive, keys, similarity, log_weight, query_id, key_id, support=support, zeros=zeros)

    @property
    def positive_similarity(self) -> Float[Tensor, " B"]:
        """Cosine of each query and its positive."""
        return (self.query * self.positive).sum(dim=1)

    @property
    def kept(self) -> Bool[Tensor, "B M"]:
        """Candidates that have not been removed."""
        return self.log_weight > -torch.inf

    @property
    def repelled(self) -> Bool[Tensor, "B M"]:
        """Candidates that act as negatives: neither removed nor attracted. What synthetic negatives may be made of."""
        return self.kept if self.attracted is None else self.kept & ~self.attracted

    @property
    def n_keys(self) -> int:
        """Candidates that are keys; further columns are synthetic."""
        return self.keys.shape[-2]

    @property
    def untouched(self) -> bool:
        """Whether every candidate counts once, as :meth:`of` made them, with one zero in memory; there is at least one."""
        return self.attracted is None and self.log_weight is self.zeros and self.log_weight.numel() > 0

    def removed(self, mask: Bool[Tensor, "B M"]) -> "Negatives":
        """The table without the candidates in ``mask``."""
        attracted = None if self.attracted is None else self.attracted & ~mask
        return replace(self, log_weight=self.log_weight.masked_fill(mask, -torch.inf), attracted=attracted)

    def attracting(self, mask: Bool[Tensor, "B M"]) -> "Negatives":
        """The table with the kept candidates in ``mask`` as further positives."""
        further = mask & self.kept
        return replace(self, attracted=further if self.attracted is None else self.attracted | further)

    def appended(self, similarity: Float[Tensor, "B S"], kept: Bool[Tensor, "#B #S"] | None = None) -> "Negatives":
        """The table with S synthetic candidates more per query, each counted once, with no image behind them.

        Args:
            similarity: Their cosine with the query, differentiable in the query.
            kept: Which of them count; None means all.
        """
        added = similarity.new_zeros(1, 1).expand_as(similarity)
        if kept is not None:
            added = added.masked_fill(~kept, -torch.inf)
        wider = torch.cat([self.similarity, similarity], dim=1)
        if kept is None and self.untouched:  # still one zero for all
            log_weight = zeros = wider.new_zeros(1, 1).expand_as(wider)
        else:
            log_weight, zeros = torch.cat([self.log_weight, added], dim=1), None
        no_image = self.key_id.new_full((*self.key_id.shape[:-1], similarity.shape[1]), -1)
        log_prob = self.log_prob
        if log_prob is not None:  # nobody drew them, and logQ corrections must see that
            log_prob = torch.cat([log_prob, torch.full_like(added, torch.nan)], dim=1)
        attracted = self.attracted
        if attracted is not None:
            attracted = torch.cat([attracted, torch.zeros_like(added, dtype=torch.bool)], dim=1)
        return replace(
            self,
            attracted=attracted,
            similarity=wider,
            log_weight=log_weight,
            zeros=zeros,
            key_id=torch.cat([self.key_id, no_image], dim=-1),
            log_prob=log_prob,
        )


def check_shapes(query: Tensor, positive: Tensor, keys: Tensor, query_id: Tensor, key_id: Tensor) -> None:
    """Refuse tensors of which no table can be made, or only a wrong one by broadcasting.

    Raises:
        ValueError: The shapes do not belong together.
    """
    rows, per_query = query.shape[:1], keys.shape[:-2]
    fits = query.ndim == 2 and positive.shape == query.shape and query_id.shape == rows
    fits = fits and keys.ndim in (2, 3) and keys.shape[-1] == query.shape[1] and per_query in ((), rows)
    if not (fits and key_id.shape in (keys.shape[-2:-1], (*rows, keys.shape[-2]))):
        named = {"query": query, "positive": positive, "keys": keys, "query_id": query_id, "key_id": key_id}
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in named.items())
        raise ValueError(
            "query and positive must be (B, D), keys (K, D) or (B, K, D), query_id (B,), key_id (K,) or (B, K), "
            f"got {shapes}"
        )


def of_image(
    table: Shaped[Tensor, " T"], image_id: Int64[Tensor, "*shape"], missing: float
) -> Shaped[Tensor, "*shape"]:
    """What a per-image table holds for each image; ``missing`` for -1 and for images that the table does not know."""
    known = (image_id >= 0) & (image_id < len(table))
    if len(table) == 0:
        return torch.full_like(image_id, missing, dtype=table.dtype)
    return torch.where(known, table[image_id.clamp(0, len(table) - 1)], missing)


class Stage(Checked, ABC):
    """One edit of the table.

    A stage without state is a frozen dataclass. One that remembers something is a :class:`StageWithState`. Settings that are
    not what they are declared to be are refused when a stage is made (:class:`contrastneg.checks.Checked`).
    """

    kind: ClassVar[str]
    """Its place in the order source, eliminate, select, weight, synthesize."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """What must hold before it: "id" (images behind keys are known), "support" (further views are embedded), "iid" (candidates
    are drawn alike from the data), "log_prob" (the law of their draw is recorded), "plain mass" (no weight makes up for it)."""
    gives: ClassVar[frozenset[str]] = frozenset()
    """What later stages may rely on after it."""
    breaks: ClassVar[frozenset[str]] = frozenset()
    """What no longer holds after it; a kind stands for stages that may not follow."""
    of_candidates: ClassVar[tuple[str, ...]] = ()
    """Settings that count candidates of the table: none may ask for more than there can be."""
    of_images: ClassVar[tuple[str, ...]] = ()
    """Settings that count images: none may ask for more than there are."""
    whole_groups: ClassVar[bool] = False
    """Whether it only drops whole groups of images, or weighs images or groups, which losses over every pair can follow."""
    oracle = False
    """Whether it uses true labels: what it reaches is a bound, and no result of learning without labels."""

    @property
    def chooses(self) -> bool:
        """Whether it chooses or adds candidates, so that they are no longer the method's queue or batch."""
        return self.kind == "source"

    @property
    def replaces_candidates(self) -> bool:
        """Whether its candidates take the place of those before it; with a setting ``combine`` that is "append" they join them."""
        return self.chooses and getattr(self, "combine", "replace") == "replace"

    @property
    def attracts(self) -> bool:
        """Whether it marks candidates as further positives, which only losses of several positives look at."""
        return False

    @abstractmethod
    def __call__(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The edited table."""

    @property
    def support_views(self) -> int:
        """Further views of each image that must be made and embedded for it."""
        return 0

    def first_epoch(self, epochs: float) -> float:
        """When it begins to do what it is for, in epochs from the start: a run that ends before is told so.

        Args:
            epochs: Length of the run.
        """
        return 0.0

    def begin(self, facts: Facts) -> None:
        """Called once before the first step, also of a resumed run; refuses data that the stage cannot work on.

        Raises:
            ValueError: The stage needs labels, columns or images that are not there.
        """

    def refresh(self, embeddings: Callable[[], Float[Tensor, "T D"]], clock: Clock) -> None:
        """Called before each epoch on every rank: the time to cluster, to build a graph, to mine.

        Args:
            embeddings: Gives the unit embeddings of all pretraining images by stable index, on the CPU and the same on
                every rank; NaN where an index has no image. Costs a pass over the data: call it only if needed.
            clock: Where the run stands.
        """

    def update(self, keys: Float[Tensor, "B D"], image_id: Int64[Tensor, " B"], clock: Clock) -> None:
        """Called after each step with the keys of all ranks, in the same order on every rank, without gradient."""

    def report(self) -> dict[str, Tensor]:
        """Numbers about its state for the log, by short name."""
        return {}


class StageWithState(nn.Module, Stage):
    """A stage that remembers: its buffers are in the checkpoint, and equal on all ranks if it is given equal things.

    Subclasses are ``@dataclass(eq=False)`` whose fields are settings. Buffers are declared as
    ``name: Tensor = field(init=False, repr=False)`` and registered in ``__post_init__`` after calling that of this class.
    A buffer whose size is not known before :meth:`begin` starts empty; it takes the saved size when a checkpoint is
    loaded.
    """

    def __post_init__(self) -> None:
        nn.Module.__init__(self)

    def __call__(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The edited table."""
        return self.forward(negatives, clock)

    @abstractmethod
    def forward(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The edited table."""

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        take_saved_sizes(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def take_saved_sizes(module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str) -> None:
    """Give the buffers of a module the sizes that they have in a checkpoint, before it is loaded."""
    for name, buffer in module._buffers.items():
        saved = state_dict.get(prefix + name)
        if buffer is not None and saved is not None and saved.shape != buffer.shape:
            module._buffers[name] = buffer.new_empty(saved.shape)
