"""From queries, positives and candidates to one loss per query: the heart of every method."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeGuard

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from contrastneg.logsumexp import own_pairs
from contrastneg.negatives import Clock, Negatives, Record, Stage, run_stages
from contrastneg.negatives.live import first_rows, first_rows_of_keys
from contrastneg.negatives.mixes import HardestStage
from contrastneg.objectives import InfoNCE, Objective, SumObjective, ignore
from contrastneg.sums import KeySums, MixedSums


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

    Keys without gradient, a loss that is algebra on sums and no stage, or one alone that needs no more than each query's
    hardest keys, take passes over the keys that never hold the (B, K) table; otherwise the table is built, edited by each
    stage in turn and scored.

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
        Loss per query; whether its positive is more similar than every key of another image, before the stages, so that
        runs with and without them can be compared; whether the stages left it a candidate.
    """
    clock = replace(clock, temperature=temperature)
    if needs_no_table(objective, stages, record) and not keys.requires_grad:
        sums = of_keys = KeySums(query, positive, keys, own_pairs(image_id, key_id), image_id)
        if len(keys) and stages:
            (stage,) = stages
            assert isinstance(stage, HardestStage)
            sums = MixedSums(of_keys, stage, temperature, replace(clock, stage=0))
        loss = objective.of_sums(sums, temperature, clock, record or ignore)
        if record is not None:
            record.note_hardness(first_rows_of_keys(query, positive, image_id, keys, key_id), temperature)
        return loss, of_keys.positive.detach() > sums.hardest, sums.hardest != -torch.inf
    negatives = Negatives.of(query, positive, keys, query_id=image_id, key_id=key_id, support=support)
    hardest = hardest_repelled(negatives)
    first = negatives.positive_similarity.detach() > hardest
    contrasted = hardest != -torch.inf  # NaN counts: it must be seen
    if stages:
        negatives = run_stages(negatives, stages, clock, record)
        contrasted = negatives.repelled.any(dim=1)
    if record is not None:
        record.note_hardness(first_rows(negatives), temperature)
        if stages:
            now_first = negatives.positive_similarity.detach() > hardest_repelled(negatives)
            record.share("loss/accuracy", now_first & contrasted, contrasted)
    return objective(negatives, temperature, clock, record or ignore), first, contrasted


def hardest_repelled(negatives: Negatives) -> Float[Tensor, " B"]:
    """Similarity of each query's hardest candidate that repels it, without gradient; -inf where there is none."""
    similarity = negatives.similarity.detach()
    if similarity.shape[1] == 0:  # an empty queue
        return similarity.new_full((len(similarity),), -torch.inf)
    if not negatives.untouched:
        similarity = similarity.masked_fill(~negatives.repelled, -torch.inf)
    return similarity.amax(dim=1)


def needs_no_table(
    objective: Objective, stages: Sequence[Stage], record: Record | None = None
) -> TypeGuard[SumObjective]:
    """Whether a loss can be had from the keys alone; then nothing of them is kept for the backward pass.

    A record of what a stage did to the table needs the table.
    """
    alone = len(stages) == 1 and isinstance(stages[0], HardestStage) and record is None
    return isinstance(objective, SumObjective) and (not stages or alone)
