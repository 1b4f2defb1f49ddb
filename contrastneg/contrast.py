"""From queries, positives and candidates to one loss per query: the heart of every method."""

from collections.abc import Sequence
from typing import TypeGuard

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from contrastneg.logsumexp import own_pairs
from contrastneg.negatives import Clock, Negatives, Record, Stage, run_stages
from contrastneg.objectives import InfoNCE, Objective, SumObjective, ignore
from contrastneg.sums import KeySums


def unit(embedding: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    """Rows scaled to unit length, in float32 at least: bf16 has too few digits for a temperature of 0.1."""
    wide = embedding if embedding.dtype == torch.float64 else embedding.float()
    return F.normalize(wide, dim=1)


def contrast(
    query: Float[Tensor, "B D"],
    positive: Float[Tensor, "B D"],
    image_id: Int64[Tensor, " B"],
    keys: Float[Tensor, "K D"],
    key_id: Int64[Tensor, " K"],
    stages: Sequence[Stage],
    temperature: float,
    clock: Clock,
    objective: Objective = InfoNCE(),
    record: Record | None = None,
    support: Float[Tensor, "B S D"] | None = None,
) -> tuple[Float[Tensor, " B"], Bool[Tensor, " B"], Bool[Tensor, " B"]]:
    """Loss of each query against its positive and the keys of other images, through the stages.

    Keys without gradient, no stages and a loss that is algebra on sums take passes over the keys that never hold the
    (B, K) table; otherwise the table is built, edited by each stage in turn and scored.

    Args:
        query: Unit-norm queries.
        positive: Their unit-norm positives.
        image_id: Their images.
        keys: Unit-norm candidates of all queries; they receive gradient if they require it.
        key_id: Image of each key, -1 matches none.
        stages: Edits of the table of negatives, in order.
        temperature: Softmax temperature.
        clock: Where the run stands.
        objective: The loss.
        record: Is told what stages and loss measure.
        support: Further views of each query's image, for stages that ask for them.

    Returns:
        Loss per query; whether its positive is more similar than every candidate; whether it had a candidate.
    """
    if needs_no_table(objective, stages) and not keys.requires_grad:
        sums = KeySums(query, positive, keys, own_pairs(image_id, key_id), image_id)
        loss = objective.of_sums(sums, temperature, clock, record or ignore)
        return loss, sums.positive.detach() > sums.hardest, sums.hardest > -torch.inf
    negatives = Negatives.of(query, positive, keys, query_id=image_id, key_id=key_id, support=support)
    negatives = run_stages(negatives, stages, clock, record)
    loss = objective(negatives, temperature, clock, record or ignore)
    kept = negatives.repelled
    nothing = negatives.similarity.new_full((len(query), 1), -torch.inf)  # an empty queue gives no column at all
    hardest = torch.cat([nothing, negatives.similarity.detach().masked_fill(~kept, -torch.inf)], dim=1).amax(dim=1)
    return loss, negatives.positive_similarity.detach() > hardest, kept.any(dim=1)


def needs_no_table(objective: Objective, stages: Sequence[Stage]) -> TypeGuard[SumObjective]:
    """Whether a loss can be had from the keys alone; then nothing of them is kept for the backward pass."""
    return isinstance(objective, SumObjective) and not stages
