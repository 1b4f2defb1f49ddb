"""Stages that take candidates for false negatives, or for superfluous, by the table or by true labels alone.

Those that learn who belongs together are in :mod:`contrastneg.negatives.clusters`, ``support``, ``quantile`` and
``metadata``.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from contrastneg.checks import check_range
from contrastneg.negatives.core import Clock, Facts, Negatives, Stage, StageWithState, count_at, of_image
from contrastneg.schedules import Schedule, value

Action = Literal["eliminate", "attract"]
CHUNK = 1 << 24  # numbers gathered at once, 64 MiB in float32


def treat(negatives: Negatives, found: Bool[Tensor, "B M"], action: Action) -> Negatives:
    """The table with the false negatives that were found removed, or attracted as further positives."""
    return negatives.removed(found) if action == "eliminate" else negatives.attracting(found)


@dataclass(eq=False)
class OracleSameLabel(StageWithState):
    r"""Oracle: removes, or attracts, the candidates of the query's true class. A bound, not a method without labels.

    .. math:: F_i = \{ j : y_j = y_i \}

    The upper bound of every detector of false negatives (survey section 3.1; the supervised end of arXiv:2106.03719 and
    arXiv:2011.11765); attracting, with the views of a batch as candidates, gives the supervised contrastive loss of
    arXiv:2004.11362. Verdict: faithful. Images of unknown label match nothing. Runs with it must be marked as oracle.
    """

    kind: ClassVar[str] = "eliminate"
    whole_groups: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"id"})
    breaks: ClassVar[frozenset[str]] = frozenset({"iid"})
    oracle = True
    label: Tensor = field(init=False, repr=False)

    action: Action = "eliminate"
    """Remove candidates of the query's class, or attract them as further positives."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.register_buffer("label", torch.zeros(0, dtype=torch.long), persistent=False)

    @property
    def attracts(self) -> bool:
        """Whether it marks further positives."""
        return self.action == "attract"

    def begin(self, facts: Facts) -> None:
        """Take the labels.

        Raises:
            ValueError: There are none.
        """
        if facts.labels is None:
            raise ValueError(
                "OracleSameLabel needs labels and the images have none: leave it out, or give labelled images"
            )
        self.label = facts.labels.to(self.label.device)

    def forward(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table without the candidates of each query's class."""
        own = of_image(self.label, negatives.query_id, -1)[:, None]
        return treat(negatives, (own == of_image(self.label, negatives.key_id, -1)) & (own >= 0), self.action)


@dataclass(frozen=True)
class AbovePositive(Stage):
    r"""Remove candidates that are more similar to the query than its positive, less a margin.

    .. math:: F_i = \{ j : s_{ij} > p_i - \mu \}

    The filter "below the positive" of the survey's section 3.1 on negatives of moderate difficulty (MNS/ASA [90]; its
    course of the margin could not be read, ours is free). Verdict: faithful to the survey's wording. Early in a run the
    positive is not yet above the crowd and the filter takes most of a row: begin late, or keep ``spare``.
    """

    kind: ClassVar[str] = "eliminate"
    breaks: ClassVar[frozenset[str]] = frozenset({"iid", "log_prob"})

    margin: float | Schedule = 0.0
    """How far below the positive a candidate must stay, in cosine, from -2 to 2. A number or a schedule."""
    begin_at: float = 0.0
    """Progress of the run from which candidates are removed, in [0, 1]."""
    spare: bool = True
    """Keep the least similar candidate of a query that would lose all."""

    def __post_init__(self) -> None:
        check_range(self, "margin", least=-2, most=2)
        check_range(self, "begin_at", least=0, most=1)

    def first_epoch(self, epochs: float) -> float:
        """Where ``begin_at`` lies."""
        return self.begin_at * epochs

    def __call__(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table without candidates above the positive."""
        if clock.progress < self.begin_at or negatives.similarity.shape[1] == 0:
            return negatives
        similarity = negatives.similarity.detach()
        bar = negatives.positive_similarity.detach() - value(self.margin, clock.progress)
        found = similarity > bar[:, None]
        if self.spare:
            found = spare_easiest(negatives, found)
        return negatives.removed(found)


@dataclass(frozen=True)
class Redundant(Stage):
    r"""Remove candidates that are nearly the same as a harder one (non-maximum suppression).

    Of each query's ``pool`` most similar candidates, in falling order, j is removed if

    .. math:: k_j \cdot k_l > \theta

    for some l that was kept before it. The hardest always stays. Online hard example mining suppresses boxes so
    (arXiv:1604.03540, survey section 2.2). Verdict: analogy: overlap of boxes becomes cosine of embeddings, and the bar
    of 0.9 is ours. Candidates beyond the pool, and synthetic ones, stay.
    """

    kind: ClassVar[str] = "eliminate"
    breaks: ClassVar[frozenset[str]] = frozenset({"iid", "log_prob", "all ranks"})
    of_candidates: ClassVar[tuple[str, ...]] = ("pool",)

    threshold: float | Schedule = 0.9
    """Largest cosine of two candidates that both stay, -1 to 1; 1 removes nothing. A number or a schedule."""
    pool: int | Schedule = 256
    """Candidates compared per query, hardest first; time and memory grow with its square. A number or a schedule."""

    def __post_init__(self) -> None:
        check_range(self, "threshold", least=-1, most=1)
        check_range(self, "pool", least=1)

    def __call__(self, negatives: Negatives, clock: Clock) -> Negatives:
        """The table without near repetitions among each query's hardest candidates."""
        count = min(count_at(self.pool, clock), negatives.n_keys)
        threshold = value(self.threshold, clock.progress)
        if threshold >= 1 or count < 2:  # rounding may give a key a cosine above 1 with itself
            return negatives
        keys, found = negatives.keys.detach(), torch.zeros_like(negatives.kept)
        ranked = negatives.similarity.detach()[:, : negatives.n_keys].masked_fill(
            ~negatives.kept[:, : negatives.n_keys], -torch.inf
        )
        column = ranked.topk(count, dim=1).indices  # removed ones last, where they suppress none that counts
        rows = max(1, CHUNK // (count * (count + keys.shape[-1])))
        for start in range(0, len(column), rows):
            part = slice(start, start + rows)
            own = keys if keys.ndim == 2 else keys[part]
            pool = (
                own[column[part]]
                if keys.ndim == 2
                else own.gather(1, column[part, :, None].expand(-1, -1, own.shape[2]))
            )
            repeated = suppressed(pool.to(negatives.query.dtype), threshold)
            found[part] = found[part].scatter(1, column[part], repeated)
        return negatives.removed(found)


def suppressed(pool: Float[Tensor, "B P D"], threshold: float) -> Bool[Tensor, "B P"]:
    """Entries that are closer than ``threshold`` to one before them that is not suppressed itself.

    Args:
        pool: Unit-norm vectors, in order of preference.
        threshold: Largest cosine of two that both stay.
    """
    with torch.autocast(pool.device.type, enabled=False):
        close = (pool @ pool.transpose(1, 2) > threshold).triu(diagonal=1)  # (B, P, P): row before column
    gone = torch.zeros_like(close[:, 0])
    for place in range(pool.shape[1]):
        gone = gone | (close[:, place] & ~gone[:, place, None])
    return gone


def spare_easiest(negatives: Negatives, found: Bool[Tensor, "B M"]) -> Bool[Tensor, "B M"]:
    """``found`` without the least similar kept candidate of each row that would be left with none."""
    kept = negatives.kept
    emptied = ~(kept & ~found).any(dim=1, keepdim=True)
    easiest = negatives.similarity.detach().masked_fill(~kept, torch.inf).argmin(dim=1, keepdim=True)
    return found & ~torch.zeros_like(found).scatter(1, easiest, emptied)
