"""Stages and losses that work together but mean less than it seems: each pair with its reason, for the start card."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from contrastneg.mixing import InputMix
from contrastneg.negatives import (
    AbovePositive,
    AdaptiveCount,
    BestResponse,
    ClusterSize,
    CooccurrenceRows,
    FixedMass,
    GapSubset,
    GuidedWalk,
    HardCache,
    HardestOfRandom,
    HardestSubset,
    HardnessBand,
    HardnessWeight,
    MemoryBank,
    MetropolisChain,
    MinedNeighbours,
    MoCHi,
    PageRankBand,
    PopularSubset,
    SameCluster,
    SamplingCorrection,
    ScoreHistory,
    SemiHardSubset,
    SoftmaxSubset,
    Stage,
    SupportMemory,
    SupportViews,
    SynCo,
)
from contrastneg.negatives.pipeline import named
from contrastneg.objectives import AlignUniform, HardWeighted, Objective
from contrastneg.schedules import Schedule, value

Test = Callable[[Any], bool]


def _is(*kinds: type) -> Test:
    return lambda thing: isinstance(thing, kinds)


def _undoes_all(stage: Any) -> bool:
    return isinstance(stage, SamplingCorrection) and stage.strength == 1


def _draws_clusters(stage: Any) -> bool:
    return isinstance(stage, PopularSubset) and isinstance(stage.popularity, ClusterSize) and stage.level == "type"


def _is_curriculum(stage: Any) -> bool:
    dials = {HardnessBand: ("lower", "upper"), HardestOfRandom: ("pool",), HardestSubset: ("random_share",)}
    return any(isinstance(getattr(stage, name), Schedule) for name in dials.get(type(stage), ()))


def _makes_candidates(stage: Any) -> bool:
    return isinstance(stage, Stage) and stage.kind == "synthesize"


def _ignores_mass(loss: Any) -> bool:
    return isinstance(loss, Objective) and loss.ignores_mass


def _chooses_pairs(stage: Any) -> bool:
    return isinstance(stage, Stage) and stage.kind != "source" and not stage.whole_groups


def _samples_unevenly(stage: Any) -> bool:
    return isinstance(stage, Stage) and stage.chooses and "iid" in stage.breaks


def _is_over_every_pair(loss: Any) -> bool:
    return isinstance(loss, AlignUniform) or (isinstance(loss, Objective) and "every pair" in loss.needs)


TILTS = _is(HardestOfRandom, HardestSubset, HardnessWeight, HardWeighted)
TWO_DIALS = "two dials on one axis work against each other: let one of them change"
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
    (_is_curriculum, TILTS, TWO_DIALS),
    (TILTS, _is_curriculum, TWO_DIALS),
    (
        _is(FixedMass),
        _ignores_mass,
        "the loss does not depend on the sum of a query's weights, which is all that the stage changes: leave it out",
    ),
    (
        _chooses_pairs,
        _is(AlignUniform),
        "uniformity is a mean over all candidates, and here over those that the stage leaves, makes or prefers",
    ),
    (
        _samples_unevenly,
        _is_over_every_pair,
        "the loss counts all data alike, and these candidates are no even sample of it",
    ),
    (
        _is(InputMix),
        _is(SupportViews, SupportMemory),
        "a mixed query shows two images, and candidates that resemble either are taken for false negatives",
    ),
]


BROUGHT: dict[type, tuple[str, ...]] = {
    CooccurrenceRows: ("count",),
    GuidedWalk: ("count",),
    HardCache: ("count",),
    MemoryBank: ("count",),
    MetropolisChain: ("chains",),
    MinedNeighbours: ("count", "uniform"),
    PageRankBand: ("count",),
    ScoreHistory: ("count",),
}  # settings whose sum is how many candidates a source brings a query; of others no bound is known


def _at_ends(stage: Stage, name: str) -> list[float]:
    """A setting that counts at both ends of the run, infinite where there is none."""
    setting = getattr(stage, name)
    return [math.inf if setting is None else float(value(setting, progress)) for progress in (0.0, 1.0)]


def _left_by(stage: Stage, left: list[float]) -> list[float]:
    """Candidates that a stage leaves a query at most, at both ends of the run, of so many before it."""
    if stage.kind == "source" and stage.chooses:
        parts = [_at_ends(stage, name) for name in BROUGHT.get(type(stage), ())]
        brought = [sum(part[end] for part in parts) if parts else math.inf for end in (0, 1)]
        return brought if stage.replaces_candidates else [old + new for old, new in zip(left, brought, strict=True)]
    if stage.kind == "select" and "count" in stage.of_candidates and not isinstance(stage, AdaptiveCount):
        return [min(pair) for pair in zip(left, _at_ends(stage, "count"), strict=True)]
    return left


def idle_counts(stages: Sequence[Stage]) -> list[str]:
    """A note for each setting that asks for more candidates than the stages before it leave a query."""
    notes, left, before = [], [math.inf] * 2, ""
    for number, stage in enumerate(stages):
        for name in (name for name in stage.of_candidates if getattr(stage, name) is not None):
            pairs = list(zip(_at_ends(stage, name), left, strict=True))
            inert = stage.kind == "select" and name == "count" and all(asked >= most for asked, most in pairs)
            if inert or all(asked > most for asked, most in pairs):
                notes.append(
                    f"{named(number, stage)} has {name} {max(pairs[0][0], pairs[1][0]):g} but {before} leaves a query "
                    f"{max(left):g} candidates at most: {'it keeps them all' if inert else 'it takes them all'}"
                )
        after = _left_by(stage, left)
        before = before if after == left else named(number, stage)
        left = after
    return notes


PAIR_MIXES: dict[type, str] = {MoCHi: "pair_mixes", SynCo: "mixed"}  # the setting that counts mixes of two candidates


def repeated_mixes(stages: Sequence[Stage]) -> list[str]:
    """A note for each stage that mixes more pairs of candidates than its pool has."""
    notes = []
    for number, stage in enumerate(stages):
        if (name := PAIR_MIXES.get(type(stage))) is None:
            continue
        ends = zip(_at_ends(stage, name), _at_ends(stage, "pool"), strict=True)
        mixes, pool = max(ends, key=lambda end: end[0] - end[1] * (end[1] - 1) / 2)
        if mixes > (pairs := pool * (pool - 1) / 2):
            notes.append(
                f"{named(number, stage)} has {name} {mixes:g} but a pool of {pool:g} has {pairs:g} distinct pairs: several mixes are "
                f"of the same two candidates (lower {name} or raise pool)"
            )
    return notes


def idle_queue(stages: Sequence[Stage]) -> list[str]:
    """A note where a source takes the place of the queue's keys."""
    return [
        f"{named(number, stage)} replaces the candidates of the queue, which is filled and compared for train/accuracy alone: set "
        "--method.queue_size 0"
        for number, stage in enumerate(stages)
        if stage.replaces_candidates
    ]


def doubts(stages: Sequence[Stage], loss: Objective, batch: int | None, mixing: InputMix | None = None) -> list[str]:
    """A note for each pair of stages, or stage and loss or mix, that only looks as if it composed, and for what lies idle.

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
    notes = (
        list(dict.fromkeys(notes))
        + idle_counts(stages)
        + repeated_mixes(stages)
        + (idle_queue(stages) if batch is None else [])
    )
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
