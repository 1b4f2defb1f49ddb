"""Stages and losses that work together but mean less than it seems: each pair with its reason, for the start card."""

from collections.abc import Callable, Sequence
from typing import Any

from contrastneg.mixing import InputMix
from contrastneg.negatives import (
    AbovePositive,
    BestResponse,
    ClusterSize,
    GapSubset,
    HardestOfRandom,
    HardnessBand,
    HardnessWeight,
    PopularSubset,
    SameCluster,
    SamplingCorrection,
    SemiHardSubset,
    SoftmaxSubset,
    Stage,
    SupportMemory,
    SupportViews,
)
from contrastneg.objectives import HardWeighted, Objective
from contrastneg.schedules import Schedule

Test = Callable[[Any], bool]


def _is(*kinds: type) -> Test:
    return lambda thing: isinstance(thing, kinds)


def _undoes_all(stage: Any) -> bool:
    return isinstance(stage, SamplingCorrection) and stage.strength == 1


def _draws_clusters(stage: Any) -> bool:
    return isinstance(stage, PopularSubset) and isinstance(stage.popularity, ClusterSize) and stage.level == "type"


def _is_curriculum(stage: Any) -> bool:
    return isinstance(stage, HardnessBand) and (isinstance(stage.lower, Schedule) or isinstance(stage.upper, Schedule))


def _makes_candidates(stage: Any) -> bool:
    return isinstance(stage, Stage) and stage.kind == "synthesize"


PAIRS: list[tuple[Test, Test, str]] = [
    (
        _is(AbovePositive, SemiHardSubset, GapSubset),
        _makes_candidates,
        "candidates that are made later may lie above the positive again",
    ),
    (_is(PopularSubset), _undoes_all, "they cancel in expectation: only the variance changes"),
    (_is(SameCluster), _draws_clusters, "both take weight from the query's own cluster"),
    (_is(SoftmaxSubset, BestResponse), _is(HardnessWeight), "the tilt towards hard candidates is applied twice"),
    (_is(HardnessWeight), _is(HardWeighted), "the tilt towards hard candidates is applied twice"),
    (
        _is_curriculum,
        _is(HardestOfRandom, HardnessWeight, HardWeighted),
        "two dials on one axis work against each other: let one of them change",
    ),
    (
        _is(InputMix),
        _is(SupportViews, SupportMemory),
        "a mixed query shows two images, and candidates that resemble either are taken for false negatives",
    ),
]


def doubts(stages: Sequence[Stage], loss: Objective, batch: int | None, mixing: InputMix | None = None) -> list[str]:
    """A note for each pair of stages, or stage and loss or mix, that only looks as if it composed.

    Args:
        stages: The stages in order.
        loss: The loss.
        batch: Candidates per query where they are those of the batch; None where they come from a queue.
        mixing: How queries are made of several images; None where they are not.
    """
    parts = [*([] if mixing is None else [mixing]), *stages, loss]
    notes = [
        f"{type(one).__name__} before {type(other).__name__}: {reason}"
        for place, one in enumerate(parts)
        for other in parts[place + 1 :]
        for first, second, reason in PAIRS
        if first(one) and second(other)
    ]
    if loss.takes_attracted and not any(stage.attracts for stage in stages):
        notes.append(f"{type(loss).__name__} takes several positives but no stage attracts any: each query has its one")
    if batch is not None and not any(stage.chooses for stage in stages):
        notes += [
            f"{type(stage).__name__} attracts among the batch alone, {batch:,} candidates a query: with more classes than "
            "that hardly any is of the query's own"
            for stage in stages
            if stage.attracts and not stage.oracle
        ]
    return notes
